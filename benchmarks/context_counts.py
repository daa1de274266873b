"""What it helps to know what the teacher emitted: weights times the root of each context's count.

    .venv/bin/python benchmarks/students.py     # first, once: trains the students
    .venv/bin/python benchmarks/contexts.py

log10 p by weights and reference (the base), at the first 300, 1000 and all positions of unmarked probes: without
counts, with counts of unmarked answers to the questions that the student's teacher was asked, and with counts of the
marked answers themselves, which are not sound for a verdict. Targets: 300 positions picked for their counts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks import witnesses as w
from verify.data.context_counts import ContextCounts, counts_of
from verify.data.logprobs import TextLogprobs, keep_first
from verify.planning.probes import most_frequent
from verify.radioactivity.logprobs import logprob_weights
from watermark import Mark


def log10(
    mark: Mark, said: list[TextLogprobs], base: list[TextLogprobs], n: int, counts: ContextCounts | None
) -> float:
    readings = [keep_first(w.readings(texts, mark), n) for texts in (said, base)]
    pairs = logprob_weights(readings[0], readings[1], mark.exempt)[0]
    if counts is not None:
        pairs = counts.scale(pairs)
    return w.log10_pvalue(mark, pairs)


def picked(
    mark: Mark, said: list[TextLogprobs], base: list[TextLogprobs], counts: ContextCounts, number: int = 300
) -> float:
    """The positions whose contexts were emitted most often, as `stillmark probes --context-counts` picks them."""
    readings = [w.readings(texts, mark) for texts in (said, base)]
    best = most_frequent(readings[0].contexts, counts, number)
    chosen = [np.isin(one.position, best) for one in readings]
    kept = [
        replace(one, position=one.position[mask], tokens=one.tokens[mask], logprobs=one.logprobs[mask])
        for one, mask in zip(readings, chosen, strict=True)
    ]
    pairs = counts.scale(logprob_weights(kept[0], kept[1], mark.exempt)[0])
    return w.log10_pvalue(mark, pairs)


def main() -> None:
    print("| key | suspect | counts | 300 | 1000 | all | 300 targets |\n|---|---|---|--:|--:|--:|--:|")
    cases = [(name, name) for name in ("d2w1", "d1w1", "d0.5w1", "d3w2", "d1w2")]
    cases += [(name, "unmarked") for name in ("d1w1", "d3w2", "d1w2")]
    for key, suspect in cases:
        mark = w.mark_of(key)
        said, base = w.along(suspect, "probes"), w.along("base", "probes")
        unmarked, marked = (
            counts_of(w.outputs(w.FOLDER / f"{name}.teacher.jsonl"), mark.width, mark.exempt, marked=name == key)
            for name in ("unmarked", key)
        )
        for title, counts in (("none", None), ("unmarked", unmarked), ("marked", marked)):
            values = " | ".join(f"{log10(mark, said, base, n, counts):.1f}" for n in (300, 1000, 10**9))
            target = "" if counts is None else f"{picked(mark, said, base, counts):.1f}"
            print(f"| {key} | {suspect} | {title} | {values} | {target} |", flush=True)


if __name__ == "__main__":
    main()
