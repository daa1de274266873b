"""Writing files so that a reader sees the old content, the new content, or nothing; never a part."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
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
        full = getattr(error, "errno", None) in _FULL
        raise InputError(
            path, 0, f"cannot write: {reason}", "free some space, and call again" if full else hint
        ) from error


_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def reading(path: Path, what: str = "", hint: str | None = None) -> Iterator[None]:
    """Errors of reading `path` in this block as InputError, in words; what: names the file in them, if it is named."""
    try:
        yield
    except OSError as error:
        raise InputError(path, 0, f"cannot read{what and f' the {what}'}: {error.strerror}", hint) from None


def read_bytes(path: Path, what: str = "", hint: str | None = None) -> bytes:
    """A file, whole. Raises InputError, with the hint where one is given."""
    with reading(path, what, hint):
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


def settle(path: Path) -> None:
    """What a file holds is on the disk when this returns, and survives a power cut; of a folder, the names in it.

    Raises OSError.
    """
    if os.name != "posix":
        return  # Windows opens no folder, and flushes no file that is open for reading
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot, for folders
            raise
    finally:
        os.close(descriptor)


def publish(scratch: Path, path: Path) -> None:
    """Give a file, or a folder with all in it, its name, once it is on the disk. Raises OSError."""
    for one in scratch.rglob("*") if scratch.is_dir() else ():
        settle(one)
    settle(scratch)
    os.replace(scratch, path)
    settle(path.parent)


@contextmanager
def _written(path: Path, data: bytes, private: bool) -> Iterator[Path]:
    """A file beside `path` that holds the data, on the disk; it is removed if the block fails.

    It is held, so that one that a killed process left is told from one in use: who writes `path` next removes it.
    """
    for number in itertools.count():
        temporary = path.with_name(f".{path.name}.new{number or ''}")
        _remove_left_file(temporary)
        try:
            held = _write_nameless(temporary, data, private)
            if held is None:
                _fill(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, _mode(private)), data)
            break
        except FileExistsError:
            continue  # in use
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if held is not None:
            os.close(held)


def _write_nameless(path: Path, data: bytes, private: bool) -> int | None:
    """Write a new file that has no name until it is whole, so that a kill leaves nothing of it.

    Returns its descriptor, which holds it; None where all this is not possible. Raises FileExistsError.
    """
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        file = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, _mode(private))
    except OSError:
        return None  # a file system without them
    held = os.dup(file)
    try:
        _fill(file, data)
        lock(held)
        # src_dir_fd: only where one is named does Python follow the link to the file
        os.link(f"/proc/self/fd/{held}", path, src_dir_fd=held, follow_symlinks=True)
    except BaseException as error:
        os.close(held)
        if isinstance(error, FileNotFoundError):
            return None  # no /proc
        raise
    return held


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
    held = _write_nameless(path, data, private)
    if held is None:
        with _written(path, data, private) as temporary:
            os.link(temporary, path)  # unlike a rename, a link never replaces
            temporary.unlink()
    else:
        os.close(held)
    settle(path.parent)


def replace(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole, replacing what was there in one step; private: as for `create`."""
    with _written(path, data, private) as temporary:
        os.replace(temporary, path)
    settle(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that becomes `path` when the block ends well, and goes away if not.

    Of a run that was killed it stays; the next one removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{_UNFINISHED}"))
    with _held(scratch):
        try:
            yield scratch
            (scratch / ".mode").mkdir()  # as the umask has it
            mode = stat.S_IMODE((scratch / ".mode").stat().st_mode)
            (scratch / ".mode").rmdir()
            scratch.chmod(mode)
            publish(scratch, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what a killed run goes on from, held against other runs.

    It goes away with the block if it is empty, or `path` is there.

    Raises:
        InputError: another run holds it.
    """
    kept = path.with_name(f".{path.name}.unfinished")
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _held(kept, unknown=True) as free:
        if not free:
            raise InputError(path, 0, "another run is making it", "let it finish, or choose another name")
        try:
            yield kept
        finally:
            if path.exists() or not any(kept.iterdir()):
                shutil.rmtree(kept, ignore_errors=True)


@contextmanager
def _held(path: Path, *, unknown: bool = False) -> Iterator[bool]:
    """Holds a file or a folder against other processes; False: another one holds it, or there is none.

    unknown: where it cannot be told.
    """
    if os.name != "posix":  # Windows opens no folder
        yield unknown
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | _AT_ONCE)
    except OSError:
        yield False
        return
    try:
        yield lock(descriptor, unknown=unknown) and _is_open(descriptor, path)
    finally:
        os.close(descriptor)


def _is_open(descriptor: int, path: Path) -> bool:
    """Whether a name is still that of an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_left_file(path: Path) -> None:
    """Remove a file, if it is there and no process holds it."""
    if path.exists():
        with _held(path) as free:
            if free:
                path.unlink()


_UNFINISHED: Final = ".unfinished-"


def _remove_left(path: Path) -> None:
    """Remove the scratch folders of runs that were killed while they made `path`."""
    import glob

    for left in path.parent.glob(f".{glob.escape(path.name)}{_UNFINISHED}????????"):
        with _held(left) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
