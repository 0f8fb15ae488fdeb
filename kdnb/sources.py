"""What can be loaded and where it lies: ``data/sources.toml`` and the folders on disk.

Standard library only, so that ``make`` can check a data set before anything is installed.
"""

import os
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from kdnb.errors import DataNotFoundError, ParameterError

REPOSITORY = Path(__file__).resolve().parent.parent
PHANTOM_VARIANTS = ("", "certain", "shortcut", "fundus", "volume")
# What may follow a path, as in table:labels.csv:label=dx,person=off: a table's columns ("off" leaves one out), the
# folder of its images, and of published folds the one that tests.
OPTIONS = {"folder": ("person", "test"), "table": ("image", "label", "split", "test", "person", "mask", "images")}
TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".parquet")


def from_home(path: str | Path) -> Path:
    """The path with ``~`` or ``~user`` in front replaced; of an unknown user it stays (pathlib raises RuntimeError)."""
    return Path(os.path.expanduser(path))


@cache
def table() -> dict[str, dict[str, Any]]:
    """The sources of ``data/sources.toml`` by name."""
    return tomllib.loads((REPOSITORY / "data" / "sources.toml").read_text(encoding="utf-8"))


def allowed() -> str:
    """The data-set names a user can give, for an error message."""
    variants = [f"phantom:{name}" for name in PHANTOM_VARIANTS if name]
    tasks = [f"{name}:{task}" for name, source in table().items() for task in source.get("tasks", {})]
    return ", ".join(["phantom", *variants, *table(), *tasks, "medmnist:<flag>", "folder:<path>", "table:<path>"])


def parts(dataset: str) -> tuple[str, str, dict[str, str]]:
    """What the name of a data set says: its kind, what follows, and the options behind a path.

    Args:
        dataset: its name; a path that is there is never cut.

    Returns:
        Kind, path (or what else follows the colon) and options.

    Example:
        >>> parts("table:a/labels.csv:label=dx,person=off")
        ('table', 'a/labels.csv', {'label': 'dx', 'person': 'off'})
    """
    kind, _, rest = dataset.partition(":")
    with_options = re.fullmatch(r"(.+?):([a-z]+=.+)", rest, re.DOTALL) if kind in OPTIONS else None
    if with_options is None or os.path.exists(from_home(rest)):
        return kind, rest, {}
    pairs = (pair.partition("=") for pair in re.split(r",(?=[a-z]+=)", with_options[2]))
    return kind, with_options[1], {name: value for name, _, value in pairs}


def check_name(dataset: str) -> str:
    """Return a data set's name if the study knows it.

    Args:
        dataset: what a user gave.

    Returns:
        The name.

    Raises:
        ParameterError: unknown name, ``folder:``, ``table:`` and ``medmnist:`` without what follows, or an unknown
            option behind a path.
    """
    _, colon, rest = dataset.partition(":")
    kind, _, options = parts(dataset)
    is_known = (
        (kind == "phantom" and rest in PHANTOM_VARIANTS and bool(colon) == bool(rest))
        or (kind in table() and (not colon or rest in table()[kind].get("tasks", {})))
        or (kind in ("folder", "table", "medmnist") and bool(rest))
    )
    if not is_known:
        raise ParameterError(f"dataset is {dataset!r}, but it must be one of: {allowed()}.")
    for option, value in options.items():
        if option not in OPTIONS[kind] or ((kind, option) == ("folder", "person") and value != "off"):
            usual = "person=off, test=FOLD" if kind == "folder" else ", ".join(f"{name}=..." for name in OPTIONS[kind])
            raise ParameterError(
                f"dataset is {dataset!r}, but what follows the path must be of: {usual}; not {option}={value}."
            )
    return dataset


def absolute(dataset: str) -> str:
    """The data set's name with a whole path, so that a relative ``folder:images`` and its absolute path are one."""
    kind, path, options = parts(dataset)
    if kind not in OPTIONS:
        return dataset
    behind = ",".join(f"{name}={value}" for name, value in options.items())
    return f"{kind}:{from_home(path).absolute()}" + (f":{behind}" if behind else "")


def locate(dataset: str, data_dir: Path) -> Path | None:
    """Where a data set lies.

    Looks for the source's folder inside ``data_dir``, then for its class folders in ``data_dir`` itself.

    Args:
        dataset: its name.
        data_dir: where the downloaded data sets lie.

    Returns:
        The folder (or table); ``None`` for one that is generated or comes in a package.

    Raises:
        DataNotFoundError: nothing there; the message says where to get the images and where to put them.
    """
    kind, rest, _ = parts(check_name(dataset))
    if kind in ("phantom", "medmnist"):
        return None
    if kind == "table":
        file = from_home(rest)
        if not file.is_file() or file.suffix.lower() not in TABLE_ENDINGS:
            wrong = "is none of these kinds" if file.is_file() else "is no file"
            raise DataNotFoundError(
                f"dataset is {dataset!r}, but {file} {wrong}: name a table ({', '.join(TABLE_ENDINGS)})."
            )
        return file
    if kind == "folder":
        folder = from_home(rest)
        if not folder.is_dir():
            raise DataNotFoundError(
                f"dataset is {dataset!r}, but there is no folder {folder}: name a folder of class folders."
            )
        return folder
    source = table()[kind]
    for candidate in (data_dir / source["folder"], data_dir):
        if all((candidate / name).is_dir() for name in source["expected_folders"]):
            return candidate
    where = f"dataset {kind!r} is not in {data_dir}"
    if "by_hand" in source:
        raise DataNotFoundError(
            f"{where}: from {source['url']} {source['by_hand']}, all in {data_dir / source['folder']} "
            "(another place: DATA_DIR=...)."
        )
    raise DataNotFoundError(
        f"{where}: run `make data DATASET={kind}`, or download {source['url']} by hand and unpack "
        f"it so that {data_dir / source['folder'] / source['expected_folders'][0]} exists "
        "(another place: DATA_DIR=...)."
    )
