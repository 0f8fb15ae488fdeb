"""The losses against values worked out by hand, finite differences, and what they claim."""

import math

import pytest
import torch
from torch.nn import functional as F

from kdnb import losses
from kdnb.errors import ParameterError

LOG3 = math.log(3)


def random_case(seed: int = 0, count: int = 6, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(0, classes, (count,), generator=generator)


def test_distillation_loss_by_hand():
    # softmax([ln 3, 0]) = [3/4, 1/4]; the teacher's is [1/2, 1/2];
    # KL = 1/2 ln(1/2 / 3/4) + 1/2 ln(1/2 / 1/4) = 1/2 ln(4/3).
    student, teacher = torch.tensor([[LOG3, 0.0]]), torch.zeros(1, 2)
    loss = losses.distillation_loss(student, teacher, torch.tensor([0]), alpha=0.4, temperature=1.0)
    assert loss.hard.item() == pytest.approx(-math.log(3 / 4), rel=1e-6)
    assert loss.soft.item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert loss.total.item() == pytest.approx(0.4 * -math.log(3 / 4) + 0.6 * 0.5 * math.log(4 / 3), rel=1e-6)


def test_temperature_divides_logits_and_t2_scales_the_soft_part():
    # At T = 2 logits of 2 ln 3 and 0 soften to the same [3/4, 1/4].
    student, teacher, target = torch.tensor([[2 * LOG3, 0.0]]), torch.zeros(1, 2), torch.tensor([0])
    plain = losses.distillation_loss(student, teacher, target, alpha=0.0, temperature=2.0, scale_by_t2=False)
    scaled = losses.distillation_loss(student, teacher, target, alpha=0.0, temperature=2.0)
    assert plain.total.item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert scaled.total.item() == pytest.approx(4 * 0.5 * math.log(4 / 3), rel=1e-6)


def test_soft_part_is_a_mean_over_images_not_over_classes():
    student, teacher, targets = random_case()
    once = losses.distillation_loss(student, teacher, targets, alpha=0.0, temperature=3.0).total
    twice = losses.distillation_loss(
        student.repeat(2, 1), teacher.repeat(2, 1), targets.repeat(2), alpha=0.0, temperature=3.0
    ).total
    by_hand = (
        9 * (F.softmax(teacher / 3, 1) * (F.log_softmax(teacher / 3, 1) - F.log_softmax(student / 3, 1))).sum(1).mean()
    )
    torch.testing.assert_close(once, twice)
    torch.testing.assert_close(once, by_hand)


def test_released_soft_loss_does_not_contain_the_student():
    student, teacher, targets = random_case()
    student.requires_grad_()
    loss = losses.released_loss(student, teacher, targets, alpha=0.4, temperature=10.0)
    assert not loss.soft.requires_grad
    (gradient,) = torch.autograd.grad(loss.total, student)
    (plain,) = torch.autograd.grad(F.cross_entropy(student, targets), student)
    torch.testing.assert_close(gradient, 0.4 * plain)


def test_released_soft_loss_by_hand():
    # One-hot [1, 0] at T = 1: softmax = [e, 1] / (e + 1).
    # A teacher sure of nothing gives [1/2, 1/2], so the cross-entropy is ln 2.
    loss = losses.released_loss(
        torch.tensor([[LOG3, 0.0]]), torch.zeros(1, 2), torch.tensor([0]), alpha=0.0, temperature=1.0
    )
    assert loss.total.item() == pytest.approx(math.log(2), rel=1e-6)


def test_dist_is_zero_for_a_rescaled_copy_only():
    _, teacher, targets = random_case()
    same = losses.dist_loss(teacher, teacher, targets, alpha=0.0, temperature=1.0).total
    other = losses.dist_loss(-teacher, teacher, targets, alpha=0.0, temperature=1.0).total
    assert same.item() == pytest.approx(0, abs=1e-9)
    assert other.item() > 1


def test_dkd_becomes_kl_when_the_rest_is_weighted_by_its_probability():
    student, teacher, _ = random_case(count=1)
    target = teacher.argmax(1)
    rest = 1 - F.softmax(teacher / 2, 1)[0, target].item()
    dkd = losses.dkd_loss(student, teacher, target, alpha=0.0, temperature=2.0, non_target_weight=rest).total
    kl = losses.distillation_loss(student, teacher, target, alpha=0.0, temperature=2.0).total
    torch.testing.assert_close(dkd, kl)


def test_standardised_loss_ignores_shift_and_scale_of_the_student():
    student, teacher, targets = random_case()
    options = {"alpha": 0.0, "temperature": 2.0}
    first = losses.standardised_loss(student, teacher, targets, **options).total
    second = losses.standardised_loss(5 * student + 3, teacher, targets, **options).total
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)


def test_label_smoothing_by_hand():
    # Two classes, smoothing .1: target [.95, .05]; logits [ln 3, 0] give -.95 ln(3/4) - .05 ln(1/4).
    loss = losses.label_smoothing_loss(torch.tensor([[LOG3, 0.0]]), torch.tensor([0]), 0.1)
    assert loss.item() == pytest.approx(-0.95 * math.log(0.75) - 0.05 * math.log(0.25), rel=1e-6)


@pytest.mark.parametrize("arm", losses.ARMS)
def test_gradient_of_every_arm_against_finite_differences(arm):
    student, teacher, targets = random_case(seed=3)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: losses.arm_loss(arm, z, teacher, targets, alpha=0.4, temperature=4.0), (student,)
    )


@pytest.mark.parametrize(
    ("alpha", "temperature"), [(-0.1, 5), (1.1, 5), (0.4, 0), (0.4, -3), (math.nan, 5), (0.4, math.nan)]
)
def test_wrong_alpha_or_temperature_is_refused(alpha, temperature):
    student, teacher, targets = random_case()
    with pytest.raises(ParameterError, match="but it must be"):
        losses.distillation_loss(student, teacher, targets, alpha=alpha, temperature=temperature)


def test_unknown_arm_is_refused():
    student, teacher, targets = random_case()
    with pytest.raises(ParameterError, match="'kl'.*ce, released"):
        losses.arm_loss("kl", student, teacher, targets)


# -- explanations as part of what is taught -------------------------------------------------------------------------


def test_attention_transfer_by_hand():
    # [[3, 4]] and [[4, 3]], both of length 5: (3/5 - 4/5)^2 + (4/5 - 3/5)^2 = 2/25;
    # the second pair is one direction at two scales: 0.
    ours = [torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 2.0]]])]
    teachers = [torch.tensor([[[4.0, 3.0]]]), torch.tensor([[[10.0, 20.0]]])]
    assert losses.attention_transfer(ours, teachers).item() == pytest.approx((2 / 25 + 0) / 2, rel=1e-5)


def test_maps_of_two_sizes_are_averaged_to_the_coarser():
    fine = torch.tensor([[[1.0, 3.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0]]])  # the means of its halves are 2 and 0
    assert losses.attention_transfer([fine], [torch.tensor([[[1.0, 0.0]]])]).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.attention_transfer([fine], [torch.tensor([[[0.0, 1.0]]])]).item() == pytest.approx(2.0, rel=1e-5)


def test_class_attention_transfer_by_hand_counts_every_class():
    # The first class agrees, the second is the other way round: |a - (-a)|^2 = 4, so the mean over two classes is 2.
    student = torch.tensor([[[[3.0, 4.0]], [[1.0, -1.0]]]])
    teacher = torch.tensor([[[[6.0, 8.0]], [[-2.0, 2.0]]]])
    assert losses.class_attention_transfer(student, teacher).item() == pytest.approx(2.0, rel=1e-5)


def test_explanation_similarity_is_one_minus_the_cosine():
    # cos([1, 0], [1, 1]) = 1 / sqrt 2; opposite maps are as far as can be.
    student = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    teacher = torch.tensor([[[1.0, 1.0]], [[-1.0, 0.0]]])
    expected = ((1 - 1 / math.sqrt(2)) + 2) / 2
    assert losses.explanation_similarity_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "loss", [losses.class_attention_transfer, lambda a, b: losses.explanation_similarity_loss(a[:, 0], b[:, 0])]
)
def test_lessons_have_the_gradients_of_finite_differences(loss):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda maps: loss(maps, teacher[..., :2, :2]), student.requires_grad_())


def test_a_silent_map_teaches_nothing_and_breaks_nothing():
    silent = torch.zeros(2, 3, 3, requires_grad=True)
    loss = losses.explanation_similarity_loss(silent, torch.ones(2, 3, 3))
    loss.backward()
    assert loss.item() == 1.0
    assert silent.grad.isfinite().all()
