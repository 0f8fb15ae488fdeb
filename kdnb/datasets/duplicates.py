"""Images that are copies of one another: pixel for pixel, or re-encoded, resized, brightened, flipped or turned.

Three steps, each cheaper than the next for what it leaves over:

1. *coarse*: correlation of 16 x 16 thumbnails under the eight rotations and flips, every pair (one matrix product an
   orientation);
2. *fine*: correlation of the detail (what is left after a local mean) of 64 x 64 thumbnails;
3. *confirmed*: the same at full resolution (192 x 192 from the decoded file).

Detail tells copies from look-alikes: two heads in one position agree in outline, so perceptual hashes and thumbnails
call them alike, but only copies share noise and texture. Detail is clipped, so that a few strong edges do not decide,
and blanked near dark surroundings, so that the outline of the field of view does not.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from kdnb.progress import progress

COARSE, FINE, CONFIRM = 0.97, 0.35, 0.42  # correlations from which a pair goes on, and from which it is reported at all
COPIES_FROM = 0.6  # similarity from which a reported pair is taken for copies, where the source does not say otherwise
FULL = 192  # pixels a side at which pairs are confirmed
ORIENTATIONS = 8
_DARK = 12  # grey values up to this are surroundings
BLOCK = 1024
PRODUCT = 2**23  # correlations that are held at once


@dataclass(frozen=True)
class Twins:
    """What was found among N images.

    Attributes:
        pairs: ``(P, 2)`` int64 positions ``i < j`` of images that may be copies, from similarity 0.42 on; which of them
            are is a matter of the source's threshold (:meth:`copies`).
        orientation: ``(P,)`` 0..7, how the second is turned to match the first (0: not).
        similarity: ``(P,)`` correlation of detail at full resolution; exact copies have 1.
        exact: ``(P,)`` bool, equal pixel for pixel.
        candidates: ``(C, 2)`` int32, pairs that passed the coarse step.
        fine: ``(C,)`` their correlation of 64 x 64 detail.
    """

    pairs: np.ndarray
    orientation: np.ndarray
    similarity: np.ndarray
    exact: np.ndarray
    candidates: np.ndarray
    fine: np.ndarray

    def copies(self, threshold: float) -> np.ndarray:
        """The pairs ``(P, 2)`` that are equal or at least so similar."""
        return self.pairs[self.exact | (self.similarity >= threshold)]


def find(
    load: Callable[[int], Image.Image], signatures: np.ndarray, digests: np.ndarray, *, quiet: bool = False
) -> Twins:
    """Find every pair of copies.

    Args:
        load: gives the decoded image at a position, for the last step.
        signatures: ``(N, 64, 64)`` uint8.
        digests: ``(N,)`` str, of full-size pixels.
        quiet: show no progress.

    Returns:
        Each pair once, in the orientation in which it is most alike, and all candidates of the coarse step.
    """
    pairs, orientation = coarse(signatures, quiet)
    fine = _fine(signatures, pairs, orientation)
    fine_enough = np.flatnonzero(fine >= FINE)  # few: whole digests of all candidates would fill the memory
    i, j = pairs[fine_enough].T
    fine_enough = fine_enough[digests[i] != digests[j]]
    similarity = confirm(load, pairs[fine_enough], orientation[fine_enough], quiet)
    similar_enough = similarity >= CONFIRM
    exact = np.sort(equal_pairs(digests), axis=1)
    confirmed = np.concatenate([exact, pairs[fine_enough][similar_enough]])
    orientations = np.concatenate([np.zeros(len(exact), np.int64), orientation[fine_enough][similar_enough]])
    similarities = np.concatenate([np.ones(len(exact)), similarity[similar_enough]])
    # Several orientations may match: keep the best.
    order = np.lexsort((orientations, -similarities, confirmed[:, 1], confirmed[:, 0]))
    _, first = np.unique(confirmed[order], axis=0, return_index=True)
    chosen = order[first]
    return Twins(confirmed[chosen], orientations[chosen], similarities[chosen], chosen < len(exact), pairs, fine)


def equal_pairs(digests: np.ndarray) -> np.ndarray:
    """Pairs of images with the same digest, each image with the first of its kind.

    Args:
        digests: ``(N,)`` str.

    Returns:
        ``(P, 2)`` int64 positions.

    Example:
        >>> equal_pairs(np.array(["a", "b", "a", "a"])).tolist()
        [[0, 2], [0, 3]]
    """
    _, first, member = np.unique(digests, return_index=True, return_inverse=True)
    pairs = np.stack([first[member], np.arange(len(digests))], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def oriented(image: np.ndarray, orientation: int) -> np.ndarray:
    """One or many images ``(..., H, W)`` mirrored (from orientation 4 on) and turned by quarter turns."""
    mirrored = image[..., ::-1] if orientation >= 4 else image
    return np.rot90(mirrored, orientation % 4, axes=(-2, -1))


def coarse(signatures: np.ndarray, quiet: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose 16 x 16 thumbnails correlate in some orientation.

    Memory grows with the number of images and of pairs that are found, not with that of pairs that are compared.

    Args:
        signatures: ``(N, 64, 64)`` uint8.
        quiet: show no progress.

    Returns:
        Positions ``(C, 2)`` int32, and the orientation of each pair ``(C,)`` int8.
    """
    thumbnails = np.concatenate([_binned(block, 4) for block in _blocks(signatures)])
    first = unit(thumbnails)
    step = max(1, min(BLOCK, PRODUCT // max(1, len(first))))
    found, turns = [np.empty((0, 2), np.int32)], [np.empty(0, np.int8)]
    for turn in range(ORIENTATIONS) if quiet else progress(range(ORIENTATIONS), "comparing thumbnails"):
        second = unit(oriented(thumbnails, turn))
        for start in range(0, len(first), step):
            i, j = np.nonzero(first[start : start + step] @ second[start:].T >= COARSE)
            once = j > i
            found.append(np.stack([i[once] + start, j[once] + start], axis=1).astype(np.int32))
            turns.append(np.full(len(found[-1]), turn, np.int8))
    return np.concatenate(found), np.concatenate(turns)


def detail(image: np.ndarray, width: int) -> np.ndarray:
    """What is left of grey values after a local mean, clipped, and blanked near dark surroundings.

    Clipped at one and a half times its median magnitude inside the object, and multiplied by 100.

    Args:
        image: ``(..., H, W)`` grey values from 0 to 255.
        width: pixels a side of the square that the mean is taken over.

    Returns:
        ``(..., H, W)`` int8, from -100 to 100.
    """
    from scipy.ndimage import minimum_filter, uniform_filter

    values = image.astype(np.float32)
    no_filter = (0,) * (values.ndim - 2)
    residual = values - uniform_filter(values, (*no_filter, width, width))
    inside = minimum_filter(image, (*no_filter, width, width)) > _DARK
    magnitude = np.where(inside, np.abs(residual), np.nan)
    magnitude[~inside.any(axis=(-2, -1))] = 1  # all surroundings: nothing to take a median of
    limit = 1.5 * np.nanmedian(magnitude.reshape(*magnitude.shape[:-2], -1), axis=-1)
    limit = np.maximum(limit, 0.25)[..., None, None]
    return np.where(inside, np.clip(residual / limit, -1, 1) * 100, 0).astype(np.int8)


def confirm(
    load: Callable[[int], Image.Image], pairs: np.ndarray, orientation: np.ndarray, quiet: bool = False
) -> np.ndarray:
    """Correlation of detail at full resolution of each pair, ``(P,)``."""
    positions = np.unique(pairs)
    number_of = {position: number for number, position in enumerate(positions.tolist())}
    with tempfile.TemporaryFile() as file:  # details lie on disk: memory stays the same for any number of images
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(positions), BLOCK):
                block = positions[start : start + BLOCK]
                for image_detail in pool.map(lambda position: full_detail(load(int(position))), block):
                    file.write(image_detail.data)

        @lru_cache(maxsize=BLOCK)
        def stored(position: int) -> np.ndarray:
            file.seek(number_of[position] * FULL * FULL)
            return np.frombuffer(file.read(FULL * FULL), np.int8).reshape(FULL, FULL)

        rows = zip(pairs.tolist(), orientation.tolist(), strict=True)
        shown = rows if quiet else progress(rows, "confirming duplicates", len(pairs))
        return np.array([correlation(stored(i), oriented(stored(j), turn)) for (i, j), turn in shown], float)


def full_detail(image: Image.Image) -> np.ndarray:
    """The detail of a decoded image at ``FULL`` pixels a side, int8."""
    from scipy.ndimage import uniform_filter

    grey = np.asarray(image.convert("L").resize((FULL, FULL), Image.Resampling.BILINEAR))
    # 3: a copy that was turned by a degree or resized has lost its finest detail.
    return detail(uniform_filter(grey, 3), 15)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """The cosine of two details: their correlation, for they have zero mean but for rounding; 0 where one has none."""
    a, b = first.astype(np.float32).ravel(), second.astype(np.float32).ravel()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0


def _fine(signatures: np.ndarray, pairs: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Correlation of 64 x 64 detail of each pair, ``(C,)`` float32."""
    details = (
        np.concatenate([detail(block, 5) for block in _blocks(signatures)])
        if len(signatures)
        else np.empty((0, 1, 1), np.int8)
    )
    flat = details.reshape(len(details), -1)
    length = np.sqrt(np.maximum(np.einsum("nd,nd->n", flat, flat, dtype=np.float32), 1))
    correlations = np.empty(len(pairs), np.float32)
    for turn in range(ORIENTATIONS):
        rows = np.flatnonzero(orientation == turn)
        turned = np.ascontiguousarray(oriented(details, turn)).reshape(len(details), -1)
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            i, j = pairs[block].T
            product = np.einsum("nd,nd->n", flat[i].astype(np.float32), turned[j].astype(np.float32))
            correlations[block] = product / (length[i] * length[j])
    return correlations


def _blocks(signatures: np.ndarray) -> list[np.ndarray]:
    return [signatures[start : start + BLOCK] for start in range(0, len(signatures), BLOCK)]


def _binned(images: np.ndarray, factor: int) -> np.ndarray:
    count, height, width = images.shape
    return images.reshape(count, height // factor, factor, width // factor, factor).mean(axis=(2, 4), dtype=np.float32)


def unit(images: np.ndarray) -> np.ndarray:
    """Each image as a row of zero mean and length 1 (0 where it is constant), float32."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)
