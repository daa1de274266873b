"""A model's weights from safetensors, one layer at a time: the MLP's units and the embedding, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from watermark import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

F32 = npt.NDArray[np.float32]

GATE: Final = ("mlp.gate_proj", "mlp.w1", "feed_forward.w1", "ffn.gate_proj")
UP: Final = (
    "mlp.up_proj",
    "mlp.w3",
    "feed_forward.w3",
    "mlp.c_fc",
    "mlp.fc1",
    "mlp.dense_h_to_4h",
    "fc1",
    "ffn.up_proj",
)
DOWN: Final = ("mlp.down_proj", "mlp.w2", "feed_forward.w2", "mlp.c_proj", "mlp.fc2", "mlp.dense_4h_to_h", "fc2",
               "ffn.down_proj")  # fmt: skip
FUSED: Final = ("mlp.gate_up_proj",)
NORM: Final = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ffn_norm", "final_layer_norm")
EMBEDDING: Final = (
    "embed_tokens.weight",
    "wte.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
    "word_embeddings.weight",
)

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
_ROWS: Final = 4096  # of an embedding, at a time


@dataclass(frozen=True)
class Units:
    """The hidden units of one MLP, each a row in the residual stream's coordinates: float32 [h, d].

    gate is None where the MLP has none. Rows that read the stream hold the gain of the norm before them.
    """

    gate: F32 | None
    up: F32
    down: F32


class Weights:
    """The weights in a model folder, opened when asked for.

    Raises:
        ModelError: no safetensors there, or no MLP among them that we know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise ModelError(f"{path}: no such model directory", "name a directory that save_pretrained wrote")
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"{path}: holds no .safetensors file", "save the model with save_pretrained(..., safe_serialization)"
            )
        self._where: dict[str, Path] = {}
        for file in files:
            for name in _names(file):
                self._where[name] = file
        self._layers: dict[int, dict[str, str]] = {}
        for name in self._where:
            if found := _LAYER.search(name):
                self._layers.setdefault(int(found[1]), {})[found[2]] = name
        if not self.depth or not self._has_mlp(0):
            raise ModelError(
                f"{path}: no MLP layers of a known naming among {len(self._where)} tensors",
                "quantized or expert layers are not read; save a dense copy in bfloat16 first",
            )

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self._layers)

    @cached_property
    def transposed(self) -> bool:
        """Whether linear layers are stored input first, as GPT-2's Conv1D does."""
        return self._role(0, ("mlp.c_fc",)) is not None and "gpt2" in str(self._config.get("model_type", "gpt2"))

    @cached_property
    def _config(self) -> dict[str, Any]:
        try:
            config = json.loads((self.path / "config.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return config if isinstance(config, dict) else {}

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Units of the first MLP and width of the residual stream: (h, d)."""
        name = self._role(0, DOWN)
        assert name is not None
        a, b = self._size(name)
        return (a, b) if self.transposed else (b, a)

    @cached_property
    def vocabulary(self) -> int | None:
        """Rows of the embedding; None if there is none of a known name."""
        return None if self._embedding is None else self._size(self._embedding)[0]

    def units(self, layer: int) -> Units:
        """One layer's MLP. Raises ModelError if it is not like the others."""
        if not self._has_mlp(layer):
            raise ModelError(f"{self.path}: layer {layer} has no MLP of a known naming")
        gain = self._role(layer, NORM)
        scale = 1.0 if gain is None else self._read(gain)

        def rows(roles: tuple[str, ...]) -> F32 | None:
            name = self._role(layer, roles)
            if name is None:
                return None
            tensor = self._read(name)
            return tensor.T if self.transposed else tensor

        down = rows(DOWN)
        assert down is not None
        fused = rows(FUSED)
        gate, up = (rows(GATE), rows(UP)) if fused is None else (fused[: len(fused) // 2], fused[len(fused) // 2 :])
        assert up is not None
        return Units(None if gate is None else gate * scale, up * scale, np.ascontiguousarray(down.T))

    def embedding(self, rows: int) -> Iterator[F32]:
        """The first rows of the embedding, float32 [up to 4096, d] at a time."""
        assert self._embedding is not None
        with _open(self._where[self._embedding]) as file:
            part = file.get_slice(self._embedding)
            for first in range(0, rows, _ROWS):
                yield _numpy(part[first : min(first + _ROWS, rows)])

    @cached_property
    def _embedding(self) -> str | None:
        return next((name for name in self._where if name.endswith(EMBEDDING)), None)

    def _has_mlp(self, layer: int) -> bool:
        up = self._role(layer, UP) or self._role(layer, FUSED)
        return up is not None and self._role(layer, DOWN) is not None

    def _role(self, layer: int, roles: tuple[str, ...]) -> str | None:
        names = self._layers.get(layer, {})
        return next((names[f"{role}.weight"] for role in roles if f"{role}.weight" in names), None)

    def _size(self, name: str) -> tuple[int, int]:
        with _open(self._where[name]) as file:
            a, b = file.get_slice(name).get_shape()
        return a, b

    def _read(self, name: str) -> F32:
        with _open(self._where[name]) as file:
            return _numpy(file.get_tensor(name))


def _open(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def _names(path: Path) -> list[str]:
    from safetensors import SafetensorError

    try:
        with _open(path) as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not readable as safetensors: {error}") from error


def _numpy(tensor: Tensor) -> F32:
    values: F32 = tensor.float().numpy()
    return values
