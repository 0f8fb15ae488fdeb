"""What a run is asked to do: parameters checked once, at the start, in one place.

Standard library only: ``python -m kdnb.settings`` checks a run before anything is installed.
"""

import argparse
import hashlib
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from kdnb.errors import ParameterError, exit_status
from kdnb.sources import REPOSITORY, absolute, check_name, from_home, locate

SPLIT_PROTOCOLS = ("official", "leak_free")
OWN_TEACHER, OWN_STUDENT = "densenet121", "plain"  # the study's own networks
NETWORK_FILE = r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)(?::(?P<state>.+\.safetensors))?"


@dataclass(frozen=True)
class Budget:
    """How much of everything a profile spends (``kdnb/profiles.toml``); a notebook may override single values."""

    image_size: int
    phantom_images: int
    max_images: int
    teacher_images: int  # generated ones that the phantom's teacher learns from; 0: those that its students learn from
    teacher_epochs: int
    student_epochs: int
    student_learning_rate: float
    student_widths: tuple[int, ...]  # filters of the student's five layers
    long_epochs: int  # for the students that show what longer training buys, with a teacher and without; 0: none
    views: int
    batch_size: int
    seeds: tuple[int, ...]
    few_per_class: tuple[int, ...]  # labelled images a class of the students that know only a few
    few_seeds: int  # seeds of these students with the most of the few labels, counted from the first of ``seeds``
    grid_seeds: int  # of the seeds, how many for the grid of alpha and T
    ablation_seeds: int  # of these, how many for students of another depth or pooling; 0: none
    refit_seeds: int  # of these, how many for students that also learn from the validation images; 0: none
    refit_teachers: int  # of these, how many for teachers that learn from them, too; the first teaches those students
    alphas: tuple[float, ...]
    temperatures: tuple[float, ...]
    lesson_weights: tuple[float, ...]  # of a taught explanation beside the loss; of several, validation chooses
    samples_per_class: int
    gradients_per_class: int  # integrated gradients and SHAP, which cost many passes an image
    teacher_per_class: int
    students_per_class: int  # where explanations of several students each are compared (chapters 07 and 08)
    shap_background: int
    shap_samples: int
    timing_repeats: int
    bootstrap_samples: int
    volume_size: int  # voxels a side of a slice (chapter 09)
    volume_count: int  # generated volumes, train, validation and test together
    volume_widths: tuple[int, ...]  # filters of the five layers of its students
    volume_epochs: int
    volume_seeds: int  # of the seeds, how many
    volume_teacher: str  # wide or densenet121 (MONAI's)
    volume_teacher_epochs: int
    volumes_per_class: int  # test volumes of each class whose explanations are judged
    few_volumes: int  # labelled volumes a class of the students that know only a few


@dataclass(frozen=True)
class Settings:
    """One run: the data set, the budget, the seed and the folders."""

    dataset: str
    profile: str
    seed: int
    data_dir: Path
    run_dir: Path
    split_protocol: str
    budget: Budget
    teacher: str = OWN_TEACHER
    student: str = OWN_STUDENT


# What each value must be, as (test, words); lists are tested item by item.
_Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: _Rule = (lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1")
_COUNT: _Rule = (lambda value: isinstance(value, int) and value >= 0, "a whole number of at least 0")
_RULES: dict[str, _Rule] = {
    "image_size": (
        lambda value: isinstance(value, int) and 32 <= value <= 1024 and value % 16 == 0,
        "a multiple of 16 from 32 to 1024",
    ),
    "max_images": (_COUNT[0], "a whole number of at least 0 (0: all)"),
    "long_epochs": _COUNT,
    "refit_seeds": _COUNT,
    "ablation_seeds": _COUNT,
    "teacher_images": _COUNT,
    "student_widths": (_POSITIVE[0], "a list of whole numbers of at least 1"),
    "few_per_class": (_POSITIVE[0], "a list of whole numbers of at least 1"),
    "volume_size": (
        lambda value: isinstance(value, int) and 16 <= value <= 256 and value % 4 == 0,
        "a multiple of 4 from 16 to 256",
    ),
    "volume_widths": (_POSITIVE[0], "a list of whole numbers of at least 1"),
    "volume_teacher": (lambda value: value in ("wide", "densenet121"), "one of: wide, densenet121"),
    "student_learning_rate": (lambda value: _number(value) and 0 < value <= 1, "a number above 0, at most 1"),
    "seed": (lambda value: isinstance(value, int) and 0 <= value < 2**31, "a whole number from 0 to 2147483647"),
    "seeds": (
        lambda value: isinstance(value, int) and 0 <= value < 2**31,
        "a list of whole numbers from 0 to 2147483647",
    ),
    "alpha": (lambda value: _number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "alphas": (lambda value: _number(value) and 0 <= value <= 1, "a list of numbers from 0 to 1"),
    "temperature": (lambda value: _number(value) and 0 < value < 1e6, "a number above 0"),
    "temperatures": (lambda value: _number(value) and 0 < value < 1e6, "a list of numbers above 0"),
    "lesson_weights": (lambda value: _number(value) and 0 < value < 1e6, "a list of numbers above 0"),
    "split_protocol": (
        lambda value: value in SPLIT_PROTOCOLS,
        "one of: " + ", ".join(SPLIT_PROTOCOLS) + " (which splits anew where it has to)",
    ),
}
_LISTS = ("seeds", "alphas", "temperatures", "student_widths", "few_per_class", "lesson_weights", "volume_widths")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check(name: str, value: Any) -> Any:  # noqa: ANN401 - of any type until it is checked
    """Return a parameter's value if the parameter may have it.

    Args:
        name: of the parameter.
        value: what a user gave.

    Returns:
        The value; a list becomes a tuple.

    Raises:
        ParameterError: naming the parameter, the value and what is allowed.
    """
    test, words = _RULES.get(name, _POSITIVE)
    if name in _LISTS:
        ok = (
            isinstance(value, (list, tuple))
            and len(value) > 0
            and all(not isinstance(item, bool) and test(item) for item in value)
        )
        value = tuple(value) if ok else value
    else:
        ok = not isinstance(value, bool) and test(value)
    if not ok:
        raise ParameterError(f"{name} is {value!r}, but it must be {words}.")
    return value


def check_network(role: str, name: Any) -> str:  # noqa: ANN401 - of any type until it is checked
    """Return a network's name if it may be one.

    Args:
        role: ``"teacher"`` or ``"student"``.
        name: what a user gave.

    Returns:
        The name.

    Raises:
        ParameterError: neither a plain name nor ``file.py:build`` or ``file.py:build:state.safetensors`` of files that
            are there.
    """
    network_file = re.fullmatch(NETWORK_FILE, name) if isinstance(name, str) else None
    if network_file is None and not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name)):
        own = OWN_TEACHER if role == "teacher" else OWN_STUDENT
        raise ParameterError(
            f"{role} is {name!r}, but it must be {own}, a name of torchvision.models, "
            "file.py:build or file.py:build:state.safetensors."
        )
    for path in filter(None, network_file.group("file", "state") if network_file else ()):
        if not from_home(path).is_file():
            raise ParameterError(f"{role} is {name!r}, but there is no file {path}: name one that is there.")
    return name


def absolute_network(name: str) -> str:
    """The network's name with whole paths, so that it holds in any working directory."""
    if (network_file := re.fullmatch(NETWORK_FILE, name)) is None:
        return name
    file, function, state = network_file.group("file", "function", "state")
    whole_parts = (str(from_home(file).absolute()), function, state and str(from_home(state).absolute()))
    return ":".join(filter(None, whole_parts))


@cache
def profiles() -> dict[str, dict[str, Any]]:
    """The profiles from the shortest to the longest, each with its values, as ``profiles.toml`` has them."""
    return tomllib.loads((Path(__file__).parent / "profiles.toml").read_text(encoding="utf-8"))


def budget(
    profile: str,
    dataset: str = "phantom",
    split_protocol: str = "official",
    **overrides: Any,  # noqa: ANN401 - of any type until they are checked
) -> Budget:
    """The budget of a profile for a data set and its split.

    Args:
        profile: a name of ``profiles.toml``.
        dataset: a name as :func:`kdnb.sources.check_name` knows it.
        split_protocol: one of :data:`SPLIT_PROTOCOLS`.
        **overrides: single values of the budget; ``None`` leaves the profile's.

    Returns:
        The budget, every value checked.

    Raises:
        ParameterError: an unknown profile, or a value that is not allowed.
    """
    if profile not in profiles():
        raise ParameterError(f"profile is {profile!r}, but it must be one of: {', '.join(profiles())}.")
    values = dict(profiles()[profile])
    special = values.pop("datasets", {}).get(dataset.partition(":")[0], {})
    without_leaks = values.pop("without_leaks", {})
    if split_protocol != "official":
        special = special | without_leaks
    values |= special | {name: value for name, value in overrides.items() if value is not None}
    names = {field.name for field in fields(Budget)}
    unknown = sorted(set(values) - names)
    if unknown:
        near = get_close_matches(unknown[0], sorted(names), n=5, cutoff=0.5)
        meant = f", such as {' or '.join(near)}" if near else ""
        raise ParameterError(f"{unknown[0]} is not a setting of a profile; kdnb/profiles.toml has all{meant}.")
    return Budget(**{name: check(name, value) for name, value in values.items()})


def run_name(
    dataset: str,
    profile: str,
    seed: int,
    split_protocol: str = "official",
    teacher: str = OWN_TEACHER,
    student: str = OWN_STUDENT,
) -> str:
    """The name of the run's folder.

    Args:
        dataset: what is no plain file name is shortened and hashed, a path to its last part; so are networks' names.
        profile: one of :func:`profiles`.
        seed: of the run.
        split_protocol: left out of the name where it is the official one.
        teacher: left out where it is the study's own.
        student: left out where it is the study's own.

    Returns:
        A plain file name.

    Example:
        >>> run_name("phantom", "quick", 3, "leak_free")
        'phantom-quick-seed3-leak_free'
    """
    name = f"{_plain(dataset)}-{profile}-seed{seed}" + ("" if split_protocol == "official" else f"-{split_protocol}")
    name += "" if teacher == OWN_TEACHER else f"-teacher_{_plain(teacher)}"
    return name + ("" if student == OWN_STUDENT else f"-student_{_plain(student)}")


def _plain(name: str) -> str:
    kind, colon, path = name.partition(":")
    short = f"{kind}-{Path(path).name}" if colon and "/" in path else Path(name).name if "/" in name else name
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", short).strip("-.")[:40]
    if plain != name:
        plain += "-" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return plain


def resolve(
    dataset: str = "phantom",
    profile: str = "quick",
    seed: int = 0,
    data_dir: str | Path = "",
    run_dir: str | Path = "",
    split_protocol: str = "official",
    teacher: str = OWN_TEACHER,
    student: str = OWN_STUDENT,
    **overrides: Any,  # noqa: ANN401 - of any type until they are checked
) -> Settings:
    """Check a notebook's parameters and fill in what they leave open.

    Args:
        dataset: a name as :func:`kdnb.sources.check_name` knows it.
        profile: one of :func:`profiles`.
        seed: of the run; the seeds of its students count from it.
        data_dir: where the downloaded data sets lie; empty means ``data/raw``.
        run_dir: where the run writes; empty means ``runs/`` and :func:`run_name` without the networks. A notebook of a
            run of other networks is told its folder; only ``make`` puts them into the name (:func:`from_command_line`).
        split_protocol: one of :data:`SPLIT_PROTOCOLS`.
        teacher: name of a network as :mod:`kdnb.networks` understands it.
        student: the same.
        **overrides: budget values; ``None`` means the profile's. The profile's ``seeds`` count from the run's seed.

    Returns:
        The settings, with absolute paths.

    Raises:
        ParameterError: a value that is not allowed.
        DataNotFoundError: the data set's folder is missing.
    """
    texts = {
        "dataset": dataset,
        "data_dir": data_dir,
        "run_dir": run_dir,
        "teacher": teacher,
        "student": student,
        "checkout": REPOSITORY,
    }
    for name, value in texts.items():
        if any("\ud800" <= letter <= "\udfff" for letter in str(value)):
            raise ParameterError(
                f"{name} is {str(value)!r}, a path that is not UTF-8: rename it or make a link to it with another name."
            )
    check_name(dataset)
    teacher, student = (
        absolute_network(check_network(role, name)) for role, name in (("teacher", teacher), ("student", student))
    )
    check("seed", seed)
    check("split_protocol", split_protocol)
    run_budget = budget(profile, dataset, split_protocol, **overrides)
    if overrides.get("seeds") is None:
        run_budget = replace(run_budget, seeds=tuple(seed + number for number in run_budget.seeds))
    data = from_home(data_dir) if data_dir else REPOSITORY / "data" / "raw"
    locate(dataset, data)
    dataset = absolute(dataset)
    run = from_home(run_dir) if run_dir else REPOSITORY / "runs" / run_name(dataset, profile, seed, split_protocol)
    return Settings(
        dataset, profile, seed, data.absolute(), run.absolute(), split_protocol, run_budget, teacher, student
    )


def from_command_line(arguments: list[str] | None = None) -> tuple[Settings, Path]:
    """The settings that ``make`` was given.

    Args:
        arguments: of ``python -m kdnb.settings``; ``None`` takes those of this process.

    Returns:
        The settings, and the run's folder as it was written there.

    Raises:
        ParameterError: as :func:`resolve`, or a RUNS that make cannot use as a path.
        DataNotFoundError: as :func:`resolve`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kdnb.settings", description="Check one run's settings and print its folder."
    )
    options = {
        "dataset": "phantom",
        "profile": "quick",
        "seed": "0",
        "data-dir": "",
        "runs": "runs",
        "split": "official",
    }
    options |= {"teacher": OWN_TEACHER, "student": OWN_STUDENT}
    for name, default in options.items():
        parser.add_argument(f"--{name}", default=default)
    parsed = parser.parse_args(arguments)
    if not re.fullmatch(r"[\w./+,@-]+", parsed.runs):
        raise ParameterError(
            f"runs is {parsed.runs!r}, but it must be a path of letters, digits and . / _ + , @ - "
            "(make splits at others)."
        )
    seed = int(parsed.seed) if re.fullmatch(r"[0-9]+", parsed.seed) else parsed.seed
    networks = {"teacher": parsed.teacher or OWN_TEACHER, "student": parsed.student or OWN_STUDENT}
    settings = resolve(
        parsed.dataset, parsed.profile, seed, parsed.data_dir, Path(parsed.runs) / "checked", parsed.split, **networks
    )
    identity = (
        settings.dataset,
        settings.profile,
        settings.seed,
        settings.split_protocol,
        settings.teacher,
        settings.student,
    )
    folder = Path(parsed.runs) / run_name(*identity)
    return replace(settings, run_dir=folder.absolute()), folder


def main(arguments: list[str] | None = None) -> int:
    """Print the path of a run's folder; for a wrong parameter print the sentence and return 2."""
    return exit_status(lambda: print(from_command_line(arguments)[1]))


if __name__ == "__main__":
    sys.exit(main())
