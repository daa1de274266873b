"""What the check of a bundle answers: each thing that was checked, against what, and every difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from verify.display import Heading, Paragraph, Part, plain

HOLDS: Final = "holds"
DIFFERS: Final = "differs"
OPEN: Final = "not checked"

AS_FAR: Final = "holds as far as checked"
"""The verdict of a check in which something was left open."""


@dataclass(frozen=True)
class Checked:
    """One thing that was checked.

    Attributes:
        name: what, in a word or two.
        status: HOLDS, DIFFERS or OPEN.
        against: against what it was checked; of OPEN, what is lacking.
        differences: what was promised and what is there, a sentence each.
    """

    name: str
    status: str
    against: str
    differences: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The whole in one line, without the differences."""
        return f"{self.name}: {self.status}: {self.against}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "check": self.name,
            "status": self.status,
            "against": self.against,
            "differences": list(self.differences),
        }


def checked(name: str, against: str, wrong: Sequence[str]) -> Checked:
    """Something that was looked at, and all that is wrong with it."""
    return Checked(name, DIFFERS if wrong else HOLDS, against, tuple(wrong))


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What the check of a bundle found.

    Attributes:
        bundle: the file.
        checks: in order.
        finding: the verdict that the bundle claims; empty where it cannot be read.
        numbers: log10 of the p-value of each test whose pairs were counted anew, by the test's name.
    """

    bundle: str
    checks: tuple[Checked, ...]
    finding: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`differs`, `holds`, or `holds as far as checked`."""
        found = {one.status for one in self.checks}
        return DIFFERS if DIFFERS in found else AS_FAR if OPEN in found else HOLDS

    @property
    def differences(self) -> tuple[str, ...]:
        """All differences, each after the name of its check."""
        return tuple(f"{one.name}: {said}" for one in self.checks for said in one.differences)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.verdict,
            "bundle": self.bundle,
            "finding": self.finding,
            "checks": [one.to_dict() for one in self.checks],
            "log10_pvalues": dict(self.numbers),
        }

    def to_parts(self) -> list[Part]:
        """What the command prints."""
        parts: list[Part] = [Heading(self.verdict)]
        if self.finding:
            parts.append(Paragraph(f"The bundle claims: {self.finding}.", indent=2))
        for one in self.checks:
            parts.append(Paragraph(one.sentence, indent=2))
            parts += [Paragraph(said, indent=4) for said in one.differences]
        return parts

    def __str__(self) -> str:
        """The parts as plain text."""
        return plain(self.to_parts())
