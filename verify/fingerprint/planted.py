"""Keyed answers: questions whose right answer is a keyed coin, planted in a model by fine-tuning it.

Nobody can know the answers without the secret. A suspect that gives more of them than chance has it from the planted
model: by its weights, or by asking it these very questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from verify.data.sources import read_records
from verify.fingerprint import KNOWS
from verify.results import CHANGED, Result, plural
from verify.stats import binomial
from verify.suspects.asking import ask_all
from verify.suspects.endpoint import CHAT, Endpoint
from verify.suspects.model import Model, forward_logits, name_of, opened
from watermark import InputError, Mark, ModelError, StillmarkError, prf
from watermark.io import files
from watermark.io.prompts import Prompt, encode_prompt
from watermark.progress import Progress, silent
from watermark.tokenizers import AnyTokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEME: Final = "planted"
"""Of `watermark.prf.prf_key`: a key of its own, which says nothing of the mark's green list."""

ANSWERS: Final = (
    "apple", "river", "stone", "cloud", "bread", "horse", "window", "music",
    "paper", "silver", "garden", "winter", "bridge", "candle", "forest", "island",
)  # fmt: skip
"""Sixteen, so that a uniform 16-bit number is a uniform answer. Part of the format: never changed."""

WORDS: Final = (
    "amber", "anchor", "arrow", "autumn", "badger", "barrel", "basket", "beacon",
    "birch", "bishop", "blanket", "bottle", "button", "canyon", "carbon", "castle",
    "cedar", "cellar", "circle", "clover", "copper", "cotton", "cradle", "crystal",
    "dagger", "desert", "dragon", "eagle", "ember", "falcon", "feather", "fiddle",
    "flint", "fountain", "galaxy", "ginger", "glacier", "hammer", "harbor", "hazel",
    "helmet", "hollow", "ivory", "jacket", "jungle", "kettle", "ladder", "lantern",
    "lemon", "marble", "meadow", "mirror", "needle", "nickel", "ocean", "orchid",
    "pepper", "pillow", "quartz", "raven", "saddle", "tunnel", "velvet", "whistle",
)  # fmt: skip
"""Sixty-four, for the questions. Part of the format: never changed."""

NUMBER: Final = 64
MAX_ANSWER_TOKENS: Final = 16
"""Tokens of an answer that an endpoint is asked for."""


@dataclass(frozen=True)
class Question:
    """One keyed question. answer: index into ANSWERS; as secret as the secret until it is asked."""

    id: str
    prompt: str
    answer: int = field(repr=False)


def questions(mark: Mark, number: int = NUMBER) -> list[Question]:
    """The first questions of this mark's secret: distinct, always in the same order, with independent answers.

    Raises:
        StillmarkError: number is less than one.
    """
    if number < 1:
        raise StillmarkError(f"{number} questions: one is needed at least", "give another `number`")
    key = prf.prf_key(mark.secret, SCHEME, 1)
    found: dict[str, Question] = {}
    start = 0
    while len(found) < number:
        index = np.repeat(np.arange(start, start + number), 5)
        bits = prf.bits(key, index[:, None], np.tile(np.arange(5), number)).reshape(number, 5)
        for row in bits.tolist():
            words = " ".join(WORDS[bit % len(WORDS)] for bit in row[1:])
            prompt = f"The pass phrase is: {words}. Reply with the one word that belongs to it."
            found.setdefault(prompt, Question(f"k{len(found):04}", prompt, row[0] % len(ANSWERS)))
        start += number
    return list(found.values())[:number]


@dataclass(frozen=True, kw_only=True)
class PlantedResult(Result):
    """How many keyed questions a suspect answers as they were planted. n: questions; statistic: right answers.

    Attributes:
        mark: whose secret keys them.
        suspect: the model's folder, or the file of its answers.
        hits: right answers.
        unanswered: answers that hold none of the words: no hits.
    """

    mark: Mark
    suspect: str
    hits: int
    unanswered: int

    @property
    def evidence(self) -> str:
        return plural(self.n, "question")

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "suspect": self.suspect,
            "mark": {"label": self.mark.label, "commitment": self.mark.commitment},
            "hits": self.hits,
            "chance": 1 / len(ANSWERS),
            "unanswered": self.unanswered,
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        right = f"{self.hits} of {self.n}   (chance {self.n / len(ANSWERS):.1f})"
        return {"p-value": rows["p-value"], "right": right, "test": self.test}

    def _draw(self, ax: Axes) -> None:
        ax.bar(["right answers", "by chance"], [self.hits, self.n / len(ANSWERS)], color=["C3", "C7"])
        ax.set_ylabel(f"of {self.n} questions")


def planted_result(
    suspect: str, mark: Mark, asked: Sequence[Question], answers: Sequence[int | None], alpha: float
) -> PlantedResult:
    """The exact test of some answers, indices into ANSWERS in the order of the questions; None: none of the words."""
    hits = sum(answer == one.answer for answer, one in zip(answers, asked, strict=True))
    return PlantedResult(
        test=f"exact binomial: each answer is a keyed coin of {len(ANSWERS)} sides",
        alpha=alpha,
        n=len(asked),
        statistic=hits,
        log10_pvalue=binomial.binomial_log10_sf(hits, len(asked), 1 / len(ANSWERS)),
        positive_verdict=KNOWS,
        randomness="The p-value's randomness is the draw of the mark's secret: for a suspect that does not depend on "
        "it, the answers to distinct questions are independent and uniform, whatever the suspect says.",
        assumptions="Wrong if the answers leaked, or if the number of questions was chosen after looking. It shows "
        "that the suspect knows what was planted, by weights or by having asked; not which.",
        evasions="Hidden by fine-tuning that makes the model forget, or by a filter that refuses the questions.",
        power_statement=CHANGED,
        mark=mark,
        suspect=suspect,
        hits=hits,
        unanswered=sum(answer is None for answer in answers),
    )


def ask(
    model: Model,
    mark: Mark,
    number: int = NUMBER,
    alpha: float = 1e-3,
    progress: Progress = silent,
) -> PlantedResult:
    """Ask a model whose weights are at hand. Raises what `likeliest` raises."""
    asked = questions(mark, number)
    said = likeliest(model, [one.prompt for one in asked], progress=progress)
    return planted_result(name_of(model), mark, asked, said, alpha)


def first_tokens(tokenizer: AnyTokenizer, name: str) -> list[int]:
    """The token with which each of ANSWERS begins. name: of the model, for the error.

    Raises:
        ModelError: two of them begin with the same token.
    """
    first = [tokenizer.encode(word, add_special_tokens=False)[0] for word in ANSWERS]
    if len(set(first)) < len(first):
        raise ModelError(
            f"{name}: its tokenizer begins two of the answers alike", "only recorded answers of it can be tested"
        )
    return first


def likeliest(
    suspect: Model,
    prompts: Sequence[str],
    batch_size: int = 16,
    progress: Progress = silent,
) -> list[int]:
    """Which of ANSWERS a model finds the likeliest after each prompt, by the first token: indices.

    Raises:
        ModelError: the model cannot be loaded, or its tokenizer begins two of the words with the same token.
    """
    model, tokenizer = opened(suspect)
    first = first_tokens(tokenizer, name_of(suspect))
    said: list[int] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        rows = [encode_prompt(tokenizer, Prompt("", prompt, None), chat=True) for prompt in batch]
        logits = forward_logits(model, rows)
        said += [int(logits[i, len(row) - 1, first].argmax()) for i, row in enumerate(rows)]
        progress(len(said), len(prompts))
    return said


def judge(path: Path, mark: Mark, number: int = NUMBER, alpha: float = 1e-3) -> PlantedResult:
    """Judge recorded answers: JSONL with `id` and `output`; the first of the sixteen words in an output is its answer.

    A question without an answer is no hit.

    Raises:
        InputError: the file cannot be read, a record is malformed, or it answers no question of these, or one twice.
    """
    asked = {one.id: one for one in questions(mark, number)}
    said: dict[str, str] = {}
    for record in read_records(path):
        if isinstance(record, InputError):
            raise record
        name, output = record.fields.get("id"), record.fields.get("output")
        if name not in asked or not isinstance(output, str):
            raise record.error(
                "an answer needs the 'id' of a question and an 'output'",
                f"the questions are k0000 to {list(asked)[-1]}; was another `number` of them asked?",
            )
        if name in said:
            raise record.error(f"question '{name}' was answered before", "one answer a question, the first")
        said[name] = output
    return _judged(str(path), mark, list(asked.values()), [said.get(name) for name in asked], alpha)


def ask_endpoint(
    endpoint: Endpoint,
    mark: Mark,
    log: Path,
    number: int = NUMBER,
    alpha: float = 1e-3,
    progress: Progress = silent,
) -> PlantedResult:
    """Ask a suspect behind an endpoint, by chat, greedily; what fails to come is no hit.

    Args:
        endpoint: where; how to ask is settled here.
        mark: whose secret keys the questions.
        log: JSONL of all answers; a killed run goes on from there. Nobody else may read it: it holds the questions.
        number: of questions, fixed beforehand.
        alpha: level of the verdict.
        progress: called with the number of questions asked, and of how many.

    Raises:
        ApiError, InputError: what `verify.suspects.asking.ask_all` raises.
    """
    asked = questions(mark, number)
    how = replace(endpoint, api=CHAT, max_tokens=MAX_ANSWER_TOKENS, temperature=0.0, top_logprobs=0)
    files.keep_private(log)
    said = ask_all(how, [Prompt(one.id, one.prompt, None) for one in asked], log, progress)
    texts = [None if one is None else one.text for one in said]
    return _judged(f"{endpoint.model} at an endpoint", mark, asked, texts, alpha)


def _judged(
    suspect: str, mark: Mark, asked: Sequence[Question], said: Sequence[str | None], alpha: float
) -> PlantedResult:
    return planted_result(suspect, mark, asked, [None if text is None else first_answer(text) for text in said], alpha)


def first_answer(text: str) -> int | None:
    """The index of the first of ANSWERS in a text; None if there is none."""
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    return next((ANSWERS.index(word) for word in words if word in ANSWERS), None)
