"""Killed at many moments and started again each time: nothing is lost, nothing repeated, nothing different."""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

MOMENTS = 20  # of one training
# What a clock measured differs from run to run; everything else must not.
CLOCKED_TABLES = ("met", "met_paper", "evidence_cost", "volumes_met", "volumes_growth")
CLOCKED_CLAIMS = ("met_ratio", "maps_over_shap", "evidence_cost", "volumes_cost")
CLOCKED_COLUMN = "seconds"


def results(folder: Path) -> dict[str, object]:
    """All tables as they were written, without what a clock measured, and the bytes of all models."""
    stored: dict[str, object] = {
        path.name: path.read_bytes() for path in sorted((folder / "models").glob("*.safetensors"))
    }
    for path in sorted((folder / "results").glob("*.csv")):
        if path.stem not in CLOCKED_TABLES:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            if path.stem == "claims":
                table = table[~table["claim"].isin(CLOCKED_CLAIMS)]
            stored[path.name] = table.drop(columns=CLOCKED_COLUMN, errors="ignore").to_csv()
    return stored


def assert_equal(found: dict[str, object], expected: dict[str, object]) -> None:
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


# -- the whole study ------------------------------------------------------------------------------------------------


class Reproduce:
    """`make reproduce` in the smoke profile, with its run in a folder of its own."""

    def __init__(self, repository: Path, runs: Path):
        self.repository, self.runs = repository, runs
        self.folder = runs / "phantom-smoke-seed0"
        hidden = (
            "MAKEFLAGS",
            "MAKELEVEL",
            "MFLAGS",
            "KDNB_PROGRESS",
            "DATASET",
            "SEED",
            "SPLIT",
            "DATA_DIR",
            "ONLY",
            "RUN",
        )
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}

    def start(self) -> subprocess.Popen:
        command = ["make", "reproduce", "PROFILE=smoke", f"RUNS={self.runs}"]
        with (self.runs / "log").open("a") as log:
            return subprocess.Popen(
                command, cwd=self.repository, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def log(self) -> str:
        return (self.runs / "log").read_text()

    def finished(self) -> dict[str, tuple[int, int]]:
        """Finished notebooks as they followed each other, each with what would change if it were written again."""
        notebooks = [
            (path.stem, path.stat()) for path in (self.folder / "notebooks").glob("*.ipynb") if "." not in path.stem
        ]
        return {
            name: (state.st_ino, state.st_mtime_ns)
            for name, state in sorted(notebooks, key=lambda name_and_state: name_and_state[1].st_mtime_ns)
        }

    def wait_for_start_of(self, name: str, process: subprocess.Popen) -> None:
        end = time.monotonic() + 600
        while not (self.folder / "notebooks" / f"{name}.running.ipynb").exists() and name not in self.finished():
            assert process.poll() is None, self.log()[-2000:]
            assert time.monotonic() < end
            time.sleep(0.05)


class Whole(Reproduce):
    """A run that nobody killed; two processes were asked for it at once."""

    def __init__(self, repository: Path, runs: Path):
        super().__init__(repository, runs)
        began = time.time()
        both = [self.start(), self.start()]
        assert [process.wait() for process in both] == [0, 0], self.log()[-2000:]
        # A finished notebook bears the time at which it was started,
        # so these are the marks between which the run did something else.
        self.marks = [
            began,
            *(mtime / 1e9 for _, mtime in self.finished().values()),
            (self.folder / "report.html").stat().st_mtime,
        ]

    def moments(self, draw: random.Random) -> list[tuple[str | None, float]]:
        """A moment in what comes before the first notebook (``None``) and in each notebook:
        seconds after it was begun."""
        lengths = [end - start for start, end in itertools.pairwise(self.marks)]
        return [(name, draw.uniform(0, length)) for name, length in zip([None, *self.finished()], lengths, strict=True)]


@pytest.fixture(scope="module")
def whole(repository, tmp_path_factory):
    return Whole(repository, tmp_path_factory.mktemp("whole"))


def test_of_two_at_once_one_waits_and_finds_nothing_to_do(whole, repository):
    log = whole.log()
    assert log.count("another make reproduce is at work in") == 1
    assert log.count("the run is complete") == 2
    assert len(whole.finished()) == len(list((repository / "notebooks").glob("*.ipynb")))
    for name in whole.finished():
        assert log.count(f"{name} done in") == 1, name


def test_a_kill_in_every_chapter_loses_nothing_repeats_nothing_and_changes_nothing(whole, repository, tmp_path):
    run = Reproduce(repository, tmp_path)
    for name, into in whole.moments(random.Random(20)):
        before = run.finished()
        process = run.start()
        if name is not None:
            run.wait_for_start_of(name, process)
        with suppress(subprocess.TimeoutExpired):  # it may be done sooner than the run that set the moments
            process.wait(into)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        after = run.finished()
        assert {name: after[name] for name in before} == before, "a finished notebook was written again"
        assert not (run.folder / "report.html").exists() or len(after) == len(whole.finished())
    before = run.finished()
    assert run.start().wait() == 0, run.log()[-2000:]
    after = run.finished()
    assert {name: after[name] for name in before} == before, "a finished notebook was written again"
    assert set(after) == set(whole.finished())
    assert not list((run.folder / "notebooks").glob("*.running.ipynb"))
    assert not list(run.folder.rglob("*.part")), "temporary files are left"
    assert_equal(results(run.folder), results(whole.folder))


# -- training alone, with a checkpoint an epoch ---------------------------------------------------------------------


def note_step(folder: Path, parameters: int) -> None:
    """A step of the teacher, which has many parameters, takes as long as six of a student."""
    with (folder / "steps").open("a") as steps:
        steps.write("." * (6 if parameters > 100 else 1))


def steps(folder: Path) -> int:
    path = folder / "steps"
    return path.stat().st_size if path.exists() else 0


def train(folder: Path) -> None:
    """Train a teacher and two students in ``folder``, as the notebooks do, in so small a form that it takes seconds."""
    from torch.nn import functional as F
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from kdnb import comparison, experiments, models, specs, sweep, training, views
    from kdnb.datasets import phantom
    from kdnb.runs import Run
    from kdnb.settings import resolve

    training.CHECKPOINT_SECONDS = 0
    register_optimizer_step_post_hook(lambda optimiser, *_: note_step(folder, len(optimiser.param_groups[0]["params"])))
    run = Run(resolve(profile="smoke", run_dir=folder), "test")
    made = phantom.generate(128, 32)
    cuts = (slice(64), slice(64, 96), slice(96, 128))
    learn, validation, test = (training.Examples(made.images[cut], made.labels[cut]) for cut in cuts)
    (folder / "training").touch()
    teacher = models.initialised(models.densenet121_teacher, 4, seed=0)
    if run.has_model("teacher", "k"):
        run.load_model("teacher", teacher, "k")
    else:
        recipe = training.Recipe(epochs=8, batch_size=32, views=2)
        unfinished = folder / "models" / "unfinished" / "teacher.safetensors"
        options = {"seed": 0, "checkpoint": unfinished, "key": "k"}
        with training.threads(1):
            training.fit(teacher, learn, validation, recipe, lambda z, _, y: F.cross_entropy(z, y), **options)
        run.save_model("teacher", teacher, "k")
        unfinished.unlink(missing_ok=True)
    bank = views.teacher_bank(teacher, learn.images, 2)
    experiment = experiments.Experiment(
        learn, validation, test, bank, training.Recipe(epochs=60, batch_size=16, views=2), 4, "data"
    )
    cells = [specs.spec(arm, 0, 0.4, 5.0, widths=(16, 32, 32)) for arm in ("ce", "kd")]
    students = sweep.train(run, cells, experiment, jobs=1)
    run.save_table("sweep", comparison.sweep_table(students, experiment))


def start_training(folder: Path) -> multiprocessing.Process:
    """Start :func:`train` in a process of its own and return when it begins to train."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kdnb.sweep"])  # imported once, not in each of many processes
    folder.mkdir(exist_ok=True)
    (folder / "training").unlink(missing_ok=True)
    process = context.Process(target=train, args=(folder,))
    process.start()
    while not (folder / "training").exists():
        assert process.is_alive()
        time.sleep(0.02)
    return process


def cells(folder: Path) -> dict[str, dict[str, bytes]]:
    """Every student's weights and logits; its file also holds the seconds that it took."""
    files = {path.name: load_file(path) for path in (folder / "cells").glob("*.safetensors")}
    return {name: {part: value.numpy().tobytes() for part, value in tensors.items()} for name, tensors in files.items()}


def test_training_killed_twenty_times_ends_with_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start_training(whole).join()
    draw, cut = random.Random(4), []
    # Together they take as many steps as the whole, and each loses what came after its last checkpoint.
    for _ in range(MOMENTS):
        last = steps(killed) + draw.uniform(0, 2 * steps(whole) / MOMENTS)
        process = start_training(killed)
        while steps(killed) < last and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        cut.append(process.exitcode)
    process = start_training(killed)
    process.join()
    assert process.exitcode == 0
    assert cut.count(-signal.SIGKILL) >= 15, "most of the kills must find it at work"
    assert_equal(results(killed), results(whole))
    assert_equal(cells(killed), cells(whole))
    assert not list(killed.rglob("unfinished/*.safetensors"))
