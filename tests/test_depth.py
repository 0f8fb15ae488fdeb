"""Explanations in depth and their measures, on maps whose score is known beforehand;
chapter 09's comparisons on tables of known answer."""

import numpy as np
import pandas as pd
import pytest
import torch

from kdnb import fidelity, models3d, third_dimension
from kdnb.experiments import Experiment
from kdnb.explain import volumes as explain
from kdnb.explain.maps import evaluation_mode
from kdnb.explain.methods import integrated_gradients
from kdnb.fidelity import depth
from kdnb.fidelity.tables import Sample
from kdnb.figures import volumes as figures
from kdnb.models3d import Grid
from kdnb.specs import TrainedStudent
from kdnb.third_dimension import ALONE, AVERAGE, CONSTANT, PAPER, SLICES_ALONE, TAUGHT
from kdnb.training import Examples, Recipe

SHAPE = (8, 16, 16)


@pytest.fixture(scope="module")
def network() -> models3d.VolumeStudent:
    return models3d.student("volume", 3, (4, 6, 8, 8, 12), Grid(SHAPE, (2.0, 1.0, 1.0)), seed=0).eval()


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))


def lesion() -> np.ndarray:
    """Slices 2 and 3 of eight, a square of 16 voxels."""
    masks = np.zeros((2, *SHAPE), bool)
    masks[:, 2:4, 4:8, 4:8] = True
    return masks


def judged(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    ranks = depth.rank_of(torch.from_numpy(maps.astype(np.float32))).numpy()
    return {name: float(np.nanmean(values)) for name, values in depth.truth(maps, ranks, masks).items()}


# -- measures -------------------------------------------------------------------------------------------------------


def test_a_perfect_map_is_perfect_and_one_slice_hides_half_of_it():
    scores = judged(lesion().astype(float), lesion())
    assert scores == {
        "pointing_game": 1,
        "rank_accuracy": 1,
        "pixel_auc": 1,
        "slice_pointing": 1,
        "slice_auc": 1,
        "hidden": 0.5,
    }


def test_the_right_place_in_the_wrong_slices_is_found_out():
    moved = np.roll(lesion(), 4, axis=1).astype(float)
    scores = judged(moved, lesion())
    assert (
        scores["pointing_game"] == scores["slice_pointing"] == 0 and scores["slice_auc"] < 0.5 and scores["hidden"] == 1
    )
    assert judged(lesion().any(axis=1, keepdims=True).repeat(8, axis=1).astype(float), lesion())["slice_auc"] == 0.5


def test_a_constant_map_is_at_chance_and_no_lesion_is_undefined():
    scores = judged(np.ones((2, *SHAPE)), lesion())
    assert scores["pixel_auc"] == scores["slice_auc"] == 0.5 and scores["slice_pointing"] == 0.25
    empty = np.zeros((2, *SHAPE), bool)
    ranks = depth.rank_of(torch.ones(2, *SHAPE)).numpy()
    assert all(np.isnan(values).all() for values in depth.truth(np.ones((2, *SHAPE)), ranks, empty).values())


def test_mass_by_slice_sums_to_one_whatever_the_sign():
    maps = np.random.default_rng(0).normal(size=(5, *SHAPE))
    assert np.allclose(depth.by_slice(maps).sum(axis=1), 1) and (depth.by_slice(maps) >= 0).all()
    assert np.allclose(depth.by_slice(np.full((1, *SHAPE), -3.0)), 1 / 8)


class Middle(torch.nn.Module):
    """Class 1 as much as the voxels of the lesion are bright, and nothing else."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(lesion()[:1].astype(np.float32)))

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        bright = 4 * (volumes * self.weight).sum(dim=(1, 2, 3)) / self.weight.sum()
        return torch.stack([torch.full_like(bright, 2.0), bright], dim=1)


def test_faithfulness_rewards_the_voxels_that_decide():
    volumes, targets = torch.zeros(2, *SHAPE), torch.ones(2, dtype=torch.int64)
    volumes[:, 2:4, 4:8, 4:8] = 1
    model, masks = Middle(), torch.from_numpy(lesion())
    ends = depth.ends_of(model, volumes)
    good, bad = (
        depth.faithfulness(model, volumes, targets, depth.rank_of(maps), ends)
        for maps in (masks.float(), 1 - masks.float())
    )
    assert (good["insertion_blur"] > bad["insertion_blur"] + 0.2).all() and (
        good["deletion_blur"] < bad["deletion_blur"] - 0.2
    ).all()


def test_the_blur_keeps_a_constant_and_blurs_in_depth_too():
    assert torch.allclose(explain.blurred(torch.full((1, *SHAPE), 0.3)), torch.full((1, *SHAPE), 0.3), atol=1e-5)
    point = torch.zeros(1, 8, 16, 16)
    point[0, 4, 8, 8] = 1
    assert explain.blurred(point)[0, 5, 8, 8] > 0 and explain.blurred(point)[0, 4, 8, 9] > 0


# -- methods --------------------------------------------------------------------------------------------------------


def test_average_maps_are_the_mean_over_filters(network, volumes):
    with evaluation_mode(network), torch.no_grad():
        by_hand = network.features[0](network.standardise(volumes)[:, None]).mean(dim=1)
    maps = explain.feature_maps(network, volumes)
    assert torch.allclose(maps[0], by_hand, atol=1e-5) and len(maps) == 5
    all_filters = explain.feature_maps(network, volumes, average=False)
    assert all(torch.allclose(a.mean(dim=1), b, atol=1e-5) for a, b in zip(all_filters, maps, strict=True))
    single_filter = explain.one_filter(network, volumes, None, layer=1, number=2)
    assert torch.allclose(single_filter, explain.upsampled(all_filters[0][:, 2], SHAPE), atol=1e-6)


def test_every_method_and_control_gives_a_map_of_the_volume_s_size(network, volumes):
    targets = torch.tensor([0, 1, 2])
    every = explain.methods(5) | {name: control for drawn in explain.controls(0) for name, control in drawn.items()}
    every["shap"] = explain.shap_of(volumes[:2], samples=4)
    assert set(explain.CONTROLS) < set(every)
    for name, method in every.items():
        maps = method(network, volumes, targets)
        assert maps.shape == volumes.shape and torch.isfinite(maps).all() and maps.dtype == torch.float32, name


def test_grad_cam_is_positive_evidence(network, volumes):
    """Of a network that ends in a mean and a linear layer, as in two dimensions."""
    targets = torch.tensor([0, 1, 2])
    from kdnb.explain import class_evidence

    maps = class_evidence(network, volumes).maps
    cells = maps[torch.arange(3), targets].clamp_min(0) / maps[0, 0].numel()
    assert torch.allclose(explain.grad_cam(network, volumes, targets), explain.upsampled(cells, SHAPE), atol=1e-6)


def test_integrated_gradients_add_up_to_what_the_blur_in_depth_changes(network, volumes):
    targets = torch.tensor([0, 1, 2])
    signed = integrated_gradients(
        network, volumes, targets, join=lambda values: values, baseline=explain.blurred, steps=explain.STEPS
    )
    with evaluation_mode(network), torch.no_grad():
        change = (network(volumes) - network(explain.blurred(volumes))).gather(1, targets[:, None])[:, 0]
    assert change.abs().max() > 1e-3 and (signed.sum(dim=(1, 2, 3)) - change).abs().max() < 0.05 * change.abs().max()
    assert torch.allclose(explain.methods(5)["integrated_gradients"](network, volumes, targets), signed.abs())


def test_a_random_map_hangs_on_the_volume_and_the_draw_alone(network, volumes):
    maps = explain.random_map(network, volumes, None)
    assert torch.equal(maps[1:2], explain.random_map(network, volumes[1:2], None))
    assert not torch.allclose(maps, explain.random_map(network, volumes, None, seed=1))


# -- chapter 09 -----------------------------------------------------------------------------------------------------


def explained(better: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Rows of 24 volumes and three seeds: each method scores 0.5, more or less by ``better``, with a little luck."""
    rng, rows = np.random.default_rng(0), []
    pairs = [(PAPER, name) for name in (AVERAGE, "class_evidence", *explain.CONTROLS)]
    for way, method in pairs:
        for seed in range(3):
            for k in range(24):
                for metric in (*depth.TRUTH, *depth.DEPTH, *depth.FAITHFULNESS):
                    sign = depth.FAITHFULNESS.get(metric, 1)
                    value = 0.5 + sign * better.get((way, method), 0) + rng.normal(0, 0.01)
                    rows.append((f"v{k}", f"v{k}", way, method, metric, value, seed))
    return pd.DataFrame(rows, columns=["image_id", "group", "way", "method", "metric", "value", "seed"])


def test_the_average_map_is_compared_with_every_control_by_every_measure():
    tests = third_dimension.explanation_tests(explained({(PAPER, AVERAGE): 0.2, (PAPER, "class_evidence"): 0.3}))
    controls = tests[tests["question"].str.startswith("controls")]
    assert len(controls) == 5 * 5 and (controls["better"] == AVERAGE).all() and (controls["p_holm"] < 0.01).all()
    evidence = tests[tests["b"] == "class_evidence"].set_index("metric")["better"]
    assert (evidence == "class_evidence").all() and "deletion_blur" in evidence.index


def test_comparisons_in_brief_have_a_column_a_measure_and_stars_where_it_is_not_luck():
    tests = third_dimension.explanation_tests(explained({(PAPER, AVERAGE): 0.2}))
    table = third_dimension.in_brief(tests, "controls")
    assert list(table) == [*depth.TRUTH, *depth.FAITHFULNESS, "volumes"] and len(table) == len(explain.CONTROLS)
    assert (
        table.loc["average map − centre", "pixel_auc"] == "+0.20*"
        and table["deletion_blur"].str.startswith("-0.20").all()
    )
    same = third_dimension.in_brief(third_dimension.explanation_tests(explained({})), "controls")
    assert (~same.drop(columns="volumes").stack().str.endswith("*")).mean() > 0.9


def test_accuracies_are_paired_as_the_questions_say():
    hits = {ALONE: 0.6, PAPER: 0.7, TAUGHT: 0.8, SLICES_ALONE: 0.4}
    taught = {
        "all labels": third_dimension.Taught({}, {}, {way: np.full((3, 50), value) for way, value in hits.items()})
    }
    tests = third_dimension.accuracy_tests(
        taught, {"teacher": np.full((1, 50), 0.9)}, np.arange(50).astype(str), np.arange(50) % 2
    )
    differences = tests.set_index(["question", "a", "b"])["difference"].round(6).to_dict()
    assert differences == {
        ("all labels: does the student keep up?", PAPER, "teacher"): -0.2,
        ("all labels: does the student keep up?", TAUGHT, "teacher"): -0.1,
        ("all labels: what does the teacher add?", PAPER, ALONE): 0.1,
        ("all labels: what does the teacher add?", TAUGHT, ALONE): 0.2,
        ("all labels: what does depth add?", ALONE, SLICES_ALONE): 0.2,
    }


def test_what_is_learned_is_more_than_the_most_frequent_class():
    hits = {ALONE: np.tile(np.arange(60) < 45, (3, 1)).astype(float)}
    taught = {"all labels": third_dimension.Taught({}, {}, hits)}
    beside = {"teacher": np.ones((1, 60)), CONSTANT: (np.arange(60) < 30)[None].astype(float)}
    tests = third_dimension.accuracy_tests(taught, beside, np.arange(60).astype(str), np.arange(60) % 3).set_index(
        ["question", "a"]
    )
    learned = tests.loc["all labels: is anything learned?"]
    assert learned["difference"].round(6).to_dict() == {"teacher": 0.5, ALONE: 0.25} and (learned["lo"] > 0).all()


def test_a_teacher_that_hands_on_how_frequent_classes_are_adds_nothing_where_they_count_alike():
    """Of 60 volumes of classes of 40, 10, 10 the taught student says the first class of all,
    the other each class in turn."""
    classes = np.repeat([0, 1, 2], [40, 10, 10])
    hits = {
        ALONE: np.tile(np.arange(60) % 3 == classes, (3, 1)).astype(float),
        TAUGHT: np.tile(classes == 0, (3, 1)).astype(float),
    }
    tests = third_dimension.accuracy_tests(
        {"few labels": third_dimension.Taught({}, {}, hits)}, {}, np.arange(60).astype(str), classes
    )
    plain, alike = (tests[tests["metric"] == name].iloc[0] for name in ("accuracy", "balanced_accuracy"))
    assert plain["difference"] > 0.25 and plain["lo"] > 0
    balanced = 1 / 3 - np.mean([hits[ALONE][0][classes == c].mean() for c in range(3)])
    assert (
        alike["difference"] == pytest.approx(balanced)
        and alike["lo"] < 0 < alike["hi"]
        and alike["question"] != plain["question"]
    )


def test_the_summary_has_intervals_over_persons_and_the_spread_of_seeds():
    """Twelve volumes of six persons, all of a person's alike; the second seed scores 0.1 more."""
    person = np.arange(12) // 2
    rows = pd.DataFrame(
        {
            "image_id": [f"v{k}" for k in range(12)],
            "group": person.astype(str),
            "way": PAPER,
            "method": "m",
            "metric": "x",
        }
    )
    rows = pd.concat([rows.assign(seed=seed, value=0.2 + 0.1 * person + 0.1 * seed) for seed in (0, 1)])
    (row,) = third_dimension.explanation_summary(rows, 1000).itertuples()
    assert (row.n, round(row.mean, 6), round(row.lowest, 6), round(row.highest, 6)) == (12, 0.5, 0.45, 0.55)
    single = third_dimension.explanation_summary(rows.assign(group=rows["image_id"]), 1000).iloc[0]
    assert row.hi - row.lo > 1.2 * (single["hi"] - single["lo"]), "volumes of one person are one"


def test_few_labels_are_as_many_of_each_class_and_shown_as_often(monkeypatch):
    taught_images = []

    def bank(teacher, images, views, batch_size, which):
        taught_images.append(images)
        return np.zeros((views, len(images), 3))

    monkeypatch.setattr(third_dimension.views, "teacher_bank", bank)
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    images = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 8), np.uint8)
    part = Examples(images, labels)
    experiment = Experiment(
        part, part, part, np.empty((0, 0, 0), np.float32), Recipe(1, views=2), 3, "k", widths=(4, 6, 8, 8, 12)
    )
    few = third_dimension.with_few(experiment, None, 4, draw=0)
    numbers, shown = few.train.images[:, 0, 0, 0], np.bincount(few.train.labels)
    assert len(few.train) == third_dimension.FEW_SEEN and len(np.unique(numbers)) == 12 and np.ptp(shown) <= 4
    assert (
        (labels[numbers] == few.train.labels).all()
        and (taught_images[0] == few.train.images).all()
        and few.key != experiment.key
    )


def test_cost_grows_with_the_number_of_voxels(network):
    table = third_dimension.growth(network, SHAPE, repeats=1, batch=2).set_index("doubled")
    assert table.loc["nothing", ["macs_ratio", "memory_ratio", "time_ratio"]].tolist() == [1, 1, 1]
    for column in ("macs_ratio", "memory_ratio"):
        assert table.loc[["slices", "rows", "columns"], column].between(1.9, 2.1).all()
        assert table.loc["all", column] == pytest.approx(8, rel=0.1)


def test_what_training_keeps_is_counted_once(network, volumes):
    bytes_of_one, bytes_of_three = (third_dimension.kept_bytes(network, some) for some in (volumes[:1], volumes))
    assert bytes_of_one > 4 * 4 * volumes[0].numel(), "at least the first layer's four maps"
    assert 2.5 < bytes_of_three / bytes_of_one < 3.5


def test_the_best_filter_is_chosen_where_masks_are_known(network):
    """One filter of the first layer is made to be the lesion's brightness: it must be found."""
    import copy

    from kdnb.datasets.volumes import VolumeSet

    model = copy.deepcopy(network)
    weight = model.features[0][0].weight
    with torch.no_grad():
        weight.zero_()
        weight[3, 0, 1, 1, 1] = 1
        model.features[0][2].weight.fill_(1.0)
    masks = lesion()
    data = VolumeSet(
        "x",
        (200 * masks).astype(np.uint8),
        np.zeros(2, np.int64),
        ("a",),
        *(np.array(["a", "b"]),) * 2,
        np.array(["val", "val"]),
        masks,
    )
    layer, number = third_dimension.best_filter(model, data)
    maps = explain.feature_maps(model, third_dimension.tensor_of(data, np.arange(2), model), average=False)
    cells = torch.nn.functional.adaptive_max_pool3d(
        torch.from_numpy(masks[:, None]).float(), maps[layer - 1].shape[2:]
    )[:, 0].bool()
    chosen = fidelity.pixel_auc(depth.flat(maps[layer - 1][:, number].numpy()), depth.flat(cells.numpy()))
    first = fidelity.pixel_auc(
        depth.flat(maps[0][:, 3].numpy()),
        depth.flat(
            torch.nn.functional.adaptive_max_pool3d(torch.from_numpy(masks[:, None]).float(), maps[0].shape[2:])[:, 0]
            .bool()
            .numpy()
        ),
    )
    assert chosen.mean() >= first.mean() == 1
    assert third_dimension.best_filter(model, VolumeSet(*list(vars(data).values())[:7])) is None


def test_rows_hold_each_measure_once(network, volumes):
    names = np.array(["a", "b", "c"])
    masks = np.concatenate([lesion(), np.zeros((1, *SHAPE), bool)])
    sample = Sample(volumes, torch.tensor([0, 1, 2]), names, names, names, np.array([True, True, False]), masks)
    rows = depth.rows(network, "student", sample, {"uniform": torch.ones_like(volumes)}, ("uniform",))
    assert set(rows["metric"]) == {*depth.TRUTH, *depth.DEPTH, "hidden", *depth.FAITHFULNESS} and len(rows) == 3 * 8
    without = depth.rows(network, "student", sample, {"uniform": torch.ones_like(volumes)})
    assert set(without["metric"]) == {*depth.TRUTH, *depth.DEPTH, "hidden"}


# -- figures --------------------------------------------------------------------------------------------------------


def test_figures_show_every_slice_method_and_way():
    volume = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    figure = figures.montage({"volume": volume, "evidence": volume - 100.0}, [lesion()[0], None], signed=("evidence",))
    assert len(figure.axes) == 16 and figures.shown_slices(32).tolist()[::9] == [0, 31]
    assert len(figures.one_slice(volume, {"a": volume * 1.0}, lesion()[0], 2).axes) == 3
    table = pd.DataFrame(
        {"labels": ["all", "all", "few"], "way": ["a", "b", "a"], "seed": 0, "accuracy": [0.5, 0.6, 0.4]}
    )
    assert [axis.get_title() for axis in figures.accuracies(table, 0.9).axes] == ["all", "few"]
    summary = explained({}).groupby(["way", "method", "metric"])["value"].mean().rename("mean").reset_index()
    summary = summary.assign(lo=summary["mean"] - 0.1, hi=summary["mean"] + 0.1)
    names = [text.get_text() for text in figures.measures(summary, PAPER, explain.CONTROLS).axes[0].get_yticklabels()]
    assert len(names) == 7 and names[:2] == ["class evidence", "average map, mean of layers"]


def test_the_table_of_accuracies_knows_networks_operations_and_balance():
    """Of 60 volumes of classes of 40, 10, 10 a student that always says the first has two thirds right,
    balanced a third."""
    labels = np.repeat([0, 1, 2], [40, 10, 10])
    part = Examples(np.zeros((60, 16, 16, 8), np.uint8), labels)
    grid = Grid(SHAPE, (2.0, 1.0, 1.0))
    experiment = Experiment(
        part, part, part, np.empty((0, 0, 0), np.float32), Recipe(1), 3, "k", widths=(4, 6, 8, 8, 12), volumes=grid
    )
    ways = third_dimension.student_specs((ALONE, SLICES_ALONE), (0, 1), 0.4, 10, experiment)
    logits = np.tile(np.array([[1.0, 0.0, 0.0]], np.float32), (60, 1))
    results = {
        way: {spec: TrainedStudent(spec, logits, logits, pd.DataFrame(), 1, logits, 1.0) for spec in of_way}
        for way, of_way in ways.items()
    }
    hits = {way: np.tile(labels == 0, (2, 1)).astype(float) for way in ways}
    taught = {"all labels": third_dimension.Taught(ways, results, hits)}
    table = third_dimension.accuracies(
        taught, third_dimension.yardsticks({}, experiment) | {"teacher": np.ones((1, 60))}, experiment
    )
    assert table["way"].tolist() == [CONSTANT, "teacher", ALONE, ALONE, SLICES_ALONE, SLICES_ALONE]
    students = table[~table["way"].isin(["teacher", CONSTANT])]
    assert table["accuracy"].iloc[0] == pytest.approx(2 / 3), "the most frequent class of training, always"
    assert np.allclose(students["accuracy"], 2 / 3) and np.allclose(students["balanced_accuracy"], 1 / 3)
    macs = students.groupby("way")["macs"].first()
    assert abs(macs[SLICES_ALONE] / macs[ALONE] - 1) < 0.15
