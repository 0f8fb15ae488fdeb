"""A phantom with ground truth: generated head-like (or fundus-like) images whose class is decided by one lesion.

Every image has three places where something may grow: deep in the white matter, at the brain's edge, and at its base.
In each place, in every class, ``none`` too, a bright **disc** stands with probability 1/2: a control that means
nothing. In the other classes one place holds a **ring** (bright rim, dark core) instead, of the same size: the lesion.

================  ===========================  =============================
class             the ring stands              in the brain-tumour task
================  ===========================  =============================
``none``          nowhere                      no tumour
``infiltrating``  deep, its outline irregular  glioma
``edge``          at the brain's edge          meningioma
``base``          at the base                  pituitary
================  ===========================  =============================

So the class follows the **kind and the place** of a lesion, never the presence of something bright. Distractors are a
bright streak in the deep zone, a smooth random background with a bias field (suppressors, correlated over a third of
the image) and the subject's anatomy. All of this is drawn before the class is looked at; the ring replaces what stood
in its place. An image without its lesion (``lesions=False``) therefore says nothing about the class, and pixels outside
the mask are equal with and without it.

**Drawn labels** (``phantom``, the default; what is above is ``phantom:certain``). Here the truth is a probability.
Every image has one lesion between a plain disc (strength s = 0, no different from a control) and a ring (s = 1), in one
of the places or on the way from the deep place to another, and the label is drawn, once for a subject, from
:func:`posterior`. With the smoothstep ``S(u) = 3 u^2 - 2 u^3`` a lesion is a tumour with probability S(s), and a tumour
the part f of the way to another place is of that other class with probability S(f). So nobody can be right more often
than the Bayes classifier, a model's probabilities can be scored without the luck of the labels, and there is a teacher
that knows all there is to know (Menon et al. 2021, arXiv 2005.10419). :func:`plant` gives such a set the flaws of
public ones: mirrored copies under other names, wrong labels, and a second scanner that goes with a class. Noise hides a
little of what was drawn: pixels allow a little less than Bayes.

What it is not: anatomy is three ellipses, noise is Gaussian and white, lesions have one size and no partial volume,
subjects differ less than people do. A method that fails here will hardly work on patients; one that succeeds here has
not been shown to.

Only elementwise ``+ - * / sqrt`` touch pixels (no BLAS, no ``exp``), so that the images, and with them every hash, are
the same on every processor.

Prior art: XAI-TRIS (arXiv 2306.12816); Budding et al. 2021 (arXiv 2112.04882); Oliveira et al. 2024
(10.3389/frai.2024.1330919).
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
DRAWN_PER_SUBJECT = 4  # images of one subject of drawn labels: they show one lesion and have one label
BETWEEN = 1 / 3  # share of these subjects whose lesion lies on the way from the deep place to another
# Of the others, where it lies: with BETWEEN, each class of tumour is as frequent as the next.
PURE = (0.25, 0.375, 0.375)
# Shares of the images that :func:`plant` makes copies of others, and gives another label.
TWINS, WRONG_LABELS = (0.04, 0.02)
SCANNER = (0.30, 0.05, 0.05, 0.05)  # P(the second scanner | class) in a planted set
_CHUNK = 64  # images drawn at once
_PLACES = 3


@dataclass(frozen=True)
class Phantom:
    """Generated images.

    Attributes:
        images: ``(N, H, W, 3)`` uint8.
        labels: ``(N,)`` int64, indices into :data:`CLASSES`.
        subjects: ``(N,)`` int64, whose image it is.
        masks: ``(N, H, W)`` bool, the lesion that decides the class, in drawn sets whatever its strength.
        shortcut_masks: ``(N, H, W)`` bool, the planted marker.
        posterior: ``(N, C)`` float64, where labels are drawn the probability of each class given all that the image
            shows; else ``None``.
    """

    images: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    masks: np.ndarray
    shortcut_masks: np.ndarray
    posterior: np.ndarray | None = None


def generate(
    count: int, image_size: int, variant: str = "certain", *, snr: float = SNR, lesions: bool = True, seed: int = 0
) -> Phantom:
    """Make ``count`` images of ``image_size`` pixels a side, the same ones at every call.

    The first images of a larger set are those of a smaller one, and the same subjects have the same lesions at every
    size.

    Args:
        count: how many images.
        image_size: pixels a side.
        variant: ``"drawn"`` (labels drawn from a known probability), ``"certain"`` (the lesion decides), or of the
            latter ``"shortcut"`` (a corner marker that follows the class), ``"fundus"`` (coloured, another anatomy) and
            ``"volume"`` (the slice through the lesion's centre of the volume that :func:`volumes` gives).
        snr: peak contrast of a lesion in standard deviations of the noise.
        lesions: ``False`` gives the same images without the lesion that decides the class (controls stay); masks still
            say where it would be.
        seed: another seed gives other subjects.

    Returns:
        Images with all that is true of them.
    """
    chunks = range(-(-count // _CHUNK))
    shape = (count, image_size, image_size)
    phantom = Phantom(
        np.empty((*shape, 3), np.uint8),
        np.empty(count, np.int64),
        np.empty(count, np.int64),
        np.empty(shape, bool),
        np.zeros(shape, bool),
        np.empty((count, len(CLASSES))) if variant == "drawn" else None,
    )

    def fill(chunk: int) -> None:
        positions = slice(chunk * _CHUNK, min((chunk + 1) * _CHUNK, count))
        keep = slice(0, positions.stop - positions.start)
        latent = _draw_lesions(seed, chunk) if variant == "drawn" else _draw(seed, chunk)
        planes, mask = _render(latent, image_size, variant, snr, lesions, offset=0)
        marker = _marker(latent, planes, image_size)[keep] if variant == "shortcut" else False
        phantom.images[positions] = _colour(planes, latent, variant)[keep]
        phantom.labels[positions], phantom.subjects[positions] = latent["label"][keep], latent["subject"][keep]
        phantom.masks[positions] = mask[keep]
        if phantom.posterior is not None:
            phantom.posterior[positions] = latent["posterior"][keep]
        phantom.shortcut_masks[positions] = marker

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, chunks))
    return phantom


def volumes(
    positions: np.ndarray, image_size: int, *, snr: float = SNR, lesions: bool = True, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The volumes behind images of ``phantom:volume``, made when they are asked for.

    Args:
        positions: which images, ``(n,)`` positions in the generated set.
        image_size: pixels a side of a slice.
        snr: peak contrast of a lesion in standard deviations of the noise.
        lesions: ``False`` leaves the lesion that decides the class out; masks still say where it would be.
        seed: another seed gives other subjects.

    Returns:
        Volumes ``(n, DEPTH, H, W)`` uint8 and lesion masks of that shape, bool. Slice ``DEPTH // 2`` is the image;
        slices are spaced as far apart as ``image_size / 32`` pixels in the plane.
    """
    positions = np.asarray(positions)
    stack = np.empty((len(positions), DEPTH, image_size, image_size), np.uint8)
    masks = np.empty(stack.shape, bool)
    for chunk in np.unique(positions // _CHUNK):
        wanted = np.flatnonzero(positions // _CHUNK == chunk)
        latent = _draw(seed, int(chunk))
        for depth in range(DEPTH):
            plane, mask = _render(latent, image_size, "volume", snr, lesions, offset=depth - DEPTH // 2)
            stack[wanted, depth] = _bytes(plane)[positions[wanted] % _CHUNK]
            masks[wanted, depth] = mask[positions[wanted] % _CHUNK]
    return stack, masks


# -- labels drawn from a known probability -----------------------------------------------------------------------------


def posterior(strength: np.ndarray, way: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """P(class | lesion): the truth that labels are drawn from.

    Args:
        strength: ``(n,)`` 0 (a disc) to 1 (a ring).
        way: ``(n,)``, what part of the way from the deep place to the outer one the lesion lies.
        outer: ``(n,)``, the class of the outer place, 2 (edge) or 3 (base).

    Returns:
        Probabilities ``(n, C)`` float64, which add up to 1.

    Example:
        >>> posterior(np.array([0, 1, 1]), np.array([0, 0, 0.5]), np.array([2, 2, 3])).tolist()
        [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.5]]
    """
    tumour, outside = _smoothstep(strength), _smoothstep(way)
    chances = np.zeros((len(strength), len(CLASSES)))
    chances[:, 0] = 1 - tumour
    chances[:, 1] = tumour * (1 - outside)
    chances[np.arange(len(outer)), outer] = tumour * outside
    return chances


def updated(posterior: np.ndarray, likelihood: np.ndarray) -> np.ndarray:
    """Bayes' rule: class probabilities once more evidence is seen.

    Args:
        posterior: ``(N, C)``, the probabilities before.
        likelihood: ``(N, C)``, how likely the evidence is given each class.

    Returns:
        ``(N, C)``, the probabilities after.

    Example:
        >>> updated(np.array([[0.5, 0.5]]), np.array([[0.75, 0.25]])).tolist()
        [[0.75, 0.25]]
    """
    joint = posterior * likelihood
    return joint / joint.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Planted:
    """A generated set with the flaws of public ones, and where they are.

    Attributes:
        made: the images with their *published* labels, some wrong, and the subjects that the copies' names tell.
        twin_of: ``(N,)`` int64, the image that this one is the mirror image of, -1 where it is its own.
        wrong: ``(N,)`` bool, which labels are not those that were drawn.
        scanner: ``(N,)`` bool, what the second scanner took.
    """

    made: Phantom
    twin_of: np.ndarray
    wrong: np.ndarray
    scanner: np.ndarray


def plant(made: Phantom, seed: int = 0) -> Planted:
    """Give a set of drawn labels the flaws that public sets have, the same ones at every call.

    Some images are replaced by the mirror image of another, under the name of a subject who does not exist; some labels
    are wrong, those of copies among them; and a second scanner, whose receiver fades from top to bottom, took more of
    the class ``none`` than of the others (:data:`SCANNER`). The posterior takes the scanner into account, which
    everybody can see, and not the wrong labels.

    Args:
        made: a set of drawn labels (``generate(..., "drawn")``).
        seed: another seed puts the flaws elsewhere.

    Returns:
        The set with its flaws, and where they are.
    """
    assert made.posterior is not None
    count, classes = len(made.labels), len(CLASSES)
    rng = np.random.default_rng([20250215, seed])
    images, labels, subjects = made.images.copy(), made.labels.copy(), made.subjects.copy()
    masks, markers, chances = made.masks.copy(), made.shortcut_masks.copy(), made.posterior.copy()

    # One scanner a subject, drawn given the label.
    _, first, member = np.unique(made.subjects, return_index=True, return_inverse=True)
    rate = np.array(SCANNER)
    scanner = (rng.uniform(size=len(first)) < rate[labels[first]])[member]
    rows = images.shape[1]
    fade = (np.float32(1.4) - np.arange(rows, dtype=np.float32) / np.float32(rows - 1))[:, None, None]
    images[scanner] = np.minimum(images[scanner] * fade + np.float32(0.5), 255).astype(np.uint8)
    chances = updated(chances, np.where(scanner[:, None], rate, 1 - rate))

    originals, copies = rng.permutation(count)[: 2 * round(TWINS * count)].reshape(2, -1)
    twin_of = np.full(count, -1)
    twin_of[copies] = originals
    for values in (images, masks, markers):
        values[copies] = values[originals][:, :, ::-1]
    for values in (labels, chances, scanner):
        values[copies] = values[originals]
    subjects[copies] = made.subjects.max(initial=-1) + 1 + np.arange(len(copies))

    wrong = np.zeros(count, bool)
    wrong[rng.permutation(count)[: round(WRONG_LABELS * count)]] = True
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, wrong.sum())) % classes
    return Planted(Phantom(images, labels, subjects, masks, markers, chances), twin_of, wrong, scanner)


def _smoothstep(part: np.ndarray) -> np.ndarray:
    part = np.asarray(part, np.float64)
    return part * part * (3 - 2 * part)


def _draw_lesions(seed: int, chunk: int) -> dict[str, np.ndarray]:
    """:func:`_draw` for drawn labels.

    The lesion stands fourth among what may grow, and it and the label are one for a subject.

    Returns:
        What :func:`_draw` returns, with ``strength``, ``irregular`` and ``posterior`` besides.
    """
    latent = _draw(seed, chunk, DRAWN_PER_SUBJECT)
    rng = np.random.default_rng([seed, chunk, 1])
    subjects, count = _CHUNK // DRAWN_PER_SUBJECT, _CHUNK
    owner = np.repeat(np.arange(subjects), DRAWN_PER_SUBJECT)
    # More strong ones than weak, so that "none" is about as frequent as the others.
    strength = np.sqrt(rng.uniform(size=subjects))
    between = rng.uniform(size=subjects) < BETWEEN
    place = rng.choice(_PLACES, subjects, p=PURE)
    outer = np.where(between | (place == 0), rng.integers(2, 4, subjects), place + 1)
    way = np.where(between, rng.uniform(size=subjects), place > 0)
    chances = posterior(strength, way, outer)
    label = (rng.uniform(size=(subjects, 1)) > np.cumsum(chances, axis=1)[:, :-1]).sum(axis=1)
    way, outer = way.astype(np.float32)[owner], outer[owner]

    angle, distance, aspect, radius = (latent[name] for name in ("angle", "distance", "aspect", "radius"))
    at_outer = np.arange(count), outer - 1
    lesion = {
        # On the ray to its outer place; a deep lesion lies wherever deep ones lie.
        "angle": np.where(way > 0, angle[at_outer], angle[:, 0]),
        "distance": distance[:, 0] + way * (distance[at_outer] - distance[:, 0]),
        "radius": radius[at_outer],
        "aspect": aspect[at_outer],
    }
    grown = {name: np.concatenate([latent[name], values[:, None]], axis=1) for name, values in lesion.items()}
    drawn = {
        "strength": strength.astype(np.float32)[owner],
        "irregular": 1 - way,
        "posterior": chances[owner],
        "label": label[owner],
    }
    return latent | grown | drawn


# -- what is drawn -----------------------------------------------------------------------------------------------------


def _draw(seed: int, chunk: int, per_subject: int = PER_SUBJECT) -> dict[str, np.ndarray]:
    """Everything that is drawn about the images of one chunk, before a pixel is made. Lengths are half image widths."""
    rng = np.random.default_rng([seed, chunk])
    subjects, count = _CHUNK // per_subject, _CHUNK
    owner = np.repeat(np.arange(subjects), per_subject)

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


def pixel_centres(image_size: int) -> np.ndarray:
    """Pixel centres from -1 to 1, ``(image_size,)`` float32."""
    return ((2 * np.arange(image_size) + 1) / image_size - 1).astype(np.float32)


def _smooth(grid: np.ndarray, image_size: int) -> np.ndarray:
    """Upsample random grids ``(n, g, g)`` to ``(n, image_size, image_size)`` with a smoothstep between the knots."""
    place = (pixel_centres(image_size) + 1) * np.float32((grid.shape[1] - 1) / 2)
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


def _spot(
    x: np.ndarray,
    y: np.ndarray,
    latent: dict[str, np.ndarray],
    place: int,
    radius: np.ndarray,
    irregular: np.ndarray | float | None = None,
) -> np.ndarray:
    """Distance from the centre of one place over its radius, in the head's coordinates.

    Args:
        x: horizontal coordinates in the head, ``(n, H, W)`` float32.
        y: vertical ones.
        latent: of :func:`_draw`.
        place: which place, 0 (deep) to 2 (base), or 3, the lesion of drawn labels.
        radius: ``(n,)``, in half image widths.
        irregular: how irregular the outline is, 0 to 1; by default the deep place's is.

    Returns:
        ``(n, H, W)`` float32, 1 at the outline.
    """
    irregular = float(place == 0) if irregular is None else irregular
    from_middle, angle, aspect = (latent[name][:, place] for name in ("distance", "angle", "aspect"))
    across = (x - _column(from_middle * latent["width"] * np.cos(angle))) * _column(aspect / radius)
    along = (y - _column(from_middle * latent["height"] * np.sin(angle))) * _column(1 / (aspect * radius))
    square = across * across + along * along
    distance = np.sqrt(square)
    if np.any(irregular):
        # r^3 cos(3 phi): three lobes without a trigonometric function.
        lobes = across * (across * across - 3 * along * along)
        distance *= 1 + _column(latent["wobble"] * irregular) * lobes / np.maximum(distance * square, np.float32(1e-6))
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


def _head(x: np.ndarray, y: np.ndarray, latent: dict[str, np.ndarray], shrink: float) -> np.ndarray:
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


def _fundus(x: np.ndarray, y: np.ndarray, latent: dict[str, np.ndarray]) -> np.ndarray:
    """Fundus brightness without lesions: a round field, an optic disc on one side, a dark macula, two vessel arcs."""
    radius = np.sqrt((x * np.float32(1 / 0.93)) ** 2 + (y * np.float32(1 / 0.93)) ** 2)
    plane = _ramp(1 - radius, 30) * _column(latent["cortex"] + 0.08)
    plane += _ramp(np.float32(0.56) - radius, 12) * np.float32(0.12)
    side = x * _column(latent["side"])
    disc = np.sqrt((side - np.float32(0.72)) ** 2 + (y * np.float32(0.8)) ** 2)
    plane += _ramp(np.float32(0.13) - disc, 14) * np.float32(0.3)
    macula = np.sqrt(x**2 + y**2)
    plane -= _ramp(np.float32(0.16) - macula, 6) * np.float32(0.2)
    arc = np.abs(
        np.abs(y) - _column(latent["ventricle"] * 2) - np.float32(0.4) * np.sqrt(np.maximum(np.float32(0.72) - side, 0))
    )
    return plane - _ramp(np.float32(0.035) - arc, 40) * np.float32(0.1) * (radius < 1)


def _render(
    latent: dict[str, np.ndarray], image_size: int, variant: str, snr: float, lesions: bool, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """One slice of every image of a chunk.

    Args:
        latent: of :func:`_draw` or :func:`_draw_lesions`.
        image_size: pixels a side.
        variant: as in :func:`generate`.
        snr: peak contrast of a lesion in standard deviations of the noise.
        lesions: whether the lesion that decides is drawn.
        offset: how many slices above the lesion's centre.

    Returns:
        Brightness ``(n, H, W)`` float32, and the mask of the deciding lesion, ``(n, H, W)`` bool.
    """
    contrast = np.float32(snr * NOISE)
    axis = pixel_centres(image_size)
    shifted_x = axis[None, None, :] - _column(latent["centre_x"])
    shifted_y = axis[None, :, None] - _column(latent["centre_y"])
    cosine, sine = _column(np.cos(latent["tilt"])), _column(np.sin(latent["tilt"]))
    x, y = cosine * shifted_x + sine * shifted_y, cosine * shifted_y - sine * shifted_x
    height = np.float32(offset / 16)  # of the slice above the lesion's centre, in half image widths
    plane = _fundus(x, y, latent) if variant == "fundus" else _head(x, y, latent, float(np.sqrt(1 - height**2)))
    plane *= 1 + np.float32(0.16) * _smooth(latent["texture"], image_size)
    plane += np.float32(0.05) * _smooth(latent["bias"], image_size)

    plane += _streak(x, y, latent) * _column(contrast * latent["streak"])

    if "strength" in latent:
        mask = _add_drawn(plane, x, y, latent, contrast, lesions)
    else:
        mask = _add_certain(plane, x, y, latent, contrast, lesions, height)

    plane *= _column(latent["gain"])
    noise = np.random.default_rng([*latent["stream"], image_size, offset + DEPTH])
    plane += np.float32(NOISE) * noise.standard_normal(plane.shape, np.float32)
    return plane, mask


def _add_certain(
    plane: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    latent: dict[str, np.ndarray],
    contrast: np.float32,
    lesions: bool,
    height: np.float32,
) -> np.ndarray:
    """Add discs and the ring that decides to ``plane``, in place; the mask of the ring."""
    mask = np.zeros(plane.shape, bool)
    for place in range(_PLACES):
        radius, is_cut = _cut(latent["radius"][:, place], height)
        distance = _spot(x, y, latent, place, radius)
        decides = (latent["label"] == place + 1) & is_cut
        mask |= (distance < 1) & decides[:, None, None]
        ring = decides & lesions
        grown = ring | (latent["control"][:, place] & is_cut)
        plane += _blob(distance, _column(ring.astype(np.float32))) * _column(contrast * grown)
    return mask


def _add_drawn(
    plane: np.ndarray, x: np.ndarray, y: np.ndarray, latent: dict[str, np.ndarray], contrast: np.float32, lesions: bool
) -> np.ndarray:
    """Add discs, and the lesion, which covers what stood in its place, to ``plane``, in place; the lesion's mask."""
    grown = np.zeros(plane.shape, np.float32)
    for place in range(_PLACES):
        disc = _blob(_spot(x, y, latent, place, latent["radius"][:, place]), 0.0)
        grown += disc * _column(latent["control"][:, place])
    distance = _spot(x, y, latent, _PLACES, latent["radius"][:, _PLACES], latent["irregular"])
    mask = distance < 1
    plane += contrast * (np.where(mask, _blob(distance, _column(latent["strength"])), grown) if lesions else grown)
    return mask


def _cut(radius: np.ndarray, height: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """The radius of balls cut ``height`` above their centres, and which balls are cut at all."""
    square = radius**2 - height**2
    is_cut = square > 0.05**2
    return np.sqrt(np.where(is_cut, square, 1)).astype(np.float32), is_cut


def _streak(x: np.ndarray, y: np.ndarray, latent: dict[str, np.ndarray]) -> np.ndarray:
    """A thin bright line in the deep zone: as bright as a lesion, of no meaning."""
    distance = latent["streak_distance"]
    from_x = x - _column(distance * latent["width"] * np.cos(latent["streak_angle"]))
    from_y = y - _column(distance * latent["height"] * np.sin(latent["streak_angle"]))
    cosine, sine = _column(np.cos(latent["streak_direction"])), _column(np.sin(latent["streak_direction"]))
    along, across = np.abs(cosine * from_x + sine * from_y), np.abs(cosine * from_y - sine * from_x)
    return _ramp(np.float32(0.2) - along, 12) * _ramp(np.float32(0.05) - across, 40)


def _marker(latent: dict[str, np.ndarray], planes: np.ndarray, image_size: int) -> np.ndarray:
    """Draw a bright square into one corner of each plane and return where; the corner mostly follows the class."""
    label, follows = latent["label"], latent["corner_follows"]
    corner = np.where(follows, label, (label + latent["corner_other"]) % len(CLASSES))
    side, gap = max(2, image_size // 12), max(1, image_size // 32)
    near, far = slice(gap, gap + side), slice(image_size - gap - side, image_size - gap)
    mask = np.zeros(planes.shape, bool)
    for number, (rows, columns) in enumerate(((near, near), (near, far), (far, near), (far, far))):
        mask[corner == number, rows, columns] = True
    planes[mask] = 0.9
    return mask


def _bytes(planes: np.ndarray) -> np.ndarray:
    return (np.clip(planes, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _colour(planes: np.ndarray, latent: dict[str, np.ndarray], variant: str) -> np.ndarray:
    """Brightness ``(n, H, W)`` to ``(n, H, W, 3)`` uint8: grey, or the red-orange of a fundus in the subject's tint."""
    if variant != "fundus":
        return np.repeat(_bytes(planes)[..., None], 3, axis=-1)
    gains = np.array([1.45, 0.85, 0.5], np.float32) * latent["tint"]
    return np.stack([_bytes(planes * _column(gains[:, channel])) for channel in range(3)], axis=-1)
