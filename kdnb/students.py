"""Recorded students: a finished run's networks, small enough to be kept beside its tables.

``data/measured/<run>/students/<name>.safetensors`` holds a student's weights in float16 under the key of what it was trained from, with a
hash of the content; the record's ``provenance.json`` says, student by student, that key, the hash of the run's own file, the cell that
trained it and its shape. So what needs a trained student of the default run and nothing else need not train one.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdnb import models, networks, tensors
from kdnb.cost import parameters
from kdnb.errors import ArtefactError
from kdnb.runs import Run, tensors_metadata

# What is kept of what a run stores, and of which shape; a student whose shape is None is of the run's own network.
LARGEST = 250_000  # parameters of a student that is kept: half a megabyte in float16
KEPT: dict[str, str | None] = {"student_ce": None, "student_kd": None, "student_kd_t2": None, "student_transparent": "transparent"}


def of_run(run: Run, name: str, num_classes: int) -> nn.Module | None:
    """A trained student that the run stored under a name of :data:`KEPT`, in evaluation mode; ``None`` where it stored none.

    Raises:
        ArtefactError: its file was changed since.
    """
    if f"models/{name}.safetensors" not in run.info().get("artefacts", {}):
        return None
    if (shape := KEPT[name]) is not None:
        return run.load_model(name, models.student(shape, num_classes, run.budget.student_widths))
    return networks.load_student(run, name, num_classes)


def record(run: Run, num_classes: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Keep the students of :data:`KEPT` that the run stored in ``folder`` (``data/measured/<run>``), in float16.

    Returns:
        name -> what the provenance says of it: ``cell``, ``shape``, ``key``, and ``sha256``, the hash of the run's own file. Left out are
        students of more than :data:`LARGEST` parameters, and all where the run's is a network of one's own.
    """
    own = networks.of_run(run, "student")
    kept, info = {}, run.info()
    for name, shape in KEPT.items() if own in models.SHAPES else ():
        student = of_run(run, name, num_classes)
        if student is not None and parameters(student) <= LARGEST:
            key = tensors_metadata(run.model_path(name)).get("key", "")
            tensors.save(_path(folder, name), tensors.in_type(student.state_dict(), torch.float16), key)
            signed = info["artefacts"][f"models/{name}.safetensors"]["sha256"]
            kept[name] = {"cell": info.get("students", {}).get(name, ""), "shape": shape or own, "key": key, "sha256": signed}
    for path in (folder / "students").glob("*.safetensors"):
        if path.stem not in kept:  # an earlier record of this run had it
            path.unlink()
    return kept


def recorded(folder: Path, name: str) -> nn.Module | None:
    """The student that ``folder`` (``data/measured/<run>``) has recorded under a name, in evaluation mode; ``None`` where it has none.

    Raises:
        ArtefactError: its file is damaged or not the one that was recorded.
    """
    told = json.loads((folder / "provenance.json").read_text(encoding="utf-8")).get("students", {}).get(name)
    if told is None:
        return None
    found = tensors.load(_path(folder, name), told["key"])
    if found is None:
        raise ArtefactError(f"{_path(folder, name)} is not the student that was recorded: fetch it again or record the run anew.")
    weights = tensors.in_type(found[0], torch.float32)
    depth = len({part.split(".")[1] for part in weights if part.startswith("features.")})
    widths = [weights[f"features.{block}.0.weight"].shape[0] for block in range(depth)]
    student = models.student(told["shape"], len(weights["classifier.bias"]), widths)
    student.load_state_dict(weights)
    return student.eval()


def _path(folder: Path, name: str) -> Path:
    return folder / "students" / f"{name}.safetensors"
