"""Pictures of volumes and of explanations in depth (chapter 09)."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from kdnb.fidelity.depth import by_slice
from kdnb.figures.evidence import SIGNED

MOST_SHOWN = 10  # slices beside each other
_MEASURES = {
    "pointing_game": "pointing game\n(1 is best)",
    "pixel_auc": "voxel AUC\n(1 is best)",
    "slice_pointing": "slice of most mass\nholds the lesion\n(1 is best)",
    "slice_auc": "AUC of slices\n(1 is best)",
    "hidden": "lesion outside\nthe one best slice\n(lower is better)",
    "insertion_blur": "insertion AUC\n(higher is better)",
    "deletion_blur": "deletion AUC\n(lower is better)",
}
METHODS = {
    "feature_maps_mean": "average map, mean of layers",
    "class_evidence": "class evidence",
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
    "shap": "SHAP",
    "best_filter": "best single filter",
    "random": "random",
    "centre": "centre",
    "edges": "edges",
    "uniform": "uniform",
    "untrained": "untrained network",
}


def method_name(method: str) -> str:
    """What a method is called in a figure."""
    return METHODS.get(method, method.replace("feature_maps_layer", "average map, layer "))


def shown_slices(depth: int) -> np.ndarray:
    """At most :data:`MOST_SHOWN` slices, evenly."""
    return np.unique(np.linspace(0, depth - 1, min(depth, MOST_SHOWN)).round().astype(int))


def montage(rows: dict[str, np.ndarray], masks: Sequence[np.ndarray | None], signed: Sequence[str] = ()) -> Figure:
    """Volumes slice by slice, the lesion outlined.

    Args:
        rows: title -> ``(D, H, W)``: uint8 is a volume and grey; anything else a map, from its own least to its largest
            value.
        masks: of each row, ``(D, H, W)`` bool or ``None``.
        signed: titles of maps that are drawn with zero in the middle.

    Returns:
        A row each, slices from left to right.
    """
    numbers = shown_slices(len(next(iter(rows.values()))))
    size = (0.95 * len(numbers) + 1.2, 1.0 * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), len(numbers), figsize=size, squeeze=False, layout="constrained")
    for line, mask, (title, values) in zip(axes, masks, rows.items(), strict=True):
        grey = {"cmap": "gray", "vmin": 0, "vmax": 255}
        options = grey if values.dtype == np.uint8 else _colours(values, signed=title in signed)
        for axis, number in zip(line, numbers, strict=True):
            axis.imshow(values[number], **options)
            axis.set(xticks=[], yticks=[])
            if mask is not None and mask[number].any():
                axis.contour(mask[number], [0.5], colors="white" if values.dtype != np.uint8 else "red", linewidths=0.8)
        line[0].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
    for axis, number in zip(axes[0], numbers, strict=True):
        axis.set_title(f"slice {number + 1}", fontsize=8)
    return figure


def _colours(values: np.ndarray, *, signed: bool) -> dict[str, Any]:
    """How a map is drawn: one with signs about zero, others from their least to their largest value."""
    if signed:
        most = float(np.abs(values).max()) or 1.0
        return {"cmap": SIGNED, "vmin": -most, "vmax": most}
    return {"cmap": "viridis", "vmin": float(values.min()), "vmax": float(values.max()) + 1e-9}


def one_slice(
    volume: np.ndarray, maps: dict[str, np.ndarray], mask: np.ndarray | None, number: int, signed: Sequence[str] = ()
) -> Figure:
    """One slice with its maps, and how each map's mass lies over all slices, with this slice marked.

    Args:
        volume: ``(D, H, W)`` uint8.
        maps: title -> ``(D, H, W)``.
        mask: ``(D, H, W)`` bool or ``None``.
        number: of the slice, from 0.
        signed: titles of maps that are drawn with zero in the middle, red above it and blue below.

    Returns:
        Slice and maps from left to right, the last panel the masses.
    """
    figure, axes = plt.subplots(1, 2 + len(maps), figsize=(2.1 * (2 + len(maps)) + 0.8, 2.3), layout="constrained")
    for axis, (title, values) in zip(axes, {"volume": volume, **maps}.items(), strict=False):
        grey = {"cmap": "gray", "vmin": values.min(), "vmax": values.max()}
        axis.imshow(values[number], **(grey if title == "volume" else _colours(values, signed=title in signed)))
        if mask is not None and mask[number].any():
            axis.contour(mask[number], [0.5], colors="red", linewidths=1)
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[], yticks=[])
    profile(axes[-1], maps, mask, number)
    return figure


def profile(axis: plt.Axes, maps: dict[str, np.ndarray], mask: np.ndarray | None, number: int | None = None) -> None:
    """Draw which share of each map lies in which slice; the lesion's slices shaded."""
    for title, values in maps.items():
        mass = by_slice(values[None])[0]
        axis.plot(np.arange(1, len(mass) + 1), mass, label=title, linewidth=1.4)
    if mask is not None:
        for slice_number in np.flatnonzero(mask.any(axis=(1, 2))):
            axis.axvspan(slice_number + 0.5, slice_number + 1.5, color="0.85", linewidth=0)
    if number is not None:
        axis.axvline(number + 1, color="black", linestyle=":", linewidth=1)
    axis.set_xlabel("slice", fontsize=8)
    axis.set_ylabel("share of the map", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=8)
    axis.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def accuracies(table: pd.DataFrame, best: float | None) -> Figure:
    """Accuracy of every network: a point a seed, its mean a bar.

    Args:
        table: columns ``labels``, ``way``, ``seed``, ``accuracy``.
        best: what the Bayes classifier would have, where it is known.

    Returns:
        A panel for each number of labels.
    """
    panels, order = (list(dict.fromkeys(table[name])) for name in ("labels", "way"))
    size = (4.0 * len(panels) + 1.5, 0.3 * len(order) + 1.1)
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, labels in zip(axes[0], panels, strict=True):
        for way, seeds in table[table["labels"] == labels].groupby("way", sort=False):
            place = -order.index(way)
            axis.plot(seeds["accuracy"], np.full(len(seeds), place), "o", color="0.5", markersize=3)
            axis.plot(seeds["accuracy"].mean(), place, "|", color="#0072B2", markersize=14, markeredgewidth=2)
        if best is not None:
            axis.axvline(best, color="black", linestyle="--", linewidth=1)
            axis.text(best, 0.6, "Bayes ", fontsize=7, va="bottom", ha="right")
        axis.set_yticks([-place for place in range(len(order))], order, fontsize=8)
        axis.set_ylim(-len(order) + 0.4, 0.9)
        axis.set_xlabel("test accuracy", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.set_title(labels, fontsize=9)
        axis.grid(alpha=0.3)
    sns.despine(figure)
    return figure


def measures(summary: pd.DataFrame, way: str, controls: Sequence[str]) -> Figure:
    """Every explanation of one student by every measure, with 95% intervals; controls are grey.

    Args:
        summary: columns ``way``, ``method``, ``metric``, ``mean``, ``lo``, ``hi``.
        way: the student's.
        controls: methods that know nothing of the student, drawn last.

    Returns:
        A panel a measure.
    """
    of_student = summary[summary["way"] == way]
    panels = [name for name in _MEASURES if name in set(of_student["metric"])]
    methods = [name for name in dict.fromkeys(of_student["method"]) if name not in controls]
    order = methods + [name for name in controls if name in set(of_student["method"])]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.75 * len(panels) + 1.8, 0.28 * len(order) + 1.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, metric in zip(axes[0], panels, strict=True):
        values = of_student[of_student["metric"] == metric].set_index("method")[["mean", "lo", "hi"]].reindex(order)
        colours = ["0.6" if name in controls else "#0072B2" for name in order]
        axis.hlines(-np.arange(len(order)), values["lo"], values["hi"], colors=colours, linewidth=1.2)
        axis.scatter(values["mean"], -np.arange(len(order)), c=colours, s=26)
        axis.set_xlabel(_MEASURES[metric], fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[0, 0].set_yticks(-np.arange(len(order)), [method_name(name) for name in order], fontsize=8)
    sns.despine(figure)
    return figure
