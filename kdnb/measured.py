"""Recorded results: the tables of full runs, kept in ``data/measured`` with what they depend on, and the answers made from them.

``data/measured/<run>/`` holds a run's contract tables and its provenance; ``data/measured/<dataset>-<profile>.csv`` sums up the runs of one
data set and profile, a row for each split protocol and model. Only :func:`record` writes them, for ``make record RUN=...``
(:mod:`kdnb.findings`).
"""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from kdnb import students
from kdnb.claims import FAILS, HOLDS, MEANING, NO_EFFECT, NOT_TESTABLE, POINTS, UNDECIDED, as_today
from kdnb.datasets import slices, volumes
from kdnb.errors import ArtefactError
from kdnb.evaluation import random_effects
from kdnb.files import atomic_write, read_table
from kdnb.report import TABLES, tables
from kdnb.runs import in_common, opened
from kdnb.settings import profiles, run_name
from kdnb.sources import REPOSITORY
from kdnb.third_dimension import ALIKE, ALL, AVERAGE, CONSTANT, PAPER, SLICES_ALONE, TAUGHT, TEACHER

MEASURED = students.MEASURED
PUBLISHED = REPOSITORY / "data" / "published" / "accuracy.csv"
# Column of the summary -> parameter of the run.
_RUN = {"dataset": "dataset", "profile": "profile", "split_protocol": "split_protocol", "run_seed": "seed"}
NOTE = (
    "Accuracy on the test set with 95% bootstrap intervals, means over seeds; one line a recorded run of `data/measured/`, with its "
    "profile, the images' size and what the teacher started from. The paper's experiment is alike, not the same: images of 224 pixels (to "
    "judge by its counts of operations), a teacher with ImageNet weights, the best of six students, and for Alzheimer MRI an augmented set "
    "of 33,824 images; here the 6,400 before augmentation, and one student throughout (α = 0.4, T = 10)."
)
# Claims whose differences mean the same on all data sets.
TOGETHER = ("student_against_teacher", "distillation_adds", "teacher_adds", "few_labels")
_MEANS = [
    *(f"{name}{end}" for name in ("accuracy", "f1_macro") for end in ("", "_lo", "_hi")),
    *("balanced_accuracy", "ece", "brier", "parameters", "macs"),
]


def record(folder: Path, measured: Path = MEASURED) -> Path:
    """Copy a finished run's contract tables and their provenance into ``data/measured``, sum them up, and return the new folder.

    Of the runs of :data:`kdnb.students.RUNS` the students of :data:`kdnb.students.KEPT` are kept, too.

    Raises:
        ArtefactError: the run is not finished, or a table was changed since a notebook wrote it.
    """
    report = folder / "report.html"
    if not report.exists():
        raise ArtefactError(f"{folder} holds no finished run: run `make reproduce` first.")
    if any(path.stat().st_mtime > report.stat().st_mtime for path in (folder / "notebooks").glob("*.ipynb")):
        raise ArtefactError(f"{folder} has notebooks newer than its report: run `make reproduce` first.")
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    kept = measured / folder.name
    found = {name: table for name, table in tables(folder, info).items() if name in TABLES}
    if volumes.stand_in(
        info["run"]["dataset"], info.get("volumes", {}).get("source")
    ):  # the phantom's own runs have them
        found = {name: table for name, table in found.items() if not name.startswith(("volumes", "tests_volumes"))}
    for name, table in found.items():
        with atomic_write(kept / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    for path in kept.glob("*.csv"):
        if path.stem not in found:  # an earlier record of this run had it
            path.unlink()
    provenance = {name: info.get(name, {}) for name in ("run", "data", "teacher", "volumes")}
    provenance |= {name: in_common(info.get(name, {})) for name in ("environment", "budget")}
    if folder.name in students.RUNS and info.get("students"):
        provenance["students"] = students.record(opened(folder, "record"), found["per_class"]["class"].nunique(), kept)
    provenance["date"] = datetime.fromtimestamp(report.stat().st_mtime, UTC).date().isoformat()
    with atomic_write(kept / "provenance.json") as path:
        path.write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name, table in summaries(measured).items():
        with atomic_write(measured / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    return kept


def _runs(measured: Path) -> Iterator[tuple[Path, dict]]:
    """The recorded runs in the order of their names: each one's folder and provenance."""
    for path in sorted(measured.glob("*/provenance.json")):
        yield path.parent, json.loads(path.read_text(encoding="utf-8"))


def recorded(measured: Path = MEASURED) -> pd.DataFrame:
    """What the recorded runs say: a row for each data set, profile, split protocol and model; empty where none is recorded.

    Columns: ``seeds`` trained; ``n`` test images; ``accuracy`` and ``f1_macro``, means over seeds, each with ``_lo`` and ``_hi``, the means
    over seeds of the 95% bootstrap limits, and ``_sd``, the standard deviation over seeds; ``balanced_accuracy``, ``ece`` and ``brier``,
    means over seeds; ``parameters`` and ``macs`` of one network; commit, date, device, the images' size in ``pixels``, the teacher's
    weights at the start and the hashes of data and split.
    """
    found = [pd.DataFrame(columns=[*_RUN, "model"])]
    for folder, provenance in _runs(measured):
        run, data = provenance["run"], provenance["data"]
        by_model = pd.read_csv(folder / "classification.csv").groupby("model", sort=False)
        mean = by_model[[name for name in _MEANS if name in by_model.obj]].mean()
        spread = by_model[["accuracy", "f1_macro"]].std().add_suffix("_sd")
        table = pd.concat([by_model.size().rename("seeds"), by_model["n"].first(), mean, spread], axis=1).reset_index()
        for position, (column, name) in enumerate(_RUN.items()):
            table.insert(position, column, run[name])
        machine = provenance["environment"]
        machine = machine | machine.get("03_distillation", {})  # the notebook that trained and scored these models
        facts = {
            "commit": machine.get("commit"),
            "date": provenance["date"],
            "device": machine["device"],
            "pixels": provenance["budget"].get("image_size"),
            "teacher_weights": provenance["teacher"].get("weights"),
        }
        facts |= {"data_hash": data.get("data_hash"), "split_hash": data.get(f"split_hash_{run['split_protocol']}")}
        found.append(table.assign(**facts))
    return pd.concat(found[1:] or found, ignore_index=True)


def summaries(measured: Path = MEASURED) -> dict[str, pd.DataFrame]:
    """``<dataset>-<profile>``, as a run's folder begins -> the rows of :func:`recorded` for that data set and profile."""
    groups = recorded(measured).groupby(["dataset", "profile"])
    return {
        run_name(dataset, profile, seed=0).removesuffix("-seed0"): rows.drop(
            columns=["dataset", "profile"]
        ).reset_index(drop=True)
        for (dataset, profile), rows in groups
    }


def tables_of(name: str, measured: Path = MEASURED) -> dict[str, pd.DataFrame]:
    """Run's folder -> its table ``name``, for each recorded run that has it; claims in the units and words of today."""
    found = {folder.name: folder / f"{name}.csv" for folder, _ in _runs(measured)}
    read = {run: read_table(path) for run, path in found.items() if path.exists()}
    return {run: as_today(table) for run, table in read.items()} if name == "claims" else read


def verdicts(measured: Path = MEASURED) -> pd.DataFrame:
    """Verdict, value and interval of each claim (rows) in each recorded run (columns, named by the run's folder)."""
    found = {
        run: claims.set_index("statement").apply(_verdict, axis=1)
        for run, claims in tables_of("claims", measured).items()
    }
    in_order = dict.fromkeys(statement for claims in found.values() for statement in claims.index)
    return pd.DataFrame(found).reindex(list(in_order)).fillna("").rename_axis("claim")


def _verdict(claim: pd.Series) -> str:
    if pd.isna(claim["measured"]):
        return claim["verdict"]
    interval = f" [{claim['lo']:.3g}, {claim['hi']:.3g}]" if claim["lo"] < claim["hi"] else ""
    return f"{claim['verdict']}: {claim['measured']:.3g}{interval}{' points' * (claim['unit'] == POINTS)}"


def effects(claim: str, measured: Path = MEASURED) -> pd.DataFrame:
    """The difference in points that ``claim`` is about in one recorded run of each data set, and in all of them together.

    Runs on the official split count; where a data set has several they share its test images, so the one of the longest profile stands
    for all. Columns: ``run``, ``difference``, ``lo``, ``hi``; the last row, ``together``, is :func:`kdnb.evaluation.random_effects` over
    real data sets: generated images are as many and as easy as somebody chose, so they weigh nothing there.
    """
    claims, lengths, rows = tables_of("claims", measured), list(profiles()), {}
    for folder, provenance in sorted(_runs(measured), key=lambda found: lengths.index(found[1]["run"]["profile"])):
        run = provenance["run"]
        if run["split_protocol"] == "official" and folder.name in claims:
            found = claims[folder.name].set_index("claim").reindex([claim]).iloc[0]
            if found["lo"] < found["hi"]:  # NaN, where the run does not know the claim or cannot test it, is not
                rows[run["dataset"]] = (folder.name, *found[["measured", "lo", "hi"]].astype(float))
    found = pd.DataFrame([rows[dataset] for dataset in sorted(rows)], columns=["run", "difference", "lo", "hi"])
    real = found[~found["run"].str.startswith("phantom")]
    if len(real) < 2:
        return found
    return pd.concat(
        [found, pd.DataFrame([("together", *random_effects(real))], columns=found.columns)], ignore_index=True
    )


def _published(published: pd.DataFrame, dataset: str, model: str) -> str:
    found = published[(published["dataset"] == dataset) & (published["model"] == model)]["accuracy"]
    return f"{found.iloc[0]:.3f}" if len(found) else "–"


def readme_table(measured: Path = MEASURED, published: Path = PUBLISHED) -> str:
    """Accuracy on the test set, measured (95% interval) beside published, one line a recorded run."""
    known = pd.read_csv(published)
    heads = [
        "data, split",
        "images",
        *(f"{name}, measured | paper" for name in ("teacher", "taught student")),
        "student without teacher",
    ]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * (len(heads) + 2) + "|"]
    for (dataset, profile, protocol, _), rows in recorded(measured).groupby(
        ["dataset", "profile", "split_protocol", "run_seed"], sort=False
    ):
        scores = rows.set_index("model")
        teacher = scores.loc["teacher"]
        what = f"`{dataset}`, {protocol} (`{profile}`, {teacher.pixels} px, {teacher.teacher_weights})"
        cells = [what, f"{int(teacher.n)}"]
        for model in ("teacher", "student_kd", "student_ce"):
            row = scores.loc[model]
            cells.append(f"{row.accuracy:.3f} ({row.accuracy_lo:.3f} to {row.accuracy_hi:.3f})")
            if model != "student_ce":
                cells.append(_published(known, dataset, model) if protocol == "official" else "–")
        lines.append("| " + " | ".join(cells) + " |")
    if len(lines) == 2:
        return "No full run is recorded yet (`make record RUN=runs/...`)."
    return "\n".join([*lines, "", NOTE])


# The answer in three sentences: {claim} becomes in how many recorded runs that claim holds.
_BRIEF = (
    "**Accuracy:** the five-layer student keeps up with its teacher {student_against_teacher}; that the teacher adds to what the labels "
    "teach is shown {distillation_adds} where all images are labelled, {long_training} where the students then train several times as "
    "long, and {few_labels} where few images are labelled (these two: the loss with T²). That what it adds there is knowledge of the "
    "images and not a softer target is shown {knowledge}.",
    "**Explanations:** average maps on the student are 200 times faster than SHAP on the teacher {maps_over_shap}{alone}; they are as "
    "faithful as Grad-CAM {maps_as_grad_cam}, as SHAP {maps_as_shap}, as integrated gradients {maps_as_integrated_gradients}, "
    "and more faithful than every map that knows nothing of what was learned "
    "{maps_over_controls}. That teaching makes average maps better is shown {teaching_explains} (the loss with T²: "
    "{teaching_explains_t2}), and that it does where the teacher's maps are taught too {maps_taught}.",
    "**Data:** {persons}; the accuracy holds for persons and pictures that training does not know {new_images}.",
)
_AGAINST = {FAILS: "against", NO_EFFECT: "without an effect beyond the margin", UNDECIDED: "undecided"}
_ANSWERS = {HOLDS: "yes", FAILS: "no", NO_EFFECT: "no effect beyond the margin", UNDECIDED: "undecided"}
# Claim -> the question that it answers, and what the number is that was measured.
_QUESTIONS = {
    "student_against_teacher": ("Does the student keep up with its teacher?", " points of accuracy"),
    "distillation_adds": ("Does the teacher add to what the labels teach?", " points of accuracy"),
    "teacher_adds": ("The same with the loss with T²:", " points of accuracy"),
    "oracle_adds": ("Would perfect soft labels, the true probabilities, add?", " points of accuracy"),
    "better_teacher": ("And a teacher that is better than its students, their own ensemble?", " points of accuracy"),
    "few_labels": (
        "Few labels, and a teacher that learned from many: does it add? The loss with T²:",
        " points of accuracy",
    ),
    "few_labels_without_t2": ("The same with the paper's loss, without T²:", " points of accuracy"),
    "knowledge": (
        "Is that knowledge of the images? Against teachers with the same margin that know nothing of them:",
        " points over the nearest of these",
    ),
    "unlabelled_images": (
        "Does the teacher hand on what it knows of images that nobody labelled?",
        " points of accuracy",
    ),
    "long_training": (
        "Does the teacher add where the students train several times as long? The loss with T²:",
        " points of accuracy",
    ),
    "new_images": ("Does the accuracy hold for persons and pictures that training does not know?", " points"),
    "relatives": (
        "Add the images of validation to training: do test images that stay new gain as much as those that become known?",
        " points",
    ),
    "maps_as_grad_cam": ("Are average maps as faithful as Grad-CAM?", " points by the nearest metric"),
    "maps_as_shap": ("Are they as faithful as SHAP?", " points by the nearest metric"),
    "maps_as_integrated_gradients": ("Are they as faithful as integrated gradients?", " points by the nearest metric"),
    "maps_over_controls": (
        "Do they show what was learned, more than random maps, the centre, edges, a uniform map or an untrained network's?",
        " points over the nearest of these",
    ),
    "maps_mark": (
        "Do they mark the lesion better than every control, where lesions usually lie included?",
        " points of pixel AUC",
    ),
    "teaching_explains": (
        "Does teaching make average maps better? The paper's loss:",
        " points by the measure that decides",
    ),
    "teaching_explains_t2": ("The same with the loss with T²:", " points by the measure that decides"),
    "maps_taught": ("And where the teacher's maps are taught too?", " points by the measure that decides"),
    "maps_over_shap": ("Are average maps on the student 200 times faster than SHAP on the teacher?", " times"),
}
# Claim on volumes -> what its number is.
_IN_VOLUMES = {
    "volumes_keep_up": "student minus teacher",
    "volumes_few": "few labels, what the teacher adds by the loss with T²",
    "volumes_depth": "what kernels in depth add at equal operations",
    "volumes_maps": "average maps over the nearest map that knows nothing",
    "volumes_cost": "SHAP on the teacher over average maps on the student",
}


def _line(what: str, found: list[str]) -> list[str]:
    return [f"- **{what}** {'; '.join(found)}."] if found else []


def _without_leaks(runs: pd.DataFrame) -> list[str]:
    """A line with the taught student's accuracy on the official split and on one without leaks, where a data set has both."""
    taught = runs[runs["model"] == "student_kd"]
    official = taught["split_protocol"] == "official"
    both = taught[official].merge(taught[~official], on=["dataset", "profile", "run_seed"], suffixes=("_official", ""))
    found = [
        f"`{row.dataset}`: official {row.accuracy_official:.3f}, {row.split_protocol} {row.accuracy:.3f}"
        for row in both.itertuples()
    ]
    return _line("What is left of the taught student's accuracy where the split does not leak?", found)


def _official(name: str, measured: Path) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The recorded runs on an official split that have the table ``name``: each one's folder, data set and table."""
    tables = tables_of(name, measured)
    for folder, provenance in _runs(measured):
        if provenance["run"]["split_protocol"] == "official" and folder.name in tables:
            yield folder.name, provenance["run"]["dataset"], tables[folder.name]


def _on_new_images(measured: Path) -> list[str]:
    """A line with the taught student's accuracy on those official test images that neither training nor validation knows."""
    whole, found = tables_of("classification", measured), []
    for run, dataset, new in _official("new_images", measured):
        asked = "model == 'student_kd'"
        row = new.query(f"{asked} and learned_from == 'training'")[["n", "accuracy"]].mean()
        of_all = whole[run].query(asked)[["n", "accuracy"]].mean()
        if row["n"] < of_all["n"]:
            found.append(
                f"`{dataset}`: {row['accuracy']:.3f} on {row['n']:.0f} of {of_all['n']:.0f} images (on all {of_all['accuracy']:.3f})"
            )
    return _line(
        "And on those official test images of which training and validation know neither a copy nor the person?", found
    )


def _trained_longer(measured: Path) -> list[str]:
    """A line with the macro F1 of the teacher and, by length of training, of students of the labels alone; their accuracy on new images."""
    whole, found = tables_of("classification", measured), []
    for run, dataset, table in _official("lengths", measured):
        table = table[table["model"] == "student_ce"]
        if table["accuracy_known"].notna().all():
            means = table.groupby(["learned_from", "epochs"])[["f1_macro", "accuracy_new"]].mean()
            f1 = ", ".join(
                f"{f1:.3f} ({learned_from}, {epochs} epochs)"
                for (learned_from, epochs), f1 in means["f1_macro"].items()
            )
            new = ", then ".join(f"{accuracy:.3f}" for accuracy in means.loc["training", "accuracy_new"])
            teacher = whole[run].query("model == 'teacher'")["f1_macro"].iloc[0]
            found.append(
                f"`{dataset}` (its teacher: {teacher:.3f}): F1 {f1}; accuracy on images that training does not know {new}"
            )
    return _line("What does longer training add? Students of the labels alone, by what they learned from:", found)


def _in_volumes(measured: Path) -> list[str]:
    """A line with what each data set's volumes say: accuracies, and the verdict and number of each claim on volumes.

    Volumes are split by persons whatever the split of the images, so one run of the longest profile speaks for a data set. Generated ones
    beside images of another kind answer no claim, and have no line.
    """
    networks, claims, explained, tests = (
        tables_of(name, measured) for name in ("volumes", "claims", "volumes_explained", "tests_volumes")
    )
    lengths, found = list(profiles()), {}
    for folder, provenance in sorted(_runs(measured), key=lambda run: lengths.index(run[1]["run"]["profile"])):
        run = folder.name
        if run not in networks or run not in claims:
            continue
        judged = claims[run].set_index("claim").reindex(_IN_VOLUMES).dropna(subset="measured")
        judged = judged[judged["verdict"] != NOT_TESTABLE]
        if judged.empty:
            continue
        said = [_accuracies(networks[run])]
        for claim, row in judged.iterrows():
            value = f"{row['measured']:+.1f} points [{row['lo']:+.1f}, {row['hi']:+.1f}]"
            value = f"{row['measured']:.0f} times" if claim == "volumes_cost" else value
            said.append(f"{_IN_VOLUMES[claim]} {value} (*{_ANSWERS[MEANING[row['verdict']]]}*)")
            if claim == "volumes_few" and run in tests:
                alike = tests[run][(tests[run]["metric"] == "balanced_accuracy") & (tests[run]["a"] == TAUGHT)]
                said += [
                    f"{ALIKE} {100 * one.difference:+.1f} [{100 * one.lo:+.1f}, {100 * one.hi:+.1f}]"
                    for one in alike.itertuples()
                ]
        said += _in_depth(explained[run]) if run in explained else []
        found[provenance["run"]["dataset"]] = "; ".join(said)
    return [
        f"- **Does it carry over to volumes, by persons?** `{dataset}`: {found[dataset]}." for dataset in sorted(found)
    ]


def _accuracies(table: pd.DataFrame) -> str:
    mean = table[table["labels"] == ALL].groupby("way")["accuracy"].mean()
    names = {
        PAPER: "the taught student",
        TEACHER: "its teacher",
        SLICES_ALONE: "a student of slices",
        CONSTANT: CONSTANT,
    }
    return "accuracy " + ", ".join(f"{mean[way]:.3f} ({name})" for way, name in names.items() if way in mean)


def _in_depth(table: pd.DataFrame) -> list[str]:
    """How often the highest voxel lies in the lesion, and how much of it the slice of most mass hides; empty where no lesion is known."""
    shown = table[table["way"] == PAPER].pivot(index="method", columns="metric", values="mean")
    if "hidden" not in shown:
        return []
    names = {AVERAGE: "average map", "integrated_gradients": "integrated gradients"}
    hits = ", ".join(f"{shown.loc[method, 'pointing_game']:.0%} ({name})" for method, name in names.items())
    hidden = f"{shown.loc[AVERAGE, 'hidden']:.0%} of it lies outside the slice where the average map has most mass"
    return [f"the highest voxel lies in the lesion in {hits}; {hidden}"]


def _over_all(claim: str, measured: Path) -> str:
    found = effects(claim, measured) if claim in TOGETHER else pd.DataFrame()
    if found.empty or found["run"].iloc[-1] != "together":
        return ""
    mean, lo, hi = found[["difference", "lo", "hi"]].iloc[-1]
    many = int((~found["run"].iloc[:-1].str.startswith("phantom")).sum())
    return f"; over the official splits of {many} real data sets {mean:+z.1f} [{lo:+z.1f}, {hi:+z.1f}]"


def tested(measured: Path) -> pd.DataFrame:
    """The claims that a recorded run can test, of all runs one below the other: ``run`` and the columns of ``claims.csv``.

    Verdicts are those of :data:`kdnb.claims.VERDICTS`, whoever makes a claim.
    """
    tables = [table.assign(run=run) for run, table in tables_of("claims", measured).items()]
    claims = pd.concat([pd.DataFrame(columns=["run", "claim", "verdict", "measured"]), *tables], ignore_index=True)
    return claims[claims["verdict"] != NOT_TESTABLE].assign(verdict=lambda rows: rows["verdict"].map(MEANING))


def span(values: pd.Series, unit: str) -> str:
    """The least and the most of some numbers, once where they are the same: ``+1.0 to +2.2 points``."""
    ends = dict.fromkeys(
        f"{value:.0f}" if unit == " times" else f"{value:+.1f}" for value in (values.min(), values.max())
    )
    return f"{' to '.join(ends)}{unit}"


def in_brief(measured: Path = MEASURED) -> str:
    """Does it hold? Three sentences: in how many of the recorded runs that can test it a claim holds."""
    of_all, counts = tested(measured), {}
    for claim in _QUESTIONS:
        found = Counter(of_all.loc[of_all["claim"] == claim, "verdict"])
        others = ", ".join(f"{found[verdict]} {said}" for verdict, said in _AGAINST.items() if found[verdict])
        counts[claim] = f"in {found[HOLDS]} of {found.total()}" + f" ({others})" * bool(others)
    counts |= {"persons": persons_on_both_sides(), "alone": _method_alone(measured)}
    return "\n\n".join(
        ["Counted over the recorded runs that can test a claim:", *(sentence.format(**counts) for sentence in _BRIEF)]
    )


def _method_alone(measured: Path) -> str:
    """How much faster maps are than SHAP on one and the same network, the student: the model's share of that claim left out."""
    ratios = []
    for table in tables_of("met", measured).values():
        times = table[(table["model"] == "student_kd") & (table["batch_size"] == table["batch_size"].max())]
        times = times.set_index("method")["ms_per_image_median"]
        if {"shap", "feature_maps_mean"} <= set(times.index):
            ratios.append(times["shap"] / times["feature_maps_mean"])
    ends = " to ".join(dict.fromkeys(f"{ratio:.0f}" for ratio in (min(ratios), max(ratios)))) if ratios else ""
    return f" (both on the student, so that the method alone counts: {ends} times)" if ends else ""


def persons_on_both_sides() -> str:
    """What the table of slices says of brain MRI's published split."""
    known = slices.known("figshare_brain", "brain_tumor_slices.csv")
    trained_on = {one.person for name, one in known.items() if name.startswith("Training/")}
    tested = [one.person for name, one in known.items() if name.startswith("Testing/")]
    leaked, persons = [person for person in tested if person in trained_on], set(tested)
    return (
        f"of the people in brain MRI's official test set {len(persons)} are known, and {len(set(leaked))} of these have other slices in "
        f"training ({len(leaked)} of {len(tested)} images)"
    )


def answer(measured: Path = MEASURED) -> str:
    """Does it hold? A line for each question: the verdicts in the recorded runs that can test it, and the range of what was measured."""
    of_all, lines = tested(measured), []
    for claim, (question, unit) in _QUESTIONS.items():
        rows = of_all[of_all["claim"] == claim]
        if len(rows):
            said = ", ".join(
                f"*{_ANSWERS[verdict]}* in {count}" for verdict, count in Counter(rows["verdict"]).most_common()
            )
            runs = f"{len(rows)} recorded run{'s' * (len(rows) > 1)}"
            lines.append(
                f"- **{question}** Of {runs}: {said}; {span(rows['measured'], unit)}{_over_all(claim, measured)}."
            )
    return (
        "\n".join(
            [
                *lines,
                *_without_leaks(recorded(measured)),
                *_on_new_images(measured),
                *_trained_longer(measured),
                *_in_volumes(measured),
            ]
        )
        or "No full run is recorded yet (`make record RUN=runs/...`)."
    )
