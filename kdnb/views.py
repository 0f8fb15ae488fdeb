"""Replayable augmented views, and the teacher's logits on them.

View ``v`` of image ``i`` of N is a fixed function of ``(v, i, N)``: the same in every epoch, model, process and order.
So the teacher looks at each view once, its raw logits are kept in a bank ``(views, N, C)``, and every student of every
loss, temperature and seed is taught from it while teacher and student still see the same picture (Beyer et al. 2022).
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from kdnb.device import device_of, mixed_precision, picked, resident, to_float
from kdnb.progress import progress

SHIFT = 0.02  # of the side


def view_moves(count: int, view: int, side: int) -> Tensor:
    """How one view moves the images.

    Left and right are exchanged with probability 1/2; shifts are whole pixels up to 2% of the side. Moves that
    interpolate (small turns and scalings) blur what is trained on while test images stay sharp: on real data they cost
    accuracy in trainings as short as these.

    Args:
        count: of images.
        view: its number.
        side: of an image, in pixels.

    Returns:
        ``(count, 3)`` int64: mirrored (0 or 1), rows down, columns right.

    Example:
        >>> view_moves(3, view=0, side=64).tolist()
        [[0, 1, -1], [0, -1, 0], [1, 0, 1]]
    """
    rng = np.random.default_rng([20250215, view])
    reach = max(1, round(SHIFT * side))
    drawn = [rng.integers(0, 2, count), *rng.integers(-reach, reach + 1, (2, count))]
    return torch.from_numpy(np.stack(drawn, axis=1))


def render(images: Tensor, moves: Tensor) -> Tensor:
    """Mirror images and shift them; the border is repeated outwards.

    Pixels are copied, not computed: uint8 stays uint8, a quarter of what floats would move.

    Args:
        images: ``(N, 3, H, W)``.
        moves: ``(N, 3)`` of :func:`view_moves`, on the device of the images.

    Returns:
        ``(N, 3, H, W)``, channels last in memory.
    """
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - moves[:, 1:2]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - moves[:, 2:3]).clamp(0, width - 1)
    columns = torch.where(moves[:, :1] == 1, width - 1 - columns, columns)
    numbers = torch.arange(len(images), device=images.device)
    moved = images.permute(0, 2, 3, 1)[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


@torch.no_grad()
def teacher_bank(
    teacher: nn.Module, images: np.ndarray, views: int, batch_size: int = 128, which: np.ndarray | None = None
) -> np.ndarray:
    """The teacher's raw logits on every view of every image, in the arithmetic of training.

    Temperature is applied later, by the loss. Views that show the same image moved alike are looked at once.

    Args:
        teacher: any classifier; it is put into evaluation mode and stays there.
        images: ``(N, H, W, 3)`` uint8.
        views: how many views of each.
        batch_size: images at once.
        which: ``(N,)`` numbers, equal where images are; ``None``: all differ.

    Returns:
        ``(views, N, C)`` float32.
    """
    teacher.eval()
    device, count = device_of(teacher), len(images)
    moves = torch.cat([view_moves(count, view, images.shape[1]) for view in range(views)])
    shown = np.column_stack([np.tile(np.arange(count) if which is None else which, views), moves.numpy()])
    _, first, again = np.unique(shown, axis=0, return_index=True, return_inverse=True)
    there, logits = resident(images, device), []
    batches = zip(
        torch.from_numpy(first % count).to(there.device).split(batch_size),
        moves[first].to(device).split(batch_size),
        strict=True,
    )
    for positions, moved in progress(batches, "Teacher's logits", math.ceil(len(first) / batch_size)):
        pixels = to_float(render(picked(there, positions, device), moved))
        with mixed_precision(device):
            logits.append(teacher(pixels).float())
    return torch.cat(logits).cpu().numpy()[again.ravel()].reshape(views, count, -1)
