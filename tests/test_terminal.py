"""The command on a terminal: real commands in a pseudo-terminal, in narrow and wide windows.

What a terminal receives is read byte by byte: no line is wider than the window, and no control sequence is another
than those that the program itself uses.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from click.testing import Result
from rich.cells import cell_len
from rich.console import Console

import verify
from tests import small
from verify.cli.bars import Bars
from verify.cli.common import in_cli_words
from verify.cli.terminal import console
from verify.progress import on
from verify.results import plural
from watermark.progress import doing, shown_by

ROOT: Final = Path(__file__).parent.parent
OURS: Final = re.compile(r"\x1b\[(?:[0-9;]*m|2K|[0-9]*A|\?25[lh])")
"""The sequences that the program sends: colours, and for progress: clear the line, go up, hide and show the cursor."""

HOSTILE: Final = "a\x1b]0;owned\x07\x1b[2J[red]b[bold]\u202etxt\x9b31m\x7f\u05d0\u05d1\u0301 \u6f22\u5b57"
"""A name that sets the window's title, clears it, has rich's markup, turns the direction of writing, and more."""

SHOWN: Final = r"[red]b[bold]\u202etxt\x9b31m\x7f"
"""A part of it as it must be shown."""


LABELS: Final = 20_000


def run(
    words: Sequence[object], width: int = 80, *, piped: str = "", folder: Path = ROOT, **variables: str
) -> tuple[str, str, int]:
    """What a command writes to stdout and to stderr, each a terminal of its own, and its exit status.

    piped: `stdout` or `stderr`, which is a pipe then.
    """
    unset = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "none"} | variables
    ends, got = [], [bytearray(), bytearray()]
    for name in ("stdout", "stderr"):
        ours, theirs = os.pipe() if name == piped else pty.openpty()
        if name != piped:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        ends.append((ours, theirs))

    def listen(number: int) -> None:
        try:
            while data := os.read(ends[number][0], 1 << 16):
                got[number].extend(data)
        except OSError:  # how Linux ends a pseudo-terminal
            pass

    command = [sys.executable, "-m", "verify.cli", *map(os.fsencode, map(str, words))]
    outs = [theirs for _, theirs in ends]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=outs[0], stderr=outs[1], env=environment, cwd=folder
    )
    threads = [threading.Thread(target=listen, args=(number,)) for number in (0, 1)]
    for thread, theirs in zip(threads, outs, strict=True):
        os.close(theirs)
        thread.start()
    status = process.wait(timeout=120)
    for thread, (ours, _) in zip(threads, ends, strict=True):
        thread.join()
        os.close(ours)
    return got[0].decode(), got[1].decode(), status


def lines(received: str) -> list[str]:
    """What a terminal showed, each line as often as it was drawn: without our sequences, and no other is there."""
    plain = OURS.sub("", received)
    found = re.split(r"[\r\n]+", plain)
    assert all(line.isprintable() for line in found), repr(plain)
    return found


def widest(received: str) -> int:
    return max(map(cell_len, lines(received)))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a mark, marked outputs with two sources, records of log probabilities, labels, and a model."""
    folder = tmp_path_factory.mktemp("terminal")
    mark = small.mark(folder / "m", small.tokenizer(folder / "tokenizer"), delta=3.0)
    table, draw = small.logits(mark), np.random.RandomState(0)
    rows = []
    for i in range(30):
        prompt = small.sample(table, 4, draw)
        output = small.sample(table, 60, draw, prompt[-1])
        source = HOSTILE if i % 2 else "forum"
        rows.append({"id": f"t{i:02}", "prompt_ids": prompt, "output_ids": output, "source": source})
    small.jsonl(folder / "outputs.jsonl", rows)
    small.jsonl(folder / HOSTILE, rows).rename(folder / f"{HOSTILE}.jsonl")
    small.jsonl(folder / "said.jsonl", (small.read(table, row) for row in rows))
    child = small.logits(mark.child(HOSTILE), lift=3.0)
    texts = [{"id": str(i), "output_ids": small.sample(child, 60, draw)} for i in range(60)]
    small.jsonl(folder / "of_a_customer.jsonl", texts)
    (folder / "labels.txt").write_text(f"somebody\n{HOSTILE}\nsomebody else\n", encoding="utf-8")
    card = mark.card() | {"label": HOSTILE, "tokenizer": HOSTILE}
    (folder / "hostile.card").write_text(json.dumps(card), encoding="utf-8")
    return folder


COMMANDS: Final = {
    "verdict": ["verify", "said.jsonl", "--mark", "m"],
    "test": ["test", "text", "--mark", "m", "outputs.jsonl"],
    "hostile file": ["test", "text", "--mark", "m", f"{HOSTILE}.jsonl"],
    "labels": ["attribute", "--mark", "m", "--labels", "labels.txt", "--unmarked-prompts", "of_a_customer.jsonl"],
    "sources": ["test", "corpus", "--mark", "m", "outputs.jsonl", "--out", "OUT"],
    "power": ["power", "--access", "text", "--delta", "1"],
    "card": ["mark", "show", "hostile.card"],
    "error": ["test", "text", "--mark", "m", f"{HOSTILE}.txt"],
}


def words(name: str, out: Path) -> list[str]:
    return [str(out) if word == "OUT" else word for word in COMMANDS[name]]


@pytest.mark.parametrize("width", [40, 200])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "test"])
def test_no_line_is_wider_than_the_window(name: str, width: int, here: Path, tmp_path: Path) -> None:
    """Nor than 100 characters. A hostile name is shown, its markup too, and does nothing: `lines` asserts that."""
    out, err, status = run(words(name, tmp_path / "out"), width, folder=here)
    assert status == (1 if name == "error" else 0), err
    assert bool(out) == (name != "error")
    assert widest(out) <= min(width, 100)
    assert widest(err) <= width
    if name == "error":
        assert r"Error:a\x1b]0;owned\x07" in "".join(lines(err)).replace(" ", "")
    if name == "hostile file":
        assert any(re.search(r"reading.*\.jsonl +\d:\d\d$", line) for line in lines(err))
    if name in ("labels", "sources", "card") and width > 40:
        assert "[red]" in "".join(lines(out))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labels", "sources", "card", "verdict"])
def test_a_terminal_shows_the_words_of_the_plain_text(name: str, here: Path, tmp_path: Path) -> None:
    """Letter for letter, in columns of other widths; and a hostile name is inert in the plain text as well."""
    out, _, _ = run(words(name, tmp_path / "out1"), 200, folder=here)
    plain, _, _ = run(words(name, tmp_path / "out2"), piped="stdout", folder=here)
    assert sorted("".join(lines(out)).replace(" ", "")) == sorted("".join(plain.replace("out2", "out1").split()))
    assert plain.replace("\n", "").isprintable()
    assert name == "verdict" or SHOWN in plain


def test_a_name_that_is_no_text_is_shown(here: Path) -> None:
    """A file name need not be UTF-8."""
    name = os.fsdecode(b"\xff\xfe.jsonl")
    out, err, status = run(["test", "text", "--mark", "m", name], folder=here)
    assert (out, status) == ("", 1)
    assert r"Error: \udcff\udcfe.jsonl" in "\n".join(lines(err))


def test_piped_it_is_plain_text(here: Path) -> None:
    """To the byte what Python prints, with options in place of parameters. No line is drawn anew where none can be."""
    out, err, _ = run(COMMANDS["test"], piped="stdout", folder=here, TERM="dumb")
    assert not err
    assert out == in_cli_words(str(verify.text_test(here / "m", here / "outputs.jsonl"))) + "\n"


def test_no_colour_where_it_is_not_wanted(here: Path) -> None:
    """The words are the same: colour was no sign of its own. FORCE_COLOR asks for it in a pipe."""
    coloured, _, _ = run(COMMANDS["card"], 60, folder=here)
    assert "\x1b" in coloured
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain, _, _ = run(COMMANDS["card"], 60, folder=here, **variables)
        assert "\x1b" not in plain
        assert lines(plain) == lines(coloured)
    forced, _, _ = run(COMMANDS["card"], piped="stdout", folder=here, FORCE_COLOR="1", COLUMNS="60")
    assert "\x1b" in forced
    assert lines(forced) == lines(coloured)


def test_json_is_one_object_and_inert(here: Path) -> None:
    """On a terminal too; and a program reads the names as they are."""
    out, _, _ = run([*COMMANDS["card"], "--json"], 40, folder=here)
    assert json.loads(out)["label"] == HOSTILE
    assert re.fullmatch(r"[\x20-\x7f\r\n]+", out.replace("\x7f", ""))


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_slow_task_says_what_on_what_and_how_long_still(width: int, here: Path, tmp_path: Path) -> None:
    """Thousands of labels; the line is gone when the result comes."""
    (tmp_path / "many.txt").write_text("".join(f"customer-{i}\n" for i in range(LABELS)))
    words = ["attribute", "--mark", "m", "--labels", tmp_path / "many.txt", "outputs.jsonl", "--json"]
    out, err, status = run(words, width, folder=here)
    assert status == 0, err
    assert json.loads(out)["labels"] == LABELS
    assert widest(err) <= width
    count = rf"\d[\d,]*/{LABELS:,}" if width < 70 else rf"\d[\d,]* of {LABELS:,} labels"
    left = r"\d+:\d\d left" if width < 70 else r"\d+:\d\d, \d+:\d\d left"
    shown = [line for line in lines(err) if re.fullmatch(rf"[-\\|/] +tr.*\.jsonl .*{count} +{left} *", line)]
    assert shown, lines(err)[-5:]
    if width == 100:
        assert all("trying labels on outputs.jsonl" in line and "━" in line for line in shown)
        _, silent, _ = run(words, piped="stderr", folder=here)
        assert silent == ""
    assert OURS.sub("", err).endswith("\r")


@pytest.mark.slow
def test_loading_a_model_is_shown(here: Path, tmp_path: Path) -> None:
    """It has no units: a spinner, and how long it took so far."""
    model = small.model(tmp_path / "suspect")
    words = ["test", "model", "--mark", here / "m", "--suspect", model, "--probes", here / "outputs.jsonl"]
    out, err, status = run(words, 70)
    assert status == 0, err
    assert widest(err) <= 70
    assert any(re.search(r"^[-\\|/] +loading suspect +\d:\d\d$", line) for line in lines(err)), lines(err)
    assert any("reading the suspect suspect" in line for line in lines(err))
    assert "loading" not in out


def drawn(bars: Bars) -> list[str]:
    """The lines that a display shows."""
    with bars.console.capture() as got:
        bars.console.print(bars.get_renderable())
    return [line.rstrip() for line in got.get().splitlines()]


@pytest.fixture
def bars() -> Bars:
    return Bars(Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None))


def test_a_line_whose_end_is_not_known_counts(bars: Bars) -> None:
    bars.line("reading a.jsonl", "records").update(12_000, None)
    (line,) = drawn(bars)
    assert re.search(r"^[-\\|/]  reading a\.jsonl +12,000 records +0:00$", line)


@pytest.mark.parametrize("width", [8, 20, 30, 300])
def test_it_is_one_line_in_every_window(width: int) -> None:
    bars = Bars(Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None))
    bars.line("reading \u6f22\u5b57 and a name that is longer than the window", "records").update(12_000, 90_000)
    (line,) = drawn(bars)
    assert cell_len(line) <= min(width, 100)


def test_time_left_is_told_from_where_a_run_began(bars: Bars, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has half of its records at once; the other half takes as long as it takes."""
    now = [100.0]
    monkeypatch.setattr("verify.cli.bars.time.monotonic", lambda: now[0])
    line = bars.line("writing", "records")
    line.update(50, 100)
    now[0] += 60
    line.update(60, 100)
    assert drawn(bars)[0].endswith("60 of 100 records  0:00, 4:00 left")


def test_a_part_of_the_work_takes_the_line_of_the_whole(bars: Bars) -> None:
    """And gives it back."""
    with bars.stage("reading the suspect", "texts") as update:
        update(1, 4)
        with shown_by(bars.stage), doing("loading student"):
            assert ["loading student" in line for line in drawn(bars)] == [True]
        assert ["reading the suspect" in line for line in drawn(bars)] == [True]
    assert drawn(bars) == []


def test_what_is_done_on_what() -> None:
    assert on("reading", "in memory") == "reading in memory"
    assert on("reading", ()) == "reading"
    assert on("asking", "http://127.0.0.1:8000/") == "asking 127.0.0.1:8000"


def test_one_thing_is_no_plural(stillmark: Callable[..., Result], here: Path, tmp_path: Path) -> None:
    one = small.jsonl(tmp_path / "one.jsonl", [{"id": "a", "prompt_ids": [5], "output_ids": [6, 7]}])
    assert "of 2 positions in 1 record\n" in stillmark("test", "text", "--mark", here / "m", one).stdout
    assert plural(0, "record") == "0 records"


def test_there_is_one_console_of_each_stream() -> None:
    assert console() is console()
    assert console(stderr=True) is console(stderr=True)
    assert console(stderr=True).stderr
