"""Where a result comes from: versions, device and commit that made it, and keys of what it depends on."""

import ast
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import cast

from kdnb.sources import REPOSITORY

_PACKAGES = (
    "torch",
    "torchvision",
    "captum",
    "shap",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "statsmodels",
    "pillow",
)


def content_key(*values: object) -> str:
    """A short hash of values: the identity of what a model or a cache was made from.

    Args:
        *values: what JSON holds; what it does not hold counts by its ``str``.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def source_key(*modules: ModuleType) -> str:
    """A hash of what the modules' code does: comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for module in modules:
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                cast("ast.Module | ast.ClassDef | ast.FunctionDef", node).body = body[1:] or [ast.Pass()]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def code_files(file: Path) -> list[Path]:
    """A file of code and what it imports of the modules and packages that lie beside it, and these in turn.

    Args:
        file: of a network of one's own, say.

    Returns:
        The file first, then the others by path. An import by a name that the code only makes up is not seen.
    """
    found, waiting = {file}, [file]
    while waiting:
        path = waiting.pop()
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # whoever imports it will say so
            continue
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        for name in {name.partition(".")[0] for name in names} - {"kdnb"}:  # the study's own: make knows it
            beside = {file.parent / f"{name}.py", *(file.parent / name).rglob("*.py")}
            new = {other for other in beside if other.is_file()} - found
            found |= new
            waiting += new
    return [file, *sorted(found - {file})]


def files_state(folder: Path, left_out: Sequence[Path] = ()) -> str:
    """A hash of the names, sizes and times of all files below a folder; none is read.

    Args:
        folder: links to folders are followed, each real folder once.
        left_out: folders whose files do not count; hidden ones do not, either.

    Returns:
        64 hexadecimal digits.
    """
    seen, rows = {os.path.realpath(path) for path in left_out}, []
    for walked, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(walked)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = os.path.join(walked, name)
            try:
                status = os.stat(path)
                rows.append((os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
            except OSError as error:  # a link to nowhere
                rows.append((os.path.relpath(path, folder), error.errno or 0, 0))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def environment() -> dict[str, object]:
    """Package versions, device, processor, threads and commit, for ``run.json``."""
    import torch

    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        **commit(REPOSITORY),
    }


def commit(checkout: Path) -> dict[str, str | bool]:
    """The commit of a checkout and whether its code was changed since.

    Args:
        checkout: the folder of the repository.

    Returns:
        ``commit``, which is ``"unknown"`` without git and where the code was unpacked inside a repository that is not
        its own, and ``modified``.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        try:
            answer = subprocess.run(  # noqa: S603 - the words stand below
                ["git", "-C", str(checkout), *words],  # noqa: S607 - wherever this machine has it
                capture_output=True,
                check=False,
                env=environ,
            )
        except OSError:
            return ""
        return os.fsdecode(answer.stdout).strip() if answer.returncode == 0 else ""

    top = git("rev-parse", "--show-toplevel")
    if not top or not Path(top).exists() or not Path(top).samefile(checkout):
        return {"commit": "unknown", "modified": False}
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "kdnb", "notebooks")
    return {"commit": git("rev-parse", "HEAD") or "unknown", "modified": bool(changed)}
