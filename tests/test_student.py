"""A training that is killed goes on from its last checkpoint, to the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import small
from verify.planning import student
from verify.planning.student import Training, train_student
from watermark import ModelError

TRAINING = Training(epochs=2, batch_size=2)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and outputs; a checkpoint is kept after each step."""
    monkeypatch.setattr(student, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(student, "CHECKPOINT_SHARE", 1e9)
    small.model(tmp_path / "base")
    draw, table = np.random.RandomState(0), small.logits()
    texts = ({"prompt_ids": [5, 6], "output_ids": small.sample(table, 5 + i % 7, draw)} for i in range(8))
    small.jsonl(tmp_path / "o.jsonl", texts)
    return tmp_path


def train(place: Path, out: str, stop: int = 99, training: Training = TRAINING) -> list[int]:
    """The steps at which progress was told; the training is killed at one of them."""
    told = []

    def progress(done: int, _all: int) -> None:
        told.append(done)
        if done == stop:
            raise KeyboardInterrupt

    train_student(place / "base", place / "o.jsonl", place / out, training, progress)
    return told


def test_a_killed_training_ends_as_if_nobody_had_killed_it(place: Path) -> None:
    """Within the first epoch, at its end, and within the second; twice, too. Loss and weights are equal to the bit."""
    assert train(place, "whole") == [0, *range(1, 9)]
    for out, stops in {"a": (3,), "b": (5,), "c": (2, 7)}.items():
        for stop in stops:
            with pytest.raises(KeyboardInterrupt):
                train(place, out, stop)
            (kept,) = (place / f".{out}.unfinished").iterdir()
            assert kept.name.endswith(f"{stop - 1:012}.checkpoint"), "one, of the step before"
        assert train(place, out) == [0, *range(stops[-1], 9)]
        for name in ("model.safetensors", "student.json"):
            assert (place / out / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert {one.name for one in place.iterdir()} == {"base", "o.jsonl", "whole", "a", "b", "c"}


def test_a_checkpoint_of_another_training_is_refused(place: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(place, "out", 3)
    with pytest.raises(ModelError, match="a checkpoint of a training with another base, outputs or settings"):
        train(place, "out", training=replace(TRAINING, seed=1))
    (place / "o.jsonl").write_text((place / "o.jsonl").read_text().replace("6]", "7]"))
    with pytest.raises(ModelError, match="another base, outputs or settings"):
        train(place, "out")


def test_checkpoints_take_a_small_share_of_the_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One costs 3 seconds and a step 10: after the first comes the next 15 steps later, at 2 %."""
    now, saved = [0.0], []
    publish = student.files.publish

    def slow(made: Path, path: Path) -> None:
        if path.suffix == ".checkpoint":
            now[0] += 3.0
            saved.append(int(path.stem.rpartition("-")[2]))
        publish(made, path)

    def progress(_done: int, _all: int) -> None:
        now[0] += 10.0

    monkeypatch.setattr(student, "CHECKPOINT_SECONDS", 30.0)
    monkeypatch.setattr(student, "CHECKPOINT_SHARE", 0.02)
    monkeypatch.setattr(student.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(student.files, "publish", slow)
    train_student(place / "base", place / "o.jsonl", place / "out", replace(TRAINING, epochs=6), progress)
    assert saved == [3, 18]
