"""Losses as pure functions of logits: the paper's, the released code's, and those they are compared with.

Shapes: logits ``(N, C)``, targets ``(N,)`` int64. Every loss is a mean over the batch. A target of :data:`UNLABELLED`
says that nobody knows the label: such an image adds nothing to the hard part of :func:`distillation_loss`, and the
teacher alone speaks of it.

What a student minimises has a short name, its arm: :data:`LOSSES` says which loss it is, :func:`arm_loss` computes it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdnb.errors import ParameterError

UNLABELLED = -1


class DistillationLoss(NamedTuple):
    """A loss with the two parts that it was mixed from, all scalars."""

    total: Tensor
    hard: Tensor
    soft: Tensor


def _mixed(hard: Tensor, soft: Tensor, alpha: float, temperature: float) -> DistillationLoss:
    """``alpha * hard + (1 - alpha) * soft``, in which all distillation losses end; refuses an impossible alpha or T.

    Returns:
        The mixture and its parts.

    Raises:
        ParameterError: alpha outside [0, 1] or temperature not above 0.
    """
    if not 0 <= alpha <= 1:
        raise ParameterError(f"alpha is {alpha!r}, but it must be a number from 0 to 1.")
    if not temperature > 0:
        raise ParameterError(f"temperature is {temperature!r}, but it must be a number above 0.")
    return DistillationLoss(alpha * hard + (1 - alpha) * soft, hard, soft)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """``KL(teacher || student)`` of log-probabilities ``(N, C)``, the mean over images.

    It is ``F.kl_div`` to the bit, which ``torch.func.vmap`` cannot batch.

    Returns:
        A scalar.
    """
    return (teacher.exp() * (teacher - student)).sum() / len(student)


def softened(logits: Tensor, temperature: float) -> Tensor:
    """``softmax(z / T)``: the class probabilities at temperature T, ``(N, C)``."""
    return (logits / temperature).softmax(dim=1)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    alpha: float,
    temperature: float,
    scale_by_t2: bool = True,
) -> DistillationLoss:
    r"""``alpha * CE + (1 - alpha) * T^2 * KL(teacher_T || student_T)``.

    arXiv 2502.15959 states the loss without the factor :math:`T^2` (``scale_by_t2=False``); Hinton et al. 2015
    introduced the factor, which keeps the size of the soft gradient about the same at every T.

    Args:
        student_logits: ``(N, C)``, what the student answers.
        teacher_logits: ``(N, C)``, what the teacher answers for the same images.
        targets: ``(N,)`` int64, the labels; :data:`UNLABELLED` where nobody knows it.
        alpha: the weight of the labels, from 0 to 1; the teacher has the rest.
        temperature: T, above 0; at a high one the teacher's small probabilities count, too.
        scale_by_t2: whether the soft part has the factor :math:`T^2`.

    Returns:
        The total, the hard part (cross-entropy) and the soft part (what stands behind ``1 - alpha``).

    Raises:
        ParameterError: alpha outside [0, 1] or temperature not above 0.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> distillation_loss(logits, logits, torch.tensor([0]), alpha=0.4, temperature=5.0).soft.item()
        0.0
    """
    hard = F.cross_entropy(student_logits, targets, ignore_index=UNLABELLED, reduction="sum") / len(targets)
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    soft = _divergence(teacher, student)
    if scale_by_t2:
        soft = soft * temperature**2
    return _mixed(hard, soft, alpha, temperature)


def released_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, alpha: float, temperature: float
) -> DistillationLoss:
    """The loss that the authors' public code computes (AIPMLab/KD, commit 33b97ef).

    Its soft part is the cross-entropy between ``softmax(one_hot / T)`` and ``softmax(teacher_probabilities / T)``. The
    student does not occur in it, so its gradient with respect to the student is zero and the total's is alpha times
    that of cross-entropy. It takes what :func:`distillation_loss` takes.

    Returns:
        The total, the hard part and the soft part.
    """
    hard = F.cross_entropy(student_logits, targets)
    one_hot = F.one_hot(targets, student_logits.shape[1]).to(teacher_logits.dtype)
    label = softened(one_hot, temperature)
    teacher = softened(teacher_logits.softmax(dim=1), temperature)
    soft = -(label * teacher.log()).sum(dim=1).mean()
    return _mixed(hard, soft, alpha, temperature)


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, alpha: float, temperature: float
) -> DistillationLoss:
    """DIST (Huang et al., NeurIPS 2022): match correlations instead of probabilities.

    One minus Pearson's correlation between student and teacher, over the classes of an image and over the images of a
    class, times T^2. It takes what :func:`distillation_loss` takes.

    Returns:
        The total, the hard part and the soft part.
    """
    hard = F.cross_entropy(student_logits, targets)
    student, teacher = softened(student_logits, temperature), softened(teacher_logits, temperature)
    soft = temperature**2 * (_one_minus_correlation(student, teacher) + _one_minus_correlation(student.T, teacher.T))
    return _mixed(hard, soft, alpha, temperature)


def _one_minus_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus Pearson's correlation within a row, the mean over rows: the cosine of centred rows."""
    student = student - student.mean(dim=1, keepdim=True)
    teacher = teacher - teacher.mean(dim=1, keepdim=True)
    return 1 - F.cosine_similarity(student, teacher, dim=1, eps=1e-8).mean()


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    alpha: float,
    temperature: float,
    non_target_weight: float = 2.0,
) -> DistillationLoss:
    """DKD (Zhao et al., CVPR 2022): the KL divergence split in two parts that are weighted separately.

    One is that of the target against the rest, the other that among the rest.

    Args:
        student_logits: ``(N, C)``.
        teacher_logits: ``(N, C)``.
        targets: ``(N,)`` int64.
        alpha: the weight of the labels, from 0 to 1.
        temperature: T, above 0.
        non_target_weight: of the part among the rest. Equal to the teacher's probability of the rest it would make the
            KL divergence again.

    Returns:
        The total, the hard part and the soft part.
    """
    hard = F.cross_entropy(student_logits, targets)
    one_hot = F.one_hot(targets, student_logits.shape[1]).bool()
    of_target = _target_divergence(student_logits / temperature, teacher_logits / temperature, one_hot)
    of_rest = _rest_divergence(student_logits / temperature, teacher_logits / temperature, one_hot)
    soft = temperature**2 * (of_target + non_target_weight * of_rest)
    return _mixed(hard, soft, alpha, temperature)


def _target_divergence(student: Tensor, teacher: Tensor, one_hot: Tensor) -> Tensor:
    """The KL divergence of the two probabilities target and rest; logits ``(N, C)`` divided by T, ``one_hot`` bool."""
    # A mask as index would have the host wait for the device in every step.
    target = one_hot.long().argmax(dim=1, keepdim=True)

    def target_and_rest(logits: Tensor) -> Tensor:
        logs = F.log_softmax(logits, dim=1)
        rest = logs.masked_fill(one_hot, -torch.inf).logsumexp(dim=1)
        return torch.stack([logs.gather(1, target)[:, 0], rest], dim=1)

    return _divergence(target_and_rest(teacher), target_and_rest(student))


def _rest_divergence(student: Tensor, teacher: Tensor, one_hot: Tensor) -> Tensor:
    """The KL divergence among the classes that are not the target; logits ``(N, C)`` divided by T, ``one_hot`` bool."""
    rest = one_hot.long().argsort(dim=1, stable=True)[:, :-1]  # all classes but the target's, in their order
    teacher_logs, student_logs = (F.log_softmax(logits.gather(1, rest), dim=1) for logits in (teacher, student))
    return _divergence(teacher_logs, student_logs)


def standardised_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, alpha: float, temperature: float
) -> DistillationLoss:
    """Logit standardisation (Sun et al., CVPR 2024): the distillation loss on standardised logits.

    Those of each image get zero mean and unit deviation.
    The student may then keep logits of its own scale. With four classes a standardised logit is at most sqrt(3). The
    deviation is that over the C classes; the code of its authors divides by C - 1, which is a temperature higher by
    sqrt(C / (C - 1)). It takes what :func:`distillation_loss` takes.

    Returns:
        The total, the hard part (cross-entropy of the student's own logits) and the soft part.
    """

    def standardise(logits: Tensor) -> Tensor:
        return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True, correction=0) + 1e-7)

    soft = distillation_loss(
        standardise(student_logits),
        standardise(teacher_logits),
        targets,
        alpha=0.0,
        temperature=temperature,
        scale_by_t2=True,
    ).soft
    hard = F.cross_entropy(student_logits, targets)
    return _mixed(hard, soft, alpha, temperature)


# -- explanations as part of what is taught ---------------------------------------------------------------------------


def directions(student_maps: Tensor, teacher_maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of both, averaged to the coarser of the two grids, each as a vector of length one.

    Args:
        student_maps: ``(..., h, w)``.
        teacher_maps: ``(..., h, w)``; rows and columns may be others than the student's.

    Returns:
        The student's and the teacher's vectors, ``(..., hw)`` of the coarser grid.
    """
    height, width = (min(sides) for sides in zip(student_maps.shape[-2:], teacher_maps.shape[-2:], strict=True))
    pooled = (F.adaptive_avg_pool2d(maps, (height, width)) for maps in (student_maps, teacher_maps))
    student, teacher = (F.normalize(maps.flatten(-2), dim=-1) for maps in pooled)
    return student, teacher


def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    r"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, eq. 2): ``|| Q_S / ||Q_S|| - Q_T / ||Q_T|| ||^2``.

    :math:`Q = \sum_k |F_k|^p` is a layer's attention map. With p = 1, after a ReLU, it is the average feature map times
    the number of filters, which the lengths cancel: what is taught is the very map that the paper explains by. The
    square is that of the authors' code.

    Args:
        student_maps: attention maps of the student, one a layer, each ``(N, h, w)``.
        teacher_maps: those of the teacher, layer by layer its partners; of two sizes both are averaged to the coarser.

    Returns:
        A scalar, the mean over images and pairs of layers.
    """
    pairs = (directions(student, teacher) for student, teacher in zip(student_maps, teacher_maps, strict=True))
    return torch.stack([(student - teacher).square().sum(dim=-1).mean() for student, teacher in pairs]).mean()


def class_attention_transfer(student_evidence: Tensor, teacher_evidence: Tensor) -> Tensor:
    """CAT-KD (Guo et al., CVPR 2023, eq. 5): the squared distance of class activation maps of length one.

    Args:
        student_evidence: ``(N, C, h, w)``, the student's class activation maps.
        teacher_evidence: the teacher's; of two sizes both are averaged to the coarser (the paper's: 2 x 2).

    Returns:
        A scalar, the mean over images and *all* classes.
    """
    student, teacher = directions(student_evidence, teacher_evidence)
    return (student - teacher).square().sum(dim=-1).mean()


def explanation_similarity_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """e2KD (Parchami-Araghi et al., ECCV 2024, eq. 4): one minus the cosine of explanations of the teacher's answer.

    Args:
        student_maps: ``(N, h, w)``, signed: the student's explanation of the class that the teacher answers.
        teacher_maps: the teacher's of that class; of two sizes both are averaged to the coarser.

    Returns:
        A scalar, the mean over images.
    """
    student, teacher = directions(student_maps, teacher_maps)
    return 1 - (student * teacher).sum(dim=-1).mean()


def label_smoothing_loss(student_logits: Tensor, targets: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with ``1 - smoothing`` on the label and the rest spread over all classes (Szegedy et al. 2016)."""
    return F.cross_entropy(student_logits, targets, label_smoothing=smoothing)


# -- arms: what a student minimises, by name --------------------------------------------------------------------------

# Those without a teacher take (student_logits, targets), all others what distillation_loss takes.
LOSSES: dict[str, Callable[..., Tensor | DistillationLoss]] = {
    "ce": F.cross_entropy,
    "released": released_loss,
    "kd": partial(distillation_loss, scale_by_t2=False),  # the paper's loss
    "kd_t2": partial(distillation_loss, scale_by_t2=True),
    "ls": label_smoothing_loss,
    "dist": dist_loss,
    "dkd": dkd_loss,
    "standardised": standardised_loss,
}
ARMS = tuple(LOSSES)
WITHOUT_TEACHER = ("ce", "ls")


def arm_loss(
    arm: str,
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """The scalar that a student of the arm ``arm`` minimises.

    Args:
        arm: its name in :data:`LOSSES`: ``ce`` and ``ls`` (label smoothing) need no teacher; ``released``, ``kd`` (the
            paper's loss), ``kd_t2`` (with T^2), ``dist``, ``dkd`` and ``standardised`` do.
        student_logits: ``(N, C)``.
        teacher_logits: ``(N, C)``; of no use to the arms without a teacher.
        targets: ``(N,)`` int64.
        alpha: the weight of the labels, from 0 to 1; of no use to the arms without a teacher.
        temperature: T, above 0; of no use to the arms without a teacher.

    Returns:
        A scalar, the mean over the batch.

    Raises:
        ParameterError: an unknown arm.
    """
    if arm not in LOSSES:
        raise ParameterError(f"arm is {arm!r}, but it must be one of: {', '.join(ARMS)}.")
    if arm in WITHOUT_TEACHER:
        loss = LOSSES[arm](student_logits, targets)
    else:
        loss = LOSSES[arm](student_logits, teacher_logits, targets, alpha=alpha, temperature=temperature)
    return loss if isinstance(loss, Tensor) else loss.total
