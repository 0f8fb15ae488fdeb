"""Does teaching make a classifier more transparent? Students taught in several ways, compared by their explanations (chapter 08).

The same student learns from labels, from a teacher's answers, and from a teacher's explanations besides; then the same explanations of
all are judged on the same test images, paired by seed and image. ``accuracy`` decides nothing here, so each comparison is made twice: on
*all* images, and where *both* students are right with every seed, that is, at equal accuracy.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdnb import fidelity, losses, specs
from kdnb.datasets import ImageSet
from kdnb.evaluation import compare_over_seeds, expected_hits, with_holm
from kdnb.explain import METHODS, class_evidence, explain_all
from kdnb.explain.taught import LESSONS, Explanations, Layout, blocks_of, explaining, teacher_explanations
from kdnb.specs import StudentSpec, TrainedStudent
from kdnb.transparency import TRUTH

ALONE, TAUGHT = "labels alone", "with T²"
UNTRAINED = "untrained"
BY_ANSWERS = {ALONE: "ce", "label smoothing": "ls", "paper's loss": "kd", TAUGHT: "kd_t2"}
BY_MAPS = {"attention too": "attention", "class attention too": "class_attention", "explanation too": "explanation"}
EXPLAINED_BY = ("feature_maps_mean", "class_evidence")  # the paper's explanation, and the exact one
LIKENESS = "teacher_likeness"
COST = 0.01  # of accuracy on validation: the most that a lesson may cost when its weight is chosen


def cells(
    seeds: Sequence[int], alpha: float, temperature: float, weights: dict[str, float]
) -> dict[str, list[StudentSpec]]:
    """Way of teaching -> its students. Lessons come on top of the loss with T^2, so that what they add is theirs.

    Args:
        weights: lesson (:data:`kdnb.explain.taught.LESSONS`) -> its weight beside that loss; a lesson that is not named is left out.
    """
    ways = {way: [specs.spec(arm, seed, alpha, temperature) for seed in seeds] for way, arm in BY_ANSWERS.items()}
    if alpha == 1:  # no teacher is heard
        return {way: ways[way] for way in (ALONE, "label smoothing")}
    for way, lesson in BY_MAPS.items():
        if lesson in weights:
            options = {"lesson": lesson, "weight": weights[lesson]}
            ways[way] = [specs.spec(BY_ANSWERS[TAUGHT], seed, alpha, temperature, **options) for seed in seeds]
    return ways


def candidates(seed: int, alpha: float, temperature: float, weights: Sequence[float]) -> list[StudentSpec]:
    """One student for each lesson and weight, of which :func:`choose_weights` chooses."""
    return [
        specs.spec(BY_ANSWERS[TAUGHT], seed, alpha, temperature, lesson=lesson, weight=weight)
        for lesson in LESSONS
        for weight in weights
    ]


def choose_weights(results: dict[StudentSpec, TrainedStudent], without: TrainedStudent, validation) -> pd.DataFrame:
    """For each lesson the largest weight that costs at most :data:`COST` of accuracy on validation, or the one that costs least.

    Explanations are to be taught as far as accuracy permits. Test images play no part.

    Args:
        results: the candidates. without: the student of the same seed without a lesson. validation: its examples.

    Returns:
        a row a candidate: ``lesson``, ``weight``, ``val_accuracy``, ``cost`` (of accuracy) and ``chosen``.
    """

    def accuracy(trained: TrainedStudent) -> float:
        return float(expected_hits(trained.val_logits, validation.labels, validation.posterior).mean())

    rows = [(one.lesson, one.weight, accuracy(trained)) for one, trained in results.items()]
    table = pd.DataFrame(rows, columns=["lesson", "weight", "val_accuracy"])
    table["cost"] = accuracy(without) - table["val_accuracy"]
    chosen = []
    for _, of_lesson in table.groupby("lesson", sort=False):
        cheap = of_lesson[of_lesson["cost"] <= COST]
        chosen.append(cheap["weight"].idxmax() if len(cheap) else of_lesson["cost"].idxmin())
    return table.assign(chosen=table.index.isin(chosen))


# -- what is compared --------------------------------------------------------------------------------------------------


def explanation_rows(
    students: dict[tuple[str, int], nn.Module], teacher: nn.Module, layout: Layout, data: ImageSet, per_class: int
) -> pd.DataFrame:
    """Truth (where there are masks), faithfulness and likeness to the teacher of every student's explanations, on the same test images.

    Args:
        students: (way, seed) -> network. layout: of the teacher's explanations.
        per_class: test images of each class.

    Returns:
        the rows of ``fidelity.csv`` and ``localisation.csv`` with columns ``way`` and ``seed``. Metric ``teacher_likeness`` is the cosine
        of the student's map and the teacher's, of average maps and, for the class that the teacher predicts, of evidence.
    """
    sample = fidelity.draw_sample(teacher, data, per_class)
    shown, answers = _in_batches(teacher, sample.images), sample.targets
    tables = []
    for (way, seed), model in students.items():
        sample = fidelity.draw_sample(model, data, per_class)
        maps = explain_all({name: METHODS[name] for name in EXPLAINED_BY}, model, sample.images, sample.targets)
        judged = [fidelity.fidelity_rows(model, way, sample, maps, families=True)]
        if sample.masks is not None:
            judged.append(fidelity.localisation_rows(way, sample, maps))
        rows = [part[part["metric"].isin([*fidelity.FAMILIES, *TRUTH])] for part in judged]
        for method, values in likeness(model, layout, sample.images, shown, answers).items():
            rows.append(fidelity.long_rows(sample, way, method, pd.DataFrame({LIKENESS: values})))
        tables.append(pd.concat(rows, ignore_index=True).assign(way=way, seed=seed))
    return pd.concat(tables, ignore_index=True)


def _in_batches(teacher: nn.Module, images: Tensor, batch_size: int = 64) -> Explanations:
    blocks = blocks_of(teacher, images[:batch_size])
    parts = [teacher_explanations(teacher, some, blocks) for some in images.split(batch_size)]
    attention = [torch.cat(maps) for maps in zip(*(part.attention for part in parts), strict=True)]
    return Explanations(attention, torch.cat([part.evidence for part in parts]))


@torch.no_grad()
def likeness(
    student: nn.Module, layout: Layout, images: Tensor, teacher: Explanations, answers: Tensor
) -> dict[str, np.ndarray]:
    """Cosine of the student's maps and the teacher's, ``(N,)`` by kind of map: what the lessons teach, measured on other images."""
    with explaining(student, layout) as shows:
        student(images)
        mine = shows()
    pairs = [losses.directions(a, b) for a, b in zip(mine.attention, teacher.attention, strict=True)]
    evidence = losses.directions(mine.evidence_of(answers), teacher.evidence_of(answers))
    of_attention = torch.stack([(a * b).sum(dim=-1) for a, b in pairs]).mean(dim=0)
    found = {"feature_maps_mean": of_attention, "class_evidence": (evidence[0] * evidence[1]).sum(dim=-1)}
    return {method: values.cpu().numpy() for method, values in found.items()}


def explanation_tests(rows: pd.DataFrame, ways: Sequence[str]) -> pd.DataFrame:
    """Rows of ``tests.csv``: is the explanation of the one student better than that of the other, by each metric?

    Each way of teaching by answers against the labels alone, each lesson against the loss without it. Truth is asked where both students
    are right with every seed; the others of all images and, ``matched``, of these.
    """
    found = []
    correct = rows.groupby(["way", "image_id"])["correct"].all().unstack("way")
    for way in ways:
        rival = TAUGHT if way in BY_MAPS else ALONE
        if way in (rival, UNTRAINED) or rival not in ways:
            continue
        both_right = correct.index[correct[way] & correct[rival]]
        for (method, metric), part in rows[rows["way"].isin([way, rival])].groupby(["method", "metric"], sort=False):
            for matched in (True,) if metric in TRUTH else (False, True):
                used = part[part["image_id"].isin(both_right)] if matched else part
                kind = "truth" if metric in TRUTH else "likeness" if metric == LIKENESS else "fidelity"
                question = f"{kind}: is the {method} of the taught student better{', both right' if matched else ''}?"
                pair = (used[used["way"] == name] for name in (way, rival))
                row = fidelity.paired_over_seeds(question, way, rival, *pair, metric)
                if row is not None:
                    found.append(row | {"method": method, "matched": matched})
    return with_holm(found) if found else pd.DataFrame()


def accuracy_tests(
    results: dict[StudentSpec, TrainedStudent],
    ways: dict[str, list[StudentSpec]],
    test,
    groups: np.ndarray,
    labels: str,
) -> pd.DataFrame:
    """Rows of ``tests.csv``: what a lesson costs or adds in accuracy, with ``labels`` of them; against the same loss without it."""
    hits = {way: np.stack([_hits(results[one], test) for one in of_way]) for way, of_way in ways.items()}
    lessons = [way for way in ways if way in BY_MAPS]
    if not lessons:
        return pd.DataFrame()
    question = f"{labels}: what does the lesson add to accuracy?"
    return with_holm([compare_over_seeds(question, way, TAUGHT, hits[way], hits[TAUGHT], groups) for way in lessons])


def detectors(students: dict[tuple[str, int], nn.Module], images: Tensor, masks: np.ndarray) -> pd.DataFrame:
    """How many filters of each student detect the lesion (:func:`kdnb.fidelity.concept_filters`): a row a student."""
    rows = []
    for (way, seed), model in students.items():
        found = fidelity.concept_filters(model, images, masks)
        rows.append(
            {
                "way": way,
                "seed": seed,
                "detectors": int(found["detects"].sum()),
                "filters": len(found),
                "best": found["overlap"].max(),
            }
        )
    return pd.DataFrame(rows)


def maps_of(student: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """The evidence of ``targets`` ``(N,)`` as it is, cell by cell, for a picture: ``(N, h, w)``."""
    rows = torch.arange(len(images), device=images.device)
    return class_evidence(student, images).maps[rows, targets].cpu().numpy()


def accuracies(
    results: dict[str, dict[StudentSpec, TrainedStudent]], ways: dict[str, dict[str, list[StudentSpec]]], test
) -> pd.DataFrame:
    """A row a student: ``labels`` (how many), ``way``, ``seed`` and ``accuracy`` (expected, where the true posterior is known)."""
    return pd.DataFrame(
        {"labels": labels, "way": way, "seed": one.seed, "accuracy": _hits(results[labels][one], test).mean()}
        for labels, of_labels in ways.items()
        for way, of_way in of_labels.items()
        for one in of_way
    )


def _hits(trained: TrainedStudent, test) -> np.ndarray:
    return expected_hits(trained.test_logits, test.labels, test.posterior)
