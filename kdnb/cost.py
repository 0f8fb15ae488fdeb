"""What a model and a method cost: multiply-accumulates, parameters, and measured time (MET, mean execution time)."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from kdnb.device import device_of, settle
from kdnb.progress import progress

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement

    from kdnb.explain import Method

# Importing torch.utils.benchmark loads torch's compiler support, which warns where it finds a compiler but no GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
# And torch.utils.flop_counter, imported where it is used, warns where a torch for GPUs lies without triton.
logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)

SLOW = 0.1  # seconds; a call that takes longer is not warmed up again before every measurement
VERY_SLOW = 1.0  # seconds; three measurements of such a call must do


def macs(model: nn.Module, image_size: int, channels: int = 3) -> int:
    """Multiply-accumulates of one image: convolutions and matrix products, batch norm and pooling left out.

    One multiply-accumulate is two floating-point operations, so a paper's "FLOPs" may be twice or once this number.
    Convolutions are counted in three dimensions as in two.

    Args:
        model: takes ``(1, channels, image_size, image_size)``.
        image_size: pixels a side.
        channels: colours; of a volume its slices.

    Returns:
        How many, of one forward pass.

    Example:
        >>> macs(nn.Conv2d(3, 8, kernel_size=1), image_size=10)  # 3 x 8 at each of 100 pixels
        2400
    """
    device = device_of(model)
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return macs_of(model, torch.zeros(1, channels, image_size, image_size, device=device))
    finally:
        for module in was_training:
            module.training = True


def macs_of(model: nn.Module, inputs: Tensor) -> int:
    """Multiply-accumulates of one forward pass of these inputs, counted as by :func:`macs`, in the mode it is in."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops() // 2


def parameters(model: nn.Module) -> int:
    """How many numbers training can change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def measure(call: Callable[[], object], repeats: int) -> "Measurement":
    """Time ``call``, call by call, after a warm-up, on as many threads as torch uses now.

    Args:
        call: what is timed.
        repeats: about how often; three times at most, where it takes over a second.

    Returns:
        A ``torch.utils.benchmark`` measurement: ``.median`` and ``.iqr`` in seconds a call.
    """
    from torch.utils.benchmark import Measurement, Timer

    start = time.perf_counter()
    call()
    settle()
    warm_up = time.perf_counter() - start
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    if warm_up < SLOW:
        return Measurement.merge([timer.timeit(1) for _ in range(repeats)])[0]
    if warm_up > VERY_SLOW:
        repeats = min(repeats, 3)
    # Warms up once, where timeit(1) would do so twice a call.
    return timer.blocked_autorange(min_run_time=0.8 * repeats * warm_up)


def images_in_reach(call: Callable[[int], object], batch_size: int, seconds: float) -> int:
    """How many images a call handles in about ``seconds``: at least one, so that slow methods are timed too.

    Args:
        call: handles as many images as it is told.
        batch_size: as many at most.
        seconds: the time to fill.

    Returns:
        A number of images from 1 to ``batch_size``.
    """
    start = time.perf_counter()
    call(1)
    settle()  # a GPU has only been told what to do
    seconds_an_image = time.perf_counter() - start
    return max(1, min(batch_size, int(seconds / seconds_an_image)))


def met_table(
    models: dict[str, nn.Module],
    methods: "dict[str, Method]",
    images: Tensor,
    *,
    batch_sizes: tuple[int, ...] = (1, 32),
    repeats: int = 5,
    seconds: float = 1.0,
) -> pd.DataFrame:
    """Time every method on every model: the rows of ``met.csv``.

    Timing both models separates what the smaller model saves from what the cheaper method saves; a forward equivalent
    is the method's time an image over that of a plain forward pass of the same model at the same batch size.

    Args:
        models: name -> model in evaluation mode.
        methods: name -> ``f(model, images, targets) -> (N, H, W)``.
        images: ``(N, 3, H, W)`` float32 in [0, 1], at least ``max(batch_sizes)`` of them.
        batch_sizes: images a call.
        repeats: about how often each is timed.
        seconds: a call that would take longer than about this is timed on fewer images; column ``images`` says on how
            many.

    Returns:
        Columns method, model, batch_size, images, ms_per_image_median, ms_per_image_iqr, forward_equivalents, calls,
        threads.
    """
    rows = []
    for model_name, model in models.items():
        with torch.no_grad():  # a tensor made in inference mode could not take part in a method's autograd
            targets = model(images[: max(batch_sizes)]).argmax(1)
        measured: dict[tuple[str, int], Measurement] = {}
        for batch_size in batch_sizes:
            plain = _forward_time(model, images[:batch_size], repeats)
            rows.append(_row("forward", model_name, batch_size, batch_size, plain, plain.median / batch_size))
            for name, method in progress(methods.items(), f"MET {model_name}, batch {batch_size}", total=len(methods)):

                def call(
                    n: int, method: "Method" = method, model: nn.Module = model, targets: Tensor = targets
                ) -> Tensor:
                    return method(model, images[:n], targets[:n])

                n = 1 if batch_size == 1 else images_in_reach(call, batch_size, seconds)
                if (name, n) not in measured:  # a method too slow for more than one image has been timed already
                    measured[name, n] = measure(partial(call, n), repeats)
                rows.append(_row(name, model_name, batch_size, n, measured[name, n], plain.median / batch_size))
    return pd.DataFrame(rows)


def passes_within(
    models: dict[str, nn.Module], seconds: dict[str, float], image_size: int, repeats: int = 5
) -> pd.DataFrame:
    """How many passes of one image fit into a given time: what a published time would have to contain on this machine.

    Args:
        models: name -> model in evaluation mode.
        seconds: model name -> the time to fill.
        image_size: pixels a side of the one image.
        repeats: about how often each pass is timed.

    Returns:
        Columns model, seconds, forward_seconds, forward_backward_seconds (gradient with respect to the image),
        forwards_within, forward_backwards_within.
    """
    rows = []
    for name, time_to_fill in seconds.items():
        model = models[name]
        image = torch.rand(1, 3, image_size, image_size, device=device_of(model), requires_grad=True)
        forward = _forward_time(model, image, repeats).median

        def forward_and_backward(model: nn.Module = model, image: Tensor = image) -> Tensor:
            return torch.autograd.grad(model(image).amax(), image)[0]

        backward = measure(forward_and_backward, repeats).median
        rows.append((name, time_to_fill, forward, backward, time_to_fill / forward, time_to_fill / backward))
    columns = [
        "model",
        "seconds",
        "forward_seconds",
        "forward_backward_seconds",
        "forwards_within",
        "forward_backwards_within",
    ]
    return pd.DataFrame(rows, columns=columns)


def _forward_time(model: nn.Module, images: Tensor, repeats: int) -> "Measurement":
    def forward() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return measure(forward, repeats)


def _row(
    method: str, model: str, batch_size: int, images: int, measured: "Measurement", forward: float
) -> dict[str, object]:
    return {
        "method": method,
        "model": model,
        "batch_size": batch_size,
        "images": images,
        "ms_per_image_median": 1e3 * measured.median / images,
        "ms_per_image_iqr": 1e3 * measured.iqr / images,
        "forward_equivalents": measured.median / images / forward,
        "calls": len(measured.times),
        "threads": torch.get_num_threads(),
    }
