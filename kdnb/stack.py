"""Students of one shape trained at once: a stack of networks takes one step where each alone would take its own.

At 32 to 64 pixels a student's step on a GPU is launches, not arithmetic. ``torch.func.vmap`` makes one grouped
convolution of the students' convolutions; batch norm, loss, order of the images, optimiser and averages stay each
student's own, so that every one is what it would have become alone, but for the rounding of sums. On a CPU students
side by side are faster.
"""

import copy
import itertools
import time
from collections.abc import Sequence

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
    losses: Sequence[training.Loss],
    *,
    seeds: Sequence[int],
    bank: np.ndarray,
    judged: bool = True,
) -> list[training.Fitted]:
    """:func:`kdnb.training.fit` for several students of the same shape, each with its own loss and seed.

    Args:
        students: with their initial weights; they end with the averaged ones, in evaluation mode.
        train: what all of them learn from.
        validation: what each epoch is judged on.
        recipe: epochs, batches, learning rate and averaging.
        losses: one a student. Students in a row that have the same one (the same object) have it computed at once.
        seeds: one a student: decides the order of its images.
        bank: the teacher's logits ``(views, N, C)``; students that do not listen to the teacher have losses that leave
            it aside.
        judged: as there.

    Returns:
        What each student became, in their order.

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
    # Images are standardised one by one in any case, and vmap knows no channels-last order.
    body.standardise, standardise = nn.Identity(), body.standardise

    in_evaluation = copy.deepcopy(body).eval()

    def forward(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(body, (weights, buffers), (images,))

    def judge(state: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(in_evaluation, state, (images,))

    together, judge_all = vmap(forward, randomness="error"), vmap(judge, in_dims=(0, None))
    optimiser = torch.optim.AdamW(
        weights.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    current = weights | buffers
    averaged = {name: value.detach().clone() for name, value in current.items()}
    best: list[dict[str, Tensor]] = [{} for _ in students]
    train_there, validation_images = training.to_device(train, device), resident(validation.images, device)
    histories: list[list[dict[str, float]]] = [[] for _ in students]
    step = 0
    loss_runs = [(loss, len(list(equal))) for loss, equal in itertools.groupby(losses)]
    for epoch in progress(range(recipe.epochs), f"{len(students)} students at once", recipe.epochs):
        started, view = time.perf_counter(), epoch % recipe.views
        moves = view_moves(len(train), view, train_there.images.shape[1]).to(device)
        teacher_logits = put(bank[view], device) if bank.size else None
        orders = [
            training.batches_of(training.epoch_order(len(train), seed, epoch), recipe.batch_size) for seed in seeds
        ]
        step_losses, rates = [], []
        batches = [np.stack(batch) for batch in zip(*orders, strict=True)]  # (students, batch) each
        for image_positions, batch in training.placed(batches, train_there.images.device, device):
            rates.append(training.learning_rate(step, recipe.epochs * len(orders[0]), recipe))
            optimiser.param_groups[0]["lr"] = rates[-1]
            pixels = render(picked(train_there.images, image_positions.flatten(), device), moves[batch.flatten()])
            images = standardise(to_float(pixels))
            with mixed_precision(device):
                logits = together(weights, buffers, images.unflatten(0, batch.shape))
            heard_logits = None if teacher_logits is None else teacher_logits[batch]
            values = _losses(loss_runs, logits.float(), heard_logits, train_there.labels[batch])
            optimiser.zero_grad(set_to_none=True)
            values.sum().backward()  # no loss hears of another student
            optimiser.step()
            detached = {name: value.detach() for name, value in current.items()}
            training.update_average(averaged, detached, step, recipe)
            step_losses.append(values.detach())
            step += 1
        losses_of_all = torch.stack(step_losses).cpu().numpy().astype(float)  # (steps, students)
        accuracies = np.full(len(students), np.nan)
        if judged:
            cuts = validation_images.split(recipe.batch_size)
            with torch.no_grad():  # one by one, their evaluations would take longer than their training
                shown = (standardise(to_float(cut.to(device).permute(0, 3, 1, 2))) for cut in cuts)
                logits_of_all = torch.cat([judge_all(averaged, images) for images in shown], dim=1)
            val_logits = logits_of_all.cpu().numpy()  # (students, n, C)
            accuracies = (val_logits.argmax(axis=2) == validation.labels).mean(axis=1)
        for number in range(len(students)):
            training.check_finite(losses_of_all[:, number], epoch, rates)
            own = {name: value[number] for name, value in (averaged | counters).items()}
            accuracy = float(accuracies[number])
            if not any(accuracy <= row["val_accuracy"] for row in histories[number]):
                best[number] = {name: value.clone() for name, value in own.items()}
            seconds = (time.perf_counter() - started) / len(students)
            row = {
                "epoch": epoch + 1,
                "train_loss": losses_of_all[:, number].mean(),
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


def _losses(
    loss_runs: Sequence[tuple[training.Loss, int]], logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
) -> Tensor:
    """Each student's loss.

    One by one the losses of two dozen students would be several times as many launches as all else in a step.

    Args:
        loss_runs: a loss, and how many students in a row minimise it.
        logits: of the students, ``(S, n, C)``.
        teacher_logits: what each hears of the teacher, if anything, ``(S, n, C)``.
        labels: ``(S, n)``.

    Returns:
        ``(S,)``.
    """
    counts = [count for _, count in loss_runs]
    by_loss = zip(
        loss_runs,
        logits.split(counts),
        [None] * len(loss_runs) if teacher_logits is None else teacher_logits.split(counts),
        labels.split(counts),
        strict=True,
    )
    return torch.cat(
        [
            vmap(loss, in_dims=(0, None if teacher is None else 0, 0))(student, teacher, targets)
            for (loss, _), student, teacher, targets in by_loss
        ]
    )
