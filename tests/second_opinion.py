"""What Quantus says where the study has a metric of its own:
``python tests/second_opinion.py`` writes ``second_opinion.json``.

Quantus (Hedstroem et al., JMLR 2023) is no dependency of the study. Where it is installed (``pip install quantus``)
this script asks it, on inputs that come from fixed seeds, and keeps the answers; ``test_second_opinion.py`` compares
them with the study's own, and asks Quantus anew where it is installed.

What both are given alike is what Quantus leaves to its user (the fill of removed pixels, the noise) or draws otherwise
(new weights: here whoever redraws a layer gets the same). Images have one channel, which the network reads three times:
Quantus 0.6 would take the three values of a pixel for three places.
"""

import hashlib
import json
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdnb.device import drawing_from
from kdnb.explain import METHODS, blurred
from kdnb.fidelity.perturb import SENSITIVITY_RADIUS, SENSITIVITY_SAMPLES, mean_colour
from kdnb.models import StudentCNN, initialised

ANSWERS = Path(__file__).with_suffix(".json")
COUNT, SIZE = 6, 40  # images, and pixels a side: a twentieth of the area is 80 pixels
STEPS = 20  # at which a curve is read
REMOVED = (25, 50, 75)  # percent of the area, of ROAD
# Whose maps are compared when weights are redrawn: of a class, and of none.
EXPLANATIONS = ("class_evidence", "feature_maps_mean")
FILLS = {"blur": blurred, "mean": mean_colour}


class Grey(StudentCNN):
    """The study's student, of images with one channel or three."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.expand(-1, 3, -1, -1))


def network() -> Grey:
    """A student of two classes whose layers get the same new weights whoever redraws them.

    It is untrained, but its answer is as decided as a trained one's and turns where pixels are removed:
    scale and threshold are set so.
    """
    built = initialised(Grey, 2, widths=(8, 16, 16), poolings=2, seed=21).eval()
    with torch.no_grad():
        built.classifier.weight *= 200
        built.classifier.bias -= torch.tensor([0.0, 17.0])
    for position, module in enumerate(layers(built).values()):
        module.reset_parameters = partial(_redraw, module, position)
    return built


def _redraw(module: nn.Module, seed: int) -> None:
    with drawing_from(seed):
        type(module).reset_parameters(module)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with weights, the last first."""
    return dict(
        reversed([(name, module) for name, module in model.named_modules() if hasattr(module, "reset_parameters")])
    )


def inputs() -> tuple[Tensor, Tensor, dict[str, Tensor], np.ndarray]:
    """Images ``(N, 1, H, W)``, the targets ``(N,)``, maps ``(N, H, W)`` without ties,
    and masks ``(N, H, W)`` of which one is empty."""
    draw = torch.Generator().manual_seed(0)
    masks = torch.zeros(COUNT, SIZE, SIZE, dtype=torch.bool)
    for nth, mask in enumerate(masks):
        mask[4 * nth : 4 * nth + 10 + nth, 8:22] = True
    images = torch.linspace(0.2, 0.5, SIZE).expand(COUNT, 1, SIZE, SIZE) + 0.05 * torch.rand(
        COUNT, 1, SIZE, SIZE, generator=draw
    )
    images = images + masks[:, None] * torch.rand(COUNT, 1, SIZE, SIZE, generator=draw) * 0.5
    shuffled = (
        torch.stack([torch.randperm(SIZE * SIZE, generator=draw) for _ in range(COUNT)]).view(COUNT, SIZE, SIZE)
        / SIZE**2
    )
    with torch.no_grad():
        targets = network()(images).argmax(dim=1)
    maps = {"lesion": 0.6003 * masks + shuffled - 0.5, "random": shuffled.flip(2) - 0.5}
    return images, targets, maps, (masks & (torch.arange(COUNT) < COUNT - 1)[:, None, None]).numpy()


def tied(maps: Tensor) -> Tensor:
    """Maps of seven values only."""
    return (maps * 3).round() / 3


def noise() -> Tensor:
    """The draws of :func:`kdnb.fidelity.sensitivity_max`, ``(samples, N, 3, H, W)``,
    of which every channel has its own."""
    with drawing_from(0):
        drawn = SENSITIVITY_RADIUS * (2 * torch.rand(COUNT * SENSITIVITY_SAMPLES, 3, SIZE, SIZE) - 1)
    return drawn.unflatten(0, (COUNT, SENSITIVITY_SAMPLES)).transpose(0, 1)


def answers() -> dict[str, object]:
    """Every metric that Quantus has, too, as it computes it."""
    import quantus
    from quantus.functions.complexity_func import discrete_entropy
    from quantus.functions.perturb_func import noisy_linear_imputation
    from quantus.functions.similarity_func import correlation_spearman

    plain = {"abs": False, "normalise": False, "disable_warnings": True}
    model, (images, targets, maps, masks) = network(), inputs()
    arguments = {"model": model, "x_batch": images.numpy(), "y_batch": targets.numpy(), "channel_first": True}

    def curve(of_map: Tensor, start: Tensor, end: Tensor) -> np.ndarray:
        """p of the target as pixels of ``end`` take the place of those of ``start``, ``(N, STEPS)``."""
        other = end.flatten(1).numpy()

        def replace(arr: np.ndarray, indices: np.ndarray, **_: object) -> np.ndarray:
            changed, rows = arr.copy(), np.arange(len(arr))[:, None]
            changed[rows, indices] = other[rows, indices]
            return changed

        flipping = quantus.PixelFlipping(features_in_step=SIZE**2 // STEPS, perturb_func=replace, **plain)
        return np.array(
            flipping(**arguments | {"x_batch": start.numpy()}, a_batch=of_map[:, None].numpy(), softmax=True)
        )

    def kept(of_map: Tensor, percentages: tuple[int, ...], start: Tensor | None = None) -> list[float]:
        """ROAD: the share of images of which the prediction stays with so many percent imputed,
        or restored in front of ``start``."""
        nth = iter(list(range(COUNT)) * len(percentages))

        def restore(arr: np.ndarray, indices: np.ndarray, **_: object) -> np.ndarray:
            changed = arr.copy()
            changed.reshape(-1)[indices] = images[next(nth)].numpy().reshape(-1)[indices]
            return changed

        how = {} if start is None else {"perturb_func": restore}
        shown = images if start is None else start
        shares = quantus.ROAD(list(percentages), noise=0.0, **how, **plain)(
            **arguments | {"x_batch": shown.numpy()}, a_batch=of_map[:, None].numpy()
        )
        return list(shares.values())

    def without(of_map: Tensor, percent: int) -> np.ndarray:
        """p of the target with the ``percent`` of an image imputed where the map is highest, ``(N,)``."""
        order = (-of_map).flatten(1).argsort(dim=1)[:, : SIZE**2 * percent // 100].numpy()
        filled = [
            noisy_linear_imputation(image, indices, noise=0.0)
            for image, indices in zip(images.numpy(), order, strict=True)
        ]
        with torch.no_grad():
            p = model(torch.from_numpy(np.stack(filled)).float()).softmax(dim=1)
        return p.gather(1, targets[:, None])[:, 0].numpy()

    def explain(name: str, model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
        """Maps from zero on, for Quantus refuses those below it; neither ranks nor histograms mind."""
        of_images = METHODS[name](
            model, torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets)
        ).detach()
        return (of_images - of_images.amin(dim=(1, 2), keepdim=True))[:, None].numpy()

    def steadiness() -> np.ndarray:
        """Of the image's own values as the map,
        the only one to which noise in three channels is the noise of their mean."""
        draws = iter(noise().mean(dim=2).flatten(2).numpy())
        measured = quantus.MaxSensitivity(
            nr_samples=SENSITIVITY_SAMPLES, perturb_func=lambda arr, **_: arr + next(draws), **plain
        )
        return measured(**arguments, explain_func=lambda inputs, **_: inputs, a_batch=images.numpy())

    kept_answers: dict[str, object] = {
        "curves": {},
        "agreement": {},
        "road": {},
        "road_hits": {},
        "localisation": {},
        "complexity": {},
    }
    for name, of_map in maps.items():
        for fill, empty in FILLS.items():
            kept_answers["curves"][f"{name} deletion_{fill}"] = curve(of_map, images, empty(images))
            kept_answers["curves"][f"{name} insertion_{fill}"] = curve(of_map, empty(images), images)
            kept_answers["agreement"][f"{name} {fill}"] = kept(of_map, (5, 10, 20, 30), empty(images))
        for end, order in (("most_first", of_map), ("least_first", -of_map)):
            kept_answers["road"][f"{name} {end}"] = np.mean([without(order, percent) for percent in REMOVED], axis=0)
            kept_answers["road_hits"][f"{name} {end}"] = kept(order, REMOVED)
        kept_answers["agreement"][f"{name} road"] = kept(-of_map, (90,))
        kept_answers["complexity"][name] = [discrete_entropy(one, one) for one in tied(of_map).numpy()]
    for name, of_map in maps.items():
        for end, shown in (("", of_map), (" tied", tied(of_map))):
            shifted = (shown - shown.amin(dim=(1, 2), keepdim=True))[:, None].numpy()
            for metric in (
                quantus.PointingGame,
                quantus.RelevanceMassAccuracy,
                quantus.RelevanceRankAccuracy,
                quantus.AUC,
            ):
                scores = metric(**plain)(**arguments, a_batch=shifted, s_batch=masks[:, None])
                kept_answers["localisation"][f"{name}{end} {metric.__name__}"] = np.array(scores, dtype=float)
    kept_answers["sensitivity_max"] = steadiness()
    kept_answers["class_sensitivity"] = {}
    for name in EXPLANATIONS:
        logit = quantus.RandomLogit(similarity_func=correlation_spearman, num_classes=2, **plain)
        kept_answers["class_sensitivity"][name] = logit(**arguments, explain_func=partial(explain, name))
    kept_answers["cascade"], kept_answers["complexity_rise"] = {}, {}
    for name in EXPLANATIONS:
        broken = quantus.MPRT(similarity_func=correlation_spearman, layer_order="top_down", **plain)
        stages = broken(**arguments, explain_func=partial(explain, name))
        kept_answers["cascade"][name] = {stage: values for stage, values in stages.items() if stage != "original"}
        rises = quantus.EfficientMPRT(
            complexity_func=discrete_entropy, layer_order="top_down", skip_layers=True, **plain
        )
        kept_answers["complexity_rise"][name] = rises(**arguments, explain_func=partial(explain, name))
    told = json.dumps(kept_answers, default=_numbers)
    return json.loads(told, parse_float=lambda text: float(f"{float(text):.7g}"), parse_constant=lambda _: None)


def _numbers(values: np.ndarray | np.generic) -> object:
    return values.astype(float).tolist() if isinstance(values, np.ndarray) else float(values)


def own_hash() -> str:
    """Of this script, whatever its line ends: answers belong to the questions."""
    return hashlib.sha256(Path(__file__).read_text(encoding="utf-8").encode()).hexdigest()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = {"quantus": version("quantus"), "script": own_hash(), "answers": answers()}
    ANSWERS.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
