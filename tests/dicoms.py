"""DICOM files as small as they can be."""

from pathlib import Path
from zlib import crc32

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def dataset(values: np.ndarray, bits: int = 12, syntax: UID = ExplicitVRLittleEndian, **elements) -> Dataset:
    """A grey image ``(H, W)``, one of colours ``(H, W, 3)`` or frames of them, of so many bits a pixel;
    ``elements`` replace or add."""
    file = Dataset()
    file.SOPClassUID = SecondaryCaptureImageStorage
    file.SOPInstanceUID = generate_uid(entropy_srcs=[str(crc32(values.tobytes()))])  # the same in every session
    file.Rows, file.Columns = values.shape[-3:-1] if values.shape[-1] == 3 else values.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if values.shape[-1] == 3 else (1, "MONOCHROME2")
    if values.shape[-1] == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * values.itemsize, bits, bits - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    return file


def dicom(path: Path, values: np.ndarray, bits: int = 12, **elements) -> Path:
    """Write :func:`dataset` to ``path``."""
    dataset(values, bits, **elements).save_as(path, enforce_file_format=True)
    return path


def dicom_without_preamble(path: Path, values: np.ndarray, implicit: bool) -> Path:
    """As old scanners write it: the data set alone, from the file's first byte on."""
    file = dataset(values)
    del file.file_meta
    file.save_as(path, implicit_vr=implicit, little_endian=True)
    return path
