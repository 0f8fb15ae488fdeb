"""Pixels of every kind that people have, against pydicom, nibabel's own volumes,
and pictures whose values are known."""

import gzip
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicoms import dicom, dicom_without_preamble
from PIL import Image, PngImagePlugin

from kdnb.datasets import reading
from kdnb.datasets.reading import decode
from kdnb.errors import DataError

GREY = np.random.default_rng(0).integers(100, 4000, (20, 30)).astype(np.uint16)  # 12 bits used
COLOUR = np.random.default_rng(1).integers(0, 4096, (20, 30, 3)).astype(np.uint16)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(decode(path)[0])


def stretched(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.round((values - values.min()) * 255 / (values.max() - values.min())).astype(np.uint8)


# -- DICOM ----------------------------------------------------------------------------------------------------------


WINDOWS = {  # what the header says of the grey values
    "nothing": {},
    "window": {"WindowCenter": 2000, "WindowWidth": 1500},
    "several windows": {"WindowCenter": [1000, 3000], "WindowWidth": [500, 500]},
    "exact window": {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
    "slope": {"RescaleSlope": 2.5, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 4000},
    "negative slope": {"RescaleSlope": -1, "RescaleIntercept": 4095},
}


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_dicom_agrees_with_pydicoms_own_windows(case, photometric, tmp_path):
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    path = dicom(tmp_path / "x.dcm", GREY, PhotometricInterpretation=photometric, **WINDOWS[case])
    file = pydicom.dcmread(path)
    expected = stretched(apply_voi_lut(apply_modality_lut(file.pixel_array, file), file))
    expected = 255 - expected.astype(int) if photometric == "MONOCHROME1" else expected
    assert np.abs(pixels(path).astype(int) - expected).max() <= 1


def test_signed_values_and_padding_do_not_set_the_range(tmp_path):
    values = GREY.astype(np.int16)
    values[:5] = -2000
    inside = stretched(values[5:])
    for photometric, expected in (("MONOCHROME2", inside), ("MONOCHROME1", 255 - inside)):
        path = dicom(tmp_path / "x.dcm", values, 16, PhotometricInterpretation=photometric, PixelPaddingValue=-2000)
        assert not pixels(path)[:5].any(), "padding is black"
        assert np.abs(pixels(path)[5:].astype(int) - expected).max() <= 1
    values[0] = -1990
    limited = dicom(tmp_path / "y.dcm", values, 16, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1980)
    assert not pixels(limited)[:5].any() and np.abs(pixels(limited)[5:].astype(int) - inside).max() <= 1
    everywhere = dicom(tmp_path / "z.dcm", np.full((4, 4), 7, np.uint16), PixelPaddingValue=7)
    assert not pixels(everywhere).any()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("order", [1, -1])
def test_a_palette_is_applied_as_pydicom_does(depth, order, tmp_path):
    import pydicom
    from pydicom.pixels import apply_color_lut

    index = np.random.default_rng(2).integers(0, 256, (20, 30)).astype(np.uint8)
    table = (np.arange(256)[::order] * (257 if depth == 16 else 1)).astype(np.uint16 if depth == 16 else np.uint8)
    tables = {}
    for name, values in (("Red", table), ("Green", table // 2), ("Blue", table * 0)):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, depth]
        tables[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    path = dicom(tmp_path / "x.dcm", index, 8, PhotometricInterpretation="PALETTE COLOR", **tables)
    file = pydicom.dcmread(path)
    own = apply_color_lut(file.pixel_array, file).astype(float)
    assert np.abs(pixels(path) - own / (257 if depth == 16 else 1)).max() <= 0.5
    assert np.abs(pixels(path)[..., 0].astype(int) - (index if order == 1 else 255 - index)).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_colours_are_scaled_by_the_bits_that_are_used(bits, tmp_path):
    ramp = np.repeat(
        np.linspace(0, 2**bits - 1, 48).astype(np.uint16 if bits > 8 else np.uint8)[None, :, None], 3, axis=2
    )
    shown = pixels(dicom(tmp_path / "x.dcm", np.repeat(ramp, 4, axis=0), bits))
    assert shown.shape == (4, 48, 3) and np.abs(shown[0, :, 0] - np.linspace(0, 255, 48)).max() <= 1


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("name", ["x.dcm", "IM0001", "1.2.840.1"])
def test_dicom_without_its_first_part_is_read_whatever_it_is_called(implicit, name, tmp_path):
    path = dicom_without_preamble(tmp_path / name, GREY, implicit)
    assert path.read_bytes()[128:132] != b"DICM" and reading.is_dicom(path)
    assert np.array_equal(pixels(path), stretched(GREY))


def test_other_files_are_not_taken_for_dicom(tmp_path):
    samples = [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"II*\x00\x08\x00\x00\x00",
        b"BM",
        b"GIF89a",
        b"P5 2 2 255 ",
        b"\x08\x00",
        b"",
    ]
    for k, start in enumerate(samples):
        (tmp_path / str(k)).write_bytes(start + bytes(range(200)))
        assert not reading.is_dicom(tmp_path / str(k)), start


@pytest.mark.parametrize("frames", [1, 2, 20])
def test_of_several_frames_the_middle_one_is_read_and_said(frames, tmp_path, monkeypatch):
    volume = np.random.default_rng(3).integers(0, 4096, (frames, 20, 30)).astype(np.uint16)
    path = dicom(tmp_path / "x.dcm", volume, NumberOfFrames=frames)
    assert np.array_equal(pixels(path), stretched(volume[frames // 2]))
    assert decode(path)[1] == "DICOM MONOCHROME2" + (f", one of {frames} frames" if frames > 1 else "")
    monkeypatch.setattr(reading, "MAX_PIXELS", 600)
    monkeypatch.setattr(reading, "MAX_BYTES", 1500)
    assert pixels(path).shape == (20, 30), "what is not read does not count"


@pytest.mark.parametrize("where", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_a_frame_has_its_own_scale_and_window(where, tmp_path):
    import pydicom
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    volume = np.random.default_rng(3).integers(0, 4096, (3, 20, 30)).astype(np.uint16)
    groups = []
    for k in range(3):
        scale, window, group = Dataset(), Dataset(), Dataset()
        scale.RescaleSlope, scale.RescaleIntercept = 2 + k, -1000
        window.WindowCenter, window.WindowWidth = 3000, 1500 + k
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [scale], [window]
        groups.append(group)
    path = dicom(
        tmp_path / "x.dcm", volume, NumberOfFrames=3, **{where: groups if where.startswith("Per") else groups[1:2]}
    )
    single = pydicom.dcmread(path)
    single.update(groups[1].PixelValueTransformationSequence[0])
    single.update(groups[1].FrameVOILUTSequence[0])
    expected = stretched(apply_voi_lut(apply_modality_lut(volume[1], single), single))
    assert np.abs(pixels(path).astype(int) - expected).max() <= 1 and not np.array_equal(expected, stretched(volume[1]))


def test_dicom_without_an_image_is_named(tmp_path):
    import pydicom

    file = pydicom.dcmread(dicom(tmp_path / "x.dcm", GREY))
    for name in ("Rows", "Columns", "PixelData"):
        del file[name]
    file.save_as(tmp_path / "x.dcm")
    with pytest.raises(DataError, match="a DICOM file without an image"):
        decode(tmp_path / "x.dcm")


def test_the_middle_frame_of_colours(tmp_path):
    volume = np.random.default_rng(4).integers(0, 256, (5, 20, 30, 3)).astype(np.uint8)
    assert np.array_equal(pixels(dicom(tmp_path / "x.dcm", volume, 8, NumberOfFrames=5)), volume[2])


def lossless_jpeg(values: np.ndarray, bits: int) -> bytes:
    """A lossless JPEG (ITU T.81 H, each pixel predicted by its left neighbour) with one code of five bits for each size
    of difference."""

    def segment(mark: int, content: bytes) -> bytes:
        return struct.pack(">HH", mark, len(content) + 2) + content

    height, width = values.shape
    before = np.empty_like(values, np.int64)
    before[:, 1:], before[1:, 0], before[0, 0] = values[:, :-1], values[:-1, 0], 1 << (bits - 1)
    stream = ""
    for step in (values.astype(np.int64) - before).ravel().tolist():
        size = abs(step).bit_length()
        stream += f"{size:05b}" + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "")
    stream += "1" * (-len(stream) % 8)
    packed = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    head = segment(0xFFC3, struct.pack(">BHHB3B", bits, height, width, 1, 1, 0x11, 0))
    head += segment(0xFFC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)]))
    return b"\xff\xd8" + head + segment(0xFFDA, bytes([1, 1, 0, 1, 0, 0])) + packed + b"\xff\xd9"


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", ["JPEGLossless", "JPEGLosslessSV1"])
def test_lossless_jpeg_is_read(bits, syntax, tmp_path):
    import pydicom

    values = (GREY >> 4).astype(np.uint8) if bits == 8 else GREY
    path = dicom(tmp_path / "x.dcm", values, bits)
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    file.PixelData = pydicom.encaps.encapsulate([lossless_jpeg(values, bits)])
    file["PixelData"].VR = "OB"
    file.save_as(path)
    assert np.array_equal(pixels(path), stretched(values))


def test_run_length_coding_is_read_and_damage_is_one_line(tmp_path):
    import pydicom

    path = dicom(tmp_path / "x.dcm", GREY)
    file = pydicom.dcmread(path)
    file.compress(pydicom.uid.RLELossless)
    file.save_as(path)
    assert np.array_equal(pixels(path), stretched(GREY))
    for syntax in ("JPEG2000Lossless", "JPEGLosslessSV1", "JPEGLSLossless", "JPEGBaseline8Bit"):
        file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        file.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f" + bytes(98)])
        file["PixelData"].VR = "OB"
        file.save_as(path)
        with pytest.raises(DataError) as caught:
            decode(path)
        assert re.fullmatch(
            r"pixels packed as JPEG[^,\n]*, which (are damaged|no plug-in here reads).*: (fetch|convert) the file.*",
            str(caught.value),
        )


def test_packing_without_a_plug_in_is_named_with_its_cure(tmp_path, monkeypatch):
    import pydicom
    from pydicom.pixels.decoders import base

    path = dicom(tmp_path / "x.dcm", GREY)
    file = pydicom.dcmread(path)
    file.compress(pydicom.uid.RLELossless)
    file.save_as(path)
    monkeypatch.setattr(base.Decoder, "is_available", property(lambda self: False))
    monkeypatch.setattr(
        base.Decoder, "_validate_plugins", lambda self, plugin="": (_ for _ in ()).throw(RuntimeError("a\nb"))
    )
    with pytest.raises(DataError, match="packed as RLE Lossless, which no plug-in here reads: convert the file"):
        decode(path)


# -- NIfTI ----------------------------------------------------------------------------------------------------------


def volume_of(codes: str, shape: tuple[int, int, int] = (12, 14, 10)) -> tuple[np.ndarray, np.ndarray]:
    """A volume stored along the axes ``codes``, and its middle axial slice as it should look.

    Its values are those of world places: towards the patient's right, front and top.
    """
    import nibabel
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    world = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    turn = ornt_transform(io_orientation(np.eye(4)), axcodes2ornt(codes))
    stored = nibabel.Nifti1Image(apply_orientation(world, turn), inv_ornt_aff(turn, shape))
    assert "".join(nibabel.aff2axcodes(stored.affine)) == codes
    top = codes.index("S") if "S" in codes else codes.index("I")
    middle = stored.shape[top] // 2
    level = middle if "S" in codes else shape[2] - 1 - middle
    return stored, stretched(world[:, :, level].T[::-1, ::-1])  # front up, the patient's right on the left


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "ASL", "SPL", "RSA", "IAL"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_middle_axial_slice_looks_the_same_however_it_is_stored(codes, ending, tmp_path):
    import nibabel

    volume, expected = volume_of(codes)
    nibabel.save(volume, tmp_path / f"x{ending}")
    assert np.array_equal(pixels(tmp_path / f"x{ending}"), expected)
    assert decode(tmp_path / f"x{ending}")[1] == "NIfTI float32, one of 10 slices"


def test_other_shapes_of_nifti(tmp_path):
    import nibabel

    values = np.random.default_rng(6).integers(0, 900, (12, 14, 5, 3)).astype(np.int16)
    for shape, plane in (
        ((12, 14, 5, 3), values[:, :, 2, 0]),
        ((12, 14, 1), values[:, :, 0, 0]),
        ((12, 14), values[:, :, 0, 0]),
    ):
        stored = values if len(shape) == 4 else values[:, :, :1, 0].reshape(shape)
        nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), tmp_path / "x.nii")
        assert np.array_equal(pixels(tmp_path / "x.nii"), stretched(plane.T[::-1, ::-1])), shape
    hole = values[:, :, :, 0].astype(np.float32)
    hole[:3] = np.nan
    nibabel.save(nibabel.Nifti1Image(hole, np.eye(4)), tmp_path / "x.nii")
    assert not pixels(tmp_path / "x.nii")[:, -3:].any() and pixels(tmp_path / "x.nii").max() == 255
    (tmp_path / "broken.nii.gz").write_bytes(gzip.compress(bytes(600)))
    with pytest.raises(DataError, match="no NIfTI inside"):
        decode(tmp_path / "broken.nii.gz")


def test_a_nifti_that_would_unfold_without_limit_is_refused(tmp_path, monkeypatch):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 40, 40), np.uint8), np.eye(4)), tmp_path / "x.nii.gz")
    assert (tmp_path / "x.nii.gz").stat().st_size < 5000
    monkeypatch.setattr(reading, "MAX_BYTES", 5000)
    with pytest.raises(DataError, match="volume of more than"):
        decode(tmp_path / "x.nii.gz")


# -- 16 bits --------------------------------------------------------------------------------------------------------


def png16(path: Path, values: np.ndarray, chunk: bytes = b"") -> Path:
    """A PNG of 16 bits a channel; Pillow writes none of colours."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)

    def block(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + block(b"IHDR", size) + chunk + block(b"IDAT", zlib.compress(rows)) + block(b"IEND", b"")
    )
    return path


def tiff16(
    path: Path,
    values: np.ndarray,
    order: str = "<",
    photometric: int = 2,
    orientation: int = 1,
    strips: int = 1,
    packed: bool = False,
) -> Path:
    """A TIFF of 16 bits a channel."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if packed else data
    step = len(data) // strips
    tags = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [16] * channels),
        (259, 3, [8 if packed else 1]),
        (262, 3, [photometric]),
    ]
    tags += [(273, 4, [8 + step * k for k in range(strips)]), (274, 3, [orientation]), (277, 3, [channels])]
    tags += [(278, 3, [height // strips]), (279, 4, [step] * strips)] + ([(338, 3, [2])] if channels == 4 else [])
    directory, beyond = b"", b""
    start = 8 + len(data)
    for number, kind, content in tags:
        content_bytes = b"".join(struct.pack(order + ("H" if kind == 3 else "I"), value) for value in content)
        if len(content_bytes) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(beyond)
            beyond, content_bytes = beyond + content_bytes, struct.pack(f"{order}I", place)
        directory += struct.pack(f"{order}HHI", number, kind, len(content)) + content_bytes.ljust(4, b"\x00")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + directory + bytes(4) + beyond)
    return path


@pytest.mark.parametrize("factor", [1, 16])
def test_16_bits_of_colour_are_treated_as_16_bits_of_grey(factor, tmp_path):
    expected = stretched(COLOUR)
    assert np.array_equal(pixels(png16(tmp_path / "x.png", COLOUR * factor)), expected)
    for order in "<>":
        assert np.array_equal(pixels(tiff16(tmp_path / "x.tif", COLOUR * factor, order)), expected), order
        assert np.array_equal(pixels(tiff16(tmp_path / "x.tif", COLOUR * factor, order, packed=True)), expected), order
    assert np.array_equal(pixels(tiff16(tmp_path / "x.tif", COLOUR * factor, strips=5)), expected)
    grey = np.repeat(GREY[..., None], 3, axis=2) * np.uint16(factor)
    Image.fromarray(GREY * np.uint16(factor)).save(tmp_path / "grey.png")
    assert np.array_equal(pixels(png16(tmp_path / "x.png", grey))[..., 0], pixels(tmp_path / "grey.png"))


def test_16_bits_with_transparency_lie_on_black(tmp_path):
    alpha = np.full((20, 30, 1), 65535, np.uint16)
    assert np.array_equal(pixels(png16(tmp_path / "x.png", np.concatenate([COLOUR, alpha], axis=2))), stretched(COLOUR))
    assert np.array_equal(
        pixels(png16(tmp_path / "y.png", np.concatenate([GREY[..., None], alpha], axis=2)))[..., 0], stretched(GREY)
    )
    alpha[:10] = 0
    seen = pixels(png16(tmp_path / "z.png", np.concatenate([GREY[..., None], alpha], axis=2)))
    assert not seen[:10].any() and seen[10:].max() == 255


def test_16_bit_colours_are_set_upright_once(tmp_path):
    for orientation, turned in ((1, COLOUR), (6, np.rot90(COLOUR, -1)), (3, np.rot90(COLOUR, 2))):
        assert np.array_equal(pixels(tiff16(tmp_path / "x.tif", COLOUR, orientation=orientation)), stretched(turned)), (
            orientation
        )


@pytest.mark.parametrize("packed", [False, True])
def test_white_is_zero_is_inverted_whatever_the_bits(packed, tmp_path):
    white = pixels(tiff16(tmp_path / "w.tif", GREY[..., None], photometric=0, packed=packed))
    assert np.array_equal(white, 255 - stretched(GREY))
    for order in "<>":
        assert np.array_equal(
            pixels(tiff16(tmp_path / "b.tif", GREY[..., None], order, photometric=1, packed=packed)), stretched(GREY)
        )


def test_metadata_over_a_megabyte_are_no_obstacle(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("scan", "0123456789" * 300_000, zip=True)
    Image.fromarray(stretched(GREY)).save(tmp_path / "x.png", pnginfo=info)
    assert np.array_equal(pixels(tmp_path / "x.png"), stretched(GREY))
