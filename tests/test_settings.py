"""Settings: every wrong value is one sentence, every name is safe, and what is left open comes from the profile."""

import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnb.errors import DataNotFoundError, KdnbError, ParameterError
from kdnb.settings import Budget, budget, check, main, resolve, run_name
from kdnb.sources import locate, table


def one_sentence(error: Exception) -> bool:
    text = str(error)
    return "\n" not in text and text.endswith(".") and len(text) < 600


@pytest.mark.parametrize("profile", ["smoke", "quick", "cpu", "paper"])
def test_profiles_set_every_budget_value(profile, repository):
    raw = tomllib.loads((repository / "kdnb" / "profiles.toml").read_text())[profile]
    raw.pop("datasets", None), raw.pop("without_leaks", None)
    assert set(raw) == {field.name for field in fields(Budget)}
    assert budget(profile).image_size % 16 == 0


def test_profiles_grow():
    sizes = [budget(profile).phantom_images for profile in ("smoke", "quick", "cpu")]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


def test_the_default_profile_asks_where_everything_moves():
    quick = budget("quick")
    assert 0 in quick.alphas and 0.4 in quick.alphas
    assert min(quick.temperatures) == 1 and max(quick.temperatures) == 20
    assert len(quick.seeds) >= 3 and len(quick.seeds) % 2 == 0, "two cores train two side by side"


def test_the_runs_on_real_images_hold_the_grid_of_the_paper():
    for profile in ("cpu", "paper"):
        assert 0.4 in budget(profile).alphas and {5.0, 10.0, 15.0} <= set(budget(profile).temperatures)


def test_a_split_without_leaks_spends_less_and_a_parameter_has_the_last_word():
    official, free = budget("cpu", "eye_disease"), budget("cpu", "eye_disease", "leak_free")
    assert free.samples_per_class < official.samples_per_class and len(free.temperatures) < len(official.temperatures)
    assert free.student_epochs == official.student_epochs and free.seeds == official.seeds, "but trains alike"
    assert resolve("phantom", "cpu", split_protocol="leak_free", samples_per_class=7).budget.samples_per_class == 7
    assert budget("cpu", "eye_disease") == official and budget("quick", "phantom", "leak_free") == budget("quick")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dataset": "brains"}, ["dataset", "'brains'", "phantom", "brain_tumor", "medmnist:<flag>", "folder:<path>"]),
        ({"dataset": "folder:"}, ["dataset", "folder:<path>"]),
        ({"dataset": "phantom:"}, ["dataset"]),
        ({"dataset": "../x"}, ["dataset", "'../x'"]),
        ({"profile": "fast"}, ["profile", "'fast'", "smoke, quick, cpu, paper"]),
        ({"seed": "x"}, ["seed", "'x'", "whole number"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": True}, ["seed", "True"]),
        ({"split_protocol": "random"}, ["split_protocol", "'random'", "official, leak_free"]),
        (
            {"split_protocol": "regrouped"},
            ["split_protocol", "'regrouped'", "leak_free (which splits anew where it has to)"],
        ),
        ({"alphas": [0.4, 1.5]}, ["alphas", "1.5", "0 to 1"]),
        ({"temperatures": []}, ["temperatures", "[]"]),
        ({"temperatures": [0]}, ["temperatures", "above 0"]),
        ({"temperatures": "[5, 10]"}, ["temperatures", "list"]),
        ({"image_size": 33}, ["image_size", "33", "multiple of 16"]),
        ({"samples_per_class": 0}, ["samples_per_class", "0", "at least 1"]),
        ({"epochs": 3}, ["epochs", "student_epochs"]),
    ],
)
def test_a_wrong_value_names_parameter_value_and_what_is_allowed(values, words):
    with pytest.raises(ParameterError) as caught:
        resolve(**values)
    assert one_sentence(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("dataset", sorted(table()))
def test_missing_data_say_where_to_get_them_and_where_to_put_them(dataset, tmp_path):
    with pytest.raises(DataNotFoundError) as caught:
        resolve(dataset, data_dir=tmp_path)
    message = str(caught.value)
    assert table()[dataset]["url"] in message
    assert str(tmp_path / table()[dataset]["folder"]) in message
    assert "DATA_DIR" in message


def test_a_data_set_is_found_by_its_folder_or_directly(tmp_path):
    inside = tmp_path / "brain-tumor-mri-dataset"
    for name in ("Training", "Testing"):
        (inside / name).mkdir(parents=True)
    assert locate("brain_tumor", tmp_path) == inside
    assert locate("brain_tumor", inside) == inside


def test_none_means_the_profiles_value_and_a_value_replaces_it():
    assert resolve(samples_per_class=None).budget == budget("quick")
    assert resolve(samples_per_class=3).budget.samples_per_class == 3


def test_run_names():
    assert run_name("phantom", "quick", 0) == "phantom-quick-seed0"
    assert run_name("phantom", "quick", 0, "leak_free") == "phantom-quick-seed0-leak_free"
    assert run_name("folder:/a/b", "quick", 0) != run_name("folder:/a_b", "quick", 0)
    assert resolve(split_protocol="leak_free").run_dir.name == "phantom-quick-seed0-leak_free"


@given(st.text())
def test_a_run_name_never_leaves_its_folder(text):
    name = run_name(text, "quick", 0)
    assert Path(name).name == name
    assert not set(name) & set(" :/\\$`'\"\n%#")


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.lists(st.one_of(st.integers(), st.floats(), st.text())),
    ),
    st.sampled_from([*(field.name for field in fields(Budget)), "seed", "split_protocol", "alpha", "temperature"]),
)
def test_any_value_is_taken_or_refused_in_one_sentence(value, name):
    try:
        check(name, value)
    except ParameterError as error:
        assert name in str(error)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text(), st.one_of(st.integers(), st.text()))
def test_any_request_is_resolved_or_refused_by_the_one_family(dataset, profile, seed):
    try:
        resolve(dataset, profile, seed)
    except KdnbError:
        return


@pytest.mark.parametrize("runs", ["a b", "$(touch x)", "a:b", "x;y", "", "a\nb", "it's"])
def test_a_runs_folder_that_make_cannot_use_is_refused(runs, capsys):
    assert main(["--runs", runs]) == 2
    assert "runs is" in capsys.readouterr().err


def test_the_check_needs_nothing_installed(repository, tmp_path):
    command = [
        sys.executable,
        "-S",
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(repository)!r}); import kdnb.settings as s; s.main()",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert answer.stdout.strip() == "runs/phantom-quick-seed0", answer.stderr


def test_student_seeds_count_from_the_runs_seed_unless_they_are_given():
    assert resolve(seed=0).budget.seeds == (0, 1, 2, 3)
    assert resolve(seed=5).budget.seeds == (5, 6, 7, 8)
    assert resolve(seed=5, seeds=[1, 9]).budget.seeds == (1, 9)
