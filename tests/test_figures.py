"""What a reader must be able to trust in a picture: names that can be read, controls told apart,
nothing drawn that is not there."""

from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from kdnb.figures import explain, training

TIMED = ("feature_maps_mean", "feature_maps_weighted", "grad_cam", "integrated_gradients", "shap")
CONTROLS = {"random": 0.5, "uniform": 0.33, "sobel": 0.34, "untrained": 0.9, "centre": 0.895, "data_set_mean": 0.89}


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def _tables(rng):
    """Tables as ``met.csv`` and ``fidelity_summary.csv`` have them, with points that crowd each other."""
    met, rows = [], []
    for model, factor in (("student_kd", 1), ("teacher", 5)):
        for method, ms in zip(("forward", "sobel", *TIMED), (0.6, 0.02, 0.70, 0.71, 0.72, 80, 95), strict=True):
            met += [(method, model, batch, ms * factor) for batch in (1, 32)]
        for method in (*TIMED, *CONTROLS):
            mean = CONTROLS.get(method, 0.95 + 0.02 * rng.random())
            rows.append(("all", model, method, "agreement_30", mean, mean - 0.05, min(mean + 0.03, 1.0)))
    columns = ["class", "model", "method", "metric", "mean", "lo", "hi"]
    return pd.DataFrame(met, columns=["method", "model", "batch_size", "ms_per_image_median"]), pd.DataFrame(
        rows, columns=columns
    )


@pytest.mark.parametrize("seed", range(5))
def test_time_against_fidelity_names_every_point_and_no_name_covers_another(seed):
    met, summary = _tables(np.random.default_rng(seed))
    figure = explain.time_against_fidelity(met, summary, metric="agreement_30", batch_size=32)
    names = sorted(text.get_text() for text in figure.axes[0].texts)
    methods = [explain.method_name(name) for name in TIMED]
    assert names == sorted(2 * methods + [explain.method_name(name) for name in CONTROLS])
    figure.canvas.draw()
    boxes = [plt.Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_time_against_fidelity_draws_models_apart_and_controls_as_lines():
    met, summary = _tables(np.random.default_rng(0))
    axes = explain.time_against_fidelity(met, summary, metric="agreement_30", batch_size=32).axes[0]
    marks = {mark: [line for line in axes.lines if line.get_marker() == mark] for mark in "os"}
    assert len(marks["o"]) == len(marks["s"]) == len(TIMED)
    assert all(line.get_markerfacecolor() == "white" for line in marks["s"])
    assert {line.get_color() for line in marks["o"]} == {explain._KINDS["feature maps"], explain._KINDS["gradients"]}
    assert min(line.get_xdata()[0] for line in marks["s"]) == pytest.approx(0.70 * 5)
    level = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert sorted(line.get_ydata()[0] for line in level) == sorted(CONTROLS.values())


def test_time_against_fidelity_leaves_out_what_was_measured_on_no_image():
    met, summary = _tables(np.random.default_rng(0))
    summary.loc[summary["model"] == "teacher", ["mean", "lo", "hi"]] = np.nan
    axes = explain.time_against_fidelity(met, summary, metric="agreement_30", batch_size=32).axes[0]
    assert not [line for line in axes.lines if line.get_marker() == "s"]
    assert len(axes.texts) == len(TIMED) + len(CONTROLS)
    nowhere = explain.time_against_fidelity(
        met, summary.assign(mean=np.nan), metric="agreement_30", batch_size=32
    ).axes[0]
    assert not nowhere.texts


@pytest.mark.parametrize(("count", "in_a_row"), [(1, 1), (3, 3), (4, 2), (5, 3), (9, 3)])
def test_panels_fill_their_rows(count, in_a_row):
    summary = _tables(np.random.default_rng(0))[1]
    metrics = [f"metric_{k}" for k in range(count)]
    table = pd.concat([summary.assign(metric=metric) for metric in metrics])
    axes = explain.by_method(table, metrics, model="student_kd").axes
    assert len({round(axis.get_position().x0, 2) for axis in axes}) == in_a_row


def test_by_method_gives_each_metric_a_panel():
    summary = _tables(np.random.default_rng(0))[1]
    metrics = ["agreement_10", "agreement_30", "insertion_blur", "deletion_blur"]
    table = pd.concat([summary.assign(metric=metric) for metric in metrics])
    axes = explain.by_method(table, metrics, model="student_kd").axes
    assert [axis.get_xlabel().split(",")[0].split(" AUC")[0] for axis in axes if axis.axison] == [
        "agreement",
        "agreement",
        "insertion",
        "deletion",
    ]
    assert len({round(axis.get_position().y0, 2) for axis in axes if axis.axison}) == 2
    assert [label.get_text() for label in axes[0].get_yticklabels()][-len(CONTROLS) :] == [
        explain.method_name(name) for name in CONTROLS
    ]


def test_a_map_without_contrast_is_drawn_without_contrast():
    image, flat = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8), 0.3)
    drawn = explain.overlays(image, {"flat": flat}, ["row"]).axes[1].images[1].get_array()
    assert np.ptp(drawn) == 0


def test_the_cascade_names_the_students_layers():
    axes = explain.cascade(_cascade()).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["classifier", "layer 5"]


def test_the_cascade_shows_the_range_of_the_networks_and_not_of_the_images():
    bars = [
        line.get_ydata()
        for line in explain.cascade(_cascade()).axes[0].lines
        if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata())
    ]
    assert len(bars) == 4 and all(sorted(bar) == pytest.approx([0.1, 0.9]) for bar in bars)


def _cascade() -> pd.DataFrame:
    """Two networks of which one keeps a correlation of .1 and one of .9,
    each the mean of two images .1 apart from it."""
    rows = [
        (n, stage, method, draw, image, value + shift)
        for n, stage in enumerate(("classifier", "features.4"))
        for method in ("grad_cam", "sobel")
        for draw, value in enumerate((0.1, 0.9))
        for image, shift in enumerate((-0.1, 0.1))
    ]
    return pd.DataFrame(rows, columns=["order", "stage", "method", "draw", "image", "spearman"])


def test_softened_draws_a_bar_a_class_and_model_at_every_temperature():
    rows = [(t, model, name, 0.1 * t) for t in (1.0, 5.0) for model in ("teacher", "student_kd") for name in "abc"]
    table = pd.DataFrame(rows, columns=["temperature", "model", "class", "probability"])
    image, *panels = training.softened(table, np.zeros((8, 8, 3), np.uint8)).axes
    assert len(image.images) == 1
    assert [[bar.get_height() for bar in axes.patches] for axes in panels] == [[0.1] * 6, [0.5] * 6]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in panels[0].patches)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(edges)), "bars side by side"
    alone = training.softened(table[table["model"] == "teacher"].drop(columns="model")).axes
    assert [len(axes.patches) for axes in alone] == [3, 3]


def test_a_forest_gives_each_run_its_row_in_every_panel():
    first = pd.DataFrame({"run": ["a", "c", "together"], "difference": [1, 3, 2], "lo": [0, 2, 1], "hi": [2, 4, 3]})
    figure = training.forest({"all": first.assign(run=["b", "c", "together"]), "fewer": first})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c", "together"], (
        "shared by both"
    )
    drawn = [[line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1] for axes in figure.axes]
    assert drawn == [[1, 2, 3], [0, 2, 3]]
    spans = [line.get_xdata() for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1]
    assert spans[1] == pytest.approx([2, 4]), "in points"
