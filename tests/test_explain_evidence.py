"""Class evidence: the identity with the logits, on every network that has it, and one sentence for the others."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from captum.attr import LayerGradCam
from torch import nn

from kdnb import explain, models
from kdnb.errors import ModelError
from kdnb.explain import METHODS

NETWORKS = {
    "plain student": (lambda: models.StudentCNN(4, (8, 8, 16, 16, 16)), None),
    "DenseNet121, plain head": (lambda: models.densenet121_teacher(4), None),
    "ResNet18": (lambda: torchvision.models.resnet18(num_classes=4), None),
    "ResNet50": (lambda: torchvision.models.resnet50(num_classes=4), None),
    "MobileNetV2, by two names": (lambda: torchvision.models.mobilenet_v2(num_classes=4), ("features", "classifier.1")),
    "transparent student": (lambda: models.student("transparent", 4, (8, 8, 16, 16, 16)), None),
    "student of all layers": (lambda: models.student("layered", 4, (8, 8, 16, 16, 16)), None),
}


@pytest.fixture(scope="module")
def images():
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=64, mode="bilinear").contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def built(images):
    return {name: _lively(build, images) for name, (build, _) in NETWORKS.items()}


def _lively(build, images):
    """Batch-norm statistics of these images and a bias in the linear layer, so that the logits are far from 0."""
    model = models.initialised(build, seed=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(images)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.bias.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
        last.weight.mul_(20)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_bias_and_evidence_are_the_logit(built, images, name):
    model, layers = built[name], NETWORKS[name][1]
    evidence = explain.class_evidence(model, images, layers)
    assert evidence.maps.shape[:2] == (4, 4) and evidence.bias.tolist() == [0.5, -1.0, 2.0, 0.0]
    height, width = evidence.maps.shape[2:]
    with torch.no_grad():
        logits = model(images)
    assert logits.std() > 0.1, "a test of zeros says nothing"
    torch.testing.assert_close(
        evidence.maps.sum(dim=(2, 3)) / (height * width) + evidence.bias, logits, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(evidence.logits, logits, rtol=1e-4, atol=1e-4)


def test_it_costs_one_forward_pass_and_leaves_nothing_behind(built, images):
    model, calls = built["plain student"].train(), []
    hook = model.register_forward_hook(lambda module, inputs, output: calls.append(module.training))
    explain.class_evidence(model, images)
    hook.remove()
    assert calls == [False] and model.training and model.features[0].training
    assert not any(module._forward_hooks for module in model.modules()) and all(
        p.grad is None for p in model.parameters()
    )
    model.eval()


def test_grad_cam_is_its_positive_part_without_its_scale(built, images):
    model, targets = built["plain student"], torch.tensor([0, 1, 2, 3])
    maps = explain.class_evidence(model, images).maps
    heat = (
        LayerGradCam(model, model.features[-1]).attribute(images, target=targets, relu_attributions=True)[:, 0].detach()
    )
    chosen = maps[torch.arange(4), targets]
    torch.testing.assert_close(heat, chosen.relu() / chosen[0].numel(), rtol=1e-3, atol=1e-5)
    assert (chosen < 0).any(), "what Grad-CAM throws away"


@pytest.mark.parametrize(
    "model",
    [
        models.ReleasedStudent(4),
        models.densenet121_teacher(4, head="paper"),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)),
    ],
    ids=["dense head on 2 x 2 cells", "dense layers", "no maps"],
)
def test_other_networks_are_refused_in_one_sentence(model, images):
    with pytest.raises(
        ModelError, match=r"is not known to end in global average pooling and one linear layer.*use Grad-CAM\.$"
    ):
        explain.class_evidence(model.eval(), images)
    assert not explain.explains_itself(model, images)


class Doubled(models.StudentCNN):
    """A student whose answer is not what its linear layer says."""

    def forward(self, images):
        return 2 * super().forward(images)


class Weighted(models.StudentCNN):
    """A student that does not pool evenly."""

    def forward(self, images):
        return self.classifier(self.features(images).amax(dim=(2, 3)))


@pytest.mark.parametrize("build", [Doubled, Weighted])
def test_where_the_identity_does_not_hold_nothing_is_claimed(build, images):
    model = _lively(lambda: build(4, (4, 4, 4)), images)
    with pytest.raises(ModelError, match="is not known to end"):
        explain.class_evidence(model, images)
    with pytest.raises(ModelError, match="is not known to end"):
        explain.class_evidence(model, images, ("features", "nowhere"))


def test_the_methods_are_the_target_and_the_contrast(built, images):
    model = built["transparent student"]
    evidence = explain.class_evidence(model, images)
    first, second = evidence.logits.topk(2, dim=1).indices.T
    rows = torch.arange(4)
    of_target = METHODS["class_evidence"](model, images, second)
    torch.testing.assert_close(of_target, explain.upsampled(evidence.maps[rows, second], (64, 64)))
    against = METHODS["evidence_contrast"](model, images, first)
    torch.testing.assert_close(
        against, explain.upsampled(evidence.maps[rows, first] - evidence.maps[rows, second], (64, 64))
    )
    # what was second is compared with what was first
    torch.testing.assert_close(METHODS["evidence_contrast"](model, images, second), -against, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [64, 56])  # 56: a grid of 28 does not divide into one of 3
def test_layers_and_places_add_up(built, images, size):
    model, some = built["student of all layers"], images[..., :size, :size]
    by_layer, bias = explain.layer_evidence(model, some)
    assert list(by_layer) == [f"features.{k}" for k in range(5)]
    total = bias + sum(maps.mean(dim=(2, 3)) for maps in by_layer.values())
    with torch.no_grad():
        torch.testing.assert_close(total, model(some), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(explain.class_evidence(model, some).logits, model(some), rtol=1e-4, atol=1e-4)


def test_a_network_is_offered_the_methods_that_it_has(built, images):
    named = {"class_evidence", "evidence_contrast", "feature_maps_unpooled", "grad_cam"}
    chosen = {name: METHODS[name] for name in named}
    assert set(explain.available(chosen, built["plain student"], images)) == named
    assert set(explain.available(chosen, built["ResNet18"], images)) == named - {"feature_maps_unpooled"}
    assert set(explain.available(chosen, models.ReleasedStudent(4), images)) == {"feature_maps_unpooled", "grad_cam"}
