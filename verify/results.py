"""What every test answers: a p-value, a verdict, and the words that go with it."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

from verify.display import Heading, Paragraph, Part, Rows, new_axes, plain, scientific
from verify.words import CARRIES as CARRIES
from verify.words import INSUFFICIENT as INSUFFICIENT
from verify.words import NO_VERDICT as NO_VERDICT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from verify.calls import Call
    from verify.lineage.plan import Planned

LEVEL: Final = 0.95
"""Of the confidence intervals that results show."""

POWER: Final = 0.9
"""Of what results say could have been found."""

MOST_ALPHA: Final = 0.5
"""Above this no level is accepted."""

HIGH_ALPHA: Final = 0.05
"""A result at a higher level warns."""

CHANGED: Final = "a tie that nobody hid (the test's evasions are the ways to hide one)"
NOTHING: Final = "nothing: there was nothing to compare"
"""What a negative answer of a test without a mark rules out."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one test: what it was asked, what it found, and how to read it.

    Attributes:
        test: the test's name, in words.
        alpha: level of the verdict, fixed before looking.
        n: how much evidence there was, in the test's own unit; 0: nothing could be read.
        statistic: what the p-value judges.
        log10_pvalue: log10 of the p-value; finite however small it is.
        positive_verdict: the verdict where p <= alpha.
        randomness: where the p-value's randomness comes from.
        assumptions: what would make the p-value wrong.
        evasions: what would hide a guilty suspect.
        warnings: what a reader of this result should know, one sentence each.
        discarded: evidence left out, by reason.
        conclusive: a negative answer says something; False where nothing was read, or not enough for any answer.
        power_statement: what a negative answer rules out.
        inputs: what the test was given (files, folders, counts of bad records), for JSON.
        call: the call of a public function that gave it; None: it was made of evidence in memory.
        planned: the plan under which it came about; None: there was none.
    """

    test: str
    alpha: float
    n: int
    statistic: float
    log10_pvalue: float
    positive_verdict: str
    randomness: str = field(repr=False)
    assumptions: str = field(repr=False)
    evasions: str = field(repr=False)
    warnings: tuple[str, ...] = field(default=(), repr=False)
    discarded: Mapping[str, int] = field(default_factory=dict)
    conclusive: bool = True
    power_statement: str = field(default="", repr=False)
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    call: Call | None = field(default=None, repr=False, compare=False)
    planned: Planned | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= MOST_ALPHA:
            raise ValueError(f"alpha must be more than 0 and at most {MOST_ALPHA}, not {self.alpha}")
        warnings = [one for one in self.cautions() if one not in self.warnings]
        object.__setattr__(self, "warnings", (*self.warnings, *warnings))

    def cautions(self) -> Iterator[str]:
        """Warnings that follow from what the test was asked; every result has them."""
        if self.alpha > HIGH_ALPHA:
            yield (
                f"The level {self.alpha:g} is high: of 100 innocent suspects up to {100 * self.alpha:.0f} have as "
                "small a p-value. A verdict wants 0.05 or less."
            )

    @property
    def pvalue(self) -> float:
        """The p-value; 0.0 once it is below what a double holds (see `log10_pvalue`)."""
        return float(10**self.log10_pvalue)

    @property
    def significant(self) -> bool:
        """Whether the p-value is at most alpha."""
        return self.log10_pvalue <= math.log10(self.alpha)

    @property
    def verdict(self) -> str:
        """`positive_verdict` if p <= alpha; else `insufficient evidence`, or `no verdict` where nothing was read."""
        if self.significant:
            return self.positive_verdict
        return INSUFFICIENT if self.n else NO_VERDICT

    @property
    def evidence(self) -> str:
        """How much evidence there was, in words."""
        return f"{self.n:,}"

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never a secret."""
        return {
            "verdict": self.verdict,
            "pvalue": self.pvalue,
            "log10_pvalue": self.log10_pvalue,
            "alpha": self.alpha,
            "n": self.n,
            "statistic": self.statistic,
            "test": self.test,
            "conclusive": self.conclusive,
            "power_statement": self.power_statement,
            "randomness": self.randomness,
            "assumptions": self.assumptions,
            "evasions": self.evasions,
            "warnings": list(self.warnings),
            "discarded": dict(self.discarded),
            "summary": {"evidence": self.evidence, "rows": self.rows()},
            "call": None if self.call is None else self.call.to_dict(),
            **self._plan(),
            **self.inputs,
        }

    def _plan(self) -> dict[str, Any]:
        if self.planned is None:
            return {"plan_digest": None}
        known = self.planned
        return {
            "plan_digest": known.digest,
            "planned_before": known.before,
            "deviations": list(known.deviations),
        }

    def under(self, planned: Planned) -> Self:
        """The same result, with the plan that it was held to; what a reader should know of that is a warning."""
        said = [f"Deviation from the plan: {one}." for one in planned.deviations]
        if not planned.before:
            said.append("The plan was written by this run: it shows nothing of what was chosen before looking.")
        return replace(self, planned=planned, warnings=(*self.warnings, *said))

    def noting(self, call: Call) -> Self:
        """The same result, with the call that gave it."""
        return replace(self, call=call)

    def save_html(self, path: str | Path, *, confidential: bool = False) -> None:
        """Write the result as one page that needs nothing else: see `verify.evidence.report`.

        confidential: leave out passages of the suspect's text and single pairs.

        Raises:
            InputError: the file cannot be written.
        """
        save_html(self.to_dict(), path, confidential=confidential)

    def rows(self) -> dict[str, str]:
        """What is shown below the verdict: names and values."""
        held = f"alpha {self.alpha:g}; {self.planned or 'no plan'}"
        return {
            "p-value": f"{scientific(self.log10_pvalue)}   (log10 p {self.log10_pvalue:z.2f}; {held})",
            "test": self.test,
        }

    def to_parts(self) -> list[Part]:
        """What the command prints: the verdict, the numbers, what the p-value rests on, and notes."""
        notes = [f"Note: {warning}" for warning in self.warnings]
        below = [Paragraph(text) for text in ("", self.randomness, *notes)]
        return [Heading(self.verdict), Rows(self.rows()), *below]

    def __str__(self) -> str:
        """The parts as plain text."""
        return plain(self.to_parts())

    def _repr_html_(self) -> str:
        """What a notebook shows: a table."""
        return html_table(self.verdict, self.rows(), [self.randomness], self.warnings)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result into `ax`, or into new axes; returns the axes. Needs matplotlib (the extra `plot`).

        Raises:
            StillmarkError: matplotlib is not installed.
        """
        ax = new_axes() if ax is None else ax
        self._draw(ax)
        ax.set_title(f"{self.verdict}: log10 p {self.log10_pvalue:z.2f}")
        return ax

    def _draw(self, ax: Axes) -> None:
        """The picture; here the p-value and alpha, each as evidence."""
        bars = {"evidence": -self.log10_pvalue, "needed at alpha": -math.log10(self.alpha)}
        ax.barh(list(bars), list(bars.values()), color=["C0", "C7"])
        ax.set_xlabel("-log10 p")


def save_html(found: dict[str, Any], path: str | Path, *, confidential: bool) -> None:
    """Write the report on a result, which is given as for JSON. Raises InputError."""
    from verify.evidence.report import write_report

    write_report(found, path, confidential=confidential)


def html_table(title: str, rows: Mapping[str, str], texts: list[str], notes: tuple[str, ...]) -> str:
    """A titled table of names and values as HTML, with paragraphs and notes below; everything is escaped."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    below = "".join(f"<p>{html.escape(text)}</p>" for text in texts)
    below += "".join(f"<p><b>Note:</b> {html.escape(note)}</p>" for note in notes)
    return f"<div><p><b>{html.escape(title)}</b></p><table>{cells}</table>{below}</div>"


def left_out_bad(number: int, first: object) -> str:
    """The note on malformed records that were left out.

    >>> left_out_bad(1, "outputs.jsonl:7: no JSON")
    '1 bad record was left out; the first: outputs.jsonl:7: no JSON'
    """
    return f"{plural(number, 'bad record')} {'was' if number == 1 else 'were'} left out; the first: {first}"


def left_out(discarded: Mapping[str, int]) -> str:
    """What was left out, in words.

    >>> left_out({"short_context": 2, "special_token": 0})
    '2 short context'
    """
    return ", ".join(f"{count:,} {why.replace('_', ' ')}" for why, count in discarded.items() if count) or "nothing"


def plural(number: int, noun: str) -> str:
    """A number of things.

    >>> plural(1, "answer"), plural(1200, "answer")
    ('1 answer', '1,200 answers')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
