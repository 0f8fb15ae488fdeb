"""``report.html``: a run on one page, self-contained, for a supervisor or reviewer.

``python -m kdnb.report runs/phantom-quick-seed0`` makes it from what the run holds: tables (checked against ``run.json``), the figures
that its notebooks show, and where the numbers come from. It states nothing of its own: every sentence is made from a table's row.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from kdnb.errors import ArtefactError, exit_status
from kdnb.runs import again, atomic_write, file_hash, in_common, read_table

# Table -> (heading, what a row is, the columns that the page shows; none: all). Longer tables are shown by their summaries only.
TABLES = {
    "claims": (
        "Claims",
        "one claim of the paper or question of ours, with the released code beside it, what this run measured (in points, or a ratio) and "
        "the verdict of the claim's rule",
        ("statement", "origin", "paper", "released_code", "measured", "lo", "hi", "unit", "detail", "verdict", "rule", "stated"),
    ),
    "data_audit": ("Data", "one class in one part of the split", ()),
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
    "few_images": ("Few labelled images", "one student, by the labels that it had (0: all) and the way in which it was taught", ()),
    "with_validation": ("With the images of validation", "one network that learned from the images of training and validation", ()),
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
        "gain in hits of cross-entropy alone, longer minus shorter training, on test images that training knows (copy or person), or not",
        (),
    ),
    "tests": ("Comparisons", "one question, answered by a paired comparison; p_holm is corrected for all comparisons of its question", ()),
    "met": ("Time for an explanation", "one method on one model (mean execution time, MET)", ()),
    "fidelity_summary": ("Fidelity", "one method by one metric in one class; intervals are 95% bootstrap intervals", ()),
    "localisation_summary": ("Localisation", "one method by one metric against the true lesion", ()),
    "diagnosis": ("Failure signatures", "one signature: its value, its threshold, whether it fired", ()),
}
MAX_ROWS = 80

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #d8dde4; --tint: #f4f6f9; --mark: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; color: var(--ink); background: #fff;
  font: 1.02rem/1.6 "Charter", "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
h1, h2, h3, nav, table, dl, figcaption, .note { font-family: system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .5rem; padding-top: .7rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
p, li { max-width: 44rem; }
.note { color: var(--soft); font-size: .88rem; margin: .2rem 0 .8rem; }
nav { font-size: .9rem; margin: 1.2rem 0; }
nav a { margin-right: 1rem; color: var(--mark); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--tint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .85rem; max-width: 44rem; }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  nav { display: none; }
  .wide { overflow: visible; }
}
"""


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it: the chapter, the base64 of its PNG, and its text alternative."""

    chapter: str
    png: str
    alt: str


def tables(folder: Path, info: dict) -> dict[str, pd.DataFrame]:
    """The run's result tables by name, each one as the notebook wrote it.

    Raises:
        ArtefactError: a table was changed since, or is missing.
    """
    found = {}
    for name, signed in info.get("artefacts", {}).items():
        if name.startswith("results/") and not (folder / name).exists():
            raise ArtefactError(f"{folder / name} is missing: {again(folder, signed)}.")
    for path in sorted((folder / "results").glob("*.csv")):
        signed = info.get("artefacts", {}).get(f"results/{path.name}")
        if signed is None or signed["sha256"] != file_hash(path):
            cure = "delete it" if signed is None else again(folder, signed)
            raise ArtefactError(f"{path} is not what a notebook of this run wrote: {cure}.")
        found[path.stem] = read_table(path)
    return found


def pictures(folder: Path) -> list[Picture]:
    """Every figure of the executed notebooks, in reading order."""
    found = []
    for path in sorted((folder / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        if path.stem.endswith((".running", ".failed")):
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        chapter = "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            data = output.get("data", {})
            if "image/png" in data:
                png = "".join(data["image/png"]).replace("\n", "")
                found.append(Picture(chapter, png, "".join(data.get("text/plain", ""))))
    return found


def number(value: object) -> str:
    """A value as the page shows it: counts whole, measured values to three or four digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    if pd.isna(value):
        return "–"
    if float(value).is_integer() and abs(value) >= 1:
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.3f}" if 0.001 <= abs(value) < 100 else f"{value:.3g}"


def html_table(table: pd.DataFrame) -> str:
    """A table as HTML, numbers to the right."""
    numeric = [pd.api.types.is_numeric_dtype(table[name]) and not pd.api.types.is_bool_dtype(table[name]) for name in table]
    kind = [' class="n"' if is_number else "" for is_number in numeric]
    head = "".join(f'<th scope="col"{k}>{escape(str(name))}</th>' for name, k in zip(table, kind, strict=True))
    rows = (
        "<tr>" + "".join(f"<td{k}>{number(value)}</td>" for value, k in zip(row, kind, strict=True)) + "</tr>"
        for row in table.head(MAX_ROWS).itertuples(index=False)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _claims(found: dict[str, pd.DataFrame]) -> list[str]:
    return [f"{row.statement}: {row.verdict}." for row in found.get("claims", pd.DataFrame()).itertuples()]


def _models(found: dict[str, pd.DataFrame]) -> list[str]:
    said = []
    for name, rows in found["classification"].groupby("model", sort=False) if "classification" in found else ():
        row = rows.iloc[0]
        seeds = f", on average over {len(rows)} seeds {rows.accuracy.mean():.1%}" if len(rows) > 1 else ""
        interval = f"95% interval {row.accuracy_lo:.1%} to {row.accuracy_hi:.1%}{seeds}"
        said.append(f"{name} classifies {row.accuracy:.1%} of {row.n} test images correctly ({interval}).")
    return said


def _comparisons(found: dict[str, pd.DataFrame]) -> list[str]:
    """A sentence for each question: how many comparisons show a difference, and the surest of them."""
    said = []
    for question, rows in found.get("tests", pd.DataFrame(columns=["question"])).groupby("question", sort=False):
        shown = rows[rows["p_holm"] < 0.05].sort_values("p_holm")
        sentence = f"{question.rstrip('?')}: {len(shown)} of {len(rows)} comparisons show a difference"
        if len(shown):
            row = shown.iloc[0]
            interval = f"{row.difference:+.3f}, interval {row.lo:+.3f} to {row.hi:+.3f}, corrected p = {row.p_holm:.3g}, n = {row.n:.0f}"
            sentence += f"; the surest is {row.a} against {row.b} in {row.metric} ({interval})"
        said.append(sentence + ".")
    return said


def _signatures(found: dict[str, pd.DataFrame]) -> list[str]:
    table = found.get("diagnosis", pd.DataFrame())
    if table.empty:
        return []
    fired = table[table["fired"].astype(str).str.lower() == "true"]
    said = [
        f"Signature {row.signature} fired ({number(row.value)}, threshold {number(row.threshold)}): {row.advice}"
        for row in fired.itertuples()
    ]
    return said or [f"None of {len(table)} failure signatures fired."]


def verdicts(found: dict[str, pd.DataFrame]) -> dict[str, list[str]]:
    """Sentences made from the tables' rows, by heading."""
    made = {
        "Claims of the paper and questions of ours": _claims(found),
        "Accuracy": _models(found),
        "Comparisons": _comparisons(found),
        "Failure signatures": _signatures(found),
    }
    return {heading: sentences for heading, sentences in made.items() if sentences}


def _of_machine(values: dict) -> str:
    """``packages``, or what was otherwise for one notebook than for the others."""
    return ", ".join(f"{name} {_of_machine(value) if isinstance(value, dict) else value}" for name, value in values.items())


def provenance(info: dict) -> list[tuple[str, str]]:
    """What the numbers depend on, from ``run.json``."""
    rows = [(name, str(value)) for name, value in info.get("run", {}).items()]
    machine = in_common(info.get("environment", {}))
    rows += [(name, _of_machine(value) if isinstance(value, dict) else str(value)) for name, value in machine.items()]
    for section in ("data", "networks", "teacher"):
        rows += [(f"{section}: {name}", str(value)) for name, value in info.get(section, {}).items() if not isinstance(value, (dict, list))]
    return rows


def _section(identity: str, heading: str, body: str) -> str:
    return f'<section id="{identity}"><h2>{escape(heading)}</h2>\n{body}\n</section>'


def _table_sections(found: dict[str, pd.DataFrame]) -> list[tuple[str, str]]:
    sections = []
    for name, (heading, meaning, columns) in TABLES.items():
        if name not in found:
            continue
        table = found[name]
        shown = table[[column for column in columns if column in table]] if columns else table
        cut = f" The first {MAX_ROWS} of {len(table)} rows." if len(table) > MAX_ROWS else ""
        note = f'<p class="note">results/{name}.csv; a row is {meaning}.{cut}</p>'
        sections.append((name, _section(name, heading, note + html_table(shown))))
    return sections


def page(folder: Path) -> str:
    """The whole page as HTML."""
    info = json.loads((folder / "run.json").read_text(encoding="utf-8")) if (folder / "run.json").exists() else {}
    found, shown = tables(folder, info), pictures(folder)
    run = info.get("run", {})
    said = "".join(
        f"<h3>{escape(heading)}</h3><ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"
        for heading, sentences in verdicts(found).items()
    )
    figures = "".join(
        f'<figure><img alt="{escape(picture.alt, quote=True)}" src="data:image/png;base64,{picture.png}">'
        f"<figcaption>{escape(picture.chapter)}. {escape(picture.alt)}</figcaption></figure>"
        for picture in shown
    )
    origin = "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in provenance(info)) + "</dl>"
    sections = [("summary", _section("summary", "What this run shows", said))] if said else []
    sections += _table_sections(found)
    sections += [("figures", _section("figures", "Figures", figures))] if figures else []
    sections += [("provenance", _section("provenance", "Where the numbers come from", origin))]
    title = f"{run.get('dataset', folder.name)}: distillation and its explanations"
    links = "".join(f'<a href="#{identity}">{identity.replace("_", " ")}</a> ' for identity, _ in sections)
    lead = f"Data set {run.get('dataset')}, profile {run.get('profile')}, seed {run.get('seed')}, split {run.get('split_protocol')}."
    lead += "".join(f" {name.capitalize()}: {network}." for name, network in sorted(info.get("networks", {}).items(), reverse=True))
    lead += f" Whose images they are: {info['data']['persons']}." if "persons" in info.get("data", {}) else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n"
        f"<nav>{links}</nav>\n" + "\n".join(html for _, html in sections) + "\n</body></html>\n"
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
