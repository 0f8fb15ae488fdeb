"""The rules that turn intervals into verdicts, on tables with a known answer."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kdnb import claims, transparency
from kdnb.runs import Run
from kdnb.settings import resolve


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"), [(0.95, 0.99, claims.REPRODUCED), (0.90, 0.93, claims.NOT_REPRODUCED), (0.90, 0.99, claims.UNDECIDED)]
)
def test_above(lo, hi, verdict):
    assert claims.above(0.94, lo, hi, 0.94).verdict == verdict


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [
        (-0.01, 0.02, claims.REPRODUCED),
        (0.04, 0.06, claims.NOT_REPRODUCED),
        (-0.06, -0.04, claims.NOT_REPRODUCED),
        (0.01, 0.05, claims.UNDECIDED),
    ],
)
def test_within(lo, hi, verdict):
    assert claims.within(0.0, lo, hi, -0.03, 0.03).verdict == verdict


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"), [(0.0, 0.005, claims.REPRODUCED), (0.02, 0.03, claims.NOT_REPRODUCED), (0.0, 0.02, claims.UNDECIDED)]
)
def test_below(lo, hi, verdict):
    assert claims.below(0.01, lo, hi, 0.01).verdict == verdict


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [
        (0.001, 0.005, claims.REPRODUCED),  # small, but there
        (-0.005, -0.001, claims.NOT_REPRODUCED),
        (-0.004, 0.009, claims.NO_EFFECT),
        (-0.004, 0.011, claims.UNDECIDED),
    ],
)
def test_adds_can_say_that_there_is_nothing(lo, hi, verdict):
    assert claims.adds(0.0, lo, hi).verdict == verdict


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
        "p_holm": 0.01 if abs(difference) > half else 0.5,
        "seeds": 3,
    }


def finished_run(folder, gain: float) -> Run:
    """A run whose tables say that distillation adds ``gain`` and that SHAP costs 1000 maps."""
    run = Run(resolve(profile="smoke", run_dir=folder), "test")
    f1 = {"f1_macro": 0.97, "f1_macro_lo": 0.95, "f1_macro_hi": 0.99}
    scores = [{"model": "student_kd", **f1}, {"model": "teacher", "accuracy": 0.9, **f1}]
    run.save_table("classification", pd.DataFrame(scores))
    lengths = {"model": ["student_ce", "student_ce", "student_kd_t2"], "epochs": [8, 48, 48], "accuracy": [0.85, 0.92, 0.9]}
    run.save_table("lengths", pd.DataFrame(lengths | {"learned_from": "training"}))
    parts = {"part": ["known", "new", "new minus known"], "n": [30, 70, 100], "mean": [0.99, 0.9, -0.09]}
    run.save_table("known_and_new", pd.DataFrame(parts | {"lo": [0.97, 0.85, -0.15], "hi": [1, 0.95, -0.03], "model": "student_kd"}))
    gains = {"part": ["become known", "stay new", "stay new minus become known"], "n": [20, 50, 70], "mean": [0.05, 0.01, -0.04]}
    run.save_table("gains", pd.DataFrame(gains | {"lo": [0.03, 0.0, -0.06], "hi": [0.07, 0.02, -0.02], "model": "student_kd"}))
    rows = [
        comparison("all seeds: does it differ from teacher?", "student_kd", "teacher", -0.05, 0.01),
        comparison("all seeds: does it differ from ce?", "student_kd", "ce", gain, 0.01),
        comparison("all seeds: does it differ from ce?", "student_released", "ce", 0.0, 0.01),
        comparison("all seeds: does it differ from ce?", "student_kd_t2", "ce", 0.002, 0.006),
        comparison("few labels, 5 a class: does it differ from the labels alone?", "with T²", "labels alone", 0.1, 0.05),
        comparison("few labels, 5 a class: does it differ from the labels alone?", "paper's loss", "labels alone", 0.03, 0.05),
        comparison("few labels, 5 a class: is it knowledge of the image?", "with T²", "shuffled", 0.002, 0.006),
        comparison("few labels, 5 a class: is it knowledge of the image?", "with T²", "class_mean", 0.02, 0.006),
        comparison("few labels, 5 a class: is it knowledge of the image?", "with T²", "symmetric", 0.03, 0.006),
        comparison("few labels, 5 a class: do images without a label help?", "with T², all images", "with T²", 0.05, 0.02),
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
            row = comparison(question, "feature_maps_mean", other, sign * difference, half) | average | {"metric": metric}
            rows.append(row | {"p_holm": 0.01 if abs(difference) > half else 0.5})
            rows.append(row | {"difference": 0.0, "lo": 0.0, "hi": 0.0, "class": "none"})
    run.save_table("tests", pd.DataFrame(rows))
    ends = comparison("does the temperature matter?", "kd alpha=0.4 T=1", "kd alpha=0.4 T=20", 0.02, 0.03)
    run.save_table("temperature_effect", pd.DataFrame([ends]))
    run.save_table("sweep", pd.DataFrame({"loss": ["ce", "kd", "kd"], "alpha": [1, 0.4, 0.4], "temperature": [1.0, 5.0, 10.0]}))
    run.save_table("choice", pd.DataFrame([{"loss": "kd", "alpha": 0.7, "temperature": 10.0}]))
    run.save_table("sizes", pd.DataFrame([{"model": "released student (8 convolutions)", "teacher_over_model": 2.441}]))
    times = [("student_kd", "shap", 100.0), ("teacher", "shap", 450.0), ("student_kd", "feature_maps_mean", 0.45)]
    run.save_table("met", pd.DataFrame([{"model": m, "method": x, "batch_size": 1, "ms_per_image_median": t} for m, x, t in times]))
    fidelity = {"model": "student_kd", "method": "feature_maps_mean", "metric": "agreement_30", "class": "none", "mean": 0.8}
    run.save_table("fidelity_summary", pd.DataFrame([fidelity]))
    return run


def test_judgement_of_a_finished_run(tmp_path):
    judged = claims.judge(finished_run(tmp_path, gain=0.03)).set_index("claim")
    assert list(judged.index) == list(claims.CLAIMS)
    expected = {
        "student_f1": claims.NOT_TESTABLE,  # the phantom is none of the paper's data sets
        "student_against_teacher": claims.NOT_REPRODUCED,
        "student_behind": claims.NOT_TESTABLE,
        "new_images": claims.NOT_REPRODUCED,
        "relatives": claims.NOT_REPRODUCED,
        "distillation_adds": claims.REPRODUCED,
        "teacher_adds": claims.NO_EFFECT,
        "oracle_adds": claims.REPRODUCED,
        "few_labels": claims.REPRODUCED,
        "few_labels_without_t2": claims.UNDECIDED,
        "knowledge": claims.NO_EFFECT,
        "unlabelled_images": claims.REPRODUCED,
        "long_training": claims.NOT_REPRODUCED,
        "released_is_cross_entropy": claims.REPRODUCED,
        "five_layers": claims.UNDECIDED,
        "max_pooling": claims.REPRODUCED,
        "temperature_matters": claims.UNDECIDED,
        "best_cell": claims.NOT_TESTABLE,
        "flops_ratio": claims.REPRODUCED,
        "met_ratio": claims.REPRODUCED,
        "maps_over_shap": claims.REPRODUCED,
        "maps_as_grad_cam": claims.REPRODUCED,
        "maps_as_shap": claims.UNDECIDED,
        "maps_as_integrated_gradients": claims.NOT_TESTABLE,
        "maps_over_controls": claims.NOT_REPRODUCED,
        "fidelity": claims.NOT_TESTABLE,
    }
    assert judged["verdict"][list(expected)].to_dict() == expected
    assert judged.loc["maps_over_shap", "measured"] == pytest.approx(1000)
    assert judged.loc["maps_over_shap", "detail"].endswith("both on the student: 222 times")
    assert "untrained" in judged.loc["maps_over_controls", "detail"]
    assert judged.loc["new_images", "detail"].endswith("30% are known")


def test_a_harmful_teacher_is_not_reproduced(tmp_path):
    judged = claims.judge(finished_run(tmp_path, gain=-0.03)).set_index("claim")
    assert judged.loc["distillation_adds", "verdict"] == claims.NOT_REPRODUCED


def test_one_seed_decides_nothing_about_shapes(tmp_path):
    run = finished_run(tmp_path, gain=0.03)
    run.save_table("tests", run.load_table("tests").assign(seeds=1))
    assert claims.judge(run).set_index("claim").loc[["five_layers", "max_pooling"], "verdict"].eq(claims.UNDECIDED).all()


def test_equal_faithfulness_proves_nothing_where_random_maps_score_alike(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    tests = run.load_table("tests")
    tests.loc[tests["b"] == "random", ["difference", "lo", "hi"]] = [0.0, -0.05, 0.05]
    run.save_table("tests", tests)
    judged = claims.judge(run).set_index("claim").loc["maps_as_grad_cam"]
    assert judged["verdict"] == claims.NOT_TESTABLE and "no metric tells" in judged["detail"]


def test_a_rival_that_does_not_beat_random_maps_is_no_yardstick(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    tests = run.load_table("tests")
    kept, deleted = (
        (tests["b"] == "shap") & (tests["metric"] != "deletion_blur"),
        (tests["b"] == "shap") & (tests["metric"] == "deletion_blur"),
    )
    tests.loc[kept, ["difference", "lo", "hi"]] = [0.35, 0.3, 0.4]
    run.save_table("tests", tests)
    judged = claims.judge(run).set_index("claim").loc["maps_as_shap"]
    assert judged["verdict"] == claims.UNDECIDED and "1 metrics" in judged["detail"], "by deletion it is one"
    tests.loc[deleted, ["difference", "lo", "hi"]] = [-0.35, -0.4, -0.3]
    run.save_table("tests", tests)
    judged = claims.judge(run).set_index("claim").loc["maps_as_shap"]
    assert judged["verdict"] == claims.NOT_TESTABLE and judged["detail"].endswith("no yardstick")


@pytest.mark.parametrize(
    ("difference", "half", "verdict"),
    [(0.0, 0.04, claims.REPRODUCED), (0.0, 0.06, claims.UNDECIDED), (-0.2, 0.1, claims.NOT_REPRODUCED)],
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


@pytest.mark.parametrize(("nearest", "verdict"), [((0.02, 0.06), claims.REPRODUCED), ((-0.02, 0.06), claims.UNDECIDED)])
def test_learned_maps_must_beat_every_control(tmp_path, nearest, verdict):
    run = finished_run(tmp_path, gain=0.0)
    tests = run.load_table("tests")
    for control, ends in (("untrained", (0.2, 0.4)), ("sobel", nearest)):
        for metric, sign in claims.FAMILIES.items():
            tests.loc[(tests["b"] == control) & (tests["metric"] == metric), ["lo", "hi"]] = sorted(sign * end for end in ends)
    run.save_table("tests", tests)
    judged = claims.judge(run).set_index("claim").loc["maps_over_controls"]
    assert judged["verdict"] == verdict and "sobel" in judged["detail"]


def test_where_the_paper_reports_a_gap_its_claim_is_that_the_student_stays_behind(tmp_path, monkeypatch):
    run = finished_run(tmp_path, gain=0.0)  # five points behind
    paper = claims.published("paper").replace({"dataset": {"eye_disease": "phantom"}})
    monkeypatch.setattr(claims, "published", lambda name, real=claims.published: paper if name == "paper" else real(name))
    assert claims.judge(run).set_index("claim").loc["student_behind", "verdict"] == claims.REPRODUCED


@pytest.mark.parametrize(
    ("difference", "half", "p", "verdict"),
    [
        (0.03, 0.01, 0.001, claims.REPRODUCED),
        (-0.03, 0.01, 0.001, claims.REPRODUCED),
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
        ((0.03, 0.04, 0.05), 0.01, claims.REPRODUCED),
        ((0.0, 0.04, 0.05), 0.005, claims.NO_EFFECT),
        ((0.0, 0.04, 0.05), 0.03, claims.UNDECIDED),
        ((-0.03, 0.04, 0.05), 0.01, claims.NOT_REPRODUCED),
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
    asked = ["student_against_teacher", "distillation_adds", "few_labels", "knowledge", "unlabelled_images", "oracle_adds", "five_layers"]
    assert judged[asked].eq(claims.NOT_TESTABLE).all()


def test_a_grid_of_one_cell_says_nothing_about_temperature(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    run.save_table("temperature_effect", run.load_table("temperature_effect").head(0))
    run.save_table("sweep", run.load_table("sweep").query("temperature != 5"))
    judged = claims.judge(run).set_index("claim").loc[["temperature_matters", "best_cell"]]
    assert judged["verdict"].eq(claims.NOT_TESTABLE).all() and judged["detail"].str.contains("the grid of this run").all()


@pytest.mark.parametrize(
    ("chosen", "temperatures", "verdict"),
    [(15, (5.0, 15.0), claims.REPRODUCED), (5, (5.0, 15.0), claims.NOT_REPRODUCED), (5, (5.0, 10.0), claims.NOT_TESTABLE)],
)
def test_the_paper_s_cell_can_be_chosen_only_where_the_grid_has_it(tmp_path, chosen, temperatures, verdict):
    run = finished_run(tmp_path, gain=0.0)
    eye = Run(replace(run.settings, dataset="eye_disease"), "test")  # the paper: alpha 0.4, T 15
    eye.save_table("sweep", pd.DataFrame({"loss": "kd", "alpha": 0.4, "temperature": temperatures}))
    eye.save_table("choice", pd.DataFrame([{"loss": "kd", "alpha": 0.4, "temperature": chosen}]))
    assert claims.CLAIMS["best_cell"].measure(eye).verdict == verdict


def test_a_split_without_known_images_cannot_say_what_they_are_worth(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    run.save_table("known_and_new", pd.DataFrame([{"part": "new", "n": 100, "mean": 0.9, "lo": 0.85, "hi": 0.95, "model": "student_kd"}]))
    judged = claims.judge(run).set_index("claim").loc["new_images"]
    assert judged["verdict"] == claims.NOT_TESTABLE and judged["detail"].startswith("all 100 test images are new to training")


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


# -- a student that explains itself ---------------------------------------------------------------------------------------


def evidence_run(folder, **changed) -> Run:
    """A run in which the transparent student is 0.2 points behind, gains more, and its evidence is the best, but for what is changed."""
    run = Run(resolve(profile="smoke", run_dir=folder), "test")
    question, half = "field: what does the smaller one cost?", 0.002
    rows = [comparison(question, "transparent ce", "plain ce", changed.get("behind", -0.002), half) | {"metric": "accuracy", "n": 90}]
    for few, gain in (("?", changed.get("gain", 0.02)), (", 5 labels a class?", 0.0)):
        one = comparison(
            f"teacher: does it add more to the smaller field{few}", "gain of transparent by kd_t2", "gain of plain by kd_t2", gain, 0.01
        )
        rows.append(one | {"metric": "accuracy", "n": 90})
    for kind, metrics in claims.EVIDENCE_METRICS.items():
        for metric in metrics:
            for rival in ("grad_cam", "random"):
                better = changed.get(f"{rival} {metric}", 0.1) * claims.FAMILIES.get(metric, 1)
                one = comparison(f"{kind}: is it better?", "transparent class_evidence", f"plain {rival}", better, 0.05)
                rows.append(one | {"metric": metric, "n": 40})
    run.save_table("tests_evidence", pd.DataFrame(rows))
    run.save_table(
        "evidence_cost", pd.DataFrame([{"ratio": changed.get("cost", 1.03), "lo": 1.0, "hi": changed.get("cost", 1.03), "n": 15}])
    )
    return run


def evidence_verdicts(run: Run) -> dict[str, str]:
    names = ("transparent_keeps_up", "evidence_marks", "evidence_faithful", "evidence_cost", "teacher_pays", "teacher_pays_few")
    return {name: claims.CLAIMS[name].measure(run).verdict for name in names}


def test_the_rules_on_class_evidence(tmp_path):
    verdicts = evidence_verdicts(evidence_run(tmp_path / "good"))
    assert verdicts.pop("teacher_pays_few") == claims.NO_EFFECT
    assert set(verdicts.values()) == {claims.REPRODUCED}
    changed = {"behind": -0.05, "gain": -0.02, "grad_cam rank_accuracy": 0.01, "random deletion_blur": -0.2, "cost": 1.3}
    assert evidence_verdicts(evidence_run(tmp_path / "bad", **changed)) == {
        "transparent_keeps_up": claims.NOT_REPRODUCED,
        "evidence_marks": claims.UNDECIDED,  # one of six comparisons is not told from luck
        "evidence_faithful": claims.NOT_REPRODUCED,  # one of six is lost
        "evidence_cost": claims.UNDECIDED,
        "teacher_pays": claims.NOT_REPRODUCED,
        "teacher_pays_few": claims.NO_EFFECT,
    }
    lost = claims.CLAIMS["evidence_faithful"].measure(Run(resolve(profile="smoke", run_dir=tmp_path / "bad"), "test"))
    assert (round(lost.value, 6), round(lost.lo, 6), round(lost.hi, 6)) == (-0.2, -0.25, -0.15), "above 0 where it is better"
    assert lost.detail == "better beyond luck in 5 of 6 comparisons; the one that decides: plain random by deletion_blur, 40 images"


@pytest.mark.parametrize(
    ("ends", "p", "verdict", "decides"),
    [
        ([(0.01, 0.2), (0.3, 0.4)], 0.001, claims.REPRODUCED, "a"),
        ([(-0.04, 0.04), (0.3, 0.4)], 0.9, claims.NO_EFFECT, "a"),  # no better than a, within the margin
        ([(-0.06, 0.04), (0.3, 0.4)], 0.9, claims.UNDECIDED, "a"),
        ([(-0.5, 0.9), (-0.3, -0.1)], 0.001, claims.NOT_REPRODUCED, "b"),
        ([(-0.5, 0.9), (-0.3, -0.1)], 0.06, claims.UNDECIDED, "a"),  # any of several may be worse by luck
    ],
)
def test_better_than_every_rival_is_refuted_by_one_that_is_worse_or_equal(ends, p, verdict, decides):
    rows = pd.DataFrame([{"b": b, "difference": sum(two) / 2, "lo": two[0], "hi": two[1]} for b, two in zip("ab", ends, strict=True)])
    found = claims.over_every(rows.assign(p_holm=p), 0.05, "{b}")
    assert found.verdict == verdict and found.detail.endswith(f"decides: {decides}")


def test_a_run_without_transparent_students_cannot_test_them(tmp_path):
    assert set(evidence_verdicts(finished_run(tmp_path, 0.0)).values()) == {claims.NOT_TESTABLE}


def test_the_rules_ask_for_what_the_chapter_measures():
    assert claims.EVIDENCE_METRICS["truth"] == transparency.TRUTH


def test_a_claim_of_other_data_and_a_question_that_was_not_asked_say_so(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    judged = claims.judge(run).set_index("claim")["detail"]
    assert judged["student_f1"].startswith("the paper says it of other data; ")
    assert judged["teacher_pays_few"] == "this run has no transparent students"
    columns = ["question", "a", "b", "metric", "difference", "lo", "hi", "p_holm", "n", "seeds"]
    run.save_table("tests_evidence", pd.DataFrame([["field: what does the smaller one cost?", *[0] * 9]], columns=columns))
    judged = claims.judge(run).set_index("claim")["detail"]
    assert judged["teacher_pays_few"] == "this run did not ask it" and judged["evidence_marks"].startswith("fewer than two test images")


def test_times_have_no_interval(tmp_path):
    judged = claims.judge(finished_run(tmp_path, gain=0.0)).set_index("claim").loc[["met_ratio", "maps_over_shap"]]
    assert judged["measured"].notna().all() and judged[["lo", "hi"]].isna().all(axis=None)


def test_the_papers_ratio_of_times_is_that_of_its_networks(tmp_path):
    run = finished_run(tmp_path, gain=0.0)
    run.record("networks", {"teacher": "densenet121", "student": "resnet18"})
    judged = claims.judge(run).set_index("claim")
    assert judged.loc["met_ratio", "verdict"] == claims.NOT_TESTABLE and judged.loc["met_ratio", "detail"].endswith(
        "densenet121 and resnet18"
    )
    assert judged.loc["maps_over_shap", "verdict"] == claims.REPRODUCED, "which is a question of any two networks"


def test_no_two_claims_are_stated_alike():
    statements = [claim.statement for claim in claims.CLAIMS.values()]
    assert len(statements) == len(set(statements)), "tables of several runs are joined by them"


def test_what_was_stated_after_seeing_data_is_named_by_claims_that_exist():
    assert set(claims.CLAIMS) > claims.STATED_AFTER


def test_rules_err_no_more_often_than_they_promise():
    rates = claims.error_rates().set_index(["rule", "effect"])
    assert np.allclose(rates.sum(axis=1), 1)
    adds, keeps_up = (rates.loc[rule] for rule in claims.SIMULATED)
    assert (adds.loc[0.0, [claims.REPRODUCED, claims.NOT_REPRODUCED]] < 0.035).all(), "2.5% either way where there is no effect"
    assert (adds.loc[[-1.0, 1.0], claims.NO_EFFECT] < 0.035).all(), "an effect at the margin is seldom none"
    assert adds.loc[5.0, claims.REPRODUCED] > 0.95 and adds.loc[-5.0, claims.NOT_REPRODUCED] > 0.95
    assert (keeps_up.loc[-1.0, [claims.REPRODUCED, claims.NOT_REPRODUCED]] < 0.035).all()
    assert keeps_up.loc[5.0, claims.REPRODUCED] > 0.95 and keeps_up.loc[-5.0, claims.NOT_REPRODUCED] > 0.95
    assert claims.error_rates(draws=50).equals(claims.error_rates(draws=50)), "the draws are fixed"


# -- the third dimension ------------------------------------------------------------------------------------------------


def volumes_run(folder, difference: float, ratio: float) -> Run:
    """A run whose comparisons on volumes all differ by so much, for the better, with intervals of three points either way."""
    run = Run(resolve(profile="smoke", run_dir=folder), "test")
    asked = [
        ("all labels: does the student keep up?", "paper's loss", "teacher", "accuracy"),
        ("few labels: what does the teacher add?", "with T²", "labels alone", "accuracy"),
        ("all labels: what does depth add?", "labels alone", "slices, labels alone", "accuracy"),
        ("controls: is the average map better than what knows nothing?", "feature_maps_mean", "random", "pixel_auc"),
        ("controls: is the average map better than what knows nothing?", "feature_maps_mean", "random", "deletion_blur"),
    ]
    rows = []
    for question, a, b, metric in asked:
        sign = -1 if metric == "deletion_blur" else 1
        rows.append({**comparison(question, a, b, sign * difference, 0.03), "metric": metric, "n": 50})
    run.save_table("tests_volumes", pd.DataFrame(rows))
    times = {("teacher", "shap"): 2.0 * ratio, ("student", "shap"): 2.0, ("student", "feature_maps_mean"): 2.0}
    met = [{"model": model, "method": method, "ms_per_image_median": ms} for (model, method), ms in times.items()]
    run.save_table("volumes_met", pd.DataFrame(met))
    return run


def volumes_verdicts(run: Run) -> dict[str, str]:
    return {name: claim.measure(run).verdict for name, claim in claims.CLAIMS.items() if name.startswith("volumes")}


def test_claims_on_volumes_follow_their_rules(tmp_path):
    good, bad = (volumes_verdicts(volumes_run(tmp_path / name, *values)) for name, values in (("good", (0.1, 300)), ("bad", (-0.1, 100))))
    assert len(good) == 5 and set(good.values()) == {claims.REPRODUCED}
    assert set(bad.values()) == {claims.NOT_REPRODUCED}


def test_a_run_without_volumes_cannot_test_them(tmp_path):
    assert set(volumes_verdicts(finished_run(tmp_path, 0.0)).values()) == {claims.NOT_TESTABLE}
    run = volumes_run(tmp_path / "one", 0.1, 300)
    run.save_table("tests_volumes", run.load_table("tests_volumes").assign(seeds=1))
    assert volumes_verdicts(run)["volumes_keep_up"] == claims.UNDECIDED and volumes_verdicts(run)["volumes_maps"] == claims.NOT_TESTABLE
