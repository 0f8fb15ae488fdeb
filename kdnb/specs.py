"""Students as they are asked for: what each one minimises, from which seed, in which shape.

A :class:`StudentSpec` is one student of a study. Students of one seed share initial weights and the order of images, so
that they are paired; what all of them learn from is an :class:`kdnb.experiments.Experiment`.
"""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np
import pandas as pd
import torch

from kdnb import losses, models, models3d, networks
from kdnb.errors import ParameterError
from kdnb.experiments import Experiment
from kdnb.explain.taught import check_lesson
from kdnb.settings import check

_DRAWING = threading.Lock()  # initial weights are drawn from torch's one global generator


@dataclass(frozen=True)
class StudentSpec:
    """One student of a study: what it minimises, its seed and its shape.

    ``arm`` is one of :data:`kdnb.losses.ARMS`, ``shape`` one of :data:`kdnb.models.SHAPES`.
    """

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
        """The student's file name without its ending, such as ``kd-a0.4-t10-s0``."""
        mix = "" if self.arm in losses.WITHOUT_TEACHER else f"-a{self.alpha:g}-t{self.temperature:g}"
        widths = "" if self.widths is None else "-w" + "x".join(map(str, self.widths))
        shape = "" if self.shape == "plain" else f"-{self.shape}"
        lesson = f"-{self.lesson}{self.weight:g}" if self.lesson else ""
        return f"{self.arm}{mix}{lesson}{shape}{widths}{'' if self.pool == 'max' else '-' + self.pool}-s{self.seed}"


@dataclass(frozen=True)
class TrainedStudent:
    """A student after its training: logits ``(n, C)`` on validation and test, and the training's history.

    Its weights are on disk, where :func:`kdnb.store.trained_student` finds them.
    """

    spec: StudentSpec
    val_logits: np.ndarray
    test_logits: np.ndarray
    history: pd.DataFrame
    best_epoch: int
    test_logits_best: np.ndarray
    seconds: float


class SpecOptions(TypedDict, total=False):
    """What :func:`spec` takes by name: the fields of a :class:`StudentSpec` that have defaults."""

    widths: tuple[int, ...] | None
    pool: str
    shape: str
    lesson: str
    weight: float


def spec(arm: str, seed: int, alpha: float, temperature: float, **options: Unpack[SpecOptions]) -> StudentSpec:
    """A student's spec, with parameters checked.

    At alpha = 1 every arm but ``ls`` is ``ce``, and where alpha and T play no part they are set to 1, so that equal
    students have equal specs.

    Args:
        arm: what it minimises, one of :data:`kdnb.losses.ARMS`.
        seed: of its initial weights and of the order of its images.
        alpha: the share of the hard loss, in [0, 1]; with 1 no teacher is heard.
        temperature: T of the soft loss, above 0.
        options: its shape and lesson.

    Returns:
        The spec; two calls that ask for the same training return equal ones.

    Raises:
        ParameterError: an unknown arm or lesson, alpha outside [0, 1] or a temperature not above 0.

    Example:
        >>> spec("kd", 0, alpha=1, temperature=5).name
        'ce-s0'
    """
    check("alpha", alpha)
    check("temperature", temperature)
    if arm not in losses.ARMS:
        raise ParameterError(f"arm is {arm!r}, but it must be one of: {', '.join(losses.ARMS)}.")
    if options.get("lesson"):
        check_lesson(options["lesson"])
    if alpha == 1 and arm != "ls":
        arm = "ce"
    if arm in losses.WITHOUT_TEACHER:
        alpha = temperature = 1.0
    return StudentSpec(arm, seed, float(alpha), float(temperature), **options)


def grid(
    arms: Sequence[str], alphas: Sequence[float], temperatures: Sequence[float], seeds: Sequence[int]
) -> list[StudentSpec]:
    """All combinations and, for each seed, the line they are compared with: cross-entropy alone (alpha = 1).

    Args:
        arms: some of :data:`kdnb.losses.ARMS`.
        alphas: each in [0, 1].
        temperatures: each above 0.
        seeds: one student of every combination for each.

    Returns:
        Each student once: cross-entropy of every seed first, then the grid, seed by seed.

    Raises:
        ParameterError: an empty list, or a value that is not allowed.
    """
    check("alphas", alphas), check("temperatures", temperatures), check("seeds", seeds)
    if not arms:
        raise ParameterError(f"arms is {arms!r}, but it must name at least one of: {', '.join(losses.ARMS)}.")
    students = [spec("ce", seed, 1, 1) for seed in seeds]
    students += [
        spec(arm, seed, alpha, temperature)
        for seed, arm, alpha, temperature in itertools.product(seeds, arms, alphas, temperatures)
    ]
    return list(dict.fromkeys(students))


def widths(depth: int, of_five: tuple[int, ...] = models.WIDTHS) -> tuple[int, ...]:
    """Filters of a student with ``depth`` convolutions.

    They are the five-layer student's, cut short or continued with as many as its last.

    Args:
        depth: how many convolutions.
        of_five: filters of each layer of the five-layer student.

    Returns:
        Filters of each layer, ``depth`` numbers.

    Example:
        >>> widths(3, (8, 16, 32, 32, 64)), widths(6, (8, 16, 32, 32, 64))
        ((8, 16, 32), (8, 16, 32, 32, 64, 64))
    """
    return of_five[:depth] + of_five[-1:] * (depth - len(of_five))


def student(spec: StudentSpec, experiment: Experiment) -> torch.nn.Module:
    """The student with the initial weights of its seed.

    It is the experiment's network, in the widths, pooling and shape of ``spec``.

    Args:
        spec: which student.
        experiment: says which network learns, and how volumes lie.

    Returns:
        The network, on the CPU, untrained.
    """
    with _DRAWING:
        if experiment.volumes is not None:
            return models3d.student(
                spec.shape, experiment.num_classes, spec.widths or experiment.widths, experiment.volumes, seed=spec.seed
            )
        if experiment.student != networks.OWN_STUDENT:
            network, image_size = networks.spec("student", experiment.student), experiment.train.images.shape[1]
            return models.initialised(
                networks.build, network, experiment.num_classes, image_size, experiment.widths, seed=spec.seed
            )
        return models.initialised(
            models.student,
            spec.shape,
            experiment.num_classes,
            spec.widths or experiment.widths,
            spec.pool,
            seed=spec.seed,
        )
