"""The book: all notebooks as an HTML site, from their stored outputs, to be read without a network.

``python -m kdnb.book`` builds it from ``notebooks/``, ``--run runs/...`` from the executed notebooks of a run.
Mathematics is converted to MathML while building, so pages need no script for it; pictures carry the text alternatives
that the notebooks give them. This module is at the same time the Sphinx extension that does both. The API reference,
which the book holds too, is made by :mod:`kdnb.reference`.
"""

import argparse
import base64
import hashlib
import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdnb.errors
from kdnb import __version__, playing, reference
from kdnb.errors import ArtefactError, KdnbError, exit_status
from kdnb.pipeline import gone, still
from kdnb.report import render
from kdnb.sources import REPOSITORY

if TYPE_CHECKING:
    from docutils.nodes import Element, document
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

TITLE = "Knowledge distillation for transparent classifiers"
# What pages load: their look, and an icon (five layers, narrowing), for which a browser asks and logs that it lacks it.
STATIC = tuple(Path(__file__).parent / "pages" / name for name in ("book.css", "icon.svg"))
# Heading in a chapter -> what the folded cells below it are called.
FOLDED = {"Parameters": "Parameters", "Load": "Loading"}
# Pages beside the chapters, in the order of the menu.
PAGES = ("FINDINGS.md", "docs/own_images.md", "docs/machines.md", "CONTRIBUTING.md")
REFERENCE = ("glossary", "symbols", "bibliography")  # pages beside the notebooks, for all chapters
CONFIGURATION: dict[str, object] = {
    "project": TITLE,
    "author": "The kdnb authors",
    "copyright": "The kdnb authors; prose and figures CC BY 4.0",
    "version": __version__,
    "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "kdnb.reference", "kdnb.book"],
    "myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence"],
    "myst_dmath_double_inline": True,
    "myst_heading_anchors": 3,
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "myst",  # tables in Markdown that a cell displays; the default prints their bars
    "nb_ipywidgets_js": {},  # the default loads require.js and the widgets from a CDN
    "nb_mime_priority_overrides": [("html", "application/vnd.jupyter.widget-view+json", None)],
    "html_theme": "sphinx_book_theme",
    "html_title": TITLE,
    "html_theme_options": {
        "home_page_in_toc": True,
        "show_toc_level": 2,
        "collapse_navbar": True,  # the modules of the reference are in the menu of its own pages alone
        "navbar_persistent": [],
        "use_download_button": False,
        "use_fullscreen_button": False,
    },
    "html_context": {"default_mode": "light"},
    "html_show_search_summary": False,  # it fetches pages, which browsers refuse for a site that is read from a folder
    "html_math_renderer": "mathml",
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_css_files": ["book.css"],
    "html_favicon": "_static/icon.svg",
    "language": "en",
    **reference.CONFIGURATION,
}

# -- the Sphinx extension -------------------------------------------------------------------------------------------


def mathml(latex: str, display: str) -> str:
    """A formula as MathML.

    Args:
        latex: the formula without its dollars.
        display: ``"inline"`` or ``"block"``.

    Returns:
        A ``math`` element.

    Raises:
        ArtefactError: the formula holds a command that the converter does not know and would print as it is.
    """
    from latex2mathml.converter import convert

    markup = convert(latex.strip(), display=display)
    if unknown := re.search(r"\\[a-zA-Z]+", markup):
        raise ArtefactError(
            f"the book cannot show {unknown.group()} in the formula {latex.strip()!r}: write it with other commands."
        )
    return markup


def _inline(translator: "HTML5Translator", node: "Element") -> None:
    from docutils.nodes import SkipNode

    translator.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def _block(translator: "HTML5Translator", node: "Element") -> None:
    from docutils.nodes import SkipNode

    formula = mathml(node.astext(), "block")
    label, number = node.get("label") or "", node.get("number") or ""
    translator.body.append(render("equation.html", mathml=formula, label=label, number=number) + "\n")
    raise SkipNode


def _leave(translator: "HTML5Translator", node: "Element") -> None:
    """Nothing is left open."""


def _describe(app: "Sphinx", doctree: "document") -> None:
    """Give every picture of an output the text alternative that its notebook holds."""
    from docutils.nodes import image

    for node in doctree.findall(image):
        alternative = app.config.kdnb_alternatives.get(Path(node["uri"]).stem)
        if alternative:
            node["alt"] = alternative


def setup(app: "Sphinx") -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (_inline, _leave), (_block, _leave))
    app.add_config_value("kdnb_alternatives", {}, "env")
    app.connect("doctree-read", _describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# -- the pages ------------------------------------------------------------------------------------------------------


def error_classes() -> list[type[KdnbError]]:
    """All errors that the study raises on purpose, the general one first."""
    classes = [value for value in vars(kdnb.errors).values() if inspect.isclass(value) and issubclass(value, KdnbError)]
    return sorted(classes, key=lambda error: (error is not KdnbError, error.__name__))


def errors_page() -> str:
    """The table of errors, made from the classes' docstrings."""
    lines = ["# Errors: cause and cure", "", "Every error of the study is one sentence. These are their kinds.", ""]
    lines += ["| error | cause | cure |", "| --- | --- | --- |"]
    for error in error_classes():
        cause, _, rest = (inspect.getdoc(error) or "").partition("\n")
        cure = " ".join(rest.partition("Cure:")[2].split())
        lines.append(f"| `{error.__name__}` | {cause} | {cure} |")
    return "\n".join(lines) + "\n"


def linked(page: str, chapters: list[str]) -> str:
    """A page of the repository as the book has it: links to chapters and pages of the book, no others."""
    known = (
        {f"{name}.ipynb" for name in chapters}
        | {Path(name).name for name in PAGES}
        | {f"{name}.md" for name in REFERENCE}
    )

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match.group()
        name = Path(target).name
        return f"[{text}]({name})" if name in known else text

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", link, page)


def index_page(readme: str, chapters: list[str]) -> str:
    """The README as the book's first page, with the menu."""
    tree = "\n".join(["```{toctree}", ":hidden:", ":caption: Chapters", "", *chapters, "```"])
    pages = [Path(name).stem for name in PAGES]
    more = "\n".join(["```{toctree}", ":hidden:", ":caption: Reference", "", *pages, *REFERENCE, "errors", "```"])
    code = "\n".join(["```{toctree}", ":hidden:", ":caption: Code", "", reference.INDEX, "```"])
    return f"{linked(readme, chapters)}\n\n{tree}\n\n{more}\n\n{code}\n"


def one_header(html: str) -> str:
    """The tables of an output with one header row: pandas writes an index's names into a second, empty but for them."""

    def merged(match: re.Match[str]) -> str:
        head = match.group()
        *before, above, below = re.findall(r"<tr.*?</tr>", head, re.DOTALL) if head.count("<tr") > 1 else ("", "")
        columns, names = (re.findall(r"<th[^>]*>(.*?)</th>", row, re.DOTALL) for row in (above, below))
        if len(columns) != len(names) or not any(names):
            return head
        heads = iter(" / ".join(filter(None, pair)) for pair in zip(names, columns, strict=True))
        row = re.sub(r"(<th[^>]*>).*?(</th>)", lambda cell: cell[1] + next(heads) + cell[2], above, flags=re.DOTALL)
        return f"<thead>{''.join(before)}{row}</thead>"

    return re.sub(r"<thead>.*?</thead>", merged, html, flags=re.DOTALL)


def _fold(cells: list[dict[str, Any]]) -> None:
    """Fold the cells that set parameters and load, which a reader of the book does not need: a click opens them."""
    heading = ""
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (match := re.search(r"^#+ (.+)$", source, re.MULTILINE)):
            heading = match[1]
        elif cell["cell_type"] == "code" and heading in FOLDED:
            cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "hide-input"]
            cell["metadata"]["mystnb"] = {
                "code_prompt_show": f"{FOLDED[heading]} (show)",
                "code_prompt_hide": f"{FOLDED[heading]} (hide)",
            }


def chapter(notebook: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A notebook as the book shows it.

    papermill's injected cell is left out, and of widgets, which need a running kernel, all but their picture; the cells
    that set parameters and load are folded. A last cell links to the modules that the code imports.

    Returns:
        The notebook, and the text alternatives of its pictures by the SHA-256 of their bytes.
    """
    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["cells"] = [
        cell for cell in content["cells"] if "injected-parameters" not in cell["metadata"].get("tags", [])
    ]
    content["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    _fold(content["cells"])
    alternatives = {}
    for cell in content["cells"]:
        cell["outputs"] = [still(output) for output in cell.get("outputs", []) if not gone(output)]
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                picture = base64.b64decode("".join(output["data"]["image/png"]))
                alternatives[hashlib.sha256(picture).hexdigest()] = "".join(output["data"].get("text/plain", ""))
            if "text/html" in output.get("data", {}):
                output["data"]["text/html"] = one_header("".join(output["data"]["text/html"]))
        if cell["cell_type"] != "code":
            del cell["outputs"]
    code = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    if line := reference.chapter_line(code):
        content["cells"].append({"cell_type": "markdown", "id": "in-the-code", "metadata": {}, "source": line})
    return content, alternatives


def write_sources(notebooks: Path, folder: Path, more: dict[str, str] | None = None) -> dict[str, str]:
    """Write the pages that Sphinx reads.

    Args:
        notebooks: the folder of the chapters.
        folder: where to write; what was there is deleted.
        more: name -> Markdown of pages that follow the chapters.

    Returns:
        The text alternatives of the chapters' pictures, as of :func:`chapter`.

    Raises:
        ArtefactError: there are no notebooks.
    """
    paths = [path for path in sorted(notebooks.glob("*_*.ipynb")) if not path.stem.endswith((".running", ".failed"))]
    if not paths:
        raise ArtefactError(f"there are no notebooks in {notebooks}: run `make reproduce` first, or name another RUN.")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "_static").mkdir(parents=True)
    for static in STATIC:
        shutil.copy(static, folder / "_static")
    chapters = [path.stem for path in paths]
    alternatives: dict[str, str] = {}
    for name in ("README.md", *PAGES):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        for picture in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text):
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / picture, folder / picture)
        if name == "README.md":
            (folder / "index.md").write_text(index_page(text, [*chapters, *(more or {})]), encoding="utf-8")
        else:
            (folder / Path(name).name).write_text(linked(text, chapters), encoding="utf-8")
    for name, text in ({"errors": errors_page()} | (more or {})).items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    for name in REFERENCE:
        page = (REPOSITORY / "notebooks" / f"{name}.md").read_text(encoding="utf-8")
        (folder / f"{name}.md").write_text(linked(page, chapters), encoding="utf-8")
    reference.write_sources((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"), folder)
    for path in paths:
        content, described = chapter(path)
        alternatives |= described
        (folder / path.name).write_text(json.dumps(content), encoding="utf-8")
    return alternatives


def build(notebooks: Path, out: Path, players: playing.Players | None = None) -> Path:
    """Build the site.

    Args:
        notebooks: the folder of the chapters.
        out: a folder for the site (``html``) and what it is made from.
        players: the students of the page that plays; ``None`` builds a book without it.

    Returns:
        The path of its first page.

    Raises:
        ArtefactError: no notebooks, or Sphinx warned (a broken link, a formula that cannot be converted).
    """
    from sphinx.application import Sphinx

    sources = out / "source"
    alternatives = write_sources(notebooks, sources, {"playing": playing.OUTLINE} if players else None)
    configuration = CONFIGURATION | {"kdnb_alternatives": alternatives, "html_static_path": [str(sources / "_static")]}
    shutil.rmtree(out / "html", ignore_errors=True)
    app = Sphinx(sources, None, out / "html", out / "doctrees", "html", configuration, status=None, freshenv=True)
    docstrings = reference.DocstringFaults()
    docstrings.listen()
    app.build(force_all=True)
    for fault in docstrings.faults:
        print(f"kdnb: docstring of {fault}", file=sys.stderr)
    faults = app._warncount  # noqa: SLF001 (Sphinx tells it nowhere else)
    if app.statuscode or faults:
        raise ArtefactError(f"the book has {faults} faults, named above: mend the notebook and run `make book` again.")
    if players is not None:  # the theme's page gave it a place among the chapters and in the search
        playing.write(players, out / "html" / "playing.html")
    return out / "html" / "index.html"


def main(arguments: list[str] | None = None) -> int:
    """Build the book and print where it lies."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.book", description=main.__doc__)
    parser.add_argument("--run", default="", help="a run's folder; without it the committed notebooks")
    run = parser.parse_args(arguments).run
    notebooks, out = (
        (Path(run) / "notebooks", Path(run) / "book")
        if run
        else (REPOSITORY / "notebooks", REPOSITORY / "runs" / "book")
    )

    def book() -> Path:
        players = playing.of_run(Path(run)) if run else playing.of_record(playing.RECORD)
        return build(notebooks.absolute(), out.absolute(), players)

    return exit_status(lambda: print(f"kdnb: the book is {book()}"))


if __name__ == "__main__":
    sys.exit(main())
