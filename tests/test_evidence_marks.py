"""A bundle of several marks: each line has a card, pairs and a secret of its own; what is exchanged is named."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from click.testing import Result as Answer

import verify
from tests import small
from tests.test_evidence_bundle import mutated, named
from tests.test_formats import problems
from tests.test_recompute import said, written
from verify.evidence.bundle import OF_SEVERAL, PREDICATE, make_bundle
from verify.evidence.calibration import read_calibration
from verify.evidence.check import check_bundle
from verify.evidence.checked import DIFFERS, HOLDS, OPEN, CheckResult
from verify.evidence.escrow import answer_coins
from verify.evidence.signing import new_key, read_envelope, signed
from verify.lineage.plan import plan_of_fields, read_plan
from verify.stats.multiple import holm
from watermark import GreenList, InputError, Mark, MarkError, Tournament
from watermark.schemes import Scheme

Run = Callable[..., Answer]
Fields = dict[str, Any]

ROOT: Final = Path(__file__).parent.parent
SIZE: Final = 40
KINDS: Final = ("text", "said", "answers")
SCHEMES: Final[tuple[Scheme, ...]] = (GreenList(gamma=0.3, delta=2.0), Tournament(3), GreenList(gamma=0.5, delta=1.0))


@dataclass(frozen=True)
class Case:
    """A folder with marks `0.mark` ..., their cards, a plan, outputs of a kind, a verdict on them, and its bundle."""

    folder: Path
    number: int

    @property
    def marks(self) -> list[Path]:
        return [self.folder / f"{i}.mark" for i in range(self.number)]

    @property
    def cards(self) -> list[Path]:
        return [self.folder / f"{i}.card" for i in range(self.number)]

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    def check(self, bundle: Path | None = None, **more: Any) -> CheckResult:
        """The check with all that there is."""
        whole: Fields = {"public_key": self.folder / "key.pub", "card": self.cards, "plan": self.folder / "plan.json"}
        whole |= {"reveal": self.marks, "outputs": [self.folder / "outputs.jsonl"]}
        return check_bundle(bundle or self.bundle, **(whole | more))

    def statement(self) -> Fields:
        """What the bundle says."""
        found: Fields = json.loads(read_envelope(self.bundle.read_bytes()).payload)
        return found

    def resigned(self, statement: Fields) -> Path:
        """A bundle of another statement, under the owner's own key."""
        at = self.folder / "forged"
        at.write_bytes(signed(json.dumps(statement, sort_keys=True).encode(), self.folder / "key").to_bytes())
        return at

    def recomputed(self, *marks: Path, bundle: Path | None = None) -> subprocess.CompletedProcess[str]:
        """The independent checker, in an interpreter without any installed package."""
        words = [
            sys.executable,
            "-S",
            "-E",
            "-s",
            str(ROOT / "docs" / "recompute_bundle.py"),
            str(bundle or self.bundle),
        ]
        return subprocess.run([*words, *map(str, marks or self.marks)], capture_output=True, text=True)


def made(folder: Path, draw: np.random.Generator, kind: str, marks: Sequence[tuple[Scheme, int, int]]) -> Case:
    """Some marks, each of a scheme, a width, and with so strong a trace in the outputs (0, 1 or 2)."""
    folder.mkdir(parents=True)
    new_key(folder / "key")
    rows: list[Fields] = []
    for i, (scheme, width, tilt) in enumerate(marks):
        mark = Mark(draw.bytes(32), scheme, width, exempt=(0, 7), vocabulary_size=SIZE, label=f"m {i}")
        mark.save(folder / f"{i}.mark")
        mark.publish(folder / f"{i}.card")
        if kind == "text":
            some = written(mark, int(draw.integers(0, 1000)), tilt=0.4 * tilt, records=6, prompt=3)
        else:
            some = said(mark, int(draw.integers(0, 1000)), tilt=1.5 * tilt)[:4]
        rows += [one | {"id": f"{i}.{one['id']}"} for one in some]
    more = {"sequential": True, "sampled": True} if kind == "answers" else {}
    (folder / "outputs.jsonl").write_text("".join(json.dumps(one | more) + "\n" for one in rows))
    case = Case(folder, len(marks))
    call: Fields = {"mark": case.marks, "unmarked_prompts": True}
    verify.make_plan(folder / "outputs.jsonl", **call).fix(folder / "plan.json")
    verify.suspect(folder / "outputs.jsonl", plan=folder / "plan.json", out=folder / "case", **call)
    make_bundle(folder / "case", folder / "key", case.bundle)
    return case


ALIKE: Final = [(SCHEMES[0], 1, 2), (SCHEMES[0], 1, 2)]
"""Marks that differ in their secret alone: what may be scored is the same, and only the keys tell the lines apart."""
UNLIKE: Final = [(SCHEMES[0], 1, 2), (SCHEMES[1], 2, 2)]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """A case of two marks of each kind, alike and unlike."""
    draw = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("marks")
    return {
        f"{kind}, {name}": made(folder / kind / name, draw, kind, marks)
        for kind in KINDS
        for name, marks in (("alike", ALIKE), ("unlike", UNLIKE))
    }


CASES: Final = [f"{kind}, {name}" for kind in KINDS for name in ("alike", "unlike")]


# --- what holds ---


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_of_several_marks_holds(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    statement = case.statement()
    assert statement["predicateType"] == OF_SEVERAL
    assert [one["label"] for one in statement["predicate"]["cards"]] == ["m 0", "m 1"]
    assert "card" not in statement["predicate"]
    assert not problems(statement["predicate"], "the-predicate", set())
    found = case.check()
    assert found.differences == ()
    assert {one.name: one.status for one in found.checks} == {
        "signature": HOLDS, "plan": HOLDS, "timestamp": OPEN, "commitment": HOLDS, "files": HOLDS, "pairs": HOLDS,
        "p-values": HOLDS, "adjustment": HOLDS, "result": HOLDS,
    }  # fmt: skip
    claimed = {one["test"]: one["log10_pvalue"] for one in statement["predicate"]["result"]["tests"]}
    assert claimed.keys() == {"mark m 0", "mark m 1"}
    assert found.numbers == pytest.approx(claimed, rel=1e-12)


@pytest.mark.slow
def test_both_checkers_agree_on_random_bundles(tmp_path: Path) -> None:
    """Eighteen, of two to four marks: the package and the independent script, to 1e-8."""
    draw = np.random.default_rng(11)
    far = lines = 0
    for number in range(18):
        drawn = draw.integers(0, (3, 4, 3), (2 + number // 3 % 3, 3)).tolist()
        marks = [(SCHEMES[scheme], width, tilt) for scheme, width, tilt in drawn]
        case = made(tmp_path / str(number), draw, KINDS[number % 3], marks)
        found = case.check()
        assert found.differences == (), number
        done = case.recomputed()
        assert done.returncode == 0, (number, done.stdout, done.stderr)
        said_so = [line[12:] for line in done.stdout.splitlines() if line.startswith("log10 p")]
        numbers = list(found.numbers.values())
        assert [float(one) for one in said_so] == pytest.approx(numbers, rel=1e-8, abs=1e-8)
        lines, far = lines + len(numbers), far + sum(one < -2 for one in numbers)
    assert lines == 54
    assert far > 10, "the comparison sees tails, and not ones alone"


def test_what_is_not_revealed_is_not_checked(cases: dict[str, Case]) -> None:
    """One mark of two: the numbers of the other are left open, by both checkers, and it is said which."""
    case = cases["text, unlike"]
    second = case.statement()["predicate"]["cards"][1]["commitment"]
    found = case.check(reveal=case.marks[:1], card=None)
    status = {one.name: one for one in found.checks}
    assert found.differences == ()
    assert status["commitment"].status == status["p-values"].status == OPEN
    assert f"not named: the card or mark of {second[:16]}..." in status["commitment"].against
    assert "mark m 1: not counted anew, since the secret is not shown" in status["p-values"].against
    assert found.numbers.keys() == {"mark m 0"}
    assert "neither a card nor a mark" in str(case.check(reveal=None, card=None))
    done = case.recomputed(case.marks[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" not recomputed") == 2, "at the line, and in the end"
    assert done.stdout.endswith("the numbers are as claimed; log10 p of 1 was not recomputed\n")
    stranger = case.folder / "stranger.mark"
    Mark(bytes(32), SCHEMES[0], vocabulary_size=SIZE).save(stranger)
    assert "and the cards are those of" in " ".join(case.check(reveal=[*case.marks, stranger]).differences)
    assert case.recomputed(*case.marks, stranger).returncode == 1


def test_no_secret_of_any_mark_is_in_a_bundle(cases: dict[str, Case]) -> None:
    for case in cases.values():
        data = case.bundle.read_bytes()
        whole = data + read_envelope(data).payload
        for path in case.marks:
            mark = Mark.load(path)
            for secret in (mark.secret, mark.prf_key):
                for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
                    assert form not in whole


def test_a_bundle_of_before_is_read(tmp_path: Path) -> None:
    """Of one mark, made by an earlier version; and one of today has its keys and its type."""
    mark = Mark(bytes(range(1, 33)), SCHEMES[0], exempt=(0, 7), vocabulary_size=SIZE, label="é")
    old = ROOT / "tests" / "data" / "bundle_v1.json"
    found = check_bundle(old, public_key=old.with_suffix(".pub"), reveal=mark)
    assert found.differences == ()
    assert {one.name: one.status for one in found.checks}["p-values"] == HOLDS
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in written(mark, 3, tilt=0.6, records=2))
    )
    verify.suspect(tmp_path / "text.jsonl", mark=mark, out=tmp_path / "case")
    new_key(tmp_path / "key")
    make_bundle(tmp_path / "case", tmp_path / "key")
    before, today = (
        json.loads(read_envelope(one.read_bytes()).payload) for one in (old, tmp_path / "case" / "bundle.json")
    )
    assert today["predicateType"] == before["predicateType"] == PREDICATE
    assert today["predicate"].keys() == before["predicate"].keys()
    assert today["predicate"]["card"] == before["predicate"]["card"]


@pytest.mark.slow
def test_the_readings_of_each_mark_are_found(tmp_path: Path) -> None:
    """A suspect whose weights are read along probes, with a reference: for each mark other places, in other files."""
    mark = small.mark(tmp_path / "0.mark", small.tokenizer(tmp_path / "words"))
    other = mark.child("other")
    other.save(tmp_path / "1.mark")
    guilty, reference = small.model(tmp_path / "guilty", mark, lift=0.3), small.model(tmp_path / "reference")
    probes = small.probes(tmp_path / "probes.jsonl", 6, 30)
    case, call = tmp_path / "case", {"reference": reference, "probes": probes, "unmarked_probes": True}
    verify.suspect(guilty, mark=[mark, other], plan=tmp_path / "plan.json", out=case, **call)
    new_key(tmp_path / "key")
    make_bundle(case, tmp_path / "key", tmp_path / "bundle")
    kept = sorted((case / "readings").rglob("*.jsonl"))
    assert {one.parent.name for one in kept} == {"mark.1", "mark.2"}
    whole: Fields = {"public_key": tmp_path / "key.pub", "reveal": [tmp_path / "0.mark", tmp_path / "1.mark"]}
    found = check_bundle(tmp_path / "bundle", outputs=kept, plan=tmp_path / "plan.json", **whole)
    assert found.differences == ()
    assert {one.name: one.status for one in found.checks}["pairs"] == HOLDS
    moved = tmp_path / "elsewhere" / "mark.2"
    moved.mkdir(parents=True)
    lines = (case / "readings" / "mark.2" / "suspect.jsonl").read_text().splitlines(True)
    (moved / "suspect.jsonl").write_text("".join(lines[1:]))
    left = [one for one in kept if one.parent.name == "mark.1" and one.name != "suspect.jsonl"]
    found = check_bundle(tmp_path / "bundle", outputs=[*left, moved / "suspect.jsonl"], **whole)
    assert f"{len(lines)} records were promised, and {len(lines) - 1} are there" in " ".join(found.differences)
    assert "of the promised ones record 1 is dropped" in " ".join(found.differences), "it is held against its namesake"


# --- tampering ---


def exchange_cards(one: Fields) -> None:
    one["cards"].reverse()


def drop_card(one: Fields) -> None:
    one["cards"].pop()


def double_card(one: Fields) -> None:
    one["cards"].append(one["cards"][0])


def another_card(one: Fields) -> None:
    one["cards"][1] = Mark(bytes(32), SCHEMES[0], vocabulary_size=SIZE, label="m 1").card()


def exchange_pairs(one: Fields) -> None:
    pairs = one["pairs"]
    pairs["mark m 0"], pairs["mark m 1"] = pairs["mark m 1"], pairs["mark m 0"]


def exchange_names(one: Fields) -> None:
    first, second = one["result"]["tests"]
    first["test"], second["test"] = second["test"], first["test"]


def exchange_tests(one: Fields) -> None:
    one["result"]["tests"].reverse()


def exchange_results(one: Fields) -> None:
    first, second = one["result"]["tests"]
    first["result"], second["result"] = second["result"], first["result"]


def exchange_numbers(one: Fields) -> None:
    first, second = one["result"]["tests"]
    for key in ("log10_pvalue", "log10_pvalue_adjusted", "stands"):
        first[key], second[key] = second[key], first[key]
    for key in ("log10_pvalue", "statistic"):
        first["result"][key], second["result"][key] = second["result"][key], first["result"][key]


def replan(one: Fields, plan: Fields) -> None:
    """Another plan of the run, with everything that says so; what was promised stays."""
    one["plan"] = plan
    fixed = plan_of_fields(plan)
    promised = plan_of_fields(one["promised"])
    one["result"] |= {
        "plan": fixed.to_dict(), "plan_digest": fixed.digest, "deviations": list(fixed.deviations(promised)),
    }  # fmt: skip


def adjust(one: Fields) -> None:
    """Holm's adjustment anew, and what stands."""
    tests = one["result"]["tests"]
    for test, value in zip(tests, holm(np.array([test["log10_pvalue"] for test in tests])).tolist(), strict=True):
        test["log10_pvalue_adjusted"], test["stands"] = value, value <= -3


def drop_mark(one: Fields) -> None:
    """The second mark, wherever it is; only what was promised is left."""
    one["card"] = one.pop("cards")[0]
    del one["pairs"]["mark m 1"]
    one["result"]["tests"].pop()
    adjust(one)
    inputs = {name: value for name, value in one["plan"]["inputs"].items() if name != "mark m 1"}
    replan(one, one["plan"] | {"lines": ["mark m 0"], "inputs": inputs})


def drop_mark_and_promise(one: Fields) -> None:
    """The same, and the promise is made to fit: only the published plan is left."""
    drop_mark(one)
    one["promised"] = one["plan"]
    one["result"] |= {"promised_digest": one["result"]["plan_digest"], "deviations": []}


def exchange_marks_in_plan(one: Fields) -> None:
    """The plan gives each line the key of the other; pairs, cards and promise stay."""
    inputs = one["plan"]["inputs"]
    swapped = inputs | {"mark m 0": inputs["mark m 1"], "mark m 1": inputs["mark m 0"]}
    replan(one, one["plan"] | {"inputs": swapped})


def anothers_key(one: Fields) -> None:
    """Everything of the first line says that it is the second mark's, but the pairs and the number."""
    exchange_marks_in_plan(one)
    one["promised"] = one["plan"]
    one["result"] |= {"promised_digest": one["result"]["plan_digest"], "deviations": []}
    one["cards"].reverse()
    first, second = (test["result"]["mark"] for test in one["result"]["tests"])
    first["commitment"], second["commitment"] = second["commitment"], first["commitment"]


def unplanned_line(one: Fields) -> None:
    one["result"]["tests"].append(one["result"]["tests"][1] | {"test": "mark m 2"})
    adjust(one)


def line_dropped(one: Fields) -> None:
    one["result"]["tests"].pop()
    adjust(one)


def pairs_dropped(one: Fields) -> None:
    del one["pairs"]["mark m 1"]


def both_keys(one: Fields) -> None:
    one["card"] = one["cards"][0]


TAMPERED: Final[tuple[tuple[Callable[[Fields], None], tuple[str, ...]], ...]] = (
    (exchange_cards, ("was planned, and the card is that of",)),
    (drop_card, ("'cards' must be a list of two cards or more",)),
    (double_card, ("is there twice",)),
    (another_card, ("need the card of the mark that the plan has for the test",)),
    (exchange_pairs, ("'contexts' must be",)),
    (exchange_names, ("is of the mark",)),
    (exchange_tests, ("the tests were to come as mark m 0, mark m 1, and come as mark m 1, mark m 0",)),
    (exchange_results, ("is of the mark",)),
    (exchange_numbers, ("was claimed, and the pairs give",)),
    (drop_mark, ("inputs.mark m 1", "was planned, and nothing was done")),
    (drop_mark_and_promise, ("the plan in the bundle is not the one that was published: inputs.mark m 1",)),
    (exchange_marks_in_plan, ("inputs.mark m 0", "'contexts' must be")),
    (anothers_key, ("was claimed, and the pairs give", "'contexts' must be")),
    (unplanned_line, ("the test 'mark m 2' was not planned, and is there",)),
    (line_dropped, ("the test 'mark m 1' was planned, and is there 0 times",)),
    (pairs_dropped, ("pairs, and none are there",)),
    (both_keys, ("it has a 'card'",)),
)
"""And what is said of it: one of these."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("change", "words"), TAMPERED, ids=[change.__name__ for change, _ in TAMPERED])
def test_what_the_owner_tampers_with_is_named(
    cases: dict[str, Case], name: str, change: Callable[[Fields], None], words: tuple[str, ...]
) -> None:
    case = cases[name]
    statement = case.statement()
    change(statement["predicate"])
    if "cards" not in statement["predicate"]:
        statement["predicateType"] = PREDICATE
    if statement == case.statement():
        assert name.endswith(", alike"), "the pairs of marks that are alike are the same, and the keys are not"
        assert change is exchange_pairs
        return
    found = case.check(case.resigned(statement))
    assert found.verdict == DIFFERS
    said_so = " ".join(found.differences)
    assert any(one in said_so for one in words), found.differences


@pytest.mark.parametrize("name", CASES)
def test_anothers_key_is_named_by_the_numbers_alone(cases: dict[str, Case], name: str) -> None:
    """Nothing was published: no plan, no card. Both checkers count the pairs of a line under the key of its card."""
    case = cases[name]
    statement = case.statement()
    anothers_key(statement["predicate"])
    forged = case.resigned(statement)
    found = case.check(forged, plan=None, card=None)
    assert found.verdict == DIFFERS
    assert case.recomputed(bundle=forged).returncode == 1


@pytest.mark.parametrize("change", [exchange_cards, drop_card, exchange_numbers, exchange_marks_in_plan])
def test_the_script_sees_it_too(cases: dict[str, Case], change: Callable[[Fields], None]) -> None:
    for case in cases.values():
        statement = case.statement()
        change(statement["predicate"])
        assert case.recomputed(bundle=case.resigned(statement)).returncode == 1


def test_any_byte_that_is_changed_is_named(cases: dict[str, Case], tmp_path: Path) -> None:
    """Four hundred changes of a bundle, and a hundred of a card, which is then that of none of the marks or differs."""
    draw = np.random.default_rng(5)
    case = cases["text, unlike"]
    for source, number in ((case.bundle, 400), (case.cards[1], 100)):
        data, path = source.read_bytes(), tmp_path / source.name
        for _ in range(number):
            changed = mutated(data, draw)
            if changed == data:
                continue
            path.write_bytes(changed)
            if source == case.bundle:
                found = named(lambda at=path: case.check(at, outputs=(), reveal=None))
            else:
                found = named(lambda at=path: case.check(card=[case.cards[0], at], outputs=(), reveal=None))
            assert found, "a mutation went unseen"


def test_nonsense_under_a_good_signature_is_named(cases: dict[str, Case]) -> None:
    """A value of another kind in cards, plan, or pairs: no exception, and a difference."""
    draw = np.random.default_rng(6)
    case = cases["said, unlike"]
    values: list[Any] = [None, -1, 2**70, "x", [], {}, True, [[1]], {"a": None}]
    places = [("cards",), ("cards", 0), ("cards", 1), ("pairs",), ("pairs", "mark m 1"), ("plan", "inputs", "mark m 0")]
    places += [("cards", 1, key) for key in case.statement()["predicate"]["cards"][1]]
    for at in places:
        for value in draw.permutation(len(values)).tolist()[:4]:
            statement = case.statement()
            holder = statement["predicate"]
            for key in at[:-1]:
                holder = holder[key]
            if holder[at[-1]] == values[value]:
                continue
            holder[at[-1]] = values[value]
            assert case.check(case.resigned(statement)).verdict == DIFFERS, (at, values[value])


# --- confidential, and a third party ---


def test_a_confidential_bundle_of_several_marks(cases: dict[str, Case], stillmark: Run, tmp_path: Path) -> None:
    """Each line has a root of its own, and single pairs of each are shown with proofs."""
    for case in cases.values():
        hidden, opening = tmp_path / "hidden", tmp_path / "opening"
        make_bundle(case.folder / "case", case.folder / "key", hidden, confidential=True, opening=opening)
        assert case.check(hidden).differences == ()
        assert case.check(hidden).numbers == {}
        shown = case.check(hidden, opening=opening)
        assert shown.differences == ()
        assert shown.numbers == case.check().numbers
        proofs = []
        for number in range(2):
            proofs.append(tmp_path / f"proofs {number}")
            words = ("evidence", "prove", opening, "--test", f"mark m {number}", "--pair", 3, "--out", proofs[-1])
            done = stillmark(*words)
            assert done.exit_code == 0, done.stderr
        found = case.check(hidden, proofs=proofs)
        assert found.differences == ()
        assert [one.status for one in found.checks if one.name == "proofs"] == [HOLDS, HOLDS]
        swapped = json.loads(proofs[0].read_text()) | {"test": "mark m 1"}
        proofs[0].write_text(json.dumps(swapped))
        assert "was promised, and the proof leads to" in " ".join(case.check(hidden, proofs=proofs).differences)
    fields = json.loads(opening.read_text())  # of the last case, whose marks are unlike
    tests = fields["tests"]
    tests["mark m 0"], tests["mark m 1"] = tests["mark m 1"], tests["mark m 0"]
    (tmp_path / "other").write_text(json.dumps(fields))
    assert case.check(hidden, opening=tmp_path / "other").verdict == DIFFERS
    done = stillmark("evidence", "prove", opening, "--pair", 1, "--out", tmp_path / "p")
    assert done.exit_code == 2
    assert "it has: mark m 0, mark m 1" in " ".join(done.stderr.split())


def test_third_parties_answer_for_the_marks_that_they_hold(cases: dict[str, Case], tmp_path: Path) -> None:
    """Two of them, each with one mark, a key and a ledger of its own; no secret is shown."""
    for key in ("first", "second"):
        new_key(tmp_path / key)
    public = [tmp_path / "first.pub", tmp_path / "second.pub"]
    for number, case in enumerate(cases.values()):
        answers = []
        for key, mark in zip(("first", "second"), case.marks, strict=True):
            answers.append(tmp_path / f"{number} {key}")
            ledger = tmp_path / f"{number} {key}.ledger"
            answer_coins(case.bundle, mark, tmp_path / key, answers[-1], ledger=ledger)
        found = case.check(reveal=None, coins=answers, escrow_key=public)
        assert found.differences == ()
        assert [one.status for one in found.checks if one.name in ("coins", "p-values")] == [HOLDS] * 3
        assert found.numbers == case.check().numbers
        assert case.check(coins=answers, escrow_key=public).differences == (), "the revealed marks say the same"
        half = case.check(reveal=None, coins=answers[1], escrow_key=public)
        assert half.numbers.keys() == {"mark m 1"}
        assert {one.name: one.status for one in half.checks}["p-values"] == OPEN
        other = case.check(reveal=None, coins=answers, escrow_key=public[0])
        assert other.differences[0].startswith("coins: a signature by")
        stranger = Mark(bytes(32), SCHEMES[0], vocabulary_size=SIZE)
        with pytest.raises(MarkError, match="it has no card of this one"):
            answer_coins(case.bundle, stranger, tmp_path / "first", tmp_path / "x", ledger=tmp_path / "x.ledger")


# --- commands, and what stands beside ---


def test_the_commands(cases: dict[str, Case], stillmark: Run) -> None:
    case = cases["text, unlike"]
    words: list[Any] = ["evidence", "check", case.bundle, "--public-key", case.folder / "key.pub"]
    words += ["--plan", case.folder / "plan.json", "--outputs", case.folder / "outputs.jsonl"]
    words += [word for one in case.marks for word in ("--reveal", one)]
    words += [word for one in case.cards for word in ("--card", one)]
    done = stillmark(*words)
    assert done.exit_code == 0, done.stdout
    shown = " ".join(done.stdout.split())
    assert "p-values: holds: mark m 0: counted anew; mark m 1: counted anew" in shown
    assert stillmark(*words[:3], "--reveal", case.marks[1]).exit_code == 0
    page = stillmark("report", case.bundle, "--out", case.folder / "page.html")
    assert page.exit_code == 0, page.stderr
    assert "mark m 1" in (case.folder / "page.html").read_text()


def test_a_calibration_is_of_one_of_the_marks(cases: dict[str, Case], tmp_path: Path) -> None:
    case, path = cases["text, alike"], tmp_path / "calibration.json"
    human = tmp_path / "human.jsonl"
    human.write_text("".join(json.dumps(one) + "\n" for one in written(Mark.load(case.marks[0]), 9, records=6)))
    result = verify.calibrate(Mark.load(case.marks[1]), [human], keys=100)
    path.write_text(json.dumps(result.to_dict()))
    make_bundle(case.folder / "case", case.folder / "key", tmp_path / "b", calibration=path)
    found = next(one for one in case.check(tmp_path / "b").checks if one.name == "calibration")
    assert found.differences == ()
    assert f"of the mark {Mark.load(case.marks[1]).commitment[:16]}..." in found.against
    fields = read_calibration(path)
    path.write_text(json.dumps(fields | {"commitment": "0" * 64}))
    with pytest.raises(InputError, match=r"and the mark .* and the mark .* was tested"):
        make_bundle(case.folder / "case", case.folder / "key", tmp_path / "b", calibration=path)
    statement = json.loads(read_envelope((tmp_path / "b").read_bytes()).payload)
    statement["predicate"]["calibration"]["result"]["commitment"] = "0" * 64
    assert "and the cards are those of" in " ".join(case.check(case.resigned(statement)).differences)


def test_a_case_without_its_cards_is_named(cases: dict[str, Case], tmp_path: Path) -> None:
    case = tmp_path / "case"
    shutil.copytree(cases["text, alike"].folder / "case", case)
    assert read_plan(case / "plan.json").lines == ("mark m 0", "mark m 1")
    (case / "mark.2.card").unlink()
    with pytest.raises(MarkError, match=r"mark\.2\.card: not a card"):
        make_bundle(case, cases["text, alike"].folder / "key", tmp_path / "b")
