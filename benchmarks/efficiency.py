"""Evidence: how many positions, or sampled tokens, each test needs to reach p = 1e-6 on the same students.

    .venv/bin/python benchmarks/students.py     # first, once: trains the students
    .venv/bin/python benchmarks/efficiency.py

For each student and test, the smallest number on a grid from which the p-value stays below 1e-6; the median over three
orders of the probes or records. Where all of the evidence does not reach that far, its p-value is shown instead. The
reference is the base, the probes are unmarked text. Writes `verify/power.json`, from which `stillmark power` answers.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import witnesses as w
from verify.data.logprobs import LogprobTable, keep_first, logprobs_at_positions
from verify.data.pairs import distinct
from verify.radioactivity.logprobs import comparisons, logprob_weights
from verify.radioactivity.tails import BINOMIAL, COUNTS
from verify.radioactivity.text import EXCESS, excess, text_result
from watermark import Mark

GOAL = -6.0
ORDERS = 3
STUDENTS = ("d3w1", "d2w1", "d1w1", "d0.5w1", "d3w2", "d1w2")
Curve = list[tuple[int, float]]


def grid(most: int) -> list[int]:
    points = np.unique(np.geomspace(5, most, 32).round().astype(int))
    return [int(n) for n in points]


def weighted_log10(mark: Mark, suspect: LogprobTable, reference: LogprobTable | None) -> float:
    pairs, _ = logprob_weights(suspect, reference, mark.exempt)
    return w.log10_pvalue(mark, pairs)


def reading_curves(name: str, mark: Mark, seed: int) -> dict[str, Curve]:
    suspect, base = (w.shuffled(w.along(who, "probes"), seed) for who in (name, "base"))
    full, full_base = w.readings(suspect, mark), w.readings(base, mark)
    top, top_base = w.readings(suspect, mark, 20), w.readings(base, mark, 20)
    curves: dict[str, Curve] = {}
    for n in grid(len(full)):
        one = {
            "weights, reference": weighted_log10(mark, keep_first(full, n), keep_first(full_base, n)),
            "top 20, reference": weighted_log10(mark, keep_first(top, n), keep_first(top_base, n)),
            "weights, no reference": weighted_log10(mark, keep_first(full, n), None),
            "top 20, no reference": weighted_log10(mark, keep_first(top, n), None),
        }
        known = comparisons(mark, keep_first(full, n))
        one |= {"top 1 (Sander et al.)": known["top1"], "mean mass, Hoeffding (ADFP)": known["mean_mass_hoeffding"]}
        for test, value in one.items():
            curves.setdefault(test, []).append((n, value))
    return curves


def text_curves(name: str, mark: Mark, seed: int) -> dict[str, Curve]:
    order = np.random.default_rng(seed).permutation(len(w.text_of(name)))
    texts, base = [w.text_of(name)[i] for i in order], [w.along("base", f"{name}.text")[i] for i in order]
    curves: dict[str, Curve] = {}
    for number in np.unique(np.geomspace(2, len(texts), 16).round().astype(int)).tolist():
        positions = w.written(texts[:number], mark)
        less = excess(positions, logprobs_at_positions(base[:number], positions), mark.exempt)
        tests = text_result(mark, distinct(positions), method=EXCESS, excess=less).tests
        for test in (BINOMIAL, COUNTS, EXCESS):
            curves.setdefault(f"text, {test}", []).append((positions.looked_at, tests[test]))
    return curves


def needed(curve: Curve, goal: float = GOAL) -> float:
    """The first point from which the curve stays below the goal; infinite if it ends above."""
    found = math.inf
    for n, value in reversed(curve):
        if value > goal:
            break
        found = n
    return found


def median_curve(curves: list[Curve]) -> Curve:
    points = zip(*curves, strict=True)
    return [(round(statistics.median(n for n, _ in at)), statistics.median(p for _, p in at)) for at in points]


def measure(name: str) -> dict[str, list[Curve]]:
    """Every test's curve for one student, in several orders; kept, as it takes a minute or two."""
    kept = w.FOLDER / "read" / f"{name}.curves.json"
    if kept.exists():
        curves: dict[str, list[Curve]] = json.loads(kept.read_text())
        return curves
    mark = w.mark_of(name)
    found: dict[str, list[Curve]] = {}
    make: Callable[[str, Mark, int], dict[str, Curve]]
    for make in (reading_curves, text_curves):
        for seed in range(ORDERS):
            for test, curve in make(name, mark, seed).items():
                found.setdefault(test, []).append(curve)
    kept.write_text(json.dumps(found))
    return found


def show(curves: list[Curve]) -> str:
    middle = statistics.median(needed(curve) for curve in curves)
    last = curves[0][-1]
    return f"{middle:,.0f}" if math.isfinite(middle) else f"> {last[0]:,} ({last[1]:.1f})"


def main() -> None:
    names = [name for name in sys.argv[1:] or STUDENTS if (w.FOLDER / f"{name}.text.jsonl").exists()]
    measured = {name: measure(name) for name in names}
    tests = list(next(iter(measured.values())))
    print(f"positions or tokens to log10 p = {GOAL:g}; in brackets the log10 p of all, where they do not suffice\n")
    print(f"| {'test':29} | " + " | ".join(f"{name:>16}" for name in names) + " |")
    print(f"|{'-' * 31}|" + "|".join("-" * 17 + ":" for _ in names) + "|")
    for test in tests:
        print(f"| {test:29} | " + " | ".join(f"{show(measured[name][test]):>16}" for name in names) + " |")
    curves = []
    for name in names:
        delta, width = w.mark_of(name).scheme.lift, w.mark_of(name).width
        for test, found in measured[name].items():
            positions, log10 = zip(*median_curve(found), strict=True)
            rounded = [round(p, 2) for p in log10]
            curves.append(
                {"delta": delta, "width": width, "test": test, "positions": positions, "log10_pvalue": rounded}
            )
    if set(STUDENTS) <= set(names):
        power = Path(__file__).parent.parent / "verify" / "planning" / "power.json"
        power.write_text("[\n" + ",\n".join(json.dumps(curve) for curve in curves) + "\n]\n")


if __name__ == "__main__":
    main()
