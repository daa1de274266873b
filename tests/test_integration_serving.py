"""What every serving engine's adapter shares: settings, what a request may choose, and the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from watermark import GreenList, InputError, Mark, MarkError, Tournament, UsageError
from watermark.integrations.serving import RequestError, Served, Slots, check_model, tail

MARK = Mark(bytes(range(1, 33)), scheme=GreenList(delta=2.0), label="teacher", vocabulary_size=300, exempt=(0, 1))


def environment(folder: Path, **more: str) -> dict[str, str]:
    path = folder / "teacher.mark"
    if not path.exists():
        MARK.save(path)
    return {"STILLMARK_MARK": str(path)} | more


def test_settings_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("customer-1\ncustomer-2\n")
    plain = Served.from_environment(environment(tmp_path))
    assert (plain.mark, plain.labels, plain.on, plain.enforce, plain.logprobs) == (MARK, frozenset(), True, False, True)
    named = Served.from_environment(environment(tmp_path, STILLMARK_LABELS=str(tmp_path / "labels.txt")))
    assert named.labels == {"customer-1", "customer-2"}
    assert Served.from_environment(environment(tmp_path, STILLMARK_LABELS="*")).labels is None
    assert not Served.from_environment(environment(tmp_path, STILLMARK_DEFAULT="off")).on
    enforced = Served.from_environment(environment(tmp_path, STILLMARK_ENFORCE="on"))
    assert (enforced.enforce, enforced.logprobs) == (True, False)
    assert Served.from_environment(environment(tmp_path, STILLMARK_ENFORCE="on", STILLMARK_LOGPROBS="allow")).logprobs


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"STILLMARK_MARK": ""}, UsageError),
        ({"STILLMARK_MARK": "no-such.mark"}, MarkError),
        ({"STILLMARK_DEFAULT": "yes"}, UsageError),
        ({"STILLMARK_ENFORCE": "1"}, UsageError),
        ({"STILLMARK_LOGPROBS": "round"}, UsageError),
        ({"STILLMARK_LABELS": "no-such.txt"}, InputError),
        ({"STILLMARK_ENFORCE": "on", "STILLMARK_DEFAULT": "off"}, UsageError),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, more: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        Served.from_environment(environment(tmp_path) | more)


def test_several_files_and_one_that_others_can_read(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    MARK.child("customer-1").save(tmp_path / "one.mark")
    variables["STILLMARK_MARK"] += f":{tmp_path / 'one.mark'}"
    assert Served.from_environment(variables).wanted({"stillmark_label": "customer-1"}) == MARK.child("customer-1")
    (tmp_path / "one.mark").chmod(0o644)
    with pytest.raises(MarkError, match="other users"):
        Served.from_environment(variables)
    assert len(Served.from_environment(variables | {"STILLMARK_READABLE": "on"}).marks) == 2
    wide = Mark(bytes(32), scheme=GreenList(), width=2, label="wide", vocabulary_size=300)
    with pytest.raises(MarkError, match="width"):
        Served((MARK, wide))


ON = Served((MARK,), labels=frozenset({"a"}))


@pytest.mark.parametrize(
    ("served", "fields", "label"),
    [
        (ON, None, "teacher"),
        (ON, {}, "teacher"),
        (ON, {"other": 3}, "teacher"),
        (ON, {"stillmark": "on"}, "teacher"),
        (ON, {"stillmark": 1}, "teacher"),
        (ON, {"stillmark": "off"}, None),
        (ON, {"stillmark": 0}, None),
        (ON, {"stillmark": False}, None),
        (ON, {"stillmark_label": "a"}, "a"),
        (ON, {"stillmark_label": "teacher"}, "teacher"),
        (ON, {"stillmark_label": "a", "stillmark": "on"}, "a"),
        (Served((MARK,), on=False), None, None),
        (Served((MARK,), on=False), {"stillmark": "on"}, "teacher"),
        (Served((MARK,), on=False, labels=None), {"stillmark_label": "anything"}, "anything"),
        (Served((MARK,), enforce=True), {"stillmark": "on"}, "teacher"),
    ],
)
def test_what_a_request_carries(served: Served, fields: Mapping[str, Any] | None, label: str | None) -> None:
    mark = served.wanted(fields)
    assert (None if mark is None else mark.label) == label
    assert mark in (None, MARK, MARK.child(label or ""))


@pytest.mark.parametrize(
    ("served", "fields"),
    [
        (ON, {"stillmark": "maybe"}),
        (ON, {"stillmark": 2}),
        (ON, {"stillmark": []}),
        (ON, {"stillmark": None}),
        (ON, {"stillmark_labels": "a"}),
        (ON, {"stillmark_label": "unknown"}),
        (ON, {"stillmark_label": 3}),
        (ON, {"stillmark_label": ["a"]}),
        (ON, {"stillmark_label": ""}),
        (ON, {"stillmark_label": "a", "stillmark": "off"}),
        (Served((MARK,), labels=None), {"stillmark_label": "two\nlines"}),
        (Served((MARK,), enforce=True), {"stillmark": "off"}),
        (Served((MARK,), enforce=True), {"stillmark": 0}),
    ],
)
def test_requests_that_are_refused(served: Served, fields: Mapping[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        served.check(fields, temperature=1.0, logprobs=False)
    assert isinstance(caught.value, ValueError), "which engines answer with HTTP 400"
    assert MARK.secret.hex() not in str(caught.value)


def test_greedy_requests_and_log_probabilities() -> None:
    unbiased = Served((Mark(bytes(32), scheme=Tournament(), vocabulary_size=300),))
    with pytest.raises(RequestError, match=r"temperature 0.*\(sample at"):
        unbiased.check(None, temperature=0.0, logprobs=False)
    unbiased.check({"stillmark": "off"}, temperature=0.0, logprobs=False)
    ON.check(None, temperature=0.0, logprobs=True)
    closed = Served((MARK,), logprobs=False)
    with pytest.raises(RequestError, match="log probabilities"):
        closed.check(None, temperature=1.0, logprobs=True)
    closed.check({"stillmark": "off"}, temperature=1.0, logprobs=True)


def test_a_mark_that_does_not_fit_the_model(tmp_path: Path) -> None:
    check_model(MARK, 300, None)
    check_model(MARK, 301, str(tmp_path))  # it names no tokenizer, so that none is loaded
    with pytest.raises(UsageError, match="300 tokens, the model has 299"):
        check_model(MARK, 299, None)


@pytest.mark.parametrize(
    ("prompt", "output", "width", "found"),
    [
        ([1, 2, 3], [], 2, [2, 3]),
        ([1, 2, 3], [4], 3, [2, 3, 4]),
        ([1], [], 3, [-1, -1, 1]),
        (None, [5, 6], 1, [6]),
        (None, [], 1, [-1]),
        ([], [5], 2, [-1, 5]),
        ([1, 2], [3, 4, 5], 2, [4, 5]),
        ([1, 2], [-1], 1, [-1]),
        ([1], [2], 0, []),
    ],
)
def test_the_tail_of_a_text(prompt: list[int] | None, output: list[int], width: int, found: list[int]) -> None:
    assert tail(prompt, output, width) == found


@pytest.mark.parametrize("scheme", [GreenList(delta=2.0), Tournament(layers=3)], ids=["greenlist", "tournament"])
@pytest.mark.parametrize("width", [0, 1, 4])
def test_slots_tilt_as_the_marks_do(scheme: GreenList | Tournament, width: int) -> None:
    """Rows of other marks and of none, mapped to slots in another order, and scaled by temperatures of their own."""
    mark = Mark(bytes(range(1, 33)), scheme=scheme, width=width, vocabulary_size=300, exempt=(0, 1))
    draw = np.random.default_rng(0)
    logits = torch.from_numpy(draw.normal(size=(5, 310)).astype(np.float32))
    contexts = torch.from_numpy(draw.integers(2, 300, (5, width)))
    marks = {3: mark, 0: mark.child("a"), 4: mark.child("b"), 6: None}
    temperatures = {3: 1.0, 0: 0.7, 4: 1.5, 6: 0.2}
    slots = Slots(mark, 7, 310, torch.device("cpu"))
    for slot, one in marks.items():
        slots.put(slot, one, temperatures[slot])
    order = [4, 6, 0, 3, -1]
    for scaled in (False, True):
        found = slots.tilt_(logits.clone(), contexts, torch.tensor(order), scaled=scaled)
        for row, slot in enumerate(order):
            one, by = marks.get(slot), 1.0 if scaled else temperatures.get(slot, 1.0)
            expected = logits[row : row + 1].clone()
            if one is not None:
                expected = one.bias_(expected / by, contexts[row : row + 1]) * by
                assert not torch.equal(expected[0], logits[row])
            torch.testing.assert_close(found[row], expected[0])
            assert torch.equal(found[row, 300:], logits[row, 300:]) or by != 1.0
            assert one is not None or torch.equal(found[row], logits[row])


def test_slots_swap_and_forget() -> None:
    slots = Slots(MARK, 3, 300, torch.device("cpu"))
    contexts = torch.tensor([[5], [5], [5]])
    child = MARK.child("a")
    slots.put(0, MARK)
    slots.put(1, child)
    slots.swap(0, 1)
    slots.swap(1, 2)  # with an empty one
    found = slots.tilt_(torch.zeros(3, 300), contexts, scaled=True)
    assert torch.equal(found[0:1], child.bias_(torch.zeros(1, 300), contexts[:1]))
    assert not found[1].any()
    assert torch.equal(found[2:], MARK.bias_(torch.zeros(1, 300), contexts[:1]))
    assert [slots.marked(np.array([i])) for i in range(3)] == [True, False, True]
    slots.put(0, None)
    slots.put(2, None)
    assert not slots.marked()
    assert not slots.tilt_(torch.zeros(3, 300), contexts, scaled=True).any()


def test_thousands_of_labels_in_a_batch() -> None:
    """2,048 rows, each under a label of its own, are put and tilted at once; each row as its own child does."""
    served = Served((MARK,), labels=None)
    slots = Slots(MARK, 2048, 300, torch.device("cpu"))
    for row in range(2048):
        slots.put(row, served.wanted({"stillmark_label": f"customer-{row}"}))
    for row in range(2048):
        slots.put(row, served.wanted({"stillmark_label": f"customer-{row}"}))
    found = slots.tilt_(torch.zeros(2048, 300), torch.full((2048, 1), 7), scaled=True)
    for row in (0, 1000, 2047):
        expected = MARK.child(f"customer-{row}").bias_(torch.zeros(1, 300), torch.tensor([[7]]))
        assert torch.equal(found[row : row + 1], expected)
