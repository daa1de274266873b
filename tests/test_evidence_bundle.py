"""Bundles of evidence: what was promised is checked against what is there, and every tampering is named."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest
from click.testing import Result as Answer

import verify
from tests import small
from tests.test_light import HIDE
from tests.test_recompute import said, written
from verify.data.logprobs import from_record
from verify.data.pairs import WeightedPairs
from verify.data.reads import pairs_of
from verify.evidence import scored as scoring
from verify.evidence.bundle import make_bundle
from verify.evidence.check import check_bundle
from verify.evidence.checked import AS_FAR, DIFFERS, HOLDS, OPEN, CheckResult
from verify.evidence.escrow import COINS_TYPE, answer_coins
from verify.evidence.inputs import chain_of
from verify.evidence.proofs import prove_pairs
from verify.evidence.report import read_result, report_html
from verify.evidence.scored import RULES, SEQUENTIAL, Scored, hits_under, recomputed, scored_of, scored_of_fields
from verify.evidence.signing import new_key, read_envelope, read_key, signed
from verify.lineage.plan import plan_of_fields
from verify.radioactivity.sequential import LOOKS, SequentialTest, replay
from verify.radioactivity.tails import BINOMIAL, CHERNOFF, COUNTS, MIXTURE
from verify.stats import binomial
from watermark import GreenList, InputError, Mark, StillmarkError, Tournament, UsageError
from watermark.io.records import Record, resuming
from watermark.schemes import Scheme

Run = Callable[..., Answer]
Fields = dict[str, Any]

ROOT: Final = Path(__file__).parent.parent
SIZE: Final = 40
SECRET: Final = bytes(range(1, 33))
SCHEMES: Final[tuple[Scheme, ...]] = (GreenList(gamma=0.3, delta=2.0), Tournament(3))


@dataclass(frozen=True)
class Here:
    """A folder with a mark, keys, outputs, a case of each kind, and their bundles."""

    folder: Path
    mark: Mark

    def check(self, name: str = "text", bundle: Path | None = None, **more: Any) -> CheckResult:
        """The check with all that there is."""
        whole: Fields = {
            "public_key": self.folder / "key.pub",
            "card": self.folder / "a.card",
            "reveal": self.folder / "a.mark",
            "outputs": [self.folder / f"{name}.jsonl"],
        }
        whole |= {"plan": self.folder / "plan.json"} if name == "text" else {}
        return check_bundle(bundle or self.folder / f"{name}.bundle", **(whole | more))

    def statement(self, name: str = "text") -> Fields:
        """What a bundle says."""
        found: Fields = json.loads(read_envelope((self.folder / f"{name}.bundle").read_bytes()).payload)
        return found

    def resigned(self, statement: Fields, at: Path) -> Path:
        """A bundle of another statement, under the owner's own key."""
        at.write_bytes(signed(json.dumps(statement, sort_keys=True).encode(), self.folder / "key").to_bytes())
        return at


CASES: Final = ("text", "said", "answers")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("evidence")
    mark = Mark(SECRET, scheme=SCHEMES[0], width=1, exempt=(0, 7), vocabulary_size=SIZE, label="é")
    mark.save(folder / "a.mark")
    mark.publish(folder / "a.card")
    new_key(folder / "key")
    new_key(folder / "other")
    rows = {
        "text": written(mark, 3, tilt=0.6, records=12, prompt=3),
        "said": said(mark, 2, tilt=2.0)[:6],
        "answers": [one | {"sequential": True, "sampled": True} for one in said(mark, 2, tilt=2.0)[:6]],
    }
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    loaded = Mark.load(folder / "a.mark")
    verify.make_plan(folder / "text.jsonl", mark=loaded, unmarked_prompts=True).fix(folder / "plan.json")
    for name in CASES:
        more: Fields = {"unmarked_prompts": True, "plan": folder / "plan.json"} if name == "text" else {}
        verify.suspect(folder / f"{name}.jsonl", mark=loaded, out=folder / name, **more)
        make_bundle(folder / name, folder / "key", folder / f"{name}.bundle")
    return Here(folder, mark)


# --- what holds ---


def test_a_bundle_on_another_engines_mark(here: Here, tmp_path: Path) -> None:
    """Its secret is longer, so that its card was called malformed; which pairs count once is known by the key alone."""
    config = {"seeding_scheme": "selfhash", "hashing_key": 15485863, "bias": 2.0, "context_width": 3}
    verify.import_mark("transformers", config, vocabulary=SIZE).save(tmp_path / "m")
    outputs = here.folder / "text.jsonl"
    verify.suspect(outputs, mark=tmp_path / "m", unmarked_prompts=True, out=tmp_path / "case")
    bundle = tmp_path / "bundle"
    made = make_bundle(tmp_path / "case", here.folder / "key", bundle)
    assert made["tests"] == ["mark"]
    with_mark = here.check(bundle=bundle, reveal=tmp_path / "m", card=None, plan=None)
    without = here.check(bundle=bundle, reveal=None, card=None, plan=None)
    other = here.check(bundle=bundle, card=None, plan=None)
    found = [{one.name: one.status for one in checked.checks} for checked in (with_mark, without, other)]
    assert (with_mark.differences, without.differences) == ((), ())
    assert (found[0]["pairs"], found[0]["p-values"], found[0]["commitment"]) == (HOLDS, HOLDS, HOLDS)
    assert (found[1]["pairs"], found[1]["p-values"]) == (OPEN, OPEN)
    assert (found[2]["pairs"], found[2]["commitment"]) == (OPEN, DIFFERS)


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_holds(here: Here, name: str) -> None:
    found = here.check(name)
    assert found.differences == ()
    assert {one.name: one.status for one in found.checks} == {
        "signature": HOLDS, "plan": HOLDS, "timestamp": OPEN, "commitment": HOLDS, "files": HOLDS, "pairs": HOLDS,
        "p-values": HOLDS, "adjustment": HOLDS, "result": HOLDS,
    }  # fmt: skip
    claimed = json.loads((here.folder / name / "result.json").read_text())["tests"][0]["log10_pvalue"]
    assert found.numbers["mark"] == pytest.approx(claimed, rel=1e-12)
    assert found.verdict == AS_FAR, "no timestamp: nothing is called whole that was not looked at"


def test_nothing_is_trusted_by_default(here: Here) -> None:
    found = check_bundle(here.folder / "text.bundle")
    status = {one.name: one for one in found.checks}
    for name, lacking in (
        ("signature", "no public key was named"),
        ("timestamp", "there is none"),
        ("commitment", "neither a card nor the mark"),
        ("files", "none was named"),
        ("pairs", "no files were named"),
        ("p-values", "the secret is not shown"),
    ):
        assert status[name].status == OPEN
        assert lacking in status[name].against
    assert found.verdict == AS_FAR
    assert "said by" not in str(found)
    assert here.check(public_key=here.folder / "other.pub").differences[0].startswith("signature: a signature by")


def test_the_envelope_is_what_others_read(here: Here) -> None:
    """in-toto's and DSSE's own fields, and the library that wrote the envelope reads it."""
    from securesystemslib.dsse import Envelope

    fields = json.loads((here.folder / "text.bundle").read_bytes())
    assert fields["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(fields["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert [set(one) for one in statement["subject"]] == [{"name", "digest"}]
    Envelope.from_dict(fields).verify([read_key(here.folder / "key.pub")], 1)


def test_the_signature_is_checked_by_openssl(here: Here, tmp_path: Path) -> None:
    """As docs/recompute.md says: the bytes that are signed, and the signature, without this package."""
    fields = json.loads((here.folder / "text.bundle").read_bytes())
    payload, kind = base64.b64decode(fields["payload"]), fields["payloadType"].encode()
    (tmp_path / "signed").write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(fields["signatures"][0]["sig"]))
    words = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(here.folder / "key.pub"), "-rawin"]
    words += ["-in", str(tmp_path / "signed"), "-sigfile", str(tmp_path / "sig")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "Signature Verified Successfully" in done.stdout, done.stderr


def test_no_secret_is_in_a_bundle(here: Here) -> None:
    """Neither the secret nor the PRF's key, as bytes, hex or base64, in envelope or payload; nor the signing key."""
    private = (here.folder / "key").read_text().splitlines()[1]
    for name in CASES:
        data = (here.folder / f"{name}.bundle").read_bytes()
        whole = data + read_envelope(data).payload + (here.folder / name / "pairs.json").read_bytes()
        for secret in (here.mark.secret, here.mark.prf_key):
            for form in (secret, secret.hex().encode(), secret.hex().upper().encode(), base64.b64encode(secret)):
                assert form not in whole
        assert private.encode() not in whole
    assert (here.folder / "key").stat().st_mode & 0o777 == 0o600


def test_it_is_checked_without_torch(here: Here) -> None:
    code = (
        HIDE.replace(", 'securesystemslib'", "").replace(", 'rfc3161_client'", "")
        + "from verify import check_bundle\n"
        + "bundle, key, mark, outputs = sys.argv[1:]\n"
        + "print(check_bundle(bundle, public_key=key, reveal=mark, outputs=[outputs]).verdict)\n"
        + "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    files = [here.folder / one for one in ("text.bundle", "key.pub", "a.mark", "text.jsonl")]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == f"{AS_FAR}\n", done.stderr


def test_the_commands(here: Here, stillmark: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert stillmark("evidence", "key", "--out", "k").exit_code == 0
    again = stillmark("evidence", "key", "--out", "k")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    made = stillmark("evidence", "bundle", here.folder / "text", "--key", "k", "--out", "b.json", "--json")
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["tests"] == ["mark"]
    words = ("evidence", "check", "b.json", "--reveal", here.folder / "a.mark", "--outputs", here.folder / "text.jsonl")
    done = stillmark(*words, "--public-key", "k.pub")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == AS_FAR
    other = stillmark(*words, "--public-key", here.folder / "key.pub", "--json")
    assert other.exit_code == 1, "anything that differs is no success"
    assert json.loads(other.stdout)["verdict"] == DIFFERS


# --- the independent checker ---


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """docs/recompute_bundle.py."""
    sys.path.insert(0, str(ROOT / "docs"))
    yield importlib.import_module("recompute_bundle")
    sys.path.remove(str(ROOT / "docs"))


def drawn(rule: str, draw: np.random.Generator, mark: Mark) -> Scored:
    """Pairs at random, and weights as the rule has them."""

    def pairs(number: int, columns: int, whole: bool) -> WeightedPairs:
        rows = np.unique(draw.integers(0, SIZE, (number, mark.width + 1)).astype(np.uint32), axis=0)
        rows = draw.permutation(rows[~np.isin(rows[:, -1], mark.exempt)])
        weights = draw.normal(0.3, 1, (len(rows), columns)).clip(-3, 3)
        if whole:
            weights = draw.geometric(0.4, (len(rows), columns)).astype(np.float64) * draw.choice([1, 9], (len(rows), 1))
        return WeightedPairs(rows[:, :-1], rows[:, -1], weights)

    some = pairs(
        int(draw.integers(0, 70)), {BINOMIAL: 0, SEQUENTIAL: int(draw.choice([1, 3]))}.get(rule, 1), rule == COUNTS
    )
    if rule != SEQUENTIAL:
        return Scored(rule, some, np.zeros(0, np.int64))
    answers = np.sort(draw.integers(1, 9, len(some.tokens)))
    look = pairs(30, 1, False) if draw.random() < 0.5 else None
    return Scored(rule, some, answers, look is not None, look, 0 if look is None else LOOKS[2])


@pytest.mark.parametrize("rule", RULES)
def test_both_checkers_agree_on_random_pairs(rule: str, script: ModuleType) -> None:
    """Forty for each of five rules; in half of them the pairs are mostly green, so that the tails are far."""
    draw = np.random.default_rng(7)
    far = 0
    for number in range(40):
        scheme = SCHEMES[number % 2]
        mark = Mark(bytes([number] * 32), scheme=scheme, width=number % 4, exempt=(0, 7), vocabulary_size=SIZE)
        some = drawn(rule, draw, mark)
        if number % 4 > 1:  # only what fell the better way
            good = mark.green(some.pairs.contexts, some.pairs.tokens)
            good = good == (some.pairs.weights[:, 0] > 0) if some.pairs.weights.shape[1] else good
            kept = WeightedPairs(*(one[good] for one in (some.pairs.contexts, some.pairs.tokens, some.pairs.weights)))
            some = Scored(rule, kept, some.answers[good] if rule == SEQUENTIAL else some.answers, some.shared)
        fields = json.loads(json.dumps(some.to_dict()))
        back = scored_of_fields(fields, mark.width, "")
        ours = recomputed(back, hits_under(back, mark)).log10_pvalue
        whole = mark.card() | {"secret": mark.secret.hex()}
        assert script.log10_pvalue(fields, whole) == pytest.approx(ours, rel=1e-8, abs=1e-8), (rule, number)
        far += ours < -2
    assert far > 3, "the comparison sees tails, and not ones alone"


def test_both_checkers_agree_on_a_bundle(here: Here) -> None:
    """As a reader runs it: an interpreter without any installed package."""
    for name in CASES:
        words = [sys.executable, "-S", "-E", "-s", str(ROOT / "docs" / "recompute_bundle.py")]
        files = [str(here.folder / f"{name}.bundle"), str(here.folder / "a.mark")]
        done = subprocess.run([*words, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        printed = {line[:12].strip(): line[12:] for line in done.stdout.splitlines()}
        assert float(printed["log10 p"]) == pytest.approx(here.check(name).numbers["mark"], abs=1e-8)
        assert printed["result"] == "the numbers are as claimed"


def test_the_script_sees_a_difference(
    here: Here, script: ModuleType, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    statement = here.statement()
    statement["predicate"]["result"]["tests"][0]["log10_pvalue"] -= 1
    forged = here.resigned(statement, tmp_path / "forged")
    monkeypatch.setattr(sys, "argv", ["recompute_bundle.py", str(forged), str(here.folder / "a.mark")])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code
    assert "result      DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["binomial", "counts"])
@pytest.mark.parametrize("sequential", [False, True])
def test_a_result_is_counted_anew_from_its_pairs(here: Here, method: str, sequential: bool, tmp_path: Path) -> None:
    """What a test scored gives its own p-value and statistic, in whichever way it scores."""
    path = tmp_path / "o.jsonl"
    rows = written(here.mark, 5, tilt=0.5, records=12)
    path.write_text("".join(json.dumps(one | {"sequential": sequential}) + "\n" for one in rows))
    result = verify.text_test(here.mark, path, unmarked_prompts=True, **({} if sequential else {"method": method}))
    some = scored_of(result)
    assert some is not None
    back = scored_of_fields(json.loads(json.dumps(some.to_dict())), 1, "")
    found = recomputed(back, hits_under(back, here.mark))
    assert found.log10_pvalue == pytest.approx(result.log10_pvalue, rel=1e-12)
    assert found.statistic == pytest.approx(result.statistic, rel=1e-12)
    assert result.log10_pvalue < -2


def test_looks_back_at_all_text_are_counted_anew(here: Here) -> None:
    """A sequential test of text with a reference, here one that expects nothing: the e-process, and the best look."""
    rows = [one | {"top_logprobs": [None] * len(one["output_ids"])} for one in written(here.mark, 5, tilt=0.6)]
    texts = [from_record(Record(Path("a"), 1, one), SIZE) for one in rows if one["output_ids"]]
    result = replay(SequentialTest(here.mark, "text", unmarked=True), texts, texts)
    some = scored_of(result)
    assert some is not None
    assert some.shared
    assert some.look is not None
    assert some.after in LOOKS
    back = scored_of_fields(json.loads(json.dumps(some.to_dict())), 1, "")
    assert list(scoring.differences(some, back)) == []
    assert recomputed(back, hits_under(back, here.mark)).log10_pvalue == pytest.approx(result.log10_pvalue, rel=1e-12)
    assert result.log10_pvalue < -2


# --- tampering ---


def named(check: Callable[[], CheckResult]) -> tuple[str, ...]:
    """What a check says of a tampering: its differences, or why it cannot read what it was given."""
    try:
        return check().differences
    except StillmarkError as error:
        return (str(error),)


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """Some bytes with one changed, left out, doubled, or swapped with another."""
    i, j = sorted(draw.integers(0, len(data), 2).tolist())
    kind = draw.integers(0, 4)
    if kind == 0:
        return data[:i] + bytes([(data[i] + int(draw.integers(1, 256))) % 256]) + data[i + 1 :]
    if kind == 1:
        return data[:i] + data[i + 1 :]
    if kind == 2:
        return data[: i + 1] + data[i:]
    return data[:i] + data[j : j + 1] + data[i + 1 : j] + data[i : i + 1] + data[j + 1 :] if i < j else data[:-1]


@pytest.mark.parametrize(
    ("name", "number"), [("text.bundle", 1500), ("text.jsonl", 150), ("a.card", 200), ("plan.json", 150)]
)
def test_any_byte_that_is_changed_is_named(here: Here, name: str, number: int, tmp_path: Path) -> None:
    """2,000 mutations in all, of bundle, outputs, card and plan."""
    draw = np.random.default_rng(number)
    data = (here.folder / name).read_bytes()
    path = tmp_path / name
    more: dict[str, Callable[[], CheckResult]] = {
        "text.bundle": lambda: check_bundle(path, public_key=here.folder / "key.pub"),
        "text.jsonl": lambda: check_bundle(here.folder / "text.bundle", outputs=[path]),
        "a.card": lambda: check_bundle(here.folder / "text.bundle", card=path),
        "plan.json": lambda: check_bundle(here.folder / "text.bundle", plan=path),
    }
    for _ in range(number):
        changed = mutated(data, draw)
        if changed == data:
            continue
        path.write_bytes(changed)
        found = named(more[name])
        assert found, "a mutation went unseen"
        assert all(len(one) > 20 for one in found), "and it is said how it differs"


def test_records_that_are_dropped_doubled_moved_or_replaced_are_named(here: Here, tmp_path: Path) -> None:
    lines = (here.folder / "text.jsonl").read_text().splitlines(True)
    other = json.dumps(json.loads(lines[5]) | {"output_ids": [5, 6, 8]}) + "\n"
    path = tmp_path / "text.jsonl"
    for changed, words in (
        (
            [*lines[:4], *lines[5:]],
            "12 records were promised, and 11 are there; of the promised ones record 5 is dropped",
        ),
        ([*lines[:4], lines[3], *lines[4:]], "and 13 are there; records 4 (3), 5 (3) are there more than once"),
        ([*lines[:2], lines[3], lines[2], *lines[4:]], "the same records in another order, from record 3 to 4"),
        ([*lines[:5], other, *lines[6:]], "record 6 (5) is replaced"),
        ([*lines, other], "record 13 (5) is new"),
    ):
        path.write_text("".join(changed))
        found = " ".join(here.check(outputs=[path]).differences)
        assert words in found, found


def of_mark(statement: Fields) -> tuple[Fields, Fields]:
    """The pairs of the test for the mark in a statement, and the test itself."""
    return statement["predicate"]["pairs"]["mark"], statement["predicate"]["result"]["tests"][0]


def drop(statement: Fields) -> None:
    pairs, _ = of_mark(statement)
    pairs["n"] -= 1
    for column in (*pairs["contexts"], pairs["tokens"], *pairs["weights"], pairs.get("answers", [0])):
        column.pop()


def drop_and_say_so(statement: Fields) -> None:
    drop(statement)
    of_mark(statement)[1]["result"]["n"] -= 1


def double(statement: Fields) -> None:
    pairs, test = of_mark(statement)
    pairs["n"] += 1
    test["result"]["n"] += 1
    for column in (*pairs["contexts"], pairs["tokens"], *pairs["weights"], pairs.get("answers", [0])):
        column.append(column[-1])


def move(statement: Fields) -> None:
    pairs, _ = of_mark(statement)
    for column in (*pairs["contexts"], pairs["tokens"], *pairs["weights"]):
        column[0], column[1] = column[1], column[0]


def replace_token(statement: Fields) -> None:
    pairs, _ = of_mark(statement)
    pairs["tokens"][0] = 8 if pairs["tokens"][0] != 8 else 9


def special(statement: Fields) -> None:
    of_mark(statement)[0]["tokens"][0] = 7


def outside(statement: Fields) -> None:
    of_mark(statement)[0]["tokens"][0] = SIZE


def claim(key: str, value: Any) -> Callable[[Fields], None]:
    def change(statement: Fields) -> None:
        test = of_mark(statement)[1]
        test["result"][key] = value
        if key in test:
            test[key] = value

    return change


def top(key: str, value: Any) -> Callable[[Fields], None]:
    def change(statement: Fields) -> None:
        statement["predicate"]["result"][key] = value

    return change


def table(key: str, value: Any) -> Callable[[Fields], None]:
    def change(statement: Fields) -> None:
        of_mark(statement)[1][key] = value

    return change


def lines(statement: Fields) -> None:
    statement["predicate"]["inputs"][0]["lines"][0] = "0" * 16


def in_plan(statement: Fields) -> None:
    statement["predicate"]["plan"]["alpha"] = 0.05


def promise_nothing(statement: Fields) -> None:
    statement["predicate"]["promised"] = None


def another_mark(statement: Fields) -> None:
    statement["predicate"]["card"]["commitment"] = "0" * 64


def adjusted(statement: Fields) -> None:
    of_mark(statement)[1]["log10_pvalue_adjusted"] -= 1


def no_test(statement: Fields) -> None:
    statement["predicate"]["result"]["tests"] = []


TAMPERED: Final[tuple[tuple[Callable[[Fields], None], str], ...]] = (
    (drop, "pairs were counted, and"),
    (drop_and_say_so, "was not promised"),
    (double, "counts once, and is there more than once"),
    (move, "the pairs come in another order"),
    (replace_token, "was promised, and the files do not give it"),
    (special, "is of a special token"),
    (outside, "lies outside the vocabulary of 40"),
    (claim("log10_pvalue", -99.0), "log10 p -99.0 was claimed, and the pairs give"),
    (claim("statistic", 1.5), "the statistic 1.5 was claimed, and the pairs give"),
    (
        top("verdict", "unrelated as far as seen"),
        "the verdict is 'unrelated as far as seen', and by the tests that stand",
    ),
    (top("verdict", "copied"), "the verdict is 'copied', and by the tests that stand (mark) it is distilled or"),
    (top("started", "2099-01-01T00:00:00+00:00"), "after the bundle was made"),
    (top("access", "weights"), "'access' was planned to be text, and is weights"),
    (claim("pvalue", 0.5), "contradicts itself: pvalue 0.5 and log10_pvalue"),
    (claim("verdict", "insufficient evidence"), "its own verdict is 'insufficient evidence', and log10 p is"),
    (claim("verdict", "guilty"), "its own verdict is 'guilty', and log10 p is"),
    (claim("green", 3), "'green' is 3, and the statistic"),
    (claim("green_rate", 0.31), "'green_rate' is 0.31, and by the counts"),
    (claim("interval", [0.2, 0.4]), "'interval' is [0.2, 0.4], and by the counts"),
    (claim("method", "counts"), "the method 'binomial' was planned, and 'counts' was used"),
    (claim("unmarked_prompts", False), "'unmarked_prompts' was planned to be true, and is false"),
    (claim("reference", "base/"), "no reference was planned, and the test is beside base/"),
    (claim("alpha", 0.05), "the level of the test is to be 0.001, and is 0.05"),
    (claim("plan_digest", "0" * 64), "it was to be under the plan"),
    (claim("gamma", 0.25), "'gamma' is 0.25, and of the card 0.3"),
    (claim("mark", {}), "'label' is None, and of the card"),
    (
        claim("call", {"arguments": {"columns": "output=prompt"}}),
        "no columns were planned, and the columns output=prompt were read",
    ),
    (table("evidence", "all of it"), "'evidence' is all of it in the table"),
    (lines, "the digests of the lines of"),
    (top("alpha", 0.05), "'alpha' of the result is to be 0.001, and is 0.05"),
    (in_plan, "alpha: 0.001 was planned, and 0.05 was done"),
    (promise_nothing, "was published, and the bundle knows of no promise"),
    (another_mark, "'commitment' of the card"),
    (adjusted, "after Holm was claimed, and it is"),
    (no_test, "the test 'mark' was planned, and is there 0 times"),
)


@pytest.mark.parametrize(("change", "words"), TAMPERED, ids=[change.__name__ for change, _ in TAMPERED])
def test_what_the_owner_tampers_with_is_named(
    here: Here, change: Callable[[Fields], None], words: str, tmp_path: Path
) -> None:
    """A signature is the owner's, and shows nothing against the owner: pairs, plan and numbers must agree."""
    statement = here.statement()
    change(statement)
    found = here.check(bundle=here.resigned(statement, tmp_path / "forged"))
    assert found.verdict == DIFFERS
    assert words in " ".join(found.differences), found.differences


@pytest.mark.parametrize("name", ["said", "answers"])
def test_weights_and_answers_that_are_tampered_with_are_named(here: Here, name: str, tmp_path: Path) -> None:
    statement = here.statement(name)
    of_mark(statement)[0]["weights"][0][3] += 0.5
    found = here.check(name, bundle=here.resigned(statement, tmp_path / "forged"))
    assert "as promised, and" in " ".join(found.differences)
    if name == "answers":
        statement = here.statement(name)
        of_mark(statement)[0]["answers"][-1] += 1
        found = here.check(name, bundle=here.resigned(statement, tmp_path / "forged"))
        assert "was promised to come with answer" in " ".join(found.differences)


@pytest.mark.parametrize("name", CASES)
def test_nonsense_under_a_good_signature_is_named(here: Here, name: str, tmp_path: Path) -> None:
    """A value of another kind anywhere in plan, card, pairs and numbers: no exception, and mostly a difference."""
    draw = np.random.default_rng(5)
    places: list[tuple[Any, ...]] = []

    def walk(value: Any, at: tuple[Any, ...]) -> None:
        if isinstance(value, dict):
            for key, one in value.items():
                walk(one, (*at, key))
        elif isinstance(value, list):
            for i, one in list(enumerate(value))[:3]:
                walk(one, (*at, i))
        places.append(at)

    statement = here.statement(name)
    kept = ("card", "chain", "inputs", "pairs", "plan", "promised", "timestamp")
    for part in kept:
        walk(statement["predicate"][part], ("predicate", part))
    walk(statement["subject"], ("subject",))
    seen = 0
    for at in places:
        other = here.statement(name)
        value: Any = [None, -1, 2**70, "x", [], {}, True, 1e300, [[1]], {"a": None}][int(draw.integers(0, 10))]
        holder = functools.reduce(lambda one, key: one[key], at[:-1], other)
        if holder[at[-1]] == value:
            continue
        holder[at[-1]] = value
        seen += here.check(name, bundle=here.resigned(other, tmp_path / "forged")).verdict == DIFFERS
    assert seen >= 0.9 * len(places), "what is not contradicted by anything is a null where a null may be"


def test_text_and_columns_are_read_as_planned(tmp_path: Path) -> None:
    """Text that must be tokenized is not called false for want of a tokenizer, and columns hold in any order."""
    tokenizer = small.tokenizer(tmp_path / "tok")
    small.mark(tmp_path / "m", tokenizer)
    words = np.random.RandomState(3).randint(2, small.SIZE, (20, 40)).tolist()
    rows = [{"question": "w5", "answer": small.spell(ids)} for ids in words]
    outputs = small.jsonl(tmp_path / "text.jsonl", rows)
    columns = {"prompt": "question", "output": "answer"}
    verify.suspect(
        outputs, mark=tmp_path / "m", tokenizer=tokenizer, unmarked_prompts=True, columns=columns, out=tmp_path / "case"
    )
    new_key(tmp_path / "key")
    make_bundle(tmp_path / "case", tmp_path / "key", tmp_path / "b")
    for folder, status in ((None, OPEN), (tmp_path, OPEN), (tokenizer, HOLDS)):
        found = check_bundle(tmp_path / "b", reveal=tmp_path / "m", outputs=[outputs], tokenizer=folder)
        assert found.differences == ()
        pairs = next(one for one in found.checks if one.name == "pairs")
        assert pairs.status == status
        assert status == HOLDS or "it takes the mark's tokenizer" in pairs.against


def test_a_planned_test_that_was_dropped_is_seen(here: Here, tmp_path: Path) -> None:
    """Who drops a test can say that it could not be made: the plan then holds only as far as checked."""
    statement = here.statement()
    predicate = statement["predicate"]
    for plan in (predicate["plan"], predicate["promised"], predicate["result"]["plan"]):
        plan["lines"] = ["mark", "agreement"]
    plan = plan_of_fields(predicate["plan"])
    predicate["result"] |= {"plan_digest": plan.digest, "promised_digest": plan.digest}
    predicate["result"]["tests"][0]["result"]["plan_digest"] = plan.digest
    found = here.check(bundle=here.resigned(statement, tmp_path / "b"), plan=None)
    assert found.differences == ()
    assert found.checks[1].status == OPEN
    assert "planned, and not made, for a reason that was not checked: agreement (it needs" in found.checks[1].against


def test_an_innocent_is_not_convicted_by_what_was_not_planned(tmp_path: Path) -> None:
    """It repeats marked prompts. With pairs that the plan leaves out, all that is counted anew agrees."""
    mark = Mark(SECRET, scheme=SCHEMES[0], width=1, vocabulary_size=SIZE)
    mark.save(tmp_path / "m")
    rows = [
        {"id": one["id"], "prompt_ids": one["output_ids"], "output_ids": one["output_ids"]}
        for one in written(mark, 3, tilt=2.5, records=12, prompt=0)
    ]
    outputs = small.jsonl(tmp_path / "o.jsonl", rows)
    new_key(tmp_path / "key")
    verify.suspect(outputs, mark=tmp_path / "m", out=tmp_path / "case")
    make_bundle(tmp_path / "case", tmp_path / "key", tmp_path / "b")
    assert check_bundle(tmp_path / "b", reveal=tmp_path / "m", outputs=[outputs]).differences == ()
    statement = json.loads(read_envelope((tmp_path / "b").read_bytes()).payload)
    _with_prompts(statement["predicate"], Mark.load(tmp_path / "m"), outputs)
    forged = signed(json.dumps(statement, sort_keys=True).encode(), tmp_path / "key").to_bytes()
    (tmp_path / "forged").write_bytes(forged)
    found = check_bundle(tmp_path / "forged", reveal=tmp_path / "m", outputs=[outputs])
    assert found.numbers["mark"] < -20
    assert found.differences == ("result: mark: 'unmarked_prompts' was planned to be false, and is true",)


def _with_prompts(predicate: Fields, mark: Mark, outputs: Path) -> None:
    """The test for the mark as if prompts could not carry it, as who holds the signing key can write it."""
    pairs = pairs_of(mark, verify.read_outputs(outputs, mark), unmarked_prompts=True)
    none = np.zeros((len(pairs.tokens), 0))
    scored = Scored(BINOMIAL, WeightedPairs(pairs.contexts, pairs.tokens, none), np.zeros(0, np.int64))
    hits = hits_under(scored, mark)
    log10, green = recomputed(scored, hits).log10_pvalue, int(hits.pairs.sum())
    predicate["pairs"]["mark"] = scored.to_dict()
    test = predicate["result"]["tests"][0]
    test |= {"log10_pvalue": log10, "log10_pvalue_adjusted": log10, "stands": True, "conclusive": True}
    test["result"] |= {
        "log10_pvalue": log10, "pvalue": 10**log10, "verdict": "carries the mark", "n": len(scored), "green": green,
        "statistic": green, "green_rate": green / len(scored), "conclusive": True, "unmarked_prompts": True,
        "interval": list(binomial.binomial_interval(green, len(scored))),
    }  # fmt: skip
    predicate["result"]["verdict"] = "distilled or relayed"


def test_another_keys_mark_is_named(here: Here, tmp_path: Path) -> None:
    other = Mark(bytes(32), scheme=SCHEMES[0], width=1, exempt=(0, 7), vocabulary_size=SIZE, label="é")
    found = here.check(reveal=other)
    assert "'commitment' of the card is" in " ".join(found.differences)
    assert "the pairs give" in " ".join(found.differences), "under another key the pairs show nothing"
    wide = Mark(SECRET, scheme=SCHEMES[0], width=2, vocabulary_size=SIZE)
    assert "2" in " ".join(here.check(reveal=wide).differences)


def test_a_deviation_is_carried_into_the_bundle(here: Here, tmp_path: Path) -> None:
    case = tmp_path / "case"
    verify.suspect(
        here.folder / "text.jsonl", mark=here.folder / "a.mark", unmarked_prompts=True, alpha=0.01,
        plan=here.folder / "plan.json", deviate=True, out=case,
    )  # fmt: skip
    make_bundle(case, here.folder / "key", tmp_path / "b")
    found = here.check(bundle=tmp_path / "b")
    assert found.differences == ("plan: alpha: 0.001 was planned, and 0.01 was done",)


def test_evidence_that_was_changed_is_not_bundled(here: Here, tmp_path: Path) -> None:
    case = tmp_path / "case"
    shutil.copy(here.folder / "text.jsonl", tmp_path / "text.jsonl")
    verify.suspect(tmp_path / "text.jsonl", mark=here.folder / "a.mark", out=case)
    (tmp_path / "text.jsonl").write_text((tmp_path / "text.jsonl").read_text() + '{"output_ids": [5]}\n')
    with pytest.raises(InputError, match="not the file that was tested: SHA-256"):
        make_bundle(case, here.folder / "key", tmp_path / "b")


def test_what_is_no_key_is_named(here: Here, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no private key in PEM"):
        make_bundle(here.folder / "text", here.folder / "key.pub", tmp_path / "b")
    with pytest.raises(InputError, match="no public key in PEM"):
        check_bundle(here.folder / "text.bundle", public_key=here.folder / "key")
    with pytest.raises(UsageError, match="that of a confidential bundle"):
        make_bundle(here.folder / "text", here.folder / "key", tmp_path / "b", opening=tmp_path / "o")
    with pytest.raises(InputError, match="cannot read the public key"):
        check_bundle(here.folder / "text.bundle", public_key=tmp_path / "none")


def test_a_page_is_made_of_a_bundle(here: Here, tmp_path: Path) -> None:
    """It names the bundle and the key, and says that nothing was checked."""
    path = here.folder / "text.bundle"
    page = report_html(read_result(path))
    assert next(iter(read_envelope(path.read_bytes()).signatures)) in page
    assert hashlib.sha256(path.read_bytes()).hexdigest() in page
    assert "was not checked for this page" in page
    assert "was not checked for this page" not in report_html(read_result(here.folder / "text"))
    (tmp_path / "broken").write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="no signed bundle"):
        read_result(tmp_path / "broken")


# --- confidential ---


def test_a_confidential_bundle_shows_no_pair(here: Here, tmp_path: Path) -> None:
    made = tmp_path / "b"
    make_bundle(here.folder / "text", here.folder / "key", made, confidential=True, opening=tmp_path / "opening")
    pairs = json.loads(read_envelope(made.read_bytes()).payload)["predicate"]["pairs"]["mark"]
    assert set(pairs) == {"rule", "n", "root"}
    assert (tmp_path / "opening").stat().st_mode & 0o777 == 0o600
    closed = here.check(bundle=made)
    assert closed.differences == ()
    assert {one.name: one.status for one in closed.checks}["pairs"] == OPEN
    assert "mark" not in closed.numbers
    shown = here.check(bundle=made, opening=tmp_path / "opening")
    assert shown.differences == ()
    assert shown.numbers == here.check().numbers
    again = tmp_path / "again"
    make_bundle(here.folder / "text", here.folder / "key", again, confidential=True)
    root = json.loads(read_envelope(again.read_bytes()).payload)["predicate"]["pairs"]["mark"]["root"]
    assert root != pairs["root"], "salted: guesses at the pairs cannot be tested"


def test_an_opening_of_other_pairs_is_named(here: Here, tmp_path: Path) -> None:
    made, opening = tmp_path / "b", tmp_path / "opening"
    make_bundle(here.folder / "text", here.folder / "key", made, confidential=True, opening=opening)
    fields = json.loads(opening.read_text())
    for change in ("token", "salt", "rule", "missing"):
        other = json.loads(json.dumps(fields))
        if change == "token":
            other["tests"]["mark"]["tokens"][2] = 9 if other["tests"]["mark"]["tokens"][2] != 9 else 8
        elif change == "salt":
            other["salt"] = "00" * 32
        elif change == "rule":
            other["tests"]["mark"] |= {"rule": "counts", "weights": [[1] * fields["tests"]["mark"]["n"]]}
        else:
            other["tests"] = {}
        opening.write_text(json.dumps(other))
        found = " ".join(here.check(bundle=made, opening=opening).differences)
        assert "was promised, and the opening gives" in found or "and the opening has none" in found


def test_single_pairs_are_shown_with_proofs(here: Here, stillmark: Run, tmp_path: Path) -> None:
    made, opening, out = tmp_path / "b", tmp_path / "opening", tmp_path / "proofs"
    make_bundle(here.folder / "text", here.folder / "key", made, confidential=True, opening=opening)
    pairs = here.statement()["predicate"]["pairs"]["mark"]
    number = pairs["n"]
    for some in ((1,), (2, number), tuple(range(1, number + 1))):
        done = stillmark("evidence", "prove", opening, *(f"--pair={one}" for one in some), "--out", out)
        assert done.exit_code == 0, done.stderr
        found = here.check(bundle=made, proofs=out)
        assert found.differences == ()
        proofs = next(one for one in found.checks if one.name == "proofs")
        assert f"[{pairs['contexts'][0][some[0] - 1]}, {pairs['tokens'][some[0] - 1]}]" in proofs.against
    whole = out.read_text()
    for old, new, words in (
        (json.loads(whole)["pairs"][0]["text"], "[9, 9]", "was promised, and the proof leads to"),
        ('"left"', '"right"', "was promised, and the proof leads to"),
        ('"left"', '"up"', "is malformed"),
        ('"pair": 1,', '"pair": 3,', "the proof is that of another pair"),
        ('"pair": 1,', f'"pair": {number + 1},', f"it is none of the {number} pairs"),
        ('"pair": 1,', '"pair": 2,', "it is shown more than once"),
        ('"test": "mark"', '"test": "luck"', "the bundle has no root of the test"),
        ("stillmark-proof/v1", "proof", "no proofs of format"),
    ):
        out.write_text(whole.replace(old, new))
        assert words in " ".join(here.check(bundle=made, proofs=out).differences)
    assert json.loads(opening.read_text())["salt"] not in whole, "or all pairs could be guessed"
    with pytest.raises(UsageError, match=f"there is no pair {number + 1}"):
        prove_pairs(opening, [number + 1], out)
    good = json.loads(opening.read_bytes())
    (name, shown), *_ = good["tests"].items()
    for wrong, message in (
        ({"tests": "x"}, "no opening of format"),
        ({"salt": 5}, "no opening of format"),
        ({"salt": "x"}, "64 hex digits"),
        ({"tests": {name: shown | {"n": {}}}}, "'n' must be an integer"),
        ({"tests": {name: shown | {"tokens": []}}}, "'tokens'"),
        ({"tests": {name: shown | {"contexts": None}}}, "'contexts'"),
    ):
        opening.write_text(json.dumps(good | wrong))
        with pytest.raises(InputError, match=message):
            prove_pairs(opening, [1], out, test=name)


# --- a third party that holds the secret ---


def test_a_third_party_answers_with_coins(
    here: Here, stillmark: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The p-value is counted anew without the secret, which is not in the answer; the answer is signed and checked."""
    monkeypatch.chdir(tmp_path)
    for name in CASES:
        words = ("evidence", "coins", here.folder / f"{name}.bundle", "--mark", here.folder / "a.mark")
        done = stillmark(*words, "--key", here.folder / "other", "--ledger", "ledger", "--out", name, "--json")
        assert done.exit_code == 0, done.stderr
        data = Path(name).read_bytes()
        whole = data + read_envelope(data, COINS_TYPE).payload
        for form in (here.mark.secret.hex().encode(), here.mark.prf_key.hex().encode(), here.mark.secret):
            assert form not in whole
        found = here.check(name, reveal=None, coins=name, escrow_key=here.folder / "other.pub")
        assert found.differences == ()
        assert {one.name: one.status for one in found.checks}["p-values"] == HOLDS
        assert found.numbers == here.check(name).numbers
        assert here.check(name, coins=name, escrow_key=here.folder / "other.pub").differences == ()
    nobody = here.check(reveal=None, coins="text")
    assert {one.name: one.status for one in nobody.checks}["coins"] == OPEN
    assert here.check(coins="text", escrow_key=here.folder / "key.pub").differences[0].startswith("coins: a signature")
    assert "'bundle' of the coins was to be" in here.check(coins="said").differences[0]


def test_coins_that_are_false_are_named(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "coins"
    answer_coins(here.folder / "text.bundle", here.mark, here.folder / "other", out, ledger=tmp_path / "ledger")
    fields = json.loads(read_envelope(out.read_bytes(), COINS_TYPE).payload)
    for change, words in (
        (lambda hits: hits.__setitem__(0, 1 - hits[0]), "log10 p"),
        (lambda hits: hits.__setitem__(0, 2), "a pair has 0 to 1 hits"),
        (lambda hits: hits.pop(), "want the hits of"),
    ):
        other = json.loads(json.dumps(fields))
        change(other["tests"]["mark"]["hits"])
        out.write_bytes(signed(json.dumps(other).encode(), here.folder / "other", COINS_TYPE).to_bytes())
        assert words in " ".join(here.check(reveal=None, coins=out).differences)
        if words == "log10 p":
            assert "pair 1 has" in " ".join(here.check(coins=out).differences), "the revealed mark says otherwise"


def test_the_third_party_answers_so_many_pairs_a_day(here: Here, tmp_path: Path) -> None:
    def answer(name: str, most: int, mark: Mark = here.mark) -> int:
        bundle, out, ledger = here.folder / f"{name}.bundle", tmp_path / "coins", tmp_path / "ledger"
        left: int = answer_coins(bundle, mark, here.folder / "other", out, ledger=ledger, most=most)["left"]
        return left

    number = len(here.statement()["predicate"]["pairs"]["mark"]["tokens"])
    assert answer("text", number + 5) == 5
    assert answer("text", number + 5) == 5, "the same bundle costs nothing"
    with pytest.raises(StillmarkError, match="pairs are asked for, and 5 are left for today"):
        answer("said", number + 5)
    with pytest.raises(StillmarkError, match="the cards differ in commitment"):
        answer("text", number, Mark(bytes(32), scheme=SCHEMES[0], exempt=(0, 7), vocabulary_size=SIZE, label="é"))
    lines = (tmp_path / "ledger").read_bytes().splitlines(True)
    (tmp_path / "ledger").write_bytes(lines[0].replace(b'"pairs": ', b'"pairs": -'))
    with pytest.raises(InputError, match="chain"):
        answer("said", number)


# --- the log of a sequential run ---


def test_a_log_is_chained(tmp_path: Path) -> None:
    """What is dropped, doubled, moved or changed is seen: a run does not go on from it, and no bundle is made of it."""
    path = tmp_path / "mark.jsonl"
    rows = [{"id": f"é{i}", "output": "x", "number": 0.1 * i} for i in range(6)]
    for part in (rows[:2], rows[2:]):
        with resuming(path, "r", chained=True) as (_, append):
            append(part)
    lines = path.read_bytes().splitlines(True)
    whole = chain_of(path, "a")
    assert whole is not None
    assert (whole.records, len(whole.head)) == (6, 64)
    for changed in (
        [*lines[:2], *lines[3:]],
        [*lines[:3], lines[2], *lines[3:]],
        [*lines[:2], lines[3], lines[2], *lines[4:]],
        [*lines[:2], lines[2].replace(b'"x"', b'"y"'), *lines[3:]],
        lines[1:],
    ):
        path.write_bytes(b"".join(changed))
        with pytest.raises(InputError, match="chain"), resuming(path, "r", chained=True) as _:
            pass
        with pytest.raises(InputError, match="chain"):
            chain_of(path, "a")
    path.write_bytes(b"".join(lines[:-1]))
    short = chain_of(path, "a")
    assert short is not None
    assert short.head != whole.head, "what is cut off at the end is seen by the head that was promised"


def test_a_log_that_was_begun_without_a_chain_goes_on_without(tmp_path: Path) -> None:
    path = tmp_path / "mark.jsonl"
    for chained in (False, True):
        with resuming(path, "r", chained=chained) as (_, append):
            append([{"id": "a"}])
    assert "chain" not in path.read_text()
    assert chain_of(path, "a") is None


def test_numbers_are_refused_that_are_none() -> None:
    good: Fields = {"rule": CHERNOFF, "n": 1, "contexts": [[5]], "tokens": [6], "weights": [[1.0]]}
    assert len(scored_of_fields(good, 1, "")) == 1
    for change in (
        {"n": True}, {"n": 2}, {"contexts": []}, {"tokens": [-1]}, {"tokens": [2**32 - 1]}, {"tokens": [True]},
        {"tokens": [1.0]}, {"weights": [["1"]]}, {"weights": [[float("inf")]]}, {"weights": [[10**400]]},
        {"weights": []}, {"rule": "luck"}, {"rule": MIXTURE, "weights": [[1e300]]}, {"rule": SEQUENTIAL},
    ):  # fmt: skip
        with pytest.raises(StillmarkError):
            scored_of_fields(good | change, 1, "")
    for n in (2**62, -1, 2**70):  # at width 0, with weights of 1, no column has so many
        with pytest.raises(StillmarkError, match=f"'tokens' must be a list of {n} integers"):
            scored_of_fields({"rule": BINOMIAL, "n": n, "contexts": [], "tokens": [6], "weights": []}, 0, "")
    assert scoring.SHOWN > 0
