"""The page that plays: its numbers are PyTorch's, its drawings the phantom's,
and no network is ever asked for anything.

Node and Chromium run its scripts; where one is not installed, the tests that need it are skipped.
"""

import base64
import dataclasses
import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect
from test_book import built, executed_notebook

from kdnb import models, playing, runs
from kdnb.book import write_sources
from kdnb.datasets import load, phantom, to_tensor
from kdnb.datasets.reading import fit
from kdnb.errors import ArtefactError
from kdnb.evaluation import predict

SIZE = 48
SCRIPTS = Path(playing.__file__).parent
node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node is installed (Debian: apt-get install nodejs)")


def used(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """A network whose normalisations have seen something, with factors of both signs, as if it had been trained."""
    drawn = torch.Generator().manual_seed(seed)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.5, generator=drawn)
        norm.running_var.uniform_(0.5, 2, generator=drawn)
        with torch.no_grad():
            norm.weight.normal_(0.5, 1, generator=drawn)
            norm.bias.normal_(0, 0.5, generator=drawn)
    return network.eval()


@pytest.fixture(scope="module")
def players():
    data = load("phantom", SIZE, phantom_images=480)
    students = {
        name: used(models.initialised(models.student, shape, 4, (6, 8, 8, 10, 12), seed=seed), seed)
        for seed, (name, shape) in enumerate({"student_kd_t2": "plain", "student_transparent": "transparent"}.items())
    }
    teacher = used(models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=2), 2)
    return playing.Players(students, teacher, data, 7.0, "phantom, profile smoke, seed 0")


@pytest.fixture(scope="module")
def made(players):
    return playing.contents(players)


def said_by_node(script: str, question, answer: str):
    """What JavaScript makes of ``question`` once a script of the page is loaded."""
    code = f'{(SCRIPTS / script).read_text()}\nconst q = JSON.parse(require("fs").readFileSync(0, "utf8"));'
    code += f"\nconsole.log(JSON.stringify({answer}));"
    done = subprocess.run(["node", "-e", code], input=json.dumps(question), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- what it computes -----------------------------------------------------------------------------------------------


@node
def test_logits_maps_and_evidence_are_pytorchs(players, made, tmp_path):
    answers = playing.by_node(made)
    assert len(answers) == 2 and len(answers[0]) == 4 * playing.PER_CLASS
    assert 0 < playing.largest_difference(answers, players) <= playing.TOLERANCE
    assert playing.write(players, tmp_path / "page.html") == playing.largest_difference(answers, players)


@node
@pytest.mark.parametrize("size", [32, 44, 64])  # 44 halves to an odd number of cells
def test_other_sizes_and_colours_are_computed_alike(players, size):
    data = players.data
    images = np.random.default_rng(0).integers(0, 256, (len(data), size, size, 3)).astype(np.uint8)
    coloured = dataclasses.replace(players, data=dataclasses.replace(data, images=images))
    assert playing.largest_difference(playing.by_node(playing.contents(coloured)), coloured) <= playing.TOLERANCE


@node
def test_a_page_that_computes_otherwise_is_not_written(players, tmp_path, monkeypatch):
    right = playing.packed

    def wrong(student):
        other = models.initialised(models.student, "plain", 4, (6, 8, 8, 10, 12), seed=9).eval()
        return right(other) if student is players.students["student_kd_t2"] else right(student)

    monkeypatch.setattr(playing, "packed", wrong)
    with pytest.raises(ArtefactError, match="differ from PyTorch's by"):
        playing.write(players, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_numbers_that_are_missing_or_no_numbers_are_differences(players, made):
    images = 4 * playing.PER_CLASS
    nothing = {"logits": [0.0] * 4, "maps": [[0.0]] * 5, "evidence": [[0.0]] * 4}
    with pytest.raises(ArtefactError, match="answers"):
        playing.largest_difference([[nothing] * images] * 2, players)
    assert playing._apart(torch.tensor([torch.nan, 0.0]).double(), torch.zeros(2).double()) == float("inf")


def test_without_node_the_page_is_written_and_nobody_has_checked_it(players, tmp_path, monkeypatch):
    monkeypatch.setattr(playing.shutil, "which", lambda name: None)
    assert playing.write(players, tmp_path / "page.html") is None
    assert (tmp_path / "page.html").stat().st_size > 50_000


def test_the_network_is_computed_in_at_most_200_lines():
    assert len((SCRIPTS / "network.js").read_text().splitlines()) <= 200


# -- what it draws and reads ----------------------------------------------------------------------------------------


@node
@pytest.mark.parametrize("scanner", [False, True])
def test_the_same_numbers_give_the_phantoms_grey_values(made, monkeypatch, scanner):
    latent = phantom._draw_lesions(playing.HEADS_SEED, 0)
    monkeypatch.setattr(phantom, "NOISE", 1e-9)
    planes, _ = phantom._render(latent, SIZE, "drawn", made["drawing"]["contrast"] / 1e-9, True, offset=0)
    rows = range(0, playing.HEADS * phantom.DRAWN_PER_SUBJECT, phantom.DRAWN_PER_SUBJECT)
    wanted = phantom._bytes(planes)[list(rows)].astype(int)
    if scanner:
        fade = (np.float32(1.4) - np.arange(SIZE, dtype=np.float32) / np.float32(SIZE - 1))[:, None]
        wanted = np.minimum(wanted * fade + np.float32(0.5), 255).astype(int)
    lesions = [
        {name: float(latent[name][row][3]) for name in ("angle", "distance", "radius", "aspect")}
        | {"irregular": float(latent["irregular"][row]), "strength": float(latent["strength"][row])}
        for row in rows
    ]
    options = {
        "size": SIZE,
        "contrast": made["drawing"]["contrast"],
        "noise": 0,
        "seed": 1,
        "discs": True,
        "scanner": scanner,
    }
    drawn = "Phantom.draw(head, q.lesions[k], {...q.options, strength: q.lesions[k].strength})"
    answer = f"q.heads.map((head, k) => Array.from({drawn}))"
    drawn_values = said_by_node(
        "phantom.js", {"heads": made["drawing"]["heads"], "lesions": lesions, "options": options}, answer
    )
    apart = np.abs(np.array(drawn_values).reshape(wanted.shape) - wanted)
    assert wanted.std() > 20 and apart.max() <= 1 and (apart > 0).mean() < 0.01


@node
def test_noise_has_its_standard_deviation_and_comes_again():
    first, same_seed, other_seed = said_by_node(
        "phantom.js", [1, 1, 2], "q.map((seed) => Array.from(Phantom.noise(seed, 20000)))"
    )
    assert first == same_seed and abs(np.corrcoef(first, other_seed)[0, 1]) < 0.03
    assert abs(np.mean(first)) < 0.03 and abs(np.std(first) - 1) < 0.03


@node
def test_the_truth_is_the_generators(made):
    cases = [
        (s, w, outer, scanner)
        for s in (0, 0.3, 1)
        for w in (0, 0.4, 1)
        for outer in (1, 2)
        for scanner in (False, True)
    ]
    rates = np.array(made["drawing"]["scanner"])
    posterior = said_by_node(
        "phantom.js", {"cases": cases, "rates": rates.tolist()}, "q.cases.map((one) => Phantom.truth(...one, q.rates))"
    )
    for (strength, way, outer, scanner), chances in zip(cases, posterior, strict=True):
        plain = phantom.posterior(np.array([strength]), np.array([way]), np.array([outer + 1]))
        assert np.allclose(chances, phantom.updated(plain, (rates if scanner else 1 - rates)[None])[0])


@node
@pytest.mark.parametrize("width, height", [(SIZE, SIZE), (100, 61), (20, 31), (301, 200), (96, 33)])
def test_images_are_fitted_as_the_study_fits_them(width, height):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    opaque = np.dstack([pixels, np.full((height, width), 255)])
    question = {"rgba": opaque.flatten().tolist(), "width": width, "height": height}
    fitted = said_by_node("phantom.js", question, f"Array.from(Reading.fitted(q.rgba, q.width, q.height, {SIZE}))")
    apart = np.abs(
        np.array(fitted).reshape(3, SIZE, SIZE).transpose(1, 2, 0) - fit(Image.fromarray(pixels), SIZE).astype(int)
    )
    assert apart.max() <= 1 and (apart > 0).mean() < 0.02


# -- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(players, tmp_path_factory):
    path = tmp_path_factory.mktemp("site") / "playing.html"
    playing.write(players, path)
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    """The page as read from a folder, with what went wrong on it and every request that was made."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.faults, page.requests = [], []
    page.on(
        "console", lambda message: page.faults.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(address)
    yield page
    assert page.faults == [] and page.requests == [address]
    context.close()


def table(page, name: str) -> dict[str, list[float]]:
    """The numbers of a table, by the names of its rows."""
    rows = page.eval_on_selector_all(
        f"#{name} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
    )
    return {row[0]: [float(cell.strip().rstrip("%").replace("−", "-")) for cell in row[1:]] for row in rows}


def drop(page, name: str, content: bytes, kind: str) -> None:
    script = """([name, kind, content]) => {
      const files = new DataTransfer();
      files.items.add(new File([Uint8Array.from(atob(content), letter => letter.charCodeAt(0))], name, { type: kind }));
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(script, [name, kind, base64.b64encode(content).decode()])


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_browsers_numbers_are_pytorchs(page, players):
    answers = page.evaluate("Student.answers(JSON.parse(document.getElementById('data').textContent))")
    assert playing.largest_difference(answers, players) <= playing.TOLERANCE
    assert page.inner_text("#checked").startswith("Checked in this browser: largest difference")


def test_a_page_whose_weights_were_changed_says_that_it_is_wrong(browser, made, tmp_path):
    changed = json.loads(json.dumps(made))
    changed["students"][0]["logits"][3][2] += 0.01
    (tmp_path / "page.html").write_text(playing.page(changed))
    page, faults = browser.new_page(), []
    page.on("console", lambda message: faults.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.inner_text("#checked").startswith("This browser computes wrongly") and len(faults) == 1
    page.close()


def test_what_is_shown_is_the_answer(page, players, made):
    images = players.data.images[playing.shown(players.data)]
    for student, network in enumerate(players.students.values()):
        page.check(f"[name=student][value='{student}']")
        for at in (0, 7):
            page.click(f"[name=stored][value='{at}']", force=True)
            logits = predict(network, images[at : at + 1])[0]
            for label, (bias, speaks_for, against, total, logit) in enumerate(table(page, "sum").values()):
                assert logit == total == pytest.approx(logits[label], abs=6e-4)
                assert bias + speaks_for + against == pytest.approx(total, abs=2e-3) and speaks_for >= 0 >= against
            temperature = float(page.input_value("#temperature"))
            assert temperature == players.temperature
            softened = torch.tensor(made["images"][at]["teacher"]).div(temperature).softmax(0)
            wanted = zip(torch.tensor(logits).softmax(0), softened, made["images"][at]["truth"], strict=True)
            for shown, chances in zip(table(page, "probabilities").values(), wanted, strict=True):
                assert shown == pytest.approx([100 * float(chance) for chance in chances], abs=0.06)
            assert page.locator("#maps canvas").count() == 5 and page.locator("#evidence canvas").count() == 4


def test_temperature_softens_the_teacher_of_stored_images_and_the_student_of_others(page, made):
    page.fill("#temperature", "20")
    at = int(page.input_value("[name=stored]:checked"))
    softened = torch.tensor(made["images"][at]["teacher"]).div(20).softmax(0)
    assert [row[1] for row in table(page, "probabilities").values()] == pytest.approx(
        (100 * softened).tolist(), abs=0.06
    )
    assert "Teacher at T = 20" in page.inner_text("#probabilities") and "which this page has stored" in page.inner_text(
        "#softened"
    )
    page.fill("#strength", "0.4")
    logits = torch.tensor([row[-1] for row in table(page, "sum").values()])
    shown = [row[1] for row in table(page, "probabilities").values()]
    assert shown == pytest.approx((100 * logits.div(20).softmax(0)).tolist(), abs=0.06)
    assert "Teacher" not in page.inner_text("#probabilities") and "student's own logits" in page.inner_text("#softened")


def test_a_drawn_lesion_changes_image_answer_and_truth(page):
    seen = set()
    steps = [("#strength", "0"), ("#strength", "1"), ("#way", "0"), ("#way", "0.5"), ("#noise", "0.1")]
    picture = "document.getElementById('image').toDataURL()"
    for where, value in steps:
        page.fill(where, value)
        seen.add((page.evaluate(picture), page.inner_text("#about")))
    page.check("[name=outer][value='2']")
    seen.add((page.evaluate(picture), page.inner_text("#about")))
    assert len({image for image, _ in seen}) == len({words for _, words in seen}) == 6
    for where in ("#discs", "#scanner", "#head", "#grain"):
        page.click(where)
        seen.add((page.evaluate(picture), ""))
    assert len({image for image, _ in seen}) == 10
    page.fill("#strength", "0")
    assert table(page, "probabilities")["none"][2] == 100.0
    assert page.locator("[name=stored]:checked").count() == 0, "no stored image is what is shown"


def test_a_dropped_image_is_answered_and_goes_nowhere(page, players):
    pixels = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    drop(page, "mine.png", png(pixels), "image/png")
    expect(page.locator("#about")).to_contain_text("Your image mine.png, 48 × 48 pixels")
    logits = predict(players.students["student_kd_t2"], pixels[None])[0]
    assert [row[-1] for row in table(page, "sum").values()] == pytest.approx(logits.tolist(), abs=6e-4)
    assert len(next(iter(table(page, "probabilities").values()))) == 2, "nobody knows the truth of it"
    page.set_input_files(
        "#file", {"name": "larger.png", "mimeType": "image/png", "buffer": png(np.repeat(pixels, 3, axis=1))}
    )
    expect(page.locator("#about")).to_contain_text("Your image larger.png, 144 × 48 pixels")


def test_transparent_places_are_black_and_what_is_no_image_is_named(page):
    drop(page, "clear.png", png(np.full((SIZE, SIZE, 4), (255, 255, 255, 0), np.uint8)), "image/png")
    expect(page.locator("#about")).to_contain_text("clear.png")
    assert page.evaluate("document.getElementById('image').getContext('2d').getImageData(20, 20, 1, 1).data[0]") == 0
    drop(page, "notes.txt", b"no image", "text/plain")
    expect(page.locator("#fault")).to_have_text("notes.txt is not an image that this browser can read.")
    assert "clear.png" in page.inner_text("#about")


def test_served_it_asks_for_itself_alone_and_its_policy_lets_no_script_ask_for_more(browser, address):
    asked_for = []

    class Server(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked_for.append(self.path)

    folder = Path(address.removeprefix("file://")).parent
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, refused = browser.new_page(), []
        page.on("console", lambda message: refused.append(message.text))
        page.goto(f"http://127.0.0.1:{server.server_port}/playing.html")
        assert page.inner_text("#checked").startswith("Checked") and refused == []
        tries = """async () => {
          const picture = Object.assign(new Image(), { src: "/b.png" });
          const seen = new Promise(done => {
            Object.assign(picture, { onload: () => done("came"), onerror: () => done("refused") });
          });
          const fetched = ["/a", location.href].map(url => fetch(url).then(() => "came", () => "refused"));
          navigator.sendBeacon("/c", "pixels");
          const script = Object.assign(document.createElement("script"), { textContent: "window.foreign = true" });
          document.head.append(script);
          document.body.append(Object.assign(document.createElement("iframe"), { src: "/d" }));
          document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: "/e.css" }));
          return [await seen, ...await Promise.all(fetched), String(window.foreign)];
        }"""
        assert page.evaluate(tries) == ["refused"] * 3 + ["undefined"]
        for _ in range(200):  # ten seconds at most
            if len([text for text in refused if "Content Security Policy" in text]) >= 6:
                break
            page.wait_for_timeout(50)
        else:
            pytest.fail(f"the policy refused too little: {refused}")
        page.close()
        server.shutdown()
    assert asked_for == ["/playing.html"]


def test_the_page_names_no_host(address):
    text = Path(address.removeprefix("file://")).read_text()
    assert not [part for part in ("http://", "https://", 'src="', "import(", "@import") if part in text]


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_width_and_all_of_it_has_names(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pictures = page.eval_on_selector_all(
        "canvas:not([aria-hidden])", "all => all.map(one => [one.getAttribute('role'), one.ariaLabel])"
    )
    assert len(pictures) == 1 + 5 + 4 and all(role == "img" and words for role, words in pictures)
    name = "one.ariaLabel || one.textContent.trim() || [...one.labels].map(label => label.textContent.trim()).join()"
    assert all(page.eval_on_selector_all("input, button", f"all => all.map(one => {name})"))
    heights = page.eval_on_selector_all("label, button", "all => all.map(one => one.getBoundingClientRect().height)")
    assert min(heights) >= 40, "too low to be touched"


def test_everything_works_from_the_keyboard(page):
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stops.append(
            page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
        if stops[-1] == "BODY":
            break
    for wanted in (
        "student",
        "stored",
        "strength",
        "outer",
        "way",
        "noise",
        "discs",
        "scanner",
        "head",
        "grain",
        "file",
        "temperature",
    ):
        assert wanted in stops, f"{wanted} is not reached"
    for where, key in (
        ("[name=student]", "ArrowRight"),
        ("[name=stored]:checked", "ArrowRight"),
        ("#strength", "Home"),
        ("#head", "Enter"),
    ):
        before = page.evaluate("document.getElementById('answer').innerHTML")
        page.focus(where)
        page.keyboard.press(key)
        assert page.evaluate("document.getElementById('answer').innerHTML") != before, where
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid" or where.startswith("[name=stored]"), f"{where} shows no focus"


@pytest.mark.parametrize("wish, moves", [("reduce", False), ("no-preference", True)])
def test_nothing_moves_for_readers_who_do_not_want_it(browser, address, wish, moves):
    context = browser.new_context(reduced_motion=wish)
    page = context.new_page()
    page.goto(address)
    seconds = page.evaluate("getComputedStyle(document.querySelector('.bar')).transitionDuration")
    assert (float(seconds.rstrip("s")) > 0) == moves
    context.close()


def test_images_that_nobody_draws_leave_the_drawing_out(browser, players, tmp_path):
    data = dataclasses.replace(
        players.data, name="folder:scans", posterior=None, classes=("a </script><b>", "b", "c", "d")
    )
    playing.write(dataclasses.replace(players, data=data), tmp_path / "page.html")
    page, faults = browser.new_page(), []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("#draw").count() == 0 and "Truth" not in page.inner_text("#probabilities") and faults == []
    assert "a </script><b>" in table(page, "probabilities")
    page.close()


# -- where it comes from --------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run that stored a teacher and two students, and executed a chapter."""
    run = runs.start("03_distillation", profile="smoke", run_dir=str(tmp_path / "phantom-smoke-seed0"))
    run.save_model("teacher", models.initialised(models.densenet121_teacher, 4, seed=0), "key")
    run.record("teacher", {"head": "plain", "key": "key"})
    for name, shape in {"student_kd_t2": "plain", "student_transparent": "transparent"}.items():
        run.save_model(name, models.initialised(models.student, shape, 4, run.budget.student_widths, seed=1), "key")
        run.record("students", {name: f"kd_t2-a0.4-t5-{shape}-s0"})
    (run.folder / "notebooks").mkdir()
    executed_notebook(run.folder / "notebooks")
    return run


def test_the_book_of_a_run_has_its_chapters_with_alternatives_and_among_them_the_page_of_its_students(run):
    book = built(run.folder)
    index = (book / "index.html").read_text()
    assert 'href="playing.html"' in index and "00_start_here.html" in index
    chapter = (book / "00_start_here.html").read_text()
    assert 'alt="A rising line."' in chapter and "<math" in chapter
    html = (book / "playing.html").read_text()
    assert "Content-Security-Policy" in html and 'href="index.html"' in html
    assert playing.TITLE in (book / "searchindex.js").read_text()
    made = json.loads(re.search(r'id="data">(.*)</script>', html)[1])
    assert made["run"] == "phantom, profile smoke, seed 0" and made["size"] == 32 and made["temperature"] == 5
    assert [student["layers"][3]["kernel"] for student in made["students"]] == [3, 1]


def test_without_students_of_the_studys_own_shapes_a_book_has_no_such_page(run, tmp_path):
    write_sources(run.folder / "notebooks", tmp_path / "source")
    assert (
        not (tmp_path / "source" / "playing.md").exists()
        and "playing" not in (tmp_path / "source" / "index.md").read_text()
    )
    assert playing.of_run(tmp_path) is None and playing.of_record(tmp_path) is None
    run.record("networks", {"student": "layered"})
    run.save_model(
        "student_kd_t2", models.initialised(models.student, "layered", 4, run.budget.student_widths, seed=1), "key"
    )
    assert list(playing.of_run(run.folder).students) == ["student_transparent"]


def test_images_of_the_page_are_spread_over_the_test_set(players):
    data, where = players.data, playing.shown(players.data)
    assert (data.split[where] == "test").all() and len(set(data.groups[where])) == len(where)
    assert np.bincount(data.labels[where]).tolist() == [playing.PER_CLASS] * 4
    packed = playing.contents(players)["images"][5]["pixels"]
    assert np.array_equal(
        np.frombuffer(base64.b64decode(packed), np.uint8).reshape(SIZE, SIZE), data.images[where[5], :, :, 0]
    )
    assert to_tensor(data.images[where]).shape == (16, 3, SIZE, SIZE)
