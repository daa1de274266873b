"""Positive controls: train a student on outputs, as somebody who distils a teacher would."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from verify.data.columns import Columns
from verify.data.outputs import parse, with_our_ids
from verify.data.shapes import Answers
from verify.data.sources import files_of
from verify.results import plural
from watermark import InputError, ModelError, StillmarkError
from watermark.errors import within
from watermark.extras import require
from watermark.io import files
from watermark.io.prompts import Prompt, encode_prompt
from watermark.io.records import Record, run_digest
from watermark.models import fast_bfloat16, load_model, model_digest
from watermark.progress import Progress, doing, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Training:
    """How to train a student. batch_size in records, max_length in tokens of prompt + output.

    >>> Training(epochs=2)
    Training(epochs=2, learning_rate=0.0002, batch_size=4, max_length=1024, seed=0)

    Raises:
        UsageError: a number lies outside its range.
    """

    epochs: float = 1.0
    learning_rate: float = 2e-4
    batch_size: int = 4
    max_length: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        within("epochs", self.epochs, 0, math.inf)
        within("learning_rate", self.learning_rate, 0, math.inf)
        within("batch_size", self.batch_size, 1, math.inf, first=True)
        within("max_length", self.max_length, 2, math.inf, first=True)


@dataclass(frozen=True)
class TrainingReport:
    """A finished student: records and output tokens it saw in an epoch, and the last epoch's mean loss in nats."""

    out: Path
    records: int
    tokens: int
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self) | {"out": str(self.out)}

    def __str__(self) -> str:
        """What the command prints."""
        taught = f"{plural(self.records, 'record')}, {plural(self.tokens, 'token')}"
        return f"trained {self.out} on {taught}; mean loss {self.loss:.3f}"


@dataclass(frozen=True)
class Example:
    """One training sequence; the loss is taken on the tokens after the prompt."""

    prompt_ids: list[int]
    output_ids: list[int]


def read_examples(
    records: Iterable[Record | InputError], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example]:
    """Outputs as training sequences for a model with this tokenizer.

    Ids are taken as they are; text goes through the chat template, if there is one. An output that ended by
    itself (or does not say) keeps or gets its end-of-sequence token, so that the student learns to stop.

    Raises:
        InputError: a record is malformed, or its ids are not this tokenizer's.
    """
    examples: list[Example] = []

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]

    for one in records:
        record = with_our_ids([one], encode)[0] if isinstance(one, Record) else one
        if isinstance(record, InputError):
            raise record
        parts = parse(record, len(tokenizer), need_prompts=True)
        prompt, output = parts["prompt"], parts["output"]
        if isinstance(prompt, str):
            prompt_ids = encode_prompt(tokenizer, Prompt("", prompt, None), chat=True)
        else:
            prompt_ids = [] if prompt is None else prompt.tolist()
        if isinstance(output, str):
            output_ids = tokenizer.encode(output, add_special_tokens=False)
        else:
            output_ids = np.asarray(output).tolist()
            text = record.fields.get("output")
            if (
                not examples
                and isinstance(text, str)
                and text != tokenizer.decode(output_ids, skip_special_tokens=True)
            ):
                raise record.error(
                    "'output_ids' do not spell 'output' with the base's tokenizer",
                    "the outputs come from another tokenizer: leave the ids out, and the text is tokenized anew",
                )
        end = tokenizer.eos_token_id
        if record.fields.get("ended") is not False and end is not None and output_ids[-1:] != [end]:
            output_ids = [*output_ids, end]
        output_ids = output_ids[: max(0, max_length - len(prompt_ids))]
        if output_ids:
            examples.append(Example(prompt_ids, output_ids))
    if not examples:
        raise StillmarkError("no record leaves a token to learn from", "is `max_length` more than the longest prompt?")
    return examples


def train_student(
    base: str | Path,
    outputs: str | Path | Iterable[str | Path],
    out: str | Path,
    training: Training = Training(),
    progress: Progress = silent,
    secret: Sequence[Record] = (),
    columns: Columns | None = None,
) -> TrainingReport:
    """Train a model further on outputs, as somebody who distils a teacher would: a positive control.

    All weights are trained, by transformers' Trainer. They are kept in float32 and multiplied in bfloat16 where the
    machine is fast at it; the student is saved in bfloat16, whole or not at all. A call that was killed goes on from
    its last checkpoint, in the folder `.NAME.unfinished` beside `out`, to the same weights on the same machine.

    Args:
        base: folder of the model to start from.
        outputs: files of outputs (see `verify.read_outputs`), one or several.
        out: folder for the student; must not exist, or be empty.
        training: how to train.
        progress: called with steps done and in all.
        secret: records to learn besides: they are written to no file, and `out` says nothing about the training.
        columns: where the fields are in records of no known shape, as for `verify.read_outputs`.

    Raises:
        ModelError: `out` exists, `base` cannot be loaded, or a checkpoint is of another base, outputs or settings.
        InputError: the outputs cannot be used, or `out` cannot be written, or another call makes it.

    Example:
        >>> import verify
        >>> verify.train_student("MODEL", "outputs.jsonl", "student", verify.Training(epochs=2))  # doctest: +SKIP
    """
    base, out = Path(base), Path(out)
    sources = files_of(outputs if isinstance(outputs, str | Path) else list(outputs))
    with files.writing(out), files.unfinished(out) as kept:
        if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
            raise ModelError(f"{out}: exists already", "choose another `out`, or remove it")
        records = chain(secret, *(Answers(path, columns) for path in sources))
        with files.new_folder(out) as scratch:
            trained = _train(base, records, scratch, training, kept, progress)
            if not secret:
                about = {"base": base.name, "records": trained[0], "tokens": trained[1], "loss": trained[2]}
                (scratch / "student.json").write_text(json.dumps(asdict(training) | about, indent=1) + "\n")
    return TrainingReport(out, *trained)


CHECKPOINT_SECONDS: Final = 60.0
"""Between two checkpoints, at least."""
CHECKPOINT_SHARE: Final = 0.02
"""Of the time, that checkpoints may take; what the first one will take is reckoned from its size."""
CHECKPOINT_BYTES: Final = 12
"""A parameter's: its weight and the optimizer's two numbers."""
DISK: Final = 200e6
"""Bytes that a slow disk writes in a second."""
DRAWN: Final = "drawn.npy"
"""In a checkpoint: the state of the generator that the order of the epoch's records was drawn from."""


def _run_of(base: Path, examples: Sequence[Example], training: Training) -> str:
    """A digest of all that shapes a training: another one, another training."""
    taught = hashlib.sha256(json.dumps([[one.prompt_ids, one.output_ids] for one in examples]).encode())
    return run_digest(training, model_digest(base), taught.hexdigest())


def _last_checkpoint(kept: Path, run: str) -> Path | None:
    """The checkpoint that a killed training left. Raises ModelError if it is of another training."""
    found = sorted(kept.glob("*.checkpoint"))
    if any(not one.name.startswith(run) for one in found):
        message = f"{kept}: holds a checkpoint of a training with another base, outputs or settings"
        raise ModelError(message, "choose another `out`, or remove this folder")
    return found[-1] if found else None


def _train(
    base: Path,
    records: Iterable[Record | InputError],
    folder: Path,
    training: Training,
    kept: Path,
    progress: Progress,
) -> tuple[int, int, float]:
    """Train into a folder. kept: the folder for checkpoints, from which a killed training goes on."""
    require("torch", "transformers", "accelerate")
    with doing("loading PyTorch and transformers"):
        import torch
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Steps(TrainerCallback):
        """Shows the progress, and keeps the newest checkpoint: whole, on the disk, and no others."""

        begun = saved = cost = 0.0
        drawn = torch.get_rng_state()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved = time.monotonic()
            self.cost = CHECKPOINT_BYTES * model.num_parameters() / DISK

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """The order of the records is drawn next, which the Trainer would draw anew after a kill."""
            if last is not None and state.global_step == int(last.stem.rpartition("-")[2]):
                torch.set_rng_state(torch.from_numpy(np.load(last / DRAWN)))
            self.drawn = torch.get_rng_state()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps)
            self.begun = time.monotonic()
            due = self.begun - self.saved >= max(CHECKPOINT_SECONDS, self.cost / CHECKPOINT_SHARE)
            control.should_save = due and state.global_step < state.max_steps

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            before = list(kept.glob("*.checkpoint"))
            made = Path(args.output_dir, f"checkpoint-{state.global_step}")
            np.save(made / DRAWN, self.drawn.numpy())
            files.publish(made, kept / f"{run}-{state.global_step:012}.checkpoint")
            for one in before:
                shutil.rmtree(one)
            self.saved = time.monotonic()
            self.cost = self.saved - self.begun

    with doing(f"loading {base.name}"):
        model, tokenizer = load_model(base, dtype=torch.float32)
    examples = read_examples(records, tokenizer, training.max_length)
    run = _run_of(base, examples, training)
    last = _last_checkpoint(kept, run)
    progress(0, math.ceil(len(examples) / training.batch_size * training.epochs))
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=training.batch_size,
        train_sampling_strategy="group_by_length",
        seed=training.seed,
        bf16=fast_bfloat16(),
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=1,  # a checkpoint holds the loss of each step before it
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    rows = [{"input_ids": e.prompt_ids + e.output_ids, "prompt": len(e.prompt_ids)} for e in examples]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # a list of rows is all it indexes
        data_collator=_collate,
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for results
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    loss = math.fsum(losses) / len(losses)
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokens = sum(len(e.output_ids) for e in examples)
    return len(examples), tokens, loss


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right: input_ids, attention_mask, labels, each int64 [B, T]; -100 is not learned from."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[i, :length] = torch.tensor(row["input_ids"])
        mask[i, :length] = 1
        labels[i, row["prompt"] : length] = ids[i, row["prompt"] : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
