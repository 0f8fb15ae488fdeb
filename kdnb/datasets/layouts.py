"""Understand how a folder of images is laid out, or refuse it in one sentence that names the folder or table to give.

What is understood: class folders, alone or inside folders named like train, validation and test (``train_data``, ``Train Images``,
``valid``), or with such folders inside each class, or in folds of which one is said to test; around them any number of wrappers. Masks
beside images are the truth of these. Whatever else is no sample (folders that systems leave, a test set without labels) is left out and
counted. Everything else that public sets look like would make classes of things that are none (tasks, parts, patients, an augmented
copy, the two columns of a segmentation set) and is refused.
"""

import os
import re
import unicodedata
from collections import Counter
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
    "@eadir #recycle @recycle #snapshot $recycle.bin recycler recycled system_volume_information __macosx lost+found found.000 "
    "thumbnails .thumbnails @recently-snapshot __pycache__ lost.dir"
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".parquet", ".ods")
REFUSED = (".mat", ".npy", ".npz", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".mha", ".mhd", ".nrrd", ".h5", ".hdf5")
REFUSED += (
    ".svs",
    ".ndpi",
    ".mrxs",
    ".czi",
    ".tfrecord",
    ".tfrecords",
    ".pkl",
    ".pickle",
    ".pt",
    ".parquet",
    ".zip",
    ".rar",
    ".7z",
    ".gz",
)
_MASK_NAME = re.compile(
    r"(.+?)[ _\-.]+(?:mask|seg|segmentation|gt|groundtruth|ground_truth|annotation)s?(?:[ _\-]?\(?\d+\)?)?", re.I
)


@dataclass
class Layout:
    """How a folder was understood.

    Attributes:
        places: (folder, class name, split as published or ``""``) of every class folder. left_out: what is no sample -> how many files.
        skipped: folder -> reason. masks: (folder below which the images lie, folder of their masks).
        tables: that lie beside the class folders, and are not read. tables_inside: that lie in class folders, and are not read.
    """

    places: list[tuple[Path, str, str]] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    masks: list[tuple[Path, Path]] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    tables_inside: list[Path] = field(default_factory=list)


def understand(folder: Path, test: str = "") -> Layout:
    """Find the class folders below ``folder``; ``test``: of published folds the one that is the test set.

    Raises:
        DataError: the folder cannot be read, or holds something else than class folders; one sentence names what to give instead.
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
        _check_names(root, layout)
        _add_classes(root, "", layout)
    _count_loose(root, layout)
    layout.tables = _tables(*dict.fromkeys([folder, root, *(place.parent for place, _, _ in layout.places)]))
    layout.tables_inside = _tables(*(place for place, _, _ in layout.places))
    return layout


def _folds(root: Path) -> list[str]:
    """The folders of published folds, each with all classes; empty if they are something else."""
    names = [name for name in folders(root) if _holds(root / name)]
    folds = len(names) > 1 and all(
        _within(name, _FOLDS, _FILLERS, frozenset(_SPLIT_OF), numbered=True) for name in names
    )
    return names if folds and not any(_published(root / name) for name in names) else []


def printable(path: str) -> str:
    """A path as text that any file can hold; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def class_name(folder: str) -> str:
    """The class that a folder's name stands for: the same letters are one name, whichever system composed them (NFC)."""
    return unicodedata.normalize("NFC", printable(folder))


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden or one that a system leaves behind: never anybody's image."""
    low = name.casefold()
    return low.startswith((".", "__macosx")) or low in _SYSTEM_FILES or low.replace(" ", "_") in _SYSTEM_FOLDERS


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
    """Whether ``x_mask.png`` lies beside an ``x`` of the folder's ``stems``: then it is the truth of that image, no sample."""
    return mask_of(name) in stems


def stem(name: str) -> str:
    """A file's name without its ending, be it ``.nii.gz``."""
    return name[:-7] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[0]


def mask_of(name: str) -> str:
    """The name, without ending, of the image that a mask is called after (``x`` for ``x_mask_1.png``), or ``""``."""
    found = _MASK_NAME.fullmatch(stem(name))
    return found[1] if found else ""


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
    """``TrainImages_02`` as ``("train", "images", "02")``."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", printable(name)))
    return tuple(re.findall(r"[^\W\d_]+|\d+", text.casefold()))


def _within(name: str, *kinds: frozenset, numbered: bool = False) -> bool:
    """Whether a name has a word of the first kind and besides only words of all kinds (and, if ``numbered``, needs a number)."""
    words = name_words(name)
    letters = [word for word in words if not word.isdigit()]
    return (
        bool(set(letters) & kinds[0])
        and set(letters) <= frozenset().union(*kinds)
        and (not numbered or len(letters) < len(words))
        and (numbered or len(letters) == len(words))
    )


def _files_below(folder: Path, wanted, most: int = 0) -> int:
    """How many files below ``folder`` are ``wanted(path)``; counting ends at ``most``."""
    count = 0
    for place, inside, files in os.walk(folder):
        inside[:] = [name for name in inside if not is_system(name)]
        for name in files:
            count += not is_system(name) and bool(wanted(Path(place, name)))
            if most and count >= most:
                return count
    return count


def _holds(folder: Path) -> bool:
    """Whether something below looks like data: an image, a link to a folder, or a format that is not read."""
    if any(os.path.islink(folder / name) for name in folders(folder)):
        return True
    return bool(_files_below(folder, lambda path: is_image(path) or refused_format(path.name), 1))


def _descend(folder: Path, layout: Layout) -> Path:
    """Step through folders that hold only one other folder with images, as archives unpack."""
    seen = set()
    while os.path.realpath(folder) not in seen:
        seen.add(os.path.realpath(folder))
        inside = folders(folder)
        full = inside if len(inside) < 2 else [name for name in inside if _holds(folder / name)]
        if len(full) != 1 or not folders(folder / full[0]):
            break
        if len(inside) > 1 and not (len(folders(folder / full[0])) > 1 and _files_below(folder / full[0], is_image, 1)):
            break
        _count_loose(folder, layout)
        folder = folder / full[0]
    return folder


def _beside_masks(folder: Path, layout: Layout) -> Path:
    """The folder of class folders beside a folder of their masks, which is noted; else the folder itself."""
    inside = folders(folder)
    masks = [name for name in inside if len(inside) > 1 and is_mask_folder(folder, name)]
    rest = [name for name in inside if name not in masks]
    if not masks or len(rest) != 1 or not set(name_words(rest[0])) <= _FILLERS or len(folders(folder / rest[0])) < 2:
        return folder
    layout.masks += [(folder, folder / name) for name in masks]
    _count_loose(folder, layout)
    return folder / rest[0]


def _count_loose(folder: Path, layout: Layout) -> None:
    loose = sum(
        not is_folder and not is_system(name) and is_image(folder / name) for name, is_folder in _entries(folder)
    )
    if loose:
        layout.left_out["images outside class folders"] += loose
    for name, is_folder in _entries(folder):
        if is_folder and is_system(name):
            count_system(folder / name, layout.left_out)


def count_system(folder: Path, left_out: Counter) -> None:
    """Count the files in a folder that a system left."""
    count = sum(len(files) for _, _, files in os.walk(folder))
    if count:
        left_out[f"files in system folders ({printable(folder.name)})"] += count


def split_of(name: str) -> tuple[str, tuple[str, ...]]:
    """The split that a folder's name says, and the words that are left: ``("train", ())`` for ``Train Images``."""
    words = name_words(name)
    said = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
    rest = tuple(word for word in words if word not in _SPLIT_OF and word not in _FILLERS)
    return (said[0], rest) if len(set(said)) == 1 else ("", rest)


def _published(root: Path) -> dict[str, str]:
    """Folder -> split, for folders of a published split; empty if there is no training folder among them."""
    said = {name: split_of(name) for name in folders(root)}
    tails = sorted({rest for split, rest in said.values() if split == "train"}, key=lambda rest: (len(rest), rest))
    for tail in tails:  # plain "train" first, then what all have in common: "seg_train" and "seg_test"
        named = {name: split for name, (split, rest) in said.items() if split and rest == tail}
        if not tail or len(set(named.values())) > 1:
            return named
    return {}


def _tables(*places: Path) -> list[Path]:
    """Tables in the folders, the most telling first."""
    found = [
        place / name
        for place in places
        for name, is_folder in _entries(place)
        if not is_folder and name.lower().endswith(_TABLES)
    ]
    found = [path for path in found if not is_system(path.name) and "submission" not in path.name.lower()]
    return sorted(
        found, key=lambda path: ("train" not in path.name.lower(), "label" not in path.name.lower(), path.name)
    )


def _sort_by(table: Path) -> str:
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
    known: set[str] = set()
    for name, split in sorted(splits.items(), key=lambda item: item[1] != "train"):
        folder = root / name
        while len(inside := folders(folder)) == 1 and folders(folder / inside[0]):
            folder = folder / inside[0]
        folder = _beside_masks(folder, layout)
        inside = folders(folder)
        images = _files_below(folder, is_image)
        classes = {class_name(label) for label in inside}
        unnamed = len(inside) == 1 and classes.isdisjoint(known) and set(name_words(inside[0])) <= _NO_LABEL
        if split == "train":
            if not inside and (images or _holds(folder)):
                tables = _tables(root, folder)
                cure = _sort_by(tables[0]) if tables else "put each class's images into a folder of its own"
                raise DataError(f"{folder} has images but no class folders; {cure}.")
            _check_names(folder, layout)
            known |= classes
        elif images and (not inside or unnamed):
            layout.left_out[f"unlabelled images in {printable(name)}"] += images
            continue
        _add_classes(folder, split, layout)
        _count_loose(folder, layout)


def _check_names(root: Path, layout: Layout) -> None:
    """Refuse folders whose names or contents say that they are no classes."""
    names = [name for name in folders(root) if _holds(root / name)]
    tables = _tables(root)
    if not names:
        loose = sum(
            is_image(root / name) for name, is_folder in _entries(root) if not is_folder and not is_system(name)
        )
        if loose and tables:
            raise DataError(f"{root} has images but no class folders; {_sort_by(tables[0])}.")
        return
    for name in names:
        if set(name_words(name)) & _AUGMENTED:
            base = tuple(word for word in name_words(name) if word not in _AUGMENTED | _FILLERS)
            for other in names:
                plain = tuple(word for word in name_words(other) if word not in _ORIGINAL | _FILLERS)
                alike = set(folders(root / name)) & set(folders(root / other))
                if other != name and not set(name_words(other)) & _AUGMENTED and (plain == base or alike):
                    raise DataError(
                        f"{root} has {name!r}, an augmented copy, beside {other!r}: give the originals, folder:{root / other}, for a copy "
                        "must never be on another side of the split than its original."
                    )
    first = root / names[0]
    if all(_within(name, _FOLDS, _FILLERS, _split_words(), numbered=True) for name in names):
        cure = (
            f"say which tests, as folder:{root}:test={names[0]}"
            if _folds(root)
            else f"give one of them, such as folder:{first}"
        )
        raise DataError(f"{root} has the folds {_listed(names)}, which are no classes: {cure}.")
    if any("task" in name_words(name) or "tasks" in name_words(name) for name in names) or all(
        set(name_words(name)) & _TASKS for name in names
    ):
        best = next(
            (name for name in names if {"classification", "classify", "class"} & set(name_words(name))), names[0]
        )
        raise DataError(
            f"{root} has several tasks ({_listed(names)}), which are no classes: give one, such as folder:{root / best}."
        )
    if all(_within(name, _PERSONS, _FILLERS, numbered=True) or re.fullmatch(r"\d{3,}", name) for name in names):
        cure = (
            _sort_by(tables[0]) if tables else "make the classes the outer folders, as in benign/patient_07/image.png"
        )
        raise DataError(
            f"{root} has folders that are persons or running numbers ({_listed(names)}), no classes; {cure}."
        )
    roles = [name for name in names if set(name_words(name)) <= _FILLERS | _MASKS | set(_SPLIT_OF)]
    parts = [name for name in names if _within(name, _FILLERS | _PARTS, _split_words(), numbered=True)]
    if len(roles) + len(parts) == len(names):
        plain = next(
            (name for name in roles if set(name_words(name)) <= _FILLERS and len(folders(root / name)) > 1), ""
        )
        if plain:
            raise DataError(f"{root} has folders that are no classes ({_listed(names)}): give folder:{root / plain}.")
        if tables:
            raise DataError(f"{root} has folders that are no classes ({_listed(names)}); {_sort_by(tables[0])}.")
        raise DataError(
            f"{root} has no class folders with images in them, only {_listed(names)}: put each class's images into a folder of its own "
            "and give the folder around them."
        )
    if len(names) == 1 and tables and not _class_folders(root / names[0]):
        raise DataError(f"{root} has the one folder {names[0]!r}; {_sort_by(tables[0])}.")
    _check_inside(root, names)


def _check_inside(root: Path, names: list[str]) -> None:
    """Refuse classes that all hold the same folders, unless those are splits, persons, or images with their masks."""
    inside = {name: {sub for sub in _class_folders(root / name) if not _is_person(sub)} for name in names}
    held = [subs for subs in inside.values() if subs]
    if len(held) < 2:
        return
    counts = Counter(class_name(sub) for subs in held for sub in subs)
    shared = sorted(sub for sub, count in counts.items() if count > 1 and 2 * count >= len(held))
    if not shared or all(set(name_words(sub)) <= _FILLERS | _MASKS | _SIDES for sub in shared):
        return
    if all(_published(root / name) for name in names if inside[name]):
        deeper = Counter(
            class_name(sub)
            for name in names
            for split in _published(root / name)
            for sub in set(_class_folders(root / name / split))
        )
        if not [sub for sub, count in deeper.items() if count > 1 and not _is_person(sub)]:
            return
        shared = sorted(deeper)
    elif len(shared) == 1 and len(counts) > 1:
        return
    raise DataError(
        f"every folder in {root} ({_listed(names)}) holds the same folders ({_listed(shared)}), so they are hardly classes: give one of "
        f"them, such as folder:{root / names[0]}, or make the classes the outer folders."
    )


def _split_words() -> frozenset:
    return frozenset(_SPLIT_OF)


def _is_person(name: str) -> bool:
    words = name_words(name)
    return bool(words) and words[-1].isdigit()


def _class_folders(folder: Path) -> list[str]:
    return [name for name in folders(folder) if _holds(folder / name)]


def _listed(names: list[str]) -> str:
    shown = [printable(name) for name in names[:4]]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _add_classes(folder: Path, split: str, layout: Layout) -> None:
    """Take every folder as a class, except one of masks of the others' images."""
    names = folders(folder)
    masks = [name for name in names if len(names) > 2 and is_mask_folder(folder, name)]
    for name in names:
        if (
            len(set(folders(folder / name)) & (set(names) - {name})) > 1
        ):  # the classes again, as some archives have them
            layout.left_out[f"files in {printable(name)}, which holds the classes again"] += _files_below(
                folder / name, is_image
            )
            continue
        if name in masks:
            layout.masks.append((folder, folder / name))
            continue
        within = {} if split else _published(folder / name)
        for sub, part in within.items():
            layout.places.append((folder / name / sub, class_name(name), part))
        for sub in folders(folder / name) if within else []:
            if sub not in within:
                layout.left_out[f"images in {printable(sub)}, beside the train and test folders"] += _files_below(
                    folder / name / sub, is_image
                )
        if within:
            _count_loose(folder / name, layout)
        else:
            layout.places.append((folder / name, class_name(name), split))


def is_mask_folder(folder: Path, name: str) -> bool:
    """Whether a folder is named like masks and its files like the images in the folders beside it."""
    if not name_words(name) or not set(name_words(name)) <= _MASKS | _FILLERS or not set(name_words(name)) & _MASKS:
        return False
    own = _stems(folder / name)
    others = set().union(*(_stems(folder / other) for other in folders(folder) if other != name))
    return bool(own) and 2 * len(own & others) >= len(own)


def _stems(folder: Path) -> set[str]:
    return {
        re.sub(r"[ _\-](?:mask|seg|gt|segmentation)s?$", "", stem(name), flags=re.I)
        for _, _, files in os.walk(folder)
        for name in files
    }
