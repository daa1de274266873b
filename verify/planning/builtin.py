"""Probes and prompts that come with the package, for a test where nobody has brought any.

The probes are answers of a small open model to questions (`answers.json`; `benchmarks/texts.py` wrote it), sampled
without any mark before any user's mark was made: they cannot carry one. Answers to questions are what most students
were trained on, and a suspect shows more of a mark along such text than along prose: docs/testing.md has the figures.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np

from verify.data.outputs import Output
from verify.planning.questions import questions
from watermark import Mark
from watermark.io.prompts import Prompt, encode_prompt
from watermark.tokenizers import encoder, load_transformers_for


def builtin_probes(mark: Mark, tokenizer: str | Path | None = None, number: int | None = None) -> list[Output]:
    """The package's answers as probes, each after its question in the tokenizer's chat template, if it has one.

    Args:
        mark: the probes are token ids of its tokenizer.
        tokenizer: the folder of that tokenizer; None: where it was when the mark was made.
        number: how many; None: all, about 14,000 tokens.

    Returns:
        probes with `marked` False.

    Raises:
        MissingExtraError: transformers is not installed, which applies the chat template.
        TokenizerError: there is no tokenizer, or it is not the mark's.
        ValueError: there are not so many.
    """
    data = json.loads((resources.files("verify.planning") / "answers.json").read_text(encoding="utf-8"))
    answers = data["answers"]
    if number is not None and not 0 < number <= len(answers):
        raise ValueError(f"there are {len(answers)} answers, not {number}")
    some = answers[:number]
    chat = load_transformers_for(mark, tokenizer)
    written = encoder(mark, None if tokenizer is None else Path(tokenizer))([one["text"] for one in some])
    asked = [encode_prompt(chat, Prompt(one["id"], one["prompt"], None), chat=True) for one in some]
    return [
        Output(one["id"], np.array(prompt, np.int64), np.array(ids, np.int64), marked=False, prompt=one["prompt"])
        for one, prompt, ids in zip(some, asked, written, strict=True)
    ]


def builtin_prompts(number: int | None = None) -> list[Prompt]:
    """The first of the package's 720 questions, in a fixed, mixed order; None: all.

    >>> builtin_prompts(1)[0].text
    'Describe a photograph that shows whales.'

    Raises:
        ValueError: there are not so many.
    """
    return questions(number)
