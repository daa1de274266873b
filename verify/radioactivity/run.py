"""One call a test for a mark: from files, folders and endpoints to a result. The guards against invalid use are here.

Paths may be `str` or `Path`; a mark may be a `Mark` or its file; a model may be a folder or a loaded
`(model, tokenizer)`. Whatever a command does, one of these functions does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from verify.calls import check_alpha, noted
from verify.data import context_counts as counting
from verify.data.columns import Columns
from verify.data.context_counts import ContextCounts
from verify.data.folding import Folding
from verify.data.logprobs import (
    TextLogprobs,
    as_output,
    as_text,
    at_common_places,
    check_same_positions,
    common_places,
    keep_top_of_text,
    logprobs_at_positions,
    most_named,
)
from verify.data.outputs import Output, Outputs
from verify.data.pairs import distinct
from verify.data.reads import pairs_of, positions_of
from verify.lineage.plan import ATTRIBUTION, LineagePlan
from verify.planning.builtin import builtin_prompts
from verify.progress import Stages, on, silent
from verify.radioactivity.attribution import Attribution, attribution, labels_digest
from verify.radioactivity.detail import POSITIONS, TOKENS, Detail, greenest, growth, heaviest, tokenizer_if_there
from verify.radioactivity.inputs import (
    Evidence,
    PathLike,
    Recorded,
    all_sequential,
    beside_prompts,
    beside_strings,
    is_model,
    named,
    notes_on,
    notes_on_strings,
    notes_on_translation,
    outputs_of,
    probes_of,
    prompts_of,
    read_along,
    read_through,
    recorded,
    replayed,
    tables,
    texts_beside_prompts,
    translations,
    unmarked_by,
    with_cost,
)
from verify.radioactivity.logprobs import WeightedResult, log10_if_unmarked, logprob_log10_of_first, logprob_result
from verify.radioactivity.prompts import carry, check_unmarked, prompts_test, with_copy
from verify.radioactivity.sequential import (
    BUDGET,
    MIN_TILT,
    PROMPTS,
    EndpointResult,
    SequentialResult,
    SequentialTest,
)
from verify.radioactivity.text import (
    BINOMIAL,
    EXCESS,
    METHODS,
    TextResult,
    cost_of_marked,
    excess,
    text_log10_if_unmarked,
    text_log10_of_first,
    text_result,
)
from verify.radioactivity.tilt import tilt_of, tilt_of_answers
from verify.suspects.asking import NoLogprobsError
from verify.suspects.client import resolved
from verify.suspects.endpoint import Endpoint, is_address
from verify.suspects.interview import Budget, Price, ReferenceLog, Usage, check_prices, iter_answers
from verify.suspects.model import Model
from watermark import ApiError, Mark, UsageError
from watermark.io.fields import is_text
from watermark.io.prompts import Prompt
from watermark.keyfile import read_labels
from watermark.mark import as_mark
from watermark.tokenizers import load_transformers_for


@noted
def text_test(
    mark: Mark | PathLike,
    outputs: Evidence | Outputs,
    *,
    reference: Model | None = None,
    method: str = "auto",
    unmarked_prompts: bool = False,
    alpha: float = 1e-3,
    decoys: int | None = None,
    tokenizer: PathLike | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    batch_size: int = 8,
    progress: Stages = silent,
) -> TextResult | SequentialResult:
    """Test what a suspect wrote for the mark.

    Args:
        mark: the mark, or its file.
        outputs: what the suspect wrote: files as for `verify.read_outputs`, or what that returned.
        reference: a model that does not depend on the secret, the suspect's parent, say: much less text is needed.
        method: the test that decides, chosen before looking: `binomial` (a distinct pair is one coin), `counts` (it
            weighs as often as it was written) or `excess` (as often as it was written less what the reference
            expected); `auto`: `excess` with a reference, else `binomial`.
        unmarked_prompts: nobody who wrote the prompts knew the secret or copied marked text.
        alpha: level of the verdict, fixed before looking.
        decoys: number of decoy keys; None: 200 with a reference (of another engine's mark 20), else none.
        tokenizer: folder of the mark's tokenizer, if not where the mark says.
        columns: where the fields are in records of no known shape, as for `verify.read_outputs`.
        skip_bad: count malformed records instead of stopping at the first.
        batch_size: texts that the reference reads in one forward pass.
        progress: opened around each piece of work.

    Returns:
        The result; a `SequentialResult` where all outputs are answers of a sequential run.

    Raises:
        StillmarkError: a file, the mark or the reference cannot be used, or sequential and other answers are mixed.

    Example:
        >>> import verify
        >>> result = verify.text_test("teacher.mark", "outputs.jsonl")  # doctest: +SKIP
    """
    mark = as_mark(mark)
    if method not in ("auto", *METHODS):
        raise UsageError(f"no method '{method}'", f"one of auto, {', '.join(METHODS)}")
    if method == EXCESS and reference is None:
        raise UsageError(f"the method '{EXCESS}' compares with a reference", "name a `reference`")
    need = reference is not None or not unmarked_prompts
    read = outputs_of(
        mark, outputs, tokenizer, columns=columns, need_prompts=need, skip_bad=skip_bad, progress=progress
    )
    notes = notes_on(read)
    read, prompts, more = beside_prompts(mark, read, tokenizer, unmarked=unmarked_prompts)
    notes += more
    if all_sequential([output.sequential for output in read]):
        if method != "auto" or decoys is not None:
            raise UsageError(
                "these are answers of a sequential run, which have a test of their own",
                "leave `method` and `decoys` out",
            )
        kept = [output for output in read if len(output.output_ids)]
        along = None if reference is None else _along(mark, reference, kept, 1, tokenizer, progress)
        found = replayed(mark, "text", alpha, list(map(as_text, kept)), along, prompts, unmarked=unmarked_prompts)
        return replace(found, inputs=_inputs(read, reference), warnings=found.warnings + notes)
    positions = positions_of(mark, read, unmarked_prompts=unmarked_prompts)
    weights, expected = None, None
    along = []
    if reference is not None and len(read):
        along = _along(mark, reference, read, batch_size, tokenizer, progress)
        expected = logprobs_at_positions(along, positions)
        weights = excess(positions, expected, mark.exempt)
    chosen = (BINOMIAL if weights is None else EXCESS) if method == "auto" else method
    number = (mark.scheme.decoys if reference is not None else 0) if decoys is None else decoys
    with progress(on("testing", read.files), ""):
        result = text_result(mark, distinct(positions), alpha, method=chosen, excess=weights, decoys=number)
        shown = tokenizer_if_there(mark, tokenizer)
        detail = Detail(
            growth=growth(
                TOKENS,
                len(positions.tokens),
                result.log10_pvalue,
                lambda k: text_log10_of_first(mark, positions, expected, chosen, k),
            ),
            passages=greenest(mark, positions, read, shown),
            heaviest=() if weights is None else heaviest(mark, weights, shown),
        )
        result = replace(result, detail=detail)
        if result.significant:
            result = replace(result, tilt=tilt_of(mark, positions, expected))
    if not unmarked_prompts and result.pairs.prompts:
        free = positions_of(mark, read, unmarked_prompts=True)
        if weights is not None:
            weights = excess(free, logprobs_at_positions(along, free), mark.exempt)
        other = text_log10_if_unmarked(mark, distinct(free), chosen, weights)
        cost = () if carry(prompts) else cost_of_marked("unmarked_prompts", result.log10_pvalue, other)
        result = replace(result, log10_pvalue_if_unmarked=other, warnings=result.warnings + cost)
    return replace(result, prompts_test=prompts, inputs=_inputs(read, reference), warnings=result.warnings + notes)


@noted
def logprob_test(
    mark: Mark | PathLike,
    suspect: Model | Recorded | Endpoint,
    probes: Evidence | Outputs | None = None,
    *,
    reference: Model | Recorded | None = None,
    context_counts: ContextCounts | PathLike | None = None,
    unmarked_probes: bool | None = None,
    record: PathLike | None = None,
    alpha: float = 1e-3,
    decoys: int | None = None,
    tokenizer: PathLike | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    batch_size: int = 8,
    progress: Stages = silent,
) -> WeightedResult | SequentialResult:
    """Test a suspect's next-token probabilities for the mark: read from weights or an endpoint, or recorded.

    Args:
        mark: the mark, or its file.
        suspect: a model, which is read along the probes; an endpoint (or its address) that gives the log probabilities
            of a prompt's tokens, as vLLM does, and is read in the same way without writing anything; or recorded log
            probabilities (files of our own records or of answers as servers give them, or what
            `verify.data.logprobs.read_recorded` gave). A model, the reference too, may have another tokenizer than the
            mark: what it says is translated (`verify.data.retokenize`), and the result says how much could be kept.
        probes: texts to read along, files as for `verify.read_outputs`; None: those that come with the package, which
            cannot carry any mark. Not with recorded log probabilities.
        reference: a model that does not depend on the secret, or its records at the same positions: far fewer positions
            are needed. A model reads along whatever the suspect read or wrote.
        context_counts: how often the teacher emitted each context (or the file): weighs by the root of the counts.
        unmarked_probes: nobody who wrote the probes knew the secret or copied marked text. None: as the probes say,
            which is what `stillmark generate` and `stillmark probes` write into them; what does not say may be marked.
        record: folder to keep what was read in, and to resume from; an endpoint needs one.
        alpha: level of the verdict, fixed before looking.
        decoys: number of decoy keys; None: 200 (of another engine's mark 20).
        tokenizer: folder of the mark's tokenizer, if not where the mark says. It also stands in for the tokenizer of a
            model's folder that holds none.
        columns: where the fields are in recorded answers of no known shape, as for `verify.read_outputs`.
        skip_bad: count malformed probes or records instead of stopping at the first.
        batch_size: texts in one forward pass.
        progress: opened around each piece of work.

    Returns:
        The result; a `SequentialResult` where the records are answers of a sequential run.

    Raises:
        StillmarkError: a file, the mark or a model cannot be used, the probes are answers of a sequential run, or
            `unmarked_probes` contradicts what they say.
    """
    mark, prompts = as_mark(mark), None
    counts = counting.load(Path(context_counts), mark.width) if isinstance(context_counts, PathLike) else context_counts
    if is_address(suspect):
        suspect = Endpoint(suspect, "")
    if isinstance(suspect, Endpoint):
        ready = probes_of(mark, probes, unmarked_probes, tokenizer=tokenizer, skip_bad=skip_bad)
        unmarked, inputs = ready.unmarked, {"suspect": suspect.model} | ready.inputs
        said, notes = read_through(suspect, mark, ready.texts, record, tokenizer, progress, unmarked=unmarked)
        texts, notes, few = [as_output(text) for text in said], (*ready.notes, *notes), most_named(said)
    elif is_model(suspect):
        ready = probes_of(mark, probes, unmarked_probes, tokenizer=tokenizer, skip_bad=skip_bad)
        texts, unmarked, notes = ready.texts, ready.unmarked, ready.notes
        inputs = {"suspect": named(suspect)} | ready.inputs
        few = None
    else:
        if probes is not None:
            raise UsageError("recorded log probabilities hold what was read: `probes` does not apply")
        said, inputs, notes = recorded(suspect, mark, tokenizer, columns, skip_bad, progress)
        texts, few = [as_output(text) for text in said], most_named(said)
        unmarked = unmarked_by([text.marked for text in said], unmarked_probes, named(suspect))
        said, prompts, more = texts_beside_prompts(mark, said, tokenizer, named(suspect), unmarked=unmarked)
        notes += more
    weights = None if isinstance(suspect, Endpoint) or not is_model(suspect) else suspect
    beside_it = reference if reference is not None and is_model(reference) else None
    # where a suspect with another tokenizer wrote the texts itself, it matters for nothing what comes after a place
    written = weights is None and all(text.sampled and text.translated for text in said)
    how = translations(mark, weights, beside_it, tokenizer, unmarked=unmarked or written)
    if weights is not None:
        said = read_along(
            "suspect", weights, mark, texts, batch_size, record, progress, tokenizer=tokenizer, translator=how.suspect
        )
    compared = None
    inputs["reference"] = None if reference is None else named(reference)
    if reference is not None:
        if is_model(reference):
            compared = read_along(
                "reference",
                reference,
                mark,
                texts,
                batch_size,
                record,
                progress,
                tokenizer=tokenizer,
                translator=how.reference,
            )
            # where the suspect names a few tokens at each place, a reference that names more would differ for that
            if few is not None:
                compared = [keep_top_of_text(one, few) for one in beside_strings(mark, said, compared, tokenizer)]
        else:
            compared = recorded(reference, mark, tokenizer, progress=progress)[0]
    raw = said, compared
    if compared is not None:
        said, compared = at_common_places(said, compared)
    if all_sequential([text.sequential for text in said]):
        if counts is not None or decoys is not None:
            raise UsageError(
                "these are answers of a sequential run, which have a test of their own",
                "leave `context_counts` and `decoys` out",
            )
        found = replayed(mark, "logprobs", alpha, said, compared, prompts, unmarked=bool(unmarked_probes))
        return replace(found, inputs=inputs, warnings=found.warnings + notes_on_strings(raw[0]))
    scored, beside = tables(mark, said, compared, unmarked=unmarked)
    if beside is not None:
        who = "the endpoint's answers" if isinstance(suspect, Endpoint) else named(suspect)
        check_same_positions(scored, beside, who, inputs["reference"])
    what = suspect.model if isinstance(suspect, Endpoint) else named(suspect)
    with progress(on("testing", what), ""):
        result = logprob_result(mark, scored, beside, alpha, mark.scheme.decoys if decoys is None else decoys, counts)
        detail = Detail(
            growth=growth(
                POSITIONS,
                len(scored),
                result.log10_pvalue,
                lambda k: logprob_log10_of_first(mark, scored, beside, counts, k),
            ),
            heaviest=heaviest(mark, result.pairs, tokenizer_if_there(mark, tokenizer)),
        )
        result = replace(result, detail=detail)
    if not unmarked:
        other = log10_if_unmarked(mark, *tables(mark, said, compared, unmarked=True), counts)
        cost = () if carry(prompts) else cost_of_marked("unmarked_probes", result.log10_pvalue, other)
        result = replace(result, log10_pvalue_if_unmarked=other, warnings=result.warnings + cost)
    sampled = any(text.sampled for text in said)
    if sampled and result.significant:
        own = [i for i, text in enumerate(said) if text.sampled]
        along = None if compared is None else [compared[i] for i in own]
        result = replace(result, tilt=tilt_of_answers(mark, [said[i] for i in own], along, unmarked=unmarked))
    notes += how.notes + notes_on_translation(*raw, scored)
    result = replace(result, sampled=sampled, prompts_test=prompts, inputs=inputs)
    return replace(result, warnings=result.warnings + notes)


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


@noted
def attribute(
    mark: Mark | PathLike,
    labels: PathLike | Sequence[str],
    outputs: Evidence | Outputs,
    *,
    unmarked_prompts: bool = False,
    alpha: float = 1e-3,
    plan: PathLike | None = None,
    deviate: bool = False,
    tokenizer: PathLike | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    progress: Stages = silent,
) -> Attribution:
    """Find the customers (months, ...) whose marked outputs a suspect's text shows.

    Args:
        mark: the parent, or its file, of which each label's mark was derived.
        labels: as the children were derived, no two alike; or a text file of one label a line.
        outputs: what the suspect wrote: files as for `verify.read_outputs`, or what that returned.
        unmarked_prompts: nobody who wrote the prompts knew the secret or copied marked text.
        alpha: the chance that one wrong label or more is named, fixed before looking.
        plan: file of the plan, from `plan_labels`; written if it is not there, else it must hold this very plan. A
            result says whether it was there before.
        deviate: the plan may be another: the result names every deviation from it.
        tokenizer: folder of the mark's tokenizer, if not where the mark says.
        columns: where the fields are in records of no known shape, as for `verify.read_outputs`.
        skip_bad: count malformed records instead of stopping at the first.
        progress: opened around each piece of work.

    Raises:
        StillmarkError: a file or the mark cannot be used, or the outputs are answers of a sequential run.
    """
    mark = as_mark(mark)
    names = _labels_of(labels)
    fixed = _plan_of_labels(mark, names, unmarked_prompts=unmarked_prompts, alpha=alpha)
    promised, before, deviations = fixed, False, list[str]()
    if plan is not None:
        promised, before, deviations = fixed.held_to(Path(plan), deviate=deviate)
    elif deviate:
        raise UsageError("`deviate` needs a `plan`", "name its file")
    read = outputs_of(
        mark,
        outputs,
        tokenizer,
        columns=columns,
        need_prompts=not unmarked_prompts,
        skip_bad=skip_bad,
        progress=progress,
    )
    read, prompts, notes = beside_prompts(mark, read, tokenizer, unmarked=unmarked_prompts)
    pairs = pairs_of(mark, read, unmarked_prompts=unmarked_prompts)
    with progress(on("trying labels on", read.files), "labels") as update:
        digest = None if plan is None else promised.digest
        found = attribution(
            mark, names, pairs, alpha, update, plan=digest, planned_before=before, deviations=deviations
        )
    notes = notes_on(read) + notes
    return replace(found, prompts_test=prompts, inputs=_inputs(read), warnings=found.warnings + notes)


def plan_labels(
    mark: Mark | PathLike,
    labels: PathLike | Sequence[str],
    path: PathLike,
    *,
    unmarked_prompts: bool = False,
    alpha: float = 1e-3,
) -> LineagePlan:
    """Write what `attribute` will test, before anybody looks at the suspect: mark, labels, level.

    Args:
        mark, labels, unmarked_prompts, alpha: as for `attribute`.
        path: file of the plan; if it is there, it must hold this very plan. Date it by a service that others trust.

    Raises:
        StillmarkError: the mark or the labels cannot be used, or the file cannot be written or holds another plan.
    """
    check_alpha(alpha)
    fixed = _plan_of_labels(as_mark(mark), _labels_of(labels), unmarked_prompts=unmarked_prompts, alpha=alpha)
    fixed.fix(Path(path))
    return fixed


def _labels_of(labels: PathLike | Sequence[str]) -> list[str]:
    if isinstance(labels, PathLike):
        return read_labels(Path(labels))
    names = list(labels)
    if not names or not all(is_text(name) and name.strip() and "\n" not in name for name in names):
        raise UsageError("`labels` must be names, at least one, each in one line")
    if len(set(names)) < len(names):
        raise UsageError("some of the `labels` are alike", "name each once")
    return names


def _plan_of_labels(mark: Mark, labels: Sequence[str], *, unmarked_prompts: bool, alpha: float) -> LineagePlan:
    inputs = {"mark": mark.commitment, "labels": labels_digest(labels)}
    return LineagePlan((ATTRIBUTION,), alpha, inputs, {"labels": len(labels), "unmarked_prompts": unmarked_prompts})


def _along(
    mark: Mark,
    reference: Model,
    outputs: Sequence[Output],
    batch_size: int,
    tokenizer: PathLike | None,
    progress: Stages,
) -> list[TextLogprobs]:
    """What a reference says along outputs. Where it has another tokenizer, it expects nothing at some positions."""
    how = translations(mark, None, reference, tokenizer, unmarked=False)
    return read_along(
        "reference",
        reference,
        mark,
        outputs,
        batch_size,
        None,
        progress,
        tokenizer=tokenizer,
        translator=how.reference,
    )


def _inputs(outputs: Outputs, reference: Model | None = None) -> dict[str, object]:
    compared = None if reference is None else named(reference)
    found: dict[str, object] = {
        "files": [str(path) for path in outputs.files],
        "bad_records": outputs.bad,
        "reference": compared,
    }
    found["ids_differing"] = outputs.differing
    return found | ({"read_as": outputs.read_as} if outputs.read_as else {})
