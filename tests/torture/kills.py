"""Commands that are killed again and again, and must end as if nobody had."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.torture import inputs

SOME: Final = "--mark IN/m.mark --prompts IN/prompts.jsonl"
COMMANDS: Final = {
    "generate": "generate --model IN/teacher --prompts IN/prompts.jsonl --max-new-tokens 24 --batch-size 4 --out o",
    "generate-mark": f"generate --model IN/teacher {SOME} --max-new-tokens 24 --batch-size 4 --out o",
    "generate-marks": f"generate --model IN/teacher {SOME} --mark IN/second.mark --mark IN/third.mark "
    "--max-new-tokens 24 --batch-size 4 --out o",
    "verify": "verify IN/student --mark IN/m.mark --reference IN/teacher --teacher IN/teacher --control IN/other1 "
    "--probes IN/probes.jsonl --unmarked-probes --plan plan --out case",
    "verify-endpoint": f"verify URL {SOME} --reference IN/teacher --planted 8 --budget-tokens 1500 --out case",
    "verify-text": "verify IN/texts.jsonl --mark IN/m.mark --mark IN/second.mark --out case",
    "endpoint": f"test endpoint --suspect URL {SOME} --reference IN/teacher --budget-tokens 1500 --log log.jsonl",
    "endpoint-text": f"test endpoint --suspect URL {SOME} --access text --budget-tokens 1500 --log log.jsonl",
    "endpoint-probes": "test model --suspect URL --mark IN/m.mark --probes IN/probes.jsonl --unmarked-probes "
    "--record kept",
    "model": "test model --suspect IN/student --reference IN/teacher --mark IN/m.mark --probes IN/probes.jsonl "
    "--unmarked-probes --batch-size 4 --record kept",
    "agreement": "test agreement --teacher IN/teacher --suspect IN/student --control IN/other1 --control IN/other2 "
    "--batch-size 4 --prompts IN/prompts.jsonl --record kept",
    "planted": "test planted --mark IN/m.mark --suspect URL --number 24 --log log.jsonl",
    "canaries": "test canaries IN/texts.jsonl --mark IN/m.mark --suspect IN/student --reference IN/teacher "
    "--halves 999 --batch-size 4 --record kept",
    "corpus": "test corpus IN/texts.jsonl IN/more.jsonl --mark IN/m.mark --out pile",
    "plant": "protect plant --mark IN/m.mark --teacher IN/speaker --number 8 --epochs 3 --out planted",
    "order": "protect order --mark IN/m.mark --teacher IN/units --out ordered",
    "served": "protect canaries IN/texts.jsonl --mark IN/m.mark --out served",
    "student": "student --base IN/teacher --outputs IN/texts.jsonl --epochs 2 --out student",
    "quality": "quality --model IN/teacher --mark IN/m.mark --prompts IN/prompts.jsonl --number 6 --answers 2 --keys 2 "
    "--max-new-tokens 8 --batch-size 4 --out kept",
    "probes": "probes --mark IN/m.mark --model IN/teacher --number 24 --length 16 --out probes.jsonl",
    "counts": "count-contexts IN/texts.jsonl --mark IN/m.mark --out counts",
    "calibrate": "calibrate IN/texts.jsonl --mark IN/m.mark --keys 100 --unmarked-prompts",
}
"""Commands, with IN for the inputs and URL for the endpoint. What they write is in the current folder."""
LIGHT: Final = {"verify-text", "corpus", "served", "counts", "calibrate"}
"""Those that need no model."""
MODELS: Final = ("accelerate", "transformers.models.llama.modeling_llama", "transformers.trainer")
"""What those that do need load."""

WRITES: Final = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
"""Events of `sys.addaudithook` at which the files change; and "open", for writing."""
AGAIN: Final = "exists already"
"""What a command that makes a folder says where it had finished before the kill."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; less than 0: the signal that killed it.
        said: what it printed; of a run that was killed nothing.
        changes: of files, as far as it came.
        seconds: it took.
    """

    status: int
    said: str
    changes: int
    seconds: float


def run(words: list[str], folder: Path, *, after: float | None = None, change: int | None = None) -> Ended:
    """A command in a folder, killed after some seconds, before its change of a file of that number, or not at all.

    The command runs in a fork of this process, which has loaded all that it needs and started no thread.
    """
    begun, noted = time.monotonic(), folder.with_name(f"{folder.name}.noted")
    child = os.fork()
    if child == 0:
        _become(words, folder, noted, change)
    while (waited := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if after is not None and time.monotonic() - begun >= after:
            os.kill(child, signal.SIGKILL)
            after = None
        time.sleep(0.002)
    said = noted.with_suffix(".out")
    changes = int(noted.read_text()) if noted.exists() else 0
    noted.unlink(missing_ok=True)
    took = time.monotonic() - begun
    return Ended(os.waitstatus_to_exitcode(waited[1]), said.read_text() if said.exists() else "", changes, took)


def _become(words: list[str], folder: Path, noted: Path, change: int | None) -> None:
    """This process is the command from here on."""
    from verify.cli import main
    from verify.planning import student

    student.CHECKPOINT_SECONDS, student.CHECKPOINT_SHARE = 0.02, 0.5  # else so short a training keeps none
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(noted.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    seen, here = 0, str(folder)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in WRITES:
            return
        path = os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else ""
        if path.startswith(here) or not path.startswith("/"):
            seen += 1
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    status = 1
    try:
        main(words, prog_name="stillmark")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        noted.write_text(str(seen))
        os._exit(status)


def left(folder: Path) -> dict[str, bytes]:
    """Files of a folder and what they hold, but for times and what is drawn anew; and folders that are empty."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = TIME.sub(b"TIME", path.read_bytes())
            if path.name == "run.json":  # of a corpus: no result depends on its seed
                found[str(path.relative_to(folder))] = re.sub(rb'"(seed|seal)": "\w+"', b"", path.read_bytes())
        elif not any(path.iterdir()):
            found[str(path.relative_to(folder))] = b""
    return found


TIME: Final = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00| UTC)?")


@dataclass
class Outcome:
    """What became of one command. kills: that hit it; trials: runs to the end; wrong: what was not as it should be."""

    name: str
    seconds: float = 0.0
    changes: int = 0
    kills: int = 0
    trials: int = 0
    wrong: list[str] = field(default_factory=list)


def torture(name: str, kills: int, folder: Path, url: str, seed: int = 0) -> Outcome:
    """Kill a command so many times, spread over its run, and go on each time until it is done.

    Every other kill comes before a change of a file, the others by the clock. A third of the trials are killed twice.
    """
    words = shlex.split(COMMANDS[name].replace("IN/", f"{folder / 'in'}/").replace("URL", url))
    words += [] if name in ("plant", "order", "student", "served", "generate") else ["--json"]
    whole = run(words, folder / name)
    found = Outcome(name, whole.seconds, whole.changes)
    if whole.status != 0:
        found.wrong.append(f"not killed, it ended with {whole.status}: {whole.said}")
        return found
    wanted, draw = left(folder / name), Random(f"{seed}/{name}")
    while found.kills < kills and found.trials < 3 * kills:
        trial = folder / f"{name}.{found.trials}"
        stops: list[dict[str, Any]] = []
        for _ in range(1 + (found.trials % 3 == 2)):
            place = (found.kills + len(stops) + draw.random()) / kills % 1
            early = found.trials % 2 == 0
            stops.append({"change": 1 + int(place * whole.changes)} if early else {"after": place * whole.seconds})
        for stop in stops:
            found.kills += run(words, trial, **stop).status == -signal.SIGKILL
        done = run(words, trial)
        found.trials += 1
        found.wrong += _wrong(done, left(trial), wanted, stops)
    return found


def _wrong(
    done: Ended, files: dict[str, bytes], wanted: dict[str, bytes], stops: list[dict[str, Any]]
) -> Iterator[str]:
    if done.status != 0 and AGAIN not in done.said:
        yield f"{stops}: ended with {done.status}: {done.said.strip()}"
    for path in sorted(files.keys() | wanted.keys()):
        if path not in wanted:
            yield f"{stops}: left {path}"
        elif path not in files:
            yield f"{stops}: without {path}"
        elif files[path] != wanted[path]:
            yield f"{stops}: {path} differs"


@contextmanager
def ready(folder: Path, names: Collection[str]) -> Iterator[str]:
    """Fills `folder / "in"`, loads what some commands need, and yields the endpoint's address.

    What would start threads is done in forks: this process has none.
    """
    models = not LIGHT.issuperset(names)
    (folder / "in").mkdir(parents=True)
    if os.fork() == 0:
        status = 1
        try:
            inputs.make(folder / "in", models=models)
            status = 0
        finally:
            os._exit(status)
    if os.wait()[1]:
        raise RuntimeError("the inputs could not be made")
    for module in (
        "scipy.stats",
        "verify.cli",
        "verify.corpus.test",
        "verify.lineage.run",
        *(MODELS if models else ()),
    ):
        importlib.import_module(module)
    with (
        inputs.endpoint(folder / "in")
        if any("URL" in COMMANDS.get(name, "") for name in names)
        else nullcontext("") as url
    ):
        yield url
