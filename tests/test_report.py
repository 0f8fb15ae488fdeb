"""The report of a run: every sentence comes from a table's row, and the page needs nothing but itself."""

import base64
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from nbformat.v4 import nbjson, new_code_cell, new_markdown_cell, new_notebook, new_output

from kdnb.claims import CLAIMS
from kdnb.errors import ArtefactError
from kdnb.report import ANSWERS, TABLES, answers, caveats, main, number, page, verdicts
from kdnb.runs import Run
from kdnb.settings import resolve

CLASSIFICATION = pd.DataFrame(
    {
        "model": ["teacher", "student_kd"],
        "seed": [0, 0],
        "n": [400, 400],
        "accuracy": [0.9625, 0.94],
        "accuracy_lo": [0.94, 0.91],
        "accuracy_hi": [0.98, 0.96],
        "parameters": [6_957_956, 1_573_000],
    }
)
TESTS = pd.DataFrame(
    {
        "question": ["Does T² matter?", "Does distillation help?"],
        "a": ["student_kd_t2", "student_kd"],
        "b": ["student_kd", "student_ce"],
        "metric": ["accuracy", "accuracy"],
        "difference": [0.01, 0.03],
        "lo": [-0.01, 0.01],
        "hi": [0.03, 0.05],
        "p": [0.3, 0.001],
        "p_holm": [0.3, 0.002],
        "n": [400, 400],
    }
)
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


@pytest.fixture
def folder(tmp_path):
    run = Run(resolve(run_dir=tmp_path), "10_report")
    run.record("run", {"dataset": "phantom", "profile": "smoke", "seed": 0, "split_protocol": "official"})
    machine = {"device": "cpu", "packages": {"torch": "2.14.1"}}
    run.record("environment", {"03_distillation": machine, "06_fidelity_benchmark": machine | {"device": "a GPU"}})
    run.save_table("classification", CLASSIFICATION)
    run.save_table("tests", TESTS)
    output = new_output("display_data", data={"image/png": PNG, "text/plain": 'A curve <that> "rises".'}, metadata={})
    book = new_notebook(cells=[new_markdown_cell("# 02 · Teacher"), new_code_cell("x", outputs=[output])])
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "02_teacher_training.ipynb").write_text(nbjson.writes(book))
    (tmp_path / "notebooks" / "03_distillation.failed.ipynb").write_text("{")
    return tmp_path


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.outside, self.anchors, self.targets = [], [], [], set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(named)
        self.outside += [
            value for name, value in attributes if name in ("src", "href") and not value.startswith(("data:", "#"))
        ]
        self.anchors.add(named.get("id"))
        self.targets.add(named.get("href", "#")[1:])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside(folder):
    assert main([str(folder)]) == 0
    text = (folder / "report.html").read_text()
    reader = Reader(text)
    assert reader.open == [] and reader.outside == []
    assert not re.search(r"url\(|@import|<script|<link", text)
    assert reader.targets - {""} <= reader.anchors


def test_pictures_come_with_their_alternative_and_failed_notebooks_not(folder):
    images = Reader(page(folder)).images
    assert [image["alt"] for image in images] == ['A curve <that> "rises".']
    assert images[0]["src"] == f"data:image/png;base64,{PNG}"


def test_three_figures_come_first_and_no_figure_twice(folder):
    alone = page(folder)
    assert "In 1 figure<" not in alone and alone.count(PNG) == 1, (
        "a figure whose name the run does not know is with the others"
    )
    run = Run(resolve(run_dir=folder), "03_distillation")
    path = folder / "figures" / "arms.png"
    path.parent.mkdir()
    path.write_bytes(base64.b64decode(PNG))
    run._sign(path)
    first = page(folder)
    assert first.count(PNG) == 1 and first.index("In 1 figure<") < first.index(PNG) < first.index("Caveats")


def test_the_first_page_says_question_answer_figures_and_caveats_and_folds_the_rest(folder):
    claims = {"claim": ["few_labels", "maps_over_shap", "new_images"], "statement": ["it <adds>", "cheaper", "holds"]}
    claims |= {
        "verdict": ["reproduced"] * 3,
        "measured": [7.8, 431.2, None],
        "lo": [3.3, 431.2, None],
        "hi": [12.4, 431.2, None],
    }
    table = pd.DataFrame(
        claims
        | {
            "unit": ["points", "ratio", "points"],
            "stated": ["after seeing data", "before any data", "before its numbers"],
        }
    )
    assert answers({"claims": table}) == [
        ("it <adds>", "reproduced", "+7.8 points [+3.3, +12.4]"),
        ("cheaper", "reproduced", "431 times"),
    ]
    Run(resolve(run_dir=folder), "10_report").save_table("claims", table)
    text = page(folder)
    order = [text.index(words) for words in ("be looked into", "it &lt;adds&gt;", "Caveats", "<details")]
    assert order == sorted(order) and text.count("<table") == 4
    assert text[: order[-1]].count("<table") == 1, "all tables but the answer's are folded"
    assert set(ANSWERS) <= set(CLAIMS)


def test_caveats_come_from_the_run(folder):
    shared = pd.DataFrame({"part": ["known", "new", "new minus known"], "n": [80, 20, 100], "model": "teacher"})
    stated = pd.DataFrame({"stated": ["before", "after seeing data"]})
    info = {"run": {"dataset": "phantom"}, "budget": {"03": {"image_size": 48}}, "teacher": {"weights": "scratch"}}
    text = " ".join(caveats({"known_and_new": shared, "claims": stated}, info))
    assert "generated" in text and "48 pixels" in text and "random weights" in text
    assert "Of 100 test images 80 show a person" in text and "Of 2 rules of verdicts 1 were" in text
    assert caveats({}, {}) == [caveats({}, info)[-1]] and "not a medical device" in caveats({}, {})[0]


def test_sentences_are_made_from_rows():
    sentences = verdicts({"classification": CLASSIFICATION, "tests": TESTS})
    assert (
        sentences["Accuracy"][0]
        == "teacher classifies 96.2% of 400 test images correctly (95% interval 94.0% to 98.0%)."
    )
    assert sentences["Comparisons"][0] == "Does T² matter: 0 of 1 comparisons show a difference."
    assert sentences["Comparisons"][1].startswith(
        "Does distillation help: 1 of 1 comparisons show a difference; the surest is student_kd against student_ce"
    )
    assert verdicts({}) == {}


def test_several_seeds_are_told_once_and_claims_with_their_verdict():
    seeds = pd.concat([CLASSIFICATION, CLASSIFICATION.assign(seed=1, accuracy=0.9)])
    claims = pd.DataFrame({"statement": ["The student keeps up"], "verdict": ["not reproduced"]})
    sentences = verdicts({"classification": seeds, "claims": claims})
    assert sentences["Claims of the paper and questions of ours"] == ["The student keeps up: not reproduced."]
    assert len(sentences["Accuracy"]) == 2 and sentences["Accuracy"][1] == (
        "student_kd classifies 92.0% of 400 test images correctly on average over 2 seeds "
        "(seed 0: 94.0%, 95% interval 91.0% to 96.0%)."
    ), "of seeds that differ the mean comes first, and the interval is said to be one seed's"


def test_a_fired_signature_is_told_with_its_advice():
    table = pd.DataFrame(
        {
            "signature": ["a", "b"],
            "value": [0.9, 0.1],
            "threshold": [0.5, 0.5],
            "fired": [True, False],
            "advice": ["do x.", "no"],
        }
    )
    assert verdicts({"diagnosis": table})["Failure signatures"] == ["Signature a fired (0.900, threshold 0.500): do x."]
    table["fired"] = False
    assert verdicts({"diagnosis": table})["Failure signatures"] == ["None of 2 failure signatures fired."]


def test_a_changed_table_is_refused(folder, capsys):
    with (folder / "results" / "tests.csv").open("a") as file:
        file.write("x\n")
    with pytest.raises(ArtefactError):
        page(folder)
    assert main([str(folder)]) == 2
    assert "tests.csv is not what a notebook of this run wrote" in capsys.readouterr().err
    (folder / "results" / "tests.csv").unlink()
    with pytest.raises(ArtefactError, match="tests.csv is missing: delete .*ipynb and run"):
        page(folder)
    assert not (folder / "report.html").exists()


def test_the_provenance_is_shown(folder):
    text = page(folder)
    assert "<dt>06_fidelity_benchmark</dt><dd>device a GPU</dd>" in text, "made elsewhere, and says so"
    assert "torch 2.14.1" in text and "Data set phantom, profile smoke, seed 0, split official." in text
    run = Run(resolve(run_dir=folder), "02_teacher_training")
    run.record("data", {"persons": "no persons found"})
    run.record("networks", {"teacher": "resnet18", "student": "plain"})
    assert "Teacher: resnet18. Student: plain. Whose images they are: no persons found." in page(folder)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (6_957_956, "6\u202f957\u202f956"),
        (0.96251, "0.963"),
        (float("nan"), "–"),
        (1e-5, "1e-05"),
        (0, "0"),
        (True, "True"),
        ("a<b", "a<b"),
    ],
)
def test_numbers_are_readable(value, shown):
    assert number(value) == shown


def test_an_empty_run_gives_a_page(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"run": {"dataset": "phantom"}}))
    assert Reader(page(tmp_path)).open == []


def test_every_table_of_the_page_is_written_by_a_notebook(repository):
    cells = [
        cell
        for path in (repository / "notebooks").glob("*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]
    written = {name for cell in cells for name in re.findall(r'save_table\(\s*"(\w+)"', "".join(cell["source"]))}
    assert set(TABLES) <= written
