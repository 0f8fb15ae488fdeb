"""Ordinary machines of all kinds: without git, inside another repository, on file systems that refuse,
with a user's own settings."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from kdnb import files, filesystems, models, pipeline, provenance, tensors
from kdnb.datasets import cache, fetch, load
from kdnb.errors import DataError, ParameterError, StorageError
from kdnb.files import atomic_folder, atomic_write
from kdnb.provenance import commit
from kdnb.runs import Run
from kdnb.settings import from_command_line, resolve


def refusing(code: int):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.fixture
def run(tmp_path):
    return Run(resolve(profile="smoke", run_dir=tmp_path / "run"), "test")


# -- git ------------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    person = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *person, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="this machine has no git")


def test_without_git_the_commit_is_unknown_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.environment()["commit"] == "unknown"


@needs_git
def test_a_repository_around_the_checkout_is_not_taken_for_it(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "inner" / "kdnb").mkdir(parents=True)
    (tmp_path / "inner" / "kdnb" / "code.py").write_text("1\n")
    git(tmp_path, "add", "-A"), git(tmp_path, "commit", "-qm", "around")
    assert commit(tmp_path / "inner") == {"commit": "unknown", "modified": False}
    assert commit(tmp_path)["commit"] == git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert commit(tmp_path / "inner")["commit"] == "unknown", "whatever the shell says"


@needs_git
def test_the_own_repository_says_its_commit_and_whether_code_changed(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "kdnb").mkdir()
    (tmp_path / "kdnb" / "code.py").write_text("1\n")
    git(tmp_path, "add", "-A"), git(tmp_path, "commit", "-qm", "one")
    assert commit(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "modified": False}
    (tmp_path / "kdnb" / "code.py").write_text("2\n")
    assert commit(tmp_path)["modified"]


# -- file systems that refuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_locks_are_refused_processes_of_one_machine_still_wait(run, tmp_path, monkeypatch, capsys, code):
    monkeypatch.setattr(filesystems.tempfile, "gettempdir", lambda: str(tmp_path / "local"))
    (tmp_path / "local").mkdir()
    real, refused = fcntl.flock, tmp_path / "run"

    def flock(file, operation):
        if Path(file.name).is_relative_to(refused):
            raise OSError(code, os.strerror(code))
        real(file, operation)

    monkeypatch.setattr(filesystems.fcntl, "flock", flock)
    run.record("one", {"a": 1}), run.record("one", {"b": 2})
    assert run.info()["one"] == {"a": 1, "b": 2}
    with pipeline.locked(refused / ".reproduce.lock", "another"):
        (stand_in,) = [path for path in (tmp_path / "local").rglob("*") if path.is_file() and _is_locked(path, real)]
    assert not _is_locked(stand_in, real)
    message = capsys.readouterr().err
    assert message.count("refuses locks") == 1 and "from another machine" in message


def _is_locked(path: Path, flock) -> bool:
    with path.open("w") as file:
        try:
            flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_another_fault_of_a_lock_is_not_hidden(run, monkeypatch):
    monkeypatch.setattr(filesystems.fcntl, "flock", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        run.record("one", {"a": 1})


@pytest.mark.parametrize(
    ("place", "name", "code"),
    [
        (Path, "chmod", errno.EPERM),
        (Path, "chmod", errno.EOPNOTSUPP),
        (os, "fsync", errno.EINVAL),
        (os, "fsync", errno.ENOSYS),
    ],
)
def test_files_are_written_where_modes_and_flushes_are_refused(run, tmp_path, monkeypatch, place, name, code):
    monkeypatch.setattr(place, name, refusing(code))
    table = run.save_table("numbers", pd.DataFrame({"a": [1.5, 2]}))
    assert run.load_table("numbers").equals(table)
    with atomic_folder(tmp_path / "folder") as part:
        (part / "x").write_text("x")
    assert (tmp_path / "folder" / "x").read_text() == "x"


def test_a_flush_that_fails_for_good_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(StorageError, match="Input/output"), atomic_write(tmp_path / "x") as path:
        path.write_text("x")
    assert not (tmp_path / "x").exists()


def test_models_and_images_are_read_where_no_file_can_be_mapped(run, tmp_path, monkeypatch):
    model = models.initialised(models.StudentCNN, 3, (4, 8, 8), seed=0)
    run.save_model("student", model, "k")
    tensors.save(tmp_path / "t", {"a": torch.arange(3.0)}, "k", {"b": 1})
    for number in range(8):
        place = tmp_path / "images" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            place / f"{number}.png"
        )
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    mapped = np.array(load(f"folder:{tmp_path / 'images'}", 32).images)

    def no_device(*arguments, **options):
        raise OSError("No such device (os error 19)")

    monkeypatch.setattr(files, "safe_open", no_device)
    monkeypatch.setattr("safetensors.torch.safe_open", no_device)
    monkeypatch.setattr(np, "memmap", no_device)
    assert run.has_model("student", "k") and not run.has_model("student", "other")
    loaded = run.load_model("student", models.StudentCNN(3, (4, 8, 8)), "k")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    read_back, facts = tensors.load(tmp_path / "t", "k")
    assert read_back["a"].tolist() == [0, 1, 2] and facts == {"b": 1}
    assert tensors.load(tmp_path / "t", "other") is None
    (tmp_path / "t").write_bytes(b"damaged")
    assert tensors.load(tmp_path / "t", "k") is None
    assert np.array_equal(load(f"folder:{tmp_path / 'images'}", 32).images, mapped)


# -- places ---------------------------------------------------------------------------------------------------------


def test_the_cache_lies_where_it_is_said(repository, tmp_path):
    code = "from kdnb.datasets import cache; print(cache.FOLDER)"
    for variable, expected in (
        (str(tmp_path), tmp_path),
        ("", repository / "data" / "cache"),
        ("other", repository / "other"),
    ):
        said = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"KDNB_CACHE": variable},
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.strip() == str(expected)


def test_a_checkout_that_cannot_be_written_has_its_kernels_settings_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "file" / "prefix"))
    (tmp_path / "file").write_text("no folder")
    environment = pipeline.kernel_environment(tmp_path / "progress")
    for name in ("IPYTHONDIR", "MPLCONFIGDIR"):
        assert Path(environment[name]).is_dir() and os.access(environment[name], os.W_OK)
    shutil.rmtree(Path(environment["IPYTHONDIR"]).parent)


@pytest.mark.parametrize("name", ["dataset", "data_dir", "run_dir", "student"])
def test_a_path_that_is_not_utf8_is_one_sentence(name, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(odd)
    value = {"dataset": f"folder:{odd}", "student": f"{odd}/net.py:build"}.get(name, odd)
    with pytest.raises(ParameterError, match=f"^{name} is .*not UTF-8: rename it") as caught:
        resolve(**{name: value})
    str(caught.value).encode("utf-8")


def test_a_relative_folder_and_its_absolute_path_are_one_run(tmp_path, monkeypatch):
    (tmp_path / "my images").mkdir()
    monkeypatch.chdir(tmp_path)
    folders = [
        from_command_line(["--dataset", f"folder:{path}", "--profile", "smoke"])
        for path in ("my images", tmp_path / "my images")
    ]
    assert folders[0] == folders[1] and folders[0][1].name.startswith("folder-my-images-")
    assert resolve("folder:my images").run_dir == resolve(f"folder:{tmp_path / 'my images'}").run_dir


# -- what a user's shell holds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [["-O"], ["-OO"], []])
def test_without_checks_nothing_runs(how, tmp_path):
    code = f"from kdnb import runs; runs.start('t', profile='smoke', run_dir={str(tmp_path / 'run')!r})"
    variables = os.environ | ({} if how else {"PYTHONOPTIMIZE": "1"})
    said = subprocess.run(
        [sys.executable, *how, "-c", code], env=variables, capture_output=True, text=True, check=False
    )
    assert said.returncode == 1 and "the notebooks' checks would vanish: unset it." in said.stderr
    assert not (tmp_path / "run").exists()


def test_a_users_kernels_figures_and_switches_are_left_aside(tmp_path, monkeypatch):
    kernel = tmp_path / "theirs" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "theirs", "language": "python"}))
    (tmp_path / "matplotlibrc").write_text("figure.dpi: 7\n")
    own = {
        "JUPYTER_PATH": tmp_path / "theirs",
        "MATPLOTLIBRC": tmp_path / "matplotlibrc",
        "PYTHONSAFEPATH": 1,
        "PYTHONOPTIMIZE": 1,
    }
    for name, value in own.items():
        monkeypatch.setenv(name, str(value))
    import nbformat

    cells = [
        nbformat.v4.new_code_cell("x: int = 1  # a number", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import sys, matplotlib\nassert matplotlib.rcParams['figure.dpi'] != 7 and not sys.flags.optimize\nprint(x)"
        ),
    ]
    kernelspec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernelspec), tmp_path / "a.ipynb")
    for name, value in pipeline.kernel_environment(tmp_path / ".a.progress").items():
        monkeypatch.setenv(name, value)  # put back after the test
    pipeline.execute(tmp_path / "a.ipynb", tmp_path / "out", {"x": 3, "unknown": 4})
    done = json.loads((tmp_path / "out" / "a.ipynb").read_text())
    assert done["cells"][-1]["outputs"][0]["text"] in ("3\n", ["3\n"])


def _show(folder: Path, what: str, *words: str, **variables: str) -> str:
    """What a recipe of the Makefile prints."""
    (folder / "show.mk").write_text(f"include Makefile\nshow:\n\t@{what}\n")
    command = ["make", "-s", "-f", "show.mk", "show", *words]
    return subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def checkout(repository, tmp_path):
    """What make reads of a checkout, with an environment that Python 3.11 made."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.9\n")
    for version in ("3.11", "3.13"):
        python = tmp_path / f"python{version}"
        python.write_text(f"#!/bin/sh\necho {version}\n")
        python.chmod(0o755)
    return tmp_path


def test_each_python_asked_for_has_an_environment_of_its_own(checkout):
    assert _show(checkout, "echo $(PY)") == ".venv/bin/python\n"
    assert _show(checkout, "echo $(PY)", "PYTHON=./python3.11") == ".venv/bin/python\n"
    assert _show(checkout, "echo $(PY) $(READY)", "PYTHON=./python3.13").startswith(
        ".venv-3.13/bin/python .venv-3.13/ready-"
    )
    (checkout / ".venv" / "pyvenv.cfg").unlink()
    assert _show(checkout, "echo $(PY)", "PYTHON=./python3.13") == ".venv/bin/python\n", "the first makes .venv"


def test_make_leaves_a_users_switches_aside_and_passes_on_its_own(checkout):
    variables = {"PYTHONSAFEPATH": "1", "PYTHONOPTIMIZE": "1", "JUPYTER_PATH": "/x", "MATPLOTLIBRC": "/y"}
    said = _show(checkout, "env", "CACHE=/c $HOME", "SCHEDULER=tcp://h:1", **variables)
    assert not any(line.startswith(tuple(f"{name}=" for name in variables)) for line in said.splitlines())
    assert "KDNB_CACHE=/c $HOME\n" in said and "KDNB_SCHEDULER=tcp://h:1\n" in said


# -- MedMNIST -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut off", b"<html>not found</html>"], ids=["empty", "cut off", "a web page"]
)
def test_a_damaged_file_placed_by_hand_is_named(tmp_path, content, monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", unreachable)
    (tmp_path / "medmnist").mkdir()
    (tmp_path / "medmnist" / "pneumoniamnist.npz").write_bytes(content)
    with pytest.raises(
        DataError,
        match=r"pneumoniamnist\.npz is damaged or not the published file .*: delete it and fetch it again from",
    ):
        fetch._unpacked("pneumoniamnist", 28, tmp_path, check=False)
    assert sorted(path.name for path in (tmp_path / "medmnist").iterdir()) == ["pneumoniamnist.npz"]


def test_several_labels_an_image_are_named_as_unsupported(tmp_path):
    with pytest.raises(
        ParameterError, match="'medmnist:chestmnist', whose images have several labels each, which the study does"
    ):
        fetch.medmnist_folder("chestmnist", 32, tmp_path)
