"""Progress on a terminal: one line for each piece of work that is under way, as wide as the window."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from verify.cli.terminal import NAME, console, room
from verify.display import inert
from watermark import progress

BAR: Final = 16
WITH_BAR: Final = 80
WITH_UNITS: Final = 70
"""Columns of a window from which on a line has a bar, and has units and the time that went by."""


class Bars(Progress):
    """rich's display of tasks, each on one line: what is done and on what, how much of how much, how long still."""

    def __init__(self, to: Console) -> None:
        self._to, self._spinner = to, Spinner("line")  # of ASCII
        super().__init__(console=to, transient=True)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        width = room(self._to)
        tasks = [task for task in tasks if task.visible]
        numbers = [(_count(task, width), _times(task, width)) for task in tasks]
        bar, gap = [BAR] if width >= WITH_BAR else [], 2 if width >= WITH_UNITS else 1
        # what is left for the words on what is done: they are cut, and the numbers never are
        fixed = [1, *bar, *(max((len(row[i]) for row in numbers), default=0) for i in (0, 1))]
        words = max(1, width - sum(fixed) - gap * len(fixed))
        columns = [Column(width=one, no_wrap=True) for one in (1, words, *fixed[1:])]
        table = Table.grid(*columns, padding=(0, gap, 0, 0))
        for task, row in zip(tasks, numbers, strict=True):
            cells = [self._spinner.render(self.get_time()), Text(_cut(task.description, words))]
            table.add_row(*cells, *(self._bar(task) for _ in bar), *map(Text, row))
        return table

    def _bar(self, task: Task) -> ProgressBar | str:
        if not task.total:
            return ""
        return ProgressBar(task.total, task.completed, BAR, complete_style=NAME, finished_style=NAME)

    @contextmanager
    def stage(self, what: str, unit: str) -> Iterator[progress.Progress]:
        """A line for one piece of work; the lines of the work that it is a part of wait until it is done."""
        waiting = [task for task in self.tasks if task.visible]
        for task in waiting:
            self.update(task.id, visible=False)
        line = self.line(what, unit)
        try:
            yield line.update
        finally:
            self.remove_task(line.task.id)
            for task in waiting:
                self.update(task.id, visible=True)

    def line(self, what: str, unit: str) -> Line:
        """A new line, which stays until it is removed."""
        number = self.add_task(inert(what, 200), total=None, unit=unit, end=None)
        return Line(self, next(task for task in self.tasks if task.id == number))


@dataclass
class Line:
    """One line of the display. begun: when it was first told how far the work is, and how far it was."""

    bars: Bars
    task: Task
    begun: tuple[float, int] | None = None

    def update(self, done: int, total: int | None) -> None:
        """How far the work is. When it ends is told from how far it came since the first call, a resumed run's too."""
        now = time.monotonic()
        if self.begun is None:
            self.begun = (now, done)
        elif (done, total) == (self.task.completed, self.task.total):
            return
        start, first = self.begun
        left = (now - start) * (total - done) / (done - first) if total is not None and done > first else None
        self.bars.update(self.task.id, completed=done, total=total, end=None if left is None else now + left)


def _cut(text: str, most: int) -> str:
    """A text that takes `most` cells at most, without its middle: the ends say what is done, and on what."""
    if cell_len(text) <= most:
        return text
    end = most // 2
    return f"{set_cell_size(text, most - 1 - end).rstrip()}…{set_cell_size(text[::-1], end)[::-1].lstrip()}"


def _count(task: Task, width: int) -> str:
    """`12 of 64 texts`, or in a narrow window `12/64`."""
    done, unit = int(task.completed), str(task.fields["unit"])
    if task.total is None:
        return f"{done:,} {unit}".rstrip() if done else ""
    if width < WITH_UNITS:
        return f"{done:,}/{int(task.total):,}"
    return f"{done:,} of {int(task.total):,} {unit}".rstrip()


def _times(task: Task, width: int) -> str:
    """How long it took, and how long it takes still: `0:12, 0:40 left`; in a narrow window one of the two."""
    elapsed, end = _clock(task.elapsed or 0), task.fields["end"]
    if end is None:
        return elapsed
    left = f"{_clock(max(0, end - time.monotonic()))} left"
    return left if width < WITH_UNITS else f"{elapsed}, {left}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


_open: list[Bars] = []
"""The display that is on the terminal, if there is one."""


@contextmanager
def bars() -> Iterator[Bars]:
    """The display on stderr: the one that is there, or a new one."""
    if _open:
        yield _open[-1]
        return
    with Bars(console(stderr=True)) as shown:
        _open.append(shown)
        try:
            yield shown
        finally:
            _open.pop()
