"""What will be tested, and at which level: fixed before the suspect is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from watermark import InputError, StillmarkError
from watermark.io import files
from watermark.io.fields import JsonError, Types, is_number, is_text, list_of, load_object, wrong_field

WEIGHTS: Final = "weights"
SHUFFLED: Final = "weights, units shuffled"
MARK: Final = "mark"
WRITTEN: Final = "text of the answers"
PLANTED: Final = "planted answers"
CANARIES: Final = "canaries"
AGREEMENT: Final = "agreement"
LINES: Final = (WEIGHTS, SHUFFLED, MARK, WRITTEN, PLANTED, CANARIES, AGREEMENT)
"""Every test of a verdict, in the order in which they are made."""

ATTRIBUTION: Final = "attribution"
"""The only line of the plan of an attribution, which is no verdict."""

TESTS: Final = frozenset({
    "text_test", "logprob_test", "endpoint_test", "corpus_test",
    "weights_test", "agreement_test", "planted_test", "canary_test",
})  # fmt: skip
"""The only line of the plan of a single test: the function of `verify` that makes it."""

FORMAT: Final = "stillmark-plan/v1"

MAX_BYTES: Final = 16 << 20
"""Of a plan that is read from a file."""

_TYPES: Final[Types] = {
    "format": (lambda value: value == FORMAT, f"'{FORMAT}'"),
    "lines": (
        list_of(lambda value: is_text(value) and is_line(value)),
        "a list of the names of tests",
    ),
    "alpha": (lambda value: is_number(value) and 0 < value < 1, "a number between 0 and 1"),
    "inputs": (lambda value: isinstance(value, dict) and all(map(is_text, value.values())), "an object of digests"),
    "settings": (lambda value: isinstance(value, dict), "an object"),
}


def is_line(line: str) -> bool:
    """Whether a plan may hold this line."""
    return line in (*LINES, ATTRIBUTION) or line in TESTS or is_mark(line)


def is_mark(line: str) -> bool:
    """Whether a line of a plan is a test for a mark; of several marks each has its own, `mark NAME`."""
    return line in (MARK, WRITTEN) or line.startswith(f"{MARK} ")


def lines_for_marks(lines: Sequence[str]) -> list[str]:
    """The lines of a plan that test for a mark, one a mark."""
    return [line for line in lines if is_mark(line) and line != WRITTEN]


def kept_as(lines: Sequence[str], line: str) -> str:
    """Under which name the folder of a verdict keeps what belongs to the mark of a line; each of several has its own.

    >>> kept_as(["mark"], "mark"), kept_as(["mark a", "mark b"], "mark b")
    ('mark', 'mark.2')
    """
    marks = lines_for_marks(lines)
    return f"{MARK}.{marks.index(line) + 1}" if len(marks) > 1 and line in marks else MARK


@dataclass(frozen=True)
class Planned:
    """Under which plan a result came about.

    Attributes:
        digest: of the plan that was promised.
        before: it was there before this run.
        deviations: where the run differs from it, a sentence each.
    """

    digest: str
    before: bool
    deviations: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The plan in a few words."""
        if self.deviations:
            return f"DEVIATES from plan {self.digest[:16]}..."
        return f"plan {self.digest[:16]}..." + ("" if self.before else ", written by this run")


@dataclass(frozen=True)
class LineagePlan:
    """What will be tested and at which level: fixed before the suspect is looked at, and known by its digest.

    Attributes:
        lines: the tests, of LINES, in order; with several marks `mark NAME` for each.
        alpha: family-wise level of the verdict.
        inputs: SHA-256 of everything but the suspect that the tests use, by name.
        settings: numbers that the tests depend on, by name.
    """

    lines: tuple[str, ...]
    alpha: float
    inputs: dict[str, str]
    settings: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, 64 hex characters."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "lines": list(self.lines),
            "alpha": self.alpha,
            "inputs": self.inputs,
            "settings": self.settings,
        }

    def fix(self, path: str | Path) -> bool:
        """Write the plan, if the file is not there; else see that it is the same. Returns whether it was written.

        Raises:
            InputError: the file holds another plan (the message says where they differ), or cannot be read or written.
        """
        return not self.held_to(Path(path))[1]

    def held_to(self, path: Path, *, deviate: bool = False) -> tuple[LineagePlan, bool, list[str]]:
        """The plan that a file promises, which is this one and is written if there is no such file.

        Args:
            path: the file.
            deviate: the file may hold another plan.

        Returns:
            the plan that the file holds, whether it was there before, and the deviations from it.

        Raises:
            InputError: the file holds another plan and `deviate` is False, or cannot be read or written.
        """
        with files.writing(path):
            try:
                files.create(path, (self.text() + "\n").encode())
            except FileExistsError:
                pass
            else:
                return self, False, []
        promised = read_plan(path)
        found = list(self.deviations(promised))
        if found and not deviate:
            raise InputError(
                path,
                0,
                f"holds another plan than this one: {'; '.join(found)}",
                "a plan is made once, before the suspect is read; `deviate=True` goes on, and says so in the result",
            )
        return promised, True, found

    def deviations(self, promised: LineagePlan) -> Iterator[str]:
        """Where this plan differs from the one that was promised, a sentence each.

        >>> plan = LineagePlan(("mark",), 1e-3, {}, {"seed": 0})
        >>> list(LineagePlan(("mark",), 1e-2, {}, {"seed": 0}).deviations(plan))
        ['alpha: 0.001 was planned, and 0.01 was done']
        """
        theirs, ours = _flat(promised.to_dict()), _flat(self.to_dict())
        for name in sorted(theirs.keys() | ours.keys()):
            planned, done = theirs.get(name, "nothing"), ours.get(name, "nothing")
            if planned != done:
                yield f"{name}: {planned} was planned, and {done} was done"

    def text(self) -> str:
        """The one line of JSON that a plan's file holds, without its end; its SHA-256 is the digest."""
        return json.dumps({"format": FORMAT} | self.to_dict(), sort_keys=True)


def plan_of_fields(fields: Mapping[str, Any]) -> LineagePlan:
    """A plan as it stands in JSON.

    Raises:
        StillmarkError: it is none, or has another key than a plan has.
    """
    if wrong := wrong_field(fields, _TYPES):
        raise StillmarkError(f"no plan: {wrong}")
    for name in sorted(_TYPES.keys() ^ fields.keys()):
        raise StillmarkError(f"no plan: it has {'no' if name in _TYPES else 'a'} '{name[:40]}'")
    inputs, settings = dict(fields["inputs"]), dict(fields["settings"])
    return LineagePlan(tuple(fields["lines"]), fields["alpha"], inputs, settings)


def read_plan(path: Path) -> LineagePlan:
    """The plan in a file, which must be written as plans are: the digest of a plan is that of its file.

    Raises:
        InputError: the file cannot be read, or holds no plan.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(path, 0, f"has more than {MAX_BYTES >> 20} MiB, and is no plan")
        data = path.read_bytes()
        plan = plan_of_fields(load_object(data))
    except OSError as error:
        raise InputError(path, 0, f"cannot read the plan: {error.strerror}") from None
    except JsonError as error:
        raise InputError(path, 0, f"no plan: {error}") from None
    except InputError:
        raise
    except StillmarkError as error:
        raise InputError(path, 0, str(error)) from None
    if data != (plan.text() + "\n").encode():
        raise InputError(path, 0, "a plan is one line of JSON with its keys in order", "restore it from a copy")
    return plan


def _flat(fields: Mapping[str, Any]) -> dict[str, str]:
    """The values of a plan as JSON, those of `inputs` and `settings` by their own names."""
    found: dict[str, str] = {}
    for name, value in fields.items():
        several = {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        found |= {key: json.dumps(one, sort_keys=True) for key, one in several.items()}
    return found
