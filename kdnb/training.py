"""The training loop: one for the teacher and for every student.

What an epoch does depends only on ``(seed, epoch)``, never on what ran before it in the process, so a run that was
killed and resumed from its checkpoint ends with the same bytes as one that was not (the teacher's head ``paper``
excepted: it has dropout, which draws from torch's global generator).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kdnb import tensors
from kdnb.device import best_device, device_of, mixed_precision, picked, put, resident, to_float
from kdnb.errors import TrainingDivergedError
from kdnb.evaluation import predict
from kdnb.progress import progress
from kdnb.views import render, view_moves

CHECKPOINT_SECONDS = 30.0

# The average of a decay, made once for each: made anew in every step it would cost half as much again.
_averaging = cache(get_ema_multi_avg_fn)

# What a training minimises: (student logits, teacher logits or None, targets) -> a scalar.
Loss = Callable[[Tensor, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the same for every arm of a comparison.

    ``views`` augmented views of each image are cycled through, one an epoch. The learning rate rises linearly over the
    first ``warmup`` part of the steps and falls as a cosine to zero. Evaluation uses an exponential average of weights
    and buffers.
    """

    epochs: int
    batch_size: int = 64
    views: int = 4
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.2
    averaging: float = 0.99


@dataclass(frozen=True)
class Examples:
    """One split: images ``(N, H, W, 3)`` uint8, labels ``(N,)`` int64 and, where it is known, posterior ``(N, C)``."""

    images: np.ndarray
    labels: np.ndarray
    posterior: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Fitted:
    """A trained network: weights averaged to the last epoch (what the study uses) and to the one best on validation."""

    last: dict[str, Tensor]
    best: dict[str, Tensor]
    history: pd.DataFrame

    @property
    def best_epoch(self) -> int:
        """The first epoch of the highest validation accuracy, counted from 1; where none was judged the last."""
        accuracies = self.history["val_accuracy"]
        return len(accuracies) if accuracies.isna().all() else int(self.history["epoch"][accuracies.idxmax()])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with ``count`` torch threads: the last bits of results that are compared depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then a half cosine down to zero."""
    rise = max(1, round(recipe.warmup * steps))
    if step < rise:
        return recipe.learning_rate * (step + 1) / rise
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training images in one epoch: the same for every arm of a seed, so that arms are paired."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def update_average(averaged: dict[str, Tensor], current: dict[str, Tensor], step: int, recipe: Recipe) -> None:
    """Take the weights and buffers after a step into their exponential average, in place."""
    # A short memory at first, so that the average does not drag the random start along.
    decay = min(recipe.averaging, (1 + step) / (10 + step))
    names = [name for name, value in current.items() if value.is_floating_point()]
    _averaging(decay)([averaged[name] for name in names], [current[name] for name in names], step)


def fit(
    model: nn.Module,
    train: Examples,
    validation: Examples,
    recipe: Recipe,
    loss: Loss,
    *,
    seed: int,
    bank: np.ndarray | None = None,
    judged: bool = True,
    checkpoint: Path | None = None,
    key: str = "",
    what: str = "Training",
) -> Fitted:
    """Train ``model`` in place.

    Args:
        model: with its initial weights; it ends with the averaged ones, in evaluation mode.
        train: what it learns from.
        validation: what each epoch is judged on.
        recipe: epochs, batches, learning rate and averaging.
        loss: ``loss(student_logits, teacher_logits or None, targets) -> scalar``.
        seed: decides the order of the images (the caller decides the initial weights).
        bank: the teacher's logits ``(views, N, C)`` on the training images (:func:`kdnb.views.teacher_bank`).
        judged: on validation after every epoch. Of students by the hundred nobody asks for the best epoch, and judging
            theirs would take a tenth to a third of their training.
        checkpoint: where to keep the state of an unfinished run, which is taken up again if its ``key`` is the same.
            Whoever stores the result removes it then: a kill in between loses nothing.
        key: the identity of all that the training is made from.
        what: the name shown with the progress.

    Returns:
        The weights of the last and of the best epoch, and a row of history an epoch; where none is judged
        ``val_accuracy`` is NaN, and the last is the best.

    Raises:
        TrainingDivergedError: the loss is not finite; names the step.
    """
    device = best_device()
    model.to(device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    state = TrainingState(model, optimiser, averaged, {name: value.clone() for name, value in averaged.items()}, [])
    if checkpoint is not None:
        state.resume(checkpoint, key)
    train_there, validation_images = to_device(train, device), resident(validation.images, device)
    saved = time.monotonic()
    done_before = len(state.history)
    for epoch in progress(range(done_before, recipe.epochs), what, recipe.epochs, done_before):
        started = time.perf_counter()
        train_loss = train_epoch(state, train_there, bank, recipe, loss, seed, epoch)
        accuracy = accuracy_of(model, averaged, validation, validation_images) if judged else math.nan
        if not any(accuracy <= row["val_accuracy"] for row in state.history):
            state.best = {name: value.clone() for name, value in averaged.items()}
        seconds = time.perf_counter() - started
        state.history.append(
            {"epoch": epoch + 1, "train_loss": train_loss, "val_accuracy": accuracy, "seconds": seconds}
        )
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            state.save(checkpoint, key)
            saved = time.monotonic()
    model.load_state_dict(averaged)
    model.eval()
    return Fitted(averaged, state.best, pd.DataFrame(state.history))


@dataclass(frozen=True)
class DeviceExamples:
    """Examples where a training reads them.

    Images ``(N, H, W, 3)`` uint8 are where :func:`kdnb.device.resident` puts them, labels ``(N,)`` on the device.
    """

    images: Tensor
    labels: Tensor


def to_device(examples: Examples, device: torch.device) -> DeviceExamples:
    """Put one split where a training on ``device`` reads it."""
    return DeviceExamples(resident(examples.images, device), put(examples.labels, device))


def batches_of(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """An epoch's order ``(N,)`` in batches of equal size; batch normalisation learns nothing from a single image."""
    batches = np.array_split(order, math.ceil(len(order) / batch_size))
    return [np.sort(batch) for batch in batches if len(batch) > 1]


def placed(parts: Sequence[np.ndarray], *devices: torch.device) -> list[tuple[Tensor, ...]]:
    """An epoch's batches on the devices where they are needed: sent at once, for the host waits at each sending.

    Args:
        parts: the batches, positions of images in any shape.
        devices: where each batch shall be.

    Returns:
        A tuple a batch: it on every one of ``devices``, in that order.
    """
    shapes, positions = [part.shape for part in parts], np.concatenate([part.ravel() for part in parts])
    by_device = [put(positions, device).split([math.prod(shape) for shape in shapes]) for device in devices]
    return [tuple(copy.view(shape) for copy in batch) for *batch, shape in zip(*by_device, shapes, strict=True)]


def train_epoch(
    state: "TrainingState",
    train: DeviceExamples,
    bank: np.ndarray | None,
    recipe: Recipe,
    loss: Loss,
    seed: int,
    epoch: int,
) -> float:
    """One pass over the training images.

    No step waits for the device: its losses are read when the epoch is over.

    Args:
        state: the network with all that an epoch changes, in place.
        train: what it learns from.
        bank: the teacher's logits ``(views, N, C)``, if it is heard.
        recipe: how long the training is, and its learning rate.
        loss: what is minimised.
        seed: of the order of the images.
        epoch: counted from 0; decides their order and their view.

    Returns:
        The mean loss.
    """
    model, device = state.model.train(), device_of(state.model)
    count, view = len(train.labels), epoch % recipe.views
    moves = view_moves(count, view, train.images.shape[1]).to(device)
    teacher_logits = None if bank is None else put(bank[view], device)
    batches = placed(batches_of(epoch_order(count, seed, epoch), recipe.batch_size), train.images.device, device)
    first, steps = epoch * len(batches), recipe.epochs * len(batches)
    current, step_losses = state.model.state_dict(), []
    for step, (image_positions, batch) in enumerate(batches, start=first):
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, recipe)
        images = to_float(render(picked(train.images, image_positions, device), moves[batch]))
        with mixed_precision(device):
            logits = model(images)
        value = loss(logits.float(), None if teacher_logits is None else teacher_logits[batch], train.labels[batch])
        state.optimiser.zero_grad(set_to_none=True)
        value.backward()
        state.optimiser.step()
        update_average(state.averaged, current, step, recipe)
        step_losses.append(value.detach())
    losses = torch.stack(step_losses).cpu().numpy().astype(float)
    check_finite(losses, epoch, [learning_rate(step, steps, recipe) for step in range(first, first + len(batches))])
    return float(losses.mean())


def check_finite(losses: np.ndarray, epoch: int, rates: list[float]) -> None:
    """Whether every loss of an epoch is a number.

    Args:
        losses: ``(steps,)``.
        epoch: counted from 0.
        rates: the learning rate of each step.

    Raises:
        TrainingDivergedError: for the first loss that is not finite.
    """
    for number, (value, rate) in enumerate(zip(losses, rates, strict=True), start=1):
        if not np.isfinite(value):
            raise TrainingDivergedError(
                f"the loss is {value} in step {number} of epoch {epoch + 1} at learning rate {rate:.2g}: "
                "lower the learning rate or look at that batch's images."
            )


def accuracy_of(model: nn.Module, weights: dict[str, Tensor], examples: Examples, held: Tensor | None = None) -> float:
    """Accuracy of ``model`` with ``weights`` in place of its own, which are put back.

    Args:
        model: the network; it ends as it was.
        weights: those it is judged with.
        examples: what it is judged on.
        held: the examples' images where they lie on the device already.

    Returns:
        The share of images whose class it says.
    """
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        return float((predict(model, examples.images if held is None else held).argmax(1) == examples.labels).mean())
    finally:
        model.load_state_dict(own)


@dataclass
class TrainingState:
    """Everything that an epoch changes; a checkpoint is this in one file."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    averaged: dict[str, Tensor]
    best: dict[str, Tensor]
    history: list[dict[str, float]]

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        moments = {
            f"{number}.{name}": value
            for number, entry in self.optimiser.state_dict()["state"].items()
            for name, value in entry.items()
        }
        return {"model": self.model.state_dict(), "averaged": self.averaged, "best": self.best, "optimiser": moments}

    def save(self, path: Path, key: str) -> None:
        """Write the state to ``path``, with the identity of what is trained."""
        stored = {f"{part}/{name}": value for part, values in self._tensors().items() for name, value in values.items()}
        tensors.save(path, stored, key, self.history)

    def resume(self, path: Path, key: str) -> None:
        """Take up the state in ``path``; one that is missing, damaged or foreign is ignored: training starts anew."""
        loaded = tensors.load(path, key)
        if loaded is None:
            return
        stored: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "best": {}, "optimiser": {}}
        for full_name, value in loaded[0].items():
            part, _, name = full_name.partition("/")
            stored[part][name] = value
        self.model.load_state_dict(stored["model"])
        for own_values, stored_values in ((self.averaged, stored["averaged"]), (self.best, stored["best"])):
            for name, value in own_values.items():
                value.copy_(stored_values[name])
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.model.parameters())
        for name, value in stored["optimiser"].items():
            number, _, moment = name.partition(".")
            like = parameters[int(number)]
            # A fused step reads weights and moments in the order of memory, and a file keeps the shape but not the
            # strides.
            moments.setdefault(int(number), {})[moment] = (
                torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            )
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.history.extend(loaded[1])
