"""One place decides device and arithmetic; and everything runs where a GPU would be told apart from the host (see second_device.py)."""

import numpy as np
import pytest
import torch
from second_device import DEVICE, Mixed, second_device
from torch.nn import functional as F

from kdnb import device, explain, fidelity, losses, models, runs, sweep, teaching, training, transparency, views
from kdnb.datasets import ImageSet, phantom, to_tensor
from kdnb.errors import ParameterError
from kdnb.evaluation import predict
from kdnb.explain import taught
from kdnb.explain.own_image import explain_arrays
from kdnb.fidelity import tables


def data(count: int = 96) -> ImageSet:
    made = phantom.generate(count, 32)
    split = np.array(["train", "train", "val", "test"])[np.arange(count) % 4]
    ids = np.array([f"image_{number}" for number in range(count)])
    return ImageSet("phantom", made.images, made.labels, phantom.CLASSES, ids, ids, split, made.masks, "official")


def of(whole: ImageSet, split: str) -> training.Examples:
    return sweep.examples(whole, split)


def small() -> models.StudentCNN:
    return models.initialised(models.StudentCNN, 4, (4, 8, 8, 8, 8), seed=0)


def kd(student_logits, teacher_logits, targets):
    return losses.distillation_loss(student_logits, teacher_logits, targets, alpha=0.4, temperature=4.0).total


def trained(whole: ImageSet, epochs: int = 2) -> tuple[torch.nn.Module, np.ndarray, training.Fitted]:
    with training.threads(1):
        teacher = device.place(small()).eval()
        bank = views.teacher_bank(teacher, of(whole, "train").images, 2)
        student, recipe = small(), training.Recipe(epochs, batch_size=16, views=2)
        return student, bank, training.fit(student, of(whole, "train"), of(whole, "val"), recipe, kd, seed=0, bank=bank)


# -- the second device itself ---------------------------------------------------------------------------------------------


def test_the_second_device_refuses_what_a_gpu_refuses():
    with second_device() as watch:
        there = torch.ones(3).to(DEVICE)
        with pytest.raises(Mixed, match="both devices"):
            there + torch.ones(3)
        with pytest.raises(Mixed, match="numpy"):
            there.numpy()
        assert (there + 1).device == DEVICE and torch.zeros(2, device=there.device).device == DEVICE
        assert (watch.values_read, watch.copies_to_host, watch.copies_to_device) == (0, 0, 1)
        assert there.sum().item() == 3 and there.cpu().numpy().tolist() == [1, 1, 1]
        assert (watch.values_read, watch.copies_to_host) == (1, 1)


# -- the study on it ------------------------------------------------------------------------------------------------------


def test_training_and_bank_stay_on_the_device_and_find_the_same_numbers(monkeypatch):
    monkeypatch.setenv("KDNB_PRECISION", "float32")  # a processor with bfloat16 would use it here and not there
    whole = data()
    student, bank, here = trained(whole)
    with second_device():
        moved, other_bank, there = trained(whole)
        assert device.device_of(moved) == DEVICE
        assert all(value.device == DEVICE for value in there.last.values())
        logits = predict(moved, of(whole, "test").images)
    np.testing.assert_array_equal(other_bank, bank)
    np.testing.assert_array_equal(logits, predict(student, of(whole, "test").images))
    assert there.history["train_loss"].tolist() == here.history["train_loss"].tolist()


def test_an_epoch_reads_its_losses_once_however_many_steps_it_has():
    read = []
    for count in (96, 192):
        with second_device() as watch:
            trained(data(count))
        read.append((watch.values_read, watch.copies_to_host, watch.copies_to_device))
    assert read[0] == read[1] and read[0][0] == 0, "a step waits for the device"


def test_a_loaded_model_lives_on_the_device(tmp_path):
    run = runs.start("02_teacher_training", profile="smoke", run_dir=str(tmp_path / "phantom-smoke-seed0"))
    run.save_model("student_kd", small(), "key")
    with second_device():
        assert device.device_of(run.load_model("student_kd", small())) == DEVICE


def test_every_explanation_works_on_the_device():
    whole = data(32)
    pixels, targets = to_tensor(whole.images[:3]), torch.tensor([0, 1, 2])
    model = small().eval()
    expected = {name: method(model, pixels, targets) for name, method in methods_of(pixels).items()}
    with second_device():
        moved = device.place(small()).eval()
        there, classes = pixels.to(DEVICE), targets.to(DEVICE)
        for name, method in methods_of(there).items():
            found = method(moved, there, classes)
            assert found.device == DEVICE, name
            np.testing.assert_allclose(found.cpu().numpy(), expected[name].numpy(), atol=1e-5, err_msg=name)


def methods_of(background: torch.Tensor) -> dict:
    return explain.methods(background, training=background, shap_samples=4)


def test_fidelity_works_on_the_device():
    whole = data(48)
    with second_device():
        model = device.place(small()).eval()
        sample = fidelity.draw_sample(model, whole, 2)
        chosen = {name: methods_of(sample.images)[name] for name in ("feature_maps_mean", "grad_cam", "random")}
        maps = explain.explain_all(chosen, model, sample.images, sample.targets)
        rows = [tables.fidelity_rows(model, "student", sample, maps), tables.captum_rows(model, "student", sample, maps, chosen)]
        rows.append(tables.localisation_rows("student", sample, maps))
    assert all(len(table) and table["value"].notna().any() for table in rows)


def test_sanity_checks_and_filters_work_on_the_device():
    whole = data(48)
    with second_device():
        model = device.place(small()).eval()
        sample = fidelity.draw_sample(model, whole, 2)
        chosen = {"feature_maps_mean": explain.METHODS["feature_maps_mean"]}
        shaken = fidelity.cascade(model, sample.images, sample.targets, chosen, ["classifier", "features.4"], (7,))
        filters = fidelity.concept_filters(model, sample.images, sample.masks)
        evidence = explain.class_evidence(model, sample.images)
        assert evidence.maps.device == DEVICE
        found = transparency.apart(model, sample.images[0], whole.classes)
    assert len(shaken) == 2 * len(sample) and len(filters) == 4 + 4 * 8
    assert np.allclose(found["sum"], found["logit"], atol=1e-4)


def test_explanations_are_taught_on_the_device_and_no_step_waits(tmp_path):
    whole = data(96)
    teacher = models.initialised(models.densenet121_teacher, 4, seed=0)
    with second_device() as watch, training.threads(1):
        teacher = device.place(teacher).eval()
        train = of(whole, "train")
        logits = views.teacher_bank(teacher, train.images, 1)
        rows, layout = taught.explanation_bank(teacher, train.images, 1)
        bank = np.concatenate([logits, rows.astype(np.float32)], axis=2)
        recipe = training.Recipe(1, batch_size=12, views=1)
        material = sweep.Material(
            train, of(whole, "val"), of(whole, "test"), bank, recipe, 4, "key", widths=(4, 4, 8, 8, 8), explained=layout
        )
        before = watch.values_read
        lessons = [sweep.cell("kd_t2", 0, 0.4, 10, lesson=lesson, weight=1.0) for lesson in taught.LESSONS]
        results = [sweep.train_cell(one, material)[0] for one in lessons]
        assert watch.values_read == before, "a step waits for the device"
        students = {("way", 0): device.place(small()).eval()}
        judged = teaching.explanation_rows(students, teacher, layout, whole, 2)
    assert all(np.isfinite(trained.test_logits).all() for trained in results)
    assert {"teacher_likeness", "pointing_game", "insertion_blur"} <= set(judged["metric"])


def test_an_image_of_ones_own_is_explained_on_the_device():
    whole = data(48)
    with second_device():
        model = device.place(small()).eval()
        answers = explain_arrays(model, whole, whole.images[:1], background=2, samples=4)
    assert answers[0].maps["shap"].shape == (32, 32)


# -- the arithmetic ---------------------------------------------------------------------------------------------------------


def test_float32_can_be_asked_for_and_anything_else_is_refused(monkeypatch):
    monkeypatch.setenv("KDNB_PRECISION", "float32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert device.precision() == torch.float32
    with device.mixed_precision(torch.device("cpu")):
        assert F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)).dtype == torch.float32
    monkeypatch.setenv("KDNB_PRECISION", "half")
    with pytest.raises(ParameterError, match="KDNB_PRECISION is 'half', but it must be auto or float32"):
        device.precision()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what a CPU trains in")
def test_training_is_in_bfloat16_where_the_processor_has_it_and_older_torch_is_not_asked(monkeypatch):
    monkeypatch.delenv("KDNB_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert device.precision() == torch.bfloat16
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert device.precision() == torch.float32


def test_evaluation_is_in_true_float32():
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_images_that_do_not_fit_stay_on_the_host(monkeypatch):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * images.nbytes - 1, 0))
    assert device.resident(images, torch.device("cuda")).device.type == "cpu"
    here = device.resident(images, torch.device("cpu"))
    chosen = device.picked(here, torch.tensor([1]), torch.device("cpu"))
    assert chosen.shape == (1, 3, 4, 4) and torch.equal(device.to_float(chosen), to_tensor(images[1:]))


def test_drawing_weights_leaves_the_generators_as_they_were():
    before = torch.get_rng_state()
    first, again = (models.initialised(torch.nn.Linear, 3, 3, seed=5).weight for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), before)
