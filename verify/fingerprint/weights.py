"""Were the weights taken? Two models' hidden units, matched layer by layer, from safetensors.

The order of an MLP's hidden units means nothing: initialisation and training treat them alike, so that a model
with its units in any other order was as likely to come out. Match one model's units with another's by
similarity, and the matching is a uniform permutation, unless one model's weights come from the other's.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from verify.fingerprint import permutations
from verify.fingerprint.finding import Finding
from verify.fingerprint.layers import Units, Weights

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

DEPENDENT: Final = "weights dependent"
MATCHED: Final = "weights matched, units shuffled"
MOST: Final = 2048
"""Units of a teacher's layer that are matched; from a wider one so many are drawn."""

SKETCH: Final = 96
PADDING: Final = 1.05
"""Vocabularies of sizes within this ratio are taken for one, padded; where they are not one, that costs power only."""

STORED: Final = "as stored"
ALIGNED: Final = "aligned by the embeddings"

RANDOMNESS: Final = (
    "The p-value's randomness is the order of the teacher's hidden units (and, for the embedding, of its residual "
    "dimensions): random initial weights and a training that treats units alike make every order equally likely, "
    "in each layer on its own, whatever the suspect's weights are."
)
BREAKS: Final = (
    "Wrong if both models grew from the same initial weights (the same code and seed, or a common parent), if "
    "somebody sorted the units of both, or if the architecture tells units or dimensions apart (as sinusoidal "
    "positions added to the embedding do). Blind to a suspect whose units were shuffled: see the matched units."
)
MATCH_RANDOMNESS: Final = (
    "Calibrated, not exact: the share of units that two views (what a unit reads, what else it reads or writes) match "
    "to the same partner, ranked among pairs of independently trained models."
)
MATCH_BREAKS: Final = (
    "Assumes that this pair, if independent, would look like the pairs it is ranked among. Independent models that "
    "learn like units agree a little more than chance; a common parent makes them agree. Hidden by retraining, or by "
    "changing the basis and the vocabulary at once."
)


@dataclass(frozen=True)
class Matching:
    """One matched layer, or the embedding.

    Attributes:
        teacher, suspect: layer numbers; -1 for the embedding.
        n: units matched.
        units, total: units that the teacher's layer has, and the suspect's.
        fixed: units matched to the unit of their own index.
        ordered: length of the longest run (not contiguous) that kept its order.
        spearman: rank correlation of the matching with the identity.
        agreeing: units that both views match alike; None for the embedding.
    """

    teacher: int
    suspect: int
    n: int
    units: int
    total: int
    fixed: int
    ordered: int
    spearman: float
    agreeing: int | None

    @property
    def same(self) -> bool:
        """Whether the two layers have as many units, so that an index means the same in both."""
        return self.units == self.total

    @cached_property
    def log10_pvalue(self) -> float:
        """Of the fixed points if both layers have as many units, else of the order that was kept; a bound or exact."""
        if self.same:
            return permutations.fixed_points_log10_sf(self.fixed, self.n, self.total)
        return permutations.ordered_log10_sf(self.ordered, self.n)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "teacher": "embedding" if self.teacher < 0 else self.teacher,
            "suspect": "embedding" if self.suspect < 0 else self.suspect,
            "n": self.n,
            "units": self.units,
            "total": self.total,
            "fixed": self.fixed,
            "ordered": self.ordered,
            "spearman": self.spearman,
            "agreeing": self.agreeing,
            "log10_pvalue": self.log10_pvalue,
            "log10_pvalue_spearman": permutations.spearman_log10_sf(self.spearman, self.n),
            "log10_pvalue_spearman_t": permutations.spearman_log10_t(self.spearman, self.n),
        }


@dataclass(frozen=True)
class IndependenceResult(Finding):
    """The exact test that two models' weights are independent.

    Attributes:
        teacher, suspect: the model folders.
        layers: the matched layers, in order.
        embedding: the matched residual dimensions; None where the vocabularies do not match.
        basis: how rows of the two models were compared.
        skipped: what was not compared, and why.
        seed: of the shuffle that breaks ties.
    """

    teacher: str
    suspect: str
    layers: tuple[Matching, ...] = field(repr=False)
    embedding: Matching | None
    basis: str | None
    skipped: tuple[str, ...]
    seed: int

    @property
    def parts(self) -> tuple[Matching, ...]:
        """All that is combined."""
        return self.layers + (() if self.embedding is None else (self.embedding,))

    @property
    def n(self) -> int:
        """Units matched in all."""
        return sum(part.n for part in self.parts)

    @property
    def statistic(self) -> float:
        """Units matched to their own index, in all."""
        return sum(part.fixed for part in self.parts)

    @cached_property
    def log10_pvalue(self) -> float:
        """Fisher's combination over the layers and the embedding."""
        return permutations.fisher_log10([part.log10_pvalue for part in self.parts])

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
    def test(self) -> str:
        """The test's name, in words."""
        return (
            "hidden units matched by linear assignment on cosines; exact tail of the number of fixed points of a "
            "uniform permutation (where widths differ: a bound on the longest increasing subsequence); Fisher over all"
        )

    @property
    def positive(self) -> str:
        """The verdict where p <= alpha."""
        return DEPENDENT

    @property
    def randomness(self) -> str:
        """Where the p-value's randomness comes from, in words."""
        return RANDOMNESS

    @property
    def breaks(self) -> str:
        """What would make the p-value wrong, and what would hide a guilty suspect, in words."""
        return BREAKS

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        found = list(self.skipped)
        if not self.parts:
            found.insert(0, "Nothing could be compared: there is no evidence either way.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON."""
        return super().to_dict() | {
            "teacher": self.teacher,
            "suspect": self.suspect,
            "basis": self.basis,
            "seed": self.seed,
            "comparisons": self.comparisons,
            "layers": [layer.to_dict() for layer in self.layers],
            "embedding": self.embedding.to_dict() if self.embedding else None,
        }


@dataclass(frozen=True)
class MatchResult(Finding):
    """The statistic that survives shuffled units. Calibrated on pairs of independent models, not exact.

    Attributes:
        teacher, suspect: the model folders.
        share: of the units, those that both views match alike; the mean over layers.
        layers: the matched layers.
        calibration: the same share in pairs of independent models.
        source: which models these are.
    """

    teacher: str
    suspect: str
    share: float
    layers: tuple[Matching, ...] = field(repr=False)
    calibration: tuple[float, ...] = field(repr=False)
    source: str

    @property
    def n(self) -> int:
        """Units matched in all."""
        return sum(layer.n for layer in self.layers)

    @property
    def statistic(self) -> float:
        """The share of units."""
        return self.share

    @property
    def above(self) -> int:
        """Pairs of independent models that reach as far."""
        return len(self.calibration) - bisect_right(sorted(self.calibration), np.nextafter(self.share, -1.0))

    @property
    def log10_pvalue(self) -> float:
        """log10 of the rank, (1 + above) / (1 + pairs); 0 where nothing could be matched."""
        return math.log10((1 + self.above) / (1 + len(self.calibration))) if self.layers else 0.0

    @property
    def test(self) -> str:
        """The test's name, in words."""
        return "agreement of two matchings of the hidden units (after Zhu et al. 2025): calibrated, not exact"

    @property
    def positive(self) -> str:
        """The verdict where p <= alpha."""
        return MATCHED

    @property
    def randomness(self) -> str:
        """Where the p-value's randomness comes from, in words."""
        return MATCH_RANDOMNESS

    @property
    def breaks(self) -> str:
        """What would make the p-value wrong, and what would hide a guilty suspect, in words."""
        return MATCH_BREAKS

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        least = 1 / (1 + len(self.calibration))
        if least > self.alpha:
            return [f"With {len(self.calibration)} pairs to rank it among, p cannot fall below {least:.3g}."]
        return []

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON."""
        largest = max(self.calibration) if self.calibration else None
        return super().to_dict() | {
            "teacher": self.teacher,
            "suspect": self.suspect,
            "share": self.share,
            "calibration": {
                "pairs": len(self.calibration),
                "largest": largest,
                "above": self.above,
                "models": self.source,
            },
        }


@dataclass(frozen=True)
class Comparison:
    """Two models compared: what both tests are made from."""

    teacher: str
    suspect: str
    layers: tuple[Matching, ...]
    embedding: Matching | None
    basis: str | None
    skipped: tuple[str, ...]
    seed: int

    @property
    def share(self) -> float:
        """Of the units, those that both views match alike; the mean over layers."""
        shares = [(layer.agreeing or 0) / layer.n for layer in self.layers]
        return float(np.mean(shares)) if shares else 0.0

    def independence(self, alpha: float = 1e-3) -> IndependenceResult:
        """The exact test."""
        return IndependenceResult(
            alpha, self.teacher, self.suspect, self.layers, self.embedding, self.basis, self.skipped, self.seed
        )

    def match(self, calibration: Sequence[float], source: str, alpha: float = 1e-3) -> MatchResult:
        """The calibrated one; calibration: `share` of pairs of independent models, source: which these are."""
        return MatchResult(alpha, self.teacher, self.suspect, self.share, self.layers, tuple(calibration), source)


def compare(
    teacher: Path,
    suspect: Path,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Comparison:
    """Match two models' hidden units, a layer of each in memory at a time.

    Layers are paired by number; where the depths differ, in order, so that the layers' sketches agree best. A sketch
    does not know the order of the units, so that the choice leaves the matching uniform. Rows are compared as they are
    stored or, where the vocabularies have about the same size, in the basis that brings the embeddings closest (it
    undoes a rotation of the residual stream): whichever makes the first layers more alike, by a measure that does not
    know the order of the units either.

    Args:
        teacher: model folder with safetensors.
        suspect: another.
        seed: of the shuffle that breaks ties, and that draws units from wide layers.
        progress: called with layers done and in all.

    Raises:
        ModelError: a folder holds no model that can be read so.
    """
    ours, theirs = Weights(teacher), Weights(suspect)
    rng = np.random.default_rng(seed)
    skipped: list[str] = []
    embedding, rotation = None, None
    rows = _common(ours.vocabulary, theirs.vocabulary)
    if rows:
        product, cosines = _embeddings(ours, theirs, rows)
        # a whole basis has a sign; so has each column, which is all that a shuffle of the dimensions leaves free
        embedding = _judge(-1, -1, cosines, None, rng)
        rotation = _closest(product)
        del product, cosines
    else:
        skipped.append(
            f"The embeddings were not compared: {ours.vocabulary} rows against {theirs.vocabulary}, not one vocabulary."
        )
    bases: dict[str, F32 | None] = {}
    if ours.shape[1] == theirs.shape[1]:
        bases[STORED] = None
    if rotation is not None:
        bases[ALIGNED] = rotation
    found: list[Matching] = []
    basis = None
    if not bases:
        skipped.append(
            f"The layers were not compared: their rows have {ours.shape[1]} and {theirs.shape[1]} numbers, and no "
            "common vocabulary brings them together."
        )
    else:
        basis = _choose(ours.units(0), theirs.units(0), bases)
        pairs = _pair(ours, theirs, bases[basis])
        if ours.depth != theirs.depth:
            skipped.append(f"Of {ours.depth} and {theirs.depth} layers {len(pairs)} pairs were compared, in order.")
        for done, (a, b) in enumerate(pairs):
            progress(done, len(pairs))
            found.append(_layer(a, b, ours.units(a), theirs.units(b), bases[basis], rng))
        progress(len(pairs), len(pairs))
    return Comparison(str(teacher), str(suspect), tuple(found), embedding, basis, tuple(skipped), seed)


def independent_pairs() -> tuple[tuple[float, ...], str]:
    """`share` in pairs of small independent models, from benchmarks/independent.py, and which models these are.

    Their layers are narrow: chance alone makes their shares larger than those of a model of use.
    """
    found = json.loads(Path(__file__).with_name("independent.json").read_text())
    shares = [float(share) for share, number in found["share"].items() for _ in range(number)]
    return tuple(shares), str(found["models"])


def _common(ours: int | None, theirs: int | None) -> int:
    """Rows of two embeddings that may mean the same tokens: the first ones, where the sizes differ by padding only."""
    rows = min(ours or 0, theirs or 0)
    return rows if rows and max(ours or 0, theirs or 0) <= PADDING * rows else 0


def _layer(a: int, b: int, ours: Units, theirs: Units, rotation: F32 | None, rng: np.random.Generator) -> Matching:
    kept = np.arange(len(ours.up))
    if len(kept) > MOST:
        kept = np.sort(rng.choice(len(kept), MOST, replace=False))
    views = [
        np.abs(cosines) if signless else cosines
        for one, other, signless in _views(ours, theirs)
        for cosines in [_cosines(_turn(one[kept], rotation), other)]
    ]
    first, second = (_match(view, rng) for view in views[:2])
    whole = _match(np.sum(views, axis=0, dtype=np.float32), rng)
    return _summary(a, b, kept, whole, len(ours.up), len(theirs.up), int((first == second)[first >= 0].sum()))


def _views(ours: Units, theirs: Units) -> list[tuple[F32, F32, bool]]:
    """What units are compared by: pairs of [h, d], and whether a unit's sign is free. The first two make `share`."""
    rest = [(ours.up, theirs.up, True), (ours.down, theirs.down, True)]
    if ours.gate is not None and theirs.gate is not None:
        return [(ours.gate, theirs.gate, False), *rest]
    return [(ours.up, theirs.up, False), rest[1]]


def _judge(a: int, b: int, cosines: F32, agreeing: int | None, rng: np.random.Generator) -> Matching:
    order = _match(cosines, rng)
    return _summary(a, b, np.arange(len(cosines)), order, len(cosines), cosines.shape[1], agreeing)


def _summary(a: int, b: int, kept: I64, order: I64, units: int, total: int, agreeing: int | None) -> Matching:
    matched = order >= 0
    index, partner = kept[matched], order[matched]
    return Matching(
        a,
        b,
        n=len(index),
        units=units,
        total=total,
        fixed=int((index == partner).sum()),
        ordered=permutations.longest_increasing(partner),
        spearman=permutations.spearman(partner),
        agreeing=agreeing,
    )


def _match(similarity: F32, rng: np.random.Generator) -> I64:
    """The best assignment: for each row its column, int64, or -1 where there are more rows than columns.

    Rows and columns are shuffled before: where similarities tie (units that are dead in both models, say), the
    solver would prefer the order in which it meets them.
    """
    rows, columns = (rng.permutation(size) for size in similarity.shape)
    found_rows, found_columns = linear_sum_assignment(similarity[np.ix_(rows, columns)], maximize=True)
    order = np.full(len(similarity), -1, np.int64)
    order[rows[found_rows]] = columns[found_columns]
    return order


def _turn(rows: F32, rotation: F32 | None) -> F32:
    return rows if rotation is None else rows @ rotation


def _cosines(a: F32, b: F32) -> F32:
    """Cosines between rows, [m, n]; 0 for a row of zeros or one that holds no numbers."""
    product: F32 = _unit(a) @ _unit(b).T
    return product


def _unit(rows: F32) -> F32:
    rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), np.float32)


def _embeddings(ours: Weights, theirs: Weights, rows: int) -> tuple[F32, F32]:
    """Centred products of the embeddings' columns, [d, d'], and the sizes of their cosines."""
    sums = [np.zeros(model.shape[1]) for model in (ours, theirs)]
    squares = [np.zeros(model.shape[1]) for model in (ours, theirs)]
    product = np.zeros((ours.shape[1], theirs.shape[1]))
    for a, b in zip(ours.embedding(rows), theirs.embedding(rows), strict=True):
        product += a.T @ b
        for i, part in enumerate((a, b)):
            sums[i] += part.sum(axis=0, dtype=np.float64)
            squares[i] += (part.astype(np.float64) ** 2).sum(axis=0)
    product -= np.outer(sums[0], sums[1]) / rows
    lengths = [np.sqrt(np.maximum(square - total**2 / rows, 0)) for square, total in zip(squares, sums, strict=True)]
    scale = np.outer(*lengths)
    cosines = np.abs(np.divide(product, scale, out=np.zeros_like(product), where=scale > 0))
    return product.astype(np.float32), np.nan_to_num(cosines).astype(np.float32)


def _closest(product: F32) -> F32:
    """The (semi-)orthogonal matrix [d, d'] nearest to a product of embeddings (Schönemann 1966)."""
    u, _, v = np.linalg.svd(np.nan_to_num(product), full_matrices=False)
    closest: F32 = np.asarray(u @ v, np.float32)
    return closest


def _choose(ours: Units, theirs: Units, bases: dict[str, F32 | None]) -> str:
    """The basis in which the units of a layer have the more similar partners."""
    if len(bases) == 1:
        return next(iter(bases))

    def alike(rotation: F32 | None) -> float:
        one, other, _ = _views(ours, theirs)[0]
        return float(_cosines(_turn(one, rotation), other).max(axis=1).astype(np.float64).mean())

    return max(bases, key=lambda name: alike(bases[name]))


def _pair(ours: Weights, theirs: Weights, rotation: F32 | None) -> list[tuple[int, int]]:
    """Which layers to compare: by number, or in order so that the sketches' similarity is largest in sum."""
    if ours.depth == theirs.depth:
        return [(layer, layer) for layer in range(ours.depth)]
    rng = np.random.default_rng(0)
    probe = rng.normal(size=(theirs.shape[1], SKETCH)).astype(np.float32)
    here = _sketches(ours, probe if rotation is None else rotation @ probe)
    there = _sketches(theirs, probe)
    mean = np.concatenate([here, there]).mean(axis=0)
    similarity = 1 + _unit(here - mean) @ _unit(there - mean).T
    best = np.zeros((ours.depth + 1, theirs.depth + 1))
    for a in range(ours.depth):
        for b in range(theirs.depth):
            best[a + 1, b + 1] = max(best[a, b + 1], best[a + 1, b], best[a, b] + similarity[a, b])
    pairs, a, b = [], ours.depth, theirs.depth
    while a and b:
        if best[a, b] == best[a - 1, b]:
            a -= 1
        elif best[a, b] == best[a, b - 1]:
            b -= 1
        else:
            a, b = a - 1, b - 1
            pairs.append((a, b))
    return pairs[::-1]


def _sketches(model: Weights, probe: F32) -> F32:
    """For each layer a vector that does not know its units' order: second moments of what they read."""
    rows = []
    for layer in range(model.depth):
        units = model.units(layer)
        read = _unit(units.up if units.gate is None else units.gate) @ probe
        rows.append((read.T @ read).ravel())
    return _unit(np.stack(rows))
