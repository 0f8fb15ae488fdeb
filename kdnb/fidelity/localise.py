"""Does a map point at what is truly there? Maps against masks, where the truth is known.

G is the true mask, ``|G|`` its number of pixels, HW the image's; a map's values are shifted so that its least is zero.
A mask that is empty or covers everything leaves every metric undefined: NaN, counted, never a hit.
"""

import numpy as np
from scipy.stats import rankdata


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """1 if the map's largest value lies in G (Zhang et al. 2018). Chance: ``|G|/HW``.

    Args:
        maps: ``(N, H, W)``.
        masks: ``(N, H, W)`` bool, G.

    Returns:
        ``(N,)``; where several pixels share the largest value, the share of them in G.

    Example:
        >>> pointing_game(np.array([[[0.2, 0.9], [0.1, 0.0]]]), np.array([[[False, True], [False, False]]])).tolist()
        [1.0]
    """
    highest = maps == maps.max(axis=(1, 2), keepdims=True)
    return _defined((highest & masks).sum(axis=(1, 2)) / highest.sum(axis=(1, 2)), masks)


def mass_ratio(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """``(sum of the map in G / sum of the map) / (|G| / HW)``: 1 is chance, the most is ``HW/|G|``.

    Args:
        maps: ``(N, H, W)``, shifted so that the least value is zero.
        masks: ``(N, H, W)`` bool, G.

    Returns:
        ``(N,)``; a constant map scores 1.

    Example:
        >>> mass_ratio(np.array([[[1.0, 4.0], [1.0, 2.0]]]), np.array([[[False, True], [False, False]]])).tolist()
        [3.0]
    """
    shifted = maps - maps.min(axis=(1, 2), keepdims=True)
    shifted = np.where(shifted.max(axis=(1, 2), keepdims=True) > 0, shifted, 1.0)
    inside = (shifted * masks).sum(axis=(1, 2)) / shifted.sum(axis=(1, 2))
    return _defined(inside / np.maximum(masks.mean(axis=(1, 2)), 1e-12), masks)


def rank_accuracy(ranks: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the ``|G|`` most relevant pixels that lie in G (Arras et al. 2022). Chance: ``|G|/HW``.

    Args:
        ranks: ``(N, H, W)``, :func:`kdnb.fidelity.perturb.relevance_rank` of the maps.
        masks: ``(N, H, W)`` bool, G.

    Returns:
        ``(N,)``.
    """
    area = masks.sum(axis=(1, 2))
    top = ranks * masks[0].size < area[:, None, None] - 0.5  # ranks are k / HW; half a pixel keeps rounding away
    return _defined((top & masks).sum(axis=(1, 2)) / np.maximum(area, 1), masks)


def pixel_auc(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of the map's values as a score for "in G", ties counted half. Chance: 1/2.

    It is the probability that a pixel in G has a larger value than one outside, by the sum of ranks (Mann and Whitney).

    Args:
        maps: ``(N, H, W)``.
        masks: ``(N, H, W)`` bool, G.

    Returns:
        ``(N,)``.

    Example:
        >>> pixel_auc(np.array([[[0.2, 0.9], [0.5, 0.3]]]), np.array([[[False, True], [False, True]]])).tolist()
        [0.75]
    """
    ranks = rankdata(maps.reshape(len(maps), -1), axis=1)
    inside = masks.reshape(len(masks), -1)
    positive = inside.sum(axis=1)
    negative = inside.shape[1] - positive
    above = (ranks * inside).sum(axis=1) - positive * (positive + 1) / 2
    return _defined(above / np.maximum(positive * negative, 1), masks)


def localisation(maps: np.ndarray, ranks: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """All four metrics of maps against masks.

    Args:
        maps: ``(N, H, W)``.
        ranks: ``(N, H, W)``, :func:`kdnb.fidelity.perturb.relevance_rank` of the maps.
        masks: ``(N, H, W)`` bool.

    Returns:
        metric -> ``(N,)``, NaN where undefined.
    """
    return {
        "pointing_game": pointing_game(maps, masks),
        "mass_ratio": mass_ratio(maps, masks),
        "rank_accuracy": rank_accuracy(ranks, masks),
        "pixel_auc": pixel_auc(maps, masks),
    }


def _defined(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """``values`` ``(N,)``, NaN where a mask is empty or covers everything."""
    share = masks.mean(axis=(1, 2))
    return np.where((share > 0) & (share < 1), values, np.nan)
