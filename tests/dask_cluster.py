"""A Dask cluster on localhost, for tests that kill one of its workers."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdnb import cluster

SCHEDULER = "distributed.cli.dask_scheduler --host 127.0.0.1 --port 0 --no-dashboard --scheduler-file"
WORKER = "distributed.cli.dask_worker --nthreads 1 --nworkers 1 --no-nanny --no-dashboard"


def start(command: str, *words: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", *command.split(), *words], stderr=subprocess.DEVNULL, cwd=folder)


@contextmanager
def cluster_of_two(folder: Path, *options: str) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """The address of a scheduler, and its two workers."""
    address_file = folder / "scheduler.json"
    processes = [start(SCHEDULER, str(address_file), folder=folder)]
    try:
        deadline = time.monotonic() + 60
        while not address_file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        address = json.loads(address_file.read_text())["address"]
        processes += [start(WORKER, address, *options, folder=folder) for _ in range(2)]
        with cluster.client(address) as client:
            client.wait_for_workers(2, timeout=90)
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
