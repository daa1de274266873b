"""Does the suspect agree with the teacher more than with anybody else? One greedy token a prompt, paired tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from verify import statistics
from verify.fingerprint.finding import Finding
from verify.outputs import read_records
from watermark import InputError, StillmarkError, TokenizerError, tokenizers
from watermark.generate import Prompt, encode_prompt
from watermark.models import load_model, model_digest
from watermark.records import resume_jsonl

AGREES: Final = "agrees with the teacher beyond every control"


@dataclass(frozen=True)
class Control:
    """One model that has nothing to do with the teacher, held against it.

    Attributes:
        name: its folder.
        agreeing: prompts on which the suspect says what this control says.
        teacher_only, control_only: prompts on which the two comparisons of the test differ, by whom they favour.
        log10_pvalue: exact, one-sided.
    """

    name: str
    agreeing: int
    teacher_only: int
    control_only: int

    @property
    def log10_pvalue(self) -> float:
        """log10 P(Bin(discordant prompts, 1/2) >= those in the teacher's favour)."""
        return statistics.binomial_log10_sf(self.teacher_only, self.teacher_only + self.control_only, 0.5)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "agreeing": self.agreeing,
            "teacher_only": self.teacher_only,
            "control_only": self.control_only,
            "log10_pvalue": self.log10_pvalue,
        }


@dataclass(frozen=True)
class AgreementResult(Finding):
    """The suspect's agreement with the one teacher that was named beforehand, against every control.

    Attributes:
        teacher, suspect, base: model folders (or files of answers); base: what the suspect was made from, or None.
        prompts: distinct prompts.
        agreeing: those on which the suspect says what the teacher says.
        base_agreeing: those on which its base does.
        controls: the controls.
    """

    teacher: str
    suspect: str
    base: str | None
    prompts: int
    agreeing: int
    base_agreeing: int | None
    controls: tuple[Control, ...] = field(repr=False)

    @property
    def n(self) -> int:
        """Distinct prompts."""
        return self.prompts

    @property
    def statistic(self) -> float:
        """The share of prompts on which suspect and teacher agree."""
        return self.agreeing / self.prompts

    @property
    def log10_pvalue(self) -> float:
        """The largest over the controls: it tests the claim that at least one of them does as well as the teacher."""
        return max(control.log10_pvalue for control in self.controls)

    @property
    def rank_pvalue(self) -> float:
        """(1 + controls that agree as much) / (1 + controls): sound if an innocent teacher is like one of them."""
        return (1 + sum(one.agreeing >= self.agreeing for one in self.controls)) / (1 + len(self.controls))

    @property
    def test(self) -> str:
        """The test's name, in words."""
        if self.base is None:
            return "exact paired test (McNemar) against every control, the largest p-value"
        return (
            "exact sign test of the difference in differences against the base and every control, the largest p-value"
        )

    @property
    def positive(self) -> str:
        """The verdict where p <= alpha."""
        return AGREES

    @property
    def randomness(self) -> str:
        """Where the p-value's randomness comes from, in words."""
        return (
            "The p-value's randomness is the draw of the prompts from all that might have been asked; the models "
            "are fixed. It says that the suspect is closer to the teacher than to each control, no more."
        )

    @property
    def breaks(self) -> str:
        """What would make the p-value wrong, and what would hide a guilty suspect, in words."""
        return (
            "Assumes that some control is as close to an innocent suspect as the teacher is: as able, and trained "
            "on such data. Wrong if the teacher is merely better than all controls, if it shares data or a parent "
            "with the suspect that they do not share, or if prompts were chosen after looking. Hidden by training "
            "on other teachers too."
        )

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        found = []
        if len(self.controls) < 19:
            least = 1 / (1 + len(self.controls))
            found.append(f"The rank p-value cannot fall below {least:.3g}: 19 controls would let it reach 0.05.")
        if self.base is None:
            found.append("Without the suspect's own base, a likeness that the base had already counts as evidence.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON."""
        return super().to_dict() | {
            "teacher": self.teacher,
            "suspect": self.suspect,
            "base": self.base,
            "agreeing": self.agreeing,
            "base_agreeing": self.base_agreeing,
            "rank_pvalue": self.rank_pvalue,
            "controls": [control.to_dict() for control in self.controls],
        }


def agreement_test(
    teacher: tuple[str, Sequence[str]],
    suspect: tuple[str, Sequence[str]],
    controls: Sequence[tuple[str, Sequence[str]]],
    base: tuple[str, Sequence[str]] | None = None,
    alpha: float = 1e-3,
) -> AgreementResult:
    """Test answers to the same distinct prompts, in the same order; each model is a name and its answers.

    Without a base, a control's discordant prompts are those on which the suspect agrees with the teacher or the control
    alone. With one, its gains over the base are compared: ([s = t] - [b = t]) - ([s = c] - [b = c]).

    Raises:
        StillmarkError: no control, or one that is the teacher itself.
    """
    if not controls:
        raise StillmarkError(
            "agreement with a teacher shows nothing by itself: every good model agrees with every other",
            "name models that have nothing to do with the teacher, with --control",
        )
    ours, theirs = np.array(teacher[1], object), np.array(suspect[1], object)
    before = None if base is None else np.array(base[1], object)
    found = []
    for name, answers in controls:
        other = np.array(answers, object)
        if np.array_equal(other, ours):
            raise StillmarkError(f"{name}: this control answers exactly as the teacher does", "it is no control")
        gain = (theirs == ours).astype(int) - (theirs == other)
        if before is not None:
            gain -= (before == ours).astype(int) - (before == other)
        found.append(Control(name, int((theirs == other).sum()), int((gain > 0).sum()), int((gain < 0).sum())))
    return AgreementResult(
        alpha,
        teacher[0],
        suspect[0],
        None if base is None else base[0],
        len(ours),
        int((theirs == ours).sum()),
        None if before is None else int((before == ours).sum()),
        tuple(found),
    )


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, each once: the first of those with the same text or ids."""
    found: dict[object, Prompt] = {}
    for one in prompts:
        found.setdefault((one.text, one.ids), one)
    return list(found.values())


def check_tokenizers(prompts: Sequence[Prompt], paths: Sequence[Path]) -> None:
    """Prompts of token ids mean one text only to one tokenizer.

    Raises:
        TokenizerError: there are such prompts, and two of the models have different tokenizers.
    """
    if any(prompt.ids is not None for prompt in prompts):
        prints = {path: tokenizers.fingerprint(tokenizers.load(path)) for path in paths}
        for path in paths[1:]:
            if prints[path] != prints[paths[0]]:
                raise TokenizerError(
                    f"{path}: its tokenizer is not that of {paths[0]}, and prompts of token ids are not one text to "
                    "both",
                    "give the prompts as text",
                )


def greedy(
    path: Path,
    prompts: Sequence[Prompt],
    batch_size: int = 16,
    record: Path | None = None,
    progress: Callable[[int], None] = lambda _prompts: None,
) -> list[str]:
    """A model's likeliest next token after each prompt, as text; no chat template.

    Args:
        path: the model's folder.
        prompts: texts for its own tokenizer, or ids.
        batch_size: in one forward pass.
        record: JSONL to keep the answers in, and to go on from.
        progress: called with the number of prompts asked.

    Raises:
        InputError: `record` cannot be written, or is of another run.
        StillmarkError: a prompt is empty, or holds an id that the model does not know.
    """
    import torch

    run = "" if record is None else _digest(path, prompts)
    done = [] if record is None else [str(line.fields["output"]) for line in resume_jsonl(record, run)]
    progress(len(done))
    if len(done) == len(prompts):
        return done
    model, tokenizer = load_model(path)
    limit = model.config.get_text_config().vocab_size
    with nullcontext() if record is None else record.open("ab") as log:
        for start in range(len(done), len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            rows = [encode_prompt(tokenizer, one, chat=False) for one in batch]
            for one, row in zip(batch, rows, strict=True):
                if not row or max(row) >= limit:
                    raise StillmarkError(f"prompt '{one.id}' is empty or holds an id outside the model's vocabulary")
            padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
            for i, row in enumerate(rows):
                padded[i, : len(row)] = torch.tensor(row)
            with torch.inference_mode():
                logits = model(input_ids=padded.to(model.device)).logits
            for i, (one, row) in enumerate(zip(batch, rows, strict=True)):
                done.append(str(tokenizer.decode([int(logits[i, len(row) - 1].argmax())])))
                if log is not None:
                    line = {"id": one.id, "output": done[-1], "model": path.name, "run": run}
                    log.write(json.dumps(line).encode() + b"\n")
                    log.flush()
                progress(1)
    return done


def recorded(path: Path, prompts: Sequence[Prompt]) -> list[str]:
    """Recorded answers to the prompts, from JSONL with `id` and `output`, one token each as text.

    Raises:
        InputError: the file cannot be read, a record is malformed, or a prompt has no answer.
    """
    said: dict[str, str] = {}
    for line in read_records(path):
        if isinstance(line, InputError):
            raise line
        name, output = line.fields.get("id"), line.fields.get("output")
        if not isinstance(name, str) or not isinstance(output, str):
            raise line.error("an answer needs an 'id' and an 'output'")
        said.setdefault(name, output)
    missing = next((one.id for one in prompts if one.id not in said), None)
    if missing is not None:
        raise InputError(path, 0, f"holds no answer to prompt '{missing}'", "ask all of them, or leave the prompt out")
    return [said[one.id] for one in prompts]


def _digest(path: Path, prompts: Sequence[Prompt]) -> str:
    asked = [[one.id, one.text, one.ids] for one in prompts]
    return hashlib.sha256((json.dumps(asked) + model_digest(path)).encode()).hexdigest()[:12]
