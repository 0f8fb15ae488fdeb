"""Tensors on disk that know what they were made from and whether they are whole.

Checkpoints, trained students and the teacher's answers are such.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kdnb.files import atomic_write, read_tensors, tensors_metadata


def save(path: Path, tensors: dict[str, Tensor], key: str, facts: object = None) -> None:
    """Write tensors atomically, with a hash of the content.

    Args:
        path: the file, in the safetensors format.
        tensors: by name.
        key: the identity of what they were made from.
        facts: what is known of them, anything that JSON holds.

    Raises:
        StorageError: the file could not be written.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    about = json.dumps({"key": key, "facts": facts, "sha256": _content(tensors)})
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"about": about})  # one entry: several would be written in any order


def load(path: Path, key: str) -> tuple[dict[str, Tensor], Any] | None:
    """Tensors and facts in ``path``; ``None`` where there are none, they are damaged or changed, or of another key."""
    try:
        about = json.loads(tensors_metadata(path)["about"])
        if about["key"] != key:
            return None
        tensors = read_tensors(path)
        return (tensors, about["facts"]) if about["sha256"] == _content(tensors) else None
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def in_type(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights with all that are floating point as ``dtype``; counters stay whole numbers."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}


def _content(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
