"""Explanations of many images on a Dask cluster, where there is one."""

import torch
from torch import Tensor, nn

from kdnb import cluster, networks
from kdnb.explain.methods import Method, explain_all

BATCH = 16  # images that a worker is sent at a time


def explain_on(
    scheduler: str, chosen: dict[str, Method], model: nn.Module, images: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """:func:`kdnb.explain.explain_all` on the workers of a Dask scheduler; with an empty address here.

    Raises:
        ParameterError: no Dask scheduler answers at that address.
    """
    if not scheduler:
        return explain_all(chosen, model, images, targets)
    parts = list(zip(images.cpu().split(BATCH), targets.cpu().split(BATCH), strict=True))
    work = [(name, *part) for name in chosen for part in parts]
    shared = (chosen, networks.portable(model.cpu()))
    model.to(images.device)
    maps = iter(cluster.mapped(scheduler, _explained, shared, work))
    return {name: torch.cat([next(maps) for _ in parts]).to(images.device) for name in chosen}


def _explained(shared: tuple, item: tuple[str, Tensor, Tensor]) -> Tensor:
    chosen, sent = shared
    name, images, targets = item
    return chosen[name](networks.arrived(sent), images, targets).cpu()
