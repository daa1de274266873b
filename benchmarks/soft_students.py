"""Students of the log probabilities that a server gave with marked answers: raw, from before the mark, or marked.

    STUDENTS=FOLDER python -m benchmarks.soft_students [ARM...]      # `raw`, `marked`; 15 minutes each on one core

Both learn from the answers of `students.py d2w1` and the 20 largest log probabilities at each token of them, as a
distiller who asked an endpoint for them would. Figures go into benchmarks/results/disclosure.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from benchmarks import students
from benchmarks import witnesses as w
from benchmarks.disclosure import RESULTS
from benchmarks.machine import machine
from benchmarks.schemes import found
from verify.planning.demo import teacher_model
from verify.planning.student import Training
from watermark import Mark
from watermark.models import fast_bfloat16, load_model

ARM: Final = "d2w1"
TOP: Final = 20


class Distilled(Trainer):
    """Cross entropy with the teacher's largest probabilities, after the prompt; mark: what tilts them, if anything."""

    def __init__(self, teacher: Any, mark: Mark | None, **options: Any) -> None:
        super().__init__(**options)
        self.teacher, self.mark = teacher, mark

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        answered = inputs["answered"][:, 1:]
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.no_grad():
            said = self.teacher(ids, attention_mask=mask).logits[:, :-1][answered].float()
            if self.mark is not None:
                self.mark.bias_(said, ids[:, :-1][answered][:, None])
            best, tokens = said.log_softmax(-1).topk(TOP)
        logits = model(ids, attention_mask=mask).logits[:, :-1][answered].float()
        loss: torch.Tensor = -(best.softmax(-1) * logits.log_softmax(-1).gather(1, tokens)).sum(-1).mean()
        return loss


def rows_of() -> list[dict[str, list[int]]]:
    """Prompt and answer of each record, and where the answer begins."""
    rows = []
    for one in w.outputs(w.FOLDER / f"{ARM}.teacher.jsonl"):
        assert one.prompt_ids is not None
        rows.append({"input_ids": one.ids.tolist(), "start": len(one.prompt_ids)})
    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right: input_ids, attention_mask, and which tokens are the answer's, each [B, T]."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = np.zeros((len(rows), length), np.int64)
    mask, answered = np.zeros_like(ids), np.zeros(ids.shape, np.bool_)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n], mask[i, :n], answered[i, row["start"] : n] = row["input_ids"], 1, True
    arrays = {"input_ids": ids, "attention_mask": mask, "answered": answered}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def train(arm: str, out: Path) -> None:
    """One epoch, with the settings of every other student."""
    torch.set_num_threads(1)
    teacher, tokenizer = load_model(teacher_model())
    student, _ = load_model(teacher_model(), dtype=torch.float32)
    usual = Training()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch, num_train_epochs=usual.epochs, learning_rate=usual.learning_rate, seed=usual.seed,
            per_device_train_batch_size=usual.batch_size, bf16=fast_bfloat16(), use_cpu=True, save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            dataloader_pin_memory=False, train_sampling_strategy="group_by_length",
        )  # fmt: skip
        mark = w.mark_of(ARM) if arm == "marked" else None
        trainer = Distilled(
            teacher, mark, model=student, args=arguments, train_dataset=rows_of(),
            data_collator=collate,
        )  # fmt: skip
        print(arm, "loss", trainer.train().training_loss, flush=True)
    torch.nn.Module.to(student, torch.bfloat16)
    student.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    for arm in sys.argv[1:] or ("raw", "marked"):
        name = f"{ARM}-{arm}"
        if not (w.FOLDER / name).exists():
            train(arm, w.FOLDER / name)
        students.generate(w.FOLDER / name, w.FOLDER / "asked.jsonl", w.FOLDER / f"{name}.text.jsonl")
        made = {f"{test} at {n}": value for test, n, value in found(name, w.mark_of(ARM))}
        known = json.loads(RESULTS.read_text())
        known.setdefault("students", {})[arm] = {"log10_pvalues": made, "machine": machine()}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
        print(arm, made, flush=True)


if __name__ == "__main__":
    main()
