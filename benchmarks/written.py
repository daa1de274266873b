"""What the students of benchmarks/tokenizers.py write, and what a relay of their teacher writes: tests and verdicts.

    .venv/bin/python -m benchmarks.written [FOLDER] [text|relays]... [STUDENT]...

A student writes 20,000 tokens of its own, and the text alone goes into the test, through the mark's tokenizer. FOLDER
(default: demo/tokenizers) holds the students; what lies there is not made again. Results go to
benchmarks/results/tokenizers.json, and from there into docs by benchmarks/table.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.fingerprints import stillmark
from benchmarks.students import ask
from benchmarks.tokenizers import RESULTS, STUDENTS, first_of, texts, write
from verify.data.logprobs import logprobs_at_positions
from verify.data.outputs import read_outputs
from verify.data.pairs import distinct, scorable_batch
from verify.planning.demo import teacher_model
from verify.radioactivity.tails import BINOMIAL
from verify.radioactivity.text import EXCESS, excess, text_log10_of_first, text_result
from verify.radioactivity.translated import translations
from verify.suspects.model import read_weights
from watermark import Mark

ASKED: Final = slice(584, 720)  # questions that no student was taught
TOKENS: Final = 160
LOG: Final = 128
"""Answers in a log that `stillmark verify` is given."""


def written(folder: Path, name: str) -> Path:
    """The text that a student writes, without its ids."""
    out = folder / f"{name}.written.jsonl"
    if out.exists():
        return out
    asked, log = ask(folder / "asked.jsonl", ASKED.start, ASKED.stop - ASKED.start), folder / f"{name}.said.jsonl"
    stillmark("generate", "--model", folder / name, "--prompts", asked, "--out", log, "--max-new-tokens", TOKENS,
              "--batch-size", 64)  # fmt: skip
    said = map(json.loads, log.read_text().rstrip("\n").split("\n"))
    plain = [{key: row[key] for key in ("id", "prompt", "output", "ended")} for row in said]
    out.write_text("".join(json.dumps(row) + "\n" for row in plain if row["output"]))
    return out


def text(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """What students write, with each kind of reference; innocents under the key of delta 3; others as before."""
    known = json.loads(RESULTS.read_text()).get("text", []) if RESULTS.exists() else []
    rows = [row for row in known if row["student"] not in names]
    teacher = teacher_model()
    for name, (kind, spoken, taught) in STUDENTS.items():
        if name not in names or not (folder / name).exists():
            continue
        mark = Mark.load(folder / f"{'d3' if taught == 'unmarked' else taught}.mark")
        outputs = read_outputs(written(folder, name), mark, tokenizer=teacher)
        positions = scorable_batch(outputs, mark.width, mark.exempt, unmarked_prompts=True)
        references = {"none": None, "the mark's tokenizer": teacher}
        sibling = folder / f"{kind}-{spoken}-unmarked"
        if sibling.exists() and sibling.name != name:
            references["the suspect's tokenizer"] = sibling
        for reference, model in references.items():
            expected = None
            if model is not None:
                how = translations(mark, None, model, teacher, unmarked=False).reference
                log = folder / "readings" / f"{model.name} along what {name} wrote.jsonl"
                log.parent.mkdir(exist_ok=True)
                along = read_weights(model, mark, outputs, record=log, tokenizer=teacher, translator=how)
                expected = logprobs_at_positions(along, positions)
            method = BINOMIAL if expected is None else EXCESS
            weights = None if expected is None else excess(positions, expected, mark.exempt)
            whole = text_result(mark, distinct(positions), 1e-3, method=method, excess=weights, decoys=200)
            assert whole.decoys is not None

            def at(tokens: int, expected: Any = expected, method: str = method) -> float:
                return text_log10_of_first(mark, positions, expected, method, tokens)  # noqa: B023

            total = len(positions.tokens)
            row = {
                "student": name,
                "delta": mark.scheme.lift if taught != "unmarked" else 0.0,
                "reference": reference,
                "tokens": total,
                "log10_pvalue": whole.log10_pvalue,
                "log10_pvalue_at": {str(n): at(n) for n in (1000, 5000, 10000) if n <= total},
                "tokens_to_1e-6": first_of(at, total, 250, 4),
                "decoys": {"mean": float(np.mean(whole.decoys.z)), "sd": float(np.std(whole.decoys.z))},
            }
            rows.append(row)
            print(row, flush=True)
    return sorted(rows, key=lambda row: list(STUDENTS).index(row["student"]))


def relays(folder: Path, students: list[str]) -> list[dict[str, Any]]:
    """`stillmark verify` on logs of text: of the marked teacher, of students, and of half and half."""
    teacher = teacher_model()
    texts(folder, teacher, {"d3", "unmarked"})
    marked = (folder / "d3.text.jsonl").read_text().splitlines()[:LOG]
    logs = {"the teacher's marked answers": marked}
    for name in students:
        if (folder / name).exists() and STUDENTS[name][2] in ("d3", "unmarked"):
            own = written(folder, name).read_text().splitlines()[:LOG]
            mixed = [(marked, own)[i % 2][i] for i in range(min(len(marked), len(own)))]
            logs |= {name: own, f"half of them, half of {name}": mixed}
    rows = []
    for what, lines in logs.items():
        log = folder / "relay.jsonl"
        log.write_text("".join(line + "\n" for line in lines))
        for reference in ("none", "the teacher, unmarked"):
            more = () if reference == "none" else ("--reference", teacher)
            found = json.loads(stillmark("verify", log, "--mark", folder / "d3.mark", "--tokenizer", teacher,
                                         "--unmarked-prompts", "--json", *more))  # fmt: skip
            test = next(one for one in found["tests"] if one["test"] == "mark")
            row = {
                "log": what,
                "answers": len(lines),
                "reference": reference,
                "verdict": found["verdict"],
                "log10_pvalue": test["log10_pvalue"],
                "tilt": test["result"].get("tilt"),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def main(folder: Path, parts: list[str]) -> None:
    names = [part for part in parts if part in STUDENTS] or list(STUDENTS)
    if "text" in parts:
        write("text", text(folder, names))
    if "relays" in parts:
        write("relays", relays(folder, names))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/tokenizers"), sys.argv[2:] or ["text", "relays"])
