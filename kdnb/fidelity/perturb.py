"""Does the prediction follow the pixels that a map calls relevant? They are removed or kept, and the model asked again.

Throughout, p(x) is the softmax probability of the target class (the class the model predicts for the whole image), and
r(i) in [0, 1) is the share of the image's area that a map calls more relevant than pixel i, ties broken at random. A
map is thus judged by the order of its pixels alone; a constant map is a random order.
"""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.device import drawing_from
from kdnb.explain import Method, blurred, rescaled

# Shares of the area that are kept, for the agreement: nothing, and less or little more than a lesion has.
LITTLE = (0.0, 0.05, 0.1)
KEPT_SHARES = (*LITTLE, 0.2, 0.3)
SHARES = (*KEPT_SHARES, 0.5, 0.75, 1.0)  # where the deletion and insertion curves are read
ROAD_SHARES = (0.25, 0.5, 0.75)
ROAD_NOISE = 0.01
ROAD_KEPT = 0.1  # the one share of the agreement over imputed images, which cost more than all else here
SMOOTHING_SWEEPS = 16
INFIDELITY_SQUARES = 100
SENSITIVITY_RADIUS = 0.02
SENSITIVITY_SAMPLES = 4


def relevance_rank(maps: Tensor, seed: int = 0) -> Tensor:
    """r: the share of the area that is more relevant than each pixel; ties are broken at random.

    Args:
        maps: ``(N, H, W)``, the larger the more relevant.
        seed: of the order of equal pixels, the same for every map.

    Returns:
        ``(N, H, W)`` float32 in [0, 1): 0 for the most relevant pixel, then in steps of ``1 / (H W)``.

    Example:
        >>> relevance_rank(torch.tensor([[[0.1, 0.7], [0.3, 0.2]]])).tolist()
        [[[0.75, 0.0], [0.25, 0.5]]]
    """
    count, height, width = maps.shape
    shuffled = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed)).to(maps.device)
    order = shuffled[maps.flatten(1)[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    shares = torch.arange(height * width, device=maps.device, dtype=torch.float32) / (height * width)
    return (
        torch.empty(count, height * width, device=maps.device)
        .scatter_(1, order, shares.expand(count, -1))
        .view_as(maps)
    )


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor, batch_size: int = 128) -> Tensor:
    """Softmax of the logits of ``(N, 3, H, W)``, batch by batch: ``(N, C)``."""
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.cat([model(batch) for batch in images.split(batch_size)]).softmax(dim=1)


def mean_colour(images: Tensor) -> Tensor:
    """Every pixel the image's own mean colour. Black, which an image may well contain, would not be "nothing"."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {"blur": blurred, "mean": mean_colour}


def composites(front: Tensor, back: Tensor, rank: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Images with the most relevant share of their area from ``front`` and the rest from ``back``.

    Args:
        front: ``(N, 3, H, W)``.
        back: ``(N, 3, H, W)``.
        rank: ``(N, H, W)`` (:func:`relevance_rank`).
        shares: S shares in [0, 1].

    Returns:
        ``(N, S, 3, H, W)``.
    """
    chosen = torch.stack([rank < share for share in shares], dim=1)[:, :, None]
    return torch.where(chosen, front[:, None], back[:, None])


def kept_over_fills(images: Tensor, rank: Tensor, shares: tuple[float, ...] = SHARES) -> dict[str, Tensor]:
    """What a model is shown to judge a map: the most relevant share of each image over each of the three fills.

    Insertion and the agreement over the blur and the mean colour ask of the very same images
    (:func:`deletion_insertion`), the agreement over imputed pixels too (:func:`road`).

    Args:
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        rank: ``(N, H, W)`` (:func:`relevance_rank`).
        shares: S shares in [0, 1]. With nothing kept there is nothing to impute from, and every pixel is the mean
            colour.

    Returns:
        ``blur``, ``mean`` and ``imputed``, ``(N, S, 3, H, W)`` each.
    """
    kept = {name: composites(images, fill(images), rank, shares) for name, fill in BASELINES.items()}
    filled = [imputed(images, rank >= share) if share > 0 else mean_colour(images) for share in shares]
    return kept | {"imputed": torch.stack(filled, dim=1)}


def curves(model: nn.Module, front: Tensor, back: Tensor, rank: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """Probabilities along :data:`SHARES` as pixels of ``front`` take the place of ``back``, most relevant first.

    Args:
        model: in evaluation mode.
        front: ``(N, 3, H, W)``, the images whose pixels come.
        back: ``(N, 3, H, W)``, those whose pixels go.
        rank: ``(N, H, W)`` (:func:`relevance_rank`).
        ends: the probabilities of ``back`` and of ``front`` themselves, ``(N, C)`` each, which every map shares.

    Returns:
        ``(N, S, C)``.
    """
    images = composites(front, back, rank, SHARES[1:-1])
    between = probabilities(model, images.flatten(0, 1)).view(len(front), len(SHARES) - 2, -1)
    return torch.cat([ends[0][:, None], between, ends[1][:, None]], dim=1)


def area_under(values: Tensor, shares: tuple[float, ...] = SHARES) -> Tensor:
    """Area under values read at ``shares``, by trapezoids.

    Args:
        values: ``(N, S)``.
        shares: S of them, rising.

    Returns:
        ``(N,)``.

    Example:
        >>> area_under(torch.tensor([[0.0, 1.0, 1.0]]), (0.0, 0.5, 1.0)).tolist()
        [0.75]
    """
    return torch.trapezoid(values, torch.tensor(shares, device=values.device), dim=1)


def of_target(values: Tensor, targets: Tensor) -> Tensor:
    """``(N, S, C)`` -> ``(N, S)``: the target's probability."""
    return values.gather(2, targets[:, None, None].expand(-1, values.shape[1], 1))[..., 0]


def deletion_insertion(
    model: nn.Module, images: Tensor, targets: Tensor, rank: Tensor, baselines: Sequence[str] = tuple(BASELINES)
) -> dict[str, Tensor]:
    """Deletion and insertion (Petsiuk et al. 2018) and the agreement when little is kept.

    With b the baseline (a blur, or the mean colour) and x_q the image whose most relevant share q of the area is

    - taken from b: ``deletion_b = integral over q of p(x_q)``, lower is better;
    - kept, while the rest is b: ``insertion_b = integral over q of p(x_q)``, higher is better, and the agreement
      (:func:`agreement`): under the blur for q = 0, 5, 10, 20, 30%, under the mean colour for 0, 5, 10%.

    The integrals are read at :data:`SHARES`.

    Args:
        model: in evaluation mode.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, the classes that the model predicts.
        rank: ``(N, H, W)``, r (:func:`relevance_rank`).
        baselines: names in :data:`BASELINES`.

    Returns:
        metric -> ``(N,)``.
    """
    values, image_probabilities = {}, probabilities(model, images)
    for name in baselines:
        baseline = BASELINES[name](images)
        baseline_probabilities = probabilities(model, baseline)
        inserted = curves(model, images, baseline, rank, (baseline_probabilities, image_probabilities))
        deleted = curves(model, baseline, images, rank, (image_probabilities, baseline_probabilities))
        values[f"insertion_{name}"] = area_under(of_target(inserted, targets))
        values[f"deletion_{name}"] = area_under(of_target(deleted, targets))
        values |= agreement(inserted.argmax(dim=2), targets, KEPT_SHARES if name == "blur" else LITTLE, name)
    return values


def agreement(predicted: Tensor, targets: Tensor, shares: tuple[float, ...], fill: str) -> dict[str, Tensor]:
    """Does the prediction stay when little is kept? ``agreement_q = 1 if argmax f(x_q) = argmax f(x) else 0``.

    A network calls an emptied image something, too, and where that is the prediction itself every map keeps it. So
    ``recovered_q``, for q up to 10%, is the same of those images only whose prediction is another with nothing kept,
    and NaN for the others: 0 at q = 0.

    Args:
        predicted: ``(N, >= S)``, the predicted classes with the ``shares``, S of them, kept; the first is 0.
        targets: ``(N,)``, the classes that are predicted for the images themselves.
        shares: of the area that are kept, rising from 0.
        fill: what the rest is filled with, the end of the names; the blur's have none.

    Returns:
        ``agreement_q`` and ``recovered_q``, q in per cent with two digits, ``(N,)`` each.
    """
    suffix = "" if fill == "blur" else f"_{fill}"
    lost = predicted[:, 0] != targets
    values = {}
    for share, classes in zip(shares, predicted.T, strict=False):
        kept, name = (classes == targets).float(), f"{round(100 * share):02d}{suffix}"
        values[f"agreement_{name}"] = kept
        if share <= LITTLE[-1]:
            values[f"recovered_{name}"] = kept.where(lost, torch.nan)
    return values


def little_kept(model: nn.Module, images: Tensor, targets: Tensor, rank: Tensor) -> dict[str, Tensor]:
    """:func:`agreement` with the top 10% kept over the blur and over the mean colour, and nothing else.

    Args:
        model: in evaluation mode.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, the classes that the model predicts.
        rank: ``(N, H, W)``, r (:func:`relevance_rank`).

    Returns:
        metric -> ``(N,)``, for 0 and 10%.
    """
    values: dict[str, Tensor] = {}
    shares = (0.0, LITTLE[-1])
    for name, fill in BASELINES.items():
        shown = composites(images, fill(images), rank, shares)
        predicted = probabilities(model, shown.flatten(0, 1)).argmax(dim=1).view(len(images), len(shares))
        values |= agreement(predicted, targets, shares, name)
    return values


# -- ROAD -------------------------------------------------------------------------------------------------------------


def imputed(images: Tensor, missing: Tensor, seed: int = 0) -> Tensor:
    """Fill missing pixels so that each is the weighted mean of its eight neighbours, plus a little noise.

    Noisy linear imputation (Rong et al. 2022): weights 1/6 beside and 1/12 across corners. The linear system is solved
    from coarse to fine: filled from a half-size copy, then smoothed :data:`SMOOTHING_SWEEPS` times; a test bounds the
    distance from the exact solution.

    Args:
        images: ``(N, 3, H, W)`` float32.
        missing: ``(N, H, W)`` bool.
        seed: of the noise, whose standard deviation is :data:`ROAD_NOISE`.

    Returns:
        ``(N, 3, H, W)``; pixels that are not missing are those of ``images``.
    """
    known = (~missing[:, None]).to(images.dtype)
    filled = _fill(images * known, known)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    return torch.where(missing[:, None], filled + ROAD_NOISE * noise, images)


def _fill(values: Tensor, known: Tensor) -> Tensor:
    """One level of the pyramid, and all coarser ones: a pixel of the coarser level is the mean of its known ones.

    Args:
        values: ``(N, 3, h, w)``, zero where not known.
        known: ``(N, 1, h, w)``, 1 or 0.

    Returns:
        ``(N, 3, h, w)``, filled.
    """
    if min(values.shape[-2:]) > 2:
        weight = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
        mean = F.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False) / weight.clamp_min(1e-6)
        coarse = _fill(mean, (weight > 0).to(values.dtype))
        guess = F.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    else:
        guess = (values.sum(dim=(2, 3), keepdim=True) / known.sum(dim=(2, 3), keepdim=True).clamp_min(1)).expand_as(
            values
        )
    filled = torch.where(known.bool(), values, guess)
    share = (1 - known) / _neighbours(torch.ones_like(known[:1]))  # nothing of its neighbours for a known pixel
    for _ in range(SMOOTHING_SWEEPS):
        filled = torch.addcmul(values, share, _neighbours(filled))
    return filled


def _neighbours(values: Tensor) -> Tensor:
    """Weighted mean of the eight neighbours, 1/6 beside and 1/12 across corners; beyond the border there is nothing."""
    weights = (
        torch.tensor([[1.0, 2.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 1.0]], device=values.device, dtype=values.dtype) / 12
    )
    channels = values.shape[1]
    # Channels last in memory: on a CPU several times as fast.
    channels_last = values.contiguous(memory_format=torch.channels_last)
    return F.conv2d(channels_last, weights.expand(channels, 1, 3, 3), padding=1, groups=channels)


def removed(model: nn.Module, images: Tensor, targets: Tensor, order: Tensor) -> Tensor:
    """The mean of p over the shares 25, 50, 75% of pixels imputed (:func:`imputed`).

    Args:
        model: in evaluation mode.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, the classes that the model predicts.
        order: ``(N, H, W)`` in [0, 1]; pixels with the lowest go first.

    Returns:
        ``(N,)``.
    """
    missing = torch.stack([order < share for share in ROAD_SHARES], dim=1).flatten(0, 1)
    filled = imputed(images.repeat_interleave(len(ROAD_SHARES), dim=0), missing)
    filled_probabilities = probabilities(model, filled).view(len(images), len(ROAD_SHARES), -1)
    return of_target(filled_probabilities, targets).mean(dim=1)


def road(model: nn.Module, images: Tensor, targets: Tensor, rank: Tensor) -> dict[str, Tensor]:
    """ROAD, remove and debias (Rong et al. 2022): pixels replaced by imputation (:func:`removed`).

    ``road_most_first`` replaces the most relevant pixels first (lower is better), ``road_least_first`` the least
    relevant (higher is better). Imputed pixels blend in, so that the outline of what was removed says less than a flat
    patch would. ``agreement_q_road`` and ``recovered_q_road`` are :func:`agreement` with all but the top 10% imputed;
    with nothing kept there is nothing to impute from, and every pixel is the mean colour.

    Args:
        model: in evaluation mode.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, the classes that the model predicts.
        rank: ``(N, H, W)``, r (:func:`relevance_rank`).

    Returns:
        metric -> ``(N,)``.
    """
    values = {
        "road_most_first": removed(model, images, targets, rank),
        "road_least_first": removed(model, images, targets, 1 - rank),
    }
    top_kept = imputed(images, rank >= ROAD_KEPT)
    predicted = torch.stack(
        [probabilities(model, shown).argmax(dim=1) for shown in (mean_colour(images), top_kept)], dim=1
    )
    return values | agreement(predicted, targets, (0.0, ROAD_KEPT), "road")


# -- soft mask, infidelity, sensitivity -------------------------------------------------------------------------------


def drop_increase(model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor) -> dict[str, Tensor]:
    """Average drop and increase (Chattopadhyay et al. 2018) with E = image times the map rescaled to [0, 1].

    ``average_drop = max(0, p(x) - p(E)) / p(x)`` (lower is better), ``average_increase = 1 if p(E) > p(x) else 0``. The
    mask is soft, so a map close to 1 everywhere scores almost perfectly: read it beside the uniform map, whose E is the
    image itself.

    Args:
        model: in evaluation mode.
        images: ``(N, 3, H, W)`` float32 in [0, 1], x.
        targets: ``(N,)``, the classes that the model predicts.
        maps: ``(N, H, W)``.

    Returns:
        ``average_drop`` and ``average_increase``, ``(N,)`` each.
    """
    flat = maps.flatten(1)
    constant = (flat.amax(dim=1) == flat.amin(dim=1))[:, None, None]
    mask = torch.where(constant, torch.ones_like(maps), rescaled(maps))
    unmasked = probabilities(model, images).gather(1, targets[:, None])[:, 0]
    masked = probabilities(model, images * mask[:, None]).gather(1, targets[:, None])[:, 0]
    return {
        "average_drop": (unmasked - masked).clamp_min(0) / unmasked,
        "average_increase": (masked > unmasked).float(),
    }


def square_changes(model: nn.Module, images: Tensor, targets: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What each of a hundred random squares is worth: the fall of the target's logit when the square is blurred.

    The squares are a quarter of the image wide. All maps of the images are judged by the same ones
    (:func:`infidelity`).

    Args:
        model: in evaluation mode; f is its logit of the target.
        images: ``(N, 3, H, W)`` float32 in [0, 1], x.
        targets: ``(N,)``, the classes that the model predicts.
        seed: of the squares.

    Returns:
        the squares' upper left corners (row, column), ``(N, 100, 2)``, and ``f(x) - f(x with the square blurred)``,
        ``(N, 100)``.
    """
    height, width = images.shape[-2:]
    side, blur = width // 4, blurred(images)
    draw = torch.Generator().manual_seed(seed)
    corners = torch.stack(
        [
            torch.randint(0, size - side + 1, (len(images), INFIDELITY_SQUARES), generator=draw)
            for size in (height, width)
        ],
        dim=2,
    ).to(images.device)
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    changes, image_logits = [], _logit(model, images, targets)
    for corner in corners.unbind(dim=1):
        down, across = rows - corner[:, :1], columns - corner[:, 1:]
        inside = ((down >= 0) & (down < side))[:, None, :, None] & ((across >= 0) & (across < side))[:, None, None, :]
        changes.append(image_logits - _logit(model, torch.where(inside, blur, images), targets))
    return corners, torch.stack(changes, dim=1)


@torch.no_grad()
def _logit(model: nn.Module, images: Tensor, targets: Tensor, batch_size: int = 128) -> Tensor:
    """The target's logit of ``(N, 3, H, W)``, batch by batch: ``(N,)``."""
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.cat([model(batch) for batch in images.split(batch_size)]).gather(1, targets[:, None])[:, 0]


def infidelity(maps: Tensor, corners: Tensor, changes: Tensor) -> Tensor:
    """Normalised infidelity (Yeh et al. 2019; captum): ``E_M[(b M.phi - (f(x) - f(x_M)))^2]``, lower is better.

    M is a random square, 1 inside and 0 outside, x_M the image with that square blurred, f the target's logit, phi the
    map, and b the best factor, so that a map need not be in units of the logit. The maps say how much a pixel adds, not
    how fast the logit changes with it: what they promise for a square is their sum in it, without another factor for
    how much the blur changes there.

    Args:
        maps: ``(N, H, W)``, phi.
        corners: the squares M, ``(N, 100, 2)``, of :func:`square_changes`.
        changes: ``f(x) - f(x_M)``, ``(N, 100)``, of the same.

    Returns:
        ``(N,)``, in units of the logit squared.
    """
    sums = F.avg_pool2d(maps[:, None], maps.shape[-1] // 4, stride=1)[:, 0]  # means; the factor b takes the area
    promised = sums.flatten(1).gather(1, corners[..., 0] * sums.shape[-1] + corners[..., 1])
    power = promised.square().mean(dim=1, keepdim=True)
    best = (promised * changes).mean(dim=1, keepdim=True) / torch.where(power > 0, power, torch.ones_like(power))
    return (best * promised - changes).square().mean(dim=1)


def sensitivity_max(model: nn.Module, images: Tensor, targets: Tensor, method: Method, seed: int = 0) -> Tensor:
    """Largest relative change of the map under small noise: ``max_d |phi(x + d) - phi(x)| / |phi(x)|``.

    That is Yeh et al. (2019), captum's. d is uniform in [-0.02, 0.02] a pixel, four draws; lower is steadier. A map
    that ignores the image scores 0: steadiness alone is no merit.

    Args:
        model: which is explained.
        images: ``(N, 3, H, W)`` float32 in [0, 1], x.
        targets: ``(N,)``, the classes that the model predicts.
        method: what makes the map phi.
        seed: of the noise.

    Returns:
        ``(N,)``.
    """
    from captum.metrics import sensitivity_max as captum_sensitivity

    def explain(inputs: Tensor | tuple[Tensor]) -> Tensor | tuple[Tensor]:
        # captum passes the whole images as a tuple and wants one back, the perturbed ones as a tensor
        if isinstance(inputs, tuple):
            return (cast("Tensor", explain(inputs[0])),)
        return method(model, inputs, targets.repeat_interleave(len(inputs) // len(targets)))

    with drawing_from(seed):
        sensitivity = captum_sensitivity(
            explain,
            images,
            perturb_func=_shaken,
            perturb_radius=SENSITIVITY_RADIUS,
            n_perturb_samples=SENSITIVITY_SAMPLES,
        )
    return sensitivity.detach()


def _shaken(inputs: Tensor, radius: float) -> Tensor:
    """``inputs`` plus uniform noise in [-radius, radius]; a batch in, a batch out: captum's own works on tuples."""
    return inputs + radius * (2 * torch.rand(inputs.shape).to(inputs.device) - 1)


def teacher_student_agreement(student_logits: np.ndarray, teacher_logits: np.ndarray) -> np.ndarray:
    """1 where student and teacher predict the same class, else 0: "fidelity" in the sense of Stanton et al. (2021).

    Args:
        student_logits: ``(N, C)``.
        teacher_logits: ``(N, C)``.

    Returns:
        ``(N,)`` float64.

    Example:
        >>> teacher_student_agreement(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([[0.1, 0.0], [1.0, 0.5]])).tolist()
        [1.0, 0.0]
    """
    return (student_logits.argmax(axis=1) == teacher_logits.argmax(axis=1)).astype(float)
