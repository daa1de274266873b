"""stillmark probes: texts, or single positions, at which a suspect is read."""

from __future__ import annotations

import json
from pathlib import Path

import click

from verify.cli.common import (
    FILE,
    json_option,
    load_mark,
    mark_option,
    print_json,
    progress,
    tokenizer_option,
)
from watermark.tokenizers import quiet_transformers


@click.command()
@mark_option()
@click.argument("texts", type=FILE, nargs=-1)
@click.option("--model", type=FILE, help="Folder of a model that writes the texts: the teacher, without its mark, say.")
@click.option(
    "--number", type=click.IntRange(1, 720), default=100, show_default=True, help="Texts that the model writes."
)
@click.option("--out", type=FILE, required=True, help="JSONL, for `verify model --probes`.")
@click.option("--length", type=click.IntRange(2), default=128, show_default=True, help="Tokens of a probe.")
@click.option(
    "--context-counts", "counts_path", type=FILE, help="Take the positions whose contexts were emitted most often."
)
@click.option(
    "--positions", type=click.IntRange(1), default=300, show_default=True, help="How many, with --context-counts."
)
@tokenizer_option
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def probes(
    mark_path: Path,
    allow_readable: bool,
    texts: tuple[Path, ...],
    model: Path | None,
    number: int,
    out: Path,
    length: int,
    counts_path: Path | None,
    positions: int,
    tokenizer: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Write probes: texts of your own, or what a --model writes without the mark.

    With --context-counts a probe is a single position, after a context that the teacher emitted often; the best first.
    That is for suspects where every position costs: ask for one token after each prompt.
    """
    from verify.data import context_counts
    from verify.data.outputs import read_outputs
    from verify.planning import probes
    from verify.planning.questions import questions
    from watermark import generate
    from watermark.io import files

    if bool(texts) == bool(model):
        raise click.UsageError("name either texts or a --model that writes some")
    mark = load_mark(mark_path, allow_readable)
    counts = None if counts_path is None else context_counts.load(counts_path, mark.width)
    if model is not None:
        quiet_transformers()
        written = out.with_name(out.stem + ".texts.jsonl")
        with progress("writing", "texts") as update:
            sampling = generate.Sampling(max_new_tokens=length, seed=seed)
            generate.generate(model, questions(number), written, sampling=sampling, progress=update)
        texts = (written,)
    stream = read_outputs(texts, mark, tokenizer=tokenizer)
    chosen = probes.cut(stream, length) if counts is None else probes.targets(stream, counts, positions, mark.exempt)
    rows = [
        {"id": probe.id, "prompt_ids": [] if probe.prompt_ids is None else probe.prompt_ids.tolist()}
        | {"output_ids": probe.output_ids.tolist()}
        | ({} if probe.marked is None else {"marked": probe.marked})
        for probe in chosen
    ]
    with files.writing(out):
        files.replace(out, "".join(json.dumps(row) + "\n" for row in rows).encode())
    if counts is not None and counts.marked is not False:
        click.echo(
            "Note: the contexts were counted in text that may be marked: where the probes lie then depends on the key.",
            err=True,
        )
    tokens = sum(len(probe.output_ids) for probe in chosen)
    if as_json:
        print_json({"out": str(out), "probes": len(chosen), "positions": tokens})
    else:
        click.echo(f"wrote {len(chosen):,} probes, {tokens:,} positions, to {out}")
