"""Images of one source that are slices of another, which knows whose they are: persons, masks and labels found again.

The Kaggle brain set was merged from several sets, figshare 1512427 among them: each of that set's 3,064 slices stands
in it mirrored, and 1,665 of them also as they are, some of these more than once. Which image is which slice stands in a
table beside ``data/sources.toml``; where both sets are at hand :func:`kdnb.datasets.audit.recover` finds it anew.
"""

import csv
from dataclasses import dataclass

import numpy as np

from kdnb.sources import REPOSITORY

SIZE = 48  # pixels a side at which slices are compared ...
ALIKE = 0.9995  # ... and the correlation from which two are the same slice


@dataclass(frozen=True)
class Slice:
    """What another source knows of an image.

    Attributes:
        name: its own name for the slice.
        person: whose slice it is.
        label: the slice's class.
        mirrored: whether the image shows it mirrored.
    """

    name: str
    person: str
    label: str
    mirrored: bool


def known(source: str, table: str) -> dict[str, Slice]:
    """The image's id -> the slice of ``source`` that it is, as ``data/<table>`` and ``data/<source>.csv`` say."""
    slices = {row["id"]: (row["image"], row["patient_group"], row["class"]) for row in _rows(f"{source}.csv")}
    return {row["image"]: Slice(*slices[row["figshare_id"]], row["mirrored"] == "1") for row in _rows(table)}


def persons(ids: np.ndarray, slices: dict[str, Slice]) -> tuple[np.ndarray, str]:
    """Groups of images before copies are joined: an image that is no known slice is a group of its own.

    Args:
        ids: ``(N,)`` str, the images.
        slices: of :func:`known`.

    Returns:
        The groups, ``(N,)`` str, and in one line whose images these are and what is left open.
    """
    known_slices = [slices.get(name) for name in ids]
    groups = [f"person_{match.person}" if match else name for match, name in zip(known_slices, ids, strict=True)]
    count, unknown = len({match.person for match in known_slices if match}), known_slices.count(None)
    summary = (
        f"{count:,} persons of {len(ids) - unknown:,} images, known by the slices that these are; whose the other "
        f"{unknown:,} images are nobody knows: copies among them stay together, but other images of one person may "
        "stand on both sides"
    )
    return np.array(groups, str), summary


def _rows(file: str) -> list[dict[str, str]]:
    return list(csv.DictReader((REPOSITORY / "data" / file).read_text(encoding="utf-8").splitlines()))
