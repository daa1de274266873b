"""Recompute a test of Stillmark on log probabilities, with the standard library of Python alone and without Stillmark.

    python recompute_logprobs.py MARK SUSPECT [--reference RECORDS] [--card CARD] [--unmarked-probes]

MARK is the mark file with the secret. SUSPECT and RECORDS are JSONL of recorded log probabilities: what the suspect and
a reference said along the same texts (`stillmark test model --record` writes both). Prints how many distinct pairs have
a weight, the statistic T, and log10 of the guaranteed p-value. recompute.py must lie beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recompute import chance_of, coins_of, key_words, mark_of

Pair = tuple[int, ...]
LIKELY = math.log(1e-3)  # for a token that a model does not name where it names one token or none
LEAST = -20.0  # log probabilities below are not used
TILTS = [0.02 * 250 ** (i / 31) for i in range(32)]  # of the mixture: from 0.02 to 5, evenly in the logarithm


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def as_text(record: dict[str, Any]) -> tuple[list[int], int, list[Any]]:
    """A record's ids, where the part begins whose tokens were predicted, and what was said at each place of it."""
    if record.get("sequential"):
        raise SystemExit("answers that were collected until the evidence sufficed: another test judges them")
    if "context_ids" in record:  # one position; the token that came there does not matter
        return [*record["context_ids"], 0], len(record["context_ids"]), [record["top_logprobs"]]
    prompt = record.get("prompt_ids") or []
    return prompt + record["output_ids"], len(prompt), record["top_logprobs"]


def positions(records: list[dict[str, Any]], width: int, unmarked: bool) -> Iterator[tuple[Pair, dict[int, float]]]:
    """The places that may be scored: the context of each, and the log probability of each token that is named there.

    Unless the texts are unmarked, a context is scored once only, and not if it came before in what the suspect was
    shown.
    """
    seen: set[Pair] = set()
    for record in records:
        ids, start, said = as_text(record)
        for i in range(width, len(ids)):
            context = tuple(ids[i - width : i])
            if i >= max(start, 1) and (unmarked or context not in seen):
                named = [(token, p) for token, p in said[i - start] or [] if p >= LEAST]
                yield context, {token: struct.unpack("f", struct.pack("f", p))[0] for token, p in named}
            if i > 0 or i < start or not record.get("sampled"):
                seen.add(context)


def weights(
    suspect: list[tuple[Pair, dict[int, float]]],
    reference: list[tuple[Pair, dict[int, float]]] | None,
    exempt: set[int],
) -> dict[Pair, float]:
    """What each pair (*context, token) weighs; the weights of a repeated pair add up. They know nothing of the key.

    With a reference: the log probability less the reference's, over the tokens that either names, less the mean of this
    difference at the place, within -3 and 3. Without one: the square root of the probability.
    """
    found: defaultdict[Pair, float] = defaultdict(float)
    if reference is not None and [context for context, _ in suspect] != [context for context, _ in reference]:
        raise SystemExit("suspect and reference were not read at the same positions")
    for i, (context, said) in enumerate(suspect):
        if reference is None:
            each = {token: math.exp(p / 2) for token, p in said.items() if token not in exempt}
        else:
            other = reference[i][1]
            tokens = sorted((said.keys() | other.keys()) - exempt)
            gaps = [said.get(token, floor(said)) - other.get(token, floor(other)) for token in tokens]
            mean = sum(gaps) / max(1, len(gaps))
            each = {token: min(3.0, max(-3.0, gap - mean)) for token, gap in zip(tokens, gaps, strict=True)}
        for token, weight in each.items():
            if weight:
                found[*context, token] += weight
    return found


def floor(named: dict[int, float]) -> float:
    """The log probability of a token that is not named: the smallest that is, at most 0."""
    least = min([0.0, *named.values()])
    return min(least, LIKELY) if len(named) < 2 else least


def exponent(sizes: list[tuple[float, float]], gap: float, s: float) -> float:
    """K(s) - s T in nats, with K(s) = ln E exp(s T) under the null hypothesis.

    Seen from the largest value that T can have: it falls short by the size |a| of each coin that falls the worse way,
    which has probability q; gap: by how much the observed T does. sizes: (|a|, q).
    """
    return math.fsum(math.log1p(q * math.expm1(-s * a)) for a, q in sizes) + s * gap


def chernoff(sizes: list[tuple[float, float]], gap: float) -> float:
    """The smallest exponent over s >= 0: where its derivative is 0, by bisection."""

    def rising(s: float) -> bool:
        return gap >= math.fsum(a * q / (q + (1 - q) * math.exp(min(700.0, s * a))) for a, q in sizes)

    if rising(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not rising(high):
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) else (middle, high)
    return exponent(sizes, gap, high)


def mixture(sizes: list[tuple[float, float]], gap: float) -> float:
    """Minus ln of the mean of exp(h T - K(h)) over the tilts h: holds even if weights depend on coins seen before."""
    logs = [-exponent(sizes, gap, h) for h in TILTS]
    largest = max(logs)
    return -largest - math.log(math.fsum(math.exp(one - largest) for one in logs) / len(logs))


def main() -> None:
    """Read the files, and print the mark's commitment, n, T and log10 p."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("mark", type=Path)
    parser.add_argument("suspect", type=Path)
    parser.add_argument("--reference", type=Path, help="what a reference said at the same positions")
    parser.add_argument("--card", type=Path, help="the card that was published: does it belong to this mark?")
    parser.add_argument(
        "--unmarked-probes", action="store_true", help="what the suspect was shown cannot carry the mark"
    )
    given = parser.parse_args()
    mark = mark_of(given.mark, given.card)
    read = [records_of(path) for path in (given.suspect, given.reference) if path is not None]
    unmarked = given.unmarked_probes or all(record.get("marked") is False for record in read[0])
    scored = [list(positions(records, mark["width"], unmarked)) for records in read]
    found = weights(scored[0], scored[1] if given.reference else None, set(mark["exempt"]))
    chance, key = chance_of(mark), key_words(mark)
    coins = [(a, coin) for pair, a in found.items() for coin in coins_of(mark, key, pair)]
    sizes = [(abs(a), 1 - chance if a > 0 else chance) for a, _ in coins if a]
    gap = math.fsum(abs(a) for a, coin in coins if coin != (a > 0))
    gap += 1e-14 * math.fsum(a for a, _ in sizes)  # rounding in the weights must not make p smaller
    ln = chernoff(sizes, gap) if unmarked else mixture(sizes, gap)
    print("bound      ", "Chernoff" if unmarked else "mixture e-value")
    print(f"positions   {len(scored[0])}\nn           {len(found)}")
    print(f"T           {math.fsum(a * (coin - chance) for a, coin in coins):.10f}")
    print(f"log10 p     {min(0.0, ln) / math.log(10):.10f}")


if __name__ == "__main__":
    main()
