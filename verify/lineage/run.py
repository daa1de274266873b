"""One call for "what happened?": recognise the suspect, fix the plan, make every test that it allows, conclude."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from verify.calls import call_of, check_alpha
from verify.data.columns import Columns
from verify.data.outputs import Outputs
from verify.evidence.report import read_result, write_report
from verify.evidence.scored import scored_of
from verify.evidence.standing import standing_of
from verify.lineage import access as kinds
from verify.lineage.access import recognise
from verify.lineage.advice import advice
from verify.lineage.folder import CARD, PAIRS, PAIRS_FORMAT, PLAN, PROMISED, STAMP, STARTED
from verify.lineage.given import Given, check_usage, lines_of, plan_of, planned_of, unplanned_of
from verify.lineage.making import run_planned, tests_of
from verify.lineage.plan import (
    LineagePlan,
    Planned,
    kept_as,
)
from verify.lineage.verdict import PlannedTest, Verdict, adjusted
from verify.progress import Stages, silent
from verify.radioactivity.logprobs import WeightedResult
from verify.radioactivity.sequential import SequentialResult
from verify.radioactivity.text import TextResult
from verify.results import Result
from verify.suspects.endpoint import Endpoint
from verify.suspects.interview import check_prices
from verify.suspects.model import Model
from watermark import InputError, Mark, UsageError
from watermark.io import files
from watermark.mark import as_mark

PathLike = str | Path


_PLANNED: Final = "planned before\n"
"""Below the time at which a run began."""


def suspect(
    what: Any,
    *,
    mark: Mark | PathLike | Sequence[Mark | PathLike] | None = None,
    teacher: PathLike | None = None,
    reference: Model | None = None,
    controls: Sequence[PathLike] = (),
    base: PathLike | None = None,
    probes: PathLike | Sequence[PathLike] | Outputs | None = None,
    prompts: PathLike | None = None,
    unmarked_probes: bool | None = None,
    unmarked_prompts: bool | None = None,
    planted: int | None = None,
    canaries: PathLike | None = None,
    ordered: bool = False,
    model: str | None = None,
    budget: int = 50_000,
    budget_usd: float | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    alpha: float = 1e-3,
    seed: int = 0,
    tokenizer: PathLike | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    plan: PathLike | None = None,
    deviate: bool = False,
    out: PathLike | None = None,
    confidential: bool = False,
    progress: Stages = silent,
) -> Verdict:
    """What happened to the teacher, by every test that what was given allows; the p-values are adjusted over all tests.

    The plan follows from the arguments alone, before the suspect is read. Probes and prompts that cannot carry any mark
    come with the package and are used where none are named.

    Args:
        what: the suspect: recorded outputs or log probabilities (one file or several, or a folder of them), a folder of
            weights or a loaded `(model, tokenizer)`, or the http(s):// address of an endpoint.
        mark: the mark, or its file; or several, each of which is tested for, with its own tokenizer.
        teacher: folder of the teacher's weights; the suspect's weights are compared with it.
        reference: a model that does not depend on the secret: the test for the mark takes much less evidence.
        controls: folders of unrelated models, for the agreement of likely tokens; 19 are needed for a lead.
        base: folder of the suspect's own base, for agreement.
        probes: texts to read along; None: those of the package. An endpoint that tells the log probabilities of a
            prompt's tokens is read along them only where they are named; one that does not is asked.
        prompts: what to ask an endpoint, and for agreement; None: those of the package.
        unmarked_probes, unmarked_prompts: nobody who wrote them knew the secret or copied marked text; None: as the
            probes say, and for prompts only where they come with the package.
        planted: number of planted answers that the teacher carries; they are asked.
        canaries: all candidates of the canaries that were chosen by the mark.
        ordered: the teacher was released in the mark's order; `teacher` is the model from before.
        model: the name by which the endpoint knows the suspect; None: the one that it serves.
        budget: billed tokens to spend at an endpoint, for the mark.
        budget_usd: what they may cost; needs a price.
        price_in, price_out: of a million prompt tokens, and of a million answer tokens.
        alpha: family-wise level of the verdict, fixed before looking.
        seed: of every draw that is not keyed.
        tokenizer: folder of the mark's tokenizer, if not where the mark says.
        columns: where the fields are in recorded outputs of no known shape: `{"prompt": "question", "output": "text"}`.
        skip_bad: count malformed records instead of stopping at the first.
        plan: file of the plan: written if not there, else it must hold this very plan.
        deviate: the plan in that file may be another one: the result names every deviation from it.
        out: folder to keep the plan, what was read (a killed run goes on from there), `result.json`, `report.html`, and
            what `verify.make_bundle` needs in. For an endpoint None means a folder named after the host: answers cost
            money.
        confidential: leave passages of the suspect's text and single pairs out of the result and the report.
        progress: opened around each piece of work.

    Raises:
        StillmarkError: something that was named cannot be read, or the plan is another one.

    Example:
        >>> import verify
        >>> verdict = verify.suspect("suspect/", mark="teacher.mark")  # doctest: +SKIP
        >>> print(verdict)  # doctest: +SKIP
    """
    given_arguments = dict(locals())
    given, fixed, unplanned, folder = _prepared(given_arguments)
    access = given.access
    if deviate and plan is None:
        raise UsageError("`deviate` is from a `plan`", "name its file")
    if folder is not None:
        with files.writing(folder):
            (folder / "readings").mkdir(parents=True, exist_ok=True)
        fixed.fix(folder / PLAN)
    started, before = _started(folder, None if plan is None else Path(plan))
    promised, deviations = None, list[str]()
    if plan is not None:
        promised, _, deviations = fixed.held_to(Path(plan), deviate=deviate)
        if folder is not None:
            promised.fix(folder / PROMISED)
            if (stamp := Path(f"{plan}.tsr")).exists():
                with files.writing(folder / STAMP):
                    files.replace(folder / STAMP, stamp.read_bytes())
    planned = Planned(fixed.digest if promised is None else promised.digest, before, tuple(deviations))
    lines = adjusted(fixed, run_planned(fixed, tests_of(given, fixed, progress), planned))
    made = [line.result for line in lines if line.result is not None]
    read_as = [str(result.inputs["read_as"]) for result in made if result.inputs.get("read_as")]
    notes = [f"The records were read as {one}." for one in dict.fromkeys(read_as)]
    notes += [f"{line.name}: {note}" for line in lines if line.result is not None for note in line.result.warnings]
    found = Verdict(
        suspect=access.shown,
        access=access.kind,
        teacher=None if given.teacher is None else str(given.teacher),
        plan=fixed,
        promised=promised,
        deviations=tuple(deviations),
        started=started,
        lines=lines,
        keyed=ordered,
        own_writing=_own_writing(access.kind, made),
        unplanned=unplanned,
        notes=(*given.notes, *notes),
        out=None if folder is None else str(folder),
        confidential=confidential,
        call=call_of(suspect, given_arguments, _digests(given)),
    )
    found = replace(found, next=advice(found, given.marks, reference=reference is not None))
    if folder is not None:
        with files.writing(folder / "result.json"):
            files.replace(folder / "result.json", (json.dumps(found.to_dict(), indent=2) + "\n").encode())
        _keep(folder, given, lines)
        beside = standing_of(folder)
        write_report(read_result(folder), folder / "report.html", confidential=confidential, standing=beside)
        found = replace(found, standing=beside.checks)
    return found


def _started(folder: Path | None, plan: Path | None) -> tuple[str, bool]:
    """When the run began, UTC, as ISO 8601 has it, and whether the file of its plan was there by then.

    A run that goes on began when its folder was made: who is killed and calls again has planned nothing more.
    """
    now, before = datetime.now(UTC).isoformat(timespec="seconds"), plan is not None and plan.exists()
    if folder is None:
        return now, before
    path = folder / STARTED
    with files.writing(path), suppress(FileExistsError):
        files.create(path, f"{now}\n{_PLANNED if before else ''}".encode())
    found, _, planned = path.read_text().partition("\n")
    try:
        datetime.fromisoformat(found)
    except ValueError:
        raise InputError(path, 1, "want the time at which the run began", "choose another folder") from None
    return found, planned == _PLANNED


def _keep(folder: Path, given: Given, lines: Sequence[PlannedTest]) -> None:
    """Keep what a bundle of the evidence holds besides: the marks' cards, and the pairs of each test that has some."""
    scored = {line.name: scored_of(line.result) for line in lines if line.result is not None}
    pairs = {name: one.to_dict() for name, one in scored.items() if one is not None}
    kept = {PAIRS: json.dumps({"format": PAIRS_FORMAT, "tests": pairs}) + "\n"}
    for line, mark in given.marks.items():
        kept[kept_as(list(given.marks), line) + CARD] = json.dumps(mark.card(), indent=1) + "\n"
    for name, text in kept.items():
        with files.writing(folder / name):
            files.replace(folder / name, text.encode(), private=name == PAIRS)


def make_plan(what: Any, **arguments: Any) -> LineagePlan:
    """What `suspect` would test with these arguments, and at which level; the suspect is recognised, and not read.

    Publish the digest of the plan, with a date that others can confirm, before you look at the suspect.

    Args:
        what: the suspect.
        arguments: those of `suspect`.

    Raises:
        StillmarkError: something that was named cannot be read, or nothing can be tested with it.

    Example:
        >>> import verify
        >>> plan = verify.make_plan("suspect/", mark="teacher.mark")  # doctest: +SKIP
        >>> plan.fix("plan.json"), plan.digest  # doctest: +SKIP
    """
    bound = inspect.signature(suspect).bind(what, **arguments)
    bound.apply_defaults()
    return _prepared(bound.arguments)[1]


def _prepared(arguments: Mapping[str, Any]) -> tuple[Given, LineagePlan, dict[str, str], Path | None]:
    """The arguments of `suspect` made ready, the plan, the tests that are not planned, and the folder of `out`."""
    named = dict(arguments)
    access = recognise(named.pop("what"), named["columns"])
    model, out = named["model"], named.pop("out")
    money = tuple(named[name] for name in ("budget_usd", "price_in", "price_out"))
    if access.kind == kinds.ENDPOINT:
        Endpoint(access.url, model or "").check(())
        check_prices(*money)
        out = out or f"stillmark-{access.shown.partition('://')[2].partition('/')[0].replace(':', '-')}"
    elif money != (None, None, None):
        raise UsageError("`budget_usd` and prices are for an endpoint", "leave them out")
    folder = None if out is None else Path(out)
    alpha = named.pop("alpha")
    check_alpha(alpha)
    for name in ("plan", "deviate", "confidential", "progress"):
        named.pop(name)
    for name in ("teacher", "base"):
        named[name] = None if named[name] is None else Path(named[name])
    named["marks"] = lines_of([as_mark(one) for one in _several(named.pop("mark"))])
    named["controls"] = tuple(map(Path, named["controls"]))
    given = Given(access=access, readings=None if folder is None else folder / "readings", **named)
    check_usage(given)
    unplanned = unplanned_of(given)
    planned = planned_of(given, unplanned)
    if not planned:
        why = "; ".join(f"{name}: {reason}" for name, reason in unplanned.items())
        first = "name the file of a `mark`. " if not given.marks else ""
        raise UsageError("nothing can be tested with this", f"{first}Not tested: {why}")
    return given, plan_of(given, planned, alpha), unplanned, folder


def _digests(given: Given) -> dict[str, str]:
    """SHA-256 of the suspect's files, which a folder may have named, and of what was read or answered."""
    kept = () if given.readings is None else sorted(given.readings.glob("*.jsonl"))
    return {str(path): files.sha256(path) for path in (*given.access.files, *kept)}


def _several(mark: Mark | PathLike | Sequence[Mark | PathLike] | None) -> Sequence[Mark | PathLike]:
    if mark is None:
        return ()
    return (mark,) if isinstance(mark, Mark | PathLike) else mark


def _own_writing(access: str, made: Sequence[Result]) -> bool:
    """Whether what was scored for the mark is the suspect's own writing, which a relay could have passed on."""
    if access in (kinds.TEXT, kinds.ENDPOINT):
        return True
    return any(
        isinstance(one, TextResult | SequentialResult) or (isinstance(one, WeightedResult) and one.sampled)
        for one in made
    )
