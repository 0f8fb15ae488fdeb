"""Find the images of a source on disk: class folders, alone or inside train/val/test folders."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdnb.datasets import layouts
from kdnb.datasets.layouts import is_image, is_system, printable
from kdnb.datasets.masks import pair
from kdnb.errors import DataError


@dataclass
class Listing:
    """What a source's folder or table holds; the lists of an image are parallel and sorted by id.

    Attributes:
        files: paths. ids: paths relative to the source, printable. labels: class names. split: as published, or ``""``.
        skipped: id -> reason, for what looks as if it were meant to be an image and is not used. left_out: kind -> how many files are
            no samples.
        masks: paths of the masks of each image, or empty where no image has one.
        persons: whose image it is (``""``: not known), or empty where nothing but names may tell. persons_from: what told.
        found_by: what told the classes, in a few words; ``""`` for class folders. tables: that lie beside these, and are not read.
        tables_inside: that lie in class folders, and are not read.
    """

    files: list[Path] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    masks: list[list[Path]] = field(default_factory=list)
    persons: list[str] = field(default_factory=list)
    persons_from: str = ""
    found_by: str = ""
    tables: list[Path] = field(default_factory=list)
    tables_inside: list[Path] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in order."""
        return tuple(sorted(set(self.labels)))

    def understood(self) -> str:
        """How the folder or table was understood, in one line."""
        counts = Counter(self.split)
        parts = ", ".join(f"{split} {counts[split]}" for split in ("train", "val", "test") if counts[split])
        published = f"published split ({parts})" if set(self.split) - {"", "train"} else "no published test set"
        if not set(self.split) - {""}:
            published = "no published split"
        line = f"{len(self.files)} images in {len(self.classes)} {self.found_by or 'class folders'}, {published}"
        masked = sum(map(bool, self.masks))
        line += f", {'a mask of 1 image' if masked == 1 else f'masks of {masked} images'}" if masked else ""
        if self.tables:
            names = first([printable(path.name) for path in self.tables], 3)
            line += f"; not read: {names} beside the class folders (DATASET=table:PATH reads a table of labels, persons and masks)"
        if self.tables_inside:
            names = first([printable(f"{path.parent.name}/{path.name}") for path in self.tables_inside], 3)
            line += f"; not read: {names} in class folders: if these are data sets of their own, give one of them"
        left = "; ".join(f"{count} {kind}" for kind, count in sorted(self.left_out.items()))
        return line + (f"; left out: {left}" if left else "")


def first(names: Sequence[str], most: int) -> str:
    """The first of some names, and whether there are more."""
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def scan(folder: Path, test: str = "") -> Listing:
    """List every image under ``folder``, as :func:`kdnb.datasets.layouts.understand` understands it.

    What lies deeper inside a class folder belongs to the class; masks beside their images do not, nor does what systems leave.

    Raises:
        DataError: no class folders, one class, a class without images, or a split with a class that training does not have.
    """
    layout = layouts.understand(folder, test)
    found, beside = Listing(skipped=layout.skipped, tables=layout.tables, tables_inside=layout.tables_inside), []
    for place, label, split in layout.places:
        beside += _add_class(found, folder, place, label, split, layout)
    found.masks, lost = pair(found.files, beside, layout.masks)
    found.masks = found.masks if any(found.masks) else []
    found.left_out = dict(layout.left_out) | ({"masks of no image, or of several": lost} if lost else {})
    _check_read(found, folder, {label for _, label, _ in layout.places})
    check_classes(found, folder)
    return sort(found)


def _add_class(
    found: Listing, source: Path, folder: Path, label: str, split: str, layout: layouts.Layout
) -> list[Path]:
    """Add the images below one class folder, each real folder once, so that a loop of links ends; returns the masks beside them."""
    visited, beside = set(), []
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        here = Path(place)
        relative = printable(os.path.relpath(place, source))
        if real in visited or Path(real) in Path(os.path.abspath(folder)).parents:
            found.skipped[relative] = "link to a folder that was read already"
            folders.clear()
            continue
        visited.add(real)
        for name in folders:
            if is_system(name):
                layouts.count_system(here / name, layout.left_out)
        masks = [name for name in folders if layouts.is_mask_folder(here, name)]
        layout.masks += [(here, here / name) for name in masks]
        folders[:] = sorted(name for name in folders if not is_system(name) and name not in masks)
        stems = {layouts.stem(name) for name in files}
        for name in sorted(files):
            if is_system(name):
                continue
            path = here / name
            identity = f"{relative}/{printable(name)}"
            if is_image(path) and layouts.masked(name, stems):
                beside.append(path)
            elif is_image(path):
                found.files.append(path)
                found.ids.append(identity)
                found.labels.append(label)
                found.split.append(split)
            else:
                ending = layouts.refused_format(name)
                found.skipped[identity] = f"a {ending} file, which is not read" if ending else "not named like an image"
    return beside


def _check_read(found: Listing, folder: Path, folders: set[str]) -> None:
    counts = Counter(found.labels)
    formats = Counter(reason.split()[1] for reason in found.skipped.values() if reason.endswith("which is not read"))
    if formats and folders - set(counts):
        files = ", ".join(f"{count} {ending}" for ending, count in sorted(formats.items()))
        raise DataError(
            f"{folder} has {files} files, which are not read: convert them to one of {layouts.formats_read()}."
        )
    if not counts:
        raise DataError(
            f"{folder} has no class folders with images in them: put each class's images into a folder of its own."
        )
    empty = sorted(folders - set(counts))
    if empty:
        raise DataError(f"class {empty[0]!r} in {folder} has no images: add some or remove its folder.")


def check_classes(found: Listing, source: Path) -> None:
    """Refuse a source of one class, or with classes that only one of training and another split has.

    Raises:
        DataError: naming ``source``, the class and the split.
    """
    classes = "classes" if found.found_by else "class folders"
    if len(found.classes) < 2:
        raise DataError(f"{source} has one class, {found.labels[0]!r}: a classifier needs at least two {classes}.")
    half = [label for label, split in zip(found.labels, found.split, strict=True) if not split]
    if half and any(found.split):
        raise DataError(
            f"class {half[0]!r} in {source} is not split into train and test as others are: give all the same folders."
        )
    if any(found.split) and "train" not in found.split:
        raise DataError(
            f"{source} has no training images, only {', '.join(sorted(set(found.split)))}: give the folder that has both."
        )
    by_split = {
        split: {label for label, s in zip(found.labels, found.split, strict=True) if s == split}
        for split in set(found.split)
    }
    for split, present in sorted(by_split.items()):
        odd = sorted(present ^ by_split.get("train", present))
        if odd:
            raise DataError(
                f"class {odd[0]!r} in {source} is in only one of train and {split}: give both the same {classes}."
            )


def sort(found: Listing) -> Listing:
    """The same listing with its images in the order of their ids."""
    order = sorted(range(len(found.ids)), key=found.ids.__getitem__)
    columns = ("files", "ids", "labels", "split", "masks", "persons")
    return replace(
        found, **{name: [getattr(found, name)[k] for k in order if getattr(found, name)] for name in columns}
    )
