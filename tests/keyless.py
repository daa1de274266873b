"""A small Sigstore on loopback: a certificate authority, a log of its certificates, and a log of signatures.

It does what the client of Sigstore checks: certificates of ten minutes with the identity of a token, each with a signed
certificate timestamp (RFC 6962), and log entries with an inclusion proof, a signed checkpoint and a signed time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests import servers

Fields = dict[str, Any]

ISSUED_BY = "1.3.6.1.4.1.57264.1.1"
TIMESTAMPS = "1.3.6.1.4.1.11129.2.4.2"
HOUR = timedelta(hours=1)
ORIGIN = "log.here"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def public(key: EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(public(key)).digest()


def new_key() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


def root_of(leaves: list[bytes]) -> bytes:
    """Of RFC 6962: leaves are hashes."""
    if len(leaves) == 1:
        return leaves[0]
    left = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + root_of(leaves[:left]) + root_of(leaves[left:])).digest()


def path_of(leaves: list[bytes], place: int) -> list[bytes]:
    """The inclusion proof of a leaf."""
    if len(leaves) == 1:
        return []
    left = 1 << (len(leaves) - 1).bit_length() - 1
    if place < left:
        return [*path_of(leaves[:left], place), root_of(leaves[left:])]
    return [*path_of(leaves[left:], place - left), root_of(leaves[:left])]


@dataclass
class Sigstore:
    """The keys, the log, and the secret that identity tokens are made with."""

    authority: EllipticCurvePrivateKey = field(default_factory=new_key)
    certificates: EllipticCurvePrivateKey = field(default_factory=new_key)
    log: EllipticCurvePrivateKey = field(default_factory=new_key)
    secret: bytes = b"of the OpenID provider"
    leaves: list[bytes] = field(default_factory=lambda: [hashlib.sha256(bytes([i])).digest() for i in range(5)])

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        now = datetime.now(UTC)
        self.root = (
            x509.CertificateBuilder(name, name, self.authority.public_key(), x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + 24 * HOUR)
            .add_extension(x509.BasicConstraints(True, 0), True)
            .add_extension(usage, True)
            .add_extension(identifier, False)
            .sign(self.authority, SHA256())
        )

    def token(self, email: str, issuer: str, **more: Any) -> str:
        """An identity token, as an OpenID provider makes it."""
        now = int(datetime.now(UTC).timestamp())
        claims = {"iss": issuer, "sub": email, "email": email, "aud": "sigstore", "iat": now, "exp": now + 600} | more
        parts = [json.dumps(one).encode() for one in ({"alg": "HS256", "typ": "JWT"}, claims)]
        text = ".".join(base64.urlsafe_b64encode(one).rstrip(b"=").decode() for one in parts)
        return f"{text}.{self._sealed(text)}"

    def _sealed(self, text: str) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self.secret, text.encode(), "sha256")).rstrip(b"=").decode()

    def claims(self, authorization: str) -> Fields | None:
        """What a token says; None: nobody made it."""
        text, _, seal = authorization.removeprefix("Bearer ").rpartition(".")
        if not hmac.compare_digest(seal, self._sealed(text)):
            return None
        body = text.split(".")[1]
        found: Fields = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return found

    def certificate(self, request: x509.CertificateSigningRequest, email: str, issuer: str) -> x509.Certificate:
        """A certificate of a key for an identity, with a timestamp of the log of certificates in it."""
        now = datetime.now(UTC)
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = (
            x509.CertificateBuilder(self.root.subject, x509.Name([]), request.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=1))
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(usage, True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), False)
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(email)]), True)
            .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(ISSUED_BY), issuer.encode()), False)
        )
        bare = builder.sign(self.authority, SHA256()).tbs_certificate_bytes
        head = struct.pack("!BBQH", 0, 0, when := int(now.timestamp() * 1000), 1)
        signed = head + key_id(self.authority) + len(bare).to_bytes(3, "big") + bare + b"\0\0"
        signature = self.certificates.sign(signed, ECDSA(SHA256()))
        stamp = b"\0" + key_id(self.certificates) + struct.pack("!QHBBH", when, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(stamp) + 2, len(stamp)) + stamp
        wrapped = bytes([4, len(listed)]) + listed
        assert len(listed) < 128, "a length of one byte"
        stamps = x509.UnrecognizedExtension(x509.ObjectIdentifier(TIMESTAMPS), wrapped)
        return builder.add_extension(stamps, False).sign(self.authority, SHA256())

    def entry(self, proposed: Fields) -> Fields:
        """An entry of the log, with its proofs."""
        body = json.dumps(proposed, sort_keys=True, separators=(",", ":")).encode()
        self.leaves.append(hashlib.sha256(b"\0" + body).digest())
        place, root = len(self.leaves) - 1, root_of(self.leaves)
        note = f"{ORIGIN}\n{len(self.leaves)}\n{b64(root)}\n"
        sealed = key_id(self.log)[:4] + self.log.sign(note.encode(), ECDSA(SHA256()))
        found = {
            "body": b64(body),
            "integratedTime": int(datetime.now(UTC).timestamp()),
            "logID": key_id(self.log).hex(),
            "logIndex": place,
        }
        promise = json.dumps(found, sort_keys=True, separators=(",", ":")).encode()
        proof = {
            "checkpoint": f"{note}\n\u2014 {ORIGIN} {b64(sealed)}\n",
            "hashes": [one.hex() for one in path_of(self.leaves, place)],
            "logIndex": place,
            "rootHash": root.hex(),
            "treeSize": len(self.leaves),
        }
        seal = b64(self.log.sign(promise, ECDSA(SHA256())))
        return {"0": found | {"verification": {"inclusionProof": proof, "signedEntryTimestamp": seal}}}

    def answer(self, body: Fields, handler: servers.Handler) -> Fields | None:
        """What the authority or the log says to a request."""
        if handler.path == "/api/v1/log/entries":
            return self.entry(body)
        claims = self.claims(handler.headers["Authorization"])
        if claims is None:
            handler.reply(401, b'{"message": "nobody made this token"}')
            return None
        request = x509.load_pem_x509_csr(base64.b64decode(body["certificateSigningRequest"]))
        chain = [self.certificate(request, claims["email"], claims["iss"]), self.root]
        pem = [one.public_bytes(Encoding.PEM).decode() for one in chain]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": pem}}}

    def trusted(self, url: str = "http://127.0.0.1:1") -> Fields:
        """Whom to trust, to check with."""
        since = {"start": (datetime.now(UTC) - HOUR).isoformat()}

        def log(key: EllipticCurvePrivateKey) -> Fields:
            known = {"rawBytes": b64(public(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
            return {
                "baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": known, "logId": {"keyId": b64(key_id(key))},
            }  # fmt: skip

        chain = {"certificates": [{"rawBytes": b64(self.root.public_bytes(Encoding.DER))}]}
        subject = {"organization": "here", "commonName": "authority"}
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log)],
            "certificateAuthorities": [{"subject": subject, "uri": url, "certChain": chain, "validFor": since}],
            "ctlogs": [log(self.certificates)],
        }

    def config(self, url: str) -> Fields:
        """Where to ask, and whom to trust, to sign with."""
        service = {"url": url, "majorApiVersion": 1, "operator": "here"}
        asked = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service], "oidcUrls": [service], "rekorTlogUrls": [service], "tsaUrls": [],
            "rekorTlogConfig": {"selector": "ANY"}, "tsaConfig": {"selector": "ANY"},
        }  # fmt: skip
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self.trusted(url),
            "signingConfig": asked,
        }

    @contextmanager
    def serve(self, folder: Path) -> Iterator[None]:
        """While it answers, `sign.json` and `trusted.json` in the folder are its trust configurations."""
        with servers.serve(self.answer) as (url, _):
            (folder / "sign.json").write_text(json.dumps(self.config(url.removesuffix("/v1"))))
            (folder / "trusted.json").write_text(json.dumps(self.trusted()))
            yield
