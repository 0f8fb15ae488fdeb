"""Awkward and broken input: each file or folder is either handled and counted, or refused with one sentence."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicoms import dicom
from PIL import Image

from kdnb.datasets import cache, describe, load, reading
from kdnb.errors import DataError, DataNotFoundError, KdnbError

SIZE = 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")


def noise(seed: int, shape: tuple[int, ...] = (40, 40, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(noise(seed)).convert(mode)


def fill(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 4, seed: int = 0) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            picture(seed + 100 * number + k).save(folder / name / f"{k}.png")
    return folder


def half_white(path: Path, photometric: str = "MONOCHROME2", cut: int | None = None) -> None:
    """A DICOM file whose upper half has high values, ``cut`` behind so many bytes."""
    values = np.zeros((40, 50), np.uint16)
    values[:20] = 4000
    dicom(path, values, PhotometricInterpretation=photometric)
    if cut:
        path.write_bytes(path.read_bytes()[:cut])


def corrupt(path: Path) -> None:
    """A PNG whose compressed pixels are damaged."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)


def png_header(path: Path, width: int, height: int) -> None:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def exif_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7).save(path, exif=exif)


def float_tiff(path: Path, value: float) -> None:
    values = noise(3)[..., 0].astype(np.float32)
    values[0, 0] = value
    Image.fromarray(values).save(path)


READ = {  # what is put into a class folder and must be read as one more image
    "wrong extension": lambda folder: picture(1).save(folder / "png_inside.jpg", "PNG"),
    "capital suffix": lambda folder: picture(1).save(folder / "IMAGE.JPG", "JPEG"),
    "grey": lambda folder: picture(1, "L").save(folder / "x.png"),
    "one bit": lambda folder: picture(1, "1").save(folder / "x.png"),
    "grey with alpha": lambda folder: picture(1, "LA").save(folder / "x.png"),
    "RGB with alpha": lambda folder: Image.fromarray(noise(1, (40, 40, 4)), "RGBA").save(folder / "x.png"),
    "palette": lambda folder: picture(1, "P").save(folder / "x.png"),
    "palette with transparency": lambda folder: picture(1, "P").save(folder / "x.png", transparency=3),
    "CMYK": lambda folder: picture(1, "CMYK").save(folder / "x.jpg"),
    "16-bit PNG": lambda folder: Image.fromarray(noise(1)[..., 0].astype(np.uint16) * 16).save(folder / "x.png"),
    "16-bit TIFF": lambda folder: Image.fromarray(noise(1)[..., 0].astype(np.uint16) * 16).save(folder / "x.tif"),
    "float TIFF": lambda folder: float_tiff(folder / "x.tiff", 3.5),
    "EXIF orientation": lambda folder: exif_rotated(folder / "x.jpg"),
    "several TIFF pages": lambda folder: picture(1).save(folder / "x.tif", save_all=True, append_images=[picture(2)]),
    "animated GIF": lambda folder: picture(1).save(folder / "x.gif", save_all=True, append_images=[picture(2)]),
    "WebP": lambda folder: picture(1).save(folder / "x.webp"),
    "BMP": lambda folder: picture(1).save(folder / "x.bmp"),
    "DICOM": lambda folder: half_white(folder / "x.dcm"),
    "inverted DICOM": lambda folder: half_white(folder / "x.dcm", "MONOCHROME1"),
    "DICOM without a suffix": lambda folder: half_white(folder / "IM00001"),
    "one pixel": lambda folder: Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / "x.png"),
    "thin as a line": lambda folder: Image.fromarray(noise(1, (2, 900, 3))).save(folder / "x.png"),
    "constant": lambda folder: Image.new("L", (40, 40), 77).save(folder / "x.png"),
    "nested folder": lambda folder: (
        (folder / "left" / "deep").mkdir(parents=True),
        picture(1).save(folder / "left" / "deep" / "x.png"),
    ),
    "spaces, quotes, emoji": lambda folder: picture(1).save(folder / "a 'quoted' \U0001f9e0 näme.png"),
    "line break in the name": lambda folder: picture(1).save(folder / "two\nlines.png"),
    "name that is not UTF-8": lambda folder: picture(1).save(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))),
    "link to an image": lambda folder: (folder / "link.png").symlink_to(folder.parent / "dog" / "0.png"),
}
SKIPPED = {  # what must be skipped, counted, and explained
    "zero bytes": (lambda folder: (folder / "x.png").touch(), "empty file"),
    "truncated JPEG": (
        lambda folder: (picture(1).save(folder / "x.jpg"), os.truncate(folder / "x.jpg", 700)),
        "truncated",
    ),
    "damaged PNG": (lambda folder: (picture(1).save(folder / "x.png"), corrupt(folder / "x.png")), ""),
    "text named as an image": (lambda folder: (folder / "x.jpg").write_text("no image"), "cannot identify"),
    "decompression bomb": (lambda folder: png_header(folder / "x.png", 60_000, 60_000), "pixels"),
    "more pixels than are read": (lambda folder: png_header(folder / "x.png", 9_000, 9_000), "million"),
    "pixels that are missing": (lambda folder: png_header(folder / "x.png", 64, 64), ""),
    "not a number": (lambda folder: float_tiff(folder / "x.tiff", np.nan), "not finite"),
    "truncated DICOM": (lambda folder: half_white(folder / "x.dcm", cut=600), ""),
    "broken link": (lambda folder: (folder / "x.png").symlink_to(folder / "gone.png"), "No such file"),
    "link to itself": (lambda folder: (folder / "x.png").symlink_to(folder / "x.png"), "symbolic links"),
    "pipe": (lambda folder: os.mkfifo(folder / "x.png"), "not a regular file"),
    "loop of folder links": (lambda folder: (folder / "again").symlink_to(folder.parent), "read already"),
    "another kind of file": (lambda folder: (folder / "notes.txt").write_text("hello"), "not named like an image"),
}
IGNORED = {  # what is nobody's image
    "hidden file": lambda folder: (folder / "._x.png").write_bytes(b"mac"),
    "hidden folder": lambda folder: ((folder / ".thumbs").mkdir(), picture(1).save(folder / ".thumbs" / "x.png")),
    "folder named like an image": lambda folder: (folder / "x.png").mkdir(),
}


@pytest.mark.parametrize("case", READ)
def test_read_and_counted(case, tmp_path):
    folder = fill(tmp_path / "set")
    READ[case](folder / "cat")
    data = load(f"folder:{folder}", SIZE)
    assert len(data) == 9 and data.notes["skipped"] == {}
    assert data.images.shape == (9, SIZE, SIZE, 3) and len(set(data.ids)) == 9
    "\n".join(data.ids).encode("utf-8")  # every id can be written to a table


@pytest.mark.parametrize("case", SKIPPED)
def test_skipped_and_counted(case, tmp_path):
    folder = fill(tmp_path / "set")
    build, reason = SKIPPED[case]
    build(folder / "cat")
    data = load(f"folder:{folder}", SIZE)
    assert len(data) == 8
    (message,) = data.notes["skipped"].values()
    assert reason in message and str(tmp_path) not in message and "\n" not in message


@pytest.mark.parametrize("case", IGNORED)
def test_ignored(case, tmp_path):
    folder = fill(tmp_path / "set")
    IGNORED[case](folder / "cat")
    data = load(f"folder:{folder}", SIZE)
    assert len(data) == 8 and data.notes["skipped"] == {}


def two_splits(folder: Path, train: tuple[str, ...], test: tuple[str, ...]) -> None:
    fill(folder / "train", train)
    fill(folder / "test", test, seed=50)


def identical(folder: Path) -> None:
    fill(folder)
    for k in range(4):
        picture(0).save(folder / "cat" / f"{k}.png")


REFUSED = {
    "nothing there": (lambda folder: None, DataNotFoundError, "no folder"),
    "a file": (lambda folder: folder.write_text("x"), DataNotFoundError, "no folder"),
    "empty folder": (lambda folder: folder.mkdir(), DataError, "no class folders"),
    "images without class folders": (
        lambda folder: (folder.mkdir(), picture(1).save(folder / "x.png")),
        DataError,
        "no class folders",
    ),
    "one class": (lambda folder: fill(folder, ("cat",)), DataError, "one class, 'cat'"),
    "empty class": (lambda folder: (fill(folder), (folder / "bird").mkdir()), DataError, "'bird'"),
    "class of broken files": (
        lambda folder: (fill(folder), (folder / "bird").mkdir(), (folder / "bird" / "x.png").touch()),
        DataError,
        "'bird'.*can be read",
    ),
    "class of one image": (
        lambda folder: (fill(folder), [(folder / "cat" / f"{k}.png").unlink() for k in (1, 2, 3)]),
        DataError,
        "'cat'",
    ),
    "class of one image, copied": (identical, DataError, "'cat'.*fewer than two independent"),
    "test lacks a class": (lambda folder: two_splits(folder, ("cat", "dog"), ("cat",)), DataError, "'dog'"),
    "training lacks a class": (
        lambda folder: two_splits(folder, ("cat", "dog"), ("cat", "dog", "elk")),
        DataError,
        "'elk'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_sentence(case, tmp_path):
    build, error, words = REFUSED[case]
    build(tmp_path / "set")
    with pytest.raises(error, match=words) as caught:
        load(f"folder:{tmp_path / 'set'}", SIZE)
    assert isinstance(caught.value, KdnbError) and "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "Test Set"),
        ("training-set", "testing-set"),
        ("trn", "tst"),
    ],
)
def test_usual_spellings_of_splits(train, test, tmp_path):
    fill(tmp_path / "set" / "inner" / train, count=10)
    fill(tmp_path / "set" / "inner" / test, count=3, seed=50)
    data = load(f"folder:{tmp_path / 'set'}", SIZE)
    assert {split: len(data.index(split)) for split in ("train", "val", "test")} == {"train": 16, "val": 4, "test": 6}


def test_published_validation_is_kept_and_a_missing_test_set_is_cut(tmp_path):
    fill(tmp_path / "set" / "train", count=10)
    fill(tmp_path / "set" / "valid", count=3, seed=50)
    data = load(f"folder:{tmp_path / 'set'}", SIZE)
    assert {split: len(data.index(split)) for split in ("train", "val", "test")} == {"train": 16, "val": 6, "test": 4}


def test_patient_folders_are_groups(tmp_path):
    for label, seed in (("cat", 0), ("dog", 100)):
        for patient in range(6):
            folder = tmp_path / "set" / label / f"patient_{patient}"
            folder.mkdir(parents=True)
            for k in range(2):
                picture(seed + 10 * patient + k).save(folder / f"{k}.png")
    data = load(f"folder:{tmp_path / 'set'}", SIZE, split_protocol="leak_free")
    assert len(set(data.groups)) == 12
    assert all(len(set(data.split[data.groups == group])) == 1 for group in set(data.groups))


def test_a_patient_in_train_and_in_test_is_one_group(tmp_path):
    for part, shift in (("train", 0), ("test", 1000)):
        for label, seed in (("cat", 0), ("dog", 500)):
            for patient in range(6 if part == "train" else 14):
                folder = tmp_path / "set" / part / label / f"patient_{patient}"
                folder.mkdir(parents=True)
                for k in range(2):
                    picture(shift + seed + 10 * patient + k).save(folder / f"{k}.png")
    data = load(f"folder:{tmp_path / 'set'}", SIZE, split_protocol="leak_free")
    assert len(set(data.groups)) == 28
    assert len(data.index("test")) == 2 * 8 * 2, "only the eight patients a class that training does not know are left"


def test_a_published_test_without_a_new_patient_is_split_anew_and_says_so(tmp_path):
    for part in ("train", "test"):
        for label, seed in (("cat", 0), ("dog", 100)):
            for patient in range(6):
                folder = tmp_path / "set" / part / label / f"patient_{patient}"
                folder.mkdir(parents=True)
                picture(seed + patient + (1000 if part == "test" else 0)).save(folder / "0.png")
    data = load(f"folder:{tmp_path / 'set'}", SIZE, split_protocol="leak_free")
    sides = [set(data.groups[data.index(part)]) for part in ("train", "val", "test")]
    assert all(sides) and not sides[0] & sides[2] and not sides[0] & sides[1] and not sides[1] & sides[2]
    assert "split anew by persons and copies" in describe(data)


def test_every_file_unreadable(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "x.png").write_text("no")
    with pytest.raises(DataError, match="not one of the 2 images"):
        load(f"folder:{tmp_path / 'set'}", SIZE)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_forbidden_file_is_skipped(tmp_path):
    folder = fill(tmp_path / "set")
    (folder / "cat" / "0.png").chmod(0)
    assert len(load(f"folder:{folder}", SIZE)) == 7


def test_aspect_ratio_is_kept_and_the_rest_is_black(tmp_path):
    Image.new("RGB", (80, 40), (200, 200, 200)).save(tmp_path / "wide.png")
    square = reading.read(tmp_path / "wide.png", 32).square
    assert (square[:8] == 0).all() and (square[24:] == 0).all() and (square[8:24] == 200).all()


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    square = reading.read(tmp_path / "stripes.png", 32).square[2:-2, 2:-2].astype(int)
    assert np.abs(square - 127).max() <= 2, "single-pixel stripes must become grey, not other stripes"


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 40))
    image.paste((255, 255, 255), (0, 0, 40, 20))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: white at the right
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    square = reading.read(tmp_path / "x.jpg", 32).square
    assert square[:, 20:].mean() > 240 and square[:, :12].mean() < 15


@pytest.mark.parametrize(("photometric", "top"), [("MONOCHROME2", 255), ("MONOCHROME1", 0)])
def test_dicom_values(photometric, top, tmp_path):
    half_white(tmp_path / "x.dcm", photometric)
    decoded = reading.read(tmp_path / "x.dcm", 50)
    assert (decoded.width, decoded.height, decoded.kind) == (50, 40, f"DICOM {photometric}")
    assert (decoded.square[6:24] == top).all()


def test_sixteen_bits_keep_their_contrast(tmp_path):
    values = np.zeros((32, 32), np.uint16)
    values[:, 16:] = 4095  # twelve bits used of sixteen
    Image.fromarray(values).save(tmp_path / "x.png")
    square = reading.read(tmp_path / "x.png", 32).square
    assert (square[:, :16] == 0).all() and (square[:, 16:] == 255).all()


def test_transparency_is_laid_on_black(tmp_path):
    pixels = np.full((32, 32, 4), 255, np.uint8)
    pixels[:16, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "x.png")
    square = reading.read(tmp_path / "x.png", 32).square
    assert (square[:16] == 0).all() and (square[16:] == 255).all()


def test_grey_stored_in_three_channels_is_the_same_image(tmp_path):
    grey = picture(1, "L")
    tinted = grey.convert("RGB")
    tinted.putpixel((3, 3), (1, 0, 0))
    for name, image in (("grey", grey), ("three", grey.convert("RGB")), ("tinted", tinted)):
        image.save(tmp_path / f"{name}.png")
    one, three, colour = (reading.read(tmp_path / f"{name}.png", SIZE) for name in ("grey", "three", "tinted"))
    assert one.digest == three.digest != colour.digest
    assert (one.square == three.square).all() and (one.signature == three.signature).all()
    assert (one.kind, three.kind) == ("PNG L", "PNG RGB")
