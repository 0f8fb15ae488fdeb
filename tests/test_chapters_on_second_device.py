"""Every chapter, whole, where a second device is told apart from the host:
a GPU would meet nothing there that a CPU has not shown."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_chapter_runs_where_a_second_device_is_told_apart(tmp_path, repository):
    script = repository / "tests" / "chapters_on_second_device.py"
    # Every operation goes through Python, which more threads do not make faster.
    options = {"cwd": repository, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    passed = [line.removesuffix(": passed") for line in done.stdout.splitlines() if line.endswith(": passed")]
    assert passed == sorted(path.stem for path in (repository / "notebooks").glob("*.ipynb"))
