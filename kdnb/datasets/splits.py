"""Deterministic splits by whole groups, and deterministic subsets of them."""

from dataclasses import replace

import numpy as np

from kdnb.datasets.imageset import ImageSet

SPLITS = ("train", "val", "test")


TEST_SHARE = 0.2
VAL_SHARE = 0.2  # of training ...
VAL_MOST = 1000  # ... but no more images than this


LEFT_SHARE = 0.5  # of a class's published test (or validation) images: where leaving leaks out would leave fewer, the set is split anew


TooLittle = tuple[str, int, int, int]  # split, class, images of it that would be left, images of it that are published


def split_by(
    protocol: str, labels: np.ndarray, groups: np.ndarray, published: np.ndarray
) -> tuple[np.ndarray, TooLittle | None]:
    """Split a source as ``protocol`` says.

    ``official``: as published, where it is (``published`` names the split of each image); else 80/20 by single images, stratified by
    class, as the paper did it. ``leak_free``: no group on two sides. As published without the images whose group is already in training
    (or validation); where that would leave too little (:func:`too_little`), by whole groups in about the published shares of each class;
    80/20 by whole groups where no split is published.
    Validation is cut from training by whole groups, unless it is published.

    Returns:
        The split, ``(N,)`` str, and for what a published one was split anew (``None``: it was not).
    """
    anew = None
    if not (published == "test").any():
        singles = np.array([f"{k:08d}" for k in range(len(labels))]) if protocol == "official" else groups
        split = by_groups(labels, singles, {"test": TEST_SHARE}, np.where(published == "", "train", published))
    elif protocol == "leak_free" and (anew := too_little(labels, groups, published)):
        sizes = {
            part: np.bincount(labels[published == part], minlength=labels.max() + 1)
            for part in ("train", "val", "test")
        }
        shares = {
            part: sizes[part] / np.maximum(1, sum(sizes.values())) for part in ("test", "val") if sizes[part].any()
        }
        split = by_groups(labels, groups, shares, np.where(published == "", "", "train"))
    else:
        split = published.astype("<U5")
    if protocol == "leak_free":
        split = _without_leaks(split, groups)
    if not (split == "val").any():
        share = min(VAL_SHARE, VAL_MOST / max(1, (split == "train").sum()))
        split = by_groups(labels, groups, {"val": share}, split)
    return split, anew


def too_little(labels: np.ndarray, groups: np.ndarray, published: np.ndarray) -> TooLittle | None:
    """The class of a published split of which leaving leaks out leaves least, if less than ``LEFT_SHARE``: split, class, left, published.

    ``None`` where enough is left of every class, or no split is published.
    """
    kept, found = _without_leaks(published, groups), []
    for part in ("val", "test"):
        for label in np.unique(labels[published == part]):
            here = (published == part) & (labels == label)
            found.append((part, int(label), int((here & (kept == part)).sum()), int(here.sum())))
    least = min(found, key=lambda row: row[2] / row[3], default=None)
    return least if least and least[2] < LEFT_SHARE * least[3] else None


def _without_leaks(split: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The split without the images of validation and test whose group is in training, and those of test whose group is in validation."""
    split = split.copy()
    for side, other in (("train", "val"), ("train", "test"), ("val", "test")):
        split[(split == other) & np.isin(groups, groups[split == side])] = ""
    return split


def by_groups(
    labels: np.ndarray,
    groups: np.ndarray,
    shares: dict[str, float | np.ndarray],
    split: np.ndarray | None = None,
    of: str = "train",
) -> np.ndarray:
    """Move whole groups out of one split until each class has about its share in each of the others.

    Groups come in an order that depends on their names alone, largest need first: a group goes to the split that still
    lacks most of what the group holds, or stays. No class is emptied: the last group of a class stays in ``of``.

    Args:
        labels: ``(N,)`` int64. groups: ``(N,)`` str.
        shares: what part of the images in ``of`` each new split gets, such as ``{"test": 0.2, "val": 0.1}``, or of each class ``(C,)``.
        split: the split so far (default: all images in ``of``).
        of: the split to cut from.

    Returns:
        The new split, ``(N,)`` str.
    """
    split = np.full(len(labels), of, dtype="<U5") if split is None else split.astype("<U5")
    available = split == of
    names, member = np.unique(groups[available], return_inverse=True)
    classes = int(labels.max()) + 1 if len(labels) else 0
    counts = np.zeros((len(names), classes))
    np.add.at(counts, (member, labels[available]), 1)
    total, left = counts.sum(axis=0), (counts > 0).sum(axis=0)
    need = {target: total * share for target, share in shares.items()}
    goes = np.full(len(names), of, dtype="<U5")
    for group in _shuffled(names):
        held = counts[group]
        present = held > 0
        gain = {
            target: float(np.minimum(wanted, held)[present].sum() - 0.5 * held.sum()) for target, wanted in need.items()
        }
        target = max(gain, key=gain.get)
        if gain[target] < 0 or (left[present] <= 1).any():
            continue
        goes[group] = target
        need[target] = need[target] - held
        left[present] -= 1
    for target in shares:
        _represent(target, goes, counts, of)
    split[available] = goes[member]
    return split


def _represent(target: str, goes: np.ndarray, counts: np.ndarray, of: str) -> None:
    """Give ``target`` a group of every class that it lacks, the smallest, if one stays in ``of`` (two where it is for validation)."""
    stay = 2 if target == "val" else 1
    for label in range(counts.shape[1]):
        left = np.flatnonzero((goes == of) & (counts[:, label] > 0))
        if len(left) > stay and not counts[goes == target, label].any():
            goes[left[np.argmin(counts[left].sum(axis=1))]] = target


def _shuffled(names: np.ndarray) -> np.ndarray:
    """Positions of ``names`` in an order that depends on nothing but each name itself."""
    import hashlib

    return np.array(
        sorted(
            range(len(names)), key=lambda k: hashlib.sha256(str(names[k]).encode("utf-8", "surrogateescape")).digest()
        ),
        dtype=np.int64,
    )


def subset(data: ImageSet, max_images: int) -> ImageSet:
    """About ``max_images`` images: of each class and split the same share, in whole groups, at least one group each; 0 keeps all."""
    if not max_images or len(data) <= max_images:
        return data
    share = max_images / len(data)
    keep = np.zeros(len(data), bool)
    order = np.empty(len(data), np.int64)
    names, member = np.unique(data.groups, return_inverse=True)
    order = np.argsort(_shuffled(names))[member]
    for split in np.unique(data.split):
        for label in range(len(data.classes)):
            here = np.flatnonzero((data.split == split) & (data.labels == label))
            here = here[np.argsort(order[here], kind="stable")]
            wanted = max(1, round(share * len(here)))
            if len(here):
                last = data.groups[here[wanted - 1]]
                keep[here[:wanted]] = True
                keep[here[data.groups[here] == last]] = True
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
