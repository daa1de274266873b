"""The students that the other benchmarks test: trained here, once, on the outputs of one teacher.

    .venv/bin/python benchmarks/students.py [FOLDER] [NAME...]

About 12 minutes a student on one core; two at once are of use on two. Killed, it goes on where it was.

FOLDER (default: demo/students) gets, for each student NAME, `NAME.mark`, `NAME.teacher.jsonl` (what it learned from),
`NAME/` (the student) and `NAME.text.jsonl` (what it writes). `unmarked` learned from unmarked outputs, `other` from
another key's. `probes.jsonl` is unmarked text of the teacher, answers to questions that nobody else was asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verify.planning.demo import teacher_model
from verify.planning.questions import questions
from watermark import GreenList, Mark, Tournament
from watermark.schemes import Scheme

Arm = tuple[Scheme, int]

STUDENTS: dict[str, Arm | None] = {  # scheme and width of the mark in what they learned from
    "d3w1": (GreenList(delta=3.0), 1),
    "unmarked": None,
    "d1w1": (GreenList(delta=1.0), 1),
    "d2w1": (GreenList(delta=2.0), 1),
    "d3w2": (GreenList(delta=3.0), 2),
    "d0.5w1": (GreenList(delta=0.5), 1),
    "d1w2": (GreenList(delta=1.0), 2),
    "other": (GreenList(delta=3.0), 1),
}
MORE: dict[str, Arm] = {
    f"t{layers}w{width}": (Tournament(layers), width) for width in (1, 2) for layers in (1, 2, 3, 4)
}
"""Made where they are named. `NAME-2` is a student of the same arm under another key."""
DRAWN = re.compile(r"-(?:(once)|at([\d.]+))$")
"""`NAME-once`, `NAME-at1.1`: a student of text under the same key, a context marked once in an answer, or drawn at this
temperature.
"""
TAUGHT, ASKED, PROBED = 256, 160, 96
TOKENS = 128


def stillmark(*words: object, input: str | None = None) -> str:
    command = [sys.executable, "-m", "verify.cli", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(command, check=True, text=True, input=input, stdout=subprocess.PIPE, env=environment).stdout


def ask(path: Path, first: int, number: int) -> Path:
    rows = questions(first + number)[first:]
    path.write_text("".join(json.dumps({"id": row.id, "prompt": row.text}) + "\n" for row in rows))
    return path


def generate(model: Path, prompts: Path, out: Path, *more: object) -> None:
    stillmark("generate", "--model", model, "--prompts", prompts, "--out", out, "--max-new-tokens", TOKENS,
              "--batch-size", 64, *more)  # fmt: skip


def mark_of(folder: Path, name: str, teacher: Path) -> Path:
    path = folder / f"{name}.mark"
    if not path.exists():
        scheme, width = arm_of(name) or (GreenList(delta=3.0), 1)
        secret = hashlib.sha256(f"stillmark benchmark {plain(name)}".encode()).digest()
        Mark.new(teacher, scheme=scheme, width=width, label=name, secret=secret).save(path)
    return path


def arm_of(name: str) -> Arm | None:
    """Scheme and width of the mark in what a student learned from; None: no mark."""
    arm = plain(name).removesuffix("-2")
    return STUDENTS[arm] if arm in STUDENTS else MORE[arm]


def plain(name: str) -> str:
    """The arm and key, without how its text was drawn."""
    return DRAWN.sub("", name)


def drawn(name: str) -> tuple[str, ...]:
    """Options of `generate`."""
    how = DRAWN.search(name)
    if how is None:
        return ()
    return ("--repeats", "once") if how[1] else ("--temperature", how[2])


def make(folder: Path, name: str) -> None:
    teacher = teacher_model()
    mark = mark_of(folder, name, teacher)
    taught, student = folder / f"{name}.teacher.jsonl", folder / name
    marked = ["--mark", mark, *drawn(name)] if arm_of(name) else []
    generate(teacher, folder / "taught.jsonl", taught, *marked)
    if not student.exists():
        print(name, stillmark("student", "--base", teacher, "--outputs", taught, "--out", student).strip(), flush=True)
    generate(student, folder / "asked.jsonl", folder / f"{name}.text.jsonl")


def prepare(folder: Path) -> None:
    """Prompts, probes, and what the base itself writes."""
    folder.mkdir(parents=True, exist_ok=True)
    teacher = teacher_model()
    ask(folder / "taught.jsonl", 0, TAUGHT)
    asked = ask(folder / "asked.jsonl", TAUGHT, ASKED)
    generate(teacher, asked, folder / "base.text.jsonl")
    generate(teacher, ask(folder / "probed.jsonl", TAUGHT + ASKED, PROBED), folder / "probes.jsonl")


def main(folder: Path, names: Iterable[str]) -> None:
    prepare(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda name: make(folder, name), names))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/students"), sys.argv[2:] or STUDENTS)
