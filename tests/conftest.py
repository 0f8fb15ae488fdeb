"""Options and fixtures that more than one test file uses."""

import os
import shutil
from pathlib import Path

# Test files run side by side (pytest-xdist), so each has its share of the cores;
# read when torch is imported, and by what a test starts.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

import hypothesis
import pytest
from playwright.sync_api import sync_playwright

# The same examples every time: what a search finds is written down as an @example.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_addoption(parser):
    parser.addoption(
        "--notebooks",
        default=str(REPOSITORY / "notebooks"),
        help="the folder whose notebooks test_notebooks.py looks at",
    )


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


class Clock:
    """Stands for ``time.perf_counter``: goes on as it is told to, and a little whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def browser():
    """The one Chromium of all tests: Playwright does not start twice in a session."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()
