"""The native kernel's levels, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from watermark.kernels import Kernel, native


def variants(kernel: Kernel) -> Iterator[str]:
    """The kernel, or each level of the native one that this processor has, in use while its name is here; best last."""
    for level in reversed(native.levels() if kernel == "native" else []):
        native.use(level)
        yield level
    if kernel != "native":
        yield kernel
