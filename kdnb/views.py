"""Replayable augmented views, and the teacher's logits on them.

View ``v`` of image ``i`` is a fixed function of ``(v, i)``: the same in every epoch, model, process and order. So the teacher looks at
each view once, its raw logits are kept in a bank ``(views, N, C)``, and every student of every loss, temperature and seed is taught
from it while teacher and student still see the same picture (Beyer et al. 2022).
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.datasets import to_tensor
from kdnb.progress import progress

ROTATION_DEGREES, SCALE, SHIFT = 6.0, 0.10, 0.06


def view_transforms(count: int, view: int) -> Tensor:
    """Affine maps of view ``view`` for ``count`` images, ``(count, 2, 3)``, in :func:`torch.nn.functional.affine_grid`'s convention.

    A left-right flip with probability 1/2, rotation by up to 6 degrees, scale within 10%, shift within 6% of the side.
    """
    rng = np.random.default_rng([20250215, view])
    draw = torch.from_numpy(rng.uniform(-1, 1, size=(5, count)).astype(np.float32))
    flip = torch.where(draw[0] < 0, -1.0, 1.0)
    angle = draw[1] * math.radians(ROTATION_DEGREES)
    scale = 1 + SCALE * draw[2]
    shift = 2 * SHIFT * draw[3:5]  # the grid runs from -1 to 1, so a side is 2 long
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cosine * flip, -sine, shift[0]], 1), torch.stack([sine * flip, cosine, shift[1]], 1)]
    return torch.stack(rows, 1)


def render(images: Tensor, transforms: Tensor) -> Tensor:
    """Apply affine maps ``(N, 2, 3)`` to images ``(N, 3, H, W)`` in [0, 1]; the border is repeated outwards."""
    grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@torch.no_grad()
def teacher_bank(teacher: nn.Module, images: np.ndarray, views: int, batch_size: int = 128) -> np.ndarray:
    """The teacher's raw logits on every view of every image, ``(views, N, C)`` float32.

    The teacher is put into evaluation mode and stays there. Temperature is applied later, by the loss.
    """
    teacher.eval()
    device = next(teacher.parameters()).device
    logits = []
    for view in progress(range(views), "Teacher's logits", views):
        transforms = view_transforms(len(images), view)
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            batch = render(to_tensor(images[part]).to(device), transforms[part].to(device))
            logits.append(teacher(batch).cpu())
    return torch.cat(logits).reshape(views, len(images), -1).numpy()
