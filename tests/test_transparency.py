"""Transparent students: tables with a known answer, and evidence that adds up."""

import numpy as np
import pandas as pd
import pytest
import torch

from kdnb import experiments, models, transparency
from kdnb.datasets import load
from kdnb.explain import METHODS
from kdnb.figures import evidence as figures
from kdnb.specs import TrainedStudent
from kdnb.training import Examples, Recipe

LABELS = np.arange(60) % 3
WIDTHS = (4, 4, 8, 8, 8)


def logits_of(right: np.ndarray) -> np.ndarray:
    """Logits whose answer is right where ``right`` says so."""
    return np.eye(3, dtype=np.float32)[np.where(right, LABELS, (LABELS + 1) % 3)]


@pytest.fixture
def experiment():
    part = Examples(np.zeros((60, 16, 16, 3), np.uint8), LABELS)
    return experiments.Experiment(part, part, part, np.empty((0, 0, 0), np.float32), Recipe(1), 3, "k")


@pytest.fixture
def results():
    """Of each 20 images plain gets 18 right, taught or not; transparent 14 alone and 17 taught.
    One more or less from seed to seed."""
    students = {}
    right = {("plain", "ce"): 18, ("plain", "kd_t2"): 18, ("transparent", "ce"): 14, ("transparent", "kd_t2"): 17}
    for spec in transparency.student_specs(("plain", "transparent"), ("ce", "kd_t2"), (0, 1, 2), 0.4, 10):
        logits = logits_of(np.arange(60) % 20 < right[spec.shape, spec.arm] + spec.seed - 1)
        students[spec] = TrainedStudent(spec, logits, logits, pd.DataFrame(), 1, logits, 1.0)
    return students


def test_price_and_gain_are_differences_on_the_same_images(results, experiment):
    tests = (
        transparency.price_tests(results, experiment, np.arange(60).astype(str))
        .set_index(["question", "a"])["difference"]
        .round(6)
    )
    assert tests["field: what does the smaller one cost?"].to_dict() == {
        "transparent ce": -0.2,
        "transparent kd_t2": -0.05,
    }
    assert tests["teacher: what does it add?"].to_dict() == {"plain kd_t2": 0, "transparent kd_t2": 0.15}
    assert tests["teacher: does it add more to the smaller field?"].to_dict() == {"gain of transparent by kd_t2": 0.15}


def test_the_table_knows_field_cells_and_operations(results, experiment):
    table = transparency.prices(results, experiment, 48)
    assert len(table) == 12
    first = table.groupby("shape", sort=False)[["receptive_field", "map_cells"]].first()
    assert first.to_numpy().tolist() == [[78, 3], [22, 6]]
    assert table.groupby(["shape", "loss"])["test_accuracy"].mean()["transparent", "kd_t2"] == pytest.approx(0.85)
    assert table.groupby("shape")["macs"].first().loc[["plain", "transparent"]].is_monotonic_decreasing


def explained(seeds=(0, 1, 2)) -> pd.DataFrame:
    """Evidence is better than both rivals by each metric, by 0.3, but for the pointing game of Grad-CAM;
    deletion is better when lower."""
    rows = []
    for seed in seeds:
        for image in range(30):
            for metric in ("pointing_game", "pixel_auc", "deletion_blur"):
                for shape, method, value in (
                    ("transparent", "class_evidence", 0.6),
                    ("plain", "grad_cam", 0.6 if metric == "pointing_game" else 0.3),
                    ("plain", "random", 0.3),
                ):
                    score = 1 - value if metric == "deletion_blur" else value
                    score += 0.02 * ((7 * image + seed) % 5)
                    rows.append((f"i{image}", f"g{image}", shape, method, metric, seed, score))
    return pd.DataFrame(rows, columns=["image_id", "group", "shape", "method", "metric", "seed", "value"])


def test_evidence_is_compared_with_the_plain_students_explanations():
    rows = explained()
    gone = (rows["image_id"] == "i3") & (rows["seed"] == 1) & (rows["method"] == "random")
    tests = transparency.explanation_tests(rows[~gone]).set_index(["metric", "b"])
    assert set(tests.index) == {
        (m, f"plain {r}") for m in ("pointing_game", "pixel_auc", "deletion_blur") for r in ("grad_cam", "random")
    }
    assert tests.loc[("deletion_blur", "plain random"), "difference"] == pytest.approx(-0.3)
    assert tests.loc[("deletion_blur", "plain random"), "better"] == "transparent class_evidence"
    assert tests.loc[("pointing_game", "plain grad_cam"), "better"] == "equal"
    assert tests["n"].unstack().to_numpy().tolist() == [[30, 29]] * 3, (
        "an image that one seed lacks is left out for all"
    )
    assert tests["question"].str.partition(":")[0].value_counts().to_dict() == {"truth": 4, "fidelity": 2}


def test_explanations_of_real_networks_fill_the_table_and_the_figure(results, experiment):
    data = load("phantom", 32, phantom_images=120)
    students = {}
    for shape in ("plain", "transparent"):
        students[shape, 0] = models.initialised(models.student, shape, len(data.classes), WIDTHS, seed=0).eval()
    chosen = {shape: {name: METHODS[name] for name in ("class_evidence", "random")} for shape, _ in students}
    rows = transparency.explanation_rows(students, chosen, data, per_class=2)
    assert set(rows["shape"]) == {"plain", "transparent"} and {"pixel_auc", "deletion_blur"} <= set(rows["metric"])
    assert rows.query("metric == 'pixel_auc'")["correct"].all(), (
        "where the student is wrong its evidence need not be at the lesion"
    )
    summary = transparency.explanation_summary(rows)
    figure = figures.price(transparency.prices(results, experiment, 32), summary)
    assert figure.axes[0].get_ylabel().split("\n")[0] == "test accuracy" and len(figure.axes) >= 4


def test_a_decision_taken_apart_adds_up():
    model = models.initialised(models.student, "transparent", 3, WIDTHS, seed=2).eval()
    table = transparency.apart(model, torch.rand(3, 48, 48), ["a", "b", "c"])
    assert table["logit"].is_monotonic_decreasing
    np.testing.assert_allclose(table["bias"] + table["for"] + table["against"], table["logit"], atol=1e-5)
    assert (table["for"] >= 0).all() and (table["against"] <= 0).all()


def test_layers_add_up_to_the_gap():
    model = models.initialised(models.student, "layered", 3, WIDTHS, seed=2).eval()
    images = torch.rand(5, 3, 48, 48)
    table = transparency.layer_shares(model, images, ["x"] * 5)
    assert list(table) == ["class", "layer1", "layer2", "layer3", "layer4", "layer5", "bias", "gap"]
    with torch.no_grad():
        top = model(images).topk(2, dim=1).values
    np.testing.assert_allclose(table["gap"], (top[:, 0] - top[:, 1]).numpy(), atol=1e-5)


def test_what_evidence_costs_is_a_median_of_pairs():
    model = models.initialised(models.student, "plain", 3, WIDTHS, seed=0).eval()
    row = transparency.passes(model, torch.rand(2, 3, 32, 32), repeats=9).iloc[0]
    assert row["n"] == 9 and 0 < row["lo"] <= row["ratio"] <= row["hi"]


def test_signed_maps_have_zero_in_the_middle_of_their_scale():
    maps = {"for": np.array([[[0.0, 2.0], [0.0, -1.0]]]), "against": np.array([[[0.0, -3.0], [0.0, 0.5]]])}
    figure = figures.signed(
        np.zeros((1, 16, 16, 3), np.uint8),
        maps,
        ["image"],
        masks=np.eye(16, dtype=bool)[None],
        notes=[["+1.2", "-0.3"]],
    )
    limits = {image.get_clim() for axis in figure.axes[1:3] for image in axis.images[1:]}
    assert limits == {(-3.0, 3.0)} and [axis.get_xlabel() for axis in figure.axes[1:3]] == ["+1.2", "-0.3"]


@pytest.fixture
def of_every_arm():
    """Of each 20 images plain gets 16 right, transparent 12; label smoothing and the paper's loss add 1 to each,
    T² adds 1 to plain and 5 to transparent. One more or less from seed to seed."""
    students, added = {}, {"ce": (0, 0), "ls": (1, 1), "kd": (1, 1), "kd_t2": (1, 5)}
    shapes = (transparency.PLAIN, transparency.TRANSPARENT)
    for spec in transparency.student_specs(shapes, list(transparency.ARMS), (0, 1, 2), 0.4, 10):
        of_plain, of_transparent = added[spec.arm]
        right = 16 + of_plain if spec.shape == "plain" else 12 + of_transparent
        logits = logits_of(np.arange(60) % 20 < right + spec.seed - 1)
        students[spec] = TrainedStudent(spec, logits, logits, pd.DataFrame(), 1, logits, 1.0)
    return students


def test_gains_of_every_way_stand_beside_each_other(of_every_arm, experiment):
    tests = transparency.price_tests(of_every_arm, experiment, np.arange(60).astype(str))
    table = transparency.gains_in_brief(pd.concat([tests.assign(labels=labels) for labels in ("all labels", "few")]))
    assert list(table) == ["plain", "transparent", "transparent − plain"]
    ways = ["label smoothing", "paper's loss", "with T²"]
    assert table.index.tolist() == [(labels, way) for labels in ("all labels", "few") for way in ways]
    row = table.loc[("few", "with T²")]
    assert [cell.split()[0] for cell in row] == ["+5.0", "+25.0", "+20.0"]
    alike = table.loc[("few", "paper's loss"), "transparent − plain"]
    assert row["transparent − plain"].endswith("]*") and alike.startswith("+0.0 [") and alike.endswith("]")


def test_the_price_shows_both_average_maps_and_every_marker_whole(results, experiment):
    rows = [("plain", "feature_maps_mean", 0.5), ("plain", "feature_maps_unpooled", 0.8)]
    rows += [("plain", "class_evidence", 0.2), ("transparent", "class_evidence", 0.6)]
    summary = pd.DataFrame([(*row[:2], "pointing_game", row[2]) for row in rows])
    summary.columns = ["shape", "method", "metric", "mean"]
    prices = transparency.prices(results, experiment, 32)
    figure = figures.price(prices, summary)
    pointing = next(axis for axis in figure.axes if axis.get_ylabel().startswith("pointing"))
    heights = {line.get_linestyle(): line.get_ydata()[0] for line in pointing.lines[1:]}
    assert heights == {"--": 0.5, ":": 0.8}
    assert [text.get_text() for text in figure.legends[0].texts][1:] == [
        "average map, plain student, after pooling",
        "average map, plain student, before pooling",
    ]
    operations = next(axis for axis in figure.axes if axis.get_ylabel().startswith("million"))
    assert operations.get_ylim()[1] > 1.05e-6 * prices["macs"].max()
