"""Class evidence: what each place of an image adds to each class's logit, exactly, from one forward pass.

A network that ends in global average pooling and one linear layer computes, with F the last maps of h x w places::

    logit_c   = b_c + sum_k W_ck * mean_ij F_k(i, j) = b_c + 1/(hw) * sum_ij E_c(i, j)
    E_c(i, j) = sum_k W_ck F_k(i, j)

E_c is the class activation map of Zhou et al. (2016, CVPR, "Learning deep features for discriminative localization",
eq. 2), kept with its sign, its scale and its bias. Grad-CAM of such a network is ``relu(E_c) / (hw)``.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import ModelError
from kdnb.explain.maps import evaluation_mode
from kdnb.models import LayeredStudent, StudentCNN

# Of the pooled features' largest value, by which what was rebuilt may differ from what the network computed.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ClassEvidence:
    """The evidence of a batch: ``maps.sum(dim=(2, 3)) / (h * w) + bias`` are the logits.

    Attributes:
        maps: ``(N, C, h, w)``, of volumes ``(N, C, d, h, w)``, in units of the logit; above 0 speaks for the class,
            below 0 against it.
        bias: ``(C,)``, what each class starts with before anything is seen.
    """

    maps: Tensor
    bias: Tensor

    @property
    def logits(self) -> Tensor:
        """``(N, C)``, added up from the evidence."""
        return _over_places(self.maps) + self.bias


def class_evidence(model: nn.Module, images: Tensor, layers: Sequence[str] | None = None) -> ClassEvidence:
    """What every place adds to every class, in one forward pass and without a gradient.

    Args:
        model: ends in global average pooling and one linear layer; it is left exactly as found.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        layers: names of the module whose maps are pooled and of the linear layer, as in ``model.named_modules()``;
            ``None`` finds those of the students, DenseNet121 and torchvision's ResNets and DenseNets.

    Returns:
        maps and bias, whose logits are the network's own up to rounding. Of a network that reads several layers the
        maps are their sum, on the grid of the first.

    Raises:
        ModelError: the network does not end so, or has no module of that name.
    """
    by_layer, bias = layer_evidence(model, images, layers)
    maps = list(by_layer.values())
    return ClassEvidence(
        maps[0] if len(maps) == 1 else cast("Tensor", sum(_at_size(layer, maps[0].shape[-2:]) for layer in maps)), bias
    )


def layer_evidence(
    model: nn.Module, images: Tensor, layers: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """:func:`class_evidence` layer by layer, of a network whose classifier reads the pooled maps of several layers.

    Args:
        model: ends in global average pooling and one linear layer; it is left exactly as found.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        layers: names of the modules whose maps are pooled, first layer first, and last of the linear layer; ``None`` as
            in :func:`class_evidence`.

    Returns:
        layer -> maps ``(N, C, h, w)``, first layer first, and the bias ``(C,)``: the logits are the bias and the mean
        over places of each layer's maps, summed over layers. A network that pools its last layer only has one entry.

    Raises:
        ModelError: the network does not end so, or has no module of that name.
    """
    pooled_names, linear_name = pooled_and_linear(model) if layers is None else (tuple(layers[:-1]), layers[-1])
    try:
        *pooling, linear = (model.get_submodule(name) for name in (*pooled_names, linear_name))
    except AttributeError as error:
        raise ModelError(_refusal(model)) from error
    if not pooling or not isinstance(linear, nn.Linear):
        raise ModelError(_refusal(model))
    maps: dict[str, Tensor] = {}
    linear_layer: dict[str, Tensor] = {}
    with evaluation_mode(model), torch.no_grad(), ExitStack() as hooks:
        for name, module in zip(pooled_names, pooling, strict=True):
            hooks.enter_context(
                module.register_forward_hook(lambda m, i, output, name=name: maps.update({name: output}))
            )
        hooks.enter_context(
            linear.register_forward_hook(lambda m, inputs, output: linear_layer.update(pooled=inputs[0], logits=output))
        )
        answer = model(images)
        if (
            set(maps) != set(pooled_names)
            or not linear_layer
            or not all(isinstance(output, Tensor) and output.ndim in (4, 5) for output in maps.values())
        ):
            raise ModelError(_refusal(model))
        # torchvision's DenseNet applies a ReLU outside its modules, between the maps and their pooling.
        candidates = (list(maps.values()), [output.relu() for output in maps.values()])
        pooled_maps = next(
            (layers_maps for layers_maps in candidates if _pools(layers_maps, linear_layer["pooled"])), None
        )
        if pooled_maps is None or not (
            answer is linear_layer["logits"] or (isinstance(answer, Tensor) and _close(answer, linear_layer["logits"]))
        ):
            raise ModelError(_refusal(model))
        weights = linear.weight.split([layer_maps.shape[1] for layer_maps in pooled_maps], dim=1)
        evidence = {
            name: torch.einsum("ck,nk...->nc...", weight, layer_maps)
            for name, weight, layer_maps in zip(pooled_names, weights, pooled_maps, strict=True)
        }
        bias = torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias.detach().clone()
    return evidence, bias


def explains_itself(model: nn.Module, images: Tensor) -> bool:
    """Whether :func:`class_evidence` holds for this network without being told its layers."""
    try:
        class_evidence(model, images[:1])
    except ModelError:
        return False
    return True


def pooled_and_linear(model: nn.Module) -> tuple[tuple[str, ...], str]:
    """Names of the modules whose maps are pooled and of the linear layer that reads them, where they are known.

    Args:
        model: a student, DenseNet121 or one of torchvision's ResNets and DenseNets, also within the study's own
            networks.

    Returns:
        the pooled modules, first layer first, and the linear layer, as in ``model.named_modules()``.

    Raises:
        ModelError: another network; the caller should name the two.
    """
    if isinstance(model, LayeredStudent):
        return tuple(f"features.{depth}" for depth in range(len(model.features))), "classifier"
    if isinstance(model, StudentCNN):
        return ("features",), "classifier"
    inner = getattr(model, "network", model)  # the study's networks wrap torchvision's behind standardisation
    prefix = "network." if inner is not model else ""
    for pooled, linear in (("layer4", "fc"), ("features", "classifier")):
        if isinstance(getattr(inner, pooled, None), nn.Module) and isinstance(getattr(inner, linear, None), nn.Linear):
            return (prefix + pooled,), prefix + linear
    raise ModelError(_refusal(model))


def _refusal(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} is not known to end in global average pooling and one linear layer, "
        "so its logits are no sum over places: "
        "name the pooled module and the linear layer, or use Grad-CAM."
    )


def _pools(maps: Sequence[Tensor], pooled: Tensor) -> bool:
    """Whether ``pooled`` are the means of the maps; one image shows it."""
    return _close(torch.cat([_over_places(layer_maps[:1]) for layer_maps in maps], dim=1), pooled[:1])


def _over_places(maps: Tensor) -> Tensor:
    """The mean over all places of maps of images or of volumes, ``(N, C, ...)`` -> ``(N, C)``."""
    return maps.mean(dim=tuple(range(2, maps.ndim)))


def _close(rebuilt: Tensor, computed: Tensor) -> bool:
    """Whether two tensors are of one shape and differ by at most :data:`TOLERANCE`."""
    same_shape = rebuilt.shape == computed.shape
    return same_shape and bool((rebuilt - computed).abs().max() <= TOLERANCE * computed.abs().max().clamp_min(1.0))


def _at_size(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps on a finer grid with the same mean over places: each cell's value for all the cells that it covers."""
    fine = F.interpolate(maps, size=tuple(size), mode="nearest")
    # Where the grids do not divide, some cells are copied more often than others: the mean is put right.
    return fine + (maps.mean(dim=(2, 3), keepdim=True) - fine.mean(dim=(2, 3), keepdim=True))
