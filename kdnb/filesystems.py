"""What file systems refuse, and what is done then: network and shared ones lack locks, modes, flushes or maps.

NFS without a lock service and Lustre without ``flock`` refuse locks; CIFS, exFAT and vboxsf refuse modes; some FUSE
file systems flush no file and map none into memory. None of these is needed for a right result. Standard library only.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

REFUSED = {
    errno.ENOLCK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.ENODEV,
    errno.ENOTTY,
    errno.EBADF,
}
_folders_without_locks: set[Path] = set()  # of which the sentence was printed


def lock(file: IO[Any], path: Path, waiting: Callable[[], None] | None = None) -> contextlib.ExitStack:
    """Lock an open file for this process alone.

    The system drops the lock when the file is closed or its holder dies. Where the file system refuses locks, a file of
    the same meaning in the machine's temporary folder is locked: processes of one machine still wait for one another,
    and a sentence says that those of another machine do not.

    Args:
        file: open for writing.
        path: of the file.
        waiting: called once if another process holds the lock, before it is waited for.

    Returns:
        What has to be closed in the end.

    Raises:
        OSError: the lock failed for another reason than that there are none.
    """
    to_close = contextlib.ExitStack()
    try:
        _flock(file, waiting)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        locks = Path(tempfile.gettempdir()) / f"kdnb-locks-{os.getuid()}"
        locks.mkdir(mode=0o700, exist_ok=True)
        key = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]
        stand_in = to_close.enter_context((locks / key).open("w"))
        if path.parent not in _folders_without_locks:
            _folders_without_locks.add(path.parent)
            folder = os.fsencode(path.parent).decode("utf-8", "replace")
            print(
                f"kdnb: the file system of {folder} refuses locks ({error.strerror}): "
                "run nothing on this folder from another machine meanwhile.",
                file=sys.stderr,
                flush=True,
            )
        _flock(stand_in, waiting)
    return to_close


def _flock(file: IO[Any], waiting: Callable[[], None] | None) -> None:
    if waiting is None:
        fcntl.flock(file, fcntl.LOCK_EX)
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)


def readable_by_all(path: Path, mode: int) -> None:
    """Set a mode where the file system has modes."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in REFUSED | {errno.EPERM, errno.EACCES}:
            raise


def flushed(file: IO[Any]) -> None:
    """Have the file on the disk before its name is, where the file system can be told to."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in REFUSED:
            raise
