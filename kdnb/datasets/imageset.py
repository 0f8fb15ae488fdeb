"""The one form in which images travel: decoded, resized, uint8, with labels, groups and splits."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ImageSet:
    """A data set in memory (or mapped from the cache).

    Attributes:
        name: the data set's name, such as ``"phantom"``.
        images: ``(N, H, W, 3)`` uint8.
        labels: ``(N,)`` int64, indices into ``classes``.
        classes: class names in label order.
        groups: ``(N,)`` str; images of one group (a person, a subject, a set of duplicates) stay on one side of a
            leak-free split.
        ids: ``(N,)`` str, paths relative to the source; unique.
        split: ``(N,)`` str: ``"train"``, ``"val"``, ``"test"`` or ``""`` (left out by the protocol).
        masks: ``(N, H, W)`` bool, the true lesion, or ``None``; an empty mask means that there is none.
        split_protocol: ``"official"`` or ``"leak_free"``.
        data_hash: hash of images, labels and masks, if these are the data's own and not of another source.
        split_hash: hash of ids and split.
        notes: what the loader saw, by name; see below.
        posterior: ``(N, C)`` float64, the true probability of each class given the image, or ``None`` where nobody
            knows it.

    The notes of a set from files: ``layout``, ``persons`` and ``split_anew`` (sentences for a reader), ``skipped``
    (id -> reason), ``left_out`` and ``expected`` (name -> count), ``files_key``, ``padding``, ``copies_from``
    (similarity), ``twins`` (:class:`kdnb.datasets.duplicates.Twins`), ``metadata`` (column -> values), ``positions``
    (where the images stand in ``twins`` and ``metadata``), and ``digests``, ``square_digests``, ``published``,
    ``files`` and ``folder_classes``, each ``(N,)``; where its images are slices of another source also ``slices``
    (id -> :class:`kdnb.datasets.slices.Slice`) and ``masks_from``. Those of a phantom: ``depth``, ``shortcut_masks``,
    ``twin_of``, ``wrong_label`` and ``second_scanner``.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray
    ids: np.ndarray
    split: np.ndarray
    masks: np.ndarray | None = None
    split_protocol: str = "official"
    data_hash: str = ""
    split_hash: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    posterior: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def index(self, split: str) -> np.ndarray:
        """Positions of the images of one split, in order, ``(n,)`` int64."""
        return np.flatnonzero(self.split == split)
