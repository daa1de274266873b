"""Probes and prompts that come with the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import texts
from tests import small
from verify.data.outputs import Output
from verify.planning import builtin
from verify.planning.builtin import builtin_probes, builtin_prompts
from watermark import Mark, TokenizerError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.tokenizer(tmp_path / "tokenizer")


def same(a: list[Output], b: list[Output]) -> bool:
    return len(a) == len(b) and all(
        x.id == y.id and np.array_equal(x.output_ids, y.output_ids) for x, y in zip(a, b, strict=True)
    )


def test_probes_are_ids_of_the_marks_tokenizer(folder: Path, tmp_path: Path) -> None:
    mark = small.mark(tmp_path / "m", folder)
    probes = builtin_probes(mark)
    assert len(probes) >= 266
    assert all(probe.marked is False and probe.prompt_ids is None for probe in probes)
    assert all(0 < len(probe.output_ids) <= builtin.PROBE_LENGTH for probe in probes)
    assert max(int(probe.output_ids.max()) for probe in probes) < small.SIZE
    # the small tokenizer knows none of these words, but it tells words from each other
    first = texts.passages()[0]["text"]
    assert len(probes[0].output_ids) == len(re.findall(r"\w+|[^\w\s]+", first))


def test_the_first_few_are_the_same_however_many_are_asked_for(folder: Path, tmp_path: Path) -> None:
    mark = small.mark(tmp_path / "m", folder)
    few = builtin_probes(mark, number=5)
    assert len({probe.id.rsplit("/", 1)[0] for probe in few}) == 5
    assert same(few, builtin_probes(mark)[: len(few)])
    for number in (0, 267):
        with pytest.raises(ValueError, match="there are 266 passages"):
            builtin_probes(mark, number=number)


def test_the_tokenizer_may_have_moved(folder: Path, tmp_path: Path) -> None:
    mark = small.mark(tmp_path / "m", folder)
    before = builtin_probes(mark, number=3)
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(TokenizerError, match="no longer at"):
        builtin_probes(mark)
    assert same(before, builtin_probes(mark, moved, 3))
    assert same(before, builtin_probes(mark, str(moved), 3))
    with pytest.raises(TokenizerError, match="names no tokenizer"):
        builtin_probes(Mark(small.SECRET))


def test_long_passages_are_cut(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = small.mark(tmp_path / "m", folder)
    whole = builtin_probes(mark, number=20)
    monkeypatch.setattr(builtin, "PROBE_LENGTH", 50)
    pieces = builtin_probes(mark, number=20)
    assert max(len(piece.output_ids) for piece in pieces) == 50
    assert np.array_equal(
        np.concatenate([piece.output_ids for piece in pieces]), np.concatenate([one.output_ids for one in whole])
    )


def test_the_passages_are_those_that_the_script_writes() -> None:
    """The texts are what the speeches say: only what another version of the package spells anew may differ."""
    data = json.loads(texts.PASSAGES.read_text(encoding="utf-8"))
    assert "public domain" in data["licence"]
    assert texts.PASSAGES.stat().st_size < 300_000
    spoken = {path.stem: texts.paragraphs(texts.read(path)) for path in texts.files()}
    found = [one["text"] in spoken[one["id"].split("/")[0]] for one in data["passages"]]
    assert np.mean(found) > 0.9
    assert len({one["text"] for one in data["passages"]}) == len(found)
    assert all(int(one["id"][:4]) in texts.YEARS for one in data["passages"])


def test_prompts_are_the_first_questions() -> None:
    everything = builtin_prompts()
    assert len(everything) == 720 == len({one.text for one in everything})
    assert builtin_prompts(7) == everything[:7]
    with pytest.raises(ValueError, match="there are 720 questions, not 721"):
        builtin_prompts(721)
