"""Where the study computes and in which arithmetic: decided here and nowhere else.

Networks train in bfloat16 where the hardware is faster in it, and a teacher's logits that only training reads are made
in it; every evaluation, explanation and comparison is in true float32. ``KDNB_PRECISION=float32`` has all in float32.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from kdnb.errors import ParameterError

RESIDENT_SHARE = 0.5  # of the device's free memory: more images than that stay on the host

# TF32 keeps ten bits of a factor, so that a GPU would differ from a CPU in the third decimal of a logit.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


def best_device() -> torch.device:
    """The first GPU where there is one, with its number: ``cuda`` is not equal to the ``cuda:0`` of a tensor there."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of ``model`` are, and so where its images have to be."""
    return next(model.parameters()).device


def place(model: nn.Module) -> nn.Module:
    """Move a model that was built or loaded to the device where the study computes."""
    return model.to(best_device())


def precision(device: torch.device | None = None) -> torch.dtype:
    """What the layers of a network in training compute in.

    Weights, losses, averages and every evaluation are float32 everywhere. A CPU's matrix unit (AMX) makes it worth
    while: a student's step takes about 0.6 of the time. So do AMD's AVX-512 instructions: 0.6 to 0.7 for a student's
    step, 0.55 for the teacher's (EPYC of 2022). Intel's alone do not: there both take 1.2 times as long as in float32.

    Args:
        device: where the network trains; ``None`` means :func:`best_device`.

    Returns:
        bfloat16 where the device is faster in it, else float32.

    Raises:
        ParameterError: ``KDNB_PRECISION`` is neither empty, ``auto`` nor ``float32``.
    """
    setting = os.environ.get("KDNB_PRECISION", "") or "auto"
    if setting not in ("auto", "float32"):
        raise ParameterError(f"KDNB_PRECISION is {setting!r}, but it must be auto or float32.")
    if setting == "float32":
        return torch.float32
    if (device or best_device()).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Not every torch can be asked: 2.11 of PyPI can, that of some GPU images cannot.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    amd_bfloat16 = capabilities.get("avx512_bf16") and "AMD" in str(capabilities.get("cpu_name", ""))
    return torch.bfloat16 if capabilities.get("amx_bf16") or amd_bfloat16 else torch.float32


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """The context in which a network in training looks at a batch."""
    if precision(device) == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def settle() -> None:
    """Wait until a GPU has done what it was told, so that a clock read next tells the truth."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator as seeded here, and put it back afterwards; those of GPUs are not touched.

    So what is drawn on the CPU and moved then is the same on every device.

    Args:
        seed: of what the block draws.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def resident(images: np.ndarray, device: torch.device) -> Tensor:
    """Images as a tensor where they can stay.

    Args:
        images: (N, H, W, 3) uint8.
        device: where the study computes.

    Returns:
        (N, H, W, 3) uint8 on the device, or on the host where they would fill more than half of what is free there.
        Memory is shared, not copied, on a CPU.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    if device.type == "cuda" and tensor.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return tensor
    return tensor.to(device)


def picked(held: Tensor, where: Tensor, device: torch.device) -> Tensor:
    """A batch of resident images on the device.

    From the host it goes through pinned memory, so that the device computes on while it travels.

    Args:
        held: (N, H, W, 3) uint8, as :func:`resident` has them.
        where: (n,) which images, on the side of ``held``: moving it here would have the host wait for the device.
        device: where the study computes.

    Returns:
        (n, 3, H, W) uint8, channels last in memory.
    """
    chosen = held[where]
    chosen = chosen if chosen.device == device else chosen.pin_memory().to(device, non_blocking=True)
    return chosen.permute(0, 3, 1, 2)


def to_float(pixels: Tensor) -> Tensor:
    """``(N, 3, H, W)`` uint8 to float32 from 0 to 1, on the same device and in the same order in memory."""
    return pixels.float().div_(255)


def put(array: np.ndarray, device: torch.device) -> Tensor:
    """A small array as a tensor on ``device``."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
