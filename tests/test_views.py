"""Augmented views: replayable, shared by teacher and students, and what they claim to be."""

import numpy as np
import pytest
import torch

from kdnb import models, views
from kdnb.datasets import phantom, to_tensor


def test_views_are_a_fixed_function_of_view_and_image():
    assert torch.equal(views.view_moves(10, 3, 48), views.view_moves(10, 3, 48))
    assert not torch.equal(views.view_moves(10, 3, 48), views.view_moves(10, 4, 48))


@pytest.mark.parametrize(("side", "reach"), [(12, 1), (32, 1), (48, 1), (64, 1), (224, 4)])
def test_every_move_within_the_bounds_occurs_and_none_beyond(side, reach):
    moves = views.view_moves(5000, 0, side)
    for column in (1, 2):
        assert moves[:, column].unique().tolist() == list(range(-reach, reach + 1))
    assert moves[:, 0].unique().tolist() == [0, 1] and 0.45 < moves[:, 0].float().mean() < 0.55


def test_standing_still_renders_the_image_itself():
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(views.render(images, torch.zeros(2, 3, dtype=torch.int64)), images)


def test_mirror_and_shift_move_pixels_where_they_should():
    image = torch.zeros(1, 3, 8, 6)
    image[..., 2, 1] = 1
    for move, (row, column) in {(1, 0, 0): (2, 4), (0, 3, 0): (5, 1), (0, 0, 2): (2, 3), (1, -1, 1): (1, 5)}.items():
        moved = views.render(image, torch.tensor([move]))
        assert moved.shape == image.shape and moved.sum() == 3 and moved[0, 0, row, column] == 1, move


def test_the_border_is_repeated_outwards():
    image = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 3, 4, 4)
    assert views.render(image, torch.tensor([[0, 0, 2]]))[0, 0, 0].tolist() == [0, 0, 0, 1]


def test_a_view_is_as_sharp_as_its_image():
    """Only pixels of the image occur: nothing is interpolated."""
    made = phantom.generate(4, 32)
    images = to_tensor(made.images)
    seen = views.render(images, views.view_moves(4, 0, 32))
    assert not torch.equal(seen, images)
    assert all(
        set(view.flatten().tolist()) <= set(image.flatten().tolist()) for view, image in zip(seen, images, strict=True)
    )


def test_bank_replays_the_same_logits_after_shuffling(monkeypatch):
    monkeypatch.setenv("KDNB_PRECISION", "float32")  # as the replay below
    made = phantom.generate(24, 32)
    teacher = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=0)
    bank = views.teacher_bank(teacher, made.images, 3, batch_size=7)
    assert bank.shape == (3, 24, 4)
    order = np.random.default_rng(0).permutation(24)
    for view in range(3):
        moves = views.view_moves(24, view, 32)[order]
        with torch.no_grad():
            replayed = teacher(views.render(to_tensor(made.images[order]), moves)).numpy()
        np.testing.assert_allclose(replayed, bank[view, order], atol=1e-5)
    assert np.abs(bank[0] - bank[1]).max() > 1e-3  # another view is another picture
    assert not teacher.training


def test_what_is_shown_twice_is_looked_at_once(monkeypatch):
    """Of five images 18 moves each are possible at this size; a hundred rows of three views show most of them."""
    monkeypatch.setenv("KDNB_PRECISION", "float32")
    made, which = phantom.generate(5, 32).images, np.resize(np.arange(5), 100)
    teacher, looked_at = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=0), []
    teacher.register_forward_pre_hook(lambda module, inputs: looked_at.append(len(inputs[0])))
    every = views.teacher_bank(teacher, made[which], 3)
    known, once = sum(looked_at), views.teacher_bank(teacher, made[which], 3, which=which)
    pairs = [zip(which, map(tuple, views.view_moves(100, view, 32).tolist()), strict=True) for view in range(3)]
    assert sum(looked_at) - known == len({pair for view in pairs for pair in view}) < 90 < known
    np.testing.assert_allclose(once, every, atol=1e-5)


def test_the_bank_is_made_in_the_arithmetic_of_training(monkeypatch):
    made, seen = phantom.generate(4, 32).images, []
    teacher = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=0)
    teacher.features[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr("kdnb.device.precision", lambda device=None, dtype=dtype: dtype)
        assert views.teacher_bank(teacher, made, 1).dtype == np.float32
    assert seen[0] == torch.float32 and seen[1] != torch.float32
