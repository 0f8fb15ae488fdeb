"""The phantom of drawn labels: the posterior is true, evidence is confined to the lesion,
flaws are where they are said to be."""

import numpy as np
import pytest

from kdnb import evaluation, experiments
from kdnb.datasets import audit, load, phantom
from kdnb.datasets.imageset import ImageSet
from kdnb.datasets.splits import take

SIZE = 48


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return load("phantom", SIZE, phantom_images=1600)


def test_labels_follow_the_posterior_they_were_drawn_from():
    """100,000 images: in each tenth of probability, labels are as frequent as they should be,
    but for chance (one draw a subject)."""
    latents = [phantom._draw_lesions(0, chunk) for chunk in range(1563)]
    first = slice(None, None, phantom.DRAWN_PER_SUBJECT)
    p = np.concatenate([latent["posterior"][first] for latent in latents])
    drawn = np.eye(4)[np.concatenate([latent["label"][first] for latent in latents])]
    assert 4 * len(p) >= 100_000
    for c in range(4):
        tenth = np.minimum((p[:, c] * 10).astype(int), 9)
        for k in np.unique(tenth):
            in_tenth = tenth == k
            chance = np.sqrt((p[in_tenth, c] * (1 - p[in_tenth, c])).sum()) / in_tenth.sum()
            assert abs(drawn[in_tenth, c].mean() - p[in_tenth, c].mean()) <= 4 * chance + 1e-9, (c, k)
    assert np.allclose(p.mean(axis=0), [0.3, 0.233, 0.233, 0.233], atol=0.02)


def test_posterior_by_hand():
    posterior = phantom.posterior(
        np.array([0.0, 1.0, 0.5, 1.0]), np.array([0.0, 0.0, 1.0, 0.5]), np.array([2, 2, 3, 2])
    )
    assert np.allclose(posterior, [[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0, 0, 0.5], [0, 0.5, 0.5, 0]])


def test_bayes_rule_by_hand():
    assert np.allclose(phantom.updated(np.array([[0.5, 0.5]]), np.array([[0.3, 0.1]])), [[0.75, 0.25]])


def test_same_images_at_every_call_and_prefix_of_a_larger_set():
    small, large = phantom.generate(70, 32, "drawn"), phantom.generate(200, 32, "drawn")
    for name in ("images", "labels", "posterior", "masks", "subjects"):
        assert np.array_equal(getattr(small, name), getattr(large, name)[:70])
    assert (small.images != phantom.generate(70, 32, "drawn", seed=1).images).any()


def test_evidence_is_confined_to_the_mask():
    with_lesions, bare = (phantom.generate(128, SIZE, "drawn", lesions=shown) for shown in (True, False))
    differs = (with_lesions.images != bare.images).any(axis=3)
    assert not (differs & ~with_lesions.masks).any() and differs.any(axis=(1, 2)).mean() > 0.95
    assert np.array_equal(with_lesions.posterior, bare.posterior)


def test_one_subject_shows_one_lesion_and_has_one_label():
    made = phantom.generate(256, 32, "drawn")
    for subject in np.unique(made.subjects):
        own = made.subjects == subject
        assert own.sum() == phantom.DRAWN_PER_SUBJECT and len(np.unique(made.labels[own])) == 1
        assert len(np.unique(made.posterior[own], axis=0)) == 1


def test_planted_flaws_are_where_they_are_said_to_be():
    made = phantom.generate(640, 32, "drawn")
    planted = phantom.plant(made)
    copies = np.flatnonzero(planted.twin_of >= 0)
    assert len(copies) == round(phantom.TWINS * 640) and planted.wrong.sum() == round(phantom.WRONG_LABELS * 640)
    assert np.array_equal(planted.made.images[copies], planted.made.images[planted.twin_of[copies]][:, :, ::-1])
    assert not set(planted.made.subjects[copies]) & set(made.subjects)
    untouched = ~planted.wrong & (planted.twin_of < 0)
    assert np.array_equal(planted.made.labels[untouched], made.labels[untouched])
    plain = untouched & ~planted.scanner
    assert np.array_equal(planted.made.images[plain], made.images[plain])
    assert (
        (planted.made.images[planted.scanner & untouched] != made.images[planted.scanner & untouched])
        .any(axis=(1, 2, 3))
        .all()
    )


def test_the_posterior_knows_the_scanner():
    planted = phantom.plant(phantom.generate(6400, 32, "drawn"))
    p, labels = planted.made.posterior, planted.made.labels
    right = ~planted.wrong
    for part in (right & planted.scanner, right & ~planted.scanner):
        none = (labels[part] == 0).mean()
        # Labels and scanners are drawn once a subject: four images count as one.
        assert abs(none - p[part, 0].mean()) < 4 * np.sqrt(0.25 / (part.sum() / phantom.DRAWN_PER_SUBJECT))
    assert np.allclose(p.sum(axis=1), 1) and not np.isnan(p).any()


def test_official_split_leaks_and_leak_free_does_not(data):
    shares = {}
    for protocol in ("official", "leak_free"):
        split = load("phantom", SIZE, split_protocol=protocol, phantom_images=1600)
        test, train = (split.groups[split.index(part)] for part in ("test", "train"))
        shares[protocol] = np.isin(test, train).mean()
        assert not np.intersect1d(train, split.groups[split.index("val")]).size
    assert shares["official"] > 0.5 and shares["leak_free"] == 0


def test_the_audit_finds_every_planted_copy_and_nothing_else(data):
    place = {name: k for k, name in enumerate(data.ids)}
    planted = {tuple(sorted((k, place[twin]))) for k, twin in enumerate(data.notes["twin_of"]) if twin}
    called = audit.twins(data).copies(audit.copies_from(data))
    assert len(planted) == 64 and {tuple(pair) for pair in np.sort(called, axis=1).tolist()} == planted


def test_truth_travels_with_the_images(data):
    assert data.posterior.shape == (1600, 4) and load("phantom:certain", 32, phantom_images=64).posterior is None
    few = take(data, np.array([3, 5]))
    assert np.array_equal(few.posterior, data.posterior[[3, 5]])
    assert np.array_equal(experiments.examples(data, "test").posterior, data.posterior[data.index("test")])
    assert (
        not data.masks[data.posterior[:, 0] >= 0.5].any()
        and data.masks[data.posterior[:, 0] < 0.5].any(axis=(1, 2)).all()
    )


def test_pixels_alone_stay_far_below_bayes(data):
    _, _, hi = audit.pixel_probe(data.images, data)
    assert hi < data.posterior.max(axis=1).mean() - 0.1


def test_expected_accuracy_and_divergence_by_hand():
    p = np.array([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0]])
    right = np.log(np.maximum(p, 1e-300))
    assert evaluation.expected_accuracy(right, p) == pytest.approx(0.75)
    assert evaluation.expected_accuracy(-right, np.array([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0]])) == 0.0
    assert evaluation.divergence(right, p) == pytest.approx(0, abs=1e-12)
    flat = np.zeros((2, 3))
    by_hand = np.mean([0.7 * np.log(0.7 * 3) + 0.3 * np.log(0.3 * 3), 0.2 * np.log(0.2 * 3) + 0.8 * np.log(0.8 * 3)])
    assert evaluation.divergence(flat, p) == pytest.approx(by_hand)
