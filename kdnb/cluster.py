"""Work on a Dask cluster, where there is one: a whole run can go beyond one machine (``make reproduce SCHEDULER=tcp://host:8786``).

Workers need this package and, for a network from a file, that file at the same path. Who can reach a scheduler can run
code on its workers: keep it on a network of your own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from kdnb.errors import ParameterError

if TYPE_CHECKING:
    from distributed import Client

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

ATTEMPTS = 5  # where workers are lost


@contextmanager
def client(scheduler: str) -> "Iterator[Client]":
    """A client of a scheduler, closed afterwards.

    Args:
        scheduler: its address, such as ``tcp://host:8786``.

    Yields:
        The client.

    Raises:
        ParameterError: no Dask scheduler answers at that address.
    """
    from distributed import Client

    try:
        opened = Client(scheduler, timeout="5s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ParameterError(
            f"scheduler is {scheduler!r}, but no Dask scheduler answers there: start one with `dask scheduler`."
        ) from error
    with opened:
        yield opened


def lost_worker(scheduler: str | None) -> tuple[type[BaseException], ...]:
    """The exceptions by which Dask says that work was lost with a worker."""
    if not scheduler:
        return ()
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    return KilledWorker, FutureCancelledError


def mapped(
    scheduler: str, function: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item]
) -> list[Result]:
    """``[function(shared, item) for item in items]``, on the workers.

    What a dead worker had is done again.

    Args:
        scheduler: address of the scheduler.
        function: what is computed; workers import it.
        shared: sent to each worker once.
        items: one task each.

    Returns:
        The results in the order of ``items``.

    Raises:
        ParameterError: no Dask scheduler answers at that address.
    """
    lost = lost_worker(scheduler)
    attempt = 0
    while True:
        attempt += 1
        try:
            with client(scheduler) as opened:
                everywhere = opened.scatter(shared, broadcast=True, hash=False)
                return opened.gather(
                    [opened.submit(function, everywhere, item, pure=False, retries=ATTEMPTS) for item in items]
                )
        except lost:
            if attempt == ATTEMPTS:
                raise
