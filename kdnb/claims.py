"""The paper's claims and our own questions, each with the rule that decides it, stated before the numbers are looked at (where not, it
says so).

Most rules compare a measured interval with a threshold: wholly on the right side of it is *reproduced*, wholly on the wrong side is *not
reproduced*, astride it is *undecided*. Whether something adds at all has a fourth answer: where the interval holds 0 and lies within one
point either way, there is *no effect beyond the margin* (equivalence, Schuirmann's two tests). A claim about a data set is *not testable
here* in a run on other data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import t as t_distribution

from kdnb import networks
from kdnb.evaluation import equivalent
from kdnb.fidelity import FAMILIES
from kdnb.runs import Run
from kdnb.sources import REPOSITORY
from kdnb.teachers import WITHOUT_KNOWLEDGE

REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_TESTABLE = "reproduced", "not reproduced", "undecided", "not testable here"
NO_EFFECT = "no effect beyond the margin"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, NO_EFFECT, UNDECIDED, NOT_TESTABLE)
NON_INFERIORITY = 0.01  # what is at most one point behind keeps up: a student with its teacher, five layers with six
MARGIN = 0.01  # an effect within one point either way is none that anybody would train a teacher for
EQUIVALENCE = 0.03  # two losses within three points either way are called equal
# The rules on faithfulness and the positive control came when the phantom, eye disease and brain MRI had been seen, that maps must beat
# random ones when Alzheimer MRI had been, too, and the one on relatives when one such student of brain MRI had been: what is recorded
# after these is their test. The one on longer training came before any taught student had trained longer. Those on knowledge, on images
# without a label and on the oracle came when the phantom of certain labels had shown that controls gain what a teacher gains (2026), before
# any run on drawn labels; that they are judged at the most of the few labels came when a first run on these had shown that with five labels
# a class every student is near chance. Made stricter when all six runs
# had been seen, none the easier: learned maps must beat every control and not an untrained network alone; a rival that does not beat
# random ones is no yardstick; a large p of temperature decides nothing; a grid without the paper's cell cannot choose it.
CONTROLS = ("random", "centre", "sobel", "uniform", "untrained")  # explanations that know nothing of what was learned
FAITHFULNESS = 0.05  # a probability (or share) at most five points lower is as faithful
# The families decide faithfulness since a first run on drawn labels had been seen. Agreement with the top 30% kept decided before: it is
# saturated, and biased where the empty image has a class of its own.


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
    """Reproduced if the interval lies above the threshold."""
    verdict = REPRODUCED if lo > threshold else NOT_REPRODUCED if hi < threshold else UNDECIDED
    return Measured(value, lo, hi, verdict, detail)


def adds(value: float, lo: float, hi: float, detail: str = "") -> Measured:
    """Reproduced if the interval lies above 0, not reproduced if below; else no effect, if it lies within the margin."""
    if lo <= 0 <= hi and equivalent(lo, hi, MARGIN):
        return Measured(value, lo, hi, NO_EFFECT, detail)
    return above(value, lo, hi, 0.0, detail)


def below(value: float, lo: float, hi: float, threshold: float, detail: str = "") -> Measured:
    """Reproduced if the interval lies below the threshold."""
    verdict = REPRODUCED if hi < threshold else NOT_REPRODUCED if lo > threshold else UNDECIDED
    return Measured(value, lo, hi, verdict, detail)


def over_every(rows: pd.DataFrame, margin: float, detail: str) -> Measured:
    """Better than each of several rivals, by each of several measures: the row that decides.

    All must be better, each at its own level: an intersection of tests needs no correction (Berger 1982). One that is worse refutes it, by
    Holm's p, because any of many may be worse by luck; so does one whose advantage lies within the margin either way.

    Args:
        rows: ``difference``, ``lo``, ``hi``, above 0 where it is better, and ``p_holm``. detail: may name columns in braces.
    """
    worse = rows[(rows["hi"] < 0) & (rows["p_holm"] < 0.05)]
    equal = rows[[equivalent(lo, hi, margin) for lo, hi in zip(rows["lo"], rows["hi"], strict=True)]]
    decides, verdict = rows.loc[rows["lo"].idxmin()], UNDECIDED
    if (rows["lo"] > 0).all():
        verdict = REPRODUCED
    elif len(worse):
        decides, verdict = worse.loc[worse["hi"].idxmin()], NOT_REPRODUCED
    elif len(equal):
        decides, verdict = equal.loc[equal["hi"].idxmin()], NO_EFFECT
    won = f"better beyond luck in {(rows['lo'] > 0).sum()} of {len(rows)} comparisons; the one that decides: "
    return Measured(decides["difference"], decides["lo"], decides["hi"], verdict, won + detail.format(**decides))


def within(value: float, lo: float, hi: float, least: float, most: float, detail: str = "") -> Measured:
    """Reproduced if the interval lies between two thresholds, not reproduced if it lies wholly outside."""
    verdict = REPRODUCED if least <= lo and hi <= most else NOT_REPRODUCED if hi < least or lo > most else UNDECIDED
    return Measured(value, lo, hi, verdict, detail)


def not_testable(detail: str) -> Measured:
    """No number, because this run cannot have one; ``detail`` says why."""
    return Measured(math.nan, math.nan, math.nan, NOT_TESTABLE, detail)


def _comparison(run: Run, question: str, a: str, b: str) -> pd.Series | None:
    """The first row of ``tests.csv`` whose question starts so, of ``a`` and ``b``; ``None`` in a run that did not ask."""
    tests = run.load_table("tests")
    rows = tests[(tests["question"].str.startswith(question)) & (tests["a"] == a) & (tests["b"] == b)]
    return None if rows.empty else rows.iloc[0]


def _student_f1(run: Run) -> Measured:
    rows = run.load_table("classification").query("model == 'student_kd'")
    mean = rows[["f1_macro", "f1_macro_lo", "f1_macro_hi"]].mean()
    return above(*mean, 0.94, f"means of {len(rows)} seeds and of their intervals")


def _gap_to_teacher(run: Run, rule: Callable[..., Measured]) -> Measured:
    row = _comparison(run, "all seeds", "student_kd", "teacher")
    if row is None:
        return not_testable("this run did not train the paper's loss")
    what = f"test accuracy, mean of {row['seeds']:.0f} seeds minus one teacher"
    return rule(row["difference"], row["lo"], row["hi"], -NON_INFERIORITY, what)


def _student_against_teacher(run: Run) -> Measured:
    return _gap_to_teacher(run, above)


def _student_behind(run: Run) -> Measured:
    return _gap_to_teacher(run, below)


def _adds(run: Run, question: str, a: str, b: str) -> Measured:
    row = _comparison(run, question, a, b)
    if row is None:
        return not_testable("this run did not ask it")
    what = f"test accuracy over {row['seeds']:.0f} seeds, {row['question'].partition(':')[0]}, Holm p = {row['p_holm']:.3g}"
    return adds(row["difference"], row["lo"], row["hi"], what)


def _distillation_adds(run: Run) -> Measured:
    return _adds(run, "all seeds", "student_kd", "ce")


def _teacher_adds(run: Run) -> Measured:
    return _adds(run, "all seeds", "student_kd_t2", "ce")


def _few(run: Run) -> str:
    """How the questions begin that were asked at the most labels of those that are few; with the fewest, students may be at chance."""
    questions = run.load_table("tests")["question"]
    few = questions[questions.str.startswith("few labels")].str.split(":").str[0]
    return "few labels" if few.empty else f"{max(few, key=lambda what: int(what.split()[2]))}:"


def _few_labels(run: Run) -> Measured:
    return _adds(run, _few(run), "with T²", "labels alone")


def _few_labels_without_t2(run: Run) -> Measured:
    return _adds(run, _few(run), "paper's loss", "labels alone")


def _knowledge(run: Run) -> Measured:
    """Better than each teacher that knows nothing of an image."""
    few = _few(run)
    rows = [_comparison(run, few, "with T²", name) for name in WITHOUT_KNOWLEDGE]
    if any(row is None for row in rows):
        return not_testable("this run has no teachers without knowledge")
    return over_every(pd.DataFrame(rows), MARGIN, f"{{b}}; test accuracy, {few.rstrip(':')}, {{seeds:.0f}} seeds")


def _unlabelled_images(run: Run) -> Measured:
    return _adds(run, _few(run), "with T², all images", "with T²")


def _oracle_adds(run: Run) -> Measured:
    return _adds(run, "all labels", "oracle, T = 1", "labels alone")


def _long_training(run: Run) -> Measured:
    if not run.load_table("tests").query("a == 'student_kd_t2'")["question"].str.startswith("long training").any():
        return not_testable("this run trained no students of both kinds for longer than the others")
    found = _adds(run, "long training", "student_kd_t2", "ce")
    longest = run.load_table("lengths").query("model == 'student_ce' and learned_from == 'training' and epochs == epochs.max()")
    alone = longest["accuracy"].mean()
    teacher = run.load_table("classification").query("model == 'teacher'")["accuracy"].iloc[0]
    return replace(found, detail=f"{found.detail}; accuracy of the labels alone {alone:.3f}, of the teacher {teacher:.3f}")


def _released_is_cross_entropy(run: Run) -> Measured:
    row = _comparison(run, "all seeds", "student_released", "ce")
    if row is None:
        return not_testable("this run did not train the released loss")
    return within(
        row["difference"], row["lo"], row["hi"], -EQUIVALENCE, EQUIVALENCE, f"test accuracy over seeds, Holm p = {row['p_holm']:.3g}"
    )


def _new_images(run: Run) -> Measured:
    if run.has_table("leak_worth"):
        rows = run.load_table("leak_worth").query("model == 'student_kd' and part == 'known'")
        if rows.empty:
            return not_testable("training knows no test image")
        row = rows.iloc[0]
        detail = f"minus the gain by remembering drawn labels of {row['n']} known test images, beyond the teacher's, which saw none of them"
        return above(-row["mean"], -row["hi"], -row["lo"], -NON_INFERIORITY, detail)
    table = run.load_table("known_and_new").query("model == 'student_kd'").set_index("part")
    if "new minus known" not in table.index:
        part = "known to training" if "known" in table.index else "new to training"
        return not_testable(f"all {table['n'].iloc[0]} test images are {part}, as far as copies and persons are known")
    row = table.loc["new minus known"]
    share = table.loc["known", "n"] / row["n"]
    return above(row["mean"], row["lo"], row["hi"], -NON_INFERIORITY, f"test accuracy, new minus known; {share:.0%} are known")


def _relatives(run: Run) -> Measured:
    if not run.has_table("gains"):
        return not_testable("no student of this run learned from the images of validation")
    gains = run.load_table("gains").query("model == 'student_kd'").set_index("part")
    if "stay new minus become known" not in gains.index:
        missing = "become known" if "stay new" in gains.index else "stay new"
        return not_testable(f"no test images {missing} with the images of validation")
    row, counts = gains.loc["stay new minus become known"], gains["n"]
    detail = f"gain in test accuracy, {counts['stay new']} that stay new minus {counts['become known']} that become known"
    return above(row["mean"], row["lo"], row["hi"], -NON_INFERIORITY, detail)


def _shape(run: Run, shape: str, threshold: float, words: str) -> Measured:
    row = _comparison(run, "shape", shape, "5 layers")
    if row is None:
        return not_testable("this run trained no students of other shapes")
    if row["seeds"] < 2:  # its interval knows nothing of the luck of training
        return Measured(row["difference"], math.nan, math.nan, UNDECIDED, f"test accuracy, {words}; one seed only")
    return below(row["difference"], row["lo"], row["hi"], threshold, f"test accuracy, {words}; {row['seeds']:.0f} seeds")


def _five_layers(run: Run) -> Measured:
    return _shape(run, "6 layers", NON_INFERIORITY, "six layers minus five")


def _max_pooling(run: Run) -> Measured:
    return _shape(run, "average pooling", 0.0, "average minus maximum")


def _temperature_matters(run: Run) -> Measured:
    effect = run.load_table("temperature_effect")
    if effect.empty:
        return not_testable("the grid of this run has one temperature or one seed")
    row = effect.loc[effect["p_holm"].idxmin()]
    all_within = all(equivalent(lo, hi, MARGIN) for lo, hi in zip(effect["lo"], effect["hi"], strict=True))
    verdict = REPRODUCED if row["p_holm"] < 0.05 else NO_EFFECT if all_within else UNDECIDED
    detail = f"test accuracy, {row['a']} minus {row['b']}, the clearest of {len(effect)}; Holm p = {row['p_holm']:.3g}"
    return Measured(row["difference"], row["lo"], row["hi"], verdict, detail)


def _best_cell(run: Run) -> Measured:
    chosen = run.load_table("choice").iloc[0]
    name = "alpha {:g}, T {:g}".format
    found = name(chosen["alpha"], chosen["temperature"])
    paper = published("paper").query("claim == 'best_cell' and dataset == @run.settings.dataset")["statement"]
    grid = {name(*one) for one in run.load_table("sweep").query("loss == 'kd'")[["alpha", "temperature"]].itertuples(index=False)}
    if len(grid) == 1:  # nothing to choose from
        return not_testable("the grid of this run is one cell")
    if not grid.issuperset(paper):
        return not_testable(f"the grid of this run does not have {paper.iloc[0]}; chosen on validation: {chosen['loss']}, {found}")
    verdict = NOT_TESTABLE if paper.empty else REPRODUCED if paper.iloc[0] == found else NOT_REPRODUCED
    return Measured(math.nan, math.nan, math.nan, verdict, f"chosen on validation: {chosen['loss']}, {found}")


def _flops_ratio(run: Run) -> Measured:
    ratio = run.load_table("sizes").set_index("model")["teacher_over_model"]["released student (8 convolutions)"]
    return within(ratio, ratio, ratio, 0.95 * 2.436, 1.05 * 2.436, "counted at 224 pixels, DenseNet121 over the released student")


def _met(run: Run, model: str, method: str) -> pd.Series:
    met = run.load_table("met")
    rows = met[(met["model"].str.startswith(model)) & (met["method"] == method)]
    return rows.sort_values("batch_size").iloc[0]


def _without_interval(found: Measured) -> Measured:
    """Times are judged by their medians alone."""
    return replace(found, lo=math.nan, hi=math.nan)


def _met_ratio(run: Run) -> Measured:
    own = (networks.OWN_TEACHER, networks.OWN_STUDENT)
    if (found := tuple(networks.of_run(run, role) for role in ("teacher", "student"))) != own:
        return not_testable(f"the paper says it of {' and '.join(own)}; this run has {' and '.join(found)}")
    teacher, student = _met(run, "teacher", "shap"), _met(run, "student", "shap")
    ratio = teacher["ms_per_image_median"] / student["ms_per_image_median"]
    return _without_interval(within(ratio, ratio, ratio, 3.0, 6.75, "medians in one run; reproduced within a factor of 1.5"))


def _maps_over_shap(run: Run) -> Measured:
    maps, shap = _met(run, "student", "feature_maps_mean"), _met(run, "teacher", "shap")
    ratio = shap["ms_per_image_median"] / maps["ms_per_image_median"]
    method = _met(run, "student", "shap")["ms_per_image_median"] / maps["ms_per_image_median"]
    points = f"SHAP with {run.budget.shap_samples} points an image (its default: 200)"
    alone = f"of it the method alone, both on the student: {method:.0f} times"
    detail = f"{points} on the teacher over average maps on the student, one image at a time; {alone}"
    return _without_interval(above(ratio, ratio, ratio, 200.0, detail))


def _fidelity(run: Run) -> Measured:
    summary = run.load_table("fidelity_summary")
    means = summary[
        (summary["metric"] == "agreement_30")
        & (summary["method"] == "feature_maps_mean")
        & summary["model"].str.startswith("student")
        & (summary["class"] != "all")
    ]["mean"]
    what = f"agreement with the top 30% kept, mean over classes ({means.min():.2f} to {means.max():.2f}); another definition"
    return Measured(means.mean(), math.nan, math.nan, NOT_TESTABLE, what)


def _more_is_better(rows: pd.DataFrame) -> pd.DataFrame:
    """Comparisons by ``metric`` with the signs of those turned for which less is better."""
    ends = rows[["difference", "lo", "hi"]].mul(rows["metric"].map(lambda metric: FAMILIES.get(metric, 1)), axis=0)
    return rows.assign(difference=ends["difference"], lo=ends[["lo", "hi"]].min(axis=1), hi=ends[["lo", "hi"]].max(axis=1))


def _against(run: Run, other: str) -> pd.DataFrame:
    """Average maps of the taught student against ``other`` by each metric of :data:`FAMILIES`: difference, lo and hi, more is better."""
    tests = run.load_table("tests")
    rows = tests[(tests["a"] == "feature_maps_mean") & (tests["b"] == other) & tests["question"].str.startswith("average map against")]
    return _more_is_better(rows[(rows["class"] == "all") & rows["metric"].isin(FAMILIES)]).set_index("metric")


def _as_faithful(run: Run, other: str) -> Measured:
    rows, random = _against(run, other), _against(run, "random")
    if rows.empty:
        return not_testable(f"this run did not compare average maps with {other}")
    able = [metric for metric in rows.index if random.loc[metric, "lo"] > 0]
    if not able:  # equal scores prove nothing where a measure tells no explanation from a random one
        return not_testable("no metric tells average maps from random ones here")
    # Both differences are the average maps' own: where the one to the rival is the larger, the rival scores below random maps.
    able = [metric for metric in able if rows.loc[metric, "difference"] < random.loc[metric, "difference"]]
    if not able:
        return not_testable(f"{other} beats random maps by no metric here: no yardstick")
    detail, rows = f"the nearest of {len(able)} metrics that tell both from random maps: ", rows.loc[able]
    nearest = rows["lo"].idxmin()
    row = rows.loc[nearest]
    verdict = NOT_REPRODUCED if (rows["hi"] < -FAITHFULNESS).any() else REPRODUCED if row["lo"] > -FAITHFULNESS else UNDECIDED
    return Measured(row["difference"], row["lo"], row["hi"], verdict, f"{detail}{nearest}, taught student, {row['n']:.0f} images")


def _maps_as_grad_cam(run: Run) -> Measured:
    return _as_faithful(run, "grad_cam")


def _maps_as_shap(run: Run) -> Measured:
    return _as_faithful(run, "shap")


def _maps_as_integrated_gradients(run: Run) -> Measured:
    return _as_faithful(run, "integrated_gradients")


def _maps_over_controls(run: Run) -> Measured:
    """Better than every control by every metric."""
    rows = pd.concat([_against(run, control).reset_index() for control in CONTROLS], ignore_index=True)
    if rows.empty:
        return not_testable("this run did not compare average maps with controls")
    return over_every(rows, FAITHFULNESS, "{b} by {metric}, taught student, {n:.0f} images")


@dataclass(frozen=True)
class Claim:
    """A claim, its rule in words, and the function that applies it."""

    statement: str
    rule: str
    measure: Callable[[Run], Measured]
    data_set_bound: bool = False


# Whose rule came, or was changed, after data had been seen: the comments above say when and what.
STATED_AFTER = frozenset(
    [
        "relatives",
        "oracle_adds",
        "few_labels",
        "few_labels_without_t2",
        "knowledge",
        "unlabelled_images",
        "temperature_matters",
        "best_cell",
        "maps_as_grad_cam",
        "maps_as_shap",
        "maps_as_integrated_gradients",
        "maps_over_controls",
        "transparent_keeps_up",
        "evidence_marks",
        "evidence_faithful",
        "evidence_cost",
        "teacher_pays",
        "teacher_pays_few",
        "volumes_depth",
    ]
)

_AS_FAITHFUL = "difference above -5 points by each of: " + ", ".join(FAMILIES)
CLAIMS = {
    "student_f1": Claim("the student's F1 is above 0.94", "interval of macro F1 above 0.94", _student_f1, True),
    "student_against_teacher": Claim("the student keeps up with the teacher", "difference above -1 point", _student_against_teacher),
    "student_behind": Claim("on this data set the student stays behind the teacher", "difference below -1 point", _student_behind, True),
    "new_images": Claim(
        "the accuracy holds for test images of which training knows no copy and no person", "new minus known above -1 point", _new_images
    ),
    "relatives": Claim(
        "added training images help other test images as much as those of which they are a copy or show the person",
        "gain of images that stay new minus gain of those that become known above -1 point",
        _relatives,
    ),
    "distillation_adds": Claim("the teacher adds to what labels teach", "paper's loss minus cross-entropy above 0", _distillation_adds),
    "teacher_adds": Claim("so it does by the loss with T^2", "loss with T^2 minus cross-entropy above 0", _teacher_adds),
    "oracle_adds": Claim(
        "perfect soft labels add to what labels teach",
        "a teacher that says the true probabilities minus cross-entropy above 0",
        _oracle_adds,
    ),
    "few_labels": Claim(
        "where the student has few labels and the teacher had many, it adds", "loss with T^2 minus cross-entropy above 0", _few_labels
    ),
    "few_labels_without_t2": Claim(
        "with few labels the paper's loss adds, too", "paper's loss minus cross-entropy above 0", _few_labels_without_t2
    ),
    "knowledge": Claim(
        "what the teacher adds there is knowledge of the images, not a softer target",
        "loss with T^2 minus the same with each of these teachers above 0: " + ", ".join(WITHOUT_KNOWLEDGE),
        _knowledge,
    ),
    "unlabelled_images": Claim(
        "it hands on what it knows of images that nobody labelled", "all images minus the labelled few alone above 0", _unlabelled_images
    ),
    "long_training": Claim(
        "where students train longer, the teacher adds to what labels teach", "loss with T^2 minus cross-entropy above 0", _long_training
    ),
    "released_is_cross_entropy": Claim(
        "the released loss trains like cross-entropy", "difference within 3 points", _released_is_cross_entropy
    ),
    "five_layers": Claim("five layers are enough", "six layers minus five below +1 point", _five_layers),
    "max_pooling": Claim("maximum pooling is better than average pooling", "average minus maximum below 0", _max_pooling),
    "temperature_matters": Claim(
        "the temperature changes the result",
        "lowest against highest T at each alpha and loss, Holm p < 0.05; none where all lie within one point",
        _temperature_matters,
    ),
    "best_cell": Claim("the best alpha and T are the paper's", "the cell chosen on validation is the paper's", _best_cell, True),
    "flops_ratio": Claim("the teacher costs 2.436 times the student", "ratio within 5%", _flops_ratio),
    "met_ratio": Claim("SHAP is 4.5 times faster on the student", "ratio within a factor of 1.5", _met_ratio),
    "maps_over_shap": Claim("average maps on the student are far cheaper than SHAP on the teacher", "ratio above 200", _maps_over_shap),
    "maps_as_grad_cam": Claim("average maps are as faithful as Grad-CAM", _AS_FAITHFUL, _maps_as_grad_cam),
    "maps_as_shap": Claim("average maps are as faithful as SHAP", _AS_FAITHFUL, _maps_as_shap),
    "maps_as_integrated_gradients": Claim(
        "average maps are as faithful as integrated gradients",
        _AS_FAITHFUL,
        _maps_as_integrated_gradients,
    ),
    "maps_over_controls": Claim(
        "average maps show what was learned: they are more faithful than every control that knows nothing of it",
        "difference above 0 by each of " + ", ".join(FAMILIES) + ", for each of: " + ", ".join(CONTROLS),
        _maps_over_controls,
    ),
    "fidelity": Claim("fidelity is between 0.8630 and 0.9764", "none: the paper's definition is not available", _fidelity),
}


# -- a student that explains itself (chapter 07) ------------------------------------------------------------------------
# Stated when the phantom alone had been run with these students, and brain MRI in an exploration of one seed whose numbers are not used.
# Every rule is about the shape called transparent. Grad-CAM of that student is its own evidence without sign and scale, so the rivals are
# explanations of the plain student on the same images. Changed when the phantom of drawn labels had been run, before any real data: taught
# students are explained (trained on labels alone they differ so much from seed to seed that nothing was told from luck), and the families
# of faithfulness are those of the other claims.

EVIDENCE_METRICS = {"truth": ("pointing_game", "rank_accuracy", "pixel_auc"), "fidelity": tuple(FAMILIES)}
PASSES = 1.1  # forward passes; what costs at most a tenth more is one


def _evidence_tests(run: Run, question: str) -> pd.DataFrame:
    """Chapter 07's comparisons whose question starts so; none, where the run has no such chapter or its student is another network."""
    if not run.has_table("tests_evidence"):
        return pd.DataFrame(columns=["question", "a", "b", "metric", "difference", "lo", "hi", "p_holm", "n", "seeds"])
    tests = run.load_table("tests_evidence")
    return tests[tests["question"].str.startswith(question)]


def _evidence_row(run: Run, question: str, a: str, rule: Callable[..., Measured]) -> Measured:
    rows = _evidence_tests(run, question).query("a == @a")
    if rows.empty:
        return not_testable("this run did not ask it" if run.has_table("tests_evidence") else "this run has no transparent students")
    row = rows.iloc[0]
    if row["seeds"] < 2:  # its interval knows nothing of the luck of training
        return Measured(row["difference"], row["lo"], row["hi"], UNDECIDED, "test accuracy; one seed only")
    what = f"test accuracy, {row['seeds']:.0f} seeds, Holm p = {row['p_holm']:.3g}"
    return rule(row["difference"], row["lo"], row["hi"], detail=what)


def _transparent_keeps_up(run: Run) -> Measured:
    keeps_up = partial(above, threshold=-NON_INFERIORITY)
    return _evidence_row(run, "field: what does the smaller one cost?", "transparent ce", keeps_up)


def _teacher_pays(run: Run) -> Measured:
    return _evidence_row(run, "teacher: does it add more to the smaller field?", "gain of transparent by kd_t2", adds)


def _teacher_pays_few(run: Run) -> Measured:
    return _evidence_row(run, "teacher: does it add more to the smaller field,", "gain of transparent by kd_t2", adds)


def _evidence_against(run: Run, kind: str) -> Measured:
    """Better than every rival by every metric of the kind."""
    rows = _evidence_tests(run, kind).query("a == 'transparent class_evidence'")
    rows = rows[rows["metric"].isin(EVIDENCE_METRICS[kind])]
    if rows.empty:
        few = "fewer than two test images have a true mask and are read rightly by every student"
        return not_testable(few if kind == "truth" and run.has_table("tests_evidence") else "this run has no transparent students")
    return over_every(_more_is_better(rows), FAITHFULNESS, "{b} by {metric}, {n:.0f} images")


def _evidence_marks(run: Run) -> Measured:
    return _evidence_against(run, "truth")


def _evidence_faithful(run: Run) -> Measured:
    return _evidence_against(run, "fidelity")


def _evidence_cost(run: Run) -> Measured:
    if not run.has_table("evidence_cost"):
        return not_testable("this run has no transparent students")
    row = run.load_table("evidence_cost").iloc[0]
    return below(
        row["ratio"], row["lo"], row["hi"], PASSES, f"class evidence of all classes over a forward pass, median of {row['n']:.0f} pairs"
    )


CLAIMS |= {
    "transparent_keeps_up": Claim(
        "a student whose evidence is local keeps up with the plain one", "transparent minus plain above -1 point", _transparent_keeps_up
    ),
    "evidence_marks": Claim(
        "class evidence of the transparent student marks the lesion better than any explanation of the plain one, and than every control",
        "difference above 0 for each rival by each of: " + ", ".join(EVIDENCE_METRICS["truth"]),
        _evidence_marks,
    ),
    "evidence_faithful": Claim(
        "it is more faithful to its network than any explanation of the plain student, by each family of metrics",
        "difference on the better side of 0 for each rival by each of: " + ", ".join(EVIDENCE_METRICS["fidelity"]),
        _evidence_faithful,
    ),
    "evidence_cost": Claim("it costs one forward pass", f"ratio below {PASSES:g}", _evidence_cost),
    "teacher_pays": Claim(
        "the teacher adds more to the transparent student than to the plain one",
        "difference of the gains above 0, loss with T^2",
        _teacher_pays,
    ),
    "teacher_pays_few": Claim(
        "so it does where the students have few labels", "difference of the gains above 0, loss with T^2", _teacher_pays_few
    ),
}


# -- what teaching does to explanations (chapter 08) --------------------------------------------------------------------
# Stated when the smoke profile alone had been run with these students. The explanation is the paper's, the average map; truth is asked
# where both students are right, at equal accuracy, faithfulness of all images.

_TRUTH = EVIDENCE_METRICS["truth"]


def _explains(run: Run, way: str) -> Measured:
    """Average maps of students taught in one way against those that they are compared with, by each measure."""
    if not run.has_table("tests_teaching"):
        return not_testable("this run did not ask it")
    tests = run.load_table("tests_teaching")
    if "method" not in tests:
        return not_testable("this run has no students to compare")
    rows = tests[(tests["a"] == way) & (tests["method"] == "feature_maps_mean") & tests["metric"].isin([*_TRUTH, *FAMILIES])]
    rows = rows[rows["matched"].astype(bool) == rows["metric"].isin(_TRUTH)]
    if rows.empty:
        return not_testable("this run has no students taught so")
    if rows["seeds"].max() < 2:  # its interval knows nothing of the luck of training
        return not_testable("one seed only")
    return over_every(_more_is_better(rows), FAITHFULNESS, "{metric}, {n:.0f} images, {seeds:.0f} seeds")


_EXPLAINS = "difference on the better side of 0 by each of: " + ", ".join([*_TRUTH, *FAMILIES])
CLAIMS |= {
    "teaching_explains": Claim(
        "teaching makes explanations better: average maps, paper's loss against the labels alone",
        _EXPLAINS,
        partial(_explains, way="paper's loss"),
    ),
    "teaching_explains_t2": Claim(
        "teaching by the loss with T^2 makes explanations better, too", _EXPLAINS, partial(_explains, way="with T²")
    ),
    "maps_taught": Claim(
        "average maps are better where the teacher's are taught too: attention transfer against the loss with T^2 alone",
        _EXPLAINS,
        partial(_explains, way="attention too"),
    ),
}


# -- the third dimension (chapter 09) -----------------------------------------------------------------------------------
# Stated when two students of generated volumes had been trained to see whether these can be learned, one with kernels in depth and one
# without: so that depth pays there had been seen, no teacher, no map and no time.


def _volumes_row(run: Run, question: str, a: str, b: str, rule: Callable[..., Measured]) -> Measured:
    """A comparison of accuracies on volumes, judged by ``rule``."""
    if not run.has_table("tests_volumes"):
        return not_testable("this run has no volumes")
    rows = run.load_table("tests_volumes").query("question == @question and a == @a and b == @b")
    if rows.empty:
        return not_testable("this run did not ask it")
    row = rows.iloc[0]
    if row["seeds"] < 2:  # its interval knows nothing of the luck of training
        return Measured(row["difference"], row["lo"], row["hi"], UNDECIDED, "test accuracy; one seed only")
    what = f"test accuracy on {row['n']:.0f} volumes, {row['seeds']:.0f} seeds, Holm p = {row['p_holm']:.3g}"
    return rule(row["difference"], row["lo"], row["hi"], detail=what)


def _volumes_maps(run: Run) -> Measured:
    """Better than every control by every measure of truth and faithfulness."""
    if not run.has_table("tests_volumes"):
        return not_testable("this run has no volumes")
    rows = run.load_table("tests_volumes").query("question.str.startswith('controls') and a == 'feature_maps_mean'")
    if rows.empty or rows["seeds"].max() < 2:
        return not_testable("one seed only, or no volume that all read rightly")
    return over_every(_more_is_better(rows), FAITHFULNESS, "{b} by {metric}, {n:.0f} volumes, {seeds:.0f} seeds")


def _volumes_cost(run: Run) -> Measured:
    if not run.has_table("volumes_met"):
        return not_testable("this run has no volumes")
    times = run.load_table("volumes_met").set_index(["model", "method"])["ms_per_image_median"]
    ratio = times["teacher", "shap"] / times["student", "feature_maps_mean"]
    detail = f"SHAP with {run.budget.shap_samples} points a volume (its default: 200) on the teacher over average maps on the student"
    return _without_interval(above(ratio, ratio, ratio, 200.0, detail))


CLAIMS |= {
    "volumes_keep_up": Claim(
        "in volumes, too, the student keeps up with its teacher",
        "paper's loss minus teacher above -1 point",
        partial(
            _volumes_row, question="all labels: does the student keep up?", a="paper's loss", b="teacher",
            rule=partial(above, threshold=-NON_INFERIORITY),
        ),
    ),
    "volumes_few": Claim(
        "with few labelled volumes the teacher adds",
        "loss with T^2 minus labels alone above 0",
        partial(_volumes_row, question="few labels: what does the teacher add?", a="with T²", b="labels alone", rule=adds),
    ),
    "volumes_depth": Claim(
        "kernels in depth are worth their operations: the student of volumes beats that of slices which costs as much",
        "difference of the students of the labels alone above 0",
        partial(_volumes_row, question="all labels: what does depth add?", a="labels alone", b="slices, labels alone", rule=adds),
    ),
    "volumes_maps": Claim(
        "average maps of volumes show what was learned: they are better than every control that knows nothing of it",
        "difference on the better side of 0 by each measure of truth (where masks are known) and faithfulness, for each control",
        _volumes_maps,
    ),
    "volumes_cost": Claim(
        "of volumes, too, average maps on the student are far cheaper than SHAP on the teacher", "ratio above 200", _volumes_cost
    ),
}  # fmt: skip


SIMULATED = {"above 0, else no effect within a point": adds, "above -1 point": partial(above, threshold=-NON_INFERIORITY)}


def error_rates(images: int = 1000, seeds: int = 3, draws: int = 2000) -> pd.DataFrame:
    """How often each rule says what, where the truth is known: an effect of zero, at the rule's margin, and large.

    Seeds differ by a standard deviation of .4 points, images (each of its own group) by one of 15 (such as two networks of which one alone
    is right on 2.25% of the images); an interval is as :func:`kdnb.evaluation.compare_over_seeds` has it. The draws are fixed.

    Returns:
        A row a rule and true effect: ``rule``, ``effect`` in points and the share of each verdict.
    """
    rng = np.random.default_rng(20250215)
    spread = 0.004**2 / seeds, 0.15**2 / images
    estimates = [part * rng.chisquare(free, draws) / free for part, free in zip(spread, (seeds - 1, images - 1), strict=True)]
    variance = sum(estimates)
    freedom = variance**2 / (estimates[0] ** 2 / (seeds - 1) + estimates[1] ** 2 / (images - 1))
    half = t_distribution.ppf(0.975, freedom) * np.sqrt(variance)
    luck, rows = rng.normal(0, np.sqrt(sum(spread)), draws), []
    for name, rule in SIMULATED.items():
        for effect in (-0.05, -MARGIN, 0.0, MARGIN, 0.05):
            verdicts = [
                rule(effect + error, effect + error - end, effect + error + end).verdict for error, end in zip(luck, half, strict=True)
            ]
            shares = pd.Series(verdicts).value_counts(normalize=True).reindex(VERDICTS[:-1], fill_value=0.0)
            rows.append({"rule": name, "effect": 100 * effect} | shares.to_dict())
    return pd.DataFrame(rows)


def judge(run: Run) -> pd.DataFrame:
    """A row for each claim: the paper's number, what the released code does, what this run measured, the rule and the verdict."""
    paper, release = published("paper"), published("release").set_index("claim")["statement"]
    dataset = run.settings.dataset.partition(":")[0]
    rows = []
    for name, claim in CLAIMS.items():
        stated = paper[(paper["claim"] == name) & (paper["dataset"].isna() | (paper["dataset"] == dataset))]
        measured = claim.measure(run)
        bound = claim.data_set_bound and stated.empty
        rows.append(
            {
                "claim": name,
                "statement": claim.statement,
                "paper": "" if stated.empty else stated["statement"].iloc[0],
                "paper_value": float("nan") if stated.empty else stated["value"].iloc[0],
                "released_code": release.get(name, ""),
                "measured": measured.value,
                "lo": measured.lo,
                "hi": measured.hi,
                "detail": f"the paper says it of other data; {measured.detail}" if bound else measured.detail,
                "rule": claim.rule,
                "stated": "after seeing data" if name in STATED_AFTER else "before",
                "verdict": NOT_TESTABLE if bound else measured.verdict,
            }
        )
    return pd.DataFrame(rows)
