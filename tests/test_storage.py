"""A full disk, a read-only folder, a missing permission:
one sentence, no damaged file, and the work goes on once the cause is gone.

The causes are real. Each is brought about in a process of its own: a small file system in memory that only this process
sees, a limit on the size of files, or a process without the superuser's right to write everywhere.
"""

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_pipeline import WORK, copy

pytestmark = pytest.mark.slow

MOUNT = "mount -t tmpfs -o size=4m tmpfs"
OLD, NEW = pd.DataFrame({"value": range(500)}), pd.DataFrame({"value": range(500, 1000)})
IMAGES, SIZE = 12, 32


def _works(command: list[str]) -> bool:
    return (
        shutil.which(command[0]) is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


ALONE = ["unshare", "--user", "--map-root-user", "--mount"]  # a process that may mount, where nobody else sees it
NOT_SUPER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"] if os.geteuid() == 0 else []
CAN_MOUNT = _works([*ALONE, "sh", "-c", f"{MOUNT} /mnt && mount -o remount,ro /mnt"])
needs_mount = pytest.mark.skipif(not CAN_MOUNT, reason="this system lets no user mount a file system in memory")


# -- in the process of its own --------------------------------------------------------------------------------------


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Every block of the file system is taken."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    yield
    filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@contextmanager
def small_files_only(folder: Path) -> Iterator[None]:
    """No file may grow beyond 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """No folder may be written to."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    yield
    for path in folders:
        path.chmod(0o755)


CAUSES = {cause.__name__: cause for cause in (full, read_only, small_files_only, forbidden)}


def writes(run, images: Path) -> dict[str, Callable[[], object]]:
    """Everything that the study writes to a disk."""
    from torch.nn import functional as F

    from kdnb import models, training
    from kdnb.datasets import load

    training.CHECKPOINT_SECONDS = 0
    pixels = np.random.default_rng(0).integers(0, 256, (32, SIZE, SIZE, 3), dtype=np.uint8)
    examples = training.Examples(pixels, np.arange(32) % 2)
    checkpoint = run.folder / "cells" / "unfinished" / "student.safetensors"

    def train() -> None:
        student = models.initialised(models.StudentCNN, 2, (4, 8, 8), seed=0)
        recipe = training.Recipe(epochs=2, batch_size=16, views=1)
        options = {"seed": 0, "checkpoint": checkpoint, "key": "k"}
        training.fit(student, examples, examples, recipe, lambda z, _, y: F.cross_entropy(z, y), **options)

    return {
        "table": lambda: run.save_table("audit", NEW),
        "model": lambda: run.save_model("student", linear(2), key="new"),
        "provenance": lambda: run.record("more", {"words": "x" * 2000}),
        "checkpoint": train,
        "cache": lambda: load(f"folder:{images}", SIZE),
    }


def linear(value: float) -> torch.nn.Linear:
    layer = torch.nn.Linear(40, 40)
    torch.nn.init.constant_(layer.weight, value)
    return layer


def told(write: Callable[[], object]) -> list[str]:
    try:
        write()
    except Exception as error:  # noqa: BLE001 - which error it is, is what the test asks
        return [type(error).__name__, str(error)]
    return []


def endure(cause: str, folder: Path, images: Path) -> dict[str, object]:
    """Write all, with the cause and again without it; what was said, and what is on the disk in between."""
    from kdnb.datasets import cache
    from kdnb.runs import Run
    from kdnb.settings import resolve

    if cause in ("full", "read_only"):
        subprocess.run([*MOUNT.split(), str(folder)], check=True)
    cache.FOLDER = folder / "cache"
    cache.FOLDER.mkdir()
    run = Run(resolve(profile="smoke", run_dir=folder / "run"), "test")
    run.save_table("audit", OLD)
    run.save_model("student", linear(1), key="old")
    with CAUSES[cause](folder):
        messages = {name: told(write) for name, write in writes(run, images).items()}
        between = [
            run.load_table("audit").equals(OLD),
            run.load_model("student", linear(0), "old").weight.mean().item(),
        ]
    left = [
        path.name
        for path in folder.rglob("*")
        if path.suffix == ".part" or (path.parent == cache.FOLDER and path.suffix != ".lock")
    ]
    after = {name: told(write) for name, write in writes(run, images).items()}
    end = [run.load_table("audit").equals(NEW), run.load_model("student", linear(0), "new").weight.mean().item()]
    return {
        "said": messages,
        "between": between,
        "left": left,
        "after": after,
        "end": end,
        "images": len(writes(run, images)["cache"]()),
    }


# -- what must come of it -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        pytest.param("full", "No space left on device", marks=needs_mount),
        pytest.param("read_only", "Read-only file system", marks=needs_mount),
        ("small_files_only", "File too large"),
        pytest.param(
            "forbidden",
            "Permission denied",
            marks=pytest.mark.skipif(
                bool(NOT_SUPER) and not _works([*NOT_SUPER, "true"]), reason="the superuser may write everywhere"
            ),
        ),
    ],
)
def test_a_write_that_fails_is_a_sentence_damages_nothing_and_succeeds_later(cause, reason, tmp_path, images):
    imports = f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_storage import *; "
    call = "print(json.dumps(endure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))"
    prefix = ALONE if cause in ("full", "read_only") else NOT_SUPER if cause == "forbidden" else []
    command = [*prefix, sys.executable, "-c", imports + call, cause, str(tmp_path), str(images)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    assert set(report["said"]) == {"table", "model", "provenance", "checkpoint", "cache"}
    for name, messages in report["said"].items():
        assert messages, f"{name} was written in spite of all"
        kind, sentence = messages
        assert kind == "StorageError", (name, messages)
        assert reason in sentence and str(tmp_path) in sentence and sentence.endswith(".") and "\n" not in sentence
    assert report["between"] == [True, 1.0], "the old table and the old model are as they were"
    assert report["left"] == [], "nothing half written is left"
    assert all(messages == [] for messages in report["after"].values()), report["after"]
    assert report["end"] == [True, 2.0] and report["images"] == IMAGES


# A notebook beside which the disk fills up: it does not write itself, but what it shows cannot be kept.
FILLS = """
disk = Path(run_dir).parent.parent
if (disk / "fill").exists():
    try:
        (disk / "fill").write_bytes(bytes(1 << 23))
    except OSError as error:
        print(error)
"""


@needs_mount
@pytest.mark.parametrize(
    ("cause", "cure"),
    [
        ("mount -o remount,ro {0}", "mount -o remount,rw {0}"),
        ("cat /dev/zero > {0}/fill", "rm {0}/fill"),
        ("touch {0}/fill", "rm {0}/fill"),
    ],
)
def test_make_reproduce_says_why_it_cannot_write_and_completes_later(cause, cure, repository, tmp_path):
    study, disk = copy(repository, tmp_path, ["01_data_prep", "03_distillation"]), tmp_path / "disk"
    study.write("03_distillation", WORK + FILLS)
    disk.mkdir()
    make = shlex.join(study.command(f"RUNS={disk}/runs"))
    script = (
        f"{MOUNT} {disk} && ({cause.format(disk)}; {make}; echo status $?; {cure.format(disk)}; {make}; echo status $?)"
    )
    answer = subprocess.run(
        [*ALONE, "sh", "-c", script], capture_output=True, text=True, check=False, **study.options()
    )
    assert [line for line in answer.stdout.splitlines() if line.startswith("status")] == ["status 2", "status 0"], (
        answer.stderr
    )
    sentences = [line for line in answer.stderr.splitlines() if line.startswith("kdnb:")]
    assert len(sentences) == 1 and "could not be written" in sentences[0], answer.stderr
    assert "Traceback" not in answer.stderr
