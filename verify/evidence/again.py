"""The pairs of a test, found again in the files of the evidence: what may be scored needs no secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verify.data.logprobs import TextLogprobs, as_text, at_common_places, keep_top_of_text, most_named
from verify.data.outputs import Outputs, read_outputs
from verify.data.pairs import WeightedPairs
from verify.data.reads import pairs_of
from verify.evidence.scored import SEQUENTIAL, Scored
from verify.evidence.statement import Statement
from verify.lineage.plan import kept_as
from verify.radioactivity.inputs import recorded, tables
from verify.radioactivity.logprobs import logprob_weights
from verify.radioactivity.sequential import POWERS, SequentialTest, joined, weighed_anew
from verify.radioactivity.tails import BINOMIAL, CHERNOFF, COUNTS, MIXTURE
from watermark import InputError, Mark, StillmarkError, TokenizerError


class NotHereError(StillmarkError):
    """What it takes to find the pairs again is not at hand: no difference, but no confirmation either."""


def scored_again(
    mark: Mark,
    result: Mapping[str, Any],
    here: Mapping[str, Path],
    said: Statement,
    test: str,
    promised: Scored,
    tokenizers: Sequence[str | Path] = (),
) -> Scored:
    """What a test scored, from the files.

    Args:
        mark: with the card's parameters; only of another engine's mark its secret is used, to tell pairs apart.
        result: of the test, as in JSON.
        here: the files that were named, by their SHA-256.
        said: the bundle.
        test: the name of the test.
        promised: what it says that was scored.
        tokenizers: folders, one of them with the mark's tokenizer, for outputs without token ids.

    Raises:
        NotHereError: a file or tokenizer is lacking, or what it takes was not kept.
        StillmarkError: a file cannot be read as it was.
    """
    lacking = ""
    for tokenizer in tokenizers or (None,):
        try:
            if promised.rule == SEQUENTIAL:
                return _sequential(mark, result, here, said, promised, tokenizer)
            if promised.rule in (BINOMIAL, COUNTS) and "method" in result:
                read = _outputs(mark, _files(result.get("files"), said, here), result, tokenizer)
                return _counted(mark, read, result, promised)
            if "method" in result:
                raise NotHereError("what the reference said along the text was not kept")
            return _logprobs(mark, result, here, said, f"readings/{kept_as(said.plan.lines, test)}", tokenizer)
        except (TokenizerError, InputError) as error:
            if isinstance(error, InputError) and not isinstance(error.__cause__, TokenizerError):
                raise
            lacking = str(error)
    raise NotHereError(f"it takes the mark's tokenizer: {lacking}")


def _counted(mark: Mark, read: Outputs, result: Mapping[str, Any], promised: Scored) -> Scored:
    """Of a test of text that counts pairs."""
    pairs = pairs_of(mark, read, unmarked_prompts=result.get("unmarked_prompts") is True)
    weights = pairs.counts[:, None].astype(np.float64)[:, : promised.pairs.weights.shape[1]]
    weights = np.minimum(weights, 20)
    return Scored(promised.rule, WeightedPairs(pairs.contexts, pairs.tokens, weights), np.zeros(0, np.int64))


def _files(names: Any, said: Statement, here: Mapping[str, Path]) -> list[Path]:
    """Where the files of these names lie now."""
    found = []
    for name in names if isinstance(names, list) else []:
        same = [one for one in said.inputs if one.name == name] or [
            one for one in said.inputs if Path(one.name).name == Path(str(name)).name
        ]
        path = next((here[one.sha256] for one in same if one.sha256 in here), None)
        if path is None:
            raise NotHereError(f"{name} was not named, or is another file")
        found.append(path)
    if not found:
        raise NotHereError("the result names no files")
    return found


def _arguments(result: Mapping[str, Any]) -> Mapping[str, Any]:
    call = result.get("call")
    arguments = call.get("arguments") if isinstance(call, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _outputs(mark: Mark, files: Sequence[Path], result: Mapping[str, Any], tokenizer: str | Path | None) -> Outputs:
    arguments = _arguments(result)
    return read_outputs(
        files,
        mark,
        tokenizer=tokenizer,
        columns=_columns(arguments.get("columns")),
        need_prompts=result.get("unmarked_prompts") is not True,
        skip_bad=arguments.get("skip_bad") is True,
    )


def _columns(text: Any) -> dict[str, str] | None:
    if not isinstance(text, str):
        return None
    return {name: value for name, _, value in (one.partition("=") for one in text.split(","))}


def _texts(
    mark: Mark, files: Sequence[Path], result: Mapping[str, Any], tokenizer: str | Path | None
) -> list[TextLogprobs]:
    arguments = _arguments(result)
    columns, skip = _columns(arguments.get("columns")), arguments.get("skip_bad") is True
    return recorded(list(files), mark, tokenizer, columns, skip)[0]


def _logprobs(
    mark: Mark,
    result: Mapping[str, Any],
    here: Mapping[str, Path],
    said: Statement,
    folder: str,
    tokenizer: str | Path | None,
) -> Scored:
    """Of the test of log probabilities, from the records of suspect and reference (in `folder`)."""
    kept = "files" not in result
    files = [f"{folder}/suspect.jsonl"] if kept else result["files"]
    texts = _texts(mark, _files(files, said, here), {} if kept else result, tokenizer)
    compared = None
    if result.get("reference") is not None:
        compared = _texts(mark, _files([f"{folder}/reference.jsonl"], said, here), {}, tokenizer)
        if any(text.translated is not None for text in (*texts, *compared)):
            raise NotHereError("suspect or reference has another tokenizer, and was translated")
        if not (kept and _read_weights(result)):
            compared = [keep_top_of_text(one, most_named(texts)) for one in compared]
        texts, compared = at_common_places(texts, compared)
    unmarked = result.get("unmarked_probes") is True
    suspect, beside = tables(mark, texts, compared, unmarked=unmarked)
    pairs, _ = logprob_weights(suspect, beside, mark.exempt)
    wide = WeightedPairs(pairs.contexts, pairs.tokens, pairs.weights[:, None])
    return Scored(CHERNOFF if unmarked else MIXTURE, wide, np.zeros(0, np.int64))


def _read_weights(result: Mapping[str, Any]) -> bool:
    """Whether the suspect was a model that was read, and no endpoint."""
    suspect = _arguments(result).get("suspect")
    return isinstance(suspect, str) and not suspect.startswith(("http://", "https://"))


def _sequential(
    mark: Mark,
    result: Mapping[str, Any],
    here: Mapping[str, Path],
    said: Statement,
    promised: Scored,
    tokenizer: str | Path | None,
) -> Scored:
    """Of a sequential test, from the log of all answers."""
    live = isinstance(result.get("log"), str)
    files = _files([result["log"]] if live else result.get("files"), said, here)
    unmarked, access = result.get("unmarked_prompts") is True, result.get("access")
    if access == "text":
        read = map(as_text, _outputs(mark, files, result, tokenizer))
        answers = [one for one in read if len(one.ids) > one.start]
    else:
        answers = [one for one in _texts(mark, files, result, tokenizer) if len(one.ids) > one.start]
    references: Sequence[TextLogprobs | None] = [None] * len(answers)
    compared = bool(_arguments(result).get("reference")) or result.get("reference") is not None
    if compared:
        if not live:
            raise NotHereError("what the reference said along the answers was not kept")
        name = Path(result["log"]).stem + ".reference.jsonl"
        references = _texts(mark, _files([f"readings/{name}"], said, here), {}, tokenizer)
        if len(references) != len(answers) or any(one.translated for one in (*answers, *references) if one is not None):
            raise NotHereError("the reference was read along other texts, or translated")
    test = SequentialTest(mark, "text" if access == "text" else "logprobs", unmarked=unmarked)
    parts = [test.fresh(answer, beside) for answer, beside in zip(answers, references, strict=True)]
    pairs = joined(parts, mark.width, len(POWERS) if access == "text" and not compared else 1)
    numbers = np.repeat(np.arange(1, len(parts) + 1), [len(one.tokens) for one in parts])
    look, shared = None, compared and access == "text"
    if promised.after:
        if not shared or promised.after > len(answers):
            raise StillmarkError(f"no look back at {promised.after} answers could be made: there are {len(answers)}")
        first = [one for one in references[: promised.after] if one is not None]
        back = weighed_anew(mark, answers[: promised.after], first, unmarked=unmarked)
        look = WeightedPairs(back.contexts, back.tokens, back.weights[:, None])
    return Scored(SEQUENTIAL, pairs, numbers, shared, look, promised.after)
