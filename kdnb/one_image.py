"""One image explained with a finished or a recorded run, as a page and a folder.

``make explain IMAGE=scan.png RUN=phantom-quick-seed0`` calls it. The folder,
``<run>/explained/<image's name>-<hash>/``, holds ``index.html``, ``maps/*.png`` and ``maps/*.npy``,
``probabilities.csv`` and ``manifest.json``: the image, the run, versions, and a hash of every file.
"""

import argparse
import base64
import hashlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kdnb import __version__
from kdnb.errors import DataError, exit_status
from kdnb.explain.own_image import OwnImage, explain_image
from kdnb.files import atomic_folder, file_hash
from kdnb.provenance import environment
from kdnb.report import cells, columns, render
from kdnb.runs import Run
from kdnb.sources import from_home
from kdnb.students import MEASURED, RUNS, opened, provenance

EVIDENCE = "evidence_"  # before the class, in the name of a map of its evidence
NOTICE = "This is a study of a method, not a medical device; nothing here is fit for a diagnosis."


def explain(image: str, folder: str, data_dir: str = "", runs_dir: str = "", model_name: str = "student_kd") -> Path:
    """Explain the image at a path and say what it shows; an earlier explanation of the same image is replaced.

    Args:
        image: the path.
        folder: a run, or the name of a recorded one, as :func:`kdnb.students.opened`.
        data_dir: where the images lie that the student learned from, if not where the run found them.
        runs_dir: where a run lies that is named alone; empty: ``runs/``.
        model_name: which of the run's students explains it.

    Returns:
        The path of the page.

    Raises:
        DataError: the image cannot be read.
        ArtefactError: there is no such run.
    """
    if not image:
        raise DataError(f"image is '', but it must be the path of an image: make explain IMAGE=scan.png RUN={RUNS[0]}.")
    run = opened(folder, "explain_image", data_dir, runs_dir)
    answer = explain_image(run, image, model_name)
    print(f"kdnb: {answer}")
    content = file_hash(from_home(image))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(image).stem).strip("-.")[:40] or "image"
    place = run.folder / "explained" / f"{name}-{content[:8]}"
    with atomic_folder(place) as part:
        write(answer, run, part, {"name": Path(image).name, "sha256": content, "model": model_name})
        shutil.rmtree(place, ignore_errors=True)  # the earlier one, now that there is another
    return place / "index.html"


def write(answer: OwnImage, run: Run, folder: Path, image: dict[str, str]) -> None:
    """Write page, maps, table and manifest into an empty folder."""
    (folder / "maps").mkdir()
    pictures = {"image": _png_of_pixels(answer.image)}
    # What the decision adds up from comes first.
    maps = {f"{EVIDENCE}{name}": values for name, values in answer.evidence.items()} | answer.maps
    for number, (method, values) in enumerate(maps.items()):
        safe_name = re.sub(r"[^A-Za-z0-9_.-]+", "-", method)
        stem = safe_name if safe_name == method else f"{safe_name}-{number}"
        np.save(folder / "maps" / f"{stem}.npy", values, allow_pickle=False)
        pictures[method] = _png_of_map(values, answer.image.shape[0], signed=has_sign(method))
        (folder / "maps" / f"{stem}.png").write_bytes(pictures[method])
    answer.probabilities.to_csv(folder / "probabilities.csv", index=False, float_format="%.8g", lineterminator="\n")
    (folder / "image.png").write_bytes(pictures["image"])
    manifest = {
        "image": image,
        "prediction": answer.probabilities["class"][0],
        "unlike_training": answer.unlike_training,
        "distance": answer.distance,
        "limit": answer.limit,
        "calibration": answer.calibration,
        "without": answer.without,
        "kdnb": __version__,
        "environment": environment(),
        **_of_model(answer, run, image["model"]),
    }
    (folder / "index.html").write_text(page(answer, image["name"], pictures, manifest), encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest["files"] = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    (folder / "manifest.json").write_text(
        json.dumps(manifest, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8"
    )


def _of_model(answer: OwnImage, run: Run, model_name: str) -> dict[str, object]:
    """Which run trained the model, from which images, and a hash of its file; of a recorded one its origin, too."""
    info = run.info()
    if answer.origin:
        record = provenance(MEASURED / answer.origin["run"])
        return {
            "run": record["run"] | {"data": record["data"]},
            "recorded": answer.origin,
            "model_sha256": answer.origin["sha256"],
        }
    artefact = info["artefacts"][f"models/{model_name}.safetensors"]
    return {
        "run": info.get("run", {}) | {"networks": info.get("networks", {}), "data": info.get("data", {})},
        "recorded": None,
        "model_sha256": artefact["sha256"],
    }


def page(answer: OwnImage, name: str, pictures: dict[str, bytes], manifest: dict[str, Any]) -> str:
    """The explanation as one self-contained page."""
    facts = {name: manifest[name] for name in ("run", "recorded", "calibration", "environment") if manifest[name]}
    return render(
        "one_image.html",
        "report.css",
        name=name.encode("utf-8", "replace").decode(),
        answer=str(answer),
        notice=NOTICE,
        heads=columns(answer.probabilities),
        rows=cells(answer.probabilities),
        pictures=[(_words(method), base64.b64encode(picture).decode()) for method, picture in pictures.items()],
        calibration=answer.calibration,
        facts=[(key, json.dumps(value, default=str)) for key, value in facts.items()],
    )


def _words(method: str) -> str:
    return (
        method.replace("feature_maps_layer", "average map of layer ")
        .replace(EVIDENCE, "evidence for ")
        .replace("_", " ")
    )


def has_sign(method: str) -> bool:
    """Whether zero has a meaning in a map: it is evidence, or attributions joined with their signs."""
    return "evidence" in method or method.endswith("_signed")


def _png_of_pixels(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _png_of_map(values: np.ndarray, size: int, *, signed: bool) -> bytes:
    """A map in colours: viridis over its own range, and where zero has a meaning, blue against red about it."""
    from matplotlib import colormaps
    from PIL import Image

    low, high = (-np.abs(values).max(), np.abs(values).max()) if signed else (values.min(), values.max())
    scaled = (values - low) / max(float(high - low), 1e-12)
    colours = (colormaps["RdBu_r" if signed else "viridis"](scaled)[..., :3] * 255).round().astype(np.uint8)
    return _png_of_pixels(np.asarray(Image.fromarray(colours).resize((size, size), Image.Resampling.NEAREST)))


def main(arguments: list[str] | None = None) -> int:
    """Explain one image and print what it shows and where the page lies; for a wrong path, print a sentence."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.one_image", description=main.__doc__)
    parser.add_argument("image")
    parser.add_argument("run", nargs="?", default="")
    parser.add_argument("data_dir", nargs="?", default="")
    parser.add_argument("runs_dir", nargs="?", default="")
    options = parser.parse_args(arguments)
    return exit_status(
        lambda: print(
            f"kdnb: the explanation is {explain(options.image, options.run, options.data_dir, options.runs_dir)}"
        )
    )


if __name__ == "__main__":
    sys.exit(main())
