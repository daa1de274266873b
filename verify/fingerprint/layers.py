"""A model's weights from safetensors, one layer at a time: the MLP's units and the embedding, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from verify.fingerprint.architectures import (
    BOTH_NORMS,
    CONV1D,
    DOWN,
    FUSED,
    GATE,
    INTERLEAVED,
    NORM,
    NORM_BEHIND,
    ONE_PLUS,
    UP,
)
from verify.fingerprint.experts import Stored
from verify.fingerprint.layout import read_layout
from watermark import ModelError
from watermark.extras import require
from watermark.folder import open_weights, printable

if TYPE_CHECKING:
    from torch import Tensor


F32 = npt.NDArray[np.float32]

_ROWS: Final = 4096  # of an embedding, at a time


@dataclass(frozen=True)
class Units:
    """The hidden units of one MLP, each a row in the residual stream's coordinates: float32 [h, d].

    gate is None where the MLP has none. Rows that read the stream hold the gain of the norm before them. The size of a
    row means nothing: the largest number in each is 1, and what is no number is 0.
    """

    gate: F32 | None
    up: F32
    down: F32

    @cached_property
    def nonzero(self) -> npt.NDArray[np.int64]:
        """Indices of the units that read something and write something; a padded MLP ends in others."""
        parts = [self.up, self.down] + ([] if self.gate is None else [self.gate])
        found: npt.NDArray[np.int64] = np.flatnonzero(np.all([part.any(axis=1) for part in parts], axis=0))
        return found

    def scaled(self) -> Units:
        """The same units with rows of size 1."""
        return Units(
            None if self.gate is None else scaled_rows(self.gate), scaled_rows(self.up), scaled_rows(self.down)
        )

    def in_order(self, order: npt.NDArray[np.int64]) -> Units:
        """The same units, `order[i]` in place i."""
        return Units(None if self.gate is None else self.gate[order], self.up[order], self.down[order])


class Weights:
    """The weights in a model folder, opened when asked for.

    Attributes:
        path: the folder.
        layers: numbers of the layers that can be read, ascending.
        skipped: what the folder holds besides, in words.

    Raises:
        ModelError: what `verify.fingerprint.layout.read_layout` raises.
        MissingExtraError: torch, transformers or safetensors is not installed.
        ModelError: no safetensors there, neither an MLP nor an embedding that we know, or it cannot be told which of
            several are the language model's.
    """

    def __init__(self, path: Path) -> None:
        require("torch", "transformers", "safetensors")
        self.path = path
        self._layout = read_layout(path)
        self._embedding = self._layout.embedding
        self.layers = tuple(self._layout.layers)
        self.skipped = self._layout.skipped

    @cached_property
    def transposed(self) -> bool:
        """Whether linear layers are stored input first."""
        kind = self._layout.kind
        return (not kind or kind in CONV1D) and "mlp.c_fc.weight" in self._layout.layers[self.layers[0]].names

    @cached_property
    def width(self) -> int | None:
        """Numbers in a row of the residual stream; None without layers."""
        if not self.layers:
            return None
        layer = self.layers[0]
        return int(self.units(layer, self.mlps(layer)[0]).down.shape[1])

    @cached_property
    def embedding_shape(self) -> tuple[int, int] | None:
        """Rows and columns of the token embedding; None if there is none of a known name."""
        if self._embedding is None:
            return None
        shape = self._shape(Stored(self._embedding))
        if len(shape) != 2:
            raise ModelError(f"{self.path}: {printable(self._embedding)} is no matrix", "save a dense copy in bfloat16")
        return shape[0], shape[1]

    def mlps(self, layer: int) -> tuple[str | None, ...]:
        """The MLPs of a layer: None for a dense one, and of a mixture of experts `shared` and the experts' numbers."""
        return tuple(self._layout.layers[layer].mlps)

    def units(self, layer: int, mlp: str | None = None) -> Units:
        """One MLP of a layer, as `mlps` names it. Raises ModelError if its tensors do not fit together."""

        def rows(roles: tuple[str, ...]) -> F32 | None:
            stored = self._role(layer, mlp, roles)
            if stored is None:
                return None
            tensor = self._read(stored)
            return tensor.T if self.transposed else tensor

        down, fused = rows(DOWN), rows(FUSED)
        if fused is not None and (self._role(layer, mlp, GATE) or self._role(layer, mlp, UP)):
            raise ModelError(f"{self.path}: layer {layer} has an MLP both fused and not", "remove what is not used")
        gate, up = rows(GATE), rows(UP)
        assert down is not None
        if fused is not None:
            if self._packed(layer, mlp) and fused.shape == (down.shape[1], 2 * down.shape[0]):  # input first
                fused, down = fused.T, down.T
            interleaved = self._packed(layer, mlp) and self._layout.kind in INTERLEAVED
            gate, up = (fused[::2], fused[1::2]) if interleaved else np.split(fused, [len(fused) // 2])
        assert up is not None
        down = np.ascontiguousarray(down.T)
        gain = self._gain(layer, mlp)
        if not all(part is None or part.shape == down.shape for part in (gate, up)) or len(gain) not in (
            1,
            down.shape[1],
        ):
            raise ModelError(
                f"{self.path}: layer {layer}: tensors of shapes that do not fit one MLP",
                "packed or fused in a way that is not read; save a dense copy in bfloat16",
            )
        gain = scaled_rows(gain[None])[0]
        return Units(None if gate is None else scaled_rows(gate) * gain, scaled_rows(up) * gain, down).scaled()

    def unit_axes(self, layer: int, units: int, mlp: str | None = None) -> list[tuple[str, int, bool]]:
        """Tensors of an MLP that have its `units` along an axis: name, axis, and whether gate and up are fused.

        Raises:
            ModelError: another tensor of the MLP may have them too, or one holds those of several experts.
        """
        if self._packed(layer, mlp):
            raise ModelError(
                f"{self.path}: layer {layer} holds all its experts in one tensor", "save a copy with the experts apart"
            )
        names = {rest: stored.name for rest, stored in self._layout.layers[layer].mlps[mlp].items()}
        found: dict[str, int] = {}
        fused = None
        for roles in (GATE, UP, FUSED, DOWN):
            if (stored := self._role(layer, mlp, roles)) is not None:
                found[stored.name] = int(self.transposed) if roles is not DOWN else 1 - int(self.transposed)
                fused = stored.name if roles is FUSED else fused
        down = list(found)[-1]
        biases = [name.removesuffix("weight") + "bias" for name in found]
        found |= {name: 0 for name in biases[:-1] if name in self._layout.files}
        parent = next(rest for rest, name in names.items() if name == down).rpartition(".")[0].rpartition(".")[0]
        for rest, name in names.items():
            if not rest.startswith(f"{parent}.") or name in found or name == biases[-1]:
                continue
            shape = self._shape(Stored(name))
            if units in shape or len(shape) > 1:
                raise ModelError(
                    f"{self.path}: {printable(name)} may hold the hidden units too", "this MLP is not one that we know"
                )
        for name, file in self._layout.unused.items():
            with open_weights(file) as held:
                if units in held.get_slice(name).get_shape():
                    raise ModelError(
                        f"{self.path}: {printable(name)} is unused and may hold the hidden units", "remove it"
                    )
        if any(self._tensor(Stored(name)).element_size() == 1 for name in found):
            raise ModelError(f"{self.path}: layer {layer} is stored in eight bits", "save a dense copy in bfloat16")
        return [(name, axis, fused is not None and name != down) for name, axis in found.items()]

    def embedding(self, rows: int) -> Iterator[F32]:
        """The first rows of the embedding, float32 [up to 4096, d] at a time."""
        assert self._embedding is not None
        with open_weights(self._layout.files[self._embedding]) as file:
            part = file.get_slice(self._embedding)
            for first in range(0, rows, _ROWS):
                yield _numpy(part[first : min(first + _ROWS, rows)])

    def digest(self, layer: int, mlp: str | None = None) -> str:
        """SHA-256 in hex of what the units of an MLP read, as it is stored."""
        import torch

        stored = self._role(layer, mlp, UP) or self._role(layer, mlp, FUSED)
        assert stored is not None
        return hashlib.sha256(self._tensor(stored).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

    def _gain(self, layer: int, mlp: str | None) -> F32:
        """What the norm before the MLP multiplies by: float32 [d] or [1]."""
        stored = self._role(layer, mlp, NORM)
        if (
            stored is None
            or self._layout.kind in NORM_BEHIND
            or (self._layout.kind == "opt" and self._layout.config.get("do_layer_norm_before") is False)
        ):
            return np.ones(1, np.float32)
        weight = self._read(stored, dimensions=1)
        return 1 + weight if self._layout.kind in ONE_PLUS else weight

    def _role(self, layer: int, mlp: str | None, roles: tuple[str, ...]) -> Stored | None:
        parts = self._layout.layers[layer].mlps[mlp]
        found = [parts[f"{role}.weight"] for role in roles if f"{role}.weight" in parts]
        if len(found) > 1 and not (roles is NORM and self._layout.kind.startswith(BOTH_NORMS)):
            both = f"both {printable(found[0].name)} and {printable(found[1].name)}"
            raise ModelError(f"{self.path}: {both} may be the MLP's", "remove what is not used")
        return found[0] if found else None

    def _packed(self, layer: int, mlp: str | None) -> bool:
        """Whether the MLP is an expert whose tensors hold the other experts too."""
        return any(stored.expert is not None for stored in self._layout.layers[layer].mlps[mlp].values())

    def _shape(self, stored: Stored) -> list[int]:
        with open_weights(self._layout.files[stored.name]) as file:
            shape: list[int] = file.get_slice(stored.name).get_shape()
        return shape if stored.expert is None else shape[1:]

    def _tensor(self, stored: Stored) -> Tensor:
        with open_weights(self._layout.files[stored.name]) as file:
            tensor: Tensor = (
                file.get_tensor(stored.name)
                if stored.expert is None
                else file.get_slice(stored.name)[stored.expert : stored.expert + 1][0]
            )
        return tensor

    def _read(self, stored: Stored, dimensions: int = 2) -> F32:
        tensor = self._tensor(stored)
        if tensor.ndim != dimensions or (not tensor.is_floating_point() and str(tensor.dtype) != "torch.int8"):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{self.path}: {printable(stored.name)} is stored as {kind} {list(tensor.shape)}",
                "packed weights are not read; save a dense copy in bfloat16",
            )
        values = _numpy(tensor)
        if 2 * np.count_nonzero(np.isfinite(values)) < values.size:
            raise ModelError(
                f"{self.path}: {printable(stored.name)} holds no numbers (NaN or infinity) in most of its places",
                "no model runs with these weights: ask for the ones that it is served with",
            )
        return values


def scaled_rows(rows: F32) -> F32:
    """Rows divided by their largest number, which neither overflows nor vanishes; what is no number becomes 0."""
    rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    return np.asarray(rows / np.where(largest > 0, largest, 1), np.float32)


def _numpy(tensor: Tensor) -> F32:
    values: F32 = tensor.float().numpy()
    return values
