"""Students trained at once become what they would have become alone."""

import numpy as np
import torch
from torch.nn import functional as F

from kdnb import experiments, losses, models, runs, specs, stack, store, sweep, training
from kdnb.datasets import phantom
from kdnb.evaluation import predict


def test_a_stack_of_three_equals_three_alone(monkeypatch):
    monkeypatch.setenv("KDNB_PRECISION", "float32")  # two orders of adding differ in the third decimal of bfloat16
    made = phantom.generate(128, 32)
    train, validation = (
        training.Examples(made.images[part], made.labels[part]) for part in (slice(96), slice(96, None))
    )
    recipe = training.Recipe(epochs=2, batch_size=32, views=2, averaging=0.9)
    bank = np.random.default_rng(0).normal(0, 3, (2, 96, 4)).astype(np.float32)

    def kd(z, t, y):
        return losses.distillation_loss(z, t, y, alpha=0.4, temperature=5.0).total

    arms, seeds = [lambda z, t, y: F.cross_entropy(z, y), kd, kd], [0, 0, 1]

    def students():
        return [models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=seed) for seed in seeds]

    with training.threads(1):
        together = stack.fit(students(), train, validation, recipe, arms, seeds=seeds, bank=bank)
        for student, loss, seed, stacked in zip(students(), arms, seeds, together, strict=True):
            alone = training.fit(student, train, validation, recipe, loss, seed=seed, bank=bank)
            assert set(stacked.last) == set(alone.last)
            for name, value in alone.last.items():
                # Adam divides by the root of the squared gradient:
                # a gradient that rounding makes of nothing counts like any other.
                torch.testing.assert_close(stacked.last[name], value, atol=2e-3, rtol=2e-3, msg=name)
            np.testing.assert_allclose(stacked.history["train_loss"], alone.history["train_loss"], rtol=1e-4)
            assert stacked.best_epoch == alone.best_epoch
    assert not torch.equal(together[0].last["classifier.weight"], together[1].last["classifier.weight"])


def test_a_grid_in_stacks_is_stored_cell_by_cell_and_not_trained_again(tmp_path, monkeypatch):
    made = phantom.generate(96, 32)
    splits = [
        training.Examples(made.images[part], made.labels[part]) for part in (slice(64), slice(64, 80), slice(80, 96))
    ]
    bank = np.zeros((1, 64, 4), np.float32)
    experiment = experiments.Experiment(*splits, bank, training.Recipe(epochs=1, batch_size=32, views=1), 4, "key")
    cells = [specs.spec("kd", seed, 0.4, 5.0, widths=(4, 8)) for seed in (0, 1)] + [
        specs.spec("ce", 0, 1, 1, widths=(4, 8, 8))
    ]
    run = runs.start("04_temperature_sweep", profile="smoke", run_dir=str(tmp_path / "phantom-smoke-seed0"))
    monkeypatch.setattr(sweep, "stacked", lambda waiting, _: [waiting[:2], waiting[2:]] if len(waiting) == 3 else 1 / 0)
    students = sweep.train(run, cells, experiment)
    stored = sweep.train(run, cells, experiment)
    assert list(students) == list(stored) == cells
    for spec in cells:
        np.testing.assert_array_equal(students[spec].test_logits, stored[spec].test_logits)
        network = store.trained_student(run, spec, experiment)
        np.testing.assert_allclose(predict(network, experiment.test.images), students[spec].test_logits, atol=1e-5)


def test_only_small_images_on_a_gpu_are_stacked(monkeypatch):
    cells = [specs.spec("ce", seed, 1, 1) for seed in range(stack.MOST + 1)]
    some = training.Examples(np.zeros((1, 64, 64, 3), np.uint8), np.zeros(1, np.int64))
    experiment = experiments.Experiment(some, some, some, np.empty((0, 0, 0)), training.Recipe(epochs=1), 4, "key")
    assert sweep.stacked(cells, experiment) == []
    monkeypatch.setattr(sweep, "best_device", lambda: torch.device("cuda"))
    assert [len(group) for group in sweep.stacked(cells, experiment)] == [stack.MOST, 1]
