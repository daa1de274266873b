"""A keyed order for a model's hidden units: the same function, and a copy of it that can be told from a sibling.

Whoever releases weights may put the hidden units of each layer into an order drawn by a mark's secret. Nothing that the
model computes changes. Units of a suspect that match the teacher's in just this order come from the released weights:
a model that merely grew from the same parent has them in another.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from verify.fingerprint.layers import Weights, tensor_names
from watermark import Mark, ModelError, files, prf

if TYPE_CHECKING:
    from torch import Tensor

SCHEME: Final = "order"
"""Of `watermark.prf.prf_key`: a key of its own."""


def keyed_order(mark: Mark, layer: int, units: int) -> npt.NDArray[np.int64]:
    """Which unit stands at each place of a layer: int64 [units], a permutation that is uniform under the secret.

    Every unit gets 64 keyed bits, and the smallest comes first.
    """
    key = prf.prf_key(mark.secret, SCHEME, 2)
    index = np.repeat(np.arange(units), 4)
    contexts = np.stack([np.full_like(index, layer), index], axis=1)
    words = prf.bits(key, contexts, np.tile(np.arange(4), units)).astype(np.uint64).reshape(-1, 4)
    return np.argsort(words @ (np.uint64(1) << np.arange(0, 64, 16, dtype=np.uint64)), kind="stable")


def release(model: Path, mark: Mark, out: Path, progress: Callable[[int, int], None] = lambda _done, _all: None) -> int:
    """Write a copy of a model with the hidden units of each MLP in the mark's order, file by file.

    Args:
        model: folder with safetensors. Keep it: the test needs it, and it is not to be released.
        mark: whose secret draws the order.
        out: a new folder.
        progress: called with files done and in all.

    Returns:
        The number of layers that were put in order.

    Raises:
        ModelError: `out` exists or cannot be written, or the model holds no MLP that can be read.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if out.exists():
        raise ModelError(f"{out}: exists already", "choose another --out, or remove it")
    weights = Weights(model)
    if not weights.layers:
        raise ModelError(f"{model}: no MLP layers of a known naming", "there is nothing to put in order")
    places = {
        name: (keyed_order(mark, layer, len(weights.units(layer).up)), axis, fused)
        for layer in weights.layers
        for name, axis, fused in weights.unit_axes(layer)
    }
    sources = sorted(weights.files)
    try:
        with files.new_folder(out) as scratch:
            for done, source in enumerate(sources):
                progress(done, len(sources))
                with safe_open(source, framework="pt") as file:
                    about = file.metadata()
                    tensors = {
                        name: _in_order(file.get_tensor(name), *places.get(name, _AS_IT_IS))
                        for name in tensor_names(source)
                    }
                save_file(tensors, scratch / source.name, about)
            progress(len(sources), len(sources))
            for other in model.iterdir():
                if other.is_file() and other.suffix not in (".safetensors", ".bin", ".pt", ".pth", ".gguf"):
                    shutil.copy(other, scratch)
    except OSError as error:
        raise ModelError(
            f"{out}: cannot write: {error.strerror}", "is the folder writable, and the disk not full?"
        ) from error
    return len(weights.layers)


_AS_IT_IS: Final = (np.arange(0), -1, False)


def _in_order(tensor: Tensor, order: npt.NDArray[np.int64], axis: int, fused: bool) -> Tensor:
    import torch

    if axis < 0:
        return tensor
    index = torch.from_numpy(np.concatenate([order, len(order) + order]) if fused else order)
    return tensor.index_select(axis, index)
