"""The networks: sizes, shapes, repeatable starts."""

import socket
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import densenet121

from kdnb import cost, models
from kdnb.errors import DownloadError, ModelError, ParameterError
from kdnb.explain import receptive_fields


def test_standardise_divides_by_the_standard_deviation_and_an_empty_image_has_a_gradient():
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    mean, deviation = images.mean(dim=(1, 2, 3), keepdim=True), images.std(dim=(1, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(models.Standardise()(images), (images - mean) / (deviation + 1e-3))
    blank = torch.full((1, 3, 8, 8), 0.3, requires_grad=True)
    models.Standardise()(blank).square().sum().backward()
    assert blank.grad.isfinite().all() and models.Standardise()(blank).abs().max() < 1e-3


def test_standardise_makes_contrast_and_brightness_irrelevant():
    images = torch.rand(3, 3, 16, 16)
    out = models.Standardise()(images)
    torch.testing.assert_close(out.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(models.Standardise()(0.5 * images + 0.2), out, atol=0.02, rtol=0)


def test_student_map_sizes_and_widths():
    model = models.StudentCNN(4).eval()
    maps = model.features[0](torch.rand(1, 3, 64, 64))
    sizes = [tuple(maps.shape[1:])]
    for block in model.features[1:]:
        maps = block(maps)
        sizes.append(tuple(maps.shape[1:]))
    assert sizes == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 4, 4)]


@pytest.mark.parametrize("depth", range(3, 9))
@pytest.mark.parametrize("pool", ["max", "average"])
def test_student_of_every_studied_depth_runs(depth, pool):
    widths = (8, 16, 16, 16, 32, 32, 32, 32)[:depth]
    model = models.StudentCNN(3, widths, pool)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert list(models.feature_layers(model)) == [f"layer{k}" for k in range(1, depth + 1)]


def test_wrong_options_are_refused():
    with pytest.raises(ParameterError, match="pool is 'median'"):
        models.StudentCNN(4, pool="median")
    with pytest.raises(ParameterError, match="weights is 'best'"):
        models.densenet121_teacher(4, weights="best")
    with pytest.raises(ParameterError, match="head is 'deep'"):
        models.densenet121_teacher(4, head="deep")


def test_sizes_that_the_paper_is_compared_with():
    # Nominal figures: DenseNet121 about 2.83 GMAC and 7-8 M parameters;
    # the released student 1.16 GMAC and 9.86 M parameters.
    teacher, released = models.densenet121_teacher(4, head="paper"), models.ReleasedStudent(4)
    assert cost.macs(teacher, 224) == pytest.approx(2.833e9, rel=0.01)
    assert 6.9e6 < cost.parameters(teacher) < 8.1e6
    assert cost.macs(released, 224) == pytest.approx(1.16e9, rel=0.02)
    assert cost.parameters(released) == pytest.approx(9.86e6, rel=0.01)
    assert sum(isinstance(module, nn.Conv2d) for module in released.modules()) == 8


def test_same_seed_same_weights_and_torch_state_untouched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (models.initialised(models.StudentCNN, 4, seed=1) for _ in range(2))
    other = models.initialised(models.StudentCNN, 4, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.features[0][0].weight, other.features[0][0].weight)


def test_feature_layers_of_a_stranger_are_refused():
    with pytest.raises(ModelError, match="Linear has no known feature layers"):
        models.feature_layers(nn.Linear(2, 2))


def test_no_relu_of_the_teacher_works_in_place():
    assert not any(module.inplace for module in models.densenet121_teacher(4).modules() if isinstance(module, nn.ReLU))


def without_network(weights=None, progress=True):
    if weights is not None:
        raise URLError("Name or service not known")
    return densenet121()


def test_a_download_that_was_cut_off_is_one_sentence_and_auto_starts_from_scratch(monkeypatch):
    def truncated(weights=None, progress=True):
        if weights is not None:
            raise RuntimeError('invalid hash value (expected "a639ec97", got "e3b0c442")')
        return densenet121()

    monkeypatch.setattr(models, "densenet121", truncated)
    with pytest.raises(DownloadError, match="cannot be downloaded .invalid hash value .*: use weights=None"):
        models.densenet121_teacher(4, weights="imagenet")
    assert models.untrained_teacher(4, "auto", "plain", seed=0)[1] == "scratch"


def test_absent_network_is_one_sentence_and_auto_starts_from_scratch(monkeypatch):
    monkeypatch.setattr(models, "densenet121", without_network)
    with pytest.raises(DownloadError, match="cannot be downloaded .Name or service not known.: use weights=None"):
        models.densenet121_teacher(4, weights="imagenet")
    assert socket.getdefaulttimeout() is None
    with pytest.raises(DownloadError):
        models.untrained_teacher(4, "imagenet", "plain", seed=0)
    teacher, origin = models.untrained_teacher(4, "auto", "paper", seed=0)
    assert origin == "scratch" and teacher.network.classifier[-1].out_features == 4


def test_imagenet_weights_are_kept_but_for_the_head(monkeypatch):
    """torchvision's download is replaced by a network that stands for the published one."""
    published = densenet121()
    monkeypatch.setattr(
        models, "densenet121", lambda weights=None, progress=True: published if weights is not None else densenet121()
    )
    first = published.features.conv0.weight.clone()
    teacher, origin = models.untrained_teacher(3, "auto", "plain", seed=0)
    assert origin == "imagenet"
    assert torch.equal(teacher.network.features.conv0.weight, first)
    assert teacher.network.classifier.out_features == 3


@pytest.mark.parametrize(
    ("name", "fields", "cells"), [("plain", 78, 4), ("translucent", 38, 8), ("transparent", 22, 8)]
)
def test_named_shapes_have_their_field_and_map(name, fields, cells):
    model = models.student(name, 3, (8, 8, 16, 16, 16)).eval()
    assert list(receptive_fields(model).values())[-1] == fields
    assert model.features(torch.rand(1, 3, 64, 64)).shape == (1, 16, cells, cells)


def test_the_plain_shape_is_the_default_student_bit_for_bit():
    plain, default = (
        models.initialised(build, *arguments, seed=3)
        for build, arguments in ((models.student, ("plain", 4)), (models.StudentCNN, (4,)))
    )
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), default.state_dict().values(), strict=True)
    )


def test_wrong_shapes_are_refused():
    with pytest.raises(ParameterError, match="student is 'opaque', but it must be one of: plain, "):
        models.student("opaque", 4)
    with pytest.raises(ParameterError, match=r"kernel_sizes is \(3, 2\), but it must be odd"):
        models.StudentCNN(4, kernel_sizes=(3, 2))
    with pytest.raises(ParameterError, match="poolings is -1, but"):
        models.StudentCNN(4, poolings=-1)


def test_in_training_each_image_hears_another_combination_of_layers_and_all_of_them_afterwards():
    torch.manual_seed(0)
    model = models.student("spread", 3, (4, 4, 4)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # so that an image's maps do not depend on the batch
    images = torch.rand(1, 3, 16, 16).repeat(8, 1, 1, 1)
    heard = model(images)
    assert len({tuple(row) for row in heard[:7].round(decimals=5).tolist()}) == 7 and torch.equal(heard[7], heard[0])
    # The seventh of seven combinations is all three layers.
    torch.testing.assert_close(heard[6], model.eval()(images)[6])
    first = model.classifier.weight[:, :4] @ model.features[0](model.standardise(images[:1])).mean(dim=(2, 3))[0]
    torch.testing.assert_close(heard[0], 3 * first + model.classifier.bias)
