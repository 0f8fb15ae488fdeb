"""Progress reaches the person who waits, and nothing else."""

import subprocess
import sys
import threading

import pytest

from kdnb.pipeline import Status
from kdnb.progress import progress


@pytest.fixture
def told(tmp_path, monkeypatch):
    path = tmp_path / "progress"
    monkeypatch.setenv("KDNB_PROGRESS", str(path))
    return path


def test_items_pass_through_unchanged(told):
    assert list(progress(range(5), "steps")) == [0, 1, 2, 3, 4]
    assert list(progress((c for c in "abc"), "letters", total=3)) == ["a", "b", "c"]


def test_a_kernel_of_the_pipeline_writes_to_the_file_and_nowhere_else(told, monkeypatch, capfd):
    monkeypatch.setattr("kdnb.progress._EVERY", 0.0)
    list(progress(range(4), "epochs"))
    lines = told.read_text().splitlines()
    assert [line.split("\t")[:3] for line in lines[:-1]] == [["epochs", str(done), "4"] for done in range(5)]
    assert lines[-1] == "", "the last line takes the display away"
    assert float(lines[2].split("\t")[3]) >= 0
    assert capfd.readouterr() == ("", "")


def test_what_was_done_before_is_neither_shown_as_left_nor_counted_in_the_time(told, monkeypatch):
    monkeypatch.setattr("kdnb.progress._EVERY", 0.0)
    seconds = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr("kdnb.progress.time.monotonic", lambda: next(seconds))
    list(progress(range(9, 12), "epochs", 12, 9))
    lines = ["epochs\t9\t12\t", "epochs\t10\t12\t20.0", "epochs\t11\t12\t10.0", "epochs\t12\t12\t0.0", ""]
    assert told.read_text().splitlines() == lines


def test_the_runner_shows_the_last_line_with_the_time_left(tmp_path):
    follow = tmp_path / "progress"
    status = Status("02_teacher_training", follow)
    assert status.line() == "02_teacher_training 0:00"
    follow.write_text("epochs\t1\t6\t75.0\nepochs\t2\t6\t61.0\n")
    assert status.line().startswith("02_teacher_training 0:00 · epochs 2/6 · 1:0")
    follow.write_text("epochs\t1\t6\t75.0\n\n")
    assert status.line() == "02_teacher_training 0:00"
    follow.write_text("files\t3\t?\t\n")
    assert status.line() == "02_teacher_training 0:00 · files 3/?"


def test_an_unwritable_file_does_not_stop_the_work(monkeypatch, tmp_path):
    monkeypatch.setenv("KDNB_PROGRESS", str(tmp_path / "missing" / "file"))
    assert list(progress(range(3), "steps")) == [0, 1, 2]


def test_an_error_in_the_loop_takes_the_line_away(told):
    with pytest.raises(RuntimeError):
        for _ in progress(range(3), "steps"):
            raise RuntimeError
    # a generator that is not exhausted ends when it is collected
    assert told.read_text().splitlines()[-1] == ""


def test_a_log_file_stays_silent():
    code = "from kdnb.progress import progress\nimport time\nfor _ in progress(range(3), 'x'): time.sleep(.05)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "" and answer.stderr == ""


def test_trainings_side_by_side_leave_the_line_to_whoever_waits_for_them(tmp_path, monkeypatch):
    path = tmp_path / "progress"
    monkeypatch.setenv("KDNB_PROGRESS", str(path))
    monkeypatch.setattr("kdnb.progress._EVERY", 0.0)
    threads = [threading.Thread(target=lambda: list(progress(range(3), "a student"))) for _ in range(2)]
    for _ in progress(range(1), "2 students"):
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert [line.split("\t")[:2] for line in path.read_text().splitlines()] == [
        ["2 students", "0"],
        ["2 students", "1"],
        [""],
    ]


def test_a_live_notebook_gets_one_line_that_is_emptied(monkeypatch):
    shown = []

    class Handle:
        def display(self, data, raw):
            shown.append(("display", data["text/plain"]))

        def update(self, data, raw):
            shown.append(("update", data["text/plain"]))

    monkeypatch.delenv("KDNB_PROGRESS", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/00_start_here.ipynb")
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr("IPython.display.DisplayHandle", Handle)
    monkeypatch.setattr("kdnb.progress._EVERY", 0.0)
    list(progress(range(2), "images"))
    assert shown[0] == ("display", "images: 0 of 2")
    assert shown[1][1].startswith("images: 1 of 2, ")
    assert shown[-1] == ("update", "")
