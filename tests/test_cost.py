"""What is counted and timed: figures known from outside, models left as they were, rows that hold together."""

import time

import pytest
import torch
from torch import nn
from torchvision.models import densenet121

from kdnb import cost
from kdnb.models import StudentCNN


def test_macs_of_densenet121_are_the_known_ones():
    assert round(cost.macs(densenet121(), 224) / 1e9, 2) == 2.83


def test_macs_of_the_student_by_hand():
    widths, sizes = (3, 32, 64, 128, 256, 512), (64, 32, 16, 8, 4)
    by_hand = sum(9 * widths[i] * widths[i + 1] * sizes[i] ** 2 for i in range(5)) + 512 * 4
    assert cost.macs(StudentCNN(4), 64) == by_hand


def test_macs_leaves_the_mode_alone():
    model = StudentCNN(4).train()
    model.features[2].eval()
    before = [module.training for module in model.modules()]
    cost.macs(model, 64)
    assert [module.training for module in model.modules()] == before


def test_frozen_parameters_are_not_counted():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    assert cost.parameters(model) == 8 + 3
    model[0].weight.requires_grad = False
    assert cost.parameters(model) == 2 + 3


def test_measure_takes_about_as_many_calls_as_asked():
    for wait in (0.001, 0.11):
        measured = cost.measure(lambda wait=wait: time.sleep(wait), repeats=6)
        assert 3 <= len(measured.times) <= 7
        assert measured.median >= wait


def test_slow_methods_are_timed_on_fewer_images():
    assert cost.images_in_reach(lambda n: time.sleep(0.02), 32, 0.05) in (1, 2)
    assert cost.images_in_reach(lambda n: None, 32, 0.05) == 32


def test_met_table_has_a_row_a_method_model_and_batch_and_compares_with_the_models_own_forward():
    models = {"small": StudentCNN(3, (4, 8, 8)).eval(), "large": StudentCNN(3, (16, 32, 64)).eval()}
    methods = {
        "two_forwards": lambda model, images, targets: (model(images), model(images))[0],
        "slow": lambda m, i, t: time.sleep(0.02 * len(i)),
    }
    table = cost.met_table(models, methods, torch.rand(8, 3, 32, 32), batch_sizes=(1, 8), repeats=3, seconds=0.05)
    columns = [
        "method",
        "model",
        "batch_size",
        "images",
        "ms_per_image_median",
        "ms_per_image_iqr",
        "forward_equivalents",
    ]
    assert list(table.columns[:7]) == columns
    assert len(table) == 2 * 2 * 3
    forward = table[table["method"] == "forward"]
    assert (forward["forward_equivalents"] == 1).all()
    large = table.query("method == 'slow' and batch_size == 8")
    assert (large["images"] < 8).all() and (large["ms_per_image_median"] >= 20).all()


def test_passes_within_divides_the_time_by_one_pass_and_leaves_no_gradient():
    model = StudentCNN(3, (8, 8, 8)).eval()
    table = cost.passes_within({"student": model, "other": model}, {"student": 10.0}, 32, repeats=3)
    row = table.iloc[0]
    assert len(table) == 1 and row["forwards_within"] * row["forward_seconds"] == pytest.approx(10)
    assert row["forward_backward_seconds"] > 0
    assert all(parameter.grad is None for parameter in model.parameters())
