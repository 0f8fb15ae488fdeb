"""Recorded results: the tables of full runs, kept in ``data/measured``, and the answers made from them.

``data/measured/<run>/`` holds a run's contract tables and its provenance; ``data/measured/<dataset>-<profile>.csv``
sums up the runs of one data set and profile, a row for each split protocol and model. Only :func:`record` writes them,
for ``make record RUN=...`` (:mod:`kdnb.findings`).
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from kdnb import students, teachers
from kdnb.claims import CLAIMS, FAILS, HOLDS, MEANING, NO_EFFECT, NOT_TESTABLE, POINTS, UNDECIDED, as_today
from kdnb.datasets import slices, volumes
from kdnb.errors import ArtefactError
from kdnb.evaluation import random_effects
from kdnb.files import atomic_write, file_hash, read_table
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
    "Accuracy on the test set with 95% bootstrap intervals, means over seeds; one line a recorded run of "
    "`data/measured/`, with its profile, the images' size and what the teacher started from. The paper's experiment is "
    "alike, not the same: images of 224 pixels (to judge by its counts of operations), a teacher with ImageNet "
    "weights, the best of six students, and for Alzheimer MRI an augmented set of 33,824 images; here the 6,400 "
    "before augmentation, and one student throughout (α = 0.4, T = 10)."
)
# Claims whose differences mean the same on all data sets.
TOGETHER = {
    "student_against_teacher": "taught student minus teacher",
    "distillation_adds": "taught minus not taught",
    "teacher_adds": "the same with T²",
    "few_labels": "few labels, T²",
    "knowledge": "few labels, T², minus teachers without knowledge",
    "unlabelled_images": "few labels, T², further images without their labels",
    "better_teacher": "taught by an ensemble, T²",
}
# Data set -> another that shows the same persons: a sum over data sets counts them once.
SAME_PERSONS = {"figshare_brain": "brain_tumor"}
_MEANS = [
    *(f"{name}{end}" for name in ("accuracy", "f1_macro") for end in ("", "_lo", "_hi")),
    *("balanced_accuracy", "ece", "brier", "parameters", "macs"),
]


def record(folder: Path, measured: Path = MEASURED) -> Path:
    """Copy a finished run's contract tables and their provenance into ``data/measured``, and sum them up.

    Of the runs of :data:`kdnb.students.RUNS` the students of :data:`kdnb.students.KEPT` are kept, too.

    Args:
        folder: the run's.
        measured: where records are kept.

    Returns:
        The folder of the record.

    Raises:
        ArtefactError: the run is not finished, or a table was changed since a notebook wrote it.
    """
    report = folder / "report.html"
    if not report.exists():
        raise ArtefactError(f"{folder} holds no finished run: run `make reproduce` first.")
    if any(path.stat().st_mtime > report.stat().st_mtime for path in (folder / "notebooks").glob("*.ipynb")):
        raise ArtefactError(f"{folder} has notebooks newer than its report: run `make reproduce` first.")
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record_folder = measured / folder.name
    contract = {name: table for name, table in tables(folder, info).items() if name in TABLES}
    source_of_volumes = info.get("volumes", {}).get("source")
    if volumes.stand_in(info["run"]["dataset"], source_of_volumes):  # the phantom's own runs have them
        contract = {
            name: table for name, table in contract.items() if not name.startswith(("volumes", "tests_volumes"))
        }
    for name, table in contract.items():
        with atomic_write(record_folder / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    for path in record_folder.glob("*.csv"):
        if path.stem not in contract:  # an earlier record of this run had it
            path.unlink()
    provenance = {name: info.get(name, {}) for name in ("run", "data", "teacher", "volumes")}
    provenance |= {name: in_common(info.get(name, {})) for name in ("environment", "budget")}
    if provenance["teacher"].get("task"):  # it is the recorded one, kept apart
        provenance["teacher"]["recorded_sha256"] = file_hash(teachers.RECORDED)
    if folder.name in students.RUNS and info.get("students"):
        class_count = contract["per_class"]["class"].nunique()
        provenance["students"] = students.record(opened(folder, "record"), class_count, record_folder)
    provenance["date"] = datetime.fromtimestamp(report.stat().st_mtime, UTC).date().isoformat()
    with atomic_write(record_folder / "provenance.json") as path:
        path.write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name, table in summaries(measured).items():
        with atomic_write(measured / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    return record_folder


def _recorded_runs(measured: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The recorded runs in the order of their names: each one's folder and provenance."""
    for path in sorted(measured.glob("*/provenance.json")):
        yield path.parent, json.loads(path.read_text(encoding="utf-8"))


def recorded(measured: Path = MEASURED) -> pd.DataFrame:
    """What the recorded runs say: a row for each data set, profile, split protocol and model.

    Args:
        measured: where records are kept.

    Returns:
        A table, empty where no run is recorded. Columns: ``seeds`` trained; ``n`` test images; ``accuracy`` and
        ``f1_macro``, means over seeds, each with ``_lo`` and ``_hi``, the means over seeds of the 95% bootstrap limits,
        and ``_sd``, the standard deviation over seeds; ``balanced_accuracy``, ``ece`` and ``brier``, means over seeds;
        ``parameters`` and ``macs`` of one network; commit, date, device, the images' size in ``pixels``, the teacher's
        weights at the start and the hashes of data and split.
    """
    per_run = [pd.DataFrame(columns=[*_RUN, "model"])]
    for folder, provenance in _recorded_runs(measured):
        run, data = provenance["run"], provenance["data"]
        by_model = pd.read_csv(folder / "classification.csv").groupby("model", sort=False)
        mean = by_model[[name for name in _MEANS if name in by_model.obj]].mean()
        spread = by_model[["accuracy", "f1_macro"]].std().add_suffix("_sd")
        table = pd.concat([by_model.size().rename("seeds"), by_model["n"].first(), mean, spread], axis=1).reset_index()
        for position, (column, name) in enumerate(_RUN.items()):
            table.insert(position, column, run[name])
        environment = provenance["environment"]
        environment = environment | environment.get("03_distillation", {})  # who trained and scored these models
        facts = {
            "commit": environment.get("commit"),
            "date": provenance["date"],
            "device": environment["device"],
            "pixels": provenance["budget"].get("image_size"),
            "teacher_weights": provenance["teacher"].get("weights"),
        }
        facts |= {"data_hash": data.get("data_hash"), "split_hash": data.get(f"split_hash_{run['split_protocol']}")}
        per_run.append(table.assign(**facts))
    return pd.concat(per_run[1:] or per_run, ignore_index=True)


def summaries(measured: Path = MEASURED) -> dict[str, pd.DataFrame]:
    """The rows of :func:`recorded` by data set and profile: ``<dataset>-<profile>``, as a run's folder begins."""
    keys = ["dataset", "profile"]
    groups = recorded(measured).groupby(keys)
    return {
        run_name(dataset, profile, seed=0).removesuffix("-seed0"): rows.drop(columns=keys).reset_index(drop=True)
        for (dataset, profile), rows in groups
    }


@dataclass(frozen=True)
class _Record:
    """The tables of a recorded run, as the rules of :mod:`kdnb.claims` ask for them."""

    folder: Path

    def has_table(self, name: str) -> bool:
        return (self.folder / f"{name}.csv").exists()

    def load_table(self, name: str) -> pd.DataFrame:
        return read_table(self.folder / f"{name}.csv")


def tables_of(name: str, measured: Path = MEASURED) -> dict[str, pd.DataFrame]:
    """Run's folder -> its table ``name``, for each recorded run that has it; claims :func:`kdnb.claims.as_today`."""
    records = [found for folder, _ in _recorded_runs(measured) if (found := _Record(folder)).has_table(name)]
    tables_by_run = {found.folder.name: found.load_table(name) for found in records}
    if name == "claims":
        return {found.folder.name: as_today(tables_by_run[found.folder.name], found) for found in records}
    return tables_by_run


def verdicts(measured: Path = MEASURED) -> pd.DataFrame:
    """Verdict, value and interval of each claim (rows) in each recorded run (columns, named by the run's folder)."""
    by_run = {
        run: claims.set_index("statement").apply(_verdict, axis=1)
        for run, claims in tables_of("claims", measured).items()
    }
    statements = dict.fromkeys(statement for claims in by_run.values() for statement in claims.index)
    return pd.DataFrame(by_run).reindex(list(statements)).fillna("").rename_axis("claim")


def _verdict(claim: pd.Series) -> str:
    """Verdict and number in one cell; a rule that is not today's is named."""
    today = CLAIMS[claim["claim"]].rule
    of_its_day = " (by the rule of its day)" * (claim.get("rule", today) != today)
    return f"{_verdict_and_number(claim)}{of_its_day}"


def _verdict_and_number(claim: pd.Series) -> str:
    if pd.isna(claim["measured"]):
        return claim["verdict"]
    interval = f" [{claim['lo']:.3g}, {claim['hi']:.3g}]" if claim["lo"] < claim["hi"] else ""
    return f"{claim['verdict']}: {claim['measured']:.3g}{interval}{' points' * (claim['unit'] == POINTS)}"


def judged(measured: Path = MEASURED) -> pd.DataFrame:
    """Every claim of every recorded run, as today's rules have it, with what decides whether the run speaks.

    Args:
        measured: where records are kept.

    Returns:
        ``run``, ``dataset``, ``generated`` (its images are), ``official`` (split as published), ``without_leaks``
        (training knows no person and no copy of a test image, as far as is known), and the columns of ``claims.csv``.
        Of the runs of one data set, which share images and are no two answers, the last stands for it: those without
        leaks lie behind the others, those of a longer profile behind those of a shorter one, those on a new split
        behind those on the published one.
    """
    by_run, shortest_first, speaking_last = tables_of("claims", measured), list(profiles()), []
    for folder, provenance in _recorded_runs(measured):
        run, without_leaks = provenance["run"], not _knows_test_images(folder)
        if folder.name in by_run:
            official = run["split_protocol"] == "official"
            facts = {"dataset": run["dataset"], "generated": run["dataset"].startswith("phantom")}
            facts |= {"official": official, "without_leaks": without_leaks}
            rank = (without_leaks, shortest_first.index(run["profile"]), not official, folder.name)
            speaking_last.append((rank, by_run[folder.name].assign(run=folder.name, **facts)))
    tables = [table for _, table in sorted(speaking_last, key=lambda ranked: ranked[0])]
    columns = ["run", "dataset", "generated", "official", "without_leaks", "claim", "verdict", "measured", "lo", "hi"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def tested(claims: pd.DataFrame) -> pd.DataFrame:
    """The claims that a recorded run can test, each once a data set.

    Args:
        claims: those of all runs (:func:`judged`).

    Returns:
        Its columns, in the order of runs' names; verdicts are those of :data:`kdnb.claims.VERDICTS`, whoever makes a
        claim.
    """
    claims = claims[claims["verdict"] != NOT_TESTABLE].drop_duplicates(["claim", "dataset"], keep="last")
    in_order = claims.sort_values("run", kind="stable", ignore_index=True)
    return in_order.assign(verdict=in_order["verdict"].map(MEANING))


def effects(claims: pd.DataFrame, claim: str, *, without_leaks: bool = False) -> pd.DataFrame:
    """The difference that ``claim`` is about in one recorded run of each data set, and in all of them together.

    Args:
        claims: those of all runs (:func:`judged`).
        claim: its name in :data:`kdnb.claims.CLAIMS`.
        without_leaks: count the runs without leaks instead of those on the official split; one on such an official
            split counts in both, and so do generated images, whose students are scored without the luck of the drawn
            labels that could be remembered.

    Returns:
        Columns ``run``, ``difference``, ``lo``, ``hi``, in points. The last row, ``together``, is
        :func:`kdnb.evaluation.random_effects` over real data sets, where there are two: generated images are as many
        and as easy as somebody chose, so they weigh nothing there, and the same persons weigh once.
    """
    counts = claims["generated"] | claims["without_leaks"] if without_leaks else claims["official"]
    rows = claims[(claims["claim"] == claim) & (claims["lo"] < claims["hi"]) & counts.astype(bool)]
    rows = rows.drop_duplicates("dataset", keep="last").sort_values("dataset", ignore_index=True)
    table = rows.rename(columns={"measured": "difference"})[["run", "difference", "lo", "hi"]]
    real = _independent(table)
    if len(real) < 2:
        return table
    pooled = pd.DataFrame([("together", *random_effects(real))], columns=table.columns)
    return pd.concat([table, pooled], ignore_index=True)


def together(claims: pd.DataFrame, claim: str, *, without_leaks: bool = False) -> tuple[pd.Series, int] | None:
    """The last row of :func:`effects` and over how many real data sets it is; ``None`` where there are not two."""
    table = effects(claims, claim, without_leaks=without_leaks)
    if table.empty or table["run"].iloc[-1] != "together":
        return None
    return table.iloc[-1], len(_independent(table.iloc[:-1]))


def _independent(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of real data sets that do not show the persons of another of them."""
    datasets = table["run"].str.split("-").str[0]
    again = datasets.map(SAME_PERSONS).isin(set(datasets))
    return table[~datasets.str.startswith("phantom") & ~again]


def _knows_test_images(folder: Path) -> bool:
    """Whether a recorded run tested on persons or copies that training knew, or did not ask."""
    path = folder / "known_and_new.csv"
    return not path.exists() or read_table(path)["part"].eq("known").any()


def _published(published: pd.DataFrame, dataset: str, model: str) -> str:
    accuracy = published[(published["dataset"] == dataset) & (published["model"] == model)]["accuracy"]
    return f"{accuracy.iloc[0]:.3f}" if len(accuracy) else "–"


def readme_table(measured: Path = MEASURED, published: Path = PUBLISHED) -> str:
    """Accuracy on the test set, measured (95% interval) beside published, one line a recorded run."""
    published_accuracy = pd.read_csv(published)
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
        data_and_split = f"`{dataset}`, {protocol} (`{profile}`, {teacher.pixels} px, {teacher.teacher_weights})"
        cells = [data_and_split, f"{int(teacher.n)}"]
        for model in ("teacher", "student_kd", "student_ce"):
            row = scores.loc[model]
            cells.append(f"{row.accuracy:.3f} ({row.accuracy_lo:.3f} to {row.accuracy_hi:.3f})")
            if model != "student_ce":
                cells.append(_published(published_accuracy, dataset, model) if protocol == "official" else "–")
        lines.append("| " + " | ".join(cells) + " |")
    if len(lines) == 2:
        return "No full run is recorded yet (`make record RUN=runs/...`)."
    return "\n".join([*lines, "", NOTE])


BY_DATA_SET = (
    "Counted over the data sets that can test a claim, each by its run without leaks where there is one (generated "
    "images among them); what neither holds nor is against is undecided, unless *no effect* is said:"
)
# The answer in three sentences: {claim} becomes in how many data sets that claim holds.
_BRIEF = (
    (
        "**Accuracy:** the five-layer student keeps up with its teacher {student_against_teacher}; that the teacher "
        "adds to what the labels teach is shown {distillation_adds} where all images are labelled, {long_training} "
        "where the students then train several times as long, and {few_labels} where few images are labelled (these "
        "two: the loss with T²). That what it adds there is knowledge of the images and not a softer target is shown "
        "{knowledge}."
    ),
    (
        "**Explanations:** average maps on the student are 200 times faster than SHAP on the teacher "
        "{maps_over_shap}{alone}; they are as faithful as Grad-CAM {maps_as_grad_cam}, as SHAP {maps_as_shap}, as "
        "integrated gradients {maps_as_integrated_gradients} (with their signs kept {maps_as_shap_signed} and "
        "{maps_as_integrated_gradients_signed}), and more faithful than every map that knows nothing of "
        "what was learned {maps_over_controls}. That teaching makes average maps better is shown {teaching_explains} "
        "(the loss with T²: {teaching_explains_t2}), and that it does where the teacher's maps are taught too "
        "{maps_taught}."
    ),
    "**Data:** {persons}; the accuracy holds for persons and pictures that training does not know {new_images}.",
)
_AGAINST = {FAILS: "against", NO_EFFECT: "no effect"}  # the rest is undecided
_ANSWERS = {HOLDS: "yes", FAILS: "no", NO_EFFECT: "no effect beyond the margin", UNDECIDED: "undecided"}
# Claim -> the question that it answers, and what the number is that was measured.
_QUESTIONS = {
    "student_against_teacher": ("Does the student keep up with its teacher?", " points of accuracy"),
    "distillation_adds": ("Does the teacher add to what the labels teach?", " points of accuracy"),
    "teacher_adds": ("The same with the loss with T²:", " points of accuracy"),
    "oracle_adds": ("Would perfect soft labels, the true probabilities, add?", " points of accuracy"),
    "better_teacher": ("And their own ensemble as a teacher?", " points of accuracy"),
    "few_labels": (
        "Few labels, and a teacher that learned from many: does it add? The loss with T²:",
        " points of accuracy",
    ),
    "few_labels_without_t2": ("The same with the paper's loss, without T²:", " points of accuracy"),
    "knowledge": (
        "Is that knowledge of the images? Against teachers with the same margin that know nothing of them:",
        " points over the one that decides",
    ),
    "unlabelled_images": (
        (
            "Does the teacher hand on what it knows of further images, whose labels the student does not get? (On real "
            "data the teacher learned from them; and with more images students make more steps.)"
        ),
        " points of accuracy",
    ),
    "long_training": (
        "Does the teacher add where the students train several times as long? The loss with T²:",
        " points of accuracy",
    ),
    "new_images": ("Does the accuracy hold for persons and pictures that training does not know?", " points"),
    "relatives": (
        (
            "Add the images of validation to training: "
            "do test images that stay new gain as much as those that become known?"
        ),
        " points",
    ),
    "maps_as_grad_cam": ("Are average maps as faithful as Grad-CAM?", " points by the nearest metric"),
    "maps_as_shap": ("Are they as faithful as SHAP?", " points by the nearest metric"),
    "maps_as_integrated_gradients": ("Are they as faithful as integrated gradients?", " points by the nearest metric"),
    "maps_as_shap_signed": ("As SHAP with its signs kept?", " points by the nearest metric"),
    "maps_as_integrated_gradients_signed": (
        "As integrated gradients with their signs kept?",
        " points by the nearest metric",
    ),
    "maps_over_controls": (
        (
            "Do they show what was learned, "
            "more than random maps, the centre, edges, a uniform map or an untrained network's?"
        ),
        " points over the one that decides",
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
    "teaching_explains_few": (
        "Does teaching make average maps better where few images are labelled? The loss with T²:",
        " points by the measure that decides",
    ),
    "transparent_keeps_up": (
        "Does a student whose evidence is local, so that it explains itself, keep up with the plain one?",
        " points of accuracy",
    ),
    "evidence_marks": (
        "Does its evidence mark the lesion better than every explanation of the plain student and every control?",
        " points by the measure that decides",
    ),
    "evidence_faithful": (
        "Is its evidence more faithful to it than any explanation is to the plain student?",
        " points by the measure that decides",
    ),
    "teacher_pays": ("Does the teacher add more to it than to the plain student?", " points of accuracy"),
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


def _line(question: str, answers: list[str]) -> list[str]:
    return [f"- **{question}** {'; '.join(answers)}."] if answers else []


def _without_leaks(runs: pd.DataFrame) -> list[str]:
    """A line with the taught student's accuracy on the official split and without leaks, where a data set has both."""
    taught = runs[runs["model"] == "student_kd"]
    official = taught["split_protocol"] == "official"
    both = taught[official].merge(taught[~official], on=["dataset", "profile", "run_seed"], suffixes=("_official", ""))
    answers = [
        f"`{row.dataset}`: official {row.accuracy_official:.3f}, {row.split_protocol} {row.accuracy:.3f}"
        for row in both.itertuples()
    ]
    return _line("What is left of the taught student's accuracy where the split does not leak?", answers)


def _with_table(name: str, measured: Path) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """The recorded runs that have the table ``name``: each one's folder, parameters and table."""
    by_run = tables_of(name, measured)
    for folder, provenance in _recorded_runs(measured):
        if folder.name in by_run:
            yield folder.name, provenance["run"], by_run[folder.name]


def _official(name: str, measured: Path) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Those of :func:`_with_table` on an official split: each one's folder, data set and table."""
    for folder, run, table in _with_table(name, measured):
        if run["split_protocol"] == "official":
            yield folder, run["dataset"], table


def _on_new_images(measured: Path) -> list[str]:
    """A line with the taught student's accuracy on official test images that neither training nor validation knows."""
    classification, answers = tables_of("classification", measured), []
    for run, dataset, new_images in _official("new_images", measured):
        taught = "model == 'student_kd'"
        on_new = new_images.query(f"{taught} and learned_from == 'training'")[["n", "accuracy"]].mean()
        on_all = classification[run].query(taught)[["n", "accuracy"]].mean()
        if on_new["n"] < on_all["n"]:
            answers.append(
                f"`{dataset}`: {on_new['accuracy']:.3f} on {on_new['n']:.0f} of {on_all['n']:.0f} images "
                f"(on all {on_all['accuracy']:.3f})"
            )
    question = "And on those official test images of which training and validation know neither a copy nor the person?"
    return _line(question, answers)


def _trained_longer(measured: Path) -> list[str]:
    """A line about students of the labels alone by length of training: macro F1, and accuracy on new images."""
    classification, answers = tables_of("classification", measured), []
    for run, dataset, lengths in _official("lengths", measured):
        table = lengths[lengths["model"] == "student_ce"]
        if table["accuracy_known"].notna().all():
            means = table.groupby(["learned_from", "epochs"])[["f1_macro", "accuracy_new"]].mean()
            by_length = ", ".join(
                f"{f1:.3f} ({learned_from}, {epochs} epochs)"
                for (learned_from, epochs), f1 in means["f1_macro"].items()
            )
            on_new = ", then ".join(f"{accuracy:.3f}" for accuracy in means.loc["training", "accuracy_new"])
            teacher = classification[run].query("model == 'teacher'")["f1_macro"].iloc[0]
            answers.append(
                f"`{dataset}` (its teacher: {teacher:.3f}): F1 {by_length}; "
                f"accuracy on images that training does not know {on_new}"
            )
    return _line("What does longer training add? Students of the labels alone, by what they learned from:", answers)


def _persons_read(measured: Path) -> list[str]:
    """A line with how often labels drawn by lot for each person were read from test images of known and new persons."""
    answers, whom = [], {"known": "where training knows the person or a copy", "new": "where neither"}
    for _, run, table in _with_table("labels_of_persons", measured):
        rows = table[table["part"].isin(whom)].itertuples()  # all test images may be of one kind
        shares = [f"{row.mean:.1%} [{row.lo:.1%}, {row.hi:.1%}] {whom[row.part]}" for row in rows]
        answers.append(f"`{run['dataset']}`: {', '.join(shares)}")
    question = (
        "Do students recognise who is shown? How often they read a label drawn by lot for each person (of as many as "
        "there are classes):"
    )
    return _line(question, answers)


def _ensembles(measured: Path) -> list[str]:
    """A line with what the ensemble of the students of the labels alone is ahead of one of them."""
    answers = []
    for _, run, table in _with_table("tests", measured):
        for row in table[table["question"] == "all labels: is the ensemble better than its members?"].itertuples():
            value, lo, hi = 100 * row.difference, 100 * row.lo, 100 * row.hi
            answers.append(f"`{run['dataset']}`, {run['split_protocol']}, {value:+.1f} [{lo:+.1f}, {hi:+.1f}]")
    return _line("Is the ensemble better than one student? In points of accuracy:", answers)


def _in_volumes(measured: Path) -> list[str]:
    """A line with what each data set's volumes say: accuracies, and the verdict and number of each claim on volumes.

    Volumes are split by persons whatever the split of the images, so one run of the longest profile speaks for a data
    set. Generated ones beside images of another kind answer no claim, and have no line.

    Returns:
        Lines of Markdown, one a data set.
    """
    networks, claims, explained, tests = (
        tables_of(name, measured) for name in ("volumes", "claims", "volumes_explained", "tests_volumes")
    )
    shortest_first, answers = list(profiles()), {}
    runs = sorted(_recorded_runs(measured), key=lambda record: shortest_first.index(record[1]["run"]["profile"]))
    for folder, provenance in runs:
        run = folder.name
        if run not in networks or run not in claims:
            continue
        judged = claims[run].set_index("claim").reindex(_IN_VOLUMES).dropna(subset="measured")
        judged = judged[judged["verdict"] != NOT_TESTABLE]
        if judged.empty:
            continue
        phrases = [_accuracies(networks[run])]
        for claim, row in judged.iterrows():
            value = f"{row['measured']:+.1f} points [{row['lo']:+.1f}, {row['hi']:+.1f}]"
            value = f"{row['measured']:.0f} times" if claim == "volumes_cost" else value
            phrases.append(f"{_IN_VOLUMES[claim]} {value} (*{_ANSWERS[MEANING[row['verdict']]]}*)")
            if claim == "volumes_few" and run in tests:
                comparisons = tests[run]
                alike = comparisons[(comparisons["metric"] == "balanced_accuracy") & (comparisons["a"] == TAUGHT)]
                phrases += [
                    f"{ALIKE} {100 * test.difference:+.1f} [{100 * test.lo:+.1f}, {100 * test.hi:+.1f}]"
                    for test in alike.itertuples()
                ]
        phrases += _in_depth(explained[run]) if run in explained else []
        answers[provenance["run"]["dataset"]] = "; ".join(phrases)
    return [
        f"- **Does it carry over to volumes, by persons?** `{dataset}`: {answers[dataset]}."
        for dataset in sorted(answers)
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
    """How often the highest voxel lies in the lesion, and how much of it the slice of most mass hides, if known."""
    means = table[table["way"] == PAPER].pivot(index="method", columns="metric", values="mean")
    if "hidden" not in means:
        return []
    names = {AVERAGE: "average map", "integrated_gradients": "integrated gradients"}
    hits = ", ".join(f"{means.loc[method, 'pointing_game']:.0%} ({name})" for method, name in names.items())
    hidden = f"{means.loc[AVERAGE, 'hidden']:.0%} of it lies outside the slice where the average map has most mass"
    return [f"the highest voxel lies in the lesion in {hits}; {hidden}"]


def _over_all(claims: pd.DataFrame, claim: str) -> str:
    phrases = []
    for splits, without_leaks in (("without leaks", True), ("on their official splits", False)):
        pooled = together(claims, claim, without_leaks=without_leaks) if claim in TOGETHER else None
        if pooled is not None:
            effect, count = pooled
            interval = f"{effect['difference']:+z.1f} [{effect['lo']:+z.1f}, {effect['hi']:+z.1f}]"
            phrases.append(f"; over {count} real data sets {splits} {interval}")
    return "".join(phrases)


def span(values: pd.Series, unit: str) -> str:
    """The least and the most of some numbers, once where they are the same.

    Args:
        values: at least one number.
        unit: with the space before it; ``" times"`` has no decimals and no sign.

    Returns:
        Such as ``+1.0 to +2.2 points``.

    Example:
        >>> span(pd.Series([2.21, 1.0]), " points")
        '+1.0 to +2.2 points'
    """
    ends = dict.fromkeys(
        f"{value:.0f}" if unit == " times" else f"{value:+.1f}" for value in (values.min(), values.max())
    )
    return f"{' to '.join(ends)}{unit}"


def counted(verdicts: pd.Series) -> str:
    """In how many data sets a claim holds, and what speaks against it in the others; the rest is undecided.

    Args:
        verdicts: one a data set, of :data:`kdnb.claims.VERDICTS`.

    Returns:
        Such as ``2 of 4 (1 against)``.

    Example:
        >>> counted(pd.Series(["holds", "undecided", "does not hold"]))
        '1 of 3 (1 against)'
    """
    votes = Counter(verdicts)
    others = ", ".join(f"{votes[verdict]} {words}" for verdict, words in _AGAINST.items() if votes[verdict])
    return f"{votes[HOLDS]} of {votes.total()}" + f" ({others})" * bool(others)


def in_brief(measured: Path = MEASURED) -> str:
    """Does it hold? Three sentences: in how many of the data sets that can test it a claim holds."""
    claims, counts = tested(judged(measured)), {}
    for claim in _QUESTIONS:
        counts[claim] = f"in {counted(claims.loc[claims['claim'] == claim, 'verdict'])}"
    counts |= {"persons": persons_on_both_sides(), "alone": _method_alone(measured)}
    return "\n\n".join([BY_DATA_SET, *(sentence.format(**counts) for sentence in _BRIEF)])


def _method_alone(measured: Path) -> str:
    """How much faster maps are than SHAP on one network, the student: the model's share of that claim left out."""
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
    known_slices = slices.known("figshare_brain", "brain_tumor_slices.csv")
    in_training = {entry.person for name, entry in known_slices.items() if name.startswith("Training/")}
    in_test = [entry.person for name, entry in known_slices.items() if name.startswith("Testing/")]
    persons = set(in_test)
    leaked = persons & in_training
    of_these = f"{len(leaked)} of these {len(persons)} have" if leaked < persons else "all of these have"
    return (
        f"{len(in_test)} of brain MRI's official test images can be traced to {len(persons)} persons: {of_these} other "
        f"slices in training"
    )


def answer(measured: Path = MEASURED) -> str:
    """Does it hold? A line for each question: the verdicts, one a data set, and the range of what was measured.

    Args:
        measured: where records are kept.

    Returns:
        A list in Markdown; a data set that cannot test a claim has no vote on it.
    """
    claims, lines = judged(measured), []
    votable = tested(claims)
    for claim, (question, unit) in _QUESTIONS.items():
        rows = votable[votable["claim"] == claim]
        if len(rows):
            votes = Counter(rows["verdict"])
            verdicts_said = ", ".join(f"*{_ANSWERS[verdict]}* in {count}" for verdict, count in votes.most_common())
            count = f"{len(rows)} data set{'s' * (len(rows) > 1)}"
            measured_span = f"{span(rows['measured'], unit)}{_over_all(claims, claim)}"
            lines.append(f"- **{question}** Of {count}: {verdicts_said}; {measured_span}.")
    lines_of_tables = [
        *_without_leaks(recorded(measured)),
        *_on_new_images(measured),
        *_trained_longer(measured),
        *_persons_read(measured),
        *_ensembles(measured),
        *_in_volumes(measured),
    ]
    return "\n".join([*lines, *lines_of_tables]) or "No full run is recorded yet (`make record RUN=runs/...`)."
