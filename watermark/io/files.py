"""Writing files so that a reader sees the old content, the new content, or nothing; never a part."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from watermark.errors import InputError


@contextmanager
def writing(
    path: Path, *more: type[Exception], hint: str = "does the folder exist, and is it writable?"
) -> Iterator[None]:
    """Errors of writing to `path` in this block as InputError, in words.

    Args:
        path: the file or folder.
        more: errors that mean the same as OSError, of a library that writes.
        hint: what to do about it.

    Raises:
        InputError: where the block raises OSError or one of `more`.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, *more)):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(path, 0, f"cannot write: {reason}", hint) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(path, 0, f"cannot read: {error.strerror}") from None


def lock(descriptor: int) -> bool:
    """Hold an open file against other processes until it is closed; False: another one holds it.

    The lock belongs to the file, not to its name, and ends with its process, however that ends. A file system without
    locks refuses nobody.
    """
    import filelock

    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError:
        return True


def _write_temporary(path: Path, data: bytes, mode: int) -> str:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            Path(temporary).chmod(mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def create(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a new file whole. Raises FileExistsError rather than replace one."""
    temporary = _write_temporary(path, data, mode)
    try:
        os.link(temporary, path)  # unlike a rename, a link never replaces
    finally:
        os.unlink(temporary)


def replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file whole, replacing what was there in one step."""
    temporary = _write_temporary(path, data, mode)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that becomes `path` when the block ends well, and goes away if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield scratch
        scratch.chmod(0o755)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
