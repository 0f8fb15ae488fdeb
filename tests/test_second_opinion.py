"""The study's metrics beside those of Quantus and captum:
equal where the definition is one, and the difference said where it is not.

Quantus's answers are kept in ``second_opinion.json`` (see ``second_opinion.py``);
captum is a dependency and is asked here and in ``test_fidelity.py``.
"""

import json
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import second_opinion as asked
import torch

from kdnb import fidelity
from kdnb.explain import METHODS
from kdnb.fidelity import perturb, sanity
from kdnb.fidelity.localise import mass_ratio, pixel_auc, pointing_game, rank_accuracy

SAID = json.loads(asked.ANSWERS.read_text(encoding="utf-8"))
AT = [round(asked.STEPS * share) - 1 for share in perturb.SHARES[1:]]  # where their curve is read at the study's shares

# Of every metric of one image and map who confirms it, or why nobody does; the families of names by their beginnings.
CONFIRMED = {
    "insertion_": "Quantus, PixelFlipping",
    "deletion_": "Quantus, PixelFlipping",
    "agreement_": "Quantus, ROAD",
    "recovered_": "the agreement of the images that are not called so with nothing kept: test_fidelity.py",
    "road_": "Quantus, the imputation of ROAD",
    "average_": "neither has it: test_fidelity.py, by hand",
    "infidelity": "captum: test_fidelity.py",
    "sensitivity_max": "Quantus, MaxSensitivity; captum computes it",
    "ffid_": "neither has it: test_fidelity.py, by hand",
    "pointing_game": "Quantus, PointingGame",
    "mass_ratio": "Quantus, RelevanceMassAccuracy",
    "rank_accuracy": "Quantus, RelevanceRankAccuracy",
    "pixel_auc": "Quantus, AUC",
}


@pytest.fixture(scope="module")
def model():
    return asked.network()


@pytest.fixture(scope="module")
def case():
    """Images of three channels, targets, maps and masks."""
    images, targets, maps, masks = asked.inputs()
    return images.expand(-1, 3, -1, -1), targets, maps, masks


def said(*path: str) -> np.ndarray:
    """Quantus's answer; NaN where it has none."""
    kept = SAID["answers"]
    for name in path:
        kept = kept[name]
    return np.array(kept, dtype=float)


def test_the_answers_belong_to_the_questions():
    assert SAID["script"] == asked.own_hash(), "second_opinion.py has changed: run it where Quantus is installed"


def test_quantus_says_the_same_today():
    pytest.importorskip("quantus", reason="Quantus is no dependency: pip install quantus")
    assert version("quantus") == SAID["quantus"]
    kept, today = (pd.json_normalize(one, sep="/").iloc[0] for one in (SAID["answers"], asked.answers()))
    assert list(kept.index) == list(today.index)
    for name in kept.index:
        np.testing.assert_allclose(
            *(np.array(one[name], dtype=float) for one in (today, kept)), rtol=1e-4, atol=2e-5, err_msg=name
        )


def test_every_metric_is_confirmed_or_said_to_be_without_a_counterpart(model, case):
    images, targets, maps, masks = case
    names = np.array(["first", "second"])
    sample = fidelity.Sample(images[:2], targets[:2], names, names, names, np.ones(2, bool), masks[:2])
    two_maps = {"random": maps["random"][:2]}
    rows = [
        fidelity.fidelity_rows(model, "student", sample, two_maps),
        fidelity.captum_rows(model, "student", sample, two_maps, {"random": METHODS["uniform"]}),
        fidelity.judged_rows(model, "student", sample, two_maps),
        fidelity.localisation_rows("student", sample, two_maps),
    ]
    metrics = pd.concat(rows)["metric"].unique()
    of_metric = {metric: [start for start in CONFIRMED if metric.startswith(start)] for metric in metrics}
    assert all(len(answers) == 1 for answers in of_metric.values()), of_metric
    assert {answers[0] for answers in of_metric.values()} == set(CONFIRMED)


# -- faithfulness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", asked.FILLS)
@pytest.mark.parametrize("name", ["lesion", "random"])
def test_deletion_and_insertion_are_pixel_flipping(model, case, name, fill):
    """The curve is theirs point by point. The area is read differently: Quantus's sum leaves out the whole image and
    counts 20 points with a width of 1 each; here it is the integral over the share of the area, from 0 to 1, read at
    the eight points of ``SHARES``."""
    images, targets, maps, _ = case
    rank, empty = fidelity.relevance_rank(maps[name]), asked.FILLS[fill](images)
    areas = fidelity.deletion_insertion(model, images, targets, rank, [fill])
    for kind, front, back in (("insertion", images, empty), ("deletion", empty, images)):
        ends = tuple(perturb.probabilities(model, images_at_end) for images_at_end in (back, front))
        ours = perturb.of_target(perturb.curves(model, front, back, rank, ends), targets).numpy()
        quantus = said("curves", f"{name} {kind}_{fill}")[:, AT]
        np.testing.assert_allclose(ours[:, 1:], quantus, atol=5e-5)
        area = np.trapezoid(np.c_[ends[0].numpy()[np.arange(len(targets)), targets], quantus], perturb.SHARES, axis=1)
        np.testing.assert_allclose(areas[f"{kind}_{fill}"], area, atol=5e-5)


@pytest.mark.parametrize("kind", ["insertion", "deletion"])
@pytest.mark.parametrize("fill", asked.FILLS)
def test_eight_points_of_a_curve_compare_maps_as_twenty_do(kind, fill):
    """A curve that turns between two points is read too high or too low, but every map's alike."""
    curves = {name: np.array(said("curves", f"{name} {kind}_{fill}")) for name in ("lesion", "random")}
    change = curves["lesion"] - curves["random"]
    from_zero = np.c_[np.zeros(len(change)), change]  # all maps start with the same image
    fine = np.trapezoid(from_zero, dx=1 / asked.STEPS, axis=1)
    ours = np.trapezoid(from_zero[:, [0, *(at + 1 for at in AT)]], perturb.SHARES, axis=1)
    np.testing.assert_allclose(ours, fine, rtol=0.1, atol=0.002)


@pytest.mark.parametrize("name", ["lesion", "random"])
def test_agreement_is_roads_share_of_kept_predictions(model, case, name, monkeypatch):
    """ROAD counts images that keep their class. Given the emptied image to begin with,
    it counts those to which it comes back."""
    monkeypatch.setattr(perturb, "ROAD_NOISE", 0.0)
    images, targets, maps, _ = case
    rank = fidelity.relevance_rank(maps[name])
    ours = fidelity.deletion_insertion(model, images, targets, rank) | fidelity.road(model, images, targets, rank)
    ends = {"blur": ("05", "10", "20", "30"), "mean": ("05_mean", "10_mean"), "road": ("10_road",)}
    for fill, shares in ends.items():
        agreements = [float(ours[f"agreement_{share}"].mean()) for share in shares]
        np.testing.assert_allclose(agreements, said("agreement", f"{name} {fill}")[: len(shares)], atol=1e-6)


@pytest.mark.parametrize("end", ["most_first", "least_first"])
@pytest.mark.parametrize("name", ["lesion", "random"])
def test_road_is_that_of_the_exact_imputation(model, case, name, end, monkeypatch):
    """Quantus solves the linear system exactly, here it is solved from coarse to fine. It counts classes that stay at
    each share; here p of the target is averaged over the shares, which tells more of few images. The noise, which each
    draws for itself, is left out."""
    monkeypatch.setattr(perturb, "ROAD_NOISE", 0.0)
    images, targets, maps, _ = case
    rank = fidelity.relevance_rank(maps[name])
    road = fidelity.road(model, images, targets, rank)[f"road_{end}"]
    np.testing.assert_allclose(road, said("road", f"{name} {end}"), atol=0.01)
    order = rank if end == "most_first" else 1 - rank
    stays = [
        perturb.probabilities(model, perturb.imputed(images, order < share)).argmax(1) == targets
        for share in perturb.ROAD_SHARES
    ]
    np.testing.assert_allclose(
        [float(stay.float().mean()) for stay in stays], said("road_hits", f"{name} {end}"), atol=1e-6
    )


def test_sensitivity_is_quantus_s_for_the_same_noise(model, case):
    images, targets, _, _ = case
    sensitivity = fidelity.sensitivity_max(model, images, targets, lambda _, shown, __: shown.mean(dim=1))
    np.testing.assert_allclose(sensitivity, said("sensitivity_max"), rtol=1e-4)


# -- localisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lesion", "random"])
def test_localisation_is_quantus_s(case, name):
    _, _, maps, masks = case
    shown, has_mask = maps[name].numpy(), masks.any(axis=(1, 2))
    assert has_mask.sum() == len(masks) - 1
    ranks = fidelity.relevance_rank(maps[name]).numpy()
    for metric, ours in (
        ("PointingGame", pointing_game(shown, masks)),
        (
            "RelevanceMassAccuracy",
            mass_ratio(shown, masks) * masks.mean(axis=(1, 2)),
        ),  # theirs is the share of the map's sum, not over chance
        ("RelevanceRankAccuracy", rank_accuracy(ranks, masks)),
        ("AUC", pixel_auc(shown, masks)),
    ):
        quantus = said("localisation", f"{name} {metric}")
        np.testing.assert_allclose(ours[has_mask], quantus[has_mask], rtol=1e-4, err_msg=metric)
        assert np.isnan(ours[~has_mask]).all(), "nothing can be said where there is no lesion"
        # Quantus means to say so, too; its pointing game keeps hits as booleans, and NaN becomes a hit.
        assert np.isnan(quantus[~has_mask]).all() or (metric == "PointingGame" and (quantus[~has_mask] == 1).all())


@pytest.mark.parametrize("name", ["lesion", "random"])
def test_localisation_of_tied_maps_is_quantus_s_but_for_what_a_tie_is_worth(case, name):
    _, _, maps, masks = case
    tied, masks = asked.tied(maps[name])[:-1].numpy(), masks[:-1]
    shares = mass_ratio(tied, masks) * masks.mean(axis=(1, 2))
    np.testing.assert_allclose(shares, said("localisation", f"{name} tied RelevanceMassAccuracy")[:-1], rtol=1e-5)
    np.testing.assert_allclose(pixel_auc(tied, masks), said("localisation", f"{name} tied AUC")[:-1], rtol=1e-5)
    # A map whose highest value is shared by many pixels is a hit of Quantus's if one of them is in the mask;
    # here it is the share of them.
    ours, quantus = pointing_game(tied, masks), said("localisation", f"{name} tied PointingGame")[:-1]
    np.testing.assert_array_equal(ours > 0, quantus == 1)
    assert (ours < 1).all() == (name == "random")


# -- sanity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", asked.EXPLANATIONS)
def test_the_cascade_is_quantus_s_stage_by_stage(model, case, name):
    images, targets, _, _ = case
    stages = list(asked.layers(model))
    table = fidelity.cascade(model, images, targets, {name: METHODS[name]}, stages)
    assert list(SAID["answers"]["cascade"][name]) == stages
    for stage, of_stage in table.groupby("stage"):
        np.testing.assert_allclose(of_stage["spearman"], said("cascade", name, stage), atol=1e-4, err_msg=stage)


@pytest.mark.parametrize("name", asked.EXPLANATIONS)
def test_the_rise_of_complexity_is_quantus_s(model, case, name):
    images, targets, _, _ = case
    rise = fidelity.complexity_rise(model, images, targets, {name: METHODS[name]}, list(asked.layers(model)), [0])
    # A value that rounding moves from one bin to the next changes an entropy by less than a thousandth.
    np.testing.assert_allclose(rise["rise"], said("complexity_rise", name), atol=1e-3)
    assert rise["rise"].abs().max() > 0.01


@pytest.mark.parametrize("name", ["lesion", "random"])
def test_complexity_is_quantus_s_discrete_entropy(case, name):
    """Of a histogram of values, as eMPRT has it; Quantus's metric called Complexity is the entropy of a map's shares
    over the places."""
    _, _, maps, _ = case
    np.testing.assert_allclose(fidelity.complexity(asked.tied(maps[name]).numpy()), said("complexity", name), rtol=1e-6)


@pytest.mark.parametrize("name", asked.EXPLANATIONS)
def test_class_sensitivity_is_quantus_s_random_logit_where_there_are_two_classes(model, case, name):
    """Quantus draws the other class; here it is the second most likely one, the one that a reader would ask about."""
    images, _, _, _ = case
    np.testing.assert_allclose(
        fidelity.class_sensitivity(model, images, METHODS[name]), said("class_sensitivity", name), atol=1e-4
    )


def test_smoothed_maps_are_captums_smoothgrad(model, case, monkeypatch):
    """The mean over noisy copies, of many. Quantus's SmoothMPRT counts the image itself as one of the copies,
    and takes 50 with noise of a tenth of the image's range, where eight with a fixed noise serve here."""
    from captum.attr import InputXGradient, NoiseTunnel

    images, targets, _, _ = case
    images, targets = images[:1], targets[:1]
    monkeypatch.setattr(sanity, "NOISY", 400)
    gradient = InputXGradient(model)

    def method(_, shown, classes):
        return gradient.attribute(shown.requires_grad_(), target=classes).sum(dim=1).detach()

    ours = fidelity.smoothed(method)(model, images, targets)
    torch.manual_seed(0)
    captums = (
        NoiseTunnel(gradient)
        .attribute(images, "smoothgrad", nt_samples=400, stdevs=sanity.NOISE, target=targets)
        .sum(dim=1)
        .detach()
    )
    alone = method(model, images.clone(), targets)
    off = (ours - captums).flatten(1).norm(dim=1)
    assert off < 0.2 * (ours - alone).flatten(1).norm(dim=1), "one image is not its noisy copies"
