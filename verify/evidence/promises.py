"""What a bundle promises, against what is at hand: signature, plan, timestamp, commitment, and the digests of files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile, zip_longest
from operator import eq
from pathlib import Path
from typing import Any

from verify.evidence.calibration import calibration_of, differences, digest_of
from verify.evidence.checked import HOLDS, OPEN, Checked, checked
from verify.evidence.claims import list_in, object_at, tests_of, text_in
from verify.evidence.inputs import Input, chain_of, changes
from verify.evidence.signing import Envelope
from verify.evidence.statement import Statement
from verify.evidence.timestamp import claim_of, time_of
from verify.lineage.plan import LINES, MARK, WRITTEN, LineagePlan, lines_for_marks
from verify.results import plural
from watermark import InputError, Mark, MissingExtraError, StillmarkError
from watermark.keyfile import read_json

PathLike = str | Path


def check_signature(envelope: Envelope, key: Any, path: PathLike | None) -> Checked:
    """Whose it is. key, path: the public key that should have signed it, and its file."""
    there = ", ".join(keyid[:16] + "..." for keyid in envelope.signatures) or "nobody"
    if key is None:
        lacking = f"no public key was named; it says that it was signed by {there}: anybody could have made it"
        return Checked("signature", OPEN, lacking)
    against = f"the public key {path} ({key.keyid[:16]}...)"
    if envelope.signed_by(key):
        return checked("signature", against, [])
    if key.keyid in envelope.signatures:
        said = f"a signature by {key.keyid[:16]}... was promised, and what is there is none of this content"
    else:
        said = f"a signature by {key.keyid[:16]}... was wanted, and it is signed by {there}"
    return checked("signature", against, [said])


def check_plan(said: Statement, planned: LineagePlan | None, path: PathLike | None) -> Checked:
    """The run kept to the plan; planned, path: the one that was published, and its file."""
    wrong, against = list(_adherence(said, planned)), _against(said, planned, path)
    left = [one for one in list_in(said.result, "not_tested") if isinstance(one, dict)]
    left = [one for one in left if text_in(one, "test") in said.plan.lines]
    if left:
        why = ", ".join(f"{text_in(one, 'test')} ({text_in(one, 'why')[:80]})" for one in left)
        against += f"; planned, and not made, for a reason that was not checked: {why}"
    # at an endpoint that was asked for text there are no other answers than those of the test before
    if not wrong and any(text_in(one, "test") != WRITTEN for one in left):
        return Checked("plan", OPEN, against)
    return checked("plan", against, wrong)


def _against(said: Statement, planned: LineagePlan | None, path: PathLike | None) -> str:
    if planned is not None:
        return f"the plan {path} ({planned.digest[:16]}...)"
    if said.promised is None:
        return f"the plan {said.plan.digest[:16]}..., which was made with the run: none was promised before"
    return f"the plan {said.promised.digest[:16]}... in the bundle; none was named to hold it against"


def _adherence(said: Statement, planned: LineagePlan | None) -> Iterator[str]:
    """Adherence: the promise is the one that was published, the run kept to it, and the result is of that run."""
    result = said.result
    if planned is not None and said.promised is None:
        yield f"the plan {planned.digest[:16]}... was published, and the bundle knows of no promise"
    if planned is not None and said.promised is not None and planned != said.promised:
        for one in said.promised.deviations(planned):
            yield f"the plan in the bundle is not the one that was published: {one}"
    digest = None if said.promised is None else said.promised.digest
    for name, wanted in (
        ("plan_digest", said.plan.digest),
        ("promised_digest", digest),
        ("alpha", said.plan.alpha),
        ("plan", said.plan.to_dict()),
    ):
        if result.get(name) != wanted:
            yield f"'{name}' of the result is to be {str(wanted)[:200]}, and is {str(result.get(name))[:200]}"
    deviations = [] if said.promised is None else list(said.plan.deviations(said.promised))
    yield from deviations
    if result.get("deviations") != deviations:
        yield f"the result owns up to {len(list_in(result, 'deviations'))} deviations, and there are {len(deviations)}"
    made = [text_in(one, "test") for one in tests_of(said)]
    missing = [text_in(one, "test") for one in list_in(result, "not_tested") if isinstance(one, dict)]
    for name in dict.fromkeys([*LINES, *said.plan.lines, *made]):
        number = made.count(name)
        if name in said.plan.lines and number + missing.count(name) != 1:
            yield f"the test '{name[:80]}' was planned, and is there {plural(number, 'time')}"
        if name not in said.plan.lines and number:
            yield f"the test '{name[:80]}' was not planned, and is there"
    if (order := [name for name in said.plan.lines if name in made]) != made and len(set(made)) == len(made):
        yield f"the tests were to come as {', '.join(order)[:200]}, and come as {', '.join(made)[:200]}"
    planned_marks = [said.plan.inputs.get(line) for line in lines_for_marks(said.plan.lines) or [MARK]]
    cards: list[str | None] = [one.commitment for one in said.cards] or [None]
    for mark, card in zip_longest(planned_marks, cards):
        if mark != card:
            yield f"the mark {mark} was planned, and the card is that of {card}"
    for test in tests_of(said):
        name, mark = text_in(test, "test"), object_at(object_at(test, "result"), "mark")
        card = said.card_of(name)
        commitment = None if card is None else card.commitment
        if mark and mark.get("commitment") != commitment:
            yield f"the test '{name[:40]}' is of the mark {mark.get('commitment')}, and the card of {commitment}"


def check_timestamp(said: Statement, tsa: PathLike | None) -> Checked:
    """The authority saw the plan before the run began. tsa: file of its certificate."""
    if said.timestamp is None:
        return Checked("timestamp", OPEN, "there is none: nothing shows when the plan was made")
    if said.promised is None:
        return checked("timestamp", "the plan", ["there is a timestamp, and no plan that was promised"])
    return time_checked(said.timestamp, said.promised, text_in(said.result, "started"), tsa)


def time_checked(stamp: bytes, promised: LineagePlan, began: str, tsa: PathLike | None) -> Checked:
    """A timestamp of a plan, against the time at which the run began, and the authority, whose certificate is `tsa`."""
    message = promised.text().encode() + b"\n"
    try:
        if tsa is None:
            lacking = "no certificate of an authority was named: the timestamp is worth what its signer is"
            with suppress(MissingExtraError):
                lacking = f"it says {claim_of(stamp, message)}; {lacking}"
            return Checked("timestamp", OPEN, lacking)
        stamped = time_of(stamp, message, Path(tsa))
    except (InputError, MissingExtraError):
        raise
    except StillmarkError as error:
        return checked("timestamp", "the plan" if tsa is None else f"the authority {tsa}", [str(error)])
    wrong, time = [], stamped.isoformat(timespec="seconds")
    try:
        started = datetime.fromisoformat(began)
        if stamped.replace(microsecond=0) > started:
            wrong = [f"the plan is dated {time}, after the test began at {started.isoformat()}"]
    except (ValueError, TypeError):  # TypeError: without a time zone
        wrong = ["'started' of the result is no time in UTC"]
    return checked("timestamp", f"the authority {tsa}: {time}", wrong)


def check_calibration(said: Statement) -> Checked:
    """The known error rate: it is of this mark, and its numbers follow from its p-values."""
    assert said.calibration is not None
    digest, fields = said.calibration
    there = digest_of(fields)
    wrong = [] if digest == there else [f"SHA-256 {digest[:16]}... was promised, and {there[:16]}... is there"]
    try:
        found = calibration_of(fields)
        wrong += differences(fields)
    except StillmarkError as error:
        return checked("calibration", "its form", [*wrong, str(error)])
    card = said.card_like(found.commitment)
    if card is None or found.commitment != card.commitment:
        wrong.append(f"it is of the mark {found.commitment[:16]}..., and {_cards(said)}")
    whose = "this mark" if len(said.cards) == 1 else f"the mark {found.commitment[:16]}..."
    against = (
        f"{found.verdict}, {plural(found.keys, 'decoy key')} on {plural(len(found.materials), 'material')} "
        f"({digest[:16]}...): of {whose}, and its numbers follow from its p-values"
    )
    if wrong:
        return checked("calibration", against, wrong)
    return Checked("calibration", OPEN, f"{against}, which were not counted anew")


@dataclass(frozen=True)
class Published:
    """A card as it was published. spelled: its file is written as cards are."""

    path: Path
    fields: dict[str, Any]
    spelled: bool


def published_card(path: Path) -> Published:
    """A card in a file. Raises MarkError."""
    fields = read_json(path, "card")
    return Published(path, fields, path.read_bytes() == (json.dumps(fields, indent=1) + "\n").encode())


def check_commitment(said: Statement, secrets: Sequence[Mark], published: Sequence[Published]) -> Checked:
    """The cards are those that were published, and the marks are the cards'."""
    if not said.cards:
        return Checked("commitment", HOLDS, "no mark was tested")
    wrong, seen = list[str](), set[str]()
    for one in published:
        if not one.spelled:
            wrong.append("the file of the card is not written as `stillmark mark publish` writes it")
        card = said.card_like(one.fields.get("commitment"))
        if card is None:
            wrong.append(f"{one.path}: the card of {str(one.fields.get('commitment'))[:80]}, and {_cards(said)}")
            continue
        seen.add(card.commitment)
        for name in sorted(one.fields.keys() | card.fields.keys()):
            promised, there = (
                json.dumps(some[name]) if name in some else "missing" for some in (one.fields, card.fields)
            )
            if there != promised:
                wrong.append(f"'{name}' of the card was published as {promised}, and is {there} in the bundle")
    for mark in secrets:
        card, own = said.card_like(mark.commitment), mark.card()
        if card is None:
            wrong.append(f"the revealed mark {mark.file or 'in memory'} is {mark.commitment}, and {_cards(said)}")
            continue
        seen.add(card.commitment)
        for name in mark.matches(card.fields):
            wrong.append(f"'{name}' of the card is {card.fields.get(name)}, and of the revealed mark {own.get(name)}")
    named = [f"the card {one.path}" for one in published]
    named += [f"the revealed mark {mark.file or 'in memory'}" for mark in secrets]
    if not named:
        return Checked(
            "commitment", OPEN, f"neither a card nor {'the' if len(said.cards) == 1 else 'a'} mark was named"
        )
    left = [one.commitment for one in said.cards if one.commitment not in seen]
    against = " and ".join(named)
    against += f"; not named: {' and '.join(f'the card or mark of {one[:16]}...' for one in left)}" if left else ""
    return checked("commitment", against, wrong) if wrong or not left else Checked("commitment", OPEN, against)


def _cards(said: Statement) -> str:
    """Whose cards are there."""
    marks = " and ".join(f"{one.commitment[:16]}..." for one in said.cards) or "no mark"
    return f"the cards are those of {marks}" if len(said.cards) > 1 else f"the card is that of {marks}"


def check_files(said: Statement, read: Mapping[Path, Input]) -> Checked:
    """The files that were named are those of the bundle."""
    if not read:
        return Checked("files", OPEN, f"none was named, of {plural(len(said.inputs), 'file')} that the bundle knows")
    known = {one.sha256 for one in said.inputs}
    there = {one.sha256 for one in read.values()}
    wrong: list[str] = []
    for path, one in read.items():
        if one.sha256 in known:
            lines = [old for old in said.inputs if old.sha256 == one.sha256 and old.lines not in (None, one.lines)]
            wrong += [f"{path}: the digests of the lines of {old.name} are not those of the file" for old in lines]
            continue
        alike = [old for old in said.inputs if Path(old.name).name == path.name and old.sha256 not in there]
        if alike:
            wrong += changes(max(alike, key=lambda old: _common(Path(old.name), path)), one, path)
        else:
            wrong.append(f"{path}: the bundle knows no file of this content or name ({one.sha256[:16]}...)")
    if said.chain is not None:
        wrong += _chain(said, read)
    left = [one.name for one in said.inputs if one.sha256 not in there]
    lacking = f"; not named: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}" if left else ""
    against = f"{plural(len(read), 'file')}{lacking}"
    return checked("files", against, wrong) if wrong or not left else Checked("files", OPEN, against)


def _common(a: Path, b: Path) -> int:
    """How many names at the end two paths have in common."""
    return sum(1 for _ in takewhile(bool, map(eq, reversed(a.parts), reversed(b.parts))))


def _chain(said: Statement, read: Mapping[Path, Input]) -> Iterator[str]:
    """The log of a sequential run: its chain is whole, and ends where it was promised to."""
    assert said.chain is not None
    promised = next((one for one in said.inputs if one.name == said.chain.name), None)
    if promised is None:
        yield f"a chain through {said.chain.name} was promised, and the bundle knows no such file"
    for path in read:
        if path.name != Path(said.chain.name).name:
            continue
        try:
            found = chain_of(path, said.chain.name)
        except InputError as error:
            yield str(error)
            continue
        number, head = (0, "") if found is None else (found.records, found.head)
        if (number, head) != (said.chain.records, said.chain.head):
            yield (
                f"{path}: a chain of {said.chain.records} records to {said.chain.head[:16]}... was promised, "
                f"and it has {number} to {head[:16]}..."
            )
