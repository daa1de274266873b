"""One call a test that needs no mark in a suspect's text: from folders, files and endpoints to a result.

Paths may be `str` or `Path`; a mark may be a `Mark` or its file; a model may be a folder or, where a test reads through
the model, a loaded `(model, tokenizer)`. Whatever a command does, one of these functions does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from verify.calls import noted
from verify.data.outputs import Outputs
from verify.fingerprint import answers, canaries, planted
from verify.fingerprint.agreement import AgreementResult, agreement_result, check_controls
from verify.fingerprint.canaries import CanaryResult, canary_result
from verify.fingerprint.comparison import WeightsResult
from verify.fingerprint.planted import NUMBER, PlantedResult
from verify.fingerprint.weights import compare
from verify.planning.builtin import builtin_prompts
from verify.progress import Stages, on, silent
from verify.radioactivity.inputs import PathLike, is_model, log_of, outputs_of, prompts_of
from verify.suspects.asking import likeliest_of_endpoint
from verify.suspects.client import resolved
from verify.suspects.endpoint import CHAT, COMPLETIONS, Endpoint, is_address
from verify.suspects.model import Floats, Model, TopTokens, likeliest, likelihoods, name_of
from watermark import Mark, ModelError, StillmarkError
from watermark.io.prompts import Prompt
from watermark.mark import as_mark


@noted
def weights_test(
    teacher: PathLike | Sequence[PathLike],
    suspect: PathLike,
    *,
    order: Mark | PathLike | None = None,
    controls: Sequence[PathLike] = (),
    alpha: float = 1e-3,
    seed: int = 0,
    progress: Stages = silent,
) -> WeightsResult:
    """Test whether two models' weights are independent, layer by layer, from safetensors.

    Two tests. The exact one matches hidden units and counts how many keep their index. The calibrated one survives
    shuffled units: it is ranked among pairs of small independent models. The verdict looks at both, each at half of
    alpha; in a keyed order at the exact test alone.

    Args:
        teacher: the teacher's folder, one and named beforehand.
        suspect: the suspect's folder.
        order: the mark, or its file, in whose order the teacher was released (`verify.release_in_order`);
            `teacher` is then the model from before, the p-value rests on the secret alone, and a common parent does not
            spoil it.
        controls: folders of independent models. One that is as like the teacher as the suspect is takes the evidence of
            the calibrated test away.
        alpha: level of the verdict, fixed before looking.
        seed: of the shuffle that breaks ties, and of the draw of units from wide layers.
        progress: opened around each pair of models.

    Raises:
        ModelError: a folder holds no model that can be read so.
        StillmarkError: several teachers were named, or the mark cannot be read.

    Example:
        >>> result = weights_test("teacher/", "suspect/")  # doctest: +SKIP
        >>> result.verdict, result.exact.log10_pvalue  # doctest: +SKIP
        ('weights dependent', -312.4)
    """
    ours, theirs = _folder(_one(teacher)), _folder(suspect)
    mark = None if order is None else as_mark(order)
    with progress(on("matching", theirs), "layers") as update:
        found = compare(ours, theirs, seed, update, mark)
    shares = []
    for control in map(_folder, controls):
        with progress(on("matching", control), "layers") as update:
            shares.append((str(control), compare(ours, control, seed, update).share))
    return found.judged(shares, alpha)


@noted
def agreement_test(
    teacher: Model | Sequence[PathLike],
    suspect: Model | Endpoint,
    controls: Sequence[Model],
    prompts: PathLike | Sequence[Prompt] | None = None,
    *,
    base: Model | None = None,
    top: int = 1,
    chat: bool = False,
    record: PathLike | None = None,
    batch_size: int = 16,
    alpha: float = 0.05,
    progress: Stages = silent,
) -> AgreementResult:
    """Test whether a suspect agrees with the teacher more than every control does, by its likeliest next tokens.

    A lead, and not a proof. The teacher is one, and named beforehand: one of several is always the nearest.

    Args:
        teacher: the teacher.
        suspect: the suspect: a model; a file of its answers, JSONL with `id` and `top` (tokens as text, the likeliest
            first); or an endpoint, which is asked by chat if `chat`.
        controls: models like the suspect that have nothing to do with the teacher; 19 of them let p reach 0.05.
        prompts: what is asked, or a JSONL file of it; each once. None: the questions that come with the package.
        base: the suspect's own base: what the suspect gained over it is compared.
        top: likeliest tokens to compare after each prompt.
        chat: put prompts through each model's chat template, if it has one.
        record: folder to keep answers in, and to resume from; an endpoint needs one.
        batch_size: prompts in one forward pass.
        alpha: level of the verdict, fixed before looking.
        progress: opened around each model.

    Raises:
        StillmarkError: there is no control or no prompt, several teachers or none, or an endpoint without `record`.
        ModelError, TokenizerError: a model cannot be read, is no control, or speaks in other tokens than the teacher.
        InputError: prompts, answers or records cannot be used.
        ApiError: the endpoint cannot be asked, or gives no log probabilities and `top` is not 1.

    Example:
        >>> controls = ["control1/", "control2/"]
        >>> result = agreement_test("teacher/", "suspect/", controls, "prompts.jsonl")  # doctest: +SKIP
    """
    named, suspect = _one(teacher), _asked(suspect)
    check_controls(controls)
    if top < 1:
        raise StillmarkError(f"`top={top}` compares nothing", "compare one token at least")
    if isinstance(suspect, Endpoint):
        _needed(record, "record")
    questions = answers.distinct(builtin_prompts() if prompts is None else prompts_of(prompts))
    if not questions:
        raise StillmarkError("no prompt was given", "name some `prompts`")
    own = None if isinstance(suspect, Endpoint) or _answers(suspect) else suspect
    answers.check_tokenizers(questions, named, controls, [own, base])

    def said(who: str, model: Model) -> tuple[str, list[TopTokens]]:
        with progress(on(f"reading the {who}", name_of(model)), "prompts") as update:
            log = log_of(record, who)
            return name_of(model), likeliest(
                model, questions, top, chat=chat, batch_size=batch_size, record=log, progress=update
            )

    def suspect_said() -> tuple[str, list[TopTokens]]:
        if isinstance(suspect, Endpoint):
            log = _needed(log_of(record, "suspect.endpoint"), "record")
            where = resolved(replace(suspect, api=CHAT if chat else COMPLETIONS))
            with progress(on("asking", where.model), "prompts") as update:
                return where.model, likeliest_of_endpoint(where, questions, log, top, update)
        file = _answers(suspect)
        return said("suspect", suspect) if file is None else (str(file), answers.recorded(file, questions, top))

    heard = suspect_said()
    result = agreement_result(
        said("teacher", named),
        heard,
        [said(f"control{i}", control) for i, control in enumerate(controls)],
        None if base is None else said("base", base),
        alpha,
        top,
    )
    where = str(prompts) if isinstance(prompts, PathLike) else "(with the package)" if prompts is None else "in memory"
    return replace(result, inputs={"prompts": where, "chat": chat})


@noted
def planted_test(
    mark: Mark | PathLike,
    suspect: Model | Endpoint,
    *,
    number: int = NUMBER,
    log: PathLike | None = None,
    alpha: float = 1e-3,
    progress: Stages = silent,
) -> PlantedResult:
    """Test whether a suspect knows the answers that `verify.fingerprint.protect.plant` planted.

    Whoever sees the questions can refuse to answer them: ask once, and all.

    Args:
        mark: the mark, or its file, whose secret keys questions and answers.
        suspect: the suspect: a model; a file of its answers, JSONL with `id` and `output`; or an endpoint, which is
            asked by chat, greedily.
        number: of questions, fixed beforehand.
        log: JSONL to append an endpoint's answers to; a killed run goes on from there. An endpoint needs one.
        alpha: level of the verdict, fixed before looking.
        progress: opened around the asking.

    Raises:
        StillmarkError: an endpoint without `log`, or the mark cannot be read.
        ModelError: the model cannot be loaded, or its tokenizer begins two of the answers alike.
        InputError: the answers or the log cannot be used.
        ApiError: the endpoint cannot be asked.

    Example:
        >>> import json, tempfile
        >>> from verify.fingerprint.planted import ANSWERS, questions
        >>> mark = Mark(bytes(32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "answers.jsonl"
        ...     known = [{"id": one.id, "output": ANSWERS[one.answer]} for one in questions(mark, 8)]
        ...     _ = file.write_text(chr(10).join(map(json.dumps, known)))
        ...     result = planted_test(mark, file, number=8)
        >>> result.verdict, result.hits, round(result.log10_pvalue, 2)
        ('knows the planted answers', 8, -9.63)
    """
    mark, suspect = as_mark(mark), _asked(suspect)
    if isinstance(suspect, Endpoint):
        kept, where = _needed(log, "log"), resolved(suspect)
        with progress(on("asking", where.model), "questions") as update:
            return planted.ask_endpoint(where, mark, kept, number, alpha, update)
    if file := _answers(suspect):
        return planted.judge(file, mark, number, alpha)
    with progress(on("asking", name_of(suspect)), "questions") as update:
        return planted.ask(suspect, mark, number, alpha, update)


@noted
def canary_test(
    mark: Mark | PathLike,
    suspect: Model,
    candidates: PathLike | Outputs,
    *,
    reference: Model | None = None,
    halves: int = 99_999,
    seed: int = 0,
    record: PathLike | None = None,
    batch_size: int = 8,
    alpha: float = 1e-3,
    progress: Stages = silent,
) -> CanaryResult:
    """Test whether a suspect finds the served half of some outputs likelier than the half that was kept back.

    Args:
        mark: the mark, or its file, whose secret chose (`verify.fingerprint.protect.choose_canaries`).
        suspect: the suspect's model.
        candidates: all outputs that were chosen from, in their order, as for `verify.read_outputs`.
        reference: a model that saw no candidate: less noise.
        halves: random halves to compare with; p cannot fall below 1 / (1 + halves).
        seed: of these.
        record: folder to keep what was read in, and to resume from.
        batch_size: texts in one forward pass.
        alpha: level of the verdict, fixed before looking.
        progress: opened around each model.

    Raises:
        StillmarkError: the number of candidates is odd or zero, or the mark cannot be read.
        ModelError, TokenizerError: a model cannot be read, or is not for the mark.
        InputError: the candidates or the records cannot be used.

    Example:
        >>> result = canary_test("teacher.mark", "suspect/", "candidates.jsonl")  # doctest: +SKIP
        >>> result.difference  # in nats a token  # doctest: +SKIP
        0.0312
    """
    mark = as_mark(mark)
    read = outputs_of(mark, candidates, None, need_prompts=True, skip_bad=False, progress=progress)
    canaries.check_candidates(read)

    def said(who: str, model: Model) -> tuple[str, Floats]:
        with progress(on(f"reading the {who}", name_of(model)), "texts") as update:
            return name_of(model), likelihoods(model, mark, read, batch_size, log_of(record, who), update)

    compared = None if reference is None else said("reference", reference)
    result = canary_result(mark, read, said("suspect", suspect), compared, alpha, halves, seed)
    return replace(result, inputs={"candidates": [str(path) for path in read.files]})


def _one(teacher: Model | Sequence[PathLike]) -> Model:
    """The one teacher. Raises StillmarkError where several were named: one of several is always the nearest."""
    if isinstance(teacher, str | Path) or is_model(teacher):
        return teacher
    if len(teacher) != 1:
        raise StillmarkError(
            f"{len(teacher)} teachers were named, and one of several is always the nearest",
            "name the one teacher beforehand; the others may be `controls`",
        )
    return Path(teacher[0])


def _folder(model: Model) -> Path:
    """A model's folder. Raises ModelError for a loaded one."""
    if not isinstance(model, str | Path):
        raise ModelError(f"{name_of(model)}: a loaded model has no files", "name the folder of its weights")
    return Path(model)


def _asked(suspect: Model | Endpoint) -> Model | Endpoint:
    """An address as the endpoint that it is, under the name that it serves; else the suspect as it is."""
    return Endpoint(suspect, "") if is_address(suspect) else suspect


def _answers(suspect: Model) -> Path | None:
    """The file of a suspect's recorded answers; None for a model."""
    return None if is_model(suspect) or isinstance(suspect, tuple) else Path(suspect)


def _needed(log: PathLike | None, name: str) -> Path:
    """Where an endpoint's answers are kept. Raises StillmarkError where nothing was named."""
    if log is None:
        raise StillmarkError("the answers of an endpoint cost money, and are kept as they come", f"name a `{name}`")
    return Path(log)
