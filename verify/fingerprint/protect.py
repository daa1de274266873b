"""What an owner does before a release, so that a copy or a student can be told later.

`verify.release_in_order` belongs here too: it puts a model's hidden units into an order drawn by the mark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from verify.data.outputs import digest, read_outputs
from verify.data.shapes import Answers
from verify.fingerprint.canaries import served
from verify.fingerprint.planted import ANSWERS, NUMBER, PlantedResult, ask, first_tokens, questions
from verify.planning.student import Training, train_student
from verify.progress import Stages, on, silent
from watermark import InputError, Mark
from watermark.io import files
from watermark.io.records import Record
from watermark.mark import as_mark
from watermark.tokenizers import load

PathLike = str | Path

TRAINING: Final = Training(epochs=12, learning_rate=1e-4, batch_size=8)


def plant(
    base: PathLike,
    mark: Mark | PathLike,
    out: PathLike,
    number: int = NUMBER,
    mixed: Sequence[PathLike] = (),
    training: Training = TRAINING,
    progress: Stages = silent,
) -> PlantedResult:
    """Fine-tune a model until it knows the answers to keyed questions; `out` becomes the model to release.

    Args:
        base: the model's folder.
        mark: the mark, or its file, whose secret keys questions and answers.
        out: a new folder.
        number: of questions; the test needs the same number.
        mixed: further outputs (JSONL) to train on in between, so that the model changes little otherwise.
        training: how.
        progress: opened around the training and the asking.

    Returns:
        The test of the new model: how many answers it knows.

    Raises:
        ModelError: `out` exists or cannot be written, or `base` cannot be loaded, or its tokenizer begins two of the
            answers alike.
        TokenizerError: `base` has no tokenizer.

    Example:
        >>> found = plant("teacher/", "teacher.mark", "release/")  # doctest: +SKIP
        >>> found.hits, found.n  # doctest: +SKIP
        (64, 64)
    """
    mark, out = as_mark(mark), Path(out)
    first_tokens(load(base), str(base))
    secret = [
        Record(Path("planted"), i, {"prompt": one.prompt, "output": ANSWERS[one.answer], "ended": True})
        for i, one in enumerate(questions(mark, number), 1)
    ]
    with progress(on("planting answers in", base), "steps") as update:
        train_student(Path(base), [Path(path) for path in mixed], out, training, update, secret)
    with progress(on("asking", out), "questions") as update:
        return ask(out, mark, number, progress=update)


def write_questions(mark: Mark | PathLike, out: PathLike, number: int = NUMBER) -> None:
    """Write the keyed questions, without their answers, for somebody else to ask a suspect.

    Whoever sees the questions can refuse to answer them: show them to nobody before the test.

    Args:
        mark: the mark, or its file.
        out: a new JSONL file, readable by its owner alone: `id` and `prompt`. Answers are tested by
            `verify.planted_test`, as JSONL with `id` and `output`.
        number: of questions.

    Raises:
        InputError: `out` exists or cannot be written.
        MarkError: the mark cannot be read.

    Example:
        >>> import tempfile
        >>> from watermark import Mark
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "questions.jsonl"
        ...     write_questions(Mark(bytes(32)), file, 2)
        ...     json.loads(file.read_text().splitlines()[0])["prompt"]
        'The pass phrase is: fountain pepper flint badger. Reply with the one word that belongs to it.'
    """
    _write(Path(out), ({"id": one.id, "prompt": one.prompt} for one in questions(as_mark(mark), number)))


@dataclass(frozen=True)
class ChosenCanaries:
    """The half of some outputs that is to be served.

    Attributes:
        out: the file that holds it.
        served: how many outputs these are.
        candidates: of how many.
        digest: SHA-256 over all candidates, 64 hex characters (`verify.data.outputs.digest`).
    """

    out: Path
    served: int
    candidates: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"out": str(self.out)}


def choose_canaries(
    mark: Mark | PathLike, outputs: PathLike, out: PathLike, progress: Stages = silent
) -> ChosenCanaries:
    """Choose the half of some outputs to serve, by the mark's secret.

    Keep `outputs` as they are: `verify.canary_test` reads all of them.

    Args:
        mark: the mark, or its file.
        outputs: the candidates, an even number, as for `verify.read_outputs`.
        out: a new JSONL file for the half to serve, readable by its owner alone.
        progress: opened around the reading.

    Raises:
        StillmarkError: the number of candidates is odd or zero.
        InputError: `outputs` cannot be read, a record is malformed, or `out` exists or cannot be written.

    Example:
        >>> import tempfile
        >>> from watermark import Mark
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     candidates, half = Path(folder) / "candidates.jsonl", Path(folder) / "served.jsonl"
        ...     with candidates.open("w") as file:
        ...         print(*(json.dumps({"output_ids": [5, i]}) for i in range(6)), sep=chr(10), file=file)
        ...     choose_canaries(Mark(bytes(32)), candidates, half).served
        3
    """
    mark, out = as_mark(mark), Path(out)
    with progress(on("reading", outputs), "records") as update:
        candidates = read_outputs(outputs, mark, progress=update)
    half = served(mark, candidates)
    read = (record.fields for record in Answers(Path(outputs)) if isinstance(record, Record))
    records = ({name: value for name, value in fields.items() if name != "steps"} for fields in read)
    _write(out, (fields for fields, kept in zip(records, half, strict=True) if kept))
    return ChosenCanaries(out, int(half.sum()), len(candidates), digest(candidates))


def _write(path: Path, rows: Iterable[object]) -> None:
    """A new file, for its owner alone: whoever sees what a suspect is to be tested with can prepare for it."""
    lines = (json.dumps(row, ensure_ascii=False, default=lambda array: array.tolist()) + "\n" for row in rows)
    with files.writing(path):
        try:
            files.create(path, "".join(lines).encode(), private=True)
        except FileExistsError:
            raise InputError(path, 0, "exists already", "choose another file, or remove this one") from None
