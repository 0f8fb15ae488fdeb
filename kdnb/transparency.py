"""What transparency costs and shows: students of several receptive fields, with a teacher and without (chapter 07).

Every comparison is paired by seed and image (:func:`kdnb.evaluation.compare_over_seeds`): both the luck of training and
that of the test images count. Questions start with ``field:`` (what a smaller field costs), ``teacher:`` (who gains
more by it), ``truth:`` and ``fidelity:`` (whose explanation is better).
"""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdnb import fidelity, specs
from kdnb.cost import macs, parameters
from kdnb.datasets import ImageSet
from kdnb.device import settle
from kdnb.evaluation import compare_over_seeds, expected_hits, with_holm
from kdnb.experiments import Experiment
from kdnb.explain import Method, class_evidence, evaluation_mode, explain_all, layer_evidence, receptive_fields
from kdnb.specs import StudentSpec, TrainedStudent
from kdnb.training import Examples

PLAIN, TRANSPARENT = "plain", "transparent"
SHAPES = (PLAIN, "translucent", TRANSPARENT)  # from the largest field to the smallest
ALONE, TAUGHT = "ce", "kd_t2"
# What the transparent shape may learn from, in words: is it the teacher that helps, or any softer target?
ARMS = {ALONE: "labels alone", "ls": "label smoothing", "kd": "paper's loss", TAUGHT: "with T²"}
# Metrics of truth of the order of the pixels: mass_ratio depends on whether a map has a sign.
TRUTH = ("pointing_game", "rank_accuracy", "pixel_auc")
CONTROLS = ("random", "centre", "sobel", "untrained", "data_set_mean")
LEVEL = 0.05  # Holm's p below which a table marks a difference
FEW = 8  # images a class for the controls, which are far behind, and for SHAP, which costs hundreds of passes an image
RIVALS = ("grad_cam", "feature_maps_mean", "feature_maps_unpooled")  # on the plain student


def student_specs(
    shapes: Sequence[str], arms: Sequence[str], seeds: Sequence[int], alpha: float, temperature: float
) -> list[StudentSpec]:
    """The students of the study: every shape, arm and seed once."""
    return [
        specs.spec(arm, seed, alpha, temperature, shape=shape) for shape in shapes for arm in arms for seed in seeds
    ]


def prices(results: dict[StudentSpec, TrainedStudent], experiment: Experiment, image_size: int) -> pd.DataFrame:
    """The rows of ``transparency.csv``.

    Args:
        results: the trained students.
        experiment: what they learned from.
        image_size: pixels of a side.

    Returns:
        A row a student: ``shape``, ``loss``, ``seed``, ``receptive_field`` (pixels across, of the last
        layer), ``map_cells`` (across), ``macs``, ``parameters``, ``val_accuracy``, ``test_accuracy``, ``seconds``.
    """
    rows = []
    costs: dict[str, dict[str, object]] = {}
    for spec, trained in results.items():
        if spec.shape not in costs:
            network = specs.student(spec, experiment)
            evidence = class_evidence(network, torch.rand(1, 3, image_size, image_size))
            costs[spec.shape] = {
                "receptive_field": list(receptive_fields(network, image_size=image_size).values())[-1],
                "map_cells": evidence.maps.shape[-1],
                "macs": macs(network, image_size),
                "parameters": parameters(network),
            }
        val_hits = _hits(trained.val_logits, experiment.validation)
        test_hits = _hits(trained.test_logits, experiment.test)
        row: dict[str, object] = {"shape": spec.shape, "loss": spec.arm, "seed": spec.seed}
        row |= costs[spec.shape]
        row |= {"val_accuracy": float(val_hits.mean()), "test_accuracy": float(test_hits.mean())}
        rows.append(row | {"seconds": trained.seconds})
    return pd.DataFrame(rows)


def _hits(logits: np.ndarray, examples: Examples) -> np.ndarray:
    return expected_hits(logits, examples.labels, examples.posterior)


def _hits_of(results: dict[StudentSpec, TrainedStudent], experiment: Experiment, shape: str, arm: str) -> np.ndarray:
    """Hits on the test images, ``(S, N)``, in the order of seeds."""
    chosen = sorted((spec for spec in results if (spec.shape, spec.arm) == (shape, arm)), key=lambda spec: spec.seed)
    return np.stack([_hits(results[spec].test_logits, experiment.test) for spec in chosen]).astype(float)


def price_tests(results: dict[StudentSpec, TrainedStudent], experiment: Experiment, groups: np.ndarray) -> pd.DataFrame:
    """Rows of ``tests.csv``: what a smaller field costs, what the teacher adds to each shape, and to which more.

    All is accuracy. The last is a difference of differences on the same seeds and images: (taught - alone) of the
    smaller field minus that of the plain one.

    Args:
        results: the trained students of every shape and arm.
        experiment: what they learned from.
        groups: ``(n,)`` of the test images.

    Returns:
        The rows, with Holm's p values.
    """
    shapes = [shape for shape in dict.fromkeys(spec.shape for spec in results) if shape != PLAIN]
    arms = list(dict.fromkeys(spec.arm for spec in results))
    rows = []
    for shape in shapes:
        question = "field: what does the smaller one cost?"
        for arm in arms:
            small, plain = (_hits_of(results, experiment, name, arm) for name in (shape, PLAIN))
            rows.append(compare_over_seeds(question, f"{shape} {arm}", f"{PLAIN} {arm}", small, plain, groups))
    taught_arms = [arm for arm in arms if arm != ALONE]
    for shape in (PLAIN, *shapes):
        question = "teacher: what does it add?"
        for arm in taught_arms:
            taught, alone = (_hits_of(results, experiment, shape, name) for name in (arm, ALONE))
            rows.append(compare_over_seeds(question, f"{shape} {arm}", f"{shape} {ALONE}", taught, alone, groups))
    for shape in shapes:
        question = "teacher: does it add more to the smaller field?"
        for arm in taught_arms:
            gain_of_small, gain_of_plain = (
                _hits_of(results, experiment, name, arm) - _hits_of(results, experiment, name, ALONE)
                for name in (shape, PLAIN)
            )
            names = f"gain of {shape} by {arm}", f"gain of {PLAIN} by {arm}"
            rows.append(compare_over_seeds(question, *names, gain_of_small, gain_of_plain, groups))
    return with_holm(rows)


def gains_in_brief(tests: pd.DataFrame) -> pd.DataFrame:
    """What each way of learning adds to the labels alone, on the plain and on the transparent student, to look at.

    Args:
        tests: of :func:`price_tests`, with a column ``labels``: how many the students learned from.

    Returns:
        A row for each number of labels and way of learning; columns ``plain``, ``transparent`` and ``transparent −
        plain``: points of accuracy with their 95% interval, with a star where Holm's p < 0.05.
    """
    gained = tests[tests["question"].str.startswith("teacher")]
    to_which = gained["a"].str.extract(rf"^(gain of )?({PLAIN}|{TRANSPARENT}) (?:by )?(\w+)$")
    column = to_which[1].where(to_which[0].isna(), f"{TRANSPARENT} − {PLAIN}")
    points = 100 * gained[["difference", "lo", "hi"]].astype(float)
    words = [
        f"{difference:+.1f} [{lo:+.1f}, {hi:+.1f}]{'*' * (p < LEVEL)}"
        for (difference, lo, hi), p in zip(points.to_numpy(), gained["p_holm"], strict=True)
    ]
    named = gained.assign(way=to_which[2].map(ARMS), column=column, words=words)
    return named.set_index(["labels", "way", "column"])["words"].unstack("column", sort=False).rename_axis(columns=None)


# -- explanations ------------------------------------------------------------------------------------------------------


def explanation_rows(
    students: dict[tuple[str, int], nn.Module], chosen: dict[str, dict[str, Method]], data: ImageSet, per_class: int
) -> pd.DataFrame:
    """Truth (where there are masks) and faithfulness of explanations of several students on the same test images.

    Args:
        students: (shape, seed) -> network.
        chosen: shape -> methods to judge on it; a shape that is not named is left out.
        data: the images; those of test are explained.
        per_class: test images of each class. Fewer are the first of more, so that methods judged on fewer are compared
            on those.

    Returns:
        The rows of ``fidelity.csv`` and ``localisation.csv``, with columns ``shape`` and ``seed``; truth only where the
        student is right.
    """
    tables = []
    for (shape, seed), model in ((key, model) for key, model in students.items() if key[0] in chosen):
        sample = fidelity.draw_sample(model, data, per_class)
        maps = explain_all(chosen[shape], model, sample.images, sample.targets)
        rows = [fidelity.fidelity_rows(model, shape, sample, maps, families=True)]
        if sample.masks is not None:
            rows.append(fidelity.localisation_rows(shape, sample, maps).query("correct"))
        tables.append(pd.concat(rows, ignore_index=True).assign(shape=shape, seed=seed))
    return pd.concat(tables, ignore_index=True)


def explanation_tests(rows: pd.DataFrame, shape: str = TRANSPARENT) -> pd.DataFrame:
    """Rows of ``tests.csv``: class evidence of one shape against every explanation of the plain student.

    Each metric is a test. Only images on which every seed of both has the metric count.

    Args:
        rows: of :func:`explanation_rows`.
        shape: whose class evidence.

    Returns:
        The rows, with Holm's p values.
    """
    tests = []
    for question, metrics in (
        ("truth: does the evidence mark the lesion better?", TRUTH),
        ("fidelity: is the evidence more faithful?", fidelity.FAMILIES),
    ):
        for metric in metrics:
            of_metric = rows[rows["metric"] == metric]
            own = of_metric[(of_metric["shape"] == shape) & (of_metric["method"] == "class_evidence")]
            plain = of_metric[of_metric["shape"] == PLAIN]
            for rival in dict.fromkeys(plain["method"]):
                names = f"{shape} class_evidence", f"{PLAIN} {rival}"
                other = plain[plain["method"] == rival]
                tests.append(fidelity.paired_over_seeds(question, *names, own, other, metric))
    return with_holm([row for row in tests if row is not None])


def explanation_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean of every metric by shape and method over images and seeds, with its count: ``evidence_summary.csv``."""
    means = rows.groupby(["shape", "method", "metric"], sort=False)["value"].agg(["mean", "count"]).reset_index()
    return means.rename(columns={"count": "n"})


def passes(model: nn.Module, images: Tensor, repeats: int) -> pd.DataFrame:
    """What class evidence costs in forward passes.

    The interval is that of the median, from order statistics (binomial, 95% or all there is where the repeats are few).

    Args:
        model: a student.
        images: ``(N, 3, H, W)``.
        repeats: how often both sides are measured, in turn.

    Returns:
        One row: ``ratio``, ``lo``, ``hi``, ``n``.
    """

    def forward() -> None:
        with evaluation_mode(model), torch.no_grad():
            model(images)

    def seconds(computation: Callable[[], object]) -> float:
        started = time.perf_counter()
        computation()
        settle()
        return time.perf_counter() - started

    warm_ups: tuple[Callable[[], object], ...] = (forward, lambda: class_evidence(model, images))
    for computation in warm_ups:
        computation()
    ratios = np.sort([seconds(lambda: class_evidence(model, images)) / seconds(forward) for _ in range(repeats)])
    from scipy.stats import binom

    rank = max(int(binom.ppf(0.025, repeats, 0.5)), 1)
    return pd.DataFrame(
        [{"ratio": float(np.median(ratios)), "lo": ratios[rank - 1], "hi": ratios[-rank], "n": repeats}]
    )


# -- one image, one decision -------------------------------------------------------------------------------------------


def apart(model: nn.Module, image: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """A decision taken apart.

    Args:
        model: a student.
        image: ``(3, H, W)``.
        classes: their names, in the order of the logits.

    Returns:
        A row a class, the likeliest first: its ``bias``, what speaks ``for`` it and ``against`` it, their ``sum``, and
        the ``logit``.
    """
    evidence = class_evidence(model, image[None])
    by_cell = evidence.maps[0].flatten(1) / evidence.maps[0, 0].numel()
    with evaluation_mode(model), torch.no_grad():
        logits = model(image[None])[0]
    terms = {
        "bias": evidence.bias,
        "for": by_cell.clamp_min(0).sum(1),
        "against": by_cell.clamp_max(0).sum(1),
        "sum": evidence.logits[0],
    }
    table = pd.DataFrame({name: values.cpu().numpy() for name, values in (terms | {"logit": logits}).items()})
    return table.assign(**{"class": list(classes)}).set_index("class").sort_values("logit", ascending=False)


def layer_shares(model: nn.Module, images: Tensor, names: Iterable[str]) -> pd.DataFrame:
    """Which layer decided: what each layer adds to the gap between the two likeliest classes, a row an image.

    Args:
        model: a student whose classifier reads several layers.
        images: ``(N, 3, H, W)``.
        names: of the images' classes, ``(N,)``.

    Returns:
        ``class``, one column a layer (``layer1``, ...), ``bias`` and ``gap``, their sum: the likeliest class's logit
        minus the next one's.
    """
    by_layer, bias = layer_evidence(model, images)
    terms = torch.stack([maps.mean(dim=(2, 3)) for maps in by_layer.values()] + [bias.expand(len(images), -1)])
    first, second = terms.sum(dim=0).topk(2, dim=1).indices.T
    rows = torch.arange(len(images), device=images.device)
    gaps = (terms[:, rows, first] - terms[:, rows, second]).T.cpu().numpy()
    table = pd.DataFrame(gaps, columns=[*(f"layer{k}" for k in range(1, len(by_layer) + 1)), "bias"])
    table.insert(0, "class", list(names))
    return table.assign(gap=gaps.sum(axis=1))
