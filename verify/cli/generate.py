"""stillmark generate: sample from a model, marked or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from verify.cli.common import (
    FILE,
    allow_readable_option,
    command,
    json_option,
    progress,
    sampling_options,
    say,
    show,
)
from verify.progress import on
from verify.results import plural

LOW_TEMPERATURE: Final = 0.5
"""Below it a mark that needs sampling says what it left in the text."""


@command(
    "generate",
    example="generate --model MODEL --mark demo/demo.mark --prompts demo/prompts.jsonl --out outputs.jsonl",
)
@click.option("--model", type=FILE, required=True, help="Folder of a causal LM and its tokenizer.")
@click.option("--mark", "mark_paths", type=FILE, multiple=True, help="A mark file; may be repeated.")
@allow_readable_option
@click.option("--prompts", type=FILE, required=True, help='JSONL: {"id": ..., "prompt": "..."} or "prompt_ids".')
@click.option("--out", type=FILE, required=True, help="JSONL to append to; a killed run goes on from here.")
@sampling_options(max_new_tokens=256, batch_size=32)
@json_option
def generate(
    model: Path,
    mark_paths: tuple[Path, ...],
    allow_readable: bool,
    prompts: Path,
    out: Path,
    as_json: bool,
    **how: Any,
) -> None:
    """Answer prompts with a model, embedding a mark if one is named, or several (yours, and the customer's own).

    Without --mark the outputs carry none. Run the same command again to go on after a kill.
    """
    from verify import text_test
    from verify.data.outputs import Outputs, output_of
    from watermark import Mark
    from watermark import generate as sample
    from watermark.generation import Sampling, commitments_of

    marks = [Mark.load(path, allow_readable=allow_readable) for path in mark_paths]
    sampling = Sampling(**how)
    with progress(on("writing with", model), "records") as update:
        found = sample(model, prompts, mark=marks, sampling=sampling, out=out, progress=update)
    new = [one for one in found if one.new]
    tokens = sum(len(one.output_ids) for one in new)
    about = {"records": len(found), "written": len(new), "tokens": tokens, "mark": commitments_of(marks)}
    kept = f", {len(found) - len(new)} were there" if len(found) > len(new) else ""
    written = f"wrote {plural(len(new), 'record')}, {plural(tokens, 'token')}, to {out}{kept}"
    for path, mark in zip(mark_paths, marks, strict=True):
        if mark.scheme.needs_sampling and sampling.temperature < LOW_TEMPERATURE and found:
            seen = text_test(mark, Outputs(tuple(map(output_of, found)))).log10_pvalue
            left = f"Temperature {sampling.temperature:g} leaves a {mark.scheme.name} little to tilt."
            say(
                f"{left} {path}: log10 p = {seen:.1f} in {plural(len(found), 'record')}. `stillmark quality` measures "
                "what to expect on your prompts.",
                stderr=True,
            )
    show({"out": str(out)} | about, written, as_json=as_json)
