"""`verify.text_test`: what a suspect wrote, from files to a result. The guards against invalid use are here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from verify.calls import noted
from verify.data.columns import Columns
from verify.data.logprobs import TextLogprobs, as_text, logprobs_at_positions
from verify.data.outputs import Output, Outputs
from verify.data.pairs import distinct
from verify.data.reads import positions_of
from verify.progress import Stages, on, silent
from verify.radioactivity.detail import TOKENS, Detail, greenest, growth, heaviest, tokenizer_if_there
from verify.radioactivity.inputs import (
    Evidence,
    PathLike,
    all_sequential,
    beside_prompts,
    files_read,
    notes_on,
    outputs_of,
    read_along,
    replayed,
)
from verify.radioactivity.prompts import carry
from verify.radioactivity.sequential import SequentialResult
from verify.radioactivity.tails import BINOMIAL
from verify.radioactivity.text import (
    EXCESS,
    METHODS,
    TextResult,
    cost_of_marked,
    excess,
    text_log10_if_unmarked,
    text_log10_of_first,
    text_result,
)
from verify.radioactivity.tilt import tilt_of
from verify.radioactivity.translated import translations
from verify.suspects.model import Model
from watermark import Mark, UsageError
from watermark.mark import as_mark


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
        return replace(found, inputs=files_read(read, reference), warnings=found.warnings + notes)
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
    return replace(result, prompts_test=prompts, inputs=files_read(read, reference), warnings=result.warnings + notes)


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
