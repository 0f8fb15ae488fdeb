"""Read one image file of almost any kind into a square of RGB bytes, or say in a few words why not.

What is done to every image: EXIF orientation applied, first frame of several, transparency laid on black, 16-bit and
float values (grey, or all colours together) stretched linearly from the image's own minimum and maximum to 0..255.
DICOM: of several frames the middle one; palette applied; colours scaled by the bits used; grey windowed as the header
says, then stretched, padding black. NIfTI: of the first volume the middle axial slice, as radiologists see it (front
up, the patient's right on the left), stretched. Then the aspect ratio is kept, the longer side becomes the square's
side with an antialiasing (triangle) filter, and the rest is black, half on either side.
"""

import hashlib
import re
import stat
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from kdnb.errors import DataError

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp",
    ".webp", ".gif", ".ppm", ".pgm", ".dcm", ".dicom",
))  # fmt: skip
NIFTI = (".nii", ".nii.gz")
MAX_PIXELS = 64_000_000  # a decoded image of this size takes 192 MB; more is refused before it is decoded
MAX_BYTES = 1_000_000_000  # of a file
# What the suffixes stand for. Pillow knows more kinds, and hands PostScript to another program, whatever the file is
# called.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SIGNATURE = 64  # side of the grey thumbnail that duplicates are looked for with
_DEEP = ("I", "F")  # Pillow's modes with more than 8 bits a channel, besides "I;16..."
_PHOTOMETRIC = 262  # TIFF's tag that says what 0 means: white (0) or black (1)
# Bytes of text beside an image, unpacked; some microscopes write more than Pillow's 1 MB.
PngImagePlugin.MAX_TEXT_CHUNK = 16_000_000


@dataclass(frozen=True)
class Decoded:
    """One file, read.

    Attributes:
        square: ``(size, size, 3)`` uint8.
        signature: ``(64, 64)`` uint8, the whole image in grey, squeezed to a square.
        digest: hash of the decoded pixels at full size, the same for grey in one channel and in three.
        width: pixels as stored upright.
        height: pixels as stored upright.
        kind: such as ``"JPEG L"``.
        brightness: mean grey value of the image, 0..255.
        border: mean grey value of its outermost pixels, 0..255.
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

    Args:
        path: the file, of any kind that :data:`SUFFIXES` and :data:`NIFTI` name.
        size: pixels a side of the square.

    Returns:
        The square, and what tells duplicates and odd files.

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
    return Decoded(
        square, signature, digest.digest()[:16], *image.size, kind, float(signature.mean()), float(border.mean())
    )


def _one_channel(image: Image.Image) -> Image.Image:
    """The grey image that an RGB image with three equal channels is.

    Most brain MRI are stored so, and it is a third of the work.

    Returns:
        An image in mode L, or ``image`` itself.
    """
    if image.mode == "RGB":
        red, green, blue = image.split()
        if red == green == blue:
            return red
    return image


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Resize a grey or RGB image into a square: aspect ratio kept, antialiased, black around it.

    Returns:
        ``(size, size, 3)`` uint8.
    """
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
    """Decode a file at full size.

    Args:
        path: the file; what it holds is found by its first bytes, NIfTI by its name.

    Returns:
        The image, upright, in mode L or RGB, and its kind as ``"<format> <mode>"``.

    Raises:
        DataError: the reason in a few words.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file")
        if status.st_size == 0:
            raise DataError("empty file")
        if is_dicom(path):  # of which one frame is read, however large the file
            return _dicom(path)
        if status.st_size > MAX_BYTES:
            raise DataError(f"the file has more than {MAX_BYTES // 1_000_000} MB")
        if path.name.lower().endswith(NIFTI):
            return _nifti(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about metadata and sizes; the size is checked here
            with Image.open(path, formats=_FORMATS) as opened:
                _check_size(*opened.size)
                kind = f"{opened.format} {opened.mode}"
                if (image := _deep_colour(path, opened)) is not None:
                    return image, kind
                white_is_zero = getattr(opened, "tag_v2", {}).get(_PHOTOMETRIC) == 0
                opened.load()
                return _eight_bit(ImageOps.exif_transpose(opened), white_is_zero), kind
    except DataError:
        raise
    except Exception as error:
        # Decoders of damaged files raise anything from OSError to struct.error; all mean the same here.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(reason.replace(str(path), "the file").replace(repr(str(path)), "the file")[:120]) from error


def is_dicom(path: Path) -> bool:
    """Whether a file's first bytes say DICOM, whatever its name: with a preamble, or beginning with a data element."""
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    group, element, length = (int.from_bytes(head[k : k + n], "little") for k, n in ((0, 2), (2, 2), (4, 4)))
    return (
        len(head) == 132
        and group in (2, 8)
        and element <= 0x20
        and (head[4:6] in (b"UL", b"UI", b"CS", b"OB") or 0 < length <= 64)
    )


def transfer_syntax(path: Path) -> "UID | None":
    """How a DICOM file packs its pixels, as its first part says.

    Args:
        path: the file.

    Returns:
        Its transfer syntax; ``None`` for a file without its first part.

    Raises:
        DataError: the file is deflated as a whole, so that its length says nothing about what it unfolds to.
    """
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file:
        read_preamble(file, force=True)
        syntax = _read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise DataError("deflated DICOM, which may unfold without limit")
    return syntax


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{width} x {height} pixels are more than {MAX_PIXELS // 1_000_000} million")


def _eight_bit(image: Image.Image, white_is_zero: bool = False) -> Image.Image:
    """Any of Pillow's modes to L or RGB; ``white_is_zero``: of more than 8 bits, which Pillow does not invert."""
    if image.mode in _DEEP or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float32)
        return _stretched(-values if white_is_zero else values)
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _deep_colour(path: Path, opened: ImageFile.ImageFile) -> Image.Image | None:
    """An image of 16 bits a colour, which Pillow would cut to the upper 8; ``None`` for every other image."""
    modes = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in opened.tile if tile.args}
    raw = modes.pop() if len(modes) == 1 else ""
    if raw not in ("LA;16B", *(f"{mode};16{order}" for mode in ("RGB", "RGBA") for order in "BLN")):
        return None
    little = raw.endswith("L") or (raw.endswith("N") and sys.byteorder == "little")
    alpha: np.ndarray | None
    if raw == "LA;16B":  # four bytes a pixel: read them as they are
        pair = _decoded_as(path, "RGBA").astype(np.float32)
        values, alpha = (256 * pair[..., :2:2] + pair[..., 1:2]).repeat(3, axis=-1), 256 * pair[..., 2] + pair[..., 3]
    else:  # told the other order of bytes, Pillow takes the lower one of each
        mode = raw.partition(";")[0]
        high, low = (_decoded_as(path, f"{mode};16{order}").astype(np.float32) for order in ("LB" if little else "BL"))
        channels = 256 * high + low
        values, alpha = channels[..., :3], channels[..., 3] if mode == "RGBA" else None
    return _stretched(values if alpha is None else values * (alpha / 65535)[..., None])


def _decoded_as(path: Path, raw: str) -> np.ndarray:
    """The upright pixels of an image when they are taken for another arrangement of the same length."""
    with Image.open(path, formats=_FORMATS) as opened:
        opened.tile = [
            tile._replace(args=raw if isinstance(tile.args, str) else (raw, *cast("tuple", tile.args)[1:]))
            for tile in opened.tile
        ]
        opened.load()
        return np.asarray(ImageOps.exif_transpose(opened))


def _stretched(values: np.ndarray, padding: np.ndarray | None = None) -> Image.Image:
    """Grey values (or colours, all together) of any range to 0..255 by the image's own minimum and maximum.

    Args:
        values: float32, ``(H, W)`` or ``(H, W, 3)``.
        padding: where there is no image, bool; black, and no part of the range.

    Returns:
        The image in mode L or RGB; black, where all values are equal.

    Raises:
        DataError: a value inside the image is not finite.
    """
    seen = values if padding is None or padding.all() else values[~padding]
    if not np.isfinite(seen).all():
        raise DataError("pixels that are not finite numbers")
    low, high = float(seen.min()), float(seen.max())
    if padding is not None and seen is not values:
        values = np.where(padding, low, values)
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def _dicom(path: Path) -> tuple[Image.Image, str]:
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        syntax = transfer_syntax(path)
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        if not syntax:  # a file without its first part
            implicit, little = header.original_encoding
            syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        if "Rows" not in header or "Columns" not in header:
            raise DataError("a DICOM file without an image")
        _check_size(int(header.Columns), int(header.Rows))
        frames = int(header.get("NumberOfFrames", 1) or 1)
        try:
            pixels = pixel_array(path, index=frames // 2, transfer_syntax_uid=syntax)
        except (RuntimeError, NotImplementedError) as error:
            packing = re.split(r"[,(]", syntax.name)[0].strip()[:40]
            if not _can_unpack(syntax):
                raise DataError(f"pixels packed as {packing}, which no plug-in here reads: convert the file") from error
            raise DataError(
                f"pixels packed as {packing}, which are damaged or not of that kind: fetch the file again"
            ) from error
        _take_over(header, frames // 2)
        kind = f"DICOM {header.PhotometricInterpretation}" + (f", one of {frames} frames" if frames > 1 else "")
        if header.PhotometricInterpretation == "PALETTE COLOR":
            colours = apply_color_lut(pixels, header)
            return Image.fromarray(_scaled(colours, 8 * colours.itemsize)), kind
        if int(header.get("SamplesPerPixel", 1)) > 1:
            return Image.fromarray(_scaled(pixels, int(header.BitsStored))).convert("RGB"), kind
        values = np.asarray(apply_voi_lut(apply_modality_lut(pixels, header), header), np.float32)
    values = -values if header.PhotometricInterpretation == "MONOCHROME1" else values
    return _stretched(values, _padding(pixels, header)), kind


def _take_over(header: "Dataset", frame: int) -> None:
    """Put what a file of several frames says of one frame's scale and window where that of a single image stands."""
    shared, single = header.get("SharedFunctionalGroupsSequence"), header.get("PerFrameFunctionalGroupsSequence")
    for group in [*(shared or [])[:1], *(single or [])[frame : frame + 1]]:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (group.get(name) or [])[:1]:
                header.update({element.tag: element for element in item})


def _can_unpack(syntax: "UID") -> bool:
    from pydicom.pixels import get_decoder

    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _scaled(colours: np.ndarray, bits: int) -> np.ndarray:
    """Colours of so many bits to 0..255."""
    return colours if bits == 8 else np.round(np.clip(colours * (255 / (2**bits - 1)), 0, 255)).astype(np.uint8)


def _padding(pixels: np.ndarray, header: "Dataset") -> np.ndarray | None:
    """Where a DICOM image says that it has none."""
    if (value := header.get("PixelPaddingValue")) is None:
        return None
    limit = header.get("PixelPaddingRangeLimit")
    limit = value if limit is None else limit
    return (pixels >= min(value, limit)) & (pixels <= max(value, limit))


def _nifti(path: Path) -> tuple[Image.Image, str]:
    import nibabel
    from nibabel.orientations import io_orientation

    try:
        volume = cast("SpatialImage", nibabel.load(path))
    except nibabel.filebasedimages.ImageFileError as error:
        raise DataError("no NIfTI inside, whatever the name: fetch the file again") from error
    shape, dtype = volume.shape, volume.get_data_dtype()
    if dtype.fields or len(shape) < 2 or 0 in shape:
        raise DataError(f"a NIfTI of shape {shape} and type {dtype}, which has no grey slices")
    shape = (*shape, 1)[:3]
    if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > MAX_BYTES:
        raise DataError(f"a volume of more than {MAX_BYTES // 1_000_000} MB")
    # Of each axis: which of right, front and top it runs along, and whether towards it.
    turn = io_orientation(volume.affine)
    turn = np.array([[0, 1], [1, 1], [2, 1]]) if np.isnan(turn).any() else turn
    towards_right, towards_front, upwards = np.argsort(turn[:, 0])
    _check_size(shape[towards_right], shape[towards_front])
    index: list[slice | int] = [*[slice(None)] * 3, *[0] * (len(volume.shape) - 3)]
    index[upwards] = shape[upwards] // 2
    middle = tuple(index[: len(volume.shape)])
    plane = np.asarray(volume.dataobj[middle] if len(volume.shape) > 2 else volume.dataobj, np.float32)
    plane = plane if towards_front < towards_right else plane.T  # rows run to front or back
    plane = plane[::-1] if turn[towards_front, 1] > 0 else plane
    plane = plane[:, ::-1] if turn[towards_right, 1] > 0 else plane
    kind = f"NIfTI {dtype}" + (f", one of {shape[upwards]} slices" if shape[upwards] > 1 else "")
    return _stretched(plane, ~np.isfinite(plane)), kind
