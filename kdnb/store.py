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


def student_key(one: StudentSpec, experiment: Experiment) -> str:
    """The identity of a finished cell: the cell, the experiment, and the bank where the cell listens to the teacher."""
    bank = "" if one.arm in losses.WITHOUT_TEACHER else content_key(joblib.hash(experiment.bank))
    return content_key(asdict(one), asdict(experiment.recipe), experiment.key, bank, experiment.widths)


def unfinished_path(checkpoints: Path, one: StudentSpec) -> Path:
    return checkpoints / f"{one.name}.safetensors"


def _path(run: Run, one: StudentSpec, experiment: Experiment) -> Path:
    return run.folder / experiment.folder / f"{one.name}.safetensors"


def save(run: Run, trained: TrainedStudent, weights: dict[str, Tensor], experiment: Experiment) -> None:
    parts = {f"weights/{name}": value for name, value in weights.items()}
    parts |= {name: torch.from_numpy(getattr(trained, name)) for name in _LOGITS}
    facts = {"history": trained.history.to_dict("list"), "best_epoch": trained.best_epoch, "seconds": trained.seconds}
    tensors.save(_path(run, trained.spec, experiment), parts, student_key(trained.spec, experiment), facts)


def load(run: Run, one: StudentSpec, experiment: Experiment) -> TrainedStudent | None:
    found = tensors.load(_path(run, one, experiment), student_key(one, experiment))
    if found is None:
        return None
    parts, facts = found
    val, test, best = (parts[name].numpy().copy() for name in _LOGITS)  # a view would keep the whole file in memory
    return TrainedStudent(one, val, test, pd.DataFrame(facts["history"]), facts["best_epoch"], best, facts["seconds"])


def trained_student(run: Run, one: StudentSpec, experiment: Experiment) -> torch.nn.Module:
    """The network of a finished cell, in evaluation mode.

    Raises:
        ArtefactError: the cell is not finished.
    """
    found = tensors.load(_path(run, one, experiment), student_key(one, experiment))
    if found is None:
        raise ArtefactError(
            f"{_path(run, one, experiment)} is not the finished student {one.name}: train it first with sweep.train."
        )
    network = specs.student(one, experiment)
    network.load_state_dict(
        {name.removeprefix("weights/"): value for name, value in found[0].items() if name.startswith("weights/")}
    )
    return place(network).eval()
