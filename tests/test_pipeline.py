"""`make reproduce` on a copy of the repository with tiny notebooks: order, repetition, failure, a kill, two at once."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdnb.errors import ArtefactError
from kdnb.pipeline import cells_hash, copy_outputs, with_outputs, write_stamp, write_stamps
from kdnb.settings import from_command_line

PARAMETERS = """dataset: str = "phantom"
profile: str = "quick"
seed: int = 0
data_dir: str = ""
run_dir: str = ""
split_protocol: str = "official"
"""
# Stands for the environment's Python where only make's order matters:
# it notes the notebook's number instead of executing it.
STUB = """#!/bin/sh
if [ "$2" = kdnb.report ]; then touch "$3/report.html"; exit; fi
n=0; while [ -e slow ] && [ $n -lt 600 ]; do touch started; sleep 0.1; n=$((n + 1)); done
mkdir -p "$5/notebooks"
printf '%.2s ' "$4" >> "$5/log"
touch "$5/notebooks/$4.ipynb"
"""
WORK = """
from pathlib import Path
from kdnb.progress import progress
for _ in progress(range(2), "steps"):
    pass
log = Path(run_dir) / "log"
log.write_text((log.read_text() if log.exists() else "") + "{name} ")
print(dataset, seed)
"""
PACKAGE = Path(__file__).resolve().parent.parent / "kdnb"
NAMES = [
    "01_data_prep",
    "03_distillation",
    "04_temperature_sweep",
    "05_feature_map_explanation",
    "06_fidelity_benchmark",
]


def notebook(name: str, code: str = WORK) -> nbformat.NotebookNode:
    cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(code.replace("{name}", name[:2])),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


class Study:
    """A copy of the repository's machinery with notebooks that take no time."""

    def __init__(self, folder: Path, names: list[str], python: str):
        self.folder, self.python = folder, python
        (folder / "notebooks").mkdir()
        self.run = folder / "runs" / "phantom-quick-seed0"
        for name in names:
            self.write(name)

    def write(self, name: str, code: str = WORK) -> None:
        nbformat.write(notebook(name, code), self.folder / "notebooks" / f"{name}.ipynb")

    def command(self, *words: str) -> list[str]:
        # the environment that runs this test is the one the copy uses:
        # READY is a file that exists, so nothing is installed
        return ["make", "reproduce", "READY=Makefile", f"PYTHON={sys.executable}", f"PY={self.python}", *words]

    def options(self) -> dict:
        hidden = (
            "MAKEFLAGS",
            "MAKELEVEL",
            "MFLAGS",
            "DATASET",
            "PROFILE",
            "SEED",
            "SPLIT",
            "DATA_DIR",
            "RUNS",
            "KDNB_PROGRESS",
        )
        return {"cwd": self.folder, "env": {name: value for name, value in os.environ.items() if name not in hidden}}

    def make(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=False, **self.options())

    def ran(self) -> list[str]:
        """The notebooks that ran since the last call, in order."""
        log = self.run / "log"
        numbers = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return numbers


def copy(repository: Path, folder: Path, names: list[str], python: str = sys.executable) -> Study:
    for name in ("kdnb", "data"):
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "raw", "cache"))
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(repository / name, folder)
    (folder / "kdnb" / "report.py").write_text(
        "import sys, pathlib\n"
        "if __name__ == '__main__':\n"
        "    pathlib.Path(sys.argv[1], 'report.html').write_text('x')\n"
    )
    (folder / "stub").write_text(STUB)
    (folder / "stub").chmod(0o755)
    return Study(folder, names, python)


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory):
    """A study whose five notebooks ran once (not really: the stub)."""
    study = copy(repository, tmp_path_factory.mktemp("finished"), NAMES, "./stub")
    answer = study.make()
    assert answer.returncode == 0, answer.stderr
    assert study.ran() == ["01", "03", "04", "05", "06"]
    return study


@pytest.fixture
def small(repository, tmp_path):
    """A study of two notebooks that are really executed, at a path of all that a path may hold."""
    (odd := tmp_path / """Stüdie $HOME 'q' "d" #1 50% {x} {0}""").mkdir()
    return copy(repository, odd, ["01_data_prep", "03_distillation"])


def test_a_second_time_nothing_runs(finished):
    answer = finished.make()
    assert answer.returncode == 0 and finished.ran() == []
    assert "complete: runs/phantom-quick-seed0/report.html" in answer.stdout


def test_touching_the_explanations_runs_05_and_later_only(finished):
    next((finished.folder / "kdnb" / "explain").glob("*.py")).touch()
    finished.make("-j2")
    assert finished.ran() == ["05", "06"]


def test_a_new_figure_of_a_chapter_runs_that_chapter(finished):
    figure = finished.folder / "kdnb" / "figures" / "explain.py"
    figure.parent.mkdir(exist_ok=True)
    figure.write_text("")
    finished.make()
    assert finished.ran() == ["05", "06"]


@pytest.mark.parametrize("name", ["sources.toml", "brain_tumor_slices.csv", "figshare_brain.csv"])
def test_other_facts_of_sources_run_the_data_chapter_again(name, finished):
    (finished.folder / "data" / name).touch()
    finished.make()
    assert finished.ran()[:1] == ["01"]


def test_an_edited_cell_runs_its_notebook_and_what_builds_on_it(finished):
    finished.write("04_temperature_sweep", WORK + "# edited\n")
    finished.make()
    assert finished.ran() == ["04"], "06 only waits for 04, it does not depend on it"


def test_outputs_and_times_of_a_source_do_not_count(finished):
    path = finished.folder / "notebooks" / "01_data_prep.ipynb"
    edited = nbformat.read(path, as_version=4)
    edited.cells[2].outputs = [new_output("stream", text="7\n")]
    edited.cells[2].execution_count = 9
    nbformat.write(edited, path)
    finished.make()
    assert finished.ran() == []


def test_another_budget_runs_all_again(finished):
    profiles = finished.folder / "kdnb" / "profiles.toml"
    profiles.write_text(profiles.read_text().replace("[smoke]", "# a comment\n[smoke]"))
    finished.make()
    assert finished.ran() == [], "a comment changes no budget"
    profiles.write_text(profiles.read_text().replace("views = 3", "views = 2"))
    finished.make()
    assert sorted(finished.ran()) == ["01", "03", "04", "05", "06"]


def _of_images(study: Study) -> Path:
    """Two class folders beside the study."""
    images = study.folder / "images"
    for name in ("dark/1.png", "dark/2.png", "light/1.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_text("pixels")
    return images


def test_other_images_in_the_same_folder_run_all_again(finished):
    images = _of_images(finished)
    words = [f"DATASET=folder:{images}", "RUNS=images/runs"]  # whose own writing is no change of the images

    def ran() -> list[str]:
        before, after = finished.run, finished.make(*words)
        assert after.returncode == 0, after.stderr
        (finished.run,) = (images / "runs").iterdir()
        numbers, finished.run = sorted(finished.ran()), before
        return numbers

    every = ["01", "03", "04", "05", "06"]
    assert ran() == every and ran() == []
    (images / "dark" / "1.png").write_text("other pixels")
    assert ran() == every
    (images / "dark" / "2.png").rename(images / "light" / "2.png")
    assert ran() == every
    (images / ".DS_Store").write_text("what a system leaves")
    assert ran() == []
    os.utime(images / "light" / "1.png", (1, 1))
    assert ran() == every


def test_other_images_of_the_same_table_change_the_stamp(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "1.png").write_text("pixels")
    (tmp_path / "labels.csv").write_text("image,label\n1.png,a\n")
    (tmp_path / "notes.md").write_text("not below images=")
    words = ["--dataset", f"table:{tmp_path / 'labels.csv'}:images=images", "--runs", str(tmp_path / "runs")]
    settings, folder = from_command_line(words)

    def stamp() -> dict:
        write_stamps(settings)
        return json.loads((folder / ".stamps" / "settings.json").read_text())

    first = stamp()
    (tmp_path / "notes.md").write_text("edited")
    assert stamp() == first
    (images / "1.png").write_text("other pixels")
    second = stamp()
    assert second["files"] != first["files"] and second["table"] == first["table"]


def test_an_edited_network_of_ones_own_runs_all_again_with_what_it_imports_beside_it(finished):
    folder = finished.folder / "mine"
    (folder / "parts").mkdir(parents=True)
    for name, code in (
        ("net.py", "import torch\nfrom blocks import block\ndef build(classes): return block(classes)\n"),
        ("blocks.py", "import parts.head\ndef block(classes): return parts.head.one(classes)\n"),
        ("parts/head.py", "def one(classes): return classes\n"),
        ("script.py", "print('imported by nobody')\n"),
    ):
        (folder / name).write_text(code)

    def ran() -> list[str]:
        before, after = finished.run, finished.make("STUDENT=mine/net.py:build", "RUNS=own")
        assert after.returncode == 0, after.stderr
        (finished.run,) = (finished.folder / "own").iterdir()
        numbers, finished.run = sorted(finished.ran()), before
        return numbers

    every = ["01", "03", "04", "05", "06"]
    assert ran() == every and ran() == []
    for name in ("net.py", "blocks.py", "parts/head.py"):
        with (folder / name).open("a") as file:
            file.write("# edited\n")
        assert ran() == every, name
    (folder / "script.py").write_text("")
    assert ran() == []


def test_seed_and_protocol_have_folders_of_their_own(finished):
    assert finished.make("SEED=3", "SPLIT=leak_free").returncode == 0
    folder = finished.folder / "runs" / "phantom-quick-seed3-leak_free"
    parameters = json.loads((folder / ".stamps" / "settings.json").read_text())["parameters"]
    assert (parameters["seed"], parameters["split_protocol"], parameters["run_dir"]) == (3, "leak_free", str(folder))
    assert (folder / "report.html").exists() and finished.ran() == []


def test_two_at_once_on_one_folder_the_second_waits_and_finds_nothing_to_do(finished):
    (finished.folder / "slow").touch()
    (finished.folder / "kdnb" / "explain" / "maps.py").touch()
    first = _started(finished)
    try:
        _wait_for(finished.folder / "started")
        second = _started(finished)
        assert any("another make reproduce is at work in" in line for line in second.stderr)
    finally:
        (finished.folder / "slow").unlink()
    for process in (first, second):
        process.stderr.read()
        assert process.wait() == 0
        process.stderr.close()
    assert finished.ran() == ["05", "06"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["PROFILE=fast"], "profile is 'fast', but it must be one of: smoke, quick, cpu, paper."),
        (["DATASET=brains"], "dataset is 'brains', but it must be one of: phantom, "),
        (["SEED=x"], "seed is 'x', but it must be a whole number"),
        (["SPLIT=random"], "split_protocol is 'random', but it must be one of: official, leak_free"),
        (
            ["DATASET=brain_tumor", "DATA_DIR=nowhere"],
            "dataset 'brain_tumor' is not in nowhere: run `make data DATASET=brain_tumor`",
        ),
        (["DATASET=folder:nowhere"], "there is no folder nowhere"),
        (["RUNS=a b"], "runs is 'a b'"),
        (["DATASET=$(touch injected)"], "dataset is '$(touch injected)'"),
        (["DATASET=$(shell touch injected)"], "dataset is '$(shell touch injected)'"),
        (["DATASET=x'; touch injected; '"], "dataset is \"x'; touch injected; '\""),
        (["DATASET=brain_tumor", "DATA_DIR=$(shell touch injected)"], "is not in $(shell touch injected): run"),
        (["RUNS=$(shell touch injected)"], "runs is '$(shell touch injected)'"),
        (["SEED=0; touch injected"], "seed is '0; touch injected'"),
        (["PROFILE=`touch injected`"], "profile is '`touch injected`'"),
    ],
)
def test_a_wrong_parameter_stops_at_once_before_any_set_up(small, words, said):
    answer = small.make("READY=not-installed", *words)
    assert answer.returncode != 0
    sentences = [line for line in answer.stderr.splitlines() if not line.startswith("make")]
    assert len(sentences) == 1 and said in sentences[0], answer.stderr
    assert not (small.folder / "runs").exists() and not (small.folder / "injected").exists()


def test_another_python_is_a_sentence(small, tmp_path):
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\ncase "$1" in -V) echo Python 3.9.1;; *) exit 1;; esac\n')
    old.chmod(0o755)
    answer = small.make(f"PYTHON={old}")
    assert answer.returncode != 0
    assert "is Python 3.9.1, but the study needs Python 3.11, 3.12 or 3.13" in answer.stderr


def test_a_python_that_cannot_be_run_is_a_sentence_without_what_else_was_said(small, tmp_path):
    """pyenv's own python3.12 is there, says three lines and ends where no 3.12 is chosen."""
    shim = tmp_path / "python3.12"
    shim.write_text(
        "#!/bin/sh\n"
        "printf 'pyenv: python3.12: command not found\\n\\nThe command exists in:\\n  3.12.1\\n' >&2; exit 127\n"
    )
    shim.chmod(0o755)
    for python in (shim, tmp_path / "none"):
        answer = small.make(f"PYTHON={python}")
        sentences = [line for line in answer.stderr.splitlines() if not line.startswith("make")]
        expected = "cannot be run here, but the study needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..."
        assert answer.returncode != 0 and sentences == [f"kdnb: {python} {expected}"]


def test_a_python_without_the_packages_is_a_sentence(small, tmp_path):
    """``PY=python3`` takes a Python as it is; one that was never given papermill says so at the first chapter."""
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).resolve()}" -S "$@"\n')
    bare.chmod(0o755)
    answer = small.make(f"PY={bare}")
    sentences = [line for line in answer.stderr.splitlines() if not line.startswith("make")]
    assert answer.returncode != 0 and "Traceback" not in answer.stderr
    assert sentences[-1].startswith("kdnb: ") and "has no package papermill: install it" in sentences[-1]


def test_a_known_error_is_one_sentence_and_the_notebook_is_kept(small):
    small.write(
        "03_distillation",
        "from kdnb.errors import ParameterError\n"
        "raise ParameterError('alpha is 7, but it must be a number from 0 to 1.')",
    )
    answer = small.make()
    assert answer.returncode != 0
    assert "kdnb: 03_distillation: alpha is 7, but it must be a number from 0 to 1.\n" in answer.stderr
    assert "Traceback" not in answer.stderr
    kept = sorted(path.name for path in (small.run / "notebooks").iterdir())
    assert kept == ["01_data_prep.ipynb", "03_distillation.failed.ipynb"]
    assert not (small.run / "report.html").exists()
    small.ran()
    small.write("03_distillation")
    assert small.make().returncode == 0
    assert small.ran() == ["03"], "what was finished is not repeated"
    assert sorted(path.name for path in (small.run / "notebooks").iterdir()) == [
        "01_data_prep.ipynb",
        "03_distillation.ipynb",
    ]
    executed = nbformat.read(small.run / "notebooks" / "03_distillation.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "phantom 0\n"
    assert len(executed.cells[-1].outputs) == 1, "no progress in the notebook"


def test_an_unknown_error_points_at_the_kept_notebook(small):
    small.write("01_data_prep", "1 / 0")
    answer = small.make()
    assert re.search(
        r"kdnb: 01_data_prep failed with ZeroDivisionError: division by zero "
        r"\(the whole traceback is in .*failed.ipynb\)",
        answer.stderr,
    )


def test_a_dead_kernel_is_told(small):
    small.write("01_data_prep", "import os\nos.kill(os.getpid(), 9)")
    answer = small.make()
    assert answer.returncode != 0
    assert "kdnb: 01_data_prep failed with DeadKernelError" in answer.stderr


def _started(study: Study, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        study.command(*words), stderr=subprocess.PIPE, text=True, start_new_session=True, **study.options()
    )


def _wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.05)


def test_a_killed_run_is_not_taken_for_a_finished_one_and_completes_later(small):
    (small.folder / "notebooks" / "03_distillation.ipynb").unlink()
    small.write(
        "01_data_prep", "import time\nfrom pathlib import Path\nPath(run_dir, 'reached').touch()\ntime.sleep(60)"
    )
    running = _started(small)
    _wait_for(small.run / "reached")
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    running.stderr.close()
    assert sorted(path.name for path in (small.run / "notebooks").glob("*.ipynb")) == ["01_data_prep.running.ipynb"]
    small.write("01_data_prep")
    assert small.make().returncode == 0
    assert sorted(path.name for path in (small.run / "notebooks").glob("*.ipynb")) == ["01_data_prep.ipynb"]


def test_what_a_killed_write_left_is_removed_by_the_next_run(finished):
    left = finished.run / "models" / ".teacher.safetensors.x1.part"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(bytes(100))
    folder = finished.run / "explained" / ".scan-0a1b2c3d.x1.part"  # make explain was killed
    (folder / "maps").mkdir(parents=True)
    (folder / "maps" / ".half.part").write_bytes(bytes(100))
    answer = finished.make()
    assert answer.returncode == 0, answer.stderr
    assert not left.exists() and not folder.exists() and finished.ran() == []


def test_any_path_of_images_reaches_the_notebook_as_text(small):
    images = small.folder / """it's {seed} "a" $HOME $(shell touch injected) \\ \n; touch injected"""
    images.mkdir()
    small.write(
        "01_data_prep",
        "from pathlib import Path\nassert Path(dataset.removeprefix('folder:')).is_dir(), dataset\nprint(dataset)",
    )
    answer = small.make(f"DATASET=folder:{images}")
    assert answer.returncode == 0, answer.stderr
    (done,) = (small.folder / "runs").glob("*/notebooks/01_data_prep.ipynb")
    assert nbformat.read(done, as_version=4).cells[-1].outputs[0].text == f"folder:{images}\n"
    assert not (small.folder / "injected").exists()


# -- what depends on what -------------------------------------------------------------------------------------------


def _rules(makefile: str) -> dict[str, tuple[list[str], set[Path]]]:
    """Notebook number -> (numbers it builds on, files below kdnb it depends on), as the Makefile says."""
    rules = {}
    for number, rest in re.findall(r"^\$\(call done,(\d\d|A)\):(.*)$", makefile, re.MULTILINE):
        needed = rest.partition(" | ")[0]
        patterns = " ".join(re.findall(r"\$\(call code,([^)]*)\)", needed)).split()
        files = {path for pattern in patterns for path in PACKAGE.glob(f"{pattern}.py")}
        rules[number] = (re.findall(r"\$\(call done,(\d\d)\)", needed.replace("filter-out $(call done,10)", "")), files)
    return rules


def _module(name: str) -> set[Path]:
    """The files that importing ``kdnb.<name>`` reads."""
    parts = name.split(".")
    files = {PACKAGE.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)} | {
        PACKAGE.joinpath(*parts).with_suffix(".py")
    }
    return {file for file in files if file.exists()}


def _imports(code: str) -> set[Path]:
    """The files below kdnb that a piece of code imports directly."""
    files = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        files |= {file for name in names if name.startswith("kdnb.") for file in _module(name.removeprefix("kdnb."))}
    return files


# Floor 0 holds no number of the study: budgets reach make through the stamp of the settings.
FLOOR_0 = {
    PACKAGE / f"{name}.py"
    for name in ("__init__", "errors", "filesystems", "files", "provenance", "sources", "settings", "runs", "progress")
}


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_makefile_knows_every_module_that_a_notebook_uses(path, repository):
    rules = _rules((repository / "Makefile").read_text())
    source = "\n".join(
        "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"
    )
    used, waiting = set(), _imports(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE))
    while waiting:
        file = waiting.pop()
        if file not in used | FLOOR_0:
            used.add(file)
            waiting |= _imports(file.read_text())
    known, numbers = set(), [path.stem.partition("_")[0]]
    if path.stem[:2] == "10":  # depends on all other notebooks
        numbers += sorted(rules)
    for number in numbers:
        known |= rules[number][1]
        numbers += [before for before in rules[number][0] if before not in numbers]
    assert {str(file.relative_to(PACKAGE)) for file in used - known} == set()


# -- stamps and outputs, without make -------------------------------------------------------------------------------


def test_a_stamp_is_written_only_when_it_changes(tmp_path):
    path = tmp_path / "stamps" / "x"
    write_stamp(path, "a")
    os.utime(path, (1, 1))
    write_stamp(path, "a")
    assert path.stat().st_mtime == 1
    write_stamp(path, "b")
    assert path.read_text() == "b" and path.stat().st_mtime > 1


def test_the_hash_sees_source_and_tags_and_nothing_else(tmp_path):
    def key(book):
        nbformat.write(book, tmp_path / "x.ipynb")
        return cells_hash(tmp_path / "x.ipynb")

    book = notebook("01")
    plain = key(book)
    book.cells[2].outputs, book.metadata["more"] = [new_output("stream", text="1")], 1
    assert key(book) == plain
    book.cells[0].source += " more prose"
    prose = key(book)
    book.cells[2].metadata["tags"] = ["nbval-ignore-output"]
    assert len({plain, prose, key(book)}) == 3


def _executed(source: dict) -> dict:
    done = json.loads(json.dumps(source))
    for count, cell in enumerate(done["cells"]):
        cell["metadata"]["papermill"] = {"duration": 1.5}
        if cell["cell_type"] == "code":
            cell["execution_count"] = count + 10
            cell["metadata"]["execution"] = {"iopub.status.busy": "2026-01-01"}
            cell["outputs"] = [
                {
                    "output_type": "execute_result",
                    "data": {"text/plain": "1"},
                    "metadata": {},
                    "execution_count": count + 10,
                }
            ]
    injected = {
        "cell_type": "code",
        "source": "run_dir = '/home/ada'",
        "metadata": {"tags": ["injected-parameters"]},
        "outputs": [],
    }
    done["cells"].insert(2, injected)
    done["metadata"]["papermill"] = {"output_path": "/home/ada/x.ipynb"}
    return done


def test_outputs_are_copied_and_nothing_else():
    source = json.loads(nbformat.writes(notebook("01")))
    merged = with_outputs(source, _executed(source))
    assert [cell["source"] for cell in merged["cells"]] == [cell["source"] for cell in source["cells"]]
    assert [cell["execution_count"] for cell in merged["cells"] if cell["cell_type"] == "code"] == [1, 2]
    assert merged["cells"][2]["outputs"][0]["execution_count"] == 2
    assert merged["cells"][2]["metadata"] == source["cells"][2]["metadata"]
    text = json.dumps(merged)
    assert "papermill" not in text and "/home/ada" not in text and "iopub" not in text
    nbformat.validate(nbformat.from_dict(merged))


def test_outputs_of_other_cells_are_refused():
    source = json.loads(nbformat.writes(notebook("01")))
    done = _executed(source)
    done["cells"][0]["source"] = "# another"
    with pytest.raises(ArtefactError, match="other cells"):
        with_outputs(source, done)


def test_the_picture_in_the_readme_is_the_run_s(tmp_path, monkeypatch):
    source = json.loads(nbformat.writes(notebook("01")))
    ours, run = tmp_path / "ours", tmp_path / "run"
    for folder in (ours, run / "notebooks", run / "figures"):
        folder.mkdir(parents=True)
    (ours / "01.ipynb").write_text(json.dumps(source), encoding="utf-8")
    (run / "notebooks" / "01.ipynb").write_text(json.dumps(_executed(source)), encoding="utf-8")
    (run / "figures" / "student_layers.png").write_bytes(b"a picture")
    monkeypatch.setattr("kdnb.pipeline.NOTEBOOKS", ours)
    monkeypatch.setattr("kdnb.pipeline.LAYERS_PICTURE", tmp_path / "shown.png")
    copy_outputs(run)
    assert (tmp_path / "shown.png").read_bytes() == b"a picture"
    assert json.loads((ours / "01.ipynb").read_text(encoding="utf-8"))["cells"][2]["outputs"]
