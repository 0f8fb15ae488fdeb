"""Data sets: from a folder, a package or the phantom's generator to one :class:`ImageSet`.

::

    data = kdnb.datasets.load("phantom", image_size=64)
    data.images[data.index("train")]   # (n, 64, 64, 3) uint8

The data and its splits never depend on a run's seed.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kdnb.datasets import duplicates, groups, layouts, masks, phantom, reading, slices
from kdnb.datasets.cache import Cached, files_key, open_cache, remembered
from kdnb.datasets.duplicates import COPIES_FROM, Twins
from kdnb.datasets.folders import Listing
from kdnb.datasets.groups import by_name, join
from kdnb.datasets.imageset import ImageSet
from kdnb.datasets.slices import Slice
from kdnb.datasets.splits import by_groups, split_by, subset
from kdnb.datasets.tables import listing as listing_of
from kdnb.errors import DataError, DataNotFoundError
from kdnb.provenance import content_key, source_key
from kdnb.settings import Settings, check
from kdnb.sources import OPTIONS, REPOSITORY, check_name, from_home, locate, parts, table

if TYPE_CHECKING:
    import torch

RAW = REPOSITORY / "data" / "raw"
_EACH_ITS_OWN = (
    ": every image that is no copy counts as a person of its own. Where a person has several images, every number that "
    "follows is too good and its interval too narrow"
)
_NO_PERSONS = f"no persons found{_EACH_ITS_OWN}"
_PERSONS_KNOWN_BY = {
    "eye_disease": "left and right in the names",
    "alzheimer": "the files' numbers and the likeness of neighbouring slices",
}

__all__ = ["ImageSet", "describe", "load", "load_for", "persons", "to_tensor"]


def load(
    name: str,
    image_size: int,
    data_dir: str | Path | None = None,
    split_protocol: str = "official",
    *,
    max_images: int = 0,
    phantom_images: int = 2000,
) -> ImageSet:
    """Load a data set, split; decoded and resized once, then memory-mapped from the cache.

    Args:
        name: ``"phantom"``, ``"brain_tumor"``, ``"figshare_brain"``, ``"eye_disease"``, ``"alzheimer"`` (also
            ``"alzheimer:3"`` and ``":2"``), ``"medmnist:<flag>"``, ``"folder:<path>"`` or
            ``"table:<path>"`` (:mod:`kdnb.datasets.tables`); ``:person=off`` behind a path looks for no persons.
        image_size: pixels a side, a multiple of 16 from 32 to 1024.
        data_dir: where downloaded data sets lie; ``None`` or empty means ``data/raw``.
        split_protocol: ``"official"`` (as published, or as the paper did it) or ``"leak_free"``; what they mean stands
            at :func:`kdnb.datasets.splits.split_by`.
        max_images: keep about so many images, in whole groups, the same share of every class and split; 0 keeps all.
        phantom_images: how many images of the phantom to make.

    Returns:
        The images with labels, groups, ids and split, and the hashes of both (``data_hash``, ``split_hash``).

    Raises:
        ParameterError: a value that is not allowed.
        DataNotFoundError: the images are not there.
        DataError: they cannot be used as a data set.
    """
    check_name(name)
    for parameter, value in (
        ("image_size", image_size),
        ("split_protocol", split_protocol),
        ("max_images", max_images),
    ):
        check(parameter, value)
    if name.startswith("phantom"):
        data = _phantom(name, image_size, split_protocol, check("phantom_images", phantom_images))
    else:
        data = _from_files(name, image_size, from_home(data_dir) if data_dir else RAW, split_protocol)
    return _hashed(subset(data, max_images))


def load_for(settings: Settings) -> ImageSet:
    """Load the data set of a run, as its settings and its profile's budget say."""
    budget = settings.budget
    counts = {"max_images": budget.max_images, "phantom_images": budget.phantom_images}
    return load(settings.dataset, budget.image_size, settings.data_dir, settings.split_protocol, **counts)


def describe(data: ImageSet) -> str:
    """How the data set was understood, in one line.

    Args:
        data: a data set, as :func:`load` gives it.

    Returns:
        Its name, classes, published split, what was left out, persons, and why it was split anew.
    """
    anew = data.notes.get("split_anew", "")
    return f"{data.name}: {data.notes.get('layout', 'generated')}; {persons(data)}" + f"; {anew}" * bool(anew)


def persons(data: ImageSet) -> str:
    """How many persons were found and how, or that none was and what this means for every number that follows."""
    return data.notes.get("persons") or f"{len(np.unique(data.groups)):,} subjects, known because they were generated"


def to_tensor(images: np.ndarray) -> "torch.Tensor":
    """``(N, H, W, 3)`` uint8 to ``(N, 3, H, W)`` float32 from 0 to 1, in channels-last memory order."""
    import torch

    return (
        torch.from_numpy(np.array(images, order="C"))
        .permute(0, 3, 1, 2)
        .float()
        .div_(255)
        .contiguous(memory_format=torch.channels_last)
    )


def _phantom(name: str, image_size: int, split_protocol: str, count: int) -> ImageSet:
    """Generated images of the phantom or of a variant (``"phantom:volume"``), split by whole subjects."""
    variant = name.partition(":")[2]
    if not variant:
        return _drawn_phantom(name, image_size, split_protocol, count)
    generated = phantom.generate(count, image_size, variant)
    groups = np.array([f"subject_{number:05d}" for number in generated.subjects])
    ids = np.array(
        [
            f"{phantom.CLASSES[label]}/{group}_{position % phantom.PER_SUBJECT}"
            for position, (label, group) in enumerate(zip(generated.labels, groups, strict=True))
        ]
    )
    notes: dict[str, object] = {"shortcut_masks": generated.shortcut_masks} if variant == "shortcut" else {}
    notes |= {"depth": phantom.DEPTH} if variant == "volume" else {}
    split = by_groups(generated.labels, groups, {"test": 0.2, "val": 0.1})
    return ImageSet(
        name,
        generated.images,
        generated.labels,
        phantom.CLASSES,
        groups,
        ids,
        split,
        generated.masks,
        split_protocol,
        notes=notes,
    )


def _drawn_phantom(name: str, image_size: int, split_protocol: str, count: int) -> ImageSet:
    """Generated images of known posterior with the flaws of public sets, whose official split has their leaks.

    Where the flaws are is known, and so are the groups: the audit, which has to find them, can be judged by it.

    Args:
        name: the data set's name.
        image_size: pixels a side.
        split_protocol: ``"official"`` (single images at random) or ``"leak_free"`` (whole groups).
        count: how many images to make.

    Returns:
        The set; its notes tell the flaws, each ``(N,)``: ``twin_of`` (ids), ``wrong_label``, ``second_scanner`` (bool).
    """
    planted = phantom.plant(phantom.generate(count, image_size, "drawn"))
    generated, copies = planted.made, np.flatnonzero(planted.twin_of >= 0)
    groups = np.array([f"subject_{number:05d}" for number in generated.subjects])
    file_names = [f"{group}_{position % phantom.DRAWN_PER_SUBJECT}" for position, group in enumerate(groups)]
    ids = np.array(
        [f"{phantom.CLASSES[label]}/{file_name}" for label, file_name in zip(generated.labels, file_names, strict=True)]
    )
    groups = join(groups, np.stack([planted.twin_of[copies], copies], axis=1))
    # A lesion that is more likely none than a tumour decides nothing that a map could mark.
    assert generated.posterior is not None  # labels are drawn from it
    masks = generated.masks & (generated.posterior[:, 0] < 0.5)[:, None, None]
    twin_of = np.full(count, "", ids.dtype)
    twin_of[copies] = ids[planted.twin_of[copies]]
    notes = {"twin_of": twin_of, "wrong_label": planted.wrong, "second_scanner": planted.scanner}
    if split_protocol == "official":
        split = by_groups(generated.labels, ids, {"test": 0.4})  # single images at random, as most do it
        split = by_groups(generated.labels, groups, {"val": 1 / 8}, split)
    else:
        split = by_groups(generated.labels, groups, {"test": 0.4, "val": 0.6 / 8})
    return ImageSet(
        name,
        generated.images,
        generated.labels,
        phantom.CLASSES,
        groups,
        ids,
        split,
        masks,
        split_protocol,
        notes=notes,
        posterior=generated.posterior,
    )


def _from_files(name: str, image_size: int, data_dir: Path, split_protocol: str) -> ImageSet:
    """A source of class folders, or a table, through the cache.

    Args:
        name: the data set's name, with what stands behind the colon.
        image_size: pixels a side.
        data_dir: where downloaded data sets lie.
        split_protocol: ``"official"`` or ``"leak_free"``.

    Returns:
        The set without its hashes; what was seen on the way stands in its notes (:class:`ImageSet`).

    Raises:
        DataError: a class or a part of the split has too few images that can be read.
    """
    from kdnb.datasets.fetch import medmnist_folder  # a program of its own: not before it is needed

    kind, variant, _ = parts(name)
    folder = medmnist_folder(variant, image_size, data_dir) if kind == "medmnist" else locate(name, data_dir)
    assert folder is not None  # only what is generated lies nowhere
    source = table().get(kind, {})
    listing = listing_of(name, folder)
    slice_of_id = slices.known(**source["slices_of"]) if "slices_of" in source else {}
    mirrored = _borrow_masks(listing, slice_of_id, source["slices_of"]["source"], data_dir) if slice_of_id else None
    cached = open_cache(name, listing, image_size)
    ids, class_names, published = (
        np.array(column, str)[cached.kept] for column in (listing.ids, listing.labels, listing.split)
    )
    if missing := set(listing.labels) - set(class_names):
        raise DataError(
            f"class {min(missing)!r} in {folder} has no image that can be read: mend its files or remove the class."
        )
    files = [listing.files[position] for position in cached.kept]
    twins = _twins(cached, files)
    threshold = source.get("copies_from", COPIES_FROM)
    named_groups, persons_line = (
        slices.persons(ids, slice_of_id)
        if slice_of_id
        else _groups_and_persons(name, listing, cached, ids, class_names, files)
    )
    # Persons first: what is a copy of their images is theirs.
    image_groups = join(named_groups, twins.copies(threshold))
    folder_classes = class_names
    if task := source.get("tasks", {}).get(variant):
        class_names = np.array([task[label] for label in class_names])
    unique_names, labels = np.unique(class_names, return_inverse=True)
    _check_groups(unique_names, labels, image_groups, folder)
    # The official split is what it was before persons were recovered: its validation is cut by copies alone, and knows
    # persons of training as its test images do.
    split_groups = join(ids, twins.copies(threshold)) if slice_of_id and split_protocol == "official" else image_groups
    split, split_anew = split_by(split_protocol, labels, split_groups, published)
    for part in ("train", "val", "test"):
        if not (split == part).any():
            raise DataError(
                f"{folder} leaves no image for {part} with split {split_protocol}: add images or use another split."
            )
    notes: dict[str, Any] = {
        "skipped": listing.skipped | cached.unreadable,
        "padding": "black",
        "files_key": cached.key,
        "copies_from": threshold,
    }
    lesions, unread = _masks(listing, cached, image_size)
    if lesions is not None and mirrored is not None:
        rows = np.flatnonzero(mirrored[cached.kept])
        lesions[rows] = lesions[rows, :, ::-1]
        notes["masks_from"] = source["slices_of"]["source"]
    parent = folder if folder.is_dir() else folder.parent
    notes["skipped"] |= {layouts.printable(os.path.relpath(path, parent)): reason for path, reason in unread.items()}
    multi_frame_files = int(np.char.count(cached.metadata["kind"].astype(str), ", one of ").sum())
    layout = listing.understood() + (
        f"; of {multi_frame_files} files with several frames or slices the middle one" if multi_frame_files else ""
    )
    notes |= {"layout": layout, "left_out": listing.left_out, "persons": persons_line}
    notes |= {
        "metadata": cached.metadata,
        "digests": cached.digests,
        "square_digests": cached.square_digests,
        "published": published,
    }
    notes |= {
        "twins": twins,
        "files": np.array(files, object),
        "positions": np.arange(len(ids)),
        "expected": source.get("counts", {}),
        "folder_classes": folder_classes,
    }
    if slice_of_id:
        notes["slices"] = slice_of_id
    classes = tuple(unique_names.tolist())
    if split_anew:
        part, label, images_left, images_published = split_anew
        notes["split_anew"] = (
            f"split anew by persons and copies, because of {images_published} published {part} images "
            f"of {classes[label]} only {images_left} would be left"
        )
    return ImageSet(
        name,
        cached.images,
        labels.astype(np.int64),
        classes,
        image_groups,
        ids,
        split,
        lesions,
        split_protocol,
        notes=notes,
    )


def _twins(cached: Cached, files: list[Path]) -> Twins:
    """Pairs of copies, looked for once for the same files, whatever the image size."""
    key = f"{cached.key}-twins-{source_key(duplicates)}"

    def image_at(position: int) -> Image.Image:
        return reading.decode(files[position])[0]

    return Twins(**remembered(key, lambda: vars(duplicates.find(image_at, cached.signatures, cached.digests))))


def _masks(listing: Listing, cached: Cached, image_size: int) -> tuple[np.ndarray | None, dict[Path, str]]:
    """The lesions of all images, read once.

    Args:
        listing: the source's images and their masks.
        cached: which of the images can be read.
        image_size: pixels a side of their squares.

    Returns:
        ``(N, H, W)`` bool, ``None`` where no image has a mask; and masks that cannot be read: path -> reason.
    """
    if not listing.masks:
        return None, {}
    files = [listing.masks[position] for position in cached.kept]
    flat = [path for masks_of_image in files for path in masks_of_image]
    key = content_key(
        files_key(Listing(flat, list(map(str, flat)))), list(map(len, files)), cached.key, image_size, source_key(masks)
    )

    def make() -> dict[str, np.ndarray]:
        squares, unread = masks.squares(files, cached.metadata["width"], cached.metadata["height"], image_size)
        return {
            "bits": np.packbits(squares),
            "bad": np.array(list(map(str, unread)), str),
            "reasons": np.array(list(unread.values()), str),
        }

    stored = remembered(f"{key}-masks", make)
    shape = (len(files), image_size, image_size)
    squares = np.unpackbits(stored["bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    return squares, dict(zip(map(Path, stored["bad"].tolist()), stored["reasons"].tolist(), strict=True))


def _borrow_masks(listing: Listing, slice_of_id: dict[str, Slice], source: str, data_dir: Path) -> np.ndarray | None:
    """Give images that are slices of another source that one's masks.

    Args:
        listing: N images, whose masks are set here.
        slice_of_id: id -> the slice of the other source that the image shows.
        source: the other source's name.
        data_dir: where downloaded data sets lie.

    Returns:
        Which images show their slice mirrored, ``(N,)`` bool; ``None`` where the other source is not there.
    """
    try:
        other_folder = locate(source, data_dir)
    except DataNotFoundError:
        return None
    assert other_folder is not None  # slices are of a source in files
    slice_of_image = [slice_of_id.get(name) for name in listing.ids]
    listing.masks = [
        [other_folder / shown.name.replace("images/", "masks/", 1)] if shown else [] for shown in slice_of_image
    ]
    return np.array([shown is not None and shown.mirrored for shown in slice_of_image])


def _named_groups(kind: str, cached: Cached, ids: np.ndarray, class_names: np.ndarray) -> np.ndarray:
    """Groups before copies are joined: from names, or for the Alzheimer set from names and images."""
    if kind != "alzheimer":
        return by_name(kind, ids, class_names)
    key = f"{cached.key}-subjects-{source_key(groups, duplicates)}"
    return remembered(
        key, lambda: dict(zip(("subject", "link"), groups.alzheimer_subjects(ids, cached.signatures), strict=True))
    )["subject"]


def _groups_and_persons(
    name: str, listing: Listing, cached: Cached, ids: np.ndarray, class_names: np.ndarray, files: list[Path]
) -> tuple[np.ndarray, str]:
    """Groups before copies are joined, and how they were found.

    A table's column is believed where there is one. Else folders, names and DICOM's PatientID may tell, unless that is
    switched off.

    Args:
        name: the data set's name, with its options.
        listing: what its folder or table holds.
        cached: which of the listing's images can be read: N of them.
        ids: ``(N,)`` str.
        class_names: ``(N,)`` str.
        files: N paths.

    Returns:
        Groups ``(N,)`` str, and in one line how many persons were found and how, or what it means that none was.
    """
    kind, _, options = parts(name)
    if listing.persons:
        table_persons = np.array(listing.persons, str)[cached.kept]
        known = table_persons != ""
        persons_of, found_by = np.where(known, np.char.add("person_", table_persons), ids), listing.persons_from
        if not known.all():
            found_by += f", which is empty for {(~known).sum()} images: each of them counts as a person of its own"
        return persons_of, _persons_line(persons_of, found_by) if known.any() else _NO_PERSONS
    if options.get("person") == "off":
        return ids, f"persons were not looked for (person=off){_EACH_ITS_OWN}"
    if kind not in OPTIONS:
        persons_of = _named_groups(kind, cached, ids, class_names)
        if len(np.unique(persons_of)) == len(persons_of):
            return persons_of, _NO_PERSONS
        return persons_of, _persons_line(persons_of, _PERSONS_KNOWN_BY.get(kind, "patient folders"))
    persons_of, found_by = groups.persons_by_name(ids, class_names, in_table=kind == "table")
    dicom = np.flatnonzero(np.char.startswith(cached.metadata["kind"].astype(str), "DICOM"))
    if len(dicom):
        key = f"{cached.key}-patients-{source_key(groups)}"
        patients = remembered(key, lambda: {"patient": groups.dicom_patients([files[position] for position in dicom])})
        pairs = groups.same(patients["patient"])
        if len(pairs):
            persons_of = join(persons_of, dicom[pairs])
            found_by = ", ".join(filter(None, [found_by, "DICOM's PatientID"]))
    return persons_of, _persons_line(persons_of, found_by) if found_by else _NO_PERSONS


def _persons_line(persons_of: np.ndarray, found_by: str) -> str:
    return f"at most {len(np.unique(persons_of)):,} persons, found by {found_by}"


def _check_groups(classes: np.ndarray, labels: np.ndarray, groups: np.ndarray, folder: Path) -> None:
    for number, label in enumerate(classes):
        if len(np.unique(groups[labels == number])) < 2:
            raise DataError(
                f"class {str(label)!r} in {folder} has fewer than two independent images: "
                "add some, or remove the class."
            )


def _hashed(data: ImageSet) -> ImageSet:
    """The same set with ``data_hash`` (images, labels and masks) and ``split_hash`` (ids and split) filled in."""
    from dataclasses import replace

    content = hashlib.sha256(data.labels.astype("<i8").tobytes())
    if "square_digests" in data.notes:  # hashed when the cache was built: no need to read every image again
        content.update("".join(data.notes["square_digests"]).encode())
        if data.masks is not None and "masks_from" not in data.notes:  # those of another source are not this one's data
            content.update(np.packbits(data.masks).data)
    else:
        content.update(np.ascontiguousarray(data.images).data)
    lines = "\n".join(f"{name}\t{split}" for name, split in zip(data.ids, data.split, strict=True))
    return replace(
        data,
        data_hash=content.hexdigest()[:16],
        split_hash=hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16],
    )
