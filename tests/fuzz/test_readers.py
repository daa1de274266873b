"""Every reader of a file, on files that are wrong in a few places: it reads them, or says in words what is wrong.

    make fuzz CASES=10000

looks longer. A case that fails is printed, and becomes a test beside the reader's others.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import small
from tests.fuzz.mutate import JSON, changed, fuzz, lines, spoiled
from verify.corpus.plan import CorpusPlan, check_seal, with_seal
from verify.data import context_counts
from verify.data.folding import Folding, fold, spellings
from verify.data.logprobs import read_recorded
from verify.data.outputs import Output, Outputs, read_outputs
from verify.fingerprint.answers import recorded
from verify.fingerprint.planted import judge, questions
from verify.radioactivity.logs import read_logs
from verify.radioactivity.prompts import prompts_test
from watermark import Mark, StillmarkError
from watermark.io.fields import JsonError, array_items, load_json
from watermark.io.prompts import Prompt, read_prompts
from watermark.io.records import resuming
from watermark.keyfile import read_labels
from watermark.tokenizers import load

EVIDENCE: Final = Path(__file__).parent.parent / "golden" / "evidence"
LOGS: Final = Path(__file__).parent.parent / "data" / "logs" / "marked"


def rows(path: Path, most: int = 3) -> list[Any]:
    """The first records of a file, shortened."""
    return [json.loads(line) for line in path.read_text().splitlines()[:most]]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        small.mark(Path(folder) / "m", small.tokenizer(Path(folder) / "tokenizer"))
        yield Path(folder)


def reads(read: Callable[[Path], object], data: bytes, suffix: str = ".jsonl") -> None:
    """A reader reads a file with this content, or raises an error of ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(data)
        with suppress(StillmarkError):
            read(path)


@fuzz
@given(st.binary(max_size=200) | spoiled(b'[{"a": [1, 2.5, "x\\u00e9", null, true]}, {"b": {"c": -1e-5}}]\n'))
def test_json(data: bytes) -> None:
    with suppress(JsonError):
        load_json(data)
    with suppress(JsonError):
        list(array_items(io.BytesIO(data), 1 << 20))


MARK: Final = Mark(bytes(range(32)), vocabulary_size=256, exempt=(0, 1), label="fuzz")
BODY: Final = MARK.card() | {"format": "stillmark-mark/v1", "secret": MARK.secret.hex()}


@fuzz
@given(changed(BODY) | JSON)
def test_a_mark(body: Any) -> None:
    def read(path: Path) -> object:
        made = Mark.load(path, allow_readable=True)
        return made.card(), made.matches(made.card())

    reads(read, json.dumps(body).encode("utf-8", "surrogatepass"))


@fuzz
@given(changed(MARK.card()))
def test_a_card(body: Any) -> None:
    if isinstance(body, dict):
        differs = MARK.matches(body)
        assert bool(differs) == (body != MARK.card()) or "parent" in body


@fuzz
@given(data=lines([*rows(EVIDENCE / "outputs.jsonl"), *rows(EVIDENCE / "answers.jsonl", 2)]))
def test_outputs(place: Path, data: bytes) -> None:
    mark = Mark.load(place / "m")

    def read(path: Path) -> object:
        found = read_outputs(path, mark, skip_bad=True)
        assert isinstance(found, Outputs)
        for output in found:
            assert output.output_ids.dtype == np.int64
            assert not len(output.ids) or 0 <= output.ids.min() <= output.ids.max() < small.SIZE
            assert output.sequential in (True, False)
        return found

    reads(read, data)


@pytest.mark.parametrize("name", ["chat-logprobs.jsonl", "vllm.jsonl", "lm-eval.jsonl", "trl.jsonl", "chunks.jsonl",
                                  "responses.jsonl", "chat-with-messages.jsonl", "messages.jsonl"])  # fmt: skip
def test_logs(name: str, place: Path) -> None:
    mark = Mark.load(place / "m")

    @fuzz
    @given(lines(rows(LOGS / name, 2)))
    def look(data: bytes) -> None:
        reads(lambda path: read_outputs(path, mark, skip_bad=True), data)
        reads(lambda path: read_logs([path], mark, skip_bad=True), data)

    look()


@pytest.mark.parametrize("name", ["alpaca.json", "sharegpt.json", "table.csv", "table.tsv", "stream.sse"])
def test_other_files(name: str, place: Path) -> None:
    mark, data = Mark.load(place / "m"), (LOGS / name).read_bytes()[:6000]

    @fuzz
    @given(spoiled(data))
    def look(spoilt: bytes) -> None:
        suffix = Path(name).suffix if name != "stream.sse" else ".jsonl"
        reads(lambda path: read_outputs(path, mark, skip_bad=True), spoilt, suffix)

    look()


def table() -> pa.Table:
    return pa.table(
        {
            "id": ["a", "b"],
            "prompt": ["w5 w6", "w7"],
            "output": ["w8 w9", "w5"],
            "output_ids": [[8, 9], [5]],
            "messages": [[{"role": "user", "content": "w5"}], None],
            "ended": [True, None],
        }
    )


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table(), buffer)
    return buffer.getvalue()


def arrow() -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table().schema) as writer:
        writer.write_table(table())
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_tables(suffix: str, place: Path) -> None:
    mark = Mark.load(place / "m")

    @fuzz
    @given(spoiled(parquet() if suffix == ".parquet" else arrow(), 2))
    def look(data: bytes) -> None:
        reads(lambda path: read_outputs(path, mark, skip_bad=True), data, suffix)

    look()


@fuzz
@given(lines([*rows(EVIDENCE / "suspect.jsonl", 1), *rows(EVIDENCE / "positions.jsonl", 2)]))
def test_recorded_log_probabilities(data: bytes) -> None:
    reads(lambda path: read_recorded(path, MARK), data)


TURNS: Final = [{"role": "user", "content": "w5"}]


@fuzz
@given(lines([{"prompt": "w5"}, {"id": "a", "messages": TURNS}, {"prompt_ids": [5]}]))
def test_prompts(data: bytes) -> None:
    reads(read_prompts, data)


@fuzz
@given(st.binary(max_size=60) | spoiled(b"customer-1\ncustomer-2\r\n\n customer 3\n"))
def test_labels(data: bytes) -> None:
    reads(read_labels, data, ".txt")


@pytest.fixture(scope="module")
def counts(place: Path) -> bytes:
    mark = Mark.load(place / "m")
    outputs = Outputs((Output("a", None, np.arange(2, 60) % 40 + 2),))
    context_counts.count_contexts(outputs, mark).save(place / "counts.parquet")
    return (place / "counts.parquet").read_bytes()


def test_context_counts(counts: bytes) -> None:
    @fuzz
    @given(spoiled(counts, 2))
    def look(data: bytes) -> None:
        reads(lambda path: context_counts.load(path, 1), data, ".parquet")

    look()


@fuzz
@given(lines([{"id": "k0000", "output": "maple"}, {"id": "k0001", "output": "I think cedar."}, {"id": "k0002"}]))
def test_planted_answers(data: bytes) -> None:
    assert len(questions(MARK, 3)) == 3
    reads(lambda path: judge(path, MARK, 3), data)


@fuzz
@given(lines([{"id": "a", "top": ["x", "y"]}, {"id": "b", "output": "x"}]))
def test_agreement_answers(data: bytes) -> None:
    asked = [Prompt("a", "w5", None), Prompt("b", "w6", None)]
    reads(lambda path: recorded(path, asked, 2), data)


@fuzz
@given(lines([{"id": "a", "n": 1, "run": "r"}, {"id": "b", "n": [2.5], "run": "r"}]))
def test_logs_to_go_on_with(data: bytes) -> None:
    def read(path: Path) -> object:
        with resuming(path, "r") as (earlier, append):
            append([{"id": "new"}])
        with resuming(path, "r") as (again, _):
            assert len(again) == len(earlier) + 1
        return again

    reads(read, data)


PLAN: Final = {
    "format": "stillmark-corpus/v2",
    "settings": {"commitment": "c", "alpha": 0.001, "unmarked": False, "skip_bad": False, "source_column": "source",
                 "tokenizer": None, "columns": None},
    "files": [["a.jsonl", 5, 6, "0" * 64]],
    "partitions": 1,
    "items": [[[0, 1, 0, 5, None]]],
}  # fmt: skip


@fuzz
@given(changed(PLAN) | JSON, st.booleans())
def test_the_plan_of_a_corpus(body: Any, seal: bool) -> None:
    key = MARK.seal_key
    data = with_seal(body, key, "run.json") if seal and isinstance(body, dict) else json.dumps(body).encode()

    def read(path: Path) -> object:
        path.rename(path.with_name("run.json"))
        return CorpusPlan.load(path.parent, key)

    reads(read, data)


@fuzz
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_seals(body: dict[str, Any]) -> None:
    body.pop("seal", None)
    written = json.loads(with_seal(body, b"k" * 32, "name"))
    again = check_seal(written, b"k" * 32, Path("f"), "name")
    assert json.dumps(again) == json.dumps(body)
    with pytest.raises(StillmarkError):
        check_seal(written | {"more": 1}, b"k" * 32, Path("f"), "name")


@fuzz
@given(st.text(max_size=300), st.lists(st.integers(0, small.SIZE - 1), max_size=60))
def test_other_spellings(place: Path, text: str, ids: list[int]) -> None:
    for inner in spellings(text).values():
        fold(inner)
    folding = Folding(load(place / "tokenizer"))
    whole = np.array(ids, np.int64)
    copied = folding.copied([text, folding.text_of(ids)], whole)
    assert copied.shape == whole.shape
    prompts_test(MARK, [Output("", whole, whole[:0], prompt=text)], load(place / "tokenizer"))
