"""A result as it stands in JSON, in the shape in which a report shows it.

A report is made from the JSON alone, so that it can be made again later, by others, from `result.json`. The values come
checked from `values.py`, the tests from `shown.py`, and the command from `repeated.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import numpy as np

from verify.evidence.repeated import command_of
from verify.evidence.shown import SHOWN, TestShown
from verify.evidence.values import (
    check_p,
    contradiction,
    level_of,
    list_of,
    log10_of,
    object_of,
    same,
    text_of,
    texts_of,
    typed,
)
from verify.fingerprint import AGREES, DEPENDENT, KNOWS, MATCHED, SAW
from verify.stats.multiple import holm
from verify.words import CARRIES, INSUFFICIENT, NO_VERDICT


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

    @property
    def commitments(self) -> set[str]:
        """Of the marks that were tested for, and digests of all else that went in."""
        return {digest for _, digest in self.inputs}


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
    verdict = text_of(found, "verdict")
    return _whole(found, verdict) if "tests" in found and "plan" in found else _single(found, verdict)


def _whole(found: Mapping[str, Any], verdict: str) -> Document:
    alpha = level_of(found)
    tests = []
    for one in list_of(found, "tests", most=20):
        one = typed(one, dict, "a test")
        stands = "yes" if one.get("stands") is True else "no" if one.get("conclusive") is True else NO_VERDICT
        tests.append(
            TestShown(
                name=text_of(one, "test"),
                evidence=text_of(one, "evidence"),
                log10_pvalue=log10_of(one, "log10_pvalue"),
                log10_adjusted=log10_of(one, "log10_pvalue_adjusted"),
                stands=stands,
                alpha=alpha,
                result=object_of(one, "result"),
            )
        )
    _check_holm(tests)
    plan = object_of(found, "plan")
    missing = [typed(one, dict, "a test") for one in list_of(found, "not_tested")]
    reasons = texts_of(found, "reasons")
    call = object_of(found, "call", {}) if found.get("call") is not None else {}
    named = {name: typed(value, str, name) for name, value in object_of(plan, "inputs", {}).items()}
    return Document(
        title=verdict,
        means=reasons[0] if reasons else "",
        shows_not=texts_of(found, "shows_not"),
        suspect=text_of(found, "suspect", ""),
        tests=_held(tests, alpha),
        not_tested=[(text_of(one, "test"), text_of(one, "why")) for one in missing],
        reasons=reasons[1:],
        next=texts_of(found, "next"),
        notes=texts_of(found, "notes"),
        alpha=alpha,
        rule="Holm's adjustment over all tests that were made",
        inputs=_first({**named, **_digests(call)}),
        plan=text_of(found, "plan_digest", ""),
        versions=_versions(call),
        date=text_of(call, "date", ""),
        command=command_of(found, call),
        promised=text_of(found, "promised_digest", "") if found.get("promised_digest") is not None else "",
        deviations=tuple(texts_of(found, "deviations")),
        bundle=_bundle(found),
    )


def _check_holm(tests: Sequence[TestShown]) -> None:
    """Raises StillmarkError where the numbers of several tests contradict each other."""
    adjusted = holm(np.array([test.log10_pvalue for test in tests], np.float64)).tolist()
    for test, right in zip(tests, adjusted, strict=True):
        check_p(test.result, test.name)
        if not same(test.log10_pvalue, log10_of(test.result, "log10_pvalue")):
            raise contradiction(test.name, f"log10_pvalue {test.log10_pvalue:g} is not that of the test's own result")
        if not same(test.log10_adjusted, right):
            raise contradiction(test.name, f"by Holm's adjustment log10 p is {right:g}, not {test.log10_adjusted:g}")
        if test.stands == "yes" and right > math.log10(test.alpha):
            raise contradiction(test.name, f"it does not stand at alpha {test.alpha:g}")


def _check_verdict(found: Mapping[str, Any], verdict: str, alpha: float) -> None:
    """Raises StillmarkError where the verdict of one test, or its p-value, contradicts the other."""
    check_p(found, "one test")
    significant = log10_of(found, "log10_pvalue") <= math.log10(alpha)
    if significant and verdict == INSUFFICIENT:
        raise contradiction("one test", f"'{verdict}' where p is at most alpha")
    if not significant and verdict in (CARRIES, AGREES, KNOWS, SAW):
        raise contradiction("one test", f"'{verdict}' where p is above alpha")


def _bundle(found: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    bundle = object_of(found, "bundle", {})
    keys = [("the key that is said to have signed it", one) for one in texts_of(bundle, "signed_by")]
    return (("the bundle that this page was made of", text_of(bundle, "sha256")), *keys[:SHOWN]) if bundle else ()


def _held(tests: Sequence[TestShown], alpha: float) -> list[TestShown]:
    """Several tests, each with the level that Holm's adjustment leaves to its own p-value: alpha over the number of
    tests less those that stand by a smaller one."""
    stand = sorted(test.log10_pvalue for test in tests if test.stands == "yes")
    before = [sum(one < test.log10_pvalue for one in stand) for test in tests]
    return [replace(test, alpha=alpha / (len(tests) - number)) for test, number in zip(tests, before, strict=True)]


def _single(found: Mapping[str, Any], verdict: str) -> Document:
    alpha = level_of(found)
    results, rule = {"": (found, alpha)}, ""
    if "both" in found:  # of weights: an exact test, and one that survives shuffled units
        both, keyed = object_of(found, "both"), found.get("keyed") is not None
        verdict, rule = text_of(both, "verdict"), text_of(both, "rule", "")
        level = alpha if keyed else alpha / 2
        results = {"exact": (found, level), "units shuffled": (object_of(found, "shuffled"), 0.0 if keyed else level)}
    else:
        _check_verdict(found, verdict, alpha)
    call = object_of(found, "call", {}) if found.get("call") is not None else {}
    function = text_of(call, "function", "")
    name = _NAMES.get(function, "test")
    looks_for = LOOKS_FOR.get(function, "the mark" if "gamma" in found else "what the test looks for")
    means = VERDICTS_MEAN | {INSUFFICIENT: f"This evidence does not show {looks_for}. It is no proof of the opposite."}
    tests = []
    for part, (result, level) in results.items():
        log10 = log10_of(result, "log10_pvalue")
        check_p(result, part or "one test")
        if not level:
            stands = NOT_COUNTED
        elif log10 <= math.log10(level):
            stands = "yes"
        else:
            stands = "no" if result.get("conclusive") is True else NO_VERDICT
        tests.append(
            TestShown(
                name=f"{name}, {part}" if part else name,
                evidence=text_of(object_of(result, "summary", {}), "evidence", str(result.get("n", ""))),
                log10_pvalue=log10,
                log10_adjusted=None,
                stands=stands,
                alpha=level,
                result=result,
            )
        )
    mark = found.get("mark")
    named = {"mark": text_of(mark, "commitment")} if isinstance(mark, dict) else {}
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
        plan=text_of(found, "plan_digest", "") if found.get("planned_before") is True else "",
        deviations=tuple(texts_of(found, "deviations")),
        versions=_versions(call),
        date=text_of(call, "date", ""),
        command=command_of(found, call),
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
    arguments = object_of(call, "arguments", {})
    for value in (found.get("files"), *map(arguments.get, ("outputs", "suspect", "endpoint", "paths"))):
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value:
            return ", ".join(str(one) for one in value[:10])
    return ""


def _first(named: Mapping[str, str]) -> list[tuple[str, str]]:
    """The first of many inputs, and how many more there are."""
    more = [("and more", f"{len(named) - SHOWN:,} more, in the JSON")] if len(named) > SHOWN else []
    return [*islice(named.items(), SHOWN), *more]


def _digests(call: Mapping[str, Any]) -> dict[str, str]:
    return {name: typed(value, str, name) for name, value in object_of(call, "digests", {}).items()}


def _versions(call: Mapping[str, Any]) -> dict[str, str]:
    versions = islice(object_of(call, "versions", {}).items(), SHOWN)
    return {name: typed(value, str, name) for name, value in versions}
