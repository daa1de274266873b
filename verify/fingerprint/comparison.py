"""Two models compared unit by unit, and the tests that are made from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from verify.display import Heading, Paragraph, Part, Rows, new_axes, plain
from verify.fingerprint import DEPENDENT, MATCHED
from verify.fingerprint.independence import IndependenceResult, LayerMatch, MatchResult, independent_pairs
from verify.results import CHANGED, INSUFFICIENT, NO_VERDICT, NOTHING, html_table, save_html
from verify.stats import permutations

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from verify.calls import Call
    from verify.lineage.plan import Planned

RANDOMNESS: Final = (
    "The p-value's randomness is the order of the teacher's hidden units (and, for the embedding, of its residual "
    "dimensions): random initial weights and a training that treats units alike make every order equally likely, "
    "in each layer on its own, whatever the suspect's weights are."
)
KEYED_RANDOMNESS: Final = (
    "The p-value's randomness is the draw of the mark's secret: it alone chose the order in which the teacher's hidden "
    "units were released. Nothing is assumed of how either model was initialised or trained, or of what they grew from."
)
ASSUMPTIONS: Final = (
    "Wrong if both models grew from the same initial weights (a common parent, such as one public base, or the same "
    "code and seed), if somebody sorted the units of both, if layers of both are copies of one layer, or if the "
    "architecture tells units or dimensions apart (as sinusoidal positions added to the embedding do)."
)
EVASIONS: Final = (
    "Blind to a suspect whose units were shuffled or rewritten, whose basis and vocabulary were both changed, or that "
    "was given other layers that do next to nothing."
)
KEYED_ASSUMPTIONS: Final = "Wrong only if the order leaked in another way than by the released weights."
KEYED_EVASIONS: Final = (
    "Blind to a suspect whose units were shuffled or rewritten, or whose basis and vocabulary were both changed; and "
    "to every copy, if the teacher that was named does not hold the very numbers that were put in order."
)
MATCH_RANDOMNESS: Final = (
    "Calibrated, not exact: the share of units that two views (what a unit reads, what else it reads or writes) match "
    "to the same partner, ranked among pairs of independently trained models; a control that is as like the teacher "
    "as the suspect is takes the evidence away."
)
MATCH_ASSUMPTIONS: Final = (
    "Assumes that this pair, if independent, would look like the small pairs that it is ranked among. Independent "
    "models that learn like units agree a little more than chance; a common parent makes them agree."
)
MATCH_EVASIONS: Final = "Hidden by retraining, or by changing the basis and the vocabulary at once."
NOT_COMPARED: Final = "Nothing could be compared: there is no evidence either way."
MIN_LAYERS: Final = 2


@dataclass(frozen=True, kw_only=True)
class WeightsComparison:
    """Two models compared: what both tests are made from.

    Attributes:
        teacher, suspect: the model folders.
        layers, embedding, basis, seed, keyed: see `IndependenceResult`.
        gated: all MLPs have a gate.
        skipped: what was not compared, and why, one sentence each.
    """

    teacher: str
    suspect: str
    layers: tuple[LayerMatch, ...]
    embedding: LayerMatch | None
    basis: str | None
    gated: bool
    skipped: tuple[str, ...]
    seed: int
    keyed: str | None = None

    @property
    def share(self) -> float:
        """Of the units, those that both views match alike; the mean over layers."""
        shares = [(layer.agreeing_views or 0) / layer.n for layer in self.layers if layer.n]
        return float(np.mean(shares)) if shares else 0.0

    def judged(self, controls: Sequence[tuple[str, float]] = (), alpha: float = 1e-3) -> WeightsResult:
        """Both tests, and the verdict of both; arguments as for `match`."""
        return WeightsResult(exact=self.independence(alpha), calibrated=self.match(controls, alpha))

    def independence(self, alpha: float = 1e-3) -> IndependenceResult:
        """The exact test. In a keyed order it leaves the embedding out, whose order is not keyed."""
        embedding = self.embedding if self.keyed is None else None
        parts = self.layers + (() if embedding is None else (embedding,))
        n = sum(part.n for part in parts)
        warnings = list(self.skipped)
        if sum(part.at_released_index or 0 for part in parts) > n / 2:
            warnings.insert(
                0,
                "The units match in the order of the teacher's folder, and not in the mark's: a sibling of it, or the "
                "folder named is the release, and not the model from before.",
            )
        if not parts:
            warnings.insert(0, NOT_COMPARED)
        return IndependenceResult(
            test="hidden units matched by linear assignment on cosines; exact tail of the number of fixed points of a "
            "uniform permutation (where widths differ: a bound on the longest increasing subsequence); Fisher over all",
            alpha=alpha,
            n=n,
            statistic=sum(part.fixed_points for part in parts),
            log10_pvalue=permutations.fisher_log10([part.log10_pvalue for part in parts]),
            positive_verdict=DEPENDENT,
            randomness=RANDOMNESS if self.keyed is None else KEYED_RANDOMNESS,
            assumptions=ASSUMPTIONS if self.keyed is None else KEYED_ASSUMPTIONS,
            evasions=EVASIONS if self.keyed is None else KEYED_EVASIONS,
            warnings=tuple(warnings),
            conclusive=bool(self.layers),
            power_statement=CHANGED if self.layers else NOTHING,
            teacher=self.teacher,
            suspect=self.suspect,
            layers=self.layers,
            embedding=embedding,
            basis=self.basis,
            seed=self.seed,
            keyed=self.keyed,
        )

    def match(self, controls: Sequence[tuple[str, float]] = (), alpha: float = 1e-3) -> MatchResult:
        """The calibrated one; controls: names of unrelated models, and the share that each has with the teacher.

        The p-value is the rank, (1 + pairs that reach as far) / (1 + pairs); 1 if the calibration does not cover the
        models, or a control is as like the teacher as the suspect is.
        """
        calibration = independent_pairs(self.gated)
        pairs, units = len(calibration.shares), calibration.units
        dense = all((one.teacher_mlp, one.suspect_mlp) == (None, None) for one in self.layers)
        covered = dense and len(self.layers) >= MIN_LAYERS and min(one.n for one in self.layers) >= units
        rivals = [name for name, share in controls if share >= self.share]
        warnings = []
        if 1 / (1 + pairs) > alpha:
            warnings.append(f"With {pairs} pairs to rank it among, p cannot fall below {1 / (1 + pairs):.3g}.")
        if not covered:
            warnings.append(
                f"The calibration covers dense models of at least {MIN_LAYERS} layers of {units} units: it says "
                "nothing of these."
            )
        warnings += [f"{name} is as like the teacher as the suspect is, so that nothing is claimed." for name in rivals]
        rank = math.log10((1 + calibration.above(self.share)) / (1 + pairs))
        return MatchResult(
            test="agreement of two matchings of the hidden units (after Zhu et al. 2025): calibrated, not exact",
            alpha=alpha,
            n=sum(layer.n for layer in self.layers),
            statistic=self.share,
            log10_pvalue=rank if covered and not rivals else 0.0,
            positive_verdict=MATCHED,
            randomness=MATCH_RANDOMNESS,
            assumptions=MATCH_ASSUMPTIONS,
            evasions=MATCH_EVASIONS,
            warnings=tuple(warnings),
            conclusive=covered,
            power_statement=CHANGED if covered else NOTHING,
            teacher=self.teacher,
            suspect=self.suspect,
            layers=self.layers,
            calibration=calibration,
            covered=covered,
            controls=tuple(controls),
        )


@dataclass(frozen=True, kw_only=True)
class WeightsResult:
    """Two tests of two models' weights, and one verdict of both.

    Attributes:
        exact: the test of the order of the units.
        calibrated: the test that survives shuffled units.
    """

    exact: IndependenceResult
    calibrated: MatchResult

    @property
    def keyed(self) -> bool:
        """Whether the order is a mark's. Then the exact test decides alone: siblings have like units too."""
        return self.exact.keyed is not None

    @property
    def verdict(self) -> str:
        """The verdict at the level alpha for both: each test at alpha / 2 (Bonferroni), a keyed order alone at alpha.

        `weights dependent` or `weights matched, units shuffled`; else `insufficient evidence`, or `no verdict` where
        neither test could compare anything.
        """
        level = math.log10(self.exact.alpha if self.keyed else self.exact.alpha / 2)
        if self.exact.log10_pvalue <= level:
            return DEPENDENT
        if not self.keyed and self.calibrated.log10_pvalue <= level:
            return MATCHED
        return INSUFFICIENT if self.exact.n else NO_VERDICT

    @property
    def rule(self) -> str:
        """How the verdict came about, in words."""
        who = "the exact test alone, at" if self.keyed else "the exact test, else the calibrated one, each at half of"
        return f"{who} alpha {self.exact.alpha:g}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the exact test; under `shuffled` the calibrated test, under `both` the verdict of both."""
        both = {"verdict": self.verdict, "alpha": self.exact.alpha, "rule": self.rule}
        return self.exact.to_dict() | {"shuffled": self.calibrated.to_dict(), "both": both}

    def noting(self, call: Call) -> WeightsResult:
        """The same result, with the call that gave it."""
        return replace(self, exact=self.exact.noting(call))

    def under(self, planned: Planned) -> WeightsResult:
        """The same result, with the plan that it was held to."""
        return replace(self, exact=self.exact.under(planned), calibrated=replace(self.calibrated, planned=planned))

    def save_html(self, path: str | Path, *, confidential: bool = False) -> None:
        """As `Result.save_html`."""
        save_html(self.to_dict(), path, confidential=confidential)

    def to_parts(self) -> list[Part]:
        """What the command prints: the verdict, and both tests."""
        found: list[Part] = [Heading(self.verdict), Rows({"decided by": self.rule})]
        for name, result in (("Exact", self.exact), ("Calibrated", self.calibrated)):
            found += [Paragraph(), Heading(f"{name}: {result.verdict}"), *result.to_parts()[1:]]
        return found

    def __str__(self) -> str:
        """The parts as plain text."""
        return plain(self.to_parts())

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, and a table for each test."""
        tables = "".join(one._repr_html_() for one in (self.exact, self.calibrated))
        return html_table(self.verdict, {"decided by": self.rule}, [], ()) + tables

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how many units of each layer keep their index, and how many two views match alike; returns the axes.

        Raises:
            StillmarkError: matplotlib is not installed.
        """
        ax = new_axes() if ax is None else ax
        numbers = [layer.teacher for layer in self.exact.layers]
        kept = [layer.fixed_points / max(1, layer.n) for layer in self.exact.layers]
        alike = [(layer.agreeing_views or 0) / max(1, layer.n) for layer in self.exact.layers]
        ax.plot(numbers, kept, marker="o", label="matched to their own index")
        ax.plot(numbers, alike, marker="s", label="matched alike by two views")
        ax.set_ylim(-0.05, 1.05)
        ax.set_xlabel("layer of the teacher")
        ax.set_ylabel("share of units")
        ax.set_title(self.verdict)
        ax.legend()
        return ax
