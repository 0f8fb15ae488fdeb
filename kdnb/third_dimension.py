"""Does distillation with averaged maps carry over to volumes? Students, comparisons and costs of chapter 09.

Students learn from the same volumes in several ways (:data:`WAYS`); one kind of them sees slices alone, at as many
operations, and one kind of teacher does. Comparisons of accuracy are paired by seed and volume, those of explanations
on the same volumes where every student is right (:func:`kdnb.fidelity.paired_over_seeds`).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

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
    models,
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
    """How a student learns.

    Attributes:
        arm: its loss (:data:`kdnb.losses.ARMS`).
        shape: its network (:data:`kdnb.models3d.SHAPES`).
        teacher: what its teacher sees, ``"volumes"`` or ``"slices"``.
    """

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
# Whose explanations are judged: all of the paper's student, and of two others the one that is compared with its average
# map.
EXPLAINED: dict[str, tuple[str, ...] | None] = {
    PAPER: None,
    SLICES_ALONE: ("feature_maps_mean",),
    TRANSPARENT: ("class_evidence",),
}
TEACHER, SLICES_TEACHER, CONSTANT = "teacher", "teacher of slices", "always the most frequent class"
AVERAGE = "feature_maps_mean"
BEST_FILTER, ALIKE = "best_filter", "where every class counts alike"
# Of the average map, on the same student.
RIVALS = ("class_evidence", "grad_cam", "integrated_gradients", "shap", BEST_FILTER)


# -- students and teachers ---------------------------------------------------------------------------------------------


def train_teachers(run: Run, data: VolumeSet) -> dict[str, nn.Module]:
    """The teacher of volumes and the teacher of slices, trained on all labels or loaded from the run."""
    budget, teachers = run.budget, {}
    seed, widths = run.settings.seed, budget.volume_widths
    train, validation = (experiments.examples(data, split) for split in ("train", "val"))
    for kind, shape in (("volumes", "volume"), ("slices", "slices")):
        teacher = models3d.teacher(
            budget.volume_teacher, len(data.classes), widths, grid_of(data), seed=seed, shape=shape
        )
        recipe = training.Recipe(budget.volume_teacher_epochs, BATCH, budget.views, budget.student_learning_rate)
        key = content_key(_key(data), budget.volume_teacher, kind, vars(recipe), tuple(widths), seed)
        teacher_training.train_teacher(run, f"teacher_of_{kind}", teacher, train, validation, recipe, key, seed)
        teachers[kind] = teacher.eval()
    return teachers


def grid_of(data: VolumeSet) -> models3d.Grid:
    """How the set's volumes lie."""
    slices, rows, columns = data.spacing
    return models3d.Grid(data.shape, (slices, rows, columns))


def _key(data: VolumeSet) -> str:
    return content_key(data.data_hash, source_key(device, models, models3d, losses, training, views))


def experiments_of(
    run: Run, data: VolumeSet, teachers: dict[str, nn.Module], seeds: Sequence[int]
) -> dict[str, dict[tuple[str, int], Experiment]]:
    """What students learn from; few labels are drawn anew for every seed.

    Args:
        run: its budget says how long they learn, and from how many labels.
        data: the volumes, with their splits.
        teachers: of :func:`train_teachers`.
        seeds: of the students.

    Returns:
        How many labels there are -> (what the teacher sees, the student's seed) -> experiment.
    """
    budget = run.budget
    learned_from: dict[str, dict[tuple[str, int], Experiment]] = {ALL: {}, FEW: {}}
    train, validation, test = (experiments.examples(data, split) for split in ("train", "val", "test"))
    views_kept = min(budget.views, budget.volume_epochs)
    recipe = training.Recipe(budget.volume_epochs, BATCH, views_kept, budget.student_learning_rate)
    widths, grid = tuple(budget.volume_widths), grid_of(data)
    num_classes, key = len(data.classes), _key(data)
    for kind, teacher in teachers.items():
        bank = views.teacher_bank(teacher, train.images, views_kept, batch_size=BATCH)
        folder = f"cells_volumes_{kind}"
        experiment = Experiment(
            train, validation, test, bank, recipe, num_classes, key, folder, widths=widths, judged=False, volumes=grid
        )
        for seed in seeds:
            learned_from[ALL][kind, seed] = experiment
            learned_from[FEW][kind, seed] = with_few(experiment, teacher, budget.few_volumes, draw=seed)
    return learned_from


def with_few(experiment: Experiment, teacher: nn.Module, per_class: int, draw: int) -> Experiment:
    """The experiment with ``per_class`` labelled volumes of each class, repeated up to :data:`FEW_SEEN` an epoch."""
    train, key, positions = experiments.few_repeated(experiment, per_class, FEW_SEEN, draw)
    bank = views.teacher_bank(teacher, train.images, experiment.recipe.views, batch_size=BATCH, which=positions)
    return replace(experiment, train=train, bank=bank, key=key, folder=f"{experiment.folder}_few_{per_class}")


def student_specs(
    ways: Sequence[str], seeds: Sequence[int], alpha: float, temperature: float, experiment: Experiment
) -> dict[str, list[StudentSpec]]:
    """Way -> its students. Those of slices have filters for as many operations as those of volumes."""
    assert experiment.volumes is not None
    at_equal_cost = models3d.widths_at_equal_cost(experiment.widths, experiment.num_classes, experiment.volumes)
    students = {}
    for name in ways:
        way = WAYS[name]
        widths = at_equal_cost if way.shape == "slices" else None
        students[name] = [
            specs.spec(way.arm, seed, alpha, temperature, shape=way.shape, widths=widths) for seed in seeds
        ]
    return students


@dataclass(frozen=True)
class Taught:
    """The students of one number of labels.

    Attributes:
        specs: way -> its students, one a seed.
        results: way -> what each of its students has learned.
        hits: way -> how right each of its students is on each test volume, ``(S, n)`` float64.
    """

    specs: dict[str, list[StudentSpec]]
    results: dict[str, dict[StudentSpec, TrainedStudent]]
    hits: dict[str, np.ndarray]


def teach(
    run: Run,
    learned_from: dict[tuple[str, int], Experiment],
    ways: dict[str, list[StudentSpec]],
    scheduler: str | None = None,
) -> Taught:
    """Train the students of every way.

    Args:
        run: where finished students are kept and found again.
        learned_from: what the teacher sees and the student's seed -> what it learns from.
        ways: of :func:`student_specs`.
        scheduler: address of a Dask scheduler whose workers shall train; ``None`` trains here.

    Returns:
        The students, their results, and how right they are on the test volumes.
    """
    named = [(name, spec) for name, students in ways.items() for spec in students]
    wanted = [(spec, learned_from[WAYS[name].teacher, spec.seed]) for name, spec in named]
    results: dict[str, dict[StudentSpec, TrainedStudent]] = {name: {} for name in ways}
    for (name, spec), trained in zip(named, sweep.train_each(run, wanted, scheduler=scheduler), strict=True):
        results[name][spec] = trained
    test = next(iter(learned_from.values())).test
    hits = {
        name: np.stack(
            [expected_hits(results[name][spec].test_logits, test.labels, test.posterior) for spec in students]
        ).astype(float)
        for name, students in ways.items()
    }
    return Taught(ways, results, hits)


def network(run: Run, name: str, spec: StudentSpec, learned_from: dict[tuple[str, int], Experiment]) -> nn.Module:
    """The trained student of one cell of a way."""
    return store.trained_student(run, spec, learned_from[WAYS[name].teacher, spec.seed])


# -- accuracy ----------------------------------------------------------------------------------------------------------


def yardsticks(teachers: dict[str, nn.Module], experiment: Experiment) -> dict[str, np.ndarray]:
    """What students are measured against: how right each teacher is, and a constant answer.

    Args:
        teachers: of :func:`train_teachers`.
        experiment: whose test volumes are asked.

    Returns:
        Name -> how right it is on each test volume, ``(1, n)`` float64: the teachers, and whoever knows only which
        class training has most of.
    """
    test, names = experiment.test, {"volumes": TEACHER, "slices": SLICES_TEACHER}
    logits = {names[kind]: predict(model, test.images) for kind, model in teachers.items()}
    most = np.bincount(experiment.train.labels).argmax()
    logits[CONSTANT] = np.tile(np.arange(experiment.num_classes) == most, (len(test), 1)).astype(float)
    return {
        name: expected_hits(scores, test.labels, test.posterior)[None].astype(float) for name, scores in logits.items()
    }


def accuracies(taught: dict[str, Taught], beside: dict[str, np.ndarray], experiment: Experiment) -> pd.DataFrame:
    """How often every network is right on the test volumes: ``volumes.csv``.

    Args:
        taught: number of labels -> its students.
        beside: of :func:`yardsticks`.
        experiment: what they learn from; its test volumes were asked.

    Returns:
        A row a network: ``labels``, ``way``, ``seed``, ``accuracy`` (expected, where the true posterior is known), and
        of students ``balanced_accuracy`` (by the labels: where one class is most of all it tells more), ``macs`` and
        ``parameters``.
    """
    assert experiment.volumes is not None
    rows: list[dict[str, object]] = [
        {"labels": ALL, "way": name, "accuracy": float(hits.mean())} for name, hits in beside.items()
    ]
    depth, _, side = experiment.volumes.shape
    for labels, trained in taught.items():
        for way, students in trained.specs.items():
            student = specs.student(students[0], experiment)
            costs = {"macs": cost.macs(student, side, depth), "parameters": cost.parameters(student)}
            for k, spec in enumerate(students):
                answers = trained.results[way][spec].test_logits.argmax(axis=1)
                scores = {
                    "accuracy": float(trained.hits[way][k].mean()),
                    "balanced_accuracy": float(balanced_accuracy(confusion_matrix(experiment.test.labels, answers))),
                }
                rows.append({"labels": labels, "way": way, **costs, "seed": spec.seed, **scores})
    return pd.DataFrame(rows)


def accuracy_tests(
    taught: dict[str, Taught], beside: dict[str, np.ndarray], groups: np.ndarray, classes: np.ndarray
) -> pd.DataFrame:
    """Rows of ``tests.csv`` about accuracy.

    Networks are compared with a constant answer, students with their teacher, taught with not taught, depth with
    slices, and a smaller field with the whole one.

    A teacher also hands on how frequent classes are, which students of a few labels of each cannot know: so what it
    adds to these is asked once more where every class counts alike, of ``balanced_accuracy``.

    Args:
        taught: number of labels -> its students.
        beside: of :func:`yardsticks`.
        groups: ``(n,)``, the persons of the test volumes.
        classes: ``(n,)``, the labels of the test volumes.

    Returns:
        A row a comparison (:func:`kdnb.evaluation.compare_over_seeds`), with Holm's p.
    """
    rows = []
    _, member, counts = np.unique(classes, return_inverse=True, return_counts=True)
    weights = len(classes) / len(counts) / counts[member]
    for labels, trained in taught.items():
        comparisons = []
        if labels == ALL:
            comparisons += [("is anything learned?", name, CONSTANT) for name in (TEACHER, ALONE, PAPER)]
            comparisons += [("does the student keep up?", name, TEACHER) for name in (PAPER, TAUGHT)]
        comparisons += [("what does the teacher add?", name, ALONE) for name in (PAPER, TAUGHT, BY_SLICES)]
        comparisons += [
            ("what does depth add?", ALONE, SLICES_ALONE),
            ("what does a smaller field cost?", TRANSPARENT, TAUGHT),
        ]
        hits = trained.hits | beside
        for question, a, b in comparisons:
            if a in hits and b in hits:
                hits_b = np.broadcast_to(hits[b], hits[a].shape)
                rows.append(compare_over_seeds(f"{labels}: {question}", a, b, hits[a], hits_b, groups))
                if labels == FEW and b == ALONE:
                    question_alike = f"{labels}: {question[:-1]}, {ALIKE}?"
                    row = compare_over_seeds(question_alike, a, b, weights * hits[a], weights * hits_b, groups)
                    rows.append(row | {"metric": "balanced_accuracy"})
    return with_holm(rows)


# -- explanations ------------------------------------------------------------------------------------------------------


def explanation_rows(
    students: dict[tuple[str, int], nn.Module],
    data: VolumeSet,
    per_class: int,
    few: int,
    shap_background: int,
    shap_samples: int,
) -> pd.DataFrame:
    """Truth and faithfulness of the explanations of :data:`EXPLAINED` and of the controls.

    Args:
        students: (way, seed) -> network.
        data: where test volumes are drawn from, and the background of SHAP from training.
        per_class: test volumes of each class.
        few: of these, how many for SHAP.
        shap_background: training volumes in whose place SHAP puts what it leaves out.
        shap_samples: SHAP's samples a volume.

    Returns:
        Rows as of :func:`kdnb.fidelity.depth.rows` with columns ``way`` and ``seed``; truth only where the student is
        right.
    """
    tables = []
    for (way, seed), model in students.items():
        sample = fidelity.draw_sample(model, data, per_class)
        methods: dict[str, Method] = explain.methods(len(cast(Sequence[str], model.feature_layers)))
        explained = EXPLAINED[way]
        methods = methods if explained is None else {name: methods[name] for name in explained}
        faithful = (AVERAGE, "class_evidence", "grad_cam", "integrated_gradients", BEST_FILTER)
        if way == PAPER and (best := best_filter(model, data)):
            methods[BEST_FILTER] = partial(explain.one_filter, layer=best[0], number=best[1])
        ends = judge.ends_of(model, sample.images)
        maps = explain_all(methods, model, sample.images, sample.targets)
        of_student = [judge.rows(model, way, sample, maps, faithful, ends)]
        if way == PAPER:
            of_student.append(control_rows(model, way, sample, seed, ends))
            train = data.index("train")
            background = tensor_of(data, train[:: max(1, len(train) // shap_background)][:shap_background], model)
            first = sample.head(few)
            shap = {"shap": explain.shap_of(background, shap_samples, seed)}
            shap_maps = explain_all(shap, model, first.images, first.targets)
            of_student.append(judge.rows(model, way, first, shap_maps, ("shap",)))
        tables.append(pd.concat(of_student, ignore_index=True).assign(way=way, seed=seed))
    rows = pd.concat(tables, ignore_index=True).dropna(subset="value")
    return rows[rows["correct"] | rows["metric"].isin(judge.FAITHFULNESS)]


def control_rows(model: nn.Module, way: str, sample: fidelity.Sample, seed: int, ends: judge.Ends) -> pd.DataFrame:
    """The controls judged as explanations are; of those that are drawn, the mean over the draws."""
    tables = []
    for controls in explain.controls(seed):
        maps = explain_all(controls, model, sample.images, sample.targets)
        tables.append(judge.rows(model, way, sample, maps, explain.CONTROLS, ends))
    return fidelity.over_draws(tables)


def tensor_of(data: VolumeSet, where: np.ndarray, model: nn.Module) -> Tensor:
    """Volumes ``(n, D, H, W)`` float32 from 0 to 1 where ``model`` is."""
    return torch.from_numpy(data.volumes[where]).float().div(255).to(device.device_of(model))


@torch.no_grad()
def best_filter(model: nn.Module, data: VolumeSet) -> tuple[int, int] | None:
    """The filter that marks lesions best in *validation* volumes, by the area under the ROC curve of its cells.

    Whoever may look at the truth can choose it: an average over filters cannot be better than it knows.

    Args:
        model: a student, with ``feature_layers``.
        data: volumes with their masks.

    Returns:
        Layer (1 is the first) and number of the filter; ``None`` without masks.
    """
    positions = data.index("val")
    positions = positions if data.masks is None else positions[data.masks[positions].any(axis=(1, 2, 3))]
    if data.masks is None or not len(positions):
        return None
    masks, scores = torch.from_numpy(data.masks[positions]).float(), {}
    layers = explain.feature_maps(model, tensor_of(data, positions, model), average=False)
    for layer, maps in enumerate(layers, start=1):
        lesions = F.adaptive_max_pool3d(masks[:, None], maps.shape[2:])[:, 0].bool().numpy()
        for number in range(maps.shape[1]):
            areas = fidelity.pixel_auc(judge.flat(maps[:, number].cpu().numpy()), judge.flat(lesions))
            scores[layer, number] = float(np.nanmean(areas)) if np.isfinite(areas).any() else 0.0
    return max(scores, key=scores.__getitem__)


def explanation_summary(rows: pd.DataFrame, samples: int) -> pd.DataFrame:
    """Every measure of every explanation: ``volumes_explained.csv``.

    Args:
        rows: of :func:`explanation_rows`.
        samples: how often the bootstrap draws.

    Returns:
        ``way``, ``method``, ``metric``, ``n`` volumes; ``mean``, over the seeds and then over volumes, with ``lo`` and
        ``hi``, its 95% bootstrap interval over persons for these trained students; the ``lowest`` and ``highest`` mean
        of a seed.
    """
    keys, summary = ["way", "method", "metric"], []
    for key, measured in rows.groupby(keys, sort=False):
        of_volumes = measured.groupby(["image_id", "group"])["value"].mean()
        of_seeds = measured.groupby("seed")["value"].mean()
        persons = of_volumes.index.get_level_values("group").to_numpy()
        interval = bootstrap_mean(of_volumes.to_numpy(), persons, samples, bounds=(0.0, 1.0))
        summary.append((*key, len(of_volumes), *interval, of_seeds.min(), of_seeds.max()))
    return pd.DataFrame(summary, columns=[*keys, "n", "mean", "lo", "hi", "lowest", "highest"])


def explanation_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``tests.csv`` about explanations.

    The paper's average map is compared with controls and rivals, and with what other students' explanations are worth.

    Args:
        rows: of :func:`explanation_rows`.

    Returns:
        A row a comparison and metric (:func:`kdnb.fidelity.paired_over_seeds`), with Holm's p; no row, and no column,
        where nothing can be compared.
    """
    metrics: dict[str, Sequence[str]] = {"controls": [*judge.TRUTH, *judge.FAITHFULNESS]}
    metrics |= {"rivals": [*judge.TRUTH, *judge.DEPTH, *judge.FAITHFULNESS], "depth": judge.DEPTH}
    comparisons = [("controls", PAPER, AVERAGE, PAPER, name) for name in explain.CONTROLS]
    comparisons += [("depth", PAPER, AVERAGE, PAPER, name) for name in explain.CONTROLS]
    comparisons += [("rivals", PAPER, AVERAGE, PAPER, name) for name in RIVALS]
    comparisons += [
        ("rivals", TRANSPARENT, "class_evidence", PAPER, AVERAGE),
        ("rivals", SLICES_ALONE, AVERAGE, PAPER, AVERAGE),
    ]
    questions = {
        "controls": "controls: is the average map better than what knows nothing?",
        "depth": "depth: does the average map find the slices?",
        "rivals": "rivals: whose explanation is better?",
    }
    tests = []
    for kind, way_a, method_a, way_b, method_b in comparisons:
        sides = ((way_a, method_a), (way_b, method_b))
        explained = [rows[(rows["way"] == way) & (rows["method"] == method)] for way, method in sides]
        name_a, name_b = [method if way == PAPER else f"{method}, {way}" for way, method in sides]
        for metric in metrics[kind]:
            rows_a, rows_b = [side[side["metric"] == metric] for side in explained]
            if len(rows_a) and len(rows_b):
                row = fidelity.paired_over_seeds(questions[kind], name_a, name_b, rows_a, rows_b, metric)
                if row is not None:
                    tests.append(row)
    return with_holm(tests) if tests else pd.DataFrame()


def in_brief(tests: pd.DataFrame, question: str) -> pd.DataFrame:
    """A few comparisons of :func:`explanation_tests` as a table to look at.

    Args:
        tests: of :func:`explanation_tests`.
        question: how the questions of these comparisons begin.

    Returns:
        A row a pair, a column a measure, each difference with a star where Holm's p < 0.05; and on how many volumes.
    """
    selected = tests[tests["question"].str.startswith(question)]
    starred = [
        f"{difference:+.2f}{'*' * (p < LEVEL)}"
        for difference, p in zip(selected["difference"], selected["p_holm"], strict=True)
    ]
    pair = (selected["a"] + " − " + selected["b"]).str.replace("feature_maps_mean", "average map")
    named = selected.assign(starred=starred, pair=pair)
    table = named.set_index(["pair", "metric"])["starred"].unstack("metric", sort=False).rename_axis(columns=None)
    least_and_most = named.groupby("pair")["n"].agg(["min", "max"]).astype(int).astype(str)
    return table.assign(volumes=least_and_most["min"] + " to " + least_and_most["max"])


# -- cost --------------------------------------------------------------------------------------------------------------


def kept_bytes(model: nn.Module, volumes: Tensor) -> int:
    """How many bytes one step of training keeps for the way back: what autograd saves, each block of memory once."""
    blocks: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        blocks[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(volumes)
        total = sum(size for address, size in blocks.items() if address not in parameters)
    del logits
    return total


def growth(model: nn.Module, shape: Sequence[int], repeats: int, batch: int = 4) -> pd.DataFrame:
    """What average maps and training cost as a volume grows: one axis doubled, then all three.

    Args:
        model: a student, which takes volumes of every size.
        shape: slices, rows and columns of the volume as it is.
        repeats: how often time is measured.
        batch: volumes at once, of which each is charged its part.

    Returns:
        ``doubled``, ``slices``, ``side`` (rows by columns), and over the volume as it is ``macs_ratio`` (counted),
        ``memory_ratio`` (bytes kept in a step, counted) and ``time_ratio`` of the average maps (measured); ``macs``,
        ``mib`` and ``ms`` themselves, a volume.
    """
    depth, height, width = shape
    on_host, rows = copy.deepcopy(model).cpu(), []  # memory is counted there: every block has an address
    grown = {"nothing": (1, 1, 1), "slices": (2, 1, 1), "rows": (1, 2, 1), "columns": (1, 1, 2), "all": (2, 2, 2)}
    for name, factors in grown.items():
        size = tuple(side * factor for side, factor in zip((depth, height, width), factors, strict=True))
        volumes = torch.rand(batch, *size, device=device.device_of(model))
        targets = torch.zeros(batch, dtype=torch.int64, device=volumes.device)
        time = cost.measure(partial(explain.average_mean, model, volumes, targets), repeats)
        # Counted on the volume itself: rows and columns may differ.
        macs = cost.macs_of(model, volumes) / batch
        row = {"doubled": name, "slices": size[0], "side": f"{size[1]} x {size[2]}", "macs": macs}
        rows.append(row | {"mib": kept_bytes(on_host, volumes[:1].cpu()) / 2**20, "ms": 1e3 * time.median / batch})
    table = pd.DataFrame(rows)
    for name, column in (("macs_ratio", "macs"), ("memory_ratio", "mib"), ("time_ratio", "ms")):
        table[name] = table[column] / table[column].iloc[0]
    return table
