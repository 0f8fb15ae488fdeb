"""Does distillation with averaged maps carry over to volumes? Students, comparisons and costs of chapter 09.

Students learn from the same volumes in several ways (:data:`WAYS`); one kind of them sees slices alone, at as many operations, and one kind
of teacher does. Comparisons of accuracy are paired by seed and volume, those of explanations on the same volumes where every student is
right (:func:`kdnb.fidelity.paired_over_seeds`).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb import (
    cost,
    device,
    experiments,
    fidelity,
    losses,
    models3d,
    specs,
    store,
    sweep,
    teacher_training,
    training,
    views,
)
from kdnb.datasets.volumes import VolumeSet
from kdnb.evaluation import balanced_accuracy, bootstrap_mean, compare_over_seeds, expected_hits, predict, with_holm
from kdnb.experiments import Experiment
from kdnb.explain import Method, explain_all
from kdnb.explain import volumes as explain
from kdnb.fidelity import depth as judge
from kdnb.provenance import content_key, source_key
from kdnb.runs import Run
from kdnb.specs import StudentSpec, TrainedStudent

BATCH = 8  # many steps in few volumes
FEW_SEEN = 80  # volumes an epoch of students that know only a few
LEVEL = 0.05  # Holm's p below which a table marks a difference


@dataclass(frozen=True)
class Way:
    """How a student learns: its loss (:data:`kdnb.losses.ARMS`), its shape (:data:`kdnb.models3d.SHAPES`), and what its teacher sees."""

    arm: str
    shape: str = "volume"
    teacher: str = "volumes"


ALONE, PAPER, TAUGHT, BY_SLICES = "labels alone", "paper's loss", "with T²", "with T², by a teacher of slices"
SLICES_ALONE, TRANSPARENT = "slices, labels alone", "transparent, with T²"
WAYS = {
    ALONE: Way("ce"),
    PAPER: Way("kd"),
    TAUGHT: Way("kd_t2"),
    BY_SLICES: Way("kd_t2", teacher="slices"),
    SLICES_ALONE: Way("ce", "slices"),
    TRANSPARENT: Way("kd_t2", "volume_transparent"),
}
WITH_FEW = (ALONE, PAPER, TAUGHT, BY_SLICES)
ALL, FEW = "all labels", "few labels"
# Whose explanations are judged: all of the paper's student, and of two others the one that is compared with its average map.
EXPLAINED = {PAPER: None, SLICES_ALONE: ("feature_maps_mean",), TRANSPARENT: ("class_evidence",)}
TEACHER, SLICES_TEACHER, CONSTANT = "teacher", "teacher of slices", "always the most frequent class"
AVERAGE = "feature_maps_mean"
BEST_FILTER, ALIKE = "best_filter", "where every class counts alike"
RIVALS = (
    "class_evidence",
    "grad_cam",
    "integrated_gradients",
    "shap",
    BEST_FILTER,
)  # of the average map, on the same student


# -- students and teachers ----------------------------------------------------------------------------------------------


def train_teachers(run: Run, data: VolumeSet) -> dict[str, nn.Module]:
    """The teacher of volumes and the teacher of slices, trained on all labels or loaded from the run."""
    budget, found = run.budget, {}
    train, validation = (experiments.examples(data, split) for split in ("train", "val"))
    for sees, shape in (("volumes", "volume"), ("slices", "slices")):
        options = {"seed": run.settings.seed, "shape": shape}
        teacher = models3d.teacher(
            budget.volume_teacher, len(data.classes), budget.volume_widths, grid_of(data), **options
        )
        recipe = training.Recipe(budget.volume_teacher_epochs, BATCH, budget.views, budget.student_learning_rate)
        key = content_key(
            _key(data), budget.volume_teacher, sees, vars(recipe), tuple(budget.volume_widths), run.settings.seed
        )
        teacher_training.train_teacher(
            run, f"teacher_of_{sees}", teacher, train, validation, recipe, key, run.settings.seed
        )
        found[sees] = teacher.eval()
    return found


def grid_of(data: VolumeSet) -> models3d.Grid:
    """How the set's volumes lie."""
    return models3d.Grid(data.shape, tuple(data.spacing))


def _key(data: VolumeSet) -> str:
    return content_key(data.data_hash, source_key(device, models3d, losses, training, views))


def experiments_of(run: Run, data: VolumeSet, teachers: dict[str, nn.Module]) -> dict[tuple[str, str], Experiment]:
    """What students learn from, by how many labels there are and what the teacher sees."""
    budget, found = run.budget, {}
    train, validation, test = (experiments.examples(data, split) for split in ("train", "val", "test"))
    count = min(budget.views, budget.volume_epochs)
    recipe = training.Recipe(budget.volume_epochs, BATCH, count, budget.student_learning_rate)
    widths = tuple(budget.volume_widths)
    for sees, teacher in teachers.items():
        bank = views.teacher_bank(teacher, train.images, count, batch_size=BATCH)
        options = {"folder": f"cells_volumes_{sees}", "widths": widths, "volumes": grid_of(data)}
        whole = Experiment(train, validation, test, bank, recipe, len(data.classes), _key(data), **options)
        found[ALL, sees], found[FEW, sees] = whole, with_few(whole, teacher, budget.few_volumes)
    return found


def with_few(whole: Experiment, teacher: nn.Module, per_class: int) -> Experiment:
    """The experiment with ``per_class`` labelled volumes of each class, repeated up to :data:`FEW_SEEN` an epoch."""
    chosen = np.random.default_rng(per_class).permutation(experiments.few_labelled(whole, per_class))
    where = np.resize(chosen, min(len(whole.train), FEW_SEEN))
    posterior = None if whole.train.posterior is None else whole.train.posterior[where]
    train = training.Examples(whole.train.images[where], whole.train.labels[where], posterior)
    bank = views.teacher_bank(teacher, train.images, whole.recipe.views, batch_size=BATCH)
    return replace(
        whole, train=train, bank=bank, key=content_key(whole.key, per_class), folder=f"{whole.folder}_few_{per_class}"
    )


def cells(
    ways: Sequence[str], seeds: Sequence[int], alpha: float, temperature: float, experiment: Experiment
) -> dict[str, list[StudentSpec]]:
    """Way -> its students. Those of slices have filters for as many operations as those of volumes."""
    at_equal_cost = models3d.widths_at_equal_cost(experiment.widths, experiment.num_classes, experiment.volumes)
    found = {}
    for name in ways:
        way = WAYS[name]
        options = {"shape": way.shape, "widths": at_equal_cost if way.shape == "slices" else None}
        found[name] = [specs.spec(way.arm, seed, alpha, temperature, **options) for seed in seeds]
    return found


@dataclass(frozen=True)
class Taught:
    """The students of one number of labels: cells and results by way, and how right each is on each test volume, ``(S, n)``."""

    cells: dict[str, list[StudentSpec]]
    results: dict[str, dict[StudentSpec, TrainedStudent]]
    hits: dict[str, np.ndarray]


def teach(
    run: Run, by_teacher: dict[str, Experiment], ways: dict[str, list[StudentSpec]], scheduler: str | None = None
) -> Taught:
    """Train the students of every way.

    Args:
        by_teacher: what they learn from, by what the teacher sees.
    """
    results = {}
    for sees, experiment in by_teacher.items():
        of_teacher = {name: of_way for name, of_way in ways.items() if WAYS[name].teacher == sees}
        asked = list(dict.fromkeys(one for of_way in of_teacher.values() for one in of_way))
        trained = sweep.train(run, asked, experiment, scheduler=scheduler)
        results |= {name: {one: trained[one] for one in of_way} for name, of_way in of_teacher.items()}
    test = next(iter(by_teacher.values())).test
    hits = {
        name: np.stack(
            [expected_hits(results[name][one].test_logits, test.labels, test.posterior) for one in ways[name]]
        ).astype(float)
        for name in ways
    }
    return Taught(ways, results, hits)


def network(run: Run, name: str, one: StudentSpec, by_teacher: dict[str, Experiment]) -> nn.Module:
    """The trained student of one cell of a way."""
    return store.trained_student(run, one, by_teacher[WAYS[name].teacher])


# -- accuracy -----------------------------------------------------------------------------------------------------------


def yardsticks(teachers: dict[str, nn.Module], experiment: Experiment) -> dict[str, np.ndarray]:
    """How right each teacher is on each test volume, ``(1, n)``, and whoever knows only which class training has most of."""
    test, names = experiment.test, {"volumes": TEACHER, "slices": SLICES_TEACHER}
    logits = {names[sees]: predict(model, test.images) for sees, model in teachers.items()}
    most = np.bincount(experiment.train.labels).argmax()
    logits[CONSTANT] = np.tile(np.arange(experiment.num_classes) == most, (len(test), 1)).astype(float)
    return {name: expected_hits(told, test.labels, test.posterior)[None].astype(float) for name, told in logits.items()}


def accuracies(taught: dict[str, Taught], beside: dict[str, np.ndarray], experiment: Experiment) -> pd.DataFrame:
    """A row a network: ``labels``, ``way``, ``seed``, ``accuracy`` (expected, where the true posterior is known), and of students
    ``balanced_accuracy`` (by the labels: where one class is most of all it tells more), ``macs`` and ``parameters``.

    Args:
        beside: of :func:`yardsticks`.
    """
    rows = [{"labels": ALL, "way": name, "accuracy": float(right.mean())} for name, right in beside.items()]
    depth, _, side = experiment.volumes.shape
    for labels, found in taught.items():
        for name, of_way in found.cells.items():
            built = specs.student(of_way[0], experiment)
            what = {
                "labels": labels,
                "way": name,
                "macs": cost.macs(built, side, depth),
                "parameters": cost.parameters(built),
            }
            for k, one in enumerate(of_way):
                confusion = confusion_matrix(
                    experiment.test.labels, found.results[name][one].test_logits.argmax(axis=1)
                )
                scores = {
                    "accuracy": float(found.hits[name][k].mean()),
                    "balanced_accuracy": float(balanced_accuracy(confusion)),
                }
                rows.append(what | {"seed": one.seed} | scores)
    return pd.DataFrame(rows)


def accuracy_tests(
    taught: dict[str, Taught], beside: dict[str, np.ndarray], groups: np.ndarray, classes: np.ndarray
) -> pd.DataFrame:
    """Rows of ``tests.csv``: networks against a constant answer, students against their teacher, taught against not taught, depth against
    slices, and the smaller field.

    A teacher also hands on how frequent classes are, which students of a few labels of each cannot know: so what it adds to these is asked
    once more where every class counts alike, of ``balanced_accuracy``.

    Args:
        beside: of :func:`yardsticks`. groups, classes: ``(n,)``, the persons and the labels of the test volumes.
    """
    rows = []
    _, member, counts = np.unique(classes, return_inverse=True, return_counts=True)
    weights = len(classes) / len(counts) / counts[member]
    for labels, found in taught.items():
        asked = []
        if labels == ALL:
            asked += [("is anything learned?", name, CONSTANT) for name in (TEACHER, ALONE, PAPER)]
            asked += [("does the student keep up?", name, TEACHER) for name in (PAPER, TAUGHT)]
        asked += [("what does the teacher add?", name, ALONE) for name in (PAPER, TAUGHT, BY_SLICES)]
        asked += [
            ("what does depth add?", ALONE, SLICES_ALONE),
            ("what does a smaller field cost?", TRANSPARENT, TAUGHT),
        ]
        both = found.hits | beside
        for question, a, b in asked:
            if a in both and b in both:
                right = np.broadcast_to(both[b], both[a].shape)
                rows.append(compare_over_seeds(f"{labels}: {question}", a, b, both[a], right, groups))
                if labels == FEW and b == ALONE:
                    row = compare_over_seeds(
                        f"{labels}: {question[:-1]}, {ALIKE}?", a, b, weights * both[a], weights * right, groups
                    )
                    rows.append(row | {"metric": "balanced_accuracy"})
    return with_holm(rows)


# -- explanations -------------------------------------------------------------------------------------------------------


def explanation_rows(
    students: dict[tuple[str, int], nn.Module],
    data: VolumeSet,
    per_class: int,
    few: int,
    shap_background: int,
    shap_samples: int,
) -> pd.DataFrame:
    """Truth and faithfulness of the explanations of :data:`EXPLAINED` and of the controls: rows with columns ``way`` and ``seed``.

    Truth only where the student is right.

    Args:
        students: (way, seed) -> network. per_class: test volumes of each class. few: of these, how many for SHAP.
    """
    tables = []
    for (way, seed), model in students.items():
        sample = fidelity.draw_sample(model, data, per_class)
        chosen: dict[str, Method] = explain.methods(len(model.feature_layers))
        chosen = chosen if EXPLAINED[way] is None else {name: chosen[name] for name in EXPLAINED[way]}
        faithful = (AVERAGE, "class_evidence", "grad_cam", "integrated_gradients", BEST_FILTER)
        if way == PAPER and (picked := best_filter(model, data)):
            chosen[BEST_FILTER] = lambda m, v, t, picked=picked: explain.one_filter(
                m, v, t, layer=picked[0], number=picked[1]
            )
        ends = judge.ends_of(model, sample.images)
        parts = [
            judge.rows(model, way, sample, explain_all(chosen, model, sample.images, sample.targets), faithful, ends)
        ]
        if way == PAPER:
            parts.append(control_rows(model, way, sample, seed, ends))
            train = data.index("train")
            background = tensor_of(data, train[:: max(1, len(train) // shap_background)][:shap_background], model)
            some = sample.head(few)
            shap = {"shap": explain.shap_of(background, shap_samples, seed)}
            parts.append(judge.rows(model, way, some, explain_all(shap, model, some.images, some.targets), ("shap",)))
        tables.append(pd.concat(parts, ignore_index=True).assign(way=way, seed=seed))
    rows = pd.concat(tables, ignore_index=True).dropna(subset="value")
    return rows[rows["correct"] | rows["metric"].isin(judge.FAITHFULNESS)]


def control_rows(model: nn.Module, way: str, sample: fidelity.Sample, seed: int, ends: judge.Ends) -> pd.DataFrame:
    """The controls judged as explanations are; of those that are drawn, the mean over the draws."""
    tables = []
    for drawn in explain.controls(seed):
        maps = explain_all(drawn, model, sample.images, sample.targets)
        tables.append(judge.rows(model, way, sample, maps, explain.CONTROLS, ends))
    return fidelity.over_draws(tables)


def tensor_of(data: VolumeSet, where: np.ndarray, model: nn.Module) -> Tensor:
    """Volumes ``(n, D, H, W)`` float32 from 0 to 1 where ``model`` is."""
    return torch.from_numpy(data.volumes[where]).float().div(255).to(device.device_of(model))


@torch.no_grad()
def best_filter(model: nn.Module, data: VolumeSet) -> tuple[int, int] | None:
    """Layer (1 is the first) and number of the filter that marks lesions best in *validation* volumes, by the area under the ROC curve of
    its cells; ``None`` without masks. Whoever may look at the truth can choose it: an average over filters cannot be better than it knows.
    """
    where = data.index("val")
    where = where if data.masks is None else where[data.masks[where].any(axis=(1, 2, 3))]
    if data.masks is None or not len(where):
        return None
    masks, scores = torch.from_numpy(data.masks[where]).float(), {}
    for layer, maps in enumerate(explain.feature_maps(model, tensor_of(data, where, model), average=False), start=1):
        there = F.adaptive_max_pool3d(masks[:, None], maps.shape[2:])[:, 0].bool().numpy()
        for number in range(maps.shape[1]):
            values = fidelity.pixel_auc(judge.flat(maps[:, number].cpu().numpy()), judge.flat(there))
            scores[layer, number] = float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
    return max(scores, key=scores.get)


def explanation_summary(rows: pd.DataFrame, samples: int) -> pd.DataFrame:
    """Every measure of every explanation: ``volumes_explained.csv``.

    Returns:
        ``way``, ``method``, ``metric``, ``n`` volumes; ``mean``, over the seeds and then over volumes, with ``lo`` and ``hi``, its 95%
        bootstrap interval over persons for these trained students; the ``lowest`` and ``highest`` mean of a seed.
    """
    keys, found = ["way", "method", "metric"], []
    for key, part in rows.groupby(keys, sort=False):
        of_volumes, of_seeds = part.groupby(["image_id", "group"])["value"].mean(), part.groupby("seed")["value"].mean()
        persons = of_volumes.index.get_level_values("group").to_numpy()
        interval = bootstrap_mean(of_volumes.to_numpy(), persons, samples, bounds=(0.0, 1.0))
        found.append((*key, len(of_volumes), *interval, of_seeds.min(), of_seeds.max()))
    return pd.DataFrame(found, columns=[*keys, "n", "mean", "lo", "hi", "lowest", "highest"])


def explanation_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``tests.csv``: the paper's average map against controls and rivals, and what other students' explanations are worth."""
    metrics = {"controls": [*judge.TRUTH, *judge.FAITHFULNESS]}
    metrics |= {"rivals": [*judge.TRUTH, *judge.DEPTH, *judge.FAITHFULNESS], "depth": judge.DEPTH}
    asked = [("controls", PAPER, AVERAGE, PAPER, name) for name in explain.CONTROLS]
    asked += [("depth", PAPER, AVERAGE, PAPER, name) for name in explain.CONTROLS]
    asked += [("rivals", PAPER, AVERAGE, PAPER, name) for name in RIVALS]
    asked += [
        ("rivals", TRANSPARENT, "class_evidence", PAPER, AVERAGE),
        ("rivals", SLICES_ALONE, AVERAGE, PAPER, AVERAGE),
    ]
    words = {
        "controls": "controls: is the average map better than what knows nothing?",
        "depth": "depth: does the average map find the slices?",
        "rivals": "rivals: whose explanation is better?",
    }
    found = []
    for kind, way_a, a, way_b, b in asked:
        sides = [rows[(rows["way"] == way) & (rows["method"] == method)] for way, method in ((way_a, a), (way_b, b))]
        names = [method if way == PAPER else f"{method}, {way}" for way, method in ((way_a, a), (way_b, b))]
        for metric in metrics[kind]:
            pair = [side[side["metric"] == metric] for side in sides]
            row = fidelity.paired_over_seeds(words[kind], *names, *pair, metric) if all(map(len, pair)) else None
            found += [row] if row is not None else []
    return with_holm(found) if found else pd.DataFrame()


def in_brief(tests: pd.DataFrame, question: str) -> pd.DataFrame:
    """The comparisons whose question begins so: a row a pair, a column a measure, each difference with a star where Holm's p < 0.05."""
    part = tests[tests["question"].str.startswith(question)]
    said = [
        f"{difference:+.2f}{'*' * (p < LEVEL)}"
        for difference, p in zip(part["difference"], part["p_holm"], strict=True)
    ]
    pair = part["a"] + " minus " + part["b"]
    return (
        part.assign(said=said, pair=pair)
        .set_index(["pair", "metric"])["said"]
        .unstack("metric", sort=False)
        .rename_axis(columns=None)
    )


# -- cost ---------------------------------------------------------------------------------------------------------------


def kept_bytes(model: nn.Module, volumes: Tensor) -> int:
    """How many bytes one step of training keeps for the way back: what autograd saves, each block of memory once."""
    blocks: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        blocks[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(volumes)
        total = sum(size for place, size in blocks.items() if place not in own)
    del logits
    return total


def growth(model: nn.Module, shape: Sequence[int], repeats: int, batch: int = 4) -> pd.DataFrame:
    """What average maps and training cost as a volume grows: one axis doubled, then all three.

    Returns:
        ``doubled``, ``slices``, ``side`` (rows by columns), and over the volume as it is ``macs_ratio`` (counted), ``memory_ratio`` (bytes
        kept in a step, counted) and ``time_ratio`` of the average maps (measured); ``macs``, ``mib`` and ``ms`` themselves, a volume.
    """
    depth, height, width = shape
    on_host, rows = copy.deepcopy(model).cpu(), []  # memory is counted there: every block has an address
    for name, factors in {
        "nothing": (1, 1, 1),
        "slices": (2, 1, 1),
        "rows": (1, 2, 1),
        "columns": (1, 1, 2),
        "all": (2, 2, 2),
    }.items():
        size = tuple(side * factor for side, factor in zip((depth, height, width), factors, strict=True))
        volumes = torch.rand(batch, *size, device=device.device_of(model))
        targets = torch.zeros(batch, dtype=torch.int64, device=volumes.device)
        time = cost.measure(lambda v=volumes, t=targets: explain.average_mean(model, v, t), repeats)
        # Counted on the volume itself: rows and columns may differ.
        row = {
            "doubled": name,
            "slices": size[0],
            "side": f"{size[1]} x {size[2]}",
            "macs": _macs_of(model, volumes) / batch,
        }
        rows.append(row | {"mib": kept_bytes(on_host, volumes[:1].cpu()) / 2**20, "ms": 1e3 * time.median / batch})
    table = pd.DataFrame(rows)
    for name, column in (("macs_ratio", "macs"), ("memory_ratio", "mib"), ("time_ratio", "ms")):
        table[name] = table[column] / table[column].iloc[0]
    return table


def _macs_of(model: nn.Module, volumes: Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(volumes)
    return counter.get_total_flops() / 2
