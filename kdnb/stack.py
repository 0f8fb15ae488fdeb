"""Students of one shape trained at once: a stack of networks takes one step where each alone would take its own.

At 32 to 64 pixels a student's step on a GPU is launches, not arithmetic. ``torch.func.vmap`` makes one grouped convolution of the
students' convolutions; batch norm, loss, order of the images, optimiser and averages stay each student's own, so that every one is what
it would have become alone, but for the rounding of sums. On a CPU students side by side are faster.
"""

import copy
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from kdnb import training
from kdnb.device import best_device, mixed_precision, picked, put, resident, to_float
from kdnb.progress import progress
from kdnb.views import render, view_moves

MOST = 24  # students at once: their activations at 64 px fill some gigabytes


def fit(
    students: Sequence[nn.Module],
    train: training.Examples,
    validation: training.Examples,
    recipe: training.Recipe,
    losses: Sequence[Callable[[Tensor, Tensor, Tensor], Tensor]],
    *,
    seeds: Sequence[int],
    bank: np.ndarray,
) -> list[training.Fitted]:
    """:func:`kdnb.training.fit` for several students of the same shape, each with its own loss and seed.

    Args:
        losses: students in a row that have the same one (the same object) have it computed at once.
        bank: the teacher's logits ``(views, N, C)``; students that do not listen to the teacher have losses that leave it aside.

    Raises:
        TrainingDivergedError: a student's loss is not finite; names the step.
    """
    device = best_device()
    for student in students:
        student.to(device)
    weights, buffers = stack_module_state(list(students))
    # Counters of batches stay at their start, as in every average.
    counters = {name: value for name, value in buffers.items() if not value.is_floating_point()}
    buffers = {name: value for name, value in buffers.items() if name not in counters}
    body = copy.deepcopy(students[0]).to("meta").train()
    body.standardise, standardise = (
        nn.Identity(),
        body.standardise,
    )  # image by image in any case, and vmap knows no channels-last order

    judged = copy.deepcopy(body).eval()

    def forward(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(body, (weights, buffers), (images,))

    def judge(state: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(judged, state, (images,))

    together, judge_all = vmap(forward, randomness="error"), vmap(judge, in_dims=(0, None))
    optimiser = torch.optim.AdamW(
        weights.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    current = weights | buffers
    averaged = {name: value.detach().clone() for name, value in current.items()}
    best = [{} for _ in students]
    held, held_back = training.to_device(train, device), resident(validation.images, device)
    histories, step, runs = (
        [[] for _ in students],
        0,
        [(loss, len(list(those))) for loss, those in itertools.groupby(losses)],
    )
    for epoch in progress(range(recipe.epochs), f"{len(students)} students at once", recipe.epochs):
        started, view = time.perf_counter(), epoch % recipe.views
        moves, said = (
            view_moves(len(train), view, held.images.shape[1]).to(device),
            put(bank[view], device) if bank.size else None,
        )
        orders = [
            training.batches_of(training.epoch_order(len(train), seed, epoch), recipe.batch_size) for seed in seeds
        ]
        found, rates = [], []
        parts = [np.stack(batch) for batch in zip(*orders, strict=True)]  # (students, batch) each
        for part, where in training.placed(parts, held.images.device, device):
            rates.append(training.learning_rate(step, recipe.epochs * len(orders[0]), recipe))
            optimiser.param_groups[0]["lr"] = rates[-1]
            images = standardise(to_float(render(picked(held.images, part.flatten(), device), moves[where.flatten()])))
            with mixed_precision(device):
                logits = together(weights, buffers, images.unflatten(0, where.shape))
            values = _losses(runs, logits.float(), None if said is None else said[where], held.labels[where])
            optimiser.zero_grad(set_to_none=True)
            values.sum().backward()  # no loss hears of another student
            optimiser.step()
            training._average(averaged, {name: value.detach() for name, value in current.items()}, step, recipe)
            found.append(values.detach())
            step += 1
        told = torch.stack(found).cpu().numpy().astype(float)
        with torch.no_grad():  # one by one, their evaluations would take longer than their training
            shown = (to_float(part.to(device).permute(0, 3, 1, 2)) for part in held_back.split(recipe.batch_size))
            said_by_all = (
                torch.cat([judge_all(averaged, standardise(part)) for part in shown], dim=1).cpu().numpy()
            )  # (students, n, C)
        accuracies = (said_by_all.argmax(axis=2) == validation.labels).mean(axis=1)
        for number in range(len(students)):
            training.check_finite(told[:, number], epoch, rates)
            own = {name: value[number] for name, value in (averaged | counters).items()}
            accuracy = float(accuracies[number])
            if all(accuracy > row["val_accuracy"] for row in histories[number]):
                best[number] = {name: value.clone() for name, value in own.items()}
            seconds = (time.perf_counter() - started) / len(students)
            row = {
                "epoch": epoch + 1,
                "train_loss": told[:, number].mean(),
                "val_accuracy": accuracy,
                "seconds": seconds,
            }
            histories[number].append(row)
    fitted = []
    for number, student in enumerate(students):
        last = {name: value[number].clone() for name, value in (averaged | counters).items()}
        student.load_state_dict(last)
        fitted.append(training.Fitted(last, best[number], pd.DataFrame(histories[number])))
        student.eval()
    return fitted


def _losses(runs: Sequence[tuple[Callable, int]], logits: Tensor, heard: Tensor | None, labels: Tensor) -> Tensor:
    """Each student's loss, ``(S,)``, of logits ``(S, n, C)``, what each hears of the teacher, if anything, and labels ``(S, n)``.

    One by one the losses of two dozen students would be several times as many launches as all else in a step.

    Args:
        runs: a loss, and how many students in a row minimise it.
    """
    counts = [count for _, count in runs]
    parts = zip(
        runs,
        logits.split(counts),
        [None] * len(runs) if heard is None else heard.split(counts),
        labels.split(counts),
        strict=True,
    )
    return torch.cat([vmap(loss, in_dims=(0, None if t is None else 0, 0))(z, t, y) for (loss, _), z, t, y in parts])
