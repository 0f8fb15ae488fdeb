"""Which images belong together: one person's eyes, one subject's slices, images in one patient's folder, duplicates."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np

# Slices come subject after subject within each slice position: the number of subjects of each class (28 + 2 + 100 + 70 = 200).
ALZHEIMER_SUBJECTS = {"Mild_Demented": 28, "Moderate_Demented": 2, "Non_Demented": 100, "Very_Mild_Demented": 70}


def by_name(dataset: str, ids: Iterable[str], labels: Iterable[str]) -> np.ndarray:
    """The group of each image as far as its name tells, ``(N,)`` str; an image that stands alone is its own group.

    Args:
        dataset: ``"eye_disease"``, ``"alzheimer"``, or anything else, where the innermost folder below a class folder is a group if
            the class has at least five of them (``class/patient_07/image.png``).
        ids: paths relative to the source. labels: class names.
    """
    ids, labels = list(ids), list(labels)
    if dataset == "eye_disease":
        return np.array([_eye_person(name) for name in ids], str)
    if dataset == "alzheimer":
        return np.array([alzheimer_subject(name) for name in ids], str)
    return _patient_folders(ids, labels)


def _eye_person(identity: str) -> str:
    """Fellow eyes, ``1034_left`` and ``1034_right``, are one person; numbers are unique within a source, which the suffix tells."""
    path = PurePosixPath(identity)
    person = re.fullmatch(r"(\d+)_(left|right)", path.stem)
    series = re.fullmatch(r"_(\d+)_\d+", path.stem)  # one number, several files: taken as one person
    if person:
        return f"person_{person[1]}{path.suffix}"
    return f"{path.parent.name}_series_{series[1]}" if series else identity


def alzheimer_subject(identity: str) -> str:
    """The subject of ``Mild_Demented/mild_30.jpg``: files are numbered from 1 (``mild.jpg``), subject after subject, slice by slice."""
    path = PurePosixPath(identity)
    subjects = ALZHEIMER_SUBJECTS.get(path.parent.name)
    numbered = re.fullmatch(r"[a-z]+(?:_(\d+))?", path.stem)
    if subjects is None or numbered is None:
        return identity
    return f"{path.parent.name}_{(int(numbered[1] or 1) - 1) % subjects:03d}"


def _patient_folders(ids: list[str], labels: list[str]) -> np.ndarray:
    parents = [PurePosixPath(name).parent for name in ids]
    folders: dict[str, set] = {}
    for parent, label in zip(parents, labels, strict=True):
        folders.setdefault(label, set()).add(parent)
    deep = {label: len(inside) >= 5 for label, inside in folders.items()}
    group = [str(parent) if deep[label] else name for parent, name, label in zip(parents, ids, labels, strict=True)]
    return np.array(group, str)


def join(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Merge the groups of every pair of images; a merged group has the name of its alphabetically first one.

    Args:
        groups: ``(N,)`` str. pairs: ``(P, 2)`` int64 positions.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, member = np.unique(groups, return_inverse=True)
    links = coo_array((np.ones(len(pairs), bool), (member[pairs[:, 0]], member[pairs[:, 1]])), shape=(len(names), len(names)))
    _, component = connected_components(links, directed=False)
    first = np.full(component.max(initial=-1) + 1, len(names))
    np.minimum.at(first, component, np.arange(len(names)))
    return names[first[component]][member]


def equal_pairs(digests: np.ndarray) -> np.ndarray:
    """Pairs of images with the same digest, each image with the first of its kind, ``(P, 2)`` int64."""
    _, first, member = np.unique(digests, return_index=True, return_inverse=True)
    pairs = np.stack([first[member], np.arange(len(digests))], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]
