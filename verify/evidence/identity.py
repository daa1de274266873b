"""Signatures by an identity instead of a key: Sigstore, the extra `sigstore`.

A file is signed with a key that lives for some minutes. A certificate authority (Fulcio) binds this key to an identity
that an OpenID provider confirmed, and a public log (Rekor) holds the signature. Certificate, signature and the log's
entry are a Sigstore bundle in a file of its own, which other programs check as well.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from verify.evidence.checked import OPEN, Checked, checked
from verify.evidence.inputs import object_in
from watermark import ApiError, InputError, StillmarkError, UsageError
from watermark.extras import require
from watermark.io import files
from watermark.io.fields import load_object

PathLike = str | Path

ENDING: Final = ".sigstore.json"
"""Of the Sigstore bundle of a file, behind the file's name."""
PUBLIC: Final = "public"
"""The trust configuration of Sigstore's public instance, as the installed package knows it."""
CLIENT: Final = "clienttrustconfig"
"""In the media type of a configuration to sign and check with; any other is one to check with alone."""
ISSUER: Final = "1.3.6.1.4.1.57264.1.1"
"""The extension of a certificate that names the OpenID provider; its bytes are the name."""
MAX_BYTES: Final = 1 << 20


def sign_file(
    path: PathLike, *, trust_config: PathLike, identity_token: PathLike | None = None, out: PathLike | None = None
) -> dict[str, Any]:
    """Sign a file by Sigstore, and keep the Sigstore bundle beside it.

    The log is public: everybody sees the identity, the time, and the SHA-256 of the file, for ever.

    Args:
        path: the file, such as a bundle or a plan.
        trust_config: file of a client's trust configuration, which says where to ask and whom to trust; or `public`.
        identity_token: file of an OpenID token for the audience `sigstore`; None: what the environment offers, as jobs
            of GitHub Actions or GitLab do.
        out: where to keep it; None: `PATH.sigstore.json`.

    Returns:
        what was written: `out`, `identity` and `issuer`, as others name them to check it, and `time`, that of the log.

    Raises:
        UsageError: there is no identity token.
        ApiError: Sigstore refuses, cannot be reached, or answers with something that is not trusted.
        InputError: a file cannot be read or written, or is none of its kind.
        MissingExtraError: sigstore is not installed.
    """
    require("sigstore")
    from sigstore.sign import SigningContext

    data, trusted, token = files.read_bytes(Path(path)), _client(trust_config), _token(identity_token)
    try:
        with SigningContext.from_trust_config(trusted).signer(token) as signer:
            made = signer.sign_artifact(data)
        identity, issuer = _named(made.signing_certificate)
        whole = (made.to_json() + "\n").encode()
        time = _verified(whole, data, trusted.trusted_root, identity, issuer)
    except Exception as error:  # the library's own have no common base, and those of requests pass through it
        raise ApiError(f"Sigstore did not sign: {_first(error)}") from None
    kept = Path(f"{path}{ENDING}") if out is None else Path(out)
    with files.writing(kept):
        files.replace(kept, whole)
    return {"out": str(kept), "identity": identity, "issuer": issuer, "time": time}


def _client(trust: PathLike) -> Any:
    """Where to ask, and whom to trust. Raises InputError, ApiError."""
    from sigstore.models import ClientTrustConfig

    if str(trust) == PUBLIC:
        try:
            return ClientTrustConfig.production()
        except Exception as error:
            raise ApiError(f"Sigstore's public instance does not say whom to trust: {_first(error)}") from None
    data = files.read_bytes(Path(trust), "trust configuration")
    try:
        return ClientTrustConfig.from_json(data.decode())
    except ValueError as error:
        raise InputError(trust, 0, f"no trust configuration of a client of Sigstore: {_first(error)}") from None


def _token(path: PathLike | None) -> Any:
    """An identity token of a file, or of the environment. Raises UsageError, InputError."""
    from sigstore.oidc import IdentityError, IdentityToken, detect_credential

    try:
        raw = detect_credential() if path is None else files.read_bytes(Path(path), "identity token").decode("latin-1")
        if raw is None:
            hint = "name the file of an `identity_token`; `sigstore get-identity-token` asks for one in a browser"
            raise UsageError("the environment offers no identity", hint)
        return IdentityToken(raw.strip())
    except IdentityError:  # nothing of a token is quoted
        where = "the environment" if path is None else path
        raise InputError(where, 0, "no valid OpenID token for the audience 'sigstore'") from None


def check_identity(
    path: Path, data: bytes, sigstore: PathLike | None, identity: str | None, issuer: str | None, trust: PathLike | None
) -> list[Checked]:
    """Who signed a file, by its Sigstore bundle; nothing where there is none and nobody was named.

    Args:
        path, data: the file, and its bytes.
        sigstore: file of the Sigstore bundle; None: the one beside the file, if it is there.
        identity, issuer: who should have signed it, and the OpenID provider that should have confirmed it.
        trust: file of a trust configuration, or `public`.

    Raises:
        UsageError: of identity, issuer and trust one was named, and another was not.
        InputError: a file that was named cannot be read, or there is no Sigstore bundle.
        MissingExtraError: sigstore is not installed.
    """
    beside = Path(f"{path}{ENDING}") if sigstore is None else Path(sigstore)
    if identity is None and issuer is None and trust is None:
        if sigstore is None and not beside.exists():
            return []
        lacking = f"no identity, issuer and trust configuration were named; {beside} says that it is a signature by an "
        lacking += "identity: anybody could have made it"
        return [Checked("sigstore", OPEN, lacking)]
    if not identity or not issuer or not trust:  # of an empty issuer the library would ask nothing
        raise UsageError("`identity`, `issuer` and `trust_config` go together", "nobody is trusted by default")
    require("sigstore")
    said = files.read_bytes(beside)
    root, against = _root(trust), f"{identity}, confirmed by {issuer}, by the trust configuration {trust}"
    try:
        time = _verified(said, data, root, identity, issuer)
    except StillmarkError as error:
        said_of_it = f"{beside} holds no signature of this file by {identity}, confirmed by {issuer}: {error}"
        return [checked("sigstore", against, [said_of_it])]
    return [checked("sigstore", against + (f", in the log since {time}" if time else ""), [])]


def _verified(said: bytes, data: bytes, root: Any, identity: str, issuer: str) -> str:
    """When the log entered a signature that holds. Raises StillmarkError, which says what is wrong."""
    from sigstore.models import Bundle
    from sigstore.verify import Verifier
    from sigstore.verify.policy import Identity

    if len(said) > MAX_BYTES:
        raise StillmarkError(f"it has more than {MAX_BYTES:,} bytes")
    try:
        bundle = Bundle.from_json(said)
        signed = load_object(said).get("messageSignature", {}).get("messageDigest", {}).get("digest")
        there = hashlib.sha256(data).digest()
        if signed is not None and base64.b64decode(signed) != there:
            raise StillmarkError(
                f"SHA-256 {base64.b64decode(signed).hex()[:16]}... was signed, and {there.hex()[:16]}... is there"
            )
        Verifier(trusted_root=root).verify_artifact(data, bundle, Identity(identity=identity, issuer=issuer))
        return _logged(load_object(said))
    except Exception as error:  # its own, and those of the parsers below it, which see what a stranger wrote
        raise StillmarkError(_first(error)) from None


def _root(trust: PathLike) -> Any:
    """Whom to trust. Raises InputError."""
    from sigstore.models import ClientTrustConfig, TrustedRoot

    public = str(trust) == PUBLIC
    fields = {} if public else object_in(Path(trust))
    try:
        if public:
            return ClientTrustConfig.production(offline=True).trusted_root
        if CLIENT in str(fields.get("mediaType")):
            return ClientTrustConfig.from_json(Path(trust).read_text()).trusted_root
        return TrustedRoot.from_file(str(trust))
    except Exception as error:  # the library's, and those of the parsers below it
        raise InputError(trust, 0, f"no trust configuration of Sigstore: {_first(error)}") from None


def _named(certificate: Any) -> tuple[str, str]:
    """The identity in a certificate, and who confirmed it."""
    from cryptography.x509 import ExtensionNotFound, ObjectIdentifier, SubjectAlternativeName

    identity = issuer = ""
    with suppress(ExtensionNotFound, IndexError):
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
        identity = str(getattr(names[0], "value", ""))
        issuer = certificate.extensions.get_extension_for_oid(ObjectIdentifier(ISSUER)).value.value.decode()
    return identity, issuer


def _logged(fields: dict[str, Any]) -> str:
    """When the log says that it entered a signature; empty where it does not sign the time."""
    entry = fields["verificationMaterial"]["tlogEntries"][0]
    if not entry.get("inclusionPromise") or not entry.get("integratedTime"):
        return ""
    return datetime.fromtimestamp(int(entry["integratedTime"]), UTC).isoformat(timespec="seconds")


def _first(error: Exception) -> str:
    """The first line of an error, as one sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
