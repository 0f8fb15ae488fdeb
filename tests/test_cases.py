"""Inputs that people really have (small, generated, outside the repository):
each is right, or refused in one sentence that helps."""

import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnb.datasets import audit, cache, describe, load
from kdnb.datasets.folders import scan
from kdnb.datasets.imageset import ImageSet
from kdnb.datasets.reading import decode
from kdnb.datasets.tables import read
from kdnb.errors import DataError
from kdnb.runs import Run
from kdnb.settings import resolve
from kdnb.sources import REPOSITORY, locate, parts

CASES = Path(os.environ.get("KDNB_DATA_DIR", REPOSITORY.parent / "shared" / "datasets")).parent / "cases"
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="no inputs: set KDNB_DATA_DIR to the data sets that lie beside a folder `cases`"
)
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")


def loaded(case: str, protocol: str = "official") -> ImageSet:
    return load(f"folder:{CASES / case}", 32, split_protocol=protocol)


def refused(case: str) -> str:
    with pytest.raises(DataError) as caught:
        loaded(case)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and message.count(". ") == 0
    return message


def named(message: str) -> str:
    """The data set that a refusal says to give, checked to be one."""
    dataset = re.search(r"(?:folder|table):\S+?(?=[,.]?(?:\s|$))", message)[0]
    assert locate(dataset, CASES).exists() and parts(dataset)[0] == dataset.partition(":")[0]
    return dataset


def counts(data: ImageSet) -> dict[str, int]:
    return {split: len(data.index(split)) for split in SPLITS}


def pixels(case: str) -> np.ndarray:
    return np.asarray(decode(CASES / case)[0])


def stretched(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return np.round((values - values.min()) * 255 / (values.max() - values.min())).astype(np.uint8)


# -- layouts --------------------------------------------------------------------------------------------------------


def test_01_the_unlabelled_test_is_counted_and_one_is_cut_from_train():
    data = loaded("01_flat_unlabelled_test")
    assert len(data) == 24 and counts(data)["test"] > 0 and all(name.startswith("train/") for name in data.ids)
    assert "left out: 10 unlabelled images in test" in describe(data)


def test_02_and_the_table_that_its_refusal_names():
    table = Path(parts(named(refused("02_train_images_test_images_csv")))[1])
    listing = read(table)
    rows = dict(line.split(",") for line in table.read_text().split()[1:])
    assert listing.classes == ("0", "1", "2", "3", "4") and all(
        name.startswith("train_images/") for name in listing.ids
    )
    assert {Path(name).stem: label for name, label in zip(listing.ids, listing.labels, strict=True)} == rows
    assert "6 images that the table does not name or label" in listing.understood()


def test_04_and_15b_name_their_tables():
    for case, images in (("04_chestxray14_images_001", 24), ("15b_images_and_labels_csv", 12)):
        table = parts(named(refused(case)))[1]
        assert len(list((CASES / case).rglob("*.png"))) == images
        with pytest.raises(DataError, match="has one class"):  # of which the generated table has one row
            read(Path(table))


def test_04_whole(tmp_path):
    """With a row for each image, one of them with two labels."""
    images = sorted((CASES / "04_chestxray14_images_001").rglob("*.png"))
    for part in ("images_001", "images_002", "images_003"):
        (tmp_path / part).symlink_to(CASES / "04_chestxray14_images_001" / part)
    rows = [f"{path.name},{('Mass', 'No Finding')[k % 2]},{k // 2}" for k, path in enumerate(images)]
    rows[0] = rows[0].replace("Mass", "Mass|Hernia")
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\n" + "\n".join(rows))
    data = load(f"table:{tmp_path / 'Data_Entry_2017.csv'}", 32, split_protocol="leak_free")
    assert data.classes == ("Mass", "No Finding") and len(data) == len(images) - 1
    assert "1 rows with several labels" in describe(data) and "found by the column 'Patient ID'" in describe(data)
    assert len(set(data.groups)) == len(images) // 2
    assert all(len(set(data.split[data.groups == group])) == 1 for group in set(data.groups))


def test_06_the_original_is_named_and_loads():
    data = load(named(refused("06_original_and_augmented")), 32)
    assert data.name.endswith("/OriginalDataset")
    assert data.classes == ("MildDemented", "ModerateDemented", "NonDemented", "VeryMildDemented") and len(data) == 24


def test_09_the_task_of_classification_is_named_and_loads():
    data = load(named(refused("09_brisc_two_tasks")), 32)
    assert data.name.endswith("/classification_task") and data.classes == (
        "glioma",
        "meningioma",
        "no_tumor",
        "pituitary",
    )
    assert counts(data)["test"] == 24


def test_15_folds_are_no_classes_and_load_as_a_split():
    message = refused("15_folds")
    data = load(named(message), 32)
    assert "fold_1, fold_2, fold_3" in message and data.classes == ("benign", "malignant")
    assert {name.split("/")[0] for name in data.ids[data.index("test")]} == {"fold_1"}
    assert {name.split("/")[0] for name in data.ids[data.split != "test"]} == {"fold_2", "fold_3"}


def test_15e_the_published_split():
    data = loaded("15e_train_validation_names")
    assert data.classes == ("cat", "dog") and counts(data) == {"train": 16, "val": 16, "test": 16}
    assert all(
        name.startswith({"train": "train_data", "val": "valid_data", "test": "test_data"}[split])
        for name, split in zip(data.ids, data.split, strict=True)
    )


def test_10_masks_are_the_truth_of_their_images():
    data = loaded("10_masks_beside_images")
    assert len(data) == 30 and not any("_mask" in name for name in data.ids)
    for name, mask in zip(data.ids, data.masks, strict=True):
        truth = Image.open(CASES / "10_masks_beside_images" / name.replace(".png", "_mask.png")).convert("L")
        assert np.array_equal(mask, np.asarray(truth.resize((32, 32), Image.Resampling.NEAREST)) > 0), name
    assert "masks of 30 images" in describe(data)


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("12_eadir_thumbnails", "16 files in system folders (@eaDir)"),
        ("12d_recycle_bin_with_images", "3 files in system folders ($RECYCLE.BIN)"),
    ],
)
def test_12_what_systems_leave_is_left_out_counted_and_named(case, count):
    data = loaded(case)
    assert data.classes == ("cat", "dog") and len(data) == 16 and count in describe(data)


def test_13_one_class_whatever_system_composed_its_letters():
    data = loaded("13_nfc_nfd")
    assert data.classes == ("Kératite", "Œil normal") and counts(data)["test"] == 8 and len(data) == 28


# -- persons --------------------------------------------------------------------------------------------------------


def _patient(path: Path) -> str:
    import pydicom

    return str(pydicom.dcmread(path, specific_tags=["PatientID"]).PatientID)


@pytest.mark.parametrize(
    ("case", "how", "person"),
    [
        ("49e_left_right_eyes", "left and right in the name", lambda path: path.stem.split("_")[0]),
        ("54_dicom_patient_id", "DICOM's PatientID", _patient),
    ],
)
def test_49e_54_one_person_is_on_one_side(case, how, person):
    data = loaded(case, "leak_free")
    whose = np.array([person(CASES / case / name) for name in data.ids])
    assert len(set(whose)) > 10 and how in describe(data)
    for somebody in set(whose):
        assert len(set(data.split[whose == somebody])) == 1 and len(set(data.groups[whose == somebody])) == 1


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "classes"), [("51_class_called_all", ("all", "hem")), ("52_grades_0_1_as_folders", ("0", "1"))]
)
def test_51_52_a_class_has_its_own_row_in_every_table(case, classes, tmp_path):
    import pandas as pd

    from kdnb import evaluation, fidelity

    data = loaded(case)
    assert data.classes == classes
    run = Run(resolve(run_dir=tmp_path / "run"), "03_distillation")
    sizes = {name: int((data.labels == k).sum()) for k, name in enumerate(classes)}
    run.save_table("data_audit", audit.table(data, audit.twins(data)))
    images = run.load_table("data_audit").groupby("class")["images"].sum()
    assert images.to_dict() == sizes
    logits = np.eye(2)[data.labels]
    scores = run.save_table("per_class", evaluation.per_class_scores(data.labels, logits, data.classes))
    both = pd.concat([run.load_table("per_class"), scores]).pivot_table(index="class", values="n")
    assert both["n"].astype(int).to_dict() == sizes, "each class once"
    names = np.array(classes)[data.labels]
    rows = pd.DataFrame(
        {"image_id": data.ids, "class": names, "group": data.groups, "value": data.labels, "correct": True}
    )
    summary = (
        fidelity.summary(rows.assign(model="m", method="f", metric="d"), samples=10).set_index("class")["n"].astype(int)
    )
    assert summary.to_dict() == {"all": len(data)} | {fidelity.class_row(name): size for name, size in sizes.items()}


# -- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["16_dicom_named_by_uid", "18_dicom_without_preamble"])
def test_16_18_are_read_as_dicom(case):
    import pydicom

    data = loaded(case)
    assert len(data) == 12 and set(audit.acquisition(data)["kind"]) == {"DICOM MONOCHROME2"}
    for path in scan(CASES / case).files:
        file = pydicom.dcmread(path, force=True)
        stored = np.frombuffer(file.PixelData, np.uint16).reshape(48, 48)
        assert np.array_equal(np.asarray(decode(path)[0]), stretched(stored))


def test_21b_the_palette_is_applied():
    import pydicom
    from pydicom.pixels import apply_color_lut

    for path in sorted((CASES / "21b_palette_grey_identity").rglob("*.dcm")):
        file = pydicom.dcmread(path)
        own = apply_color_lut(file.pixel_array, file)
        assert np.abs(np.asarray(decode(path)[0]) - own / 257).max() <= 0.5
        assert (
            np.abs(np.asarray(decode(path)[0])[..., 0].astype(int) - (255 - file.pixel_array.astype(int))).max() <= 1
        ), "an inverted ramp"


def test_22b_colours_are_scaled_by_the_bits_that_are_used():
    ramp = pixels("22b_dicom_rgb16_12bit/cat/ramp.dcm").astype(int)
    assert ramp.min() == 0 and ramp.max() == 255 and (np.diff(ramp[:, :, 0], axis=1) >= 0).all()


def test_24b_says_what_its_pixels_are_packed_as():
    message = refused("24b_dicom_all_jpeg_lossless")  # generated without a picture inside: nothing could read them
    assert "packed as JPEG Lossless" in message and "fetch the file again" in message


def test_26_of_several_frames_the_middle_one_and_it_is_said():
    import pydicom

    data = loaded("26_dicom_multiframe")
    for path in scan(CASES / "26_dicom_multiframe").files:
        frames = pydicom.dcmread(path).pixel_array
        assert np.array_equal(np.asarray(decode(path)[0]), stretched(frames[10])) and frames[10].any()
    assert "of 12 files with several frames or slices the middle one" in describe(data) and "np.str_" not in describe(
        data
    )


def test_29_16_bits_of_colour_as_of_grey():
    for name in ("rgb16_12bit", "rgb16_full"):
        path = CASES / "29_png16_rgb_12bit" / "cat" / f"{name}.png"
        values = png16(path.read_bytes())
        assert np.abs(np.asarray(decode(path)[0]) - stretched(values).astype(int)).max() <= 1, name
    grey = pixels("29_png16_rgb_12bit/cat/la16_12bit.png")
    assert grey.min() == 0 and grey.max() == 255 and len(np.unique(grey)) > 100


def png16(content: bytes) -> np.ndarray:
    """The values of a PNG of 16 bits of red, green and blue, by the rules of the format (Pillow reads the upper 8)."""
    width, height = (int.from_bytes(content[k : k + 4], "big") for k in (16, 20))
    packed, place = b"", 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        packed += content[place + 8 : place + 8 + length] if content[place + 4 : place + 8] == b"IDAT" else b""
        place += 12 + length
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 6 * width)
    rows = np.zeros((height + 1, 6 * width + 6), int)
    for y, (kind, *line) in enumerate(lines.tolist(), 1):
        for x, value in enumerate(line, 6):
            left, above, corner = rows[y, x - 6], rows[y - 1, x], rows[y - 1, x - 6]
            nearest = min((left, above, corner), key=lambda neighbour: abs(left + above - corner - neighbour))
            rows[y, x] = (value + (0, left, above, (left + above) // 2, nearest)[kind]) % 256
    return rows[1:, 6:].astype(np.uint8).view(">u2").reshape(height, width, 3).astype(np.uint16)


def test_30_white_is_zero_is_inverted_at_16_bits_as_at_8():
    folder = CASES / "30_tiff16_white_is_zero" / "cat"
    raw = {
        name: np.asarray(Image.open(folder / f"{name}.tif"))
        for name in ("white_is_zero16", "black_is_zero16", "white_is_zero8")
    }
    seen = {name: np.asarray(decode(folder / f"{name}.tif")[0]) for name in raw}
    assert np.array_equal(seen["white_is_zero16"], 255 - stretched(raw["white_is_zero16"]))
    assert np.array_equal(seen["black_is_zero16"], stretched(raw["black_is_zero16"]))
    assert np.corrcoef(seen["white_is_zero16"].ravel(), seen["white_is_zero8"].ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("case", "words"),
    [("19_nifti", "no NIfTI inside"), ("20_mat_npy", "12 .mat, 12 .npy files"), ("34b_all_heic", "6 .heic files")],
)
def test_19_20_34b_name_the_files_and_a_cure(case, words):
    message = refused(case)  # the volumes of 19 are generated without a header: no program reads them
    assert words in message and ("convert them to one of .bmp, .dcm" in message or "fetch the file again" in message)


def test_every_case_has_its_test():
    text = Path(__file__).read_text(encoding="utf-8")
    missing = [path.name for path in CASES.iterdir() if path.is_dir() and path.name not in text]
    assert not missing
