"""Images of one source that are slices of another: persons and labels by its tables, and the recovery from pixels."""

import numpy as np
import pytest
from test_datasets_splits import needs_real, real, textured

from kdnb.datasets import audit, slices
from kdnb.datasets.imageset import ImageSet

KNOWN = {
    "a.png": slices.Slice("images/1.png", "p1", "cat", False),
    "b.png": slices.Slice("images/1.png", "p1", "cat", True),
    "c.png": slices.Slice("images/2.png", "p2", "dog", False),
}


def a_set(split: list[str]) -> ImageSet:
    ids = np.array(["a.png", "b.png", "c.png", "d.png"])
    labels = np.array([0, 1, 1, 0])
    images = np.zeros((4, 8, 8, 3), np.uint8)
    return ImageSet("two", images, labels, ("cat", "dog"), ids, ids, np.array(split), notes={"slices": KNOWN})


def test_persons_are_those_of_the_slices_and_the_rest_is_said_to_be_open():
    persons, note = slices.persons(np.array(["a.png", "b.png", "c.png", "d.png"]), KNOWN)
    assert persons.tolist() == ["person_p1", "person_p1", "person_p2", "d.png"]
    assert (
        note.startswith("2 persons of 3 images")
        and "the other 1 images are nobody knows" in note
        and "both sides" in note
    )


def test_test_images_whose_person_training_has_are_counted():
    counts = audit.of_persons(a_set(["train", "test", "test", "test"])).set_index("class")
    assert counts.loc["all"].tolist() == [3, 2, 1, 2, 1] and counts.loc["cat"].tolist() == [1, 0, 0, 0, 0]
    assert counts.loc["dog"].tolist() == [2, 2, 1, 2, 1]
    apart = audit.of_persons(a_set(["test", "test", "train", ""])).set_index("class")
    assert apart.loc["all", ["person_known", "also_in_training"]].tolist() == [2, 0]


def test_an_image_with_another_label_than_its_slice_is_named():
    assert audit.contradicting(a_set(["train"] * 4)).to_numpy().tolist() == [
        ["b.png", "dog", "images/1.png", "cat", "p1"]
    ]


def test_slices_are_found_again_mirrored_or_not():
    known = np.stack([np.asarray(textured(seed, 48)) for seed in range(6)])
    images = np.stack([known[4], known[2][:, ::-1], np.asarray(textured(99, 48))])
    recovered = audit.recover(images, known)
    assert recovered["slice"].tolist()[:2] == [4, 2] and recovered["mirrored"].tolist()[:2] == [False, True]
    assert (recovered["correlation"][:2] > slices.ALIKE).all() and recovered["correlation"][2] < 0.5 > recovered[
        "next"
    ].max()


def test_the_tables_of_the_study_fit_each_other():
    known = slices.known("figshare_brain", "brain_tumor_slices.csv")
    assert len(known) == 4750 and len({slice_.person for slice_ in known.values()}) == 209
    ways = [[slice_.name for slice_ in known.values() if slice_.mirrored == mirrored] for mirrored in (True, False)]
    assert [(len(way), len(set(way))) for way in ways] == [(3064, 3064), (1686, 1665)]


@pytest.mark.slow
@needs_real
def test_every_slice_of_the_table_is_found_again_from_pixels():
    data = real("brain_tumor", size=slices.SIZE)
    source = real("figshare_brain", size=slices.SIZE)
    tumours = np.flatnonzero(data.labels != data.classes.index("notumor"))
    recovered = audit.recover(data.images[tumours, ..., 0], source.images[..., 0])
    same = recovered["correlation"] >= slices.ALIKE
    truth = [data.notes["slices"].get(name) for name in data.ids[tumours]]
    said = [
        (source.ids[row.slice], row.mirrored) if row.correlation >= slices.ALIKE else None
        for row in recovered.itertuples()
    ]
    assert said == [(one.name, one.mirrored) if one else None for one in truth]
    assert recovered.loc[~same, "correlation"].max() < 0.95
