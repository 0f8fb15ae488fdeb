"""A phantom in depth: generated volumes with lesions that no single slice can tell apart.

A vessel that is cut across looks like a nodule: which it is shows in the slices above and below. Here every volume with
a lesion has one bright disc in each of three neighbouring slices, wherever in depth. Discs at one place are a **tube**,
discs at three places **balls**. Each slice alone shows the same in either case, a disc somewhere on a ring around the
middle:

=========  ==================================================
class      the discs
=========  ==================================================
``none``   there are none
``balls``  stand at three places, as far apart as can be
``tube``   stand in line
=========  ==================================================

Where they stand between the two, the *straightness* is the part e of the way to a tube, and the label is drawn: a tube
with probability ``S(e) = 3 e^2 - 2 e^3``. So the truth is a probability, as it is of the plane phantom
(:mod:`kdnb.datasets.phantom`), and nobody can be right more often than its Bayes classifier. A bright streak, a smooth
random background and the head's size and brightness mean nothing.

Slices lie :data:`GAP` apart, more than pixels do: at 24 pixels twice, at 48 four times as far. What it is not: the head
is an ellipsoid, noise is white, discs have one size and no partial volume.

Only elementwise ``+ - * / sqrt`` touch voxels, and every cosine is rounded, so that the volumes are the same on every
processor.
"""

from dataclasses import dataclass

import numpy as np

from kdnb.datasets.phantom import pixel_centres

CLASSES = ("none", "balls", "tube")
DEPTH = 10  # slices
GAP = 1 / 6  # between slices, in half image widths
LENGTH = 3  # slices with a disc
HEALTHY = 0.25  # share of volumes without a lesion
BETWEEN = 1 / 2  # share of lesions that are neither quite balls nor quite a tube
RADIUS = 0.2  # of a disc, in half image widths
NOISE = 0.045  # standard deviation; volumes live in [0, 1]
SNR = 5.0  # contrast of a disc over the noise
_STREAM = 20250216


@dataclass(frozen=True)
class VolumePhantom:
    """Generated volumes.

    Attributes:
        volumes: ``(N, D, H, W)`` uint8.
        labels: ``(N,)`` int64, indices into :data:`CLASSES`.
        masks: ``(N, D, H, W)`` bool, the lesion.
        posterior: ``(N, C)`` float64, the probability of each class that labels are drawn from.
        straightness: ``(N,)`` float64, 0 (balls) to 1 (a tube), NaN without a lesion.
    """

    volumes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    posterior: np.ndarray
    straightness: np.ndarray


def spacing(size: int) -> tuple[float, float, float]:
    """Distance between slices, rows and columns of volumes ``size`` pixels wide, in pixels."""
    return GAP * size / 2, 1.0, 1.0


def generate(count: int, size: int, *, seed: int = 0, lesions: bool = True) -> VolumePhantom:
    """Make ``count`` volumes of :data:`DEPTH` slices of ``size`` x ``size`` pixels, the same ones at every call.

    The first volumes of a larger set are those of a smaller one, and a volume has the same lesion at every size.

    Args:
        count: how many volumes.
        size: pixels a side of a slice.
        seed: another seed gives other volumes.
        lesions: ``False`` leaves the lesion out; masks still say where it would be.

    Returns:
        Volumes with all that is true of them.
    """
    shape = (count, DEPTH, size, size)
    phantom = VolumePhantom(
        np.empty(shape, np.uint8),
        np.empty(count, np.int64),
        np.empty(shape, bool),
        np.empty((count, len(CLASSES))),
        np.empty(count),
    )
    for number in range(count):
        rng = np.random.default_rng([_STREAM, seed, number])
        straightness, chances = _truth(rng)
        phantom.straightness[number], phantom.posterior[number] = straightness, chances
        phantom.labels[number] = int((rng.uniform() > np.cumsum(chances)[:-1]).sum())
        discs = _discs(rng, straightness, size)
        volume = _head(rng, size) + np.float32(SNR * NOISE) * _streak(rng, size)
        if lesions:
            volume += np.float32(SNR * NOISE) * np.clip(4 * (1 - discs), 0, 1)
        noise = np.random.default_rng([_STREAM, seed, number, size]).standard_normal(volume.shape, np.float32)
        volume += np.float32(NOISE) * noise
        phantom.volumes[number] = (np.clip(volume, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        phantom.masks[number] = discs < 1
    return phantom


def _truth(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """How straight the lesion is (NaN: there is none), and the probability of each class."""
    healthy, between, way = rng.uniform(size=3)
    if healthy < HEALTHY:
        return float("nan"), np.array([1.0, 0.0, 0.0])
    straightness = way if between < BETWEEN else float(way < 0.5)
    tube = straightness * straightness * (3 - 2 * straightness)
    return straightness, np.array([0.0, 1 - tube, tube])


def _depths() -> np.ndarray:
    """Heights of the slices, ``(D, 1, 1)`` float32, in half image widths, 0 in the middle."""
    return ((np.arange(DEPTH) - (DEPTH - 1) / 2) * GAP).astype(np.float32)[:, None, None]


def _around(angle: float, distance: float) -> tuple[np.float32, np.float32]:
    """A place in the plane; rounded, because processors differ in the last bits of a cosine."""
    return np.float32(np.round(distance * np.cos(angle), 5)), np.float32(np.round(distance * np.sin(angle), 5))


def _discs(rng: np.random.Generator, straightness: float, size: int) -> np.ndarray:
    """Distance of each voxel from the middle of its slice's disc, over the radius.

    Args:
        rng: the volume's own.
        straightness: 0 (balls) to 1 (a tube), NaN without a lesion.
        size: pixels a side of a slice.

    Returns:
        ``(D, H, W)`` float32; large where there is no disc.
    """
    axis, discs = pixel_centres(size), np.full((DEPTH, size, size), 9, np.float32)
    first, start, distance = rng.integers(1, DEPTH - LENGTH), rng.uniform(0, 2 * np.pi), rng.uniform(0.36, 0.5)
    turn = rng.choice([-1, 1]) * 2 * np.pi / LENGTH
    if np.isnan(straightness):
        return discs
    for number in range(LENGTH):
        # Along the ring and not across: wherever between balls and tube, a disc is as likely here as there.
        x, y = _around(start + (1 - straightness) * number * turn, distance)
        discs[first + number] = np.sqrt((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2) / np.float32(RADIUS)
    return discs


def _head(rng: np.random.Generator, size: int) -> np.ndarray:
    """An ellipsoid: a bright shell, a darker cortex, brighter matter, a dark middle; and a random smooth background."""
    lowest, highest = (0.82, 0.86, 0.28, 0.36, 0.12), (0.9, 0.94, 0.34, 0.42, 0.18)
    width, height, cortex, matter, middle = rng.uniform(lowest, highest).astype(np.float32)
    axis = pixel_centres(size)
    x, y, z = axis[None, None, :] / width, axis[None, :, None] / height, _depths() / np.float32(1.1)
    radius = np.sqrt(x**2 + y**2 + z**2)

    def inside(limit: float, slope: float) -> np.ndarray:
        return np.clip((np.float32(limit) - radius) * np.float32(slope), 0, 1)

    volume = (
        inside(1.1, 12) * np.float32(0.55)
        - inside(1.0, 14) * (np.float32(0.55) - cortex)
        + inside(0.7, 8) * (matter - cortex)
    )
    volume -= inside(middle, 8) * np.float32(0.2)
    texture = _smooth(rng.uniform(-1, 1, (4, 6, 6)).astype(np.float32), size)
    return volume * (1 + np.float32(0.16) * texture) * np.float32(rng.uniform(0.9, 1.1))


def _smooth(grid: np.ndarray, size: int) -> np.ndarray:
    """A random grid between whose knots a smoothstep leads, ``(D, H, W)``."""
    for dimension, length in enumerate((DEPTH, size, size)):
        place = (np.arange(length) / np.float32(length - 1) * np.float32(grid.shape[dimension] - 1)).astype(np.float32)
        low = np.minimum(place.astype(np.int64), grid.shape[dimension] - 2)
        step = place - low.astype(np.float32)
        step = (step * step * (3 - 2 * step)).reshape([-1 if d == dimension else 1 for d in range(3)])
        before, after = np.take(grid, low, axis=dimension), np.take(grid, low + 1, axis=dimension)
        grid = before + (after - before) * step
    return grid


def _streak(rng: np.random.Generator, size: int) -> np.ndarray:
    """A thin bright line in two slices: as bright as a lesion, of no meaning."""
    centre, direction = _around(rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.5)), rng.uniform(0, np.pi)
    first, axis, streak = rng.integers(0, DEPTH - 1), pixel_centres(size), np.zeros((DEPTH, size, size), np.float32)
    cosine, sine = _around(direction, 1.0)
    x, y = axis[None, :] - centre[0], axis[:, None] - centre[1]
    along, across = np.abs(cosine * x + sine * y), np.abs(cosine * y - sine * x)
    length, width = 12 * (np.float32(0.25) - along), 12 * (np.float32(0.1) - across)
    streak[first : first + 2] = np.clip(length, 0, 1) * np.clip(width, 0, 1)
    return streak
