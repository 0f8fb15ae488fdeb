"""How many filters of a network detect something that a person has a word for: network dissection of the lesion."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdnb.explain import collecting, upsampled
from kdnb.explain.maps import evaluation_mode, layers_of
from kdnb.networks import logits_of

TOP = 0.005  # of all places of all images are where a filter responds (Bau et al., CVPR 2017)
DETECTS = 0.04  # the least overlap of a concept detector, theirs
FILTERS = 16  # at a time


@torch.no_grad()
def concept_filters(model: nn.Module, images: Tensor, masks: np.ndarray) -> pd.DataFrame:
    """Network dissection (Bau et al. 2017): does a filter respond at the lesion?

    Han et al. (ICML 2023) compare taught networks by it. A filter's places are the highest :data:`TOP` of its maps,
    brought to the images' size, over all images; its overlap with the lesions is intersection over union, over all
    images too. It is a *detector* above :data:`DETECTS`.

    Args:
        model: a student, a teacher or another network with known feature layers; it is left as found.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        masks: ``(N, H, W)`` bool, the lesions.

    Returns:
        a row a filter: ``layer``, ``filter``, ``overlap``, ``detects``.
    """
    truth, rows = torch.from_numpy(masks).to(images.device), []
    layers = layers_of(model)
    with evaluation_mode(model), collecting(layers, lambda maps: maps) as maps:
        logits_of(model, images)
    for layer, layer_maps in maps.items():
        overlaps = []
        for filters in layer_maps.split(FILTERS, dim=1):
            fine = torch.stack([upsampled(filter_maps, images.shape[-2:]) for filter_maps in filters.unbind(1)])
            places = fine.flatten(1)
            highest = places.topk(max(1, round(TOP * places.shape[1])) + 1, dim=1).values
            threshold = highest.amin(dim=1)  # the first that is no longer among them
            responds = fine > threshold[:, None, None, None]
            overlaps.append((responds & truth).sum(dim=(1, 2, 3)) / (responds | truth).sum(dim=(1, 2, 3)).clamp_min(1))
        values = torch.cat(overlaps).cpu().numpy()
        rows.append(
            pd.DataFrame({"layer": layer, "filter": range(len(values)), "overlap": values, "detects": values > DETECTS})
        )
    return pd.concat(rows, ignore_index=True)
