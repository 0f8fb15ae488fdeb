"""Accuracy against the number of labels: where a teacher helps, how much, and what of it is knowledge.

For each number of labelled images a class the same students are taught in several ways (:func:`plan`), paired by the
seed that decides their start and which few images have a label. Three of the ways have a teacher without knowledge of
single images (:data:`kdnb.teachers.WITHOUT_KNOWLEDGE`): what the real one gains over these is what it knows, the rest
is a softer and steadier target. One gives the teacher's logits on *all* training images and labels for few: there it
can hand on what it knows of images whose labels the student does not get.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
import pandas as pd
import torch

from kdnb import comparison, experiments, specs, store, sweep, teachers
from kdnb.evaluation import compare_over_seeds, expected_hits
from kdnb.experiments import Experiment
from kdnb.runs import Run
from kdnb.specs import StudentSpec, TrainedStudent
from kdnb.views import teacher_bank

ALL = 0  # labels a class: every one there is
ENSEMBLE = "ensemble of the labels alone"


@dataclass(frozen=True)
class Way:
    """How a student is taught.

    Attributes:
        arm: its loss (:data:`kdnb.losses.ARMS`).
        alpha: the share of the hard loss.
        temperature: T of the soft loss.
        teacher: ``"trained"``, ``"oracle"``, ``"ensemble"`` (of the students of the labels alone) or a key of
            :data:`kdnb.teachers.WITHOUT_KNOWLEDGE`.
        others: whether the images without a label teach too, through the teacher.
    """

    arm: str
    alpha: float = 1.0
    temperature: float = 1.0
    teacher: str = "trained"
    others: bool = False


def plan(
    alpha: float,
    temperature: float,
    *,
    few: bool,
    controls: bool,
    successor: Way | None,
    knows_truth: bool,
    temperatures: Sequence[float] = (),
) -> dict[str, Way]:
    """The ways by name, in the order of figures.

    Args:
        alpha: the share of the hard loss; with 1 no teacher is heard.
        temperature: T of the soft loss.
        few: labels for few images: the teacher may speak of the others, too. With all labels the students' own ensemble
            teaches instead, which knows more the more labels its members had.
        controls: with other temperatures, the successor, and the teachers that know nothing of an image.
        successor: a younger loss with the alpha and T that validation chose for it, if any.
        knows_truth: with the oracle, whose logits are the true posterior's.
        temperatures: the others, besides 1.

    Returns:
        Name -> way.
    """
    mix = (alpha, temperature)
    ways = {"labels alone": Way("ce"), "label smoothing": Way("ls")}
    if alpha == 1:  # no teacher is heard
        return ways
    ways |= {"paper's loss": Way("kd", *mix), "with T²": Way("kd_t2", *mix)}
    if controls:
        others = sorted({1.0, *temperatures} - {temperature})
        ways |= {f"T = {other:g}": Way("kd_t2", alpha, other) for other in others}
        ways |= {"successor": successor} if successor else {}
        ways |= {name: Way("kd_t2", *mix, teacher=name) for name in teachers.WITHOUT_KNOWLEDGE}
    if knows_truth:
        ways["oracle, T = 1"] = Way("kd_t2", 0.0, 1.0, "oracle")
    if few:
        ways["with T², all images"] = Way("kd_t2", *mix, others=True)
    else:
        ways[ENSEMBLE] = Way("kd_t2", *mix, teacher="ensemble")
    return ways


@dataclass(frozen=True)
class Taught:
    """The students of one number of labels: how right each is on each test image, ``(S, n)`` by way, and their scores.

    ``together``: how right the ensemble of the students of the labels alone is, ``(n,)``, where it taught.
    """

    per_class: int
    hits: dict[str, np.ndarray]
    scores: pd.DataFrame
    together: np.ndarray | None = None


def teach(
    run: Run,
    experiment: Experiment,
    teacher: torch.nn.Module,
    per_class: int,
    ways: dict[str, Way],
    groups: np.ndarray,
    seeds: Sequence[int],
    scheduler: str | None = None,
) -> Taught:
    """Train the students of every way with few labels, or with all.

    Args:
        run: where they are stored.
        experiment: with all labels.
        teacher: the trained one.
        per_class: labels a class; :data:`ALL`: every label.
        ways: of :func:`plan`.
        groups: ``(n,)`` of the test images.
        seeds: one student of each way for each, on a draw of few labelled images of its own.
        scheduler: address of a Dask scheduler whose workers shall train; ``None`` trains here.

    Returns:
        How right they are.
    """
    students = {
        name: [specs.spec(way.arm, seed, way.alpha, way.temperature) for seed in seeds] for name, way in ways.items()
    }

    @cache
    def few(draw: int) -> Experiment:
        return experiments.with_few_images(run, experiment, teacher, per_class, draw)

    @cache
    def learned_from(way_teacher: str, others: bool, draw: int | None) -> Experiment:
        if draw is None:
            return _taught_by(way_teacher, experiment)
        variant = experiments.with_few_labels(experiment, per_class, draw) if others else few(draw)
        return _taught_by(way_teacher, variant)

    trained: dict[str, dict[StudentSpec, TrainedStudent]] = {}
    alone = [(name, spec) for name, way in ways.items() if way.teacher != "ensemble" for spec in students[name]]
    sources = {name: (way.teacher, way.others) for name, way in ways.items()}
    wanted = [(spec, learned_from(*sources[name], None if per_class == ALL else spec.seed)) for name, spec in alone]
    for (name, spec), student in zip(alone, sweep.train_each(run, wanted, scheduler=scheduler), strict=True):
        trained.setdefault(name, {})[spec] = student
    if ENSEMBLE in ways:  # its members are trained by now
        members = [store.trained_student(run, spec, experiment) for spec in students["labels alone"]]
        banks = [teacher_bank(member, experiment.train.images, len(experiment.bank)) for member in members]
        variant = experiments.taught_by(experiment, "ensemble", teachers.ensemble(banks))
        trained[ENSEMBLE] = sweep.train(run, students[ENSEMBLE], variant, scheduler=scheduler)
    test = experiment.test
    hits, tables, together = {}, [], None
    for name, way in ways.items():
        hits[name] = comparison.hits(trained[name], test)
        if way.teacher == "ensemble":
            logits = teachers.ensemble([member.test_logits for member in trained["labels alone"].values()])
            together = expected_hits(logits, test.labels, test.posterior)
        scores = comparison.scores(
            trained[name], test.labels, groups, run.budget.bootstrap_samples, posterior=test.posterior
        )
        tables.append(scores.assign(way=name, teacher=way.teacher, images_per_class=per_class))
    return Taught(per_class, hits, pd.concat(tables, ignore_index=True), together)


def _taught_by(teacher: str, experiment: Experiment) -> Experiment:
    """The experiment with the logits of the teacher that a way names."""
    if teacher == "trained":
        return experiment
    if teacher == "oracle":
        posterior = cast(np.ndarray, experiment.train.posterior)  # an oracle is planned only where it is known
        return experiments.taught_by(experiment, teacher, teachers.oracle(posterior, len(experiment.bank)))
    bank = teachers.WITHOUT_KNOWLEDGE[teacher](experiment.bank, experiment.train.labels)
    return experiments.taught_by(experiment, teacher, bank)


def comparisons(taught: Taught, groups: np.ndarray) -> list[dict[str, object]]:
    """Rows of ``tests.csv``: every way against the labels alone, and the teacher against each that knows nothing.

    Args:
        taught: the students of one number of labels.
        groups: ``(n,)`` of the test images.

    Returns:
        The rows, without Holm's p values.
    """
    labels = "all labels" if taught.per_class == ALL else f"few labels, {taught.per_class} a class"
    hits = taught.hits
    rows = [
        compare_over_seeds(
            f"{labels}: does it differ from the labels alone?",
            name,
            "labels alone",
            right,
            hits["labels alone"],
            groups,
        )
        for name, right in hits.items()
        if name != "labels alone"
    ]
    if "with T²" in hits:
        pair = (hits["with T²"], hits["paper's loss"])
        rows.append(
            compare_over_seeds(f"{labels}: does the factor T² matter?", "with T²", "paper's loss", *pair, groups)
        )
    controls = [name for name in teachers.WITHOUT_KNOWLEDGE if name in hits]
    rows += [
        compare_over_seeds(
            f"{labels}: is it knowledge of the image?", "with T²", name, hits["with T²"], hits[name], groups
        )
        for name in controls
    ]
    if taught.together is not None:
        alone = hits["labels alone"]
        together = np.tile(taught.together, (len(alone), 1))
        question = f"{labels}: is the ensemble better than its members?"
        rows.append(compare_over_seeds(question, ENSEMBLE, "one student", together, alone, groups))
        question = f"{labels}: does the better teacher teach more?"
        rows.append(compare_over_seeds(question, ENSEMBLE, "with T²", hits[ENSEMBLE], hits["with T²"], groups))
    if "with T², all images" in hits:
        all_images, labelled = "with T², all images", "with T²"
        question = f"{labels}: do images without a label help?"
        rows.append(compare_over_seeds(question, all_images, labelled, hits[all_images], hits[labelled], groups))
    return rows
