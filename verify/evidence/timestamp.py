"""RFC 3161 timestamps of a plan: asked for over HTTP, and checked offline against an authority's certificate."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from verify.calls import without_login
from verify.lineage.plan import read_plan
from watermark import ApiError, InputError, StillmarkError, UsageError
from watermark.extras import require
from watermark.io import files

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_BYTES: Final = 1 << 20
TIMEOUT: Final = 30.0
SHA256: Final = "2.16.840.1.101.3.4.2.1"


def stamp_plan(plan: str | Path, tsa: str, out: str | Path | None = None) -> datetime:
    """Ask an authority for a timestamp of a plan's file, and keep its answer.

    Only the SHA-256 of the file is sent.

    Args:
        plan: file of the plan.
        tsa: http(s):// address of the authority.
        out: where to keep the answer; None: beside the plan, `PLAN.tsr`, where `verify.suspect` finds it.

    Returns:
        the time in the answer (UTC). Whether it is the authority's is seen by the check of a bundle.

    Raises:
        ApiError: the authority cannot be reached, refuses, or answers with something else.
        InputError: there is no plan, or the answer cannot be written.
        MissingExtraError: rfc3161-client is not installed.
    """
    require("rfc3161_client")
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    if not tsa.startswith(("http://", "https://")):
        raise UsageError("the address of an authority begins with http:// or https://")
    plan = Path(plan)
    message = read_plan(plan).text().encode() + b"\n"
    request = TimestampRequestBuilder().data(message).hash_algorithm(HashAlgorithm.SHA256).build()
    asked = urllib.request.Request(
        tsa, data=request.as_bytes(), headers={"Content-Type": "application/timestamp-query"}, method="POST"
    )
    where = without_login(tsa)
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
            data = answer.read(MAX_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ApiError(f"{where}: no timestamp: {getattr(error, 'reason', error)}") from None
    try:
        found = _response(data)
        if found.tst_info.nonce != request.nonce:
            raise StillmarkError("the answer is to another request")
        stamped = _time(found, message)
    except StillmarkError as error:
        raise ApiError(f"{where}: {error}") from None
    path = Path(f"{plan}.tsr") if out is None else Path(out)
    with files.writing(path):
        files.replace(path, data)
    return stamped


def _response(data: bytes) -> Any:
    from rfc3161_client import PKIStatus, decode_timestamp_response

    if len(data) > MAX_BYTES:
        raise StillmarkError(f"the timestamp has more than {MAX_BYTES:,} bytes")
    try:
        found = decode_timestamp_response(data)
        granted = PKIStatus(found.status) == PKIStatus.GRANTED
    except ValueError:
        raise StillmarkError("no timestamp of RFC 3161") from None
    if not granted:
        raise StillmarkError("the authority granted no timestamp")
    return found


def _time(found: Any, message: bytes) -> datetime:
    """The time of a response, if it is of this message."""
    try:
        info = found.tst_info
        algorithm, imprint = info.message_imprint.hash_algorithm.dotted_string, info.message_imprint.message.hex()
        time: datetime = info.gen_time
    except ValueError:
        raise StillmarkError("no timestamp of RFC 3161") from None
    if algorithm != SHA256:
        raise StillmarkError("the timestamp is of a hash other than SHA-256")
    digest = hashlib.sha256(message).hexdigest()
    if imprint != digest:
        said = f"SHA-256 {digest[:16]}... was wanted, and it is of {imprint[:16]}..."
        raise StillmarkError(f"the timestamp is of another plan: {said}")
    return time.astimezone(UTC)


def claim_of(response: bytes, message: bytes) -> str:
    """When a timestamp says that it was made, and by whom: its own words, which nobody has checked.

    Raises:
        StillmarkError: it is of another message.
        MissingExtraError: rfc3161-client is not installed.
    """
    require("rfc3161_client")
    found = _response(response)
    time = _time(found, message).isoformat(timespec="seconds")
    signer = _signer(found)
    return f"{time}, by {'an authority that it does not name' if signer is None else _named(signer.subject)}"


def _signer(found: Any) -> Certificate | None:
    """The certificate of whoever signed a response, as far as it holds one."""
    from cryptography.x509 import load_der_x509_certificate

    try:
        signer = next(iter(found.signed_data.signer_infos))
        known = map(load_der_x509_certificate, found.signed_data.certificates)
        return next((one for one in known if one.serial_number == signer.serial_number), None)
    except (ValueError, StopIteration):
        return None


def _named(subject: Any) -> str:
    return ", ".join(str(part.value) for part in subject)[:80]


def time_of(response: bytes, message: bytes, certificate: Path) -> datetime:
    """The time at which an authority saw a message, UTC.

    Args:
        response: of RFC 3161, DER.
        message: what was stamped.
        certificate: PEM of the root that the authority's certificate comes from, after those between. The response
            holds the authority's own.

    Raises:
        InputError: the certificate cannot be read.
        StillmarkError: the response is of another message, or not by the authority.
        MissingExtraError: rfc3161-client is not installed.
    """
    require("rfc3161_client")
    from cryptography.x509 import load_pem_x509_certificates
    from rfc3161_client import VerificationError, VerifierBuilder

    try:
        chain = list(dict.fromkeys(load_pem_x509_certificates(files.read_bytes(certificate))))
    except ValueError:
        raise InputError(certificate, 0, "no certificate in PEM") from None
    found = _response(response)
    stamped = _time(found, message)
    builder = VerifierBuilder().add_root_certificate(chain[-1])
    for one in chain[:-1]:
        builder = builder.add_intermediate_certificate(one)
    try:
        builder.build().verify_message(found, message)
    except (VerificationError, ValueError) as error:
        said = _why(_signer(found), chain, stamped) or str(error)[:80]
        raise StillmarkError(f"the timestamp is not by this authority: {said}") from None
    return stamped


def _why(signer: Certificate | None, chain: Sequence[Certificate], stamped: datetime) -> str:
    """Why a response is not by an authority, as far as its certificates tell."""
    if signer is None:
        return "it does not hold the certificate of its signer"
    for one in (signer, *chain):
        first, last = one.not_valid_before_utc, one.not_valid_after_utc
        if not first <= stamped <= last:
            return (
                f"the certificate of {_named(one.subject)} is valid from {first} to {last}, and it is dated {stamped}"
            )
    if signer in chain:
        return f"the certificate is that of its signer, {_named(signer.subject)}: name that of its root as well"
    there, wanted = f"{_named(signer.subject)}, certified by {_named(signer.issuer)}", _named(chain[-1].subject)
    return f"it is signed by {there}, and the authority that was named is {wanted}"
