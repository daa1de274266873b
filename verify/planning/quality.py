"""What a scheme costs: a model's answers with marks beside its unmarked answers to the same prompts.

Each key has unmarked answers of its own to compare with. So the differences of the keys are independent, and their
interval holds what the keys and the draws of both sides add to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from scipy.special import ndtri, ndtri_exp

from verify.data.outputs import Output, output_of
from verify.data.reads import pairs_of
from verify.planning.distributions import Along, perplexity, read_distributions
from verify.planning.power import MEASURED_GAMMA, POWER, measured_need
from verify.planning.quality_result import Evidence, Measure, Quality
from verify.planning.questions import questions
from verify.progress import Stages, on, silent
from verify.radioactivity.text import TextResult, text_result
from verify.stats.binomial import LN10
from verify.stats.diversity import distinct_n, repeated_n, self_bleu
from verify.suspects.model import Model, name_of, opened
from watermark import Mark, UsageError
from watermark.errors import within
from watermark.generation import Sampling, as_prompts, generate
from watermark.io import files
from watermark.io.prompts import Prompt
from watermark.mark import Marks, as_mark

PROMPTS: Final = 16
"""Of the package's questions, where nobody names prompts or a number."""
SAMPLING: Final = Sampling(max_new_tokens=64, batch_size=64)
"""How answers are drawn where nobody says it."""
MEASURED_DELTAS: Final = (0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
MEASURED_DIVERGENCES: Final = (0.00068, 0.01855, 0.08014, 0.1885, 0.3391, 0.5197, 0.7149, 1.093, 1.627)
"""Divergence a token, in nats, of green lists with gamma 0.25 and these deltas, along 16 of the package's answers
(1,872 tokens, about 1 % standard error). They are SmolLM2-135M-Instruct's, as what the measured students learned from.
`benchmarks/quality.py` prints the numbers.
"""

_LARGEST: Final = math.log1p(-1e-9)  # ln of a p-value that has a z
_LEAST: Final = 1.0  # mean z of the keys from which their text says how much text it takes


def quality(
    model: Model,
    mark: Mark | str | Path,
    prompts: str | Path | Sequence[str | Prompt] | None = None,
    *,
    number: int | None = None,
    answers: int = 8,
    keys: int = 8,
    sampling: Sampling = SAMPLING,
    margin: float = 0.02,
    alpha: float = 1e-3,
    out: str | Path | None = None,
    progress: Stages = silent,
) -> Quality:
    """What a mark's scheme costs a model's answers, and what tests will see of it: with several keys, beside no mark.

    For each key the model answers all prompts several times with the key's mark and as often without, with equal
    budgets. The keys are the mark's own and children of it. The interval is over the keys: it says what the scheme
    costs on these prompts. Do not choose among keys by such figures: text that does not depend on a mark leans towards
    a key that was chosen for it, and p-values are wrong then.

    Args:
        model: folder of a causal LM with its tokenizer, or the two loaded.
        mark: the mark, or its file.
        prompts: texts, prompts, or a JSONL file of them; None: the package's questions.
        number: use the first so many prompts; None: all, or 16 of the package's.
        answers: to each prompt, of each key and each side.
        keys: how many; 8 or more for an interval that can be relied on.
        sampling: how to draw the answers, 64 tokens at most if nobody says it; temperature more than 0. The seed is
            that of all answers together.
        margin: relative difference of perplexities that counts as none, for the equivalence test.
        alpha: level of the later tests for a mark, of which the power is estimated.
        out: folder for the answers and what was read along them, record by record; a call that was killed goes on.
        progress: opened around each piece of work.

    Raises:
        UsageError: an argument lies outside its range.
        InputError: the prompts cannot be read, or a file in `out` cannot be written or is of other settings.
        MarkError, ModelError, TokenizerError: the model cannot be loaded, or is not for the mark.

    Example:
        >>> import verify
        >>> print(verify.quality("MODEL", "teacher.mark", out="quality"))  # doctest: +SKIP
    """
    within("answers", answers, 2, float("inf"), first=True)
    within("keys", keys, 2, float("inf"), first=True)
    within("margin", margin, 0, 1)
    within("alpha", alpha, 0, 1)
    within("temperature", sampling.temperature, 0, float("inf"))
    mark = as_mark(mark)
    asked = _prompts(prompts, number)
    drawn = (mark, *(mark.child(f"stillmark quality {i}") for i in range(1, keys)))
    sides = [(key, marked) for key in drawn for marked in (False, True)]
    rows = [(key, marked, prompt, i) for key, marked in sides for prompt in asked for i in range(answers)]
    by = [key for key, _, _, _ in rows]
    said = [_numbered(prompt, drawn.index(key), marked, i) for key, marked, prompt, i in rows]
    marks = Marks.by_row([[key] if marked else [] for key, marked, _, _ in rows])
    folder = None if out is None else _folder(Path(out))
    source = opened(model, mark) if folder is None else model
    with progress(on("writing with", name_of(model)), "answers") as update:
        path = None if folder is None else folder / "answers.jsonl"
        written = generate(source, said, mark=marks, sampling=sampling, out=path, progress=update)
    outputs = [output_of(one) for one in written]
    with progress(on("reading", name_of(model)), "answers") as update:
        path = None if folder is None else folder / "read.jsonl"
        read = read_distributions(source, outputs, by, sampling=sampling, record=path, progress=update)
    with progress("comparing the answers", ""):
        size = len(asked) * answers
        arms = [
            _Arm(
                key, marked, answers, prompts is None, tuple(outputs[first : first + size]), read[first : first + size]
            )
            for first, (key, marked) in zip(range(0, len(rows), size), sides, strict=True)
        ]
        unmarked, marked = ([arm.figures() for arm in arms[side::2]] for side in (0, 1))
        measures = tuple(
            Measure(name, tuple(one[name] for one in unmarked), tuple(one[name] for one in marked))
            for name in marked[0]
        )
        evidence = _evidence(arms[::2], arms[1::2], mark.width, alpha)
    return Quality(
        model=Path(name_of(model)).name,
        mark=mark,
        prompts=len(asked),
        answers=answers,
        keys=keys,
        sampling=sampling,
        tokens=sum(one.tokens for one in read),
        measures=measures,
        margin=margin,
        evidence=evidence,
    )


def _prompts(prompts: str | Path | Sequence[str | Prompt] | None, number: int | None) -> list[Prompt]:
    """The prompts to answer. Raises UsageError if there are fewer than were asked for."""
    asked = questions() if prompts is None else as_prompts(prompts)
    most = len(asked)
    within("number", number, 1, most, first=True, last=True)
    if not asked:
        raise UsageError("there are no `prompts`")
    return asked[: PROMPTS if number is None and prompts is None else number]


def _numbered(prompt: Prompt, key: int, marked: bool, answer: int) -> Prompt:
    """A prompt once more: its id says for which key (0: the mark's own), which side and which answer."""
    return replace(prompt, id=f"{key}/{'marked' if marked else 'unmarked'}/{prompt.id}/{answer}")


def _folder(path: Path) -> Path:
    with files.writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class _Arm:
    """The answers of one key, with its mark or without, and the model's distributions along them.

    answers: to one prompt; these follow each other. free: the prompts cannot carry the mark.
    """

    key: Mark
    marked: bool
    answers: int
    free: bool
    outputs: tuple[Output, ...]
    read: Sequence[Along]

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.read)

    def mean(self, name: str) -> float:
        """A sum of `Along`, a token."""
        return float(sum(getattr(one, name) for one in self.read)) / max(1, self.tokens)

    @cached_property
    def text(self) -> TextResult:
        """The exact binomial test of these answers for the key."""
        pairs = pairs_of(self.key, self.outputs, unmarked_prompts=self.free)
        return text_result(self.key, pairs)

    def figures(self) -> dict[str, float]:
        """Each measure by its name."""
        # without the token that ends an answer: it is no text
        texts = [(one.output_ids[:-1] if one.ended else one.output_ids).tolist() for one in self.outputs]
        groups = [texts[first : first + self.answers] for first in range(0, len(texts), self.answers)]
        return {
            "perplexity": perplexity(self.read),
            "self_bleu_3": sum(map(self_bleu, groups)) / len(groups),
            "distinct_2": distinct_n(texts, 2),
            "repeated_4": repeated_n(texts, 4),
            "entropy": self.mean("marked_entropy" if self.marked else "entropy"),
            "model_entropy": self.mean("entropy"),
            "at_limit": sum(not one.ended for one in self.outputs) / len(texts),
            "length": self.tokens / len(texts),
            "green_rate": self.text.green_rate or 0.0,
        }


def like_delta(divergence: float) -> float:
    """The delta of a green list (gamma 0.25) that has this divergence a token along the package's answers.

    Between the measured ones by the logarithms; below them by the square of delta; 6, the largest one, for more.

    >>> like_delta(MEASURED_DIVERGENCES[2]), round(like_delta(MEASURED_DIVERGENCES[0] / 4), 6)
    (1.0, 0.05)
    """
    least = MEASURED_DIVERGENCES[0]
    if divergence < least:
        return MEASURED_DELTAS[0] * math.sqrt(max(0.0, divergence) / least)
    return float(np.exp(np.interp(math.log(divergence), np.log(MEASURED_DIVERGENCES), np.log(MEASURED_DELTAS))))


def _evidence(unmarked: Sequence[_Arm], marked: Sequence[_Arm], width: int, alpha: float) -> Evidence:
    """What tests will see: of the answers themselves, and in a student of them."""
    log10_pvalues = tuple(arm.text.log10_pvalue for arm in marked)
    z = [-float(ndtri_exp(min(p * LN10, _LARGEST))) for p in log10_pvalues]
    tokens = sum(arm.tokens for arm in marked) / len(marked)
    mean = sum(z) / len(z)
    goal = float(ndtri(POWER) - ndtri(alpha))
    divergence = tuple(arm.mean("divergence") for arm in unmarked)
    like = like_delta(sum(divergence) / len(divergence))
    return Evidence(
        alpha=alpha,
        power=POWER,
        tokens=round(tokens),
        log10_pvalues=log10_pvalues,
        relayed_tokens=math.ceil(tokens * (goal / mean) ** 2) if mean >= _LEAST else None,
        divergence=divergence,
        energy=tuple(arm.mean("energy") for arm in unmarked),
        like_delta=like,
        student={
            access: measured_need(access, delta=like, width=width, gamma=MEASURED_GAMMA, reference=True, alpha=alpha)
            for access in ("weights", "top20", "text")
        },
    )
