"""The grid: cells, storage, parallel and distributed training, statistics."""

import _thread
import itertools
import json
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from dask_cluster import cluster_of_two

from kdnb import (
    comparison,
    device,
    evaluation,
    experiments,
    losses,
    models,
    specs,
    stack,
    store,
    sweep,
    teacher_training,
    training,
    views,
)
from kdnb.datasets import ImageSet, phantom
from kdnb.errors import ArtefactError, ParameterError
from kdnb.runs import Run
from kdnb.settings import resolve

CLASSES = phantom.CLASSES


@pytest.fixture(scope="module")
def experiment() -> experiments.Experiment:
    made = phantom.generate(160, 32)
    train, validation, test = (
        training.Examples(made.images[part], made.labels[part]) for part in (slice(96), slice(96, 128), slice(128, 160))
    )
    teacher = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=9)
    bank = views.teacher_bank(teacher, train.images, 2)
    return experiments.Experiment(
        train, validation, test, bank, training.Recipe(epochs=2, batch_size=32, views=2), 4, "data"
    )


def run_at(folder) -> Run:
    return Run(resolve(profile="smoke", run_dir=folder), "test")


def narrow(cells: list[specs.StudentSpec]) -> list[specs.StudentSpec]:
    """The same cells with students that train in no time."""
    return [replace(spec, widths=(4, 8, 8)) for spec in cells]


def small_grid() -> list[specs.StudentSpec]:
    return narrow(specs.grid(["kd"], [0.4], [5.0, 10.0], [0]))


def same(first: specs.TrainedStudent, second: specs.TrainedStudent) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("val_logits", "test_logits", "test_logits_best")
    )


def test_grid_holds_every_combination_and_one_line_of_comparison_a_seed():
    cells = specs.grid(["kd", "kd_t2"], [0.4, 0.7], [5, 10, 15], [0, 1, 2])
    assert len(cells) == 3 + 2 * 2 * 3 * 3
    assert len({spec.name for spec in cells}) == len(cells)
    assert [spec.name for spec in cells if spec.arm == "ce"] == ["ce-s0", "ce-s1", "ce-s2"]


def test_a_named_shape_is_another_cell_and_the_plain_one_keeps_its_name(experiment):
    plain, other = specs.spec("kd_t2", 0, 0.4, 10), specs.spec("kd_t2", 0, 0.4, 10, shape="transparent")
    assert (plain.name, other.name) == ("kd_t2-a0.4-t10-s0", "kd_t2-a0.4-t10-transparent-s0")
    assert specs.student(plain, experiment).features[3][0].kernel_size == (3, 3)
    assert specs.student(other, experiment).features[3][0].kernel_size == (1, 1)


@pytest.mark.parametrize("of_run", ["plain", "transparent"])
def test_other_shapes_are_of_the_plain_student_whatever_the_runs_own_is(experiment, of_run):
    variants = {f"{depth} layers": [specs.spec("kd", 0, 0.4, 10, widths=(4,) * depth)] for depth in (3, 6)}
    logits = 3 * np.eye(4, dtype=np.float32)
    results = {
        spec: specs.TrainedStudent(
            spec, logits[experiment.validation.labels], logits[experiment.test.labels], pd.DataFrame(), 1, None, 0.0
        )
        for group in variants.values()
        for spec in group
    }
    table = comparison.ablation_table(variants, results, replace(experiment, student=of_run), 32).set_index("shape")
    sizes = {
        f"{depth} layers": sum(p.numel() for p in models.StudentCNN(4, (4,) * depth).parameters()) for depth in (3, 6)
    }
    assert table["parameters"].to_dict() == sizes and (table["test_accuracy"] == 1).all()


def test_alpha_one_is_cross_entropy_at_every_temperature():
    assert specs.spec("kd", 0, 1.0, 5.0) == specs.spec("kd_t2", 0, 1.0, 20.0) == specs.spec("ce", 0, 0.4, 7.0)
    assert len(specs.grid(["kd"], [1.0], [3, 5, 7], [0])) == 1


@pytest.mark.parametrize(
    ("arms", "alphas", "temperatures", "seeds", "words"),
    [
        (["kd"], [0.4], [0.0], [0], "temperatures is"),
        (["kd"], [0.4], [-1.0], [0], "temperatures is"),
        (["kd"], [1.2], [5.0], [0], "alphas is"),
        (["kd"], [], [5.0], [0], "alphas is"),
        (["kd"], [0.4], [], [0], "temperatures is"),
        (["kd"], [0.4], [5.0], [], "seeds is"),
        (["kd"], [0.4], [5.0], [1.5], "seeds is"),
        ([], [0.4], [5.0], [0], "arms is"),
        (["best"], [0.4], [5.0], [0], "arm is 'best'"),
    ],
)
def test_wrong_grids_are_refused_before_any_training(arms, alphas, temperatures, seeds, words):
    with pytest.raises(ParameterError, match=words):
        specs.grid(arms, alphas, temperatures, seeds)


def test_finished_cells_are_never_trained_again_and_others_are(tmp_path, experiment, monkeypatch):
    run = run_at(tmp_path)
    first = sweep.train(run, small_grid(), experiment, jobs=1)
    trained = []
    original = sweep.train_student
    monkeypatch.setattr(sweep, "train_student", lambda spec, *rest: trained.append(spec) or original(spec, *rest))
    second = sweep.train(run, [*small_grid(), specs.spec("kd", 0, 0.4, 15.0, widths=(4, 8, 8))], experiment, jobs=1)
    assert trained == [specs.spec("kd", 0, 0.4, 15.0, widths=(4, 8, 8))]
    assert all(same(first[spec], second[spec]) for spec in small_grid())
    np.testing.assert_array_equal(first[small_grid()[1]].test_logits, second[small_grid()[1]].test_logits)
    path = tmp_path / "cells" / "kd-a0.4-t5-w4x8x8-s0.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    trained.clear()
    sweep.train(run, small_grid(), experiment, jobs=1)
    assert [spec.name for spec in trained] == ["kd-a0.4-t5-w4x8x8-s0"]


def test_another_teacher_makes_taught_cells_new_and_leaves_the_others(experiment):
    other = experiments.Experiment(**{**vars(experiment), "bank": experiment.bank + 1})
    taught, alone = specs.spec("kd", 0, 0.4, 5.0), specs.spec("ce", 0, 1, 1)
    assert store.student_key(taught, experiment) != store.student_key(taught, other)
    assert store.student_key(alone, experiment) == store.student_key(alone, other)


def test_parallel_training_gives_the_same_bytes_as_one_after_another(tmp_path, experiment):
    serial = sweep.train(run_at(tmp_path / "a"), small_grid(), experiment, jobs=1)
    parallel = sweep.train(run_at(tmp_path / "b"), small_grid(), experiment, jobs=2)
    assert all(same(serial[spec], parallel[spec]) for spec in small_grid())
    for spec in small_grid():
        first, second = (store.trained_student(run_at(tmp_path / name), spec, experiment).state_dict() for name in "ab")
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        network = store.trained_student(run_at(tmp_path / "a"), spec, experiment)
        np.testing.assert_allclose(
            evaluation.predict(network, experiment.test.images), serial[spec].test_logits, atol=1e-4
        )
    with pytest.raises(ArtefactError, match="is not the finished student"):
        store.trained_student(run_at(tmp_path / "c"), small_grid()[0], experiment)


def test_interrupted_students_stop_training_and_leave_torch_its_threads(tmp_path, experiment, monkeypatch):
    endless = replace(experiment, recipe=training.Recipe(epochs=1_000_000, batch_size=16, views=2))
    steps, ended, interrupted = [], [], threading.Event()
    train_student, arm_loss = sweep.train_student, losses.arm_loss

    def train_and_note(*arguments):
        try:
            return train_student(*arguments)
        finally:
            ended.append(threading.get_ident())

    def interrupt_once_both_train(*arguments, **options):
        steps.append(threading.get_ident())
        if len(steps) > 20 and len(set(steps)) == 2 and not interrupted.is_set():
            interrupted.set()
            _thread.interrupt_main()
        return arm_loss(*arguments, **options)

    monkeypatch.setattr(sweep, "train_student", train_and_note)
    monkeypatch.setattr(losses, "arm_loss", interrupt_once_both_train)
    threads = torch.get_num_threads()
    # What a shell starts in the background ignores it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep.train(run_at(tmp_path), small_grid(), endless, jobs=2)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert interrupted.is_set() and torch.get_num_threads() == threads
    deadline = time.monotonic() + 60
    while set(ended) != set(steps):
        assert time.monotonic() < deadline, "a student trains on for nobody"
        time.sleep(0.01)


def test_unreachable_scheduler_is_one_sentence_before_any_training(tmp_path, experiment):
    with pytest.raises(ParameterError, match="no Dask scheduler answers there"):
        sweep.train(run_at(tmp_path), small_grid(), experiment, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ParameterError, match="no Dask scheduler answers there"):
        sweep.train(run_at(tmp_path), small_grid(), experiment, scheduler="nonsense://x")


def test_dask_sweep_survives_the_death_of_a_worker(tmp_path, experiment):
    """A real scheduler and two real workers on localhost; one worker is killed while it trains;
    the table is the same."""
    cells = narrow(specs.grid(["kd"], [0.4, 0.7], [5.0, 10.0], [0, 1]))
    longer = replace(experiment, recipe=training.Recipe(epochs=20, batch_size=16, views=2))
    with cluster_of_two(tmp_path) as (address, workers):
        killer = _kill_when_one_is_stored(workers[1], tmp_path / "dask" / "cells")
        on_dask = sweep.train(run_at(tmp_path / "dask"), cells, longer, scheduler=address)
        killer.join()
        workers[1].wait(timeout=60)  # it really died
    in_threads = sweep.train(run_at(tmp_path / "here"), cells, longer, jobs=2)
    columns = [name for name in comparison.sweep_table(in_threads, longer).columns if name != "seconds"]
    pd.testing.assert_frame_equal(
        comparison.sweep_table(on_dask, longer)[columns], comparison.sweep_table(in_threads, longer)[columns]
    )


def _kill_when_one_is_stored(process, folder):
    def wait_and_kill():
        while not list(folder.glob("*.safetensors")):
            time.sleep(0.05)
        process.kill()

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def test_a_key_is_of_all_the_code_that_trains_students_one_by_one_or_in_a_stack(tmp_path, monkeypatch):
    made, modules = phantom.generate(12, 32), []
    data = ImageSet("x", made.images, made.labels, CLASSES, *[np.arange(12).astype(str)] * 2, np.repeat("train", 12))
    monkeypatch.setattr(experiments, "source_key", lambda *of: modules.extend(of) or "key")
    monkeypatch.setattr(experiments, "_bank", lambda *_: np.empty((0, 0, 0), np.float32))
    experiments.of_run(run_at(tmp_path), data, None)
    assert {device, models, losses, training, stack, views} <= set(modules)


@pytest.mark.parametrize("variant", ["with_few_images", "with_few_labels"])
def test_other_images_drawn_are_another_experiment(variant, experiment, tmp_path, monkeypatch):
    of_run = (run_at(tmp_path),) if variant == "with_few_images" else ()
    of_teacher = (models.initialised(models.StudentCNN, 4, (4, 8), seed=9),) if variant == "with_few_images" else ()

    def key() -> str:
        return getattr(experiments, variant)(*of_run, experiment, *of_teacher, 2, draw=0).key

    first = key()
    assert key() == first
    monkeypatch.setattr(experiments, "few_labelled", lambda *_: np.arange(8))
    assert key() != first


# -- few images -----------------------------------------------------------------------------------------------------


def test_few_images_are_drawn_and_repeated_and_their_students_lie_apart(experiment, tmp_path):
    run, teacher = run_at(tmp_path), models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=9)
    few = experiments.with_few_images(run, experiment, teacher, per_class=2, draw=3)
    assert len(few.train) == len(experiment.train)
    assert few.recipe == experiment.recipe and experiment.judged and not few.judged, "nobody asks for their best epoch"
    seen = {image.tobytes(): label for image, label in zip(few.train.images, few.train.labels, strict=True)}
    assert len(seen) == 8 and sorted(seen.values()) == [0, 0, 1, 1, 2, 2, 3, 3]
    known = {
        image.tobytes(): label for image, label in zip(experiment.train.images, experiment.train.labels, strict=True)
    }
    assert all(known[image] == label for image, label in seen.items())
    assert np.array_equal(few.bank, views.teacher_bank(teacher, few.train.images, 2))
    drawn_again = experiments.with_few_images(run, experiment, teacher, per_class=2, draw=3)
    assert np.array_equal(drawn_again.train.images, few.train.images) and np.array_equal(drawn_again.bank, few.bank)
    others = experiments.with_few_images(run, experiment, teacher, per_class=2, draw=4)
    assert others.key != few.key and {image.tobytes() for image in others.train.images} != set(seen)
    cells = narrow([specs.spec("kd", 0, 0.4, 5.0)])
    whole_student, few_student = (sweep.train(run, cells, m, jobs=1)[cells[0]] for m in (experiment, few))
    assert not same(whole_student, few_student)
    assert same(sweep.train(run, cells, experiment, jobs=1)[cells[0]], whole_student), "stored beside, not over"
    with pytest.raises(ParameterError, match="per_class is 0"):
        experiments.with_few_images(run, experiment, teacher, per_class=0, draw=0)


def test_students_of_several_experiments_are_trained_at_once_and_equal_ones_once(experiment, tmp_path, monkeypatch):
    run, trained = run_at(tmp_path), []
    other = replace(experiment, bank=experiment.bank + np.float32([3, 0, 0, 0]), folder="cells_other")
    first, second = narrow([specs.spec("kd", 0, 0.4, 5.0), specs.spec("ce", 1, 1, 1)])
    train = sweep.train_student
    monkeypatch.setattr(sweep, "train_student", lambda *given: trained.append(given[0]) or train(*given))
    students = sweep.train_each(run, [(first, experiment), (first, other), (second, experiment), (first, experiment)])
    assert [student.spec for student in students] == [first, first, second, first] and len(trained) == 3
    assert same(students[0], students[3]) and not same(students[0], students[1])
    assert same(students[1], sweep.train(run, [first], other)[first]) and len(trained) == 3, "each is stored apart"


def test_with_validation_the_students_learn_from_both_and_lie_apart(experiment, tmp_path):
    run, teacher = run_at(tmp_path), models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=9)
    both = experiments.with_validation(run, experiment, teacher)
    assert np.array_equal(both.train.images, np.concatenate([experiment.train.images, experiment.validation.images]))
    assert np.array_equal(both.train.labels, np.concatenate([experiment.train.labels, experiment.validation.labels]))
    assert np.array_equal(both.bank, views.teacher_bank(teacher, both.train.images, 2))
    assert both.test is experiment.test and both.recipe == experiment.recipe
    cells = narrow([specs.spec("kd", 0, 0.4, 5.0)])
    without, with_both = (sweep.train(run, cells, m, jobs=1)[cells[0]] for m in (experiment, both))
    assert not same(without, with_both)
    assert same(sweep.train(run, cells, experiment, jobs=1)[cells[0]], without), "stored beside, not over"


def test_labels_of_persons_say_nothing_of_an_image_but_who_is_shown(experiment):
    groups = {
        "train": np.arange(96) // 2,
        "val": 100 + np.arange(32),
        "test": np.concatenate([np.arange(16) // 2, 200 + np.arange(16)]),
    }
    drawn = experiments.with_labels_of_persons(experiment, groups)
    labels = {part: getattr(drawn, {"val": "validation"}.get(part, part)).labels for part in groups}
    assert np.array_equal(labels["train"][::2], labels["train"][1::2]), "images of a person share a label"
    assert np.array_equal(labels["test"][:16], labels["train"][:16]), "on both sides of the split"
    everyone = pd.Series(np.concatenate(list(labels.values()))).groupby(np.concatenate(list(groups.values()))).first()
    assert np.ptp(everyone.value_counts()) <= 1, "as many persons of each label"
    truth = pd.crosstab(labels["train"][::2], experiment.train.labels[::2])
    assert (truth > 0).all(axis=None), "a person's label has nothing to do with the image's"
    assert drawn.train.images is experiment.train.images and drawn.train.posterior is None
    assert (drawn.key, drawn.folder) != (experiment.key, experiment.folder) and not len(drawn.bank)


def test_another_length_of_training_shares_what_is_trained_and_lies_apart(experiment, tmp_path):
    run, plain = run_at(tmp_path), narrow([specs.spec("ce", 0, 1, 1)])
    [of_the_grid] = sweep.train(run, plain, experiment, jobs=1).values()
    [shorter], [longer] = (
        sweep.train(run, plain, experiments.of_length(experiment, n), jobs=1).values() for n in (2, 5)
    )
    assert shorter.seconds == of_the_grid.seconds, "the grid's own student, not trained again"
    assert len(longer.history) == 5 and not same(longer, shorter)
    [taught] = sweep.train(
        run, narrow([specs.spec("kd_t2", 0, 0.4, 5.0)]), experiments.of_length(experiment, 5), jobs=1
    ).values()
    assert len(taught.history) == 5 and not same(taught, longer), "who listens to the teacher hears it for as long"
    assert sweep.train(run, plain, experiment, jobs=1)[plain[0]].seconds == of_the_grid.seconds, (
        "stored beside, not over"
    )
    both = experiments.with_validation(run, experiment, models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=9))
    [with_validation] = sweep.train(run, plain, both, jobs=1).values()
    [shared] = sweep.train(run, plain, experiments.training_and_validation(experiment), jobs=1).values()
    assert shared.seconds == with_validation.seconds, "with the images of validation: notebook 03's"


def test_refitted_teacher_learns_from_both_by_the_recorded_recipe_and_once(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "densenet121_teacher", lambda classes, *_: models.StudentCNN(classes, (4, 8, 8)))
    run, fit, calls = run_at(tmp_path), training.fit, []
    recipe = training.Recipe(epochs=1, batch_size=32, views=1)
    run.record("teacher", {"key": "the first", "weights": "scratch", "head": "plain", "recipe": asdict(recipe)})
    monkeypatch.setattr(
        training, "fit", lambda *arguments, **options: calls.append(arguments) or fit(*arguments, **options)
    )
    first, second = (teacher_training.refitted_teacher(run, experiment, 0) for _ in range(2))
    [(_, train, _, used, _)] = calls
    assert used == recipe
    assert np.array_equal(train.images, np.concatenate([experiment.train.images, experiment.validation.images]))
    assert np.array_equal(train.labels, np.concatenate([experiment.train.labels, experiment.validation.labels]))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    (run.folder / "results" / "teacher_with_validation_s0_history.csv").unlink()
    teacher_training.refitted_teacher(run, experiment, 0)
    assert len(calls) == 2 and run.has_table("teacher_with_validation_s0_history"), (
        "weights alone do not tell the epochs"
    )
    other = teacher_training.refitted_teacher(run, experiment, 1)
    assert len(calls) == 3 and not all(
        torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items()
    )
    beside = teacher_training.refitted_teacher(run, experiment, 0)
    assert len(calls) == 3 and all(
        torch.equal(value, beside.state_dict()[name]) for name, value in first.state_dict().items()
    )


def test_scores_have_a_row_for_each_network_on_the_images_asked_for(experiment, tmp_path):
    cells, labels, groups = small_grid()[:2], experiment.test.labels, np.arange(len(experiment.test)).astype(str)
    students = sweep.train(run_at(tmp_path), cells, experiment, jobs=1)
    right = np.eye(experiment.num_classes)[labels]
    where = np.arange(len(labels)) % 3 == 0
    table = comparison.scores(students, labels, groups, 20, teachers={7: right, 8: -right}, where=where)
    assert table["model"].tolist() == ["teacher", "teacher", *(f"student_{spec.arm}" for spec in cells)]
    assert table["seed"].tolist() == [7, 8, *(spec.seed for spec in cells)]
    assert (table["n"] == where.sum()).all() and table["f1_macro"].tolist()[:2] == [1.0, 0.0]
    assert table["accuracy"].tolist()[2:] == [
        float((t.test_logits.argmax(1) == labels)[where].mean()) for t in students.values()
    ]
    assert comparison.scores(students, labels, groups, 20)["n"].tolist() == [len(labels)] * 2


# -- statistics on tables with a known answer -----------------------------------------------------------------------


def table_with(effect_of_temperature: float, luck: float, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [{"loss": "ce", "alpha": 1.0, "temperature": 1.0, "seed": s, "test_accuracy": 0.9} for s in range(3)]
    for t, s in itertools.product((5.0, 10.0, 15.0), range(3)):
        accuracy = 0.9 + effect_of_temperature * (t - 10) / 5 + luck * rng.normal()
        rows.append({"loss": "kd", "alpha": 0.4, "temperature": t, "seed": s, "test_accuracy": accuracy})
    return pd.DataFrame(rows)


def test_temperature_against_luck_tells_effect_from_luck():
    strong = comparison.temperature_against_luck(table_with(0.05, 0.002)).iloc[0]
    assert strong["p"] < 0.001 and strong["sd_over_t_points"] > 5 * strong["sd_over_seeds_points"]
    weak = [comparison.temperature_against_luck(table_with(0.0, 0.02, seed)).iloc[0]["p"] for seed in range(20)]
    assert np.mean(np.array(weak) < 0.05) <= 0.2


def source_of(chapter: str, cell: str) -> str:
    """The code of a chapter's cell."""
    path = Path(__file__).parents[1] / "notebooks" / f"{chapter}.ipynb"
    cells = {c["id"]: c["source"] for c in json.loads(path.read_text(encoding="utf-8"))["cells"]}
    return "".join(cells[cell])


def test_the_loop_by_hand_is_the_library_s_whatever_student_the_run_has(experiment):
    with_dropout = replace(experiment, student="mobilenet_v3_small", widths=(4, 8, 8))
    space = {"experiment": with_dropout, "seed": 0, "alpha": 0.4, "temperature": 10.0}
    check = source_of("03_distillation", "cell-30")
    check = check[check.index("loss = partial(") : check.index("assert set(table")]
    assert "the loop by hand is the library's" in check
    for code in (source_of("03_distillation", "cell-04"), source_of("03_distillation", "loop-code")):
        exec(code, space)
    exec(source_of("03_distillation", "loop-itself-code"), space)
    exec(check, space)
    moved = [(space["average"][name] != value).any() for name, value in space["fitted"].state_dict().items()]
    assert any(moved), "the loop has learned something"


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_the_check_of_fading_holds_for_any_logits_and_any_temperatures(size):
    rng = np.random.default_rng(0)
    student, teacher = (size * rng.standard_normal((50, 4)).astype(np.float32) for _ in range(2))
    examples = training.Examples(np.zeros((50, 1, 1, 3), np.uint8), rng.integers(0, 4, 50))
    space = {
        "np": np,
        "comparison": comparison,
        "plain": specs.TrainedStudent(specs.spec("ce", 0, 1, 1), student, student, pd.DataFrame(), 0, student, 0.0),
        "teacher_val": teacher,
        "experiment": type("Experiment", (), {"validation": examples}),
        "entropies": comparison.teacher_entropy(teacher[None], [1.0, 20.0, 1e3, 1e4, 2e4]),
    }
    code = source_of("04_temperature_sweep", "cell-26")
    code = code[: code.index("shown = softened(")]
    assert code.count("assert") == 2
    exec(code, space)


def test_noise_injection_zone_is_where_every_seed_loses():
    zone = comparison.noise_injection_zone(table_with(-0.05, 0.001)).set_index("temperature")["below_for_every_seed"]
    assert zone.to_dict() == {5.0: False, 10.0: zone[10.0], 15.0: True}


def test_noise_injection_zone_looks_at_the_score_that_is_shown():
    table = table_with(-0.05, 0.001).assign(test_expected_accuracy=lambda rows: -rows["test_accuracy"])
    zone = comparison.noise_injection_zone(table, "test_expected_accuracy").set_index("temperature")
    assert not zone.loc[15.0, "below_for_every_seed"] and zone.loc[15.0, "gap_points"] > 0


def test_gains_by_labels_are_paired_by_seed_and_hold_only_the_trained_teacher_s_students():
    columns = ["way", "teacher", "loss", "alpha", "temperature", "seed", "images_per_class", "accuracy"]
    rows = []
    for seed, plain in ((0, 0.5), (1, 0.7)):
        rows += [
            ("labels alone", "trained", "ce", 1, 1, seed, 5, plain),
            ("with T²", "trained", "kd_t2", 0.4, 10, seed, 5, plain + 0.1),
            ("T = 1", "trained", "kd_t2", 0.4, 1, seed, 5, plain + 0.2),
            ("with T², all images", "trained", "kd_t2", 0.4, 10, seed, 5, 0.9),
            ("shuffled", "shuffled", "kd_t2", 0.4, 10, seed, 5, 0.0),
            ("labels alone", "trained", "ce", 1, 1, seed, 0, 0.8),
        ]
    grid = [("ce", 1, 1, 0, 0.8), ("kd", 0.4, 4, 0, 0.85), ("kd", 0.0, 4, 0, 0.1)]
    grid_table = pd.DataFrame(grid, columns=["loss", "alpha", "temperature", "seed", "test_accuracy"])
    gains = comparison.gains_by_labels(pd.DataFrame(rows, columns=columns), grid_table, 0.4, "accuracy")
    found = {tuple(row[:4]): round(row[4], 6) for row in gains.itertuples(index=False)}
    of_few = {(loss, 1, 5, seed): 20.0 for loss in ("kd", "kd_t2") for seed in (0, 1)}
    of_few |= {("kd_t2", 10, 5, seed): 10.0 for seed in (0, 1)}
    assert found == of_few | {("kd", 4, 0, 0): 5.0}, "the two losses are one at T = 1"


def test_choice_looks_at_validation_only():
    rows = [
        {
            "loss": "kd",
            "alpha": a,
            "temperature": 5.0,
            "seed": s,
            "val_f1_macro": v,
            "val_accuracy": v,
            "test_f1_macro": t,
            "test_accuracy": t,
        }
        for a, v, t in ((0.4, 0.9, 0.1), (0.7, 0.8, 0.99))
        for s in (0, 1)
    ]
    assert comparison.choose(pd.DataFrame(rows))["alpha"] == 0.4


def test_gradient_without_t2_fades_as_temperature_grows():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(64, 4)), 3 * rng.normal(size=(64, 4))
    norms = comparison.gradient_norms(student, teacher, rng.integers(0, 4, 64), [5.0, 10.0, 20.0]).pivot(
        index="temperature", columns="loss", values="ratio"
    )
    assert 3.5 < norms.loc[10.0, "without T^2"] / norms.loc[20.0, "without T^2"] < 4.5  # about 1 / T^2
    assert 0.8 < norms.loc[10.0, "with T^2"] / norms.loc[20.0, "with T^2"] < 1.2


def test_teacher_entropy_by_hand():
    # Equal logits are 2 bits at any T; logits far apart are 0 bits at T = 1.
    bank = np.array([[[0.0, 0, 0, 0], [1000.0, 0, 0, 0]]], np.float32)
    assert comparison.teacher_entropy(bank, [1.0])["entropy_bits"].iloc[0] == pytest.approx(1.0)


def test_a_class_without_validation_images_has_no_best_temperature(experiment):
    results = {}
    for spec in specs.grid(["kd"], [0.4], [5.0, 10.0], [0]):
        val, test = (3 * np.eye(4, dtype=np.float32)[part.labels] for part in (experiment.validation, experiment.test))
        if spec.temperature == 5.0:
            val = np.roll(val, 1, axis=1)  # every image wrong
        results[spec] = specs.TrainedStudent(spec, val, test, pd.DataFrame(), 1, test, 0.0)
    best = comparison.best_temperature_per_class(results, experiment, CLASSES)
    assert list(best["class"]) == sorted(CLASSES) and (best["temperature"] == 10).all() and (best["val_f1"] == 1).all()
    kept = experiment.validation.labels != 2
    lacking = replace(
        experiment, validation=training.Examples(experiment.validation.images[kept], experiment.validation.labels[kept])
    )
    results = {spec: replace(trained, val_logits=trained.val_logits[kept]) for spec, trained in results.items()}
    best = comparison.best_temperature_per_class(results, lacking, CLASSES)
    assert list(best["class"]) == sorted(set(CLASSES) - {CLASSES[2]})


def test_what_the_images_of_validation_add_is_counted_on_new_images_only():
    groups = np.array(["a", "b", "b", "c", "d"])  # a is known to training, b to validation, c and d to neither
    before, after = np.array([[0, 0, 0, 1, 1]]), np.array([[1, 1, 1, 1, 1]])
    gains = comparison.gains(
        {"student_ce": (after, before)}, groups, np.array(["a"]), np.array(["b"]), samples=50
    ).set_index("part")
    assert gains["n"].to_dict() == {"become known": 2, "stay new": 2, "stay new minus become known": 4}
    assert gains["mean"].to_dict() == {"become known": 1.0, "stay new": 0.0, "stay new minus become known": -1.0}
