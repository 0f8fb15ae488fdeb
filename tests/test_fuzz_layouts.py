"""Folders and tables that nobody thought of: understood with nothing lost, or refused in one sentence;
never a traceback, never a guess."""

import csv
import io
import os
import tempfile
import unicodedata
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdnb.datasets.folders import Listing, scan
from kdnb.datasets.layouts import is_image, is_system
from kdnb.datasets.tables import read
from kdnb.errors import DataError

BOUNDED = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split())


FOLDERS = words(
    "train test val Training Testing train_images test_images valid fold_1 fold_2 images images_001 images_002 "
    "masks labels cat dog all none 0 01 NaN patient_1 patient_2 sub-01 left right augmented original "
    "classification_task segmentation_task @eaDir .hidden __MACOSX "
    "K\u00e9ratite Ke\u0301ratite data unknown"
)
FILES = words(
    "img_0.png img_1.png img_2.JPG scan.dcm a_mask.png img_0_mask.png img_1_mask_1.png Thumbs.db notes.txt a.heic "
    "v.nii.gz b.npy labels.csv train.csv .DS_Store 1_left.png 1_right.png x.tar.gz"
)
TREES = st.recursive(
    st.dictionaries(FILES, st.none(), max_size=4),
    lambda inside: st.dictionaries(FOLDERS, inside, max_size=4) | st.dictionaries(FILES, st.none(), max_size=3),
    max_leaves=14,
)
IMAGES = st.dictionaries(FILES, st.none(), min_size=1, max_size=4).map(lambda files: files | {"z.png": None})
CLASSES = st.fixed_dictionaries(
    {"cat": IMAGES, "dog": IMAGES}, optional={"masks": IMAGES, "@eaDir": IMAGES, "a.png": st.none()}
)
SPLITS = st.fixed_dictionaries(
    {"train": CLASSES},
    optional={
        "test": CLASSES | IMAGES,
        "val": CLASSES,
        "test_images": IMAGES,
        "masks": CLASSES,
        "labels.csv": st.none(),
    },
)


def plant(folder: Path, tree: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, inside in tree.items():
        if inside is None:
            (folder / name).write_bytes(b"x")
        else:
            plant(folder / name, inside)


def one_sentence(error: DataError) -> bool:
    message = str(error)
    return message.endswith(".") and "\n" not in message and "Traceback" not in message


def check(found: Listing, root: Path) -> None:
    assert len(found.files) == len(found.ids) == len(found.labels) == len(found.split) == len(set(found.ids))
    assert found.ids == sorted(found.ids) and all(path.is_file() for path in found.files)
    assert len(set(found.labels)) >= 2 and all(isinstance(label, str) and label for label in found.labels)
    assert all(unicodedata.is_normalized("NFC", label) for label in found.labels)
    for split in set(found.split):
        assert {label for label, s in zip(found.labels, found.split, strict=True) if s == split} == set(found.labels), (
            "the same classes"
        )
    assert not found.masks or len(found.masks) == len(found.files)
    assert not {path for masks in found.masks for path in masks} & set(found.files), "a mask is no sample"
    assert not any(is_system(part) for path in found.files for part in path.relative_to(root).parts)
    assert "\n" not in found.understood()


@given(TREES | CLASSES | SPLITS | st.dictionaries(FOLDERS, CLASSES | SPLITS, min_size=1, max_size=3))
@BOUNDED
def test_a_folder_is_understood_with_nothing_lost_or_refused(tree):
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "set"
        plant(root, tree)
        try:
            listing = scan(root)
        except DataError as error:
            assert one_sentence(error), error
            return
        check(listing, root)
        assert scan(root) == listing, "the same again"
        images_on_disk = 0
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if not is_system(name)]
            images_on_disk += sum(is_image(Path(folder, name)) and not is_system(name) for name in names)
        masks = {path for of_image in listing.masks for path in of_image}
        counted = len(listing.files) + len(masks) + sum(listing.left_out.values())
        assert images_on_disk <= counted, (images_on_disk, listing)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=6) | st.sampled_from(
    [
        "0",
        "01",
        "1.0",
        "none",
        "NaN",
        "True",
        "all",
        "null",
        "N/A",
        "-1",
        "1e3",
        "Kératite",
        "Ke\u0301ratite",
        "a b",
        'say "x"',
        "a,b",
        "a;b",
        "#1",
        "=1",
    ]
)


@st.composite
def tables(draw) -> tuple[bytes, list[str], list[str]]:
    """A table of six images of two classes as a program might write it, and what it says."""
    classes = draw(st.lists(WORDS.map(clean).filter(usable), min_size=2, max_size=2, unique=True))
    labels = [classes[k % 2] for k in range(6)]
    images = [
        f"{folder}i{k}x{ending}"
        for k, (folder, ending) in enumerate(
            [(draw(st.sampled_from(["", "img/", "./img/", "/gone/img/"])), draw(st.sampled_from(["", ".png"])))] * 6
        )
    ]
    columns = {
        draw(st.sampled_from(["image", "Image ID", "filename", "id_code", "file_path"])): images,
        draw(st.sampled_from(["label", "Class", "diagnosis", "dx"])): labels,
    }
    if draw(st.booleans()):
        columns["age"] = [str(30 + k) for k in range(6)]
    if draw(st.booleans()):
        columns["split"] = ["train"] * 4 + ["test"] * 2
    names = draw(st.permutations(list(columns)))
    mark = draw(st.sampled_from(",;\t"))
    out = io.StringIO()
    writer = csv.writer(
        out,
        delimiter=mark,
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    )
    writer.writerow(names)
    for row in draw(st.permutations(range(6))):
        writer.writerow([columns[name][row] for name in names])
    return (
        out.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))),
        labels,
        columns.get("split", [""] * 6),
    )


def clean(label: str) -> str:
    return unicodedata.normalize("NFC", label.strip())


def usable(label: str) -> bool:
    """Not several labels in one cell, and no text that a table cannot hold."""
    return bool(label) and "|" not in label and "[" not in label and label.isprintable()


@given(tables())
@BOUNDED
def test_a_table_says_what_its_writer_wrote(written):
    content, labels, split = written
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "img").mkdir()
        for k in range(6):
            (Path(place) / "img" / f"i{k}x.png").write_bytes(b"x")
        table = Path(place) / "t.csv"
        table.write_bytes(content)
        listing = read(table)
        check(listing, Path(place))
        assert (
            listing.ids == [f"img/i{k}x.png" for k in range(6)] and listing.labels == labels and listing.split == split
        )


CELLS = st.sampled_from(
    [
        "i0x.png",
        "i1x",
        "img/i2x.png",
        "a",
        "b",
        "a|b",
        "",
        "train",
        "test",
        "0",
        "1",
        "nan",
        '"',
        "'",
        "\\",
        "../..",
        "/",
        "é",
        "\x00",
        "i0x.png,a",
    ]
)


@given(
    st.lists(
        st.sampled_from(["image", "label", "split", "person", "mask", "id", "x", "", "fold", "N", "M"]), max_size=5
    ),
    st.lists(st.lists(CELLS, max_size=6), max_size=8),
    st.sampled_from(",;\t|"),
)
@BOUNDED
def test_no_table_is_a_traceback(names, rows, mark):
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "img").mkdir()
        for k in range(3):
            (Path(place) / "img" / f"i{k}x.png").write_bytes(b"x")
        table = Path(place) / "t.csv"
        table.write_text("\n".join(mark.join(row) for row in (names, *rows)), encoding="utf-8")
        try:
            listing = read(table)
        except DataError as error:
            assert one_sentence(error), error
            return
        check(listing, Path(place))


@given(st.binary(max_size=200))
@BOUNDED
def test_bytes_that_are_no_table_are_a_sentence(content):
    with tempfile.TemporaryDirectory() as place:
        table = Path(place) / "t.csv"
        table.write_bytes(content)
        try:
            read(table)
        except DataError as error:
            assert one_sentence(error), error
        else:
            raise AssertionError("there is no image")
