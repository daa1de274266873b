"""Writing files so that a reader sees the old content, the new content, or nothing; never a part."""

from __future__ import annotations

import errno
import hashlib
import io
import os
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


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex. Raises InputError where it cannot be read."""
    try:
        with open_to_read(path) as file:
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


def mode_of(*, private: bool) -> int:
    """The mode of a new file: of one that holds a secret, or what only a secret's holder may know, 0600 in any case."""
    return 0o600 if private else 0o666 & ~_umask()


def _umask() -> int:
    # Linux says it; elsewhere it can only be set, for an instant, and set back
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


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
def _written(path: Path, data: bytes, private: bool) -> Iterator[str]:
    """The name of a temporary file beside `path` that holds the data; it is removed if it is still there at the end."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            if not private:
                Path(temporary).chmod(mode_of(private=False))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


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


_AT_ONCE: Final = getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody reads would block


def create(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a new file whole. Raises FileExistsError rather than replace one.

    private: it holds a secret, or what only a secret's holder may know: nobody else may read it.
    """
    if _create_nameless(path, data, private):
        return
    with _written(path, data, private) as temporary:
        os.link(temporary, path)  # unlike a rename, a link never replaces


def _create_nameless(path: Path, data: bytes, private: bool) -> bool:
    """The same by a file that has no name until it is whole, so that nothing is left of it after a kill; Linux only."""
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, mode_of(private=private))
    except OSError:
        return False  # a file system without them
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        try:
            # src_dir_fd: only where one is named does Python follow the link to the file
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
        except FileExistsError:
            raise
        except OSError:
            return False  # no /proc
    return True


def replace(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole, replacing what was there in one step; private: as for `create`."""
    with _written(path, data, private) as temporary:
        os.replace(temporary, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that becomes `path` when the block ends well, and goes away if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
