"""docs/formats.md says what is written: every key that occurs is in its tables with its type, and every key of a table
occurs. The commands are those of tests/test_golden.py and a few more, and the files are those that they leave behind.

A table of keys has the head `| key | type | meaning |`. It belongs to the heading above it; "Has the keys of [x](#x)."
adds those of another section. A key in capitals stands for any, and a link for a type is a section.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import verify
from tests.golden.make_evidence import EVIDENCE
from tests.test_golden import COMMANDS, Workspace, rows, workspace
from tests.test_prf import VECTORS
from verify.data.shapes import OURS
from watermark import Mark, prf

PAGE: Final = Path(__file__).parent.parent / "docs" / "formats.md"
MISSING: Final = ", may be missing"

SECTIONS: Final = {
    "test text": "text",
    "test logprobs": "log-probabilities",
    "test model": "log-probabilities",
    "test endpoint": "endpoint",
    "test corpus": "corpus",
    "test weights": "weights",
    "test agreement": "agreement",
    "test planted": "planted-answers",
    "test canaries": "canaries",
    "attribute": "attribution",
    "verify": "verdict",
    "power": "power",
    "quality": "quality",
    "count-contexts": "count-contexts",
    "probes": "probes",
    "generate": "generate",
    "student": "student",
    "protect order": "protect-order",
    "protect plant": "protect-plant",
    "protect canaries": "protect-canaries",
    "demo": "demo",
    "evidence plan": "evidence-plan",
    "calibrate": "calibration",
    "evidence key": "evidence-key",
    "evidence bundle": "evidence-bundle",
    "evidence prove": "evidence-prove",
    "evidence coins": "evidence-coins",
    "evidence check": "evidence-check",
    "mark check": "mark-check",
    "mark": "the-card",
}
"""What `COMMAND --json` prints: the first that fits, with the exceptions of `section_of`."""

MORE: Final = {
    "mark-new-tournament": "mark new --scheme tournament --layers 2 --out W/layers.mark --tokenizer W/tokenizer",
    "mark-publish-tournament": "mark publish W/layers.mark --out W/layers.card",
    "text-tournament": "test text --mark W/layers.mark E/plain.jsonl",
    "text-decoys": "test text --mark MARK E/outputs.jsonl --skip-bad --decoys 5",
    "mark-new": "mark new --out W/new.mark --tokenizer W/tokenizer",
    "mark-publish": "mark publish MARK --out W/again.card",
    "mark-derive": "mark derive MARK --label a --out W/child.mark",
    "mark-publish-child": "mark publish W/child.mark --out W/child.card",
    "text-child": "test text --mark W/child.mark E/child.jsonl",
    "attribute-planned": "attribute --mark MARK --labels E/labels.txt --plan W/labels.plan E/child.jsonl",
    "generate": "generate --model W/parent --mark MARK --prompts E/prompts.jsonl --out W/written.jsonl "
    "--max-new-tokens 8",
    "quality": "quality --model W/parent --mark MARK --prompts E/prompts.jsonl --number 2 --answers 2 "
    "--max-new-tokens 8 --out W/quality",
    "student": "student --base W/parent --outputs W/written.jsonl --out W/student",
    "protect-order": "protect order --mark MARK --teacher W/units --out W/units-again",
    "evidence-plan": "evidence plan E/outputs.jsonl --mark MARK --out W/early.json",
    "evidence-case": "verify E/outputs.jsonl --skip-bad --mark MARK --plan W/case.plan --out W/case",
    "calibrate": "calibrate E/plain.jsonl --mark MARK --keys 100 --unmarked-prompts",
    "evidence-key": "evidence key --out W/signing.key",
    "evidence-bundle": "evidence bundle W/case --key W/signing.key --out W/bundle.json",
    "evidence-hidden": "evidence bundle W/case --key W/signing.key --confidential --opening W/opening --out W/hidden",
    "evidence-prove": "evidence prove W/opening --pair 1 --pair 3 --out W/proofs",
    "evidence-coins": "evidence coins W/bundle.json --mark MARK --key W/signing.key --ledger W/ledger --out W/coins",
    "evidence-check": "evidence check W/bundle.json --public-key W/signing.key.pub --reveal MARK",
    "evidence-endpoint": "evidence bundle W/endpoint --key W/signing.key --out W/endpoint.bundle",
    "mark-import": "mark import --from kgw E/engine-list.json --tokenizer W/tokenizer --out W/list.mark",
    "mark-import-gumbel": "mark import --from vllm E/engine-gumbel.json --out W/gumbel.mark",
    "mark-import-table": "mark import --from transformers E/engine-table.json --out W/table.mark",
    "mark-publish-list": "mark publish W/list.mark --out W/list.card",
    "mark-publish-gumbel": "mark publish W/gumbel.mark --out W/gumbel.card",
    "mark-publish-table": "mark publish W/table.mark --out W/table.card",
    "text-list": "test text --mark W/list.mark E/plain.jsonl",
    "text-gumbel": "test text --mark W/gumbel.mark E/plain.jsonl",
    "text-table": "test text --mark W/table.mark E/plain.jsonl",
    "model-record": "test model --mark MARK --suspect W/suspect --probes E/probes.jsonl --decoys 0 --record W/kept",
}
"""Commands that tests/test_golden.py does not have."""

RECORDS: Final = {
    "written.jsonl": "outputs",
    "quality/answers.jsonl": "outputs",
    "kept/suspect.jsonl": "log-probabilities-by-text",
    "api-reference.reference.jsonl": "log-probabilities-by-text",
    "api.jsonl": "answers-of-an-endpoint",
    "api-text.jsonl": "answers-of-an-endpoint",
    "endpoint/readings/mark.jsonl": "answers-of-an-endpoint",
    "probes.jsonl": "outputs",
    "questions.jsonl": "prompts",
    "served.jsonl": "outputs",
    "small.mark": "the-mark-file",
    "small.card": "the-card",
    "layers.mark": "the-mark-file",
    "layers.card": "the-card",
    "list.mark": "the-mark-file",
    "gumbel.mark": "the-mark-file",
    "table.mark": "the-mark-file",
    "list.card": "the-card",
    "gumbel.card": "the-card",
    "table.card": "the-card",
    "child.mark": "the-mark-file",
    "child.card": "the-card",
    "endpoint/plan.json": "the-plan",
    "early.json": "the-plan",
    "endpoint/result.json": "verdict",
    "bundle.json": "the-bundle",
    "case/mark.card": "the-card",
}
"""Files that the commands leave in W."""

READ: Final = {
    "outputs.jsonl": "outputs",
    "child.jsonl": "outputs",
    "prompts.jsonl": "prompts",
    "suspect.jsonl": "log-probabilities-by-text",
    "positions.jsonl": "log-probabilities-by-position",
}
"""Files of tests/golden/evidence, as others would write them."""


@dataclass
class Section:
    """A heading of the page. keys: of its table, and their types; columns: of a table of columns."""

    title: str
    text: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        return slug(self.title)

    @property
    def more(self) -> list[str]:
        """The sections whose keys it has too."""
        return [one for said in re.findall(r"Has the keys of(.*?)\.", self.text, re.DOTALL) for one in linked(said)]


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def linked(text: str) -> list[str]:
    """The anchors of this page that a text links to."""
    return re.findall(r"\]\(#([\w-]+)\)", text)


def parse(text: str) -> dict[str, Section]:
    """The sections of a page, by their anchors."""
    sections: list[Section] = [Section("")]
    table: dict[str, str] | None = None
    for line in re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines():
        if heading := re.match(r"#+ (.+)", line):
            sections.append(Section(heading[1]))
        here = sections[-1]
        here.text += line + "\n"
        if not line.startswith("|"):
            table = None
        elif line in ("| key | type | meaning |", "| column | type | meaning |"):
            table = here.keys if line.startswith("| key") else here.columns
        elif table is not None and line.startswith("| `"):
            _, key, kind, *_ = map(str.strip, re.split(r"(?<!\\)\|", line))
            assert key.strip("`") not in table, f"twice in '{here.title}': {key}"
            table[key.strip("`")] = kind
    return {one.slug: one for one in sections}


PAGES: Final = parse(PAGE.read_text(encoding="utf-8"))


def rows_of(section: str) -> dict[str, tuple[str, str]]:
    """All keys of a section: the type of each, and the section whose table has it."""
    here = PAGES[section]
    found = {key: value for one in here.more for key, value in rows_of(one).items()}
    return found | {key: (kind, section) for key, kind in here.keys.items()}


SIMPLE: Final[dict[str, Any]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}


def is_of(value: Any, kind: str) -> bool:
    """Whether a value is of a type, as the tables write it; a link is an object."""
    for one in kind.removesuffix(MISSING).split(" or "):
        name = "object" if linked(one) else one
        if name.startswith("list of "):
            if isinstance(value, list) and all(SIMPLE[name[8:].removesuffix("s")](item) for item in value):
                return True
        elif SIMPLE[name](value):
            return True
    return False


def name_of_type(value: Any) -> str:
    """The type to write into a table for a value."""
    if isinstance(value, list) and value:
        return f"list of {name_of_type(value[0])}s"
    return next(name for name, fits in SIMPLE.items() if fits(value))


Seen = set[tuple[str, str]]


def problems(value: dict[str, Any], section: str, seen: Seen | None = None) -> list[str]:
    """What a section does not say of an object; `seen` gets the keys that it does say, with the section of each."""
    table = rows_of(section)
    seen = set() if seen is None else seen
    return list(_problems(value, section, table, "", seen))


def _problems(
    value: dict[str, Any], section: str, table: dict[str, tuple[str, str]], at: str, seen: Seen
) -> Iterator[str]:
    title = PAGES[section].title
    for key, (kind, _) in table.items():
        parent, name = key.rpartition(".")[::2]
        if parent == at.rstrip(".") and not name.isupper() and not kind.endswith(MISSING) and name not in value:
            yield f"`{key}` of section '{title}' is not there: write '{kind}{MISSING}' if it need not be"
    for name, one in value.items():
        key = at + name
        if key not in table:
            key = next((row for row in table if row.rpartition(".")[0] == at[:-1] and row.split(".")[-1].isupper()), "")
        if not key:
            shared = "".join(f" or '{PAGES[one].title}'" for one in PAGES[section].more)
            yield (
                f"`{at}{name}` is in no table. Add it to section '{title}'{shared} of docs/formats.md:\n"
                f"| `{at}{name}` | {name_of_type(one)} | what it is, its unit, when it is null |"
            )
            continue
        kind, where = table[key]
        seen.add((where, key))
        if not is_of(one, kind):
            yield f"`{at}{name}` of section '{title}' is {name_of_type(one)}, and the table says '{kind}': {one!r}"
        elif nested := linked(kind):
            if one is not None:
                tried = [(problems(one, other, found := set()), found) for other in nested]
                best, found = min(tried, key=lambda two: len(two[0]))
                seen |= found
                yield from best
        elif any(row.startswith((f"{key}.", f"{key}[]")) for row in table):
            for item, inside in ((one, ".") for _ in "1") if isinstance(one, dict) else ((i, "[].") for i in one or ()):
                yield from _problems(item, section, table, key + inside, seen)


def section_of(command: str, result: dict[str, Any]) -> str:
    """Where the page says what a command prints."""
    if "questions" in result:
        return "test-planted-questions"
    section = next(one for words, one in SECTIONS.items() if command.startswith(words))
    return "sequential" if "log10_e" in result and section != "endpoint" else section


@dataclass(frozen=True)
class Made:
    """What all commands printed, by name, and the folder of their files."""

    printed: dict[str, dict[str, Any]]
    here: Workspace
    seen: Seen = field(default_factory=set)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with workspace(tmp_path_factory.mktemp("formats")) as here:
        yield Made({name: here.run(command)["result"] for name, command in (COMMANDS | MORE).items()}, here)


def demo(made: Made, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `demo --json` prints, of results that are there; the demo itself takes minutes."""
    from verify.cli import main
    from verify.planning import demo as script

    class Shown:
        def to_dict(self) -> dict[str, Any]:
            return made.printed["lineage-distilled"]

    found = [script.Row("a", "text", "", made.printed["text-unmarked"])]
    found += [script.Row("b", "weights", "", made.printed["logprobs-reference"])]
    monkeypatch.setattr(script, "run", lambda *_: found)
    monkeypatch.setattr(script, "verdict", lambda *_: Shown())
    printed: dict[str, Any] = json.loads(CliRunner().invoke(main, ["demo", "--model", "x", "--json"]).stdout)
    return printed


def plant(made: Made, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `protect plant --json` prints; the small tokenizer knows none of the answers."""
    from verify.cli import main
    from verify.fingerprint import planted, protect

    mark = Mark.load(made.here.folder / "small.mark")
    asked = planted.questions(mark, 4)
    known = planted.planted_result("x", mark, asked, [one.answer for one in asked], 1e-3)
    monkeypatch.setattr(protect, "plant", lambda *_: known)
    words = f"protect plant --mark {made.here.folder}/small.mark --teacher x --out y --json"
    printed: dict[str, Any] = json.loads(CliRunner().invoke(main, shlex.split(words)).stdout)
    return printed


@pytest.mark.slow
def test_every_key_of_a_result_is_documented(made: Made) -> None:
    found: dict[str, str] = {}  # each problem once, and the first command that has it
    for name, command in (COMMANDS | MORE).items():
        for one in problems(made.printed[name], section_of(command, made.printed[name])):
            found.setdefault(one, name)
    assert not found, "\n\n".join(f"{name}: {one}" for one, name in found.items())


@pytest.mark.slow
def test_every_documented_key_of_a_result_occurs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Seen = set()
    for name, command in (COMMANDS | MORE).items():
        problems(made.printed[name], section_of(command, made.printed[name]), seen)
    for printed, section in ((demo(made, monkeypatch), "demo"), (plant(made, monkeypatch), "protect-plant")):
        assert not problems(printed, section, seen)
    pages = list(PAGES)
    results = pages[pages.index("results") :]
    never = [f"{one}: {key}" for one in results for key in PAGES[one].keys if (one, key) not in seen]
    assert not never, f"no command prints these keys of docs/formats.md; add a command to MORE, or remove them: {never}"


@pytest.mark.slow
def test_every_key_of_a_file_is_documented(made: Made) -> None:
    found: dict[str, str] = {}
    for name, section in RECORDS.items():
        path = made.here.folder / name
        records = rows(path) if path.suffix == ".jsonl" else [json.loads(path.read_text())]
        assert records
        for record in records:
            found |= dict.fromkeys(problems(record, section), name)
    assert not found, "\n\n".join(f"{name}: {one}" for one, name in found.items())


@pytest.mark.slow
def test_every_documented_key_of_a_file_occurs(made: Made) -> None:
    for name in ("the-mark-file", "the-card", "the-plan"):
        seen: Seen = set()
        for written in (path for path, one in RECORDS.items() if one == name):
            problems(json.loads((made.here.folder / written).read_text()), name, seen)
        assert {key for _, key in seen} == set(PAGES[name].keys)
    seen = set()
    for path in (made.here.folder / one for one in ("api.jsonl", "api-text.jsonl")):
        for record in rows(path):
            problems(record, "answers-of-an-endpoint", seen)
    # `translated` is of suspects with tokens of their own, as in tests/test_strings.py; here all speak the mark's
    assert {key for _, key in seen} | {"translated"} == set(PAGES["answers-of-an-endpoint"].keys)


@pytest.mark.parametrize("name", READ)
def test_what_others_write_is_documented(name: str) -> None:
    lines = (EVIDENCE / name).read_text().splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    bad = {"outputs.jsonl": 1}.get(name, 0)
    assert sum(bool(problems(record, READ[name])) for record in records) <= bad


def test_the_keys_of_outputs_are_those_that_are_read() -> None:
    others = {"instruction", "input", "source", "model", "run", "seal"}
    logprobs = {"context_ids", "top_logprobs", "sampled"}
    assert set(PAGES["outputs"].keys) == set(OURS) - logprobs | others


@pytest.mark.slow
def test_the_files_of_a_verdict(made: Made) -> None:
    """The plan is one line, its digest is of that line, and result.json is what was printed."""
    folder, printed = made.here.folder / "endpoint", made.printed["lineage-endpoint"]
    line = (folder / "plan.json").read_bytes()
    assert line.endswith(b"\n")
    assert hashlib.sha256(line[:-1]).hexdigest() == printed["plan_digest"]
    assert json.dumps(json.loads(line), sort_keys=True).encode() == line[:-1]
    assert json.loads(line) == printed["plan"] | {"format": "stillmark-plan/v1"}
    assert json.loads((folder / "result.json").read_text()) == printed


@pytest.mark.slow
def test_what_a_bundle_holds_is_documented(made: Made) -> None:
    """The predicate, and the pairs of each test; of text, and of an endpoint's answers."""
    seen: Seen = set()
    for name in ("bundle.json", "endpoint.bundle"):
        payload = base64.b64decode(json.loads((made.here.folder / name).read_text())["payload"])
        predicate = json.loads(payload)["predicate"]
        assert not problems(predicate, "the-predicate", seen)
        for pairs in predicate["pairs"].values():
            assert not problems(pairs, "scored-pairs", seen)
    missing = {(one, key) for one in ("the-predicate", "scored-pairs") for key in PAGES[one].keys} - seen
    optional = (
        "promised.KEY",
        "card.KEY",
        "cards",
        "cards[].KEY",
        "calibration",
        "calibration.result",
        "calibration.sha256",
    )
    assert missing <= {("the-predicate", key) for key in optional}
    kept = json.loads((made.here.folder / "case" / "pairs.json").read_text())
    assert kept["format"] == "stillmark-pairs/v1"
    assert (made.here.folder / "case" / "pairs.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_the_log_of_an_endpoint_is_held_against_its_bundle(made: Made, tmp_path: Path) -> None:
    """The pairs are found again in the log, and whatever is done to the log is named."""
    here = made.here.folder
    log = here / "endpoint" / "readings" / "mark.jsonl"
    whole = verify.check_bundle(here / "endpoint.bundle", reveal=here / "small.mark", outputs=[log])
    assert whole.differences == ()
    assert "found again in the files" in " ".join(str(whole).split())
    lines = log.read_bytes().splitlines(True)
    for changed in (lines[:-1], [*lines, lines[-1]], [lines[0].replace(b"w5", b"w6"), *lines[1:]]):
        (tmp_path / "mark.jsonl").write_bytes(b"".join(changed))
        found = verify.check_bundle(here / "endpoint.bundle", outputs=[tmp_path / "mark.jsonl"])
        said = " ".join(found.differences)
        assert "record" in said
        assert "chain" in said


def test_the_digest_of_a_model_folder(tmp_path: Path) -> None:
    from tests import small
    from watermark.folder import model_files
    from watermark.models import model_digest

    small.model(tmp_path / "model")
    whole = hashlib.sha256()
    for name in sorted(model_files(tmp_path / "model")):
        content = (tmp_path / "model" / name).read_bytes()
        whole.update(f"{len(name.encode())} {name}".encode() + hashlib.sha256(content).digest())
    assert model_digest(tmp_path / "model") == whole.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "section"), [("corpus/documents.parquet", "corpus"), ("windows.parquet", "context-counts")]
)
def test_the_columns_of_parquet(file: str, section: str, made: Made) -> None:
    schema = pq.read_schema(made.here.folder / file)
    found = {
        one.name: f"list of {one.type.value_type}" if pa.types.is_list(one.type) else str(one.type) for one in schema
    }
    assert found == PAGES[section].columns
    if section == "context-counts":
        assert set(json.loads(schema.metadata[b"stillmark"])) == {"width", "marked"}


def test_the_vectors_are_those_of_the_file() -> None:
    """The table of the page has one row of the file for each width; tests/test_prf.py holds the code to the file."""
    table = re.findall(r"^\| (\d) \| ([0-9a-f]{16}) \|([\d ]*)\| (\d+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [int(row[0]) for row in table] == list(range(prf.MAX_WIDTH + 1))
    for width, key, context, token, bits in table:
        vectors = next(
            one for one in VECTORS["sets"] if one["width"] == int(width) and one["secret_hex"] == bytes(range(32)).hex()
        )
        assert vectors["prf_key_hex"].startswith(key)
        assert {"context": list(map(int, context.split())), "token": int(token), "bits": int(bits)} in vectors["rows"]


def test_the_derived_secrets_are_those_of_the_code() -> None:
    text, secret = PAGES["derived-secrets"].text, bytes(range(32))
    children = re.findall(r"^\| `(.+)` \| ([0-9a-f]{64}) \|$", text, re.MULTILINE)
    assert len(children) == 3
    for label, child in children:
        assert Mark(secret).child(label).secret.hex() == child
    for salt in ("prf", "derive", "commit", "order", "canaries", "seal", "decoy"):
        assert f"`stillmark/v1/{salt}`" in text


def test_the_keyed_permutation_is_as_described() -> None:
    key, number = bytes(range(32)), 50
    draws = [
        sum(int(prf.bits(key, np.array([[i]]), np.array([j]))[0]) << 16 * j for j in range(4)) for i in range(number)
    ]
    assert prf.shuffle(key, number).tolist() == sorted(range(number), key=lambda i: (draws[i], i))


def test_what_the_tables_do_not_say_is_seen() -> None:
    """The comparison itself: a new key, a missing one, a type, a null, a key inside."""
    good: dict[str, Any] = {"match": True, "differs": ["delta"]}
    assert not problems(good, "mark-check")
    assert "Add it to section 'Mark check'" in problems(good | {"new": 1}, "mark-check")[0]
    for bad in ({"match": True}, good | {"match": 1}, good | {"match": None}, good | {"differs": [1]}):
        assert len(problems(bad, "mark-check")) == 1, bad
    row = {"out": "a", "layers": 2, "mark": {"label": "", "commitment": ""}}
    assert not problems(row, "protect-order")
    assert len(problems(row | {"mark": {"label": ""}}, "protect-order")) == 1
    assert len(problems(row | {"mark": {"label": "", "commitment": "", "secret": ""}}, "protect-order")) == 1
