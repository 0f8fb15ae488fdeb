"""Masks of lesions that lie beside their images: which belongs to which, and their pixels in the image's square."""

import os
from collections import defaultdict
from pathlib import Path

import joblib
import numpy as np
from PIL import Image

from kdnb.datasets import layouts, reading
from kdnb.errors import DataError

MaskFolder = tuple[Path, Path]  # the folder below which the images lie, and that of their masks


def pair(images: list[Path], found: list[Path], folders: list[MaskFolder]) -> tuple[list[list[Path]], int]:
    """The masks of each image, and how many masks belong to none.

    Args:
        images: paths.
        found: masks named after an image in the same folder (``x_mask.png``).
        folders: folders of masks named as their images (``masks/x.png``) or after them; of several images of one name
            the one in folders of the same names is meant.

    Returns:
        The paths of each image's masks, in the order of ``images``, and the number of masks without an image.
    """
    masks: list[list[Path]] = [[] for _ in images]
    by_folder_and_stem, by_stem = defaultdict(list), defaultdict(list)
    for position, image in enumerate(images):
        by_folder_and_stem[image.parent, layouts.stem(image.name)].append(position)
        by_stem[layouts.stem(image.name)].append(position)
    lost = 0
    for mask in found:
        owners = by_folder_and_stem[mask.parent, layouts.mask_of(mask.name)]
        lost += not owners
        for position in owners:
            masks[position].append(mask)
    for image_folder, mask_folder in folders:
        for directory, _, names in os.walk(mask_folder):
            for name in sorted(names):
                mask = Path(directory, name)
                if not layouts.is_image(mask) or layouts.is_system(name):
                    continue
                owners = by_stem[layouts.stem(name)] or by_stem[layouts.mask_of(name)]
                owners = [position for position in owners if image_folder in images[position].parents]
                inner = mask.relative_to(mask_folder).parent.parts
                if inner:
                    owners = [position for position in owners if images[position].parent.parts[-len(inner) :] == inner]
                lost += len(owners) != 1
                for position in owners if len(owners) == 1 else []:
                    masks[position].append(mask)
    return masks, lost


def squares(
    masks: list[list[Path]], widths: np.ndarray, heights: np.ndarray, size: int
) -> tuple[np.ndarray, dict[Path, str]]:
    """The masks of all images, each brought to its image's square.

    Args:
        masks: the paths of each image's masks.
        widths: ``(N,)`` pixels of the images, upright.
        heights: ``(N,)`` pixels of the images, upright.
        size: pixels a side of the squares.

    Returns:
        ``(N, size, size)`` bool, and why some could not be read: path -> reason.
    """
    jobs = max(1, min(16, joblib.cpu_count(), len(masks) // 128))
    sides = zip(masks, widths.tolist(), heights.tolist(), strict=True)
    answers = joblib.Parallel(jobs)(
        joblib.delayed(_square)([path.absolute() for path in files], *shape, size) for files, *shape in sides
    )
    lesions = np.array([square for square, _ in answers], bool).reshape(len(masks), size, size)
    return lesions, {path: reason for _, bad in answers for path, reason in bad.items()}


def _square(files: list[Path], width: int, height: int, size: int) -> tuple[np.ndarray, dict[Path, str]]:
    """The union of an image's masks where :func:`kdnb.datasets.reading.fit` puts the image, and which were not read."""
    square, bad = np.zeros((size, size), bool), {}
    top, left, inner_height, inner_width = reading.box(width, height, size)
    for path in files:
        try:
            lesion = marked(path)
            if abs(np.log(lesion.shape[1] / lesion.shape[0] * height / width)) > 0.02:
                mask_size = f"{lesion.shape[1]} x {lesion.shape[0]}"
                raise DataError(f"a mask of {mask_size} pixels for an image of {width} x {height}")
        except DataError as error:
            bad[path] = str(error)
            continue
        # Each pixel is that of the nearest one.
        small = Image.fromarray(lesion).resize((inner_width, inner_height), Image.Resampling.NEAREST)
        square[top : top + inner_height, left : left + inner_width] |= np.asarray(small, bool)
    return square, bad


def marked(path: Path) -> np.ndarray:
    """Where a mask is not black; in a JPEG, whose black is not quite, where it is brighter than half.

    Args:
        path: an image file of any kind that is read.

    Returns:
        ``(H, W)`` bool.

    Raises:
        DataError: the reason in a few words.
    """
    image, kind = reading.decode(path)
    values = np.asarray(image)
    values = values.max(axis=2) if values.ndim == 3 else values
    return values > (127 if kind.startswith("JPEG") else 0)
