"""Options and fixtures that more than one test file uses."""

from pathlib import Path

import hypothesis
import pytest

# The same examples every time: what a search finds is written down as an @example.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--notebooks", default=str(REPOSITORY / "notebooks"), help="the folder whose notebooks test_notebooks.py looks at")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY
