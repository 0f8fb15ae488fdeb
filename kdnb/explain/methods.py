"""Every explanation behind one signature: ``method(model, images, targets) -> (N, H, W)`` float32 at image size.

The larger a value of the map, the more relevant the place. ``images`` are ``(N, 3, H, W)`` float32 in [0, 1],
``targets`` ``(N,)`` class indices. Integrated gradients and SHAP divide the target's logit among the values of the
image, ``(N, 3, H, W)`` with signs; how these become one map is a choice (:data:`JOINED`), and every choice can be had
from the same attributions (:func:`joined`). Methods leave the model exactly as they found it.
"""

import copy
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.device import device_of, drawing_from
from kdnb.errors import ModelError
from kdnb.explain.evidence import class_evidence, explains_itself
from kdnb.explain.maps import (
    average,
    average_feature_maps,
    evaluation_mode,
    layers_of,
    unpooled_feature_maps,
    weighted_average,
)
from kdnb.models import ReleasedStudent, StudentCNN
from kdnb.networks import as_maps, logits_of

Method = Callable[[nn.Module, Tensor, Tensor], Tensor]

CONTROLS = ("random", "centre", "sobel", "uniform", "untrained", "data_set_mean")
INTEGRATED_GRADIENTS_STEPS = 50
SHAP_SAMPLES = 200  # the default of shap.GradientExplainer
RANDOM_CELLS = 8  # a random map has 8 x 8 values, as coarse as a student's deep layers
CONTROL_SEEDS = 2**30  # seeds of controls count from here
DRAWS = 10  # of the random map and of the untrained network


def blurred(images: Tensor) -> Tensor:
    """The image without its details: a Gaussian blur with a standard deviation of an eighth of the image's width.

    A baseline for gradients and for deleting pixels. A constant colour would not do for the former: a network that
    standardises each image sees the same image all along the way from a constant to the image, so attributions would
    sum to zero.

    Args:
        images: ``(N, 3, H, W)`` float32.

    Returns:
        as ``images``; a constant image stays as it is.
    """
    rows, columns = (_smoothing(side, images.shape[-1] / 8).to(images) for side in images.shape[-2:])
    return rows @ images @ columns.T


def _smoothing(side: int, sigma: float) -> Tensor:
    """The matrix ``(side, side)`` of Gaussian weights whose rows sum to one: nothing darkens towards the border."""
    positions = torch.arange(side, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((positions[:, None] - positions[None, :]) / sigma) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def upsampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps at the size of the image, bilinear, or of the volume, trilinear.

    Rounding would leave a pattern in a constant map (a single cell, say), and whatever ranks or rescales the map would
    take it for relevance. So no value may leave the range of the map it came from.

    Args:
        maps: ``(N, h, w)``, or ``(N, d, h, w)`` of volumes; any type of number.
        size: ``(H, W)`` or ``(D, H, W)``.

    Returns:
        ``(N, H, W)`` or ``(N, D, H, W)`` float32.
    """
    maps, places = maps.float(), tuple(range(1, maps.ndim))
    fine = F.interpolate(
        maps[:, None], size=tuple(size), mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False
    )[:, 0]
    return fine.clamp(maps.amin(dim=places, keepdim=True), maps.amax(dim=places, keepdim=True))


def rescaled(maps: Tensor) -> Tensor:
    """Each map ``(N, ...)`` to [0, 1] by its own minimum and maximum; a constant map becomes zero.

    Args:
        maps: ``(N, ...)``, of any shape behind the first dimension.

    Returns:
        the same shape: ``(map - min) / (max - min)``.

    Example:
        >>> rescaled(torch.tensor([[[2.0, 4.0], [6.0, 10.0]]])).tolist()
        [[[0.0, 0.25], [0.5, 1.0]]]
    """
    places = tuple(range(1, maps.ndim))
    low, high = maps.amin(dim=places, keepdim=True), maps.amax(dim=places, keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


# -- the paper's maps -------------------------------------------------------------------------------------------------


def feature_maps_layer(
    model: nn.Module, images: Tensor, targets: Tensor, *, depth: int, layers: Sequence[str] | None = None
) -> Tensor:
    """The average feature map of one layer: the paper's explanation.

    Args:
        model: any network with convolutions.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: play no part: the map is the same for every class.
        depth: of the layer; 1 is the first.
        layers: names of the layers, as in :func:`kdnb.explain.average_feature_maps`.

    Returns:
        ``(N, H, W)``, :func:`upsampled`.

    Raises:
        ModelError: the network has fewer layers, or none of these names.
    """
    names = list(layers_of(model, layers))
    if depth > len(names):
        raise ModelError(
            f"{type(model).__name__} has {len(names)} feature layers, "
            f"so there is no layer {depth}: use a smaller depth."
        )
    return upsampled(average_feature_maps(model, images, layers)[depth - 1], images.shape[-2:])


def feature_maps_mean(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    combine: Callable[[Tensor], Tensor] = average,
    layers: Sequence[str] | None = None,
) -> Tensor:
    """The mean of all layers' average maps, each rescaled to [0, 1] first: no layer outweighs others by its scale.

    Args:
        model: any network with convolutions.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: play no part.
        combine: how a layer's filters become one map, as in :func:`kdnb.explain.average_feature_maps`.
        layers: names of the layers, as there.

    Returns:
        ``(N, H, W)`` in [0, 1].
    """
    maps = average_feature_maps(model, images, layers, combine)
    return torch.stack([rescaled(upsampled(layer, images.shape[-2:])) for layer in maps]).mean(dim=0)


def feature_maps_unpooled(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """:func:`feature_maps_mean` of the maps before pooling, as the authors' release takes them; of a student only."""
    maps = unpooled_feature_maps(model, images)
    return torch.stack([rescaled(upsampled(layer, images.shape[-2:])) for layer in maps]).mean(dim=0)


# -- class evidence ---------------------------------------------------------------------------------------------------


def evidence_of_target(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """What each place adds to the target's logit, with its sign (:func:`kdnb.explain.class_evidence`)."""
    maps = class_evidence(model, images).maps
    return upsampled(maps[torch.arange(len(images), device=images.device), targets], images.shape[-2:])


def evidence_contrast(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The target's evidence minus the runner-up's (the likeliest other class): why this class and not that one."""
    evidence, rows = class_evidence(model, images), torch.arange(len(images), device=images.device)
    others = evidence.logits.clone()
    others[rows, targets] = -torch.inf
    return upsampled(evidence.maps[rows, targets] - evidence.maps[rows, others.argmax(dim=1)], images.shape[-2:])


# -- gradient methods -------------------------------------------------------------------------------------------------


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor, *, layers: Sequence[str] | None = None) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) at the last feature layer: ``relu(sum_k w_k F_k)``.

    w_k is the mean over positions of the gradient of the target's logit by F_k.

    Args:
        model: any network with convolutions.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, class indices.
        layers: names of layers, of which the last is used; ``None``: the known feature layers of a student or teacher.

    Returns:
        ``(N, H, W)``, no value below 0.
    """
    layer = list(layers_of(model, layers).values())[-1]
    outputs: list[Tensor] = []
    with evaluation_mode(model), torch.enable_grad():
        hook = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            logits = logits_of(model, images.detach().requires_grad_())
        finally:
            hook.remove()
        maps = as_maps(outputs[-1], layer)
        (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), outputs[-1])
    heat = (as_maps(gradient, layer).mean(dim=(2, 3), keepdim=True) * maps.detach()).sum(dim=1).relu()
    return upsampled(heat, images.shape[-2:])


def magnitude(attributions: Tensor) -> Tensor:
    """How much of the logit hangs on a pixel, for or against: as is usual, the sum of absolute values over channels.

    Args:
        attributions: ``(N, 3, H, W)``, with signs.

    Returns:
        ``(N, H, W)``.
    """
    return attributions.abs().sum(dim=1)


def signed(attributions: Tensor) -> Tensor:
    """What a pixel adds to the logit, the sum over the channels.

    What speaks for the class ranks first, as with Grad-CAM, what speaks against it last.

    Args:
        attributions: ``(N, 3, H, W)``, with signs.

    Returns:
        ``(N, H, W)``, with signs.
    """
    return attributions.sum(dim=1)


JOINED: dict[str, Callable[[Tensor], Tensor]] = {"": magnitude, "_signed": signed}


def coarsened(maps: Tensor, cells: Sequence[tuple[int, int]]) -> Tensor:
    """Maps no finer than the average map: the mean over each layer's cells, all layers joined as the average map's are.

    Smoothing alone raises scores of fidelity (Song et al., arXiv 2304.13836). A control for that: where the average map
    beats a method and not its coarse twin, it is coarseness that wins.

    Args:
        maps: ``(N, H, W)``.
        cells: height and width of each layer's map, as of :func:`kdnb.explain.average_feature_maps`.

    Returns:
        ``(N, H, W)`` in [0, 1].
    """
    size = maps.shape[-2:]
    return torch.stack([rescaled(upsampled(F.adaptive_avg_pool2d(maps, layer), size)) for layer in cells]).mean(dim=0)


def joined(attributions: dict[str, Tensor], cells: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """All maps of attributions: ``name``, ``name_signed`` (:data:`JOINED`) and, :func:`coarsened`, ``name_coarse``.

    Args:
        attributions: method -> ``(N, 3, H, W)``, what the methods of :func:`attributions` return.
        cells: height and width of each layer's map, as in :func:`coarsened`.

    Returns:
        name -> ``(N, H, W)``.
    """
    maps = {name + suffix: join(values) for name, values in attributions.items() for suffix, join in JOINED.items()}
    return maps | {f"{name}_coarse": coarsened(maps[name], cells) for name in attributions}


def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    join: Callable[[Tensor], Tensor] = magnitude,
    baseline: Callable[[Tensor], Tensor] = blurred,
    steps: int = INTEGRATED_GRADIENTS_STEPS,
) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017), from the blurred image to the image; captum's.

    ``(x - x') * mean of the gradient between x' and x``, with x' the blurred image and the gradient that of the
    target's logit: a share of the logit's change for every value of the image.

    Args:
        model: any classifier.
        images: ``(N, 3, H, W)`` float32 in [0, 1]; or volumes ``(N, D, H, W)``.
        targets: ``(N,)``, class indices.
        join: how the channels become one map (:data:`JOINED`).
        baseline: what makes x' of x; of volumes a blur in depth, too (:func:`kdnb.explain.volumes.blurred`).
        steps: between x' and x at which the gradient is taken.

    Returns:
        what ``join`` makes of the attributions, which have the shape of ``images``; float32, ``(N, H, W)`` by default.
    """
    from captum.attr import IntegratedGradients

    with evaluation_mode(model):
        attribution = IntegratedGradients(partial(logits_of, model)).attribute(
            images.detach(),
            baselines=baseline(images),
            target=targets,
            n_steps=steps,
            internal_batch_size=max(64, len(images)),
        )
    return join(attribution.detach()).float()


class _TargetLogit(nn.Module):
    """The logit of one class as a model of one output, so that SHAP explains that class and no other."""

    def __init__(self, model: nn.Module, target: int) -> None:
        super().__init__()
        self.model, self.target = model, target

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model, images)[:, self.target, None]


def _shap_batch(device: torch.device) -> int:
    """Points that SHAP passes at once: its own default on a CPU, on a GPU all of an image's."""
    # On a GPU each call waits for the host.
    return 50 if device.type == "cpu" else SHAP_SAMPLES


def shap(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    background: Tensor | None = None,
    samples: int = SHAP_SAMPLES,
    seed: int = 0,
    join: Callable[[Tensor], Tensor] = magnitude,
) -> Tensor:
    """SHAP values by expected gradients (``shap.GradientExplainer``; Lundberg and Lee 2017, Erion et al. 2021).

    ``E[(x - x') * gradient of the target's logit at x' + a (x - x')]`` over background images x' and a uniform in [0,
    1].

    Args:
        model: any classifier; gradients that its weights carry are put back.
        images: ``(N, 3, H, W)`` float32 in [0, 1]; or volumes ``(N, D, H, W)`` with a background.
        targets: ``(N,)``, class indices.
        background: ``(B, 3, H, W)``, the images that stand for "nothing to see", usually of the training split; without
            it the image itself, blurred.
        samples: points between background and image at which the gradient is taken, an image.
        seed: of the sampling; numpy's global random state, which shap uses, is put back.
        join: how the channels become one map (:data:`JOINED`).

    Returns:
        what ``join`` makes of the attributions, which have the shape of ``images``; float32, ``(N, H, W)`` by default.
    """
    from shap import GradientExplainer

    state = np.random.get_state()  # noqa: NPY002 - shap draws from the global generator
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]  # which shap would zero
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with evaluation_mode(model), torch.enable_grad():
            # shap goes image by image in any case; one call an image makes a map independent of its batch.
            explainers: dict[int, GradientExplainer] = {}
            values = []
            for image, target in zip(images.detach().split(1), targets.tolist(), strict=True):
                if target not in explainers or background is None:
                    reference = blurred(image) if background is None else background.detach()
                    explainers[target] = GradientExplainer(
                        _TargetLogit(model, target), reference, batch_size=_shap_batch(images.device)
                    )
                values.append(explainers[target].shap_values(image, nsamples=samples, rseed=seed)[..., 0])
    finally:
        np.random.set_state(state)  # noqa: NPY002
        for parameter, gradient in gradients:
            parameter.grad = gradient
    return join(torch.as_tensor(np.concatenate(values), dtype=torch.float32)).to(images.device)


# -- controls: maps that know nothing of what the model learned -------------------------------------------------------


def random_map(model: nn.Module, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Smooth noise of 8 x 8 values, the same for the same image in any batch: the image's own pixels fix what is drawn.

    Args:
        model: plays no part.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: play no part.
        seed: of the draw, beside the pixels (:func:`control_seed`).

    Returns:
        ``(N, H, W)`` in [0, 1).
    """
    coarse = torch.empty(len(images), RANDOM_CELLS, RANDOM_CELLS)
    for position, image in enumerate(images):
        key = zlib.crc32((image * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes(), seed)
        coarse[position] = torch.rand(RANDOM_CELLS, RANDOM_CELLS, generator=torch.Generator().manual_seed(key))
    return upsampled(coarse, images.shape[-2:]).to(images.device)


def centre(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A Gaussian in the middle, a quarter of the image wide: photographers and radiologists put what matters there."""
    height, width = images.shape[-2:]
    down = torch.linspace(-2, 2, height, device=images.device)
    across = torch.linspace(-2, 2, width, device=images.device)
    return torch.exp(-0.5 * (down[:, None] ** 2 + across[None, :] ** 2)).expand(len(images), height, width).clone()


def sobel(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Edges: the length of the Sobel gradient of the grey image."""
    grey = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device)
    gradient = F.conv2d(grey, torch.stack([across, across.T])[:, None])
    return gradient.square().sum(dim=1).sqrt()


def uniform(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The same everywhere: no explanation at all. Where pixels must be ranked, ties are broken at random."""
    return torch.ones(len(images), *images.shape[-2:], device=images.device)


def reinitialised(model: nn.Module, seed: int = 0, modules: Sequence[str] | None = None) -> nn.Module:
    """A copy of ``model`` with freshly drawn weights, everywhere or in some modules only.

    Args:
        model: is left as it is.
        seed: of the weights, the same on every device; torch's random state is put back.
        modules: names of the modules whose own weights are drawn anew, not those of modules inside; ``None``: all.

    Returns:
        the copy, on the device of ``model``.
    """
    twin = copy.deepcopy(model).cpu()  # drawn there, the weights are the same on every device
    chosen = twin.named_modules() if modules is None else ((name, twin.get_submodule(name)) for name in modules)
    with drawing_from(seed):
        for _, module in chosen:
            if hasattr(module, "reset_parameters"):
                cast("Callable[[], None]", module.reset_parameters)()
    return twin.to(device_of(model))


def untrained(
    model: nn.Module, images: Tensor, targets: Tensor, *, seed: int = 0, layers: Sequence[str] | None = None
) -> Tensor:
    """The mean average feature map of the same network with random weights.

    It is what the architecture shows before it learns anything.

    Args:
        model: whose architecture it is.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: play no part.
        seed: of the weights (:func:`control_seed`).
        layers: names of the layers, as in :func:`feature_maps_mean`.

    Returns:
        ``(N, H, W)`` in [0, 1].
    """
    return feature_maps_mean(reinitialised(model, seed), images, targets, layers=layers)


def data_set_mean(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    training: Tensor | None = None,
    layers: Sequence[str] | None = None,
) -> Tensor:
    """What the model responds to on average, whatever it is shown: the mean average feature map of training images.

    The same map for every image. A method that does not beat it says nothing about the image at hand.

    Args:
        model: any network with convolutions.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: play no part.
        training: ``(M, 3, H, W)``, the images whose maps are averaged; without it the images themselves.
        layers: names of the layers, as in :func:`feature_maps_mean`.

    Returns:
        ``(N, H, W)`` in [0, 1], N times the same map.
    """
    sources = images if training is None else training
    maps = [feature_maps_mean(model, batch, targets, layers=layers) for batch in sources.split(64)]
    return torch.cat(maps).mean(dim=0).expand(len(images), -1, -1).clone()


def control_seed(seed: int, draw: int = 0) -> int:
    """The seed of a control's random map or untrained network: none from which a student's start is drawn.

    With the student's own seed the untrained network would be the start that it learned from, and know a good deal of
    it.

    Args:
        seed: of the run.
        draw: which of the :data:`DRAWS` draws, from 0.

    Returns:
        a seed of at least :data:`CONTROL_SEEDS`.

    Example:
        >>> control_seed(0), control_seed(1, draw=2)
        (1073741824, 1073741836)
    """
    return CONTROL_SEEDS + (seed * DRAWS + draw) % CONTROL_SEEDS


def drawn_controls(seed: int = 0) -> list[dict[str, Method]]:
    """The two controls that hang on a draw, in :data:`DRAWS` draws: one of them may be lucky, their mean is not."""
    seeds = [control_seed(seed, draw) for draw in range(DRAWS)]
    return [{"random": partial(random_map, seed=drawn), "untrained": partial(untrained, seed=drawn)} for drawn in seeds]


# -- the table --------------------------------------------------------------------------------------------------------


def methods(
    background: Tensor | None = None,
    *,
    training: Tensor | None = None,
    shap_samples: int = SHAP_SAMPLES,
    layers: Sequence[str] | None = None,
    depth: int = 5,
    seed: int = 0,
) -> dict[str, Method]:
    """All methods and controls by name.

    Args:
        background: ``(B, 3, H, W)``, SHAP's background (see :func:`shap`).
        training: ``(M, 3, H, W)``, the images of the control ``data_set_mean`` (see :func:`data_set_mean`).
        shap_samples: SHAP's samples an image.
        layers: names of the layers of a network other than the student and the teacher; Grad-CAM uses the last of them.
        depth: how many feature layers there are: 5 in the student, 4 in the teacher.
        seed: of SHAP's sampling and, through :func:`control_seed`, of the random map and the untrained network.

    Returns:
        name -> method, in the order of the study's tables.
    """
    return {
        **{f"feature_maps_layer{d}": partial(feature_maps_layer, depth=d, layers=layers) for d in range(1, depth + 1)},
        "feature_maps_mean": partial(feature_maps_mean, layers=layers),
        "feature_maps_weighted": partial(feature_maps_mean, combine=weighted_average, layers=layers),
        "feature_maps_unpooled": feature_maps_unpooled,
        "class_evidence": evidence_of_target,
        "evidence_contrast": evidence_contrast,
        "grad_cam": partial(grad_cam, layers=layers),
        **{
            f"integrated_gradients{suffix}": partial(integrated_gradients, join=join) for suffix, join in JOINED.items()
        },
        **{
            f"shap{suffix}": partial(shap, background=background, samples=shap_samples, seed=seed, join=join)
            for suffix, join in JOINED.items()
        },
        "random": partial(random_map, seed=control_seed(seed)),
        "centre": centre,
        "sobel": sobel,
        "uniform": uniform,
        "untrained": partial(untrained, seed=control_seed(seed), layers=layers),
        "data_set_mean": partial(data_set_mean, training=training, layers=layers),
    }


METHODS = methods()


def attributions(chosen: dict[str, Method]) -> dict[str, Method]:
    """Integrated gradients and SHAP before they are joined to one map: they return ``(N, 3, H, W)``.

    Args:
        chosen: methods by name, as of :func:`methods`.

    Returns:
        ``integrated_gradients`` and ``shap``, as they are in ``chosen`` but for the joining: that is :func:`joined`'s.
    """
    return {
        name: partial(cast("Callable[..., Tensor]", chosen[name]), join=_as_they_are)
        for name in ("integrated_gradients", "shap")
    }


def _as_they_are(attributions: Tensor) -> Tensor:
    return attributions


def available(chosen: dict[str, Method], model: nn.Module, images: Tensor) -> dict[str, Method]:
    """Those of the methods that this network has.

    The others need a network that ends as a student does (:func:`kdnb.explain.explains_itself`), or a student.

    Args:
        chosen: methods by name.
        model: any classifier.
        images: ``(N, 3, H, W)`` float32 in [0, 1], of which one is tried.

    Returns:
        the methods left, by name.
    """
    lacking = [] if explains_itself(model, images) else ["class_evidence", "evidence_contrast"]
    lacking += [] if isinstance(model, (StudentCNN, ReleasedStudent)) else ["feature_maps_unpooled"]
    return {name: method for name, method in chosen.items() if name not in lacking}


def explain_all(
    chosen: dict[str, Method], model: nn.Module, images: Tensor, targets: Tensor, batch_size: int = 64
) -> dict[str, Tensor]:
    """Every chosen method on all images, batch by batch: name -> ``(N, H, W)``."""
    return {
        name: torch.cat(
            [
                method(model, image_batch, target_batch)
                for image_batch, target_batch in zip(images.split(batch_size), targets.split(batch_size), strict=True)
            ]
        )
        for name, method in chosen.items()
    }
