"""A model's weights from safetensors, one layer at a time: the MLP's units and the embedding, and nothing else.

What is read is what transformers would load: a copy must not hide behind files and tensors that nobody uses.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from watermark import ModelError
from watermark.extras import require

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

ONE_PLUS: Final = (
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "recurrent_gemma",
    "t5gemma",
    "vaultgemma",
    "nemotron",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_text",
)
"""Model types whose norms multiply by 1 + weight."""

NORM_BEHIND: Final = ("olmo2", "olmo3", "olmo_hybrid", "flex_olmo", "exaone4")
"""Model types whose norms stand behind the MLP: nothing scales what its units read."""

NON_LANGUAGE_PARTS: Final = ("vision", "visual", "image", "audio", "speech")
"""In the names of parts that are no language model."""

BOTH_NORMS: Final = ("gemma", "vaultgemma", "t5gemma", "glm4")
"""How model types begin that have norms before and behind the MLP."""

CONV1D: Final = ("gpt2", "openai-gpt")
"""Model types that store linear layers input first."""

_LAYER: Final = re.compile(r"((?:.*?\.)??)(layers|h|blocks|layer)\.(\d+)\.(.+)$")
_ROWS: Final = 4096  # of an embedding, at a time
_DEPTH: Final = ("num_hidden_layers", "n_layer", "num_layers")


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
        unused: the tensors that are no part of the model, and their files.

    Raises:
        MissingExtraError: torch, transformers or safetensors is not installed.
        ModelError: no safetensors there, neither an MLP nor an embedding that we know, or it cannot be told which of
            several are the language model's.
    """

    def __init__(self, path: Path) -> None:
        require("torch", "transformers", "safetensors")
        self.path = path
        if not path.is_dir():
            raise ModelError(f"{path}: no such model directory", "name a directory that save_pretrained wrote")
        self._config = _config(path)
        self.skipped: list[str] = []
        self.unused: dict[str, Path] = {}
        self._where = self._used(_tensors(path))
        stacks: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
        for name in self._where:
            if found := _LAYER.match(name):
                stacks[found[1]][int(found[3])][found[4]] = name
        known = {prefix: layers for prefix, layers in stacks.items() if any(map(_has_mlp, layers.values()))}
        embeddings: dict[str, str] = {}
        for name in self._where:
            for end in EMBEDDING:
                if f".{name}".endswith(f".{end}"):
                    twin = embeddings.setdefault(name[: -len(end)], name)
                    if twin != name:
                        raise ModelError(
                            f"{path}: both {twin} and {name} may be the embedding", "remove what is not used"
                        )
        prefix = self._language(set(known), set(embeddings))
        tied = "lm_head.weight" if "lm_head.weight" in self._where and not embeddings else None
        only = next(iter(embeddings.values())) if len(embeddings) == 1 else tied
        self._embedding = embeddings.get(prefix) or only
        numbers = self._numbers(known.get(prefix, {}))
        self._layers = {number: known[prefix][number] for number in numbers}
        self.layers = tuple(numbers)
        if not self.layers and self._embedding is None:
            raise ModelError(
                f"{path}: no MLP layers and no embedding of a known naming among {len(self._where)} tensors",
                "merge adapters into the model first, and save a dense copy in bfloat16",
            )

    def _used(self, where: dict[str, Path]) -> dict[str, Path]:
        """The tensors that the architecture has a place for, where transformers knows it; else all of them."""
        if self._config.get("transformers_weights"):
            raise ModelError(f"{self.path}: its configuration names other weights", "remove transformers_weights")
        if self._config.get("quantization_config") or (self.path / "adapter_config.json").exists():
            raise ModelError(f"{self.path}: quantized, or with an adapter", "save a dense, merged copy in bfloat16")
        places, prefix = _places(self.path)
        found: dict[str, Path] = {}
        taken: dict[str, str] = {}
        for name, file in where.items():
            for place in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
                if place in places:
                    if (twin := taken.setdefault(place, name)) != name:
                        raise ModelError(f"{self.path}: both {twin} and {name} are {place}", "remove what is not used")
                    found[name] = file
                    break
        if not any(_LAYER.match(name) for name in found):
            return where  # under names that are translated on loading
        self.unused = {name: file for name, file in where.items() if name not in found}
        if scale := next((name for name in self.unused if name.rpartition("weight")[0] + "weight" in found), None):
            raise ModelError(f"{self.path}: {scale} belongs to a weight", "save a dense copy in bfloat16")
        if self.unused:
            self.skipped.append(
                f"{self.path}: {len(self.unused)} tensors that the architecture has no place for were not read."
            )
        return found

    def _language(self, stacks: set[str], embeddings: set[str]) -> str:
        """The prefix of the language model's tensors: of the one stack that is no tower for images or sound."""
        towers = {
            prefix for prefix in stacks - embeddings if any(word in prefix.lower() for word in NON_LANGUAGE_PARTS)
        }
        beside = stacks - towers if len(stacks) > 1 else stacks
        if len(beside) > 1 or (stacks and not beside):
            names = ", ".join(sorted(prefix or "(none)" for prefix in stacks))
            raise ModelError(
                f"{self.path}: layers of several models ({names}), and it cannot be told which is the language model",
                "save that one by itself",
            )
        found = next(iter(beside), next(iter(embeddings), "") if len(embeddings) == 1 else "")
        if others := stacks - beside:
            self.skipped.append(f"{self.path}: not compared: the layers under {', '.join(sorted(others))}.")
        return found

    def _numbers(self, stack: dict[int, dict[str, str]]) -> list[int]:
        """Layers that the model uses, and whose MLP can be read."""
        depth = self._setting(_DEPTH)
        used = sorted(number for number in stack if depth is None or number < depth)
        read = [number for number in used if _has_mlp(stack[number])]
        if len(read) < len(stack):
            self.skipped.append(
                f"{self.path}: {len(stack) - len(read)} of {len(stack)} layers were not compared: unused, or with no "
                "MLP of a known naming."
            )
        return read

    def _setting(self, names: tuple[str, ...]) -> Any:
        """A number from the configuration, of the language model where there are several; None if there is none."""
        text = self._config.get("text_config")
        for config in (text if isinstance(text, dict) else {}, self._config):
            for name in names:
                if isinstance(config.get(name), int):
                    return config[name]
        return None

    @cached_property
    def _kind(self) -> str:
        text = self._config.get("text_config")
        inner = text.get("model_type") if isinstance(text, dict) else None
        return str(inner or self._config.get("model_type", ""))

    @cached_property
    def transposed(self) -> bool:
        """Whether linear layers are stored input first."""
        return (not self._kind or self._kind in CONV1D) and "mlp.c_fc.weight" in self._layers[self.layers[0]]

    @cached_property
    def width(self) -> int | None:
        """Numbers in a row of the residual stream; None without layers."""
        if not self.layers:
            return None
        a, b = self._size(self._role(self.layers[0], DOWN) or "")
        return b if self.transposed else a

    @cached_property
    def embedding_shape(self) -> tuple[int, int] | None:
        """Rows and columns of the token embedding; None if there is none of a known name."""
        return None if self._embedding is None else self._size(self._embedding)

    def units(self, layer: int) -> Units:
        """One layer's MLP. Raises ModelError if its tensors do not fit together."""

        def rows(roles: tuple[str, ...]) -> F32 | None:
            name = self._role(layer, roles)
            if name is None:
                return None
            tensor = self._read(name)
            return tensor.T if self.transposed else tensor

        down, fused = rows(DOWN), rows(FUSED)
        if fused is not None and (self._role(layer, GATE) or self._role(layer, UP)):
            raise ModelError(f"{self.path}: layer {layer} has an MLP both fused and not", "remove what is not used")
        gate, up = (rows(GATE), rows(UP)) if fused is None else (fused[: len(fused) // 2], fused[len(fused) // 2 :])
        assert up is not None
        assert down is not None
        down = np.ascontiguousarray(down.T)
        gain = self._gain(layer)
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

    @property
    def files(self) -> set[Path]:
        """The files that hold the model."""
        return set(self._where.values())

    def unit_axes(self, layer: int, units: int) -> list[tuple[str, int, bool]]:
        """Tensors of a layer that have its `units` along an axis: name, axis, and whether gate and up are fused.

        Raises:
            ModelError: another tensor of the MLP may have them too.
        """
        names = self._layers[layer]
        down, fused = self._role(layer, DOWN), self._role(layer, FUSED)
        found = {self._role(layer, roles): int(self.transposed) for roles in (GATE, UP, FUSED)}
        biases = {name.removesuffix("weight") + "bias": 0 for name in found if name is not None}
        found |= {down: 1 - int(self.transposed)} | {name: 0 for name in biases if name in self._where}
        parent = next(rest for rest, name in names.items() if name == down).rpartition(".")[0].rpartition(".")[0]
        for rest, name in names.items():
            if (
                not rest.startswith(f"{parent}.")
                or name in found
                or name == f"{(down or '').removesuffix('weight')}bias"
            ):
                continue
            shape = self._shape(name)
            if units in shape or len(shape) > 1:
                raise ModelError(
                    f"{self.path}: {name} may hold the hidden units too", "this MLP is not one that we know"
                )
        for name, file in self.unused.items():
            with _open(file) as held:
                if units in held.get_slice(name).get_shape():
                    raise ModelError(f"{self.path}: {name} is unused and may hold the hidden units", "remove it")
        if any(self._tensor(name).element_size() == 1 for name in found if name is not None):
            raise ModelError(f"{self.path}: layer {layer} is stored in eight bits", "save a dense copy in bfloat16")
        return [(name, axis, fused is not None and name != down) for name, axis in found.items() if name is not None]

    def embedding(self, rows: int) -> Iterator[F32]:
        """The first rows of the embedding, float32 [up to 4096, d] at a time."""
        assert self._embedding is not None
        with _open(self._where[self._embedding]) as file:
            part = file.get_slice(self._embedding)
            for first in range(0, rows, _ROWS):
                yield _numpy(part[first : min(first + _ROWS, rows)])

    def _gain(self, layer: int) -> F32:
        """What the norm before the MLP multiplies by: float32 [d] or [1]."""
        name = self._role(layer, NORM)
        if (
            name is None
            or self._kind in NORM_BEHIND
            or (self._kind == "opt" and self._config.get("do_layer_norm_before") is False)
        ):
            return np.ones(1, np.float32)
        weight = self._read(name, dimensions=1)
        return 1 + weight if self._kind in ONE_PLUS else weight

    def _role(self, layer: int, roles: tuple[str, ...]) -> str | None:
        found = [self._layers[layer][f"{role}.weight"] for role in roles if f"{role}.weight" in self._layers[layer]]
        if len(found) > 1 and not (roles is NORM and self._kind.startswith(BOTH_NORMS)):
            raise ModelError(f"{self.path}: both {found[0]} and {found[1]} may be the MLP's", "remove what is not used")
        return found[0] if found else None

    def _size(self, name: str) -> tuple[int, int]:
        shape = self._shape(name)
        if len(shape) != 2:
            raise ModelError(f"{self.path}: {name} is no matrix", "save a dense copy in bfloat16")
        return shape[0], shape[1]

    def _shape(self, name: str) -> list[int]:
        with _open(self._where[name]) as file:
            shape: list[int] = file.get_slice(name).get_shape()
        return shape

    def _tensor(self, name: str) -> Tensor:
        with _open(self._where[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def digest(self, layer: int) -> str:
        """SHA-256 in hex of what the units of a layer read, as it is stored."""
        import torch

        tensor = self._tensor(self._role(layer, UP) or self._role(layer, FUSED) or "")
        return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

    def _read(self, name: str, dimensions: int = 2) -> F32:
        tensor = self._tensor(name)
        if tensor.ndim != dimensions or (not tensor.is_floating_point() and str(tensor.dtype) != "torch.int8"):
            raise ModelError(
                f"{self.path}: {name} is stored as {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}",
                "packed weights are not read; save a dense copy in bfloat16",
            )
        return _numpy(tensor)


def scaled_rows(rows: F32) -> F32:
    """Rows divided by their largest number, which neither overflows nor vanishes; what is no number becomes 0."""
    rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    return np.asarray(rows / np.where(largest > 0, largest, 1), np.float32)


def _has_mlp(layer: dict[str, str]) -> bool:
    return all(any(f"{role}.weight" in layer for role in roles) for roles in ((*UP, *FUSED), DOWN))


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _places(path: Path) -> tuple[set[str], str]:
    """Names of an architecture's tensors, and the prefix that may be missing from them; none if it is not known."""
    if not (path / "config.json").exists():
        return set(), ""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(path), local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception:  # transformers raises whatever its readers raise
        return set(), ""
    return set(model.state_dict()), str(model.base_model_prefix)


def _tensors(path: Path) -> dict[str, Path]:
    """Which file holds each tensor of those that transformers would load: of `model.safetensors`, or else of the index.

    An index only names files for it; what a file holds besides is loaded too.
    """
    index = path / "model.safetensors.index.json"
    if index.exists() and not (path / "model.safetensors").exists():
        try:
            listed = {
                str(name): path / str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{index}: not an index of safetensors files") from None
        found: dict[str, Path] = {}
        for file in sorted(set(listed.values())):
            for name in tensor_names(file):
                if found.setdefault(name, file) != file:
                    raise ModelError(f"{index}: {name} is in two files", "it cannot be told which is the model's")
        if missing := next((name for name, file in listed.items() if found.get(name) != file), None):
            raise ModelError(f"{index}: {missing} is not in {listed[missing].name}")
        return found
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{path}: holds no .safetensors file", "save the model with save_pretrained(..., safe_serialization)"
        )
    whole = [file for file in files if file.name == "model.safetensors"] or files
    if len(whole) > 1:
        raise ModelError(
            f"{path}: {len(whole)} .safetensors files and no model.safetensors.index.json that says which are the model"
        )
    if whole[0].name != "model.safetensors" and any(path.glob("pytorch_model.bin*")):
        raise ModelError(f"{path}: its weights are in pytorch_model.bin", "save them as safetensors")
    return dict.fromkeys(tensor_names(whole[0]), whole[0])


def _open(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file. Raises ModelError."""
    from safetensors import SafetensorError

    try:
        with _open(path) as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not readable as safetensors: {error}") from error


def _numpy(tensor: Tensor) -> F32:
    values: F32 = tensor.float().numpy()
    return values
