"""The default run from nothing to its report, in minutes.

As this processor computes, and as one without bfloat16 and AVX-512 would. The switches leave a fast processor its clock
and caches, so the second row shows the instructions of a slower one, not all of it.
"""

import os
import subprocess
import sys
import tempfile
import time

from kdnb.bench import Row
from kdnb.sources import REPOSITORY

SLOWER = {"KDNB_PRECISION": "float32", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def minutes(switches: dict[str, str], *arguments: str) -> float:
    """How long ``make reproduce`` takes in a folder of its own.

    Args:
        switches: environment variables.
        arguments: of ``make``, such as ``PROFILE=smoke``.

    Returns:
        Minutes.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="kdnb-bench-") as folder:
        command = ["make", "-s", "reproduce", f"RUNS={folder}", f"PY={sys.executable}", *arguments]
        start = time.perf_counter()
        environment = os.environ | switches
        subprocess.run(  # noqa: S603  # the study's own command
            command, cwd=REPOSITORY, env=environment, check=True, stdout=sys.stderr
        )
        return (time.perf_counter() - start) / 60


ROWS = {
    "default_run_minutes": Row("make reproduce, minutes, as this processor computes", "", 8, "<=", lambda: minutes({})),
    "default_run_minutes_avx2": Row(
        "make reproduce, minutes, in float32 with AVX2", "", 12, "<=", lambda: minutes(SLOWER)
    ),
}
