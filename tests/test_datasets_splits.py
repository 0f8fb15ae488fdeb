"""Splits and groups, duplicates, the cache, and the audit of the real data sets."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnb import datasets
from kdnb.datasets import audit, cache, duplicates, fetch, groups, splits
from kdnb.datasets.folders import scan
from kdnb.errors import DataError, DataNotFoundError, DownloadError, ParameterError, StorageError
from kdnb.settings import SPLIT_PROTOCOLS
from kdnb.sources import REPOSITORY

REAL = Path(os.environ.get("KDNB_DATA_DIR", REPOSITORY.parent / "shared" / "datasets"))
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="no real data sets: set KDNB_DATA_DIR to the folder that holds them"
)
# 1.5 million look-alikes
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("alzheimer", "alzheimer:3", "alzheimer:2")]
SETS = ("brain_tumor", "eye_disease", *SLOW)


def real(name: str, protocol: str = "official", size: int = 32, **more):
    try:
        return datasets.load(name, size, REAL, protocol, **more)
    except DataNotFoundError as error:
        pytest.skip(str(error))


def textured(seed: int, side: int = 128) -> Image.Image:
    """A picture with structure at every scale, unlike every other one."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n), dtype=np.uint8)).resize((side, side)) for n in (4, 16, 64)]
    return Image.fromarray(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8))


def make_set(folder: Path, count: int = 12) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            textured(1000 * number + k).save(folder / name / f"{k:02d}.png")
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    return tmp_path / "cache"


# -- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_by_groups_moves_whole_groups_in_proportion(seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 300, 3000)
    labels = (group % 4).astype(np.int64)  # a group has one class, as people do
    names = np.array([f"g{number}" for number in group])
    split = splits.by_groups(labels, names, {"test": 0.2, "val": 0.1})
    assert all(len(set(split[names == name])) == 1 for name in set(names))
    for label in range(4):
        class_split = split[labels == label]
        assert abs((class_split == "test").mean() - 0.2) < 0.03 and abs((class_split == "val").mean() - 0.1) < 0.03


def test_by_groups_does_not_depend_on_the_order_of_images():
    names, labels = np.array([f"g{k // 3}" for k in range(300)]), np.arange(300) // 150
    order = np.random.default_rng(0).permutation(300)
    split = splits.by_groups(labels, names, {"test": 0.2})
    assert (splits.by_groups(labels[order], names[order], {"test": 0.2}) == split[order]).all()


def test_two_groups_of_a_class_give_training_and_test_one_each():
    labels, names = np.array([0] * 100 + [1] * 64), np.array([f"a{k}" for k in range(100)] + ["b0"] * 32 + ["b1"] * 32)
    split = splits.by_groups(labels, names, {"test": 0.2})
    assert sorted((split[labels == 1] == "test").tolist()) == [False] * 32 + [True] * 32


@pytest.mark.parametrize("protocol", SPLIT_PROTOCOLS)
def test_phantom_split_under_every_protocol(protocol):
    data = datasets.load("phantom:certain", 32, split_protocol=protocol, phantom_images=480)
    assert data.split_protocol == protocol
    assert all(len(set(data.split[data.groups == group])) == 1 for group in set(data.groups))


def test_subset_keeps_classes_splits_and_groups():
    full = datasets.load("phantom:certain", 32)
    part = datasets.load("phantom:certain", 32, max_images=600)
    assert 540 <= len(part) <= 660 and part.data_hash != full.data_hash
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        counts = np.bincount(part.labels[part.index(split)], minlength=4)
        assert counts.min() > 0 and abs(counts.sum() / len(part) - share) < 0.03
    where = np.searchsorted(full.ids, part.ids, sorter=np.argsort(full.ids))
    assert (full.split[np.argsort(full.ids)[where]] == part.split).all(), (
        "a subset must not move images to another split"
    )


def test_leak_free_leaves_out_published_test_images_with_a_copy_in_training(tmp_path, own_cache):
    make_set(tmp_path / "set" / "train")
    make_set(tmp_path / "set" / "test")  # the same pictures
    for name in ("cat", "dog"):
        for path in (tmp_path / "set" / "test" / name).iterdir():
            image = (
                textured(7000 + int(path.stem) + 100 * (name == "dog"))
                if int(path.stem) >= 4
                else Image.open(path).rotate(90)
            )
            image.save(path)
    leaky, free = (datasets.load(f"folder:{tmp_path / 'set'}", 64, None, protocol) for protocol in SPLIT_PROTOCOLS)
    assert len(leaky.index("test")) == 24 and len(free.index("test")) == 16 and (free.split == "").sum() == 8
    for part in ("train", "val"):
        assert np.array_equal(leaky.ids[leaky.index(part)], free.ids[free.index(part)]), "one training serves both"
    assert audit.leaks(leaky, audit.twins(leaky)).set_index("shared with training").loc["near copy", "test_images"] == 8
    assert audit.leaks(free, audit.twins(free))["test_images"].sum() == 0 and "anew" not in datasets.describe(free)


def published_set(shared: dict[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, groups and published split of 60 training, 20 validation and 20 test images a class,
    in groups of two of one class.

    ``shared``: of each class, how many of the ten groups of the published test images training has, too.
    """
    labels, groups_, published = [], [], []
    for label in (0, 1):
        for number in range(100):
            part, pair = ("train", "val", "test")[(number >= 60) + (number >= 80)], number // 2
            pair = pair - 40 if part == "test" and pair - 40 < shared[label] else pair
            labels, groups_, published = [*labels, label], [*groups_, f"{label}_{pair:02d}"], [*published, part]
    return np.array(labels), np.array(groups_), np.array(published)


@pytest.mark.parametrize("shared", [5, 6])
def test_leak_free_splits_anew_where_less_than_half_of_a_class_would_be_left(shared):
    labels, whose, published = published_set({0: 0, 1: shared})
    split, anew = splits.split_by("leak_free", labels, whose, published)
    official, kept = splits.split_by("official", labels, whose, published)
    assert (official == published).all() and kept is None and anew == splits.too_little(labels, whose, published)
    assert all(len(set(split[whose == person]) - {""}) == 1 for person in whose)
    if shared == 5:
        assert splits.too_little(labels, whose, published) is None
        assert (split[split != ""] == published[split != ""]).all() and (split == "").sum() == 10
    else:
        assert splits.too_little(labels, whose, published) == ("test", 1, 8, 20)
        assert (split != "").all()
        for part, share in (("val", 0.2), ("test", 0.2)):
            assert all(abs((split[labels == label] == part).mean() - share) <= 0.04 for label in (0, 1)), (
                "the published shares of each class"
            )


def test_splitting_anew_keeps_what_a_published_split_leaves_out():
    labels, whose, published = published_set({0: 10, 1: 10})
    published[whose == "0_07"] = ""
    split, _ = splits.split_by("leak_free", labels, whose, published)
    assert ((split == "") == (whose == "0_07")).all()


def test_where_validation_alone_is_published_the_set_is_not_said_to_be_split_anew():
    """Its test images are cut from training: nothing that is published is given up,
    whatever validation loses to leaks."""
    labels, whose, published = published_set({0: 10, 1: 10})
    published = np.where(published == "test", "val", "train")
    assert splits.too_little(labels, whose, published) == ("val", 0, 0, 20)
    split, anew = splits.split_by("leak_free", labels, whose, published)
    assert anew is None and set(split) >= {"train", "test"}


def test_a_set_that_is_split_anew_says_why(tmp_path, own_cache):
    make_set(tmp_path / "set" / "train")
    make_set(tmp_path / "set" / "test")  # the same pictures
    data = datasets.load(f"folder:{tmp_path / 'set'}", 64, None, "leak_free")
    reason = "split anew by persons and copies, because of 12 published test images of cat only 0 would be left"
    assert reason in datasets.describe(data) and audit.leaks(data, audit.twins(data))["test_images"].sum() == 0


# -- groups ---------------------------------------------------------------------------------------------------------


def test_fellow_eyes_and_series_are_one_person():
    ids = [
        "dataset/normal/12_left.jpg",
        "dataset/glaucoma/12_right.jpg",
        "dataset/dr/12_left.jpeg",
        "dataset/cataract/_7_55.jpg",
    ]
    ids += ["dataset/cataract/_7_99.jpg", "dataset/glaucoma/_7_1.jpg", "dataset/cataract/cataract_001.png"]
    persons = groups.by_name("eye_disease", ids, [name.split("/")[1] for name in ids])
    assert persons[0] == persons[1] != persons[2] and persons[3] == persons[4] != persons[5] and persons[6] == ids[6]


def test_join_is_transitive_and_keeps_the_first_name():
    names = np.array(["d", "a", "c", "b", "b"])
    assert groups.join(names, np.array([[0, 2], [2, 3]])).tolist() == ["b", "a", "b", "b", "b"]
    assert groups.join(names, np.empty((0, 2), int)).tolist() == names.tolist()


# -- duplicates -----------------------------------------------------------------------------------------------------


def find(images: list[Image.Image]) -> duplicates.Twins:
    signatures = np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BOX)) for image in images])
    return duplicates.find(
        images.__getitem__, signatures, np.array([image.tobytes().hex()[:4096] for image in images]), quiet=True
    )


@pytest.mark.parametrize("orientation", range(8))
def test_every_orientation_of_a_copy_is_found(orientation):
    images = [textured(seed) for seed in range(20)]
    images.append(Image.fromarray(np.ascontiguousarray(duplicates.oriented(np.asarray(images[3]), orientation))))
    twins = find(images)
    assert twins.pairs.tolist() == [[3, 20]] and twins.similarity[0] > 0.99
    assert twins.exact[0] == (orientation == 0)
    back = duplicates.oriented(np.asarray(images[20]), int(twins.orientation[0]))
    assert (back == np.asarray(images[3])).all(), "the orientation must turn the second image onto the first"


def test_constant_images_are_no_near_copies():
    twins = find([Image.new("L", (64, 64), value) for value in (0, 10, 200)] + [textured(1)])
    assert len(twins.pairs) == 0


def look_alikes(count: int) -> np.ndarray:
    """Thumbnails that are alike as heads are, so that every pair passes the first step and none the second."""
    outline = np.add.outer(np.arange(64.0), np.arange(64.0) * 2) + 20
    noise = np.random.default_rng(0).integers(-9, 10, (count, 64, 64))
    return np.clip(outline + noise, 0, 255).astype(np.uint8)


def test_thumbnails_compared_in_small_blocks_give_the_same_pairs(monkeypatch):
    signatures = np.concatenate([look_alikes(40), duplicates.oriented(look_alikes(40)[:9], 3), look_alikes(7)])
    pairs, orientation = duplicates.coarse(signatures, quiet=True)
    monkeypatch.setattr(duplicates, "PRODUCT", 5 * len(signatures))
    again, turned = duplicates.coarse(signatures, quiet=True)
    assert np.array_equal(again, pairs) and np.array_equal(turned, orientation) and len(set(orientation.tolist())) > 1


def test_no_false_alarm_among_noise():
    twins = find([textured(seed) for seed in range(300)])
    assert len(twins.copies(duplicates.COPIES_FROM)) == 0


# -- the cache ------------------------------------------------------------------------------------------------------


def test_second_load_decodes_nothing(tmp_path, own_cache, monkeypatch):
    folder = make_set(tmp_path / "set")
    first = datasets.load(f"folder:{folder}", 32)
    monkeypatch.setattr(cache.reading, "read", lambda *_: pytest.fail("decoded again"))
    second = datasets.load(f"folder:{folder}", 32)
    assert second.data_hash == first.data_hash and second.split_hash == first.split_hash
    assert isinstance(second.images, np.memmap) and (second.images == first.images).all()


def test_a_changed_file_changes_the_cache_and_the_hash(tmp_path, own_cache):
    folder = make_set(tmp_path / "set")
    before = datasets.load(f"folder:{folder}", 32)
    textured(99).save(folder / "cat" / "00.png")
    after = datasets.load(f"folder:{folder}", 32)
    assert after.data_hash != before.data_hash and after.split_hash == before.split_hash


def test_split_does_not_depend_on_the_image_size(tmp_path, own_cache):
    folder = make_set(tmp_path / "set")
    assert len({datasets.load(f"folder:{folder}", size).split_hash for size in (32, 48, 128)}) == 1


@pytest.fixture
def two_processes(monkeypatch):
    """Few images are read as many are: by two processes, in small batches."""
    for name, value in (("_WORTH_A_PROCESS", 1), ("_BATCH", 2), ("_WINDOW", 7)):
        monkeypatch.setattr(cache, name, value)
    monkeypatch.setattr(cache.joblib, "cpu_count", lambda: 2)


def test_two_processes_read_what_one_reads(tmp_path, own_cache, monkeypatch, request):
    folder = make_set(tmp_path / "set")
    (folder / "cat" / "empty.png").touch()
    alone = datasets.load(f"folder:{folder}", 32)
    shutil.rmtree(own_cache)
    request.getfixturevalue("two_processes")
    monkeypatch.setattr(cache.reading, "read", lambda *_: pytest.fail("read in this process"))
    shared = datasets.load(f"folder:{folder}", 32)
    assert shared.data_hash == alone.data_hash and (shared.images == alone.images).all()
    assert shared.notes["skipped"] == alone.notes["skipped"] == {"cat/empty.png": "empty file"}
    assert all((shared.notes["metadata"][name] == column).all() for name, column in alone.notes["metadata"].items())


def test_processes_follow_a_change_of_folder(tmp_path, own_cache, monkeypatch, two_processes):
    for place in ("here", "there"):
        make_set(tmp_path / place / "set")
        monkeypatch.chdir(tmp_path / place)
        assert len(datasets.load("folder:set", 32)) == 24


def test_a_process_that_reads_images_starts_without_pandas_and_torch():
    question = "import sys, kdnb.datasets.cache; print({'pandas', 'torch', 'scipy'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


def interrupted(items, *_):
    for number, item in enumerate(items):
        if number == 9:
            raise KeyboardInterrupt
        yield item


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_build_leaves_nothing(processes, tmp_path, own_cache, monkeypatch, request):
    folder = make_set(tmp_path / "set")
    if processes == 2:
        request.getfixturevalue("two_processes")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "progress", interrupted)
        datasets.load(f"folder:{folder}", 32)
    assert [path for path in own_cache.iterdir() if path.suffix != ".lock"] == []
    assert len(datasets.load(f"folder:{folder}", 32)) == 24


def test_a_process_that_is_killed_is_one_sentence(tmp_path, own_cache, monkeypatch, two_processes):
    folder = make_set(tmp_path / "set")
    with (
        monkeypatch.context() as patch,
        pytest.raises(DataError, match="a process that read images was ended") as caught,
    ):
        patch.setattr(cache, "_read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        datasets.load(f"folder:{folder}", 32)
    assert "\n" not in str(caught.value)
    assert [path for path in own_cache.iterdir() if path.suffix != ".lock"] == []
    assert len(datasets.load(f"folder:{folder}", 32)) == 24


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    folder = make_set(tmp_path / "set", 3)
    (tmp_path / "in_the_way").write_text("a file")
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "in_the_way" / "cache")
    with pytest.raises(StorageError, match="could not be written") as caught:
        datasets.load(f"folder:{folder}", 32)
    assert "\n" not in str(caught.value)


# -- fetching -------------------------------------------------------------------------------------------------------


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, capsys):
    import kagglehub

    def offline(handle):
        raise ConnectionError("Max retries exceeded\nand more")

    monkeypatch.setattr(kagglehub, "dataset_download", offline)
    assert fetch.main(["--dataset", "brain_tumor", "--data-dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "by hand" in message and "Training" in message and message.count("\n") == 1
    assert not (tmp_path / "brain-tumor-mri-dataset").exists()


def test_a_download_arrives_whole(tmp_path, monkeypatch):
    import kagglehub

    make_set(tmp_path / "came" / "Training", 2)
    make_set(tmp_path / "came" / "Testing", 2)
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: str(tmp_path / "came"))
    assert fetch.main(["--dataset", "brain_tumor", "--data-dir", str(tmp_path / "data")]) == 0
    assert (tmp_path / "data" / "brain-tumor-mri-dataset" / "Testing" / "dog" / "01.png").exists()


def test_a_half_filled_folder_is_found_before_the_download(tmp_path, monkeypatch):
    import kagglehub

    make_set(tmp_path / "brain-tumor-mri-dataset" / "Training", 2)
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: pytest.fail("downloaded in vain"))
    with pytest.raises(DownloadError, match="brain-tumor-mri-dataset is there, but is not all of brain_tumor: move it"):
        fetch.fetch("brain_tumor", tmp_path)


def test_another_version_is_refused(tmp_path, monkeypatch):
    import kagglehub

    make_set(tmp_path / "came", 2)
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: str(tmp_path / "came"))
    with pytest.raises(DownloadError, match="other folders"):
        fetch.fetch("brain_tumor", tmp_path / "data")


def test_medmnist_from_its_file(tmp_path, own_cache):
    folder = tmp_path / "medmnist"
    folder.mkdir()
    images = {
        f"{split}_images": np.stack([np.asarray(textured(k + shift, 28)) for k in range(12)])
        for split, shift in (("train", 0), ("val", 50), ("test", 90))
    }
    np.savez(
        folder / "pneumoniamnist.npz",
        **images,
        **{f"{split}_labels": np.arange(12)[:, None] % 2 for split in ("train", "val", "test")},
    )
    where = fetch._unpacked("pneumoniamnist", 28, tmp_path, check=False)
    assert len(list(where.rglob("*.png"))) == 36 and scan(where).classes == ("0_normal", "1_pneumonia")


def test_medmnist_refuses_other_tasks(tmp_path):
    for flag in ("chestmnist", "organmnist3d", "nothing"):
        with pytest.raises(ParameterError, match="octmnist"):
            fetch.medmnist_folder(flag, 28, tmp_path)


# -- the real data sets ---------------------------------------------------------------------------------------------


@needs_real
@pytest.mark.parametrize("name", SETS)
def test_nothing_stands_on_two_sides(name):
    data = real(name, "leak_free")
    used = data.split != ""
    sides = {}
    for group, split in zip(data.groups[used], data.split[used], strict=True):
        sides.setdefault(group, set()).add(split)
    assert all(len(split) == 1 for split in sides.values()), "a group on two sides"
    twins = audit.twins(data)
    pairs = data.split[twins.copies(audit.copies_from(data))]
    assert ((pairs[:, 0] == pairs[:, 1]) | (pairs == "").any(axis=1)).all(), "a copy on two sides"
    by_digest = {}
    for digest, split in zip(data.notes["digests"][used], data.split[used], strict=True):
        by_digest.setdefault(digest, set()).add(split)
    assert all(len(split) == 1 for split in by_digest.values()), "an exact copy on two sides"
    assert len(np.unique(data.labels[data.index("test")])) == len(data.classes)


@needs_real
@pytest.mark.parametrize("name", SETS)
def test_validation_is_cut_by_group_in_the_official_split(name):
    data = real(name)
    groups_ = data.groups
    # By copies alone: its persons were recovered later, and the official split stayed what it was.
    if name == "brain_tumor":
        assert np.isin(groups_[data.split == "val"], groups_[data.split == "train"]).any()
        groups_ = groups.join(data.ids, audit.twins(data).copies(audit.copies_from(data)))
    assert not np.isin(groups_[data.split == "val"], groups_[data.split == "train"]).any()
    assert (data.split != "").all()


@needs_real
def test_brain_counts_and_copies():
    data = real("brain_tumor")
    assert len(data) == 7019 and data.notes["skipped"] == {}
    assert audit.expectation(data).set_index("class")["difference"].to_dict() == {
        "glioma": 0,
        "meningioma": 0,
        "notumor": -4,
        "pituitary": 0,
    }
    assert len(data.index("test")) == 1311
    leaks = audit.leaks(data, audit.twins(data)).set_index("shared with training")["test_images"]
    assert leaks["exact copy"] == 216 and leaks["near copy"] > 600
    assert not audit.across_classes(data, audit.twins(data))["exact"].any()


@needs_real
@pytest.mark.parametrize(
    ("name", "official", "leak_free"),
    [
        ("brain_tumor", "5586f78caded7d9b", "7680650188d6122b"),
        ("figshare_brain", "84903db607b5b314", "84903db607b5b314"),
        ("eye_disease", "21ec1e546193d696", "7f9d03ae16ee7e35"),
    ],
)
def test_splits_are_those_of_the_recorded_runs(name, official, leak_free):
    assert real(name).split_hash == official and real(name, "leak_free").split_hash == leak_free


@needs_real
def test_every_known_person_of_the_brain_test_set_is_in_training():
    data = real("brain_tumor")
    counts = audit.of_persons(data).set_index("class")
    assert counts["test_images"].to_dict() == {
        "glioma": 300,
        "meningioma": 306,
        "notumor": 405,
        "pituitary": 300,
        "all": 1311,
    }
    assert counts["person_known"].to_dict() == {
        "glioma": 300,
        "meningioma": 188,
        "notumor": 0,
        "pituitary": 300,
        "all": 788,
    }
    assert (counts["person_known"] == counts["also_in_training"]).all() and counts.loc["all", "persons"] == 188
    assert (counts["persons"] == counts["persons_also_in_training"]).all()
    assert len(audit.contradicting(data)) == 4


@needs_real
def test_brain_mri_is_split_anew_by_person_in_about_the_published_sizes():
    data, official = real("brain_tumor", "leak_free"), real("brain_tumor")
    assert "of 300 published test images of glioma only 0 would be left" in datasets.describe(data)
    assert audit.of_persons(data).set_index("class").loc["all", "persons_also_in_training"] == 0
    for part in ("test", "val"):
        sizes = [np.bincount(dataset.labels[dataset.index(part)]) for dataset in (data, official)]
        assert (np.abs(sizes[0] / sizes[1] - 1) < 0.25).all() and abs(sizes[0].sum() / sizes[1].sum() - 1) < 0.06
    known = np.char.startswith(data.groups, "person_")
    assert known.sum() == 4750 and len(set(data.groups[known])) == 209, (
        "copies join no two persons, and nobody else to them"
    )


@needs_real
def test_eye_counts_and_copies_across_classes():
    data = real("eye_disease")
    assert len(data) == 4217 and (audit.expectation(data)["difference"] == 0).all()
    contradicting = audit.across_classes(data, audit.twins(data))
    assert contradicting["exact"].sum() == 2
    shortcut = audit.shortcut_baseline(data).set_index("classifier")["accuracy"]
    assert shortcut["acquisition only"] > 0.5 > shortcut["most frequent class"]


@pytest.mark.slow
@needs_real
def test_alzheimer_subjects_agree_with_the_images():
    data = real("alzheimer")
    names, counts = np.unique(data.groups, return_counts=True)
    assert len(data) == 6400 and len(names) == 200 and (counts == 32).all()
    by_class = {label: sum(name.startswith(label) for name in names) for label in data.classes}
    assert by_class == groups.ALZHEIMER_SUBJECTS
    links = audit.subject_links(data, audit.twins(data)).set_index("similarity_from")
    assert links.loc[0.6, "pairs"] > 10_000 and links.loc[0.6, "between_groups"] == 0


@pytest.mark.slow
@needs_real
def test_file_numbers_alone_name_the_wrong_subjects():
    data = real("alzheimer")
    twins = audit.twins(data)
    numbers = np.array([groups.alzheimer_number(name) for name in data.ids])
    subjects = np.array([groups.ALZHEIMER_SUBJECTS[data.classes[label]] for label in data.labels])
    rule = np.char.add(data.labels.astype(str), np.char.add("_", ((numbers - 1) % subjects).astype(str)))
    alike = twins.pairs[twins.similarity >= 0.8]
    assert (rule[alike[:, 0]] != rule[alike[:, 1]]).sum() > 100, "then the images need not be looked at"


@pytest.mark.slow
@needs_real
def test_files_that_are_missing_do_not_break_the_subjects():
    data = real("alzheimer")
    keep = np.flatnonzero(np.arange(len(data)) % 97 != 5)
    signatures = np.stack([np.asarray(Image.fromarray(image[..., 0]).resize((64, 64))) for image in data.images[keep]])
    subjects, _ = groups.alzheimer_subjects(data.ids[keep], signatures)
    assert len({(a, b) for a, b in zip(subjects, data.groups[keep], strict=True)}) <= 210
