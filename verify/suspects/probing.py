"""A suspect behind an endpoint that tells the probabilities of a prompt's tokens: it is read along probes.

vLLM does (`prompt_logprobs`), and servers whose completions can echo their prompt with log probabilities. A probe is
sent as token ids if the suspect speaks the mark's tokens, else as text; then a place counts where a token begins in
both tokenizations, and each likely token gives its probability to the first mark token of its text. Such a place
depends on the text after it, so that probes which may carry the mark are not sent as text (`verify.data.retokenize`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from verify.data.dialects import Step, along_prompt
from verify.data.logprobs import TextLogprobs, from_record
from verify.data.outputs import Output, digest
from verify.data.strings import STRINGS, by_text
from verify.suspects.asking import NoLogprobsError, unanswered
from verify.suspects.client import Client
from verify.suspects.endpoint import COMPLETIONS, Endpoint
from verify.suspects.manner import ECHO, PROMPT_LOGPROBS
from verify.suspects.vocabulary import Vocabulary
from verify.suspects.waves import request_in_waves, same_model
from watermark import Mark
from watermark.io.prompts import Prompt
from watermark.io.records import Record, resuming
from watermark.progress import Progress, silent
from watermark.tokenizers import AnyTokenizer, special_ids

SAME_TOKENS: Final = 0.9
"""Share of a probe's tokens that a server must name as the mark's tokenizer does, to be sent ids."""


def read_probes(
    endpoint: Endpoint,
    mark: Mark,
    tokenizer: AnyTokenizer,
    probes: Sequence[Output],
    log: Path,
    *,
    unmarked: bool,
    progress: Progress = silent,
) -> list[TextLogprobs]:
    """What a suspect says of each next token along the outputs of some probes; probes that fail are left out.

    The log is JSONL, appended and flushed: `prompt_ids`, `output_ids`, `top_logprobs`, the `request`, the server's
    `answer` as it came, and an `error`, or null. A probe that failed is read anew by the next run.

    Args:
        endpoint: where; it is asked for completions of one token.
        mark: gives the vocabulary.
        tokenizer: the mark's.
        probes: texts; what is read are the predictions of the output tokens, after the prompt.
        unmarked: the probes cannot carry the mark.
        log: the file; a killed run goes on from there, and `stillmark test logprobs` reads it too.
        progress: called with the number of probes read, and of how many.

    Raises:
        ApiError: the endpoint refuses, fails again and again, or is not one model throughout.
        NoLogprobsError: it gives no log probabilities along a prompt, or it has another tokenizer, and the probes may
            carry the mark.
        InputError: the log cannot be written, is of another run, or another run writes it.
    """
    how = replace(endpoint, api=COMPLETIONS, max_tokens=1, samples=1)
    vocabulary = Vocabulary(tokenizer, mark.vocabulary_size or len(tokenizer))
    run = how.digest((), mark.commitment, digest(probes))
    names = [probe.id for probe in probes]
    by_id = {
        name if names.count(name) == 1 else f"{name}#{i}": probe
        for i, (name, probe) in enumerate(zip(names, probes, strict=True), 1)
    }
    read: dict[str, TextLogprobs] = {}
    served: str | None = None

    def take(record: Record) -> None:
        nonlocal served
        served = same_model(served, record.fields.get("answer"))
        if record.fields.get("error") is None:
            name = record.fields["id"]
            read[name] = replace(from_record(record, vocabulary.size), sampled=False, marked=by_id[name].marked)

    with resuming(log, run, mark.seal_key) as (earlier, append):
        asked = [Prompt(name, None, tuple(probe.ids.tolist())) for name, probe in by_id.items()]
        waiting = unanswered(asked, earlier)
        for record in earlier:
            take(record)
        progress(len(read), len(probes))
        if waiting:
            wanted, as_ids = _way(how, waiting[0], by_id[waiting[0].id], vocabulary)
            if not as_ids and (vocabulary.restater is None or not unmarked):
                why = "the probes may carry the mark: where its tokens begin in them would depend on the key"
                why = "the mark's tokenizer does not say where its tokens begin" if unmarked else why
                raise NoLogprobsError(
                    f"the suspect has another tokenizer, and {why}",
                    "`stillmark test endpoint` asks it questions instead",
                )
            if not as_ids:
                waiting = [replace(one, text=vocabulary.text(one.ids or ()), ids=None) for one in waiting]

            def line_of(prompt: Prompt, fields: dict[str, Any]) -> dict[str, Any]:
                probe = by_id[prompt.id]
                steps = along_prompt(fields["answer"]) if fields["error"] is None else ()
                request = fields["request"]
                top = request.get(PROMPT_LOGPROBS, request.get("logprobs", 0))
                rows, ambiguous = _rows(steps, probe, vocabulary, top), 0
                if not as_ids:
                    rows, ambiguous = _rows_of_text(steps, probe, vocabulary, top)
                if fields["error"] is None and not any(rows):
                    fields["error"] = "the answer tells nothing of the prompt's tokens"
                said = {"prompt_ids": probe.ids[: probe.start].tolist(), "output_ids": probe.output_ids.tolist()}
                said |= {"top_logprobs": rows} if fields["error"] is None else {"output_ids": [], "top_logprobs": []}
                said |= {} if as_ids else {"translated": {"tokenizer": STRINGS, "cut": False, "ambiguous": ambiguous}}
                marked = {} if probe.marked is None else {"marked": probe.marked}
                return {"id": prompt.id, **said, **marked, **fields}

            number = len(earlier)
            for lines in request_in_waves(
                how, waiting, append, log, line_of, lambda: how.concurrency, lambda: wanted, bool(read)
            ):
                for line in lines:
                    number += 1
                    take(Record(log, number, line))
                progress(len(read), len(probes))
    return [read[name] for name in by_id if name in read]


def _way(endpoint: Endpoint, first: Prompt, probe: Output, vocabulary: Vocabulary) -> tuple[str, bool]:
    """How the suspect is read: by `PROMPT_LOGPROBS` or `ECHO`, and whether it speaks the mark's tokens."""
    as_text = replace(first, text=vocabulary.text(first.ids or ()), ids=None)
    words = ""
    for wanted in (PROMPT_LOGPROBS, ECHO):
        patient = replace(endpoint, retries=min(endpoint.retries, 1))  # some answer 500 to what they do not take
        with closing(Client(patient)) as client:
            for prompt in (first, as_text):
                fields, refusal = client.ask(prompt, wanted)
                if refusal is not None:
                    raise refusal
                words = words or fields["error"] or "".join(fields.get("changed", ())[-1:])
                steps = along_prompt(fields["answer"]) if fields["error"] is None else ()
                if len(steps) < 2 or not any(step.top for step in steps[1:]):
                    continue
                if prompt is as_text or _same_tokens(steps, probe.ids.tolist(), vocabulary):
                    return wanted, prompt is first
    raise NoLogprobsError(
        "the endpoint gives no log probabilities along a prompt" + (f": {words}" if words else ""),
        "`stillmark test endpoint` asks it questions instead",
    )


def _same_tokens(steps: Sequence[Step], ids: Sequence[int], vocabulary: Vocabulary) -> bool:
    """Whether the server took ids for the tokens that they are in the mark's tokenizer, as far as it names them."""
    pairs = [(step.token.name.strip(), vocabulary.text([i]).strip()) for step, i in zip(steps, ids, strict=False)]
    pairs = [(theirs, ours) for theirs, ours in pairs if theirs and "�" not in theirs + ours]
    spelled = sum(theirs == ours or theirs.lstrip("Ġ▁") == ours for theirs, ours in pairs)
    return not pairs or spelled >= SAME_TOKENS * len(pairs)


Rows = list[list[list[Any]] | None]


def _rows(steps: Sequence[Step], probe: Output, vocabulary: Vocabulary, top: int) -> Rows:
    """For each output token of a probe the `top` likeliest tokens in its place, as ids and log probabilities, or None.

    (vLLM names the probe's own token beside these, however unlikely it is.)
    """
    named = vocabulary.told(steps, vocabulary.text(probe.ids.tolist())).tops
    rows: Rows = []
    for place in range(probe.start, len(probe.ids)):
        tops = named[place] if place < len(named) else {}
        rows.append([[i, p] for i, p in sorted(tops.items(), key=lambda one: -one[1])[:top]] or None)
    return rows


def _rows_of_text(steps: Sequence[Step], probe: Output, vocabulary: Vocabulary, top: int) -> tuple[Rows, int]:
    """The same where the suspect has another tokenizer, and at how many places nothing could be translated."""
    likely: dict[int, list[tuple[bytes, float]]] = {}
    for place, number in _common_places(steps, probe, vocabulary).items():
        named = [(by_text(one), one.logprob) for one in steps[number].top]
        known = [(string, p) for string, p in named if string and p is not None]
        likely[place] = sorted(known, key=lambda one: -one[1])[:top]
    found = {} if vocabulary.restater is None else vocabulary.restater.translated(likely)
    return [found.get(place) for place in range(probe.start, len(probe.ids))], len(likely) - len(found)


def _common_places(steps: Sequence[Step], probe: Output, vocabulary: Vocabulary) -> dict[int, int]:
    """The number of the step that begins where a token of the probe does, by the token's place.

    Bytes are counted from the end: at the beginning a server may leave its first token out, or add some, or a space.
    Special tokens count for none: some servers do not name them.
    """
    special = {vocabulary.texts.get(i, b"") for i in special_ids(vocabulary.tokenizer)}
    names = [step.token.data or step.token.name.encode("utf-8", "replace") for step in steps]
    theirs = [b"" if name in special else name for name in names]
    texts = [vocabulary.texts.get(int(i), b"") for i in probe.ids]
    ours = [b"" if text in special else text for text in texts]
    whole = b"".join(ours)
    if not _ends_alike(theirs, whole):
        theirs = theirs[:-1]  # without a token that was written after the prompt
    if not _ends_alike(theirs, whole):
        return {}
    ends = np.cumsum([0, *map(len, reversed(theirs))]).tolist()
    begins: dict[int, int] = {}
    for number, end in enumerate(ends):
        begins.setdefault(end, len(theirs) - number)  # of tokens that add nothing, the one that follows them
    places: dict[int, int] = {}
    left = len(whole)
    for place, token in enumerate(ours):
        if left in begins and token and begins[left] < len(theirs):
            places[place] = begins[left]
        left -= len(token)
    return places


def _ends_alike(pieces: Sequence[bytes], whole: bytes) -> bool:
    """Whether some pieces are the text, but for its beginning."""
    joined = b"".join(pieces)
    common = min(len(joined), len(whole))
    return 2 * common > len(whole) and joined[-common:] == whole[-common:]
