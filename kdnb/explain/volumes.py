"""Explanations in depth, behind one signature: ``method(model, volumes, targets) -> (N, D, H, W)`` float32.

The larger a value of the map, the more relevant the place. ``volumes`` are ``(N, D, H, W)`` float32 in [0, 1],
``targets`` ``(N,)`` class indices. Class evidence is that of images (:func:`kdnb.explain.class_evidence`), which is
exact in three dimensions, too; Grad-CAM is captum's, integrated gradients and SHAP are those of images, from a blur in
depth, too, and from volumes.
"""

import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import cast

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from kdnb.explain.evidence import class_evidence
from kdnb.explain.maps import evaluation_mode
from kdnb.explain.methods import Method, control_seed, integrated_gradients, reinitialised, rescaled, shap, upsampled

CONTROLS = ("random", "centre", "edges", "uniform", "untrained")  # maps that know nothing of what was learned
RANDOM_CELLS = (4, 6, 6)  # of a random map: about as coarse as the maps of deep layers
# Of integrated gradients: their sum misses the logit's change by less than 5% of the largest, as a test says.
STEPS = 20
DRAWS = 3  # of the random map and of the untrained network


def blurred(volumes: Tensor) -> Tensor:
    """Volumes ``(N, D, H, W)`` without their details: a Gaussian blur of an eighth of each side."""
    widths = [side / 8 for side in volumes.shape[1:]]
    return torch.from_numpy(gaussian_filter(volumes.cpu().numpy(), [0, *widths], mode="nearest")).to(volumes.device)


def feature_maps(model: nn.Module, volumes: Tensor, *, average: bool = True) -> list[Tensor]:
    """What every layer of ``model.feature_layers`` computes, first layer first, in one forward pass.

    Args:
        model: a network for volumes (:mod:`kdnb.models3d`), which names its feature layers; it is left as found.
        volumes: ``(N, D, H, W)`` float32 in [0, 1].
        average: whether over the filters (the paper's map in three dimensions), or all.

    Returns:
        ``(N, d, h, w)`` a layer or, of all K filters, ``(N, K, d, h, w)``.
    """
    layer_names = cast("Sequence[str]", model.feature_layers)
    maps: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        maps[name] = output.mean(dim=1) if average else output

    with evaluation_mode(model), torch.no_grad(), ExitStack() as hooks:
        for name in layer_names:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(partial(keep, name)))
        model(volumes)
    return [maps[name] for name in layer_names]


def average_layer(model: nn.Module, volumes: Tensor, targets: Tensor, *, depth: int) -> Tensor:
    """The average map of one layer (``depth`` 1 is the first)."""
    return upsampled(feature_maps(model, volumes)[depth - 1], volumes.shape[1:])


def average_mean(model: nn.Module, volumes: Tensor, targets: Tensor) -> Tensor:
    """The mean of all layers' average maps, each brought to [0, 1] first."""
    layers = feature_maps(model, volumes)
    return torch.stack([rescaled(upsampled(maps, volumes.shape[1:])) for maps in layers]).mean(dim=0)


def one_filter(model: nn.Module, volumes: Tensor, targets: Tensor, *, layer: int, number: int) -> Tensor:
    """The map of a single filter (``layer`` 1 is the first, ``number`` 0 its first filter)."""
    return upsampled(feature_maps(model, volumes, average=False)[layer - 1][:, number], volumes.shape[1:])


def evidence(model: nn.Module, volumes: Tensor, targets: Tensor) -> Tensor:
    """What each place adds to the target's logit, with its sign (:func:`kdnb.explain.class_evidence`)."""
    maps = class_evidence(model, volumes).maps
    return upsampled(maps[torch.arange(len(volumes), device=volumes.device), targets], volumes.shape[1:])


def grad_cam(model: nn.Module, volumes: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) at the last layer: ``relu(sum_k w_k F_k)``.

    w_k is the mean over all places of the gradient of the target's logit by F_k.

    Args:
        model: a network for volumes (:mod:`kdnb.models3d`).
        volumes: ``(N, D, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, class indices.

    Returns:
        ``(N, D, H, W)``, no value below 0.
    """
    from captum.attr import LayerGradCam

    last_layer = model.get_submodule(cast("Sequence[str]", model.feature_layers)[-1])
    with evaluation_mode(model), torch.enable_grad():
        heat = LayerGradCam(model, last_layer).attribute(volumes, targets, relu_attributions=True)
    return upsampled(heat[:, 0].detach(), volumes.shape[1:])


# -- controls ---------------------------------------------------------------------------------------------------------


def random_map(model: nn.Module, volumes: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Smooth noise from a seed that the volume's own voxels fix: the same volume gets the same map in any batch."""
    coarse = torch.empty(len(volumes), *RANDOM_CELLS)
    for position, volume in enumerate(volumes):
        key = zlib.crc32((volume * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes(), seed)
        coarse[position] = torch.rand(RANDOM_CELLS, generator=torch.Generator().manual_seed(key))
    return upsampled(coarse, volumes.shape[1:]).to(volumes.device)


def centre(model: nn.Module, volumes: Tensor, targets: Tensor) -> Tensor:
    """A Gaussian in the middle, a quarter of each side wide."""
    squares = torch.zeros((), device=volumes.device)
    for dimension, length in enumerate(volumes.shape[1:]):
        side = torch.linspace(-2, 2, length, device=volumes.device)
        squares = squares + side.square().view([-1 if d == dimension else 1 for d in range(3)])
    return torch.exp(-0.5 * squares).expand_as(volumes).clone()


def edges(model: nn.Module, volumes: Tensor, targets: Tensor) -> Tensor:
    """Edges: the length of the gradient by central differences, in all three directions."""
    return torch.stack(torch.gradient(volumes, dim=(1, 2, 3))).square().sum(dim=0).sqrt()


def uniform(model: nn.Module, volumes: Tensor, targets: Tensor) -> Tensor:
    """The same everywhere: no explanation at all."""
    return torch.ones_like(volumes)


def untrained(model: nn.Module, volumes: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """The average map of the same network with random weights: what its architecture shows before it learns."""
    return average_mean(reinitialised(model, seed), volumes, targets)


def methods(layers: int) -> dict[str, Method]:
    """Average maps of each layer and of all, class evidence, Grad-CAM and integrated gradients, by name.

    Args:
        layers: how many feature layers the network has.

    Returns:
        name -> method; integrated gradients as magnitudes, from :func:`blurred` volumes in :data:`STEPS` steps.
    """
    layer_methods: dict[str, Method] = {
        f"feature_maps_layer{depth}": partial(average_layer, depth=depth) for depth in range(1, layers + 1)
    }
    integrated = partial(integrated_gradients, join=torch.abs, baseline=blurred, steps=STEPS)
    others: dict[str, Method] = {
        "class_evidence": evidence,
        "grad_cam": grad_cam,
        "integrated_gradients": integrated,
    }
    return layer_methods | {"feature_maps_mean": average_mean} | others


def shap_of(background: Tensor, samples: int, seed: int = 0) -> Method:
    """SHAP's magnitudes with ``background`` ``(B, D, H, W)``; hundreds of passes a volume."""
    return partial(shap, background=background, samples=samples, seed=seed, join=torch.abs)


def controls(seed: int) -> list[dict[str, Method]]:
    """The controls, those that hang on a draw in :data:`DRAWS` draws; the others are in the first."""
    drawn: list[dict[str, Method]] = [
        {"random": partial(random_map, seed=draw_seed), "untrained": partial(untrained, seed=draw_seed)}
        for draw_seed in (control_seed(seed, draw) for draw in range(DRAWS))
    ]
    drawn[0] |= {"centre": centre, "edges": edges, "uniform": uniform}
    return drawn
