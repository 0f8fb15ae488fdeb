"""Trained students compared: their scores, and the statistics of the grid over alpha and T."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import entropy
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

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
    """What each network is, and its scores on the test images (:func:`kdnb.evaluation.classification_scores`): one row each.

    Where the true ``posterior`` ``(N, C)`` of the test images is known, ``expected_accuracy`` and ``divergence`` stand beside them.

    Args:
        results: the cells' students. teachers: seed -> test logits ``(N, C)``; their rows come first.
        where: which of the test images count, ``(N,)`` bool; all by default.
    """
    what = {"model": "teacher", "loss": "ce", "alpha": 1.0, "temperature": 1.0}
    said = [(what | {"seed": seed}, logits) for seed, logits in (teachers or {}).items()]
    for one, trained in results.items():
        what = {
            "model": f"student_{one.arm}",
            "loss": one.arm,
            "alpha": one.alpha,
            "temperature": one.temperature,
            "seed": one.seed,
        }
        said.append((what, trained.test_logits))
    rows = [what | classification_scores(labels[where], z[where], groups[where], samples=samples) for what, z in said]
    if posterior is not None:
        for row, (_, logits) in zip(rows, said, strict=True):
            row["expected_accuracy"] = expected_accuracy(logits[where], posterior[where])
            row["divergence"] = divergence(logits[where], posterior[where])
    return pd.DataFrame(rows)


def sweep_table(results: dict[StudentSpec, TrainedStudent], experiment: Experiment) -> pd.DataFrame:
    """One row per cell: the columns of ``sweep.csv``, the validation F1, the best epoch and its test accuracy.

    Where the true posterior is known, also the expected accuracy and the divergence on the test images.
    """
    rows = []
    for one, trained in results.items():
        val_f1, test_f1 = (
            float(f1_macro(_confusion(part.labels, logits)))
            for part, logits in ((experiment.validation, trained.val_logits), (experiment.test, trained.test_logits))
        )
        rows.append(
            {
                "loss": one.arm,
                "alpha": one.alpha,
                "temperature": one.temperature,
                "seed": one.seed,
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
    """One row per plain student of another shape: its parameters, multiply-accumulates, and accuracies on validation and test."""
    rows, experiment = [], of_plain_student(experiment)
    for name, one in [(name, one) for name, group in variants.items() for one in group]:
        network, trained = specs.student(one, experiment), results[one]
        row = {"shape": name, "layers": len(one.widths or experiment.widths), "pool": one.pool, "seed": one.seed}
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
    """What the images of validation add on test images that were new and become known with them, and on those that stay new.

    Args:
        paired: model -> hits ``(S, n)`` of the students that learned from them too, and of those that did not.
        groups: ``(n,)`` of the test images. trained_on, held_back: the groups in training and in validation.
    """
    new, tables = ~np.isin(groups, trained_on), []
    for model, (after, before) in paired.items():
        gain = (after.astype(float) - before).mean(axis=0)[new]
        tables.append(known_and_new(gain, groups[new], held_back, samples, bounds=(-1, 1)).assign(model=model))
    names = {"known": "become known", "new": "stay new", "new minus known": "stay new minus become known"}
    return pd.concat(tables, ignore_index=True).replace({"part": names})


def choose(table: pd.DataFrame) -> pd.Series:
    """The (loss, alpha, temperature) with the highest mean validation F1 over seeds; ties go to the first in the table."""
    means = table.groupby(["loss", "alpha", "temperature"], sort=False)[
        ["val_f1_macro", "val_accuracy", "test_f1_macro", "test_accuracy"]
    ].mean()
    return means.reset_index().loc[int(means["val_f1_macro"].to_numpy().argmax())]


def hits(results: dict[StudentSpec, TrainedStudent], test: training.Examples, **wanted) -> np.ndarray:
    """How right each seed is on each test image, over the cells whose fields equal ``wanted``, ``(S, n)`` in the order of seeds.

    0 or 1 by the label or, where the true posterior is known, the probability of the answer (:func:`kdnb.evaluation.expected_hits`).
    """
    chosen = [one for one in results if all(getattr(one, name) == value for name, value in wanted.items())]
    ordered = sorted(chosen, key=lambda one: one.seed)
    return np.stack([expected_hits(results[one].test_logits, test.labels, test.posterior) for one in ordered])


def against_cross_entropy(
    results: dict[StudentSpec, TrainedStudent], test: training.Examples, groups: np.ndarray
) -> list[dict]:
    """Rows of ``tests.csv``: every (loss, alpha, T) against alpha = 1, paired by seed and image."""
    plain = hits(results, test, arm="ce")
    rows = []
    for arm, alpha, temperature in dict.fromkeys(
        (one.arm, one.alpha, one.temperature) for one in results if one.arm != "ce"
    ):
        right = hits(results, test, arm=arm, alpha=alpha, temperature=temperature)
        name = f"{arm} alpha={alpha:g} T={temperature:g}"
        rows.append(compare_over_seeds("does the cell beat cross-entropy?", name, "ce", right, plain, groups))
    return rows


def temperature_against_luck(table: pd.DataFrame, value: str = "test_accuracy") -> pd.DataFrame:
    """Is temperature's effect larger than luck? For each (loss, alpha) a two-way analysis of variance, T against seed as blocks.

    Columns: spread (standard deviation, in points) of the means over T, of the means over seeds, and of what is left; F and p for T.
    """
    rows = []
    for (loss, alpha), part in table[~table["loss"].isin(losses.WITHOUT_TEACHER)].groupby(["loss", "alpha"]):
        row = {
            "loss": loss,
            "alpha": alpha,
            "seeds": part["seed"].nunique(),
            "temperatures": part["temperature"].nunique(),
        }
        row["sd_over_t_points"] = 100 * part.groupby("temperature")[value].mean().std()
        row["sd_over_seeds_points"] = 100 * part.groupby("seed")[value].mean().std()
        row |= {"sd_residual_points": np.nan, "F": np.nan, "p": np.nan}
        if row["seeds"] > 1 and row["temperatures"] > 1:
            fit = ols(f"{value} ~ C(temperature) + C(seed)", part).fit()
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
    """Rows of ``tests.csv``: for each (loss, alpha) the lowest temperature of the grid minus the highest, paired by seed and image.

    The two ends are named before anything is seen. Unlike an analysis of variance of the means, the comparison counts the luck of the test
    images too, and its interval can say that there is nothing beyond a margin.
    """
    rows = []
    for arm, alpha in dict.fromkeys((one.arm, one.alpha) for one in results if one.arm not in losses.WITHOUT_TEACHER):
        temperatures = sorted({one.temperature for one in results if (one.arm, one.alpha) == (arm, alpha)})
        if len(temperatures) > 1:
            ends = temperatures[0], temperatures[-1]
            low, high = (hits(results, test, arm=arm, alpha=alpha, temperature=t) for t in ends)
            names = (f"{arm} alpha={alpha:g} T={t:g}" for t in ends)
            rows.append(compare_over_seeds("does the temperature matter?", *names, low, high, groups))
    return (
        with_holm(rows)
        if rows
        else pd.DataFrame(columns=["question", "a", "b", "difference", "lo", "hi", "p", "p_holm"])
    )


def noise_injection_zone(table: pd.DataFrame) -> pd.DataFrame:
    """Temperatures at which a (loss, alpha) stays below cross-entropy for every seed: where softening only adds noise."""
    plain = table[table["loss"] == "ce"].set_index("seed")["test_accuracy"]
    rows = []
    for (loss, alpha, temperature), part in table[~table["loss"].isin(losses.WITHOUT_TEACHER)].groupby(
        ["loss", "alpha", "temperature"]
    ):
        gap = 100 * (part.set_index("seed")["test_accuracy"] - plain)
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
    """For each (loss, alpha, class) the T with the best mean validation F1, with that cell's mean test F1.

    A class without validation images has no best T and no row.
    """
    present = np.unique(experiment.validation.labels)
    rows = []
    for one, trained in results.items():
        if one.arm in losses.WITHOUT_TEACHER:
            continue
        scores = [
            per_class_scores(part.labels, logits, classes)["f1"]
            for part, logits in ((experiment.validation, trained.val_logits), (experiment.test, trained.test_logits))
        ]
        of_one = {"loss": one.arm, "alpha": one.alpha, "temperature": one.temperature}
        rows += [of_one | {"class": classes[c], "val_f1": scores[0][c], "test_f1": scores[1][c]} for c in present]
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
            "temperature": t,
            "entropy_bits": float(entropy(losses.softened(logits, t).numpy(), base=2, axis=1).mean()),
            "maximum_bits": float(np.log2(bank.shape[-1])),
        }
        for t in temperatures
    ]
    return pd.DataFrame(rows)


def gradient_norms(
    student_logits: np.ndarray, teacher_logits: np.ndarray, targets: np.ndarray, temperatures: Sequence[float]
) -> pd.DataFrame:
    """Norm of the soft loss's gradient with respect to the student's logits over that of cross-entropy, with and without T^2."""
    rows = []
    for t in temperatures:
        norms = {}
        for name, alpha, scaled in (("hard", 1.0, False), ("without T^2", 0.0, False), ("with T^2", 0.0, True)):
            logits = torch.from_numpy(student_logits).clone().requires_grad_()
            losses.distillation_loss(
                logits,
                torch.from_numpy(teacher_logits),
                torch.from_numpy(targets),
                alpha=alpha,
                temperature=t,
                scale_by_t2=scaled,
            ).total.backward()
            norms[name] = float(logits.grad.norm())
        rows += [
            {"temperature": t, "loss": name, "ratio": norms[name] / norms["hard"]}
            for name in ("without T^2", "with T^2")
        ]
    return pd.DataFrame(rows)
