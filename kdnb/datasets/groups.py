"""Which images belong together: one person's eyes, one subject's slices, images in one patient's folder, duplicates."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from kdnb.datasets.duplicates import detail, equal_pairs

# Subjects of each class of the Alzheimer set (28 + 2 + 100 + 70 = 200), each with SLICES slices.
ALZHEIMER_SUBJECTS = {"Mild_Demented": 28, "Moderate_Demented": 2, "Non_Demented": 100, "Very_Mild_Demented": 70}
SLICES = 32

# What a file's name says about whose image it is; `whose` is what images of one person share. Tried in this order.
_NAMED = {
    "a subject's number in the name": re.compile(
        r"(?:.*[^a-z])?"
        r"(?P<whose>(?:patient|subject|participant|person|subj|sub|pat)[ _-]?[a-z]{0,4}\d+|oas\d_\d+)(?!\d).*"
    ),
    "left and right in the name": re.compile(
        r"(?P<whose>.*\d.*?)[ _.-]+(?:left|right|l|r|od|os)(?:[ _-]?(?:eye|fundus))?"
    ),
    "left and right before the name": re.compile(r"(?:left|right|od|os)(?:[ _-]?eye)?[ _.-]+(?P<whose>.*\d.*)"),
    "a slice's number behind the name": re.compile(r"(?P<whose>.*\d.*?)[ _-]+(?:slice|frame|sl|fr|z)[ _-]?\d+"),
    "a number before the image's number": re.compile(r"(?P<whose>[a-z]{0,3}\d{3,}[a-z]?)[_-]\d{1,4}"),
}
_BARE = "a number before the image's number"  # which may also be a date or a batch: believed only of five or more
_PLACEHOLDERS = frozenset(
    ("", "0", "anon", "anonymous", "anonymized", "anonymised", "unknown", "none", "na", "n/a", "removed")
)


def by_name(dataset: str, ids: Iterable[str], labels: Iterable[str]) -> np.ndarray:
    """The group of each image as far as its name tells; an image that stands alone is its own group.

    Args:
        dataset: ``"eye_disease"``, ``"phantom"``, or anything else, where the innermost folder below a class folder is
            a group if the class has at least five of them (``class/patient_07/image.png``).
        ids: N paths relative to the source.
        labels: N class names.

    Returns:
        ``(N,)`` str.
    """
    ids, labels = list(ids), list(labels)
    if dataset == "eye_disease":
        return np.array([_eye_person(identity) for identity in ids], str)
    if dataset == "phantom":
        return np.array([PurePosixPath(identity).stem.rpartition("_")[0] for identity in ids], str)
    return _patient_folders(ids, labels)


def persons_by_name(ids: Iterable[str], labels: Iterable[str]) -> tuple[np.ndarray, str]:
    """The person of each image of a folder, and how it was found.

    The rule: images in a patient's folder are that patient's. Else the file's name tells, by a subject's number
    (``sub-01_T1``, ``patient_7_a``), by left and right (``12_left``, ``12_OD``), by a slice's number
    (``scan3_slice_10``), or by a number of three or more digits before the image's number (``00001_000``,
    ``MR017260F_23``; only where there are at least five such persons). The same name is the same person in every class
    and split: taking two persons for one costs a little data, taking one for two is a leak.

    Args:
        ids: N paths relative to the source.
        labels: N class names.

    Returns:
        The persons, ``(N,)`` str, and in a few words how they were found (``""``: they were not).
    """
    ids, labels = list(ids), list(labels)
    persons = _patient_folders(ids, labels).astype(object)
    found_by: dict[str, str] = {}  # rule -> an image that it told of
    named: dict[str, dict[int, str]] = {}
    for position, identity in enumerate(ids):
        if persons[position] != identity:
            found_by.setdefault("folders", identity)
            continue
        stem = PurePosixPath(identity).stem.casefold()
        for rule, pattern in _NAMED.items():
            if match := pattern.fullmatch(stem):
                named.setdefault(rule, {})[position] = match["whose"]
                break
    for rule, whose in named.items():
        shared = len(set(whose.values())) < len(whose)
        if shared and (rule != _BARE or len(set(whose.values())) >= 5):
            found_by[rule] = ids[min(whose)]
            for position, person in whose.items():
                persons[position] = f"person_{person}"
    how = ", ".join(f"{rule} ({PurePosixPath(example).name})" for rule, example in found_by.items())
    return persons.astype(str), how


def dicom_patients(files: list[Path]) -> np.ndarray:
    """The PatientID of each DICOM file, ``(N,)`` str; ``""``: none, or one placeholder stands for everybody."""
    import pydicom

    said = []
    for path in files:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"], force=True)
            said.append(str(header.get("PatientID") or ""))
        except Exception:  # noqa: BLE001 - damaged metadata raise anything; the file does not say whose it is
            said.append("")
    patients = without_placeholders(said)
    return patients if len(set(patients) - {""}) > 1 else np.full_like(patients, "")


def without_placeholders(patients: Iterable[str]) -> np.ndarray:
    """Patients as files name them, without the words that stand for nobody.

    Args:
        patients: N of DICOM's PatientIDs.

    Returns:
        ``(N,)`` str; ``""`` for a placeholder.

    Example:
        >>> without_placeholders(["P1 ", "ANON", ""]).tolist()
        ['P1', '', '']
    """
    stripped = [patient.strip() for patient in patients]
    return np.array(["" if patient.casefold() in _PLACEHOLDERS else patient for patient in stripped], str)


def same(values: np.ndarray) -> np.ndarray:
    """Pairs of images with the same value, those without one (``""``) in none, ``(P, 2)`` int64."""
    rows = np.flatnonzero(values != "")
    return rows[equal_pairs(values[rows])] if len(rows) else np.zeros((0, 2), np.int64)


def _eye_person(identity: str) -> str:
    """The person of an eye's image: fellow eyes, ``1034_left`` and ``1034_right``, are one person's.

    Numbers are unique within a source, which the file's ending tells.

    Args:
        identity: the image's path relative to the source.

    Returns:
        The person; ``identity`` itself where the name has another form.

    Example:
        >>> _eye_person("cataract/1034_left.jpg"), _eye_person("glaucoma/_12_3.png")
        ('person_1034.jpg', 'glaucoma_series_12')
    """
    path = PurePosixPath(identity)
    eye = re.fullmatch(r"(\d+)_(left|right)", path.stem)
    series = re.fullmatch(r"_(\d+)_\d+", path.stem)  # one number, several files: taken as one person
    if eye:
        return f"person_{eye[1]}{path.suffix}"
    return f"{path.parent.name}_series_{series[1]}" if series else identity


def alzheimer_number(identity: str) -> int:
    """The number of a file of the Alzheimer set.

    Args:
        identity: the image's path relative to the source.

    Returns:
        Counted from 1; 0 where the name has another form.

    Example:
        >>> alzheimer_number("Mild_Demented/mild_30.jpg"), alzheimer_number("Mild_Demented/mild.jpg")
        (30, 1)
    """
    match = re.fullmatch(r"[a-z]+(?:_(\d+))?", PurePosixPath(identity).stem)
    return int(match[1] or 1) if match else 0


def alzheimer_subjects(ids: np.ndarray, signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recover the subjects of the Alzheimer set from file numbers and images.

    A class of S subjects has files 1 to 32 S: one slice of every subject, then the next slice of every subject, and so
    on. But a fifth of the files, cut off at the end of that order, was put in front, and where a level was cut, and
    from there on, the subjects stand in another order. Numbers alone (``(n - 1) mod S``) therefore name the wrong
    subject for much of that fifth. So each level's S slices are matched to those of the level before by the detail of
    the images, one to one (linear assignment).

    Args:
        ids: ``(N,)`` paths relative to the source.
        signatures: ``(N, 64, 64)`` uint8.

    Returns:
        Groups ``(N,)`` str, and the similarity of each image to the slice before it in its subject ``(N,)`` (NaN: the
        first).
    """
    groups, links = ids.astype(object), np.full(len(ids), np.nan)
    folders = np.array([PurePosixPath(name).parent.name for name in ids])
    numbers = np.array([alzheimer_number(name) for name in ids])
    for folder, subjects in ALZHEIMER_SUBJECTS.items():
        count = SLICES * subjects
        rows = np.flatnonzero((folders == folder) & (numbers >= 1) & (numbers <= count))
        order = (numbers[rows] - 1 - count // 5) % count  # the order before the last fifth was put in front
        subject, similarity = _chained(order // subjects, order % subjects, signatures[rows])
        groups[rows] = [f"{folder}_{number:03d}" for number in subject]
        links[rows] = similarity
    return groups.astype(str), links


def _chained(level: np.ndarray, place: np.ndarray, signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The subject of each slice, and its similarity to that subject's slice before.

    Args:
        level: ``(n,)`` int64, how many levels of slices lie before the slice's own.
        place: ``(n,)`` int64, the slice's place in its level.
        signatures: ``(n, 64, 64)`` uint8.

    Returns:
        Subjects ``(n,)`` int64, numbered as in the first level, and similarities ``(n,)`` (NaN: the first).
    """
    from scipy.optimize import linear_sum_assignment

    flat = detail(signatures, 5).reshape(len(signatures), -1).astype(np.float32) if len(signatures) else signatures
    flat = flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)
    subject, similarity = place.copy(), np.full(len(level), np.nan)
    last_slice_of: dict[int, int] = {}  # subject -> its slice in the level before, or the last one there is
    for step in range(SLICES):
        current = np.flatnonzero(level == step)
        if last_slice_of and len(current):
            earlier_subjects = np.array(sorted(last_slice_of))
            correlations = flat[current] @ flat[[last_slice_of[number] for number in earlier_subjects]].T
            rows, columns = linear_sum_assignment(-correlations)
            # A slice that is matched to none is of a subject whose earlier slices are all missing.
            subject[current] = earlier_subjects.max() + 1 + np.arange(len(current))
            subject[current[rows]], similarity[current[rows]] = earlier_subjects[columns], correlations[rows, columns]
        last_slice_of |= dict(zip(subject[current].tolist(), current.tolist(), strict=True))
    return subject, similarity


def _patient_folders(ids: list[str], labels: list[str]) -> np.ndarray:
    """The innermost folder of each image, ``(N,)`` str, where its class has five or more; else the image's id."""
    # From the class folder on: the same patient's folder in train and in test is one person's.
    folder_of_file = [PurePosixPath(name).parent for name in ids]
    folder_of = [
        PurePosixPath(*parent.parts[parent.parts.index(label) :]) if label in parent.parts else parent
        for parent, label in zip(folder_of_file, labels, strict=True)
    ]
    folders_of_class: dict[str, set[PurePosixPath]] = {}
    for parent, label in zip(folder_of, labels, strict=True):
        folders_of_class.setdefault(label, set()).add(parent)
    has_patients = {label: len(patient_folders) >= 5 for label, patient_folders in folders_of_class.items()}
    group = [
        str(parent) if has_patients[label] else name for parent, name, label in zip(folder_of, ids, labels, strict=True)
    ]
    return np.array(group, str)


def join(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Merge the groups of every pair of images; a merged group has the name of its alphabetically first one.

    Args:
        groups: ``(N,)`` str.
        pairs: ``(P, 2)`` int64 positions.

    Returns:
        The merged groups, ``(N,)`` str.

    Example:
        >>> join(np.array(["a", "b", "c", "d"]), np.array([[1, 3]])).tolist()
        ['a', 'b', 'c', 'b']
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, member = np.unique(groups, return_inverse=True)
    links = coo_array(
        (np.ones(len(pairs), bool), (member[pairs[:, 0]], member[pairs[:, 1]])), shape=(len(names), len(names))
    )
    _, component = connected_components(links, directed=False)
    first = np.full(component.max(initial=-1) + 1, len(names))
    np.minimum.at(first, component, np.arange(len(names)))
    return names[first[component]][member]
