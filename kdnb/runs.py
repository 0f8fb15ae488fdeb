"""A run's folder: tables, figures and models in, the same out, every write atomic and every read checked.

::

    runs/phantom-quick-seed0/
        notebooks/*.ipynb   executed
        models/*.safetensors
        results/*.csv       the only way from one notebook to the next
        figures/*.png
        run.json            parameters, versions, device, data hash, commit, hash of every artefact
        report.html
"""

import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError

from kdnb.errors import ArtefactError, ParameterError, writing
from kdnb.files import atomic_write, file_hash, read_table, read_tensors, tensors_metadata
from kdnb.filesystems import lock
from kdnb.provenance import environment
from kdnb.settings import Budget, Settings, resolve
from kdnb.sources import from_home

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import nn


class Run:
    """One run's folder.

    Args:
        settings: what the run was asked to do.
        notebook: the name of the notebook that is at work, recorded beside what it writes.
    """

    def __init__(self, settings: Settings, notebook: str) -> None:
        self.settings = settings
        self.notebook = notebook
        self.folder = settings.run_dir
        self._learns_from: dict[str, str] = {}

    @property
    def budget(self) -> Budget:
        """The numbers of the profile, after the notebook's overrides."""
        return self.settings.budget

    # -- run.json ---------------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """The contents of ``run.json`` (empty before the first write).

        Returns:
            Sections by name.

        Raises:
            ArtefactError: the file is not JSON.
        """
        path = self.folder / "run.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            raise ArtefactError(f"{path} is not valid JSON ({error}): delete the run folder and run again.") from error

    def record(self, section: str, values: Mapping[str, object]) -> None:
        """Merge ``values`` into one section of ``run.json``; safe when two notebooks write at once."""
        with self._edited() as info:
            info.setdefault(section, {}).update(values)

    @contextmanager
    def _edited(self) -> Iterator[dict[str, Any]]:
        """What ``run.json`` holds, to be changed by one writer at a time."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            opened = (self.folder / ".run.lock").open("w")
        with opened as file, lock(file, self.folder / ".run.lock"):
            info = self.info()
            yield info
            with atomic_write(self.folder / "run.json") as path:
                path.write_text(json.dumps(info, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")

    def _place(self, kind: str, file: str) -> Path:
        if not re.fullmatch(r"\w[\w.-]*", file):
            raise ParameterError(f"the file name is {file!r}, but it must be made of letters, digits and . _ - only.")
        return self.folder / kind / file

    def _sign(self, path: Path, **made_from: str) -> None:
        name = path.relative_to(self.folder).as_posix()
        self.record("artefacts", {name: {"sha256": file_hash(path), "notebook": self.notebook, **made_from}})

    def _checked(self, name: str) -> Path:
        path = self.folder / name
        signed = self.info().get("artefacts", {}).get(name)
        if signed is not None and (not path.exists() or signed["sha256"] != file_hash(path)):
            state = "missing" if not path.exists() else f"not the file that {signed['notebook']} wrote"
            raise ArtefactError(f"{path} is {state}: {rerun_command(self.folder, signed)}.")
        if signed is None:
            raise ArtefactError(
                f"{name} is not in {self.folder}: "
                "run the notebook that writes it first (`make reproduce` keeps the order)."
            )
        return path

    # -- tables -----------------------------------------------------------------------------------------------------

    def save_table(self, name: str, table: "pd.DataFrame") -> "pd.DataFrame":
        """Write ``results/<name>.csv`` and return the table, so that a cell can end with it."""
        path = self._place("results", f"{name}.csv")
        with atomic_write(path) as temporary:
            table.to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n")
        self._sign(path)
        return table

    def load_table(self, name: str) -> "pd.DataFrame":
        """Read ``results/<name>.csv``.

        Args:
            name: of the table.

        Returns:
            The table, as :func:`kdnb.files.read_table` reads it.

        Raises:
            ArtefactError: missing, or changed since the notebook wrote it.
        """
        return read_table(self._checked(f"results/{name}.csv"))

    def has_table(self, name: str) -> bool:
        """Whether the run holds ``results/<name>.csv``."""
        file = f"results/{name}.csv"
        return file in self.info().get("artefacts", {}) and (self.folder / file).exists()

    def drop_table(self, name: str) -> None:
        """Remove ``results/<name>.csv`` if an earlier run of the notebook wrote it: this one has no such result."""
        path = self._place("results", f"{name}.csv")
        with self._edited() as info:
            info.get("artefacts", {}).pop(path.relative_to(self.folder).as_posix(), None)
        path.unlink(missing_ok=True)

    # -- figures ----------------------------------------------------------------------------------------------------

    def show(self, name: str, figure: "Figure", alt: str) -> None:
        """Save ``figures/<name>.png``, display it with its text alternative, and close the figure.

        Args:
            name: of the file, without an ending.
            figure: made by :mod:`kdnb.figures`.
            alt: what is to be seen, in words. It is the output's ``text/plain``, so it is read aloud, printed where
                there are no pictures, and compared by nbval: keep measured numbers out of it.
        """
        import matplotlib.pyplot as plt
        from IPython.display import display

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        path = self._place("figures", f"{name}.png")
        with atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        self._sign(path)
        display({"image/png": buffer.getvalue(), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})

    # -- models -----------------------------------------------------------------------------------------------------

    def model_path(self, name: str) -> Path:
        """Where the model ``name`` lies or will lie."""
        return self._place("models", f"{name}.safetensors")

    def learns_from(self, data_hash: str, split_hash: str) -> None:
        """Say of which images and split the models are that are saved from now on: ``run.json`` has it of each."""
        self._learns_from = {"data_hash": data_hash, "split_hash": split_hash}

    def save_model(self, name: str, model: "nn.Module", key: str) -> None:
        """Write the model's weights and buffers.

        Args:
            name: of the file, without an ending.
            model: on any device; it is not changed.
            key: the :func:`kdnb.provenance.content_key` of what the weights were made from.
        """
        from safetensors.torch import save_file

        state = {entry: value.detach().cpu().contiguous().clone() for entry, value in model.state_dict().items()}
        with atomic_write(self.model_path(name)) as temporary:
            save_file(state, temporary, metadata={"key": key})  # one entry: several would be written in any order
        self._sign(self.model_path(name), **self._learns_from)

    def has_model(self, name: str, key: str) -> bool:
        """Whether the run holds a sound model ``name`` made from exactly ``key``."""
        try:
            return tensors_metadata(self._checked(f"models/{name}.safetensors")).get("key") == key
        except (ArtefactError, SafetensorError):
            return False

    def load_model(
        self, name: str, model: "nn.Module", key: str | None = None, learned_from: tuple[str, str] | None = None
    ) -> "nn.Module":
        """Load weights into a model.

        Args:
            name: of the file, without an ending.
            model: of the architecture that was saved; it takes the weights.
            key: what the weights must have been made from; ``None`` takes any.
            learned_from: the hashes of the images and of the split that are at hand: a model that is known to have
                learned from others is refused (:meth:`learns_from`).

        Returns:
            The model in evaluation mode, on the device where the study computes.

        Raises:
            ArtefactError: missing, damaged, another architecture, or (where that is asked) made from something else.
        """
        from kdnb.device import place

        file = f"models/{name}.safetensors"
        path = self._checked(file)
        signed = self.info()["artefacts"][file]
        cure = rerun_command(self.folder, signed)
        if learned_from is not None:
            for what, recorded, now in zip(
                ("other images", "another split"),
                (signed.get("data_hash"), signed.get("split_hash")),
                learned_from,
                strict=True,
            ):
                if recorded not in (None, now):
                    raise ArtefactError(f"{path} learned from {what} ({recorded}) than are here ({now}): {cure}.")
        try:
            saved_key = tensors_metadata(path).get("key")
            if key is not None and saved_key != key:
                raise ArtefactError(f"{path} was made from other data or settings: {cure}.")
            model.load_state_dict(read_tensors(path))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ArtefactError(f"{path} cannot be loaded ({reason}): {cure}.") from error
        return place(model).eval()


def in_common(by_notebook: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A section of ``run.json`` that each notebook writes, with what all of them say said once.

    Args:
        by_notebook: each notebook's values by name.

    Returns:
        The values that are the same for all, and under a notebook's name those that differ in it.

    Example:
        >>> in_common({"01": {"device": "cpu", "threads": 2}, "02": {"device": "cpu", "threads": 4}})
        {'device': 'cpu', '01': {'threads': 2}, '02': {'threads': 4}}
    """
    first = next(iter(by_notebook.values()), {})
    common = {
        name: value
        for name, value in first.items()
        if all(values.get(name) == value for values in by_notebook.values())
    }
    own = {
        notebook: {name: value for name, value in values.items() if name not in common}
        for notebook, values in by_notebook.items()
    }
    return common | {notebook: values for notebook, values in own.items() if values}


def rerun_command(folder: Path, signed: dict[str, str]) -> str:
    """What makes a run's damaged artefact anew: make looks at executed notebooks only, so the writer has to go."""
    return f"delete {folder / 'notebooks' / signed['notebook']}.ipynb and run `make reproduce` again"


def start(notebook: str, **parameters: Any) -> Run:  # noqa: ANN401 - whatever a user wrote; resolve checks it
    """Check a notebook's parameters, open the run's folder and record who is at work.

    Args:
        notebook: the notebook's name, such as ``"02_teacher_training"``.
        **parameters: the notebook's parameters, passed to :func:`kdnb.settings.resolve`.

    Returns:
        The run, whose ``run.json`` says who is at work.

    Raises:
        ParameterError: as :func:`kdnb.settings.resolve`, or Python leaves out checks.
        DataNotFoundError: as :func:`kdnb.settings.resolve`.
        ArtefactError: the folder holds a run of another data set, profile, seed or split, whose results must not mix
            with this one's.
    """
    if sys.flags.optimize:
        raise ParameterError(
            f"Python runs with -O or PYTHONOPTIMIZE ({sys.flags.optimize}), "
            "but then the notebooks' checks would vanish: unset it."
        )
    run = Run(resolve(**parameters), notebook)
    settings = run.settings
    identity = {name: getattr(settings, name) for name in ("dataset", "profile", "seed", "split_protocol")}
    recorded = run.info().get("run", identity)
    for name, value in identity.items():
        if recorded.get(name) != value:
            raise ArtefactError(
                f"{run.folder} holds a run whose {name} is {recorded.get(name)!r}, not {value!r}: "
                "delete it or use another folder."
            )
    run.record("run", identity)
    run.record("environment", {notebook: environment()})
    run.record("budget", {notebook: asdict(settings.budget)})
    return run


def opened(folder: str | Path, notebook: str, data_dir: str | Path = "") -> Run:
    """A finished run by its folder, with the settings that it recorded.

    Args:
        folder: a run's folder; ``~`` in front is understood.
        notebook: the name of who is at work.
        data_dir: where the images of the run lie now, if they moved.

    Returns:
        The run.

    Raises:
        ArtefactError: the folder holds no run.
    """
    run_dir = from_home(folder).absolute()
    no_budget = cast("Budget", None)  # what the run recorded is read first
    info = Run(Settings("phantom", "quick", 0, run_dir, run_dir, "official", no_budget), notebook).info()
    if "run" not in info:
        raise ArtefactError(
            f"{run_dir} holds no run: give the folder that `make reproduce` wrote, such as runs/phantom-quick-seed0."
        )
    stamp = run_dir / ".stamps" / "settings.json"
    parameters = json.loads(stamp.read_text(encoding="utf-8"))["parameters"] if stamp.exists() else {}
    settings = resolve(**info["run"], data_dir=data_dir or parameters.get("data_dir", ""), run_dir=run_dir)
    recorded_budget = info.get("budget", {}).get("03_distillation", {})
    if set(recorded_budget) == set(asdict(settings.budget)):  # what a notebook's parameters changed
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in recorded_budget.items()
        }
        settings = replace(settings, budget=replace(settings.budget, **values))
    return Run(settings, notebook)
