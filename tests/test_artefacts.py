"""Artefacts that are damaged, foreign or of an older version:
each is noticed, and refused or made again, never used."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kdnb import experiments, models, specs, store, sweep, training
from kdnb.datasets import cache, load, phantom
from kdnb.errors import ArtefactError
from kdnb.files import file_hash
from kdnb.runs import Run
from kdnb.settings import resolve

SIZE = 32


def run_at(folder: Path) -> Run:
    return Run(resolve(profile="smoke", run_dir=folder), "test")


# -- stored images --------------------------------------------------------------------------------------------------


def paint(folder: Path, seed: int) -> None:
    """Eight bitmaps, which have the same number of bytes whatever they show."""
    for number in range(8):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed + number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.bmp")
        os.utime(place / f"{number}.bmp", (1, 1))


def stored(name: str) -> Path:
    (path,) = cache.FOLDER.glob(f"*-{SIZE}/{name}")
    return path


def cut_off(name: str) -> None:
    path = stored(name)
    path.write_bytes(path.read_bytes()[:-5])


def other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data", "x")


def array_alone(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.arange(3))


DAMAGE = {
    "images cut off": lambda: cut_off("images"),
    "thumbnails cut off": lambda: cut_off("signatures"),
    "index cut off": lambda: cut_off("index.npz"),
    "index is another archive": lambda: other_archive(stored("index.npz")),
    "index is an array": lambda: array_alone(stored("index.npz")),
    "images missing": lambda: stored("images").unlink(),
    "copies are another archive": lambda: [other_archive(path) for path in cache.FOLDER.glob("*.npz")],
    "copies are an array": lambda: [array_alone(path) for path in cache.FOLDER.glob("*.npz")],
    "copies cut off": lambda: [path.write_bytes(path.read_bytes()[:50]) for path in cache.FOLDER.glob("*.npz")],
}


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A folder of images, its cache, and what is loaded from it."""
    folder = tmp_path_factory.mktemp("painted")
    before, cache.FOLDER = cache.FOLDER, folder / "cache"
    paint(folder / "set", seed=0)
    data = load(f"folder:{folder / 'set'}", SIZE)
    cache.FOLDER = before
    return folder, np.array(data.images), data.data_hash


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again(damage, painted, tmp_path, monkeypatch):
    folder, images, data_hash = painted
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    shutil.copytree(folder / "cache", cache.FOLDER)
    DAMAGE[damage]()
    rebuilt = load(f"folder:{folder / 'set'}", SIZE)
    assert (rebuilt.images == images).all() and rebuilt.data_hash == data_hash


def test_other_images_under_the_same_names_sizes_and_times_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    paint(tmp_path / "set", seed=0)
    first = load(f"folder:{tmp_path / 'set'}", SIZE)
    pixels = np.array(first.images)
    paint(tmp_path / "set", seed=100)
    second = load(f"folder:{tmp_path / 'set'}", SIZE)
    assert (second.images != pixels).any() and second.data_hash != first.data_hash


def test_a_cache_of_other_images_in_the_place_of_this_one_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    folders, pixels = [], []
    for seed in (0, 100):
        paint(tmp_path / f"set{seed}", seed=seed)
        pixels.append(np.array(load(f"folder:{tmp_path / f'set{seed}'}", SIZE).images))
        folders += [path for path in cache.FOLDER.glob(f"*-{SIZE}") if path not in folders]
    shutil.rmtree(folders[0])
    shutil.copytree(folders[1], folders[0])
    assert (load(f"folder:{tmp_path / 'set0'}", SIZE).images == pixels[0]).all() and (pixels[0] != pixels[1]).any()


def test_what_a_killed_build_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    paint(tmp_path / "set", seed=0)
    load(f"folder:{tmp_path / 'set'}", SIZE)
    (folder,) = cache.FOLDER.glob(f"*-{SIZE}")
    folder.rename(folder.with_name(f".{folder.name}.abc.part"))
    load(f"folder:{tmp_path / 'set'}", SIZE)
    assert folder.exists() and not list(cache.FOLDER.glob(".*.part"))


# -- models and tables ----------------------------------------------------------------------------------------------


def older(path: Path) -> None:
    """The same weights, without the key that says what they were made from."""
    save_file(load_file(path), path)


def test_a_model_of_an_older_version_is_made_again(tmp_path):
    run = run_at(tmp_path)
    run.save_model("teacher", torch.nn.Linear(3, 2), "k")
    older(run.model_path("teacher"))
    run.record(
        "artefacts",
        {"models/teacher.safetensors": {"sha256": file_hash(run.model_path("teacher")), "notebook": "test"}},
    )
    assert not run.has_model("teacher", "k")
    with pytest.raises(ArtefactError, match="other data or settings"):
        run.load_model("teacher", torch.nn.Linear(3, 2), "k")


@pytest.mark.parametrize("name", ["results/sweep.csv", "models/student.safetensors"])
def test_what_another_run_wrote_is_refused(name, tmp_path):
    own_run, other_run = run_at(tmp_path / "here"), run_at(tmp_path / "there")
    for seed, run in enumerate((own_run, other_run)):
        run.save_table("sweep", pd.DataFrame({"seed": [seed]}))
        run.save_model("student", models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=seed), "k")
    shutil.copy(other_run.folder / name, own_run.folder / name)
    with pytest.raises(
        ArtefactError,
        match="is not the file that test wrote: delete .*/notebooks/test.ipynb and run `make reproduce` again",
    ):
        own_run.load_table("sweep") if name.endswith("csv") else own_run.load_model(
            "student", models.StudentCNN(4, (4, 8, 8)), "k"
        )


@pytest.fixture(scope="module")
def experiment() -> experiments.Experiment:
    made = phantom.generate(64, SIZE)
    splits = [
        training.Examples(made.images[cut], made.labels[cut]) for cut in (slice(32), slice(32, 48), slice(48, 64))
    ]
    return experiments.Experiment(
        *splits, np.zeros((1, 32, 4), np.float32), training.Recipe(epochs=1, batch_size=16, views=1), 4, "data"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, experiment):
    """Two students that differ in their seed, as they lie on the disk."""
    run = run_at(tmp_path_factory.mktemp("trained"))
    students = [specs.spec("ce", seed, 1, 1, widths=(4, 8, 8)) for seed in (0, 1)]
    return run.folder, students, sweep.train(run, students, experiment, jobs=1)


def flipped(path: Path) -> None:
    """One bit of one weight is another."""
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)


FOREIGN = {
    "changed by a bit": lambda first, second: flipped(first),
    "another seed's": lambda first, second: shutil.copy(second, first),
    "cut off": lambda first, second: first.write_bytes(first.read_bytes()[:-9]),
    "of an older version": lambda first, second: older(first),
    "empty": lambda first, second: first.write_bytes(b""),
    "text": lambda first, second: first.write_text("student"),
}


@pytest.mark.parametrize("artefact", FOREIGN)
def test_a_student_that_is_not_this_one_is_trained_again(artefact, trained, experiment, tmp_path):
    folder, (spec, other), results = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    files = [tmp_path / "cells" / f"{student.name}.safetensors" for student in (spec, other)]
    before = [file.stat().st_mtime_ns for file in files]
    FOREIGN[artefact](*files)
    retrained_students = sweep.train(run_at(tmp_path), [spec, other], experiment, jobs=1)
    assert np.array_equal(retrained_students[spec].test_logits, results[spec].test_logits)
    expected, retrained = (store.trained_student(run_at(at), spec, experiment) for at in (folder, tmp_path))
    assert all(torch.equal(value, retrained.state_dict()[name]) for name, value in expected.state_dict().items())
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, before, strict=True)] == [False, True]


def test_other_code_or_data_make_every_stored_student_old(trained, experiment):
    _, (spec, _), _ = trained
    assert store.student_key(spec, experiment) != store.student_key(
        spec, experiments.Experiment(**{**vars(experiment), "key": "other"})
    )


def test_the_answers_of_another_teacher_are_not_used(tmp_path):
    run, data = run_at(tmp_path), load("phantom", SIZE, phantom_images=80)
    banks = []
    for seed in (0, 1, 0):
        teacher = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=seed)
        banks.append(experiments.of_run(run, data, teacher).bank)
    assert (banks[0] == banks[2]).all() and (banks[0] != banks[1]).any()
