"""Find the mark: test whether a suspect was trained on a teacher's marked outputs.

The names below are imported when they are first used, so that `import verify` is light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import watermark

if not hasattr(watermark, "__stillmark__"):
    raise ImportError(
        "the package 'watermark' imported here is not stillmark's: the notebook magic of that name on PyPI "
        f"has taken its place ({getattr(watermark, '__file__', 'unknown file')}). "
        "Fix it with: pip uninstall -y watermark && pip install --force-reinstall --no-deps stillmark"
    )

from watermark.lazy import importing

if TYPE_CHECKING:
    from verify.corpus.test import CorpusResult, corpus_test
    from verify.data.context_counts import ContextCounts, count_contexts
    from verify.data.outputs import Output, Outputs, read_outputs
    from verify.evidence.bundle import make_bundle
    from verify.evidence.calibrate import calibrate
    from verify.evidence.calibration import Calibration
    from verify.evidence.check import check_bundle
    from verify.evidence.checked import CheckResult
    from verify.fingerprint.order import release_in_order
    from verify.fingerprint.run import agreement_test, canary_test, planted_test, weights_test
    from verify.lineage.run import make_plan, suspect
    from verify.lineage.single import plan_test, under_plan
    from verify.lineage.verdict import Verdict
    from verify.planning.demo import teacher_model
    from verify.planning.power import power
    from verify.planning.quality import quality
    from verify.planning.student import Training, TrainingReport, train_student
    from verify.profiles import import_mark
    from verify.radioactivity.attribute import attribute, plan_labels
    from verify.radioactivity.endpoint_test import endpoint_test
    from verify.radioactivity.logprob_test import logprob_test
    from verify.radioactivity.text_test import text_test
    from verify.results import Result
    from verify.suspects.endpoint import Endpoint

_PLACES = {
    "Calibration": "verify.evidence.calibration",
    "CheckResult": "verify.evidence.checked",
    "CorpusResult": "verify.corpus.test",
    "ContextCounts": "verify.data.context_counts",
    "Endpoint": "verify.suspects.endpoint",
    "Output": "verify.data.outputs",
    "Outputs": "verify.data.outputs",
    "Result": "verify.results",
    "Training": "verify.planning.student",
    "TrainingReport": "verify.planning.student",
    "Verdict": "verify.lineage.verdict",
    "agreement_test": "verify.fingerprint.run",
    "attribute": "verify.radioactivity.attribute",
    "calibrate": "verify.evidence.calibrate",
    "canary_test": "verify.fingerprint.run",
    "check_bundle": "verify.evidence.check",
    "corpus_test": "verify.corpus.test",
    "count_contexts": "verify.data.context_counts",
    "endpoint_test": "verify.radioactivity.endpoint_test",
    "import_mark": "verify.profiles",
    "logprob_test": "verify.radioactivity.logprob_test",
    "make_bundle": "verify.evidence.bundle",
    "make_plan": "verify.lineage.run",
    "plan_labels": "verify.radioactivity.attribute",
    "plan_test": "verify.lineage.single",
    "planted_test": "verify.fingerprint.run",
    "power": "verify.planning.power",
    "quality": "verify.planning.quality",
    "read_outputs": "verify.data.outputs",
    "release_in_order": "verify.fingerprint.order",
    "suspect": "verify.lineage.run",
    "teacher_model": "verify.planning.demo",
    "text_test": "verify.radioactivity.text_test",
    "train_student": "verify.planning.student",
    "under_plan": "verify.lineage.single",
    "weights_test": "verify.fingerprint.run",
}

__all__ = [
    "Calibration",
    "CheckResult",
    "ContextCounts",
    "CorpusResult",
    "Endpoint",
    "Output",
    "Outputs",
    "Result",
    "Training",
    "TrainingReport",
    "Verdict",
    "agreement_test",
    "attribute",
    "calibrate",
    "canary_test",
    "check_bundle",
    "corpus_test",
    "count_contexts",
    "endpoint_test",
    "import_mark",
    "logprob_test",
    "make_bundle",
    "make_plan",
    "plan_labels",
    "plan_test",
    "planted_test",
    "power",
    "quality",
    "read_outputs",
    "release_in_order",
    "suspect",
    "teacher_model",
    "text_test",
    "train_student",
    "under_plan",
    "weights_test",
]


__getattr__ = importing(__name__, _PLACES)


def __dir__() -> list[str]:
    return __all__
