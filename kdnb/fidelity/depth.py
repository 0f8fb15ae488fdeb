"""Explanations of volumes judged: by true masks in three dimensions and by depth alone, and by the network itself."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdnb.explain.volumes import blurred
from kdnb.fidelity.localise import localisation, pixel_auc, pointing_game
from kdnb.fidelity.perturb import SHARES, area_under, of_target, probabilities, relevance_rank
from kdnb.fidelity.tables import Sample, long_rows

TRUTH = ("pointing_game", "rank_accuracy", "pixel_auc")  # of all voxels
DEPTH = ("slice_pointing", "slice_auc")  # of the slices alone
FAITHFULNESS = {"insertion_blur": 1, "deletion_blur": -1}  # +1 where more is better


_Array = TypeVar("_Array", np.ndarray, Tensor)


def flat(volumes: _Array) -> _Array:
    """``(N, D, H, W)`` as images of D times H rows, for measures to which places are all alike."""
    return volumes.reshape(len(volumes), -1, volumes.shape[-1])


def rank_of(maps: Tensor) -> Tensor:
    """The share of the volume that is more relevant than each voxel; ties are broken at random.

    Args:
        maps: ``(N, D, H, W)``.

    Returns:
        ``(N, D, H, W)`` in [0, 1), as :func:`kdnb.fidelity.relevance_rank`.
    """
    return relevance_rank(flat(maps)).view_as(maps)


def by_slice(maps: np.ndarray) -> np.ndarray:
    """How much of a map lies in each slice: sums of its values above the least one, as shares of all.

    Args:
        maps: ``(N, D, H, W)``.

    Returns:
        ``(N, D)`` float64, which sum to 1; ``1/D`` each for a constant map.

    Example:
        >>> by_slice(np.array([[[[0.0, 1.0]], [[1.0, 2.0]]]])).tolist()
        [[0.25, 0.75]]
    """
    shifted = maps - maps.min(axis=(1, 2, 3), keepdims=True)
    mass = shifted.sum(axis=(2, 3), dtype=np.float64)
    total = mass.sum(axis=1, keepdims=True)
    return np.where(total > 0, mass / np.where(total > 0, total, 1), 1 / maps.shape[1])


def truth(maps: np.ndarray, ranks: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Maps against the lesion's mask.

    :data:`TRUTH` are those of images over all voxels. ``slice_pointing`` is 1 if the slice of most mass holds some of
    the lesion (chance: the share of such slices), ``slice_auc`` the probability that a slice of the lesion has more
    mass than another (chance: 1/2), and ``hidden`` the share of the lesion outside the one slice of most mass: what is
    not seen where only that is shown.

    Args:
        maps: ``(N, D, H, W)``.
        ranks: ``(N, D, H, W)``, of :func:`rank_of`.
        masks: ``(N, D, H, W)`` bool.

    Returns:
        metric -> ``(N,)``, NaN without a lesion.
    """
    values = {
        name: metric for name, metric in localisation(flat(maps), flat(ranks), flat(masks)).items() if name in TRUTH
    }
    mass, has_lesion = by_slice(maps)[:, :, None], cast("np.ndarray", masks.any(axis=(2, 3)))[:, :, None]
    values |= {"slice_pointing": pointing_game(mass, has_lesion), "slice_auc": pixel_auc(mass, has_lesion)}
    area = masks.sum(axis=(2, 3))
    shown = area[np.arange(len(area)), mass[:, :, 0].argmax(axis=1)]
    total = area.sum(axis=1)
    return values | {"hidden": np.where(total > 0, 1 - shown / np.maximum(total, 1), np.nan)}


class Ends(NamedTuple):
    """Where insertion and deletion begin and end, the same for every map.

    Attributes:
        empty: the blurred volumes, ``(N, D, H, W)``.
        nothing: what the network says of these, ``(N, C)`` probabilities.
        whole: what it says of the volumes themselves, ``(N, C)``.
    """

    empty: Tensor
    nothing: Tensor
    whole: Tensor


def ends_of(model: nn.Module, volumes: Tensor) -> Ends:
    """Blur the volumes and ask the network of both."""
    empty = blurred(volumes)
    return Ends(empty, probabilities(model, empty), probabilities(model, volumes))


@torch.no_grad()
def faithfulness(model: nn.Module, volumes: Tensor, targets: Tensor, ranks: Tensor, ends: Ends) -> dict[str, Tensor]:
    """Insertion and deletion (Petsiuk et al. 2018) of voxels, the most relevant first, in front of the blurred volume.

    ROAD, the third family in the plane, is not asked. Its imputation is defined for the eight neighbours of a pixel;
    slices lie farther apart than pixels, so that voxels across them would need weights that nobody has given, and slice
    by slice a map that takes whole slices away leaves nothing to impute from.

    Args:
        model: in evaluation mode.
        volumes: ``(N, D, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, the classes that the model predicts.
        ranks: ``(N, D, H, W)``, of :func:`rank_of`.
        ends: of :func:`ends_of` for this model and these volumes.

    Returns:
        ``insertion_blur`` and ``deletion_blur``, ``(N,)`` each.
    """
    values = {}
    for name, front, back, first, last in (
        ("insertion_blur", volumes, ends.empty, ends.nothing, ends.whole),
        ("deletion_blur", ends.empty, volumes, ends.whole, ends.nothing),
    ):
        between = [probabilities(model, torch.where(ranks < share, front, back)) for share in SHARES[1:-1]]
        values[name] = area_under(of_target(torch.stack([first, *between, last], dim=1), targets))
    return values


def rows(
    model: nn.Module,
    name: str,
    sample: Sample,
    maps: dict[str, Tensor],
    faithful: Sequence[str] = (),
    ends: Ends | None = None,
) -> pd.DataFrame:
    """Every map judged: rows as of ``fidelity.csv`` and ``localisation.csv``, ``image_id`` naming the volume.

    Args:
        model: whose answers judge the maps, in evaluation mode.
        name: of the model.
        sample: the volumes that were explained.
        maps: method -> ``(N, D, H, W)``.
        faithful: methods whose faithfulness is asked, too; it costs 12 passes a volume and map.
        ends: of :func:`ends_of` for this model and sample, where somebody has them.

    Returns:
        the columns of :func:`kdnb.fidelity.long_rows`.
    """
    tables = []
    for method, method_maps in maps.items():
        ranks = rank_of(method_maps)
        values: dict[str, np.ndarray] = {}
        if sample.masks is not None:
            values |= truth(method_maps.cpu().numpy(), ranks.cpu().numpy(), sample.masks)
        if method in faithful:
            ends = ends or ends_of(model, sample.images)
            faithfulness_values = faithfulness(model, sample.images, sample.targets, ranks, ends)
            values |= {metric: value.cpu().numpy() for metric, value in faithfulness_values.items()}
        tables.append(long_rows(sample, name, method, pd.DataFrame(values, index=range(len(sample)))))
    return pd.concat(tables, ignore_index=True)
