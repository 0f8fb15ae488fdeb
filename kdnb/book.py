"""The book: all notebooks as an HTML site, from their stored outputs, to be read without a network.

``python -m kdnb.book`` builds it from ``notebooks/``, ``--run runs/...`` from the executed notebooks of a run. Mathematics is
converted to MathML while building, so pages need no script for it; pictures carry the text alternatives that the notebooks give them.
This module is at the same time the Sphinx extension that does both.
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
from typing import Any

import kdnb.errors
from kdnb import __version__
from kdnb.errors import ArtefactError, KdnbError, exit_status
from kdnb.pipeline import gone, still
from kdnb.sources import REPOSITORY

TITLE = "Knowledge distillation for transparent classifiers"
REFERENCE = ["glossary", "symbols", "bibliography"]  # pages beside the notebooks, for all chapters
STYLE = """
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", math, serif; font-size: 1.06em; }
div.math { overflow-x: auto; overflow-y: hidden; margin: 1rem 0; justify-content: center; text-align: center; }
div.math .eqno { float: right; }
.cell_output img { max-width: 100%; height: auto; }
.cell pre { white-space: pre-wrap; font-size: 0.8em; }
.cell_output .dataframe { display: block; width: fit-content; max-width: 100%; overflow-x: auto; font-size: 0.8em; }
.cell_output .dataframe :is(td, th) { padding: 0.15em 0.5em; white-space: nowrap; }
"""
# Five layers, narrowing: without an icon of its own the browser asks for one and logs that there is none.
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><g fill="#1f5fa8"><rect x="2" y="2" width="4" height="28"/>
<rect x="8" y="5" width="4" height="22"/><rect x="14" y="8" width="4" height="16"/><rect x="20" y="11" width="4" height="10"/>
<rect x="26" y="13" width="4" height="6"/></g></svg>
"""
CONFIGURATION: dict[str, Any] = {
    "project": TITLE,
    "author": "The kdnb authors",
    "copyright": "The kdnb authors; prose and figures CC BY 4.0",
    "version": __version__,
    "extensions": ["myst_nb", "kdnb.book"],
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
}

# -- the Sphinx extension -------------------------------------------------------------------------------------------


def mathml(latex: str, display: str) -> str:
    """A formula as MathML, ``display`` being ``"inline"`` or ``"block"``.

    Raises:
        ArtefactError: the formula holds a command that the converter does not know and would print as it is.
    """
    from latex2mathml.converter import convert

    made = convert(latex.strip(), display=display)
    if unknown := re.search(r"\\[a-zA-Z]+", made):
        raise ArtefactError(f"the book cannot show {unknown.group()} in the formula {latex.strip()!r}: write it with other commands.")
    return made


def _inline(translator: Any, node: Any) -> None:
    from docutils.nodes import SkipNode

    translator.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def _block(translator: Any, node: Any) -> None:
    from docutils.nodes import SkipNode

    label = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    identity = f' id="equation-{node["label"]}"' if node.get("label") else ""
    translator.body.append(f'<div class="math"{identity}>{label}{mathml(node.astext(), "block")}</div>\n')
    raise SkipNode


def _leave(translator: Any, node: Any) -> None:
    """Nothing is left open."""


def _describe(app: Any, doctree: Any) -> None:
    """Give every picture of an output the text alternative that its notebook holds."""
    from docutils.nodes import image

    for node in doctree.findall(image):
        alternative = app.config.kdnb_alternatives.get(Path(node["uri"]).stem)
        if alternative:
            node["alt"] = alternative


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (_inline, _leave), (_block, _leave))
    app.add_config_value("kdnb_alternatives", {}, "env")
    app.connect("doctree-read", _describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# -- the pages ------------------------------------------------------------------------------------------------------


def error_classes() -> list[type[KdnbError]]:
    """All errors that the study raises on purpose, the general one first."""
    found = [value for value in vars(kdnb.errors).values() if inspect.isclass(value) and issubclass(value, KdnbError)]
    return sorted(found, key=lambda error: (error is not KdnbError, error.__name__))


def errors_page() -> str:
    """The table of errors, made from the classes' docstrings."""
    lines = ["# Errors: cause and cure", "", "Every error of the study is one sentence. These are their kinds.", ""]
    lines += ["| error | cause | cure |", "| --- | --- | --- |"]
    for error in error_classes():
        cause, _, rest = inspect.getdoc(error).partition("\n")
        cure = " ".join(rest.partition("Cure:")[2].split())
        lines.append(f"| `{error.__name__}` | {cause} | {cure} |")
    return "\n".join(lines) + "\n"


def index_page(readme: str, chapters: list[str]) -> str:
    """The README as the book's first page: links to notebooks become links to chapters, other files of the repository plain names."""

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found.group()
        name = target.removeprefix("notebooks/")
        return f"[{text}]({name})" if name.removesuffix(".ipynb") in chapters else text

    body = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", link, readme)
    tree = "\n".join(["```{toctree}", ":hidden:", ":caption: Chapters", "", *chapters, "```"])
    more = "\n".join(["```{toctree}", ":hidden:", ":caption: Reference", "", *REFERENCE, "errors", "```"])
    return f"{body}\n\n{tree}\n\n{more}\n"


def chapter(notebook: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A notebook as the book shows it, and the text alternatives of its pictures by the SHA-256 of their bytes.

    papermill's injected cell is left out, and of widgets, which need a running kernel, all but their picture.
    """
    book = json.loads(notebook.read_text(encoding="utf-8"))
    book["cells"] = [cell for cell in book["cells"] if "injected-parameters" not in cell["metadata"].get("tags", [])]
    book["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    alternatives = {}
    for cell in book["cells"]:
        cell["outputs"] = [still(output) for output in cell.get("outputs", []) if not gone(output)]
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                content = base64.b64decode("".join(output["data"]["image/png"]))
                alternatives[hashlib.sha256(content).hexdigest()] = "".join(output["data"].get("text/plain", ""))
        if cell["cell_type"] != "code":
            del cell["outputs"]
    return book, alternatives


def write_sources(notebooks: Path, folder: Path) -> dict[str, str]:
    """Write the pages that Sphinx reads into ``folder`` and return the pictures' text alternatives.

    Raises:
        ArtefactError: there are no notebooks.
    """
    found = [path for path in sorted(notebooks.glob("*_*.ipynb")) if not path.stem.endswith((".running", ".failed"))]
    if not found:
        raise ArtefactError(f"there are no notebooks in {notebooks}: run `make reproduce` first, or name another RUN.")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "_static").mkdir(parents=True)
    (folder / "_static" / "book.css").write_text(STYLE, encoding="utf-8")
    (folder / "_static" / "icon.svg").write_text(ICON, encoding="utf-8")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    alternatives = {}
    for picture in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", readme):
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / picture, folder / picture)
    (folder / "index.md").write_text(index_page(readme, [path.stem for path in found]), encoding="utf-8")
    (folder / "errors.md").write_text(errors_page(), encoding="utf-8")
    for name in REFERENCE:
        shutil.copy(REPOSITORY / "notebooks" / f"{name}.md", folder)
    for path in found:
        book, described = chapter(path)
        alternatives |= described
        (folder / path.name).write_text(json.dumps(book), encoding="utf-8")
    return alternatives


def build(notebooks: Path, out: Path) -> Path:
    """Build the site below ``out`` and return its first page.

    Raises:
        ArtefactError: no notebooks, or Sphinx warned (a broken link, a formula that cannot be converted).
    """
    from sphinx.application import Sphinx

    sources = out / "source"
    alternatives = write_sources(notebooks, sources)
    configuration = CONFIGURATION | {"kdnb_alternatives": alternatives, "html_static_path": [str(sources / "_static")]}
    shutil.rmtree(out / "html", ignore_errors=True)
    app = Sphinx(sources, None, out / "html", out / "doctrees", "html", configuration, status=None, freshenv=True)
    app.build(force_all=True)
    if app.statuscode or app._warncount:
        raise ArtefactError(f"the book has {app._warncount} faults, named above: mend the notebook and run `make book` again.")
    return out / "html" / "index.html"


def main(arguments: list[str] | None = None) -> int:
    """Build the book and print where it lies."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.book", description=main.__doc__)
    parser.add_argument("--run", default="", help="a run's folder; without it the committed notebooks")
    run = parser.parse_args(arguments).run
    notebooks, out = (Path(run) / "notebooks", Path(run) / "book") if run else (REPOSITORY / "notebooks", REPOSITORY / "runs" / "book")
    return exit_status(lambda: print(f"kdnb: the book is {build(notebooks.absolute(), out.absolute())}"))


if __name__ == "__main__":
    sys.exit(main())
