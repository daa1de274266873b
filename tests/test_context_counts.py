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

from tests import small
from verify.data import context_counts
from verify.data.outputs import Output, Outputs, read_outputs
from verify.data.pairs import weigh
from verify.planning import probes
from verify.planning.probes import make_probes, write_texts
from verify.radioactivity.logprob_test import logprob_test
from watermark import InputError, Mark, StillmarkError, UsageError

Run = Callable[..., Result]
Write = Callable[..., Path]


@pytest.mark.parametrize("width", [0, 1, 2, 5])
def test_counts_lookup_and_the_file(width: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(width)
    texts = [rng.integers(0, 4, 50) for _ in range(5)]
    outputs = [Output(str(i), None, ids) for i, ids in enumerate(texts)]
    counted = context_counts.counts_of(outputs, width, [3], marked=False)
    expected = Counter(tuple(ids[i - width : i].tolist()) for ids in texts for i in range(width, 50) if ids[i] != 3)
    assert {tuple(w): c for w, c in zip(counted.contexts.tolist(), counted.counts, strict=True)} == expected
    context_counts.save(counted, tmp_path / "w.parquet")
    loaded = context_counts.load(tmp_path / "w.parquet", width)
    assert loaded.marked is False
    assert (np.diff(loaded.counts) <= 0).all()
    careful = context_counts.counts_of(outputs, width, [3])
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


def test_bad_files_of_context_counts(tmp_path: Path) -> None:
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mark, Path]:
    """A mark, and a model of 256 words with its tokenizer; the mark's file lies beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    model = small.model(folder / "model")
    return small.mark(folder / "m", model), model


def test_probes_that_a_model_writes_and_probes_of_single_positions(
    tiny: tuple[Mark, Path], tmp_path: Path, stillmark: Run
) -> None:
    mark, model = tiny
    words, out = ("--mark", model.parent / "m"), tmp_path / "p.jsonl"
    wrote = stillmark("probes", *words, "--model", model, "--number", 4, "--length", 12, "--out", out, "--json")
    found = json.loads(wrote.stdout)
    assert found["out"] == str(out)
    assert found["probes"] == 4
    assert found["positions"] == sum(len(json.loads(line)["output_ids"]) for line in out.read_text().splitlines())
    texts = tmp_path / "p.texts.jsonl"
    counts = json.loads(stillmark("count-contexts", *words, texts, "--out", tmp_path / "w", "--json").stdout)
    assert counts["marked"] is False
    aimed = ("probes", *words, texts, "--context-counts", tmp_path / "w", "--positions", 7)
    shown = stillmark(*aimed, "--out", tmp_path / "t.jsonl")
    assert shown.stdout == f"wrote 7 probes, 7 positions, to {tmp_path / 't.jsonl'}\n"
    assert not shown.stderr
    result = logprob_test(mark, model, tmp_path / "t.jsonl", context_counts=tmp_path / "w", decoys=0)
    assert result.n > 0
    assert result.to_dict()["positions"] == 7
    assert result.to_dict()["counts_marked"] is False
    assert "times the root of the context's count" in result.test


def test_python_makes_the_probes_that_the_command_makes(
    tiny: tuple[Mark, Path], tmp_path: Path, stillmark: Run
) -> None:
    mark, model = tiny
    own = small.jsonl(tmp_path / "own.jsonl", [{"id": "a", "output": small.spell(range(2, 100))}])
    made = make_probes(mark, str(own), length=20, out=str(tmp_path / "python.jsonl"))
    run = ("probes", "--mark", model.parent / "m", own, "--length", 20, "--out", tmp_path / "command.jsonl", "--json")
    said = json.loads(stillmark(*run).stdout)
    assert made.to_dict() == said | {"out": str(tmp_path / "python.jsonl")} == {
        "out": str(tmp_path / "python.jsonl"), "probes": 5, "positions": 98
    }  # fmt: skip
    assert (tmp_path / "python.jsonl").read_bytes() == (tmp_path / "command.jsonl").read_bytes()
    assert made.files == (tmp_path / "python.jsonl",)
    # in memory they are the evidence of a test, and the same as from their file
    kept = make_probes(model.parent / "m", read_outputs(own, mark), length=20)
    assert (kept.out, str(kept)) == (None, "5 probes, 98 positions")
    log10 = {
        logprob_test(mark, model, probes, decoys=0).log10_pvalue for probes in (kept, made, tmp_path / "python.jsonl")
    }
    assert len(log10) == 1


def test_a_model_writes_texts_without_a_mark_and_goes_on(tiny: tuple[Mark, Path], tmp_path: Path) -> None:
    _, model = tiny
    out = write_texts(str(model), str(tmp_path / "t.jsonl"), number=3, length=5, seed=1)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["mark"] for row in rows] == [None] * 3
    assert all(len(row["output_ids"]) <= 5 for row in rows)
    before = out.read_bytes()
    write_texts(model, out, number=3, length=5, seed=1)
    assert out.read_bytes() == before
    for wrong in ({"number": 721}, {"number": 0}, {"length": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            write_texts(model, out, **wrong)


def test_what_makes_no_probes(mark: Mark, mark_file: Path, jsonl: Write, tmp_path: Path, stillmark: Run) -> None:
    texts = jsonl({"output_ids": [5, 6, 7]})
    for wrong, message in (
        ({}, "name either texts, or a `model`"),
        ({"texts": texts, "model": tmp_path}, "name either texts, or a `model`"),
        ({"model": tmp_path}, "needs `out`"),
        ({"texts": texts, "length": 1}, "`length` must be at least 2"),
        ({"texts": texts, "positions": 0}, "`positions` must be at least 1"),
        ({"texts": texts, "out": texts}, "is one of the texts"),
    ):
        with pytest.raises(UsageError, match=message):
            make_probes(mark, **wrong)
    assert texts.read_text(), "the texts are as they were"
    run = ("probes", "--mark", mark_file)
    neither = stillmark(*run, "--out", tmp_path / "p.jsonl")
    assert neither.exit_code == 2
    assert "name either texts, or a --model that writes some" in neither.stderr
    same = stillmark(*run, texts, "--out", texts)
    assert same.exit_code == 2
    assert "choose another --out" in same.stderr
    nowhere = stillmark(*run, texts, "--out", tmp_path / "no" / "p.jsonl")
    assert nowhere.exit_code == 1
    assert "cannot write: No such file" in nowhere.stderr
    with pytest.raises(StillmarkError, match="no probes: the texts hold no token"):
        make_probes(mark, jsonl({"output_ids": []}, name="empty.jsonl"))
    counts = context_counts.ContextCounts(np.array([[99]], np.uint32), np.array([4]), False)
    with pytest.raises(StillmarkError, match="none of the contexts"):
        make_probes(mark, texts, context_counts=counts)


def test_answers_of_a_sequential_run_make_no_probes(mark: Mark, jsonl: Write, tmp_path: Path) -> None:
    """They were collected until the evidence sufficed. `probes_of` refuses the file; cut in pieces it must not pass."""
    texts = jsonl({"output_ids": [5, 6, 7]}, {"output_ids": [5, 6, 7], "sequential": True})
    with pytest.raises(InputError, match="collected until the evidence sufficed"):
        make_probes(mark, texts, out=tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()


def test_counts_from_files_and_from_memory(mark: Mark, mark_file: Path, jsonl: Write, tmp_path: Path) -> None:
    path = jsonl({"output_ids": [5, 6, 5, 7], "mark": None}, {"output_ids": [5, 6], "mark": None})
    counted = context_counts.count_contexts(str(path), mark_file)
    assert counted.to_dict() == {"contexts": 2, "tokens": 4, "marked": False}
    assert str(counted) == "2 contexts of 4 unmarked tokens"
    kept = context_counts.count_contexts(read_outputs([path], mark), mark)
    assert kept.counts.tolist() == counted.counts.tolist() == [3, 1]
    counted.save(str(tmp_path / "w.parquet"))
    assert context_counts.load(tmp_path / "w.parquet", 1).to_dict() == counted.to_dict()


@pytest.mark.parametrize(
    ("said", "marked"),
    [((False, False), False), ((False, True), True), ((None, True), True), ((None, False), None), ((), False)],
)
def test_several_outputs_are_marked_if_one_is(mark: Mark, said: tuple[bool | None, ...], marked: bool | None) -> None:
    outputs = Outputs(tuple(Output(str(i), None, np.array([5, 6]), marked=one) for i, one in enumerate(said)))
    assert context_counts.count_contexts(outputs, mark).marked is marked


def test_counts_of_marked_text_are_mentioned(tiny: tuple[Mark, Path], tmp_path: Path, stillmark: Run) -> None:
    mark, model = tiny
    ids = list(range(2, 40))
    path = small.jsonl(tmp_path / "p.jsonl", [{"output_ids": ids}])
    counted = context_counts.counts_of([Output("a", None, np.array(ids))], 1, marked=None)
    result = logprob_test(mark, model, path, context_counts=counted, unmarked_probes=True, decoys=0)
    assert any("counts depend on the key" in warning for warning in result.warnings)
    counted.save(tmp_path / "w")
    run = (
        "probes",
        "--mark",
        model.parent / "m",
        path,
        "--context-counts",
        tmp_path / "w",
        "--out",
        tmp_path / "t.jsonl",
    )
    shown = stillmark(*run)
    assert shown.exit_code == 0, shown.stderr
    assert "Note: the contexts were counted in text that may be marked" in shown.stderr
