"""The book: what the pages hold, and how a real browser shows them.

It is built from the committed notebooks. The browser tests are skipped where no Chromium is installed.
"""

import ast
import base64
import functools
import http.server
import inspect
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pandas as pd
import pytest
from nbformat.v4 import nbjson, new_code_cell, new_markdown_cell, new_notebook, new_output

from kdnb.book import (
    PAGES,
    REFERENCE,
    build,
    chapter,
    error_classes,
    errors_page,
    index_page,
    linked,
    mathml,
    one_header,
)
from kdnb.errors import ArtefactError
from kdnb.losses import distillation_loss
from kdnb.reference import DocstringFaults, floors, imported, module_files, module_page, whole_returns
from kdnb.slides import write as write_slides

# The words of a page without its code and its formulas: where dollars are left, a formula was not understood.
PROSE = """() => {
  const page = document.querySelector('article, main').cloneNode(true);
  page.querySelectorAll('pre, code, math').forEach(part => part.remove());
  return page.textContent.replace(/\\s+/g, ' ');
}"""
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


def built(run: Path) -> Path:
    """The folder of the pages made from a run's notebooks, as `make book RUN=...` makes them."""
    answer = subprocess.run(
        [sys.executable, "-m", "kdnb.book", "--run", str(run)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return Path(answer.stdout.split()[-1]).parent


@pytest.fixture(scope="session")
def book(repository, tmp_path_factory):
    """The book of the committed notebooks."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(repository / "notebooks", run / "notebooks")
    return built(run)


@pytest.fixture(scope="session")
def site(book):
    """The book's address on a server of its own."""
    handler = functools.partial(_Silent, directory=str(book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def page(browser, site):
    """A page, with everything that went wrong on it and every request that left the machine."""
    context = browser.new_context()
    page = context.new_page()
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    left = "net::ERR_ABORTED"  # the page was left while its icon was still loading
    page.on("requestfailed", lambda r: None if r.failure == left else page.faults.append(f"failed: {r.url}"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((site, "data:")) else page.faults.append(f"outside: {request.url}")
        ),
    )
    yield page
    context.close()


def chapters(repository: Path) -> list[str]:
    return [path.stem for path in sorted((repository / "notebooks").glob("*.ipynb"))]


def pages(repository: Path) -> list[str]:
    return ["index", *chapters(repository), *(Path(name).stem for name in PAGES), *REFERENCE, "errors", "api"]


# What reaches over the window's right edge and no box around it scrolls.
SPILLS = """() => [...document.querySelectorAll('article *')].filter(e => {
  const width = document.documentElement.clientWidth, box = e.getBoundingClientRect();
  if (!box.width || box.right <= width + 1) return false;
  for (let p = e.parentElement; p; p = p.parentElement)
    if (getComputedStyle(p).overflowX !== 'visible' && p.getBoundingClientRect().right <= width + 1) return false;
  return true;
}).map(e => e.textContent.trim().slice(0, 80))"""


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(repository, site, page, width):
    page.set_viewport_size({"width": width, "height": 900})
    for name in pages(repository):
        page.goto(f"{site}{name}.html")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(SPILLS) == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_no_page_of_the_reference_is_wider_than_a_telephone(site, page):
    page.set_viewport_size({"width": 390, "height": 900})
    for name in module_files():
        page.goto(f"{site}{name}.html")
        assert page.evaluate(SPILLS) == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    assert page.faults == []


def test_a_page_has_the_window_s_width_and_its_contents_behind_a_button(site, page):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{site}03_distillation.html")
    code = page.evaluate("document.querySelector('article .cell_output pre').getBoundingClientRect().width")
    assert code > 0.7 * 1280
    page.click("button.secondary-toggle")
    assert page.locator("dialog .page-toc a").first.is_visible()


def test_cells_that_set_parameters_and_load_are_folded_and_open_on_a_click(repository, site, page):
    for name in chapters(repository):
        page.goto(f"{site}{name}.html")
        folded = page.locator("details.hide.above-input")
        assert folded.count() >= 2, name
        first = folded.first
        assert "Parameters" in first.locator("summary").inner_text() and not first.locator("pre").is_visible()
        first.locator("summary").click()
        assert first.locator("pre").is_visible()


def test_no_table_has_an_empty_header_row(repository, site, page):
    empty = "[...document.querySelectorAll('thead tr')].filter(r => r.offsetHeight && !r.textContent.trim()).length"
    for name in pages(repository):
        page.goto(f"{site}{name}.html")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(empty) == 0, name


def test_every_page_loads_without_a_fault_with_mathematics_and_alternatives(repository, site, page):
    formulas = 0
    for name in [*pages(repository), "search", "genindex"]:
        page.goto(f"{site}{name}.html")
        page.wait_for_load_state("networkidle")
        assert page.faults == [], name
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        measure = "m => [m.getBoundingClientRect().width, m.textContent.trim().length]"
        sizes = page.evaluate(f"[...document.querySelectorAll('math')].map({measure})")
        assert all(width > 0 for width, letters in sizes if letters), name
        formulas += len(sizes)
        bare = page.evaluate(
            "[...document.images].filter(i => !(i.alt || '').trim() || !i.complete || !i.naturalWidth).map(i => i.src)"
        )
        assert bare == [], f"{name}: pictures without a text alternative or not loaded"
        text = page.evaluate(PROSE)
        assert not re.search(r"\$[^$]{1,80}\$|\\frac|\\begin\{|\\\(", text), f"{name}: unrendered mathematics"
    assert formulas >= 10


def test_internal_links_resolve(repository, book):
    pages = {path.name: path.read_text(encoding="utf-8") for path in book.glob("*.html")}
    anchors = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    for name, text in pages.items():
        for target in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', text):
            if re.match(r"[a-z]+:", target):
                continue
            path, anchor = urldefrag(urljoin(name, target))
            assert path in pages, f"{name} links to {target}"
            assert not anchor or anchor in anchors[path] or name == "search.html", f"{name} links to {target}"


@pytest.mark.parametrize("word", ["temperature", "fidelity"])
def test_search_finds_a_word(site, page, word):
    page.goto(f"{site}search.html?q={word}")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    assert page.locator("#search-results li a").count() >= 1
    assert page.faults == []


def test_the_book_reads_from_a_folder_too(book, browser):
    context = browser.new_context()
    page = context.new_page()
    faults = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(f"{book.as_uri()}/search.html?q=temperature")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    page.goto(f"{book.as_uri()}/index.html")
    assert faults == []
    context.close()


def test_the_pages_name_no_other_host_for_scripts_styles_or_pictures(book):
    for path in book.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="([^"]+)"|<link\b[^>]*\bhref="([^"]+)"', text)
        assert not [a or b for a, b in loaded if re.match(r"(https?:)?//", a or b)], path.name


def test_tables_in_markdown_are_tables(book):
    for path in book.glob("*.html"):
        assert not re.search(r"<p>\s*\|", path.read_text(encoding="utf-8")), (
            f"{path.name}: the bars of a table are printed"
        )
    assert (book / "10_report.html").read_text(encoding="utf-8").count("<table") >= 3


def test_every_slide_of_the_talk_fits_its_screen_and_keys_turn_the_pages(repository, tmp_path, browser):
    path = write_slides(repository / "notebooks", tmp_path / "slides.html")
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    faults = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url)
    )
    page.goto(path.as_uri())
    for number in range(page.evaluate("slides.length")):
        assert page.evaluate("location.hash") == f"#{number + 1}"
        title = page.locator("section.now :is(h1, h2)").inner_text()
        assert page.evaluate("slides[now].scrollHeight <= slides[now].clientHeight"), title
        if page.locator("section.now img").count():
            assert page.evaluate("slides[now].querySelector('img').getBoundingClientRect().height") > 200, title
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Home")
    assert page.evaluate("now") == 0 and not page.locator("section.now .notes").is_visible()
    page.keyboard.press("n")
    assert page.locator("section.now .notes").is_visible() and faults == []
    page.close()


def test_every_module_has_a_page_with_its_functions_and_their_parameters(repository, book):
    listed = (book / "api.html").read_text(encoding="utf-8")
    code_map = floors((repository / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    known = {name for names, _ in code_map.values() for name in names}
    assert len(code_map) >= 4 and {"losses", "explain", "book"} <= known
    packages = [name for name in known if (repository / "kdnb" / name).is_dir()]
    modules = module_files()
    assert {f"kdnb.{name}" for name in known} <= set(modules), "every module of the map"
    for name, path in modules.items():
        above = [f"{above}.html" for above in ("api", name.rpartition(".")[0]) if above]
        assert any(f'href="{name}.html' in (book / other).read_text(encoding="utf-8") for other in above), name
        text = (book / f"{name}.html").read_text(encoding="utf-8")
        documented = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_" and ast.get_docstring(node)
        ]
        assert all(f'id="{name}.{node.name}"' in text for node in documented), name
        assert not re.search(rf'id="{name}\._', text), f"{name}: something private"
    assert all(f'href="kdnb.{name}.html' in listed for name in packages)
    page = (book / "kdnb.losses.html").read_text(encoding="utf-8")
    loss = page[page.index('id="kdnb.losses.distillation_loss"') :].partition('<dl class="py')[0]
    names = inspect.signature(distillation_loss).parameters
    assert len(names) > 3 and all(f"<strong>{name}</strong> (" in loss for name in names), "each with its type"


def test_a_chapter_ends_with_links_to_the_modules_that_it_imports(repository, book):
    for name in chapters(repository):
        text = (book / f"{name}.html").read_text(encoding="utf-8")
        last = text[text.rindex("In the code:") :].partition("</p>")[0]
        assert 'href="kdnb.runs.html"' in last, name
    assert 'href="kdnb.losses.html"' in (book / "00_start_here.html").read_text(encoding="utf-8")


# -- without a browser ----------------------------------------------------------------------------------------------


def test_errors_are_listed_from_the_code():
    page = errors_page()
    assert len(error_classes()) >= 8
    for error in error_classes():
        row = next(line for line in page.splitlines() if f"`{error.__name__}`" in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 3 and all(len(cell) > 10 for cell in cells[1:]), row


@pytest.mark.parametrize(
    "latex",
    [
        r"\operatorname{softmax}_T(z)_i = \frac{\exp(z_i/T)}{\sum_j \exp(z_j/T)}",
        r"\begin{aligned} L &= \alpha \mathrm{HL} + (1-\alpha) T^2 \mathrm{SL} \\ &> 0 \end{aligned}",
        (
            r"\mathbb{E}\left[\lVert \hat{p} - p \rVert_2^2\right] \leq \max_{k} |x_k|, \quad "
            r"\text{for all } k \in \{1, \dots, K\}"
        ),
    ],
)
def test_formulas_become_mathml(latex):
    made = mathml(latex, "block")
    assert made.startswith("<math") and 'display="block"' in made
    assert "\\" not in made


def test_a_formula_with_a_command_that_would_be_printed_is_refused():
    with pytest.raises(ArtefactError, match=r"cannot show \\arg in the formula"):
        mathml(r"\arg\max f(x)", "inline")


def executed_notebook(folder: Path) -> Path:
    """A chapter with a formula, a picture and a live figure."""
    picture = new_output("display_data", data={"image/png": PNG, "text/plain": "A rising line."}, metadata={})
    live = new_output(
        "display_data",
        data={"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "interactive(...)"},
    )
    cells = [
        new_markdown_cell("# 00 · Start\n\nA formula $x^2$."),
        new_code_cell("run_dir = '/home/ada'", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("show()", outputs=[picture, live], execution_count=1),
    ]
    path = folder / "00_start_here.ipynb"
    path.write_text(
        nbjson.writes(
            new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
        )
    )
    return path


def test_a_chapter_leaves_out_what_is_only_of_one_machine_or_one_moment(tmp_path):
    shown, alternatives = chapter(executed_notebook(tmp_path))
    text = json.dumps(shown)
    assert "/home/ada" not in text and "interactive" not in text
    assert list(alternatives.values()) == ["A rising line."]
    assert base64.b64decode(PNG)


def test_no_notebooks_is_a_sentence(tmp_path):
    with pytest.raises(ArtefactError, match="there are no notebooks"):
        build(tmp_path, tmp_path / "book")


def test_pages_link_to_chapters_and_pages_of_the_book_only():
    page = index_page(
        "[one](notebooks/00_start_here.ipynb) [two](LICENSE) [three](https://example.org)", ["00_start_here"]
    )
    assert page.startswith("[one](00_start_here.ipynb) two [three](https://example.org)")
    assert linked("[own](docs/own_images.md) [test](../tests/test_losses.py)", []) == "[own](own_images.md) test"


def test_modules_are_found_in_import_lines_alone():
    known = ["kdnb", "kdnb.losses", "kdnb.explain", "kdnb.explain.maps"]
    code = [
        "%matplotlib inline\nfrom kdnb import losses, __version__\nprint('import kdnb.views')",
        "import kdnb.explain.maps as m",
    ]
    assert imported(code, known) == ["kdnb", "kdnb.explain.maps", "kdnb.losses"]
    assert imported(["if x:\n    !ls\n    from kdnb.explain import (\n        average,\n    )"], known) == [
        "kdnb.explain"
    ]
    assert imported(["x = 1", "import numpy"], known) == []


def test_a_sentence_with_a_colon_is_no_type_of_what_is_returned():
    lines = ["One.", "", "Returns:", "    Of each: two things.", "    More: of it.", ""]
    whole_returns(lines)
    assert lines == ["One.", "", "Returns:", "    : Of each: two things.", "    More: of it.", ""]


def test_a_fault_in_a_docstring_is_told_and_any_other_stays():
    faults = DocstringFaults()
    record = logging.makeLogRecord({"msg": "unexpected indentation", "location": "x.py:docstring of kdnb.x.f:3"})
    assert not faults.filter(record) and faults.faults == ["kdnb.x.f:3: unexpected indentation"]
    assert faults.filter(logging.makeLogRecord({"msg": "unknown document", "location": ("index", 3)}))


DOCUMENTED = '''"""A module with |G| and a table that is none.

== ==
a  bcdef
g h
== ==
"""

from typing import NamedTuple

from scipy.stats import entropy, wilcoxon


class Pair(NamedTuple):
    """Two numbers."""

    first: float


def halved(number: float) -> Pair:
    """Half of |G|.

    Args:
        number: of any size: small, or *large.

    Returns:
        Of the number: its half.
    """


def _private() -> None:
    """Nobody's."""
'''


def test_a_module_with_faults_in_its_docstrings_has_a_page_all_the_same(tmp_path):
    (tmp_path / "documented.py").write_text(DOCUMENTED)
    (tmp_path / "documented.rst").write_text(module_page("documented", {"documented": tmp_path / "documented.py"}))
    script = f"""
import sys
from sphinx.application import Sphinx
from kdnb import reference
sys.path.insert(0, {str(tmp_path)!r})
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "kdnb.reference"]
configuration = reference.CONFIGURATION | {{"extensions": extensions, "root_doc": "documented"}}
app = Sphinx({str(tmp_path)!r}, None, *[{str(tmp_path / "out")!r}] * 2, "html", configuration, status=None)
faults = reference.DocstringFaults()
faults.listen()
app.build()
print(app._warncount, len(faults.faults))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0 and re.fullmatch(r"0 [1-9]\d*", answer.stdout.strip()), answer.stderr
    page = (tmp_path / "out" / "documented.html").read_text(encoding="utf-8")
    assert "Half of |G|." in page and "Of the number: its half." in page and "or *large." in page
    assert not re.search(r"problematic|entropy|wilcoxon|Alias for field|_private", page)


def test_the_names_of_an_index_move_into_the_one_header_row():
    table = pd.DataFrame({"b": [1], "c": [2]}, index=pd.Index(["x"], name="a"))
    assert re.findall(r"<th>(.*?)</th>", one_header(table.to_html())) == ["a", "b", "c", "x"]
    assert re.findall(r"<th>(.*?)</th>", one_header(table.rename_axis(columns="d").to_html()))[0] == "a / d"
    plain = table.reset_index().to_html()
    assert one_header(plain) == plain
    spanning = pd.concat({"both": table}, axis=1).to_html()
    assert re.findall(r"<th[^>]*>(.*?)</th>", one_header(spanning))[:5] == ["", "both", "a", "b", "c"]
