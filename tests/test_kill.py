"""`make reproduce` killed at twenty moments and started again each time: nothing is lost, nothing repeated, nothing different."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

MOMENTS = 20
# What a clock measured differs from run to run; everything else must not.
CLOCKED_TABLES = {"met", "met_paper"}
CLOCKED_CLAIMS = ("met_ratio", "maps_over_shap")
CLOCKED_COLUMNS = ("seconds", "ms_per_image_median", "ms_per_image_iqr", "forward_equivalents")


class Reproduce:
    """`make reproduce` in the smoke profile, with its run in a folder of its own."""

    def __init__(self, repository: Path, runs: Path):
        self.repository, self.runs = repository, runs
        self.folder = runs / "phantom-smoke-seed0"
        hidden = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "KDNB_PROGRESS")
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}

    def start(self) -> subprocess.Popen:
        command = ["make", "reproduce", "PROFILE=smoke", f"RUNS={self.runs}"]
        log = (self.runs / "log").open("a")
        return subprocess.Popen(command, cwd=self.repository, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> None:
        assert self.start().wait() == 0, (self.runs / "log").read_text()[-2000:]

    def finished(self) -> dict[str, tuple[int, int]]:
        """Finished notebooks, each with what would change if it were written again."""
        found = sorted((self.folder / "notebooks").glob("??_*.ipynb"))
        return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found if path.stem.count(".") == 0}

    def wait_for_start_of(self, name: str, process: subprocess.Popen) -> None:
        end = time.monotonic() + 600
        while not (self.folder / "notebooks" / f"{name}.running.ipynb").exists() and name not in self.finished():
            assert process.poll() is None, (self.runs / "log").read_text()[-2000:]
            assert time.monotonic() < end
            time.sleep(0.05)


def results(folder: Path) -> dict[str, object]:
    """All tables (without what a clock measured) and the bytes of all models."""
    found: dict[str, object] = {}
    for path in sorted((folder / "results").glob("*.csv")):
        if path.stem not in CLOCKED_TABLES:
            table = pd.read_csv(path)
            if path.stem == "claims":
                table = table[~table["claim"].isin(CLOCKED_CLAIMS)]
            found[path.name] = table.drop(columns=[name for name in table if name.startswith(CLOCKED_COLUMNS)]).to_csv()
    for path in sorted((folder / "models").glob("*.safetensors")):
        found[path.name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(repository, tmp_path_factory):
    """An uninterrupted run, and how long each of its notebooks took."""
    run = Reproduce(repository, tmp_path_factory.mktemp("whole"))
    run.finish()
    lines = (run.runs / "log").read_text().splitlines()
    said = [line.split(" done in ") for line in lines if " done in " in line]
    durations = {name: 60 * int(clock.split(":")[0]) + int(clock.split(":")[1]) for name, clock in said}
    return run, durations


def test_twenty_kills_lose_nothing_repeat_nothing_and_change_nothing(whole, repository, tmp_path):
    uninterrupted, durations = whole
    draw = random.Random(20)
    position = sorted(draw.uniform(0, sum(durations.values())) for _ in range(MOMENTS))
    run = Reproduce(repository, tmp_path)
    for moment in position:
        before = run.finished()
        process = run.start()
        name, into = _place(moment, durations)
        run.wait_for_start_of(name, process)
        time.sleep(into)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        after = run.finished()
        assert {name: after[name] for name in before} == before, "a finished notebook was written again"
        assert not (run.folder / "report.html").exists() or len(after) == len(durations)
    before = run.finished()
    run.finish()
    after = run.finished()
    assert {name: after[name] for name in before} == before
    assert set(after) == set(durations)
    assert not list((run.folder / "notebooks").glob("*.running.ipynb"))
    assert not list(run.folder.rglob("*.part")), "temporary files are left"
    expected, found = results(uninterrupted.folder), results(run.folder)
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def _place(moment: float, durations: dict[str, int]) -> tuple[str, float]:
    """The notebook that is at work at ``moment`` of an uninterrupted run, and how long it has been."""
    for name, seconds in durations.items():
        if moment < seconds:
            return name, moment
        moment -= seconds
    return name, seconds
