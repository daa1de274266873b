"""A result as it stands in JSON, checked, and in the shape in which a report shows it.

A report is made from the JSON alone, so that it can be made again later, by others, from `result.json`. Files come from
many hands: every value is held against the type that it should have.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, TypeVar

from verify.fingerprint import AGREES, DEPENDENT, KNOWS, MATCHED, SAW
from verify.words import CARRIES, INSUFFICIENT, NO_VERDICT, OPTIONS
from watermark import StillmarkError

T = TypeVar("T")

REASONS: Final = {
    "short_context": "fewer tokens stand before it than the mark's width",
    "special_token": "a special token, which carries no mark",
    "prompt_context": "its context occurs in a prompt, which may carry the mark (rule 2)",
    "seen_context": "its context was shown before, in text that may carry the mark (rule 2)",
    "repeated_pair": "the pair was counted before: a distinct pair counts once (rule 1)",
    "counted_pair": "an earlier answer had the pair: a distinct pair counts once (rule 1)",
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
    "allow_readable": "--allow-readable-mark",
    "chat": "--chat",
    "ordered": "--ordered",
    "seed": "--seed",
    "batch_size": "--batch-size",
    "least": "--least",
    "source_column": "--source-column",
    "workers": "--workers",
    "halves": "--halves",
}
"""Parameters that no text of the library names, or by another option: `chat` is one of `test agreement` here."""

NO_OPTION: Final = {"test logprobs": {"record"}, "test model": {"columns"}}
"""Parameters for which a command has no option: they change no number there."""

SHOWN: Final = 200
"""Names and values, at most, in one table of a page; the JSON has all."""

MOST: Final = 1000
"""Sentences, tokens or pairs in one list of a result."""

LONGEST: Final = 4000
"""Characters of a command that a page shows."""


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
        return _text(self.result, name, "")

    @property
    def rows(self) -> dict[str, str]:
        """Names and values, as the command prints them."""
        rows = _object(_object(self.result, "summary", {}), "rows", {})
        shown = {name: _is(value, str, name) for name, value in islice(rows.items(), SHOWN)}
        return shown | ({"and more": f"{len(rows) - SHOWN:,} more lines, in the JSON"} if len(rows) > SHOWN else {})

    @property
    def discarded(self) -> list[tuple[str, int]]:
        """What was left out: why, and how much."""
        counts = _object(self.result, "discarded", {})
        kept = {name: int(_number(counts, name)) for name in islice(counts, SHOWN)}
        return [(REASONS.get(name, name.replace("_", " ")), count) for name, count in kept.items() if count]

    @property
    def warnings(self) -> list[str]:
        """What a reader should know."""
        return _texts(self.result, "warnings")

    @property
    def coins(self) -> int:
        """How many coins a pair has under the mark's scheme."""
        return int(_number(self.result, "coins", 1.0))

    @property
    def passages(self) -> list[Mapping[str, Any]]:
        """The greenest stretches of text, each with `record`, and its tokens in `spans`: pairs of text and colour."""
        found: list[Mapping[str, Any]] = []
        for one in _list(_object(self.result, "detail", {}), "passages", most=20):
            one = _is(one, dict, "a passage")
            pieces, green = _texts(one, "pieces"), _list(one, "green")
            if len(pieces) != len(green) or any(colour not in (True, False, None) for colour in green):
                raise StillmarkError("a passage has not one colour a token", WANTED)
            found.append({"record": _text(one, "record"), "spans": list(zip(pieces, green, strict=True))})
        return found

    @property
    def heaviest(self) -> list[Mapping[str, Any]]:
        """The heaviest pairs: `context`, `token`, `weight`, `green` in words, and what each `adds` to the sum."""
        gamma, coins = _number(self.result, "gamma", 0.0), self.coins
        found: list[Mapping[str, Any]] = []
        for one in _list(_object(self.result, "detail", {}), "heaviest"):
            one = _is(one, dict, "a pair")
            weight, green = _number(one, "weight"), _is(one.get("green"), bool, "green")
            hits = int(_number(one, "hits", float(green)))
            found.append({
                "context": _text(one, "context"),
                "token": _text(one, "token"),
                "weight": weight,
                "green": ("yes" if green else "no") if coins == 1 else f"{hits} of {coins}",
                "adds": weight * (hits - coins * gamma),
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
        promised: digest of the plan that was promised; empty where none was.
        deviations: where the plan differs from that one, a sentence each.
        bundle: of the bundle that the result comes from its SHA-256 and the keys that it names; empty: it is from none.
        versions: of the packages.
        date: the day of the test; empty if it is not known.
        command: how to repeat it; empty if it is not known, needs Python, or is too long to show.
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
    promised: str = ""
    deviations: tuple[str, ...] = ()
    bundle: tuple[tuple[str, str], ...] = ()


WANTED: Final = "name a result.json that `stillmark verify --out` wrote, or what a test printed with --json"
TEST_SHOWS_NOT: Final = [
    "It looks at one kind of evidence. The command 'stillmark verify' makes all tests that are possible, and judges "
    "them together.",
    "It does not say how the evidence came about, who queried the teacher, or with which intent.",
]
NOT_COUNTED: Final = "not counted"
VERDICTS_MEAN: Final = {
    CARRIES: "The evidence carries the mark: a secret drawn at random fits so well no more often than the p-value "
    "says.",
    NO_VERDICT: "Nothing could be read. The test says nothing, for or against.",
    "attributed": "The text carries the marks of the labels that are named below. It shows that text with these marks "
    "was used, and not who used it.",
    "none": "No label's mark was found in the text. It is no proof that none is there.",
    "ambiguous": "All labels together show that some label's mark is in the text, and no single one can be told: this "
    "names nobody.",
    DEPENDENT: "The hidden units of both models match in the order of the teacher: the suspect's weights depend on the "
    "teacher's, or one of the assumptions below is wrong.",
    MATCHED: "The hidden units of both models match, and not in one order: a copy whose units were shuffled looks like "
    "this. The test is calibrated on small models, and not exact.",
    AGREES: "The suspect's likeliest tokens are more like the teacher's than those of every control. This is a lead, "
    "and no proof.",
    KNOWS: "The suspect gives the planted answers more often than chance explains.",
    SAW: "The suspect finds the served outputs likelier than those that were kept back.",
}
LOOKS_FOR: Final = {
    "weights_test": "that the suspect's weights depend on the teacher's",
    "agreement_test": "that the suspect is more like the teacher than every control is",
    "planted_test": "that the suspect knows the planted answers",
    "canary_test": "that the suspect was trained on the served outputs",
}
"""What a test without a mark in the text looks for, by its function."""


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
    for one in _list(found, "tests", most=20):
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
        tests=_held(tests, alpha),
        not_tested=[(_text(one, "test"), _text(one, "why")) for one in missing],
        reasons=reasons[1:],
        next=_texts(found, "next"),
        notes=_texts(found, "notes"),
        alpha=alpha,
        rule="Holm's adjustment over all tests that were made",
        inputs=_first({**named, **_digests(call)}),
        plan=_text(found, "plan_digest", ""),
        versions=_versions(call),
        date=_text(call, "date", ""),
        command=_command(found, call),
        promised=_text(found, "promised_digest", "") if found.get("promised_digest") is not None else "",
        deviations=tuple(_texts(found, "deviations")),
        bundle=_bundle(found),
    )


def _bundle(found: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    bundle = _object(found, "bundle", {})
    keys = [("the key that is said to have signed it", one) for one in _texts(bundle, "signed_by")]
    return (("the bundle that this page was made of", _text(bundle, "sha256")), *keys[:SHOWN]) if bundle else ()


def _held(tests: Sequence[TestShown], alpha: float) -> list[TestShown]:
    """Several tests, each with the level that Holm's adjustment leaves to its own p-value: alpha over the number of
    tests less those that stand by a smaller one."""
    stand = sorted(test.log10_pvalue for test in tests if test.stands == "yes")
    before = [sum(one < test.log10_pvalue for one in stand) for test in tests]
    return [replace(test, alpha=alpha / (len(tests) - number)) for test, number in zip(tests, before, strict=True)]


def _single(found: Mapping[str, Any], verdict: str) -> Document:
    alpha = _level(found)
    results, rule = {"": (found, alpha)}, ""
    if "both" in found:  # of weights: an exact test, and one that survives shuffled units
        both, keyed = _object(found, "both"), found.get("keyed") is not None
        verdict, rule = _text(both, "verdict"), _text(both, "rule", "")
        level = alpha if keyed else alpha / 2
        results = {"exact": (found, level), "units shuffled": (_object(found, "shuffled"), 0.0 if keyed else level)}
    call = _object(found, "call", {}) if found.get("call") is not None else {}
    function = _text(call, "function", "")
    name = _NAMES.get(function, "test")
    looks_for = LOOKS_FOR.get(function, "the mark" if "gamma" in found else "what the test looks for")
    means = VERDICTS_MEAN | {INSUFFICIENT: f"This evidence does not show {looks_for}. It is no proof of the opposite."}
    tests = []
    for part, (result, level) in results.items():
        log10 = _log10(result, "log10_pvalue")
        if not level:
            stands = NOT_COUNTED
        elif log10 <= math.log10(level):
            stands = "yes"
        else:
            stands = "no" if result.get("conclusive") is True else NO_VERDICT
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
    named = {"mark": _text(mark, "commitment")} if isinstance(mark, dict) else {}
    if isinstance(found.get("keyed"), str):
        named["mark"] = found["keyed"]
    if function == "corpus_test":
        named["the files of the corpus"] = "not hashed: too large to be read once more"
    return Document(
        title=verdict,
        means=means.get(verdict, ""),
        shows_not=TEST_SHOWS_NOT,
        suspect=_suspect(found, call),
        tests=tests,
        not_tested=[],
        reasons=[],
        next=[],
        notes=[],
        alpha=alpha,
        rule=rule,
        inputs=_first({**named, **_digests(call)}),
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
    for value in (found.get("files"), *map(arguments.get, ("outputs", "suspect", "endpoint", "paths"))):
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value:
            return ", ".join(str(one) for one in value[:10])
    return ""


def _command(found: Mapping[str, Any], call: Mapping[str, Any]) -> str:
    """The command that gives the numbers again; empty where there is none, as where something was only in memory.

    An endpoint answers anew each time: there it is the test of the answers that were kept.
    """
    function, arguments = _text(call, "function", ""), dict(_object(call, "arguments", {}))
    if function not in COMMANDS:
        return ""
    name, bare = COMMANDS[function]
    if function == "logprob_test" and "files" not in found:
        name, bare = "test model", ""
    if function == "endpoint_test":
        text = found.get("access") == "text"
        name, bare = f"test {'text' if text else 'logprobs'}", "log"
        kept = ("mark", "log", "reference", "alpha", *(("tokenizer",) if text else ()))
        arguments = {key: arguments[key] for key in kept if key in arguments}
        if found.get("unmarked_prompts") is True:
            arguments["unmarked_prompts" if text else "unmarked_probes"] = True
    words, options = ["stillmark", *name.split()], OPTIONS | OTHER_OPTIONS
    for key, value in arguments.items():
        several = value if isinstance(value, list) else [value]
        if key in NO_OPTION.get(name, ()) or value is None:
            continue
        # False was given against another default, which no option says; "(" begins what was only in memory
        if value is False or any(isinstance(one, str) and one.startswith("(") for one in several):
            return ""
        if key == bare:
            words += [str(one) for one in several]
        elif key not in options:
            return ""
        elif value is True:
            words.append(options[key])
        else:
            for one in several:
                words += [options[key], str(one)]
    command = shlex.join(words)
    return command if len(command) <= LONGEST else ""


def _first(named: Mapping[str, str]) -> list[tuple[str, str]]:
    """The first of many inputs, and how many more there are."""
    more = [("and more", f"{len(named) - SHOWN:,} more, in the JSON")] if len(named) > SHOWN else []
    return [*islice(named.items(), SHOWN), *more]


def _digests(call: Mapping[str, Any]) -> dict[str, str]:
    return {name: _is(value, str, name) for name, value in _object(call, "digests", {}).items()}


def _versions(call: Mapping[str, Any]) -> dict[str, str]:
    versions = islice(_object(call, "versions", {}).items(), SHOWN)
    return {name: _is(value, str, name) for name, value in versions}


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


def _list(found: Mapping[str, Any], name: str, most: int = MOST) -> list[Any]:
    if len(value := _is(found.get(name, []), list, name)) > most:
        raise StillmarkError(f"this is no result of Stillmark: '{name}' holds more than {most:,}", WANTED)
    return value


def _texts(found: Mapping[str, Any], name: str) -> list[str]:
    return [_is(one, str, name) for one in _list(found, name)]
