"""Files that are whole or not there: written atomically, hashed, and read on any file system."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, deserialize, safe_open

from kdnb.errors import writing
from kdnb.filesystems import flushed, readable_by_all

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

# Of tables of results; they are text whatever their values look like.
TEXT_COLUMNS = ("class", "first_class", "second_class", "image_id", "group")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file so that its name never stands for half of it.

    Args:
        path: where the file shall lie; its folder is made if need be.

    Yields:
        A temporary path beside ``path`` that replaces it when the block ends well and vanishes when it does not.

    Raises:
        StorageError: the disk is full, the folder is missing or may not be written to.
    """  # noqa: DOC501 - no OSError leaves ``writing``
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            try:
                yield temporary
            except SafetensorError as error:  # it wraps what the system said
                raise OSError(str(error)) from error
            readable_by_all(temporary, 0o644)
            with temporary.open("rb") as file:
                flushed(file)
            temporary.replace(path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Write a folder so that its name never stands for half of it.

    Args:
        folder: where it shall lie; what it lies in is made if need be.

    Yields:
        A temporary folder beside ``folder`` that takes its place when the block ends well and vanishes when it does
        not.

    Raises:
        StorageError: the disk is full, the place may not be written to, or ``folder`` exists and is not empty.
    """
    part = None
    try:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
            yield part
            readable_by_all(part, 0o755)
            part.replace(folder)
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def tensors_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, without its tensors.

    Args:
        path: of the file; on file systems that map no file into memory it is read whole.

    Returns:
        The entries of its metadata.

    Raises:
        FileNotFoundError: there is none.
        SafetensorError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise
    except OSError:  # the file system maps no file into memory
        content = path.read_bytes()
        deserialize(content)  # checks what the header says
        return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file.

    Args:
        path: of the file.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        SafetensorError: it is damaged.
    """
    from safetensors.torch import load, load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise
    except OSError:  # the file system maps no file into memory
        return load(path.read_bytes())


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_table(path: Path) -> "pd.DataFrame":
    """A table of results, with names of classes and images as text.

    Args:
        path: of a CSV file; the names are those in :data:`TEXT_COLUMNS`.

    Returns:
        The table; a name stays text where it looks like a number (``01``) or like nothing (``NaN``).
    """
    import pandas as pd  # here: processes that only decode images import this module too

    return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(TEXT_COLUMNS, str))
