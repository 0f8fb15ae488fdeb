"""How much memory the whole study needs at its peak."""

import os
import subprocess
import tempfile
import time

import psutil

from kdnb.bench import Row
from kdnb.errors import KdnbError
from kdnb.sources import REPOSITORY


def _in_use(process: psutil.Process) -> int:
    """Bytes of a process and all its children."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            memory = member.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += getattr(memory, "pss", memory.uss)  # only Linux knows a process's share of what several use
    return total


def peak_of(command: list[str], every: float = 0.25) -> float:
    """Peak memory of a command and all its children, GiB; pages that several of them share count once (on Linux)."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    run = subprocess.Popen(  # noqa: S603  # the study's own command
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL
    )
    process, peak = psutil.Process(run.pid), 0
    while run.poll() is None:
        try:
            peak = max(peak, _in_use(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(every)
    if run.wait() != 0:
        raise KdnbError(f"{' '.join(command)} failed, so its memory was not measured: mend what it says above.")
    return peak / 2**30


def _reproduce() -> float:
    with tempfile.TemporaryDirectory(prefix="kdnb-bench-") as runs:
        return peak_of(["make", "reproduce", f"RUNS={runs}"])


ROWS = {"peak_memory_gib": Row("peak memory of `make reproduce` with its defaults, GiB", "", 2.0, "<=", _reproduce)}
