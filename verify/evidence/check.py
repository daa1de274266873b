"""Check a bundle, offline and without torch: every promise that it holds against what is there.

Nothing is trusted by default. A check says against what it was made; one that needs something that was not named says
so, and counts neither for the bundle nor against it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from verify.evidence.again import NotHereError, scored_again
from verify.evidence.checked import DIFFERS, HOLDS, OPEN, Checked, CheckResult
from verify.evidence.escrow import differing, read_coins
from verify.evidence.inputs import Input, chain_of, changes, input_of, object_in
from verify.evidence.proofs import false_proofs
from verify.evidence.scored import CLOSE, Hits, Scored, differences, faults, hits_under, recomputed
from verify.evidence.signing import MAX_BYTES, Envelope, read_envelope, read_key
from verify.evidence.statement import Hidden, Statement, opened, read_statement
from verify.evidence.timestamp import time_of
from verify.fingerprint.planted import ANSWERS
from verify.lineage.plan import LINES, read_plan
from verify.lineage.verdict import CANNOT_TELL, UNRELATED, VERDICTS
from verify.results import plural
from verify.stats import binomial
from verify.stats.multiple import holm
from watermark import InputError, Mark, StillmarkError
from watermark.io import files
from watermark.io.fields import is_int, is_number, is_text
from watermark.keyfile import read_json
from watermark.mark import as_mark

PathLike = str | Path

MOST: Final = 1_000_000
"""Questions of a test of planted answers, at most."""


def check_bundle(
    bundle: PathLike,
    *,
    public_key: PathLike | None = None,
    card: PathLike | None = None,
    plan: PathLike | None = None,
    reveal: Mark | PathLike | None = None,
    outputs: Sequence[PathLike] = (),
    opening: PathLike | None = None,
    proofs: PathLike | None = None,
    coins: PathLike | None = None,
    escrow_key: PathLike | None = None,
    tsa: PathLike | None = None,
    tokenizer: PathLike | None = None,
) -> CheckResult:
    """Check a bundle against what is at hand. Offline, and without torch.

    Args:
        bundle: the file.
        public_key: of whoever should have signed it, Ed25519 in PEM.
        card: the card as it was published.
        plan: the plan as it was published.
        reveal: the mark, or its file: the secret is held against the commitment, and the p-values are counted anew.
        outputs: files of the evidence: what the suspect wrote or said, logs, readings.
        opening: the pairs of a confidential bundle.
        proofs: single pairs of a confidential bundle (`stillmark evidence prove`).
        coins: the answer of a third party that holds the secret (`stillmark evidence coins`): the p-values are counted
            anew by its word, and the secret is not needed.
        escrow_key: of that third party, Ed25519 in PEM.
        tsa: certificate (PEM) of the timestamp authority, or of the root that it comes from.
        tokenizer: folder of the mark's tokenizer, for outputs that have no token ids.

    Raises:
        InputError: a file that was named here cannot be read. What is wrong with the bundle is no error, but a
            difference.
        MissingExtraError: securesystemslib or rfc3161-client is not installed.

    Example:
        >>> import verify
        >>> found = verify.check_bundle("bundle.json", public_key="key.pub", reveal="teacher.mark")  # doctest: +SKIP
        >>> found.verdict, found.differences  # doctest: +SKIP
    """
    path = Path(bundle)
    with files.reading(path):
        if path.stat().st_size > MAX_BYTES:
            raise InputError(path, 0, f"has more than {MAX_BYTES >> 20} MiB, and is no bundle")
        data = path.read_bytes()
    key = None if public_key is None else read_key(public_key)
    secret = None if reveal is None else as_mark(reveal)
    escrow = None if escrow_key is None else read_key(escrow_key)
    shown = None if opening is None else object_in(Path(opening))
    proven = None if proofs is None else object_in(Path(proofs))
    answered = None if coins is None else files.read_bytes(Path(coins))
    published = None if card is None else read_json(Path(card), "card")
    spelled = card is None or Path(card).read_bytes() == (json.dumps(published, indent=1) + "\n").encode()
    planned = None if plan is None else read_plan(Path(plan))
    given = [Path(one) for one in outputs]
    read = {one: input_of(one, str(one)) for one in given}
    try:
        envelope = read_envelope(data)
    except StillmarkError as error:
        return CheckResult(bundle=str(bundle), checks=(_checked("envelope", "its form", [str(error)]),))
    signature = _signature(envelope, key, public_key)
    numbers: dict[str, float] = {}
    try:
        said = read_statement(envelope.payload)
        said, wrong = (said, []) if shown is None else opened(said, shown)
        escrowed, hits = _escrow(said, data, answered, escrow, secret)
        checks = (
            signature,
            _checked("plan", _plan_against(said, planned, plan), list(_plan(said, planned))),
            _time(said, tsa),
            _commitment(said, secret, published, card, spelled),
            _inputs(said, read),
            _pairs(said, read, wrong, secret, tokenizer),
            *([] if proven is None else [_proofs(said, proven)]),
            *escrowed,
            _numbers(said, secret, hits, numbers),
            _checked("adjustment", "the p-values of the tests", list(_adjustment(said))),
        )
    except InputError:
        raise
    except (StillmarkError, RecursionError) as error:
        said_of_it = str(error) if isinstance(error, StillmarkError) else "it is nested too deeply"
        return CheckResult(bundle=str(bundle), checks=(signature, _checked("statement", "its form", [said_of_it])))
    return CheckResult(bundle=str(bundle), checks=checks, finding=_text(said.result, "verdict"), numbers=numbers)


def _checked(name: str, against: str, wrong: Sequence[str]) -> Checked:
    return Checked(name, DIFFERS if wrong else HOLDS, against, tuple(wrong))


def _signature(envelope: Envelope, key: Any, path: PathLike | None) -> Checked:
    there = ", ".join(keyid[:16] + "..." for keyid in envelope.signatures) or "nobody"
    if key is None:
        lacking = f"no public key was named; it says that it was signed by {there}: anybody could have made it"
        return Checked("signature", OPEN, lacking)
    against = f"the public key {path} ({key.keyid[:16]}...)"
    if envelope.signed_by(key):
        return _checked("signature", against, [])
    if key.keyid in envelope.signatures:
        said = f"a signature by {key.keyid[:16]}... was promised, and what is there is none of this content"
    else:
        said = f"a signature by {key.keyid[:16]}... was wanted, and it is signed by {there}"
    return _checked("signature", against, [said])


def _plan_against(said: Statement, planned: Any, path: PathLike | None) -> str:
    if planned is not None:
        return f"the plan {path} ({planned.digest[:16]}...)"
    if said.promised is None:
        return f"the plan {said.plan.digest[:16]}..., which was made with the run: none was promised before"
    return f"the plan {said.promised.digest[:16]}... in the bundle; none was named to hold it against"


def _plan(said: Statement, planned: Any) -> Iterator[str]:
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
        yield f"the result owns up to {len(_list(result, 'deviations'))} deviations, and there are {len(deviations)}"
    made = [_text(one, "test") for one in _tests(said)]
    missing = [_text(one, "test") for one in _list(result, "not_tested") if isinstance(one, dict)]
    for name in LINES:
        number = made.count(name)
        if name in said.plan.lines and number + missing.count(name) != 1:
            yield f"the test '{name}' was planned, and is there {plural(number, 'time')}"
        if name not in said.plan.lines and number:
            yield f"the test '{name}' was not planned, and is there"
    commitment = None if said.card is None else said.card["commitment"]
    if said.plan.inputs.get("mark") != commitment:
        yield f"the mark {said.plan.inputs.get('mark')} was planned, and the card is that of {commitment}"
    for test in _tests(said):
        mark = _object(_object(test, "result"), "mark")
        if mark and mark.get("commitment") != commitment:
            name, other = _text(test, "test"), mark.get("commitment")
            yield f"the test '{name}' is of the mark {other}, and the card of {commitment}"


def _time(said: Statement, tsa: PathLike | None) -> Checked:
    if said.timestamp is None:
        return Checked("timestamp", OPEN, "there is none: nothing shows when the plan was made")
    if said.promised is None:
        return _checked("timestamp", "the plan", ["there is a timestamp, and no plan that was promised"])
    if tsa is None:
        lacking = "no certificate of an authority was named: the timestamp is worth what its signer is"
        return Checked("timestamp", OPEN, lacking)
    try:
        stamped = time_of(said.timestamp, said.promised.text().encode() + b"\n", Path(tsa))
    except InputError:
        raise
    except StillmarkError as error:
        return _checked("timestamp", f"the authority {tsa}", [str(error)])
    wrong, time = [], stamped.isoformat(timespec="seconds")
    try:
        started = datetime.fromisoformat(_text(said.result, "started"))
        if stamped.replace(microsecond=0) > started:
            wrong = [f"the plan is dated {time}, after the test began at {started.isoformat()}"]
    except (ValueError, TypeError):  # TypeError: without a time zone
        wrong = ["'started' of the result is no time in UTC"]
    return _checked("timestamp", f"the authority {tsa}: {time}", wrong)


def _commitment(
    said: Statement,
    secret: Mark | None,
    published: Mapping[str, Any] | None,
    card: PathLike | None,
    spelled: bool,
) -> Checked:
    if said.card is None:
        return Checked("commitment", HOLDS, "no mark was tested")
    wrong = [] if spelled else ["the file of the card is not written as `stillmark mark publish` writes it"]
    if published is not None:
        for name in sorted(published.keys() | said.card.keys()):
            promised, there = (json.dumps(one[name]) if name in one else "missing" for one in (published, said.card))
            if there != promised:
                wrong.append(f"'{name}' of the card was published as {promised}, and is {there} in the bundle")
    if secret is not None:
        own = secret.card()
        for name in secret.matches(said.card):
            wrong.append(f"'{name}' of the card is {said.card.get(name)}, and of the revealed mark {own.get(name)}")
    named = [f"the card {card}"] if card is not None else []
    named += [f"the revealed mark {secret.file or 'in memory'}"] if secret else []
    if not named:
        return Checked("commitment", OPEN, "neither a card nor the mark was named")
    return _checked("commitment", " and ".join(named), wrong)


def _inputs(said: Statement, read: Mapping[Path, Input]) -> Checked:
    """The files that were named are those of the bundle."""
    if not read:
        return Checked("files", OPEN, f"none was named, of {plural(len(said.inputs), 'file')} that the bundle knows")
    known = {one.sha256 for one in said.inputs}
    there = {one.sha256 for one in read.values()}
    wrong: list[str] = []
    for path, one in read.items():
        if one.sha256 in known:
            continue
        alike = [old for old in said.inputs if Path(old.name).name == path.name and old.sha256 not in there]
        if alike:
            wrong += changes(alike[0], one, path)
        else:
            wrong.append(f"{path}: the bundle knows no file of this content or name ({one.sha256[:16]}...)")
    if said.chain is not None:
        wrong += _chain(said, read)
    left = [one.name for one in said.inputs if one.sha256 not in there]
    lacking = f"; not named: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}" if left else ""
    against = f"{plural(len(read), 'file')}{lacking}"
    return _checked("files", against, wrong) if wrong or not left else Checked("files", OPEN, against)


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


def _pairs(
    said: Statement,
    read: Mapping[Path, Input],
    wrong: Sequence[str],
    secret: Mark | None,
    tokenizer: PathLike | None,
) -> Checked:
    """The pairs keep the rules, are as many as the result says, and are those that the files give."""
    found, against, lacking = list(wrong), list[str](), False
    results = {_text(one, "test"): _object(one, "result") for one in _tests(said)}
    for name, scored in said.pairs.items():
        result = results.get(name)
        if result is None:
            found.append(f"{name}: pairs are there, and no such test was made")
            continue
        if isinstance(scored, Hidden):
            lacking = True
            against.append(f"{name}: {scored.n:,} pairs are not shown, and their root is {scored.root[:16]}...")
            continue
        assert said.stand_in is not None
        found += [f"{name}: {one}" for one in faults(scored, said.stand_in.exempt, said.stand_in.vocabulary_size)]
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
                _knows_pairs(said, secret), result, {one.sha256: path for path, one in read.items()}, said, scored,
                tokenizer,
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
        return _checked("pairs", whole, found)
    return Checked("pairs", OPEN if lacking else HOLDS, whole)


def _knows_pairs(said: Statement, secret: Mark | None) -> Mark:
    """A mark that tells which pairs count once. Of another engine's mark only the mark itself does.

    Raises NotHereError.
    """
    assert said.stand_in is not None
    if said.stand_in.scheme.embeds:
        return said.stand_in
    if secret is None or said.card is None or secret.matches(said.card):
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


def _proofs(said: Statement, proven: Mapping[str, Any]) -> Checked:
    """Single pairs that are shown of a confidential bundle."""
    try:
        wrong = list(false_proofs(said, proven))
    except StillmarkError as error:
        return _checked("proofs", "the root of the pairs", [str(error)])
    shown = "; ".join(str(one["text"])[:40] for one in proven["pairs"][:5])
    number = plural(len(proven["pairs"]), "pair")
    return _checked("proofs", f"the root of the pairs: {number} of the test '{proven['test']}': {shown}", wrong)


def _escrow(
    said: Statement, data: bytes, answered: bytes | None, key: Any, secret: Mark | None
) -> tuple[list[Checked], dict[str, Hits]]:
    """The answer of a third party: whose it is, and the hits that it gives."""
    if answered is None:
        return [], {}
    try:
        coins = read_coins(answered, data, said)
    except StillmarkError as error:
        return [_checked("coins", "the bundle", [str(error)])], {}
    wrong: list[str] = []
    for name in coins.tests:
        scored = said.pairs[name]
        if secret is not None and isinstance(scored, Scored) and said.stand_in and secret.width == said.stand_in.width:
            wrong += differing(coins.tests, name, hits_under(scored, secret))
    signature = _signature(coins.envelope, key, "of the third party")
    return [
        Checked(
            "coins",
            DIFFERS if wrong else signature.status,
            signature.against,
            (*signature.differences, *wrong),
        )
    ], coins.tests


def _numbers(said: Statement, secret: Mark | None, hits: Mapping[str, Hits], numbers: dict[str, float]) -> Checked:
    """The p-values, from the pairs and the secret, or a third party's coins; of planted answers from the counts."""
    wrong: list[str] = []
    against: list[str] = []
    lacking = False
    for one in _tests(said):
        name, result = _text(one, "test"), _object(one, "result")
        scored = said.pairs.get(name)
        if _same(result.get("log10_pvalue"), one.get("log10_pvalue")) is False:
            wrong.append(
                f"{name}: log10 p is {one.get('log10_pvalue')} in the table, {result.get('log10_pvalue')} below"
            )
        if scored is None:
            wrong += [f"{name}: {said}" for said in _planted(result)] if name == "planted answers" else []
            against.append(f"{name}: " + ("from its counts" if name == "planted answers" else "not counted anew"))
            lacking = lacking or name != "planted answers"
        elif isinstance(scored, Scored) and secret is None and name in hits:
            wrong += [f"{name}: {said}" for said in _counted(name, scored, hits[name], result, numbers)]
            against.append(f"{name}: counted anew with the coins of the third party")
        elif isinstance(scored, Hidden) or secret is None:
            lacking = True
            against.append(
                f"{name}: not counted anew, since {'the pairs are' if secret else 'the secret is'} not shown"
            )
        elif said.stand_in is not None and secret.width != said.stand_in.width:
            wrong.append(
                f"{name}: the pairs have {said.stand_in.width} tokens of context, the revealed mark {secret.width}"
            )
        else:
            wrong += [f"{name}: {said}" for said in _counted(name, scored, hits_under(scored, secret), result, numbers)]
            against.append(f"{name}: counted anew")
    if wrong:
        return _checked("p-values", "; ".join(against), wrong)
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
    if not _same(result.get("log10_pvalue"), found.log10_pvalue):
        yield f"log10 p {result.get('log10_pvalue')} was claimed, and the pairs give {found.log10_pvalue:.10g}"
    if found.statistic is not None and not _same(result.get("statistic"), found.statistic):
        yield f"the statistic {result.get('statistic')} was claimed, and the pairs give {found.statistic:.10g}"


def _planted(result: Mapping[str, Any]) -> Iterator[str]:
    hits, n = result.get("hits"), result.get("n")
    if not is_int(hits) or not is_int(n) or not 0 <= int(hits or 0) <= int(n or 0) <= MOST:
        yield f"{hits} right answers of {n} are no counts"
        return
    log10 = binomial.binomial_log10_sf(int(hits or 0), int(n or 0), 1 / len(ANSWERS)) if n else 0.0
    if not _same(result.get("log10_pvalue"), log10):
        yield f"log10 p {result.get('log10_pvalue')} was claimed, and {hits} of {n} give {log10:.10g}"


def _same(claimed: Any, found: Any) -> bool:
    """Whether two numbers are alike up to rounding."""
    if not is_number(claimed) or not is_number(found):
        return bool(claimed == found)
    return math.isclose(float(claimed), float(found), rel_tol=CLOSE, abs_tol=CLOSE)


def _adjustment(said: Statement) -> Iterator[str]:
    """Holm's adjustment, which tests stand by it, and a verdict that fits."""
    tests, alpha = _tests(said), said.plan.alpha
    raw = [one.get("log10_pvalue") for one in tests]
    if not all(is_number(one) and -math.inf < float(one or 0) <= 0 for one in raw):
        yield f"the log10 p-values {str(raw)[:200]} are not all finite numbers that are at most 0"
        return
    adjusted = holm(np.array(raw, np.float64)).tolist() if raw else []
    stand = 0
    for one, value in zip(tests, adjusted, strict=True):
        name, claimed = _text(one, "test"), one.get("log10_pvalue_adjusted")
        if not _same(claimed, value):
            yield f"{name}: log10 p {claimed} after Holm was claimed, and it is {value:.10g}"
        stands = bool(value <= math.log10(alpha))
        stand += stands
        if one.get("stands") is not stands:
            yield f"{name}: 'stands' is to be {stands} at alpha {alpha:g}, and is {one.get('stands')}"
    verdict = said.result.get("verdict")
    fits = verdict in (UNRELATED, CANNOT_TELL) if stand == 0 else verdict in VERDICTS and verdict != UNRELATED
    if not fits:
        yield f"the verdict is '{str(verdict)[:40]}', and {plural(stand, 'test')} of {len(tests)} stand"


def _tests(said: Statement) -> list[dict[str, Any]]:
    return [one for one in _list(said.result, "tests") if isinstance(one, dict)]


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    return value if isinstance(value, list) else []


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return str(value) if is_text(value) else ""
