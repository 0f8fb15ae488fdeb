"""Networks of volumes: what they see, what they cost, and how they pool where slices lie far apart."""

import sys

import numpy as np
import pytest
import torch

from kdnb import models3d, training, views
from kdnb.cost import macs
from kdnb.errors import ModelError, ParameterError
from kdnb.explain import class_evidence
from kdnb.explain import volumes as volume_maps
from kdnb.models import initialised
from kdnb.models import student as plane_student
from kdnb.models3d import Grid, pool_sizes

GRID = Grid((10, 24, 24), (2.0, 1.0, 1.0))
WIDTHS = (4, 6, 8, 8, 12)


def student(shape: str, grid: Grid = GRID, seed: int = 0) -> models3d.VolumeStudent:
    return models3d.student(shape, 3, WIDTHS, grid, seed=seed)


@pytest.mark.parametrize(
    ("spacing", "shape", "pools"),
    [
        ((1, 1, 1), (32, 32, 32), [(2, 2, 2)] * 3),
        ((2, 1, 1), (10, 24, 24), [(1, 2, 2), (2, 2, 2)]),
        ((6, 1, 1), (16, 64, 64), [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((1, 1, 1), (5, 32, 32), [(1, 2, 2)] * 1),
    ],
)
def test_thick_slices_are_pooled_last(spacing, shape, pools):
    assert pool_sizes(spacing, shape, 4) == pools


def test_only_the_student_of_slices_is_blind_to_their_order():
    volumes = torch.rand(4, 10, 24, 24)
    other = volumes[:, torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        same = {
            name: torch.allclose(student(name).eval()(volumes), student(name).eval()(other), atol=1e-5)
            for name in models3d.SHAPES
        }
    assert same == {"volume": False, "volume_transparent": False, "slices": True}


def test_a_student_of_slices_is_the_mean_of_a_network_of_images():
    """With standardisation taken away,
    its logits are the mean over slices of what the plane student with its weights says."""
    volumes, ours = torch.rand(2, 5, 16, 16), student("slices", Grid((5, 16, 16), (9.0, 1.0, 1.0))).eval()
    plane = initialised(plane_student, "plain", 3, WIDTHS, seed=0).eval()
    weights = {name: value.squeeze(2) if value.ndim == 5 else value for name, value in ours.state_dict().items()}
    first = "features.0.0.weight"
    weights[first] = weights[first].expand(-1, 3, -1, -1) / 3  # three equal channels
    plane.load_state_dict(weights)
    ours.standardise, plane.standardise = torch.nn.Identity(), torch.nn.Identity()
    for block in plane.features[2:]:
        block[1] = torch.nn.Identity()  # the volume student pools twice only: 16 -> 8 -> 4
    with torch.no_grad():
        slices = volumes.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
        assert torch.allclose(ours(volumes), plane(slices).view(2, 5, 3).mean(dim=1), atol=1e-5)


@pytest.mark.parametrize("name", list(models3d.SHAPES))
def test_evidence_adds_up_to_the_logits_in_three_dimensions(name):
    network, volumes = student(name).eval(), torch.rand(3, 10, 24, 24)
    evidence = class_evidence(network, volumes)
    with torch.no_grad():
        assert (
            evidence.maps.ndim == 5
            and (evidence.maps.sum(dim=(2, 3, 4)) / evidence.maps[0, 0].numel() + evidence.bias - network(volumes))
            .abs()
            .max()
            < 1e-4
        )


def test_macs_are_counted_in_depth_by_hand():
    network = models3d.VolumeStudent(3, (4, 8), kernel_sizes=(3, 3), pooling=((1, 2, 2),))
    assert macs(network, 16, 10) == 27 * 4 * 10 * 256 + 27 * 4 * 8 * 10 * 64 + 8 * 3


def test_the_student_of_slices_has_filters_for_as_many_operations():
    wide = models3d.widths_at_equal_cost(WIDTHS, 3, GRID)
    costs = macs(models3d.student("slices", 3, wide, GRID, seed=0), 24, 10), macs(student("volume"), 24, 10)
    assert abs(costs[0] / costs[1] - 1) < 0.15 and sum(wide) > sum(WIDTHS)


def test_the_receptive_field_is_where_a_gradient_arrives():
    for name in models3d.SHAPES:
        grid = Grid((24, 96, 96), (2.0, 1.0, 1.0))
        network = (
            models3d.VolumeStudent(3, WIDTHS, pooling=((1, 2, 2), (2, 2, 2)), **models3d.SHAPES[name]).eval().double()
        )
        network.standardise = torch.nn.Identity()
        volume = torch.rand(1, *grid.shape, dtype=torch.float64, requires_grad=True)
        maps = network.features(volume[:, None])
        maps[0, :, maps.shape[2] // 2, maps.shape[3] // 2, maps.shape[4] // 2].sum().backward()
        seen = volume.grad[0] != 0
        reach = int(seen.any(2).any(1).sum()), int(seen.any(0).any(0).sum())
        field = models3d.receptive_field(network)
        assert all(extent <= most for extent, most in zip(reach, field, strict=True)), name
        # The largest of a pooling window decides.
        assert reach[0] >= 0.7 * field[0] and reach[1] >= 0.7 * field[1], name


def test_a_seed_decides_the_weights_and_leaves_torch_s_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    student_0, same, other = (student("volume", seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    first = [next(network.parameters()) for network in (student_0, same, other)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_the_training_loop_and_the_bank_take_volumes_as_images():
    """Bright volumes are of one class, dark below the middle of the other: nothing but slices can tell."""
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 60, (32, 6, 16, 16)).astype(np.uint8)
    labels = np.arange(32) % 2
    volumes[labels == 0, :3] += 150
    volumes[labels == 1, 3:] += 150
    examples = training.Examples(np.moveaxis(volumes, 1, -1), labels)
    network = models3d.student("volume", 2, (4, 4, 4, 4, 4), Grid((6, 16, 16), (2, 1, 1)), seed=0)
    recipe = training.Recipe(epochs=12, batch_size=8, views=2, learning_rate=1e-2)
    fitted = training.fit(
        network, examples, examples, recipe, lambda z, t, y: torch.nn.functional.cross_entropy(z, y), seed=0
    )
    assert fitted.history["val_accuracy"].iloc[-1] == 1
    assert views.teacher_bank(network, examples.images, 2, batch_size=8).shape == (2, 32, 2)


def test_other_shapes_teachers_and_kernels_are_refused():
    with pytest.raises(ParameterError, match="shape is 'flat'"):
        student("flat")
    with pytest.raises(ParameterError, match="volume_teacher is 'resnet'"):
        models3d.teacher("resnet", 3, WIDTHS, GRID, seed=0)
    with pytest.raises(ParameterError, match="5 odd numbers"):
        models3d.VolumeStudent(3, WIDTHS, kernel_sizes=(3, 3, 2, 1, 1))


def test_without_monai_the_teacher_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(ModelError, match=r"pip install 'kdnb\[volumes\]'"):
        models3d.teacher("densenet121", 3, WIDTHS, GRID, seed=0)


def test_monai_s_densenet_teaches_volumes_of_few_slices_and_can_be_explained():
    pytest.importorskip("monai", reason="an extra: kdnb[volumes]")
    teacher, volume = models3d.teacher("densenet121", 3, WIDTHS, GRID, seed=0).eval(), torch.rand(1, 10, 24, 24)
    with torch.no_grad():
        assert teacher(volume).shape == (1, 3)
    for method in (volume_maps.methods(4)["feature_maps_layer1"], volume_maps.grad_cam):
        attribution = method(teacher, volume, torch.tensor([1]))
        assert attribution.shape == volume.shape and torch.isfinite(attribution).all()
    assert volume_maps.average_mean(teacher, volume, None).std() > 0, (
        "the last block has one cell here, the first eight a side"
    )
    slices = models3d.teacher("densenet121", 3, WIDTHS, GRID, seed=0, shape="slices")
    assert isinstance(slices, models3d.VolumeStudent), "the teacher of slices has no depth"
