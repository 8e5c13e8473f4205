"""Files and folders that appear whole or not at all, whoever else writes to the same folder."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows, which refuses to delete what is open
    fcntl = None  # type: ignore[assignment]

PART = ".cv-part"  # ends the name of a folder in which something is being written; no other program's partial files
LOCK, CONTENT = "lock", "content"  # what lies in it
ABANDONED = 600.0  # seconds without a change before it is looked at


@contextmanager
def appearing(path: Path, new: bool = False) -> Iterator[Path]:
    """Yield where to write what is to appear at a path, a file or a folder.

    It is written in a folder of its own next to the path, which one process alone can make, and which reserves a new
    path for as long as it is written. Its mode is that of a file which `open` makes.

    Args:
        path: where it is to appear; a file that lies there is replaced.
        new: refuse a path at which something lies or is being written.

    Raises:
        FileExistsError: the path is not new.
        OSError: it could not be written; says what to do.
    """
    work = path.with_name(f"{path.name}{'' if new else '.' + uuid.uuid4().hex[:8]}{PART}")
    with explained(path):
        remove_abandoned(path.parent)
        work.mkdir()
    try:
        with explained(path), open(work / LOCK, "x") as held:
            with suppress(OSError):  # a file system without locks: what is abandoned there stays
                lock(held)
            if new and os.path.lexists(path):  # looked at once it is reserved: it may have just appeared
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            yield work / CONTENT
            follow_mode(work / CONTENT, os.stat(held.fileno()).st_mode & 0o777)
            os.replace(work / CONTENT, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what to do where a path cannot be written; that it is taken is for the caller to see."""
    try:
        yield
    except FileExistsError:
        raise
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path.name} could not be written ({getattr(error, 'strerror', None) or error}). Free up "
            f"space in {path.parent}, and check that ComfyUI may write there."
        ) from error


def follow_mode(path: Path, mode: int) -> None:
    """Give a file, or the files of a folder, a mode; safetensors 0.8 lets the owner alone read them."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            file.chmod(mode)


def lock(file: IO) -> None:
    """Lock a file for this process until it is closed; OSError where it is locked, or its system has no locks."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that have ended left half-written in a folder; what may still be written stays."""
    for work in folder.glob(f"*{PART}"):
        with suppress(OSError):
            changed = max(part.stat().st_mtime for part in (work, *work.iterdir()))
            if time.time() - changed > ABANDONED and not work.is_symlink():
                with open(work / LOCK, "a") as held:
                    lock(held)
                (work / LOCK).unlink()
                shutil.rmtree(work)
