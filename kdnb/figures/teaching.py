"""Pictures of what teaching does to explanations (chapter 08)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

_PANELS = {
    "pointing_game": "pointing game\n(higher is better)",
    "pixel_auc": "pixel AUC\n(higher is better)",
    "insertion_blur": "insertion AUC\n(higher is better)",
    "deletion_blur": "deletion AUC\n(lower is better)",
    "road_least_first": "ROAD, least first\n(higher is better)",
    "teacher_likeness": "cosine with\nthe teacher's map",
}
_METHODS = {"feature_maps_mean": ("average map", "#0072B2", "o"), "class_evidence": ("class evidence", "#D55E00", "s")}


def ways(by_seed: pd.DataFrame, order: Sequence[str]) -> Figure:
    """Each way of teaching by every metric: small marks are seeds, large ones their means.

    Args:
        by_seed: columns ``way``, ``seed``, ``method``, ``metric`` and ``value``, the mean over images.
        order: of the ways, from the top.

    Returns:
        A panel a metric.
    """
    panels = [name for name in _PANELS if name in set(by_seed["metric"])]
    size = (1.9 * len(panels) + 1.6, 0.36 * len(order) + 1.5)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
    place = {way: -number for number, way in enumerate(order)}
    for axis, metric in zip(axes, panels, strict=True):
        for offset, (method, (label, colour, marker)) in zip((0.12, -0.12), _METHODS.items(), strict=True):
            scores = by_seed[(by_seed["metric"] == metric) & (by_seed["method"] == method)]
            heights = scores["way"].map(place) + offset
            axis.scatter(scores["value"], heights, s=9, color=colour, alpha=0.4, linewidths=0)
            means = scores.groupby("way")["value"].mean()
            heights = means.index.map(place) + offset
            axis.scatter(means, heights, s=34, color=colour, marker=marker, label=label, linewidths=0)
        axis.set_xlabel(_PANELS[metric], fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(list(place.values()), list(place), fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    sns.despine(figure)
    return figure
