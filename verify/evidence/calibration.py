"""What a calibration found: how often a test for the mark errs where there is nothing. The file, and its numbers anew.

All that is said follows from the p-values of the mark's own key and of the decoy keys on each material, which are in
the file: whoever reads it counts errors, bounds and ranks again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from verify.display import Heading, Paragraph, Part, Rows, Table, new_axes, plain
from verify.evidence.values import same
from verify.stats import binomial
from watermark import InputError, StillmarkError, __version__
from watermark.io import files
from watermark.io.fields import JsonError, Types, is_int, is_number, is_text, load_object, wrong_field

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT: Final = "stillmark-calibration/v1"

SOUND: Final = "sound"
NOT_SOUND: Final = "not sound"

TEXT: Final = "text"
LOGPROBS: Final = "log probabilities"
TESTS: Final = (TEXT, LOGPROBS)

LEVELS: Final = (0.05, 0.01, 0.001)
SURE: Final = 1e-4
"""A level at which so many or more errors come by chance with a smaller probability is not kept to."""

TEMPLATES: Final = 1.5
"""Spread of a count by occurrence, relative to the binomial one, from which a note says that a text repeats itself."""

MAX_BYTES: Final = 64 << 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Material:
    """One innocent suspect.

    Attributes:
        name: the file or folder.
        sha256: of the file, or the digest of the model.
        test: `text` or `log probabilities`.
        n: distinct pairs.
        log10_pvalue: under the mark's own key.
        log10_opposite: that a key at random fits as badly as the mark's own, or worse.
        log10_if_marked: the p-value with prompts or probes that may carry the mark (rule 2); None: so it was anyway, or
            nobody looked.
        spread: of text, standard deviation over keys of a count of all occurrences, relative to that of independent
            coins: what rule 1 takes care of.
        decoys: float64 [keys], log10 p under the decoy keys (`Mark.decoy`), from number 0.
    """

    name: str
    sha256: str
    test: str
    n: int
    log10_pvalue: float
    log10_opposite: float
    log10_if_marked: float | None
    spread: float | None
    decoys: Floats = field(repr=False)

    @property
    def rank(self) -> float:
        """Of the mark's key among the decoy keys: (1 + keys that reach as far) / (1 + keys)."""
        return float(1 + (self.decoys <= self.log10_pvalue).sum()) / (1 + len(self.decoys))


@dataclass(frozen=True)
class Level:
    """How many p-values of decoy keys reach a level.

    Attributes:
        test: `text` or `log probabilities`.
        level: the level.
        found: p-values at or below it.
        trials: p-values in all.
        interval: exact interval at 95 % for the rate (Clopper and Pearson).
        pvalue: that so many or more come by chance.
    """

    test: str
    level: float
    found: int
    trials: int
    interval: tuple[float, float]
    pvalue: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the tests for a mark find where there is nothing.

    Attributes:
        commitment: of the mark, from which the decoy keys follow.
        keys: decoy keys that were tried on each material.
        alpha: level at which the mark's own key counts as not sound, over all materials and both tails.
        materials: the innocent suspects.
    """

    commitment: str
    keys: int
    alpha: float
    materials: tuple[Material, ...]

    @property
    def verdict(self) -> str:
        """`sound`, or `not sound`."""
        return NOT_SOUND if self.reasons else SOUND

    @property
    def log10_pvalues(self) -> Floats:
        """float64 [materials * keys], of the decoy keys, ascending."""
        return np.sort(np.concatenate([one.decoys for one in self.materials]))

    @property
    def levels(self) -> tuple[Level, ...]:
        """Errors of the decoy keys, of each test by itself."""
        found = []
        for test in TESTS:
            logs = [one.decoys for one in self.materials if one.test == test]
            found += [_level(test, np.concatenate(logs), level) for level in LEVELS if logs]
        return tuple(found)

    @property
    def reasons(self) -> list[str]:
        """Why it is not sound, and which rule to look at, a sentence each."""
        said = [
            f"{one.found} of {one.trials:,} decoy keys are at or below {one.level:g}: the test of {one.test} errs. "
            "Look at rule 1 (docs/statistics.md), and report it."
            for one in self.levels
            if one.pvalue < SURE
        ]
        limit = math.log10(self.alpha / (2 * max(1, len(self.materials))))
        for one in self.materials:
            if one.log10_pvalue <= limit:
                said.append(f"The mark's own key fits {one.name} (log10 p {one.log10_pvalue:.2f}): {_why(one, limit)}.")
            elif one.log10_opposite <= limit:
                why = "a reference that carries the mark" if one.test == LOGPROBS else "a choice of text by its coins"
                said.append(
                    f"The mark's own key fits {one.name} worse than chance allows (log10 p {one.log10_opposite:.2f}), "
                    f"as with {why}: look at rule 3."
                )
        return said

    @property
    def notes(self) -> list[str]:
        """What a reader should know, a sentence each."""
        return [
            f"{one.name} repeats itself: counted by occurrence, the spread over keys would be {one.spread:.1f} times "
            "that of independent coins. Rule 1 counts a pair once."
            for one in self.materials
            if one.spread is not None and one.spread >= TEMPLATES
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "version": __version__,
            "verdict": self.verdict,
            "reasons": self.reasons,
            "notes": self.notes,
            "commitment": self.commitment,
            "keys": self.keys,
            "alpha": self.alpha,
            "materials": [
                {
                    "name": one.name,
                    "sha256": one.sha256,
                    "test": one.test,
                    "n": one.n,
                    "log10_pvalue": one.log10_pvalue,
                    "log10_pvalue_opposite": one.log10_opposite,
                    "log10_pvalue_if_marked": one.log10_if_marked,
                    "rank": one.rank,
                    "spread": one.spread,
                    "decoys": one.decoys.tolist(),
                }
                for one in self.materials
            ],
            "levels": [vars(one) | {"interval": list(one.interval)} for one in self.levels],
        }

    def save(self, path: str | Path) -> None:
        """Write it to a file, which is replaced if it is there. Raises InputError."""
        with files.writing(Path(path)):
            files.replace(Path(path), line_of(self.to_dict()))

    def to_parts(self) -> list[Part]:
        """What the command prints."""
        rows = tuple(
            (one.test, f"{one.level:g}", f"{one.found:,}", f"{one.level * one.trials:,.1f}", f"{one.interval[1]:.4g}")
            for one in self.levels
        )
        own = tuple((one.name, f"{one.n:,}", f"{one.log10_pvalue:z.2f}", f"{one.rank:.4f}") for one in self.materials)
        decoys = f"{self.keys:,} on each material, derived from the mark's commitment"
        return [
            Heading(self.verdict),
            *(Paragraph(one, indent=2) for one in self.reasons),
            Rows({"decoy keys": decoys, "mark": f"commitment {self.commitment[:16]}..."}),
            Paragraph(),
            Table(
                ("test", "level", "found", "expected at most", "rate at most"),
                rows,
                "  {:17}   {:8}   {:>8}   {:>16}   {:>12}",
            ),
            Paragraph(),
            Table(("innocent", "pairs", "log10 p", "rank"), own, "  {:30}   {:>10}   {:>8}   {:>6}"),
            *(Paragraph(f"Note: {one}") for one in self.notes),
        ]

    def __str__(self) -> str:
        """The parts as plain text."""
        return plain(self.to_parts())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the p-values of the decoy keys against uniform ones; returns the axes. Needs matplotlib."""
        ax = new_axes() if ax is None else ax
        for test in TESTS:
            logs = [one.decoys for one in self.materials if one.test == test]
            if logs:
                found = np.sort(np.concatenate(logs))
                expected = np.arange(1, len(found) + 1) / (len(found) + 1)
                ax.plot(-np.log10(expected), -found, ".", label=f"decoy keys, {test}")
        for one in self.materials:
            ax.axhline(-one.log10_pvalue, color="C3", linewidth=1)
        ax.axline((0, 0), slope=1, color="C7", linestyle="--", label="uniform")
        ax.set_xlabel("-log10 p, expected")
        ax.set_ylabel("-log10 p, found (red: the mark's own key)")
        ax.legend()
        return ax


def _why(one: Material, limit: float) -> str:
    """Why the mark's own key may fit an innocent, and which rule to look at."""
    shown, leave = ("prompts", "unmarked_prompts") if one.test == TEXT else ("probes", "unmarked_probes")
    if one.log10_if_marked is not None and one.log10_if_marked > limit:
        return f"with {shown} that may carry the mark it does not: look at rule 2, and leave `{leave}` out"
    if one.test == TEXT:
        return "it holds text of the teacher, or its writer knew the secret: it is no innocent text"
    return (
        "it learned from marked text, and is no innocent model; or probes or reference depend on the secret: look at "
        "rules 2 and 3"
    )


def _level(test: str, log10_pvalues: Floats, level: float) -> Level:
    number, trials = int((log10_pvalues <= math.log10(level)).sum()), len(log10_pvalues)
    low, high = binomial.binomial_interval(number, trials)
    chance = float(10 ** binomial.binomial_log10_sf(number, trials, level))
    return Level(test, level, number, trials, (low, high), chance)


# --- the file ---


def line_of(fields: Mapping[str, Any]) -> bytes:
    """The one line of JSON that a calibration's file holds; its SHA-256 is the digest.

    >>> line_of({"b": 1, "a": 0.5})
    b'{"a": 0.5, "b": 1}\\n'
    """
    return (json.dumps(fields, sort_keys=True) + "\n").encode()


def digest_of(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the file of a calibration, 64 hex characters."""
    return hashlib.sha256(line_of(fields)).hexdigest()


def read_calibration(path: str | Path) -> dict[str, Any]:
    """A calibration's file, as it stands in JSON, with numbers that agree with each other.

    Raises:
        InputError: the file cannot be read, holds none, or its numbers do not agree.
    """
    path = Path(path)
    with files.reading(path):
        if path.stat().st_size > MAX_BYTES:
            raise InputError(path, 0, f"has more than {MAX_BYTES >> 20} MiB, and is no calibration")
        try:
            fields = load_object(path)
            wrong = list(differences(fields))
        except (JsonError, StillmarkError) as error:
            raise InputError(path, 0, f"no calibration: {error}") from None
    if wrong:
        raise InputError(path, 0, f"the numbers of this calibration do not agree: {wrong[0]}")
    return fields


_LOG10: Final = (lambda value: is_number(value) and -math.inf < value <= 0, "a log10 p")
_WHOLE: Final[Types] = {
    "format": (lambda value: value == FORMAT, f"'{FORMAT}'"),
    "version": (is_text, "text"),
    "commitment": (is_text, "text"),
    "keys": (lambda value: is_int(value) and value >= 1, "a whole number"),
    "alpha": (lambda value: is_number(value) and 0 < value < 1, "a number between 0 and 1"),
    "materials": (lambda value: isinstance(value, list) and bool(value), "a list"),
}
_MATERIAL: Final[Types] = {
    "name": (is_text, "text"),
    "sha256": (is_text, "text"),
    "test": (lambda value: value in TESTS, " or ".join(TESTS)),
    "n": (lambda value: is_int(value) and value >= 1, "a whole number"),
    "log10_pvalue": _LOG10,
    "log10_pvalue_opposite": _LOG10,
    "log10_pvalue_if_marked": (lambda value: value is None or _LOG10[0](value), "a log10 p, or null"),
    "spread": (lambda value: value is None or is_number(value), "a number, or null"),
    "decoys": (lambda value: isinstance(value, list) and all(map(_LOG10[0], value)), "a list of log10 p"),
}


def calibration_of(fields: Mapping[str, Any]) -> Calibration:
    """A calibration as it stands in JSON, of the p-values alone: all else follows from them.

    Raises:
        StillmarkError: it is none.
    """
    _typed(fields, _WHOLE)
    materials = []
    for one in fields["materials"]:
        if not isinstance(one, dict):
            raise StillmarkError("a material must be an object")
        _typed(one, _MATERIAL)
        if len(one["decoys"]) != fields["keys"]:
            raise StillmarkError(f"{fields['keys']} keys were tried, and a material has {len(one['decoys'])} 'decoys'")
        named = {"log10_opposite": "log10_pvalue_opposite", "log10_if_marked": "log10_pvalue_if_marked"}
        values = {name: one[named.get(name, name)] for name in Material.__dataclass_fields__}
        materials.append(Material(**values | {"decoys": np.array(one["decoys"], np.float64)}))
    whole = {name: fields[name] for name in ("commitment", "keys", "alpha")}
    return Calibration(**whole, materials=tuple(materials))


def _typed(fields: Mapping[str, Any], types: Types) -> None:
    if missing := sorted(types.keys() - fields.keys()):
        raise StillmarkError(f"it has no '{missing[0]}'")
    if wrong := wrong_field(fields, types):
        raise StillmarkError(wrong)


def differences(fields: Mapping[str, Any]) -> Iterator[str]:
    """What a calibration claims that does not follow from its p-values: verdict, ranks, errors and their bounds.

    Raises:
        StillmarkError: it is no calibration.
    """
    found = calibration_of(fields)
    if fields.get("verdict") != found.verdict:
        yield f"the verdict is '{str(fields.get('verdict'))[:40]}', and by the p-values '{found.verdict}'"
    for claimed, one in zip(fields["materials"], found.materials, strict=True):
        if not same(claimed.get("rank"), one.rank):
            yield f"{one.name}: the rank {claimed.get('rank')} was claimed, and it is {one.rank:.6g}"
    levels = fields.get("levels")
    counted = [vars(one) | {"interval": list(one.interval)} for one in found.levels]
    if not isinstance(levels, list) or len(levels) != len(counted):
        yield f"errors at {len(counted)} levels can be counted, and not as many are there"
        return
    for claimed, level in zip(levels, counted, strict=True):
        for name, value in level.items():
            there = claimed.get(name) if isinstance(claimed, dict) else None
            if not same(there, value):
                yield f"{level['test']} at {level['level']:g}: '{name}' {there} was claimed, and it is {value}"
