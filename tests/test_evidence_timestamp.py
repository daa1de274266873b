"""A plan is dated by an authority: one of our own here, made by openssl, on loopback."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result as Answer

import verify
from tests.test_recompute import written
from verify.evidence.bundle import make_bundle
from verify.evidence.check import check_bundle
from verify.evidence.checked import DIFFERS, HOLDS, OPEN, Checked, CheckResult
from verify.evidence.signing import new_key
from verify.evidence.standing import standing_of
from verify.evidence.timestamp import stamp_plan
from watermark import ApiError, GreenList, InputError, Mark, UsageError

Run = Callable[..., Answer]

CONFIG = """
[tsa]
default_tsa = own
[own]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
"""


def openssl(*words: object) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def authority(folder: Path) -> None:
    """A root and a timestamp authority under it, in a folder."""
    folder.mkdir()
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=root")
    openssl(*new, "-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    request = ("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tsa", "-keyout", folder / "tsa.key")
    openssl(*request, "-out", folder / "tsa.csr")
    (folder / "extensions").write_text(
        "keyUsage=critical,digitalSignature\nextendedKeyUsage=critical,timeStamping\nbasicConstraints=CA:FALSE\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    signing = ("x509", "-req", "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "30")
    openssl(*signing, "-in", folder / "tsa.csr", "-extfile", folder / "extensions", "-out", folder / "tsa.pem")
    (folder / "serial").write_text("01\n")
    (folder / "config").write_text(CONFIG.format(folder=folder))


@dataclass(frozen=True)
class Here:
    folder: Path
    url: str
    started: datetime


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """Two authorities, the first of which answers; a mark, outputs, a key, and a plan that it dated."""
    folder = tmp_path_factory.mktemp("tsa")
    for name in ("own", "other"):
        authority(folder / name)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            answer = folder / "answer"
            if self.path == "/nonsense":
                answer.write_bytes(b"no timestamp")
            elif self.path != "/replay":
                openssl("ts", "-reply", "-config", folder / "own" / "config", "-section", "own", "-queryfile",
                        folder / "query", "-out", answer)  # fmt: skip
            self.send_response(500 if self.path == "/broken" else 200)
            self.end_headers()
            self.wfile.write(answer.read_bytes())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    mark = Mark(bytes(range(32)), scheme=GreenList(delta=2.0), width=1, vocabulary_size=40)
    mark.save(folder / "a.mark")
    rows = written(mark, 3, tilt=0.6, records=8)
    (folder / "text.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    new_key(folder / "key")
    verify.make_plan(folder / "text.jsonl", mark=mark).fix(folder / "plan.json")
    started = datetime.now(UTC).replace(microsecond=0)
    url = f"http://127.0.0.1:{server.server_port}"
    stamp_plan(folder / "plan.json", url)
    yield Here(folder, url, started)
    server.shutdown()
    server.server_close()


def bundled(here: Here, case: Path, **more: Any) -> Path:
    """A bundle of a run under the plan that was dated. more: for `make_bundle`."""
    if not case.exists():
        plan = here.folder / "plan.json"
        verify.suspect(here.folder / "text.jsonl", mark=here.folder / "a.mark", plan=plan, out=case)
    made = case.with_suffix(".bundle")
    make_bundle(case, here.folder / "key", made, **more)
    return made


def of_time(found: CheckResult) -> Checked:
    return next(one for one in found.checks if one.name == "timestamp")


def test_a_plan_that_was_dated_before_the_run(here: Here, tmp_path: Path) -> None:
    made = bundled(here, tmp_path / "case")
    assert (tmp_path / "case" / "promised.tsr").exists(), "the timestamp comes with the plan"
    time = of_time(check_bundle(made))
    assert time.status == OPEN
    assert "by tsa; no certificate" in time.against
    for trusted in ("ca.pem", "tsa.pem"):
        time = of_time(check_bundle(made, tsa=here.folder / "own" / trusted))
        if trusted == "ca.pem":
            assert time.status == HOLDS, time
            stamped = datetime.fromisoformat(time.against.rpartition(": ")[2])
            assert timedelta(0) <= stamped - here.started < timedelta(minutes=5)


def test_the_page_says_when_and_by_whom_and_whether_it_was_checked(here: Here, tmp_path: Path) -> None:
    """And `verify`, when it goes on in the folder."""
    case = tmp_path / "case"
    bundled(here, case)
    (case / "bundle.json").write_bytes((tmp_path / "case.bundle").read_bytes())
    plan, time, bundle = standing_of(case).checks
    assert (plan.status, time.status, bundle.status) == (HOLDS, OPEN, OPEN)
    assert "by tsa; no certificate of an authority was named" in time.against
    assert "no public key was named" in bundle.against
    found = verify.suspect(
        here.folder / "text.jsonl", mark=here.folder / "a.mark", plan=here.folder / "plan.json", out=case
    )
    assert "timestamp: not checked: it says" in " ".join(str(found).split())
    known = standing_of(case, public_key=here.folder / "key.pub", tsa=here.folder / "own" / "ca.pem")
    assert [one.status for one in known.checks] == [HOLDS, HOLDS, HOLDS]
    assert "the public key" in known.checks[2].against
    new_key(tmp_path / "other")
    other = standing_of(case, public_key=tmp_path / "other.pub", tsa=here.folder / "other" / "ca.pem")
    assert [one.status for one in other.checks] == [HOLDS, DIFFERS, DIFFERS]
    result = json.loads((case / "result.json").read_text())
    (case / "result.json").write_text(json.dumps(result | {"verdict": "cannot tell"}))
    assert standing_of(case).checks[2].differences == ("its result is not the one in this folder",)


def test_another_authority_is_named(here: Here, tmp_path: Path) -> None:
    made = bundled(here, tmp_path / "case")
    (said,) = of_time(check_bundle(made, tsa=here.folder / "other" / "ca.pem")).differences
    assert said.startswith("the timestamp is not by this authority: it is signed by tsa, certified by root, and the")
    own, both = here.folder / "own", tmp_path / "both.pem"
    (said,) = of_time(check_bundle(made, tsa=own / "tsa.pem")).differences
    assert said.endswith("the certificate is that of its signer, tsa: name that of its root as well")
    both.write_bytes((own / "tsa.pem").read_bytes() * 2 + (own / "ca.pem").read_bytes())
    assert of_time(check_bundle(made, tsa=both)).status == HOLDS
    time.sleep(1.1)  # certificates count seconds
    openssl("req", "-x509", "-key", own / "ca.key", "-days", "9", "-subj", "/CN=root", "-out", tmp_path / "late.pem")
    (said,) = of_time(check_bundle(made, tsa=tmp_path / "late.pem")).differences
    assert "the certificate of root is valid from" in said
    with pytest.raises(InputError, match="no certificate in PEM"):
        check_bundle(made, tsa=here.folder / "plan.json")


def test_a_plan_that_was_made_after_the_evidence_is_named(here: Here, tmp_path: Path) -> None:
    bundled(here, tmp_path / "case")
    path = tmp_path / "case" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"started": (here.started - timedelta(hours=1)).isoformat()}))
    (said,) = of_time(check_bundle(bundled(here, tmp_path / "case"), tsa=here.folder / "own" / "ca.pem")).differences
    assert "after the test began at" in said
    for nonsense in ("soon", "2020-01-01T00:00:00"):
        path.write_text(json.dumps(result | {"started": nonsense}))
        (said,) = of_time(check_bundle(bundled(here, tmp_path / "case"), tsa=here.folder / "own/ca.pem")).differences
        assert said == "'started' of the result is no time in UTC"


def test_the_timestamp_of_another_plan_is_named(here: Here, tmp_path: Path) -> None:
    verify.make_plan(here.folder / "text.jsonl", mark=here.folder / "a.mark", alpha=0.01).fix(tmp_path / "other.json")
    stamp_plan(tmp_path / "other.json", here.url, tmp_path / "other.tsr")
    made = bundled(here, tmp_path / "case", timestamp=tmp_path / "other.tsr")
    (said,) = of_time(check_bundle(made, tsa=here.folder / "own" / "ca.pem")).differences
    assert said.startswith("the timestamp is of another plan: SHA-256")


def test_a_broken_timestamp_is_named(here: Here, tmp_path: Path) -> None:
    """Each byte of it matters, or none of its meaning is lost; nothing raises."""
    whole = (here.folder / "plan.json.tsr").read_bytes()
    stamp = tmp_path / "broken.tsr"
    for i in range(0, len(whole), 97):
        stamp.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        time = of_time(check_bundle(bundled(here, tmp_path / "case", timestamp=stamp), tsa=here.folder / "own/ca.pem"))
        assert time.differences or time.status == HOLDS
    stamp.write_bytes(whole[:-1])
    time = of_time(check_bundle(bundled(here, tmp_path / "case", timestamp=stamp), tsa=here.folder / "own" / "ca.pem"))
    assert time.differences == ("no timestamp of RFC 3161",)


def test_the_command(here: Here, stillmark: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    verify.make_plan(here.folder / "text.jsonl", mark=here.folder / "a.mark").fix(plan)
    done = stillmark("evidence", "timestamp", plan, "--tsa", here.url, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["out"] == f"{plan}.tsr"
    assert Path(f"{plan}.tsr").exists()


def test_an_authority_that_does_not_answer_is_named(here: Here, tmp_path: Path) -> None:
    plan, out = here.folder / "plan.json", tmp_path / "a.tsr"
    stamp_plan(plan, here.url, out)
    for path, words in (
        ("/broken", "no timestamp: "), ("/nonsense", "no timestamp of RFC 3161"), ("/replay", "no timestamp of RFC"),
    ):  # fmt: skip
        with pytest.raises(ApiError, match=words):
            stamp_plan(plan, here.url + path, tmp_path / "b.tsr")
    (here.folder / "answer").write_bytes(out.read_bytes())
    with pytest.raises(ApiError, match="the answer is to another request"):
        stamp_plan(plan, here.url + "/replay", tmp_path / "b.tsr")
    assert not (tmp_path / "b.tsr").exists()
    with pytest.raises(ApiError, match=r"127\.0\.0\.1:9/: no timestamp"):
        stamp_plan(plan, "http://me:hunter2@127.0.0.1:9/")
    with pytest.raises(UsageError, match="begins with http"):
        stamp_plan(plan, "ftp://host")
