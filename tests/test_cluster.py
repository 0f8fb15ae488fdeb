"""Teachers and explanations on a real Dask cluster on localhost, one of whose workers is killed."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from kdnb import cluster, explain, models, networks, sweep, training
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
    """The address of a scheduler, and its two workers."""
    folder = tmp_path_factory.mktemp("dask")
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    processes = [subprocess.Popen([*command, "--scheduler-file", str(folder / "s.json")], stderr=subprocess.DEVNULL)]
    try:
        deadline = time.monotonic() + 60
        while not (folder / "s.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        address = json.loads((folder / "s.json").read_text())["address"]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--nworkers", "1", "--no-nanny"]
        processes += [subprocess.Popen([*command, "--no-dashboard"], stderr=subprocess.DEVNULL, cwd=folder) for _ in range(2)]
        with cluster.client(address) as client:
            client.wait_for_workers(2, timeout=90)
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_teacher_and_explanations_survive_the_death_of_a_worker(dask, tmp_path):
    address, workers = dask
    (tmp_path / "net.py").write_text(FILE)
    made = phantom.generate(80, 32)
    part = training.Examples(made.images, made.labels)
    recipe = training.Recipe(epochs=2, batch_size=16, views=2)
    run = Run(resolve(profile="smoke", run_dir=tmp_path / "run"), "test")
    found = {}
    for where, scheduler in (("there", address), ("here", None)):
        teacher, _ = networks.new_teacher(f"{tmp_path / 'net.py'}:build", 4, 32, "auto", "plain", 0)
        with training.threads(1):
            history = sweep.train_teacher(run, f"teacher_{where}", teacher, part, part, recipe, "k", 0, scheduler)
        assert history["epoch"].tolist() == [1, 2]
        found[where] = teacher.state_dict()
    assert all(torch.allclose(value, found["here"][name], atol=1e-4) for name, value in found["there"].items())

    images = torch.from_numpy(made.images).permute(0, 3, 1, 2) / 255
    targets = torch.from_numpy(made.labels)
    methods = explain.methods(images[:8], shap_samples=200, depth=2)
    chosen = {name: methods[name] for name in ("feature_maps_layer1", "grad_cam", "shap")}
    threading.Timer(2.0, workers[0].kill).start()
    there = explain_on(address, chosen, teacher.eval(), images, targets)
    workers[0].wait(timeout=60)  # it really died
    here = explain_on("", {name: chosen[name] for name in ("feature_maps_layer1", "grad_cam")}, teacher, images, targets)
    for name, maps in here.items():
        assert torch.allclose(there[name], maps, atol=1e-5), name
    some = chosen["shap"](teacher, images[:2], targets[:2])
    assert np.allclose(there["shap"][:2], some, atol=1e-4) and there["shap"].shape == (80, 32, 32)


def test_a_scheduler_that_is_not_there_is_one_sentence_for_everything():
    student = models.StudentCNN(3, (4, 8, 8)).eval()
    with pytest.raises(ParameterError, match="no Dask scheduler answers there"):
        explain_on("tcp://127.0.0.1:9", {"sobel": explain.METHODS["sobel"]}, student, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
