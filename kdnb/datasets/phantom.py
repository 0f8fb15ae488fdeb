"""A phantom with ground truth: generated head-like (or fundus-like) images whose class is decided by one lesion.

Every image has three places where something may grow: deep in the white matter, at the brain's edge, and at its base. In each place, in
every class, ``none`` too, a bright **disc** stands with probability 1/2: a control that means nothing. In the other classes one place
holds a **ring** (bright rim, dark core) instead, of the same size: the lesion.

================  ===========================  =============================
class             the ring stands              in the brain-tumour task
================  ===========================  =============================
``none``          nowhere                      no tumour
``infiltrating``  deep, its outline irregular  glioma
``edge``          at the brain's edge          meningioma
``base``          at the base                  pituitary
================  ===========================  =============================

So the class follows the **kind and the place** of a lesion, never the presence of something bright. Distractors are a bright streak
in the deep zone, a smooth random background with a bias field (suppressors, correlated over a third of the image) and the
subject's anatomy. All of this is drawn before the class is looked at; the ring replaces what stood in its place. An image without
its lesion (``lesions=False``) therefore says nothing about the class, and pixels outside the mask are equal with and without it.

What it is not: anatomy is three ellipses, noise is Gaussian and white, lesions have one size and no partial volume, subjects differ less
than people do. A method that fails here will hardly work on patients; one that succeeds here has not been shown to.

Only elementwise ``+ - * / sqrt`` touch pixels (no BLAS, no ``exp``), so that the images, and with them every hash, are the
same on every processor.

Prior art: XAI-TRIS (arXiv 2306.12816); Budding et al. 2021 (arXiv 2112.04882); Oliveira et al. 2024 (10.3389/frai.2024.1330919).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

CLASSES = ("none", "infiltrating", "edge", "base")  # class k > 0 has its lesion in place k - 1
PER_SUBJECT = 8  # images of one subject: two of each class
SNR = 4.5  # peak contrast of a lesion over the standard deviation of the noise
NOISE = 0.045  # standard deviation of the noise; images live in [0, 1]
SHORTCUT_STRENGTH = 0.9  # P(the marker stands in the class's corner) in ``phantom:shortcut``
DEPTH = 9  # slices of a volume in ``phantom:volume``
_SUBJECTS_PER_CHUNK = 8
_PLACES = 3


@dataclass(frozen=True)
class Phantom:
    """Generated images.

    Attributes:
        images: ``(N, H, W, 3)`` uint8. labels, subjects: ``(N,)`` int64.
        masks: ``(N, H, W)`` bool, the lesion that decides the class. shortcut_masks: the same for the planted marker.
    """

    images: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    masks: np.ndarray
    shortcut_masks: np.ndarray


def generate(count: int, image_size: int, variant: str = "", *, snr: float = SNR, lesions: bool = True, seed: int = 0) -> Phantom:
    """Make ``count`` images of ``image_size`` pixels a side, the same ones at every call.

    The first images of a larger set are those of a smaller one, and the same subjects have the same lesions at every size.

    Args:
        variant: ``""`` (head), ``"shortcut"`` (a corner marker that follows the class), ``"fundus"`` (coloured, another
            anatomy) or ``"volume"`` (the slice through the lesion's centre of the volume that :func:`volumes` gives).
        snr: peak contrast of a lesion in standard deviations of the noise.
        lesions: ``False`` gives the same images without the lesion that decides the class (controls stay); masks still say
            where it would be.
        seed: another seed gives other subjects.
    """
    chunk_images = _SUBJECTS_PER_CHUNK * PER_SUBJECT
    chunks = range(-(-count // chunk_images))
    shape = (count, image_size, image_size)
    found = Phantom(
        np.empty((*shape, 3), np.uint8), np.empty(count, np.int64), np.empty(count, np.int64), np.empty(shape, bool), np.zeros(shape, bool)
    )

    def fill(chunk: int) -> None:
        where = slice(chunk * chunk_images, min((chunk + 1) * chunk_images, count))
        keep = slice(0, where.stop - where.start)
        latent = _draw(seed, chunk)
        planes, mask = _render(latent, image_size, variant, snr, lesions, offset=0)
        marker = _marker(latent, planes, image_size) if variant == "shortcut" else False
        found.images[where] = _colour(planes, latent, variant)[keep]
        found.labels[where], found.subjects[where] = latent["label"][keep], latent["subject"][keep]
        found.masks[where] = mask[keep]
        found.shortcut_masks[where] = marker if marker is False else marker[keep]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, chunks))
    return found


def volumes(
    positions: np.ndarray, image_size: int, *, snr: float = SNR, lesions: bool = True, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The volumes behind images of ``phantom:volume``, made when they are asked for.

    Args:
        positions: which images, ``(n,)`` positions in the generated set.

    Returns:
        Volumes ``(n, DEPTH, H, W)`` uint8 and lesion masks of that shape, bool. Slice ``DEPTH // 2`` is the image; slices are spaced
        as far apart as ``image_size / 32`` pixels in the plane.
    """
    chunk_images = _SUBJECTS_PER_CHUNK * PER_SUBJECT
    positions = np.asarray(positions)
    stack = np.empty((len(positions), DEPTH, image_size, image_size), np.uint8)
    masks = np.empty(stack.shape, bool)
    for chunk in np.unique(positions // chunk_images):
        wanted = np.flatnonzero(positions // chunk_images == chunk)
        latent = _draw(seed, int(chunk))
        for depth in range(DEPTH):
            plane, mask = _render(latent, image_size, "volume", snr, lesions, offset=depth - DEPTH // 2)
            stack[wanted, depth] = _bytes(plane)[positions[wanted] % chunk_images]
            masks[wanted, depth] = mask[positions[wanted] % chunk_images]
    return stack, masks


def _draw(seed: int, chunk: int) -> dict[str, np.ndarray]:
    """Everything that is drawn about the images of one chunk, before a pixel is made. Lengths are half image widths."""
    rng = np.random.default_rng([seed, chunk])
    subjects, count = _SUBJECTS_PER_CHUNK, _SUBJECTS_PER_CHUNK * PER_SUBJECT
    owner = np.repeat(np.arange(subjects), PER_SUBJECT)

    def subject(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, subjects).astype(np.float32)[owner]

    def image(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (count, *shape)).astype(np.float32)

    texture = rng.uniform(-1, 1, (subjects, 9, 9)).astype(np.float32)[owner]
    deep_angle = image(0, 2 * np.pi)
    below = np.float32(np.pi / 2)  # y points down
    return {
        "stream": np.array([seed, chunk]),
        "label": np.tile(np.arange(len(CLASSES)), count // len(CLASSES)),
        "subject": owner + chunk * subjects,
        # anatomy
        "width": subject(0.70, 0.80) + image(-0.02, 0.02),
        "height": subject(0.80, 0.90) + image(-0.02, 0.02),
        "tilt": subject(-0.15, 0.15) + image(-0.05, 0.05),
        "centre_x": image(-0.04, 0.04),
        "centre_y": image(-0.04, 0.04),
        "cortex": subject(0.24, 0.30),
        "matter": subject(0.48, 0.58),
        "ventricle": subject(0.07, 0.11),
        "ventricle_gap": subject(0.05, 0.09),
        "side": np.sign(subject(-1, 1)),
        "tint": np.stack([subject(0.9, 1.1) for _ in range(3)], axis=-1),
        "texture": texture + 0.6 * image(-1, 1, 9, 9),
        "bias": image(-1, 1, 3, 3),
        "gain": image(0.9, 1.1),
        # the three places: deep, edge, base; a control disc stands in each with probability 1/2
        "angle": np.stack([deep_angle, below + np.float32(np.pi) + image(-2.2, 2.2), below + image(-0.2, 0.2)], axis=1),
        "distance": np.stack([image(0.26, 0.34), image(0.74, 0.78), image(0.72, 0.78)], axis=1),
        "radius": image(0.17, 0.21, _PLACES),
        "aspect": image(0.9, 1.12, _PLACES),
        "wobble": image(0.08, 0.18) * np.sign(image(-1, 1)),
        "control": image(0, 1, _PLACES) < 0.5,
        # a streak opposite the deep place
        "streak": image(0, 1) < 0.75,
        "streak_angle": deep_angle + np.float32(np.pi) + image(-0.5, 0.5),
        "streak_distance": image(0.26, 0.34),
        "streak_direction": image(0, np.pi),
        # the planted shortcut
        "corner_follows": image(0, 1) < SHORTCUT_STRENGTH,
        "corner_other": rng.integers(1, len(CLASSES), count),
    }


def _column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)[:, None, None]


def _axis(image_size: int) -> np.ndarray:
    """Pixel centres from -1 to 1, ``(image_size,)`` float32."""
    return ((2 * np.arange(image_size) + 1) / image_size - 1).astype(np.float32)


def _smooth(grid: np.ndarray, image_size: int) -> np.ndarray:
    """Upsample random grids ``(n, g, g)`` to ``(n, image_size, image_size)`` with a smoothstep between the knots."""
    place = (_axis(image_size) + 1) * np.float32((grid.shape[1] - 1) / 2)
    low = np.clip(place.astype(np.int64), 0, grid.shape[1] - 2)
    step = place - low.astype(np.float32)
    step = step * step * (3 - 2 * step)
    rows = grid[:, low] + (grid[:, low + 1] - grid[:, low]) * step[:, None]
    difference = rows[:, :, 1:] - rows[:, :, :-1]
    return rows[:, :, low] + difference[:, :, low] * step


def _ramp(values: np.ndarray, slope: float) -> np.ndarray:
    """``values * slope`` cut to 0..1, in place."""
    values *= np.float32(slope)
    return np.clip(values, 0, 1, out=values)


def _spot(x: np.ndarray, y: np.ndarray, latent: dict, place: int, radius: np.ndarray) -> np.ndarray:
    """Distance from the centre of one place over its radius, in the head's coordinates; the deep place has an irregular outline."""
    away, angle, aspect = (latent[name][:, place] for name in ("distance", "angle", "aspect"))
    across = (x - _column(away * latent["width"] * np.cos(angle))) * _column(aspect / radius)
    along = (y - _column(away * latent["height"] * np.sin(angle))) * _column(1 / (aspect * radius))
    square = across * across + along * along
    distance = np.sqrt(square)
    if place == 0:
        lobes = across * (across * across - 3 * along * along)  # r^3 cos(3 phi): three lobes without a trigonometric function
        distance *= 1 + _column(latent["wobble"]) * lobes / np.maximum(distance * square, np.float32(1e-6))
    return distance


def _blob(distance: np.ndarray, ring: np.ndarray | float) -> np.ndarray:
    """The profile of a lesion: 1 inside and 0 from ``distance`` 1 on; a ring has a dark hole (-0.6) in its middle."""
    rim = _ramp(1 - distance, 4)
    hole = _ramp(distance - np.float32(0.4), 5)
    hole -= 1
    hole *= np.float32(1.6) * ring
    hole += 1
    rim *= hole
    return rim


def _head(x: np.ndarray, y: np.ndarray, latent: dict, shrink: float) -> np.ndarray:
    """Tissue brightness without lesions: a bright rim, a darker cortex, brighter matter, two dark ventricles."""
    radius = np.sqrt((x * _column(1 / latent["width"])) ** 2 + (y * _column(1 / latent["height"])) ** 2)
    radius *= np.float32(1 / shrink)
    plane = _ramp(np.float32(1.12) - radius, 18) * np.float32(0.62)
    plane -= _ramp(np.float32(1.05) - radius, 22) * np.float32(0.5)
    plane += _ramp(1 - radius, 20) * _column(latent["cortex"])
    plane += _ramp(np.float32(0.56) - radius, 12) * _column(latent["matter"] - latent["cortex"] - 0.1)
    across = np.abs(x) - _column(latent["ventricle_gap"])
    hole = np.sqrt((across * _column(1.6 / latent["ventricle"])) ** 2 + (y * _column(0.6 / latent["ventricle"])) ** 2)
    plane -= _ramp(np.float32(1.3) - hole, 3) * np.float32(0.3 * shrink)
    return plane


def _fundus(x: np.ndarray, y: np.ndarray, latent: dict) -> np.ndarray:
    """Fundus brightness without lesions: a round field, a bright optic disc on one side, a dark macula on the other, two vessel arcs."""
    radius = np.sqrt((x * np.float32(1 / 0.93)) ** 2 + (y * np.float32(1 / 0.93)) ** 2)
    plane = _ramp(1 - radius, 30) * _column(latent["cortex"] + 0.08)
    plane += _ramp(np.float32(0.56) - radius, 12) * np.float32(0.12)
    side = x * _column(latent["side"])
    disc = np.sqrt((side - np.float32(0.72)) ** 2 + (y * np.float32(0.8)) ** 2)
    plane += _ramp(np.float32(0.13) - disc, 14) * np.float32(0.3)
    macula = np.sqrt(x**2 + y**2)
    plane -= _ramp(np.float32(0.16) - macula, 6) * np.float32(0.2)
    arc = np.abs(np.abs(y) - _column(latent["ventricle"] * 2) - np.float32(0.4) * np.sqrt(np.maximum(np.float32(0.72) - side, 0)))
    return plane - _ramp(np.float32(0.035) - arc, 40) * np.float32(0.1) * (radius < 1)


def _render(latent: dict, image_size: int, variant: str, snr: float, lesions: bool, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Brightness ``(n, H, W)`` float32 and the mask of the deciding lesion, in the slice ``offset`` steps above the lesion's centre."""
    contrast = np.float32(snr * NOISE)
    axis = _axis(image_size)
    shifted_x, shifted_y = axis[None, None, :] - _column(latent["centre_x"]), axis[None, :, None] - _column(latent["centre_y"])
    cosine, sine = _column(np.cos(latent["tilt"])), _column(np.sin(latent["tilt"]))
    x, y = cosine * shifted_x + sine * shifted_y, cosine * shifted_y - sine * shifted_x
    height = np.float32(offset / 16)  # of the slice above the lesion's centre, in half image widths
    plane = _fundus(x, y, latent) if variant == "fundus" else _head(x, y, latent, float(np.sqrt(1 - height**2)))
    plane *= 1 + np.float32(0.16) * _smooth(latent["texture"], image_size)
    plane += np.float32(0.05) * _smooth(latent["bias"], image_size)

    plane += _streak(x, y, latent) * _column(contrast * latent["streak"])

    mask = np.zeros(plane.shape, bool)
    for place in range(_PLACES):
        radius, there = _cut(latent["radius"][:, place], height)
        distance = _spot(x, y, latent, place, radius)
        decides = (latent["label"] == place + 1) & there
        mask |= (distance < 1) & decides[:, None, None]
        ring = decides & lesions
        plane += _blob(distance, _column(ring.astype(np.float32))) * _column(contrast * (ring | (latent["control"][:, place] & there)))

    plane *= _column(latent["gain"])
    noise = np.random.default_rng([*latent["stream"], image_size, offset + DEPTH])
    plane += np.float32(NOISE) * noise.standard_normal(plane.shape, np.float32)
    return plane, mask


def _cut(radius: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The radius of balls cut ``height`` above their centres, and which balls are cut at all."""
    square = radius**2 - height**2
    there = square > 0.05**2
    return np.sqrt(np.where(there, square, 1)).astype(np.float32), there


def _streak(x: np.ndarray, y: np.ndarray, latent: dict) -> np.ndarray:
    """A thin bright line in the deep zone: as bright as a lesion, of no meaning."""
    away = latent["streak_distance"]
    from_x = x - _column(away * latent["width"] * np.cos(latent["streak_angle"]))
    from_y = y - _column(away * latent["height"] * np.sin(latent["streak_angle"]))
    cosine, sine = _column(np.cos(latent["streak_direction"])), _column(np.sin(latent["streak_direction"]))
    along, across = np.abs(cosine * from_x + sine * from_y), np.abs(cosine * from_y - sine * from_x)
    return _ramp(np.float32(0.2) - along, 12) * _ramp(np.float32(0.05) - across, 40)


def _marker(latent: dict, planes: np.ndarray, image_size: int) -> np.ndarray:
    """Draw a bright square into one corner of each plane and return where; the corner mostly follows the class."""
    corner = np.where(latent["corner_follows"], latent["label"], (latent["label"] + latent["corner_other"]) % len(CLASSES))
    side, gap = max(2, image_size // 12), max(1, image_size // 32)
    near, far = slice(gap, gap + side), slice(image_size - gap - side, image_size - gap)
    mask = np.zeros(planes.shape, bool)
    for number, (rows, columns) in enumerate(((near, near), (near, far), (far, near), (far, far))):
        mask[corner == number, rows, columns] = True
    planes[mask] = 0.9
    return mask


def _bytes(planes: np.ndarray) -> np.ndarray:
    return (np.clip(planes, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _colour(planes: np.ndarray, latent: dict, variant: str) -> np.ndarray:
    """Brightness ``(n, H, W)`` to ``(n, H, W, 3)`` uint8: grey, or the red-orange of a fundus in the subject's tint."""
    if variant != "fundus":
        return np.repeat(_bytes(planes)[..., None], 3, axis=-1)
    gains = np.array([1.45, 0.85, 0.5], np.float32) * latent["tint"]
    return np.stack([_bytes(planes * _column(gains[:, channel])) for channel in range(3)], axis=-1)
