"""Augmented views: replayable, shared by teacher and students, and what they claim to be."""

import numpy as np
import torch

from kdnb import models, views
from kdnb.datasets import phantom, to_tensor


def test_views_are_a_fixed_function_of_view_and_image():
    assert torch.equal(views.view_transforms(10, 3), views.view_transforms(10, 3))
    assert not torch.equal(views.view_transforms(10, 3), views.view_transforms(10, 4))


def test_views_stay_within_their_bounds():
    transforms = views.view_transforms(5000, 0)
    linear = transforms[:, :, :2]
    scale = torch.linalg.det(linear).abs().sqrt()
    assert scale.min() > 1 - views.SCALE - 1e-5 and scale.max() < 1 + views.SCALE + 1e-5
    angle = torch.atan2(-linear[:, 0, 1], linear[:, 1, 1]).rad2deg()
    assert angle.abs().max() < views.ROTATION_DEGREES + 1e-3 and angle.abs().max() > 0.95 * views.ROTATION_DEGREES
    assert (transforms[:, :, 2].abs() < 2 * views.SHIFT + 1e-6).all()
    flipped = (torch.linalg.det(linear) < 0).float().mean()
    assert 0.45 < flipped < 0.55


def test_identity_renders_the_image_itself():
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(views.render(images, torch.eye(2, 3).repeat(2, 1, 1)), images)


def test_flip_and_shift_move_pixels_where_they_should():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 2, 1] = 1
    flip = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    assert views.render(image, flip)[0, 0, 2, 6] == 1
    right = torch.tensor([[[1.0, 0, -2 / 8], [0, 1, 0]]])  # look one pixel to the left: the picture moves to the right
    torch.testing.assert_close(views.render(image, right)[0, 0, 2, 2], torch.tensor(1.0))


def test_bank_replays_the_same_logits_after_shuffling():
    made = phantom.generate(24, 32)
    teacher = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=0)
    bank = views.teacher_bank(teacher, made.images, 3, batch_size=7)
    assert bank.shape == (3, 24, 4)
    order = np.random.default_rng(0).permutation(24)
    for view in range(3):
        transforms = views.view_transforms(24, view)[order]
        with torch.no_grad():
            again = teacher(views.render(to_tensor(made.images[order]), transforms)).numpy()
        np.testing.assert_allclose(again, bank[view, order], atol=1e-5)
    assert np.abs(bank[0] - bank[1]).max() > 1e-3  # another view is another picture
    assert not teacher.training
