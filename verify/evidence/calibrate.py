"""How often the tests for a mark err on what cannot carry it: under decoy keys, and under the mark's own.

Under keys that nobody has used the p-value is exact or a bound, so that too many small ones mean an error in the
program or the machine. Under the mark's own key they mean that a suspect is not innocent, or was taken for more
innocent than it is. What is scored does not depend on the key: a suspect is read once, and all keys are tried on that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verify.calls import check_alpha
from verify.data.columns import Columns
from verify.data.pairs import Pairs, WeightedPairs
from verify.data.reads import pairs_of
from verify.evidence.calibration import LOGPROBS, TEXT, Calibration, Material
from verify.evidence.scored import Scored, hits_under, recomputed, scored_of
from verify.progress import Stages, on, silent
from verify.radioactivity.inputs import beside_prompts, is_model, named, outputs_of
from verify.radioactivity.logprob_test import logprob_test
from verify.radioactivity.tails import BINOMIAL
from verify.suspects.model import Model, is_loaded
from watermark import InputError, Mark, StillmarkError, UsageError
from watermark.errors import within
from watermark.io import files
from watermark.mark import as_mark
from watermark.models import model_digest

PathLike = str | Path


def calibrate(
    mark: Mark | PathLike,
    texts: PathLike | Sequence[PathLike] = (),
    *,
    suspects: Model | Sequence[Model] = (),
    reference: Model | None = None,
    probes: PathLike | Sequence[PathLike] | None = None,
    unmarked_probes: bool | None = None,
    record: PathLike | None = None,
    keys: int = 1000,
    unmarked_prompts: bool = False,
    alpha: float = 1e-3,
    tokenizer: PathLike | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    batch_size: int = 8,
    progress: Stages = silent,
) -> Calibration:
    """Make the tests for a mark on what cannot carry it, under many decoy keys and under the mark's own.

    Texts are tested by the method `binomial`, innocent models by their log probabilities. Each is a suspect of its own.

    Args:
        mark: the mark, or its file.
        texts: files, as for `verify.read_outputs`: human text, and outputs of models that are surely innocent.
        suspects: innocent models (folders, or loaded), or files of recorded log probabilities.
        reference: a model that does not depend on the secret, or its records, as for `verify.logprob_test`.
        probes, unmarked_probes: texts to read along, and whether they cannot carry the mark, as for
            `verify.logprob_test`.
        record: folder to keep what was read in, in a folder for each suspect, and to resume from.
        keys: decoy keys (`Mark.decoy`) that are tried on each.
        unmarked_prompts: nobody who wrote the prompts of the texts knew the secret or copied marked text.
        alpha: level at which the mark's own key counts as not sound, over all texts and suspects.
        tokenizer: folder of the mark's tokenizer, if not where the mark says.
        columns: where the fields are in records of no known shape.
        skip_bad: count malformed records instead of stopping at the first.
        batch_size: probes in one forward pass.
        progress: opened around each piece of work.

    Raises:
        UsageError: there are fewer than 100 keys, or nothing to calibrate on.
        StillmarkError: a file, a model or the mark cannot be used.

    Example:
        >>> import verify
        >>> verify.calibrate("teacher.mark", ["human.jsonl"], suspects=["parent/"]).verdict  # doctest: +SKIP
        'sound'
    """
    mark = as_mark(mark)
    within("keys", keys, 100, math.inf, first=True)
    check_alpha(alpha)
    texts = [texts] if isinstance(texts, PathLike) else list(texts)
    innocent: list[Model] = [suspects] if isinstance(suspects, PathLike) or is_loaded(suspects) else list(suspects)
    if not texts and not innocent:
        raise UsageError("nothing to calibrate on", "name files of text or `suspects` that cannot carry the mark")
    materials = []
    for path in texts:
        read = outputs_of(
            mark, path, tokenizer, columns=columns, need_prompts=not unmarked_prompts, skip_bad=skip_bad,
            progress=progress,
        )  # fmt: skip
        if not unmarked_prompts:  # else this is where it shows whether that was said wrongly
            read, _, _ = beside_prompts(mark, read, tokenizer, unmarked=False)
        pairs = pairs_of(mark, read, unmarked_prompts=unmarked_prompts)
        found = _material(mark, _coins(pairs), TEXT, path, keys, progress, pairs.counts)
        marked = _log10(_coins(pairs_of(mark, read)), mark) if unmarked_prompts else None
        materials.append(replace(found, log10_if_marked=marked))
    for number, suspect in enumerate(innocent, 1):
        test = partial(
            logprob_test, mark, suspect, probes, reference=reference, tokenizer=tokenizer, columns=columns,
            record=None if record is None else Path(record) / str(number), skip_bad=skip_bad, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip
        scored = _there(scored_of(test(unmarked_probes=unmarked_probes)), suspect)
        found = _material(mark, scored, LOGPROBS, suspect, keys, progress)
        if unmarked_probes and found.log10_pvalue <= math.log10(alpha):
            marked = _log10(_there(scored_of(test(unmarked_probes=False)), suspect), mark)
            found = replace(found, log10_if_marked=marked)
        materials.append(found)
    return Calibration(commitment=mark.commitment, keys=keys, alpha=alpha, materials=tuple(materials))


def _coins(pairs: Pairs) -> Scored:
    """What the binomial test scores: each pair is one coin."""
    n = len(pairs.tokens)
    return Scored(BINOMIAL, WeightedPairs(pairs.contexts, pairs.tokens, np.zeros((n, 0))), np.zeros(0, np.int64))


def _there(scored: Scored | None, suspect: Model) -> Scored:
    if scored is None:
        raise StillmarkError(f"{named(suspect)}: the test of it has no pairs")
    return scored


def _log10(scored: Scored, mark: Mark) -> float:
    return recomputed(scored, hits_under(scored, mark)).log10_pvalue


def _material(
    mark: Mark,
    scored: Scored,
    test: str,
    suspect: Model,
    keys: int,
    progress: Stages,
    counts: npt.NDArray[np.int64] | None = None,
) -> Material:
    """The test under every key, on the same pairs. counts: of text, how often each pair occurs."""
    name = named(suspect)
    if not len(scored):
        raise InputError(name, 0, "no pair of it can be scored", "it says nothing of the key")
    logs, sums = np.empty(keys), np.zeros(keys)
    with progress(on("trying keys on", name), "keys") as update:
        for i in range(keys):
            hits = hits_under(scored, mark.decoy(i))
            logs[i] = recomputed(scored, hits).log10_pvalue
            sums[i] = 0 if counts is None else counts @ hits.pairs
            update(i + 1, keys)
    own = hits_under(scored, mark)
    coins = mark.scheme.coins * mark.scheme.rate * (1 - mark.scheme.rate)
    return Material(
        name=name,
        sha256=model_digest(suspect) if is_model(suspect) else files.sha256(Path(name)),
        test=test,
        n=len(scored),
        log10_pvalue=recomputed(scored, own).log10_pvalue,
        log10_opposite=recomputed(scored, own, opposite=True).log10_pvalue,
        log10_if_marked=None,
        spread=None if counts is None else float(sums.std() / math.sqrt(coins * counts.sum())),
        decoys=logs,
    )
