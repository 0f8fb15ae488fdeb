"""One list of dependencies: pyproject.toml says what is needed, requirements.lock which versions, and nothing says it twice."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


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
        found = pinned.get(canonicalize_name(requirement.name))
        assert found is not None, f"{requirement.name} is not in requirements.lock: make lock"
        version = str(found.specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{found} is outside {requirement}"


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


FLOORS = [
    {"errors", "filesystems", "sources", "settings", "device", "files", "provenance", "runs"},
    {"progress", "datasets", "models", "networks", "losses", "tensors", "cluster"},
    {"views", "training", "stack", "evaluation", "teachers", "students", "explain", "cost", "models3d"}
    | {"experiments", "specs", "store", "teacher_training"},
    {
        "sweep",
        "comparison",
        "few_labels",
        "transparency",
        "teaching",
        "third_dimension",
        "fidelity",
        "figures",
        "claims",
        "report",
        "one_image",
        "measured",
        "playing",
        "findings",
        "book",
        "slides",
        "pipeline",
    }
    | {"bench"},
]


def test_a_floor_imports_only_from_its_own_and_the_floors_below(repository):
    level = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    for path in (repository / "kdnb").rglob("*.py"):
        parts = path.relative_to(repository / "kdnb").with_suffix("").parts
        if parts == ("__init__",):
            continue
        assert parts[0] in level, f"{path.name}: which floor is it on?"
        for name in re.findall(r"^\s*(?:from|import) kdnb\.(\w+)", path.read_text(), re.MULTILINE):
            assert level[name] <= level[parts[0]], f"{'/'.join(parts)} imports {name} from a floor above"
