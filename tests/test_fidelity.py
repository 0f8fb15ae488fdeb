"""Every metric on cases with a known answer: an oracle map does best, its reverse worst, random ones land at chance."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from scipy.stats import kendalltau
from torch import nn

from kdnb import fidelity
from kdnb.datasets import load
from kdnb.evaluation import bootstrap_mean
from kdnb.explain import METHODS, blurred, control_seed
from kdnb.fidelity import perturb
from kdnb.fidelity.localise import mass_ratio, pixel_auc, pointing_game, rank_accuracy
from kdnb.models import StudentCNN, initialised
from kdnb.training import Examples, Recipe, fit

SIZE = 32


class Patch(nn.Module):
    """Knows two classes: "the eight pixels by eight at the top left are bright", or not."""

    def forward(self, images):
        evidence = 12 * (images[:, :, 4:12, 4:12].mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3)) - 0.35)
        return torch.stack([-evidence, evidence], dim=1)


@pytest.fixture(scope="module")
def case():
    """Images with a bright patch, the truth about the model, and maps that are right, reversed and random."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 + 0.2 * torch.rand(24, 3, SIZE, SIZE, generator=generator)
    images[:, :, 4:12, 4:12] += 0.6
    oracle = torch.zeros(24, SIZE, SIZE)
    oracle[:, 4:12, 4:12] = 1
    oracle += 1e-3 * torch.rand(oracle.shape, generator=generator)
    maps = {"oracle": oracle, "random": torch.rand(oracle.shape, generator=generator), "reversed": -oracle}
    targets = torch.ones(24, dtype=torch.int64)
    arrays = {"ids": np.array([f"image_{k}" for k in range(24)]), "classes": np.array(["a", "b"] * 12)}
    arrays |= {"groups": np.repeat(np.arange(12), 2).astype(str), "correct": np.ones(24, bool)}
    masks = (oracle > 0.5).numpy()
    return fidelity.Sample(images, targets, masks=masks, **arrays), maps


@pytest.fixture(scope="module")
def rows(case):
    sample, maps = case
    constant = {"reversed": METHODS["uniform"]}
    tables = [
        fidelity.fidelity_rows(Patch(), "patch", sample, maps, batch_size=7),
        fidelity.captum_rows(Patch(), "patch", sample, maps, constant),
    ]
    return pd.concat(tables, ignore_index=True)


# -- fidelity -------------------------------------------------------------------------------------------------------


def test_the_oracle_is_best_the_reverse_worst_and_random_between(rows):
    means = rows.groupby(["metric", "method"])["value"].mean().unstack()
    strict = (
        "deletion_blur",
        "deletion_mean",
        "insertion_blur",
        "insertion_mean",
        "road_most_first",
        "road_least_first",
        "infidelity",
    )
    assert set(strict) < set(means.index)
    for metric in strict:
        sign = -1 if metric in fidelity.LOWER_IS_BETTER else 1
        good, chance, bad = (sign * means.loc[metric, m] for m in ("oracle", "random", "reversed"))
        assert good > chance + 0.001, metric
        # Infidelity with its free factor cannot tell a map from its negative.
        assert metric == "infidelity" or chance > bad + 0.001, metric
    for share in ("05", "10", "20", "30", "05_mean", "10_mean", "10_road"):
        assert means.loc[f"agreement_{share}", "oracle"] >= means.loc[f"agreement_{share}", "random"]
    assert means.loc["agreement_10", "oracle"] == 1 and means.loc["agreement_30", "reversed"] == 0
    assert means.loc["average_drop", "oracle"] < means.loc["average_drop", "reversed"]


def test_random_maps_do_as_the_mean_over_random_orders(case):
    """Chance by another route: pixels deleted at random, all images at every share."""
    sample, maps = case
    scores = fidelity.deletion_insertion(
        Patch(), sample.images, sample.targets, fidelity.relevance_rank(maps["random"])
    )["deletion_mean"]
    generator, expected = torch.Generator().manual_seed(9), []
    for share in perturb.SHARES:
        gone = torch.rand(len(sample), 1, SIZE, SIZE, generator=generator) < share
        mixed = torch.where(gone, sample.images.mean(dim=(2, 3), keepdim=True), sample.images)
        expected.append(Patch()(mixed).softmax(dim=1)[:, 1])
    by_hand = np.trapezoid(torch.stack(expected).numpy(), perturb.SHARES, axis=0)
    _, lo, hi = bootstrap_mean(scores.numpy() - by_hand)
    assert lo - 0.005 <= 0 <= hi + 0.005


def test_the_rows_have_the_fixed_columns_and_do_not_depend_on_the_batch(case, rows):
    sample, maps = case
    assert list(rows.columns[:6]) == ["image_id", "class", "model", "method", "metric", "value"]
    assert not rows.duplicated(["image_id", "method", "metric"]).any() and rows["value"].notna().all()
    one_batch = fidelity.fidelity_rows(Patch(), "patch", sample, {"oracle": maps["oracle"]}, batch_size=24)
    same = rows[(rows["method"] == "oracle") & rows["metric"].str.match("deletion|insertion|agreement|average")]
    both = same.merge(one_batch, on=["image_id", "method", "metric"])
    assert len(both) == len(same)
    np.testing.assert_allclose(both["value_x"], both["value_y"], atol=1e-5)


def test_what_is_asked_of_every_image_is_what_the_sample_was_asked(case, rows):
    """Over both fills at 0 and 10%, batch by batch."""
    sample, maps = case
    cheap = fidelity.kept_rows(Patch(), "patch", sample, maps, batch_size=7)
    asked = {
        f"{what}_{share}{fill}"
        for what in ("agreement", "recovered")
        for share in ("00", "10")
        for fill in ("", "_mean")
    }
    assert set(cheap["metric"]) == asked
    keys = ["image_id", "class", "model", "group", "correct", "method", "metric"]
    both = cheap.merge(rows, on=keys, validate="one_to_one")
    assert (
        len(both) == len(cheap) == len(asked) * len(maps) * len(sample) and (both["value_x"] == both["value_y"]).all()
    )


def test_agreement_starts_with_nothing_kept_and_counts_only_what_was_lost(case):
    """Half of the images have no patch: what the model says of them it says of an empty image, too,
    and any map keeps it."""
    sample, maps = case
    images = sample.images.clone()
    images[::2, :, 4:12, 4:12] -= 0.6
    targets = Patch()(images).argmax(dim=1)
    assert targets.tolist() == [0, 1] * 12
    rows = {name: fidelity.relevance_rank(maps[name]) for name in ("oracle", "reversed")}
    by_ranking = {
        name: fidelity.deletion_insertion(Patch(), images, targets, r) | fidelity.road(Patch(), images, targets, r)
        for name, r in rows.items()
    }
    for end, shares in (("", ("05", "10")), ("_mean", ("05", "10")), ("_road", ("10",))):
        for scores in by_ranking.values():
            assert scores[f"agreement_00{end}"].tolist() == [1, 0] * 12
            assert scores[f"recovered_00{end}"][1::2].max() == 0 and scores[f"recovered_00{end}"][::2].isnan().all()
        for share in shares:
            assert by_ranking["reversed"][f"agreement_{share}{end}"].mean() == 0.5  # for nothing
            assert by_ranking["reversed"][f"recovered_{share}{end}"].nanmean() == 0
    assert by_ranking["oracle"]["recovered_10"].nanmean() == by_ranking["oracle"]["recovered_10_mean"].nanmean() == 1


def test_ranks_are_a_permutation_and_ties_are_broken_at_random():
    rank = fidelity.relevance_rank(torch.zeros(2, 8, 8))
    assert torch.equal(rank[0].flatten().sort().values, torch.arange(64) / 64)
    assert (rank[0] < 0.5)[:4].sum() < 32
    descending = torch.arange(64, 0, -1.0).view(1, 8, 8)
    assert torch.equal(fidelity.relevance_rank(descending)[0].flatten(), torch.arange(64) / 64)


def test_keeping_and_removing_half_of_the_area_by_hand():
    image, empty = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    mixed = perturb.composites(
        image, empty, fidelity.relevance_rank(torch.tensor([[[4.0, 1.0], [3.0, 2.0]]])), (0.0, 0.5, 1.0)
    )
    assert mixed[0, :, 0].tolist() == [[[0, 0], [0, 0]], [[1, 0], [1, 0]], [[1, 1], [1, 1]]]


def test_the_images_that_are_shown_are_those_that_the_metrics_ask_about(case):
    """One image carried through: the area under its curve is its insertion, and at 10% stands its agreement."""
    sample, maps = case
    model, images, targets, rank = (
        Patch(),
        sample.images[:1],
        sample.targets[:1],
        fidelity.relevance_rank(maps["random"][:1]),
    )
    kept = fidelity.kept_over_fills(images, rank)
    assert list(kept) == ["blur", "mean", "imputed"]
    assert all(strip.shape == (1, len(perturb.SHARES), 3, SIZE, SIZE) for strip in kept.values())
    assert all(torch.equal(strip[:, -1], images) for strip in kept.values()), "all is kept at the end"
    scores = fidelity.deletion_insertion(model, images, targets, rank) | fidelity.road(model, images, targets, rank)
    share = perturb.SHARES.index(perturb.ROAD_KEPT)
    for fill, suffix in {"blur": "", "mean": "_mean", "imputed": "_road"}.items():
        answers = model(kept[fill][0]).softmax(dim=1)
        assert (answers[0].argmax() == targets[0]) == scores[f"agreement_00{suffix}"].bool()
        assert (answers[share].argmax() == targets[0]) == scores[f"agreement_10{suffix}"].bool()
        if fill != "imputed":
            area = np.trapezoid(answers[:, targets[0]].numpy(), perturb.SHARES)
            assert scores[f"insertion_{fill}"].item() == pytest.approx(area, abs=1e-5)
    assert kept["imputed"].std(dim=(3, 4))[0, 0].max() == 0, "nothing to impute from: one colour"


def test_a_uniform_soft_mask_scores_perfectly_which_is_why_the_control_stands_there(case):
    sample, _ = case
    scores = fidelity.drop_increase(Patch(), sample.images, sample.targets, torch.ones(24, SIZE, SIZE))
    assert scores["average_drop"].max() == 0 and scores["average_increase"].max() == 0


def test_average_drop_and_increase_by_hand():
    """The map rescaled to [0, 1] is the mask: a half for the patch and all of the rest lowers p,
    the patch alone raises it."""
    images, targets = torch.full((2, 3, SIZE, SIZE), 0.2), torch.ones(2, dtype=torch.int64)
    images[:, :, 4:12, 4:12] = 0.8
    maps = torch.stack([torch.full((SIZE, SIZE), 3.0), torch.full((SIZE, SIZE), -1.0)])
    maps[0, 4:12, 4:12], maps[1, 4:12, 4:12], maps[0, 0, 0] = 2.0, 1.0, 1.0
    scores = fidelity.drop_increase(Patch(), images, targets, maps)
    share, corner = 64 / SIZE**2, 0.2 / SIZE**2  # the map's lowest pixel, which only the first image loses
    evidence = [
        patch - share * patch - (1 - share) * rest - 0.35 for patch, rest in ((0.8, 0.2), (0.4, 0.2), (0.8, 0.0))
    ]
    evidence[1] += corner
    untouched, lowered, raised = (1 / (1 + np.exp(-24 * value)) for value in evidence)
    assert lowered < untouched < raised
    np.testing.assert_allclose(scores["average_drop"], [(untouched - lowered) / untouched, 0], atol=1e-5)
    assert scores["average_increase"].tolist() == [0, 1]


def test_imputation_solves_the_linear_system():
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).cumsum(dim=2).cumsum(dim=3)
    images = images / images.amax(dim=(2, 3), keepdim=True)
    missing = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    missing[0, 5:26, 3:27] = True  # one large hole
    missing[1] = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(1)) < 0.8  # scattered
    imputed = fidelity.imputed(images, missing)
    for image, hole, filled in zip(images, missing, imputed, strict=True):
        error = (filled - _exact(image, hole)).abs()
        assert error[:, ~hole].max() == 0
        assert error[:, hole].mean() < 0.02 and error[:, hole].max() < 0.1


def _exact(image, hole):
    """Solve x_i = sum of w_ij x_j over the eight neighbours for all missing pixels at once
    (Rong et al. 2022, appendix)."""
    positions = np.flatnonzero(hole.numpy())
    number = {p: k for k, p in enumerate(positions)}
    matrix, right = scipy.sparse.lil_matrix((len(positions),) * 2), np.zeros((len(positions), 3))
    for k, p in enumerate(positions):
        for dy, dx in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)):
            y, x = p // SIZE + dy, p % SIZE + dx
            if 0 <= y < SIZE and 0 <= x < SIZE:
                weight = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
                matrix[k, k] += weight
                if y * SIZE + x in number:
                    matrix[k, number[y * SIZE + x]] -= weight
                else:
                    right[k] += weight * image[:, y, x].numpy()
    solved = image.clone().flatten(1)
    solved[:, positions] = torch.tensor(scipy.sparse.linalg.spsolve(matrix.tocsr(), right).T, dtype=torch.float32)
    return solved.view_as(image)


def test_infidelity_of_what_each_pixel_adds_to_a_linear_model_is_zero():
    class Linear(nn.Module):
        def forward(self, images):
            grey = images.mean(dim=1)
            return torch.stack([(grey * weights).sum(dim=(1, 2)), grey.sum(dim=(1, 2))], dim=1)

    generator = torch.Generator().manual_seed(0)
    weights, images = (
        torch.rand(SIZE, SIZE, generator=generator),
        torch.rand(3, 1, SIZE, SIZE, generator=generator).expand(-1, 3, -1, -1),
    )
    changes = fidelity.square_changes(Linear(), images, torch.zeros(3, dtype=torch.int64))
    detail = (images - blurred(images)).mean(dim=1)
    assert fidelity.infidelity(5 * weights * detail, *changes).max() < 1e-6  # each pixel's share of the logit's fall
    gradient = weights.expand(3, -1, -1).contiguous()
    assert fidelity.infidelity(gradient, *changes).min() > 1e-4, "its gradient is another thing"
    assert fidelity.infidelity(torch.rand(3, SIZE, SIZE, generator=generator), *changes).min() > 1e-4


def test_infidelity_is_captums_for_attributions_of_whole_pixels(case):
    """captum divides the change by it, for maps that hold it already: what is left is the mask.
    The same squares for both."""
    from captum.metrics import infidelity as captum_infidelity

    sample, maps = case
    corners, changes = fidelity.square_changes(Patch(), sample.images, sample.targets)
    draws, side = corners.shape[1], SIZE // 4
    place = torch.arange(SIZE)
    inside = (place >= corners[..., None]) & (place < corners[..., None] + side)  # (N, D, 2, SIZE)
    masks = (inside[:, :, 0, :, None] & inside[:, :, 1, None, :]).flatten(0, 1)[:, None].float().expand(-1, 3, -1, -1)

    def squares(inputs):
        assert len(inputs) == len(masks)
        empty = blurred(sample.images).repeat_interleave(draws, dim=0)
        return masks, torch.where(masks > 0, empty, inputs)

    for name in ("oracle", "random"):
        phi = maps[name][:, None].expand(-1, 3, -1, -1).contiguous()
        captums = captum_infidelity(
            Patch(), squares, sample.images, phi, target=sample.targets, n_perturb_samples=draws, normalize=True
        )
        torch.testing.assert_close(fidelity.infidelity(maps[name], corners, changes), captums, rtol=1e-3, atol=1e-6)


def test_infidelity_of_a_hundred_squares_is_nearly_that_of_another_hundred(case):
    """With ten the free factor fits part of the luck of the draw: a tenth of the value."""
    sample, maps = case
    drawn = [fidelity.square_changes(Patch(), sample.images, sample.targets, seed) for seed in range(5)]
    many = [float(fidelity.infidelity(maps["random"], *changes).mean()) for changes in drawn]
    few = [
        float(fidelity.infidelity(maps["random"], *(part[:, k : k + 10] for part in changes)).mean())
        for changes in drawn
        for k in range(0, 100, 10)
    ]
    assert max(many) < 1.25 * min(many) and np.mean(few) < 0.97 * np.mean(many)


def test_sensitivity_is_zero_for_a_constant_map_and_bounded_by_the_noise_for_the_image_itself(case):
    sample, _ = case
    assert fidelity.sensitivity_max(Patch(), sample.images, sample.targets, METHODS["uniform"]).max() == 0
    sensitivity = fidelity.sensitivity_max(
        Patch(), sample.images, sample.targets, lambda m, images, t: images.mean(dim=1)
    )
    bound = perturb.SENSITIVITY_RADIUS * SIZE / sample.images.mean(dim=1).flatten(1).norm(dim=1)
    assert (sensitivity > 0).all() and (sensitivity < bound).all()


def test_teacher_student_agreement_counts_equal_predictions():
    agreement = fidelity.teacher_student_agreement(
        np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[5.0, 1.0], [1.0, 0.0]])
    )
    assert agreement.tolist() == [1.0, 0.0]


# -- a judge that knows holes ---------------------------------------------------------------------------------------


def test_holes_are_squares_of_the_stated_share():
    missing = fidelity.holes(200, 48, 48, torch.full((200,), 0.3), torch.Generator().manual_seed(0))
    assert missing.float().mean().item() == pytest.approx(0.3, abs=0.01)
    squares = missing.view(200, 16, 3, 16, 3)
    assert (squares.amax(dim=(2, 4)) == squares.amin(dim=(2, 4))).all(), "whole squares of a sixteenth of the width"
    none = fidelity.holes(3, 48, 48, torch.zeros(3), torch.Generator().manual_seed(0))
    assert not none.any()


def test_f_fidelity_by_hand():
    """A patch decides: half of its squares removed tell, holes in the rest do not."""
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 4:12, 4:12] = 0.5
    rank = torch.ones(1, 32, 32)
    rank[:, 4:12, 4:12] = 0  # the first 6 % of the area, within every share
    targets = torch.ones(1, dtype=torch.int64)
    scores = fidelity.f_fidelity(Patch(), images, targets, rank)
    drawn = fidelity.holes(1, 32, 32, torch.full((1,), 0.5), torch.Generator().manual_seed(0))
    without = fidelity.holed(images, drawn & (rank < 0.1))
    fall = Patch()(images).softmax(1)[0, 1] - Patch()(without).softmax(1)[0, 1]
    torch.testing.assert_close(scores["ffid_plus"][0], fall)
    assert fall > 0.2 and scores["ffid_minus"].abs() < fall / 4


def test_f_fidelity_orders_oracle_random_and_reverse(case):
    sample, maps = case
    means = fidelity.judged_rows(Patch(), "patch", sample, maps).groupby(["metric", "method"])["value"].mean()
    assert means["ffid_plus", "oracle"] > means["ffid_plus", "random"] > means["ffid_plus", "reversed"]
    assert means["ffid_minus", "oracle"] < means["ffid_minus", "random"] < means["ffid_minus", "reversed"]


def test_the_judge_says_of_holed_images_what_the_network_said_of_whole_ones():
    data = load("phantom:certain", SIZE, phantom_images=320)
    train, validation = (
        Examples(data.images[data.index(part)], data.labels[data.index(part)]) for part in ("train", "val")
    )
    student = initialised(StudentCNN, 4, widths=(8, 16, 16, 32, 32), seed=0)
    recipe = Recipe(epochs=6, batch_size=32, views=1)
    fit(
        student,
        train,
        validation,
        recipe,
        lambda logits, _, labels: torch.nn.functional.cross_entropy(logits, labels),
        seed=0,
    )
    before = {name: value.clone() for name, value in student.state_dict().items()}
    judge = fidelity.holed_judge(student, train, validation, replace(recipe, epochs=4, learning_rate=1e-3))
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items()), (
        "the student itself stays as it is"
    )
    sample = fidelity.draw_sample(student, data, 20)
    assert (
        fidelity.stays(judge, sample.images, sample.targets)
        > fidelity.stays(student, sample.images, sample.targets) + 0.05
    )


def test_order_agreement_turns_metrics_that_are_better_when_lower():
    means = pd.DataFrame(
        {"insertion_blur": [3.0, 2, 1, 0], "deletion_blur": [0.0, 1, 2, 3], "ffid_plus": [3.0, 2, 0, 1]}, list("abcd")
    )
    tau = fidelity.order_agreement(means)
    assert tau.loc["insertion_blur", "deletion_blur"] == pytest.approx(1)
    assert tau.loc["insertion_blur", "ffid_plus"] == pytest.approx(kendalltau([3, 2, 1, 0], [3, 2, 0, 1]).statistic)


def test_places_count_from_the_best_and_tell_how_far_metrics_disagree():
    means = pd.DataFrame(
        {
            "insertion_mean": [3.0, 2, 2, 0],
            "deletion_mean": [0.3, 0.1, 0.2, 0.5],
            "road_least_first": [1.0, np.nan, 2, 0],
        },
        list("abcd"),
    )
    places = fidelity.ranks(means)
    assert places.loc["a", ["insertion_mean", "deletion_mean", "road_least_first"]].tolist() == [1, 3, 2]
    assert places["insertion_mean"].to_dict() == {"a": 1, "b": 2, "c": 2, "d": 4}, "equals share the better place"
    assert places.loc["b", ["best", "worst", "mean"]].tolist() == [1, 2, 1.5], "over the metrics that judge it"
    assert list(places.index) == ["b", "c", "a", "d"] and places.loc["d", "best"] == 3


def _values(method, metric, images, value=0.5):
    return pd.DataFrame(
        {"image_id": [f"i{k}" for k in images], "model": "m", "method": method, "metric": metric, "value": value}
    )


def test_methods_are_compared_on_images_that_all_of_them_have():
    """A cheap method judged on easy images, too, is no better than a dear one that was not asked about them."""
    rows = pd.concat(
        [
            _values("cheap", "insertion_mean", range(4), [0.5, 0.5, 1, 1]),
            _values("dear", "insertion_mean", (1, 0)),
            _values("cheap", "average_drop", range(4)),
        ]
    )
    shared = fidelity.on_same_images(rows)
    means = shared.groupby(["metric", "method"])["value"].agg(["mean", "size"])
    assert means.loc[("insertion_mean", "cheap")].tolist() == means.loc[("insertion_mean", "dear")].tolist() == [0.5, 2]
    assert means.loc[("average_drop", "cheap"), "size"] == 4, "nobody else was asked by that metric"
    other = rows.assign(model="teacher").query("image_id == 'i3'")
    assert len(fidelity.on_same_images(pd.concat([rows, other]))) == len(shared) + len(other), "models share no images"


def test_integrated_gradients_are_not_judged_by_the_blur_from_which_they_start(rows):
    of_blur = {"insertion_blur", "deletion_blur", "infidelity"}
    of_blur |= {name for name in rows["metric"].unique() if name[:4] in ("agre", "reco") and name[-1].isdigit()}
    both = pd.concat([rows.assign(method=method) for method in ("integrated_gradients_signed", "shap")])
    left = fidelity.off_own_fill(both).groupby("method")["metric"].unique().map(set)
    assert left["shap"] == set(rows["metric"])
    assert set(rows["metric"]) - left["integrated_gradients_signed"] == of_blur
    assert {"agreement_10", "recovered_05", "agreement_10_mean", "recovered_10_road"} <= set(rows["metric"])


def test_a_yardstick_tells_an_explanation_from_every_map_that_knows_nothing(rows, case):
    sample, maps = case
    flat = fidelity.fidelity_rows(Patch(), "patch", sample, {"uniform": torch.ones_like(maps["random"])})
    drop = flat[flat["metric"] == "average_drop"].assign(metric="broken", value=0.0)
    broken = [drop.assign(method=method) for method in ("oracle", "reversed", "random", "uniform")]
    table = fidelity.told_from(
        pd.concat([rows, flat, *broken]),
        ["oracle", "reversed", "never asked"],
        ["random", "uniform"],
        ["insertion_mean", "deletion_mean", "broken"],
        samples=200,
    )
    assert table["oracle"].tolist() == [True, True, False], "lower is better in the second; the third tells nothing"
    assert not table[["reversed", "never asked"]].any(axis=None)


# -- localisation ---------------------------------------------------------------------------------------------------


def test_localisation_of_oracle_reverse_and_uniform(case):
    sample, maps = case
    share = sample.masks[0].mean()
    values = {
        name: fidelity.localisation(m.numpy(), fidelity.relevance_rank(m).numpy(), sample.masks)
        for name, m in maps.items()
    }
    values["uniform"] = fidelity.localisation(
        np.ones_like(sample.masks, float), fidelity.relevance_rank(torch.ones(24, SIZE, SIZE)).numpy(), sample.masks
    )
    assert (values["oracle"]["pointing_game"] == 1).all() and (values["reversed"]["pointing_game"] == 0).all()
    assert (values["oracle"]["rank_accuracy"] == 1).all() and (values["reversed"]["rank_accuracy"] == 0).all()
    np.testing.assert_allclose(values["oracle"]["pixel_auc"], 1)
    np.testing.assert_allclose(values["reversed"]["pixel_auc"], 0)
    assert (values["oracle"]["mass_ratio"] > 0.9 / share).all() and (values["reversed"]["mass_ratio"] < 0.01).all()
    np.testing.assert_allclose(values["uniform"]["mass_ratio"], 1)
    np.testing.assert_allclose(values["uniform"]["pixel_auc"], 0.5)
    np.testing.assert_allclose(values["uniform"]["pointing_game"], share)


def test_random_maps_localise_at_chance_within_their_interval():
    rng = np.random.default_rng(0)
    maps, masks = rng.random((400, 16, 16)), np.zeros((400, 16, 16), bool)
    masks[:, 2:7, 3:9] = True
    ranks = fidelity.relevance_rank(torch.from_numpy(maps)).numpy()
    share = masks[0].mean()
    for values, chance in (
        (pointing_game(maps, masks), share),
        (mass_ratio(maps, masks), 1),
        (rank_accuracy(ranks, masks), share),
        (pixel_auc(maps, masks), 0.5),
    ):
        _, lo, hi = bootstrap_mean(values)
        assert lo <= chance <= hi


def test_pixel_auc_agrees_with_scikit_learn_ties_included():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    maps, masks = rng.integers(0, 5, (6, 12, 12)).astype(float), rng.random((6, 12, 12)) < 0.2
    expected = [roc_auc_score(mask.ravel(), values.ravel()) for mask, values in zip(masks, maps, strict=True)]
    np.testing.assert_allclose(pixel_auc(maps, masks), expected)


def test_empty_and_full_masks_are_undefined_and_counted(case):
    sample, maps = case
    masks = sample.masks.copy()
    masks[:3], masks[3] = False, True
    rows = fidelity.localisation_rows("patch", sample, {"oracle": maps["oracle"]}, masks)
    table = fidelity.summary(rows, samples=50)
    assert (rows.groupby("metric")["value"].apply(lambda v: v.isna().sum()) == 4).all()
    overall = table[table["class"] == "all"]
    assert (overall["undefined"] == 4).all() and (overall["n"] == 20).all()
    assert (overall.set_index("metric")["mean"][["pointing_game", "pixel_auc"]] == 1).all()


# -- sanity ---------------------------------------------------------------------------------------------------------


def test_spearman_agrees_with_scipy():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (3, 5, 5)).astype(float), rng.random((3, 5, 5))
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(fidelity.spearman(a, b), expected)
    assert np.isnan(fidelity.spearman(np.ones((1, 5, 5)), b[:1])).all()


def test_cascade_breaks_what_depends_on_the_weights_and_nothing_else():
    student = initialised(StudentCNN, 2, (8, 8, 8), seed=3).eval()
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    chosen = {name: METHODS[name] for name in ("sobel", "feature_maps_mean")}
    before = {name: value.clone() for name, value in student.state_dict().items()}
    table = fidelity.cascade(
        student, images, torch.zeros(3, dtype=torch.int64), chosen, ("classifier", "features.2", "features.0")
    )
    assert len(table) == 3 * 2 * 3
    means = table.groupby(["method", "order"])["spearman"].mean()
    assert (means["sobel"].round(6) == 1).all()
    assert means["feature_maps_mean"][1] == pytest.approx(1)  # average maps do not know of the classifier
    assert means["feature_maps_mean"][3] < 0.9
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_the_cascade_over_several_networks_is_not_that_of_the_students_own_start():
    """The last stage with the student's own seed is where it began:
    the maps of that network resemble its own more than others' do."""
    start = initialised(StudentCNN, 2, (8, 8, 8), seed=3).eval()
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    seeds = [control_seed(0, draw) for draw in range(10)]
    stages = ("classifier", "features.2", "features.1", "features.0")
    chosen = {name: METHODS[name] for name in ("feature_maps_mean", "sobel")}
    table = fidelity.cascade(start, images, torch.zeros(3, dtype=torch.int64), chosen, stages, seeds)
    assert len(table) == 4 * 2 * 10 * 3
    means = fidelity.of_draws(table).set_index(["method", "stage"])
    last = means.loc[("feature_maps_mean", "features.0")]
    of_networks = (
        table.query("method == 'feature_maps_mean' and stage == 'features.0'").groupby("draw")["spearman"].mean()
    )
    assert (
        last["n"] == 10
        and last["lowest"] == of_networks.min() < last["spearman"] < last["highest"] == of_networks.max()
    )
    assert last["spearman"] == pytest.approx(of_networks.mean())
    own = fidelity.cascade(start, images, torch.zeros(3, dtype=torch.int64), chosen, stages, [3]).query(
        "stage == 'features.0'"
    )
    assert own.query("method == 'feature_maps_mean'")["spearman"].mean() > last["highest"]
    assert means.loc[("sobel", "features.0"), "lowest"] == pytest.approx(1)


def test_smoothed_maps_are_the_mean_over_noisy_copies():
    images, targets = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1])
    smooth = fidelity.smoothed(lambda model, x, t: x.mean(dim=1) + 10 * t[:, None, None])(None, images, targets)
    expected = images.mean(dim=1) + 10 * targets[:, None, None]
    assert smooth.shape == (3, 16, 16) and (smooth - expected).abs().max() < 0.06, (
        "each image keeps its own target; noise averages out"
    )


def test_complexity_is_the_entropy_of_the_values_and_rises_from_a_definite_map_to_noise():
    definite = np.zeros((1, 20, 20))
    definite[0, :10] = 1
    assert fidelity.complexity(definite)[0] == pytest.approx(np.log(2)), "two equal bins"
    even = np.linspace(0, 1, 400).reshape(1, 20, 20)
    assert fidelity.complexity(even)[0] == pytest.approx(np.log(100)), "all bins equally full"

    model = initialised(StudentCNN, 2, widths=(4, 8), seed=0)
    images, targets = (
        torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.zeros(4, dtype=torch.int64),
    )
    first = next(model.parameters()).clone()

    def definite_if_trained(network, x, t):
        half = torch.zeros(len(x), 16, 16)
        half[:, :8] = 1
        return half if torch.equal(next(network.parameters()), first) else x.mean(dim=1)

    chosen = {
        "learned": definite_if_trained,
        "blind": lambda network, x, t: x.mean(dim=1),
        "uniform": METHODS["uniform"],
    }
    rise = fidelity.complexity_rise(model, images, targets, chosen, ["features", "classifier"], [5, 6])
    means = rise.groupby("method")["rise"].mean()
    assert means["learned"] > 1 and means["blind"] == 0 and np.isnan(means["uniform"])


def test_class_sensitivity_of_a_map_that_ignores_the_class_is_one():
    student = initialised(StudentCNN, 3, (8, 8, 8), seed=3).eval()
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(fidelity.class_sensitivity(student, images, METHODS["feature_maps_mean"]), 1, rtol=1e-6)


def test_class_sensitivity_does_not_depend_on_the_batch():
    student = initialised(StudentCNN, 3, (8, 8, 8), seed=3).eval()
    images = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    at_once, in_parts = (fidelity.class_sensitivity(student, images, METHODS["grad_cam"], size) for size in (5, 2))
    assert len(np.unique(at_once)) > 1
    np.testing.assert_allclose(in_parts, at_once, atol=1e-3)


def test_the_reader_learns_from_maps_that_tell_and_not_from_noise():
    rng = np.random.default_rng(0)
    decisions = rng.integers(0, 2, 400)
    maps = torch.from_numpy(rng.random((400, 16, 16)))
    alone = np.arange(400)
    noise = fidelity.reader_hits(fidelity.reader_features([maps], 4), decisions, alone)
    maps[decisions == 1, :4, :4] += 1
    assert fidelity.reader_hits(fidelity.reader_features([maps, maps], 4), decisions, alone).mean() > 0.95
    assert noise.mean() < 0.6
    assert np.isnan(fidelity.reader_hits(fidelity.reader_features([maps], 4), np.zeros(400, int), alone)).all()


def test_the_reader_cannot_recognise_a_person_across_folds():
    """A hundred persons of four images, each with a face and one decision:
    who knows the face knows the decision, and nobody else does."""
    rng = np.random.default_rng(0)
    persons = np.repeat(np.arange(100), 4)
    decisions = rng.permutation(100)[persons] % 2
    features = rng.normal(size=(100, 200))[persons] + 0.1 * rng.normal(size=(400, 200))
    assert fidelity.reader_hits(features, decisions, np.arange(400)).mean() > 0.9
    assert fidelity.reader_hits(features, decisions, persons).mean() < 0.6


def test_the_reader_leaves_out_a_decision_of_few_persons():
    features, decisions = np.random.default_rng(0).normal(size=(60, 3)), np.repeat([0, 1, 2], 20)
    persons = np.r_[np.arange(40), np.full(20, 99)]  # all of the last decision are one person's
    assert np.isnan(fidelity.reader_hits(features, decisions, persons)).tolist() == [False] * 40 + [True] * 20


# -- tables ---------------------------------------------------------------------------------------------------------


def test_summary_has_a_row_a_class_method_and_metric(rows):
    table = fidelity.summary(rows, samples=50)
    assert list(table.columns[:8]) == ["class", "model", "method", "metric", "mean", "lo", "hi", "n"]
    assert len(table) == 3 * (3 * (rows["metric"].nunique() - 1) + 1)  # sensitivity of one method only
    assert (table["lo"] <= table["mean"] + 1e-9).all() and (table["mean"] <= table["hi"] + 1e-9).all()


def test_a_summary_over_all_classes_alone_is_that_part_of_the_whole(rows):
    whole, part = (fidelity.summary(rows, 50, by_class=by_class) for by_class in (True, False))
    pd.testing.assert_frame_equal(part, whole[whole["class"] == "all"].reset_index(drop=True))


def test_a_ratio_has_no_upper_bound_under_any_name(case):
    """The marker of a planted shortcut has its own names, and its interval ended at 1 whatever its mean."""
    sample, maps = case
    rows = fidelity.localisation_rows("patch", sample, {"oracle": maps["oracle"]}, sample.masks, "_shortcut")
    row = fidelity.summary(rows, 50).query("`class` == 'all' and metric == 'mass_ratio_shortcut'").iloc[0]
    assert row["lo"] <= row["mean"] <= row["hi"] and row["mean"] > 10


def test_a_class_called_all_has_its_own_row_and_counts_once(rows):
    plain = fidelity.summary(rows, samples=50).set_index(["class", "method", "metric"])
    called = fidelity.summary(rows.assign(**{"class": rows["class"].replace("a", "all")}), samples=50).set_index(
        ["class", "method", "metric"]
    )
    assert called.loc["all"].equals(plain.loc["all"]) and called.loc["all (class)"].equals(plain.loc["a"])
    tests = fidelity.paired(
        called_rows := rows.replace({"class": {"a": "all"}}),
        "?",
        [("oracle", "random")],
        ["deletion_mean"],
        by_class=True,
    )
    assert (
        list(tests["class"]) == ["all", "all (class)", "b"]
        and list(tests["n"]) == [24, 12, 12]
        and set(called_rows["class"]) == {"all", "b"}
    )


def test_paired_tests_agree_with_scipy_and_correct_for_their_number(rows):
    from scipy.stats import ttest_rel, wilcoxon

    table = fidelity.paired(
        rows, "which map?", [("oracle", "random"), ("oracle", "absent")], ["deletion_mean"], by_class=True, samples=50
    )
    assert list(table["class"]) == ["all", "a", "b"] and list(table["n"]) == [24, 12, 12]
    of_images = rows[rows["metric"] == "deletion_mean"].pivot(
        index=["image_id", "group"], columns="method", values="value"
    )
    wide = of_images.groupby("group").mean()  # groups of one size: counting them is a t-test on their means
    assert len(wide) < len(of_images)
    assert table["p"][0] == pytest.approx(ttest_rel(wide["oracle"], wide["random"]).pvalue)
    assert table["p_wilcoxon"][0] == pytest.approx(wilcoxon(wide["oracle"], wide["random"]).pvalue)
    assert (table["p_holm"] >= table["p"]).all() and table["p_holm"].max() <= 3 * table["p"].max() + 1e-12
    assert (table["better"] == "oracle").all() and (table["difference"] < 0).all() and (table["cohens_d"] < 0).all()


def test_equal_methods_are_called_equal_and_not_tested(rows):
    twin = rows[rows["method"] == "oracle"].assign(method="twin")
    table = fidelity.paired(pd.concat([rows, twin]), "twins", [("oracle", "twin")], ["deletion_mean"], samples=50)
    assert table["better"][0] == "equal" and np.isnan(table["p"][0]) and np.isnan(table["p_holm"][0])


def test_a_class_without_a_defined_value_is_called_undefined(rows):
    """As ``recovered_q`` of the class that an emptied image is taken for."""
    part = rows[rows["metric"] == "recovered_10"]
    part = part.assign(value=part["value"].where(part["class"] == "b"))
    table = fidelity.paired(part, "?", [("oracle", "reversed")], ["recovered_10"], by_class=True, samples=50).set_index(
        "class"
    )
    assert list(table.index) == ["all", "a", "b"] and list(table["n"]) == [12, 0, 12]
    assert list(table["better"]) == ["oracle", "undefined", "oracle"] and np.isnan(table.loc["a", "difference"])


def test_head_takes_the_first_of_each_class(case):
    sample, _ = case
    assert list(sample.head(2).ids) == ["image_0", "image_1", "image_2", "image_3"]
    assert sample.head(2).masks.shape == (4, SIZE, SIZE)


def test_a_sample_says_on_how_many_images_truth_can_be_measured(case):
    """One mask in the whole set belongs to a training image, say: then these have none, though the set does."""
    sample, _ = case
    masks = np.zeros((len(sample), 4, 4), bool)
    masks[:3, 0, 0] = True
    correct = np.arange(len(sample)) != 1
    assert (
        replace(sample, masks=masks, correct=correct).marked()
        == f"3 of these {len(sample)} images have a mask with a lesion, 2 of them read rightly"
    )
    for none in (masks & False, None):
        assert (
            replace(sample, masks=none, correct=correct)
            .marked()
            .startswith(f"0 of these {len(sample)} images have a mask with a lesion, 0 ")
        )


def test_side_by_side_tells_a_right_map_from_a_wrong_one_image_by_image(case):
    sample, maps = case
    table = fidelity.side_by_side(Patch(), sample, {"oracle": maps["oracle"], "reversed": maps["reversed"]})
    assert list(table["image_id"]) == list(sample.ids) and list(table["class"]) == list(sample.classes)
    np.testing.assert_allclose(table["spearman"], -1, rtol=1e-6)
    assert (table["overlap"] == 0).all() and (table["oracle_keeps"] == 1).all() and (table["reversed_keeps"] == 0).all()
    assert (table["nothing_keeps"] == 0).all()
    same = fidelity.side_by_side(Patch(), sample, {"a": maps["oracle"], "b": 2 * maps["oracle"]})
    np.testing.assert_allclose(same["spearman"], 1, rtol=1e-6)
    assert (same["overlap"] == 1).all()
    other = torch.rand(maps["random"].shape, generator=torch.Generator().manual_seed(5))
    chance = fidelity.side_by_side(Patch(), sample, {"a": maps["random"], "b": other})["overlap"]
    assert chance.mean() == pytest.approx(0.1 / 1.9, abs=0.01)
    flat = fidelity.side_by_side(Patch(), sample, {"a": maps["oracle"], "flat": torch.ones(24, SIZE, SIZE)})
    assert flat["spearman"].isna().all() and flat["overlap"].notna().all()


def test_a_control_of_many_draws_has_the_mean_infidelity_of_its_draws(case):
    sample, maps = case
    drawn = [{"random": maps["random"]}, {"random": maps["oracle"]}]
    table = fidelity.captum_rows(Patch(), "patch", sample, {"oracle": maps["oracle"]}, {}, drawn).set_index(
        ["image_id", "method"]
    )["value"]
    changes = fidelity.square_changes(Patch(), sample.images, sample.targets)
    expected = torch.stack([fidelity.infidelity(draw["random"], *changes) for draw in drawn]).mean(dim=0)
    np.testing.assert_allclose(table.xs("random", level="method")[sample.ids], expected, rtol=1e-5)
    assert len(table) == 48


def test_a_control_of_many_draws_scores_their_mean_image_by_image():
    rows = pd.DataFrame({"image_id": ["a", "b"], "metric": "m", "method": "random", "value": [0.0, np.nan]})
    other = rows.assign(value=[1.0, 3.0])
    means = fidelity.over_draws([rows, other])
    assert (
        list(means) == list(rows) and means["image_id"].tolist() == ["a", "b"] and means["value"].tolist() == [0.5, 3.0]
    )
