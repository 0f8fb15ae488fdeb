"""From maps to the tables of the study: one row an image, method and metric; summaries with intervals; paired comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon
from torch import Tensor, nn

from kdnb.datasets import ImageSet, to_tensor
from kdnb.evaluation import bootstrap_mean, clustered_variance, compare_over_seeds, holm, t_test
from kdnb.explain import Method
from kdnb.fidelity.judge import f_fidelity
from kdnb.fidelity.localise import localisation
from kdnb.fidelity.perturb import (
    deletion_insertion,
    drop_increase,
    infidelity,
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
# One metric of each family, +1 where more is better: kept, deleted, and removed with what the neighbours suggest. These decide what is said
# about faithfulness.
FAMILIES = {"insertion_blur": 1, "deletion_blur": -1, "road_least_first": 1}
SIDE_BY_SIDE_SHARE = 0.1  # of the area, as in agreement_10
WITHOUT_BOUNDS = (
    "infidelity",
    "sensitivity_max",
    "mass_ratio",
    "ffid_plus",
    "ffid_minus",
)  # so named metrics; others are from 0 to 1
LOW_FIDELITY = 0.85  # the paper's line below which a class calls for the weighted average


@dataclass(frozen=True)
class Sample:
    """The images on which explanations are judged.

    Attributes:
        images: ``(N, 3, H, W)`` float32 in [0, 1]. targets: ``(N,)``, the classes the model predicts.
        ids, classes, groups: ``(N,)`` str; the classes are the true ones, by name.
        correct: ``(N,)`` bool, whether the prediction is right. masks: ``(N, H, W)`` bool or ``None``.
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
        at = torch.as_tensor(kept, device=self.images.device)
        masks = None if self.masks is None else self.masks[kept]
        arrays = (self.ids[kept], self.classes[kept], self.groups[kept], self.correct[kept])
        return Sample(self.images[at], self.targets[at], *arrays, masks)

    def marked(self) -> str:
        """On how many of the images truth could be measured, in words: how many have a mask with a lesion, and how many of these are right.

        A set may have masks of which none belongs to these images.
        """
        have = np.zeros(len(self), bool) if self.masks is None else self.masks.any(axis=(1, 2))
        return f"{have.sum()} of these {len(self)} images have a mask with a lesion, {(have & self.correct).sum()} of them read rightly"


def draw_sample(model: nn.Module, data: ImageSet, per_class: int, split: str = "test", seed: int = 0) -> Sample:
    """``per_class`` images of each class of one split (all, where there are fewer), drawn from ``seed``, with the model's predictions."""
    positions = np.random.default_rng(seed).permutation(data.index(split))
    nth = pd.Series(data.labels[positions]).groupby(data.labels[positions]).cumcount().to_numpy()
    chosen = np.sort(positions[nth < per_class])
    images = to_tensor(data.images[chosen]).to(next(model.parameters()).device)
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
        families: only what :data:`FAMILIES` needs, in half the time.
    """
    tables = []
    for method, of_method in progress(maps.items(), f"fidelity on the {model_name}", total=len(maps)):
        parts = []
        for i in range(0, len(sample), batch_size):
            cut = slice(i, i + batch_size)
            images, targets, some = sample.images[cut], sample.targets[cut], of_method[cut]
            rank = relevance_rank(some)
            if families:
                values = deletion_insertion(model, images, targets, rank, ["blur"])
                values["road_least_first"] = removed(model, images, targets, 1 - rank)
            else:
                values = deletion_insertion(model, images, targets, rank) | road(model, images, targets, rank)
                values |= drop_increase(model, images, targets, some)
            parts.append(pd.DataFrame({metric: value.cpu().numpy() for metric, value in values.items()}))
        tables.append(long_rows(sample, model_name, method, pd.concat(parts, ignore_index=True)))
    return pd.concat(tables, ignore_index=True)


def over_draws(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of a control that was drawn several times: for each image and metric the mean of the values, not the value of a mean map."""
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
        drawn: maps of the controls that were drawn several times; they score the mean over the draws (:func:`over_draws`).
    """
    changes = square_changes(model, sample.images, sample.targets)

    def judged(name: str, of_method: Tensor) -> pd.DataFrame:
        return long_rows(
            sample, model_name, name, pd.DataFrame({"infidelity": infidelity(of_method, *changes).cpu().numpy()})
        )

    tables = [judged(name, of_method) for name, of_method in maps.items()]
    if drawn:
        tables.append(over_draws([judged(name, of_method) for one in drawn for name, of_method in one.items()]))
    for name, method in progress(chosen.items(), f"sensitivity on the {model_name}", total=len(chosen)):
        found = sensitivity_max(model, sample.images, sample.targets, method).cpu().numpy()
        tables.append(long_rows(sample, model_name, name, pd.DataFrame({"sensitivity_max": found})))
    return pd.concat(tables, ignore_index=True)


def judged_rows(judge: nn.Module, model_name: str, sample: Sample, maps: dict[str, Tensor]) -> pd.DataFrame:
    """F-Fidelity of every map by its judge (:func:`kdnb.fidelity.holed_judge`): rows of ``fidelity.csv``."""
    tables = []
    for method, of_method in progress(maps.items(), "F-Fidelity", total=len(maps)):
        values = f_fidelity(judge, sample.images, sample.targets, relevance_rank(of_method))
        values = pd.DataFrame({metric: value.cpu().numpy() for metric, value in values.items()})
        tables.append(long_rows(sample, model_name, method, values))
    return pd.concat(tables, ignore_index=True)


def localisation_rows(
    model_name: str, sample: Sample, maps: dict[str, Tensor], masks: np.ndarray | None = None, what: str = ""
) -> pd.DataFrame:
    """The four mask metrics of every map: rows of ``localisation.csv``; ``masks`` other than the sample's get names ending in ``what``."""
    masks = sample.masks if masks is None else masks
    tables = []
    for method, of_method in maps.items():
        values = localisation(of_method.cpu().numpy(), relevance_rank(of_method).cpu().numpy(), masks)
        tables.append(long_rows(sample, model_name, method, pd.DataFrame(values).add_suffix(what)))
    return pd.concat(tables, ignore_index=True)


def long_rows(sample: Sample, model_name: str, method: str, values: pd.DataFrame) -> pd.DataFrame:
    """One row an image and metric from one column a metric, with the columns of ``fidelity.csv`` and ``localisation.csv``."""
    keys = {"image_id": sample.ids, "class": sample.classes, "group": sample.groups, "correct": sample.correct}
    wide = values.assign(**keys, model=model_name, method=method)
    long = wide.melt(id_vars=[*keys, "model", "method"], var_name="metric", value_name="value")
    return long[["image_id", "class", "model", "method", "metric", "value", "group", "correct"]]


def side_by_side(model: nn.Module, sample: Sample, maps: dict[str, Tensor]) -> pd.DataFrame:
    """Two methods on the same images, a row an image.

    Args:
        maps: two names with their ``(N, H, W)`` maps.

    Returns:
        image_id, class, group and correct; ``spearman``, the rank correlation of the two maps (NaN where one is constant);
        ``overlap``, ``|A and B| / |A or B|`` of the 10% of the area that each ranks highest (chance: 0.05); for each name
        ``<name>_keeps``, 1 if the prediction stays when only that area is kept over the blurred image (``agreement_10``); and
        ``nothing_keeps``, 1 if the blurred image alone has that prediction, so that every map keeps it (``agreement_00``).
    """
    pair = list(maps.values())
    ranks = [relevance_rank(of_method) for of_method in pair]
    a, b = (rank < SIDE_BY_SIDE_SHARE for rank in ranks)
    overlap = (a & b).sum(dim=(1, 2)) / (a | b).sum(dim=(1, 2))
    judged = [deletion_insertion(model, sample.images, sample.targets, rank) for rank in ranks]
    found = {"image_id": sample.ids, "class": sample.classes, "group": sample.groups, "correct": sample.correct}
    found |= {"spearman": spearman(*(of_method.cpu().numpy() for of_method in pair)), "overlap": overlap.cpu().numpy()}
    found |= {f"{name}_keeps": values["agreement_10"].cpu().numpy() for name, values in zip(maps, judged, strict=True)}
    return pd.DataFrame(found | {"nothing_keeps": judged[0]["agreement_00"].cpu().numpy()})


def class_row(name: str) -> str:
    """What a class is called where ``all`` stands for all of them: its name, and ``all (class)`` for a class called so."""
    return f"{name} (class)" if name == "all" else name


def summary(rows: pd.DataFrame, samples: int = 1000) -> pd.DataFrame:
    """Mean and 95% cluster-bootstrap interval by class and over all (class ``all``): ``fidelity_summary.csv``.

    Column ``n`` counts the defined values, ``undefined`` those left out.
    """
    found = []
    both = pd.concat([rows.assign(**{"class": rows["class"].map(class_row)}), rows.assign(**{"class": "all"})])
    for (class_name, model, method, metric), part in both.groupby(["class", "model", "method", "metric"], sort=False):
        bounds = None if metric.startswith(WITHOUT_BOUNDS) else (0.0, 1.0)
        mean, lo, hi = bootstrap_mean(part["value"].to_numpy(), part["group"].to_numpy(), samples, bounds=bounds)
        defined = int(part["value"].notna().sum())
        found.append((class_name, model, method, metric, mean, lo, hi, defined, len(part) - defined))
    return pd.DataFrame(found, columns=["class", "model", "method", "metric", "mean", "lo", "hi", "n", "undefined"])


def order_agreement(means: pd.DataFrame) -> pd.DataFrame:
    """How alike do metrics order the methods? Kendall's tau of each pair of metrics: ``(metrics, metrics)``, 1 on the diagonal.

    Args:
        means: a row a method, a column a metric; turned round where lower is better. A pair counts the methods that have both.
    """
    turned = means * [-1 if metric in LOWER_IS_BETTER else 1 for metric in means]
    return turned.corr(method="kendall", min_periods=3)


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

    ``difference`` is the mean of a minus b with its cluster-bootstrap interval; ``p`` a paired t-test that counts groups, not images
    (:func:`kdnb.evaluation.clustered_variance`), ``p_wilcoxon`` the signed-rank test on the groups' means, ``cohens_d`` the mean
    difference over its standard deviation. ``better`` says which method the sign favours, given which way the metric points, or
    ``undefined`` where no image has the metric.
    """
    found = []
    groups = [("all", rows), *rows.groupby(rows["class"].map(class_row), sort=False)] if by_class else [("all", rows)]
    for class_name, part in groups:
        for metric in metrics:
            wide = part[part["metric"] == metric].pivot(index=["image_id", "group"], columns="method", values="value")
            for a, b in pairs:
                if a in wide and b in wide:
                    found.append(
                        {"question": question, **_comparison(wide, a, b, metric, samples), "class": class_name}
                    )
    table = pd.DataFrame(found)
    table["p_holm"], table["p_wilcoxon_holm"] = holm(table["p"]), holm(table["p_wilcoxon"])
    return table


def paired_over_seeds(
    question: str, a: str, b: str, rows_a: pd.DataFrame, rows_b: pd.DataFrame, metric: str
) -> dict[str, object] | None:
    """One row of ``tests.csv`` for explanations of several students each (:func:`kdnb.evaluation.compare_over_seeds`), with ``better``.

    Args:
        rows_a, rows_b: rows of one metric, with a column ``seed``. Only images on which every seed of both has the metric count.

    Returns:
        ``None`` where fewer than two such images are left.
    """
    both = pd.concat([rows_a.assign(side="a"), rows_b.assign(side="b")])
    wide = both.pivot_table(index=["image_id", "group"], columns=["side", "seed"], values="value").dropna()
    if len(wide) < 2 or wide.columns.get_level_values("side").nunique() < 2:
        return None
    groups = wide.index.get_level_values("group").to_numpy()
    row = compare_over_seeds(question, a, b, *(wide[side].to_numpy().T for side in ("a", "b")), groups)
    better = row["difference"] * (-1 if metric in LOWER_IS_BETTER else 1)
    return row | {"metric": metric, "better": a if better > 0 else b if better < 0 else "equal"}


def _comparison(wide: pd.DataFrame, a: str, b: str, metric: str, samples: int) -> dict[str, object]:
    change = (wide[a] - wide[b]).dropna()
    values, groups = change.to_numpy(), change.index.get_level_values("group").to_numpy()
    mean, lo, hi = bootstrap_mean(
        values, groups, samples, bounds=None if metric.startswith(WITHOUT_BOUNDS) else (-1.0, 1.0)
    )
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    varies = spread > 1e-12
    of_groups = change.groupby("group").mean()
    sign = -mean if metric in LOWER_IS_BETTER else mean
    return {
        "a": a, "b": b, "metric": metric, "difference": mean, "lo": lo, "hi": hi,
        "p": t_test(mean, *clustered_variance(values, groups)) if varies else float("nan"),
        "p_holm": float("nan"),
        "n": len(values),
        "p_wilcoxon": float(wilcoxon(of_groups).pvalue) if varies and of_groups.any() else float("nan"),
        "cohens_d": mean / spread if varies else float("nan"),
        "better": a if sign > 0 else b if sign < 0 else "equal" if len(values) else "undefined",
    }  # fmt: skip
