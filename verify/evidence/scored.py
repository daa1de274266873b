"""What a test for a mark scored: its pairs and their weights, and the p-value anew from these and the secret.

Nothing in it depends on the secret (but which look of a sequential test is kept), and whoever has it needs neither the
suspect nor its files to compute the number. `docs/recompute_bundle.py` does the same without this package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.dedup import distinct_rows
from verify.data.pairs import WeightedPairs
from verify.radioactivity.logprobs import WeightedResult
from verify.radioactivity.sequential import LOOKS, Growth, SequentialResult
from verify.radioactivity.tails import BINOMIAL, CHERNOFF, COUNTS, MIXTURE, log10_tail
from verify.radioactivity.text import EXCESS, MAX_COUNT, TextResult
from verify.results import Result, plural
from watermark import Mark, StillmarkError
from watermark.io.fields import is_int
from watermark.prf import NO_TOKEN
from watermark.schemes import Scheme

SEQUENTIAL: Final = "sequential"
RULES: Final = (BINOMIAL, COUNTS, CHERNOFF, MIXTURE, SEQUENTIAL)
"""How the p-value follows from the pairs; an excess test is by Chernoff's bound."""

SHOWN: Final = 5
"""Differences of one kind that are named one by one."""

CLOSE: Final = 1e-9
"""Relative difference of weights, and of log10 p-values, that rounding may make."""


@dataclass(frozen=True)
class Scored:
    """What a test scored.

    Attributes:
        rule: one of RULES.
        pairs: distinct pairs in order; weights float64 [n, k], with k 0 where a pair is one coin (`binomial`), 1, or
            the number of weightings of a sequential test.
        answers: int64 [n], of a sequential test the number of the answer that each pair was counted with; else empty.
        shared: of a sequential test, the e-process has half of alpha.
        look: of a sequential test, all text after `after` answers, weights [n, 1]; None: it did not look back.
        after: answers before that look.
    """

    rule: str
    pairs: WeightedPairs
    answers: npt.NDArray[np.int64]
    shared: bool = False
    look: WeightedPairs | None = None
    after: int = 0

    def __len__(self) -> int:
        return len(self.pairs.tokens)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: columns of numbers."""
        found = {"rule": self.rule, **_columns(self.pairs)}
        if self.rule == SEQUENTIAL:
            look = None if self.look is None else _columns(self.look)
            found |= {"answers": self.answers.tolist(), "shared": self.shared, "look": look, "after": self.after}
        return found


def _columns(pairs: WeightedPairs) -> dict[str, Any]:
    return {
        "n": len(pairs.tokens),
        "contexts": pairs.contexts.T.tolist(),
        "tokens": pairs.tokens.tolist(),
        "weights": pairs.weights.T.tolist(),
    }


def scored_of(result: Result) -> Scored | None:
    """What a test scored; None for one that has no pairs."""
    none = np.zeros(0, np.int64)
    if isinstance(result, TextResult):
        rule = CHERNOFF if result.method == EXCESS else result.method
        weights = result.scored.weights[:, None]
        pairs = result.scored if rule == CHERNOFF else result.pairs
        weights = weights[:, :0] if rule == BINOMIAL else weights
        return Scored(rule, WeightedPairs(pairs.contexts, pairs.tokens, weights), none)
    if isinstance(result, WeightedResult):
        rule = CHERNOFF if result.unmarked else MIXTURE
        return Scored(rule, _wide(result.pairs), none)
    if isinstance(result, SequentialResult):
        counted = result.counted
        look = None if counted.look is None else _wide(counted.look)
        return Scored(SEQUENTIAL, counted.pairs, counted.answers, counted.shared, look, counted.after)
    return None


def _wide(pairs: WeightedPairs) -> WeightedPairs:
    return WeightedPairs(pairs.contexts, pairs.tokens, pairs.weights[:, None])


def scored_of_fields(fields: Mapping[str, Any], width: int, where: str) -> Scored:
    """What a test scored, as it stands in JSON.

    Raises:
        StillmarkError: a column is missing, malformed or of another length, or an id is none. `where` names it.
    """
    rule = fields.get("rule")
    if rule not in RULES:
        raise StillmarkError(f"{where}: 'rule' is none of {', '.join(RULES)}")
    wanted = {BINOMIAL: (0,), COUNTS: (1,), CHERNOFF: (1,), MIXTURE: (1,), SEQUENTIAL: (1, 3)}[rule]
    pairs = _pairs_of(fields, width, wanted, where)
    if rule != SEQUENTIAL:
        return Scored(rule, pairs, np.zeros(0, np.int64))
    answers = _ints(fields, "answers", len(pairs.tokens), where)
    if len(answers) and (answers.min() < 1 or (np.diff(answers) < 0).any()):
        raise StillmarkError(f"{where}: 'answers' must ascend from 1")
    look, after, shared = fields.get("look"), fields.get("after"), fields.get("shared")
    if not isinstance(shared, bool) or not is_int(after) or not (look is None or isinstance(look, dict)):
        raise StillmarkError(
            f"{where}: want 'shared' (true or false), 'after' (an integer) and 'look' (columns, or null)"
        )
    back = None if look is None else _pairs_of(look, width, (1,), f"{where}, look")
    return Scored(rule, pairs, answers, shared, back, int(after or 0))


def _pairs_of(fields: Mapping[str, Any], width: int, wanted: tuple[int, ...], where: str) -> WeightedPairs:
    n = fields.get("n")
    if not is_int(n):
        raise StillmarkError(f"{where}: 'n' must be an integer")
    contexts, weights = fields.get("contexts"), fields.get("weights")
    if not isinstance(contexts, list) or len(contexts) != width:
        raise StillmarkError(f"{where}: 'contexts' must be {plural(width, 'column')}")
    if not isinstance(weights, list) or len(weights) not in wanted:
        raise StillmarkError(f"{where}: 'weights' must be {' or '.join(map(str, wanted))} columns")
    number = int(n or 0)
    tokens = _ints(fields, "tokens", number, where).astype(np.uint32)  # so many: the columns may be none
    columns = [_ints({"contexts": column}, "contexts", number, where) for column in contexts]
    heavy = [_floats(column, number, where) for column in weights]
    return WeightedPairs(
        np.column_stack([np.zeros((number, 0), np.uint32), *columns]).astype(np.uint32),
        tokens,
        np.column_stack([np.zeros((number, 0)), *heavy]),
    )


def _ints(fields: Mapping[str, Any], name: str, number: int, where: str) -> npt.NDArray[np.int64]:
    column = fields.get(name)
    if not isinstance(column, list) or len(column) != number:
        raise StillmarkError(f"{where}: '{name}' must be a list of {number} integers")
    kinds = set(map(type, column))
    if kinds - {int} or (column and not 0 <= min(column) <= max(column) < NO_TOKEN):
        raise StillmarkError(f"{where}: '{name}' must hold integers from 0 to 2**32 - 2")
    return np.array(column, np.int64)


def _floats(column: Any, number: int, where: str) -> npt.NDArray[np.float64]:
    if not isinstance(column, list) or len(column) != number:
        raise StillmarkError(f"{where}: a column of 'weights' must be a list of {number} numbers")
    if set(map(type, column)) - {int, float}:
        raise StillmarkError(f"{where}: 'weights' must hold numbers")
    try:
        found = np.array(column, np.float64)
    except OverflowError:
        found = np.full(1, np.inf)
    if not np.isfinite(found).all() or (len(found) and float(np.abs(found).max()) > 1e9):
        raise StillmarkError(f"{where}: 'weights' must hold finite numbers of a reasonable size")
    return found


def faults(scored: Scored, exempt: tuple[int, ...], vocabulary_size: int | None) -> Iterator[str]:
    """What breaks the rules of scoring: a pair that counts twice, a special token, an id outside the vocabulary."""
    for name, pairs in (("", scored.pairs), ("in the look: ", scored.look)):
        if pairs is None:
            continue
        rows = np.column_stack([pairs.contexts, pairs.tokens])
        first, counts = distinct_rows(np.ascontiguousarray(rows))
        for i in first[counts > 1][:SHOWN].tolist():
            yield f"{name}{_named(pairs, i)} counts once, and is there more than once"
        for i in np.flatnonzero(np.isin(pairs.tokens, np.array(exempt, np.uint32)))[:SHOWN].tolist():
            yield f"{name}{_named(pairs, i)} is of a special token, which is never scored"
        limit = NO_TOKEN if vocabulary_size is None else vocabulary_size
        for i in np.flatnonzero((rows >= limit).any(axis=1))[:SHOWN].tolist():
            yield f"{name}{_named(pairs, i)} lies outside the vocabulary of {limit:,}"
    if (
        scored.rule == COUNTS
        and len(scored)
        and ((scored.pairs.weights < 1).any() or (scored.pairs.weights != np.floor(scored.pairs.weights)).any())
    ):
        yield "a pair weighs as often as it was written, which is a whole number"
    if scored.rule == SEQUENTIAL and (scored.look is not None) != (scored.after in LOOKS and scored.after > 0):
        yield f"a look back after {scored.after} answers was not planned"


def _named(pairs: WeightedPairs, i: int) -> str:
    context = " ".join(map(str, pairs.contexts[i].tolist()))
    return f"pair {i + 1} ({context} -> {pairs.tokens[i]})"


@dataclass(frozen=True)
class Numbers:
    """What the pairs give under a secret. statistic: None where the result's is of other pairs."""

    log10_pvalue: float
    statistic: float | None


@dataclass(frozen=True)
class Hits:
    """How many coins of each pair come up under a scheme, int64 [n], and of the look."""

    scheme: Scheme
    pairs: npt.NDArray[np.int64]
    look: npt.NDArray[np.int64] | None = None


def hits_under(scored: Scored, mark: Mark) -> Hits:
    """The hits of the pairs under a mark."""
    look = None if scored.look is None else mark.hits(scored.look.contexts, scored.look.tokens)
    return Hits(mark.scheme, mark.hits(scored.pairs.contexts, scored.pairs.tokens), look)


def recomputed(scored: Scored, hits: Hits, *, excess: bool = False, opposite: bool = False) -> Numbers:
    """The p-value of the pairs.

    Args:
        scored: the pairs.
        hits: of each pair.
        excess: they are those of an excess test, whose result counts text.
        opposite: of the coins that do not come up; not for a sequential test.

    Raises:
        ValueError: the weights are none that the rule can take.
    """
    scheme, pairs = hits.scheme, scored.pairs
    if scored.rule == SEQUENTIAL:
        most = _most(scored, hits)
        return Numbers(0.0 - most, most)
    if scored.rule != BINOMIAL:
        pairs = _first(pairs)
    if scored.rule == COUNTS:
        pairs = replace(pairs, weights=np.floor(pairs.weights).clip(max=MAX_COUNT))
    log10 = log10_tail(scored.rule, scheme, pairs, hits.pairs, opposite=opposite)
    if scored.rule in (BINOMIAL, COUNTS):
        return Numbers(log10, float(hits.pairs.sum()))
    return Numbers(log10, None if excess else float(pairs.weights @ (hits.pairs - scheme.coins * scheme.rate)))


def _most(scored: Scored, hits: Hits) -> float:
    """The most evidence that a sequential test ever had, as log10 of the e-value."""
    scheme, pairs = hits.scheme, scored.pairs
    growth, found = Growth(scheme, max(1, pairs.weights.shape[1])), [0.0]
    up = np.arange(scheme.coins) < hits.pairs[:, None]  # which of them came up makes no difference
    ends = np.flatnonzero(np.diff(scored.answers, append=-1)) + 1
    for low, high in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        part = WeightedPairs(pairs.contexts[low:high], pairs.tokens[low:high], pairs.weights[low:high])
        growth.add(part, up[low:high])
        found.append(growth.log10_e - (math.log10(2) if scored.shared else 0.0))
    if scored.look is not None and hits.look is not None:
        log10 = log10_tail(CHERNOFF, scheme, _first(scored.look), hits.look)
        found.append(-log10 - math.log10(2 * len(LOOKS)))
    return max(found)


def _first(pairs: WeightedPairs) -> WeightedPairs:
    return replace(pairs, weights=np.ascontiguousarray(pairs.weights[:, 0]))


def differences(promised: Scored, there: Scored) -> Iterator[str]:
    """Where the pairs that files give differ from those that were promised, in words, at most a few of each kind."""
    if promised.rule != there.rule:
        yield f"the pairs were promised for the rule '{promised.rule}', and the files give those of '{there.rule}'"
        return
    if promised.shared != there.shared:
        yield f"'shared' was promised to be {promised.shared}, and is {there.shared} by the files"
    yield from _differences(promised.pairs, there.pairs, "")
    if not np.array_equal(promised.answers, there.answers) and len(promised) == len(there):
        place = int(np.flatnonzero(promised.answers != there.answers)[0])
        was, now = promised.answers[place], there.answers[place]
        yield f"{_named(promised.pairs, place)} was promised to come with answer {was}, and comes with answer {now}"
    if promised.look is not None and there.look is not None:
        yield from _differences(promised.look, there.look, "in the look: ")


def _differences(promised: WeightedPairs, there: WeightedPairs, name: str) -> Iterator[str]:
    if promised.weights.shape[1] != there.weights.shape[1]:
        was, now = (plural(one.weights.shape[1], "weight") for one in (promised, there))
        yield f"{name}a pair was promised with {was}, and the files give {now}"
        return
    known = {row: i for i, row in enumerate(map(tuple, np.column_stack([promised.contexts, promised.tokens]).tolist()))}
    found = {row: i for i, row in enumerate(map(tuple, np.column_stack([there.contexts, there.tokens]).tolist()))}
    for rows, others, pairs, words in (
        (known, found, promised, "was promised, and the files do not give it"),
        (found, known, there, "is given by the files, and was not promised"),
    ):
        gone = [i for row, i in rows.items() if row not in others]
        for i in gone[:SHOWN]:
            yield f"{name}{_named(pairs, i)} {words}"
        if len(gone) > SHOWN:
            yield f"{name}and {len(gone) - SHOWN:,} more pairs like that"
    both = [(i, found[row]) for row, i in known.items() if row in found]
    other = []
    for i, j in both:
        a, b = promised.weights[i], there.weights[j]
        if not np.allclose(a, b, rtol=CLOSE, atol=CLOSE):
            other.append((i, a, b))
    for i, a, b in other[:SHOWN]:
        yield f"{name}{_named(promised, i)} weighs {_numbers(a)} as promised, and {_numbers(b)} by the files"
    if len(other) > SHOWN:
        yield f"{name}and {len(other) - SHOWN:,} more pairs of another weight"
    if len(both) == len(known) == len(found) and [i for i, _ in both] != [j for _, j in both]:
        yield f"{name}the pairs come in another order by the files"


def _numbers(weights: npt.NDArray[np.float64]) -> str:
    return " ".join(f"{one:.6g}" for one in weights.tolist())
