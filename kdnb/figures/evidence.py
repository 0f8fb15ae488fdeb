"""Pictures of class evidence, which has a sign and a unit, and of what a small receptive field costs."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

SIGNED = "RdBu_r"  # red speaks for, blue against; white is nothing
OPACITY = 0.65
_PANELS = {
    "test_accuracy": "test accuracy",
    "pointing_game": "pointing game (1 is best)",
    "insertion_blur": "insertion AUC\n(higher is better)",
    "deletion_blur": "deletion AUC\n(lower is better)",
    "macs": "million multiply-accumulates",
}
# Of the plain student: style of the line, name.
_AVERAGES = {
    "feature_maps_mean": ("--", "average map, plain student, after pooling"),
    "feature_maps_unpooled": (":", "average map, plain student, before pooling"),
}
_LOSSES = {"ce": "labels alone", "ls": "label smoothing", "kd": "paper's loss", "kd_t2": "with T²"}


def signed(
    images: np.ndarray,
    maps: dict[str, np.ndarray],
    row_titles: Sequence[str],
    *,
    masks: np.ndarray | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    unit: str = "evidence (logit)",
) -> Figure:
    """Evidence laid over its images: one scale a row, with zero in its middle.

    Args:
        images: ``(R, H, W, 3)`` uint8.
        maps: column title -> ``(R, h, w)``, in logits; shown cell by cell.
        row_titles: one for each image.
        masks: ``(R, H, W)`` bool, outlined in black.
        notes: for each row a line under each map, such as its logit.
        unit: of the maps.

    Returns:
        A row an image, a column a map.
    """
    rows, columns = len(images), 1 + len(maps)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.7 * columns + 0.8, 1.85 * rows + 0.3), squeeze=False, layout="constrained"
    )
    size = images.shape[1]
    for row, (image, title) in enumerate(zip(images, row_titles, strict=True)):
        most = max(float(np.abs(values[row]).max()) for values in maps.values()) or 1.0
        axes[row, 0].imshow(image)
        axes[row, 0].set_ylabel(title, fontsize=8)
        for column, values in enumerate(maps.values(), start=1):
            axis = axes[row, column]
            axis.imshow(image.mean(axis=2), cmap="gray")
            axis.imshow(
                values[row],
                cmap=SIGNED,
                vmin=-most,
                vmax=most,
                alpha=OPACITY,
                extent=(-0.5, size - 0.5, size - 0.5, -0.5),
            )
            if notes is not None:
                axis.set_xlabel(notes[row][column - 1], fontsize=8)
        if masks is not None and masks[row].any():
            for axis in axes[row]:
                axis.contour(masks[row], [0.5], colors="black", linewidths=0.8)
        bar = figure.colorbar(
            ScalarMappable(Normalize(-most, most), SIGNED), ax=axes[row], shrink=0.8, aspect=14, pad=0.01
        )
        bar.ax.tick_params(labelsize=7)
        bar.set_label(unit, fontsize=7)
    for axis, title in zip(axes[0], ["image", *maps], strict=True):
        axis.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def price(prices: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """What a receptive field buys and costs: accuracy, truth where masks are known, faithfulness, operations.

    Args:
        prices: ``transparency.csv``: a point a student, lines through the means of each loss.
        summary: ``evidence_summary.csv``: class evidence of each shape, and as grey lines the average maps of the plain
            student, after pooling and before it.

    Returns:
        A panel for each of these that is known.
    """
    field = prices.groupby("shape")["receptive_field"].first()
    panels = [name for name in _PANELS if name in prices or name in set(summary["metric"])]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.5 * len(panels) + 0.6, 3.1), layout="constrained")
    for axis, name in zip(axes, panels, strict=True):
        if name in prices:
            shown = prices.assign(loss=prices["loss"].map(lambda loss: _LOSSES.get(loss, loss)))
            scale = 1e-6 if name == "macs" else 1
            if name == "macs":
                values = scale * shown.groupby("receptive_field")[name].first()
                axis.plot(values.index, values, "o-", color="black", markersize=5)
                axis.set_ylim(0, 1.1 * values.max())  # the highest marker lies inside
            else:
                sns.lineplot(
                    shown,
                    x="receptive_field",
                    y=name,
                    hue="loss",
                    style="loss",
                    markers=True,
                    dashes=False,
                    errorbar=None,
                    ax=axis,
                )
                sns.scatterplot(shown, x="receptive_field", y=name, hue="loss", s=12, alpha=0.6, legend=False, ax=axis)
                axis.legend(title=None, frameon=False, fontsize=8)
        else:
            of_metric = summary[summary["metric"] == name].set_index(["method", "shape"])["mean"]
            values = of_metric["class_evidence"].rename(index=field).sort_index()
            axis.plot(values.index, values, "o-", color="#009E73", label="class evidence")
            for method, (style, label) in _AVERAGES.items():
                average = of_metric.get((method, "plain"))
                if average is not None:
                    axis.axhline(average, color="0.4", linestyle=style, linewidth=1.2, label=label)
        axis.set_xlabel("receptive field, pixels", fontsize=8)
        axis.set_ylabel(_PANELS[name], fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    labelled = [(axis, axis.get_legend_handles_labels()) for axis in axes]
    without_legend = [
        handles_labels for axis, handles_labels in labelled if handles_labels[0] and axis.get_legend() is None
    ]
    if without_legend:  # the same in every panel of explanations: once, above them
        figure.legend(*without_legend[0], frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    sns.despine(figure)
    return figure
