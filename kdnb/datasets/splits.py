"""Deterministic splits by whole groups, and deterministic subsets of them."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from kdnb.datasets.imageset import ImageSet

SPLITS = ("train", "val", "test")
TEST_SHARE = 0.2
VAL_SHARE = 0.2  # of training ...
VAL_MOST = 1000  # ... but no more images than this
# Of a class's published test (or validation) images: where leaving leaks out would leave fewer, the set is split anew.
LEFT_SHARE = 0.5

TooLittle = tuple[str, int, int, int]  # split, class, images of it that would be left, images of it that are published


def split_by(
    protocol: str, labels: np.ndarray, groups: np.ndarray, published: np.ndarray
) -> tuple[np.ndarray, TooLittle | None]:
    """Split a source as ``protocol`` says.

    ``official``: as published, where it is (``published`` names the split of each image); else 80/20 by single images,
    stratified by class, as the paper did it. ``leak_free``: no group on two sides. As published without the images
    whose group is already in training (or validation); where that would leave too little (:func:`too_little`), by whole
    groups in about the published shares of each class; 80/20 by whole groups where no split is published.

    Validation is cut from training by whole groups, unless it is published.

    Args:
        protocol: ``"official"`` or ``"leak_free"``.
        labels: ``(N,)`` int64.
        groups: ``(N,)`` str, whose image each is.
        published: ``(N,)`` str, the published split of each image, ``""`` where there is none.

    Returns:
        The split, ``(N,)`` str, and for what a published one was split anew (``None``: it was not).
    """
    shortage = None
    if not (published == "test").any():
        single_images = np.array([f"{k:08d}" for k in range(len(labels))]) if protocol == "official" else groups
        split = by_groups(labels, single_images, {"test": TEST_SHARE}, np.where(published == "", "train", published))
    elif protocol == "leak_free" and (shortage := too_little(labels, groups, published)):
        classes = labels.max() + 1
        sizes = {name: np.bincount(labels[published == name], minlength=classes) for name in SPLITS}
        published_of_class = np.maximum(1, sum(sizes.values()))
        shares = {name: sizes[name] / published_of_class for name in ("test", "val") if sizes[name].any()}
        split = by_groups(labels, groups, shares, np.where(published == "", "", "train"))
    else:
        split = published.astype("<U5")
    if protocol == "leak_free":
        split = _without_leaks(split, groups)
    if not (split == "val").any():
        share = min(VAL_SHARE, VAL_MOST / max(1, (split == "train").sum()))
        split = by_groups(labels, groups, {"val": share}, split)
    return split, shortage


def too_little(labels: np.ndarray, groups: np.ndarray, published: np.ndarray) -> TooLittle | None:
    """The class of a published split of which leaving leaks out leaves least, if that is less than :data:`LEFT_SHARE`.

    Args:
        labels: ``(N,)`` int64.
        groups: ``(N,)`` str, whose image each is.
        published: ``(N,)`` str, the published split of each image, ``""`` where there is none.

    Returns:
        Split, class, images left, images published; ``None`` where enough is left of every class, or no split is
        published.
    """
    kept, remaining = _without_leaks(published, groups), []
    for name in ("val", "test"):
        for label in np.unique(labels[published == name]):
            in_class = (published == name) & (labels == label)
            remaining.append((name, int(label), int((in_class & (kept == name)).sum()), int(in_class.sum())))
    least = min(remaining, key=lambda row: row[2] / row[3], default=None)
    return least if least and least[2] < LEFT_SHARE * least[3] else None


def _without_leaks(split: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The split without images whose group is on an earlier side (training, validation, test)."""
    split = split.copy()
    for side, other in (("train", "val"), ("train", "test"), ("val", "test")):
        split[(split == other) & np.isin(groups, groups[split == side])] = ""
    return split


def by_groups(
    labels: np.ndarray,
    groups: np.ndarray,
    shares: Mapping[str, float | np.ndarray],
    split: np.ndarray | None = None,
) -> np.ndarray:
    """Move whole groups out of training until each class has about its share in each of the others.

    Groups come in an order that depends on their names alone, largest need first: a group goes to the split that still
    lacks most of what the group holds, or stays. No class is emptied: the last group of a class stays in training.

    Args:
        labels: ``(N,)`` int64.
        groups: ``(N,)`` str.
        shares: what part of the training images each new split gets, such as ``{"test": 0.2, "val": 0.1}``, or of each
            class ``(C,)``.
        split: the split so far (default: all images in training).

    Returns:
        The new split, ``(N,)`` str.
    """
    split = np.full(len(labels), "train", dtype="<U5") if split is None else split.astype("<U5")
    available = split == "train"
    names, group_of_image = np.unique(groups[available], return_inverse=True)
    classes = int(labels.max()) + 1 if len(labels) else 0
    counts = np.zeros((len(names), classes))
    np.add.at(counts, (group_of_image, labels[available]), 1)
    total, groups_left = counts.sum(axis=0), (counts > 0).sum(axis=0)
    need = {target: total * share for target, share in shares.items()}
    assigned = np.full(len(names), "train", dtype="<U5")
    for group in _shuffled(names):
        group_counts = counts[group]
        present = group_counts > 0
        half = 0.5 * group_counts.sum()
        gain = {name: float(np.minimum(wanted, group_counts)[present].sum() - half) for name, wanted in need.items()}
        target = max(gain, key=gain.__getitem__)
        if gain[target] < 0 or (groups_left[present] <= 1).any():
            continue
        assigned[group] = target
        need[target] = need[target] - group_counts
        groups_left[present] -= 1
    for target in shares:
        _represent(target, assigned, counts)
    split[available] = assigned[group_of_image]
    return split


def _represent(target: str, assigned: np.ndarray, counts: np.ndarray) -> None:
    """Give ``target`` the smallest group of every class that it lacks, if one stays in training (for ``val`` two)."""
    staying = 2 if target == "val" else 1
    for label in range(counts.shape[1]):
        candidates = np.flatnonzero((assigned == "train") & (counts[:, label] > 0))
        if len(candidates) > staying and not counts[assigned == target, label].any():
            assigned[candidates[np.argmin(counts[candidates].sum(axis=1))]] = target


def _shuffled(names: np.ndarray) -> np.ndarray:
    """Positions of ``names`` in an order that depends on nothing but each name itself."""
    import hashlib

    digests = [hashlib.sha256(str(name).encode("utf-8", "surrogateescape")).digest() for name in names]
    return np.array(sorted(range(len(names)), key=digests.__getitem__), dtype=np.int64)


def subset(data: ImageSet, max_images: int) -> ImageSet:
    """About ``max_images`` images: of each class and split the same share, in whole groups, at least one group each.

    Args:
        data: a set of images.
        max_images: about how many; 0 keeps all.

    Returns:
        The set with fewer images, in the same order.
    """
    if not max_images or len(data) <= max_images:
        return data
    share = max_images / len(data)
    keep = np.zeros(len(data), bool)
    names, member = np.unique(data.groups, return_inverse=True)
    order = np.argsort(_shuffled(names))[member]
    for split in np.unique(data.split):
        for label in range(len(data.classes)):
            members = np.flatnonzero((data.split == split) & (data.labels == label))
            members = members[np.argsort(order[members], kind="stable")]
            wanted = max(1, round(share * len(members)))
            if len(members):
                last = data.groups[members[wanted - 1]]
                keep[members[:wanted]] = True
                keep[members[data.groups[members] == last]] = True
    return take(data, np.flatnonzero(keep))


def take(data: ImageSet, positions: np.ndarray) -> ImageSet:
    """The images at ``positions`` (ascending), with whatever belongs to each of them."""
    per_image = {
        name: value[positions]
        for name, value in data.notes.items()
        if isinstance(value, np.ndarray) and len(value) == len(data)
    }
    return replace(
        data,
        images=data.images[positions],
        labels=data.labels[positions],
        groups=data.groups[positions],
        ids=data.ids[positions],
        split=data.split[positions],
        masks=None if data.masks is None else data.masks[positions],
        posterior=None if data.posterior is None else data.posterior[positions],
        notes=data.notes | per_image,
    )
