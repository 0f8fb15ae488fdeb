"""The API reference of the book: a page a module, made from its docstrings, floor by floor.

The modules are those of the package as it lies on disk, so a new one appears by itself; on which floor it is says the
map in CONTRIBUTING.md. Sphinx's autodoc and napoleon read the docstrings. What they cannot read is told and does not
stop the book.
"""

import ast
import inspect
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils.nodes import document
    from sphinx.application import Sphinx

PACKAGE = Path(__file__).parent
INDEX = "api"  # the page that lists all modules
CONFIGURATION: dict[str, object] = {
    "autodoc_default_options": {"members": True, "ignore-module-all": True},  # a name has its page where it is defined
    "autodoc_member_order": "bysource",
    "autodoc_typehints": "description",
    "autodoc_preserve_defaults": True,  # a default as it is written, not the object's address
    "napoleon_numpy_docstring": False,
    "napoleon_use_ivar": True,
    "add_module_names": False,
    "python_use_unqualified_type_names": True,
    "maximum_signature_line_length": 60,  # a longer one has a line for each parameter
    "toc_object_entries_show_parents": "hide",
}

# -- the package ----------------------------------------------------------------------------------------------------


def module_files(package: Path = PACKAGE) -> dict[str, Path]:
    """The file of every public module of a package by the module's dotted name, a package before what it holds."""
    files = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            files[".".join(parts)] = path
    return dict(sorted(files.items()))


def purpose(path: Path) -> str:
    """What a module is for: the first paragraph of its docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def floors(contributing: str) -> dict[str, tuple[list[str], str]]:
    """The map of the code in CONTRIBUTING.md: floor -> the names of its modules and packages, and what is there."""
    rows = re.findall(r"^\| (floor \d+): ([^|]+) \| ([^|]+) \|$", contributing, re.MULTILINE)
    return {floor: (re.findall(r"`(\w+)/?`", names), words) for floor, names, words in rows}


def imported(sources: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Which of the modules code imports, found in its import lines, in alphabetical order.

    Args:
        sources: pieces of Python; lines for IPython (``%`` and ``!``) are passed over.
        modules: dotted names. What is imported out of a module counts as the module, unless it is a module itself.

    Returns:
        Dotted names.

    Example:
        >>> imported(["from kdnb import losses, runs"], ["kdnb.losses", "kdnb.runs", "kdnb.views"])
        ['kdnb.losses', 'kdnb.runs']
    """
    known = set(modules)
    names: set[str] = set()
    for source in sources:
        for node in ast.walk(ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                deeper = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= (deeper & known) | ({node.module} if deeper - known else set())
    return sorted(names & known)


# -- the pages ------------------------------------------------------------------------------------------------------


def _contents(names: Iterable[str], files: dict[str, Path]) -> list[str]:
    """Modules for the menu, and as a list with what each is for."""
    names = list(names)
    lines = [".. toctree::", "   :hidden:", "", *(f"   {name}" for name in names), ""]
    return [*lines, *(f"* :doc:`{name} <{name}>`: {purpose(files[name])}" for name in names), ""]


def _heading(words: str, underline: str) -> list[str]:
    return [words, underline * len(words), ""]


def _within(package: str, files: dict[str, Path]) -> list[str]:
    """The modules directly in a package."""
    return [name for name in files if name.rpartition(".")[0] == package]


def _offered(package: str, path: Path) -> list[str]:
    """The names of ``__all__`` that a package takes from its own modules, by where they are defined."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    offers: list[str] = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ),
        [],
    )
    return [
        f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}.")
        for alias in node.names
        if alias.name in offers
    ]


def module_page(name: str, files: dict[str, Path]) -> str:
    """The page of a module as Sphinx reads it; a package's ends with its modules and with what it offers of them."""
    lines = [*_heading(name, "="), f".. automodule:: {name}", ""]
    modules = _within(name, files) if "." in name else []
    if offered := _offered(name, files[name]):
        lines += [*_heading("Offered here", "-"), ", ".join(f":py:obj:`~{place}`" for place in offered), ""]
    if modules:
        lines += [*_heading("Modules", "-"), *_contents(modules, files)]
    return "\n".join(lines)


def index_page(contributing: str, files: dict[str, Path]) -> str:
    """The page that lists the modules floor by floor; one that the map does not name is listed last."""
    lines = [
        *_heading("API reference", "="),
        "Every module of the package, made from its docstrings. A floor imports only from itself and the floors below.",
        "",
        *_contents(["kdnb"], files),
    ]
    rest = _within("kdnb", files)
    for floor, (names, words) in floors(contributing).items():
        here = [name for name in (f"kdnb.{name}" for name in names) if name in rest]
        rest = [name for name in rest if name not in here]
        if here:
            lines += [
                *_heading(floor.capitalize(), "-"),
                f"{words[0].upper()}{words[1:]}.",
                "",
                *_contents(here, files),
            ]
    if rest:
        lines += [*_heading("Elsewhere", "-"), *_contents(rest, files)]
    return "\n".join(lines)


def write_sources(contributing: str, folder: Path) -> None:
    """Write the pages that Sphinx reads, one a module and the one that lists them, into a folder."""
    files = module_files()
    (folder / f"{INDEX}.rst").write_text(index_page(contributing, files), encoding="utf-8")
    for name in files:
        (folder / f"{name}.rst").write_text(module_page(name, files), encoding="utf-8")


def chapter_line(sources: Iterable[str]) -> str:
    """The line below a chapter that links to the modules that its code imports; nothing where it imports none."""
    names = imported(sources, module_files())
    return f"In the code: {', '.join(f'{{doc}}`{name} <{name}>`' for name in names)}" if names else ""


# -- the Sphinx extension -------------------------------------------------------------------------------------------


def whole_returns(lines: list[str]) -> None:
    """Keep napoleon from taking words before a colon in ``Returns:`` for a type: types are in the annotations.

    Args:
        lines: a docstring's, changed in place.
    """
    for position, line in enumerate(lines[:-1]):
        if re.match(r"\s*(Returns|Yields):\s*$", line):
            lines[position + 1] = re.sub(r"^(\s*)(?=[^\s:])", r"\1: ", lines[position + 1])


def _prepare(app: "Sphinx", kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    whole_returns(lines)


def _skip_imported(app: "Sphinx", kind: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Leave out what a module only imports, and fields of a named tuple; ``None`` leaves the choice to autodoc."""
    if kind == "module" and (inspect.isclass(thing) or inspect.isroutine(thing)):
        return True if getattr(thing, "__module__", None) != app.env.docname else None
    return True if str(thing.__doc__).startswith("Alias for field number") else None


def _as_words(app: "Sphinx", doctree: "document") -> None:
    """Leave what could not be read as the words that it is: its link would lead to a message that pages do not show."""
    from docutils.nodes import Text, problematic

    for node in list(doctree.findall(problematic)):
        node.parent.replace(node, Text(node.astext()))


class DocstringFaults(logging.Filter):
    """Takes the warnings about docstrings out of Sphinx's, which stop the book, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a warning is about something else than a docstring."""
        from docutils.nodes import Node
        from sphinx.util.logging import get_node_location

        location = getattr(record, "location", None)
        place = str(get_node_location(location) if isinstance(location, Node) else location)
        if "docstring of" not in place:
            return True
        self.faults.append(f"{place.partition('docstring of ')[2]}: {record.getMessage().splitlines()[0]}")
        return False

    def listen(self) -> None:
        """Stand before what Sphinx does with a warning, which is to print and to count it."""
        from sphinx.util.logging import NAMESPACE, WarningSuppressor

        for handler in logging.getLogger(NAMESPACE).handlers:
            if any(isinstance(other, WarningSuppressor) for other in handler.filters):
                handler.filters.insert(0, self)


def setup(app: "Sphinx") -> dict[str, bool]:
    """Sphinx calls this: it has the modules' own members shown alone, and docstrings read as they are meant."""
    app.connect("autodoc-skip-member", _skip_imported)
    app.connect("doctree-read", _as_words)
    app.connect("autodoc-process-docstring", _prepare, priority=400)  # before napoleon, whose place is 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
