"""What the students of an experiment learn from: the splits, the recipe and the bank of teacher logits.

The *bank* holds the teacher's logits ``(views, N, C)`` on every augmented view of every training image, computed once: students read them
there instead of asking the teacher at each step. A variant of an experiment (few labels, another teacher, more epochs) is a function from
one :class:`Experiment` to another.
"""

from dataclasses import asdict, dataclass, replace

import joblib
import numpy as np
import torch

from kdnb import device, losses, models, models3d, networks, tensors, training, views
from kdnb.datasets import ImageSet
from kdnb.explain import taught
from kdnb.explain.taught import Layout, explanation_bank
from kdnb.provenance import content_key, source_key
from kdnb.runs import Run
from kdnb.settings import check

FEW_SEEN = 600  # images an epoch of students that know only a few: enough to know those by heart


@dataclass(frozen=True)
class Experiment:
    """What every cell is made from, and nothing else: it can be sent to another machine as it is."""

    train: training.Examples
    validation: training.Examples
    test: training.Examples
    bank: np.ndarray
    recipe: training.Recipe
    num_classes: int
    key: str
    folder: str = "cells"  # of the run, where its finished cells lie
    student: str = networks.OWN_STUDENT  # the network that learns, as :mod:`kdnb.networks` names it
    widths: tuple[int, ...] = models.WIDTHS  # filters of each layer of it, where it is the study's own
    explained: Layout | None = (
        None  # how the teacher's explanations lie in the bank, behind its logits, where they are taught
    )
    volumes: models3d.Grid | None = None  # how they lie, where the images are volumes: their students see in depth


def examples(data: ImageSet, split: str) -> training.Examples:
    """One split of a data set as the loop needs it."""
    where = data.index(split)
    return training.Examples(
        data.images[where], data.labels[where], None if data.posterior is None else data.posterior[where]
    )


def of_run(run: Run, data: ImageSet, teacher: torch.nn.Module) -> Experiment:
    """The experiment of a run: its splits, its recipe, and the teacher's bank, computed once and kept in ``models/bank.safetensors``."""
    train, validation, test = (examples(data, split) for split in ("train", "val", "test"))
    budget = run.budget
    recipe = training.Recipe(
        budget.student_epochs, budget.batch_size, min(budget.views, budget.student_epochs), budget.student_learning_rate
    )
    name = networks.of_run(run, "student")
    identity = networks.identity("student", name)
    key = content_key(data.data_hash, data.split_hash, source_key(device, models, losses, training, views), *identity)
    bank = _bank(run, "bank", train, teacher, recipe.views, key)
    return Experiment(
        train, validation, test, bank, recipe, len(data.classes), key, student=name, widths=tuple(budget.student_widths)
    )


def few_labelled(whole: Experiment, per_class: int) -> np.ndarray:
    """Positions of ``per_class`` training images of each class, drawn once; a class that has fewer gives all it has.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    check("per_class", per_class)
    rng = np.random.default_rng([20250215, per_class])
    labels = whole.train.labels
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(whole.num_classes)])


def with_few_images(run: Run, whole: Experiment, teacher: torch.nn.Module, per_class: int) -> Experiment:
    """The experiment with only ``per_class`` training images of each class, repeated up to :data:`FEW_SEEN` an epoch.

    The teacher has seen more: what it knows of the others reaches these students through its logits on the few alone.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    where = np.resize(
        np.random.default_rng(per_class).permutation(few_labelled(whole, per_class)), min(len(whole.train), FEW_SEEN)
    )
    train = _at(whole.train, where)
    key = content_key(whole.key, per_class)
    bank = _bank(run, f"bank_few_{per_class}", train, teacher, whole.recipe.views, key)
    return replace(whole, train=train, bank=bank, key=key, folder=f"cells_few_{per_class}")


def with_few_labels(whole: Experiment, per_class: int) -> Experiment:
    """The experiment with all training images, of which only ``per_class`` of each class keep their label (the same as above).

    Of the others the teacher alone speaks: here it can hand on what it knows of images that nobody labelled.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    labels = np.full(len(whole.train), losses.UNLABELLED)
    known = few_labelled(whole, per_class)
    labels[known] = whole.train.labels[known]
    key = content_key(whole.key, per_class, "the others without labels")
    return replace(whole, train=replace(whole.train, labels=labels), key=key, folder=f"cells_few_labels_{per_class}")


def taught_by(whole: Experiment, name: str, bank: np.ndarray) -> Experiment:
    """The experiment with another teacher's ``bank`` ``(views, N, C)``, such as one of :mod:`kdnb.teachers`."""
    return replace(whole, bank=bank, folder=f"{whole.folder}_{name}")


def with_explanations(run: Run, whole: Experiment, teacher: torch.nn.Module) -> Experiment:
    """The experiment with the teacher's explanations behind its logits in the bank, computed once and kept beside it.

    Raises:
        ModelError: the teacher has no maps of several cells.
    """
    key = content_key(whole.key, source_key(taught), joblib.hash(whole.bank))
    path = run.model_path(f"explanations_{whole.folder}")
    found = tensors.load(path, key)
    if found is None:
        rows, layout = explanation_bank(teacher, whole.train.images, len(whole.bank))
        tensors.save(path, {"explanations": torch.from_numpy(rows)}, key, asdict(layout))
    else:
        rows, layout = (
            found[0]["explanations"].numpy(),
            Layout(tuple(map(tuple, found[1]["attention"])), tuple(found[1]["evidence"])),
        )
    bank = np.concatenate([whole.bank, rows.astype(np.float32)], axis=2)
    return replace(whole, bank=bank, key=key, folder=f"{whole.folder}_explained", explained=layout)


def _at(whole: training.Examples, where: np.ndarray) -> training.Examples:
    posterior = None if whole.posterior is None else whole.posterior[where]
    return training.Examples(whole.images[where], whole.labels[where], posterior)


def of_length(whole: Experiment, epochs: int) -> Experiment:
    """The experiment for students that train for ``epochs``; the views and the bank stay the same."""
    folder = whole.folder + f"_{epochs}_epochs" * (epochs != whole.recipe.epochs)
    return replace(whole, recipe=replace(whole.recipe, epochs=epochs), folder=folder)


def of_plain_student(whole: Experiment) -> Experiment:
    """The experiment for students of the study's own shapes, where the run's student is another network."""
    if whole.student == networks.OWN_STUDENT:
        return whole
    key, folder = content_key(whole.key, networks.OWN_STUDENT), f"{whole.folder}_{networks.OWN_STUDENT}"
    return replace(whole, student=networks.OWN_STUDENT, key=key, folder=folder)


def with_labels_of_persons(whole: Experiment, groups: dict[str, np.ndarray], seed: int = 20250215) -> Experiment:
    """The experiment with a label drawn for each person (group) in place of the true ones: a control for leaks (Yagis et al. 2021).

    Such labels say nothing of the image but who is shown. Whoever reads them on test images, above one in as many as there are classes, has
    recognised a person or a copy that training knows. It has no bank.

    Args:
        groups: the group of each image of ``train``, ``val`` and ``test``.
    """
    persons = np.unique(np.concatenate([groups[part] for part in ("train", "val", "test")]))
    drawn = np.random.default_rng(seed).permutation(np.arange(len(persons)) % whole.num_classes)

    def relabelled(part: training.Examples, who: np.ndarray) -> training.Examples:
        return training.Examples(part.images, drawn[np.searchsorted(persons, who)])

    return replace(
        whole,
        train=relabelled(whole.train, groups["train"]),
        validation=relabelled(whole.validation, groups["val"]),
        test=relabelled(whole.test, groups["test"]),
        bank=np.empty((0, 0, 0), np.float32),
        key=content_key(whole.key, "labels of persons", seed),
        folder=f"{whole.folder}_labels_of_persons",
    )


def training_and_validation(whole: Experiment) -> Experiment:
    """The experiment with the images of validation among those of training, for students of the labels alone: it has no bank.

    What its students say of validation is no measure any more: nothing may be chosen by it.
    """
    parts = (whole.train, whole.validation)
    names = ("images", "labels") if whole.train.posterior is None else ("images", "labels", "posterior")
    train = training.Examples(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    key, folder = content_key(whole.key, "with validation"), f"{whole.folder}_with_validation"
    return replace(whole, train=train, bank=np.empty((0, 0, 0), np.float32), key=key, folder=folder)


def with_validation(run: Run, whole: Experiment, teacher: torch.nn.Module) -> Experiment:
    """:func:`training_and_validation` for taught students; the ``teacher`` is :func:`teacher_training.refitted_teacher`, who learned from both, too."""
    both = training_and_validation(whole)
    return replace(both, bank=_bank(run, "bank_with_validation", both.train, teacher, both.recipe.views, both.key))


def _bank(run: Run, name: str, train: training.Examples, teacher: torch.nn.Module, count: int, key: str) -> np.ndarray:
    path = run.model_path(name)
    weights = joblib.hash({name: value.cpu().numpy() for name, value in teacher.state_dict().items()})
    key = content_key(key, weights, count)
    found = tensors.load(path, key)
    if found is None:
        bank = torch.from_numpy(views.teacher_bank(teacher, train.images, count, batch_size=64))
        tensors.save(path, {"logits": bank}, key)
        return bank.numpy()
    return found[0]["logits"].numpy()
