"""From ``make reproduce`` to executed notebooks: what each step depends on, one run at a time, nothing half done.

``make`` keeps the order and decides what to run again. It calls this module:

* ``reproduce`` locks the run's folder, writes the stamps (a hash of each notebook's cells; the settings, with the state
  of a user's images and networks) and starts ``make run``. Standard library only.
* ``notebook`` executes one notebook with papermill under a temporary name and moves it into place when it succeeded.
* ``verify`` runs the executed notebooks again under nbval.
* ``outputs`` copies the outputs of a finished run into the notebooks of the repository.
"""

import argparse
import ast
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

import kdnb.errors
from kdnb.errors import ArtefactError, KdnbError, writing
from kdnb.filesystems import lock
from kdnb.provenance import code_files, files_state
from kdnb.settings import NETWORK_FILE, Settings, from_command_line
from kdnb.sources import REPOSITORY, from_home, locate, parts

NOTEBOOKS = REPOSITORY / "notebooks"
LAYERS_PICTURE = REPOSITORY / "data" / "measured" / "phantom_layers.png"

# What the system says when a disk is full or a folder may not be written to.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

# -- one run at a time ----------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, owner: str) -> Iterator[None]:
    """Hold an exclusive lock on a file; wait for another process that holds it, saying so once.

    The system drops the lock when its holder dies, so a kill leaves nothing to clean up.

    Args:
        path: the file, which is made where it is missing.
        owner: what the holder is called in the sentence for those who wait.

    Yields:
        Nothing; the lock is held until the block ends.

    Raises:
        StorageError: the folder may not be written to.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w")
    sentence = f"kdnb: {owner} is at work in {path.parent}; waiting for it to end (Ctrl-C to give up)."
    with opened as file, lock(file, path, lambda: print(sentence, file=sys.stderr, flush=True)):
        yield


# -- stamps: files that change only when what they stand for changed ------------------------------------------------


def cells_hash(notebook: Path) -> str:
    """A hash of what a person wrote in a notebook: kind, source and tags of all cells, no outputs.

    Prose counts too, because the executed copy that a run keeps should carry the newest prose.

    Args:
        notebook: its path.

    Returns:
        A SHA-256 in hexadecimal digits.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    written = [[cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])] for cell in cells]
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()


def write_stamp(path: Path, text: str) -> None:
    """Write ``text``, unless the file holds it already: its time of change is what make looks at."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_suffix(".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def notebook_parameters(settings: Settings) -> dict[str, Any]:
    """The parameters of a run, of which a notebook is given those that it has.

    Args:
        settings: of the run.

    Returns:
        Name -> value; paths are whole, so that they hold in any working directory.
    """
    return {
        "dataset": settings.dataset,
        "profile": settings.profile,
        "seed": settings.seed,
        "data_dir": str(settings.data_dir),
        "run_dir": str(settings.run_dir),
        "split_protocol": settings.split_protocol,
        "teacher": settings.teacher,
        "train_teacher": os.environ.get("TRAIN_TEACHER") == "1",
        "student": settings.student,
    }


def _own_code(settings: Settings) -> dict[str, str]:
    """The hash of every file of the run's networks of one's own: code, what it imports beside it, and weights."""
    files: set[Path] = set()
    for name in (settings.teacher, settings.student):
        if (network := re.fullmatch(NETWORK_FILE, name)) is not None:
            files |= {*code_files(Path(network["file"])), *map(Path, filter(None, [network["state"]]))}
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def write_stamps(settings: Settings) -> None:
    """Bring the run's stamps up to date: one a notebook, and one for the settings with images and own networks."""
    stamps = settings.run_dir / ".stamps"
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        write_stamp(stamps / notebook.stem, cells_hash(notebook))
    parameters = notebook_parameters(settings)
    images = locate(settings.dataset, settings.data_dir)
    stamp = {"parameters": parameters, "budget": asdict(settings.budget), "images": str(images)}
    if images is not None:
        # What is written beside the images while a run lasts is none of them.
        cache = REPOSITORY / from_home(os.environ.get("KDNB_CACHE") or "data/cache")
        written = (settings.run_dir.parent, REPOSITORY / "runs", cache)
        is_table = images.is_file()
        below = images.parent / parts(settings.dataset)[2].get("images", "") if is_table else images
        stamp["files"] = files_state(below, written)
        if is_table:
            stamp["table"] = hashlib.sha256(images.read_bytes()).hexdigest()
    if code := _own_code(settings):
        stamp["code"] = code
    if images is None:  # the data come from nowhere, so another DATA_DIR changes nothing
        parameters["data_dir"] = ""
    write_stamp(stamps / "settings.json", json.dumps(stamp, indent=1, sort_keys=True))


def reproduce(arguments: list[str], command: list[str]) -> int:
    """Lock the run's folder, remove what a killed write left, write the stamps and run ``command`` (make) on it."""
    settings, folder = from_command_line(arguments)
    with locked(folder / ".reproduce.lock", "another make reproduce"):
        for leftover in list(folder.rglob(".*.part")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        write_stamps(settings)
        run = [*command, f"FOLDER={folder}"]
        status = subprocess.run(run, check=False, close_fds=False).returncode  # noqa: S603 (make's command)
    if status == 0:
        print(f"kdnb: the run is complete: {folder / 'report.html'}")
    return status


# -- one notebook ---------------------------------------------------------------------------------------------------


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Status:
    """The line on the terminal that says how far a notebook is, after what :mod:`kdnb.progress` writes in the kernel.

    A log file, or one of several notebooks running at once, gets the first and the last line only.

    Args:
        name: the notebook's.
        follow: the file that the kernel writes its progress into.
    """

    def __init__(self, name: str, follow: Path) -> None:
        self.name, self.follow, self.start = name, follow, time.monotonic()
        self.live = sys.stderr.isatty() and " -j" not in os.environ.get("MAKEFLAGS", "")
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self.live:
            self.thread.start()
        else:
            print(f"{self.name} ...", file=sys.stderr, flush=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        if self.live:
            self.thread.join()
            sys.stderr.write("\r\x1b[K")
        if error[0] is None:
            print(f"{self.name} done in {_clock(time.monotonic() - self.start)}", file=sys.stderr, flush=True)

    def line(self) -> str:
        """What the terminal shows now."""
        text = f"{self.name} {_clock(time.monotonic() - self.start)}"
        try:
            progress = self.follow.read_text(encoding="utf-8").splitlines()[-1]
            task, done, total, left = progress.split("\t")
        except (OSError, IndexError, ValueError):  # nothing told yet, or the last line is being written
            return text
        age = time.time() - self.follow.stat().st_mtime
        return f"{text} · {task} {done}/{total}" + (f" · {_clock(max(0.0, float(left) - age))} left" if left else "")

    def _watch(self) -> None:
        while not self.stopped.wait(0.5):
            sys.stderr.write(f"\r\x1b[K{self.line()}")
            sys.stderr.flush()


def kernel_environment(progress_file: Path) -> dict[str, str]:
    """What a kernel learns from its environment: where progress goes, and to leave the user's own settings aside."""
    prefix = Path(sys.prefix) / "var"
    try:
        for name in ("ipython", "matplotlib"):
            (prefix / name).mkdir(parents=True, exist_ok=True)
            if not os.access(prefix / name, os.W_OK):
                raise PermissionError
    except OSError:  # the checkout may be read only
        prefix = Path(tempfile.mkdtemp(prefix="kdnb-var-"))
        for name in ("ipython", "matplotlib"):
            (prefix / name).mkdir()
    return {
        "KDNB_PROGRESS": str(progress_file),
        "IPYTHONDIR": str(prefix / "ipython"),
        "MPLCONFIGDIR": str(prefix / "matplotlib"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "TQDM_DISABLE": "1",
        # glibc: students in threads share one heap; else each thread's keeps what it freed, a quarter of the peak.
        "MALLOC_ARENA_MAX": "1",
        # Activations of a step (up to 19 MB at 48 px) stay in the heap: else every step asks the kernel for fresh,
        # zeroed pages.
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    }


def failure_sentence(name: str, error: Exception, failed: Path) -> str:
    """What the terminal says about a notebook that failed: the study's own sentence, or where the traceback lies."""
    kind, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    known = getattr(kdnb.errors, kind, None)
    if isinstance(known, type) and issubclass(known, KdnbError):
        return f"kdnb: {name}: {message}"
    first = message.splitlines()[0] if message else "no message"
    return f"kdnb: {name} failed with {kind}: {first} (the whole traceback is in {failed})."


# What a user's shell may hold that would put another kernel, other figures or no checks in the place of the study's.
LEFT_ASIDE = ("JUPYTER_PATH", "MATPLOTLIBRC", "PYTHONSAFEPATH", "PYTHONOPTIMIZE")
_PAPERMILL: dict[str, Any] = {"kernel_name": "python3", "progress_bar": False, "extra_arguments": ["--log-level=ERROR"]}


def parameters_of(notebook: Path) -> set[str]:
    """The names of a notebook's parameters."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return {
        cast(ast.Name, node.target).id
        for text in tagged
        for node in ast.parse(text).body
        if isinstance(node, ast.AnnAssign)
    }


def execute(notebook: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Execute one notebook, whole or not at all.

    It runs as ``NN.running.ipynb``, which a kill leaves behind for inspection; a failed one is kept as
    ``NN.failed.ipynb``. The finished file bears the time at which it was started, so that an edit made meanwhile counts
    as newer.

    Args:
        notebook: its path.
        folder: where the executed one goes.
        parameters: of these the notebook is given those that it has.

    Raises:
        KdnbError: the notebook failed; the message is for the terminal.
    """
    import papermill

    folder.mkdir(parents=True, exist_ok=True)
    name = notebook.stem
    known = parameters_of(notebook)
    # Where the work is done changes no result, so the scheduler is no setting that makes a notebook run again.
    parameters = {
        key: value
        for key, value in (parameters | {"scheduler": os.environ.get("KDNB_SCHEDULER", "")}).items()
        if key in known
    }
    running, failed = folder / f"{name}.running.ipynb", folder / f"{name}.failed.ipynb"
    progress_file = folder / f".{name}.progress"
    progress_file.unlink(missing_ok=True)
    for variable in LEFT_ASIDE:
        os.environ.pop(variable, None)
    os.environ.update(kernel_environment(progress_file))
    started = time.time()
    # papermill formats both paths with the parameters
    read_from, written_to = (str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, running))
    try:
        with Status(name, progress_file):
            papermill.execute_notebook(read_from, written_to, parameters, cwd=str(REPOSITORY), **_PAPERMILL)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            running.unlink(missing_ok=True)  # cut off
            with writing(running):
                raise error
        if running.exists():
            running.replace(failed)
        raise KdnbError(failure_sentence(name, error, failed)) from error
    finally:
        progress_file.unlink(missing_ok=True)
    os.utime(running, (started, started))
    running.replace(folder / f"{name}.ipynb")
    failed.unlink(missing_ok=True)


# -- outputs of the default run, back into the repository -----------------------------------------------------------


LIVE = "application/vnd.jupyter.widget-view+json"  # a widget's view: nothing without the kernel that made it


def gone(output: dict[str, Any]) -> bool:
    """Whether nothing is left of an output without a kernel: a widget's view that brings no picture."""
    return LIVE in output.get("data", {}) and "image/png" not in output["data"]


def still(output: dict[str, Any]) -> dict[str, Any]:
    """An output without the live view of a widget: its picture stays."""
    if LIVE not in output.get("data", {}):
        return dict(output)
    return output | {"data": {kind: value for kind, value in output["data"].items() if kind != LIVE}}


def with_outputs(source: dict[str, Any], executed: dict[str, Any]) -> dict[str, Any]:
    """A notebook with the outputs of its executed copy: nothing else of it, no injected cell, times or live widgets.

    Args:
        source: the notebook, as JSON.
        executed: its copy.

    Returns:
        A new notebook; ``source`` stays as it is.

    Raises:
        ArtefactError: the two do not have the same cells.
    """
    executed_cells = [
        cell for cell in executed["cells"] if "injected-parameters" not in cell["metadata"].get("tags", [])
    ]
    same = [(cell["cell_type"], "".join(cell["source"])) for cell in executed_cells] == [
        (cell["cell_type"], "".join(cell["source"])) for cell in source["cells"]
    ]
    if not same:
        raise ArtefactError(
            "the executed notebook has other cells than the one in notebooks/: run `make reproduce` first."
        )
    count = 0
    cells = []
    for cell, done in zip(source["cells"], executed_cells, strict=True):
        filled = cell
        if cell["cell_type"] == "code":
            count += 1
            outputs = [still(output) for output in done["outputs"] if not gone(output)]
            for output in outputs:
                if "execution_count" in output:
                    output["execution_count"] = count
            filled = cell | {"outputs": outputs, "execution_count": count}
        cells.append(filled)
    return source | {"cells": cells}


def copy_outputs(folder: Path) -> None:
    """Copy a run's outputs into ``notebooks/``, and its picture of the student's layers into FINDINGS.md.

    Args:
        folder: the run's, with its executed notebooks.

    Raises:
        ArtefactError: a notebook was not executed in the run, or has other cells.
    """
    import nbformat

    from kdnb.files import atomic_write

    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        executed = folder / "notebooks" / notebook.name
        if not executed.exists():
            raise ArtefactError(f"{executed} is not there: run `make reproduce` first.")
        merged = with_outputs(*(json.loads(path.read_text(encoding="utf-8")) for path in (notebook, executed)))
        with atomic_write(notebook) as path:
            nbformat.write(nbformat.from_dict(merged), path)
        print(f"{notebook.name}: outputs of {executed.parent.parent.name}")
    with atomic_write(LAYERS_PICTURE) as path:
        shutil.copyfile(folder / "figures" / "student_layers.png", path)


def verify(folder: Path) -> int:
    """Run a run's executed notebooks again under strict nbval, together with the tests of their structure."""
    os.environ.update(kernel_environment(Path(os.devnull)))
    executed = str(folder / "notebooks")
    tests = ["tests/test_notebooks.py", f"--notebooks={executed}", "--nbval", executed]
    command = [sys.executable, "-m", "pytest", "-q", *tests]
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode  # noqa: S603 (words of our own)


def main(arguments: list[str] | None = None) -> int:
    """Run one step; a known error is one sentence on the terminal and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.pipeline", description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("reproduce", help="settings as of kdnb.settings, then -- and a make command")
    notebook = steps.add_parser("notebook")
    notebook.add_argument("name")
    notebook.add_argument("folder", type=Path)
    for step in ("outputs", "verify"):
        steps.add_parser(step).add_argument("folder", type=Path)
    locking = steps.add_parser("lock", help="a lock file, what its owner is called, then -- and a command")
    locking.add_argument("lock", type=Path)
    locking.add_argument("owner")
    words = sys.argv[1:] if arguments is None else arguments
    words, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options, rest = parser.parse_known_args(words)
    try:
        if options.step == "reproduce":
            return reproduce(rest, command)
        if options.step == "lock":
            with locked(options.lock, options.owner):
                return subprocess.run(command, check=False, close_fds=False).returncode  # noqa: S603 (make's command)
        if options.step == "notebook":
            stamp = json.loads((options.folder / ".stamps" / "settings.json").read_text(encoding="utf-8"))
            execute(NOTEBOOKS / f"{options.name}.ipynb", options.folder / "notebooks", stamp["parameters"])
        if options.step == "verify":
            return verify(options.folder.absolute())
        if options.step == "outputs":
            copy_outputs(options.folder)
    except KdnbError as error:
        sentence = str(error)
        print(sentence if sentence.startswith("kdnb: ") else f"kdnb: {sentence}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if cast(str, error.name).partition(".")[0] == "kdnb":
            raise
        cure = (
            "install it (requirements.lock names all that the study uses), or leave out PY= and have make set .venv up"
        )
        print(f"kdnb: {sys.executable} has no package {error.name}: {cure}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
