"""``report.html``: a run on one page, self-contained, for a supervisor or reviewer.

``python -m kdnb.report runs/phantom-quick-seed0`` makes it from what the run holds: tables (checked against
``run.json``), the figures that its notebooks show, and where the numbers come from. It states nothing of its own: every
sentence is made from a table's row. Question, answer, figures and caveats come first, to be read in two minutes; the
rest is folded. Its words and its look are files in ``kdnb/pages``.
"""

import argparse
import base64
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from kdnb.errors import ArtefactError, exit_status
from kdnb.files import atomic_write, file_hash, read_table
from kdnb.runs import in_common, rerun_command

# Table -> (heading, what a row is, the columns that the page shows; none: all). Longer tables are shown by their
# summaries only.
TABLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "claims": (
        "Claims",
        (
            "one claim of the paper or question of ours, with the released code beside it, "
            "what this run measured (in points, or a ratio) and the verdict of the claim's rule"
        ),
        (
            "statement",
            "origin",
            "paper",
            "released_code",
            "measured",
            "lo",
            "hi",
            "unit",
            "detail",
            "verdict",
            "rule",
            "stated",
        ),
    ),
    "data_audit": ("Data", "one class in one part of the split", ()),
    "data_persons": (
        "Persons of the published split",
        "the test images of one class: whose person is known, and whose training has, too",
        (),
    ),
    "data_label_conflicts": (
        "Labels that contradict",
        "an image whose label is another than that of the slice it shows",
        (),
    ),
    "classification": (
        "Models",
        "one model on one evaluation set; intervals are 95% bootstrap intervals",
        (
            "model",
            "seed",
            "n",
            "accuracy",
            "accuracy_lo",
            "accuracy_hi",
            "f1_macro",
            "balanced_accuracy",
            "auc",
            "ece",
            "brier",
            "parameters",
            "macs",
        ),
    ),
    "known_and_new": (
        "Known and new images",
        "the hits of one model on test images that training knows a copy or the person of, or not",
        (),
    ),
    "few_images": (
        "Few labelled images",
        "one student, by the labels that it had (0: all) and the way in which it was taught",
        (),
    ),
    "with_validation": (
        "With the images of validation",
        "one network that learned from the images of training and validation",
        (),
    ),
    "gains": (
        "What the images of validation add",
        "one loss: gain in hits on test images that become known with them, and on those that stay new",
        (),
    ),
    "new_images": (
        "Only images that are new",
        "one network, scored on the test images of which neither training nor validation has a copy or the person",
        (),
    ),
    "per_class": ("Classes", "one model on one class", ()),
    "ablation": ("Depth and pooling", "one student of another shape, trained by the paper's loss", ()),
    "sweep": ("The grid of alpha and T", "one student of the grid; alpha = 1 is cross-entropy alone", ()),
    "lengths": ("Longer training", "one student, by what it learned from and for how many epochs", ()),
    "length_gains": (
        "What longer training adds",
        (
            "gain in hits of cross-entropy alone, longer minus shorter training, "
            "on test images that training knows (copy or person), or not"
        ),
        (),
    ),
    "tests": (
        "Comparisons",
        "one question, answered by a paired comparison; p_holm is corrected for all comparisons of its question",
        (),
    ),
    "transparency": ("What transparency costs", "one student by its shape: receptive field, operations, accuracy", ()),
    "evidence_summary": (
        "Class evidence and its rivals",
        "the mean of one metric over images and seeds, by the student's shape and the method",
        (),
    ),
    "tests_evidence": (
        "Comparisons of class evidence",
        "one question on students that explain themselves, answered by a paired comparison",
        (),
    ),
    "tests_transparent": (
        "What each way of learning adds to a transparent student",
        "one comparison of accuracies of plain and transparent students, of all labels or few",
        (),
    ),
    "tests_teaching": (
        "Comparisons of taught students' explanations",
        "one measure of the explanations of two ways of teaching, answered by a paired comparison",
        (),
    ),
    "tests_teaching_few": ("The same with few labels", "as above, of students of few labels", ()),
    "met": ("Time for an explanation", "one method on one model (mean execution time, MET)", ()),
    "fidelity_summary": (
        "Fidelity",
        "one method by one metric in one class; intervals are 95% bootstrap intervals",
        (),
    ),
    "localisation_summary": ("Localisation", "one method by one metric against the true lesion", ()),
    "all_images": ("On every test image", "one method that costs a pass or two, by one metric, on all test images", ()),
    "labels_of_persons": (
        "Labels of persons",
        (
            "test images that training knows (copy or person), or not: "
            "how often labels drawn by lot for each person were read from them"
        ),
        (),
    ),
    "metric_agreement": (
        "Do metrics agree?",
        "one metric: Kendall's tau between its order of the methods and each other's",
        (),
    ),
    "volumes": ("Volumes", "one network of volumes, or of their slices, by how it was taught", ()),
    "tests_volumes": ("Comparisons of volumes", "one question on volumes, answered by a paired comparison", ()),
    "volumes_explained": (
        "Explanations of volumes",
        "one measure of one explanation of one kind of student; intervals over persons, the lowest and highest seed",
        (),
    ),
    "volumes_met": ("Time for an explanation of a volume", "one method on one network of volumes", ()),
    "diagnosis": ("Failure signatures", "one signature: its value, its threshold, whether it fired", ()),
}
MAX_ROWS = 80

QUESTION = "Can a small network that learned from a large one be looked into, and does the teaching help?"
# The claims that answer it.
ANSWERS = (
    "student_against_teacher",
    "distillation_adds",
    "teacher_adds",
    "few_labels",
    "knowledge",
    "new_images",
    "maps_as_grad_cam",
    "maps_over_controls",
    "teaching_explains",
    "maps_over_shap",
)
# The figures of the first page: of each group the first one that the run has.
FIRST = (("few_labels", "arms"), ("truth", "fidelity"), ("student_layers", "methods"))
PAGES = Path(__file__).parent / "pages"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(PAGES),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def render(template: str, style: str = "", **values: object) -> str:
    """A page of ``kdnb/pages`` as HTML.

    Args:
        template: its file; every value is text there, which is escaped.
        style: the stylesheet that becomes part of the page.
        **values: what the template names.

    Returns:
        HTML.
    """
    return _TEMPLATES.get_template(template).render(style=style, **values)


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it.

    Attributes:
        chapter: the chapter's title.
        png: the picture in base64.
        alt: its text alternative.
        name: its name among the run's figures.
    """

    chapter: str
    png: str
    alt: str
    name: str = ""


def tables(folder: Path, info: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """The run's result tables by name, each one as the notebook wrote it.

    Args:
        folder: the run's.
        info: what its ``run.json`` holds.

    Returns:
        Name -> table, in the order of the names.

    Raises:
        ArtefactError: a table was changed since, or is missing.
    """
    results = {}
    for name, artefact in info.get("artefacts", {}).items():
        if name.startswith("results/") and not (folder / name).exists():
            raise ArtefactError(f"{folder / name} is missing: {rerun_command(folder, artefact)}.")
    for path in sorted((folder / "results").glob("*.csv")):
        artefact = info.get("artefacts", {}).get(f"results/{path.name}")
        if artefact is None or artefact["sha256"] != file_hash(path):
            cure = "delete it" if artefact is None else rerun_command(folder, artefact)
            raise ArtefactError(f"{path} is not what a notebook of this run wrote: {cure}.")
        results[path.stem] = read_table(path)
    return results


def pictures(folder: Path, info: dict[str, Any]) -> list[Picture]:
    """Every figure of the executed notebooks, in reading order; ``run.json`` knows their names by their hashes."""
    names = {
        artefact["sha256"]: Path(path).stem
        for path, artefact in info.get("artefacts", {}).items()
        if path.startswith("figures/")
    }
    figures = []
    for path in sorted((folder / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        if path.stem.endswith((".running", ".failed")):
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        chapter = "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            data = output.get("data", {})
            if "image/png" in data:
                png = "".join(data["image/png"]).replace("\n", "")
                name = names.get(hashlib.sha256(base64.b64decode(png)).hexdigest(), "")
                figures.append(Picture(chapter, png, "".join(data.get("text/plain", "")), name))
    return figures


def number(value: object) -> str:
    """A value as the page shows it: counts whole, measured values to three or four digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if pd.isna(value):
        return "–"
    if float(value).is_integer() and abs(value) >= 1:
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.3f}" if 0.001 <= abs(value) < 100 else f"{value:.3g}"


def columns(table: pd.DataFrame) -> list[tuple[str, bool]]:
    """The heads of a table: each one's words, and whether numbers stand below."""
    return [
        (str(name), pd.api.types.is_numeric_dtype(table[name]) and not pd.api.types.is_bool_dtype(table[name]))
        for name in table
    ]


def cells(table: pd.DataFrame) -> list[list[str]]:
    """The first rows of a table in words."""
    return [[number(value) for value in row] for row in table.head(MAX_ROWS).itertuples(index=False)]


def answers(found: dict[str, pd.DataFrame]) -> list[tuple[str, str, str]]:
    """Of each claim that answers the question and that this run could test: statement, verdict, what was measured."""
    table = found.get("claims", pd.DataFrame())
    if "claim" not in table:
        return []
    tested = []
    for row in table[table["claim"].isin(ANSWERS) & table["measured"].notna()].itertuples():
        form, unit = ("+.1f", "points") if row.unit == "points" else (".0f", "times")
        interval = f" [{row.lo:{form}}, {row.hi:{form}}]" if row.lo < row.hi else ""
        tested.append((row.statement, row.verdict, f"{row.measured:{form}} {unit}{interval}"))
    return tested


def caveats(found: dict[str, pd.DataFrame], info: dict[str, Any]) -> list[str]:
    """What a reader of the answers must know of this run, from its record and its tables."""
    sentences = []
    if str(info.get("run", {}).get("dataset", "")).startswith("phantom"):
        sentences.append(
            "The images are generated: they say what a method can do where the truth is known, "
            "not how it does on patients."
        )
    pixels = {
        part["image_size"]
        for part in info.get("budget", {}).values()
        if isinstance(part, dict) and "image_size" in part
    }
    weights = info.get("teacher", {}).get("weights")
    sentences += [f"Images have {side} pixels a side; the paper's have 224." for side in sorted(pixels)]
    if weights == "scratch":
        sentences.append("The teacher starts from random weights; the paper's starts from ImageNet's.")
    shared = found.get("known_and_new", pd.DataFrame())
    if {"part", "n", "model"} <= set(shared):
        counts = shared[shared["model"] == shared["model"].iloc[0]].groupby("part")["n"].first()
        known, new = (int(counts.get(part, 0)) for part in ("known", "new"))
        if known:
            sentences.append(
                f"Of {known + new} test images {known} show a person, or are a copy, "
                "of which training has another image."
            )
    claims = found.get("claims", pd.DataFrame())
    if "stated" in claims:
        after = claims["stated"].str.contains("after").sum()
        sentences.append(
            f"Of {len(claims)} rules of verdicts {after} were made or changed after data had been seen "
            "(below, under Claims)."
        )
    fired = len(_fired(found.get("diagnosis", pd.DataFrame())))
    if fired:
        sentences.append(f"{fired} of {len(found['diagnosis'])} failure signatures fired: see below.")
    return [*sentences, "This is a study of a method, not a medical device; nothing here is fit for a diagnosis."]


def _fired(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["fired"].astype(str).str.lower() == "true"] if len(table) else table


def _claims(results: dict[str, pd.DataFrame]) -> list[str]:
    return [f"{row.statement}: {row.verdict}." for row in results.get("claims", pd.DataFrame()).itertuples()]


def _models(results: dict[str, pd.DataFrame]) -> list[str]:
    sentences = []
    for name, rows in results["classification"].groupby("model", sort=False) if "classification" in results else ():
        row = rows.iloc[0]
        interval = f"95% interval {row.accuracy_lo:.1%} to {row.accuracy_hi:.1%}"
        mean, seeds = row.accuracy, ""
        if len(rows) > 1:  # the interval is that of the first seed alone: it must not read as that of all
            mean, seeds = rows.accuracy.mean(), f" on average over {len(rows)} seeds"
            interval = f"seed {row.seed}: {row.accuracy:.1%}, {interval}"
        sentences.append(f"{name} classifies {mean:.1%} of {row.n} test images correctly{seeds} ({interval}).")
    return sentences


def _comparisons(results: dict[str, pd.DataFrame]) -> list[str]:
    """A sentence for each question: how many comparisons show a difference, and the surest of them."""
    sentences = []
    for question, rows in results.get("tests", pd.DataFrame(columns=["question"])).groupby("question", sort=False):
        shown = rows[rows["p_holm"] < 0.05].sort_values("p_holm")
        sentence = f"{question.rstrip('?')}: {len(shown)} of {len(rows)} comparisons show a difference"
        if len(shown):
            row = shown.iloc[0]
            interval = (
                f"{row.difference:+.3f}, interval {row.lo:+.3f} to {row.hi:+.3f}, "
                f"corrected p = {row.p_holm:.3g}, n = {row.n:.0f}"
            )
            sentence += f"; the surest is {row.a} against {row.b} in {row.metric} ({interval})"
        sentences.append(sentence + ".")
    return sentences


def _signatures(results: dict[str, pd.DataFrame]) -> list[str]:
    table = results.get("diagnosis", pd.DataFrame())
    if table.empty:
        return []
    sentences = [
        f"Signature {row.signature} fired ({number(row.value)}, threshold {number(row.threshold)}): {row.advice}"
        for row in _fired(table).itertuples()
    ]
    return sentences or [f"None of {len(table)} failure signatures fired."]


def verdicts(found: dict[str, pd.DataFrame]) -> dict[str, list[str]]:
    """Sentences made from the tables' rows, by heading."""
    sections = {
        "Claims of the paper and questions of ours": _claims(found),
        "Accuracy": _models(found),
        "Comparisons": _comparisons(found),
        "Failure signatures": _signatures(found),
    }
    return {heading: sentences for heading, sentences in sections.items() if sentences}


def _of_machine(values: dict[str, Any]) -> str:
    """``packages``, or what was otherwise for one notebook than for the others."""
    return ", ".join(
        f"{name} {_of_machine(value) if isinstance(value, dict) else value}" for name, value in values.items()
    )


def provenance(info: dict[str, Any]) -> list[tuple[str, str]]:
    """What the numbers depend on, from ``run.json``."""
    rows = [(name, str(value)) for name, value in info.get("run", {}).items()]
    machine = in_common(info.get("environment", {}))
    rows += [(name, _of_machine(value) if isinstance(value, dict) else str(value)) for name, value in machine.items()]
    for section in ("data", "networks", "teacher"):
        rows += [
            (f"{section}: {name}", str(value))
            for name, value in info.get(section, {}).items()
            if not isinstance(value, (dict, list))
        ]
    return rows


def _folded(results: dict[str, pd.DataFrame]) -> list[dict[str, object]]:
    """The tables of :data:`TABLES` that the run has, as the page's template takes them."""
    folded: list[dict[str, object]] = []
    for name, (heading, meaning, wanted) in TABLES.items():
        if name not in results:
            continue
        table = results[name]
        shown = table[[column for column in wanted if column in table]] if wanted else table
        cut = f" The first {MAX_ROWS} of {len(table)} rows." if len(table) > MAX_ROWS else ""
        folded.append(
            {
                "name": name,
                "heading": heading,
                "meaning": meaning,
                "cut": cut,
                "heads": columns(shown),
                "rows": cells(shown),
            }
        )
    return folded


def page(folder: Path) -> str:
    """The whole page as HTML."""
    info = json.loads((folder / "run.json").read_text(encoding="utf-8")) if (folder / "run.json").exists() else {}
    results, figures = tables(folder, info), pictures(folder, info)
    named = {picture.name: picture for picture in figures if picture.name}
    first = [next((named[name] for name in group if name in named), None) for group in FIRST]
    shown = [picture for picture in first if picture is not None]
    run = info.get("run", {})
    lead = (
        f"Data set {run.get('dataset')}, profile {run.get('profile')}, seed {run.get('seed')}, "
        f"split {run.get('split_protocol')}."
    )
    lead += "".join(
        f" {name.capitalize()}: {network}." for name, network in sorted(info.get("networks", {}).items(), reverse=True)
    )
    lead += f" Whose images they are: {info['data']['persons']}." if "persons" in info.get("data", {}) else ""
    return render(
        "report.html",
        "report.css",
        title=f"{run.get('dataset', folder.name)}: distillation and its explanations",
        lead=lead,
        question=QUESTION,
        answers=answers(results),
        shown=shown,
        caveats=caveats(results, info),
        sentences=verdicts(results),
        tables=_folded(results),
        others=[picture for picture in figures if picture not in shown],
        provenance=provenance(info),
    )


def write(folder: Path) -> None:
    """Write ``report.html`` into a run's folder."""
    with atomic_write(folder / "report.html") as path:
        path.write_text(page(folder), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Write ``report.html`` into a run's folder."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.report", description=write.__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    return exit_status(lambda: write(folder))


if __name__ == "__main__":
    sys.exit(main())
