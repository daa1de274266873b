"""Which kernel runs, and how `torch.compile` sees it: as one opaque operation, without a graph break."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Final

import torch
from torch import Tensor

from watermark.kernels import Kernel, native
from watermark.kernels import torch as plain

_SHARED = "Tensor which, Tensor exempt, Tensor allowed, int first, int limit"
_ROWS = "str kernel, Tensor(a!) logits, Tensor contexts, Tensor keys"


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it comes with torch's CUDA builds."""
    return importlib.util.find_spec("triton") is not None


def choose(kernel: Kernel | None, device: torch.device) -> Kernel:
    """The kernel for a device, or the one that was asked for. Raises ValueError if that is not to be had."""
    if kernel is None:
        if device.type == "cpu":
            return "native" if native.available else "torch"
        return "triton" if device.type == "cuda" and has_triton() else "torch"
    if kernel not in ("native", "triton", "torch"):
        raise ValueError(f"no kernel '{kernel}'")
    if kernel == "native" and not (native.available and device.type == "cpu"):
        raise ValueError(f"the native kernel is not built here, or the logits lie on '{device.type}', not on a CPU")
    if kernel == "triton" and not has_triton():
        raise ValueError("the package 'triton' is not installed")
    return kernel


def run(operation: str, kernel: Kernel | None, logits: Tensor, *tables: Tensor | int) -> None:
    """Run a kernel.

    Args:
        operation: `bias` or `tournament`.
        kernel: which implementation; None: the one for the logits' device.
        logits: [B, V].
        tables: the other arguments of the function in `watermark.kernels.torch`.
    """
    chosen = choose(kernel, logits.device)
    opaque = torch.compiler.is_compiling() and chosen != "torch"
    (_OPAQUE if opaque else _PLAIN)[operation](chosen, logits, *tables)


def _bias(kernel: str, logits: Tensor, *tables: Tensor | int) -> None:
    if kernel == "triton":
        from watermark.kernels import triton

        triton.bias_(logits, *tables)  # type: ignore[arg-type]
    else:
        (native if kernel == "native" else plain).bias_(logits, *tables)


def _tournament(kernel: str, logits: Tensor, *tables: Tensor | int) -> None:
    if kernel == "triton":
        from watermark.kernels import triton_tournament

        triton_tournament.tournament_(logits, *tables)  # type: ignore[arg-type]
    else:
        (native if kernel == "native" else plain).tournament_(logits, *tables)


def _hidden(name: str, function: Callable[..., None], parameters: str) -> Callable[..., None]:
    """An operation that `torch.compile` does not look into."""
    schema = f"({_ROWS}, {parameters}, {_SHARED}) -> ()"
    return torch.library.custom_op(f"stillmark::{name}", function, mutates_args=("logits",), schema=schema)


_PLAIN: Final = {"bias": _bias, "tournament": _tournament}
_OPAQUE: Final = {
    "bias": _hidden("bias_", _bias, "Tensor thresholds, Tensor deltas"),
    "tournament": _hidden("tournament_", _tournament, "Tensor layers"),
}
