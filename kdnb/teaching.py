"""Does teaching make a classifier more transparent? Explanations of students taught in several ways (chapter 08).

The same student learns from labels, from a teacher's answers, and from a teacher's explanations besides; then the same
explanations of all are judged on the same test images, paired by seed and image. ``accuracy`` decides nothing here, so
each comparison is made twice: on *all* images, and where *both* students are right with every seed, that is, at equal
accuracy.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdnb import fidelity, losses, specs
from kdnb.datasets import ImageSet
from kdnb.evaluation import compare_over_seeds, expected_hits, with_holm
from kdnb.explain import METHODS, class_evidence, explain_all
from kdnb.explain.taught import LESSONS, Explanations, Layout, blocks_of, explaining, teacher_explanations
from kdnb.models import StudentCNN
from kdnb.specs import StudentSpec, TrainedStudent
from kdnb.training import Examples
from kdnb.transparency import TRUTH

ALONE, TAUGHT = "labels alone", "with T²"
UNTRAINED = "untrained"
BY_ANSWERS = {ALONE: "ce", "label smoothing": "ls", "paper's loss": "kd", TAUGHT: "kd_t2"}
BY_MAPS = {"attention too": "attention", "class attention too": "class_attention", "explanation too": "explanation"}
# Whose explanations are judged where labels are few, too.
WITH_FEW_LABELS = (ALONE, TAUGHT, *BY_MAPS)
EXPLAINED_BY = ("feature_maps_mean", "class_evidence")  # the paper's explanation, and the exact one
LIKENESS = "teacher_likeness"
COST = 0.01  # of accuracy on validation: the most that a lesson may cost when its weight is chosen


def student_specs(
    seeds: Sequence[int], alpha: float, temperature: float, weights: dict[str, float]
) -> dict[str, list[StudentSpec]]:
    """Way of teaching -> its students. Lessons come on top of the loss with T^2, so that what they add is theirs.

    Args:
        seeds: one student of each way for each.
        alpha: the share of the hard loss; with 1 no teacher is heard.
        temperature: T of the soft loss.
        weights: lesson (:data:`kdnb.explain.taught.LESSONS`) -> its weight beside that loss; a lesson that is not named
            is left out.

    Returns:
        The ways in the order of figures.
    """
    ways = {way: [specs.spec(arm, seed, alpha, temperature) for seed in seeds] for way, arm in BY_ANSWERS.items()}
    if alpha == 1:  # no teacher is heard
        return {way: ways[way] for way in (ALONE, "label smoothing")}
    for way, lesson in BY_MAPS.items():
        if lesson in weights:
            options: specs.SpecOptions = {"lesson": lesson, "weight": weights[lesson]}
            ways[way] = [specs.spec(BY_ANSWERS[TAUGHT], seed, alpha, temperature, **options) for seed in seeds]
    return ways


def candidates(seed: int, alpha: float, temperature: float, weights: Sequence[float]) -> list[StudentSpec]:
    """One student for each lesson and weight, of which :func:`choose_weights` chooses."""
    return [
        specs.spec(BY_ANSWERS[TAUGHT], seed, alpha, temperature, lesson=lesson, weight=weight)
        for lesson in LESSONS
        for weight in weights
    ]


def choose_weights(
    results: dict[StudentSpec, TrainedStudent], without: TrainedStudent, validation: Examples
) -> pd.DataFrame:
    """For each lesson the largest weight that costs at most :data:`COST` of accuracy on validation.

    Where all cost more, it is the one that costs least. Explanations are to be taught as far as accuracy permits. Test
    images play no part.

    Args:
        results: the candidates.
        without: the student of the same seed without a lesson.
        validation: the images that decide.

    Returns:
        A row a candidate: ``lesson``, ``weight``, ``val_accuracy``, ``cost`` (of accuracy) and ``chosen``.
    """

    def accuracy(trained: TrainedStudent) -> float:
        return float(expected_hits(trained.val_logits, validation.labels, validation.posterior).mean())

    rows = [(spec.lesson, spec.weight, accuracy(trained)) for spec, trained in results.items()]
    table = pd.DataFrame(rows, columns=["lesson", "weight", "val_accuracy"])
    table["cost"] = accuracy(without) - table["val_accuracy"]
    chosen = []
    for _, group in table.groupby("lesson", sort=False):
        cheap = group[group["cost"] <= COST]
        chosen.append(cheap["weight"].idxmax() if len(cheap) else group["cost"].idxmin())
    return table.assign(chosen=table.index.isin(chosen))


# -- what is compared --------------------------------------------------------------------------------------------------


def explanation_rows(
    students: dict[tuple[str, int], nn.Module], teacher: nn.Module, layout: Layout, data: ImageSet, per_class: int
) -> pd.DataFrame:
    """Truth, faithfulness and likeness to the teacher of every student's explanations, on the same test images.

    Args:
        students: (way, seed) -> network.
        teacher: whose explanations they are compared with.
        layout: of the teacher's explanations.
        data: the images; those of test are explained. Truth is judged where they have masks.
        per_class: test images of each class.

    Returns:
        The rows of ``fidelity.csv`` and ``localisation.csv`` with columns ``way`` and ``seed``. Metric
        ``teacher_likeness`` is the cosine of the student's map and the teacher's, of average maps and, for the class
        that the teacher predicts, of evidence.
    """
    sample = fidelity.draw_sample(teacher, data, per_class)
    of_teacher, answers = _in_batches(teacher, sample.images), sample.targets
    tables = []
    for (way, seed), model in students.items():
        sample = fidelity.draw_sample(model, data, per_class)
        maps = explain_all({name: METHODS[name] for name in EXPLAINED_BY}, model, sample.images, sample.targets)
        judged = [fidelity.fidelity_rows(model, way, sample, maps, families=True)]
        if sample.masks is not None:
            judged.append(fidelity.localisation_rows(way, sample, maps))
        rows = [table[table["metric"].isin([*fidelity.FAMILIES, *TRUTH])] for table in judged]
        for method, values in likeness(model, layout, sample.images, of_teacher, answers).items():
            rows.append(fidelity.long_rows(sample, way, method, pd.DataFrame({LIKENESS: values})))
        tables.append(pd.concat(rows, ignore_index=True).assign(way=way, seed=seed))
    return pd.concat(tables, ignore_index=True)


def _in_batches(teacher: nn.Module, images: Tensor, batch_size: int = 64) -> Explanations:
    blocks = blocks_of(teacher, images[:batch_size])
    batches = [teacher_explanations(teacher, batch, blocks) for batch in images.split(batch_size)]
    attention = [torch.cat(maps) for maps in zip(*(batch.attention for batch in batches), strict=True)]
    return Explanations(attention, torch.cat([batch.evidence for batch in batches]))


@torch.no_grad()
def likeness(
    student: nn.Module, layout: Layout, images: Tensor, teacher: Explanations, answers: Tensor
) -> dict[str, np.ndarray]:
    """Cosine of the student's maps and the teacher's: what the lessons teach, measured on other images.

    Args:
        student: one of the study's own networks.
        layout: of the teacher's explanations.
        images: ``(N, 3, H, W)``.
        teacher: its explanations of these images.
        answers: ``(N,)``, the classes that it predicts.

    Returns:
        Kind of map -> ``(N,)``.
    """
    with explaining(cast(StudentCNN, student), layout) as shows:
        student(images)
        own = shows()
    pairs = [losses.directions(a, b) for a, b in zip(own.attention, teacher.attention, strict=True)]
    evidence = losses.directions(own.evidence_of(answers), teacher.evidence_of(answers))
    of_attention = torch.stack([(a * b).sum(dim=-1) for a, b in pairs]).mean(dim=0)
    cosines = {"feature_maps_mean": of_attention, "class_evidence": (evidence[0] * evidence[1]).sum(dim=-1)}
    return {method: values.cpu().numpy() for method, values in cosines.items()}


def explanation_tests(rows: pd.DataFrame, ways: Sequence[str]) -> pd.DataFrame:
    """Rows of ``tests.csv``: is the explanation of the one student better than that of the other, by each metric?

    Each way of teaching by answers against the labels alone, each lesson against the loss without it. Truth is asked
    where both students are right with every seed; the others of all images and, ``matched``, of these.

    Args:
        rows: of :func:`explanation_rows`.
        ways: of :func:`student_specs`, those to compare.

    Returns:
        The rows, with Holm's p values; empty where there is nothing to compare.
    """
    tests: list[dict[str, object]] = []
    correct = rows.groupby(["way", "image_id"])["correct"].all().unstack("way")
    for way in ways:
        rival = TAUGHT if way in BY_MAPS else ALONE
        if way in (rival, UNTRAINED) or rival not in ways:
            continue
        both_right = correct.index[correct[way] & correct[rival]]
        for (method, metric), group in rows[rows["way"].isin([way, rival])].groupby(["method", "metric"], sort=False):
            for matched in (True,) if metric in TRUTH else (False, True):
                used = group[group["image_id"].isin(both_right)] if matched else group
                kind = "truth" if metric in TRUTH else "likeness" if metric == LIKENESS else "fidelity"
                question = f"{kind}: is the {method} of the taught student better{', both right' if matched else ''}?"
                rows_of_way, rows_of_rival = (used[used["way"] == name] for name in (way, rival))
                row = fidelity.paired_over_seeds(question, way, rival, rows_of_way, rows_of_rival, metric)
                if row is not None:
                    tests.append(row | {"method": method, "matched": matched})
    return with_holm(tests) if tests else pd.DataFrame()


def accuracy_tests(
    results: dict[StudentSpec, TrainedStudent],
    ways: dict[str, list[StudentSpec]],
    test: Examples,
    groups: np.ndarray,
    labels: str,
) -> pd.DataFrame:
    """Rows of ``tests.csv``: what a lesson costs or adds in accuracy, against the same loss without it.

    Args:
        results: the trained students.
        ways: of :func:`student_specs`.
        test: the test images.
        groups: ``(n,)`` of the test images.
        labels: how many they learned from, in words.

    Returns:
        The rows, with Holm's p values; empty where no lesson was taught.
    """
    hits = {way: np.stack([_hits(results[spec], test) for spec in students]) for way, students in ways.items()}
    lessons = [way for way in ways if way in BY_MAPS]
    if not lessons:
        return pd.DataFrame()
    question = f"{labels}: what does the lesson add to accuracy?"
    return with_holm([compare_over_seeds(question, way, TAUGHT, hits[way], hits[TAUGHT], groups) for way in lessons])


def detectors(students: dict[tuple[str, int], nn.Module], images: Tensor, masks: np.ndarray) -> pd.DataFrame:
    """How many filters of each student detect the lesion (:func:`kdnb.fidelity.concept_filters`): a row a student."""
    rows = []
    for (way, seed), model in students.items():
        filters = fidelity.concept_filters(model, images, masks)
        rows.append(
            {
                "way": way,
                "seed": seed,
                "detectors": int(filters["detects"].sum()),
                "filters": len(filters),
                "best": filters["overlap"].max(),
            }
        )
    return pd.DataFrame(rows)


def maps_of(student: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """The evidence of ``targets`` ``(N,)`` as it is, cell by cell, for a picture: ``(N, h, w)``."""
    rows = torch.arange(len(images), device=images.device)
    return class_evidence(student, images).maps[rows, targets].cpu().numpy()


def accuracies(
    results: dict[str, dict[StudentSpec, TrainedStudent]], ways: dict[str, dict[str, list[StudentSpec]]], test: Examples
) -> pd.DataFrame:
    """How often each student is right.

    Args:
        results: how many labels -> the trained students.
        ways: how many labels -> the ways of :func:`student_specs`.
        test: the test images.

    Returns:
        A row a student: ``labels``, ``way``, ``seed`` and ``accuracy`` (expected, where the true posterior is known).
    """
    return pd.DataFrame(
        {"labels": labels, "way": way, "seed": spec.seed, "accuracy": _hits(results[labels][spec], test).mean()}
        for labels, ways_of_labels in ways.items()
        for way, students in ways_of_labels.items()
        for spec in students
    )


def _hits(trained: TrainedStudent, test: Examples) -> np.ndarray:
    return expected_hits(trained.test_logits, test.labels, test.posterior)
