"""The numbers of a bundle, from what it holds: its pairs, the p-values that these give, and their adjustment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from verify.evidence.again import NotHereError, scored_again
from verify.evidence.checked import DIFFERS, HOLDS, OPEN, Checked, checked
from verify.evidence.claims import object_at, tests_of, text_in
from verify.evidence.escrow import differing, read_coins
from verify.evidence.inputs import Input
from verify.evidence.promises import check_signature
from verify.evidence.proofs import false_proofs
from verify.evidence.scored import Hits, Scored, differences, faults, hits_under, recomputed
from verify.evidence.statement import Card, Hidden, Statement
from verify.evidence.values import same
from verify.fingerprint.planted import ANSWERS
from verify.lineage.plan import PLANTED
from verify.results import plural
from verify.stats import binomial
from verify.stats.multiple import holm
from watermark import Mark, StillmarkError
from watermark.io.fields import is_int, is_number

PathLike = str | Path

MOST: Final = 1_000_000
"""Questions of a test of planted answers, at most."""


def check_pairs(
    said: Statement,
    read: Mapping[Path, Input],
    wrong: Sequence[str],
    secrets: Mapping[str, Mark],
    tokenizers: Sequence[PathLike],
) -> Checked:
    """The pairs keep the rules, are as many as the result says, and are those that the files give.

    secrets: the revealed marks, by the name of the test.
    """
    found, against, lacking = list(wrong), list[str](), False
    results = {text_in(one, "test"): object_at(one, "result") for one in tests_of(said)}
    for name, scored in said.pairs.items():
        result = results.get(name)
        if result is None:
            found.append(f"{name}: pairs are there, and no such test was made")
            continue
        if isinstance(scored, Hidden):
            lacking = True
            against.append(f"{name}: {scored.n:,} pairs are not shown, and their root is {scored.root[:16]}...")
            continue
        card = said.card_of(name)
        assert card is not None  # it was read by it
        found += [f"{name}: {one}" for one in faults(scored, card.stand_in.exempt, card.stand_in.vocabulary_size)]
        if not _of_excess(result) and result.get("n") != len(scored):
            found.append(f"{name}: {result.get('n')} pairs were counted, and {len(scored)} are there")
        if (rule := _rule(result)) != scored.rule:
            found.append(f"{name}: the result is by the rule '{rule}', and the pairs are for '{scored.rule}'")
        if not read:
            lacking = True
            against.append(f"{name}: {len(scored):,} pairs; no files were named to find them in again")
            continue
        try:
            again = scored_again(
                _knows_pairs(card, secrets.get(name)), result, {one.sha256: path for path, one in read.items()}, said,
                name, scored, tokenizers,
            )  # fmt: skip
        except NotHereError as error:
            lacking = True
            against.append(f"{name}: {len(scored):,} pairs; they were not found again, since {error}")
        except (StillmarkError, ValueError) as error:
            found.append(f"{name}: the pairs cannot be found again in the files: {error}")
        else:
            found += [f"{name}: {one}" for one in differences(scored, again)]
            against.append(f"{name}: {len(scored):,} pairs, found again in the files")
    for name, result in results.items():
        if "gamma" in result and name not in said.pairs:
            found.append(f"{name}: the test has {result.get('n')} pairs, and none are there")
    whole = "; ".join(against) or "no test has pairs"
    if found:
        return checked("pairs", whole, found)
    return Checked("pairs", OPEN if lacking else HOLDS, whole)


def _knows_pairs(card: Card, secret: Mark | None) -> Mark:
    """A mark that tells which pairs count once. Of another engine's mark only the mark itself does.

    Raises NotHereError.
    """
    if card.stand_in.scheme.embeds:
        return card.stand_in
    if secret is None or secret.matches(card.fields):
        raise NotHereError("which pairs of another engine's mark count once depends on its key: it takes the mark")
    return secret


def _of_excess(result: Mapping[str, Any]) -> bool:
    """Whether a result is of a test whose weights are of other pairs than those that it counts."""
    return result.get("method") == "excess"


def _rule(result: Mapping[str, Any]) -> str:
    """By which rule the pairs of a result give its p-value."""
    if "log10_e" in result:
        return "sequential"
    if "method" in result:
        return "chernoff" if _of_excess(result) else str(result["method"])
    return "chernoff" if result.get("unmarked_probes") is True else "mixture"


def check_proofs(said: Statement, proven: Mapping[str, Any]) -> Checked:
    """Single pairs that are shown of a confidential bundle."""
    try:
        wrong = list(false_proofs(said, proven))
    except StillmarkError as error:
        return checked("proofs", "the root of the pairs", [str(error)])
    shown = "; ".join(str(one["text"])[:40] for one in proven["pairs"][:5])
    number = plural(len(proven["pairs"]), "pair")
    return checked("proofs", f"the root of the pairs: {number} of the test '{proven['test']}': {shown}", wrong)


def revealed(said: Statement, marks: Sequence[Mark]) -> dict[str, Mark]:
    """The revealed marks by the names of the tests whose pairs are theirs."""
    cards = {card.commitment: mark for mark in marks if (card := said.card_like(mark.commitment)) is not None}
    whose = {name: said.card_of(name) for name in said.pairs}
    return {name: cards[card.commitment] for name, card in whose.items() if card and card.commitment in cards}


def check_coins(
    said: Statement, data: bytes, answered: bytes, keys: Sequence[Any], secrets: Mapping[str, Mark]
) -> tuple[Checked, dict[str, Hits]]:
    """The answer of a third party: whose it is, and the hits that it gives. keys: those of which one signed it."""
    try:
        coins = read_coins(answered, data, said)
    except StillmarkError as error:
        return checked("coins", "the bundle", [str(error)]), {}
    wrong: list[str] = []
    for name in coins.tests:
        scored, secret, card = said.pairs[name], secrets.get(name), said.card_of(name)
        if isinstance(scored, Scored) and secret is not None and card and secret.width == card.stand_in.width:
            wrong += differing(coins.tests, name, hits_under(scored, secret))
    key = next((one for one in keys if one.keyid in coins.envelope.signatures), keys[0] if keys else None)
    signature = check_signature(coins.envelope, key, "of the third party")
    status = DIFFERS if wrong else signature.status
    return Checked("coins", status, signature.against, (*signature.differences, *wrong)), coins.tests


def check_pvalues(
    said: Statement, secrets: Mapping[str, Mark], hits: Mapping[str, Hits], numbers: dict[str, float]
) -> Checked:
    """The p-values, from the pairs and the secrets, or a third party's coins; of planted answers from the counts."""
    wrong: list[str] = []
    against: list[str] = []
    lacking = False
    for one in tests_of(said):
        name, result = text_in(one, "test"), object_at(one, "result")
        scored, secret, card = said.pairs.get(name), secrets.get(name), said.card_of(name)
        if same(result.get("log10_pvalue"), one.get("log10_pvalue")) is False:
            wrong.append(
                f"{name}: log10 p is {one.get('log10_pvalue')} in the table, {result.get('log10_pvalue')} below"
            )
        if scored is None:
            wrong += [f"{name}: {said}" for said in _planted(result)] if name == PLANTED else []
            lacking = True
            against.append(
                f"{name}: "
                + ("from its counts, which were not counted anew" if name == PLANTED else "not counted anew")
            )
        elif isinstance(scored, Scored) and secret is None and name in hits:
            wrong += [f"{name}: {said}" for said in _counted(name, scored, hits[name], result, numbers)]
            against.append(f"{name}: counted anew with the coins of the third party")
        elif isinstance(scored, Hidden) or secret is None:
            lacking = True
            against.append(
                f"{name}: not counted anew, since {'the pairs are' if secret else 'the secret is'} not shown"
            )
        elif card is not None and secret.width != card.stand_in.width:
            wrong.append(
                f"{name}: the pairs have {card.stand_in.width} tokens of context, the revealed mark {secret.width}"
            )
        else:
            wrong += [f"{name}: {said}" for said in _counted(name, scored, hits_under(scored, secret), result, numbers)]
            against.append(f"{name}: counted anew")
    if wrong:
        return checked("p-values", "; ".join(against), wrong)
    return Checked("p-values", OPEN if lacking else HOLDS, "; ".join(against) or "no test was made")


def _counted(
    name: str, scored: Scored, hits: Hits, result: Mapping[str, Any], numbers: dict[str, float]
) -> Iterator[str]:
    try:
        found = recomputed(scored, hits, excess=_of_excess(result))
    except ValueError as error:
        yield f"the pairs give no p-value: {error}"
        return
    numbers[name] = found.log10_pvalue
    if not same(result.get("log10_pvalue"), found.log10_pvalue):
        yield f"log10 p {result.get('log10_pvalue')} was claimed, and the pairs give {found.log10_pvalue:.10g}"
    if found.statistic is not None and not same(result.get("statistic"), found.statistic):
        yield f"the statistic {result.get('statistic')} was claimed, and the pairs give {found.statistic:.10g}"


def _planted(result: Mapping[str, Any]) -> Iterator[str]:
    hits, n = result.get("hits"), result.get("n")
    if not is_int(hits) or not is_int(n) or not 0 <= int(hits or 0) <= int(n or 0) <= MOST:
        yield f"{hits} right answers of {n} are no counts"
        return
    log10 = binomial.binomial_log10_sf(int(hits or 0), int(n or 0), 1 / len(ANSWERS)) if n else 0.0
    if not same(result.get("log10_pvalue"), log10):
        yield f"log10 p {result.get('log10_pvalue')} was claimed, and {hits} of {n} give {log10:.10g}"


def check_adjustment(said: Statement) -> Checked:
    """The p-values over all tests, and what follows from them."""
    return checked("adjustment", "the p-values of the tests", list(_adjustment(said)))


def _adjustment(said: Statement) -> Iterator[str]:
    """Holm's adjustment, and which tests stand by it."""
    tests, alpha = tests_of(said), said.plan.alpha
    raw = [one.get("log10_pvalue") for one in tests]
    if not all(is_number(one) and -math.inf < float(one or 0) <= 0 for one in raw):
        yield f"the log10 p-values {str(raw)[:200]} are not all finite numbers that are at most 0"
        return
    adjusted = holm(np.array(raw, np.float64)).tolist() if raw else []
    for one, value in zip(tests, adjusted, strict=True):
        name, claimed = text_in(one, "test"), one.get("log10_pvalue_adjusted")
        if not same(claimed, value):
            yield f"{name}: log10 p {claimed} after Holm was claimed, and it is {value:.10g}"
        stands = bool(value <= math.log10(alpha))
        if one.get("stands") is not stands:
            yield f"{name}: 'stands' is to be {stands} at alpha {alpha:g}, and is {one.get('stands')}"
