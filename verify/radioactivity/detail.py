"""What a report shows of a test's evidence: how the p-value grew, the greenest passages, the heaviest pairs.

Nothing here decides anything. A passage is chosen for what its coins show, and proves nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.dedup import distinct_rows
from verify.data.outputs import Output
from verify.data.pairs import Positions, WeightedPairs
from watermark import Mark, StillmarkError
from watermark.highlighting import pieces
from watermark.tokenizers import AnyTokenizer, load_for

TOKENS: Final = "tokens"
POSITIONS: Final = "positions"
ANSWERS: Final = "answers"

_POINTS: Final = 16
_FIRST: Final = 10
_PASSAGES: Final = 3
_LENGTH: Final = 60  # tokens of a passage
_HEAVIEST: Final = 12


@dataclass(frozen=True)
class Growth:
    """The p-value after the first part of the evidence, and after more and more of it.

    Attributes:
        unit: of what `at` counts: `tokens`, `positions` or `answers`.
        at: how much of the evidence, ascending; the last is all of it.
        log10_pvalue: log10 p after so much.
        sequential: each of them is a valid p-value, and not the last alone.
    """

    unit: str
    at: tuple[int, ...]
    log10_pvalue: tuple[float, ...]
    sequential: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "unit": self.unit,
            "at": list(self.at),
            "log10_pvalue": list(self.log10_pvalue),
            "sequential": self.sequential,
        }


@dataclass(frozen=True)
class Passage:
    """A stretch of one output. green: of each token as by `Mark.green`; None: it was not scored there.

    Attributes:
        record: the output's id.
        place: index of the first token in the record's prompt + output.
        pieces: the text of each token.
        green: as above.
    """

    record: str
    place: int
    pieces: tuple[str, ...]
    green: tuple[bool | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "record": self.record,
            "place": self.place,
            "pieces": list(self.pieces),
            "green": list(self.green),
        }


@dataclass(frozen=True)
class HeavyPair:
    """A pair that weighs much in the sum, to which it adds its weight times (hits - coins gamma).

    Attributes:
        context: the text of the tokens before.
        token: the text of the token.
        weight: what it weighs.
        green: whether it is green, as by `Mark.green`.
        hits: how many of its coins are green.
    """

    context: str
    token: str
    weight: float
    green: bool
    hits: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self).copy()


@dataclass(frozen=True)
class Detail:
    """What a report shows of the evidence of one test for a mark.

    Attributes:
        growth: the p-value against the evidence; None: nothing could be scored.
        passages: the greenest stretches of text; empty where there is no text, or no tokenizer to show it.
        heaviest: the pairs that weigh most, whatever their colour.
    """

    growth: Growth | None = None
    passages: tuple[Passage, ...] = field(default=(), repr=False)
    heaviest: tuple[HeavyPair, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "growth": None if self.growth is None else self.growth.to_dict(),
            "passages": [one.to_dict() for one in self.passages],
            "heaviest": [one.to_dict() for one in self.heaviest],
        }


def growth(unit: str, total: int, whole: float, log10_pvalue: Callable[[int], float]) -> Growth | None:
    """The p-value after each of some 16 numbers of positions, spaced evenly on a logarithmic scale; None for none.

    They cost about as much as one more test. log10_pvalue: of the first so many positions; whole: of all of them.
    """
    if not total:
        return None
    spaced = np.geomspace(min(_FIRST, total), total, _POINTS).round().astype(int)
    at = tuple(int(one) for one in np.unique(spaced))
    return Growth(unit, at, (*(log10_pvalue(one) for one in at[:-1]), whole))


def tokenizer_if_there(mark: Mark, path: Any) -> AnyTokenizer | None:
    """The mark's tokenizer; None where it cannot be had: ids can be tested without it, and not shown."""
    try:
        return load_for(mark, path)
    except StillmarkError:
        return None


def greenest(
    mark: Mark, positions: Positions, outputs: Sequence[Output], tokenizer: AnyTokenizer | None
) -> tuple[Passage, ...]:
    """The stretches of 60 tokens whose counted coins are the greenest, strongest first; they do not overlap.

    Only coins that count are coloured: a repeated pair is not, nor is what rule 2 leaves out.
    """
    if tokenizer is None or not len(positions.tokens):
        return ()
    first, _ = distinct_rows(positions.reads.inputs(positions.contexts, positions.tokens))
    hits = mark.hits(positions.contexts[first], positions.tokens[first])
    green = mark.is_green(hits)
    record, place = positions.record[first], positions.place[first]
    far = int(place.max()) + _LENGTH + 1
    key = record * far + place
    sums = np.concatenate([[0.0], np.cumsum(hits - mark.scheme.coins * mark.scheme.rate)])
    ends = np.searchsorted(key, key + _LENGTH)
    strength = sums[ends] - sums[: len(key)]
    chosen: list[int] = []
    for i in np.argsort(-strength, kind="stable"):
        if len(chosen) == _PASSAGES or strength[i] <= 0:
            break
        if all(abs(int(key[i]) - int(key[other])) >= _LENGTH for other in chosen):
            chosen.append(int(i))
    return tuple(
        _passage(
            outputs[int(record[i])],
            int(place[i]),
            dict(zip(place[i : ends[i]].tolist(), green[i : ends[i]].tolist(), strict=True)),
            tokenizer,
        )
        for i in chosen
    )


def _passage(output: Output, place: int, coloured: dict[int, bool], tokenizer: AnyTokenizer) -> Passage:
    ids = [int(one) for one in output.ids[place : place + _LENGTH]]
    before = [int(one) for one in output.ids[max(0, place - 1) : place]]
    colours = tuple(coloured.get(place + i) for i in range(len(ids)))
    return Passage(output.id, place, tuple(pieces(tokenizer, before, ids)), colours)


def heaviest(mark: Mark, pairs: WeightedPairs, tokenizer: AnyTokenizer | None) -> tuple[HeavyPair, ...]:
    """The pairs of the largest weights, of either sign: the weights are the suspect's, and know no colour."""
    if tokenizer is None:
        return ()
    order = np.argsort(-np.abs(pairs.weights), kind="stable")[:_HEAVIEST]
    hits = mark.hits(pairs.contexts[order], pairs.tokens[order])
    return tuple(
        HeavyPair(
            str(tokenizer.decode([int(one) for one in pairs.contexts[i]])),
            str(tokenizer.decode([int(pairs.tokens[i])])),
            float(pairs.weights[i]),
            bool(colour),
            int(number),
        )
        for i, colour, number in zip(order, mark.is_green(hits), hits, strict=True)
    )


def sequential_growth(log10_e: Sequence[float]) -> Growth | None:
    """The p-value of a sequential test after each answer: one over the most evidence that there ever was.

    log10_e: the evidence after each answer, as log10 of the e-value.
    """
    if not log10_e:
        return None
    most: npt.NDArray[np.float64] = np.maximum.accumulate(np.maximum(np.array(log10_e, np.float64), 0.0))
    return Growth(ANSWERS, tuple(range(1, len(most) + 1)), tuple(0.0 - float(one) for one in most), sequential=True)
