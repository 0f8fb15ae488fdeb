"""One place decides device and arithmetic;
and everything runs where a GPU would be told apart from the host (see second_device.py)."""

import numpy as np
import pytest
import torch
from second_device import DEVICE, MixedDevicesError, second_device
from torch.nn import functional as F

from kdnb import (
    cost,
    device,
    experiments,
    explain,
    few_labels,
    fidelity,
    losses,
    models,
    runs,
    specs,
    stack,
    store,
    sweep,
    teaching,
    training,
    transparency,
    views,
)
from kdnb.datasets import ImageSet, phantom, to_tensor
from kdnb.errors import ParameterError
from kdnb.evaluation import predict
from kdnb.explain import taught as taught_maps
from kdnb.explain.own_image import explain_arrays
from kdnb.fidelity import tables


def data(count: int = 96) -> ImageSet:
    made = phantom.generate(count, 32)
    split = np.array(["train", "train", "val", "test"])[np.arange(count) % 4]
    ids = np.array([f"image_{number}" for number in range(count)])
    return ImageSet("phantom", made.images, made.labels, phantom.CLASSES, ids, ids, split, made.masks, "official")


def of(whole: ImageSet, split: str) -> training.Examples:
    return experiments.examples(whole, split)


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


# -- the second device itself ---------------------------------------------------------------------------------------


def test_the_second_device_refuses_what_a_gpu_refuses():
    with second_device() as watch:
        on_device = torch.ones(3).to(DEVICE)
        with pytest.raises(MixedDevicesError, match="both devices"):
            on_device + torch.ones(3)
        with pytest.raises(MixedDevicesError, match="numpy"):
            on_device.numpy()
        assert (on_device + 1).device == DEVICE and torch.zeros(2, device=on_device.device).device == DEVICE
        assert (watch.values_read, watch.copies_to_host, watch.copies_to_device) == (0, 0, 1)
        assert on_device.sum().item() == 3 and on_device.cpu().numpy().tolist() == [1, 1, 1]
        assert (watch.values_read, watch.copies_to_host) == (1, 1)
        with pytest.raises(MixedDevicesError, match="both devices"):
            torch.ones(3)[torch.tensor([0, 2]).to(DEVICE)]


def test_whatever_has_the_host_wait_for_a_gpu_is_counted():
    waits = {
        "a value": lambda on_device, host: on_device.sum().item(),
        "a decision": lambda on_device, host: bool(on_device.sum() > 1),
        "a copy to the host": lambda on_device, host: on_device.cpu(),
        "a copy to the device": lambda on_device, host: host.to(DEVICE),
        "a list put there": lambda on_device, host: torch.tensor([1.0, 2.0], device=DEVICE),
        "a list as a tensor there": lambda on_device, host: torch.as_tensor([1.0, 2.0], device=DEVICE),
        "an index of the host": lambda on_device, host: on_device[torch.tensor([0, 2])],
        "a mask as index": lambda on_device, host: on_device[on_device > 0],
        "where a mask holds": lambda on_device, host: (on_device > 0).nonzero(),
    }
    for reason, call in waits.items():
        with second_device() as watch:
            on_device = torch.ones(3, device=DEVICE)
            assert watch.waits == 0
            call(on_device, torch.ones(3))
            assert watch.waits == 1, reason
    with second_device() as watch:
        on_device = torch.ones(3, device=DEVICE)
        torch.where(on_device > 0, on_device, 0)[torch.zeros(2, dtype=torch.long, device=DEVICE)]
        torch.ones(3).pin_memory().to(DEVICE, non_blocking=True)
        assert watch.waits == 0 and watch.launches > 0


# -- the study on it ------------------------------------------------------------------------------------------------


def test_training_and_bank_stay_on_the_device_and_find_the_same_numbers(monkeypatch):
    monkeypatch.setenv("KDNB_PRECISION", "float32")  # a processor with bfloat16 would use it here and not there
    dataset = data()
    student, bank, fitted_here = trained(dataset)
    with second_device():
        moved, other_bank, fitted_there = trained(dataset)
        assert device.device_of(moved) == DEVICE
        assert all(value.device == DEVICE for value in fitted_there.last.values())
        logits = predict(moved, of(dataset, "test").images)
    np.testing.assert_array_equal(other_bank, bank)
    np.testing.assert_array_equal(logits, predict(student, of(dataset, "test").images))
    assert fitted_there.history["train_loss"].tolist() == fitted_here.history["train_loss"].tolist()


def test_no_step_waits_for_the_device_however_many_there_are():
    waits = []
    for count in (96, 192):
        with second_device() as watch:
            trained(data(count))
        waits.append((watch.waits, watch.values_read, watch.sizes_read))
    assert waits[0] == waits[1] and waits[0][1:] == (0, 0), "a step waits for the device"


def test_images_that_stay_on_the_host_teach_the_same_and_travel_by_themselves(monkeypatch):
    waits = []
    monkeypatch.setenv("KDNB_PRECISION", "float32")
    _, bank, fitted_here = trained(data(192))
    for module in (training, views):
        monkeypatch.setattr(module, "resident", lambda images, device: torch.from_numpy(np.ascontiguousarray(images)))
    for count in (96, 192):
        with second_device() as watch:
            _, other_bank, fitted_there = trained(data(count))
        waits.append(watch.waits)
    np.testing.assert_array_equal(other_bank, bank)
    assert fitted_there.history["train_loss"].tolist() == fitted_here.history["train_loss"].tolist()
    assert waits[0] == waits[1]


@pytest.mark.parametrize("arm", losses.ARMS)
def test_no_loss_waits_for_the_device(arm):
    draw = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 8, 4, generator=draw)
    targets = torch.arange(8) % 4
    with second_device() as watch:
        on_device = [part.to(DEVICE) for part in (logits, teacher, targets)]
        watch.copies_to_device = 0
        loss = losses.arm_loss(arm, on_device[0].requires_grad_(), *on_device[1:], alpha=0.4, temperature=4.0)
        loss.backward()
        assert watch.waits == 0
        assert loss.item() == losses.arm_loss(arm, logits, teacher, targets, alpha=0.4, temperature=4.0).item()


def stack_of(count: int, whole: ImageSet, steps: int) -> tuple[list[training.Fitted], int]:
    """Students at once on the second device, and how many operations that took."""
    train, validation = of(whole, "train"), of(whole, "val")
    few = training.Examples(train.images[: 8 * steps], train.labels[: 8 * steps])
    bank, recipe = np.zeros((1, 8 * steps, 4), np.float32), training.Recipe(1, batch_size=8, views=1)
    with training.threads(1), second_device() as watch:
        students = [models.initialised(models.StudentCNN, 4, (4, 8), seed=seed) for seed in range(count)]
        fitted = stack.fit(students, few, validation, recipe, [kd] * count, seeds=list(range(count)), bank=bank)
        assert (
            all(device.device_of(student) == DEVICE for student in students)
            and watch.values_read == watch.sizes_read == 0
        )
    return fitted, watch.launches


def test_many_students_at_once_launch_hardly_more_a_step_than_one(monkeypatch):
    monkeypatch.setenv("KDNB_PRECISION", "float32")
    dataset = data()
    launches = {count: [stack_of(count, dataset, steps)[1] for steps in (2, 6)] for count in (3, 12)}
    a_step = {count: (long - short) / 4 for count, (short, long) in launches.items()}
    assert a_step[12] == a_step[3], "a step of twelve is that of three"
    whole_of_one = []
    for steps in (2, 6):
        train = of(dataset, "train")
        few = training.Examples(train.images[: 8 * steps], train.labels[: 8 * steps])
        with second_device() as watch:
            bank, recipe = np.zeros((1, 8 * steps, 4), np.float32), training.Recipe(1, batch_size=8, views=1)
            training.fit(
                models.initialised(models.StudentCNN, 4, (4, 8), seed=0),
                few,
                of(dataset, "val"),
                recipe,
                kd,
                seed=0,
                bank=bank,
            )
        whole_of_one.append(watch.launches)
    assert a_step[12] <= 2 * (whole_of_one[1] - whole_of_one[0]) / 4


def test_a_loaded_model_lives_on_the_device(tmp_path):
    run = runs.start("02_teacher_training", profile="smoke", run_dir=str(tmp_path / "phantom-smoke-seed0"))
    run.save_model("student_kd", small(), "key")
    with second_device():
        assert device.device_of(run.load_model("student_kd", small())) == DEVICE


def test_every_explanation_works_on_the_device():
    dataset = data(32)
    pixels, targets = to_tensor(dataset.images[:3]), torch.tensor([0, 1, 2])
    model = small().eval()
    expected = {name: method(model, pixels, targets) for name, method in methods_of(pixels).items()}
    with second_device():
        moved = device.place(small()).eval()
        on_device, classes = pixels.to(DEVICE), targets.to(DEVICE)
        for name, method in methods_of(on_device).items():
            attribution = method(moved, on_device, classes)
            assert attribution.device == DEVICE, name
            np.testing.assert_allclose(attribution.cpu().numpy(), expected[name].numpy(), atol=1e-5, err_msg=name)


def methods_of(background: torch.Tensor) -> dict:
    return explain.methods(background, training=background, shap_samples=4)


def explained_on_device(*names: str) -> tuple:
    """A small student, a sample of images, the methods of these names, and their maps."""
    model = device.place(small()).eval()
    sample = fidelity.draw_sample(model, data(48), 2)
    chosen = {name: methods_of(sample.images)[name] for name in names}
    return model, sample, chosen, explain.explain_all(chosen, model, sample.images, sample.targets)


def test_fidelity_works_on_the_device():
    with second_device():
        model, sample, chosen, maps = explained_on_device("feature_maps_mean", "grad_cam", "random")
        rows = [
            tables.fidelity_rows(model, "student", sample, maps),
            tables.captum_rows(model, "student", sample, maps, chosen),
        ]
        rows.append(tables.localisation_rows("student", sample, maps))
    assert all(len(table) and table["value"].notna().any() for table in rows)


def test_sanity_checks_and_times_work_on_the_device():
    with second_device():
        model, sample, chosen, maps = explained_on_device("feature_maps_mean", "grad_cam", "sobel")
        fallen = fidelity.cascade(model, sample.images, sample.targets, chosen, ("classifier", "features.4"), [1, 2])
        blind = fidelity.class_sensitivity(model, sample.images, chosen["feature_maps_mean"])
        beside = fidelity.side_by_side(model, sample, {name: maps[name] for name in ("feature_maps_mean", "grad_cam")})
        seen = fidelity.reader_features(list(maps.values()), 4)
        drawn = [
            explain.explain_all(drawn_maps, model, sample.images, sample.targets)
            for drawn_maps in explain.drawn_controls(0)[:2]
        ]
        scored = fidelity.over_draws(
            [fidelity.fidelity_rows(model, "student", sample, drawn_maps, families=True) for drawn_maps in drawn]
        )
        met = cost.met_table({"student": model}, chosen, sample.images, batch_sizes=(1, 2), repeats=1, seconds=0.01)
        passes = cost.passes_within({"student": model}, {"student": 1.0}, 32, repeats=1)
        layers = explain.receptive_fields(model, image_size=32)
    assert fallen["spearman"].notna().any() and blind.min() > 0.999 and len(beside) == len(seen) == len(sample)
    assert (
        scored["value"].notna().any()
        and met["ms_per_image_median"].gt(0).all()
        and len(passes) == 1
        and len(layers) == 5
    )


def test_few_labels_transparency_and_lessons_work_on_the_device(tmp_path):
    dataset, shapes = data(192), ("plain", "transparent", "layered", "spread")
    run = runs.start(
        "03_distillation", profile="smoke", run_dir=str(tmp_path / "phantom-smoke-seed0"), student_epochs=1
    )
    groups = dataset.groups[dataset.index("test")]
    with second_device():
        teacher = device.place(models.initialised(models.StudentCNN, 4, (4, 8, 8, 8), seed=9)).eval()
        experiment = experiments.of_run(run, dataset, teacher)
        ways = few_labels.plan(
            0.4, 4.0, few=True, controls=True, successor=few_labels.Way("dkd", 0.4, 4.0), knows_truth=False
        )
        taught = few_labels.teach(run, experiment, teacher, 3, ways, groups, [0])
        cells = transparency.student_specs(shapes, ("ce",), (0,), 0.4, 4.0)
        results = sweep.train(run, cells, experiment)
        students = {(spec.shape, spec.seed): store.trained_student(run, spec, experiment) for spec in cells}
        assert {device.device_of(student) for student in students.values()} == {DEVICE}
        prices = transparency.prices(results, experiment, 32)
        rows = transparency.explanation_rows(
            students, {"plain": {"class_evidence": explain.METHODS["class_evidence"]}}, dataset, 2
        )
        images = to_tensor(dataset.images[:4]).to(DEVICE)
        apart = transparency.apart(students["transparent", 0], images[0], dataset.classes)
        shares = transparency.layer_shares(students["layered", 0], images, ["a"] * 4)
        price = transparency.passes(students["plain", 0], images, repeats=3)
        explained = experiments.with_explanations(run, experiment, teacher)
        lessons = [specs.spec("kd_t2", 0, 0.4, 4.0, lesson=lesson, weight=1.0) for lesson in taught_maps.LESSONS]
        learned = sweep.train(run, lessons, explained)
        model = store.trained_student(run, lessons[0], explained)
        alike = teaching.likeness(model, explained.explained, images, *answered(teacher, images))
        detectors = teaching.detectors({("a", 0): model}, images, dataset.masks[:4])
    assert (
        len(taught.scores) == len(ways)
        and len(prices) == 4
        and len(apart) == 4
        and len(shares) == 4
        and len(price) == len(detectors) == 1
    )
    assert rows["value"].notna().any() and len(learned) == 3 and np.isfinite(list(alike.values())).all()


def answered(teacher: torch.nn.Module, images: torch.Tensor) -> tuple[taught_maps.Explanations, torch.Tensor]:
    with torch.no_grad():
        return taught_maps.teacher_explanations(teacher, images), teacher(images).argmax(dim=1)


def test_an_image_of_ones_own_is_explained_on_the_device():
    dataset = data(48)
    with second_device():
        model = device.place(small()).eval()
        answers = explain_arrays(model, dataset, dataset.images[:1], background=2, samples=4)
    assert answers[0].maps["shap"].shape == (32, 32)


# -- the arithmetic -------------------------------------------------------------------------------------------------


def test_the_gpu_has_a_number_as_its_tensors_say(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.best_device() == torch.device("cuda:0")


def test_float32_can_be_asked_for_and_anything_else_is_refused(monkeypatch):
    monkeypatch.setenv("KDNB_PRECISION", "float32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert device.precision() == torch.float32
    with device.mixed_precision(torch.device("cpu")):
        assert F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)).dtype == torch.float32
    monkeypatch.setenv("KDNB_PRECISION", "half")
    with pytest.raises(ParameterError, match="KDNB_PRECISION is 'half', but it must be auto or float32"):
        device.precision()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what a CPU trains in")
@pytest.mark.parametrize(
    ("able", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),  # 1.2 times as slow as float32
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx2": True, "cpu_name": "AMD EPYC"}, torch.float32),
    ],
)
def test_training_is_in_bfloat16_where_that_is_faster_and_older_torch_is_not_asked(monkeypatch, able, dtype):
    monkeypatch.delenv("KDNB_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert device.precision() == dtype
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert device.precision() == torch.float32


def test_evaluation_is_in_true_float32():
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_images_that_do_not_fit_stay_on_the_host(monkeypatch):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * images.nbytes - 1, 0))
    assert device.resident(images, torch.device("cuda")).device.type == "cpu"
    on_cpu = device.resident(images, torch.device("cpu"))
    chosen = device.picked(on_cpu, torch.tensor([1]), torch.device("cpu"))
    assert chosen.shape == (1, 3, 4, 4) and torch.equal(device.to_float(chosen), to_tensor(images[1:]))


def test_drawing_weights_leaves_the_generators_as_they_were():
    before = torch.get_rng_state()
    first, second = (models.initialised(torch.nn.Linear, 3, 3, seed=5).weight for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)
