"""What can be loaded and where it lies: ``data/sources.toml`` and the folders on disk.

Standard library only, so that ``make`` can check a data set before anything is installed.
"""

import os
import tomllib
from functools import cache
from pathlib import Path

from kdnb.errors import DataNotFoundError, ParameterError

REPOSITORY = Path(__file__).resolve().parent.parent
PHANTOM_VARIANTS = ("", "certain", "shortcut", "fundus", "volume")


def from_home(path: str | Path) -> Path:
    """The path with ``~`` or ``~user`` in front replaced; one of an unknown user stays as it is (pathlib raises RuntimeError)."""
    return Path(os.path.expanduser(path))


@cache
def table() -> dict[str, dict]:
    """The sources of ``data/sources.toml`` by name."""
    return tomllib.loads((REPOSITORY / "data" / "sources.toml").read_text(encoding="utf-8"))


def allowed() -> str:
    """The data-set names a user can give, for an error message."""
    variants = [f"phantom:{name}" for name in PHANTOM_VARIANTS if name]
    tasks = [f"{name}:{task}" for name, source in table().items() for task in source.get("tasks", {})]
    return ", ".join(["phantom", *variants, *table(), *tasks, "medmnist:<flag>", "folder:<path>"])


def check_name(dataset: str) -> str:
    """Return ``dataset`` if the study knows it.

    Raises:
        ParameterError: unknown name, or ``folder:`` and ``medmnist:`` without what follows.
    """
    kind, colon, rest = dataset.partition(":")
    known = (
        (kind == "phantom" and rest in PHANTOM_VARIANTS and bool(colon) == bool(rest))
        or (kind in table() and (not colon or rest in table()[kind].get("tasks", {})))
        or (kind in ("folder", "medmnist") and bool(rest))
    )
    if not known:
        raise ParameterError(f"dataset is {dataset!r}, but it must be one of: {allowed()}.")
    return dataset


def absolute(dataset: str) -> str:
    """The data set's name with a whole path, so that a relative ``folder:images`` and its absolute path are one."""
    kind, _, path = dataset.partition(":")
    return f"{kind}:{from_home(path).absolute()}" if kind in ("folder", "table") else dataset


def locate(dataset: str, data_dir: Path) -> Path | None:
    """The folder that holds ``dataset``, or ``None`` for one that is generated or comes in a package.

    Looks for the source's folder inside ``data_dir``, then for its class folders in ``data_dir`` itself.

    Raises:
        DataNotFoundError: nothing there; the message says where to get the images and where to put them.
    """
    kind, _, rest = check_name(dataset).partition(":")
    if kind in ("phantom", "medmnist"):
        return None
    if kind == "folder":
        folder = from_home(rest)
        if not folder.is_dir():
            raise DataNotFoundError(f"dataset is {dataset!r}, but there is no folder {folder}: name a folder of class folders.")
        return folder
    source = table()[kind]
    for candidate in (data_dir / source["folder"], data_dir):
        if all((candidate / name).is_dir() for name in source["expected_folders"]):
            return candidate
    raise DataNotFoundError(
        f"dataset {kind!r} is not in {data_dir}: run `make data DATASET={kind}`, or download {source['url']} by hand and unpack "
        f"it so that {data_dir / source['folder'] / source['expected_folders'][0]} exists (another place: DATA_DIR=...)."
    )
