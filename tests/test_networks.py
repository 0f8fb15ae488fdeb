"""Networks of one's own: any output, any layers, from torchvision or a file; right, or one sentence."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from kdnb import evaluation, experiments, explain, models, networks, specs, store, sweep, teacher_training, training
from kdnb.datasets import phantom
from kdnb.errors import ModelError, ParameterError
from kdnb.figures import training as figures
from kdnb.runs import Run
from kdnb.settings import check_network, from_command_line, resolve

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1])
OWN = """
import torchvision
from torch import nn
class Small(nn.Module):
    feature_layers = ("a", "b")
    def __init__(self, classes):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, classes)
    def forward(self, x):
        return {"logits": self.head(self.b(self.a(x)).mean((2, 3)))}
def build(num_classes):
    return Small(num_classes)
def transformer(num_classes):
    return torchvision.models.VisionTransformer(32, 8, 4, 2, 32, 64, num_classes=num_classes)
def one(num_classes):
    return Small(3)
def text(num_classes):
    return "network"
def broken(num_classes):
    raise KeyError("weights")
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "my net.py").write_text(OWN)
    return f"{tmp_path / 'my net.py'}"


# -- outputs --------------------------------------------------------------------------------------------------------


class Answering(nn.Module):
    """A small network whose answer has another form."""

    def __init__(self, form, width=2):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 5, 4, 2)
        self.head = nn.Linear(4, width)
        self.form = form

    def forward(self, images):
        return self.form(self.head(self.body(images).relu().mean((2, 3))))


class Said:
    def __init__(self, logits):
        self.logits = logits


FORMS = {
    "logits": lambda z: z,
    "dictionary": lambda z: {"aux": z + 1, "logits": z},
    "tuple": lambda z: (z, z + 1),
    "object": Said,
    "one logit": lambda z: z[:, :1],
    "one dimension": lambda z: z[:, 0],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("precision", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_method_explains_networks_of_any_answer_and_precision(form, precision):
    torch.manual_seed(0)
    model = Answering(form).eval().to(precision)
    methods = explain.methods(IMAGES[:1], shap_samples=2, layers=["body"], depth=1)
    names = (
        "feature_maps_layer1",
        "feature_maps_mean",
        "feature_maps_weighted",
        "grad_cam",
        "integrated_gradients",
        "shap",
    )
    logits = networks.logits_of(model, IMAGES)
    assert logits.shape == (2, 2)
    maps = explain.explain_all({name: methods[name] for name in names}, model, IMAGES, TARGETS)
    for name, attribution in maps.items():
        assert (
            attribution.shape == (2, 64, 64)
            and torch.isfinite(attribution).all()
            and attribution.dtype == torch.float32
        ), name
    assert maps["integrated_gradients"].sum() > 0 and maps["feature_maps_mean"].sum() != 0
    assert not any(module._forward_hooks for module in model.modules())


def test_one_logit_is_that_of_the_second_class():
    logits = networks.as_logits(torch.tensor([-2.0, 3.0]))
    assert torch.allclose(logits.softmax(1)[:, 1], torch.tensor([-2.0, 3.0]).sigmoid())
    predicted = evaluation.predict(Answering(FORMS["one dimension"]), np.zeros((5, 32, 32, 3), np.uint8))
    assert predicted.shape == (5, 2)


@pytest.mark.parametrize("output", [torch.zeros(2, 3, 4), {}, None, "yes", torch.zeros(2, dtype=torch.int64)], ids=str)
def test_another_answer_is_one_sentence(output):
    with pytest.raises(ModelError, match=r"a classifier must return logits of shape \(images, classes\)\.$"):
        networks.as_logits(output)


# -- layers ---------------------------------------------------------------------------------------------------------


def test_grad_cam_equals_captums_on_a_chain():
    from captum.attr import LayerGradCam

    student = models.initialised(models.StudentCNN, 3, (8, 8, 16), seed=1).eval()
    layer = list(models.feature_layers(student).values())[-1]
    captums = LayerGradCam(student, layer).attribute(IMAGES, target=TARGETS, relu_attributions=True)[:, 0]
    assert torch.allclose(
        explain.METHODS["grad_cam"](student, IMAGES, TARGETS), explain.upsampled(captums, (64, 64)).detach(), atol=1e-6
    )


def test_layers_of_transformers_are_read_as_maps():
    block, channels_last, tokens = nn.Sequential(nn.LayerNorm(16)), torch.rand(2, 7, 7, 16), torch.rand(2, 50, 16)
    assert torch.equal(networks.as_maps(channels_last, block), channels_last.permute(0, 3, 1, 2))
    assert torch.equal(networks.as_maps(channels_last, nn.ReLU()), channels_last), (
        "of a convolutional network, on an image 7 by 16"
    )
    maps = networks.as_maps(tokens, block)
    assert maps.shape == (2, 16, 7, 7) and torch.equal(maps[0, :, 0, 1], tokens[0, 2]), "the first token is the class's"
    for odd, words in ((torch.rand(2, 11, 16), "name a convolution"), (torch.rand(2, 16, 8, 16), "cannot be told")):
        with pytest.raises(ModelError, match=words):
            networks.as_maps(odd, block)


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=3)


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(64, 16, 6, 2, 12, 24, num_classes=3)


@pytest.mark.parametrize("build", [swin, vit], ids=["swin", "vit"])
def test_transformers_are_explained(build):
    torch.manual_seed(0)
    model = networks.Network(build(), 3, standardise=True, image_size=64).eval()
    layers = models.feature_layers(model)
    assert 1 < len(layers) <= 5
    methods = explain.methods(depth=len(layers))
    for name in (f"feature_maps_layer{len(layers)}", "feature_maps_mean", "grad_cam", "data_set_mean"):
        attribution = methods[name](model, IMAGES, TARGETS)
        assert attribution.shape == (2, 64, 64) and torch.isfinite(attribution).all(), name
    fields = explain.receptive_fields(model, image_size=64)
    assert list(fields) == list(layers) and 4 <= max(fields.values()) <= 64
    assert build is swin or list(fields.values())[-1] == 64, "attention sees the whole image"


@pytest.mark.parametrize("size", [32, 64])
def test_a_vision_transformer_by_its_name_is_built_for_the_images(size):
    network = networks.build(networks.spec("teacher", "vit_b_16"), 2, size).eval()
    images = torch.rand(1, 3, size, size)
    assert networks.logits_of(network, images).shape == (1, 2)
    maps = explain.methods(depth=len(models.feature_layers(network)))["grad_cam"](
        network, images, torch.zeros(1, dtype=torch.int64)
    )
    assert maps.shape == (1, size, size) and torch.isfinite(maps).all()


@pytest.mark.parametrize(("name", "size"), [("vit_b_32", 48), ("alexnet", 32), ("maxvit_t", 64)])
def test_a_network_without_a_form_for_small_images_is_one_sentence(name, size):
    with pytest.raises(
        ModelError, match=rf"{size} x {size} pixels \(.*\): name another network, or a profile of larger images\.$"
    ):
        networks.build(networks.spec("teacher", name), 2, size)


def test_layers_are_found_by_the_size_of_their_maps_or_named():
    network = networks.Network(torchvision.models.resnet18(num_classes=3), 3, standardise=True, image_size=64)
    assert network.feature_layers == tuple(
        f"network.{name}" for name in ("relu", "layer1", "layer2", "layer3", "layer4")
    )
    named = networks.Network(
        torchvision.models.resnet18(num_classes=3), 3, standardise=True, image_size=64, layers=["layer2"]
    )
    assert list(models.feature_layers(named)) == ["layer1"]
    for layers, words in ((["layer9"], "no module of that name"),):
        with pytest.raises(ModelError, match=words):
            networks.Network(
                torchvision.models.resnet18(num_classes=3), 3, standardise=True, image_size=64, layers=layers
            )
    with pytest.raises(ModelError, match="no layer with maps"):
        networks.Network(nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), 3, standardise=True, image_size=32)
    with pytest.raises(ModelError, match="cannot look at images of 32 x 32"):
        networks.Network(torchvision.models.alexnet(num_classes=3), 3, standardise=True, image_size=32)


class Shuffled(nn.Module):
    """Defined in another order than called: the head first, the layers from the last to the first, one of no use."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(8, classes)
        self.second = nn.Conv2d(4, 8, 3, 2, 1)
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.spare = nn.Linear(1, 1)
        self.feature_layers = ("second", "first")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images).relu()).relu().mean((2, 3)))


def test_layers_and_stages_go_by_the_order_of_calls():
    network = networks.Network(Shuffled(3), 3, standardise=True, image_size=32)
    assert network.feature_layers == ("network.first", "network.second")
    assert networks.stages(network) == ["network.head", "network.second", "network.first"]
    student = models.StudentCNN(3, (4, 8, 8))
    assert networks.stages(student) == ["classifier", "features.2", "features.1", "features.0"]
    with pytest.raises(ModelError, match="feature_layers names 'spare', but the network calls no module of that name"):
        networks.Network(Shuffled(3), 3, standardise=True, image_size=32, layers=["spare"])


def test_measured_receptive_fields_are_those_of_the_chain():
    student = models.StudentCNN(3, (4, 8, 8)).eval()
    chain = explain.receptive_fields(student, image_size=64)
    names = [f"features.{number}" for number in range(3)]
    assert networks.measured_fields(student, names, 64) == list(chain.values())


# -- by name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet1", "a classifier of torchvision.models"),
        ("fcn_resnet50", "a classifier of torchvision.models"),
        ("nowhere.py:build", "there is no file nowhere.py"),
        ("net.py", "file.py:build"),
        ("Rm -rf", "a name of torchvision.models"),
        (7, "a name of torchvision.models"),
    ],
)
def test_a_wrong_name_is_one_sentence(name, words):
    with pytest.raises(ParameterError, match=words) as caught:
        networks.spec("teacher", name)
    assert "teacher is" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("one", r"answers \(2, 3\) for 2 images, but the data set has 4 classes"),
        ("text", "must return a torch.nn.Module"),
        ("broken", r"could not be built \(KeyError"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_file_that_builds_no_classifier_is_one_sentence(file, function, words):
    with pytest.raises((ModelError, ParameterError), match=words):
        networks.build(networks.spec("student", f"{file}:{function}"), 4, 32)


def test_weights_come_with_a_file_and_belong_to_its_identity(file, tmp_path):
    network = networks.build(networks.spec("teacher", f"{file}:build"), 4, 32)
    state = {name: torch.full_like(value, 0.25) for name, value in network.network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    name = f"{file}:build:{tmp_path / 'w.safetensors'}"
    teacher, origin = networks.new_teacher(name, 4, 32, "auto", "plain", 0)
    assert origin == "own" and all((value == 0.25).all() for value in teacher.parameters())
    before = networks.identity("teacher", name)
    save_file({name: value + 1 for name, value in state.items()}, tmp_path / "w.safetensors")
    assert networks.identity("teacher", name) != before
    save_file({"other": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"does not hold the weights .*: save that network's state_dict there"):
        networks.build(networks.spec("teacher", name), 4, 32)


def test_weights_are_read_where_the_file_system_maps_no_file(file, tmp_path, monkeypatch):
    network = networks.build(networks.spec("teacher", f"{file}:build"), 4, 32)
    save_file(network.network.state_dict(), tmp_path / "w.safetensors")

    def unmapped(*_, **__):
        raise OSError(19, "No such device")

    monkeypatch.setattr("safetensors.torch.load_file", unmapped)
    networks.build(networks.spec("teacher", f"{file}:build:{tmp_path / 'w.safetensors'}"), 4, 32)


def test_networks_import_each_the_modules_beside_them_whatever_their_names(tmp_path):
    for folder, width in (("a", 4), ("b", 6)):
        (tmp_path / folder / "parts").mkdir(parents=True)
        (tmp_path / folder / "layers.py").write_text(f"from parts.width import WIDTH\nassert WIDTH == {width}\n")
        (tmp_path / folder / "parts" / "width.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "net.py").write_text(
            "from layers import WIDTH\nfrom torch import nn\n"
            "def build(classes):\n"
            "    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2), nn.Flatten(), nn.LazyLinear(classes))\n"
        )
    names = {folder: f"{tmp_path / folder / 'net.py'}:build" for folder in "ab"}
    widths = []
    for folder in "aba":
        network = networks.build(networks.spec("student", names[folder]), 3, 32)
        widths.append(network.network[0].out_channels)
    assert widths == [4, 6, 4]
    (tmp_path / "a" / "layers.py").write_text("WIDTH = 10\n")
    assert networks.build(networks.spec("student", names["a"]), 3, 32).network[0].out_channels == 10
    assert not {"layers", "parts", "parts.width"} & set(sys.modules)


def test_a_module_beside_a_network_belongs_to_its_identity(file, tmp_path):
    (tmp_path / "net.py").write_text("import sizes\n" + OWN)
    (tmp_path / "sizes.py").write_text("WIDTH = 4\n")
    before = networks.identity("student", f"{tmp_path / 'net.py'}:build")
    (tmp_path / "other.py").write_text("imported by neither\n")
    assert networks.identity("student", f"{tmp_path / 'net.py'}:build") == before
    (tmp_path / "sizes.py").write_text("WIDTH = 8\n")
    assert networks.identity("student", f"{tmp_path / 'net.py'}:build") != before
    assert len(networks.identity("student", f"{file}:build")) == 2, "one that imports none has its own hash alone"


@pytest.mark.parametrize(("weights", "head"), [("imagenet", "plain"), ("auto", "paper")])
def test_what_goes_with_densenet_only_is_refused_for_others(weights, head):
    with pytest.raises(ParameterError, match="goes with teacher densenet121 only"):
        networks.new_teacher("resnet18", 4, 32, weights, head, 0)


def test_a_run_of_other_networks_has_a_folder_of_its_own(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--profile", "smoke", "--runs", "runs", "--teacher", "resnet18", "--student", "my net.py:build"]
    settings, folder = from_command_line(words)
    assert settings.teacher == "resnet18" and settings.student == f"{file}:build"
    assert folder.name.startswith("phantom-smoke-seed0-teacher_resnet18-student_")
    assert check_network("student", "plain") == "plain"
    assert from_command_line(["--profile", "smoke"])[1].name == "phantom-smoke-seed0"


def test_students_from_a_file_are_trained_stored_and_loaded(file, tmp_path):
    run = Run(resolve(profile="smoke", run_dir=tmp_path / "run"), "test")
    run.record("networks", {"student": f"{file}:build"})
    made = phantom.generate(64, 32)
    splits = [
        training.Examples(made.images[cut], made.labels[cut]) for cut in (slice(32), slice(32, 48), slice(48, 64))
    ]
    recipe = training.Recipe(epochs=1, batch_size=16, views=1)
    experiment = experiments.Experiment(
        *splits, np.zeros((1, 32, 4), np.float32), recipe, 4, "data", student=f"{file}:build"
    )
    spec = specs.spec("kd", 0, 0.4, 5.0)
    (trained,) = sweep.train(run, [spec], experiment, jobs=1).values()
    run.save_model("student_kd", store.trained_student(run, spec, experiment), "k")
    loaded = networks.load_student(run, "student_kd", 4)
    assert np.allclose(evaluation.predict(loaded, splits[2].images), trained.test_logits, atol=1e-5)
    assert len(models.feature_layers(loaded)) == 2
    drawn = [specs.student(spec, experiment).state_dict()["network.head.weight"] for _ in range(2)]
    assert torch.equal(*drawn), "the seed alone decides the start"


def test_a_teacher_with_weights_of_its_own_is_taken_as_it_is(file, tmp_path):
    run = Run(resolve(profile="smoke", run_dir=tmp_path / "run"), "test")
    made = phantom.generate(40, 32)
    part = training.Examples(made.images, made.labels)
    teacher = networks.build(networks.spec("teacher", f"{file}:build"), 4, 32)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    history = teacher_training.train_teacher(run, "teacher", teacher, part, part, training.Recipe(0), "k", 0)
    assert history["epoch"].tolist() == [0] and history["val_accuracy"].between(0, 1).all()
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())
    assert run.has_model("teacher", "k")
    assert figures.curves(history).axes, "its history can be drawn"


# -- AUC ------------------------------------------------------------------------------------------------------------


def test_auc_is_scikit_learns_for_two_and_for_more_classes():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    for classes in (2, 4):
        labels, logits = rng.integers(0, classes, 200), rng.normal(size=(200, classes)).astype(np.float32)
        logits[np.arange(200), labels] += 1
        p = torch.from_numpy(logits).double().softmax(1).numpy()
        expected = roc_auc_score(labels, p[:, 1]) if classes == 2 else roc_auc_score(labels, p, multi_class="ovr")
        assert evaluation.classification_scores(labels, logits, samples=20)["auc"] == pytest.approx(expected)
        table = evaluation.per_class_scores(labels, logits, [str(c) for c in range(classes)])
        assert table["auc"].mean() == pytest.approx(expected) and list(table)[-1] == "auc"


def test_auc_of_a_class_without_images_is_undefined():
    labels, logits = np.array([0, 0, 1, 1]), np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    areas = evaluation.per_class_scores(labels, logits, "abc")["auc"]
    assert pd.isna(areas[2]) and areas[:2].notna().all()
    assert np.isnan(evaluation.classification_scores(labels * 0, logits, samples=20)["auc"])


@pytest.mark.parametrize("shape", list(models.SHAPES))
def test_a_student_of_a_named_shape_is_built_by_its_name(shape):
    network = networks.build(networks.spec("student", shape), 3, 32)
    assert type(network) is models.SHAPES[shape][0] and network(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert networks.identity("student", shape) == ([] if shape == "plain" else [shape])
    with pytest.raises(ParameterError, match=f"teacher is '{shape}'"):
        networks.spec("teacher", shape)


@pytest.mark.slow
def test_a_whole_run_of_other_networks_ends_in_a_report(file, tmp_path, repository):
    """A transformer that teaches and a student whose answer is a dictionary: neither is like the study's own."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 160)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for _ in range(16):
            pixels = np.clip(rng.normal(level, 60, (32, 32)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{rng.integers(2**32):08x}.png")
    named = [f"TEACHER={file}:transformer", f"STUDENT={file}:build"]
    command = [
        "make",
        "reproduce",
        "PROFILE=smoke",
        f"DATASET=folder:{tmp_path / 'images'}",
        f"RUNS={tmp_path / 'runs'}",
        *named,
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = (tmp_path / "runs").glob("*/report.html")
    teacher, student = (word.partition("=")[2] for word in named)
    assert f"Teacher: {teacher}. Student: {student}." in report.read_text(encoding="utf-8")
