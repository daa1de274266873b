"""`verify.logprob_test`: weights, an endpoint that is read, or recorded log probabilities, from files to a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from verify.calls import noted
from verify.data import context_counts as counting
from verify.data.columns import Columns
from verify.data.context_counts import ContextCounts
from verify.data.logprobs import as_output, at_common_places, check_same_positions, keep_top_of_text, most_named
from verify.data.outputs import Outputs
from verify.progress import Stages, on, silent
from verify.radioactivity.detail import POSITIONS, Detail, growth, heaviest, tokenizer_if_there
from verify.radioactivity.inputs import (
    Evidence,
    PathLike,
    Recorded,
    all_sequential,
    is_model,
    named,
    probes_of,
    read_along,
    read_through,
    recorded,
    replayed,
    tables,
    texts_beside_prompts,
    unmarked_by,
)
from verify.radioactivity.logprobs import WeightedResult, log10_if_unmarked, logprob_log10_of_first, logprob_result
from verify.radioactivity.prompts import carry
from verify.radioactivity.sequential import SequentialResult
from verify.radioactivity.text import cost_of_marked
from verify.radioactivity.tilt import tilt_of_answers
from verify.radioactivity.translated import beside_strings, notes_on_strings, notes_on_translation, translations
from verify.suspects.endpoint import Endpoint, is_address
from verify.suspects.model import Model
from watermark import Mark, UsageError
from watermark.mark import as_mark


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
