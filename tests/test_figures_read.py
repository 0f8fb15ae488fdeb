"""Pictures that cannot mislead: scales that stretch no luck, outlines in every panel, counts where they differ,
the claims' verdicts."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from kdnb import claims, fidelity
from kdnb.evaluation import reliability_of_equal_bins
from kdnb.figures import COLOURS, explain, statistics, training


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def _grid(spread: float) -> pd.DataFrame:
    """A sweep whose cells differ by ``spread`` from the first to the last."""
    cells = [
        (loss, alpha, t, seed)
        for loss in ("kd", "kd_t2")
        for alpha in (0.0, 0.4)
        for t in (1.0, 4.0, 20.0)
        for seed in (0, 1)
    ]
    table = pd.DataFrame(cells, columns=["loss", "alpha", "temperature", "seed"])
    table["test_accuracy"] = 0.99 + spread * np.linspace(0, 1, len(table))
    plain = pd.DataFrame({"loss": "ce", "alpha": 1.0, "temperature": 1.0, "seed": [0, 1], "test_accuracy": 0.99})
    return pd.concat([table, plain], ignore_index=True)


@pytest.mark.parametrize(("spread", "widest"), [(0.002, training.LEAST_SPAN / 2), (0.08, 7.8)])
def test_the_map_s_colours_span_some_points_whatever_the_cells_differ_by(spread, widest):
    drawn = training.grid_map(_grid(spread)).axes[0].collections[0]
    assert drawn.norm.vmax == -drawn.norm.vmin == pytest.approx(widest, abs=0.3)


def test_temperatures_have_a_panel_a_loss_and_a_scale_of_some_points():
    figure = training.over_temperature(_grid(0.002))
    assert [axes.get_title() for axes in figure.axes] == ["the paper's loss", "the paper's loss with T²"]
    low, high = figure.axes[0].get_ylim()
    assert high - low >= training.LEAST_SPAN - 1e-6 and high <= 100


def test_an_arm_s_interval_is_that_of_all_its_seeds():
    table = pd.DataFrame(
        {"model": "student_ce", "accuracy": [0.90, 0.94], "accuracy_lo": [0.86, 0.92], "accuracy_hi": [0.92, 0.96]}
    )
    axes = training.arms(table).axes[0]
    assert list(axes.lines[0].get_xdata()) == pytest.approx([89, 94])
    assert np.diff(axes.get_xlim())[0] >= training.LEAST_SPAN


def test_bins_hold_equally_many_images_and_their_interval_holds_a_calibrated_truth():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 3000)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = (rng.random(3000) > confidence).astype(int)
    table = reliability_of_equal_bins(labels, probabilities, bins=10)
    assert table["n"].tolist() == [300] * 10 and table["confidence"].is_monotonic_increasing
    inside = (table["lo"] <= table["confidence"]) & (table["confidence"] <= table["hi"])
    assert inside.sum() >= 8
    sure = reliability_of_equal_bins(np.ones(3000, int), probabilities)
    assert (sure["hi"] < sure["confidence"]).all(), "who is always wrong is too sure"
    assert len(reliability_of_equal_bins(labels[:45], probabilities[:45])) == 1, "thirty images a bin, or one bin"
    assert len(training.reliability({"teacher": table}).axes) == 2


def test_persons_widen_the_interval_of_a_bin():
    probabilities = np.tile([[0.8, 0.2]], (400, 1))
    labels = np.repeat(np.random.default_rng(1).integers(0, 2, 40), 10)
    alone, by_person = (
        reliability_of_equal_bins(labels, probabilities, groups, bins=1).iloc[0]
        for groups in (None, np.arange(400) // 10)
    )
    assert by_person["hi"] - by_person["lo"] > 2 * (alone["hi"] - alone["lo"])


@pytest.mark.parametrize(
    ("lo", "hi", "p", "word", "claimed"),
    [
        (0.001, 0.02, 0.01, "adds", claims.HOLDS),
        (-0.02, -0.001, 0.01, "takes", claims.FAILS),
        (-0.004, 0.009, 0.5, "no effect", claims.NO_EFFECT),
        (-0.004, 0.02, 0.5, "undecided", claims.UNDECIDED),
        (0.001, 0.02, 0.06, "undecided", claims.UNDECIDED),  # told from none, were it the only comparison
        (0.001, 0.009, 0.06, "no effect", claims.NO_EFFECT),
    ],
)
def test_a_picture_s_verdict_is_the_claims(lo, hi, p, word, claimed):
    assert statistics.verdict(lo, hi, claims.MARGIN, p) == word
    assert claims.adds((lo + hi) / 2, lo, hi, p=p).verdict == claimed


def test_differences_are_drawn_in_points_with_the_mark_of_their_verdict():
    table = pd.DataFrame({"name": ["a", "b"], "difference": [0.02, 0.0], "lo": [0.01, -0.005], "hi": [0.03, 0.005]})
    table["p_holm"] = [0.01, 1.0]
    axes = statistics.differences(table, 0.01).axes[0]
    rows = [line for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert [list(line.get_xdata()) for line in rows] == [pytest.approx([1, 3]), pytest.approx([-0.5, 0.5])]
    assert [line.get_color() for line in rows] == [statistics._MARKS[word][0] for word in ("adds", "no effect")]
    marks = [line.get_marker() for line in axes.get_legend().get_lines()]
    assert marks == [statistics._MARKS[word][1] for word in ("adds", "no effect")]


def test_a_colour_is_one_loss_in_every_figure():
    verdicts = {colour for colour, _, _ in statistics._MARKS.values()}
    assert not verdicts & (set(COLOURS.values()) - {COLOURS["teacher"]}), "a verdict is no loss"
    of_way = {way: colour for way, (colour, _, _) in training._WAYS.items()}
    assert of_way["successor"] == COLOURS["student_dkd"] != COLOURS["student_released"]
    assert of_way["T = 1"] == of_way["with T²"] == of_way["with T², all images"] == COLOURS["student_kd_t2"]
    assert of_way["oracle, T = 1"] not in COLOURS.values(), "a student of the oracle is not the teacher"
    looks = list(training._WAYS.values())
    assert len(set(looks)) == len(looks), "colour, dash and hatch tell ways apart"


def test_shapes_of_a_student_have_the_colour_of_the_loss_they_learn_by():
    table = pd.DataFrame({"pool": ["max", "average"], "macs": 1e6, "layers": 5, "test_accuracy": [0.7, 0.6]})
    axes = training.ablation(table).axes[0]
    assert {line.get_color() for line in axes.lines} == {COLOURS["student_kd"]}
    assert [line.get_marker() for line in axes.get_legend().get_lines()] == ["o", "s"]


def test_gains_are_joined_from_few_labels_to_all_and_no_line_goes_back():
    rows = [(loss, 10.0, labels, s, labels + s) for loss in ("kd", "kd_t2") for labels in (0, 5, 20) for s in (0, 1)]
    rows += [("kd_t2", 1.0, 20, s, 3.0) for s in (0, 1)]
    columns = ["loss", "temperature", "labels", "seed", "gain"]
    left, right = training.gains_by_labels(pd.DataFrame(rows, columns=columns)).axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["5", "20", "all"]
    line = next(line for line in left.lines if len(line.get_xdata()) == 3)
    assert list(np.diff(line.get_xdata())) == pytest.approx([1, 1]) and list(line.get_ydata()) == [5.5, 20.5, 0.5]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["T = 1", "T = 10"]


def test_a_teacher_has_one_mark_and_the_labels_its_fill():
    rows = [("oracle", "few", 0.0, 5.0), ("oracle", "all", 0.0, 2.0), ("mean", "few", 0.5, 1.0)]
    table = pd.DataFrame(rows, columns=["teacher", "labels", "divergence", "gain"]).assign(lo=0.0, hi=6.0)
    axes = training.gain_against_distance(table).axes[0]
    points = [line for line in axes.lines if line.get_marker() in "oD" and len(line.get_xdata()) == 1]
    assert [(line.get_marker(), line.get_markerfacecolor()) for line in points] == [
        ("o", "#333333"),
        ("o", "white"),
        ("D", "#333333"),
    ]
    assert points[0].get_xdata()[0] < points[1].get_xdata()[0], "one teacher's points lie side by side"


def test_holm_marks_those_that_the_study_s_correction_finds():
    from kdnb.evaluation import holm

    p = np.array([0.001, 0.011, 0.02, 0.5, 0.012])
    points = statistics.holm_steps(p).axes[0].collections
    assert len(points[0].get_offsets()) == (holm(p) < 0.05).sum()


def test_a_lesion_is_outlined_in_every_column():
    images, masks = np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 16, 16), bool)
    masks[0, 4:8, 4:8] = True
    figure = explain.overlays(
        images, {"a": np.random.default_rng(0).random((2, 16, 16)), "b": np.ones((2, 16, 16))}, ["x", "y"], masks=masks
    )
    outlined = [bool(axes.collections) for axes in figure.axes[:6]]
    assert outlined == [True] * 3 + [False] * 3


def test_methods_judged_on_fewer_images_say_so():
    rows = [("all", "m", method, "agreement_10", 0.5, 0.4, 0.6, n) for method, n in (("grad_cam", 100), ("shap", 40))]
    summary = pd.DataFrame(rows, columns=["class", "model", "method", "metric", "mean", "lo", "hi", "n"])
    axes = explain.by_method(summary, ["agreement_10"], model="m").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Grad-CAM", "SHAP (n = 40)"]


def test_a_film_strip_shows_the_shares_asked_for_and_every_curve():
    shares = (0.0, 0.1, 0.5, 1.0)
    strips = {fill: np.random.default_rng(0).random((4, 8, 8, 3)) for fill in ("blur", "mean")}
    curves = {"blur": np.array([0.1, 0.4, 0.8, 0.9]), "mean": np.array([0.2, 0.2, 0.7, 0.9])}
    at_random = {fill: curve / 2 for fill, curve in curves.items()}
    axes = explain.film_strip(strips, curves, at_random, shares, (0.1, 0.5)).axes
    assert len(axes) == 2 * (2 + 1)
    assert [panel.get_xlabel() for panel in axes if panel.images] == ["p = 0.40", "p = 0.80", "p = 0.20", "p = 0.70"]
    drawn = [[list(line.get_ydata()) for line in panel.lines] for panel in axes if panel.lines]
    assert drawn == [[list(curves[fill]), list(at_random[fill])] for fill in strips]


def test_places_are_drawn_with_each_method_s_best_and_worst():
    means = pd.DataFrame(
        {"insertion_mean": [3.0, 2, 1], "deletion_mean": [0.3, 0.1, 0.5]}, ["shap", "grad_cam", "sobel"]
    )
    axis = explain.ranks(fidelity.ranks(means)).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "SHAP  1 to 2",
        "Grad-CAM  1 to 2",
        "Sobel edges  3 to 3",
    ]
    assert [text.get_text() for text in axis.texts] == ["1", "2", "2", "1", "3", "3"]


def test_the_map_of_agreements_shows_each_pair_once_and_no_metric_with_itself():
    tau = pd.DataFrame(np.eye(3) + 0.25 * (1 - np.eye(3)), index=list("abc"), columns=list("abc"))
    axis = explain.agreement(tau).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0.2"] * 3
    assert [text.get_text() for text in axis.get_xticklabels()] == ["a", "b"]


def test_a_long_title_is_broken_and_does_not_run_into_its_neighbour():
    maps = {"mean of layers, before pooling": np.ones((1, 8, 8)), "block1: 59 px\n12 x 12 cells": np.ones((1, 8, 8))}
    axes = explain.overlays(np.zeros((1, 8, 8, 3), np.uint8), maps, ["x"]).axes
    assert [axis.get_title() for axis in axes[1:3]] == [
        "mean of layers, before\npooling",
        "block1: 59 px\n12 x 12 cells",
    ]


def test_curves_draw_a_mean_and_every_seed():
    history = pd.DataFrame([("student_ce", s, e, 1.0 / e, 0.5 + 0.1 * e + 0.01 * s) for s in (0, 1) for e in (1, 2)])
    history.columns = ["model", "seed", "epoch", "train_loss", "val_accuracy"]
    right = training.curves(history).axes[1]
    assert [list(line.get_ydata()) for line in right.lines][-1] == pytest.approx([0.605, 0.705])
    assert len(right.lines) == 3 and len(training.curves(history.drop(columns="seed")).axes[1].lines) == 1


def test_an_interval_of_a_share_ends_at_a_hundred_percent():
    figure = statistics.rates(
        pd.DataFrame({"name": ["all but one"], "rate": [0.99], "experiments": [100]}), 0.95, "held"
    )
    (line,) = figure.axes[0].collections[0].get_segments()
    assert line[0][0] == pytest.approx(94.55, abs=0.01) and line[1][0] == pytest.approx(99.82, abs=0.01), "Wilson's"
