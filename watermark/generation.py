"""Generate from prompts, marked or not, into a JSONL file that a killed run can go on with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from watermark.errors import MarkError, StillmarkError
from watermark.io.prompts import Prompt, encode_prompt, read_prompts
from watermark.io.records import Record, resumable, run_digest
from watermark.mark import Mark, Marks, needs_sampling
from watermark.models import load_model, model_digest
from watermark.progress import Progress, doing, silent
from watermark.schemes.logits import Repeats, check_repeats
from watermark.tokenizers import check

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    temperature 0 is greedy; top_p 1 and top_k 0 cut nothing. seed and batch_size together fix every token
    on one machine: batch k draws from a generator seeded by (seed, k). repeats "once" marks a context only where it
    comes first in prompt and output.

    Raises:
        ValueError: a number is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch_size: int = 32
    chat: bool = True
    repeats: Repeats = "mark"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1 or self.top_k < 0:
            raise ValueError("want max_new_tokens and batch_size of at least 1, top_k of at least 0")
        if not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1):
            raise ValueError("want a temperature of at least 0, and top_p above 0 and at most 1")
        check_repeats(self.repeats, width=1)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken each time."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def settings(self) -> dict[str, Any]:
        """What shapes the outputs, for the digest of a run. `repeats` is newer than files that know nothing of it."""
        found = asdict(self)
        if self.repeats == "mark":
            del found["repeats"]
        return found


DEFAULT: Final = Sampling()


@dataclass(frozen=True, eq=False)
class Written:
    """A prompt and what the model wrote, as `verify` takes outputs.

    Attributes:
        id: the prompt's.
        prompt, output: as text; the output without special tokens.
        prompt_ids, output_ids: int64 [length]; with the end-of-sequence token, if the model gave one.
        ended: whether it gave one.
        mark: commitment of the mark in it, a list of several, or None.
        new: whether this call wrote it, or an earlier one.
        sequential, copied: as of outputs that were read; nobody looked for copies of the prompt.
    """

    id: str
    prompt: str
    prompt_ids: npt.NDArray[np.int64]
    output: str
    output_ids: npt.NDArray[np.int64]
    ended: bool
    mark: str | list[str] | None
    new: bool = True
    sequential: bool = False
    copied: npt.NDArray[np.bool_] | None = None

    @property
    def marked(self) -> bool:
        """Whether it carries a mark."""
        return self.mark is not None

    @property
    def start(self) -> int:
        """Where the output begins in `ids`."""
        return len(self.prompt_ids)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Prompt and output, int64 [length]."""
        return np.concatenate([self.prompt_ids, self.output_ids])


Loaded: TypeAlias = "tuple[PreTrainedModel, PreTrainedTokenizerBase]"
"""A model and its tokenizer, as `watermark.models.load_model` gives them."""


def generate(
    model: str | Path | Loaded,
    prompts: str | Path | Sequence[str | Prompt],
    *,
    mark: Mark | Marks | Sequence[Mark] | None = None,
    sampling: Sampling = DEFAULT,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> list[Written]:
    """Sample one output a prompt, marked or not.

    A record of `out` has `id`, `prompt`, `prompt_ids`, `output`, `output_ids`, `ended`, `model`, `mark` and `run`, a
    digest of everything that shaped the output: a file that other settings wrote is refused.

    Args:
        model: folder of a causal LM with its tokenizer, or the two loaded.
        prompts: texts, prompts, or a JSONL file of them.
        mark: what to embed, after temperature and top-p; several are embedded together, and `Marks.by_row` names
            those of each prompt.
        sampling: how to sample.
        out: JSONL, appended record by record; a call that was killed goes on where it was.
        progress: called with the outputs done, and of how many.

    Returns:
        The outputs in the prompts' order, those of an earlier call included.

    Raises:
        InputError: the prompts cannot be read, or `out` cannot be written, is damaged, or is of other settings.
        MarkError: the marks do not fit together, name another number of rows than there are prompts, or need sampling
            where `sampling` is greedy.
        ModelError, TokenizerError: the folder holds no model, or not one for the mark.
    """
    asked = as_prompts(prompts)
    marks = as_marks(mark)
    if marks is not None and marks.rows is not None and len(marks.rows) != len(asked):
        raise MarkError(f"marks for {len(marks.rows)} rows, and {len(asked)} prompts")
    if marks is not None and sampling.greedy and marks.table[0].scheme.needs_sampling:
        raise needs_sampling(marks.table[0])
    if marks is not None and sampling.repeats == "once" and marks.width == 0:
        raise MarkError("a mark of width 0 has one context, which cannot be marked once", "use repeats 'mark'")
    said = [_commitments(marks, row) for row in range(len(asked))]
    source = Path(model) if isinstance(model, (str, Path)) else model
    name, run = "", ""
    if out is not None:
        name, digest = _name(source), model_digest(source)
        whole = said if marks is not None and marks.rows is not None else commitments_of(marks.table if marks else ())
        run = run_digest(name, whole, sampling.settings, asked, digest)

    def work(done: int) -> Iterator[Written]:
        return (_written(fields, new=True) for fields in _answers(source, asked, marks, said, sampling, done))

    ids = [prompt.id for prompt in asked]
    fields = ("prompt", "prompt_ids", "output", "output_ids", "ended", "mark")
    return list(
        resumable(
            None if out is None else Path(out),
            run,
            ids,
            work,
            to_fields=lambda one: {key: _plain(getattr(one, key)) for key in fields} | {"model": name},
            from_record=_recorded,
            key=marks.table[0].seal_key if marks and marks.table else None,
            progress=progress,
        )
    )


def as_prompts(prompts: str | Path | Sequence[str | Prompt]) -> list[Prompt]:
    """Prompts from texts, which are numbered from 1, or from a file. Raises InputError."""
    if isinstance(prompts, (str, Path)):
        return read_prompts(Path(prompts))
    asked = [Prompt(str(i), one, None) if isinstance(one, str) else one for i, one in enumerate(prompts, 1)]
    if len({prompt.id for prompt in asked}) < len(asked):
        raise StillmarkError("two prompts have the same id")
    return asked


def as_marks(mark: Mark | Marks | Sequence[Mark] | None) -> Marks | None:
    """One mark, or several, as what is embedded together; None for none. Raises MarkError."""
    if mark is None or isinstance(mark, Marks):
        return mark
    marks = (mark,) if isinstance(mark, Mark) else tuple(mark)
    return Marks(marks) if marks else None


def _commitments(marks: Marks | None, row: int) -> str | list[str] | None:
    """What the record of a row says of its marks."""
    if marks is None:
        return None
    return commitments_of(marks.table if marks.rows is None else [marks.table[i] for i in marks.rows[row]])


def _answers(
    source: Path | Loaded,
    prompts: list[Prompt],
    marks: Marks | None,
    said: list[str | list[str] | None],
    sampling: Sampling,
    done: int,
) -> Iterator[dict[str, Any]]:
    """The records of all prompts but the first `done`."""
    if done >= len(prompts):
        return
    first = marks.table[0] if marks else None
    if isinstance(source, Path):
        with doing(f"loading {source.name}"):
            model, tokenizer = load_model(source, first)
    else:
        model, tokenizer = source
        if first is not None:
            check(first, tokenizer, getattr(tokenizer, "name_or_path", "") or "the tokenizer given")
    size = sampling.batch_size
    # a batch cut short by a kill is drawn again whole, so that its rows come out as they would have
    for number in range(done // size, -(-len(prompts) // size)):
        rows = range(number * size, min((number + 1) * size, len(prompts)))
        together = marks
        if marks is not None and marks.rows is not None:
            together = Marks(marks.table, tuple(marks.rows[i] for i in rows))
        batch = [prompts[i] for i in rows]
        for i, fields in zip(rows, _sample(model, tokenizer, batch, together, sampling, number), strict=True):
            if i >= done:
                yield {"id": prompts[i].id, **fields, "mark": said[i]}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _recorded(record: Record) -> Written:
    """What an earlier run wrote. Raises InputError for a record that is damaged."""
    try:
        return _written(record.fields, new=False)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise record.error("a field of this record is missing or malformed", "restore the file from a copy") from None


def _written(fields: dict[str, Any], *, new: bool) -> Written:
    return Written(
        fields["id"], fields["prompt"], np.array(fields["prompt_ids"], np.int64), fields["output"],
        np.array(fields["output_ids"], np.int64), fields["ended"], fields["mark"], new,
    )  # fmt: skip


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
) -> Iterable[dict[str, Any]]:
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
            watermarking_config=MarkConfig(marks, pad, sampling.repeats) if marks else None,
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


def _name(source: Path | Loaded) -> str:
    if isinstance(source, Path):
        return source.name
    model = source[0]
    return Path(model.config.name_or_path or "").name or type(model).__name__
