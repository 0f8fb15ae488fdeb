"""The phantom: the same everywhere, evidence confined to the masks, nothing to learn without it."""

import numpy as np
import pytest
import torch

from kdnb.datasets import audit, load, phantom, to_tensor
from kdnb.datasets.imageset import ImageSet

SIZE = 64


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return load("phantom:certain", SIZE)


def test_shapes_types_and_balance(data):
    assert data.images.shape == (2000, SIZE, SIZE, 3) and data.images.dtype == np.uint8
    assert data.labels.dtype == np.int64 and data.masks.shape == (2000, SIZE, SIZE) and data.masks.dtype == bool
    assert len(set(data.ids)) == 2000
    for split, count in (("train", 350), ("val", 50), ("test", 100)):
        assert np.bincount(data.labels[data.index(split)]).tolist() == [count] * 4


def test_subjects_stay_on_one_side(data):
    sides = {group: set(data.split[data.groups == group]) for group in set(data.groups)}
    assert len(sides) == 250 and all(len(split) == 1 for split in sides.values())


def test_same_images_at_every_call_and_prefix_of_a_larger_set():
    small, large = phantom.generate(70, 32), phantom.generate(200, 32)
    assert (small.images == large.images[:70]).all() and (small.labels == large.labels[:70]).all()
    assert (small.images == phantom.generate(70, 32).images).all()
    assert (small.images != phantom.generate(70, 32, seed=1).images).any()


@pytest.mark.parametrize("size", [32, 48, 96, 224])
@pytest.mark.parametrize("variant", ["", "shortcut", "fundus", "volume"])
def test_every_size_and_variant(size, variant):
    made = phantom.generate(8, size, variant)
    assert made.images.shape == (8, size, size, 3)
    assert made.images.std() > 10
    assert (made.masks.any(axis=(1, 2)) == (made.labels > 0)).all()


@pytest.mark.parametrize("variant", ["", "shortcut", "fundus", "volume"])
def test_evidence_is_confined_to_the_mask(variant):
    with_lesions, bare = (phantom.generate(64, SIZE, variant, lesions=shown) for shown in (True, False))
    differs = (with_lesions.images != bare.images).any(axis=3)
    assert not (differs & ~with_lesions.masks).any()
    assert (differs.any(axis=(1, 2)) == (with_lesions.labels > 0)).all()


def test_lesions_differ_more_with_contrast():
    faint, strong = (phantom.generate(64, SIZE, snr=snr).images.astype(int) for snr in (1.0, 8.0))
    bare = phantom.generate(64, SIZE, snr=1.0, lesions=False).images.astype(int)
    assert np.abs(strong - bare).mean() > 2 * np.abs(faint - bare).mean()


def test_one_image_in_ten_has_the_marker_in_another_class_corner():
    made = phantom.generate(2000, 32, "shortcut")
    corners = np.stack(
        [
            made.shortcut_masks[:, rows, columns].any(axis=(1, 2))
            for rows in (slice(0, 16), slice(16, 32))
            for columns in (slice(0, 16), slice(16, 32))
        ],
        axis=1,
    )
    assert (corners.sum(axis=1) == 1).all()
    assert abs((corners.argmax(axis=1) == made.labels).mean() - phantom.SHORTCUT_STRENGTH) < 0.02


def test_shortcut_masks_travel_with_the_images():
    data = load("phantom:shortcut", 32, max_images=200)
    assert data.notes["shortcut_masks"].shape == data.images.shape[:3]
    assert (data.images[data.notes["shortcut_masks"]] == 230).all()  # 0.9 of 255: exactly where the mask says


def test_middle_slice_of_a_volume_is_the_image():
    made = phantom.generate(80, 32, "volume")
    positions = np.array([3, 70, 9])
    volumes, masks = phantom.volumes(positions, 32)
    assert volumes.shape == masks.shape == (3, phantom.DEPTH, 32, 32)
    middle = phantom.DEPTH // 2
    assert (volumes[:, middle] == made.images[positions, :, :, 0]).all() and (
        masks[:, middle] == made.masks[positions]
    ).all()
    areas = masks.sum(axis=(2, 3))
    assert (areas[:, middle] >= areas[:, 0]).all() and (areas[:, [0, -1]] == 0).all(), "a ball is widest in its middle"


def test_without_its_lesion_an_image_says_nothing(data):
    bare = phantom.generate(2000, SIZE, lesions=False).images
    _, lo, hi = audit.pixel_probe(bare, data)
    assert lo <= 0.25 <= hi


def test_a_planted_shortcut_is_learned_and_noticed():
    planted = load("phantom:shortcut", SIZE)
    accuracy, lo, _ = audit.pixel_probe(phantom.generate(2000, SIZE, "shortcut", lesions=False).images, planted)
    assert lo > 0.5 and accuracy > 0.8


def test_pixels_alone_do_not_solve_it(data):
    accuracy, lo, _ = audit.pixel_probe(data.images, data)
    assert lo > 0.25 and accuracy < 0.7, "a linear classifier must see something, and must not be enough"


def test_no_copies_across_subjects(data):
    twins = audit.twins(data)
    assert len(twins.copies(audit.copies_from(data))) == 0


def test_to_tensor_keeps_values_and_layout(data):
    tensor = to_tensor(data.images[:3])
    assert tensor.shape == (3, 3, SIZE, SIZE) and tensor.is_contiguous(memory_format=torch.channels_last)
    assert (tensor.mul(255).round().byte().permute(0, 2, 3, 1).numpy() == data.images[:3]).all()


@pytest.mark.slow
def test_a_convolutional_network_learns_lesions_and_nothing_else(data):
    import torch
    from torch import nn

    from kdnb.models import Standardise, StudentCNN

    def accuracy(images: np.ndarray) -> tuple[int, int]:
        torch.manual_seed(0)
        model = StudentCNN(4, widths=(16, 32, 64, 64, 64))
        assert any(isinstance(part, Standardise) for part in model.modules())
        pixels, labels = to_tensor(images), torch.from_numpy(data.labels)
        train, test = torch.from_numpy(data.index("train")), torch.from_numpy(data.index("test"))
        optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
        for _ in range(8):
            for batch in train[torch.randperm(len(train))].split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(pixels[batch]), labels[batch]).backward()
                optimiser.step()
        model.eval()
        with torch.no_grad():
            return int((model(pixels[test]).argmax(1) == labels[test]).sum()), len(test)

    from statsmodels.stats.proportion import proportion_confint

    hits, count = accuracy(phantom.generate(2000, SIZE, lesions=False).images)
    lo, hi = proportion_confint(hits, count, method="wilson")
    assert lo <= 0.25 <= hi
    hits, count = accuracy(data.images)
    assert hits / count > 0.9
