"""The loop: learns, repeats itself to the byte, resumes to the byte, stops on divergence."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdnb import losses, models, training
from kdnb.datasets import phantom
from kdnb.errors import TrainingDivergedError

RECIPE = training.Recipe(epochs=3, batch_size=16, views=2, learning_rate=1e-2)


def cross_entropy(student_logits, teacher_logits, targets):
    return F.cross_entropy(student_logits, targets)


def experiment(count: int = 96) -> tuple[training.Examples, training.Examples]:
    made = phantom.generate(count + 32, 32)
    return training.Examples(made.images[:count], made.labels[:count]), training.Examples(
        made.images[count:], made.labels[count:]
    )


def small(seed: int = 0) -> models.StudentCNN:
    return models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=seed)


def fitted(recipe: training.Recipe = RECIPE, **options) -> training.Fitted:
    train, validation = experiment()
    with training.threads(1):
        return training.fit(small(), train, validation, recipe, cross_entropy, seed=0, **options)


def assert_same(first: training.Fitted, second: training.Fitted) -> None:
    for name, value in first.last.items():
        assert torch.equal(value, second.last[name]), name
    for name, value in first.best.items():
        assert torch.equal(value, second.best[name]), name
    columns = ["epoch", "train_loss", "val_accuracy"]
    assert first.history[columns].equals(second.history[columns])


def test_learning_rate_rises_then_falls_to_zero():
    recipe = training.Recipe(epochs=1, learning_rate=1.0, warmup=0.2)
    rates = [training.learning_rate(step, 100, recipe) for step in range(101)]
    assert rates[19] == 1.0 and max(rates) == 1.0
    assert all(before < after for before, after in itertools.pairwise(rates[:20]))
    assert all(before >= after for before, after in itertools.pairwise(rates[20:]))
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_training_lowers_the_loss_and_repeats_itself():
    longer = replace(RECIPE, epochs=6)
    first = fitted(longer)
    assert first.history["train_loss"].iloc[-1] < 0.97 * first.history["train_loss"].iloc[0]
    assert_same(first, fitted(longer))


def test_history_names_the_best_epoch():
    result = fitted()
    assert result.best_epoch == 1 + int(np.argmax(result.history["val_accuracy"]))


def test_a_training_that_is_not_judged_comes_to_the_same_weights():
    judged, unjudged = fitted(), fitted(judged=False)
    for name, value in judged.last.items():
        assert torch.equal(value, unjudged.last[name]), name
        assert torch.equal(value, unjudged.best[name]), "of epochs that nobody compared the last is the best"
    assert unjudged.history["val_accuracy"].isna().all() and not judged.history["val_accuracy"].isna().any()
    assert unjudged.best_epoch == len(unjudged.history) > 1


def test_every_epoch_sees_every_image_once_in_another_order():
    orders = [training.epoch_order(50, seed=1, epoch=epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], training.epoch_order(50, seed=1, epoch=0))


def test_bank_reaches_the_loss_with_the_right_rows():
    train, validation = experiment()
    bank = np.arange(2 * len(train) * 4, dtype=np.float32).reshape(2, len(train), 4)
    seen = []

    def spy(student_logits, teacher_logits, targets):
        seen.append((teacher_logits[:, 0].numpy().copy(), targets.numpy().copy()))
        return F.cross_entropy(student_logits, targets)

    training.fit(small(), train, validation, RECIPE, spy, seed=0, bank=bank)
    steps = len(seen) // RECIPE.epochs
    for epoch in range(RECIPE.epochs):
        rows = np.concatenate([logits for logits, _ in seen[epoch * steps : (epoch + 1) * steps]])
        targets = np.concatenate([labels for _, labels in seen[epoch * steps : (epoch + 1) * steps]])
        view, image = np.divmod(rows.astype(int) // 4, len(train))
        assert set(view) == {epoch % RECIPE.views}
        assert sorted(image) == list(range(len(train)))
        assert np.array_equal(targets, train.labels[image])


def test_divergence_names_the_step():
    train, validation = experiment()
    with pytest.raises(TrainingDivergedError, match="nan in step 1 of epoch 1"):
        training.fit(small(), train, validation, RECIPE, lambda s, t, y: s.sum() * float("nan"), seed=0)


def test_resumes_to_the_byte_after_sigkill(tmp_path, monkeypatch):
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(os.path.dirname(__file__))!r})
        import test_training as t
        from pathlib import Path
        t.training.CHECKPOINT_SECONDS = 0
        calls = 0
        def loss(s, z, y):
            global calls
            calls += 1
            if calls == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return t.cross_entropy(s, z, y)
        train, validation = t.experiment()
        with t.training.threads(1):
            t.training.fit(t.small(), train, validation, t.RECIPE, loss, seed=0, checkpoint=Path(sys.argv[1]), key="k")
        """
    )
    checkpoint = tmp_path / "state.safetensors"
    killed = subprocess.run([sys.executable, "-c", program, str(checkpoint), "15"], check=False)
    assert killed.returncode == -signal.SIGKILL and checkpoint.exists()  # in the third of three epochs, six steps each
    calls = []

    def counting(student_logits, teacher_logits, targets):
        calls.append(1)
        return cross_entropy(student_logits, teacher_logits, targets)

    train, validation = experiment()
    with training.threads(1):
        resumed = training.fit(small(), train, validation, RECIPE, counting, seed=0, checkpoint=checkpoint, key="k")
    assert len(calls) == 6  # only the epoch that was cut short
    assert_same(resumed, fitted())
    assert_same(fitted(checkpoint=checkpoint, key="k"), resumed)  # a kill before the result is stored costs nothing


@pytest.mark.parametrize("damage", ["foreign", "truncated", "rubbish", "changed"])
def test_unusable_checkpoint_is_not_used(tmp_path, monkeypatch, damage):
    checkpoint = tmp_path / "state.safetensors"
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    train, validation = experiment()
    with training.threads(1):
        key = "another" if damage == "foreign" else "k"
        training.fit(small(), train, validation, RECIPE, cross_entropy, seed=7, checkpoint=checkpoint, key=key)
    monkeypatch.undo()
    if damage == "changed":
        content = bytearray(checkpoint.read_bytes())
        content[-5] ^= 1
        checkpoint.write_bytes(content)
    if damage == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    if damage == "rubbish":
        checkpoint.write_bytes(b"not a checkpoint")
    assert_same(fitted(checkpoint=checkpoint, key="k"), fitted())


def test_arms_of_one_seed_start_from_the_same_weights():
    train, validation = experiment()
    recipe = training.Recipe(epochs=1, batch_size=16, views=1)
    bank = np.zeros((1, len(train), 4), np.float32)
    with training.threads(1):
        plain = training.fit(small(), train, validation, recipe, cross_entropy, seed=0)
        mixed = training.fit(
            small(),
            train,
            validation,
            recipe,
            lambda s, t, y: losses.arm_loss("kd", s, t, y, alpha=1.0, temperature=5.0),
            seed=0,
            bank=bank,
        )
    for name, value in plain.last.items():
        torch.testing.assert_close(value, mixed.last[name])


def test_no_step_reads_a_value_back_from_the_device():
    """On a GPU each read would wait until the device has caught up:
    an epoch may read its losses once, however many steps it has."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    train, _ = experiment()
    state = training.TrainingState(
        model := small(), torch.optim.SGD(model.parameters(), lr=0.1), dict(small().state_dict()), {}, []
    )
    with training.threads(1), Reads() as reads:
        training.train_epoch(
            state, training.to_device(train, torch.device("cpu")), None, RECIPE, cross_entropy, seed=0, epoch=0
        )
    assert reads.count == 0
