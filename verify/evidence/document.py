"""A result as it stands in JSON, checked, and in the shape in which a report shows it.

A report is made from the JSON alone, so that it can be made again later, by others, from `result.json`. Files come from
many hands: every value is held against the type that it should have.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from verify.words import OPTIONS
from watermark import StillmarkError

T = TypeVar("T")

REASONS: Final = {
    "short_context": "fewer tokens stand before it than the mark's width",
    "special_token": "a special token, which carries no mark",
    "prompt_context": "its context occurs in a prompt, which may carry the mark (rule 2)",
    "seen_context": "its context was shown before, in text that may carry the mark (rule 2)",
    "repeated_pair": "the pair was counted before: a distinct pair is one coin (rule 1)",
    "counted_pair": "an earlier answer had the pair: a distinct pair is one coin (rule 1)",
}
"""Why evidence is left out, by the name that results use."""

COMMANDS: Final = {
    "suspect": ("verify", "what"),
    "text_test": ("test text", "outputs"),
    "logprob_test": ("test logprobs", "suspect"),
    "endpoint_test": ("test logprobs", "log"),
    "corpus_test": ("test corpus", "paths"),
    "attribute": ("attribute", "outputs"),
    "weights_test": ("test weights", ""),
    "agreement_test": ("test agreement", ""),
    "planted_test": ("test planted", ""),
    "canary_test": ("test canaries", "candidates"),
}
"""A public function: the command that calls it, and the parameter that the command takes without an option."""

OTHER_OPTIONS: Final = {
    "mark_path": "--mark",
    "order": "--mark",
    "ordered": "--ordered",
    "seed": "--seed",
    "batch_size": "--batch-size",
    "confidential": "--confidential",
    "least": "--least",
    "source_column": "--source-column",
    "workers": "--workers",
    "halves": "--halves",
}


@dataclass(frozen=True)
class TestShown:
    """One test of a report.

    Attributes:
        name: what was tested, in a word or two.
        evidence: on how much evidence.
        log10_pvalue: log10 of its own p-value.
        log10_adjusted: the same after Holm's adjustment over all tests; None where it is the only one.
        stands: `yes`, `no`, or `no verdict` where a negative answer says nothing.
        alpha: the level that it is held against.
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
        return _text(self.result, name, "")

    @property
    def rows(self) -> dict[str, str]:
        """Names and values, as the command prints them."""
        rows = _object(_object(self.result, "summary", {}), "rows", {})
        return {name: _is(value, str, name) for name, value in rows.items()}

    @property
    def discarded(self) -> list[tuple[str, int]]:
        """What was left out: why, and how much."""
        counts = _object(self.result, "discarded", {})
        kept = {name: _is(value, int, name) for name, value in counts.items()}
        return [(REASONS.get(name, name.replace("_", " ")), count) for name, count in kept.items() if count]

    @property
    def warnings(self) -> list[str]:
        """What a reader should know."""
        return _texts(self.result, "warnings")

    @property
    def passages(self) -> list[Mapping[str, Any]]:
        """The greenest stretches of text, each with `record`, and its tokens in `spans`: pairs of text and colour."""
        found: list[Mapping[str, Any]] = []
        for one in _list(_object(self.result, "detail", {}), "passages"):
            one = _is(one, dict, "a passage")
            pieces, green = _texts(one, "pieces"), _list(one, "green")
            if len(pieces) != len(green) or any(colour not in (True, False, None) for colour in green):
                raise StillmarkError("a passage has not one colour a token", WANTED)
            found.append({"record": _text(one, "record"), "spans": list(zip(pieces, green, strict=True))})
        return found

    @property
    def heaviest(self) -> list[Mapping[str, Any]]:
        """The heaviest pairs: `context`, `token`, `weight`, `green`, and what each `adds` to the sum."""
        gamma = _number(self.result, "gamma", 0.0)
        found: list[Mapping[str, Any]] = []
        for one in _list(_object(self.result, "detail", {}), "heaviest"):
            one = _is(one, dict, "a pair")
            weight, green = _number(one, "weight"), _is(one.get("green"), bool, "green")
            found.append({
                "context": _text(one, "context"),
                "token": _text(one, "token"),
                "weight": weight,
                "green": green,
                "adds": weight * (green - gamma),
            })  # fmt: skip
        return found


@dataclass(frozen=True)
class Document:
    """All that a report shows; see the template `report.html`.

    Attributes:
        title: the verdict.
        means, shows_not: what it says and what it does not, a sentence each.
        suspect: what was tested.
        tests: the tests that were made.
        not_tested: the others, and why.
        reasons, next, notes: a sentence each.
        alpha: level of the verdict.
        rule: how several tests make one verdict.
        inputs: SHA-256 (or commitment) of what went in, by name.
        plan: digest of the plan; empty where there was none.
        versions: of the packages.
        date: the day of the test; empty if it is not known.
        command: how to repeat it; empty if it is not known, or needs Python.
    """

    title: str
    means: str
    shows_not: list[str]
    suspect: str
    tests: list[TestShown]
    not_tested: list[tuple[str, str]]
    reasons: list[str]
    next: list[str]
    notes: list[str]
    alpha: float
    rule: str
    inputs: list[tuple[str, str]]
    plan: str
    versions: dict[str, str]
    date: str
    command: str


WANTED: Final = "name a result.json that `stillmark verify --out` wrote, or what a test printed with --json"
TEST_SHOWS_NOT: Final = [
    "It is one test. `stillmark verify` judges all tests that the evidence allows.",
    "It does not say how the text or the weights got there, who queried the teacher, or with which intent.",
]
NO_VERDICT: Final = "no verdict"
VERDICTS_MEAN: Final = {
    "carries the mark": "The evidence carries the mark: a secret drawn at random would hardly ever fit it so well.",
    "insufficient evidence": "This evidence does not show the mark. It is no proof that the mark is not there.",
    NO_VERDICT: "Nothing could be read. The test says nothing, for or against.",
}


def without_text(found: Any) -> Any:
    """A result, given as for JSON, without passages of text and single pairs, at any depth."""
    if isinstance(found, dict):
        return {name: [] if name in ("passages", "heaviest") else without_text(one) for name, one in found.items()}
    return [without_text(one) for one in found] if isinstance(found, list) else found


def document_of(found: Mapping[str, Any]) -> Document:
    """A result as it stands in JSON, checked: a verdict over several tests, or the result of one.

    Raises:
        StillmarkError: it is no result, or one of its values is of the wrong kind.
    """
    verdict = _text(found, "verdict")
    return _whole(found, verdict) if "tests" in found and "plan" in found else _single(found, verdict)


def _whole(found: Mapping[str, Any], verdict: str) -> Document:
    alpha = _level(found)
    tests = []
    for one in _list(found, "tests"):
        one = _is(one, dict, "a test")
        stands = "yes" if one.get("stands") is True else "no" if one.get("conclusive") is True else NO_VERDICT
        tests.append(
            TestShown(
                name=_text(one, "test"),
                evidence=_text(one, "evidence"),
                log10_pvalue=_log10(one, "log10_pvalue"),
                log10_adjusted=_log10(one, "log10_pvalue_adjusted"),
                stands=stands,
                alpha=alpha,
                result=_object(one, "result"),
            )
        )
    plan = _object(found, "plan")
    missing = [_is(one, dict, "a test") for one in _list(found, "not_tested")]
    reasons = _texts(found, "reasons")
    call = _object(found, "call", {}) if found.get("call") is not None else {}
    named = {name: _is(value, str, name) for name, value in _object(plan, "inputs", {}).items()}
    return Document(
        title=verdict,
        means=reasons[0] if reasons else "",
        shows_not=_texts(found, "shows_not"),
        suspect=_text(found, "suspect", ""),
        tests=tests,
        not_tested=[(_text(one, "test"), _text(one, "why")) for one in missing],
        reasons=reasons[1:],
        next=_texts(found, "next"),
        notes=_texts(found, "notes"),
        alpha=alpha,
        rule="Holm's adjustment over all tests that were made",
        inputs=[*named.items(), *_digests(call)],
        plan=_text(found, "plan_digest", ""),
        versions=_versions(call),
        date=_text(call, "date", ""),
        command=_command(found, call),
    )


def _single(found: Mapping[str, Any], verdict: str) -> Document:
    results = {"": found}
    rule = ""
    if "both" in found:  # of weights: an exact test, and one that survives shuffled units
        results = {"exact": found, "units shuffled": _object(found, "shuffled")}
        both = _object(found, "both")
        verdict, rule = _text(both, "verdict"), _text(both, "rule", "")
    call = _object(found, "call", {}) if found.get("call") is not None else {}
    name = _NAMES.get(_text(call, "function", ""), "test")
    alpha = _level(found)
    tests = []
    for part, result in results.items():
        log10 = _log10(result, "log10_pvalue")
        level = alpha / len(results)
        stands = "yes" if log10 <= math.log10(level) else "no" if result.get("conclusive") is True else NO_VERDICT
        tests.append(
            TestShown(
                name=f"{name}, {part}" if part else name,
                evidence=_text(_object(result, "summary", {}), "evidence", str(result.get("n", ""))),
                log10_pvalue=log10,
                log10_adjusted=None,
                stands=stands,
                alpha=level,
                result=result,
            )
        )
    mark = found.get("mark")
    named = [("mark", _text(mark, "commitment"))] if isinstance(mark, dict) else []
    return Document(
        title=verdict,
        means=VERDICTS_MEAN.get(verdict, ""),
        shows_not=TEST_SHOWS_NOT,
        suspect=_suspect(found, call),
        tests=tests,
        not_tested=[],
        reasons=[],
        next=[],
        notes=[],
        alpha=alpha,
        rule=rule,
        inputs=[*named, *_digests(call)],
        plan="",
        versions=_versions(call),
        date=_text(call, "date", ""),
        command=_command(found, call),
    )


_NAMES: Final = {
    "text_test": "mark, in text",
    "logprob_test": "mark, in log probabilities",
    "endpoint_test": "mark, at an endpoint",
    "corpus_test": "mark, in a corpus",
    "attribute": "whose mark",
    "weights_test": "weights",
    "agreement_test": "agreement",
    "planted_test": "planted answers",
    "canary_test": "canaries",
}


def _suspect(found: Mapping[str, Any], call: Mapping[str, Any]) -> str:
    named = found.get("suspect")
    if isinstance(named, str):
        return named
    arguments = _object(call, "arguments", {})
    for name in ("outputs", "suspect", "endpoint", "paths"):
        value = arguments.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return ", ".join(str(one) for one in value)
    return ""


def _command(found: Mapping[str, Any], call: Mapping[str, Any]) -> str:
    """The command that gives the numbers again; empty where something of the call was only in memory.

    An endpoint answers anew each time: there it is the test of the answers that were kept.
    """
    function, arguments = _text(call, "function", ""), dict(_object(call, "arguments", {}))
    if function not in COMMANDS:
        return ""
    name, bare = COMMANDS[function]
    if function == "logprob_test" and _is_folder(arguments.get("suspect")):
        name, bare = "test model", ""
    if function == "endpoint_test":
        text = found.get("access") == "text"
        name, bare = f"test {'text' if text else 'logprobs'}", "log"
        arguments = {key: arguments[key] for key in ("mark", "log", "reference", "alpha") if key in arguments}
        arguments["unmarked_prompts" if text else "unmarked_probes"] = found.get("unmarked_prompts") is True
    words, options = ["stillmark", *name.split()], OPTIONS | OTHER_OPTIONS
    for key, value in arguments.items():
        several = value if isinstance(value, list) else [value]
        if value is None or value is False:
            continue
        if any(isinstance(one, str) and one.startswith("(") for one in several):
            return ""
        if key == bare:
            words += [str(one) for one in several]
        elif key not in options:
            return ""
        elif value is True:
            words.append(options[key])
        else:
            for one in several:
                words += [options[key], f"{one:g}" if isinstance(one, float) else str(one)]
    return shlex.join(words)


def _is_folder(value: Any) -> bool:
    return isinstance(value, str) and "." not in value.rpartition("/")[2]


def _digests(call: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _is(value, str, name)) for name, value in _object(call, "digests", {}).items()]


def _versions(call: Mapping[str, Any]) -> dict[str, str]:
    return {name: _is(value, str, name) for name, value in _object(call, "versions", {}).items()}


def _is(value: Any, kind: type[T], name: str) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise StillmarkError(f"this is no result of Stillmark: '{name[:40]}' is no {_KINDS[kind]}", WANTED)
    return value


_LARGE: Final = 1e15
"""Larger numbers are in no result."""

_KINDS: Final[Mapping[type, str]] = {
    str: "text", int: "whole number", bool: "true or false", dict: "object", list: "list",
}  # fmt: skip


def _there(found: Mapping[str, Any], name: str) -> Any:
    if name not in found:
        raise StillmarkError(f"this is no result of Stillmark: it has no '{name}'", WANTED)
    return found[name]


def _text(found: Mapping[str, Any], name: str, default: str | None = None) -> str:
    return default if default is not None and name not in found else _is(_there(found, name), str, name)


def _number(found: Mapping[str, Any], name: str, default: float | None = None) -> float:
    if default is not None and name not in found:
        return default
    value = _there(found, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGE:
        raise StillmarkError(f"this is no result of Stillmark: '{name}' is no number", WANTED)
    return float(value)


def _log10(found: Mapping[str, Any], name: str) -> float:
    """log10 of a probability."""
    if (value := _number(found, name)) > 0:
        raise StillmarkError(f"this is no result of Stillmark: '{name}' is no probability", WANTED)
    return value


def _level(found: Mapping[str, Any]) -> float:
    if not 0 < (value := _number(found, "alpha")) < 1:
        raise StillmarkError("this is no result of Stillmark: 'alpha' is no level", WANTED)
    return value


def _object(found: Mapping[str, Any], name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    return default if default is not None and name not in found else _is(_there(found, name), dict, name)


def _list(found: Mapping[str, Any], name: str) -> list[Any]:
    return _is(found.get(name, []), list, name)


def _texts(found: Mapping[str, Any], name: str) -> list[str]:
    return [_is(one, str, name) for one in _list(found, name)]
