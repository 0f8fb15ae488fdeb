"""Figures of teaching: the idea, the curves, the arms, the alpha x T map."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from kdnb.figures import COLOURS, NAMES, theme

_LOSSES = {"kd": "the paper's loss", "kd_t2": "the paper's loss with T²", "ce": "cross-entropy", "released": "loss as released"}


def diagram() -> Figure:
    """How a student is taught: one image, two networks, two losses."""
    theme()
    figure, axes = plt.subplots(figsize=(9, 3.4))
    axes.set(xlim=(0, 10), ylim=(0, 4))
    axes.axis("off")
    boxes = {
        "image": (0.1, 1.5, 1.2, "image $x$", "#FFFFFF"),
        "teacher": (2.1, 2.6, 1.9, "teacher\nDenseNet121\n(frozen)", "#DDDDDD"),
        "student": (2.1, 0.4, 1.9, "student\n5 convolutions\n(learns)", "#CDE7DD"),
        "soft": (4.9, 2.6, 1.9, "softmax$(z_t / T)$", "#FFFFFF"),
        "student_soft": (4.9, 0.4, 1.9, "softmax$(z_s / T)$\nsoftmax$(z_s)$", "#FFFFFF"),
        "kl": (7.7, 2.2, 2.2, "soft loss\n$(1-\\alpha)\\,\\mathrm{KL}$", "#F7DCC8"),
        "ce": (7.7, 0.3, 2.2, "hard loss\n$\\alpha\\,\\mathrm{CE}$ with the label", "#CFE2F3"),
    }
    for x, y, width, words, colour in boxes.values():
        axes.add_patch(FancyBboxPatch((x, y), width, 1.1, boxstyle="round,pad=0.05", facecolor=colour, edgecolor="#333333"))
        axes.text(x + width / 2, y + 0.55, words, ha="center", va="center", fontsize=10)
    arrows = [
        ("image", "teacher"),
        ("image", "student"),
        ("teacher", "soft"),
        ("student", "student_soft"),
        ("soft", "kl"),
        ("student_soft", "kl"),
        ("student_soft", "ce"),
    ]
    for start, end in arrows:
        (x0, y0, width, *_), (x1, y1, *_) = boxes[start], boxes[end]
        axes.add_patch(
            FancyArrowPatch((x0 + width + 0.07, y0 + 0.55), (x1 - 0.07, y1 + 0.55), arrowstyle="-|>", mutation_scale=14, color="#333333")
        )
    return figure


def softened(probabilities: pd.DataFrame, image: np.ndarray | None = None) -> Figure:
    """Softened probabilities: a panel for each temperature, bars side by side for each model.

    Args:
        probabilities: columns temperature, class, probability and, for several models, model.
        image: ``(H, W, 3)`` uint8, shown in a panel of its own before the others.
    """
    theme()
    temperatures = list(dict.fromkeys(probabilities["temperature"]))
    several = "model" in probabilities
    models = dict.fromkeys(probabilities["model"]) if several else ("student_ce",)
    width = 0.8 / len(models)
    first = image is not None
    figure, panels = plt.subplots(1, len(temperatures) + first, figsize=(2.1 * (len(temperatures) + first), 3), squeeze=False)
    if first:
        panels[0, 0].imshow(image)
        panels[0, 0].set(title="image", xticks=[], yticks=[])
        panels[0, 0].grid(False)
    for axes, temperature in zip(panels[0, int(first) :], temperatures, strict=True):
        part = probabilities[probabilities["temperature"] == temperature]
        for shift, model in enumerate(models):
            own = part[part["model"] == model] if several else part
            places = np.arange(len(own)) + (shift - (len(models) - 1) / 2) * width
            axes.bar(places, own["probability"], width, color=COLOURS[model], label=NAMES[model])
        axes.set(title=f"T = {temperature:g}", ylim=(0, 1), xlabel="class")
        axes.set_xticks(range(len(own)), own["class"].astype(str), rotation=45, ha="right", rotation_mode="anchor")
        axes.grid(False, axis="x")
        if axes is not panels[0, int(first)]:
            axes.tick_params(labelleft=False)
    panels[0, int(first)].set_ylabel("probability")
    if several:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(models), frameon=False, fontsize=9)
    return figure


def curves(history: pd.DataFrame) -> Figure:
    """Training loss and validation accuracy over epochs; columns model, epoch, train_loss, val_accuracy (several seeds make a band)."""
    theme()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for axes, column, label in ((left, "train_loss", "training loss (nats)"), (right, "val_accuracy", "validation accuracy")):
        sns.lineplot(
            history, x="epoch", y=column, hue="model", palette=COLOURS, errorbar=("pi", 100), marker="o", ax=axes, legend=axes is right
        )
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend = right.get_legend()
    for text in legend.get_texts():
        text.set_text(NAMES.get(text.get_text(), text.get_text()))
    legend.set_title(None)
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix ``(C, C)``, rows the truth, in images."""
    theme()
    figure, axes = plt.subplots(figsize=(4.6, 3.8))
    sns.heatmap(
        matrix, annot=True, fmt="d", cmap="viridis", xticklabels=classes, yticklabels=classes, ax=axes, cbar_kws={"label": "images"}
    )
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def reliability(tables: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy against confidence, bin by bin, for each model; point size grows with the number of images."""
    theme()
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    axes.plot([0, 1], [0, 1], color="#999999", linestyle="--", label="perfectly calibrated")
    for model, table in tables.items():
        axes.plot(table["confidence"], table["accuracy"], color=COLOURS[model], alpha=0.6)
        axes.scatter(
            table["confidence"], table["accuracy"], s=10 + 120 * table["n"] / table["n"].max(), color=COLOURS[model], label=NAMES[model]
        )
    axes.set(xlabel="confidence (probability of the predicted class)", ylabel="accuracy", xlim=(0.2, 1.02), ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), title="point size: number of images", title_fontsize=8)
    return figure


def arms(table: pd.DataFrame) -> Figure:
    """Test accuracy of every model: its interval over groups, and a point for each seed; columns of ``classification.csv``."""
    theme()
    order = [model for model in NAMES if model in set(table["model"])]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(order) + 1))
    for row, model in enumerate(order):
        part = table[table["model"] == model]
        first = part.iloc[0]
        axes.plot([first["accuracy_lo"], first["accuracy_hi"]], [row, row], color=COLOURS[model], linewidth=2)
        axes.scatter(part["accuracy"], np.full(len(part), row) + np.linspace(-0.15, 0.15, len(part)), color=COLOURS[model], zorder=3)
    axes.set(
        yticks=range(len(order)),
        yticklabels=[NAMES[model] for model in order],
        xlabel="test accuracy (points: seeds; line: 95% interval of the run's seed)",
    )
    axes.invert_yaxis()
    return figure


_WAYS = {
    "labels alone": ("#0072B2", "-"),
    "label smoothing": ("#56B4E9", "-"),
    "paper's loss": ("#009E73", "-"),
    "with T²": ("#D55E00", "-"),
    "T = 1": ("#CC79A7", "-"),
    "successor": ("#E69F00", "-"),
    "ensemble of the labels alone": ("#8C564B", "-"),
    "oracle, T = 1": ("#000000", ":"),
    "with T², all images": ("#D55E00", "--"),
}
_GREY = {"shuffled": "exchanged in the class", "class_mean": "the class's mean", "symmetric": "no teacher, same margin"}


def few_labels(table: pd.DataFrame, score: str, all_labels: float, best: float | None) -> Figure:
    """Left: a score against labelled images a class, a line a way of teaching. Right: gains over the labels alone
    with the most of the few labels, of those ways that see the same images.

    Args:
        table: a row a student: ``way``, ``seed``, ``images_per_class`` (0: all), ``score``. all_labels: how many those are on average.
        best: the Bayes accuracy, or ``None``.
    """
    theme()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[3, 2])
    labelled = table["images_per_class"].replace(0, round(all_labels))
    for way, (colour, dash) in _WAYS.items():
        rows = table[table["way"] == way]
        if len(rows):
            means = rows.groupby(labelled)[score].agg(["mean", "min", "max"])
            left.plot(means.index, means["mean"], dash, color=colour, marker="o", markersize=4, label=way)
            left.fill_between(means.index, means["min"], means["max"], color=colour, alpha=0.08, linewidth=0)
    if best is not None:
        left.axhline(best, color="#777777", linewidth=1)
        left.annotate("Bayes", (labelled.min(), best), textcoords="offset points", xytext=(0, 3), fontsize=9, color="#555555")
    ticks = sorted(labelled.unique())
    left.set(xscale="log", xlabel="labelled images a class", ylabel=score.replace("_", " ") + ", mean and range of seeds")
    left.set_xticks(ticks, [f"{tick}" for tick in ticks[:-1]] + [f"all ({ticks[-1]})"])
    left.minorticks_off()
    left.legend(fontsize=8, loc="lower right")
    few = table[table["images_per_class"] == table["images_per_class"].max()]
    wide = 100 * few.pivot_table(score, "seed", "way", sort=False)
    gains = wide.drop(columns=["labels alone", "with T², all images"], errors="ignore").sub(wide["labels alone"], axis=0)
    for place, way in enumerate(gains):
        colour = _WAYS.get(way, ("#AAAAAA", ""))[0]
        right.barh(place, gains[way].mean(), color=colour, alpha=0.8)
        right.plot(gains[way], np.full(len(gains), place), "o", color="#333333", markersize=3)
    right.set_yticks(range(gains.shape[1]), [_GREY.get(way, way) for way in gains])
    right.invert_yaxis()
    right.axvline(0, color="#333333", linewidth=0.8)
    right.set(xlabel=f"gain over the labels alone, points, {few['images_per_class'].iloc[0]} labels a class (dots: seeds)")
    return figure


def forest(effects: dict[str, pd.DataFrame]) -> Figure:
    """Differences in points with their intervals: a panel for each question, a row for each run, and last what they say together.

    Args:
        effects: title -> table with columns run, difference, lo, hi, in points. The band marks one point either way.
    """
    theme()
    runs = sorted({run for table in effects.values() for run in table["run"]} - {"together"}) + ["together"]
    figure, panels = plt.subplots(1, len(effects), figsize=(3.6 * len(effects), 0.5 * len(runs) + 1.2), sharey=True, squeeze=False)
    for axes, (title, table) in zip(panels[0], effects.items(), strict=True):
        axes.axvspan(-1, 1, color="#EEEEEE", zorder=0)
        axes.axvline(0, color="#333333", linewidth=1)
        for one in table.itertuples():
            row, last = runs.index(one.run), one.run == "together"
            colour = COLOURS["student_kd"] if last else "#333333"
            axes.plot([one.lo, one.hi], [row, row], color=colour, linewidth=2)
            axes.scatter(one.difference, row, marker="D" if last else "o", color=colour, zorder=3)
        axes.set(title=title, xlabel="points of accuracy", yticks=range(len(runs)), yticklabels=runs)
        axes.set_ylim(len(runs) - 0.5, -0.5)
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    """Test accuracy of students of other shapes against their operations; columns of ``ablation.csv``."""
    theme()
    figure, axes = plt.subplots(figsize=(7.5, 3.4))
    for pool, marker, colour in (("max", "o", COLOURS["student_kd"]), ("average", "s", COLOURS["student_released"])):
        part = table[table["pool"] == pool]
        axes.scatter(part["macs"] / 1e6, 100 * part["test_accuracy"], marker=marker, color=colour, alpha=0.5)
        means = part.groupby("macs", as_index=False)[["test_accuracy", "layers"]].mean()
        axes.plot(means["macs"] / 1e6, 100 * means["test_accuracy"], marker=marker, color=colour, label=f"{pool} pooling")
        for row in means.itertuples():
            axes.annotate(
                f"{row.layers:.0f} layers", (row.macs / 1e6, 100 * row.test_accuracy), (0, 8), textcoords="offset points", ha="center"
            )
    axes.set(xlabel="million multiply-accumulates for one image", ylabel="test accuracy (%)")
    axes.margins(y=0.2)
    axes.legend(title="mean, and each seed")
    return figure


def grid_map(table: pd.DataFrame, value: str = "test_accuracy") -> Figure:
    """The alpha x T map: mean over seeds in percent, a panel for each loss, one colour scale; cross-entropy's mean in the title."""
    theme()
    taught = table[~table["loss"].isin(["ce", "ls"])]
    names = list(dict.fromkeys(taught["loss"]))
    plain = 100 * table.loc[table["loss"] == "ce", value].mean()
    means = 100 * taught.groupby(["loss", "alpha", "temperature"])[value].mean()
    figure, panels = plt.subplots(
        1, len(names), figsize=(0.9 + 4.2 * len(names), 1.6 + 0.55 * taught["alpha"].nunique()), squeeze=False, sharey=True
    )
    for axes, name in zip(panels[0], names, strict=True):
        sns.heatmap(
            means[name].unstack(), annot=True, fmt=".1f", cmap="viridis", vmin=means.min(), vmax=means.max(), ax=axes,
            cbar=axes is panels[0][-1], cbar_kws={"label": f"{value.replace('_', ' ')} (%)"},
        )  # fmt: skip
        axes.set(title=_LOSSES.get(name, name), xlabel="temperature T", ylabel="alpha" if axes is panels[0][0] else "")
    figure.suptitle(f"mean over seeds; cross-entropy alone: {plain:.1f}%", fontsize=10)
    return figure


def over_temperature(table: pd.DataFrame, value: str = "test_accuracy") -> Figure:
    """Accuracy against T: mean and range over seeds for each loss and alpha, and the band of cross-entropy alone."""
    theme()
    taught = table[~table["loss"].isin(["ce", "ls"])].assign(percent=lambda rows: 100 * rows[value])
    plain = 100 * table.loc[table["loss"] == "ce", value]
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    axes.axhspan(plain.min(), plain.max(), color=COLOURS["student_ce"], alpha=0.2)
    axes.axhline(plain.mean(), color=COLOURS["student_ce"], label="cross-entropy alone (band: seeds)")
    for (name, alpha), part in taught.groupby(["loss", "alpha"]):
        style = "-" if alpha == taught["alpha"].min() else "--"
        stats = part.groupby("temperature")["percent"].agg(["mean", "min", "max"])
        colour = COLOURS.get(f"student_{name}", "#333333")
        axes.fill_between(stats.index, stats["min"], stats["max"], color=colour, alpha=0.12)
        axes.plot(stats.index, stats["mean"], style, marker="o", color=colour, label=f"{_LOSSES.get(name, name)}, α = {alpha:g}")
    axes.set(xlabel="temperature T", ylabel=f"{value.replace('_', ' ')} (%)", xticks=sorted(taught["temperature"].unique()))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def gradients_and_entropy(norms: pd.DataFrame, entropies: pd.DataFrame) -> Figure:
    """Left: the soft gradient's norm over cross-entropy's, against T. Right: the entropy of the teacher's softened probabilities."""
    theme()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    palette = {"without T²": COLOURS["student_kd"], "with T²": COLOURS["student_kd_t2"]}
    named = norms.assign(loss=norms["loss"].str.replace("^2", "²"))
    sns.lineplot(named, x="temperature", y="ratio", hue="loss", palette=palette, marker="o", ax=left)
    left.set(yscale="log", xlabel="temperature T", ylabel="soft gradient / CE gradient (norms)")
    left.legend(title=None)
    right.plot(entropies["temperature"], entropies["entropy_bits"], marker="o", color="#000000", label="teacher at T")
    right.axhline(entropies["maximum_bits"].iloc[0], color="#999999", linestyle="--", label="uniform")
    right.set(xlabel="temperature T", ylabel="entropy (bits)", ylim=(0, None))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.set_xticks(range(0, int(norms["temperature"].max()) + 1, 5))
    return figure


def recorded(table: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Accuracy of teacher and students in each recorded run, with its interval; on official splits a cross where the paper reports one."""
    theme()
    models = ["teacher", "student_ce", "student_kd"]
    keys = ["dataset", "profile", "split_protocol", "run_seed"]
    runs = list(table.groupby(keys, sort=False))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.75 * len(runs)))
    for row, (key, part) in enumerate(runs):
        paper = published[published["dataset"] == key[0]].set_index("model")["accuracy"]
        for model, shift in zip(models, (-0.22, 0, 0.22), strict=True):
            one = part[part["model"] == model].iloc[0]
            label = NAMES[model] if row == 0 else None
            axes.plot([100 * one["accuracy_lo"], 100 * one["accuracy_hi"]], [row + shift] * 2, color=COLOURS[model], linewidth=2)
            axes.scatter(100 * one["accuracy"], row + shift, color=COLOURS[model], zorder=3, label=label)
            if model in paper and key[2] == "official":
                axes.scatter(100 * paper[model], row + shift, marker="x", color=COLOURS[model], zorder=4)
    axes.set(
        yticks=range(len(runs)), yticklabels=[f"{k[0]}, {k[2]}\n({k[1]})" for k, _ in runs], xlabel="test accuracy (%); cross: the paper's"
    )
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
