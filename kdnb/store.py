"""Trained students on disk: ``cells/<name>.safetensors`` in the run, each under a key made of all that it depends on.

A student that is stored under its key is never trained again; one under another key is not found.
"""

from dataclasses import asdict
from pathlib import Path

import joblib
import pandas as pd
import torch
from torch import Tensor

from kdnb import losses, specs, tensors
from kdnb.device import place
from kdnb.errors import ArtefactError
from kdnb.experiments import Experiment
from kdnb.provenance import content_key
from kdnb.runs import Run
from kdnb.specs import StudentSpec, TrainedStudent

_LOGITS = ("val_logits", "test_logits", "test_logits_best")


def student_key(spec: StudentSpec, experiment: Experiment) -> str:
    """The identity of a trained student: its spec, the experiment and, where it listens to the teacher, the bank."""
    bank = "" if spec.arm in losses.WITHOUT_TEACHER else content_key(joblib.hash(experiment.bank))
    how = (asdict(experiment.recipe), experiment.widths, experiment.judged)
    return content_key(asdict(spec), experiment.key, bank, *how)


def unfinished_path(checkpoints: Path, spec: StudentSpec) -> Path:
    """Where in the folder ``checkpoints`` the state of a student's unfinished training lies."""
    return checkpoints / f"{spec.name}.safetensors"


def _path(run: Run, spec: StudentSpec, experiment: Experiment) -> Path:
    return run.folder / experiment.folder / f"{spec.name}.safetensors"


def save(run: Run, trained: TrainedStudent, weights: dict[str, Tensor], experiment: Experiment) -> None:
    """Keep a trained student in the run's folder, with its weights, logits and history."""
    stored = {f"weights/{name}": value for name, value in weights.items()}
    stored |= {name: torch.from_numpy(getattr(trained, name)) for name in _LOGITS}
    facts = {"history": trained.history.to_dict("list"), "best_epoch": trained.best_epoch, "seconds": trained.seconds}
    tensors.save(_path(run, trained.spec, experiment), stored, student_key(trained.spec, experiment), facts)


def load(run: Run, spec: StudentSpec, experiment: Experiment) -> TrainedStudent | None:
    """The trained student of ``spec``; ``None`` where it is not stored, damaged, or was trained from something else."""
    loaded = tensors.load(_path(run, spec, experiment), student_key(spec, experiment))
    if loaded is None:
        return None
    stored, facts = loaded
    val, test, best = (stored[name].numpy().copy() for name in _LOGITS)  # a view would keep the whole file in memory
    return TrainedStudent(spec, val, test, pd.DataFrame(facts["history"]), facts["best_epoch"], best, facts["seconds"])


def trained_student(run: Run, spec: StudentSpec, experiment: Experiment) -> torch.nn.Module:
    """The network of a trained student, in evaluation mode.

    Args:
        run: where it is stored.
        spec: which student.
        experiment: what it learned from.

    Returns:
        The network with the weights of its last epoch, on the device that the study computes on.

    Raises:
        ArtefactError: the student is not trained.
    """
    loaded = tensors.load(_path(run, spec, experiment), student_key(spec, experiment))
    if loaded is None:
        raise ArtefactError(
            f"{_path(run, spec, experiment)} is not the finished student {spec.name}: train it first with sweep.train."
        )
    network = specs.student(spec, experiment)
    network.load_state_dict(
        {name.removeprefix("weights/"): value for name, value in loaded[0].items() if name.startswith("weights/")}
    )
    return place(network).eval()
