"""The one family of errors that the study raises on purpose.

Every message is one sentence that names the offending value and the cure. The first line of each
class's docstring is the cause and the line after ``Cure:`` the cure; the book's table of errors is
made from them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class KdnbError(Exception):
    """Something outside the code is wrong, and the message says what.

    Cure: do what the message says, then run the same command again.
    """


class ParameterError(KdnbError, ValueError):
    """A parameter has a value that the study cannot use.

    Cure: choose one of the allowed values that the message lists.
    """


class DataNotFoundError(KdnbError):
    """The images are not where the study looked for them.

    Cure: put them there by the steps in the message, or set DATA_DIR.
    """


class DataError(KdnbError):
    """The images are there but cannot be used as a data set.

    Cure: mend the file or folder that the message names.
    """


class DownloadError(KdnbError):
    """A download failed or there is no network.

    Cure: download by hand as the message says, or run where there is a network.
    """


class StorageError(KdnbError):
    """A file could not be written: the disk is full, or the folder may not be written to.

    Cure: free space or mend the permission; finished work is kept and the run continues from it.
    """


class ArtefactError(KdnbError):
    """A stored model or table is damaged, or belongs to another run.

    Cure: delete the file that the message names; it is made again.
    """


class ModelError(KdnbError):
    """A model does not have what the method needs, such as a convolutional layer.

    Cure: name the layer to use, or choose another method.
    """


class TrainingDivergedError(KdnbError):
    """The loss became infinite or not a number.

    Cure: lower the learning rate, or look at the images of the step that the message names.
    """


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says while ``path`` is written into a :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{path} could not be written ({reason}): free space or mend the permission, then run again."
        ) from error


def exit_status(work: Callable[[], object]) -> int:
    """Do what a command line asked for; a known error is one sentence on the terminal and exit status 2."""
    try:
        work()
    except KdnbError as error:
        print(f"kdnb: {error}", file=sys.stderr)
        return 2
    return 0
