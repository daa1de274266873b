"""What every test for a mark answers, and what these tests share: the score and the decoy keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from verify.data.pairs import WeightedPairs
from verify.display import inert
from verify.radioactivity.detail import Detail
from verify.radioactivity.prompts import PromptsTest
from verify.radioactivity.tilt import Tilt
from verify.results import CARRIES, LEVEL, Result, left_out, plural
from verify.stats import binomial, weighted
from verify.stats.binomial import Interval
from watermark import Mark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

RANDOMNESS: Final = (
    "The p-value's randomness is the draw of the mark's secret: for a suspect that does not depend on the secret, "
    "the green bits of distinct pairs are independent with probability gamma, whatever the texts and models are."
)
RANDOMNESS_OF_LAYERS: Final = (
    "The p-value's randomness is the draw of the mark's {drawn} of {layers:,} layers, which everybody knows: it bounds "
    "how often keys that were drawn without regard to the suspect fit as well, whatever the suspect learned, and from "
    "whom. Keys that were chosen, as a small number or a date, are not drawn in this sense."
)
ASSUMPTIONS: Final = (
    "Wrong if suspect, reference, prompts or probes depend on the secret by another way than the teacher's outputs, "
    "or if text that others published carried the mark to the suspect. Prompts and probes that may carry the mark are "
    "allowed for by leaving positions out (rule 2), as far as the records hold all that the suspect was shown: those "
    "whose context of tokens occurs there, and what was copied of a record's own prompt without regard to case, white "
    "space, line breaks and common encodings. Copies in other disguises (a cipher, say) count."
)
EVASIONS: Final = "Hidden by paraphrase, by other training data in excess, or by distillation that takes the mark out."
SECRET_BITS: Final = 256
"""Of our own marks' secrets: a guess finds one with a chance of 10^-77."""
NO_EVIDENCE: Final = "No position could be scored: there is no evidence either way."


@dataclass(frozen=True, kw_only=True)
class MarkResult(Result):
    """What every test for a mark answers.

    Attributes:
        mark: the mark tested.
        detail: what a report shows of the evidence.
        tilt: how strongly what the suspect wrote carries the mark; None where nothing was found, or it wrote nothing.
        prompts_test: whether the prompts carry the mark themselves; None: there were none, or nobody looked.
    """

    mark: Mark
    detail: Detail = field(default=Detail(), repr=False)
    tilt: Tilt | None = field(default=None, repr=False)
    prompts_test: PromptsTest | None = field(default=None, repr=False)
    positive_verdict: str = CARRIES
    randomness: str = field(default=RANDOMNESS, repr=False)
    assumptions: str = field(default=ASSUMPTIONS, repr=False)
    evasions: str = field(default=EVASIONS, repr=False)

    def cautions(self) -> Iterator[str]:
        yield from super().cautions()
        if self.mark.parent is not None:
            yield (
                f"The mark is the child of {self.mark.parent[:16]}... for the label '{inert(self.mark.label)}': the "
                "p-value holds only if this label was fixed before anybody looked at the suspect. `attribute` adjusts "
                "over many labels."
            )
        bits = 8 * self.mark.scheme.key_bytes
        if bits < SECRET_BITS and self.log10_pvalue < -bits * math.log10(2):
            yield (
                f"The mark's key has {bits} bits at most, so that a guess finds it with a chance of about "
                f"10^-{bits * math.log10(2):.0f}: a smaller p-value says no more than that."
            )
        if self.prompts_test is not None:
            yield from self.prompts_test.warnings()

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "gamma": self.mark.scheme.rate,
            "coins": self.mark.scheme.coins,
            "mark": {
                "label": self.mark.label,
                "commitment": self.mark.commitment,
                **({} if self.mark.parent is None else {"parent": self.mark.parent}),
                "width": self.mark.width,
                "scheme": self.mark.scheme.name,
                **self.mark.scheme.parameters,
            },
            "detail": self.detail.to_dict(),
            "tilt": None if self.tilt is None else self.tilt.to_dict(),
            "prompts_test": None if self.prompts_test is None else self.prompts_test.to_dict(),
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        if self.tilt is not None:
            rows["tilt"] = str(self.tilt)
        if self.discarded:
            rows["left out"] = left_out(self.discarded)
        if read_as := self.inputs.get("read_as"):
            rows["read as"] = str(read_as)
        label = self.mark.label or "(no label)"
        return rows | {"mark": f"{label}, commitment {self.mark.commitment[:16]}..."}


@dataclass(frozen=True, kw_only=True)
class PairsResult(MarkResult):
    """A test on text, where each distinct pair has the coins of the mark's scheme: a green list's has one.

    n: distinct pairs; statistic and green: coins that are green (come up).
    """

    green: int

    @property
    def coins(self) -> int:
        """Coins of all n pairs."""
        return self.n * self.mark.scheme.coins

    @property
    def green_rate(self) -> float | None:
        """green / coins; None without a pair."""
        return self.green / self.coins if self.n else None

    def confidence_interval(self, level: float = LEVEL) -> Interval:
        """Clopper and Pearson's interval for the rate at which the coins are green."""
        return binomial.binomial_interval(self.green, self.coins, level)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "green": self.green,
            "green_rate": self.green_rate,
            "interval": list(self.confidence_interval()),
            "interval_level": LEVEL,
        }

    def _rows_of_pairs(self, positions: int, records: int) -> dict[str, str]:
        """Rows on the green rate, and on how many pairs that many positions and records gave."""
        low, high = self.confidence_interval()
        rate = "-" if self.green_rate is None else f"{self.green_rate:.4f}"
        return {
            "green rate": f"{rate}   (chance {self.mark.scheme.rate:.4f}; 95 % interval {low:.4f} to {high:.4f})",
            "pairs scored": f"{distinct_pairs(self.n, self.mark)}, of {plural(positions, 'position')} in "
            f"{plural(records, 'record')}",
        }


@dataclass(frozen=True)
class Decoys:
    """The test's z under keys that nobody has used: what an innocent mark looks like here.

    Attributes:
        z: of each decoy key.
        above: decoy keys that reach as far as the true key.
        mark_z: of the mark's own key.
        derived_from: the commitment that the decoy keys follow from (`Mark.decoy`).
    """

    z: tuple[float, ...]
    above: int
    mark_z: float
    derived_from: str

    @property
    def pvalue(self) -> float:
        """Rank of the true key among them, (1 + above) / (1 + decoys): exact too, but never below that."""
        return (1 + self.above) / (1 + len(self.z))

    def __str__(self) -> str:
        return f"{self.above} of {len(self.z)} reach as far; the farthest z {max(self.z):.1f}"

    def draw(self, ax: Axes) -> None:
        """A histogram of the decoys, with the true key's z as a line."""
        ax.hist(self.z, bins=30, color="C7", label=f"{len(self.z)} decoy keys")
        ax.axvline(self.mark_z, color="C3", label="the mark's key")
        ax.set_xlabel("z")
        ax.legend()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "keys": len(self.z),
            "above": self.above,
            "pvalue": self.pvalue,
            "mean_z": float(np.mean(self.z)),
            "sd_z": float(np.std(self.z)),
            "largest_z": float(np.max(self.z)),
            "mark_z": self.mark_z,
            "z": list(self.z),
            "derived_from": self.derived_from,
        }


def distinct_pairs(n: int, mark: Mark) -> str:
    """How many pairs were scored, in words, and how many coins each has, if more than one."""
    return f"{n:,} distinct" + (f" with {coins_of_a_pair(mark)} each" if mark.scheme.coins > 1 else "")


def coins_of_a_pair(mark: Mark) -> str:
    """How many coins a pair has, in words."""
    return "one coin" if mark.scheme.coins == 1 else f"{mark.scheme.coins} coins"


def randomness_of(mark: Mark) -> str:
    """Where the randomness of a p-value comes from, for the mark's scheme."""
    layers = mark.scheme.layers_in_all
    return RANDOMNESS if layers is None else RANDOMNESS_OF_LAYERS.format(drawn=mark.scheme.coins, layers=layers)


def score(mark: Mark, pairs: WeightedPairs) -> float:
    """T = sum a (H - E H), the statistic of every weighted test, with the hits H of each pair.

    All coins of a pair weigh the same, so that a tournament's layers count alike.
    """
    hits = mark.hits(pairs.contexts, pairs.tokens)
    return float(pairs.weights @ (hits - mark.scheme.coins * mark.scheme.rate))


def draw_decoys(mark: Mark, pairs: WeightedPairs, number: int) -> Decoys | None:
    """The test's z under the first `number` decoy keys of the mark; None for 0."""
    if not number:
        return None
    statistic = score(mark, pairs)
    others = [score(mark.decoy(i), pairs) for i in range(number)]
    rate, coins = mark.scheme.rate, mark.scheme.coins
    z = tuple(weighted.z_score(pairs.weights, other, rate, coins) for other in others)
    own = weighted.z_score(pairs.weights, statistic, rate, coins)
    above = sum(other >= statistic for other in others)
    return Decoys(z, above, own, mark.commitment)


def log10_words(tests: dict[str, float]) -> str:
    """Several tests' log10 p-values in one line."""
    return ", ".join(f"{name} {value:.2f}" for name, value in tests.items()) + "   (log10 p)"
