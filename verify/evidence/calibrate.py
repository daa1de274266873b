"""How often the test of text errs on text that cannot carry the mark: under keys at random, and under the mark's own.

Under keys at random the p-value is exact, so that too many small ones mean an error in the program or the machine.
Under the mark's own key they mean that the text is not innocent, or was taken for more innocent than it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.columns import Columns
from verify.data.outputs import Outputs
from verify.data.pairs import Pairs
from verify.data.reads import pairs_of
from verify.display import Heading, Paragraph, Part, Rows, Table, plain
from verify.progress import Stages, silent
from verify.radioactivity.inputs import beside_prompts, outputs_of
from verify.results import new_axes
from verify.stats import binomial
from watermark import InputError, Mark, UsageError
from watermark.errors import within
from watermark.mark import as_mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PathLike = str | Path

SOUND: Final = "sound"
NOT_SOUND: Final = "not sound"

LEVELS: Final = (0.05, 0.01, 0.001)
SURE: Final = 1e-4
"""A level at which so many or more errors come by chance with a smaller probability is not kept to."""

TEMPLATES: Final = 1.5
"""Spread of a count by occurrence, relative to the binomial one, from which a note says that a text repeats itself."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Material:
    """One file of text that cannot carry the mark.

    Attributes:
        name: the file.
        n: distinct pairs.
        log10_pvalue: under the mark's own key.
        rank: of the mark's key among the others: (1 + keys that reach as far) / (1 + keys).
        log10_if_marked: the same, with prompts that may carry the mark (rule 2); None: so it was anyway.
        spread: standard deviation over keys of a count of all occurrences, relative to that of independent coins: what
            rule 1 takes care of.
    """

    name: str
    n: int
    log10_pvalue: float
    rank: float
    log10_if_marked: float | None
    spread: float


@dataclass(frozen=True)
class Level:
    """How many p-values of keys at random reach a level.

    Attributes:
        level: the level.
        found: p-values at or below it.
        trials: p-values in all.
        interval: exact interval at 95 % for the rate.
        pvalue: that so many or more come by chance.
    """

    level: float
    found: int
    trials: int
    interval: tuple[float, float]
    pvalue: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the test of text finds where there is nothing.

    Attributes:
        mark: the mark.
        keys: keys at random that were tried on each file.
        alpha: level at which the mark's own key counts as not sound, over all files.
        materials: the files.
        levels: errors of the keys at random.
        log10_pvalues: float64 [files * keys], of the keys at random, ascending.
    """

    mark: Mark
    keys: int
    alpha: float
    materials: tuple[Material, ...]
    levels: tuple[Level, ...]
    log10_pvalues: Floats = field(repr=False)

    @property
    def verdict(self) -> str:
        """`sound`, or `not sound`."""
        return NOT_SOUND if self.reasons else SOUND

    @property
    def reasons(self) -> list[str]:
        """Why it is not sound, and which rule to look at, a sentence each."""
        said = [
            f"{one.found} of {one.trials:,} keys at random are at or below {one.level:g}: the test errs. Look at "
            "rule 1 (docs/statistics.md), and report it."
            for one in self.levels
            if one.pvalue < SURE
        ]
        limit = math.log10(self.alpha / max(1, len(self.materials)))
        for one in self.materials:
            if one.log10_pvalue > limit:
                continue
            if one.log10_if_marked is not None and one.log10_if_marked > limit:
                why = (
                    "with prompts that may carry the mark it does not: look at rule 2, and leave `unmarked_prompts` out"
                )
            else:
                why = "it holds text of the teacher, or its writer knew the secret: it is no innocent text"
            said.append(f"The mark's own key fits {one.name} (log10 p {one.log10_pvalue:.2f}): {why}.")
        return said

    @property
    def notes(self) -> list[str]:
        """What a reader should know, a sentence each."""
        return [
            f"{one.name} repeats itself: counted by occurrence, the spread over keys would be {one.spread:.1f} times "
            "that of independent coins. Rule 1 counts a pair once."
            for one in self.materials
            if one.spread >= TEMPLATES
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "notes": self.notes,
            "commitment": self.mark.commitment,
            "keys": self.keys,
            "alpha": self.alpha,
            "materials": [
                {
                    "name": one.name,
                    "n": one.n,
                    "log10_pvalue": one.log10_pvalue,
                    "rank": one.rank,
                    "log10_pvalue_if_marked": one.log10_if_marked,
                    "spread": one.spread,
                }
                for one in self.materials
            ],
            "levels": [
                {
                    "level": one.level,
                    "found": one.found,
                    "trials": one.trials,
                    "interval": list(one.interval),
                    "pvalue": one.pvalue,
                }
                for one in self.levels
            ],
        }

    def to_parts(self) -> list[Part]:
        """What the command prints."""
        rows = tuple(
            (f"{one.level:g}", f"{one.found:,}", f"{one.level * one.trials:,.1f}", f"{one.interval[1]:.4g}")
            for one in self.levels
        )
        own = tuple((one.name, f"{one.n:,}", f"{one.log10_pvalue:z.2f}", f"{one.rank:.4f}") for one in self.materials)
        return [
            Heading(self.verdict),
            *(Paragraph(one, indent=2) for one in self.reasons),
            Rows(
                {"keys at random": f"{self.keys:,} on each file", "mark": f"commitment {self.mark.commitment[:16]}..."}
            ),
            Paragraph(),
            Table(("level", "found", "expected at most", "rate at most"), rows, "  {:8}   {:>8}   {:>16}   {:>12}"),
            Paragraph(),
            Table(("text", "pairs", "log10 p", "rank"), own, "  {:30}   {:>10}   {:>8}   {:>6}"),
            *(Paragraph(f"Note: {one}") for one in self.notes),
        ]

    def __str__(self) -> str:
        """The parts as plain text."""
        return plain(self.to_parts())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the p-values of the keys at random against uniform ones; returns the axes. Needs matplotlib."""
        ax = new_axes() if ax is None else ax
        number = len(self.log10_pvalues)
        ax.plot(-np.log10(np.arange(1, number + 1) / (number + 1)), -self.log10_pvalues, ".", label="keys at random")
        for one in self.materials:
            ax.axhline(-one.log10_pvalue, color="C3", linewidth=1)
        ax.axline((0, 0), slope=1, color="C7", linestyle="--", label="uniform")
        ax.set_xlabel("-log10 p, expected")
        ax.set_ylabel("-log10 p, found (red: the mark's own key)")
        ax.legend()
        return ax


def calibrate(
    mark: Mark | PathLike,
    texts: PathLike | Sequence[PathLike],
    *,
    keys: int = 1000,
    unmarked_prompts: bool = False,
    alpha: float = 1e-3,
    tokenizer: PathLike | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    progress: Stages = silent,
) -> Calibration:
    """Make the test of text (method `binomial`) on text that cannot carry the mark, under many keys.

    Args:
        mark: the mark, or its file.
        texts: files, as for `verify.read_outputs`: human text, and outputs of models that are surely innocent. Each
            file is a suspect of its own.
        keys: keys at random, drawn as the mark's was, that are tried on each file.
        unmarked_prompts: nobody who wrote the prompts knew the secret or copied marked text.
        alpha: level at which the mark's own key counts as not sound, over all files.
        tokenizer: folder of the mark's tokenizer, if not where the mark says.
        columns: where the fields are in records of no known shape.
        skip_bad: count malformed records instead of stopping at the first.
        progress: opened around each file.

    Raises:
        UsageError: there are fewer than 100 keys, or no file.
        StillmarkError: a file or the mark cannot be used.

    Example:
        >>> import verify
        >>> verify.calibrate("teacher.mark", ["human.jsonl"]).verdict  # doctest: +SKIP
        'sound'
    """
    mark = as_mark(mark)
    within("keys", keys, 100, math.inf, first=True)
    within("alpha", alpha, 0, 1)
    several = [texts] if isinstance(texts, PathLike) else list(texts)
    if not several:
        raise UsageError("no text to calibrate on", "name files of text that cannot carry the mark")
    materials, found = [], []
    for path in several:
        read = outputs_of(
            mark, path, tokenizer, columns=columns, need_prompts=not unmarked_prompts, skip_bad=skip_bad,
            progress=progress,
        )  # fmt: skip
        if not unmarked_prompts:  # else this is where it shows whether that was said wrongly
            read, _, _ = beside_prompts(mark, read, tokenizer, unmarked=False)
        with progress(f"trying keys on {path}", "keys") as update:
            pairs = pairs_of(mark, read, unmarked_prompts=unmarked_prompts)
            if not len(pairs.tokens):
                raise InputError(path, 0, "no pair of it can be scored", "it says nothing of the key")
            logs, counts = np.empty(keys), np.empty(keys)
            for i in range(keys):
                logs[i], counts[i] = _tried(mark.decoy(i), pairs)
                update(i + 1, keys)
        own = _tried(mark, pairs)[0]
        materials.append(
            Material(
                name=str(path),
                n=len(pairs.tokens),
                log10_pvalue=own,
                rank=float(1 + (logs <= own).sum()) / (1 + keys),
                log10_if_marked=_if_marked(mark, read) if unmarked_prompts else None,
                spread=float(counts.std() / math.sqrt(_variance(mark) * pairs.counts.sum())),
            )
        )
        found.append(logs)
    whole = np.sort(np.concatenate(found))
    return Calibration(
        mark=mark,
        keys=keys,
        alpha=alpha,
        materials=tuple(materials),
        levels=tuple(_level(whole, level) for level in LEVELS),
        log10_pvalues=whole,
    )


def _variance(mark: Mark) -> float:
    """Of the green coins of one pair."""
    return mark.scheme.coins * mark.scheme.rate * (1 - mark.scheme.rate)


def _tried(mark: Mark, pairs: Pairs) -> tuple[float, float]:
    """log10 p of the binomial test under a key, and the green coins of all occurrences."""
    hits = mark.hits(pairs.contexts, pairs.tokens)
    log10 = binomial.binomial_log10_sf(int(hits.sum()), len(hits) * mark.scheme.coins, mark.scheme.rate)
    return log10, float(pairs.counts @ hits)


def _if_marked(mark: Mark, read: Outputs) -> float:
    return _tried(mark, pairs_of(mark, read))[0]


def _level(log10_pvalues: Floats, level: float) -> Level:
    number, trials = int((log10_pvalues <= math.log10(level)).sum()), len(log10_pvalues)
    low, high = binomial.binomial_interval(number, trials)
    return Level(level, number, trials, (low, high), float(10 ** binomial.binomial_log10_sf(number, trials, level)))
