"""JupyterLab as `make lab` opens it: a person runs notebook 00 to the end, and the slider changes the figure."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

pytestmark = pytest.mark.slow

CELLS = (
    "() => window.jupyterapp.shell.currentWidget.content.widgets.map(w => w.model.toJSON())"
    ".filter(c => c.cell_type === 'code')"
)


def arguments(repository) -> list[str]:
    """What the Makefile's `lab` passes to JupyterLab."""
    recipe = re.search(r"^lab:.*\n((?:\t.*\n)+)", (repository / "Makefile").read_text(), re.MULTILINE).group(1)
    return re.findall(r"--[\w.]+=\S+", recipe)


@pytest.fixture(scope="module")
def lab(repository, tmp_path_factory):
    """The address, with its token, of a JupyterLab on a copy of the repository's notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(repository / "notebooks", folder / "notebooks")
    more = ["--no-browser", "--port=0", "--expose-app-in-browser", *(["--allow-root"] if os.geteuid() == 0 else [])]
    hidden = ("KDNB_PROGRESS", "JUPYTER_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {
        "JUPYTER_PREFER_ENV_PATH": "1"
    }
    log = (folder / "log").open("w")
    command = [sys.executable, "-m", "jupyterlab", *arguments(repository), *more]
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while not (match := re.search(r"http://127\.0\.0\.1:(\d+)/lab\S*\?token=(\w+)", (folder / "log").read_text())):
            assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{match[1]}", match[2]
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_it_listens_on_this_machine_only_and_asks_for_the_token(lab, repository):
    address, token = lab
    assert "--ip=127.0.0.1" in arguments(repository)
    assert len(token) >= 32
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/api/contents")
    assert refused.value.code == 403
    with urllib.request.urlopen(f"{address}/api/contents?token={token}") as answer:
        assert [item["name"] for item in json.load(answer)["content"] if item["type"] == "directory"] == ["notebooks"]


def test_notebook_00_runs_to_the_end_and_its_slider_changes_the_figure(lab, browser):
    address, token = lab
    page = browser.new_page(viewport={"width": 1280, "height": 2400})
    page.goto(f"{address}/lab/tree/notebooks/00_start_here.ipynb?token={token}")
    page.wait_for_function(
        "() => window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length > 5", timeout=60_000
    )
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'", timeout=60_000
    )
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    done = f"({CELLS})().every(c => !c.source.length || c.execution_count > 0)"
    page.wait_for_function(f"() => {done}", timeout=180_000)
    outputs = [output for cell in page.evaluate(CELLS) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    _move_the_slider(page)
    page.close()


def _move_the_slider(page) -> None:
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.scroll_into_view_if_needed(timeout=30_000)
    picture = page.locator("img.widget-image").first
    before = picture.get_attribute("src", timeout=30_000)
    handle.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    end = time.monotonic() + 30
    while picture.get_attribute("src", timeout=30_000) == before:
        assert time.monotonic() < end, "the figure did not change"
        time.sleep(0.3)
