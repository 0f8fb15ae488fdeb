"""A student that is right for the wrong reason, to see whether explanations give it away."""

import torch.nn.functional as F
from torch import nn

from kdnb.datasets import ImageSet, load, phantom
from kdnb.evaluation import predict
from kdnb.models import StudentCNN, initialised
from kdnb.settings import Budget
from kdnb.training import Examples, Recipe, fit
from kdnb.views import view_moves

IMAGES = 1000  # enough for the student to find the marker, few enough for a minute on two cores
EPOCHS = 4


def shortcut_student(budget: Budget, seed: int) -> tuple[nn.Module, ImageSet, float]:
    """Train a student that can only have learned the marker which follows the class nine times out of ten.

    It learns by plain cross-entropy. Its training and validation images lack the lesion that decides the class, so that
    the marker is all there is to learn; the test images have both.

    Args:
        budget: image size, images, epochs and batch of the run; :data:`IMAGES` and :data:`EPOCHS` are the most.
        seed: of the student's start and of the order of the images.

    Returns:
        the student; the data, ``phantom:shortcut``; and its accuracy on test images minus that on the very same images
        without the marker: how much it relies on it.
    """
    count = min(budget.phantom_images, IMAGES)
    marked = load("phantom:shortcut", budget.image_size, phantom_images=count)
    clean = load("phantom:certain", budget.image_size, phantom_images=count)
    without_lesion = phantom.generate(count, budget.image_size, "shortcut", lesions=False).images
    train, validation, test = (marked.index(split) for split in ("train", "val", "test"))
    # A view mirrors half of the images, which would move the marker into another class's corner: undone beforehand.
    mirrored = train[view_moves(len(train), view=0, side=budget.image_size)[:, 0].numpy() == 1]
    without_lesion[mirrored] = without_lesion[mirrored, :, ::-1]
    student = initialised(StudentCNN, len(marked.classes), seed=seed)
    fit(
        student,
        Examples(without_lesion[train], marked.labels[train]),
        Examples(without_lesion[validation], marked.labels[validation]),
        Recipe(min(EPOCHS, budget.student_epochs), budget.batch_size, views=1),
        lambda logits, _, labels: F.cross_entropy(logits, labels),
        seed=seed,
        what="Training on the shortcut",
    )
    hits = [predict(student, source.images[test]).argmax(axis=1) == source.labels[test] for source in (marked, clean)]
    return student, marked, float(hits[0].mean() - hits[1].mean())
