"""Teachers and explanations on a real Dask cluster on localhost, one of whose workers is killed."""

import os
import threading
import time

import numpy as np
import pytest
import torch
from dask_cluster import cluster_of_two

from kdnb import cluster, explain, models, networks, teacher_training, training
from kdnb.datasets import phantom
from kdnb.errors import ParameterError
from kdnb.explain.spread import explain_on
from kdnb.runs import Run
from kdnb.settings import resolve

FILE = """
from torch import nn
def build(num_classes):
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    with cluster_of_two(tmp_path_factory.mktemp("dask")) as both:
        yield both


@pytest.mark.slow
def test_a_teacher_and_explanations_survive_the_death_of_a_worker(dask, tmp_path):
    address, workers = dask
    (tmp_path / "net.py").write_text(FILE)
    made = phantom.generate(80, 32)
    part = training.Examples(made.images, made.labels)
    recipe = training.Recipe(epochs=2, batch_size=16, views=2)
    run = Run(resolve(profile="smoke", run_dir=tmp_path / "run"), "test")
    weights = {}
    for where, scheduler in (("there", address), ("here", None)):
        teacher, _ = networks.new_teacher(f"{tmp_path / 'net.py'}:build", 4, 32, "auto", "plain", 0)
        with training.threads(1):
            history = teacher_training.train_teacher(
                run, f"teacher_{where}", teacher, part, part, recipe, "k", 0, scheduler
            )
        assert history["epoch"].tolist() == [1, 2]
        weights[where] = teacher.state_dict()
    assert all(torch.allclose(value, weights["here"][name], atol=1e-4) for name, value in weights["there"].items())

    images = torch.from_numpy(made.images).permute(0, 3, 1, 2) / 255
    targets = torch.from_numpy(made.labels)
    methods = explain.methods(images[:8], shap_samples=200, depth=2)
    chosen = {name: methods[name] for name in ("feature_maps_layer1", "grad_cam", "shap")}
    threading.Timer(2.0, workers[0].kill).start()
    maps_on_dask = explain_on(address, chosen, teacher.eval(), images, targets)
    workers[0].wait(timeout=60)  # it really died
    maps_here = explain_on(
        "", {name: chosen[name] for name in ("feature_maps_layer1", "grad_cam")}, teacher, images, targets
    )
    for name, maps in maps_here.items():
        assert torch.allclose(maps_on_dask[name], maps, atol=1e-5), name
    some = chosen["shap"](teacher, images[:2], targets[:2])
    assert np.allclose(maps_on_dask["shap"][:2], some, atol=1e-4) and maps_on_dask["shap"].shape == (80, 32, 32)


COUNTING = """
import time
from pathlib import Path
import torch
from torch import nn
class Slow(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.last = nn.Linear(3, classes)
    def forward(self, images):
        if self.training:
            with (Path(__file__).parent / "steps").open("a") as steps:
                steps.write(".")
            time.sleep(0.1)
        return self.last(images.mean(dim=(2, 3)))
def build(num_classes):
    return Slow(num_classes)
"""


@pytest.mark.slow
def test_a_teacher_whose_worker_dies_goes_on_where_it_was(tmp_path):
    (tmp_path / "net.py").write_text(COUNTING)
    (tmp_path / "often.py").write_text("import kdnb.training\nkdnb.training.CHECKPOINT_SECONDS = 0\n")
    made = phantom.generate(64, 32)
    part, recipe = training.Examples(made.images, made.labels), training.Recipe(epochs=12, batch_size=16, views=2)
    run = Run(resolve(profile="smoke", run_dir=tmp_path / "run"), "test")
    name = f"{tmp_path / 'net.py'}:build"
    with cluster_of_two(tmp_path, "--preload", str(tmp_path / "often.py")) as (address, workers):
        checkpoint, killed = run.folder / "models" / "unfinished" / "teacher.safetensors", []

        def kill_the_one_that_trains() -> None:
            deadline = time.monotonic() + 60
            while not checkpoint.exists() or len((tmp_path / "steps").read_text()) < 24:
                time.sleep(0.02)
                if time.monotonic() > deadline:
                    return
            with cluster.client(address) as client:
                busy = [worker for worker, tasks in client.processing().items() if tasks]
                pids = client.run(os.getpid, workers=busy)
            killed.extend(process for process in workers if process.pid in pids.values())
            for process in killed:
                process.kill()

        killer = threading.Thread(target=kill_the_one_that_trains)
        killer.start()
        teacher, _ = networks.new_teacher(name, 4, 32, "auto", "plain", 0)
        history = teacher_training.train_teacher(run, "teacher", teacher, part, part, recipe, "k", 0, address)
        killer.join()
    assert len(killed) == 1 and history["epoch"].tolist() == list(range(1, 13))
    steps = len((tmp_path / "steps").read_text())
    assert 12 * 4 <= steps < 12 * 4 + 24, "the epochs before were not trained again"
    assert not checkpoint.exists()
    alone, _ = networks.new_teacher(name, 4, 32, "auto", "plain", 0)
    teacher_training.train_teacher(run, "alone", alone, part, part, recipe, "k", 0)
    assert all(
        torch.allclose(value, alone.state_dict()[name], atol=1e-5) for name, value in teacher.state_dict().items()
    )


def test_a_scheduler_that_is_not_there_is_one_sentence_for_everything():
    student = models.StudentCNN(3, (4, 8, 8)).eval()
    with pytest.raises(ParameterError, match="no Dask scheduler answers there"):
        explain_on(
            "tcp://127.0.0.1:9",
            {"sobel": explain.METHODS["sobel"]},
            student,
            torch.rand(2, 3, 32, 32),
            torch.tensor([0, 1]),
        )
