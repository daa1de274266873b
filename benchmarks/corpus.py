"""A corpus of ten sources, one of which wrote marked text: seconds, memory and verdicts of `stillmark test corpus`.

    .venv/bin/python -m benchmarks.corpus [FOLDER] [TOKENS...]

Works in FOLDER (default: demo/corpus) and writes benchmarks/results/corpus.json, one object for each number of tokens
(default: 1, 10 and 100 million) and of workers (1: one process; 2: Ray). The text of nine sources is human
(presidential speeches, each source beginning elsewhere, records of 500 tokens), that of the tenth the teacher's marked
answers (delta 3, width 1), over and over: a share of all tokens is replaced by random ones, so that there is always
something new. Memory is the most that the command and its children held at once, summed (shared pages count for each),
sampled every 50 ms.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import machine
from benchmarks.students import ask, generate, stillmark
from benchmarks.texts import speeches
from verify.planning.demo import teacher_model
from verify.results import CARRIES
from watermark.tokenizers import load

RESULTS = Path(__file__).parent / "results" / "corpus.json"
SOURCES = 10
MARKED = "marked"
RECORD = 500
ANSWERS = 64
REPLACED = 0.02
CHUNK = 2_000_000  # tokens of a Parquet row group
SIZES = (1_000_000, 10_000_000, 100_000_000)
WORKERS = (1, 2)


def human_ids(folder: Path) -> np.ndarray:
    """The speeches as the teacher's ids, int32; kept in the folder."""
    path = folder / "speeches.npy"
    if not path.exists():
        encoded = load(teacher_model()).encode_batch(speeches())
        np.save(path, np.concatenate([np.array(ids, np.int32) for ids in encoded]))
    return np.asarray(np.load(path))


def prepare(folder: Path) -> tuple[Path, Path]:
    """A mark, and answers of the teacher that carry it."""
    mark, marked = folder / "corpus.mark", folder / "marked.jsonl"
    if not mark.exists():
        stillmark("mark", "new", "--out", mark, "--delta", 3, "--width", 1, "--tokenizer", teacher_model(),
                  "--secret-stdin", input="c0" * 32)  # fmt: skip
    generate(teacher_model(), ask(folder / "asked.jsonl", 0, ANSWERS), marked, "--mark", mark)
    return mark, marked


def build(folder: Path, tokens: int, marked: Path) -> list[Path]:
    """Ten Parquet files of `tokens` tokens together; `source` is the file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    human = human_ids(folder.parent)
    answers = [np.array(json.loads(line)["output_ids"], np.int32) for line in marked.read_text().splitlines()]
    paths = []
    for number in range(SOURCES):
        name = MARKED if number == 0 else f"human-{number}"
        texts = [np.roll(human, -len(human) * number // SOURCES)[: len(human) // RECORD * RECORD]]
        lengths = np.full(len(texts[0]) // RECORD, RECORD)
        if name == MARKED:
            texts, lengths = answers, np.array([len(answer) for answer in answers])
        paths.append(folder / f"{name}.parquet")
        _write_source(paths[-1], name, np.concatenate(texts), lengths, tokens // SOURCES, number)
    return paths


def _write_source(path: Path, name: str, ids: np.ndarray, lengths: np.ndarray, tokens: int, seed: int) -> None:
    """Texts again and again up to some tokens, a share of them replaced."""
    rng = np.random.default_rng(seed)
    ids, lengths = np.tile(ids, -(-CHUNK // len(ids))), np.tile(lengths, -(-CHUNK // len(ids)))
    schema = pa.schema({"output_ids": pa.list_(pa.int32()), "source": pa.string()})
    ends = np.cumsum(lengths)
    with pq.ParquetWriter(path, schema) as writer:
        while tokens > 0:
            rows = int(np.searchsorted(ends, min(tokens, CHUNK))) + 1
            rows = min(rows, len(lengths))
            chunk = ids[: ends[rows - 1]].copy()
            where = np.flatnonzero(rng.random(len(chunk)) < REPLACED)
            chunk[where] = rng.integers(17, 49152, len(where))
            offsets = np.concatenate([[0], ends[:rows]]).astype(np.int32)
            column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(chunk))
            writer.write_table(pa.table([column, pa.array([name] * rows)], schema=schema))
            tokens -= len(chunk)


def _tree_rss(pid: int) -> int:
    """Bytes that a process and all below it hold in memory now."""
    children: dict[int, list[int]] = {}
    held: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            held[int(entry.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        total += held.get(one, 0)
        todo += children.get(one, [])
    return total


def measure(tokens: int, workers: int, mark: Path, marked: Path, folder: Path) -> dict[str, Any]:
    """Build a corpus of some tokens in a folder (if it is not there), test it once, and say what it took.

    Args:
        tokens: how many, about.
        workers: 1: one process; more: workers of Ray.
        mark: the mark file.
        marked: JSONL of outputs that carry it.
        folder: for the corpus (some 3 bytes a token, kept) and the run (16, removed).
    """
    built = folder / f"{tokens}"
    if not (built / "ready").exists():
        build(built, tokens, marked)
        (built / "ready").touch()
    inputs, out = sorted(built.glob("*.parquet")), folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "verify.cli", "test", "corpus", "--mark", mark, *inputs, "--out", out, "--json",
               "--workers", workers, "--unmarked-prompts"]  # fmt: skip
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                peak = max(peak, _tree_rss(run.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        assert run.stdout is not None
        text = run.stdout.read()
        done.set()
        watching.join()
    seconds = time.perf_counter() - start
    if run.returncode:
        raise RuntimeError(f"{command} ended with {run.returncode}")
    answer = json.loads(text)
    found = pq.read_table(out / "documents.parquet", columns=["source", "log10_qvalue"]).to_pydict()
    hits = np.array(found["source"])[np.array(found["log10_qvalue"]) <= -3]
    result = {
        "tokens": answer["tokens"],
        "workers": workers,
        "seconds": seconds,
        "tokens_per_second": answer["tokens"] / seconds,
        "worker_microseconds_per_token": seconds * workers / answer["tokens"] * 1e6,
        "peak_rss_bytes": peak,
        "input_bytes": sum(path.stat().st_size for path in inputs),
        "work": answer["work"],
        "n": answer["n"],
        "green": answer["green"],
        "log10_pvalue": answer["log10_pvalue"],
        "verdict": answer["verdict"],
        "sources": answer["sources"],
        "documents": {
            "number": len(found["source"]),
            "marked": found["source"].count(MARKED),
            "found_marked": int((hits == MARKED).sum()),
            "found_others": int((hits != MARKED).sum()),
        },
    }
    shutil.rmtree(out)
    return result


def show(one: dict[str, Any]) -> str:
    marked = next(source for source in one["sources"] if source["source"] == MARKED)
    carrying = [source["source"] for source in one["sources"] if source["verdict"] == CARRIES]
    accused = len(set(carrying) - {MARKED})
    documents = one["documents"]
    return (
        f"{one['tokens']:>12,} tokens, {one['workers']} workers: {one['seconds']:7.1f} s "
        f"{one['tokens_per_second']:>10,.0f} tokens/s {one['peak_rss_bytes'] / 2**20:7,.0f} MiB; "
        f"corpus {one['log10_pvalue']:.2f}, marked source {marked['log10_pvalue_adjusted']:.2f}, "
        f"{accused} others accused; documents {documents['found_marked']:,} of {documents['marked']:,} marked, "
        f"{documents['found_others']} others"
    )


def main(folder: Path, sizes: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mark, marked = prepare(folder)
    measured = []
    for tokens in sizes:
        for workers in WORKERS:
            measured.append(measure(tokens, workers, mark, marked, folder))
            print(show(measured[-1]), flush=True)
        one, other = measured[-2:]
        assert [one[name] for name in ("n", "green", "sources", "documents")] == [
            other[name] for name in ("n", "green", "sources", "documents")
        ], "however many workers: the same"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "runs": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/corpus"), [int(size) for size in sys.argv[2:]] or list(SIZES))
