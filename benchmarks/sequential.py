"""The sequential test on real students' text: how often innocents stop for evidence, how soon the guilty do.

    .venv/bin/python benchmarks/students.py     # first, once: trains the students
    .venv/bin/python benchmarks/sequential.py

Null: 1000 keys against the student of unmarked outputs, looked at after every answer. Power: the true keys.
"""

from __future__ import annotations

import math

import numpy as np

from benchmarks import witnesses as w
from verify.data.logprobs import TextLogprobs
from verify.radioactivity.sequential import (
    EVIDENCE,
    FUTILE,
    LOOKS,
    MAX_FUTILE,
    MIN_TILT,
    POWERS,
    SequentialResult,
    SequentialTest,
    evidence_of_look,
)
from verify.stats.eprocess import EProcess
from watermark import Mark

KEYS = 1000
ALPHA = 0.01
Answers = list[tuple[TextLogprobs, TextLogprobs | None]]


def answers(name: str, access: str, reference: str | None) -> Answers:
    own = w.sampled(w.along(name, f"{name}.text"), 20)
    along = [None] * len(own) if reference is None else w.along(reference, f"{name}.text")
    if reference is not None and access == "logprobs":
        along = w.sampled([text for text in along if text is not None], 20)
    return list(zip(own, along, strict=True))


def run(mark: Mark, access: str, said: Answers, alpha: float) -> SequentialResult:
    test = SequentialTest(mark, access, alpha, unmarked=True)
    for answer, reference in said:
        test.add(answer, reference)
        if test.stopped:
            break
    return test.result()


def null(access: str, reference: str | None, records: int) -> None:
    rng = np.random.default_rng(13)
    shape = w.mark_of("d3w1")
    test = SequentialTest(shape, access, ALPHA, unmarked=True)
    # what is counted after each answer, and the look back, if there is one: for every key the same
    blocks, looks, back = [], {}, SequentialTest(shape, access, ALPHA, unmarked=True)
    for number, both in enumerate(answers("unmarked", access, reference)[:records], 1):
        blocks.append(test.fresh(*both))
        back.add(*both)
        if access == "text" and reference is not None and number in LOOKS:
            looks[number] = back.look_back()
    shared = math.log10(2) if looks else 0.0
    stops = []
    for _ in range(KEYS):
        key, why = Mark(rng.bytes(32), exempt=shape.exempt), None
        process = EProcess(shape.scheme.rate, MIN_TILT, len(POWERS))
        for number, block in enumerate(blocks, 1):
            process.add(block.weights, key.coins(block.contexts, block.tokens))
            found = process.log10_e - shared
            if number in looks:
                found = max(found, evidence_of_look(key, looks[number]))
            if found >= -math.log10(ALPHA):
                why = EVIDENCE
            elif process.log10_futility >= -math.log10(MAX_FUTILE):
                why = FUTILE
            if why:
                break
        stops.append(why)
    evidence, futility = (stops.count(why) / KEYS for why in (EVIDENCE, FUTILE))
    print(f"| {access} | {reference or 'none'} | {len(blocks)} | {evidence:.4f} | {futility:.3f} |", flush=True)


def main() -> None:
    print(f"Null: {KEYS} keys, looked at after every answer, alpha {ALPHA:g}\n")
    print("| access | reference | answers | stopped for evidence | for futility |\n|---|---|--:|--:|--:|")
    null("text", None, 160)
    null("text", "base", 160)
    null("logprobs", "base", 40)
    null("logprobs", None, 40)
    print("\nGuilty: answers of at most 128 tokens, alpha 1e-3 and 1e-6\n")
    print("| student | access | reference | stopped for | tokens at 1e-3 | tokens at 1e-6 |\n|---|---|---|---|--:|--:|")
    for name in ("d3w1", "d2w1", "d1w1", "d0.5w1", "d3w2", "d1w2"):
        if not (w.FOLDER / f"{name}.text.jsonl").exists():
            continue
        for access, reference in (("logprobs", "base"), ("logprobs", None), ("text", "base"), ("text", None)):
            said = answers(name, access, reference)
            found = [run(w.mark_of(name), access, said, alpha) for alpha in (1e-3, 1e-6)]
            tokens = [f"{one.tokens:,}" if one.stopped == EVIDENCE else f"none in {one.tokens:,}" for one in found]
            print(
                f"| {name} | {access} | {reference or 'none'} | {found[0].stopped} | {tokens[0]} | {tokens[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
