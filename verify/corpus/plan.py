"""A run over a corpus before it begins: its settings, its plan, and the folder it has to itself."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from verify.data.columns import Columns
from verify.data.shapes import parts
from verify.data.sources import no_records
from verify.data.tables import Part
from watermark import InputError, Mark
from watermark.io import files
from watermark.io.fields import (
    JsonError,
    Types,
    either,
    is_flag,
    is_int,
    is_null,
    is_number,
    is_text,
    load_object,
    wrong_field,
)
from watermark.tokenizers import Encode

FORMAT: Final = "stillmark-corpus/v1"

ITEM_TOKENS: Final = 1 << 20
"""About how many tokens a work item has; a record is never cut."""

PART_TOKENS: Final = 1 << 21
"""About how many tokens' pairs a partition holds."""

MAX_PARTITIONS: Final = 1 << 16


@dataclass(frozen=True)
class Settings:
    """What shapes a run beside its files.

    Attributes:
        commitment: the mark's.
        alpha: level of the verdicts, fixed before looking.
        unmarked: the prompts cannot depend on the key.
        skip_bad: count malformed records instead of stopping at one.
        source_column: the field that names a record's source.
        tokenizer: folder of the tokenizer, if not the mark's own.
        columns: where the fields are in records of no known shape.
    """

    commitment: str
    alpha: float
    unmarked: bool
    skip_bad: bool
    source_column: str
    tokenizer: str | None
    columns: Columns | None = None


@dataclass(frozen=True)
class CorpusPlan:
    """A run's work, fixed before any of it is done.

    Attributes:
        settings: the settings.
        files: path, bytes and time of change (ns) of each input.
        items: the work items, some parts each.
        partitions: number of partitions.
        seed: of the hash that spreads contexts over them, drawn for this run; no result depends on it.
    """

    settings: Settings
    files: tuple[tuple[str, int, int], ...]
    items: tuple[tuple[Part, ...], ...]
    partitions: int
    seed: str

    def save(self, folder: Path) -> None:
        """Write it into a run's folder."""
        number = {path: i for i, (path, _, _) in enumerate(self.files)}
        items = [[[number[str(p.path)], p.line, p.start, p.stop, p.group] for p in item] for item in self.items]
        body = {
            "settings": vars(self.settings),
            "files": self.files,
            "partitions": self.partitions,
            "seed": self.seed,
            "items": items,
        }
        with files.writing(folder):
            files.replace(folder / "run.json", json.dumps({"format": FORMAT} | body).encode())

    @classmethod
    def load(cls, folder: Path) -> CorpusPlan | None:
        """The plan in a run's folder; None if there is none yet.

        Raises:
            InputError: what is there is no plan.
        """
        path = folder / "run.json"
        try:
            body = load_object(path)
            settings, partitions, seed = body["settings"], body["partitions"], body["seed"]
            inputs = tuple((name, size, changed) for name, size, changed in body["files"])
            items = tuple(tuple(Part(Path(inputs[i][0]), *rest) for i, *rest in item) for item in body["items"])
            sound = (
                body["format"] == FORMAT
                and wrong_field(settings, _SETTINGS) is None
                and is_int(partitions)
                and 1 <= partitions <= MAX_PARTITIONS
                and is_text(seed)
                and all(is_text(name) and is_int(size) and is_int(changed) for name, size, changed in inputs)
                and all(_is_part(part) for item in items for part in item)
            )
            if sound:
                return cls(Settings(**settings), inputs, items, partitions, seed)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(path, 0, f"cannot read: {error.strerror}") from error
        except (JsonError, AttributeError, KeyError, TypeError, ValueError, IndexError):
            pass
        raise InputError(path, 0, f"not the plan of a {FORMAT} run", "choose another folder")


def _is_part(part: Part) -> bool:
    ends = (part.stop, part.group)
    whole = is_int(part.line) and is_int(part.start) and all(is_null(end) or is_int(end) for end in ends)
    return whole and min(part.line, part.start, *(end for end in ends if end is not None)) >= 0


_SETTINGS: Final[Types] = {
    "commitment": (is_text, "a string"),
    "alpha": (is_number, "a number"),
    "unmarked": (is_flag, "true or false"),
    "skip_bad": (is_flag, "true or false"),
    "source_column": (is_text, "a string"),
    "tokenizer": (either(is_null, is_text), "a string, or null"),
    "columns": (either(is_null, lambda value: isinstance(value, dict)), "an object, or null"),
}


def stamp(path: Path) -> tuple[str, int, int]:
    """Path, bytes and time of change (ns) of an input. Raises InputError if there is no such file."""
    try:
        about = path.stat()
    except OSError as error:
        raise InputError(path, 0, f"cannot read: {error.strerror or error}") from error
    return str(path), about.st_size, about.st_mtime_ns


@dataclass(frozen=True)
class Job:
    """What a worker is told; it loads the mark itself, so that no secret travels.

    Attributes:
        folder: the run's.
        mark_path: the mark file.
        allow_readable: accept one that others may read.
        encoder: makes the function from texts to ids, from a mark and the folder of its tokenizer.
    """

    folder: Path
    mark_path: Path
    allow_readable: bool
    encoder: Callable[[Mark, Path | None], Encode]


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made; a lock goes with its process, however that ends."""
    with files.writing(folder, hint="is there a file in its place?"):
        folder.mkdir(parents=True, exist_ok=True)
        # Windows opens no folder: there a file in it stands for it, and stays
        posix = os.name == "posix"
        file = os.open(folder if posix else folder / ".lock", os.O_RDONLY if posix else os.O_RDWR | os.O_CREAT)
    try:
        if not files.lock(file):
            raise InputError(folder, 0, "another run is at work there", "choose another folder, or wait")
        yield
    finally:
        os.close(file)


def plan_of(folder: Path, paths: Iterable[Path], settings: Settings) -> CorpusPlan:
    """The plan of the run in a folder, which must be this one; a new plan if the folder is empty.

    A run that stopped at a malformed record may go on with `skip_bad`: what it has read holds none.
    """
    stamps = tuple(stamp(path) for path in paths)
    plan = CorpusPlan.load(folder)
    if plan is None:
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(folder, 0, "is not empty, and holds no run", "choose another folder")
        plan = _make_plan([Path(path) for path, _, _ in stamps], settings, stamps)
        plan.save(folder)
    elif settings.skip_bad and not plan.settings.skip_bad:
        plan = replace(plan, settings=replace(plan.settings, skip_bad=True))
        _check_same(folder, plan, settings, stamps)
        plan.save(folder)
    _check_same(folder, plan, settings, stamps)
    return plan


def _check_same(folder: Path, plan: CorpusPlan, settings: Settings, stamps: tuple[tuple[str, int, int], ...]) -> None:
    ours, theirs = vars(settings) | {"files": stamps}, vars(plan.settings) | {"files": plan.files}
    if differs := ", ".join(name for name in ours if ours[name] != theirs[name]):
        message = f"holds a run with other settings or files: {differs}"
        raise InputError(folder, 0, message, "choose another folder, or remove this one")


def _make_plan(paths: Iterable[Path], settings: Settings, stamps: tuple[tuple[str, int, int], ...]) -> CorpusPlan:
    """Cut files into work items: parts in order, up to `ITEM_TOKENS` together.

    Raises:
        InputError: a file cannot be read, holds nothing, or is of no known kind.
    """
    items: list[tuple[Part, ...]] = []
    item: list[Part] = []
    held = total = 0
    for path in paths:
        empty = True
        for part, tokens in parts(path, ITEM_TOKENS, settings.columns):
            empty = False
            if item and held + tokens > ITEM_TOKENS:
                items.append(tuple(item))
                item, held = [], 0
            item.append(part)
            held, total = held + tokens, total + tokens
        if empty:
            raise no_records(path)
    items.append(tuple(item))
    partitions = min(max(1, -(-total // PART_TOKENS)), MAX_PARTITIONS)
    return CorpusPlan(settings, stamps, tuple(items), partitions, secrets.token_hex(16))
