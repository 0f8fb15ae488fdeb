"""Average feature maps (Jiang et al. 2025, arXiv 2502.15959): what each layer looks at, from one forward pass.

For a layer with filters k = 1..N and feature maps F_k the explanation is ``A(i, j) = 1/N * sum_k F_k(i, j)``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from kdnb.device import device_of
from kdnb.errors import ModelError
from kdnb.models import ReleasedStudent, StudentCNN, feature_layers
from kdnb.networks import Network, as_maps, logits_of, measured_fields

_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def average(features: Tensor) -> Tensor:
    """``A = 1/N * sum_k F_k``, the paper's average over the N filters.

    Args:
        features: ``(n, N, h, w)``, the feature maps of n images.

    Returns:
        ``(n, h, w)``.

    Example:
        >>> average(torch.tensor([[[[1.0, 2.0]], [[3.0, 6.0]]]])).tolist()
        [[[2.0, 4.0]]]
    """
    if not features.is_contiguous(memory_format=torch.channels_last):
        return features.mean(dim=1)
    # With the filters next to each other in memory, one matrix-vector product is the quickest sum there is.
    filters = features.shape[1]
    return features.movedim(1, -1) @ features.new_full((filters,), 1 / filters)


def weighted_average(features: Tensor) -> Tensor:
    """``A = sum_k w_k F_k / sum_k w_k`` with ``w_k = mean_ij |F_k(i, j)|``: filters that respond more count more.

    The paper's remedy where plain averaging has low fidelity ("weighted averaging by filter activation magnitude"). The
    weights are those of each image.

    Args:
        features: ``(n, N, h, w)``, the feature maps of n images.

    Returns:
        ``(n, h, w)``; 0 where no filter responds.

    Example:
        >>> weighted_average(torch.tensor([[[[1.0, 1.0]], [[3.0, 3.0]]]])).tolist()
        [[[2.5, 2.5]]]
    """
    weights = features.abs().mean(dim=(2, 3))
    total = weights.sum(dim=1).clamp_min(torch.finfo(features.dtype).tiny)
    return torch.einsum("nk,nkhw->nhw", weights, features) / total[:, None, None]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put ``model`` in evaluation mode inside the block, and every module back in its own mode after it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield model
    finally:
        for module in training:
            module.training = True


def layers_of(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The layers called ``names``, or the known feature layers of a student or teacher.

    Args:
        model: any network.
        names: as in ``model.named_modules()``; ``None``: :func:`kdnb.models.feature_layers`.

    Returns:
        name -> layer, first layer first.

    Raises:
        ModelError: the model has no convolution, or no layer of that name; the message lists the convolutions.
    """
    modules = dict(model.named_modules())
    convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise ModelError(
            f"{type(model).__name__} has no convolutional layer, "
            "so it has no feature maps: use a convolutional network."
        )
    if names is None:
        return feature_layers(model)
    missing = [name for name in names if name not in modules]
    if missing or not names:
        listed = ", ".join(convolutions[:8]) + (", ..." if len(convolutions) > 8 else "")
        name = repr(missing[0]) if missing else "none"
        raise ModelError(
            f"the layer asked for is {name}, but {type(model).__name__} has these convolutional layers: {listed}."
        )
    return {name: modules[name] for name in names}


@contextmanager
def collecting(
    layers: Mapping[str, nn.Module], combine: Callable[[Tensor], Tensor] = average
) -> Iterator[dict[str, Tensor]]:
    """Collect ``combine(output)`` of every layer during the forward passes inside the block; no hook stays after it.

    The combination is made inside the hook: no activation outlives its layer, and nothing that a later in-place
    operation does to it (torchvision's DenseNet applies ``relu(inplace=True)`` after its last norm) can reach the map.

    Args:
        layers: by the names under which their maps are kept.
        combine: what is kept of a layer's maps ``(N, filters, h, w)`` (:func:`kdnb.networks.as_maps`).

    Yields:
        name -> what is kept of the latest pass; empty before the first.
    """
    collected: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        collected[name] = combine(as_maps(output, module, name))

    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        yield collected


def average_feature_maps(
    model: nn.Module, images: Tensor, layers: Sequence[str] | None = None, combine: Callable[[Tensor], Tensor] = average
) -> list[Tensor]:
    """The average feature map of every layer, first layer first, in one forward pass.

    Args:
        model: any network; it is left exactly as found.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        layers: names of layers (as in ``model.named_modules()``); ``None`` means the five of the student, the four of
            the teacher.
        combine: how a layer's filters become one map: :func:`average` (the paper's) or :func:`weighted_average`.

    Returns:
        one ``(N, h, w)`` tensor a layer; h and w shrink with depth.

    Raises:
        ModelError: the model has no such layer, or no convolutional layer at all.
    """
    chosen = layers_of(model, layers)
    with evaluation_mode(model), torch.no_grad(), collecting(chosen, combine) as maps:
        logits_of(model, images)
    unused = [name for name in chosen if name not in maps]
    if unused:
        raise ModelError(
            f"layer {unused[0]!r} took no part in the forward pass of {type(model).__name__}: name another layer."
        )
    return [maps[name] for name in chosen]


def unpooled_feature_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The average maps of a student's layers before their pooling, at up to the image's own resolution.

    In one forward pass, as the authors' release takes them: convolution, ReLU, average, then pooling. The five-layer
    student pools before it normalises, so here its normalisation and ReLU are applied once more, to the convolution's
    output. A tenth to a fifth of a forward pass more than :func:`average_feature_maps`, whose maps are what the next
    layer reads.

    Args:
        model: one of the study's students; it is left exactly as found.
        images: ``(N, 3, H, W)`` float32 in [0, 1].

    Returns:
        one ``(N, h, w)`` tensor a layer, first layer first.

    Raises:
        ModelError: not one of the study's students.
    """
    if not isinstance(model, (StudentCNN, ReleasedStudent)):
        raise ModelError(f"{type(model).__name__} is not a student whose poolings are known: use average_feature_maps.")
    maps: list[Tensor] = []

    def keep(rest: nn.Module, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Image by image, the activations stay in the processor's cache: half the time of the whole batch at once.
        maps.append(torch.cat([average(rest(image_maps)) for image_maps in output.split(1)]))

    with evaluation_mode(model), torch.no_grad(), ExitStack() as hooks:
        for block in cast("Iterable[nn.Sequential]", model.features):
            rest = block[2:] if isinstance(model, StudentCNN) else block[1]
            hooks.enter_context(block[0].register_forward_hook(partial(keep, rest)))
        model(images)
    return maps


def receptive_fields(model: nn.Module, image_size: int = 64) -> dict[str, int]:
    """How many input pixels, across, one unit of each layer can depend on.

    Follows the convolutions and poolings in the order of one forward pass: with kernel k, stride s and dilation d,
    ``r <- r + (k - 1) d j`` and ``j <- j s``, from r = j = 1. Right for chains and for dense blocks, whose longest path
    goes through every convolution. Per-image standardisation lets every pixel shift the mean a little; that is not
    counted. Of a network of one's own the fields are measured instead (:func:`kdnb.networks.measured_fields`).

    Args:
        model: any network; it is left exactly as found.
        image_size: pixels of a side of the image that is passed.

    Returns:
        name of the layer -> r, first layer first.
    """
    chosen = layers_of(model)
    if isinstance(model, Network):  # of any build: no chain to follow
        return dict(zip(chosen, measured_fields(model, model.feature_layers, image_size), strict=True))
    reach, step, fields = 1, 1, {}

    def window(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal reach, step
        size, stride, dilation = (_across(getattr(module, name, 1)) for name in ("kernel_size", "stride", "dilation"))
        reach += (size - 1) * dilation * step
        step *= stride

    def read(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        fields[name] = reach

    device = device_of(model)
    with evaluation_mode(model), torch.no_grad(), ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, _WINDOWS):
                hooks.enter_context(module.register_forward_hook(window))
        for name, module in chosen.items():
            hooks.enter_context(module.register_forward_hook(partial(read, name)))
        model(torch.zeros(1, 3, image_size, image_size, device=device))
    return {name: fields[name] for name in chosen}


def _across(value: int | tuple[int, ...]) -> int:
    """The last of a convolution's sizes, along the rows; of one number that."""
    return value if isinstance(value, int) else value[-1]
