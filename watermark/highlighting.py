"""A text with its green tokens in colour, for the holder of the mark to look at."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from watermark.errors import InputError
from watermark.mark import Mark
from watermark.tokenizers import AnyTokenizer, load

_COLOURS: Final = {True: "#a6dba0", False: "#f4a6a0", None: "#d9d9d9"}
_INVALID: Final = "�"  # what tokenizers give for bytes that are no whole character


class _Written(Protocol):
    """A prompt and its output as token ids, like `verify.data.outputs.Output`."""

    @property
    def prompt_ids(self) -> Any: ...
    @property
    def output_ids(self) -> Any: ...


@dataclass(frozen=True)
class Highlighted:
    """Tokens of an output, and which of them are green. A notebook shows it in colour, `str()` gives plain text.

    It is a picture and no test: a pair that occurs twice is counted twice, and pairs that the prompt showed are too.

    Attributes:
        pieces: the text of each token. Of a character that takes several tokens the last has the text.
        green: for each token whether it is green; None for an exempt one, and for one with too few tokens before it.
    """

    pieces: tuple[str, ...]
    green: tuple[bool | None, ...]

    @property
    def n(self) -> int:
        """Number of tokens that are green or not, without the neutral ones."""
        return sum(one is not None for one in self.green)

    @property
    def share(self) -> float:
        """Fraction of these that are green; nan if there are none."""
        return sum(one is True for one in self.green) / self.n if self.n else float("nan")

    def _summary(self) -> str:
        return f"{self.share:.0%} of {self.n} tokens are green" if self.n else "no token is green or not"

    def __str__(self) -> str:
        return f"{self._summary()}\n{''.join(self.pieces)}"

    def _repr_html_(self) -> str:
        return f'<p>{self._summary()}</p><p style="white-space:pre-wrap">{"".join(self._spans())}</p>'

    def _spans(self) -> Iterator[str]:
        for piece, green in zip(self.pieces, self.green, strict=True):
            text = html.escape(piece or "·").replace("\n", "↵\n")
            # isolated: characters that turn the direction of writing reach no further than their token
            yield f'<span style="background:{_COLOURS[green]};color:black;unicode-bidi:isolate">{text}</span>'


Shown: TypeAlias = _Written | dict[str, Any] | Sequence[int] | npt.NDArray[np.integer] | str
"""An output with `prompt_ids` and `output_ids`, as an object or a record; token ids; or text."""


def highlight(mark: Mark, tokenizer: AnyTokenizer | str | Path, output: Shown) -> Highlighted:
    """Which tokens of an output a mark calls green.

    Args:
        mark: the mark.
        tokenizer: its tokenizer, or the folder that holds it.
        output: what to show.

    Raises:
        TokenizerError: the folder holds no tokenizer.
        InputError: the record has no `output_ids`.
    """
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load(tokenizer)
    before, ids = _ids(tokenizer, output)
    whole = np.array([*before, *ids], np.int64)
    first = max(len(before), mark.width)
    colours: list[bool | None] = [None] * min(first - len(before), len(ids))
    if len(whole) > first:
        contexts = np.lib.stride_tricks.sliding_window_view(whole, mark.width + 1)[first - mark.width :, :-1]
        colours += map(bool, mark.green(contexts, whole[first:]))
    limit = mark.vocabulary_size or np.inf
    exempt = set(mark.exempt)
    green = tuple(None if i in exempt or i >= limit else one for i, one in zip(ids, colours, strict=True))
    return Highlighted(tuple(pieces(tokenizer, before[-1:], ids)), green)


def _ids(tokenizer: AnyTokenizer, output: Shown) -> tuple[list[int], list[int]]:
    """Token ids of prompt and output."""
    if isinstance(output, str):
        return [], list(tokenizer.encode(output, add_special_tokens=False))
    if isinstance(output, dict):
        if "output_ids" not in output:
            raise InputError("output", 0, "the record has no 'output_ids'", "give its text instead")
        return list(output.get("prompt_ids") or []), list(output["output_ids"])
    given: Any = output
    if not hasattr(output, "output_ids"):
        return [], [int(i) for i in given]
    prompt = () if given.prompt_ids is None else given.prompt_ids
    return [int(i) for i in prompt], [int(i) for i in given.output_ids]


def pieces(tokenizer: AnyTokenizer, before: list[int], ids: list[int]) -> Iterator[str]:
    """The text of each of some token ids where it stands: some tokenizers leave out the space before a first word.

    before: the ids before them, of which the last is looked at. Of a character that takes several tokens the last has
    the text, and the others have none.
    """
    group: list[int] = []
    for place, token in enumerate(ids, 1):
        group.append(token)
        start, whole = str(tokenizer.decode(before)), str(tokenizer.decode(before + group))
        piece = whole[len(start) :] if whole.startswith(start) else str(tokenizer.decode(group))
        if piece.endswith(_INVALID) and place < len(ids) and len(group) < 4:
            yield ""
            continue
        yield piece
        before, group = group, []
