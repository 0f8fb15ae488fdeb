"""Explain an image of one's own with a finished run, and say so where the image is unlike what the model was trained on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor, nn

from kdnb.datasets import ImageSet, load_for, to_tensor
from kdnb.datasets.reading import read
from kdnb.errors import DataError
from kdnb.explain.maps import as_found, collecting
from kdnb.explain.methods import explain_all, methods
from kdnb.models import StudentCNN, feature_layers
from kdnb.runs import Run
from kdnb.sources import from_home

UNLIKE_LEVEL = 99.0  # per cent of the validation images are nearer to the training images than the limit
SHOWN = (
    "feature_maps_layer1",
    "feature_maps_layer2",
    "feature_maps_layer3",
    "feature_maps_layer4",
    "feature_maps_layer5",
    "grad_cam",
    "shap",
)


@dataclass(frozen=True)
class OwnImage:
    """One explained image.

    Attributes:
        image: ``(H, W, 3)`` uint8, as the model sees it.
        probabilities: a row per class, most likely first: class, probability (calibrated on validation).
        maps: method -> ``(H, W)`` for the predicted class.
        distance: to the nearest training image, in features; limit: the distance that 99% of the validation images stay below.
    """

    image: np.ndarray
    probabilities: pd.DataFrame
    maps: dict[str, np.ndarray]
    distance: float
    limit: float

    @property
    def unlike_training(self) -> bool:
        """Whether the image is farther from the training images than 99% of the validation images are."""
        return self.distance > self.limit

    def __str__(self) -> str:
        first = self.probabilities.iloc[0]
        verdict = f"{first['class']} ({first['probability']:.0%} after calibration)"
        if self.unlike_training:
            verdict += f"; WARNING: unlike the training images (distance {self.distance:.2f}, limit {self.limit:.2f}), do not rely on this"
        return verdict


def explain_image(run: Run, path: str | Path, model_name: str = "student_kd") -> OwnImage:
    """Predict and explain the image at ``path`` with a student of a finished run.

    The image is decoded and resized as the data set's own images are. The probabilities are softened by the temperature that
    fits the validation images best; SHAP's background is drawn from the training images.

    Raises:
        DataError: the file is no image that can be read. ArtefactError: the run has not trained that student.
    """
    data = load_for(run.settings)
    model = run.load_model(model_name, StudentCNN(len(data.classes)))
    try:
        image = read(from_home(path), run.budget.image_size).square
    except DataError as error:
        raise DataError(f"image {path} cannot be used ({error}): give the path of a PNG, JPEG, TIFF or DICOM file.") from error
    return explain_arrays(model, data, image[None], background=run.budget.shap_background, samples=run.budget.shap_samples)[0]


def explain_arrays(model: nn.Module, data: ImageSet, images: np.ndarray, *, background: int = 16, samples: int = 50) -> list[OwnImage]:
    """:func:`explain_image` for pixels ``(N, H, W, 3)`` uint8 that are already at the size of ``data``."""
    train, validation = data.index("train"), data.index("val")
    _, seen = logits_and_features(model, data.images[train])
    logits, features = logits_and_features(model, data.images[validation])
    limit = np.percentile(nearest_distance(features, seen), UNLIKE_LEVEL)
    temperature = calibration_temperature(logits, data.labels[validation])
    logits, features = logits_and_features(model, images)
    distances = nearest_distance(features, seen)
    step = max(1, len(train) // background)
    device = next(model.parameters()).device
    available = methods(to_tensor(data.images[train[::step][:background]]).to(device), shap_samples=samples)
    targets = torch.from_numpy(logits.argmax(axis=1)).to(device)
    maps = explain_all({name: available[name] for name in SHOWN}, model, to_tensor(images).to(device), targets)
    answers = []
    for k, image in enumerate(images):
        table = pd.DataFrame({"class": data.classes, "probability": np.exp(log_softmax(logits[k] / temperature))})
        table = table.sort_values("probability", ascending=False, ignore_index=True)
        own_maps = {name: values[k].cpu().numpy() for name, values in maps.items()}
        answers.append(OwnImage(image, table, own_maps, float(distances[k]), float(limit)))
    return answers


def logits_and_features(model: nn.Module, images: np.ndarray, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``(N, C)`` and the means of all filters of all feature layers ``(N, F)``, from one pass over uint8 images."""
    layers = feature_layers(model)
    device = next(model.parameters()).device
    logits, features = [], []

    def pooled(maps: Tensor) -> Tensor:
        # Every layer weighs the same, however many filters it has.
        return maps.mean(dim=(2, 3)) / maps.shape[1] ** 0.5

    with as_found(model), torch.no_grad(), collecting(layers, pooled) as means:
        for start in range(0, len(images), batch_size):
            logits.append(model(to_tensor(images[start : start + batch_size]).to(device)).cpu().numpy())
            features.append(torch.cat([means[name] for name in layers], dim=1).cpu().numpy())
    return np.concatenate(logits), np.concatenate(features)


def calibration_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes the labels most likely: ``argmin_T -mean log softmax(z / T)_y`` (Guo et al. 2017)."""

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def nearest_distance(features: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Distance of each row of ``features`` to the nearest row of ``seen``, in units of each feature's spread over ``seen`` (``(N,)``).

    A nearest-neighbour test of what is out of the training distribution (Sun et al. 2022), on features of every layer.
    """
    middle, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-3 * seen.std() + 1e-12
    a, b = (torch.from_numpy(((x - middle) / spread).astype(np.float32)) for x in (features, seen))
    return torch.cdist(a, b).amin(dim=1).numpy() / features.shape[1] ** 0.5
