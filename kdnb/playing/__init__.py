"""A page that plays: a run's student in the reader's browser, in one file, without a network connection.

The page holds the students' weights in float32, some test images with what the teacher said of them, and scripts of its
own; its policy allows no request at all. PyTorch's logits of the images are written beside them, so that the page can
check itself wherever it is opened; :func:`write` fails where Node is at hand and finds another number than PyTorch's.
"""

import base64
import copy
import hashlib
import json
import re
import shutil
import string
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from torch import Tensor, nn

from kdnb import networks, students
from kdnb.datasets import ImageSet, load_for, phantom, to_tensor
from kdnb.errors import ArtefactError
from kdnb.evaluation import predict
from kdnb.explain import average_feature_maps, class_evidence, receptive_fields
from kdnb.models import StudentCNN
from kdnb.runs import opened
from kdnb.settings import resolve
from kdnb.sources import REPOSITORY

TITLE = "Play: a student in your browser"
# What the book's contents and its search know of the page.
OUTLINE = (
    f"# {TITLE}\n\n"
    "A page that runs trained students where it is read: "
    "choose a test image, draw a phantom with a lesion of some strength and place,\n"
    "or drop an image of your own; see probabilities, the average map of each layer, "
    "the class evidence that adds up to each logit, and what\n"
    "a teacher says at a temperature T.\n"
)
RECORD = REPOSITORY / "data" / "measured" / "phantom-quick-seed0"  # the default run's
# Both taught by the loss with T^2.
PLAYERS = {"student_kd_t2": "Plain student", "student_transparent": "Transparent student"}
TOLERANCE = 1e-4  # by which a number of the page may differ from PyTorch's
PER_CLASS = 4  # test images that the page holds
# The generator's seed and how many heads to draw lesions into: subjects that no run and no teacher has seen.
HEADS_SEED, HEADS = 5, 12
SCRIPTS = ("network.js", "phantom.js", "page.js")
_HERE = Path(__file__).parent
# The layers of a student's features: what is in each of them.
_Blocks = Iterable[tuple[nn.Conv2d, nn.Module, nn.BatchNorm2d, nn.Module]]


@dataclass(frozen=True)
class Players:
    """What a page is made from.

    Attributes:
        students: name of :data:`PLAYERS` -> a plain chain of convolutions, in evaluation mode.
        teacher: theirs.
        data: the images that they were trained and tested on.
        temperature: that they were taught at.
        run: what they are of, in words.
    """

    students: dict[str, StudentCNN]
    teacher: nn.Module
    data: ImageSet
    temperature: float
    run: str


def of_run(folder: Path) -> Players | None:
    """The players of a finished run.

    Args:
        folder: the run's.

    Returns:
        ``None`` where it stored none that this page can run (:data:`PLAYERS`, of the study's own shapes).
    """
    if not (folder / "run.json").exists():
        return None
    run = opened(folder, "playing")
    info = run.info()
    if not set(PLAYERS) & set(info.get("students", {})):
        return None
    data = load_for(run.settings)
    loaded = {name: students.of_run(run, name, len(data.classes)) for name in PLAYERS}
    cells = [cell for name, cell in info["students"].items() if name in PLAYERS]
    return _players(loaded, lambda: networks.load_teacher(run, len(data.classes)), data, cells[0], info["run"])


def of_record(folder: Path) -> Players | None:
    """The players of a recorded run of the phantom, ``data/measured/<run>``.

    Args:
        folder: the record's.

    Returns:
        ``None`` where none are recorded.

    Raises:
        ArtefactError: the images or the teacher are no longer those of the record.
    """
    provenance = students.provenance(folder)
    if not set(PLAYERS) & set(provenance.get("students", {})):
        return None
    data = load_for(resolve(**provenance["run"]))
    if data.data_hash != provenance["data"]["data_hash"]:
        raise ArtefactError(
            f"the students in {folder} learned from other images than the phantom makes now: record a run anew."
        )
    loaded = {name: students.recorded(folder, name) for name in PLAYERS}
    cell = next(provenance["students"][name]["cell"] for name in PLAYERS if loaded[name])
    return _players(
        loaded, lambda: cast(nn.Module, students.recorded(folder, "teacher")), data, cell, provenance["run"]
    )


def _players(
    loaded: dict[str, nn.Module | None],
    load_teacher: Callable[[], nn.Module],
    data: ImageSet,
    cell: str,
    run: dict[str, Any],
) -> Players | None:
    playable = {
        name: student for name, student in loaded.items() if type(student) is StudentCNN and _pools_by_maximum(student)
    }
    taught_at = re.search(r"-t([\d.]+)", cell)
    if not playable or taught_at is None:
        return None
    words = f"{run['dataset']}, profile {run['profile']}, seed {run['seed']}"
    return Players(playable, load_teacher(), data, float(taught_at[1]), words)


def _pools_by_maximum(student: StudentCNN) -> bool:
    return all(isinstance(block[1], (nn.MaxPool2d, nn.Identity)) for block in cast(_Blocks, student.features))


# -- what the page holds ----------------------------------------------------------------------------------------------


def packed(student: StudentCNN) -> dict[str, Any]:
    """A student as ``network.js`` reads it: its layers, and its weights.

    Args:
        student: a plain chain of convolutions.

    Returns:
        ``layers``, the number of ``classes``, and in base64 all ``weights`` as little-endian float32, one after the
        other: of each layer its kernels ``(after, before, k, k)``, and of its batch normalisation a factor and a shift
        a filter; then weights and biases of the linear layer.
    """
    layers, weights = [], []
    for convolution, pooling, norm, _ in cast(_Blocks, student.features):
        factor = norm.weight.double() / (cast(Tensor, norm.running_var).double() + norm.eps).sqrt()
        shift = norm.bias.double() - cast(Tensor, norm.running_mean).double() * factor
        weights += [convolution.weight, factor, shift]
        after, before, kernel, _ = convolution.weight.shape
        layers.append({"before": before, "after": after, "kernel": kernel, "pool": isinstance(pooling, nn.MaxPool2d)})
    weights += [student.classifier.weight, student.classifier.bias]
    flat = torch.cat([value.detach().cpu().flatten().float() for value in weights]).numpy().astype("<f4")
    return {"layers": layers, "classes": len(student.classifier.bias), "weights": _text(flat)}


def _text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def shown(data: ImageSet, per_class: int = PER_CLASS) -> np.ndarray:
    """Positions of the page's test images, of each class as many, spread over the set: neighbours show one subject."""
    test = data.index("test")
    by_class = [test[data.labels[test] == label] for label in range(len(data.classes))]
    return np.concatenate([images[:: max(1, len(images) // per_class)][:per_class] for images in by_class])


def _planes(image: np.ndarray) -> np.ndarray:
    """Pixels ``(H, W, 3)`` uint8 colour by colour, one plane where all three are the same."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    return planes[0] if (planes == planes[0]).all() else planes


def heads(count: int = HEADS) -> list[dict[str, Any]]:
    """What the phantom's generator drew for the heads that a reader can put a lesion into, all but the lesion."""
    latent = phantom._draw_lesions(HEADS_SEED, 0)  # noqa: SLF001 (draws without their pictures)
    fields = (
        *("width", "height", "tilt", "centre_x", "centre_y"),
        *("cortex", "matter", "ventricle", "ventricle_gap", "texture", "bias", "gain"),
        *("angle", "distance", "radius", "aspect", "wobble", "control"),
        *("streak", "streak_angle", "streak_distance", "streak_direction"),
    )
    return [
        {name: latent[name][row].tolist() for name in fields}
        for row in range(0, count * phantom.DRAWN_PER_SUBJECT, phantom.DRAWN_PER_SUBJECT)
    ]


def contents(players: Players) -> dict[str, Any]:
    """Everything that the page's scripts read, as JSON can hold it."""
    data, positions = players.data, shown(players.data)
    teacher_logits = predict(players.teacher, data.images[positions])
    page_data: dict[str, Any] = {
        "title": TITLE,
        "run": players.run,
        "size": data.images.shape[1],
        "classes": list(data.classes),
        "temperature": players.temperature,
        "tolerance": TOLERANCE,
        "colours": {"map": _colours("viridis"), "evidence": _colours("RdBu_r")},
        "images": [
            {
                "pixels": _text(_planes(data.images[position])),
                "label": int(data.labels[position]),
                "teacher": teacher_logits[row].tolist(),
                "truth": None if data.posterior is None else data.posterior[position].tolist(),
            }
            for row, position in enumerate(positions)
        ],
        "students": [
            packed(student)
            | {
                "title": PLAYERS[name],
                "fields": list(receptive_fields(student, image_size=data.images.shape[1]).values()),
                "logits": predict(student, data.images[positions]).tolist(),
            }
            for name, student in players.students.items()
        ],
        "drawing": None,
    }
    if data.name == "phantom":
        contrast, rates = phantom.SNR * phantom.NOISE, list(phantom.SCANNER)
        page_data["drawing"] = {"heads": heads(), "contrast": contrast, "noise": phantom.NOISE, "scanner": rates}
    return page_data


def _colours(name: str, steps: int = 256) -> list[str]:
    return [to_hex(colour) for colour in colormaps[name](np.linspace(0, 1, steps))]


# -- does it say what PyTorch says? -----------------------------------------------------------------------------------


def largest_difference(answers: Sequence[Sequence[dict[str, Any]]], players: Players) -> float:
    """The largest difference between a browser's (or Node's) numbers and PyTorch's: logits, average maps and evidence.

    PyTorch computes in float64 with the same float32 weights: in float32 its own rounding would be most of what
    is allowed.

    Args:
        answers: ``Student.answers`` of ``network.js``: of each student, of each image of the page.
        players: what the page was made from.

    Returns:
        A number from 0; infinite where one of the numbers is none.
    """
    images = to_tensor(players.data.images[shown(players.data)]).double()
    differences = []
    for student, answer in zip(players.students.values(), answers, strict=True):
        exact = copy.deepcopy(student).cpu().double()
        evidence, maps = class_evidence(exact, images), average_feature_maps(exact, images)
        with torch.no_grad():
            logits = exact(images)
        pairs = [
            ([image["logits"] for image in answer], logits),
            ([image["evidence"] for image in answer], evidence.maps.flatten(2)),
        ]
        pairs += [([image["maps"][layer] for image in answer], values.flatten(1)) for layer, values in enumerate(maps)]
        differences += [_apart(torch.tensor(own, dtype=torch.float64), values) for own, values in pairs]
    return max(differences)


def _apart(own: Tensor, values: Tensor) -> float:
    if own.shape != values.shape:
        raise ArtefactError(
            f"the page's script answers {tuple(own.shape)} numbers "
            f"where PyTorch answers {tuple(values.shape)}: mend it."
        )
    return float((own - values).abs().nan_to_num(torch.inf).max())


def by_node(made: dict[str, Any]) -> list[list[dict[str, Any]]] | None:
    """What the page's script answers when Node runs it.

    Args:
        made: what the page's scripts read (:func:`contents`).

    Returns:
        Of each student, of each image: ``logits``, ``maps`` and ``evidence``; ``None`` where there is no Node.

    Raises:
        ArtefactError: the script fails.
    """
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        return None
    script = (_HERE / "network.js").read_text(encoding="utf-8")
    script += '\nconsole.log(JSON.stringify(Student.answers(JSON.parse(require("fs").readFileSync(0, "utf8")))));'
    command, question = [node, "-e", script], json.dumps(made)
    answer = subprocess.run(command, input=question, capture_output=True, text=True, check=False)  # noqa: S603 (our script)
    if answer.returncode:
        raise ArtefactError(
            f"the page's script fails ({answer.stderr.strip().splitlines()[-1:]}): mend kdnb/playing/network.js."
        )
    return json.loads(answer.stdout)


# -- the page ---------------------------------------------------------------------------------------------------------


def page(made: dict[str, Any]) -> str:
    """The page, one HTML file that asks for nothing.

    Args:
        made: what its scripts read (:func:`contents`).

    Returns:
        HTML, whose policy names its own scripts and style by their hashes and allows nothing else.
    """
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = "".join((_HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    template = string.Template((_HERE / "page.html").read_text(encoding="utf-8"))
    allowed = f"script-src {_source(script)}; style-src {_source(style)}; img-src data:"
    return template.substitute(
        title=TITLE,
        policy=f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        data=json.dumps(made, separators=(",", ":")).replace("</", "<\\/"),
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write(players: Players, path: Path) -> float | None:
    """Write the page.

    Args:
        players: what it is made from.
        path: its file.

    Returns:
        The largest difference between its numbers and PyTorch's, or ``None`` where there is no Node to compute them;
        the page checks its logits in the reader's browser all the same.

    Raises:
        ArtefactError: a number differs by more than :data:`TOLERANCE`.
    """
    page_data = contents(players)
    answers = by_node(page_data)
    difference = None if answers is None else largest_difference(answers, players)
    if difference is not None and difference > TOLERANCE:
        raise ArtefactError(
            f"the page's numbers differ from PyTorch's by {difference:.2g}: mend kdnb/playing/network.js."
        )
    path.write_text(page(page_data), encoding="utf-8")
    return difference
