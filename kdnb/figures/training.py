"""Figures of teaching: the idea, the curves, the arms, the alpha x T map."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from kdnb.figures import COLOURS, NAMES, theme

LEAST_SPAN = 6.0  # points that a scale of accuracies spans at least: less would draw single images as effects
_LOSSES = {
    "kd": "the paper's loss",
    "kd_t2": "the paper's loss with T²",
    "ce": "cross-entropy",
    "released": "loss as released",
}


def diagram() -> Figure:
    """How a student is taught: one image and its label, two networks, three softmaxes, two losses."""
    theme()
    figure, axes = plt.subplots(figsize=(9.6, 4.4))
    axes.set(xlim=(0, 10.9), ylim=(0, 5.2))
    axes.axis("off")
    boxes = {
        "image": (0.1, 2.55, 1.2, "image $x$", "#FFFFFF"),
        "label": (0.1, 0.1, 1.2, "label $y$", "#FFFFFF"),
        "teacher": (2.0, 3.9, 1.9, "teacher\nDenseNet121\n(frozen)", "#DDDDDD"),
        "student": (2.0, 1.4, 1.9, "student\n5 convolutions\n(learns)", "#CDE7DD"),
        "p": (4.7, 3.9, 2.1, "softened\n$p = $ softmax$(z_t / T)$", "#FFFFFF"),
        "q": (4.7, 2.4, 2.1, "softened\n$q = $ softmax$(z_s / T)$", "#FFFFFF"),
        "plain": (4.7, 0.9, 2.1, "plain\nsoftmax$(z_s)$", "#FFFFFF"),
        "soft": (7.8, 3.15, 2.9, "soft loss\n$(1-\\alpha)\\,T^2\\,\\sum_i p_i \\ln (p_i/q_i)$", "#F7DCC8"),
        "hard": (7.8, 0.5, 2.9, "hard loss\n$\\alpha\\cdot(-\\ln\\,$softmax$(z_s)_y)$", "#CFE2F3"),
    }
    for x, y, width, words, colour in boxes.values():
        axes.add_patch(
            FancyBboxPatch((x, y), width, 1.1, boxstyle="round,pad=0.05", facecolor=colour, edgecolor="#333333")
        )
        axes.text(x + width / 2, y + 0.55, words, ha="center", va="center", fontsize=10)
    arrows = {
        ("image", "teacher"): "",
        ("image", "student"): "",
        ("teacher", "p"): "$z_t$",
        ("student", "q"): "$z_s$",
        ("student", "plain"): "$z_s$",
        ("p", "soft"): "",
        ("q", "soft"): "",
        ("plain", "hard"): "",
        ("label", "hard"): "",
    }
    for (start, end), words in arrows.items():
        (x0, y0, width, *_), (x1, y1, *_) = boxes[start], boxes[end]
        tail, tip = (x0 + width + 0.07, y0 + 0.55), (x1 - 0.07, y1 + (0.3 if start == "label" else 0.55))
        axes.add_patch(FancyArrowPatch(tail, tip, arrowstyle="-|>", mutation_scale=14, color="#333333"))
        axes.text((tail[0] + tip[0]) / 2, (tail[1] + tip[1]) / 2 + 0.12, words, ha="center", fontsize=10)
    return figure


def softened(probabilities: pd.DataFrame, image: np.ndarray | None = None) -> Figure:
    """Softened probabilities of each class.

    Args:
        probabilities: columns temperature, class, probability and, for several models, model.
        image: ``(H, W, 3)`` uint8, shown in a panel of its own before the others.

    Returns:
        A panel for each temperature, bars side by side for each model.
    """
    theme()
    temperatures = list(dict.fromkeys(probabilities["temperature"]))
    several = "model" in probabilities
    models = dict.fromkeys(probabilities["model"]) if several else ("student_ce",)
    width = 0.8 / len(models)
    first = int(image is not None)  # the panel of the first temperature
    count = len(temperatures) + first
    figure, panels = plt.subplots(1, count, figsize=(2.1 * count, 3), squeeze=False)
    if image is not None:
        panels[0, 0].imshow(image)
        panels[0, 0].set(title="image", xticks=[], yticks=[])
        panels[0, 0].grid(False)
    for axes, temperature in zip(panels[0, first:], temperatures, strict=True):
        at_temperature = probabilities[probabilities["temperature"] == temperature]
        for shift, model in enumerate(models):
            of_model = at_temperature[at_temperature["model"] == model] if several else at_temperature
            places = np.arange(len(of_model)) + (shift - (len(models) - 1) / 2) * width
            axes.bar(places, of_model["probability"], width, color=COLOURS[model], label=NAMES[model])
        axes.set(title=f"T = {temperature:g}", ylim=(0, 1), xlabel="class")
        axes.set_xticks(
            range(len(of_model)), of_model["class"].astype(str), rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.grid(False, axis="x")
        if axes is not panels[0, first]:
            axes.tick_params(labelleft=False)
    panels[0, first].set_ylabel("probability")
    if several:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(models), frameon=False, fontsize=9)
    return figure


def curves(history: pd.DataFrame) -> Figure:
    """Training loss and validation accuracy over epochs.

    Thick lines are means over seeds, thin ones single seeds: bands of five models would cover each other.

    Args:
        history: columns model, epoch, train_loss, val_accuracy and, for several runs, seed.

    Returns:
        Losses at the left, accuracies at the right.
    """
    theme()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for axes, column, label in (
        (left, "train_loss", "training loss (nats)"),
        (right, "val_accuracy", "validation accuracy"),
    ):
        for model, of_model in history.groupby("model", sort=False):
            if "seed" in of_model:
                for _, of_seed in of_model.groupby("seed"):
                    axes.plot(of_seed["epoch"], of_seed[column], color=COLOURS[model], alpha=0.3, linewidth=0.7)
            mean = of_model.groupby("epoch")[column].mean()
            axes.plot(
                mean.index,
                mean,
                color=COLOURS[model],
                marker="o",
                markersize=4,
                linewidth=2,
                label=NAMES.get(model, model),
            )
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix ``(C, C)``, rows the truth, in images."""
    theme()
    figure, axes = plt.subplots(figsize=(4.6, 3.8))
    sns.heatmap(
        matrix,
        annot=True,
        fmt="d",
        cmap="viridis",
        xticklabels=classes,
        yticklabels=classes,
        ax=axes,
        cbar_kws={"label": "images"},
    )
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def reliability(tables: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy minus confidence against confidence, in bins of equally many images, with 95% intervals.

    Args:
        tables: model -> :func:`kdnb.evaluation.reliability_of_equal_bins`.

    Returns:
        The gaps; above them the confidences themselves.
    """
    theme()
    figure, (above, axes) = plt.subplots(2, 1, figsize=(7, 4.4), sharex=True, height_ratios=[1, 3])
    axes.axhline(0, color="#999999", linestyle="--", label="perfectly calibrated")
    for model, table in tables.items():
        gap = table[["accuracy", "lo", "hi"]].sub(table["confidence"], axis=0).mul(100)
        spread = np.abs(gap[["lo", "hi"]].to_numpy().T - gap["accuracy"].to_numpy())
        axes.errorbar(
            table["confidence"],
            gap["accuracy"],
            yerr=spread,
            fmt="o",
            color=COLOURS[model],
            capsize=3,
            label=NAMES[model],
        )
        above.bar(
            table["least"],
            table["n"],
            table["most"] - table["least"],
            align="edge",
            color=COLOURS[model],
            alpha=0.4,
            edgecolor="white",
        )
        for row in table.itertuples():
            above.annotate(f"{row.n}", ((row.least + row.most) / 2, row.n), ha="center", va="bottom", fontsize=7)
    above.set(ylabel="images", ylim=(0, 1.35 * max(table["n"].max() for table in tables.values())))
    above.grid(False)
    axes.set(xlabel="confidence (probability of the predicted class)", ylabel="accuracy minus confidence, points")
    axes.legend(fontsize=8)
    return figure


def arms(table: pd.DataFrame) -> Figure:
    """Test accuracy of every model: points are seeds, a line their mean interval; columns of ``classification.csv``."""
    theme()
    order = [model for model in NAMES if model in set(table["model"])]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(order) + 1))
    for row, model in enumerate(order):
        percent = 100 * table.loc[table["model"] == model, ["accuracy", "accuracy_lo", "accuracy_hi"]]
        axes.plot(percent[["accuracy_lo", "accuracy_hi"]].mean(), [row, row], color=COLOURS[model], linewidth=2)
        heights = np.full(len(percent), row) + np.linspace(-0.15, 0.15, len(percent))
        axes.scatter(percent["accuracy"], heights, color=COLOURS[model], zorder=3)
    low, high = axes.get_xlim()
    wider = max(0.0, LEAST_SPAN - (high - low)) / 2  # near 100% a hair's breadth would fill the page
    axes.set(
        xlim=(low - wider, high + wider),
        yticks=range(len(order)),
        yticklabels=[NAMES[model] for model in order],
        xlabel="test accuracy, % (points: seeds; line: mean of their 95% intervals)",
    )
    axes.invert_yaxis()
    return figure


# Ways of teaching with few labels: a colour is a loss and its teacher, as in every other figure (:data:`COLOURS`); the
# loss with T² at another temperature, or on more images, keeps its colour and has another dash and hatch.
_WAYS = {
    "labels alone": (COLOURS["student_ce"], "-", ""),
    "label smoothing": (COLOURS["student_ls"], "-", ""),
    "paper's loss": (COLOURS["student_kd"], "-", ""),
    "with T²": (COLOURS["student_kd_t2"], "-", ""),
    "T = 1": (COLOURS["student_kd_t2"], "-.", "//"),  # and any other T
    "successor": (COLOURS["student_dkd"], "-", ""),
    "oracle, T = 1": ("#882255", ":", ""),
    "with T², all images": (COLOURS["student_kd_t2"], "--", "xx"),
}
# Teachers without knowledge of single images, in words.
WITHOUT_KNOWLEDGE = {
    "shuffled": "exchanged in the class",
    "class_mean": "the class's mean",
    "symmetric": "no teacher, same margin",
}


def few_labels(table: pd.DataFrame, score: str, all_labels: float, best: float | None) -> Figure:
    """What the teacher adds where labels are few.

    Args:
        table: a row a student: ``way``, ``seed``, ``images_per_class`` (0: all), and a column of the name in ``score``.
        score: which of the table's scores is drawn.
        all_labels: how many images a class those of ``images_per_class`` 0 are, on average.
        best: the Bayes accuracy, or ``None``.

    Returns:
        Left: the score against labelled images a class, a line for each way that was asked at several numbers. Right:
        gains over the labels alone with the most of the few labels.
    """
    theme()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[3, 2])
    every = round(all_labels)
    table = table[table["images_per_class"] < every]  # whoever has no more labels than these has all
    labelled = table["images_per_class"].replace(0, every)
    for way, (colour, dash, _) in _WAYS.items():
        rows = table[table["way"] == way]
        if rows["images_per_class"].nunique() > 1:
            means = rows.groupby(labelled)[score].agg(["mean", "min", "max"])
            left.plot(means.index, means["mean"], dash, color=colour, marker="o", markersize=4, label=way)
            left.fill_between(means.index, means["min"], means["max"], color=colour, alpha=0.08, linewidth=0)
    if best is not None:
        left.axhline(best, color="#777777", linewidth=1)
        left.annotate(
            "Bayes", (labelled.min(), best), textcoords="offset points", xytext=(0, 3), fontsize=9, color="#555555"
        )
    ticks = sorted(labelled.unique())
    left.set(
        xscale="log", xlabel="labelled images a class", ylabel=score.replace("_", " ") + ", mean and range of seeds"
    )
    left.set_xticks(ticks, [f"all ({tick})" if tick == every else f"{tick}" for tick in ticks])
    left.minorticks_off()
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    few = table[table["images_per_class"] == table["images_per_class"].max()]
    wide = 100 * few.pivot_table(score, "seed", "way", sort=False)
    gains = wide.drop(columns="labels alone").sub(wide["labels alone"], axis=0)
    for place, way in enumerate(gains):
        colour, _, hatch = _WAYS.get("T = 1" if way.startswith("T = ") else way, ("#AAAAAA", "", ""))
        right.barh(place, gains[way].mean(), color=colour, hatch=hatch, edgecolor="white", alpha=0.8)
        right.plot(
            gains[way],
            np.full(len(gains), place),
            "o",
            color="#333333",
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    right.set_yticks(range(gains.shape[1]), [WITHOUT_KNOWLEDGE.get(way, way) for way in gains])
    right.invert_yaxis()
    right.axvline(0, color="#333333", linewidth=0.8)
    right.set(
        xlabel=f"gain over the labels alone, points, {few['images_per_class'].iloc[0]} labels a class (dots: seeds)"
    )
    return figure


def gains_by_labels(table: pd.DataFrame) -> Figure:
    """When a teacher helps, how much, and at which T: the gain over the labels alone against labelled images a class.

    Args:
        table: of :func:`kdnb.comparison.gains_by_labels`: ``loss``, ``temperature``, ``labels`` (images a
            class; 0: all), ``seed`` and ``gain``, in points.

    Returns:
        A panel for each loss: at every number of labels each temperature's mean with the range of its seeds, joined
        where a temperature has several numbers.
    """
    theme()
    names, temperatures = list(dict.fromkeys(table["loss"])), sorted(table["temperature"].unique())
    numbers = sorted(table["labels"].unique(), key=lambda number: (number == 0, number))
    shades = sns.color_palette("viridis", len(temperatures) + 1)[:-1]
    figure, panels = plt.subplots(1, len(names), figsize=(1.4 + 3.9 * len(names), 3.6), squeeze=False, sharey=True)
    for axes, name in zip(panels[0], names, strict=True):
        axes.axhline(0, color="#333333", linewidth=0.8)
        for place, (temperature, colour) in enumerate(zip(temperatures, shades, strict=True)):
            of_t = table[(table["loss"] == name) & (table["temperature"] == temperature)]
            stats = of_t.groupby("labels")["gain"].agg(["mean", "min", "max"])
            stats = stats.reindex([number for number in numbers if number in stats.index])
            places = np.array([numbers.index(number) for number in stats.index], float)
            places += 0.12 * (place - (len(temperatures) - 1) / 2)
            spread = np.abs(stats[["min", "max"]].to_numpy().T - stats["mean"].to_numpy())
            mark = "osD^vP*"[place % 7] + "-"
            axes.errorbar(
                places, stats["mean"], yerr=spread, fmt=mark, color=colour, capsize=3, label=f"T = {temperature:g}"
            )
        axes.set(title=_LOSSES.get(name, name), xlabel="labelled images a class")
        axes.set_xticks(range(len(numbers)), [f"{number}" if number else "all" for number in numbers])
    panels[0, 0].set_ylabel("gain over the labels alone, points")
    panels[0, -1].legend(
        title="mean, range of seeds", title_fontsize=8, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return figure


def gain_against_distance(table: pd.DataFrame) -> Figure:
    """What a teacher is worth against how far it is from the truth.

    Args:
        table: columns ``teacher`` (eight at most), ``labels`` (one or two numbers, in words), ``divergence`` (nats) and
            ``gain``, ``lo``, ``hi`` (points).

    Returns:
        A mark a teacher, filled by how many labels its students have, with its interval.
    """
    theme()
    figure, axes = plt.subplots(figsize=(8.5, 3.8))
    axes.axhline(0, color="#333333", linewidth=0.8)
    marks = dict(zip(table["teacher"].unique(), "oDsP^v<>", strict=False))
    fills = dict(zip(table["labels"].unique(), ("#333333", "white"), strict=False))
    aside = 0.008 * max(table["divergence"].max(), 0.1)  # one teacher's points side by side
    for row in table.itertuples():
        x = row.divergence + aside * (1 if fills[row.labels] == "white" else -1)
        axes.plot([x, x], [row.lo, row.hi], color="#999999", linewidth=1.5)
        axes.plot(x, row.gain, marks[row.teacher], color="#333333", markerfacecolor=fills[row.labels], markersize=8)
    axes.set(
        xlabel="distance of the teacher from the truth, KL(p || teacher) on test (nats)",
        ylabel="gain over the labels alone, points",
    )
    handles: list[Artist] = [
        plt.Line2D([], [], linestyle="", color="#333333", marker=mark, label=name) for name, mark in marks.items()
    ]
    handles += [Patch(facecolor=fill, edgecolor="#333333", label=labels) for labels, fill in fills.items()]
    axes.legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def forest(effects: dict[str, pd.DataFrame]) -> Figure:
    """Differences in points with their intervals; the band marks one point either way.

    Args:
        effects: title -> table with columns run, difference, lo, hi, in points.

    Returns:
        A panel for each question, a row for each run, and last what they say together, where that is told.
    """
    theme()
    runs = sorted({run for table in effects.values() for run in table["run"]}, key=lambda run: (run == "together", run))
    size = (3.6 * len(effects), 0.5 * len(runs) + 1.2)
    figure, panels = plt.subplots(1, len(effects), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes, (title, table) in zip(panels[0], effects.items(), strict=True):
        axes.axvspan(-1, 1, color="#EEEEEE", zorder=0)
        axes.axvline(0, color="#333333", linewidth=1)
        for effect in table.itertuples():
            row, last = runs.index(effect.run), effect.run == "together"
            colour = "#000000" if last else "#555555"
            axes.plot([effect.lo, effect.hi], [row, row], color=colour, linewidth=2)
            axes.scatter(effect.difference, row, marker="D" if last else "o", color=colour, zorder=3)
        axes.set(title=title, xlabel="points of accuracy", yticks=range(len(runs)), yticklabels=runs)
        axes.set_ylim(len(runs) - 0.5, -0.5)
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    """Test accuracy of students of other shapes against their operations; columns of ``ablation.csv``."""
    theme()
    figure, axes = plt.subplots(figsize=(7.5, 3.4))
    colour = COLOURS["student_kd"]  # of the loss that all of them learn by; shapes differ in mark and dash
    for pool, mark, below in (("max", "o-", False), ("average", "s--", True)):
        of_pool = table[table["pool"] == pool]
        axes.plot(of_pool["macs"] / 1e6, 100 * of_pool["test_accuracy"], mark[0], color=colour, alpha=0.5, markersize=4)
        means = of_pool.groupby("macs", as_index=False)[["test_accuracy", "layers"]].mean()
        axes.plot(means["macs"] / 1e6, 100 * means["test_accuracy"], mark, color=colour, label=f"{pool} pooling")
        ends = of_pool.groupby("macs")["test_accuracy"].agg("min" if below else "max")
        for row, end in zip(means.itertuples(), ends, strict=True):
            place = (row.macs / 1e6, 100 * end)
            axes.annotate(
                f"{row.layers:.0f}",
                place,
                (0, -14 if below else 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
    low, high = axes.get_ylim()
    axes.set(
        ylim=(low - 1, min(high + 1, 100.5)),
        xlabel="million multiply-accumulates for one image",
        ylabel="test accuracy (%)",
    )
    axes.legend(title="mean, and each seed; numbers: layers", title_fontsize=8, fontsize=8)
    return figure


def grid_map(table: pd.DataFrame, value: str = "test_accuracy") -> Figure:
    """The alpha x T map: gain over cross-entropy alone in points, mean over seeds.

    The scale spans :data:`LEAST_SPAN` points at least, so that a difference of one image looks like none.

    Args:
        table: a row a student: columns ``loss``, ``alpha``, ``temperature`` and ``value``.
        value: the column that is drawn, a share.

    Returns:
        A panel for each loss, one scale around zero.
    """
    theme()
    taught = table[~table["loss"].isin(["ce", "ls"])]
    names = list(dict.fromkeys(taught["loss"]))
    plain = 100 * table.loc[table["loss"] == "ce", value].mean()
    gains = 100 * taught.groupby(["loss", "alpha", "temperature"])[value].mean() - plain
    most = max(gains.abs().max(), LEAST_SPAN / 2)
    size = (0.9 + 4.2 * len(names), 1.6 + 0.55 * taught["alpha"].nunique())
    figure, panels = plt.subplots(1, len(names), figsize=size, squeeze=False, sharey=True)
    for axes, name in zip(panels[0], names, strict=True):
        cells = gains[name].unstack().rename(index="{:g}".format, columns="{:g}".format)
        sns.heatmap(
            cells, annot=True, fmt="+.1f", cmap="PuOr_r", vmin=-most, vmax=most, ax=axes,
            cbar=axes is panels[0][-1], cbar_kws={"label": "gain (points)"},
        )  # fmt: skip
        axes.set(title=_LOSSES.get(name, name), xlabel="temperature T", ylabel="α" if axes is panels[0][0] else "")
    figure.suptitle(
        f"{value.replace('_', ' ')}: gain over cross-entropy alone ({plain:.1f}%), mean over seeds", fontsize=10
    )
    return figure


def over_temperature(table: pd.DataFrame, value: str = "test_accuracy") -> Figure:
    """Accuracy against T: means over seeds with their range for each alpha, and the band of cross-entropy alone.

    Args:
        table: a row a student: columns ``loss``, ``alpha``, ``temperature`` and ``value``.
        value: the column that is drawn, a share.

    Returns:
        A panel for each loss.
    """
    theme()
    taught = table[~table["loss"].isin(["ce", "ls"])].assign(percent=lambda rows: 100 * rows[value])
    plain, names = 100 * table.loc[table["loss"] == "ce", value], list(dict.fromkeys(taught["loss"]))
    alphas, temperatures = sorted(taught["alpha"].unique()), sorted(taught["temperature"].unique())
    shades = sns.color_palette("viridis", len(alphas) + 1)[:-1]
    figure, panels = plt.subplots(1, len(names), figsize=(1.4 + 3.9 * len(names), 3.4), squeeze=False, sharey=True)
    for axes, name in zip(panels[0], names, strict=True):
        axes.axhspan(plain.min(), plain.max(), color="#BBBBBB", alpha=0.5, linewidth=0)
        axes.axhline(plain.mean(), color="#555555", linewidth=1, label="cross-entropy alone (band: seeds)")
        for number, (alpha, colour) in enumerate(zip(alphas, shades, strict=True)):
            of_alpha = taught[(taught["loss"] == name) & (taught["alpha"] == alpha)]
            stats = of_alpha.groupby("temperature")["percent"].agg(["mean", "min", "max"]).reindex(temperatures)
            places = np.arange(len(temperatures)) + 0.12 * (number - (len(alphas) - 1) / 2)
            spread = np.abs(stats[["min", "max"]].to_numpy().T - stats["mean"].to_numpy())
            axes.errorbar(
                places,
                stats["mean"],
                yerr=spread,
                fmt="osD^v"[number % 5] + "-",
                color=colour,
                capsize=3,
                label=f"α = {alpha:g}",
            )
        axes.set(title=_LOSSES.get(name, name), xlabel="temperature T (steps of the grid)")
        axes.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
    low, high = panels[0, 0].get_ylim()
    wider = max(0.0, LEAST_SPAN - (high - low)) / 2
    top = min(high + wider, max(high, 100.0))  # nobody is right more often
    panels[0, 0].set(ylim=(min(low - wider, top - LEAST_SPAN), top), ylabel=f"{value.replace('_', ' ')} (%)")
    panels[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def gradients_and_entropy(norms: pd.DataFrame, entropies: pd.DataFrame) -> Figure:
    """Against T: the soft gradient's norm over cross-entropy's, and the entropy of the teacher's probabilities."""
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
    """Accuracy of teacher and students in each recorded run, with its interval.

    Args:
        table: a row a run and model: dataset, profile, split_protocol, run_seed, model, accuracy and its interval.
        published: what the paper reports: columns ``dataset``, ``model``, ``accuracy``.

    Returns:
        A row a run; on official splits a cross where the paper reports an accuracy.
    """
    theme()
    models = ["teacher", "student_ce", "student_kd"]
    keys = ["dataset", "profile", "split_protocol", "run_seed"]
    runs = list(table.groupby(keys, sort=False))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.75 * len(runs)))
    for row, (key, of_run) in enumerate(runs):
        paper = published[published["dataset"] == key[0]].set_index("model")["accuracy"]
        for model, shift in zip(models, (-0.22, 0, 0.22), strict=True):
            score = of_run[of_run["model"] == model].iloc[0]
            label = NAMES[model] if row == 0 else None
            axes.plot(
                [100 * score["accuracy_lo"], 100 * score["accuracy_hi"]],
                [row + shift] * 2,
                color=COLOURS[model],
                linewidth=2,
            )
            axes.scatter(100 * score["accuracy"], row + shift, color=COLOURS[model], zorder=3, label=label)
            if model in paper and key[2] == "official":
                axes.scatter(100 * paper[model], row + shift, marker="x", color=COLOURS[model], zorder=4)
    axes.set(
        yticks=range(len(runs)),
        yticklabels=[f"{k[0]}, {k[2]}\n({k[1]})" for k, _ in runs],
        xlabel="test accuracy (%); cross: the paper's",
    )
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
