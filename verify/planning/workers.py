"""Tasks in processes of their own, two at a time, with progress."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from watermark import StillmarkError
from watermark.tokenizers import quiet_transformers


@dataclass(frozen=True)
class Task:
    """A piece of work for a process of its own.

    Attributes:
        what: what is done, on what.
        unit: of its progress.
        command: what one types to do the same; empty: other commands do it on the way.
        work: the function that does it, with these arguments and then a `Progress`.
        arguments: for `work`.
    """

    what: str
    unit: str
    command: str
    work: Callable[..., None]
    arguments: tuple[Any, ...]


Show = Callable[[Task, int, int | None], None]
"""Called twice a second for every task that runs, with what is done, and of how much (None: not known yet)."""


@dataclass(frozen=True)
class Pool:
    """Two processes, and the queue on which they report (number of the task, done, of how much)."""

    executor: ProcessPoolExecutor
    reports: SimpleQueue[tuple[int, int, int | None]]


@contextmanager
def workers(log: Path) -> Iterator[Pool]:
    """Two processes for tasks; on an error or an interrupt they are stopped at once."""
    context = get_context("spawn")
    reports: SimpleQueue[tuple[int, int, int | None]] = context.SimpleQueue()
    before = set(active_children())
    executor = ProcessPoolExecutor(2, context, _start, (reports, str(log.resolve())))
    try:
        # both start here: the executor can overlook the end of a process that starts after its watching thread
        wait([executor.submit(int) for _ in range(2)])
        yield Pool(executor, reports)
    except BaseException:
        for child in set(active_children()) - before:
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


_reports: SimpleQueue[tuple[int, int, int | None]]
"""In a worker: where it reports."""


def _start(reports: SimpleQueue[tuple[int, int, int | None]], log: str) -> None:
    """Prepare a worker: half of the cores, output to the log, and it ends when the demo does."""
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the demo stops us
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // 2)))  # torch is not imported yet
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):  # by number: a shell may have closed them
        os.dup2(descriptor, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(number: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> tuple[str, str | None] | None:
    """In a worker: do a task. Returns message and hint of what went wrong; not every exception can be pickled."""
    quiet_transformers()
    _reports.put((number, 0, None))
    try:
        work(*arguments, lambda done, total: _reports.put((number, done, total)))
    except StillmarkError as error:
        return str(error), error.hint
    return None


def side_by_side(pool: Pool, tasks: Sequence[Task], say: Callable[[str], None], show: Show) -> None:
    """Do some tasks, two at a time.

    Raises:
        StillmarkError: one failed.
    """
    for task in tasks:
        if task.command:
            say(f"$ {task.command}")
    start = time.monotonic()
    state: dict[int, tuple[int, int | None]] = {}
    running = {pool.executor.submit(_do, i, task.work, task.arguments): i for i, task in enumerate(tasks)}
    while running:
        finished = wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done
        while not pool.reports.empty():
            number, done, total = pool.reports.get()
            state[number] = (done, total)
        for number, progress in state.items():
            show(tasks[number], *progress)
        for future in finished:
            number = running.pop(future)
            task = tasks[number]
            state.pop(number, None)
            try:
                failure = future.result()
            except BrokenProcessPool:
                raise StillmarkError(
                    f"{task.what}: the process died", "was there too little memory? The same command goes on from here"
                ) from None
            if failure is not None:
                raise StillmarkError(f"{task.what}: {failure[0]}", failure[1])
            say(f"  {task.what}: done, {time.monotonic() - start:.0f} s")
