"""A run's folder: what is written is whole, what is read is what was written, and everything else is refused."""

import json
import os
import resource
import stat
import threading

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import kdnb.runs
from kdnb.errors import ArtefactError, ParameterError, StorageError
from kdnb.files import atomic_folder, atomic_write
from kdnb.provenance import content_key, source_key
from kdnb.runs import Run
from kdnb.settings import resolve


@pytest.fixture
def run(tmp_path):
    return Run(resolve(run_dir=tmp_path / "run"), "01_data_prep")


@pytest.fixture
def started(tmp_path):
    return kdnb.runs.start("01_data_prep", run_dir=tmp_path / "run", profile="smoke")


TABLE = pd.DataFrame({"class": ["none", "edge"], "n": [3, 4], "value": [0.1, 1 / 3]})


def test_a_table_comes_back_as_it_went(run):
    run.save_table("audit", TABLE)
    pd.testing.assert_frame_equal(run.load_table("audit"), TABLE, rtol=1e-7)
    assert run.has_table("audit") and not run.has_table("other")


def test_a_dropped_table_is_gone_and_others_stay(run):
    run.save_table("audit", TABLE), run.save_table("other", TABLE)
    run.drop_table("audit"), run.drop_table("never")
    assert not run.has_table("audit") and run.has_table("other") and not (run.folder / "results" / "audit.csv").exists()
    with pytest.raises(ArtefactError, match="is not in"):
        run.load_table("audit")


def test_a_class_called_none_is_no_missing_value(run):
    run.save_table("audit", TABLE)
    assert run.load_table("audit")["class"].tolist() == ["none", "edge"]


def test_equal_tables_are_equal_bytes(run):
    run.save_table("a", TABLE)
    run.save_table("b", TABLE.copy())
    assert (run.folder / "results/a.csv").read_bytes() == (run.folder / "results/b.csv").read_bytes()


def test_a_table_changed_by_another_hand_is_refused(run):
    run.save_table("audit", TABLE)
    with (run.folder / "results/audit.csv").open("a") as file:
        file.write("edge,9,9\n")
    with pytest.raises(
        ArtefactError, match="not the file that 01_data_prep wrote: delete .*/notebooks/01_data_prep.ipynb and run"
    ):
        run.load_table("audit")
    (run.folder / "results/audit.csv").unlink()
    with pytest.raises(ArtefactError, match="audit.csv is missing: delete .*/notebooks/01_data_prep.ipynb and run"):
        run.load_table("audit")


def test_a_missing_table_says_what_to_run(run):
    with pytest.raises(ArtefactError, match="make reproduce"):
        run.load_table("audit")


def test_a_failing_block_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.csv"]


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device.*free space"), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.csv"]


def test_a_model_that_finds_no_space_is_a_sentence_too_and_the_old_one_stays(run):
    run.save_model("student", torch.nn.Linear(40, 40), key="old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match="File too large.*free space"):
            run.save_model("student", torch.nn.Linear(40, 40), key="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run.has_model("student", "old") and os.listdir(run.folder / "models") == ["student.safetensors"]


def test_a_path_that_cannot_be_a_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="could not be written"), atomic_write(tmp_path / "file" / "x.csv"):
        pass


def test_a_folder_appears_whole(tmp_path):
    with atomic_folder(tmp_path / "deep" / "set") as temporary:
        (temporary / "x").write_text("x")
        assert not (tmp_path / "deep" / "set").exists()
    assert (tmp_path / "deep" / "set" / "x").read_text() == "x" and os.listdir(tmp_path / "deep") == ["set"]
    assert stat.S_IMODE((tmp_path / "deep" / "set").stat().st_mode) == 0o755


def test_a_failing_block_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "set") as temporary:
        (temporary / "half").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("mine")
    with (
        pytest.raises(StorageError, match="set could not be written .*not empty"),
        atomic_folder(tmp_path / "set") as temporary,
    ):
        (temporary / "x").write_text("x")
    assert os.listdir(tmp_path) == ["set"] and os.listdir(tmp_path / "set") == ["mine"]


def test_written_files_can_be_read_by_others(run):
    run.save_table("audit", TABLE)
    assert stat.S_IMODE((run.folder / "results/audit.csv").stat().st_mode) == 0o644


def test_two_notebooks_may_record_at_once(tmp_path):
    def write(number):
        run = Run(resolve(run_dir=tmp_path / "run"), f"notebook {number}")
        for step in range(10):
            run.record("section", {f"{number}-{step}": step})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["section"]) == 40


def test_damaged_run_json_is_refused_in_one_sentence(run):
    run.record("run", {"seed": 0})
    (run.folder / "run.json").write_text('{"run": ')
    with pytest.raises(ArtefactError, match="not valid JSON"):
        run.info()


def test_run_json_tells_where_the_numbers_come_from(started):
    info = started.info()
    assert info["run"] == {"dataset": "phantom", "profile": "smoke", "seed": 0, "split_protocol": "official"}
    where = info["environment"]["01_data_prep"]
    assert set(where) >= {"python", "packages", "device", "cpu", "threads", "commit"}
    assert where["packages"]["torch"] == torch.__version__.split("+")[0]
    assert info["budget"]["01_data_prep"]["image_size"] == 32


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1), ("profile", "quick"), ("dataset", "phantom:volume"), ("split_protocol", "leak_free")],
)
def test_a_folder_that_holds_another_run_is_refused(started, name, value):
    before = started.info()
    with pytest.raises(
        ArtefactError, match=f"holds a run whose {name} is .*, not {value!r}: delete it or use another folder"
    ):
        kdnb.runs.start("02_teacher_training", **({"run_dir": started.folder, "profile": "smoke"} | {name: value}))
    assert started.info() == before
    kdnb.runs.start("02_teacher_training", run_dir=started.folder, profile="smoke", image_size=64)


def test_a_model_comes_back_only_with_its_own_key(run):
    model = torch.nn.Linear(3, 2)
    run.save_model("student", model, key="k1")
    assert run.has_model("student", "k1") and not run.has_model("student", "k2") and not run.has_model("teacher", "k1")
    loaded = run.load_model("student", torch.nn.Linear(3, 2), key="k1")
    assert torch.equal(loaded.weight, model.weight) and not loaded.training
    with pytest.raises(ArtefactError, match="other data or settings"):
        run.load_model("student", torch.nn.Linear(3, 2), key="k2")


def test_a_model_says_what_it_learned_from_and_is_refused_beside_other_images(run):
    run.save_model("generated", torch.nn.Linear(3, 2), key="k")
    run.learns_from("these images", "this split")
    run.save_model("teacher", torch.nn.Linear(3, 2), key="k")
    signed = run.info()["artefacts"]
    assert signed["models/teacher.safetensors"]["data_hash"] == "these images"
    assert signed["models/teacher.safetensors"]["split_hash"] == "this split"
    assert "data_hash" not in signed["models/generated.safetensors"]
    for name, learned_from in (
        ("teacher", ("these images", "this split")),
        ("teacher", None),
        ("generated", ("other images", "this split")),
    ):
        assert isinstance(run.load_model(name, torch.nn.Linear(3, 2), "k", learned_from), torch.nn.Linear)
    for learned_from, words in (
        (("others", "this split"), r"learned from other images \(these images\) than are here \(others\): delete "),
        (("these images", "another"), r"learned from another split \(this split\) than are here \(another\): delete "),
    ):
        with pytest.raises(ArtefactError, match=words) as caught:
            run.load_model("teacher", torch.nn.Linear(3, 2), "k", learned_from)
        assert str(caught.value).endswith("and run `make reproduce` again.")


def test_a_model_with_other_classes_is_refused(run):
    run.save_model("student", torch.nn.Linear(3, 2), key="k")
    with pytest.raises(ArtefactError, match="cannot be loaded"):
        run.load_model("student", torch.nn.Linear(3, 5))


@pytest.mark.parametrize("keep", [0, 4, 40, -3])
def test_a_cut_off_model_is_refused(run, keep):
    run.save_model("student", torch.nn.Linear(3, 2), key="k")
    path = run.model_path("student")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtefactError):
        run.load_model("student", torch.nn.Linear(3, 2), key="k")
    assert not (keep >= 0 and run.has_model("student", "k"))


def test_equal_models_are_equal_bytes(run):
    model = torch.nn.Linear(3, 2)
    for number in range(8):
        run.save_model(f"copy_{number}", model, "k")
    assert len({path.read_bytes() for path in (run.folder / "models").iterdir()}) == 1


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", "", ".hidden", "a\nb", "a\0b", "..\\x"])
def test_no_name_leaves_the_folder_of_the_run(run, name):
    for write in (
        lambda: run.save_table(name, TABLE),
        lambda: run.save_model(name, torch.nn.Linear(3, 2), "k"),
        lambda: run.show(name, plt.figure(), "A picture."),
    ):
        with pytest.raises(ParameterError, match="file name"):
            write()
    assert not run.folder.exists()


def test_no_pickle_is_loaded(run):
    path = run.model_path("student")
    path.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(2, 3)}, path)
    assert not run.has_model("student", "k")
    with pytest.raises(ArtefactError):
        run.load_model("student", torch.nn.Linear(3, 2))


def test_a_figure_is_saved_and_displayed_with_its_alternative(run, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **more: shown.append((data, more)))
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    run.show("curve", figure, "A rising line from one to two.")
    data, more = shown[0]
    assert data["text/plain"] == "A rising line from one to two."
    assert more["metadata"]["image/png"]["alt"] == data["text/plain"]
    assert (run.folder / "figures/curve.png").read_bytes() == data["image/png"]
    assert not plt.fignum_exists(figure.number)


def test_content_keys_follow_content():
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert content_key(1) != content_key("1")


def test_source_keys_ignore_words_and_follow_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def key(text, name):
        (tmp_path / f"{name}.py").write_text(text)
        return source_key(__import__(name))

    plain = key("def f(x):\n    return x + 1\n", "plain_module")
    assert key('"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1  # why\n', "worded_module") == plain
    assert key("def f(x):\n    return x + 2\n", "other_module") != plain


def test_names_of_classes_are_text_in_every_table_that_is_read(tmp_path):
    run = Run(resolve(run_dir=tmp_path), "03_distillation")
    for names in (["0", "01"], ["True", "False"], ["none", "NaN"], ["1e5", "all"]):
        table = run.save_table(
            "per_class", pd.DataFrame({"class": names, "image_id": ["007", "1.0"], "f1": [0.5, 1.0]})
        )
        reread = run.load_table("per_class")
        assert reread["class"].tolist() == names and reread["image_id"].tolist() == ["007", "1.0"]
        assert reread["f1"].dtype == table["f1"].dtype
        assert pd.concat([table, reread]).pivot_table(index="class", values="f1").index.tolist() == sorted(names), (
            "no class twice"
        )
