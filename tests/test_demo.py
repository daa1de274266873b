"""The demo on a small teacher: the same steps as on the real one, in seconds."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests import small
from verify.cli import demo as cli
from verify.cli.terminal import console
from verify.planning import demo, workers
from watermark import StillmarkError

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.model(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def done(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[demo.Row], list[str]]:
    """A finished demo: its folder, rows, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "out"
    said: list[str] = []
    return out, demo.run(teacher, out, said.append), said


def test_all_rows_are_right(done: tuple[Path, list[demo.Row], list[str]]) -> None:
    """The innocents' p-values are exact: with another secret one of the three would fail once in 300."""
    _, rows, _ = done
    assert [(row.who, row.by, row.right) for row in rows] == [
        ("marked teacher", "text", True),
        ("unmarked teacher", "text", True),
        ("student of marked", "weights", True),
        ("student of unmarked", "weights", True),
        ("base", "weights", True),
    ]
    assert rows[0].result["log10_pvalue"] < -100
    assert rows[2].result["log10_pvalue"] < -10


def test_the_printed_commands_do_the_same(
    done: tuple[Path, list[demo.Row], list[str]], teacher: Path, tmp_path: Path, stillmark: Run
) -> None:
    """Each command that was said runs; into the demo's files, where it finds the work done, or with the same result."""
    _, rows, said = done
    commands = [line.removeprefix("$ ") for line in said if line.startswith("$ ")]
    assert len(commands) == 10
    left = {row.who: row.result for row in rows}
    for command in commands:
        echo, _, piped = command.rpartition(" | ")
        words = shlex.split(piped)
        assert words.pop(0) == "stillmark"
        made = "--out" in words and words[0] in ("mark", "student")
        if made:
            place = words.index("--out") + 1
            fresh, old = tmp_path / "fresh", Path(words[place])
            words[place] = str(fresh)
        result = stillmark(*words, *(["--json"] if words[0] == "test" else []), input=echo.removeprefix("echo "))
        assert result.exit_code == 0, result.output
        if words[0] == "mark":
            assert json.loads(fresh.read_text()) == json.loads(old.read_text())
            fresh.unlink()
        elif words[0] == "generate":
            assert "wrote 0 records" in result.output
        elif words[0] == "student":
            assert (fresh / "student.json").read_text() == (old / "student.json").read_text()
            assert (fresh / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()
            fresh.rename(tmp_path / old.name)
        else:
            found = json.loads(result.stdout)
            same = [one for one in left.values() if one["log10_pvalue"] == found["log10_pvalue"]]
            assert len(same) == 1, command
            assert (same[0]["n"], same[0]["verdict"]) == (found["n"], found["verdict"])
            left = {who: one for who, one in left.items() if one is not same[0]}
    assert not left, "each row has its command"


def test_what_to_try_next_can_be_tried(
    done: tuple[Path, list[demo.Row], list[str]],
    teacher: Path,
    tmp_path: Path,
    stillmark: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    suggestions = demo.what_next(teacher, done[0])
    assert len(suggestions) >= 3
    for _, command in suggestions:
        assert stillmark(*shlex.split(command)[1:]).exit_code == 0, command


def test_a_finished_demo_runs_nothing_again(
    done: tuple[Path, list[demo.Row], list[str]], teacher: Path, stillmark: Run
) -> None:
    out, rows, _ = done
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name not in ("probes.jsonl", "prompts.jsonl")
    }
    result = stillmark("demo", "--model", teacher, "--out", out, "--json")
    assert result.exit_code == 0
    again = json.loads(result.stdout)["rows"]
    assert [one["log10_pvalue"] for one in again] == [row.result["log10_pvalue"] for row in rows]
    assert [one["right"] for one in again] == [True] * 5
    assert json.loads(result.stdout)["verdict"]["verdict"] == "distilled"
    after = {path: path.stat().st_mtime_ns for path in before}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"out", "demo.log"}
    assert demo.SECRET not in result.stdout

    table = stillmark("demo", "--model", teacher, "--out", out)
    assert table.stdout.splitlines()[0].split() == ["who", "by", "n", "log10", "p", "verdict", "right?"]
    rest = table.stdout.partition("\nn: ")
    assert rest[0].count("  yes\n") == 5
    assert "distilled" in rest[2]
    assert "What to try next:" in table.stdout


def test_a_killed_demo_goes_on_where_it_was(
    done: tuple[Path, list[demo.Row], list[str]], teacher: Path, tmp_path: Path
) -> None:
    """Killed with all its processes' parent as soon as the first answers are there; the end is the same."""
    whole, rows, _ = done
    out = tmp_path / "out"
    command = [sys.executable, "-m", "verify.cli", "demo", "--model", str(teacher), "--out", str(out), "--json"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    answers = out / "marked_teacher.jsonl"
    deadline = time.monotonic() + 120
    while not (answers.exists() and answers.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()  # returns when the last process that holds the pipes is gone: the workers end by themselves
    (out / ".marked_student.unfinished").mkdir()

    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    again = json.loads(second.stdout)["rows"]
    assert [one["log10_pvalue"] for one in again] == [row.result["log10_pvalue"] for row in rows]
    assert (out / "marked_teacher.jsonl").read_bytes() == (whole / "marked_teacher.jsonl").read_bytes()
    assert not list(out.glob(".*"))


def test_a_step_that_fails_is_named(teacher: Path, tmp_path: Path, stillmark: Run) -> None:
    """The hint comes along, too, and nothing is left running."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "marked_teacher.jsonl").write_text('{"id": "p000", "output": "", "run": "another"}\n')
    result = stillmark("demo", "--model", teacher, "--out", out)
    assert result.exit_code == 1
    assert "marked teacher: writing answers: " in result.output
    assert "Hint: " in result.output
    assert not workers.active_children()


def sleep(update: Any) -> None:
    update(1, 2)
    time.sleep(60)


def die(update: Any) -> None:
    os._exit(9)


def task(work: Callable[[Any], None]) -> workers.Task:
    return workers.Task("a task", "turns", "", work, ())


def test_a_process_that_dies_ends_the_others_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(StillmarkError, match="the process died"), workers.workers(tmp_path / "log") as pool:
        workers.side_by_side(pool, [task(sleep), task(die)], print, lambda *_: None)
    assert time.monotonic() - start < 50
    assert not workers.active_children()


def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    def interrupt(_task: workers.Task, done: int, total: int | None) -> None:
        assert (done, total) == (1, 2)
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), workers.workers(tmp_path / "log") as pool:
        workers.side_by_side(pool, [task(sleep)], print, interrupt)
    assert time.monotonic() - start < 50
    assert not workers.active_children()


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [1000.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    with cli._display() as (say, show):
        say("$ stillmark x")
        for done in range(10):
            now[0] += 8
            show(task(sleep), done, 10)
    assert capsys.readouterr().err.splitlines() == [
        "[   0 s] $ stillmark x",
        "[  40 s]   a task: 4 of 10 turns",
        "[  72 s]   a task: 8 of 10 turns",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    console.cache_clear()
    with cli._display() as (say, show):
        show(task(sleep), 3, 10)
        say("$ stillmark [x] :smile:")
    err = capsys.readouterr().err
    assert "a task" in err
    assert "3 of 10 turns" in err
    assert "$ stillmark [x] :smile:" in err
