"""What a bundle says, read strictly: it comes from strangers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from verify.evidence.bundle import OF_SEVERAL, OPENING_FORMAT, PREDICATE, STATEMENT, own_salt
from verify.evidence.inputs import Chain, Input, inputs_of_fields
from verify.evidence.merkle import root_of
from verify.evidence.scored import RULES, Scored, scored_of_fields
from verify.lineage.plan import LineagePlan, plan_of_fields
from watermark import Mark, MarkError, StillmarkError
from watermark.io.fields import JsonError, is_int, is_text, load_object, wrong_field
from watermark.keyfile import CARD_FORMAT, PARAMETERS, card_types
from watermark.schemes import from_fields

KEYS: Final = frozenset({"chain", "created", "inputs", "pairs", "plan", "promised", "result", "timestamp", "version"})
CARDS: Final = {PREDICATE: "card", OF_SEVERAL: "cards"}
"""The key of the card or cards, by the type of the predicate."""
MAY_BE_MISSING: Final = frozenset({"calibration"})


@dataclass(frozen=True)
class Hidden:
    """The pairs of a test that are not shown: how many, by which rule, and the root over them."""

    rule: str
    n: int
    root: str


@dataclass(frozen=True)
class Card:
    """The card of a mark.

    Attributes:
        fields: as they stand in JSON.
        stand_in: a mark with the card's parameters and no secret of anybody's.
    """

    fields: dict[str, Any]
    stand_in: Mark

    @property
    def commitment(self) -> str:
        """To the mark's secret and all of its parameters."""
        return str(self.fields["commitment"])


@dataclass(frozen=True)
class Statement:
    """What a bundle says.

    Attributes:
        cards: of the marks, each another one; none where no mark was tested.
        chain: through the log of a sequential run; None: there was none.
        inputs: the files of the evidence.
        pairs: what each test scored, by its name; or that it is hidden.
        plan, promised: the plan of the run, and the one that was fixed before; None: none was.
        result: the verdict, as in `result.json`.
        timestamp: an RFC 3161 response; None: there is none.
        created: when the bundle was made, as it says.
        calibration: digest and fields of a calibration, as they stand there; None: there is none.
    """

    cards: tuple[Card, ...]
    chain: Chain | None
    inputs: tuple[Input, ...]
    pairs: dict[str, Scored | Hidden]
    plan: LineagePlan
    promised: LineagePlan | None
    result: dict[str, Any]
    timestamp: bytes | None
    created: str
    calibration: tuple[str, dict[str, Any]] | None = None

    def card_like(self, commitment: object) -> Card | None:
        """The card with this commitment, or the only one."""
        if len(self.cards) == 1:
            return self.cards[0]
        return next((one for one in self.cards if one.commitment == commitment), None)

    def card_of(self, test: str) -> Card | None:
        """The card of a test's mark: of several the one that the plan has for the test's line."""
        return self.card_like(self.plan.inputs.get(test))


def read_statement(payload: bytes) -> Statement:
    """A bundle's payload. Raises StillmarkError, which says what is wrong."""
    try:
        whole = load_object(payload)
    except JsonError as error:
        raise StillmarkError(str(error)) from None
    kind = whole.get("predicateType")
    for name, wanted in (("_type", [STATEMENT]), ("predicateType", list(CARDS))):
        if whole.get(name) not in wanted:
            raise StillmarkError(f"'{name}' was to be {' or '.join(wanted)}, and is {str(whole.get(name))[:80]!r}")
    fields, keys = _object(whole, "predicate"), KEYS | {CARDS[str(kind)]}
    for key in sorted(keys ^ (fields.keys() - MAY_BE_MISSING)):
        raise StillmarkError(f"it has {'no' if key in keys else 'a'} '{key[:40]}'")
    inputs = inputs_of_fields(fields["inputs"])
    subject = [{"name": one.name, "digest": {"sha256": one.sha256}} for one in inputs]
    if whole.get("subject") != subject or whole.keys() != {"_type", "predicateType", "subject", "predicate"}:
        raise StillmarkError("its 'subject' is not that of its inputs")
    if not is_text(fields["created"]) or not is_text(fields["version"]):
        raise StillmarkError("'created' and 'version' must be strings")
    said = Statement(
        cards=_cards(fields),
        chain=_chain(fields["chain"]),
        inputs=inputs,
        pairs={},
        plan=plan_of_fields(_object(fields, "plan")),
        promised=None if fields["promised"] is None else plan_of_fields(_object(fields, "promised")),
        result=_object(fields, "result"),
        timestamp=_timestamp(fields["timestamp"]),
        created=fields["created"],
        calibration=_calibration(fields["calibration"]) if "calibration" in fields else None,
    )
    pairs = {name: _pairs(name, one, said.card_of(name)) for name, one in _object(fields, "pairs").items()}
    return replace(said, pairs=pairs)


def _cards(fields: Mapping[str, Any]) -> tuple[Card, ...]:
    """The card, or the cards."""
    if "card" in fields:
        return () if fields["card"] is None else (_card(_object(fields, "card")),)
    several = fields["cards"]
    if not isinstance(several, list) or len(several) < 2 or not all(isinstance(one, dict) for one in several):
        raise StillmarkError("'cards' must be a list of two cards or more")
    cards = tuple(map(_card, several))
    for i, one in enumerate(cards):
        if one.commitment in [other.commitment for other in cards[:i]]:
            raise StillmarkError(f"the card of {one.commitment[:16]}... is there twice")
    return cards


def _card(fields: dict[str, Any]) -> Card:
    return Card(fields, mark_of_card(fields))


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise StillmarkError(f"'{name}' must be an object")
    return value


def mark_of_card(card: Mapping[str, Any]) -> Mark:
    """A mark with the parameters of a card, and zeros for a secret: it says what may be scored, and no coin.

    Raises:
        StillmarkError: it is no card.
    """
    types = card_types(card.get("scheme"))
    wanted = types.keys() - {"tokenizer_source"}
    for name in sorted((wanted ^ card.keys()) - {"parent"}):  # which only a child's has
        raise StillmarkError(f"the card has {'no' if name in wanted else 'a'} '{name[:40]}'")
    if (wrong := wrong_field(card, types)) or card["format"] != CARD_FORMAT:
        raise StillmarkError(f"the card is malformed: {wrong or 'its format'}")
    try:
        parameters: dict[str, Any] = {name: card.get(name) for name in PARAMETERS if name != "tokenizer_source"}
        scheme = from_fields(card)
        return Mark(bytes(scheme.secret_bytes), scheme, **parameters)
    except (MarkError, TypeError, ValueError) as error:
        raise StillmarkError(f"the card is malformed: {error}") from None


def _pairs(name: str, fields: Any, card: Card | None) -> Scored | Hidden:
    where = f"the pairs of the test '{name[:40]}'"
    if not isinstance(fields, dict) or card is None:
        raise StillmarkError(f"{where} must be an object, and need the card of the mark that the plan has for the test")
    if "root" not in fields:
        return scored_of_fields(fields, card.stand_in.width, where)
    rule, number, root = fields.get("rule"), fields.get("n"), fields["root"]
    if rule not in RULES or not is_int(number) or not is_text(root):
        raise StillmarkError(f"{where}: want 'rule', 'n' and 'root'")
    return Hidden(rule, int(number or 0), root)


def _chain(fields: Any) -> Chain | None:
    if fields is None:
        return None
    if not isinstance(fields, dict) or not is_text(fields.get("name")) or not is_text(fields.get("head")):
        raise StillmarkError("'chain' must have 'name', 'records' and 'head'")
    if not is_int(fields.get("records")):
        raise StillmarkError("'records' of the chain must be an integer")
    return Chain(fields["name"], int(fields["records"]), fields["head"])


def _calibration(fields: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(fields, dict) or fields.keys() != {"result", "sha256"} or not is_text(fields["sha256"]):
        raise StillmarkError("'calibration' must have 'result' and 'sha256'")
    return fields["sha256"], _object(fields, "result")


def _timestamp(text: Any) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise StillmarkError("'timestamp' is no base64") from None


def opened_tests(opening: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What an opening shows of each test, not looked at, and its salt. Raises StillmarkError."""
    tests, salt = opening.get("tests"), opening.get("salt")
    if opening.get("format") != OPENING_FORMAT or not isinstance(tests, dict) or not is_text(salt):
        raise StillmarkError(f"no opening of format {OPENING_FORMAT}")
    try:
        return tests, bytes.fromhex(str(salt))
    except ValueError:
        raise StillmarkError("the salt of an opening is 64 hex digits") from None


def opened(statement: Statement, opening: Mapping[str, Any]) -> tuple[Statement, list[str]]:
    """The statement with the pairs that an opening shows, and where its roots are not those that were promised.

    Raises:
        StillmarkError: it is no opening.
    """
    tests, secret = opened_tests(opening)
    pairs, wrong = dict(statement.pairs), []
    for name, hidden in statement.pairs.items():
        if not isinstance(hidden, Hidden):
            continue
        if not isinstance(tests.get(name), dict):
            wrong.append(f"{name}: {hidden.n:,} pairs were promised, and the opening has none")
            continue
        shown = _pairs(name, tests[name], statement.card_of(name))
        if isinstance(shown, Hidden):
            raise StillmarkError("an opening shows pairs, and no root")
        if (hidden.rule, hidden.n) != (shown.rule, len(shown)):
            wrong.append(
                f"{name}: {hidden.n:,} pairs for the rule '{hidden.rule}' were promised, and the opening has "
                f"{len(shown):,} for '{shown.rule}'"
            )
        root = root_of(shown.to_dict(), own_salt(secret, name))
        if root != hidden.root:
            wrong.append(f"{name}: the root {hidden.root[:16]}... was promised, and the opening gives {root[:16]}...")
        pairs[name] = shown
    return replace(statement, pairs=pairs), wrong
