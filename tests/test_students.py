"""Recorded students: kept with a run's tables, whole, and the run's own."""

import json

import pandas as pd
import pytest
import torch

from kdnb import measured, models, runs, students
from kdnb.datasets import load_for
from kdnb.errors import ArtefactError
from kdnb.evaluation import expected_accuracy, predict
from kdnb.settings import resolve

WIDTHS = (4, 6, 8, 8, 8)


@pytest.fixture
def run(tmp_path):
    run = runs.start("03_distillation", profile="smoke", run_dir=str(tmp_path / "phantom-smoke-seed0"), student_widths=WIDTHS)
    for seed, name in enumerate(("student_ce", "student_kd_t2", "student_ls")):
        run.save_model(name, models.initialised(models.StudentCNN, 4, WIDTHS, seed=seed), f"key of {name}")
    run.save_model("student_transparent", models.initialised(models.student, "transparent", 4, WIDTHS, seed=3), "key of transparent")
    run.record("students", {"student_kd_t2": "kd_t2-a0.4-t10-s0"})
    return run


def kept(run, folder):
    """Record as ``make record`` does."""
    told = students.record(run, 4, folder)
    (folder / "provenance.json").write_text(json.dumps({"students": told}))
    return told


def test_students_are_recorded_with_where_they_come_from_and_read_back_in_half_precision(run, tmp_path):
    told = kept(run, tmp_path / "record")
    assert list(told) == ["student_ce", "student_kd_t2", "student_transparent"], "of those that are kept, the ones the run stored"
    assert told["student_kd_t2"] == {
        "cell": "kd_t2-a0.4-t10-s0",
        "shape": "plain",
        "key": "key of student_kd_t2",
        "sha256": runs.file_hash(run.model_path("student_kd_t2")),
    }
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in told:
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
    whole = file.read_bytes()
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), (tmp_path / "students" / "student_kd_t2.safetensors").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ArtefactError, match="not the student that was recorded"):
            students.recorded(tmp_path, "student_ce")
    run.model_path("student_ce").write_bytes(b"other")
    with pytest.raises(ArtefactError, match="not the file that 03_distillation wrote"):
        students.record(run, 4, tmp_path)


def test_what_a_later_run_does_not_store_or_is_too_large_is_not_kept(run, tmp_path, monkeypatch):
    kept(run, tmp_path)
    monkeypatch.setattr(students, "LARGEST", 100)
    assert kept(run, tmp_path) == {} and not list((tmp_path / "students").iterdir())
    monkeypatch.undo()
    run.record("networks", {"student": "resnet18"})
    assert kept(run, tmp_path) == {}, "a network of one's own is nothing that the study can rebuild"


def test_make_record_keeps_the_students_of_generated_images(run, tmp_path):
    run.save_table("classification", pd.DataFrame({"model": ["teacher"], "n": [9], "accuracy": [0.9], "f1_macro": [0.9]}))
    (run.folder / "report.html").touch()
    folder = measured.record(run.folder, tmp_path / "measured")
    assert students.recorded(folder, "student_ce") is not None
    assert json.loads((folder / "provenance.json").read_text())["students"]["student_ce"]["key"] == "key of student_ce"


def test_the_default_runs_recorded_students_score_as_its_record_says():
    folder = measured.MEASURED / "phantom-quick-seed0"
    told = json.loads((folder / "provenance.json").read_text())
    assert set(told["students"]) == set(students.KEPT)
    assert sum(path.stat().st_size for path in (folder / "students").iterdir()) < 1_000_000
    data = load_for(resolve(**told["run"]))
    test = data.index("test")
    scores = measured.tables_of("classification")[folder.name].query("seed == 0").set_index("model")["expected_accuracy"]
    for name in ("student_ce", "student_kd", "student_kd_t2"):
        network = students.recorded(folder, name)
        found = expected_accuracy(predict(network, data.images[test]), data.posterior[test])
        assert found == pytest.approx(scores[name], abs=2e-3), name
