"""What a reviewer asks of a data set: counts, copies, and whether the class shows in how an image was taken.

Every function takes an :class:`~kdnb.datasets.ImageSet` and returns a tidy table.
"""

import hashlib
import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
from PIL import Image

from kdnb.datasets import duplicates
from kdnb.datasets.duplicates import Twins
from kdnb.datasets.groups import by_name, join
from kdnb.datasets.imageset import ImageSet
from kdnb.datasets.reading import SIGNATURE, decode

_TWINS_OF_HASH: dict[str, Twins] = {}


def twins(data: ImageSet) -> Twins:
    """The pairs of copies among the images of ``data``, as positions in it.

    Looked for now where the loader did not do it, and kept for the set that was asked about last.

    Args:
        data: a data set, or a part of one.

    Returns:
        The pairs of which both images are in ``data``.
    """
    if "twins" not in data.notes:
        if data.data_hash not in _TWINS_OF_HASH:  # the protocols of a generated set share their images
            _TWINS_OF_HASH.clear()
            _TWINS_OF_HASH[data.data_hash] = duplicates.find(
                lambda position: Image.fromarray(data.images[position]), _signatures(data), _digests(data)
            )
        return _TWINS_OF_HASH[data.data_hash]
    loaded = data.notes["twins"]
    position_now = np.full(int(data.notes["positions"].max(initial=-1)) + 1, -1)
    position_now[data.notes["positions"]] = np.arange(len(data))
    beyond = int(loaded.candidates.max(initial=-1)) + 1 + int(loaded.pairs.max(initial=-1)) + 1
    position_now = np.concatenate([position_now, np.full(beyond, -1)])
    pairs, candidates = position_now[loaded.pairs], position_now[loaded.candidates]
    kept, compared = (pairs >= 0).all(axis=1), (candidates >= 0).all(axis=1)
    return Twins(
        pairs[kept],
        loaded.orientation[kept],
        loaded.similarity[kept],
        loaded.exact[kept],
        candidates[compared],
        loaded.fine[compared],
    )


def copies_from(data: ImageSet) -> float:
    """The similarity from which two images of this source are taken for copies."""
    return data.notes.get("copies_from", duplicates.COPIES_FROM)


def expectation(data: ImageSet) -> pd.DataFrame:
    """Images found and expected of each class, all splits together.

    Args:
        data: a data set whose source may have its counts on record (``data/sources.toml``).

    Returns:
        A row a class: ``class``, ``expected`` (empty where nothing is on record), ``found`` and ``difference``.
    """
    expected = data.notes.get("expected", {})
    folder_classes = data.notes.get("folder_classes", np.array(data.classes)[data.labels])
    names, counts = np.unique(folder_classes, return_counts=True)
    rows = {name: {"class": name, "expected": expected[name], "found": 0} for name in expected}
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        rows.setdefault(name, {"class": name, "expected": None, "found": 0})["found"] = count
    table = pd.DataFrame(list(rows.values()), columns=["class", "expected", "found"])
    return table.assign(difference=table["found"] - table["expected"])


def unreadable(data: ImageSet) -> pd.DataFrame:
    """Files that were skipped, and why."""
    return pd.DataFrame(sorted(data.notes.get("skipped", {}).items()), columns=["id", "reason"])


def table(data: ImageSet, found: Twins) -> pd.DataFrame:
    """The contract's ``data_audit.csv``: one row a split and class.

    Args:
        data: a data set.
        found: the pairs of copies among its images (:func:`twins`).

    Returns:
        ``split`` (``left out``: what the protocol removed), ``class``, ``images`` and ``groups``; ``exact_duplicates``
        and ``near_duplicates`` count images that have such a copy anywhere in the set, ``in_other_split`` those that
        have a copy of either kind in another split.
    """
    near_copies = ~found.exact & (found.similarity >= copies_from(data))
    marks = {
        "exact_duplicates": _marked(data, found.pairs[found.exact]),
        "near_duplicates": _marked(data, found.pairs[near_copies]),
    }
    marks["in_other_split"] = _copied_elsewhere(data, found.pairs[found.exact], found.pairs[near_copies], data.split)
    rows = []
    for split in ("train", "val", "test", ""):
        for label, name in enumerate(data.classes):
            members = (data.split == split) & (data.labels == label)
            counts = {"images": int(members.sum()), "groups": len(np.unique(data.groups[members]))}
            rows.append(
                {"split": split or "left out", "class": name}
                | counts
                | {mark: int(flags[members].sum()) for mark, flags in marks.items()}
            )
    return pd.DataFrame(rows)


def leaks(data: ImageSet, found: Twins) -> pd.DataFrame:
    """How many test images share their group, an exact copy or a near copy with training.

    Validation, which is cut from training, is taken for a part of it.

    Args:
        data: a data set.
        found: the pairs of copies among its images (:func:`twins`).

    Returns:
        A row a kind of leak: ``shared with training``, ``test_images`` and their ``share`` of all test images.
    """
    near_copies = ~found.exact & (found.similarity >= copies_from(data))
    sides = np.where(data.split == "val", "train", data.split)
    test, no_pairs = sides == "test", np.empty((0, 2), np.int64)
    marks = {
        "group": test & np.isin(data.groups, data.groups[sides == "train"]),
        "exact copy": test & _copied_elsewhere(data, found.pairs[found.exact], no_pairs, sides),
        "near copy": test & _copied_elsewhere(data, no_pairs, found.pairs[near_copies], sides),
        "exact or near copy": test & _copied_elsewhere(data, found.pairs[found.exact], found.pairs[near_copies], sides),
    }
    counts = {name: int(mark.sum()) for name, mark in marks.items()}
    return pd.DataFrame(
        [
            {"shared with training": name, "test_images": images, "share": images / max(1, test.sum())}
            for name, images in counts.items()
        ]
    )


def _copied_elsewhere(data: ImageSet, exact: np.ndarray, near: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Which images have a copy on another side.

    Args:
        data: a data set of N images.
        exact: ``(P, 2)`` int64 positions; they link each copy with the first of its kind only.
        near: ``(Q, 2)`` int64 positions of near copies, every pair.
        sides: ``(N,)`` str, the side of each image; ``""`` is none.

    Returns:
        ``(N,)`` bool.
    """
    copied = _marked(data, near[(sides[near[:, 0]] != sides[near[:, 1]]) & (sides[near] != "").all(axis=1)])
    copy_group = join(np.arange(len(data)).astype(str), exact)
    side_of_image = pd.Series(sides).where(sides != "")
    return copied | (side_of_image.groupby(copy_group).transform("nunique").to_numpy() > 1)


def across_classes(data: ImageSet, found: Twins) -> pd.DataFrame:
    """Copies whose labels contradict each other.

    Args:
        data: a data set.
        found: the pairs of copies among its images (:func:`twins`).

    Returns:
        A row a pair, most similar first: ``first``, ``first_class``, ``second``, ``second_class``, ``exact`` and
        ``similarity``.
    """
    contradict = found.exact | (found.similarity >= copies_from(data))
    contradict &= data.labels[found.pairs[:, 0]] != data.labels[found.pairs[:, 1]]
    first, second = found.pairs[contradict].T
    names = np.array(data.classes)
    columns = {"first": data.ids[first], "first_class": names[data.labels[first]], "second": data.ids[second]}
    columns |= {
        "second_class": names[data.labels[second]],
        "exact": found.exact[contradict],
        "similarity": found.similarity[contradict].round(3),
    }
    return pd.DataFrame(columns).sort_values("similarity", ascending=False, kind="stable", ignore_index=True)


def false_alarms(data: ImageSet, found: Twins, thresholds: tuple[float, ...]) -> pd.DataFrame:
    """How often look-alikes that should be no copies are called copies.

    The look-alikes are the pairs, each counted once, that pass the coarse step although their classes differ; whatever
    is confirmed among them counts as a false alarm, real copies with contradicting labels too, so the rate is an upper
    bound.

    Args:
        data: a data set.
        found: the pairs of copies among its images (:func:`twins`).
        thresholds: similarities from which two images are called copies.

    Returns:
        A row a threshold: ``threshold``, ``look_alikes``, ``called_copies`` (among these), ``all_copies``, ``rate`` and
        ``hi``, the upper end of its 95% Wilson interval.
    """
    from statsmodels.stats.proportion import proportion_confint

    candidates = np.unique(found.candidates, axis=0)
    classes_differ = data.labels[candidates[:, 0]] != data.labels[candidates[:, 1]]
    similarity = found.similarity[(data.labels[found.pairs[:, 0]] != data.labels[found.pairs[:, 1]]) & ~found.exact]
    rows = []
    for threshold in thresholds:
        alarms = int((similarity >= threshold).sum())
        hi = proportion_confint(alarms, classes_differ.sum(), method="wilson")[1] if classes_differ.any() else np.nan
        rate = alarms / classes_differ.sum() if classes_differ.any() else np.nan
        copies = len(found.copies(threshold))
        counts = {"look_alikes": int(classes_differ.sum()), "called_copies": alarms, "all_copies": copies}
        rows.append({"threshold": threshold} | counts | {"rate": rate, "hi": hi})
    return pd.DataFrame(rows)


def recall(data: ImageSet, count: int = 40) -> pd.DataFrame:
    """Plant copies of some images and count those that pass all three steps of :mod:`kdnb.datasets.duplicates`.

    Args:
        data: a data set.
        count: how many of its images are copied; which ones is fixed, no chance.

    Returns:
        A row a kind of change: ``planted copy``, ``found`` and ``of``.
    """
    threshold = copies_from(data)
    rows = []
    for kind, change in _CHANGES.items():
        detected = 0
        positions = np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)
        for position in positions:
            files = data.notes.get("files")
            image = Image.fromarray(data.images[position]) if files is None else decode(files[position])[0]
            original = image.convert("L")
            images = [original, change(original)]
            signatures = np.stack(
                [np.asarray(image.resize((SIGNATURE, SIGNATURE), Image.Resampling.BOX)) for image in images]
            )
            confirmed = duplicates.find(images.__getitem__, signatures, np.array(["first", "second"]), quiet=True)
            detected += len(confirmed.copies(threshold)) > 0
        rows.append({"planted copy": kind, "found": detected, "of": len(positions)})
    return pd.DataFrame(rows)


def _jpeg(image: Image.Image) -> Image.Image:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def _smaller(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * 0.8), round(image.height * 0.8)), Image.Resampling.BILINEAR)


_CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "JPEG quality 60": _jpeg,
    "80% of the size": _smaller,
    "brighter by 20%": lambda image: image.point(lambda value: min(255, round(value * 1.2))),
}


def planted(data: ImageSet, found: Twins) -> pd.DataFrame:
    """How much of what was planted in a generated set the audit finds, and how much of what it finds was planted.

    ``mirrored copies`` and ``pictures of one person`` are pairs of images, found from pixels and from names joined with
    copies; ``wrong labels`` are images, found where two copies contradict each other (so both are suspected, and a
    wrong label without a copy is missed); ``second scanner`` are images, found by an acquisition unlike the others'
    (:func:`odd_acquisition`).

    Args:
        data: a drawn phantom, whose notes tell what was planted.
        found: the pairs of copies among its images (:func:`twins`).

    Returns:
        A row a flaw: ``flaw``, ``planted``, ``found``, ``both``, ``recall`` and ``precision``.
    """
    position_of = {name: position for position, name in enumerate(data.ids)}
    copies = {
        (min(position, position_of[twin]), max(position, position_of[twin]))
        for position, twin in enumerate(data.notes["twin_of"])
        if twin in position_of
    }
    called_copies = found.copies(copies_from(data))
    contradicting_pairs = called_copies[data.labels[called_copies[:, 0]] != data.labels[called_copies[:, 1]]]
    pairs = {"mirrored copies": (copies, set(map(tuple, called_copies.tolist())))}
    groups_by_name = by_name("phantom", data.ids, np.array(data.classes)[data.labels])
    pairs["pictures of one person"] = (_together(data.groups), _together(join(groups_by_name, called_copies)))
    pairs["wrong labels"] = (set(np.flatnonzero(data.notes["wrong_label"])), set(contradicting_pairs.ravel().tolist()))
    pairs["second scanner"] = (
        set(np.flatnonzero(data.notes["second_scanner"])),
        set(np.flatnonzero(odd_acquisition(data))),
    )
    rows = []
    for flaw, (truth, answer) in pairs.items():
        both = len(truth & answer)
        shares = {
            "recall": both / len(truth) if truth else np.nan,
            "precision": both / len(answer) if answer else np.nan,
        }
        rows.append({"flaw": flaw, "planted": len(truth), "found": len(answer), "both": both} | shares)
    return pd.DataFrame(rows)


def _together(groups: np.ndarray) -> set[tuple[int, int]]:
    """All pairs of images of one group."""
    pairs: set[tuple[int, int]] = set()
    for _, members in pd.Series(np.arange(len(groups))).groupby(groups):
        pairs.update(itertools.combinations(members.tolist(), 2))
    return pairs


def odd_acquisition(data: ImageSet) -> np.ndarray:
    """Images whose brightness falls from top to bottom unlike the others'.

    Receivers and lamps leave such marks; a whole group of images that has one is a source of its own.

    Args:
        data: a generated set, whose :func:`acquisition` has ``fade``.

    Returns:
        ``(N,)`` bool: farther than three robust standard deviations (1.4826 median absolute deviations) from the
        median.
    """
    fade = acquisition(data)["fade"].to_numpy()
    median = np.median(fade)
    return np.abs(fade - median) > 3 * 1.4826 * np.median(np.abs(fade - median))


def acquisition(data: ImageSet) -> pd.DataFrame:
    """What is known of each image without what it shows.

    Args:
        data: a data set of N images.

    Returns:
        A row an image: ``brightness`` and ``border`` (mean grey value, 0 to 255), and where it came from a file
        ``width``, ``height``, ``kind`` and ``bytes``, else ``fade`` (upper half less lower half, over the mean).
    """
    if "metadata" in data.notes:
        return pd.DataFrame({name: column[data.notes["positions"]] for name, column in data.notes["metadata"].items()})
    grey = data.images.mean(axis=3)
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], axis=1).mean(axis=1)
    half = grey.shape[1] // 2
    fade = (grey[:, :half].mean(axis=(1, 2)) - grey[:, half:].mean(axis=(1, 2))) / np.maximum(grey.mean(axis=(1, 2)), 1)
    return pd.DataFrame({"brightness": grey.mean(axis=(1, 2)), "border": border, "fade": fade})


def shortcut_baseline(data: ImageSet) -> pd.DataFrame:
    """Test accuracy of a classifier that sees only :func:`acquisition`, beside that of the most frequent class.

    The higher, the more the class shows in how an image was taken.

    Args:
        data: a data set with training and test images.

    Returns:
        A row a classifier: ``classifier``, ``accuracy``, ``lo`` and ``hi`` (95% Wilson interval) and ``n``.
    """
    from sklearn.ensemble import RandomForestClassifier
    from statsmodels.stats.proportion import proportion_confint

    features = pd.get_dummies(acquisition(data)).astype(float)
    train, test = data.index("train"), data.index("test")
    forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0)
    forest.fit(features.iloc[train], data.labels[train])
    correct = int((forest.predict(features.iloc[test]) == data.labels[test]).sum())
    correct_by_frequency = int((data.labels[test] == np.bincount(data.labels[train]).argmax()).sum())
    rows = []
    for name, hits in (("acquisition only", correct), ("most frequent class", correct_by_frequency)):
        lo, hi = proportion_confint(hits, len(test), method="wilson")
        rows.append({"classifier": name, "accuracy": hits / len(test), "lo": lo, "hi": hi, "n": len(test)})
    return pd.DataFrame(rows)


def pixel_probe(images: np.ndarray, data: ImageSet) -> tuple[float, float, float]:
    """Test accuracy of logistic regression on 16 x 16 thumbnails of ``images``.

    Args:
        images: ``(N, H, W, 3)`` uint8, such as the images of ``data`` without their lesions.
        data: the set whose labels and split these are.

    Returns:
        Accuracy, and the two ends of its 95% Wilson interval.
    """
    from sklearn.linear_model import LogisticRegression
    from statsmodels.stats.proportion import proportion_confint

    factor = images.shape[1] // 16
    grey = images[:, : 16 * factor, : 16 * factor].mean(axis=3, dtype=np.float32)
    binned = grey.reshape(len(images), 16, factor, 16, factor).mean(axis=(2, 4))
    thumbnails = binned.reshape(len(images), -1) / 255 - 0.5
    train, test = data.index("train"), data.index("test")
    model = LogisticRegression(C=10.0, max_iter=5000, tol=1e-3).fit(thumbnails[train], data.labels[train])
    hits = int((model.predict(thumbnails[test]) == data.labels[test]).sum())
    lo, hi = proportion_confint(hits, len(test), method="wilson")
    return hits / len(test), float(lo), float(hi)


def subject_links(data: ImageSet, found: Twins) -> pd.DataFrame:
    """How well recovered groups agree with image similarity.

    Args:
        data: a data set.
        found: the pairs of copies among its images (:func:`twins`).

    Returns:
        A row a similarity: ``similarity_from``, ``pairs`` (confirmed, at least so similar) and ``between_groups``,
        those of them whose images are of two groups.
    """
    within_group = data.groups[found.pairs[:, 0]] == data.groups[found.pairs[:, 1]]
    rows = []
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        above = found.similarity >= low
        between = int((above & ~within_group).sum())
        rows.append({"similarity_from": low, "pairs": int(above.sum()), "between_groups": between})
    return pd.DataFrame(rows)


def of_persons(data: ImageSet) -> pd.DataFrame:
    """How many test images are of a person that is known, and how many of these persons training has, too.

    Validation, which is cut from training, is taken for a part of it.

    Args:
        data: a set whose images are slices of another source (:mod:`kdnb.datasets.slices`).

    Returns:
        A row a class and one for ``all``: ``class``, ``test_images``, ``person_known``, ``also_in_training`` (images),
        ``persons`` and ``persons_also_in_training``.
    """
    slices = data.notes["slices"]
    persons = np.array([slices[name].person if name in slices else "" for name in data.ids])
    test = data.split == "test"
    shared = np.isin(persons, persons[np.isin(data.split, ("train", "val"))]) & (persons != "")
    test_of_class = [(name, test & (data.labels == label)) for label, name in enumerate(data.classes)]
    rows = []
    for name, members in [*test_of_class, ("all", test)]:
        known = members & (persons != "")
        counts = {
            "test_images": int(members.sum()),
            "person_known": int(known.sum()),
            "also_in_training": int((known & shared).sum()),
        }
        counts |= {
            "persons": len(np.unique(persons[known])),
            "persons_also_in_training": len(np.unique(persons[known & shared])),
        }
        rows.append({"class": name} | counts)
    return pd.DataFrame(rows)


def contradicting(data: ImageSet) -> pd.DataFrame:
    """The images whose label is not that of the slice that they are.

    Args:
        data: a set whose images are slices of another source (:mod:`kdnb.datasets.slices`).

    Returns:
        A row an image: ``id``, ``class``, ``slice``, ``slice_class`` and ``person``.
    """
    labels, rows = np.array(data.classes)[data.labels], []
    for name, label in zip(data.ids.tolist(), labels.tolist(), strict=True):
        shown = data.notes["slices"].get(name)
        if shown and shown.label != label:
            slice_columns = {"slice": shown.name, "slice_class": shown.label, "person": shown.person}
            rows.append({"id": name, "class": label} | slice_columns)
    return pd.DataFrame(rows, columns=["id", "class", "slice", "slice_class", "person"])


def recover(images: np.ndarray, slices: np.ndarray) -> pd.DataFrame:
    """The slice that is most like each image, as it is or mirrored, by the correlation of grey values.

    Args:
        images: ``(N, H, W)`` grey values.
        slices: ``(M, H, W)`` grey values.

    Returns:
        A row an image: ``slice`` (its position), ``mirrored``, ``correlation``, and ``next``, the highest correlation
        with all other slices.
    """
    references = np.concatenate([duplicates.unit(slices), duplicates.unit(slices[:, :, ::-1])])
    count, tables = len(slices), []
    for start in range(0, len(images), duplicates.BLOCK):
        correlations = duplicates.unit(images[start : start + duplicates.BLOCK]) @ references.T
        best, rows = correlations.argmax(axis=1), np.arange(len(correlations))
        columns = {"slice": best % count, "mirrored": best >= count, "correlation": correlations[rows, best]}
        correlations[rows, best % count] = correlations[rows, best % count + count] = -1
        tables.append(pd.DataFrame(columns | {"next": correlations.max(axis=1)}))
    return pd.concat(tables, ignore_index=True)


def _marked(data: ImageSet, pairs: np.ndarray) -> np.ndarray:
    flags = np.zeros(len(data), bool)
    flags[pairs.ravel()] = True
    return flags


def _signatures(data: ImageSet) -> np.ndarray:
    thumbnails = [
        Image.fromarray(image).convert("L").resize((SIGNATURE, SIGNATURE), Image.Resampling.BOX)
        for image in data.images
    ]
    return np.stack([np.asarray(image) for image in thumbnails])


def _digests(data: ImageSet) -> np.ndarray:
    return np.array([hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:32] for image in data.images])
