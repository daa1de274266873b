"""Logs in the shapes that people have them in, ten answers each: the same answers, marked or not, in every file.

`python -m tests.logs` writes them to `tests/data/logs`. The answers are words of `tests.small`: in marked ones every
token is green after the one before, in the others they are drawn uniformly.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests import small
from watermark import GreenList, Mark

FOLDER: Final = Path(__file__).parent / "data" / "logs"
NUMBER: Final = 10
LENGTH: Final = 40
SYSTEM: Final = "w250 w251"
THINGS: Final = ("rain", "ships", "bread", "chess", "whales", "music", "maps", "salt", "clocks", "rivers")
Rows = list[dict[str, Any]]


def answers(marked: bool) -> Rows:
    """Ten rows: `prompt`, `output` and its `ids`, and `tops`, [token, log probability] at each of them."""
    mark = Mark.new(secret=small.SECRET, scheme=GreenList(delta=2.0))
    draw = np.random.RandomState(7)
    rows = []
    for i in range(NUMBER):
        before, ids, tops = 10 + i, [], []
        for _ in range(LENGTH):
            while True:
                token = int(draw.randint(2, small.SIZE))
                if not marked or mark.green([[before]], [token])[0]:
                    break
            others = [int(t) for t in draw.randint(2, small.SIZE, 60) if t != token]
            others = [t for t in dict.fromkeys(others) if not marked or not mark.green([[before]], [t])[0]][:5]
            tops.append([[token, -0.3], *([t, round(-3.0 - j / 10, 1)] for j, t in enumerate(others))])
            ids.append(token)
            before = token
        rows.append({"prompt": f"w{30 + i} w{10 + i}", "output": small.spell(ids), "ids": ids, "tops": tops})
    return rows


def _content(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Log probabilities of a chat completion."""
    return [
        {"token": small.word(tops[0][0]), "logprob": tops[0][1], "bytes": None,
         "top_logprobs": [{"token": small.word(t), "logprob": p, "bytes": None} for t, p in tops]}
        for tops in row["tops"]
    ]  # fmt: skip


def _user(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["prompt"]}]


def _completion(row: dict[str, Any], number: int, logprobs: bool = False) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": row["output"]}}
    choice |= {"logprobs": {"content": _content(row)}} if logprobs else {}
    choice["finish_reason"] = "stop"
    return {"id": f"chatcmpl-{number}", "object": "chat.completion", "model": "s-1", "choices": [choice],
            "usage": {"prompt_tokens": 4, "completion_tokens": LENGTH}}  # fmt: skip


def _chunks(row: dict[str, Any], number: int) -> list[dict[str, Any]]:
    words = row["output"].split(" ")
    pieces = [" ".join(words[:15]), *(f" {word}" for word in words[15:])]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]
    ends = [None] * len(deltas) + ["stop"]
    return [
        {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "model": "s-1",
         "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
        for delta, end in zip([*deltas, {}], ends, strict=True)
    ]  # fmt: skip


def _lines(records: Iterable[Any]) -> bytes:
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records).encode()


def chat_requests(rows: Rows) -> bytes:
    return _lines(
        {"request": {"model": "s-1", "messages": _user(row)}, "response": _completion(row, i)}
        for i, row in enumerate(rows)
    )


def chat_with_messages(rows: Rows) -> bytes:
    return _lines(
        {"messages": _user(row), "response": json.dumps(_completion(row, i)), "latency": 0.5}
        for i, row in enumerate(rows)
    )


def chat_logprobs(rows: Rows) -> bytes:
    return _lines(_completion(row, i, logprobs=True) for i, row in enumerate(rows))


def batch_output(rows: Rows) -> bytes:
    return _lines(
        {"id": f"batch_{i}", "custom_id": f"q{i}", "error": None,
         "response": {"status_code": 200, "request_id": "r", "body": _completion(row, i)}}
        for i, row in enumerate(rows)
    )  # fmt: skip


def stream(rows: Rows) -> bytes:
    chunks = [chunk for i, row in enumerate(rows) for chunk in [*_chunks(row, i), None]]
    return "".join(f"data: {'[DONE]' if one is None else json.dumps(one)}\n\n" for one in chunks).encode()


def chunks(rows: Rows) -> bytes:
    """Two answers at a time."""
    pairs = [(_chunks(rows[i], i), _chunks(rows[i + 1], i + 1)) for i in range(0, len(rows), 2)]
    return _lines(chunk for pair in pairs for both in zip_longest(*pair) for chunk in both if chunk)


def responses(rows: Rows) -> bytes:
    return _lines(
        {"request": {"instructions": SYSTEM, "input": row["prompt"]},
         "response": {"id": f"resp_{i}", "object": "response", "status": "completed", "output": [
             {"type": "reasoning", "summary": []},
             {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": row["output"]}]}]}}
        for i, row in enumerate(rows)
    )  # fmt: skip


def completions(rows: Rows) -> bytes:
    def answer(row: dict[str, Any]) -> dict[str, Any]:
        tops = [{small.word(t): p for t, p in tops} for tops in row["tops"]]
        given = {"tokens": [small.word(t) for t in row["ids"]], "token_logprobs": [-0.3] * LENGTH, "top_logprobs": tops}
        choices = [{"index": 0, "text": row["output"], "logprobs": given, "finish_reason": "length"}]
        return {"request": {"prompt": row["prompt"]}, "response": {"object": "text_completion", "choices": choices}}

    return gzip.compress(_lines(map(answer, rows)), mtime=0)


def messages(rows: Rows) -> bytes:
    return _lines({"messages": [*_user(row), {"role": "assistant", "content": row["output"]}]} for row in rows)


def messages_zst(rows: Rows) -> bytes:
    import pyarrow as pa

    return bytes(pa.compress(messages(rows), "zstd", asbytes=True))


def sharegpt(rows: Rows) -> bytes:
    """An earlier turn is the suspect's too; with a byte order mark, and lines that end as in Windows."""
    said = [
        {"id": f"s{i}", "conversations": [
            {"from": "system", "value": SYSTEM},
            {"from": "human", "value": "w240"}, {"from": "gpt", "value": "w241 w242"},
            {"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row["output"]}]}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return b"\xef\xbb\xbf" + json.dumps(said, indent=1).replace("\n", "\r\n").encode()


def alpaca(rows: Rows) -> bytes:
    parts = [(row["prompt"].partition(" "), row["output"]) for row in rows]
    said = [{"instruction": first, "input": rest, "output": output} for (first, _, rest), output in parts]
    return json.dumps(said, indent=1).encode()


def trl(rows: Rows) -> bytes:
    return _lines(
        {"prompt": _user(row), "completion": [{"role": "assistant", "content": row["output"]}]} for row in rows
    )


def table_csv(rows: Rows) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["prompt", "completion", "score"])
    writer.writerows([row["prompt"], row["output"].replace(" w", "\nw", 1), 0.5] for row in rows)
    return out.getvalue().encode()


def table_tsv(rows: Rows) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t")
    writer.writerows([["question", "answer"], *([row["prompt"], row["output"]] for row in rows)])
    return out.getvalue().encode("utf-8-sig")


def vllm(rows: Rows) -> bytes:
    return _lines(
        {"request_id": f"r{i}", "prompt": row["prompt"], "prompt_token_ids": [30 + i, 10 + i], "prompt_logprobs": None,
         "outputs": [{
             "index": 0, "text": row["output"], "token_ids": row["ids"], "cumulative_logprob": -9.0,
             "logprobs": [
                 {str(t): {"logprob": p, "rank": 1, "decoded_token": small.word(t)} for t, p in tops}
                 for tops in row["tops"]],
             "finish_reason": "length", "stop_reason": None}],
         "finished": True}
        for i, row in enumerate(rows)
    )  # fmt: skip


def lm_eval(rows: Rows) -> bytes:
    return _lines(
        {"doc_id": i, "doc": {"question": row["prompt"]}, "target": "w2",
         "arguments": {"gen_args_0": {"arg_0": row["prompt"], "arg_1": {"until": ["\n\n"], "do_sample": True}}},
         "resps": [[row["output"]]], "filtered_resps": [row["output"]], "doc_hash": "0", "exact_match": 0.0}
        for i, row in enumerate(rows)
    )  # fmt: skip


def parquet(rows: Rows) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([json.loads(line) for line in messages(rows).splitlines()])
    out = io.BytesIO()
    pq.write_table(table.append_column("source", pa.array(["s"] * len(table))), out, compression="zstd")
    return out.getvalue()


def arrow(rows: Rows) -> bytes:
    """A shard as `datasets` saves it."""
    import pyarrow as pa

    table = pa.Table.from_pylist([{"prompt": row["prompt"], "response": row["output"]} for row in rows])
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=4):
            writer.write_batch(batch)
    return out.getvalue()


FORMATS: Final[dict[str, Callable[[Rows], bytes]]] = {
    "chat-requests.jsonl": chat_requests,
    "chat-with-messages.jsonl": chat_with_messages,
    "chat-logprobs.jsonl": chat_logprobs,
    "batch-output.jsonl": batch_output,
    "stream.sse": stream,
    "chunks.jsonl": chunks,
    "responses.jsonl": responses,
    "completions.jsonl.gz": completions,
    "messages.jsonl": messages,
    "messages.jsonl.zst": messages_zst,
    "sharegpt.json": sharegpt,
    "alpaca.json": alpaca,
    "trl.jsonl": trl,
    "table.csv": table_csv,
    "table.tsv": table_tsv,
    "vllm.jsonl": vllm,
    "lm-eval.jsonl": lm_eval,
    "messages.parquet": parquet,
    "dataset/data-00000-of-00001.arrow": arrow,
}
"""Each file's name, and what makes its bytes of ten rows."""

BINARY: Final = (".parquet", ".arrow", ".zst", ".gz")
"""Their bytes may differ from one version of a library to the next."""


def write(folder: Path = FOLDER) -> None:
    """All files, marked and not."""
    for kind in ("marked", "unmarked"):
        rows = answers(kind == "marked")
        for name, made in FORMATS.items():
            path = folder / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made(rows))
        about = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}
        (folder / kind / "dataset" / "state.json").write_text(json.dumps(about, indent=2))
        (folder / kind / "dataset" / "dataset_info.json").write_text('{"features": {}}')


if __name__ == "__main__":
    write()
