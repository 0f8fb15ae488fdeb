"""The cache: every image of a source decoded and resized once, then mapped into memory.

A cache lies under ``data/cache`` in a folder named by a hash of what it was made from: each file's path, size and
times, the image size and the code that reads images. It is built in a folder beside that one and renamed when it is
whole, so a cache that exists is complete; an interrupted build is built again. Only a window of images is in memory at
any time.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import joblib
import numpy as np

from kdnb.datasets import reading
from kdnb.datasets.folders import Listing
from kdnb.errors import DataError, StorageError, writing
from kdnb.files import atomic_folder, atomic_write
from kdnb.filesystems import lock
from kdnb.progress import progress
from kdnb.provenance import content_key, source_key
from kdnb.sources import REPOSITORY, from_home

FOLDER = REPOSITORY / (from_home(os.environ.get("KDNB_CACHE", "")) if os.environ.get("KDNB_CACHE") else "data/cache")
_WINDOW = 1024  # images decoded but not yet written, at most
_BATCH = 32  # files that a process reads at a time
_WORTH_A_PROCESS = 128  # files: a process takes as long to start as some hundred small images to read
_COLUMNS = ("kept", "digests", "square_digests", "width", "height", "kind", "bytes", "brightness", "border")
Row = tuple[str, str, int, int, str, int, float, float]  # the columns but the first
Batch = tuple[bytes, bytes, list[Row | str]]  # squares, signatures, and for each file its row or why it cannot be read


@dataclass(frozen=True)
class Cached:
    """A source's readable images, in the order of their ids.

    Attributes:
        images: ``(N, size, size, 3)`` uint8, mapped.
        signatures: ``(N, 64, 64)`` uint8, mapped.
        kept: ``(N,)`` positions in the listing.
        digests: ``(N,)`` str, hash of the full-size pixels.
        square_digests: ``(N,)`` str, hash of the resized pixels.
        metadata: column -> ``(N,)``: width, height, kind, bytes, brightness, border.
        unreadable: id -> reason.
        key: identity of the files, whatever the image size.
    """

    images: np.ndarray
    signatures: np.ndarray
    kept: np.ndarray
    digests: np.ndarray
    square_digests: np.ndarray
    metadata: dict[str, np.ndarray]
    unreadable: dict[str, str]
    key: str


def files_key(listing: Listing) -> str:
    """The identity of a source's files: ids, sizes and times, and the code that reads them."""
    rows: list[tuple[str | int | None, ...]] = []
    for path, identity in zip(listing.files, listing.ids, strict=True):
        try:
            status = path.stat()
            rows.append((identity, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except OSError as error:
            rows.append((identity, error.errno))
    return content_key(rows, source_key(reading))


def open_cache(name: str, listing: Listing, image_size: int) -> Cached:
    """The images of ``listing``; decoded now if that was not done before.

    Args:
        name: the data set's name, for messages.
        listing: the source's files.
        image_size: pixels a side of the squares that they are fitted into.

    Returns:
        Those of the images that can be read, mapped into memory.

    Raises:
        DataError: not one file could be read.
        StorageError: the cache could not be written.
    """
    files = files_key(listing)
    folder = FOLDER / f"{files}-{image_size}"
    with _locked(folder):
        cached = _opened(folder, image_size, files)
        if cached is None:
            build(name, listing, image_size, folder)
            cached = _opened(folder, image_size, files)
    if cached is None:
        raise StorageError(f"{folder} was written but cannot be read back: delete it and run again.")
    return cached


def remembered(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that ``make`` returns, from ``data/cache/<key>.npz`` if they were made before."""
    path = FOLDER / f"{key}.npz"
    with _locked(path):
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            if all(isinstance(array, np.ndarray) for array in arrays.values()):  # another archive's files are bytes
                return arrays
        except (OSError, ValueError, TypeError, EOFError, BadZipFile):
            pass
        arrays = make()
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **cast("dict[str, Any]", arrays))
    return arrays


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build ``folder``."""
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        opened = folder.with_suffix(".lock").open("w")
    with opened as file, lock(file, folder.with_suffix(".lock")):
        yield


def _opened(folder: Path, image_size: int, files: str) -> Cached | None:
    """The cache in ``folder``, or ``None`` where there is none, or it is damaged or was made of other files."""
    try:
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            columns = {name: index[name] for name in index.files}
        if columns.pop("made_for") != folder.name:
            return None
        count = len(columns["kept"])
        shapes = {
            "images": (count, image_size, image_size, 3),
            "signatures": (count, reading.SIGNATURE, reading.SIGNATURE),
        }
        if any((folder / name).stat().st_size != np.prod(shape) for name, shape in shapes.items()):
            return None
        arrays = {name: _mapped(folder / name, shape) for name, shape in shapes.items()}
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile):
        return None
    unreadable = dict(zip(columns.pop("bad_ids").tolist(), columns.pop("bad_reasons").tolist(), strict=True))
    per_image = {name: columns.pop(name) for name in ("kept", "digests", "square_digests")}
    return Cached(**arrays, **per_image, metadata=columns, unreadable=unreadable, key=files)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.memmap(path, np.uint8, "r", shape=shape)
    except OSError:
        # A file system that maps no file into memory: then the images take up as much memory as they are large.
        return np.fromfile(path, np.uint8).reshape(shape)


def build(name: str, listing: Listing, image_size: int, folder: Path) -> None:
    """Decode every file of ``listing`` into ``folder``, which appears only when it is complete.

    Args:
        name: the data set's name, for messages.
        listing: the source's files.
        image_size: pixels a side of the squares that they are fitted into.
        folder: replaced where it exists, for then it is damaged.

    Raises:
        DataError: not one file could be read, or a process that read them died.
        StorageError: the disk is full.
    """
    for leftover in folder.parent.glob(f".{folder.name}.*.part"):  # by a build that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with atomic_folder(folder) as part:
        index = _decode_all(name, listing, image_size, part)
        np.savez(part / "index.npz", made_for=np.array(folder.name), **cast("dict[str, Any]", index))
        shutil.rmtree(folder, ignore_errors=True)  # one that was damaged


def _decode_all(name: str, listing: Listing, image_size: int, part: Path) -> dict[str, np.ndarray]:
    """Write ``images`` and ``signatures`` into ``part`` and return the index."""
    rows: list[tuple[int | str | float, ...]] = []
    unreadable: dict[str, str] = {}
    answers = _written(_decoded(listing.files, image_size), part)
    for position, row in enumerate(progress(answers, f"reading {name}", len(listing.files))):
        if isinstance(row, str):
            unreadable[listing.ids[position]] = row
        else:
            rows.append((position, *row))
    if not rows:
        reason = next(iter(unreadable.values()), "there are none")
        raise DataError(
            f"not one of the {len(listing.files)} images of {name!r} could be read ({reason}): look at the files."
        )
    index = {column: np.array(values) for column, values in zip(_COLUMNS, zip(*rows, strict=True), strict=True)}
    return index | {"bad_ids": np.array(list(unreadable), str), "bad_reasons": np.array(list(unreadable.values()), str)}


def _written(batches: Iterator[Batch], part: Path) -> Iterator[Row | str]:
    """Write images and signatures into ``part`` as they come and pass on what the index needs."""
    with (part / "images").open("wb") as images, (part / "signatures").open("wb") as signatures:
        for squares, thumbnails, answers in batches:
            images.write(squares)
            signatures.write(thumbnails)
            yield from answers


def _decoded(files: list[Path], image_size: int) -> Iterator[Batch]:
    """All files in order, many by several processes: threads would wait for one another at the interpreter's lock."""
    jobs = max(1, min(16, joblib.cpu_count(), len(files) // _WORTH_A_PROCESS))
    try:
        with joblib.Parallel(jobs, return_as="generator") as parallel:
            for window_start in range(0, len(files), _WINDOW):
                # Absolute paths, for a process keeps the folder that it started in.
                window = [path.absolute() for path in files[window_start : window_start + _WINDOW]]
                batches = (window[batch_start : batch_start + _BATCH] for batch_start in range(0, len(window), _BATCH))
                yield from parallel(joblib.delayed(_read)(batch, image_size) for batch in batches)
    except BrokenExecutor as error:
        raise DataError(
            "a process that read images was ended, most likely for want of memory: close other programs."
        ) from error


def _read(files: list[Path], image_size: int) -> Batch:
    """What one process reads at a time; the rest of the data set's images never is in its memory."""
    squares: list[bytes] = []
    signatures: list[bytes] = []
    rows: list[Row | str] = []
    for path in files:
        try:
            decoded = reading.read(path, image_size)
        except DataError as error:
            rows.append(str(error))
            continue
        squares.append(decoded.square.tobytes())
        signatures.append(decoded.signature.tobytes())
        digests = decoded.digest.hex(), hashlib.sha256(squares[-1]).hexdigest()[:32]
        rows.append(
            (
                *digests,
                decoded.width,
                decoded.height,
                decoded.kind,
                path.stat().st_size,
                decoded.brightness,
                decoded.border,
            )
        )
    return b"".join(squares), b"".join(signatures), rows
