"""How the planned tests are made, line by line, from what was given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from verify.fingerprint.agreement import TOP_TOKENS
from verify.fingerprint.comparison import WeightsComparison
from verify.fingerprint.planted import NUMBER
from verify.fingerprint.run import agreement_test, canary_test, planted_test
from verify.fingerprint.weights import compare
from verify.lineage import access as kinds
from verify.lineage.given import Given
from verify.lineage.plan import (
    AGREEMENT,
    CANARIES,
    MARK,
    PLANTED,
    SHUFFLED,
    WEIGHTS,
    WRITTEN,
    LineagePlan,
    Planned,
    is_mark,
    kept_as,
    lines_for_marks,
)
from verify.lineage.verdict import PlannedTest
from verify.progress import Stages, on
from verify.radioactivity.endpoint_test import endpoint_test
from verify.radioactivity.logprob_test import logprob_test
from verify.radioactivity.logs import UnusableLogprobsError
from verify.radioactivity.sequential import EndpointResult
from verify.radioactivity.text_test import text_test
from verify.results import Result
from verify.suspects.asking import NoLogprobsError
from verify.suspects.endpoint import Endpoint
from verify.suspects.model import Model
from watermark import ApiError, InputError, ModelError, StillmarkError, TokenizerError, UsageError
from watermark.io import files
from watermark.io.fields import load_object
from watermark.models import model_digest

T = TypeVar("T")


class _NothingNewError(StillmarkError):
    """A planned test that has nothing of its own to look at."""


def run_planned(plan: LineagePlan, tests: Mapping[str, Callable[[], Result]], planned: Planned) -> list[PlannedTest]:
    """Make the planned tests in order; a test that cannot be made becomes a line that says why.

    Of several marks some may not fit the records, whose ids may be another tokenizer's. Records that fit none are an
    error.
    """
    lines, unread = [], list[InputError]()
    marks = len(lines_for_marks(plan.lines))
    for name in plan.lines:
        try:
            lines.append(PlannedTest(name, replace(tests[name](), planned=planned)))
        except _NothingNewError as error:
            lines.append(PlannedTest(name, None, str(error)))
        except (ApiError, ModelError, TokenizerError) as error:
            lines.append(PlannedTest(name, None, str(error), failed=True))
        except InputError as error:
            if marks == 1 or not is_mark(name):
                raise
            unread.append(error)
            lines.append(PlannedTest(name, None, str(error), failed=True))
    if unread and len(unread) == marks:
        raise unread[0]
    return lines


def tests_of(given: Given, plan: LineagePlan, progress: Stages) -> dict[str, Callable[[], Result]]:
    """How each line is made."""
    compared: list[WeightsComparison] = []
    asked: list[Result] = []
    alpha = plan.alpha
    # an endpoint is asked until a finding stands among all tests, whatever they find
    level = alpha / len(plan.lines) if given.access.kind == kinds.ENDPOINT else alpha

    def weights() -> WeightsComparison:
        if not compared:
            teacher, folder = _there(given.teacher, "teacher"), _there(given.access.folder, "suspect")
            with progress(on("matching", folder), "layers") as update:
                order = _there(given.mark, "mark") if given.ordered else None
                compared.append(compare(teacher, folder, given.seed, update, order))
        return compared[0]

    def mark(line: str) -> Result:
        made = _mark(given, line, level, progress)
        asked.append(made)
        return made

    return {
        WEIGHTS: lambda: weights().independence(alpha),
        SHUFFLED: lambda: weights().match(list(_shares(given, progress)), alpha),
        **{line: partial(mark, line) for line in given.marks},
        WRITTEN: lambda: _written(given, asked, level, progress),
        PLANTED: lambda: planted_test(
            _there(given.mark, "mark"),
            given.asked,
            number=given.planted or NUMBER,
            log=_log(given, "planted.jsonl"),
            alpha=alpha,
            progress=progress,
        ),
        CANARIES: lambda: canary_test(
            _there(given.mark, "mark"),
            given.weights,
            given.canaries or "",
            reference=given.reference,
            seed=given.seed,
            record=_log(given, "canaries"),
            alpha=alpha,
            progress=progress,
        ),
        AGREEMENT: lambda: _agreement(given, alpha, progress),
    }


def _read(given: Given, line: str, suspect: Model | Endpoint, alpha: float, progress: Stages) -> Result:
    """The test for a mark in what a suspect says along the probes."""
    return logprob_test(
        given.marks[line],
        suspect,
        given.probes,
        reference=given.reference,
        unmarked_probes=given.unmarked_probes,
        record=_log(given, kept_as(list(given.marks), line)),
        alpha=alpha,
        tokenizer=given.tokenizer,
        skip_bad=given.skip_bad,
        progress=progress,
    )


def _mark(given: Given, line: str, alpha: float, progress: Stages) -> Result:
    """The test for a mark that the access allows."""
    mark, access = given.marks[line], given.access
    if access.kind == kinds.WEIGHTS:
        return _read(given, line, given.weights, alpha, progress)
    if access.kind == kinds.ENDPOINT:
        if given.probes is not None:
            try:
                return _read(given, line, given.endpoint, alpha, progress)
            except NoLogprobsError as error:
                given.notes.append(f"The endpoint could not be read along the probes, and was asked instead: {error}.")
        return endpoint_test(
            mark,
            given.endpoint,
            given.prompts,
            log=_there(_log(given, "mark.jsonl"), "out"),
            budget=given.budget,
            budget_usd=given.budget_usd,
            price_in=given.price_in,
            price_out=given.price_out,
            reference=given.reference,
            unmarked_prompts=given.unmarked_prompts,
            alpha=alpha,
            tokenizer=given.tokenizer,
            progress=progress,
        )
    if access.kind == kinds.LOGPROBS:
        free = given.unmarked_probes or given.unmarked_prompts
        why = "No log probability could be used"
        try:
            found = logprob_test(
                mark,
                access.files,
                reference=given.reference,
                unmarked_probes=free,
                record=_log(given, kept_as(list(given.marks), line)),
                alpha=alpha,
                tokenizer=given.tokenizer,
                columns=given.columns,
                skip_bad=given.skip_bad,
                progress=progress,
            )
            if found.n:
                return found
        except UnusableLogprobsError as error:
            why = error.message[:1].upper() + error.message[1:]
        given.notes.append(f"{why}: the text that the suspect wrote was tested instead.")
    test = partial(
        text_test,
        mark,
        access.files,
        reference=given.reference,
        unmarked_prompts=bool(given.unmarked_prompts),
        alpha=alpha,
        tokenizer=given.tokenizer,
        columns=given.columns,
        skip_bad=given.skip_bad,
        progress=progress,
    )
    try:
        return test(decoys=mark.scheme.decoys)
    except UsageError:  # answers of a sequential run, whose test has no decoys
        return test()


def _written(given: Given, asked: Sequence[Result], alpha: float, progress: Stages) -> Result:
    """The test for the mark in the text of the answers that the test for it asked for."""
    if not asked:
        raise _NothingNewError(f"the test '{MARK}' has no answers")
    (result,) = asked
    if not isinstance(result, EndpointResult) or result.access == "text":
        why = "is of the text" if isinstance(result, EndpointResult) else "read along probes, and asked nothing"
        raise _NothingNewError(f"the test '{MARK}' {why}")
    return text_test(
        _there(given.mark, "mark"),
        result.log,
        reference=given.reference,
        unmarked_prompts=result.unmarked,
        alpha=alpha,
        tokenizer=given.tokenizer,
        progress=progress,
    )


def _shares(given: Given, progress: Stages) -> Iterator[tuple[str, float]]:
    """The controls whose weights can be read, and how like the teacher each is; from the record if known."""
    teacher = _there(given.teacher, "teacher")
    ours = model_digest(teacher) if given.readings and given.controls else ""
    for i, control in enumerate(given.controls):
        log = _log(given, f"weights.control{i}.json")
        run = "" if log is None else hashlib.sha256(f"{ours} {model_digest(control)} {given.seed}".encode()).hexdigest()
        share = None if log is None or not log.exists() else _known_share(log, run)
        if share is None:
            try:
                with progress(on("matching", control), "layers") as update:
                    share = compare(teacher, control, given.seed, update).share
            except ModelError:
                continue
            if log is not None:
                with files.writing(log):
                    files.replace(log, (json.dumps({"share": share, "run": run}) + "\n").encode())
        yield str(control), share


def _known_share(log: Path, run: str) -> float | None:
    """The share that was noted for this very pair; None if the file is of another, or no such note."""
    try:
        known = load_object(log)
        return float(known["share"]) if known["run"] == run else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _agreement(given: Given, alpha: float, progress: Stages) -> Result:
    def compared(top: int) -> Result:
        return agreement_test(
            _there(given.teacher, "teacher"),
            given.asked,
            given.controls,
            given.prompts,
            base=given.base,
            top=top,
            chat=given.access.kind == kinds.ENDPOINT,
            record=_log(given, "agreement" if top == TOP_TOKENS else "agreement.greedy"),
            alpha=alpha,
            progress=progress,
        )

    try:
        return compared(TOP_TOKENS)
    except NoLogprobsError:  # then what it writes is compared, as the plan says
        return compared(1)


def _log(given: Given, name: str) -> Path | None:
    return None if given.readings is None else given.readings / name


def _there(value: T | None, name: str) -> T:
    """What a planned test needs: the plan made sure that it was given."""
    if value is None:
        raise StillmarkError(f"this test needs a `{name}`")
    return value
