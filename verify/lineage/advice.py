"""The next thing to do, after a verdict: what would find more, and what would make a finding firmer."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from verify.lineage import access as kinds
from verify.lineage.plan import AGREEMENT, CANARIES, SHUFFLED, WEIGHTS, WRITTEN, is_mark
from verify.lineage.verdict import DISTILLED_OR_RELAYED
from verify.planning.power import more_needed, reference_gain
from verify.radioactivity.logprobs import WeightedResult
from verify.radioactivity.sequential import SequentialResult
from verify.radioactivity.text import NOTABLE, TextResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from verify.lineage.verdict import Verdict
    from verify.results import Result
    from watermark import Mark

ACCESSES: Final = {
    kinds.WEIGHTS: "weights",
    kinds.LOGPROBS: "top20",
    kinds.ENDPOINT: "top20",
    kinds.TEXT: "text",
}
"""Which of the measured curves (`verify.planning.power`) speak of which access."""

UNITS: Final = {"weights": "positions of probes", "top20": "tokens with log probabilities", "text": "text"}


def advice(found: Verdict, marks: Mapping[str, Mark], *, reference: bool) -> tuple[str, ...]:
    """What to do next, one sentence each, the most useful first.

    marks: by the line of the plan that tests for each; reference: one was named.
    """
    steps: list[str] = []
    lines = [one for one in found.lines if is_mark(one.name) and one.name != WRITTEN]
    if found.carried:
        steps.append(
            "Before you rely on it, run the same command on models that are surely innocent: none may carry the mark."
        )
    elif lines:
        more = [_more(found.access, one.result, marks[one.name], reference=reference) for one in lines if one.result]
        steps += list(dict.fromkeys(chain.from_iterable(more)))
    for line in lines:
        if line.failed:
            what = "the mark" if len(lines) == 1 else f"the {line.name}"
            steps.append(f"The test for {what} could not be made ({line.unavailable}): fix that, and run it again.")
    if not marks:
        steps.append("Name the `mark` that your outputs carry: only it can show that the suspect learned from them.")
    if found.verdict == DISTILLED_OR_RELAYED and not found.found & {WEIGHTS, SHUFFLED, CANARIES}:
        steps.append(
            "To tell a student from a relay, name a `reference`, best the teacher without its mark; or look at the "
            "suspect's weights."
        )
    if found.access == kinds.WEIGHTS and WEIGHTS in found.unplanned and found.teacher is None:
        steps.append("Name the `teacher`: its weights tell a copy from a student.")
    if AGREEMENT not in found.unplanned and not found.leads and not found.found:
        steps.append("Agreement gives a lead only with 19 `controls` or more.")
    return tuple(steps)


def _more(access: str, result: Result, mark: Mark, *, reference: bool) -> list[str]:
    """How to find more, where the test for the mark found nothing."""
    kind = ACCESSES[access]
    if isinstance(result, SequentialResult):
        kind, have = ("text" if result.access == "text" else "top20"), result.tokens
    elif isinstance(result, WeightedResult):
        have = result.positions
    elif isinstance(result, TextResult):
        kind, have = "text", result.pairs.positions
    else:
        return []
    steps = []
    other = getattr(result, "log10_pvalue_if_unmarked", None)
    if other is not None and other < result.log10_pvalue - NOTABLE:
        option = "unmarked_probes" if isinstance(result, WeightedResult) else "unmarked_prompts"
        steps.append(f"If what it was shown cannot carry the mark, say so with `{option}=True`: see the note.")
    like, width, alpha = mark.scheme.like, mark.width, result.alpha
    if not reference:
        gain = None
        if like is not None:
            gain = reference_gain(kind, delta=like.delta, width=width, gamma=like.gamma, alpha=alpha)
        less = "" if gain is None else f": it takes some {gain:,.0f} times less evidence" if gain >= 2 else ""
        steps.append(f"Name a `reference`, such as the model that the suspect grew from{less}.")
    if not result.n:  # nothing was read: more of the same is no advice
        return steps
    if like is None:
        steps.append(
            "How much evidence finds a student of such a mark was not measured: train one of your own (the command "
            "`stillmark student`), and test it in the same way."
        )
        return steps
    times = more_needed(
        kind, have=max(1, have), delta=like.delta, width=width, gamma=like.gamma, reference=reference, alpha=alpha
    )
    strength = f"a mark of delta {like.delta:g}" if like == mark.scheme else f"a {mark.scheme.name} like this one"
    if times is not None and times > 1:
        steps.append(
            f"About {times:,.{0 if times >= 10 else 1}f} times as much evidence ({UNITS[kind]}) finds {strength} "
            "in a student like those that were measured."
        )
    elif times is not None:
        steps.append(
            f"This much evidence finds {strength} in students like those that were measured, "
            "which trained on marked text alone: it is no proof of innocence."
        )
    return steps
