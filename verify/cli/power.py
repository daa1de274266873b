"""stillmark power: how much a test will take."""

from __future__ import annotations

import math

import click

from verify.cli.common import json_option, print_json


@click.command()
@click.option("--access", type=click.Choice(["text", "top20", "weights"]), required=True, help="What you can get.")
@click.option("--reference/--no-reference", default=True, show_default=True, help="Whether you have the parent, say.")
@click.option("--delta", type=click.FloatRange(0, min_open=True), help="The mark's delta.")
@click.option("--width", type=click.IntRange(0, 7), default=1, show_default=True)
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
              help="Share of the suspect's training text that you believe was marked.")  # fmt: skip
@click.option("--effect", type=float, help="Instead of --delta, for text: green rate above gamma.")
@click.option("--gamma", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.25, show_default=True)
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=1e-3, show_default=True)
@click.option("--power", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.9, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(0), default=30, show_default=True, help="Of one request.")
@click.option("--answer-tokens", type=click.IntRange(1), default=128, show_default=True, help="Of one answer.")
@click.option("--price-in", type=click.FloatRange(0), help="Of a million prompt tokens.")
@click.option("--price-out", type=click.FloatRange(0), help="Of a million answer tokens.")
@json_option
def power(
    access: str,
    reference: bool,
    delta: float | None,
    width: int,
    share: float,
    effect: float | None,
    gamma: float,
    alpha: float,
    power: float,
    prompt_tokens: int,
    answer_tokens: int,
    price_in: float | None,
    price_out: float | None,
    as_json: bool,
) -> None:
    """How many tokens a test will take, and what they cost.

    With --delta the answer comes from students that were trained and measured here: the order of magnitude for a
    student like these. Before you rely on it, train a student of your own (`stillmark student`). With --effect it is
    exact, for the binomial test of text.
    """
    from verify.planning import power as planning

    if (delta is None) == (effect is None):
        raise click.UsageError("name either --delta or --effect")
    if effect is not None:
        if access != "text":
            raise click.UsageError("--effect is a green rate of text: it goes with --access text")
        pairs = planning.pairs_for_effect(effect, gamma, alpha, power)
        basis = "exact binomial test, distinct pairs: tokens that repeat a pair come on top"
        need = planning.TokenBudget(pairs, False, basis)
    else:
        assert delta is not None
        test = planning.TESTS[access, reference]
        need = planning.tokens_needed(test, delta, width, gamma=gamma, alpha=alpha, power=power, share=share)
    requests = 0 if access == "weights" else math.ceil(need.tokens / answer_tokens)
    billed = 0 if access == "weights" else need.tokens + requests * prompt_tokens
    money = None
    if price_in is not None or price_out is not None:
        money = (requests * prompt_tokens * (price_in or 0) + need.tokens * (price_out or 0)) / 1e6
        money = 0.0 if access == "weights" else money
    if as_json:
        print_json({
            "access": access, "reference": reference, "delta": delta, "width": width, "share": share, "effect": effect,
            "gamma": gamma, "alpha": alpha, "power": power, "tokens": need.tokens, "extrapolated": need.extrapolated,
            "requests": requests, "billed_tokens": billed, "money": money, "basis": need.basis,
        })  # fmt: skip
        return
    click.secho(f"about {need.tokens:,} {'positions' if access == 'weights' else 'tokens'}", bold=True)
    if access != "weights":
        click.echo(f"  {'requests':10} {requests:,}, {billed:,} tokens billed with their prompts")
    if money is not None:
        click.echo(f"  {'cost':10} {money:,.2f}")
    click.echo(f"  {'basis':10} {need.basis}{'; beyond what was measured' if need.extrapolated else ''}")
