"""A plan for a single test: what one call tests, and how, fixed beforehand by the same kind of plan as a verdict's.

It follows from the arguments of the call, but for the suspect, which is not read, and for what changes no number: marks
by commitment, other files and models by digest, words and numbers as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, Protocol, Self, TypeVar

from verify.calls import check_alpha
from verify.lineage.plan import LineagePlan, Planned
from verify.suspects.endpoint import Endpoint, without_keys
from verify.suspects.model import is_loaded
from watermark import Mark, UsageError, __version__
from watermark.io import files
from watermark.mark import as_mark
from watermark.models import model_digest

PathLike = str | Path

SUSPECT: Final = frozenset({"outputs", "suspect", "endpoint", "paths"})
"""Parameters that name the suspect."""
MARKS: Final = frozenset({"mark", "mark_path", "order"})
WORDS: Final = frozenset({"method", "access", "source_column"})
"""Parameters whose strings are words; all other strings are paths."""
UNPLANNED: Final = frozenset({
    "alpha", "allow_readable", "batch_size", "encoder", "log", "out", "progress", "record", "tokenizer", "workers",
})  # fmt: skip
"""Parameters that change no number, or are in the plan elsewhere."""
UNASKED: Final = frozenset({"base_url", "model", "timeout", "retries", "concurrency"})
"""What of an endpoint says where it is, and not how it is asked."""


class Held(Protocol):
    """A result that says under which plan it came about."""

    def under(self, planned: Planned) -> Self: ...


P = ParamSpec("P")
R = TypeVar("R", bound=Held)


def plan_test(test: Callable[P, Any], *arguments: P.args, **named: P.kwargs) -> LineagePlan:
    """What a public test would do with these arguments, and at which level; the suspect is not read.

    Publish the digest of the plan, with a date that others can confirm, before anybody looks at the suspect.

    Args:
        test: `verify.text_test`, `logprob_test`, `endpoint_test`, `corpus_test`, `weights_test`, `agreement_test`,
            `planted_test` or `canary_test`.
        arguments, named: as for the test.

    Raises:
        UsageError: something that was named is only in memory, and has no digest.
        StillmarkError: a file that was named cannot be read.

    Example:
        >>> import verify
        >>> plan = verify.plan_test(verify.text_test, "teacher.mark", "outputs.jsonl", alpha=1e-4)  # doctest: +SKIP
        >>> plan.fix("plan.json"), plan.digest  # doctest: +SKIP
    """
    bound = inspect.signature(test).bind(*arguments, **named)
    bound.apply_defaults()
    given = bound.arguments
    check_alpha(given["alpha"])
    inputs: dict[str, str] = {}
    settings: dict[str, Any] = {"version": __version__}
    for name, value in given.items():
        if isinstance(value, Endpoint):
            asked = asdict(value) | {"extra": without_keys(value.extra)}
            settings |= {key: one for key, one in asked.items() if key not in UNASKED}
        elif name in MARKS and value is not None:
            inputs["mark"] = _mark(value, readable=given.get("allow_readable") is True).commitment
        elif name not in SUSPECT | UNPLANNED:
            if value is None or isinstance(value, bool | int | float) or name in WORDS or isinstance(value, Mapping):
                settings[name] = dict(value) if isinstance(value, Mapping) else value
            else:
                inputs |= dict(_digests(name, value))
    return LineagePlan((test.__name__,), given["alpha"], inputs, settings)


def under_plan(test: Callable[P, R], plan: PathLike, *, deviate: bool = False) -> Callable[P, R]:
    """A public test that is held to a plan.

    Args:
        test: as for `plan_test`.
        plan: file of the plan: written if not there, which the result says; else it must hold this very plan.
        deviate: it may hold another plan: the result names every deviation from it.

    Returns:
        the test. It raises InputError where it deviates, before the suspect is read.

    Example:
        >>> import verify
        >>> verify.under_plan(verify.text_test, "plan.json")("teacher.mark", "outputs.jsonl")  # doctest: +SKIP
    """

    @wraps(test)
    def held(*arguments: P.args, **named: P.kwargs) -> R:
        fixed = plan_test(test, *arguments, **named)
        promised, before, deviations = fixed.held_to(Path(plan), deviate=deviate)
        return test(*arguments, **named).under(Planned(promised.digest, before, tuple(deviations)))

    return held


def _mark(value: Any, *, readable: bool) -> Mark:
    return Mark.load(value, allow_readable=True) if readable and isinstance(value, str | Path) else as_mark(value)


def _digests(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Of one file or model, or of several; none has no digest."""
    several = [value] if isinstance(value, str | Path) or is_loaded(value) else value
    if not isinstance(several, list | tuple):
        raise UsageError(f"`{name}` is only in memory, and a plan holds digests of files", "name its file")
    for number, one in enumerate(several):
        here = name if len(several) == 1 else f"{name} {number}"
        if is_loaded(one) or (isinstance(one, str | Path) and Path(one).is_dir()):
            yield here, model_digest(one)
        elif isinstance(one, str | Path):
            yield here, files.sha256(Path(one))
        else:
            raise UsageError(f"`{name}` is only in memory, and a plan holds digests of files", "name its file")
