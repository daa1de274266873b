"""One call a test: from files, folders and endpoints to a result."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

from verify.data import logprobs
from verify.data.logprobs import TextLogprobs
from verify.data.outputs import Output
from verify.radioactivity.logprobs import WeightedResult, logprob_test
from verify.radioactivity.sequential import MIN_TILT, SequentialResult, SequentialTest
from verify.suspects import model
from verify.suspects.interview import ReferenceLog, Usage
from watermark import ApiError, Mark
from watermark.progress import Progress, silent


def examine(
    waves: Generator[list[TextLogprobs], None, None],
    tally: Usage,
    mark: Mark,
    log: Path,
    alpha: float,
    *,
    unmarked: bool,
    access: str = "auto",
    least: float = MIN_TILT,
    compared: ReferenceLog | None = None,
    judged: Callable[[], None] = lambda: None,
) -> SequentialResult:
    """Look at a suspect's answers wave by wave, until the evidence suffices, nothing is to be hoped for, or they end.

    Args:
        waves: from `iter_answers`, with this tally and log; closed at the end.
        tally: what was counted so far.
        mark: the mark.
        log: where the answers lie, for the errors.
        alpha: level of the verdict, fixed before looking.
        unmarked: the prompts cannot carry the mark.
        access: `text`, `logprobs`, or `auto`: log probabilities, if the first answer brings some.
        least: the smallest tilt of interest.
        compared: a reference.
        judged: called after each wave.

    Raises:
        ApiError: no answer could be used, log probabilities were asked for and not given, or the endpoint fails.
    """
    test: SequentialTest | None = None
    with closing(waves):
        for wave in waves:
            if test is None and tally.answers:
                if access == "logprobs" and not tally.logprobs:
                    raise ApiError("the endpoint gives no log probabilities", "--access text tests what it writes")
                test = SequentialTest(
                    mark, "logprobs" if tally.logprobs else "text", alpha, unmarked=unmarked, least=least
                )
            for answer in wave:
                if test is not None and len(answer.ids) > answer.start:
                    test.add(answer, None if compared is None else compared.along(answer))
            if compared is not None:
                compared.keep()
            judged()
            if test is not None and test.stopped:
                break
    if test is None:
        raise ApiError(f"no answer could be used; the last error: {tally.last_error}", f"the log is {log}")
    return test.result()


def mark_in_weights(
    mark: Mark,
    suspect: Path,
    reference: Path | None,
    probes: Sequence[Output],
    alpha: float,
    *,
    unmarked: bool,
    record: Path | None = None,
    update: Progress = silent,
) -> WeightedResult:
    """The mark line where the weights are at hand: `verify.radioactivity.logprobs.logprob_test` along the probes.

    Raises:
        ModelError, TokenizerError: a model cannot be loaded, or is not for the mark's tokenizer.
        InputError: `record`, a folder, cannot be written, or is of another run.
    """

    def read(who: str, path: Path) -> logprobs.LogprobTable:
        log = record / f"mark.{who}.jsonl" if record else None
        texts = model.read_weights(path, mark, probes, record=log, progress=update)
        return logprobs.scorable_logprobs(texts, mark.width, unmarked=unmarked)

    suspected = read("suspect", suspect)
    return logprob_test(mark, suspected, None if reference is None else read("reference", reference), alpha)
