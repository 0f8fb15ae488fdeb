"""Exercises that ask to run a notebook with other parameters: it runs, and the answer is what the exercise says."""

import os
import shutil
from pathlib import Path

import pandas as pd
import papermill
import pytest

REPOSITORY = Path(__file__).parents[1]
FINISHED = REPOSITORY / "runs" / "test" / "phantom-smoke-seed0"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FINISHED / "report.html").exists(), reason="`make test` has left no run to work on"),
]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KDNB_PROGRESS", os.devnull)
    return shutil.copytree(FINISHED, tmp_path / FINISHED.name)


def execute(notebook: str, run: Path, **parameters) -> None:
    parameters = {"profile": "smoke", "run_dir": str(run), **parameters}
    source, executed = REPOSITORY / "notebooks" / f"{notebook}.ipynb", run.parent / f"{notebook}.ipynb"
    papermill.execute_notebook(source, executed, parameters, cwd=REPOSITORY, progress_bar=False)


def test_with_alpha_1_four_arms_are_one_student(run):
    execute("03_distillation", run, alpha=1.0)
    assert set(pd.read_csv(run / "results" / "classification.csv")["model"]) == {"teacher", "student_ce", "student_ls"}
    execute("10_report", run)
    judged = pd.read_csv(run / "results" / "claims.csv").set_index("claim")["verdict"]
    assert judged[["student_against_teacher", "distillation_adds", "few_labels"]].eq("not testable here").all()


def test_further_temperatures_train_only_their_own_students(run):
    before = {path: path.stat().st_mtime_ns for path in (run / "cells").iterdir()}
    execute("04_temperature_sweep", run, temperatures=[3, 7, 12, 18])
    trained = {
        path.name.split("-s")[0] for path in (run / "cells").iterdir() if before.get(path) != path.stat().st_mtime_ns
    }
    assert trained == {f"{arm}-a0.4-t{t}" for arm in ("kd", "kd_t2") for t in (3, 7, 12, 18)}
