"""Recorded students: a finished run's networks, kept beside its tables, and put in where a run has trained none.

They are small. ``data/measured/<run>/students/<name>.safetensors`` holds a student's weights in float16 under the key
of what it was trained from, with a hash of the content; the record's ``provenance.json`` says, student by student, that
key, the hashes of the run's own file and of the one kept, the name of its spec and its shape. So what needs a trained
student and nothing else need not train one: :func:`own_or_recorded`. No image is kept.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kdnb import device, models, networks, runs, teachers, tensors
from kdnb.cost import parameters
from kdnb.datasets import ImageSet
from kdnb.errors import ArtefactError
from kdnb.files import file_hash, read_table, tensors_metadata
from kdnb.runs import Run
from kdnb.settings import OWN_STUDENT, OWN_TEACHER, Budget, Settings, budget, run_name
from kdnb.sources import REPOSITORY, from_home

MEASURED = REPOSITORY / "data" / "measured"
# Runs whose students are kept, by the name of the run's folder.
RUNS = (
    "phantom-quick-seed0",  # the default run
    "brain_tumor-cpu-seed0-leak_free",  # brain MRI, no person on both sides of the split
)
LARGEST = 500_000  # parameters of a student that is kept: a megabyte in float16
# What is kept of what a run stores, and of which shape; a student whose shape is None is of the run's own network.
KEPT: dict[str, str | None] = {
    "student_ce": None,
    "student_kd": None,
    "student_kd_t2": None,
    "student_transparent": "transparent",
}
# Of a budget, what a teacher and its students come out of; all else is how much of them is looked at.
TRAINED_BY = (
    *("image_size", "phantom_images", "max_images", "teacher_images", "teacher_epochs"),
    *("student_epochs", "student_learning_rate", "student_widths", "views", "batch_size"),
)


def of_run(run: Run, name: str, num_classes: int) -> nn.Module | None:
    """A trained student that the run stored under a name.

    Args:
        run: the run.
        name: of :data:`KEPT`.
        num_classes: of its data set.

    Returns:
        The student, in evaluation mode; ``None`` where the run stored none.

    Raises:
        ArtefactError: its file was changed since.
    """
    return _own(run, name, num_classes) if _has_trained(run, name) else None


def _has_trained(run: Run, name: str) -> bool:
    return f"models/{name}.safetensors" in run.info().get("artefacts", {})


def _own(run: Run, name: str, num_classes: int, learned_from: tuple[str, str] | None = None) -> nn.Module:
    if name == "teacher":
        return networks.load_teacher(run, num_classes, learned_from)
    if (shape := KEPT.get(name)) is not None:
        student = models.student(shape, num_classes, run.budget.student_widths)
        return run.load_model(name, student, None, learned_from)
    return networks.load_student(run, name, num_classes, learned_from)


# -- recorded by `make record` -----------------------------------------------------------------------------------------


def record(run: Run, num_classes: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Keep the students of :data:`KEPT` that the run stored, in float16.

    Args:
        run: the run.
        num_classes: of its data set.
        folder: ``data/measured/<run>``.

    Returns:
        name -> what the provenance says of it: ``cell``, ``shape``, ``key``, ``sha256``, the hash of the run's own
        file, and ``recorded_sha256``, that of the one kept. Left out are students of more than :data:`LARGEST`
        parameters, and all where the run's is a network of one's own.
    """
    own = networks.of_run(run, "student")
    kept, info = {}, run.info()
    for name, shape in KEPT.items() if own in models.SHAPES else ():
        student = of_run(run, name, num_classes)
        if student is not None and parameters(student) <= LARGEST:
            key = tensors_metadata(run.model_path(name)).get("key", "")
            tensors.save(_path(folder, name), tensors.in_type(student.state_dict(), torch.float16), key)
            signed = info["artefacts"][f"models/{name}.safetensors"]["sha256"]
            kept[name] = {
                "cell": info.get("students", {}).get(name, ""),
                "shape": shape or own,
                "key": key,
                "sha256": signed,
                "recorded_sha256": file_hash(_path(folder, name)),
            }
    for path in (folder / "students").glob("*.safetensors"):
        if path.stem not in kept:  # an earlier record of this run had it
            path.unlink()
    return kept


def recorded(folder: Path, name: str) -> nn.Module | None:
    """A recorded student, or the teacher.

    A teacher is recorded of the default run alone (:mod:`kdnb.teachers`).

    Args:
        folder: ``data/measured/<run>``.
        name: what the student is recorded under, or ``"teacher"``.

    Returns:
        The model, in evaluation mode; ``None`` where the record has none of that name.

    Raises:
        ArtefactError: its file is damaged or not the one that was recorded.
    """
    if not _keeps(metadata := provenance(folder), name):
        return None
    if name == "teacher":
        teacher = models.densenet121_teacher(len(classes(folder)), head=metadata["teacher"]["head"])
        changed = metadata["teacher"].get("recorded_sha256", "") not in ("", file_hash(teachers.RECORDED))
        if changed or teachers.load(teacher, metadata["teacher"]["task"]) is None:
            raise ArtefactError(
                f"the teacher of the students in {folder} is not the one that is recorded: record a run anew."
            )
        return teacher.eval()
    path, about = _path(folder, name), metadata["students"][name]
    whole = path.exists() and file_hash(path) == about["recorded_sha256"]
    loaded = tensors.load(path, about["key"]) if whole else None
    if loaded is None:
        raise ArtefactError(f"{path} is not the student that was recorded: fetch it again or record the run anew.")
    weights = tensors.in_type(loaded[0], torch.float32)
    depth = len({weight.split(".")[1] for weight in weights if weight.startswith("features.")})
    widths = [weights[f"features.{block}.0.weight"].shape[0] for block in range(depth)]
    student = models.student(about["shape"], len(weights["classifier.bias"]), widths)
    student.load_state_dict(weights)
    return student.eval()


def provenance(folder: Path) -> dict[str, Any]:
    """What a record says of itself, empty where ``folder`` holds none."""
    path = folder / "provenance.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def classes(folder: Path) -> list[str]:
    """Names of the classes of a recorded run, in the order of its students' logits."""
    return list(dict.fromkeys(read_table(folder / "per_class.csv")["class"]))


def _keeps(metadata: dict[str, Any], name: str) -> bool:
    return bool(metadata.get("teacher", {}).get("task")) if name == "teacher" else name in metadata.get("students", {})


def _path(folder: Path, name: str) -> Path:
    return folder / "students" / f"{name}.safetensors"


# -- loaded where a run has trained none -------------------------------------------------------------------------------


def own_or_recorded(run: Run, data: ImageSet | None, *names: str) -> list[nn.Module]:
    """A run's trained models or, where it has trained none of them, those of :func:`stand_in`.

    One line is printed where they are recorded ones: whose, of which day and commit, and how accurate.

    Args:
        run: the run.
        data: the run's images; ``None`` where they are not here, which only recorded models can do without.
        names: ``"teacher"``, or names that students are stored under.

    Returns:
        A model a name, in evaluation mode, on the device where the study computes.

    Raises:
        ArtefactError: not trained and not recorded, damaged, or learned from other images than ``data``.
    """
    folder = stand_in(run, data, names)
    if folder is None:
        if data is None:
            raise ArtefactError(
                f"no recorded model of {run.settings.dataset} can stand in; give its images (--data-dir)"
            )
        return [_own(run, name, len(data.classes), (data.data_hash, data.split_hash)) for name in names]
    print(_announced(folder, names))
    return [device.place(cast(nn.Module, recorded(folder, name))) for name in names]


def stand_in(run: Run, data: ImageSet | None, names: Sequence[str]) -> Path | None:
    """The record whose models can stand in for all that ``run`` should have trained.

    It is of the same data set, profile, seed, split and networks, of a budget that trains alike (:data:`TRAINED_BY`),
    and of the same images, split alike; without ``data`` nobody compares these. A run that has trained one of ``names``
    is asked for all: models of two runs are never mixed.

    Args:
        run: the run.
        data: its images, if they are here.
        names: ``"teacher"``, or names that students are stored under.

    Returns:
        Its folder (``data/measured/<run>``); ``None`` where there is no such record, or no need of one.
    """
    settings = {name: getattr(run.settings, name) for name in ("dataset", "profile", "seed", "split_protocol")}
    folder = MEASURED / run_name(**settings)
    metadata = provenance(folder)
    if any(_has_trained(run, name) for name in names) or not all(_keeps(metadata, name) for name in names):
        return None
    if (networks.of_run(run, "teacher"), networks.of_run(run, "student")) != (OWN_TEACHER, OWN_STUDENT):
        return None
    own_budget, recorded_budget = asdict(run.budget), asdict(_budget(metadata))
    alike = metadata["run"] == settings and all(own_budget[name] == recorded_budget[name] for name in TRAINED_BY)
    if data is not None:
        hashes = metadata["data"].get("data_hash"), metadata["data"].get(f"split_hash_{settings['split_protocol']}")
        alike = alike and hashes == (data.data_hash, data.split_hash)
    return folder if alike else None


def opened(folder: str | Path, notebook: str, data_dir: str | Path = "", runs_dir: str | Path = "") -> Run:
    """The run in a folder, as :func:`kdnb.runs.opened`, or one of a recorded run's settings where none was made.

    Args:
        folder: the run's folder or, for a recorded run, its name alone; empty: the default run.
        notebook: the name of the chapter that opens it.
        data_dir: where its images lie, if not where the run found them; of a recorded run they need not be here.
        runs_dir: where a run lies that is named alone; empty: ``runs/``.

    Returns:
        The run; of a recorded one nothing is on disk.

    Raises:
        ArtefactError: there is no run, and none of that name has recorded students.
    """
    folder = folder or RUNS[0]
    path = from_home(folder).absolute()
    usual = (from_home(runs_dir).absolute() if runs_dir else REPOSITORY / "runs") / path.name
    by_name = path.parent in (usual.parent, MEASURED) or len(Path(folder).parts) == 1
    run_dir = usual if by_name and not (path / "run.json").exists() else path
    metadata = provenance(MEASURED / path.name) if by_name else {}
    if not (run_dir / "run.json").exists() and not metadata.get("students"):
        raise ArtefactError(
            f"{run_dir} holds no run: give the folder that `make reproduce` wrote, such as {usual.parent / RUNS[0]}, "
            f"or the name of a recorded run that keeps its students: {', '.join(RUNS)}."
        )
    if (run_dir / "run.json").exists():
        return runs.opened(run_dir, notebook, data_dir)
    images = from_home(data_dir) if data_dir else REPOSITORY / "data" / "raw"
    settings = Settings(**metadata["run"], data_dir=images.absolute(), run_dir=usual, budget=_budget(metadata))
    return Run(settings, notebook)


def origin(folder: Path, name: str) -> dict[str, Any]:
    """Where a recorded model comes from.

    Args:
        folder: ``data/measured/<run>``.
        name: what the student is recorded under, or ``"teacher"``.

    Returns:
        ``run``, ``date``, ``commit``, ``modified`` (whether its code was changed since), ``accuracy`` on test (``None``
        of a model that the run's table of classification does not have) and ``sha256`` of the file.
    """
    metadata = provenance(folder)
    scores = read_table(folder / "classification.csv")
    scores = scores[(scores["model"] == name) & (scores["seed"] == metadata["run"]["seed"])]["accuracy"]
    environment = _of_training(metadata["environment"])
    return {
        "run": folder.name,
        "date": metadata["date"],
        "commit": environment["commit"],
        "modified": environment["modified"],
        "accuracy": float(scores.iloc[0]) if len(scores) else None,
        "sha256": file_hash(teachers.RECORDED if name == "teacher" else _path(folder, name)),
    }


def _of_training(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a provenance as the notebook that trained the students wrote it (:func:`kdnb.runs.in_common`)."""
    return section | section.get("03_distillation", {})


def _budget(metadata: dict[str, Any]) -> Budget:
    """The budget that a recorded run was trained by; what it does not say is the profile's."""
    run, known = metadata["run"], {field.name for field in fields(Budget)}
    recorded_values = {name: value for name, value in _of_training(metadata["budget"]).items() if name in known}
    return budget(run["profile"], run["dataset"], run["split_protocol"], **recorded_values)


def _announced(folder: Path, names: Sequence[str]) -> str:
    """One line: whose models stand in, of which day and commit, and how accurate they are."""
    origins = {name: origin(folder, name) for name in names}
    first = next(iter(origins.values()))
    scores = [f"{name} {about['accuracy']:.3f}" for name, about in origins.items() if about["accuracy"] is not None]
    accuracy = f"; accuracy on its test images: {', '.join(scores)}" if scores else ""
    models_of = f"{' and '.join(names)} as recorded, for this run has trained none: {first['run']} of {first['date']}"
    return f"{models_of}, commit {first['commit'][:8]}{' with changes' * first['modified']}{accuracy}."
