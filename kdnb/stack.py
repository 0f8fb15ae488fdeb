"""Students of one shape trained at once: a stack of networks takes one step where each alone would take its own.

At 32 to 64 pixels a student's step on a GPU is launches, not arithmetic. ``torch.func.vmap`` makes one grouped convolution of the
students' convolutions; batch norm, loss, order of the images, optimiser and averages stay each student's own, so that every one is what
it would have become alone, but for the rounding of sums. On a CPU students side by side are faster.
"""

import copy
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
    body.standardise, standardise = nn.Identity(), body.standardise  # image by image in any case, and vmap knows no channels-last order

    def forward(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(body, (weights, buffers), (images,))

    together = vmap(forward, randomness="error")
    optimiser = torch.optim.AdamW(weights.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    current = weights | buffers
    averaged = {name: value.detach().clone() for name, value in current.items()}
    best = [{} for _ in students]
    held, held_back = training.hold(train, device), resident(validation.images, device)
    histories, step = [[] for _ in students], 0
    for epoch in progress(range(recipe.epochs), f"{len(students)} students at once", recipe.epochs):
        started, view = time.perf_counter(), epoch % recipe.views
        moves, said = view_moves(len(train), view, held.images.shape[1]).to(device), put(bank[view], device) if bank.size else None
        orders = [training.batches_of(training.epoch_order(len(train), seed, epoch), recipe.batch_size) for seed in seeds]
        found, rates = [], []
        parts = [np.stack(batch) for batch in zip(*orders, strict=True)]  # (students, batch) each
        for part, where in training.placed(parts, held.images.device, device):
            rates.append(training.learning_rate(step, recipe.epochs * len(orders[0]), recipe))
            optimiser.param_groups[0]["lr"] = rates[-1]
            images = standardise(to_float(render(picked(held.images, part.flatten(), device), moves[where.flatten()])))
            with mixed_precision(device):
                logits = together(weights, buffers, images.unflatten(0, where.shape))
            heard = [None] * len(students) if said is None else said[where]
            arguments = zip(losses, logits, heard, held.labels[where], strict=True)
            values = torch.stack([loss(z.float(), t, y) for loss, z, t, y in arguments])
            optimiser.zero_grad(set_to_none=True)
            values.sum().backward()  # no loss hears of another student
            optimiser.step()
            training._average(averaged, {name: value.detach() for name, value in current.items()}, step, recipe)
            found.append(values.detach())
            step += 1
        told = torch.stack(found).cpu().numpy().astype(float)
        for number, student in enumerate(students):
            training.check_finite(told[:, number], epoch, rates)
            own = {name: value[number] for name, value in (averaged | counters).items()}
            accuracy = training.accuracy_of(student, own, validation, held_back)
            if all(accuracy > row["val_accuracy"] for row in histories[number]):
                best[number] = {name: value.clone() for name, value in own.items()}
            seconds = (time.perf_counter() - started) / len(students)
            row = {"epoch": epoch + 1, "train_loss": told[:, number].mean(), "val_accuracy": accuracy, "seconds": seconds}
            histories[number].append(row)
    fitted = []
    for number, student in enumerate(students):
        last = {name: value[number].clone() for name, value in (averaged | counters).items()}
        student.load_state_dict(last)
        fitted.append(training.Fitted(last, best[number], pd.DataFrame(histories[number])))
        student.eval()
    return fitted
