"""F-Fidelity (Zheng et al., ICLR 2025, arXiv 2410.02970): the judge is a network that has seen images with holes.

Whoever removes pixels asks the network about pictures it has never seen, and its answer mixes what was removed with how
strange the rest looks. So a copy of the network is fine-tuned on images with random holes, without any map, and judges
in its place; and of what a map calls relevant only a random part is removed, so that the judge never sees more holes
than it has learned from.
"""

import copy
from dataclasses import replace
from typing import cast

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
# Holes are squares, a sixteenth of the image's width: a network looks through the gaps between single pixels.
CELLS = 16


def holes(count: int, height: int, width: int, share: Tensor, draw: torch.Generator) -> Tensor:
    """Random squares on a grid of :data:`CELLS` x :data:`CELLS`, each missing with probability ``share``.

    Args:
        count: N.
        height: H.
        width: W.
        share: ``(N,)`` in [0, 1], on the CPU.
        draw: what the squares are drawn from.

    Returns:
        ``(N, H, W)`` bool on the CPU.
    """
    cells = torch.rand(count, 1, CELLS, CELLS, generator=draw)
    return F.interpolate(cells, size=(height, width), mode="nearest")[:, 0] < share[:, None, None]


def holed(images: Tensor, missing: Tensor) -> Tensor:
    """``images`` ``(N, 3, H, W)`` with their own mean colour where ``missing`` ``(N, H, W)``."""
    return torch.where(missing[:, None], mean_colour(images), images)


def holed_judge(model: nn.Module, train: Examples, validation: Examples, recipe: Recipe, seed: int = 0) -> nn.Module:
    """A copy of ``model``, fine-tuned on images with random holes to say what ``model`` says of the whole images.

    The original teaches the labels; here the judge shall speak for this network, its errors included, so it learns the
    network's own probabilities. Between none and :data:`MOST` of an image is missing.

    Args:
        model: which the judge speaks for; it is left in evaluation mode.
        train: images to learn from; their labels measure progress and teach nothing.
        validation: the same of images to measure progress by.
        recipe: how it is fine-tuned; one view of each image.
        seed: of the holes and the order of the images.

    Returns:
        the judge, in evaluation mode.
    """
    one_view = replace(recipe, views=1)
    model_logits = teacher_bank(model, train.images, views=1)
    draw = torch.Generator().manual_seed(seed)
    count, height, width, _ = train.images.shape
    missing = holes(count, height, width, MOST * torch.rand(count, generator=draw), draw)
    holed_images = np.array(train.images)
    for image, image_holes in zip(holed_images, missing.numpy(), strict=True):
        image[image_holes] = image.mean(axis=(0, 1)).round()
    judge = copy.deepcopy(model)
    fit(
        judge,
        Examples(holed_images, train.labels),
        validation,
        one_view,
        lambda logits, taught, _: F.cross_entropy(logits, cast("Tensor", taught).softmax(dim=1)),
        seed=seed,
        bank=model_logits,
        what="Fine-tuning the judge",
    )
    return judge


def stays(model: nn.Module, images: Tensor, targets: Tensor, seed: int = 1) -> float:
    """The share of images that ``model`` reads as before with a quarter of them missing at random.

    Args:
        model: in evaluation mode.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, the classes that count as before.
        seed: of the holes.

    Returns:
        from 0 to 1.
    """
    count, _, height, width = images.shape
    missing = holes(count, height, width, torch.full((count,), MOST / 2), torch.Generator().manual_seed(seed)).to(
        images.device
    )
    return float((probabilities(model, holed(images, missing)).argmax(dim=1) == targets).float().mean())


def f_fidelity(judge: nn.Module, images: Tensor, targets: Tensor, rank: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """``ffid_plus`` (higher is better) and ``ffid_minus`` (lower is better), after FFid+ and FFid- of F-Fidelity.

    With p the judge's probability of the target, and a random half of the squares removed (the same for every map) of
    what the map ranks in the first share s of the area, ``ffid_plus = mean over s of p(x) - p(x without it)``;
    ``ffid_minus`` is the same for the rest of the area. The paper counts hits, here it is their probability.

    Args:
        judge: of :func:`holed_judge`.
        images: ``(N, 3, H, W)`` float32 in [0, 1], x.
        targets: ``(N,)``, class indices.
        rank: ``(N, H, W)``, of :func:`kdnb.fidelity.relevance_rank`.
        seed: of the squares.

    Returns:
        ``ffid_plus`` and ``ffid_minus``, ``(N,)`` each.
    """
    count, _, height, width = images.shape
    drawn = holes(count, height, width, torch.full((count,), REMOVED), torch.Generator().manual_seed(seed)).to(
        images.device
    )
    unholed = probabilities(judge, images).gather(1, targets[:, None])[:, 0]

    def without(missing: Tensor) -> Tensor:
        return probabilities(judge, holed(images, missing)).gather(1, targets[:, None])[:, 0]

    relevant = [without(drawn & (rank < share)) for share in SHARES]
    rest = [without(drawn & (rank >= share)) for share in SHARES]
    return {
        "ffid_plus": unholed - torch.stack(relevant).mean(dim=0),
        "ffid_minus": unholed - torch.stack(rest).mean(dim=0),
    }
