"""A child process for what a model folder brings and Python would run: its chat template, and its tokenizer's rules.

Both are small programs of a stranger's: a template has loops and powers, a tokenizer's rules may make a megabyte of one
letter. The child has limits on memory and CPU time, its stdin and stdout are of no use to what runs in it, and once it
is ready it can open no file and no connection. It never sees a secret. Where it ends, the folder is refused.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Final

try:
    import resource
except ImportError:  # Windows has no limits of this kind; the deadlines hold there too
    resource = None  # type: ignore[assignment]

SECONDS = 5
"""CPU time for one template with one conversation, and a tenth of what a tokenizer may take to load."""
PATIENCE: Final = 24
"""Times as many seconds by the clock, on a busy machine."""
MEMORY: Final = 1 << 30
"""Bytes for a template beyond what the child needs itself, and a quarter of those for a tokenizer."""
MOST_TEXT: Final = 4 << 20
"""Characters of a rendered conversation."""
MOST_TOKENS: Final = 128
"""Tokens, and characters, that a tokenizer may make of one character."""
LONGEST_TOKEN: Final = 1 << 14
"""Characters of a token."""

_KEPT: Final = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "TEMP", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_ANSWER: Final = 16 * MOST_TEXT
_START: Final = "import sys; sys.path[:0] = [sys.argv[1]]; from watermark.confined import serve; serve(sys.argv[2])"


class RefusedError(Exception):
    """What the child says of a stranger's program, or how it ended over it."""


class _Child:
    """One child process, for one kind of work. kind: `template` or `tokenizer`."""

    def __init__(self, kind: str) -> None:
        import subprocess

        root = str(Path(__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, root, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        self._lock = threading.Lock()
        self.owner = os.getpid()

    def ask(self, request: dict[str, Any], seconds: int) -> dict[str, Any]:
        """The child's answer. Raises RefusedError if it ends, or takes more than some seconds of CPU time."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(PATIENCE * max(seconds, 5), end)
        timer.daemon = True
        with self._lock:
            timer.start()
            try:
                process.stdin.write(json.dumps({**request, "seconds": seconds}).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline(_ANSWER)
            except OSError:
                line = b""
            finally:
                timer.cancel()
            if not line.endswith(b"\n"):
                self.close()
                over = late.is_set() or -process.returncode in (_signal("SIGXCPU"), _signal("SIGKILL"))
                raise RefusedError("takes too much time" if over else "takes too much memory, or ends the process")
        found: dict[str, Any] = json.loads(line)
        return found

    @property
    def alive(self) -> bool:
        """Whether it can be asked by this process."""
        return self.owner == os.getpid() and self._process.poll() is None

    def close(self) -> None:
        """End it."""
        if self.owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # what it no longer reads


def _environment() -> dict[str, str]:
    """What Python itself needs of the environment: it may hold keys to other services."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    kept |= {name: value for name, value in os.environ.items() if name.startswith(("LC_", "PYTHON"))}
    return kept | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _signal(name: str) -> int:
    import signal

    return int(getattr(signal, name, 0))


_children: Final[list[_Child]] = []
_starting: Final = threading.Lock()


def _renderer() -> _Child:
    with _starting:
        if not _children or not _children[-1].alive:
            child = _Child("template")
            atexit.register(child.close)
            _children[:] = [child]
            try:
                child.ask({}, 50)  # until it has imported what it needs
            except RefusedError:
                _children.clear()
                raise RefusedError("cannot be rendered: the child process that does so did not start") from None
        return _children[-1]


def render(template: str, turns: list[dict[str, str]], words: Mapping[str, str | list[str]]) -> str:
    """A conversation as a chat template writes it, with the beginning of an answer at its end.

    Args:
        template: Jinja, from a tokenizer's folder.
        turns: each with `role` and `content`.
        words: the special tokens that the template may name.

    Raises:
        RefusedError: the template fails, or takes too much time or memory, or writes too much.
    """
    said = _renderer().ask({"template": template, "turns": turns, "words": dict(words)}, SECONDS)
    if "error" in said:
        raise RefusedError(said["error"])
    return str(said["text"])


def try_tokenizer(folder: Path, texts: list[str], digest: bytes) -> None:
    """Raises RefusedError if a folder's tokenizer takes too much time or memory, or makes too much of some texts.

    Any other fault of it is left for whoever loads it to find.

    Args:
        folder: holds tokenizer.json.
        texts: what it must read; each character is also tried by itself.
        digest: of the folder's files: the same is tried once.
    """
    said = _tried(folder, tuple(texts), digest)
    if said is not None:
        raise RefusedError(said)


@cache
def _tried(folder: Path, texts: tuple[str, ...], _digest: bytes) -> str | None:
    child = _Child("tokenizer")
    try:
        said = child.ask({"folder": str(folder.absolute()), "texts": texts}, 10 * SECONDS)
    except RefusedError as error:
        return str(error)
    finally:
        child.close()
    return said.get("error")


# --- in the child ---


def serve(kind: str) -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    (_serve_templates if kind == "template" else _serve_tokenizer)(requests, answers)


def _serve_templates(requests: BinaryIO, answers: BinaryIO) -> None:
    import time

    from transformers.utils.chat_template_utils import render_jinja_template

    def text_of(asked: dict[str, Any]) -> str:
        # annotated as text, it gives the texts, and where in them the model speaks
        found: Any = render_jinja_template(
            [asked["turns"]], chat_template=asked["template"], add_generation_prompt=True, **asked["words"]
        )
        return str(found[0][0])

    # whatever a template's failure, or the date, imports or opens is there before the doors close
    time.strftime("%c")
    for template in ("{{ strftime_now('%Y') }}", "{{ raise_exception('x') }}", "{{ 1 / 0 }}", "{% x"):
        _answer(partial(text_of, {"turns": [], "template": template, "words": {}}))
    _confine(MEMORY, files=False)
    _send(answers, {})
    requests.readline()
    for line in requests:
        asked = json.loads(line)
        _limit_time(asked["seconds"])

        said = _answer(partial(text_of, asked))
        _send(answers, {"error": "writes too long a text"} if len(said.get("text", "")) > MOST_TEXT else said)


def _serve_tokenizer(requests: BinaryIO, answers: BinaryIO) -> None:
    from tokenizers import Tokenizer

    from watermark import tokenizer_files

    _confine(4 * MEMORY, files=True)
    asked = json.loads(requests.readline())
    _limit_time(asked["seconds"])

    def tried() -> str:
        folder = Path(asked["folder"])
        try:
            tokenizer: Any = tokenizer_files.build(folder)[0]
        except tokenizer_files.UnknownClassError:
            tokenizer = Tokenizer.from_buffer(tokenizer_files.read(folder / "tokenizer.json"))
        _close_files()
        return _fault(tokenizer, asked["texts"]) or ""

    said = _answer(tried)
    _send(answers, {"error": said.get("text") or said.get("short")})


def _fault(tokenizer: Any, texts: list[str]) -> str | None:
    """What makes a tokenizer unfit to read anything at all."""
    if any(len(token) > LONGEST_TOKEN for token in tokenizer.get_vocab()):
        return f"has a token of more than {LONGEST_TOKEN:,} characters"
    singles = sorted(set("".join(texts)) | set(map(chr, range(32, 0x500))))
    for text in (*singles, *texts):
        most = MOST_TOKENS * len(text)
        longest = 0 if tokenizer.normalizer is None else len(tokenizer.normalizer.normalize_str(text))
        if longest > most or len(tokenizer.encode(text)) > most:
            return f"makes more than {MOST_TOKENS} of one character"
    return None


def _answer(work: Callable[[], str]) -> dict[str, str]:
    """What the work gives as `text`, or `error`; `short` too where memory ran out."""
    try:
        return {"text": work()}
    except MemoryError:
        return dict.fromkeys(("error", "short"), "takes too much memory")
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return {"error": f"fails: {type(error).__name__}"}


def _send(answers: BinaryIO, said: dict[str, Any]) -> None:
    answers.write(json.dumps(said).encode() + b"\n")
    answers.flush()


def _confine(memory: int, *, files: bool) -> None:
    """Memory beyond what is taken already; no file written, no program started; files: some may be opened."""
    if resource is None:
        return
    pages = Path("/proc/self/statm")
    held = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0
    for name, most in (("AS", held + memory), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0)):
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            try:
                resource.setrlimit(kind, (most, most))
            except (OSError, ValueError):
                continue  # macOS refuses some of them
    if not files:
        _close_files()


def _close_files() -> None:
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _limit_time(seconds: int) -> None:
    """So many seconds of CPU time from now on."""
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))
