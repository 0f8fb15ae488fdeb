"""Progress with time left, on the terminal and in JupyterLab, and nothing of it in a saved notebook.

A kernel that ``make reproduce`` started has no terminal of its own: it appends lines to the small file that the
environment variable ``KDNB_PROGRESS`` names, and :class:`kdnb.pipeline.Status` shows the last one. In a live JupyterLab
a line below the cell comes and goes; in a plain terminal it is tqdm's bar; anywhere else (nbval, a log file) there is
silence.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar, cast

Item = TypeVar("Item")
_EVERY = 0.2  # seconds between two reports, so that fast loops are not slowed down


def progress(items: Iterable[Item], what: str, total: int | None = None, before: int = 0) -> Iterator[Item]:
    """Yield ``items`` while showing how far ``what`` is and how long the rest will take.

    Args:
        items: one a step.
        what: the name of the work, such as ``"teacher epochs"``.
        total: how many items there are, where ``len(items)`` does not tell.
        before: how many of them were done before, and are not among ``items``.

    Yields:
        The items.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(cast(Sized, items))
    if threading.current_thread() is not threading.main_thread():
        yield from items  # one of several trainings side by side: whoever started them shows how many are done
    elif "KDNB_PROGRESS" in os.environ:
        yield from _reported(items, what, total, before, _append)
    elif _live_notebook():
        yield from _reported(items, what, total, before, _Display())
    else:
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total, initial=before, leave=False, disable=not sys.stderr.isatty())


def _live_notebook() -> bool:
    """Whether a person looks on: the Jupyter server names a kernel's document, papermill and nbval do not."""
    return "JPY_SESSION_NAME" in os.environ and "ipykernel" in sys.modules


def _reported(
    items: Iterable[Item], what: str, total: int | None, before: int, report: Callable[[str | None], None]
) -> Iterator[Item]:
    start = reported = time.monotonic()
    try:
        report(f"{what}\t{before}\t{total or '?'}\t")
        for done, item in enumerate(items, start=before + 1):
            yield item
            now = time.monotonic()
            if now - reported >= _EVERY:
                left = f"{(now - start) / (done - before) * (total - done):.1f}" if total else ""
                report(f"{what}\t{done}\t{total or '?'}\t{left}")
                reported = now
    finally:
        report(None)


def _append(line: str | None) -> None:
    try:
        with open(os.environ["KDNB_PROGRESS"], "a", encoding="utf-8") as file:
            file.write((line or "") + "\n")
    except OSError:  # a full disk must not stop the work for the sake of its progress line
        return


class _Display:
    """One line below a cell of a live notebook, emptied at the end."""

    def __init__(self) -> None:
        from IPython.display import DisplayHandle

        self.handle = DisplayHandle()
        self.shown = False

    def __call__(self, line: str | None) -> None:
        text = ""
        if line is not None:
            work, done, total, left = line.split("\t")
            text = f"{work}: {done} of {total}" + (f", {float(left):.0f} s left" if left else "")
        show = self.handle.update if self.shown else self.handle.display
        self.shown = True
        show({"text/plain": text}, raw=True)
