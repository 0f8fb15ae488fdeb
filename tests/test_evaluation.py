"""Scores and intervals against scikit-learn, by hand, and in coverage."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score, recall_score
from statsmodels.stats.multitest import multipletests

from kdnb import evaluation, models


def case(seed: int = 0, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    return labels, rng.normal(size=(count, 4)) + 1.2 * np.eye(4)[labels]


def test_scores_agree_with_scikit_learn():
    labels, logits = case()
    predicted = logits.argmax(1)
    scores = evaluation.classification_scores(labels, logits)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert scores["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert scores["accuracy_lo"] < scores["accuracy"] < scores["accuracy_hi"]
    table = evaluation.per_class_scores(labels, logits, list("abcd"))
    np.testing.assert_allclose(table["precision"], precision_score(labels, predicted, average=None))
    np.testing.assert_allclose(table["recall"], recall_score(labels, predicted, average=None))
    np.testing.assert_allclose(table["f1"], f1_score(labels, predicted, average=None))
    np.testing.assert_allclose(table["specificity"], [recall_score(labels != k, predicted != k) for k in range(4)])


def test_brier_and_calibration_by_hand():
    labels, probabilities = np.array([0, 1]), np.array([[0.8, 0.2], [0.6, 0.4]])
    assert evaluation.brier_score(labels, probabilities) == pytest.approx((0.04 + 0.04 + 0.36 + 0.36) / 2)
    # Confidences .8 (right) and .6 (wrong) fall into two bins: (|1 - .8| + |0 - .6|) / 2.
    assert evaluation.expected_calibration_error(labels, probabilities, 10) == pytest.approx(0.4)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        values = rng.normal(size=60)
        _, lo, hi = evaluation.bootstrap_mean(values, samples=400, seed=trial)
        covered += lo <= 0 <= hi
    assert 0.88 < covered / 300 < 0.985


def test_groups_widen_the_interval_when_images_repeat_each_other():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=30), 10)
    _, lo, hi = evaluation.bootstrap_mean(values)
    _, wide_lo, wide_hi = evaluation.bootstrap_mean(values, np.repeat(np.arange(30), 10))
    assert wide_hi - wide_lo > 2 * (hi - lo)


def test_undefined_values_are_left_out():
    assert evaluation.bootstrap_mean(np.array([1.0, np.nan, 3.0]))[0] == 2
    assert np.isnan(evaluation.bootstrap_mean(np.array([np.nan]))[0])


@pytest.mark.parametrize("groups", [2, 3, 5, 8, 15])
def test_an_interval_of_few_groups_covers_the_truth_as_often_as_it_says(groups):
    rng = np.random.default_rng(2)
    drawn = rng.normal(size=(400, groups))
    covered = [
        lo <= 0 <= hi
        for _, lo, hi in (evaluation.bootstrap_mean(values, samples=1000, seed=k) for k, values in enumerate(drawn))
    ]
    assert np.mean(covered) > 0.92  # the plain percentiles cover .50, .75, .81, .87 and .91


def test_an_interval_of_very_few_stays_within_what_can_be():
    # Two images, one right and one wrong, say nothing about the others.
    assert evaluation.bootstrap_mean(np.array([0.0, 1.0]), bounds=(0, 1)) == pytest.approx((0.5, 0, 1))


def test_one_group_says_nothing_of_others():
    assert np.isnan(evaluation.bootstrap_mean(np.array([0.4, 0.6]), np.array(["a", "a"]))[1:]).all()
    table = evaluation.known_and_new(
        np.array([1.0, 0.0, 1.0, 1.0]), np.array(["a", "a", "b", "c"]), np.array(["a"])
    ).set_index("part")
    assert table.loc[["known", "new minus known"], ["lo", "hi"]].isna().all(axis=None) and table.loc["new", "lo"] < 1


def test_images_that_are_all_right_leave_room_for_others():
    # All of 8 are right: a share of .369 of wrong ones would have shown none with a probability of 2.5%.
    labels = np.array([0, 1] * 4)
    scores = evaluation.classification_scores(labels, np.eye(2)[labels])
    assert (scores["accuracy"], scores["accuracy_hi"]) == (1, 1) and scores["accuracy_lo"] == pytest.approx(
        0.025 ** (1 / 8)
    )
    assert stats.binomtest(8, 8).proportion_ci().low == pytest.approx(scores["accuracy_lo"])
    assert scores["f1_macro_lo"] < 1
    hits = np.ones((2, 8), bool)
    of_seeds = evaluation.compare_over_seeds("q", "a", "b", hits, hits, np.arange(8))
    for row in (evaluation.compare("q", "a", "b", hits[0], hits[0]), of_seeds):
        assert (row["lo"], row["hi"], row["p"]) == (
            pytest.approx(0.025 ** (1 / 8) - 1),
            pytest.approx(1 - 0.025 ** (1 / 8)),
            1,
        )
    large = evaluation.compare_over_seeds(
        "q", "a", "b", np.ones((2, 2000), bool), np.ones((2, 2000), bool), np.arange(2000)
    )
    assert 0 < large["hi"] < 0.002


@pytest.mark.parametrize("images", [24, 64, 100, 300])
def test_near_ties_do_not_decide_at_the_margin(images):
    # One network alone is wrong on 5% of the images, the other never:
    # how often is it said to be less than five points behind?
    worse = np.random.default_rng(3).random((400, images)) < 0.05
    of_one_seed = [evaluation.bootstrap_mean(-1.0 * draw, samples=300, bounds=(-1, 1))[1] > -0.05 for draw in worse]
    right = np.ones((3, images))
    seeds = [
        evaluation.compare_over_seeds("q", "a", "b", right - draw, right, np.arange(images))["lo"] > -0.05
        for draw in worse[:, None]
    ]
    # 2.5% promised, 5 at most of so few differences; it was 12% of 64.
    assert np.mean(of_one_seed) < 0.06 and np.mean(seeds) < 0.06


def test_accuracy_near_one_is_covered_as_often_as_promised():
    # 60 persons of six images; of six in a hundred persons one image is wrong: accuracy is .99.
    rng = np.random.default_rng(4)
    persons, labels = np.repeat(np.arange(60), 6), np.tile([0, 1], 180)
    covered: dict[str, list[bool]] = {"accuracy": [], "new": [], "new minus known": []}
    for _ in range(200):
        wrong = np.where(rng.random(60) < 0.06, rng.integers(0, 6, 60), -1)
        hits = np.arange(360) % 6 != wrong[persons]
        scores = evaluation.classification_scores(labels, np.eye(2)[np.where(hits, labels, 1 - labels)], persons)
        covered["accuracy"].append(scores["accuracy_lo"] <= 0.99 <= scores["accuracy_hi"])
        # Of as many persons that training knows all are right.
        table = evaluation.known_and_new(
            np.concatenate([np.ones(360), hits]), np.concatenate([persons + 60, persons]), np.arange(60, 120)
        ).set_index("part")
        for part, truth in (("new", 0.99), ("new minus known", -0.01)):
            covered[part].append(table.loc[part, "lo"] <= truth <= table.loc[part, "hi"])
    shares = {name: np.mean(values) for name, values in covered.items()}
    assert all(share > 0.94 for share in shares.values()), shares  # without the rule of ties .89 and less


def test_no_resample_lacks_a_class_that_has_few_persons():
    # 12, 12 and 2 persons of four images each; those of the last, and one other, are taken for another class:
    # F1 of the last is always 0.
    labels, persons = np.repeat([0] * 12 + [1] * 12 + [2] * 2, 4), np.repeat(np.arange(26), 4)
    predicted = np.where((labels == 2) | (persons == 12), 0, labels)
    scores = evaluation.classification_scores(labels, np.eye(3)[predicted], persons)
    assert scores["f1_macro_lo"] < scores["f1_macro"] < scores["f1_macro_hi"] < 2 / 3, (
        "of resamples without the class it could be 1"
    )


def test_groups_drawn_within_strata_spread_as_much_as_they_are_few():
    drawn = evaluation._resamples_within((0, 0, 1, 1, 1, 1, 2), 20000, 0)
    for members in ([0, 1], [2, 3, 4, 5], [6]):
        assert (drawn[:, members].sum(axis=1).round(9) == len(members)).all(), "every stratum counts for what it has"
    values, few = np.array([0.0, 2.0, 5.0, 1.0]), drawn[:, 2:6]
    assert (few @ values / 4).var() == pytest.approx(values.var(ddof=1) / 4, rel=0.05), (
        "the variance of a mean, not (G - 1) / G of it"
    )


def test_no_difference_of_accuracies_is_larger_than_one():
    a, b = np.array([[1, 1, 1, 1], [1, 0, 0, 1]], bool), np.zeros((2, 4), bool)
    row = evaluation.compare_over_seeds("q", "a", "b", a, b, np.arange(4))
    assert -1 <= row["lo"] < row["difference"] < row["hi"] == 1
    gains = evaluation.compare_over_seeds("q", "a", "b", 1.0 * a, -1.0 * a, np.arange(4))
    assert 1 < gains["hi"] <= 2


def test_mcnemar_by_hand():
    # Five discordant pairs, all in favour of a: two-sided binomial p = 2 / 2^5.
    a, b = np.array([True] * 10), np.array([False] * 5 + [True] * 5)
    assert evaluation.mcnemar(a, b) == pytest.approx(2 / 32)
    assert evaluation.mcnemar(a, a) == 1.0


def test_flipping_groups_of_one_image_is_mcnemars_test():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.random((2, 30)) < 0.8
        assert evaluation.sign_flip(a, b) == pytest.approx(evaluation.mcnemar(a, b))


def test_flipping_groups_by_hand():
    # Three persons: +3, +1 and -1 images. Of the eight signed sums 3, 5, 3, 1 and their negatives,
    # six are at least 3 in size.
    a, b = np.array([1, 1, 1, 1, 0], bool), np.array([0, 0, 0, 0, 1], bool)
    groups = np.array([0, 0, 0, 1, 2])
    assert evaluation.sign_flip(a, b, groups) == pytest.approx(6 / 8)
    row = evaluation.compare("q", "a", "b", a, b, groups)
    assert row["p"] == pytest.approx(6 / 8) and row["p_images_only"] == pytest.approx(evaluation.mcnemar(a, b))


def test_holm_by_hand_and_with_undefined_tests():
    np.testing.assert_allclose(evaluation.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    adjusted = evaluation.holm([0.01, np.nan, 0.04])
    np.testing.assert_allclose(adjusted[[0, 2]], [0.02, 0.04])
    assert np.isnan(adjusted[1])


def test_holm_of_many_families_at_once_is_that_of_statsmodels():
    p = np.random.default_rng(0).random((20, 6)) ** 3
    np.testing.assert_allclose(evaluation.holm(p), [multipletests(family, method="holm")[1] for family in p])
    assert evaluation.holm([]).shape == (0,) and np.isnan(evaluation.holm([np.nan])).all()


def test_holm_is_applied_within_a_question():
    hits = np.array([True] * 8 + [False] * 2)
    rows = [
        evaluation.compare("q", "a", "b", hits, ~hits),
        evaluation.compare("q", "a", "c", hits, hits),
        evaluation.compare("r", "a", "b", hits, ~hits),
    ]
    table = evaluation.with_holm(rows)
    assert table["p_holm"].iloc[0] == pytest.approx(2 * table["p"].iloc[0])
    assert table["p_holm"].iloc[2] == pytest.approx(table["p"].iloc[2])


def test_compare_over_seeds_by_hand():
    # Two seeds, four images, each its own group. d = [[1, 1, 0, 0], [1, 0, 0, 0]]: means over seeds .5 and .25,
    # over images 1, .5, 0, 0. se^2 = (.03125 / 2) + (.22917 / 4) = .0729; t = .375 / .2700 = 1.389.
    a, b = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool), np.zeros((2, 4), bool)
    row = evaluation.compare_over_seeds("q", "a", "b", a, b, np.arange(4))
    assert row["difference"] == pytest.approx(0.375)
    half = row["difference"] - row["lo"]
    assert row["hi"] == 1  # of accuracies no difference is larger
    seeds, images = 0.03125 / 2, 0.2291667 / 4
    freedom = (seeds + images) ** 2 / (seeds**2 / 1 + images**2 / 3)
    assert half == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(seeds + images), rel=1e-5)
    assert row["p_images_only"] == pytest.approx(stats.ttest_1samp([1, 0.5, 0, 0], 0).pvalue)
    assert evaluation.compare_over_seeds("q", "a", "a", a, a, np.arange(4))["p"] == 1.0


def test_compare_over_seeds_weighs_a_group_by_its_images():
    # Three groups of 4, 1 and 1 images, of which a gets 2, 1 and 0 right and b none:
    # d = .5; shares times d(g) - d: 0, 1/12, -1/12.
    a = np.array([[1, 1, 0, 0, 1, 0]], bool)
    groups = np.array([0, 0, 0, 0, 1, 2])
    row = evaluation.compare_over_seeds("q", "a", "b", a, np.zeros((1, 6), bool), groups)
    error = np.sqrt(3 / 2 * 2 / 12**2)
    assert (row["difference"], 0.5 - row["lo"]) == pytest.approx((0.5, stats.t.ppf(0.975, 2) * error))
    assert row["p_images_only"] == pytest.approx(2 * stats.t.sf(0.5 / error, 2)) == pytest.approx(row["p"])


def test_one_large_group_is_as_uncertain_as_the_bootstrap_over_groups_says():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 30, 60))
    a, b = rng.random((2, 1, len(groups))) < (0.5 + 0.45 * rng.random((2, 60)))[:, None, groups]
    row = evaluation.compare_over_seeds("q", "a", "b", a, b, groups)
    _, lo, hi = evaluation.bootstrap_mean(a[0].astype(float) - b[0], groups, 4000)
    assert row["hi"] - row["lo"] == pytest.approx(hi - lo, rel=0.1)


def test_compare_over_seeds_is_not_fooled_by_one_unlucky_training():
    """Two equal losses whose trainings differ by luck: a test over images alone cries wolf,
    the one over seeds and images does not."""
    rng = np.random.default_rng(0)
    fooled, alarmed = 0, 0
    for _ in range(200):
        skill = 0.95 - 0.04 * rng.random((2, 3, 1))
        right = rng.random((2, 3, 400)) < skill
        row = evaluation.compare_over_seeds("q", "a", "b", right[0], right[1], np.arange(400))
        fooled += row["p_images_only"] < 0.05
        alarmed += row["p"] < 0.05
    assert fooled / 200 > 0.15
    assert alarmed / 200 < 0.08


def test_compare_over_seeds_finds_a_steady_difference():
    rng = np.random.default_rng(0)
    right = rng.random((3, 400)) < 0.97
    worse = right & (rng.random((3, 400)) < 0.9)
    assert evaluation.compare_over_seeds("q", "a", "b", right, worse, np.arange(400))["p"] < 0.01


def test_diagnosis_fires_above_its_threshold_only():
    table = evaluation.diagnosis(student_below_teacher_points=5.0, worst_class_below_median_f1_points=10.1).set_index(
        "signature"
    )
    assert not table.loc["student_below_teacher_points", "fired"]
    assert table.loc["worst_class_below_median_f1_points", "fired"]


def test_predict_keeps_the_mode_and_needs_no_gradient():
    model = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=0).train()
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    logits = evaluation.predict(model, images, batch_size=2)
    assert model.training and logits.shape == (5, 4)
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        model.eval()
        in_batches = evaluation.predict(model, images, batch_size=5)
    np.testing.assert_allclose(logits, in_batches, atol=1e-6)


def test_known_images_are_those_whose_group_is_in_training():
    values = np.array([1, 1, 1, 0, 1, 0, 0, 0], float)
    groups = np.array(list("aabbcdef"))
    table = evaluation.known_and_new(values, groups, np.array(["a", "b", "x"]), samples=2000).set_index("part")
    assert table["n"].tolist() == [4, 4, 8] and table["groups"].tolist() == [2, 4, 6]
    assert table["mean"].tolist() == [0.75, 0.25, -0.5]
    assert (table["lo"] <= table["mean"]).all() and (table["mean"] <= table["hi"]).all()
    # Two groups with means 1 and .5 have a standard error of .25:
    # Student's t of one degree of freedom is 12.7, more than hits can be.
    assert table.loc["known", ["lo", "hi"]].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("training", "part"), [(["z"], "new"), (["a", "b"], "known")])
def test_without_known_or_new_images_there_is_no_difference(training, part):
    table = evaluation.known_and_new(np.array([1.0, 0.0, 1.0]), np.array(["a", "a", "b"]), np.array(training))
    assert table["part"].tolist() == [part] and table["n"].tolist() == [3]


def test_without_any_images_there_are_no_parts():
    nothing = evaluation.known_and_new(np.array([]), np.array([], str), np.array(["a"]))
    assert nothing.empty and {"part", "n", "mean", "lo", "hi"} <= set(nothing)


def test_random_effects_by_hand():
    # Equal errors, differences 0 and 6: Q = 18 > 1, so tau^2 = (Q - 1) / (2 - 2 / 2) = 17,
    # and the mean's variance is (1 + 17) / 2.
    half, wide = evaluation.NORMAL, stats.t.ppf(0.975, 1)
    table = pd.DataFrame({"difference": [0.0, 6.0], "lo": [-half, 6 - half], "hi": [half, 6 + half]})
    assert evaluation.random_effects(table) == pytest.approx((3, 3 - 3 * wide, 3 + 3 * wide), rel=1e-5)
    # Alike, they weigh by precision, 1 and 1/4, and the interval is not narrower than their errors make it.
    alike = pd.DataFrame({"difference": [1.0, 1.5], "lo": [1 - half, 1.5 - 2 * half], "hi": [1 + half, 1.5 + 2 * half]})
    assert evaluation.random_effects(alike) == pytest.approx(
        (1.1, 1.1 - wide / 1.25**0.5, 1.1 + wide / 1.25**0.5), rel=1e-5
    )


# -- power ----------------------------------------------------------------------------------------------------------


def test_power_is_that_of_a_t_test_where_only_training_has_luck():
    from statsmodels.stats.power import TTestPower

    for seeds, effect in ((4, 0.01), (8, 0.005)):
        expected = TTestPower().power(effect / 0.005, seeds, 0.05)
        assert evaluation.power(0.005, 1e-9, 500, seeds, effect=effect) == pytest.approx(expected, abs=0.02)


def test_power_grows_with_seeds_and_images_and_is_the_level_without_an_effect():
    assert np.isnan(evaluation.power(0.0, 0.0, 8, 2, effect=0.01)) and np.isnan(
        evaluation.power(0.1, 0.1, 1, 2, effect=0.01)
    )
    for groups, seeds in ((0, 3), (100, 1)):  # a quarter of three test persons is none
        assert np.isnan(evaluation.power(0.005, 0.1, groups, seeds, effect=0.01))
    few = evaluation.power(0.005, 0.1, 100, 3, effect=0.01)
    assert few < evaluation.power(0.005, 0.1, 100, 6, effect=0.01) and few < evaluation.power(
        0.005, 0.1, 400, 3, effect=0.01
    )
    assert evaluation.power(0.005, 0.1, 400, 5, effect=0.0) == pytest.approx(0.05, abs=0.02)


# -- scores without the luck of drawn labels ------------------------------------------------------------------------


def test_expected_hits_are_the_probability_of_the_answer_or_the_label_s_word():
    logits, labels = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([1, 1])
    assert evaluation.expected_hits(logits, labels).tolist() == [0.0, 1.0]
    assert evaluation.expected_hits(logits, labels, np.array([[0.7, 0.3], [0.6, 0.4]])).tolist() == [0.7, 0.4]


def test_luck_is_nothing_on_average_but_for_who_remembers_the_labels():
    rng = np.random.default_rng(0)
    posterior = rng.dirichlet(np.ones(3), 20000)
    labels = (rng.uniform(size=(20000, 1)) > posterior.cumsum(axis=1)[:, :-1]).sum(axis=1)
    reads, remembers = np.log(posterior), np.eye(3)[labels]
    assert abs(evaluation.luck(reads, labels, posterior).mean()) < 0.01
    expected = 1 - np.take_along_axis(posterior, labels[:, None], axis=1).mean()
    assert evaluation.luck(remembers, labels, posterior).mean() == pytest.approx(expected)


@pytest.mark.parametrize(("lo", "hi", "answer"), [(-0.01, 0.01, True), (-0.011, 0.0, False), (0.0, 0.02, False)])
def test_equivalence_needs_both_ends_within_the_margin(lo, hi, answer):
    assert evaluation.equivalent(lo, hi, 0.01) is answer
