"""Networks for volumes: the five-layer student with kernels in depth, the same without (a student of slices), and their teachers.

Every network takes ``(N, D, H, W)`` float32 in [0, 1], slices where an image has channels, so that whatever trains and asks networks of
images does so with volumes; it standardises each volume itself and returns logits ``(N, classes)``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdnb.device import drawing_from
from kdnb.errors import ModelError, ParameterError
from kdnb.models import Standardise

FEWEST_CELLS = 4  # along an axis: one that would have fewer is not pooled
TOO_COARSE = 2.0  # an axis whose voxels are so many times as long as the finest's is not pooled yet


def pool_sizes(spacing: Sequence[float], shape: Sequence[int], poolings: int) -> list[tuple[int, ...]]:
    """What each pooling takes together along depth, rows and columns: first the finer axes, until voxels are about as long as wide.

    So nnU-Net plans its poolings (Isensee et al. 2021).

    Args:
        spacing: distance of slices, rows and columns, in any unit. shape: ``(D, H, W)``. poolings: how many at most.

    >>> pool_sizes((2, 1, 1), (10, 24, 24), 3)
    [(1, 2, 2), (2, 2, 2)]
    """
    lengths, cells, found = list(spacing), list(shape), []
    for _ in range(poolings):
        size = tuple(
            2 if length < TOO_COARSE * min(lengths) and many // 2 >= FEWEST_CELLS else 1 for length, many in zip(lengths, cells, strict=True)
        )
        if size == (1, 1, 1):
            break
        found.append(size)
        lengths = [length * factor for length, factor in zip(lengths, size, strict=True)]
        cells = [many // factor for many, factor in zip(cells, size, strict=True)]
    return found


class VolumeStudent(nn.Module):
    """:class:`kdnb.models.StudentCNN` in three dimensions: a chain of convolution, pooling, batch normalisation, ReLU; then one mean of all
    places and one linear layer.

    Args:
        num_classes: number of classes. widths: filters of each layer.
        kernel_sizes: voxels across each layer's kernel in the plane, odd.
        depth_kernels: whether kernels are as long in depth. Without, and without pooling in depth, this is a network of slices whose
            maps are averaged over all slices: it knows which slices there are, not which lie beside which.
        pooling: what each pooling takes together (:func:`pool_sizes`), from the first layer on.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        kernel_sizes: Sequence[int] = (3, 3, 3, 3, 3),
        depth_kernels: bool = True,
        pooling: Sequence[tuple[int, ...]] = ((2, 2, 2), (2, 2, 2)),
    ):
        super().__init__()
        if any(size < 1 or size % 2 == 0 for size in kernel_sizes) or len(kernel_sizes) != len(widths):
            raise ParameterError(f"kernel_sizes is {tuple(kernel_sizes)}, but it must be {len(widths)} odd numbers of at least 1.")
        self.standardise = Standardise()
        blocks = []
        for depth, (before, after, across) in enumerate(zip((1, *widths[:-1]), widths, kernel_sizes, strict=True)):
            size = (across if depth_kernels else 1, across, across)
            factors = pooling[depth] if depth < len(pooling) else (1, 1, 1)
            factors = factors if depth_kernels else (1, *factors[1:])
            pool = nn.MaxPool3d(factors) if max(factors) > 1 else nn.Identity()
            convolution = nn.Conv3d(before, after, size, padding=tuple(k // 2 for k in size), bias=False)
            blocks.append(nn.Sequential(convolution, pool, nn.BatchNorm3d(after), nn.ReLU()))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(widths[-1], num_classes)
        self.feature_layers = [f"features.{depth}" for depth in range(len(widths))]

    def forward(self, volumes: Tensor) -> Tensor:
        standard = self.standardise(volumes)[:, None].contiguous(memory_format=torch.channels_last_3d)
        # On a CPU a convolution in depth takes twice as long in bfloat16 as in float32.
        with torch.autocast(volumes.device.type, enabled=volumes.device.type != "cpu"):
            return self.classifier(self.features(standard).mean(dim=(2, 3, 4)))
