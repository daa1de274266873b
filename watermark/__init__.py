"""Embed a green-list watermark while a language model generates.

The names below are imported when they are first used, so that `import watermark` is light: it brings no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from watermark.lazy import importing

if TYPE_CHECKING:
    from watermark.errors import (
        ApiError,
        InputError,
        MarkError,
        MissingExtraError,
        ModelError,
        StillmarkError,
        TokenizerError,
        UsageError,
    )
    from watermark.generation import Sampling, generate
    from watermark.highlighting import highlight
    from watermark.integrations.transformers import MarkConfig, MarkLogitsProcessor
    from watermark.mark import Mark, Marks
    from watermark.models import load_model
    from watermark.schemes import GreenList, Tournament
    from watermark.schemes.logits import contexts_at_end

__stillmark__ = "0.1.0"
__version__ = __stillmark__

_PLACES = {
    "ApiError": "watermark.errors",
    "GreenList": "watermark.schemes",
    "InputError": "watermark.errors",
    "Mark": "watermark.mark",
    "MarkConfig": "watermark.integrations.transformers",
    "MarkError": "watermark.errors",
    "MarkLogitsProcessor": "watermark.integrations.transformers",
    "Marks": "watermark.mark",
    "MissingExtraError": "watermark.errors",
    "ModelError": "watermark.errors",
    "Sampling": "watermark.generation",
    "StillmarkError": "watermark.errors",
    "TokenizerError": "watermark.errors",
    "Tournament": "watermark.schemes",
    "UsageError": "watermark.errors",
    "contexts_at_end": "watermark.schemes.logits",
    "generate": "watermark.generation",
    "highlight": "watermark.highlighting",
    "load_model": "watermark.models",
}

__all__ = [
    "ApiError",
    "GreenList",
    "InputError",
    "Mark",
    "MarkConfig",
    "MarkError",
    "MarkLogitsProcessor",
    "Marks",
    "MissingExtraError",
    "ModelError",
    "Sampling",
    "StillmarkError",
    "TokenizerError",
    "Tournament",
    "UsageError",
    "contexts_at_end",
    "generate",
    "highlight",
    "load_model",
]


__getattr__ = importing(__name__, _PLACES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
