"""A watch on a library while it reads what a stranger wrote, in this process: it is ended where it goes on for ever."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from watermark.errors import ModelError

SECONDS = 120.0
"""By the clock, and of CPU time too: a busy machine alone ends nothing."""
MEMORY: Final = 6 << 30
"""Bytes by which the process may grow."""
_STEP: Final = 0.1  # seconds between two looks


class _EndedError(BaseException):
    """Raised in the watched thread, wherever it is; no Exception, so that a library does not take it for its own."""


@contextmanager
def bounded(what: str, seconds: float | None = None, memory: int = MEMORY) -> Iterator[None]:
    """Ends the block if it takes more time or memory than some.

    It is ended between two steps of Python; a single call into a library's own code is not cut short. Memory is looked
    at on Linux only.

    Args:
        what: names the work in the error.
        seconds: by the clock and of CPU time; None: SECONDS.
        memory: bytes.

    Raises:
        ModelError: the block was ended.
    """
    most = SECONDS if seconds is None else seconds
    thread, ended, done, turn = threading.get_ident(), threading.Event(), threading.Event(), threading.Lock()

    def watch() -> None:
        clock, used, held = time.monotonic(), time.process_time(), _held()
        while not done.wait(_STEP):
            late = min(time.monotonic() - clock, time.process_time() - used) > most
            if late or _held() - held > memory:
                with turn:
                    if not done.is_set():
                        ended.set()
                        _raise_in(thread, _EndedError)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        try:
            yield
        finally:
            with turn:
                done.set()
                _raise_in(thread, None)
            watching.join()
    except _EndedError:
        ended.set()
    except Exception:
        if not ended.is_set():  # else what a library made of being ended
            raise
    if ended.is_set():
        raise ModelError(
            f"{what} takes more than {most:g} seconds, or more than {memory >> 20:,} MiB of memory", "is it whole?"
        )


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Raise an exception in a thread at its next step; None: take back one that is not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if kind is None else ctypes.py_object(kind))


def _held() -> int:
    """Bytes of memory that this process holds."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0
