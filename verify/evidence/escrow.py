"""Coins from a third party: who holds the secret answers with the coins of exactly the pairs in a bundle.

So the other side can count the p-values anew, and never sees the secret. Each answer shows some bits of what the mark
does; a ledger limits how many pairs are answered in a day, so that nobody reads the mark out by bundles that are made
up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.evidence.inputs import object_in
from verify.evidence.scored import Hits, Scored, hits_under
from verify.evidence.signing import Envelope, read_envelope, signed
from verify.evidence.statement import Hidden, Statement, opened, read_statement
from verify.results import plural
from watermark import Mark, MarkError, StillmarkError
from watermark.errors import within
from watermark.io import files
from watermark.io.fields import JsonError, is_text, load_object
from watermark.io.records import resuming
from watermark.mark import as_mark

PathLike = str | Path

COINS_TYPE: Final = "application/vnd.stillmark.coins+json"
COINS_FORMAT: Final = "stillmark-coins/v1"
LEDGER: Final = "coins"
MOST: Final = 200_000
"""Pairs that are answered in a day, if nobody says otherwise."""


def answer_coins(
    bundle: PathLike,
    mark: Mark | PathLike,
    key: PathLike,
    out: PathLike,
    *,
    ledger: PathLike,
    opening: PathLike | None = None,
    most: int = MOST,
) -> dict[str, Any]:
    """Answer a bundle with the coins of a mark's pairs, signed by the third party; the secret stays with it.

    Args:
        bundle: the file. Whether its pairs are those of the evidence is for the check to say, not for the third party.
        mark: the mark, or its file.
        key: file of the third party's own private key of Ed25519.
        out: where to write the answer.
        ledger: JSONL of all answers, a hash chain. One ledger belongs to one mark. A bundle that was answered before
            is answered again at no cost.
        opening: the pairs of a confidential bundle.
        most: pairs that are answered in a day (UTC), over all bundles.

    Returns:
        what was written: `out`, `keyid`, `pairs`, and the pairs `left` for today.

    Raises:
        MarkError: the bundle is of another mark.
        StillmarkError: the limit is reached, the bundle shows no pairs, or a file cannot be read or written.
    """
    mark, bundle = as_mark(mark), Path(bundle)
    within("most", most, 1, float("inf"), first=True)
    data = files.read_bytes(bundle)
    said = read_statement(read_envelope(data).payload)
    if opening is not None:
        said, wrong = opened(said, object_in(Path(opening)))
        if wrong:
            raise StillmarkError(f"the opening is not that of the bundle: {wrong[0]}")
    card = said.card_like(mark.commitment)
    if card is None or (differs := mark.matches(card.fields)):
        where = "it has no card of this one" if card is None else f"the cards differ in {', '.join(differs)}"
        raise MarkError(f"{bundle}: the bundle is of another mark: {where}")
    shown = {name: one for name, one in said.pairs.items() if isinstance(one, Scored) and said.card_of(name) == card}
    number = sum(len(one) + (0 if one.look is None else len(one.look.tokens)) for one in shown.values())
    if not number:
        raise StillmarkError(
            f"{bundle}: the bundle shows no pairs of this mark", "name the `opening` of a confidential one"
        )
    digest, today = hashlib.sha256(data).hexdigest(), datetime.now(UTC).date().isoformat()
    with resuming(Path(ledger), f"{LEDGER} {mark.commitment[:12]}", chained=True) as (earlier, append):
        spent = sum(one.fields["pairs"] for one in earlier if one.fields.get("date") == today)
        if all(one.fields["id"] != digest for one in earlier):
            if spent + number > most:
                said_so = f"{plural(number, 'pair')} are asked for, and {max(0, most - spent):,} are left for today"
                raise StillmarkError(f"{bundle}: {said_so}", "wait until tomorrow, or name another `most`")
            append([{"id": digest, "date": today, "pairs": number}])
            spent += number
    coins: dict[str, Any] = {}
    for name, one in shown.items():
        hits = hits_under(one, mark)
        coins[name] = {"hits": hits.pairs.tolist(), "look": None if hits.look is None else hits.look.tolist()}
    whole = {"format": COINS_FORMAT, "bundle": digest, "commitment": mark.commitment, "date": today, "tests": coins}
    envelope = signed(json.dumps(whole, sort_keys=True).encode(), key, COINS_TYPE)
    with files.writing(Path(out)):
        files.replace(Path(out), envelope.to_bytes())
    return {"out": str(out), "keyid": next(iter(envelope.signatures)), "pairs": number, "left": max(0, most - spent)}


@dataclass(frozen=True)
class Coins:
    """An answer of a third party: what it signed, and the hits of each test for its mark, by the test's name."""

    envelope: Envelope
    tests: dict[str, Hits]


def read_coins(data: bytes, bundle: bytes, said: Statement) -> Coins:
    """The answer to a bundle.

    Raises:
        StillmarkError: it is none, is of another bundle or mark, or has not one number for each pair.
    """
    envelope = read_envelope(data, COINS_TYPE)
    try:
        fields = load_object(envelope.payload)
    except JsonError as error:
        raise StillmarkError(str(error)) from None
    digest = hashlib.sha256(bundle).hexdigest()
    marks = [card.commitment for card in said.cards]
    for name, wanted in (("format", [COINS_FORMAT]), ("bundle", [digest]), ("commitment", marks)):
        if not is_text(fields.get(name)) or fields[name] not in wanted:
            those = " or ".join(wanted) or "missing"
            raise StillmarkError(f"'{name}' of the coins was to be {those}, and is {str(fields.get(name))[:80]}")
    tests, found = fields.get("tests"), {}
    for name, scored in said.pairs.items():
        card = said.card_of(name)
        if isinstance(scored, Hidden) or card is None or card.commitment != fields["commitment"]:
            continue
        one = tests.get(name) if isinstance(tests, dict) else None
        if not isinstance(one, dict):
            raise StillmarkError(f"{name}: {len(scored):,} pairs are in the bundle, and no coins are in the answer")
        scheme = card.stand_in.scheme
        hits = _hits(one.get("hits"), len(scored), scheme.coins, name)
        look = None if scored.look is None else _hits(one.get("look"), len(scored.look.tokens), scheme.coins, name)
        found[name] = Hits(scheme, hits, look)
    return Coins(envelope, found)


def _hits(column: Any, number: int, most: int, name: str) -> npt.NDArray[np.int64]:
    if not isinstance(column, list) or len(column) != number or set(map(type, column)) - {int}:
        raise StillmarkError(f"{name}: want the hits of {plural(number, 'pair')}")
    if column and not 0 <= min(column) <= max(column) <= most:
        raise StillmarkError(f"{name}: a pair has 0 to {most} hits")
    return np.array(column, np.int64)


def differing(coins: Mapping[str, Hits], name: str, own: Hits) -> list[str]:
    """Where the third party's hits differ from those of a mark that was revealed as well."""
    theirs = coins[name].pairs
    wrong = np.flatnonzero(theirs != own.pairs)
    if not len(wrong):
        return []
    first = int(wrong[0])
    return [
        f"{name}: pair {first + 1} has {theirs[first]} hits by the third party, and {own.pairs[first]} by the revealed "
        f"mark; so have {len(wrong) - 1:,} more"
    ]
