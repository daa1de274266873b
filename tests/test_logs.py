"""Logs as people have them: every shape is recognised, and a verdict needs no option."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

import verify
from tests import logs, small
from tests.servers import chat
from verify.data.conversations import shown_in
from verify.data.outputs import read_outputs
from verify.data.shapes import Answers, described, tally
from verify.radioactivity.logs import UnusableLogprobsError
from watermark import GreenList, InputError, Mark, UsageError
from watermark.io.jsonl import read_jsonl
from watermark.io.records import Record, RecordError

Run = Callable[..., Result]
FILES = [name.partition("/")[0] for name in logs.FORMATS]
WITH_LOGPROBS = ("chat-logprobs.jsonl", "completions.jsonl.gz", "vllm.jsonl")
SAID = {
    "chat-requests.jsonl": "chat completions", "chat-with-messages.jsonl": "chat completions",
    "chat-logprobs.jsonl": "chat completions", "batch-output.jsonl": "chat completions",
    "stream.sse": "streamed chunks",
    "chunks.jsonl": "streamed chunks", "responses.jsonl": "responses", "completions.jsonl.gz": "completions",
    "messages.jsonl": "conversations", "messages.jsonl.zst": "conversations", "sharegpt.json": "conversations",
    "alpaca.json": "", "trl.jsonl": "conversations in two parts", "table.csv": "prompts and answers",
    "table.tsv": "prompts and answers", "vllm.jsonl": "vLLM outputs", "lm-eval.jsonl": "lm-eval samples",
    "messages.parquet": "conversations", "dataset": "prompts and answers",
}  # fmt: skip
NO_PROMPT = ("batch-output.jsonl", "stream.sse", "chunks.jsonl", "chat-logprobs.jsonl")
WITH_SYSTEM = ("chat-requests.jsonl", "chat-with-messages.jsonl", "responses.jsonl", "messages.jsonl",
               "messages.jsonl.zst", "trl.jsonl", "messages.parquet")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    small.mark(folder / "m", small.tokenizer(folder / "tok"))
    return folder


@pytest.fixture(scope="module")
def mark(place: Path) -> Mark:
    return Mark.load(place / "m")


def test_the_files_are_those_that_the_script_writes() -> None:
    for kind in ("marked", "unmarked"):
        rows = logs.answers(kind == "marked")
        for name, made in logs.FORMATS.items():
            if not name.endswith(logs.BINARY):
                assert made(rows) == (logs.FOLDER / kind / name).read_bytes(), f"write {kind}/{name} anew"


@pytest.mark.parametrize("name", FILES)
def test_verify_says_who_carries_the_mark(name: str, place: Path, stillmark: Run) -> None:
    """The files are fixed and so is the secret: no chance is left in this test."""
    for kind, verdict in (("marked", "relays the teacher"), ("unmarked", "unrelated as far as seen")):
        done = stillmark("verify", logs.FOLDER / kind / name, "--mark", place / "m", "--json")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["verdict"] == verdict
        assert found["access"] == ("log probabilities" if name in WITH_LOGPROBS else "text")
        told = ", log probabilities for all" if name in WITH_LOGPROBS else ""
        said = f"The records were read as {SAID[name]}, 10 answers{told}."
        assert (said in found["notes"]) == bool(SAID[name])


@pytest.mark.parametrize("name", FILES)
def test_every_shape_holds_the_same_answers(name: str, mark: Mark) -> None:
    rows = logs.answers(True)
    read = read_outputs(logs.FOLDER / "marked" / name, mark)
    assert [one.output_ids.tolist() for one in read] == [row["ids"] for row in rows]
    for i, one in enumerate(read):
        shown = [] if name in NO_PROMPT else [30 + i, 10 + i]
        shown = [250, 251, *shown] if name in WITH_SYSTEM else shown
        shown = [250, 251, 240, 241, 242, *shown] if name == "sharegpt.json" else shown
        assert ([] if one.prompt_ids is None else one.prompt_ids.tolist()) == shown
    assert len({one.id for one in read}) == 10


@pytest.mark.parametrize("name", WITH_LOGPROBS)
def test_log_probabilities_are_those_of_our_own_records(name: str, mark: Mark, tmp_path: Path) -> None:
    rows = logs.answers(True)
    prompts = [[] if name in NO_PROMPT else [30 + i, 10 + i] for i in range(len(rows))]
    ours = [
        {"prompt_ids": prompt, "output_ids": row["ids"], "top_logprobs": row["tops"], "sampled": True}
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    found = verify.logprob_test(mark, logs.FOLDER / "marked" / name, decoys=0)
    same = verify.logprob_test(mark, small.jsonl(tmp_path / "ours.jsonl", ours), decoys=0)
    assert found.n == same.n > 1000
    assert np.isclose(found.log10_pvalue, same.log10_pvalue, rtol=1e-9)
    assert found.rows()["read as"] == f"{SAID[name]}, 10 answers, log probabilities for all"
    assert "read as" not in same.rows()


def test_other_commands_read_the_same_shapes(place: Path, mark: Mark, tmp_path: Path, stillmark: Run) -> None:
    file = logs.FOLDER / "marked" / "messages.parquet"
    text = json.loads(stillmark("test", "text", "--mark", place / "m", file, "--json").stdout)
    assert text["read_as"] == "conversations, 10 answers"
    (tmp_path / "labels").write_text("a\nb\n")
    more = {
        "corpus": ("test", "corpus", file, "--out", tmp_path / "run"),
        "folder": ("test", "corpus", logs.FOLDER / "marked" / "dataset", "--out", tmp_path / "run2"),
        "attribute": ("attribute", file, "--labels", tmp_path / "labels"),
        "counts": ("count-contexts", file, "--out", tmp_path / "c"),
    }
    found = {
        name: json.loads(stillmark(*words, "--mark", place / "m", "--json").stdout) for name, words in more.items()
    }
    assert (found["corpus"]["n"], found["corpus"]["read_as"]) == (text["n"], "conversations, 10 answers")
    assert found["corpus"]["sources"][0]["source"] == "s"
    assert found["folder"]["read_as"] == "prompts and answers, 10 answers"
    assert found["attribute"]["read_as"] == "conversations, 10 answers"
    assert found["counts"]["tokens"] > 350
    again = stillmark("test", "corpus", file, "--out", tmp_path / "run", "--mark", place / "m", "--json")
    assert json.loads(again.stdout)["read_as"] == "conversations, 10 answers"


def test_a_student_learns_from_a_log(place: Path) -> None:
    from verify.planning.student import read_examples
    from watermark.tokenizers import load_transformers

    examples = read_examples(
        Answers(logs.FOLDER / "marked" / "sharegpt.json"), load_transformers(place / "tok"), max_length=200
    )
    assert [one.output_ids[:40] for one in examples] == [row["ids"] for row in logs.answers(True)]


# what else people have


def _read(path: Path, mark: Mark, **more: Any) -> list[tuple[list[int], list[int]]]:
    return [
        ([] if one.prompt_ids is None else one.prompt_ids.tolist(), one.output_ids.tolist())
        for one in read_outputs(path, mark, **more)
    ]


def _answer(*texts: str, **more: Any) -> dict[str, Any]:
    choices = [{"index": i, "message": {"content": text}, "finish_reason": "stop"} for i, text in enumerate(texts)]
    return {"id": "a", "object": "chat.completion", "choices": choices} | more


def test_each_choice_is_an_output(mark: Mark, tmp_path: Path) -> None:
    path = small.jsonl(tmp_path / "o.jsonl", [{"messages": [{"role": "user", "content": "w5"}]} | _answer("w6", "w7")])
    read = read_outputs(path, mark)
    assert [(one.id, one.prompt_ids.tolist(), one.output_ids.tolist(), one.ended) for one in read] == [  # type: ignore[union-attr]
        ("a", [5], [6], True),
        ("a#1", [5], [7], True),
    ]


def test_all_that_was_shown_is_the_prompt(mark: Mark, tmp_path: Path) -> None:
    """Rule 2: tools and their results, pictures' captions, earlier turns; what came later was not shown."""
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "w10"}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "w11"}, {"type": "image_url", "image_url": {"url": "w99"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w98", "arguments": "w12"}}]},
        {"role": "tool", "tool_call_id": "w97", "content": "w13"},
        {"role": "assistant", "content": "w14", "reasoning_content": "w15"},
        {"role": "user", "content": "w16"},
        {"role": "assistant", "content": "w17"},
        {"role": "user", "content": "w18"},
    ]
    tools = [{"type": "function", "function": {"description": "w20"}}]
    path = small.jsonl(tmp_path / "o.jsonl", [{"messages": turns, "tools": tools}])
    ((prompt, output),) = _read(path, mark)
    assert output == [17]
    assert set(prompt) - {0} == {10, 11, 12, 13, 14, 15, 16, 20}
    small.jsonl(path, [{"request": json.dumps({"messages": turns[:4], "tools": tools}), "response": _answer("w6")}])
    ((prompt, output),) = _read(path, mark)
    assert (set(prompt) - {0, 6}, output) == ({20, 10, 11, 12, 13}, [6])


def test_marked_text_in_an_earlier_turn_does_not_convict(place: Path, tmp_path: Path, stillmark: Run) -> None:
    """T4: an innocent model that repeats what it was shown, wherever that stands."""
    texts = [row["output"] for row in logs.answers(True)]
    user = [{"role": "user", "content": f"w5 {text}"} for text in texts]
    told = [{"role": "assistant", "content": text} for text in texts]
    cases = {
        "messages": [{"messages": [a, b]} for a, b in zip(user, told, strict=True)],
        "tool": [{"messages": [{"role": "tool", "content": a["content"]}, b]} for a, b in zip(user, told, strict=True)],
        "earlier": [{"messages": [{"role": "user", "content": "w5"}, b, user[0], b]} for b in told],
        "request": [{"request": {"messages": [a]}, "response": _answer(b)} for a, b in zip(user, texts, strict=True)],
        "system": [{"system": a["content"], "prompt": "w5", "output": b} for a, b in zip(user, texts, strict=True)],
        "beside": [{"messages": [a], "output": b} for a, b in zip(user, texts, strict=True)],
    }
    for name, records in cases.items():
        path = small.jsonl(tmp_path / f"{name}.jsonl", records)
        found = json.loads(stillmark("verify", path, "--mark", place / "m", "--json").stdout)
        assert found["verdict"] in ("unrelated as far as seen", "cannot tell"), name
    path = small.jsonl(tmp_path / "o.jsonl", [{"messages": [{"role": "user", "content": "w5"}, b]} for b in told])
    found = json.loads(stillmark("verify", path, "--mark", place / "m", "--json").stdout)
    assert found["verdict"] == "relays the teacher", "the check itself sees marked text"


def test_a_log_of_ours_says_what_was_shown(mark: Mark, tmp_path: Path) -> None:
    """Where a text was read through an endpoint, the request has it as its prompt, and nothing was shown before."""
    row = {"output_ids": [5, 6], "output": "w5 w6", "request": {"prompt": "w5 w6"}, "answer": {"choices": []}}
    path = small.jsonl(tmp_path / "o.jsonl", [row | {"prompt_ids": []}])
    assert _read(path, mark) == [([], [5, 6])]
    assert _read(small.jsonl(path, [row]), mark) == [([5, 6], [5, 6])]


def test_failed_requests_are_counted(mark: Mark, tmp_path: Path) -> None:
    failures = [
        {"custom_id": "x", "response": {"status_code": 400, "body": {"error": {"message": "no"}}}, "error": None},
        {"custom_id": "y", "response": None, "error": {"code": "expired"}},
        {"choices": None, "error": {"message": "Insufficient credits"}},
    ]
    path = small.jsonl(tmp_path / "o.jsonl", [*failures, _answer("w5"), *failures])
    assert read_outputs(path, mark).read_as == "chat completions, 1 answers, 6 records without an answer"


def test_what_only_thought_is_read(mark: Mark, tmp_path: Path) -> None:
    thought = {"choices": [{"message": {"content": None, "reasoning_content": "w5 w6"}, "finish_reason": "length"}]}
    parts = {
        "choices": [{"message": {"content": [{"type": "thinking", "thinking": "w9"}, {"type": "text", "text": "w7"}]}}]
    }
    path = small.jsonl(tmp_path / "o.jsonl", [thought, parts])
    assert [ids for _, ids in _read(path, mark)] == [[5, 6], [7]]


def test_messages_of_other_services(mark: Mark, tmp_path: Path) -> None:
    for i, record in enumerate(
        (
            {"input": [{"role": "user", "content": "w5"}], "output": {"role": "assistant", "content": "w6"}},
            {"request": {"system": "w5", "messages": []}, "response": {"role": "assistant", "type": "message",
             "content": [{"type": "text", "text": "w6"}]}},
            {"request_body": {"messages": [{"role": "user", "content": "w5"}]}, "response_body": _answer("w6")},
            {"prompt": "w5", "response": {"message": {"role": "assistant", "content": "w6"}, "done": True}},
            {"prompt": "w5", "output": "w6"},
            {"context": "w5", "response": "w6"},
            {"request": {"prompt": [5]}, "response": {"choices": [{"text": "w6", "finish_reason": "stop"}]}},
            {"conversation": [{"role": "user", "content": "w5"}, {"role": "Assistant", "content": "w6"}]},
            {"messages": {"role": ["user", "assistant"], "content": ["w5", "w6"]}},
            {"messages": [{"role": "user", "parts": [{"text": "w5"}]}, {"role": "model", "parts": [{"text": "w6"}]}]},
            {"request": {"messages": [{"role": "user", "content": "w5"}]}, "response": [
                {"choices": [{"index": 0, "delta": {"content": "w"}}]},
                {"choices": [{"index": 0, "delta": {"content": "6"}}]}]},
        )
    ):  # fmt: skip
        assert _read(small.jsonl(tmp_path / f"{i}.jsonl", [record]), mark) == [([5], [6])], record


def test_one_answer_over_several_lines(mark: Mark, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(_answer("w5"), indent=2))
    assert _read(tmp_path / "one.json", mark) == [([], [5])]
    (tmp_path / "two.json").write_text(json.dumps(_answer("w5"), indent=2) * 2)
    with pytest.raises(RecordError, match=r"two.json:1: the file begins as an object over several lines, and is none"):
        read_outputs(tmp_path / "two.json", mark)


def test_a_folder_of_logs(place: Path, mark: Mark, tmp_path: Path, stillmark: Run) -> None:
    for i, row in enumerate(logs.answers(True)):
        (tmp_path / f"{i}.json").write_text(json.dumps(_answer(row["output"]), indent=1))
    read = read_outputs(tmp_path, mark)
    assert read.read_as == "chat completions, 10 answers"
    found = json.loads(stillmark("verify", tmp_path, "--mark", place / "m", "--json").stdout)
    assert found["verdict"] == "relays the teacher"
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("x")
    pq.write_table(pa.table({"prompt": ["w5"], "completion": ["w6"]}), hub / "train-0.parquet")
    assert _read(tmp_path / "hub", mark) == [([5], [6])]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="is a folder without a file of records"):
        read_outputs(tmp_path / "none", mark)


# columns, and what is not understood


def test_columns_say_where_the_fields_are(place: Path, mark: Mark, tmp_path: Path, stillmark: Run) -> None:
    rows = logs.answers(True)
    records = [
        {"q": {"text": row["prompt"]}, "runs": [{"a.b": row["output"]}], "id": f"r{i}"} for i, row in enumerate(rows)
    ]
    path = small.jsonl(tmp_path / "o.jsonl", records)
    columns = {"prompt": "q.text", "output": "runs.0.a.b"}
    records = [
        {"q": {"text": row["prompt"]}, "runs": [{"a": {"b": row["output"]}}], "id": f"r{i}"}
        for i, row in enumerate(rows)
    ]
    small.jsonl(path, records)
    read = read_outputs(path, mark, columns=columns)
    assert [one.output_ids.tolist() for one in read] == [row["ids"] for row in rows]
    assert [one.id for one in read] == [f"r{i}" for i in range(10)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "o.parquet")
    words = ("--mark", place / "m", "--columns", "prompt=q.text, output=runs.0.a.b", "--json")
    for file in (path, tmp_path / "o.parquet"):
        found = json.loads(stillmark("verify", file, *words).stdout)
        assert found["verdict"] == "relays the teacher"
        assert found["plan"]["settings"]["columns"] == columns
        corpus = stillmark("test", "corpus", file, *words, "--out", tmp_path / f"run-{file.name}")
        assert json.loads(corpus.stdout)["verdict"] == "carries the mark", corpus.stderr
    within = small.jsonl(tmp_path / "in.jsonl", [{"log": {"raw": _answer(row["output"])}} for row in rows])
    assert read_outputs(within, mark, columns={"response": "log.raw"}).read_as == "chat completions, 10 answers"


def test_an_unknown_shape_says_what_was_found(place: Path, mark: Mark, tmp_path: Path, stillmark: Run) -> None:
    """T1: the error names the keys, and what to say."""
    path = small.jsonl(tmp_path / "web.jsonl", [{"text": "w5 w6", "meta": {"url": "u"}}])
    pq.write_table(pa.table({"text": ["w5 w6"], "meta": [{"url": "u"}]}), tmp_path / "web.parquet")
    for file, names in ((path, "'text', 'meta.url'"), (tmp_path / "web.parquet", "'text', 'meta'")):
        with pytest.raises(RecordError) as error:
            read_outputs(file, mark)
        assert str(error.value.hint) == f"it has {names}; say with `columns` which is what: output=text"
        done = stillmark("verify", file, "--mark", place / "m")
        assert (done.exit_code, "say with --columns which is what: output=text" in done.stderr) == (1, True)
        assert stillmark("verify", file, "--mark", place / "m", "--columns", "output=text").exit_code == 0
        with pytest.raises(RecordError, match="the record has no 'txt': no output is found with these `columns`"):
            read_outputs(file, mark, columns={"output": "txt"})
    for words in ("output", "output=", "=text", "output=a,output=b"):
        assert stillmark("verify", path, "--mark", place / "m", "--columns", words).exit_code == 2
    for columns in ({"prompt": "text"}, {"output": "text", "score": "x"}):
        with pytest.raises(UsageError, match="`columns`"):
            read_outputs(path, mark, columns=columns)
    assert stillmark("verify", place / "tok", "--mark", place / "m", "--columns", "output=text").exit_code != 0


def test_a_mixture_is_malformed(mark: Mark, tmp_path: Path) -> None:
    turns = {"messages": [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]}
    for first, other, name in (
        (_answer("w5"), turns, "chat completions"),
        (turns, {"output": "w5"}, "conversations"),
        (turns, _answer("w5"), "conversations"),
        ({"prompt": "w5", "completion": "w6"}, turns, "prompts and answers"),
    ):
        path = small.jsonl(tmp_path / "o.jsonl", [first, other, first])
        with pytest.raises(RecordError, match=rf"o.jsonl:2: the records before are {name}, and this one is not"):
            read_outputs(path, mark)
        read = read_outputs(path, mark, skip_bad=True)
        assert (len(read), read.bad) == (2, 1)
    path = small.jsonl(tmp_path / "o.jsonl", [{"output": "w5"}, turns])
    with pytest.raises(RecordError, match=r"o.jsonl:2: the records before are plain outputs .*, and this one is not"):
        read_outputs(path, mark)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [{"role": "user", "content": "w5"}]}, "no turn of the conversation is by the assistant"),
        ({"messages": [{"role": "assistant", "content": "w5"}, "x"]}, "a turn of a conversation must have a 'role'"),
        ({"messages": [{"role": "user"}, "x"], "answer": "w5"}, "a turn of a conversation must have a 'role'"),
        ({"messages": {"role": ["a"], "content": []}, "answer": "w5"}, "the columns of a conversation must be equally"),
        ({"messages": {"role": ["a"], "content": []}, "output": "w5"}, "the columns of a conversation must be equally"),
        ({"resps": [[[-1.5, False]]], "arguments": [["w5"]]}, "'resps' hold no text"),
        ({"outputs": [{"text": "w5"}, {"text": 5}]}, "an output needs 'text' or 'token_ids'"),
        ({"outputs": [{"token_ids": [5, 5000]}]}, "'output_ids' holds id 5000 at position 1, outside the vocabulary"),
    ],
)
def test_what_is_wrong_within_a_record(record: dict[str, Any], message: str, mark: Mark, tmp_path: Path) -> None:
    path = small.jsonl(tmp_path / "o.jsonl", [record])
    with pytest.raises(RecordError, match=rf"o.jsonl:1: {message}"):
        read_outputs(path, mark)


def test_tokens_of_another_tokenizer_are_not_taken_for_ours(mark: Mark, tmp_path: Path) -> None:
    """Ids of a log are the suspect's: they count only if they spell the text that stands beside them."""
    row = logs.answers(True)[0]
    other = [i - 1 for i in row["ids"]]
    good = {"prompt": None, "prompt_token_ids": [30, 10], "outputs": [{"text": row["output"], "token_ids": row["ids"]}]}
    bad = {"prompt": row["prompt"], "prompt_token_ids": [1], "outputs": [{"text": row["output"], "token_ids": other}]}
    path = small.jsonl(tmp_path / "o.jsonl", [good, bad])
    assert _read(path, mark) == [([30, 10], row["ids"])] * 2
    small.jsonl(path, [good, bad | {"prompt": None}])
    with pytest.raises(RecordError, match=r"o.jsonl:2: the ids of the prompt are not those of the mark's tokenizer"):
        read_outputs(path, mark)


# log probabilities that tell nothing


def _spoilt(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    content: list[dict[str, Any]] = logs._content(row)
    for entry in content:
        if kind == "empty":
            entry["top_logprobs"] = []
        elif kind == "alone":
            entry["top_logprobs"] = entry["top_logprobs"][:1]
        elif kind == "names":
            for one in (entry, *entry["top_logprobs"]):
                one["token"] = "x" + one["token"]
        else:
            for i, one in enumerate(entry["top_logprobs"]):
                one["logprob"] = -1.5 if kind == "constant" else -9999.0 * (i > 0)
    choice = {"message": {"content": row["output"]}, "logprobs": {"content": content}, "finish_reason": "length"}
    return {"choices": [choice]}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("empty", "names no likely tokens"), ("alone", "names only the tokens that were written"),
        ("constant", "every token the same log probability"), ("clipped", "no probability"),
        ("names", "the tokens are not those of the mark's tokenizer"),
    ],
)  # fmt: skip
def test_useless_log_probabilities_fall_back_to_text(
    kind: str, why: str, place: Path, tmp_path: Path, stillmark: Run
) -> None:
    """A1, A2 in a log: "insufficient evidence" was said of what was never read."""
    path = small.jsonl(tmp_path / "o.jsonl", [_spoilt(kind, row) for row in logs.answers(True)])
    with pytest.raises(UnusableLogprobsError, match=why):
        verify.logprob_test(place / "m", path)
    done = stillmark("test", "logprobs", "--mark", place / "m", path)
    assert (done.exit_code, "stillmark test text" in done.stderr) == (1, True)
    found = json.loads(stillmark("verify", path, "--mark", place / "m", "--json").stdout)
    assert found["verdict"] == "relays the teacher"
    (note,) = [note for note in found["notes"] if "tested instead" in note]
    assert why in note


def test_answers_in_other_tokens_are_counted(place: Path, tmp_path: Path, stillmark: Run) -> None:
    rows = logs.answers(True)
    some = [_spoilt("names" if i < 4 else "none", row) for i, row in enumerate(rows)]
    for one, row in zip(some[4:], rows[4:], strict=True):
        one["choices"][0]["logprobs"] = {"content": logs._content(row)}
    path = small.jsonl(tmp_path / "o.jsonl", some)
    found = json.loads(stillmark("verify", path, "--mark", place / "m", "--json").stdout)
    assert (found["access"], found["verdict"]) == ("log probabilities", "relays the teacher")
    assert [one for one in found["notes"] if "4 answers were left out: their tokens are not" in one]
    small.jsonl(path, [*some, *some[:4]])
    found = json.loads(stillmark("verify", path, "--mark", place / "m", "--json").stdout)
    assert [one for one in found["notes"] if "tested instead" in one], "more are lost than kept"


def test_a_first_answer_without_log_probabilities_decides_nothing(place: Path, tmp_path: Path, stillmark: Run) -> None:
    """A8 in a log."""
    rows = logs.answers(True)
    empty = {"choices": [{"message": {"content": ""}, "logprobs": {"content": []}, "finish_reason": "stop"}]}
    path = small.jsonl(
        tmp_path / "o.jsonl", [empty, *(logs._completion(row, i, logprobs=True) for i, row in enumerate(rows))]
    )
    found = json.loads(stillmark("verify", path, "--mark", place / "m", "--json").stdout)
    assert (found["access"], found["verdict"]) == ("log probabilities", "relays the teacher")
    assert "The records were read as chat completions, 11 answers, log probabilities for 10." in found["notes"]


def test_bad_records_beside_log_probabilities_are_counted(place: Path, tmp_path: Path, stillmark: Run) -> None:
    good = [logs._completion(row, i, logprobs=True) for i, row in enumerate(logs.answers(True))]
    path = small.jsonl(tmp_path / "o.jsonl", [*good, {"x": 1}])
    refused = stillmark("verify", path, "--mark", place / "m")
    assert (refused.exit_code, "o.jsonl:11: the records before are chat" in refused.stderr) == (1, True)
    found = json.loads(stillmark("verify", path, "--mark", place / "m", "--skip-bad", "--json").stdout)
    assert found["access"] == "log probabilities"
    assert [note for note in found["notes"] if "1 bad record was left out" in note]


# files


def test_files_in_other_encodings_are_named(mark: Mark, tmp_path: Path) -> None:
    line = '{"output": "w5"}\n'
    for name in ("o.jsonl", "o.csv", "o.json"):
        for encoding in ("utf-16", "utf-16-le", "utf-32"):
            (tmp_path / name).write_bytes((line if name != "o.csv" else "output\nw5\n").encode(encoding))
            with pytest.raises(RecordError, match="UTF-16 or UTF-32"):
                read_outputs(tmp_path / name, mark)
    (tmp_path / "o.jsonl").write_bytes(("\ufeff" + line).encode() * 2)  # two files in one, by `cat`
    assert len(read_outputs(tmp_path / "o.jsonl", mark)) == 2
    (tmp_path / "o.csv").write_bytes(b"output\nw5\n\xff\n")
    with pytest.raises(RecordError, match=r"o.csv:\d: no valid UTF-8"):
        read_outputs(tmp_path / "o.csv", mark)


def test_compressed_files(mark: Mark, tmp_path: Path) -> None:
    lines = b'{"output": "w5"}\n' * 3
    (tmp_path / "o.jsonl.gz").write_bytes(gzip.compress(lines) + gzip.compress(lines))
    assert len(read_outputs(tmp_path / "o.jsonl.gz", mark)) == 6
    whole = bytes(pa.compress(lines * 1000, "zstd", asbytes=True))
    (tmp_path / "o.JSONL.zst").write_bytes(whole)
    assert len(read_outputs(tmp_path / "o.JSONL.zst", mark)) == 3000
    for name, content in (("a.jsonl.zst", whole[:-5]), ("a.jsonl.gz", gzip.compress(lines)[:-9]), ("b.json.gz", lines)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: cannot read"):
            read_outputs(tmp_path / name, mark)
    (tmp_path / "o.parquet.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"a compressed file of kind '\.parquet'"):
        read_outputs(tmp_path / "o.parquet.gz", mark)


def test_a_long_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few kilobytes may hold a line of gigabytes."""
    from watermark.io import jsonl

    monkeypatch.setattr(jsonl, "MOST", 1 << 16)
    for name, content in (
        ("a.jsonl.gz", b'{"output": "' + b"w5 " * (1 << 20)),
        ("b.json.gz", b'[{"output": "' + b"w5 " * (1 << 20)),
        ("c.json.gz", b'{\n"output": "' + b"w5 " * (1 << 20)),
    ):
        (tmp_path / name).write_bytes(gzip.compress(content))
        (found,) = read_jsonl(tmp_path / name)
        assert isinstance(found, RecordError)


def test_damaged_tables_are_refused(mark: Mark, tmp_path: Path) -> None:
    """What an Arrow file says of itself is checked before it is believed."""
    good = pa.table({"prompt": ["w5"] * 50, "response": ["w6 w7"] * 50})
    text = pa.array([b"w5", b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    bad = pa.table({"prompt": text, "response": text})
    path, whole = tmp_path / "o.arrow", []
    for table, rows in ((good, 50), (bad, 0)):
        for opened in (pa.ipc.new_stream, pa.ipc.new_file):
            with opened(path, table.schema) as writer:
                writer.write_table(table)
            if rows:
                assert len(read_outputs(path, mark)) == rows
                whole.append(path.read_bytes())
            else:
                with pytest.raises(InputError, match=r"o.arrow:1: no readable values"):
                    read_outputs(path, mark)
        pq.write_table(table, tmp_path / "o.parquet")
        if not rows:
            with pytest.raises(InputError, match=r"o.parquet:1: no readable values"):
                read_outputs(tmp_path / "o.parquet", mark)
    draw = random.Random(3)
    for _ in range(300):
        spoilt = bytearray(draw.choice(whole))
        for _ in range(3):
            spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
        path.write_bytes(spoilt[: draw.choice([len(spoilt), draw.randrange(len(spoilt))])])
        try:
            read_outputs(path, mark, skip_bad=True)
        except InputError:
            continue


def test_csv_that_is_none(mark: Mark, tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    for content, line, message in (
        ("prompt,output\nw5,w6\nw7\n", 3, "a row of 1 cells under 2 names of columns"),
        ("output,output\nw5,w6\n", 1, "the first row must name the columns"),
        ('output\n"w5\nw6', 2, "no valid CSV"),
        ("output,marked\nw5,perhaps\n", 2, "'marked' must be true or false"),
    ):
        path.write_text(content)
        with pytest.raises(RecordError, match=rf"o.csv:{line}: {message}"):
            read_outputs(path, mark)
    path.write_text('output,marked,sequential,prompt_ids\n"w5\nw6",True,,"[7]"\n')
    (read,) = read_outputs(path, mark)
    assert (read.marked, read.sequential, read.ids.tolist()) == (True, False, [7, 5, 6])
    path.write_text("")
    with pytest.raises(InputError, match="holds no records"):
        read_outputs(path, mark)


def test_csv_with_semicolons(mark: Mark, tmp_path: Path) -> None:
    """As spreadsheets write it where the comma is the decimal sign."""
    path = tmp_path / "o.csv"
    for content in (
        'prompt;output\nw7;"w5\nw6"\n',
        'prompt,output\n"w7","w5\nw6"\n',
        '"prompt";"output"\r\nw7;w5 w6\r\n',
    ):
        path.write_text(content)
        (read,) = read_outputs(path, mark)
        assert read.ids.tolist() == [7, 5, 6]
    path.write_text("prompt;output\nw7;w5;w6\n")
    with pytest.raises(RecordError, match=r"o.csv:2: a row of 3 cells under 2 names of columns"):
        read_outputs(path, mark)


def test_parts_of_a_file_have_the_shape_of_the_file(
    place: Path, tmp_path: Path, stillmark: Run, monkeypatch: Any
) -> None:
    """A corpus is read part by part: a part that begins with another shape is as malformed as in one piece."""
    from verify.corpus import plan

    monkeypatch.setattr(plan, "ITEM_TOKENS", 50)
    turns = [
        {"messages": [{"role": "user", "content": "w5"}, {"role": "assistant", "content": f"w{i} w{i + 1}"}]}
        for i in range(2, 60)
    ]
    good = small.jsonl(tmp_path / "good.jsonl", turns)
    mixed = small.jsonl(tmp_path / "mixed.jsonl", [*turns[:40], *({"output": "w5"} for _ in range(18))])
    run = ("test", "corpus", "--mark", place / "m", "--json")
    assert json.loads(stillmark(*run, good, "--out", tmp_path / "a").stdout)["records"] == 58
    refused = stillmark(*run, mixed, "--out", tmp_path / "b")
    assert "mixed.jsonl:41: the records before are conversations" in refused.stderr
    chunks = small.jsonl(
        tmp_path / "chunks.jsonl", [json.loads(line) for line in logs.chunks(logs.answers(True)).splitlines()]
    )
    found = json.loads(stillmark(*run, chunks, "--out", tmp_path / "c").stdout)
    assert (found["records"], found["read_as"]) == (10, "streamed chunks, 10 answers")


# hostile logs


def _values(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(one for key, held in inner for one in _values(held, (*path, key)))]


@pytest.mark.parametrize("name", ["chat-requests.jsonl", "chat-logprobs.jsonl", "batch-output.jsonl", "chunks.jsonl",
    "responses.jsonl", "messages.jsonl", "trl.jsonl", "vllm.jsonl", "lm-eval.jsonl"])  # fmt: skip
def test_whatever_stands_in_a_log_is_read_or_refused(name: str, mark: Mark, tmp_path: Path) -> None:
    draw = random.Random(5)
    junk: list[Any] = [None, True, 5, -1, 2.5, 2**70, "x", "", [], {}, [[]], [None], [5], ["x"],
                       {"a": 1}, [{"a": 1}], "{", "data: 5", {"role": "assistant"}, [{"role": "user"}],
                       {"choices": [None]},
                       {"choices": 5}, {"text": 5}]  # fmt: skip
    line = (logs.FOLDER / "marked" / name).read_text().splitlines()[0]
    lines = []
    for _ in range(300):
        record = json.loads(line)
        path = draw.choice([path for path in _values(record) if path and len(path) < 7])
        held = record
        for step in path[:-1]:
            held = held[step]
        held[path[-1]] = draw.choice(junk)
        lines.append(record)
    file = tmp_path / "o.jsonl"
    for i, record in enumerate(lines):
        small.jsonl(file, [record, json.loads(line)])
        try:
            read_outputs(file, mark, skip_bad=True)
            verify.logprob_test(mark, file, decoys=0)
        except InputError:
            continue
        except Exception as error:
            raise AssertionError(f"{i}: {json.dumps(record)[:2000]}") from error


def test_deep_nesting_is_refused(mark: Mark, tmp_path: Path) -> None:
    deep = "[" * 900 + '"w5"' + "]" * 900
    turns = f'[{{"role": "user", "content": {deep}}}, {{"role": "assistant", "content": "w6"}}]'
    for name in ("request", "input"):
        (tmp_path / "o.jsonl").write_text(
            f'{{"{name}": {turns}, "response": "w6"}}\n{{"{name}": "w5", "response": "w6"}}\n'
        )
        with pytest.raises(RecordError, match=r"o.jsonl:1: (the record is nested too deeply|no valid JSON: nested)"):
            read_outputs(tmp_path / "o.jsonl", mark)
        assert len(read_outputs(tmp_path / "o.jsonl", mark, skip_bad=True)) == 1
    assert shown_in([["w5"], {"text": "w6"}]) == "w5\nw6"


# the real tokenizer


def _real_answers(teacher: Path, mark: Mark, marked: bool) -> logs.Rows:
    """Ten answers of the real teacher, and what it says of each token in them: the ten likeliest, mark and all."""
    import torch

    from watermark import generate
    from watermark.generation import Sampling
    from watermark.models import load_model

    questions = [f"Write a few sentences about {what}." for what in logs.THINGS]
    model, tokenizer = load_model(teacher)
    sampling = Sampling(max_new_tokens=60, seed=3)
    rows: logs.Rows = []
    for said in generate((model, tokenizer), questions, mark=mark if marked else None, sampling=sampling):
        ids = [i for i in said.output_ids if i not in mark.exempt]
        whole = torch.tensor([[*said.prompt_ids, *ids]])
        with torch.no_grad():
            scores = model(whole).logits[0, len(said.prompt_ids) - 1 : -1].float()
        if marked:
            mark.bias_(scores, whole[0, len(said.prompt_ids) - 1 : -1, None])
        top = torch.log_softmax(scores, -1).topk(10)
        tops = [list(zip(*one, strict=True)) for one in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        rows.append({"prompt": said.prompt, "output": tokenizer.decode(ids), "ids": ids, "tops": tops})
    return rows


def _real_log(rows: logs.Rows, name: Callable[[int], str]) -> list[dict[str, Any]]:
    def entry(token: int, tops: Any) -> dict[str, Any]:
        told = [{"token": name(t), "logprob": round(p, 4)} for t, p in tops]
        return {"token": name(token), "logprob": -1.0, "top_logprobs": told}

    return [
        {"request": {"messages": logs._user(row)}, "response": {"choices": [{
            "message": {"role": "assistant", "content": row["output"]}, "finish_reason": "length",
            "logprobs": {"content": [entry(t, tops) for t, tops in zip(row["ids"], row["tops"], strict=True)]}}]}}
        for row in rows
    ]  # fmt: skip


@pytest.mark.slow
def test_real_answers_in_every_shape(teacher: Path, tmp_path: Path, stillmark: Run) -> None:
    """Real words in a real tokenizer: delta 6 in some 500 tokens. The secret and the seed are fixed."""
    from watermark.tokenizers import load

    mark = Mark.new(teacher, secret=small.SECRET, scheme=GreenList(delta=6.0))
    mark.save(tmp_path / "m")
    tokenizer = load(teacher)
    pieces = {i: piece for piece, i in tokenizer.get_vocab().items()}
    found_in = {"relays the teacher", "distilled or relayed"}
    shapes = [name for name in logs.FORMATS if name not in WITH_LOGPROBS]  # the tokens of the others are words
    for marked, verdicts in ((True, found_in), (False, {"unrelated as far as seen"})):
        rows = _real_answers(teacher, mark, marked)
        folder = tmp_path / str(marked)
        for name, made in logs.FORMATS.items():
            if name in (shapes if marked else shapes[:2]):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(made(rows))
        folder.mkdir(exist_ok=True)
        small.jsonl(folder / "chat.jsonl", _real_log(rows, lambda t: tokenizer.decode([t])))
        small.jsonl(folder / "pieces.jsonl", _real_log(rows, lambda t: pieces[t]))
        small.jsonl(folder / "ids.jsonl", _real_log(rows, lambda t: f"token_id:{t}"))
        for path in sorted(folder.iterdir()):
            found = json.loads(stillmark("verify", path, "--mark", tmp_path / "m", "--json").stdout)
            assert found["verdict"] in verdicts, path.name
            told = path.name in ("chat.jsonl", "pieces.jsonl", "ids.jsonl")
            assert found["access"] == ("log probabilities" if told else "text")
            assert not [note for note in found["notes"] if "tested instead" in note]


def test_counts_are_those_of_what_was_read() -> None:
    read = Answers(logs.FOLDER / "marked" / "vllm.jsonl")
    assert all(isinstance(one, Record) for one in read)
    assert described(tally([read, read])) == "vLLM outputs, 20 answers, log probabilities for all"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"logprob": "-0.5"}, "token 2: 'logprob' must be a number, or null"),
        ({"logprob": True}, "token 2: 'logprob' must be a number, or null"),
        ({"logprob": float("nan")}, "token 2: 'logprob' must be a number, or null"),
        ({"bytes": [119, 256]}, "token 2: 'bytes' must be a list of integers from 0 to 255, or null"),
        ({"bytes": "w"}, "token 2: 'bytes' must be a list of integers from 0 to 255, or null"),
        ({"token": 5}, "token 2: 'token' must be a string"),
        ({"top_logprobs": [{"token": "w6", "logprob": [1]}]}, "token 2: 'top_logprobs' must be the likely tokens"),
        ({"top_logprobs": 5}, "token 2: 'top_logprobs' must be the likely tokens"),
    ],
)
def test_a_field_of_a_token_that_is_of_another_type_is_malformed(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """F14: a token's own log probability that is no number, and bytes above 255, were passed over in silence."""
    good = chat("w5 w6", [("w5", [("w5", -0.1), ("w7", -3.0)]), ("w6", [("w6", -0.1), ("w8", -3.0)])])
    bad = json.loads(json.dumps(good))
    bad["choices"][0]["logprobs"]["content"][1] |= entry
    for answer, errors in ((good, 0), (bad, 1)):
        path = tmp_path / "log.jsonl"
        path.write_text(json.dumps({"prompt": "w4", "response": answer}) + "\n")
        read = list(Answers(path))
        assert [isinstance(one, RecordError) for one in read] == [bool(errors)]
        assert not errors or message in str(read[0])


def test_the_same_of_completions_and_of_dumps(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows: dict[str, list[Any]] = {"tokens": ["w5"], "token_logprobs": [-0.1], "top_logprobs": [{"w5": -0.1}]}
    output = {"text": "w5", "token_ids": [5], "logprobs": [{"5": {"logprob": -0.1, "decoded_token": "w5"}}]}
    for change in ({}, {"token_logprobs": ["-0.1"]}, {"tokens": [5]}, {"top_logprobs": [{"w5": "x"}]}):
        path.write_text(json.dumps({"choices": [{"text": "w5", "logprobs": rows | change}]}) + "\n")
        assert [isinstance(one, RecordError) for one in Answers(path)] == [bool(change)]
    for logprobs in ([{"5": {"logprob": "x"}}], [{"5": "x"}]):
        path.write_text(json.dumps({"prompt": "w4", "outputs": [output | {"logprobs": logprobs}]}) + "\n")
        assert [isinstance(one, RecordError) for one in Answers(path)] == [True]
    path.write_text(json.dumps({"prompt": "w4", "outputs": [output]}) + "\n")
    assert [isinstance(one, RecordError) for one in Answers(path)] == [False]


def test_ids_that_are_no_list_are_malformed(tmp_path: Path) -> None:
    """Found by fuzzing: one truth value in the place of a list ended in an internal error."""
    small.mark(tmp_path / "m", small.tokenizer(tmp_path / "tok"))
    row = {"prompt": "w5", "outputs": [{"text": "w6 w7", "token_ids": True}]}
    with pytest.raises(InputError, match="must be a list of token ids"):
        verify.read_outputs(small.jsonl(tmp_path / "log.jsonl", [row]), Mark.load(tmp_path / "m"))
