"""Find the images of a source on disk: class folders, alone or inside train/val/test folders."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from kdnb.datasets.reading import SUFFIXES, is_dicom
from kdnb.errors import DataError

SPLIT_NAMES = {
    "train": ("train", "training", "trainset", "train_set", "training_set", "traindata", "trn"),
    "val": ("val", "valid", "validation", "valset", "val_set", "validation_set", "dev"),
    "test": ("test", "testing", "testset", "test_set", "testing_set", "testdata", "tst"),
}
_SPLIT_OF = {spelling: split for split, spellings in SPLIT_NAMES.items() for spelling in spellings}


@dataclass
class Listing:
    """What lies in a source's folder; the four lists of an image are parallel and sorted by id.

    Attributes:
        files: paths. ids: paths relative to the source, printable. labels: class names. split: as published, or ``""``.
        skipped: id -> reason, for what looks as if it were meant to be an image and is not used.
    """

    files: list[Path] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in order."""
        return tuple(sorted(set(self.labels)))


def scan(folder: Path) -> Listing:
    """List every image under ``folder``.

    A folder with nothing but one other folder is stepped into. Folders named like train, val or test (any usual spelling) hold class
    folders; else every folder is a class. What lies deeper inside a class folder belongs to the class. Hidden files are ignored.

    Raises:
        DataError: no class folders, one class, a class without images, or a split with a class that training does not have.
    """
    root = _descend(folder)
    found = Listing()
    splits = {name: _SPLIT_OF.get(name.casefold().replace("-", "_").replace(" ", "_"), "") for name in _folders(root)}
    if not any(split == "train" for split in splits.values()):
        splits = {"": ""}
    for name, split in splits.items():
        if name and not split:
            found.skipped[_printable(name)] = "folder beside the train and test folders"
            continue
        for label in _folders(root / name):
            _add_class(found, folder, root / name / label, label, split)
    _check_classes(
        found, folder, [_printable(label) for name, split in splits.items() if split or not name for label in _folders(root / name)]
    )
    return _sorted(found)


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): mend its permissions.") from error


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _descend(folder: Path) -> Path:
    """Step through folders that hold only one other folder, as archives unpack."""
    seen = set()
    while True:
        inside = _folders(folder)
        if len(inside) != 1 or not _folders(folder / inside[0]) or os.path.realpath(folder) in seen:
            return folder
        seen.add(os.path.realpath(folder))
        folder = folder / inside[0]


def _printable(path: str) -> str:
    """A path as text that any file can hold; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _add_class(found: Listing, source: Path, folder: Path, label: str, split: str) -> None:
    """Add the images below one class folder, each real folder once, so that a loop of links ends."""
    visited = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        here = Path(place)
        relative = _printable(os.path.relpath(place, source))
        if real in visited or Path(real) in Path(os.path.abspath(folder)).parents:
            found.skipped[relative] = "link to a folder that was read already"
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in sorted(files):
            if _hidden(name):
                continue
            path = here / name
            identity = f"{relative}/{_printable(name)}"
            if path.suffix.lower() in SUFFIXES or (not path.suffix and _sniffed(path)):
                found.files.append(path)
                found.ids.append(identity)
                found.labels.append(_printable(label))
                found.split.append(split)
            else:
                found.skipped[identity] = "not named like an image"


def _sniffed(path: Path) -> bool:
    try:
        return path.is_file() and is_dicom(path)
    except OSError:
        return False


def _check_classes(found: Listing, folder: Path, folders: list[str]) -> None:
    counts = Counter(found.labels)
    if not counts:
        raise DataError(f"{folder} has no class folders with images in them: put each class's images into a folder of its own.")
    empty = sorted(set(folders) - set(counts))
    if empty:
        raise DataError(f"class {empty[0]!r} in {folder} has no images: add some or remove its folder.")
    if len(counts) < 2:
        raise DataError(f"{folder} has one class, {next(iter(counts))!r}: a classifier needs at least two class folders.")
    by_split = {split: set(label for label, s in zip(found.labels, found.split, strict=True) if s == split) for split in set(found.split)}
    for split, classes in sorted(by_split.items()):
        odd = sorted(classes ^ by_split.get("train", classes))
        if odd:
            raise DataError(f"class {odd[0]!r} in {folder} is in only one of train and {split}: give both the same class folders.")


def _sorted(found: Listing) -> Listing:
    order = sorted(range(len(found.ids)), key=found.ids.__getitem__)
    columns = ([column[k] for k in order] for column in (found.files, found.ids, found.labels, found.split))
    return Listing(*columns, skipped=found.skipped)
