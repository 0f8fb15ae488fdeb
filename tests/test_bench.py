"""The benchmark's runner: ratios of both sides in turn, and a table that keeps what was not measured again."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest

from kdnb import bench
from kdnb.bench import Row, default_run, main, measure, median_interval, memory, ratios, rows
from kdnb.errors import KdnbError, exit_status

CONTRACT = {
    "maps_over_forward": "<= 1.05",
    "captum_layers_over_maps": ">= 4",
    "shap_over_maps": ">= 200",
    "shap_teacher_over_student": ">= 3",
    "naive_grid_over_ours": ">= 3",
    "cached_epoch_over_resident": "<= 1.1",
    "imagefolder_epoch_over_cached": ">= 2",
    "release_to_95_over_ours": ">= 5",
    "cache_over_pillow": "<= 1.3",
    "peak_memory_gib": "<= 2",
    "default_run_minutes": "<= 8",
    "default_run_minutes_avx2": "<= 12",
}


def test_the_rows_are_the_contract_s_with_its_goals():
    goals = {name: f"{row.direction} {row.goal:g}" for name, row in rows().items()}
    assert {name: goals.get(name) for name in CONTRACT} == CONTRACT


def test_a_default_run_is_timed_with_the_switches_of_a_slower_processor(monkeypatch):
    calls = []
    monkeypatch.setattr(default_run.subprocess, "run", lambda command, **options: calls.append((command, options)))
    assert 0 <= default_run.minutes(default_run.SLOWER, "PROFILE=smoke") < 0.1
    ((command, options),) = calls
    assert command[:3] == ["make", "-s", "reproduce"] and "PROFILE=smoke" in command and options["check"]
    assert options["env"]["KDNB_PRECISION"] == "float32" and options["env"]["PATH"]


def test_both_sides_run_in_turn_and_the_first_one_alternates():
    calls = []
    ratios(lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 1.0, repeats=4, warm_up=False)
    assert "".join(calls) == "abbaabba"


def test_a_ratio_of_times_is_measured(clock, monkeypatch):
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=clock))
    measured = ratios(lambda: clock.wait(0.2), lambda: clock.wait(0.05), repeats=5, warm_up=True)
    assert measured.tolist() == pytest.approx([4] * 5, rel=1e-3)


def test_a_side_may_tell_its_own_seconds():
    assert ratios(lambda: 6.0, lambda: 2.0, repeats=2, warm_up=False).tolist() == [3.0, 3.0]


def test_the_interval_holds_the_median():
    value, lo, hi = median_interval(np.array([1.0, 2.0, 3.0, 4.0, 100.0]))
    assert value == 3 and 1 <= lo < 3 < hi <= 100
    assert median_interval(np.array([2.0])) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("direction", "value", "met"), [("<=", 1.0, True), ("<=", 1.1, False), (">=", 1.0, True), (">=", 0.9, False)]
)
def test_a_goal_is_met_or_not(direction, value, met):
    line = measure("x", Row("this", "that", 1.0, direction, lambda: value))
    assert line["met"] is met and line["what"] == "this / that" and line["goal"] == f"{direction} 1"


def test_one_row_is_measured_and_the_others_stay(tmp_path, monkeypatch, capsys):
    made = {name: Row(name, "", 2.0, "<=", lambda value=value: value) for name, value in (("a", 1.0), ("b", 3.0))}
    monkeypatch.setattr(bench, "rows", lambda: made)
    out = tmp_path / "bench.csv"
    assert main(["--out", str(out)]) == 0
    made["b"] = Row("b", "", 2.0, "<=", lambda: 1.5)
    assert main(["--out", str(out), "--only", "b"]) == 0
    table = pd.read_csv(out).set_index("name")
    assert list(pd.read_csv(out).columns) == ["name", "value", "lo", "hi", "goal", "met", "what"]
    assert table["value"].to_dict() == {"a": 1.0, "b": 1.5} and table["met"].all()
    assert main(["--only", "c"]) == 2
    assert "ONLY is 'c', but it must be one of: a, b." in capsys.readouterr().err


def test_peak_memory_counts_the_children(tmp_path, monkeypatch):
    """The child holds its memory until it has been counted; a minute at most, should nobody count it."""
    seen, in_use = tmp_path / "seen", memory._in_use

    def count(process):
        total = in_use(process)
        if total > 0.19 * 2**30:
            seen.touch()
        return total

    monkeypatch.setattr(memory, "_in_use", count)
    child = f"""
import pathlib, time
held = bytearray(200_000_000)
for _ in range(1200):
    if not pathlib.Path({str(seen)!r}).exists():
        time.sleep(0.05)
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert 0.19 < memory.peak_of([sys.executable, "-c", parent], every=0.05) < 0.4


def test_gpu_check_says_in_one_sentence_that_there_is_no_gpu(tmp_path, capsys):
    import torch

    from kdnb.bench import gpu

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert exit_status(lambda: gpu.measure_all(tmp_path / "gpu_check.csv")) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("kdnb: gpu-check needs a GPU") and sentence.count("\n") == 1


def test_gpu_check_runs_whole_on_the_second_device(tmp_path, monkeypatch, capsys):
    """Its times mean nothing here, but a quarter of an hour on a GPU shall not end in a typing error."""
    import torch
    from second_device import second_device

    from kdnb import models
    from kdnb.bench import gpu

    for name, value in {"SIDE": 32, "SMALL": 32, "IMAGES": 64, "STUDENTS": 2}.items():
        monkeypatch.setattr(gpu, name, value)
    timed = gpu.timed
    monkeypatch.setattr(gpu, "timed", lambda call, repeats: timed(call, 1))
    monkeypatch.setattr(gpu.models, "densenet121_teacher", models.StudentCNN)  # a whole one takes minutes here
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout="580.1\n"))
    monkeypatch.setattr(gpu, "status_within", lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a second device")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**30)
    out = tmp_path / "gpu_check.csv"
    with second_device():
        gpu.measure_all(out)
    table = pd.read_csv(out)
    assert list(table.columns) == ["name", "value", "lo", "hi", "goal", "met", "what", "device", "driver", "torch"]
    assert len(table) == 10 and len(capsys.readouterr().out.splitlines()) == 10
    assert table["value"].gt(0).all() and table["driver"].astype(str).eq("580.1").all() and table["met"].dtype == bool
    monkeypatch.setattr(gpu, "status_within", lambda *_: 2)
    with pytest.raises(KdnbError, match=r"the smoke run failed \(2\)"):
        gpu.smoke_minutes()


def test_a_smoke_run_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path):
    from kdnb.bench import gpu

    note = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 60 & echo $! > {note}.part; mv {note}.part {note}; wait"]
    assert gpu.status_within(2, command, dict(os.environ)) == "stopped after 2 s"
    child = int(note.read_text())
    end = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "it computes on"
        time.sleep(0.05)
    assert gpu.status_within(30, ["sh", "-c", "exit 3"], dict(os.environ)) == 3


def test_without_nvidia_smi_the_driver_is_not_known(monkeypatch, tmp_path):
    from kdnb.bench import gpu

    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.driver() == ""
