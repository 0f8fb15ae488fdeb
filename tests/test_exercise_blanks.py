"""Exercises that ask for code: with the solutions every check passes, with the blanks none does."""

import ast
import itertools
import json
import re
from pathlib import Path

import pytest

EXERCISES = Path(__file__).parents[1] / "exercises"
NAMES = sorted(path.stem for path in EXERCISES.glob("*.ipynb"))


def cells(name: str) -> list[dict]:
    return json.loads((EXERCISES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def kind(cell: dict) -> str:
    return next(iter(cell["metadata"].get("tags", [])), cell["cell_type"])


def solutions(name: str) -> str:
    return (EXERCISES / "solutions" / f"{name}.py").read_text(encoding="utf-8")


def functions(code: str) -> dict[str, list[str]]:
    """The functions of a piece of code and the names of their arguments."""
    return {
        node.name: [a.arg for a in node.args.args] for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)
    }


def test_there_are_exercises_with_solutions_apart():
    assert len(NAMES) >= 3
    assert sorted(path.stem for path in (EXERCISES / "solutions").glob("*.py")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_blank_has_a_solution_of_its_name_and_a_check_behind_it(name):
    kinds = [kind(cell) for cell in cells(name)]
    blanks = [source(cell) for cell in cells(name) if kind(cell) == "blank"]
    asked_for = {function: arguments for code in blanks for function, arguments in functions(code).items()}
    assert asked_for == functions(solutions(name))
    assert all("..." in code for code in blanks), "a blank is blank"
    behind = [after for before, after in itertools.pairwise(kinds) if before == "blank"]
    assert behind == ["check"] * len(blanks)
    assert not any(cell.get("outputs") for cell in cells(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_solutions_pass_every_check(name):
    space = {"__name__": "exercise"}
    for cell in cells(name):
        if cell["cell_type"] == "code":
            exec(solutions(name) if kind(cell) == "blank" else source(cell), space)


@pytest.mark.parametrize("name", NAMES)
def test_no_check_passes_a_blank(name):
    """The blank before the check stands alone: all others are solved."""
    space, code = {"__name__": "exercise"}, [cell for cell in cells(name) if cell["cell_type"] == "code"]
    for number, cell in enumerate(code):
        if kind(cell) == "check":
            exec(solutions(name), space)
            exec(source(code[number - 1]), space)
            with pytest.raises((AssertionError, TypeError, AttributeError, KeyError, ValueError)):
                exec(source(cell), space)
            exec(solutions(name), space)
            exec(source(cell), space)
        elif kind(cell) != "blank":
            exec(source(cell), space)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_chapters_and_the_solution_is_named(name):
    prose = "\n".join(source(cell) for cell in cells(name) if cell["cell_type"] == "markdown")
    assert all((EXERCISES / target).exists() for target in re.findall(r"\]\(([^)]+)\)", prose))
    assert f"solutions/{name}.py" in prose and "\\\\" not in prose
