"""Green lists and tournaments, at equal budgets: what each costs the teacher's text, and what it leaves in a student.

    .venv/bin/python -m benchmarks.schemes [make|quality|evidence|plot]... [ARM...]

`make` trains the students (12 minutes each on one core), `evidence` tests them, `quality` measures the teacher's text
with several keys (10 minutes an arm), `plot` draws docs/schemes.png. What exists is not made again. Figures go into
benchmarks/results/schemes.json, arm by arm, and from there into docs/results.md by benchmarks/table.py.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np

from benchmarks import students
from benchmarks import witnesses as w
from benchmarks.machine import machine
from benchmarks.table import arm_name
from verify.data.logprobs import keep_first, logprobs_at_positions
from verify.data.pairs import WeightedPairs, distinct
from verify.planning.demo import teacher_model
from verify.planning.quality import quality
from verify.planning.quality_result import Measure
from verify.radioactivity.logprobs import logprob_weights
from verify.radioactivity.result import draw_decoys
from verify.radioactivity.text import EXCESS, excess, text_result
from watermark import Mark, Sampling

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

RESULTS: Final = Path("benchmarks/results/schemes.json")
PLOT: Final = Path("docs/schemes.png")
ARMS: Final = (
    "d0.5w1", "d1w1", "d2w1", "t1w1", "t2w1", "t3w1", "t4w1", "t2w2", "t4w2",
    "t4w1-once", "t4w1-at1.1", "t1w1-at1.013",
)  # fmt: skip
POSITIONS: Final = (300, 1000, 3000)
TEXT: Final = 20_000  # tokens
ORDERS: Final = 3
DECOYS: Final = 50
TIMES: Final = (0, 1, 4, 16, 64, 256)  # that a context came in what a student learned from: groups of contexts
KEYS, PROMPTS, ANSWERS, TOKENS = 8, 16, 8, 64  # of the teacher's text


def make(names: list[str]) -> None:
    """Train the students of these arms, and the innocent one."""
    students.main(w.FOLDER, ["unmarked", *names])


def evidence(name: str) -> dict[str, Any]:
    """log10 p of a student: medians over orders of the probes or records, the base as reference; and decoy keys."""
    mark = w.mark_of(name)
    guilty = {f"{test} at {n}": value for test, n, value in found(name, mark)}
    innocent = {f"{test} at {n}": value for test, n, value in found("unmarked", mark)}
    suspect, base = w.readings(w.along(name, "probes"), mark), w.readings(w.along("base", "probes"), mark)
    pairs, _ = logprob_weights(suspect, base, mark.exempt)
    decoys = draw_decoys(mark, pairs, DECOYS)
    assert decoys is not None
    return {
        "scheme": mark.scheme.name,
        **mark.scheme.parameters,
        "width": mark.width,
        "log10_pvalues": guilty,
        "innocent": innocent,
        "layers": by_layer(mark, pairs),
        "contexts": by_context(name, mark, pairs),
        "decoys": {"mean": statistics.mean(decoys.z), "sd": statistics.stdev(decoys.z)},
    }


def by_layer(mark: Mark, pairs: WeightedPairs) -> dict[str, Any]:
    """z of each coin's weighted sum by itself, and how efficient equal weights are beside the best for this student.

    The coins of a pair are independent under the null, so that the best weights are in proportion to what each coin
    shows; equal ones reach (sum of z)^2 / (C * sum of z^2) of their squared z. These best weights know this student.
    """
    coins = mark.coins(pairs.contexts, pairs.tokens)
    rate = mark.scheme.rate
    z = pairs.weights @ (coins - rate) / np.sqrt(rate * (1 - rate) * (pairs.weights**2).sum())
    return {"z": z.tolist(), "efficiency of equal weights": float(z.sum() ** 2 / len(z) / (z**2).sum())}


def by_context(name: str, mark: Mark, pairs: WeightedPairs) -> list[dict[str, Any]]:
    """Where the score comes from: z of the pairs whose contexts came so often in what the student learned from."""
    taught = w.written(w.outputs(w.FOLDER / f"{name}.teacher.jsonl"), mark)
    came = Counter(map(tuple, taught.contexts.tolist()))
    times = np.array([came[tuple(context)] for context in pairs.contexts.tolist()])
    score = pairs.weights * (mark.coins(pairs.contexts, pairs.tokens) - mark.scheme.rate).sum(axis=1)
    variance = mark.scheme.coins * mark.scheme.rate * (1 - mark.scheme.rate) * pairs.weights**2
    rows = []
    for least, below in pairwise((*TIMES, np.inf)):
        chosen = (times >= least) & (times < below)
        if not chosen.any():
            continue
        rows.append({
            "times": least,
            "tokens taught": sum(n for n in came.values() if least <= n < below),
            "pairs": int(chosen.sum()),
            "z": float(score[chosen].sum() / np.sqrt(variance[chosen].sum())),
            "score": float(score[chosen].sum() / score.sum()),
        })  # fmt: skip
    return rows


def found(name: str, mark: Mark) -> list[tuple[str, int, float]]:
    """Test, positions or tokens, log10 p."""
    rows: list[tuple[str, int, float]] = []
    orders = range(ORDERS)
    for test, k in (("weights", None), ("top 20", 20)):
        tables = [
            [w.readings(w.shuffled(w.along(who, "probes"), seed), mark, k) for who in (name, "base")] for seed in orders
        ]
        for n in POSITIONS:
            values = [
                w.log10_pvalue(mark, logprob_weights(keep_first(a, n), keep_first(b, n), mark.exempt)[0])
                for a, b in tables
            ]
            rows.append((test, n, statistics.median(values)))
    values, length = [], TEXT
    for seed in orders:
        order = np.random.default_rng(seed).permutation(len(w.text_of(name)))
        texts, base = [w.text_of(name)[i] for i in order], [w.along("base", f"{name}.text")[i] for i in order]
        positions = w.written(texts, mark).head(TEXT)
        less = excess(positions, logprobs_at_positions(base, positions), mark.exempt)
        values.append(text_result(mark, distinct(positions), method=EXCESS, excess=less).tests[EXCESS])
        length = min(length, len(positions.tokens))
    return [*rows, ("text", length, statistics.median(values))]


def cost(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """What the mark costs the teacher's text, over several keys; beside unmarked text at temperature 1 in any case."""
    measured = quality(
        teacher_model(),
        students.mark_of(w.FOLDER, name, teacher_model()),
        number=PROMPTS,
        answers=ANSWERS,
        keys=KEYS,
        sampling=sampling_of(name),
        out=w.FOLDER / f"{name}.quality",
    ).to_dict()
    if measured["sampling"]["temperature"] != 1:
        plain = results["arms"][students.plain(name)]["quality"]["measures"]
        for measure, one in measured["measures"].items():
            both = Measure(measure, tuple(plain[measure]["unmarked_by_key"]), tuple(one["marked_by_key"]))
            measured["measures"][measure] = both.to_dict()
    return measured


def sampling_of(name: str) -> Sampling:
    """How an arm's text is drawn."""
    how = students.drawn(name)
    named = dict(zip(how[::2], how[1::2], strict=True))
    return Sampling(
        max_new_tokens=TOKENS,
        batch_size=256,
        temperature=float(named.get("--temperature", 1)),
        repeats="once" if named.get("--repeats") == "once" else "mark",
    )


def plot(results: dict[str, Any]) -> None:
    """Evidence against quality, all arms: a dot and its interval over the keys; two dots for students of two keys."""
    figure, both = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    for axes, measure in zip(both, ("perplexity", "self_bleu_3"), strict=True):
        for name, arm in results["arms"].items():
            if "quality" not in arm or "log10_pvalues" not in arm:
                continue
            one = arm["quality"]["measures"][measure]
            change, low, high = (value + one["relative"] for value in (one["difference"], *one["interval"]))
            keys = [arm, results["arms"].get(f"{name}-2", arm)]
            shown = [-key["log10_pvalues"]["weights at 1000"] for key in keys if "log10_pvalues" in key]
            colour = "#1b7837" if arm["scheme"] == "tournament" else "#762a83"
            axes.hlines(shown[0], low, high, color=colour, alpha=0.35)
            face = colour if arm["width"] == 1 else "white"
            axes.plot([change] * len(shown), shown, "o-", color=colour, markerfacecolor=face)
            left = (arm["scheme"] == "tournament") == (measure == "perplexity")  # where fewer other lines are
            side, end, where = ("right", low, -4) if left else ("left", high, 4)
            how = {"ha": side, "va": "center", "fontsize": 8, "textcoords": "offset points"}
            axes.annotate(arm_name(name), (end, shown[0]), (where, 0), **how)
    ratio, more = both
    ratio.set_xscale("log")
    for axes in both:
        axes.margins(x=0.3)
    ratio.set_xticks([0.9, 1, 1.2, 1.5, 2, 3], ["0.9", "1", "1.2", "1.5", "2", "3"])
    ratio.xaxis.set_minor_locator(NullLocator())
    ratio.axvline(1, color="#878787", linewidth=0.8)
    more.axvline(0, color="#878787", linewidth=0.8)
    ratio.set(xlabel="perplexity, marked / unmarked", ylabel="-log10 p of a student, 1,000 positions, weights")
    more.set(xlabel="Self-BLEU-3, marked - unmarked (higher: less diverse)")
    figure.suptitle(
        f"Green lists purple, tournaments green, width 2 hollow; lines: 95 % over {KEYS} keys; two dots: two students"
    )
    figure.savefig(PLOT, dpi=110)


def main(parts: list[str]) -> None:
    known = [arm + key for arm in ARMS for key in ("", "-2")]
    names = [part for part in parts if part in known] or known
    parts = [part for part in parts if part not in known] or ["make", "quality", "evidence", "plot"]
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"arms": {}}
    for name in names:
        if "make" in parts:
            make([name])
        arm = results["arms"].setdefault(name, {})
        if "evidence" in parts:
            arm |= evidence(name) | {"machine": machine()}
        if "quality" in parts and not name.endswith("-2"):
            arm["quality"] = cost(name, results) | {"machine": machine()}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(name, {key: value for key, value in arm.items() if key != "quality"}, flush=True)
    if "plot" in parts:
        plot(results)


if __name__ == "__main__":
    main(sys.argv[1:])
