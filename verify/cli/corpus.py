"""stillmark test corpus: more text than fits in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    columns_option,
    command,
    make,
    mark_file_option,
    plan_options,
    progress,
    result_options,
    skip_bad_option,
    tokenizer_option,
    unmarked_prompts_option,
)
from verify.results import Result


@command("corpus", example="test corpus --mark demo/demo.mark demo/marked_teacher.jsonl --out pile-result")
@mark_file_option()
@click.argument("inputs", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="Folder for the results; a killed run goes on from here.")
@click.option("--source-column", default="source", show_default=True, help="The field that names a record's source.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="More than one: by Ray.")
@unmarked_prompts_option
@tokenizer_option
@columns_option
@plan_options
@alpha_option
@skip_bad_option
@result_options()
def corpus(mark_path: Path, inputs: tuple[Path, ...], out: Path, **options: Any) -> Result | None:
    """Test a corpus, its sources and its documents for the mark.

    INPUTS are files as in `stillmark test text`; a record may name its `source`. The corpus' answer is that of
    `stillmark test text` on all files together, a source's that on its records alone, and a document's (in
    documents.parquet, in the --out folder) that on itself. Sources are judged after Holm's adjustment for their number,
    documents by q-values after Benjamini and Hochberg; each at level alpha.

    Memory does not grow with the text; the --out folder takes some 4 width + 12 bytes a token until the end. The same
    command goes on after a kill. More workers (pip install 'stillmark[ray]') find the same, to the bit.
    """
    from verify import corpus_test

    return make(corpus_test, mark_path, inputs, out, progress=progress, **options)
