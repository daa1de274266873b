"""README and docs are true: every command in them is understood, and what can run on small files runs, in order.

A document is read as a reader would: its blocks of `sh` and `python` in turn, in one folder that holds a small demo.
MODEL is a small model there, and the endpoint a server of ours. Examples with `>>>` must give what they show.
"""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import yaml
from click.testing import Result

import verify
import watermark
from tests.test_help import COMMANDS, ENDPOINT, parsed, serve_student, small_demo
from watermark.models import load_model

Run = Callable[..., Result]

ROOT: Final = Path(__file__).parent.parent
DOCUMENTS: Final = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{one.name}" for one in sorted((ROOT / "docs").glob("*.md"))),
]

ELSEWHERE: Final = {
    "pip": "it installs, from a host that is not there",
    "make": "it makes an environment of its own; .ci/run runs it",
    "python": "it measures for minutes, or writes into the repository, or tests/test_recompute.py runs it",
    "echo": "it writes into the home folder",
    "openssl": "tests/test_evidence_bundle.py runs it",
    "export": "it is for a server that is not there",
    "vllm": "`make test-vllm` runs a server",
    "curl": "`make test-vllm` asks a server",
    "_STILLMARK_COMPLETE=bash_source": "it writes into the home folder; test_help runs the completion itself",
}
"""First words of commands that are not ours, and why they do not run here."""

SLOW: Final = {
    "stillmark demo": "it trains two students of the real teacher",
    "stillmark evidence timestamp": "it asks an authority; tests/test_evidence_timestamp.py has one",
    "stillmark evidence sign": "it asks Sigstore; tests/test_evidence_sigstore.py has one",
    "stillmark evidence check --identity": "the signature is one of Sigstore",
    "stillmark protect plant": "the small tokenizer knows none of the answers",
    "stillmark test planted": "the small tokenizer knows none of the answers",
    "stillmark verify --planted": "the small tokenizer knows none of the answers",
}
"""Commands of ours that do not run here, and why; an option named with them is the reason."""


@dataclass(frozen=True)
class Block:
    """A block of code in a document. line: of its first line."""

    language: str
    line: int
    text: str


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a document."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(found[1], text[: found.start(2)].count("\n") + 1, found[2])


def commands(block: Block) -> list[tuple[int, list[str]]]:
    """The commands of a block of `sh`: the line and the words of each, without comments."""
    whole = re.sub(r"\\\n", lambda _: "\0", block.text)
    found, line = [], block.line
    for one in whole.splitlines():
        words = shlex.split(one.replace("\0", " "), comments=True)
        if words:
            found.append((line, words))
        line += 1 + one.count("\0")
    return found


READ: Final = {name: list(blocks((ROOT / name).read_text(encoding="utf-8"))) for name in DOCUMENTS}
TYPED: Final = [
    pytest.param(words, id=f"{name}:{line}")
    for name, found in READ.items()
    for block in found
    if block.language == "sh"
    for line, words in commands(block)
]


def is_slow(words: list[str]) -> bool:
    """Whether a command of ours is one of SLOW."""
    name = parsed(words[1:])[0]
    return any(
        name == slow.partition(" --")[0] and (" --" not in slow or f"--{slow.partition(' --')[2]}" in words)
        for slow in SLOW
    )


@pytest.mark.parametrize("words", TYPED)
def test_the_command_is_understood(words: list[str]) -> None:
    """Every option in it exists, every value is of the right kind, nothing that is required is missing."""
    if words[0] == "stillmark":
        assert parsed(words[1:])[0] in COMMANDS
    else:
        assert words[0] in ELSEWHERE
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()


def test_what_does_not_run_is_in_the_documents() -> None:
    """No reason is kept for a command that is not there."""
    typed = [list(one.values[0]) for one in TYPED]  # type: ignore[call-overload]
    assert set(ELSEWHERE) <= {words[0] for words in typed}
    for slow in SLOW:
        name, _, option = slow.partition(" --")
        assert name in COMMANDS
        assert option == "" or any(f"--{option}" in words for words in typed)


def test_commands_and_lines_are_found() -> None:
    text = "a\n```sh\nstillmark mark show \\\n    x  # a comment\n\nmake 'a b'\n```\n```text\nno\n```\n"
    first, second = blocks(text)
    assert second.language == "text"
    assert commands(first) == [(3, ["stillmark", "mark", "show", "x"]), (6, ["make", "a b"])]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, found in READ.items() if found])
def test_the_document_runs(
    name: str, tmp_path: Path, stillmark: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command ends with status 0, every Python block runs, and every example gives what it shows."""
    small_demo(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    model = str(tmp_path / "teacher")
    names = variables(tmp_path) if any(one.language == "python" for one in READ[name]) else {}
    with serve_student(tmp_path) as url:
        for block in READ[name]:
            text = block.text.replace("MODEL", model).replace(ENDPOINT, url)
            if block.language == "sh":
                for line, words in commands(Block("sh", block.line, text)):
                    if words[0] == "stillmark" and not is_slow(words):
                        done = stillmark(*words[1:])
                        assert done.exit_code == 0, f"{name}:{line}: {done.stderr}"
            elif block.language == "python" and ">>>" in text:
                test = doctest.DocTestParser().get_doctest(text, {}, name, name, block.line - 1)
                test.globs = names
                runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
                runner.run(test, clear_globs=False)
                assert not runner.failures, capsys.readouterr().out
            elif block.language == "python":
                exec(compile("\n" * (block.line - 1) + text, name, "exec"), names)


def variables(folder: Path) -> dict[str, Any]:
    """What blocks of Python take for given: a model in a loop of its reader's."""
    import torch

    model, tokenizer = load_model(folder / "teacher")
    ids = torch.tensor([[5, 7, 9]])
    return {
        "model": model,
        "tokenizer": tokenizer,
        "pad_token_id": None,
        "ids": ids,
        "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "pad_token_id": 1},
        "logits": torch.zeros(1, int(model.config.vocab_size)),
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    """Files that a document links to are there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert ((ROOT / name).parent / target).exists(), target


def test_every_page_has_a_place_in_the_site() -> None:
    """And only one."""
    config = yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [page for _, page in leaves(config["nav"])]
    assert sorted(pages) == sorted(one.name for one in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("package", [watermark, verify])
def test_every_public_name_is_in_the_page_on_python(package: ModuleType) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in package.__all__ if not re.search(rf"\b{name}\b", text)] == []


def leaves(nav: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The titles and files of a navigation, from its sections too."""
    for entry in nav:
        for title, below in entry.items():
            if isinstance(below, str):
                yield title, below
            else:
                yield from leaves(below)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
