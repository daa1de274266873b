"""What happened to the teacher: copied, distilled, both, unrelated as far as seen, or cannot tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from verify.display import Heading, Paragraph, Part, Table, new_axes, plain
from verify.evidence.checked import Checked
from verify.evidence.document import without_text
from verify.fingerprint.agreement import AgreementResult
from verify.lineage.plan import AGREEMENT, CANARIES, PLANTED, SHUFFLED, WEIGHTS, LineagePlan, is_mark
from verify.radioactivity import tilt
from verify.radioactivity.result import MarkResult
from verify.radioactivity.tilt import Tilt
from verify.results import Result, html_table, plural, save_html
from verify.stats.multiple import holm

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from verify.calls import Call

COPIED: Final = "copied"
DISTILLED: Final = "distilled"
DISTILLED_OR_RELAYED: Final = "distilled or relayed"
RELAYED: Final = "relays the teacher"
BOTH: Final = "copied and distilled"
UNRELATED: Final = "unrelated as far as seen"
CANNOT_TELL: Final = "cannot tell"
VERDICTS: Final = (COPIED, DISTILLED, RELAYED, DISTILLED_OR_RELAYED, BOTH, UNRELATED, CANNOT_TELL)

MEANING: Final = {
    COPIED: "The suspect's weights come from the teacher's.",
    DISTILLED: "The suspect learned from text of the teacher.",
    DISTILLED_OR_RELAYED: "What the suspect writes carries the mark: it learned from text of the teacher, or it passes "
    "the teacher's answers on.",
    RELAYED: "What the suspect writes carries the mark as strongly as the teacher's own text: it passes the teacher's "
    "answers on, now or from a store.",
    BOTH: "The suspect's weights come from the teacher's, and it learned from text of the teacher.",
    UNRELATED: "No test that was made found a tie to the teacher; each line says what it could have found.",
    CANNOT_TELL: "No test answers what happened.",
}
SHOWS_NOT: Final = {
    COPIED: ("It does not say who copied the weights, or from where.",),
    DISTILLED: ("It does not say how the text got there: text that others published can carry the mark.",),
    DISTILLED_OR_RELAYED: (
        "It does not say whether the suspect learned, or passes the teacher's answers on.",
        "It does not say how the text got there: text that others published can carry the mark.",
    ),
    RELAYED: (
        "It does not say whether the suspect learned from the teacher as well.",
        "A student that learned the mark to the full would look the same.",
    ),
    BOTH: ("It does not say who copied the weights, or how the text got there.",),
    UNRELATED: (
        "It is no proof of innocence: a smaller effect than the tests could have found may be there.",
        "Each test has ways to be evaded; they are listed with the test.",
    ),
    CANNOT_TELL: ("It is neither a finding against the suspect nor one for it.",),
}
NO_INTENT: Final = "It does not say who queried the teacher, or with which intent."
STRENGTHS: Final = {
    tilt.FULL: RELAYED,
    tilt.MIXED: RELAYED,
    tilt.FAINT: DISTILLED,
    tilt.OPEN: DISTILLED_OR_RELAYED,
    None: DISTILLED_OR_RELAYED,
}
"""What is concluded of a suspect's own writing that carries the mark, by how strongly it does."""

RANDOMNESS: Final = (
    "A p-value here says how often a secret drawn at random (for weights: an order of units) would fit as well, "
    "whatever the suspect is. See docs/statistics.md."
)


@dataclass(frozen=True)
class PlannedTest:
    """One planned test: its result, or why there is none.

    Attributes:
        name: one of `verify.lineage.plan.LINES`.
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

    def stands(self, alpha: float) -> bool:
        """Whether the line is significant after Holm's adjustment."""
        return self.result is not None and self.log10_adjusted <= math.log10(alpha)

    @property
    def conclusive(self) -> bool:
        """Whether a negative answer of this line says anything."""
        return self.result is not None and self.result.conclusive

    def to_dict(self, alpha: float) -> dict[str, Any]:
        """For JSON, of a line with a result."""
        assert self.result is not None
        return {
            "test": self.name,
            "evidence": self.result.evidence,
            "log10_pvalue": self.result.log10_pvalue,
            "log10_pvalue_adjusted": self.log10_adjusted,
            "stands": self.stands(alpha),
            "conclusive": self.result.conclusive,
            "power_statement": self.result.power_statement,
            "assumptions": self.result.assumptions,
            "evasions": self.result.evasions,
            "result": self.result.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to "what happened?", and the tests that it rests on.

    Attributes:
        suspect: what was tested, as it may be shown.
        access: what could be had of it: `weights`, `endpoint`, `text` or `log probabilities`.
        teacher: the teacher's folder, if one was named.
        plan: what was fixed beforehand.
        promised: the plan in the file that was named; None: none was.
        deviations: where the two differ, a sentence each.
        started: when the suspect began to be read, UTC in ISO 8601; empty: not known.
        lines: every planned test.
        keyed: the teacher was released in the order of its mark.
        own_writing: what was scored for the mark is what the suspect wrote itself, so that it may be a relay's.
        unplanned: tests that were not planned, and why.
        next: what to do next, one sentence each.
        notes: what a reader should know, one sentence each.
        out: folder that holds the plan, what was read, and the result; None: nothing was kept.
        confidential: passages of the suspect's text and single pairs are left out of what is kept and shown.
        standing: what was checked of what stands beside the result in `out` (plan, timestamp, bundle), against what.
        call: the call that gave the verdict.
    """

    suspect: str
    access: str
    teacher: str | None
    plan: LineagePlan
    lines: tuple[PlannedTest, ...] = field(repr=False)
    promised: LineagePlan | None = field(default=None, repr=False)
    deviations: tuple[str, ...] = ()
    started: str = ""
    keyed: bool = False
    own_writing: bool = False
    unplanned: dict[str, str] = field(default_factory=dict, repr=False)
    next: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    out: str | None = None
    confidential: bool = False
    standing: tuple[Checked, ...] = field(default=(), repr=False, compare=False)
    call: Call | None = field(default=None, repr=False, compare=False)

    @property
    def found(self) -> set[str]:
        """Names of the tests that stand after Holm's adjustment."""
        return {line.name for line in self.lines if line.stands(self.plan.alpha)}

    @property
    def carried(self) -> set[str]:
        """Those of them that are tests for a mark."""
        return set(filter(is_mark, self.found))

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        fitting = verdicts_of(self.found, keyed=self.keyed)
        if len(fitting) == 1:
            return next(iter(fitting))
        if DISTILLED in fitting:
            return STRENGTHS[None if self.tilt is None else self.tilt.kind] if self.own_writing else DISTILLED
        telling = [line for line in self.lines if line.name in (WEIGHTS, SHUFFLED, CANARIES) or is_mark(line.name)]
        if self.leads or any(line.failed for line in telling):
            return CANNOT_TELL
        return UNRELATED if any(line.conclusive for line in telling) else CANNOT_TELL

    @property
    def tilt(self) -> Tilt | None:
        """How strongly what the suspect wrote carries the mark, of several the surest; None where that is not known."""
        marks = sorted((line for line in self.lines if is_mark(line.name)), key=lambda line: line.log10_adjusted)
        return next((line.result.tilt for line in marks if isinstance(line.result, MarkResult)), None)

    @property
    def leads(self) -> list[AgreementResult]:
        """Agreement that no control reaches: worth a second look, and no proof."""
        return [one.result for one in self.lines if isinstance(one.result, AgreementResult) and one.result.lead]

    @property
    def not_tested(self) -> list[dict[str, Any]]:
        """The tests without a result: `test`, `why`, and whether they were tried and `failed`."""
        missing = [line for line in self.lines if line.result is None]
        tried = [{"test": line.name, "why": line.unavailable, "failed": line.failed} for line in missing]
        return tried + [{"test": name, "why": why, "failed": False} for name, why in self.unplanned.items()]

    @property
    def reasons(self) -> list[str]:
        """What the verdict rests on, and what it leaves open, one sentence each."""
        found, verdict = self.found, self.verdict
        said = [MEANING[verdict]]
        said += [f"Stands after Holm's adjustment: {line.name}." for line in self.lines if line.name in found]
        if verdict in (COPIED, BOTH):
            if not self.keyed:
                said.append("A common parent of both models, or the same initial weights, would look the same.")
            if WEIGHTS not in found:
                said.append(f"The test '{SHUFFLED}' is calibrated on small models, and not exact.")
        if self.keyed and SHUFFLED in found and WEIGHTS not in found:
            said.append(
                "The units match, and not in the order of the release: a sibling from a common parent, or a copy whose "
                "units were shuffled. It was not counted for the verdict."
            )
        if verdict in (DISTILLED, RELAYED, DISTILLED_OR_RELAYED) and self.own_writing and self.tilt is not None:
            said.append(_strength(self.tilt))
        if verdict in (DISTILLED, DISTILLED_OR_RELAYED):
            compared = any(line.conclusive for line in self.lines if line.name in (WEIGHTS, SHUFFLED))
            said.append(
                "In the weights no dependence was found."
                if compared
                else "The weights were not compared: it may be a copy as well."
            )
        if verdict == CANNOT_TELL and PLANTED in found:
            said.append("The planted answers show a tie to the teacher, and not whether by weights or by outputs.")
        for lead in self.leads:
            number = plural(len(lead.controls), "control")
            said.append(f"{AGREEMENT.capitalize()} is a lead, and no proof: none of {number} is as close.")
        for line in self.lines:
            if line.failed:
                said.append(f"The test '{line.name}' could not be made: {line.unavailable}.")
            elif line.result is not None and line.name not in found:
                said.append(f"The test '{line.name}' could have found: {line.result.power_statement}.")
        return said

    @property
    def shows_not(self) -> list[str]:
        """What the verdict does not say, one sentence each."""
        return [*SHOWS_NOT[self.verdict], NO_INTENT]

    def save_html(self, path: str | Path, *, confidential: bool | None = None) -> None:
        """Write the verdict as one page that needs nothing else: see `verify.evidence.report`.

        confidential: leave out passages of the suspect's text and single pairs; None: as in `Verdict.confidential`.

        Raises:
            InputError: the file cannot be written.
        """
        save_html(self.to_dict(), path, confidential=self.confidential if confidential is None else confidential)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = self._to_dict()
        return without_text(found) if self.confidential else found

    def _to_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "shows_not": self.shows_not,
            "next": list(self.next),
            "tests": [line.to_dict(self.plan.alpha) for line in self.lines if line.result is not None],
            "not_tested": self.not_tested,
            "suspect": self.suspect,
            "access": self.access,
            "teacher": self.teacher,
            "alpha": self.plan.alpha,
            "plan": self.plan.to_dict(),
            "plan_digest": self.plan.digest,
            "promised_digest": None if self.promised is None else self.promised.digest,
            "deviations": list(self.deviations),
            "started": self.started,
            "notes": list(self.notes),
            "out": self.out,
            "call": None if self.call is None else self.call.to_dict(),
        }

    def _table(self) -> list[tuple[str, str, str, str, str]]:
        return [
            (
                line.name,
                line.result.evidence,
                f"{line.result.log10_pvalue:z.2f}",
                f"{line.log10_adjusted:z.2f}",
                "yes" if line.stands(self.plan.alpha) else "no" if line.conclusive else "no verdict",
            )
            for line in self.lines
            if line.result is not None
        ]

    def to_parts(self) -> list[Part]:
        """What the command prints: the verdict, a table of the tests, what was not tested, and what to do next."""
        heads = ("test", "evidence", "log10 p", "after Holm", "stands")
        table = tuple(self._table())
        wide = [max(len(row[i]) for row in (heads, *table)) for i in range(len(heads))]
        form = f"  {{:{wide[0]}}}   {{:{wide[1]}}}   {{:>{wide[2]}}}   {{:>{wide[3]}}}   {{}}"
        level = f"alpha {self.plan.alpha:g} over all tests (Holm); plan {self.plan.digest[:16]}..."
        if self.promised is not None:
            level += f"; {'DEVIATES from' if self.deviations else 'is'} the one that was promised"
        missing = [f"not tested: {one['test']}: {one['why']}" for one in self.not_tested]
        missing += [f"Deviation from the plan: {one}" for one in self.deviations]
        kept = (
            f"Kept in {self.out}: report.html, the result, the plan, and what was read (the same command goes on from "
            "there)."
        )
        below = [*(f"Note: {note}" for note in self.notes), *(f"Next: {step}" for step in self.next)]
        return [
            Heading(self.verdict),
            *(Paragraph(reason, indent=2) for reason in self.reasons),
            Paragraph(),
            Table(heads, table, form),
            *(Paragraph(text, indent=2) for text in (*missing, level)),
            Paragraph(),
            *map(Paragraph, below),
            *(Paragraph(one.sentence) for one in self.standing),
            *([] if self.out is None else [Paragraph(kept, whole=True)]),
            Paragraph(RANDOMNESS),
        ]

    def __str__(self) -> str:
        """The parts as plain text."""
        return plain(self.to_parts())

    def _repr_html_(self) -> str:
        """What a notebook shows: a table of the tests."""
        rows = {
            name: f"{evidence}; log10 p {raw}, after Holm {adjusted}; stands: {stands}"
            for name, evidence, raw, adjusted, stands in self._table()
        }
        rows |= {one["test"]: f"not tested: {one['why']}" for one in self.not_tested}
        steps = [f"Next: {step}" for step in self.next]
        broken = [f"Deviation from the plan: {one}" for one in self.deviations]
        return html_table(self.verdict, rows, [*self.reasons, *broken, *steps, RANDOMNESS], self.notes)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the evidence of every test, and alpha; returns the axes. Needs matplotlib (the extra `plot`)."""
        ax = new_axes() if ax is None else ax
        lines = [line for line in self.lines if line.result is not None]
        colours = ["C3" if line.stands(self.plan.alpha) else "C7" for line in lines]
        ax.barh([line.name for line in lines], [-line.log10_adjusted for line in lines], color=colours)
        ax.axvline(-math.log10(self.plan.alpha), color="k", linestyle="--", label=f"alpha {self.plan.alpha:g}")
        ax.set_xscale("symlog", linthresh=10)
        ax.set_xlabel("-log10 p after Holm")
        ax.set_title(self.verdict)
        ax.legend()
        return ax


def verdicts_of(standing: set[str], *, keyed: bool) -> set[str]:
    """The verdicts that may follow from the tests that stand. keyed: the teacher was released in its mark's order.

    >>> sorted(verdicts_of({"mark"}, keyed=False))
    ['distilled', 'distilled or relayed', 'relays the teacher']
    """
    marks = set(filter(is_mark, standing))
    # with a keyed order a sibling is no copy, and its units match all the same: that alone decides nothing
    if standing & ({WEIGHTS} if keyed else {WEIGHTS, SHUFFLED}):
        return {BOTH} if marks or CANARIES in standing else {COPIED}
    if CANARIES in standing:
        return {DISTILLED}
    if marks:
        return {DISTILLED, RELAYED, DISTILLED_OR_RELAYED}
    return {CANNOT_TELL} if standing else {CANNOT_TELL, UNRELATED}


def _strength(found: Tilt) -> str:
    """What the strength of the mark in a suspect's own writing says, in a sentence."""
    interval = f"{found.tilt:.2f} ({found.low:.2f} to {found.high:.2f})"
    if found.kind == tilt.MIXED:
        return (
            f"About {found.full_answers:.0f} of {plural(found.answers, 'answer')} carry the mark at full strength, as "
            "the teacher's own text does; the others hardly."
        )
    if found.kind == tilt.FULL:
        least = "" if found.reference else "at least "
        strength = f"{least}{interval}, that of the mark {found.delta:.4g}"
        return f"The tilt of its text is {strength}: as in the teacher's own text."
    if found.kind == tilt.FAINT:
        return f"The tilt of its text is {interval}, far below that of the mark, {found.delta:.4g}: no relay."
    why = "both fit" if found.reference else "without a `reference` this is a lower estimate, and both fit"
    return f"The tilt of its text is {interval}, that of the mark {found.delta:.4g}: {why}."


def adjusted(plan: LineagePlan, lines: Sequence[PlannedTest]) -> tuple[PlannedTest, ...]:
    """The planned lines with Holm's adjustment over those that have a result.

    Raises:
        ValueError: these are not the planned lines, in order.
    """
    if [line.name for line in lines] != list(plan.lines):
        raise ValueError("the lines are not those of the plan")
    made = [line.result.log10_pvalue for line in lines if line.result is not None]
    values = iter(holm(np.array(made, np.float64)).tolist())
    return tuple(replace(line, log10_adjusted=next(values) if line.result else 0.0) for line in lines)
