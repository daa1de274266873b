"""Envelopes: a payload under a signature by Ed25519, as DSSE has it, and the keys for that."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from watermark import InputError, StillmarkError
from watermark.extras import require
from watermark.io import files
from watermark.io.fields import JsonError, is_text, load_object

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_BYTES: Final = 1 << 30
"""Of a bundle."""
MAKE_KEYS: Final = "make both keys with: stillmark evidence key"

_NONE: Final = "no signed bundle or answer (a DSSE envelope)"


def new_key(path: str | Path) -> str:
    """A new key to sign bundles with: the private one in a new file of mode 0600, the public one beside it, `PATH.pub`.

    Both are PEM, as openssl writes them. Returns the id of the key, 64 hex digits.

    Raises:
        InputError: a file exists, or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    path = Path(path)
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for one, data in ((path, secret), (path.with_name(path.name + ".pub"), public)):
        with files.writing(one):
            try:
                files.create(one, data, private=one == path)
            except FileExistsError:
                raise InputError(one, 0, "exists already", "keys are never overwritten") from None
    return str(read_key(path.with_name(path.name + ".pub")).keyid)


def read_key(path: str | Path) -> Any:
    """A public key in PEM, for `securesystemslib`.

    Raises:
        InputError: there is none of Ed25519.
        MissingExtraError: securesystemslib is not installed.
    """
    require("securesystemslib")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    data = files.read_bytes(Path(path), "public key")
    try:
        key = load_pem_public_key(data)
    except ValueError:
        raise InputError(path, 0, "no public key in PEM", f"for example {path}.pub") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(path, 0, "a key of another kind than Ed25519")
    return SSlibKey.from_crypto(key)


@dataclass(frozen=True)
class Envelope:
    """A payload and its signatures.

    Attributes:
        payload: the bytes that were signed.
        payload_type: what they are.
        signatures: of each key, by its id, in hex.
    """

    payload: bytes
    payload_type: str
    signatures: dict[str, str]

    def to_bytes(self) -> bytes:
        """The file: one line of JSON with its keys in order."""
        made = {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": keyid, "sig": base64.b64encode(bytes.fromhex(sig)).decode()}
                for keyid, sig in self.signatures.items()
            ],
        }
        return (json.dumps(made, sort_keys=True) + "\n").encode()

    def signed_by(self, key: Any) -> bool:
        """Whether the key (from `read_key`) signed it."""
        from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
        from securesystemslib.signer import Signature

        sig = self.signatures.get(key.keyid)
        if sig is None:
            return False
        try:
            key.verify_signature(Signature(key.keyid, sig), _whole(self).pae())
        except (UnverifiedSignatureError, VerificationError):
            return False
        return True


def _whole(envelope: Envelope) -> Any:
    from securesystemslib.dsse import Envelope as Dsse

    return Dsse(envelope.payload, envelope.payload_type, {})


def signed(payload: bytes, key: str | Path, payload_type: str = PAYLOAD_TYPE) -> Envelope:
    """A payload under a signature. key: file of a private key in PEM, without a password.

    Raises:
        InputError: the file holds no private key of Ed25519.
        MissingExtraError: securesystemslib is not installed.
    """
    require("securesystemslib")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    data = files.read_bytes(Path(key), "key", MAKE_KEYS)
    try:
        private = load_pem_private_key(data, None)
    except (ValueError, TypeError):  # nothing of the file is quoted
        raise InputError(key, 0, "no private key in PEM without a password", MAKE_KEYS) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(key, 0, "a key of another kind than Ed25519", MAKE_KEYS)
    signature = _whole(bare := Envelope(payload, payload_type, {})).sign(CryptoSigner(private))
    return Envelope(bare.payload, bare.payload_type, {signature.keyid: signature.signature})


def read_envelope(data: bytes, payload_type: str = PAYLOAD_TYPE) -> Envelope:
    """An envelope from its file's bytes, which must be those that `Envelope.to_bytes` gives: each byte has a meaning.

    Raises:
        StillmarkError: they are not.
    """
    try:
        fields = load_object(data)
    except JsonError as error:
        raise StillmarkError(f"{_NONE}: {error}") from None
    signatures = fields.get("signatures")
    if not is_text(fields.get("payload")) or not is_text(fields.get("payloadType")) or not isinstance(signatures, list):
        raise StillmarkError(f"{_NONE}: want 'payload', 'payloadType' and 'signatures'")
    found: dict[str, str] = {}
    for one in signatures:
        if not isinstance(one, dict) or not is_text(one.get("keyid")) or not is_text(one.get("sig")):
            raise StillmarkError(f"{_NONE}: a signature has 'keyid' and 'sig'")
        found[one["keyid"]] = _bytes(one["sig"]).hex()
    envelope = Envelope(_bytes(fields["payload"]), fields["payloadType"], found)
    if envelope.to_bytes() != data:
        raise StillmarkError("the envelope is not written as it was: one line of JSON, with its keys in order")
    if envelope.payload_type != payload_type:
        raise StillmarkError(f"the payload was to be {payload_type}, and is {envelope.payload_type[:80]!r}")
    return envelope


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise StillmarkError(f"{_NONE}: a value is no base64") from None
