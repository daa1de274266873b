"""What happened to the teacher: copied, distilled, both, unrelated so far as the access can see, or cannot tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from verify.fingerprint.agreement import AgreementResult
from verify.fingerprint.independence import IndependenceResult, MatchResult
from verify.lineage.plan import AGREEMENT, CANARIES, MARK, PLANTED, SHUFFLED, WEIGHTS, LineagePlan
from verify.radioactivity.logprobs import WeightedResult
from verify.radioactivity.sequential import SequentialResult
from verify.radioactivity.text import TextResult
from verify.results import FingerprintResult, Result
from verify.stats.multiple import holm

COPIED: Final = "copied"
DISTILLED: Final = "distilled"
BOTH: Final = "copied and distilled"
UNRELATED: Final = "unrelated so far as this access can see"
CANNOT_TELL: Final = "cannot tell"
VERDICTS: Final = (COPIED, DISTILLED, BOTH, UNRELATED, CANNOT_TELL)


@dataclass(frozen=True)
class PlannedTest:
    """One planned test: its result, or why there is none.

    Attributes:
        name: one of LINES.
        result: what was found.
        unavailable: why nothing was; None where there is a result.
        failed: it was tried, and could not be made; otherwise the access does not allow it.
        log10_adjusted: log10 of Holm's adjusted p-value over all lines with a result.
    """

    name: str
    result: Result | None
    unavailable: str | None = None
    failed: bool = False
    log10_adjusted: float = 0.0

    def positive(self, alpha: float) -> bool:
        """Whether the line stands after Holm's adjustment."""
        return self.result is not None and self.log10_adjusted <= math.log10(alpha)

    @property
    def looked(self) -> bool:
        """Whether a negative answer of this line says anything."""
        if isinstance(self.result, SequentialResult):
            return self.result.stopped == "futility"
        if isinstance(self.result, MatchResult):
            return self.result.covered
        if isinstance(self.result, IndependenceResult):
            return bool(self.result.layers)
        return self.result is not None and getattr(self.result, "n", 1) > 0

    def to_dict(self, alpha: float) -> dict[str, Any]:
        """For JSON."""
        if self.result is None:
            return {"line": self.name, "available": False, "failed": self.failed, "why": self.unavailable}
        return {
            "line": self.name,
            "available": True,
            "log10_pvalue": self.result.log10_pvalue,
            "log10_pvalue_adjusted": self.log10_adjusted,
            "positive": self.positive(alpha),
            "power_statement": power_statement(self.result),
            "breaks": breaks(self.result),
            "result": self.result.to_dict(),
        }


@dataclass(frozen=True)
class Lineage:
    """The answer.

    Attributes:
        teacher, suspect: a folder, or for the suspect a URL.
        plan: what was fixed beforehand.
        lines: every planned test.
    """

    teacher: str
    suspect: str
    plan: LineagePlan
    lines: tuple[PlannedTest, ...] = field(repr=False)

    @property
    def _keyed(self) -> bool:
        """Whether the teacher was tested in the order that its mark drew."""
        return any(isinstance(line.result, IndependenceResult) and line.result.keyed for line in self.lines)

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        found = {line.name for line in self.lines if line.positive(self.plan.alpha)}
        # with a keyed order a sibling is no copy, and its units match all the same: that alone decides nothing
        copied = bool(found & ({WEIGHTS} if self._keyed else {WEIGHTS, SHUFFLED}))
        distilled = bool(found & {MARK, CANARIES})
        if copied or distilled:
            return BOTH if copied and distilled else COPIED if copied else DISTILLED
        telling = [line for line in self.lines if line.name in (WEIGHTS, SHUFFLED, MARK, CANARIES)]
        lead = any(isinstance(line.result, AgreementResult) and line.result.lead for line in self.lines)
        if found or lead or any(line.failed for line in telling) or not any(line.looked for line in telling):
            return CANNOT_TELL
        return UNRELATED

    @property
    def reasons(self) -> list[str]:
        """What the verdict rests on, and what it leaves open, one sentence each."""
        found = [line.name for line in self.lines if line.positive(self.plan.alpha)]
        missing = [line for line in self.lines if line.result is None]
        said = [f"Stands after Holm: {name}." for name in found] or ["No line stands after Holm."]
        if self.verdict in (COPIED, BOTH):
            if not self._keyed:
                said.append("A common parent of both models, or the same initial weights, would look the same.")
            if WEIGHTS not in found:
                said.append(f"{SHUFFLED} is calibrated on small models, and not exact.")
        if self._keyed and SHUFFLED in found and WEIGHTS not in found:
            said.append(
                "The units match, and not in the order of the release: a sibling from a common parent, or a copy whose "
                "units were shuffled. It was not counted for the verdict."
            )
        if self.verdict == DISTILLED:
            looked = any(line.looked for line in self.lines if line.name in (WEIGHTS, SHUFFLED))
            said.append("In the weights no dependence was found." if looked else "The weights were not seen.")
        if self.verdict == CANNOT_TELL and PLANTED in found:
            said.append("The planted answers show a tie to the teacher, and not whether by weights or by outputs.")
        for line in self.lines:
            if isinstance(line.result, AgreementResult) and line.result.lead:
                number = len(line.result.controls)
                said.append(
                    f"{AGREEMENT} is a lead, and no proof: none of {number} controls is as close to the teacher."
                )
        for line in missing:
            said.append(f"{'Could not be made' if line.failed else 'Not tested'}: {line.name}: {line.unavailable}.")
        if not found:
            said += [f"{line.name}: {power_statement(line.result)}" for line in self.lines if line.result is not None]
        return said

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "teacher": self.teacher,
            "suspect": self.suspect,
            "alpha": self.plan.alpha,
            "plan": self.plan.to_dict(),
            "plan_digest": self.plan.digest,
            "lines": [line.to_dict(self.plan.alpha) for line in self.lines],
        }


def conclude(teacher: str, suspect: str, plan: LineagePlan, lines: Sequence[PlannedTest]) -> Lineage:
    """Put the lines together, with Holm's adjustment over those that have a result.

    Raises:
        ValueError: these are not the planned lines, in order.
    """
    if [line.name for line in lines] != list(plan.lines):
        raise ValueError("the lines are not those of the plan")
    made = [line.result.log10_pvalue for line in lines if line.result is not None]
    adjusted = iter(holm(np.array(made, np.float64)).tolist())
    return Lineage(
        teacher,
        suspect,
        plan,
        tuple(replace(line, log10_adjusted=next(adjusted) if line.result else 0.0) for line in lines),
    )


def power_statement(result: Result | None) -> str:
    """What a negative answer of this test rules out, in words."""
    if isinstance(result, WeightedResult):
        if not result.n:
            return "nothing: the suspect does not differ from the reference, or no position could be scored."
        return (
            f"an effect of {result.detectable_effect:.4f} (green less red, in the weights' unit) would have been found "
            "with 90 % power."
        )
    if isinstance(result, SequentialResult):
        return f"after {result.tokens:,} tokens a tilt of {result.least:g} " + (
            "would have shown." if result.stopped == "futility" else "may be there and not have shown yet."
        )
    if isinstance(result, TextResult):
        return f"a green rate of {result.detectable_rate} would have been found with 90 % power."
    if not PlannedTest("", result).looked:
        return "nothing: there was nothing to compare."
    return "a suspect changed as its `breaks` says would not have been found."


def breaks(result: Result) -> str:
    """What would make this p-value wrong, and what would hide a guilty suspect, in words."""
    if isinstance(result, FingerprintResult):
        return result.breaks
    return (
        "Wrong if suspect, reference or probes depend on the secret by another way than the teacher's outputs, or "
        "if text that others published carried the mark to the suspect. Hidden by paraphrase, by other training "
        "data in excess, or by distillation that takes the mark out."
    )
