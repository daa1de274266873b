"""`verify.endpoint_test`: ask an endpoint, look after every answer, and stop when the evidence suffices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from verify.calls import noted
from verify.data.folding import Folding
from verify.data.logprobs import TextLogprobs, common_places
from verify.data.outputs import Output
from verify.planning.builtin import builtin_prompts
from verify.progress import Stages, on, silent
from verify.radioactivity.inputs import PathLike, prompts_of, with_cost
from verify.radioactivity.prompts import carry, check_unmarked, prompts_test, with_copy
from verify.radioactivity.sequential import BUDGET, MIN_TILT, PROMPTS, EndpointResult, SequentialTest
from verify.radioactivity.tilt import tilt_of_answers
from verify.radioactivity.translated import notes_on_strings, translations
from verify.suspects.asking import NoLogprobsError
from verify.suspects.client import resolved
from verify.suspects.endpoint import Endpoint
from verify.suspects.interview import Budget, Price, ReferenceLog, Usage, check_prices, iter_answers
from verify.suspects.model import Model
from watermark import ApiError, Mark, UsageError
from watermark.io.prompts import Prompt
from watermark.mark import as_mark
from watermark.tokenizers import load_transformers_for


@noted
def endpoint_test(
    mark: Mark | PathLike,
    endpoint: Endpoint,
    prompts: PathLike | Sequence[Prompt] | None = None,
    *,
    log: PathLike,
    budget: int = 50_000,
    reference: Model | None = None,
    access: str = "auto",
    unmarked_prompts: bool | None = None,
    alpha: float = 1e-3,
    least: float = MIN_TILT,
    budget_usd: float | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    tokenizer: PathLike | None = None,
    progress: Stages = silent,
) -> EndpointResult:
    """Test a suspect behind an OpenAI-compatible endpoint, with as few tokens as the evidence takes.

    Asks the prompts in order and looks after every answer; stops when the evidence suffices, when the smallest effect
    of interest would have shown by now (futility), at the budget, or after the last prompt. The p-value holds however
    it stopped.

    Args:
        mark: the mark, or its file.
        endpoint: where and how to ask; its key is read from the environment.
        prompts: JSONL of prompts, or prompts; None: those that come with the package, which cannot carry any mark.
        log: JSONL to append every answer to; a killed run goes on from here.
        budget: stop when this many tokens were billed.
        reference: a model that does not depend on the secret.
        access: `text`, `logprobs`, or `auto`: log probabilities if the first answer that tells something brings some
            that can be used, else the text. The result says why they cannot.
        unmarked_prompts: nobody who wrote the prompts knew the secret or copied marked text; None: only where they come
            with the package.
        alpha: level of the verdict, fixed before looking.
        least: the smallest effect of interest, in log odds of green for a unit of weight.
        budget_usd: stop when the billed tokens cost this much; needs a price.
        price_in, price_out: of a million prompt tokens, and of a million answer tokens.
        tokenizer: folder of the mark's tokenizer, if not where the mark says.
        progress: opened around the asking; counts billed tokens.

    Raises:
        ApiError: no answer could be used, log probabilities were asked for and not given, or the endpoint fails.
        StillmarkError: the mark, the prompts or the reference cannot be used.
    """
    mark, log = as_mark(mark), Path(log)
    if access not in ("auto", "logprobs", "text"):
        raise UsageError(f"no access '{access}'", "one of auto, logprobs, text")
    unmarked = prompts is None if unmarked_prompts is None else unmarked_prompts
    asked = builtin_prompts() if prompts is None else prompts_of(prompts)
    priced = price_in is not None or price_out is not None
    check_prices(budget_usd, price_in, price_out)
    limit = Budget(budget, budget_usd)
    usage, test, twin = Usage(Price(price_in or 0.0, price_out or 0.0) if priced else None), None, None
    words, compared = load_transformers_for(mark, tokenizer), None
    tested, folding = None, None
    if prompts is not None:
        tested = prompts_test(mark, [_as_shown(prompt) for prompt in asked], words)
        if unmarked:
            check_unmarked(tested, prompts if isinstance(prompts, PathLike) else "the prompts")
        else:
            folding = Folding(words)
    if reference is not None:
        how = translations(mark, None, reference, tokenizer, unmarked=True).reference
        compared = ReferenceLog(reference, mark, words, how, asked, usage, log)
    endpoint = resolved(endpoint)
    where = replace(endpoint, top_logprobs=0) if access == "text" else endpoint
    waves = iter_answers(where, asked, mark, words, log, limit, usage)
    pending: list[TextLogprobs] = []
    kept: list[TextLogprobs] = []
    along: list[TextLogprobs] = []
    with progress(on("asking", endpoint.model), "billed tokens") as update, closing(waves):
        for wave in chain(waves, [None]):  # None: after the last
            came = [answer for answer in wave or () if len(answer.ids) > answer.start]
            pending += came if folding is None else [with_copy(folding, answer) for answer in came]
            if test is None and (usage.logprobs is not None or (wave is None and usage.answers)):
                if access == "logprobs" and not usage.logprobs:
                    why = " ".join(
                        [f"the endpoint gives no log probabilities that can be used: {_why(usage)}", *usage.notes]
                    )
                    raise NoLogprobsError(why, "`access=text` tests what it writes instead")
                kind = "logprobs" if usage.logprobs else "text"
                test = SequentialTest(mark, kind, alpha, unmarked=unmarked, least=least)
                twin = None if unmarked else SequentialTest(mark, kind, alpha, unmarked=True, least=least)
            while test is not None and pending:
                answer = pending.pop(0)
                beside = None if compared is None else compared.along(answer)
                both = answer, beside
                if beside is not None and kind == "logprobs":
                    both = common_places(answer, beside)
                test.add(*both)
                kept.append(answer)
                along += [] if beside is None else [beside]
                if twin is not None:
                    twin.add(*both)
            if compared is not None:
                compared.keep()
            update(usage.billed, budget)
            if test is not None and test.stopped:
                break
    if test is None:
        raise ApiError(f"no answer could be used; the last error: {usage.last_error}", f"the log is {log}")
    found = test.result() if twin is None or carry(tested) else with_cost(test.result(), twin.result())
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    if found.significant:
        read = None if compared is None else along
        fields["tilt"] = tilt_of_answers(mark, kept, read, unmarked=unmarked)
    fields["stopped"] = found.stopped or (BUDGET if limit.used_up(usage) else PROMPTS)
    notes = _notes(usage, endpoint, found.n, asked_logprobs=where.top_logprobs > 0)
    fields["warnings"] = (*found.warnings, *notes, *(notes_on_strings(kept) if usage.logprobs else ()))
    fields["prompts_test"] = tested
    return EndpointResult(
        **fields,
        prompt_tokens=usage.prompt_tokens,
        answer_tokens=usage.answer_tokens,
        spent=usage.spent,
        failed_requests=usage.failed,
        unknown_tokens=usage.unknown_tokens,
        served_model=usage.served,
        log=str(log),
    )


def _as_shown(prompt: Prompt) -> Output:
    """A prompt as what an output follows."""
    ids = None if prompt.ids is None else np.array(prompt.ids, np.int64)
    return Output(prompt.id, ids, np.zeros(0, np.int64), prompt=prompt.text)


def _why(usage: Usage) -> str:
    """Why log probabilities were not scored, in words."""
    return f"{usage.why_text or 'no answer was long enough to tell'}."


def _notes(usage: Usage, endpoint: Endpoint, n: int, *, asked_logprobs: bool) -> list[str]:
    """What a reader should know of how an endpoint answered."""
    notes = list(usage.notes)
    if asked_logprobs and not usage.logprobs:
        notes.append(f"The text was scored, and not the log probabilities: {_why(usage)}")
    if usage.thoughts:
        notes.append(
            f"{usage.thoughts} answers came with reasoning, which was not scored: score it with `reasoning=True` if "
            "the teacher's reasoning is marked, too."
        )
    if not n:
        notes.append(
            "Nothing could be scored: this says nothing of the suspect. Raise `max_tokens`, ask other `prompts`, "
            + (
                "or test what it writes with `access=text`."
                if usage.logprobs
                else "and look at the answers in the log."
            )
        )
    return notes
