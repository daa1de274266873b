"""The results of two tests of matched hidden units: an exact one, and a calibrated one that survives a shuffle."""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.results import NO_VERDICT, Result, plural
from verify.stats import permutations

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerMatch:
    """One matched layer, or the embedding.

    Attributes:
        teacher, suspect: layer numbers; -1 for the embedding.
        n: units matched.
        units, total: units that the teacher's layer has, and the suspect's.
        nonzero: the teacher's with any number but zero: only such are matched.
        fixed_points: units matched to the unit of their own index.
        longest_increasing: length of the longest run (not contiguous) that kept its order.
        spearman: rank correlation of the matching with the identity.
        agreeing_views: units that both views match alike; None for the embedding.
        at_released_index: in a keyed order, units matched to their index in the teacher's folder; else None.
        teacher_mlp, suspect_mlp: in a mixture of experts `shared` or an expert's number; None: a dense MLP.
    """

    teacher: int
    suspect: int
    n: int
    units: int
    total: int
    nonzero: int
    fixed_points: int
    longest_increasing: int
    spearman: float
    agreeing_views: int | None
    at_released_index: int | None = None
    teacher_mlp: str | None = None
    suspect_mlp: str | None = None

    @property
    def same(self) -> bool:
        """Whether the two layers have as many units, so that an index means the same in both."""
        return self.units == self.total

    @cached_property
    def log10_pvalue(self) -> float:
        """Of the fixed points if both layers have as many units, else of the order that was kept; a bound or exact.

        Units of zeros are left out. The null deals the teacher's others to their places at random, so that k given
        units are matched to their own with a probability of at most (nonzero - k)! / nonzero!, whatever the suspect's.
        """
        if self.same:
            return permutations.fixed_points_log10_sf(self.fixed_points, self.n, self.nonzero)
        return permutations.ordered_log10_sf(self.longest_increasing, self.n)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "teacher": "embedding" if self.teacher < 0 else self.teacher,
            "suspect": "embedding" if self.suspect < 0 else self.suspect,
            "teacher_mlp": self.teacher_mlp,
            "suspect_mlp": self.suspect_mlp,
            "n": self.n,
            "units": self.units,
            "total": self.total,
            "nonzero": self.nonzero,
            "fixed_points": self.fixed_points,
            "longest_increasing": self.longest_increasing,
            "spearman": self.spearman,
            "agreeing_views": self.agreeing_views,
            "log10_pvalue": self.log10_pvalue,
            "log10_pvalue_spearman": permutations.spearman_log10_sf(self.spearman, self.n),
            "log10_pvalue_spearman_t": permutations.spearman_log10_t(self.spearman, self.n),
        }


@dataclass(frozen=True, kw_only=True)
class IndependenceResult(Result):
    """The exact test that two models' weights are independent.

    n: units matched; statistic: units matched to their own index.

    Attributes:
        teacher, suspect: the model folders.
        layers: the matched layers, in order.
        embedding: the matched residual dimensions; None where the vocabularies do not match.
        basis: how rows of the two models were compared.
        seed: of the shuffle that breaks ties.
        keyed: commitment of the mark in whose order the teacher was released; None: in an order of no meaning.
    """

    teacher: str
    suspect: str
    layers: tuple[LayerMatch, ...] = field(repr=False)
    embedding: LayerMatch | None
    basis: str | None
    seed: int
    keyed: str | None = None

    @property
    def parts(self) -> tuple[LayerMatch, ...]:
        """All that is combined."""
        return self.layers + (() if self.embedding is None else (self.embedding,))

    @property
    def comparisons(self) -> dict[str, float]:
        """Fisher over Spearman's rho: by a guaranteed bound, and by the t approximation (Zhu et al. 2025)."""
        return {
            name: permutations.fisher_log10([tail(part.spearman, part.n) for part in self.parts])
            for name, tail in (
                ("spearman_bound", permutations.spearman_log10_sf),
                ("spearman_t", permutations.spearman_log10_t),
            )
        }

    @property
    def evidence(self) -> str:
        return f"{plural(self.n, 'unit')} in {plural(len(self.layers), 'layer')}"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "teacher": self.teacher,
            "suspect": self.suspect,
            "basis": self.basis,
            "seed": self.seed,
            "keyed": self.keyed,
            "comparisons": self.comparisons,
            "layers": [layer.to_dict() for layer in self.layers],
            "embedding": self.embedding.to_dict() if self.embedding else None,
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        matched = f"{self.statistic:,} of {self.n:,} matched to their own index"
        units = f"{matched}, rows {self.basis}" if self.basis else matched
        return {"p-value": rows["p-value"], "units": units, "test": self.test}

    def _draw(self, ax: Axes) -> None:
        numbers = [layer.teacher for layer in self.layers]
        ax.bar(numbers, [layer.fixed_points / max(1, layer.n) for layer in self.layers])
        ax.set_ylim(0, 1)
        ax.set_xlabel("layer of the teacher")
        ax.set_ylabel("share of units matched to their own index")


@dataclass(frozen=True)
class Calibration:
    """The share of like-matched units in pairs of small independent models.

    Attributes:
        shares: one a pair, ascending.
        models: which models these are.
        units: of their layers; narrower ones are not covered.
    """

    shares: tuple[float, ...] = field(repr=False)
    models: str
    units: int

    def above(self, share: float) -> int:
        """Pairs that reach as far."""
        return len(self.shares) - bisect_left(self.shares, share)


def independent_pairs(gated: bool) -> Calibration:
    """What benchmarks/independent.py found among models with a gate, or without one."""
    found = json.loads(Path(__file__).with_name("independent.json").read_text())["gated" if gated else "ungated"]
    shares = (float(share) for share, number in found["share"].items() for _ in range(number))
    return Calibration(tuple(sorted(shares)), str(found["models"]), int(found["units"]))


@dataclass(frozen=True, kw_only=True)
class MatchResult(Result):
    """The statistic that survives shuffled units. Calibrated on pairs of independent models, not exact.

    n: units matched; statistic: the share of them that both views match alike.

    Attributes:
        teacher, suspect: the model folders.
        layers: the matched layers.
        calibration: the same share in pairs of independent models.
        covered: the calibration covers this pair: as many layers, and layers as wide, as its models have.
        controls: models that have nothing to do with the teacher, and their shares with it.
    """

    teacher: str
    suspect: str
    layers: tuple[LayerMatch, ...] = field(repr=False)
    calibration: Calibration
    covered: bool
    controls: tuple[tuple[str, float], ...] = ()

    @property
    def share(self) -> float:
        """Of the units, those that both views match alike; the mean over layers."""
        return self.statistic

    @property
    def above(self) -> int:
        """Pairs of independent models that reach as far."""
        return self.calibration.above(self.share)

    @property
    def verdict(self) -> str:
        """As in every result; `no verdict` where the calibration does not cover these models."""
        return super().verdict if self.covered else NO_VERDICT

    @property
    def evidence(self) -> str:
        return f"{plural(self.n, 'unit')} in {plural(len(self.layers), 'layer')}"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "teacher": self.teacher,
            "suspect": self.suspect,
            "share": self.share,
            "calibration": {
                "pairs": len(self.calibration.shares),
                "largest": self.calibration.shares[-1],
                "above": self.above,
                "models": self.calibration.models,
                "covered": self.covered,
            },
            "controls": dict(self.controls),
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        largest = self.calibration.shares[-1]
        share = f"{self.share:.4f}   (independent pairs: at most {largest:.4f})"
        return {"p-value": rows["p-value"], "share": share, "test": self.test}

    def _draw(self, ax: Axes) -> None:
        ax.hist(
            self.calibration.shares, bins=50, color="C7", label=f"{len(self.calibration.shares):,} independent pairs"
        )
        ax.axvline(self.share, color="C3", label="teacher and suspect")
        ax.set_xlabel("share of units matched alike by two views")
        ax.legend()
