"""Checks that a good-looking map must pass: does it hang on the weights, on the class, and tell a reader anything?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import entropy, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from kdnb.explain import Method, reinitialised

READER_FOLDS = 5
BINS = 100  # of the histogram whose entropy is a map's complexity
NOISY = 8  # noisy copies of an image whose maps are averaged
NOISE = 0.05  # standard deviation of that noise; an image's values are from 0 to 1


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each pair of maps.

    Args:
        a: ``(N, H, W)``.
        b: ``(N, H, W)``.

    Returns:
        ``(N,)`` in [-1, 1]; a constant map gives NaN.

    Example:
        >>> spearman(np.array([[[1, 2], [3, 4]]]), np.array([[[9, 8], [7, 1]]])).round(3).tolist()
        [-1.0]
    """
    return _correlation(_ranked(a), _ranked(b))


def _ranked(maps: np.ndarray | Tensor) -> np.ndarray:
    """``(N, H, W)`` -> ``(N, HW)``: ranks less their mean, of length one; zeros for a constant map."""
    maps = maps.cpu().numpy() if isinstance(maps, Tensor) else np.asarray(maps)
    ranks = rankdata(maps.reshape(len(maps), -1), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > 0)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products of unit vectors ``(N, K)``, NaN where one is zero."""
    products = (a * b).sum(axis=1)
    return np.where(a.any(axis=1) & b.any(axis=1), products, np.nan)


def cascade(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    chosen: dict[str, Method],
    stages: Sequence[str],
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Cascading randomisation (Adebayo et al. 2018): redraw the weights from the last stage to the first.

    Each time the weights of one stage more are drawn anew, and the maps are compared with those of the model itself.

    Args:
        model: which is explained; it is left as it is.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, class indices.
        chosen: methods by name.
        stages: names of modules in the order of their destruction, such as ``("classifier", "features.4", ...)``.
        seeds: one a network of redrawn weights (:func:`kdnb.explain.control_seed`): with the seed of the model's own
            start the last stage would be where it began, which its maps still resemble.

    Returns:
        columns stage, order, method, draw, image (positions), spearman with the original map: it should fall; where it
        stays near 1 the map does not show what was learned there.
    """
    originals = {name: _ranked(method(model, images, targets)) for name, method in chosen.items()}
    rows = []
    for order in range(1, len(stages) + 1):
        for draw, seed in enumerate(seeds):
            broken = reinitialised(model, seed, _leaves(model, stages[:order]))
            for name, method in chosen.items():
                values = _correlation(originals[name], _ranked(method(broken, images, targets)))
                rows += [
                    (stages[order - 1], order, name, draw, position, value) for position, value in enumerate(values)
                ]
    return pd.DataFrame(rows, columns=["stage", "order", "method", "draw", "image", "spearman"])


def of_draws(table: pd.DataFrame) -> pd.DataFrame:
    """The cascade over images and networks: a row a stage and method.

    Args:
        table: rows of :func:`cascade`.

    Returns:
        order, stage, method; ``spearman``, the mean over images and networks; over the networks the ``lowest`` and
        ``highest`` mean over images; ``n`` counts the networks.
    """
    means = table.groupby(["order", "stage", "method", "draw"], sort=False)["spearman"].mean()
    summary = means.groupby(["order", "stage", "method"], sort=False).agg(["mean", "min", "max", "size"]).reset_index()
    return summary.rename(columns={"mean": "spearman", "min": "lowest", "max": "highest", "size": "n"})


def _leaves(model: nn.Module, stages: Sequence[str]) -> list[str]:
    """Names of all modules inside the stages, the stages themselves included."""
    return [
        name
        for name, _ in model.named_modules()
        if any(name == stage or name.startswith(stage + ".") for stage in stages)
    ]


def smoothed(method: Method, seed: int = 0) -> Method:
    """The method's mean map over :data:`NOISY` copies of the image with noise.

    The smooth randomisation test (sMPRT, Hedstroem et al. 2024, arXiv 2401.06465) compares these, so that two maps do
    not differ by the gradients' noise alone.

    Args:
        method: to be smoothed.
        seed: of the noise, whose standard deviation is :data:`NOISE`; the same in every call.

    Returns:
        a method.
    """

    def mean_map(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        noise = [NOISE * torch.randn(images.shape, generator=draw).to(images.device) for _ in range(NOISY)]
        maps = method(model, torch.cat([images + copy_noise for copy_noise in noise]), targets.repeat(NOISY))
        return maps.unflatten(0, (NOISY, len(images))).mean(dim=0)

    return mean_map


def complexity(maps: np.ndarray) -> np.ndarray:
    """Entropy, in nats, of each map's values in :data:`BINS` bins from its least to its largest.

    Args:
        maps: ``(N, H, W)``.

    Returns:
        ``(N,)``, from 0 (constant) to ``log(100)``.

    Example:
        >>> complexity(np.array([[[0.0, 1.0], [2.0, 3.0]]])).round(4).tolist()
        [1.3863]
    """
    counts = np.stack([np.histogram(values, bins=BINS)[0] for values in maps])
    return entropy(counts, axis=1)


def complexity_rise(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    chosen: dict[str, Method],
    stages: Sequence[str],
    seeds: Sequence[int],
) -> pd.DataFrame:
    """The efficient randomisation test (eMPRT, arXiv 2401.06465): how much more complex are maps of redrawn weights?

    ``(complexity of the redrawn network's map - that of the model's) / that of the model's``: above 0 where training
    made the map say something definite. It compares no pixels, so it needs no measure of likeness between maps.

    Args:
        model: which is explained; it is left as it is.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, class indices.
        chosen: methods by name.
        stages: names of modules, together all whose weights are redrawn.
        seeds: one a network of redrawn weights (:func:`kdnb.explain.control_seed`).

    Returns:
        columns method, draw, image (positions), rise; NaN where the model's map is constant.
    """
    before = {name: complexity(method(model, images, targets).cpu().numpy()) for name, method in chosen.items()}
    rows = []
    for draw, seed in enumerate(seeds):
        broken = reinitialised(model, seed, _leaves(model, stages))
        for name, method in chosen.items():
            after = complexity(method(broken, images, targets).cpu().numpy())
            rise = np.divide(
                after - before[name], before[name], out=np.full_like(after, np.nan), where=before[name] > 0
            )
            rows += [(name, draw, position, value) for position, value in enumerate(rise)]
    return pd.DataFrame(rows, columns=["method", "draw", "image", "rise"])


def class_sensitivity(model: nn.Module, images: Tensor, method: Method, batch_size: int = 64) -> np.ndarray:
    """Spearman's correlation between the maps of the two most likely classes: 1 means that the map ignores the class.

    Args:
        model: which is explained, in evaluation mode.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        method: what makes the maps.
        batch_size: images at once: gradients of hundreds would not fit.

    Returns:
        ``(N,)``.
    """
    correlations = []
    for batch in images.split(batch_size):
        with torch.no_grad():
            best = model(batch).topk(2, dim=1).indices
        correlations.append(spearman(*(method(model, batch, classes).cpu().numpy() for classes in best.unbind(dim=1))))
    return np.concatenate(correlations)


def reader_features(maps: Sequence[Tensor], cells: int) -> np.ndarray:
    """Each map reduced to ``cells`` x ``cells`` means, all side by side.

    Args:
        maps: M maps of each image, ``(N, H, W)`` each.
        cells: across a reduced map.

    Returns:
        ``(N, M * cells ** 2)`` float32.
    """
    reduced = [adaptive_avg_pool2d(method_maps[:, None].float(), cells).flatten(1) for method_maps in maps]
    return torch.cat(reduced, dim=1).cpu().numpy()


def reader_hits(features: np.ndarray, decisions: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """How well a simple reader tells the model's decision from the explanation alone.

    The reader is a logistic regression on standardised features, cross-validated in five folds that keep a group's
    images together: a proxy for usefulness, no person. A decision that occurs in fewer groups than there are folds is
    left out (NaN).

    Args:
        features: ``(N, K)`` (:func:`reader_features`).
        decisions: ``(N,)``, the classes that the model predicts.
        groups: ``(N,)``, whose images stay together, such as persons.
        seed: of the folds.

    Returns:
        1 or 0 an image, ``(N,)``, out of fold.
    """
    values, counts = np.unique(
        np.unique(np.stack([decisions, np.unique(groups, return_inverse=True)[1]]), axis=1)[0], return_counts=True
    )
    kept = np.isin(decisions, values[counts >= READER_FOLDS])
    hits = np.full(len(decisions), np.nan)
    if len(np.unique(decisions[kept])) < 2:
        return hits
    reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    folds = StratifiedGroupKFold(READER_FOLDS, shuffle=True, random_state=seed)
    hits[kept] = (
        cross_val_predict(reader, features[kept], decisions[kept], groups=groups[kept], cv=folds) == decisions[kept]
    )
    return hits
