"""Download a data set where there is a network: ``python -m kdnb.datasets.fetch --dataset NAME --data-dir DIR``.

The three Kaggle sets come through ``kagglehub``, MedMNIST through its own package, which checks the MD5 sum. Without a
network, or without the account that Kaggle may ask for, one sentence says what to do by hand.
"""

import argparse
import contextlib
import io
import shutil
import sys
from pathlib import Path

from kdnb.datasets.folders import first
from kdnb.datasets.tables import listing
from kdnb.errors import DataError, DataNotFoundError, DownloadError, ParameterError, exit_status
from kdnb.files import atomic_folder
from kdnb.sources import OPTIONS, REPOSITORY, check_name, from_home, locate, table

MEDMNIST_SIZES = (28, 64, 128, 224)


def fetch(dataset: str, data_dir: Path) -> str:
    """Make sure that ``dataset`` lies in ``data_dir``.

    Args:
        dataset: a name that :func:`kdnb.datasets.load` knows.
        data_dir: where downloaded data sets lie.

    Returns:
        One sentence: where it is and how its folders are understood.

    Raises:
        DownloadError: no network, no account, or not the expected folders in what came.
        DataNotFoundError: it is not there, and only a person can fetch it.
        DataError: folders that are not understood.
    """
    kind, _, rest = check_name(dataset).partition(":")
    if kind == "phantom":
        return "the phantom is generated: there is nothing to download."
    if kind == "medmnist":
        return f"{dataset} is in {medmnist_folder(rest, 64, data_dir)}."
    try:
        folder = locate(dataset, data_dir)
        assert folder is not None  # only what is generated or comes in a package lies nowhere
        images = listing(dataset, folder)
        return f"{dataset} is in {folder}: {images.understood()}; the classes are {first(images.classes, 10)}."
    except DataNotFoundError:
        if kind in OPTIONS or "kaggle" not in table()[kind]:
            raise
    target = data_dir / table()[kind]["folder"]
    _kaggle(kind, target)
    return f"{dataset} is in {locate(dataset, data_dir)}."


def _kaggle(kind: str, target: Path) -> None:
    """Download one of the Kaggle sets and move it to ``target``, whole or not at all."""
    source = table()[kind]
    by_hand = f"download {source['url']} by hand and unpack it so that {target / source['expected_folders'][0]} exists"
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise DownloadError(f"{target} is there, but is not all of {kind}: move it away, or {by_hand}.")
    try:
        import kagglehub

        with contextlib.redirect_stdout(io.StringIO()):
            download = Path(kagglehub.dataset_download(source["kaggle"]))
    except Exception as error:
        # kagglehub raises its own, requests' and the operating system's errors for one cause: nothing came.
        raise DownloadError(f"{kind} could not be downloaded ({type(error).__name__}): {by_hand}.") from error
    if not all((download / name).is_dir() for name in source["expected_folders"]):
        raise DownloadError(
            f"what Kaggle serves as {source['kaggle']!r} has other folders than {source['expected_folders']}: "
            f"{by_hand}."
        )
    with atomic_folder(target) as part:
        shutil.copytree(download, part, dirs_exist_ok=True)


def medmnist_folder(flag: str, image_size: int, data_dir: Path) -> Path:
    """The folder of train/val/test class folders that a MedMNIST set is unpacked to, made on first use.

    Args:
        flag: such as ``"octmnist"``.
        image_size: the smallest published size that is at least as large is taken.
        data_dir: where downloaded data sets lie.

    Returns:
        A folder in ``data_dir``.

    Raises:
        ParameterError: no such flag, or one whose task is not one class an image.
        DownloadError: no network.
    """
    from medmnist import INFO

    if flag in INFO and "multi-label" in INFO[flag]["task"]:
        raise ParameterError(
            f"dataset is {'medmnist:' + flag!r}, whose images have several labels each, which the study does not "
            "support: take one whose images have one class, such as medmnist:octmnist."
        )
    usable = sorted(
        name for name, info in INFO.items() if "3d" not in name and info["task"] in ("multi-class", "binary-class")
    )
    if flag not in usable:
        raise ParameterError(f"dataset is {'medmnist:' + flag!r}, but the flag must be one of: {', '.join(usable)}.")
    size = next((published for published in MEDMNIST_SIZES if published >= image_size), MEDMNIST_SIZES[-1])
    return _unpacked(flag, size, data_dir)


def _unpacked(flag: str, size: int, data_dir: Path, check: bool = True) -> Path:
    """The folder that one published size of a MedMNIST set is unpacked to, made on first use.

    Args:
        flag: such as ``"octmnist"``.
        size: one of ``MEDMNIST_SIZES``.
        data_dir: where downloaded data sets lie.
        check: download the file where it is missing, and check its MD5 sum.

    Returns:
        A folder in ``data_dir``.
    """
    target = data_dir / "medmnist" / f"{flag}_{size}"
    if not target.is_dir():
        with atomic_folder(target) as part:
            for split in ("train", "val", "test"):
                _unpack_medmnist(flag, split, size, part, check)
    return target


def _unpack_medmnist(flag: str, split: str, size: int, folder: Path, check: bool) -> None:
    """Write one split as PNG files, ``<split>/<label>_<name>/<number>.png``."""
    import medmnist

    info = medmnist.INFO[flag]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            items = getattr(medmnist, info["python_class"])(
                split=split, download=check, size=size, root=str(folder.parent)
            )
    except Exception as error:  # the package turns every failure into a RuntimeError, the network library into its own
        file = folder.parent / (flag + ("" if size == 28 else f"_{size}") + ".npz")
        if file.exists():
            raise DataError(
                f"{file} is damaged or not the published file ({type(error).__name__}), and another cannot be had: "
                f"delete it and fetch it again from {info['url' if size == 28 else f'url_{size}']}."
            ) from error
        raise DownloadError(
            f"{flag} could not be downloaded: fetch it from {info['url' if size == 28 else f'url_{size}']} by hand "
            f"and put it at {file}."
        ) from error
    names = {
        int(label): "".join(character if character.isalnum() else "_" for character in name)
        for label, name in info["label"].items()
    }
    for number, (image, label) in enumerate(items):
        class_folder = folder / split / f"{int(label[0])}_{names[int(label[0])]}"
        class_folder.mkdir(parents=True, exist_ok=True)
        image.save(class_folder / f"{number:06d}.png")


def main(arguments: list[str] | None = None) -> int:
    """Download one data set; print where it is, or on failure one sentence, and return 2."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.datasets.fetch", description=main.__doc__)
    parser.add_argument("--dataset", default="phantom")
    parser.add_argument("--data-dir", default="")
    options = parser.parse_args(arguments)
    data_dir = from_home(options.data_dir) if options.data_dir else REPOSITORY / "data" / "raw"
    return exit_status(lambda: print(f"kdnb: {fetch(options.dataset, data_dir.absolute())}"))


if __name__ == "__main__":
    sys.exit(main())
