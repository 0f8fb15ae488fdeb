"""What the study costs on a GPU: ``python -m kdnb.bench.gpu`` (``make gpu-check``).

It takes at most eight minutes, and no data set or network. Writes ``runs/gpu_check/gpu_check.csv``: the columns of
``bench.csv``, and device, driver and torch. Times are seconds of the whole step or call, the device having finished.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from kdnb import losses, models, stack, training, views
from kdnb.bench import median_interval, write
from kdnb.datasets import phantom, to_tensor
from kdnb.device import best_device, place, settle
from kdnb.errors import KdnbError, exit_status
from kdnb.explain.methods import methods
from kdnb.sources import REPOSITORY

OUT = REPOSITORY / "runs" / "gpu_check" / "gpu_check.csv"
SIDE, SMALL, IMAGES, CLASSES, BATCH, STUDENTS = 224, 64, 512, 4, 64, 24
LONGEST = 360.0  # seconds for the smoke run


def timed(call: Callable[[], object], repeats: int) -> np.ndarray:
    """Seconds of each of ``repeats`` calls, ``(repeats,)``, after one that does not count."""
    call()
    durations = []
    for _ in range(repeats):
        settle()
        start = time.perf_counter()
        call()
        settle()
        durations.append(time.perf_counter() - start)
    return np.array(durations)


def _examples(count: int, side: int) -> training.Examples:
    data = phantom.generate(count, side)
    return training.Examples(data.images, data.labels)


def _cross_entropy(student_logits: torch.Tensor, _: object, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(student_logits, targets)


def step_ms(model: torch.nn.Module, train: training.Examples, repeats: int = 7) -> np.ndarray:
    """Milliseconds of a training step of ``model``: an epoch of the study's own loop, divided by its steps."""
    model, recipe = place(model), training.Recipe(epochs=100, batch_size=BATCH, views=4)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    state = training.TrainingState(model, optimiser, averaged, {}, [])
    resident = training.to_device(train, best_device())
    steps = len(training.batches_of(np.arange(len(train)), BATCH))

    def epoch() -> None:
        training.train_epoch(state, resident, None, recipe, _cross_entropy, 0, 0)

    return 1e3 / steps * timed(epoch, repeats)


def stack_over_one(train: training.Examples, count: int, repeats: int = 3) -> np.ndarray:
    """The time of ``count`` students in a stack over that of one alone, both with evaluation."""
    recipe, few = training.Recipe(epochs=2, views=2), training.Examples(train.images[:BATCH], train.labels[:BATCH])
    bank = np.zeros((2, len(train), CLASSES), np.float32)

    def kd(student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
        return losses.arm_loss("kd_t2", student_logits, teacher_logits, targets, alpha=0.4, temperature=10.0)

    def student(seed: int) -> torch.nn.Module:
        return models.initialised(models.StudentCNN, CLASSES, seed=seed)

    def together() -> None:
        seeds = list(range(count))
        stack.fit([student(seed) for seed in seeds], train, few, recipe, [kd] * count, seeds=seeds, bank=bank)

    alone = timed(lambda: training.fit(student(0), train, few, recipe, kd, seed=0, bank=bank), repeats)
    return timed(together, repeats) / alone


def shap_ms(model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    """Milliseconds an image of SHAP with 200 points."""
    method, targets = methods(images[:16])["shap"], torch.zeros(4, dtype=torch.int64, device=images.device)
    return 250 * timed(lambda: method(place(model).eval(), images[:4], targets), 3)


def smoke_minutes() -> float:
    """The smoke run, whole, with this Python.

    Returns:
        Minutes.

    Raises:
        KdnbError: it failed or took too long.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kdnb-gpu-", ignore_cleanup_errors=True) as runs:
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
        command = ["make", "reproduce", "PROFILE=smoke", f"RUNS={runs}", f"PY={sys.executable}"]
        status = status_within(LONGEST, command, environment)
    if status != 0:
        raise KdnbError(f"the smoke run failed ({status}): mend what it says above.")
    return (time.perf_counter() - start) / 60


def status_within(seconds: float, command: list[str], environment: dict[str, str]) -> int | str:
    """The exit status of a command in the repository; after ``seconds`` it is stopped with all that it started.

    Args:
        seconds: how long it may take.
        command: the program and its arguments.
        environment: its variables.

    Returns:
        The status, or in words that it was stopped.
    """
    process = subprocess.Popen(  # noqa: S603 - the study's own command
        command, cwd=REPOSITORY, env=environment, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # make's notebooks, too, which would compute on
            process.wait()


def driver() -> str:
    """The version of the GPU's driver; ``""`` where no nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # a constant
    except OSError:
        return ""
    return answer.stdout.strip().split("\n")[0]


def measure_all(out: Path) -> None:
    """Measure every row and keep each as it comes; the smoke run is the last.

    Args:
        out: where the table is written.

    Raises:
        KdnbError: there is no GPU, or the smoke run failed.
    """
    if best_device().type == "cpu":
        raise KdnbError(
            "gpu-check needs a GPU that torch can use, and torch.cuda.is_available() is False here: "
            "run it on such a machine."
        )
    machine = {"device": torch.cuda.get_device_name(0), "driver": driver(), "torch": torch.__version__}

    def keep(name: str, values: np.ndarray | float, goal: str, what: str) -> None:
        value, lo, hi = median_interval(np.atleast_1d(values))
        limit = float(goal.split()[1])
        met = value <= limit if goal.startswith("<=") else value >= limit
        write(out, {"name": name, "value": value, "lo": lo, "hi": hi, "goal": goal, "met": met, "what": what} | machine)
        print(f"{name:24} {value:10.3g} {goal:>9}  {'yes' if met else 'NO'}", flush=True)

    large, small = _examples(IMAGES, SIDE), _examples(IMAGES, SMALL)
    student = models.initialised(models.StudentCNN, CLASSES, seed=0)
    teacher = models.initialised(models.densenet121_teacher, CLASSES, seed=0)
    keep("student_step_ms", step_ms(student, large), "<= 4", "a student's training step, 224 px, batch 64")
    keep("teacher_step_ms", step_ms(teacher, large, 3), "<= 35", "a teacher's training step, 224 px, batch 64")
    seconds = timed(lambda: views.teacher_bank(teacher, large.images, 2), 3)
    keep("bank_views_per_second", 2 * len(large) / seconds, ">= 5000", "views a second through the teacher, 224 px")
    keep(
        "stack_over_one",
        stack_over_one(small, STUDENTS),
        "<= 4",
        f"{STUDENTS} students at 64 px in a stack / one alone",
    )
    pixels = to_tensor(large.images[:16]).to(best_device())
    keep("shap_student_ms", shap_ms(student, pixels), "<= 60", "SHAP on the student, 200 points, 224 px, ms an image")
    keep("shap_teacher_ms", shap_ms(teacher, pixels), "<= 60", "SHAP on the teacher, 200 points, 224 px, ms an image")
    for name, model, epochs in (("teacher", models.densenet121_teacher, 3), ("student", models.StudentCNN, 6)):
        network: torch.nn.Module = models.initialised(model, CLASSES, seed=0)
        recipe = training.Recipe(epochs, views=epochs, averaging=0.9)
        history = training.fit(network, large, large, recipe, _cross_entropy, seed=0).history
        fallen = history["train_loss"].iloc[-1] / history["train_loss"].iloc[0]
        keep(
            f"{name}_loss_fallen",
            fallen,
            "<= 0.95",
            f"the {name}'s training loss after {epochs} epochs / after one, {IMAGES} images, {SIDE} px",
        )
    keep(
        "peak_device_gib",
        torch.cuda.max_memory_allocated() / 2**30,
        "<= 40",
        "peak memory on the device over all rows above",
    )
    keep("smoke_minutes", smoke_minutes(), "<= 4", "the smoke run, whole")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: measure_all(OUT)))
