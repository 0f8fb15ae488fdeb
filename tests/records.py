"""Recorded runs as small as they can be."""

import json
from pathlib import Path


def record_folder(measured: Path, dataset: str, split: str, **provenance) -> Path:
    """A new folder of ``measured`` that says which run it is of; its tables are the caller's."""
    folder = measured / f"{dataset}-cpu-seed0{'' if split == 'official' else '-' + split}"
    folder.mkdir()
    run = {"dataset": dataset, "profile": "cpu", "split_protocol": split, "seed": 0}
    known = {"run": run, "data": {}, "teacher": {}, "environment": {"device": "cpu"}, "budget": {}}
    (folder / "provenance.json").write_text(json.dumps(known | {"date": "2026-11-30"} | provenance))
    return folder
