"""Signatures by an identity: Sigstore's own client signs and checks against a small Sigstore on loopback."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
from click.testing import Result as Answer

import verify
from tests.keyless import Sigstore, new_key
from tests.test_light import HIDE
from tests.test_recompute import written
from verify.evidence.check import check_bundle
from verify.evidence.checked import DIFFERS, HOLDS, OPEN, Checked
from verify.evidence.identity import sign_file
from verify.evidence.signing import new_key as new_signing_key
from verify.evidence.standing import standing_of
from watermark import ApiError, GreenList, InputError, Mark, UsageError

Run = Callable[..., Answer]
Fields = dict[str, Any]

ROOT: Final = Path(__file__).parent.parent
WHO: Final = "owner@example.com"
BY: Final = "https://accounts.example.com"


@dataclass(frozen=True)
class Here:
    """A bundle, signed by a Sigstore; its trust configurations; and another Sigstore's."""

    folder: Path
    sigstore: Sigstore
    mark: Mark

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle.json"

    def check(self, **more: Any) -> Checked:
        """What the check says of the signature."""
        named: Fields = {"identity": WHO, "issuer": BY, "trust_config": self.folder / "trusted.json"} | more
        bundle = named.pop("bundle", self.bundle)
        return next(one for one in check_bundle(bundle, **named).checks if one.name == "sigstore")

    def signature(self) -> Fields:
        """The Sigstore bundle."""
        found: Fields = json.loads((self.folder / "bundle.json.sigstore.json").read_text())
        return found


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the client keeps what it knows of the public instance."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("sigstore")
    mark = Mark(bytes(range(32)), GreenList(gamma=0.3, delta=2.0), exempt=(0, 7), vocabulary_size=40)
    rows = written(mark, 3, tilt=0.6, records=2)
    (folder / "text.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    verify.suspect(folder / "text.jsonl", mark=mark, out=folder / "case")
    new_signing_key(folder / "key")
    verify.make_bundle(folder / "case", folder / "key", folder / "bundle.json")
    found, other = Sigstore(), Sigstore()
    (folder / "other.json").write_text(json.dumps(other.trusted()))
    (folder / "token").write_text(found.token(WHO, BY) + "\n")
    with found.serve(folder):
        made = sign_file(folder / "bundle.json", trust_config=folder / "sign.json", identity_token=folder / "token")
    assert (made["identity"], made["issuer"]) == (WHO, BY)
    return Here(folder, found, mark)


# --- what holds ---


def test_a_signature_holds_offline(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> NoReturn:
        raise AssertionError("no network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    for trust in ("trusted.json", "sign.json"):
        found = here.check(trust_config=here.folder / trust)
        assert (found.status, found.differences) == (HOLDS, ())
        assert found.against.startswith(f"{WHO}, confirmed by {BY}, by the trust configuration")
        assert ", in the log since 20" in found.against


def test_report_and_verify_say_that_there_is_one(here: Here, stillmark: Run) -> None:
    """It stood beside the bundle in the folder, and nothing was said of it."""
    case = here.folder / "signed"
    shutil.copytree(here.folder / "case", case)
    shutil.copy(here.bundle, case / "bundle.json")
    assert "sigstore" not in [one.name for one in standing_of(case).checks]
    shutil.copy(f"{here.bundle}.sigstore.json", case / "bundle.json.sigstore.json")
    last = standing_of(case).checks[-1]
    assert (last.name, last.status) == ("sigstore", OPEN)
    assert f"{case / 'bundle.json.sigstore.json'} says that it is a signature by an identity: anybody" in last.against
    found = verify.suspect(here.folder / "text.jsonl", mark=here.mark, out=case)
    assert "sigstore: not checked: no identity, issuer and trust" in " ".join(str(found).split())
    named = ("--identity", WHO, "--issuer", BY, "--trust-config", here.folder / "trusted.json")
    for who, status in (((), OPEN), (named, HOLDS), (("--identity", "other@example.com", *named[2:]), DIFFERS)):
        assert stillmark("report", case, *who).exit_code == 0
        page = (case / "report.html").read_text()
        assert f'>sigstore</th><td role="cell"><b>{status}</b>' in page
        assert (f"{WHO}, confirmed by {BY}" in page) == (status == HOLDS)
    assert stillmark("report", here.folder / "case", *named).exit_code == 2, "no bundle, and somebody named"


def test_another_program_checks_it(here: Here) -> None:
    """As docs/forensics.md says: the command of Sigstore's own client, on the two files."""
    named = ["--trust-config", str(here.folder / "sign.json"), "verify", "identity", "--offline"]
    for who, code in ((WHO, 0), ("other@example.com", 1)):
        words = [*named, "--bundle", f"{here.bundle}.sigstore.json", "--cert-identity", who, "--cert-oidc-issuer", BY]
        done = subprocess.run(
            [sys.executable, "-m", "sigstore", *words, str(here.bundle)], capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr


def test_the_commands(here: Here, stillmark: Run, tmp_path: Path) -> None:
    words = (
        "evidence",
        "sign",
        here.bundle,
        "--identity-token",
        here.folder / "token",
        "--out",
        tmp_path / "s",
        "--json",
    )
    with here.sigstore.serve(tmp_path):
        done = stillmark(*words, "--trust-config", tmp_path / "sign.json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["identity"] == WHO
    named = ("--identity", WHO, "--issuer", BY, "--trust-config", tmp_path / "trusted.json")
    found = stillmark("evidence", "check", here.bundle, "--sigstore", tmp_path / "s", *named)
    assert found.exit_code == 0
    assert f"sigstore: holds: {WHO}, confirmed by {BY}" in " ".join(found.stdout.split())
    other = stillmark("evidence", "check", here.bundle, *named[:3], "https://other.example.com", *named[4:])
    assert other.exit_code == 1


def test_nobody_is_trusted_by_default(here: Here, tmp_path: Path) -> None:
    found = here.check(identity=None, issuer=None, trust_config=None)
    assert found.status == OPEN
    assert "no identity, issuer and trust configuration were named" in found.against
    for missing in ("identity", "issuer", "trust_config"):
        for nothing in (None, ""):
            with pytest.raises(UsageError, match="go together"):
                here.check(**{missing: nothing})
    (tmp_path / "bundle.json").write_bytes(here.bundle.read_bytes())
    assert all(one.name != "sigstore" for one in check_bundle(tmp_path / "bundle.json").checks)
    with pytest.raises(InputError, match=r"bundle\.json\.sigstore\.json"):
        here.check(bundle=tmp_path / "bundle.json")
    for text in ("{}", "x", json.dumps({"mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"})):
        (tmp_path / "trust").write_text(text)
        with pytest.raises(InputError):
            here.check(trust_config=tmp_path / "trust")


# --- what does not ---


def test_another_identity_issuer_or_sigstore_is_named(here: Here) -> None:
    for change, words in (
        ({"identity": "other@example.com"}, f"do not match other@example.com; actual SANs: {{'{WHO}'}}"),
        ({"issuer": "https://other.example.com"}, f"(got '{BY}', expected 'https://other.example.com')"),
        ({"trust_config": here.folder / "other.json"}, "certificate chain"),
        ({"trust_config": "public"}, "certificate chain"),
    ):
        found = here.check(**change)
        assert found.status == DIFFERS
        assert "holds no signature of this file by" in found.differences[0]
        assert words in found.differences[0], found.differences


def test_an_altered_bundle_is_named(here: Here, tmp_path: Path) -> None:
    """Re-signed by the owner's key, so that the envelope is whole; Sigstore's signature is of the bytes of before."""
    verify.make_bundle(here.folder / "case", here.folder / "key", tmp_path / "b", confidential=True)
    found = here.check(bundle=tmp_path / "b", sigstore=here.folder / "bundle.json.sigstore.json")
    assert found.status == DIFFERS
    assert "was signed, and" in found.differences[0]


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON object are."""
    if isinstance(value, dict | list):
        several = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, one in several for found in leaves(one, (*at, key))]
    return [at]


def test_whatever_is_altered_in_the_signature_is_named(here: Here, tmp_path: Path) -> None:
    """Each value in turn: certificate, signature, and the log's entry with its proof, checkpoint, promise and time."""
    path, whole = tmp_path / "s", here.signature()
    places = leaves(whole)
    assert len(places) > 15
    for at in places:
        other = json.loads(json.dumps(whole))
        holder = functools.reduce(lambda one, key: one[key], at[:-1], other)
        value = holder[at[-1]]
        if value.isdigit():
            changes = [str(int(value) + 1)]
        else:
            middle = len(value) // 2
            changes = [value[:middle] + ("A" if value[middle] != "A" else "B") + value[middle + 1 :], "", value[:-8]]
        for changed in changes:
            holder[at[-1]] = changed
            path.write_text(json.dumps(other))
            found = here.check(sigstore=path)
            assert found.status == DIFFERS, (at, changed)
            assert len(found.differences[0]) > 100
        del holder[at[-1]]
        path.write_text(json.dumps(other))
        assert here.check(sigstore=path).status == DIFFERS, f"without {at}"


def test_another_signatures_parts_are_named(here: Here, tmp_path: Path) -> None:
    """The log's entry of another file, by the same identity; and the certificate of another identity."""
    path, whole = tmp_path / "s", here.signature()
    with here.sigstore.serve(tmp_path):
        (tmp_path / "token").write_text(here.sigstore.token("other@example.com", BY))
        (tmp_path / "f").write_text("another file")
        for name, token in (("own", here.folder / "token"), ("other", tmp_path / "token")):
            out = tmp_path / name
            sign_file(tmp_path / "f", trust_config=tmp_path / "sign.json", identity_token=token, out=out)
            signed = json.loads(out.read_text())
            for part in ("tlogEntries", "certificate"):
                material = whole["verificationMaterial"] | {part: signed["verificationMaterial"][part]}
                path.write_text(json.dumps(whole | {"verificationMaterial": material}))
                assert here.check(sigstore=path).status == DIFFERS, (name, part)
    for text in (b"", b"{}", b"[]", b"\xff", b'{"messageSignature": 5}', b"[" * 10_000):
        path.write_bytes(text)
        assert here.check(sigstore=path).status == DIFFERS


# --- signing ---


def test_who_signs_must_have_a_token(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, none that is valid, one that nobody made: refused, and nothing of it is quoted or written."""
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI", "GOOGLE_SERVICE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    out, token = tmp_path / "s", tmp_path / "token"
    with here.sigstore.serve(tmp_path):
        sign = functools.partial(sign_file, here.bundle, trust_config=tmp_path / "sign.json", out=out)
        forged = Sigstore(secret=b"another").token(WHO, BY)
        for text, error in (
            ("nonsense-of-a-token", InputError),
            (here.sigstore.token(WHO, BY, exp=1), InputError),
            (here.sigstore.token(WHO, BY, aud="another"), InputError),
            (forged, ApiError),
        ):
            token.write_text(text)
            with pytest.raises(error) as raised:
                sign(identity_token=token)
            assert text not in str(raised.value)
            assert text.split(".")[-1] not in str(raised.value)
        with pytest.raises(InputError, match="no trust configuration of a client"):
            sign_file(here.bundle, trust_config=tmp_path / "trusted.json", identity_token=here.folder / "token")
    with pytest.raises(ApiError, match="Sigstore did not sign"):
        sign(identity_token=here.folder / "token")
    assert not out.exists()


@pytest.mark.parametrize("key", ["log", "certificates", "authority"])
def test_a_signature_that_does_not_hold_is_not_kept(here: Here, tmp_path: Path, key: str) -> None:
    """A server that is not the one of the configuration: another key of the log, or of the authority."""
    false = Sigstore(secret=here.sigstore.secret)
    if key != "authority":
        false = Sigstore(here.sigstore.authority, here.sigstore.certificates, here.sigstore.log, here.sigstore.secret)
        false.root = here.sigstore.root
        setattr(false, key, new_key())
    with false.serve(tmp_path):
        config = json.loads((tmp_path / "sign.json").read_text()) | {"trustedRoot": here.sigstore.trusted()}
        (tmp_path / "sign.json").write_text(json.dumps(config))
        with pytest.raises(ApiError, match="Sigstore did not sign"):
            sign_file(
                here.bundle,
                trust_config=tmp_path / "sign.json",
                identity_token=here.folder / "token",
                out=tmp_path / "s",
            )
    assert not (tmp_path / "s").exists()


def test_without_the_extra(here: Here) -> None:
    code = HIDE + "from verify.cli import main; main()"
    words = ["evidence", "check", here.bundle, "--identity", WHO, "--issuer", BY, "--trust-config", "public"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 1
    assert "stillmark[sigstore]" in " ".join(done.stderr.split())
