"""What `verify.quality` returns: measures of marked and unmarked answers, and what tests will see of a mark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from verify.display import Heading, Paragraph, Part, Rows, Table, new_axes, plain
from verify.planning.power import TokenBudget
from verify.results import LEVEL, html_table, plural
from verify.stats.binomial import Interval
from verify.stats.equivalence import mean_interval, tost, values_needed
from watermark import Mark
from watermark.generation import Sampling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOST_ALPHA: Final = 0.05
"""Level of the equivalence test."""
ENOUGH: Final = 8
"""Keys from which the interval over them is not called rough."""

LABELS: Final = {
    "perplexity": "perplexity",
    "self_bleu_3": "Self-BLEU-3",
    "distinct_2": "distinct-2",
    "repeated_4": "repeated 4-grams",
    "entropy": "entropy",
    "model_entropy": "entropy, unmarked model",
    "at_limit": "at the length limit",
    "length": "tokens of an answer",
    "green_rate": "green rate",
}
"""Names of the measures, as people read them."""

CHOOSING: Final = (
    "Choose a scheme and its strength by these figures, never a key: text that does not depend on a mark leans towards "
    "a key that was chosen for such text, and the p-values of later tests are then wrong."
)
FEW: Final = f"The interval is over fewer than {ENOUGH} keys: it is rough."
BASIS: Final = "students of SmolLM2-135M that learned from about 31,000 tokens with a green list and nothing else"


@dataclass(frozen=True)
class Measure:
    """One measure of the answers, by key; the mark's own key comes first.

    Attributes:
        name: one of `LABELS`.
        unmarked: of each key's unmarked answers.
        marked: of each key's marked answers.
    """

    name: str
    unmarked: tuple[float, ...]
    marked: tuple[float, ...]

    @property
    def relative(self) -> bool:
        """Whether differences are relative to the unmarked answers: by the logarithm."""
        return self.name == "perplexity"

    @property
    def differences(self) -> tuple[float, ...]:
        """Marked less unmarked, by key; of a relative measure the logarithm of their ratio."""
        pairs = zip(self.marked, self.unmarked, strict=True)
        return tuple(math.log(one / other) if self.relative else one - other for one, other in pairs)

    @property
    def difference(self) -> float:
        """The mean of the differences; of a relative measure the geometric mean of the ratios, less 1."""
        return self.said(statistics.fmean(self.differences))

    def confidence_interval(self, level: float = LEVEL) -> Interval:
        """Student's interval for `difference`, over the keys."""
        return Interval(*map(self.said, mean_interval(self.differences, level)))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "unmarked": statistics.fmean(self.unmarked),
            "marked": statistics.fmean(self.marked),
            "difference": self.difference,
            "interval": list(self.confidence_interval()),
            "relative": self.relative,
            "own": self.marked[0],
            "unmarked_by_key": list(self.unmarked),
            "marked_by_key": list(self.marked),
        }

    def cells(self) -> tuple[str, ...]:
        """Unmarked, marked, difference, its interval and the mark's own figure, as one reads them."""
        form = ".1f" if self.name in ("perplexity", "length") else ".3f"
        low, high = self.confidence_interval()
        shown = [f"{100 * one:+z.1f} %" if self.relative else f"{one:+z{form}}" for one in (self.difference, low, high)]
        values = (statistics.fmean(self.unmarked), statistics.fmean(self.marked), self.marked[0])
        unmarked, marked, own = (f"{one:z{form}}" for one in values)
        return unmarked, marked, shown[0], f"{shown[1]} to {shown[2]}", own

    def said(self, value: float) -> float:
        """One of `differences` as it is said: of a relative measure the ratio, less 1."""
        return math.expm1(value) if self.relative else value


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What tests will see of the mark, from these answers and the model's distributions along them.

    Attributes:
        alpha: level of the tests.
        power: chance of finding the mark that is planned for.
        tokens: of one key's marked answers.
        log10_pvalues: of the binomial test on these answers, by key: what a test of text sees if they are passed on.
        relayed_tokens: tokens of relayed answers that the test takes, as if its z grew with the root of the tokens;
            None: these answers do not show the mark, so that nothing follows.
        divergence: of Kullback and Leibler of q from p a token, in nats, along the unmarked answers, by key; p are the
            probabilities without the mark, q those with it. What a token of marked text tells of the mark, at most.
        energy: variance of ln(q / p) under p a token, in nats squared, along the same.
        like_delta: delta of a green list with this divergence along answers of the measured students' teacher.
        student: by access, what a test with a reference takes to find a student like the measured ones, carried over
            by the divergence; None: no student was measured near this.
    """

    alpha: float
    power: float
    tokens: int
    log10_pvalues: tuple[float, ...]
    relayed_tokens: int | None
    divergence: tuple[float, ...]
    energy: tuple[float, ...]
    like_delta: float
    student: Mapping[str, TokenBudget | None]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "alpha": self.alpha,
            "power": self.power,
            "tokens": self.tokens,
            "log10_pvalues": list(self.log10_pvalues),
            "relayed_tokens": self.relayed_tokens,
            "relayed_extrapolated": self.relayed_tokens is not None and self.relayed_tokens > self.tokens,
            "divergence": statistics.fmean(self.divergence),
            "divergence_interval": list(mean_interval(self.divergence)),
            "energy": statistics.fmean(self.energy),
            "energy_interval": list(mean_interval(self.energy)),
            "like_delta": self.like_delta,
            "student": {access: need and asdict(need) for access, need in self.student.items()},
        }

    def rows(self) -> dict[str, str]:
        """What is shown: names and values."""
        middle = statistics.median(self.log10_pvalues)
        seen = f"log10 p {middle:z.1f} on {self.tokens:,} tokens (measured, median of the keys)"
        if self.relayed_tokens is None:
            seen += "; too little to say how much text it takes"
        else:
            how = "extrapolated" if self.relayed_tokens > self.tokens else "scaled down"
            seen += f"; about {self.relayed_tokens:,} tokens ({how})"
        needs = []
        for access, unit in (("weights", "position"), ("top20", "position"), ("text", "token")):
            need = self.student[access]
            needs.append(f"{access} {'not measured' if need is None else f'about {plural(need.tokens, unit)}'}")
        low, high = mean_interval(self.divergence)
        return {
            "relayed text": seen,
            "divergence": f"{statistics.fmean(self.divergence):.4f} nats a token "
            f"(95 % interval {low:.4f} to {high:.4f}); energy {statistics.fmean(self.energy):.4f} nats^2",
            "is like": f"a green list of delta {self.like_delta:.2f} in what the measured students learned from",
            "a student": f"{', '.join(needs)} (extrapolated)",
        }


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a mark's scheme costs, and what it gives. It is no test of a suspect, and has no verdict.

    Attributes:
        model: its name.
        mark: the mark.
        prompts: how many.
        answers: to each, of each key and side.
        keys: the mark's own and children of it.
        sampling: how the answers were drawn.
        tokens: of all answers.
        measures: of the answers, perplexity first.
        margin: relative difference of perplexities that counts as none.
        evidence: what tests will see.
    """

    model: str
    mark: Mark
    prompts: int
    answers: int
    keys: int
    sampling: Sampling
    tokens: int
    measures: tuple[Measure, ...]
    margin: float
    evidence: Evidence

    def __getitem__(self, name: str) -> Measure:
        """A measure by its name. Raises KeyError."""
        return {one.name: one for one in self.measures}[name]

    @property
    def equivalence_pvalue(self) -> float:
        """Of two one-sided t-tests over the keys: the perplexities differ by the margin or more."""
        return tost(self["perplexity"].differences, math.log1p(-self.margin), math.log1p(self.margin))

    @property
    def equivalent(self) -> bool:
        """Whether the perplexities are shown to differ by less than the margin, at level 0.05."""
        return self.equivalence_pvalue <= TOST_ALPHA

    @property
    def keys_needed(self) -> int:
        """Keys that would show it with 90 % power if there were no difference, with as many answers of each."""
        return values_needed(statistics.stdev(self["perplexity"].differences), math.log1p(self.margin), TOST_ALPHA)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know."""
        return (CHOOSING,) if self.keys >= ENOUGH else (CHOOSING, FEW)

    @property
    def title(self) -> str:
        """What it costs in perplexity, in words."""
        _, _, difference, interval, _ = self["perplexity"].cells()
        return f"perplexity {difference} (95 % interval {interval}, over {plural(self.keys, 'key')})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Never a secret."""
        return {
            "model": self.model,
            "mark": {"label": self.mark.label, "commitment": self.mark.commitment, "width": self.mark.width},
            "prompts": self.prompts,
            "answers": self.answers,
            "keys": self.keys,
            "sampling": asdict(self.sampling),
            "tokens": self.tokens,
            "measures": {one.name: one.to_dict() for one in self.measures},
            "equivalence": {
                "margin": self.margin,
                "alpha": TOST_ALPHA,
                "pvalue": self.equivalence_pvalue,
                "equivalent": self.equivalent,
                "keys_needed": self.keys_needed,
            },
            "evidence": self.evidence.to_dict(),
            "basis": BASIS,
            "warnings": list(self.warnings),
        }

    def rows(self) -> dict[str, str]:
        """What is shown beside the measures: names and values."""
        said = (
            "shown" if self.equivalent else f"not shown; without a difference about {self.keys_needed:,} keys show it"
        )
        return {
            "equivalence": f"within {100 * self.margin:g} % of perplexity: {said} "
            f"(TOST p {self.equivalence_pvalue:.4f})",
            "answers": f"{self.answers} to each of {plural(self.prompts, 'prompt')}, of each key and of no mark; "
            f"{self.tokens:,} tokens",
            **self.evidence.rows(),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """How to read the numbers."""
        how = f"with a chance of {100 * self.evidence.power:g} % at alpha {self.evidence.alpha:g}"
        return (
            "The interval is over keys and draws, for these prompts. Entropy is of the distributions that the tokens "
            "were drawn from, in nats.",
            f"Relayed text: the marked answers, tested for their own keys. A student: {BASIS}; carried over to this "
            f"mark, model and these prompts by the divergence alone. What it takes is to find the mark {how}, with a "
            f"reference for the student.",
        )

    def to_parts(self) -> list[Part]:
        """What the command prints."""
        heads = ("", "unmarked", "marked", "difference", "95 % interval", "this key")
        cells = tuple((LABELS[one.name], *one.cells()) for one in self.measures)
        table = Table(heads, cells, "  {:24} {:>8} {:>8} {:>10} {:>20} {:>9}")
        below = [Paragraph(text) for text in ("", *self.notes, *(f"Note: {one}" for one in self.warnings))]
        return [Heading(self.title), table, Paragraph(), Rows(self.rows()), *below]

    def __str__(self) -> str:
        """The parts as plain text."""
        return plain(self.to_parts())

    def _repr_html_(self) -> str:
        """What a notebook shows: a table."""
        rows = {}
        for one in self.measures:
            unmarked, marked, difference, interval, own = one.cells()
            rows[LABELS[one.name]] = f"{unmarked} unmarked, {marked} marked: {difference} ({interval}); this key {own}"
        return html_table(self.title, rows | self.rows(), list(self.notes), self.warnings)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each measure's change in percent of the unmarked answers, by key; needs matplotlib (the extra `plot`).

        A measure that is 0 without a mark is left out.

        Raises:
            StillmarkError: matplotlib is not installed.
        """
        ax = new_axes() if ax is None else ax
        shown = [one for one in self.measures if statistics.fmean(one.unmarked)]
        for y, one in enumerate(shown):
            unit = 100 if one.relative else 100 / statistics.fmean(one.unmarked)
            points = [unit * one.said(value) for value in one.differences]
            low, high = (unit * end for end in one.confidence_interval())
            ax.plot([low, high], [y, y], color="C0", linewidth=6, alpha=0.4, label=None if y else "95 % interval")
            ax.plot(points[1:], [y] * (len(points) - 1), "o", color="C7", label=None if y else "other keys")
            ax.plot(points[:1], [y], "D", color="C3", label=None if y else "this key")
        ax.axvline(0, color="C7", linewidth=0.8)
        ax.set_yticks(range(len(shown)), [LABELS[one.name] for one in shown])
        ax.invert_yaxis()
        ax.set_xlabel("marked less unmarked answers, in % of the unmarked ones")
        ax.set_title(self.title, fontsize="medium")
        ax.legend()
        return ax
