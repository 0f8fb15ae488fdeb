"""Recorded results: the tables of a full run, kept in ``data/measured`` with what they depend on, and the README's table made from them.

``python -m kdnb.measured runs/brain_tumor-cpu-seed0`` (``make record RUN=...``) records a run and writes the README's table anew.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import pandas as pd

from kdnb.errors import ArtefactError, exit_status
from kdnb.report import TABLES, tables
from kdnb.runs import atomic_write
from kdnb.sources import REPOSITORY

MEASURED = REPOSITORY / "data" / "measured"
PUBLISHED = REPOSITORY / "data" / "published" / "accuracy.csv"
README = REPOSITORY / "README.md"
_PROVENANCE = ("run", "environment", "data", "budget")


def record(folder: Path, measured: Path = MEASURED) -> Path:
    """Copy a finished run's contract tables and their provenance into ``data/measured`` and return the new folder.

    Raises:
        ArtefactError: the run is not finished, or a table was changed since a notebook wrote it.
    """
    if not (folder / "report.html").exists():
        raise ArtefactError(f"{folder} holds no finished run: run `make reproduce` first.")
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    kept = measured / folder.name
    for name, table in tables(folder, info).items():
        if name in TABLES:
            with atomic_write(kept / f"{name}.csv") as path:
                table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    with atomic_write(kept / "provenance.json") as path:
        path.write_text(json.dumps({name: info.get(name, {}) for name in _PROVENANCE}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return kept


def _published(published: pd.DataFrame, dataset: str, model: str) -> str:
    found = published[(published["dataset"] == dataset) & (published["model"] == model)]["accuracy"]
    return f"{found.iloc[0]:.3f}" if len(found) else "–"


def readme_table(measured: Path = MEASURED, published: Path = PUBLISHED) -> str:
    """Accuracy of teacher and student on the test set, measured (95% interval) beside published, one line a recorded run."""
    known = pd.read_csv(published)
    lines = ["| data, split | images | teacher, measured | paper | student, measured | paper |", "| --- | --- | --- | --- | --- | --- |"]
    for folder in sorted(path.parent for path in measured.glob("*/provenance.json")):
        run = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["run"]
        scores = pd.read_csv(folder / "classification.csv").drop_duplicates("model").set_index("model")
        cells = [f"`{run['dataset']}`, {run['split_protocol']}", f"{int(scores.loc['teacher', 'n'])}"]
        for model in ("teacher", "student_kd"):
            row = scores.loc[model]
            cells += [f"{row.accuracy:.3f} ({row.accuracy_lo:.3f} to {row.accuracy_hi:.3f})", _published(known, run["dataset"], model)]
        lines.append("| " + " | ".join(cells) + " |")
    if len(lines) == 2:
        return "No full run is recorded yet (`make record RUN=runs/...`)."
    return "\n".join([*lines, "", "Accuracy on the test set, with 95% bootstrap intervals; one line a recorded run of `data/measured/`."])


def with_table(readme: str, table: str) -> str:
    """The README with the part between its two markers replaced."""
    return re.sub(r"(<!-- measured -->\n).*?(<!-- /measured -->)", lambda found: f"{found[1]}{table}\n{found[2]}", readme, flags=re.DOTALL)


def _record_and_show(run: str) -> None:
    if not run:
        raise ArtefactError("RUN is empty: name a finished run, such as make record RUN=runs/phantom-quick-seed0.")
    print(f"kdnb: recorded in {record(Path(run)).relative_to(REPOSITORY)}")
    text = with_table(README.read_text(encoding="utf-8"), readme_table())
    with atomic_write(README) as path:
        path.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Record a run and bring the README's table up to date."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.measured", description=main.__doc__)
    parser.add_argument("run", help="a run's folder")
    given = parser.parse_args(arguments)
    return exit_status(lambda: _record_and_show(given.run))


if __name__ == "__main__":
    sys.exit(main())
