"""Many students from one teacher: the arms of notebook 03 and the alpha x T grid of notebook 04.

All students share the data, the recipe and the bank of teacher logits (:class:`kdnb.experiments.Experiment`). Each is
stored as it ends (:mod:`kdnb.store`), and one that is stored is never trained again.
"""

import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import cast

import joblib
import torch
from torch import Tensor

from kdnb import cluster, losses, networks, specs, stack, store, training
from kdnb.device import best_device
from kdnb.evaluation import predict
from kdnb.experiments import Experiment
from kdnb.explain.taught import Layout, explaining, lesson_loss
from kdnb.models import StudentCNN
from kdnb.progress import progress
from kdnb.runs import Run
from kdnb.specs import StudentSpec, TrainedStudent

STACKED_SIDE = 64  # pixels; a student of larger images keeps a GPU busy alone


def train_student(
    spec: StudentSpec, experiment: Experiment, checkpoints: str | None = None, stop: threading.Event | None = None
) -> tuple[TrainedStudent, dict[str, Tensor]]:
    """Train one student on one thread (on a GPU if there is one): a pure function of its arguments.

    Args:
        spec: which student.
        experiment: what it learns from.
        checkpoints: a folder for the state of an unfinished training, or ``None``.
        stop: once it is set, the training ends at its next step with :class:`Stopped`.

    Returns:
        The trained student and its weights.

    Raises:
        Stopped: ``stop`` is set.
    """
    started = time.perf_counter()

    def loss(student_logits: Tensor, teacher_logits: Tensor | None, targets: Tensor) -> Tensor:
        if stop is not None and stop.is_set():
            raise Stopped
        return losses.arm_loss(
            spec.arm, student_logits, teacher_logits, targets, alpha=spec.alpha, temperature=spec.temperature
        )

    def with_lesson(student_logits: Tensor, bank_rows: Tensor | None, targets: Tensor) -> Tensor:
        rows = cast(Tensor, bank_rows)  # a student with a lesson listens to the teacher
        teacher_logits = rows[:, : experiment.num_classes]
        maps = cast(Layout, experiment.explained).split(rows[:, experiment.num_classes :])
        lesson = lesson_loss(spec.lesson, shows(), maps, teacher_logits.argmax(dim=1))
        return loss(student_logits, teacher_logits, targets) + spec.weight * lesson

    with training.threads(1), ExitStack() as hooks:
        model = specs.student(spec, experiment)
        if spec.lesson:
            shows = hooks.enter_context(explaining(cast(StudentCNN, model), cast(Layout, experiment.explained)))
        fitted = training.fit(
            model,
            experiment.train,
            experiment.validation,
            experiment.recipe,
            with_lesson if spec.lesson else loss,
            seed=spec.seed,
            bank=None if spec.arm in losses.WITHOUT_TEACHER else experiment.bank,
            judged=experiment.judged,
            checkpoint=store.unfinished_path(Path(checkpoints), spec)
            if checkpoints and Path(checkpoints).is_dir()
            else None,
            key=store.student_key(spec, experiment),
            what=spec.name,
        )
        return _finished(spec, model, fitted, experiment, time.perf_counter() - started)


def _finished(
    spec: StudentSpec, model: torch.nn.Module, fitted: training.Fitted, experiment: Experiment, seconds: float
) -> tuple[TrainedStudent, dict[str, Tensor]]:
    """A trained student with its logits, and its weights; ``model`` holds the last weights."""
    val_logits, test_logits = (predict(model, examples.images) for examples in (experiment.validation, experiment.test))
    best_logits = test_logits
    if fitted.best_epoch < len(fitted.history):  # else the last epoch is the best
        model.load_state_dict(fitted.best)
        best_logits = predict(model, experiment.test.images)
    weights = {name: value.cpu() for name, value in fitted.last.items()}
    trained = TrainedStudent(spec, val_logits, test_logits, fitted.history, fitted.best_epoch, best_logits, seconds)
    return trained, weights


def stacked(student_specs: Sequence[StudentSpec], experiment: Experiment) -> list[list[StudentSpec]]:
    """The students in groups that train at once (:mod:`kdnb.stack`), where that is faster.

    It is on a GPU, on images so small that a step is launches. A student of one's own may hold what a stack cannot
    (dropout, say), one of volumes is large, and one that is taught to explain is hooked: they train alone.

    Args:
        student_specs: the students.
        experiment: what they learn from.

    Returns:
        Groups of one shape, of at most :data:`kdnb.stack.MOST` students; none where each trains alone.
    """
    small = experiment.train.images.shape[1] <= STACKED_SIDE
    own = experiment.student == networks.OWN_STUDENT and experiment.volumes is None
    if best_device().type == "cpu" or not small or not own or experiment.explained:
        return []
    shapes: dict[tuple[str, tuple[int, ...] | None, str], list[StudentSpec]] = {}
    for spec in sorted(student_specs, key=lambda spec: (spec.arm, spec.alpha, spec.temperature)):  # a loss at a time
        shapes.setdefault((spec.shape, spec.widths, spec.pool), []).append(spec)
    return [group[k : k + stack.MOST] for group in shapes.values() for k in range(0, len(group), stack.MOST)]


def train_stack(
    student_specs: Sequence[StudentSpec], experiment: Experiment
) -> Iterator[tuple[TrainedStudent, dict[str, Tensor]]]:
    """:func:`train_student` for students of one shape at once.

    A stack that is interrupted starts anew, its time being that of a few students.

    Args:
        student_specs: the students, those of one loss in a row.
        experiment: what they learn from.

    Yields:
        Each trained student and its weights, when all are trained.
    """
    started = time.perf_counter()

    @cache  # students that differ in their seed alone have one loss
    def loss_of(arm: str, alpha: float, temperature: float) -> training.Loss:
        options = {"alpha": alpha, "temperature": temperature}
        return lambda student_logits, teacher_logits, targets: losses.arm_loss(
            arm, student_logits, None if arm in losses.WITHOUT_TEACHER else teacher_logits, targets, **options
        )

    students, seeds = [specs.student(spec, experiment) for spec in student_specs], [spec.seed for spec in student_specs]
    stack_losses = [loss_of(spec.arm, spec.alpha, spec.temperature) for spec in student_specs]
    all_fitted = stack.fit(
        students,
        experiment.train,
        experiment.validation,
        experiment.recipe,
        stack_losses,
        seeds=seeds,
        bank=experiment.bank,
        judged=experiment.judged,
    )
    seconds = (time.perf_counter() - started) / len(student_specs)
    for spec, model, fitted in zip(student_specs, students, all_fitted, strict=True):
        yield _finished(spec, model, fitted, experiment, seconds)


def train(
    run: Run,
    student_specs: Sequence[StudentSpec],
    experiment: Experiment,
    *,
    scheduler: str | None = None,
    jobs: int = 0,
) -> dict[StudentSpec, TrainedStudent]:
    """:func:`train_each` for students that learn from the same.

    Args:
        run: where they are stored.
        student_specs: the students.
        experiment: what they learn from.
        scheduler: as there.
        jobs: as there.

    Returns:
        Every spec with its trained student, in the order of ``student_specs``.

    Raises:
        ParameterError: no Dask scheduler answers at that address.
    """
    trained = train_each(run, [(spec, experiment) for spec in student_specs], scheduler=scheduler, jobs=jobs)
    return dict(zip(student_specs, trained, strict=True))


def train_each(
    run: Run,
    wanted: Sequence[tuple[StudentSpec, Experiment]],
    *,
    scheduler: str | None = None,
    jobs: int = 0,
) -> list[TrainedStudent]:
    """Train the students that are not trained yet, store each as it ends, and return all.

    Args:
        run: where they are stored.
        wanted: the students, each with what it learns from.
        scheduler: address of a Dask scheduler (``"tcp://host:8786"``) whose workers shall train; ``None`` trains here.
        jobs: students trained side by side, one thread each; 0 means one per core (on a GPU: one). Threads share
            Python's lock: where there are many cores, Dask workers on the same machine do not.

    Returns:
        The trained students, in the order of ``wanted``.

    Raises:
        ParameterError: no Dask scheduler answers at that address.
    """
    # Two ways of teaching may come to the same student.
    number_of = {(spec, id(experiment)): k for k, (spec, experiment) in enumerate(wanted)}
    numbers = [number_of[spec, id(experiment)] for spec, experiment in wanted]
    finished = {k: loaded for k in set(numbers) if (loaded := store.load(run, *wanted[k])) is not None}
    lost_worker = cluster.lost_worker(scheduler)
    attempt = 0
    while True:
        attempt += 1
        waiting = {k: wanted[k] for k in dict.fromkeys(numbers) if k not in finished}
        if not waiting:
            return [finished[k] for k in numbers]
        checkpoints = {k: run.folder / experiment.folder / "unfinished" for k, (_, experiment) in waiting.items()}
        for folder in checkpoints.values():
            folder.mkdir(parents=True, exist_ok=True)
        groups = _groups(waiting, stacks=not scheduler and not jobs)
        try:
            with engine(scheduler, jobs, _distinct(one[1] for one in waiting.values())) as stop:
                parallel = joblib.Parallel(
                    return_as="generator_unordered", pre_dispatch="all" if scheduler else "2*n_jobs"
                )
                done = parallel(
                    joblib.delayed(_train_group)(
                        {k: wanted[k][0] for k in group}, wanted[group[0]][1], str(checkpoints[group[0]]), stop
                    )
                    for group in groups
                )
                students = itertools.chain.from_iterable(done)
                for k, trained, weights in progress(students, f"{len(waiting)} students", len(waiting)):
                    store.save(run, trained, weights, wanted[k][1])
                    store.unfinished_path(checkpoints[k], trained.spec).unlink(missing_ok=True)
                    finished[k] = trained
        except lost_worker:
            # Dask trains a dead worker's students again, unless the only copy of the experiment died with it: then we
            # send it anew.
            if attempt == cluster.ATTEMPTS:
                raise


def _groups(waiting: dict[int, tuple[StudentSpec, Experiment]], *, stacks: bool) -> list[list[int]]:
    """The numbers of students that train at once, of one experiment a group: one, or stacked where that is faster."""
    groups = []
    for experiment in _distinct(experiment for _, experiment in waiting.values()):
        numbers = {spec: k for k, (spec, its) in waiting.items() if its is experiment}
        at_once = stacked(list(numbers), experiment) if stacks else []
        groups += [[numbers[spec] for spec in group] for group in at_once] or [[k] for k in numbers.values()]
    return groups


def _distinct(experiments: Iterable[Experiment]) -> list[Experiment]:
    return list({id(experiment): experiment for experiment in experiments}.values())


def _train_group(
    specs_by_number: dict[int, StudentSpec], experiment: Experiment, checkpoints: str, stop: threading.Event | None
) -> list[tuple[int, TrainedStudent, dict[str, Tensor]]]:
    """The students of a group of :func:`_groups`, each with its number and its weights."""
    student_specs = list(specs_by_number.values())
    if len(student_specs) == 1:
        trained = [train_student(student_specs[0], experiment, checkpoints, stop)]
    else:
        trained = list(train_stack(student_specs, experiment))
    return [(k, *one) for k, one in zip(specs_by_number, trained, strict=True)]


class Stopped(Exception):  # noqa: N818 - an end, not an error: nobody sees it
    """A training ended because nobody waits for it any more: the cell was interrupted, or another student failed."""


@contextmanager
def engine(scheduler: str | None, jobs: int, experiments: Sequence[Experiment]) -> Iterator[threading.Event | None]:
    """Where joblib trains: here in threads, or on the workers of a Dask scheduler.

    Threads do, for torch leaves Python's lock while it computes; imports and images are held once.

    Args:
        scheduler: its address; ``None``: here.
        jobs: threads; 0: one per core, on a GPU one.
        experiments: sent to the workers once.

    Yields:
        What stops the threads' trainings once it is set, as it is at the end; ``None`` with a scheduler.
    """
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
        joblib.parallel_config(backend="dask", scatter=list(experiments)),
    ):
        yield None
