"""What a bundle's result says, against its own numbers, the plan and the cards: whoever signs it can write anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from verify.evidence.checked import Checked, checked
from verify.evidence.claims import list_in, object_at, tests_of, text_in
from verify.evidence.document import document_of
from verify.evidence.statement import Statement
from verify.evidence.values import same
from verify.fingerprint.planted import NUMBER
from verify.lineage import access as kinds
from verify.lineage.plan import PLANTED, LineagePlan, is_mark
from verify.lineage.verdict import verdicts_of
from verify.radioactivity.tails import BINOMIAL
from verify.radioactivity.text import EXCESS
from verify.results import plural
from verify.stats import binomial
from verify.words import CARRIES, INSUFFICIENT, NO_VERDICT
from watermark import StillmarkError
from watermark.io.fields import is_int, is_number

REPEATED: Final = ("conclusive", "power_statement", "assumptions", "evasions", "log10_pvalue")
"""What stands beside a test as well as in its result."""


def check_result(said: Statement) -> Checked:
    """The result contradicts neither itself nor plan and cards. Sentences and estimates are not looked at."""
    wrong = [
        *_whole(said),
        *(f"{text_in(one, 'test')}: {found}" for one in tests_of(said) for found in _test(said, one)),
    ]
    return checked(
        "result",
        "its own numbers, the plan and the cards; sentences and estimates, such as the tilt, were not checked",
        wrong,
    )


def _whole(said: Statement) -> Iterator[str]:
    try:
        document_of(said.result)
    except StillmarkError as error:
        yield str(error).partition("\n")[0]
    standing = {text_in(one, "test") for one in tests_of(said) if one.get("stands") is True}
    fitting = verdicts_of(standing, keyed=said.plan.settings.get("ordered") is True)
    if said.result.get("verdict") not in fitting:
        yield (
            f"the verdict is '{str(said.result.get('verdict'))[:40]}', and by the tests that stand "
            f"({', '.join(sorted(standing)) or 'none'}) it is {' or '.join(sorted(fitting))}"
        )
    if said.result.get("access") != said.plan.settings.get("access"):
        yield f"'access' was planned to be {said.plan.settings.get('access')}, and is {said.result.get('access')}"
    try:
        started, created = datetime.fromisoformat(text_in(said.result, "started")), datetime.fromisoformat(said.created)
        if started > created:
            yield f"the test began at {started.isoformat()}, after the bundle was made at {created.isoformat()}"
    except (ValueError, TypeError):  # TypeError: one of them without a time zone
        yield "'started' of the result and 'created' of the bundle are to be times in UTC"


def _test(said: Statement, test: Mapping[str, Any]) -> Iterator[str]:
    """One test."""
    name, result, plan = text_in(test, "test"), object_at(test, "result"), said.plan
    log10, alpha = result.get("log10_pvalue"), result.get("alpha")
    beside = {one: result.get(one) for one in REPEATED} | {"evidence": object_at(result, "summary").get("evidence")}
    for one, value in beside.items():
        if not same(test.get(one), value):
            yield f"'{one}' is {str(test.get(one))[:60]} in the table, {str(value)[:60]} below"
    levels = (
        {plan.alpha, plan.alpha / len(plan.lines)} if plan.settings.get("access") == kinds.ENDPOINT else {plan.alpha}
    )
    if alpha not in levels:
        yield f"the level of the test is to be {plan.alpha:g}, and is {str(alpha)[:40]}"
    elif is_mark(name) and is_number(log10):
        fitting = (CARRIES,) if float(log10 or 0) <= math.log10(alpha) else (INSUFFICIENT, NO_VERDICT)
        if result.get("verdict") not in fitting:
            yield f"its own verdict is '{str(result.get('verdict'))[:40]}', and log10 p is {log10} at alpha {alpha:g}"
    promised = plan if said.promised is None else said.promised
    if result.get("plan_digest") != promised.digest:
        there = str(result.get("plan_digest"))[:16]
        yield f"it was to be under the plan {promised.digest[:16]}..., and is under {there}..."
    if result.get("planned_before") is True and said.promised is None:
        yield "it says that it was planned before, and no plan was promised"
    if result.get("deviations") != said.result.get("deviations"):
        yield f"it owns up to {plural(len(list_in(result, 'deviations')), 'deviation')}, and the whole to others"
    if name == PLANTED and result.get("n") != (wanted := plan.settings.get("planted") or NUMBER):
        yield f"{wanted} questions were planned, and {result.get('n')} were asked"
    if "gamma" in result:
        yield from _of_mark(said, name, result)
        yield from _as_planned(plan, result)


def _of_mark(said: Statement, name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """The mark is the card's, and what is counted of its coins follows from the counts."""
    card = said.card_of(name)
    if card is None:
        return
    scheme = card.stand_in.scheme
    mine = {"gamma": scheme.rate, "coins": scheme.coins}
    known = {
        "label": card.fields.get("label"),
        "width": card.stand_in.width,
        "scheme": scheme.name,
        **scheme.parameters,
    }
    for where, claimed in ((mine, result), (known, object_at(result, "mark"))):
        for one, value in where.items():
            if not same(claimed.get(one), value):
                yield f"'{one}' is {str(claimed.get(one))[:60]}, and of the card {str(value)[:60]}"
    green, n = result.get("green"), result.get("n")
    if "green" not in result:
        return
    if not is_int(green) or not is_int(n) or not 0 <= int(green or 0) <= (coins := int(n or 0) * scheme.coins):
        yield f"{str(green)[:40]} green coins of {str(n)[:40]} pairs are no counts"
        return
    hits = int(green or 0)
    if result.get("method") != EXCESS and not same(result.get("statistic"), hits):
        yield f"'green' is {hits}, and the statistic {result.get('statistic')}"
    rate, interval = (hits / coins if coins else None), list(binomial.binomial_interval(hits, coins))
    for one, wanted in (("green_rate", rate), ("interval", interval)):
        if not same(result.get(one), wanted):
            yield f"'{one}' is {str(result.get(one))[:60]}, and by the counts {str(wanted)[:60]}"


def _as_planned(plan: LineagePlan, result: Mapping[str, Any]) -> Iterator[str]:
    """What was tested is what the plan says: by which method, beside which reference, and what could not be marked."""
    compared = "reference" in plan.inputs
    if "method" in result and result["method"] != (wanted := EXCESS if compared else BINOMIAL):
        yield f"the method '{wanted}' was planned, and '{str(result['method'])[:40]}' was used"
    arguments = object_at(object_at(result, "call"), "arguments")
    beside = result.get("reference") if result.get("reference") is not None else arguments.get("reference")
    if (beside is not None) is not compared:
        yield f"{'a' if compared else 'no'} reference was planned, and the test is beside {str(beside)[:60]}"
    planned, read = plan.settings.get("columns"), arguments.get("columns")
    spelled = None if planned is None else sorted(f"{field}={column}" for field, column in dict(planned).items())
    if spelled != (sorted(read.split(",")) if isinstance(read, str) else read):
        yield f"{_columns(spelled)} were planned, and {_columns(read)} were read"
    name = "unmarked_prompts" if "unmarked_prompts" in result else "unmarked_probes"
    unmarked, claimed = planned_unmarked(plan, result), result.get(name)
    if unmarked is not None and claimed is not unmarked:
        yield f"'{name}' was planned to be {str(unmarked).lower()}, and is {str(claimed).lower()[:40]}"


def _columns(named: Any) -> str:
    return "no columns" if named is None else f"the columns {str(named)[:80]}"


def planned_unmarked(plan: LineagePlan, result: Mapping[str, Any]) -> bool | None:
    """Whether the plan says that what was shown cannot carry the mark; None: what was shown is to say so itself."""
    prompts, probes = plan.settings.get("unmarked_prompts"), plan.settings.get("unmarked_probes")
    access, text = plan.settings.get("access"), "method" in result or result.get("access") == "text"
    if access == kinds.TEXT or (access == kinds.LOGPROBS and text):
        return prompts is True
    if access == kinds.LOGPROBS:
        found = probes or prompts
        return found if "unmarked_probes" in result else found is True
    if access == kinds.ENDPOINT and "unmarked_prompts" in result:
        return "prompts" not in plan.inputs if prompts is None else prompts is True
    return probes
