"""The explanation benchmark fifty times in one process: memory stays where it was."""

import gc
import multiprocessing

import pytest

pytestmark = pytest.mark.slow

WARM_UP, RUNS, MOST_MIB = 10, 50, 20


def benchmark(student, data) -> int:
    """Draw a sample, explain it by every kind of method, judge the maps, compare;
    the number of rows that came of it."""
    from kdnb import explain, fidelity
    from kdnb.datasets import to_tensor

    sample = fidelity.draw_sample(student, data, per_class=2)
    methods = explain.methods(to_tensor(data.images[:4]), shap_samples=4)
    chosen = {
        name: methods[name]
        for name in ("feature_maps_layer5", "feature_maps_mean", "grad_cam", "integrated_gradients", "shap", "sobel")
    }
    maps = explain.explain_all(chosen, student, sample.images, sample.targets)
    rows = fidelity.fidelity_rows(student, "student", sample, maps)
    judged = fidelity.captum_rows(student, "student", sample, maps, {"grad_cam": chosen["grad_cam"]})
    located = fidelity.localisation_rows("student", sample, maps)
    fidelity.cascade(
        student, sample.images, sample.targets, {"grad_cam": chosen["grad_cam"]}, ("classifier", "features.1")
    )
    fidelity.class_sensitivity(student, sample.images, chosen["grad_cam"])
    summary = fidelity.summary(rows, samples=50)
    tests = fidelity.paired(rows, "which map?", [("feature_maps_mean", "grad_cam")], ["deletion_mean"], samples=50)
    return len(rows) + len(judged) + len(located) + len(summary) + len(tests)


def soak(told) -> None:
    """Run the benchmark again and again and tell the resident memory after each run, in MiB."""
    import psutil
    import torch

    from kdnb.datasets import load
    from kdnb.models import StudentCNN, initialised

    torch.set_num_threads(1)
    data = load("phantom", 32, phantom_images=160)
    student = initialised(StudentCNN, 4, (8, 8, 16, 16, 16), seed=0).eval()
    process = psutil.Process()
    for _ in range(WARM_UP + RUNS):
        assert benchmark(student, data) > 0
        gc.collect()
        told.send(process.memory_info().rss / 2**20)
    told.close()


def test_fifty_benchmarks_in_one_process_take_no_more_memory():
    context = multiprocessing.get_context("spawn")  # this process is full of other tests' memory
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=soak, args=(sender,))
    process.start()
    sender.close()
    memory = []
    try:
        while True:
            memory.append(receiver.recv())
    except EOFError:
        process.join()
    assert process.exitcode == 0 and len(memory) == WARM_UP + RUNS
    growth = max(memory[-5:]) - memory[WARM_UP - 1]
    assert growth <= MOST_MIB, [round(value) for value in memory]
