"""How two models are brought together before their units are matched: in which basis, and which layers.

Nothing here depends on the order of the hidden units, so that no choice makes a matching of theirs less uniform.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from verify.fingerprint.layers import Weights, scaled_rows

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bases = dict[str, F32 | None]
"""A name, and the matrix [d, d'] that takes the teacher's rows into the suspect's basis; None: they are in it."""

Mlps = tuple[int, tuple[str | None, ...]]
"""A layer's number, and some of its MLPs."""

SKETCH: Final = 96
EXPERT_SKETCH: Final = 16
PADDING: Final = 1.05
"""Vocabularies of sizes within this ratio are taken for one, padded; where they are not one, that costs power only."""

STORED: Final = "as stored"
ALIGNED: Final = "aligned by the embeddings"


def common_rows(ours: tuple[int, int] | None, theirs: tuple[int, int] | None) -> int:
    """Rows of two embeddings that may mean the same tokens: the first ones, where the sizes differ by padding only."""
    if ours is None or theirs is None:
        return 0
    rows = min(ours[0], theirs[0])
    return rows if max(ours[0], theirs[0]) <= PADDING * rows else 0


def embedding_products(ours: Weights, theirs: Weights, rows: int) -> tuple[F32, F32]:
    """Centred products of the columns of the embeddings, with rows of length 1: [d, d'], and sizes of their cosines."""
    widths = [shape[1] for shape in (ours.embedding_shape, theirs.embedding_shape) if shape is not None]
    sums = [np.zeros(width) for width in widths]
    squares = [np.zeros(width) for width in widths]
    product = np.zeros(widths)
    for one, other in zip(ours.embedding(rows), theirs.embedding(rows), strict=True):
        a, b = unit_rows(one), unit_rows(other)  # so that no row, of a token that nobody uses, drowns the others
        product += a.T @ b
        for i, part in enumerate((a, b)):
            sums[i] += part.sum(axis=0, dtype=np.float64)
            squares[i] += (part.astype(np.float64) ** 2).sum(axis=0)
    product -= np.outer(sums[0], sums[1]) / rows
    lengths = [np.sqrt(np.maximum(square - total**2 / rows, 0)) for square, total in zip(squares, sums, strict=True)]
    scale = np.outer(*lengths)
    cosines = np.abs(np.divide(product, scale, out=np.zeros_like(product), where=scale > 0))
    return product.astype(np.float32), np.nan_to_num(cosines).astype(np.float32)


def closest_rotation(product: F32) -> F32:
    """The (semi-)orthogonal matrix [d, d'] nearest to a product of embeddings (Schönemann 1966)."""
    u, _, v = np.linalg.svd(np.nan_to_num(product), full_matrices=False)
    closest: F32 = np.asarray(u @ v, np.float32)
    return closest


def pair_layers(ours: Weights, theirs: Weights, bases: Bases) -> list[tuple[int, int]]:
    """Which layers to compare: by number, or in order so that the sum of the sketches' similarities is the largest.

    Both models have layers, and there is a basis at least.
    """
    if ours.layers == theirs.layers:
        return [(layer, layer) for layer in ours.layers]
    here, there = ([(layer, model.mlps(layer)) for layer in model.layers] for model in (ours, theirs))
    here_layers, there_layers, similarity = _similarity(ours, theirs, here, there, bases, SKETCH)
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
            pairs.append((ours.layers[here_layers[a]], theirs.layers[there_layers[b]]))
    return pairs[::-1]


def pair_mlps(ours: Weights, theirs: Weights, a: int, b: int, bases: Bases) -> tuple[str | None, str | None]:
    """Which MLPs of two layers to compare: the most alike; in a mixture of experts there are several."""
    here, there = ours.mlps(a), theirs.mlps(b)
    if len(here) == len(there) == 1:
        return here[0], there[0]
    known_here, known_there, similarity = _similarity(
        ours, theirs, [(a, (mlp,)) for mlp in here], [(b, (mlp,)) for mlp in there], bases, EXPERT_SKETCH
    )
    if not similarity.size:
        return here[0], there[0]
    i, j = np.unravel_index(similarity.argmax(), similarity.shape)
    return here[known_here[i]], there[known_there[j]]


def _similarity(
    ours: Weights, theirs: Weights, here: list[Mlps], there: list[Mlps], bases: Bases, size: int
) -> tuple[list[int], list[int], F64]:
    """How alike groups of MLPs are, by sketches, in the best basis: float64, and which groups of each have units."""
    assert theirs.width is not None
    rng = np.random.default_rng(0)
    probe = rng.normal(size=(theirs.width, size)).astype(np.float32)
    probes = [probe if rotation is None else rotation @ probe for rotation in bases.values()]
    known_there, known = _sketches(theirs, there, [probe])
    known_here, sketched = _sketches(ours, here, probes)
    similarity = np.zeros((len(known_here), len(known_there)))
    for one, other in zip(sketched, known * len(sketched), strict=True):
        mean = np.concatenate([one, other]).mean(axis=0)
        similarity = np.maximum(similarity, 1 + unit_rows(one - mean) @ unit_rows(other - mean).T)
    return known_here, known_there, similarity


def _sketches(model: Weights, groups: list[Mlps], probes: list[F32]) -> tuple[list[int], list[F32]]:
    """Which groups of MLPs have nonzero units; by probe, for each a vector that does not know the order of these."""
    known, rows = [], list[list[F32]]()
    for number, (layer, mlps) in enumerate(groups):
        total = [np.zeros(probe.shape, np.float32) for probe in probes]
        found = 0
        for mlp in mlps:
            units = model.units(layer, mlp)
            found += len(units.nonzero)
            read = unit_rows((units.up if units.gate is None else units.gate)[units.nonzero])
            total = [one + read.T @ (read @ probe) for one, probe in zip(total, probes, strict=True)]
        if found:
            known.append(number)
            rows.append([one.ravel() for one in total])
    return known, [unit_rows(np.stack(sketch)) for sketch in zip(*rows, strict=True)]


def turned(rows: F32, rotation: F32 | None) -> F32:
    """Rows [n, d] in another basis, [n, d']; None: as they are."""
    return rows if rotation is None else rows @ rotation


def cosines_of(a: F32, b: F32) -> F32:
    """Cosines between rows, [m, n]; 0 for a row of zeros or one that holds no numbers."""
    product: F32 = unit_rows(a) @ unit_rows(b).T
    return product


def unit_rows(rows: F32) -> F32:
    """Rows of length 1; a row of zeros stays one, and so becomes one that holds what is no number."""
    rows = scaled_rows(rows)  # else squares overflow, or vanish
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), np.float32)
