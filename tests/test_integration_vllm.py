"""The adapters for vLLM: a persistent batch, slots, drafts.

Where vLLM is not installed, stand-ins take the place of its base classes. `make test-vllm` runs the same tests with the
real ones, and a real server beside them (tests/vllm).
"""

from __future__ import annotations

import importlib.util
import sys
from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from watermark import GreenList, Mark, Tournament
from watermark.integrations import serving
from watermark.integrations.transformers import MarkLogitsProcessor
from watermark.schemes.logits import contexts_at_end

SIZE = 300
SCHEMES = {"greenlist": GreenList(delta=2.0), "tournament": Tournament(layers=3)}


def mark_of(scheme: str, width: int = 1) -> Mark:
    return Mark(
        bytes(range(1, 33)), scheme=SCHEMES[scheme], width=width, label="teacher", vocabulary_size=SIZE, exempt=(0, 1)
    )


class Direction(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass
class Params:
    """As vLLM's SamplingParams."""

    temperature: float = 1.0
    extra_args: dict[str, Any] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    top_k: int = 0


@dataclass
class Update:
    """As vLLM's BatchUpdate."""

    batch_size: int = 0
    removed: list[int] = field(default_factory=list)
    added: list[Any] = field(default_factory=list)
    moved: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    token_ids: torch.Tensor
    logits: torch.Tensor


CONFIG = SimpleNamespace(
    model_config=SimpleNamespace(get_vocab_size=lambda: SIZE + 4, tokenizer="somewhere/else"),
    scheduler_config=SimpleNamespace(max_num_seqs=8),
)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The adapters, with stand-ins for vLLM's base classes if it is not installed."""
    if importlib.util.find_spec("vllm") is not None:
        yield importlib.import_module("watermark.integrations.vllm")
        serving.served.cache_clear()
        return
    bases: dict[str, dict[str, Any]] = {
        "vllm.v1.sample.logits_processor.interface": {"LogitsProcessor": type("V1", (ABC,), {})},
        "vllm.v1.worker.gpu.sample.logits_processor.interface": {"LogitsProcessor": type("V2", (ABC,), {})},
        "vllm.v1.watermarking.watermarker": {"Watermarker": type("W", (ABC,), {}), "WatermarkSample": Sample},
    }
    for name, content in bases.items():
        parts = name.split(".")
        for i in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "watermark.integrations.vllm", raising=False)
    yield importlib.import_module("watermark.integrations.vllm")
    sys.modules.pop("watermark.integrations.vllm")
    serving.served.cache_clear()


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the environment of a server."""

    def start(mark: Mark, **more: str) -> None:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.mark"
        mark.save(path)
        for name, value in {"STILLMARK_MARK": str(path), "STILLMARK_LABELS": "*", **more}.items():
            monkeypatch.setenv(name, value)
        serving.served.cache_clear()

    return start


@dataclass
class Request:
    params: Params
    prompt: list[int] | None
    output: list[int]


def expected(mark: Mark, requests: list[Request], logits: torch.Tensor, *, scaled: bool) -> torch.Tensor:
    """What each row should come to: by the processor for transformers, on this text, at this temperature."""
    rows = []
    for request, row in zip(requests, logits, strict=True):
        said = request.params.extra_args or {}
        by = 1.0 if scaled or request.params.temperature < 1e-5 else request.params.temperature
        one = mark.child(said["stillmark_label"]) if "stillmark_label" in said else mark
        ids = torch.tensor([[*(request.prompt or []), *request.output]], dtype=torch.int64)
        if said.get("stillmark") == "off":
            rows.append(row[None])
        else:
            rows.append(MarkLogitsProcessor(one)(ids, row[None] / by) * by)
    return torch.cat(rows)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_v1_follows_the_persistent_batch(vllm: ModuleType, serve: Any, scheme: str, width: int) -> None:
    """A random life of a batch, with vLLM's way of filling freed rows: each row is tilted as transformers would.

    Added, removed, condensed (one-way moves), reordered (swaps), a freed row reused without a word, preempted and
    resumed with its output, and outputs whose last token is filled in late.
    """
    mark = mark_of(scheme, width)
    serve(mark)
    processor = vllm.MarkV1(CONFIG, torch.device("cpu"), False)
    draw = np.random.default_rng(width)
    rows: list[Request | None] = []
    waiting: list[Request] = []

    def new() -> Request:
        said = [{}, None, {"stillmark": "off"}, {"stillmark_label": f"c{draw.integers(3)}"}][draw.integers(4)]
        temperature = float(draw.choice([0.7, 1.0, 1.3])) if scheme == "tournament" else float(draw.choice([0, 0.7, 1]))
        return Request(Params(temperature, said), draw.integers(2, SIZE, draw.integers(1, 5)).tolist(), [])

    for _ in range(60):
        update = Update()
        freed = [i for i in range(len(rows)) if draw.random() < 0.2]
        for i in freed:
            gone = rows[i]
            assert gone is not None
            rows[i] = None
            if draw.random() < 0.5:  # preempted: it comes back with what it wrote, in a new list
                waiting.append(Request(gone.params, gone.prompt, list(gone.output)))
        for _ in range(draw.integers(0, 3)):
            request = waiting.pop() if waiting and draw.random() < 0.5 else new()
            place = min(freed, default=len(rows))
            if place == len(rows) == 8:
                break
            if freed:
                freed.remove(place)  # reused: nobody says that it was removed
                rows[place] = request
            else:
                rows.append(request)
            update.added.append((place, request.params, request.prompt, request.output))
        left = sorted(freed, reverse=True)
        while left and len(rows) > 0:  # condense: the last row goes to the lowest empty one
            while rows and rows[-1] is None:
                rows.pop()
            left = [i for i in left if i < len(rows)]
            if left:
                hole = left.pop()
                update.moved.append((len(rows) - 1, hole, Direction.UNIDIRECTIONAL))
                freed.remove(hole)
                rows[hole] = rows.pop()
        update.removed = sorted(freed, reverse=True)
        if len(rows) > 1 and draw.random() < 0.5:
            one, other = draw.choice(len(rows), 2, replace=False).tolist()
            update.moved.append((one, other, Direction.SWAP))
            rows[one], rows[other] = rows[other], rows[one]
        update.batch_size = len(rows)
        late = draw.random() < 0.5
        alive = [row for row in rows if row is not None]
        assert len(alive) == len(rows)
        if late:
            for request in alive:
                if request.output:
                    request.output[-1] = -1
        changed = any((update.removed, update.added, update.moved))
        processor.update_state(update if changed else None)
        for request in alive:
            if request.output and request.output[-1] == -1:
                request.output[-1] = int(draw.integers(2, SIZE))
        logits = torch.from_numpy(draw.normal(size=(len(rows), SIZE + 4)).astype(np.float32))
        found = processor.apply(logits.clone())
        torch.testing.assert_close(found, expected(mark, alive, logits, scaled=scheme == "tournament"))
        for request in alive:
            request.output.append(int(draw.integers(2, SIZE)))


def test_v1_runs_after_temperature_where_the_mark_needs_sampling(vllm: ModuleType, serve: Any) -> None:
    for scheme, invariant in (("greenlist", False), ("tournament", True)):
        serve(mark_of(scheme))
        assert vllm.MarkV1(CONFIG, torch.device("cpu"), False).is_argmax_invariant() == invariant


def test_v1_leaves_a_batch_without_marks_alone(vllm: ModuleType, serve: Any) -> None:
    serve(mark_of("greenlist"), STILLMARK_DEFAULT="off")
    processor = vllm.MarkV1(CONFIG, torch.device("cpu"), False)
    logits = torch.ones(2, SIZE + 4)
    assert processor.apply(logits) is logits, "vLLM warms up with rows that nobody added"
    processor.update_state(Update(1, added=[(0, Params(), None, [])]))
    processor.apply(logits)
    assert (logits == 1).all()
    processor.update_state(Update(1, added=[(0, Params(extra_args={"stillmark": "on"}), None, [])]))
    assert (processor.apply(logits) == 1).all(), "a prompt of embeddings: no context yet"
    processor.update_state(Update(1, added=[(0, Params(extra_args={"stillmark": "on"}), None, [5])]))
    found = processor.apply(logits)
    assert (found[0] != 1).any()
    assert (found[1] == 1).all()


@pytest.mark.parametrize("name", ["MarkV1", "MarkV2"])
def test_requests_are_checked_before_they_are_accepted(vllm: ModuleType, serve: Any, name: str) -> None:
    check = getattr(vllm, name).validate_params
    serve(mark_of("tournament"), STILLMARK_ENFORCE="on")
    check(Params())
    for wrong in (
        Params(temperature=0.0),
        Params(temperature=1e-6),
        Params(top_k=1),
        Params(logprobs=0),
        Params(prompt_logprobs=1),
        Params(extra_args={"stillmark": "off"}),
        Params(extra_args={"stillmark_lable": "a"}),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            check(wrong)


def test_a_server_without_a_mark_or_with_a_wrong_one_does_not_start(
    vllm: ModuleType, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STILLMARK_MARK", raising=False)
    serving.served.cache_clear()
    with pytest.raises(Exception, match="STILLMARK_MARK"):
        vllm.MarkV1(CONFIG, torch.device("cpu"), False)
    serve(Mark(bytes(32), vocabulary_size=SIZE + 5))
    with pytest.raises(Exception, match="the model has 304"):
        vllm.MarkV1(CONFIG, torch.device("cpu"), False)


@pytest.mark.parametrize("width", [0, 1, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_v2_reads_committed_tokens_and_drafts(vllm: ModuleType, serve: Any, scheme: str, width: int) -> None:
    """Four slots, one never used and one reused; two requests with drafts, whose rows see the drafts before them."""
    mark = mark_of(scheme, width)
    serve(mark)
    draw = np.random.default_rng(0)
    texts = {
        3: Request(Params(0.7), [5, 6, 7], [8, 9]),
        0: Request(Params(1.0, {"stillmark_label": "c"}), [11], []),
        2: Request(Params(1.3, {"stillmark": "off"}), [13, 14], [15]),
    }
    written = torch.zeros(4, 32, dtype=torch.int32)
    states = SimpleNamespace(
        max_num_reqs=4, vocab_size=SIZE + 4, device=torch.device("cpu"), all_token_ids=SimpleNamespace(gpu=written)
    )
    processor = vllm.MarkV2(CONFIG, states)
    assert processor.add_request(2, Params(extra_args={"stillmark_label": "before"})), "the slot's earlier request"
    for slot, request in texts.items():
        assert processor.add_request(slot, request.params) == (slot != 2)
        ids = request.prompt + request.output  # type: ignore[operator]
        written[slot, : len(ids)] = torch.tensor(ids)
    processor.apply_staged_writes()
    drafts = {3: [21, 22, 23], 0: [24], 2: []}
    slots, places, fed, offsets, requests = [], [], [], [], []
    for slot, request in texts.items():
        committed = request.prompt + request.output  # type: ignore[operator]
        for i in range(len(drafts[slot]) + 1):
            whole = committed + drafts[slot][:i]
            slots.append(slot)
            places.append(len(whole) - 1)
            fed.append(whole[-1])
            offsets.append(i)
            requests.append(Request(request.params, whole, []))
    context = SimpleNamespace(
        expanded_idx_mapping=torch.tensor([*slots, -1], dtype=torch.int32),
        idx_mapping_np=np.array([3, 0, 2]),
        expanded_local_pos=torch.tensor([*offsets, 0], dtype=torch.int32),
        input_ids=torch.tensor([*fed, 0], dtype=torch.int32),
        pos=torch.tensor([*places, 0]),
    )
    logits = torch.from_numpy(draw.normal(size=(len(slots) + 1, SIZE + 4)).astype(np.float32))
    found = processor.apply(logits.clone(), context)
    torch.testing.assert_close(found[:-1], expected(mark, requests, logits[:-1], scaled=False))
    assert torch.equal(found[-1], logits[-1]), "a row that pads the batch"
    context.idx_mapping_np = np.array([2])
    assert torch.equal(processor.apply(logits.clone(), context), logits), "none of this step's requests is marked"


def test_native_draws_from_tilted_logits(vllm: ModuleType, serve: Any) -> None:
    """As vLLM calls it: contexts of generated tokens, -1 where there are none, and rows that are skipped."""
    mark = mark_of("tournament")
    serve(mark)
    native = vllm.MarkNative()
    assert native.context_width == 1
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, SIZE)).astype(np.float32))
    contexts = torch.tensor([[5], [6], [-1], [7]])
    skip = torch.tensor([False, True, False, False])
    found = native.sample(logits, contexts, lambda tilted: tilted.argmax(dim=-1), skip)
    for row in (0, 3):
        assert torch.equal(
            found.logits[row : row + 1], mark.bias_(logits[row : row + 1].clone(), contexts[row : row + 1])
        )
    assert torch.equal(found.logits[1:3], logits[1:3])
    assert torch.equal(found.token_ids, found.logits.argmax(dim=-1))
    torch.manual_seed(0)
    assert native.sample(logits, contexts).token_ids.shape == (4,)
    assert vllm.MarkNative(mark_of("greenlist", 0)).context_width == 1
    keyed = vllm.MarkNative(mark_of("greenlist", 0)).sample(logits, contexts, lambda tilted: tilted.argmax(dim=-1))
    assert torch.equal(keyed.logits, mark_of("greenlist", 0).bias_(logits.clone(), contexts[:, :0]))


def test_the_rows_are_those_of_transformers() -> None:
    """What `expected` calls reads its context as the adapters do."""
    assert contexts_at_end([[1, 2], [3]], 2).tolist() == [serving.tail([1], [2], 2), serving.tail([3], [], 2)]
