"""Slides to teach the method in 45 minutes: one page made from the chapters, which needs no network.

``python -m kdnb.slides`` makes ``runs/slides.html`` from the committed notebooks, ``--run runs/...`` from the executed
ones of a run. A slide is a figure or a piece of code of a chapter under the heading that it has there, with the
section's first sentences; all of the section is in the speaker's notes (key n). What is shown is a list of names, so a
chapter's words may change without the talk being written anew.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from nbconvert.filters import markdown2html

from kdnb.book import TITLE, mathml
from kdnb.errors import ArtefactError, exit_status
from kdnb.files import atomic_write
from kdnb.findings import README, findings
from kdnb.report import render
from kdnb.sources import REPOSITORY

# Chapter -> its figures, by the names that run.show gives them, and its pieces of code, by a line that only they have.
TALK = {
    "00": ("diagram", "softened", "def distillation_loss(", "average_of_64"),
    "01": ("data_splits", "phantom_variants"),
    "02": ("teacher_curves", "teacher_reliability"),
    "03": ("arms", "few_labels"),
    "04": ("over_temperature", "gradients_and_entropy", "one_image_softened"),
    "05": ("student_layers", "methods"),
    "06": ("fidelity", "truth", "cascade", "time_against_fidelity"),
    "07": ("plain_evidence", "price"),
    "08": ("teaching",),
    "10": ("together",),
}
WORDS = 45  # on a slide; the rest is in the notes


@dataclass(frozen=True)
class Slide:
    """One slide.

    Attributes:
        kind: title, chapter, figure, code or findings.
        title: its heading.
        text: what stands below it, HTML.
        notes: the speaker's, HTML.
        code: Python that is shown.
        png: the picture in base64.
        alt: its text alternative.
    """

    kind: str
    title: str
    text: str = ""
    notes: str = ""
    code: str = ""
    png: str = ""
    alt: str = ""


def html(markdown: str) -> str:
    """Markdown as HTML with its formulas in MathML; links, which lead nowhere on a slide, become their words."""
    formulas: list[str] = []

    def keep(match: re.Match[str]) -> str:
        formulas.append(mathml(match[1] or match[2], "block" if match[1] else "inline"))
        return f"FORMULA{len(formulas) - 1}END"

    markdown = re.sub(r"<!--.*?-->|</?(?:details|summary|img)[^>]*>", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"!?\[([^\]]+)\]\([^)\s]+\)", r"\1", markdown)
    page = markdown2html(re.sub(r"\$\$(.+?)\$\$|\$([^$]+)\$", keep, markdown, flags=re.DOTALL))
    return re.sub(r"FORMULA(\d+)END", lambda match: formulas[int(match[1])], page)


def beginning(markdown: str) -> str:
    """The first sentences of a section, at most :data:`WORDS` words of its first paragraph, or its first sentence."""
    paragraph = next(
        (part for part in re.split(r"\n\s*\n", markdown.strip()) if not re.match(r"[-|<#>]|\d\. ", part)), ""
    )
    sentences = re.split(r"(?<=[.?!:])\s+(?=[A-Z*`$])", paragraph)
    first = sentences[:1]
    for sentence in sentences[1:]:
        if len(" ".join([*first, sentence]).split()) > WORDS:
            break
        first.append(sentence)
    return " ".join(first)


def _named(cell: dict[str, Any]) -> list[str]:
    """The names that a cell's figures have, in the order in which it shows them."""
    return re.findall(r"""run\.show\(\s*["'](\w+)["']""", "".join(cell["source"]))


def of_chapter(book: dict[str, Any], wanted: tuple[str, ...]) -> list[Slide]:
    """A chapter's slides: its title, then what is wanted of it, in its order.

    Args:
        book: the chapter's notebook, as JSON.
        wanted: names of figures and lines of code, as in :data:`TALK`. A figure that this run lacks is left out.

    Returns:
        At least the title.

    Raises:
        ArtefactError: no cell of the chapter shows such a figure or has such a line.
    """
    title, _, goal = "".join(book["cells"][0]["source"]).partition("\n")
    slides, missing = [Slide("chapter", title.lstrip("# "), html(beginning(goal)), html(goal))], set(wanted)
    subject, heading, section = re.sub(r"^[# \d·A-Z]*· ", "", title), "", ""
    for position, cell in enumerate(book["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            *_, last = re.split(r"^(?=#{1,4} )", source, flags=re.MULTILINE)
            section = last
            if last.startswith("#"):
                heading, _, section = last.lstrip("# ").partition("\n")
            continue
        after = book["cells"][position + 1 : position + 2]
        explained = after and after[0]["cell_type"] == "markdown"
        prose = "".join(after[0]["source"]).partition("\n#")[0] if explained else ""
        common = {
            "title": heading if heading not in ("", "Look") else subject,
            "text": html(beginning(section)),
            "notes": html(f"{section}\n\n{'' if prose.startswith('#') else prose}"),
        }
        pictures = [output["data"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
        names = _named(cell)
        for name, data in zip(names, pictures, strict=False):
            if name in wanted:
                png, alt = "".join(data["image/png"]).replace("\n", ""), "".join(data.get("text/plain", ""))
                slides.append(Slide("figure", png=png, alt=alt, **common))
        missing -= set(names)
        for line in [line for line in missing if not line.isidentifier() and line in source]:
            slides.append(Slide("code", code=source, **common))
            missing.discard(line)
    if missing:
        raise ArtefactError(
            f"the talk shows {', '.join(sorted(missing))}, "
            f"which chapter {title.lstrip('# ')!r} does not have: mend TALK."
        )
    return slides


def talk(notebooks: Path) -> list[Slide]:
    """All slides: the title, the chapters of :data:`TALK` that are there, and what was found.

    Args:
        notebooks: the folder of the chapters.

    Returns:
        In the order of the talk.

    Raises:
        ArtefactError: no chapter is there, or one lacks what the talk shows of it.
    """
    opening = README.read_text(encoding="utf-8").split("\n\n")[1]
    slides = [
        Slide(
            "title",
            TITLE,
            html(opening),
            escape("Keys: arrows, Home, End; n for these notes. To print: one slide a page."),
        )
    ]
    for number, wanted in TALK.items():
        for path in sorted(notebooks.glob(f"{number}_*.ipynb")):
            if not path.stem.endswith((".running", ".failed")):
                slides += of_chapter(json.loads(path.read_text(encoding="utf-8")), wanted)
    if len(slides) == 1:
        raise ArtefactError(f"there are no notebooks in {notebooks}: run `make reproduce` first, or name another RUN.")
    found = findings().splitlines()  # too much for one slide
    parts = {"What was found": found[:3], "What was found of knowledge and of maps": found[3:]}
    return [*slides, *(Slide("findings", title, html("\n".join(lines))) for title, lines in parts.items() if lines)]


def write(notebooks: Path, path: Path) -> Path:
    """Write the talk as one self-contained page and return its path."""
    page = render("slides.html", "slides.css", title=TITLE, slides=talk(notebooks))
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Make the slides and print where they lie."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.slides", description=main.__doc__)
    parser.add_argument("--run", default="", help="a run's folder; without it the committed notebooks")
    run = parser.parse_args(arguments).run
    notebooks, path = (Path(run) / "notebooks", Path(run)) if run else (REPOSITORY / "notebooks", REPOSITORY / "runs")
    return exit_status(lambda: print(f"kdnb: the slides are {write(notebooks, path.absolute() / 'slides.html')}"))


if __name__ == "__main__":
    sys.exit(main())
