"""What is counted and timed: figures known from outside, models left as they were, rows that hold together."""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.utils.benchmark
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


@pytest.fixture
def clocked(clock, monkeypatch):
    """A clock by which everything is timed, so that no other work on the machine takes part."""
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(torch.utils.benchmark, "Timer", partial(torch.utils.benchmark.Timer, timer=clock))
    return clock


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, 6), (0.11, 5), (2.0, 3)])
def test_measure_takes_about_as_many_calls_as_asked_and_three_of_a_very_slow_one(clocked, seconds, calls):
    measured = cost.measure(lambda: clocked.wait(seconds), repeats=6)
    assert len(measured.times) == calls
    assert measured.median == pytest.approx(seconds, rel=0.01)


def test_slow_methods_are_timed_on_fewer_images(clocked):
    assert cost.images_in_reach(lambda n: clocked.wait(0.02), 32, 0.05) == 2
    assert cost.images_in_reach(lambda n: clocked.wait(2), 32, 0.05) == 1
    assert cost.images_in_reach(lambda n: None, 32, 0.05) == 32


def test_met_table_has_a_row_a_method_model_and_batch_and_compares_with_the_models_own_forward(clocked):
    models = {"small": StudentCNN(3, (4, 8, 8)).eval(), "large": StudentCNN(3, (16, 32, 64)).eval()}
    for model, seconds in zip(models.values(), (0.001, 0.002), strict=True):
        model.register_forward_hook(lambda *_, seconds=seconds: clocked.wait(seconds))
    methods = {
        "two_forwards": lambda model, images, targets: (model(images), model(images))[0],
        "slow": lambda model, images, targets: clocked.wait(0.02 * len(images)),
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
    equivalents = table.groupby("method")["forward_equivalents"].agg(["min", "max"])
    assert equivalents.loc["forward"].tolist() == [1, 1]
    assert equivalents.loc["two_forwards"].tolist() == pytest.approx([2, 2], rel=0.01)
    slow = table.query("method == 'slow' and batch_size == 8")
    assert slow["images"].tolist() == [2, 2]
    assert slow["ms_per_image_median"].tolist() == pytest.approx([20, 20], rel=0.01)


def test_passes_within_divides_the_time_by_one_pass_and_leaves_no_gradient():
    model = StudentCNN(3, (8, 8, 8)).eval()
    table = cost.passes_within({"student": model, "other": model}, {"student": 10.0}, 32, repeats=3)
    row = table.iloc[0]
    assert len(table) == 1 and row["forwards_within"] * row["forward_seconds"] == pytest.approx(10)
    assert row["forward_backward_seconds"] > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_counting_is_silent_where_triton_is_missing():
    code = (
        "import sys; sys.modules['triton'] = None; import torch; torch.version.cuda = '13.0'; from kdnb import cost; "
        "print(cost.macs(torch.nn.Conv2d(3, 8, 1), 10))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "2400\n" and "triton" not in answer.stderr
