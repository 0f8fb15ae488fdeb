"""Folders as public sets have them: each is understood as its authors meant it,
or refused with what to give instead."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from dicoms import dicom
from PIL import Image

from kdnb.datasets import cache, describe, fetch, load
from kdnb.datasets.folders import scan
from kdnb.datasets.groups import persons_by_name
from kdnb.errors import DataError
from kdnb.sources import parts


def put(root: Path, *places: str, count: int = 2, name: str = "img_{}.png") -> None:
    """Small images of noise, ``count`` in every place, no two alike."""
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            seed = [*f"{place}/{k}".encode()]
            Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(
                root / place / name.format(k)
            )


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"id,label\nimg_0,cat\n")


def pairs(*outer: str, inner: tuple[str, ...] = ("cat", "dog")) -> list[str]:
    return [f"{first}/{second}" for first in outer for second in inner]


SPLITS = {  # folders of train, val and test
    "data": ("train_data", "valid_data", "test_data"),
    "images": ("Train Images", "Validation Images", "Test Images"),
    "camel": ("TrainSet", "ValSet", "TestSet"),
    "one word": ("trainimages", "valimages", "testimages"),
    "dashes": ("training-data", "validation-data", "testing-data"),
    "capitals": ("TRAIN", "VALID", "TEST"),
    "reversed": ("data_train", "data_val", "data_test"),
    "name of the set in front": ("kvasir_train", "kvasir_val", "kvasir_test"),
    "year behind": ("train2017", "val2017", "test2017"),
    "split first": ("split_train", "split_val", "split_test"),
    "doubled": ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
    "wrapped": ("archive/My Data/train", "archive/My Data/dev", "archive/My Data/test"),
    "images inside": ("train/images", "val/images", "test/images"),
}


@pytest.mark.parametrize("case", SPLITS)
def test_published_splits_in_any_usual_spelling(case, tmp_path):
    train, val, test = SPLITS[case]
    put(tmp_path, *pairs(train), count=3)
    put(tmp_path, *pairs(val), count=1)
    put(tmp_path, *pairs(test), count=2)
    listing = scan(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert {split: listing.split.count(split) for split in set(listing.split)} == {"train": 6, "val": 2, "test": 4}
    assert "published split (train 6, val 2, test 4)" in listing.understood()


def test_a_split_inside_every_class_is_the_published_one(tmp_path):
    put(tmp_path, "cat/train", "dog/train", count=3)
    put(tmp_path, "cat/test", "dog/test")
    listing = scan(tmp_path)
    assert listing.classes == ("cat", "dog") and listing.split.count("train") == 6 and listing.split.count("test") == 4


UNDERSTOOD = {  # what is built -> number of images and what is said to be left out
    "flat unlabelled test": (
        lambda root: (put(root, *pairs("train")), put(root, "test", count=5), touch(root, "labels.csv")),
        4,
        "5 unlabelled images in test",
    ),
    "unlabelled test, doubled": (
        lambda root: (put(root, *pairs("train")), put(root, "test/test")),
        4,
        "2 unlabelled images in test",
    ),
    "unlabelled test, unknown": (
        lambda root: (put(root, *pairs("train")), put(root, "test/unknown")),
        4,
        "2 unlabelled images in test",
    ),
    "unlabelled test images": (
        lambda root: (put(root, *pairs("train_images")), put(root, "test_images")),
        4,
        "2 unlabelled images in test_images",
    ),
    "a folder beside the split": (
        lambda root: (put(root, *pairs("train", "test")), put(root, "pred")),
        8,
        "2 images in pred, beside the train and test folders",
    ),
    "augmented training beside training": (
        lambda root: put(root, *pairs("train", "train_aug", "test")),
        8,
        "4 images in train_aug",
    ),
    "loose images": (
        lambda root: (put(root, "cat", "dog"), put(root, ".", count=3)),
        4,
        "3 images outside class folders",
    ),
    "Synology": (lambda root: put(root, "cat", "dog", "cat/@eaDir/img_0.png"), 4, "2 files in system folders (@eaDir)"),
    "recycle bin": (
        lambda root: put(root, "cat", "dog", "$RECYCLE.BIN"),
        4,
        "2 files in system folders ($RECYCLE.BIN)",
    ),
    "Mac archive": (
        lambda root: put(root, "set/cat", "set/dog", "__MACOSX/set/cat"),
        4,
        "2 files in system folders (__MACOSX)",
    ),
    "checkpoints": (
        lambda root: put(root, "cat", "dog", ".ipynb_checkpoints"),
        4,
        "2 files in system folders (.ipynb_checkpoints)",
    ),
    "volume information": (
        lambda root: put(root, "cat", "dog", "System Volume Information"),
        4,
        "2 files in system folders (System Volume Information)",
    ),
    "lost and found": (lambda root: put(root, "cat", "dog", "lost+found"), 4, "2 files in system folders (lost+found)"),
    "QNAP": (lambda root: put(root, "cat", "dog", "dog/.@__thumb"), 4, "2 files in system folders (.@__thumb)"),
    "thumbnails": (lambda root: (put(root, "cat", "dog"), touch(root, "cat/Thumbs.db", "desktop.ini")), 4, ""),
    "masks beside images": (
        lambda root: (put(root, "cat", "dog"), put(root, "cat", "dog", name="img_{}_mask.png")),
        4,
        "masks of 4 images",
    ),
    "several masks": (
        lambda root: (
            put(root, "cat", "dog"),
            put(root, "cat", count=1, name="img_{}_mask.png"),
            put(root, "cat", count=1, name="img_{}_mask_1.png"),
        ),
        4,
        "a mask of 1 image",
    ),
    "masks with other words": (
        lambda root: (put(root, "cat", "dog", name="a {}.jpg"), put(root, "cat", name="a {}-Segmentation.png")),
        4,
        "masks of 2 images",
    ),
    "a mask folder in every class": (
        lambda root: put(root, *pairs("cat", "dog", inner=("images", "masks"))),
        4,
        "masks of 4 images",
    ),
    "images and masks of classes": (lambda root: put(root, *pairs("images", "masks")), 4, "masks of 4 images"),
    "images and masks of classes in splits": (
        lambda root: put(root, *pairs("train/images", "train/masks", "test/images", "test/masks")),
        8,
        "masks of 8 images",
    ),
    "masks of some": (
        lambda root: (put(root, *pairs("scans")), put(root, "Ground_Truth/cat", count=1)),
        4,
        "a mask of 1 image",
    ),
    "a mask folder beside the classes": (
        lambda root: put(root, "cat", "dog", "masks"),
        4,
        "2 masks of no image, or of several",
    ),
    "a face mask is a class": (lambda root: put(root, "with_mask", "without_mask"), 4, ""),
    "only named like a mask": (lambda root: put(root, "cat", "dog", name="photo_{}_mask.png"), 4, ""),
    "a table beside classes": (
        lambda root: (put(root, "cat", "dog"), touch(root, "metadata.csv")),
        4,
        "not read: metadata.csv beside the class folders (DATASET=table:PATH",
    ),
    "tables around and inside splits": (
        lambda root: (
            put(root, *pairs("set/train", "set/test")),
            touch(root, "about.csv", "set/train/labels.csv", "submission.csv"),
        ),
        8,
        "not read: labels.csv, about.csv beside",
    ),
    "the folder around two data sets": (
        lambda root: (
            put(root, "bones/broken", "bones/whole", "skin/pics"),
            touch(root, "bones/about.csv", "skin/labels.csv"),
        ),
        6,
        (
            "not read: skin/labels.csv, bones/about.csv in class folders: "
            "if these are data sets of their own, give one of them"
        ),
    ),
    "grades": (lambda root: put(root, "0", "1", "2"), 6, ""),
    "a wrapper beside code": (
        lambda root: (put(root, "images/cat", "images/dog"), touch(root, "code/train.py")),
        4,
        "",
    ),
    "left and right in every class": (lambda root: put(root, *pairs("cat", "dog", inner=("left", "right"))), 8, ""),
    "the classes again": (
        lambda root: put(root, "yes", "no", *pairs("brain_tumor_dataset", inner=("yes", "no"))),
        4,
        "4 files in brain_tumor_dataset, which holds the classes again",
    ),
    "doubled folder": (lambda root: put(root, "set/set/cat", "set/set/dog"), 4, ""),
    "patients in classes": (lambda root: put(root, *pairs("cat", "dog", inner=("patient_1", "patient_2"))), 8, ""),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_understood_and_said(case, tmp_path):
    build, count, words = UNDERSTOOD[case]
    build(tmp_path)
    listing = scan(tmp_path)
    assert len(listing.files) == count, listing.ids
    nothing_lost = words.startswith(("masks", "a mask", "not read")) or not words
    assert words in listing.understood() and ("left out" in listing.understood()) == (not nothing_lost)
    assert "\n" not in listing.understood()


REFUSED = {  # what is built -> what the sentence must name
    "table beside flat training": (
        lambda root: (put(root, "train_images", "test_images"), touch(root, "test.csv", "train.csv")),
        ["train_images", "/train.csv"],
    ),
    "flat training without table": (lambda root: put(root, "train", "test"), ["/train", "class"]),
    "parts and a table": (
        lambda root: (put(root, "images_001/images", "images_002/images"), touch(root, "Data_Entry.csv")),
        ["images_001", "/Data_Entry.csv"],
    ),
    "parts without table": (lambda root: put(root, "part1", "part2"), ["part1", "part2"]),
    "parts of HAM10000": (
        lambda root: (put(root, "images_part_1", "images_part_2"), touch(root, "HAM10000_metadata.csv")),
        ["/HAM10000_metadata.csv"],
    ),
    "images and a table": (lambda root: (put(root, "images"), touch(root, "labels.csv")), ["images", "/labels.csv"]),
    "one odd folder and a table": (
        lambda root: (put(root, "fundus"), touch(root, "labels.xlsx")),
        ["fundus", "/labels.xlsx"],
    ),
    "loose images and a table": (lambda root: (put(root, "."), touch(root, "labels.csv")), ["/labels.csv"]),
    "original and augmented": (
        lambda root: put(root, *pairs("OriginalDataset", "AugmentedAlzheimerDataset")),
        ["AugmentedAlzheimerDataset", "/OriginalDataset"],
    ),
    "raw and augmented": (lambda root: put(root, *pairs("raw", "aug")), ["'aug'", "/raw"]),
    "augmented classes": (lambda root: put(root, "cat", "cat_aug", "dog", "dog_aug"), ["'cat_aug'", "/cat"]),
    "tasks": (
        lambda root: put(root, "segmentation_task/images", *pairs("classification_task/train")),
        ["segmentation_task", "/classification_task"],
    ),
    "tasks numbered": (lambda root: put(root, *pairs("Task1", "Task2")), ["Task1", "Task2"]),
    "tasks without the word": (lambda root: put(root, *pairs("Segmentation", "Classification")), ["/Classification"]),
    "folds": (lambda root: put(root, *pairs("fold_1", "fold_2")), ["fold_1, fold_2", ":test=fold_1"]),
    "folds, short": (lambda root: put(root, *pairs("Fold0", "Fold1", "Fold2")), ["Fold0", ":test=Fold0"]),
    "folds with splits": (lambda root: put(root, *pairs("fold1/train", "fold2/train")), ["fold1", "fold2"]),
    "patients above classes": (
        lambda root: put(root, *pairs("patient_01", "patient_02")),
        ["patient_01", "benign/patient_07"],
    ),
    "subjects": (lambda root: put(root, "sub-01", "sub-02"), ["sub-01", "sub-02"]),
    "running numbers": (lambda root: put(root, "0001", "0002", "0003"), ["0001", "0002"]),
    "same folders in each": (lambda root: put(root, *pairs("siteA", "siteB")), ["siteA", "cat", "dog"]),
    "magnifications": (
        lambda root: put(root, *pairs("benign", "malignant", inner=("40X", "adult", "child"))),
        ["adult", "child"],
    ),
    "splits in sites": (lambda root: put(root, *pairs("siteA/train", "siteB/train")), ["siteA", "siteB"]),
    "images and labels, flat": (lambda root: put(root, "images", "labels"), ["images", "labels"]),
    "detection set": (lambda root: put(root, "train/images", "train/labels", "valid/images"), ["images"]),
    "half split": (lambda root: (put(root, "cat/train", "cat/test"), put(root, "dog")), ["'dog'", "train and test"]),
    "no training": (lambda root: put(root, "val", "test"), ["val", "test"]),
    ".mat": (lambda root: touch(root, "1/a.mat", "2/a.mat"), ["2 .mat", ".png"]),
    ".npy": (lambda root: touch(root, "cat/a.npy", "dog/a.NPY"), ["2 .npy", ".png"]),
    ".heic": (lambda root: touch(root, "cat/a.HEIC", "dog/a.heic"), ["2 .heic", ".jpg"]),
    ".mha": (lambda root: touch(root, "AD/a.mha", "CN/a.nrrd"), ["1 .mha, 1 .nrrd", ".dcm", ".nii.gz"]),
    "one class of .heic": (lambda root: (put(root, "cat"), touch(root, "dog/a.heic")), ["1 .heic"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_what_to_give(case, tmp_path):
    build, words = REFUSED[case]
    build(tmp_path)
    with pytest.raises(DataError) as caught:
        scan(tmp_path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.endswith(".") and "\n" not in message
    for folder in re.findall(r"folder:(\S+?)[.,]?(?:\s|$)", message):
        assert Path(parts(f"folder:{folder}")[1]).is_dir(), "the folder to give exists"


@pytest.mark.parametrize("names", [("fold_1", "fold_2", "fold_3"), ("Fold0", "Fold1", "Fold2"), ("cv1", "cv2", "cv3")])
def test_published_folds_are_a_split_when_one_is_said_to_test(names, tmp_path):
    put(tmp_path / "set", *pairs(*names))
    listing = scan(tmp_path / "set", names[1])
    assert listing.classes == ("cat", "dog") and len(listing.files) == 12
    assert {
        identity.split("/")[0] for identity, split in zip(listing.ids, listing.split, strict=True) if split == "test"
    } == {names[1]}
    with pytest.raises(DataError, match="no fold 'other'"):
        scan(tmp_path / "set", "other")
    put(tmp_path / "plain", "cat", "dog")
    with pytest.raises(DataError, match="no folds at all"):
        scan(tmp_path / "plain", "fold_1")


def test_the_same_letters_are_one_class(tmp_path):
    put(tmp_path, f"train/{unicodedata.normalize('NFC', 'Kératite')}", "train/normal")
    put(tmp_path, f"test/{unicodedata.normalize('NFD', 'Kératite')}", "test/normal")
    listing = scan(tmp_path)
    assert listing.classes == (unicodedata.normalize("NFC", "Kératite"), "normal")
    assert listing.split.count("test") == 4


def test_an_unread_format_among_images_is_skipped_by_name(tmp_path):
    put(tmp_path, "cat", "dog")
    touch(tmp_path, "cat/x.heic")
    assert scan(tmp_path).skipped == {"cat/x.heic": "a .heic file, which is not read"}


def test_the_loaded_set_and_make_data_say_how_the_folder_was_understood(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    put(tmp_path / "set", *pairs("train"), count=6)
    put(tmp_path / "set", "test", count=3)
    data = load(f"folder:{tmp_path / 'set'}", 32)
    line = "12 images in 2 class folders, no published test set; left out: 3 unlabelled images in test"
    assert describe(data) == f"folder:{tmp_path / 'set'}: {line}; {data.notes['persons']}"
    assert data.notes["persons"].startswith("no persons found")
    assert data.notes["left_out"] == {"unlabelled images in test": 3}
    assert {part: len(data.index(part)) > 0 for part in ("train", "val", "test")} == {
        "train": True,
        "val": True,
        "test": True,
    }
    assert fetch.main(["--dataset", f"folder:{tmp_path / 'set'}"]) == 0
    assert f"{line}; the classes are {', '.join(data.classes)}.\n" in capsys.readouterr().out
    assert describe(load("phantom", 32, phantom_images=40)).startswith("phantom: generated; ")


PERSONS = {  # file names -> which of them are one person's
    "left and right": (["12_left", "12_right", "13_left"], [0, 0, 1]),
    "OD and OS": (["P12 OD", "P12 OS", "P13-OD"], [0, 0, 1]),
    "L and R": (["0012-L", "0012-R", "0013-L"], [0, 0, 1]),
    "the eye named": (["12_left_eye", "12_right_eye", "13_left_eye"], [0, 0, 1]),
    "in front": (["left_12", "right_12", "left_13"], [0, 0, 1]),
    "subject": (["sub-01_T1w", "sub-01_T2w", "sub-02_T1w"], [0, 0, 1]),
    "patient": (["patient7_1", "patient7_2", "patient70_1"], [0, 0, 1]),
    "a prefix before the patient": (["scan_Patient_07_a", "scan_Patient_07_b", "scan_Patient_08_a"], [0, 0, 1]),
    "OASIS": (["OAS1_0001_MR1_mpr_100", "OAS1_0001_MR1_mpr_101", "OAS1_0002_MR1_mpr_100"], [0, 0, 1]),
    "slices": (["scan3_slice_10", "scan3_slice_11", "scan4_slice_10"], [0, 0, 1]),
    "frames": (["video12-frame003", "video12-frame004", "video13-frame003"], [0, 0, 1]),
    "chest films": ([f"0000{k // 2}_00{k % 2}" for k in range(10)], [k // 2 for k in range(10)]),
    "letters around the number": ([f"MR00{k // 2}23F_{k}" for k in range(10)], [k // 2 for k in range(10)]),
    "too few numbers": (["100_1", "100_2", "100_3", "200_1"], [0, 1, 2, 3]),
    "running numbers": (["img_1", "img_2", "img_3"], [0, 1, 2]),
    "an axis": (["slice_1", "slice_2"], [0, 1]),
    "words that only begin alike": (["subtle_1", "subtle_2", "bright", "highlight"], [0, 1, 2, 3]),
    "a patch is no patient": (["a1_patch1", "a2_patch1", "a3_subset1", "a4_subset1"], [0, 1, 2, 3]),
    "cases": (["Case_07_a", "Case_07_b", "Case_08_a"], [0, 0, 1]),
}


@pytest.mark.parametrize("case", PERSONS)
def test_persons_by_the_stated_rule(case):
    names, persons = PERSONS[case]
    ids = [f"{'ab'[k % 2]}/{name}.png" for k, name in enumerate(names)]  # fellow images lie in two classes
    recognised, how = persons_by_name(ids, [name[0] for name in ids])
    assert np.array_equal(recognised[:, None] == recognised, np.equal.outer(persons, persons)), recognised
    assert bool(how) == (len(set(persons)) < len(persons))


FOLDERS = {  # paths -> which of them are one person's, and the folder that tells (in a table, where two are given)
    "scans inside": (
        [f"a/patient_0{k // 2}/T{k % 2}/x.png" for k in range(12)],
        [k // 2 for k in range(12)],
        "patient_00",
    ),
    "sessions inside": (
        [f"a/sub-{k // 4}/ses-{k // 2}/anat/{k}.png" for k in range(12)],
        [k // 4 for k in range(12)],
        "sub-0",
    ),
    "a site outside": (
        [f"a/s{k % 2}/patient_{k // 2}/x.png" for k in range(6)],
        [k // 2 for k in range(6)],
        "patient_0",
    ),
    "few patients": ([f"a/patient_{k // 2}/{k}.png" for k in range(4)], [0, 0, 1, 1], "patient_0"),
    "splits inside": (
        [f"a/{('train', 'test')[k % 2]}/subject{k // 2}/x.png" for k in range(6)],
        [k // 2 for k in range(6)],
        "subject0",
    ),
    "folders called like nobody": (
        [f"a/A{k // 4}/T{k % 4}/x.png" for k in range(20)],
        [k // 4 for k in range(20)],
        "A0",
    ),
    "splits around those": (
        [f"a/{('train', 'test')[k % 2]}/A{k // 2}/x.png" for k in range(10)],
        [k // 2 for k in range(10)],
        "A0",
    ),
    "few of those in the other class": (
        [f"a/A{k // 2}/{k}.png" for k in range(10)] + [f"b/B{k // 2}/{k}.png" for k in range(4)],
        [k // 2 for k in range(14)],
        "A0",
    ),
    "too few of those": ([f"a/A{k // 2}/{k}.png" for k in range(8)], list(range(8)), ""),
    "shards": ([f"a/images_0{k // 2}/{k}.png" for k in range(12)], list(range(12)), ""),
    "batches": ([f"a/batch_{k // 2}/{k}.png" for k in range(12)], list(range(12)), ""),
    "patients in shards": ([f"a/part{k // 4}/A{k // 2}/{k}.png" for k in range(12)], [k // 2 for k in range(12)], "A0"),
    "composed letters": (
        [f"{part}/e\u0301/A{k}/x.png" for part in ("train", "test") for k in range(5)],
        [*range(5)] * 2,
        "A0",
    ),
    "a class in one folder": (
        [f"a/A{k // 2}/{k}.png" for k in range(10)] + [f"b/all/{k}.png" for k in range(4)],
        [k // 2 for k in range(10)] + [5, 6, 7, 8],
        "A0",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_persons_by_their_folders(case):
    ids, expected, folder = FOLDERS[case]
    labels = [unicodedata.normalize("NFC", next(part for part in name.split("/") if len(part) < 3)) for name in ids]
    persons, how = persons_by_name(ids, labels)
    assert np.array_equal(persons[:, None] == persons, np.equal.outer(expected, expected)), persons
    assert (f"({folder} of {ids[0]})" in how) if folder else how == "", "which folder was taken is said"
    in_table, how_in_table = persons_by_name(ids, labels, in_table=True)
    named = "called like a subject" in how
    assert in_table.tolist() == (persons.tolist() if named else ids) and how_in_table == how * named


NOBODY = {  # what follows the class in the names of a class -> whether its images are one person's
    "slices of everybody": ("T1_slice_{}", False),
    "a year": ("2019_{}", False),
    "running numbers": ("glioma ({})", False),
    "a subject": ("patient1_slice_{}", True),
}


@pytest.mark.parametrize("case", NOBODY)
def test_what_would_be_a_whole_class_is_nobody(case):
    pattern, one = NOBODY[case]
    ids = [f"a/{pattern.format(k)}.png" for k in range(900)] + [f"b/00{k // 2}_{k}.png" for k in range(100, 120)]
    persons, how = persons_by_name(ids, [name[0] for name in ids])
    assert len(set(persons[:900])) == (1 if one else 900)
    assert len(set(persons[900:])) == 10 and "a number before the image's number" in how, "the other class has persons"


def test_leak_free_keeps_a_patient_with_several_scans_on_one_side(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    for k in range(48):
        label, patient, scan = "ab"[k % 2], k // 6, ("T1", "T2", "FLAIR")[k // 2 % 3]
        path = tmp_path / "set" / label / f"patient_{patient:02d}" / scan / "a.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    data = load(f"folder:{tmp_path / 'set'}", 32, split_protocol="leak_free")
    whose = np.array(["/".join(name.split("/")[:2]) for name in data.ids])
    assert len(set(whose)) == 16 and all(len(set(data.split[whose == patient])) == 1 for patient in set(whose))
    assert "16 persons, found by folders called like a subject (patient_00 of a/patient_00/FLAIR/a.png)" in describe(
        data
    )


def test_fellow_eyes_are_on_one_side(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    for side in ("left", "right"):
        put(tmp_path / "set", "glaucoma", count=8, name=f"1{{}}_{side}.png")
        put(tmp_path / "set", "normal", count=8, name=f"2{{}}_{side}.png")
    for k, path in enumerate(sorted((tmp_path / "set").rglob("*.png"))):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    data = load(f"folder:{tmp_path / 'set'}", 32, split_protocol="leak_free")
    assert len(data) == 32 and len(set(data.groups)) == 16
    assert all(len(set(data.split[data.groups == group])) == 1 for group in set(data.groups))
    assert "at most 16 persons, found by left and right in the name (10_left.png)" in describe(data)


@pytest.mark.parametrize(("placeholder", "groups"), [("", 12), ("ANON", 24)])
def test_dicom_patients_are_on_one_side(placeholder, groups, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    for k in range(24):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)
        path = tmp_path / "set" / ("AD" if k < 12 else "CN") / f"IM{k}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dicom(path, pixels, 8, PatientID=placeholder or f"P{k // 2}")
    data = load(f"folder:{tmp_path / 'set'}", 32, split_protocol="leak_free")
    assert len(set(data.groups)) == groups
    assert all(len(set(data.split[data.groups == group])) == 1 for group in set(data.groups))
    assert ("PatientID" in describe(data)) == (not placeholder)
