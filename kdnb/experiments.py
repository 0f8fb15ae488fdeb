"""What the students of an experiment learn from: the splits, the recipe and the bank of teacher logits.

The *bank* holds the teacher's logits ``(views, N, C)`` on every augmented view of every training image, computed once:
students read them there instead of asking the teacher at each step. A variant of an experiment (few labels, another
teacher, more epochs) is a function from one :class:`Experiment` to another.
"""

from dataclasses import asdict, dataclass, replace

import joblib
import numpy as np
import torch

from kdnb import device, losses, models, models3d, networks, stack, tensors, training, views
from kdnb.datasets import ImageSet
from kdnb.datasets.volumes import VolumeSet
from kdnb.explain import taught
from kdnb.explain.taught import Layout, explanation_bank
from kdnb.provenance import content_key, source_key
from kdnb.runs import Run
from kdnb.settings import check

FEW_SEEN = 600  # images an epoch of students that know only a few: enough to know those by heart


@dataclass(frozen=True)
class Experiment:
    """What every student is made from, and nothing else: it can be sent to another machine as it is."""

    train: training.Examples
    validation: training.Examples
    test: training.Examples
    bank: np.ndarray
    recipe: training.Recipe
    num_classes: int
    key: str
    folder: str = "cells"  # of the run, where its trained students lie
    student: str = networks.OWN_STUDENT  # the network that learns, as :mod:`kdnb.networks` names it
    widths: tuple[int, ...] = models.WIDTHS  # filters of each layer of it, where it is the study's own
    # How the teacher's explanations lie in the bank, behind its logits, where they are taught.
    explained: Layout | None = None
    judged: bool = True  # on validation after every epoch, or not at all (:func:`kdnb.training.fit`)
    volumes: models3d.Grid | None = None  # how they lie, where the images are volumes: their students see in depth


def examples(data: ImageSet | VolumeSet, split: str) -> training.Examples:
    """One split of a data set as the loop needs it."""
    indices = data.index(split)
    return training.Examples(
        data.images[indices], data.labels[indices], None if data.posterior is None else data.posterior[indices]
    )


def of_run(run: Run, data: ImageSet, teacher: torch.nn.Module) -> Experiment:
    """The experiment of a run: its splits, its recipe, and the teacher's bank.

    Args:
        run: names the budget and the networks.
        data: its images, with their splits.
        teacher: whose logits the bank holds; it is put into evaluation mode.

    Returns:
        The experiment; its bank is computed once and kept in ``models/bank.safetensors``, and what the run saves from
        now on is said to have learned from these images.
    """
    run.learns_from(data.data_hash, data.split_hash)
    train, validation, test = (examples(data, split) for split in ("train", "val", "test"))
    budget = run.budget
    recipe = training.Recipe(
        budget.student_epochs, budget.batch_size, min(budget.views, budget.student_epochs), budget.student_learning_rate
    )
    name = networks.of_run(run, "student")
    identity = networks.identity("student", name)
    code = source_key(device, models, losses, training, stack, views)
    key = content_key(data.data_hash, data.split_hash, code, *identity)
    bank = _bank(run, "bank", train, teacher, recipe.views, key)
    return Experiment(
        train, validation, test, bank, recipe, len(data.classes), key, student=name, widths=tuple(budget.student_widths)
    )


def few_labelled(experiment: Experiment, per_class: int, draw: int) -> np.ndarray:
    """Positions of ``per_class`` training images of each class; a class that has fewer gives all it has.

    Every student has a draw of its own, its seed: how much the labels teach hangs on which images have one, and only
    so does the spread over seeds tell.

    Args:
        experiment: whose training images.
        per_class: how many of each class.
        draw: which draw of them.

    Returns:
        Positions among the training images, ``(n,)``, class by class.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    check("per_class", per_class)
    rng = np.random.default_rng([20250215, per_class, draw])
    labels = experiment.train.labels
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(experiment.num_classes)]
    )


def with_few_images(
    run: Run, experiment: Experiment, teacher: torch.nn.Module, per_class: int, draw: int
) -> Experiment:
    """The experiment with only a few training images of each class, repeated up to :data:`FEW_SEEN` an epoch.

    The teacher has seen more: what it knows of the others reaches these students through its logits on the few alone.

    Args:
        run: where the bank of the few is kept, computed once.
        experiment: with all training images.
        teacher: whose logits the bank holds.
        per_class: how many images of each class (:func:`few_labelled`).
        draw: which draw of them, the seed of the students that learn from it.

    Returns:
        The variant; its students lie in a folder of their own.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    train, key, positions = few_repeated(experiment, per_class, FEW_SEEN, draw)
    bank = _bank(run, f"bank_few_{per_class}_draw{draw}", train, teacher, experiment.recipe.views, key, positions)
    return replace(experiment, train=train, bank=bank, key=key, folder=f"cells_few_{per_class}", judged=False)


def few_repeated(
    experiment: Experiment, per_class: int, most: int, draw: int
) -> tuple[training.Examples, str, np.ndarray]:
    """A few training examples of each class, repeated up to ``most`` an epoch; each at least once.

    Args:
        experiment: with all training examples.
        per_class: how many of each class (:func:`few_labelled`).
        most: examples an epoch, where there are as many.
        draw: which draw of them.

    Returns:
        The examples, the key of an experiment with them, and their positions among all.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    labelled = np.random.default_rng(per_class).permutation(few_labelled(experiment, per_class, draw))
    positions = np.resize(labelled, max(len(labelled), min(len(experiment.train), most)))
    return _at(experiment.train, positions), content_key(experiment.key, per_class, positions.tolist()), positions


def with_few_labels(experiment: Experiment, per_class: int, draw: int) -> Experiment:
    """The experiment with all training images, of which only a few of each class keep their label.

    They are the same as those of :func:`with_few_images`. Of the others the teacher alone speaks: here it can hand on
    what it knows of images whose labels the student does not get.

    Args:
        experiment: with all labels.
        per_class: how many images of each class keep theirs (:func:`few_labelled`).
        draw: which draw of them, the seed of the students that learn from it.

    Returns:
        The variant; the labels of the others are :data:`kdnb.losses.UNLABELLED`.

    Raises:
        ParameterError: ``per_class`` is not a whole number of at least 1.
    """
    labels = np.full(len(experiment.train), losses.UNLABELLED)
    labelled = few_labelled(experiment, per_class, draw)
    labels[labelled] = experiment.train.labels[labelled]
    key = content_key(experiment.key, per_class, labelled.tolist(), "the others without labels")
    train = replace(experiment.train, labels=labels)
    return replace(experiment, train=train, key=key, folder=f"cells_few_labels_{per_class}", judged=False)


def taught_by(experiment: Experiment, name: str, bank: np.ndarray) -> Experiment:
    """The experiment with another teacher's ``bank`` ``(views, N, C)``, such as one of :mod:`kdnb.teachers`."""
    return replace(experiment, bank=bank, folder=f"{experiment.folder}_{name}", judged=False)


def with_explanations(run: Run, experiment: Experiment, teacher: torch.nn.Module, part: str = "") -> Experiment:
    """The experiment with the teacher's explanations behind its logits in the bank, computed once and kept beside it.

    Args:
        run: where they are kept.
        experiment: with the teacher's logits.
        teacher: the one whose logits they are.
        part: of the training images, where they are not all: names the file.

    Returns:
        The variant; :attr:`Experiment.explained` says how the explanations lie in a row of its bank.

    Raises:
        ModelError: the teacher has no maps of several cells.
    """
    key = content_key(experiment.key, source_key(taught), joblib.hash(experiment.bank))
    path = run.model_path(f"explanations{part and '_'}{part}")
    loaded = tensors.load(path, key)
    if loaded is None:
        rows, layout = explanation_bank(teacher, experiment.train.images, len(experiment.bank))
        tensors.save(path, {"explanations": torch.from_numpy(rows)}, key, asdict(layout))
    else:
        stored, facts = loaded
        rows = stored["explanations"].numpy()
        layout = Layout(tuple(map(tuple, facts["attention"])), tuple(facts["evidence"]))
    bank = np.concatenate([experiment.bank, rows.astype(np.float32)], axis=2)
    folder = f"{experiment.folder}_explained"
    return replace(experiment, bank=bank, key=key, folder=folder, explained=layout, judged=False)


def _at(split: training.Examples, indices: np.ndarray) -> training.Examples:
    posterior = None if split.posterior is None else split.posterior[indices]
    return training.Examples(split.images[indices], split.labels[indices], posterior)


def of_length(experiment: Experiment, epochs: int) -> Experiment:
    """The experiment for students that train for ``epochs``; the views and the bank stay the same."""
    folder = experiment.folder + f"_{epochs}_epochs" * (epochs != experiment.recipe.epochs)
    return replace(experiment, recipe=replace(experiment.recipe, epochs=epochs), folder=folder)


def of_plain_student(experiment: Experiment) -> Experiment:
    """The experiment for students of the study's own shapes, where the run's student is another network."""
    if experiment.student == networks.OWN_STUDENT:
        return experiment
    key, folder = content_key(experiment.key, networks.OWN_STUDENT), f"{experiment.folder}_{networks.OWN_STUDENT}"
    return replace(experiment, student=networks.OWN_STUDENT, key=key, folder=folder)


def with_labels_of_persons(experiment: Experiment, groups: dict[str, np.ndarray]) -> Experiment:
    """The experiment with a label drawn for each person (group) in place of the true ones: a control for leaks.

    Such labels say nothing of the image but who is shown. Whoever reads them on test images, above one in as many as
    there are classes, has recognised a person or a copy that training knows (Yagis et al. 2021). It has no bank.

    Args:
        experiment: with the true labels.
        groups: the group of each image of ``train``, ``val`` and ``test``.

    Returns:
        The variant; each label has as many persons as the others, or one more.
    """
    persons = np.unique(np.concatenate([groups[part] for part in ("train", "val", "test")]))
    drawn = np.random.default_rng(20250215).permutation(np.arange(len(persons)) % experiment.num_classes)

    def relabelled(part: training.Examples, owners: np.ndarray) -> training.Examples:
        return training.Examples(part.images, drawn[np.searchsorted(persons, owners)])

    return replace(
        experiment,
        train=relabelled(experiment.train, groups["train"]),
        validation=relabelled(experiment.validation, groups["val"]),
        test=relabelled(experiment.test, groups["test"]),
        bank=np.empty((0, 0, 0), np.float32),
        key=content_key(experiment.key, "labels of persons"),
        folder=f"{experiment.folder}_labels_of_persons",
        judged=False,
    )


def training_and_validation(experiment: Experiment) -> Experiment:
    """The experiment with the images of validation among those of training, for students of the labels alone.

    It has no bank. What its students say of validation is no measure any more: nothing may be chosen by it.

    Args:
        experiment: with the two apart.

    Returns:
        The variant; validation and test stay what they were.
    """
    splits = (experiment.train, experiment.validation)
    fields = ("images", "labels") if experiment.train.posterior is None else ("images", "labels", "posterior")
    train = training.Examples(*(np.concatenate([getattr(split, field) for split in splits]) for field in fields))
    key, folder = content_key(experiment.key, "with validation"), f"{experiment.folder}_with_validation"
    return replace(experiment, train=train, bank=np.empty((0, 0, 0), np.float32), key=key, folder=folder)


def with_validation(run: Run, experiment: Experiment, teacher: torch.nn.Module) -> Experiment:
    """:func:`training_and_validation` for taught students.

    Args:
        run: where the bank is kept, computed once.
        experiment: with training and validation apart.
        teacher: :func:`kdnb.teacher_training.refitted_teacher`, who learned from both, too.

    Returns:
        The variant, with the bank of that teacher.
    """
    both = training_and_validation(experiment)
    return replace(both, bank=_bank(run, "bank_with_validation", both.train, teacher, both.recipe.views, both.key))


def _bank(
    run: Run,
    name: str,
    train: training.Examples,
    teacher: torch.nn.Module,
    count: int,
    key: str,
    which: np.ndarray | None = None,
) -> np.ndarray:
    path = run.model_path(name)
    weights = joblib.hash({name: value.cpu().numpy() for name, value in teacher.state_dict().items()})
    key = content_key(key, weights, count)
    loaded = tensors.load(path, key)
    if loaded is None:
        bank = torch.from_numpy(views.teacher_bank(teacher, train.images, count, batch_size=64, which=which))
        tensors.save(path, {"logits": bank}, key)
        return bank.numpy()
    return loaded[0]["logits"].numpy()
