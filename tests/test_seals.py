"""What a run goes on from is what it wrote: edited evidence was accepted, and gave other verdicts (F5, F18)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from tests import small
from verify.corpus import test as corpus
from verify.corpus.worker import item_path, part_path
from verify.data.outputs import Outputs, read_outputs
from verify.suspects.endpoint import Endpoint
from verify.suspects.interview import Budget, Usage, iter_answers
from watermark import InputError, Mark
from watermark.io.prompts import Prompt
from watermark.io.records import SEAL, resuming, sealed
from watermark.tokenizers import load_transformers_for

Run = Callable[..., Result]
KEY = bytes(range(32))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def resealed(lines: list[dict[str, Any]], key: bytes) -> list[dict[str, Any]]:
    """The same lines, sealed by the rule of docs/formats.md, as in a log that was begun without a chain."""
    before, found = "", []
    for line in lines:
        fields = {name: value for name, value in line.items() if name not in (SEAL, "chain")}
        before = sealed(key, f"{before}\n{json.dumps(fields, ensure_ascii=False)}".encode())
        found.append(fields | {SEAL: before})
    return found


def test_a_sealed_log_is_resumed_as_it_was_written_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with resuming(path, "r", KEY) as (_, append):
        append([{"id": "a", "n": 1.5e-07}, {"id": "é\u2028", "n": [None, {"x": True}]}])
        append([{"id": "c", "n": -0.0}])
    whole = path.read_bytes()
    lines = lines_of(path)
    assert lines == resealed(lines, KEY)
    path.write_bytes(whole[:-20])
    with resuming(path, "r", KEY) as (earlier, append):
        assert [one.fields["id"] for one in earlier] == ["a", "é\u2028"], "a line that was cut is written anew"
        append([{"id": "c", "n": -0.0}])
    assert path.read_bytes() == whole
    changed = [dict(line) for line in lines]
    changed[1]["n"] = 2
    bare = [{name: value for name, value in line.items() if name != SEAL} for line in lines]
    for line, content, key, message in (
        (2, changed, KEY, "was changed since it was written"),
        (2, [lines[0], lines[2]], KEY, "was changed since it was written"),
        (1, lines[1:], KEY, "was changed since it was written"),
        (4, [*lines, lines[2]], KEY, "was changed since it was written"),
        (1, lines, bytes(32), "was changed since it was written"),
        (1, [{**lines[0], SEAL: 5}], KEY, "was changed since it was written"),
        (1, bare, KEY, "has no seal"),
    ):
        write(path, content)
        with pytest.raises(InputError, match=message) as error, resuming(path, "r", key):
            pass
        assert error.value.line == line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seals")
    small.mark(folder / "m", small.tokenizer(folder / "tok"))
    return folder


def test_an_endpoints_log_says_what_the_server_said(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`output_ids` edited, while the server's `answer` stood beside them, was accepted; even who has the key cannot."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    mark = Mark.load(place / "m")
    words = load_transformers_for(mark)
    prompts = [Prompt(f"p{i}", f"w{i + 5} w{i + 6}", None) for i in range(3)]
    log = tmp_path / "log.jsonl"
    said = {"prompt_ids": [5], "output": "w7 w8 w9", "output_ids": [7, 8, 9]}
    said["top_logprobs"] = [[[i, -0.1], [i + 1, -3.0]] for i in (7, 8, 9)]

    def ask(url: str) -> list[list[int]]:
        endpoint = Endpoint(url, "s", max_tokens=3, top_logprobs=2, samples=2, concurrency=1)
        waves = list(iter_answers(endpoint, prompts, mark, words, log, Budget(10_000), Usage()))
        return [text.ids.tolist() for wave in waves for text in wave]

    with small.serve(lambda _body: small.answer(said)) as (url, seen):
        first = ask(url)
        asked = len(seen)
        assert ask(url) == first
        assert len(seen) == asked
        whole = lines_of(log)
        for name, value in (("output_ids", [9, 9, 9]), ("output", "w9"), ("prompt_ids", [6])):
            edited = [dict(line) for line in whole]
            edited[1][name] = value
            write(log, edited)
            with pytest.raises(InputError, match=r"was changed since it was written|the chain is broken"):
                ask(url)
            write(log, resealed(edited, mark.seal_key))
            with pytest.raises(InputError, match=f"'{name}' does not follow from the server's 'answer'"):
                ask(url)
        edited = [dict(line) for line in whole]
        edited[0]["top_logprobs"] = [[[7, -0.2], [8, -3.0]], *edited[0]["top_logprobs"][1:]]
        write(log, resealed(edited, mark.seal_key))
        with pytest.raises(InputError, match="'top_logprobs' does not follow"):
            ask(url)


def run_of(place: Path, folder: Path, stop: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """A run over a small corpus that is killed: before partitions are judged (`reduce`), or counted (`count`)."""
    draw = np.random.default_rng(1)
    rows = ({"prompt_ids": [5], "output_ids": draw.integers(3, 250, 40).tolist()} for _ in range(20))
    file = small.jsonl(folder / "o.jsonl", rows)
    steps, count = corpus.run_steps, corpus._count

    def killed(*words: Any) -> None:
        if words[1] == corpus.REDUCE:
            raise KeyboardInterrupt
        steps(*words)

    def uncounted(*_words: Any) -> Any:
        raise KeyboardInterrupt

    def go() -> object:
        return corpus.corpus_test(place / "m", file, folder / "run")

    if stop:
        with monkeypatch.context() as patch:
            patch.setattr(corpus, "run_steps", killed if stop == "reduce" else steps)
            patch.setattr(corpus, "_count", uncounted if stop == "count" else count)
            with pytest.raises(KeyboardInterrupt):
                go()
    else:
        go()
    return go


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def test_a_corpus_run_does_not_believe_its_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`counts.json` edited gave "carries the mark, p = 1.7e-203"."""
    for number, (stop, name, change) in enumerate(
        (
            ("", "counts.json", lambda body: body.update(green=body["n"])),
            ("", "counts.json", lambda body: body.pop("seal")),
            ("", "run.json", lambda body: body.update(partitions=2)),
            ("reduce", "items/000000/facts.json", lambda body: body.update(prompts=7)),
            ("count", "parts/000000.json", lambda body: body["tally"][0].__setitem__(1, 500)),
        )
    ):
        (tmp_path / str(number)).mkdir()
        go = run_of(place, tmp_path / str(number), stop, monkeypatch)
        path = tmp_path / str(number) / "run" / name
        whole = path.read_bytes()
        edited(path, change)
        with pytest.raises(InputError, match="was changed since this run wrote it"):
            go()
        path.write_bytes(whole)
        assert go()
    assert (item_path(tmp_path, 0), part_path(tmp_path, 0)) == (
        tmp_path / "items/000000",
        tmp_path / "parts/000000.json",
    )


def test_a_corpus_run_notices_arrays_and_inputs_that_were_changed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content that was changed while size and time stay was mixed with the old one, without a word."""
    go = run_of(place, tmp_path, "reduce", monkeypatch)
    rows = tmp_path / "run" / "items" / "000000" / "rows.npy"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-4] + b"\x07\0\0\0")
    with pytest.raises(InputError, match=r"rows\.npy: was changed since this run wrote it"):
        go()
    rows.write_bytes(whole)
    file = tmp_path / "o.jsonl"
    about, text = file.stat(), file.read_text()
    file.write_text(text.replace("[5]", "[6]", 1))
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(InputError, match="a file has changed since this run began"):
        go()
    file.write_text(text)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert go()


def test_text_and_ids_of_a_record_are_compared_and_differences_counted(place: Path, tmp_path: Path) -> None:
    mark = Mark.load(place / "m")
    rows = [{"output": "w7 w8 w9", "output_ids": [7, 8, 9]}] * 40
    rows[36] = {"output": "w7 w8 w9", "output_ids": [70, 80, 90]}
    read = read_outputs(small.jsonl(tmp_path / "o.jsonl", rows), mark)
    assert isinstance(read, Outputs)
    assert (read.compared, read.differing) == (40, 1)
