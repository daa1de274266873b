"""stillmark verify: test a suspect for a mark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from verify.cli.api import api
from verify.cli.common import (
    FILE,
    alpha_option,
    fail_on_option,
    json_option,
    load_mark,
    make_record,
    mark_option,
    progress,
    skip_bad_option,
    tokenizer_option,
    unmarked_prompts_option,
)
from verify.cli.corpus import corpus
from verify.cli.results import mention_bad, report
from watermark import InputError
from watermark.tokenizers import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from verify.data.context_counts import ContextCounts
    from verify.data.logprobs import TextLogprobs
    from verify.data.outputs import Output
    from verify.radioactivity.result import MarkResult
    from watermark import Mark


@click.group()
def verify() -> None:
    """Test a suspect for a mark, with exact p-values."""


_keyless = click.option(
    "--unmarked-probes", is_flag=True, help="The probes cannot carry the mark: keep contexts that come again in them."
)
_DECOYS: Final = 200
_decoys = click.option(
    "--decoys",
    type=click.IntRange(0),
    help=f"Number of decoy keys [default: {_DECOYS}; 0 for text without a reference].",
)
_batch_size = click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Texts in one forward pass."
)
_windows = click.option(
    "--context-counts",
    "counts_path",
    type=FILE,
    help="What `stillmark count-contexts` counted: weigh by the root of the counts.",
)


@verify.command()
@mark_option()
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@click.option("--reference", type=FILE, help="Folder of a model to compare with: the suspect's parent, say.")
@click.option("--test", type=click.Choice(["binomial", "counts", "excess"]), help="See below.")
@unmarked_prompts_option
@tokenizer_option
@_batch_size
@_decoys
@alpha_option
@skip_bad_option
@fail_on_option
@json_option
@click.pass_context
def text(
    ctx: click.Context,
    mark_path: Path,
    allow_readable: bool,
    outputs: tuple[Path, ...],
    reference: Path | None,
    test: str | None,
    unmarked_prompts: bool,
    tokenizer: Path | None,
    batch_size: int,
    decoys: int | None,
    alpha: float,
    skip_bad: bool,
    fail_on: str | None,
    as_json: bool,
) -> None:
    """Test what a suspect wrote.

    OUTPUTS are JSONL or Parquet files, a record a row (`output_ids` or `output`, and `prompt_ids` or `prompt`
    if there was one), or .txt files, an output each.

    The test that decides is `binomial`, in which a distinct pair is one coin, however often it was written. In
    `counts` a pair weighs as often as it was written. With a --reference the test is `excess`: a pair weighs as
    often as it was written less what the reference expected, which takes far fewer tokens. All are exact or
    bounds; choose before you look. The others are shown beside.
    """
    from verify.data import logprobs, pairs
    from verify.data.outputs import read_outputs
    from verify.radioactivity import sequential
    from verify.radioactivity import text as module

    if test == module.EXCESS and reference is None:
        raise click.UsageError("--test excess needs a --reference")
    loaded = load_mark(mark_path, allow_readable)
    with progress("reading", "records") as update:
        written = read_outputs(
            outputs,
            loaded,
            tokenizer=tokenizer,
            need_prompts=reference is not None or not unmarked_prompts,
            skip_bad=skip_bad,
            progress=update,
        )
    result: MarkResult
    if _all_sequential([output.sequential for output in written], outputs):
        if test is not None or decoys is not None:
            raise click.UsageError("answers of a sequential run have their own test: --test and --decoys do not apply")
        kept = [output for output in written if len(output.output_ids)]
        along = None if reference is None else _read_along("reference", reference, loaded, kept, 1, None)
        looked = sequential.SequentialTest(loaded, "text", alpha, unmarked=unmarked_prompts)
        result = sequential.replay(looked, map(logprobs.as_text, kept), along)
    else:
        positions = pairs.scorable_batch(written, loaded.width, loaded.exempt, unmarked_prompts=unmarked_prompts)
        excess = None
        if reference is not None and written:
            texts = _read_along("reference", reference, loaded, written, batch_size, None)
            excess = module.excess(positions, logprobs.logprobs_at_positions(texts, positions), loaded.exempt)
        if excess is None and test in (None, module.EXCESS):
            test = module.BINOMIAL
        result = module.text_test(
            loaded,
            pairs.distinct(positions),
            alpha,
            method=test or module.EXCESS,
            excess=excess,
            decoys=_DECOYS * (reference is not None) if decoys is None else decoys,
        )
    more = {"files": [str(path) for path in outputs], "reference": reference and str(reference)}
    report(ctx, result, {**more, "bad_records": written.bad}, as_json, fail_on)
    mention_bad(written.bad, written.first_bad)


@verify.command()
@mark_option()
@click.option("--model", type=FILE, required=True, help="Folder of the suspect's weights.")
@click.option("--reference", type=FILE, help="Folder of a model to compare with: the suspect's parent, say.")
@click.option("--probes", type=FILE, multiple=True, required=True, help="Texts to read along; may be repeated.")
@_keyless
@_windows
@click.option("--record", type=FILE, help="Folder to keep what was read in, for `verify logprobs`, and to resume from.")
@tokenizer_option
@_batch_size
@_decoys
@alpha_option
@skip_bad_option
@fail_on_option
@json_option
@click.pass_context
def model(
    ctx: click.Context,
    mark_path: Path,
    allow_readable: bool,
    model: Path,
    reference: Path | None,
    probes: tuple[Path, ...],
    unmarked_probes: bool,
    counts_path: Path | None,
    record: Path | None,
    tokenizer: Path | None,
    batch_size: int,
    decoys: int | None,
    alpha: float,
    skip_bad: bool,
    fail_on: str | None,
    as_json: bool,
) -> None:
    """Test a suspect whose weights you have, by its probabilities along probe texts.

    A probe is a record as in `verify text`; the positions of its output are read. Best are texts that cannot
    carry the mark (see `stillmark probes`): then say --unmarked-probes. With a --reference much less is needed; it
    may be any model that has nothing to do with the secret, and a bad one costs power, not validity. With --record
    a killed run goes on where it was.
    """
    from verify.data import logprobs
    from verify.data.outputs import read_outputs
    from verify.radioactivity.logprobs import logprob_test

    loaded = load_mark(mark_path, allow_readable)
    counts = _load_windows(counts_path, loaded)
    reading = read_outputs(probes, loaded, tokenizer=tokenizer, skip_bad=skip_bad)
    texts = [probe for probe in reading if len(probe.output_ids)]
    if any(probe.sequential for probe in texts):
        raise InputError(probes[0], 0, "holds answers that were collected until the evidence sufficed", "no probes")
    if unmarked_probes and any(probe.marked for probe in texts):
        raise InputError(probes[0], 0, "says that its text carries a mark", "leave --unmarked-probes out")
    make_record(record)

    def read(who: str, path: Path) -> logprobs.LogprobTable:
        log = record / f"{who}.jsonl" if record else None
        return logprobs.scorable_logprobs(
            _read_along(who, path, loaded, texts, batch_size, log), loaded.width, unmarked=unmarked_probes
        )

    suspected, compared = read("suspect", model), read("reference", reference) if reference else None
    result = logprob_test(loaded, suspected, compared, alpha, _DECOYS if decoys is None else decoys, counts)
    more = {"model": str(model), "reference": reference and str(reference), "probes": [str(path) for path in probes]}
    report(ctx, result, more | {"bad_records": reading.bad}, as_json, fail_on)
    mention_bad(reading.bad, reading.first_bad)


@verify.command()
@mark_option()
@click.argument("records", type=FILE)
@click.option("--reference-records", type=FILE, help="What another model answered at the same positions, in order.")
@_keyless
@_windows
@_decoys
@alpha_option
@fail_on_option
@json_option
@click.pass_context
def logprobs(
    ctx: click.Context,
    mark_path: Path,
    allow_readable: bool,
    records: Path,
    reference_records: Path | None,
    unmarked_probes: bool,
    counts_path: Path | None,
    decoys: int | None,
    alpha: float,
    fail_on: str | None,
    as_json: bool,
) -> None:
    """Test recorded log probabilities, from JSONL.

    A record is a position: `context_ids`, the tokens before it, and `top_logprobs`, a list of [token id, natural
    log probability]; the top 20 are plenty. Or it is a text: `output_ids`, `prompt_ids`, and `top_logprobs` with
    such a list (or null) for each output token, as `verify model --record` writes it.
    """
    from verify.data import logprobs as recorded
    from verify.radioactivity import sequential
    from verify.radioactivity.logprobs import logprob_test

    loaded = load_mark(mark_path, allow_readable)
    counts = _load_windows(counts_path, loaded)
    texts = recorded.read_recorded(records, loaded)
    reference_texts = None if reference_records is None else recorded.read_recorded(reference_records, loaded)
    result: MarkResult
    if _all_sequential([text.sequential for text in texts], (records,)):
        if counts is not None or decoys is not None:
            raise click.UsageError(
                "answers of a sequential run have their own test: --context-counts and --decoys do not apply"
            )
        looked = sequential.SequentialTest(loaded, "logprobs", alpha, unmarked=unmarked_probes)
        result = sequential.replay(looked, texts, reference_texts)
    else:
        suspected, compared = recorded.scorable_logprobs(texts, loaded.width, unmarked=unmarked_probes), None
        if reference_texts is not None and reference_records is not None:
            compared = recorded.scorable_logprobs(reference_texts, loaded.width, unmarked=unmarked_probes)
            recorded.check_same_positions(suspected, compared, records, reference_records)
        result = logprob_test(loaded, suspected, compared, alpha, _DECOYS if decoys is None else decoys, counts)
    more = {"files": [str(records)], "reference": reference_records and str(reference_records)}
    report(ctx, result, more, as_json, fail_on)


def _all_sequential(flags: list[bool], paths: tuple[Path, ...]) -> bool:
    """Whether these are the answers of a sequential run, which only a sequential test may judge."""
    if any(flags) and not all(flags):
        raise InputError(
            " ".join(map(str, paths)),
            0,
            f"{sum(flags)} records were collected until the evidence sufficed, and {len(flags) - sum(flags)} were not",
            "test them apart",
        )
    return any(flags)


def _read_along(
    who: str, path: Path, mark: Mark, texts: Sequence[Output], batch_size: int, record: Path | None
) -> list[TextLogprobs]:
    from verify.suspects import model

    quiet_transformers()
    with progress(f"reading along with the {who}", "texts") as update:
        return model.read_weights(path, mark, texts, batch_size=batch_size, record=record, progress=update)


def _load_windows(path: Path | None, mark: Mark) -> ContextCounts | None:
    from verify.data import context_counts

    return None if path is None else context_counts.load(path, mark.width)


verify.add_command(api)
verify.add_command(corpus)
