"""Read one image file of almost any kind into a square of RGB bytes, or say in a few words why not.

What is done to every image: EXIF orientation applied, first frame of several, transparency laid on black, 16-bit and float
values stretched linearly from the image's own minimum and maximum to 0..255, DICOM windowed as its header says; then the aspect
ratio is kept, the longer side becomes the square's side with an antialiasing (triangle) filter, and the rest is black, half on
either side.
"""

import hashlib
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kdnb.errors import DataError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".dcm", ".dicom"))
MAX_PIXELS = 64_000_000  # a decoded image of this size takes 192 MB; more is refused before it is decoded
MAX_BYTES = 1_000_000_000  # of a file
# What the suffixes stand for. Pillow knows more kinds, and hands PostScript to another program, whatever the file is called.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SIGNATURE = 64  # side of the grey thumbnail that duplicates are looked for with
_DEEP = ("I", "F")  # Pillow's modes with more than 8 bits a channel, besides "I;16..."


@dataclass(frozen=True)
class Decoded:
    """One file, read.

    Attributes:
        square: ``(size, size, 3)`` uint8. signature: ``(64, 64)`` uint8, the whole image in grey, squeezed to a square.
        digest: hash of the decoded pixels at full size, the same for grey in one channel and in three. width, height: pixels as
            stored upright. kind: such as ``"JPEG L"``.
        brightness, border: mean grey value of the image and of its outermost pixels, 0..255.
    """

    square: np.ndarray
    signature: np.ndarray
    digest: bytes
    width: int
    height: int
    kind: str
    brightness: float
    border: float


def read(path: Path, size: int) -> Decoded:
    """Decode ``path`` and fit it into a square of ``size`` pixels.

    Raises:
        DataError: the reason in a few words, whatever is wrong with the file.
    """
    image, kind = decode(path)
    image = _one_channel(image)
    grey = image if image.mode == "L" else image.convert("L")
    signature = np.asarray(grey.resize((SIGNATURE, SIGNATURE), Image.Resampling.BOX))
    border = np.concatenate([signature[0], signature[-1], signature[:, 0], signature[:, -1]])
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    square = fit(image, size)
    return Decoded(square, signature, digest.digest()[:16], *image.size, kind, float(signature.mean()), float(border.mean()))


def _one_channel(image: Image.Image) -> Image.Image:
    """The grey image that an RGB image with three equal channels is: most brain MRI are stored so, and it is a third of the work."""
    if image.mode == "RGB":
        red, green, blue = image.split()
        if red == green == blue:
            return red
    return image


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Resize a grey or RGB image into a ``(size, size, 3)`` uint8 square: aspect ratio kept, antialiased, black around it."""
    top, left, height, width = box(*image.size, size)
    small = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    square = np.zeros((size, size, 3), np.uint8)
    square[top : top + height, left : left + width] = small[..., None] if small.ndim == 2 else small
    return square


def box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Where an image lies in its square: top, left, height, width, in pixels of the square."""
    scale = size / max(width, height)
    width, height = (max(1, round(side * scale)) for side in (width, height))
    return (size - height) // 2, (size - width) // 2, height, width


def decode(path: Path) -> tuple[Image.Image, str]:
    """The image in ``path`` at full size, upright, in mode L or RGB, and its kind as ``"<format> <mode>"``.

    Raises:
        DataError: the reason in a few words.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file")
        if status.st_size == 0:
            raise DataError("empty file")
        if status.st_size > MAX_BYTES:
            raise DataError(f"the file has more than {MAX_BYTES // 1_000_000} MB")
        if is_dicom(path):
            return _dicom(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about metadata and sizes; the size is checked here
            with Image.open(path, formats=_FORMATS) as opened:
                _check_size(*opened.size)
                kind = f"{opened.format} {opened.mode}"
                opened.load()
                return _eight_bit(ImageOps.exif_transpose(opened)), kind
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise anything from OSError to struct.error; all mean the same here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(reason.replace(str(path), "the file").replace(repr(str(path)), "the file")[:120]) from error


def is_dicom(path: Path) -> bool:
    """Whether the file's first bytes say DICOM, whatever its name."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{width} x {height} pixels are more than {MAX_PIXELS // 1_000_000} million")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes to L or RGB."""
    if image.mode in _DEEP or image.mode.startswith("I;16"):
        return _stretched(np.asarray(image, np.float32))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _stretched(values: np.ndarray) -> Image.Image:
    """Grey values of any range to 0..255 by the image's own minimum and maximum."""
    if not np.isfinite(values).all():
        raise DataError("pixels that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def _dicom(path: Path) -> tuple[Image.Image, str]:
    import pydicom
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels import apply_modality_lut, apply_voi_lut
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise DataError("deflated DICOM, which may unfold without limit")
        file = pydicom.dcmread(path)
        _check_size(int(file.Columns), int(file.Rows) * int(file.get("NumberOfFrames", 1) or 1))
        pixels = file.pixel_array
        samples = int(file.get("SamplesPerPixel", 1))
        pixels = pixels[0] if pixels.ndim > (3 if samples > 1 else 2) else pixels
        kind = f"DICOM {file.PhotometricInterpretation}"
        if samples > 1:
            return Image.fromarray(pixels.astype(np.uint8)).convert("RGB"), kind
        values = np.asarray(apply_voi_lut(apply_modality_lut(pixels, file), file), np.float32)
    return _stretched(-values if file.PhotometricInterpretation == "MONOCHROME1" else values), kind
