"""Teachers, and what is put in their place to see what a teacher's knowledge is worth.

A teacher is a *bank* of logits ``(views, N, C)`` on the training images (:mod:`kdnb.views`). Four other banks answer
what of its gain is knowledge, a fifth what a better teacher would be worth:

================== ====================================================================================================
:func:`oracle`     logits of the true posterior: all that soft labels could tell (Menon et al. 2021, arXiv 2005.10419)
:func:`shuffled`   the teacher's own logits, exchanged among the images of a class: it knows the class, nothing of the
                   image
:func:`class_mean` the mean of the teacher's logits of each class: how it confuses classes, nothing of the image
:func:`symmetric`  no teacher: the label's class above equal others, by as much as the teacher's is on average
:func:`ensemble`   the mean answer of several students of the labels alone (Furlanello et al. 2018, arXiv 1805.04770): a
                   teacher that is better than its students and knows nothing that the labels do not say
================== ====================================================================================================

The default run's teacher learned from many more generated images than its students see. That takes longer than the rest
of the run, so its weights are recorded (:data:`RECORDED`), and loaded unless the run is told to train it anew.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import nn

from kdnb import tensors
from kdnb.datasets import phantom
from kdnb.errors import ArtefactError, exit_status
from kdnb.models import densenet121_teacher
from kdnb.provenance import content_key
from kdnb.runs import Run, in_common
from kdnb.settings import resolve
from kdnb.sources import REPOSITORY
from kdnb.training import Examples

RECORDED = REPOSITORY / "data" / "measured" / "phantom_teacher.safetensors"
GENERATOR_SEED = 1  # other subjects than those of any run
VALIDATION = 1600  # of the generated images, to see when the teacher is near what can be known
CERTAIN = 1e-4  # probabilities below it are raised to it, so that their logarithm is a logit that a network could have


def oracle(posterior: np.ndarray, views: int) -> np.ndarray:
    """The bank of a teacher that knows the truth: log p, centred, the same for every view.

    Args:
        posterior: ``(N, C)``, :attr:`kdnb.datasets.ImageSet.posterior` of the training images.
        views: how many.

    Returns:
        ``(views, N, C)`` float32.

    Example:
        >>> oracle(np.array([[0.5, 0.5]]), views=2).shape
        (2, 1, 2)
    """
    logits = np.log(np.maximum(posterior, CERTAIN))
    logits -= logits.mean(axis=1, keepdims=True)
    return np.repeat(logits[None].astype(np.float32), views, axis=0)


def shuffled(bank: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same logits, exchanged among the images ``(N,)`` of a class by one drawn permutation, ``(views, N, C)``."""
    rng = np.random.default_rng(20250215)
    sources = np.arange(len(labels))
    for label in np.unique(labels):
        sources[labels == label] = rng.permutation(sources[labels == label])
    return bank[:, sources]


def class_mean(bank: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean logits over views and images of each image's class, ``(views, N, C)``."""
    means = np.zeros((labels.max() + 1, bank.shape[2]), bank.dtype)
    for label in np.unique(labels):
        means[label] = bank[:, labels == label].mean(axis=(0, 1))
    return np.repeat(means[labels][None], len(bank), axis=0)


def symmetric(bank: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label's class above equal others by the teacher's mean margin, ``(views, N, C)``; classes sum to zero."""
    own = np.take_along_axis(bank, labels[None, :, None], axis=2)[..., 0]
    classes = bank.shape[2]
    margin = float((own - (bank.sum(axis=2) - own) / (classes - 1)).mean())
    logits = margin * (np.eye(classes)[labels] - 1 / classes)
    return np.repeat(logits[None].astype(np.float32), len(bank), axis=0)


def ensemble(members: Sequence[np.ndarray]) -> np.ndarray:
    """The log of the members' mean probability, centred.

    Args:
        members: logits ``(..., C)`` of each, such as a bank of each.

    Returns:
        ``(..., C)`` float32.
    """
    mean = np.mean([softmax(logits.astype(float), axis=-1) for logits in members], axis=0)
    logits = np.log(np.maximum(mean, CERTAIN**2))
    return (logits - logits.mean(axis=-1, keepdims=True)).astype(np.float32)


# What stands in for a teacher whose knowledge of single images shall not count: bank, labels -> bank.
WITHOUT_KNOWLEDGE = {"shuffled": shuffled, "class_mean": class_mean, "symmetric": symmetric}


# -- the recorded teacher ----------------------------------------------------------------------------------------------


def generated(image_size: int, count: int) -> tuple[Examples, Examples]:
    """``count`` training images of the phantom and :data:`VALIDATION` more, of subjects that no run sees."""
    drawn = phantom.plant(
        phantom.generate(count + VALIDATION, image_size, "drawn", seed=GENERATOR_SEED), seed=GENERATOR_SEED
    ).made
    train, rest = slice(0, count), slice(count, None)
    return Examples(drawn.images[train], drawn.labels[train]), Examples(drawn.images[rest], drawn.labels[rest])


def generated_key(image_size: int, count: int) -> str:
    """Identity of :func:`generated` without making all of it: its size and its first images."""
    first = phantom.generate(phantom.DRAWN_PER_SUBJECT, image_size, "drawn", seed=GENERATOR_SEED)
    flaws = (phantom.TWINS, phantom.WRONG_LABELS, phantom.SCANNER)
    return content_key(
        count,
        image_size,
        flaws,
        hashlib.sha256(first.images.tobytes() + cast(np.ndarray, first.posterior).tobytes()).hexdigest(),
    )


def load(teacher: nn.Module, key: str, path: Path = RECORDED) -> dict[str, Any] | None:
    """Put the recorded weights into ``teacher``.

    Args:
        teacher: DenseNet121 with the head that was trained.
        key: the identity of what it learned from.
        path: the record.

    Returns:
        What is known of how they were made (``history``, ``minutes``, ``command``, ``environment``); ``None`` where no
        whole teacher of this ``key`` is recorded.
    """
    loaded = tensors.load(path, key)
    if loaded is None:
        return None
    weights, facts = loaded
    teacher.load_state_dict(tensors.in_type(weights, torch.float32))
    return facts


def record(folder: Path, path: Path = RECORDED) -> Path:
    """Keep the teacher that a run trained, in float16, with its history and what trained it.

    Args:
        folder: the run's.
        path: where to keep it.

    Returns:
        ``path``.

    Raises:
        ArtefactError: the run did not train a teacher of generated images.
    """
    run = Run(resolve(run_dir=folder), "02_teacher_training")
    info = run.info().get("teacher", {})
    if not info.get("task") or not info["made"].startswith("trained"):
        raise ArtefactError(
            f"{folder} did not train a teacher of generated images: make reproduce TRAIN_TEACHER=1 RUNS=..."
        )
    teacher = run.load_model("teacher", densenet121_teacher(len(phantom.CLASSES), head=info["head"]), info["key"])
    halves = tensors.in_type(teacher.state_dict(), torch.float16)
    history = run.load_table("teacher_history")
    facts = {"history": history.to_dict("list"), "minutes": round(float(history["seconds"].sum()) / 60, 1)}
    facts |= {"command": "make reproduce TRAIN_TEACHER=1", "recipe": info["recipe"]}
    facts |= {"environment": in_common(run.info().get("environment", {}))}
    tensors.save(path, halves, info["task"], facts)
    return path


def history(facts: dict[str, Any]) -> pd.DataFrame:
    """The epochs of a recorded teacher's training."""
    return pd.DataFrame(facts["history"])


def main(arguments: list[str] | None = None) -> int:
    """``python -m kdnb.teachers runs/...``: record that run's teacher."""
    folder = Path((sys.argv[1:] if arguments is None else arguments)[0])
    return exit_status(lambda: print(record(folder)))


if __name__ == "__main__":
    sys.exit(main())
