"""README, FINDINGS.md and their figure: exactly what the recorded runs say,
in words that no other record could make false."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from records import record_folder

from kdnb import findings
from kdnb.claims import FAILS, HOLDS, NO_EFFECT, UNDECIDED
from kdnb.measured import answer, in_brief, readme_table

CLAIMS = ["student_against_teacher", "distillation_adds", "few_labels", "knowledge", "maps_over_controls"]


@pytest.fixture
def records(tmp_path):
    """A folder of records, and a function that adds a run to it."""

    def add(dataset="brain_tumor", split="official", accuracy=0.9, verdict=HOLDS, measured=0.05):
        provenance = {"teacher": {"weights": "scratch"}, "budget": {"image_size": 64}}
        folder = record_folder(tmp_path, dataset, split, **provenance)
        scores = {"model": ["teacher", "student_kd", "student_ce"], "n": 100, "accuracy": accuracy}
        scores |= {"accuracy_lo": accuracy - 0.05, "accuracy_hi": accuracy + 0.05, "f1_macro": accuracy}
        pd.DataFrame(scores).to_csv(folder / "classification.csv", index=False)
        judged = {
            "claim": CLAIMS,
            "verdict": verdict,
            "measured": measured,
            "lo": measured - 0.02,
            "hi": measured + 0.02,
        }
        pd.DataFrame(judged).to_csv(folder / "claims.csv", index=False)
        return folder

    add.folder = tmp_path
    return add


def test_readme_and_findings_show_exactly_what_is_recorded():
    readme, page = findings.README.read_text(encoding="utf-8"), findings.PAGE.read_text(encoding="utf-8")
    assert findings.readme_now(readme) == readme and findings.page_now(page) == page, (
        "python -m kdnb.findings writes them"
    )
    assert findings.findings() in readme and findings.caveats() in readme and findings.limits() in page
    assert in_brief() in page and answer() in page and readme_table() in page


def test_the_figure_is_of_the_recorded_numbers_and_drawn_alike(tmp_path):
    findings.draw(tmp_path / "again.png")
    with Image.open(findings.PICTURE) as committed, Image.open(tmp_path / "again.png") as redrawn:
        assert committed.text["Description"] == findings.drawn_from(), "python -m kdnb.findings draws it anew"
        assert committed.size == redrawn.size
        apart = np.abs(np.asarray(committed.convert("L"), float) - np.asarray(redrawn.convert("L"), float))
    assert apart.mean() < 1.0, "fonts may differ by a pixel between machines, panels not"


def test_the_readme_s_findings_are_few_and_short():
    lines = findings.findings().splitlines()
    assert len(lines) == 6
    for line in lines:
        bold = re.findall(r"\*\*(.+?)\*\*", line)
        assert len(line.split()) <= 120 and [bool(re.search(r"\d", words)) for words in bold] == [False, True], (
            "a question, a number"
        )


def test_the_picture_changes_with_the_numbers(records):
    folder = records("brain_tumor", accuracy=0.9)
    records("brain_tumor", "leak_free", accuracy=0.7)
    before = findings.drawn_from(records.folder)
    scores = pd.read_csv(folder / "classification.csv").assign(accuracy=0.8)
    scores.to_csv(folder / "classification.csv", index=False)
    assert findings.drawn_from(records.folder) != before


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ((HOLDS, HOLDS), "real 2 of 2"),
        ((HOLDS, HOLDS, UNDECIDED), "real 2 of 3"),
        ((FAILS, NO_EFFECT, UNDECIDED), "real 0 of 3 (1 against, 1 no effect)"),
        ((HOLDS, FAILS, HOLDS, FAILS), "real 2 of 3 (1 against), generated no"),
    ],
)
def test_an_answer_counts_real_data_sets_and_names_the_generated_apart(records, verdicts, said):
    for dataset, verdict in zip(("alzheimer", "brain_tumor", "eye_disease", "phantom"), verdicts, strict=False):
        records(dataset, verdict=verdict)
    assert f"At most a point behind its teacher: {said}." in findings.findings(records.folder)


def test_accuracies_without_leaks_stand_beside_the_published_ones_the_widest_gap_first(records):
    for dataset, after in (("alzheimer", 0.85), ("brain_tumor", 0.6)):
        records(dataset, accuracy=0.9)
        records(dataset, "leak_free", accuracy=after)
    records("eye_disease", accuracy=0.9)
    text = findings.findings(records.folder)
    assert (
        "is **0.600** [0.550, 0.650] instead of 0.900 on brain MRI; "
        "0.850 [0.800, 0.900] instead of 0.900 on Alzheimer MRI."
    ) in text
    assert set(findings.leaks(records.folder)["dataset"]) == {"alzheimer", "brain_tumor"}


@pytest.mark.parametrize(("after", "said"), [(0.54, True), (0.56, False)])  # intervals from .49 and from .51
def test_an_accuracy_that_is_no_better_than_the_commonest_class_says_so(records, after, said):
    records("alzheimer", accuracy=0.9)
    folder = records("alzheimer", "leak_free", accuracy=after)
    per_class = pd.DataFrame({"model": ["teacher", "teacher", "student_kd", "student_kd"], "class": ["a", "b"] * 2})
    per_class.assign(n=[50, 50] * 2).to_csv(folder / "per_class.csv", index=False)
    text = findings.findings(records.folder)
    assert ("instead of 0.900 on Alzheimer MRI (always naming the commonest class: 0.500)." in text) == said


def test_what_is_knowledge_is_told_of_the_runs_that_asked(records):
    records("brain_tumor", measured=np.nan)
    assert "know nothing of the image: not yet asked." in findings.findings(records.folder)
    records("eye_disease", measured=0.05)
    assert "know nothing of the image: **+5.0 points** [+3.0, +7.0] on eye disease: real 2 of 2." in findings.findings(
        records.folder
    )
    records("alzheimer", measured=0.04)
    assert " over 2 real sets: real 3 of 3." in findings.findings(records.folder)


def test_the_best_layer_and_the_best_control_are_shown_beside_the_rest(records):
    folder = records("phantom")
    methods = [
        "feature_maps_layer1",
        "feature_maps_layer2",
        "feature_maps_mean",
        "grad_cam",
        "shap",
        "centre",
        "random",
    ]
    rows = {
        "class": "all",
        "model": "student_kd",
        "method": methods,
        "metric": "pointing_game",
        "lo": 0.0,
        "hi": 1.0,
        "n": 40,
    }
    pd.DataFrame(rows | {"mean": [0.1, 0.8, 0.5, 0.2, 0.9, 0.3, 0.01]}).to_csv(
        folder / "localisation_summary.csv", index=False
    )
    timed = {
        "method": ["shap", "grad_cam"],
        "model": "student_kd",
        "batch_size": 32,
        "forward_equivalents": [1000.0, 2.0],
    }
    pd.DataFrame(timed).to_csv(folder / "met.csv", index=False)
    marks = findings.marks(records.folder)
    assert marks["name"].tolist() == [
        "SHAP",
        "average map, layer 2",
        "average map, all layers",
        "centre (control)",
        "Grad-CAM",
    ]
    sentence = (
        "SHAP in **90%** of images (1,000.0 forward passes); average map, all layers in 50%; "
        "centre (control) in 30%; Grad-CAM in 20% (2.0)."
    )
    assert sentence in findings.findings(records.folder)


def test_where_nothing_is_recorded_the_readme_says_so(tmp_path):
    assert findings.findings(tmp_path) == findings.caveats(tmp_path) == findings.NOTHING


def test_limits_say_who_is_not_known_and_what_a_record_lacks(records):
    assert "whose 258 meningioma and 15 pituitary images of brain MRI are" in findings.limits(records.folder)
    folder = records("brain_tumor", accuracy=0.9)
    known = json.loads((folder / "provenance.json").read_text())
    budget = {"student_widths": [8, 16, 32], "student_epochs": 7}
    (folder / "provenance.json").write_text(json.dumps(known | {"budget": budget}))
    pd.DataFrame({"claim": ["teaching_explains"], "verdict": UNDECIDED, "unit": "points"}).to_csv(
        folder / "claims.csv", index=False
    )
    told = findings.limits(records.folder)
    assert "reaches 0.900, the paper's 0.975: to be quick, profile `cpu` gives it 8 to 32 filters" in told
    assert "7 epochs" in told and f"The records `{folder.name}` do not keep" in told


def test_recording_needs_a_run(capsys):
    assert findings.main([""]) == 2 and "RUN is empty" in capsys.readouterr().err


def test_an_older_measure_of_faithfulness_is_named_while_a_record_has_it(records):
    folder = records("brain_tumor")
    summary = pd.DataFrame({"method": ["sobel"], "metric": "agreement_30", "mean": 0.9})
    summary.to_csv(folder / "fidelity_summary.csv", index=False)
    assert "In 1 of the runs faithfulness was judged by an older measure" in findings.caveats(records.folder)
    pd.concat([summary, summary.assign(metric="recovered_10")]).to_csv(folder / "fidelity_summary.csv", index=False)
    assert "older measure" not in findings.caveats(records.folder)


def test_the_share_of_the_method_in_how_much_faster_maps_are_is_told_apart_from_the_models(records):
    folder = records("brain_tumor")
    timed = {
        "method": ["shap", "feature_maps_mean"] * 2,
        "model": ["student_kd"] * 2 + ["teacher"] * 2,
        "batch_size": 32,
    }
    pd.DataFrame(timed | {"ms_per_image_median": [50.0, 0.5, 500.0, 2.0]}).to_csv(folder / "met.csv", index=False)
    assert "(both on the student, so that the method alone counts: 100 times)" in in_brief(records.folder)
