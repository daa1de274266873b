"""Probes and prompts that come with the package."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from tests import small
from verify.data.outputs import Output
from verify.planning.builtin import builtin_probes, builtin_prompts
from watermark import Mark, TokenizerError

DATA = json.loads((resources.files("verify.planning") / "answers.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.tokenizer(tmp_path / "tokenizer")


def same(a: list[Output], b: list[Output]) -> bool:
    return len(a) == len(b) and all(
        x.id == y.id and np.array_equal(x.ids, y.ids) and x.start == y.start for x, y in zip(a, b, strict=True)
    )


def test_probes_are_ids_of_the_marks_tokenizer(folder: Path, tmp_path: Path) -> None:
    mark = small.mark(tmp_path / "m", folder)
    probes = builtin_probes(mark)
    assert len(probes) == len(DATA["answers"])
    assert all(probe.marked is False and probe.start > 0 and len(probe.output_ids) for probe in probes)
    assert max(int(probe.ids.max()) for probe in probes) < small.SIZE
    # the small tokenizer knows none of these words, but it tells words from each other
    first = DATA["answers"][0]
    assert len(probes[0].output_ids) == len(re.findall(r"\w+|[^\w\s]+", first["text"]))


def test_the_questions_are_asked_as_a_chat(teacher: Path) -> None:
    from watermark.tokenizers import load_transformers

    probes = builtin_probes(Mark.new(teacher, secret=bytes(32)), number=3)
    tokenizer = load_transformers(teacher)
    for probe, one in zip(probes, DATA["answers"], strict=False):
        shown = tokenizer.decode(probe.ids[: probe.start])
        assert shown.endswith("<|im_start|>assistant\n")
        assert one["prompt"] in shown
        assert tokenizer.decode(probe.output_ids) == one["text"]


def test_the_first_few_are_the_same_however_many_are_asked_for(folder: Path, tmp_path: Path) -> None:
    mark = small.mark(tmp_path / "m", folder)
    assert same(builtin_probes(mark, number=5), builtin_probes(mark)[:5])
    for number in (0, 129):
        with pytest.raises(ValueError, match="there are 128 answers"):
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


def test_the_file_is_small_and_its_questions_are_ours() -> None:
    asked = {one.text for one in builtin_prompts()}
    assert {one["prompt"] for one in DATA["answers"]} <= asked
    assert not {one["prompt"] for one in DATA["answers"]} & {one.text for one in builtin_prompts(64)}, "not the demo's"
    assert len(json.dumps(DATA)) < 300_000
    assert "without any mark" in DATA["source"]


def test_prompts_are_the_first_questions() -> None:
    everything = builtin_prompts()
    assert len(everything) == 720 == len({one.text for one in everything})
    assert builtin_prompts(7) == everything[:7]
    with pytest.raises(ValueError, match="there are 720 questions, not 721"):
        builtin_prompts(721)
