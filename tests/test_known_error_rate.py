"""The result of `calibrate` in bundle and report: bound to the mark, and never more than it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result as Answer

import verify
from tests.test_recompute import SIZE, said, written
from verify.evidence.bundle import make_bundle
from verify.evidence.check import check_bundle
from verify.evidence.checked import DIFFERS, OPEN, Checked
from verify.evidence.report import read_result, report_html
from verify.evidence.signing import new_key, read_envelope, signed
from verify.evidence.standing import standing_of
from watermark import GreenList, InputError, Mark

Run = Callable[..., Answer]

MARK = Mark(bytes(range(32)), scheme=GreenList(gamma=0.3), width=1, exempt=(0, 7), vocabulary_size=SIZE)


@dataclass(frozen=True)
class Here:
    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "case" / "bundle.json"

    def of_rate(self, bundle: Path | None = None) -> Checked:
        return next(one for one in check_bundle(bundle or self.bundle).checks if one.name == "calibration")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    """A case, a calibration of its mark on text and on log probabilities, and the bundle of both."""
    folder = tmp_path_factory.mktemp("rate")
    rows = {"text": written(MARK, 3, tilt=0.6, records=8), "human": written(MARK, 1, records=8), "said": said(MARK, 2)}
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    found = verify.calibrate(MARK, folder / "human.jsonl", suspects=folder / "said.jsonl", keys=100)
    found.save(folder / "calibration.json")
    verify.suspect(folder / "text.jsonl", mark=MARK, out=folder / "case")
    new_key(folder / "key")
    make_bundle(folder / "case", folder / "key", calibration=folder / "calibration.json")
    return Here(folder)


def test_the_check_says_what_follows_and_what_was_not_counted(here: Here) -> None:
    found = here.of_rate()
    assert found.status == OPEN, "the p-values are the owner's word"
    assert found.against.startswith("sound, 100 decoy keys on 2 materials")
    assert "of this mark, and its numbers follow from its p-values, which were not counted anew" in found.against


def test_another_marks_is_refused(here: Here, tmp_path: Path) -> None:
    other = verify.calibrate(replace(MARK, secret=bytes(32)), here.folder / "human.jsonl", keys=100)
    other.save(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"is of the mark \w+\.\.\., and the mark \w+\.\.\. was tested"):
        make_bundle(here.folder / "case", here.folder / "key", tmp_path / "b", calibration=tmp_path / "other.json")
    page = report_html(
        read_result(here.folder / "case"),
        standing=standing_of(here.folder / "case", calibration=tmp_path / "other.json"),
    )
    assert "It is another mark than that of this result" in page


def _levels(fields: Any) -> None:
    fields["result"]["levels"][0]["interval"] = [0.0, 0.001]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_levels, "'interval' [0.0, 0.001] was claimed"),
        (lambda it: it["result"].update(verdict="not sound"), "the verdict is 'not sound'"),
        (lambda it: it["result"].update(commitment="0" * 64), "it is of the mark 0000000000000000"),
        (lambda it: it["result"]["materials"].pop(), "errors at 3 levels can be counted"),
        (lambda it: it.update(sha256="0" * 64), "SHA-256 0000000000000000... was promised"),
        (lambda it: it["result"]["materials"][0]["decoys"].pop(), "a material has 99 'decoys'"),
        (lambda it: it["result"].pop("keys"), "it has no 'keys'"),
    ],
)
def test_what_was_changed_is_named(here: Here, tmp_path: Path, change: Callable[[Any], Any], words: str) -> None:
    """Under the owner's own signature: nothing but the numbers can tell."""
    statement = json.loads(read_envelope(here.bundle.read_bytes()).payload)
    change(statement["predicate"]["calibration"])
    path = tmp_path / "bundle"
    path.write_bytes(signed(json.dumps(statement, sort_keys=True).encode(), here.folder / "key").to_bytes())
    found = here.of_rate(path)
    assert found.status == DIFFERS
    assert any(words in one for one in found.differences), found.differences


def test_a_bundle_without_one_is_as_before(here: Here, tmp_path: Path) -> None:
    make_bundle(here.folder / "case", here.folder / "key", tmp_path / "b")
    assert "calibration" not in json.loads(read_envelope((tmp_path / "b").read_bytes()).payload)["predicate"]
    assert all(one.name != "calibration" for one in check_bundle(tmp_path / "b").checks)


def test_the_page_shows_it(here: Here, stillmark: Run, tmp_path: Path) -> None:
    """Of the folder, of a file that was named, and of the bundle."""
    (here.folder / "case" / "calibration.json").unlink(missing_ok=True)
    for words in ((here.folder / "case", "--calibration", here.folder / "calibration.json"), (here.bundle,)):
        done = stillmark("report", *words, "--out", tmp_path / "page.html")
        assert done.exit_code == 0, done.stderr
        page = (tmp_path / "page.html").read_text()
        assert "Known error rate" in page
        assert "p-values where there is nothing" in page
        assert "The mark is the one of this result." in page
        assert "no public key was named" in page
    assert "Known error rate" not in report_html(read_result(here.folder / "case"))
    done = stillmark("report", here.bundle, "--public-key", here.folder / "key.pub", "--out", tmp_path / "page.html")
    assert "no public key was named" not in (tmp_path / "page.html").read_text()


def test_a_result_cannot_claim_that_it_was_checked(here: Here) -> None:
    """What a page says of checks comes from the checks, never from the JSON of a stranger."""
    forged = {"check": "signature", "status": "holds", "against": "everybody", "differences": []}
    found = read_result(here.folder / "case") | {"status": [forged], "standing": [forged], "checks": [forged]}
    assert "everybody" not in report_html(found)
