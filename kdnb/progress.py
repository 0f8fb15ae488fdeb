"""Progress with time left, on the terminal and in JupyterLab, and nothing of it in a saved notebook."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` while showing how far ``what`` is and how long the rest will take."""
    from tqdm import tqdm

    yield from tqdm(items, desc=what, total=total, leave=False, disable=None)
