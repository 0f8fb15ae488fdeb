"""Explanations of many images on a Dask cluster, where there is one."""

import torch
from torch import Tensor, nn

from kdnb import cluster, networks
from kdnb.explain.methods import Method, explain_all

BATCH = 16  # images that a worker is sent at a time


def explain_on(
    scheduler: str, chosen: dict[str, Method], model: nn.Module, images: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """:func:`kdnb.explain.explain_all` on the workers of a Dask scheduler.

    Args:
        scheduler: its address, such as ``tcp://host:8786``; empty: the work is done here.
        chosen: methods by name.
        model: which is explained; it is on the device of ``images`` afterwards.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        targets: ``(N,)``, class indices.

    Returns:
        name -> ``(N, H, W)``, on the device of ``images``.

    Raises:
        ParameterError: no Dask scheduler answers at that address.
    """
    if not scheduler:
        return explain_all(chosen, model, images, targets)
    batches = list(zip(images.cpu().split(BATCH), targets.cpu().split(BATCH), strict=True))
    work = [(name, *batch) for name in chosen for batch in batches]
    shared = (chosen, networks.portable(model.cpu()))
    model.to(images.device)
    maps = iter(cluster.mapped(scheduler, _explained, shared, work))
    return {name: torch.cat([next(maps) for _ in batches]).to(images.device) for name in chosen}


def _explained(shared: tuple[dict[str, Method], networks.Portable], item: tuple[str, Tensor, Tensor]) -> Tensor:
    """A worker's part: one batch explained by one method, on the CPU."""
    chosen, portable_model = shared
    name, images, targets = item
    return chosen[name](networks.arrived(portable_model), images, targets).cpu()
