"""What was promised is on the disk: files before their names, names before the function returns, records of a log."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from watermark.io import files, records
from watermark.io.records import resumable, resuming

Events = list[tuple[str, str]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Events:
    """What is put on the disk, and what gets a name, in order; files by what they hold, folders by their names."""
    seen: Events = []

    def told(path: Path) -> str:
        return path.resolve().name if path.is_dir() else path.read_text()

    def watch(name: str, place: Callable[..., Path]) -> None:
        done = getattr(os, name)

        def do(*arguments: Any, **named: Any) -> None:
            seen.append((name, told(place(*arguments))))
            done(*arguments, **named)

        monkeypatch.setattr(os, name, do)

    watch("fsync", lambda file: Path(f"/proc/self/fd/{file}"))
    watch("replace", lambda old, _new: Path(old))
    watch("link", lambda old, _new: Path(old))
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, events: Events) -> None:
    files.create(tmp_path / "a", b"new")
    assert events == [("fsync", "new"), ("link", "new"), ("fsync", tmp_path.name)]
    del events[:]
    files.replace(tmp_path / "a", b"newer")
    assert events == [("fsync", "newer"), ("link", "newer"), ("replace", "newer"), ("fsync", tmp_path.name)]


def test_a_folder_is_on_the_disk_with_all_in_it_before_it_has_its_name(tmp_path: Path, events: Events) -> None:
    with files.new_folder(tmp_path / "out") as scratch:
        (scratch / "in").mkdir()
        (scratch / "in" / "b").write_text("bb")
        (scratch / "a").write_text("aa")
    *before, renamed, after = events
    assert sorted(before) == [("fsync", scratch.name), ("fsync", "aa"), ("fsync", "bb"), ("fsync", "in")]
    assert before[-1] == ("fsync", scratch.name)
    assert (renamed, after) == (("replace", scratch.name), ("fsync", tmp_path.name))


def test_each_record_of_a_log_is_on_the_disk_when_it_is_appended(tmp_path: Path, events: Events) -> None:
    with resuming(tmp_path / "log", "r") as (_, append):
        assert events == [("fsync", tmp_path.name)], "the name of the new file"
        append([{"id": "a"}])
        assert events[1:] == [("fsync", '{"id": "a", "run": "r"}\n')]
        append([{"id": "b"}, {"id": "c"}])
        assert events[2][1].count("\n") == 3
    assert len(events) == 3
    with resuming(tmp_path / "log", "r"):
        pass
    assert len(events) == 3, "nothing was written"


def test_a_fast_run_is_put_on_the_disk_now_and_then(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value is in the log when it is yielded; a power cut costs at most the values of a second."""
    now = [0.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])
    work = iter(range(10))

    def take(_done: int) -> Any:
        for value in work:
            now[0] += 0.4
            yield value

    made = resumable(
        tmp_path / "log", "r", list("abcdefghij"), take, to_fields=lambda n: {"n": n}, from_record=lambda _: 0
    )
    for number, _ in enumerate(made, 1):
        assert (tmp_path / "log").read_text().count("\n") == number
    synced = [said.count("\n") for _, said in events[1:]]
    assert synced == [3, 6, 9, 10]


def test_what_a_killed_process_left_beside_a_file_goes(tmp_path: Path) -> None:
    """But not what another one is writing."""
    left, other = tmp_path / ".a.new", tmp_path / ".a.new1"
    left.write_text("half")
    files.replace(tmp_path / "a", b"1")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    left.write_text("in use")
    with left.open() as held:
        assert files.lock(held.fileno())
        other.write_text("half")
        files.replace(tmp_path / "a", b"2")
        assert {one.name for one in tmp_path.iterdir()} == {"a", ".a.new"}
    files.replace(tmp_path / "a", b"3")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_a_file_system_without_nameless_files(tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE")
    files.replace(tmp_path / "a", b"new")
    assert events == [("fsync", "new"), ("replace", "new"), ("fsync", tmp_path.name)]
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "a", b"2")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_run_goes_on_from_is_held(tmp_path: Path) -> None:
    with files.unfinished(tmp_path / "out") as kept:
        (kept / "part").touch()
        with pytest.raises(Exception, match="another run is making it"), files.unfinished(tmp_path / "out"):
            pass
    with files.unfinished(tmp_path / "out") as kept:
        assert [one.name for one in kept.iterdir()] == ["part"]
        (tmp_path / "out").mkdir()
    assert [one.name for one in tmp_path.iterdir()] == ["out"]
