"""Masks beside images, from folders and from tables: of their image, in its square, never samples;
and the brain set that has them."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnb import fidelity
from kdnb.datasets import audit, cache, describe, fetch, load
from kdnb.datasets.folders import scan
from kdnb.datasets.masks import marked, pair
from kdnb.datasets.splits import subset, take
from kdnb.datasets.tables import read
from kdnb.errors import DataError, DataNotFoundError
from kdnb.sources import REPOSITORY

REAL = Path(os.environ.get("KDNB_DATA_DIR", REPOSITORY.parent / "shared" / "datasets"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")


def picture(path: Path, height: int = 40, width: int = 40, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(
        np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (height, width), dtype=np.uint8)
    ).save(path)
    return path


def lesion(
    path: Path, where: tuple[slice, slice], height: int = 40, width: int = 40, value: int = 255, **options
) -> np.ndarray:
    truth = np.zeros((height, width), np.uint8)
    truth[where] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(truth).save(path, **options)
    return truth > 0


HERE = (slice(4, 12), slice(20, 36))


def fill(root: Path, count: int = 6) -> None:
    """Two classes of ``count`` images; those of ``ill`` have a lesion, one of them in two masks."""
    for k in range(count):
        picture(root / "ill" / f"i{k}x.png", seed=k)
        picture(root / "well" / f"w{k}x.png", seed=k)
        lesion(root / "ill" / f"i{k}x_mask.png", HERE)
    lesion(root / "ill" / "i0x_mask_1.png", (slice(30, 36), slice(0, 6)))


def test_masks_are_the_truth_of_their_images_and_no_samples(tmp_path):
    fill(tmp_path / "set")
    data = load(f"folder:{tmp_path / 'set'}", 80)
    assert len(data) == 12 and data.masks.shape == (12, 80, 80) and data.masks.dtype == bool
    ill = data.labels == data.classes.index("ill")
    assert data.masks[ill].any(axis=(1, 2)).all() and not data.masks[~ill].any()
    twice = np.zeros((80, 80), bool)
    twice[8:24, 40:72] = True
    several = data.ids.tolist().index("ill/i0x.png")
    assert all(np.array_equal(data.masks[k], twice) for k in np.flatnonzero(ill) if k != several)
    twice[60:72, 0:12] = True
    assert np.array_equal(data.masks[several], twice), "several masks of an image are joined"
    assert "masks of 6 images" in describe(data)


def test_they_go_with_their_images_through_subset_take_and_sample(tmp_path):
    fill(tmp_path / "set", 12)
    data = load(f"folder:{tmp_path / 'set'}", 32)
    part = load(f"folder:{tmp_path / 'set'}", 32, max_images=8)
    assert len(part) < len(data) and np.array_equal(part.masks.any(axis=(1, 2)), np.char.startswith(part.ids, "ill"))
    assert np.array_equal(subset(data, 8).masks, part.masks)
    assert np.array_equal(take(data, np.array([3, 1])).masks, data.masks[[3, 1]])
    import torch

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    sample = fidelity.draw_sample(model, data, 3)
    place = {name: k for k, name in enumerate(data.ids)}
    assert all(
        np.array_equal(mask, data.masks[place[name]]) for name, mask in zip(sample.ids, sample.masks, strict=True)
    )
    rows = fidelity.localisation_rows("patch", sample, {"truth": torch.from_numpy(sample.masks.astype(np.float32))})
    assert rows[rows["class"] == "well"]["value"].isna().all(), "where there is no lesion there is nothing to find"
    assert (rows[(rows["class"] == "ill") & (rows["metric"] == "pixel_auc")]["value"] == 1).all()


def test_a_changed_mask_changes_the_data_and_is_read_again(tmp_path):
    fill(tmp_path / "set")
    first = load(f"folder:{tmp_path / 'set'}", 32)
    reread = load(f"folder:{tmp_path / 'set'}", 32)
    assert first.data_hash == reread.data_hash and np.array_equal(first.masks, reread.masks)
    lesion(tmp_path / "set" / "ill" / "i3x_mask.png", (slice(0, 20), slice(0, 20)))
    changed = load(f"folder:{tmp_path / 'set'}", 32)
    assert changed.data_hash != first.data_hash and changed.split_hash == first.split_hash
    assert (changed.masks != first.masks).any(axis=(1, 2)).sum() == 1


@pytest.mark.parametrize(("height", "width"), [(40, 80), (80, 40), (33, 57)])
def test_a_mask_lies_where_its_image_lies_in_the_square(height, width, tmp_path):
    """Lesions shown white in the image itself: where the square's picture is bright, there is the mask."""
    for name in ("ill", "well"):
        for k in range(4):
            shown = lesion(
                tmp_path / "set" / name / f"{name}{k}x.png",
                (slice(k, height // 2), slice(3, width // 3)),
                height,
                width,
            )
            Image.fromarray(shown).resize((2 * width, 2 * height)).save(
                tmp_path / "set" / name / f"{name}{k}x_mask.png"
            )
    data = load(f"folder:{tmp_path / 'set'}", 64)
    bright = data.images[..., 0] > 127
    assert ((bright & data.masks).sum(axis=(1, 2)) / (bright | data.masks).sum(axis=(1, 2))).min() > 0.85


STORED = {  # how a mask may be stored
    "0 and 255": lambda path: lesion(path, HERE),
    "0 and 1": lambda path: lesion(path, HERE, value=1),
    "one bit": lambda path: Image.fromarray(lesion(path, HERE)).save(path),
    "16 bits": lambda path: Image.fromarray(lesion(path, HERE).astype(np.uint16) * 300).save(path),
    "red": lambda path: Image.fromarray(
        np.stack([lesion(path, HERE) * np.uint8(9)] + 2 * [np.zeros((40, 40), np.uint8)], axis=-1)
    ).save(path),
    "palette": lambda path: Image.fromarray(lesion(path, HERE)).convert("RGB").convert("P").save(path),
    "numbers of lesions": lambda path: Image.fromarray(lesion(path, HERE) * np.arange(1, 41, dtype=np.uint8)).save(
        path
    ),
}


@pytest.mark.parametrize("case", STORED)
def test_whatever_is_not_black_is_lesion(case, tmp_path):
    STORED[case](tmp_path / "x_mask.png")
    truth = np.zeros((40, 40), bool)
    truth[HERE] = True
    assert np.array_equal(marked(tmp_path / "x_mask.png"), truth)


def test_the_black_of_a_jpeg_is_not_quite_black(tmp_path):
    truth = lesion(tmp_path / "x_mask.jpg", HERE, quality=60)
    assert (np.asarray(Image.open(tmp_path / "x_mask.jpg"))[~truth] > 0).any()
    assert (marked(tmp_path / "x_mask.jpg") != truth).mean() < 0.01


def test_what_is_no_mask_of_its_image_is_named(tmp_path):
    fill(tmp_path / "set")
    lesion(tmp_path / "set" / "ill" / "i1x_mask.png", HERE, 40, 90)
    (tmp_path / "set" / "ill" / "i2x_mask.png").write_bytes(b"no picture")
    data = load(f"folder:{tmp_path / 'set'}", 32)
    skipped = dict(audit.unreadable(data).itertuples(index=False))
    assert "90 x 40 pixels for an image of 40 x 40" in skipped["ill/i1x_mask.png"] and "ill/i2x_mask.png" in skipped
    assert data.masks.any(axis=(1, 2)).sum() == 4


PAIRED = {  # images, masks beside them, folder of masks, its masks -> which image has which mask
    "beside": (["a/x.png", "b/x.png"], ["a/x_mask.png"], [], [], {0: ["a/x_mask.png"]}),
    "BUSI": (
        ["a/b (1).png", "a/b (10).png"],
        ["a/b (1)_mask.png", "a/b (1)_mask_1.png"],
        [],
        [],
        {0: ["a/b (1)_mask.png", "a/b (1)_mask_1.png"]},
    ),
    "a folder": (["a/x.png", "a/y.png"], [], ["masks"], ["masks/y.png"], {1: ["masks/y.png"]}),
    "a folder, named after": (
        ["a/x.png", "a/y.png"],
        [],
        ["masks"],
        ["masks/y_segmentation.png"],
        {1: ["masks/y_segmentation.png"]},
    ),
    "folders of classes": (["a/x.png", "b/x.png"], [], ["masks"], ["masks/b/x.png"], {1: ["masks/b/x.png"]}),
    "of several": (["a/x.png", "b/x.png"], [], ["masks"], ["masks/x.png"], {}),
    "of none": (["a/x.png"], [], ["masks"], ["masks/z.png"], {}),
    "another ending": (["a/x.jpg"], [], ["a/masks"], ["a/masks/x.png"], {0: ["a/masks/x.png"]}),
}


@pytest.mark.parametrize("case", PAIRED)
def test_a_mask_belongs_to_the_image_of_its_name(case, tmp_path):
    images, beside, folders, inside, expected = PAIRED[case]
    for path in inside:
        lesion(tmp_path / path, HERE)
    around = [(tmp_path / folder).parent for folder in folders]
    pairs, lost = pair(
        [tmp_path / path for path in images],
        [tmp_path / path for path in beside],
        [(outer, tmp_path / folder) for outer, folder in zip(around, folders, strict=True)],
    )
    assert {
        k: [str(path.relative_to(tmp_path)) for path in masks] for k, masks in enumerate(pairs) if masks
    } == expected
    assert lost == len(beside + inside) - sum(map(len, expected.values()))


def test_a_table_names_masks_or_they_lie_beside(tmp_path):
    for k in range(8):
        picture(tmp_path / "images" / f"i{k}x.png", seed=k)
    for k in range(0, 8, 2):
        lesion(tmp_path / "masks" / f"i{k}x.png", HERE)
    lesion(tmp_path / "more" / "i0x.png", (slice(30, 36), slice(0, 6)))
    rows = [f"images/i{k}x.png,{'ab'[k // 4]}" for k in range(8)]
    named = [f"masks/i{k}x.png" if k % 2 == 0 else "" for k in range(8)]
    named[2], named[4] = "i2x.png", "i4x"  # by name, in the folder of masks
    named[0] += "|more/i0x.png"
    named[7] = "masks/gone.png"
    table = tmp_path / "t.csv"
    table.write_text("image,label,mask\n" + "\n".join(f"{row},{mask}" for row, mask in zip(rows, named, strict=True)))
    listing = read(table)
    assert [len(masks) for masks in listing.masks] == [2, 0, 1, 0, 1, 0, 1, 0]
    (left_out, count), *others = listing.left_out.items()
    assert left_out.startswith("masks that are not there, such as masks/gone.png") and count == 1
    assert not others, "a mask is no image that the table forgot"
    data = load(f"table:{table}", 32)
    assert data.masks.any(axis=(1, 2)).tolist() == [True, False] * 4 and data.masks[0].sum() > data.masks[2].sum()
    assert load(f"table:{table}:mask=off", 32).masks is None
    table.write_text("image,label\n" + "\n".join(rows))
    assert load(f"table:{table}", 32).masks.any(axis=(1, 2)).tolist() == [True, False] * 4, (
        "as they lie in a folder called masks"
    )


def test_masks_of_a_folder_beside_the_classes(tmp_path):
    fill(tmp_path / "set")
    for path in (tmp_path / "set" / "ill").glob("*_mask*.png"):
        target = tmp_path / "set" / "masks" / "ill" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    listing = scan(tmp_path / "set")
    assert listing.classes == ("ill", "well") and [len(masks) for masks in listing.masks] == [2, 1, 1, 1, 1, 1] + 6 * [
        0
    ]


# -- the brain set with masks ---------------------------------------------------------------------------------------


def brain(protocol: str = "official"):
    try:
        return load("figshare_brain", 64, REAL, protocol)
    except DataNotFoundError as error:
        pytest.skip(str(error))


def test_the_brain_set_with_masks_is_what_its_table_says():
    import pandas as pd

    data = brain()
    index = pd.read_csv(REAL / "figshare-brain-tumor" / "index.csv").set_index("image").loc[data.ids]
    assert (audit.expectation(data)["difference"] == 0).all() and len(data) == 3064
    assert (index["class"] == np.array(data.classes)[data.labels]).all() and (index["split"] == data.split).all()
    assert len(np.unique(data.groups)) == 209 == index["patient_group"].nunique()
    assert not set(data.groups[data.split == "train"]) & set(data.groups[data.split != "train"])
    assert data.masks.any(axis=(1, 2)).all()
    area = data.masks.mean(axis=(1, 2))
    assert np.corrcoef(area, index["mask_fraction"])[0, 1] > 0.999 and abs(area - index["mask_fraction"]).max() < 0.003
    rows = np.array([np.flatnonzero(mask.any(axis=1))[[0, -1]] for mask in data.masks])
    assert np.abs(rows[:, 0] * 160 / 64 - index["y0"]).max() < 4, "the mask lies where the table says"
    leaks = audit.leaks(data, audit.twins(data)).set_index("shared with training")["test_images"]
    assert (leaks == 0).all()
    assert "209 persons, found by the column 'patient_group'" in describe(data)
    assert brain("leak_free").split_hash == data.split_hash, "the published split keeps persons apart"


def test_the_table_that_comes_with_the_code_says_the_same(tmp_path):
    brain()
    for name in ("images", "masks"):
        (tmp_path / name).symlink_to(REAL / "figshare-brain-tumor" / name)
    shutil.copy(REPOSITORY / "data" / "figshare_brain.csv", tmp_path / "index.csv")
    own, given = (
        read(tmp_path / "index.csv", {"person": "patient_group"}),
        read(REAL / "figshare-brain-tumor" / "index.csv"),
    )
    assert (own.ids, own.labels, own.split) == (
        given.ids,
        given.labels,
        given.split,
    ) and own.left_out == given.left_out == {}
    for mine, theirs in zip(own.masks, given.masks, strict=True):
        assert [path.resolve() for path in mine] == [path.resolve() for path in theirs]
    assert len(set(own.persons)) == 209 and own.persons == given.persons


def test_where_the_brain_set_with_masks_comes_from_is_said(tmp_path):
    with pytest.raises(DataNotFoundError, match="1512427.*tumorMask.*index.csv") as caught:
        fetch.fetch("figshare_brain", tmp_path)
    assert str(tmp_path / "figshare-brain-tumor") in str(caught.value)
    for name in ("images", "masks"):
        (tmp_path / "figshare-brain-tumor" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=r"index.csv cannot be read"):
        fetch.fetch("figshare_brain", tmp_path)


# -- masks of another source ----------------------------------------------------------------------------------------


def slices() -> dict[str, tuple[str, bool]]:
    """Image of the Kaggle brain set -> the mask of the slice that it is, and whether it shows that mirrored."""
    with (REPOSITORY / "data" / "figshare_brain.csv").open() as file:
        masks = {row["id"]: row["image"].replace("images", "masks") for row in csv.DictReader(file)}
    with (REPOSITORY / "data" / "brain_tumor_slices.csv").open() as file:
        return {row["image"]: (masks[row["figshare_id"]], row["mirrored"] == "1") for row in csv.DictReader(file)}


def test_images_of_the_brain_set_have_the_masks_of_the_slices_that_they_are(tmp_path):
    known, sets = slices(), tmp_path / "brain-tumor-mri-dataset"
    folders = [
        f"{split}/{name}"
        for split in ("Training", "Testing")
        for name in ("glioma", "meningioma", "notumor", "pituitary")
    ]
    truth = {}
    for folder in folders:
        of_folder = [name for name in known if name.startswith(f"{folder}/")]
        some = [
            name
            for mirrored in (False, True)
            for name in [name for name in of_folder if known[name][1] == mirrored][:3]
        ]
        for name in [
            *some,
            f"{folder}/nobody_knows_1.png",
            f"{folder}/nobody_knows_2.png",
            f"{folder}/nobody_knows_3.png",
        ]:
            picture(sets / name, 32, 32)
            truth[name] = np.zeros((32, 32), bool)
            if name in known:
                mask = lesion(tmp_path / "figshare-brain-tumor" / known[name][0], (slice(8, 14), slice(3, 9)), 32, 32)
                truth[name] = mask[:, ::-1] if known[name][1] else mask
    alone = load("brain_tumor", 32, tmp_path / "brain-tumor-mri-dataset")
    (tmp_path / "figshare-brain-tumor" / "images").mkdir()
    data = load("brain_tumor", 32, tmp_path)
    assert alone.masks is None and (alone.data_hash, alone.split_hash) == (data.data_hash, data.split_hash)
    assert sorted({mask.argmax() for mask in truth.values() if mask.any()}) == [8 * 32 + 3, 8 * 32 + 23], (
        "both ways occur"
    )
    assert all(np.array_equal(mask, truth[name]) for mask, name in zip(data.masks, data.ids, strict=True))


def test_borrowed_masks_lie_where_the_slices_agree():
    brain()
    try:
        data, source, known = load("brain_tumor", 64, REAL), load("figshare_brain", 64, REAL), slices()
    except DataNotFoundError as error:
        pytest.skip(str(error))
    assert data.data_hash == "ae46e367556e0fd3", "what was recorded without masks stays what it was"
    place = {name.replace("images", "masks"): k for k, name in enumerate(source.ids)}
    at = [k for k, name in enumerate(data.ids) if name in known]
    assert len(at) == 4750 == data.masks.any(axis=(1, 2)).sum()
    for k in at[::7]:
        name, mirrored = known[data.ids[k]]
        slice_, mask = source.images[place[name], ..., 0], source.masks[place[name]]
        same, other = (slice_[:, ::-1], slice_) if mirrored else (slice_, slice_[:, ::-1])
        likeness = [np.corrcoef(data.images[k, ..., 0].ravel(), images.ravel())[0, 1] for images in (same, other)]
        assert likeness[0] > 0.999 > 0.985 > likeness[1], data.ids[k]
        assert np.array_equal(data.masks[k], mask[:, ::-1] if mirrored else mask)
