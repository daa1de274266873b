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

from verify.fingerprint.alignment import (
    ALIGNED,
    F32,
    STORED,
    Bases,
    closest_rotation,
    common_rows,
    cosines_of,
    embedding_products,
    pair_layers,
    pair_mlps,
    turned,
)
from verify.fingerprint.comparison import WeightsComparison
from verify.fingerprint.independence import LayerMatch
from verify.fingerprint.layers import Units, Weights
from verify.fingerprint.order import keyed_order
from verify.stats import permutations
from watermark import Mark
from watermark.progress import Progress, silent

I64 = npt.NDArray[np.int64]

MAX_MATCHED_UNITS: Final = 2048
"""Units of a teacher's layer that are matched; from a wider one so many are drawn."""


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
    know the order of the units either. Where a layer is a mixture of experts, each of them is an MLP, and the two MLPs
    that are most alike by their sketches are compared.

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
    embedding, bases, unaligned = _aligned_bases(ours, theirs, rng)
    pairs, unpaired = _layer_pairs(ours, theirs, bases)
    found: list[LayerMatch] = []
    uncompared: list[str] = []
    used: set[str] = set()
    seen: set[bytes] = set()
    gated = True
    for done, (a, b) in enumerate(pairs):
        progress(done, len(pairs))
        mlp, partner = pair_mlps(ours, theirs, a, b, bases)
        one, other = ours.units(a, mlp), theirs.units(b, partner)
        gated = gated and one.gate is not None and other.gate is not None
        digest = hashlib.sha256(one.up.tobytes()).digest()
        if digest in seen or not len(one.nonzero) or not len(other.nonzero):
            uncompared.append(f"Layer {a} was not compared: a copy of another layer, nothing but zeros, or no numbers.")
            continue
        seen.add(digest)
        basis = _choose(one, other, bases)
        used.add(basis)
        drawn = None if order is None else keyed_order(order, a, ours.digest(a, mlp), len(one.up))
        ordered = one if drawn is None else one.in_order(drawn)
        match = _layer(a, b, ordered, other, bases[basis], rng, drawn)
        found.append(replace(match, teacher_mlp=mlp, suspect_mlp=partner))
    if pairs:
        progress(len(pairs), len(pairs))
    if any((one.teacher_mlp, one.suspect_mlp) != (None, None) for one in found):
        uncompared.append("Of a mixture of experts one MLP in each layer was compared: the one most like the other's.")
    return WeightsComparison(
        teacher=str(teacher),
        suspect=str(suspect),
        layers=tuple(found),
        embedding=embedding,
        basis=" or ".join(sorted(used)) or None,
        gated=gated,
        skipped=(*ours.skipped, *theirs.skipped, *unaligned, *unpaired, *uncompared),
        seed=seed,
        keyed=None if order is None else order.commitment,
    )


def _aligned_bases(
    ours: Weights, theirs: Weights, rng: np.random.Generator
) -> tuple[LayerMatch | None, Bases, list[str]]:
    """The embeddings matched (None: not one vocabulary), the bases to compare rows in, and what was not compared."""
    embedding, rotation, skipped = None, None, []
    if rows := common_rows(ours.embedding_shape, theirs.embedding_shape):
        product, cosines = embedding_products(ours, theirs, rows)
        # a whole basis has a sign; so has each column, which is all that a shuffle of the dimensions leaves free
        embedding = _judge(cosines, rng)
        if not embedding.n:
            skipped.append("The embeddings were not compared: one holds nothing but zeros, or no numbers.")
        if product.shape == (ours.width, theirs.width):
            rotation = closest_rotation(product)
    else:
        sizes = [None if shape is None else shape[0] for shape in (ours.embedding_shape, theirs.embedding_shape)]
        skipped.append(f"The embeddings were not compared: {sizes[0]} rows against {sizes[1]}, not one vocabulary.")
    bases: Bases = {STORED: None} if ours.width == theirs.width else {}
    return embedding, bases if rotation is None else bases | {ALIGNED: rotation}, skipped


def _layer_pairs(ours: Weights, theirs: Weights, bases: Bases) -> tuple[list[tuple[int, int]], list[str]]:
    """The layers to compare, and why some or all are not."""
    if not ours.layers or not theirs.layers:
        return [], ["The layers were not compared: one of the models has no MLP of a known naming."]
    if not bases:
        return [], [
            f"The layers were not compared: their rows have {ours.width} and {theirs.width} numbers, and no common "
            "vocabulary brings them together."
        ]
    pairs = pair_layers(ours, theirs, bases)
    if ours.layers == theirs.layers:
        return pairs, []
    counts = f"{len(ours.layers)} and {len(theirs.layers)}"
    return pairs, [f"Of {counts} layers {len(pairs)} pairs were compared, in order."]


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
        for cosines in [cosines_of(turned(one[kept], rotation), other[theirs.nonzero])]
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


def _choose(ours: Units, theirs: Units, bases: Bases) -> str:
    """The basis in which the units of a layer have the more similar partners."""
    if len(bases) == 1:
        return next(iter(bases))
    one, other, _ = _views(ours, theirs)[0]
    one, other = _some(one[ours.nonzero]), other[theirs.nonzero]

    def alike(rotation: F32 | None) -> float:
        return float(cosines_of(turned(one, rotation), other).max(axis=1).astype(np.float64).mean())

    return max(bases, key=lambda name: alike(bases[name]))


def _some(rows: F32) -> F32:
    """At most MAX_MATCHED_UNITS rows, chosen by what they hold and not by where they stand."""
    return rows[np.argsort(rows[:, 0], kind="stable")[:MAX_MATCHED_UNITS]]
