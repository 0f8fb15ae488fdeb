"""Data sets: from a folder, a package or the phantom's generator to one :class:`ImageSet`.

::

    data = kdnb.datasets.load("phantom", image_size=64)
    data.images[data.index("train")]   # (n, 64, 64, 3) uint8

The data and its splits never depend on a run's seed.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdnb.datasets import phantom
from kdnb.datasets.cache import open_cache
from kdnb.datasets.folders import scan
from kdnb.datasets.groups import by_name, equal_pairs, join
from kdnb.datasets.imageset import ImageSet
from kdnb.datasets.splits import by_groups, split_by, subset
from kdnb.errors import DataError
from kdnb.settings import Settings, check
from kdnb.sources import REPOSITORY, check_name, locate

if TYPE_CHECKING:
    import torch

RAW = REPOSITORY / "data" / "raw"

__all__ = ["ImageSet", "load", "load_for", "to_tensor"]


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
        name: ``"phantom"``, ``"brain_tumor"``, ``"eye_disease"``, ``"alzheimer"``, ``"medmnist:<flag>"`` or ``"folder:<path>"``.
        image_size: pixels a side, a multiple of 16 from 32 to 1024.
        data_dir: where downloaded data sets lie; ``None`` or empty means ``data/raw``.
        split_protocol: ``"official"`` (as published, or as the paper did it) or ``"leak_free"``.
        max_images: keep about so many images, in whole groups, the same share of every class and split; 0 keeps all.
        phantom_images: how many images of the phantom to make.

    Raises:
        ParameterError: a value that is not allowed.
        DataNotFoundError: the images are not there. DataError: they cannot be used as a data set.
    """
    check_name(name)
    for parameter, value in (("image_size", image_size), ("split_protocol", split_protocol), ("max_images", max_images)):
        check(parameter, value)
    if name.startswith("phantom"):
        data = _phantom(name, image_size, split_protocol, check("phantom_images", phantom_images))
    else:
        data = _from_files(name, image_size, Path(data_dir).expanduser() if data_dir else RAW, split_protocol)
    return _hashed(subset(data, max_images))


def load_for(settings: Settings) -> ImageSet:
    """Load the data set of a run, as its settings and its profile's budget say."""
    budget = settings.budget
    counts = {"max_images": budget.max_images, "phantom_images": budget.phantom_images}
    return load(settings.dataset, budget.image_size, settings.data_dir, settings.split_protocol, **counts)


def to_tensor(images: np.ndarray) -> "torch.Tensor":
    """``(N, H, W, 3)`` uint8 to ``(N, 3, H, W)`` float32 from 0 to 1, in channels-last memory order."""
    import torch

    return (
        torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)
    )


def _phantom(name: str, image_size: int, split_protocol: str, count: int) -> ImageSet:
    variant = name.partition(":")[2]
    made = phantom.generate(count, image_size, variant)
    groups = np.array([f"subject_{number:05d}" for number in made.subjects])
    ids = np.array(
        [
            f"{phantom.CLASSES[label]}/{group}_{k % phantom.PER_SUBJECT}"
            for k, (label, group) in enumerate(zip(made.labels, groups, strict=True))
        ]
    )
    notes = {"shortcut_masks": made.shortcut_masks} if variant == "shortcut" else {}
    notes |= {"depth": phantom.DEPTH} if variant == "volume" else {}
    split = by_groups(made.labels, groups, {"test": 0.2, "val": 0.1})
    return ImageSet(name, made.images, made.labels, phantom.CLASSES, groups, ids, split, made.masks, split_protocol, notes=notes)


def _from_files(name: str, image_size: int, data_dir: Path, split_protocol: str) -> ImageSet:
    """A source of class folders, through the cache."""
    folder = locate(name, data_dir)
    listing = scan(folder)
    cached = open_cache(name, listing, image_size)
    ids, class_names, published = (np.array(column, str)[cached.kept] for column in (listing.ids, listing.labels, listing.split))
    classes = listing.classes
    if missing := set(classes) - set(class_names):
        raise DataError(f"class {min(missing)!r} in {folder} has no image that can be read: mend its files or remove its folder.")
    labels = np.searchsorted(np.array(classes), class_names).astype(np.int64)
    groups = join(by_name(name, ids, class_names), equal_pairs(cached.digests))
    split = split_by(split_protocol, labels, groups, published)
    notes = {"skipped": listing.skipped | cached.unreadable, "folder": folder.name, "digests": cached.digests, **cached.metadata}
    notes |= {"square_digests": cached.square_digests, "published_split": published, "padding": "black", "files_key": cached.key}
    return ImageSet(name, cached.images, labels, classes, groups, ids, split, None, split_protocol, notes=notes)


def _hashed(data: ImageSet) -> ImageSet:
    """The same set with ``data_hash`` (images and labels) and ``split_hash`` (ids and split) filled in."""
    from dataclasses import replace

    content = hashlib.sha256(data.labels.astype("<i8").tobytes())
    if "square_digests" in data.notes:  # hashed when the cache was built: no need to read every image again
        content.update("".join(data.notes["square_digests"]).encode())
    else:
        content.update(np.ascontiguousarray(data.images))
    rows = "\n".join(f"{name}\t{split}" for name, split in zip(data.ids, data.split, strict=True))
    return replace(
        data, data_hash=content.hexdigest()[:16], split_hash=hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    )
