"""One list of dependencies: pyproject.toml says what is needed, requirements.lock which versions,
nothing says it twice.

The package itself: what it carries, its form and its types, and who may import whom.
"""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.util import resolve_name

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kdnb import reference


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock(repository):
    return [Requirement(line) for line in (repository / "requirements.lock").read_text().splitlines()]


def environments():
    for version in ("3.11", "3.12", "3.13"):
        for system, platform in (("Linux", "linux"), ("Darwin", "darwin")):
            machine = "x86_64" if system == "Linux" else "arm64"
            yield {
                "python_version": version,
                "python_full_version": f"{version}.9",
                "platform_system": system,
                "sys_platform": platform,
                "os_name": "posix",
                "platform_machine": machine,
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
                "extra": "",
            }


@pytest.mark.parametrize(
    "environment", list(environments()), ids=lambda e: f"{e['python_version']}-{e['sys_platform']}"
)
def test_every_dependency_is_locked_within_its_range(project, lock, environment):
    pinned = {canonicalize_name(r.name): r for r in lock if r.marker is None or r.marker.evaluate(environment)}
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    for requirement in map(Requirement, wanted):
        locked = pinned.get(canonicalize_name(requirement.name))
        assert locked is not None, f"{requirement.name} is not in requirements.lock: make lock"
        version = str(locked.specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{locked} is outside {requirement}"


def test_the_lock_is_exact_and_names_no_host_or_path(repository, lock):
    for requirement in lock:
        assert re.fullmatch(r"==[\w.!+]+", str(requirement.specifier)), requirement
        assert requirement.url is None
    text = (repository / "requirements.lock").read_text()
    assert not re.search(r"https?:|//|\bfile:|--|@ ", text)


def test_conda_users_get_the_same_lock(repository):
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert {re.split(r"[<>=]", name)[0] for name in conda} == {"python", "pip"}, "packages come from the lock only"
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_python_versions_agree(repository, project):
    assert project["requires-python"] == ">=3.11,<3.14"
    conda = yaml.safe_load((repository / "environment.yml").read_text())["dependencies"][0]
    assert conda == "python>=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (repository / "Makefile").read_text()


def test_the_package_carries_all_that_is_no_code_and_its_licence(repository, project):
    patterns = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["kdnb"]
    carried = {path for pattern in patterns for path in (repository / "kdnb").glob(pattern)}
    assert carried == {
        path for path in (repository / "kdnb").rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert "MIT License" in (repository / "LICENSE").read_text()
    assert "CC BY 4.0" in (repository / "LICENSE").read_text()
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == "MIT"


def test_code_and_notebooks_are_formatted_and_clean(repository):
    for words in (["check"], ["format", "--check"]):
        answer = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "."], cwd=repository, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stdout


def test_the_package_is_typed(repository):
    answer = subprocess.run([sys.executable, "-m", "mypy"], cwd=repository, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


# -- floors ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def floors(repository):
    """The floor of each room, as the map in CONTRIBUTING.md has them."""
    rows = reference.floors((repository / "CONTRIBUTING.md").read_text(encoding="utf-8")).items()
    rooms = [(room, int(floor.removeprefix("floor "))) for floor, (names, _) in rows for room in names]
    assert len(dict(rooms)) == len(rooms), "a room stands on one floor"
    return dict(rooms)


def imported_rooms(source, package):
    """The rooms right below kdnb that code in ``package`` imports, in any form, at its top or in a function."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names += [f"{module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("kdnb.")}


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import torch, kdnb.runs as runs", {"runs"}),
        ("from kdnb import (\n    cost,\n    losses as arms,\n)", {"cost", "losses"}),
        ("from kdnb.explain.maps import project", {"explain"}),
        ("def f():\n    from kdnb import book", {"book"}),
        ("from .tables import fidelity_rows", {"fidelity"}),
        ("from .. import pipeline", {"pipeline"}),
        ("from ..figures import data", {"figures"}),
        ("import kdnb\nfrom kdnbs import sweep", set()),
    ],
)
def test_every_form_of_import_is_seen(source, rooms):
    assert imported_rooms(source, "kdnb.fidelity") == rooms


def test_the_map_names_every_room(repository, floors):
    package = repository / "kdnb"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert set(floors) == modules | {path.parent.name for path in package.glob("*/__init__.py")}


def test_a_floor_imports_only_from_its_own_and_the_floors_below(repository, floors):
    for path in (repository / "kdnb").rglob("*.py"):
        parts = path.relative_to(repository).with_suffix("").parts
        if parts == ("kdnb", "__init__"):
            continue
        for room in imported_rooms(path.read_text(encoding="utf-8"), ".".join(parts[:-1])) & floors.keys():
            assert floors[room] <= floors[parts[1]], f"{'/'.join(parts)} imports {room} from a floor above"
