"""A suspect whose weights are at hand: what it says along texts and after prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt

from verify.data.logprobs import _NOWHERE, F32, I64, MIN_PROBABILITY, U32, TextLogprobs, _limit, from_record, to_record
from verify.data.outputs import Output, digest
from verify.data.retokenize import Translation
from watermark import Mark, ModelError, tokenizers
from watermark.io.fields import is_number, is_text, list_of
from watermark.io.prompts import Prompt, encode_prompt
from watermark.io.records import Record, resumable, run_digest
from watermark.models import load_model, model_digest
from watermark.progress import Progress, doing, silent

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MAX_PIECE: Final = 2048
"""Longest stretch of text that a model is made to read at once, in tokens."""


Floats = npt.NDArray[np.float64]

Model = str | Path | tuple[Any, Any]
"""A causal LM: its folder, or the loaded (model, tokenizer)."""


def is_loaded(what: object) -> TypeGuard[tuple[Any, Any]]:
    """Whether this is a loaded (model, tokenizer), and not a pair of paths or of recorded texts."""
    return isinstance(what, tuple) and len(what) == 2 and not isinstance(what[0], str | Path | TextLogprobs)


def opened(
    model: Model, mark: Mark | None = None, tokenizer: str | Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, loaded if it is a folder.

    Args:
        model: the model.
        mark: the model must speak its tokens; it may know more.
        tokenizer: folder of a tokenizer, for a folder that holds none.

    Raises:
        ModelError, TokenizerError: the folder cannot be loaded, or it is not for the mark.
    """
    if isinstance(model, str | Path):
        with doing(f"loading {Path(model).name}"):
            return load_model(Path(model), mark, tokenizer=tokenizer, more_tokens=True)
    if mark is not None:
        tokenizers.check(mark, model[1], name_of(model), more_tokens=True)
    return model


def tokenizer_of(model: Model, stand_in: str | Path | None = None) -> PreTrainedTokenizerBase:
    """A model's tokenizer; stand_in: folder of one, for a folder that holds none.

    Raises:
        TokenizerError: there is none that can be loaded.
    """
    if isinstance(model, str | Path):
        return tokenizers.load_transformers(tokenizers.folder_of(model, stand_in))
    words: PreTrainedTokenizerBase = model[1]
    return words


def name_of(model: Model) -> str:
    """The folder's path, or the name of a loaded model."""
    return str(model) if isinstance(model, str | Path) else str(model[0].name_or_path or "a model in memory")


def read_weights(
    path: Model,
    mark: Mark,
    probes: Sequence[Output],
    *,
    likely: float = MIN_PROBABILITY,
    batch_size: int = 8,
    record: Path | None = None,
    tokenizer: str | Path | None = None,
    translator: Translation | None = None,
    progress: Progress = silent,
) -> list[TextLogprobs]:
    """Read a model's next-token probabilities along the outputs of some probes, by teacher forcing.

    What is kept is a few dozen likely tokens a position, not the vocabulary, to four decimals.

    Args:
        path: the model, a folder or loaded.
        mark: the model must speak its tokens, unless a translator is given.
        probes: texts; what is read are the predictions of the output tokens, after the prompt.
        likely: the probability above which a token is kept.
        batch_size: probes in one forward pass.
        record: JSONL to which every text read is appended, and from which a killed run goes on;
            `stillmark test logprobs` reads it too.
        tokenizer: folder of a tokenizer, for a model's folder that holds none.
        translator: from the model's tokens to the mark's, or None.
        progress: called with the number of probes read, and of how many.

    Raises:
        ModelError: the model cannot be loaded, or its outputs are not numbers.
        InputError: `record` cannot be written, was written for other probes or another model, or another run writes it.
    """

    def work(done: int) -> Iterator[TextLogprobs]:
        model, _ = opened(path, mark if translator is None else None, tokenizer)
        longest = max(len(probe.ids) for probe in probes[done:])
        size = max(1, min(batch_size, MAX_PIECE * 8 // max(1, min(longest, MAX_PIECE))))
        for first in range(done, len(probes), size):
            yield from read_translated(model, probes[first : first + size], translator, likely, _limit(mark))

    how = () if translator is None else (translator.digest(probes),)
    return list(
        resumable(
            record,
            "" if record is None else run_digest(model_digest(path), likely, digest(probes), *how),
            [probe.id for probe in probes],
            work,
            to_fields=lambda read: to_record(read) | {"model": Path(name_of(path)).name},
            from_record=lambda line: from_record(line, _limit(mark)),
            key=mark.seal_key,
            progress=progress,
        )
    )


def read_translated(
    model: PreTrainedModel,
    probes: Sequence[Output],
    translator: Translation | None,
    likely: float = MIN_PROBABILITY,
    limit: int | None = None,
) -> list[TextLogprobs]:
    """What `read_weights` does with one batch and a model that is loaded; limit: what the mark's tokens lie below."""
    if translator is None:
        return read_batch(model, probes, likely, limit)
    asked = translator.ask(probes)
    read = read_batch(model, [one.own for one in asked], likely)
    return list(map(translator.translate, read, asked))


def read_batch(
    model: PreTrainedModel, probes: Sequence[Output], likely: float = MIN_PROBABILITY, limit: int | None = None
) -> list[TextLogprobs]:
    """What a model that is loaded says along one batch, in its own tokens. Long texts are read in pieces.

    limit: what tokens lie below; rows of the model beyond it are left out.
    """
    texts = [probe.ids for probe in probes]
    piece = min(MAX_PIECE, max(2, longest_text(model) or MAX_PIECE) - 1)
    pieces = [(row, first) for row, ids in enumerate(texts) for first in range(0, max(1, len(ids) - 1), piece)]
    entries: list[list[tuple[I64, U32, F32]]] = [[_NOWHERE] for _ in texts]
    for start in range(0, len(pieces), len(probes)):
        some = pieces[start : start + len(probes)]
        # a piece ends with the token that the next one begins with: every token but the first is predicted once
        read = _forward(model, [texts[row][first : first + piece + 1] for row, first in some], likely, limit)
        for (row, first), (place, tokens, logprobs) in zip(some, read, strict=True):
            kept = place + first >= max(1, probes[row].start)
            entries[row].append((place[kept] + first, tokens[kept], logprobs[kept]))
    done = []
    for probe, ids, parts in zip(probes, texts, entries, strict=True):
        place, tokens, logprobs = (np.concatenate(column) for column in zip(*parts, strict=True))
        done.append(TextLogprobs(probe.id, ids, probe.start, place, tokens, logprobs, marked=probe.marked))
    return done


def _forward(
    model: PreTrainedModel, texts: Sequence[I64], likely: float, limit: int | None
) -> list[tuple[I64, U32, F32]]:
    """For each text: places, likely tokens there, and their log probabilities."""
    read = []
    logits = forward_logits(model, texts)
    for row, ids in enumerate(texts):
        logprobs = logits[row, : max(0, len(ids) - 1)].float().log_softmax(-1)[:, :limit]
        place, tokens = (logprobs > math.log(likely)).nonzero(as_tuple=True)
        kept = np.round(logprobs[place, tokens].cpu().numpy().astype(np.float64), 4).astype(np.float32)
        read.append((place.cpu().numpy() + 1, tokens.cpu().numpy().astype(np.uint32), kept))
    return read


def longest_text(model: PreTrainedModel) -> int | None:
    """The most tokens that a model reads at once, by its configuration; None if that does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def forward_logits(model: PreTrainedModel, texts: Sequence[Sequence[int] | npt.NDArray[np.int64]]) -> Tensor:
    """A causal model's logits [B, longest, V] along some token sequences, padded on the right, where it does not look.

    Raises:
        ModelError: a text is longer than the model reads, or the model's outputs are not numbers. (A token may have the
            logit -infinity, which is a probability of 0.)
    """
    import torch

    longest = max(1, *map(len, texts))
    limit = longest_text(model)
    name = model.name_or_path or "the model"
    if limit is not None and longest > limit:
        raise ModelError(f"{name}: reads {limit} tokens at once, and a text has {longest}", "leave longer texts out")
    padded = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, ids in enumerate(texts):
        padded[row, : len(ids)] = torch.as_tensor(ids)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=padded.to(model.device)).logits
        # the largest logit of a position is NaN or infinite if one is, or if all are -infinity
        finite = logits.amax(dim=-1).isfinite().cpu()
    if not all(bool(finite[row, : len(ids)].all()) for row, ids in enumerate(texts)):
        raise ModelError(
            f"{name}: the model's outputs are not numbers", "try it in float32; else its weights are damaged"
        )
    return logits


TopTokens = frozenset[str]
"""A model's likeliest next tokens after one prompt, as text; empty where there is no answer, which agrees with none."""


def likeliest(
    path: Model,
    prompts: Sequence[Prompt],
    top: int = 1,
    *,
    chat: bool = False,
    batch_size: int = 16,
    record: Path | None = None,
    progress: Progress = silent,
) -> list[TopTokens]:
    """A model's likeliest next tokens after each prompt, as text.

    Args:
        path: the model, a folder or loaded.
        prompts: texts for its own tokenizer, or ids.
        top: how many tokens.
        chat: put texts through the model's chat template, if it has one.
        batch_size: in one forward pass.
        record: JSONL to keep the answers in, and to go on from.
        progress: called with the number of prompts asked, and of how many.

    Raises:
        InputError: `record` cannot be written, is of another run, or another run writes it.
        ModelError: a prompt is empty or longer than the model reads, or holds an id that the model does not know.
    """

    def work(done: int) -> Iterator[list[str]]:
        model, tokenizer = opened(path)
        limit = model.config.get_text_config().vocab_size
        for start in range(done, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            rows = [encode_prompt(tokenizer, one, chat=chat) for one in batch]
            for one, row in zip(batch, rows, strict=True):
                if not row or max(row) >= limit:
                    raise ModelError(
                        f"{name_of(path)}: prompt '{one.id}' is empty or holds an id outside its vocabulary"
                    )
            logits = forward_logits(model, rows)
            for i, row in enumerate(rows):
                ids = logits[i, len(row) - 1].topk(top).indices.tolist()
                yield [str(tokenizer.decode([token])) for token in ids]

    said = resumable(
        record,
        "" if record is None else run_digest(prompts, top, chat, model_digest(path)),
        [one.id for one in prompts],
        work,
        to_fields=lambda said: {"output": said[0], "top": said, "model": Path(name_of(path)).name},
        from_record=_top_of,
        progress=progress,
    )
    return [frozenset(one) for one in said]


def _top_of(record: Record) -> list[str]:
    top: Any = record.fields.get("top")
    if not list_of(is_text)(top):
        raise record.error("'top' must be a list of tokens as text")
    return list(top)


MIN_LOGPROB: Final = -20.0
"""Least log likelihood of a token; also that of one for which a model gives no number."""


def likelihoods(
    path: Model,
    mark: Mark,
    candidates: Sequence[Output],
    batch_size: int = 8,
    record: Path | None = None,
    progress: Progress = silent,
) -> Floats:
    """A model's mean log likelihood a token of each output after its prompt, in nats: float64 [2m].

    Args:
        path: the model, a folder or loaded; its tokenizer must be the mark's.
        mark: the mark.
        candidates: the outputs.
        batch_size: in one forward pass.
        record: JSONL to keep what was read in, and to go on from.
        progress: called with the number of texts read, and of how many.

    Raises:
        InputError: `record` cannot be written, is of another run, or another run writes it.
    """
    import torch

    def work(done: int) -> Iterator[float]:
        model, _ = opened(path, mark)
        for start in range(done, len(candidates), batch_size):
            batch = candidates[start : start + batch_size]
            logits = forward_logits(model, [one.ids for one in batch])
            for i, one in enumerate(batch):
                first = max(1, one.start)
                rows = logits[i, first - 1 : len(one.ids) - 1].float().log_softmax(-1).cpu()
                said = rows.gather(-1, torch.from_numpy(one.ids[first:, None])).clamp(min=MIN_LOGPROB)
                yield round(float(said.mean()), 6) if len(said) else 0.0

    found = resumable(
        record,
        "" if record is None else run_digest(digest(candidates), model_digest(path)),
        [one.id for one in candidates],
        work,
        to_fields=lambda mean: {"loglikelihood": mean, "model": Path(name_of(path)).name},
        from_record=_likelihood_of,
        key=mark.seal_key,
        progress=progress,
    )
    return np.array(list(found), np.float64)


def _likelihood_of(record: Record) -> float:
    mean: Any = record.fields.get("loglikelihood")
    if not is_number(mean):
        raise record.error("'loglikelihood' must be a number")
    return float(mean)
