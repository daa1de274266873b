"""How the results of tests are shown, to a program or to a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from verify.cli.common import print_json
from verify.results import INSUFFICIENT, scientific

if TYPE_CHECKING:
    from verify.radioactivity.logprobs import WeightedResult
    from verify.radioactivity.result import Decoys, MarkResult
    from verify.radioactivity.sequential import SequentialResult
    from verify.radioactivity.text import TextResult


def report(ctx: click.Context, result: MarkResult, more: dict[str, Any], as_json: bool, fail_on: str | None) -> None:
    """Print a result, for a program or for a person, and set the exit status."""
    from verify.radioactivity.logprobs import WeightedResult
    from verify.radioactivity.sequential import SequentialResult
    from verify.radioactivity.text import TextResult

    if as_json:
        print_json(result.to_dict() | more)
    else:
        click.secho(result.verdict, bold=True)
        log10 = result.log10_pvalue
        click.echo(f"  {'p-value':13} {scientific(log10)}   (log10 p {log10:.2f}; alpha {result.alpha:g})")
        if isinstance(result, TextResult):
            _print_text(result)
        elif isinstance(result, WeightedResult):
            _print_weighted(result)
        elif isinstance(result, SequentialResult):
            _print_sequential(result, more)
        click.echo(f"\n{result.randomness}")
        for warning in result.warnings:
            click.echo(f"Note: {warning}", err=True)
    if fail_on == result.verdict:
        ctx.exit(3)


def mention_bad(number: int, first: Exception | str | None) -> None:
    """Say on stderr that malformed records were left out, if any were."""
    if number:
        click.echo(f"Note: {number} bad records were left out; the first: {first}", err=True)


def print_rows(rows: dict[str, str], result: MarkResult, discarded: dict[str, int]) -> None:
    """Print a table of names and values, with what was left out and the mark below."""
    left_out = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in discarded.items() if count)
    if discarded:
        rows["left out"] = left_out or "nothing"
    rows["mark"] = f"{result.mark.label or '(no label)'}, commitment {result.mark.commitment[:16]}..."
    for name, value in rows.items():
        click.echo(f"  {name:13} {value}")


def _print_text(result: TextResult) -> None:
    found = result.pairs
    low, high = result.confidence_interval()
    rate = "-" if result.green_rate is None else f"{result.green_rate:.4f}"
    rows = {
        "green rate": f"{rate}   (chance {result.mark.gamma:.4f}; 95 % interval {low:.4f} to {high:.4f})",
        "pairs scored": f"{result.n:,} distinct, of {found.positions:,} positions in {found.records:,} records",
        "test": result.test,
        "other tests": _log10({name: p for name, p in result.tests.items() if name != result.method}),
    }
    if result.decoys:
        rows["decoy keys"] = _rank(result.decoys)
    if result.verdict == INSUFFICIENT:
        least = result.detectable_rate
        could = "nothing: too few pairs for this alpha" if least is None else f"a green rate of {least:.4f} or more"
        rows["could be seen"] = f"{could}, with 90 % power"
    print_rows(rows, result, result.discarded)


def _print_weighted(result: WeightedResult) -> None:
    low, high = result.confidence_interval()
    rows = {
        "estimate": f"{scientific(result.log10_pvalue_estimate)}   (saddlepoint; the p-value is a guaranteed bound)",
        "effect": f"{result.effect:+.4f}   (green less red; 95 % interval {low:+.4f} to {high:+.4f}; z {result.z:.1f})",
        "pairs scored": f"{result.n:,} distinct, at {result.positions:,} positions",
        "weights": result.weights,
        "other tests": _log10(result.comparisons),
    }
    if result.decoys:
        rows["decoy keys"] = _rank(result.decoys)
    if result.verdict == INSUFFICIENT and result.n:
        rows["could be seen"] = f"an effect of {result.detectable_effect:.4f} or more, with 90 % power"
    print_rows(rows, result, result.discarded)


def _print_sequential(result: SequentialResult, more: dict[str, Any]) -> None:
    why = {
        "evidence": "enough evidence",
        "futility": "the smallest effect of interest would have shown by now",
        "budget": "at the budget",
        "prompts": "after the last prompt",
    }
    stopped = str(more.get("stopped", result.stopped))
    billed = f", {more['billed_tokens']:,} tokens billed" if "billed_tokens" in more else ""
    rows = {
        "looked at": f"{result.records:,} answers, {result.tokens:,} tokens{billed}",
        "stopped": why.get(stopped, "not for evidence, nor for want of hope"),
        "pairs scored": f"{result.n:,} distinct, of the {result.access}",
        "test": result.test,
    }
    if more.get("failed_requests") or more.get("unknown_tokens"):
        rows["not used"] = f"{more['failed_requests']} failed requests, {more['unknown_tokens']} tokens of unknown name"
    print_rows(rows, result, {})


def _log10(tests: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in tests.items()) + "   (log10 p)"


def _rank(keys: Decoys) -> str:
    return f"{keys.above} of {len(keys.z)} reach as far; the farthest z {max(keys.z):.1f}"
