"""What the students of `students.py` wrote and said, read once and kept beside them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from verify.data.logprobs import LogprobTable, TextLogprobs, keep_top_of_text, scorable_logprobs
from verify.data.outputs import Output, read_outputs
from verify.data.pairs import Positions, WeightedPairs
from verify.data.reads import positions_of, reads_of
from verify.planning.demo import teacher_model
from verify.radioactivity.logprobs import log10_bound
from verify.suspects.model import read_weights
from watermark import Mark

FOLDER = Path(os.environ.get("STUDENTS", "demo/students"))
INNOCENT = ("base", "unmarked")


def model_of(name: str) -> Path:
    return teacher_model() if name == "base" else FOLDER / name


def mark_of(name: str) -> Mark:
    return Mark.load(FOLDER / f"{name}.mark")


def outputs(path: Path) -> list[Output]:
    return [output for output in read_outputs(path, Mark(bytes(32))) if len(output.output_ids)]


@cache
def text_of(name: str) -> list[Output]:
    """What a student wrote, asked what its teacher was not."""
    return outputs(FOLDER / f"{name}.text.jsonl")


@cache
def along(name: str, texts: str) -> list[TextLogprobs]:
    """What a model says along texts: `probes`, or `X.text` or `X.teacher` of a student X."""
    record = FOLDER / "read" / f"{name}@{texts}.jsonl"
    record.parent.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    print(f"reading {name} along {texts}", file=sys.stderr)
    plain = Mark(bytes(32), vocabulary_size=49152)
    return read_weights(model_of(name), plain, outputs(FOLDER / f"{texts}.jsonl"), record=record)


def log10_pvalue(mark: Mark, pairs: WeightedPairs) -> float:
    return log10_bound(mark, pairs, unmarked=True)


def shuffled(texts: Sequence[TextLogprobs], seed: int) -> list[TextLogprobs]:
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]


def readings(texts: Sequence[TextLogprobs], mark: Mark, k: int | None = None, *, unmarked: bool = True) -> LogprobTable:
    """What may be scored of texts; k: only the k largest log probabilities."""
    return scorable_logprobs(
        [text if k is None else keep_top_of_text(text, k) for text in texts],
        mark.width,
        unmarked=unmarked,
        reads=reads_of(mark),
    )


def written(texts: Sequence[Output], mark: Mark) -> Positions:
    return positions_of(mark, texts, unmarked_prompts=True)


def sampled(texts: Sequence[TextLogprobs], k: int) -> list[TextLogprobs]:
    """As an endpoint would tell it of what it wrote itself."""
    return [replace(keep_top_of_text(text, k), sampled=True) for text in texts]
