"""Accuracy against the number of labels: where a teacher helps, how much, and what of it is knowledge.

For each number of labelled images a class the same students are taught in several ways (:func:`plan`), the seeds of one start paired.
Three of the ways have a teacher without knowledge of single images (:data:`kdnb.teachers.WITHOUT_KNOWLEDGE`): what the real one gains over
these is what it knows, the rest is a softer and steadier target. One gives the teacher's logits on *all* training images and labels
for few: there it can hand on what it knows of images that nobody labelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from kdnb import comparison, experiments, specs, store, sweep, teachers
from kdnb.evaluation import compare_over_seeds, expected_hits
from kdnb.runs import Run
from kdnb.views import teacher_bank

ALL = 0  # labels a class: every one there is
ENSEMBLE = "ensemble of the labels alone"


@dataclass(frozen=True)
class Way:
    """How a student is taught.

    Attributes:
        arm, alpha, temperature: its loss (:data:`kdnb.losses.ARMS`).
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
    alpha: float, temperature: float, *, few: bool, controls: bool, successor: Way | None, knows_truth: bool
) -> dict[str, Way]:
    """The ways by name, in the order of figures.

    Args:
        few: labels for few images: the teacher may speak of the others, too. With all labels the students' own ensemble teaches instead,
            which knows more the more labels its members had.
        controls: with T = 1, the successor, and the teachers that know nothing of an image.
        successor: a younger loss with the alpha and T that validation chose for it, if any.
        knows_truth: with the oracle, whose logits are the true posterior's.
    """
    mix = (alpha, temperature)
    ways = {"labels alone": Way("ce"), "label smoothing": Way("ls")}
    if alpha == 1:  # no teacher is heard
        return ways
    ways |= {"paper's loss": Way("kd", *mix), "with T²": Way("kd_t2", *mix)}
    if controls:
        ways["T = 1"] = Way("kd_t2", alpha, 1.0)
        ways |= {"successor": successor} if successor else {}
        ways |= {name: Way("kd_t2", *mix, teacher=name) for name in teachers.WITHOUT_KNOWLEDGE}
    if knows_truth:
        ways["oracle, T = 1"] = Way("kd_t2", 0.0, 1.0, "oracle")
    return ways | (
        {"with T², all images": Way("kd_t2", *mix, others=True)}
        if few
        else {ENSEMBLE: Way("kd_t2", *mix, teacher="ensemble")}
    )


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
    run: Run, whole: experiments.Experiment, teacher: torch.nn.Module, per_class: int, ways: dict[str, Way], groups: np.ndarray,
    seeds: Sequence[int], scheduler: str | None = None,
) -> Taught:  # fmt: skip
    """Train the students of every way with ``per_class`` labels a class (:data:`ALL`: every label).

    Args:
        groups: ``(n,)`` of the test images.
    """
    few = whole if per_class == ALL else experiments.with_few_images(run, whole, teacher, per_class)
    cells = {
        name: [specs.spec(way.arm, seed, way.alpha, way.temperature) for seed in seeds] for name, way in ways.items()
    }
    trained = {}
    for source in dict.fromkeys(
        (way.teacher, way.others) for way in ways.values()
    ):  # ways of one experiment at once: no core waits
        of_source = [name for name, way in ways.items() if (way.teacher, way.others) == source]
        if source[0] == "ensemble":  # its members are trained by now: theirs is the first of the ways
            members = [store.trained_student(run, one, few) for one in cells["labels alone"]]
            banks = [teacher_bank(one, few.train.images, len(few.bank)) for one in members]
            experiment = experiments.taught_by(few, "ensemble", teachers.ensemble(banks))
        else:
            experiment = _material(whole if source[1] else few, per_class, *source)
        asked = list(dict.fromkeys(one for name in of_source for one in cells[name]))
        results = sweep.train(run, asked, experiment, scheduler=scheduler)
        trained |= {name: {one: results[one] for one in cells[name]} for name in of_source}
    hits, tables, together = {}, [], None
    for name, way in ways.items():
        found = trained[name]
        hits[name] = comparison.hits(found, whole.test)
        if way.teacher == "ensemble":
            said = teachers.ensemble([one.test_logits for one in trained["labels alone"].values()])
            together = expected_hits(said, whole.test.labels, whole.test.posterior)
        scored = comparison.scores(
            found, whole.test.labels, groups, run.budget.bootstrap_samples, posterior=whole.test.posterior
        )
        tables.append(scored.assign(way=name, teacher=way.teacher, images_per_class=per_class))
    return Taught(per_class, hits, pd.concat(tables, ignore_index=True), together)


def _material(known: experiments.Experiment, per_class: int, teacher: str, others: bool) -> experiments.Experiment:
    """What the students of a way learn from: the images of ``known``, with the logits of that teacher."""
    experiment = experiments.with_few_labels(known, per_class) if others else known
    if teacher == "oracle":
        return experiments.taught_by(
            experiment, teacher, teachers.oracle(experiment.train.posterior, len(experiment.bank))
        )
    if teacher == "trained":
        return experiment
    return experiments.taught_by(
        experiment, teacher, teachers.WITHOUT_KNOWLEDGE[teacher](experiment.bank, experiment.train.labels)
    )


def comparisons(taught: Taught, groups: np.ndarray) -> list[dict]:
    """Rows of ``tests.csv``: every way against the labels alone, and what the teacher knows against each teacher that knows nothing."""
    what = "all labels" if taught.per_class == ALL else f"few labels, {taught.per_class} a class"
    rows = [
        compare_over_seeds(
            f"{what}: does it differ from the labels alone?",
            name,
            "labels alone",
            right,
            taught.hits["labels alone"],
            groups,
        )
        for name, right in taught.hits.items()
        if name != "labels alone"
    ]
    controls = [name for name in teachers.WITHOUT_KNOWLEDGE if name in taught.hits]
    rows += [
        compare_over_seeds(
            f"{what}: is it knowledge of the image?", "with T²", name, taught.hits["with T²"], taught.hits[name], groups
        )
        for name in controls
    ]
    if taught.together is not None:
        alone = taught.hits["labels alone"]
        once = np.tile(taught.together, (len(alone), 1))
        rows.append(
            compare_over_seeds(
                f"{what}: is the ensemble better than its members?", ENSEMBLE, "one student", once, alone, groups
            )
        )
        rows.append(
            compare_over_seeds(
                f"{what}: does the better teacher teach more?",
                ENSEMBLE,
                "with T²",
                taught.hits[ENSEMBLE],
                taught.hits["with T²"],
                groups,
            )
        )
    if "with T², all images" in taught.hits:
        pair = "with T², all images", "with T²"
        rows.append(
            compare_over_seeds(
                f"{what}: do images without a label help?", *pair, *(taught.hits[name] for name in pair), groups
            )
        )
    return rows
