"""What a reviewer asks of a data set: counts, copies, and whether the class shows in how an image was taken.

Every function takes an :class:`~kdnb.datasets.ImageSet` and returns a tidy table.
"""

import hashlib
import itertools

import numpy as np
import pandas as pd
from PIL import Image

from kdnb.datasets import duplicates
from kdnb.datasets.duplicates import Twins
from kdnb.datasets.groups import by_name, join
from kdnb.datasets.imageset import ImageSet
from kdnb.datasets.reading import SIGNATURE, decode

_FOUND: dict[str, Twins] = {}


def twins(data: ImageSet) -> Twins:
    """The pairs of copies among the images of ``data``, as positions in it; looked for now where the loader did not do it."""
    if "twins" not in data.notes:
        if data.data_hash not in _FOUND:  # the protocols of a generated set share their images
            _FOUND.clear()
            _FOUND[data.data_hash] = duplicates.find(
                lambda k: Image.fromarray(data.images[k]), _signatures(data), _digests(data)
            )
        return _FOUND[data.data_hash]
    found = data.notes["twins"]
    place = np.full(int(data.notes["positions"].max(initial=-1)) + 1, -1)
    place[data.notes["positions"]] = np.arange(len(data))
    place = np.concatenate(
        [place, np.full(int(found.candidates.max(initial=-1)) + 1 + int(found.pairs.max(initial=-1)) + 1, -1)]
    )
    pairs, candidates = place[found.pairs], place[found.candidates]
    kept, looked = (pairs >= 0).all(axis=1), (candidates >= 0).all(axis=1)
    return Twins(
        pairs[kept],
        found.orientation[kept],
        found.similarity[kept],
        found.exact[kept],
        candidates[looked],
        found.fine[looked],
    )


def copies_from(data: ImageSet) -> float:
    """The similarity from which two images of this source are taken for copies."""
    return data.notes.get("copies_from", duplicates.COPIES_FROM)


def expectation(data: ImageSet) -> pd.DataFrame:
    """Images found and expected (``data/sources.toml``) of each class, all splits together; empty where nothing is on record."""
    expected = data.notes.get("expected", {})
    names, found = np.unique(data.notes.get("folder_classes", np.array(data.classes)[data.labels]), return_counts=True)
    rows = {name: {"class": name, "expected": expected[name], "found": 0} for name in expected}
    for name, count in zip(names.tolist(), found.tolist(), strict=True):
        rows.setdefault(name, {"class": name, "expected": None, "found": 0})["found"] = count
    table = pd.DataFrame(list(rows.values()), columns=["class", "expected", "found"])
    return table.assign(difference=table["found"] - table["expected"])


def unreadable(data: ImageSet) -> pd.DataFrame:
    """Files that were skipped, and why."""
    return pd.DataFrame(sorted(data.notes.get("skipped", {}).items()), columns=["id", "reason"])


def table(data: ImageSet, found: Twins) -> pd.DataFrame:
    """The contract's ``data_audit.csv``: one row a split and class.

    ``exact_duplicates`` and ``near_duplicates`` count images that have such a copy anywhere in the set, ``in_other_split`` those that
    have a copy of either kind in another split. A split named ``left out`` holds what the protocol removed.
    """
    near = ~found.exact & (found.similarity >= copies_from(data))
    marks = {
        "exact_duplicates": _marked(data, found.pairs[found.exact]),
        "near_duplicates": _marked(data, found.pairs[near]),
    }
    marks["in_other_split"] = _elsewhere(data, found.pairs[found.exact], found.pairs[near], data.split)
    rows = []
    for split in ("train", "val", "test", ""):
        for label, name in enumerate(data.classes):
            here = (data.split == split) & (data.labels == label)
            counts = {"images": int(here.sum()), "groups": len(np.unique(data.groups[here]))}
            rows.append(
                {"split": split or "left out", "class": name}
                | counts
                | {mark: int(flags[here].sum()) for mark, flags in marks.items()}
            )
    return pd.DataFrame(rows)


def leaks(data: ImageSet, found: Twins) -> pd.DataFrame:
    """How many test images share their group, an exact copy or a near copy with training (validation, cut from it, included)."""
    near = ~found.exact & (found.similarity >= copies_from(data))
    sides = np.where(data.split == "val", "train", data.split)
    test, nothing = sides == "test", np.empty((0, 2), np.int64)
    marks = {
        "group": test & np.isin(data.groups, data.groups[sides == "train"]),
        "exact copy": test & _elsewhere(data, found.pairs[found.exact], nothing, sides),
        "near copy": test & _elsewhere(data, nothing, found.pairs[near], sides),
        "exact or near copy": test & _elsewhere(data, found.pairs[found.exact], found.pairs[near], sides),
    }
    counts = {name: int(mark.sum()) for name, mark in marks.items()}
    return pd.DataFrame(
        [
            {"shared with training": name, "test_images": n, "share": n / max(1, test.sum())}
            for name, n in counts.items()
        ]
    )


def _elsewhere(data: ImageSet, exact: np.ndarray, near: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Which images have a copy on another side, ``(N,)`` bool. Exact pairs link each copy with the first of its kind only."""
    flags = _marked(data, near[(sides[near[:, 0]] != sides[near[:, 1]]) & (sides[near] != "").all(axis=1)])
    kind = join(np.arange(len(data)).astype(str), exact)
    used = pd.Series(sides).where(sides != "")
    return flags | (used.groupby(kind).transform("nunique").to_numpy() > 1)


def across_classes(data: ImageSet, found: Twins) -> pd.DataFrame:
    """Copies whose labels contradict each other, most similar first."""
    chosen = found.exact | (found.similarity >= copies_from(data))
    chosen &= data.labels[found.pairs[:, 0]] != data.labels[found.pairs[:, 1]]
    first, second = found.pairs[chosen].T
    names = np.array(data.classes)
    columns = {"first": data.ids[first], "first_class": names[data.labels[first]], "second": data.ids[second]}
    columns |= {
        "second_class": names[data.labels[second]],
        "exact": found.exact[chosen],
        "similarity": found.similarity[chosen].round(3),
    }
    return pd.DataFrame(columns).sort_values("similarity", ascending=False, kind="stable", ignore_index=True)


def false_alarms(data: ImageSet, found: Twins, thresholds: tuple[float, ...]) -> pd.DataFrame:
    """How often look-alikes that should be no copies are called copies.

    The look-alikes are the pairs, each counted once, that pass the coarse step although their classes differ; whatever is confirmed
    among them counts as a false alarm, real copies with contradicting labels too, so the rate is an upper bound. ``hi`` is the upper end
    of its 95% Wilson interval.
    """
    from statsmodels.stats.proportion import proportion_confint

    looked = np.unique(found.candidates, axis=0)
    apart = data.labels[looked[:, 0]] != data.labels[looked[:, 1]]
    alike = found.similarity[(data.labels[found.pairs[:, 0]] != data.labels[found.pairs[:, 1]]) & ~found.exact]
    rows = []
    for threshold in thresholds:
        alarms = int((alike >= threshold).sum())
        hi = proportion_confint(alarms, apart.sum(), method="wilson")[1] if apart.any() else np.nan
        counts = {"look_alikes": int(apart.sum()), "called_copies": alarms, "all_copies": len(found.copies(threshold))}
        rows.append(
            {"threshold": threshold} | counts | {"rate": alarms / apart.sum() if apart.any() else np.nan, "hi": hi}
        )
    return pd.DataFrame(rows)


def recall(data: ImageSet, count: int = 40) -> pd.DataFrame:
    """Plant copies of ``count`` images and report what share of each kind passes all three steps (fixed choice, no chance)."""
    threshold = copies_from(data)
    rows = []
    for kind, change in _CHANGES.items():
        kept = 0
        chosen = np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)
        for position in chosen:
            files = data.notes.get("files")
            original = (
                Image.fromarray(data.images[position]) if files is None else decode(files[position])[0]
            ).convert("L")
            pair = [original, change(original)]
            signatures = np.stack(
                [np.asarray(image.resize((SIGNATURE, SIGNATURE), Image.Resampling.BOX)) for image in pair]
            )
            found = duplicates.find(pair.__getitem__, signatures, np.array(["first", "second"]), quiet=True)
            kept += len(found.copies(threshold)) > 0
        rows.append({"planted copy": kind, "found": kept, "of": len(chosen)})
    return pd.DataFrame(rows)


def _jpeg(image: Image.Image) -> Image.Image:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def _smaller(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * 0.8), round(image.height * 0.8)), Image.Resampling.BILINEAR)


_CHANGES = {
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "JPEG quality 60": _jpeg,
    "80% of the size": _smaller,
    "brighter by 20%": lambda image: image.point(lambda value: min(255, round(value * 1.2))),
}


def planted(data: ImageSet, found: Twins) -> pd.DataFrame:
    """How much of what was planted in a generated set the audit finds, and how much of what it finds was planted.

    ``mirrored copies`` and ``pictures of one person`` are pairs of images, found from pixels and from names joined with copies; ``wrong
    labels`` are images, found where two copies contradict each other (so both are suspected, and a wrong label without a copy is missed);
    ``second scanner`` are images, found by an acquisition unlike the others' (:func:`odd_acquisition`).

    Returns:
        A row a flaw: ``flaw``, ``planted``, ``found``, ``both``, ``recall`` and ``precision``.
    """
    place = {name: position for position, name in enumerate(data.ids)}
    copies = {
        (min(k, place[twin]), max(k, place[twin])) for k, twin in enumerate(data.notes["twin_of"]) if twin in place
    }
    called = found.copies(copies_from(data))
    contradicting = called[data.labels[called[:, 0]] != data.labels[called[:, 1]]]
    pairs = {"mirrored copies": (copies, set(map(tuple, called.tolist())))}
    named = by_name("phantom", data.ids, np.array(data.classes)[data.labels])
    pairs["pictures of one person"] = (_together(data.groups), _together(join(named, called)))
    pairs["wrong labels"] = (set(np.flatnonzero(data.notes["wrong_label"])), set(contradicting.ravel().tolist()))
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


def odd_acquisition(data: ImageSet, spread: float = 3.0) -> np.ndarray:
    """Images whose brightness falls from top to bottom unlike the others', ``(N,)`` bool: by over ``spread`` robust standard deviations.

    Receivers and lamps leave such marks; a whole group of images that has one is a source of its own.
    """
    fade = acquisition(data)["fade"].to_numpy()
    middle = np.median(fade)
    return np.abs(fade - middle) > spread * 1.4826 * np.median(np.abs(fade - middle))


def acquisition(data: ImageSet) -> pd.DataFrame:
    """What is known of each image without what it shows: brightness, border and, where it came from a file, size, kind and length."""
    if "metadata" in data.notes:
        return pd.DataFrame({name: column[data.notes["positions"]] for name, column in data.notes["metadata"].items()})
    grey = data.images.mean(axis=3)
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], axis=1).mean(axis=1)
    half = grey.shape[1] // 2
    fade = (grey[:, :half].mean(axis=(1, 2)) - grey[:, half:].mean(axis=(1, 2))) / np.maximum(grey.mean(axis=(1, 2)), 1)
    return pd.DataFrame({"brightness": grey.mean(axis=(1, 2)), "border": border, "fade": fade})


def shortcut_baseline(data: ImageSet) -> pd.DataFrame:
    """Accuracy on the test set of a classifier that sees only :func:`acquisition`, beside that of the most frequent class.

    The higher, the more the class shows in how an image was taken. The interval is a 95% Wilson interval.
    """
    from sklearn.ensemble import RandomForestClassifier
    from statsmodels.stats.proportion import proportion_confint

    seen = pd.get_dummies(acquisition(data)).astype(float)
    train, test = data.index("train"), data.index("test")
    forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0).fit(seen.iloc[train], data.labels[train])
    right = int((forest.predict(seen.iloc[test]) == data.labels[test]).sum())
    frequent = int((data.labels[test] == np.bincount(data.labels[train]).argmax()).sum())
    rows = []
    for name, hits in (("acquisition only", right), ("most frequent class", frequent)):
        lo, hi = proportion_confint(hits, len(test), method="wilson")
        rows.append({"classifier": name, "accuracy": hits / len(test), "lo": lo, "hi": hi, "n": len(test)})
    return pd.DataFrame(rows)


def pixel_probe(images: np.ndarray, data: ImageSet) -> tuple[float, float, float]:
    """Test accuracy, with its 95% Wilson interval, of logistic regression on 16 x 16 thumbnails of ``images``.

    Args:
        images: ``(N, H, W, 3)`` uint8, such as the images of ``data`` without their lesions; labels and split are those of ``data``.
    """
    from sklearn.linear_model import LogisticRegression
    from statsmodels.stats.proportion import proportion_confint

    factor = images.shape[1] // 16
    grey = images[:, : 16 * factor, : 16 * factor].mean(axis=3, dtype=np.float32)
    small = grey.reshape(len(images), 16, factor, 16, factor).mean(axis=(2, 4)).reshape(len(images), -1) / 255 - 0.5
    train, test = data.index("train"), data.index("test")
    model = LogisticRegression(C=10.0, max_iter=5000, tol=1e-3).fit(small[train], data.labels[train])
    hits = int((model.predict(small[test]) == data.labels[test]).sum())
    lo, hi = proportion_confint(hits, len(test), method="wilson")
    return hits / len(test), float(lo), float(hi)


def subject_links(data: ImageSet, found: Twins) -> pd.DataFrame:
    """How well recovered groups agree with image similarity: confirmed pairs within and between groups, by similarity."""
    same = data.groups[found.pairs[:, 0]] == data.groups[found.pairs[:, 1]]
    rows = []
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        above = found.similarity >= low
        rows.append({"similarity_from": low, "pairs": int(above.sum()), "between_groups": int((above & ~same).sum())})
    return pd.DataFrame(rows)


def of_persons(data: ImageSet) -> pd.DataFrame:
    """How many test images of each class are of a person that is known, and how many of these persons training (or validation) has, too.

    Returns:
        A row a class and one for ``all``: ``class``, ``test_images``, ``person_known``, ``also_in_training`` (images), ``persons`` and
        ``persons_also_in_training``.
    """
    whose = np.array([data.notes["slices"][name].person if name in data.notes["slices"] else "" for name in data.ids])
    test = data.split == "test"
    shared = np.isin(whose, whose[np.isin(data.split, ("train", "val"))]) & (whose != "")
    rows = []
    for name, here in [(name, test & (data.labels == label)) for label, name in enumerate(data.classes)] + [
        ("all", test)
    ]:
        sure = here & (whose != "")
        counts = {
            "test_images": int(here.sum()),
            "person_known": int(sure.sum()),
            "also_in_training": int((sure & shared).sum()),
        }
        counts |= {
            "persons": len(np.unique(whose[sure])),
            "persons_also_in_training": len(np.unique(whose[sure & shared])),
        }
        rows.append({"class": name} | counts)
    return pd.DataFrame(rows)


def contradicting(data: ImageSet) -> pd.DataFrame:
    """The images whose label is not that of the slice that they are: ``id``, ``class``, ``slice``, ``slice_class`` and ``person``."""
    labels, rows = np.array(data.classes)[data.labels], []
    for name, label in zip(data.ids.tolist(), labels.tolist(), strict=True):
        of = data.notes["slices"].get(name)
        if of and of.label != label:
            rows.append({"id": name, "class": label, "slice": of.name, "slice_class": of.label, "person": of.person})
    return pd.DataFrame(rows, columns=["id", "class", "slice", "slice_class", "person"])


def recover(images: np.ndarray, slices: np.ndarray) -> pd.DataFrame:
    """The slice that is most like each image, as it is or mirrored, by the correlation of grey values.

    Args:
        images: ``(N, H, W)`` grey values. slices: ``(M, H, W)``.

    Returns:
        A row an image: ``slice`` (its position), ``mirrored``, ``correlation``, and ``next``, the highest of all other slices.
    """
    wanted = np.concatenate([duplicates.unit(slices), duplicates.unit(slices[:, :, ::-1])])
    count, tables = len(slices), []
    for start in range(0, len(images), duplicates.BLOCK):
        alike = duplicates.unit(images[start : start + duplicates.BLOCK]) @ wanted.T
        best, rows = alike.argmax(axis=1), np.arange(len(alike))
        found = {"slice": best % count, "mirrored": best >= count, "correlation": alike[rows, best]}
        alike[rows, best % count] = alike[rows, best % count + count] = -1
        tables.append(pd.DataFrame(found | {"next": alike.max(axis=1)}))
    return pd.concat(tables, ignore_index=True)


def _marked(data: ImageSet, pairs: np.ndarray) -> np.ndarray:
    flags = np.zeros(len(data), bool)
    flags[pairs.ravel()] = True
    return flags


def _signatures(data: ImageSet) -> np.ndarray:
    small = [
        Image.fromarray(image).convert("L").resize((SIGNATURE, SIGNATURE), Image.Resampling.BOX)
        for image in data.images
    ]
    return np.stack([np.asarray(image) for image in small])


def _digests(data: ImageSet) -> np.ndarray:
    return np.array([hashlib.sha256(np.ascontiguousarray(image)).hexdigest()[:32] for image in data.images])
