"""Errors that nobody foresaw end a command in one line; `--debug` shows the traceback."""

from __future__ import annotations

import errno
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
