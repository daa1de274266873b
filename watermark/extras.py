"""Optional packages: whether one is installed, and an error that names the extra that brings it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Final

from watermark.errors import MissingExtraError

EXTRAS: Final = {
    "torch": "torch",
    "transformers": "torch",
    "accelerate": "torch",
    "safetensors": "torch",
    "openai": "api",
    "ray": "ray",
    "matplotlib": "plot",
    "gguf": "demo",
    "rfc3161_client": "evidence",
    "securesystemslib": "evidence",
    "sigstore": "sigstore",
}
"""Which extra brings a package."""


def available(package: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    return importlib.util.find_spec(package) is not None


def require(*packages: str) -> None:
    """Import packages of EXTRAS, so that one that is missing is named before any work is done.

    Raises:
        MissingExtraError: one is not installed.
    """
    for package in packages:
        extra = EXTRAS[package]
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise missing(error) or MissingExtraError(package, extra) from None


def missing(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error that names the extra, if a package of EXTRAS is what could not be imported."""
    package = (error.name or "").partition(".")[0]
    return MissingExtraError(package, EXTRAS[package]) if package in EXTRAS else None
