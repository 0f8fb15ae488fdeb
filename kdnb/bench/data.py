"""What reading images costs: building the cache against Pillow, an epoch from it against torchvision's usual way."""

import atexit
import multiprocessing
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache as once
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kdnb.bench import Row, Side
from kdnb.datasets import cache, phantom
from kdnb.datasets.folders import scan
from kdnb.device import to_float
from kdnb.views import SHIFT, render, view_moves

IMAGES, FILE_SIZE, IMAGE_SIZE, BATCH = 1500, 224, 64, 64


@once
def _folder() -> Path:
    """Class folders of JPEG files as large as the public data sets' are, removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="kdnb-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for start in range(0, IMAGES, 300):
        data = phantom.generate(300, FILE_SIZE, seed=1 + start)
        for number, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            class_folder = folder / "files" / phantom.CLASSES[label]
            class_folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(class_folder / f"{start + number:05d}.jpg", quality=90)
    return folder


def resized(path: Path) -> np.ndarray:
    """One file, as anybody would read it with Pillow, ``(64, 64, 3)`` uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE)))


def _cache_over_pillow() -> tuple[Side, Side]:
    listing = scan(_folder() / "files")
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    list(pool.map(resized, listing.files[:64], chunksize=16))
    # The processes have started; the warm-up starts those of the other side.

    def build() -> None:
        cache.build("the benchmark", listing, IMAGE_SIZE, _folder() / "cache")

    def pillow() -> None:
        np.stack(list(pool.map(resized, listing.files, chunksize=64)))

    return build, pillow


def _imagefolder_over_cached() -> tuple[Side, Side]:
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)), transforms.RandomHorizontalFlip()]
    steps += [
        transforms.RandomCrop(IMAGE_SIZE, padding=round(SHIFT * IMAGE_SIZE), padding_mode="edge"),
        transforms.ToTensor(),
    ]
    folder = ImageFolder(str(_folder() / "files"), transforms.Compose(steps))
    usual = DataLoader(folder, BATCH, shuffle=True, num_workers=2)
    listing = scan(_folder() / "files")
    cache.build("the benchmark", listing, IMAGE_SIZE, _folder() / "cache")
    images = np.memmap(_folder() / "cache" / "images", np.uint8, "r", shape=(IMAGES, IMAGE_SIZE, IMAGE_SIZE, 3))

    def loaded() -> None:
        for _ in usual:
            pass

    def cached() -> None:
        moves = view_moves(IMAGES, 0, IMAGE_SIZE)
        order = np.random.default_rng(0).permutation(IMAGES)
        for start in range(0, IMAGES, BATCH):
            batch = order[start : start + BATCH]
            to_float(render(torch.from_numpy(images[batch]).permute(0, 3, 1, 2), moves[batch]))

    return loaded, cached


ROWS = {
    "cache_over_pillow": Row(
        f"building the cache of {IMAGES} JPEG files of {FILE_SIZE} pixels at {IMAGE_SIZE} pixels, "
        "hashes and thumbnails included",
        "decoding and resizing them with Pillow in two processes",
        1.3,
        "<=",
        _cache_over_pillow,
        repeats=5,
    ),
    "imagefolder_epoch_over_cached": Row(
        "an epoch of augmented batches from torchvision's ImageFolder and DataLoader with two workers",
        "an epoch of augmented batches from the cache",
        2.0,
        ">=",
        _imagefolder_over_cached,
        repeats=5,
    ),
}
