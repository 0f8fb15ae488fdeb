"""A teacher's explanations: what they are, how they are kept, and whether students learn them."""

import numpy as np
import pytest
import torch
from torch import nn

from kdnb import losses, models, networks, specs, training
from kdnb.errors import ModelError, ParameterError
from kdnb.explain import average_feature_maps, class_evidence
from kdnb.explain.taught import (
    LESSONS,
    MOST_CELLS,
    Blocks,
    Layout,
    blocks_of,
    explaining,
    explanation_bank,
    lesson_loss,
    teacher_explanations,
)

CLASSES = 3


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return models.initialised(models.densenet121_teacher, CLASSES, seed=0).eval()


def pictures(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def test_where_the_last_block_has_several_cells_its_evidence_is_the_exact_one(teacher):
    images = pictures(2, 64)
    taught = teacher_explanations(teacher, images).evidence
    exact = class_evidence(teacher, images).maps
    assert taught.shape == exact.shape == (2, CLASSES, 2, 2)
    torch.testing.assert_close(taught * exact[0, 0].numel(), exact, rtol=1e-3, atol=1e-5)


def test_where_the_last_block_is_one_cell_the_deepest_finer_one_speaks(teacher):
    explained = teacher_explanations(teacher, pictures(2, 48))
    assert [tuple(a.shape[1:]) for a in explained.attention] == [(12, 12), (6, 6), (3, 3)]
    assert explained.evidence.shape == (2, CLASSES, 3, 3)
    assert explained.evidence.flatten(2).std(dim=2).min() > 0


def test_gradient_times_activation_adds_up_where_what_follows_is_linear():
    class Linear(nn.Module):
        feature_layers = ("maps",)

        def __init__(self):
            super().__init__()
            self.maps, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, CLASSES)

        def forward(self, images):
            return self.head(self.maps(images).mean(dim=(2, 3)))

    network, images = Linear().eval(), pictures(2, 8)
    explained = teacher_explanations(network, images)
    logits = network(images).detach()
    torch.testing.assert_close(
        explained.evidence.sum(dim=(2, 3)) + network.head.bias.detach(), logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t"])
def test_other_teachers_explain_themselves_too(name):
    network = networks.build(networks.spec("teacher", name), CLASSES, 64)
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.out_features == CLASSES:
            nn.init.normal_(module.weight)  # torchvision starts a transformer's head at zero
    explained = teacher_explanations(network, pictures(1, 64))
    assert explained.evidence.shape[:2] == (1, CLASSES) and explained.evidence.shape[-1] > 1
    assert explained.evidence.isfinite().all() and explained.evidence.abs().max() > 0


def test_the_teacher_is_left_as_found(teacher):
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher_explanations(teacher, pictures(2, 48))
    assert teacher.training and all(weight.requires_grad and weight.grad is None for weight in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module._forward_hooks for module in teacher.modules())
    teacher.eval()


def test_a_network_of_single_cells_is_refused_in_one_sentence():
    class Single(nn.Module):
        feature_layers = ("maps",)

        def __init__(self):
            super().__init__()
            self.maps = nn.Conv2d(3, CLASSES, 8)

        def forward(self, images):
            return self.maps(images).flatten(1)

    with pytest.raises(ModelError, match="no block of Single has more than one cell at 8 pixels: use larger images"):
        teacher_explanations(Single(), pictures(1, 8))


def test_a_bank_keeps_directions_by_view_and_image(teacher):
    images = (pictures(3, 48).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    bank, layout = explanation_bank(teacher, images, views=2, batch_size=2)
    assert bank.dtype == np.float16 and bank.shape == (2, 3, 12 * 12 + 6 * 6 + 3 * 3 + CLASSES * 9)
    maps = layout.split(torch.from_numpy(bank[1]).float())
    assert [tuple(a.shape) for a in maps.attention] == [(3, 12, 12), (3, 6, 6), (3, 3, 3)]
    torch.testing.assert_close(maps.evidence.flatten(1).norm(dim=1), torch.ones(3), rtol=2e-3, atol=0)
    assert not np.array_equal(bank[0], bank[1]), "views differ"


def test_fine_maps_are_kept_at_so_many_cells_at_most(teacher):
    explained = teacher_explanations(teacher, pictures(1, 128))
    assert max(a.shape[-1] for a in explained.attention) == MOST_CELLS


class Quiet(nn.Module):
    """Two blocks, the last of which dark images do not excite;
    it adds filters to the first one's, which every image excites."""

    feature_layers = ("first", "last")

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)
        nn.init.constant_(self.last[0].weight, 1.0)
        nn.init.constant_(self.last[0].bias, -1.0)

    def forward(self, images):
        return self.head(torch.cat([self.first(images), self.last(images)], dim=1).mean(dim=(2, 3)))


def test_one_silent_image_chooses_no_other_block_for_its_batch():
    """The first image of each later batch is black: alone it would have chosen the first block,
    with another meaning in the same row."""
    torch.manual_seed(0)
    network, images = Quiet().eval(), pictures(4, 8)
    images[2] = 0
    assert blocks_of(network, images[2:3]) == Blocks(("layer1", "layer2"), "layer1")
    assert (
        blocks_of(network, images[[2, 3]]) == blocks_of(network, images[:1]) == Blocks(("layer1", "layer2"), "layer2")
    )
    pixels = (images.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    one_by_one, layout = explanation_bank(network, pixels, views=1, batch_size=1)
    together, same = explanation_bank(network, pixels, views=1, batch_size=4)
    assert layout == same
    np.testing.assert_allclose(one_by_one.astype(np.float32), together.astype(np.float32), atol=2e-3)
    assert not layout.split(torch.from_numpy(together[0])).evidence[2].any(), "a silent image has no evidence there"


LAYOUT = Layout(((12, 12), (6, 6), (3, 3)), (CLASSES, 3, 3))


def test_a_student_in_training_shows_its_average_maps_and_its_evidence():
    student, images = models.StudentCNN(CLASSES, widths=(4, 4, 4, 4, 4)).eval(), pictures(2, 48)
    with explaining(student, LAYOUT) as shows:
        student(images)
        shown = shows()
    maps = average_feature_maps(student, images)
    # 12, 6 and 3 cells: layers 2, 3 and 5, the deeper of the two of 3.
    for own_maps, depth in zip(shown.attention, (1, 2, 4), strict=True):
        torch.testing.assert_close(own_maps, maps[depth])
    torch.testing.assert_close(shown.evidence, class_evidence(student, images).maps)
    assert shown.evidence.requires_grad
    assert not any(module._forward_hooks for module in student.modules())


def test_a_student_whose_classifier_reads_all_layers_is_refused():
    with (
        pytest.raises(ModelError, match="LayeredStudent does not pool its last maps alone"),
        explaining(models.student("layered", 2), LAYOUT),
    ):
        pass


def test_a_misspelt_lesson_is_no_other_one():
    for ask in (
        lambda: specs.spec("kd_t2", 0, 0.4, 4.0, lesson="atention", weight=1.0),
        lambda: lesson_loss("atention", None, None, None),
    ):
        with pytest.raises(ParameterError, match="lesson is 'atention', but it must be one of: attention, class_att"):
            ask()
    assert specs.spec("kd_t2", 0, 0.4, 4.0, lesson="").lesson == ""


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_student_learns_the_lesson(lesson):
    """With the lesson alone to learn, its maps come nearer to the teacher's on the very images:
    far below those of its start."""
    teacher = models.initialised(models.densenet121_teacher, CLASSES, seed=0).eval()
    images = (pictures(32, 48).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    bank, layout = explanation_bank(teacher, images, views=1)
    answers = torch.arange(32) % CLASSES
    student = models.initialised(models.StudentCNN, CLASSES, (8, 8, 8, 8, 8), seed=1)
    seen = []
    with explaining(student, layout) as shows:

        def loss(logits, said, targets):
            value = lesson_loss(lesson, shows(), layout.split(said), targets)
            seen.append(value.item())
            return value

        examples = training.Examples(images, answers.numpy())
        recipe = training.Recipe(epochs=8, batch_size=16, views=1, learning_rate=1e-2)
        training.fit(student, examples, examples, recipe, loss, seed=0, bank=bank.astype(np.float32))
    assert np.mean(seen[-2:]) < 0.8 * np.mean(seen[:2])


def test_the_lesson_of_one_class_is_that_of_the_teachers_answer():
    generator = torch.Generator().manual_seed(0)
    students_maps, teachers_maps = (torch.randn(2, CLASSES, 3, 3, generator=generator) for _ in range(2))
    from kdnb.explain.taught import Explanations

    answers = torch.tensor([2, 0])
    loss = lesson_loss("explanation", Explanations([], students_maps), Explanations([], teachers_maps), answers)
    chosen = [torch.stack([maps[0, 2], maps[1, 0]]) for maps in (students_maps, teachers_maps)]
    torch.testing.assert_close(loss, losses.explanation_similarity_loss(*chosen))
