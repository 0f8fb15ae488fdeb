"""From maps to tables: one row an image, method and metric; summaries with intervals; paired comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon
from torch import Tensor, nn

from kdnb.datasets import ImageSet, to_tensor
from kdnb.datasets.volumes import VolumeSet
from kdnb.device import device_of
from kdnb.evaluation import bootstrap_mean, clustered_variance, compare_over_seeds, holm, t_test
from kdnb.explain import Method
from kdnb.fidelity.judge import f_fidelity
from kdnb.fidelity.localise import localisation
from kdnb.fidelity.perturb import (
    deletion_insertion,
    drop_increase,
    infidelity,
    little_kept,
    probabilities,
    relevance_rank,
    removed,
    road,
    sensitivity_max,
    square_changes,
)
from kdnb.fidelity.sanity import spearman
from kdnb.progress import progress

# Which way each metric points; agreement_*, recovered_* and the metrics of a mask are better when higher.
LOWER_IS_BETTER = (
    "deletion_blur",
    "deletion_mean",
    "road_most_first",
    "average_drop",
    "infidelity",
    "sensitivity_max",
    "ffid_minus",
)
# One metric of each family, +1 where more is better: kept, deleted, and removed with what the neighbours suggest. With
# those of MEAN_FILL they decide what is said about faithfulness (kdnb.claims.JUDGED_BY).
FAMILIES = {"insertion_blur": 1, "deletion_blur": -1, "road_least_first": 1}
# The first two with the mean colour in place of the blur: the order of methods may turn with what fills the gaps.
MEAN_FILL = {"insertion_mean": 1, "deletion_mean": -1}
# Metrics that put the blurred image in place of pixels: integrated gradients start from that image.
OVER_BLUR = r"(insertion|deletion)_blur|(agreement|recovered)_\d\d|infidelity"
SIDE_BY_SIDE_SHARE = 0.1  # of the area, as in agreement_10
# So named metrics; others are from 0 to 1.
WITHOUT_BOUNDS = ("infidelity", "sensitivity_max", "mass_ratio", "ffid_plus", "ffid_minus")
LOW_FIDELITY = 0.85  # the paper's line below which a class calls for the weighted average


@dataclass(frozen=True)
class Sample:
    """The images on which explanations are judged.

    Attributes:
        images: ``(N, 3, H, W)`` float32 in [0, 1]; of volumes ``(N, D, H, W)``.
        targets: ``(N,)`` integers, the classes the model predicts.
        ids: ``(N,)`` str.
        classes: ``(N,)`` str, the true ones, by name.
        groups: ``(N,)`` str; what is drawn together when an interval is bootstrapped, such as a person's images.
        correct: ``(N,)`` bool, whether the prediction is right.
        masks: ``(N, H, W)`` bool, of volumes ``(N, D, H, W)``, or ``None``.
    """

    images: Tensor
    targets: Tensor
    ids: np.ndarray
    classes: np.ndarray
    groups: np.ndarray
    correct: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, per_class: int) -> "Sample":
        """The first ``per_class`` images of each class."""
        nth = pd.Series(self.classes).groupby(self.classes).cumcount().to_numpy()
        return self.where(nth < per_class)

    def where(self, kept: np.ndarray) -> "Sample":
        """The images of a boolean mask ``(N,)``."""
        kept_there = torch.as_tensor(kept, device=self.images.device)
        masks = None if self.masks is None else self.masks[kept]
        arrays = (self.ids[kept], self.classes[kept], self.groups[kept], self.correct[kept])
        return Sample(self.images[kept_there], self.targets[kept_there], *arrays, masks)

    def marked(self) -> str:
        """On how many of the images truth could be measured, in words.

        A set may have masks of which none belongs to these images.

        Returns:
            how many have a mask with a lesion, and how many of these are read rightly.
        """
        has_lesion = np.zeros(len(self), bool) if self.masks is None else self.masks.any(axis=(1, 2))
        return (
            f"{has_lesion.sum()} of these {len(self)} images have a mask with a lesion, "
            f"{(has_lesion & self.correct).sum()} of them read rightly"
        )


def draw_sample(model: nn.Module, data: ImageSet | VolumeSet, per_class: int) -> Sample:
    """Test images of each class, drawn at random but always the same, with the model's predictions.

    Args:
        model: whose predictions become the targets; in evaluation mode.
        data: the images.
        per_class: how many of each class; all, where there are fewer.

    Returns:
        the sample, in the order of the data set, on the model's device.
    """
    positions = np.random.default_rng(0).permutation(data.index("test"))
    nth = pd.Series(data.labels[positions]).groupby(data.labels[positions]).cumcount().to_numpy()
    chosen = np.sort(positions[nth < per_class])
    images = to_tensor(data.images[chosen]).to(device_of(model))
    targets = probabilities(model, images).argmax(dim=1)
    correct = targets.cpu().numpy() == data.labels[chosen]
    masks = None if data.masks is None else data.masks[chosen]
    return Sample(
        images,
        targets,
        data.ids[chosen],
        np.array(data.classes)[data.labels[chosen]],
        data.groups[chosen],
        correct,
        masks,
    )


def fidelity_rows(
    model: nn.Module,
    model_name: str,
    sample: Sample,
    maps: dict[str, Tensor],
    batch_size: int = 32,
    *,
    families: bool = False,
) -> pd.DataFrame:
    """Agreement, deletion, insertion, ROAD, average drop and increase of every map: rows of ``fidelity.csv``.

    Args:
        model: whose answers judge the maps, in evaluation mode.
        model_name: what the rows call it.
        sample: the images that were explained.
        maps: method -> ``(N, H, W)``.
        batch_size: images at once; each is shown many times over.
        families: only what :data:`FAMILIES` needs, in half the time.

    Returns:
        the columns of :func:`long_rows`.
    """
    tables = []
    for method, method_maps in progress(maps.items(), f"fidelity on the {model_name}", total=len(maps)):
        batches = []
        for start in range(0, len(sample), batch_size):
            batch = slice(start, start + batch_size)
            images, targets, batch_maps = sample.images[batch], sample.targets[batch], method_maps[batch]
            rank = relevance_rank(batch_maps)
            if families:
                values = deletion_insertion(model, images, targets, rank, ["blur"])
                values["road_least_first"] = removed(model, images, targets, 1 - rank)
            else:
                values = deletion_insertion(model, images, targets, rank) | road(model, images, targets, rank)
                values |= drop_increase(model, images, targets, batch_maps)
            batches.append(pd.DataFrame({metric: value.cpu().numpy() for metric, value in values.items()}))
        tables.append(long_rows(sample, model_name, method, pd.concat(batches, ignore_index=True)))
    return pd.concat(tables, ignore_index=True)


def kept_rows(
    model: nn.Module, model_name: str, sample: Sample, maps: dict[str, Tensor], batch_size: int = 128
) -> pd.DataFrame:
    """Is 10% of the area enough (:func:`kdnb.fidelity.perturb.little_kept`)? Cheap enough for all test images.

    Args:
        model: whose answers judge the maps, in evaluation mode.
        model_name: what the rows call it.
        sample: the images that were explained.
        maps: method -> ``(N, H, W)``.
        batch_size: images at once; each is shown four times.

    Returns:
        the columns of :func:`long_rows`.
    """
    tables = []
    for method, method_maps in progress(maps.items(), f"10% kept on the {model_name}", total=len(maps)):
        parts = (x.split(batch_size) for x in (sample.images, sample.targets, relevance_rank(method_maps)))
        batches = [little_kept(model, *batch) for batch in zip(*parts, strict=True)]
        values = {metric: torch.cat([batch[metric] for batch in batches]).cpu().numpy() for metric in batches[0]}
        tables.append(long_rows(sample, model_name, method, pd.DataFrame(values)))
    return pd.concat(tables, ignore_index=True)


def over_draws(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of a control that was drawn several times: the mean of the values, not the value of a mean map.

    Args:
        tables: one a draw, as of :func:`fidelity_rows`.

    Returns:
        the same columns, one row for each image, method and metric.
    """
    rows = pd.concat(tables, ignore_index=True)
    keys = [name for name in rows if name != "value"]
    return rows.groupby(keys, sort=False, dropna=False)["value"].mean().reset_index()[list(rows)]


def captum_rows(
    model: nn.Module,
    model_name: str,
    sample: Sample,
    maps: dict[str, Tensor],
    chosen: dict[str, Method],
    drawn: Sequence[dict[str, Tensor]] = (),
) -> pd.DataFrame:
    """Infidelity of every map, and sensitivity-max of the methods in ``chosen``: rows of ``fidelity.csv``.

    Infidelity costs 101 forward passes an image, however many maps there are, sensitivity five explanations.

    Args:
        model: whose answers judge the maps, in evaluation mode.
        model_name: what the rows call it.
        sample: the images that were explained.
        maps: method -> ``(N, H, W)``.
        chosen: the methods whose sensitivity is asked, by name.
        drawn: maps of the controls that were drawn several times; they score the mean over the draws
            (:func:`over_draws`).

    Returns:
        the columns of :func:`long_rows`.
    """
    changes = square_changes(model, sample.images, sample.targets)

    def judged(name: str, method_maps: Tensor) -> pd.DataFrame:
        return long_rows(
            sample, model_name, name, pd.DataFrame({"infidelity": infidelity(method_maps, *changes).cpu().numpy()})
        )

    tables = [judged(name, method_maps) for name, method_maps in maps.items()]
    if drawn:
        tables.append(over_draws([judged(name, method_maps) for draw in drawn for name, method_maps in draw.items()]))
    for name, method in progress(chosen.items(), f"sensitivity on the {model_name}", total=len(chosen)):
        largest = sensitivity_max(model, sample.images, sample.targets, method).cpu().numpy()
        tables.append(long_rows(sample, model_name, name, pd.DataFrame({"sensitivity_max": largest})))
    return pd.concat(tables, ignore_index=True)


def judged_rows(judge: nn.Module, model_name: str, sample: Sample, maps: dict[str, Tensor]) -> pd.DataFrame:
    """F-Fidelity of every map by its judge (:func:`kdnb.fidelity.holed_judge`): rows of ``fidelity.csv``."""
    tables = []
    for method, method_maps in progress(maps.items(), "F-Fidelity", total=len(maps)):
        values = f_fidelity(judge, sample.images, sample.targets, relevance_rank(method_maps))
        values = pd.DataFrame({metric: value.cpu().numpy() for metric, value in values.items()})
        tables.append(long_rows(sample, model_name, method, values))
    return pd.concat(tables, ignore_index=True)


def localisation_rows(
    model_name: str, sample: Sample, maps: dict[str, Tensor], masks: np.ndarray | None = None, what: str = ""
) -> pd.DataFrame:
    """The four mask metrics of every map (:func:`kdnb.fidelity.localisation`): rows of ``localisation.csv``.

    Args:
        model_name: what the rows call the model.
        sample: the images that were explained.
        maps: method -> ``(N, H, W)``.
        masks: ``(N, H, W)`` bool, where they are others than the sample's.
        what: how names of metrics then end.

    Returns:
        the columns of :func:`long_rows`.
    """
    masks = cast("np.ndarray", sample.masks) if masks is None else masks
    tables = []
    for method, method_maps in maps.items():
        values = localisation(method_maps.cpu().numpy(), relevance_rank(method_maps).cpu().numpy(), masks)
        tables.append(long_rows(sample, model_name, method, pd.DataFrame(values).add_suffix(what)))
    return pd.concat(tables, ignore_index=True)


def long_rows(sample: Sample, model_name: str, method: str, values: pd.DataFrame) -> pd.DataFrame:
    """One row an image and metric, as in ``fidelity.csv`` and ``localisation.csv``, from one column a metric.

    Args:
        sample: the images that were explained.
        model_name: column ``model``.
        method: column ``method``.
        values: a row an image, a column a metric.

    Returns:
        image_id, class, model, method, metric, value, group, correct.
    """
    keys = {"image_id": sample.ids, "class": sample.classes, "group": sample.groups, "correct": sample.correct}
    wide = values.assign(**keys, model=model_name, method=method)
    long = wide.melt(id_vars=[*keys, "model", "method"], var_name="metric", value_name="value")
    return long[["image_id", "class", "model", "method", "metric", "value", "group", "correct"]]


def side_by_side(model: nn.Module, sample: Sample, maps: dict[str, Tensor]) -> pd.DataFrame:
    """Two methods on the same images, a row an image.

    Args:
        model: which is asked whether it keeps its prediction.
        sample: the images that were explained.
        maps: two names with their ``(N, H, W)`` maps.

    Returns:
        image_id, class, group and correct; ``spearman``, the rank correlation of the two maps (NaN where one is
        constant); ``overlap``, ``|A and B| / |A or B|`` of the 10% of the area that each ranks highest (chance: 0.05);
        for each name ``<name>_keeps``, 1 if the prediction stays when only that area is kept over the blurred image
        (``agreement_10``); and ``nothing_keeps``, 1 if the blurred image alone has that prediction, so that every map
        keeps it (``agreement_00``).
    """
    pair = list(maps.values())
    ranks = [relevance_rank(method_maps) for method_maps in pair]
    a, b = (rank < SIDE_BY_SIDE_SHARE for rank in ranks)
    overlap = (a & b).sum(dim=(1, 2)) / (a | b).sum(dim=(1, 2))
    judged = [deletion_insertion(model, sample.images, sample.targets, rank) for rank in ranks]
    table = {"image_id": sample.ids, "class": sample.classes, "group": sample.groups, "correct": sample.correct}
    table |= {"spearman": spearman(*(pair_maps.cpu().numpy() for pair_maps in pair)), "overlap": overlap.cpu().numpy()}
    table |= {f"{name}_keeps": values["agreement_10"].cpu().numpy() for name, values in zip(maps, judged, strict=True)}
    return pd.DataFrame(table | {"nothing_keeps": judged[0]["agreement_00"].cpu().numpy()})


def class_row(name: str) -> str:
    """What a class is called where ``all`` stands for all of them: its name, and ``all (class)`` for a class called so.

    Args:
        name: of the class.

    Returns:
        the class's name in tables.

    Example:
        >>> class_row("glioma"), class_row("all")
        ('glioma', 'all (class)')
    """
    return f"{name} (class)" if name == "all" else name


def summary(rows: pd.DataFrame, samples: int = 1000, *, by_class: bool = True) -> pd.DataFrame:
    """Mean and 95% cluster-bootstrap interval by class and over all (class ``all``): ``fidelity_summary.csv``.

    Args:
        rows: as of :func:`long_rows`.
        samples: of the bootstrap.
        by_class: or over all classes alone, in a fraction of the time.

    Returns:
        class, model, method, metric, mean, lo, hi, n, undefined; ``n`` counts the defined values, ``undefined`` those
        left out.
    """
    summaries = []
    of_classes = [rows.assign(**{"class": rows["class"].map(class_row)})] if by_class else []
    doubled = pd.concat([*of_classes, rows.assign(**{"class": "all"})])
    for (class_name, model, method, metric), group in doubled.groupby(
        ["class", "model", "method", "metric"], sort=False
    ):
        bounds = None if metric.startswith(WITHOUT_BOUNDS) else (0.0, 1.0)
        mean, lo, hi = bootstrap_mean(group["value"].to_numpy(), group["group"].to_numpy(), samples, bounds=bounds)
        defined = int(group["value"].notna().sum())
        summaries.append((class_name, model, method, metric, mean, lo, hi, defined, len(group) - defined))
    return pd.DataFrame(summaries, columns=["class", "model", "method", "metric", "mean", "lo", "hi", "n", "undefined"])


def on_same_images(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of those images on which every method was judged, so that their means can be compared.

    Methods that cost many passes are judged on fewer images; what a mean gains or loses by that is no merit of theirs.

    Args:
        rows: as of :func:`long_rows`.

    Returns:
        for each model and metric the rows of the images that all of its methods have.
    """
    methods = rows.groupby(["model", "metric"])["method"].transform("nunique")
    there = rows.groupby(["model", "metric", "image_id"])["method"].transform("nunique")
    return rows[there == methods]


def off_own_fill(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of integrated gradients by metrics over the blur (:data:`OVER_BLUR`).

    They start from the blurred image, and so speak of the very change by which these metrics judge.

    Args:
        rows: as of :func:`long_rows`.

    Returns:
        the rows that are left.
    """
    from_blur = rows["method"].str.startswith("integrated_gradients")
    return rows[~(from_blur & rows["metric"].str.fullmatch(OVER_BLUR))]


def _more_is_better(means: pd.DataFrame) -> pd.DataFrame:
    return means * [-1 if metric in LOWER_IS_BETTER else 1 for metric in means]


def ranks(means: pd.DataFrame) -> pd.DataFrame:
    """The place of each method by each metric, 1 for the best; equals share the better place.

    Args:
        means: a row a method, a column a metric, of the same images.

    Returns:
        the same rows and columns, NaN where a method has no mean, with ``best``, ``worst`` and ``mean``, each method's
        over the metrics; the method of the best mean place first.
    """
    places = _more_is_better(means).rank(ascending=False, method="min")
    over = {"best": places.min(axis=1), "worst": places.max(axis=1), "mean": places.mean(axis=1)}
    return places.assign(**over).sort_values("mean", kind="stable")


def told_from(
    rows: pd.DataFrame, methods: Sequence[str], others: Sequence[str], metrics: Sequence[str], samples: int = 1000
) -> pd.DataFrame:
    """Which metrics tell which explanation from maps that know nothing: the yardsticks of a comparison.

    Args:
        rows: as of :func:`long_rows`, of one model.
        methods: the explanations.
        others: the maps that know nothing, such as random ones.
        metrics: names of metrics.
        samples: of the bootstrap.

    Returns:
        a row a metric, a column a method: True if its interval of the difference lies on the method's side of 0 against
        every one of ``others``; False, too, where the method has no such value.
    """
    pairs = [(method, other) for method in methods for other in others]
    table = paired(rows, "told from maps that know nothing", pairs, metrics, samples=samples)
    ahead = table[(table["better"] == table["a"]) & ((table["lo"] > 0) | (table["hi"] < 0))]
    counts = ahead.groupby(["metric", "a"])["b"].nunique().unstack()
    return counts.reindex(index=metrics, columns=methods) == len(others)


def order_agreement(means: pd.DataFrame) -> pd.DataFrame:
    """How alike do metrics order the methods? Kendall's tau of each pair of metrics.

    Args:
        means: a row a method, a column a metric; turned round where lower is better. A pair counts the methods that
            have both.

    Returns:
        ``(metrics, metrics)``, 1 on the diagonal; NaN where fewer than three methods have both.
    """
    return _more_is_better(means).corr(method="kendall", min_periods=3)


def paired(
    rows: pd.DataFrame,
    question: str,
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    *,
    by_class: bool = False,
    samples: int = 1000,
) -> pd.DataFrame:
    """Compare methods image by image: rows of ``tests.csv``, with Holm's correction over all rows of this call.

    ``difference`` is the mean of a minus b with its cluster-bootstrap interval; ``p`` a paired t-test that counts
    groups, not images (:func:`kdnb.evaluation.clustered_variance`), ``p_wilcoxon`` the signed-rank test on the groups'
    means, ``cohens_d`` the mean difference over its standard deviation. ``better`` says which method the sign favours,
    given which way the metric points, or ``undefined`` where no image has the metric.

    Args:
        rows: as of :func:`long_rows`, of one model.
        question: what the comparisons answer; column ``question``.
        pairs: names of methods, a and b; a pair of which one is missing is passed over.
        metrics: names of metrics.
        by_class: also class by class.
        samples: of the bootstrap.

    Returns:
        a row a class, metric and pair.
    """
    comparisons = []
    groups = [("all", rows), *rows.groupby(rows["class"].map(class_row), sort=False)] if by_class else [("all", rows)]
    for class_name, class_rows in groups:
        for metric in metrics:
            wide = class_rows[class_rows["metric"] == metric].pivot(
                index=["image_id", "group"], columns="method", values="value"
            )
            for a, b in pairs:
                if a in wide and b in wide:
                    comparisons.append(
                        {"question": question, **_comparison(wide, a, b, metric, samples), "class": class_name}
                    )
    table = pd.DataFrame(comparisons)
    table["p_holm"], table["p_wilcoxon_holm"] = holm(table["p"]), holm(table["p_wilcoxon"])
    return table


def paired_over_seeds(
    question: str, a: str, b: str, rows_a: pd.DataFrame, rows_b: pd.DataFrame, metric: str
) -> dict[str, object] | None:
    """One row of ``tests.csv`` for explanations of several students each, paired by seed and by image.

    Args:
        question: what the comparison answers; column ``question``.
        a: column ``a``, such as a method or a student.
        b: column ``b``.
        rows_a: rows of one metric for a, as of :func:`long_rows`, with a column ``seed``. Only images on which every
            seed of both has the metric count.
        rows_b: the same for b.
        metric: its name, which says whether lower is better.

    Returns:
        what :func:`kdnb.evaluation.compare_over_seeds` says, with ``metric`` and ``better``; ``None`` where fewer than
        two such images are left.
    """
    both = pd.concat([rows_a.assign(side="a"), rows_b.assign(side="b")])
    wide = both.pivot_table(index=["image_id", "group"], columns=["side", "seed"], values="value").dropna()
    if len(wide) < 2 or wide.columns.get_level_values("side").nunique() < 2:
        return None
    groups = wide.index.get_level_values("group").to_numpy()
    values_a, values_b = (wide[side].to_numpy().T for side in ("a", "b"))
    row = compare_over_seeds(question, a, b, values_a, values_b, groups)
    better = row["difference"] * (-1 if metric in LOWER_IS_BETTER else 1)
    return row | {"metric": metric, "better": a if better > 0 else b if better < 0 else "equal"}


def _comparison(wide: pd.DataFrame, a: str, b: str, metric: str, samples: int) -> dict[str, object]:
    """One row of :func:`paired` from a table of a row an image and a column a method."""
    change = (wide[a] - wide[b]).dropna()
    values, groups = change.to_numpy(), change.index.get_level_values("group").to_numpy()
    mean, lo, hi = bootstrap_mean(
        values, groups, samples, bounds=None if metric.startswith(WITHOUT_BOUNDS) else (-1.0, 1.0)
    )
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    varies = spread > 1e-12
    group_means = change.groupby("group").mean()
    sign = -mean if metric in LOWER_IS_BETTER else mean
    return {
        "a": a, "b": b, "metric": metric, "difference": mean, "lo": lo, "hi": hi,
        "p": t_test(mean, *clustered_variance(values, groups)) if varies else float("nan"),
        "p_holm": float("nan"),
        "n": len(values),
        "p_wilcoxon": float(wilcoxon(group_means).pvalue) if varies and group_means.any() else float("nan"),
        "cohens_d": mean / spread if varies else float("nan"),
        "better": a if sign > 0 else b if sign < 0 else "equal" if len(values) else "undefined",
    }  # fmt: skip
