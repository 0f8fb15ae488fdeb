"""What makes chapters teach: goals, mistakes, something to try, figures that are read aloud,
words and sources that can be looked up."""

import json
import re
from pathlib import Path

import pytest

from kdnb.claims import MARGIN

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TAUGHT = sorted(path for path in NOTEBOOKS.glob("*.ipynb") if re.match(r"\d\d_|A_", path.name))
MOST_WORDS = 90


def cells(path: Path) -> list[tuple[str, str]]:
    """Kind and source of every cell."""
    return [
        (cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]


def prose(path: Path) -> str:
    return "\n\n".join(text for kind, text in cells(path) if kind == "markdown")


def paragraphs(text: str) -> list[str]:
    """Paragraphs and the items of lists; tables, code, formulas and headings are none."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$", "", text, flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=(?:\d+\.|-) )", text)
    return [part for part in blocks if part.strip() and not part.lstrip().startswith(("|", "#"))]


def windows(path: Path) -> list[tuple[int, str]]:
    """For each stretch of code cells that shows figures: how many, and its text with the prose before and after."""
    found, stretch, before = [], [], ""
    for kind, text in [*cells(path), ("markdown", "")]:
        if kind == "code":
            stretch.append(text)
            continue
        shows = sum(len(re.findall(r"run\.show\(|^live\(", code, re.MULTILINE)) for code in stretch)
        if shows:
            found.append((shows, "\n".join([before, *stretch, text])))
        stretch, before = [], text
    return found


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem)
def test_a_chapter_says_what_is_learned_what_goes_wrong_and_what_to_try(path):
    text = prose(path)
    assert "**You will learn**" in cells(path)[0][1]
    mistakes = text.partition("### Common mistakes")[2].partition("## Exercises")[0]
    assert len(re.findall(r"^- ", mistakes, re.MULTILINE)) >= 3
    assert "**Try it.**" in text


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem)
def test_what_to_try_is_there_to_be_changed(path):
    code = "\n".join(text for kind, text in cells(path) if kind == "code")
    words = set(re.findall(r"\w+", code))
    tried = [part for part in paragraphs(prose(path)) if part.lstrip().startswith("**Try it.**")]
    assert tried
    for part in tried:
        named = re.findall(r'`"?([^`]+?)"?`', part)
        assert any(snippet in code or re.split(r"\W", snippet)[0] in words for snippet in named), part


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem)
def test_no_paragraph_is_long(path):
    long = {part[:60]: len(part.split()) for part in paragraphs(prose(path)) if len(part.split()) > MOST_WORDS}
    assert long == {}


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem)
def test_each_figure_says_how_to_read_it_and_what_it_shows(path):
    for shows, text in windows(path):
        assert re.search(r"\*\*How to read ", text), text[:300]
        assert len(re.findall(r"What it shows|What they show", text)) >= 1, f"{shows} figures: {text[:300]}"


def test_the_rules_of_prose_can_fail():
    assert len(paragraphs("a " * 100 + "\n\n# x\n\n| t |\n\n- one\n- two")) == 3
    assert [len(part.split()) for part in paragraphs("1. " + "w " * 95 + "\n2. b")] == [96, 2]


def rows(page: str) -> list[str]:
    text = (NOTEBOOKS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE)[1:]


def test_the_glossary_is_in_order_and_has_each_word_once():
    words = [word for word in rows("glossary") if not word.startswith("---")]
    assert words == sorted(set(words), key=str.casefold)
    required = ["arm", "bank", "view", "cell", "known, new", "leak", "group", "control", "margin", "undecided"]
    assert set(required) <= set(words)


def test_every_source_that_a_chapter_links_is_in_the_bibliography():
    page = (NOTEBOOKS / "bibliography.md").read_text(encoding="utf-8")
    listed = re.findall(r"arxiv\.org/abs/([\d.]+)", page)
    assert len(listed) == len(set(listed)) >= 25
    named = re.findall(r"arXiv (\d{4}\.\d{4,5})\]\(https://arxiv\.org/abs/([\d.]+)\)", page)
    assert len(named) == len(listed) and all(shown == linked for shown, linked in named)
    for path in NOTEBOOKS.glob("*.ipynb"):
        used = re.findall(r"arxiv\.org/abs/([\d.]*\d)|arXiv[: ](\d{4}\.\d{4,5})", prose(path))
        assert {one or other for one, other in used} <= set(listed), path.stem


@pytest.mark.parametrize("page", ["glossary", "symbols", "bibliography"])
def test_links_of_the_reference_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", (NOTEBOOKS / f"{page}.md").read_text(encoding="utf-8")):
        assert target.startswith("https://") or (NOTEBOOKS / target).exists(), target


def test_the_margin_that_chapters_draw_is_the_claims():
    margins = [
        float(value)
        for path in TAUGHT
        for _, text in cells(path)
        for value in re.findall(r"\bmargin(?:, grid)? = (0\.\d+)", text)
    ]
    margins += [
        float(value)
        for path in TAUGHT
        for _, text in cells(path)
        for value in re.findall(r"shown, margin = .*?, (0\.\d+)", text)
    ]
    assert len(margins) >= 2 and set(margins) == {MARGIN}
