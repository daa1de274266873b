"""`verify.attribute` and `verify.plan_labels`: whose marked outputs a suspect's text shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from verify.calls import check_alpha, noted
from verify.data.columns import Columns
from verify.data.outputs import Outputs
from verify.data.reads import pairs_of
from verify.lineage.plan import ATTRIBUTION, LineagePlan
from verify.progress import Stages, on, silent
from verify.radioactivity.attribution import Attribution, attribution, labels_digest
from verify.radioactivity.inputs import Evidence, PathLike, beside_prompts, files_read, notes_on, outputs_of
from watermark import Mark, UsageError
from watermark.io.fields import is_text
from watermark.keyfile import read_labels
from watermark.mark import as_mark


@noted
def attribute(
    mark: Mark | PathLike,
    labels: PathLike | Sequence[str],
    outputs: Evidence | Outputs,
    *,
    unmarked_prompts: bool = False,
    alpha: float = 1e-3,
    plan: PathLike | None = None,
    deviate: bool = False,
    tokenizer: PathLike | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    progress: Stages = silent,
) -> Attribution:
    """Find the customers (months, ...) whose marked outputs a suspect's text shows.

    Args:
        mark: the parent, or its file, of which each label's mark was derived.
        labels: as the children were derived, no two alike; or a text file of one label a line.
        outputs: what the suspect wrote: files as for `verify.read_outputs`, or what that returned.
        unmarked_prompts: nobody who wrote the prompts knew the secret or copied marked text.
        alpha: the chance that one wrong label or more is named, fixed before looking.
        plan: file of the plan, from `plan_labels`; written if it is not there, else it must hold this very plan. A
            result says whether it was there before.
        deviate: the plan may be another: the result names every deviation from it.
        tokenizer: folder of the mark's tokenizer, if not where the mark says.
        columns: where the fields are in records of no known shape, as for `verify.read_outputs`.
        skip_bad: count malformed records instead of stopping at the first.
        progress: opened around each piece of work.

    Raises:
        StillmarkError: a file or the mark cannot be used, or the outputs are answers of a sequential run.
    """
    mark = as_mark(mark)
    names = _labels_of(labels)
    fixed = _plan_of_labels(mark, names, unmarked_prompts=unmarked_prompts, alpha=alpha)
    promised, before, deviations = fixed, False, list[str]()
    if plan is not None:
        promised, before, deviations = fixed.held_to(Path(plan), deviate=deviate)
    elif deviate:
        raise UsageError("`deviate` needs a `plan`", "name its file")
    read = outputs_of(
        mark,
        outputs,
        tokenizer,
        columns=columns,
        need_prompts=not unmarked_prompts,
        skip_bad=skip_bad,
        progress=progress,
    )
    read, prompts, notes = beside_prompts(mark, read, tokenizer, unmarked=unmarked_prompts)
    pairs = pairs_of(mark, read, unmarked_prompts=unmarked_prompts)
    with progress(on("trying labels on", read.files), "labels") as update:
        digest = None if plan is None else promised.digest
        found = attribution(
            mark, names, pairs, alpha, update, plan=digest, planned_before=before, deviations=deviations
        )
    notes = notes_on(read) + notes
    return replace(found, prompts_test=prompts, inputs=files_read(read), warnings=found.warnings + notes)


def plan_labels(
    mark: Mark | PathLike,
    labels: PathLike | Sequence[str],
    path: PathLike,
    *,
    unmarked_prompts: bool = False,
    alpha: float = 1e-3,
) -> LineagePlan:
    """Write what `attribute` will test, before anybody looks at the suspect: mark, labels, level.

    Args:
        mark, labels, unmarked_prompts, alpha: as for `attribute`.
        path: file of the plan; if it is there, it must hold this very plan. Date it by a service that others trust.

    Raises:
        StillmarkError: the mark or the labels cannot be used, or the file cannot be written or holds another plan.
    """
    check_alpha(alpha)
    fixed = _plan_of_labels(as_mark(mark), _labels_of(labels), unmarked_prompts=unmarked_prompts, alpha=alpha)
    fixed.fix(Path(path))
    return fixed


def _labels_of(labels: PathLike | Sequence[str]) -> list[str]:
    if isinstance(labels, PathLike):
        return read_labels(Path(labels))
    names = list(labels)
    if not names or not all(is_text(name) and name.strip() and "\n" not in name for name in names):
        raise UsageError("`labels` must be names, at least one, each in one line")
    if len(set(names)) < len(names):
        raise UsageError("some of the `labels` are alike", "name each once")
    return names


def _plan_of_labels(mark: Mark, labels: Sequence[str], *, unmarked_prompts: bool, alpha: float) -> LineagePlan:
    inputs = {"mark": mark.commitment, "labels": labels_digest(labels)}
    return LineagePlan((ATTRIBUTION,), alpha, inputs, {"labels": len(labels), "unmarked_prompts": unmarked_prompts})
