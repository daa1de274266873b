"""Help and completion: every command's help opens with an example, and the examples of the quick commands run.

What runs is the text of the example, in a folder that holds small files under the names that the demo gives them.
"""

from __future__ import annotations

import gzip
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pytest
from click.testing import Result

from tests import small
from verify.cli import main
from verify.cli.common import Command
from watermark import Mark

Run = Callable[..., Result]

ENDPOINT: Final = "http://127.0.0.1:8000/v1"
"""What examples call an endpoint; here a server of our own takes its place, as a small model takes MODEL's."""

SLOW: Final = {
    "stillmark demo": "it trains two students of the real teacher",
    "stillmark evidence timestamp": "it asks an authority; tests/test_evidence_timestamp.py has one",
    "stillmark evidence sign": "it asks Sigstore; tests/test_evidence_sigstore.py has one",
    "stillmark protect plant": "the small tokenizer knows none of the answers",
    "stillmark test planted": "the small tokenizer knows none of the answers",
}
"""Commands whose examples do not run here, and why."""


def commands(group: click.Group = main, path: str = "stillmark") -> Iterator[tuple[str, click.Command]]:
    """All commands of the command line that are no groups, with the words that call them."""
    for name, one in sorted(group.commands.items()):
        here = f"{path} {name}"
        if isinstance(one, click.Group):
            yield from commands(one, here)
        else:
            yield here, one


COMMANDS: Final = dict(commands())
EXAMPLES: Final = {name: one.example for name, one in COMMANDS.items() if isinstance(one, Command)}


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """What click makes of the words after `stillmark`: the command that they call, and its parameters."""
    context: click.Context = click.Context(main, info_name="stillmark")
    command: click.Command = main
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert name is not None
        assert found is not None
        command = found
        if not isinstance(command, click.Group):
            context = command.make_context(name, words, parent=context)
        else:
            context = click.Context(command, info_name=name, parent=context)
    return context.command_path, context.params


@pytest.mark.parametrize("name", COMMANDS)
def test_help_opens_with_an_example(name: str, stillmark: Run) -> None:
    shown = stillmark(*name.split()[1:], "--help")
    assert shown.exit_code == 0
    first, second, *_ = shown.stdout.splitlines()
    assert first == "Example:"
    assert second.startswith("  stillmark ")
    assert shown.stdout.count("Usage: ") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    options = [one for one in COMMANDS[name].params if isinstance(one, click.Option)]
    silent = [one.opts[0] for one in options if not one.help or "below" in one.help]
    assert silent == [], "what an option is for stands beside it"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_is_understood(name: str) -> None:
    """Every option in it exists, every value is of the right kind, nothing that is required is missing."""
    called = [parsed(shlex.split(line))[0] for line in EXAMPLES[name].splitlines()]
    assert called[-1] == name


def test_what_is_not_understood_is_seen() -> None:
    """The test above can fail: at an option, a value, a missing argument, a command."""
    for wrong in ("power --access text --delay 1", "power --access ears --delta 1", "mark show", "mark shout x"):
        with pytest.raises(click.UsageError):
            parsed(wrong.split())


def test_the_list_of_slow_commands_holds_commands() -> None:
    assert set(SLOW) <= set(COMMANDS)


def small_demo(folder: Path) -> None:
    """A folder with `demo/`, as the demo leaves it, but small; a teacher; and what examples bring besides."""
    demo, teacher = folder / "demo", folder / "teacher"
    demo.mkdir()
    small.model(teacher)
    mark = small.mark(demo / "demo.mark", teacher, delta=3.0, label="demo")
    marked, plain = small.logits(mark), small.logits()
    small.model(demo / "marked_student", mark, lift=0.03)
    small.model(demo / "unmarked_student", seed=1)
    draw = np.random.RandomState(1)
    texts = []
    for i in range(20):
        prompt = small.sample(plain, 5, draw)
        texts.append({"id": f"p{i:03}", "prompt": small.spell(prompt), "prompt_ids": prompt})
    for name, table, commitment in (("marked", marked, mark.commitment), ("unmarked", plain, None)):
        rows = []
        for text in texts:
            output = small.sample(table, 40, draw, text["prompt_ids"][-1])
            said = {"output": small.spell(output), "output_ids": output, "ended": False}
            rows.append(text | said | {"model": "teacher", "mark": commitment, "run": name})
        small.jsonl(demo / f"{name}_teacher.jsonl", rows)
    small.jsonl(demo / "probes.jsonl", rows[:10])
    small.jsonl(demo / "prompts.jsonl", ({"id": one["id"], "prompt": one["prompt"]} for one in texts))
    (folder / "customers.txt").write_text("customer-17\ncustomer-18\n")
    (folder / "watermark.json").write_text('{"key": 20261126, "algorithm": "gumbel", "context_width": 1}')
    (folder / "readings").mkdir()
    small.jsonl(folder / "readings" / "suspect.jsonl", (small.read(marked, row) for row in rows[:10]))
    (folder / "logs").mkdir()
    chats = small.jsonl(folder / "logs" / "chat.jsonl", (small.answer(small.read(plain, row)) for row in rows))
    (folder / "logs" / "chat.jsonl.gz").write_bytes(gzip.compress(chats.read_bytes()))
    cells = "".join(f"{row['prompt']},{row['output']}\n" for row in rows)
    (folder / "logs" / "other.csv").write_text(f"question,model.text\n{cells}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    small_demo(folder)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder of its own, in which the files of `made` lie."""
    for one in made.iterdir():
        (tmp_path / one.name).symlink_to(one)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def serve_student(made: Path) -> Iterator[str]:
    """An endpoint that says what the marked student says.

    It names the 20 likeliest tokens if it is asked to, of an answer or along a prompt.
    """
    table = small.logits(Mark.load(made / "demo" / "demo.mark"), lift=0.03)
    draw = np.random.RandomState(2)

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        if "prompt_logprobs" in body:  # as vLLM
            rows = [{str(i): {"logprob": p} for i, p in small.top(table, one)} for one in body["prompt"][:-1]]
            return {"model": "suspect-1", "choices": [{"text": "w5", "prompt_logprobs": [None, *rows]}]}
        asked = (body["messages"][-1]["content"] if "messages" in body else body["prompt"]).split()
        prompt = [int(word[1:]) if word[1:].isdigit() and 2 <= int(word[1:]) < small.SIZE else 2 for word in asked]
        output = small.sample(table, 32, draw, prompt[-1])
        said = {"prompt_ids": prompt, "output_ids": output, "output": small.spell(output)}
        return small.answer(small.read(table, said), bool(body.get("logprobs")))

    with small.serve(reply) as (where, _):
        yield where


@pytest.fixture(scope="module")
def url(made: Path) -> Iterator[str]:
    with serve_student(made) as where:
        yield where


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in SLOW])
@pytest.mark.usefixtures("here")
def test_the_example_runs(name: str, stillmark: Run, url: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for line in EXAMPLES[name].splitlines():
        words = [word.replace("MODEL", str(made / "teacher")).replace(ENDPOINT, url) for word in shlex.split(line)]
        done = stillmark(*words)
        assert done.exit_code == 0, f"{line}\n{done.stderr}"
        assert done.stdout, line


def complete(**variables: str) -> str:
    """What the command prints when a shell asks it to complete."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | variables
    done = subprocess.run([sys.executable, "-m", "verify.cli"], capture_output=True, text=True, env=environment)
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete -o nosort"), ("zsh", "compdef"), ("fish", "complete ")])
def test_the_script_for_a_shell_is_printed(shell: str, word: str) -> None:
    script = complete(_STILLMARK_COMPLETE=f"{shell}_source")
    assert word in script
    assert f"_STILLMARK_COMPLETE={shell}_complete" in script


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (
            "stillmark mark ",
            {"plain,check", "plain,derive", "plain,import", "plain,new", "plain,publish", "plain,show"},
        ),
        ("stillmark mark p", {"plain,publish"}),
        ("stillmark power --access ", {"plain,text", "plain,top20", "plain,weights"}),
        ("stillmark power --price", {"plain,--price-in", "plain,--price-out"}),
        ("stillmark mark show ", {"file,"}),
    ],
)
def test_words_are_completed(typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    count = str(len(words) - 1)
    found = complete(_STILLMARK_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=count)
    assert set(found.splitlines()) == offered


def test_the_groups_are_completed() -> None:
    """Every group of the command line, whichever there are, offers its commands."""
    for name, group in main.commands.items():
        if isinstance(group, click.Group):
            typed = f"stillmark {name} "
            found = complete(_STILLMARK_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD="2")
            assert {line.removeprefix("plain,") for line in found.splitlines()} == set(group.commands)


def test_docs_name_the_lines_that_work() -> None:
    text = (Path(__file__).parent.parent / "docs" / "shell.md").read_text()
    for shell in ("bash", "zsh", "fish"):
        assert f"_STILLMARK_COMPLETE={shell}_source stillmark" in text
