"""One family of errors, each with a cause and a cure, each raised somewhere, each one sentence on the terminal."""

import re

import pytest

from kdnb.book import error_classes, errors_page
from kdnb.errors import KdnbError, StorageError, exit_status, writing


def test_every_error_of_the_table_can_happen_and_every_one_that_can_stands_in_it(repository):
    # A measurement may fail as a test does.
    files = [path for path in (repository / "kdnb").rglob("*.py") if path.parent.name != "bench"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    raised = set(re.findall(r"\braise (\w+)\(", code))
    family = {error.__name__ for error in error_classes()}
    assert family <= raised, "an error that nothing raises has no place in the table"
    assert {name for name in raised if name.endswith("Error")} <= family | {"OSError"}, (
        "OSError: wrapped at once by `writing`"
    )


def test_the_table_gives_each_cause_and_cure_as_a_sentence():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", errors_page(), re.MULTILINE)
    assert {name for name, _, _ in rows} == {error.__name__ for error in error_classes()}
    assert all(cause.endswith(".") and cure.endswith(".") for _, cause, cure in rows)
    assert len({cure for _, _, cure in rows}) == len(rows)


def test_what_the_system_says_becomes_a_sentence_with_the_path(tmp_path):
    path = tmp_path / "x" / "y"
    with (
        pytest.raises(StorageError, match=r"x/y could not be written \(No such file or directory\): free space"),
        writing(path),
    ):
        path.write_text("")


def test_a_known_error_is_one_line_and_status_two_and_an_unknown_one_is_not_hidden(capsys):
    def fail():
        raise KdnbError("seed is -1, but it must be a whole number.")

    assert exit_status(fail) == 2 and exit_status(lambda: None) == 0
    assert capsys.readouterr().err == "kdnb: seed is -1, but it must be a whole number.\n"
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 / 0)
