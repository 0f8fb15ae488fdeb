"""A teacher's maps, kept for students that shall explain as it does, and the same maps of a student in training.

Two kinds of maps are taught. *Attention*: the average map of each block, here ``mean_k |F_k|`` (Zagoruyko and
Komodakis, ICLR 2017, with p = 1). *Evidence*: what each place adds to each class. In a network that ends in pooling and
a linear layer that is exact in the last maps (:mod:`kdnb.explain.evidence`). But DenseNet121 shrinks an image 32 times,
and a last map of one cell says nothing about places; then the deepest block of several cells speaks, by gradient times
activation, ``E_c = sum_k F_k dz_c/dF_k`` (HiResCAM, Draelos and Carin 2020), which is the exact evidence where both are
defined.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from kdnb import losses
from kdnb.device import device_of, picked, resident, to_float
from kdnb.errors import ModelError, ParameterError
from kdnb.explain.maps import collecting, evaluation_mode, layers_of
from kdnb.models import StudentCNN, feature_layers
from kdnb.networks import as_maps, logits_of
from kdnb.progress import progress
from kdnb.views import render, view_moves

LESSONS = ("attention", "class_attention", "explanation")
MOST_CELLS = 14  # across; finer maps are averaged to so many before they are kept


@dataclass(frozen=True)
class Explanations:
    """Maps of a batch.

    Attributes:
        attention: ``(N, h, w)`` a layer, first layer first.
        evidence: ``(N, C, h, w)``, of one layer.
    """

    attention: Sequence[Tensor]
    evidence: Tensor

    def evidence_of(self, classes: Tensor) -> Tensor:
        """The evidence of one class an image ``(N,)``: ``(N, h, w)``."""
        return self.evidence.take_along_dim(classes[:, None, None, None], dim=1)[:, 0]


@dataclass(frozen=True)
class Layout:
    """How :class:`Explanations` lie side by side in one row of a bank.

    Attributes:
        attention: ``(h, w)`` of each attention map, first layer first.
        evidence: ``(C, h, w)``.
    """

    attention: tuple[tuple[int, int], ...]
    evidence: tuple[int, int, int]

    def split(self, rows: Tensor) -> Explanations:
        """Rows of a bank ``(N, D)`` as maps."""
        shapes = [*self.attention, self.evidence]
        *attention, evidence = rows.split([int(np.prod(shape)) for shape in shapes], dim=1)
        maps = [columns.unflatten(1, shape) for columns, shape in zip(attention, self.attention, strict=True)]
        return Explanations(maps, evidence.unflatten(1, self.evidence))


@dataclass(frozen=True)
class Blocks:
    """Which blocks of a teacher are taught, by name.

    Attributes:
        attention: first block first.
        evidence: the one block whose evidence is taught.
    """

    attention: tuple[str, ...]
    evidence: str


def blocks_of(teacher: nn.Module, images: Tensor) -> Blocks:
    """Every block that has several cells, and the deepest of these on whose places an answer depends.

    A vision transformer's last block is passed over for evidence: of it the class token alone is read. The choice is
    one for all images of a teacher: an image that excites no filter of a block would choose another one for those
    beside it.

    Args:
        teacher: any network with known feature layers; it is left as found.
        images: ``(N, 3, H, W)`` float32 in [0, 1], some of those to be explained; the evidence is that of a block on
            which the answer to any of them depends.

    Returns:
        the blocks' names.

    Raises:
        ModelError: no block of the teacher has more than one cell.
    """
    with evaluation_mode(teacher), torch.no_grad(), collecting(layers_of(teacher), _attention) as attention_maps:
        logits_of(teacher, images[:1])
    fine = tuple(name for name, attention in attention_maps.items() if attention.shape[-1] > 1)
    if not fine:
        raise ModelError(
            f"no block of {type(teacher).__name__} has more than one cell at {images.shape[-1]} pixels: "
            "use larger images."
        )
    return Blocks(fine, next((name for name in reversed(fine) if evidence_at(teacher, images, name).any()), fine[-1]))


def teacher_explanations(teacher: nn.Module, images: Tensor, blocks: Blocks | None = None) -> Explanations:
    """Attention of every block that has several cells, and evidence of the deepest of these.

    It takes one forward pass and C short backward ones.

    Args:
        teacher: any network with known feature layers; it is left as found.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        blocks: which blocks (default: :func:`blocks_of` these images); to be given where the images are one batch of
            several.

    Returns:
        attention ``(N, h, w)`` a block and evidence ``(N, C, h, w)``, of :data:`MOST_CELLS` across at most.

    Raises:
        ModelError: no block of the teacher has more than one cell.
    """
    blocks = blocks or blocks_of(teacher, images)
    with collecting({name: layers_of(teacher)[name] for name in blocks.attention}, _attention) as attention_maps:
        evidence = evidence_at(teacher, images, blocks.evidence)
    return Explanations(
        [_fine_at_most(attention.detach()) for attention in attention_maps.values()], _fine_at_most(evidence)
    )


def _attention(maps: Tensor) -> Tensor:
    """``mean_k |F_k|``: ``(N, K, h, w)`` -> ``(N, h, w)``."""
    return maps.abs().mean(dim=1)


def evidence_at(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """Gradient times activation of one layer, summed over its filters: what each of its cells adds to each logit.

    Args:
        model: any network with known feature layers; it is left as found.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        name: of the layer (:func:`kdnb.models.feature_layers`).

    Returns:
        ``(N, C, h, w)``, with its sign.
    """
    layer, outputs = layers_of(model)[name], []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())  # backward passes end here
        return outputs[0].clone()  # a later layer may work in place

    hook = layer.register_forward_hook(keep)
    try:
        with evaluation_mode(model), _frozen(model), torch.enable_grad():
            logits = logits_of(model, images)
            gradients = [
                torch.autograd.grad(logits[:, c].sum(), outputs[0], retain_graph=True)[0]
                for c in range(logits.shape[1])
            ]
    finally:
        hook.remove()
    return torch.stack(
        [as_maps(outputs[0].detach() * gradient, layer, name).sum(dim=1) for gradient in gradients], dim=1
    )


def _fine_at_most(maps: Tensor) -> Tensor:
    """Maps ``(..., h, w)``, averaged where they are finer than :data:`MOST_CELLS` across."""
    height, width = (min(side, MOST_CELLS) for side in maps.shape[-2:])
    return adaptive_avg_pool2d(maps, (height, width))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradient of weights inside the block."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)


def explanation_bank(
    teacher: nn.Module, images: np.ndarray, views: int, batch_size: int = 64
) -> tuple[np.ndarray, Layout]:
    """The teacher's explanations of every view of every image, and how a row is laid out.

    Only directions are taught, so a row's maps are scaled to length one, which float16 holds.

    Args:
        teacher: any network with known feature layers; it is left as found.
        images: ``(N, H, W, 3)`` uint8, of the training.
        views: how many views of each image (:func:`kdnb.views.view_moves`).
        batch_size: images at once.

    Returns:
        ``(views, N, D)`` float16, and the layout of D.
    """
    device = device_of(teacher)
    resident_images, rows, layout, blocks = resident(images, device), [], None, None
    for view in progress(range(views), "Teacher's explanations", views):
        moves = view_moves(len(images), view, images.shape[1]).to(device)
        for start in range(0, len(images), batch_size):
            positions = torch.arange(start, min(start + batch_size, len(images)), device=resident_images.device)
            batch = to_float(render(picked(resident_images, positions, device), moves[start : start + len(positions)]))
            blocks = blocks or blocks_of(teacher, batch)
            explanations = teacher_explanations(teacher, batch, blocks)
            layout = Layout(
                tuple(cast("tuple[int, int]", tuple(maps.shape[1:])) for maps in explanations.attention),
                cast("tuple[int, int, int]", tuple(explanations.evidence.shape[1:])),
            )
            directions = [
                nn.functional.normalize(maps.flatten(1), dim=1)
                for maps in (*explanations.attention, explanations.evidence)
            ]
            rows.append(torch.cat(directions, dim=1).half())
    return torch.cat(rows).reshape(views, len(images), -1).cpu().numpy(), cast("Layout", layout)


@contextmanager
def explaining(student: StudentCNN, layout: Layout) -> Iterator[Callable[[], Explanations]]:
    """Inside the block every forward pass keeps the student's explanations, with their graph.

    Each of the teacher's attention maps is matched by the deepest layer of the student whose number of cells is nearest
    to its own.

    Args:
        student: is trained inside the block; no hook stays after it.
        layout: of the teacher's explanations (:func:`explanation_bank`).

    Yields:
        a call that returns the explanations of the last pass.

    Raises:
        ModelError: not a student of the study, or one whose classifier reads several layers.
    """
    if type(student) is not StudentCNN:
        raise ModelError(
            f"{type(student).__name__} does not pool its last maps alone, so it has no evidence to teach: "
            "use a StudentCNN."
        )
    with collecting(feature_layers(student), lambda maps: maps.float().mean(dim=1)) as attention, ExitStack() as hooks:
        last_maps: list[Tensor] = []
        hooks.enter_context(
            student.features.register_forward_hook(lambda m, i, output: last_maps.__setitem__(slice(None), [output]))
        )

        def latest() -> Explanations:
            maps = list(attention.values())
            chosen = [
                min(reversed(maps), key=lambda layer_maps: abs(layer_maps.shape[-1] - cells[-1]))
                for cells in layout.attention
            ]
            return Explanations(chosen, torch.einsum("ck,nkhw->nchw", student.classifier.weight, last_maps[0].float()))

        yield latest


def check_lesson(lesson: str) -> str:
    """Return the name of a lesson if there is such a one.

    Args:
        lesson: what a user gave.

    Returns:
        The name.

    Raises:
        ParameterError: it is none of :data:`LESSONS`.
    """
    if lesson not in LESSONS:
        raise ParameterError(f"lesson is {lesson!r}, but it must be one of: {', '.join(LESSONS)}.")
    return lesson


def lesson_loss(lesson: str, student: Explanations, teacher: Explanations, answers: Tensor) -> Tensor:
    """How far a student's explanations are from the teacher's, a scalar.

    Args:
        lesson: one of :data:`LESSONS`: ``"attention"`` (:func:`kdnb.losses.attention_transfer`), ``"class_attention"``
            (:func:`kdnb.losses.class_attention_transfer`) or ``"explanation"``, the evidence of the teacher's answers
            (:func:`kdnb.losses.explanation_similarity_loss`).
        student: of :func:`explaining`, with their graph.
        teacher: rows of the bank (:meth:`Layout.split`).
        answers: ``(N,)``, the classes that the teacher predicts.

    Returns:
        the mean over the batch.

    Raises:
        ParameterError: an unknown lesson.
    """
    check_lesson(lesson)
    if lesson == "attention":
        return losses.attention_transfer(student.attention, teacher.attention)
    if lesson == "class_attention":
        return losses.class_attention_transfer(student.evidence, teacher.evidence)
    return losses.explanation_similarity_loss(student.evidence_of(answers), teacher.evidence_of(answers))
