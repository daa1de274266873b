"""Does the suspect agree with the teacher more than other models do? The likeliest next tokens, and controls.

A lead, not a proof. Models of one kind agree with a teacher more and less, and with prompts enough every difference
shows: the paired test tells whether the suspect is ahead of each control, and only its rank among them whether that
means anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from verify.fingerprint import AGREES
from verify.results import CHANGED, Result, plural
from verify.stats import binomial
from verify.suspects.model import TopTokens
from watermark import ModelError, StillmarkError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOP_TOKENS: Final = 20
"""Likeliest tokens that `stillmark verify` compares."""

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


@dataclass(frozen=True, kw_only=True)
class AgreementResult(Result):
    """The suspect's agreement with the one teacher that was named beforehand, against every control.

    n: distinct prompts; statistic: the share of tokens on which suspect and teacher agree. The p-value is the larger of
    the paired test's and the rank's: a difference that more prompts would show too, and that no control reaches.

    Attributes:
        teacher, suspect, base: model folders (or files of answers); base: what the suspect was made from, or None.
        top: likeliest tokens that were compared after each prompt: 1 is the greedy token.
        agreeing: tokens that the suspect and the teacher have in common, over all prompts.
        base_agreeing: those that its base and the teacher have.
        unanswered: prompts that the suspect did not answer; it agrees with nobody there.
        controls: the controls.
    """

    teacher: str
    suspect: str
    base: str | None
    top: int
    agreeing: int
    base_agreeing: int | None
    unanswered: int
    controls: tuple[Control, ...] = field(repr=False)

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
    def lead(self) -> bool:
        """Whether the suspect is ahead of every one of enough controls: worth a second look, and no proof."""
        return not self.ahead and len(self.controls) >= MIN_CONTROLS and self.log10_paired <= math.log10(self.alpha)

    @property
    def evidence(self) -> str:
        return f"{plural(self.n, 'prompt')}, {plural(len(self.controls), 'control')}"

    def to_dict(self) -> dict[str, Any]:
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

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        gained = "" if self.base is None else f", {self.likeness:,} more than its base"
        found = {
            "p-value": rows["p-value"],
            "agreement": f"{self.agreeing:,} of {plural(self.n * self.top, 'token')}{gained}",
            "paired": f"log10 p {self.log10_paired:z.2f} at the least, against every control",
            "rank": f"p {self.rank_pvalue:.3g} among {plural(len(self.controls), 'control')}",
            "test": self.test,
        }
        return found | {
            one.name: f"{plural(one.likeness, 'token')}; log10 p {one.log10_pvalue:z.2f}" for one in self.controls
        }

    def _draw(self, ax: Axes) -> None:
        ordered = sorted(self.controls, key=lambda one: one.likeness)
        names, sizes = [one.name for one in ordered], [one.likeness for one in ordered]
        ax.barh([*names, "the suspect"], [*sizes, self.likeness], color=["C7"] * len(names) + ["C3"])
        ax.set_xlabel("tokens in common" + ("" if self.base is None else ", less the base's"))


def check_controls(controls: Sequence[object]) -> None:
    """Raises StillmarkError where there is no control."""
    if not controls:
        raise StillmarkError(
            "agreement with a teacher shows nothing by itself: every good model agrees with every other",
            "name models that have nothing to do with the teacher as `controls`",
        )


def agreement_result(
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
    check_controls(controls)
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
    more = _words(len(found), top, alpha, based=base is not None, unanswered=sum(not one for one in suspect[1]))
    log10_paired = max(control.log10_pvalue for control in found)
    likeness = int(alike.sum()) - (0 if before is None else int(before.sum()))
    rank = (1 + sum(one.likeness >= likeness for one in found)) / (1 + len(found))
    return AgreementResult(
        **more,
        alpha=alpha,
        n=len(alike),
        statistic=float(alike.sum()) / (len(alike) * top),
        log10_pvalue=max(log10_paired, math.log10(rank)),
        teacher=teacher[0],
        suspect=suspect[0],
        base=None if base is None else base[0],
        top=top,
        agreeing=int(alike.sum()),
        base_agreeing=None if before is None else int(before.sum()),
        unanswered=sum(not one for one in suspect[1]),
        controls=tuple(found),
    )


def _words(controls: int, top: int, alpha: float, *, based: bool, unanswered: int) -> dict[str, Any]:
    """The words of a result, as keyword arguments."""
    what = "greedy token" if top == 1 else f"{top} likeliest tokens"
    if based:
        paired = "exact sign test of the difference in differences against the base and every control"
    else:
        paired = f"exact paired test ({'McNemar' if top == 1 else 'sign test'}) against every control"
    who, innocent = ("teacher", "an innocent teacher") if based else ("suspect", "an innocent suspect")
    warnings = []
    if 1 / (1 + controls) > alpha:
        warnings.append(f"With {plural(controls, 'control')}, p cannot fall below {1 / (1 + controls):.3g}.")
    if not based:
        warnings.append("Without the suspect's own base, a likeness that the base had already counts as evidence.")
    if unanswered:
        warnings.append(f"{unanswered:,} prompts were not answered; no agreement was counted there.")
    return {
        "test": f"{what} a prompt: {paired}, and the rank among the controls; the largest p-value",
        "positive_verdict": AGREES,
        "randomness": "Two p-values, of which the larger counts. The paired one's randomness is the draw of the "
        "prompts from all that might have been asked, the models being fixed. The rank's is the choice of models: "
        f"{innocent} would be one more of the kind that the controls are, as likely as each of them to come first.",
        "assumptions": f"Assumes that an innocent {who} is like the controls: as able, and trained on such data. Wrong "
        "if it is abler than all of them, if suspect and teacher share data or a parent that they do not share, or if "
        "prompts were chosen after looking or are not independent draws (several of one text or pattern).",
        "evasions": "Hidden by training on other teachers too, or by being less able than a control.",
        "warnings": tuple(warnings),
        "power_statement": CHANGED,
    }


def _shared(ours: Sequence[TopTokens], theirs: Sequence[TopTokens]) -> npt.NDArray[np.int64]:
    return np.array([len(a & b) for a, b in zip(ours, theirs, strict=True)], np.int64)
