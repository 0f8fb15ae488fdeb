"""Which images belong together: one person's eyes, one subject's slices, images in one patient's folder, duplicates."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from kdnb.datasets import layouts
from kdnb.datasets.duplicates import detail, equal_pairs

# Subjects of each class of the Alzheimer set (28 + 2 + 100 + 70 = 200), each with SLICES slices.
ALZHEIMER_SUBJECTS = {"Mild_Demented": 28, "Moderate_Demented": 2, "Non_Demented": 100, "Very_Mild_Demented": 70}
SLICES = 32

# A name of a file or folder that says who the subject is. The short words are believed only as words: subset1, patch2.
_SUBJECT = re.compile(
    r"(?:.*[^a-z])?(?P<whose>(?:patient|subject|participant|person)[ _-]?[a-z]{0,4}\d+|"
    r"(?:subj|sub|pat)(?:[ _-][a-z]{0,4})?\d+|case[ _-]?\d+|oas\d_\d+)(?!\d).*"
)
# What a file's name says about whose image it is; `whose` is what images of one person share. Tried in this order.
_NAMED = {
    "a subject's number in the name": _SUBJECT,
    "left and right in the name": re.compile(
        r"(?P<whose>.*\d.*?)[ _.-]+(?:left|right|l|r|od|os)(?:[ _-]?(?:eye|fundus))?"
    ),
    "left and right before the name": re.compile(r"(?:left|right|od|os)(?:[ _-]?eye)?[ _.-]+(?P<whose>.*\d.*)"),
    "a slice's number behind the name": re.compile(r"(?P<whose>.*\d.*?)[ _-]+(?:slice|frame|sl|fr|z)[ _-]?\d+"),
    "a number before the image's number": re.compile(r"(?P<whose>[a-z]{0,3}\d{3,}[a-z]?)[_-]\d{1,4}"),
}
_BARE = "a number before the image's number"  # which may also be a date or a batch: believed only of five or more
# Rules of numbers that images share which are no person's, too: T1_slice_3 is everybody's.
_COUNTED = ("a slice's number behind the name", _BARE)
_FOLDERS_FROM = 5  # folders of a class, called like nobody, that are taken for persons
# Folders, numbered or not, into which files are sorted without regard to persons.
_SHARD = re.compile(r"(?:part|chunk|shard|archive|subset|fold|dataset)s?|batch(?:es)?|images|imgs|pictures|photos|data")
_PLACEHOLDERS = frozenset(
    ("", "0", "anon", "anonymous", "anonymized", "anonymised", "unknown", "none", "na", "n/a", "removed")
)


def by_name(dataset: str, ids: Iterable[str], labels: Iterable[str]) -> np.ndarray:
    """The group of each image as far as its name tells; an image that stands alone is its own group.

    Args:
        dataset: ``"eye_disease"``, ``"phantom"``, or anything else, where patients' folders are looked for
            (``class/patient_07/T1/image.png``; the rule stands at :func:`persons_by_name`).
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
    return _patient_folders(ids, labels, only_named=False)[0]


def persons_by_name(ids: Iterable[str], labels: Iterable[str], *, in_table: bool = False) -> tuple[np.ndarray, str]:
    """The person of each image of a folder, and how it was found.

    The rule: images in a patient's folder are that patient's, of several such folders the outermost: one that is called
    like a subject (``patient_07``, ``sub-01``), or else one of the outermost level below the class folders at which a
    class has at least five (``glioma/A7/T1/image.png``), shards (``batch_1``) not counted. Else the file's name tells,
    by a subject's number (``sub-01_T1``, ``patient_7_a``), by left and right (``12_left``, ``12_OD``), by a slice's
    number (``scan3_slice_10``), or by a number of three or more digits before the image's number (``00001_000``,
    ``MR017260F_23``; only where there are at least five such persons). The same name is the same person in every class
    and split: taking two persons for one costs a little data, taking one for two is a leak. But what is called like
    nobody and would make one person of a whole class (``T1_slice_1`` to ``T1_slice_900``) is none.

    Args:
        ids: N paths relative to the source.
        labels: N class names.
        in_table: a table names the images, so folders stand for anything: only those called like a subject are
            believed.

    Returns:
        The persons, ``(N,)`` str, and in a few words how they were found, the level of folders among them (``""``: they
        were not).
    """
    ids, labels = list(ids), list(labels)
    in_folders, found_by = _patient_folders(ids, labels, only_named=in_table)
    persons = in_folders.astype(object)
    named: dict[str, dict[int, str]] = {}
    for position, identity in enumerate(ids):
        if persons[position] != identity:
            continue
        stem = PurePosixPath(identity).stem.casefold()
        for rule, pattern in _NAMED.items():
            if match := pattern.fullmatch(stem):
                named.setdefault(rule, {})[position] = match["whose"]
                break
    for rule, recognised in named.items():
        nobody = _whole_classes(recognised, labels) if rule in _COUNTED else set()
        whose = {position: person for position, person in recognised.items() if person not in nobody}
        shared = len(set(whose.values())) < len(whose)
        if shared and (rule != _BARE or len(set(whose.values())) >= 5):
            found_by.append(f"{rule} ({PurePosixPath(ids[min(whose)]).name})")
            for position, person in whose.items():
                persons[position] = f"person_{person}"
    return persons.astype(str), ", ".join(found_by)


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


def _patient_folders(ids: list[str], labels: list[str], *, only_named: bool) -> tuple[np.ndarray, list[str]]:
    """The patient whose folder each image lies in, else the image's id; the rule stands at :func:`persons_by_name`.

    Args:
        ids: N paths relative to the source.
        labels: N class names.
        only_named: believe only folders that are called like a subject.

    Returns:
        ``(N,)`` str, and for each rule that found some which folder it took of which.
    """
    persons = list(ids)
    examples: dict[str, str] = {}  # rule -> a folder that it took
    inner: dict[int, tuple[str, ...]] = {}  # of images in no subject's folder: folders below the class, without shards
    for position, (identity, label) in enumerate(zip(ids, labels, strict=True)):
        folders = PurePosixPath(identity).parent.parts
        # From the class folder on: the same patient's folder in train and in test is one person's.
        below = next((k + 1 for k, name in enumerate(folders) if layouts.class_name(name) == label), 0)
        matches = ((k, _SUBJECT.fullmatch(name.casefold())) for k, name in enumerate(folders) if k != below - 1)
        k, match = next((found for found in matches if found[1]), (0, None))
        if match:
            persons[position] = f"{label}/{match['whose']}" if k >= below > 0 else f"person_{match['whose']}"
            examples.setdefault("folders called like a subject", f"{folders[k]} of {identity}")
        else:
            inner[position] = tuple(name for name in folders[below:] if not _is_shard(name))
    deepest = 0 if only_named else max(map(len, inner.values()), default=0)
    for level in range(1, 1 + deepest):
        deep = {
            position: "/".join((labels[position], *folders[:level]))
            for position, folders in inner.items()
            if len(folders) >= level
        }
        folders_of_class = Counter(label for label, _ in {(labels[position], deep[position]) for position in deep})
        if max(folders_of_class.values()) >= _FOLDERS_FROM:
            nobody = _whole_classes(deep, labels)
            kept = {position: folder for position, folder in deep.items() if folder not in nobody}
            for position, folder in kept.items():
                persons[position] = folder
            first = min(kept)
            rule = f"folders of level {level} below the class"
            examples[rule] = f"{inner[first][level - 1]} of {ids[first]}"
            break
    return np.array(persons, str), [f"{rule} ({example})" for rule, example in examples.items()]


def _is_shard(folder: str) -> bool:
    """Whether a folder's name says that files were only sorted into it: a part, a fold, a split."""
    words = [word for word in layouts.name_words(folder) if not word.isdigit()]
    split, others = layouts.split_of(" ".join(words))
    return bool(words) and (all(map(_SHARD.fullmatch, words)) or (bool(split) and not others))


def _whole_classes(persons: dict[int, str], labels: list[str]) -> set[str]:
    """Those who would be a whole class of several images alone.

    Args:
        persons: an image's position -> its person; images without one are left out.
        labels: N class names.

    Returns:
        Persons; no independent images would be left of their classes.
    """
    sizes = Counter(labels)
    counts = Counter((labels[position], person) for position, person in persons.items())
    return {person for (label, person), count in counts.items() if count == sizes[label] > 1}


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
