"""Recompute the numbers of a bundle, with the standard library of Python alone and without Stillmark.

    python recompute_bundle.py BUNDLE MARK...

BUNDLE is the file of `stillmark evidence bundle`, MARK a mark file with its secret. Prints whether card, plan and mark
belong together, and for each test how many pairs there are, log10 p as it was claimed, and log10 p from the pairs and
the secret; then Holm's adjustment. recompute.py and recompute_logprobs.py must lie beside this file. The signature is
not checked here: `openssl pkeyutl -verify` does (recompute.md).
"""

from __future__ import annotations

import argparse
import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recompute import chance_of, coins_of, commitment, key_words, log10_tail, read_mark
from recompute_logprobs import TILTS, chernoff, mixture

LOOKS = len({round(8 * 1.25**i) for i in range(35)})  # looks back at all text, planned beforehand
CLOSE = 1e-6  # what rounding may change in log10 p


class Pairs:
    """The pairs of a test: of each its coins, and its weights (none where a pair is one coin)."""

    def __init__(self, columns: dict[str, Any], mark: dict[str, Any]) -> None:
        """Read the columns of a bundle. Stops at a pair that is there twice, or a token that is never scored."""
        pairs = list(zip(*columns["contexts"], columns["tokens"], strict=True))
        if len(set(pairs)) < len(pairs):
            raise SystemExit("a pair is there twice")
        if set(columns["tokens"]) & set(mark["exempt"]):
            raise SystemExit("a special token is there, which is never scored")
        key = key_words(mark)
        self.chance = chance_of(mark)
        self.coins = [coins_of(mark, key, pair) for pair in pairs]
        self.weights = list(zip(*columns["weights"], strict=True)) or [()] * len(pairs)

    def bound(self, *, fixed: bool) -> float:
        """log10 of the bound of a weighted sum: Chernoff's where the weights were fixed before any coin was seen."""
        coins = [(w[0], coin) for w, some in zip(self.weights, self.coins, strict=True) for coin in some if w[0]]
        sizes = [(abs(a), 1 - self.chance if a > 0 else self.chance) for a, _ in coins]
        gap = math.fsum(abs(a) for a, coin in coins if coin != (a > 0)) + 1e-14 * math.fsum(a for a, _ in sizes)
        return min(0.0, chernoff(sizes, gap) if fixed else mixture(sizes, gap)) / math.log(10)

    def exact(self) -> float:
        """log10 P(sum of weight times coins >= the observed sum), for weights that are whole numbers, 20 at most.

        The coins are tilted so that the observed sum is the mean, added one by one, and untilted.
        """
        each = [min(20, int(w[0])) for w, some in zip(self.weights, self.coins, strict=True) for _ in some]
        seen = [coin for some in self.coins for coin in some]
        reached = sum(a for a, coin in zip(each, seen, strict=True) if coin)
        odds = math.log(self.chance / (1 - self.chance))

        def raised(s: float) -> list[float]:
            return [1 / (1 + math.exp(min(700.0, -odds - s * a))) for a in each]

        low, high = -30.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            below = math.fsum(a * p for a, p in zip(each, raised(middle), strict=True)) < reached
            low, high = (middle, high) if below else (low, middle)
        sums = [1.0]
        for a, p in zip(each, raised(low), strict=True):
            longer = [one * (1 - p) for one in sums] + [0.0] * a
            for k, one in enumerate(sums):
                longer[k + a] += one * p
            sums = longer
        logs = [math.log(one) - low * k for k, one in enumerate(sums) if k >= reached and one > 0]
        top = max(logs)
        ln = top + math.log(math.fsum(math.exp(one - top) for one in logs))
        ln += math.fsum(math.log1p(self.chance * math.expm1(low * a)) for a in each)
        return min(0.0, ln) / math.log(10)

    def most(self, answers: Sequence[int]) -> float:
        """The most evidence that there was after any answer, as log10 of the mixture e-value."""
        logs, most = [0.0] * (len(TILTS) * len(self.weights[0]) if self.weights else 1), 0.0
        for i, (weights, coins) in enumerate(zip(self.weights, self.coins, strict=True)):
            tilted = [tilt * weight for tilt in TILTS for weight in weights]
            shift = [
                -math.log1p(self.chance * math.expm1(b)) if b < 500 else -b - math.log(self.chance) for b in tilted
            ]
            logs = [one + len(coins) * down + sum(coins) * b for one, b, down in zip(logs, tilted, shift, strict=True)]
            if i + 1 == len(answers) or answers[i + 1] != answers[i]:
                top = max(logs)
                mean = math.fsum(math.exp(one - top) for one in logs) / len(logs)
                most = max(most, (top + math.log(mean)) / math.log(10))
        return most


def log10_pvalue(columns: dict[str, Any], mark: dict[str, Any]) -> float:
    """log10 p of a test, from its pairs."""
    pairs = Pairs(columns, mark)
    if columns["rule"] == "binomial":
        return log10_tail(sum(map(sum, pairs.coins)), sum(map(len, pairs.coins)), pairs.chance)
    if columns["rule"] == "counts":
        return pairs.exact()
    if columns["rule"] != "sequential":
        return pairs.bound(fixed=columns["rule"] == "chernoff")
    most = pairs.most(columns["answers"]) - (math.log10(2) if columns["shared"] else 0.0)
    if columns["look"] is not None:
        most = max(most, -Pairs(columns["look"], mark).bound(fixed=True) - math.log10(2 * LOOKS))
    return -max(0.0, most)


def holm(logs: list[float]) -> list[float]:
    """p-values adjusted over all tests: the i-th smallest of m times m - i + 1, and no smaller than those before."""
    found, largest = dict.fromkeys(range(len(logs)), 0.0), -math.inf
    for rank, i in enumerate(sorted(range(len(logs)), key=lambda i: logs[i])):
        largest = max(largest, logs[i] + math.log10(len(logs) - rank))
        found[i] = min(0.0, largest)
    return list(found.values())


def main() -> None:
    """Read the files, and print each test's numbers. Exit status 1 if one of them differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("marks", metavar="MARK", type=Path, nargs="+")
    given = parser.parse_args()
    said = json.loads(base64.b64decode(json.loads(given.bundle.read_bytes())["payload"]))["predicate"]
    marks = {commitment(one): one for one in map(read_mark, given.marks)}
    cards = [one["commitment"] for one in said.get("cards") or [said["card"]]]
    plan, tests = said["plan"], said["result"]["tests"]
    planned = [plan["inputs"][line] for line in plan["lines"] if line.split()[0] == "mark"]
    same, left = set(marks) <= set(cards) and cards == planned, 0
    print("commitment ", "of the card and the plan" if same else "DIFFERS")
    for one, after in zip(tests, holm([one["log10_pvalue"] for one in tests]), strict=True):
        columns = said["pairs"].get(one["test"], {"root": ""})
        mark = marks.get(cards[0] if len(cards) == 1 else plan["inputs"].get(one["test"]))
        found = log10_pvalue(columns, mark) if mark and "root" not in columns else None
        print(
            f"test        {one['test']}\nn           {columns.get('n', 'none')}\nclaimed     {one['log10_pvalue']:.10f}"
        )
        print(f"log10 p     {'not recomputed' if found is None else f'{found:.10f}'}\nafter Holm  {after:.10f}")
        left += found is None
        same &= found is None or abs(found - one["log10_pvalue"]) <= CLOSE
        same &= abs(after - one["log10_pvalue_adjusted"]) <= CLOSE
    said_of_rest = f"; log10 p of {left} was not recomputed" if left else ""
    print("result     ", f"the numbers are as claimed{said_of_rest}" if same else "DIFFERS")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
