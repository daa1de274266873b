"""Embed a green-list watermark while a language model generates."""

from watermark.errors import ApiError, InputError, MarkError, ModelError, StillmarkError, TokenizerError, UsageError
from watermark.mark import Mark, Marks
from watermark.schemes.greenlist import contexts_at_end

__all__ = [
    "ApiError",
    "InputError",
    "Mark",
    "MarkError",
    "Marks",
    "ModelError",
    "StillmarkError",
    "TokenizerError",
    "UsageError",
    "contexts_at_end",
]
__stillmark__ = "0.1.0"
