"""Losses as pure functions of logits: the paper's, the released code's, and those they are compared with.

Shapes: logits ``(N, C)``, targets ``(N,)`` int64. Every loss is a mean over the batch. A target of :data:`UNLABELLED` says that nobody
knows the label: such an image adds nothing to the hard part, and the teacher alone speaks of it.
"""

from collections.abc import Sequence
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


def _check(alpha: float, temperature: float) -> None:
    if not 0 <= alpha <= 1:
        raise ParameterError(f"alpha is {alpha!r}, but it must be a number from 0 to 1.")
    if not temperature > 0:
        raise ParameterError(f"temperature is {temperature!r}, but it must be a number above 0.")


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL(teacher || student)`` of log-probabilities ``(N, C)``; ``F.kl_div`` to the bit, which ``torch.func.vmap`` cannot batch."""
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

    arXiv 2502.15959 states the loss without the factor :math:`T^2` (``scale_by_t2=False``); Hinton et al. 2015 introduced the factor,
    which keeps the size of the soft gradient about the same at every T.

    Raises:
        ParameterError: alpha outside [0, 1] or temperature not above 0.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> distillation_loss(logits, logits, torch.tensor([0]), alpha=0.4, temperature=5.0).soft.item()
    0.0
    """
    _check(alpha, temperature)
    hard = F.cross_entropy(student_logits, targets, ignore_index=UNLABELLED, reduction="sum") / len(targets)
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    soft = _divergence(student, teacher)
    if scale_by_t2:
        soft = soft * temperature**2
    return DistillationLoss(alpha * hard + (1 - alpha) * soft, hard, soft)


def released_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, alpha: float, temperature: float
) -> DistillationLoss:
    """The loss that the authors' public code computes (AIPMLab/KD, commit 33b97ef).

    Its soft part is the cross-entropy between ``softmax(one_hot / T)`` and ``softmax(teacher_probabilities / T)``. The student does
    not occur in it, so its gradient with respect to the student is zero and the total's is alpha times that of cross-entropy.
    """
    _check(alpha, temperature)
    hard = F.cross_entropy(student_logits, targets)
    one_hot = F.one_hot(targets, student_logits.shape[1]).to(teacher_logits.dtype)
    label = softened(one_hot, temperature)
    teacher = softened(teacher_logits.softmax(dim=1), temperature)
    soft = -(label * teacher.log()).sum(dim=1).mean()
    return DistillationLoss(alpha * hard + (1 - alpha) * soft, hard, soft)


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, alpha: float, temperature: float
) -> DistillationLoss:
    """DIST (Huang et al., NeurIPS 2022): match correlations instead of probabilities.

    One minus Pearson's correlation between student and teacher, over the classes of an image and over the images of a class, times T^2.
    """
    _check(alpha, temperature)
    hard = F.cross_entropy(student_logits, targets)
    student, teacher = softened(student_logits, temperature), softened(teacher_logits, temperature)
    soft = temperature**2 * (_one_minus_correlation(student, teacher) + _one_minus_correlation(student.T, teacher.T))
    return DistillationLoss(alpha * hard + (1 - alpha) * soft, hard, soft)


def _one_minus_correlation(a: Tensor, b: Tensor) -> Tensor:
    a = a - a.mean(dim=1, keepdim=True)
    b = b - b.mean(dim=1, keepdim=True)
    return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-8).mean()


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    alpha: float,
    temperature: float,
    non_target_weight: float = 2.0,
) -> DistillationLoss:
    """DKD (Zhao et al., CVPR 2022): the KL divergence split into target against rest, and among the rest, weighted separately.

    With ``non_target_weight`` equal to the teacher's probability of the rest it would be the KL divergence again.
    """
    _check(alpha, temperature)
    hard = F.cross_entropy(student_logits, targets)
    one_hot = F.one_hot(targets, student_logits.shape[1]).bool()
    soft = temperature**2 * (
        _target_divergence(student_logits / temperature, teacher_logits / temperature, one_hot)
        + non_target_weight * _rest_divergence(student_logits / temperature, teacher_logits / temperature, one_hot)
    )
    return DistillationLoss(alpha * hard + (1 - alpha) * soft, hard, soft)


def _target_divergence(student: Tensor, teacher: Tensor, one_hot: Tensor) -> Tensor:
    target = one_hot.long().argmax(
        dim=1, keepdim=True
    )  # a mask as index would have the host wait for the device in every step

    def target_and_rest(logits: Tensor) -> Tensor:
        logs = F.log_softmax(logits, dim=1)
        rest = logs.masked_fill(one_hot, -torch.inf).logsumexp(dim=1)
        return torch.stack([logs.gather(1, target)[:, 0], rest], dim=1)

    return _divergence(target_and_rest(student), target_and_rest(teacher))


def _rest_divergence(student: Tensor, teacher: Tensor, one_hot: Tensor) -> Tensor:
    rest = one_hot.long().argsort(dim=1, stable=True)[:, :-1]  # all classes but the target's, in their order
    logs = [F.log_softmax(logits.gather(1, rest), dim=1) for logits in (student, teacher)]
    return _divergence(*logs)


def standardised_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, alpha: float, temperature: float
) -> DistillationLoss:
    """Logit standardisation (Sun et al., CVPR 2024): the distillation loss on logits of zero mean and unit deviation per image.

    The student may then keep logits of its own scale. With four classes a standardised logit is at most sqrt(3). The deviation is that over
    the C classes; the code of its authors divides by C - 1, which is a temperature higher by sqrt(C / (C - 1)).
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
    _check(alpha, temperature)
    hard = F.cross_entropy(student_logits, targets)
    return DistillationLoss(alpha * hard + (1 - alpha) * soft, hard, soft)


# -- explanations as part of what is taught ---------------------------------------------------------------------------------


def directions(student_maps: Tensor, teacher_maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps ``(..., h, w)`` of both, averaged to the coarser of the two grids, each as a vector ``(..., hw)`` of length one."""
    size = [min(sides) for sides in zip(student_maps.shape[-2:], teacher_maps.shape[-2:], strict=True)]
    both = (F.adaptive_avg_pool2d(maps, size) for maps in (student_maps, teacher_maps))
    student, teacher = (F.normalize(maps.flatten(-2), dim=-1) for maps in both)
    return student, teacher


def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    r"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, eq. 2): ``|| Q_S / ||Q_S|| - Q_T / ||Q_T|| ||^2``, the mean over pairs.

    :math:`Q = \sum_k |F_k|^p` is a layer's attention map. With p = 1, after a ReLU, it is the average feature map times the number of
    filters, which the lengths cancel: what is taught is the very map that the paper explains by. The square is that of the authors' code.

    Args:
        student_maps, teacher_maps: pairs of layers, each ``(N, h, w)``; of two sizes both are averaged to the coarser.
    """
    pairs = (directions(ours, theirs) for ours, theirs in zip(student_maps, teacher_maps, strict=True))
    return torch.stack([(ours - theirs).square().sum(dim=-1).mean() for ours, theirs in pairs]).mean()


def class_attention_transfer(student_evidence: Tensor, teacher_evidence: Tensor) -> Tensor:
    """CAT-KD (Guo et al., CVPR 2023, eq. 5): the squared distance of class activation maps of length one, the mean over *all* classes.

    Args:
        student_evidence, teacher_evidence: ``(N, C, h, w)``, of two sizes both are averaged to the coarser (theirs: 2 x 2).
    """
    student, teacher = directions(student_evidence, teacher_evidence)
    return (student - teacher).square().sum(dim=-1).mean()


def explanation_similarity_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """e2KD (Parchami-Araghi et al., ECCV 2024, eq. 4): one minus the cosine of the explanations of one class, the teacher's answer.

    Args:
        student_maps, teacher_maps: ``(N, h, w)``, signed; of two sizes both are averaged to the coarser.
    """
    student, teacher = directions(student_maps, teacher_maps)
    return 1 - (student * teacher).sum(dim=-1).mean()


def label_smoothing_loss(student_logits: Tensor, targets: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with ``1 - smoothing`` on the label and the rest spread evenly over all classes (Szegedy et al. 2016)."""
    return F.cross_entropy(student_logits, targets, label_smoothing=smoothing)


def arm_loss(
    arm: str,
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """The scalar that the arm ``arm`` minimises.

    Arms: ``ce``, ``ls`` (label smoothing) need no teacher; ``released``, ``kd`` (the paper's loss), ``kd_t2`` (with T^2), ``dist``,
    ``dkd``, ``standardised`` do.

    Raises:
        ParameterError: an unknown arm.
    """
    mix = {"alpha": alpha, "temperature": temperature}
    match arm:
        case "ce":
            return F.cross_entropy(student_logits, targets)
        case "ls":
            return label_smoothing_loss(student_logits, targets)
        case "released":
            return released_loss(student_logits, teacher_logits, targets, **mix).total
        case "kd" | "kd_t2":
            return distillation_loss(student_logits, teacher_logits, targets, scale_by_t2=arm == "kd_t2", **mix).total
        case "dist":
            return dist_loss(student_logits, teacher_logits, targets, **mix).total
        case "dkd":
            return dkd_loss(student_logits, teacher_logits, targets, **mix).total
        case "standardised":
            return standardised_loss(student_logits, teacher_logits, targets, **mix).total
    raise ParameterError(f"arm is {arm!r}, but it must be one of: {', '.join(ARMS)}.")


ARMS = ("ce", "released", "kd", "kd_t2", "ls", "dist", "dkd", "standardised")
WITHOUT_TEACHER = ("ce", "ls")
