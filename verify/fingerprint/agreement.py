"""Does the suspect agree with the teacher more than other models do? The likeliest next tokens, and controls.

A lead, not a proof. Models of one kind agree with a teacher more and less, and with prompts enough every difference
shows: the paired test tells whether the suspect is ahead of each control, and only its rank among them whether that
means anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.outputs import read_records
from verify.results import FingerprintResult
from verify.stats import binomial
from verify.suspects.model import TopTokens
from watermark import InputError, ModelError, StillmarkError, TokenizerError, tokenizers
from watermark.io.prompts import Prompt

TOP_TOKENS: Final = 20
"""Likeliest tokens that `stillmark lineage` compares."""

AGREES: Final = "agrees with the teacher beyond every control"
MIN_CONTROLS: Final = 19
"""Controls with which the rank p-value can reach 0.05."""


@dataclass(frozen=True)
class Control:
    """One model that has nothing to do with the teacher, held against the suspect.

    Attributes:
        name: its folder.
        likeness: tokens that this control and the teacher have in common, over all prompts; with a base those that the
            suspect and this control have, less those that the base and this control have.
        ahead, behind: prompts that favour the suspect's tie to the teacher, and those that favour the control.
    """

    name: str
    likeness: int
    ahead: int
    behind: int

    @property
    def log10_pvalue(self) -> float:
        """log10 P(Bin(ahead + behind, 1/2) >= ahead): exact, one-sided."""
        return binomial.binomial_log10_sf(self.ahead, self.ahead + self.behind, 0.5)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "likeness": self.likeness,
            "ahead": self.ahead,
            "behind": self.behind,
            "log10_pvalue": self.log10_pvalue,
        }


@dataclass(frozen=True)
class AgreementResult(FingerprintResult):
    """The suspect's agreement with the one teacher that was named beforehand, against every control.

    Attributes:
        teacher, suspect, base: model folders (or files of answers); base: what the suspect was made from, or None.
        prompts: distinct prompts.
        top: likeliest tokens that were compared after each: 1 is the greedy token.
        agreeing: tokens that the suspect and the teacher have in common, over all prompts.
        base_agreeing: those that its base and the teacher have.
        unanswered: prompts that the suspect did not answer; it agrees with nobody there.
        controls: the controls.
    """

    teacher: str
    suspect: str
    base: str | None
    prompts: int
    top: int
    agreeing: int
    base_agreeing: int | None
    unanswered: int
    controls: tuple[Control, ...] = field(repr=False)

    @property
    def n(self) -> int:
        """Distinct prompts."""
        return self.prompts

    @property
    def statistic(self) -> float:
        """The share of tokens on which suspect and teacher agree."""
        return self.agreeing / (self.prompts * self.top)

    @property
    def likeness(self) -> int:
        """What is held against the controls' likeness: common tokens, with a base less those that it had."""
        return self.agreeing - (self.base_agreeing or 0)

    @property
    def log10_paired(self) -> float:
        """log10 of the paired test's p-value, the largest over the controls: it speaks of prompts, the models fixed."""
        return max(control.log10_pvalue for control in self.controls)

    @property
    def ahead(self) -> int:
        """Controls with as much likeness."""
        return sum(one.likeness >= self.likeness for one in self.controls)

    @property
    def rank_pvalue(self) -> float:
        """(1 + controls with as much likeness) / (1 + controls): it speaks of models."""
        return (1 + self.ahead) / (1 + len(self.controls))

    @property
    def log10_pvalue(self) -> float:
        """The larger of the two: a difference that more prompts would show too, and that no control reaches."""
        return max(self.log10_paired, math.log10(self.rank_pvalue))

    @property
    def lead(self) -> bool:
        """Whether the suspect is ahead of every one of enough controls: worth a second look, and no proof."""
        return not self.ahead and len(self.controls) >= MIN_CONTROLS and self.log10_paired <= math.log10(self.alpha)

    @property
    def test(self) -> str:
        """The test's name, in words."""
        what = "greedy token" if self.top == 1 else f"{self.top} likeliest tokens"
        if self.base is None:
            name = "McNemar" if self.top == 1 else "sign test"
            paired = f"exact paired test ({name}) against every control"
        else:
            paired = "exact sign test of the difference in differences against the base and every control"
        return f"{what} a prompt: {paired}, and the rank among the controls; the largest p-value"

    @property
    def positive(self) -> str:
        """The verdict where p <= alpha."""
        return AGREES

    @property
    def randomness(self) -> str:
        """Where the p-value's randomness comes from, in words."""
        one = "an innocent suspect" if self.base is None else "an innocent teacher"
        return (
            "Two p-values, of which the larger counts. The paired one's randomness is the draw of the prompts from all "
            f"that might have been asked, the models being fixed. The rank's is the choice of models: {one} would be "
            "one more of the kind that the controls are, and as likely as each of them to come first."
        )

    @property
    def breaks(self) -> str:
        """What would make the p-value wrong, and what would hide a guilty suspect, in words."""
        who = "suspect" if self.base is None else "teacher"
        return (
            f"Assumes that an innocent {who} is like the controls: as able, and trained on such data. Wrong if it is "
            "abler than all of them, if suspect and teacher share data or a parent that they do not share, or if "
            "prompts were chosen after looking or are not independent draws (several of one text or pattern). Hidden "
            "by training on other teachers too, or by being less able than a control."
        )

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        found = []
        least = 1 / (1 + len(self.controls))
        if least > self.alpha:
            found.append(f"With {len(self.controls)} controls, p cannot fall below {least:.3g}.")
        if self.base is None:
            found.append("Without the suspect's own base, a likeness that the base had already counts as evidence.")
        if self.unanswered:
            found.append(f"{self.unanswered:,} prompts were not answered; no agreement was counted there.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON."""
        return super().to_dict() | {
            "teacher": self.teacher,
            "suspect": self.suspect,
            "base": self.base,
            "top": self.top,
            "agreeing": self.agreeing,
            "base_agreeing": self.base_agreeing,
            "likeness": self.likeness,
            "unanswered": self.unanswered,
            "log10_paired": self.log10_paired,
            "rank_pvalue": self.rank_pvalue,
            "lead": self.lead,
            "controls": [control.to_dict() for control in self.controls],
        }


def agreement_test(
    teacher: tuple[str, Sequence[TopTokens]],
    suspect: tuple[str, Sequence[TopTokens]],
    controls: Sequence[tuple[str, Sequence[TopTokens]]],
    base: tuple[str, Sequence[TopTokens]] | None = None,
    alpha: float = 0.05,
    top: int = 1,
) -> AgreementResult:
    """Test answers to the same distinct prompts, in the same order; each model is a name and its answers.

    Two answers agree in as many tokens as they have in common, |s & t|. A prompt is ahead of a control c where
    |s & t| > |c & t|: the suspect is closer to the teacher than the control is. With a base b of the suspect it is
    where |s & t| - |b & t| > |s & c| - |b & c|: what it learnt brought it closer to the teacher than to the control.

    Args:
        teacher, suspect, controls, base: see above.
        alpha: level of the verdict.
        top: most tokens of an answer.

    Raises:
        StillmarkError: no control.
        ModelError: one that is the teacher itself.
    """
    if not controls:
        raise StillmarkError(
            "agreement with a teacher shows nothing by itself: every good model agrees with every other",
            "name models that have nothing to do with the teacher, with --control",
        )
    alike = _shared(suspect[1], teacher[1])
    before = None if base is None else _shared(base[1], teacher[1])
    found = []
    for name, answers in controls:
        if list(answers) == list(teacher[1]):
            raise ModelError(f"{name}: this control answers exactly as the teacher does", "it is no control")
        if base is None or before is None:
            ours, theirs = alike, _shared(answers, teacher[1])
        else:
            ours, theirs = alike - before, _shared(suspect[1], answers) - _shared(base[1], answers)
        found.append(Control(name, int(theirs.sum()), int((ours > theirs).sum()), int((ours < theirs).sum())))
    return AgreementResult(
        alpha,
        teacher[0],
        suspect[0],
        None if base is None else base[0],
        len(alike),
        top,
        int(alike.sum()),
        None if before is None else int(before.sum()),
        sum(not one for one in suspect[1]),
        tuple(found),
    )


def _shared(ours: Sequence[TopTokens], theirs: Sequence[TopTokens]) -> npt.NDArray[np.int64]:
    return np.array([len(a & b) for a, b in zip(ours, theirs, strict=True)], np.int64)


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, each once: the first of those with the same text or ids."""
    found: dict[object, Prompt] = {}
    for one in prompts:
        found.setdefault((one.text, one.ids), one)
    return list(found.values())


def check_tokenizers(
    prompts: Sequence[Prompt], teacher: Path, controls: Sequence[Path], others: Sequence[Path | None] = ()
) -> None:
    """The teacher and the controls answer in pieces of the same kind, and prompts of ids are one text to all.

    If a suspect cut words as the teacher does, and the controls cut them otherwise, it would be ahead for that alone.

    Raises:
        TokenizerError: a control's tokenizer is not the teacher's, or with prompts of ids another model's is not.
    """
    ours = tokenizers.fingerprint(tokenizers.load(teacher))
    for path in controls:
        if tokenizers.fingerprint(tokenizers.load(path)) != ours:
            raise TokenizerError(
                f"{path}: this control's tokenizer is not the teacher's",
                "it would lose for the pieces that it speaks in",
            )
    if any(prompt.ids is not None for prompt in prompts):
        for other in others:
            if other is not None and tokenizers.fingerprint(tokenizers.load(other)) != ours:
                raise TokenizerError(
                    f"{other}: its tokenizer is not the teacher's, and prompts of token ids are not one text to both",
                    "give the prompts as text",
                )


def recorded(path: Path, prompts: Sequence[Prompt], top: int = 1) -> list[TopTokens]:
    """Recorded answers to the prompts, from JSONL with `id` and `top`, a list of tokens as text, the likeliest first.

    Where `top` is 1, an `output` of one token will do.

    Raises:
        InputError: the file cannot be read, a record is malformed, a prompt is answered twice, or not at all.
    """
    said: dict[str, TopTokens] = {}
    for line in read_records(path):
        if isinstance(line, InputError):
            raise line
        name, tokens = line.fields.get("id"), line.fields.get("top")
        if tokens is None and top == 1 and isinstance(line.fields.get("output"), str):
            tokens = [line.fields["output"]]
        if not isinstance(name, str) or not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
            raise line.error(
                "an answer needs an 'id' and a 'top', a list of tokens as text (or, for --top 1, 'output')"
            )
        if name in said:
            raise line.error(f"prompt '{name}' was answered before", "one answer a prompt, the first")
        if len(tokens) < top:
            raise line.error(f"'top' holds {len(tokens)} tokens, and --top asks for {top}")
        said[name] = frozenset(tokens[:top])
    missing = next((one.id for one in prompts if one.id not in said), None)
    if missing is not None:
        raise InputError(path, 0, f"holds no answer to prompt '{missing}'", "ask all of them, or leave the prompt out")
    return [said[one.id] for one in prompts]
