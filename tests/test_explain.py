"""Average feature maps, the methods beside them, and what they leave behind (nothing)."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerActivation, LayerGradCam
from torch import nn

from kdnb import explain
from kdnb.errors import ModelError
from kdnb.explain import METHODS, methods
from kdnb.explain.maps import average, weighted_average
from kdnb.fidelity import spearman
from kdnb.models import ReleasedStudent, StudentCNN, densenet121_teacher, feature_layers, initialised

QUICK = methods(shap_samples=4)


@pytest.fixture(scope="module")
def student():
    return _lively(initialised(StudentCNN, 3, (8, 8, 16, 16, 16), seed=1))


@pytest.fixture(scope="module")
def teacher():
    return initialised(densenet121_teacher, 3, seed=1).eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 8, 8, generator=generator)
    return F.interpolate(coarse, size=64, mode="bilinear").contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def targets():
    return torch.tensor([0, 1, 2, 1])


def _lively(model):
    """Batch-norm statistics from random images, so that an untrained network's maps are not flat."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average of all batches
    with torch.no_grad():
        model.train()(
            F.interpolate(torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)), size=64, mode="bilinear")
        )
    return model.eval()


class Chain(nn.Module):
    """A network that the study does not know."""

    def __init__(self, inplace=False):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.head = nn.Linear(5, 3)
        self.inplace = inplace

    def forward(self, images):
        maps = F.relu(self.first(images), inplace=self.inplace)
        maps = F.relu(self.second(maps), inplace=self.inplace)
        return self.head(maps.mean(dim=(2, 3)))


# -- average maps ---------------------------------------------------------------------------------------------------


def test_five_maps_of_the_student_are_the_means_over_filters(student, images):
    maps = explain.average_feature_maps(student, images)
    assert [tuple(m.shape) for m in maps] == [(4, s, s) for s in (32, 16, 8, 4, 4)]
    with torch.no_grad():
        features = student.standardise(images)
        for block, average_map in zip(student.features, maps, strict=True):
            features = block(features)
            torch.testing.assert_close(average_map, features.mean(dim=1))


def test_maps_agree_with_captum(student, teacher, images):
    for model in (student, teacher):
        maps = explain.average_feature_maps(model, images)
        for layer, average_map in zip(feature_layers(model).values(), maps, strict=True):
            torch.testing.assert_close(
                average_map, LayerActivation(model, layer).attribute(images).mean(dim=1).detach(), rtol=1e-4, atol=1e-5
            )


def test_both_memory_layouts_give_the_same_average():
    features = torch.randn(3, 7, 5, 4)
    expected = features.double().mean(dim=1).float()
    torch.testing.assert_close(average(features), expected)
    torch.testing.assert_close(average(features.contiguous(memory_format=torch.channels_last)), expected)


def test_weighted_average_by_hand():
    features = torch.tensor([[[[1.0, 1.0]], [[0.0, 6.0]]]])  # filters of mean 1 and 3
    torch.testing.assert_close(weighted_average(features), torch.tensor([[[0.25, (1 + 18) / 4]]]))
    assert torch.isfinite(weighted_average(torch.zeros(1, 2, 3, 3))).all()


def test_one_forward_pass_gives_all_maps(student, images):
    calls = []
    handle = student.register_forward_hook(lambda *_: calls.append(1))
    explain.average_feature_maps(student, images)
    handle.remove()
    assert len(calls) == 1


def test_an_in_place_operation_after_the_layer_does_not_reach_the_map(images):
    torch.manual_seed(0)
    model = Chain(inplace=True).eval()
    first, second = explain.average_feature_maps(model, images, ["first", "second"])
    with torch.no_grad():
        torch.testing.assert_close(first, model.first(images).mean(dim=1))
    assert second.shape == (4, 32, 32)
    assert (first < 0).any()


def test_unknown_networks_need_names_and_say_which(images):
    model = Chain()
    with pytest.raises(ModelError, match="Chain has no known feature layers"):
        explain.average_feature_maps(model, images)
    with pytest.raises(ModelError, match="'third', but Chain has these convolutional layers: first, second"):
        explain.average_feature_maps(model, images, ["third"])
    with pytest.raises(ModelError, match="'head' gives .*not maps"):
        explain.average_feature_maps(model, images, ["head"])
    with pytest.raises(ModelError, match="Linear has no convolutional layer"):
        explain.average_feature_maps(nn.Linear(3, 2), images, ["weight"])
    with pytest.raises(ModelError, match="4 feature layers, so there is no layer 5"):
        METHODS["feature_maps_layer5"](initialised(densenet121_teacher, 3, seed=0), images[:1], torch.tensor([0]))


def test_a_layer_that_is_not_used_is_named(images):
    model = Chain()
    model.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ModelError, match="'spare' took no part"):
        explain.average_feature_maps(model, images, ["first", "spare"])


def test_receptive_fields_are_what_gradients_reach():
    model = _lively(initialised(StudentCNN, 3, (4, 4, 4, 4, 4), pool="average", seed=0))
    model.standardise = nn.Identity()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.abs_()  # nothing cancels
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
    image = torch.rand(1, 3, 192, 192, requires_grad=True)
    features = image
    for (name, size), block in zip(explain.receptive_fields(model).items(), model.features, strict=True):
        features = block(features)
        middle = features.shape[-1] // 2
        (gradient,) = torch.autograd.grad(features[0, :, middle, middle].sum(), image, retain_graph=True)
        touched = gradient.abs().sum(dim=(0, 1)).sum(dim=0).nonzero()
        assert int(touched.max() - touched.min()) + 1 == size, name


# -- methods --------------------------------------------------------------------------------------------------------


def test_unpooled_maps_are_the_layers_own_at_full_resolution(student, images):
    maps = explain.unpooled_feature_maps(student, images)
    assert [a.shape[-1] for a in maps] == [64, 32, 16, 8, 4]
    pooled = explain.average_feature_maps(student, images)
    torch.testing.assert_close(maps[4], pooled[4])  # the last layer does not pool
    with torch.no_grad():
        by_hand = student.features[0][0](student.standardise(images))
        by_hand = student.features[0][2](by_hand).relu().mean(dim=1)
    torch.testing.assert_close(maps[0], by_hand)
    # with rising normalisation the largest of four activations is the activation of the largest
    assert all((F.max_pool2d(a[:, None], 2)[:, 0] <= b + 1e-4).all() for a, b in zip(maps[:4], pooled[:4], strict=True))


def test_unpooled_maps_of_the_release_are_its_relu_before_norm_and_pooling(images):
    model = initialised(ReleasedStudent, 3, seed=0).eval()
    maps = explain.unpooled_feature_maps(model, images)
    with torch.no_grad():
        by_hand = model.features[0][0](model.standardise(images)).relu().mean(dim=1)
    torch.testing.assert_close(maps[0], by_hand)
    assert len(maps) == 6 and not any(module._forward_hooks for module in model.modules())


def test_unpooled_maps_are_known_of_students_only(images):
    with pytest.raises(ModelError, match="Chain is not a student whose poolings are known: use average_feature_maps"):
        explain.unpooled_feature_maps(Chain(), images)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_finite_map_of_the_images_size_and_leaves_no_trace(name, student, images, targets):
    model = copy.deepcopy(student).train()
    model.features[1].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = _state(model)
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    images_before = images.clone(memory_format=torch.preserve_format)
    maps = QUICK[name](model, images_before, targets)
    assert maps.shape == (4, 64, 64) and maps.dtype == torch.float32 and torch.isfinite(maps).all()
    assert not maps.requires_grad and not images_before.requires_grad and images_before.grad is None
    assert torch.equal(images_before, images)
    _assert_same(before, _state(model))
    assert (numpy_before == np.random.get_state()[1]).all() and torch.equal(torch_before, torch.get_rng_state())  # noqa: NPY002


def test_nothing_is_left_behind_when_a_method_fails(student, images):
    model = copy.deepcopy(student).train()
    before = _state(model)
    for name in ("feature_maps_mean", "grad_cam", "integrated_gradients", "shap"):
        with pytest.raises((IndexError, RuntimeError, AssertionError)):
            QUICK[name](model, images[:, :2], torch.tensor([0, 1, 2, 1]))
    _assert_same(before, _state(model))


def _state(model):
    hooks = [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks)
        for m in model.modules()
    ]
    modes = [module.training for module in model.modules()]
    names = [name for name, _ in model.named_modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return hooks, modes, names, [p.requires_grad for p in model.parameters()], values, gradients


def _assert_same(a, b):
    assert a[:4] == b[:4]
    assert all(torch.equal(a[4][name], b[4][name]) for name in a[4])
    assert all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a[5], b[5], strict=True))


def test_grad_cam_is_captums_with_bilinear_upsampling(student, images, targets):
    own_map = METHODS["grad_cam"](student, images, targets)
    heat = LayerGradCam(student, student.features[4]).attribute(images, targets, relu_attributions=True).detach()
    torch.testing.assert_close(own_map, F.interpolate(heat, 64, mode="bilinear", align_corners=False)[:, 0])


def test_grad_cam_with_equal_weights_is_the_average_feature_map(student, images, targets):
    model = copy.deepcopy(student)
    model.classifier.weight.data.fill_(16.0)  # every filter's mean gradient is then 16 / (16 positions) = 1
    by_grad_cam = METHODS["grad_cam"](model, images, targets)
    torch.testing.assert_close(
        by_grad_cam / 16, METHODS["feature_maps_layer5"](model, images, targets), rtol=1e-4, atol=1e-6
    )


def test_integrated_gradients_add_up_to_the_change_of_the_logit(student, images, targets):
    from captum.attr import IntegratedGradients

    baseline = explain.blurred(images)
    signed = IntegratedGradients(student).attribute(images, baseline, targets, n_steps=50)
    with torch.no_grad():
        change = (student(images) - student(baseline)).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(signed.sum(dim=(1, 2, 3)).float(), change, rtol=0.2, atol=0.1)
    torch.testing.assert_close(
        METHODS["integrated_gradients"](student, images, targets), signed.abs().sum(dim=1).float()
    )


def test_every_map_of_one_attribution_costs_no_second_run(student, images, targets):
    """Magnitude, sign and the coarse twin of both methods, each method asked once."""
    passes = []
    hook = student.register_forward_hook(lambda *_: passes.append(1))
    at_once = explain.explain_all(explain.attributions(QUICK), student, images, targets)
    once = len(passes)
    cells = [(32, 32), (16, 16), (8, 8), (4, 4), (4, 4)]
    maps = explain.joined(at_once, cells)
    assert len(passes) == once
    hook.remove()
    assert [tuple(values.shape) for values in at_once.values()] == [(4, 3, 64, 64)] * 2
    for name in ("integrated_gradients", "shap"):
        assert at_once[name].min() < 0 < at_once[name].max()
        torch.testing.assert_close(maps[name], at_once[name].abs().sum(dim=1))
        torch.testing.assert_close(maps[f"{name}_signed"], at_once[name].sum(dim=1))
        for made in (name, f"{name}_signed"):
            torch.testing.assert_close(maps[made], QUICK[made](student, images, targets))
    assert set(maps) == {f"{name}{end}" for name in at_once for end in ("", "_signed", "_coarse")}


def test_a_coarse_twin_has_the_average_maps_cells_and_a_smooth_map_hardly_changes():
    spike = torch.zeros(1, 64, 64)
    spike[0, 9, 9] = 1
    coarse = explain.coarsened(spike, [(4, 4)])
    torch.testing.assert_close(coarse, explain.rescaled(explain.upsampled(F.adaptive_avg_pool2d(spike, 4), (64, 64))))
    assert coarse[0, 0, 0] == coarse.max() == 1  # as much as any place of the cell
    two = explain.coarsened(torch.cat([spike, 5 * spike.flip(2)]), [(8, 8), (4, 4)])
    torch.testing.assert_close(two[1], two[0].flip(1))
    ramp = torch.linspace(0, 1, 64).expand(1, 64, 64)
    assert spearman(explain.coarsened(ramp, [(8, 8), (4, 4)]).numpy(), ramp.numpy()) > 0.97
    assert explain.coarsened(torch.ones(1, 64, 64), [(4, 4)]).abs().max() == 0


def test_a_constant_baseline_would_explain_nothing(student, images):
    """The reason for the blurred baseline:
    between a grey image and the image a standardising network sees no change at all."""
    grey = images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images)
    with torch.no_grad():
        logits = [student(grey + share * (images - grey)) for share in (0.3, 1.0)]
    torch.testing.assert_close(*logits, rtol=0.05, atol=0.05)


def test_shap_explains_the_class_it_is_asked_for(student, images):
    of_first_class = QUICK["shap"](student, images, torch.tensor([0, 0, 0, 0]))
    other = QUICK["shap"](student, images, torch.tensor([1, 0, 0, 0]))
    assert not torch.allclose(of_first_class[0], other[0])
    torch.testing.assert_close(QUICK["shap"](student, images[:1], torch.tensor([1])), other[:1])


def test_shap_of_a_linear_model_is_weight_times_distance_from_the_background():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(3 * 8 * 8, 2)

        def forward(self, images):
            return self.dense(images.flatten(1))

    torch.manual_seed(0)
    model, images, background = Linear(), torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8)
    attribution = methods(background, shap_samples=5)["shap"](model, images, torch.tensor([0, 1]))
    weights = model.dense.weight.detach().view(2, 3, 8, 8)
    torch.testing.assert_close(attribution, (weights * (images - background)).abs().sum(dim=1))


def test_average_maps_ignore_the_class_and_grad_cam_does_not(student, images):
    a, b = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    assert torch.equal(
        METHODS["feature_maps_mean"](student, images, a), METHODS["feature_maps_mean"](student, images, b)
    )
    maps = [METHODS["grad_cam"](student, images, t).numpy() for t in (a, b)]
    assert np.nanmin(spearman(*maps)) < 0.9


def test_random_maps_follow_the_image_and_not_the_batch(student, images, targets):
    maps = METHODS["random"](student, images, targets)
    torch.testing.assert_close(maps[2:3], METHODS["random"](student, images[2:3], targets[2:3]))
    assert not torch.allclose(maps[0], maps[1])
    assert not torch.allclose(maps, methods(seed=1)["random"](student, images, targets))


def test_the_untrained_control_does_not_depend_on_the_weights(student, images, targets):
    other = copy.deepcopy(student)
    for parameter in other.parameters():
        parameter.data.mul_(-2)
    torch.testing.assert_close(
        METHODS["untrained"](student, images, targets), METHODS["untrained"](other, images, targets)
    )
    assert not torch.allclose(
        METHODS["untrained"](student, images, targets), METHODS["feature_maps_mean"](student, images, targets)
    )


def test_the_data_set_mean_is_the_mean_map_of_the_training_images_for_every_image(student, images, targets):
    training = images.flip(3)
    mean_maps = methods(training=training)["data_set_mean"](student, images[:2], targets[:2])
    expected = METHODS["feature_maps_mean"](student, training, targets).mean(dim=0)
    torch.testing.assert_close(mean_maps, torch.stack([expected, expected]))
    assert not torch.allclose(METHODS["data_set_mean"](student, images, targets)[:2], mean_maps)


@pytest.mark.parametrize("cells", [1, 3])
def test_a_constant_map_stays_constant_when_it_is_brought_to_the_images_size(cells):
    """Else rounding is what ranks its pixels: the teacher's last block has a single cell where images are small."""
    coarse = torch.tensor([0.3, -1.7, 1e-3])[:, None, None].expand(3, cells, cells)
    fine = explain.upsampled(coarse, (48, 48))
    assert torch.equal(fine, coarse[:, :1, :1].expand(3, 48, 48))
    assert explain.rescaled(fine).abs().max() == 0


def test_methods_work_on_the_teacher_and_on_a_network_of_ones_own(teacher, images, targets):
    own = methods(shap_samples=2, layers=["first", "second"], depth=2)
    torch.manual_seed(0)
    for model, table in ((teacher, methods(shap_samples=2, depth=4)), (Chain().eval(), own)):
        for name in (
            "feature_maps_layer1",
            "feature_maps_mean",
            "feature_maps_weighted",
            "grad_cam",
            "shap",
            "untrained",
        ):
            maps = table[name](model, images[:2], targets[:2])
            assert maps.shape == (2, 64, 64) and torch.isfinite(maps).all(), name


def test_captums_gradient_shap_agrees_with_shap():
    """Two implementations of expected gradients, other draws: the same pixels matter."""
    from captum.attr import GradientShap
    from scipy.stats import spearmanr

    from kdnb.explain.methods import shap

    draw = torch.Generator().manual_seed(0)
    images, background = (torch.rand(count, 3, 16, 16, generator=draw) for count in (2, 4))
    model, targets = initialised(StudentCNN, 4, (4, 8), seed=0).eval(), torch.tensor([0, 2])
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    shaps = shap(model, images, targets, background=background, samples=400)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    captums = GradientShap(model).attribute(images, baselines=background, target=targets, n_samples=400)
    for own_map, captums_map in zip(shaps, captums.detach().abs().sum(dim=1), strict=True):
        assert spearmanr(own_map.flatten(), captums_map.flatten()).statistic > 0.8


# -- controls that hang on a draw -----------------------------------------------------------------------------------


def test_no_student_starts_where_a_control_does(student, images, targets):
    seeds = [explain.control_seed(run, draw) for run in (0, 1, 7) for draw in range(10)]
    assert len(set(seeds)) == 30 and min(seeds) >= 2**30 and explain.control_seed(2**31 - 1, 9) < 2**31
    start = explain.reinitialised(student, 0)
    own = METHODS["feature_maps_mean"](start, images, targets)
    drawn = [one["untrained"](student, images, targets) for one in explain.drawn_controls(0)]
    assert len(drawn) == 10 and not any(torch.allclose(one, own) for one in drawn)
    assert not torch.allclose(drawn[0], drawn[1])
    torch.testing.assert_close(drawn[0], METHODS["untrained"](student, images, targets))
