"""Commands in hostile hands: endpoints and folders of every kind, with the time and the memory that each costs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

BAD = ("internal error", "Traceback", "Aborted", "Fatal Python error")


@dataclass(frozen=True)
class Cost:
    """What a command cost. seconds: by the clock; cpu: of CPU time; memory: bytes at most; status: its exit status."""

    status: int
    said: str
    seconds: float
    cpu: float
    memory: int

    @property
    def right(self) -> bool:
        """Whether it ended by itself, with a result or in words."""
        return self.status in (0, 1) and not any(word in self.said for word in BAD)


def cost(words: list[str], folder: Path, most: float, before: Callable[[], None] = lambda: None) -> Cost:
    """A command in a folder, in a fork of this process. most: seconds by the clock, after which it is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    begun, said = time.monotonic(), folder / "said"
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            before()
            from verify.cli import main

            main(words, prog_name="stillmark")
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        finally:
            os._exit(status)
    while (waited := os.wait4(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - begun > most:
            os.kill(child, 9)
        time.sleep(0.01)
    _, status, used = waited
    seconds, cpu = time.monotonic() - begun, used.ru_utime + used.ru_stime
    ended = os.waitstatus_to_exitcode(status)
    return Cost(ended, said.read_text(errors="replace"), seconds, cpu, used.ru_maxrss * 1024)


def table(name: str, folder: Path, costs: Iterable[tuple[str, Cost]]) -> Iterator[str]:
    """The costs as they come, and then the five that cost most time, and most memory: beyond that of showing help."""
    least = cost(["--help"], folder / "help", 300.0).memory

    def row(kind: str, one: Cost) -> str:
        end = "ok" if one.right else "WRONG"
        more, said = (one.memory - least) >> 20, " ".join(one.said.split())[-90:]
        return f"{kind:40} {end:5} {one.status:3} {one.seconds:7.2f} {one.cpu:7.2f} {more:6}  {said}"

    yield f"{name:40} {'':5} {'':>3} {'seconds':>7} {'CPU':>7} {'MiB':>6}  says"
    found = {}
    for kind, one in costs:
        found[kind] = one
        yield row(kind, one)
    yield "most CPU time:"
    yield from (row(kind, found[kind]) for kind in sorted(found, key=lambda kind: -found[kind].cpu)[:5])
    yield "most memory:"
    yield from (row(kind, found[kind]) for kind in sorted(found, key=lambda kind: -found[kind].memory)[:5])
    wrong = [kind for kind, one in found.items() if not one.right]
    yield f"{len(found)} kinds; wrong: {', '.join(wrong) or 'none'}"
