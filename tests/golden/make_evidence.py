"""Writes tests/golden/evidence: python -m tests.golden.make_evidence. Another evidence means other golden results."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests import small
from verify.data.outputs import Output
from verify.fingerprint.canaries import served
from verify.fingerprint.planted import ANSWERS, questions

EVIDENCE = Path(__file__).with_name("evidence")

LIFT = 0.03
OTHER = [np.random.RandomState(9).randint(2, small.SIZE, 3000).tolist()]
"""What the suspect learnt beside the mark. Else all that tells it from its parent would be green, and the statistics
would lie at the end of their distributions, where a rounding decides on the saddlepoint estimate."""


def write(folder: Path) -> None:
    """All files of the evidence. What is drawn: marked text, log probabilities along it, answers, canaries."""
    with tempfile.TemporaryDirectory() as work:
        mark = small.mark(Path(work) / "mark", small.tokenizer(Path(work) / "tokenizer"))
    draw = np.random.RandomState(7)
    marked, plain = small.logits(mark, 5, LIFT, OTHER), small.logits(seed=5)
    child = small.logits(mark.child("customer 3"), 5, lift=0.2)

    def text(i: int, table: small.Floats, length: int) -> dict[str, Any]:
        prompt = small.sample(plain, 5, draw)
        return {"id": f"t{i}", "prompt_ids": prompt, "output_ids": small.sample(table, length, draw, prompt[-1])}

    def worded(record: dict[str, Any]) -> dict[str, Any]:
        return {"id": record["id"]} | {name: small.spell(record[f"{name}_ids"]) for name in ("prompt", "output")}

    # a few tokens are special, one text is a loop, a third of the records is text without ids, one line is no record
    outputs = [text(i, marked, 50) for i in range(36)]
    outputs[4]["output_ids"] = outputs[4]["output_ids"][:6] * 10
    outputs[8]["output_ids"][-1] = 1
    rows = [worded(one) if i % 3 == 2 else one for i, one in enumerate(outputs)]
    rows = [one | {"source": "abc"[i % 3]} for i, one in enumerate(rows)]
    small.jsonl(folder / "outputs.jsonl", [*rows[:-4], {"id": "no record"}])
    (folder / "more.txt").write_text(small.spell(outputs[-1]["output_ids"]))
    small.jsonl(folder / "plain.jsonl", ({"mark": None} | text(i, plain, 100) for i in range(12)))
    small.jsonl(folder / "child.jsonl", (text(i, child, 60) for i in range(12)))
    (folder / "labels.txt").write_text("".join(f"customer {i}\n" for i in range(6)))

    # log probabilities of suspect and reference along texts (one table made into the other's), and at single positions
    texts = [text(i, plain, 20) for i in range(8)]
    loop = texts[0]["output_ids"]  # a window that comes again in what was shown
    texts[1]["prompt_ids"] = [*loop[:5], *texts[1]["prompt_ids"][-1:]]
    small.jsonl(folder / "suspect.jsonl", (small.read(marked, one) for one in texts))
    small.jsonl(folder / "reference.jsonl", (small.read(plain, one) for one in texts))
    contexts = [small.sample(plain, 3, draw) for _ in range(60)]
    small.jsonl(
        folder / "positions.jsonl",
        ({"context_ids": one, "top_logprobs": small.top(marked, one[-1])} for one in contexts),
    )

    # what a suspect behind an endpoint answers: at once the log of a sequential run, and a reference along it
    answers = [text(i, marked, 24) for i in range(24)]
    flags = {"sampled": True, "sequential": True}
    small.jsonl(
        folder / "answers.jsonl",
        (small.read(marked, one, 5) | worded(one) | flags for one in answers),
    )
    small.jsonl(folder / "answers.reference.jsonl", (small.read(plain, one, 5) | flags for one in answers))
    small.jsonl(folder / "prompts.jsonl", ({"id": one["id"], "prompt": worded(one)["prompt"]} for one in answers))
    small.probes(folder / "probes.jsonl", 30, 30)

    # fingerprints: recorded answers, keyed questions, canaries with the half that is served
    asked = [{"id": f"a{i}", "prompt": small.spell(small.sample(plain, 4, draw))} for i in range(80)]
    small.jsonl(folder / "agreement.jsonl", asked)
    said = [small.top(marked, int(one["prompt"].split("w")[-1]), 5) for one in asked]
    rows = [{"id": one["id"], "top": [small.word(i) for i, _ in tops]} for one, tops in zip(asked, said, strict=True)]
    small.jsonl(folder / "agreement.answers.jsonl", rows)
    known = [
        {"id": one.id, "output": f"It is {ANSWERS[(one.answer + (i % 4 > 0)) % 16]}, I think."}
        for i, one in enumerate(questions(mark, 48))
    ]
    small.jsonl(folder / "planted.jsonl", [*known[:40], *({**one, "output": "I cannot say."} for one in known[40:44])])
    canaries = [
        {"id": f"c{i}", "output_ids": row} for i, row in enumerate(draw.randint(2, small.SIZE, (40, 16)).tolist())
    ]
    small.jsonl(folder / "canaries.jsonl", canaries)
    half = served(mark, [Output(one["id"], None, np.array(one["output_ids"])) for one in canaries])
    small.jsonl(folder / "served.jsonl", (one for one, kept in zip(canaries, half, strict=True) if kept))


if __name__ == "__main__":
    EVIDENCE.mkdir(exist_ok=True)
    write(EVIDENCE)
