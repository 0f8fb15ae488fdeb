"""Networks for volumes: the five-layer student with kernels in depth, the same without (of slices), and their teachers.

Every network takes ``(N, D, H, W)`` float32 in [0, 1], slices where an image has channels, so that whatever trains and
asks networks of images does so with volumes; it standardises each volume itself and returns logits ``(N, classes)``.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.cost import macs
from kdnb.device import drawing_from
from kdnb.errors import ModelError, ParameterError
from kdnb.models import Standardise

FEWEST_CELLS = 4  # along an axis: one that would have fewer is not pooled
TOO_COARSE = 2.0  # an axis whose voxels are so many times as long as the finest's is not pooled yet


def pool_sizes(spacing: Sequence[float], shape: Sequence[int], poolings: int) -> list[tuple[int, ...]]:
    """What each pooling takes together along depth, rows and columns.

    First the finer axes, until voxels are about as long as wide: so nnU-Net plans its poolings (Isensee et al. 2021).

    Args:
        spacing: distance of slices, rows and columns, in any unit.
        shape: ``(D, H, W)``.
        poolings: how many at most.

    Returns:
        Factors along depth, rows and columns, of the first pooling first.

    Example:
        >>> pool_sizes((2, 1, 1), (10, 24, 24), 3)
        [(1, 2, 2), (2, 2, 2)]
    """
    lengths, cells, sizes = list(spacing), list(shape), []
    for _ in range(poolings):
        size = tuple(
            2 if length < TOO_COARSE * min(lengths) and count // 2 >= FEWEST_CELLS else 1
            for length, count in zip(lengths, cells, strict=True)
        )
        if size == (1, 1, 1):
            break
        sizes.append(size)
        lengths = [length * factor for length, factor in zip(lengths, size, strict=True)]
        cells = [count // factor for count, factor in zip(cells, size, strict=True)]
    return sizes


def _precision(device: torch.device) -> AbstractContextManager:
    """What a network of volumes computes in: on a CPU float32; elsewhere what the training loop says.

    On a CPU a convolution in depth takes twice as long in bfloat16.

    Returns:
        A context to compute in.
    """
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else nullcontext()


class VolumeStudent(nn.Module):
    """:class:`kdnb.models.StudentCNN` in three dimensions.

    A chain of convolution, pooling, batch normalisation, ReLU; then one mean of all places and one linear layer.

    Args:
        num_classes: number of classes.
        widths: filters of each layer.
        kernel_sizes: voxels across each layer's kernel in the plane, odd.
        depth_kernels: whether kernels are as long in depth. Without, and without pooling in depth, this is a network of
            slices whose maps are averaged over all slices: it knows which slices there are, not which lie beside which.
        pooling: what each pooling takes together (:func:`pool_sizes`), from the first layer on.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        kernel_sizes: Sequence[int] = (3, 3, 3, 3, 3),
        depth_kernels: bool = True,
        pooling: Sequence[tuple[int, ...]] = ((2, 2, 2), (2, 2, 2)),
    ) -> None:
        super().__init__()
        if any(size < 1 or size % 2 == 0 for size in kernel_sizes) or len(kernel_sizes) != len(widths):
            raise ParameterError(
                f"kernel_sizes is {tuple(kernel_sizes)}, but it must be {len(widths)} odd numbers of at least 1."
            )
        self.standardise = Standardise()
        blocks = []
        for depth, (before, after, side) in enumerate(zip((1, *widths[:-1]), widths, kernel_sizes, strict=True)):
            size = (side if depth_kernels else 1, side, side)
            factors = pooling[depth] if depth < len(pooling) else (1, 1, 1)
            factors = factors if depth_kernels else (1, *factors[1:])
            pool = nn.MaxPool3d(factors) if max(factors) > 1 else nn.Identity()
            padding = (size[0] // 2, size[1] // 2, size[2] // 2)
            convolution = nn.Conv3d(before, after, size, padding=padding, bias=False)
            blocks.append(nn.Sequential(convolution, pool, nn.BatchNorm3d(after), nn.ReLU()))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(widths[-1], num_classes)
        self.feature_layers = [f"features.{depth}" for depth in range(len(widths))]

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of volumes ``(N, D, H, W)`` in [0, 1]."""
        standard = self.standardise(volumes)[:, None].contiguous(memory_format=torch.channels_last_3d)
        with _precision(volumes.device):
            return self.classifier(self.features(standard).mean(dim=(2, 3, 4)))


@dataclass(frozen=True)
class Grid:
    """How a set's volumes lie.

    Attributes:
        shape: slices, rows and columns.
        spacing: their distances, in any one unit.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


class _Shape(TypedDict, total=False):
    kernel_sizes: Sequence[int]
    depth_kernels: bool


# "slices" are the honest rival: the same network, but blind in depth.
SHAPES: dict[str, _Shape] = {
    "volume": {},
    "volume_transparent": {"kernel_sizes": (3, 3, 3, 1, 1)},
    "slices": {"depth_kernels": False},
}
POOLINGS = 4


def student(shape: str, num_classes: int, widths: Sequence[int], grid: Grid, *, seed: int) -> VolumeStudent:
    """The student of a named shape with initial weights.

    Args:
        shape: one of :data:`SHAPES`.
        num_classes: number of classes.
        widths: filters of each layer.
        grid: how its volumes lie, from which its poolings follow.
        seed: what weights are drawn from.

    Returns:
        The network, in the memory layout that its convolutions want.

    Raises:
        ParameterError: another shape.
    """
    if shape not in SHAPES:
        raise ParameterError(f"shape is {shape!r}, but it must be one of: {', '.join(SHAPES)}.")
    pooling = pool_sizes(grid.spacing, grid.shape, POOLINGS)
    with drawing_from(seed):
        network = VolumeStudent(num_classes, widths, pooling=pooling, **SHAPES[shape])
        return network.to(memory_format=torch.channels_last_3d)


def widths_at_equal_cost(widths: Sequence[int], num_classes: int, grid: Grid) -> tuple[int, ...]:
    """Filters of a student of slices whose multiply-accumulates are nearest those of the student of volumes."""
    depth, *plane = grid.shape
    target = macs(student("volume", num_classes, widths, grid, seed=0), plane[-1], depth)

    def distance(factor: float) -> int:
        return abs(macs(student("slices", num_classes, wider(factor), grid, seed=0), plane[-1], depth) - target)

    def wider(factor: float) -> tuple[int, ...]:
        return tuple(max(1, round(factor * width)) for width in widths)

    return wider(min((eighths / 8 for eighths in range(4, 33)), key=distance))


def receptive_field(network: VolumeStudent) -> tuple[int, int]:
    """How many slices, and how many pixels across, one place of the last layer can depend on."""
    reach, step = [1, 1], [1, 1]
    for module in network.features.modules():
        if isinstance(module, (nn.Conv3d, nn.MaxPool3d)):
            kernel = cast("tuple[int, int, int]", module.kernel_size)
            sizes = kernel[:1] + kernel[2:]
            reach = [r + (size - 1) * s for r, size, s in zip(reach, sizes, step, strict=True)]
            if isinstance(module, nn.MaxPool3d):
                step = [s * size for s, size in zip(step, sizes, strict=True)]
    return reach[0], reach[1]


# -- teachers ----------------------------------------------------------------------------------------------------------

TEACHERS = ("wide", "densenet121")
WIDER = 2  # times the student's filters
DENSENET_SIDE = 32  # voxels: five halvings leave one


class DenseNet3D(nn.Module):
    """MONAI's DenseNet121 (Huang et al. 2017, with kernels in depth) behind standardisation.

    An axis shorter than 32 voxels is stretched to these. torchvision's video networks are installed already, but the
    lightest of them, of 18 layers, takes several times the operations.

    Args:
        num_classes: number of classes.

    Raises:
        ModelError: MONAI is not installed.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        try:
            from monai.networks.nets import DenseNet121
        except ImportError as error:
            raise ModelError(
                "the teacher densenet121 of volumes needs MONAI: pip install 'kdnb[volumes]', or use 'wide'."
            ) from error
        self.standardise = Standardise()
        self.network = DenseNet121(spatial_dims=3, in_channels=1, out_channels=num_classes)
        for module in self.network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # hooks must see what the layer computed, not what a later layer made of it
        self.feature_layers = [f"network.features.denseblock{depth}" for depth in range(1, 5)]

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of volumes ``(N, D, H, W)`` in [0, 1]."""
        standard = self.standardise(volumes)[:, None]
        size = [max(DENSENET_SIDE, length) for length in standard.shape[2:]]
        if size != list(standard.shape[2:]):
            standard = F.interpolate(standard, size=size, mode="trilinear", align_corners=False)
        with _precision(volumes.device):
            return self.network(standard)


def teacher(
    kind: str, num_classes: int, widths: Sequence[int], grid: Grid, *, seed: int, shape: str = "volume"
) -> nn.Module:
    """A teacher before its training.

    Args:
        kind: ``"wide"``, a student of ``shape`` with twice its filters, or ``"densenet121"`` (:class:`DenseNet3D`),
            where it sees depth.
        num_classes: number of classes.
        widths: filters of each layer of the student.
        grid: how its volumes lie.
        seed: what weights are drawn from.
        shape: one of :data:`SHAPES`; a teacher of ``"slices"`` is always a wide student.

    Returns:
        A network with ``feature_layers``.

    Raises:
        ParameterError: another kind.
        ModelError: MONAI is not installed.
    """
    if kind not in TEACHERS:
        raise ParameterError(f"volume_teacher is {kind!r}, but it must be one of: {', '.join(TEACHERS)}.")
    if kind == "wide" or shape == "slices":
        return student(shape, num_classes, [WIDER * width for width in widths], grid, seed=seed)
    with drawing_from(seed):
        return DenseNet3D(num_classes)
