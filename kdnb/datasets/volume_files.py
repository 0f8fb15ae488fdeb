"""Volumes from files: NIfTI, and DICOM series of one file a slice, brought to one shape."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from kdnb.datasets.reading import MAX_BYTES, NIFTI, transfer_syntax
from kdnb.errors import DataError, DataNotFoundError
from kdnb.progress import progress

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage
    from pydicom.dataset import Dataset, FileDataset

MOST_SLICES = 64
DARKEST, BRIGHTEST = 0.5, 99.5  # percentiles of a volume's values that become 0 and 255
_AS_SERIES = " as one DICOM series"
_DEFERRED = 4096  # bytes of an element that is left on disk while headers are read


@dataclass(frozen=True)
class Read:
    """One volume as it lies in its file.

    Attributes:
        voxels: ``(D, H, W)`` float32.
        spacing: distance of slices, rows and columns, in mm.
        patient: whose it is (``""``: not said).
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float]
    patient: str = ""


def read_folder(
    folder: Path, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[float, float, float]]:
    """All volumes below ``folder/<class>/``: a NIfTI file or a folder of DICOM files is one.

    Slices are made square by black margins and resized to ``size``; all volumes get the median number of slices, at
    most :data:`MOST_SLICES`. Of values the range between two percentiles of each volume is kept.

    Args:
        folder: holds a folder for each class.
        size: pixels a side of a slice.

    Returns:
        Volumes ``(N, D, size, size)`` uint8, class names, ids and patients ``(N,)`` str, and the median spacing after
        resizing, in mm.

    Raises:
        DataNotFoundError: no folder, or nothing in it that is a volume.
        DataError: a file that cannot be read.
    """
    if not folder.is_dir():
        raise DataNotFoundError(
            f"volumes is 'folder:{folder}', but there is no such folder: name a folder of class folders."
        )
    class_folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    files = [(class_folder.name, path) for class_folder in class_folders for path in _volumes_in(class_folder)]
    if not files:
        raise DataNotFoundError(
            f"{folder} holds no volumes: put NIfTI files, or one folder for each DICOM series, "
            "into a folder for each class."
        )
    depth = min(MOST_SLICES, int(np.median([depth_of(path) for _, path in files])))
    voxels, spacings, patients = np.empty((len(files), depth, size, size), np.uint8), [], []
    for position, (_, path) in enumerate(progress(files, f"reading {folder.name}", len(files))):
        volume = read_volume(path)  # one at a time: at full size all of them may not fit into memory
        voxels[position] = to_bytes(resized(volume.voxels, (depth, size, size)))
        slices, *sides = volume.voxels.shape
        # A margin makes a slice square, so both sides of a pixel grow by the longer side's factor.
        in_slice = (step * max(sides) / size for step in volume.spacing[1:])
        spacings.append((volume.spacing[0] * slices / depth, *in_slice))
        patients.append(volume.patient)
    names = np.array([name for name, _ in files])
    ids = np.array([path.relative_to(folder).as_posix() for _, path in files])
    return voxels, names, ids, np.array(patients), tuple(np.median(spacings, axis=0).tolist())


def _volumes_in(folder: Path) -> list[Path]:
    """NIfTI files, and folders that hold files and no NIfTI, in the order of their names."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for path in entries if path.is_file() and path.name.lower().endswith(NIFTI)]
    return files + [path for path in entries if path.is_dir() and any(inner.is_file() for inner in path.iterdir())]


def read_volume(path: Path) -> Read:
    """One NIfTI file, or the DICOM series in one folder.

    Args:
        path: the file or the folder.

    Returns:
        The volume as it lies there.

    Raises:
        DataError: it cannot be read, holds several series, or is no volume.
    """
    return read_series(path) if path.is_dir() else read_nifti(path)


def depth_of(path: Path) -> int:
    """How many slices :func:`read_volume` finds, from headers alone.

    Args:
        path: a NIfTI file, or the folder of a DICOM series.

    Returns:
        Slices from foot to head, or files of the series.

    Raises:
        DataError: as :func:`read_volume`, as far as headers tell.
    """
    from nibabel.orientations import io_orientation

    if path.is_dir():
        return len(_series(path))
    image = _nifti(path)
    return image.shape[int(np.argmax(io_orientation(image.affine)[:, 0]))]


def read_nifti(path: Path) -> Read:
    """A NIfTI file, turned as radiologists see it.

    Slices go from foot to head, rows from front to back and columns from the patient's right to left. Of several
    volumes in a file (a time series) it is the first, and no other is unpacked.

    Args:
        path: the file.

    Returns:
        The volume, without a patient.

    Raises:
        DataError: it cannot be read, is no volume, or has more than :data:`kdnb.datasets.reading.MAX_BYTES`.
    """
    import nibabel

    image = _nifti(path)
    first = (..., *[0] * (len(image.shape) - 3))
    with _readable(path):
        values = np.asarray(image.dataobj[first] if len(first) > 1 else image.dataobj, np.float32)
        upright = nibabel.as_closest_canonical(type(image)(values, image.affine, image.header))
        values = np.asarray(upright.dataobj)
    right, forward, up = (float(step) for step in upright.header.get_zooms()[:3])
    # Canonical axes point to the right, the front and the head; a picture has its front on top and the patient's right
    # on the left.
    return Read(values.transpose(2, 1, 0)[:, ::-1, ::-1].copy(), (up, forward, right))


def _nifti(path: Path) -> "SpatialImage":
    """A NIfTI file of which nothing but the header is read: a volume, and none too large."""
    import nibabel

    with _readable(path):
        image = cast("SpatialImage", nibabel.load(path))
        shape, bytes_each = image.shape, image.get_data_dtype().itemsize
    if len(shape) < 3:
        raise DataError(f"{path} has {len(shape)} dimensions, so it is no volume: remove it.")
    _check_bytes(path, int(np.prod(shape[:3], dtype=object)) * bytes_each)
    return image


@contextmanager
def _readable(path: Path, kind: str = "") -> Iterator[None]:
    """Turn what nibabel, pydicom, zlib and decoders say, each in its own errors, into one: a damaged file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read{kind} ({type(error).__name__}): mend or remove it.") from error


def _check_bytes(path: Path, count: int) -> None:
    if count > MAX_BYTES:
        raise DataError(
            f"{path} is a volume of {count // 1_000_000} MB, but it must have at most {MAX_BYTES // 1_000_000}: "
            "make it smaller or remove it."
        )


def read_series(folder: Path) -> Read:
    """The DICOM files of one series, sorted along the direction in which slices lie.

    Where no position is said they are sorted by their number.

    Args:
        folder: holds the files of one series.

    Returns:
        The volume, its values rescaled as the files say.

    Raises:
        DataError: a file cannot be read, there are several series, or it is no volume, or has more than
            :data:`kdnb.datasets.reading.MAX_BYTES`.
    """
    slices = _series(folder)
    with _readable(folder, _AS_SERIES):
        heights = [_height(header) for header in slices]
        voxels = np.stack([_pixels(slices[k]) for k in np.argsort(heights, kind="stable")])
    first = slices[0]
    rows, columns = (float(step) for step in first.get("PixelSpacing", (1, 1)))
    steps = np.diff(np.sort(heights))
    if "ImagePositionPatient" in first and steps.any():
        gap = float(np.median(steps))
    else:
        gap = float(first.get("SliceThickness") or 1)
    return Read(voxels, (gap, rows, columns), str(first.get("PatientID", "")))


def _series(folder: Path) -> "list[FileDataset]":
    """The headers of a series' slices, in the order of the files' names; their pixels are left on disk."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    with _readable(folder, _AS_SERIES):
        headers = [_header(path) for path in files]
        slices = [header for header in headers if "PixelData" in header]
        series = {str(header.get("SeriesInstanceUID", "")) for header in slices}
        flat = all(
            int(header.get("SamplesPerPixel", 1)) == int(header.get("NumberOfFrames", 1) or 1) == 1 for header in slices
        )
        count = sum(int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8 for header in slices)
    if len(series) != 1 or len(slices) < 2:
        raise DataError(
            f"{folder} holds {len(slices)} slices of {len(series)} series: give each series a folder of its own."
        )
    if not flat:
        raise DataError(
            f"{folder} holds colour or several frames a file, so it is no series of grey slices: remove it."
        )
    _check_bytes(folder, count)
    return slices


def _header(path: Path) -> "FileDataset":
    import pydicom

    try:
        transfer_syntax(path)
    except DataError as error:
        raise DataError(f"{path} is {error}: convert or remove it.") from error
    return pydicom.dcmread(path, defer_size=_DEFERRED, force=True)


def _pixels(header: "FileDataset") -> np.ndarray:
    """A slice's values, rescaled, ``(H, W)`` float32; the header keeps none of them."""
    import pydicom

    pixels = pydicom.dcmread(cast("str", header.filename), force=True).pixel_array
    values = pixels * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
    return values.astype(np.float32)


def _height(header: "Dataset") -> float:
    """Where a slice lies along the normal of its plane, in mm; its number where it does not say."""
    if "ImagePositionPatient" in header and "ImageOrientationPatient" in header:
        along, down = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        return float(np.cross(along, down) @ np.array(header.ImagePositionPatient, float))
    return float(header.get("InstanceNumber", 0))


def resized(voxels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A volume in another shape: slices made square by dark margins, then resized.

    Args:
        voxels: ``(D, H, W)`` float32.
        shape: slices, rows and columns, as many rows as columns.

    Returns:
        ``shape`` float32: along each axis the mean of voxels where there are more, else trilinear between them.
    """
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
