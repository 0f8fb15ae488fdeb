"""How good a classifier is and how sure we are: intervals over groups, paired comparisons, calibration, signatures.

Intervals are 95% percentile bootstraps that resample whole groups (persons, subjects, sets of duplicates), because
images of one group are not independent. Of few groups they are wider than resampling says (:func:`levels`,
:func:`unseen`), of one there are none.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax, xlogy
from scipy.stats import beta, binomtest, norm
from scipy.stats import t as t_distribution
from sklearn.metrics import roc_auc_score
from statsmodels.stats.meta_analysis import combine_effects
from torch import Tensor, nn

from kdnb.device import device_of, put, to_float
from kdnb.networks import logits_of

ECE_BINS = 15
LEVELS = (2.5, 97.5)
FEW = 30  # groups: fewer know their spread badly
FEWEST = 6  # groups: of fewer not even the range of the values is a 95% interval
FEW_DIFFER = 5  # groups: where no more of many differ from the rest, their number is what is uncertain
NORMAL = float(norm.ppf(0.975))  # 95% of a normal distribution lie within so many standard deviations


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray | Tensor, batch_size: int = 64) -> np.ndarray:
    """Logits of uint8 images; the model's mode is put back afterwards.

    Args:
        model: any classifier.
        images: ``(N, H, W, 3)`` uint8. Images that are asked about every epoch may be a tensor on the device already
            (:func:`kdnb.device.resident`).
        batch_size: images at once.

    Returns:
        ``(N, C)`` float32.
    """
    training = model.training
    model.eval()
    device = device_of(model)
    try:
        cuts = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        batches = (cut.to(device) if isinstance(cut, Tensor) else put(cut, device) for cut in cuts)
        logits = [logits_of(model, to_float(batch.permute(0, 3, 1, 2))).float() for batch in batches]
    finally:
        model.train(training)
    return torch.cat(logits).cpu().numpy()


# -- bootstrap ---------------------------------------------------------------------------------------------------------


def _codes(groups: np.ndarray | None, n: int) -> tuple[np.ndarray, int]:
    """Group numbers 0..G-1 of every sample, and G; without groups each sample is its own."""
    if groups is None:
        return np.arange(n), n
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    return codes, len(names)


# Thousands of means over the same images are resampled alike, and drawing takes most of the time.
@lru_cache(maxsize=8)
def _resamples(group_count: int, samples: int, seed: int) -> np.ndarray:
    """How often each group is drawn in each resample, ``(samples, G)`` float, not to be written to."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(group_count, np.full(group_count, 1 / group_count), size=samples).astype(float)
    drawn.flags.writeable = False
    return drawn


@lru_cache(maxsize=8)
def _resamples_within(strata: tuple[int, ...], samples: int, seed: int) -> np.ndarray:
    """:func:`_resamples` where groups are drawn within strata, so that no resample lacks one.

    Of the G of a stratum G - 1 are drawn and count for G (Rao and Wu 1988): drawing all would show a spread that is too
    small by (G - 1) / G. A stratum of one group is in every resample once; it shows none.

    Args:
        strata: the stratum of each group.
        samples: how many resamples.
        seed: of the drawing.

    Returns:
        How often each group counts, ``(samples, G)`` float, not to be written to.
    """
    rng, numbers = np.random.default_rng(seed), np.array(strata)
    weights = np.empty((samples, len(numbers)))
    for stratum in np.unique(numbers):
        members = np.flatnonzero(numbers == stratum)
        drawn = max(len(members) - 1, 1)
        weights[:, members] = rng.multinomial(drawn, np.full(len(members), 1 / len(members)), size=samples) * (
            len(members) / drawn
        )
    weights.flags.writeable = False
    return weights


def _resampled_means(values: np.ndarray, groups: np.ndarray | None, samples: int, seed: int) -> np.ndarray:
    codes, count = _codes(groups, len(values))
    drawn = _resamples(count, samples, seed)
    return drawn @ np.bincount(codes, values, count) / (drawn @ np.bincount(codes, minlength=count))


def levels(groups: int) -> tuple[float, float]:
    """The percentiles of resampled values that end a 95% interval.

    Resampling G groups takes their spread for known, and for ``sqrt((G - 1) / G)`` of what it is. Of fewer than 30 the
    percentiles are therefore Hesterberg's (2015), ``Phi(-t sqrt(G / (G - 1)))`` with Student's t of G - 1 degrees of
    freedom: .6% and not 2.5% of 8.

    Args:
        groups: how many, at least two.

    Returns:
        The lower and the upper, from 0 to 100.

    Example:
        >>> levels(30)
        (2.5, 97.5)
        >>> [round(level, 1) for level in levels(8)]
        [0.6, 99.4]
    """
    if groups >= FEW:
        return LEVELS
    tail = 100 * float(norm.cdf(-t_distribution.ppf(0.975, groups - 1) * np.sqrt(groups / (groups - 1))))
    return tail, 100 - tail


def unseen(groups: int) -> float:
    """The largest share of all groups that may be otherwise where those drawn are all alike, with 2.5% error.

    Args:
        groups: how many were drawn.

    Returns:
        The share, from 0 to 1 (Hanley 1983).

    Example:
        >>> round(unseen(64), 3)
        0.056
    """
    return 1 - 0.025 ** (1 / groups)


def ties(values: np.ndarray, groups: np.ndarray | None, bounds: tuple[float, float]) -> tuple[float, float]:
    """How far the ends of an interval must at least lie from the mean where nearly all groups are alike.

    Of 64 images of which one differs, the spread is that one's: as many as 12% of such draws would exclude the truth.
    How many of all groups differ is binomial, so the ends lie as far as Clopper and Pearson's, each further one at the
    bound; with none this is :func:`unseen`.

    Args:
        values: ``(N,)``.
        groups: ``(N,)``; without them each value is its own.
        bounds: what a value can be at least and at most.

    Returns:
        How far below and above the mean; 0 of fewer than 30 groups (:func:`levels`) and where more than five differ.
    """
    codes, count = _codes(groups, len(values))
    means = np.bincount(codes, values, count) / np.bincount(codes, minlength=count)
    kinds, many = np.unique(means.round(9), return_counts=True)
    differ = count - many.max()
    if count < FEW or differ > FEW_DIFFER:
        return 0.0, 0.0
    more, alike = float(beta.ppf(0.975, differ + 1, count - differ)) - differ / count, float(kinds[many.argmax()])
    return more * (alike - bounds[0]), more * (bounds[1] - alike)


def ends(resampled: np.ndarray, groups: int, bounds: tuple[float, float] | None = None) -> tuple[float, float]:
    """The 95% interval that resampled values say.

    No percentile goes beyond the values that were drawn, and of G symmetric ones the outermost hold the middle in ``1 -
    2**(1 - G)`` of all draws: of fewer than :data:`FEWEST` in less than 95%. Of so few Student's interval is taken.

    Args:
        resampled: ``(S,)``.
        groups: how many were resampled.
        bounds: what the values can be at least and at most; where resampling sees no spread, so may the share
            :func:`unseen` be.

    Returns:
        Lower and upper end; NaN of one group, which says nothing of others.
    """
    if groups < 2:
        return float("nan"), float("nan")
    if bounds and np.ptp(resampled) < 1e-12:
        share, alike = unseen(groups), float(resampled[0])
        return (1 - share) * alike + share * bounds[0], (1 - share) * alike + share * bounds[1]
    if groups < FEWEST:
        half = t_distribution.ppf(0.975, groups - 1) * resampled.std() * np.sqrt(groups / (groups - 1))
        lo, hi = float(resampled.mean() - half), float(resampled.mean() + half)
        return (max(lo, bounds[0]), min(hi, bounds[1])) if bounds else (lo, hi)
    lo, hi = (float(end) for end in np.percentile(resampled, levels(groups)))
    return lo, hi


def bootstrap_mean(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> tuple[float, float, float]:
    """Mean of values and its 95% interval (:func:`ends`), resampling groups.

    Args:
        values: ``(N,)``; NaN is left out.
        groups: ``(N,)``; without them each value is its own.
        samples: how many resamples.
        seed: of the resampling.
        bounds: what a value can be at least and at most, if that is known.

    Returns:
        ``(mean, lo, hi)``, each NaN where no value is left.

    Example:
        >>> bootstrap_mean(np.ones(64), bounds=(0, 1))[0]
        1.0
    """
    values = np.asarray(values, dtype=float)
    kept = ~np.isnan(values)
    if not kept.any():
        return float("nan"), float("nan"), float("nan")
    values, groups = values[kept], None if groups is None else np.asarray(groups)[kept]
    mean = float(values.mean())
    lo, hi = ends(_resampled_means(values, groups, samples, seed), _codes(groups, len(values))[1], bounds)
    if bounds:
        below, above = ties(values, groups, bounds)
        lo, hi = min(lo, max(bounds[0], mean - below)), max(hi, min(bounds[1], mean + above))
    return mean, lo, hi


def known_and_new(
    values: np.ndarray,
    groups: np.ndarray,
    training_groups: np.ndarray,
    samples: int = 1000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> pd.DataFrame:
    """Means over test images whose group is in training (``known``), over the others (``new``), and the difference.

    Args:
        values: ``(N,)``, of the test images.
        groups: ``(N,)``, the test images' groups.
        training_groups: the training images' groups.
        samples: how many resamples.
        seed: of the resampling.
        bounds: what a value can be at least and at most: 0 and 1 of hits, -1 and 1 of gains.

    Returns:
        Rows ``known``, ``new`` and ``new minus known``, as far as there are such images: ``part``, ``n``, ``groups``,
        ``mean`` and the 95% interval ``lo``, ``hi`` of a bootstrap over groups. The parts share no group, so they are
        resampled independently.
    """
    known = np.isin(groups, training_groups)
    rows: list[dict[str, Any]] = []
    resampled = []
    alike = False
    for number, (part, mask) in enumerate({"known": known, "new": ~known}.items()):
        if mask.any():
            of_part, groups_of_part = values[mask], groups[mask]
            mean, lo, hi = bootstrap_mean(of_part, groups_of_part, samples, seed + number, bounds)
            resampled.append(_resampled_means(of_part, groups_of_part, samples, seed + number))
            alike = alike or any(ties(of_part, groups_of_part, bounds))
            rows.append(_of_part(part, groups_of_part, mean, lo, hi))
    if len(rows) == 2:
        old, new = rows
        mean = new["mean"] - old["mean"]
        fewest = min(old["groups"], new["groups"])
        lo, hi = ends(resampled[1] - resampled[0], fewest, (bounds[0] - bounds[1], bounds[1] - bounds[0]))
        if alike:  # of differences, the ends of both parts squared and added (Newcombe 1998)
            lo = min(lo, mean - float(np.hypot(new["mean"] - new["lo"], old["hi"] - old["mean"])))
            hi = max(hi, mean + float(np.hypot(new["hi"] - new["mean"], old["mean"] - old["lo"])))
        rows.append(_of_part("new minus known", groups, mean, lo, hi))
    return pd.DataFrame(rows, columns=["part", "n", "groups", "mean", "lo", "hi"])


def _of_part(part: str, groups: np.ndarray, mean: float, lo: float, hi: float) -> dict[str, Any]:
    """A row of :func:`known_and_new`."""
    return {"part": part, "n": len(groups), "groups": len(np.unique(groups)), "mean": mean, "lo": lo, "hi": hi}


# -- classification ----------------------------------------------------------------------------------------------------


def f1_macro(confusion: np.ndarray) -> np.ndarray:
    """Macro F1 of confusion matrices, over the classes that occur in truth or prediction.

    Args:
        confusion: ``(..., C, C)``, rows true.

    Returns:
        ``(...)``.

    Example:
        >>> float(f1_macro(np.array([[3, 0, 0], [0, 2, 0], [0, 0, 0]])))
        1.0
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    present = confusion.sum(-1) + confusion.sum(-2)
    f1 = np.divide(2 * hits, present, out=np.zeros_like(present, dtype=float), where=present > 0)
    return f1.sum(-1) / np.maximum((present > 0).sum(-1), 1)


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur, of confusion matrices ``(..., C, C)``."""
    hits, totals = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1)
    recall = np.divide(hits, totals, out=np.zeros_like(totals, dtype=float), where=totals > 0)
    return recall.sum(-1) / np.maximum((totals > 0).sum(-1), 1)


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """ECE of the top class over equal-width confidence bins (Guo et al. 2017)."""
    table = reliability(labels, probabilities, bins)
    return float((table["n"] * (table["accuracy"] - table["confidence"]).abs()).sum() / table["n"].sum())


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> pd.DataFrame:
    """A row per non-empty confidence bin: confidence, accuracy, n."""
    confidence = probabilities.max(1)
    hits = probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    frame = pd.DataFrame({"bin": bin_of, "confidence": confidence, "accuracy": hits.astype(float)})
    return (
        frame.groupby("bin")
        .agg(confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), n=("accuracy", "size"))
        .reset_index()
    )


def reliability_of_equal_bins(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    bins: int = 10,
    samples: int = 1000,
) -> pd.DataFrame:
    """Accuracy against confidence in bins of equally many images, at least 30 each where there are as many.

    Bins of equal width leave most of them to a handful of images, whose accuracy is luck (Nguyen and O'Connor 2015).

    Args:
        labels: ``(N,)``.
        probabilities: ``(N, C)``.
        groups: ``(N,)``, resampled for the intervals.
        bins: how many, where there are images enough.
        samples: how many resamples.

    Returns:
        A row a bin: ``confidence``, ``accuracy`` with its 95% interval ``lo``, ``hi``, ``n``, and the ``least`` and
        ``most`` confidence.
    """
    confidence, hits = probabilities.max(1), (probabilities.argmax(1) == labels).astype(float)
    order = np.argsort(confidence, kind="stable")
    rows = []
    for members in np.array_split(order, max(1, min(bins, len(order) // FEW))):
        accuracy, lo, hi = bootstrap_mean(
            hits[members], None if groups is None else groups[members], samples, bounds=(0.0, 1.0)
        )
        inside = confidence[members]
        rows.append((inside.mean(), accuracy, lo, hi, len(members), inside.min(), inside.max()))
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "lo", "hi", "n", "least", "most"])


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared distance between the probabilities and the one-hot label, from 0 to 2 (Brier 1950)."""
    return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1).mean())


def auc_one_vs_rest(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class against all others, ``(C,)``; NaN for one that has no image or all."""
    areas = np.full(probabilities.shape[1], np.nan)
    for number in range(probabilities.shape[1]):
        if 0 < (labels == number).sum() < len(labels):
            areas[number] = roc_auc_score(labels == number, probabilities[:, number])
    return areas


def auc_macro(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The area under the ROC curve: of two classes the usual one, of more the mean of one against the rest.

    Args:
        labels: ``(N,)``.
        probabilities: ``(N, C)``.

    Returns:
        The mean over the classes that occur; NaN where one class has all images.
    """
    areas = auc_one_vs_rest(labels, probabilities)
    return float(np.nanmean(areas)) if np.isfinite(areas).any() else float("nan")


def classification_scores(
    labels: np.ndarray, logits: np.ndarray, groups: np.ndarray | None = None, *, samples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """The columns of ``classification.csv``: accuracy and macro F1 with intervals, balanced accuracy, ECE, Brier, AUC.

    For accuracy all groups are resampled (:func:`bootstrap_mean`), for macro F1 those of each class among themselves (a
    group belongs to the class of most of its images): a resample without a class, as every eighth is of one that has
    two groups, would have the mean F1 of the others.

    Args:
        labels: ``(N,)``.
        logits: ``(N, C)``.
        groups: ``(N,)``; without them each image is its own.
        samples: how many resamples.
        seed: of the resampling.

    Returns:
        Column -> value; ``accuracy`` and ``f1_macro`` have ``_lo`` and ``_hi`` besides.
    """
    classes = logits.shape[1]
    probabilities = np.exp(log_softmax(logits.astype(float), axis=1))
    cells = np.eye(classes * classes)[labels * classes + logits.argmax(1)]
    codes, count = _codes(groups, len(labels))
    by_group = np.zeros((count, classes * classes))
    np.add.at(by_group, codes, cells)
    class_of_group = by_group.reshape(count, classes, classes).sum(axis=2).argmax(axis=1)
    strata = tuple(class_of_group.tolist())
    within = (_resamples_within(strata, samples, seed) @ by_group).reshape(-1, classes, classes)
    confusion = by_group.sum(0).reshape(classes, classes)
    hits = (logits.argmax(1) == labels).astype(float)
    accuracy = bootstrap_mean(hits, groups, samples, seed, (0.0, 1.0))
    f1 = float(f1_macro(confusion)), *ends(f1_macro(within), count, (0.0, 1.0))
    scores: dict[str, float] = {"n": len(labels)}
    for name, interval in (("accuracy", accuracy), ("f1_macro", f1)):
        scores |= dict(zip((name, f"{name}_lo", f"{name}_hi"), interval, strict=True))
    scores["balanced_accuracy"] = float(balanced_accuracy(confusion))
    scores["ece"] = expected_calibration_error(labels, probabilities)
    scores["brier"] = brier_score(labels, probabilities)
    scores["auc"] = auc_macro(labels, probabilities)
    return scores


def per_class_scores(labels: np.ndarray, logits: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Precision, recall (sensitivity), specificity, F1, n and AUC of each class: the columns of ``per_class.csv``."""
    count = len(classes)
    confusion = np.bincount(labels * count + logits.argmax(1), minlength=count * count).reshape(count, count)
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.divide(numerator, denominator, out=np.full(count, np.nan), where=denominator > 0)

    others = len(labels) - true
    return pd.DataFrame(
        {
            "class": list(classes),
            "precision": ratio(hits, predicted),
            "recall": ratio(hits, true),
            "specificity": ratio(others - (predicted - hits), others),
            "f1": ratio(2 * hits, true + predicted),
            "n": true,
            "auc": auc_one_vs_rest(labels, np.exp(log_softmax(logits.astype(float), axis=1))),
        }
    )


def expected_hits(logits: np.ndarray, labels: np.ndarray, posterior: np.ndarray | None = None) -> np.ndarray:
    """How right each answer is.

    A drawn label is one throw of a dice whose sides the posterior knows: the expected score is free of that throw.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)``.
        posterior: ``(N, C)``, the true one, where it is known.

    Returns:
        ``(N,)``: the true probability of the predicted class or, where nobody knows it, 0 or 1 by the label.

    Example:
        >>> expected_hits(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0])).tolist()
        [1.0, 0.0]
    """
    answers = logits.argmax(axis=1)
    return (answers == labels).astype(float) if posterior is None else posterior[np.arange(len(answers)), answers]


def expected_accuracy(logits: np.ndarray, posterior: np.ndarray) -> float:
    """Mean probability of being right, ``mean p(y_hat | x)``; at most the Bayes accuracy, ``mean max_c p(c | x)``."""
    return float(expected_hits(logits, np.empty(0), posterior).mean())


def divergence(logits: np.ndarray, posterior: np.ndarray) -> float:
    """Mean ``KL(p || softmax(z))`` of the true posterior from the model's probabilities, in nats; 0 for the truth."""
    return float(
        (xlogy(posterior, posterior) - posterior * log_softmax(logits.astype(float), axis=1)).sum(axis=1).mean()
    )


def luck(logits: np.ndarray, labels: np.ndarray, posterior: np.ndarray) -> np.ndarray:
    """Hit minus its expectation, ``(N,)``: zero on average for who does not know the drawn labels, else more."""
    return expected_hits(logits, labels) - expected_hits(logits, labels, posterior)


def equivalent(lo: float, hi: float, margin: float) -> bool:
    """Whether an effect beyond a margin is excluded: its 95% interval lies within.

    Args:
        lo: the lower end of the interval.
        hi: the upper end.
        margin: the largest effect that does not matter, in the same unit.

    Returns:
        What Schuirmann's two one-sided tests say, at 2.5% each.
    """
    return -margin <= lo and hi <= margin


def power(sd_of_seeds: float, sd_of_groups: float, groups: int, seeds: int, *, effect: float) -> float:
    """Probability that :func:`compare_over_seeds` finds ``effect`` (two-sided 5%), from 20,000 simulated experiments.

    The difference of S seeds on G groups of images is normal with variance ``sd_of_seeds^2 / S + sd_of_groups^2 / G``;
    both parts are estimated, and the ratio is judged by Student's t with Satterthwaite's degrees of freedom.

    Args:
        sd_of_seeds: standard deviation over seeds of the difference on all images.
        sd_of_groups: that of a group's mean difference.
        groups: how many groups of images, G.
        seeds: how many seeds, S.
        effect: the true difference, in the same unit.

    Returns:
        The probability; NaN where nothing varied, or of fewer than two groups or seeds.
    """
    if groups < 2 or seeds < 2:  # nothing is known of luck
        return float("nan")
    rng = np.random.default_rng(20250215)
    of_seeds, of_groups = sd_of_seeds**2 / seeds, sd_of_groups**2 / groups
    if of_seeds + of_groups == 0:
        return float("nan")
    mean = rng.normal(effect, np.sqrt(of_seeds + of_groups), 20000)
    estimates = (
        of_seeds * rng.chisquare(seeds - 1, 20000) / (seeds - 1),
        of_groups * rng.chisquare(groups - 1, 20000) / (groups - 1),
    )
    variance = sum(estimates)
    freedom = variance**2 / (estimates[0] ** 2 / (seeds - 1) + estimates[1] ** 2 / (groups - 1))
    return float((np.abs(mean) > t_distribution.ppf(0.975, freedom) * np.sqrt(variance)).mean())


# -- comparisons -------------------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p values, along the last axis.

    Not statsmodels' ``multipletests``, which takes one family a call and collects garbage in each; the tests compare
    the two.

    Args:
        p_values: ``(..., N)``, a family a row; NaN does not count as a test.

    Returns:
        ``(..., N)``; NaN stays NaN.

    Example:
        >>> holm([0.01, 0.04, float("nan")]).tolist()
        [0.02, 0.04, nan]
    """
    p = np.asarray(p_values, dtype=float)
    order = p.argsort(axis=-1)  # NaN last
    left = (~np.isnan(p)).sum(axis=-1, keepdims=True) - np.arange(p.shape[-1])
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * left, axis=-1)
    return np.take_along_axis(np.minimum(stepped, 1), order.argsort(axis=-1), axis=-1)


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact two-sided McNemar test on two models' hits ``(N,)`` bool for the same images; 1 where they never differ."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_a, only_a + only_b).pvalue)


def sign_flip(right_a: np.ndarray, right_b: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Exact two-sided test on two models' hits for the same images that flips whole groups.

    Where the models do not differ, the difference of each group's hits is as likely to have the other sign, whatever
    the other groups'. With one image a group it is McNemar's.

    Args:
        right_a: hits ``(N,)`` bool of the one model.
        right_b: those of the other.
        groups: ``(N,)``; without them each image is its own.

    Returns:
        The p value; 1 where no group differs.
    """
    codes, count = _codes(groups, len(right_a))
    sums = np.bincount(codes, right_a.astype(float) - right_b.astype(float), count).round().astype(int)
    chances = np.ones(1)  # of each sum of signed differences, from -total to +total
    for size in np.abs(sums[sums != 0]):
        chances = np.convolve(chances, np.r_[0.5, np.zeros(2 * size - 1), 0.5])
    total = len(chances) // 2
    return float(min(1.0, chances[np.abs(np.arange(-total, total + 1)) >= abs(sums.sum())].sum()))


def clustered_variance(values: np.ndarray, groups: np.ndarray | None) -> tuple[float, int]:
    """Variance of the mean of values whose groups are independent.

    With ``d(g)`` the mean of group g, ``w(g)`` its share of the values and d the mean of all, it is
    ``G / (G - 1) sum (w(g) (d(g) - d))^2``: the linearised variance of a ratio. For groups of one size it is
    ``var d(g) / G``.

    Args:
        values: ``(N,)``.
        groups: ``(N,)``; without them each value is its own.

    Returns:
        The variance and its degrees of freedom, G - 1; one group alone says nothing: ``(0, 0)``.
    """
    codes, count = _codes(groups, len(values))
    if count < 2:
        return 0.0, 0
    residuals = np.bincount(codes, values - values.mean(), count) / len(values)
    return float(count / (count - 1) * (residuals**2).sum()), count - 1


def t_test(mean: float, variance: float, freedom: float) -> float:
    """Two-sided p of Student's t for a mean of known degrees of freedom; NaN where nothing varies."""
    return float(2 * t_distribution.sf(abs(mean) / np.sqrt(variance), freedom)) if variance > 0 else float("nan")


def compare(
    question: str,
    a: str,
    b: str,
    right_a: np.ndarray,
    right_b: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    samples: int = 1000,
) -> dict[str, Any]:
    """One row of ``tests.csv``: accuracy of one model minus that of another on the same images.

    The interval is a paired bootstrap over groups and the test is exact over groups (:func:`sign_flip`); Holm comes
    later. ``p_images_only`` is McNemar's test, which takes all images for independent.

    Args:
        question: what is asked: rows of one question are one family of tests.
        a: name of the one model.
        b: name of the other.
        right_a: hits ``(N,)`` bool of the one.
        right_b: those of the other.
        groups: ``(N,)``; without them each image is its own.
        samples: how many resamples.

    Returns:
        Column -> value.
    """
    difference, lo, hi = bootstrap_mean(
        right_a.astype(float) - right_b.astype(float), groups, samples, bounds=(-1.0, 1.0)
    )
    row = {"question": question, "a": a, "b": b, "metric": "accuracy", "difference": difference, "lo": lo, "hi": hi}
    p, by_image = sign_flip(right_a, right_b, groups), mcnemar(right_a, right_b)
    return row | {"p": p, "p_holm": float("nan"), "n": len(right_a), "p_images_only": by_image}


def compare_over_seeds(
    question: str, a: str, b: str, right_a: np.ndarray, right_b: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    """One row of ``tests.csv`` for two losses trained with several seeds, paired by seed and by test image.

    The luck of training and the luck of the test images both count: with d(s) the mean difference of seed s, d that of
    all images and V their variance over groups (:func:`clustered_variance`), ``se^2 = var d(s) / S + V``, and t = d /
    se has Satterthwaite's degrees of freedom. Where nothing varies the interval is that of :func:`unseen` groups.
    ``p_images_only`` leaves the seeds out: what a test would say that takes these few trainings for all there could be.

    Args:
        question: what is asked: rows of one question are one family of tests.
        a: name of the one loss.
        b: name of the other.
        right_a: hits ``(S, N)`` bool, other values from 0 to 1 or gains from -1 to 1, a row for each seed.
        right_b: the same of the other loss.
        groups: ``(N,)``.

    Returns:
        Column -> value.
    """
    gap = right_a.astype(float) - right_b.astype(float)
    difference, of_images = float(gap.mean()), clustered_variance(gap.mean(0), groups)
    # Each source of luck: the variance that it adds, and how many degrees of freedom that is known with.
    sources = [of_images] + ([(gap.mean(1).var(ddof=1) / len(gap), len(gap) - 1)] if len(gap) > 1 else [])
    variance = sum(source for source, _ in sources)
    most = 1.0 if min(right_a.min(), right_b.min()) >= 0 else 2.0
    share = unseen(_codes(groups, gap.shape[1])[1])
    lo, hi = ((1 - share) * difference + share * bound for bound in (-most, most))
    row = {"question": question, "a": a, "b": b, "metric": "accuracy", "difference": difference, "lo": lo, "hi": hi}
    row |= {"p": 1.0, "p_holm": float("nan"), "n": gap.shape[1], "seeds": len(gap), "p_images_only": 1.0}
    if variance > 0:
        freedom = variance**2 / sum(source**2 / free for source, free in sources if free)
        half = t_distribution.ppf(0.975, freedom) * np.sqrt(variance)
        below, above = ties(gap.mean(0), groups, (-most, most))
        lo, hi = max(-most, difference - max(half, below)), min(most, difference + max(half, above))
        row |= {"lo": lo, "hi": hi, "p": t_test(difference, variance, freedom)}
    if of_images[0] > 0:
        row["p_images_only"] = t_test(difference, *of_images)
    return row


def with_holm(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a table, ``p_holm`` filled in over all rows of the same question."""
    table = pd.DataFrame(list(rows))
    table["p_holm"] = table.groupby("question")["p"].transform(lambda p: holm(p.to_numpy()))
    return table


def random_effects(table: pd.DataFrame) -> tuple[float, float, float]:
    """One mean difference for independent studies of one question and its 95% interval, by random effects.

    The spread between studies is Paule and Mandel's (1982). A few studies know it badly, so the interval is Hartung and
    Knapp's (2001), from Student's t, and never takes the studies for more alike than their own errors make them.

    Args:
        table: ``difference``, ``lo`` and ``hi`` of each study, at least two; half of an interval counts as 1.96
            standard errors.

    Returns:
        ``(mean, lo, hi)``.
    """
    errors = (table["hi"] - table["lo"]) / 2 / NORMAL
    rows = combine_effects(table["difference"].to_numpy(float), errors.to_numpy(float) ** 2).summary_frame()
    mean, error = rows.loc["random effect", "eff"], rows.loc[["random effect", "random effect wls"], "sd_eff"].max()
    half = t_distribution.ppf(0.975, len(table) - 1) * error
    return float(mean), float(mean - half), float(mean + half)


# -- failure signatures ------------------------------------------------------------------------------------------------

SIGNATURES = {
    "student_below_teacher_points": (5.0, "add one or two convolutional layers to the student"),
    "f1_spread_over_temperature_points": (2.0, "choose T on validation, or try a temperature per class"),
    "worst_class_below_median_f1_points": (10.0, "look at that class's images and labels before touching the model"),
}


def diagnosis(**values: float) -> pd.DataFrame:
    """The paper's failure signatures against their thresholds: the rows of ``diagnosis.csv``.

    Args:
        values: percentage points for any of ``SIGNATURES``; a signature fires above its threshold.

    Returns:
        A row a signature: its ``value`` and ``threshold``, whether it ``fired``, and the ``advice`` then.
    """
    rows = []
    for signature, value in values.items():
        threshold, advice = SIGNATURES[signature]
        rows.append(
            {
                "signature": signature,
                "value": float(value),
                "threshold": threshold,
                "fired": bool(value > threshold),
                "advice": advice,
            }
        )
    return pd.DataFrame(rows)
