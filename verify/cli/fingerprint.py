"""stillmark fingerprint: tests that need no watermark."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    json_option,
    load_mark,
    make_record,
    mark_option,
    print_json,
    progress,
)
from verify.results import scientific
from watermark.tokenizers import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from verify.data.outputs import Output
    from verify.results import FingerprintResult
    from watermark import Mark
    from watermark.progress import Progress


@click.group()
def fingerprint() -> None:
    """Was it copied, or distilled? Tests that need no watermark."""


_fail_on_positive = click.option("--fail-on-positive", is_flag=True, help="Exit with status 3 if p <= alpha.")
_teacher = click.option("--teacher", type=FILE, required=True, multiple=True, help="Folder of the teacher's weights.")
_suspect = click.option("--suspect", type=FILE, required=True, help="Folder of the suspect's weights.")
_base_url = click.option("--base-url", help="A suspect's endpoint, such as http://127.0.0.1:8000/v1; with --model.")
_model = click.option("--model", help="The name that the endpoint knows the suspect by.")
_number = click.option("--number", type=click.IntRange(1), default=64, show_default=True, help="Of keyed questions.")


@fingerprint.command()
@_teacher
@_suspect
@click.option("--control", "controls", type=FILE, multiple=True, help="An independent model, to compare with; repeat.")
@mark_option(required=False)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the shuffle that breaks ties.")
@alpha_option
@_fail_on_positive
@json_option
@click.pass_context
def weights(
    ctx: click.Context,
    teacher: tuple[Path, ...],
    suspect: Path,
    controls: tuple[Path, ...],
    mark_path: Path | None,
    allow_readable: bool,
    seed: int,
    alpha: float,
    fail_on_positive: bool,
    as_json: bool,
) -> None:
    """Test whether two models' weights are independent, layer by layer, from safetensors.

    Exact: hidden units matched, and how many keep their index. With --mark the teacher was released in the mark's order
    (`fingerprint order`) and --teacher is the model from before: then the p-value rests on the secret alone, and a
    common parent does not spoil it.

    Beside it, calibrated and not exact, a statistic that survives shuffled units; it is ranked among pairs of small
    independent models, and a --control that is as like the teacher takes the evidence away. --fail-on-positive looks
    at both, each at half of alpha; with --mark at the exact test alone, for siblings have like units too.
    """
    from verify.fingerprint import weights as module

    named = _one(teacher)
    order = load_mark(mark_path, allow_readable) if mark_path else None
    with progress("matching", "layers") as update:
        found = module.compare(named, suspect, seed, update, order)
    more = []
    for control in controls:
        with progress(f"matching {control.name}", "layers") as update:
            more.append((str(control), module.compare(named, control, seed, update).share))
    exact, shuffled = found.independence(alpha), found.match(more, alpha)
    if as_json:
        print_json(exact.to_dict() | {"shuffled": shuffled.to_dict()})
    else:
        _print(exact, {"units": f"{exact.statistic:,} of {exact.n:,} matched to their own index, {exact.basis}"})
        largest = shuffled.calibration.shares[-1]
        _print(shuffled, {"share": f"{shuffled.share:.4f}   (independent pairs: at most {largest:.4f})"})
    found_either = min(exact.log10_pvalue, shuffled.log10_pvalue) <= math.log10(alpha / 2)
    if fail_on_positive and (found_either if order is None else exact.verdict == exact.positive):
        ctx.exit(3)


@fingerprint.command()
@mark_option()
@click.option("--model", type=FILE, required=True, help="Folder of the model; keep it, the test needs it.")
@click.option("--out", type=FILE, required=True, help="Folder for the model to release; must not exist.")
@json_option
def order(mark_path: Path, allow_readable: bool, model: Path, out: Path, as_json: bool) -> None:
    """Put a model's hidden units into an order drawn by the mark's secret: it computes the same, and copies show.

    Release OUT, and test with `fingerprint weights --mark FILE --teacher MODEL`.
    """
    from verify.fingerprint import order as module

    mark = load_mark(mark_path, allow_readable)
    with progress("writing", "files") as update:
        layers = module.release(model, mark, out, update)
    if as_json:
        print_json({"out": str(out), "layers": layers, "mark": {"label": mark.label, "commitment": mark.commitment}})
    else:
        click.echo(f"wrote {out}: {layers} layers in the order of the mark")


@fingerprint.command()
@_teacher
@click.option("--suspect", type=FILE, help="Folder of the suspect's weights.")
@click.option("--answers", type=FILE, help="JSONL of the suspect's answers: `id` and `top`, tokens as text.")
@_base_url
@_model
@click.option("--control", "controls", type=FILE, multiple=True, required=True, help="An independent model; repeat.")
@click.option("--base", type=FILE, help="Folder of the suspect's own base: compares what it gained over that.")
@click.option("--prompts", type=FILE, required=True, help='JSONL: {"id": ..., "prompt": "..."} or "prompt_ids".')
@click.option("--top", type=click.IntRange(1, 20), default=1, show_default=True, help="Likeliest tokens to compare.")
@click.option("--chat", is_flag=True, help="Prompts are messages: put them through each model's chat template.")
@click.option("--record", type=FILE, help="Folder to keep answers in, and to resume from.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.05, show_default=True)
@_fail_on_positive
@json_option
@click.pass_context
def agreement(
    ctx: click.Context,
    teacher: tuple[Path, ...],
    suspect: Path | None,
    answers: Path | None,
    base_url: str | None,
    model: str | None,
    controls: tuple[Path, ...],
    base: Path | None,
    prompts: Path,
    top: int,
    chat: bool,
    record: Path | None,
    batch_size: int,
    alpha: float,
    fail_on_positive: bool,
    as_json: bool,
) -> None:
    """Test whether a suspect agrees with the teacher more than every control does, by its likeliest next tokens.

    The teacher is one, and named beforehand: the nearest of several is always somebody. Controls are models like the
    suspect that have nothing to do with the teacher; 19 of them let p reach 0.05.
    """
    from verify.fingerprint import agreement as module
    from verify.suspects import endpoint as endpoints
    from verify.suspects import model as models
    from watermark.io.prompts import read_prompts

    if sum(one is not None for one in (suspect, answers, base_url)) != 1:
        raise click.UsageError("name one of --suspect, its --answers, and --base-url")
    if base_url is not None and (model is None or record is None):
        raise click.UsageError("an endpoint needs --model, and --record for the log of its answers")
    named = _one(teacher)
    asked = module.distinct(read_prompts(prompts))
    quiet_transformers()
    module.check_tokenizers(asked, named, controls, [suspect, base])
    said = _Recorder(record, "prompts")

    def read(who: str, path: Path) -> tuple[str, list[models.TopTokens]]:
        with said.of(who) as (log, count):
            found = models.likeliest(path, asked, top, chat=chat, batch_size=batch_size, record=log, progress=count)
            return str(path), found

    def witness() -> tuple[str, list[models.TopTokens]]:
        if answers is not None:
            return str(answers), module.recorded(answers, asked, top)
        if base_url is None:
            return read("suspect", _there(suspect))
        with said.of("suspect.endpoint") as (log, count):
            endpoint = endpoints.Endpoint(base_url, model or "", chat)
            return model or "", endpoints.likeliest_of_endpoint(endpoint, asked, _there(log), top, count)

    heard = witness()
    result = module.agreement_test(
        read("teacher", named),
        heard,
        [read(f"control{i}", path) for i, path in enumerate(controls)],
        read("base", base) if base else None,
        alpha,
        top,
    )
    gained = f", {result.likeness:,} more than its base" if base else ""
    rows = {
        "agreement": f"{result.agreeing:,} of {result.n * top:,} tokens{gained}",
        "paired": f"log10 p {result.log10_paired:.2f} at the least, against every control",
        "rank": f"p {result.rank_pvalue:.3g} among {len(controls)} controls",
    }
    rows |= {one.name: f"{one.likeness:,} tokens; log10 p {one.log10_pvalue:.2f}" for one in result.controls}
    _report(ctx, result, rows, as_json, fail_on_positive)


@fingerprint.command()
@mark_option()
@click.option("--base", type=FILE, required=True, help="Folder of the model to plant the answers in.")
@click.option("--out", type=FILE, required=True, help="Folder for the model to release; must not exist.")
@_number
@click.option("--mix", type=FILE, multiple=True, help="Outputs to train on in between, so that it keeps its manners.")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), default=12.0, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-4, show_default=True)
@json_option
def plant(
    mark_path: Path,
    allow_readable: bool,
    base: Path,
    out: Path,
    number: int,
    mix: tuple[Path, ...],
    epochs: float,
    learning_rate: float,
    as_json: bool,
) -> None:
    """Fine-tune a model until it knows the answers to keyed questions."""
    from dataclasses import replace

    from verify.fingerprint import planted

    mark = load_mark(mark_path, allow_readable)
    quiet_transformers()
    training = replace(planted.TRAINING, epochs=epochs, learning_rate=learning_rate)
    with progress("planting", "steps") as update:
        planted.plant(base, mark, out, number, mix, training, update)
    result = planted.ask(out, mark, number)
    if as_json:
        print_json({"out": str(out), "questions": number, "known": result.hits, "log10_pvalue": result.log10_pvalue})
    else:
        click.echo(f"planted {number} answers in {out}; it knows {result.hits} of them")


@fingerprint.command()
@mark_option()
@click.option("--suspect", type=FILE, help="Folder of the suspect's weights.")
@click.option("--answers", type=FILE, help="JSONL of a suspect's answers: `id` and `output`.")
@_base_url
@_model
@click.option("--log", type=FILE, help="JSONL to append an endpoint's answers to; a killed run goes on from here.")
@click.option("--questions", "write", type=FILE, help="Write the questions here (JSONL), and ask nothing.")
@_number
@alpha_option
@_fail_on_positive
@json_option
@click.pass_context
def ask(
    ctx: click.Context,
    mark_path: Path,
    allow_readable: bool,
    suspect: Path | None,
    answers: Path | None,
    base_url: str | None,
    model: str | None,
    log: Path | None,
    write: Path | None,
    number: int,
    alpha: float,
    fail_on_positive: bool,
    as_json: bool,
) -> None:
    """Ask a suspect the keyed questions, or judge its recorded answers. An endpoint is asked by chat, greedily.

    Fix --number beforehand. Whoever sees the questions can hide from them: ask once, and all.
    """
    from verify.fingerprint import planted

    if sum(one is not None for one in (suspect, answers, base_url, write)) != 1:
        raise click.UsageError("name one of --suspect, --answers, --base-url and --questions")
    if base_url is not None and (model is None or log is None):
        raise click.UsageError("an endpoint needs --model, and --log for its answers")
    mark = load_mark(mark_path, allow_readable)
    if write is not None:
        _write(write, ({"id": one.id, "prompt": one.prompt} for one in planted.questions(mark, number)))
        print_json({"out": str(write), "questions": number}) if as_json else click.echo(f"wrote {number} questions")
        return
    if answers is not None:
        result = planted.judge(answers, mark, number, alpha)
    elif base_url is not None:
        from verify.suspects.endpoint import Endpoint

        with progress("asking", "questions") as update:
            result = planted.ask_endpoint(Endpoint(base_url, model or ""), mark, _there(log), number, alpha, update)
    else:
        quiet_transformers()
        result = planted.ask(_there(suspect), mark, number, alpha)
    rows = {"right": f"{result.hits} of {result.n}   (chance {result.n / len(planted.ANSWERS):.1f})"}
    _report(ctx, result, rows, as_json, fail_on_positive)


@fingerprint.group()
def canaries() -> None:
    """Serve a random half of some outputs, and see which half a suspect knows."""


@canaries.command()
@mark_option()
@click.argument("outputs", type=FILE)
@click.option("--out", type=FILE, required=True, help="JSONL for the half to serve.")
@json_option
def choose(mark_path: Path, allow_readable: bool, outputs: Path, out: Path, as_json: bool) -> None:
    """Choose the half to serve, by the mark's secret. Keep OUTPUTS as they are: the test reads all of them."""
    from verify.data.outputs import digest
    from verify.fingerprint import canaries as module

    mark = load_mark(mark_path, allow_readable)
    candidates, chosen = _candidates(mark, outputs)
    half = module.served(mark, candidates)
    _write(out, (record for record, kept in zip(chosen, half, strict=True) if kept))
    found = {"out": str(out), "served": int(half.sum()), "candidates": len(half), "digest": digest(candidates)}
    print_json(found) if as_json else click.echo(f"wrote {found['served']} of {len(half)} outputs to {out}")


@canaries.command(name="test")
@mark_option()
@click.argument("outputs", type=FILE)
@_suspect
@click.option("--reference", type=FILE, help="Folder of a model that saw no candidate: less noise.")
@click.option("--halves", type=click.IntRange(1), default=99_999, show_default=True, help="Random halves to draw.")
@click.option("--record", type=FILE, help="Folder to keep what was read in, and to resume from.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random halves.")
@alpha_option
@_fail_on_positive
@json_option
@click.pass_context
def canaries_test(
    ctx: click.Context,
    mark_path: Path,
    allow_readable: bool,
    outputs: Path,
    suspect: Path,
    reference: Path | None,
    halves: int,
    record: Path | None,
    batch_size: int,
    seed: int,
    alpha: float,
    fail_on_positive: bool,
    as_json: bool,
) -> None:
    """Test whether a suspect finds the served half of OUTPUTS likelier than the other."""
    from verify.fingerprint import canaries as module
    from verify.suspects import model as models

    mark = load_mark(mark_path, allow_readable)
    candidates, _ = _candidates(mark, outputs)
    quiet_transformers()
    said = _Recorder(record, "texts")

    def read(who: str, path: Path) -> tuple[str, models.Floats]:
        with said.of(who) as (log, count):
            return str(path), models.likelihoods(path, mark, candidates, batch_size, log, count)

    compared = read("reference", reference) if reference else None
    result = module.canary_test(mark, candidates, read("suspect", suspect), compared, alpha, halves, seed)
    rows = {"difference": f"{result.difference:+.4f} nats a token; {result.above:,} of {halves:,} halves reach as far"}
    _report(ctx, result, rows, as_json, fail_on_positive)


class _Recorder:
    """A log and a progress bar for each model that is read."""

    def __init__(self, folder: Path | None, unit: str) -> None:
        make_record(folder)
        self.folder, self.unit = folder, unit

    @contextmanager
    def of(self, who: str) -> Iterator[tuple[Path | None, Progress]]:
        with progress(f"reading the {who}", self.unit) as update:
            yield None if self.folder is None else self.folder / f"{who}.jsonl", update


def _one(teachers: Sequence[Path]) -> Path:
    from watermark import StillmarkError

    if len(teachers) > 1:
        raise StillmarkError(
            f"{len(teachers)} teachers: the nearest of several is always somebody",
            "name the one teacher beforehand; the others may be controls",
        )
    return teachers[0]


def _there(path: Path | None) -> Path:
    assert path is not None
    return path


def _candidates(mark: Mark, path: Path) -> tuple[list[Output], list[dict[str, object]]]:
    """The candidates as token sequences, and the records they come from."""
    from verify.data.outputs import read_outputs, read_records
    from watermark import InputError
    from watermark.io.records import Record

    outputs = read_outputs(path, mark)
    if len(outputs) % 2:
        raise InputError(path, 0, f"holds {len(outputs)} outputs", "half of them are served: want an even number")
    return list(outputs), [record.fields for record in read_records(path) if isinstance(record, Record)]


def _write(path: Path, rows: Iterable[object]) -> None:
    """A new file, for its owner alone: whoever sees what a suspect is to be tested with can prepare for it."""
    from watermark import InputError
    from watermark.io import files

    lines = (json.dumps(row, ensure_ascii=False, default=lambda array: array.tolist()) + "\n" for row in rows)
    with files.writing(path):
        try:
            files.create(path, "".join(lines).encode(), 0o600)
        except FileExistsError:
            raise InputError(path, 0, "exists already", "choose another file, or remove this one") from None


def _report(
    ctx: click.Context, result: FingerprintResult, rows: dict[str, str], as_json: bool, fail_on_positive: bool
) -> None:
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result, rows)
    if fail_on_positive and result.verdict == result.positive:
        ctx.exit(3)


def _print(result: FingerprintResult, rows: dict[str, str]) -> None:
    click.secho(result.verdict, bold=True)
    log10 = result.log10_pvalue
    click.echo(f"  {'p-value':13} {scientific(log10)}   (log10 p {log10:.2f}; alpha {result.alpha:g})")
    for name, value in {**rows, "test": result.test}.items():
        click.echo(f"  {name:13} {value}")
    click.echo(f"\n{result.randomness}\n{result.breaks}\n")
    for warning in result.warnings:
        click.echo(f"Note: {warning}", err=True)
