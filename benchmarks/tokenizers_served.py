"""Students that speak tokens of their own, behind a server on loopback that tells the top 20 of each token by strings.

    .venv/bin/python -m benchmarks.tokenizers_served [FOLDER] [STUDENT]...

FOLDER (default: demo/tokenizers) is what `benchmarks.tokenizers` made. Minutes a student on one core. Results go to the
part `served` of benchmarks/results/tokenizers.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.tokenizers import DELTAS, RESULTS, STUDENTS, levels, until, write
from tests.servers import real_model, serve
from verify import Endpoint, endpoint_test
from verify.data.logprobs import (
    TextLogprobs,
    as_output,
    at_common_places,
    keep_top_of_text,
    most_named,
    read_recorded,
    scorable_logprobs,
)
from verify.planning.builtin import builtin_prompts
from verify.planning.demo import teacher_model
from verify.radioactivity.inputs import tables
from verify.radioactivity.logprobs import logprob_result
from verify.radioactivity.translated import beside_strings, translations
from verify.suspects.model import read_weights
from watermark import Mark

ANSWERS: Final = 32
TOKENS: Final = 128
INNOCENT: Final = (100, 48)
"""Answers that an innocent gives, and tokens of each at most."""
TOP: Final = 20


def asked(folder: Path, name: str, mark: Mark, answers: int, tokens: int) -> tuple[list[TextLogprobs], bool]:
    """What a student says behind the server, kept in a log; and whether its log probabilities were scored."""
    log = folder / "served" / f"{name}.jsonl"
    log.parent.mkdir(exist_ok=True)
    os.environ.setdefault("OPENAI_API_KEY", "none")
    with serve(real_model(folder / name)) as (url, _):
        endpoint = Endpoint(url, name, top_logprobs=TOP, max_tokens=tokens, concurrency=1)
        # alpha out of reach: all the prompts are asked
        found = endpoint_test(
            mark, endpoint, builtin_prompts()[:answers], log=log, alpha=1e-200, least=1e-9, tokenizer=teacher_model()
        )
    return read_recorded(log, mark), found.access == "logprobs"


def served(folder: Path, names: list[str]) -> dict[str, Any]:
    """Guilty students with each kind of reference; innocents under the true keys; others as before."""
    known = json.loads(RESULTS.read_text()).get("served", {}) if RESULTS.exists() else {}
    rows = [row for row in known.get("table", []) if row["student"] not in names]
    innocent = known.get("innocents under true keys", {})
    for name, (kind, spoken, taught) in STUDENTS.items():
        if name not in names or not (folder / name).exists():
            continue
        if taught == "unmarked":
            marks = [Mark.load(folder / f"d{delta}.mark") for delta in DELTAS]
            said, _ = asked(folder, name, marks[0], *INNOCENT)
            innocent[name] = levels([
                logprob_result(mark, scorable_logprobs([text], 1, unmarked=True), decoys=0).log10_pvalue
                for mark in marks for text in said
            ])  # fmt: skip
            print(name, innocent[name], flush=True)
            continue
        mark = Mark.load(folder / f"{taught}.mark")
        said, logprobs = asked(folder, name, mark, ANSWERS, TOKENS)
        references = {"none": None, "the mark's tokenizer": teacher_model()}
        if (folder / f"{kind}-{spoken}-unmarked").exists():
            references["the suspect's tokenizer"] = folder / f"{kind}-{spoken}-unmarked"
        for words, reference in references.items():
            row = {"student": name, "delta": mark.scheme.lift, "reference": words, "log probabilities": logprobs}
            rows.append(row | measured(mark, said, reference, folder / "served" / f"{name} beside {words}.jsonl"))
            print(rows[-1], flush=True)
    return {
        "table": sorted(rows, key=lambda row: list(STUDENTS).index(row["student"])),
        "innocents under true keys": innocent,
    }


def measured(mark: Mark, said: list[TextLogprobs], reference: Path | None, log: Path) -> dict[str, Any]:
    """Positions to 1e-6, and what was kept."""
    mine, theirs = said, None
    if reference is not None:
        how = translations(mark, None, reference, teacher_model(), unmarked=True).reference
        read = read_weights(reference, mark, list(map(as_output, said)), record=log, translator=how)
        read = [keep_top_of_text(one, most_named(said)) for one in beside_strings(mark, said, read, teacher_model())]
        mine, theirs = at_common_places(said, read)
    scored, beside = tables(mark, mine, theirs, unmarked=True)
    whole = logprob_result(mark, scored, beside, decoys=200)
    assert whole.decoys is not None
    return {
        "positions": len(scored),
        "kept": len(scored) / sum(len(text.ids) - text.start for text in said),
        "discarded": scored.discarded,
        "log10_pvalue": whole.log10_pvalue,
        "positions_to_1e-6": until(mark, scored, beside),
        "decoys": {"mean": float(np.mean(whole.decoys.z)), "sd": float(np.std(whole.decoys.z))},
    }


def main(folder: Path, parts: list[str]) -> None:
    write("served", served(folder, parts or list(STUDENTS)))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        Path(next((one for one in arguments if one not in STUDENTS), "demo/tokenizers")),
        [one for one in arguments if one in STUDENTS],
    )
