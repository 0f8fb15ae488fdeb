"""Chapter 01: its contact sheet stands for the whole set, and it stops for no image that a user may bring."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdnb.figures.data import examples

CHAPTER = Path(__file__).parents[1] / "notebooks" / "01_data_prep.ipynb"


def test_a_contact_sheet_outlines_as_many_as_is_usual():
    """The first six of class 0 are all outlined, the first six of class 1 are all bare: neither is usual."""
    labels = np.repeat([0, 1], 60)
    outlined = np.zeros(120, bool)
    outlined[:20] = outlined[70:] = True  # a third of class 0, five sixths of class 1
    rows = examples(labels, np.arange(120).astype(str), outlined)
    assert rows.shape == (2, 6) and len(np.unique(rows)) == 12
    assert labels[rows].tolist() == [[0] * 6, [1] * 6]
    assert outlined[rows].sum(axis=1).tolist() == [2, 5]


def test_a_contact_sheet_shows_further_images_of_a_person_last():
    labels, persons = np.zeros(12, int), np.repeat(["a", "b", "c"], 4)
    (row,) = examples(labels, persons, np.zeros(12, bool), each=4)
    assert row[:3].tolist() == [0, 4, 8]


@pytest.mark.parametrize("marked", range(4))
def test_rows_of_a_contact_sheet_are_as_long_as_the_smallest_class(marked):
    """Classes of three and nine images: a row of six would take images of the next class, under its name."""
    labels = np.array([0] * 3 + [2] * 9)
    outlined = np.zeros(12, bool)
    outlined[:marked] = True
    rows = examples(labels, np.arange(12).astype(str), outlined)
    assert labels[rows].tolist() == [[0] * 3, [2] * 3]
    assert sorted(rows[0]) == [0, 1, 2]


def check(dataset: str, found: int) -> None:
    """Run chapter 01's check of its audit where ``found`` of 20 planted copies of a kind were found."""
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    (source,) = (text for cell in cells if "copies that were planted" in (text := "".join(cell["source"])))
    persons = np.array(["a", "b", "c"])
    names = {
        "dataset": dataset,
        "split_protocol": "official",
        "data": type("Data", (), {"notes": {}, "groups": persons, "split": np.array(["train", "val", "test"])}),
        "shared": pd.DataFrame({"protocol": ["leak_free"], "test_images": [0]}),
        "planted": pd.DataFrame({"planted copy": ["mirrored", "brighter by 20%"], "found": [20, found], "of": 20}),
        "links": pd.DataFrame({"similarity_from": [0.9], "between_groups": [0]}),
        "outside": np.zeros(1),
        "np": np,
    }
    exec(compile(source, str(CHAPTER), "exec"), names)


def test_images_of_ones_own_whose_copies_cannot_be_told_stop_nothing(capsys):
    """Nearly white images that are made brighter are white: no audit finds these copies, and that is said."""
    check("folder:white", found=0)
    assert "brighter by 20%" in capsys.readouterr().out
    check("folder:ordinary", found=20)
    assert "brighter by 20%" not in capsys.readouterr().out


def test_an_audit_that_misses_copies_of_generated_images_stops():
    with pytest.raises(AssertionError, match="planted are missed"):
        check("phantom", found=0)
