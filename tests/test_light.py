"""The core without any extra: marks, and tests of recorded evidence, where there is no torch and no transformers.

First with these packages hidden from a process, then with the wheel in an environment of its own.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import small
from tests.golden.make_evidence import EVIDENCE
from watermark.extras import EXTRAS

ROOT = Path(__file__).parent.parent
HIDE = f"""
import sys
class Without:  # of what there is, everything but these packages
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in {sorted(EXTRAS)} else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
"""
Light = Callable[..., subprocess.CompletedProcess[str]]


def recorded(name: str) -> float:
    """The result of a command of tests/test_golden.py."""
    value: float = json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())["result"]["log10_pvalue"]
    return value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A mark, and the folder of its tokenizer."""
    small.mark(tmp_path / "m", small.tokenizer(tmp_path / "tokenizer"))
    return tmp_path


def hidden(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs Python code where the packages of every extra are hidden."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", HIDE + code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=environment)


def hidden_stillmark(*arguments: object) -> subprocess.CompletedProcess[str]:
    return hidden("from verify.cli import main; main()", *arguments)


def recorded_evidence_is_tested(stillmark: Light, folder: Path) -> None:
    """Log probabilities, and text of which a part has no ids: the p-values that tests/golden has."""
    for name, words in (
        ("logprobs-reference", ["logprobs", EVIDENCE / "suspect.jsonl", "--reference",
                                EVIDENCE / "reference.jsonl", "--decoys", "0"]),
        ("logprobs-sequential", ["logprobs", EVIDENCE / "answers.jsonl"]),
        ("text-binomial", ["text", EVIDENCE / "outputs.jsonl", EVIDENCE / "more.txt", "--skip-bad"]),
    ):  # fmt: skip
        done = stillmark("test", words[0], "--mark", folder / "m", *words[1:], "--json")
        assert done.returncode == 0, done.stderr
        assert math.isclose(json.loads(done.stdout)["log10_pvalue"], recorded(name), rel_tol=1e-9)
    texts = [EVIDENCE / "outputs.jsonl", EVIDENCE / "more.txt"]
    judged = stillmark("verify", *texts, "--mark", folder / "m", "--skip-bad", "--json")
    assert judged.returncode == 0, judged.stderr
    (line,) = json.loads(judged.stdout)["tests"]
    assert math.isclose(line["log10_pvalue"], recorded("text-binomial"), rel_tol=1e-9)


def a_mark_is_made(stillmark: Light, folder: Path) -> None:
    """For a tokenizer, with the fingerprint that it has by transformers."""
    made = stillmark("mark", "new", "--tokenizer", folder / "tokenizer", "--out", folder / "new", "--json")
    assert made.returncode == 0, made.stderr
    old = json.loads(stillmark("mark", "show", folder / "m", "--json").stdout)
    for name in ("tokenizer", "exempt", "vocabulary_size"):
        assert json.loads(made.stdout)[name] == old[name]


def a_missing_extra_is_named(stillmark: Light, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every command that needs one, in two lines and no traceback."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    if not (folder / "suspect").exists():
        small.model(folder / "suspect")
    prompts = EVIDENCE / "prompts.jsonl"
    marked = ["--mark", folder / "m"]
    for package, words in (
        ("torch", ["generate", "--model", folder / "suspect", "--prompts", prompts, "--out", folder / "o.jsonl"]),
        ("torch", ["quality", *marked, "--model", folder / "suspect", "--prompts", prompts]),
        ("torch", ["student", "--base", folder / "suspect", "--outputs", EVIDENCE / "plain.jsonl", "--out",
                   folder / "student"]),
        ("transformers", ["test", "model", *marked, "--suspect", folder / "suspect", "--probes",
                          EVIDENCE / "probes.jsonl"]),
        ("torch", ["test", "weights", "--teacher", folder / "suspect", "--suspect", folder / "suspect"]),
        ("torch", ["protect", "order", *marked, "--teacher", folder / "suspect", "--out", folder / "released"]),
        ("transformers", ["test", "endpoint", *marked, "--suspect", "http://127.0.0.1:9", "--model", "s", "--prompts",
                          prompts, "--budget-tokens", "9", "--log", folder / "log.jsonl"]),
        ("ray", ["test", "corpus", *marked, EVIDENCE / "plain.jsonl", "--out", folder / "corpus", "--workers", "2"]),
    ):  # fmt: skip
        done = stillmark(*words)
        assert done.returncode == 1, (words, done.stdout, done.stderr)
        error, hint = done.stderr.strip().splitlines()[-2:]
        assert error == f"Error: {package} is needed for this and not installed"
        assert hint == f"Hint: pip install 'stillmark[{EXTRAS[package]}]'"
        assert "Traceback" not in done.stderr


def test_recorded_evidence_is_tested(folder: Path) -> None:
    recorded_evidence_is_tested(hidden_stillmark, folder)


def test_a_mark_is_made(folder: Path) -> None:
    a_mark_is_made(hidden_stillmark, folder)


@pytest.mark.slow
def test_a_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_missing_extra_is_named(hidden_stillmark, folder, monkeypatch)


def test_a_missing_extra_is_named_in_python(folder: Path) -> None:
    """It is an ImportError too, as a missing package is."""
    for code in (
        "import watermark; watermark.MarkConfig",
        "from watermark.models import load_model; from pathlib import Path; load_model(Path(sys.argv[1]))",
        "from watermark.tokenizers import load_transformers; load_transformers(sys.argv[1])",
    ):
        done = hidden(
            "from watermark import MissingExtraError\n"
            f"try:\n    {code}\n"
            "except ImportError as error:\n"
            "    assert isinstance(error, MissingExtraError); print(error.package, error.extra, error.hint)",
            folder / "tokenizer",
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[1:] == ["torch", "pip", "install", "'stillmark[torch]'"], done.stderr


def test_highlight_needs_no_torch(folder: Path) -> None:
    code = (
        "from watermark import Mark, highlight\n"
        "print(highlight(Mark.load(sys.argv[1]), sys.argv[2], 'w5 w6 w7').pieces)"
    )
    done = hidden(code, folder / "m", folder / "tokenizer")
    assert done.stdout == "('w5', ' w6', ' w7')\n", done.stderr


@pytest.mark.slow
def test_the_wheel_without_extras(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built from the sources, installed into a new environment by pip: nothing heavy comes along, and it works."""
    sources, home = folder / "sources", folder / "venv"
    sources.mkdir()
    for name in ("watermark", "verify"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=folder, env=environment)

    built = run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder / "wheels", sources)
    assert built.returncode == 0, built.stderr
    (wheel,) = (folder / "wheels").glob("stillmark-*.whl")
    installed = run(python, "-m", "pip", "install", wheel)
    assert installed.returncode == 0, installed.stderr
    look = f"from importlib.util import find_spec; print([name for name in {sorted(EXTRAS)} if find_spec(name)])"
    there = run(python, "-c", look)
    assert there.stdout == "[]\n", there.stderr

    def stillmark(*arguments: object) -> subprocess.CompletedProcess[str]:
        return run(home / "bin" / "stillmark", *arguments)

    recorded_evidence_is_tested(stillmark, folder)
    a_mark_is_made(stillmark, folder)
    environment["OPENAI_API_KEY"] = "none"
    a_missing_extra_is_named(stillmark, folder, monkeypatch)
