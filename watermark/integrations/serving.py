"""What the adapters of serving engines share: a server's marks, which one a request carries, and a batch's rows.

The settings come from the environment, since an engine builds its processors itself, in processes of its own:

    STILLMARK_MARK      the file of a mark, or several with `:` between them; requests that say nothing carry the first
    STILLMARK_LABELS    a file of labels, one a line: requests may name them, and carry that child of the first mark;
                        `*`: any label
    STILLMARK_DEFAULT   `on` or `off`: whether requests that say nothing are marked; on, if not set
    STILLMARK_ENFORCE   `on`: requests cannot opt out
    STILLMARK_LOGPROBS  `allow` or `refuse`: whether a marked request may ask for log probabilities; if not set, refused
                        where the mark is enforced, else allowed
    STILLMARK_READABLE  `on`: accept files of marks that other users can read, such as mounted secrets

A request says `stillmark` ("on" or "off") and `stillmark_label` among its extra arguments.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.errors import StillmarkError, UsageError
from watermark.keyfile import check_label, read_labels
from watermark.mark import Mark, Marks, needs_sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SWITCH: Final = "stillmark"
LABEL: Final = "stillmark_label"
ANY: Final = "*"
_LABELS_KEPT: Final = 1 << 16
"""Children that are kept once they were derived: some 3 KB each."""


class RequestError(StillmarkError, ValueError):
    """A request that asks for what this server does not do; engines answer a ValueError with HTTP 400."""

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} ({self.hint})" if self.hint else message


@dataclass(frozen=True)
class Served:
    """The marks of a server, and what requests may choose.

    Attributes:
        marks: those that have files, which go together in a batch. The first is for requests that name no label.
        labels: of children of the first mark that requests may name; None: any.
        on: requests that say nothing are marked.
        enforce: requests cannot opt out.
        logprobs: a marked request may ask for log probabilities.

    Raises:
        MarkError: the marks do not go together.
    """

    marks: tuple[Mark, ...]
    labels: frozenset[str] | None = frozenset()
    on: bool = True
    enforce: bool = False
    logprobs: bool = True

    def __post_init__(self) -> None:
        Marks(self.marks)
        if self.enforce and not self.on:
            raise UsageError("a mark that is enforced is on for requests that say nothing, too")

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Served:
        """What the variables say.

        Raises:
            MarkError: a mark cannot be loaded, or they do not go together.
            InputError: the labels cannot be read.
            UsageError: a variable is missing, or has a value that it does not take.
        """
        files = [name for name in variables.get("STILLMARK_MARK", "").split(os.pathsep) if name]
        if not files:
            raise UsageError(
                "`STILLMARK_MARK` names no mark", "export STILLMARK_MARK=teacher.mark before the server starts"
            )
        readable = _chosen(variables, "STILLMARK_READABLE", "off", ("on", "off")) == "on"
        named = variables.get("STILLMARK_LABELS", "")
        enforce = _chosen(variables, "STILLMARK_ENFORCE", "off", ("on", "off")) == "on"
        logprobs = _chosen(variables, "STILLMARK_LOGPROBS", "refuse" if enforce else "allow", ("allow", "refuse"))
        return cls(
            marks=tuple(Mark.load(name, allow_readable=readable) for name in files),
            labels=None if named == ANY else frozenset(read_labels(Path(named))) if named else frozenset(),
            on=_chosen(variables, "STILLMARK_DEFAULT", "on", ("on", "off")) == "on",
            enforce=enforce,
            logprobs=logprobs == "allow",
        )

    @property
    def mark(self) -> Mark:
        """The mark of requests that name no label; every other one has its scheme's kind, width and vocabulary."""
        return self.marks[0]

    def wanted(self, fields: Mapping[str, Any] | None) -> Mark | None:
        """The mark that a request carries, or None; fields: its extra arguments.

        Raises:
            RequestError: it asks for what this server does not do.
        """
        asked = {name: value for name, value in (fields or {}).items() if str(name).startswith(SWITCH)}
        if unknown := asked.keys() - {SWITCH, LABEL}:
            raise RequestError(f"no argument '{min(unknown)}'", f"there are '{SWITCH}' and '{LABEL}'")
        label = asked.get(LABEL)
        said = asked.get(SWITCH, label is not None or self.on)
        switch = _SWITCH.get(said) if isinstance(said, (str, int)) else None
        if switch is None:
            raise RequestError(f'\'{SWITCH}\' is neither "on" nor "off"')
        if not switch:
            if self.enforce:
                raise RequestError(f"this server marks every answer: '{SWITCH}' cannot be \"off\"")
            if label is not None:
                raise RequestError(f"'{LABEL}' names a mark, and '{SWITCH}' is \"off\"", "name one of them")
            return None
        return self.mark if label is None else self._of_label(label)

    def check(self, fields: Mapping[str, Any] | None, *, temperature: float, logprobs: bool) -> None:
        """Whether a request can be served; to call before it is accepted.

        Args:
            fields: its extra arguments.
            temperature: of sampling; 0: greedy.
            logprobs: it asks for log probabilities, of its answer or of its prompt.

        Raises:
            RequestError: it asks for what this server does not do.
        """
        mark = self.wanted(fields)
        if mark is None:
            return
        if mark.scheme.needs_sampling and temperature == 0:
            error = needs_sampling(mark)
            raise RequestError(str(error), error.hint)
        if logprobs and not self.logprobs:
            raise RequestError(
                "this server gives no log probabilities with marked answers",
                "they would give away the mark, or what the model says without it",
            )

    def _of_label(self, label: object) -> Mark:
        if not isinstance(label, str) or not label:
            raise RequestError(f"'{LABEL}' must be a label, as text")
        named = next((mark for mark in self.marks if mark.label == label), None)
        if named is not None:
            return named
        if self.labels is not None and label not in self.labels:
            raise RequestError(f"'{LABEL}' names a label that this server does not know")
        try:
            check_label(label)
        except StillmarkError as error:
            raise RequestError(f"'{LABEL}': {error}", error.hint) from None
        return _child(self.mark, label)


_SWITCH: Final[Mapping[object, bool]] = {"on": True, "off": False, True: True, False: False}  # JSON's true is 1 to vLLM


@lru_cache(_LABELS_KEPT)
def _child(mark: Mark, label: str) -> Mark:
    return mark.child(label)


@lru_cache(_LABELS_KEPT)
def _words(mark: Mark) -> npt.NDArray[np.uint32]:
    return prf.key_words(mark.prf_key)


def _chosen(variables: Mapping[str, str], name: str, default: str, values: Sequence[str]) -> str:
    found = variables.get(name) or default
    if found not in values:
        raise UsageError(f"`{name}` must be {' or '.join(values)}")
    return found


@lru_cache
def served() -> Served:
    """What the environment of this process says, read once; raises as `Served.from_environment`."""
    return Served.from_environment()


def check_model(mark: Mark, size: int, tokenizer: str | None) -> None:
    """Whether a mark fits the model of a server.

    Args:
        mark: the first one of the server.
        size: token ids of the model.
        tokenizer: the folder of its tokenizer; None: not at hand, and not checked.

    Raises:
        TokenizerError: it was made for another tokenizer.
        UsageError: it was made for more tokens than the model has.
    """
    from watermark import tokenizers

    if size < (mark.vocabulary_size or 0):
        raise UsageError(f"the mark is for {mark.vocabulary_size} tokens, the model has {size}")
    if tokenizer is not None and mark.tokenizer is not None and Path(tokenizer).is_dir():
        tokenizers.check(mark, tokenizers.load(tokenizer), tokenizer)


class Slots:
    """The marks of the requests under way, each in a slot, and their tables for the kernels.

    Setting a slot is cheap; the tables go to the device once a step, however many slots were set, as one copy each.

    Args:
        mark: of the server: scheme's kind, width, vocabulary and exempt ids are every request's.
        slots: how many.
        columns: of the logits.
        device: of the logits.
    """

    def __init__(self, mark: Mark, slots: int, columns: int, device: torch.device) -> None:
        import torch

        from watermark.kernels import tensors

        self.width = mark.width
        self._operation = mark.scheme.operation
        self._limit = columns if mark.vocabulary_size is None else mark.vocabulary_size
        one = Marks((mark,)).tables
        *_, self._exempt, self._allowed = tensors.on_device(one, 1, self._limit, device)
        self._device = device
        self._keys = np.zeros((slots, 8), np.uint32)
        self._parameters = [np.repeat(array, slots) for array in one.parameters]
        self._temperatures = np.ones(slots, np.float32)
        self._which = np.full(slots, -1, np.int32)
        self._there: tuple[Tensor, ...] = ()
        self._torch = torch

    def put(self, slot: int, mark: Mark | None, temperature: float = 1.0) -> None:
        """What the request in a slot carries, None: nothing; temperature: what its logits will be divided by."""
        self._there = ()
        self._which[slot] = -1 if mark is None else slot
        self._temperatures[slot] = temperature if mark is not None and temperature > 0 else 1.0
        if mark is not None:
            self._keys[slot] = _words(mark)
            for array, value in zip(self._parameters, mark.scheme.tables([mark.scheme]), strict=True):
                array[slot] = value[0]

    def swap(self, one: int, other: int) -> None:
        """Exchange two slots."""
        self._there = ()
        for array in (self._keys, *self._parameters, self._temperatures):
            array[[one, other]] = array[[other, one]]
        a, b = self._which[[one, other]] >= 0
        self._which[one], self._which[other] = (one if b else -1), (other if a else -1)

    def marked(self, slots: npt.NDArray[np.integer] | slice = slice(None)) -> bool:
        """Whether any of some slots is marked."""
        return bool((self._which[slots] >= 0).any())

    def send(self) -> None:
        """Bring the tables to the device, if a slot was set since."""
        if not self._there:
            arrays = (self._keys.view(np.int32), *self._parameters, self._which, self._temperatures)
            # a copy: a transfer that is still under way must not see the next step's changes
            self._there = tuple(self._torch.from_numpy(array.copy()).to(self._device) for array in arrays)

    def tilt_(self, logits: Tensor, contexts: Tensor, slots: Tensor | None = None, *, scaled: bool) -> Tensor:
        """Tilt a batch of logits in place.

        Args:
            logits: float32 [B, V].
            contexts: integers [B, width], the last tokens of each row, oldest first; negative: there is none.
            slots: integers [B], the slot of each row, negative for none; None: row i has slot i.
            scaled: the logits were divided by their temperature.
        """
        from watermark.kernels import dispatch

        self.send()
        keys, *parameters, which, temperatures = self._there
        if slots is None:
            which, temperatures = which[: len(logits)], temperatures[: len(logits)]
        else:
            known = slots.clamp(min=0).long()
            which = which[known].masked_fill(slots < 0, -1)
            temperatures = temperatures[known].masked_fill(which < 0, 1.0)
        by = None if scaled or not (self._temperatures != 1).any() else temperatures[:, None]
        if by is not None:
            logits.div_(by)
        dispatch.run(
            self._operation, None, logits, contexts, keys, *parameters, which[:, None].contiguous(),
            self._exempt, self._allowed, 0, min(self._limit, logits.shape[1]),
        )  # fmt: skip
        if by is not None:
            logits.mul_(by)
        return logits


def tail(prompt: Sequence[int] | None, output: Sequence[int], width: int) -> list[int]:
    """The last `width` tokens of a prompt and its output, oldest first, -1 where there is none.

    >>> tail([1, 2, 3], [4], 3), tail(None, [], 2), tail([7], [8, 9], 1), tail([7], [], 0)
    ([2, 3, 4], [-1, -1], [9], [])
    """
    found = list(output[-width:]) if width else []
    if prompt is not None and len(found) < width:
        found = [*prompt[max(0, len(prompt) - (width - len(found))) :], *found]
    return [-1] * (width - len(found)) + found
