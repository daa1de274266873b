"""A secret is in no pickle, no `vars()`, no traceback with local variables; files with keyed material are private."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from transformers import GenerationConfig

import verify
from tests import small
from tests.servers import chat, serve
from watermark import (
    GreenList,
    InputError,
    Mark,
    MarkConfig,
    MarkError,
    MarkLogitsProcessor,
    Marks,
    StillmarkError,
    Tournament,
    prf,
)
from watermark.io import files
from watermark.io.fields import JsonError, load_json
from watermark.kernels import dispatch, native
from watermark.keyfile import parse_secret
from watermark.schemes import counting
from watermark.secret import Secret, SecretDict, SecretText

SECRET = bytes.fromhex("8f3b1c" + "5a" * 28 + "e7")
Run = Callable[..., Result]


def made(**more: Any) -> Mark:
    return Mark(SECRET, vocabulary_size=64, **more)


def leaks(shown: str | bytes) -> bool:
    """Whether the secret, a PRF key or a child's secret is there, in a way in which Python or numpy shows bytes."""
    mark = made()
    keys = [SECRET, mark.child("a").secret, *(Mark(SECRET, width=w).prf_key for w in range(8))]
    if isinstance(shown, bytes):
        return any(bytes(key) in shown or key.hex().encode() in shown for key in keys)
    forms = [form for key in map(bytes, keys) for form in (key.hex(), repr(key)[2:-1], str(list(key))[1:-1])]
    # one word of a key, as an array or a tensor of 32 bits shows it, is enough
    words = [np.frombuffer(bytes(key), kind)[3] for key in keys[2:] for kind in ("<u4", "<i4")]
    return any(form.lower() in shown.lower() for form in forms) or any(str(word) in shown for word in words)


def test_the_check_sees_a_secret() -> None:
    key = bytes(made().prf_key)
    for text in (SECRET.hex(), repr(SECRET), str(list(SECRET)), repr(prf.key_words(key)), repr({"key": key})):
        assert leaks(text)
    assert leaks(pickle.dumps(bytes(made().prf_key)))


def test_a_secret_is_bytes_that_say_nothing() -> None:
    secret, text = Secret(SECRET), SecretText("ab")
    assert secret == SECRET
    assert secret.hex() == SECRET.hex()
    assert {f"{one}{one!r}{one!s}{one:}" for one in (secret,)} == {"<Secret, hidden>" * 4}
    assert repr([text, {"x": secret}, SecretDict(a=SECRET)]) == (
        "[<SecretText, hidden>, {'x': <Secret, hidden>}, <SecretDict, hidden>]"
    )
    for one in (secret, text, SecretDict()):
        with pytest.raises(MarkError, match="a secret is not pickled"):
            pickle.dumps(one)
        assert copy.deepcopy(one) is copy.copy(one) is one


@pytest.mark.parametrize("scheme", [GreenList(), Tournament()])
def test_a_pickle_is_a_card(scheme: Any) -> None:
    mark = made(scheme=scheme)
    marks, config = Marks((mark, mark.child("a"))), MarkConfig(mark, 2)
    mark.bias_(torch.zeros(1, 64), torch.zeros(1, 1, dtype=torch.int64))
    generation = GenerationConfig()
    generation.watermarking_config = config
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        for one in (mark, marks, config, generation, {"mark": mark}, MarkConfig(marks)):
            assert not leaks(pickle.dumps(one, protocol))
    assert pickle.loads(pickle.dumps(mark)) == mark.card()
    assert pickle.loads(pickle.dumps(marks)) == {"marks": [mark.card(), mark.child("a").card()], "rows": None}
    assert pickle.loads(pickle.dumps(config)) == mark.card() | {"pad_token_id": 2}
    for holder in (MarkLogitsProcessor(mark), marks.tables):
        with pytest.raises(MarkError, match="a secret is not pickled") as error:
            pickle.dumps(holder)
        assert "Mark.load" in str(error.value.hint)
    assert copy.deepcopy(mark) is mark
    assert Mark.loads(mark.dumps()) == mark


def test_variables_show_nothing() -> None:
    mark = made()
    mark.bias_(torch.zeros(1, 64), torch.zeros(1, 1, dtype=torch.int64))
    tables = mark._alone.tables
    assert tables.on_device
    for one in (mark, mark._alone, tables, MarkLogitsProcessor(mark), MarkConfig(mark)):
        assert not leaks(repr(vars(one)))
    assert not leaks(repr([mark.prf_key, mark.secret, mark.dumps(), mark.child("a").secret]))


# --- tracebacks with local variables ---


def broken(*_arguments: Any, **_named: Any) -> Any:
    raise KeyboardInterrupt


def shown(error: BaseException) -> str:
    """The traceback with local variables, of our frames and the libraries', as Sentry or rich show it."""
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    parts: list[traceback.TracebackException | None] = [found]
    text = ""
    while parts:
        if (part := parts.pop()) is not None:
            text += str(part) + "".join(
                f"{frame.name} {frame.locals}" for frame in part.stack if frame.filename != __file__
            )
            parts += [part.__cause__, part.__context__]
    return text


def damaged() -> Iterator[tuple[str, str]]:
    text = str.__str__(made().dumps())
    body = json.loads(text)
    yield from {"cut": text[:-30], "two": text + text, "deep": "[" * 10**5 + text, "bytes": text + "\ud800"}.items()
    changes = {"secret": SECRET.hex()[:-1], "width": 1e999, "format": "x", "exempt": [1.5], "prf": "x", "gamma": -1}
    for name, value in changes.items():
        yield name, json.dumps(body | {name: value})


@pytest.mark.parametrize(("name", "text"), list(damaged()), ids=[name for name, _ in damaged()])
def test_a_damaged_mark_is_not_shown(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.touch(0o600)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(MarkError) as error:
        Mark.load(path)
    assert not leaks(shown(error.value)), shown(error.value)
    with pytest.raises(MarkError) as error:
        Mark.loads(text)
    assert not leaks(shown(error.value))


def test_failures_show_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = made()
    mark.save(tmp_path / "m")
    contexts, tokens = np.zeros((5000, 1), np.int64), np.arange(5000)
    logits, context = torch.zeros(1, 64), torch.zeros(1, 1, dtype=torch.int64)

    def fails(what: Callable[[], object], *patches: tuple[object, str]) -> None:
        with monkeypatch.context() as patched:
            for owner, name in patches:
                patched.setattr(owner, name, broken)
            with pytest.raises((KeyboardInterrupt, StillmarkError, ValueError)) as error:
                what()
        assert not leaks(shown(error.value)), shown(error.value)

    fails(lambda: mark.save(tmp_path / "m"))
    fails(lambda: mark.save(tmp_path / "nowhere" / "m"))
    fails(lambda: mark.save(tmp_path / "n"), (os, "fsync"))
    fails(lambda: mark.save(tmp_path / "n"), (json, "dumps"))
    fails(lambda: mark.child("a\nb"))
    fails(lambda: parse_secret(SECRET.hex() + "0"))
    fails(lambda: Mark.new(secret=parse_secret(SECRET.hex()), width=99))
    fails(lambda: mark.commitment, (json, "dumps"))
    fails(lambda: mark.green(contexts, tokens), (native._native, "bits"))
    fails(lambda: prf.bits(mark.prf_key, contexts, tokens), (prf, "_permute"))
    fails(lambda: list(counting.count_green([mark.prf_key], contexts, tokens, 9)), (native._native, "count_green"))
    fails(lambda: mark.bias_(logits, context), (native, "_in_rows"))
    fails(lambda: mark.bias_(logits, context, kernel="torch"), (dispatch.plain, "bias_"))
    fails(lambda: mark.bias_(logits, context, kernel="triton2"))  # type: ignore[arg-type]
    fails(lambda: made().bias_(logits, context), (torch, "tensor"))


# --- modes ---


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
def test_modes_are_the_umasks_and_secrets_private(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        files.create(tmp_path / "a", b"1")
        files.replace(tmp_path / "b", b"1")
        files.replace(tmp_path / "c", b"1", private=True)
        files.create(tmp_path / "d", b"1", private=True)
        with files.new_folder(tmp_path / "e") as scratch:
            assert mode(scratch) == 0o700
        made().save(tmp_path / "m")
        made().publish(tmp_path / "card")
    wanted = {"a": 0o666, "b": 0o666, "c": 0o600, "d": 0o600, "e": 0o777, "m": 0o600, "card": 0o666}
    assert {path.name: mode(path) for path in tmp_path.iterdir()} == {
        name: bits & ~mask if bits != 0o600 else bits for name, bits in wanted.items()
    }


def test_the_log_of_the_planted_questions_is_private(tmp_path: Path, stillmark: Run) -> None:
    made().save(tmp_path / "m")
    log = tmp_path / "log.jsonl"
    with umask(0o022), serve(lambda _body, _handler: chat("rain")) as (url, _):
        asked = ("test", "planted", "--mark", tmp_path / "m", "--suspect", url, "--number", 2, "--log", log)
        stillmark(*asked)
        assert mode(log) == 0o600
        log.chmod(0o644)
        stillmark(*asked)
    assert mode(log) == 0o600


# --- what a write leaves behind ---


def test_keys_among_further_fields_and_in_the_address_are_kept_nowhere(tmp_path: Path, stillmark: Run) -> None:
    """Some proxies take a key in the body, or in the query: no log, plan, result or repr holds it."""
    keys = ("key-in-the-body", "key-in-a-header", "key-in-the-query", "hunter2-hunter2")
    extra = {"api_key": keys[0], "headers": {"Authorization": f"Bearer {keys[1]}"}, "seed": 1}
    mark = small.mark(tmp_path / "m", small.tokenizer(tmp_path / "tokenizer"))
    table, draw = small.logits(mark), np.random.RandomState(0)

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        assert body["api_key"] == keys[0], "the suspect is asked with it"
        output = small.sample(table, 30, draw)
        return small.answer(small.read(table, {"prompt_ids": [5], "output_ids": output, "output": small.spell(output)}))

    prompts = small.jsonl(tmp_path / "prompts.jsonl", ({"id": str(i), "prompt": f"w5 w{i + 2}"} for i in range(3)))
    with small.serve(reply) as (url, seen):
        where = f"{url.replace('http://', f'http://me:{keys[3]}@')}?api-key={keys[2]}"
        run = ("test", "endpoint", "--mark", tmp_path / "m", "--suspect", where, "--model", "s", "--prompts", prompts)
        more = (
            "--log",
            tmp_path / "log.jsonl",
            "--extra",
            json.dumps(extra),
            "--plan",
            tmp_path / "plan.json",
            "--json",
        )
        done = stillmark(*run, *more)
        assert done.exit_code == 0, done.stderr
        assert seen
    asked = verify.Endpoint(where, "s", extra=extra)
    written = [(tmp_path / name).read_text() for name in ("log.jsonl", "plan.json")]
    for text in (done.stdout, done.stderr, repr(asked), *written):
        assert not [key for key in keys if key in text]
    assert "'seed': 1" in repr(asked)


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.replace(tmp_path / "folder", b"1")
    files.create(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "a", b"2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]
    assert (tmp_path / "a").read_bytes() == b"1"
    monkeypatch.delattr(os, "O_TMPFILE")
    files.create(tmp_path / "b", b"1")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "a", b"2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "folder"]


def test_what_a_killed_run_left_goes_with_the_next(tmp_path: Path) -> None:
    """F20. What a living run is making stays."""
    code = (
        "import os, sys; from pathlib import Path; from watermark.io.files import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as scratch:\n (scratch / 'a').touch(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.unfinished-")
    (tmp_path / ".out.notes").mkdir()  # of somebody's own, with a name of another length
    with files.new_folder(tmp_path / "out") as first:
        assert not left.exists()
        with files.new_folder(tmp_path / "out"):
            assert first.exists()
        shutil.rmtree(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.notes", "out"]


def test_a_kill_leaves_no_second_copy_of_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is whole the file has no name."""
    seen: list[list[str]] = []
    synced = os.fsync

    def sync(file: int) -> None:
        seen.append([path.name for path in tmp_path.iterdir()])
        synced(file)

    monkeypatch.setattr(os, "fsync", sync)
    made().save(tmp_path / "m")
    assert seen == [[], ["m"]], "and then its name is put on the disk"


def test_a_log_is_no_link_and_no_other_file(tmp_path: Path) -> None:
    from watermark.io.records import resuming

    (tmp_path / "other").write_bytes(b"{")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for name, message in (("other", "not a record of this command's"), ("link", "it is a link")):
        with pytest.raises(InputError, match=message), resuming(tmp_path / name, "x"):
            pass
    assert (tmp_path / "other").read_bytes() == b"{"
    assert not (tmp_path / "new").exists()


def test_a_file_is_not_read_beyond_its_bound(tmp_path: Path, stillmark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never a part of one as if it were the whole."""
    made().save(tmp_path / "m")
    (tmp_path / "labels").write_text("one\ntwo\nthree\n")
    (tmp_path / "o.jsonl").write_text('{"output_ids": [5, 6, 7]}\n')
    monkeypatch.setattr("watermark.keyfile.MOST", 7)
    result = stillmark("attribute", "--mark", tmp_path / "m", "--labels", tmp_path / "labels", tmp_path / "o.jsonl")
    assert (result.exit_code, "MiB of labels" in result.stderr) == (1, True)
    monkeypatch.setattr("watermark.io.fields.MOST", 7)
    with pytest.raises(JsonError, match="more than 0 MiB"):
        load_json(tmp_path / "o.jsonl")
    monkeypatch.setattr("watermark.keyfile.MOST_BYTES", 7)
    with pytest.raises(MarkError, match="not a mark"):
        Mark.load(tmp_path / "m")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_a_device_is_no_file(device: str, tmp_path: Path, stillmark: Run) -> None:
    made().save(tmp_path / "m")
    (tmp_path / "o.jsonl").symlink_to(device)
    (tmp_path / "one.txt").write_text("a\n")
    for words in (
        ("test", "text", "--mark", tmp_path / "m", "--skip-bad", tmp_path / "o.jsonl"),
        ("test", "text", "--mark", device, "--allow-readable-mark", tmp_path / "one.txt"),
        ("attribute", "--mark", tmp_path / "m", "--labels", device, tmp_path / "o.jsonl"),
    ):
        result = stillmark(*words)
        assert result.exit_code == 1, result.output
        assert "it is a device, and no file" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "call",
    [
        lambda secret, _folder: Mark(secret, width="x"),  # type: ignore[arg-type]
        lambda secret, _folder: Mark(secret, exempt=5),  # type: ignore[arg-type]
        lambda secret, _folder: Mark(secret + b"1"),
        lambda secret, _folder: Mark.new(secret=secret, width=99),
        lambda secret, folder: Mark.new(folder / "none", secret=secret),
        lambda secret, _folder: Mark.loads(made().dumps().replace(f'"{secret.hex()}"', f'["{secret.hex()}"]')),
    ],
)
def test_what_a_wrong_call_is_given_is_in_no_traceback(call: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(StillmarkError) as caught:
        call(SECRET, tmp_path)
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    inner = [frame for frame in frames if Path(frame.filename).name != Path(__file__).name and frame.locals]
    assert not any(leaks(value) for frame in inner for value in (frame.locals or {}).values())


def test_a_mark_as_a_dictionary_hides_its_secret() -> None:
    from dataclasses import asdict

    assert not leaks(repr(asdict(made())))
