"""Generate from prompts, marked or not, into a JSONL file that a killed run can go on with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watermark.errors import StillmarkError
from watermark.io.prompts import Prompt, encode_prompt
from watermark.io.records import resumable, run_digest
from watermark.mark import Mark, Marks
from watermark.models import load_model, model_digest
from watermark.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    temperature 0 is greedy; top_p 1 and top_k 0 cut nothing. seed and batch_size together fix every token
    on one machine: batch k draws from a generator seeded by (seed, k).
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch_size: int = 32
    chat: bool = True


@dataclass(frozen=True)
class Generated:
    """What a file of outputs holds now, and what the last run added: its records, and the tokens in these."""

    records: int
    written: int
    tokens: int


def generate(
    model_dir: Path,
    prompts: list[Prompt],
    out: Path,
    *,
    marks: Sequence[Mark] = (),
    sampling: Sampling,
    progress: Progress = silent,
) -> Generated:
    """Sample one output a prompt and append it to `out`; go on where an earlier run was killed.

    A record has `id`, `prompt`, `prompt_ids`, `output`, `output_ids` (with the end-of-sequence token, if the
    model gave one), `ended` (it did), `model`, `mark` (commitment, a list of several, or null) and `run`, a
    digest of everything that shaped the output: a file that other settings wrote is refused.

    Args:
        model_dir: a causal LM with its tokenizer.
        prompts: what to answer; ids are unique.
        out: JSONL, appended record by record and flushed.
        marks: what to embed together, after temperature and top-p.
        sampling: how to sample.
        progress: called with the records in `out`, and of how many.

    Raises:
        InputError: `out` cannot be written, is damaged, was written with other settings, or another run writes to it.
    """
    commitments = commitments_of(marks)
    run = run_digest(model_dir.name, commitments, sampling, prompts, model_digest(model_dir))
    more = {"model": model_dir.name, "mark": commitments}
    written = tokens = 0

    def work(done: int) -> Iterator[dict[str, Any]]:
        nonlocal written, tokens
        together = Marks(tuple(marks)) if marks else None
        model, tokenizer = load_model(model_dir, marks[0] if marks else None)
        # a batch cut short by a kill is drawn again whole, so that its rows come out as they would have
        for number in range(done // sampling.batch_size, -(-len(prompts) // sampling.batch_size)):
            batch = prompts[number * sampling.batch_size : (number + 1) * sampling.batch_size]
            rows = list(_sample(model, tokenizer, batch, together, sampling, number))
            for fields in rows[max(0, done - number * sampling.batch_size) :]:
                yield fields | more
                written, tokens = written + 1, tokens + len(fields["output_ids"])

    ids = [prompt.id for prompt in prompts]
    answers = resumable(
        out, run, ids, work, to_fields=lambda fields: fields, from_record=lambda _: {}, progress=progress
    )
    return Generated(sum(1 for _ in answers), written, tokens)


def commitments_of(marks: Sequence[Mark]) -> str | list[str] | None:
    """What a record says of the marks in it: a commitment, a list of several, or None."""
    found = [mark.commitment for mark in marks]
    return found if len(found) > 1 else found[0] if found else None


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: list[Prompt],
    marks: Marks | None,
    sampling: Sampling,
    number: int,
) -> Iterator[dict[str, Any]]:
    import torch

    from watermark.integrations.transformers import MarkConfig

    prompt_ids = [encode_prompt(tokenizer, prompt, sampling.chat) for prompt in batch]
    for prompt, ids in zip(batch, prompt_ids, strict=True):
        if not ids or max(ids) >= model.config.get_text_config().vocab_size:
            raise StillmarkError(f"prompt '{prompt.id}' is empty or holds an id outside the model's vocabulary")
    ends = _end_ids(model, tokenizer)
    # any id will do as padding: the mask hides it. One that begins no prompt is told apart from context.
    starts = {ids[0] for ids in prompt_ids}
    pad = next(i for i in (tokenizer.pad_token_id, *range(len(starts) + 1)) if i is not None and i not in starts)
    longest = max(map(len, prompt_ids))
    padded = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompt_ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=model.device)
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{sampling.seed}/{number}".encode()).digest()[:8]) >> 1)
    how: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if how["do_sample"]:
        how |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    with torch.inference_mode():
        sequences = model.generate(  # type: ignore[operator]
            input_ids=padded,
            attention_mask=mask,
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=ends,
            watermarking_config=MarkConfig(marks, pad) if marks else None,
            **how,
        )
    for prompt, ids, row in zip(batch, prompt_ids, sequences[:, longest:].tolist(), strict=True):
        end = next((i for i, token in enumerate(row) if token in ends), None)
        output_ids = row if end is None else row[: end + 1]
        yield {
            "prompt": prompt.text if prompt.text is not None else tokenizer.decode(ids),
            "prompt_ids": ids,
            "output": tokenizer.decode(output_ids, skip_special_tokens=True),
            "output_ids": output_ids,
            "ended": end is not None,
        }


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None})
