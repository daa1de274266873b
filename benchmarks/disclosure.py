"""How many answers with log probabilities disclose a green list of width 1.

    python -m benchmarks.disclosure READ.jsonl [OUT.json]

READ.jsonl is what a teacher says along answers of its own, as `stillmark test model --record` writes it. An observer
who gets the likeliest tokens' log probabilities after the mark, and has those before it (from requests that opt out, or
from the weights), reads the colour of each token that is named: it is green where the first is the higher one. So what
counts is how many of the pairs that come in other answers were named: the last quarter of the answers is held out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

RESULTS = Path("benchmarks/results/disclosure.json")
TOPS = (1, 5, 20)


def pairs_of(record: dict[str, Any], top: int) -> set[tuple[int, int]]:
    """The pairs that an answer's log probabilities name."""
    ids = record["prompt_ids"] + record["output_ids"]
    start = len(record["prompt_ids"])
    return {
        (ids[start + i - 1], token)
        for i, row in enumerate(record["top_logprobs"])
        for token, _ in sorted(row or [], key=lambda one: -one[1])[:top]
    }


def written(record: dict[str, Any]) -> list[tuple[int, int]]:
    """The pairs that an answer consists of."""
    ids = record["prompt_ids"] + record["output_ids"]
    return list(zip(ids[len(record["prompt_ids"]) - 1 :], record["output_ids"], strict=False))


def curve(asked: list[dict[str, Any]], held: list[dict[str, Any]], top: int) -> list[dict[str, float]]:
    """After 1, 2, 4, ... answers: pairs known, and the share of the held out positions whose pair is known."""
    places = [pair for record in held for pair in written(record)]
    known: set[tuple[int, int]] = set()
    found: list[dict[str, float]] = []
    for i, record in enumerate(asked, 1):
        known |= pairs_of(record, top)
        if i & (i - 1) == 0 or i == len(asked):
            share = sum(pair in known for pair in places) / len(places)
            found.append({"answers": i, "pairs": len(known), "share": round(share, 4)})
    return found


def main() -> None:
    records = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS
    cut = len(records) * 3 // 4
    asked, held = records[:cut], records[cut:]
    found = {
        "machine": machine(),
        "tokens_an_answer": round(sum(len(one["output_ids"]) for one in asked) / cut, 1),
        "held_out": len(held),
        "top": {str(top): curve(asked, held, top) for top in TOPS},
    }
    known = json.loads(out.read_text()) if out.exists() else {}  # students of them are measured by soft_students.py
    out.write_text(json.dumps(known | found, indent=1) + "\n")
    print(json.dumps(found["top"]))


if __name__ == "__main__":
    main()
