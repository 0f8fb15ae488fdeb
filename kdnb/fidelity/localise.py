"""Does a map point at what is truly there? Maps against masks, where the truth is known.

G is the true mask, |G| its number of pixels, HW the image's; a map's values are shifted so that its least is zero. A mask that
is empty or covers everything leaves every metric undefined: NaN, counted, never a hit.
"""

import numpy as np
from scipy.stats import rankdata


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """1 if the map's largest value lies in G (Zhang et al. 2018); where several pixels share it, the share of them in G. Chance: |G|/HW."""
    highest = maps == maps.max(axis=(1, 2), keepdims=True)
    return _defined((highest & masks).sum(axis=(1, 2)) / highest.sum(axis=(1, 2)), masks)


def mass_ratio(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """``(sum of the map in G / sum of the map) / (|G| / HW)``: 1 is chance, the most is HW/|G|. A constant map scores 1."""
    shifted = maps - maps.min(axis=(1, 2), keepdims=True)
    shifted = np.where(shifted.max(axis=(1, 2), keepdims=True) > 0, shifted, 1.0)
    inside = (shifted * masks).sum(axis=(1, 2)) / shifted.sum(axis=(1, 2))
    return _defined(inside / np.maximum(masks.mean(axis=(1, 2)), 1e-12), masks)


def rank_accuracy(ranks: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the |G| most relevant pixels that lie in G (Arras et al. 2022). Chance: |G|/HW.

    Args:
        ranks: ``(N, H, W)``, :func:`kdnb.fidelity.perturb.relevance_rank` of the maps.
    """
    area = masks.sum(axis=(1, 2))
    top = ranks * masks[0].size < area[:, None, None] - 0.5  # ranks are k / HW; half a pixel keeps rounding away
    return _defined((top & masks).sum(axis=(1, 2)) / np.maximum(area, 1), masks)


def pixel_auc(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of the map's values as a score for "in G", ties counted half. Chance: 1/2."""
    ranks = rankdata(maps.reshape(len(maps), -1), axis=1)
    inside = masks.reshape(len(masks), -1)
    positive = inside.sum(axis=1)
    negative = inside.shape[1] - positive
    above = (ranks * inside).sum(axis=1) - positive * (positive + 1) / 2
    return _defined(above / np.maximum(positive * negative, 1), masks)


def localisation(maps: np.ndarray, ranks: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """All four metrics of ``(N, H, W)`` maps against ``(N, H, W)`` bool masks, each ``(N,)`` with NaN where undefined."""
    return {
        "pointing_game": pointing_game(maps, masks),
        "mass_ratio": mass_ratio(maps, masks),
        "rank_accuracy": rank_accuracy(ranks, masks),
        "pixel_auc": pixel_auc(maps, masks),
    }


def _defined(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    share = masks.mean(axis=(1, 2))
    return np.where((share > 0) & (share < 1), values, np.nan)
