"""One test of a report: its result as it stands in JSON, checked, and what a page shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from verify.evidence.values import WANTED, list_of, number_of, object_of, text_of, texts_of, typed
from watermark import StillmarkError

REASONS: Final = {
    "short_context": "fewer tokens stand before it than the mark's width",
    "special_token": "a special token, which carries no mark",
    "prompt_context": "its context occurs in a prompt, which may carry the mark (rule 2)",
    "seen_context": "its context was shown before, in text that may carry the mark (rule 2)",
    "repeated_pair": "the pair was counted before: a distinct pair counts once (rule 1)",
    "counted_pair": "an earlier answer had the pair: a distinct pair counts once (rule 1)",
}
"""Why evidence is left out, by the name that results use."""


SHOWN: Final = 200
"""Names and values, at most, in one table of a page; the JSON has all."""


@dataclass(frozen=True)
class TestShown:
    """One test of a report.

    Attributes:
        name: what was tested, in a word or two.
        evidence: on how much evidence.
        log10_pvalue: log10 of its own p-value.
        log10_adjusted: the same after Holm's adjustment over all tests; None where it is the only one.
        stands: `yes`, `no`, `no verdict` where a negative answer says nothing, or `not counted`.
        alpha: the level that its own p-value is held against: with several tests, what Holm's adjustment leaves to it.
        result: the rest, as in JSON.
    """

    name: str
    evidence: str
    log10_pvalue: float
    log10_adjusted: float | None
    stands: str
    alpha: float
    result: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A sentence of the result; empty if it has none."""
        return text_of(self.result, name, "")

    @property
    def rows(self) -> dict[str, str]:
        """Names and values, as the command prints them."""
        rows = object_of(object_of(self.result, "summary", {}), "rows", {})
        shown = {name: typed(value, str, name) for name, value in islice(rows.items(), SHOWN)}
        return shown | ({"and more": f"{len(rows) - SHOWN:,} more lines, in the JSON"} if len(rows) > SHOWN else {})

    @property
    def discarded(self) -> list[tuple[str, int]]:
        """What was left out: why, and how much."""
        counts = object_of(self.result, "discarded", {})
        kept = {name: int(number_of(counts, name)) for name in islice(counts, SHOWN)}
        return [(REASONS.get(name, name.replace("_", " ")), count) for name, count in kept.items() if count]

    @property
    def warnings(self) -> list[str]:
        """What a reader should know."""
        return texts_of(self.result, "warnings")

    @property
    def coins(self) -> int:
        """How many coins a pair has under the mark's scheme."""
        return int(number_of(self.result, "coins", 1.0))

    @property
    def passages(self) -> list[Mapping[str, Any]]:
        """The greenest stretches of text, each with `record`, and its tokens in `spans`: pairs of text and colour."""
        found: list[Mapping[str, Any]] = []
        for one in list_of(object_of(self.result, "detail", {}), "passages", most=20):
            one = typed(one, dict, "a passage")
            pieces, green = texts_of(one, "pieces"), list_of(one, "green")
            if len(pieces) != len(green) or any(colour not in (True, False, None) for colour in green):
                raise StillmarkError("a passage has not one colour a token", WANTED)
            found.append({"record": text_of(one, "record"), "spans": list(zip(pieces, green, strict=True))})
        return found

    @property
    def heaviest(self) -> list[Mapping[str, Any]]:
        """The heaviest pairs: `context`, `token`, `weight`, `green` in words, and what each `adds` to the sum."""
        gamma, coins = number_of(self.result, "gamma", 0.0), self.coins
        found: list[Mapping[str, Any]] = []
        for one in list_of(object_of(self.result, "detail", {}), "heaviest"):
            one = typed(one, dict, "a pair")
            weight, green = number_of(one, "weight"), typed(one.get("green"), bool, "green")
            hits = int(number_of(one, "hits", float(green)))
            found.append({
                "context": text_of(one, "context"),
                "token": text_of(one, "token"),
                "weight": weight,
                "green": ("yes" if green else "no") if coins == 1 else f"{hits} of {coins}",
                "adds": weight * (hits - coins * gamma),
            })  # fmt: skip
        return found
