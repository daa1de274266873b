"""Errors that nobody foresaw end a command in one line; `--debug` shows the traceback."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from verify.cli import main
from watermark import Mark


def fail_with(error: BaseException) -> Callable[..., object]:
    def fails(*_arguments: object, **_named: object) -> object:
        raise error

    return fails


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def card(tmp_path: Path) -> Path:
    Mark(bytes(32)).publish(tmp_path / "card")
    return tmp_path / "card"


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (
            KeyError("a\n\x1b[8mb"),
            r"Error: internal error: KeyError: 'a\n\x1b[8mb' (test_internal_errors.py:",
            "--debug",
        ),
        (RecursionError("deep"), "Error: internal error: RecursionError: deep", "--debug"),
        (MemoryError(), "Error: there is too little memory", "batch_size"),
        (OSError(errno.ENOSPC, "No space left on device"), "Error: No space left on device", "free some space"),
        (
            PermissionError(errno.EACCES, "Permission denied", "x\x1b"),
            r"Error: x\x1b: Permission denied",
            "is it there",
        ),
    ],
)
def test_one_line_and_the_traceback_on_demand(
    error: Exception, message: str, hint: str, card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verify.cli.mark.read_json", fail_with(error))
    result = run("mark", "show", str(card))
    first, second = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (1, "")
    assert first.startswith(message), first
    assert hint in second
    assert "Traceback" not in result.output
    shown = run("--debug", "mark", "show", str(card))
    assert shown.exception is error


def test_a_pipe_that_is_closed_is_no_error(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.cli.mark.read_json", fail_with(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    result = run("mark", "show", str(card))
    assert (result.exit_code, result.output) == (1, "")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_number_of_an_option_is_finite(number: str) -> None:
    """No bound stops nan: it came through to an error that nobody foresaw, or to a result."""

    def options(command: click.Command) -> Iterator[tuple[click.Command, str]]:
        for sub in command.commands.values() if isinstance(command, click.Group) else ():
            yield from options(sub)
        for one in command.params:
            if isinstance(one.type, click.FloatRange):
                yield command, one.opts[0]

    found = list(options(main))
    assert len(found) > 20
    for command, option in found:
        made = CliRunner().invoke(command, [f"{option}={number}"])
        assert made.exit_code == 2, (command.name, option)
        assert f"'{option}'" in made.stderr, (command.name, option)


WORDS = (("mark", "show", "card"), ("mark", "show", "card", "--json"), ("--version",), ("mark", "show", "--help"))


def shell(line: str, *words: str, place: Path) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it; `line` holds `"$@"` where the command stands."""
    whole = ["bash", "-c", line, "bash", sys.executable, "-m", "verify.cli", *words]
    return subprocess.run(whole, capture_output=True, text=True, cwd=place, check=False)


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_result_that_cannot_be_written_is_an_error(words: tuple[str, ...], card: Path) -> None:
    """On a closed stdout nothing was printed, and the status was 0; on a full disk `--help` showed a traceback."""
    closed = shell('"$@" >&-', *words, place=card.parent)
    assert (closed.returncode, closed.stdout) == (1, "")
    assert closed.stderr == "Error: standard output is closed: no result could be shown\n"
    if not Path("/dev/full").exists():
        return
    full = shell('"$@" > /dev/full', *words, place=card.parent)
    first, hint = full.stderr.splitlines()
    assert (full.returncode, hint[:22]) == (1, "Hint: free some space:")
    assert first.endswith("No space left on device")
    assert ("standard output" in first) == ("card" in words)


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_reader_that_goes_away_is_met_quietly(words: tuple[str, ...], card: Path) -> None:
    gone = shell('"$@" | true; echo ${PIPESTATUS[0]}', *words, place=card.parent)
    assert (gone.stdout, gone.stderr) in (("1\n", ""), ("0\n", "")), "0 if it wrote before the other one ended"


def test_results_are_shown_where_stderr_is_closed(card: Path) -> None:
    shown = shell('"$@" 2>&-', "mark", "show", "card", place=card.parent)
    assert (shown.returncode, shown.stdout[:3]) == (0, "prf")
