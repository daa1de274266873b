"""Check a bundle, offline and without torch: every promise that it holds against what is there.

Nothing is trusted by default. A check says against what it was made; one that needs something that was not named says
so, and counts neither for the bundle nor against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from verify.evidence.checked import CheckResult, checked
from verify.evidence.claims import text_in
from verify.evidence.consistent import check_result
from verify.evidence.identity import check_identity
from verify.evidence.inputs import input_of, object_in
from verify.evidence.promises import (
    check_calibration,
    check_commitment,
    check_files,
    check_plan,
    check_signature,
    check_timestamp,
    published_card,
)
from verify.evidence.recount import check_adjustment, check_coins, check_pairs, check_proofs, check_pvalues, revealed
from verify.evidence.signing import MAX_BYTES, read_envelope, read_key
from verify.evidence.statement import opened, read_statement
from verify.lineage.plan import read_plan
from watermark import InputError, Mark, MissingExtraError, StillmarkError
from watermark.io import files
from watermark.mark import as_mark

PathLike = str | Path
T = TypeVar("T", bound=Mark | PathLike)


def check_bundle(
    bundle: PathLike,
    *,
    public_key: PathLike | None = None,
    card: PathLike | Sequence[PathLike] | None = None,
    plan: PathLike | None = None,
    reveal: Mark | PathLike | Sequence[Mark | PathLike] | None = None,
    outputs: Sequence[PathLike] = (),
    opening: PathLike | None = None,
    proofs: PathLike | Sequence[PathLike] | None = None,
    coins: PathLike | Sequence[PathLike] | None = None,
    escrow_key: PathLike | Sequence[PathLike] | None = None,
    tsa: PathLike | None = None,
    tokenizer: PathLike | Sequence[PathLike] | None = None,
    sigstore: PathLike | None = None,
    identity: str | None = None,
    issuer: str | None = None,
    trust_config: PathLike | None = None,
) -> CheckResult:
    """Check a bundle against what is at hand. Offline, and without torch.

    Args:
        bundle: the file.
        public_key: of whoever should have signed it, Ed25519 in PEM.
        card: the card as it was published; several of a bundle of several marks, as of the next ones.
        plan: the plan as it was published.
        reveal: the mark, or its file: the secret is held against the commitment, and the p-values are counted anew.
        outputs: files of the evidence: what the suspect wrote or said, logs, readings.
        opening: the pairs of a confidential bundle.
        proofs: single pairs of a confidential bundle (`stillmark evidence prove`).
        coins: the answer of a third party that holds the secret (`stillmark evidence coins`): the p-values are counted
            anew by its word, and the secret is not needed.
        escrow_key: of that third party, Ed25519 in PEM.
        tsa: certificate (PEM) of the root that the timestamp authority's comes from, after those between.
        tokenizer: folder of the mark's tokenizer, for outputs that have no token ids.
        sigstore: what `stillmark evidence sign` wrote; None: `BUNDLE.sigstore.json`, if it is there.
        identity, issuer: who should have signed it by Sigstore, and the OpenID provider that confirmed it.
        trust_config: whom to trust for that: file of a trust configuration of Sigstore, or `public`.

    Raises:
        UsageError: of `identity`, `issuer` and `trust_config` one was named, and another was not.
        InputError: a file that was named here cannot be read. What is wrong with the bundle is no error, but a
            difference.
        MissingExtraError: securesystemslib, rfc3161-client or sigstore is not installed.

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
    marks = [as_mark(one) for one in _several(reveal)]
    escrow = [read_key(one) for one in _several(escrow_key)]
    shown = None if opening is None else object_in(Path(opening))
    proven = [object_in(Path(one)) for one in _several(proofs)]
    answers = [files.read_bytes(Path(one)) for one in _several(coins)]
    published = [published_card(Path(one)) for one in _several(card)]
    planned = None if plan is None else read_plan(Path(plan))
    given = [Path(one) for one in outputs]
    read = {one: input_of(one, str(one)) for one in given}
    try:
        envelope = read_envelope(data)
    except StillmarkError as error:
        return CheckResult(bundle=str(bundle), checks=(checked("envelope", "its form", [str(error)]),))
    signatures = [check_signature(envelope, key, public_key)]
    signatures += check_identity(path, data, sigstore, identity, issuer, trust_config)
    numbers: dict[str, float] = {}
    try:
        said = read_statement(envelope.payload)
        said, wrong = (said, []) if shown is None else opened(said, shown)
        secrets = revealed(said, marks)
        escrowed = [check_coins(said, data, one, escrow, secrets) for one in answers]
        hits = {name: one for _, found in escrowed for name, one in found.items()}
        checks = (
            *signatures,
            check_plan(said, planned, plan),
            check_timestamp(said, tsa),
            check_commitment(said, marks, published),
            check_files(said, read),
            check_pairs(said, read, wrong, secrets, _several(tokenizer)),
            *(check_proofs(said, one) for one in proven),
            *(one for one, _ in escrowed),
            check_pvalues(said, secrets, hits, numbers),
            check_adjustment(said),
            check_result(said),
            *([] if said.calibration is None else [check_calibration(said)]),
        )
    except (InputError, MissingExtraError):
        raise
    except (StillmarkError, RecursionError) as error:
        said_of_it = str(error) if isinstance(error, StillmarkError) else "it is nested too deeply"
        return CheckResult(bundle=str(bundle), checks=(*signatures, checked("statement", "its form", [said_of_it])))
    return CheckResult(bundle=str(bundle), checks=checks, finding=text_in(said.result, "verdict"), numbers=numbers)


def _several(value: T | Sequence[T] | None) -> list[T]:
    """None, one, or several, as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, Mark | str | Path) else list(value)
