"""stillmark power: how much a test will take."""

from __future__ import annotations

from typing import Any

import click

from verify.cli.common import Number, command, json_option, show
from watermark.schemes.tournament import MOST_LAYERS


@command("power", example="power --access text --delta 1\npower --access top20 --delta 2 --price-in 1 --price-out 4")
@click.option("--access", type=click.Choice(["text", "top20", "weights"]), required=True, help="What you can get.")
@click.option(
    "--reference/--no-reference",
    default=True,
    show_default=True,
    help="Whether you have a model to compare with, such as the one that the suspect was trained from.",
)
@click.option("--delta", type=Number(0, min_open=True), help="The green list's delta.")
@click.option("--layers", type=click.IntRange(1, MOST_LAYERS), help="Instead of --delta, of a tournament.")
@click.option("--width", type=click.IntRange(0, 7), default=1, show_default=True, help="The mark's width.")
@click.option("--share", type=Number(0, 1, min_open=True), default=1.0, show_default=True,
              help="Share of the suspect's training text that you believe was marked.")  # fmt: skip
@click.option("--effect", type=Number(), help="Instead of --delta, for text: green rate above gamma.")
@click.option("--gamma", type=Number(0, 1, min_open=True, max_open=True), default=0.25, show_default=True,
              help="The green list's gamma.")  # fmt: skip
@click.option("--alpha", type=Number(0, 1, min_open=True, max_open=True), default=1e-3, show_default=True,
              help="Level of the test.")  # fmt: skip
@click.option("--power", type=Number(0, 1, min_open=True, max_open=True), default=0.9, show_default=True,
              help="Probability with which the test should find the mark.")  # fmt: skip
@click.option("--prompt-tokens", type=click.IntRange(0), default=30, show_default=True, help="Tokens of one prompt.")
@click.option("--answer-tokens", type=click.IntRange(1), default=128, show_default=True, help="Tokens of one answer.")
@click.option("--price-in", type=Number(0), help="US dollars for a million prompt tokens.")
@click.option("--price-out", type=Number(0), help="US dollars for a million answer tokens.")
@json_option
def power(as_json: bool, **options: Any) -> None:
    """How many tokens a test will take, and what they cost.

    With --delta or --layers the answer comes from students that were trained and measured here: the order of magnitude
    for a student like these. Before you rely on it, train a student of your own (`stillmark student`). With --effect it
    is exact, for the binomial test of text.
    """
    from verify.planning.power import power

    found = power(**options)
    show(found.to_dict(), found.to_parts(), as_json=as_json)
