"""A bundle: all that others need to check a verdict, in one signed file.

The file is an in-toto Statement (v1) of a predicate of our own in a DSSE envelope, signed by Ed25519. It holds the
plan, the marks' cards, the pairs, the result, and digests of every file; never a secret. docs/formats.md has the keys.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from verify.evidence.calibration import digest_of, read_calibration
from verify.evidence.document import without_text
from verify.evidence.inputs import Input, chain_of, input_of
from verify.evidence.merkle import root_of
from verify.evidence.report import read_result
from verify.evidence.signing import signed
from verify.lineage.folder import BUNDLE, CALIBRATION, CARD, PAIRS, PAIRS_FORMAT, PLAN, PROMISED, STAMP
from verify.lineage.plan import FORMAT as PLAN_FORMAT
from verify.lineage.plan import LineagePlan, kept_as, lines_for_marks, read_plan
from watermark import InputError, MarkError, UsageError, __version__
from watermark.io import files
from watermark.io.fields import JsonError, load_object
from watermark.keyfile import CARD_FORMAT, read_json

STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "urn:stillmark:evidence:v1"
"""With `card`: of the mark, or null."""
OF_SEVERAL: Final = "urn:stillmark:evidence:v2"
"""With `cards` instead, of two marks or more."""
OPENING_FORMAT: Final = "stillmark-opening/v1"


def make_bundle(
    case: str | Path,
    key: str | Path,
    out: str | Path | None = None,
    *,
    timestamp: str | Path | None = None,
    calibration: str | Path | None = None,
    confidential: bool = False,
    opening: str | Path | None = None,
) -> dict[str, Any]:
    """Bundle what `verify.suspect` left in a folder (`out`), signed, so that others can check it.

    Args:
        case: the folder.
        key: file of a private key of Ed25519 in PEM (`stillmark evidence key`).
        out: the bundle; replaced if it is there. None: `bundle.json` in the folder, where a report finds it.
        timestamp: file of an RFC 3161 response over the plan that was promised; None: the one beside the plan's copy,
            if there is one.
        calibration: file of `stillmark calibrate` with the mark, or one of them; None: `calibration.json` in the
            folder, if there is one.
        confidential: leave out the pairs and the suspect's text. A Merkle root stands for the pairs.
        opening: where to write the pairs and the salt of that root (mode 0600), to be shown to whom it may concern.

    Returns:
        what was written: `out`, `keyid`, `sha256` of the file, `tests` with pairs, and `inputs`.

    Raises:
        UsageError: an opening was named, and the bundle is not confidential.
        InputError: the folder holds no verdict, a file is not the one that was tested, or something cannot be read or
            written.
        MissingExtraError: securesystemslib is not installed.
    """
    if opening is not None and not confidential:
        raise UsageError("an `opening` is that of a confidential bundle", "say so with `confidential=True`")
    case = Path(case)
    out = case / BUNDLE if out is None else Path(out)
    statement, opened = _statement(case, None if timestamp is None else Path(timestamp), confidential)
    known = Path(calibration or case / CALIBRATION)
    if calibration is not None or known.exists():
        statement["predicate"]["calibration"] = _calibration(known, statement["predicate"])
    envelope = signed(json.dumps(statement, sort_keys=True).encode(), key)
    data = envelope.to_bytes()
    if opening is not None:
        with files.writing(Path(opening)):
            files.replace(Path(opening), (json.dumps(opened) + "\n").encode(), private=True)
    with files.writing(out):
        files.replace(out, data)
    predicate = statement["predicate"]
    return {
        "out": str(out),
        "keyid": next(iter(envelope.signatures)),
        "sha256": hashlib.sha256(data).hexdigest(),
        "tests": sorted(predicate["pairs"]),
        "inputs": len(predicate["inputs"]),
    }


def _statement(case: Path, timestamp: Path | None, confidential: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The statement on a case, and what opens its roots."""
    result = read_result(case)
    plan = read_plan(case / PLAN)
    cards = _cards(case, plan)
    promised = read_plan(case / PROMISED) if (case / PROMISED).exists() else None
    stamp = timestamp or (case / STAMP if (case / STAMP).exists() else None)
    inputs = _inputs(case, result)
    log = case / "readings" / "mark.jsonl"
    chain = chain_of(log, "readings/mark.jsonl") if log.exists() else None
    pairs, opened = _pairs(case), {"format": OPENING_FORMAT, "salt": "", "tests": {}}
    if confidential:
        salt = secrets.token_bytes(32)
        opened |= {"salt": salt.hex(), "tests": pairs}
        pairs = {
            name: {"rule": one["rule"], "n": one["n"], "root": root_of(one, own_salt(salt, name))}
            for name, one in pairs.items()
        }
        result = without_text(result)
    predicate = ({"cards": cards} if len(cards) > 1 else {"card": cards[0] if cards else None}) | {
        "chain": None if chain is None else chain.to_dict(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": [one.to_dict() for one in inputs],
        "pairs": pairs,
        "plan": _plan(plan),
        "promised": None if promised is None else _plan(promised),
        "result": result,
        "timestamp": None if stamp is None else b64encode(files.read_bytes(stamp)).decode(),
        "version": __version__,
    }
    subject = [{"name": one.name, "digest": {"sha256": one.sha256}} for one in inputs]
    kind = OF_SEVERAL if len(cards) > 1 else PREDICATE
    whole = {"_type": STATEMENT, "predicateType": kind, "subject": subject, "predicate": predicate}
    return whole, opened


def own_salt(salt: bytes, name: str) -> bytes:
    """The salt of one test's pairs."""
    return hmac.digest(salt, name.encode(), "sha256")


def _calibration(path: Path, predicate: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration, which must be of a mark that was tested for."""
    fields = read_calibration(path)
    cards = predicate.get("cards") or [predicate["card"] or {}]
    marks = [card.get("commitment", "") for card in cards]
    if fields["commitment"] not in marks:
        tested = " and ".join(f"the mark {one[:16]}..." for one in marks if one) or "no mark"
        raise InputError(path, 0, f"is of the mark {fields['commitment'][:16]}..., and {tested} was tested")
    return {"sha256": digest_of(fields), "result": fields}


def _plan(plan: LineagePlan) -> dict[str, Any]:
    return {"format": PLAN_FORMAT} | plan.to_dict()


def _cards(case: Path, plan: LineagePlan) -> list[dict[str, Any]]:
    """The cards of the marks, in the order of the plan's lines."""
    found = []
    for line in lines_for_marks(plan.lines):
        path = case / (kept_as(plan.lines, line) + CARD)
        card = read_json(path, "card") if path.exists() else {}
        if card.get("format") != CARD_FORMAT or "secret" in card:
            raise MarkError(f"{path}: not a card", "run `stillmark verify` once more with the same --out")
        found.append(card)
    return found


def _pairs(case: Path) -> dict[str, dict[str, Any]]:
    """The pairs of each test, as they were kept."""
    path = case / PAIRS
    try:
        kept = load_object(path)
    except OSError as error:
        hint = "run `stillmark verify` once more with the same --out: it reads nothing again"
        raise InputError(path, 0, f"cannot read the pairs: {error.strerror}", hint) from None
    except JsonError as error:
        raise InputError(path, 0, str(error)) from None
    tests = kept.get("tests")
    if kept.get("format") != PAIRS_FORMAT or not isinstance(tests, dict):
        raise InputError(path, 0, f"not of format {PAIRS_FORMAT}")
    return tests


def _inputs(case: Path, result: Mapping[str, Any]) -> list[Input]:
    """Every file of the evidence, held against the digest that the result has of it."""
    call = result.get("call")
    known = call.get("digests") if isinstance(call, dict) else None
    digests = {str(name): str(digest) for name, digest in (known if isinstance(known, dict) else {}).items()}
    found: dict[str, Input] = {}
    for name, digest in digests.items():
        path = Path(name)
        short = _short(case, path)
        if not path.is_file():  # a folder of weights, or a file that lies elsewhere by now
            found[short] = Input(short, digest)
            continue
        found[short] = input_of(path, short)
        if found[short].sha256 != digest:
            said = f"SHA-256 {digest[:16]}... was tested, and {found[short].sha256[:16]}... is there"
            raise InputError(path, 0, f"not the file that was tested: {said}", "restore it from a copy")
    for path in sorted((case / "readings").rglob("*.jsonl")):
        short = _short(case, path)
        if short not in found:
            found[short] = input_of(path, short)
    return [found[name] for name in sorted(found)]


def _short(case: Path, path: Path) -> str:
    try:
        return path.resolve().relative_to(case.resolve()).as_posix()
    except ValueError:
        return str(path)
