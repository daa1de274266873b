"""Names of a package that are imported when they are first used, so that importing the package is light."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def importing(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package. places: the module of each public name.

    The function raises MissingExtraError where a package of an extra is not installed.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        try:
            module = importlib.import_module(places[name])
        except ModuleNotFoundError as error:
            from watermark.extras import missing

            raise missing(error) or error from None
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return get
