"""Volumes from every source: the phantom's truth, the order of recovered slices, published files,
and readers of NIfTI and DICOM."""

import gzip
import hashlib
import weakref
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicoms import dataset, dicom
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian

from kdnb.datasets import volume_files, volume_phantom, volumes
from kdnb.errors import DataError, DataNotFoundError, ParameterError

SIZE = 24


@pytest.fixture(scope="module")
def made() -> volume_phantom.VolumePhantom:
    return volume_phantom.generate(300, SIZE)


# -- the phantom ----------------------------------------------------------------------------------------------------


def test_the_same_volumes_on_every_processor_and_a_prefix_of_a_larger_set(made):
    small = volume_phantom.generate(20, SIZE)
    assert all((getattr(small, name) == getattr(made, name)[:20]).all() for name in ("volumes", "labels", "masks"))
    digest = hashlib.sha256(small.volumes.tobytes() + small.labels.tobytes()).hexdigest()
    assert digest == "192ef170bfb0bf1b981a8396f9a618fca93a90e7047bdc158b402622fb0e38bd"
    assert (volume_phantom.generate(20, SIZE, seed=1).volumes != small.volumes).any()


def test_labels_are_drawn_from_the_posterior(made):
    many = volume_phantom.generate(2000, 16)
    assert np.allclose(many.posterior.sum(axis=1), 1)
    for label in range(3):
        expected = many.posterior[:, label]
        spread = np.sqrt((expected * (1 - expected)).sum())
        assert abs((many.labels == label).sum() - expected.sum()) <= 3 * spread + 1e-9
    healthy = np.isnan(many.straightness)
    assert (many.labels[healthy] == 0).all() and (many.labels[~healthy] > 0).all()
    assert many.posterior.max(axis=1).mean() < 0.97, "something is left to luck"


def test_evidence_is_confined_to_the_mask_and_three_slices_hold_it(made):
    bare = volume_phantom.generate(300, SIZE, lesions=False)
    differs = made.volumes != bare.volumes
    assert not (differs & ~made.masks).any()
    slices = made.masks.any(axis=(2, 3)).sum(axis=1)
    assert (slices[made.labels == 0] == 0).all() and (slices[made.labels > 0] == 3).all()
    shares = made.masks[made.labels > 0].any(axis=(2, 3)).mean(axis=0)
    assert shares.max() < 0.65, "no slice alone says where a lesion lies"


def test_no_slice_alone_tells_balls_from_a_tube(made):
    """A slice's disc is as large, as bright and as far from the middle in either class;
    where discs stand in line only depth shows."""
    axis = (2 * np.arange(SIZE) + 1) / SIZE - 1
    places = {}
    for label, straight in ((1, 0.0), (2, 1.0)):
        centres = []
        for volume in np.flatnonzero((made.labels == label) & (made.straightness == straight)):
            of_slices = [mask for mask in made.masks[volume] if mask.any()]
            centres.append([(axis[np.nonzero(m)[1]].mean(), axis[np.nonzero(m)[0]].mean(), m.sum()) for m in of_slices])
        places[label] = np.array(centres)  # (n, 3, 3)
    radius = {label: np.hypot(centres[..., 0], centres[..., 1]) for label, centres in places.items()}
    assert abs(radius[1].mean() - radius[2].mean()) < 0.02
    assert abs(places[1][..., 2].mean() - places[2][..., 2].mean()) < 0.5, "voxels of a disc"
    apart = {label: np.ptp(centres[:, :, :2], axis=1).max(axis=1) for label, centres in places.items()}
    assert apart[2].max() < 1e-6 < 0.5 < apart[1].min()


def test_slices_lie_farther_apart_than_pixels():
    assert volume_phantom.spacing(24) == (2.0, 1.0, 1.0)
    assert volume_phantom.spacing(48) == (4.0, 1.0, 1.0)


def test_volumes_are_images_of_as_many_channels_and_no_copy():
    data = volumes.load("phantom", SIZE, count=60)
    assert data.images.shape == (60, SIZE, SIZE, volume_phantom.DEPTH) and np.shares_memory(data.images, data.volumes)
    assert (data.images[3, :, :, 4] == data.volumes[3, 4]).all()
    assert all(len(data.index(part)) > 0 for part in ("train", "val", "test"))
    assert set(data.split[data.labels == 1]) == {"train", "val", "test"}


@pytest.mark.parametrize(("name", "size"), [("mnist", 24), ("medmnist:octmnist", 24), ("phantom", 25), ("folder:", 24)])
def test_other_names_and_sizes_are_refused(name, size):
    with pytest.raises(ParameterError, match=r"(volumes|volume_size) is .* must be"):
        volumes.load(name, size)


def test_a_data_set_without_volumes_gets_the_phantom_s():
    sources = {
        name: volumes.source_of(name)
        for name in ("phantom", "phantom:volume", "eye_disease", "alzheimer", "alzheimer:2")
    }
    assert sources == {
        "phantom": "phantom",
        "phantom:volume": "phantom",
        "eye_disease": "phantom",
        "alzheimer": "alzheimer:3",
        "alzheimer:2": "alzheimer:2",
    }


# -- slices put together --------------------------------------------------------------------------------------------


def test_levels_follow_the_order_of_the_files():
    """Two subjects, 64 files: the last fifth of the order stands in front,
    so file 13 is the first subject's first slice."""
    ids = np.array([f"Moderate_Demented/moderate{'' if n == 1 else f'_{n}'}.jpg" for n in (13, 14, 15, 64, 1, 12)])
    assert volumes.levels(ids).tolist() == [0, 0, 1, 25, 26, 31]


def test_a_subject_that_lacks_slices_is_named(monkeypatch):
    class Images:
        groups, ids = np.array(["a"] * 31), np.array([f"Moderate_Demented/moderate_{k + 2}.jpg" for k in range(31)])
        images, labels, classes, notes = np.zeros((31, 32, 32, 3), np.uint8), np.zeros(31, np.int64), ("x",), {}

    monkeypatch.setattr(volumes, "load_images", lambda *arguments: Images)
    with pytest.raises(DataError, match="subject a of alzheimer has not 32 slices"):
        volumes.load("alzheimer", 32)


def test_recovered_subjects_become_volumes(monkeypatch):
    """Every slice of the two moderate subjects is painted with its level: the volumes must count upwards."""
    ids = np.array([f"Moderate_Demented/moderate{'' if n == 1 else f'_{n}'}.jpg" for n in range(1, 65)])
    order = (np.arange(64) - 64 // 5) % 64
    images = np.repeat(np.repeat((order // 2).astype(np.uint8)[:, None, None, None], 32, axis=1), 32, axis=2).repeat(
        3, axis=3
    )

    class Images:
        labels, classes, notes = np.zeros(64, np.int64), ("x",), {}
        groups = np.array(["subject_a", "subject_b"])[order % 2]

    Images.ids, Images.images = ids, images
    monkeypatch.setattr(volumes, "load_images", lambda *arguments: Images)
    data = volumes.load("alzheimer", 32)
    assert data.volumes.shape == (2, 32, 32, 32)
    assert (data.volumes[:, :, 0, 0] == np.arange(32)).all()
    assert data.ids.tolist() == ["subject_a", "subject_b"]
    smaller = volumes.load("alzheimer", 16)
    assert smaller.volumes.shape == (2, 32, 16, 16) and (smaller.volumes[:, :, 8, 8] == np.arange(32)).all()


# -- MedMNIST -------------------------------------------------------------------------------------------------------


def medmnist_file(folder: Path, flag: str = "nodulemnist3d") -> Path:
    (folder / "medmnist").mkdir(parents=True)
    file, arrays = folder / "medmnist" / f"{flag}.npz", {}
    for number, split in enumerate(("train", "val", "test")):
        arrays[f"{split}_images"] = np.full((4, 28, 28, 28), 10 * number, np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
    np.savez(file, **arrays)
    return file


def test_a_published_file_put_by_hand_is_read_with_its_split(tmp_path):
    medmnist_file(tmp_path)
    data = volumes.load("medmnist:nodulemnist3d", 28, tmp_path)
    assert data.volumes.shape == (12, 28, 28, 28) and data.classes == ("benign", "malignant")
    assert (data.volumes[data.index("test")] == 20).all() and np.bincount(data.labels[data.index("val")]).tolist() == [
        2,
        2,
    ]


def test_a_published_file_comes_in_the_size_asked_for(tmp_path):
    medmnist_file(tmp_path)
    data = volumes.load("medmnist:nodulemnist3d", 16, tmp_path)
    assert data.volumes.shape == (12, 16, 16, 16) and data.volumes.dtype == np.uint8 and data.spacing == (1.0, 1.0, 1.0)
    assert (data.volumes[data.index("test")] == 20).all()


def test_volumes_larger_than_published_have_the_published_slices(tmp_path):
    medmnist_file(tmp_path).rename(tmp_path / "medmnist" / "nodulemnist3d_64.npz")
    data = volumes.load("medmnist:nodulemnist3d", 128, tmp_path)
    assert data.volumes.shape == (12, 64, 128, 128) and data.spacing == (2.0, 1.0, 1.0)


def test_downloaded_volumes_lie_in_the_study_s_folder_wherever_it_is_called(tmp_path, monkeypatch):
    medmnist_file(tmp_path / "raw")
    monkeypatch.setattr(volumes, "RAW", tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    assert len(volumes.load("medmnist:nodulemnist3d", 28)) == 12


def test_a_damaged_published_file_is_named(tmp_path):
    medmnist_file(tmp_path).write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"nodulemnist3d.npz is damaged"):
        volumes.load("medmnist:nodulemnist3d", 28, tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_published_file_cut_off_is_named(share, tmp_path):
    file = medmnist_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"nodulemnist3d.npz is damaged .*: delete it and fetch it again"):
        volumes.load("medmnist:nodulemnist3d", 28, tmp_path)


def test_an_unknown_flag_names_those_there_are():
    with pytest.raises(ParameterError, match="must be one of: .*nodulemnist3d"):
        volumes.load("medmnist:nonsense3d", 28)


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_nifti_volume_is_turned_upright(tmp_path):
    """A bright voxel to the right, at the front, at the foot; stored with its first axis pointing left."""
    stored = np.zeros((6, 8, 4), np.int16)
    stored[0, 7, 0] = 100  # axis 0 points left, so index 0 is the patient's right; 7 is the front; 0 the foot
    affine = np.diag([-2.0, 2.0, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "a.nii.gz")
    read = volume_files.read_volume(tmp_path / "a.nii.gz")
    assert read.voxels.shape == (4, 8, 6) and read.spacing == (5.0, 2.0, 2.0)
    assert np.argwhere(read.voxels).tolist() == [[0, 0, 0]], "first slice, top row, left column"


def dicom_slice(path: Path, number: int, height: float, value: int, series: str = "1.2.3", patient: str = "P7") -> None:
    dicom(
        path,
        np.full((6, 8), value, np.uint16),
        bits=16,
        SOPClassUID=CTImageStorage,
        SOPInstanceUID=f"1.2.3.{number + 1}",
        SeriesInstanceUID=series,
        PatientID=patient,
        ImagePositionPatient=[0, 0, height],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[0.5, 0.5],
        RescaleSlope=1,
        RescaleIntercept=-1000,
        InstanceNumber=number,
    )


def series_in(folder: Path, heights: tuple[float, ...], patient: str = "P7") -> Path:
    folder.mkdir(parents=True)
    for number, height in enumerate(heights):
        dicom_slice(folder / f"{number}.dcm", number, height, value=int(1000 + height), patient=patient)
    return folder


def test_a_dicom_series_is_sorted_by_position_not_by_name(tmp_path):
    read = volume_files.read_volume(series_in(tmp_path / "s", (9.0, 0.0, 6.0, 3.0)))
    assert read.voxels[:, 0, 0].tolist() == [0.0, 3.0, 6.0, 9.0], (
        "Hounsfield units, from the lowest slice to the highest"
    )
    assert read.spacing == (3.0, 0.5, 0.5) and read.patient == "P7"


def test_a_deflated_slice_is_refused_before_it_unfolds(tmp_path):
    folder = series_in(tmp_path / "s", (0.0, 1.0))
    file = dataset(np.zeros((6, 8), np.uint16), syntax=DeflatedExplicitVRLittleEndian, SeriesInstanceUID="1.2.3")
    file.save_as(folder / "2.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=r"2.dcm is deflated DICOM, .*: convert or remove it"):
        volume_files.read_volume(folder)


def test_a_series_of_more_bytes_than_a_volume_may_have_is_refused_from_its_headers(tmp_path, monkeypatch):
    folder = series_in(tmp_path / "s", (0.0, 1.0, 2.0))
    monkeypatch.setattr(volume_files, "MAX_BYTES", 3 * 6 * 8 * 2 - 1)
    monkeypatch.setattr(volume_files, "_pixels", lambda header: pytest.fail("decoded"))
    with pytest.raises(DataError, match="is a volume of .* MB, but it must have at most"):
        volume_files.read_volume(folder)


def test_colours_or_several_frames_a_file_are_refused_from_the_header(tmp_path):
    (tmp_path / "s").mkdir()
    for number in range(2):
        frames = np.zeros((3, 6, 8), np.uint16)
        dicom(tmp_path / "s" / f"{number}.dcm", frames, NumberOfFrames=3, SeriesInstanceUID="1.2")
    with pytest.raises(DataError, match="colour or several frames a file"):
        volume_files.read_volume(tmp_path / "s")


def test_two_series_in_a_folder_are_refused(tmp_path):
    folder = series_in(tmp_path / "s", (0.0, 1.0))
    dicom_slice(folder / "other.dcm", 5, 2.0, 1000, series="9.9")
    with pytest.raises(DataError, match="3 slices of 2 series"):
        volume_files.read_volume(folder)


def test_class_folders_of_both_kinds_become_one_set(tmp_path):
    others = [("ill", (10, 12, 5))] * 3 + [("well", (12, 10, 5))]
    for number, (name, shape) in enumerate(
        (("ill", (10, 12, 5)), ("well", (12, 10, 5)), ("well", (12, 12, 7)), *others)
    ):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 500, shape).astype(np.int16)
        nibabel.save(
            nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 4.0, 1.0])),
            tmp_path / "set" / name / f"scan_{number}.nii.gz",
        )
    for name in ("series", "later_series"):
        series_in(tmp_path / "set" / "ill" / name, (0.0, 4.0, 8.0, 12.0, 16.0))
    data = volumes.load(f"folder:{tmp_path / 'set'}", 16)
    assert data.volumes.shape == (9, 5, 16, 16) and data.classes == ("ill", "well")
    same = data.groups == "person_P7"
    assert np.bincount(data.labels).tolist() == [6, 3] and same.sum() == 2 and len(set(data.split[same])) == 1, (
        "a person is on one side"
    )
    assert data.spacing[0] > 2 * data.spacing[1], "slices are thick"
    assert data.volumes[data.ids == "well/scan_2.nii.gz"].std() > 20


@pytest.mark.parametrize("everybody", ["ANON", "TRIAL-1"])
def test_one_patient_id_for_everybody_is_nobody_s(everybody, tmp_path):
    for number in range(12):
        series_in(tmp_path / ("ill", "well")[number % 2] / f"s{number}", (0.0, 4.0, 8.0), everybody)
    data = volumes.load(f"folder:{tmp_path}", 16)
    assert len(set(data.groups)) == 12 and all(len(data.index(part)) for part in ("train", "val", "test"))
    assert data.notes["persons"] == "12 persons (no persons found: every volume counts as one)"


def test_too_few_persons_for_a_split_are_refused(tmp_path):
    for number in range(8):
        series_in(tmp_path / ("ill", "well")[number % 2] / f"s{number}", (0.0, 4.0, 8.0), f"P{number // 4}")
    with pytest.raises(DataError, match=r"leaves no volume for (val|test), for its 8 volumes are of 2 persons .*: add"):
        volumes.load(f"folder:{tmp_path}", 16)


def test_an_empty_folder_says_what_to_put_there(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataNotFoundError, match="holds no volumes: put NIfTI files"):
        volumes.load(f"folder:{tmp_path}", 16)
    with pytest.raises(DataNotFoundError, match="no such folder"):
        volumes.load(f"folder:{tmp_path / 'b'}", 16)


def test_a_damaged_nifti_is_named(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"not a volume")
    with pytest.raises(DataError, match=r"a.nii.gz cannot be read"):
        volume_files.read_volume(tmp_path / "a.nii.gz")


def test_a_volume_too_large_is_refused_from_its_header(tmp_path):
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).header
    header.set_data_shape((2000, 2000, 2000))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(100)))
    with pytest.raises(DataError, match="is a volume of 16000 MB, but it must have at most 1000: make it smaller"):
        volume_files.read_volume(tmp_path / "a.nii.gz")


def test_of_a_time_series_the_first_volume_alone_is_unpacked(tmp_path):
    """The file ends behind its first volume."""
    values = np.arange(4 * 5 * 6 * 8, dtype=np.int16).reshape((4, 5, 6, 8), order="F")
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    whole = volume_files.read_volume(tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()[: 352 + 2 * 4 * 5 * 6]))
    assert (volume_files.read_volume(tmp_path / "b.nii.gz").voxels == whole.voxels).all()
    assert whole.voxels.shape == (6, 5, 4) and (whole.voxels[:, ::-1, ::-1].transpose(2, 1, 0) == values[..., 0]).all()


def test_volumes_are_held_one_at_a_time(tmp_path, monkeypatch):
    for number in range(6):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        values = np.random.default_rng(number).integers(0, 99, (8, 8, 5)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "ab"[number % 2] / f"{number}.nii")
    read, alive = volume_files.read_volume, []

    def counted(path: Path) -> volume_files.Read:
        volume = read(path)
        alive.append(weakref.ref(volume))
        assert sum(one() is not None for one in alive) <= 2, "the one before and this one"
        return volume

    monkeypatch.setattr(volume_files, "read_volume", counted)
    assert volume_files.read_folder(tmp_path, 16)[0].shape == (6, 5, 16, 16) and len(alive) == 6


@pytest.mark.parametrize("affine", [np.eye(4), np.eye(4)[[2, 0, 1, 3]], np.diag([-1.0, 1.0, -1.0, 1.0])])
def test_the_depth_in_the_header_is_that_of_the_volume(affine, tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine), tmp_path / "a.nii")
    assert volume_files.depth_of(tmp_path / "a.nii") == len(volume_files.read_volume(tmp_path / "a.nii").voxels)


def test_resizing_keeps_proportions_and_range():
    voxels = np.zeros((4, 8, 16), np.float32)
    voxels[:, :, 8:] = 1
    made = volume_files.resized(voxels, (4, 8, 8))
    assert made[:, 2:6, 4:].min() == 1 and made[:, :2].max() == 0, "margins above and below, no stretching"
    assert volume_files.to_bytes(np.full((2, 2, 2), 7.0)).max() == 0
