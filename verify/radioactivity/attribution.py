"""Which customers' outputs were used: the child marks of many labels, held against the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.pairs import Pairs
from verify.radioactivity.result import POWER
from verify.radioactivity.text import text_warnings
from verify.stats import binomial, multiple
from watermark import InputError, Mark, MarkError
from watermark.keyfile import check_label
from watermark.progress import Progress, silent
from watermark.schemes.greenlist import count_green

ATTRIBUTED: Final = "attributed"
NONE: Final = "none"
AMBIGUOUS: Final = "ambiguous"

RANDOMNESS: Final = (
    "The p-values' randomness is the draw of the parent's secret: the labels' secrets are derived from it by HKDF, so "
    "that for a suspect that does not depend on a label's secret the green bits of distinct pairs are independent with "
    "probability gamma, under that label and across labels. Holm's adjustment makes the chance of naming any wrong "
    "label at most alpha. A label that is found shows that its text was used, not who used it."
)


@dataclass(frozen=True)
class NamedLabel:
    """A label whose mark the text carries. log10_pvalue_adjusted: over all labels, by Holm's method."""

    label: str
    log10_pvalue: float
    log10_pvalue_adjusted: float
    green_rate: float


@dataclass(frozen=True)
class Attribution:
    """The exact test of every label's child mark on one evidence.

    Attributes:
        mark: the parent.
        alpha: level of the verdict, fixed before looking.
        labels: whose marks were tried.
        pairs: the evidence.
        green: int64 [labels], green pairs under each label's key.
        parent_green: green pairs under the parent's own key.
    """

    mark: Mark
    alpha: float
    labels: tuple[str, ...]
    pairs: Pairs = field(repr=False)
    green: npt.NDArray[np.int64] = field(repr=False)
    parent_green: int

    @property
    def n(self) -> int:
        """Number of distinct pairs."""
        return len(self.pairs.tokens)

    @cached_property
    def log10_pvalues(self) -> npt.NDArray[np.float64]:
        """Each label's exact binomial p-value, float64 [labels]."""
        tail = cache(lambda green: binomial.binomial_log10_sf(green, self.n, self.mark.gamma))
        return np.array([tail(green) for green in self.green.tolist()], np.float64)

    @cached_property
    def found(self) -> list[NamedLabel]:
        """The labels whose adjusted p-value is at most alpha, strongest first. Empty: nobody is named."""
        single = self.log10_pvalues
        adjusted = multiple.holm(single)
        chosen = np.flatnonzero(adjusted <= math.log10(self.alpha))
        return [
            NamedLabel(self.labels[i], float(single[i]), float(adjusted[i]), int(self.green[i]) / self.n)
            for i in chosen[np.argsort(single[chosen], kind="stable")].tolist()
        ]

    @property
    def log10_pvalue_joint(self) -> float:
        """That the text carries any of the labels' marks at all: the greens of all keys together, exact.

        Pairs times labels independent coins. It sees many accounts of which each gave too little to be named.
        """
        coins = self.n * len(self.labels)
        return binomial.binomial_log10_sf(int(self.green.sum()), coins, self.mark.gamma)

    @property
    def log10_pvalue_parent(self) -> float:
        """The parent's own mark, by the same test."""
        return binomial.binomial_log10_sf(self.parent_green, self.n, self.mark.gamma)

    @property
    def verdict(self) -> str:
        """`attributed`: somebody is found. `ambiguous`: nobody, yet all labels together are. `none`: neither."""
        if self.found:
            return ATTRIBUTED
        return AMBIGUOUS if self.log10_pvalue_joint <= math.log10(self.alpha) else NONE

    @property
    def detectable_rate(self) -> float | None:
        """The green rate under its key at which a label would have been found with 90 % power; None: no rate."""
        return binomial.detectable_rate(self.n, self.mark.gamma, self.alpha / len(self.labels), POWER)

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        seen = self.pairs
        found = text_warnings(self.n, seen.positions, seen.discarded, seen.prompts, seen.records)
        if self.verdict == AMBIGUOUS:
            found.append(
                "Somebody's mark is there, by all labels together, and no single label can be told: this names nobody."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never a secret."""
        return {
            "verdict": self.verdict,
            "found": [vars(one) for one in self.found],
            "labels": len(self.labels),
            "alpha": self.alpha,
            "test": "exact binomial for each label, one-sided; Holm over labels",
            "n": self.n,
            "gamma": self.mark.gamma,
            "log10_pvalue_joint": self.log10_pvalue_joint,
            "log10_pvalue_parent": self.log10_pvalue_parent,
            "detectable_rate": self.detectable_rate,
            "detectable_power": POWER,
            "positions": self.pairs.positions,
            "records": self.pairs.records,
            "prompts": self.pairs.prompts,
            "discarded": dict(self.pairs.discarded),
            "unmarked_prompts": self.pairs.unmarked,
            "mark": {"label": self.mark.label, "commitment": self.mark.commitment, "width": self.mark.width},
            "randomness": RANDOMNESS,
            "warnings": self.warnings,
        }


def attribute(
    mark: Mark,
    labels: Sequence[str],
    pairs: Pairs,
    alpha: float = 1e-3,
    progress: Progress = silent,
) -> Attribution:
    """Try the child marks of many labels on one evidence.

    Args:
        mark: the parent; `pairs` must have been extracted with its width and exempt ids.
        labels: as the children were derived, at least one, no two alike.
        pairs: distinct pairs, from `verify.data.pairs.extract`.
        alpha: the chance that one wrong label or more is named, fixed before looking.
        progress: called with the number of labels tried, and of how many.

    Raises:
        ValueError: alpha is no probability, or there are no labels, or some twice.
    """
    if not 0 < alpha < 1 or not labels or len(set(labels)) < len(labels):
        raise ValueError("want alpha between 0 and 1, and labels, no two alike")
    keys = [mark.child(label).prf_key for label in labels]
    parts, done = [], 0
    for part in count_green(keys, pairs.contexts, pairs.tokens, mark.threshold):
        parts.append(part)
        done += len(part)
        progress(done, len(labels))
    parent = int(mark.green(pairs.contexts, pairs.tokens).sum())
    return Attribution(mark, alpha, tuple(labels), pairs, np.concatenate(parts), parent)


def read_labels(path: Path) -> list[str]:
    """Labels from a text file, one a line, as they were derived; blank lines are left out.

    Raises:
        InputError: the file cannot be read, is no UTF-8, holds no label, one twice, or one that `Mark.child` refuses.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(path, 0, f"cannot read the labels: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(path, 0, "no valid UTF-8", "want one label a line") from None
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        label = line.removesuffix("\r")  # and no more: a label is its exact characters
        if label in lines:
            raise InputError(path, number, f"label '{label}' was named before, in line {lines[label]}")
        if label.strip():
            try:
                check_label(label)
            except MarkError as error:
                raise InputError(path, number, str(error), error.hint) from None
            lines[label] = number
    if not lines:
        raise InputError(path, 0, "holds no labels", "want one label a line")
    return list(lines)
