"""What was named as the suspect: recorded outputs or log probabilities, a folder of weights, or an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verify.calls import without_login
from verify.data.columns import Columns
from verify.data.sources import files_in, holds_records
from verify.radioactivity.logs import has_any_logprobs
from verify.results import plural
from verify.suspects.endpoint import is_address
from verify.suspects.model import Model, is_loaded, name_of
from watermark import InputError, ModelError, StillmarkError

WEIGHTS: Final = "weights"
ENDPOINT: Final = "endpoint"
TEXT: Final = "text"
LOGPROBS: Final = "log probabilities"

WANTED: Final = "name files of outputs or log probabilities, a folder of weights, or an http(s):// address"


@dataclass(frozen=True)
class Access:
    """A suspect, and what can be had of it.

    Attributes:
        kind: one of WEIGHTS, ENDPOINT, TEXT, LOGPROBS.
        model: the weights: a folder or a loaded model; None where there are none.
        files: the recorded files.
        url: the endpoint's address, with whatever login it holds; never shown.
    """

    kind: str
    model: Model | None = None
    files: tuple[Path, ...] = ()
    url: str = ""

    @property
    def folder(self) -> Path | None:
        """The folder of weights, if there is one."""
        return Path(self.model) if isinstance(self.model, str | Path) else None

    @property
    def shown(self) -> str:
        """The suspect as it may be shown: without a name, password or query in its URL."""
        if self.kind == ENDPOINT:
            return without_login(self.url)
        if self.model is not None:
            return name_of(self.model)
        more = f" and {plural(len(self.files) - 1, 'more file')}" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"

    def __str__(self) -> str:
        return f"{self.shown} ({self.kind if self.kind != TEXT else 'recorded text'})"


def recognise(what: Any, columns: Columns | None = None) -> Access:
    """What was named: a path, several, an http(s):// address, or a loaded `(model, tokenizer)`.

    columns: where the fields are in records of no known shape.

    Raises:
        StillmarkError: it is none of these, or files of several kinds.
        ModelError, InputError: there is no such folder or file, or it cannot be read.

    Example:
        >>> recognise("https://me:secret@api.example.com/v1?key=1").shown
        'https://api.example.com/v1'
    """
    if is_address(what):
        return Access(ENDPOINT, url=what)
    if is_loaded(what):
        return Access(WEIGHTS, model=what)
    if not isinstance(what, str | Path | Sequence):
        raise StillmarkError(f"a suspect of type {type(what).__name__}", WANTED)
    paths = [Path(what)] if isinstance(what, str | Path) else [Path(one) for one in what]
    if len(paths) == 1 and isinstance(what, Sequence) and not isinstance(what, str | Path):
        return recognise(what[0], columns)
    if not paths:
        raise StillmarkError("no suspect was named", WANTED)
    if len(paths) == 1 and paths[0].is_dir():
        found = _records_in(paths[0])
        if not any(paths[0].iterdir()):
            raise InputError(paths[0], 0, "the folder is empty", WANTED)
        if not found:
            return Access(WEIGHTS, model=paths[0])
        paths = found
    for path in paths:
        if path.is_dir():
            raise StillmarkError(f"{path}: a folder among files", "one folder of weights is tested at a time")
        if not path.exists():
            if holds_records(path):
                raise InputError(path, 0, "no such file")
            raise ModelError(f"{path}: no such file or folder", WANTED)
    kinds = {path: LOGPROBS if has_any_logprobs(path, columns) else TEXT for path in paths}
    if len(set(kinds.values())) > 1:
        listed = "; ".join(f"{path}: {kind}" for path, kind in kinds.items())
        raise StillmarkError(f"files of several kinds: {listed}", "test them apart")
    return Access(kinds[paths[0]], files=tuple(paths))


def _records_in(folder: Path) -> list[Path]:
    """The recorded files of a folder that holds no model; empty for a folder of weights."""
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) or (folder / "config.json").exists():
        return []
    return files_in(folder)
