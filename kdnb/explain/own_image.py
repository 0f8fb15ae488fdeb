"""Explain an image of one's own with a finished run, and say so where it is unlike what the model was trained on."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import t as t_distribution
from torch import Tensor, nn

from kdnb import students
from kdnb.datasets import ImageSet, load_for, to_tensor
from kdnb.datasets.reading import read
from kdnb.device import device_of
from kdnb.errors import DataError, DataNotFoundError
from kdnb.evaluation import FEW, expected_calibration_error
from kdnb.explain.maps import collecting, evaluation_mode
from kdnb.explain.methods import explain_all, methods
from kdnb.explain.taught import evidence_at
from kdnb.models import feature_layers
from kdnb.networks import logits_of
from kdnb.runs import Run
from kdnb.sources import from_home

UNLIKE_LEVEL = 99.0  # per cent of images like the validation images are nearer to the training images than the limit
COPY = 1e-2  # distance below which an image is one of the training images: in float32 rounding alone makes .0003 of it
FOLDS = 10


@dataclass(frozen=True)
class OwnImage:
    """One explained image.

    Attributes:
        image: ``(H, W, 3)`` uint8, as the model sees it.
        probabilities: a row per class, most likely first: class, probability (calibrated on validation), logit, and of
            the logit what speaks for the class (``evidence_for``), against it (``evidence_against``, below 0), and what
            no place says (``rest``).
        maps: method -> ``(H, W)`` for the predicted class.
        evidence: class -> ``(h, w)`` (:func:`evidence_maps`).
        distance: to the nearest training image, in features (:func:`nearest_distance`).
        limit: the distance that 99% of images like those of validation stay below, as far as so many of these can tell
            (:func:`farthest_likely`).
        calibration: temperature, validation_images, and ece, the calibration error on validation images in ten folds.
        without: where the images that the model learned from are not here, why, in a sentence: then ``distance``,
            ``limit`` and ``calibration`` are ``None``, probabilities are as the network says them, and SHAP starts from
            the image itself, blurred.
        origin: of a recorded model, where it comes from (:func:`kdnb.students.origin`).
    """

    image: np.ndarray
    probabilities: pd.DataFrame
    maps: dict[str, np.ndarray]
    evidence: dict[str, np.ndarray]
    distance: float | None
    limit: float | None
    calibration: dict[str, float] | None
    without: str = ""
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def unlike_training(self) -> bool | None:
        """Whether it is farther from the training images than 99% of images like validation's; ``None``: unknown."""
        return None if self.distance is None else self.distance > cast("float", self.limit)

    def __str__(self) -> str:
        first = self.probabilities.iloc[0]
        if self.calibration is None:
            unknown = "nobody can say how sure that is, nor whether the image is unlike the training images"
            return f"{first['class']} ({first['probability']:.0%}, not calibrated); {unknown}, because {self.without}"
        count = self.calibration["validation_images"]
        by = f" by {count} images only" if count < FEW else ""
        verdict = f"{first['class']} ({first['probability']:.0%} after calibration{by})"
        if self.unlike_training:
            measured = (
                f"distance {self.distance:.2f}, limit {self.limit:.2f} "
                f"by {self.calibration['validation_images']} images"
            )
            verdict += f"; WARNING: unlike the training images ({measured}), do not rely on this"
        return verdict


def explain_image(
    run: Run | str | Path,
    image: str | Path | np.ndarray | Image.Image,
    model_name: str = "student_kd",
    data_dir: str | Path = "",
) -> OwnImage:
    """Predict and explain one image with a student of a finished run, or with a recorded one.

    The image is decoded and resized as the data set's own images are. The probabilities are those of the temperature
    that fits the validation images best; SHAP's background is drawn from the training images. A recorded student
    (:func:`kdnb.students.own_or_recorded`) does without these images where they are not here, and the answer says what
    it therefore cannot.

    Args:
        run: a run, its folder, or the name of a recorded run; empty: the default run.
        image: a path, ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` uint8, or a Pillow image.
        model_name: the name that the student is stored under.
        data_dir: where the images lie that the student learned from, if not where the run found them.

    Returns:
        what the student says of the image, and why.

    Raises:
        DataError: no image that can be read.
        ArtefactError: there is no run, or it has neither trained that student nor recorded it.
    """
    run = run if isinstance(run, Run) else students.opened(run, "explain_image", data_dir)
    pixels, budget = square_of(image, run.budget.image_size), run.budget  # first: a wrong path is said at once
    data, record, without = _learned_from(run, model_name)
    (model,) = students.own_or_recorded(run, data, model_name)
    classes = data.classes if data is not None else students.classes(cast("Path", record))
    (answer,) = explain_arrays(
        model, data, pixels[None], classes, background=budget.shap_background, samples=budget.shap_samples
    )
    return replace(answer, without=without, origin=students.origin(record, model_name) if record else {})


def _learned_from(run: Run, model_name: str) -> tuple[ImageSet | None, Path | None, str]:
    """The images that a student learned from, and the record that it is from where the run has not trained it.

    Args:
        run: the run that is asked for the student.
        model_name: the name that the student is stored under.

    Returns:
        the images; the record's folder (:func:`kdnb.students.stand_in`); and why there are no images. Only of a
        recorded student are the images ``None``: where they are not here, or are others.

    Raises:
        DataNotFoundError: the images are not here, and no recorded student does without them.
    """
    try:
        data = load_for(run.settings)
    except DataNotFoundError as error:
        record = students.stand_in(run, None, [model_name])
        if record is None:
            raise
        return None, record, str(error)
    if (record := students.stand_in(run, data, [model_name])) is not None:
        return data, record, ""
    if (record := students.stand_in(run, None, [model_name])) is not None:
        where = f"the images of {run.settings.dataset} in {run.settings.data_dir}"
        return None, record, f"{where} are others than those that it learned from."
    return data, None, ""


def square_of(image: str | Path | np.ndarray | Image.Image, image_size: int) -> np.ndarray:
    """An image as the networks see it.

    Args:
        image: a path, ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` uint8, or a Pillow image.
        image_size: pixels of a side of the square.

    Returns:
        ``(image_size, image_size, 3)`` uint8.

    Raises:
        DataError: it cannot be read, or an array of another form.
    """
    if isinstance(image, np.ndarray):
        layers = image[..., None] if image.ndim == 2 else image
        if layers.dtype != np.uint8 or layers.ndim != 3 or layers.shape[2] not in (1, 3) or 0 in layers.shape:
            raise DataError(
                f"the image is {image.dtype} of shape {image.shape}, "
                "but it must be uint8 of (H, W), (H, W, 1) or (H, W, 3)."
            )
        image = Image.fromarray(np.repeat(layers, 3 // layers.shape[2], axis=2))
    if isinstance(image, Image.Image):
        # Through the one reader, whose rules are the data sets'.
        with tempfile.TemporaryDirectory(prefix="kdnb-") as folder:
            image.save(Path(folder) / "image.png")
            return read(Path(folder) / "image.png", image_size).square
    try:
        return read(from_home(image), image_size).square
    except DataError as error:
        reason = error if from_home(image).exists() else "there is no such file"
        raise DataError(
            f"image {image} cannot be used ({reason}): give the path of a PNG, JPEG, TIFF, DICOM or NIfTI file."
        ) from error


def explain_arrays(
    model: nn.Module,
    data: ImageSet | None,
    images: np.ndarray,
    classes: Sequence[str] = (),
    *,
    background: int = 16,
    samples: int = 50,
) -> list[OwnImage]:
    """:func:`explain_image` for pixels that are already at the model's size.

    Args:
        model: a student or a teacher, in any mode.
        data: what the model learned from, or ``None``.
        images: ``(N, H, W, 3)`` uint8.
        classes: names of the model's classes, where ``data`` does not say them.
        background: how many training images SHAP starts from.
        samples: SHAP's, an image (:func:`kdnb.explain.methods.shap`).

    Returns:
        one answer an image.
    """
    device = device_of(model)
    logits, features = logits_and_features(model, images)
    distances, limit, calibration, temperature, references = [None] * len(images), None, None, 1.0, None
    if data is not None:
        classes, train, validation = data.classes, data.index("train"), data.index("val")
        _, train_features = logits_and_features(model, data.images[train])
        validation_logits, validation_features = logits_and_features(model, data.images[validation])
        validation_distances = nearest_distance(validation_features, train_features)
        limit = float(farthest_likely(validation_distances, distances_among(train_features)))
        distances = nearest_distance(features, train_features).tolist()
        calibration = calibrated(validation_logits, data.labels[validation])
        temperature = calibration["temperature"]
        references = to_tensor(data.images[train[:: max(1, len(train) // background)][:background]]).to(device)
    depth = len(feature_layers(model))
    available = methods(references, shap_samples=samples, depth=depth)
    targets = torch.from_numpy(logits.argmax(axis=1)).to(device)
    shown = (*(f"feature_maps_layer{d}" for d in range(1, depth + 1)), "grad_cam", "shap")
    maps = explain_all({name: available[name] for name in shown}, model, to_tensor(images).to(device), targets)
    evidence = evidence_maps(model, to_tensor(images).to(device)).cpu().numpy()
    answers = []
    for k, image in enumerate(images):
        class_maps = dict(zip(classes, evidence[k], strict=True))
        table = pd.DataFrame({"class": classes, "probability": np.exp(log_softmax(logits[k] / temperature))})
        table = table.assign(
            logit=logits[k],
            evidence_for=evidence[k].clip(min=0).sum(axis=(1, 2)),
            evidence_against=evidence[k].clip(max=0).sum(axis=(1, 2)),
            rest=logits[k] - evidence[k].sum(axis=(1, 2)),
        )
        table = table.sort_values("probability", ascending=False, ignore_index=True)
        own_maps = {name: values[k].cpu().numpy() for name, values in maps.items()}
        answers.append(OwnImage(image, table, own_maps, class_maps, distances[k], limit, calibration))
    return answers


def evidence_maps(model: nn.Module, images: Tensor) -> Tensor:
    """What each cell of the last feature layer adds to each class's logit: activation times gradient, over all filters.

    Of the study's student, a linear layer on averages, the sum over the cells is exactly the logit without its bias.

    Args:
        model: a student, a teacher or another network with known feature layers.
        images: ``(N, 3, H, W)`` float32 in [0, 1].

    Returns:
        ``(N, C, h, w)`` float32, ``sum_k F_k dz_c/dF_k`` for class c, with its sign.
    """
    return evidence_at(model, images, list(feature_layers(model))[-1]).float()


def logits_and_features(model: nn.Module, images: np.ndarray, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Logits and the means of all filters of all feature layers, from one pass.

    Args:
        model: a student, a teacher or another network with known feature layers.
        images: ``(N, H, W, 3)`` uint8.
        batch_size: images at once.

    Returns:
        logits ``(N, C)`` and features ``(N, F)``, those of a layer of K filters over ``sqrt(K)``.
    """
    layers = feature_layers(model)
    device = device_of(model)
    logits, features = [], []

    def pooled(maps: Tensor) -> Tensor:
        # Every layer weighs the same, however many filters it has.
        return maps.mean(dim=(2, 3)) / maps.shape[1] ** 0.5

    with evaluation_mode(model), torch.no_grad(), collecting(layers, pooled) as means:
        for start in range(0, len(images), batch_size):
            logits.append(logits_of(model, to_tensor(images[start : start + batch_size]).to(device)).cpu().numpy())
            features.append(torch.cat([means[name] for name in layers], dim=1).cpu().numpy())
    return np.concatenate(logits), np.concatenate(features)


def calibration_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes the labels most likely: ``argmin_T -mean sum_c t_c log softmax(z / T)_c``.

    That is Guo et al. (2017). As in Platt (1999) the target of a label is not 1 but ``(n + 1) / (n + C)``, with n
    images of its class: where no image is wrong, the likelihood alone would take any confidence for too little, and T
    would go to 0.

    Args:
        logits: ``(N, C)``, z.
        labels: ``(N,)``, class indices.

    Returns:
        T, between ``exp(-3)`` and ``exp(3)``.
    """
    classes = logits.shape[1]
    class_counts = np.bincount(labels, minlength=classes)[labels]
    targets = np.repeat(1 / (class_counts + classes)[:, None], classes, axis=1)
    targets[np.arange(len(labels)), labels] = (class_counts + 1) / (class_counts + classes)

    def loss(log_temperature: float) -> float:
        return -(targets * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(axis=1).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def calibrated(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The temperature of all validation images, and how well calibrated each tenth is at that of the others.

    Args:
        logits: ``(N, C)`` of the validation images.
        labels: ``(N,)``, class indices.

    Returns:
        ``temperature`` (:func:`calibration_temperature`), ``validation_images`` and ``ece``, the expected calibration
        error.
    """
    probabilities = np.empty(logits.shape, float)
    folds = np.arange(len(labels)) % FOLDS
    for fold in np.unique(folds):
        rest = folds != fold if len(labels) > 1 else folds == fold
        temperature = calibration_temperature(logits[rest], labels[rest])
        probabilities[folds == fold] = np.exp(log_softmax(logits[folds == fold] / temperature, axis=1))
    ece = expected_calibration_error(labels, probabilities)
    return {"temperature": calibration_temperature(logits, labels), "validation_images": len(labels), "ece": ece}


def farthest_likely(distances: np.ndarray, among: np.ndarray | None = None) -> float:
    """The distance that one more image like those of ``distances`` stays below with 99% probability.

    The percentile, where there are a hundred images; of fewer, whose percentile is the largest of them, the one-sided
    prediction limit ``m + t s sqrt(1 + 1 / N)`` of the logarithms, with their mean m and standard deviation s and
    Student's t of N - 1 degrees of freedom. Few images do not show how far a tail reaches; so the limit is at least as
    far above m as the percentile of the training images' own distances is above their median (times the same root).
    Copies of training images, at no distance, say nothing of new ones.

    Args:
        distances: ``(N,)``, of validation images to their nearest training images (:func:`nearest_distance`).
        among: distances of training images to their nearest others ``(M,)`` (:func:`distances_among`).

    Returns:
        the limit, in the units of ``distances``.

    Example:
        >>> farthest_likely(np.arange(1.0, 101.0))
        99.01
    """
    new = distances[distances > COPY]
    if len(distances) >= 100 or len(new) < 2:
        return float(np.percentile(distances, UNLIKE_LEVEL))
    logs, root = np.log(new), np.sqrt(1 + 1 / len(new))
    above = t_distribution.ppf(UNLIKE_LEVEL / 100, len(logs) - 1) * logs.std(ddof=1)
    if among is not None and (others := np.log(among[among > COPY])).size:
        above = max(above, np.percentile(others, UNLIKE_LEVEL) - np.median(others))
    return float(np.exp(logs.mean() + above * root))


def distances_among(seen: np.ndarray, most: int = 1000) -> np.ndarray:
    """Distance of each row of ``seen`` to the nearest other row, as :func:`nearest_distance`.

    Args:
        seen: features ``(M, F)``.
        most: of so many rows at most, spread over all; the nearest may be any other.

    Returns:
        ``(min(M, most),)``.
    """
    chosen = np.unique(np.linspace(0, len(seen) - 1, min(most, len(seen))).astype(int))
    return nearest_distance(seen[chosen], seen, but=chosen)


def nearest_distance(features: np.ndarray, seen: np.ndarray, but: np.ndarray | None = None) -> np.ndarray:
    """Distance of each row of ``features`` to the nearest row of ``seen``.

    It is in units of each feature's spread over ``seen``: a nearest-neighbour test of what is out of the training
    distribution (Sun et al. 2022), on features of every layer.

    Args:
        features: ``(N, F)``, of the images asked about.
        seen: ``(M, F)``, of the training images.
        but: for each row the row of ``seen`` that does not count, because it is the same image ``(N,)``.

    Returns:
        ``(N,)``, the root of the mean square over features.
    """
    # A filter that few of the images seen excite, or none, has no spread to measure by; that of all features stands in.
    middle, spread = seen.mean(axis=0), np.maximum(seen.std(axis=0), 0.1 * seen.std() + 1e-12)
    a, b = (torch.from_numpy(((rows - middle) / spread).astype(np.float32)) for rows in (features, seen))
    distances = torch.cdist(a, b)
    if but is not None:
        distances[torch.arange(len(but)), torch.from_numpy(but)] = torch.inf
    return distances.amin(dim=1).numpy() / features.shape[1] ** 0.5
