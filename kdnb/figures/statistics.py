"""Figures of the study's statistics: two kinds of luck, coverage, Holm's steps, verdicts, power, resampling."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy.stats import binomtest

from kdnb.figures import theme

BAND = "#EEEEEE"
# Colour, mark and dash of a verdict. Colours are those of losses (:data:`kdnb.figures.COLOURS`), so verdicts have none.
_MARKS = {
    "adds": ("#000000", ">", "-"),
    "takes": ("#000000", "<", "--"),
    "no effect": ("#444444", "s", "-."),
    "undecided": ("#999999", "o", ":"),
}


def two_lucks(gap: np.ndarray, groups: np.ndarray) -> Figure:
    """Where a difference varies: between seeds, and between groups of images.

    Args:
        gap: ``(S, N)``, hits of one loss minus hits of the other.
        groups: ``(N,)``, of each image.

    Returns:
        Its mean in points, for each seed at the left, for each group at the right.
    """
    theme()
    of_groups = 100 * pd.Series(gap.mean(axis=0)).groupby(groups).mean()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=[2, 3])
    left.scatter(100 * gap.mean(axis=1), np.arange(1, len(gap) + 1), color="#0072B2", zorder=3)
    left.set(ylabel="seed", xlabel="difference of a seed, all images (points)", yticks=np.arange(1, len(gap) + 1))
    right.hist(of_groups, bins=21, color="#56B4E9", edgecolor="white")
    right.set(ylabel="groups", xlabel="difference of a group, all seeds (points)")
    for axes in (left, right):
        axes.axvline(100 * gap.mean(), color="#D55E00", linewidth=1.5)
        axes.axvline(0, color="#333333", linewidth=0.8, linestyle=":")
    return figure


def rates(table: pd.DataFrame, goal: float, label: str) -> Figure:
    """How often something happened in repeated experiments.

    Args:
        table: columns ``name``, ``rate`` (0 to 1) and ``experiments``.
        goal: the rate that was promised, dashed.
        label: what happened.

    Returns:
        A row each, with Wilson's 95% interval of that many experiments.
    """
    theme()
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(table) + 1))
    shares = [binomtest(round(row.rate * row.experiments), row.experiments) for row in table.itertuples()]
    ends = np.array([share.proportion_ci(method="wilson") for share in shares]).T
    places = np.arange(len(table))
    axes.errorbar(
        100 * table["rate"],
        places,
        xerr=100 * np.abs(ends - table["rate"].to_numpy()),
        fmt="o",
        color="#0072B2",
        capsize=3,
    )
    axes.axvline(100 * goal, color="#333333", linestyle="--", linewidth=1)
    axes.set(yticks=places, yticklabels=table["name"], xlabel=f"{label} (%); dashed: what is promised")
    axes.set_ylim(len(table) - 0.5, -0.5)
    return figure


def holm_steps(p_values: np.ndarray, level: float = 0.05) -> Figure:
    """Sorted p values beside the three lines they may be held against: none, Bonferroni's and Holm's."""
    theme()
    ordered, tests = np.sort(p_values), len(p_values)
    ranks = np.arange(1, tests + 1)
    steps = level / (tests - ranks + 1)
    rejected = np.cumprod(ordered <= steps).astype(bool)
    figure, axes = plt.subplots(figsize=(7, 3.2))
    axes.scatter(ranks[rejected], ordered[rejected], color="#D55E00", zorder=3, label="told from luck by Holm")
    axes.scatter(ranks[~rejected], ordered[~rejected], color="#7F7F7F", zorder=3, label="not told from luck")
    axes.plot(ranks, np.full(tests, level), ":", color="#333333", label="each alone")
    axes.plot(ranks, steps, "-", color="#333333", label="Holm: level / tests left")
    axes.plot(ranks, np.full(tests, level / tests), "--", color="#333333", label="Bonferroni: level / tests")
    axes.set(xlabel="rank of the p value", ylabel="p", yscale="log", xticks=ranks)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def verdict(lo: float, hi: float, margin: float, p: float = 0.0) -> str:
    """What a 95% interval of an effect says.

    Args:
        lo: its lower end.
        hi: its upper end.
        margin: an effect within it either way is none.
        p: corrected for other comparisons, where there are any.

    Returns:
        ``adds`` or ``takes``, where ``p`` is below 5%, too; else ``no effect`` beyond the margin, or ``undecided``.
    """
    if p < 0.05 and (lo > 0 or hi < 0):
        return "adds" if lo > 0 else "takes"
    return "no effect" if -margin <= lo and hi <= margin else "undecided"


def differences(table: pd.DataFrame, margin: float) -> Figure:
    """Differences in points with their 95% intervals, marked by what they say; the band is the margin either way.

    Args:
        table: columns ``name``, ``difference``, ``lo``, ``hi``, as shares, and ``p_holm``.
        margin: the smallest difference that matters, a share, too.

    Returns:
        A row each.
    """
    theme()
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(table) + 1.1))
    axes.axvspan(-100 * margin, 100 * margin, color=BAND, zorder=0)
    axes.axvline(0, color="#333333", linewidth=1)
    words = [verdict(row.lo, row.hi, margin, row.p_holm) for row in table.itertuples()]
    for place, (row, word) in enumerate(zip(table.itertuples(), words, strict=True)):
        colour, mark, _ = _MARKS[word]
        axes.plot([100 * row.lo, 100 * row.hi], [place, place], color=colour, linewidth=2)
        axes.scatter(100 * row.difference, place, marker=mark, s=50, color=colour, zorder=3)
    axes.set(
        yticks=range(len(table)),
        yticklabels=table["name"],
        xlabel=f"difference, points (grey band: {100 * margin:g} either way)",
    )
    axes.set_ylim(len(table) - 0.5, -0.5)
    handles = [
        plt.Line2D([], [], color=colour, marker=mark, label=word)
        for word, (colour, mark, _) in _MARKS.items()
        if word in words
    ]
    axes.legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def verdicts(table: pd.DataFrame, margin: float) -> Figure:
    """How often each verdict falls, against the true effect; columns ``effect`` (points) and a share a verdict."""
    theme()
    figure, axes = plt.subplots(figsize=(8, 3.2))
    axes.axvspan(-100 * margin, 100 * margin, color=BAND, zorder=0)
    for word, (colour, _, dash) in _MARKS.items():
        axes.plot(table["effect"], 100 * table[word], dash, color=colour, label=word)
    axes.set(xlabel="true effect (points)", ylabel="experiments (%)", ylim=(-2, 102))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def power_curves(table: pd.DataFrame, effect: float) -> Figure:
    """Probability to find an effect against groups, a line for each number of seeds; columns groups, seeds, power."""
    theme()
    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    sns.lineplot(
        table, x="groups", y="power", hue="seeds", style="seeds", markers=True, dashes=False, palette="viridis", ax=axes
    )
    axes.axhline(0.8, color="#333333", linestyle="--", linewidth=1)
    label = f"power (effect: {100 * effect:g} point{'s' * (effect != 0.01)})"
    axes.set(xscale="log", xlabel="groups of test images", ylabel=label, ylim=(0, 1.02))
    axes.set_xticks(sorted(table["groups"].unique()), [f"{groups}" for groups in sorted(table["groups"].unique())])
    axes.minorticks_off()
    axes.legend(title="seeds", fontsize=8)
    return figure


def resampled(found: dict[str, np.ndarray], value: float, label: str) -> Figure:
    """Histograms of a score over resamples, one for each way to resample, on one scale; the score is the line."""
    theme()
    figure, panels = plt.subplots(
        1, len(found), figsize=(4.2 * len(found), 2.6), sharex=True, sharey=True, squeeze=False
    )
    for axes, (title, values) in zip(panels[0], found.items(), strict=True):
        axes.hist(values, bins=25, color="#56B4E9", edgecolor="white")
        lo, hi = np.percentile(values, (2.5, 97.5))
        axes.axvspan(lo, hi, color="#0072B2", alpha=0.15)
        axes.axvline(value, color="#D55E00")
        axes.set(title=title, xlabel=label)
    panels[0, 0].set_ylabel("resamples")
    return figure
