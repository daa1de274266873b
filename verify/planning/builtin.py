"""Probes and prompts that come with the package, for a test where nobody has brought any.

They were written by people who knew no secret, and before any mark was made: they cannot carry one.

The probes are 266 paragraphs of State of the Union addresses, 1961 to 2020, which are in the public domain
(`passages.json`; `benchmarks/texts.py` writes it).
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np

from verify.data.outputs import Output
from verify.planning.probes import cut
from verify.planning.questions import questions
from watermark import Mark
from watermark.io.prompts import Prompt
from watermark.tokenizers import encoder

PROBE_LENGTH: Final = 256
"""Most tokens of a probe. A passage has about 125 tokens of an English tokenizer, so few are cut."""


def builtin_probes(mark: Mark, tokenizer: str | Path | None = None, number: int | None = None) -> list[Output]:
    """The package's passages as probes, in a fixed, mixed order, so that the first few are like the whole.

    Args:
        mark: the probes are token ids of its tokenizer.
        tokenizer: the folder of that tokenizer; None: where it was when the mark was made.
        number: how many passages; None: all, about 30,000 tokens.

    Returns:
        probes without a prompt, `marked` False, of at most `PROBE_LENGTH` tokens; a longer passage gives several.

    Raises:
        TokenizerError: there is no tokenizer, or it is not the mark's.
        ValueError: there are not so many passages.
    """
    data = json.loads((resources.files("verify.planning") / "passages.json").read_text(encoding="utf-8"))
    passages = data["passages"]
    if number is not None and not 0 < number <= len(passages):
        raise ValueError(f"there are {len(passages)} passages, not {number}")
    some = passages[:number]
    ids = encoder(mark, None if tokenizer is None else Path(tokenizer))([one["text"] for one in some])
    texts = (Output(one["id"], None, np.array(row, np.int64), marked=False) for one, row in zip(some, ids, strict=True))
    return cut(texts, PROBE_LENGTH)


def builtin_prompts(number: int | None = None) -> list[Prompt]:
    """The first of the package's 720 questions, in a fixed, mixed order; None: all.

    >>> builtin_prompts(1)[0].text
    'Describe a photograph that shows whales.'

    Raises:
        ValueError: there are not so many.
    """
    return questions(number)
