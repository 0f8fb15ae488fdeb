"""Solutions of exercises 2; each function replaces the blank of its name."""

import torch


def average_map(model, layer, images):
    kept = {}
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.update(map=output.mean(dim=1)))
    try:
        with torch.no_grad():
            model(images)
    finally:
        hook.remove()
    return kept["map"]


def evidence(features, weight):
    return torch.einsum("ck,nkhw->nchw", weight, features)


def field(chain):
    seen, step = 1, 1
    for window, stride in chain:
        seen += (window - 1) * step
        step *= stride
    return seen


def keep(images, blurred, relevance, share):
    count = relevance[0].numel()
    rank = relevance.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).view_as(relevance) / count
    return torch.where((rank < share)[:, None], images, blurred)


def pixel_auc(values, mask):
    inside, outside = values[mask], values[~mask]
    return (inside[:, None] > outside).float().mean()
