"""What `verify.suspect` was given: what can be tested with it, and the plan that follows from it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verify.data.columns import Columns
from verify.data.outputs import Outputs
from verify.data.shapes import Answers
from verify.fingerprint import independence
from verify.fingerprint.agreement import TOP_TOKENS
from verify.lineage import access as kinds
from verify.lineage.access import Access
from verify.lineage.plan import AGREEMENT, CANARIES, LINES, MARK, PLANTED, SHUFFLED, WEIGHTS, WRITTEN, LineagePlan
from verify.planning import builtin
from verify.radioactivity.sequential import LOOKS, MAX_FUTILE, MIN_TILT
from verify.radioactivity.tails import BINOMIAL
from verify.radioactivity.text import EXCESS
from verify.suspects.endpoint import Endpoint
from verify.suspects.model import Model
from watermark import InputError, Mark, ModelError, StillmarkError, UsageError
from watermark.io import files
from watermark.models import model_digest

PathLike = str | Path


@dataclass(frozen=True, kw_only=True)
class Given:
    """What `suspect` was given, made ready; its attributes are the arguments of that function.

    marks: the marks, by the line of the plan that tests for each.
    """

    access: Access
    marks: dict[str, Mark]
    teacher: Path | None
    reference: Model | None
    controls: tuple[Path, ...]
    base: Path | None
    probes: PathLike | Sequence[PathLike] | Outputs | None
    prompts: PathLike | None
    unmarked_probes: bool | None
    unmarked_prompts: bool | None
    planted: int | None
    canaries: PathLike | None
    ordered: bool
    model: str | None
    budget: int
    budget_usd: float | None
    price_in: float | None
    price_out: float | None
    seed: int
    tokenizer: PathLike | None
    skip_bad: bool
    readings: Path | None
    columns: Columns | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def mark(self) -> Mark | None:
        """The mark, where there is one and no more."""
        return next(iter(self.marks.values())) if len(self.marks) == 1 else None

    @property
    def endpoint(self) -> Endpoint:
        """The suspect's endpoint, under the name that was given; each test asks for the one that it serves if not."""
        return Endpoint(self.access.url, self.model or "")

    @property
    def weights(self) -> Model:
        """The suspect's weights, where the plan has a test that needs them."""
        if self.access.model is None:
            raise StillmarkError("this test needs the suspect's weights")
        return self.access.model

    @property
    def asked(self) -> Model | Endpoint:
        """What can be asked: the weights, or the endpoint."""
        return self.endpoint if self.access.kind == kinds.ENDPOINT else self.weights


def lines_of(marks: Sequence[Mark]) -> dict[str, Mark]:
    """Some marks by the line that tests for each: `mark`, or `mark NAME` of several, by label or file.

    Raises:
        UsageError: a mark is there twice.
    """
    if len({mark.commitment for mark in marks}) < len(marks):
        raise UsageError("a `mark` was named twice", "name each mark once")
    if len(marks) == 1:
        return {MARK: marks[0]}
    found: dict[str, Mark] = {}
    for number, mark in enumerate(marks, 1):
        name = mark.label or (Path(mark.file).stem if mark.file else str(number))
        line = f"{MARK} {name}"
        found[line if line not in found else f"{line} ({number})"] = mark
    return found


def check_usage(given: Given) -> None:
    """Raises UsageError where something was named that no test can use: nothing that was named is left out silently."""
    kind, keyed = given.access.kind, {"planted": given.planted, "canaries": given.canaries, "ordered": given.ordered}
    for name, value in keyed.items():
        if value and given.mark is None:
            raise UsageError(
                f"`{name}` needs the `mark` whose secret chose", "one, and no more" if given.marks else None
            )
    if len(given.marks) > 1 and kind == kinds.ENDPOINT:
        raise UsageError("an endpoint is asked for one `mark` at a time", "or keep its answers, and test them for all")
    if given.canaries is not None and kind != kinds.WEIGHTS:
        raise UsageError("`canaries` need the suspect's weights")
    if given.planted is not None and kind not in (kinds.WEIGHTS, kinds.ENDPOINT):
        raise UsageError("`planted` answers need a suspect that can be asked")
    if given.ordered and (given.teacher is None or given.access.folder is None):
        raise UsageError("`ordered` compares the folders of a `teacher` and of the suspect")
    if given.controls and given.teacher is None:
        raise UsageError("`controls` are held against a `teacher`")
    if given.probes is not None and kind not in (kinds.WEIGHTS, kinds.ENDPOINT):
        raise UsageError("`probes` are read by a suspect whose weights are at hand, or through an endpoint")
    if given.prompts is not None and kind != kinds.ENDPOINT and not given.controls:
        raise UsageError("`prompts` are asked of an endpoint, or for agreement with `controls`")
    if given.columns is not None and kind not in (kinds.TEXT, kinds.LOGPROBS):
        raise UsageError("`columns` are those of recorded outputs")
    if given.model is not None and kind != kinds.ENDPOINT:
        raise UsageError("`model` is the name by which an endpoint knows the suspect")


def unplanned_of(given: Given) -> dict[str, str]:
    """The tests that what was given does not allow, and why."""
    why: dict[str, str] = {}
    access, no_mark = given.access, "no mark was named; name a `mark`"
    weights = access.kind == kinds.WEIGHTS
    for name in (WEIGHTS, SHUFFLED):
        if access.folder is None:
            why[name] = "the suspect's weights are not at hand" if not weights else "a loaded model has no files"
        elif given.teacher is None:
            why[name] = "no teacher was named; name a `teacher`"
    if not given.marks:
        why[MARK] = no_mark
    if given.planted is None:
        why[PLANTED] = "no planted answers were named"
    if given.canaries is None:
        why[CANARIES] = "no canaries were named"
    if not given.controls:
        why[AGREEMENT] = "it needs a `teacher` and `controls`"
    elif access.kind not in (kinds.WEIGHTS, kinds.ENDPOINT):
        why[AGREEMENT] = "recorded text cannot be asked"
    return {name: why[name] for name in LINES if name in why}


def planned_of(given: Given, unplanned: Mapping[str, str]) -> list[str]:
    """The lines of the plan: all tests but some.

    What an endpoint writes is tested beside what it says of next tokens: a server may tell log probabilities from
    before a mark that it adds itself, as vLLM does.
    """
    written = given.access.kind == kinds.ENDPOINT and MARK not in unplanned
    planned = [name for name in LINES if name not in unplanned and (name != WRITTEN or written)]
    return [line for name in planned for line in (given.marks if name == MARK else (name,))]


def plan_of(given: Given, lines: Sequence[str], alpha: float) -> LineagePlan:
    """What will be tested. Reads everything but the suspect."""
    named: dict[str, Model | None] = {"teacher": given.teacher, "reference": given.reference, "base": given.base}
    named |= {f"control {i}": path for i, path in enumerate(given.controls)}
    for path in (*named.values(), given.access.folder):
        if isinstance(path, str | Path) and not Path(path).is_dir():
            raise ModelError(f"{path}: no such model directory", "name a directory that save_pretrained wrote")
    if given.canaries is not None and (number := sum(1 for _ in Answers(Path(given.canaries)))) % 2:
        what = f"holds {number} outputs"
        raise InputError(given.canaries, 0, what, "half of them are served: want an even number")
    inputs = {name: model_digest(model) for name, model in named.items() if model is not None}
    texts = {"prompts": given.prompts, "canaries": given.canaries}
    probes = given.probes if not isinstance(given.probes, Outputs) else None
    several = [probes] if isinstance(probes, str | Path) else list(probes or ())
    texts |= {"probes" if len(several) == 1 else f"probes {i}": path for i, path in enumerate(several)}
    inputs |= {name: files.sha256(Path(path)) for name, path in texts.items() if path is not None}
    inputs |= {line: mark.commitment for line, mark in given.marks.items()}
    inputs["calibration"] = files.sha256(Path(independence.__file__).with_name("independent.json"))
    package = Path(builtin.__file__)
    if given.probes is None and given.access.kind == kinds.WEIGHTS and MARK in lines:
        inputs["probes of the package"] = files.sha256(package.with_name("answers.json"))
    if given.prompts is None and given.access.kind == kinds.ENDPOINT and MARK in lines:
        inputs["prompts of the package"] = files.sha256(package.with_name("questions.py"))
    settings: dict[str, Any] = {
        "version": importlib.metadata.version("stillmark"),
        "access": given.access.kind,
        "seed": given.seed,
        "unmarked_probes": given.unmarked_probes,
        "unmarked_prompts": given.unmarked_prompts,
        "ordered": given.ordered,
        "planted": given.planted,
        "top": TOP_TOKENS,
        "top_without_logprobs": 1,
        "adjustment": "Holm, over the tests with a result",
        "decoys": max((mark.scheme.decoys for mark in given.marks.values()), default=0),
    }
    if given.access.kind in (kinds.TEXT, kinds.LOGPROBS):
        settings["method"] = BINOMIAL if given.reference is None else EXCESS
    if given.access.kind == kinds.ENDPOINT:
        how = "chat completions" if given.probes is None else "completions along probes, or else chat completions"
        settings |= {"budget_tokens": given.budget, "endpoint": how, "model": given.model}
        settings |= {"budget_usd": given.budget_usd, "price_in": given.price_in, "price_out": given.price_out}
        settings["stopping"] = {"futility": MAX_FUTILE, "least": MIN_TILT, "looks": len(LOOKS)}
    if given.columns is not None:
        settings["columns"] = dict(given.columns)
    return LineagePlan(tuple(lines), alpha, inputs, settings)
