"""Understand how a folder of images is laid out, or refuse it in one sentence that names the folder or table to give.

What is understood: class folders, alone or inside folders named like train, validation and test (``train_data``,
``Train Images``, ``valid``), or with such folders inside each class, or in folds of which one is said to test; around
them any number of wrappers. Masks beside images are the truth of these. Whatever else is no sample (folders that
systems leave, a test set without labels) is left out and counted. Everything else that public sets look like would make
classes of things that are none (tasks, parts, patients, an augmented copy, the two columns of a segmentation set) and
is refused.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kdnb.datasets.reading import NIFTI, SUFFIXES, is_dicom
from kdnb.errors import DataError
from kdnb.sources import TABLE_ENDINGS


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev"),
    "test": ("test", "testing", "tst", "holdout"),
}
_SPLIT_OF = {
    word + ending: split
    for split, words in _SPLITS.items()
    for word in words
    for ending in ("", "s", "set", "data", "images", "dataset")
}
# Words that say nothing about what a folder holds.
_IMAGES = _vocabulary(
    "image images img imgs picture pictures photo photos scan scans slice slices png pngs jpg jpgs jpeg dicom dcm"
)
_FILLERS = _IMAGES | _vocabulary("data dataset datasets set sets folder folders file files sample samples split splits")
_MASKS = _vocabulary(
    "mask masks segmentation segmentations groundtruth ground truth gt annotation annotations label labels"
)
_AUGMENTED = _vocabulary("augmented augmentation augmentations augment aug augs")
_ORIGINAL = _vocabulary("original originals orig raw unaugmented")
_FOLDS = _vocabulary("fold folds cv kfold crossval")
_TASKS = _vocabulary("task tasks classification segmentation detection localization localisation grading")
_PARTS = _vocabulary("part parts batch batches chunk chunks volume volumes vol archive")
_PERSONS = _vocabulary("patient patients pat subject subjects subj sub case cases person persons participant")
_SIDES = _vocabulary("left right l r od os eye eyes")
_NO_LABEL = _FILLERS | _vocabulary("unknown unlabelled unlabeled all none") | set(_SPLIT_OF)

_SYSTEM_FOLDERS = _vocabulary(
    "@eadir #recycle @recycle #snapshot $recycle.bin recycler recycled system_volume_information __macosx lost+found "
    "found.000 thumbnails .thumbnails @recently-snapshot __pycache__ lost.dir"
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".parquet", ".ods")
# The endings of files that hold images or volumes and are not read.
REFUSED = (
    *(".mat", ".npy", ".npz"),  # arrays
    *(".heic", ".heif", ".avif", ".jp2", ".j2k"),  # photographs
    *(".mha", ".mhd", ".nrrd", ".h5", ".hdf5"),  # volumes
    *(".svs", ".ndpi", ".mrxs", ".czi"),  # microscopes' slides
    *(".tfrecord", ".tfrecords", ".pkl", ".pickle", ".pt", ".parquet"),  # what programs packed
    *(".zip", ".rar", ".7z", ".gz"),  # archives
)
_MASK_NAME = re.compile(
    r"(.+?)[ _\-.]+(?:mask|seg|segmentation|gt|groundtruth|ground_truth|annotation)s?(?:[ _\-]?\(?\d+\)?)?",
    re.IGNORECASE,
)


@dataclass
class Layout:
    """How a folder was understood.

    Attributes:
        places: (folder, class name, split as published or ``""``) of every class folder.
        left_out: what is no sample -> how many files.
        skipped: folder -> reason.
        masks: (folder below which the images lie, folder of their masks).
        tables: that lie beside the class folders, and are not read.
        tables_inside: that lie in class folders, and are not read.
    """

    places: list[tuple[Path, str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    masks: list[tuple[Path, Path]] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    tables_inside: list[Path] = field(default_factory=list)


def understand(folder: Path, test: str = "") -> Layout:
    """Find the class folders below ``folder``.

    Args:
        folder: the data set's folder as it was unpacked, with wrappers or without.
        test: of published folds the one that is the test set; ``""`` where none is said.

    Returns:
        Where the class folders, masks and unread tables lie, and what was left out.

    Raises:
        DataError: the folder cannot be read, or holds something else than class folders; one sentence names what to
            give instead.
    """
    layout = Layout()
    root = _beside_masks(_descend(folder, layout), layout)
    splits = _published(root)
    folds = [] if splits else _folds(root)
    if test:
        if test not in folds:
            raise DataError(
                f"{root} has no fold {test!r} ({_listed(folds) or 'no folds at all'}): name one, or leave out test=."
            )
        for name in folds:
            _add_classes(root / name, "test" if name == test else "train", layout)
            _count_loose(root / name, layout)
    elif splits:
        _add_splits(root, splits, layout)
    else:
        _check_names(root)
        _add_classes(root, "", layout)
    _count_loose(root, layout)
    layout.tables = _tables(
        *dict.fromkeys([folder, root, *(class_folder.parent for class_folder, _, _ in layout.places)])
    )
    layout.tables_inside = _tables(*(class_folder for class_folder, _, _ in layout.places))
    return layout


def _folds(root: Path) -> list[str]:
    """The folders of published folds, each with all classes; empty if they are something else."""
    names = [name for name in folders(root) if _holds_data(root / name)]
    folds = len(names) > 1 and all(
        _consists_of(name, _FOLDS, _FILLERS, frozenset(_SPLIT_OF), numbered=True) for name in names
    )
    return names if folds and not any(_published(root / name) for name in names) else []


def printable(path: str) -> str:
    """A path as text that any file can hold; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def class_name(folder: str) -> str:
    """The class that a folder's name stands for: the same letters are one name, whoever composed them (NFC)."""
    return unicodedata.normalize("NFC", printable(folder))


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden or one that a system leaves behind: never anybody's image."""
    folded = name.casefold()
    return (
        folded.startswith((".", "__macosx")) or folded in _SYSTEM_FILES or folded.replace(" ", "_") in _SYSTEM_FOLDERS
    )


def is_image(path: Path) -> bool:
    """Whether a file is named like an image, or has no ending (or a number, as in a UID) and is DICOM."""
    ending = path.suffix.lower()
    if ending in SUFFIXES or path.name.lower().endswith(NIFTI):
        return True
    try:
        return (not ending or ending[1:].isdigit()) and path.is_file() and is_dicom(path)
    except OSError:
        return False


def refused_format(name: str) -> str:
    """The ending of a file of images or volumes that are not read, or ``""``."""
    return next((ending for ending in REFUSED if name.lower().endswith(ending)), "")


def masked(name: str, stems: set[str]) -> bool:
    """Whether ``x_mask.png`` lies beside an ``x`` of the folder's ``stems``, whose truth it then is, and no sample."""
    return mask_of(name) in stems


def stem(name: str) -> str:
    """A file's name without its ending, be it ``.nii.gz``.

    Args:
        name: a file's name, without its folder.

    Returns:
        The name up to its last ending.

    Example:
        >>> stem("t1.nii.gz"), stem("scan.07.png")
        ('t1', 'scan.07')
    """
    return name[:-7] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[0]


def mask_of(name: str) -> str:
    """The name, without ending, of the image that a mask is called after, or ``""``.

    Args:
        name: a file's name, without its folder.

    Returns:
        A stem (:func:`stem`); ``""`` where the name is not that of a mask.

    Example:
        >>> mask_of("x_mask_1.png"), mask_of("x.png")
        ('x', '')
    """
    match = _MASK_NAME.fullmatch(stem(name))
    return match[1] if match else ""


def formats_read() -> str:
    """The endings that are read, for a message."""
    return ", ".join(sorted((*SUFFIXES, *NIFTI)))


def folders(folder: Path) -> list[str]:
    """The names of the folders in ``folder``, in order, without those of systems."""
    return [name for name, is_folder in _entries(folder) if is_folder and not is_system(name)]


def _entries(folder: Path) -> list[tuple[str, bool]]:
    try:
        return sorted((entry.name, os.path.isdir(entry)) for entry in os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): mend its permissions.") from error


def name_words(name: str) -> tuple[str, ...]:
    """The words and numbers of a name, in lower case: split at capitals, digits and whatever is no letter.

    Args:
        name: a file's or folder's name.

    Returns:
        The words in order.

    Example:
        >>> name_words("TrainImages_02")
        ('train', 'images', '02')
    """
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", printable(name)))
    return tuple(re.findall(r"[^\W\d_]+|\d+", text.casefold()))


def _consists_of(name: str, *vocabularies: frozenset[str], numbered: bool = False) -> bool:
    """Whether a name has a word of the first vocabulary and besides only words of all of them.

    Args:
        name: a folder's name.
        vocabularies: the first has the words of which one is needed.
        numbered: the name needs a number; without it, it may have none.

    Returns:
        Whether it is so.
    """
    words = name_words(name)
    letters = [word for word in words if not word.isdigit()]
    return (
        bool(set(letters) & vocabularies[0])
        and set(letters) <= frozenset().union(*vocabularies)
        and (not numbered or len(letters) < len(words))
        and (numbered or len(letters) == len(words))
    )


def _files_below(folder: Path, counts_as: Callable[[Path], object], most: int = 0) -> int:
    """How many files below ``folder`` are true for ``counts_as``; counting ends at ``most`` (0: at the last)."""
    count = 0
    for directory, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not is_system(name)]
        for name in files:
            count += not is_system(name) and bool(counts_as(Path(directory, name)))
            if most and count >= most:
                return count
    return count


def _holds_data(folder: Path) -> bool:
    """Whether something below looks like data: an image, a link to a folder, or a format that is not read."""
    if any(os.path.islink(folder / name) for name in folders(folder)):
        return True
    return bool(_files_below(folder, lambda path: is_image(path) or refused_format(path.name), 1))


def _descend(folder: Path, layout: Layout) -> Path:
    """Step through folders that hold only one other folder with images, as archives unpack."""
    visited = set()
    while os.path.realpath(folder) not in visited:
        visited.add(os.path.realpath(folder))
        subfolders = folders(folder)
        with_data = subfolders if len(subfolders) < 2 else [name for name in subfolders if _holds_data(folder / name)]
        if len(with_data) != 1 or not folders(folder / with_data[0]):
            break
        if len(subfolders) > 1 and not (
            len(folders(folder / with_data[0])) > 1 and _files_below(folder / with_data[0], is_image, 1)
        ):
            break
        _count_loose(folder, layout)
        folder = folder / with_data[0]
    return folder


def _beside_masks(folder: Path, layout: Layout) -> Path:
    """The folder of class folders beside a folder of their masks, which is noted; else the folder itself."""
    subfolders = folders(folder)
    masks = [name for name in subfolders if len(subfolders) > 1 and is_mask_folder(folder, name)]
    others = [name for name in subfolders if name not in masks]
    if (
        not masks
        or len(others) != 1
        or not set(name_words(others[0])) <= _FILLERS
        or len(folders(folder / others[0])) < 2
    ):
        return folder
    layout.masks += [(folder, folder / name) for name in masks]
    _count_loose(folder, layout)
    return folder / others[0]


def _count_loose(folder: Path, layout: Layout) -> None:
    images = sum(
        not is_folder and not is_system(name) and is_image(folder / name) for name, is_folder in _entries(folder)
    )
    if images:
        layout.left_out["images outside class folders"] += images
    for name, is_folder in _entries(folder):
        if is_folder and is_system(name):
            count_system(folder / name, layout.left_out)


def count_system(folder: Path, left_out: Counter[str]) -> None:
    """Count the files in a folder that a system left, and put them into ``left_out``."""
    count = sum(len(files) for _, _, files in os.walk(folder))
    if count:
        left_out[f"files in system folders ({printable(folder.name)})"] += count


def split_of(name: str) -> tuple[str, tuple[str, ...]]:
    """The split that a folder's name says, and the words that are left.

    Args:
        name: a folder's name.

    Returns:
        ``"train"``, ``"val"``, ``"test"`` or ``""`` (none, or more than one), and the words that say neither that nor
        nothing (``images``, ``data``).

    Example:
        >>> split_of("Train Images"), split_of("seg_test"), split_of("glioma")
        (('train', ()), ('test', ('seg',)), ('', ('glioma',)))
    """
    words = name_words(name)
    splits = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
    other_words = tuple(word for word in words if word not in _SPLIT_OF and word not in _FILLERS)
    return (splits[0], other_words) if len(set(splits)) == 1 else ("", other_words)


def _published(root: Path) -> dict[str, str]:
    """Folder -> split, for folders of a published split; empty if there is no training folder among them."""
    split_and_words = {name: split_of(name) for name in folders(root)}
    tails = sorted(
        {words for split, words in split_and_words.values() if split == "train"}, key=lambda words: (len(words), words)
    )
    for tail in tails:  # plain "train" first, then what all have in common: "seg_train" and "seg_test"
        split_of_folder = {name: split for name, (split, words) in split_and_words.items() if split and words == tail}
        if not tail or len(set(split_of_folder.values())) > 1:
            return split_of_folder
    return {}


def _tables(*directories: Path) -> list[Path]:
    """Tables in the folders, the most telling first."""
    tables = [
        directory / name
        for directory in directories
        for name, is_folder in _entries(directory)
        if not is_folder and name.lower().endswith(_TABLES)
    ]
    tables = [path for path in tables if not is_system(path.name) and "submission" not in path.name.lower()]
    return sorted(
        tables, key=lambda path: ("train" not in path.name.lower(), "label" not in path.name.lower(), path.name)
    )


def _advice_for(table: Path) -> str:
    if table.suffix.lower() in TABLE_ENDINGS:
        return f"the labels seem to be in the table {table}: give it, as table:{table}"
    return f"the labels seem to be in the table {table}: save it as CSV and give that, as table:PATH.csv"


def _add_splits(root: Path, splits: dict[str, str], layout: Layout) -> None:
    for name in folders(root):
        if name not in splits:
            count = _files_below(root / name, is_image)
            layout.skipped[printable(name)] = "folder beside the train and test folders"
            if count:
                layout.left_out[f"images in {printable(name)}, beside the train and test folders"] += count
    train_classes: set[str] = set()
    for name, split in sorted(splits.items(), key=lambda item: item[1] != "train"):
        folder = root / name
        while len(subfolders := folders(folder)) == 1 and folders(folder / subfolders[0]):
            folder = folder / subfolders[0]
        folder = _beside_masks(folder, layout)
        subfolders = folders(folder)
        images = _files_below(folder, is_image)
        classes = {class_name(label) for label in subfolders}
        no_class = (
            len(subfolders) == 1 and classes.isdisjoint(train_classes) and set(name_words(subfolders[0])) <= _NO_LABEL
        )
        if split == "train":
            if not subfolders and (images or _holds_data(folder)):
                tables = _tables(root, folder)
                advice = _advice_for(tables[0]) if tables else "put each class's images into a folder of its own"
                raise DataError(f"{folder} has images but no class folders; {advice}.")
            _check_names(folder)
            train_classes |= classes
        elif images and (not subfolders or no_class):
            layout.left_out[f"unlabelled images in {printable(name)}"] += images
            continue
        _add_classes(folder, split, layout)
        _count_loose(folder, layout)


def _check_names(root: Path) -> None:
    """Refuse folders whose names or contents say that they are no classes."""
    names = [name for name in folders(root) if _holds_data(root / name)]
    tables = _tables(root)
    if not names:
        loose = sum(
            is_image(root / name) for name, is_folder in _entries(root) if not is_folder and not is_system(name)
        )
        if loose and tables:
            raise DataError(f"{root} has images but no class folders; {_advice_for(tables[0])}.")
        return
    for name in names:
        if set(name_words(name)) & _AUGMENTED:
            words = tuple(word for word in name_words(name) if word not in _AUGMENTED | _FILLERS)
            for other in names:
                other_words = tuple(word for word in name_words(other) if word not in _ORIGINAL | _FILLERS)
                shared = set(folders(root / name)) & set(folders(root / other))
                if other != name and not set(name_words(other)) & _AUGMENTED and (other_words == words or shared):
                    raise DataError(
                        f"{root} has {name!r}, an augmented copy, beside {other!r}: "
                        f"give the originals, folder:{root / other}, "
                        "for a copy must never be on another side of the split than its original."
                    )
    first_folder = root / names[0]
    if all(_consists_of(name, _FOLDS, _FILLERS, _split_words(), numbered=True) for name in names):
        advice = (
            f"say which tests, as folder:{root}:test={names[0]}"
            if _folds(root)
            else f"give one of them, such as folder:{first_folder}"
        )
        raise DataError(f"{root} has the folds {_listed(names)}, which are no classes: {advice}.")
    if any("task" in name_words(name) or "tasks" in name_words(name) for name in names) or all(
        set(name_words(name)) & _TASKS for name in names
    ):
        suggestion = next(
            (name for name in names if {"classification", "classify", "class"} & set(name_words(name))), names[0]
        )
        raise DataError(
            f"{root} has several tasks ({_listed(names)}), which are no classes: "
            f"give one, such as folder:{root / suggestion}."
        )
    if all(_consists_of(name, _PERSONS, _FILLERS, numbered=True) or re.fullmatch(r"\d{3,}", name) for name in names):
        outer = "make the classes the outer folders, as in benign/patient_07/image.png"
        advice = _advice_for(tables[0]) if tables else outer
        raise DataError(
            f"{root} has folders that are persons or running numbers ({_listed(names)}), no classes; {advice}."
        )
    role_names = [name for name in names if set(name_words(name)) <= _FILLERS | _MASKS | set(_SPLIT_OF)]
    part_names = [name for name in names if _consists_of(name, _FILLERS | _PARTS, _split_words(), numbered=True)]
    if len(role_names) + len(part_names) == len(names):
        images_folder = next(
            (name for name in role_names if set(name_words(name)) <= _FILLERS and len(folders(root / name)) > 1), ""
        )
        if images_folder:
            raise DataError(
                f"{root} has folders that are no classes ({_listed(names)}): give folder:{root / images_folder}."
            )
        if tables:
            raise DataError(f"{root} has folders that are no classes ({_listed(names)}); {_advice_for(tables[0])}.")
        raise DataError(
            f"{root} has no class folders with images in them, only {_listed(names)}: "
            "put each class's images into a folder of its own and give the folder around them."
        )
    if len(names) == 1 and tables and not _class_folders(root / names[0]):
        raise DataError(f"{root} has the one folder {names[0]!r}; {_advice_for(tables[0])}.")
    _check_inside(root, names)


def _check_inside(root: Path, names: list[str]) -> None:
    """Refuse classes that all hold the same folders, unless those are splits, persons, or images with their masks."""
    subfolders = {name: {inner for inner in _class_folders(root / name) if not _is_person(inner)} for name in names}
    non_empty = [names_inside for names_inside in subfolders.values() if names_inside]
    if len(non_empty) < 2:
        return
    counts = Counter(class_name(inner) for names_inside in non_empty for inner in names_inside)
    shared = sorted(inner for inner, count in counts.items() if count > 1 and 2 * count >= len(non_empty))
    if not shared or all(set(name_words(inner)) <= _FILLERS | _MASKS | _SIDES for inner in shared):
        return
    if all(_published(root / name) for name in names if subfolders[name]):
        deeper = Counter(
            class_name(inner)
            for name in names
            for split in _published(root / name)
            for inner in set(_class_folders(root / name / split))
        )
        if not [inner for inner, count in deeper.items() if count > 1 and not _is_person(inner)]:
            return
        shared = sorted(deeper)
    elif len(shared) == 1 and len(counts) > 1:
        return
    raise DataError(
        f"every folder in {root} ({_listed(names)}) holds the same folders ({_listed(shared)}), so they "
        f"are hardly classes: give one of them, such as folder:{root / names[0]}, "
        "or make the classes the outer folders."
    )


def _split_words() -> frozenset[str]:
    return frozenset(_SPLIT_OF)


def _is_person(name: str) -> bool:
    words = name_words(name)
    return bool(words) and words[-1].isdigit()


def _class_folders(folder: Path) -> list[str]:
    return [name for name in folders(folder) if _holds_data(folder / name)]


def _listed(names: list[str]) -> str:
    shown = [printable(name) for name in names[:4]]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _add_classes(folder: Path, split: str, layout: Layout) -> None:
    """Take every folder as a class, except one of masks of the others' images."""
    names = folders(folder)
    masks = [name for name in names if len(names) > 2 and is_mask_folder(folder, name)]
    for name in names:
        # The classes again, as some archives have them.
        if len(set(folders(folder / name)) & (set(names) - {name})) > 1:
            layout.left_out[f"files in {printable(name)}, which holds the classes again"] += _files_below(
                folder / name, is_image
            )
            continue
        if name in masks:
            layout.masks.append((folder, folder / name))
            continue
        published = {} if split else _published(folder / name)
        for inner, inner_split in published.items():
            layout.places.append((folder / name / inner, class_name(name), inner_split))
        for inner in folders(folder / name) if published else []:
            if inner not in published:
                layout.left_out[f"images in {printable(inner)}, beside the train and test folders"] += _files_below(
                    folder / name / inner, is_image
                )
        if published:
            _count_loose(folder / name, layout)
        else:
            layout.places.append((folder / name, class_name(name), split))


def is_mask_folder(folder: Path, name: str) -> bool:
    """Whether a folder is named like masks and its files like the images in the folders beside it."""
    if not name_words(name) or not set(name_words(name)) <= _MASKS | _FILLERS or not set(name_words(name)) & _MASKS:
        return False
    own_stems = _stems(folder / name)
    other_stems = set().union(*(_stems(folder / other) for other in folders(folder) if other != name))
    return bool(own_stems) and 2 * len(own_stems & other_stems) >= len(own_stems)


def _stems(folder: Path) -> set[str]:
    return {
        re.sub(r"[ _\-](?:mask|seg|gt|segmentation)s?$", "", stem(name), flags=re.IGNORECASE)
        for _, _, files in os.walk(folder)
        for name in files
    }
