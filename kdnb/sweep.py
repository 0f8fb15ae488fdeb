"""Many students from one teacher: the arms of notebook 03 and the alpha x T grid of notebook 04.

A :class:`Cell` is one student: its loss, alpha, temperature, seed and shape. All cells share the data, the recipe and the bank of
teacher logits (:class:`Material`); cells of one seed share initial weights and the order of images, so that they are paired. A
finished cell lies in ``cells/<name>.safetensors`` under a key made of all that it depends on, and is never trained again.
"""

import copy
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from scipy.stats import entropy
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from torch import Tensor
from torch.nn import functional as F

from kdnb import cluster, device, losses, models, models3d, networks, stack, tensors, training, views
from kdnb.cost import macs, parameters
from kdnb.datasets import ImageSet
from kdnb.device import best_device, place
from kdnb.errors import ArtefactError, ParameterError
from kdnb.evaluation import (
    classification_scores,
    compare_over_seeds,
    divergence,
    expected_accuracy,
    expected_hits,
    f1_macro,
    known_and_new,
    per_class_scores,
    predict,
    with_holm,
)
from kdnb.explain import taught
from kdnb.explain.taught import Layout, explaining, explanation_bank, lesson_loss
from kdnb.progress import progress
from kdnb.runs import Run, content_key, source_key
from kdnb.settings import check

DEEPER = 512  # filters of each layer beyond the fifth
STACKED_SIDE = 64  # pixels; a student of larger images keeps a GPU busy alone
FEW_SEEN = 600  # images an epoch of students that know only a few: enough to know those by heart
_LOGITS = ("val_logits", "test_logits", "test_logits_best")
_DRAWING = threading.Lock()  # initial weights are drawn from torch's one global generator


@dataclass(frozen=True)
class Cell:
    """One student of a study: what it minimises (an arm of :data:`kdnb.losses.ARMS`), its seed and shape (:data:`kdnb.models.SHAPES`)."""

    arm: str
    seed: int
    alpha: float = 1.0
    temperature: float = 1.0
    widths: tuple[int, ...] | None = None  # filters of each layer; None: those of the run's student
    pool: str = "max"
    shape: str = "plain"
    lesson: str = ""  # which of the teacher's explanations it is taught besides (:data:`kdnb.explain.taught.LESSONS`)
    weight: float = 0.0  # of that lesson, beside the arm's loss

    @property
    def name(self) -> str:
        """The cell's file name without its ending, such as ``kd-a0.4-t10-s0``."""
        mix = "" if self.arm in losses.WITHOUT_TEACHER else f"-a{self.alpha:g}-t{self.temperature:g}"
        shape = "" if self.widths is None else "-w" + "x".join(map(str, self.widths))
        named = "" if self.shape == "plain" else f"-{self.shape}"
        lesson = f"-{self.lesson}{self.weight:g}" if self.lesson else ""
        return f"{self.arm}{mix}{lesson}{named}{shape}{'' if self.pool == 'max' else '-' + self.pool}-s{self.seed}"


@dataclass(frozen=True)
class Material:
    """What every cell is made from, and nothing else: it can be sent to another machine as it is."""

    train: training.Examples
    validation: training.Examples
    test: training.Examples
    bank: np.ndarray
    recipe: training.Recipe
    num_classes: int
    key: str
    folder: str = "cells"  # of the run, where its finished cells lie
    student: str = networks.OWN_STUDENT  # the network that learns, as :mod:`kdnb.networks` names it
    widths: tuple[int, ...] = models.WIDTHS  # filters of each layer of it, where it is the study's own
    explained: Layout | None = (
        None  # how the teacher's explanations lie in the bank, behind its logits, where they are taught
    )
    volumes: models3d.Grid | None = None  # how they lie, where the images are volumes: their students see in depth


@dataclass(frozen=True)
class Trained:
    """A finished cell: logits ``(n, C)`` on validation and test, and the training's history; :func:`trained_student` has its weights."""

    cell: Cell
    val_logits: np.ndarray
    test_logits: np.ndarray
    history: pd.DataFrame
    best_epoch: int
    test_logits_best: np.ndarray
    seconds: float


def cell(arm: str, seed: int, alpha: float, temperature: float, **shape) -> Cell:
    """A cell, with parameters checked; where alpha and T play no part they are set to 1, so that equal cells are one cell.

    Raises:
        ParameterError: an unknown arm, alpha outside [0, 1] or a temperature not above 0.
    """
    check("alpha", alpha)
    check("temperature", temperature)
    if arm not in losses.ARMS:
        raise ParameterError(f"arm is {arm!r}, but it must be one of: {', '.join(losses.ARMS)}.")
    if alpha == 1 and arm != "ls":
        arm = "ce"
    if arm in losses.WITHOUT_TEACHER:
        alpha = temperature = 1.0
    return Cell(arm, seed, float(alpha), float(temperature), **shape)


def grid(
    arms: Sequence[str], alphas: Sequence[float], temperatures: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:
    """All combinations and, for each seed, the line they are compared with: cross-entropy alone (alpha = 1).

    Raises:
        ParameterError: an empty list, or a value that is not allowed.
    """
    check("alphas", alphas), check("temperatures", temperatures), check("seeds", seeds)
    if not arms:
        raise ParameterError(f"arms is {arms!r}, but it must name at least one of: {', '.join(losses.ARMS)}.")
    cells = [cell("ce", seed, 1, 1) for seed in seeds]
    cells += [cell(arm, seed, alpha, t) for seed, arm, alpha, t in itertools.product(seeds, arms, alphas, temperatures)]
    return list(dict.fromkeys(cells))


def widths(depth: int, of_five: tuple[int, ...] = models.WIDTHS) -> tuple[int, ...]:
    """Filters of a student with ``depth`` convolutions: the five-layer student's, cut short or continued with as many as its last."""
    return of_five[:depth] + of_five[-1:] * (depth - len(of_five))


# -- training many ------------------------------------------------------------------------------------------------------


def student(one: Cell, material: Material) -> torch.nn.Module:
    """The cell's student with the initial weights of its seed: the material's network, in the cell's widths, pooling and shape."""
    with _DRAWING:
        if material.volumes is not None:
            return models3d.student(
                one.shape, material.num_classes, one.widths or material.widths, material.volumes, seed=one.seed
            )
        if material.student != networks.OWN_STUDENT:
            what, size = networks.spec("student", material.student), material.train.images.shape[1]
            return models.initialised(networks.build, what, material.num_classes, size, material.widths, seed=one.seed)
        return models.initialised(
            models.student, one.shape, material.num_classes, one.widths or material.widths, one.pool, seed=one.seed
        )


def train_cell(
    one: Cell, material: Material, checkpoints: str | None = None, stop: threading.Event | None = None
) -> tuple[Trained, dict[str, Tensor]]:
    """Train one student on one thread (on a GPU if there is one), and return it with its weights; a pure function of its arguments.

    Args:
        checkpoints: a folder for the state of an unfinished training, or ``None``.
        stop: once it is set, the training ends at its next step with :class:`Stopped`.
    """
    started = time.perf_counter()

    def loss(student_logits: Tensor, teacher_logits: Tensor | None, targets: Tensor) -> Tensor:
        if stop is not None and stop.is_set():
            raise Stopped
        return losses.arm_loss(
            one.arm, student_logits, teacher_logits, targets, alpha=one.alpha, temperature=one.temperature
        )

    def with_lesson(student_logits: Tensor, said: Tensor, targets: Tensor) -> Tensor:
        teacher_logits, maps = (
            said[:, : material.num_classes],
            material.explained.split(said[:, material.num_classes :]),
        )
        lesson = lesson_loss(one.lesson, shows(), maps, teacher_logits.argmax(dim=1))
        return loss(student_logits, teacher_logits, targets) + one.weight * lesson

    with training.threads(1), ExitStack() as hooks:
        model = student(one, material)
        if one.lesson:
            shows = hooks.enter_context(explaining(model, material.explained))
        fitted = training.fit(
            model,
            material.train,
            material.validation,
            material.recipe,
            with_lesson if one.lesson else loss,
            seed=one.seed,
            bank=None if one.arm in losses.WITHOUT_TEACHER else material.bank,
            checkpoint=_unfinished(Path(checkpoints), one) if checkpoints and Path(checkpoints).is_dir() else None,
            key=cell_key(one, material),
            what=one.name,
        )
        return _finished(one, model, fitted, material, time.perf_counter() - started)


def _finished(
    one: Cell, model: torch.nn.Module, fitted: training.Fitted, material: Material, seconds: float
) -> tuple[Trained, dict[str, Tensor]]:
    """A trained cell with its logits and weights; ``model`` holds the last weights."""
    val_logits, test_logits = (predict(model, examples.images) for examples in (material.validation, material.test))
    best_logits = test_logits
    if fitted.best_epoch < len(fitted.history):  # else the last epoch is the best
        model.load_state_dict(fitted.best)
        best_logits = predict(model, material.test.images)
    weights = {name: value.cpu() for name, value in fitted.last.items()}
    return Trained(one, val_logits, test_logits, fitted.history, fitted.best_epoch, best_logits, seconds), weights


def stacked(cells: Sequence[Cell], material: Material) -> list[list[Cell]]:
    """The cells in groups that train at once (:mod:`kdnb.stack`): on a GPU, on images so small that a step is launches; else none.

    A student of one's own may hold what a stack cannot (dropout, say), one of volumes is large, and one that is taught to explain is
    hooked: they train alone.
    """
    small = material.train.images.shape[1] <= STACKED_SIDE
    own = material.student == networks.OWN_STUDENT and material.volumes is None
    if best_device().type == "cpu" or not small or not own or material.explained:
        return []
    shapes: dict[tuple, list[Cell]] = {}
    for one in sorted(cells, key=lambda one: (one.arm, one.alpha, one.temperature)):  # a loss at a time
        shapes.setdefault((one.shape, one.widths, one.pool), []).append(one)
    return [group[k : k + stack.MOST] for group in shapes.values() for k in range(0, len(group), stack.MOST)]


def train_stack(cells: Sequence[Cell], material: Material) -> Iterator[tuple[Trained, dict[str, Tensor]]]:
    """:func:`train_cell` for cells of one shape at once; a stack that is interrupted starts anew, its time being that of a few students."""
    started = time.perf_counter()

    @cache  # students that differ in their seed alone have one loss
    def loss_of(arm: str, alpha: float, temperature: float):
        options = {"alpha": alpha, "temperature": temperature}
        return lambda z, t, y: losses.arm_loss(arm, z, None if arm in losses.WITHOUT_TEACHER else t, y, **options)

    students, seeds = [student(one, material) for one in cells], [one.seed for one in cells]
    parts = (
        material.train,
        material.validation,
        material.recipe,
        [loss_of(one.arm, one.alpha, one.temperature) for one in cells],
    )
    fitted = stack.fit(students, *parts, seeds=seeds, bank=material.bank)
    seconds = (time.perf_counter() - started) / len(cells)
    for one, model, found in zip(cells, students, fitted, strict=True):
        yield _finished(one, model, found, material, seconds)


def run_cells(
    run: Run, cells: Sequence[Cell], material: Material, *, scheduler: str | None = None, jobs: int = 0
) -> dict[Cell, Trained]:
    """Train the cells that are not finished yet, store each as it ends, and return all.

    Args:
        scheduler: address of a Dask scheduler (``"tcp://host:8786"``) whose workers shall train; ``None`` trains here.
        jobs: students trained side by side, one thread each; 0 means one per core (on a GPU: one). Threads share Python's lock: where there
            are many cores, Dask workers on the same machine do not.

    Raises:
        ParameterError: no Dask scheduler answers at that address.
    """
    finished = {one: found for one in cells if (found := _stored(run, one, material)) is not None}
    checkpoints = run.folder / material.folder / "unfinished"
    lost_worker = cluster.lost_worker(scheduler)
    for attempt in itertools.count(1):
        waiting = [one for one in cells if one not in finished]
        if not waiting:
            return {one: finished[one] for one in cells}
        checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            with _engine(scheduler, jobs, material) as stop:
                parallel = joblib.Parallel(
                    return_as="generator_unordered", pre_dispatch="all" if scheduler else "2*n_jobs"
                )
                if stacks := [] if scheduler or jobs else stacked(waiting, material):
                    done = itertools.chain.from_iterable(train_stack(cells_of_one, material) for cells_of_one in stacks)
                else:
                    done = parallel(
                        joblib.delayed(train_cell)(one, material, str(checkpoints), stop) for one in waiting
                    )
                for trained, weights in progress(done, f"{len(waiting)} students", len(waiting)):
                    _store(run, trained, weights, material)
                    _unfinished(checkpoints, trained.cell).unlink(missing_ok=True)
                    finished[trained.cell] = trained
        except lost_worker:
            # Dask trains a dead worker's cells again, unless the only copy of the material died with it: then we send it anew.
            if attempt == cluster.ATTEMPTS:
                raise


class Stopped(Exception):
    """A training ended because nobody waits for it any more: the cell was interrupted, or another student failed."""


@contextmanager
def _engine(scheduler: str | None, jobs: int, material: Material) -> Iterator[threading.Event | None]:
    """Where joblib trains. Here it is in threads: torch leaves Python's lock while it computes, and imports and images are held once."""
    if scheduler is None:
        on_gpu = best_device().type != "cpu"
        jobs = jobs or (1 if on_gpu else os.cpu_count() or 1)
        stop = threading.Event()
        with (
            joblib.parallel_config(backend="sequential" if jobs == 1 else "threading", n_jobs=jobs),
            training.threads(1),
        ):
            try:
                yield stop
            finally:
                stop.set()
        return
    with (
        cluster.client(scheduler) as client,
        client.as_current(),
        joblib.parallel_config(backend="dask", scatter=[material]),
    ):
        yield None


def cell_key(one: Cell, material: Material) -> str:
    """The identity of a finished cell: the cell, the material, and the bank where the cell listens to the teacher."""
    bank = "" if one.arm in losses.WITHOUT_TEACHER else content_key(joblib.hash(material.bank))
    return content_key(asdict(one), asdict(material.recipe), material.key, bank, material.widths)


def _unfinished(checkpoints: Path, one: Cell) -> Path:
    return checkpoints / f"{one.name}.safetensors"


def _path(run: Run, one: Cell, material: Material) -> Path:
    return run.folder / material.folder / f"{one.name}.safetensors"


def _store(run: Run, trained: Trained, weights: dict[str, Tensor], material: Material) -> None:
    parts = {f"weights/{name}": value for name, value in weights.items()}
    parts |= {name: torch.from_numpy(getattr(trained, name)) for name in _LOGITS}
    facts = {"history": trained.history.to_dict("list"), "best_epoch": trained.best_epoch, "seconds": trained.seconds}
    tensors.save(_path(run, trained.cell, material), parts, cell_key(trained.cell, material), facts)


def _stored(run: Run, one: Cell, material: Material) -> Trained | None:
    found = tensors.load(_path(run, one, material), cell_key(one, material))
    if found is None:
        return None
    parts, facts = found
    val, test, best = (parts[name].numpy().copy() for name in _LOGITS)  # a view would keep the whole file in memory
    return Trained(one, val, test, pd.DataFrame(facts["history"]), facts["best_epoch"], best, facts["seconds"])


def trained_student(run: Run, one: Cell, material: Material) -> torch.nn.Module:
    """The network of a finished cell, in evaluation mode.

    Raises:
        ArtefactError: the cell is not finished.
    """
    found = tensors.load(_path(run, one, material), cell_key(one, material))
    if found is None:
        raise ArtefactError(
            f"{_path(run, one, material)} is not the finished student {one.name}: train it first with run_cells."
        )
    network = student(one, material)
    network.load_state_dict(
        {name.removeprefix("weights/"): value for name, value in found[0].items() if name.startswith("weights/")}
    )
    return place(network).eval()


def examples(data: ImageSet, split: str) -> training.Examples:
    """One split of a data set as the loop needs it."""
    where = data.index(split)
    return training.Examples(
        data.images[where], data.labels[where], None if data.posterior is None else data.posterior[where]
    )


def material(run: Run, data: ImageSet, teacher: torch.nn.Module) -> Material:
    """The material of a run: its splits, its recipe, and the teacher's bank, computed once and kept in ``models/bank.safetensors``."""
    train, validation, test = (examples(data, split) for split in ("train", "val", "test"))
    budget = run.budget
    recipe = training.Recipe(
        budget.student_epochs, budget.batch_size, min(budget.views, budget.student_epochs), budget.student_learning_rate
    )
    name = networks.of_run(run, "student")
    identity = networks.identity("student", name)
    key = content_key(data.data_hash, data.split_hash, source_key(device, models, losses, training, views), *identity)
    bank = _bank(run, "bank", train, teacher, recipe.views, key)
    return Material(
        train, validation, test, bank, recipe, len(data.classes), key, student=name, widths=tuple(budget.student_widths)
    )


def few_labelled(whole: Material, per_class: int) -> np.ndarray:
    """Positions of ``per_class`` training images of each class, drawn once; a class that has fewer gives all it has.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    check("per_class", per_class)
    rng = np.random.default_rng([20250215, per_class])
    labels = whole.train.labels
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(whole.num_classes)])


def with_few_images(run: Run, whole: Material, teacher: torch.nn.Module, per_class: int) -> Material:
    """The material with only ``per_class`` training images of each class, repeated up to :data:`FEW_SEEN` an epoch.

    The teacher has seen more: what it knows of the others reaches these students through its logits on the few alone.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    where = np.resize(
        np.random.default_rng(per_class).permutation(few_labelled(whole, per_class)), min(len(whole.train), FEW_SEEN)
    )
    train = _at(whole.train, where)
    key = content_key(whole.key, per_class)
    bank = _bank(run, f"bank_few_{per_class}", train, teacher, whole.recipe.views, key)
    return replace(whole, train=train, bank=bank, key=key, folder=f"cells_few_{per_class}")


def with_few_labels(whole: Material, per_class: int) -> Material:
    """The material with all training images, of which only ``per_class`` of each class keep their label (the same as above).

    Of the others the teacher alone speaks: here it can hand on what it knows of images that nobody labelled.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    labels = np.full(len(whole.train), losses.UNLABELLED)
    known = few_labelled(whole, per_class)
    labels[known] = whole.train.labels[known]
    key = content_key(whole.key, per_class, "the others without labels")
    return replace(whole, train=replace(whole.train, labels=labels), key=key, folder=f"cells_few_labels_{per_class}")


def taught_by(whole: Material, name: str, bank: np.ndarray) -> Material:
    """The material with another teacher's ``bank`` ``(views, N, C)``, such as one of :mod:`kdnb.teachers`."""
    return replace(whole, bank=bank, folder=f"{whole.folder}_{name}")


def with_explanations(run: Run, whole: Material, teacher: torch.nn.Module) -> Material:
    """The material with the teacher's explanations behind its logits in the bank, computed once and kept beside it.

    Raises:
        ModelError: the teacher has no maps of several cells.
    """
    key = content_key(whole.key, source_key(taught), joblib.hash(whole.bank))
    path = run.model_path(f"explanations_{whole.folder}")
    found = tensors.load(path, key)
    if found is None:
        rows, layout = explanation_bank(teacher, whole.train.images, len(whole.bank))
        tensors.save(path, {"explanations": torch.from_numpy(rows)}, key, asdict(layout))
    else:
        rows, layout = (
            found[0]["explanations"].numpy(),
            Layout(tuple(map(tuple, found[1]["attention"])), tuple(found[1]["evidence"])),
        )
    bank = np.concatenate([whole.bank, rows.astype(np.float32)], axis=2)
    return replace(whole, bank=bank, key=key, folder=f"{whole.folder}_explained", explained=layout)


def _at(whole: training.Examples, where: np.ndarray) -> training.Examples:
    posterior = None if whole.posterior is None else whole.posterior[where]
    return training.Examples(whole.images[where], whole.labels[where], posterior)


def of_length(whole: Material, epochs: int) -> Material:
    """The material for students that train for ``epochs``; the views and the bank stay the same."""
    folder = whole.folder + f"_{epochs}_epochs" * (epochs != whole.recipe.epochs)
    return replace(whole, recipe=replace(whole.recipe, epochs=epochs), folder=folder)


def of_plain_student(whole: Material) -> Material:
    """The material for students of the study's own shapes, where the run's student is another network."""
    if whole.student == networks.OWN_STUDENT:
        return whole
    key, folder = content_key(whole.key, networks.OWN_STUDENT), f"{whole.folder}_{networks.OWN_STUDENT}"
    return replace(whole, student=networks.OWN_STUDENT, key=key, folder=folder)


def with_labels_of_persons(whole: Material, groups: dict[str, np.ndarray], seed: int = 20250215) -> Material:
    """The material with a label drawn for each person (group) in place of the true ones: a control for leaks (Yagis et al. 2021).

    Such labels say nothing of the image but who is shown. Whoever reads them on test images, above one in as many as there are classes, has
    recognised a person or a copy that training knows. It has no bank.

    Args:
        groups: the group of each image of ``train``, ``val`` and ``test``.
    """
    persons = np.unique(np.concatenate([groups[part] for part in ("train", "val", "test")]))
    drawn = np.random.default_rng(seed).permutation(np.arange(len(persons)) % whole.num_classes)

    def relabelled(part: training.Examples, who: np.ndarray) -> training.Examples:
        return training.Examples(part.images, drawn[np.searchsorted(persons, who)])

    return replace(
        whole,
        train=relabelled(whole.train, groups["train"]),
        validation=relabelled(whole.validation, groups["val"]),
        test=relabelled(whole.test, groups["test"]),
        bank=np.empty((0, 0, 0), np.float32),
        key=content_key(whole.key, "labels of persons", seed),
        folder=f"{whole.folder}_labels_of_persons",
    )


def training_and_validation(whole: Material) -> Material:
    """The material with the images of validation among those of training, for students of the labels alone: it has no bank.

    What its students say of validation is no measure any more: nothing may be chosen by it.
    """
    parts = (whole.train, whole.validation)
    names = ("images", "labels") if whole.train.posterior is None else ("images", "labels", "posterior")
    train = training.Examples(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    key, folder = content_key(whole.key, "with validation"), f"{whole.folder}_with_validation"
    return replace(whole, train=train, bank=np.empty((0, 0, 0), np.float32), key=key, folder=folder)


def with_validation(run: Run, whole: Material, teacher: torch.nn.Module) -> Material:
    """:func:`training_and_validation` for taught students; the ``teacher`` is :func:`refitted_teacher`, who learned from both, too."""
    both = training_and_validation(whole)
    return replace(both, bank=_bank(run, "bank_with_validation", both.train, teacher, both.recipe.views, both.key))


def _bank(run: Run, name: str, train: training.Examples, teacher: torch.nn.Module, count: int, key: str) -> np.ndarray:
    path = run.model_path(name)
    weights = joblib.hash({name: value.cpu().numpy() for name, value in teacher.state_dict().items()})
    key = content_key(key, weights, count)
    found = tensors.load(path, key)
    if found is None:
        bank = torch.from_numpy(views.teacher_bank(teacher, train.images, count, batch_size=64))
        tensors.save(path, {"logits": bank}, key)
        return bank.numpy()
    return found[0]["logits"].numpy()


def train_teacher(
    run: Run,
    name: str,
    teacher: torch.nn.Module,
    train: training.Examples,
    validation: training.Examples,
    recipe: training.Recipe,
    key: str,
    seed: int,
    scheduler: str | None = None,
) -> pd.DataFrame:
    """Train ``teacher`` in place by cross-entropy and store it under ``name``, or load it if the run holds it under the same key.

    Args:
        recipe: with 0 epochs the teacher is stored as it is: its weights came with it.
        scheduler: address of a Dask scheduler one of whose workers shall train it.

    Returns:
        The history of its epochs: ``epoch``, ``train_loss``, ``val_accuracy``, ``seconds``, ``model``.
    """
    if run.has_model(name, key) and run.has_table(f"{name}_history"):
        run.load_model(name, teacher, key)
        return run.load_table(f"{name}_history")
    unfinished = run.folder / "models" / "unfinished" / f"{name}.safetensors"
    if recipe.epochs == 0:
        known = training.accuracy_of(teacher, teacher.state_dict(), validation)
        made = pd.DataFrame([{"epoch": 0, "train_loss": float("nan"), "val_accuracy": known, "seconds": 0.0}])
    elif scheduler:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        shared = networks.portable(teacher), train, validation, recipe, str(unfinished.absolute()), key
        ((state, made),) = cluster.mapped(scheduler, _teacher_there, shared, [seed])
        teacher.load_state_dict(state)
    else:
        options = {"seed": seed, "checkpoint": unfinished, "key": key, "what": "Teacher"}
        made = training.fit(teacher, train, validation, recipe, _cross_entropy, **options).history
    history = run.save_table(f"{name}_history", made.assign(model="teacher"))
    run.save_model(name, teacher, key)
    unfinished.unlink(missing_ok=True)
    return history


def _cross_entropy(logits: Tensor, teacher_logits: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def _teacher_there(shared: tuple, seed: int) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """A teacher trained on a worker: its weights and its history.

    Its checkpoint lies in the run's folder where the worker sees that; then whoever takes over goes on from there.
    """
    sent, train, validation, recipe, unfinished, key = shared
    options = {"seed": seed, "checkpoint": Path(unfinished) if Path(unfinished).parent.is_dir() else None, "key": key}
    fitted = training.fit(copy.deepcopy(networks.arrived(sent)), train, validation, recipe, _cross_entropy, **options)
    return {name: value.cpu() for name, value in fitted.last.items()}, fitted.history


def refitted_teacher(run: Run, whole: Material, seed: int, scheduler: str | None = None) -> torch.nn.Module:
    """Notebook 02's teacher once more: the same recipe, but the images of training and validation together.

    With the run's seed its start and its order are that teacher's, too; another seed tells what luck there is in training a teacher.
    """
    taught = run.info()["teacher"]
    name, size = networks.of_run(run, "teacher"), whole.train.images.shape[1]
    teacher, _ = networks.new_teacher(name, whole.num_classes, size, taught["weights"], taught["head"], seed)
    recipe, key = training.Recipe(**taught["recipe"]), content_key(taught["key"], "with validation", seed)
    both = training_and_validation(whole).train
    train_teacher(
        run, f"teacher_with_validation_s{seed}", teacher, both, whole.validation, recipe, key, seed, scheduler
    )
    return teacher


# -- tables and statistics ----------------------------------------------------------------------------------------------


def _confusion(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(1), minlength=classes * classes).reshape(classes, classes)


def scores(
    results: dict[Cell, Trained],
    labels: np.ndarray,
    groups: np.ndarray,
    samples: int,
    *,
    teachers: dict[int, np.ndarray] | None = None,
    where: np.ndarray | slice = slice(None),
    posterior: np.ndarray | None = None,
) -> pd.DataFrame:
    """What each network is, and its scores on the test images (:func:`kdnb.evaluation.classification_scores`): one row each.

    Where the true ``posterior`` ``(N, C)`` of the test images is known, ``expected_accuracy`` and ``divergence`` stand beside them.

    Args:
        results: the cells' students. teachers: seed -> test logits ``(N, C)``; their rows come first.
        where: which of the test images count, ``(N,)`` bool; all by default.
    """
    what = {"model": "teacher", "loss": "ce", "alpha": 1.0, "temperature": 1.0}
    said = [(what | {"seed": seed}, logits) for seed, logits in (teachers or {}).items()]
    for one, trained in results.items():
        what = {
            "model": f"student_{one.arm}",
            "loss": one.arm,
            "alpha": one.alpha,
            "temperature": one.temperature,
            "seed": one.seed,
        }
        said.append((what, trained.test_logits))
    rows = [what | classification_scores(labels[where], z[where], groups[where], samples=samples) for what, z in said]
    if posterior is not None:
        for row, (_, logits) in zip(rows, said, strict=True):
            row["expected_accuracy"] = expected_accuracy(logits[where], posterior[where])
            row["divergence"] = divergence(logits[where], posterior[where])
    return pd.DataFrame(rows)


def sweep_table(results: dict[Cell, Trained], material: Material) -> pd.DataFrame:
    """One row per cell: the columns of ``sweep.csv``, the validation F1, the best epoch and its test accuracy.

    Where the true posterior is known, also the expected accuracy and the divergence on the test images.
    """
    rows = []
    for one, trained in results.items():
        val_f1, test_f1 = (
            float(f1_macro(_confusion(part.labels, logits)))
            for part, logits in ((material.validation, trained.val_logits), (material.test, trained.test_logits))
        )
        rows.append(
            {
                "loss": one.arm,
                "alpha": one.alpha,
                "temperature": one.temperature,
                "seed": one.seed,
                "val_accuracy": float((trained.val_logits.argmax(1) == material.validation.labels).mean()),
                "test_accuracy": float((trained.test_logits.argmax(1) == material.test.labels).mean()),
                "test_f1_macro": test_f1,
                "seconds": trained.seconds,
                "val_f1_macro": val_f1,
                "best_epoch": trained.best_epoch,
                "test_accuracy_best_epoch": float((trained.test_logits_best.argmax(1) == material.test.labels).mean()),
            }
        )
        if material.test.posterior is not None:
            rows[-1]["test_expected_accuracy"] = expected_accuracy(trained.test_logits, material.test.posterior)
            rows[-1]["test_divergence"] = divergence(trained.test_logits, material.test.posterior)
    return pd.DataFrame(rows)


def ablation_table(
    variants: dict[str, Sequence[Cell]], results: dict[Cell, Trained], material: Material, image_size: int
) -> pd.DataFrame:
    """One row per plain student of another shape: its parameters, multiply-accumulates, and accuracies on validation and test."""
    rows, material = [], of_plain_student(material)
    for name, one in [(name, one) for name, group in variants.items() for one in group]:
        network, trained = student(one, material), results[one]
        row = {"shape": name, "layers": len(one.widths or material.widths), "pool": one.pool, "seed": one.seed}
        row |= {"parameters": parameters(network), "macs": macs(network, image_size)}
        row["val_accuracy"] = float((trained.val_logits.argmax(1) == material.validation.labels).mean())
        rows.append(row | {"test_accuracy": float((trained.test_logits.argmax(1) == material.test.labels).mean())})
    return pd.DataFrame(rows)


def gains(
    paired: dict[str, Sequence[np.ndarray]],
    groups: np.ndarray,
    trained_on: np.ndarray,
    held_back: np.ndarray,
    samples: int,
) -> pd.DataFrame:
    """What the images of validation add on test images that were new and become known with them, and on those that stay new.

    Args:
        paired: model -> hits ``(S, n)`` of the students that learned from them too, and of those that did not.
        groups: ``(n,)`` of the test images. trained_on, held_back: the groups in training and in validation.
    """
    new, tables = ~np.isin(groups, trained_on), []
    for model, (after, before) in paired.items():
        gain = (after.astype(float) - before).mean(axis=0)[new]
        tables.append(known_and_new(gain, groups[new], held_back, samples, bounds=(-1, 1)).assign(model=model))
    names = {"known": "become known", "new": "stay new", "new minus known": "stay new minus become known"}
    return pd.concat(tables, ignore_index=True).replace({"part": names})


def choose(table: pd.DataFrame) -> pd.Series:
    """The (loss, alpha, temperature) with the highest mean validation F1 over seeds; ties go to the first in the table."""
    means = table.groupby(["loss", "alpha", "temperature"], sort=False)[
        ["val_f1_macro", "val_accuracy", "test_f1_macro", "test_accuracy"]
    ].mean()
    return means.reset_index().loc[int(means["val_f1_macro"].to_numpy().argmax())]


def hits(results: dict[Cell, Trained], test: training.Examples, **wanted) -> np.ndarray:
    """How right each seed is on each test image, over the cells whose fields equal ``wanted``, ``(S, n)`` in the order of seeds.

    0 or 1 by the label or, where the true posterior is known, the probability of the answer (:func:`kdnb.evaluation.expected_hits`).
    """
    chosen = [one for one in results if all(getattr(one, name) == value for name, value in wanted.items())]
    ordered = sorted(chosen, key=lambda one: one.seed)
    return np.stack([expected_hits(results[one].test_logits, test.labels, test.posterior) for one in ordered])


def against_cross_entropy(results: dict[Cell, Trained], test: training.Examples, groups: np.ndarray) -> list[dict]:
    """Rows of ``tests.csv``: every (loss, alpha, T) against alpha = 1, paired by seed and image."""
    plain = hits(results, test, arm="ce")
    rows = []
    for arm, alpha, temperature in dict.fromkeys(
        (one.arm, one.alpha, one.temperature) for one in results if one.arm != "ce"
    ):
        right = hits(results, test, arm=arm, alpha=alpha, temperature=temperature)
        name = f"{arm} alpha={alpha:g} T={temperature:g}"
        rows.append(compare_over_seeds("does the cell beat cross-entropy?", name, "ce", right, plain, groups))
    return rows


def temperature_against_luck(table: pd.DataFrame, value: str = "test_accuracy") -> pd.DataFrame:
    """Is temperature's effect larger than luck? For each (loss, alpha) a two-way analysis of variance, T against seed as blocks.

    Columns: spread (standard deviation, in points) of the means over T, of the means over seeds, and of what is left; F and p for T.
    """
    rows = []
    for (loss, alpha), part in table[~table["loss"].isin(losses.WITHOUT_TEACHER)].groupby(["loss", "alpha"]):
        row = {
            "loss": loss,
            "alpha": alpha,
            "seeds": part["seed"].nunique(),
            "temperatures": part["temperature"].nunique(),
        }
        row["sd_over_t_points"] = 100 * part.groupby("temperature")[value].mean().std()
        row["sd_over_seeds_points"] = 100 * part.groupby("seed")[value].mean().std()
        row |= {"sd_residual_points": np.nan, "F": np.nan, "p": np.nan}
        if row["seeds"] > 1 and row["temperatures"] > 1:
            fit = ols(f"{value} ~ C(temperature) + C(seed)", part).fit()
            residual = float(np.sqrt(max(fit.mse_resid, 0)))
            row["sd_residual_points"] = 100 * residual
            if residual > 1e-9:
                effect = anova_lm(fit).loc["C(temperature)"]
                row |= {"F": effect["F"], "p": effect["PR(>F)"]}
        rows.append(row)
    return pd.DataFrame(rows)


def temperature_effect(results: dict[Cell, Trained], test: training.Examples, groups: np.ndarray) -> pd.DataFrame:
    """Rows of ``tests.csv``: for each (loss, alpha) the lowest temperature of the grid minus the highest, paired by seed and image.

    The two ends are named before anything is seen. Unlike an analysis of variance of the means, the comparison counts the luck of the test
    images too, and its interval can say that there is nothing beyond a margin.
    """
    rows = []
    for arm, alpha in dict.fromkeys((one.arm, one.alpha) for one in results if one.arm not in losses.WITHOUT_TEACHER):
        temperatures = sorted({one.temperature for one in results if (one.arm, one.alpha) == (arm, alpha)})
        if len(temperatures) > 1:
            ends = temperatures[0], temperatures[-1]
            low, high = (hits(results, test, arm=arm, alpha=alpha, temperature=t) for t in ends)
            names = (f"{arm} alpha={alpha:g} T={t:g}" for t in ends)
            rows.append(compare_over_seeds("does the temperature matter?", *names, low, high, groups))
    return (
        with_holm(rows)
        if rows
        else pd.DataFrame(columns=["question", "a", "b", "difference", "lo", "hi", "p", "p_holm"])
    )


def noise_injection_zone(table: pd.DataFrame) -> pd.DataFrame:
    """Temperatures at which a (loss, alpha) stays below cross-entropy for every seed: where softening only adds noise."""
    plain = table[table["loss"] == "ce"].set_index("seed")["test_accuracy"]
    rows = []
    for (loss, alpha, temperature), part in table[~table["loss"].isin(losses.WITHOUT_TEACHER)].groupby(
        ["loss", "alpha", "temperature"]
    ):
        gap = 100 * (part.set_index("seed")["test_accuracy"] - plain)
        rows.append(
            {
                "loss": loss,
                "alpha": alpha,
                "temperature": temperature,
                "gap_points": gap.mean(),
                "below_for_every_seed": bool((gap < 0).all()),
            }
        )
    return pd.DataFrame(rows)


def best_temperature_per_class(
    results: dict[Cell, Trained], material: Material, classes: Sequence[str]
) -> pd.DataFrame:
    """For each (loss, alpha, class) the T with the best mean validation F1, with that cell's mean test F1.

    A class without validation images has no best T and no row.
    """
    present = np.unique(material.validation.labels)
    rows = []
    for one, trained in results.items():
        if one.arm in losses.WITHOUT_TEACHER:
            continue
        scores = [
            per_class_scores(part.labels, logits, classes)["f1"]
            for part, logits in ((material.validation, trained.val_logits), (material.test, trained.test_logits))
        ]
        of_one = {"loss": one.arm, "alpha": one.alpha, "temperature": one.temperature}
        rows += [of_one | {"class": classes[c], "val_f1": scores[0][c], "test_f1": scores[1][c]} for c in present]
    means = (
        pd.DataFrame(rows)
        .groupby(["loss", "alpha", "class", "temperature"], as_index=False)[["val_f1", "test_f1"]]
        .mean()
    )
    return means.loc[means.groupby(["loss", "alpha", "class"])["val_f1"].idxmax()].reset_index(drop=True)


def teacher_entropy(bank: np.ndarray, temperatures: Sequence[float]) -> pd.DataFrame:
    """Mean entropy of the teacher's softened probabilities over all views, in bits, and the most there can be."""
    logits = torch.from_numpy(bank.reshape(-1, bank.shape[-1]))
    rows = [
        {
            "temperature": t,
            "entropy_bits": float(entropy(losses.softened(logits, t).numpy(), base=2, axis=1).mean()),
            "maximum_bits": float(np.log2(bank.shape[-1])),
        }
        for t in temperatures
    ]
    return pd.DataFrame(rows)


def gradient_norms(
    student_logits: np.ndarray, teacher_logits: np.ndarray, targets: np.ndarray, temperatures: Sequence[float]
) -> pd.DataFrame:
    """Norm of the soft loss's gradient with respect to the student's logits over that of cross-entropy, with and without T^2."""
    rows = []
    for t in temperatures:
        norms = {}
        for name, alpha, scaled in (("hard", 1.0, False), ("without T^2", 0.0, False), ("with T^2", 0.0, True)):
            logits = torch.from_numpy(student_logits).clone().requires_grad_()
            losses.distillation_loss(
                logits,
                torch.from_numpy(teacher_logits),
                torch.from_numpy(targets),
                alpha=alpha,
                temperature=t,
                scale_by_t2=scaled,
            ).total.backward()
            norms[name] = float(logits.grad.norm())
        rows += [
            {"temperature": t, "loss": name, "ratio": norms[name] / norms["hard"]}
            for name in ("without T^2", "with T^2")
        ]
    return pd.DataFrame(rows)
