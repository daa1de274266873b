"""stillmark generate: sample from a model, marked or not."""

from __future__ import annotations

from pathlib import Path

import click

from verify.cli.common import FILE, json_option, load_mark, mark_option, print_json, progress, quiet_transformers


@click.command()
@click.option("--model", type=FILE, required=True, help="Folder of a causal LM and its tokenizer.")
@mark_option(required=False)
@click.option("--prompts", type=FILE, required=True, help='JSONL: {"id": ..., "prompt": "..."} or "prompt_ids".')
@click.option("--out", type=FILE, required=True, help="JSONL to append to; a killed run goes on from here.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True, help="0: greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True, help="0: no limit.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--chat/--no-chat", default=True, show_default=True, help="Use the tokenizer's chat template, if any.")
@json_option
def generate(
    model: Path,
    mark_path: Path | None,
    allow_readable: bool,
    prompts: Path,
    out: Path,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    batch_size: int,
    seed: int,
    chat: bool,
    as_json: bool,
) -> None:
    """Answer prompts with a model, embedding a mark if one is named.

    Without --mark the outputs carry none. Run the same command again to go on after a kill.
    """
    from watermark import generate as generation

    loaded = load_mark(mark_path, allow_readable) if mark_path else None
    asked = generation.read_prompts(prompts)
    sampling = generation.Sampling(max_new_tokens, temperature, top_p, top_k, seed, batch_size, chat)
    quiet_transformers()
    records = tokens = 0
    with progress("generating", "records") as update:

        def count(new_records: int, new_tokens: int) -> None:
            nonlocal records, tokens
            records, tokens = records + new_records, tokens + new_tokens
            update(records, len(asked))

        written = generation.generate(model, asked, out, mark=loaded, sampling=sampling, progress=count)
    commitment = loaded.commitment if loaded else None
    if as_json:
        print_json({"out": str(out), "records": records, "written": written, "tokens": tokens, "mark": commitment})
    else:
        kept = f", {records - written} were there" if records > written else ""
        click.echo(f"wrote {written} records, {tokens} tokens, to {out}{kept}")
