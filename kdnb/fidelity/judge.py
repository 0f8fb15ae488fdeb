"""F-Fidelity (Zheng et al., ICLR 2025, arXiv 2410.02970): faithfulness judged by a network to which images with holes are not foreign.

Whoever removes pixels asks the network about pictures it has never seen, and its answer mixes what was removed with how strange the rest
looks. So a copy of the network is fine-tuned on images with random holes, without any map, and judges in its place; and of what a map calls
relevant only a random part is removed, so that the judge never sees more holes than it has learned from.
"""

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.fidelity.perturb import mean_colour, probabilities
from kdnb.training import Examples, Recipe, fit
from kdnb.views import teacher_bank

MOST = 0.5  # beta: the largest share of an image that is missing while the judge learns
REMOVED = 0.5  # alpha: the share that is removed of the part that is asked about, at most MOST of the whole image
SHARES = (0.1, 0.2, 0.3)  # of the area: what counts as the explanation
CELLS = (
    16  # holes are squares, a sixteenth of the image's width: a network looks through the gaps between single pixels
)


def holes(count: int, height: int, width: int, share: Tensor, draw: torch.Generator) -> Tensor:
    """Random squares, each missing with probability ``share`` ``(N,)``: ``(N, H, W)`` bool on the CPU."""
    cells = torch.rand(count, 1, CELLS, CELLS, generator=draw)
    return F.interpolate(cells, size=(height, width), mode="nearest")[:, 0] < share[:, None, None]


def holed(images: Tensor, missing: Tensor) -> Tensor:
    """``images`` ``(N, 3, H, W)`` with their own mean colour where ``missing`` ``(N, H, W)``."""
    return torch.where(missing[:, None], mean_colour(images), images)


def holed_judge(model: nn.Module, train: Examples, validation: Examples, recipe: Recipe, seed: int = 0) -> nn.Module:
    """A copy of ``model``, fine-tuned on images with random holes to say what ``model`` says of the whole images.

    The original teaches the labels; here the judge shall speak for this network, its errors included, so it learns the network's own
    probabilities. Between none and :data:`MOST` of an image is missing.

    Args:
        train, validation: images; their labels measure progress and teach nothing.
        recipe: how it is fine-tuned; one view of each image.
    """
    once = replace(recipe, views=1)
    said = teacher_bank(model, train.images, views=1)
    draw = torch.Generator().manual_seed(seed)
    count, height, width, _ = train.images.shape
    missing = holes(count, height, width, MOST * torch.rand(count, generator=draw), draw)
    pictures = np.array(train.images)
    for image, gone in zip(pictures, missing.numpy(), strict=True):
        image[gone] = image.mean(axis=(0, 1)).round()
    judge = copy.deepcopy(model)
    fit(
        judge,
        Examples(pictures, train.labels),
        validation,
        once,
        lambda logits, whole, _: F.cross_entropy(logits, whole.softmax(dim=1)),
        seed=seed,
        bank=said,
        what="Fine-tuning the judge",
    )
    return judge


def stays(model: nn.Module, images: Tensor, targets: Tensor, seed: int = 1) -> float:
    """The share of images ``(N, 3, H, W)`` of which ``model`` says its target ``(N,)`` with a quarter of them missing at random."""
    count, _, height, width = images.shape
    missing = holes(count, height, width, torch.full((count,), MOST / 2), torch.Generator().manual_seed(seed)).to(
        images.device
    )
    return float((probabilities(model, holed(images, missing)).argmax(dim=1) == targets).float().mean())


def f_fidelity(judge: nn.Module, images: Tensor, targets: Tensor, rank: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """``ffid_plus`` (higher is better) and ``ffid_minus`` (lower is better), ``(N,)`` each, after FFid+ and FFid- of F-Fidelity.

    With p the judge's probability of the target, and a random half of the squares removed (the same for every map) of what the map ranks
    in the first share s of the area, ``ffid_plus = mean over s of p(x) - p(x without it)``; ``ffid_minus`` is the same for the rest of the
    area. The paper counts hits, here it is their probability.

    Args:
        images: ``(N, 3, H, W)``. targets: ``(N,)``. rank: ``(N, H, W)``, of :func:`kdnb.fidelity.relevance_rank`.
    """
    count, _, height, width = images.shape
    drawn = holes(count, height, width, torch.full((count,), REMOVED), torch.Generator().manual_seed(seed)).to(
        images.device
    )
    whole = probabilities(judge, images).gather(1, targets[:, None])[:, 0]

    def without(missing: Tensor) -> Tensor:
        return probabilities(judge, holed(images, missing)).gather(1, targets[:, None])[:, 0]

    relevant = [without(drawn & (rank < share)) for share in SHARES]
    rest = [without(drawn & (rank >= share)) for share in SHARES]
    return {"ffid_plus": whole - torch.stack(relevant).mean(dim=0), "ffid_minus": whole - torch.stack(rest).mean(dim=0)}
