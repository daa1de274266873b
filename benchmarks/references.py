"""Wrong references: what the weighted difference loses, and that innocents stay innocent.

    .venv/bin/python benchmarks/students.py     # first, once: trains the students
    .venv/bin/python benchmarks/references.py

log10 p at 1000 positions of unmarked probes, by the suspect's top 20 and by its weights. The damaged reference is the
base with noise of a tenth of each weight matrix's spread.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import witnesses as w
from verify.data.logprobs import keep_first
from verify.planning.demo import teacher_model
from verify.radioactivity.logprobs import logprob_weights

POSITIONS = 1000
ORDERS = 3


def damage() -> None:
    folder = w.FOLDER / "damaged"
    if folder.exists():
        return
    model = AutoModelForCausalLM.from_pretrained(teacher_model(), dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1 * float(parameter.std()))
    model.bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher_model()).save_pretrained(folder)


def log10(key: str, suspect: str, reference: str | None, k: int | None) -> float:
    mark, values = w.mark_of(key), []
    for seed in range(ORDERS):
        said = keep_first(w.readings(w.shuffled(w.along(suspect, "probes"), seed), mark, k), POSITIONS)
        compared = None
        if reference is not None:
            compared = keep_first(w.readings(w.shuffled(w.along(reference, "probes"), seed), mark, k), POSITIONS)
        pairs = logprob_weights(said, compared, mark.exempt)[0]
        values.append(w.log10_pvalue(mark, pairs))
    return float(np.median(values))


def main() -> None:
    damage()
    # the teacher without its mark is the parent here; `other` learned from the same teacher under another key
    references = ("base", "unmarked", "damaged", "other", None)
    names = [name for name in ("d3w1", "d2w1", "d1w1") if (w.FOLDER / f"{name}.text.jsonl").exists()]
    suspects = [(name, name) for name in names] + [(names[0], innocent) for innocent in ("base", "unmarked", "other")]
    titles = [reference or "none" for reference in references]
    print(f"log10 p at {POSITIONS} positions, median over {ORDERS} orders of the probes: weights / top 20\n")
    print("| key | suspect | " + " | ".join(titles) + " |\n|---|---|" + "--:|" * len(titles))
    for key, suspect in suspects:
        cells = []
        for reference in references:
            if reference == suspect:
                cells.append("-")
            else:
                cells.append(" / ".join(f"{log10(key, suspect, reference, k):.1f}" for k in (None, 20)))
        print(f"| {key} | {suspect} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
