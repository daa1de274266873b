"""A model's next-token distributions along answers, without and with a mark: perplexity, entropy, divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.outputs import Output, digest
from verify.suspects.model import Model, forward_logits, name_of, opened
from watermark import Mark
from watermark.generation import DEFAULT, Sampling
from watermark.io.fields import is_number
from watermark.io.records import Record, resumable, run_digest
from watermark.models import model_digest
from watermark.progress import Progress, silent
from watermark.schemes.logits import Repeats

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE: Final = 1 << 24  # logits that are copied at a time
_TEXTS: Final = 8  # in one forward pass


@dataclass(frozen=True)
class Along:
    """What a model's next-token distributions p are along one answer: sums over its tokens, in nats.

    p is what tokens are drawn from without a mark, after temperature and truncation, and q the same with the mark.

    Attributes:
        tokens: of the answer.
        loss: -ln of each token's probability by the model itself, at temperature 1 and without truncation.
        entropy: of p.
        marked_entropy: of q.
        divergence: of Kullback and Leibler, the mean of ln(q / p) under q: the evidence that a token carries, at most.
        energy: the variance of ln(q / p) under p.
    """

    tokens: int
    loss: float
    entropy: float
    marked_entropy: float
    divergence: float
    energy: float


def read_distributions(
    model: Model,
    answers: Sequence[Output],
    marks: Sequence[Mark],
    *,
    sampling: Sampling = DEFAULT,
    record: Path | None = None,
    progress: Progress = silent,
) -> list[Along]:
    """Read a model along answers, by teacher forcing.

    Args:
        model: the model that wrote the answers, a folder or loaded.
        answers: token sequences; what is read are the distributions of the output tokens, after the prompt.
        marks: a mark for each answer. Nothing is assumed of its scheme: q comes from `Mark.bias_`.
        sampling: how the answers were drawn; temperature more than 0.
        record: JSONL to keep what was read in, and to go on from.
        progress: called with the number of answers read, and of how many.

    Raises:
        ModelError: the model cannot be loaded, an answer is longer than it reads, or its outputs are not numbers.
        InputError: `record` cannot be written, is of another run, or another run writes it.
    """

    def work(done: int) -> Iterator[Along]:
        loaded, _ = opened(model, marks[done])
        warpers = _warpers(sampling)
        for start in range(done, len(answers), _TEXTS):
            batch = answers[start : start + _TEXTS]
            logits = forward_logits(loaded, [one.ids for one in batch])
            for row, (answer, mark) in enumerate(zip(batch, marks[start : start + _TEXTS], strict=True)):
                yield _along(logits[row], answer, mark, warpers, sampling.repeats)

    how = [sampling.settings, digest(answers), [mark.commitment for mark in marks]]
    found = resumable(
        record,
        "" if record is None else run_digest(model_digest(model), *how),
        [one.id for one in answers],
        work,
        to_fields=lambda along: asdict(along) | {"model": Path(name_of(model)).name},
        from_record=_recorded,
        progress=progress,
    )
    return list(found)


def perplexity(read: Sequence[Along]) -> float:
    """exp of the mean loss of a token, over some answers together; 1 if there are no tokens.

    >>> read = Along(tokens=2, loss=2 * math.log(8), entropy=2.0, marked_entropy=1.9, divergence=0.1, energy=0.2)
    >>> round(perplexity([read, read]), 9)
    8.0
    """
    return math.exp(sum(one.loss for one in read) / max(1, sum(one.tokens for one in read)))


def _recorded(record: Record) -> Along:
    def number(name: str) -> float:
        value: Any = record.fields.get(name)
        if not is_number(value):
            raise record.error(f"'{name}' must be a number")
        return float(value)

    return Along(
        tokens=int(number("tokens")),
        loss=number("loss"),
        entropy=number("entropy"),
        marked_entropy=number("marked_entropy"),
        divergence=number("divergence"),
        energy=number("energy"),
    )


def _warpers(sampling: Sampling) -> Callable[..., Tensor]:
    """What `generate` does to logits before a mark, in its order."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found: Any = LogitsProcessorList()
    if sampling.temperature != 1:
        found.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    warpers: Callable[..., Tensor] = found
    return warpers


def _along(
    logits: Tensor, answer: Output, mark: Mark, warpers: Callable[..., Tensor], repeats: Repeats = "mark"
) -> Along:
    """logits: [at least T, V], along prompt and output."""
    import torch

    ids = answer.ids
    first = max(1, answer.start)  # nothing predicts a token at 0
    contexts = torch.from_numpy(_contexts(ids, mark.width, repeats)).to(logits.device)
    tokens = torch.from_numpy(ids).to(logits.device)
    step = max(1, _AT_ONCE // logits.shape[-1])
    sums = np.zeros(5)
    for start in range(first, len(ids), step):
        here = slice(start, min(start + step, len(ids)))
        plain = logits[here.start - 1 : here.stop - 1].float()
        loss = -plain.log_softmax(-1).gather(-1, tokens[here, None])
        drawn = warpers(tokens[here, None], plain)
        marked = mark.bias_(drawn.clone(), contexts[here]).log_softmax(-1)
        drawn = drawn.log_softmax(-1)
        change = (marked - drawn).nan_to_num(nan=0.0)  # -inf - -inf, of tokens that are cut off
        chance = drawn.exp()
        mean = (chance * change).sum(-1, keepdim=True)
        energy = (chance * (change - mean) ** 2).sum(-1)
        divergence = (marked.exp() * change).sum(-1)
        each = (loss, _entropy(drawn), _entropy(marked), divergence, energy)
        sums += [float(one.double().sum()) for one in each]
    return Along(max(0, len(ids) - first), *(round(float(one), 6) for one in sums))


def _entropy(logprobs: Tensor) -> Tensor:
    """Of distributions [N, V], in nats: [N]."""
    import torch

    entropy: Tensor = torch.special.entr(logprobs.exp()).sum(-1)
    return entropy


def _contexts(ids: npt.NDArray[np.int64], width: int, repeats: Repeats) -> npt.NDArray[np.int64]:
    """The tokens before each, int64 [T, width], oldest first, -1 where there is none or none is to be marked."""
    padded = np.concatenate([np.full(width, -1), ids])
    columns = [padded[i : i + len(ids)] for i in range(width)]
    contexts = np.stack(columns, axis=1) if columns else np.empty((len(ids), 0), np.int64)
    if repeats == "once":
        again = np.ones(len(ids), np.bool_)
        again[np.unique(contexts, axis=0, return_index=True)[1]] = False
        contexts[again] = -1
    return contexts
