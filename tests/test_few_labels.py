"""Few labels: which image has one, who teaches, and what is compared."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.nn import functional as F

from kdnb import experiments, few_labels, losses, models, runs, specs, sweep, teachers, training
from kdnb.datasets import phantom
from kdnb.evaluation import expected_hits


@pytest.fixture(scope="module")
def experiment():
    made = phantom.generate(192, 32, "drawn")
    splits = [
        training.Examples(made.images[cut], made.labels[cut], made.posterior[cut])
        for cut in (slice(96), slice(96, 128), slice(128, 192))
    ]
    bank = np.log(np.maximum(made.posterior[:96], 1e-3))[None].astype(np.float32)
    return experiments.Experiment(
        *splits, bank, training.Recipe(epochs=1, batch_size=32, views=1), 4, "key", widths=(4, 8)
    )


def test_without_a_label_only_the_teacher_speaks():
    logits, teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.randn(4, 3)
    targets = torch.tensor([0, losses.UNLABELLED, 2, losses.UNLABELLED])
    loss = losses.distillation_loss(logits, teacher, targets, alpha=0.4, temperature=2.0)
    assert torch.isclose(loss.hard, F.cross_entropy(logits[[0, 2]], targets[[0, 2]]) / 2), (
        "the mean over all images of the batch"
    )
    every = losses.distillation_loss(logits, teacher, torch.zeros(4, dtype=torch.long), alpha=0.4, temperature=2.0)
    assert torch.equal(loss.soft, every.soft)
    nobody = losses.distillation_loss(logits, teacher, torch.full((4,), losses.UNLABELLED), alpha=0.4, temperature=2.0)
    assert nobody.hard == 0 and torch.isclose(nobody.total, 0.6 * nobody.soft)


def test_the_same_few_images_keep_their_labels_and_no_others(experiment):
    few = experiments.with_few_labels(experiment, 2, draw=5)
    known = few.train.labels != losses.UNLABELLED
    assert known.sum() == 8 and np.bincount(few.train.labels[known]).tolist() == [2, 2, 2, 2]
    assert np.array_equal(few.train.labels[known], experiment.train.labels[known])
    assert set(np.flatnonzero(known)) == set(experiments.few_labelled(experiment, 2, draw=5))
    assert not np.array_equal(few.train.labels, experiments.with_few_labels(experiment, 2, draw=6).train.labels)
    assert (few.key, few.folder) != (experiment.key, experiment.folder) and few.bank is experiment.bank


def test_of_many_classes_every_labelled_image_is_seen(experiment):
    train, _, positions = experiments.few_repeated(experiment, 10, most=24, draw=0)
    assert np.array_equal(train.images, experiment.train.images[positions])
    assert len(train) == len(experiments.few_labelled(experiment, 10, draw=0)) == 40
    assert len({image.tobytes() for image in train.images}) == 40


def test_the_plan_has_controls_and_the_oracle_where_asked():
    successor = few_labels.Way("dkd", 0.4, 4.0)
    whole = few_labels.plan(0.4, 10.0, few=True, controls=True, successor=successor, knows_truth=True)
    assert (
        set(teachers.WITHOUT_KNOWLEDGE) <= set(whole)
        and whole["successor"] is successor
        and whole["oracle, T = 1"].teacher == "oracle"
    )
    assert [name for name in whole if name.startswith("T = ")] == ["T = 1"], "the teacher's word as it is, always"
    grid = {"temperatures": [4.0, 10.0, 20.0], "few": True, "controls": True, "successor": None, "knows_truth": False}
    at_other = {name: way for name, way in few_labels.plan(0.4, 10.0, **grid).items() if name.startswith("T = ")}
    assert {name: way.temperature for name, way in at_other.items()} == {"T = 1": 1, "T = 4": 4, "T = 20": 20}
    assert all((way.arm, way.alpha, way.teacher) == ("kd_t2", 0.4, "trained") for way in at_other.values())
    brief = few_labels.plan(0.4, 10.0, few=True, controls=False, successor=successor, knows_truth=False)
    assert list(brief) == ["labels alone", "label smoothing", "paper's loss", "with T²", "with T², all images"]
    every = few_labels.plan(0.4, 10.0, few=False, controls=False, successor=successor, knows_truth=False)
    assert list(every) == [*list(brief)[:4], few_labels.ENSEMBLE] and every[few_labels.ENSEMBLE].teacher == "ensemble"
    assert [name for name, way in whole.items() if way.others] == ["with T², all images"]
    assert list(few_labels.plan(1.0, 10.0, few=True, controls=True, successor=None, knows_truth=True)) == [
        "labels alone",
        "label smoothing",
    ]


def test_every_way_is_taught_and_compared_with_the_labels_alone_and_with_who_knows_nothing(experiment, tmp_path):
    run = runs.start("03_distillation", profile="smoke", run_dir=str(tmp_path / "phantom-smoke-seed0"))
    teacher, groups = models.initialised(models.StudentCNN, 4, (4, 8), seed=9).eval(), np.arange(64) // 4
    ways = few_labels.plan(0.4, 4.0, few=True, controls=True, successor=None, knows_truth=True)
    taught = few_labels.teach(run, experiment, teacher, 3, ways, groups, [0, 1])
    assert {name: right.shape for name, right in taught.hits.items()} == dict.fromkeys(ways, (2, 64))
    assert taught.scores.groupby("way", sort=False).size().to_dict() == dict.fromkeys(ways, 2)
    assert taught.scores["images_per_class"].eq(3).all() and taught.scores["divergence"].gt(0).all()
    rows = few_labels.comparisons(taught, groups)
    questions = {(row["question"], row["a"], row["b"]) for row in rows}
    assert ("few labels, 3 a class: do images without a label help?", "with T², all images", "with T²") in questions
    assert ("few labels, 3 a class: does the factor T² matter?", "with T²", "paper's loss") in questions
    for name in teachers.WITHOUT_KNOWLEDGE:
        assert ("few labels, 3 a class: is it knowledge of the image?", "with T²", name) in questions
    assert not np.array_equal(taught.hits["with T²"], taught.hits["oracle, T = 1"])
    for seed in (0, 1):  # each on its own draw of images
        few, spec = (
            experiments.with_few_images(run, experiment, teacher, 3, draw=seed),
            specs.spec("kd_t2", seed, 0.4, 4.0),
        )
        logits = sweep.train(run, [spec], few)[spec].test_logits
        right = expected_hits(logits, experiment.test.labels, experiment.test.posterior)
        assert np.array_equal(taught.hits["with T²"][seed], right)
    folders = {path.name for path in run.folder.glob("cells*")}
    assert {"cells_few_3", "cells_few_3_shuffled", "cells_few_3_oracle", "cells_few_labels_3"} <= folders, (
        "each lies apart"
    )


def test_where_all_images_are_labelled_the_ensemble_of_the_students_teaches_too(experiment, tmp_path):
    run = runs.start("03_distillation", profile="smoke", run_dir=str(tmp_path / "phantom-smoke-seed0"))
    teacher, groups = models.initialised(models.StudentCNN, 4, (4, 8), seed=9).eval(), np.arange(64) // 4
    ways = few_labels.plan(0.4, 4.0, few=False, controls=False, successor=None, knows_truth=True)
    taught = few_labels.teach(run, experiment, teacher, few_labels.ALL, ways, groups, [0, 1])
    questions = {(row["question"], row["a"], row["b"]) for row in few_labels.comparisons(taught, groups)}
    assert ("all labels: is the ensemble better than its members?", few_labels.ENSEMBLE, "one student") in questions
    assert ("all labels: does the better teacher teach more?", few_labels.ENSEMBLE, "with T²") in questions
    members = sweep.train(run, [specs.spec("ce", seed, 1, 1) for seed in (0, 1)], experiment).values()
    chances = np.mean([softmax(student.test_logits, axis=1) for student in members], axis=0)
    assert np.array_equal(taught.together, expected_hits(chances, experiment.test.labels, experiment.test.posterior))
    assert {"cells", "cells_ensemble", "cells_oracle"} <= {path.name for path in run.folder.glob("cells*")}
