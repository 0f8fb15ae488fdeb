"""Figures of explanations: maps over images, fidelity by method, sanity and time."""

import textwrap
from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from kdnb.explain import CONTROLS
from kdnb.figures import NAMES

HEAT = "viridis"
TITLE_WIDTH = 22  # letters, as wide as a panel
OPACITY = 0.5  # of a map over its image, as in the paper's figures
_KINDS = {
    "class evidence": "#009E73",
    "feature maps": "#0072B2",
    "gradients": "#D55E00",
    "controls": "#7F7F7F",
    "forward pass": "#000000",
}
_NAMES = {
    "feature_maps_mean": "mean of layers",
    "feature_maps_weighted": "weighted mean",
    "feature_maps_unpooled": "mean of layers, before pooling",
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
    "integrated_gradients_signed": "integrated gradients, signed",
    "integrated_gradients_coarse": "integrated gradients, coarse",
    "shap": "SHAP",
    "shap_signed": "SHAP, signed",
    "shap_coarse": "SHAP, coarse",
    "random": "random",
    "centre": "centre",
    "sobel": "Sobel edges",
    "uniform": "uniform",
    "untrained": "untrained network",
    "data_set_mean": "data-set mean",
    "mean_mask": "mean mask",
    "lesion": "the lesion itself",
    "forward": "plain forward pass",
}
_METRICS = {
    "agreement_05": "agreement, 5% kept (higher is better)",
    "agreement_10": "agreement, 10% kept (higher is better)",
    "agreement_20": "agreement, 20% kept (higher is better)",
    "agreement_30": "agreement, 30% kept (higher is better)",
    "recovered_05": "recovered, 5% kept\nover the blur (higher is better)",
    "recovered_10": "recovered, 10% kept\nover the blur (higher is better)",
    "recovered_10_mean": "recovered, 10% kept\nover the mean colour (higher is better)",
    "recovered_10_road": "recovered, 10% kept\nthe rest imputed (higher is better)",
    "insertion_mean": "insertion AUC, mean colour (higher is better)",
    "deletion_mean": "deletion AUC, mean colour (lower is better)",
    "insertion_blur": "insertion AUC, blur (higher is better)",
    "deletion_blur": "deletion AUC, blur (lower is better)",
    "road_least_first": "ROAD, least first (higher is better)",
    "road_most_first": "ROAD, most first (lower is better)",
    "average_drop": "average drop (lower is better)",
    "ffid_plus": "F-Fidelity, relevant part removed (higher is better)",
    "ffid_minus": "F-Fidelity, rest removed (lower is better)",
    "pointing_game": "pointing game (1 is best)",
    "mass_ratio": "mass in mask over chance",
    "rank_accuracy": "rank accuracy (1 is best)",
    "pixel_auc": "pixel AUC (1 is best, 0.5 chance)",
}


def method_name(method: str) -> str:
    """A method's name in words: ``feature_maps_layer3`` becomes ``layer 3``."""
    return _NAMES.get(method, method.replace("feature_maps_layer", "layer ").replace("_", " "))


def method_kind(method: str) -> str:
    """``class evidence``, ``feature maps``, ``gradients``, ``controls`` or ``forward pass``: a kind has one colour."""
    if method == "forward":
        return "forward pass"
    if "evidence" in method:
        return "class evidence"
    if method in (*CONTROLS, "mean_mask", "lesion"):
        return "controls"
    return "feature maps" if method.startswith("feature_maps") else "gradients"


def overlays(
    images: np.ndarray,
    maps: dict[str, np.ndarray],
    row_titles: Sequence[str],
    *,
    fields: Sequence[int] | None = None,
    masks: np.ndarray | None = None,
) -> Figure:
    """Maps laid over their images, each map scaled to its own least and largest value, one with signs about zero.

    The image stands alone in the first column. A lesion is outlined in every column, so that each map can be held
    against it.

    Args:
        images: ``(R, H, W, 3)`` uint8.
        maps: column title -> ``(R, H, W)``.
        row_titles: one for each image.
        fields: a receptive field in pixels for each map, drawn as a white square in the middle of the first row.
        masks: ``(R, H, W)`` bool, outlined in white.

    Returns:
        A row an image, a column a map.
    """
    rows, columns = len(images), 1 + len(maps)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.6 * columns + 0.6, 1.65 * rows + 0.3), squeeze=False, layout="constrained"
    )
    for row, (image, title) in enumerate(zip(images, row_titles, strict=True)):
        axes[row, 0].imshow(image)
        axes[row, 0].set_ylabel(title, fontsize=8)
        for axis, values in zip(axes[row, 1:], maps.values(), strict=True):
            axis.imshow(image)
            axis.imshow(_scaled(values[row]), cmap=HEAT, alpha=OPACITY, vmin=0, vmax=1)
        if masks is not None and masks[row].any():
            for axis in axes[row]:
                axis.contour(masks[row], [0.5], colors="white", linewidths=1)
    for axis, title in zip(axes[0], ["image", *maps], strict=True):
        axis.set_title("\n".join(textwrap.fill(line, TITLE_WIDTH) for line in title.split("\n")), fontsize=8)
    for axis, field in zip(axes[0, 1:], fields or (), strict=False):
        _outline(axis, field, images.shape[1])
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("map (each scaled)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _scaled(values: np.ndarray) -> np.ndarray:
    """From 0 to 1; of a map with signs zero becomes the middle, 0.5."""
    if values.min() < 0:
        return 0.5 + values / (2 * abs(values).max())
    return (values - values.min()) / max(values.max() - values.min(), 1e-12)


def _outline(axis: plt.Axes, field: int, size: int) -> None:
    """A square of the receptive field's size in the middle; one larger than the image lies at its border, dashed."""
    side = min(field, size - 2)
    corner = (size - side) / 2 - 0.5
    style = "-" if side == field else "--"
    axis.add_patch(
        Rectangle((corner, corner), side, side, fill=False, edgecolor="white", linewidth=1.2, linestyle=style)
    )


def film_strip(
    strips: dict[str, np.ndarray],
    curves: dict[str, np.ndarray],
    at_random: dict[str, np.ndarray],
    shares: Sequence[float],
    shown: Sequence[float],
) -> Figure:
    """One image as its best pixels come back, and the probability of its class meanwhile.

    Args:
        strips: fill of the rest -> ``(S, H, W, 3)`` in [0, 1].
        curves: fill -> ``(S,)`` probabilities.
        at_random: the same as a random map's best pixels come back, drawn in grey.
        shares: ``(S,)``, how much of the area is kept in each of these.
        shown: the shares that are drawn as images.

    Returns:
        A row a fill, and beside each row the probability.
    """
    rows, columns = len(strips), len(shown)
    figure = plt.figure(figsize=(1.5 * columns + 3.2, 1.6 * rows + 0.4), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 2)
    for row, (fill, images) in enumerate(strips.items()):
        for column, share in enumerate(shown):
            axis, step = figure.add_subplot(grid[row, column]), list(shares).index(share)
            axis.imshow(images[step].clip(0, 1))
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"p = {curves[fill][step]:.2f}", fontsize=8)
            if row == 0:
                axis.set_title(f"{100 * share:g}% kept", fontsize=8)
            if column == 0:
                axis.set_ylabel(fill, fontsize=8)
        axis = figure.add_subplot(grid[row, columns:])
        kept = 100 * np.asarray(shares)
        axis.plot(kept, curves[fill], "o-", color=_KINDS["feature maps"], markersize=4, label="this map")
        axis.fill_between(kept, curves[fill], color=_KINDS["feature maps"], alpha=0.15, linewidth=0)
        axis.plot(kept, at_random[fill], "s--", color=_KINDS["controls"], markersize=3, label="a random map")
        if row == 0:
            axis.legend(loc="lower right", fontsize=8, frameon=False)
        axis.set(ylim=(0, 1.05), xlim=(-2, 102), ylabel="p")
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axis.set_xlabel("area kept, %", fontsize=8)
    return figure


def by_method(
    summary: pd.DataFrame, metrics: Sequence[str], *, model: str, chance: dict[str, float] | None = None
) -> Figure:
    """Mean and 95% interval of each method over all classes, methods of a kind beside each other.

    Args:
        summary: ``fidelity_summary.csv`` or a summary of ``localisation.csv``.
        metrics: those that are drawn.
        model: the one whose rows are drawn.
        chance: metric -> value drawn as a dashed line.

    Returns:
        A panel a metric, three in a row, of four metrics two.
    """
    scores = summary[(summary["class"] == "all") & (summary["model"] == model) & summary["metric"].isin(metrics)]
    kinds = list(_KINDS)
    methods = sorted(dict.fromkeys(scores["method"]), key=lambda method: kinds.index(method_kind(method)))
    columns = 2 if len(metrics) == 4 else min(len(metrics), 3)
    lines = -(-len(metrics) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.9 * columns + 1, (0.24 * len(methods) + 0.8) * lines),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(metrics) :]:
        axis.axis("off")
    for axis, metric in zip(axes.flat, metrics, strict=False):
        rows = scores[scores["metric"] == metric].set_index("method").reindex(methods)
        for place, (method, row) in enumerate(rows.iterrows()):
            colour = _KINDS[method_kind(method)]
            axis.plot([row["lo"], row["hi"]], [place, place], color=colour, linewidth=2)
            axis.plot(row["mean"], place, "o", color=colour, markersize=5)
        if chance and metric in chance:
            axis.axvline(chance[metric], color="0.4", linestyle="--", linewidth=1)
        axis.set_xlabel(_METRICS.get(metric, metric.replace("_", " ")), fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(methods)), _with_counts(scores, methods))
    axes[0, 0].invert_yaxis()
    kinds_shown = [kind for kind in kinds if kind in map(method_kind, methods)]
    figure.legend(
        [Line2D([], [], color=_KINDS[kind], marker="o") for kind in kinds_shown],
        kinds_shown,
        loc="outside upper left",
        ncols=3,
        frameon=False,
    )
    sns.despine(figure)
    return figure


def _with_counts(scores: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    """The methods' names, and on how many images where those are fewer than others'.

    Small differences between two of unlike numbers mean little.

    Returns:
        A name for each method.
    """
    if "n" not in scores:
        return [method_name(method) for method in methods]
    counts = scores.groupby("method")["n"].max()
    return [method_name(m) + (f" (n = {counts[m]:.0f})" if counts[m] < counts.max() else "") for m in methods]


def agreement(orders: pd.DataFrame) -> Figure:
    """Kendall's tau between the orders of methods by each pair of metrics: :func:`kdnb.fidelity.order_agreement`."""
    side = 0.55 * len(orders) + 1.6
    figure, axis = plt.subplots(figsize=(side + 0.6, side * 0.85), layout="constrained")
    names = [_metric_name(metric) for metric in orders]
    shown = orders.set_axis(names).set_axis(names, axis=1).iloc[1:, :-1]  # a pair once, and no metric with itself
    above = np.triu(np.ones(shown.shape, bool), k=1)
    bar = {"label": "Kendall's \N{GREEK SMALL LETTER TAU}", "shrink": 0.7}
    sns.heatmap(
        shown,
        mask=above,
        vmin=-1,
        vmax=1,
        cmap="vlag_r",
        annot=True,
        fmt=".1f",
        annot_kws={"size": 8},
        cbar_kws=bar,
        ax=axis,
    )
    axis.tick_params(labelsize=8)
    return figure


def _metric_name(metric: str) -> str:
    """In words, on one line, without which way it points."""
    return _METRICS.get(metric, metric.replace("_", " ")).split("(")[0].replace("\n", " ").strip()


def ranks(places: pd.DataFrame) -> Figure:
    """The place of every method by every metric, a colour a place.

    A method of one colour has its place whoever asks; a row that runs from light to dark has it from its metric.

    Args:
        places: of :func:`kdnb.fidelity.ranks`.

    Returns:
        A row a method, its best and its worst place beside its name; empty where a metric does not judge it.
    """
    drawn = places.drop(columns=["best", "worst", "mean"])
    spans = zip(places.index, places["best"], places["worst"], strict=True)
    names = [f"{method_name(method)}  {best:.0f} to {worst:.0f}" for method, best, worst in spans]
    figure, axis = plt.subplots(figsize=(0.62 * drawn.shape[1] + 3.6, 0.25 * len(drawn) + 2.4), layout="constrained")
    sns.heatmap(
        drawn.set_axis(names).set_axis([_metric_name(metric) for metric in drawn], axis=1),
        cmap=f"{HEAT}_r",
        annot=True,
        fmt=".0f",
        annot_kws={"size": 8},
        cbar_kws={"label": "place (1 is the best)", "shrink": 0.7, "ticks": MaxNLocator(integer=True)},
        ax=axis,
    )
    axis.set(xlabel="", ylabel="")
    axis.set_xticklabels(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    axis.tick_params(labelsize=8)
    for label, method in zip(axis.get_yticklabels(), places.index, strict=True):
        label.set_color(_KINDS[method_kind(method)])
    return figure


def cascade(table: pd.DataFrame) -> Figure:
    """Rank correlation with the original map as weights are redrawn from the output to the input.

    Args:
        table: columns ``order``, ``stage``, ``method``, ``draw`` and ``spearman``.

    Returns:
        A line a method. Points are means over the networks of redrawn weights, bars reach from the lowest network to
        the highest.
    """
    figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    stages = list(dict.fromkeys(table.sort_values("order")["stage"]))
    of_networks = table.groupby(["order", "stage", "method", "draw"], sort=False)["spearman"].mean().reset_index()
    lowest = min(-0.6, of_networks["spearman"].min() - 0.05)
    shown = of_networks.assign(method=of_networks["method"].map(method_name))
    sns.pointplot(
        shown, x="stage", y="spearman", hue="method", order=stages, errorbar=("pi", 100),
        palette="colorblind", markers=["o", "s", "^", "D", "v", "P"][: shown["method"].nunique()], dodge=0.3, ax=axis,
    )  # fmt: skip
    axis.set(
        xlabel="weights redrawn, from here to the output", ylabel="Spearman with the original map", ylim=(lowest, 1.05)
    )
    axis.set_xticks(range(len(stages)), [_stage_name(stage) for stage in stages])
    axis.axhline(0, color="0.6", linewidth=1)
    axis.legend(title=None, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.tick_params(axis="x", labelsize=8)
    sns.despine(figure)
    return figure


def _stage_name(stage: str) -> str:
    """A module's name in words: ``features.4`` of the student is ``layer 5``."""
    block, _, number = stage.partition(".")
    return f"layer {int(number) + 1}" if block == "features" and number.isdigit() else stage


def execution_time(met: pd.DataFrame, batch_size: int) -> Figure:
    """Time an image (logarithmic) of every method on every model at one batch size.

    Args:
        met: ``met.csv``, see :func:`kdnb.cost.met_table`.
        batch_size: which of met's.

    Returns:
        Milliseconds at the left, forward passes of the same model at the right.
    """
    timed = met[met["batch_size"] == batch_size]
    methods = list(dict.fromkeys(timed.sort_values("ms_per_image_median")["method"]))
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 0.27 * len(methods) + 1.3), sharey=True, layout="constrained")
    marks = dict(zip(dict.fromkeys(timed["model"]), "osD^", strict=False))
    labels = ("milliseconds an image", "forward passes of the same model an image")
    for axis, column, label in zip(axes, ("ms_per_image_median", "forward_equivalents"), labels, strict=True):
        for (model, mark), colour, shift in zip(
            marks.items(), sns.color_palette("colorblind"), (-0.12, 0.12, 0.24, 0.36), strict=False
        ):
            values = timed[timed["model"] == model].set_index("method")[column].reindex(methods)
            axis.plot(
                values, np.arange(len(methods)) + shift, mark, color=colour, label=NAMES.get(model, model), markersize=5
            )
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(methods)), [method_name(m) for m in methods])
    axes[1].legend(frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def time_against_fidelity(met: pd.DataFrame, summary: pd.DataFrame, *, metric: str, batch_size: int) -> Figure:
    """What an explanation costs against what it is worth.

    Colours tell feature maps from gradient methods, filled circles the student from open squares, the teacher. A
    control costs nothing worth timing: it is a grey line, at the student's value, named in the right margin.

    Args:
        met: ``met.csv``.
        summary: ``fidelity_summary.csv``.
        metric: what an explanation is judged by.
        batch_size: which of met's.

    Returns:
        A point a method and model, with the 95% interval of ``metric``.
    """
    of_all = summary[(summary["class"] == "all") & (summary["metric"] == metric) & summary["mean"].notna()]
    timed = met[met["batch_size"] == batch_size].merge(of_all, on=["method", "model"])
    timed = timed[~timed["method"].isin(CONTROLS)].sort_values(["mean", "ms_per_image_median"], ascending=False)
    figure, axis = plt.subplots(figsize=(8.2, 4.6))
    for row in timed.itertuples():
        colour, teacher = _KINDS[method_kind(row.method)], row.model == "teacher"
        axis.plot([row.ms_per_image_median] * 2, [row.lo, row.hi], color=colour, linewidth=1.2, alpha=0.6)
        face = "white" if teacher else colour
        axis.plot(
            row.ms_per_image_median,
            row.mean,
            "s" if teacher else "o",
            color=colour,
            markerfacecolor=face,
            markersize=7,
            zorder=3,
        )
    axis.set(
        xscale="log",
        xlabel=f"milliseconds an image (batches of {batch_size})",
        ylabel=_METRICS.get(metric, metric.replace("_", " ")),
    )
    axis.margins(x=0.25, y=0.08)
    controls = of_all[of_all["method"].isin(CONTROLS) & (of_all["model"] != "teacher")].sort_values("mean")
    for value in controls["mean"]:
        axis.axhline(value, color=_KINDS["controls"], linestyle=":", linewidth=1, zorder=0)
    marks = [("o", _KINDS["feature maps"], "feature maps"), ("o", _KINDS["gradients"], "gradients")]
    handles = [Line2D([], [], marker=mark, color=colour, linestyle="", label=name) for mark, colour, name in marks]
    for mark, face, name in (("o", "black", "student"), ("s", "white", "teacher")):
        handles.append(Line2D([], [], marker=mark, color="black", markerfacecolor=face, linestyle="", label=name))
    handles.append(Line2D([], [], color=_KINDS["controls"], linestyle=":", label="controls, on the student"))
    axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False, fontsize=8)
    sns.despine(figure)
    _name_in_margin(axis, controls["mean"].to_numpy(), [method_name(method) for method in controls["method"]])
    _name_points(axis, timed)
    return figure


def _name_in_margin(axis: plt.Axes, heights: np.ndarray, names: Sequence[str]) -> None:
    """Names at the right of the axes, each as near to its height (ascending) as the one below it lets it be."""
    low, high = axis.get_ylim()
    line = 0.045 * (high - low)
    place = -np.inf
    for height, name in zip(heights, names, strict=True):
        place = max(height, place + line)
        axis.annotate(
            name, (1, height), (1.03, place), xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"), va="center", fontsize=8, color="0.35",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6},
        )  # fmt: skip


def _name_points(axis: plt.Axes, points: pd.DataFrame) -> None:
    """Each point's method beside it, at the nearest of some places that covers no other name, point or interval."""
    axis.figure.canvas.draw()  # fixes where things are
    in_pixels = [
        (row, axis.transData.transform([(row.ms_per_image_median, y) for y in (row.mean, row.lo, row.hi)]))
        for row in points.itertuples()
    ]
    taken = [Bbox.from_extents(x - 7, middle - 7, x + 7, middle + 7) for _, ((x, middle), _, _) in in_pixels]
    taken += [Bbox.from_extents(x - 2, low, x + 2, high) for _, (_, (x, low), (_, high)) in in_pixels]
    for row, ((x, middle), _, _) in in_pixels:
        label = axis.text(
            0,
            0,
            method_name(row.method),
            fontsize=8,
            color=_KINDS[method_kind(row.method)],
            va="center",
            transform=None,
        )
        width, height = label.get_window_extent().size
        for across, up in _offsets(width):
            box = Bbox.from_bounds(x + across, middle + up - height / 2, width, height)
            if axis.bbox.x0 < box.x0 and box.x1 < axis.bbox.x1 and not box.count_overlaps(taken):
                break
        label.remove()
        to_points = 72 / axis.figure.dpi
        axis.annotate(
            label.get_text(), (row.ms_per_image_median, row.mean), (across * to_points, up * to_points),
            textcoords="offset points", fontsize=8, color=label.get_color(), va="center",
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6},
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        taken.append(box)


def _offsets(width: float) -> Iterator[tuple[float, float]]:
    """Where the left end of a name of ``width`` pixels may stand, seen from its point: nearest first."""
    for distance in range(12, 150, 6):
        yield distance, 0
        yield -distance - width, 0
        for up in (-distance, distance):
            yield from ((distance / 2, up), (-distance / 2 - width, up), (-width / 2, up))


def reader(table: pd.DataFrame, chance: float) -> Figure:
    """How often a simple reader guesses the model's decision from an explanation alone; ``chance`` is dashed."""
    figure, axis = plt.subplots(figsize=(6.4, 0.36 * len(table) + 1), layout="constrained")
    places = np.arange(len(table))
    spread = np.abs(table[["lo", "hi"]].to_numpy().T - table["mean"].to_numpy())
    axis.barh(places, table["mean"], xerr=spread, color="#56B4E9", error_kw={"linewidth": 1.2})
    axis.axvline(chance, color="0.3", linestyle="--", linewidth=1)
    axis.set_yticks(places, table["explanation"])
    axis.invert_yaxis()
    axis.set(xlabel="decisions guessed (share of images); dashed: always the commonest decision", xlim=(0, 1))
    sns.despine(figure)
    return figure
