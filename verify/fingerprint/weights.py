"""Were the weights taken? Two models' hidden units, matched layer by layer, from safetensors.

The order of an MLP's hidden units means nothing: initialisation and training treat them alike, so that a model
with its units in any other order was as likely to come out. Match one model's units with another's by
similarity, and the matching is a uniform permutation, unless one model's weights come from the other's.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from verify.fingerprint.independence import LayerMatch, WeightsComparison
from verify.fingerprint.layers import Units, Weights, scaled_rows
from verify.fingerprint.order import keyed_order
from verify.stats import permutations
from watermark import Mark
from watermark.progress import Progress, silent

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

MAX_MATCHED_UNITS: Final = 2048
"""Units of a teacher's layer that are matched; from a wider one so many are drawn."""

SKETCH: Final = 96
PADDING: Final = 1.05
"""Vocabularies of sizes within this ratio are taken for one, padded; where they are not one, that costs power only."""

STORED: Final = "as stored"
ALIGNED: Final = "aligned by the embeddings"


def compare(
    teacher: Path,
    suspect: Path,
    seed: int = 0,
    progress: Progress = silent,
    order: Mark | None = None,
) -> WeightsComparison:
    """Match two models' hidden units, a layer of each in memory at a time.

    Layers are paired by number; where the depths differ, in order, so that the layers' sketches agree best. A sketch
    does not know the order of the units, so that the choice leaves the matching uniform. Rows are compared as they are
    stored or, where the vocabularies have about the same size, in the basis that brings the embeddings closest (it
    undoes a rotation of the residual stream): whichever makes a pair of layers more alike, by a measure that does not
    know the order of the units either.

    Args:
        teacher: model folder with safetensors.
        suspect: another.
        seed: of the shuffle that breaks ties, and that draws units from wide layers.
        progress: called with layers done and in all.
        order: the mark in whose order the teacher was released (`verify.fingerprint.order`); `teacher` is the model
            from before that.

    Raises:
        ModelError: a folder holds no model that can be read so.
    """
    ours, theirs = Weights(teacher), Weights(suspect)
    rng = np.random.default_rng(seed)
    skipped = [*ours.skipped, *theirs.skipped]
    embedding, rotation = None, None
    if rows := _common(ours.embedding_shape, theirs.embedding_shape):
        product, cosines = _embeddings(ours, theirs, rows)
        # a whole basis has a sign; so has each column, which is all that a shuffle of the dimensions leaves free
        embedding = _judge(cosines, rng)
        if not embedding.n:
            skipped.append("The embeddings were not compared: one holds nothing but zeros.")
        if product.shape == (ours.width, theirs.width):
            rotation = _closest(product)
        del product, cosines
    else:
        sizes = [None if shape is None else shape[0] for shape in (ours.embedding_shape, theirs.embedding_shape)]
        skipped.append(f"The embeddings were not compared: {sizes[0]} rows against {sizes[1]}, not one vocabulary.")
    bases: dict[str, F32 | None] = {}
    if ours.width == theirs.width:
        bases[STORED] = None
    if rotation is not None:
        bases[ALIGNED] = rotation
    found: list[LayerMatch] = []
    used: set[str] = set()
    gated = True
    if not ours.layers or not theirs.layers:
        skipped.append("The layers were not compared: one of the models has no MLP of a known naming.")
    elif not bases:
        skipped.append(
            f"The layers were not compared: their rows have {ours.width} and {theirs.width} numbers, and no common "
            "vocabulary brings them together."
        )
    else:
        pairs = _pair(ours, theirs, list(bases.values()))
        if ours.layers != theirs.layers:
            skipped.append(
                f"Of {len(ours.layers)} and {len(theirs.layers)} layers {len(pairs)} pairs were compared, in order."
            )
        seen: set[bytes] = set()
        for done, (a, b) in enumerate(pairs):
            progress(done, len(pairs))
            one, other = ours.units(a), theirs.units(b)
            gated = gated and one.gate is not None and other.gate is not None
            digest = hashlib.sha256(one.up.tobytes()).digest()
            if digest in seen or not len(one.nonzero) or not len(other.nonzero):
                skipped.append(f"Layer {a} was not compared: a copy of another layer, or nothing but zeros.")
                continue
            seen.add(digest)
            basis = _choose(one, other, bases)
            used.add(basis)
            if order is None:
                found.append(_layer(a, b, one, other, bases[basis], rng))
            else:
                drawn = keyed_order(order, a, ours.digest(a), len(one.up))
                found.append(_layer(a, b, one.in_order(drawn), other, bases[basis], rng, drawn))
        progress(len(pairs), len(pairs))
    keyed = None if order is None else order.commitment
    bases_used = " or ".join(sorted(used)) or None
    return WeightsComparison(
        str(teacher), str(suspect), tuple(found), embedding, bases_used, gated, tuple(skipped), seed, keyed
    )


def _common(ours: tuple[int, int] | None, theirs: tuple[int, int] | None) -> int:
    """Rows of two embeddings that may mean the same tokens: the first ones, where the sizes differ by padding only."""
    if ours is None or theirs is None:
        return 0
    rows = min(ours[0], theirs[0])
    return rows if max(ours[0], theirs[0]) <= PADDING * rows else 0


def _layer(
    a: int,
    b: int,
    ours: Units,
    theirs: Units,
    rotation: F32 | None,
    rng: np.random.Generator,
    drawn: I64 | None = None,
) -> LayerMatch:
    """One pair of layers; drawn: which unit of the teacher's folder stands at each place of `ours`, if not that one."""
    kept = ours.nonzero
    if len(kept) > MAX_MATCHED_UNITS:
        kept = np.sort(rng.choice(kept, MAX_MATCHED_UNITS, replace=False))
    views = [
        np.abs(cosines) if signless else cosines
        for one, other, signless in _views(ours, theirs)
        for cosines in [_cosines(_turn(one[kept], rotation), other[theirs.nonzero])]
    ]
    first, second = (_match(view, rng) for view in views[:2])
    agreeing_views = int((first == second)[first >= 0].sum())
    whole = _match(np.sum(views, axis=0, dtype=np.float32), rng)
    matched = whole >= 0
    index, partner = kept[matched], theirs.nonzero[whole[matched]]
    found = _summary(a, b, index, partner, (len(ours.up), len(theirs.up), len(ours.nonzero)), agreeing_views)
    return found if drawn is None else replace(found, at_released_index=int((drawn[index] == partner).sum()))


def _views(ours: Units, theirs: Units) -> list[tuple[F32, F32, bool]]:
    """What units are compared by: pairs of [h, d], and whether a unit's sign is free. The first two make `share`."""
    rest = [(ours.up, theirs.up, True), (ours.down, theirs.down, True)]
    if ours.gate is not None and theirs.gate is not None:
        return [(ours.gate, theirs.gate, False), *rest]
    return [(ours.up, theirs.up, False), rest[1]]


def _judge(cosines: F32, rng: np.random.Generator) -> LayerMatch:
    """The embedding: its columns matched, [d, d']; columns of zeros are like no other, and are left out."""
    ours, theirs = (np.flatnonzero(cosines.any(axis=axis)) for axis in (1, 0))
    order = _match(cosines[np.ix_(ours, theirs)], rng)
    matched = order >= 0
    return _summary(-1, -1, ours[matched], theirs[order[matched]], (*cosines.shape, len(ours)), None)


def _summary(
    a: int, b: int, index: I64, partner: I64, sizes: tuple[int, int, int], agreeing_views: int | None
) -> LayerMatch:
    return LayerMatch(
        a,
        b,
        len(index),
        *sizes,
        fixed_points=int((index == partner).sum()),
        longest_increasing=permutations.longest_increasing(partner),
        spearman=permutations.spearman(partner),
        agreeing_views=agreeing_views,
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
    """Rows of length 1; a row of zeros stays one, and so becomes one that holds what is no number."""
    rows = scaled_rows(rows)  # else squares overflow, or vanish
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), np.float32)


def _embeddings(ours: Weights, theirs: Weights, rows: int) -> tuple[F32, F32]:
    """Centred products of the columns of the embeddings, with rows of length 1: [d, d'], and sizes of their cosines."""
    widths = [shape[1] for shape in (ours.embedding_shape, theirs.embedding_shape) if shape is not None]
    sums = [np.zeros(width) for width in widths]
    squares = [np.zeros(width) for width in widths]
    product = np.zeros(widths)
    for one, other in zip(ours.embedding(rows), theirs.embedding(rows), strict=True):
        a, b = _unit(one), _unit(other)  # so that no row, of a token that nobody uses, drowns the others
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
    one, other, _ = _views(ours, theirs)[0]
    one, other = _some(one[ours.nonzero]), other[theirs.nonzero]

    def alike(rotation: F32 | None) -> float:
        return float(_cosines(_turn(one, rotation), other).max(axis=1).astype(np.float64).mean())

    return max(bases, key=lambda name: alike(bases[name]))


def _some(rows: F32) -> F32:
    """At most MAX_MATCHED_UNITS rows, chosen by what they hold and not by where they stand."""
    return rows[np.argsort(rows[:, 0], kind="stable")[:MAX_MATCHED_UNITS]]


def _pair(ours: Weights, theirs: Weights, bases: list[F32 | None]) -> list[tuple[int, int]]:
    """Which layers to compare: by number, or in order so that the sum of the sketches' similarities is the largest."""
    if ours.layers == theirs.layers:
        return [(layer, layer) for layer in ours.layers]
    assert theirs.width is not None
    rng = np.random.default_rng(0)
    probe = rng.normal(size=(theirs.width, SKETCH)).astype(np.float32)
    probes = [probe if rotation is None else rotation @ probe for rotation in bases]
    there_layers, known = _sketches(theirs, [probe])
    here_layers, sketched = _sketches(ours, probes)
    similarity = np.zeros((len(here_layers), len(there_layers)))
    for here, there in zip(sketched, known * len(sketched), strict=True):
        mean = np.concatenate([here, there]).mean(axis=0)
        similarity = np.maximum(similarity, 1 + _unit(here - mean) @ _unit(there - mean).T)
    best = np.zeros((len(here_layers) + 1, len(there_layers) + 1))
    for a in range(len(here_layers)):
        for b in range(len(there_layers)):
            best[a + 1, b + 1] = max(best[a, b + 1], best[a + 1, b], best[a, b] + similarity[a, b])
    pairs, a, b = [], len(here_layers), len(there_layers)
    while a and b:
        if best[a, b] == best[a - 1, b]:
            a -= 1
        elif best[a, b] == best[a, b - 1]:
            b -= 1
        else:
            a, b = a - 1, b - 1
            pairs.append((here_layers[a], there_layers[b]))
    return pairs[::-1]


def _sketches(model: Weights, probes: list[F32]) -> tuple[list[int], list[F32]]:
    """Layers with nonzero units; by probe, for each a vector that does not know their order."""
    layers, rows = [], list[list[F32]]()
    for layer in model.layers:
        units = model.units(layer)
        if len(units.nonzero):
            layers.append(layer)
            read = _unit((units.up if units.gate is None else units.gate)[units.nonzero])
            rows.append([(part.T @ part).ravel() for part in (read @ probe for probe in probes)])
    return layers, [_unit(np.stack(sketch)) for sketch in zip(*rows, strict=True)]
