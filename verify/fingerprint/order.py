"""A keyed order for a model's hidden units: the same function, and a copy of it that can be told from a sibling.

Whoever releases weights may put the hidden units of each layer into an order drawn by a mark's secret. Nothing that the
model computes changes. Units of a suspect that match the teacher's in just this order come from the released weights:
a model that merely grew from the same parent has them in another.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from verify.fingerprint.layers import Weights
from watermark import Mark, ModelError, prf
from watermark.extras import require
from watermark.folder import check_folder, regular_file, template_files, tensor_names, weight_files
from watermark.io import files
from watermark.mark import as_mark
from watermark.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor


SALT: Final = "stillmark/v1/order"
RELEASED_FILES: Final = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "preprocessor_config.json",
    "processor_config.json", "tokenizer*.json", "tokenizer*.model", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "spiece.model", "chat_template*", "README.md", "LICENSE*", "NOTICE*", "configuration_*.py",
    "modeling_*.py", "tokenization_*.py",
)  # fmt: skip
"""The files that belong to a model besides its weights. Nothing else goes along: a mark, say, or what was planted."""


def keyed_order(mark: Mark, layer: int, digest: str, units: int) -> npt.NDArray[np.int64]:
    """Which unit stands at each place of a layer: int64 [units], a permutation that is uniform under the secret.

    The key is derived from the layer's number and content (`Weights.digest`) too, so that another layer, or another
    model, is another draw.
    """
    return prf.shuffle(prf.hkdf(mark.secret, SALT, f"{layer}/{digest}"), units)


def release_in_order(model: str | Path, mark: Mark | str | Path, out: str | Path, progress: Progress = silent) -> int:
    """Write a copy of a model with the hidden units of each MLP in the mark's order, file by file.

    Only what belongs to the model goes along: its weights, and files such as configuration, tokenizer and licence. They
    must be regular files inside the folder: no link is followed, since what it points to may not be meant to be public.

    Args:
        model: folder with safetensors. Keep it as it is: the test needs it, and it is not to be released.
        mark: the mark, or its file, whose secret draws the order.
        out: a new folder.
        progress: called with files done and in all.

    Returns:
        The number of layers that were put in order.

    Raises:
        ModelError: `out` exists or cannot be written, or a file to be released is a link or lies outside the folder, or
            the model holds no MLP that can be read, or one that may not be put in another order.
        MarkError: the mark cannot be read.

    Example:
        >>> release_in_order("teacher/", "teacher.mark", "release/")  # doctest: +SKIP
        30
    """
    model, mark, out = Path(model), as_mark(mark), Path(out)
    require("torch", "safetensors")
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    if out.exists():
        raise ModelError(f"{out}: exists already", "choose another `out`, or remove it")
    check_folder(model)
    sources = weight_files(model, links=False)
    others = sorted(_others(model))
    weights = Weights(model)
    if not weights.layers:
        raise ModelError(f"{model}: no MLP layers of a known naming", "there is nothing to put in order")
    places: dict[str, tuple[npt.NDArray[np.int64], int, bool]] = {}
    for layer in weights.layers:
        for mlp in weights.mlps(layer):
            units = len(weights.units(layer, mlp).up)
            order = keyed_order(mark, layer, weights.digest(layer, mlp), units)
            places |= {name: (order, axis, fused) for name, axis, fused in weights.unit_axes(layer, units, mlp)}
    try:
        with files.new_folder(out) as scratch:
            for done, name in enumerate(sources):
                progress(done, len(sources))
                source, target = regular_file(model, name, links=False), scratch / name
                with safe_open(source, framework="pt") as file:
                    about = file.metadata()
                    tensors = {
                        name: _in_order(file.get_tensor(name), *places.get(name, _AS_IT_IS))
                        for name in tensor_names(source)
                    }
                target.parent.mkdir(parents=True, exist_ok=True)
                save_file(tensors, target, about)
                shutil.copymode(source, target)
            progress(len(sources), len(sources))
            for name in others:
                target = scratch / name
                target.parent.mkdir(exist_ok=True)
                shutil.copy(regular_file(model, name, links=False), target, follow_symlinks=False)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{out}: cannot write: {reason}", "is the folder writable, and the disk not full?") from error
    return len(weights.layers)


def _others(model: Path) -> Iterator[str]:
    """Names of the files that go along with the weights."""
    for entry in model.iterdir():
        known = any(fnmatch(entry.name, pattern) for pattern in RELEASED_FILES)
        if known and (entry.is_symlink() or not entry.is_dir()):
            regular_file(model, entry.name, links=False)
            yield entry.name
    for name in template_files(model):
        regular_file(model, name, links=False)
        yield name


_AS_IT_IS: Final = (np.arange(0), -1, False)


def _in_order(tensor: Tensor, order: npt.NDArray[np.int64], axis: int, fused: bool) -> Tensor:
    import torch

    if axis < 0:
        return tensor
    index = torch.from_numpy(np.concatenate([order, len(order) + order]) if fused else order)
    return tensor.index_select(axis, index)
