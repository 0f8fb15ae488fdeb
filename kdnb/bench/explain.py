"""What explanations cost: our average feature maps against a forward pass, captum's way, SHAP; SHAP on both models."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdnb.bench import Row, Side
from kdnb.explain import average_feature_maps, class_evidence, methods
from kdnb.models import StudentCNN, densenet121_teacher, feature_layers, initialised

IMAGE_SIZE = 64
CLASSES = 4
BATCH = 32
BACKGROUND = 16
SHAP_IMAGES = 4  # SHAP takes seconds for them


def _images(count: int) -> Tensor:
    pixels = torch.rand(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    return pixels.contiguous(memory_format=torch.channels_last)


def _student() -> nn.Module:
    return initialised(StudentCNN, CLASSES, seed=0).eval()


def _maps_over_forward() -> tuple[Side, Side]:
    student, images = _student(), _images(BATCH)

    def forward() -> None:
        with torch.inference_mode():
            student(images)

    return _many(lambda: average_feature_maps(student, images)), _many(forward)


def _evidence_over_forward() -> tuple[Side, Side]:
    student, images = _student(), _images(BATCH)

    def forward() -> None:
        with torch.inference_mode():
            student(images)

    return _many(lambda: class_evidence(student, images)), _many(forward)


def _captum_over_maps() -> tuple[Side, Side]:
    from captum.attr import LayerActivation

    student, images = _student(), _images(BATCH)

    def captum() -> None:
        for layer in feature_layers(student).values():
            LayerActivation(student, layer).attribute(images).mean(dim=1)

    return _many(captum), _many(lambda: average_feature_maps(student, images))


def _many(call: Callable[[], object], times: int = 5) -> Side:
    """Both sides take milliseconds: several calls in a row, so that one interruption does not decide a ratio."""

    def side() -> None:
        for _ in range(times):
            call()

    return side


def _shap(model: nn.Module, images: Tensor) -> Side:
    method = methods(_images(BACKGROUND))["shap"]
    targets = torch.zeros(len(images), dtype=torch.int64)

    def side() -> None:
        method(model, images, targets)

    return side


def _shap_over_maps() -> tuple[Side, Side]:
    student, images = _student(), _images(SHAP_IMAGES)
    return _shap(student, images), _many(lambda: average_feature_maps(student, images), times=1)


def _shap_teacher_over_student() -> tuple[Side, Side]:
    images = _images(1)
    teacher = initialised(densenet121_teacher, CLASSES, seed=0).eval()
    return _shap(teacher, images), _shap(_student(), images)


ROWS = {
    "maps_over_forward": Row(
        "all five average feature maps of a batch",
        "one plain forward pass of the student",
        1.05,
        "<=",
        _maps_over_forward,
        repeats=31,
    ),
    "evidence_over_forward": Row(
        "class evidence of a batch, all classes",
        "one plain forward pass of the student",
        1.05,
        "<=",
        _evidence_over_forward,
        repeats=31,
    ),
    "captum_layers_over_maps": Row(
        "one captum LayerActivation call a layer", "the same maps, ours", 4, ">=", _captum_over_maps, repeats=15
    ),
    "shap_over_maps": Row(
        "SHAP on the student (GradientExplainer, 200 samples)",
        "average maps of the same images",
        200,
        ">=",
        _shap_over_maps,
        repeats=5,
    ),
    "shap_teacher_over_student": Row(
        "SHAP on the teacher", "SHAP on the student", 3, ">=", _shap_teacher_over_student, repeats=5
    ),
}
