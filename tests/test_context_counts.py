"""Counting what the teacher emitted, and probes made from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from verify.data import context_counts
from verify.data.outputs import Output
from verify.data.pairs import weigh
from verify.planning import probes
from watermark import InputError, Mark

Run = Callable[..., Result]
Write = Callable[..., Path]


@pytest.mark.parametrize("width", [0, 1, 2, 5])
def test_counts_lookup_and_the_file(width: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(width)
    texts = [rng.integers(0, 4, 50) for _ in range(5)]
    outputs = [Output(str(i), None, ids) for i, ids in enumerate(texts)]
    counted = context_counts.count_contexts(outputs, width, [3], marked=False)
    expected = Counter(tuple(ids[i - width : i].tolist()) for ids in texts for i in range(width, 50) if ids[i] != 3)
    assert {tuple(w): c for w, c in zip(counted.contexts.tolist(), counted.counts, strict=True)} == expected
    context_counts.save(counted, tmp_path / "w.parquet")
    loaded = context_counts.load(tmp_path / "w.parquet", width)
    assert loaded.marked is False
    assert (np.diff(loaded.counts) <= 0).all()
    careful = context_counts.count_contexts(outputs, width, [3])
    assert careful.counts.max() <= 5, "once an output, where the text may be marked"
    assert len(careful.counts) == len(counted.counts)
    asked = rng.integers(0, 5, (30, width)).astype(np.uint32)
    assert loaded.lookup(asked).tolist() == [expected[tuple(row)] for row in asked.tolist()]


def test_scaling_drops_what_was_never_emitted() -> None:
    counted = context_counts.ContextCounts(np.array([[5], [6]], np.uint32), np.array([4, 9]), False)
    pairs = weigh(np.array([[5], [6], [7]], np.uint32), np.array([1, 2, 3], np.uint32), np.array([1.0, -2.0, 3.0]), ())
    assert counted.scale(pairs).weights.tolist() == [2.0, -6.0]
    assert counted.scale(pairs).tokens.tolist() == [1, 2]
    with pytest.raises(ValueError, match="contexts of width 1, contexts of width 2"):
        counted.lookup(np.zeros((1, 2), np.uint32))


@pytest.mark.parametrize(("marks", "marked"), [([None, None], False), (["c0ffee", None], True), (["", None], None)])
def test_the_command_knows_whether_the_text_was_marked(
    mark_file: Path, jsonl: Write, stillmark: Run, tmp_path: Path, marks: list, marked: bool | None
) -> None:
    rows = [{"output_ids": [5, 6, 5, 7], **({"mark": m} if m != "" else {})} for m in marks]
    run = ("count-contexts", "--mark", mark_file, jsonl(*rows), "--out", tmp_path / "w.parquet", "--json")
    found = json.loads(stillmark(*run).stdout)
    often = 4 if marked is False else 2
    assert found == {"out": str(tmp_path / "w.parquet"), "contexts": 2, "tokens": often + 2, "marked": marked}
    assert pq.read_table(tmp_path / "w.parquet").to_pylist() == [
        {"context": [5], "count": often}, {"context": [6], "count": 2}
    ]  # fmt: skip


def test_bad_files_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "w.parquet"
    with pytest.raises(InputError, match="cannot read"):
        context_counts.load(path, 1)
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="no file of context counts"):
        context_counts.load(path, 1)
    context_counts.save(context_counts.ContextCounts(np.zeros((1, 2), np.uint32), np.ones(1, np.int64), None), path)
    with pytest.raises(InputError, match="contexts of width 2, the mark's width is 1"):
        context_counts.load(path, 1)
    with pytest.raises(InputError, match="cannot write"):
        context_counts.save(context_counts.load(path, 2), tmp_path / "nowhere" / "w.parquet")


def test_cut_and_targets() -> None:
    text = Output("t", np.array([9]), np.array([5, 6, 5, 7, 8, 6, 5]))
    pieces = probes.cut([text], 3)
    assert [piece.output_ids.tolist() for piece in pieces] == [[5, 6, 5], [7, 8, 6], [5]]
    assert [None if p.prompt_ids is None else p.prompt_ids.tolist() for p in pieces] == [[9], None, None]
    counted = context_counts.ContextCounts(np.array([[5], [8], [1]], np.uint32), np.array([2, 7, 99]), None)
    found = probes.targets([text], counted, 5, each=1, before=2)
    assert [(p.id, p.prompt_ids.tolist(), p.output_ids.tolist()) for p in found] == [
        ("t@6", [7, 8], [6]),
        ("t@2", [9, 5], [6]),
    ]
    assert [p.id for p in probes.targets([text], counted, 5)] == ["t@6", "t@2", "t@4"]
    assert [p.id for p in probes.targets([text], counted, 2)] == ["t@6", "t@2"]


def test_probes_of_a_real_model_and_of_text(teacher: Path, tmp_path: Path, stillmark: Run) -> None:
    Mark.new(teacher, secret=bytes(32)).save(tmp_path / "m")
    out, mark = tmp_path / "p.jsonl", ("--mark", tmp_path / "m")
    wrote = stillmark("probes", *mark, "--model", teacher, "--number", 4, "--length", 12, "--out", out, "--json")
    assert json.loads(wrote.stdout)["probes"] == 4
    texts = tmp_path / "p.texts.jsonl"
    counts = json.loads(stillmark("count-contexts", *mark, texts, "--out", tmp_path / "w", "--json").stdout)
    assert counts["marked"] is False
    aimed = (
        "probes",
        *mark,
        texts,
        "--context-counts",
        tmp_path / "w",
        "--positions",
        7,
        "--out",
        tmp_path / "t.jsonl",
    )
    assert json.loads(stillmark(*aimed, "--json").stdout)["positions"] == 7
    run = ("verify", "model", *mark, "--model", teacher, "--probes", tmp_path / "t.jsonl", "--unmarked-probes")
    found = json.loads(stillmark(*run, "--context-counts", tmp_path / "w", "--json").stdout)
    assert found["positions"] == 7
    assert found["counts_marked"] is False
    assert "times the root of the context's count" in found["test"]
    (tmp_path / "own.txt").write_text("It was a bright cold day, and the clocks were striking. " * 5)
    cut = ("probes", *mark, tmp_path / "own.txt", "--length", 20, "--out", tmp_path / "own.jsonl", "--json")
    assert json.loads(stillmark(*cut).stdout)["probes"] >= 3
    assert stillmark("probes", *mark, "--out", out).exit_code == 2


def test_windows_of_marked_text_are_mentioned(
    teacher: Path, speeches: np.ndarray, tmp_path: Path, stillmark: Run
) -> None:
    mark: Mark = Mark.new(teacher, secret=bytes(32))
    mark.save(tmp_path / "m")
    (tmp_path / "p.jsonl").write_text(json.dumps({"output_ids": speeches[:30].tolist()}) + "\n")
    counted = context_counts.count_contexts([Output("a", None, speeches[:30])], 1, marked=None)
    context_counts.save(counted, tmp_path / "w")
    run = ("verify", "model", "--mark", tmp_path / "m", "--model", teacher, "--probes", tmp_path / "p.jsonl",
           "--context-counts", tmp_path / "w", "--unmarked-probes", "--decoys", 0)  # fmt: skip
    result = stillmark(*run, "--json")
    assert any("counts depend on the key" in warning for warning in json.loads(result.stdout)["warnings"])
    assert "counts depend on the key" in stillmark(*run).stderr
