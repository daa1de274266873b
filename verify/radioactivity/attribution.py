"""Which customers' outputs were used: the child marks of many labels, held against the same pairs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.pairs import Pairs
from verify.display import scientific
from verify.radioactivity.result import MarkResult, distinct_pairs
from verify.radioactivity.text import rate_statement, text_warnings
from verify.results import NO_VERDICT, POWER, plural
from verify.stats import binomial, multiple
from watermark import Mark
from watermark.progress import Progress, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ATTRIBUTED: Final = "attributed"
NONE: Final = "none"
AMBIGUOUS: Final = "ambiguous"

_AT_ONCE: Final = 2_000
"""Labels whose keys are derived before any is tried."""
SHOWN: Final = 8
"""Labels that a picture names."""

RANDOMNESS: Final = (
    "The p-values' randomness is the draw of the parent's secret: the labels' secrets are derived from it by HKDF, so "
    "that for a suspect that does not depend on a label's secret the green bits of distinct pairs are independent with "
    "probability gamma, under that label and across labels. Holm's adjustment makes the chance of naming any wrong "
    "label at most alpha. A label that is found shows that its text was used, not who used it."
)


@dataclass(frozen=True)
class NamedLabel:
    """A label whose mark the text carries. log10_pvalue_adjusted: over all labels, by Holm's method."""

    label: str
    log10_pvalue: float
    log10_pvalue_adjusted: float
    green_rate: float


@dataclass(frozen=True, kw_only=True)
class Attribution(MarkResult):
    """The exact test of every label's child mark on one evidence.

    n: distinct pairs; statistic: green coins under the label of the smallest p-value; the p-value: that label's,
    adjusted over all labels by Holm's method. mark: the parent.

    Attributes:
        labels: whose marks were tried.
        pairs: the evidence.
        green: int64 [labels], green coins under each label's key.
        log10_pvalues: float64 [labels], log10 p of each label's test, before Holm's adjustment.
        found: the labels whose adjusted p-value is at most alpha, strongest first. Empty: nobody is named.
        log10_pvalue_joint: that the text carries any of the labels' marks: the greens of all keys together, exact.
        log10_pvalue_parent: the parent's own mark, by the same test.
        detectable_rate: the green rate at which a label would have been found with 90 % power; None: no rate.
        plan: digest of the plan that names the labels, if there is one.
        planned_before: the plan was there before this run.
        deviations: where the run differs from the plan, a sentence each.
    """

    labels: tuple[str, ...] = field(repr=False)
    pairs: Pairs = field(repr=False)
    green: npt.NDArray[np.int64] = field(repr=False)
    log10_pvalues: npt.NDArray[np.float64] = field(repr=False)
    found: tuple[NamedLabel, ...]
    log10_pvalue_joint: float
    log10_pvalue_parent: float
    detectable_rate: float | None
    plan: str | None = None
    planned_before: bool = False
    deviations: tuple[str, ...] = ()
    positive_verdict: str = ATTRIBUTED
    randomness: str = field(default=RANDOMNESS, repr=False)

    @property
    def verdict(self) -> str:
        """`attributed`: somebody is found. `ambiguous`: nobody, yet all labels together are. `none`: neither."""
        if self.found:
            return ATTRIBUTED
        if not self.n:
            return NO_VERDICT
        return AMBIGUOUS if self.log10_pvalue_joint <= math.log10(self.alpha) else NONE

    @property
    def evidence(self) -> str:
        return f"{plural(self.n, 'pair')}, {plural(len(self.labels), 'label')}"

    def cautions(self) -> Iterator[str]:
        yield from super().cautions()
        yield from (f"Deviation from the plan: {one}." for one in self.deviations)
        if not self.planned_before:
            which = "in no plan" if self.plan is None else "in a plan that this run has written"
            yield (
                f"The list of {plural(len(self.labels), 'label')} is {which}: the p-values hold only if it was fixed "
                "before anybody looked at the suspect."
            )
        else:
            yield (
                "The plan was there before this run. It does not show when it was made: an authority's timestamp does "
                "(`stillmark evidence timestamp`)."
            )

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "found": [vars(one) for one in self.found],
            "labels": len(self.labels),
            "labels_digest": labels_digest(self.labels),
            "plan_digest": self.plan,
            "planned_before": self.planned_before,
            "deviations": list(self.deviations),
            "log10_pvalue_joint": self.log10_pvalue_joint,
            "log10_pvalue_parent": self.log10_pvalue_parent,
            "detectable_rate": self.detectable_rate,
            "detectable_power": POWER,
            "positions": self.pairs.positions,
            "records": self.pairs.records,
            "prompts": self.pairs.prompts,
            "unmarked_prompts": self.pairs.unmarked,
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        found = {
            one.label: f"adjusted p {scientific(one.log10_pvalue_adjusted)}   "
            f"(log10 p {one.log10_pvalue:z.2f}; green rate {one.green_rate:.4f})"
            for one in self.found
        }
        found |= {
            "labels": f"{len(self.labels):,}, adjusted over all by Holm's method; alpha {self.alpha:g}",
            "their digest": f"{labels_digest(self.labels)[:16]}...   "
            + ("(in no plan)" if self.plan is None else f"({self._kept} plan {self.plan[:16]}...)"),
            "pairs scored": f"{distinct_pairs(self.n, self.mark)}, of {plural(self.pairs.positions, 'position')}",
            "all labels": f"{scientific(self.log10_pvalue_joint)}   (is any of their marks there)",
            "the parent": f"{scientific(self.log10_pvalue_parent)}   (is its own mark there)",
            "could be seen": self.power_statement,
        }
        return found | {name: rows[name] for name in ("left out", "read as", "mark") if name in rows}

    @property
    def _kept(self) -> str:
        return "DEVIATES from" if self.deviations else "in"

    def _draw(self, ax: Axes) -> None:
        number = len(self.labels)
        ranks = np.arange(1, number + 1)
        ax.plot(ranks, -np.sort(self.log10_pvalues), ".", color="C7", label=f"{number:,} labels")
        if self.found:  # what Holm's method finds are the smallest p-values
            names = [one.label for one in self.found[:SHOWN]]
            more = [f"and {len(self.found) - SHOWN:,} more"] if len(self.found) > SHOWN else []
            strongest = [-one.log10_pvalue for one in self.found]
            ax.plot(ranks[: len(strongest)], strongest, "o", color="C3", label="\n".join(names + more))
        ax.plot(ranks, np.log10((number + 1 - ranks) / self.alpha), "k--", label=f"Holm's line, alpha {self.alpha:g}")
        ax.set_xscale("log")
        ax.set_yscale("symlog", linthresh=1)  # most labels are near 0, and what is found may be at thousands
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.margins(x=0.1, y=0.1)
        ax.set_xlabel("rank of the label, the smallest p-value first")
        ax.set_ylabel("-log10 p of the label")
        ax.legend()


def attribution(
    mark: Mark,
    labels: Sequence[str],
    pairs: Pairs,
    alpha: float = 1e-3,
    progress: Progress = silent,
    *,
    plan: str | None = None,
    planned_before: bool = False,
    deviations: Sequence[str] = (),
) -> Attribution:
    """Try the child marks of many labels on one evidence.

    Args:
        mark: the parent; `pairs` must have been extracted with its width and exempt ids.
        labels: as the children were derived, at least one, no two alike.
        pairs: distinct pairs, from `verify.data.pairs.extract`.
        alpha: the chance that one wrong label or more is named, fixed before looking.
        progress: called with the number of labels tried, and of how many.
        plan, planned_before, deviations: as in `Attribution`.

    Raises:
        ValueError: alpha is no probability, or there are no labels, or some twice.
    """
    if not 0 < alpha < 1 or not labels or len(set(labels)) < len(labels):
        raise ValueError("want alpha between 0 and 1, and labels, no two alike")
    parts, done = [], 0
    progress(0, len(labels))
    for start in range(0, len(labels), _AT_ONCE):  # to derive a key takes about as long as to try it
        keys = [mark.child(label).prf_key for label in labels[start : start + _AT_ONCE]]
        for part in mark.scheme.count_hits(keys, pairs.contexts, pairs.tokens):
            parts.append(part)
            done += len(part)
            progress(done, len(labels))
    green, n = np.concatenate(parts), len(pairs.tokens)
    coins = n * mark.scheme.coins
    tail = cache(lambda number: binomial.binomial_log10_sf(number, coins, mark.scheme.rate))
    single = np.array([tail(number) for number in green.tolist()], np.float64)
    adjusted = multiple.holm(single)
    chosen = np.flatnonzero(adjusted <= math.log10(alpha))
    found = tuple(
        NamedLabel(labels[i], float(single[i]), float(adjusted[i]), int(green[i]) / coins)
        for i in chosen[np.argsort(single[chosen], kind="stable")].tolist()
    )
    joint = binomial.binomial_log10_sf(int(green.sum()), coins * len(labels), mark.scheme.rate)
    warnings = list(text_warnings(n, pairs.positions, pairs.discarded, pairs.prompts, pairs.records))
    if not found and joint <= math.log10(alpha):
        warnings.append(
            "Somebody's mark is there, by all labels together, and no single label can be told: this names nobody."
        )
    least = binomial.detectable_rate(coins, mark.scheme.rate, alpha / len(labels), POWER)
    return Attribution(
        test="exact binomial for each label, one-sided; Holm over labels",
        alpha=alpha,
        n=n,
        statistic=int(green[single.argmin()]),
        log10_pvalue=float(adjusted.min()),
        warnings=tuple(warnings),
        discarded=pairs.discarded,
        conclusive=n > 0,
        power_statement=rate_statement(least),
        mark=mark,
        labels=tuple(labels),
        pairs=pairs,
        green=green,
        log10_pvalues=single,
        found=found,
        log10_pvalue_joint=joint,
        log10_pvalue_parent=tail(int(mark.hits(pairs.contexts, pairs.tokens).sum())),
        detectable_rate=least,
        plan=plan,
        planned_before=planned_before,
        deviations=tuple(deviations),
    )


def labels_digest(labels: Sequence[str]) -> str:
    """SHA-256 over the labels, sorted by their bytes, each with a line end; 64 hex characters.

    >>> labels_digest(["b", "a"]) == hashlib.sha256(b"a\\nb\\n").hexdigest()
    True
    """
    return hashlib.sha256(b"".join(label.encode() + b"\n" for label in sorted(labels))).hexdigest()
