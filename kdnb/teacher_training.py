"""Training a teacher, here or on a Dask worker, and training it once more with the images of validation."""

import copy
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from kdnb import cluster, networks, training
from kdnb.experiments import Experiment, training_and_validation
from kdnb.provenance import content_key
from kdnb.runs import Run


def train_teacher(
    run: Run,
    name: str,
    teacher: torch.nn.Module,
    train: training.Examples,
    validation: training.Examples,
    recipe: training.Recipe,
    key: str,
    seed: int,
    scheduler: str | None = None,
) -> pd.DataFrame:
    """Train ``teacher`` in place by cross-entropy and store it under ``name``, or load it if the run holds it under the same key.

    Args:
        recipe: with 0 epochs the teacher is stored as it is: its weights came with it.
        scheduler: address of a Dask scheduler one of whose workers shall train it.

    Returns:
        The history of its epochs: ``epoch``, ``train_loss``, ``val_accuracy``, ``seconds``, ``model``.
    """
    if run.has_model(name, key) and run.has_table(f"{name}_history"):
        run.load_model(name, teacher, key)
        return run.load_table(f"{name}_history")
    unfinished = run.folder / "models" / "unfinished" / f"{name}.safetensors"
    if recipe.epochs == 0:
        known = training.accuracy_of(teacher, teacher.state_dict(), validation)
        made = pd.DataFrame([{"epoch": 0, "train_loss": float("nan"), "val_accuracy": known, "seconds": 0.0}])
    elif scheduler:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        shared = networks.portable(teacher), train, validation, recipe, str(unfinished.absolute()), key
        ((state, made),) = cluster.mapped(scheduler, _teacher_there, shared, [seed])
        teacher.load_state_dict(state)
    else:
        options = {"seed": seed, "checkpoint": unfinished, "key": key, "what": "Teacher"}
        made = training.fit(teacher, train, validation, recipe, _cross_entropy, **options).history
    history = run.save_table(f"{name}_history", made.assign(model="teacher"))
    run.save_model(name, teacher, key)
    unfinished.unlink(missing_ok=True)
    return history


def _cross_entropy(logits: Tensor, teacher_logits: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def _teacher_there(shared: tuple, seed: int) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """A teacher trained on a worker: its weights and its history.

    Its checkpoint lies in the run's folder where the worker sees that; then whoever takes over goes on from there.
    """
    sent, train, validation, recipe, unfinished, key = shared
    options = {"seed": seed, "checkpoint": Path(unfinished) if Path(unfinished).parent.is_dir() else None, "key": key}
    fitted = training.fit(copy.deepcopy(networks.arrived(sent)), train, validation, recipe, _cross_entropy, **options)
    return {name: value.cpu() for name, value in fitted.last.items()}, fitted.history


def refitted_teacher(run: Run, whole: Experiment, seed: int, scheduler: str | None = None) -> torch.nn.Module:
    """Notebook 02's teacher once more: the same recipe, but the images of training and validation together.

    With the run's seed its start and its order are that teacher's, too; another seed tells what luck there is in training a teacher.
    """
    taught = run.info()["teacher"]
    name, size = networks.of_run(run, "teacher"), whole.train.images.shape[1]
    teacher, _ = networks.new_teacher(name, whole.num_classes, size, taught["weights"], taught["head"], seed)
    recipe, key = training.Recipe(**taught["recipe"]), content_key(taught["key"], "with validation", seed)
    both = training_and_validation(whole).train
    train_teacher(
        run, f"teacher_with_validation_s{seed}", teacher, both, whole.validation, recipe, key, seed, scheduler
    )
    return teacher
