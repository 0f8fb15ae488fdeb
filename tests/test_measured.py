"""Recorded results: kept with their provenance, and the answers counted from them."""

import json
import os
import shutil

import pandas as pd
import pytest
from records import record_folder
from scipy import stats

from kdnb.claims import FAILS, HOLDS, NOT_TESTABLE
from kdnb.errors import ArtefactError
from kdnb.evaluation import NORMAL
from kdnb.measured import (
    _QUESTIONS,
    MEASURED,
    answer,
    effects,
    in_brief,
    judged,
    readme_table,
    record,
    recorded,
    summaries,
    tables_of,
    together,
    verdicts,
)
from kdnb.measured import (
    tested as answered,
)
from kdnb.runs import Run
from kdnb.settings import resolve
from kdnb.third_dimension import CONSTANT, PAPER, SLICES_ALONE, TAUGHT

SCORES = pd.DataFrame(
    {
        "model": ["teacher", "student_kd", "student_ce"],
        "n": [1311, 1311, 1311],
        "accuracy": [0.98, 0.97123, 0.95],
        "accuracy_lo": [0.97, 0.96, 0.94],
        "accuracy_hi": [0.99, 0.98, 0.96],
        "f1_macro": [0.98, 0.97, 0.95],
    }
)


@pytest.fixture
def finished(tmp_path):
    run = Run(resolve(run_dir=tmp_path / "brain_tumor-cpu-seed0"), "10_report")
    run.record("run", {"dataset": "brain_tumor", "profile": "cpu", "split_protocol": "official", "seed": 0})
    run.record(
        "environment",
        {"03_distillation": {"device": "cpu", "commit": "a"}, "10_report": {"device": "cpu", "commit": "b"}},
    )
    run.record("budget", {"03_distillation": {"image_size": 64}})
    run.record("teacher", {"weights": "scratch"})
    run.save_table("classification", SCORES)
    run.save_table("fidelity", pd.DataFrame({"image_id": ["a"]}))
    (run.folder / "report.html").touch()
    return run.folder


def test_where_nothing_is_recorded_the_answers_say_so(tmp_path):
    sentence = "No full run is recorded yet (`make record RUN=runs/...`)."
    assert answer(tmp_path) == readme_table(tmp_path) == sentence and "in 0 of 0;" in in_brief(tmp_path)


def test_every_summary_follows_from_the_recorded_tables():
    made = summaries()
    assert made and {f"{name}.csv" for name in made} == {path.name for path in MEASURED.glob("*.csv")}
    for name, table in made.items():
        stored = pd.read_csv(MEASURED / f"{name}.csv")
        pd.testing.assert_frame_equal(stored, table, check_dtype=False, rtol=1e-5)


def test_no_recorded_test_is_there_twice():
    for run, table in tables_of("tests", MEASURED).items():
        assert not table.duplicated(["question", "a", "b", "metric", "class"]).any(), run


def test_a_run_that_was_changed_after_its_report_is_not_recorded(finished, tmp_path):
    (finished / "notebooks").mkdir()
    for name, seconds in (("06_fidelity_benchmark.ipynb", -60), ("10_report.ipynb", 60)):
        (finished / "notebooks" / name).touch()
        now = (finished / "report.html").stat().st_mtime
        os.utime(finished / "notebooks" / name, (now + seconds, now + seconds))
        if seconds < 0:
            record(finished, tmp_path / "measured")
    with pytest.raises(ArtefactError, match="notebooks newer than its report"):
        record(finished, tmp_path / "measured")


def test_a_summary_is_the_mean_over_seeds(finished, tmp_path):
    more = pd.concat([SCORES, SCORES[1:2].assign(accuracy=0.99, f1_macro=0.99)], ignore_index=True)
    run = Run(resolve(run_dir=finished), "10_report")
    run.save_table("classification", more)
    record(finished, tmp_path / "measured")
    student = pd.read_csv(tmp_path / "measured" / "brain_tumor-cpu.csv").set_index("model").loc["student_kd"]
    assert student["seeds"] == 2 and student["accuracy"] == pytest.approx((0.97123 + 0.99) / 2)
    assert student["f1_macro_sd"] == pytest.approx(0.02 / 2**0.5, rel=1e-4) and student["split_protocol"] == "official"
    assert recorded(tmp_path / "measured")["dataset"].unique().tolist() == ["brain_tumor"]


def test_the_answer_counts_verdicts(finished, tmp_path):
    claims = {
        "claim": ["student_against_teacher", "distillation_adds", "new_images", "maps_over_shap"],
        "verdict": ["reproduced", "undecided", "not testable here", "holds"],
        "unit": ["points", "points", "points", "ratio"],
    }
    numbers = {"measured": [1.2, 0.1, None, 431.2], "lo": [0.4, -1, None, 431.2], "hi": [2, 1.2, None, 431.2]}
    other = {"verdict": ["holds", "does not hold", "not testable here", "holds"], "measured": [-0.2, -3, None, 431.3]}
    measured = tmp_path / "measured"
    for dataset, table in (("brain_tumor", claims | numbers), ("alzheimer", claims | numbers | other)):
        folder = finished.with_name(f"{dataset}-cpu-seed0")
        if folder != finished:
            shutil.copytree(finished, folder)
        run = Run(resolve(run_dir=folder), "10_report")
        run.record("run", {"dataset": dataset, "profile": "cpu", "split_protocol": "official", "seed": 0})
        run.save_table("claims", pd.DataFrame(table))
        record(folder, measured)
    first, second, third = answer(measured).splitlines()
    assert first.endswith(
        "keep up with its teacher?** Of 2 data sets: *yes* in 2; -0.2 to +1.2 points of accuracy; "
        "over 2 real data sets on their official splits +0.5 [-8.4, +9.4]."
    )
    assert "Of 2 data sets: *no* in 1, *undecided* in 1; -3.0 to +0.1 points of accuracy" in second
    assert third.endswith("*yes* in 2; 431 times."), "a claim that no run can test has no line"
    _, accuracy, explanations, data = in_brief(measured).split("\n\n")
    assert "keeps up with its teacher in 2 of 2; " in accuracy and " in 0 of 2 (1 against) where all" in accuracy
    assert "200 times faster than SHAP on the teacher in 2 of 2; they are as" in explanations
    assert data.endswith(" in 0 of 0.")


def _records(finished, measured, name, difference, **run):
    """A recorded run whose taught students are ``difference`` better than those of cross-entropy,
    give or take two points."""
    numbers = {"measured": [difference], "lo": [difference - 2], "hi": [difference + 2], "unit": "points"}
    folder = finished.with_name(name)
    if folder != finished:
        shutil.copytree(finished, folder)
    stored = Run(resolve(run_dir=folder), "10_report")
    stored.record("run", {"profile": "cpu", "split_protocol": "official", "seed": 0} | run)
    stored.save_table("claims", pd.DataFrame({"claim": ["distillation_adds"], "verdict": ["undecided"]} | numbers))
    record(folder, measured)


def test_an_effect_over_all_data_sets_counts_each_once_on_its_published_split(finished, tmp_path):
    measured = tmp_path / "measured"
    _records(finished, measured, "brain_tumor-cpu-seed0", 0.5, dataset="brain_tumor")
    assert effects(judged(measured), "distillation_adds")["run"].tolist() == ["brain_tumor-cpu-seed0"], (
        "one is nothing to sum up"
    )
    assert "on their official splits" not in answer(measured)
    _records(finished, measured, "brain_tumor-smoke-seed0", 50, dataset="brain_tumor", profile="smoke")
    _records(
        finished, measured, "brain_tumor-cpu-seed0-leak_free", -50, dataset="brain_tumor", split_protocol="leak_free"
    )
    _records(finished, measured, "alzheimer-cpu-seed0", -0.5, dataset="alzheimer")
    table = effects(judged(measured), "distillation_adds")
    assert table["run"].tolist() == ["alzheimer-cpu-seed0", "brain_tumor-cpu-seed0", "together"]
    assert table["difference"].tolist() == pytest.approx([-0.5, 0.5, 0.0])
    half = stats.t.ppf(0.975, 1) * 2 / NORMAL / 2**0.5
    assert table["hi"].iloc[-1] == pytest.approx(half)
    _records(finished, measured, "phantom-quick-seed0", 30, dataset="phantom")
    assert effects(judged(measured), "distillation_adds")["difference"].iloc[-1] == pytest.approx(0.0), (
        "generated images weigh nothing"
    )
    shown = f"; over 2 real data sets on their official splits +0.0 [{-half:.1f}, +{half:.1f}]."
    assert shown in answer(measured).replace("-0.0 [", "+0.0 [")


def test_an_effect_without_leaks_counts_runs_whose_test_images_are_all_new(finished, tmp_path):
    measured = tmp_path / "measured"
    splits = [
        ("brain_tumor", "official", ["known", "new"], 50),
        ("brain_tumor", "leak_free", ["new"], 3),
        ("figshare_brain", "official", ["new"], 60),  # shows the same persons
        ("eye_disease", "leak_free", ["new", "known"], 70),
        ("chest", "leak_free", ["new"], 1),
        ("phantom", "official", ["known", "new"], 80),
        ("alzheimer", "leak_free", None, 90),  # it was not asked there
    ]
    for dataset, split, parts, difference in splits:
        name = f"{dataset}-cpu-seed0{'' if split == 'official' else '-' + split}"
        _records(finished, measured, name, difference, dataset=dataset, split_protocol=split)
        if parts is None:
            (measured / name / "known_and_new.csv").unlink(missing_ok=True)
        else:
            pd.DataFrame({"part": parts, "mean": 0.5}).to_csv(measured / name / "known_and_new.csv", index=False)
    table = effects(judged(measured), "distillation_adds", without_leaks=True)
    assert table["run"].tolist() == [
        "brain_tumor-cpu-seed0-leak_free",
        "chest-cpu-seed0-leak_free",
        "figshare_brain-cpu-seed0",
        "phantom-cpu-seed0",
        "together",
    ]
    effect, count = together(judged(measured), "distillation_adds", without_leaks=True)
    assert effect["difference"] == pytest.approx(2.0) and count == 2
    assert together(judged(measured), "knowledge") is None
    assert "; over 2 real data sets without leaks +2.0 [" in answer(measured)


def test_a_data_set_answers_once_by_its_run_without_leaks(finished, tmp_path):
    measured = tmp_path / "measured"
    _records(finished, measured, "brain_tumor-cpu-seed0", 5, dataset="brain_tumor")
    _records(finished, measured, "brain_tumor-cpu-seed1", 6, dataset="brain_tumor", seed=1)
    assert answered(judged(measured))["measured"].tolist() == [6]
    grouped = {"dataset": "brain_tumor", "split_protocol": "leak_free"}
    _records(finished, measured, "brain_tumor-smoke-seed0-leak_free", 1, profile="smoke", **grouped)
    assert answered(judged(measured))["measured"].tolist() == [6], "whether it knows test images was not asked"
    new = measured / "brain_tumor-smoke-seed0-leak_free" / "known_and_new.csv"
    pd.DataFrame({"part": ["new"], "mean": 0.5}).to_csv(new, index=False)
    assert answered(judged(measured))["measured"].tolist() == [1]
    assert "Of 1 data set: *undecided* in 1; +1.0 points" in answer(measured)


def test_the_answer_says_what_is_left_without_leaks(finished, tmp_path):
    claims = pd.DataFrame(
        {
            "claim": ["distillation_adds"],
            "verdict": ["undecided"],
            "measured": [0.0],
            "lo": [0.0],
            "hi": [0.0],
            "unit": "points",
        }
    )
    every = pd.concat([claims.assign(claim=name) for name in _QUESTIONS], ignore_index=True)
    Run(resolve(run_dir=finished), "10_report").save_table("claims", every)
    record(finished, tmp_path / "measured")
    assert "does not leak" not in answer(tmp_path / "measured")
    grouped = shutil.copytree(finished, finished.with_name("brain_tumor-cpu-seed0-leak_free"))
    run = Run(resolve(run_dir=grouped), "10_report")
    run.record("run", {"dataset": "brain_tumor", "profile": "cpu", "split_protocol": "leak_free", "seed": 0})
    run.save_table("classification", SCORES.assign(accuracy=0.5))
    record(grouped, tmp_path / "measured")
    assert "does not leak?** `brain_tumor`: official 0.971, leak_free 0.500." in answer(tmp_path / "measured")


def test_the_answer_says_what_holds_on_images_that_nothing_knows(finished, tmp_path):
    new = pd.DataFrame({"model": "student_kd", "learned_from": ["training", "training", "training and validation"]})
    run = Run(resolve(run_dir=finished), "03_distillation")
    run.save_table("new_images", new.assign(n=274, accuracy=[0.9, 0.94, 0.99]))
    (finished / "report.html").touch()
    record(finished, tmp_path / "measured")
    assert (
        "`brain_tumor`: 0.920 on 274 of 1311 images (on all 0.971)." in answer(tmp_path / "measured").splitlines()[-1]
    )
    run.save_table("new_images", new.assign(n=1311, accuracy=0.9))  # all are new
    (finished / "report.html").touch()
    record(finished, tmp_path / "measured")
    assert "0.971" not in answer(tmp_path / "measured")


def test_the_answer_says_what_longer_training_adds(finished, tmp_path):
    lengths = pd.DataFrame(
        {"learned_from": ["training"] * 3 + ["training and validation"] * 2, "epochs": [8, 8, 48, 8, 48]}
    )
    lengths = lengths.assign(
        model="student_ce",
        f1_macro=[0.7, 0.8, 0.9, 0.85, 0.99],
        accuracy_known=0.9,
        accuracy_new=[0.5, 0.6, 0.5, 0.6, 0.6],
    )
    run = Run(resolve(run_dir=finished), "04_temperature_sweep")
    taught = lengths.iloc[[2]].assign(model="student_kd_t2", f1_macro=0.1)  # is no student of the labels alone
    run.save_table("lengths", pd.concat([lengths, taught]))
    (finished / "report.html").touch()
    record(finished, tmp_path / "measured")
    last = answer(tmp_path / "measured").splitlines()[-1]
    assert (
        "`brain_tumor` (its teacher: 0.980): "
        "F1 0.750 (training, 8 epochs), 0.900 (training, 48 epochs), 0.850 (training and"
    ) in last
    assert last.endswith("; accuracy on images that training does not know 0.550, then 0.500.")
    # As on the phantom: training knows no test image.
    run.save_table("lengths", lengths.assign(accuracy_known=float("nan")))
    record(finished, tmp_path / "measured")
    assert "longer training" not in answer(tmp_path / "measured")


def test_verdicts_stand_side_by_side_with_their_numbers(finished, tmp_path):
    claims = pd.DataFrame(
        {
            "claim": ["distillation_adds", "flops_ratio", "fidelity"],
            "statement": ["it adds", "ratio", "faithful"],
            "verdict": ["undecided", "reproduced", "not testable here"],
            "measured": [0.12, 2.44, None],
            "lo": [-1, 2.44, None],
            "hi": [2, 2.44, None],
            "unit": ["points", "ratio", "points"],
        }
    )
    Run(resolve(run_dir=finished), "10_report").save_table("claims", claims)
    record(finished, tmp_path / "measured")
    shown = verdicts(tmp_path / "measured")["brain_tumor-cpu-seed0"]
    assert shown.tolist() == ["undecided: 0.12 [-1, 2] points", "reproduced: 2.44", "not testable here"]


def test_a_run_is_kept_with_its_provenance_and_without_its_long_tables(finished, tmp_path):
    kept = record(finished, tmp_path / "measured")
    assert sorted(path.name for path in kept.iterdir()) == ["classification.csv", "provenance.json"]
    provenance = json.loads((kept / "provenance.json").read_text())
    assert provenance["run"]["dataset"] == "brain_tumor" and provenance["run"]["seed"] == 0
    assert provenance["environment"] == {
        "device": "cpu",
        "03_distillation": {"commit": "a"},
        "10_report": {"commit": "b"},
    }
    assert set(recorded(tmp_path / "measured")["commit"]) == {"a"}, "the one that the models were trained by"
    assert str(tmp_path) not in (kept / "provenance.json").read_text()


def test_measured_stands_beside_published(finished, tmp_path):
    record(finished, tmp_path / "measured")
    line = readme_table(tmp_path / "measured").splitlines()[2]
    taught = "0.971 (0.960 to 0.980)"
    expected = [
        "`brain_tumor`, official (`cpu`, 64 px, scratch)",
        "1311",
        "0.980 (0.970 to 0.990)",
        "0.968",
        taught,
        "0.975",
        "0.950 (0.940 to 0.960)",
    ]
    assert [cell.strip() for cell in line.strip("|").split("|")] == expected


def test_an_unfinished_or_changed_run_is_not_recorded(finished, tmp_path):
    (finished / "results" / "classification.csv").write_text("model\nteacher\n")
    with pytest.raises(ArtefactError, match="not what a notebook"):
        record(finished, tmp_path / "measured")
    (finished / "report.html").unlink()
    with pytest.raises(ArtefactError, match="no finished run"):
        record(finished, tmp_path / "measured")


def test_a_table_is_found_in_each_recorded_run_that_has_it(finished, tmp_path):
    record(finished, tmp_path / "measured")
    tables = tables_of("classification", tmp_path / "measured")
    assert (
        list(tables) == ["brain_tumor-cpu-seed0"]
        and tables["brain_tumor-cpu-seed0"]["accuracy"].tolist() == SCORES["accuracy"].tolist()
    )
    assert tables_of("sweep", tmp_path / "measured") == {}


def test_a_table_that_a_run_no_longer_has_leaves_the_record_with_it(finished, tmp_path):
    run = Run(resolve(run_dir=finished), "03_distillation")
    run.save_table("gains", pd.DataFrame({"model": ["student_kd"], "mean": [0.01]}))
    record(finished, tmp_path / "measured")
    assert list(tables_of("gains", tmp_path / "measured")) == ["brain_tumor-cpu-seed0"]
    run.drop_table("gains")
    record(finished, tmp_path / "measured")
    assert tables_of("gains", tmp_path / "measured") == {}
    assert list(tables_of("classification", tmp_path / "measured")) == ["brain_tumor-cpu-seed0"]


@pytest.mark.parametrize(("source", "kept"), [("phantom", False), ("folder:scans", True)])
def test_generated_volumes_beside_real_images_are_not_recorded_with_them(finished, tmp_path, source, kept):
    run = Run(resolve(run_dir=finished), "09_volumes")
    run.record("volumes", {"source": source})
    for name in ("volumes", "tests_volumes"):
        run.save_table(name, pd.DataFrame({"way": ["labels alone"], "accuracy": [0.5]}))
    folder = record(finished, tmp_path / "measured")
    assert {(folder / f"{name}.csv").exists() for name in ("volumes", "tests_volumes")} == {kept}


# -- volumes --------------------------------------------------------------------------------------------------------


def with_volumes(
    measured, dataset: str, split: str = "official", student: float = 0.8, verdict: str = HOLDS, lesion: bool = False
) -> None:
    """A recorded run of a data set whose claims on volumes all have this verdict."""
    folder = record_folder(measured, dataset, split)
    SCORES.to_csv(folder / "classification.csv", index=False)
    ways = ["teacher", CONSTANT, PAPER, PAPER, SLICES_ALONE]
    accuracy = [0.9, 0.5, student - 0.01, student + 0.01, 0.6]
    pd.DataFrame({"labels": "all labels", "way": ways, "accuracy": accuracy}).to_csv(
        folder / "volumes.csv", index=False
    )
    names = ["volumes_keep_up", "volumes_few", "volumes_depth", "volumes_maps", "volumes_cost"]
    claims = {
        "claim": names,
        "verdict": verdict,
        "measured": [5.0] * 4 + [250.0],
        "lo": 1.0,
        "hi": 9.0,
        "unit": "points",
    }
    pd.DataFrame(claims).to_csv(folder / "claims.csv", index=False)
    alike = {
        "question": "few",
        "a": TAUGHT,
        "b": "labels alone",
        "metric": "balanced_accuracy",
        "difference": 0.02,
        "lo": -0.01,
        "hi": 0.05,
    }
    pd.DataFrame([alike]).to_csv(folder / "tests_volumes.csv", index=False)
    metrics = ["pointing_game", "hidden"] if lesion else ["insertion_blur"]
    rows = [(PAPER, name, metric, 0.7) for name in ("feature_maps_mean", "integrated_gradients") for metric in metrics]
    pd.DataFrame(rows, columns=["way", "method", "metric", "mean"]).to_csv(
        folder / "volumes_explained.csv", index=False
    )


def test_volumes_have_a_line_for_each_data_set_that_has_them(tmp_path):
    with_volumes(tmp_path, "phantom", lesion=True)
    with_volumes(tmp_path, "eye_disease", verdict=NOT_TESTABLE)
    (line,) = (line for line in answer(tmp_path).splitlines() if "carry over to volumes" in line)
    assert (
        "`phantom`: accuracy 0.800 (the taught student), 0.900 (its teacher), "
        "0.600 (a student of slices), 0.500 (always"
    ) in line
    assert "counts alike +2.0 [-1.0, +5.0]" in line
    assert "student minus teacher +5.0 points [+1.0, +9.0] (*yes*)" in line and "250 times (*yes*)" in line
    assert (
        "lies in the lesion in 70% (average map), 70% (integrated gradients); 70% of it" in line
        and "eye_disease" not in line
    )


def test_volumes_of_persons_are_told_once_whatever_the_split_of_the_images(tmp_path):
    with_volumes(tmp_path, "phantom")
    with_volumes(tmp_path, "alzheimer", "leak_free", student=0.55, verdict=FAILS)
    alzheimer, phantom = (line for line in answer(tmp_path).splitlines() if "carry over to volumes" in line)
    assert (
        "`alzheimer`: accuracy 0.550 (the taught student)" in alzheimer
        and "+5.0 points [+1.0, +9.0] (*no*)" in alzheimer
    )
    assert "`phantom`: accuracy 0.800" in phantom
    with_volumes(tmp_path, "alzheimer", student=0.55, verdict=FAILS)
    assert answer(tmp_path).count("0.550 (the taught student)") == 1 and "lies in the lesion" not in answer(tmp_path)
