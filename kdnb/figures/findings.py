"""The figure of the README: what of the accuracy is leaks, what the teacher adds, which map marks the lesion."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kdnb.figures import theme
from kdnb.figures.explain import _KINDS, method_kind

_WITH, _WITHOUT, _T2 = "#7F7F7F", "#0072B2", "#D55E00"
_LEGEND = {
    "gradients": "by gradients",
    "feature maps": "average feature maps",
    "controls": "knows nothing of what was learned",
}
_BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.2), "frameon": False, "fontsize": 9}


def _whiskers(table: pd.DataFrame, value: str, factor: float) -> np.ndarray:
    """The distances of ``lo`` and ``hi`` from ``value``, ``(2, N)``, as matplotlib's error bars take them."""
    return factor * np.stack([table[value] - table["lo"], table["hi"] - table[value]])


def _rows(axes: Axes, names: list[str]) -> None:
    """Name the rows of a panel, the first one on top, without lines between them."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")


def _leaks(axes: Axes, leaks: pd.DataFrame) -> None:
    """Accuracies on the usual split (published, or at random by image) and without its leaks, a row a data set."""
    names = list(dict.fromkeys(leaks["dataset"]))
    for published, label, colour in ((True, "usual split", _WITH), (False, "without leaks", _WITHOUT)):
        of_split = leaks[(leaks["split"] == "official") == published]
        places = [names.index(name) + (-0.12 if published else 0.12) for name in of_split["dataset"]]
        bars = _whiskers(of_split, "accuracy", 1.0)
        axes.errorbar(
            of_split["accuracy"], places, xerr=bars, fmt="o", color=colour, label=label, capsize=2, markersize=6
        )
    _rows(axes, names)
    axes.set(title="a  What of the accuracy is leaks", xlabel="the student's test accuracy", xlim=(None, 1.0))


def _gains(axes: Axes, gains: pd.DataFrame) -> None:
    """What each way of teaching adds to the labels alone, a row a data set; hollow where it is not told from none."""
    names, ways = list(dict.fromkeys(gains["dataset"])), list(dict.fromkeys(gains["what"]))
    for shift, (way, colour) in enumerate(zip(ways, (_WITH, _WITHOUT, _T2), strict=False)):
        rows = gains[gains["what"] == way]
        places = [names.index(name) + 0.22 * (shift - 1) for name in rows["dataset"]]
        bars = _whiskers(rows, "difference", 1.0)
        axes.errorbar(rows["difference"], places, xerr=bars, fmt="o", color=colour, label=way, capsize=2, markersize=6)
        left_open = ~rows["told"].to_numpy(bool)
        axes.plot(
            rows["difference"][left_open], np.array(places)[left_open], "o", color="white", markersize=3, zorder=3
        )
    axes.axvline(0, color="#333333", linewidth=1)
    _rows(axes, names)
    axes.set(title="b  What the teacher adds", xlabel="points of accuracy over labels alone (hollow: undecided)")


def _marks(axes: Axes, marks: pd.DataFrame) -> None:
    """How often the highest point of each map lies on the lesion, a row a method."""
    colours = [_KINDS[method_kind(name)] for name in marks["method"]]
    axes.barh(range(len(marks)), 100 * marks["mean"], color=colours, height=0.6)
    bars = _whiskers(marks, "mean", 100.0)
    axes.errorbar(100 * marks["mean"], range(len(marks)), xerr=bars, fmt="none", ecolor="#333333", capsize=2)
    _rows(axes, list(marks["name"]))
    handles = [Patch(color=_KINDS[kind], label=words) for kind, words in _LEGEND.items()]
    axes.legend(handles=handles, **_BELOW)
    axes.set(title="c  Which map marks the lesion", xlabel="highest point on it, % of images", xlim=(0, 102))


def three_panels(leaks: pd.DataFrame, gains: pd.DataFrame, marks: pd.DataFrame) -> Figure:
    """The study's findings side by side, with 95% intervals.

    Args:
        leaks: columns dataset, split, accuracy, lo, hi; split ``official`` is the published one.
        gains: columns dataset, what, difference, lo, hi, in points, and told (from none).
        marks: columns method, name, mean, lo, hi, the last three shares of images; the best one first.

    Returns:
        Three panels: leaks, gains, maps.
    """
    theme()
    figure, panels = plt.subplots(1, 3, figsize=(13.5, 3.9))
    for axes, draw, table in zip(panels, (_leaks, _gains, _marks), (leaks, gains, marks), strict=True):
        draw(axes, table)
        axes.set_title(axes.get_title(), loc="left", fontweight="bold")
        axes.set_title("")
    for axes in panels[:2]:
        axes.legend(**_BELOW)
    return figure
