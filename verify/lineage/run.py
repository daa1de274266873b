"""What is at hand of a suspect, and the tests of `verify.lineage.verdict` that it allows."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from verify.data.outputs import Outputs, read_outputs, read_records
from verify.fingerprint import agreement, canaries, independence, planted
from verify.fingerprint.independence import WeightsComparison
from verify.fingerprint.weights import compare
from verify.lineage.plan import AGREEMENT, CANARIES, LINES, MARK, PLANTED, SHUFFLED, WEIGHTS, LineagePlan
from verify.lineage.verdict import PlannedTest
from verify.radioactivity.result import MarkResult
from verify.radioactivity.run import examine, mark_in_weights
from verify.results import FingerprintResult, Result
from verify.suspects import endpoint, model
from verify.suspects.endpoint import Endpoint, NoLogprobsError
from verify.suspects.interview import ReferenceLog, Usage, iter_answers
from watermark import ApiError, InputError, Mark, ModelError, StillmarkError, TokenizerError
from watermark.io.fields import is_number
from watermark.io.prompts import read_prompts
from watermark.io.records import Record, resumable, run_digest
from watermark.models import model_digest
from watermark.progress import Progress, silent
from watermark.tokenizers import load_for

_KEPT = {agreement.TOP_TOKENS: "agreement", 1: "agreement.greedy"}
"""Names of the records, by how many tokens are compared."""


class NotAtHandError(StillmarkError):
    """The access does not allow a test."""


def run(
    plan: LineagePlan,
    tests: dict[str, Callable[[Progress], Result]],
    progress: Callable[[str], AbstractContextManager[Progress]] = lambda _line: nullcontext(silent),
) -> list[PlannedTest]:
    """Make the planned tests in order; a test that cannot be made becomes a line that says why.

    Args:
        plan: what to make.
        tests: each line's test, by name.
        progress: opened around each line, by its name.
    """
    lines = []
    for name in plan.lines:
        try:
            with progress(name) as update:
                lines.append(PlannedTest(name, tests[name](update)))
        except NotAtHandError as error:
            lines.append(PlannedTest(name, None, str(error)))
        except (ApiError, ModelError, TokenizerError) as error:
            lines.append(PlannedTest(name, None, str(error), failed=True))
    return lines


@dataclass(frozen=True)
class Access:
    """What is at hand: the models and files that `stillmark lineage` was given.

    Attributes:
        teacher: folder. suspect: folder or URL. mark: or None.
        probes, reference, controls, prompts, base, canaries: files and folders, or None.
        planted: number of planted answers; None: none.
        unmarked: probes and prompts cannot carry the mark.
        model: the endpoint's name for the suspect. budget: billed tokens to spend there.
        ordered: the teacher was released in the mark's order; `teacher` is the model from before.
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
    unmarked: bool = False
    ordered: bool = False
    model: str | None = None
    budget: int = 50_000
    seed: int = 0
    record: Path | None = None

    @property
    def url(self) -> bool:
        """Whether the suspect is an endpoint."""
        return self.suspect.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The suspect as it may be shown: without a name, password or query in its URL."""
        if not self.url:
            return self.suspect
        parts = urlsplit(self.suspect)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    def plan(self, alpha: float) -> LineagePlan:
        """What will be tested. Reads everything but the suspect.

        Raises:
            ModelError, InputError: something that is needed cannot be read.
        """
        planned = {
            WEIGHTS: True,
            SHUFFLED: True,
            MARK: self.mark is not None and (self.prompts if self.url else self.probes) is not None,
            PLANTED: self.planted is not None,
            CANARIES: self.canaries is not None,
            AGREEMENT: bool(self.controls),
        }
        named = {"teacher": self.teacher, "reference": self.reference, "base": self.base}
        named |= {f"control {i}": path for i, path in enumerate(self.controls)}
        models = {name: path for name, path in named.items() if path is not None}
        if self.url:
            self._endpoint().check(())
        for path in (*models.values(), *(() if self.url else (Path(self.suspect),))):
            if not path.is_dir():
                raise ModelError(f"{path}: no such model directory", "name a directory that save_pretrained wrote")
        inputs = {name: model_digest(path) for name, path in models.items()}
        texts = {"probes": self.probes, "prompts": self.prompts, "canaries": self.canaries}
        inputs |= {name: _sha256(path) for name, path in texts.items() if path is not None}
        if self.canaries is not None and (number := sum(1 for _ in read_records(self.canaries))) % 2:
            raise InputError(
                self.canaries, 0, f"holds {number} outputs", "half of them are served: want an even number"
            )
        if self.mark is not None:
            inputs["mark"] = self.mark.commitment
        inputs["calibration"] = _sha256(Path(independence.__file__).with_name("independent.json"))
        settings: dict[str, Any] = {"version": importlib.metadata.version("stillmark"), "seed": self.seed}
        settings |= {
            "unmarked": self.unmarked,
            "ordered": self.ordered,
            "planted": self.planted,
            "top": agreement.TOP_TOKENS,
            "top_without_logprobs": 1,
        }
        if self.url:
            settings |= {"budget_tokens": self.budget, "endpoint": "chat completions", "model": self.model}
        return LineagePlan(tuple(name for name in LINES if planned[name]), alpha, inputs, settings)

    def tests(self, alpha: float) -> dict[str, Callable[[Progress], Result]]:
        """How each line is made. Raises what the tests raise."""
        compared: list[WeightsComparison] = []

        def weights(update: Progress) -> WeightsComparison:
            if not compared:
                order = self._secret() if self.ordered else None
                compared.append(compare(self.teacher, self._folder(), self.seed, update, order))
            return compared[0]

        def shuffled(update: Progress) -> FingerprintResult:
            return weights(update).match(list(self._shares(update)), alpha)

        return {
            WEIGHTS: lambda update: weights(update).independence(alpha),
            SHUFFLED: shuffled,
            MARK: lambda update: self._mark(alpha, update),
            PLANTED: lambda update: self._planted(alpha, update),
            CANARIES: lambda update: self._canaries(alpha, update),
            AGREEMENT: lambda update: self._agreement(alpha, update),
        }

    def _shares(self, update: Progress) -> Iterator[tuple[str, float]]:
        """The controls whose weights can be read, and how like the teacher each is; from the record if known."""
        ours = model_digest(self.teacher) if self.record and self.controls else ""
        for i, control in enumerate(self.controls):
            log = self._log(f"weights.control{i}")
            run = "" if log is None else run_digest(ours, model_digest(control), self.seed)

            def work(_done: int, control: Path = control) -> list[float]:
                return [compare(self.teacher, control, self.seed, update).share]

            try:
                (share,) = resumable(
                    log, run, [control.name], work, to_fields=lambda share: {"share": share}, from_record=_share_of
                )
            except ModelError:
                continue
            yield str(control), share

    def _mark(self, alpha: float, update: Progress) -> MarkResult:
        mark = self._secret()
        if self.url:
            assert self.prompts is not None
            log, tally = self._kept("mark.endpoint"), Usage()
            compared = ReferenceLog(self.reference, mark, tally, log) if self.reference else None
            asked = read_prompts(self.prompts)
            waves = iter_answers(self._endpoint(), asked, mark, load_for(mark), log, self.budget, tally)
            return examine(
                waves, tally, mark, log, alpha, unmarked=self.unmarked, compared=compared,
                judged=lambda: update(tally.billed, self.budget),
            )  # fmt: skip
        texts = [probe for probe in self._texts(self.probes) if len(probe.output_ids)]
        return mark_in_weights(
            mark,
            self._folder(),
            self.reference,
            texts,
            alpha,
            unmarked=self.unmarked,
            record=self.record,
            update=update,
        )

    def _planted(self, alpha: float, update: Progress) -> FingerprintResult:
        number = self.planted or planted.NUMBER
        if self.url:
            log = self._kept("planted.endpoint")
            return planted.ask_endpoint(self._endpoint(), self._secret(), log, number, alpha, update)
        return planted.ask(self._folder(), self._secret(), number, alpha, update)

    def _canaries(self, alpha: float, update: Progress) -> FingerprintResult:
        folder, mark, candidates = self._folder(), self._secret(), self._texts(self.canaries)

        def read(who: str, path: Path) -> tuple[str, canaries.Floats]:
            log = self._log(f"canaries.{who}")
            return str(path), model.likelihoods(path, mark, candidates, record=log, progress=update)

        reference = read("reference", self.reference) if self.reference else None
        return canaries.canary_test(mark, candidates, read("suspect", folder), reference, alpha, seed=self.seed)

    def _agreement(self, alpha: float, update: Progress) -> FingerprintResult:
        assert self.prompts is not None
        asked = agreement.distinct(read_prompts(self.prompts))
        suspect = None if self.url else self._folder()
        agreement.check_tokenizers(asked, self.teacher, self.controls, [suspect, self.base])

        def read(who: str, path: Path) -> tuple[str, list[model.TopTokens]]:
            log = self._log(f"{_KEPT[top]}.{who}")
            return str(path), model.likeliest(path, asked, top, chat=self.url, record=log, progress=update)

        def ask(top: int) -> tuple[str, list[model.TopTokens]]:
            log = self._kept(f"{_KEPT[top]}.endpoint")
            return self.shown, endpoint.likeliest_of_endpoint(self._endpoint(), asked, log, top, update)

        top = agreement.TOP_TOKENS
        if suspect is not None:
            said = read("suspect", suspect)
        else:
            try:
                said = ask(top)
            except NoLogprobsError:  # then what it writes is compared, as the plan says
                top = 1
                said = ask(top)
        return agreement.agreement_test(
            read("teacher", self.teacher),
            said,
            [read(f"control{i}", path) for i, path in enumerate(self.controls)],
            read("base", self.base) if self.base else None,
            alpha,
            top,
        )

    def _folder(self) -> Path:
        if self.url:
            raise NotAtHandError("the suspect's weights are not at hand, only an endpoint")
        return Path(self.suspect)

    def _endpoint(self) -> Endpoint:
        return Endpoint(self.suspect, self.model or "")

    def _kept(self, name: str) -> Path:
        assert self.record is not None
        return self.record / f"{name}.jsonl"

    def _secret(self) -> Mark:
        assert self.mark is not None
        return self.mark

    def _texts(self, path: Path | None) -> Outputs:
        assert path is not None
        return read_outputs(path, self._secret())

    def _log(self, name: str) -> Path | None:
        return None if self.record is None else self.record / f"{name}.jsonl"


def _share_of(record: Record) -> float:
    share: Any = record.fields.get("share")
    if not is_number(share):
        raise record.error("'share' must be a number")
    return float(share)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(path, 0, f"cannot read: {error.strerror}") from None
