"""The networks: DenseNet121 as teacher, a plain five-convolution student, and the student of the authors' release.

Every network takes ``(N, 3, H, W)`` float32 in [0, 1] and standardises each image itself, so that whoever perturbs or
explains an image does so in pixels, and returns logits ``(N, classes)``.
"""

import math
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torchvision.models import DenseNet121_Weights, densenet121

from kdnb.device import drawing_from
from kdnb.errors import DownloadError, ModelError, ParameterError

WIDTHS = (32, 64, 128, 256, 512)  # filters of the paper's five layers

DOWNLOAD_SECONDS = 20.0

Model = TypeVar("Model", bound=nn.Module)


class Standardise(nn.Module):
    """Give each image zero mean and unit standard deviation over all its pixels and channels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images ``(N, 3, H, W)`` standardised one by one."""
        centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
        # Written out: on a CPU torch's own std takes 15 times as long, a tenth of a student's step.
        length = torch.linalg.vector_norm(centred, dim=(1, 2, 3), keepdim=True)
        deviation = length / math.sqrt(math.prod(images.shape[1:]))
        # Channels last in memory: pooling on a CPU is then several times faster, and every layer after keeps the order.
        return (centred / (deviation + 1e-3)).contiguous(memory_format=torch.channels_last)


class StudentCNN(nn.Module):
    """A plain chain of convolutions whose feature maps are the explanation.

    Each block is convolution, pooling 2x2, batch normalisation, ReLU; pooling before the other two halves their cost.
    The last block does not pool: global average pooling follows it. A 64-pixel image passes maps of 32, 16, 8, 4 and 4
    pixels.

    Args:
        num_classes: number of classes.
        widths: filters of each block; their number is the depth (3 to 8 are studied).
        pool: ``"max"`` or ``"average"``.
        kernel_sizes: pixels across each block's convolution, odd; a deeper student goes on with the last.
        poolings: how many blocks pool, from the first on. With four at most, a deeper student still sees maps of 4
            pixels at 64 px. Fewer poolings and kernels of 1 keep the receptive field small: see :data:`SHAPES`.

    Raises:
        ParameterError: another ``pool``, an even kernel, or poolings below 0.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int] = WIDTHS,
        pool: str = "max",
        kernel_sizes: Sequence[int] = (3, 3, 3, 3, 3),
        poolings: int = 4,
    ) -> None:
        super().__init__()
        pools: dict[str, Callable[[int], nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
        if pool not in pools:
            raise ParameterError(f"pool is {pool!r}, but it must be one of: {', '.join(pools)}.")
        if not kernel_sizes or any(size < 1 or size % 2 == 0 for size in kernel_sizes):
            raise ParameterError(f"kernel_sizes is {tuple(kernel_sizes)}, but it must be odd numbers of at least 1.")
        if poolings < 0:
            raise ParameterError(f"poolings is {poolings}, but it must be a whole number of at least 0.")
        self.standardise = Standardise()
        kernels = tuple(kernel_sizes) + (kernel_sizes[-1],) * (len(widths) - len(kernel_sizes))
        blocks = []
        for depth, (before, after, size) in enumerate(zip((3, *widths[:-1]), widths, kernels, strict=False), start=1):
            pooling = pools[pool](2) if depth < len(widths) and depth <= poolings else nn.Identity()
            convolution = nn.Conv2d(before, after, kernel_size=size, padding=size // 2, bias=False)
            blocks.append(nn.Sequential(convolution, pooling, nn.BatchNorm2d(after), nn.ReLU()))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)``."""
        maps = self.features(self.standardise(images))
        return self.classifier(maps.mean(dim=(2, 3)))


class LayeredStudent(StudentCNN):
    """A student whose classifier reads the pooled maps of *all* layers: each logit is a sum over layers and places.

    Args:
        num_classes: number of classes.
        widths: filters of each block.
        pool: ``"max"`` or ``"average"``.
        kernel_sizes: pixels across each block's convolution, odd.
        poolings: how many blocks pool, from the first on.
        subsets: in training, the k-th image of a batch is classified by the k-th of all combinations of layers (31 of
            five), the others dropped and the rest scaled up. No layer can then leave the decision to the last one.
            Batches are shuffled, so this is dropout of whole layers (Srivastava et al. 2014) without a random number,
            and a training can be taken up to the byte.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int] = WIDTHS,
        pool: str = "max",
        kernel_sizes: Sequence[int] = (3, 3, 3, 3, 3),
        poolings: int = 4,
        *,
        subsets: bool = False,
    ) -> None:
        super().__init__(num_classes, widths, pool, kernel_sizes, poolings)
        self.classifier = nn.Linear(sum(widths), num_classes)
        self.subsets = subsets

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)``."""
        maps, pooled = self.standardise(images), []
        for block in self.features:
            maps = block(maps)
            pooled.append(maps.mean(dim=(2, 3)))
        if self.training and self.subsets:
            depth = len(pooled)
            combination = torch.arange(len(images), device=images.device) % (2**depth - 1) + 1
            heard = (combination[:, None] >> torch.arange(depth, device=images.device)) & 1
            weights = heard * (depth / heard.sum(dim=1, keepdim=True))
            pooled = [features * weights[:, [layer]] for layer, features in enumerate(pooled)]
        return self.classifier(torch.cat(pooled, dim=1))


# What a unit of the last layer sees, across (kdnb.explain.receptive_fields): 78, 38 and 22 pixels. The first is of the
# paper's kind: at 48 or 64 pixels each of its few last cells sees the whole image, so where it says "here" the evidence
# may lie anywhere. The others trade layers that look wider for layers that only combine, and one pooling less for a
# finer map; "transparent" is the one recommended.
SHAPES: dict[str, tuple[type[StudentCNN], dict[str, Any]]] = {
    "plain": (StudentCNN, {}),
    "translucent": (StudentCNN, {"kernel_sizes": (3, 3, 3, 3, 1), "poolings": 3}),
    "transparent": (StudentCNN, {"kernel_sizes": (3, 3, 3, 1, 1), "poolings": 3}),
    "layered": (LayeredStudent, {}),
    "spread": (LayeredStudent, {"subsets": True}),
}


def student(name: str, num_classes: int, widths: Sequence[int] = WIDTHS, pool: str = "max") -> StudentCNN:
    """The student of a named shape.

    Args:
        name: one of :data:`SHAPES`.
        num_classes: number of classes.
        widths: filters of each block.
        pool: ``"max"`` or ``"average"``.

    Returns:
        A student with weights as torch draws them.

    Raises:
        ParameterError: no shape of that name.
    """
    if name not in SHAPES:
        raise ParameterError(f"student is {name!r}, but it must be one of: {', '.join(SHAPES)}.")
    build, options = SHAPES[name]
    return build(num_classes, widths, pool, **options)


class ReleasedStudent(nn.Module):
    """The student of the authors' public code (AIPMLab/KD, commit 33b97ef), rebuilt from its sizes for comparison.

    Six convolutions (32 to 512, the last two 512) with pooling, a residual pair of 512, and dense layers 512, 256, 128
    on maps of 2x2 pixels: eight convolutions where the paper's text says five. Its sizes and parameter count are the
    release's; the code is not.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (32, 64, 128, 256, 512, 512)
        self.standardise = Standardise()
        blocks = []
        for before, after in zip((3, *widths[:-1]), widths, strict=True):
            convolution = nn.Conv2d(before, after, kernel_size=3, padding=1)
            blocks.append(nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm2d(after), nn.MaxPool2d(2, ceil_mode=True)))
        self.features = nn.Sequential(*blocks)
        self.residual = nn.Sequential(
            nn.Conv2d(512, 512, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(512),
            nn.Conv2d(512, 512, 3, padding=1),
            nn.BatchNorm2d(512),
        )
        dense: list[nn.Module] = []
        for before, after in ((4 * 512, 512), (512, 256), (256, 128)):
            dense += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(0.5)]
        self.classifier = nn.Sequential(*dense, nn.Linear(128, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)``."""
        maps = self.features(self.standardise(images))
        maps = torch.relu(maps + self.residual(maps))
        return self.classifier(nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1))


class DenseNetTeacher(nn.Module):
    """torchvision's DenseNet121 behind per-image standardisation; build it with :func:`densenet121_teacher`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.standardise = Standardise()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)``."""
        return self.network(self.standardise(images))


def densenet121_teacher(num_classes: int, weights: str | None = None, head: str = "plain") -> DenseNetTeacher:
    """DenseNet121 (Huang et al. 2017) with a new head.

    Args:
        num_classes: number of classes.
        weights: ``None`` (from scratch) or ``"imagenet"`` (downloaded by torchvision and kept in its cache).
        head: ``"plain"``, one linear layer, or ``"paper"``: batch norm, dropout .7, dense 128, dropout .5, batch norm,
            dense.

    Returns:
        The teacher, with a new classifier and no activation in place, so that hooks see what each layer computed.

    Raises:
        DownloadError: the ImageNet weights are not in the cache and cannot be downloaded.
        ParameterError: another ``weights`` or ``head``.
    """
    if weights not in (None, "imagenet"):
        raise ParameterError(f"weights is {weights!r}, but it must be None or 'imagenet'.")
    if head not in ("plain", "paper"):
        raise ParameterError(f"head is {head!r}, but it must be one of: plain, paper.")
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)  # torch.hub itself would wait for ever
        network = densenet121(weights=DenseNet121_Weights.IMAGENET1K_V1 if weights else None, progress=False)
    except (OSError, RuntimeError) as error:  # no network; a download that was cut off, whose hash is another
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"the ImageNet weights of DenseNet121 cannot be downloaded ({reason}): use weights=None."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    width = network.classifier.in_features
    network.classifier = nn.Linear(width, num_classes)
    if head == "paper":
        network.classifier = nn.Sequential(
            nn.BatchNorm1d(width), nn.Dropout(0.7), nn.Linear(width, 128), nn.ReLU(),
            nn.Dropout(0.5), nn.BatchNorm1d(128), nn.Linear(128, num_classes),
        )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # hooks must see what the layer computed, not what a later layer made of it
    return DenseNetTeacher(network)


def untrained_teacher(num_classes: int, weights: str, head: str, seed: int) -> tuple[nn.Module, str]:
    """A teacher before its training.

    Args:
        num_classes: number of classes.
        weights: ``"scratch"``, ``"imagenet"``, or ``"auto"``: ImageNet's if they can be had, else from scratch.
        head: see :func:`densenet121_teacher`.
        seed: initial weights are drawn from it.

    Returns:
        The network, and where its weights come from: ``"imagenet"`` or ``"scratch"``.

    Raises:
        DownloadError: ``"imagenet"`` was asked for and cannot be had.
        ParameterError: another ``weights`` or ``head``.
    """
    if weights not in ("auto", "imagenet", "scratch"):
        raise ParameterError(f"weights is {weights!r}, but it must be one of: auto, imagenet, scratch.")
    if weights != "scratch":
        try:
            return initialised(densenet121_teacher, num_classes, "imagenet", head, seed=seed), "imagenet"
        except DownloadError:
            if weights == "imagenet":
                raise
    return initialised(densenet121_teacher, num_classes, None, head, seed=seed), "scratch"


def initialised(build: Callable[..., Model], *arguments: object, seed: int, **options: object) -> Model:
    """Build a model with weights drawn from ``seed``, leaving torch's own random state untouched.

    Args:
        build: the class or function that builds it.
        arguments: of ``build``.
        seed: of torch's generator meanwhile.
        options: keyword arguments of ``build``.

    Returns:
        The model, channels last in memory.
    """
    with drawing_from(seed):
        return build(*arguments, **options).to(memory_format=torch.channels_last)


def feature_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose maps are shown.

    Args:
        model: a student, the study's own teacher, or a network that names its layers in ``feature_layers``.

    Returns:
        Name -> layer, first layer first: ``layer1``... of a student, ``block1``... of the teacher.

    Raises:
        ModelError: none of these; the caller should name layers.

    Example:
        >>> list(feature_layers(StudentCNN(2, (4, 8, 8))))
        ['layer1', 'layer2', 'layer3']
    """
    if isinstance(model, DenseNetTeacher):
        # The last block's maps are read after its norm; torchvision applies the ReLU outside the module.
        blocks = {"block1": "denseblock1", "block2": "denseblock2", "block3": "denseblock3", "block4": "norm5"}
        return {block: model.network.get_submodule(f"features.{name}") for block, name in blocks.items()}
    if isinstance(model, (StudentCNN, ReleasedStudent)):
        return {f"layer{depth}": block for depth, block in enumerate(model.features, start=1)}
    if names := getattr(model, "feature_layers", None):  # a network of one's own says which
        return {f"layer{depth}": model.get_submodule(name) for depth, name in enumerate(names, start=1)}
    raise ModelError(f"{type(model).__name__} has no known feature layers: name the convolutional layers to use.")
