"""What stands in a teacher's place: banks with known values, and the recorded teacher of the default run."""

import numpy as np
import pandas as pd
import pytest
import torch

from kdnb import evaluation, models, networks, provenance, runs, teachers
from kdnb.datasets import phantom
from kdnb.errors import ArtefactError
from kdnb.settings import budget
from kdnb.training import Recipe

LABELS = np.array([0, 0, 1, 1, 1])


@pytest.fixture
def bank():
    return np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits.astype(float)).softmax(-1).numpy()


def test_the_oracle_says_the_true_probabilities_in_every_view():
    posterior = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    logits = teachers.oracle(posterior, views=3)
    assert logits.shape == (3, 2, 3) and logits.dtype == np.float32 and np.allclose(logits.sum(axis=2), 0, atol=1e-5)
    assert np.allclose(softmax(logits[2]), posterior, atol=2.1e-4), "what is certain stays finite"


def test_shuffled_logits_are_the_same_ones_within_each_class(bank):
    exchanged = teachers.shuffled(bank, LABELS)
    for label in (0, 1):
        own = label == LABELS
        assert sorted(map(tuple, bank[0, own])) == sorted(map(tuple, exchanged[0, own]))
    where = [int(np.flatnonzero((bank[0] == row).all(axis=1))[0]) for row in exchanged[0]]
    assert np.array_equal(exchanged[1], bank[1, where]), "an image keeps one partner in all views"
    assert sorted(where) != where and np.array_equal(exchanged, teachers.shuffled(bank, LABELS))


def test_class_means_by_hand(bank):
    means = teachers.class_mean(bank, LABELS)
    assert np.allclose(means[:, 0], bank[:, :2].mean(axis=(0, 1)), atol=1e-6) and np.array_equal(
        means[0, 2], means[1, 4]
    )


def test_the_symmetric_teacher_has_the_margin_and_nothing_else():
    bank = np.array([[[3.0, 0.0, 0.0], [0.0, 2.0, 1.0]]], np.float32)  # margins 3 - 0 and 2 - .5
    logits = teachers.symmetric(bank, np.array([0, 1]))
    assert np.allclose(logits, [[[1.5, -0.75, -0.75], [-0.75, 1.5, -0.75]]])


def test_a_teacher_is_recorded_and_loaded_in_half_precision(tmp_path, monkeypatch):
    small = lambda classes, **_: models.StudentCNN(classes, (4, 8, 8))  # noqa: E731
    monkeypatch.setattr(teachers, "densenet121_teacher", small)
    run = runs.start("02_teacher_training", profile="smoke", run_dir=str(tmp_path / "phantom-smoke-seed0"))
    teacher = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=0)
    run.save_model("teacher", teacher, "key")
    run.save_table(
        "teacher_history", pd.DataFrame({"epoch": [1], "train_loss": [1.0], "val_accuracy": [0.5], "seconds": [120.0]})
    )
    about = {"key": "key", "head": "plain", "recipe": {}, "task": "task"}
    run.record("teacher", about | {"made": "loaded: recorded after 2 minutes"})
    with pytest.raises(ArtefactError, match="TRAIN_TEACHER=1"):
        teachers.record(run.folder, tmp_path / "recorded.safetensors")
    run.record("teacher", about | {"made": "trained in 120 s"})
    path = teachers.record(run.folder, tmp_path / "recorded.safetensors")
    other = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=1)
    assert teachers.load(other, "another task", path) is None
    facts = teachers.load(other, "task", path)
    assert facts["minutes"] == 2 and teachers.history(facts)["val_accuracy"].tolist() == [0.5]
    for name, value in teacher.state_dict().items():
        assert torch.allclose(other.state_dict()[name].float(), value.float(), atol=1e-3), name


def test_the_recorded_teacher_is_the_default_runs_and_near_what_can_be_known():
    quick = budget("quick")
    recipe = Recipe(quick.teacher_epochs, batch_size=64, views=quick.teacher_epochs, learning_rate=2e-3)
    identity = networks.identity("teacher", networks.OWN_TEACHER)
    task = provenance.content_key(
        teachers.generated_key(quick.image_size, quick.teacher_images), vars(recipe), "scratch", "plain", *identity
    )
    teacher = models.densenet121_teacher(len(phantom.CLASSES))
    facts = teachers.load(teacher, task)
    assert facts is not None, (
        "recorded for another profile or generator: make reproduce TRAIN_TEACHER=1, python -m kdnb.teachers runs/..."
    )
    made = phantom.generate(512, quick.image_size, "drawn", seed=2)  # subjects that neither it nor a run has seen
    expected = evaluation.expected_accuracy(evaluation.predict(teacher.eval(), made.images), made.posterior)
    assert expected > made.posterior.max(axis=1).mean() - 0.03
    assert facts["minutes"] > 1 and len(facts["history"]["epoch"]) == quick.teacher_epochs


def test_generated_images_are_known_by_their_key():
    assert teachers.generated_key(48, 100) != teachers.generated_key(48, 101) != teachers.generated_key(32, 101)
    train, validation = teachers.generated(32, 64)
    assert len(train) == 64 and len(validation) == teachers.VALIDATION
