"""A prediction for an image of one's own: calibrated, explained, and marked where it is unlike the training images."""

import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from kdnb import explain, fidelity, files, one_image, runs, students
from kdnb.datasets import load, load_for
from kdnb.errors import ArtefactError, DataError, DataNotFoundError, StorageError
from kdnb.explain.own_image import (
    OwnImage,
    calibrated,
    calibration_temperature,
    distances_among,
    evidence_maps,
    explain_arrays,
    explain_image,
    farthest_likely,
    nearest_distance,
)
from kdnb.models import StudentCNN, initialised
from kdnb.settings import budget


@pytest.fixture(scope="module")
def data():
    return load("phantom:certain", 32, phantom_images=960)


@pytest.fixture(scope="module")
def student(data):
    model = initialised(StudentCNN, len(data.classes), budget("smoke").student_widths, seed=0)
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
    assert f" by {len(data.index('val'))} images), do not rely on this" in str(strange)
    assert sum(answer.unlike_training for answer in known) <= 2
    for answer in (known[0], strange):
        assert all(a.shape == (32, 32) for a in answer.maps.values())
        assert set(answer.maps) == {*(f"feature_maps_layer{d}" for d in range(1, 6)), "grad_cam", "shap"} and all(
            a.shape == (32, 32) for a in answer.maps.values()
        )
        assert answer.probabilities["probability"].sum() == pytest.approx(1)
        assert answer.probabilities["probability"].is_monotonic_decreasing
        assert set(answer.probabilities["class"]) == set(data.classes)


def test_an_image_file_is_explained_with_a_finished_run(run, data, tmp_path):
    position = data.index("test")[0]
    Image.fromarray(data.images[position]).save(tmp_path / "mine.png")
    answer = explain_image(run, tmp_path / "mine.png")
    assert np.array_equal(answer.image, data.images[position])
    assert str(answer).startswith(answer.probabilities["class"][0])


def test_paths_arrays_and_pillow_images_are_explained_alike_wherever_one_stands(run, data, tmp_path, monkeypatch):
    pixels = data.images[data.index("test")[0]]
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    monkeypatch.chdir(tmp_path)
    of_the_run = load_for(run.settings)
    monkeypatch.setattr("kdnb.explain.own_image.load_for", lambda settings: of_the_run)  # read once for all
    answers = [explain_image(run.folder, image) for image in ("mine.png", pixels, Image.fromarray(pixels))]
    for answer in answers:
        assert np.array_equal(answer.image, pixels) and answer.probabilities.equals(answers[0].probabilities)
    assert np.array_equal(explain_image(run, pixels[..., 0]).image[..., 1], pixels[..., 0])
    for wrong in (pixels.astype(float), pixels[None], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match="must be uint8"):
            explain_image(run, wrong)
    with pytest.raises(ArtefactError, match="holds no run"):
        explain_image(tmp_path, "mine.png")


def test_evidence_adds_up_to_the_logits(student, data):
    images = torch.from_numpy(data.images[:4]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = student(images)
    sums = evidence_maps(student, images).sum(dim=(2, 3))
    assert torch.allclose(sums + student.classifier.bias, logits, atol=1e-4)
    table = explain_arrays(student, data, data.images[:1], background=2, samples=2)[0].probabilities
    added = table[["evidence_for", "evidence_against", "rest"]].sum(axis=1)
    assert np.allclose(added, table["logit"], atol=1e-4)


def test_where_no_validation_image_is_wrong_the_temperature_does_not_go_to_zero():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    logits = 2.0 * np.eye(4)[labels] + rng.normal(scale=0.1, size=(200, 4))
    temperature = calibration_temperature(logits, labels)
    assert (logits.argmax(1) == labels).all() and temperature > 0.3
    sure = np.exp(logits / temperature)
    assert (sure.max(1) / sure.sum(1)).mean() == pytest.approx(51 / 54, abs=0.02), "as sure as 50 right of 50 allow"
    fitted = calibrated(logits, labels)
    assert fitted["validation_images"] == 200 and 0 <= fitted["ece"] < 0.1


@pytest.mark.parametrize(
    ("count", "said"), [(6, "ring (89% after calibration by 6 images only)"), (200, "ring (89% after calibration)")]
)
def test_a_probability_that_few_images_calibrated_says_so(count, said):
    """Of six validation images nobody can know how sure a network may be, whichever way their temperature turns it."""
    table = pd.DataFrame({"class": ["ring", "spot"], "probability": [0.889, 0.111]})
    calibration = {"temperature": 0.08, "validation_images": count, "ece": 0.25}
    assert str(OwnImage(np.zeros((4, 4, 3), np.uint8), table, {}, {}, 0.1, 1.0, calibration)) == said


def test_one_image_becomes_a_page_and_a_folder_whose_hashes_hold(run, data, tmp_path, capsys):
    import hashlib

    from kdnb.one_image import main

    Image.fromarray(data.images[data.index("test")[0]]).save(tmp_path / "a scan <b>.png")
    for _ in range(2):  # the second replaces the first
        assert main(["--", str(tmp_path / "a scan <b>.png"), str(run.folder)]) == 0
    (folder,) = (run.folder / "explained").iterdir()
    assert str(folder / "index.html") in capsys.readouterr().out
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == files
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert manifest["run"]["dataset"] == "phantom" and manifest["environment"]["packages"]["torch"]
    assert {"maps/grad_cam.npy", "maps/grad_cam.png", "probabilities.csv", "image.png", "index.html"} <= files
    assert sum(name.startswith("maps/evidence_") and name.endswith(".npy") for name in files) == len(data.classes)
    html = (folder / "index.html").read_text()
    fitted = manifest["calibration"]
    assert (
        f"divided by {fitted['temperature']:.3g}, "
        f"the temperature that fits {fitted['validation_images']} validation images best"
    ) in html
    assert f"off by {fitted['ece']:.0%} on average (ECE)" in html
    assert "red places speak for the class" in html
    assert "a scan &lt;b&gt;" in html and "<b>" not in html and "not a medical device" in html
    assert not [word for word in ("http://", "https://", 'src="maps') if word in html], (
        "one page that needs nothing else"
    )


def test_an_explanation_that_fails_leaves_the_earlier_one(run, data, tmp_path, monkeypatch, capsys):
    image = tmp_path / "again.png"
    Image.fromarray(data.images[data.index("test")[1]]).save(image)
    page = one_image.explain(str(image), str(run.folder))
    before = page.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(one_image, "write", full)
    with pytest.raises(StorageError):
        one_image.explain(str(image), str(run.folder))
    assert page.read_bytes() == before


def test_evidence_is_coloured_about_zero_even_where_all_of_it_speaks_for_a_class(tmp_path, monkeypatch):
    values = np.linspace(0.0, 1.0, 16).reshape(4, 4)
    table = pd.DataFrame({"class": ["a"], "probability": [1.0]})
    answer = OwnImage(np.zeros((4, 4, 3), np.uint8), table, {"grad_cam": values}, {"a": values}, None, None, None)
    monkeypatch.setattr(one_image, "_of_model", lambda *_: {"run": {}, "recorded": None})
    one_image.write(answer, None, tmp_path, {"name": "x", "model": "m"})
    evidence, grad_cam = (
        np.asarray(Image.open(tmp_path / "maps" / f"{name}.png")) for name in ("evidence_a", "grad_cam")
    )
    assert evidence[0, 0].min() > 240, "nothing is white"
    assert evidence[-1, -1, 0] > evidence[-1, -1, 2] + 50, "what speaks for a class is red"
    assert grad_cam[0, 0].max() < 100, "viridis begins dark"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A checkout in which no run was made."""
    monkeypatch.setattr(students, "REPOSITORY", tmp_path / "checkout")
    return tmp_path / "checkout"


def explained(fresh, run):
    """The manifest and the page of the one image that was explained with a run."""
    (folder,) = (fresh / "runs" / run / "explained").iterdir()
    return json.loads((folder / "manifest.json").read_text()), (folder / "index.html").read_text()


def test_without_a_run_the_recorded_student_explains_says_whose_it_is_and_warns_of_an_unlike_image(
    fresh, tmp_path, capsys
):
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert one_image.main(["--", str(tmp_path / "noise.png"), "", ""]) == 0
    whose, what, where = capsys.readouterr().out.splitlines()
    assert whose.startswith("student_kd as recorded, for this run has trained none: phantom-quick-seed0 of ")
    assert (
        "WARNING: unlike the training images" in what and "after calibration" in what and "the explanation is" in where
    )
    manifest, html = explained(fresh, "phantom-quick-seed0")
    record = students.MEASURED / "phantom-quick-seed0"
    assert manifest["recorded"] == students.origin(record, "student_kd") and manifest["recorded"]["commit"] in html
    assert manifest["model_sha256"] == files.file_hash(record / "students" / "student_kd.safetensors")
    assert manifest["unlike_training"] is True and manifest["without"] == ""
    assert manifest["run"]["data"]["data_hash"] == students.provenance(record)["data"]["data_hash"]


@pytest.fixture
def brain(tmp_path, monkeypatch):
    """A record of images that are not here: the default run's, under the name of another."""
    name = "brain_tumor-cpu-seed0-leak_free"
    shutil.copytree(students.MEASURED / "phantom-quick-seed0", tmp_path / "measured" / name)
    path = tmp_path / "measured" / name / "provenance.json"
    provenance = json.loads(path.read_text())
    provenance["run"] = {"dataset": "brain_tumor", "profile": "cpu", "seed": 0, "split_protocol": "leak_free"}
    path.write_text(json.dumps(provenance))
    monkeypatch.setattr(students, "MEASURED", tmp_path / "measured")
    monkeypatch.setattr(one_image, "MEASURED", tmp_path / "measured")
    return name


def test_a_recorded_student_explains_without_its_images_and_says_what_it_cannot_say(brain, fresh, tmp_path, capsys):
    Image.fromarray(np.full((60, 50), 99, np.uint8)).save(tmp_path / "scan.png")
    assert one_image.main(["--", str(tmp_path / "scan.png"), brain, str(tmp_path)]) == 0
    whose, what, _ = capsys.readouterr().out.splitlines()
    assert brain in whose
    assert (
        "not calibrated); nobody can say how sure that is, nor whether the image is unlike the training images, because"
        in what
    )
    assert "dataset 'brain_tumor' is not in" in what and "make data DATASET=brain_tumor" in what
    manifest, html = explained(fresh, brain)
    assert [manifest[name] for name in ("distance", "limit", "calibration", "unlike_training")] == [None] * 4
    assert "is not in" in manifest["without"] and "not calibrated" in html and "(ECE)" not in html
    assert any("shap" in name for name in manifest["files"]) and manifest["run"]["dataset"] == "brain_tumor"
    probabilities = pd.read_csv(next((fresh / "runs" / brain / "explained").iterdir()) / "probabilities.csv")
    assert np.allclose(probabilities["probability"], torch.tensor(probabilities["logit"]).softmax(0), atol=1e-5), (
        "as the network says them"
    )
    assert set(probabilities["class"]) == set(students.classes(students.MEASURED / brain))


def test_other_images_than_those_of_the_record_calibrate_nothing(brain, fresh, monkeypatch, data):
    monkeypatch.setattr("kdnb.explain.own_image.load_for", lambda settings: data)
    answer = explain_image(brain, np.full((60, 50), 99, np.uint8))
    assert answer.calibration is None and "are others than those that it learned from" in str(answer)


def test_a_student_that_is_neither_trained_nor_recorded_is_one_sentence(brain, fresh):
    with pytest.raises(DataNotFoundError, match="brain_tumor"):
        explain_image(brain, np.full((60, 50), 99, np.uint8), "student_ls")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["", "{run}"], "image is ''"), (["absent.png", "{run}"], "cannot be used"), (["x.png", "{run}/no"], "no run")],
)
def test_what_cannot_become_a_page_is_one_sentence(run, words, said, capsys):
    from kdnb.one_image import main

    assert main(["--", *(word.format(run=run.folder) for word in words)]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_what_cannot_be_explained_is_said_in_one_sentence(run, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for name in ("notes.txt", "absent.png"):
        with pytest.raises(DataError, match=f"image .*{name} cannot be used .*: give the path of a PNG"):
            explain_image(run, tmp_path / name)
    with pytest.raises(DataError, match=r"absent\.png cannot be used \(there is no such file\): give"):
        explain_image(run, tmp_path / "absent.png")
    with pytest.raises(ArtefactError, match="student_none"):
        explain_image(run, np.zeros((8, 8), np.uint8), model_name="student_none")


def test_a_wrong_image_is_said_before_anything_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr("kdnb.explain.own_image.load_for", lambda settings: pytest.fail("images were loaded"))
    with pytest.raises(DataError, match=r"absent\.png cannot be used \(there is no such file\)"):
        explain_image(run, tmp_path / "absent.png")


def test_make_explain_looks_for_a_run_below_runs(run, tmp_path, repository):
    """Only what make calls is looked at: a recipe that is printed."""
    command = ["make", "-n", "--no-print-directory", "explain", "READY=", "IMAGE=x.png", "RUN=mine", "RUNS=elsewhere"]
    recipe = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
    assert recipe.strip().endswith('kdnb.one_image -- "$IMAGE" "$RUN" "$DATA_DIR" "$RUNS"')
    opened = students.opened(run.folder.name, "explain_image", runs_dir=run.folder.parent)
    assert opened.folder == run.folder
    with pytest.raises(ArtefactError, match="or the name of a recorded run that keeps its students: phantom-quick"):
        students.opened("mine", "explain_image", runs_dir=run.folder.parent)


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


def test_a_filter_that_was_silent_does_not_make_an_image_strange():
    rng = np.random.default_rng(0)
    seen, other = rng.normal(size=(2, 30, 40))
    seen[:, 0] = 0  # silent on all of few images, and for the first time awake
    assert nearest_distance(other, seen).max() < 3 < nearest_distance(other + 10, seen).min()


@pytest.mark.parametrize("count", [7, 40, 400])
def test_one_image_in_a_hundred_is_farther_than_the_limit(count):
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.normal(size=(2000, count + 1)))
    beyond = np.mean([row[-1] > farthest_likely(row[:-1]) for row in drawn])
    assert beyond == pytest.approx(0.01, abs=0.006)


@pytest.mark.parametrize("count", [4, 20])
def test_few_images_borrow_the_length_of_the_tail_from_the_training_images(count):
    rng = np.random.default_rng(0)
    drawn, beyond = (
        rng.gamma(0.5, size=(400, count + 300)) + 0.5,
        {},
    )  # more far images than logarithms of a normal distribution have
    for name, among in (("alone", None), ("with training", rng.gamma(0.5, size=500) + 0.5)):
        beyond[name] = np.mean([(row[count:] > farthest_likely(row[:count], among)).mean() for row in drawn])
    assert beyond["with training"] < 0.013 < 0.02 < beyond["alone"]


def test_copies_of_training_images_do_not_move_the_limit():
    distances = np.random.default_rng(0).normal(1, 0.1, 20)
    seen = np.random.default_rng(1).normal(size=(200, 900)) + 30  # in float32 a row is not quite itself
    copies = nearest_distance(seen[:3], seen)
    assert farthest_likely(np.concatenate([distances, copies])) == farthest_likely(distances)


def test_distances_among_leave_out_the_image_itself():
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert distances_among(line) * line.std() == pytest.approx([1, 1, 2, 4])
    assert len(distances_among(np.random.default_rng(0).normal(size=(50, 3)), most=7)) == 7


def test_a_sample_has_so_many_of_each_class_and_the_models_own_predictions(student, data):
    sample = fidelity.draw_sample(student, data, 3)
    assert all((sample.classes == name).sum() == 3 for name in data.classes)
    assert set(sample.ids) <= set(data.ids[data.index("test")])
    positions = [list(data.ids).index(name) for name in sample.ids]
    assert np.array_equal(sample.masks, data.masks[positions])
    assert (sample.correct == (sample.targets.numpy() == data.labels[positions])).all()


def test_a_student_of_the_shortcut_relies_on_the_marker_and_its_maps_show_it():

    student, marked, drop = fidelity.shortcut_student(budget("smoke", phantom_images=640, student_epochs=4), seed=0)
    assert drop > 0.4
    sample = fidelity.draw_sample(student, marked, 8)
    markers = marked.notes["shortcut_masks"][[list(marked.ids).index(name) for name in sample.ids]]
    maps = {"feature_maps_layer3": explain.METHODS["feature_maps_layer3"](student, sample.images, sample.targets)}
    rows = fidelity.localisation_rows("student_shortcut", sample, maps, markers, "_shortcut")
    assert rows[rows["metric"] == "mass_ratio_shortcut"]["value"].mean() > 2
