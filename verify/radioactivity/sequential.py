"""A test that may be looked at after every record: a mixture e-process over the size of the effect, and looks back.

Under the null each new coin is green with probability gamma, whatever came before. For a tilt h, the product over
the coins of exp(h a G) / (1 - gamma + gamma exp(h a)) then has mean 1 at every moment, and so has any mixture over
h. By Ville's inequality it ever reaches 1 / alpha with probability at most alpha, however one decides to stop. The
weight a of a coin is fixed when the coin is first counted: a coin that has been seen is never weighed anew.

Text without a reference is weighed in three ways at once (`POWERS`), and the mixture is over these too. A student
learned more of the mark where its lessons had a context more often. How often the suspect has written the context so
far stands for that: to the powers 0 (each pair weighs 1, as in the binomial test), 1/4 and 1/2. This is valid: under
the null the text does not depend on the coins that may be scored, so that each coin is green with probability gamma
given all text so far and all coins before it, and its weights are functions of that text. How often a pair itself was
written is no good weight without a reference: it tells first of all how likely the pair is without a mark.

A weight that is fixed early wastes text which is compared with a reference: how much oftener than expected a pair is
written shows only in much text. So there all text is weighed anew after certain numbers of answers, which are fixed
beforehand (`LOOKS`), by the test that a fixed sample would get. The e-process has half of alpha, and each look an equal
share of the other half: the chance that any of them ever errs is at most alpha, whenever one stops.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.logprobs import TextLogprobs, as_output, logprobs_at, logprobs_at_positions, read_places
from verify.data.pairs import (
    SPECIAL_TOKEN,
    SeenPairs,
    WeightedPairs,
    contexts_before,
    scorable_in_order,
    weigh,
)
from verify.data.reads import positions_of, reads_of
from verify.radioactivity.detail import Detail, sequential_growth
from verify.radioactivity.logprobs import log10_bound, logprob_weights
from verify.radioactivity.result import NO_EVIDENCE, MarkResult, randomness_of
from verify.radioactivity.tails import CHERNOFF, log10_tail, over_layers
from verify.radioactivity.text import MAX_COUNT, excess, without_prompts
from verify.results import plural
from verify.stats.eprocess import EProcess
from watermark import Mark, StillmarkError
from watermark.schemes import Scheme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]


COUNTED_PAIR: Final = "counted_pair"
"""Reason to leave a pair out: an earlier answer had it, and a pair counts once."""

MIN_TILT: Final = 0.05
"""The smallest tilt of interest: at weight 1 and gamma .25 a green rate of .2595."""
MAX_FUTILE: Final = 0.05
"""How often a suspect with the smallest tilt of interest may be given up."""

POWERS: Final = (0.0, 0.25, 0.5)
"""In text without a reference a pair weighs as often as its context was written so far, to each of these powers."""

LOOKS: Final = tuple(sorted({round(8 * 1.25**i) for i in range(35)}))
"""Numbers of answers after which all text is weighed anew, if there is a reference; each a quarter more than before."""

PAIR_LOOKS: Final = tuple(round(50 * 1.5**i) for i in range(30))
"""Numbers of pairs after which all of them are looked at together, where a key chooses among few layers."""

EVIDENCE: Final = "evidence"
FUTILE: Final = "futility"
BUDGET: Final = "budget"
PROMPTS: Final = "prompts"
STOPPED: Final = {
    EVIDENCE: "enough evidence",
    FUTILE: "the smallest effect of interest would have shown by now",
    BUDGET: "at the budget",
    PROMPTS: "after the last prompt",
}
"""Why a run ended, in words."""


@dataclass(frozen=True)
class Counted:
    """What a sequential test counted, in order; nothing in it depends on the key but which look is kept.

    Attributes:
        pairs: the pairs, each once, with weights float64 [n, weightings].
        answers: int64 [n], the number of the answer that each was counted with, from 1.
        shared: the e-process has half of alpha, since all text is looked at anew after some answers.
        look: all text after `after` answers, weighed as a fixed sample; of all looks the one that found most.
        after: answers before that look; 0: there was none.
    """

    pairs: WeightedPairs
    answers: npt.NDArray[np.int64]
    shared: bool = False
    look: WeightedPairs | None = None
    after: int = 0


@dataclass(frozen=True, kw_only=True)
class SequentialResult(MarkResult):
    """A test that was looked at after every record.

    n: distinct pairs counted; statistic: the most evidence there ever was, as log10 of the e-value (for text with a
    reference: half of it, or one over the p-value of a look times its share of alpha). The p-value is one over that: it
    holds however one stops.

    Attributes:
        access: what was scored, `text` or `logprobs`.
        unmarked: the prompts cannot depend on the key.
        records: records looked at.
        tokens: output tokens in them.
        log10_e: the evidence after each record, as log10 of the same.
        stopped: why it could stop, `evidence` or `futility`; None: neither yet.
        least: the smallest tilt of interest, in log odds of green for a unit of weight.
        counted: the pairs, as they were counted.
    """

    access: str
    unmarked: bool
    records: int
    tokens: int
    log10_e: tuple[float, ...] = field(repr=False)
    stopped: str | None
    least: float
    counted: Counted = field(repr=False)

    @property
    def evidence(self) -> str:
        return f"{plural(self.records, 'answer')}, {plural(self.tokens, 'token')}"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "access": self.access,
            "unmarked_prompts": self.unmarked,
            "records": self.records,
            "tokens": self.tokens,
            "stopped": self.stopped,
            "least": self.least,
            "log10_e": list(self.log10_e),
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        found = {
            "p-value": rows["p-value"],
            "looked at": self.evidence,
            "stopped": STOPPED.get(self.stopped or "", "neither for evidence nor for futility"),
            "pairs scored": f"{self.n:,} distinct, of the {'text' if self.access == 'text' else 'log probabilities'}",
        }
        return found | rows

    def _draw(self, ax: Axes) -> None:
        ax.plot(range(1, len(self.log10_e) + 1), self.log10_e, label="evidence so far")
        ax.axhline(-math.log10(self.alpha), color="C3", linestyle="--", label=f"alpha {self.alpha:g}")
        ax.set_xlabel("answers")
        ax.set_ylabel("log10 of the e-value")
        ax.legend()


@dataclass(frozen=True, kw_only=True)
class EndpointResult(SequentialResult):
    """The sequential test on an endpoint, and what asking it took.

    Attributes:
        prompt_tokens, answer_tokens: billed, by the server's count where it gives one.
        spent: what they cost, in the currency of the prices; None where no price was named.
        failed_requests: requests without a usable answer.
        unknown_tokens: tokens whose names could not be told.
        served_model: the name under which the server answered, if it gave one.
        log: the file that holds every answer.
    """

    prompt_tokens: int
    answer_tokens: int
    spent: float | None
    failed_requests: int
    unknown_tokens: int
    served_model: str | None
    log: str

    @property
    def billed_tokens(self) -> int:
        """All tokens billed."""
        return self.prompt_tokens + self.answer_tokens

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "billed_tokens": self.billed_tokens,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            "spent": self.spent,
            "failed_requests": self.failed_requests,
            "unknown_tokens": self.unknown_tokens,
            "served_model": self.served_model,
            "log": self.log,
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        rows["looked at"] += f", {plural(self.billed_tokens, 'token')} billed"
        if self.spent is not None:
            rows["spent"] = f"{self.spent:,.4f}   (by the prices that were named)"
        if self.failed_requests or self.unknown_tokens:
            unknown = plural(self.unknown_tokens, "token")
            rows["not used"] = f"{plural(self.failed_requests, 'failed request')}, {unknown} of unknown name"
        return rows | {"log": self.log}


def evidence_of_look(mark: Mark, pairs: WeightedPairs) -> float:
    """log10 of one over what a look back at all text finds, for its share of alpha."""
    return -log10_bound(mark, pairs, unmarked=True) - math.log10(2 * len(LOOKS))


def weighed_anew(
    mark: Mark, answers: Sequence[TextLogprobs], references: Sequence[TextLogprobs], *, unmarked: bool
) -> WeightedPairs:
    """The coins of some answers, weighed as those of a fixed sample; the weights do not depend on the key."""
    positions = positions_of(mark, map(as_output, answers), unmarked_prompts=unmarked)
    return excess(positions, logprobs_at_positions(references, positions), mark.exempt)


class Growth:
    """The running evidence of pairs that are counted one after the other.

    Where each key has coins of its own, a mixture e-process. Where a key chooses among few layers, coins that were seen
    tell those that come, and no such process is valid: there all pairs so far are looked at together when their number
    passes one of PAIR_LOOKS, and each look has an equal share of alpha.

    Args:
        scheme: the mark's.
        weightings: how many weights a pair has.
        least: the smallest tilt of interest.
    """

    def __init__(self, scheme: Scheme, weightings: int, least: float = MIN_TILT):
        self.scheme, self.few = scheme, scheme.layers_in_all is not None
        self.process = EProcess(scheme.rate, least, weightings)
        self._pairs: list[WeightedPairs] = []
        self._hits: list[npt.NDArray[np.int64]] = []
        self._looked = 0.0

    def add(self, pairs: WeightedPairs, coins: npt.NDArray[np.bool_]) -> None:
        """Count new pairs: weights float64 [n] or [n, weightings]; coins: bool [n, C]."""
        before = self.process.pairs
        self.process.add(pairs.weights, coins)
        if not self.few:
            return
        self._pairs.append(pairs)
        self._hits.append(coins.sum(axis=1))
        if any(before < look <= self.process.pairs for look in PAIR_LOOKS):
            columns = 1 if pairs.weights.ndim == 1 else pairs.weights.shape[1]
            whole = joined(self._pairs, pairs.contexts.shape[1], columns)
            middle = np.ascontiguousarray(whole.weights[:, columns // 2])
            hits = np.concatenate(self._hits)
            log10_p = log10_tail(CHERNOFF, self.scheme, replace(whole, weights=middle), hits)
            self._looked = max(self._looked, -log10_p - math.log10(len(PAIR_LOOKS)))

    @property
    def log10_e(self) -> float:
        """log10 of the evidence now; of the looks the most."""
        return self._looked if self.few else self.process.log10_e

    def __str__(self) -> str:
        """What it is, in words."""
        bound = over_layers(self.scheme)
        return "mixture e-process" if bound is None else f"{len(PAIR_LOOKS)} looks at all pairs, each a {bound}"


class SequentialTest:
    """Takes a suspect's answers one by one, and knows at every moment what they show.

    Args:
        mark: the mark.
        access: `text`, which scores what was written, or `logprobs`, which scores what was said of each next token.
        alpha: level of the verdict, fixed before looking.
        unmarked: the prompts cannot carry the mark.
        least: the smallest tilt of interest, for stopping where no such tilt is there (futility).
    """

    def __init__(
        self, mark: Mark, access: str, alpha: float = 1e-3, *, unmarked: bool = False, least: float = MIN_TILT
    ):
        self.mark, self.access, self.alpha, self.unmarked = mark, access, alpha, unmarked
        self._growth = Growth(mark.scheme, len(POWERS) if access == "text" else 1, least)
        self._reads = reads_of(mark)
        self._counted = SeenPairs(self._reads)
        self._contexts: Counter[bytes] = Counter()
        self._shown: set[bytes] = set()
        self._path: list[float] = []
        self._tokens = self._prompts = 0
        self._weights = ""
        self._discarded: Counter[str] = Counter()
        self._read: list[tuple[TextLogprobs, TextLogprobs]] = []
        self._fresh: list[WeightedPairs] = []
        self._look: WeightedPairs | None = None
        self._look_after = 0
        self._looked = self._most = 0.0

    def add(self, answer: TextLogprobs, reference: TextLogprobs | None = None) -> None:
        """Count one answer. reference: what a reference model says along it."""
        fresh = self.fresh(answer, reference)
        self._fresh.append(fresh)
        self._growth.add(fresh, self.mark.coins(fresh.contexts, fresh.tokens))
        if self.access == "text" and reference is not None:
            self._read.append((answer, reference))
            if len(self._read) in LOOKS and (found := evidence_of_look(self.mark, back := self.look_back())) > (
                self._looked
            ):
                self._looked, self._look, self._look_after = found, back, len(self._read)
        shared = math.log10(2) if self._read else 0.0
        self._path.append(max(self._looked, self._growth.log10_e - shared))
        self._most = max(self._most, self._path[-1])
        self._tokens += len(answer.ids) - answer.start
        self._prompts += answer.start > 0

    def fresh(self, answer: TextLogprobs, reference: TextLogprobs | None = None) -> WeightedPairs:
        """The coins that an answer adds, and their weights, which do not depend on the key; they are spent then.

        The weights are float64 [n], or [n, weightings] where there are several.
        """
        self._weights, pairs = (self._written if self.access == "text" else self._said)(answer, reference)
        fresh = self._counted.fresh(pairs)
        self._discarded[COUNTED_PAIR] += len(pairs.tokens) - len(fresh.tokens)
        if self.access != "text" or reference is not None:
            return fresh
        written = np.array([self._contexts[context.tobytes()] for context in fresh.contexts], np.float64)
        return replace(fresh, weights=written[:, None] ** np.array(POWERS))

    def look_back(self) -> WeightedPairs:
        """The coins of all text so far, weighed as those of a fixed sample; the weights do not depend on the key."""
        answers, references = zip(*self._read, strict=True)
        return weighed_anew(self.mark, answers, references, unmarked=self.unmarked)

    @property
    def stopped(self) -> str | None:
        """Why one may stop now: `evidence`, `futility`, or None."""
        if self._most >= -math.log10(self.alpha):
            return EVIDENCE
        return FUTILE if self._growth.process.log10_futility >= -math.log10(MAX_FUTILE) else None

    def result(self) -> SequentialResult:
        """What the answers so far show."""
        process = self._growth.process
        n, records, stopped, least = process.pairs, len(self._path), self.stopped, process.least
        warnings = [] if n else [NO_EVIDENCE]
        if self._prompts < records and not self.unmarked:
            warnings.append(without_prompts(records - self._prompts, records))
        read = plural(self._tokens, "token")
        return SequentialResult(
            test=f"sequential: {self._growth}"
            + (f" and {len(LOOKS)} looks at all text" if self._read else "")
            + f", valid at every look; weights: {self._weights}",
            alpha=self.alpha,
            n=n,
            statistic=self._most,
            log10_pvalue=0.0 - self._most,
            warnings=tuple(warnings),
            discarded=dict(self._discarded),
            conclusive=stopped is not None,
            power_statement=f"a tilt of {least:g} or more, which would have shown after {read}"
            if stopped == FUTILE
            else f"nothing for sure: after {read} a tilt of {least:g} may be there and not have shown yet",
            randomness=randomness_of(self.mark),
            mark=self.mark,
            detail=Detail(growth=sequential_growth(self._path)),
            access=self.access,
            unmarked=self.unmarked,
            records=records,
            tokens=self._tokens,
            log10_e=tuple(self._path),
            stopped=stopped,
            least=least,
            counted=Counted(
                joined(self._fresh, self.mark.width, len(POWERS) if self.access == "text" and not self._read else 1),
                np.repeat(np.arange(1, records + 1), [len(one.tokens) for one in self._fresh]),
                bool(self._read),
                self._look,
                self._look_after,
            ),
        )

    def _where(self, answer: TextLogprobs) -> npt.NDArray[np.int64]:
        """The positions of one answer that may be scored, given all prompts up to its own; the others are counted."""
        width, unmarked = self.mark.width, self.unmarked
        where, discarded = scorable_in_order(
            answer.ids,
            answer.start,
            width,
            unmarked=unmarked,
            sampled=True,
            seen=self._shown,
            once=False,
            copied=answer.copied,
            shared=self._reads.shared,
        )
        self._discarded.update(discarded)
        return where

    def _written(self, answer: TextLogprobs, reference: TextLogprobs | None) -> tuple[str, WeightedPairs]:
        """The pairs of one answer, as often as each occurs in it, less how often a reference expected it."""
        where = self._where(answer)
        tokens, contexts = answer.ids[where].astype(np.uint32), contexts_before(answer.ids, where, self.mark.width)
        self._contexts.update(context.tobytes() for context in contexts)
        self._discarded[SPECIAL_TOKEN] += int(np.isin(tokens, self.mark.exempt).sum())
        weights, name = np.ones(len(where)), "occurrences of the context so far, to the powers 0, 1/4 and 1/2"
        if reference is not None:
            name = "occurrences in the answer, less the reference's probability"
            expected = logprobs_at([reference], [where], self.mark.width)
            named = expected.tokens == tokens[expected.position]
            weights[expected.position[named]] -= np.exp(expected.logprobs[named].astype(np.float64))
        pairs = weigh(contexts, tokens, weights, self.mark.exempt, self._reads)
        return name, replace(pairs, weights=pairs.weights.clip(max=MAX_COUNT))

    def _said(self, answer: TextLogprobs, reference: TextLogprobs | None) -> tuple[str, WeightedPairs]:
        """The likely next tokens of one answer, weighed as in `verify.radioactivity.logprobs.logprob_result`."""
        read, lost = read_places(answer, self._where(answer))
        self._discarded.update(lost)
        where = [read]
        said = replace(logprobs_at([answer], where, self.mark.width), reads=self._reads)
        compared = None if reference is None else logprobs_at([reference], where, self.mark.width)
        pairs, name = logprob_weights(said, compared, self.mark.exempt)
        return name, pairs


def joined(parts: Sequence[WeightedPairs], width: int, weightings: int) -> WeightedPairs:
    """Pairs that were counted one after the other, with weights [n, weightings]."""
    none = WeightedPairs(np.zeros((0, width), np.uint32), np.zeros(0, np.uint32), np.zeros((0, weightings)))
    whole = [none, *parts]
    return WeightedPairs(
        np.concatenate([one.contexts for one in whole]),
        np.concatenate([one.tokens for one in whole]),
        np.concatenate([one.weights.reshape(len(one.tokens), weightings) for one in whole]),
    )


def replay(
    test: SequentialTest, answers: Iterable[TextLogprobs], references: Iterable[TextLogprobs] | None
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
