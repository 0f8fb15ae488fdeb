"""Speed, measured as ratios: both sides of a row run in turn, several times, in one process.

``python -m kdnb.bench [--only NAME]`` writes ``runs/bench/bench.csv``. The rows stand in the modules named in
:data:`MODULES`, each with a dict ``ROWS`` of name -> :class:`Row`.
"""

import argparse
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kdnb.errors import ParameterError, exit_status
from kdnb.files import atomic_write
from kdnb.sources import REPOSITORY

MODULES = ("explain", "training", "data", "memory", "default_run")
Side = Callable[[], float | None]


@dataclass(frozen=True)
class Row:
    """One line of the benchmark.

    Attributes:
        what: what is measured, in words.
        against: what it is compared with.
        goal: what was set out to reach.
        direction: the value must be ``"<="`` or ``">="`` the goal.
        measure: prepares everything that does not count and returns the two sides, ``(numerator, denominator)``:
            functions without arguments. The whole call is timed, unless it returns the seconds that count. A row that
            is no ratio (peak memory) returns its single value instead.
        repeats: how often each side runs, in turn.
        warm_up: whether both run once before that.
    """

    what: str
    against: str
    goal: float
    direction: str
    measure: Callable[[], tuple[Side, Side] | float]
    repeats: int = 7
    warm_up: bool = True


def rows() -> dict[str, Row]:
    """All rows of the benchmark by name."""
    rows_of_modules: dict[str, Row] = {}
    for name in MODULES:
        rows_of_modules |= importlib.import_module(f"kdnb.bench.{name}").ROWS
    return rows_of_modules


def seconds(side: Side) -> float:
    """How long one call takes, or what the call itself says that it took."""
    start = time.perf_counter()
    measured = side()
    return time.perf_counter() - start if measured is None else float(measured)


def ratios(numerator: Side, denominator: Side, repeats: int, warm_up: bool) -> np.ndarray:
    """``(repeats,)`` ratios of the two sides' times; the side that goes first alternates, so that drift cancels."""
    if warm_up:
        numerator()
        denominator()
    quotients = []
    for turn in range(repeats):
        if turn % 2:
            below, above = seconds(denominator), seconds(numerator)
        else:
            above, below = seconds(numerator), seconds(denominator)
        quotients.append(above / below)
    return np.array(quotients)


def median_interval(values: np.ndarray, samples: int = 2000) -> tuple[float, float, float]:
    """The median and the bootstrap interval (95%) of it."""
    drawn = np.random.default_rng(0).choice(values, size=(samples, len(values)))
    lo, hi = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(lo), float(hi)


def measure(name: str, row: Row) -> dict[str, object]:
    """One line of ``bench.csv``."""
    sides = row.measure()
    values = np.array([sides]) if isinstance(sides, (int, float)) else ratios(*sides, row.repeats, row.warm_up)
    value, lo, hi = median_interval(values)
    met = value <= row.goal if row.direction == "<=" else value >= row.goal
    what = f"{row.what} / {row.against}" if row.against else row.what
    return {
        "name": name,
        "value": value,
        "lo": lo,
        "hi": hi,
        "goal": f"{row.direction} {row.goal:g}",
        "met": met,
        "what": what,
    }


def write(path: Path, measured: dict[str, object]) -> None:
    """Put one measured line into the table at ``path``; the other lines stay."""
    line = pd.DataFrame([measured])
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(measured))
    table = pd.concat([table[table["name"] != measured["name"]], line]) if len(table) else line
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def run(only: str, out: Path) -> None:
    """Measure one row, or all; print and keep each as it comes.

    Args:
        only: the name of the row; empty: all.
        out: where ``bench.csv`` lies.

    Raises:
        ParameterError: there is no such row.
    """
    known = rows()
    if only and only not in known:
        raise ParameterError(f"ONLY is {only!r}, but it must be one of: {', '.join(known)}.")
    print(f"{'row':30} {'median':>9} {'95% interval':>19} {'goal':>8}  met", flush=True)
    for name in [only] if only else known:
        line = measure(name, known[name])
        write(out, line)
        interval = f"{line['lo']:.3g} .. {line['hi']:.3g}"
        met = "yes" if line["met"] else "NO"
        print(f"{name:30} {line['value']:9.3g} {interval:>19} {line['goal']:>8}  {met}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure all rows, or one, and print them as they come."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.bench", description=main.__doc__)
    parser.add_argument("--only", default="", help="the name of one row")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "bench" / "bench.csv")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options.only, options.out))
