"""Files, names and parameters from strangers: nothing in them is executed,
unfolds without limit or leaves its folder."""

import ast
import io
import json
import multiprocessing
import os
import pickle
import resource
import tarfile
import tempfile
import zipfile
from pathlib import Path

import dicoms
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_datasets_reading import half_white

from kdnb import experiments, models, specs, sweep, training
from kdnb.datasets import cache, fetch, load, phantom, reading
from kdnb.errors import ArtefactError, DataError, DownloadError, KdnbError
from kdnb.files import file_hash
from kdnb.runs import Run
from kdnb.settings import from_command_line, resolve

SIZE = 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")


def noise(seed: int = 0, shape: tuple[int, ...] = (40, 40, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fill(folder: Path) -> Path:
    for number in range(8):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number)).save(place / f"{number}.png")
    return folder


# -- no pickle is loaded, no text is executed -----------------------------------------------------------------------

MODULES = ("pickle", "dill", "cloudpickle", "shelve", "marshal", "torch.hub", "yaml")
CALLS = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "joblib.load")
METHODS = ("read_pickle", "extractall", "unpack_archive")


def dangers(code: str) -> list[str]:
    """What in a piece of Python could execute what a file or a parameter holds."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name in MODULES]
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names.append(node.module)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in CALLS or name.rpartition(".")[2] in METHODS:
            names.append(name)
        if name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
            names.append(f"{name} without allow_pickle=False")
        if "shell" in options:
            names.append(f"{name} with a shell")
    return names


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x')",
        "np.load('x', allow_pickle=True)",
        "pd.read_pickle('x')",
        "import pandas\npandas.read_pickle('x')",
        "joblib.load('x')",
        "eval(dataset)",
        "exec(dataset)",
        "import os\nos.system(dataset)",
        "import subprocess\nsubprocess.run(dataset, shell=True)",
        "archive.extractall(folder)",
    ],
)
def test_the_search_finds_what_executes_files_or_text(code):
    assert dangers(code)


def test_no_code_of_the_study_executes_files_or_text(repository):
    for path in sorted((repository / "kdnb").rglob("*.py")):
        assert dangers(path.read_text(encoding="utf-8")) == [], path.name
    for path in sorted((repository / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                source = "".join(cell["source"])
                assert not [line for line in source.splitlines() if line.startswith(("!", "%"))], path.name
                assert dangers(source) == [], path.name


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def raw(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(marker)))


def torch_file(path: Path, marker: Path) -> None:
    torch.save({"weight": Bomb(marker)}, path)


def numpy_archive(path: Path, marker: Path) -> None:
    objects = np.array([Bomb(marker)], object)
    columns = (*cache._COLUMNS, "bad_ids", "bad_reasons", "logits", "train_images", "train_labels")
    with path.open("wb") as file:
        np.savez(file, **dict.fromkeys(columns, objects))


def numpy_array(path: Path, marker: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Bomb(marker)], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("form", "read"),
    [
        (raw, lambda path: pickle.loads(path.read_bytes())),
        (torch_file, lambda path: torch.load(path, weights_only=False, pickle_module=pickle)),
        (numpy_archive, lambda path: np.load(path, allow_pickle=True)["kept"]),
        (numpy_array, lambda path: np.load(path, allow_pickle=True)),
    ],
)
def test_the_bombs_are_real(form, read, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    form(tmp_path / "bomb", tmp_path / "marker")
    read(tmp_path / "bomb")
    assert (tmp_path / "marker").exists()


FORMS = pytest.mark.parametrize("form", [raw, torch_file, numpy_archive, numpy_array], ids=lambda form: form.__name__)


@pytest.fixture
def run(tmp_path):
    run = Run(resolve(profile="smoke", run_dir=tmp_path / "run"), "test")
    for name in ("models", "cells", "cells/unfinished"):
        (run.folder / name).mkdir(parents=True)
    return run


def small_material() -> experiments.Experiment:
    made = phantom.generate(64, SIZE)
    splits = [
        training.Examples(made.images[cut], made.labels[cut]) for cut in (slice(32), slice(32, 48), slice(48, 64))
    ]
    return experiments.Experiment(
        *splits, np.zeros((1, 32, 4), np.float32), training.Recipe(epochs=1, batch_size=16, views=1), 4, "data"
    )


@FORMS
def test_a_bomb_in_place_of_a_model_does_not_go_off(form, run, tmp_path):
    path, marker = run.model_path("student"), tmp_path / "marker"
    form(path, marker)
    run.record("artefacts", {"models/student.safetensors": {"sha256": file_hash(path), "notebook": "03_distillation"}})
    assert not run.has_model("student", "k")
    with pytest.raises(ArtefactError, match="cannot be loaded"):
        run.load_model("student", torch.nn.Linear(3, 2))
    assert not marker.exists()


@FORMS
def test_a_bomb_in_place_of_a_student_or_its_checkpoint_does_not_go_off(form, run, tmp_path):
    spec, marker = specs.spec("ce", 0, 1, 1, widths=(4, 8, 8)), tmp_path / "marker"
    for folder in ("cells", "cells/unfinished"):
        form(run.folder / folder / f"{spec.name}.safetensors", marker)
    students = sweep.train(run, [spec], small_material(), jobs=1)
    assert len(students[spec].history) == 1, "it was trained"
    assert not marker.exists()


@FORMS
def test_a_bomb_in_place_of_the_teachers_answers_does_not_go_off(form, run, tmp_path):
    marker = tmp_path / "marker"
    form(run.model_path("bank"), marker)
    data = load("phantom", SIZE, phantom_images=80)
    teacher = models.initialised(models.StudentCNN, 4, (4, 8, 8), seed=0)
    assert experiments.of_run(run, data, teacher).bank.shape[1:] == (len(data.index("train")), 4)
    assert not marker.exists()


@FORMS
def test_a_bomb_in_place_of_the_cache_does_not_go_off(form, tmp_path):
    folder, marker = fill(tmp_path / "images"), tmp_path / "marker"
    first = load(f"folder:{folder}", SIZE)
    pixels = first.images.copy()  # the mapped file is about to be overwritten
    stored = [path for path in cache.FOLDER.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert any(path.suffix == ".npz" for path in stored)
    for path in stored:
        form(path, marker)
    reread = load(f"folder:{folder}", SIZE)
    assert (reread.images == pixels).all() and reread.data_hash == first.data_hash
    assert not marker.exists()


@FORMS
def test_a_bomb_in_place_of_a_download_does_not_go_off(form, tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "medmnist").mkdir()
    form(tmp_path / "medmnist" / "octmnist.npz", marker)
    with pytest.raises(DataError, match=r"octmnist\.npz is damaged"):
        fetch._unpacked("octmnist", 28, tmp_path, check=False)
    assert not marker.exists()


@pytest.mark.parametrize("form", [raw, torch_file], ids=lambda form: form.__name__)
def test_a_bomb_in_place_of_downloaded_weights_does_not_go_off(form, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder, marker = tmp_path / "torch" / "hub" / "checkpoints", tmp_path / "marker"
    folder.mkdir(parents=True)
    form(folder / "densenet121-a639ec97.pth", marker)
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
        models.densenet121_teacher(4, "imagenet")
    assert not marker.exists()


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text())
def test_a_parameter_of_a_notebook_is_a_value_whatever_it_says(text):
    from papermill.translators import PythonTranslator

    code = PythonTranslator.codify({"dataset": text})
    (assignment,) = ast.parse(code).body
    assert ast.unparse(assignment.targets[0]) == "dataset"
    assert ast.literal_eval(assignment.value) == text


# -- nothing unfolds without limit ----------------------------------------------------------------------------------


def deflated_dicom(path: Path) -> None:
    """A hundred megabytes of zeros in a hundred kilobytes."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = dicoms.dataset(np.zeros((4, 4), np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    file.add_new(0x00091001, "OB", bytes(100_000_000))
    file.save_as(path, enforce_file_format=True)


def wide_tiff(path: Path) -> None:
    """Ten thousand by ten thousand grey pixels, all equal."""
    Image.new("L", (10_000, 10_000)).save(path, "TIFF", compression="tiff_deflate")


def sparse_file(path: Path) -> None:
    """More bytes than any image has, on no space at all."""
    with path.open("wb") as file:
        file.write(b"BM")
        file.truncate(reading.MAX_BYTES + 1)


@pytest.fixture(scope="module")
def apart():
    """A process of its own, whose memory is counted from nothing."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.parametrize("bomb", [deflated_dicom, wide_tiff, sparse_file], ids=lambda bomb: bomb.__name__)
def test_a_bomb_among_images_is_refused_before_it_unfolds(bomb, tmp_path, apart):
    bomb(tmp_path / "x.png")
    before, after, message = apart.apply(_memory_of_reading, (tmp_path / "x.png",))
    assert message and "\n" not in message
    assert after - before < 50, f"{after - before:.0f} MiB"


def _memory_of_reading(path: Path) -> tuple[float, float, str]:
    """Peak memory in MiB before and after, and what was said."""
    Image.init()
    import pydicom.pixels  # noqa: F401

    peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
    message = ""
    try:
        reading.read(path, SIZE)
    except DataError as error:
        message = str(error)
    return *peaks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, message


def test_no_image_starts_another_program(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(DataError, match="cannot identify"):
        reading.read(tmp_path / "x.png", SIZE)
    assert not (tmp_path / "started").exists()


# -- nothing leaves its folder --------------------------------------------------------------------------------------


def evil_tar(path: Path, outside: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name in ("../evil", str(outside / "evil"), "Training/../../evil"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))


def linking_tar(path: Path, outside: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("Training")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(link)
        member = tarfile.TarInfo("Training/evil")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))


def evil_zip(path: Path, outside: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../evil", str(outside / "evil"), "Training/../../evil"):
            archive.writestr(name, "evil")


@pytest.mark.parametrize("archive", [evil_tar, linking_tar, evil_zip], ids=lambda archive: archive.__name__)
def test_an_archive_of_a_data_set_stays_in_its_folder(archive, tmp_path, monkeypatch):
    """What Kaggle serves is unpacked by kagglehub; this is its own code on an archive that wants out."""
    from kagglehub.http_resolver import _extract_archive

    outside = tmp_path / "outside"
    outside.mkdir()
    archive(tmp_path / "archive", outside)

    def download(handle: str) -> str:
        _extract_archive(str(tmp_path / "archive"), str(tmp_path / "kaggle" / "inside"))
        return str(tmp_path / "kaggle" / "inside")

    monkeypatch.setattr("kagglehub.dataset_download", download)
    with pytest.raises(DownloadError, match="by hand"):
        fetch.fetch("brain_tumor", tmp_path / "data")
    assert list(outside.iterdir()) == []
    assert all(path.is_relative_to(tmp_path / "kaggle" / "inside") for path in tmp_path.rglob("evil"))
    assert not (tmp_path / "data").exists() or list((tmp_path / "data").iterdir()) == []


def test_a_class_named_like_a_script_is_text_on_the_page(tmp_path):
    from kdnb.report import page

    run = Run(resolve(run_dir=tmp_path), "03_distillation")
    run.record("run", {"dataset": "folder:<script>", "profile": "smoke", "seed": 0, "split_protocol": "official"})
    run.record("environment", {"03_distillation": {"device": "cpu", "packages": {"torch": "2.14.1"}}})
    name = "<img src=x onerror=alert(1)>"
    run.save_table("per_class", pd.DataFrame({"model": ["teacher"], "class": [name], "f1": [0.5], "n": [3]}))
    assert "&lt;script&gt;" in page(tmp_path) and "<script>" not in page(tmp_path) and name not in page(tmp_path)


# -- anything at all ------------------------------------------------------------------------------------------------


def encoded() -> list[bytes]:
    """A small image in every kind that is read."""
    picture, files = Image.fromarray(noise(1, (12, 10, 3))), []
    kinds = [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("PPM", {}),
    ]
    kinds += [("TIFF", {"compression": name}) for name in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    for kind, options in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    for deep in (noise(2, (9, 9, 1))[..., 0].astype(np.uint16) * 200, noise(3, (9, 9, 1))[..., 0].astype(np.float32)):
        buffer = io.BytesIO()
        Image.fromarray(deep).save(buffer, "TIFF")
        files.append(buffer.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        half_white(Path(folder) / "x.dcm")
        files.append((Path(folder) / "x.dcm").read_bytes())
    return files


FILES = encoded()
EDITS = st.lists(
    st.tuples(st.integers(0, 4000), st.sampled_from(["put", "cut", "add"]), st.binary(min_size=1, max_size=8)),
    max_size=6,
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(st.binary(max_size=300), st.tuples(st.sampled_from(FILES), EDITS)),
    st.sampled_from(sorted(reading.SUFFIXES)),
)
def test_any_bytes_are_an_image_or_refused_in_a_few_words(content, suffix):
    if isinstance(content, tuple):
        content, edits = bytearray(content[0]), content[1]
        for at, edit, inserted in edits:
            start = at % (len(content) + 1)
            content[start : start + (0 if edit == "add" else len(inserted))] = b"" if edit == "cut" else inserted
    path = Path(tempfile.gettempdir()) / f"kdnb-fuzz-{os.getpid()}{suffix}"
    path.write_bytes(content)
    try:
        square = reading.read(path, SIZE).square
        assert square.shape == (SIZE, SIZE, 3) and square.dtype == np.uint8
    except DataError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 300
    finally:
        path.unlink()


NAMES = st.one_of(
    st.sampled_from(
        [
            "train",
            "Training",
            "test",
            "Test Set",
            "val",
            "cat",
            "dog",
            ".hidden",
            "__MACOSX",
            "a.png",
            "ü",
            "<b>",
            "'",
            "$x",
            " ",
        ]
    ),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
        lambda name: name not in (".", "..")
    ),
)
CONTENTS = st.one_of(st.integers(0, 9), st.sampled_from(["text", "empty", "truncated", "link up", "link away", "pipe"]))
TREES = st.recursive(CONTENTS, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=25)


def build(folder: Path, tree: object) -> None:
    """Make files and folders of a tree of dictionaries; a number is a picture."""
    if isinstance(tree, dict):
        folder.mkdir()
        for name, inner in tree.items():
            build(folder / name, inner)
    elif tree == "link up":
        folder.symlink_to("..")
    elif tree == "link away":
        folder.symlink_to("/nowhere/at/all")
    elif tree == "pipe":
        os.mkfifo(folder)
    else:
        picture = (
            FILES[tree] if isinstance(tree, int) else {"text": b"hello", "empty": b"", "truncated": FILES[0][:60]}[tree]
        )
        folder = folder if isinstance(tree, int) and folder.suffix else folder.with_name(folder.name + ".png")
        if not folder.exists():
            folder.write_bytes(picture)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(NAMES, TREES, max_size=4), st.sampled_from(["official", "leak_free"]))
def test_any_folder_is_a_data_set_or_refused_in_one_sentence(tree, protocol):
    with tempfile.TemporaryDirectory() as place:
        cache.FOLDER = Path(place) / "cache"
        build(Path(place) / "set", tree)
        try:
            data = load(f"folder:{place}/set", SIZE, split_protocol=protocol)
        except KdnbError as error:
            assert "\n" not in str(error) and str(error).endswith(".")
            return
        assert len(data) == len(data.images) == len(data.ids) and len(data.classes) >= 2


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(["--dataset", "--profile", "--seed", "--split", "--data-dir", "--runs"]), st.text()),
        max_size=4,
    )
)
@example([("--data-dir", "~0")])
def test_any_command_line_is_settings_inside_the_runs_folder_or_refused(words):
    try:
        chosen, folder = from_command_line([f"{name}={value}" for name, value in words])
    except KdnbError as error:
        assert str(error)
        return
    runs = dict(words).get("--runs", "runs")
    assert folder.parent == Path(runs) and folder.name not in ("", ".", "..")
    assert chosen.run_dir == folder.absolute()
