"""Many students from one teacher: the arms of notebook 03 and the alpha x T grid of notebook 04.

All students share the data, the recipe and the bank of teacher logits (:class:`kdnb.experiments.Experiment`). Each is stored as it ends
(:mod:`kdnb.store`), and one that is stored is never trained again.
"""

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import joblib
import torch
from torch import Tensor

from kdnb import cluster, losses, networks, specs, stack, store, training
from kdnb.device import best_device
from kdnb.evaluation import predict
from kdnb.experiments import Experiment
from kdnb.explain.taught import explaining, lesson_loss
from kdnb.progress import progress
from kdnb.runs import Run
from kdnb.specs import StudentSpec, TrainedStudent

STACKED_SIDE = 64  # pixels; a student of larger images keeps a GPU busy alone


def train_student(
    one: StudentSpec, experiment: Experiment, checkpoints: str | None = None, stop: threading.Event | None = None
) -> tuple[TrainedStudent, dict[str, Tensor]]:
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
            said[:, : experiment.num_classes],
            experiment.explained.split(said[:, experiment.num_classes :]),
        )
        lesson = lesson_loss(one.lesson, shows(), maps, teacher_logits.argmax(dim=1))
        return loss(student_logits, teacher_logits, targets) + one.weight * lesson

    with training.threads(1), ExitStack() as hooks:
        model = specs.student(one, experiment)
        if one.lesson:
            shows = hooks.enter_context(explaining(model, experiment.explained))
        fitted = training.fit(
            model,
            experiment.train,
            experiment.validation,
            experiment.recipe,
            with_lesson if one.lesson else loss,
            seed=one.seed,
            bank=None if one.arm in losses.WITHOUT_TEACHER else experiment.bank,
            checkpoint=store.unfinished_path(Path(checkpoints), one)
            if checkpoints and Path(checkpoints).is_dir()
            else None,
            key=store.student_key(one, experiment),
            what=one.name,
        )
        return _finished(one, model, fitted, experiment, time.perf_counter() - started)


def _finished(
    one: StudentSpec, model: torch.nn.Module, fitted: training.Fitted, experiment: Experiment, seconds: float
) -> tuple[TrainedStudent, dict[str, Tensor]]:
    """A trained cell with its logits and weights; ``model`` holds the last weights."""
    val_logits, test_logits = (predict(model, examples.images) for examples in (experiment.validation, experiment.test))
    best_logits = test_logits
    if fitted.best_epoch < len(fitted.history):  # else the last epoch is the best
        model.load_state_dict(fitted.best)
        best_logits = predict(model, experiment.test.images)
    weights = {name: value.cpu() for name, value in fitted.last.items()}
    return TrainedStudent(
        one, val_logits, test_logits, fitted.history, fitted.best_epoch, best_logits, seconds
    ), weights


def stacked(cells: Sequence[StudentSpec], experiment: Experiment) -> list[list[StudentSpec]]:
    """The cells in groups that train at once (:mod:`kdnb.stack`): on a GPU, on images so small that a step is launches; else none.

    A student of one's own may hold what a stack cannot (dropout, say), one of volumes is large, and one that is taught to explain is
    hooked: they train alone.
    """
    small = experiment.train.images.shape[1] <= STACKED_SIDE
    own = experiment.student == networks.OWN_STUDENT and experiment.volumes is None
    if best_device().type == "cpu" or not small or not own or experiment.explained:
        return []
    shapes: dict[tuple, list[StudentSpec]] = {}
    for one in sorted(cells, key=lambda one: (one.arm, one.alpha, one.temperature)):  # a loss at a time
        shapes.setdefault((one.shape, one.widths, one.pool), []).append(one)
    return [group[k : k + stack.MOST] for group in shapes.values() for k in range(0, len(group), stack.MOST)]


def train_stack(
    cells: Sequence[StudentSpec], experiment: Experiment
) -> Iterator[tuple[TrainedStudent, dict[str, Tensor]]]:
    """:func:`train_student` for cells of one shape at once; a stack that is interrupted starts anew, its time being that of a few students."""
    started = time.perf_counter()

    @cache  # students that differ in their seed alone have one loss
    def loss_of(arm: str, alpha: float, temperature: float):
        options = {"alpha": alpha, "temperature": temperature}
        return lambda z, t, y: losses.arm_loss(arm, z, None if arm in losses.WITHOUT_TEACHER else t, y, **options)

    students, seeds = [specs.student(one, experiment) for one in cells], [one.seed for one in cells]
    parts = (
        experiment.train,
        experiment.validation,
        experiment.recipe,
        [loss_of(one.arm, one.alpha, one.temperature) for one in cells],
    )
    fitted = stack.fit(students, *parts, seeds=seeds, bank=experiment.bank)
    seconds = (time.perf_counter() - started) / len(cells)
    for one, model, found in zip(cells, students, fitted, strict=True):
        yield _finished(one, model, found, experiment, seconds)


def train(
    run: Run, cells: Sequence[StudentSpec], experiment: Experiment, *, scheduler: str | None = None, jobs: int = 0
) -> dict[StudentSpec, TrainedStudent]:
    """Train the cells that are not finished yet, store each as it ends, and return all.

    Args:
        scheduler: address of a Dask scheduler (``"tcp://host:8786"``) whose workers shall train; ``None`` trains here.
        jobs: students trained side by side, one thread each; 0 means one per core (on a GPU: one). Threads share Python's lock: where there
            are many cores, Dask workers on the same machine do not.

    Raises:
        ParameterError: no Dask scheduler answers at that address.
    """
    finished = {one: found for one in cells if (found := store.load(run, one, experiment)) is not None}
    checkpoints = run.folder / experiment.folder / "unfinished"
    lost_worker = cluster.lost_worker(scheduler)
    for attempt in itertools.count(1):
        waiting = [one for one in cells if one not in finished]
        if not waiting:
            return {one: finished[one] for one in cells}
        checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            with _engine(scheduler, jobs, experiment) as stop:
                parallel = joblib.Parallel(
                    return_as="generator_unordered", pre_dispatch="all" if scheduler else "2*n_jobs"
                )
                if stacks := [] if scheduler or jobs else stacked(waiting, experiment):
                    done = itertools.chain.from_iterable(
                        train_stack(cells_of_one, experiment) for cells_of_one in stacks
                    )
                else:
                    done = parallel(
                        joblib.delayed(train_student)(one, experiment, str(checkpoints), stop) for one in waiting
                    )
                for trained, weights in progress(done, f"{len(waiting)} students", len(waiting)):
                    store.save(run, trained, weights, experiment)
                    store.unfinished_path(checkpoints, trained.spec).unlink(missing_ok=True)
                    finished[trained.spec] = trained
        except lost_worker:
            # Dask trains a dead worker's cells again, unless the only copy of the experiment died with it: then we send it anew.
            if attempt == cluster.ATTEMPTS:
                raise


class Stopped(Exception):
    """A training ended because nobody waits for it any more: the cell was interrupted, or another student failed."""


@contextmanager
def _engine(scheduler: str | None, jobs: int, experiment: Experiment) -> Iterator[threading.Event | None]:
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
        joblib.parallel_config(backend="dask", scatter=[experiment]),
    ):
        yield None
