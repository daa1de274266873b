"""Random-half canaries: of 2m outputs of the teacher m are served, chosen by a keyed coin, and m are kept back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.outputs import Output, Outputs, digest
from verify.fingerprint import SAW
from verify.results import CHANGED, Result
from verify.suspects.model import MIN_LOGPROB
from watermark import Mark, StillmarkError, prf

SALT: Final = "stillmark/v1/canaries"

Floats = npt.NDArray[np.float64]

_AT_ONCE: Final = 10_000


def check_candidates(candidates: Sequence[Output]) -> None:
    """Raises StillmarkError where these cannot be halved."""
    if not candidates or len(candidates) % 2:
        files = map(str, candidates.files) if isinstance(candidates, Outputs) else ()
        raise StillmarkError(
            f"want an even number of candidates, not {len(candidates)}{''.join(f' ({file})' for file in files)}",
            "one half of them is served, and one is kept back",
        )


def served(mark: Mark, candidates: Sequence[Output]) -> npt.NDArray[np.bool_]:
    """Which candidates are served: bool [2m], a uniformly random half under the mark's secret and these candidates.

    The first m of a keyed permutation are served. The key is derived from a digest of the
    candidates too, so that another set is another draw.

    Raises:
        StillmarkError: the number of candidates is odd or zero.
    """
    check_candidates(candidates)
    key = prf.hkdf(mark.secret, SALT, digest(candidates))
    chosen = np.zeros(len(candidates), bool)
    chosen[prf.shuffle(key, len(candidates))[: len(candidates) // 2]] = True
    return chosen


@dataclass(frozen=True, kw_only=True)
class CanaryResult(Result):
    """Whether a suspect finds the served half likelier than the half kept back.

    n: canaries, served or not; statistic: mean score of the served less the mean of the others, in nats a token.

    Attributes:
        mark: whose secret chose.
        suspect, reference: model folders.
        above: random halves with a difference at least as large.
        halves: that were drawn.
    """

    mark: Mark
    suspect: str
    reference: str | None
    above: int
    halves: int

    @property
    def difference(self) -> float:
        """The statistic, in nats a token."""
        return self.statistic

    @property
    def evidence(self) -> str:
        return f"{self.n:,} candidates"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "suspect": self.suspect,
            "reference": self.reference,
            "mark": {"label": self.mark.label, "commitment": self.mark.commitment},
            "difference": self.difference,
            "above": self.above,
            "halves": self.halves,
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        reach = f"{self.above:,} of {self.halves:,} random halves {'reaches' if self.above == 1 else 'reach'} as far"
        return {
            "p-value": rows["p-value"],
            "difference": f"{self.difference:+.4f} nats a token; {reach}",
            "test": self.test,
        }


def canary_result(
    mark: Mark,
    candidates: Sequence[Output],
    suspect: tuple[str, Floats],
    reference: tuple[str, Floats] | None = None,
    alpha: float = 1e-3,
    halves: int = 99_999,
    seed: int = 0,
) -> CanaryResult:
    """Test a suspect's log likelihoods for the keyed choice.

    Args:
        mark: the mark.
        candidates: all 2m outputs, in the order in which they were chosen from.
        suspect: a name, and its mean log likelihood a token of each candidate, float64 [2m], from `likelihoods`. What
            is no number, or below MIN_LOGPROB, is taken for MIN_LOGPROB.
        reference: the same of a model that has seen no candidate; less noise.
        alpha: level of the verdict.
        halves: random halves to draw.
        seed: of these.

    Raises:
        StillmarkError: the number of candidates is odd or zero, or there is no half to draw.
    """
    if halves < 1:
        raise StillmarkError(f"{halves} random halves: the rank among them needs one at least")
    chosen = served(mark, candidates)
    scores = _finite(suspect[1]) - (0.0 if reference is None else _finite(reference[1]))
    half = len(scores) // 2
    difference = float(scores[chosen].mean() - scores[~chosen].mean())
    least = scores[chosen].sum() - 1e-9 * float(np.abs(scores).sum())  # a rounding must not make p smaller
    rng, above = np.random.default_rng(seed), 0
    for start in range(0, halves, _AT_ONCE):
        draws = rng.random((min(_AT_ONCE, halves - start), len(scores)))
        above += int((scores[np.argpartition(draws, half, axis=1)[:, :half]].sum(axis=1) >= least).sum())
    named = None if reference is None else reference[0]
    less = "" if named is None else " less a reference's"
    floor = 1 / (1 + halves)
    return CanaryResult(
        test=f"permutation of the keyed choice, with the +1 rule; score: the suspect's log likelihood a token{less}",
        alpha=alpha,
        n=len(scores),
        statistic=difference,
        log10_pvalue=math.log10((1 + above) / (1 + halves)),
        positive_verdict=SAW,
        randomness="The p-value's randomness is the keyed choice of the served half: for a suspect (and a reference) "
        "that does not depend on it, each half was as likely to be the served one. Other halves were drawn at random.",
        assumptions="Wrong if what was kept back reached the suspect for reasons that depend on the choice, or if "
        "served prompts came back to it without the teacher's answers: the choice shows in these too.",
        evasions="Hidden by training on paraphrases, on other outputs, or for so short that nothing is remembered.",
        warnings=(f"With {halves} halves, p cannot fall below {floor:.3g}.",) if floor > alpha else (),
        power_statement=CHANGED,
        mark=mark,
        suspect=suspect[0],
        reference=named,
        above=above,
        halves=halves,
    )


def _finite(said: Floats) -> Floats:
    return np.maximum(np.nan_to_num(said, nan=MIN_LOGPROB, posinf=MIN_LOGPROB), MIN_LOGPROB)
