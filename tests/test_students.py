"""Recorded students: kept with a run's tables, whole, and put in where a run has trained none."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest
import torch

from kdnb import experiments, files, measured, models, runs, students, tensors
from kdnb.datasets import load_for
from kdnb.errors import ArtefactError
from kdnb.evaluation import expected_accuracy, predict
from kdnb.settings import resolve

WIDTHS = (4, 6, 8, 8, 8)


CLASSES = ["none", "infiltrating", "edge", "base"]


def begun(folder, notebook="05_feature_map_explanation", **settings):
    """A run of the smoke profile that has trained nothing."""
    return runs.start(notebook, **{"profile": "smoke", "student_widths": WIDTHS, "run_dir": str(folder)} | settings)


@pytest.fixture
def run(tmp_path):
    run = begun(tmp_path / "phantom-smoke-seed0", "03_distillation")
    for seed, name in enumerate(("student_ce", "student_kd_t2", "student_ls")):
        run.save_model(name, models.initialised(models.StudentCNN, 4, WIDTHS, seed=seed), f"key of {name}")
    run.save_model(
        "student_transparent",
        models.initialised(models.student, "transparent", 4, WIDTHS, seed=3),
        "key of transparent",
    )
    run.record("students", {"student_kd_t2": "kd_t2-a0.4-t10-s0"})
    return run


def kept(run, folder):
    """Record as ``make record`` does."""
    provenance = students.record(run, 4, folder)
    (folder / "provenance.json").write_text(json.dumps({"students": provenance}))
    return provenance


def test_students_are_recorded_with_where_they_come_from_and_read_back_in_half_precision(run, tmp_path):
    provenance = kept(run, tmp_path / "record")
    assert list(provenance) == ["student_ce", "student_kd_t2", "student_transparent"], (
        "of those that are kept, the ones the run stored"
    )
    assert provenance["student_kd_t2"] == {
        "cell": "kd_t2-a0.4-t10-s0",
        "shape": "plain",
        "key": "key of student_kd_t2",
        "sha256": files.file_hash(run.model_path("student_kd_t2")),
        "recorded_sha256": files.file_hash(tmp_path / "record" / "students" / "student_kd_t2.safetensors"),
    }
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in provenance:
        own, back = students.of_run(run, name, 4), students.recorded(tmp_path / "record", name)
        assert not back.training and {value.dtype for value in back.parameters()} == {torch.float32}
        with torch.no_grad():
            assert torch.allclose(own(images), back(images), atol=5e-3) and not torch.equal(own(images), back(images))
    assert students.recorded(tmp_path / "record", "student_kd") is None
    transparent = students.recorded(tmp_path / "record", "student_transparent")
    assert [block[0].kernel_size[0] for block in transparent.features] == [3, 3, 3, 1, 1]


def test_a_record_that_was_damaged_or_exchanged_is_refused(run, tmp_path):
    kept(run, tmp_path)
    file = tmp_path / "students" / "student_ce.safetensors"
    intact = file.read_bytes()
    for content in (
        intact[:-1] + bytes([intact[-1] ^ 1]),
        (tmp_path / "students" / "student_kd_t2.safetensors").read_bytes(),
    ):
        file.write_bytes(content)
        with pytest.raises(ArtefactError, match="not the student that was recorded"):
            students.recorded(tmp_path, "student_ce")
    run.model_path("student_ce").write_bytes(b"other")
    with pytest.raises(ArtefactError, match="not the file that 03_distillation wrote"):
        students.record(run, 4, tmp_path)


def test_other_weights_under_the_recorded_key_are_refused(run, tmp_path):
    """Whole, and of the right key: only the hash of the file tells."""
    provenance = kept(run, tmp_path)
    file = tmp_path / "students" / "student_ce.safetensors"
    weights, _ = tensors.load(file, provenance["student_ce"]["key"])
    tensors.save(file, {name: value + 1 for name, value in weights.items()}, provenance["student_ce"]["key"])
    assert tensors.load(file, provenance["student_ce"]["key"]) is not None
    with pytest.raises(ArtefactError, match="is not the student that was recorded"):
        students.recorded(tmp_path, "student_ce")


@pytest.mark.parametrize("name", students.RUNS)
def test_every_committed_student_answers_with_the_classes_of_its_run(name):
    folder = students.MEASURED / name
    metadata, classes = students.provenance(folder), students.classes(folder)
    assert set(metadata["students"]) == set(students.KEPT)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for student in metadata["students"]:
        with torch.no_grad():
            logits = students.recorded(folder, student)(images)
        assert logits.shape == (4, len(classes)) and torch.isfinite(logits).all(), student
        assert students.origin(folder, student)["sha256"] == metadata["students"][student]["recorded_sha256"]


def test_another_teacher_than_that_of_the_recorded_students_is_refused(tmp_path):
    folder = tmp_path / students.RUNS[0]
    shutil.copytree(students.MEASURED / students.RUNS[0], folder)
    assert students.recorded(folder, "teacher") is not None
    metadata = students.provenance(folder)
    metadata["teacher"]["recorded_sha256"] = "that of another file"
    (folder / "provenance.json").write_text(json.dumps(metadata))
    with pytest.raises(ArtefactError, match="is not the one that is recorded"):
        students.recorded(folder, "teacher")


def test_what_a_later_run_does_not_store_or_is_too_large_is_not_kept(run, tmp_path, monkeypatch):
    kept(run, tmp_path)
    monkeypatch.setattr(students, "LARGEST", 100)
    assert kept(run, tmp_path) == {} and not list((tmp_path / "students").iterdir())
    monkeypatch.undo()
    run.record("networks", {"student": "resnet18"})
    assert kept(run, tmp_path) == {}, "a network of one's own is nothing that the study can rebuild"


@pytest.fixture(scope="module")
def data():
    return load_for(resolve(profile="smoke"))


@pytest.fixture
def record(run, data, tmp_path, monkeypatch):
    """The run as ``make record`` keeps it, where the study looks for records."""
    scores = {
        "model": ["student_ce", "student_ce"],
        "seed": [0, 1],
        "n": [9, 9],
        "accuracy": [0.75, 0.5],
        "f1_macro": [0.9, 0.9],
    }
    run.save_table("classification", pd.DataFrame(scores))
    run.save_table("per_class", pd.DataFrame({"model": "student_ce", "class": CLASSES}))
    run.record("data", {"data_hash": data.data_hash, "split_hash_official": data.split_hash})
    (run.folder / "report.html").touch()
    monkeypatch.setattr(students, "RUNS", (run.folder.name,))
    monkeypatch.setattr(students, "MEASURED", tmp_path / "measured")
    return measured.record(run.folder, tmp_path / "measured")


def test_make_record_keeps_the_students_of_the_runs_that_are_named(record, run, tmp_path, monkeypatch):
    assert students.recorded(record, "student_ce") is not None and students.classes(record) == CLASSES
    assert json.loads((record / "provenance.json").read_text())["students"]["student_ce"]["key"] == "key of student_ce"
    monkeypatch.setattr(students, "RUNS", ("another",))
    other = measured.record(run.folder, tmp_path / "others")
    assert not (other / "students").exists() and students.provenance(other).get("students") is None


def test_a_run_that_has_trained_nothing_is_given_the_recorded_students_and_told_whose(record, data, tmp_path, capsys):
    fresh = begun(tmp_path / "fresh")
    ce, transparent = students.own_or_recorded(fresh, data, "student_ce", "student_transparent")
    printed = capsys.readouterr().out
    provenance = students.provenance(record)
    assert printed.count("\n") == 1
    assert printed.startswith(
        "student_ce and student_transparent as recorded, for this run has trained none: phantom-smoke-seed0 of "
    )
    assert provenance["date"] in printed and f"commit {provenance['environment']['commit'][:8]}" in printed
    assert printed.endswith("accuracy on its test images: student_ce 0.750.\n"), (
        "of the run's own seed; the other is in no table"
    )
    for student, name in ((ce, "student_ce"), (transparent, "student_transparent")):
        kept = students.recorded(record, name).state_dict()
        assert not student.training and all(
            torch.equal(value.cpu(), kept[part]) for part, value in student.state_dict().items()
        )


def test_a_run_that_has_trained_one_of_them_is_asked_for_all(record, run, data, capsys):
    (own,) = students.own_or_recorded(run, data, "student_ls")
    run.save_table("anything", pd.DataFrame({"a": [1]}))
    with pytest.raises(
        ArtefactError, match=r"models/student_kd\.safetensors is not in .*: run the notebook that writes it first"
    ):
        students.own_or_recorded(run, data, "student_ce", "student_kd")
    assert capsys.readouterr().out == "" and own is not None


def test_models_that_learned_from_other_images_than_are_here_are_refused(tmp_path, data):
    other = dataclasses.replace(data, data_hash="those")
    run = begun(tmp_path / "run", "03_distillation", max_images=64)
    teacher = models.initialised(models.StudentCNN, 4, WIDTHS, seed=0)
    experiments.of_run(run, other, teacher)
    run.save_model("student_ce", teacher, "key")
    run.save_model("teacher", models.densenet121_teacher(4), "key")
    run.record("teacher", {"head": "plain", "key": "key"})
    for name in ("student_ce", "teacher"):
        with pytest.raises(ArtefactError, match=rf"{name}.safetensors learned from other images \(those\)"):
            students.own_or_recorded(run, data, name)
        students.own_or_recorded(run, other, name)


@pytest.mark.parametrize(
    "what", [{"seed": 1}, {"profile": "quick"}, {"student_widths": (4, 4, 4, 4, 4)}, {"student_epochs": 5}]
)
def test_students_of_another_seed_or_budget_do_not_stand_in(record, data, tmp_path, what):
    with pytest.raises(ArtefactError, match="run the notebook that writes it first"):
        students.own_or_recorded(begun(tmp_path / "fresh", **what), data, "student_ce")


def test_what_is_only_looked_at_differs_as_one_likes(record, data, tmp_path):
    fresh = begun(tmp_path / "fresh", samples_per_class=7, shap_samples=3)
    assert students.stand_in(fresh, data, ["student_ce"]) == record


def test_students_of_other_images_splits_or_networks_do_not_stand_in(record, data, tmp_path):
    fresh = begun(tmp_path / "fresh")
    for part in ("data_hash", "split_hash"):
        assert students.stand_in(fresh, dataclasses.replace(data, **{part: "another"}), ["student_ce"]) is None
    assert students.stand_in(fresh, data, ["student_ce", "teacher"]) is None, "no teacher of this run is recorded"
    fresh.record("networks", {"student": "resnet18"})
    assert students.stand_in(fresh, data, ["student_ce"]) is None


def test_a_chapter_without_a_teacher_says_so_in_one_sentence(data, tmp_path):
    with pytest.raises(
        ArtefactError, match=r"models/teacher\.safetensors is not in .*: run the notebook that writes it first"
    ):
        students.own_or_recorded(begun(tmp_path / "fresh"), data, "teacher")


def test_without_images_and_without_a_record_it_says_what_is_missing(tmp_path):
    with pytest.raises(ArtefactError, match="no recorded model of phantom can stand in; give its images") as refused:
        students.own_or_recorded(begun(tmp_path / "fresh"), None, "student_ce")
    assert "\n" not in str(refused.value)


def test_a_damaged_record_is_one_sentence(record, data, tmp_path):
    path = record / "students" / "student_ce.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="is not the student that was recorded: fetch it again") as refused:
        students.own_or_recorded(begun(tmp_path / "fresh"), data, "student_ce")
    assert "\n" not in str(refused.value)


def test_a_recorded_run_is_opened_by_its_name_until_there_is_one_of_ones_own(record, run, tmp_path, monkeypatch):
    monkeypatch.setattr(students, "REPOSITORY", tmp_path / "checkout")
    usual = tmp_path / "checkout" / "runs" / record.name
    for name in (record.name, usual, record, ""):
        opened = students.opened(name, "explain_image")
        assert opened.folder == usual and not usual.exists(), "nothing is written"
        assert opened.budget.student_widths == WIDTHS and opened.info() == {}
    with pytest.raises(ArtefactError, match="holds no run"):
        students.opened(tmp_path / "elsewhere" / record.name, "explain_image")
    shutil.copytree(run.folder, usual)
    assert students.opened(record.name, "explain_image").info()["run"]["profile"] == "smoke"


def test_chapters_on_maps_find_a_student_and_a_teacher_of_the_default_run_in_a_fresh_checkout(tmp_path, capsys):
    """What their load cell calls; only there is a teacher recorded, too."""
    fresh = runs.start("05_feature_map_explanation", run_dir=str(tmp_path / "fresh"))
    data = load_for(fresh.settings)
    student, teacher = students.own_or_recorded(fresh, data, "student_kd", "teacher")
    accuracy = (
        measured.tables_of("classification")["phantom-quick-seed0"].query("seed == 0").set_index("model")["accuracy"]
    )
    printed = f"student_kd {accuracy['student_kd']:.3f}, teacher {accuracy['teacher']:.3f}."
    assert capsys.readouterr().out.strip().endswith(printed)
    some = data.index("test")[:64]
    for network in (student, teacher):
        right = (predict(network, data.images[some]).argmax(axis=1) == data.labels[some]).mean()
        assert right > 0.6, "of a chance of a quarter"


def test_the_documentation_says_how_large_a_record_can_be(repository):
    most = sum(2 * students.LARGEST for _ in students.KEPT)
    assert f"at most {most / 1e6:.0f} MB a run" in (repository / "docs" / "own_images.md").read_text(
        encoding="utf-8"
    ).replace("\n", " ")


def test_the_default_runs_recorded_students_score_as_its_record_says():
    folder = measured.MEASURED / "phantom-quick-seed0"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert set(provenance["students"]) == set(students.KEPT)
    assert sum(path.stat().st_size for path in (folder / "students").iterdir()) < 1_000_000
    data = load_for(resolve(**provenance["run"]))
    test = data.index("test")
    scores = (
        measured.tables_of("classification")[folder.name].query("seed == 0").set_index("model")["expected_accuracy"]
    )
    for name in ("student_ce", "student_kd", "student_kd_t2"):
        network = students.recorded(folder, name)
        accuracy = expected_accuracy(predict(network, data.images[test]), data.posterior[test])
        assert accuracy == pytest.approx(scores[name], abs=2e-3), name
