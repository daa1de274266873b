"""The thin adapters for llama-cpp-python and SGLang, held to what those engines call."""

from __future__ import annotations

import importlib
import sys
from abc import ABC
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from watermark import GreenList, Mark, MarkError, Marks, Tournament, UsageError
from watermark.integrations import serving
from watermark.integrations.llama_cpp import marked
from watermark.integrations.transformers import MarkLogitsProcessor

SIZE = 300
SCHEMES = [GreenList(delta=2.0), Tournament(layers=3)]


def mark_of(scheme: Any, width: int = 1) -> Mark:
    return Mark(bytes(range(1, 33)), scheme=scheme, width=width, label="teacher", vocabulary_size=SIZE, exempt=(0, 1))


def expected(mark: Mark | Marks, ids: list[int], row: torch.Tensor, temperature: float) -> torch.Tensor:
    """What the processor for transformers makes of one row at its temperature."""
    return MarkLogitsProcessor(mark)(torch.tensor([ids]), row[None] / temperature)[0] * temperature


@pytest.mark.parametrize("width", [0, 1, 4])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_llama_cpp(scheme: Any, width: int) -> None:
    mark = mark_of(scheme, width)
    draw = np.random.default_rng(0)
    for mark_or_marks in (mark, Marks((mark, mark.child("a")))):
        for length in (1, 3, 9):
            ids = draw.integers(2, SIZE, length).astype(np.intc)
            scores = draw.normal(size=SIZE).astype(np.single)
            before = torch.from_numpy(scores.copy())
            found = marked(mark_or_marks, temperature=0.7)(ids, scores)
            assert found is scores, "in place, as llama-cpp-python's own do"
            whole = expected(mark_or_marks, ids.tolist(), before, 0.7)
            torch.testing.assert_close(torch.from_numpy(found), whole)
            assert length >= width or torch.allclose(before, whole)


def test_llama_cpp_greedy() -> None:
    scores = np.zeros(SIZE, np.single)
    marked(mark_of(SCHEMES[0]), temperature=0)(np.array([5], np.intc), scores)
    assert set(scores.tolist()) == {0.0, 2.0}
    with pytest.raises(MarkError, match="temperature 0"):
        marked(mark_of(SCHEMES[1]), temperature=0)
    with pytest.raises(UsageError, match="temperature"):
        marked(mark_of(SCHEMES[0]), temperature=-1)


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The adapter, with a stand-in for SGLang's base class."""
    parts = ["sglang", "srt", "sampling", "custom_logit_processor"]
    for i in range(1, 5):
        module = ModuleType(".".join(parts[:i]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module.CustomLogitProcessor = type("CustomLogitProcessor", (ABC,), {})  # type: ignore[attr-defined]
    context = ModuleType("sglang.srt.runtime_context")
    context.get_schedule = lambda: SimpleNamespace(disable_overlap_schedule=True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, context.__name__, context)
    monkeypatch.delitem(sys.modules, "watermark.integrations.sglang", raising=False)
    monkeypatch.setenv("STILLMARK_MARK", str(tmp_path / "teacher.mark"))
    monkeypatch.setenv("STILLMARK_LABELS", "*")
    serving.served.cache_clear()
    yield importlib.import_module("watermark.integrations.sglang")
    sys.modules.pop("watermark.integrations.sglang")
    serving.served.cache_clear()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_sglang(sglang: ModuleType, scheme: Any, tmp_path: Path) -> None:
    mark = mark_of(scheme, 2)
    mark.save(tmp_path / "teacher.mark")

    def row(said: dict[str, Any], prompt: list[int], output: list[int], **how: Any) -> dict[str, Any]:
        sampling = SimpleNamespace(**{"temperature": 0.7, "top_k": -1, **how})
        return said | {"__req__": SimpleNamespace(origin_input_ids=prompt, output_ids=output, sampling_params=sampling)}

    rows = [
        row({}, [5, 6, 7], []),
        row({"stillmark_label": "bob", "other": 1}, [5], [8, 9], temperature=1.3),
        row({"stillmark": "off"}, [5, 6], [7]),
        row({"stillmark": "maybe"}, [5, 6], [7]),  # SGLang cannot refuse it
        row({}, [5], []),  # too short for a context
        None,
        row({}, [5, 6], [7], temperature=1.0, top_k=1),  # greedy
    ]
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(len(rows), SIZE)).astype(np.float32))
    found = sglang.MarkProcessor()(logits.clone(), rows)
    torch.testing.assert_close(found[0], expected(mark, [6, 7], logits[0], 0.7))
    torch.testing.assert_close(found[1], expected(mark.child("bob"), [8, 9], logits[1], 1.3))
    torch.testing.assert_close(found[3], expected(mark, [6, 7], logits[3], 0.7))
    for alone in (2, 5):
        assert torch.equal(found[alone], logits[alone])
    torch.testing.assert_close(found[4], logits[4])
    if scheme.needs_sampling:
        assert torch.equal(found[6], logits[6])
    else:
        torch.testing.assert_close(found[6], expected(mark, [6, 7], logits[6], 1.0))
    assert torch.equal(sglang.MarkProcessor()(logits.clone()), logits), "without parameters nothing is known of a row"


def test_sglang_with_its_overlap_schedule(sglang: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There the request's output lacks its last token while the next one is drawn: a mark that nobody would find."""
    mark_of(SCHEMES[0]).save(tmp_path / "teacher.mark")
    schedule = SimpleNamespace(disable_overlap_schedule=False)
    monkeypatch.setattr(sys.modules["sglang.srt.runtime_context"], "get_schedule", lambda: schedule)
    with pytest.raises(UsageError, match="overlap schedule"):
        sglang.MarkProcessor()(torch.zeros(1, SIZE), [{}])
    monkeypatch.delitem(sys.modules, "sglang.srt.runtime_context")
    older = ModuleType("sglang.srt.server_args")
    older.get_global_server_args = lambda: schedule  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, older.__name__, older)
    assert sglang.overlaps()
    schedule.disable_overlap_schedule = True
    assert sglang.overlaps() is False
    monkeypatch.delitem(sys.modules, older.__name__)
    assert sglang.overlaps() is None
    with pytest.raises(UsageError, match="--disable-overlap-schedule"):
        sglang.MarkProcessor()(torch.zeros(1, SIZE), [{}])


def test_sglang_marks_the_first_token_of_a_speculative_step(sglang: ModuleType, tmp_path: Path) -> None:
    """A request has a row for each drafted token then; only the first one's context is written."""
    mark = mark_of(SCHEMES[0])
    mark.save(tmp_path / "teacher.mark")
    sampling = SimpleNamespace(temperature=1.0, top_k=-1)
    params = [
        {"__req__": SimpleNamespace(origin_input_ids=[5], output_ids=[last], sampling_params=sampling)}
        for last in (7, 8)
    ]
    logits = torch.zeros(6, SIZE)
    found = sglang.MarkProcessor()(logits.clone(), [one for one in params for _ in range(3)])
    for row, last in ((0, 7), (3, 8)):
        torch.testing.assert_close(found[row], expected(mark, [last], logits[row], 1.0))
    assert torch.equal(found[[1, 2, 4, 5]], logits[[1, 2, 4, 5]])
