"""Targets: every reader of what somebody wrote, said or was asked."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from tests import small
from tests.fuzz.engine import Case, Place, Target
from tests.fuzz.mutate import changed, document, lines, spoiled, text, value
from verify.corpus.plan import CorpusPlan, check_seal, with_seal
from verify.data import context_counts
from verify.data.folding import Folding, fold, spellings
from verify.data.footer import read_footer
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
MARK: Final = Mark(bytes(range(32)), vocabulary_size=256, exempt=(0, 1), label="fuzz")


def rows(path: Path, most: int = 3) -> list[Any]:
    """The first records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()[:most]]


def fewer(found: Any, most: int = 3) -> Any:
    """The same with no more likely tokens at a place than some."""
    if isinstance(found, dict):
        return {name: fewer(one[:most] if name == "top_logprobs" and isinstance(one, list) else one)
                for name, one in found.items()}  # fmt: skip
    return [fewer(one) for one in found] if isinstance(found, list) else found


def own_mark(place: Place) -> Mark:
    """The mark of the place, which has a tokenizer."""
    return Mark.load(place.folder / "m")


def json_text(_place: Place) -> Case:
    def case(draw: Random) -> None:
        good = b'[{"a": [1, 2.5, "x\\u00e9", null, true]}, {"b": {"c": -1e-5}}]\n'
        data = spoiled(draw, good) if draw.randrange(4) else draw.randbytes(draw.randint(0, 200))
        with suppress(JsonError):
            load_json(data)
        with suppress(JsonError):
            list(array_items(io.BytesIO(data), 1 << 20))

    return case


def outputs(place: Place) -> Case:
    mark, some = own_mark(place), [*rows(EVIDENCE / "outputs.jsonl"), *rows(EVIDENCE / "answers.jsonl", 2)]

    def read(path: Path) -> None:
        found = read_outputs(path, mark, skip_bad=True)
        assert isinstance(found, Outputs)
        for output in found:
            assert output.output_ids.dtype == np.int64
            assert not len(output.ids) or 0 <= output.ids.min() <= output.ids.max() < small.SIZE
            assert output.sequential in (True, False)

    return lambda draw: place.reads(read, lines(draw, some))


def columns(place: Place) -> Case:
    mark = own_mark(place)
    some = [{"question": {"text": "w5"}, "model": [{"said": "w6 w7", "ids": [6, 7]}], "n": i} for i in range(2)]
    good = {"prompt": "question.text", "output": "model.0.said", "id": "n", "output_ids": "model.0.ids"}

    def case(draw: Random) -> None:
        asked = changed(draw, good) if draw.randrange(2) else good
        if isinstance(asked, dict) and all(isinstance(one, str) for one in asked.values()):
            place.reads(lambda path: read_outputs(path, mark, skip_bad=True, columns=asked), lines(draw, some))

    return case


def logs(name: str, place: Place) -> Case:
    mark, some = own_mark(place), fewer(rows(LOGS / name, 2))

    def read(path: Path) -> None:
        read_outputs(path, mark, skip_bad=True)
        read_logs([path], mark, skip_bad=True)

    return lambda draw: place.reads(read, lines(draw, some))


def other_files(name: str, place: Place) -> Case:
    mark, data = own_mark(place), (LOGS / name).read_bytes()[:3000]
    file = f"file{Path(name).suffix if name != 'stream.sse' else '.jsonl'}"
    return lambda draw: place.reads(lambda path: read_outputs(path, mark, skip_bad=True), spoiled(draw, data), file)


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


def tables(suffix: str, place: Place) -> Case:
    mark, good = own_mark(place), parquet() if suffix == ".parquet" else arrow()

    def read(path: Path) -> None:
        read_outputs(path, mark, skip_bad=True)

    return lambda draw: place.reads(read, spoiled(draw, good, 2), f"file{suffix}")


def footers(place: Place) -> Case:
    good = parquet()
    begin = len(good) - 8 - int.from_bytes(good[-8:-4], "little")

    def case(draw: Random) -> None:
        footer = spoiled(draw, good[begin:-8])
        place.reads(read_footer, good[:begin] + footer + len(footer).to_bytes(4, "little") + good[-4:])

    return case


def log_probabilities(place: Place) -> Case:
    some = [*rows(EVIDENCE / "suspect.jsonl", 1), *rows(EVIDENCE / "positions.jsonl", 2)]
    some[0] = {name: one[:12] if isinstance(one, list) else one for name, one in some[0].items()}
    return lambda draw: place.reads(lambda path: read_recorded(path, MARK), lines(draw, some))


def prompts(place: Place) -> Case:
    turns = [{"role": "user", "content": "w5"}]
    some = [{"prompt": "w5"}, {"id": "a", "messages": turns}, {"prompt_ids": [5]}]
    return lambda draw: place.reads(read_prompts, lines(draw, some))


def labels(place: Place) -> Case:
    good = b"customer-1\ncustomer-2\r\n\n customer 3\n"
    return lambda draw: place.reads(read_labels, spoiled(draw, good), "file.txt")


def counts(place: Place) -> Case:
    texts = Outputs((Output("a", None, np.arange(2, 60) % 40 + 2),))
    context_counts.count_contexts(texts, own_mark(place)).save(place.folder / "counts.parquet")
    good = (place.folder / "counts.parquet").read_bytes()
    return lambda draw: place.reads(lambda path: context_counts.load(path, 1), spoiled(draw, good, 2), "file.parquet")


def planted(place: Place) -> Case:
    assert len(questions(MARK, 3)) == 3
    some = [{"id": "k0000", "output": "maple"}, {"id": "k0001", "output": "I think cedar."}, {"id": "k0002"}]
    return lambda draw: place.reads(lambda path: judge(path, MARK, 3), lines(draw, some))


def agreement(place: Place) -> Case:
    asked = [Prompt("a", "w5", None), Prompt("b", "w6", None)]
    some = [{"id": "a", "top": ["x", "y"]}, {"id": "b", "output": "x"}]
    return lambda draw: place.reads(lambda path: recorded(path, asked, 2), lines(draw, some))


def logs_to_go_on_with(place: Place) -> Case:
    def read(path: Path) -> None:
        with resuming(path, "r") as (earlier, append):
            append([{"id": "new"}])
        with resuming(path, "r") as (again, _):
            assert len(again) == len(earlier) + 1

    some = [{"id": "a", "n": 1, "run": "r"}, {"id": "b", "n": [2.5], "run": "r"}]
    return lambda draw: place.reads(read, lines(draw, some))


PLAN: Final = {
    "format": "stillmark-corpus/v2",
    "settings": {"commitment": "c", "alpha": 0.001, "unmarked": False, "skip_bad": False, "source_column": "source",
                 "tokenizer": None, "columns": None},
    "files": [["a.jsonl", 5, 6, "0" * 64]],
    "partitions": 1,
    "seed": "00",
    "items": [[[0, 1, 0, 5, None]]],
}  # fmt: skip


def corpus_plans(place: Place) -> Case:
    def read(path: Path) -> object:
        return CorpusPlan.load(path.parent, MARK.seal_key)

    place.reads(read, with_seal(PLAN, MARK.seal_key, "run.json"), "run.json")
    assert read(place.folder / "case" / "run.json") is not None

    def case(draw: Random) -> None:
        body = changed(draw, PLAN)
        sealed = isinstance(body, dict) and draw.randrange(2)
        data = with_seal(body, MARK.seal_key, "run.json") if sealed else document(draw, PLAN)
        place.reads(read, data, "run.json")

    return case


def seals(_place: Place) -> Case:
    def case(draw: Random) -> None:
        body = {text(draw, 5): value(draw) for _ in range(draw.randint(0, 4))}
        written = json.loads(with_seal(body, b"k" * 32, "name"))
        again = check_seal(written, b"k" * 32, Path("f"), "name")
        assert json.dumps(again) == json.dumps(body)
        try:
            check_seal(written | {"more": 1}, b"k" * 32, Path("f"), "name")
        except StillmarkError:
            return
        raise AssertionError("a seal over another content holds")

    return case


def other_spellings(place: Place) -> Case:
    tokenizer = load(place.folder / "tokenizer")
    folding = Folding(tokenizer)

    def case(draw: Random) -> None:
        shown = text(draw, 60)
        whole = np.array([draw.randrange(small.SIZE) for _ in range(draw.randint(0, 60))], np.int64)
        for inner in spellings(shown).values():
            fold(inner)
        copied = folding.copied([shown, folding.text_of(whole.tolist())], whole)
        assert copied.shape == whole.shape
        prompts_test(MARK, [Output("", whole, whole[:0], prompt=shown)], tokenizer)

    return case


TARGETS: Final[dict[str, Target]] = {
    "json": json_text,
    "outputs": outputs,
    "columns": columns,
    **{f"logs {name}": partial(logs, name) for name in (
        "chat-logprobs.jsonl", "vllm.jsonl", "lm-eval.jsonl", "trl.jsonl", "chunks.jsonl", "responses.jsonl",
        "chat-with-messages.jsonl", "messages.jsonl",
    )},
    **{f"file {name}": partial(other_files, name) for name in (
        "alpaca.json", "sharegpt.json", "table.csv", "table.tsv", "stream.sse",
    )},
    "table .parquet": partial(tables, ".parquet"),
    "table .arrow": partial(tables, ".arrow"),
    "footers": footers,
    "log probabilities": log_probabilities,
    "prompts": prompts,
    "labels": labels,
    "context counts": counts,
    "planted": planted,
    "agreement": agreement,
    "logs to go on with": logs_to_go_on_with,
    "corpus plans": corpus_plans,
    "seals": seals,
    "spellings": other_spellings,
}  # fmt: skip
