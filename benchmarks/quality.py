"""Quality against evidence: what a delta costs the teacher's text, and what it leaves in a student. One plot.

    .venv/bin/python benchmarks/students.py     # first, once: trains the students
    .venv/bin/python benchmarks/quality.py [PLOT.png]

Cost: perplexity of the teacher's marked text under the unmarked teacher. Evidence: log10 p of a student that was taught
256 such answers, by each test.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib
import torch

from benchmarks import witnesses as w
from benchmarks.efficiency import Curve, measure, median_curve
from verify.planning import distributions
from verify.planning.builtin import builtin_probes
from verify.planning.distributions import read_distributions
from verify.planning.quality import MEASURED_DELTAS
from verify.suspects.model import forward_logits
from watermark import Mark
from watermark.models import load_model

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STUDENTS = ("d0.5w1", "d1w1", "d2w1", "d3w1")
AT = 1000  # positions
TOKENS = 15_000  # of text


def perplexity(name: str, texts: str) -> float:
    """Of texts under the unmarked teacher; name: of the student whose mark they may carry."""
    answers = w.outputs(w.FOLDER / f"{texts}.teacher.jsonl")
    return distributions.perplexity(read_distributions(w.model_of("base"), answers, [w.mark_of(name)] * len(answers)))


def divergences() -> dict[float, float]:
    """Of green lists by delta, nats a token: they follow from the probability of green tokens along the answers."""
    teacher = w.model_of("base")
    model, tokenizer = load_model(teacher)
    mark = Mark.new(tokenizer)
    found = []
    for answer in builtin_probes(mark, teacher, 16):
        chances = forward_logits(model, [answer.ids])[0, answer.start - 1 : len(answer.ids) - 1].float().softmax(-1)
        before = torch.from_numpy(answer.ids[answer.start - 1 : -1, None])
        green = mark.bias_(torch.zeros_like(chances), before) > 0
        found.append((chances * green).sum(-1))
    mass = torch.cat(found).double()
    raised = {delta: (mass * math.expm1(delta)).log1p() for delta in MEASURED_DELTAS}  # ln of what is divided by
    return {delta: float((delta * mass * (delta - ln).exp() - ln).mean()) for delta, ln in raised.items()}


def value_at(curve: Curve, n: int) -> float:
    return min(curve, key=lambda point: abs(point[0] - n))[1]


def main() -> None:
    plot = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/quality.png")
    torch.set_num_threads(1)
    print("divergence by delta, for verify/planning/quality.py:")
    print(", ".join(f"{delta:g}: {value:.4g}" for delta, value in divergences().items()) + "\n")
    unmarked = perplexity(STUDENTS[0], "unmarked")
    print(f"perplexity of unmarked text: {unmarked:.1f}\n")
    rows = []
    for name in STUDENTS:
        if not (w.FOLDER / f"{name}.text.jsonl").exists():
            continue
        cost = perplexity(name, name)
        curves = {test: median_curve(found) for test, found in measure(name).items()}
        at = {test: value_at(curve, TOKENS if test.startswith("text") else AT) for test, curve in curves.items()}
        rows.append((w.mark_of(name).scheme.lift, cost, at))
    tests = list(rows[0][2])
    print("| delta | perplexity | " + " | ".join(tests) + " |\n|--:|--:|" + "--:|" * len(tests))
    for delta, cost, at in rows:
        print(f"| {delta:g} | {cost:.1f} | " + " | ".join(f"{at[test]:.1f}" for test in tests) + " |")

    figure, (top, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained")
    deltas = [delta for delta, _, _ in rows]
    for test in tests:
        top.plot(
            deltas, [-at[test] for _, _, at in rows], "--" if test.startswith("text") else "-", marker="o", label=test
        )
    top.axhline(3, color="gray", linewidth=0.8, linestyle=":")
    top.set_yscale("symlog", linthresh=3)
    top.set_ylim(0, 200)
    top.set_ylabel(f"-log10 p of the student, at\n{AT:,} positions or {TOKENS:,} tokens of text")
    top.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    below.plot(deltas, [cost for _, cost, _ in rows], color="black", marker="o")
    below.axhline(unmarked, color="gray", linewidth=0.8)
    below.set_ylim(0)
    below.set_ylabel("perplexity of\nthe marked text")
    below.set_xlabel("delta (gray line: unmarked text)")
    figure.savefig(plot, dpi=120)
    print(f"\nwrote {plot}")


if __name__ == "__main__":
    main()
