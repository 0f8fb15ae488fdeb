"""Volumes: generated, put together from a set's slices, from a package or from files; one :class:`VolumeSet` for all.

::

    data = kdnb.datasets.volumes.load("phantom", 24, count=400)
    data.volumes[data.index("train")]   # (n, D, H, W) uint8

``images`` are the same voxels with the slices where an image has its channels, ``(N, H, W, D)``: so whatever trains,
explains or judges networks of images takes volumes as they are. Splits are by whole persons always, and never depend on
a run's seed.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from kdnb.datasets import RAW, volume_phantom
from kdnb.datasets import load as load_images
from kdnb.datasets.groups import ALZHEIMER_SUBJECTS, SLICES, alzheimer_number, persons_by_name, without_placeholders
from kdnb.datasets.splits import by_groups
from kdnb.datasets.volume_files import read_folder, resized
from kdnb.errors import DataError, DownloadError, ParameterError
from kdnb.settings import check
from kdnb.sources import from_home, table

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile

SHARES = {"test": 0.3, "val": 0.1}  # of persons, where no split is published
# Testing costs little, and of generated volumes there are as many as one likes.
GENERATED_SHARES = {"test": 0.5, "val": 0.1}
MEDMNIST_SIDES = (28, 64)


@dataclass(frozen=True)
class VolumeSet:
    """Volumes with what belongs to them, as :class:`kdnb.datasets.ImageSet` has images.

    Attributes:
        name: as :func:`load` takes it.
        volumes: ``(N, D, H, W)`` uint8, slices from one end to the other.
        labels: ``(N,)`` int64, indices into ``classes``.
        classes: names in label order.
        groups: ``(N,)`` str, whose volume each is.
        ids: ``(N,)`` str, unique.
        split: ``(N,)`` str, ``"train"``, ``"val"`` or ``"test"``.
        masks: ``(N, D, H, W)`` bool, the true lesion, or ``None``.
        posterior: ``(N, C)`` float64, the true probability of each class, or ``None``.
        spacing: distance of slices, rows and columns, in the unit of the second.
        notes: what is known of the source, in words.
    """

    name: str
    volumes: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray
    ids: np.ndarray
    split: np.ndarray
    masks: np.ndarray | None = None
    posterior: np.ndarray | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    notes: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> np.ndarray:
        """The volumes as images of D channels, ``(N, H, W, D)``; no copy."""
        return np.moveaxis(self.volumes, 1, -1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns of each volume."""
        return tuple(self.volumes.shape[1:])

    @property
    def data_hash(self) -> str:
        """A hash of volumes, labels, split and spacing."""
        digest = hashlib.sha256(repr((self.volumes.shape, self.spacing, self.split.tolist())).encode())
        digest.update(np.ascontiguousarray(self.volumes).data)
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]

    def index(self, split: str) -> np.ndarray:
        """Positions of the volumes of one split, ``(n,)`` int64."""
        return np.flatnonzero(self.split == split)


def source_of(dataset: str) -> str:
    """The volumes that belong to a run's data set; the phantom's where its images are no slices of volumes.

    Args:
        dataset: a data set of images, as settings name it.

    Returns:
        A name for :func:`load`.

    Example:
        >>> source_of("alzheimer"), source_of("brain_tumor")
        ('alzheimer:3', 'phantom')
    """
    kind, _, rest = dataset.partition(":")
    if kind == "alzheimer":
        return f"alzheimer:{rest or 3}"  # two of 200 subjects are of the fourth class
    return "phantom"


def stand_in(dataset: str, source: str | None) -> bool:
    """Whether volumes of ``source`` only show the chapter, being generated beside images that are not.

    Args:
        dataset: a data set of images, as settings name it.
        source: the volumes beside it, as :func:`load` names them, if there are any.

    Returns:
        Whether the volumes are the phantom's and the images are not.

    Example:
        >>> stand_in("brain_tumor", "phantom"), stand_in("phantom", "phantom"), stand_in("alzheimer", "alzheimer:3")
        (True, False, False)
    """
    return source == "phantom" and dataset.partition(":")[0] != "phantom"


def load(name: str, size: int, data_dir: str | Path | None = None, *, count: int = 400) -> VolumeSet:
    """Load volumes, split by persons.

    Args:
        name: ``"phantom"``, ``"alzheimer"`` (also ``":3"`` and ``":2"``), ``"medmnist:<flag>"`` of a three-dimensional
            set, or ``"folder:<path>"`` (:func:`kdnb.datasets.volume_files.read_folder`).
        size: voxels a side of a slice, a multiple of 4 from 16 to 256.
        data_dir: where downloaded sets lie.
        count: how many volumes of the phantom.

    Returns:
        The volumes with what belongs to them.

    Raises:
        ParameterError: another name or size.
        DataNotFoundError: the source is not there.
        DataError: the source is damaged, or not as it was published.
    """
    kind, _, rest = name.partition(":")
    check("volume_size", size)
    if name == "phantom":
        return _generated(size, count)
    if kind == "alzheimer" and (not rest or rest in table()["alzheimer"]["tasks"]):
        return _alzheimer(name, size, data_dir)
    if kind == "medmnist" and rest.endswith("3d"):
        return _medmnist(rest, size, from_home(data_dir) if data_dir else RAW)
    if kind == "folder" and rest:
        return _folder(name, from_home(rest), size)
    raise ParameterError(
        f"volumes is {name!r}, but it must be one of: "
        "phantom, alzheimer, alzheimer:3, alzheimer:2, medmnist:<flag>3d, folder:<path>."
    )


def _generated(size: int, count: int) -> VolumeSet:
    phantom = volume_phantom.generate(count, size)
    names = [volume_phantom.CLASSES[label] for label in phantom.labels]
    ids = np.array([f"{name}/volume_{number:05d}" for number, name in enumerate(names)])
    persons = np.array([f"subject_{number:05d}" for number in range(count)])
    split = by_groups(phantom.labels, persons, GENERATED_SHARES)
    notes = {"persons": f"{count} subjects with one volume each, generated", "spacing": "as generated"}
    truth_and_notes = (phantom.masks, phantom.posterior, volume_phantom.spacing(size), notes)
    return VolumeSet(
        "phantom", phantom.volumes, phantom.labels, volume_phantom.CLASSES, persons, ids, split, *truth_and_notes
    )


# -- slices of a set of images -----------------------------------------------------------------------------------------


def _alzheimer(name: str, size: int, data_dir: str | Path | None) -> VolumeSet:
    """The 200 subjects of the Alzheimer set as volumes of 32 slices, put in the order of the files' levels."""
    data = load_images(name, max(32, -(-size // 16) * 16), data_dir)  # the sides that the loader of images takes
    persons, member = np.unique(data.groups, return_inverse=True)
    order = np.lexsort((levels(data.ids), member))
    counts = np.bincount(member)
    if (counts != SLICES).any():
        wrong = persons[np.flatnonzero(counts != SLICES)[0]]
        raise DataError(
            f"subject {wrong} of {name} has not {SLICES} slices: the volumes need all 6,400 images as published."
        )
    slices = np.asarray(data.images[order, ..., 0]).reshape(len(persons), SLICES, *data.images.shape[1:3])
    if size != slices.shape[-1]:
        slices = _resized_bytes(slices, (SLICES, size, size))
    labels = data.labels[order].reshape(len(persons), SLICES)[:, 0]
    split = by_groups(labels, persons, SHARES)
    notes = {
        "persons": f"{len(persons)} subjects with {SLICES} slices each ({data.notes.get('persons', 'recovered')})",
        "spacing": "not published; every voxel taken for as long as wide",
    }
    return VolumeSet(name, slices, labels, data.classes, persons, persons, split, notes=notes)


def _resized_bytes(volumes: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Volumes ``(N, D, H, W)`` uint8 in another shape, ``(N, *shape)`` uint8."""
    return np.stack([resized(volume.astype(np.float32), shape).round().astype(np.uint8) for volume in volumes])


def levels(ids: np.ndarray) -> np.ndarray:
    """Which slice of its subject each image of the Alzheimer set is, by the file's number.

    See :func:`kdnb.datasets.groups.alzheimer_subjects` for the order of the files.

    Args:
        ids: ``(N,)`` str, paths below the class folders, as published.

    Returns:
        ``(N,)`` int64, from 0.
    """
    numbers = []
    for identity in ids:
        subjects = ALZHEIMER_SUBJECTS[Path(identity).parent.name]
        count = SLICES * subjects
        numbers.append((alzheimer_number(identity) - 1 - count // 5) % count // subjects)
    return np.array(numbers, np.int64)


# -- MedMNIST ----------------------------------------------------------------------------------------------------------


def _medmnist(flag: str, size: int, data_dir: Path) -> VolumeSet:
    """A three-dimensional set of MedMNIST, downloaded by its package or put by hand where the package looks for it."""
    import medmnist

    if flag not in medmnist.INFO:
        flags = ", ".join(sorted(name for name in medmnist.INFO if name.endswith("3d")))
        raise ParameterError(f"volumes is {'medmnist:' + flag!r}, but the flag must be one of: {flags}.")
    info = medmnist.INFO[flag]
    side = next((published for published in MEDMNIST_SIDES if published >= size), MEDMNIST_SIDES[-1])
    folder = data_dir / "medmnist"
    file = folder / (f"{flag}.npz" if side == 28 else f"{flag}_{side}.npz")
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                getattr(medmnist, info["python_class"])(split="train", download=True, size=side, root=str(folder))
        except Exception as error:
            # The package turns every failure into a RuntimeError, the network library into its own.
            url = info["url" if side == 28 else f"url_{side}"]
            raise DownloadError(
                f"{flag} could not be downloaded: fetch it from {url} by hand and put it at {file}."
            ) from error
    with _opened(file) as arrays:
        by_split = {
            name: (arrays[f"{name}_images"], arrays[f"{name}_labels"].reshape(-1)) for name in ("train", "val", "test")
        }
    volumes, labels = (np.concatenate([published[k] for published in by_split.values()]) for k in (0, 1))
    depth = min(size, side)  # cubes as published, as long as there are so many slices
    if volumes.shape[1:] != (depth, size, size):
        volumes = _resized_bytes(volumes, (depth, size, size))
    split = np.concatenate([np.full(len(numbers), name) for name, (_, numbers) in by_split.items()])
    ids = np.array([f"{name}/{k:05d}" for name, (_, numbers) in by_split.items() for k in range(len(numbers))])
    classes = tuple(info["label"][str(number)] for number in range(len(info["label"])))
    notes = {
        "persons": "no persons known: every volume counts as a person of its own",
        "spacing": "made equal by the publisher",
    }
    name, labels, spacing = f"medmnist:{flag}", labels.astype(np.int64), (size / depth, 1.0, 1.0)
    return VolumeSet(name, volumes, labels, classes, ids, ids, split, spacing=spacing, notes=notes)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator["NpzFile"]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{file} is damaged or not the published file ({type(error).__name__}): delete it and fetch it again."
        ) from error


# -- files -------------------------------------------------------------------------------------------------------------


def _folder(name: str, folder: Path, size: int) -> VolumeSet:
    """A folder of class folders, each of NIfTI files or folders of one DICOM series.

    Args:
        name: as :func:`load` takes it.
        folder: where they lie.
        size: voxels a side of a slice.

    Returns:
        The volumes, split by persons: by DICOM's PatientID where it is said and not everybody's, else by names.

    Raises:
        DataError: there is one class, or too few persons for a validation and a test.
    """
    volumes, names, ids, patients, spacing = read_folder(folder, size)
    classes, labels = np.unique(names, return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"{folder} has volumes of the class {classes[0]!r} alone: put those of each class into a folder of its own."
        )
    named, rule = persons_by_name(ids, names)
    patients = without_placeholders(patients)
    known = (patients != "") & (len(np.unique(patients)) > 1)  # one ID for everybody is nobody's
    persons = np.where(known, np.char.add("person_", patients), named)
    rule = "DICOM's PatientID" if known.any() else rule or "no persons found: every volume counts as one"
    count, split = len(np.unique(persons)), by_groups(labels, persons, SHARES)
    for part in ("train", "val", "test"):
        if not (split == part).any():
            raise DataError(
                f"{folder} leaves no volume for {part}, for its {len(ids)} volumes are of {count} persons ({rule}): "
                "add volumes of other persons."
            )
    notes = {"persons": f"{count} persons ({rule})", "spacing": "the median of the files"}
    labels, class_names = labels.astype(np.int64), tuple(map(str, classes))
    return VolumeSet(name, volumes, labels, class_names, persons, ids, split, spacing=spacing, notes=notes)
