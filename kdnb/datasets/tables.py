"""Images named by a table: one row an image, with its label and, where they are known, its split, person and mask.

What the columns are called is guessed from the names that public sets use, or said:
``table:labels.csv:label=dx,person=off``. Images lie anywhere below the table's folder (or ``images=FOLDER``); they are
found by path, by name, or by name without ending. Everything in a table is text: classes called ``01``, ``none``,
``NaN`` or ``True`` keep their names.
"""

import csv
import io
import os
import re
import unicodedata
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kdnb.datasets import layouts
from kdnb.datasets.folders import Listing, check_classes, scan, sort
from kdnb.datasets.layouts import class_name, is_image, is_system, printable
from kdnb.datasets.masks import pair
from kdnb.errors import DataError
from kdnb.sources import parts, table

if TYPE_CHECKING:
    import pandas as pd

# Names of columns in the order in which they are believed, words joined by "_", in lower case.
_USUAL = {
    "image": (
        "image image_path image_file image_filename image_name filename file_name file filepath file_path path "
        "image_id image_index imageid img img_name img_path img_id picture scan dicom id_code mri_id isic_id name id"
    ),
    "label": (
        "label labels class classes class_name class_label diagnosis dx finding_labels finding_label finding target "
        "category level grade retinopathy_grade severity group cdr pathology disease benign_malignant y"
    ),
    "split": "split subset partition set phase usage data_split fold folds kfold",
    "person": (
        "person person_id patient_group patient patient_id subject subject_id participant participant_id pid case_id "
        "lesion_id"
    ),
    "mask": "mask mask_path mask_file mask_name mask_filename segmentation segmentation_path",
}
_NUMBERED = {"0": "train", "1": "val", "2": "test"}  # where all of a split column's values are these
_LISTED = re.compile(r"""\[\s*(['"]?)([^'",\[\]]*)\1\s*\]""")  # ['N'], one label as a list


def listing(dataset: str, place: Path) -> Listing:
    """The images of a data set: of its class folders, or of its table.

    Args:
        dataset: its name, as settings name it.
        place: the folder or the table where it lies.

    Returns:
        The images with all that is known of them before any is read.

    Raises:
        DataError: as :func:`kdnb.datasets.folders.scan` and :func:`read`.
    """
    kind, _, options = parts(dataset)
    if kind == "table":
        return read(place, options)
    source = table().get(kind, {})
    if "table" in source:
        return read(place / source["table"], source.get("columns", {}))
    return scan(place, options.get("test", ""))


def read(path: Path, options: dict[str, str] | None = None) -> Listing:
    """List the images that a table names.

    Args:
        path: the table, CSV (with any usual separator) or Parquet.
        options: ``image``, ``label``, ``split``, ``person``, ``mask``: a column's name, or ``"off"`` for none;
            ``test``: the value of the split column (a column of folds, say) that stands for the test set, all others
            for training; ``images``: the folder below which the images lie, relative to the table's.

    Returns:
        The images with all that the table says of them.

    Raises:
        DataError: no column for the images or the labels, values that are no splits, images that are not there or not
            one for a row.
    """
    options = dict(options or {})
    frame = _frame(path)
    root = path.parent
    image_folder, test = root / options.pop("images", ""), options.pop("test", "")
    if not image_folder.is_dir():
        raise DataError(
            f"{image_folder} is no folder: let images= name the folder below which the images of {path} lie."
        )
    columns = _columns(frame, options, path)
    left_out: Counter[str] = Counter()
    listed = Listing(left_out=left_out)
    others = [name for role, name in columns.items() if role != "label"]
    labels = _labels(frame.drop(columns=others), columns, path, left_out)
    splits = _splits(frame, columns.get("split"), path, test)
    if any(splits):
        _count(left_out, "rows without a split", splits.count(""))
        labels = [label if split else "" for label, split in zip(labels, splits, strict=True)]
    files = _Files(image_folder, root)
    rows = _rows(frame, columns, labels, splits, files, path, left_out)
    for file, row in rows.items():
        listed.files.append(file)
        listed.ids.append(printable(os.path.relpath(file, root)))
        listed.labels.append(labels[row])
        listed.split.append(splits[row])
    if "person" in columns:
        listed.persons = [frame[columns["person"]].iat[row] for row in rows.values()]
        listed.persons_from = f"the column {columns['person']!r} of {path.name}"
    if options.get("mask") != "off":
        listed.masks = _masks(frame, columns.get("mask"), files, rows, left_out)
    unnamed = len(files.images - set(rows) - {mask for masks in listed.masks for mask in masks})
    if unnamed:
        left_out["images that the table does not name or label"] += unnamed
    names = ", ".join(f"{role} {name!r}" for role, name in columns.items())
    listed.found_by = f"classes by the table {path.name} (columns: {names})"
    check_classes(listed, path)
    return sort(listed)


def _frame(path: Path) -> "pd.DataFrame":
    """The table as text, on one line and without blanks around it; what is missing is ``""``."""
    import pandas as pd  # here: processes that only decode images import this module too

    above = 0  # lines before the first row
    try:
        if path.suffix.lower() == ".parquet":
            stored = pd.read_parquet(path, dtype_backend="numpy_nullable")
            stored = (stored.reset_index() if stored.index.name else stored).map(_cell).astype("string").fillna("")
            names, rows = list(stored.columns), stored.to_numpy().tolist()
        else:
            text, separator, above = _from_first_line(_text(path.read_bytes()))
            names, *rows = list(csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)) or [[]]
    except DataError as error:
        raise DataError(f"{path} {error}: write them as files and name these in the table.") from None
    except ImportError as error:
        raise DataError(f"{path} needs a package that is not installed (pyarrow): save the table as CSV.") from error
    except Exception as error:  # parsers of damaged tables raise anything; all mean the same here
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:100]
        raise DataError(
            f"{path} cannot be read as a table ({reason or type(error).__name__}): save it as CSV."
        ) from error
    names, *rows = ([_plain(str(cell)) for cell in row] for row in (names, *rows))
    long = next((number for number, row in enumerate(rows, above + 2) if any(row[len(names) :])), 0)
    if long:
        raise DataError(
            f"{path} has more cells in its row {long} than its first row has names: "
            "put quotes around cells with a comma."
        )
    rows = [[*row, *[""] * len(names)][: len(names)] for row in rows if any(row)]
    if not rows:
        raise DataError(f"{path} has no rows: name a table with one row an image.")
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    return frame.loc[:, ~frame.columns.duplicated()]


def _cell(value: object) -> object:
    """A cell as it is; an image in place of its name, as data hubs store them, is refused."""
    if isinstance(value, dict) or (isinstance(value, bytes) and len(value) > 1000):
        raise DataError("holds the images themselves")
    return value


def _text(content: bytes) -> str:
    """A table's text: UTF-16 if it begins so, else UTF-8, else what older spreadsheets write."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _from_first_line(text: str) -> tuple[str, str, int]:
    """A table's text from its first row on.

    Args:
        text: the file's; spreadsheets put empty lines in front, or one that says what separates cells (``sep=;``).

    Returns:
        The rest of the text, what separates its cells, and how many lines lie before it.
    """
    text = re.sub(r"\r\n?", "\n", text)
    front = re.match(r'(?:[ \t,;|"]*\n)*(?:"?sep=(?P<said>[^\n"])"?[ ,;]*\n)?(?:[ \t,;|"]*\n)*', text, re.IGNORECASE)
    assert front is not None  # it may be empty
    rest = text[front.end() :]
    first = rest.split("\n", 1)[0]
    return rest, front["said"] or max(",\t;|", key=first.count), front[0].count("\n")


def _plain(text: str) -> str:
    """The same letters as one text: composed in one way (NFC), with single blanks between words and none around."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _name(name: str) -> str:
    """What the name of a file or folder is found by: the case of letters does not count, nor do blanks around it."""
    return _plain(name).casefold()


def _key(column: str) -> str:
    return "_".join(layouts.name_words(column))


def _columns(frame: "pd.DataFrame", options: dict[str, str], path: Path) -> dict[str, str]:
    """Role -> column: what was asked for, else the first usual name."""
    if any(map(_like_image, frame.columns)):
        raise DataError(f"{path} has no first line that names its columns: put one in front, such as image,label.")
    by_key = {_key(name): name for name in reversed(frame.columns) if (frame[name] != "").any()}
    columns: dict[str, str] = {}
    for role, wanted in options.items():
        if wanted == "off" and wanted not in frame.columns:
            continue
        name = wanted if wanted in frame.columns else by_key.get(_key(wanted))
        if name is None:
            raise DataError(
                f"{path} has no column {wanted!r}, only {_listed(frame.columns)}: "
                f"name one of them, as in {role}=COLUMN."
            )
        columns[role] = name
    for role, usual in _USUAL.items():
        free = [by_key[key] for key in usual.split() if key in by_key and by_key[key] not in columns.values()]
        if role not in options and free:
            columns[role] = free[0]
    if "image" not in columns:
        free = [name for name in frame.columns if name not in columns.values()]
        named = [name for name in free if frame[name].map(_like_image).mean() > 0.5]
        if len(named) != 1:
            problem = f"no column that is called like images ({_listed(frame.columns)})"
            if named:
                problem = f"several columns of images ({_listed(named)})"
            raise DataError(f"{path} has {problem}: name one, table:{path}:image=COLUMN.")
        columns["image"] = named[0]
    number = by_key.get("id")
    if (
        number
        and not {"person"} & {*columns, *options}
        and number not in columns.values()
        and 1 < frame[number].nunique() < len(frame)
    ):
        columns["person"] = number  # one that comes back is a person's, not an image's
    return {role: columns[role] for role in _USUAL if role in columns}


def _like_image(value: str) -> bool:
    return value.lower().endswith((*layouts.SUFFIXES, *layouts.NIFTI))


def _listed(names: "list[str] | pd.Index") -> str:
    return ", ".join(str(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _labels(frame: "pd.DataFrame", columns: dict[str, str], path: Path, left_out: Counter[str]) -> list[str]:
    """The class of each row; ``""`` where there is none, or several."""
    if "label" not in columns:
        return _one_hot(frame, columns, path, left_out)
    labels = [_LISTED.sub(r"\2", value) for value in frame[columns["label"]]]
    several = [bool(re.search(r"\||\[.*,.*\]", value)) for value in labels]
    _count(left_out, "rows with several labels", sum(several))
    _count(left_out, "rows without a label", labels.count(""))
    return ["" if ambiguous else class_name(value) for value, ambiguous in zip(labels, several, strict=True)]


def _one_hot(frame: "pd.DataFrame", columns: dict[str, str], path: Path, left_out: Counter[str]) -> list[str]:
    """Labels from columns of 0 and 1, one a class; they are put into ``columns`` for the reader to see."""
    flags = {"0", "1", "0.0", "1.0"}
    ones = frame.loc[:, [set(frame[name]) <= flags and frame[name].nunique() > 1 for name in frame.columns]]
    if ones.shape[1] < 2:
        raise DataError(
            f"{path} has no column that is called like a label (the others are {_listed(frame.columns)}): name it, "
            f"table:{path}:label=COLUMN."
        )
    columns["label"] = " ".join(ones.columns)
    marked = ones.isin(["1", "1.0"])
    _count(left_out, "rows with several labels", int((marked.sum(axis=1) > 1).sum()))
    _count(left_out, "rows without a label", int((marked.sum(axis=1) == 0).sum()))
    return [
        class_name(name) if count == 1 else ""
        for name, count in zip(marked.idxmax(axis=1), marked.sum(axis=1), strict=True)
    ]


def _count(left_out: Counter[str], kind: str, count: int) -> None:
    if count:
        left_out[kind] += count


def _splits(frame: "pd.DataFrame", column: str | None, path: Path, test: str) -> list[str]:
    """The published split of each row.

    Args:
        frame: the table.
        column: the column of splits or folds, if there is one.
        path: where the table lies.
        test: the value that stands for the test set, or ``""``.

    Returns:
        ``"train"``, ``"val"`` or ``"test"`` for each row, ``""`` where there is none.

    Raises:
        DataError: values that are no splits.
    """
    if column is None and not test:
        return [""] * len(frame)
    if column is None:
        raise DataError(f"{path} has no column of folds, so {test!r} cannot be the test set: name it, split=COLUMN.")
    values = set(frame[column]) - {""}
    if test:
        if test not in values:
            raise DataError(
                f"column {column!r} of {path} has no {test!r}, only {_listed(sorted(values))}: "
                "name one of these, test=VALUE."
            )
        return ["test" if value == test else value and "train" for value in frame[column]]
    split_of = {value: layouts.split_of(value)[0] for value in values} | {"": ""}
    if _key(column) in ("fold", "folds", "kfold") and values and not any(split_of.values()):
        raise DataError(
            f"{path} has folds in its column {column!r}: add test={min(values)} to say which tests, or split=off, "
            "behind its path."
        )
    if values == set(_NUMBERED):
        split_of |= _NUMBERED
    elif set(map(str.casefold, values)) == {"training", "publictest", "privatetest"}:
        kaggle = {"training": "train", "publictest": "val", "privatetest": "test"}
        split_of |= {value: kaggle[value.casefold()] for value in values}
    unknown = sorted(value for value in values if not split_of[value])
    if unknown or "train" not in split_of.values():
        problem = f"{unknown[0]!r}, which is no split" if unknown else "no training rows"
        raise DataError(
            f"column {column!r} of {path} has {problem}: name train, val and test there, or add split=off or, "
            "for the value that tests, test=VALUE behind the table's path."
        )
    return [split_of[value] for value in frame[column]]


class _Files:
    """The images below a folder, found by path, by name and by name without ending, whatever the case of letters."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root  # where the table lies, which paths of masks may be relative to
        self._inside: dict[Path, dict[str, Path]] = {}  # folder of masks -> its files by name
        self.images: set[Path] = set()
        self._masks: list[Path] = []
        self._mask_folders: list[tuple[Path, Path]] = []
        self._named: dict[str, list[Path]] = defaultdict(list)
        visited: set[str] = set()
        for place, folders, names in os.walk(folder, followlinks=True):
            if os.path.realpath(place) in visited:  # a loop of links ends
                folders.clear()
                continue
            visited.add(os.path.realpath(place))
            folders[:] = sorted(name for name in folders if not is_system(name))
            masks = {name for name in folders if layouts.is_mask_folder(Path(place), name)}
            self._mask_folders += [(Path(place), Path(place, name)) for name in sorted(masks)]
            folders[:] = [name for name in folders if name not in masks]
            stems = {layouts.stem(name) for name in names}
            for name in sorted(names):
                path = Path(place, name)
                if is_system(name) or not is_image(path):
                    continue
                if layouts.masked(name, stems):
                    self._masks.append(path)
                else:
                    self.images.add(path)
                    for key in {_name(name), _name(layouts.stem(name))}:
                        self._named[key].append(path)

    def masks(self, images: list[Path]) -> list[list[Path]]:
        """The masks that lie beside the images, as in folders."""
        return pair(images, self._masks, self._mask_folders)[0]

    def mask(self, value: str, image: Path) -> Path | None:
        """The mask of an image that a cell names.

        Args:
            value: the cell: a path from the images' folder, the table's or the image's own, or a name among the masks
                that lie beside the images.
            image: whose mask it is; never its own mask, though a folder of masks may use the same names.

        Returns:
            Its path, or ``None``.
        """
        value = value.replace("\\", "/")
        named = self._masks_named.get(_name(Path(value).name), [])
        for mask in (
            self._file(self.folder / value),
            self._file(self.root / value),
            named[0] if len(named) == 1 else None,
            self._file(image.parent / value),
        ):
            if mask and os.path.normpath(mask) != os.path.normpath(image):
                return mask
        return None

    def _file(self, path: Path) -> Path | None:
        """The file of a path, or the one beside it whose name differs by case, blanks or composed letters."""
        if path.is_file():
            return path
        if path.parent not in self._inside:
            names = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
            self._inside[path.parent] = {_name(name): path.parent / name for name in names}
        return self._inside[path.parent].get(_name(path.name))

    @cached_property
    def _masks_named(self) -> dict[str, list[Path]]:
        """Name, with its ending and without -> the masks that lie beside the images; each folder is read once."""
        named: dict[str, list[Path]] = defaultdict(list)
        inside = (mask for _, folder in self._mask_folders for mask in sorted(folder.rglob("*")))
        for mask in (*self._masks, *inside):
            for name in {_name(mask.name), _name(layouts.stem(mask.name))}:
                named[name].append(mask)
        return dict(named)

    def find(self, value: str, label: str = "", split: str = "") -> list[Path]:
        """Every image that a cell may name.

        Args:
            value: the cell: a path, a name, or a name without ending.
            label: the row's class; of several images, those in a folder called like it are meant ...
            split: ... or else those in a folder called like the row's split.

        Returns:
            Paths, none or one or several.
        """
        value = value if "/" in value else value.replace("\\", "/")
        direct = self.folder / value
        if value and os.path.isfile(direct) and is_image(direct):
            return [Path(os.path.normpath(direct))]
        named = [_name(part) for part in value.split("/") if part not in ("", ".", "..")]
        images = self._named.get(named[-1], []) if named else []
        for fits in (
            lambda path: [_name(part) for part in path.relative_to(self.folder).parts[:-1]] == named[:-1],
            lambda path: [_name(part) for part in path.parts[-len(named) : -1]] == named[:-1],
            lambda path: label in (class_name(_plain(part)) for part in path.relative_to(self.folder).parts[:-1]),
            lambda path: split in (layouts.split_of(part)[0] for part in path.relative_to(self.folder).parts[:-1]),
        ):
            images = images if len(images) < 2 else [path for path in images if fits(path)] or images
        return images


def _masks(
    frame: "pd.DataFrame", column: str | None, files: _Files, rows: dict[Path, int], left_out: Counter
) -> list[list[Path]]:
    """The masks of each image, from a column or beside the images.

    Args:
        frame: the table.
        column: the column of masks, several of an image joined by a bar; ``None``: they lie beside the images.
        files: what lies below the folder.
        rows: image -> its row.
        left_out: counts, in place, the masks that are not there.

    Returns:
        The paths of each image's masks; empty if no image has one.
    """
    if column is None:
        masks = files.masks(list(rows))
    else:
        masks, missing = [], []
        for image, row in rows.items():
            names = [name.strip() for name in frame[column].iat[row].split("|") if name.strip()]
            found = {name: files.mask(name, image) for name in names}
            missing += [name for name in names if not found[name]]
            masks.append([path for path in found.values() if path])
        if missing:
            places = " and ".join(
                dict.fromkeys(printable(folder.absolute().name) for folder in (files.folder, files.root))
            )
            example = f"such as {printable(missing[0])}, looked for from {places} and beside the images"
            _count(left_out, f"masks that are not there, {example}", len(missing))
    return masks if any(masks) else []


def _rows(
    frame: "pd.DataFrame",
    columns: dict[str, str],
    labels: list[str],
    splits: list[str],
    files: _Files,
    path: Path,
    left_out: Counter[str],
) -> dict[Path, int]:
    """Image -> its row; images that are missing, or in rows that contradict each other, are counted."""
    rows: dict[Path, int] = {}
    doubtful, missing = set(), []
    split_of_table = layouts.split_of(path.stem)[0]  # train.csv speaks of the images in train_images
    for row, value in enumerate(frame[columns["image"]]):
        if not labels[row]:
            continue
        images = files.find(value, labels[row], splits[row] or split_of_table)
        if len(images) > 1:
            places = _listed([str(image.parent) for image in images])
            raise DataError(
                f"{value!r} in {path} may be an image in {places}: add images=FOLDER behind the table's path."
            )
        if not images:
            missing.append(value)
        elif labels[rows.setdefault(images[0], row)] != labels[row] or splits[rows[images[0]]] != splits[row]:
            doubtful.add(images[0])
    if missing and not rows:
        if ending := layouts.refused_format(missing[0]):
            raise DataError(
                f"{path} names {ending} files, which are not read: convert them to one of {layouts.formats_read()}."
            )
        raise DataError(
            f"{path} names images in its column {columns['image']!r}, but not one is below {files.folder} "
            f"({missing[0][:80]!r} is not): "
            "put them there, or name another column, image=COLUMN, or folder, images=FOLDER."
        )
    _count(left_out, "images whose rows contradict each other", len(doubtful))
    if len(rows) == len(doubtful):
        raise DataError(
            f"{path} has no image with one label ({_listed(sorted(left_out))}): name another column, label=COLUMN."
        )
    if missing:
        _count(left_out, f"rows whose image is not there, such as {printable(missing[0])}", len(missing))
    return {file: row for file, row in rows.items() if file not in doubtful}
