"""What the README and the pages beside it say can be done as they say."""

import importlib
import re
import subprocess
import tomllib

import pytest

from kdnb.settings import SPLIT_PROTOCOLS
from kdnb.settings import main as check_settings
from kdnb.sources import allowed

PAGES = ("README.md", "FINDINGS.md", "CONTRIBUTING.md", "docs/own_images.md", "docs/machines.md")


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def guide(repository):
    """All pages for readers, one after the other."""
    return "\n".join((repository / name).read_text(encoding="utf-8") for name in PAGES)


@pytest.fixture(scope="module")
def targets(repository):
    """Target -> help text, as `make help` lists them."""
    answer = subprocess.run(["make", "-s", "help"], cwd=repository, capture_output=True, text=True, check=True)
    return dict(re.findall(r"^  make (\S+)\s+(.+)$", answer.stdout, re.MULTILINE))


def commands(page: str) -> list[list[str]]:
    """Every make command of a page, as words; a sentence's words after it are not taken along."""
    matches = re.findall(r"^make .*|`(make [^`]+)`", page, re.MULTILINE)
    lines = re.findall(r"^make [^#\n]*", page, re.MULTILINE) + [inline for inline in matches if inline]
    return [line.split()[1:] for line in lines]


def test_the_contract_s_targets_exist_with_a_help_text(targets):
    assert set(targets) >= {"help", "setup", "reproduce", "test", "bench", "book", "lab", "clean"}
    assert all(len(text) > 8 for text in targets.values())


def test_help_is_the_default(repository, targets):
    answer = subprocess.run(["make", "-s"], cwd=repository, capture_output=True, text=True, check=True)
    assert all(f"make {target}" in answer.stdout for target in targets)


def test_help_names_every_choice(repository):
    answer = subprocess.run(["make", "-s", "help"], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert f"SPLIT={'|'.join(SPLIT_PROTOCOLS)} " in answer
    assert f"PROFILE={'|'.join(tomllib.loads((repository / 'kdnb' / 'profiles.toml').read_text()))} " in answer
    assert f"Data sets: {allowed()}\n" in answer


def test_every_target_of_the_makefile_is_listed(repository, targets):
    text = (repository / "Makefile").read_text()
    declared = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE).group(1).split())
    assert declared - set(targets) == {"python-version", "run"}, "the two that only the Makefile itself calls"


def test_every_command_is_a_target_with_known_variables(repository, guide, targets):
    known = set(re.findall(r"^([A-Z_]+) +=", (repository / "Makefile").read_text(), re.MULTILINE))
    assert len(commands(guide)) >= 8
    for target, *variables in commands(guide):
        assert target in targets, target
        assert {variable.partition("=")[0] for variable in variables} <= known


def test_every_command_passes_the_check_of_parameters(guide, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my_net.py", "my_net.safetensors"):
        (tmp_path / name).touch()
    for folder in ("Training", "Testing", "dataset", "Dataset"):
        (tmp_path / folder).mkdir()
    runs = [command for command in commands(guide) if command[0] == "reproduce"]
    assert len(runs) >= 3
    for _, *variables in runs:
        values = dict(variable.split("=", 1) for variable in variables)
        if values.get("DATASET", "").startswith("folder:"):
            values["DATASET"] = f"folder:{tmp_path}"
        if values.get("DATASET", "").startswith("table:"):
            (tmp_path / "labels.csv").touch()
            values["DATASET"] = f"table:{tmp_path / 'labels.csv'}"
        values["DATA_DIR"] = str(tmp_path)
        values.pop("SCHEDULER", None)  # changes no result, so it is no setting
        assert values.pop("TRAIN_TEACHER", "1") == "1"  # a notebook's parameter
        words = [word for name, value in values.items() for word in (f"--{name.lower().replace('_', '-')}", value)]
        assert check_settings(words) == 0, capsys.readouterr().err


def test_profiles_data_sets_and_protocols_that_are_named_exist(guide, capsys):
    for profile in re.findall(r"PROFILE=(\w+)", guide):
        assert check_settings(["--profile", profile]) == 0
    for protocol in re.findall(r"SPLIT=(\w+)", guide):
        assert check_settings(["--split", protocol]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_lead_to_files(repository, name):
    page = repository / name
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s#]+)\)", text):
        if not re.match(r"https?:", target):
            assert (page.parent / target).exists(), target
    for alternative in re.findall(r"!\[([^\]]*)\]\(", text):
        assert len(alternative) >= 30


def test_every_walk_leads_to_something_that_is_there(repository):
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walks = re.split(r"^\d\. ", text[: text.index("## Tests")], flags=re.MULTILINE)[1:]
    assert len(walks) == 5
    for walk in walks:
        places = re.findall(r"`kdnb/([\w/]+)\.py:(\w+)`", walk)
        assert places, walk
        for module, name in places:
            assert hasattr(
                importlib.import_module(f"kdnb/{module}".replace("/", ".").removesuffix(".__init__")), name
            ), f"{module}: {name}"
        for path in re.findall(r"`((?:tests|data|kdnb)/[\w/.]+)`", walk):
            assert (repository / path).exists(), path


def test_it_is_one_screen_with_its_findings_before_its_commands(readme):
    text = re.sub(r"<!--.*?-->|\]\([^)]*\)|!\[[^\]]*", "", readme, flags=re.DOTALL)
    assert len(text.split()) <= 900 and len(readme.splitlines()) <= 80
    assert readme.index("## What was found") < readme.index("## Two commands") < readme.index("## How to read it")
    assert readme.count("![") == 1


def test_it_says_what_it_is_in_a_few_lines(readme):
    opening = readme.split("\n\n")[1]
    assert len(opening.splitlines()) <= 6
    assert "not a medical device" in readme and "MIT" in readme and "CC BY 4.0" in readme


def test_make_passes_each_tool_words_that_it_understands(repository, capsys):
    """The recipes of data, book, slides, record and bench, with --help put behind them."""
    recipes = re.findall(
        r"\$\(PY\) -m (kdnb\.(?:datasets\.fetch|book|slides|findings|bench)) (.*)$",
        (repository / "Makefile").read_text(),
        re.MULTILINE,
    )
    assert len(recipes) == 5
    for module, words in recipes:
        options = [word for word in words.split() if word.startswith("--")]
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(module).main(["--help"])
        printed = capsys.readouterr().out
        assert ended.value.code == 0 and all(option in printed for option in options), module
        positional = "positional arguments" in printed
        assert positional == (not options), f"{module} {words}"
