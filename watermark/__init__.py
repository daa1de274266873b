"""Embed a green-list watermark while a language model generates.

The names below are imported when they are first used, so that `import watermark` is light: it brings no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    from watermark.schemes.greenlist import contexts_at_end

__stillmark__ = "0.1.0"
__version__ = __stillmark__

_PLACES = {
    "ApiError": "errors",
    "InputError": "errors",
    "Mark": "mark",
    "MarkConfig": "integrations.transformers",
    "MarkError": "errors",
    "MarkLogitsProcessor": "integrations.transformers",
    "Marks": "mark",
    "MissingExtraError": "errors",
    "ModelError": "errors",
    "Sampling": "generation",
    "StillmarkError": "errors",
    "TokenizerError": "errors",
    "UsageError": "errors",
    "contexts_at_end": "schemes.greenlist",
    "generate": "generation",
    "highlight": "highlighting",
}

__all__ = [
    "ApiError",
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
    "UsageError",
    "contexts_at_end",
    "generate",
    "highlight",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'watermark' has no attribute '{name}'")
    try:
        module = importlib.import_module(f"watermark.{_PLACES[name]}")
    except ModuleNotFoundError as error:
        from watermark.extras import missing

        raise missing(error) or error from None
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
