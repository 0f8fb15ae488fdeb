"""Figures of a data set: contact sheets, how similar copies are, what each split does, and probes."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

_SPLITS = {"train": "#0072B2", "val": "#56B4E9", "test": "#E69F00", "left out": "#999999"}
_MASK = "#E69F00"


def contact_sheet(
    images: np.ndarray, titles: Sequence[str], columns: int, masks: np.ndarray | None = None, rows: Sequence[str] = ()
) -> Figure:
    """Images in a grid.

    Args:
        images: ``(n, H, W, 3)`` uint8.
        titles: one for each image (may be empty).
        columns: images a row.
        masks: ``(n, H, W)`` bool, outlined where given.
        rows: a name for each row, written at its left.

    Returns:
        The images from left to right, row by row.
    """
    count = -(-len(images) // columns)
    size = (1.25 * columns + 0.6, 1.35 * count)
    figure, grid = plt.subplots(count, columns, figsize=size, squeeze=False, layout="constrained")
    for number, axes in enumerate(grid.ravel()):
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        if number >= len(images):
            axes.axis("off")
            continue
        axes.imshow(images[number])
        axes.set_title(titles[number], fontsize=7, pad=2)
        if masks is not None and masks[number].any():
            axes.contour(masks[number], levels=[0.5], colors=_MASK, linewidths=1)
    for axes, name in zip(grid[:, 0], rows, strict=False):
        axes.set_ylabel(name, fontsize=8)
    return figure


def examples(labels: np.ndarray, groups: np.ndarray, outlined: np.ndarray, each: int = 6) -> np.ndarray:
    """Which images stand for their classes on a contact sheet: of many persons, and outlined as often as is usual.

    The first images of a class may all have a lesion where most of it have none; a reader takes the sheet for the set.

    Args:
        labels: ``(N,)`` int64.
        groups: ``(N,)`` str, whose image each is; further images of a group come last.
        outlined: ``(N,)`` bool, whether an image will have an outline.
        each: how many of a class; of all classes fewer, where one has fewer.

    Returns:
        Positions ``(R, each)`` int64, a row for each class that has images, those with an outline first.
    """
    first = np.isin(np.arange(len(labels)), np.unique(groups, return_index=True)[1])
    order = np.argsort(~first, kind="stable")
    present, counts = np.unique(labels, return_counts=True)
    each = min(each, int(counts.min()))
    rows: list[np.ndarray] = []
    for label in present:
        of_class = order[labels[order] == label]
        marked, bare = of_class[outlined[of_class]], of_class[~outlined[of_class]]
        with_outline = round(each * len(marked) / len(of_class))
        rows.append(np.concatenate([marked[:with_outline], bare[: each - with_outline]]))
    return np.stack(rows)


def split_counts(table: pd.DataFrame) -> Figure:
    """Images in each split under each protocol. ``table``: columns protocol, split, images."""
    wide = table.pivot_table(index="protocol", columns="split", values="images", aggfunc="sum", sort=False)
    figure, axes = plt.subplots(figsize=(6, 0.5 * len(wide) + 1), layout="constrained")
    start = np.zeros(len(wide))
    for split, colour in _SPLITS.items():
        if split in wide and wide[split].sum():
            width = wide[split].fillna(0).to_numpy()
            axes.barh(wide.index.astype(str), width, left=start, color=colour, label=split)
            start += width
    axes.set(xlabel="images", ylabel="", title="What each protocol does to the counts")
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def similarities(fine: np.ndarray, same_class: np.ndarray, confirmed: np.ndarray, threshold: float) -> Figure:
    """How similar pairs that passed the coarse step are in detail, and the confirmed ones at full resolution.

    Args:
        fine: ``(C,)`` similarity of 64 x 64 detail of each candidate pair.
        same_class: ``(C,)`` bool, whether the two images of a pair have one label.
        confirmed: ``(P,)`` similarity at full resolution of pairs that went on.
        threshold: from where they count as copies.

    Returns:
        Two histograms, of candidates at the left and of pairs that went on at the right.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    bins = np.linspace(-0.2, 1, 49)
    for mask, colour, name in ((same_class, "#0072B2", "same class"), (~same_class, "#E69F00", "different classes")):
        left.hist(fine[mask], bins, color=colour, alpha=0.7, label=name)
    left.set(xlabel="similarity of detail, 64 px", ylabel="pairs", title="Look-alikes")
    left.set_yscale("symlog")
    left.legend(frameon=False)
    right.hist(confirmed, bins, color="#009E73")
    right.axvline(threshold, color="black", linestyle="--", label="copies from here")
    right.set(xlabel="similarity of detail, full resolution", ylabel="pairs", title="Looked at again")
    right.set_yscale("symlog")
    right.legend(frameon=False)
    return figure


def probes(table: pd.DataFrame) -> Figure:
    """Test accuracies with 95% intervals. ``table``: columns what, accuracy, lo, hi, chance."""
    figure, axes = plt.subplots(figsize=(6.5, 0.45 * len(table) + 1), layout="constrained")
    axes.errorbar(
        table["accuracy"],
        table["what"],
        xerr=[table["accuracy"] - table["lo"], table["hi"] - table["accuracy"]],
        fmt="o",
        color="#0072B2",
    )
    axes.axvline(table["chance"].iloc[0], color="black", linestyle="--", label="chance")
    axes.set(xlim=(0, 1), xlabel="test accuracy (95% interval)", ylabel="")
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.legend(frameon=False, loc="upper right")
    sns.despine(figure)
    return figure
