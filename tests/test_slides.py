"""The talk: made from the chapters' own figures and words, one page that needs no network.

How a browser shows it is in test_book.py, where the browser is.
"""

import json
import re

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdnb.errors import ArtefactError
from kdnb.slides import TALK, WORDS, _named, beginning, html, main, of_chapter, talk, write

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


def _chapter() -> dict:
    picture = new_output("display_data", data={"image/png": PNG, "text/plain": "A line <rises>."}, metadata={})
    cells = [
        new_markdown_cell("# 00 · Start here\n\nA goal."),
        new_markdown_cell("## Teach\n\nThe loss is $x^2$. It is [small](notebooks/01.ipynb)."),
        new_code_cell("def taught():\n    return '<b>'"),
        new_code_cell('run.show("curve", figure, alt="A line.")', outputs=[picture]),
        new_markdown_cell("How to read it: upwards.\n\n## Next\n\nMore."),
        new_code_cell('run.show("other", figure, alt="-")'),
    ]
    return json.loads(json.dumps(new_notebook(cells=cells)))


def test_a_slide_has_the_section_s_heading_first_sentences_and_all_of_it_in_the_notes():
    title, code, figure = of_chapter(_chapter(), ("curve", "def taught("))
    assert (title.kind, title.title) == ("chapter", "00 · Start here") and "A goal." in title.text
    assert code.kind == "code" and code.code.startswith("def taught()") and code.title == figure.title == "Teach"
    assert figure.png == PNG and figure.alt == "A line <rises>."
    assert "<math" in figure.text and "It is small." in figure.text and "<a" not in figure.text
    assert "How to read it: upwards." in figure.notes and "More." not in figure.notes


def test_a_figure_that_this_run_lacks_is_left_out_and_one_that_no_cell_shows_is_refused():
    assert [slide.kind for slide in of_chapter(_chapter(), ("other",))] == ["chapter"]
    with pytest.raises(ArtefactError, match="the talk shows curves, which chapter '00 · Start here' does not have"):
        of_chapter(_chapter(), ("curves",))


def test_a_slide_says_few_words_and_never_half_a_sentence():
    sentences = "One two three. " * 40
    assert len(beginning(sentences).split()) <= WORDS and beginning(sentences).endswith("three.")
    assert beginning("- a list\n\nAnd a sentence.") == "And a sentence."


def test_formulas_are_mathml_and_raw_html_of_a_chapter_is_not_a_switch():
    made = html("<details><summary>Answer</summary>\n\n$$a < b$$\n\n</details>")
    assert made.count("<math") == 1 and "details" not in made and "$" not in made


def test_the_talk_is_made_of_every_chapter_in_the_list(repository):
    slides = talk(repository / "notebooks")
    items = sum(map(len, TALK.values()))
    assert 25 <= items + len(TALK) + 2 <= 45, "about a minute and a half each make 45 minutes"
    pictures = set()
    for path in (repository / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
                pictures |= set(_named(cell))
    shown = [slide for slide in slides if slide.kind in ("figure", "code")]
    waiting = sum(name.isidentifier() and name not in pictures for names in TALK.values() for name in names)
    assert len(shown) == items - waiting and len(shown) > items // 2, (
        "but for chapters whose outputs are being made anew"
    )
    assert all(len(slide.alt) > 20 for slide in shown if slide.kind == "figure")
    assert slides[0].kind == "title" and slides[-1].kind == "findings"


def test_the_page_has_no_remote_address(repository, tmp_path, capsys):
    text = write(repository / "notebooks", tmp_path / "slides.html").read_text(encoding="utf-8")
    assert not re.search(
        r"""(?:src|href|action|poster)=["'](?!data:|#)|url\(|@import|<link(?! rel="icon")|fetch\(|import\(""", text
    )
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text).replace("http://www.w3.org/1998/Math/MathML", "")
    assert not re.search(r"https?:|\bwss?:|//[a-z]+\.", words)
    assert main(["--run", str(tmp_path)]) == 2 and "there are no notebooks" in capsys.readouterr().err
