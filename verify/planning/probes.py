"""Probes: texts, or single positions, at which a suspect is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.context_counts import ContextCounts, load
from verify.data.dedup import codes
from verify.data.outputs import Output, Outputs, read_outputs
from verify.data.pairs import U32, scorable_batch
from verify.planning.questions import SUBJECTS, TASKS, questions
from verify.progress import Stages, on, silent
from verify.results import plural
from watermark import InputError, Mark, StillmarkError, UsageError
from watermark.errors import within
from watermark.io import files
from watermark.mark import as_mark

MAX_TEXTS: Final = len(TASKS) * len(SUBJECTS)
"""How many texts a model can be asked to write: there are so many questions."""

MAX_PROBES_PER_CONTEXT: Final = 10
"""How often a context is probed: the noise of one reading averages out, and few contexts would be left with more."""


@dataclass(frozen=True)
class ProbeSet(Outputs):
    """Probes, as the tests that read a suspect's probabilities take them.

    Attributes:
        out: the file that they were written to.
        warnings: what a user of these probes should know, one sentence each.
    """

    out: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def positions(self) -> int:
        """How many tokens of a suspect's output are read."""
        return sum(len(probe.output_ids) for probe in self)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        out = None if self.out is None else str(self.out)
        return {"out": out, "probes": len(self), "positions": self.positions}

    def __str__(self) -> str:
        """What the command prints."""
        numbers = f"{plural(len(self), 'probe')}, {plural(self.positions, 'position')}"
        return numbers if self.out is None else f"wrote {numbers}, to {self.out}"


def make_probes(
    mark: Mark | str | Path,
    texts: str | Path | Sequence[str | Path] | Outputs | None = None,
    *,
    model: str | Path | None = None,
    number: int = 100,
    length: int = 128,
    context_counts: ContextCounts | str | Path | None = None,
    positions: int = 300,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Stages = silent,
) -> ProbeSet:
    """Probes from texts, or from what a model writes without the mark: texts to read a suspect along.

    With `context_counts` a probe is a single position, after a context that the teacher emitted often; the best first.
    That is for suspects where every position costs: ask for one token after each prompt.

    Args:
        mark: the mark, or its file.
        texts: files as for `verify.read_outputs`, or what that returned. Either these or `model`.
        model: folder of a model that writes the texts: the teacher, without its mark, say. They are kept beside `out`,
            and a killed run goes on with them; see `write_texts`.
        number: of texts that the model writes, 720 at most.
        length: of a probe, and of a text that the model writes, in tokens.
        context_counts: how often the teacher emitted each context, or the file.
        positions: of how many positions there are probes, with `context_counts`.
        tokenizer: folder of the mark's tokenizer, if not where the mark says.
        seed: of what the model writes.
        out: JSONL to write the probes to.
        progress: opened around each piece of work.

    Raises:
        UsageError: an argument lies outside its range, neither or both of `texts` and `model` are named, or `out` is
            one of the texts.
        StillmarkError: a file, the mark or the model cannot be used; the texts are answers of a sequential run, which
            are no probes; or nothing in them can be one.
    """
    within("length", length, 2, np.inf, first=True)
    within("positions", positions, 1, np.inf, first=True)
    if (texts is None) == (model is None):
        raise UsageError("name either texts, or a `model` that writes some")
    mark, path = as_mark(mark), None if out is None else Path(out)
    counts = load(Path(context_counts), mark.width) if isinstance(context_counts, str | Path) else context_counts
    if model is not None:
        if path is None:
            raise UsageError("a `model` that writes texts needs `out`", "the texts are kept beside it")
        written = path.with_name(path.stem + ".texts.jsonl")
        texts = write_texts(model, written, number=number, length=length, seed=seed, progress=progress)
    assert texts is not None
    read = texts if isinstance(texts, Outputs) else _read(texts, mark, tokenizer, progress)
    if path is not None and any(one.resolve() == path.resolve() for one in read.files):
        raise UsageError(f"{path}: is one of the texts", "choose another `out`")
    if any(text.sequential for text in read):
        where = " ".join(map(str, read.files)) or "the texts"
        what = "holds answers that were collected until the evidence sufficed"
        raise InputError(where, 0, what, "these are no probes")
    probes = cut(read, length) if counts is None else targets(read, counts, positions, mark.exempt)
    if not probes:
        what = "hold no token" if counts is None else "hold none of the contexts that were counted"
        raise StillmarkError(f"no probes: the texts {what}", "name other texts")
    keyed = counts is not None and counts.marked is not False
    note = "the contexts were counted in text that may be marked: where the probes lie then depends on the key"
    from_files = read.files if path is None else (_write(probes, path),)
    return ProbeSet(outputs=tuple(probes), files=from_files, out=path, warnings=(note,) if keyed else ())


def write_texts(
    model: str | Path,
    out: str | Path,
    *,
    number: int = 100,
    length: int = 128,
    seed: int = 0,
    progress: Stages = silent,
) -> Path:
    """Let a model write texts without any mark, in answer to questions that come with the package.

    Args:
        model: folder of a causal LM and its tokenizer.
        out: JSONL to append the texts to; a killed run goes on from here.
        number: of texts, 720 at most.
        length: of a text, in tokens at most.
        seed: of what is drawn.
        progress: opened around the writing.

    Returns:
        `out`.

    Raises:
        UsageError: an argument lies outside its range.
        StillmarkError: the model cannot be used, or `out` holds something else.
    """
    from watermark.generation import Sampling, generate

    within("number", number, 1, MAX_TEXTS, first=True, last=True)
    within("length", length, 1, np.inf, first=True)
    with progress(on("writing with", model), "texts") as update:
        sampling = Sampling(max_new_tokens=length, seed=seed)
        generate(model, questions(number), sampling=sampling, out=out, progress=update)
    return Path(out)


def _read(
    texts: str | Path | Sequence[str | Path], mark: Mark, tokenizer: str | Path | None, progress: Stages
) -> Outputs:
    with progress(on("reading", texts), "records") as update:
        return read_outputs(texts, mark, tokenizer=tokenizer, progress=update)


def _write(probes: Iterable[Output], path: Path) -> Path:
    rows = [
        {"id": probe.id, "prompt_ids": [] if probe.prompt_ids is None else probe.prompt_ids.tolist()}
        | {"output_ids": probe.output_ids.tolist()}
        | ({} if probe.marked is None else {"marked": probe.marked})
        for probe in probes
    ]
    with files.writing(path):
        files.replace(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def cut(texts: Iterable[Output], length: int) -> list[Output]:
    """Texts as probes of at most `length` tokens; a prompt stays with the first piece of its output."""
    probes = []
    for text in texts:
        for number, start in enumerate(range(0, len(text.output_ids), length)):
            prompt = text.prompt_ids if start == 0 else None
            piece = text.output_ids[start : start + length]
            probes.append(Output(f"{text.id}/{number}", prompt, piece, marked=text.marked))
    return probes


def targets(
    texts: Iterable[Output],
    counts: ContextCounts,
    number: int,
    exempt: Iterable[int] = (),
    *,
    each: int = MAX_PROBES_PER_CONTEXT,
    before: int = 64,
) -> list[Output]:
    """Probes of one position each, taken from texts where an often emitted context occurs; the most frequent first.

    A context is used `each` times at most. The prompt of a probe is the context and what comes before it, `before`
    tokens at most.
    """
    kept = list(texts)
    width = counts.contexts.shape[1]
    positions = scorable_batch(kept, width, exempt, unmarked_prompts=True)
    probes = []
    for i in most_frequent(positions.contexts, counts, number, each).tolist():
        text, place = kept[positions.record[i]], int(positions.place[i])
        ids = text.ids
        shown = ids[max(0, place - max(before, width)) : place]
        probes.append(Output(f"{text.id}@{place}", shown, ids[place : place + 1], marked=text.marked))
    return probes


def most_frequent(
    contexts: U32, counts: ContextCounts, number: int, each: int = MAX_PROBES_PER_CONTEXT
) -> npt.NDArray[np.int64]:
    """Which of some positions, uint32 [N, width], have the most often emitted contexts.

    int64 [number or fewer], the most frequent first; a context comes `each` times at most, one never emitted never.
    """
    emitted = counts.lookup(contexts)
    code = codes([*contexts.T], len(contexts))
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], code[order])
    turn = np.empty(len(order), np.int64)  # how many occurrences of the same context come before
    turn[order] = np.arange(len(order)) - starts
    allowed = np.flatnonzero((turn < each) & (emitted > 0))
    return allowed[np.argsort(-emitted[allowed], kind="stable")][:number]
