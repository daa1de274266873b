"""Writing files so that a reader sees the old content, the new content, or nothing; never a part."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

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


@contextmanager
def reading(path: Path, what: str = "", hint: str | None = None) -> Iterator[None]:
    """Errors of reading `path` in this block as InputError, in words; what: names the file in them, if it is named."""
    try:
        yield
    except OSError as error:
        raise InputError(path, 0, f"cannot read{what and f' the {what}'}: {error.strerror}", hint) from None


def read_bytes(path: Path, what: str = "") -> bytes:
    """A file, whole. Raises InputError."""
    with reading(path, what):
        return path.read_bytes()


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex. Raises InputError where it cannot be read."""
    with reading(path), open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(descriptor: int, *, unknown: bool = True) -> bool:
    """Hold an open file against other processes until it is closed; False: another one holds it.

    The lock belongs to the file, not to its name, and ends with its process, however that ends.

    unknown: what to return where the file system has no locks.
    """
    import filelock

    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError:
        return unknown


def open_to_read(path: Path) -> io.BufferedReader:
    """A file, opened for reading. Raises OSError: it cannot be, or is a device such as /dev/zero, which never ends.

    A pipe is read: the shell makes one of `<(command)`.
    """
    file = path.open("rb")
    kind = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is a device, and no file")


@contextmanager
def _written(path: Path, data: bytes, private: bool) -> Iterator[Path]:
    """A temporary file beside `path` that holds the data; it is removed if it is still there at the end."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if not _write_nameless(temporary, data, private):
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, _mode(private))
            _fill(file, data)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write_nameless(path: Path, data: bytes, private: bool) -> bool:
    """Write a new file that has no name until it is whole, so that a kill leaves nothing of it.

    Returns False where that is not possible. Raises FileExistsError.
    """
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        file = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, _mode(private))
    except OSError:
        return False  # a file system without them
    held = os.dup(file)
    try:
        _fill(file, data)
        # src_dir_fd: only where one is named does Python follow the link to the file
        os.link(f"/proc/self/fd/{held}", path, src_dir_fd=held, follow_symlinks=True)
    except FileNotFoundError:
        return False  # no /proc
    finally:
        os.close(held)
    return True


def _mode(private: bool) -> int:
    return 0o600 if private else 0o666  # less the umask


def _fill(file: int, data: bytes) -> None:
    with os.fdopen(file, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def keep_private(path: Path) -> None:
    """Make a file that is to be appended to, if it is not there; in any case nobody else may read it.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | _AT_ONCE, 0o600)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.name == "posix":
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


_BINARY: Final = getattr(os, "O_BINARY", 0)
_AT_ONCE: Final = getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody reads would block


def create(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a new file whole. Raises FileExistsError rather than replace one.

    private: it holds a secret, or what only a secret's holder may know: nobody else may read it.
    """
    if not _write_nameless(path, data, private):
        with _written(path, data, private) as temporary:
            os.link(temporary, path)  # unlike a rename, a link never replaces


def replace(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole, replacing what was there in one step; private: as for `create`."""
    with _written(path, data, private) as temporary:
        os.replace(temporary, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that becomes `path` when the block ends well, and goes away if not.

    Of a run that was killed it stays; the next one removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{_UNFINISHED}"))
    with _held_folder(scratch):
        try:
            yield scratch
            (scratch / ".mode").mkdir()  # as the umask has it
            mode = stat.S_IMODE((scratch / ".mode").stat().st_mode)
            (scratch / ".mode").rmdir()
            scratch.chmod(mode)
            os.replace(scratch, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _held_folder(path: Path) -> Iterator[bool]:
    """Holds a folder against other processes; False: another one holds it, or it cannot be told."""
    if os.name != "posix":  # Windows opens no folder
        yield False
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        yield lock(descriptor, unknown=False)
    finally:
        os.close(descriptor)


_UNFINISHED: Final = ".unfinished-"


def _remove_left(path: Path) -> None:
    """Remove the scratch folders of runs that were killed while they made `path`."""
    import glob

    for left in path.parent.glob(f".{glob.escape(path.name)}{_UNFINISHED}????????"):
        with _held_folder(left) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
