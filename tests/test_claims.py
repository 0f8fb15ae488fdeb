"""The rules that turn intervals into verdicts, on tables with a known answer."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdnb import claims, transparency
from kdnb.few_labels import ENSEMBLE
from kdnb.fidelity import FAMILIES
from kdnb.runs import Run
from kdnb.settings import resolve


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"), [(0.95, 0.99, claims.HOLDS), (0.90, 0.93, claims.FAILS), (0.90, 0.99, claims.UNDECIDED)]
)
def test_above(lo, hi, verdict):
    assert claims.above(0.94, lo, hi, 0.94).verdict == verdict


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [
        (-0.01, 0.02, claims.HOLDS),
        (0.04, 0.06, claims.FAILS),
        (-0.06, -0.04, claims.FAILS),
        (0.01, 0.05, claims.UNDECIDED),
    ],
)
def test_within(lo, hi, verdict):
    assert claims.within(0.0, lo, hi, -0.03, 0.03).verdict == verdict


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"), [(0.0, 0.005, claims.HOLDS), (0.02, 0.03, claims.FAILS), (0.0, 0.02, claims.UNDECIDED)]
)
def test_below(lo, hi, verdict):
    assert claims.below(0.01, lo, hi, 0.01).verdict == verdict


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [
        (0.001, 0.005, claims.HOLDS),  # small, but there
        (-0.005, -0.001, claims.FAILS),
        (-0.004, 0.009, claims.NO_EFFECT),
        (-0.004, 0.011, claims.UNDECIDED),
    ],
)
def test_adds_can_say_that_there_is_nothing(lo, hi, verdict):
    assert claims.adds(0.0, lo, hi, p=0.01).verdict == verdict


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [(0.0015, 0.07, claims.UNDECIDED), (-0.07, -0.0015, claims.UNDECIDED), (0.001, 0.005, claims.NO_EFFECT)],
)
def test_an_interval_that_holm_does_not_bear_out_decides_nothing(lo, hi, verdict):
    assert claims.adds(0.0, lo, hi, p=0.087).verdict == verdict


def test_every_published_claim_is_judged_and_every_release_note_belongs_to_a_claim():
    assert set(claims.published("paper")["claim"]) <= set(claims.CLAIMS)
    assert set(claims.published("release")["claim"]) <= set(claims.CLAIMS)
    assert claims.published("paper")["source"].notna().all() and claims.published("release")["source"].notna().all()


def comparison(question: str, a: str, b: str, difference: float, half: float) -> dict:
    return {
        "question": question,
        "a": a,
        "b": b,
        "difference": difference,
        "lo": difference - half,
        "hi": difference + half,
        "p": 0.0001 if abs(difference) > half else 0.5,
        "p_holm": 0.01 if abs(difference) > half else 0.5,
        "seeds": 3,
    }


def explained(better: dict[str, float], images: int = 40) -> pd.DataFrame:
    """``fidelity.csv`` of methods that are so much better than .5 by each metric of a family,
    give or take the luck of an image."""
    rng, rows = np.random.default_rng(0), []
    for method, gain in better.items():
        for metric, sign in claims.FAMILIES.items():
            values = 0.5 + sign * gain + rng.normal(0, 0.05, images)
            rows += [
                {"image_id": n, "group": n, "method": method, "metric": metric, "value": value}
                for n, value in enumerate(values)
            ]
    return pd.DataFrame(rows).assign(model="student_kd", **{"class": "none"})


def finished_run(folder, gain: float) -> Run:
    """A run whose tables say that distillation adds ``gain`` and that SHAP costs 1000 maps."""
    run = Run(resolve(profile="smoke", run_dir=folder), "test")
    f1 = {"f1_macro": 0.97, "f1_macro_lo": 0.95, "f1_macro_hi": 0.99}
    scores = [{"model": "student_kd", **f1}, {"model": "student_kd", **f1}, {"model": "teacher", "accuracy": 0.9, **f1}]
    run.save_table("classification", pd.DataFrame(scores))
    lengths = {
        "model": ["student_ce", "student_ce", "student_kd_t2"],
        "epochs": [8, 48, 48],
        "accuracy": [0.85, 0.92, 0.9],
    }
    run.save_table("lengths", pd.DataFrame(lengths | {"learned_from": "training"}))
    known_and_new = {"part": ["known", "new", "new minus known"], "n": [30, 70, 100], "mean": [0.99, 0.9, -0.09]}
    run.save_table(
        "known_and_new",
        pd.DataFrame(known_and_new | {"lo": [0.97, 0.85, -0.15], "hi": [1, 0.95, -0.03], "model": "student_kd"}),
    )
    gains = {
        "part": ["become known", "stay new", "stay new minus become known"],
        "n": [20, 50, 70],
        "mean": [0.05, 0.01, -0.04],
    }
    run.save_table(
        "gains", pd.DataFrame(gains | {"lo": [0.03, 0.0, -0.06], "hi": [0.07, 0.02, -0.02], "model": "student_kd"})
    )
    rows = [
        comparison("all seeds: does it differ from teacher?", "student_kd", "teacher", -0.05, 0.01),
        comparison("all seeds: does it differ from ce?", "student_kd", "ce", gain, 0.01),
        comparison("all seeds: does it differ from ce?", "student_released", "ce", 0.0, 0.01),
        comparison("all seeds: does it differ from ce?", "student_kd_t2", "ce", 0.002, 0.006),
        comparison(
            "few labels, 5 a class: does it differ from the labels alone?", "with T²", "labels alone", 0.1, 0.05
        ),
        comparison(
            "few labels, 5 a class: does it differ from the labels alone?", "paper's loss", "labels alone", 0.03, 0.05
        ),
        comparison("few labels, 5 a class: is it knowledge of the image?", "with T²", "shuffled", 0.002, 0.006),
        comparison("few labels, 5 a class: is it knowledge of the image?", "with T²", "class_mean", 0.02, 0.006),
        comparison("few labels, 5 a class: is it knowledge of the image?", "with T²", "symmetric", 0.03, 0.006),
        comparison(
            "few labels, 5 a class: do images without a label help?", "with T², all images", "with T²", 0.05, 0.02
        ),
        comparison("all labels: does it differ from the labels alone?", "oracle, T = 1", "labels alone", 0.02, 0.01),
        comparison("long training, 48 epochs: does it differ from ce?", "student_kd_t2", "ce", -0.02, 0.01),
        comparison("shape: does it differ from five layers?", "6 layers", "5 layers", 0.005, 0.01),
        comparison("shape: does it differ from five layers?", "average pooling", "5 layers", -0.02, 0.01),
    ]
    average = {"a": "feature_maps_mean", "class": "all", "n": 100}
    for question, other, difference, half in [
        ("average map against other methods", "grad_cam", 0.2, 0.05),
        ("average map against other methods", "shap", -0.04, 0.05),
        ("average map against controls", "untrained", -0.1, 0.05),
        *(("average map against controls", control, 0.3, 0.05) for control in ("random", "centre", "sobel", "uniform")),
    ]:
        for metric, sign in claims.FAMILIES.items():
            row = (
                comparison(question, "feature_maps_mean", other, sign * difference, half) | average | {"metric": metric}
            )
            rows.append(row)
            rows.append(row | {"difference": 0.0, "lo": 0.0, "hi": 0.0, "class": "none"})
    run.save_table("tests", pd.DataFrame(rows))
    ends = comparison("does the temperature matter?", "kd alpha=0.4 T=1", "kd alpha=0.4 T=20", 0.02, 0.03)
    run.save_table("temperature_effect", pd.DataFrame([ends]))
    grid = {
        "loss": ["ce", "kd", "kd"],
        "alpha": [1, 0.4, 0.4],
        "temperature": [1.0, 5.0, 10.0],
        "seed": 0,
        "val_accuracy": 0.9,
    }
    run.save_table("sweep", pd.DataFrame(grid))
    run.save_table("choice", pd.DataFrame([{"loss": "kd", "alpha": 0.7, "temperature": 10.0}]))
    run.save_table("fidelity", explained({"grad_cam": 0.1, "shap": 0.34, "random": 0.0, "uniform": 0.0}))
    run.save_table("sizes", pd.DataFrame([{"model": "released student (8 convolutions)", "teacher_over_model": 2.441}]))
    times = [("student_kd", "shap", 100.0), ("teacher", "shap", 450.0), ("student_kd", "feature_maps_mean", 0.45)]
    rows = [
        {"model": m, "method": x, "batch_size": 1, "ms_per_image_median": t, "ms_per_image_iqr": t / 10}
        for m, x, t in times
    ]
    run.save_table("met", pd.DataFrame(rows))
    fidelity = {
        "model": "student_kd",
        "method": "feature_maps_mean",
        "metric": "agreement_30",
        "class": "none",
        "mean": 0.8,
    }
    run.save_table("fidelity_summary", pd.DataFrame([fidelity]))
    return run


def test_judgement_of_a_finished_run(tmp_path):
    judged = claims.judge(finished_run(tmp_path, gain=0.03)).set_index("claim")
    assert list(judged.index) == list(claims.CLAIMS)
    expected = {
        "student_f1": claims.NOT_TESTABLE,  # the phantom is none of the paper's data sets
        "student_against_teacher": claims.FAILS,
        "student_behind": claims.NOT_TESTABLE,
        "new_images": claims.FAILS,
        "relatives": claims.FAILS,
        "distillation_adds": claims.HOLDS,
        "teacher_adds": claims.NO_EFFECT,
        "oracle_adds": claims.HOLDS,
        "few_labels": claims.HOLDS,
        "few_labels_without_t2": claims.UNDECIDED,
        "knowledge": claims.NO_EFFECT,
        "unlabelled_images": claims.HOLDS,
        "long_training": claims.FAILS,
        "released_is_cross_entropy": claims.HOLDS,
        "five_layers": claims.UNDECIDED,
        "max_pooling": claims.HOLDS,
        "temperature_matters": claims.UNDECIDED,
        "best_cell": claims.NOT_TESTABLE,
        "flops_ratio": claims.OF_THE_PAPER[claims.HOLDS],
        "met_ratio": claims.OF_THE_PAPER[claims.HOLDS],  # the paper says these two of any data
        "maps_over_shap": claims.HOLDS,
        "maps_as_grad_cam": claims.HOLDS,
        "maps_as_shap": claims.UNDECIDED,
        "maps_as_integrated_gradients": claims.NOT_TESTABLE,
        "maps_over_controls": claims.FAILS,
        "maps_change": claims.NOT_TESTABLE,
        "fidelity": claims.NOT_TESTABLE,
    }
    assert judged["verdict"][list(expected)].to_dict() == expected
    assert judged.loc["maps_over_shap", "measured"] == pytest.approx(1000)
    assert judged.loc["maps_over_shap", "detail"].endswith("both on the student: 222 times")
    assert "untrained" in judged.loc["maps_over_controls", "detail"]
    assert judged.loc["new_images", "detail"].endswith("30% are known")


def test_results_are_in_points_and_ratios_are_ratios(tmp_path):
    judged = claims.judge(finished_run(tmp_path, gain=0.03)).set_index("claim")
    assert judged.loc["distillation_adds", ["measured", "lo", "hi"]].tolist() == pytest.approx([3, 2, 4])
    assert judged.loc["student_f1", "measured"] == pytest.approx(97) and judged.loc[
        "maps_as_grad_cam", "hi"
    ] == pytest.approx(25)
    ratios = judged.index[judged["unit"] == claims.RATIO]
    assert set(ratios) == {"flops_ratio", "met_ratio", "maps_over_shap", "evidence_cost", "volumes_cost"}
    assert list(judged.index[judged["unit"] == claims.CORRELATION]) == ["maps_change"]
    assert set(judged["unit"]) == {"points", "ratio", "correlation"}
    assert (
        judged.loc["flops_ratio", "measured"] == pytest.approx(2.441)
        and judged.loc["flops_ratio", "paper_value"] == 2.436
    )


def test_only_what_the_paper_says_of_the_data_is_reproduced(tmp_path, monkeypatch):
    run = finished_run(tmp_path, gain=0.03)
    judged = claims.judge(run).set_index("claim")
    assert judged.loc["distillation_adds", ["origin", "verdict"]].tolist() == ["ours", "holds"]
    assert judged.loc["met_ratio", ["origin", "verdict"]].tolist() == ["paper", "reproduced"]
    assert judged.loc["student_against_teacher", ["origin", "verdict"]].tolist() == ["ours", "does not hold"], (
        "it says it of brain MRI"
    )
    paper = claims.published("paper").replace({"dataset": {"brain_tumor": "phantom"}})
    monkeypatch.setattr(
        claims, "published", lambda name, real=claims.published: paper if name == "paper" else real(name)
    )
    judged = claims.judge(run).set_index("claim")
    assert judged.loc["student_against_teacher", ["origin", "verdict"]].tolist() == ["paper", "not reproduced"]
    assert judged.loc["student_against_teacher", "paper_value"] == pytest.approx(0.72), "in points, too"


def test_no_verdict_contradicts_the_p_that_stands_beside_it(tmp_path):
    run = finished_run(tmp_path, gain=0.03)
    run.save_table("tests", run.load_table("tests").assign(p_holm=0.07))
    judged = claims.judge(run).set_index("claim")
    corrected = judged[judged["detail"].str.contains("Holm p")]
    assert {
        "distillation_adds",
        "few_labels",
        "unlabelled_images",
        "oracle_adds",
        "long_training",
        "max_pooling",
    } <= set(corrected.index)
    decided = corrected["verdict"].isin([claims.HOLDS, claims.FAILS])
    assert not decided.any(), "p = .07 tells nothing from luck, whatever the interval"


def test_a_harmful_teacher_is_one_that_does_not_add(tmp_path):
    judged = claims.judge(finished_run(tmp_path, gain=-0.03)).set_index("claim")
    assert judged.loc["distillation_adds", "verdict"] == claims.FAILS


def test_one_seed_decides_nothing(tmp_path):
    run = finished_run(tmp_path, gain=0.03)
    for name in ("tests", "temperature_effect"):
        run.save_table(name, run.load_table(name).assign(seeds=1))
    judged = claims.judge(run).set_index("claim")
    trained = [
        *(
            "student_against_teacher",
            "distillation_adds",
            "teacher_adds",
            "oracle_adds",
            "few_labels",
            "few_labels_without_t2",
        ),
        *("knowledge", "unlabelled_images", "long_training", "released_is_cross_entropy", "five_layers", "max_pooling"),
        "temperature_matters",
    ]
    assert (
        judged.loc[trained, "verdict"].eq(claims.UNDECIDED).all()
        and judged.loc[trained, "detail"].str.contains("one seed only").all()
    )
    assert judged.loc[trained, ["lo", "hi"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [((0.97, 0.971), claims.HOLDS), ((0.99, 0.95), claims.UNDECIDED), ((0.97,), claims.UNDECIDED)],
)
def test_f1_counts_the_luck_of_training(tmp_path, scores, verdict):
    run = finished_run(tmp_path, gain=0.0)
    rows = [
        {"model": "student_kd", "f1_macro": f1, "f1_macro_lo": f1 - 0.01, "f1_macro_hi": f1 + 0.008} for f1 in scores
    ]
    run.save_table("classification", pd.DataFrame(rows))
    measured = claims.CLAIMS["student_f1"].measure(run)
    assert measured.verdict == verdict
    if len(scores) > 1:
        assert measured.lo <= measured.value - 0.01 and measured.hi >= measured.value + 0.008, (
            "no narrower than that of one student"
        )


def test_an_exercise_without_students_of_the_paper_s_loss_is_judged_to_its_end(tmp_path):
    # alpha = 1 leaves cross-entropy and label smoothing alone: no rows of taught students anywhere.
    run = finished_run(tmp_path, gain=0.0)
    for name in ("classification", "known_and_new", "gains", "lengths"):
        run.save_table(name, run.load_table(name).query("not model.str.contains('kd')"))
    tests = run.load_table("tests")
    run.save_table("tests", tests[~tests["a"].str.contains("student_kd|student_released|with T|loss", regex=True)])
    run.save_table("sweep", run.load_table("sweep").query("loss == 'ce'"))
    run.save_table("choice", pd.DataFrame([{"loss": "ce", "alpha": 1.0, "temperature": 1.0}]))
    run.save_table("temperature_effect", run.load_table("temperature_effect").head(0))
    judged = claims.judge(run).set_index("claim")
    assert list(judged.index) == list(claims.CLAIMS)
    gone = [
        "student_f1",
        "student_against_teacher",
        "distillation_adds",
        "few_labels",
        "knowledge",
        "new_images",
        "best_cell",
    ]
    assert judged.loc[gone, "verdict"].eq(claims.NOT_TESTABLE).all()


def change_rows(run: Run, other: str, ends: tuple[float, float, float]) -> None:
    """Average maps are by so much better than another map by every metric: difference, lo, hi."""
    tests = run.load_table("tests")
    for metric, sign in claims.FAMILIES.items():
        of = (tests["b"] == other) & (tests["metric"] == metric) & (tests["class"] == "all")
        tests.loc[of, ["difference", "lo", "hi"]] = [sign * ends[0], *sorted(sign * end for end in ends[1:])]
    run.save_table("tests", tests)


def test_a_measure_that_tells_nothing_from_random_maps_is_named_broken(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    change_rows(run, "random", (0.0, -0.05, 0.05))
    run.save_table("fidelity", explained({"grad_cam": 0.0, "shap": 0.0, "random": 0.0, "uniform": 0.0}))
    judged = claims.judge(run).set_index("claim").loc["maps_as_grad_cam"]
    assert judged["verdict"] == claims.NOT_TESTABLE and judged["detail"].endswith(
        "from maps that know nothing: broken measures"
    )


def test_maps_no_better_than_random_ones_are_not_as_faithful_as_a_rival_that_is(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    change_rows(run, "random", (0.0, -0.02, 0.02))
    change_rows(run, "grad_cam", (-0.1, -0.14, -0.08))
    measured = claims.CLAIMS["maps_as_grad_cam"].measure(run)
    assert measured.verdict == claims.FAILS and "average maps are not told from these by" in measured.detail
    change_rows(run, "grad_cam", (-0.02, -0.04, 0.0))
    assert claims.CLAIMS["maps_as_grad_cam"].measure(run).verdict == claims.UNDECIDED, "near a rival, and near chance"


def test_a_rival_that_does_not_beat_random_maps_is_no_yardstick(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    for below in (0.0, -0.1):
        run.save_table("fidelity", explained({"shap": below, "grad_cam": 0.1, "random": 0.0, "uniform": 0.0}))
        judged = claims.judge(run).set_index("claim").loc["maps_as_shap"]
        assert judged["verdict"] == claims.NOT_TESTABLE and judged["detail"].endswith(
            "shap from maps that know nothing here: no yardstick"
        )
        assert pd.isna(judged["measured"])


def test_a_rival_is_set_beside_random_maps_on_its_own_images(tmp_path):
    # Random maps do well on the 24 images that the rival explains and badly on the 76 others:
    # on all, average maps beat them by more.
    run = finished_run(tmp_path, gain=0.0)
    rows = explained({"shap": 0.0, "random": 0.1, "uniform": 0.1}, images=24)
    others = explained({"random": -0.4, "uniform": -0.4}, images=76).assign(
        image_id=lambda rows_before: rows_before["image_id"] + 100, group=lambda rows_before: rows_before["group"] + 100
    )
    run.save_table("fidelity", pd.concat([rows, others], ignore_index=True))
    change_rows(run, "shap", (0.1, 0.05, 0.15))  # less than the .3 by which average maps beat random ones
    measured = claims.CLAIMS["maps_as_shap"].measure(run)
    assert measured.verdict == claims.NOT_TESTABLE and "no yardstick" in measured.detail


@pytest.mark.parametrize(
    ("difference", "half", "verdict"),
    [(0.0, 0.04, claims.HOLDS), (0.0, 0.06, claims.UNDECIDED), (-0.2, 0.1, claims.FAILS)],
)
def test_one_metric_by_which_maps_are_worse_decides(tmp_path, difference, half, verdict):
    run = finished_run(tmp_path, gain=0.0)
    tests = run.load_table("tests")
    tests.loc[(tests["b"] == "grad_cam") & (tests["metric"] == "insertion_blur"), ["difference", "lo", "hi"]] = [
        difference,
        difference - half,
        difference + half,
    ]
    run.save_table("tests", tests)
    assert claims.judge(run).set_index("claim").loc["maps_as_grad_cam", "verdict"] == verdict


@pytest.mark.parametrize(("nearest", "verdict"), [((0.02, 0.06), claims.HOLDS), ((-0.02, 0.06), claims.UNDECIDED)])
def test_learned_maps_must_beat_every_control(tmp_path, nearest, verdict):
    run = finished_run(tmp_path, gain=0.0)
    tests = run.load_table("tests")
    for control, ends in (("untrained", (0.2, 0.4)), ("sobel", nearest)):
        for metric, sign in claims.FAMILIES.items():
            tests.loc[(tests["b"] == control) & (tests["metric"] == metric), ["lo", "hi"]] = sorted(
                sign * end for end in ends
            )
    run.save_table("tests", tests)
    judged = claims.judge(run).set_index("claim").loc["maps_over_controls"]
    assert judged["verdict"] == verdict and "sobel" in judged["detail"]


def test_a_metric_that_tells_no_map_from_what_knows_nothing_decides_nothing(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    tests = run.load_table("tests")
    tests = tests[tests["a"] == "feature_maps_mean"]
    nothing = tests["metric"].eq("road_least_first") & tests["b"].isin(claims.CONTROLS)
    tests.loc[tests["b"] == "untrained", ["difference", "lo", "hi"]] = [0.1, 0.05, 0.15]
    tests.loc[(tests["b"] == "untrained") & (tests["metric"] == "deletion_blur"), ["lo", "hi"]] = [-0.15, -0.05]
    tests.loc[nothing, ["difference", "lo", "hi", "p"]] = [-0.2, -0.3, -0.1, 0.0001]
    run.save_table("tests", tests)
    run.save_table("fidelity", explained({"shap_signed": 0.0, "random": 0.0, "uniform": 0.0}))
    measured = claims.CLAIMS["maps_over_controls"].measure(run)
    assert measured.verdict == claims.HOLDS and measured.detail.endswith("; tells no map here: road_least_first")
    run.save_table("fidelity", explained({"shap_signed": 0.3, "random": 0.0, "uniform": 0.0}))
    assert claims.CLAIMS["maps_over_controls"].measure(run).verdict == claims.FAILS, "it tells SHAP from nothing"


def test_a_control_that_is_better_by_one_of_many_comparisons_may_be_by_luck(tmp_path):
    """What chapter 06 did not compare (the mean colour as fill) belongs to the same question: Holm counts all."""
    run = finished_run(tmp_path, gain=0.0)
    change_rows(run, "untrained", (0.1, 0.05, 0.15))
    luck = stats.zscore(
        np.random.default_rng(0).normal(size=40)
    )  # Student's t is 2.7: one alone would be told from luck
    levels = {"feature_maps_mean": 0.5, "sobel": 0.527 + 0.027 / 2.7 * 40**0.5 * luck, "random": 0.2, "uniform": 0.2}
    values = [
        {"image_id": n, "group": n, "method": method, "metric": "insertion_mean", "value": value}
        for method, level in levels.items()
        for n, value in enumerate(np.broadcast_to(level, 40))
    ]
    run.save_table("fidelity", pd.DataFrame(values).assign(model="student_kd", **{"class": "none"}))
    run.save_table("tests", run.load_table("tests").assign(p=0.5))  # nothing is told from luck by the others
    rows = claims._maps_against(run, claims.CONTROLS).set_index(["b", "metric"])
    sobel = rows.loc[("sobel", "insertion_mean")]
    assert sobel["hi"] < 0 and sobel["p"] < claims.LEVEL / 2 < claims.LEVEL < sobel["p_holm"]
    assert claims.CLAIMS["maps_over_controls"].measure(run).verdict == claims.UNDECIDED


def test_integrated_gradients_are_not_judged_with_the_blur_from_which_they_start(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    methods = {"integrated_gradients": 0.1, "shap": 0.1, "feature_maps_mean": 0.1, "random": 0.0, "uniform": 0.0}
    run.save_table("fidelity", explained(methods))
    tests = run.load_table("tests")
    against_shap = tests[tests["b"] == "shap"]
    run.save_table("tests", pd.concat([tests, against_shap.assign(b="integrated_gradients")]))
    details = [claims.CLAIMS[f"maps_as_{name}"].measure(run).detail for name in ("shap", "integrated_gradients")]
    assert "(insertion_blur, deletion_blur, road_least_first)" in details[0]
    assert "the nearest of 1 metrics" in details[1] and "(road_least_first)" in details[1]


def test_what_a_record_did_not_compare_is_judged_by_its_means_from_end_to_end(tmp_path):
    run = Run(resolve(profile="smoke", run_dir=tmp_path), "test")  # a record: no values of single images
    row = comparison("average map against other methods", "feature_maps_mean", "grad_cam", 0.2, 0.05)
    run.save_table("tests", pd.DataFrame([row | {"metric": "insertion_blur", "class": "all", "n": 40}]))
    means = [
        {"model": "student_kd", "class": "all", "method": method, "metric": metric, "n": 40}
        | {"mean": middle, "lo": middle - 0.05, "hi": middle + 0.05}
        for method, better in (("feature_maps_mean", 0.2), ("grad_cam", 0.12))
        for metric, sign in claims.MEAN_FILL.items()
        for middle in [0.5 + sign * better]
    ]
    run.save_table("fidelity_summary", pd.DataFrame(means))
    compared = claims._maps_against(run, ["grad_cam"]).set_index("metric")
    assert compared.index.tolist() == ["insertion_blur", "insertion_mean", "deletion_mean"]
    compared = compared.loc["deletion_mean"]
    assert compared[["difference", "lo", "hi", "n"]].tolist() == pytest.approx([0.08, -0.02, 0.18, 40])


def test_where_the_paper_reports_a_gap_its_claim_is_that_the_student_stays_behind(tmp_path, monkeypatch):
    run = finished_run(tmp_path, gain=0.0)  # five points behind
    paper = claims.published("paper").replace({"dataset": {"eye_disease": "phantom"}})
    monkeypatch.setattr(
        claims, "published", lambda name, real=claims.published: paper if name == "paper" else real(name)
    )
    assert claims.judge(run).set_index("claim").loc["student_behind", "verdict"] == claims.OF_THE_PAPER[claims.HOLDS]


@pytest.mark.parametrize(
    ("difference", "half", "p", "verdict"),
    [
        (0.03, 0.01, 0.001, claims.HOLDS),
        (-0.03, 0.01, 0.001, claims.HOLDS),
        (0.0, 0.005, 0.9, claims.NO_EFFECT),
        (0.0, 0.05, 0.9, claims.UNDECIDED),
    ],
)
def test_temperature_matters_where_the_ends_of_the_grid_differ(tmp_path, difference, half, p, verdict):
    run = finished_run(tmp_path, gain=0.03)
    row = comparison("does the temperature matter?", "kd T=1", "kd T=20", difference, half) | {"p_holm": p}
    run.save_table("temperature_effect", pd.DataFrame([row]))
    assert claims.judge(run).set_index("claim").loc["temperature_matters", "verdict"] == verdict


@pytest.mark.parametrize(
    ("differences", "half", "verdict"),
    [
        ((0.03, 0.04, 0.05), 0.01, claims.HOLDS),
        ((0.0, 0.04, 0.05), 0.005, claims.NO_EFFECT),
        ((0.0, 0.04, 0.05), 0.03, claims.UNDECIDED),
        ((-0.03, 0.04, 0.05), 0.01, claims.FAILS),
    ],
)
def test_knowledge_must_beat_every_teacher_without_it(tmp_path, differences, half, verdict):
    run = finished_run(tmp_path, gain=0.03)
    tests = run.load_table("tests")
    rows = [
        comparison("few labels, 5 a class: is it knowledge of the image?", "with T²", name, difference, half)
        for name, difference in zip(claims.WITHOUT_KNOWLEDGE, differences, strict=True)
    ]
    others = tests[~tests["question"].str.contains("knowledge")]
    run.save_table("tests", pd.concat([others, pd.DataFrame(rows)], ignore_index=True))
    assert claims.judge(run).set_index("claim").loc["knowledge", "verdict"] == verdict


def test_a_run_that_did_not_ask_is_not_testable(tmp_path):
    run = finished_run(tmp_path, gain=0.03)
    run.save_table("tests", run.load_table("tests").query("a == 'feature_maps_mean'"))
    judged = claims.judge(run).set_index("claim")["verdict"]
    questions = [
        "student_against_teacher",
        "distillation_adds",
        "few_labels",
        "knowledge",
        "unlabelled_images",
        "oracle_adds",
        "five_layers",
    ]
    assert judged[questions].eq(claims.NOT_TESTABLE).all()


def test_a_grid_of_one_cell_says_nothing_about_temperature(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    run.save_table("temperature_effect", run.load_table("temperature_effect").head(0))
    run.save_table("sweep", run.load_table("sweep").query("temperature != 5"))
    judged = claims.judge(run).set_index("claim").loc[["temperature_matters", "best_cell"]]
    assert (
        judged["verdict"].eq(claims.NOT_TESTABLE).all() and judged["detail"].str.contains("the grid of this run").all()
    )


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ({"kd 5": [0.90, 0.91, 0.90]}, claims.HOLDS),
        ({"kd 5": [0.951, 0.95, 0.949]}, claims.UNDECIDED),  # chosen or not, by the luck of seeds and images
        ({"kd 5": [0.990, 0.991, 0.990]}, claims.FAILS),
        (
            {"kd 5": [0.90, 0.91, 0.90], "kd_t2 15": [0.99, 0.99, 0.99]},
            claims.HOLDS,
        ),  # the claim is of the paper's loss
        ({"kd 5": [0.90]}, claims.UNDECIDED),  # one seed of the two
        ({"kd_t2 5": [0.90, 0.91, 0.90]}, claims.NOT_TESTABLE),
    ],
)
def test_the_paper_s_cell_is_best_only_if_it_beats_the_others_beyond_luck(tmp_path, others, verdict):
    run = finished_run(tmp_path, gain=0.0)
    eye = Run(replace(run.settings, dataset="eye_disease"), "test")  # the paper: alpha 0.4, T 15
    rows = [("kd", 15.0, seed, accuracy) for seed, accuracy in enumerate([0.95, 0.951, 0.949])]
    for cell, accuracies in others.items():
        loss, temperature = cell.split()
        rows += [(loss, float(temperature), seed, accuracy) for seed, accuracy in enumerate(accuracies)]
    eye.save_table(
        "sweep", pd.DataFrame(rows, columns=["loss", "temperature", "seed", "val_accuracy"]).assign(alpha=0.4)
    )
    eye.save_table("data_audit", pd.DataFrame({"split": ["train", "val", "val"], "groups": [9000, 400, 400]}))
    eye.save_table("choice", pd.DataFrame([{"loss": "kd", "alpha": 0.4, "temperature": 15.0}]))
    assert claims.CLAIMS["best_cell"].measure(eye).verdict == verdict


def test_the_paper_s_cell_cannot_be_the_best_of_a_grid_without_it(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    eye = Run(replace(run.settings, dataset="eye_disease"), "test")
    eye.save_table(
        "sweep", pd.DataFrame({"loss": "kd", "alpha": 0.4, "temperature": [5.0, 10.0], "seed": 0, "val_accuracy": 0.9})
    )
    measured = claims.CLAIMS["best_cell"].measure(eye)
    assert measured.verdict == claims.NOT_TESTABLE and "does not have alpha 0.4, T 15" in measured.detail


def test_a_split_without_known_images_cannot_say_what_they_are_worth(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    run.save_table(
        "known_and_new",
        pd.DataFrame([{"part": "new", "n": 100, "mean": 0.9, "lo": 0.85, "hi": 0.95, "model": "student_kd"}]),
    )
    judged = claims.judge(run).set_index("claim").loc["new_images"]
    assert judged["verdict"] == claims.NOT_TESTABLE and judged["detail"].startswith(
        "all 100 test images are new to training"
    )


def test_what_relatives_are_worth_needs_images_that_become_known_and_others_that_stay_new(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    judged = claims.judge(run).set_index("claim").loc["relatives"]
    assert judged["detail"].endswith("50 that stay new minus 20 that become known")
    run.save_table("gains", run.load_table("gains").query("part == 'stay new'"))
    judged = claims.judge(run).set_index("claim").loc["relatives"]
    assert judged["verdict"] == claims.NOT_TESTABLE and judged["detail"].startswith("no test images become known")


def test_a_run_without_students_of_all_images_says_so(tmp_path):
    unfinished = Run(resolve(profile="smoke", run_dir=tmp_path), "test")
    measured = claims.CLAIMS["relatives"].measure(unfinished)
    assert measured.verdict == claims.NOT_TESTABLE and "no student" in measured.detail


def test_what_patience_is_worth_is_said_beside_both_teachings_accuracies(tmp_path):
    detail = claims.judge(finished_run(tmp_path, gain=0.0)).set_index("claim").loc["long_training", "detail"]
    assert detail.endswith("accuracy of the labels alone 0.920, of the teacher 0.900")


def test_what_patience_is_worth_needs_students_of_both_kinds_that_train_long(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    tests = run.load_table("tests")
    long = tests["question"].str.startswith("long training")
    for others in (tests[~long], tests.assign(a=tests["a"].mask(long, "student_dist"))):
        run.save_table("tests", others)
        assert claims.judge(run).set_index("claim").loc["long_training", "verdict"] == claims.NOT_TESTABLE


# -- a student that explains itself ---------------------------------------------------------------------------------


def evidence_run(folder, **changed) -> Run:
    """A run in which the transparent student is 0.2 points behind, gains more, and its evidence is the best,
    but for what is changed."""
    run = Run(resolve(profile="smoke", run_dir=folder), "test")
    question, half = "field: what does the smaller one cost?", 0.002
    rows = [
        comparison(question, "transparent ce", "plain ce", changed.get("behind", -0.002), half)
        | {"metric": "accuracy", "n": 90}
    ]
    question, gain = "teacher: does it add more to the smaller field?", changed.get("gain", 0.02)
    row = comparison(question, "gain of transparent by kd_t2", "gain of plain by kd_t2", gain, 0.01)
    rows.append(row | {"metric": "accuracy", "n": 90})
    for kind, metrics in claims.EVIDENCE_METRICS.items():
        for metric in metrics:
            for rival in ("grad_cam", "random"):
                better = changed.get(f"{rival} {metric}", 0.1) * claims.FAMILIES.get(metric, 1)
                row = comparison(f"{kind}: is it better?", "transparent class_evidence", f"plain {rival}", better, 0.05)
                rows.append(row | {"metric": metric, "n": 40})
    run.save_table("tests_evidence", pd.DataFrame(rows))
    run.save_table(
        "evidence_cost",
        pd.DataFrame([{"ratio": changed.get("cost", 1.03), "lo": 1.0, "hi": changed.get("cost", 1.03), "n": 15}]),
    )
    return run


def evidence_verdicts(run: Run) -> dict[str, str]:
    names = ("transparent_keeps_up", "evidence_marks", "evidence_faithful", "evidence_cost", "teacher_pays")
    return {name: claims.CLAIMS[name].measure(run).verdict for name in names}


def test_the_rules_on_class_evidence(tmp_path):
    verdicts = evidence_verdicts(evidence_run(tmp_path / "good"))
    assert set(verdicts.values()) == {claims.HOLDS}
    changed = {
        "behind": -0.05,
        "gain": -0.02,
        "grad_cam rank_accuracy": 0.01,
        "random deletion_blur": -0.2,
        "cost": 1.3,
    }
    assert evidence_verdicts(evidence_run(tmp_path / "bad", **changed)) == {
        "transparent_keeps_up": claims.FAILS,
        "evidence_marks": claims.UNDECIDED,  # one of six comparisons is not told from luck
        "evidence_faithful": claims.FAILS,  # one of six is lost
        "evidence_cost": claims.UNDECIDED,
        "teacher_pays": claims.FAILS,
    }
    lost = claims.CLAIMS["evidence_faithful"].measure(Run(resolve(profile="smoke", run_dir=tmp_path / "bad"), "test"))
    assert (round(lost.value, 6), round(lost.lo, 6), round(lost.hi, 6)) == (-0.2, -0.25, -0.15), (
        "above 0 where it is better"
    )
    assert (
        lost.detail
        == "interval above 0 in 5 of 6 comparisons; the one that decides: plain random by deletion_blur, 40 images"
    )


@pytest.mark.parametrize(
    ("ends", "p", "verdict", "decides"),
    [
        ([(0.01, 0.2), (0.3, 0.4)], 0.001, claims.HOLDS, "a"),
        ([(-0.04, 0.04), (0.3, 0.4)], 0.9, claims.NO_EFFECT, "a"),  # no better than a, within the margin
        ([(-0.06, 0.04), (0.3, 0.4)], 0.9, claims.UNDECIDED, "a"),
        ([(-0.5, 0.9), (-0.3, -0.1)], 0.001, claims.FAILS, "b"),
        ([(-0.5, 0.9), (-0.3, -0.1)], 0.06, claims.UNDECIDED, "a"),  # any of several may be worse by luck
    ],
)
def test_better_than_every_rival_is_refuted_by_one_that_is_worse_or_equal(ends, p, verdict, decides):
    rows = pd.DataFrame(
        [{"b": b, "difference": sum(two) / 2, "lo": two[0], "hi": two[1]} for b, two in zip("ab", ends, strict=True)]
    )
    measured = claims.over_every(rows.assign(p_holm=p), 0.05, "{b}")
    assert measured.verdict == verdict and measured.detail.endswith(f"decides: {decides}")


def test_one_equal_measure_of_several_is_no_missing_effect():
    rows = pd.DataFrame({"b": "labels alone", "difference": [0.3, 0.25, 0.004], "lo": [0.29, 0.24, -0.001]})
    rows = rows.assign(hi=[0.31, 0.26, 0.009], p_holm=[0.0, 0.0, 1.0])
    assert claims.over_every(rows, 0.05, "").verdict == claims.UNDECIDED
    assert claims.over_every(rows.iloc[2:], 0.05, "").verdict == claims.NO_EFFECT
    other = pd.concat([rows, rows.iloc[2:].assign(b="nobody")])
    assert claims.over_every(other, 0.05, "").verdict == claims.NO_EFFECT, "as good as that rival by all its measures"


def test_a_run_without_transparent_students_cannot_test_them(tmp_path):
    assert set(evidence_verdicts(finished_run(tmp_path, 0.0)).values()) == {claims.NOT_TESTABLE}


def test_the_rules_ask_for_what_the_chapter_measures():
    assert claims.EVIDENCE_METRICS["truth"] == transparency.TRUTH


def test_a_claim_of_other_data_and_a_question_that_was_not_asked_say_so(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    judged = claims.judge(run).set_index("claim")["detail"]
    assert judged["student_f1"].startswith("the paper says it of other data; ")
    assert judged["teacher_pays"] == "this run has no transparent students"
    columns = ["question", "a", "b", "metric", "difference", "lo", "hi", "p_holm", "n", "seeds"]
    run.save_table(
        "tests_evidence", pd.DataFrame([["field: what does the smaller one cost?", *[0] * 9]], columns=columns)
    )
    judged = claims.judge(run).set_index("claim")["detail"]
    assert judged["teacher_pays"] == "this run did not ask it" and judged["evidence_marks"].startswith(
        "fewer than two test images"
    )


def test_times_are_judged_from_quartile_to_quartile(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    judged = claims.judge(run).set_index("claim").loc["met_ratio"]
    assert judged[["measured", "lo", "hi"]].tolist() == pytest.approx([4.5, 4.5 * 0.95 / 1.05, 4.5 * 1.05 / 0.95])
    met = run.load_table("met")
    run.save_table("met", met.assign(ms_per_image_iqr=met["ms_per_image_median"]))
    assert claims.judge(run).set_index("claim").loc["met_ratio", "verdict"] == claims.UNDECIDED, "1.5 to 13.5 times"


def test_the_papers_ratio_of_times_is_that_of_its_networks(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    run.record("networks", {"teacher": "densenet121", "student": "resnet18"})
    judged = claims.judge(run).set_index("claim")
    assert judged.loc["met_ratio", "verdict"] == claims.NOT_TESTABLE and judged.loc["met_ratio", "detail"].endswith(
        "densenet121 and resnet18"
    )
    assert judged.loc["maps_over_shap", "verdict"] == claims.HOLDS, "which is a question of any two networks"


def test_no_two_claims_are_stated_alike():
    statements = [claim.statement for claim in claims.CLAIMS.values()]
    assert len(statements) == len(set(statements)), "tables of several runs are joined by them"


@pytest.mark.parametrize("name", claims.CLAIMS)
def test_a_statement_is_a_sentence_that_needs_no_other(name):
    words = re.findall(r"[\w^]+", claims.CLAIMS[name].statement)
    assert words[0] not in {"it", "so", "they", "this"} and not {"too", "there"} & set(words), "of another sentence"


def test_what_is_said_to_be_stated_before_is_of_claims_that_exist():
    sets = (claims.BEFORE_DATA, claims.BEFORE_NUMBERS, claims.BEFORE_REAL_DATA)
    before = frozenset.union(*sets)
    assert set(claims.CLAIMS) >= before and len(before) == sum(map(len, sets)), "each in one of them"
    assert before >= claims.UNCHANGED
    assert claims.stated("evidence_marks") == "before any real data, after generated, changed after"
    assert {claims.stated(name) for name in ("flops_ratio", "best_cell", "long_training", "teacher_adds")} == {
        "before any data",
        "before any data, changed after",
        "before its numbers, changed after",
        "after seeing data",
    }


def test_rules_err_no_more_often_than_they_promise():
    rates = claims.error_rates().set_index(["rule", "effect"])
    assert np.allclose(rates[list(claims.VERDICTS[:-1])].sum(axis=1), 1) and len(rates) == 5 * len(claims.SIMULATED)
    most = 0.035  # 2.5%, of 1,000 draws
    above, below, within, adds, adds_of_6, one_near, all_near, faithful = (rates.loc[rule] for rule in claims.SIMULATED)
    for rule, threshold in ((above, -1.0), (below, 1.0), (within, -3.0), (within, 3.0), (adds, 0.0), (adds_of_6, 0.0)):
        assert (rule.loc[threshold, [claims.HOLDS, claims.FAILS]] < most).all(), (
            "2.5% either way at the threshold itself"
        )
    assert adds_of_6.loc[0.0, claims.HOLDS] < adds.loc[0.0, claims.HOLDS], "Holm's correction"
    for rule in (adds, adds_of_6):
        assert (rule.loc[[-1.0, 1.0], claims.NO_EFFECT] < most).all(), "an effect at the margin is seldom none"
    assert one_near.loc[0.0, claims.HOLDS] < most and all_near.loc[0.0, claims.FAILS] < most
    assert all_near.loc[5.0, claims.NO_EFFECT] < most, "any of 25 may seem within the margin by luck"
    assert (faithful.loc[-5.0, [claims.HOLDS, claims.FAILS]] < most).all(), "five measures at the margin"
    for rule in (above, adds, adds_of_6, one_near, all_near, faithful):
        assert rule[claims.HOLDS].iloc[-1] > 0.95 and rule[claims.FAILS].iloc[0] > 0.95, "large effects are found"
    assert below[claims.HOLDS].iloc[0] > 0.95 and below[claims.FAILS].iloc[-1] > 0.95
    assert within.loc[0.0, claims.HOLDS] > 0.95 and (within[claims.FAILS].iloc[[0, -1]] > 0.95).all()
    assert claims.error_rates(draws=50).equals(claims.error_rates(draws=50)), "the draws are fixed"
    assert f"by {len(claims.JUDGED_BY)} measures" in " ".join(claims.SIMULATED), "as many as decide"
    for _, rule in rates.groupby("rule"):
        at_threshold = rule["truth"] == claims.UNDECIDED
        assert (rule["missed"].isna() == at_threshold).all()
        assert (rule.loc[at_threshold, "false"] < 2 * most).all() and rule["false"].max() < 2 * most, "the first kind"
    told = rates.loc["above 0, else none within a point"]
    assert told["truth"].tolist() == [claims.FAILS] * 2 + [claims.NO_EFFECT] + [claims.HOLDS] * 2
    assert told["missed"].tolist() == told[claims.UNDECIDED].tolist(), "the second kind"


def test_earlier_records_are_read_in_todays_words_and_units(tmp_path):
    rule = "paper's loss minus cross-entropy above 0"
    rows = [
        ("student_f1", "F1 of the student", 0.98, "means of 3 seeds", "interval of macro F1 above 0.94", "reproduced"),
        ("few_labels", None, 0.069, "few images, 5 a class, Holm p = 3.32e-06", rule, "reproduced"),
        ("few_labels_without_t2", None, 0.036, "few images, 5 a class, Holm p = 0.0872", rule, "reproduced"),
        (
            "released_is_cross_entropy",
            None,
            0.001,
            "test accuracy over seeds, Holm p = 1",
            "difference within 3 points",
            "reproduced",
        ),
        ("long_training", None, -0.017, "Holm p = 0.0169; accuracy of the labels alone 0.921", rule, "not reproduced"),
        (
            "temperature_matters",
            None,
            1.17,
            "points between means over T; smallest p of 1: 0.052",
            "analysis of variance",
            "undecided",
        ),
        ("maps_as_shap", None, 0.43, "400 images; shap does not beat random maps: no yardstick", "", "undecided"),
        ("maps_as_grad_cam", None, 0.0, "313 images; maps do not beat random ones, so it cannot tell", "", "undecided"),
        ("flops_ratio", "2.436", 2.44, "counted", "ratio within 5%", "reproduced"),
        (
            "best_cell",
            "alpha 0.4, T 15",
            None,
            "chosen on validation: kd, alpha 0.4, T 7",
            "is the paper's",
            "not reproduced",
        ),
    ]
    old = pd.DataFrame(rows, columns=["claim", "paper", "measured", "detail", "rule", "verdict"]).assign(
        lo=0.01, hi=0.02, statement="as it was"
    )
    nothing = Run(resolve(profile="smoke", run_dir=tmp_path), "test")
    read = claims.as_today(old, nothing).set_index("claim")
    assert read["verdict"].tolist() == [
        *("reproduced", "holds", "undecided", "holds", "does not hold", "undecided"),
        *("not testable here", "not testable here", "reproduced", "undecided"),
    ]
    assert read["measured"].tolist() == pytest.approx([98, 6.9, 3.6, 0.1, -1.7, 1.17, 43, 0, 2.44, np.nan], nan_ok=True)
    assert (
        read.loc["few_labels", ["lo", "hi", "unit"]].tolist() == [1, 2, "points"]
        and read.loc["flops_ratio", "hi"] == 0.02
    )
    assert claims.as_today(read.reset_index(), nothing).equals(read.reset_index()), "what says its units is as it was"
    reworded = read.reset_index().assign(statement="words of another day")
    for table in (read, claims.as_today(reworded, nothing).set_index("claim")):
        assert table["statement"].to_dict() == {name: claims.CLAIMS[name].statement for name in read.index}


def test_a_record_older_than_a_rule_is_judged_by_it_where_its_tables_allow(tmp_path):
    run = Run(resolve(profile="smoke", run_dir=tmp_path), "test")
    older = {"verdict": claims.NO_EFFECT, "measured": 0.1, "lo": -1.0, "hi": 1.0, "unit": "points", "rule": "older"}
    names = ["maps_over_controls", "teaching_explains", "distillation_adds", "a claim that is no more"]
    table = pd.DataFrame([{"claim": name} | older for name in names])
    read = claims.as_today(table, run).set_index("claim")["verdict"]
    assert read.to_dict() == {
        "maps_over_controls": claims.UNDECIDED,
        "teaching_explains": claims.UNDECIDED,
        "distillation_adds": claims.NO_EFFECT,
    }
    rows = [
        comparison("average map against", "feature_maps_mean", rival, better * direction, 0.02)
        | {"metric": metric, "class": "all", "n": 50}
        for rival, better in ([(control, 0.1) for control in claims.CONTROLS] + [("shap_signed", -0.2)])
        for metric, direction in FAMILIES.items()
    ]
    run.save_table("tests", pd.DataFrame(rows))
    means = [
        {
            "model": "student_kd",
            "class": "all",
            "method": method,
            "metric": metric,
            "mean": mean,
            "lo": mean,
            "hi": mean,
            "n": 50,
        }
        for method, better in (("random", 0.5), ("uniform", 0.5), ("shap_signed", 0.8))
        for metric, direction in FAMILIES.items()
        for mean in [0.5 + direction * (better - 0.5)]
    ]
    run.save_table("fidelity_summary", pd.DataFrame(means))
    read = claims.as_today(table, run).set_index("claim")["verdict"]
    assert read["maps_over_controls"] == claims.HOLDS and read["maps_as_shap_signed"] == claims.FAILS
    assert read["teaching_explains"] == claims.UNDECIDED, "it may have been one equal measure of several"
    assert (
        claims.as_today(table.assign(rule=claims.CLAIMS["maps_over_controls"].rule), run).set_index("claim")["verdict"][
            "maps_over_controls"
        ]
        == claims.NO_EFFECT
    ), "a verdict by today's rule stays"


def explained_by_teaching(way: str, difference: float) -> pd.DataFrame:
    """Average maps of students taught in one way, better by so much by each measure, and evidence that is worse."""
    rows = []
    for method, better in (("feature_maps_mean", difference), ("class_evidence", -difference)):
        for metric in [*transparency.TRUTH, *FAMILIES]:
            row = comparison("", way, "labels alone", better * FAMILIES.get(metric, 1), 0.02)
            more = {"method": method, "metric": metric, "matched": metric in transparency.TRUTH, "n": 100, "seeds": 3}
            rows.append(row | more)
    return pd.DataFrame(rows)


def test_what_teaching_does_to_explanations_is_asked_of_few_labels_apart(tmp_path):
    run = Run(resolve(profile="smoke", run_dir=tmp_path), "test")
    names = ("teaching_explains_t2", "teaching_explains_few")

    def verdicts() -> list[str]:
        return [claims.CLAIMS[name].measure(run).verdict for name in names]

    run.save_table("tests_teaching", explained_by_teaching("with T²", -0.1))
    assert verdicts() == [claims.FAILS, claims.NOT_TESTABLE]
    run.save_table("tests_teaching_few", explained_by_teaching("with T²", 0.1))
    assert verdicts() == [claims.FAILS, claims.HOLDS]
    run.save_table("tests_teaching_few", explained_by_teaching("with T²", 0.1).assign(seeds=1))
    assert verdicts() == [claims.FAILS, claims.UNDECIDED], "one seed decides nothing"


# -- the third dimension --------------------------------------------------------------------------------------------


def volumes_run(folder, difference: float, ratio: float, dataset: str = "phantom") -> Run:
    """A run whose comparisons on volumes all differ by so much, for the better,
    with intervals of three points either way."""
    run = Run(replace(resolve(profile="smoke", run_dir=folder), dataset=dataset), "test")
    questions = [
        ("all labels: is anything learned?", "teacher", "always the most frequent class", "accuracy"),
        ("all labels: does the student keep up?", "paper's loss", "teacher", "accuracy"),
        ("few labels: what does the teacher add?", "with T²", "labels alone", "accuracy"),
        ("all labels: what does depth add?", "labels alone", "slices, labels alone", "accuracy"),
        ("controls: is the average map better than what knows nothing?", "feature_maps_mean", "random", "pixel_auc"),
        (
            "controls: is the average map better than what knows nothing?",
            "feature_maps_mean",
            "random",
            "deletion_blur",
        ),
    ]
    rows = []
    for question, a, b, metric in questions:
        sign = -1 if metric == "deletion_blur" else 1
        rows.append({**comparison(question, a, b, sign * difference, 0.03), "metric": metric, "n": 50})
    run.save_table("tests_volumes", pd.DataFrame(rows))
    times = {("teacher", "shap"): 2.0 * ratio, ("student", "shap"): 2.0, ("student", "feature_maps_mean"): 2.0}
    met = [
        {"model": model, "method": method, "ms_per_image_median": ms, "ms_per_image_iqr": 0.0}
        for (model, method), ms in times.items()
    ]
    run.save_table("volumes_met", pd.DataFrame(met))
    return run


def volumes_verdicts(run: Run) -> dict[str, str]:
    return {name: claim.measure(run).verdict for name, claim in claims.CLAIMS.items() if name.startswith("volumes")}


def test_claims_on_volumes_follow_their_rules(tmp_path):
    good, bad = (
        volumes_verdicts(volumes_run(tmp_path / name, *values))
        for name, values in (("good", (0.1, 300)), ("bad", (-0.1, 100)))
    )
    assert len(good) == 5 and set(good.values()) == {claims.HOLDS}
    detail = claims.CLAIMS["volumes_keep_up"].measure(volumes_run(tmp_path / "told", 0.1, 300)).detail
    assert detail.endswith("; teacher minus the most frequent class +10.0 points [+7.0, +13.0]"), (
        "two that learn nothing are alike, too"
    )
    assert set(bad.values()) == {claims.FAILS}


def test_a_run_without_volumes_cannot_test_them(tmp_path):
    assert set(volumes_verdicts(finished_run(tmp_path, 0.0)).values()) == {claims.NOT_TESTABLE}
    run = volumes_run(tmp_path / "one", 0.1, 300)
    run.save_table("tests_volumes", run.load_table("tests_volumes").assign(seeds=1))
    assert volumes_verdicts(run)["volumes_keep_up"] == claims.UNDECIDED == volumes_verdicts(run)["volumes_maps"]


@pytest.mark.parametrize(("source", "verdict"), [("phantom", claims.NOT_TESTABLE), ("folder:scans", claims.HOLDS)])
def test_generated_volumes_say_nothing_of_real_images(tmp_path, source, verdict):
    run = volumes_run(tmp_path, 0.1, 300, "brain_tumor")
    run.record("volumes", {"source": source})
    assert set(volumes_verdicts(run).values()) == {verdict}


# -- lesions that are known -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (0.1, claims.HOLDS),
        (0.06, claims.HOLDS),
        (-0.1, claims.FAILS),
        (-0.06, claims.UNDECIDED),  # the best of seven may be so much better by luck
        (0.01, claims.UNDECIDED),
    ],
)
def test_maps_mark_the_lesion_if_they_beat_the_best_control(tmp_path, difference, verdict):
    run = Run(resolve(profile="smoke", run_dir=tmp_path), "test")
    mark = claims.CLAIMS["maps_mark"].measure
    assert mark(run).verdict == claims.NOT_TESTABLE
    row = comparison("truth: method against the best control", "feature_maps_mean", "mean_mask", difference, 0.05)
    other = comparison("truth: method against the best control", "shap", "mean_mask", 0.9, 0.05)
    ratio = {**row, "metric": "mass_ratio", "difference": 9.0, "lo": 8.0}
    table = pd.DataFrame([other | {"metric": "pixel_auc"}, ratio, row | {"metric": "pixel_auc"}]).assign(n=40)
    run.save_table("tests", table)
    assert mark(run).verdict == verdict
    assert mark(run).detail == "pixel AUC minus that of mean_mask, one taught student, 40 images"
    run.save_table("tests", table.assign(question="average map against controls"))
    assert mark(run).verdict == claims.NOT_TESTABLE, "no masks"


@pytest.mark.parametrize(
    ("mean", "highest", "verdict"), [(0.3, 0.4, claims.HOLDS), (0.38, 0.64, claims.UNDECIDED), (1.0, 1.0, claims.FAILS)]
)
def test_maps_hang_on_what_was_learned_if_no_redrawn_network_has_them(tmp_path, mean, highest, verdict):
    run = Run(resolve(profile="smoke", run_dir=tmp_path), "test")
    change = claims.CLAIMS["maps_change"].measure
    assert change(run).verdict == claims.NOT_TESTABLE
    last = {"check": "cascade", "method": "feature_maps_mean", "stage": "features.0", "order": 6, "n": 10}
    last |= {"spearman": mean, "lowest": 2 * mean - highest, "highest": highest}
    first = last | {"stage": "classifier", "order": 1, "spearman": 1.0, "lowest": 1.0, "highest": 1.0}
    others = [
        last | {"method": "sobel", "spearman": 1.0},
        last | {"check": "smooth cascade", "spearman": 0.9},
        {"check": "reader", "mean": 1.0},
    ]
    run.save_table("sanity", pd.DataFrame([*others, last, first]))
    measured = change(run)
    assert measured.verdict == verdict and (measured.value, measured.hi) == (mean, highest)
    assert measured.detail == "mean over 10 networks, from the lowest to the highest"
    run.save_table("sanity", pd.DataFrame(others))
    assert change(run).verdict == claims.NOT_TESTABLE


def test_a_better_teacher_is_said_with_how_much_better_it_is(tmp_path):
    run = Run(resolve(profile="smoke", run_dir=tmp_path), "test")
    own = comparison("all labels: is the ensemble better than its members?", ENSEMBLE, "one student", 0.02, 0.01)
    taught = comparison("all labels: does it differ from the labels alone?", ENSEMBLE, "labels alone", 0.03, 0.01)
    run.save_table("tests", pd.DataFrame([own, taught]))
    measured = claims.CLAIMS["better_teacher"].measure(run)
    assert measured.verdict == claims.HOLDS and measured.detail.endswith(
        "the teacher itself against one student +2.0 points [+1.0, +3.0]"
    )
    run.save_table("tests", pd.DataFrame([own]))
    assert claims.CLAIMS["better_teacher"].measure(run).verdict == claims.NOT_TESTABLE
