"""How much memory the whole study needs at its peak."""

import os
import subprocess
import tempfile
import time

import psutil

from kdnb.bench import Row
from kdnb.errors import KdnbError
from kdnb.sources import REPOSITORY


def _resident(process: psutil.Process) -> int:
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def peak_of(command: list[str], every: float = 0.1) -> float:
    """Peak of the summed resident memory of a command and all its children, GiB (shared pages count once a process)."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    started = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    process, peak = psutil.Process(started.pid), 0
    while started.poll() is None:
        try:
            peak = max(peak, _resident(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(every)
    if started.wait() != 0:
        raise KdnbError(f"{' '.join(command)} failed, so its memory was not measured: mend what it says above.")
    return peak / 2**30


def _reproduce() -> float:
    with tempfile.TemporaryDirectory(prefix="kdnb-bench-") as runs:
        return peak_of(["make", "reproduce", f"RUNS={runs}"])


ROWS = {"peak_memory_gib": Row("peak memory of `make reproduce` with its defaults, GiB", "", 2.0, "<=", _reproduce)}
