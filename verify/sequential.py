"""A test that may be looked at after every record: a mixture e-process over the size of the effect.

Under the null each new coin is green with probability gamma, whatever came before. For a tilt h, the product over
the coins of exp(h a G) / (1 - gamma + gamma exp(h a)) then has mean 1 at every moment, and so has any mixture over
h. By Ville's inequality it ever reaches 1 / alpha with probability at most alpha, however one decides to stop. The
weight a of a coin is fixed when the coin is first counted: a coin that has been seen is never weighed anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from verify.pairs import WeightedPairs, contexts_before, places, weigh
from verify.radioactivity import CAP, NO_EVIDENCE, Result, logprob_weights, without_prompts
from verify.statistics import LN10
from verify.suspects import ReadText, gather_at
from verify.weighted import TILTS
from watermark import Mark, StillmarkError

Floats = npt.NDArray[np.float64]


@dataclass
class EProcess:
    """The running evidence. gamma: chance of green under the null; least: the smallest tilt of interest."""

    gamma: float
    least: float
    coins: int = 0
    best: float = 0.0
    _logs: Floats = field(default_factory=lambda: np.zeros(len(TILTS) + 1))

    def add(self, weights: Floats, green: npt.NDArray[np.bool_]) -> None:
        """Count new coins: weights float64 [n], finite; green bool [n]."""
        tilts = np.append(TILTS, self.least)[:, None]
        ln_green, ln_red = math.log(self.gamma), math.log1p(-self.gamma)
        own, other = np.where(green, ln_green, ln_red), np.where(green, ln_red, ln_green)
        # exp(h a G) / (1 - gamma + gamma exp(h a)), divided through by exp(h a G): nothing cancels
        self._logs -= np.logaddexp(own, other - tilts * np.where(green, weights, -weights)).sum(axis=1)
        self.coins += len(weights)
        self.best = max(self.best, self.log10_e)

    @property
    def log10_e(self) -> float:
        """log10 of the evidence now."""
        return (float(logsumexp(self._logs[:-1])) - math.log(len(TILTS))) / LN10

    @property
    def log10_pvalue(self) -> float:
        """log10 of the anytime-valid p-value: one over the most evidence that there ever was."""
        return -self.best

    @property
    def log10_futility(self) -> float:
        """log10 of an e-value against every tilt of `least` or more: large when that much would have shown by now."""
        return -float(self._logs[-1]) / LN10


class Tape:
    """Which pairs have been counted (rule 1), where evidence comes record by record."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def fresh(self, pairs: WeightedPairs) -> WeightedPairs:
        """Those of some distinct pairs that were never counted before; they are now."""
        rows = np.ascontiguousarray(np.concatenate([pairs.contexts, pairs.tokens[:, None]], axis=1, dtype=np.uint32))
        kept = []
        for i, row in enumerate(rows):
            key = row.tobytes()
            if key not in self._seen:
                self._seen.add(key)
                kept.append(i)
        return WeightedPairs(pairs.contexts[kept], pairs.tokens[kept], pairs.weights[kept])


TOP: Final = 20
"""Log probabilities of a reference that stand against an endpoint's."""
LEAST: Final = 0.05
"""The smallest tilt of interest: at weight 1 and gamma .25 a green rate of .2596."""
FUTILITY: Final = 0.05
"""How often a suspect with the smallest tilt of interest may be given up."""

EVIDENCE: Final = "evidence"
NO_HOPE: Final = "futility"


@dataclass(frozen=True)
class SequentialResult(Result):
    """A test that was looked at after every record.

    Attributes:
        access: what was scored, `text` or `logprobs`.
        keyless: the prompts cannot depend on the key.
        prompts: records that had a prompt.
        weights: how the weights were made, in words.
        n: distinct pairs counted.
        records: records looked at.
        tokens: output tokens in them.
        log10_e: the evidence after each record, as log10 of the e-value.
        stopped: why it could stop, `evidence` or `futility`; None: neither yet.
        least: the smallest tilt of interest, in log odds of green for a unit of weight.
    """

    access: str
    keyless: bool
    prompts: int
    weights: str
    n: int
    records: int
    tokens: int
    log10_e: tuple[float, ...] = field(repr=False)
    stopped: str | None
    least: float

    @property
    def log10_pvalue(self) -> float:
        """The anytime-valid p-value, one over the most evidence there ever was: it holds however one stops."""
        return -max((0.0, *self.log10_e))

    @property
    def test(self) -> str:
        """The test's name, in words."""
        return f"sequential: mixture e-process, valid at every look; weights: {self.weights}"

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        found = [] if self.n else [NO_EVIDENCE]
        if self.prompts < self.records and not self.keyless:
            found.append(without_prompts(self.records - self.prompts, self.records))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never the secret."""
        return super().to_dict() | {
            "access": self.access,
            "keyless": self.keyless,
            "n": self.n,
            "records": self.records,
            "tokens": self.tokens,
            "stopped": self.stopped,
            "least": self.least,
            "log10_e": list(self.log10_e),
        }


class SequentialTest:
    """Takes a suspect's answers one by one, and knows at every moment what they show.

    Args:
        mark: the mark.
        access: `text`, which scores what was written, or `logprobs`, which scores what was said of each next token.
        alpha: level of the verdict, fixed before looking.
        keyless: the prompts cannot carry the mark.
        least: the smallest tilt of interest, for stopping because nothing is to be hoped for.
    """

    def __init__(self, mark: Mark, access: str, alpha: float = 1e-3, *, keyless: bool = False, least: float = LEAST):
        self.mark, self.access, self.alpha, self.keyless = mark, access, alpha, keyless
        self._process = EProcess(mark.gamma, least)
        self._tape = Tape()
        self._shown: set[bytes] = set()
        self._path: list[float] = []
        self._tokens = self._prompts = 0
        self._weights = ""

    def add(self, answer: ReadText, reference: ReadText | None = None) -> None:
        """Count one answer. reference: what a reference model says along it."""
        fresh = self.fresh(answer, reference)
        self._process.add(fresh.weights, self.mark.green(fresh.contexts, fresh.tokens))
        self._path.append(self._process.log10_e)
        self._tokens += len(answer.ids) - answer.start
        self._prompts += answer.start > 0

    def fresh(self, answer: ReadText, reference: ReadText | None = None) -> WeightedPairs:
        """The coins that an answer adds, and their weights, which do not depend on the key; they are spent then."""
        self._weights, pairs = (self._written if self.access == "text" else self._said)(answer, reference)
        return self._tape.fresh(pairs)

    @property
    def stopped(self) -> str | None:
        """Why one may stop now: `evidence`, `futility`, or None."""
        if self._process.log10_pvalue <= math.log10(self.alpha):
            return EVIDENCE
        return NO_HOPE if self._process.log10_futility >= -math.log10(FUTILITY) else None

    def result(self) -> SequentialResult:
        """What the answers so far show."""
        return SequentialResult(
            mark=self.mark,
            alpha=self.alpha,
            access=self.access,
            keyless=self.keyless,
            prompts=self._prompts,
            weights=self._weights,
            n=self._process.coins,
            records=len(self._path),
            tokens=self._tokens,
            log10_e=tuple(self._path),
            stopped=self.stopped,
            least=self._process.least,
        )

    def _where(self, answer: ReadText) -> npt.NDArray[np.int64]:
        """The positions of one answer that may be scored, given all prompts up to its own."""
        width, keyless = self.mark.width, self.keyless
        return places(answer.ids, answer.start, width, keyless=keyless, sampled=True, seen=self._shown, once=False)[0]

    def _written(self, answer: ReadText, reference: ReadText | None) -> tuple[str, WeightedPairs]:
        """The pairs of one answer, weighing as often as they occur in it, the more the less one expected them."""
        where = self._where(answer)
        tokens = answer.ids[where].astype(np.uint32)
        weights, name = np.ones(len(where)), "occurrences in the answer"
        if reference is not None:
            name += ", less the reference's probability"
            expected = gather_at([reference], [where], self.mark.width)
            named = expected.tokens == tokens[expected.position]
            weights[expected.position[named]] -= np.exp(expected.logprobs[named].astype(np.float64))
        pairs = weigh(contexts_before(answer.ids, where, self.mark.width), tokens, weights, self.mark.exempt)
        return name, WeightedPairs(pairs.contexts, pairs.tokens, pairs.weights.clip(max=CAP))

    def _said(self, answer: ReadText, reference: ReadText | None) -> tuple[str, WeightedPairs]:
        """The likely next tokens of one answer, weighed as in `verify.radioactivity.logprob_test`."""
        where = [self._where(answer)]
        said = gather_at([answer], where, self.mark.width)
        compared = None if reference is None else gather_at([reference], where, self.mark.width)
        pairs, name = logprob_weights(said, compared, self.mark.exempt)
        return name, pairs


def replay(
    test: SequentialTest, answers: Iterable[ReadText], references: Iterable[ReadText] | None
) -> SequentialResult:
    """The test over recorded answers, in the order in which they came; empty ones (failed requests) are left out.

    references: what a reference says along those that are not empty.

    Raises:
        StillmarkError: these are not as many, or not of the same texts.
    """
    kept = [answer for answer in answers if len(answer.ids) > answer.start]
    if references is not None:
        references = list(references)
        same = [np.array_equal(a.ids, r.ids) for a, r in zip(kept, references, strict=False)]
        if len(kept) != len(references) or not all(same):
            raise StillmarkError(
                f"the reference was read along {len(references)} texts, which are not the {len(kept)} answers",
                "reference records come from the same run, in the same order",
            )
    for answer, reference in zip(kept, repeat(None, len(kept)) if references is None else references, strict=True):
        test.add(answer, reference)
    return test.result()
