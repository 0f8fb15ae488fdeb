"""A prediction for an image of one's own: calibrated, explained, and marked where it is unlike the training images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdnb import explain, fidelity, runs
from kdnb.datasets import load
from kdnb.errors import ArtefactError, DataError
from kdnb.explain.own_image import SHOWN, calibration_temperature, explain_arrays, explain_image, nearest_distance
from kdnb.models import StudentCNN, initialised


@pytest.fixture(scope="module")
def data():
    return load("phantom", 32, phantom_images=960)


@pytest.fixture(scope="module")
def student(data):
    model = initialised(StudentCNN, len(data.classes), seed=0)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        model.train()(torch.from_numpy(data.images[:64]).permute(0, 3, 1, 2) / 255)
    return model.eval()


@pytest.fixture
def run(tmp_path, student):
    run = runs.start("test", dataset="phantom", profile="smoke", run_dir=tmp_path / "run")
    run.save_model("student_kd", student, "key")
    return run


def test_noise_is_unlike_the_training_images_and_test_images_are_not(student, data):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    images = np.concatenate([data.images[data.index("test")[:20]], noise[None]])
    *known, strange = explain_arrays(student, data, images, background=2, samples=2)
    assert strange.unlike_training and "WARNING: unlike the training images" in str(strange)
    assert sum(answer.unlike_training for answer in known) <= 2
    for answer in (known[0], strange):
        assert set(answer.maps) == set(SHOWN) and all(a.shape == (32, 32) for a in answer.maps.values())
        assert answer.probabilities["probability"].sum() == pytest.approx(1)
        assert answer.probabilities["probability"].is_monotonic_decreasing
        assert set(answer.probabilities["class"]) == set(data.classes)


def test_an_image_file_is_explained_with_a_finished_run(run, data, tmp_path):
    position = data.index("test")[0]
    Image.fromarray(data.images[position]).save(tmp_path / "mine.png")
    answer = explain_image(run, tmp_path / "mine.png")
    assert np.array_equal(answer.image, data.images[position])
    assert str(answer).startswith(answer.probabilities["class"][0])


def test_what_cannot_be_explained_is_said_in_one_sentence(run, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for name in ("notes.txt", "absent.png"):
        with pytest.raises(DataError, match=f"image .*{name} cannot be used .*: give the path of a PNG"):
            explain_image(run, tmp_path / name)
    with pytest.raises(ArtefactError, match="student_none"):
        explain_image(run, tmp_path / "notes.txt", model_name="student_none")


def test_calibration_finds_the_temperature_that_sharpened_the_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=p) for p in probabilities])
    assert calibration_temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)


def test_nearest_distance_is_zero_for_what_was_seen_and_in_units_of_the_spread():
    seen = np.random.default_rng(0).normal(size=(500, 1)) * 7
    assert nearest_distance(seen[:3], seen).max() < 1e-3
    assert nearest_distance(seen.max(axis=0, keepdims=True) + 70, seen)[0] == pytest.approx(10, rel=0.1)


def test_a_sample_has_so_many_of_each_class_and_the_models_own_predictions(student, data):
    sample = fidelity.draw_sample(student, data, 3)
    assert all((sample.classes == name).sum() == 3 for name in data.classes)
    assert set(sample.ids) <= set(data.ids[data.index("test")])
    positions = [list(data.ids).index(name) for name in sample.ids]
    assert np.array_equal(sample.masks, data.masks[positions])
    assert (sample.correct == (sample.targets.numpy() == data.labels[positions])).all()


def test_a_student_of_the_shortcut_relies_on_the_marker_and_its_maps_show_it():
    from kdnb.settings import budget

    student, marked, drop = fidelity.shortcut_student(budget("smoke", phantom_images=640, student_epochs=4), seed=0)
    assert drop > 0.4
    sample = fidelity.draw_sample(student, marked, 8)
    markers = marked.notes["shortcut_masks"][[list(marked.ids).index(name) for name in sample.ids]]
    maps = {"feature_maps_layer3": explain.METHODS["feature_maps_layer3"](student, sample.images, sample.targets)}
    rows = fidelity.localisation_rows("student_shortcut", sample, maps, markers, "_shortcut")
    assert rows[rows["metric"] == "mass_ratio_shortcut"]["value"].mean() > 2
