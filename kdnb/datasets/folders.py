"""Find the images of a source on disk: class folders, alone or inside train/val/test folders."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdnb.datasets import layouts
from kdnb.datasets.layouts import is_image, is_system, printable
from kdnb.datasets.masks import pair
from kdnb.errors import DataError


@dataclass
class Listing:
    """What a source's folder or table holds; the lists of an image are parallel and sorted by id.

    Attributes:
        files: paths.
        ids: paths relative to the source, printable.
        labels: class names.
        split: as published, or ``""``.
        skipped: id -> reason, for what looks as if it were meant to be an image and is not used.
        left_out: kind -> how many files are no samples.
        masks: paths of the masks of each image, or empty where no image has one.
        persons: whose image it is (``""``: not known), or empty where nothing but names may tell.
        persons_from: what told the persons, in a few words.
        found_by: what told the classes, in a few words; ``""`` for class folders.
        tables: that lie beside the class folders, and are not read.
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
        split_sizes = ", ".join(f"{split} {counts[split]}" for split in ("train", "val", "test") if counts[split])
        published = f"published split ({split_sizes})" if set(self.split) - {"", "train"} else "no published test set"
        if not set(self.split) - {""}:
            published = "no published split"
        line = f"{len(self.files)} images in {len(self.classes)} {self.found_by or 'class folders'}, {published}"
        masked = sum(map(bool, self.masks))
        line += f", {'a mask of 1 image' if masked == 1 else f'masks of {masked} images'}" if masked else ""
        if self.tables:
            names = first([printable(path.name) for path in self.tables], 3)
            line += (
                f"; not read: {names} beside the class folders "
                "(DATASET=table:PATH reads a table of labels, persons and masks)"
            )
        if self.tables_inside:
            names = first([printable(f"{path.parent.name}/{path.name}") for path in self.tables_inside], 3)
            line += f"; not read: {names} in class folders: if these are data sets of their own, give one of them"
        left_out = "; ".join(f"{count} {kind}" for kind, count in sorted(self.left_out.items()))
        return line + (f"; left out: {left_out}" if left_out else "")


def first(names: Sequence[str], most: int) -> str:
    """The first of some names, and whether there are more.

    Args:
        names: in order.
        most: how many are named.

    Returns:
        A list for a message.

    Example:
        >>> first(["a", "b", "c"], 2)
        'a, b, ...'
    """
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def scan(folder: Path, test: str = "") -> Listing:
    """List every image under ``folder``, as :func:`kdnb.datasets.layouts.understand` understands it.

    What lies deeper inside a class folder belongs to the class; masks beside their images do not, nor does what systems
    leave.

    Args:
        folder: the data set's folder as it was unpacked.
        test: of published folds the one that is the test set; ``""`` where none is said.

    Returns:
        The images in the order of their ids, with labels, published split and masks.

    Raises:
        DataError: no class folders, one class, a class without images, or a split with a class that training does not
            have.
    """
    layout = layouts.understand(folder, test)
    listing = Listing(skipped=layout.skipped, tables=layout.tables, tables_inside=layout.tables_inside)
    beside: list[Path] = []
    for class_folder, label, split in layout.places:
        beside += _add_class(listing, folder, class_folder, label, split, layout)
    listing.masks, orphans = pair(listing.files, beside, layout.masks)
    listing.masks = listing.masks if any(listing.masks) else []
    listing.left_out = dict(layout.left_out) | ({"masks of no image, or of several": orphans} if orphans else {})
    _check_read(listing, folder, {label for _, label, _ in layout.places})
    check_classes(listing, folder)
    return sort(listing)


def _add_class(
    listing: Listing, source: Path, folder: Path, label: str, split: str, layout: layouts.Layout
) -> list[Path]:
    """Add the images below one class folder to ``listing``, each real folder once, so that a loop of links ends.

    Args:
        listing: what was found so far.
        source: the data set's folder, which ids are relative to.
        folder: the class folder.
        label: the class.
        split: as published, or ``""``.
        layout: takes up folders of masks and what is left out.

    Returns:
        The masks beside the images.
    """
    visited: set[str] = set()
    masks_beside: list[Path] = []
    for walked, folders, files in os.walk(folder, followlinks=True):
        real_path = os.path.realpath(walked)
        directory = Path(walked)
        relative = printable(os.path.relpath(walked, source))
        if real_path in visited or Path(real_path) in Path(os.path.abspath(folder)).parents:
            listing.skipped[relative] = "link to a folder that was read already"
            folders.clear()
            continue
        visited.add(real_path)
        for name in folders:
            if is_system(name):
                layouts.count_system(directory / name, layout.left_out)
        mask_folders = [name for name in folders if layouts.is_mask_folder(directory, name)]
        layout.masks += [(directory, directory / name) for name in mask_folders]
        folders[:] = sorted(name for name in folders if not is_system(name) and name not in mask_folders)
        stems = {layouts.stem(name) for name in files}
        for name in sorted(files):
            if is_system(name):
                continue
            path = directory / name
            identity = f"{relative}/{printable(name)}"
            if is_image(path) and layouts.masked(name, stems):
                masks_beside.append(path)
            elif is_image(path):
                listing.files.append(path)
                listing.ids.append(identity)
                listing.labels.append(label)
                listing.split.append(split)
            else:
                ending = layouts.refused_format(name)
                listing.skipped[identity] = (
                    f"a {ending} file, which is not read" if ending else "not named like an image"
                )
    return masks_beside


def _check_read(listing: Listing, folder: Path, labels: set[str]) -> None:
    """Refuse a ``folder`` of whose class folders (``labels``) one gave no image."""
    counts = Counter(listing.labels)
    formats = Counter(reason.split()[1] for reason in listing.skipped.values() if reason.endswith("which is not read"))
    if formats and labels - set(counts):
        files = ", ".join(f"{count} {ending}" for ending, count in sorted(formats.items()))
        raise DataError(
            f"{folder} has {files} files, which are not read: convert them to one of {layouts.formats_read()}."
        )
    if not counts:
        raise DataError(
            f"{folder} has no class folders with images in them: put each class's images into a folder of its own."
        )
    empty = sorted(labels - set(counts))
    if empty:
        raise DataError(f"class {empty[0]!r} in {folder} has no images: add some or remove its folder.")


def check_classes(found: Listing, source: Path) -> None:
    """Refuse a source of one class, or with classes that only one of training and another split has.

    Args:
        found: the source's images.
        source: its folder or table, for the message.

    Raises:
        DataError: naming ``source``, the class and the split.
    """
    classes = "classes" if found.found_by else "class folders"
    if len(found.classes) < 2:
        raise DataError(f"{source} has one class, {found.labels[0]!r}: a classifier needs at least two {classes}.")
    without_split = [label for label, split in zip(found.labels, found.split, strict=True) if not split]
    if without_split and any(found.split):
        raise DataError(
            f"class {without_split[0]!r} in {source} is not split into train and test as others are: "
            "give all the same folders."
        )
    if any(found.split) and "train" not in found.split:
        raise DataError(
            f"{source} has no training images, only {', '.join(sorted(set(found.split)))}: "
            "give the folder that has both."
        )
    classes_of_split = {
        split: {label for label, image_split in zip(found.labels, found.split, strict=True) if image_split == split}
        for split in set(found.split)
    }
    for split, classes_here in sorted(classes_of_split.items()):
        one_sided = sorted(classes_here ^ classes_of_split.get("train", classes_here))
        if one_sided:
            raise DataError(
                f"class {one_sided[0]!r} in {source} is in only one of train and {split}: give both the same {classes}."
            )


def sort(found: Listing) -> Listing:
    """The same listing with its images in the order of their ids."""
    order = sorted(range(len(found.ids)), key=found.ids.__getitem__)
    columns = ("files", "ids", "labels", "split", "masks", "persons")
    sorted_columns: dict[str, Any] = {
        name: [getattr(found, name)[position] for position in order if getattr(found, name)] for name in columns
    }
    return replace(found, **sorted_columns)
