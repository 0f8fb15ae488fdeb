"""What file systems refuse, and what is done then: network and shared file systems have no locks, modes, flushes or maps of some kind.

NFS without a lock service and Lustre without ``flock`` refuse locks; CIFS, exFAT and vboxsf refuse modes; some FUSE file systems flush no
file and map none into memory. None of these is needed for a right result. Standard library only.
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
from typing import IO

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
_told: set[Path] = set()


def lock(file: IO, path: Path, waiting: Callable[[], None] | None = None) -> contextlib.ExitStack:
    """Lock the open ``file`` at ``path`` for this process alone; the system drops the lock when the file is closed or its holder dies.

    Where the file system refuses locks, a file of the same meaning in the machine's temporary folder is locked: processes of one machine
    still wait for one another, and a sentence says that those of another machine do not.

    Args:
        waiting: called once if another process holds the lock, before it is waited for.

    Returns:
        what has to be closed in the end.
    """
    kept = contextlib.ExitStack()
    try:
        _flock(file, waiting)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        place = Path(tempfile.gettempdir()) / f"kdnb-locks-{os.getuid()}"
        place.mkdir(mode=0o700, exist_ok=True)
        key = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]
        stand_in = kept.enter_context((place / key).open("w"))
        if path.parent not in _told:
            _told.add(path.parent)
            print(
                f"kdnb: the file system of {os.fsencode(path.parent).decode('utf-8', 'replace')} refuses locks ({error.strerror}): "
                "run nothing on this folder from another machine meanwhile.",
                file=sys.stderr,
                flush=True,
            )
        _flock(stand_in, waiting)
    return kept


def _flock(file: IO, waiting: Callable[[], None] | None) -> None:
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


def flushed(file: IO) -> None:
    """Have the file on the disk before its name is, where the file system can be told to."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in REFUSED:
            raise
