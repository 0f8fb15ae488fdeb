"""Every notebook is a chapter of the same make: its skeleton, its parameters, and what its outputs may hold.

``--notebooks=DIR`` looks at executed copies instead, where papermill's injected cell is allowed.
"""

import ast
import base64
import getpass
import json
import re
import socket
import struct
from pathlib import Path

import pytest

CONTRACT = {
    "dataset": ("str", "phantom"),
    "profile": ("str", "quick"),
    "seed": ("int", 0),
    "data_dir": ("str", ""),
    "run_dir": ("str", ""),
    "split_protocol": ("str", "official"),
}
HEADINGS = ["Parameters", "Load", "Look", "Check", "Summary", "Exercises"]
MAX_CELLS, MAX_CODE_LINES, MAX_FUNCTION_LINES, MIN_COMPARED = 52, 18, 14, 3
PATHS = re.compile(r"(?<![\w.:/<])/(?:home|root|Users|tmp|work|var|usr|opt|mnt|private|media)/|\b[A-Z]:\\\\|file://")
PROGRESS = re.compile(r"\d%\||it/s\b|s/it\b|\r|\x1b\[A|ETA|\bleft\]")
WARNINGS = re.compile(r"\w*Warning\b:?|Traceback \(most recent")


def pytest_generate_tests(metafunc):
    if "notebook" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--notebooks"))
        notebooks = [path for path in sorted(folder.glob("*.ipynb")) if not path.stem.endswith((".running", ".failed"))]
        metafunc.parametrize("notebook", [pytest.param(Notebook(path), id=path.stem) for path in notebooks])


class Notebook:
    """A notebook's cells, with papermill's injected one put aside."""

    def __init__(self, path: Path):
        self.path = path
        self.whole = json.loads(path.read_text(encoding="utf-8"))
        self.executed_copy = any("injected-parameters" in tags(cell) for cell in self.whole["cells"])
        self.cells = [cell for cell in self.whole["cells"] if "injected-parameters" not in tags(cell)]

    def of(self, kind: str) -> list[dict]:
        return [cell for cell in self.cells if cell["cell_type"] == kind]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def source(cell: dict) -> str:
    return "".join(cell["source"])


def texts(cell: dict):
    """Every readable text of a cell's outputs, as (kind, text)."""
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            yield output["name"], "".join(output["text"])
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/") or kind == "image/svg+xml":
                yield kind, "".join(value)


def compared(cells: list[dict]) -> int:
    """How many outputs strict nbval compares: not those of tagged cells, and of pictures only their text."""
    return sum(
        bool("".join(output.get("text", "")) or any(not kind.startswith("image/") for kind in output.get("data", {})))
        for cell in cells
        if cell["cell_type"] == "code" and not {"nbval-ignore-output", "nbval-skip"} & set(tags(cell))
        for output in cell["outputs"]
        if output["output_type"] in ("stream", "display_data", "execute_result")
    )


def test_there_are_the_chapters_in_order(request):
    numbers = [
        path.stem
        for path in sorted(Path(request.config.getoption("--notebooks")).glob("*.ipynb"))
        if path.stem.count(".") == 0
    ]
    assert numbers == [
        "00_start_here",
        "01_data_prep",
        "02_teacher_training",
        "03_distillation",
        "04_temperature_sweep",
        "05_feature_map_explanation",
        "06_fidelity_benchmark",
        "07_class_evidence",
        "08_taught_explanations",
        "09_volumes",
        "10_report",
        "A_statistics",
    ]


def test_opening_names_goal_needs_and_time(notebook):
    opening = source(notebook.cells[0])
    assert notebook.cells[0]["cell_type"] == "markdown"
    assert opening.startswith(f"# {notebook.path.stem.partition('_')[0]} · ")
    for words in ("**You need**", "**You get**", "**Takes about**"):
        assert words in opening
    assert len(opening) > 250, "the goal is a paragraph"


def test_headings_come_in_the_common_order(notebook):
    # "Look: layer by layer" is a "Look"; a chapter's own headings stand between the common ones
    lines = [line for cell in notebook.of("markdown") for line in source(cell).splitlines()]
    headings = [line[3:].partition(":")[0].strip() for line in lines if line.startswith("## ")]
    assert [heading for heading in headings if heading in HEADINGS] == HEADINGS, headings
    assert headings[0] == "Parameters" and headings[-1] == "Exercises"


def test_parameters_cell_is_the_contract(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    assert len(tagged) == 1
    tree = ast.parse(source(tagged[0]))
    assert all(isinstance(node, ast.AnnAssign) for node in tree.body), "only annotated parameters"
    parameters = {node.target.id: (ast.unparse(node.annotation), ast.literal_eval(node.value)) for node in tree.body}
    assert {name: parameters.get(name) for name in CONTRACT} == CONTRACT
    bare = [
        line
        for line in source(tagged[0]).splitlines()
        if line.strip() and "#" not in line and not line.startswith("seed:")
    ]
    assert not bare, "each parameter says what it may be"


def test_kernel_and_metadata_are_neutral(notebook):
    metadata = notebook.whole["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert "jupytext" not in metadata
    identities = [cell["id"] for cell in notebook.whole["cells"]]
    assert len(set(identities)) == len(identities)
    if not notebook.executed_copy:
        assert set(metadata) <= {"kernelspec", "language_info"}
        assert all(set(cell["metadata"]) <= {"tags", "editable"} for cell in notebook.cells), (
            "no times, no papermill, no widget state"
        )


def test_executed_in_order_without_error(notebook):
    ran = [cell for cell in notebook.whole["cells"] if cell["cell_type"] == "code" and source(cell).strip()]
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(ran) + 1))
    for cell in ran:
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"], source(cell)


def test_cells_are_short(notebook):
    assert len(notebook.cells) <= MAX_CELLS
    for cell in notebook.of("code"):
        text = source(cell)
        assert len(text.splitlines()) <= MAX_CODE_LINES, text
        for node in ast.walk(
            ast.parse("\n".join("pass" if line.startswith(("%", "!")) else line for line in text.splitlines()))
        ):
            assert not isinstance(node, ast.ClassDef), f"no class in a notebook: {node.name}"
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{node.name} belongs in kdnb"


def test_outputs_hold_nothing_of_this_machine_and_no_noise(notebook):
    names = [
        name
        for name in (socket.gethostname(), getpass.getuser())
        if len(name) > 4 and name not in ("localhost", "runner")
    ]
    for cell in notebook.of("code"):
        for kind, text in texts(cell):
            assert kind != "stderr", f"something was written to stderr: {text[:300]}"
            for pattern in (PATHS, PROGRESS, WARNINGS, *map(re.compile, map(re.escape, names))):
                match = pattern.search(text)
                assert not match, f"{match.group()!r} in an output of: {source(cell)[:200]}"


def test_notebook_has_compared_outputs(notebook):
    """Strict nbval passes a notebook that shows nothing: so there must be something to compare."""
    assert compared(notebook.cells) >= MIN_COMPARED


def test_pictures_have_a_text_alternative_and_a_readable_size(notebook):
    for cell in notebook.of("code"):
        for output in cell["outputs"]:
            for kind in set(output.get("data", {})) & {"image/png", "image/jpeg", "image/svg+xml"}:
                alt = "".join(output["data"].get("text/plain", ""))
                assert len(alt) >= 30 and not alt.startswith("<"), f"no text alternative: {source(cell)[:200]}"
                assert output["metadata"].get(kind, {}).get("alt") == alt
                if kind == "image/png":
                    width, height = struct.unpack(">II", base64.b64decode(output["data"][kind])[16:24])
                    assert 200 <= width <= 2400 and 100 <= height <= 3000
    for cell in notebook.of("markdown"):
        assert not re.search(r"!\[\s*\]\(", source(cell)), "a picture in prose without a text alternative"
        for image in re.findall(r"<img\b[^>]*>", source(cell)):
            assert re.search(r"""\balt=["'][^"']""", image), image


def test_exercises_have_hidden_answers(notebook):
    prose = "\n".join(map(source, notebook.of("markdown")))
    exercises = prose[prose.index("## Exercises") :]
    assert exercises.count("<details>") >= 1
    assert exercises.count("<details>") == exercises.count("</details>") == exercises.count("<summary>")


def test_links_between_notebooks_resolve(notebook, repository):
    for target in re.findall(r"\]\(([^)#\s]+)", "\n".join(map(source, notebook.of("markdown")))):
        if not re.match(r"[a-z]+:", target):
            assert (repository / "notebooks" / target).exists(), target


# -- the checks themselves can fail ---------------------------------------------------------------------------------


def _cell(text="1 + 1", outputs=(), **more):
    return {"cell_type": "code", "source": text, "metadata": more, "outputs": list(outputs)}


def test_compared_counts_only_what_nbval_compares():
    printed = {"output_type": "stream", "name": "stdout", "text": "3\n"}
    picture = {"output_type": "display_data", "data": {"image/png": "x"}, "metadata": {}}
    assert compared([_cell(outputs=[printed])]) == 1
    assert compared([_cell(outputs=[printed], tags=["nbval-ignore-output"])]) == 0
    assert compared([_cell(outputs=[picture])]) == 0
    assert compared([_cell(outputs=[picture | {"data": {"image/png": "x", "text/plain": "alt"}}])]) == 1
    assert compared([_cell()]) == 0


@pytest.mark.parametrize(
    ("pattern", "bad"),
    [
        (PATHS, "saved /home/ada/runs/x"),
        (PATHS, "in /tmp/x"),
        (PATHS, "C:\\\\Users"),
        (PROGRESS, " 10%|#   | 1/10"),
        (PROGRESS, "3.1it/s"),
        (WARNINGS, "UserWarning: x"),
    ],
)
def test_noise_is_recognised(pattern, bad):
    assert pattern.search(bad)


@pytest.mark.parametrize(
    "good", ["https://arxiv.org/abs/2502.15959", "10% of the area", "results/met.csv", "warning signs", "a/tmp/b"]
)
def test_ordinary_output_passes(good):
    assert not any(pattern.search(good) for pattern in (PATHS, PROGRESS, WARNINGS))
