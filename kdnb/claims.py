"""The paper's claims and our own questions, each with the rule that decides it.

A rule is stated before the numbers are looked at; where it was not, :func:`stated` says so.

Most rules compare a measured interval with a threshold: wholly on the right side of it the claim *holds*, wholly on
the wrong side it *does not hold*, astride it is *undecided*. Whether something adds at all has a fourth answer: where
it is not told from none and its interval lies within one point either way (of scores of explanations: within five),
there is *no effect beyond the margin* (equivalence, Schuirmann's two tests). What a run cannot ask is *not testable
here*, with the reason: other data, a measure that tells nothing from maps that know nothing, a rival that is no
better than these. Where the paper itself makes the claim of the run's data, *holds* is called *reproduced*, *does not
hold* *not reproduced*.

Inside this module differences, probabilities, shares and scores are numbers from -1 to 1; :func:`judge` says them in
points, ratios as they are. One of several comparisons of a question is told from none only if Holm's p is, too; of one
seed nothing is, since its interval knows nothing of the luck of training. :func:`error_rates` has how often each rule
errs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtr, stdtrit

from kdnb import explain, networks
from kdnb.datasets import volumes
from kdnb.evaluation import NORMAL, equivalent, holm, t_test
from kdnb.few_labels import ENSEMBLE
from kdnb.fidelity import FAMILIES, MEAN_FILL, paired
from kdnb.runs import Run
from kdnb.sources import REPOSITORY
from kdnb.teachers import WITHOUT_KNOWLEDGE

HOLDS, FAILS, NO_EFFECT = "holds", "does not hold", "no effect beyond the margin"
UNDECIDED, NOT_TESTABLE = "undecided", "not testable here"
VERDICTS = (HOLDS, FAILS, NO_EFFECT, UNDECIDED, NOT_TESTABLE)
# What these two are called where the paper makes the claim.
OF_THE_PAPER = {HOLDS: "reproduced", FAILS: "not reproduced"}
MEANING = {word: verdict for verdict, word in OF_THE_PAPER.items()} | {verdict: verdict for verdict in VERDICTS}
POINTS, RATIO, CORRELATION = "points", "ratio", "correlation"
LEVEL = 0.05
NON_INFERIORITY = 0.01  # what is at most one point behind keeps up: a student with its teacher, five layers with six
MARGIN = 0.01  # an effect within one point either way is none that anybody would train a teacher for
EQUIVALENCE = 0.03  # two losses within three points either way are called equal
CONTROLS = ("random", "centre", "sobel", "uniform", "untrained")  # explanations that know nothing of what was learned
# What decides whether one explanation of a student is more faithful than another: curves under three fills.
JUDGED_BY = FAMILIES | MEAN_FILL
AVERAGE = "feature_maps_mean"
KNOW_NOTHING = ("random", "uniform")  # smooth noise, and pixels in any order
EXPLANATIONS = (
    AVERAGE,
    "grad_cam",
    *(f"{name}{sign}" for name in ("integrated_gradients", "shap") for sign in ("", "_signed")),
)
FAITHFULNESS = 0.05  # a probability (or share) at most five points lower is as faithful


@dataclass(frozen=True)
class Measured:
    """What this run measured for a claim: a value, its interval (NaN where there is none) and a verdict."""

    value: float
    lo: float
    hi: float
    verdict: str
    detail: str = ""


def published(name: str) -> pd.DataFrame:
    """``data/published/<name>.csv``: ``paper`` or ``release``."""
    return pd.read_csv(REPOSITORY / "data" / "published" / f"{name}.csv", keep_default_na=False, na_values=[""])


def above(value: float, lo: float, hi: float, threshold: float, detail: str = "") -> Measured:
    """Holds if the interval lies above the threshold, does not hold if below."""
    verdict = HOLDS if lo > threshold else FAILS if hi < threshold else UNDECIDED
    return Measured(value, lo, hi, verdict, detail)


def below(value: float, lo: float, hi: float, threshold: float, detail: str = "") -> Measured:
    """Holds if the interval lies below the threshold, does not hold if above."""
    verdict = HOLDS if hi < threshold else FAILS if lo > threshold else UNDECIDED
    return Measured(value, lo, hi, verdict, detail)


def adds(value: float, lo: float, hi: float, detail: str = "", *, p: float) -> Measured:
    """The verdict on whether something adds to what there is without it.

    Holds if the interval lies above 0 and p is below 5%; does not hold if it lies below 0 and p is. What is not told
    from 0 so is no effect, if the interval lies within the margin.

    Args:
        value: the difference that was measured.
        lo: the lower end of its 95% interval.
        hi: the upper end.
        detail: what was compared, in words.
        p: corrected for the other comparisons of the question.

    Returns:
        The value, its interval and the verdict.
    """
    significant = p < LEVEL
    verdict = (
        HOLDS
        if significant and lo > 0
        else FAILS
        if significant and hi < 0
        else NO_EFFECT
        if equivalent(lo, hi, MARGIN)
        else UNDECIDED
    )
    return Measured(value, lo, hi, verdict, detail)


def at(difference: np.ndarray, lo: np.ndarray, hi: np.ndarray, tests: int) -> tuple[np.ndarray, np.ndarray]:
    """The ends of 95% intervals, drawn apart so that of so many all hold with 95% (Bonferroni).

    Args:
        difference: (N,) estimates.
        lo: (N,) the lower ends of their intervals.
        hi: (N,) the upper ends.
        tests: of how many comparisons all shall hold.

    Returns:
        The lower and the upper ends, as of a normal distribution.
    """
    widening = -ndtri(LEVEL / 2 / tests) / NORMAL
    return difference - widening * (difference - lo), difference + widening * (hi - difference)


def every(
    difference: np.ndarray, lo: np.ndarray, hi: np.ndarray, p_holm: np.ndarray, rivals: np.ndarray, margin: float
) -> tuple[str, int]:
    """The verdict of :func:`over_every` on the comparisons ``(N,)``, and which of them decides."""
    names, rival = np.unique(rivals, return_inverse=True)
    lower, upper = at(difference, lo, hi, len(names))
    worse, apart = (hi < 0) & (p_holm < LEVEL), (lower < -margin) | (upper > margin)
    equal = ~np.isin(rival, rival[apart])
    if (lo > 0).all():
        return HOLDS, int(lo.argmin())
    for verdict, fulfilled in ((FAILS, worse), (NO_EFFECT, equal)):
        if fulfilled.any():
            return verdict, int(np.where(fulfilled, hi, np.inf).argmin())
    return UNDECIDED, int(lo.argmin())


def over_every(rows: pd.DataFrame, margin: float, detail: str) -> Measured:
    """Better than each of several rivals, by each of several measures: the row that decides.

    All must be better, each at its own level: an intersection of tests needs no correction (Berger 1982). Any of many
    may be worse or equal by luck: one that is worse refutes it by Holm's p. There is no effect where the advantage over
    one rival lies within the margin either way by *every* measure, of several rivals by Bonferroni's level
    (:func:`at`).

    Args:
        rows: a row a comparison: the rival ``b``; ``difference``, ``lo``, ``hi``, above 0 where it is better; and
            ``p_holm``.
        margin: an advantage within it either way is none.
        detail: what was compared, in words; may name columns in braces.

    Returns:
        The difference that decides, its interval and the verdict.
    """
    difference, lo, hi, p_holm = (rows[name].to_numpy(float) for name in ("difference", "lo", "hi", "p_holm"))
    verdict, index = every(difference, lo, hi, p_holm, rows["b"].to_numpy(str), margin)
    deciding = rows.iloc[index]
    count = f"interval above 0 in {(rows['lo'] > 0).sum()} of {len(rows)} comparisons; the one that decides: "
    return Measured(deciding["difference"], deciding["lo"], deciding["hi"], verdict, count + detail.format(**deciding))


def faithful(
    difference: np.ndarray, lo: np.ndarray, hi: np.ndarray, told: np.ndarray, margin: float
) -> tuple[str, int]:
    """As good as a rival by each of several measures that tell the rival from maps that know nothing.

    Holds if every interval lies above minus the margin and every measure tells the explanation from such maps, too,
    each at its own level; does not hold if by one it lies below, by Bonferroni's.

    Args:
        difference: (N,) explanation minus rival by each measure, above 0 where the explanation is better.
        lo: (N,) the lower ends of the 95% intervals.
        hi: (N,) the upper ends.
        told: (N,) bool, whether the measure tells the explanation from maps that know nothing.
        margin: how much worse is still as good.

    Returns:
        The verdict, and which measure decides.
    """
    worse = at(difference, lo, hi, len(lo))[1] < -margin
    if worse.any():
        return FAILS, int(np.where(worse, hi, np.inf).argmin())
    return HOLDS if (told & (lo > -margin)).all() else UNDECIDED, int(lo.argmin())


def within(value: float, lo: float, hi: float, least: float, most: float, detail: str = "") -> Measured:
    """Holds if the interval lies between two thresholds, does not hold if it lies wholly outside."""
    verdict = HOLDS if least <= lo and hi <= most else FAILS if hi < least or lo > most else UNDECIDED
    return Measured(value, lo, hi, verdict, detail)


def _students_t(mean: float, *components: tuple[float, float]) -> dict[str, float]:
    """The 95% interval and p of a mean by Student's t, with the degrees of freedom of Satterthwaite.

    Args:
        mean: the estimate.
        *components: independent parts of its variance, each with its degrees of freedom.

    Returns:
        ``lo``, ``hi`` and ``p``, against a mean of 0.
    """
    variance = sum(component for component, _ in components)
    uncertainty = sum(component**2 / df for component, df in components if component > 0)
    freedom = variance**2 / uncertainty if uncertainty > 0 else math.inf
    half = stdtrit(freedom, 1 - LEVEL / 2) * math.sqrt(variance)
    return {"lo": mean - half, "hi": mean + half, "p": t_test(mean, variance, freedom)}


def not_testable(detail: str) -> Measured:
    """No number, because this run cannot have one; ``detail`` says why."""
    return Measured(math.nan, math.nan, math.nan, NOT_TESTABLE, detail)


def _comparison(run: Run, question: str, a: str, b: str) -> pd.Series | None:
    """The first row of ``tests.csv`` of ``a`` and ``b`` whose question starts so; ``None`` if the run did not ask."""
    tests = run.load_table("tests")
    rows = tests[(tests["question"].str.startswith(question)) & (tests["a"] == a) & (tests["b"] == b)]
    return None if rows.empty else rows.iloc[0]


def _of_seeds(row: pd.Series, rule: Callable[..., Measured], detail: str) -> Measured:
    """The rule on a comparison over seeds; undecided of one, whose interval knows nothing of the luck of training."""
    measured = rule(row["difference"], row["lo"], row["hi"], detail=detail)
    return measured if row["seeds"] > 1 else _of_one_seed(measured)


def _of_one_seed(measured: Measured) -> Measured:
    """No interval and no verdict: how other trainings would have come out is not known."""
    return replace(measured, lo=math.nan, hi=math.nan, verdict=UNDECIDED, detail=f"{measured.detail}; one seed only")


def _seed_count(row: pd.Series) -> str:
    return f"{row['seeds']:.0f} seeds" if row["seeds"] > 1 else "1 seed"


def _adds_over_seeds(row: pd.Series, detail: str) -> Measured:
    """The rule of :func:`adds` on a comparison over seeds, with the p that it goes by."""
    return _of_seeds(row, partial(adds, p=row["p_holm"]), f"{detail}, Holm p = {row['p_holm']:.3g}")


def _student_f1(run: Run) -> Measured:
    """The student's macro F1 is above 94 points: the mean over seeds.

    To the luck of the test images, which the intervals know, comes that of training. With V the variance of the images
    (half of the mean interval counts as 1.96 standard errors) and s^2 / S that of the mean of S seeds, Student's t of
    Satterthwaite's degrees of freedom; the interval keeps its skew.

    Returns:
        The mean, the interval that knows both and the verdict.
    """
    rows = run.load_table("classification").query("model == 'student_kd'")
    if rows.empty:
        return not_testable("this run did not train the paper's loss")
    mean, lo, hi = rows[["f1_macro", "f1_macro_lo", "f1_macro_hi"]].mean()
    if len(rows) < 2:
        return _of_one_seed(above(mean, lo, hi, 0.94, "macro F1"))
    image_variance, seed_variance = ((hi - lo) / 2 / NORMAL) ** 2, rows["f1_macro"].var() / len(rows)
    interval = _students_t(mean, (seed_variance, len(rows) - 1), (image_variance, math.inf))
    widening = (interval["hi"] - interval["lo"]) / (hi - lo) if hi > lo else 1.0
    detail = f"macro F1, mean of {len(rows)} seeds, of the luck of training and of the test images"
    return above(mean, mean - widening * (mean - lo), mean + widening * (hi - mean), 0.94, detail)


def _gap_to_teacher(run: Run, rule: Callable[..., Measured]) -> Measured:
    row = _comparison(run, "all seeds", "student_kd", "teacher")
    if row is None:
        return not_testable("this run did not train the paper's loss")
    detail = f"test accuracy, mean of {_seed_count(row)} minus one teacher"
    return _of_seeds(row, partial(rule, threshold=-NON_INFERIORITY), detail)


def _student_against_teacher(run: Run) -> Measured:
    return _gap_to_teacher(run, above)


def _student_behind(run: Run) -> Measured:
    return _gap_to_teacher(run, below)


def _adds(run: Run, question: str, a: str, b: str) -> Measured:
    row = _comparison(run, question, a, b)
    if row is None:
        return not_testable("this run did not ask it")
    return _adds_over_seeds(row, f"test accuracy over {_seed_count(row)}, {row['question'].partition(':')[0]}")


def _distillation_adds(run: Run) -> Measured:
    return _adds(run, "all seeds", "student_kd", "ce")


def _teacher_adds(run: Run) -> Measured:
    return _adds(run, "all seeds", "student_kd_t2", "ce")


def _few_labels_question(run: Run) -> str:
    """How the questions begin that were asked at the most labels of those that are few.

    With the fewest, students may be at chance.

    Returns:
        What a question in ``tests.csv`` starts with.
    """
    questions = run.load_table("tests")["question"]
    counts = questions[questions.str.startswith("few labels")].str.split(":").str[0]
    return "few labels" if counts.empty else f"{max(counts, key=lambda count: int(count.split()[2]))}:"


def _few_labels(run: Run) -> Measured:
    return _adds(run, _few_labels_question(run), "with T²", "labels alone")


def _few_labels_without_t2(run: Run) -> Measured:
    return _adds(run, _few_labels_question(run), "paper's loss", "labels alone")


def _knowledge(run: Run) -> Measured:
    """Better than each teacher that knows nothing of an image."""
    question = _few_labels_question(run)
    rows = [_comparison(run, question, "with T²", name) for name in WITHOUT_KNOWLEDGE]
    if any(row is None for row in rows):
        return not_testable("this run has no teachers without knowledge")
    detail = f"{{b}}; test accuracy, {question.rstrip(':')}, {{seeds:.0f}} seeds"
    measured = over_every(pd.DataFrame(rows), MARGIN, detail)
    fewest_seeds = min(row["seeds"] for row in cast("list[pd.Series]", rows))
    return measured if fewest_seeds > 1 else _of_one_seed(measured)


def _unlabelled_images(run: Run) -> Measured:
    return _adds(run, _few_labels_question(run), "with T², all images", "with T²")


def _oracle_adds(run: Run) -> Measured:
    return _adds(run, "all labels", "oracle, T = 1", "labels alone")


def _long_training(run: Run) -> Measured:
    if not run.load_table("tests").query("a == 'student_kd_t2'")["question"].str.startswith("long training").any():
        return not_testable("this run trained no students of both kinds for longer than the others")
    measured = _adds(run, "long training", "student_kd_t2", "ce")
    longest = run.load_table("lengths").query(
        "model == 'student_ce' and learned_from == 'training' and epochs == epochs.max()"
    )
    alone = longest["accuracy"].mean()
    teacher = run.load_table("classification").query("model == 'teacher'")["accuracy"].iloc[0]
    accuracies = f"accuracy of the labels alone {alone:.3f}, of the teacher {teacher:.3f}"
    return replace(measured, detail=f"{measured.detail}; {accuracies}")


def _released_is_cross_entropy(run: Run) -> Measured:
    row = _comparison(run, "all seeds", "student_released", "ce")
    if row is None:
        return not_testable("this run did not train the released loss")
    return _of_seeds(
        row, partial(within, least=-EQUIVALENCE, most=EQUIVALENCE), f"test accuracy over {_seed_count(row)}"
    )


def _new_images(run: Run) -> Measured:
    if run.has_table("leak_worth"):
        rows = run.load_table("leak_worth").query("model == 'student_kd' and part == 'known'")
        if rows.empty:
            return not_testable("training knows no test image")
        row = rows.iloc[0]
        detail = (
            f"minus the gain by remembering drawn labels of {row['n']} known test images, "
            "beyond the teacher's, which saw none of them"
        )
        return above(-row["mean"], -row["hi"], -row["lo"], -NON_INFERIORITY, detail)
    table = run.load_table("known_and_new").query("model == 'student_kd'").set_index("part")
    if table.empty:
        return not_testable("this run did not train the paper's loss")
    if "new minus known" not in table.index:
        part = "known to training" if "known" in table.index else "new to training"
        return not_testable(f"all {table['n'].iloc[0]} test images are {part}, as far as copies and persons are known")
    row = table.loc["new minus known"]
    share = table.loc["known", "n"] / row["n"]
    return above(
        row["mean"], row["lo"], row["hi"], -NON_INFERIORITY, f"test accuracy, new minus known; {share:.0%} are known"
    )


def _relatives(run: Run) -> Measured:
    if not run.has_table("gains"):
        return not_testable("no student of this run learned from the images of validation")
    gains = run.load_table("gains").query("model == 'student_kd'").set_index("part")
    if gains.empty:
        return not_testable("this run did not train the paper's loss")
    if "stay new minus become known" not in gains.index:
        missing = "become known" if "stay new" in gains.index else "stay new"
        return not_testable(f"no test images {missing} with the images of validation")
    row, counts = gains.loc["stay new minus become known"], gains["n"]
    detail = (
        f"gain in test accuracy, {counts['stay new']} that stay new minus {counts['become known']} that become known"
    )
    return above(row["mean"], row["lo"], row["hi"], -NON_INFERIORITY, detail)


def _five_layers(run: Run) -> Measured:
    row = _comparison(run, "shape", "6 layers", "5 layers")
    if row is None:
        return not_testable("this run trained no students of other shapes")
    detail = f"test accuracy, six layers minus five, {_seed_count(row)}"
    return _of_seeds(row, partial(below, threshold=NON_INFERIORITY), detail)


def _max_pooling(run: Run) -> Measured:
    row = _comparison(run, "shape", "average pooling", "5 layers")
    if row is None:
        return not_testable("this run trained no students of other shapes")
    negated = row.to_dict() | {"difference": -row["difference"], "lo": -row["hi"], "hi": -row["lo"]}
    measured = _adds_over_seeds(pd.Series(negated), f"test accuracy, average minus maximum, {_seed_count(row)}")
    return replace(measured, value=-measured.value, lo=-measured.hi, hi=-measured.lo)


def _temperature_matters(run: Run) -> Measured:
    effect = run.load_table("temperature_effect")
    if effect.empty:
        return not_testable("the grid of this run has one temperature or one seed")
    row = effect.loc[effect["p_holm"].idxmin()]
    all_within = all(equivalent(lo, hi, MARGIN) for lo, hi in zip(effect["lo"], effect["hi"], strict=True))
    verdict = HOLDS if row["p_holm"] < LEVEL else NO_EFFECT if all_within else UNDECIDED
    detail = f"test accuracy, {row['a']} minus {row['b']}, the clearest of {len(effect)}; Holm p = {row['p_holm']:.3g}"
    measured = Measured(row["difference"], row["lo"], row["hi"], verdict, detail)
    return measured if row["seeds"] > 1 else _of_one_seed(measured)


def _best_cell(run: Run) -> Measured:
    """The paper's cell against each other cell of its loss, on validation, where the study chooses.

    The luck of training is that of the seeds, paired; that of the images is taken as if two cells erred on them
    independently, which makes it too large rather than too small, and as if each group of images were one.

    Returns:
        The difference to the cell that decides, its interval and the verdict.
    """
    chosen = run.load_table("choice").iloc[0]
    cell_name = "alpha {:g}, T {:g}".format
    choice = f"chosen on validation: {chosen['loss']}, {cell_name(chosen['alpha'], chosen['temperature'])}"
    paper = published("paper").query("claim == 'best_cell' and dataset == @run.settings.dataset")["statement"]
    grid = run.load_table("sweep").query("loss == 'kd'")
    scores = {
        cell_name(*cell): rows.set_index("seed")["val_accuracy"]
        for cell, rows in grid.groupby(["alpha", "temperature"])
    }
    if len(scores) < 2:  # nothing to choose from
        return not_testable(f"the grid of this run has {len(scores)} cell{'s' * (not scores)} of the paper's loss")
    if paper.empty:
        return not_testable(choice)
    if paper.iloc[0] not in scores:
        return not_testable(f"the grid of this run does not have {paper.iloc[0]}; {choice}")
    groups = run.load_table("data_audit").query("split == 'val'")["groups"].sum()
    comparisons, paper_scores = [], scores.pop(paper.iloc[0])
    for other, other_scores in scores.items():
        gaps = (paper_scores - other_scores).dropna()
        seed_variance = gaps.var() / len(gaps) if len(gaps) > 1 else 0.0
        image_variance = sum(cell.mean() * (1 - cell.mean()) for cell in (paper_scores, other_scores)) / groups
        comparison = {"b": other, "difference": gaps.mean(), "seeds": len(gaps)}
        interval = _students_t(gaps.mean(), (seed_variance, len(gaps) - 1), (image_variance, groups - 1))
        comparisons.append(comparison | interval)
    table = pd.DataFrame(comparisons)
    table_with_holm = table.assign(p_holm=holm(table["p"]))
    detail = f"{paper.iloc[0]} minus {{b}}, validation accuracy, {{seeds:.0f}} seeds"
    measured = over_every(table_with_holm, 0.0, detail)
    measured = replace(measured, detail=f"{choice}; {measured.detail}")
    return measured if table["seeds"].min() > 1 else _of_one_seed(measured)


def _flops_ratio(run: Run) -> Measured:
    ratio = run.load_table("sizes").set_index("model")["teacher_over_model"]["released student (8 convolutions)"]
    return within(
        ratio, ratio, ratio, 0.95 * 2.436, 1.05 * 2.436, "counted at 224 pixels, DenseNet121 over the released student"
    )


def _timing(run: Run, model: str, method: str) -> pd.Series:
    """What one image takes: the row of ``met.csv`` with the smallest batch."""
    timings = run.load_table("met")
    rows = timings[(timings["model"].str.startswith(model)) & (timings["method"] == method)]
    return rows.sort_values("batch_size").iloc[0]


def _time_ratio(slow: pd.Series, fast: pd.Series) -> tuple[float, float, float]:
    """How many times as long: the ratio of the medians, and of the quartiles that lie nearest and farthest."""
    (a, half_a), (b, half_b) = ((row["ms_per_image_median"], row["ms_per_image_iqr"] / 2) for row in (slow, fast))
    return a / b, max(a - half_a, 0.0) / (b + half_b), (a + half_a) / (b - half_b) if b > half_b else math.inf


def _met_ratio(run: Run) -> Measured:
    studied = (networks.OWN_TEACHER, networks.OWN_STUDENT)
    if (used := tuple(networks.of_run(run, role) for role in ("teacher", "student"))) != studied:
        return not_testable(f"the paper says it of {' and '.join(studied)}; this run has {' and '.join(used)}")
    ratio = _time_ratio(_timing(run, "teacher", "shap"), _timing(run, "student", "shap"))
    return within(*ratio, 3.0, 6.75, "medians in one run, from quartile to quartile")


def _maps_over_shap(run: Run) -> Measured:
    maps, shap = _timing(run, "student", "feature_maps_mean"), _timing(run, "teacher", "shap")
    method_ratio = _timing(run, "student", "shap")["ms_per_image_median"] / maps["ms_per_image_median"]
    detail = (
        f"SHAP with {run.budget.shap_samples} points an image (its default: 200) on the teacher over average maps "
        "on the student, one image at a time, medians from quartile to quartile; "
        f"of it the method alone, both on the student: {method_ratio:.0f} times"
    )
    return above(*_time_ratio(shap, maps), 200.0, detail)


def _fidelity(run: Run) -> Measured:
    summary = run.load_table("fidelity_summary")
    means = summary[
        (summary["metric"] == "agreement_30")
        & (summary["method"] == "feature_maps_mean")
        & summary["model"].str.startswith("student")
        & (summary["class"] != "all")
    ]["mean"]
    span = f"{means.min():.2f} to {means.max():.2f}"
    detail = f"agreement with the top 30% kept, mean over classes ({span}); another definition"
    return Measured(means.mean(), math.nan, math.nan, NOT_TESTABLE, detail)


def _more_is_better(rows: pd.DataFrame) -> pd.DataFrame:
    """Comparisons by ``metric`` with the signs of those turned for which less is better."""
    ends = rows[["difference", "lo", "hi"]].mul(rows["metric"].map(lambda metric: JUDGED_BY.get(metric, 1)), axis=0)
    return rows.assign(
        difference=ends["difference"], lo=ends[["lo", "hi"]].min(axis=1), hi=ends[["lo", "hi"]].max(axis=1)
    )


def _compared(run: Run, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Explanations of the taught student against each other by each of :data:`JUDGED_BY`, on images that have both.

    What ``tests.csv`` lacks is compared image by image; in a record, which keeps no values of single images, by means
    alone: there the interval reaches from end to end of theirs, and nothing is told from luck.

    Args:
        run: that judged explanations.
        pairs: of methods, a and b.

    Returns:
        ``a``, ``b``, ``metric``, ``difference``, ``lo``, ``hi`` (more is better), ``n`` and ``p_holm``, corrected for
        all rows; those that can be compared.
    """
    keys, numbers = ["a", "b", "metric"], ["difference", "lo", "hi", "p", "n"]
    wanted = pd.MultiIndex.from_tuples([(*pair, metric) for pair in pairs for metric in JUDGED_BY], names=keys)
    found = pd.DataFrame(index=wanted[:0], columns=numbers, dtype=float)
    if run.has_table("tests"):
        tests = run.load_table("tests")
        tests = tests[tests["question"].str.startswith("average map against") & (tests["class"] == "all")]
        found = tests.set_index(keys)[numbers]
        found = found[found.index.isin(wanted)]
    missing = wanted[~wanted.isin(found.index)]
    if len(missing) and run.has_table("fidelity"):
        values = run.load_table("fidelity").query("model == 'student_kd'")
        values = values[values["metric"].isin(missing.unique("metric"))]
        judged = set(zip(values["method"], values["metric"], strict=True))
        both = [(a, b, metric) for a, b, metric in missing if {(a, metric), (b, metric)} <= judged]
        if both:
            left, metrics = list(dict.fromkeys((a, b) for a, b, _ in both)), list(dict.fromkeys(row[2] for row in both))
            compared = paired(values, "", left, metrics, samples=run.budget.bootstrap_samples).set_index(keys)
            found = pd.concat([found, compared.loc[compared.index.isin(missing), numbers]])
    elif len(missing) and run.has_table("fidelity_summary"):
        means = run.load_table("fidelity_summary").query("model == 'student_kd' and `class` == 'all'")
        means = means.set_index(["method", "metric"])[["mean", "lo", "hi", "n"]]
        of_a, of_b = (means.reindex(missing.droplevel(other)).set_index(missing) for other in ("b", "a"))
        apart = {
            "difference": of_a["mean"] - of_b["mean"],
            "lo": of_a["lo"] - of_b["hi"],
            "hi": of_a["hi"] - of_b["lo"],
        }
        apart |= {"p": 1.0, "n": np.minimum(of_a["n"], of_b["n"])}
        found = pd.concat([found, pd.DataFrame(apart).dropna()])
    return _more_is_better(found.assign(p_holm=holm(found["p"])).reset_index())


def _maps_against(run: Run, rivals: Sequence[str]) -> pd.DataFrame:
    """:func:`_compared` for average maps and each rival that the run compared them with at all."""
    tests = run.load_table("tests")
    asked = set(tests.loc[tests["a"] == AVERAGE, "b"])
    return _compared(run, [(AVERAGE, rival) for rival in rivals if rival in asked])


def _told(run: Run, methods: Sequence[str]) -> dict[str, set[str]]:
    """Explanation -> the metrics that tell it from every one of :data:`KNOW_NOTHING`."""
    lower = _compared(run, [(method, other) for method in methods for other in KNOW_NOTHING])
    lower = lower.pivot(index=["a", "metric"], columns="b", values="lo").reindex(columns=KNOW_NOTHING)
    told = lower.index[(lower > 0).all(axis=1)]
    return {method: {metric for name, metric in told if name == method} for method in methods}


def _telling(run: Run) -> list[str]:
    """The metrics that tell any explanation from maps that know nothing; the others decide nothing.

    Args:
        run: that judged explanations; of one that did not nothing is known, and all count.

    Returns:
        Of :data:`JUDGED_BY`, in its order.
    """
    if not any(run.has_table(name) for name in ("tests", "fidelity", "fidelity_summary")):
        return list(JUDGED_BY)
    told = set().union(*_told(run, EXPLANATIONS).values())
    return [metric for metric in JUDGED_BY if metric in told]


def _as_faithful(run: Run, rival: str) -> Measured:
    rows = _maps_against(run, [rival])
    if rows.empty:
        return not_testable(f"this run did not compare average maps with {rival}")
    if rival.startswith("integrated_gradients"):  # they start from the blurred image: no fill of theirs may judge them
        rows = rows[~rows["metric"].str.endswith("_blur")]
    told, rival_told = _told(run, (AVERAGE, rival)).values()
    # Equal scores prove nothing where a measure tells no explanation from one that knows nothing.
    if not (told | rival_told) & set(rows["metric"]):
        return not_testable(f"no metric tells average maps or {rival} from maps that know nothing: broken measures")
    rows = rows[rows["metric"].isin(rival_told)]
    if rows.empty:
        return not_testable(f"no metric tells {rival} from maps that know nothing here: no yardstick")
    difference, lo, hi = (rows[name].to_numpy(float) for name in ("difference", "lo", "hi"))
    verdict, index = faithful(difference, lo, hi, rows["metric"].isin(told).to_numpy(), FAITHFULNESS)
    row = rows.iloc[index]
    detail = (
        f"the nearest of {len(rows)} metrics that tell {rival} from maps that know nothing "
        f"({', '.join(rows['metric'])}): {row['metric']}, one taught student, {row['n']:.0f} images"
    )
    if undistinguished := [metric for metric in rows["metric"] if metric not in told]:
        detail += f"; average maps are not told from these by {', '.join(undistinguished)}"
    return Measured(row["difference"], row["lo"], row["hi"], verdict, detail)


def _maps_over_controls(run: Run) -> Measured:
    """Better than every control by every metric that tells any explanation from maps that know nothing."""
    rows = _maps_against(run, CONTROLS)
    if rows.empty:
        return not_testable("this run did not compare average maps with controls")
    telling = _telling(run)
    if not telling:
        return not_testable("no metric tells any explanation from maps that know nothing: broken measures")
    measured = over_every(
        rows[rows["metric"].isin(telling)], FAITHFULNESS, "{b} by {metric}, one taught student, {n:.0f} images"
    )
    return _without_broken(measured, telling, rows["metric"])


def _without_broken(measured: Measured, telling: list[str], metrics: pd.Series) -> Measured:
    """The same, with the metrics named that were left out because they tell no map from any other."""
    broken = [metric for metric in dict.fromkeys(metrics) if metric in JUDGED_BY and metric not in telling]
    return replace(measured, detail=measured.detail + f"; tells no map here: {', '.join(broken)}" * bool(broken))


@dataclass(frozen=True)
class Claim:
    """A claim, its rule in words, and the function that applies it."""

    statement: str
    rule: str
    measure: Callable[[Run], Measured]
    data_set_bound: bool = False
    unit: str = POINTS  # of what is measured


# When a rule was stated, by the history of this file and of data/measured. Whatever is in neither set came when its own
# comparison had been seen on some data, or in one commit with it. Before any data (the first run followed within the
# hour):
BEFORE_DATA = frozenset(
    [
        "student_f1",
        "student_against_teacher",
        "distillation_adds",
        "released_is_cross_entropy",
        "temperature_matters",
        "best_cell",
        "flops_ratio",
        "met_ratio",
        "maps_over_shap",
        "fidelity",
    ]
)
# When other results had been seen and none of the comparison itself: known and new test images and few labels when the
# phantom and eye disease had been; longer training when students of the labels alone had trained longer and none that a
# teacher taught; explanations of taught students when a smoke run had been, those of students of few labels when those
# of all labels had been; the ensemble as a teacher before any run of it; volumes when students of them had been and no
# teacher, map or time.
BEFORE_NUMBERS = frozenset(
    [
        "new_images",
        "few_labels",
        "long_training",
        "teaching_explains",
        "teaching_explains_t2",
        "maps_taught",
        "teaching_explains_few",
        "better_teacher",
        "volumes_keep_up",
        "volumes_few",
        "volumes_maps",
        "volumes_cost",
    ]
)
# Before any real data, when generated images had been seen: a student that explains itself.
BEFORE_REAL_DATA = frozenset(
    ["transparent_keeps_up", "evidence_marks", "evidence_faithful", "evidence_cost", "teacher_pays"]
)
# Those of all three that are as they were. The others changed when numbers had been seen. Stricter: learned maps must
# beat every control and not an untrained network alone; a rival that does not beat random ones is no yardstick; a
# large p of temperature decides nothing; a grid without the paper's cell cannot choose it; Holm's p counts; one seed
# decides nothing; the best cell and times have intervals. Otherwise: there may be no effect beyond the margin; few
# labels are judged at the most of them, since at five a class every student was near chance; where labels are drawn,
# known images count by what is remembered of the draw; three families of metrics decide faithfulness in place of
# agreement with the top 30% kept, which is saturated, and since then only those that tell a map from what knows
# nothing, of one student under three fills; maps have no effect where all measures of one rival say so, not
# where one does.
UNCHANGED = frozenset(
    [
        "flops_ratio",
        "fidelity",
        "better_teacher",
        "volumes_keep_up",
        "volumes_few",
        "volumes_cost",
        "transparent_keeps_up",
        "evidence_cost",
        "teacher_pays",
    ]
)


def stated(claim: str) -> str:
    """When the claim's rule was stated, and whether it has changed since."""
    for names, when in (
        (BEFORE_DATA, "before any data"),
        (BEFORE_NUMBERS, "before its numbers"),
        (BEFORE_REAL_DATA, "before any real data, after generated"),
    ):
        if claim in names:
            return when if claim in UNCHANGED else f"{when}, changed after"
    return "after seeing data"


_SIGNIFICANT = ", Holm p < 0.05; none where within one point"
_OF_MAPS = "; none where all of one rival lie within five points"  # :data:`FAITHFULNESS`
_TELLS = "that tells any explanation from maps that know nothing, of"
_AS_FAITHFUL = (
    "difference above -5 points by each that tells the rival from maps that know nothing (random, uniform) of: "
    + ", ".join(JUDGED_BY)
)
_AS_FAITHFUL_WITHOUT_BLUR = f"{_AS_FAITHFUL}; without the blur, from which integrated gradients start"
CLAIMS = {
    "student_f1": Claim(
        "the macro F1 of the taught student is above 0.94", "macro F1 above 94 points", _student_f1, True
    ),
    "student_against_teacher": Claim(
        "the taught student is at most a point less accurate than its teacher",
        "difference above -1 point",
        _student_against_teacher,
    ),
    "student_behind": Claim(
        "on this data set the taught student stays more than a point behind its teacher",
        "difference below -1 point",
        _student_behind,
        True,
    ),
    "new_images": Claim(
        "the taught student is as accurate on test images of which training knows no copy and no person as on others",
        "new minus known above -1 point",
        _new_images,
    ),
    "relatives": Claim(
        "further training images help unrelated test images as much as those with a copy or the person among them",
        "gain of images that stay new minus gain of those that become known above -1 point",
        _relatives,
    ),
    "distillation_adds": Claim(
        "with all labels the teacher, by the paper's loss, adds to the accuracy that the labels alone teach",
        f"paper's loss minus cross-entropy above 0{_SIGNIFICANT}",
        _distillation_adds,
    ),
    "teacher_adds": Claim(
        "with all labels the teacher, by the loss with T^2, adds to the accuracy that the labels alone teach",
        f"loss with T^2 minus cross-entropy above 0{_SIGNIFICANT}",
        _teacher_adds,
    ),
    "oracle_adds": Claim(
        "with all labels a teacher that says the true probabilities adds to the accuracy that the labels alone teach",
        f"a teacher that says the true probabilities minus cross-entropy above 0{_SIGNIFICANT}",
        _oracle_adds,
    ),
    "few_labels": Claim(
        "with few labels a teacher that had all, by the loss with T^2, adds to the accuracy that these alone teach",
        f"loss with T^2 minus cross-entropy above 0{_SIGNIFICANT}",
        _few_labels,
    ),
    "few_labels_without_t2": Claim(
        "with few labels a teacher that had all, by the paper's loss, adds to the accuracy that these alone teach",
        f"paper's loss minus cross-entropy above 0{_SIGNIFICANT}",
        _few_labels_without_t2,
    ),
    "knowledge": Claim(
        "what the teacher adds with few labels is knowledge of the images, not a softer target",
        "loss with T^2 minus the same with each of these teachers above 0: " + ", ".join(WITHOUT_KNOWLEDGE),
        _knowledge,
    ),
    "unlabelled_images": Claim(
        "with few labels the teacher hands on what it knows of further images, whose labels the student does not get",
        f"all images minus the labelled few alone above 0{_SIGNIFICANT}",
        _unlabelled_images,
    ),
    "long_training": Claim(
        "where students train several times as long, the teacher adds to the accuracy that the labels alone teach",
        f"loss with T^2 minus cross-entropy above 0{_SIGNIFICANT}",
        _long_training,
    ),
    "released_is_cross_entropy": Claim(
        "students of the released loss are as accurate as those of cross-entropy",
        "difference within 3 points",
        _released_is_cross_entropy,
    ),
    "five_layers": Claim(
        "five layers are enough: a sixth adds less than a point of accuracy",
        "six layers minus five below +1 point",
        _five_layers,
    ),
    "max_pooling": Claim(
        "students with maximum pooling are more accurate than those with average pooling",
        f"average minus maximum below 0{_SIGNIFICANT}",
        _max_pooling,
    ),
    "temperature_matters": Claim(
        "the temperature changes the accuracy of the taught student",
        "lowest against highest T at each alpha and loss, Holm p < 0.05; none where all lie within one point",
        _temperature_matters,
    ),
    "best_cell": Claim(
        "the alpha and T that are best on validation are the paper's",
        "validation accuracy of the paper's cell minus that of each other cell of the paper's loss above 0",
        _best_cell,
        True,
    ),
    "flops_ratio": Claim(
        "the teacher takes 2.436 times the operations of the released student",
        "ratio within 5%",
        _flops_ratio,
        unit=RATIO,
    ),
    "met_ratio": Claim(
        "SHAP is 4.5 times faster on the student than on the teacher",
        "ratio within a factor of 1.5",
        _met_ratio,
        unit=RATIO,
    ),
    "maps_over_shap": Claim(
        "average maps on the student are over 200 times faster than SHAP on the teacher",
        "ratio above 200",
        _maps_over_shap,
        unit=RATIO,
    ),
    "maps_as_grad_cam": Claim(
        "average maps are as faithful to the taught student as Grad-CAM",
        _AS_FAITHFUL,
        partial(_as_faithful, rival="grad_cam"),
    ),
    "maps_as_shap": Claim(
        "average maps are as faithful to the taught student as SHAP", _AS_FAITHFUL, partial(_as_faithful, rival="shap")
    ),
    "maps_as_integrated_gradients": Claim(
        "average maps are as faithful to the taught student as integrated gradients",
        _AS_FAITHFUL_WITHOUT_BLUR,
        partial(_as_faithful, rival="integrated_gradients"),
    ),
    # What holds a prediction speaks for its class: with their signs the gradient methods are the stronger rivals.
    "maps_as_shap_signed": Claim(
        "average maps are as faithful to the taught student as SHAP with its signs kept",
        _AS_FAITHFUL,
        partial(_as_faithful, rival="shap_signed"),
    ),
    "maps_as_integrated_gradients_signed": Claim(
        "average maps are as faithful to the taught student as integrated gradients with their signs kept",
        _AS_FAITHFUL_WITHOUT_BLUR,
        partial(_as_faithful, rival="integrated_gradients_signed"),
    ),
    "maps_over_controls": Claim(
        "average maps show what the student learned: they are more faithful than every map that knows nothing of it",
        (
            "difference above 0, for each of "
            + ", ".join(CONTROLS)
            + f", by each {_TELLS}: "
            + ", ".join(JUDGED_BY)
            + _OF_MAPS
        ),
        _maps_over_controls,
    ),
    "fidelity": Claim(
        "the fidelity of explanations is between 0.8630 and 0.9764",
        "none: the paper's definition is not available",
        _fidelity,
    ),
}


# -- a student that explains itself (chapter 07) -----------------------------------------------------------------------
# Stated when the phantom alone had been run with these students, and brain MRI in an exploration of one seed whose
# numbers are not used. Every rule is about the shape called transparent. Grad-CAM of that student is its own evidence
# without sign and scale, so the rivals are explanations of the plain student on the same images. Changed when the
# phantom of drawn labels had been run, before any real data: taught students are explained (trained on labels alone
# they differ so much from seed to seed that nothing was told from luck), and the families of faithfulness are those of
# the other claims. Changed when real data had been run: what counts as no effect (:data:`UNCHANGED`).

EVIDENCE_METRICS = {"truth": ("pointing_game", "rank_accuracy", "pixel_auc"), "fidelity": tuple(FAMILIES)}
PASSES = 1.1  # forward passes; what costs at most a tenth more is one


def _evidence_tests(run: Run, question: str) -> pd.DataFrame:
    """Chapter 07's comparisons whose question starts so.

    None, where the run has no such chapter or its student is another network.

    Returns:
        The rows of ``tests_evidence.csv``.
    """
    if not run.has_table("tests_evidence"):
        return pd.DataFrame(columns=["question", "a", "b", "metric", "difference", "lo", "hi", "p_holm", "n", "seeds"])
    tests = run.load_table("tests_evidence")
    return tests[tests["question"].str.startswith(question)]


def _evidence_row(run: Run, question: str, a: str, rule: Callable[..., Measured]) -> Measured:
    rows = _evidence_tests(run, question).query("a == @a")
    if rows.empty:
        return not_testable(
            "this run did not ask it" if run.has_table("tests_evidence") else "this run has no transparent students"
        )
    row = rows.iloc[0]
    return rule(row, f"test accuracy, {_seed_count(row)}")


def _transparent_keeps_up(run: Run) -> Measured:
    keeps_up = partial(_of_seeds, rule=partial(above, threshold=-NON_INFERIORITY))
    return _evidence_row(
        run,
        "field: what does the smaller one cost?",
        "transparent ce",
        lambda row, detail: keeps_up(row, detail=detail),
    )


def _teacher_pays(run: Run) -> Measured:
    question = "teacher: does it add more to the smaller field?"
    return _evidence_row(run, question, "gain of transparent by kd_t2", _adds_over_seeds)


def _by_what_tells(run: Run, rows: pd.DataFrame, detail: str) -> Measured:
    """:func:`over_every` of several students, by what measures truth or tells any map of this run from another."""
    telling = _telling(run)
    kept = rows[~rows["metric"].isin(JUDGED_BY) | rows["metric"].isin(telling)]
    if kept.empty:
        return not_testable("no metric tells any explanation from maps that know nothing: broken measures")
    measured = _without_broken(over_every(_more_is_better(kept), FAITHFULNESS, detail), telling, rows["metric"])
    return measured if rows["seeds"].min() > 1 else _of_one_seed(measured)


def _evidence_against(run: Run, kind: str) -> Measured:
    """Better than every rival by every metric of the kind."""
    rows = _evidence_tests(run, kind).query("a == 'transparent class_evidence'")
    rows = rows[rows["metric"].isin(EVIDENCE_METRICS[kind])]
    if rows.empty:
        too_few = "fewer than two test images have a true mask and are read rightly by every student"
        return not_testable(
            too_few if kind == "truth" and run.has_table("tests_evidence") else "this run has no transparent students"
        )
    return _by_what_tells(run, rows, "{b} by {metric}, {n:.0f} images")


def _evidence_marks(run: Run) -> Measured:
    return _evidence_against(run, "truth")


def _evidence_faithful(run: Run) -> Measured:
    return _evidence_against(run, "fidelity")


def _evidence_cost(run: Run) -> Measured:
    if not run.has_table("evidence_cost"):
        return not_testable("this run has no transparent students")
    row = run.load_table("evidence_cost").iloc[0]
    detail = f"class evidence of all classes over a forward pass, median of {row['n']:.0f} pairs"
    return below(row["ratio"], row["lo"], row["hi"], PASSES, detail)


CLAIMS |= {
    "transparent_keeps_up": Claim(
        "the transparent student, whose evidence is local, is at most a point less accurate than the plain one",
        "transparent minus plain above -1 point",
        _transparent_keeps_up,
    ),
    "evidence_marks": Claim(
        (
            "class evidence of the transparent student marks the lesion better than every explanation of the plain "
            "student and every map that knows nothing"
        ),
        "difference above 0 for each rival by each of: " + ", ".join(EVIDENCE_METRICS["truth"]) + _OF_MAPS,
        _evidence_marks,
    ),
    "evidence_faithful": Claim(
        "class evidence is more faithful to the transparent student than any explanation is to the plain one",
        f"difference on the better side of 0 for each rival by each {_TELLS}: "
        + ", ".join(EVIDENCE_METRICS["fidelity"])
        + _OF_MAPS,
        _evidence_faithful,
    ),
    "evidence_cost": Claim(
        "class evidence costs one forward pass", f"ratio below {PASSES:g}", _evidence_cost, unit=RATIO
    ),
    "teacher_pays": Claim(
        "the teacher adds more to the accuracy of the transparent student than to that of the plain one",
        f"difference of the gains above 0, loss with T^2{_SIGNIFICANT}",
        _teacher_pays,
    ),
}


# -- what teaching does to explanations (chapter 08) -------------------------------------------------------------------
# Stated when the smoke profile alone had been run with these students. The explanation is the paper's, the average map;
# truth is asked where both students are right, at equal accuracy, faithfulness of all images.

_TRUTH = EVIDENCE_METRICS["truth"]


def _explains(run: Run, way: str, table: str = "tests_teaching") -> Measured:
    """Average maps of students taught in one way against those that they are compared with, by each measure."""
    if not run.has_table(table):
        return not_testable("this run did not ask it")
    tests = run.load_table(table)
    if "method" not in tests:
        return not_testable("this run has no students to compare")
    rows = tests[
        (tests["a"] == way) & (tests["method"] == "feature_maps_mean") & tests["metric"].isin([*_TRUTH, *FAMILIES])
    ]
    rows = rows[rows["matched"].astype(bool) == rows["metric"].isin(_TRUTH)]
    if rows.empty:
        return not_testable("this run has no students taught so")
    return _by_what_tells(run, rows, "{metric}, {n:.0f} images, {seeds:.0f} seeds")


_EXPLAINS = (
    "difference on the better side of 0 by each of: "
    + ", ".join(_TRUTH)
    + f"; and by each {_TELLS}: "
    + ", ".join(FAMILIES)
    + _OF_MAPS
)
CLAIMS |= {
    "teaching_explains": Claim(
        "teaching by the paper's loss makes average maps better than the labels alone do",
        _EXPLAINS,
        partial(_explains, way="paper's loss"),
    ),
    "teaching_explains_t2": Claim(
        "teaching by the loss with T^2 makes average maps better than the labels alone do",
        _EXPLAINS,
        partial(_explains, way="with T²"),
    ),
    "maps_taught": Claim(
        "teaching the teacher's maps as well makes average maps better than the loss with T^2 alone does",
        _EXPLAINS,
        partial(_explains, way="attention too"),
    ),
    # Stated when the same had been seen of students of all labels, and nothing yet of students of few.
    "teaching_explains_few": Claim(
        "with few labels teaching by the loss with T^2 makes average maps better than the labels alone do",
        _EXPLAINS,
        partial(_explains, way="with T²", table="tests_teaching_few"),
    ),
}


# -- the third dimension (chapter 09) ----------------------------------------------------------------------------------
# Stated when two students of generated volumes had been trained to see whether these can be learned, one with kernels
# in depth and one without: so that depth pays there had been seen, no teacher, no map and no time. The rules have not
# changed since; the generated volumes have, after a first run, in which every lesion held the middle slices, so that a
# map of the centre knew all there is of depth.


def _without_volumes(run: Run) -> Measured | None:
    """Why nothing can be said of volumes, if so: generated ones answer in runs of generated images alone, once."""
    if not run.has_table("tests_volumes"):
        return not_testable("this run has no volumes")
    if volumes.stand_in(run.settings.dataset, run.info().get("volumes", {}).get("source")):
        return not_testable("these images are no slices of volumes; the default run asks generated ones")
    return None


def _volumes_row(run: Run, question: str, a: str, b: str, rule: Callable[..., Measured]) -> Measured:
    """A comparison of accuracies on volumes, judged by ``rule``."""
    if (refusal := _without_volumes(run)) is not None:
        return refusal
    rows = run.load_table("tests_volumes").query("question == @question and a == @a and b == @b")
    if rows.empty:
        return not_testable("this run did not ask it")
    row, detail = rows.iloc[0], ""
    learned = run.load_table("tests_volumes").query("question == 'all labels: is anything learned?' and a == 'teacher'")
    if len(learned):  # whoever learns nothing keeps up with a teacher who does not, either
        points = 100 * learned.iloc[0][["difference", "lo", "hi"]]
        detail = "; teacher minus the most frequent class {:+.1f} points [{:+.1f}, {:+.1f}]".format(*points)
    return rule(row, detail=f"test accuracy on {row['n']:.0f} volumes, {_seed_count(row)}{detail}")


def _volumes_maps(run: Run) -> Measured:
    """Better than every control by every measure of truth and faithfulness."""
    if (refusal := _without_volumes(run)) is not None:
        return refusal
    rows = run.load_table("tests_volumes").query("question.str.startswith('controls') and a == 'feature_maps_mean'")
    if rows.empty:
        return not_testable("no volume that all students read rightly")
    measured = over_every(_more_is_better(rows), FAITHFULNESS, "{b} by {metric}, {n:.0f} volumes, {seeds:.0f} seeds")
    return measured if rows["seeds"].min() > 1 else _of_one_seed(measured)


def _volumes_cost(run: Run) -> Measured:
    if (refusal := _without_volumes(run)) is not None:
        return refusal
    times = run.load_table("volumes_met").set_index(["model", "method"])
    points = f"SHAP with {run.budget.shap_samples} points a volume (its default: 200)"
    detail = f"{points} on the teacher over average maps on the student, medians from quartile to quartile"
    shap, maps = times.loc[("teacher", "shap")], times.loc[("student", "feature_maps_mean")]
    return above(*_time_ratio(shap, maps), 200.0, detail)


CLAIMS |= {
    "volumes_keep_up": Claim(
        "of volumes the taught student is at most a point less accurate than its teacher",
        "paper's loss minus teacher above -1 point",
        partial(
            _volumes_row,
            question="all labels: does the student keep up?",
            a="paper's loss",
            b="teacher",
            rule=partial(_of_seeds, rule=partial(above, threshold=-NON_INFERIORITY)),
        ),
    ),
    "volumes_few": Claim(
        "with few labelled volumes the teacher, by the loss with T^2, adds to the accuracy that the labels alone teach",
        f"loss with T^2 minus labels alone above 0{_SIGNIFICANT}",
        partial(
            _volumes_row,
            question="few labels: what does the teacher add?",
            a="with T²",
            b="labels alone",
            rule=_adds_over_seeds,
        ),
    ),
    "volumes_depth": Claim(
        "kernels in depth are worth their operations: the student of volumes beats one of slices that costs as much",
        f"difference of the students of the labels alone above 0{_SIGNIFICANT}",
        partial(
            _volumes_row,
            question="all labels: what does depth add?",
            a="labels alone",
            b="slices, labels alone",
            rule=_adds_over_seeds,
        ),
    ),
    "volumes_maps": Claim(
        "average maps of volumes show what the student learned: they beat every map that knows nothing of it",
        (
            "difference on the better side of 0 by each measure of truth (where masks are known) and faithfulness, "
            "for each control" + _OF_MAPS
        ),
        _volumes_maps,
    ),
    "volumes_cost": Claim(
        "average maps of volumes on the student are over 200 times faster than SHAP on the teacher",
        "ratio above 200",
        _volumes_cost,
        unit=RATIO,
    ),
}


# -- lesions that are known (chapter 06) -------------------------------------------------------------------------------
# Stated when the phantom's maps had been seen, before any run with the masks of patients.


def _maps_mark(run: Run) -> Measured:
    """Against the best of the controls by this very measure.

    To be better than the best is the strictest comparison and needs no correction. To be worse than the best of many
    may be their luck: there the interval is drawn apart so far that it holds for all of them (:func:`at`).

    Returns:
        The difference, its interval and the verdict.
    """
    if not run.has_table("tests"):
        return not_testable("this run did not ask it")
    tests = run.load_table("tests")
    rows = tests.query("question.str.startswith('truth') and a == 'feature_maps_mean' and metric == 'pixel_auc'")
    if rows.empty:
        return not_testable("no masks of lesions, or too few that the student reads rightly")
    row = rows.iloc[0]
    detail = f"pixel AUC minus that of {row['b']}, one taught student, {row['n']:.0f} images"
    measured = above(row["difference"], row["lo"], row["hi"], 0.0, detail)
    upper = at(row["difference"], row["lo"], row["hi"], len(explain.CONTROLS) + 1)[1]  # and lesions' usual place
    return replace(measured, verdict=UNDECIDED) if measured.verdict == FAILS and upper >= 0 else measured


CLAIMS |= {
    "maps_mark": Claim(
        "average maps mark the lesion better than every map that knows nothing, where lesions usually lie included",
        "pixel AUC minus that of the best control above 0; not where below 0 for the best of so many",
        _maps_mark,
    )
}


# -- maps when what was learned is gone (chapter 06) -------------------------------------------------------------------
# Stated when the phantom's maps had been seen. A half is midway between the same order of pixels and none.
CHANGED = 0.5


def _maps_change(run: Run) -> Measured:
    """With all weights redrawn, in networks from seeds of which no student started; the interval is their range."""
    if not run.has_table("sanity"):
        return not_testable("this run did not ask it")
    rows = run.load_table("sanity").query("check == 'cascade' and method == 'feature_maps_mean'")
    if rows.empty or "lowest" not in rows:
        return not_testable("this run did not redraw weights in several networks")
    row = rows.loc[rows["order"].idxmax()]
    detail = f"mean over {row['n']:.0f} networks, from the lowest to the highest"
    return below(row["spearman"], row["lowest"], row["highest"], CHANGED, detail)


CLAIMS |= {
    "maps_change": Claim(
        "average maps hang on what the student learned: redrawing all weights changes them",
        f"Spearman's correlation of the map with itself below {CHANGED:g} in each of several redrawn networks",
        _maps_change,
        unit=CORRELATION,
    )
}


# -- a teacher that is better than its students (chapter 03) -----------------------------------------------------------
# Stated before any run of it.


def _better_teacher(run: Run) -> Measured:
    measured = _adds(run, "all labels: does it differ", ENSEMBLE, "labels alone")
    row = _comparison(run, "all labels: is the ensemble better", ENSEMBLE, "one student")
    if row is None:
        return measured
    ahead = f"{100 * row['difference']:+.1f} points [{100 * row['lo']:+.1f}, {100 * row['hi']:+.1f}]"
    return replace(measured, detail=f"{measured.detail}; the teacher itself against one student {ahead}")


CLAIMS |= {
    "better_teacher": Claim(
        "with all labels an ensemble of students of the labels alone, as a teacher, adds to the accuracy of one",
        f"loss with T^2 minus labels alone above 0{_SIGNIFICANT}",
        _better_teacher,
    )
}


# -- how often the rules err -------------------------------------------------------------------------------------------

_SEEDS, _IMAGES, _RIVALS, _MEASURES = 3, 1000, len(CONTROLS), len(JUDGED_BY)
_COMPARISONS = _RIVALS * _MEASURES


@dataclass(frozen=True)
class Simulation:
    """Comparisons whose truth is known, and the rule on them.

    Args:
        rule: ``(difference, lo, hi, p_holm)``, each ``(N,)``, to a verdict.
        margin: the effect at which it turns.
        truth: the effect in question, to the verdict that is true of it; *undecided* at the threshold itself, where
            none is.
        others: the true effects of further comparisons beside the one in question.
        same: how many comparisons have the effect in question.
        images: test images, each its own group.
        seeds_sd: standard deviation over seeds of the differences.
        images_sd: standard deviation over images of the differences.
    """

    rule: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], str]
    margin: float
    truth: Callable[[float], str]
    others: tuple[float, ...] = ()
    same: int = 1
    images: int = _IMAGES
    seeds_sd: float = 0.004
    images_sd: float = 0.15


def _of_the_first(rule: Callable[..., Measured]) -> Callable[..., str]:
    """The verdict of a rule on one comparison, the first."""
    return lambda difference, lo, hi, p: rule(difference[0], lo[0], hi[0]).verdict


def _adds_first(difference: np.ndarray, lo: np.ndarray, hi: np.ndarray, p_holm: np.ndarray) -> str:
    """The verdict of :func:`adds` on the first comparison."""
    return adds(difference[0], lo[0], hi[0], p=p_holm[0]).verdict


def _every_rival(difference: np.ndarray, lo: np.ndarray, hi: np.ndarray, p_holm: np.ndarray) -> str:
    """The verdict of :func:`every` on all comparisons with all rivals."""
    return every(difference, lo, hi, p_holm, np.arange(_COMPARISONS) // _MEASURES, FAITHFULNESS)[0]


def _beyond(effect: float, threshold: float, at_it: str = UNDECIDED) -> str:
    """What is true of an effect, by the side of the threshold on which it lies."""
    return HOLDS if effect > threshold else FAILS if effect < threshold else at_it


_NONE = partial(_beyond, threshold=0.0, at_it=NO_EFFECT)
_EXPLAINED: dict[str, Any] = {"margin": FAITHFULNESS, "images": 100, "seeds_sd": 0.0}
SIMULATED = {
    "above -1 point": Simulation(
        _of_the_first(partial(above, threshold=-NON_INFERIORITY)),
        NON_INFERIORITY,
        partial(_beyond, threshold=-NON_INFERIORITY),
    ),
    "below +1 point": Simulation(
        _of_the_first(partial(below, threshold=NON_INFERIORITY)),
        NON_INFERIORITY,
        lambda effect: _beyond(-effect, -NON_INFERIORITY),
    ),
    "within 3 points": Simulation(
        _of_the_first(partial(within, least=-EQUIVALENCE, most=EQUIVALENCE)),
        EQUIVALENCE,
        lambda effect: _beyond(-abs(effect), -EQUIVALENCE),
    ),
    "above 0, else none within a point": Simulation(_adds_first, MARGIN, _NONE),
    "the same, one of 6 comparisons": Simulation(_adds_first, MARGIN, _NONE, (0.0,) * 5),
    f"better than every one of {_RIVALS} rivals by {_MEASURES} measures, one near": Simulation(
        _every_rival,
        truth=_NONE,
        same=_MEASURES,
        others=(5 * FAITHFULNESS,) * (_COMPARISONS - _MEASURES),
        **_EXPLAINED,
    ),
    f"better than every one of {_RIVALS} rivals, all near": Simulation(
        _every_rival, truth=_NONE, same=_COMPARISONS, **_EXPLAINED
    ),
    f"as faithful by {_MEASURES} measures": Simulation(
        lambda d, lo, hi, p: faithful(d, lo, hi, np.ones(len(d), bool), FAITHFULNESS)[0],
        truth=partial(_beyond, threshold=-FAITHFULNESS),
        same=_MEASURES,
        **_EXPLAINED,
    ),
}


def error_rates(draws: int = 1000) -> pd.DataFrame:
    """How often each rule says what, where the truth is known.

    True effects are zero, the rule's margin and five times that, either way. Differences of accuracy have a standard
    deviation of .4 points over three seeds and of 15 over 1,000 images (such as two networks of which one alone is
    right on 2.25% of them), those of explanations of one network one of 15 over 100 images; comparisons beside each
    other err independently. Intervals and p are as :func:`kdnb.evaluation.compare_over_seeds` has them. The draws are
    fixed.

    Args:
        draws: runs simulated for each rule and true effect.

    Returns:
        A row a rule and true effect: ``rule``, ``effect`` in points, ``truth`` (the verdict that is true of it;
        *undecided* where it lies at the threshold), the share of each verdict, and of each kind of error: ``false``,
        first kind, a verdict that is not true; ``missed``, second kind, *undecided* where one is true (else NaN).
    """
    rows = []
    for name, simulation in SIMULATED.items():
        rng, comparisons = np.random.default_rng(20250215), simulation.same + len(simulation.others)
        df = np.array([_SEEDS - 1, simulation.images - 1])[:, None, None]
        seed_variance, image_variance = simulation.seeds_sd**2 / _SEEDS, simulation.images_sd**2 / simulation.images
        variances = np.array([seed_variance, image_variance])[:, None, None]
        estimates = variances * rng.chisquare(df, (2, draws, comparisons)) / df
        variance = estimates.sum(axis=0)
        freedom = variance**2 / (estimates**2 / df).sum(axis=0)
        half = stdtrit(freedom, 1 - LEVEL / 2) * np.sqrt(variance)
        errors = rng.normal(0, np.sqrt(variances.sum()), (draws, comparisons))
        margin = simulation.margin
        for effect in (-5 * margin, -margin, 0.0, margin, 5 * margin):
            differences = errors + np.array([effect] * simulation.same + list(simulation.others))
            p_holm = holm(2 * stdtr(freedom, -np.abs(differences) / np.sqrt(variance)))
            draws_of_all = zip(differences, differences - half, differences + half, p_holm, strict=True)
            verdicts = [simulation.rule(*draw) for draw in draws_of_all]
            shares = pd.Series(verdicts).value_counts(normalize=True).reindex(VERDICTS[:-1], fill_value=0.0)
            truth = simulation.truth(effect)
            errors_of_kinds = {
                "false": shares.drop(labels=[UNDECIDED, truth], errors="ignore").sum(),
                "missed": shares[UNDECIDED] if truth != UNDECIDED else math.nan,
            }
            facts = {"rule": name, "effect": 100 * effect, "truth": truth}
            rows.append(facts | shares.to_dict() | errors_of_kinds)
    return pd.DataFrame(rows)


def judge(run: Run) -> pd.DataFrame:
    """A row for each claim: the paper's number, what this run measured, the rule and the verdict.

    Args:
        run: a run whose chapters up to the last are done.

    Returns:
        Columns ``claim``, ``statement``, ``paper``, ``released_code`` (what that code does), ``detail``, ``rule`` and
        ``verdict``; ``paper_value``, ``measured``, ``lo`` and ``hi`` in the claim's ``unit``; ``origin`` says whether
        the paper makes the claim of this run's data or it is ours; ``stated`` when its rule was (:func:`stated`).
    """
    paper, release = published("paper"), published("release").set_index("claim")["statement"]
    dataset = run.settings.dataset.partition(":")[0]
    rows = []
    for name, claim in CLAIMS.items():
        published_rows = paper[(paper["claim"] == name) & (paper["dataset"].isna() | (paper["dataset"] == dataset))]
        row = _row(name, claim, claim.measure(run), published_rows)
        rows.append(row | {"released_code": release.get(name, "")})
    return pd.DataFrame(rows)


def _row(name: str, claim: Claim, measured: Measured, published_rows: pd.DataFrame) -> dict[str, object]:
    """A claim as :func:`judge` says it, but for what the released code does."""
    scale, ours = 100 if claim.unit == POINTS else 1, published_rows.empty
    bound = claim.data_set_bound and ours
    verdict = NOT_TESTABLE if bound else measured.verdict
    return {
        "claim": name,
        "statement": claim.statement,
        "origin": "ours" if ours else "paper",
        "paper": "" if ours else published_rows["statement"].iloc[0],
        "paper_value": float("nan") if ours else scale * published_rows["value"].iloc[0],
        "released_code": "",
        "measured": scale * measured.value,
        "lo": scale * measured.lo,
        "hi": scale * measured.hi,
        "unit": claim.unit,
        "detail": f"the paper says it of other data; {measured.detail}" if bound else measured.detail,
        "rule": claim.rule,
        "stated": stated(name),
        "verdict": verdict if ours else OF_THE_PAPER.get(verdict, verdict),
    }


class Tables(Protocol):
    """Where a rule finds a run's tables: a :class:`kdnb.runs.Run`, or a record."""

    def has_table(self, name: str) -> bool:
        """Whether the run has such a table."""

    def load_table(self, name: str) -> pd.DataFrame:
        """The table of that name."""


# Rules that read only tables which records keep, and which these are: a record older than a rule is judged by it.
OF_RECORDS = {
    "maps_as_grad_cam": ("tests", "fidelity_summary"),
    "maps_as_shap": ("tests", "fidelity_summary"),
    "maps_as_integrated_gradients": ("tests", "fidelity_summary"),
    "maps_as_shap_signed": ("tests", "fidelity_summary"),
    "maps_as_integrated_gradients_signed": ("tests", "fidelity_summary"),
    "maps_over_controls": ("tests", "fidelity_summary"),
    "maps_mark": ("tests",),
    "evidence_marks": ("tests_evidence",),
    "evidence_faithful": ("tests_evidence", "tests", "fidelity_summary"),
    "teaching_explains": ("tests_teaching", "tests", "fidelity_summary"),
    "teaching_explains_t2": ("tests_teaching", "tests", "fidelity_summary"),
    "maps_taught": ("tests_teaching", "tests", "fidelity_summary"),
    "teaching_explains_few": ("tests_teaching_few", "tests", "fidelity_summary"),
}


def as_today(table: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    """A recorded ``claims.csv`` in today's units, words and, as far as the record allows, by today's rules.

    Claims that are made no more are left out, the others stated as today. Where a rule has changed since, those of
    :data:`OF_RECORDS` are judged anew from the record's tables; of the others that compare maps, *no effect* once
    needed a single equal measure, and is *undecided* where a record cannot say of all.

    Args:
        table: as :func:`judge` made it when the run was recorded.
        tables: the record's.

    Returns:
        The same rows and those of claims made since that the record can test; the table itself is not changed.
    """
    known = _in_units(table[table["claim"].isin(CLAIMS)])
    rules = known["claim"].map(lambda name: CLAIMS[name].rule)
    changed = known["rule"].fillna("") != rules if "rule" in known else pd.Series(False, known.index)
    single = changed & rules.str.endswith(_OF_MAPS) & known["verdict"].map(MEANING).eq(NO_EFFECT)
    statements = known["claim"].map(lambda name: CLAIMS[name].statement)
    known = known.assign(statement=statements, verdict=known["verdict"].mask(single, UNDECIDED))
    current = set(known.loc[~changed, "claim"])
    anew, paper = [], published("paper")  # which makes such a claim of every data set or of none
    for name, needed in OF_RECORDS.items():
        if name not in current and all(tables.has_table(table_name) for table_name in needed):
            measured, claim = CLAIMS[name].measure(cast("Run", tables)), CLAIMS[name]
            anew.append(_row(name, claim, measured, paper[paper["claim"] == name]))
    kept = known[~known["claim"].isin([row["claim"] for row in anew])]
    return pd.concat([kept, pd.DataFrame(anew)], ignore_index=True) if anew else known


def _in_units(table: pd.DataFrame) -> pd.DataFrame:
    """A recorded ``claims.csv`` in today's units and verdicts; one that says its units already is as it was.

    Earlier records have shares and no units, say *reproduced* of our own questions too, went by intervals where Holm's
    p (in their details) was not below 5%, took the best cell for certain, and called *undecided* what was no measure or
    no yardstick.

    Args:
        table: as :func:`judge` made it when the run was recorded.

    Returns:
        The same rows.
    """
    if "unit" in table:
        return table
    units = table["claim"].map(lambda name: CLAIMS[name].unit if name in CLAIMS else POINTS)
    texts = {
        name: table[name].fillna("") if name in table else pd.Series("", table.index)
        for name in ("paper", "detail", "rule")
    }
    scale = np.where((units == POINTS) & ~texts["detail"].str.startswith("points "), 100, 1)
    verdict = table["verdict"].map(MEANING)
    holm_p = texts["detail"].str.extract(r"Holm p = ([-+.0-9e]+)")[0].astype(float)
    by_luck = (texts["rule"].str.endswith("above 0") & (holm_p >= LEVEL)) | (table["claim"] == "best_cell")
    contradicted = verdict.isin([HOLDS, FAILS]) & by_luck
    useless = (verdict == UNDECIDED) & texts["detail"].str.contains("so it cannot tell$|no yardstick$")
    verdict = verdict.mask(contradicted, UNDECIDED).mask(useless, NOT_TESTABLE)
    worded = verdict.where(texts["paper"] == "", verdict.replace(OF_THE_PAPER))
    changed = {name: scale * table[name] for name in ("measured", "lo", "hi") if name in table}
    return table.assign(**changed, unit=units, verdict=worded)
