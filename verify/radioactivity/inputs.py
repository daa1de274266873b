"""What the tests are given, made ready: outputs, probes, records and models, and the guards on how they may be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast

from verify.data.beside import note_on_beside
from verify.data.columns import Columns
from verify.data.drift import drift_notes
from verify.data.logprobs import (
    LogprobTable,
    TextLogprobs,
    scorable_logprobs,
)
from verify.data.outputs import Output, Outputs, read_outputs
from verify.data.reads import reads_of
from verify.data.retokenize import Translation
from verify.data.sources import files_of
from verify.planning.builtin import builtin_probes
from verify.progress import Stages, on, silent
from verify.radioactivity.detail import tokenizer_if_there
from verify.radioactivity.logs import NOT_OURS, Logs, read_logs
from verify.radioactivity.prompts import (
    NOT_COMPARED,
    PromptsTest,
    carry,
    check_unmarked,
    prompts_test,
    with_copies,
    with_copies_of_texts,
)
from verify.radioactivity.sequential import SequentialResult, SequentialTest, replay
from verify.radioactivity.text import cost_of_marked
from verify.radioactivity.tilt import tilt_of_answers
from verify.results import left_out_bad, plural
from verify.suspects.client import resolved
from verify.suspects.endpoint import Endpoint
from verify.suspects.model import Model, is_loaded, name_of, read_weights
from verify.suspects.probing import read_probes
from watermark import ApiError, InputError, Mark, StillmarkError, UsageError
from watermark.io import files
from watermark.io.prompts import Prompt, read_prompts
from watermark.tokenizers import load_for

if TYPE_CHECKING:
    pass

PathLike = str | Path
Evidence = PathLike | Sequence[PathLike]
Recorded = Evidence | Sequence[TextLogprobs]

SEQUENTIAL: Final = "answers that were collected until the evidence sufficed"


def is_model(what: Model | Recorded | Outputs) -> TypeGuard[Model]:
    """Whether this is a model, a folder or a loaded one, and not records."""
    if isinstance(what, PathLike):
        return Path(what).is_dir() or not Path(what).suffix
    return is_loaded(what)


def named(what: Model | Recorded | Outputs) -> str:
    """A name for what was given, for results."""
    if isinstance(what, PathLike):
        return str(what)
    if is_model(what):
        return name_of(what)
    return ", ".join(str(one) for one in what if isinstance(one, PathLike)) or "in memory"


def outputs_of(
    mark: Mark,
    outputs: Evidence | Outputs,
    tokenizer: PathLike | None,
    *,
    need_prompts: bool,
    skip_bad: bool,
    progress: Stages,
    columns: Columns | None = None,
) -> Outputs:
    """Outputs from files, or as they are; arguments and errors as for `verify.data.outputs.read_outputs`."""
    if isinstance(outputs, Outputs):
        return outputs
    with progress(on("reading", outputs), "records") as update:
        return read_outputs(
            outputs,
            mark,
            tokenizer=tokenizer,
            columns=columns,
            need_prompts=need_prompts,
            skip_bad=skip_bad,
            progress=update,
        )


def beside_prompts(
    mark: Mark, outputs: Outputs, tokenizer: PathLike | None, *, unmarked: bool
) -> tuple[Outputs, PromptsTest | None, tuple[str, ...]]:
    """Outputs with what they copied of their prompts, the test of these for the mark, and notes.

    Raises:
        InputError: the prompts carry the mark, and `unmarked` was said of them.
    """
    if not any(one.start or one.prompt for one in outputs):
        return outputs, None, ()
    words = tokenizer_if_there(mark, tokenizer)
    tested = prompts_test(mark, outputs, words)
    if unmarked:
        check_unmarked(tested, " ".join(map(str, outputs.files)) or "the outputs")
        return outputs, tested, ()
    if words is None:
        return outputs, tested, (NOT_COMPARED,)
    # a run that stops when the evidence suffices cannot know what it will show later
    later = None if outputs.sequential else tested
    return replace(outputs, outputs=with_copies(outputs, words, later)), tested, ()


def texts_beside_prompts(
    mark: Mark, texts: list[TextLogprobs], tokenizer: PathLike | None, where: str, *, unmarked: bool
) -> tuple[list[TextLogprobs], PromptsTest | None, tuple[str, ...]]:
    """The same for recorded log probabilities: of texts that the suspect was made to read, all is shown."""
    wrote = [text for text in texts if text.sampled and (text.start or text.shown)]
    words = tokenizer_if_there(mark, tokenizer) if wrote else None
    shown = [_shown(text) for text in (texts if unmarked else wrote)]
    tested = prompts_test(mark, shown, words) if shown else None
    if unmarked:
        check_unmarked(tested, where, "unmarked_probes")
        return texts, tested, ()
    if words is None:
        return texts, tested, (NOT_COMPARED,) if wrote else ()
    later = None if any(text.sequential for text in texts) else tested
    return with_copies_of_texts(texts, words, later), tested, ()


def _shown(text: TextLogprobs) -> Output:
    """What a suspect was shown of a text, as what an output follows."""
    end = text.start if text.sampled else len(text.ids)
    return Output(text.id, text.ids[:end], text.ids[end:], prompt=text.shown)


def notes_on(outputs: Outputs | Logs) -> tuple[str, ...]:
    """What a result says of the records that were left out as malformed, and of ids that spell another text."""
    notes: tuple[str, ...] = (left_out_bad(outputs.bad, outputs.first_bad),) if outputs.bad else ()
    if outputs.beside:
        notes += (note_on_beside(outputs.beside),)
    if isinstance(outputs, Outputs):
        notes += drift_notes(outputs.compared, outputs.differing, outputs.first_differing)
    return notes


def all_sequential(flags: Sequence[bool]) -> bool:
    """Whether these are the answers of a sequential run, which only a sequential test may judge.

    Raises:
        StillmarkError: some are, and some are not.
    """
    if any(flags) and not all(flags):
        some, rest = sum(flags), len(flags) - sum(flags)
        said = f"{plural(some, 'record')} {'is' if some == 1 else 'are'} {SEQUENTIAL}"
        raise StillmarkError(f"{said}, and {rest} {'is' if rest == 1 else 'are'} not", "test them apart")
    return any(flags)


@dataclass(frozen=True)
class Probes:
    """Texts to read along, and whether they can carry the mark.

    Attributes:
        texts: those with something to read.
        unmarked: nothing that they show can depend on the key.
        inputs: for the result.
        notes: for the result.
    """

    texts: list[Output]
    unmarked: bool
    inputs: dict[str, Any]
    notes: tuple[str, ...] = ()


def probes_of(
    mark: Mark,
    probes: Evidence | Outputs | None,
    unmarked: bool | None,
    *,
    tokenizer: PathLike | None = None,
    skip_bad: bool = False,
) -> Probes:
    """The probes, or those that come with the package, made ready to read along.

    Raises:
        InputError: a file cannot be read, the texts are answers of a sequential run, or `unmarked` is said of text that
            says that it carries a mark.
    """
    if probes is None:
        if unmarked is False:
            raise UsageError("the probes that come with the package cannot carry any mark")
        return Probes(builtin_probes(mark, tokenizer), True, {"probes": ["(with the package)"]})
    read = probes if isinstance(probes, Outputs) else read_outputs(probes, mark, tokenizer=tokenizer, skip_bad=skip_bad)
    texts = [probe for probe in read if len(probe.output_ids)]
    where = " ".join(map(str, read.files)) or "the probes"
    if any(probe.sequential for probe in texts):
        raise InputError(where, 0, f"holds {SEQUENTIAL}", "these are no probes")
    said = unmarked_by([probe.marked for probe in texts], unmarked, where)
    if said:
        shown = [Output(probe.id, probe.ids, probe.output_ids[:0]) for probe in texts]
        check_unmarked(prompts_test(mark, shown, None), where, "unmarked_probes")
    inputs = {"probes": [str(path) for path in read.files], "bad_records": read.bad}
    return Probes(texts, said, inputs, notes_on(read))


def unmarked_by(marked: Sequence[bool | None], said: bool | None, where: str) -> bool:
    """Whether texts cannot carry the mark: as it was said, else as they say (`marked`) themselves.

    Raises:
        InputError: it was said of text that says that it carries a mark.
    """
    if said and any(marked):
        raise InputError(where, 0, "says that its text carries a mark", "leave `unmarked_probes=True` out")
    return all(one is False for one in marked) if said is None else said


def recorded(
    what: Recorded,
    mark: Mark,
    tokenizer: PathLike | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    progress: Stages = silent,
) -> tuple[list[TextLogprobs], dict[str, Any], tuple[str, ...]]:
    """Recorded log probabilities, what a result says of where they came from, and its notes.

    Raises:
        UnusableLogprobsError: nothing can be told from them.
        StillmarkError: a file cannot be read, or a record is malformed; the tokenizer is needed and cannot be loaded.
    """
    paths = [what] if isinstance(what, PathLike) else list(what)
    if any(isinstance(one, TextLogprobs) for one in paths):
        return cast("list[TextLogprobs]", paths), {"files": []}, ()
    files = files_of([cast("PathLike", path) for path in paths])
    with progress(on("reading", files), "records") as update:
        logs = read_logs(files, mark, tokenizer=tokenizer, columns=columns, skip_bad=skip_bad, progress=update)
    inputs: dict[str, Any] = {"files": [str(path) for path in files]}
    inputs |= ({"read_as": logs.read_as} if logs.read_as else {}) | ({"bad_records": logs.bad} if logs.bad else {})
    notes = notes_on(logs)
    if logs.left_out:
        notes += (f"{logs.left_out} answers were left out: their {NOT_OURS}.",)
    return logs.texts, inputs, notes


def log_of(record: PathLike | None, who: str) -> Path | None:
    """The file `WHO.jsonl` in the folder of records, which is made if it is not there; None without a folder.

    Raises:
        InputError: the folder cannot be made.
    """
    if record is None:
        return None
    folder = Path(record)
    with files.writing(folder, hint="is there a file in its place?"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{who}.jsonl"


def read_along(
    who: str,
    model: Model,
    mark: Mark,
    texts: Sequence[Output],
    batch_size: int,
    record: PathLike | None,
    progress: Stages,
    *,
    tokenizer: PathLike | None = None,
    translator: Translation | None = None,
) -> list[TextLogprobs]:
    """What a model says along some texts, in the mark's tokens.

    record: a folder to keep `WHO.jsonl` in, and to go on from. tokenizer, translator: as for `read_weights`.
    """
    log = log_of(record, who)
    with progress(on(f"reading the {who}", name_of(model)), "texts") as update:
        return read_weights(
            model,
            mark,
            texts,
            batch_size=batch_size,
            record=log,
            tokenizer=tokenizer,
            translator=translator,
            progress=update,
        )


def read_through(
    endpoint: Endpoint,
    mark: Mark,
    texts: Sequence[Output],
    record: PathLike | None,
    tokenizer: PathLike | None,
    progress: Stages,
    *,
    unmarked: bool,
) -> tuple[list[TextLogprobs], tuple[str, ...]]:
    """What a suspect behind an endpoint says along some texts, kept as `suspect.jsonl` in `record`; and notes on that.

    Raises:
        UsageError: no `record` was named.
        ApiError: what `verify.suspects.probing.read_probes` raises, or no text could be read.
    """
    if record is None:
        raise UsageError("the answers of an endpoint cost money, and are kept as they come", "name a `record`")
    where, log = resolved(endpoint), log_of(record, "suspect")
    with progress(on("reading", where.model), "texts") as update:
        words = load_for(mark, tokenizer)
        said = read_probes(where, mark, words, texts, cast("Path", log), unmarked=unmarked, progress=update)
    if not said:
        raise ApiError("the endpoint could not be read along any text", f"the log is {log}")
    missing = len(texts) - len(said)
    return said, (f"{missing} of {len(texts)} probes could not be read: see the log, {log}.",) if missing else ()


def tables(
    mark: Mark, said: Sequence[TextLogprobs], compared: Sequence[TextLogprobs] | None, *, unmarked: bool
) -> tuple[LogprobTable, LogprobTable | None]:
    """What may be scored of the suspect's texts, and the same of the reference's."""
    how = reads_of(mark)
    suspect = scorable_logprobs(said, mark.width, unmarked=unmarked, reads=how)
    if compared is None:
        return suspect, None
    if len(said) == len(compared):  # else an error elsewhere, which names the first that differs
        both = zip(said, compared, strict=True)
        compared = [replace(c, copied=s.copied) if len(s.ids) == len(c.ids) else c for s, c in both]
    return suspect, scorable_logprobs(compared, mark.width, unmarked=unmarked, reads=how)


def prompts_of(prompts: PathLike | Sequence[Prompt]) -> list[Prompt]:
    """Prompts from a file, or as they are. Raises InputError."""
    return read_prompts(Path(prompts)) if isinstance(prompts, PathLike) else list(prompts)


def replayed(
    mark: Mark,
    access: str,
    alpha: float,
    answers: Sequence[TextLogprobs],
    along: Sequence[TextLogprobs] | None,
    prompts: PromptsTest | None,
    *,
    unmarked: bool,
) -> SequentialResult:
    """The sequential test over recorded answers, and what it costs to take the prompts for possibly marked.

    prompts: their own test for the mark.
    """
    test = SequentialTest(mark, access, alpha, unmarked=unmarked)
    found = replace(replay(test, answers, along), prompts_test=prompts)
    if found.significant:
        found = replace(found, tilt=tilt_of_answers(mark, answers, along, unmarked=unmarked))
    if unmarked or carry(prompts):
        return found
    return with_cost(found, replay(SequentialTest(mark, access, alpha, unmarked=True), answers, along))


def with_cost(found: SequentialResult, free: SequentialResult) -> SequentialResult:
    """The result with a warning where taking the prompts for possibly marked costs power; free: if they are not."""
    cost = cost_of_marked("unmarked_prompts", found.log10_pvalue, free.log10_pvalue)
    return replace(found, warnings=found.warnings + cost)


def files_read(outputs: Outputs, reference: Model | None = None) -> dict[str, object]:
    """For the result: the files of outputs that were read, and the reference."""
    compared = None if reference is None else named(reference)
    found: dict[str, object] = {
        "files": [str(path) for path in outputs.files],
        "bad_records": outputs.bad,
        "reference": compared,
    }
    found["ids_differing"] = outputs.differing
    return found | ({"read_as": outputs.read_as} if outputs.read_as else {})
