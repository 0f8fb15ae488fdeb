"""Trained students compared: their scores, and the statistics of the grid over alpha and T."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
import torch
from scipy.stats import entropy
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from torch import Tensor

from kdnb import losses, specs, training
from kdnb.cost import macs, parameters
from kdnb.evaluation import (
    classification_scores,
    compare_over_seeds,
    divergence,
    expected_accuracy,
    expected_hits,
    f1_macro,
    known_and_new,
    per_class_scores,
    with_holm,
)
from kdnb.experiments import Experiment, of_plain_student
from kdnb.specs import StudentSpec, TrainedStudent


def _confusion(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(1), minlength=classes * classes).reshape(classes, classes)


def scores(
    results: dict[StudentSpec, TrainedStudent],
    labels: np.ndarray,
    groups: np.ndarray,
    samples: int,
    *,
    teachers: dict[int, np.ndarray] | None = None,
    where: np.ndarray | slice = slice(None),
    posterior: np.ndarray | None = None,
) -> pd.DataFrame:
    """What each network is, and its scores on the test images (:func:`kdnb.evaluation.classification_scores`).

    Args:
        results: the trained students.
        labels: ``(N,)`` of the test images.
        groups: ``(N,)`` of the test images, resampled for the intervals.
        samples: how often they are resampled.
        teachers: seed -> test logits ``(N, C)``; their rows come first.
        where: which of the test images count, ``(N,)`` bool; all by default.
        posterior: ``(N, C)``, the true one of the test images, where it is known: then ``expected_accuracy`` and
            ``divergence`` stand beside the scores.

    Returns:
        One row a network.
    """
    network: dict[str, object] = {"model": "teacher", "loss": "ce", "alpha": 1.0, "temperature": 1.0}
    answers = [(network | {"seed": seed}, logits) for seed, logits in (teachers or {}).items()]
    for spec, trained in results.items():
        network = {
            "model": f"student_{spec.arm}",
            "loss": spec.arm,
            "alpha": spec.alpha,
            "temperature": spec.temperature,
            "seed": spec.seed,
        }
        answers.append((network, trained.test_logits))
    rows = [
        network | classification_scores(labels[where], logits[where], groups[where], samples=samples)
        for network, logits in answers
    ]
    if posterior is not None:
        for row, (_, logits) in zip(rows, answers, strict=True):
            row["expected_accuracy"] = expected_accuracy(logits[where], posterior[where])
            row["divergence"] = divergence(logits[where], posterior[where])
    return pd.DataFrame(rows)


def sweep_table(results: dict[StudentSpec, TrainedStudent], experiment: Experiment) -> pd.DataFrame:
    """The rows of ``sweep.csv``, with the validation F1, the best epoch and its test accuracy.

    Where the true posterior is known, also the expected accuracy and the divergence on the test images.

    Args:
        results: the trained students.
        experiment: what they learned from; its validation and test images are those of the scores.

    Returns:
        One row a student.
    """
    rows: list[dict[str, object]] = []
    for spec, trained in results.items():
        val_f1, test_f1 = (
            float(f1_macro(_confusion(split.labels, logits)))
            for split, logits in ((experiment.validation, trained.val_logits), (experiment.test, trained.test_logits))
        )
        rows.append(
            {
                "loss": spec.arm,
                "alpha": spec.alpha,
                "temperature": spec.temperature,
                "seed": spec.seed,
                "val_accuracy": float((trained.val_logits.argmax(1) == experiment.validation.labels).mean()),
                "test_accuracy": float((trained.test_logits.argmax(1) == experiment.test.labels).mean()),
                "test_f1_macro": test_f1,
                "seconds": trained.seconds,
                "val_f1_macro": val_f1,
                "best_epoch": trained.best_epoch,
                "test_accuracy_best_epoch": float(
                    (trained.test_logits_best.argmax(1) == experiment.test.labels).mean()
                ),
            }
        )
        if experiment.test.posterior is not None:
            rows[-1]["test_expected_accuracy"] = expected_accuracy(trained.test_logits, experiment.test.posterior)
            rows[-1]["test_divergence"] = divergence(trained.test_logits, experiment.test.posterior)
    return pd.DataFrame(rows)


def ablation_table(
    variants: dict[str, Sequence[StudentSpec]],
    results: dict[StudentSpec, TrainedStudent],
    experiment: Experiment,
    image_size: int,
) -> pd.DataFrame:
    """What plain students of other shapes cost and reach: parameters, multiply-accumulates, and accuracies.

    Args:
        variants: name of a shape -> its students.
        results: the trained students.
        experiment: what they learned from.
        image_size: pixels of a side, for the multiply-accumulates of one image.

    Returns:
        One row a student.
    """
    rows, experiment = [], of_plain_student(experiment)
    for shape, spec in [(shape, spec) for shape, group in variants.items() for spec in group]:
        network, trained = specs.student(spec, experiment), results[spec]
        row: dict[str, object] = {
            "shape": shape,
            "layers": len(spec.widths or experiment.widths),
            "pool": spec.pool,
            "seed": spec.seed,
        }
        row |= {"parameters": parameters(network), "macs": macs(network, image_size)}
        row["val_accuracy"] = float((trained.val_logits.argmax(1) == experiment.validation.labels).mean())
        rows.append(row | {"test_accuracy": float((trained.test_logits.argmax(1) == experiment.test.labels).mean())})
    return pd.DataFrame(rows)


def gains(
    paired: dict[str, Sequence[np.ndarray]],
    groups: np.ndarray,
    trained_on: np.ndarray,
    held_back: np.ndarray,
    samples: int,
) -> pd.DataFrame:
    """What the images of validation add on test images that were new and become known with them, or stay new.

    Args:
        paired: model -> hits ``(S, n)`` of the students that learned from them too, and of those that did not.
        groups: ``(n,)`` of the test images.
        trained_on: the groups in training.
        held_back: the groups in validation.
        samples: how often groups are resampled.

    Returns:
        The rows of :func:`kdnb.evaluation.known_and_new` for each ``model``, in terms of what became of its images.
    """
    new, tables = ~np.isin(groups, trained_on), []
    for model, (after, before) in paired.items():
        gain = (after.astype(float) - before).mean(axis=0)[new]
        tables.append(known_and_new(gain, groups[new], held_back, samples, bounds=(-1, 1)).assign(model=model))
    names = {"known": "become known", "new": "stay new", "new minus known": "stay new minus become known"}
    return pd.concat(tables, ignore_index=True).replace({"part": names})


def gains_by_labels(few: pd.DataFrame, grid: pd.DataFrame, alpha: float, score: str) -> pd.DataFrame:
    """What the trained teacher adds to the labels alone, at every number of labels and every T that was trained.

    Args:
        few: ``few_images.csv`` (chapter 03): a row a student, ``way``, ``teacher``, ``loss``, ``alpha``,
            ``temperature``, ``seed``, ``images_per_class`` (0: all labels) and a column of the name in ``score``.
        grid: :func:`sweep_table`, students of all labels at other temperatures.
        alpha: of the students that are compared, the same in both.
        score: ``accuracy`` or ``expected_accuracy``.

    Returns:
        A row for each ``loss`` (``kd``, ``kd_t2``), ``temperature``, ``labels`` (0: all) and ``seed``: its ``gain`` in
        points over the student of the labels alone with the same start and images. At T = 1 the two losses are one, and
        its students stand in the rows of both.
    """
    keys = ["loss", "alpha", "temperature", "seed", "labels"]
    taught = few[(few["teacher"] == "trained") & ~few["way"].str.endswith("all images")]
    students = [
        taught.rename(columns={"images_per_class": "labels", score: "value"}),
        grid.assign(labels=0).rename(columns={f"test_{score}": "value"}),
    ]
    rows = pd.concat([table[[*keys, "value"]] for table in students]).drop_duplicates(keys)
    plain = rows[rows["loss"] == "ce"].set_index(["labels", "seed"])["value"]
    rows = rows[rows["loss"].isin(["kd", "kd_t2"]) & (rows["alpha"] == alpha)]
    at_one = rows[rows["temperature"] == 1]
    rows = pd.concat([rows, at_one.assign(loss="kd"), at_one.assign(loss="kd_t2")]).drop_duplicates(keys)
    own = plain.reindex(pd.MultiIndex.from_frame(rows[["labels", "seed"]])).to_numpy()
    shown = ["loss", "temperature", "labels", "seed"]
    return rows.assign(gain=100 * (rows["value"] - own)).sort_values(shown, ignore_index=True)[[*shown, "gain"]]


def choose(table: pd.DataFrame) -> pd.Series:
    """The loss, alpha and temperature of the highest mean validation F1 over seeds; of equals the first in the grid."""
    means = table.groupby(["loss", "alpha", "temperature"], sort=False)[
        ["val_f1_macro", "val_accuracy", "test_f1_macro", "test_accuracy"]
    ].mean()
    return means.reset_index().loc[int(means["val_f1_macro"].to_numpy().argmax())]


def hits(results: dict[StudentSpec, TrainedStudent], test: training.Examples, **fields: object) -> np.ndarray:
    """How right each seed is on each test image (:func:`kdnb.evaluation.expected_hits`).

    Args:
        results: the trained students.
        test: the test images.
        fields: of a :class:`kdnb.specs.StudentSpec`, such as ``arm="kd"``: only students that have these count.

    Returns:
        ``(S, n)`` in the order of seeds: 0 or 1 by the label or, where the true posterior is known, the probability of
        the answer.
    """
    chosen = [spec for spec in results if all(getattr(spec, name) == value for name, value in fields.items())]
    ordered = sorted(chosen, key=lambda spec: spec.seed)
    return np.stack([expected_hits(results[spec].test_logits, test.labels, test.posterior) for spec in ordered])


def against_cross_entropy(
    results: dict[StudentSpec, TrainedStudent], test: training.Examples, groups: np.ndarray
) -> list[dict[str, object]]:
    """Rows of ``tests.csv``: every (loss, alpha, T) against alpha = 1, paired by seed and image."""
    plain = hits(results, test, arm="ce")
    rows = []
    for arm, alpha, temperature in dict.fromkeys(
        (spec.arm, spec.alpha, spec.temperature) for spec in results if spec.arm != "ce"
    ):
        right = hits(results, test, arm=arm, alpha=alpha, temperature=temperature)
        name = f"{arm} alpha={alpha:g} T={temperature:g}"
        rows.append(compare_over_seeds("does the cell beat cross-entropy?", name, "ce", right, plain, groups))
    return rows


def temperature_against_luck(table: pd.DataFrame, value: str = "test_accuracy") -> pd.DataFrame:
    """Is temperature's effect larger than luck? A two-way analysis of variance, T against seed as blocks.

    Args:
        table: as :func:`sweep_table` makes it.
        value: the column whose variance is taken apart.

    Returns:
        A row for each ``loss`` and ``alpha``: the spread (standard deviation, in points) of the means over T, of the
        means over seeds, and of what is left; ``F`` and ``p`` for T.
    """
    rows = []
    for (loss, alpha), group in table[~table["loss"].isin(losses.WITHOUT_TEACHER)].groupby(["loss", "alpha"]):
        row = {
            "loss": loss,
            "alpha": alpha,
            "seeds": group["seed"].nunique(),
            "temperatures": group["temperature"].nunique(),
        }
        row["sd_over_t_points"] = 100 * group.groupby("temperature")[value].mean().std()
        row["sd_over_seeds_points"] = 100 * group.groupby("seed")[value].mean().std()
        row |= {"sd_residual_points": np.nan, "F": np.nan, "p": np.nan}
        if row["seeds"] > 1 and row["temperatures"] > 1:
            fit = ols(f"{value} ~ C(temperature) + C(seed)", group).fit()
            residual = float(np.sqrt(max(fit.mse_resid, 0)))
            row["sd_residual_points"] = 100 * residual
            if residual > 1e-9:
                effect = anova_lm(fit).loc["C(temperature)"]
                row |= {"F": effect["F"], "p": effect["PR(>F)"]}
        rows.append(row)
    return pd.DataFrame(rows)


def temperature_effect(
    results: dict[StudentSpec, TrainedStudent], test: training.Examples, groups: np.ndarray
) -> pd.DataFrame:
    """Rows of ``tests.csv``: the lowest temperature of the grid minus the highest, paired by seed and image.

    The two ends are named before anything is seen. Unlike an analysis of variance of the means, the comparison counts
    the luck of the test images too, and its interval can say that there is nothing beyond a margin.

    Args:
        results: the trained students of the grid.
        test: the test images.
        groups: ``(n,)`` of the test images.

    Returns:
        A row for each loss and alpha that has several temperatures.
    """
    rows = []
    for arm, alpha in dict.fromkeys(
        (spec.arm, spec.alpha) for spec in results if spec.arm not in losses.WITHOUT_TEACHER
    ):
        temperatures = sorted({spec.temperature for spec in results if (spec.arm, spec.alpha) == (arm, alpha)})
        if len(temperatures) > 1:
            ends = temperatures[0], temperatures[-1]
            low, high = (hits(results, test, arm=arm, alpha=alpha, temperature=temperature) for temperature in ends)
            name_of_low, name_of_high = (f"{arm} alpha={alpha:g} T={temperature:g}" for temperature in ends)
            rows.append(
                compare_over_seeds("does the temperature matter?", name_of_low, name_of_high, low, high, groups)
            )
    if not rows:
        return pd.DataFrame(columns=["question", "a", "b", "difference", "lo", "hi", "p", "p_holm"])
    return with_holm(rows)


def noise_injection_zone(table: pd.DataFrame, value: str = "test_accuracy") -> pd.DataFrame:
    """Temperatures at which a loss stays below cross-entropy for every seed: where softening only adds noise.

    Args:
        table: as :func:`sweep_table` makes it.
        value: the column that is compared.

    Returns:
        A row for each ``loss``, ``alpha`` and ``temperature``: the mean ``gap_points`` and ``below_for_every_seed``.
    """
    plain = table[table["loss"] == "ce"].set_index("seed")[value]
    rows = []
    for (loss, alpha, temperature), group in table[~table["loss"].isin(losses.WITHOUT_TEACHER)].groupby(
        ["loss", "alpha", "temperature"]
    ):
        gap = 100 * (group.set_index("seed")[value] - plain)
        rows.append(
            {
                "loss": loss,
                "alpha": alpha,
                "temperature": temperature,
                "gap_points": gap.mean(),
                "below_for_every_seed": bool((gap < 0).all()),
            }
        )
    return pd.DataFrame(rows)


def best_temperature_per_class(
    results: dict[StudentSpec, TrainedStudent], experiment: Experiment, classes: Sequence[str]
) -> pd.DataFrame:
    """The temperature with the best mean validation F1 for each loss, alpha and class.

    Args:
        results: the trained students of the grid.
        experiment: what they learned from.
        classes: their names, in the order of the logits.

    Returns:
        A row for each ``loss``, ``alpha`` and ``class``: ``temperature``, its mean ``val_f1`` and its mean ``test_f1``.
        A class without validation images has no best T and no row.
    """
    present = np.unique(experiment.validation.labels)
    rows = []
    for spec, trained in results.items():
        if spec.arm in losses.WITHOUT_TEACHER:
            continue
        val_f1, test_f1 = (
            per_class_scores(split.labels, logits, classes)["f1"]
            for split, logits in ((experiment.validation, trained.val_logits), (experiment.test, trained.test_logits))
        )
        setting = {"loss": spec.arm, "alpha": spec.alpha, "temperature": spec.temperature}
        rows += [
            setting | {"class": classes[label], "val_f1": val_f1[label], "test_f1": test_f1[label]} for label in present
        ]
    means = (
        pd.DataFrame(rows)
        .groupby(["loss", "alpha", "class", "temperature"], as_index=False)[["val_f1", "test_f1"]]
        .mean()
    )
    return means.loc[means.groupby(["loss", "alpha", "class"])["val_f1"].idxmax()].reset_index(drop=True)


def teacher_entropy(bank: np.ndarray, temperatures: Sequence[float]) -> pd.DataFrame:
    """Mean entropy of the teacher's softened probabilities over all views, in bits, and the most there can be."""
    logits = torch.from_numpy(bank.reshape(-1, bank.shape[-1]))
    rows = [
        {
            "temperature": temperature,
            "entropy_bits": float(entropy(losses.softened(logits, temperature).numpy(), base=2, axis=1).mean()),
            "maximum_bits": float(np.log2(bank.shape[-1])),
        }
        for temperature in temperatures
    ]
    return pd.DataFrame(rows)


def gradient_norms(
    student_logits: np.ndarray, teacher_logits: np.ndarray, targets: np.ndarray, temperatures: Sequence[float]
) -> pd.DataFrame:
    """Norm of the soft loss's gradient by the student's logits over that of cross-entropy, with and without T^2.

    Args:
        student_logits: ``(N, C)``.
        teacher_logits: ``(N, C)``.
        targets: ``(N,)``, the labels.
        temperatures: each above 0.

    Returns:
        Two rows a ``temperature``: ``loss`` (``without T^2``, ``with T^2``) and the ``ratio`` of the norms.
    """
    rows = []
    for temperature in temperatures:
        norms = {}
        for name, alpha, scaled in (("hard", 1.0, False), ("without T^2", 0.0, False), ("with T^2", 0.0, True)):
            logits = torch.from_numpy(student_logits).clone().requires_grad_()
            losses.distillation_loss(
                logits,
                torch.from_numpy(teacher_logits),
                torch.from_numpy(targets),
                alpha=alpha,
                temperature=temperature,
                scale_by_t2=scaled,
            ).total.backward()
            norms[name] = float(cast(Tensor, logits.grad).norm())
        rows += [
            {"temperature": temperature, "loss": name, "ratio": norms[name] / norms["hard"]}
            for name in ("without T^2", "with T^2")
        ]
    return pd.DataFrame(rows)
