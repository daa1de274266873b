"""What happened to the teacher: copied, distilled, both, unrelated so far as the access can see, or cannot tell."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from verify import suspects
from verify.api import Tally, examine, interview
from verify.endpoints import Endpoint
from verify.fingerprint import agreement, canaries, planted
from verify.fingerprint.finding import Finding
from verify.fingerprint.layers import Weights
from verify.fingerprint.weights import Comparison, compare, independent_pairs
from verify.outputs import Encode, Output, read_outputs
from verify.radioactivity import Result, TextResult, WeightedResult, logprob_test
from verify.sequential import SequentialResult
from verify.statistics import holm
from verify.verdicts import Answer
from watermark import ApiError, InputError, Mark, ModelError, TokenizerError, files
from watermark.generate import read_prompts
from watermark.models import model_digest
from watermark.tokenizers import load_for

COPIED: Final = "copied"
DISTILLED: Final = "distilled"
BOTH: Final = "copied and distilled"
UNRELATED: Final = "unrelated so far as this access can see"
CANNOT_TELL: Final = "cannot tell"
VERDICTS: Final = (COPIED, DISTILLED, BOTH, UNRELATED, CANNOT_TELL)

WEIGHTS: Final = "weights"
SHUFFLED: Final = "weights, units shuffled"
MARK: Final = "mark"
PLANTED: Final = "planted answers"
CANARIES: Final = "canaries"
AGREEMENT: Final = "agreement"
LINES: Final = (WEIGHTS, SHUFFLED, MARK, PLANTED, CANARIES, AGREEMENT)
_COPIES: Final = (WEIGHTS, SHUFFLED)
_DISTILS: Final = (MARK, CANARIES)


@dataclass(frozen=True)
class Plan:
    """What will be tested and at which level: fixed before the suspect is looked at, and known by its digest.

    Attributes:
        lines: the tests, of LINES, in order.
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
        return hashlib.sha256(self._json().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "lines": list(self.lines),
            "alpha": self.alpha,
            "inputs": self.inputs,
            "settings": self.settings,
        }

    def fix(self, path: Path) -> bool:
        """Write the plan, if the file is not there; else see that it is the same. Returns whether it was written.

        Raises:
            InputError: the file holds another plan, or cannot be read or written.
        """
        text = self._json() + "\n"
        try:
            files.create(path, text.encode())
        except FileExistsError:
            try:
                same = path.read_text() == text
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(path, 0, f"cannot read the plan: {error}") from None
            if not same:
                raise InputError(
                    path, 0, "holds another plan than this command's", "a plan is made once, before the suspect is read"
                ) from None
            return False
        except OSError as error:
            raise InputError(path, 0, f"cannot write: {error.strerror}", "does the folder exist?") from None
        return True

    def _json(self) -> str:
        return json.dumps({"format": "stillmark-lineage-plan/v1"} | self.to_dict(), sort_keys=True)


@dataclass(frozen=True)
class Line:
    """One planned test: its result, or why there is none.

    Attributes:
        name: one of LINES.
        result: what was found.
        unavailable: why nothing was; None where there is a result.
        log10_adjusted: log10 of Holm's adjusted p-value over all lines with a result.
    """

    name: str
    result: Answer | None
    unavailable: str | None = None
    log10_adjusted: float = 0.0

    def positive(self, alpha: float) -> bool:
        """Whether the line stands after Holm's adjustment."""
        return self.result is not None and self.log10_adjusted <= math.log10(alpha)

    def to_dict(self, alpha: float) -> dict[str, Any]:
        """For JSON."""
        if self.result is None:
            return {"line": self.name, "available": False, "why": self.unavailable}
        return {
            "line": self.name,
            "available": True,
            "log10_pvalue": self.result.log10_pvalue,
            "log10_pvalue_adjusted": self.log10_adjusted,
            "positive": self.positive(alpha),
            "could_be_found": could_be_found(self.result),
            "breaks": breaks(self.result),
            "result": self.result.to_dict(),
        }


@dataclass(frozen=True)
class Lineage:
    """The answer.

    Attributes:
        teacher, suspect: a folder, or for the suspect a URL.
        plan: what was fixed beforehand.
        lines: every planned test.
    """

    teacher: str
    suspect: str
    plan: Plan
    lines: tuple[Line, ...] = field(repr=False)

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        found = {line.name for line in self.lines if line.positive(self.plan.alpha)}
        copied, distilled = bool(found & set(_COPIES)), bool(found & set(_DISTILS))
        if copied or distilled:
            return BOTH if copied and distilled else COPIED if copied else DISTILLED
        looked = {line.name for line in self.lines if line.result is not None}
        return CANNOT_TELL if found or not looked & {*_COPIES, *_DISTILS} else UNRELATED

    @property
    def reasons(self) -> list[str]:
        """What the verdict rests on, and what it leaves open, one sentence each."""
        found = [line.name for line in self.lines if line.positive(self.plan.alpha)]
        missing = [line for line in self.lines if line.result is None]
        said = [f"Stands after Holm: {name}." for name in found] or ["No line stands after Holm."]
        if self.verdict == CANNOT_TELL and found:
            said.append("That shows a tie to the teacher, and not whether by weights or by outputs.")
        if self.verdict == DISTILLED:
            weights = next((line for line in self.lines if line.name == WEIGHTS), None)
            seen = weights is not None and weights.result is not None
            said.append("The weights are independent so far as seen." if seen else "The weights were not seen.")
        said += [f"Not tested: {line.name}: {line.unavailable}." for line in missing]
        if self.verdict == UNRELATED:
            said += [f"{line.name}: {could_be_found(line.result)}" for line in self.lines if line.result is not None]
        return said

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "teacher": self.teacher,
            "suspect": self.suspect,
            "alpha": self.plan.alpha,
            "plan": self.plan.to_dict(),
            "plan_digest": self.plan.digest,
            "lines": [line.to_dict(self.plan.alpha) for line in self.lines],
        }


def conclude(teacher: str, suspect: str, plan: Plan, lines: Sequence[Line]) -> Lineage:
    """Put the lines together, with Holm's adjustment over those that have a result.

    Raises:
        ValueError: these are not the planned lines, in order.
    """
    if [line.name for line in lines] != list(plan.lines):
        raise ValueError("the lines are not those of the plan")
    made = [line.result.log10_pvalue for line in lines if line.result is not None]
    adjusted = iter(holm(np.array(made, np.float64)).tolist())
    return Lineage(
        teacher,
        suspect,
        plan,
        tuple(Line(line.name, line.result, line.unavailable, next(adjusted) if line.result else 0.0) for line in lines),
    )


def run(
    plan: Plan,
    tests: dict[str, Callable[[], Answer]],
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[Line]:
    """Make the planned tests in order. One that the suspect does not allow becomes a line that says why."""
    lines = []
    for done, name in enumerate(plan.lines):
        progress(done, len(plan.lines))
        try:
            lines.append(Line(name, tests[name]()))
        except (ApiError, ModelError, TokenizerError) as error:
            lines.append(Line(name, None, str(error)))
    return lines


@dataclass(frozen=True)
class Access:
    """What is at hand: the models and files that `stillmark lineage` was given.

    Attributes:
        teacher: folder. suspect: folder or URL. mark: or None.
        probes, reference, controls, prompts, base, canaries: files and folders, or None.
        planted: number of planted answers; None: none.
        keyless: probes and prompts cannot carry the mark.
        model: the endpoint's name for the suspect. budget: billed tokens to spend there.
        seed: of every draw that is not keyed.
        record: folder to keep what was read in.
    """

    teacher: Path
    suspect: str
    mark: Mark | None = None
    probes: Path | None = None
    reference: Path | None = None
    controls: tuple[Path, ...] = ()
    prompts: Path | None = None
    base: Path | None = None
    planted: int | None = None
    canaries: Path | None = None
    keyless: bool = False
    model: str | None = None
    budget: int = 50_000
    seed: int = 0
    record: Path | None = None

    @property
    def url(self) -> bool:
        """Whether the suspect is an endpoint."""
        return self.suspect.startswith(("http://", "https://"))

    def plan(self, alpha: float) -> Plan:
        """What will be tested. Reads everything but the suspect.

        Raises:
            ModelError, InputError: something that is needed cannot be read.
        """
        planned = {
            WEIGHTS: True,
            SHUFFLED: True,
            MARK: self.mark is not None,
            PLANTED: self.planted is not None,
            CANARIES: self.canaries is not None,
            AGREEMENT: bool(self.controls),
        }
        Weights(self.teacher)
        named = {"teacher": self.teacher, "reference": self.reference, "base": self.base}
        named |= {f"control {i}": path for i, path in enumerate(self.controls)}
        inputs = {name: model_digest(path) for name, path in named.items() if path is not None}
        texts = {"probes": self.probes, "prompts": self.prompts, "canaries": self.canaries}
        inputs |= {name: _sha256(path) for name, path in texts.items() if path is not None}
        if self.mark is not None:
            inputs["mark"] = self.mark.commitment
        settings: dict[str, Any] = {"seed": self.seed, "keyless": self.keyless, "planted": self.planted}
        if self.url:
            settings |= {"budget_tokens": self.budget, "endpoint": "chat completions"}
        return Plan(tuple(name for name in LINES if planned[name]), alpha, inputs, settings)

    def tests(self, alpha: float, encode: Encode | None) -> dict[str, Callable[[], Answer]]:
        """How each line is made; encode: texts to ids by the mark's tokenizer. Raises what the tests raise."""
        compared: list[Comparison] = []

        def weights() -> Comparison:
            if not compared:
                compared.append(compare(self.teacher, self._folder(), self.seed))
            if not compared[0].layers and compared[0].embedding is None:
                raise ModelError("; ".join(compared[0].skipped))
            return compared[0]

        def shuffled() -> Finding:
            if not weights().layers:
                raise ModelError("; ".join(weights().skipped))
            pairs, source = independent_pairs()
            more = [compare(self.teacher, control, self.seed) for control in self.controls]
            pairs += tuple(one.share for one in more if one.layers)
            return weights().match(pairs, f"{source}; and {len(self.controls)} controls", alpha)

        return {
            WEIGHTS: lambda: weights().independence(alpha),
            SHUFFLED: shuffled,
            MARK: lambda: self._mark(alpha, encode),
            PLANTED: lambda: planted.ask(self._folder(), self._secret(), self.planted or planted.NUMBER, alpha),
            CANARIES: lambda: self._canaries(alpha, encode),
            AGREEMENT: lambda: self._agreement(alpha),
        }

    def _mark(self, alpha: float, encode: Encode | None) -> Result:
        mark = self._secret()
        if self.url:
            assert self.prompts is not None
            assert self.record is not None
            endpoint = Endpoint(self.suspect, self.model or "")
            log = self.record / "mark.endpoint.jsonl"
            tally = Tally()
            waves = interview(endpoint, read_prompts(self.prompts), mark, load_for(mark), log, self.budget, tally)
            return examine(waves, tally, mark, log, alpha, keyless=self.keyless)
        texts = [probe for probe in self._texts(self.probes, encode) if len(probe.output_ids)]
        return mark_in_weights(
            mark, self._folder(), self.reference, texts, alpha, keyless=self.keyless, record=self.record
        )

    def _canaries(self, alpha: float, encode: Encode | None) -> Finding:
        mark, candidates = self._secret(), self._texts(self.canaries, encode)

        def read(who: str, path: Path) -> tuple[str, canaries.Floats]:
            return str(path), canaries.likelihoods(path, mark, candidates, record=self._log(f"canaries.{who}"))

        reference = read("reference", self.reference) if self.reference else None
        suspect = read("suspect", self._folder())
        return canaries.canary_test(mark, candidates, suspect, reference, alpha, seed=self.seed)

    def _agreement(self, alpha: float) -> Finding:
        assert self.prompts is not None
        asked = agreement.distinct(read_prompts(self.prompts))
        models = (self.teacher, self._folder(), *self.controls, self.base)
        agreement.check_tokenizers(asked, [path for path in models if path is not None])

        def read(who: str, path: Path) -> tuple[str, list[str]]:
            return str(path), agreement.greedy(path, asked, record=self._log(f"agreement.{who}"))

        return agreement.agreement_test(
            read("teacher", self.teacher),
            read("suspect", self._folder()),
            [read(f"control{i}", path) for i, path in enumerate(self.controls)],
            read("base", self.base) if self.base else None,
            alpha,
        )

    def _folder(self) -> Path:
        if self.url:
            raise ModelError("the suspect's weights are not at hand, only an endpoint")
        return Path(self.suspect)

    def _secret(self) -> Mark:
        assert self.mark is not None
        return self.mark

    def _texts(self, path: Path | None, encode: Encode | None) -> list[Output]:
        assert path is not None
        assert encode is not None
        return list(read_outputs([path], encode=encode, vocabulary_size=self._secret().vocabulary_size))

    def _log(self, name: str) -> Path | None:
        return None if self.record is None else self.record / f"{name}.jsonl"


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(path, 0, f"cannot read: {error.strerror}") from None


def mark_in_weights(
    mark: Mark,
    suspect: Path,
    reference: Path | None,
    probes: Sequence[Output],
    alpha: float,
    *,
    keyless: bool,
    record: Path | None = None,
    progress: Callable[[str, int], None] = lambda _who, _texts: None,
) -> WeightedResult:
    """The mark line where the weights are at hand: `verify.radioactivity.logprob_test` along the probes.

    Raises:
        ModelError, TokenizerError: a model cannot be loaded, or is not for the mark's tokenizer.
        InputError: `record`, a folder, cannot be written, or is of another run.
    """

    def read(who: str, path: Path) -> suspects.Readings:
        log = record / f"mark.{who}.jsonl" if record else None
        texts = suspects.read_weights(path, mark, probes, record=log, progress=lambda number: progress(who, number))
        return suspects.gather(texts, mark.width, keyless=keyless)

    suspected = read("suspect", suspect)
    return logprob_test(mark, suspected, None if reference is None else read("reference", reference), alpha)


def could_be_found(result: Answer | None) -> str:
    """What a negative answer of this test rules out, in words."""
    if isinstance(result, WeightedResult):
        if not result.n:
            return "nothing: the suspect does not differ from the reference, or no position could be scored."
        return (
            f"an effect of {result.detectable_effect:.4f} (green less red, in the weights' unit) would have been found "
            "with 90 % power."
        )
    if isinstance(result, SequentialResult):
        return f"after {result.tokens:,} tokens a tilt of {result.least:g} " + (
            "would have shown." if result.stopped == "futility" else "may be there and not have shown yet."
        )
    if isinstance(result, TextResult):
        return f"a green rate of {result.detectable_rate} would have been found with 90 % power."
    return "a suspect changed as its `breaks` says would not have been found." if result else ""


def breaks(result: Answer) -> str:
    """What would make this p-value wrong, and what would hide a guilty suspect, in words."""
    if isinstance(result, Finding):
        return result.breaks
    return (
        "Wrong if suspect, reference or probes depend on the secret by another way than the teacher's outputs, or "
        "if text that others published carried the mark to the suspect. Hidden by paraphrase, by other training "
        "data in excess, or by distillation that takes the mark out."
    )
