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
    """Train ``teacher`` in place by cross-entropy and store it, or load it if the run holds it under the same key.

    Args:
        run: where it is stored.
        name: what it is stored under.
        teacher: with its initial weights.
        train: what it learns from.
        validation: what each epoch is judged on.
        recipe: with 0 epochs the teacher is stored as it is: its weights came with it.
        key: the identity of all that it is made from.
        seed: of the order of the images.
        scheduler: address of a Dask scheduler one of whose workers shall train it.

    Returns:
        The history of its epochs: ``epoch``, ``train_loss``, ``val_accuracy``, ``seconds``, ``model``.
    """
    if run.has_model(name, key) and run.has_table(f"{name}_history"):
        run.load_model(name, teacher, key)
        return run.load_table(f"{name}_history")
    unfinished = run.folder / "models" / "unfinished" / f"{name}.safetensors"
    if recipe.epochs == 0:
        accuracy = training.accuracy_of(teacher, teacher.state_dict(), validation)
        epochs = pd.DataFrame([{"epoch": 0, "train_loss": float("nan"), "val_accuracy": accuracy, "seconds": 0.0}])
    elif scheduler:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        shared = networks.portable(teacher), train, validation, recipe, str(unfinished.absolute()), key
        ((weights, epochs),) = cluster.mapped(scheduler, _trained_on_worker, shared, [seed])
        teacher.load_state_dict(weights)
    else:
        fitted = training.fit(
            teacher,
            train,
            validation,
            recipe,
            _cross_entropy,
            seed=seed,
            checkpoint=unfinished,
            key=key,
            what="Teacher",
        )
        epochs = fitted.history
    history = run.save_table(f"{name}_history", epochs.assign(model="teacher"))
    run.save_model(name, teacher, key)
    unfinished.unlink(missing_ok=True)
    return history


def _cross_entropy(logits: Tensor, teacher_logits: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def _trained_on_worker(
    shared: tuple[networks.Portable, training.Examples, training.Examples, training.Recipe, str, str], seed: int
) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """A teacher trained on a worker: its weights and its history.

    Its checkpoint lies in the run's folder where the worker sees that; then whoever takes over goes on from there.

    Args:
        shared: the teacher as :func:`kdnb.networks.portable` sends it, its training and validation images, the recipe,
            the checkpoint's path and its key.
        seed: of the order of the images.

    Returns:
        The weights of the last epoch on the CPU, and the history of the epochs.
    """
    sent, train, validation, recipe, unfinished, key = shared
    checkpoint = Path(unfinished) if Path(unfinished).parent.is_dir() else None
    teacher = copy.deepcopy(networks.arrived(sent))
    fitted = training.fit(teacher, train, validation, recipe, _cross_entropy, seed=seed, checkpoint=checkpoint, key=key)
    return {name: value.cpu() for name, value in fitted.last.items()}, fitted.history


def refitted_teacher(run: Run, experiment: Experiment, seed: int, scheduler: str | None = None) -> torch.nn.Module:
    """Notebook 02's teacher once more: the same recipe, but the images of training and validation together.

    With the run's seed its start and its order are that teacher's, too; another seed tells what luck there is in
    training a teacher.

    Args:
        run: where notebook 02's teacher is described, and this one is stored.
        experiment: with training and validation apart.
        seed: of its initial weights and of the order of its images.
        scheduler: address of a Dask scheduler one of whose workers shall train it.

    Returns:
        The teacher, trained now or loaded.
    """
    made = run.info()["teacher"]
    name, image_size = networks.of_run(run, "teacher"), experiment.train.images.shape[1]
    teacher, _ = networks.new_teacher(name, experiment.num_classes, image_size, made["weights"], made["head"], seed)
    recipe, key = training.Recipe(**made["recipe"]), content_key(made["key"], "with validation", seed)
    both, stored_as = training_and_validation(experiment).train, f"teacher_with_validation_s{seed}"
    train_teacher(run, stored_as, teacher, both, experiment.validation, recipe, key, seed, scheduler)
    return teacher
