"""Volumes from files: NIfTI, and DICOM series of one file a slice, brought to one shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdnb.errors import DataError, DataNotFoundError
from kdnb.progress import progress

NIFTI = (".nii", ".nii.gz")
MOST_SLICES = 64
DARKEST, BRIGHTEST = 0.5, 99.5  # percentiles of a volume's values that become 0 and 255


@dataclass(frozen=True)
class Read:
    """One volume as it lies in its file: ``voxels`` ``(D, H, W)`` float32, ``spacing`` in mm, and whose it is (``""``: not said)."""

    voxels: np.ndarray
    spacing: tuple[float, float, float]
    patient: str = ""


def read_folder(
    folder: Path, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[float, float, float]]:
    """All volumes below ``folder/<class>/``: a NIfTI file or a folder of DICOM files is one.

    Slices are made square by black margins and resized to ``size``; all volumes get the median number of slices, at most
    :data:`MOST_SLICES`. Of values the range between two percentiles of each volume is kept.

    Returns:
        volumes ``(N, D, size, size)`` uint8, class names, ids and patients ``(N,)`` str, and the median spacing after resizing, in mm.

    Raises:
        DataNotFoundError: no folder, or nothing in it that is a volume. DataError: a file that cannot be read.
    """
    if not folder.is_dir():
        raise DataNotFoundError(
            f"volumes is 'folder:{folder}', but there is no such folder: name a folder of class folders."
        )
    found = [(place.name, path) for place in sorted(folder.iterdir()) if place.is_dir() for path in _volumes_in(place)]
    if not found:
        raise DataNotFoundError(
            f"{folder} holds no volumes: put NIfTI files, or one folder for each DICOM series, into a folder for each class."
        )
    read = [read_volume(path) for _, path in progress(found, f"reading {folder.name}", len(found))]
    depth = min(MOST_SLICES, int(np.median([len(one.voxels) for one in read])))
    volumes = np.stack([to_bytes(resized(one.voxels, (depth, size, size))) for one in read])
    # A margin makes a slice square, so both sides of a pixel grow by the longer side's factor.
    spacings = [
        (
            one.spacing[0] * one.voxels.shape[0] / depth,
            *(step * max(one.voxels.shape[1:]) / size for step in one.spacing[1:]),
        )
        for one in read
    ]
    names = np.array([name for name, _ in found])
    ids = np.array([path.relative_to(folder).as_posix() for _, path in found])
    return volumes, names, ids, np.array([one.patient for one in read]), tuple(np.median(spacings, axis=0).tolist())


def _volumes_in(folder: Path) -> list[Path]:
    """NIfTI files, and folders that hold files and no NIfTI, in the order of their names."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for path in entries if path.is_file() and path.name.lower().endswith(NIFTI)]
    return files + [path for path in entries if path.is_dir() and any(one.is_file() for one in path.iterdir())]


def read_volume(path: Path) -> Read:
    """One NIfTI file, or the DICOM series in one folder.

    Raises:
        DataError: it cannot be read, holds several series, or is no volume.
    """
    return read_series(path) if path.is_dir() else read_nifti(path)


def read_nifti(path: Path) -> Read:
    """A NIfTI file, turned so that slices go from foot to head, rows from front to back and columns from the patient's right to left.

    Of several volumes in a file (a time series) it is the first.
    """
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asarray(image.dataobj, np.float32)
    except Exception as error:  # nibabel, gzip and zlib have errors of their own for one cause: a damaged file
        raise DataError(f"{path} cannot be read ({type(error).__name__}): mend or remove it.") from error
    while values.ndim > 3:
        values = values[..., 0]
    if values.ndim != 3:
        raise DataError(f"{path} has {values.ndim} dimensions, so it is no volume: remove it.")
    right, forward, up = (float(step) for step in image.header.get_zooms()[:3])
    # Canonical axes point to the right, the front and the head; a picture has its front on top and the patient's right on the left.
    return Read(values.transpose(2, 1, 0)[:, ::-1, ::-1].copy(), (up, forward, right))


def read_series(folder: Path) -> Read:
    """The DICOM files of one series, sorted along the direction in which slices lie (by their number where no position is said)."""
    import pydicom

    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    try:
        headers = [pydicom.dcmread(path, force=True) for path in files]
        slices = [header for header in headers if "PixelData" in header]
        series = {str(header.get("SeriesInstanceUID", "")) for header in slices}
        if len(series) != 1 or len(slices) < 2:
            raise DataError(
                f"{folder} holds {len(slices)} slices of {len(series)} series: give each series a folder of its own."
            )
        heights = [_height(header) for header in slices]
        order = np.argsort(heights, kind="stable")
        ordered = [
            slices[k].pixel_array * float(slices[k].get("RescaleSlope", 1))
            + float(slices[k].get("RescaleIntercept", 0))
            for k in order
        ]
        voxels = np.stack(ordered).astype(np.float32)
    except DataError:
        raise
    except (
        Exception
    ) as error:  # pydicom and its decoders have errors of their own for one cause: a file that is no slice of a series
        raise DataError(
            f"{folder} cannot be read as one DICOM series ({type(error).__name__}): mend or remove it."
        ) from error
    if voxels.ndim != 3:
        raise DataError(
            f"{folder} holds colour or several frames a file, so it is no series of grey slices: remove it."
        )
    first = slices[0]
    rows, columns = (float(step) for step in first.get("PixelSpacing", (1, 1)))
    steps = np.diff(np.sort(heights))
    apart = (
        float(np.median(steps))
        if "ImagePositionPatient" in first and steps.any()
        else float(first.get("SliceThickness") or 1)
    )
    return Read(voxels, (apart, rows, columns), str(first.get("PatientID", "")))


def _height(header) -> float:
    """Where a slice lies along the normal of its plane, in mm; its number where it does not say."""
    if "ImagePositionPatient" in header and "ImageOrientationPatient" in header:
        along, down = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        return float(np.cross(along, down) @ np.array(header.ImagePositionPatient, float))
    return float(header.get("InstanceNumber", 0))


def resized(voxels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """``(D, H, W)`` to ``shape``: slices made square by dark margins; the mean of voxels where there are more, else trilinear."""
    import torch
    from torch.nn import functional as F

    side = max(voxels.shape[1:])
    margins = [(0, 0)] + [((side - length) // 2, side - length - (side - length) // 2) for length in voxels.shape[1:]]
    square = torch.from_numpy(np.pad(voxels, margins, constant_values=voxels.min()))[None, None]
    smaller = [min(a, b) for a, b in zip(square.shape[2:], shape, strict=True)]
    fewer = F.interpolate(square, size=smaller, mode="area")
    return F.interpolate(fewer, size=list(shape), mode="trilinear", align_corners=False)[0, 0].numpy()


def to_bytes(voxels: np.ndarray) -> np.ndarray:
    """Values between two percentiles to 0..255, ``(D, H, W)`` uint8; a volume of one value becomes black."""
    low, high = np.percentile(voxels, (DARKEST, BRIGHTEST))
    return (255 * np.clip((voxels - low) / max(high - low, 1e-6), 0, 1) + 0.5).astype(np.uint8)
