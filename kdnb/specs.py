"""Students as they are asked for: what each one minimises, from which seed, in which shape.

A :class:`StudentSpec` is one student of a study. Students of one seed share initial weights and the order of images, so that they are
paired; what all of them learn from is an :class:`kdnb.experiments.Experiment`.
"""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from kdnb import losses, models, models3d, networks
from kdnb.errors import ParameterError
from kdnb.experiments import Experiment
from kdnb.settings import check

_DRAWING = threading.Lock()  # initial weights are drawn from torch's one global generator


@dataclass(frozen=True)
class StudentSpec:
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
class TrainedStudent:
    """A finished cell: logits ``(n, C)`` on validation and test, and the training's history; :func:`store.trained_student` has its weights."""

    spec: StudentSpec
    val_logits: np.ndarray
    test_logits: np.ndarray
    history: pd.DataFrame
    best_epoch: int
    test_logits_best: np.ndarray
    seconds: float


def spec(arm: str, seed: int, alpha: float, temperature: float, **shape) -> StudentSpec:
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
    return StudentSpec(arm, seed, float(alpha), float(temperature), **shape)


def grid(
    arms: Sequence[str], alphas: Sequence[float], temperatures: Sequence[float], seeds: Sequence[int]
) -> list[StudentSpec]:
    """All combinations and, for each seed, the line they are compared with: cross-entropy alone (alpha = 1).

    Raises:
        ParameterError: an empty list, or a value that is not allowed.
    """
    check("alphas", alphas), check("temperatures", temperatures), check("seeds", seeds)
    if not arms:
        raise ParameterError(f"arms is {arms!r}, but it must name at least one of: {', '.join(losses.ARMS)}.")
    cells = [spec("ce", seed, 1, 1) for seed in seeds]
    cells += [spec(arm, seed, alpha, t) for seed, arm, alpha, t in itertools.product(seeds, arms, alphas, temperatures)]
    return list(dict.fromkeys(cells))


def widths(depth: int, of_five: tuple[int, ...] = models.WIDTHS) -> tuple[int, ...]:
    """Filters of a student with ``depth`` convolutions: the five-layer student's, cut short or continued with as many as its last."""
    return of_five[:depth] + of_five[-1:] * (depth - len(of_five))


def student(one: StudentSpec, experiment: Experiment) -> torch.nn.Module:
    """The cell's student with the initial weights of its seed: the experiment's network, in the cell's widths, pooling and shape."""
    with _DRAWING:
        if experiment.volumes is not None:
            return models3d.student(
                one.shape, experiment.num_classes, one.widths or experiment.widths, experiment.volumes, seed=one.seed
            )
        if experiment.student != networks.OWN_STUDENT:
            what, size = networks.spec("student", experiment.student), experiment.train.images.shape[1]
            return models.initialised(
                networks.build, what, experiment.num_classes, size, experiment.widths, seed=one.seed
            )
        return models.initialised(
            models.student, one.shape, experiment.num_classes, one.widths or experiment.widths, one.pool, seed=one.seed
        )
