"""The null, on real models: innocents under true keys, decoy keys on a guilty one, and what breaks without the rules.

    .venv/bin/python benchmarks/students.py     # first, once: trains the students
    .venv/bin/python benchmarks/null.py

1. Innocent suspects (the base, the student of unmarked outputs, a student of another key) with the keys that the
   others really learned from. 2. A thousand decoy keys on the student of delta 3. 3. Probes that carry the mark, with
   rule 2 off and on. 4. Weights by contexts that were counted in marked text: 400 keys of a simulated teacher.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import scipy.stats

from benchmarks import witnesses as w
from verify.data.context_counts import counts_of
from verify.data.logprobs import keep_first, logprobs_at_positions
from verify.data.outputs import Output
from verify.data.pairs import Pairs, WeightedPairs, distinct, weigh
from verify.radioactivity.logprobs import comparisons, logprob_weights
from verify.radioactivity.result import score
from verify.radioactivity.tails import BINOMIAL, COUNTS
from verify.radioactivity.text import EXCESS, MAX_COUNT, excess, text_result
from verify.stats import weighted
from verify.stats.binomial import binomial_log10_sf
from watermark import GreenList, Mark

DECOYS = 1000
POSITIONS = 2000
LEVELS = (0.05, 0.01, 0.001)


def evidence(suspect: str, reference: str, mark: Mark, positions: int) -> dict[str, WeightedPairs]:
    """The pairs and weights of each test on probabilities: they do not depend on the key."""
    found = {}
    for access, k in (("weights", None), ("top 20", 20)):
        said = keep_first(w.readings(w.along(suspect, "probes"), mark, k), positions)
        compared = keep_first(w.readings(w.along(reference, "probes"), mark, k), positions)
        found[f"{access}, reference"] = logprob_weights(said, compared, mark.exempt)[0]
        found[f"{access}, no reference"] = logprob_weights(said, None, mark.exempt)[0]
    return found


def text_evidence(suspect: str, reference: str, mark: Mark) -> tuple[Pairs, WeightedPairs]:
    positions = w.written(w.text_of(suspect), mark)
    texts = w.along(reference, f"{suspect}.text")
    return distinct(positions), excess(positions, logprobs_at_positions(texts, positions), mark.exempt)


def innocents(names: list[str]) -> None:
    print("## 1. Innocent suspects, true keys: log10 p\n")
    rows = []
    for key in names:
        mark = w.mark_of(key)
        others = [name for name in names if name != key][:1]
        for suspect in (*w.INNOCENT, *others):
            reference = "unmarked" if suspect == "base" else "base"
            row = {
                name: w.log10_pvalue(mark, pairs) for name, pairs in evidence(suspect, reference, mark, 10**9).items()
            }
            pairs, less = text_evidence(suspect, reference, mark)
            tests = text_result(mark, pairs, method=EXCESS, excess=less).tests
            row |= {f"text, {name}": tests[name] for name in (BINOMIAL, COUNTS, EXCESS)}
            rows.append((key, suspect, row))
    names_of_tests = list(rows[0][2])
    print("| key | suspect | " + " | ".join(names_of_tests) + " |")
    print("|---|---|" + "--:|" * len(names_of_tests))
    for key, suspect, row in rows:
        print(f"| {key} | {suspect} | " + " | ".join(f"{row[name]:.2f}" for name in names_of_tests) + " |")
    values = np.array([row[name] for _, _, row in rows for name in names_of_tests])
    print(
        f"\n{len(values)} p-values; smallest: 10^{values.min():.2f}; at most .01: {(values <= -2).mean():.3f} of them\n"
    )


def decoys(name: str) -> None:
    print(f"## 2. {DECOYS} decoy keys on the guilty {name}: share of p-values at or below each level\n")
    mark, rng = w.mark_of(name), np.random.default_rng(11)
    keys = [replace(mark, secret=rng.bytes(32)) for _ in range(DECOYS)]
    found = {
        test: [w.log10_pvalue(key, pairs) for key in keys]
        for test, pairs in evidence(name, "base", mark, POSITIONS).items()
    }
    pairs, less = text_evidence(name, "base", mark)
    counts = pairs.counts.clip(max=MAX_COUNT)
    for key in keys:
        green = key.green(pairs.contexts, pairs.tokens)
        found.setdefault("text, binomial", []).append(binomial_log10_sf(int(green.sum()), len(green), key.scheme.rate))
        exact = weighted.exact_log10_sf(counts, int(counts[green].sum()), key.scheme.rate)
        found.setdefault("text, counts", []).append(exact)
    found["text, excess"] = [w.log10_pvalue(key, less) for key in keys]
    print("| test | " + " | ".join(f"<= {level:g}" for level in LEVELS) + " | within bounds |")
    print("|---|" + "--:|" * len(LEVELS) + "---|")
    for test, values in found.items():
        shares = [float(np.mean(np.array(values) <= math.log10(level))) for level in LEVELS]
        bounds = [scipy.stats.binom(DECOYS, level).isf(1e-4) / DECOYS for level in LEVELS]
        fine = all(share <= bound for share, bound in zip(shares, bounds, strict=True))
        print(f"| {test} | " + " | ".join(f"{share:.3f}" for share in shares) + f" | {'yes' if fine else 'NO'} |")
    print("\nwithin bounds: no share above the 1e-4 point of the binomial at its level\n")


def rule_2(name: str) -> None:
    print(f"## 3. Probes that carry the mark of {name}: log10 p of innocent readers\n")
    print("| suspect | rule 2 | positions | top 1, tape | root of probability | against a reference |")
    print("|---|---|--:|--:|--:|--:|")
    mark = w.mark_of(name)
    for suspect, reference in (("base", "unmarked"), ("unmarked", "base")):
        for unmarked in (True, False):
            said, compared = (
                w.readings(w.along(who, f"{name}.teacher"), mark, unmarked=unmarked) for who in (suspect, reference)
            )
            top = comparisons(mark, said)["top1"]
            alone, against = (
                w.log10_pvalue(mark, logprob_weights(said, other, mark.exempt)[0]) for other in (None, compared)
            )
            values = f"{len(said):,} | {top:.2f} | {alone:.2f} | {against:.2f}"
            print(f"| {suspect} | {'off' if unmarked else 'on'} | {values} |")
    print()


def simulate(rng: np.random.Generator, table: np.ndarray, chains: int, length: int) -> list[Output]:
    """Text of a first-order language, float64 [V, V]."""
    cumulative = (table / table.sum(1, keepdims=True)).cumsum(1)
    ids = np.zeros((chains, length), np.int64)
    for i in range(1, length):
        ids[:, i] = (rng.random(chains)[:, None] < cumulative[ids[:, i - 1]]).argmax(1)
    return [Output(str(i), None, row) for i, row in enumerate(ids)]


def windows_from_marked_text(keys: int = 400, size: int = 300) -> None:
    print(f"## 4. Weights by contexts counted in marked text: {keys} keys of a simulated teacher, innocent suspects\n")
    rng = np.random.default_rng(12)
    table = rng.dirichlet(np.full(size, 0.05), size) * (1 / np.arange(1, size + 1)) + 1e-6
    table /= table.sum(1, keepdims=True)
    contexts, followers = (part.astype(np.uint32) for part in np.divmod(np.arange(size * size), size))
    likely = table.ravel() > 1e-3
    suspects = {
        "random weights": weigh(contexts[:, None], followers, rng.normal(0, 1, size * size) * likely, ()),
        "roots of probability": weigh(contexts[:, None], followers, np.sqrt(table).ravel() * likely, ()),
    }
    found: dict[str, list[tuple[float, float]]] = {}
    delta = 3.0
    for _ in range(keys):
        mark = Mark(rng.bytes(32), scheme=GreenList(delta=delta))
        green = mark.green(contexts[:, None], followers).reshape(size, size)
        for kind, raised in (("unmarked", table), ("marked", table * np.exp(delta * green))):
            counted = counts_of(simulate(rng, raised, 100, 200), 1)
            for name, pairs in suspects.items():
                scaled = counted.scale(pairs)
                z = weighted.z_score(scaled.weights, score(mark, scaled), mark.scheme.rate)
                found.setdefault(f"{kind}, {name}", []).append((w.log10_pvalue(mark, scaled), z))
    print(
        "| counts from | mean z | sd z | " + " | ".join(f"<= {level:g}" for level in LEVELS) + " | smallest log10 p |"
    )
    print("|---|--:|--:|" + "--:|" * len(LEVELS) + "--:|")
    for kind, pairs_of_values in found.items():
        p, z = np.array(pairs_of_values).T
        shares = " | ".join(f"{np.mean(p <= math.log10(level)):.3f}" for level in LEVELS)
        print(f"| {kind} | {z.mean():+.2f} | {z.std():.2f} | {shares} | {p.min():.2f} |")
    print()


def main() -> None:
    trained = [name for name in ("d3w1", "d2w1", "d1w1", "d3w2", "d1w2") if (w.FOLDER / f"{name}.text.jsonl").exists()]
    parts = sys.argv[1:] or ["1", "2", "3", "4"]
    if "1" in parts:
        innocents(trained)
    if "2" in parts:
        decoys("d3w1")
    if "3" in parts:
        rule_2("d3w1")
    if "4" in parts:
        windows_from_marked_text()


if __name__ == "__main__":
    main()
