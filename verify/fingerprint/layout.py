"""Which tensors of a model folder are the language model's MLPs and its embedding.

What counts is what transformers would load: a copy must not hide behind files and tensors that nobody uses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from verify.fingerprint.architectures import EMBEDDING, LAYER, NON_LANGUAGE_PARTS, has_mlp
from verify.fingerprint.experts import Layer, block, holds_experts, read_layer
from watermark import ModelError
from watermark.folder import check_folder, is_adapter, open_weights, printable, read_config, tensor_files
from watermark.models import DEPTH, architecture

Stack = dict[int, dict[str, str]]
"""Layers by number: for each the names of its tensors, by what follows the number."""


@dataclass(frozen=True)
class Layout:
    """The tensors of a folder that are compared.

    Attributes:
        path: the folder.
        config: what its `config.json` says; empty if there is none.
        files: which file holds each tensor of the model.
        unused: the tensors that are no part of the model, and their files.
        layers: the layers that can be read.
        embedding: the name of the embedding; None if there is none of a known naming.
        skipped: what the folder holds besides, in words.
    """

    path: Path
    config: dict[str, Any]
    files: dict[str, Path]
    unused: dict[str, Path]
    layers: dict[int, Layer]
    embedding: str | None
    skipped: tuple[str, ...]

    @cached_property
    def kind(self) -> str:
        """The model type, of the language model where there are several; empty if the configuration names none."""
        text = self.config.get("text_config")
        inner = text.get("model_type") if isinstance(text, dict) else None
        return str(inner or self.config.get("model_type", ""))


def read_layout(path: Path) -> Layout:
    """What is where in a folder; no weights are read.

    Raises:
        ModelError: the folder or its configuration cannot be read, it holds neither an MLP nor an embedding that we
            know, or it cannot be told which of several are the language model's.
    """
    if path.is_dir() and is_adapter(path):
        raise _not_dense(path)
    check_folder(path)
    config = read_config(path)
    skipped: list[str] = []
    known_architecture = architecture(path)
    files, unused = _used(path, config, tensor_files(path), known_architecture or (frozenset(), ""), skipped)
    stacks: dict[str, Stack] = defaultdict(lambda: defaultdict(dict))
    for name in files:
        if found := LAYER.match(name):
            stacks[found[1]][int(found[3])][found[4]] = name
    known = {
        prefix: layers
        for prefix, layers in stacks.items()
        if any(has_mlp(names) or holds_experts(names) for names in layers.values())
    }
    embeddings = _embeddings(path, files)
    prefix = _language(path, set(known), set(embeddings), skipped)
    tied = "lm_head.weight" if "lm_head.weight" in files and not embeddings else None
    only = next(iter(embeddings.values())) if len(embeddings) == 1 else tied
    embedding = embeddings.get(prefix) or only
    layers = _readable(path, config, known.get(prefix, {}), files, known_architecture is not None, skipped)
    if not layers and embedding is None:
        raise ModelError(
            f"{path}: no MLP layers and no embedding of a known naming among {len(files)} tensors",
            "merge adapters into the model first, and save a dense copy in bfloat16",
        )
    return Layout(path, config, files, unused, layers, embedding, tuple(skipped))


def _not_dense(path: Path) -> ModelError:
    return ModelError(f"{path}: quantized, or with an adapter", "save a dense, merged copy in bfloat16")


def _used(
    path: Path,
    config: dict[str, Any],
    where: dict[str, Path],
    known: tuple[frozenset[str], str],
    skipped: list[str],
) -> tuple[dict[str, Path], dict[str, Path]]:
    """The tensors that the architecture has a place for, where transformers knows it, else all; and the others.

    known: names of the places, and the prefix that may be missing from them.
    """
    if config.get("transformers_weights"):
        raise ModelError(f"{path}: its configuration names other weights", "remove transformers_weights")
    if config.get("quantization_config"):
        raise _not_dense(path)
    if config.get("auto_map"):
        skipped.append(f"{path}: its configuration names code of its own (auto_map), which was not run.")
    places, prefix = known
    mixtures, blocks = _layers_with_experts(places), _blocks_of_experts(where)
    found: dict[str, Path] = {}
    taken: dict[str, str] = {}
    translated: set[str] = set()
    for name, file in where.items():
        full = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        place = next((one for one in full if one in places), None)
        if place is None and _block(name) in blocks and any(_layer(one) in mixtures for one in full):
            place = name  # experts, and what chooses among them: packed and renamed on loading
            translated.add(name)
        if place is None:
            continue
        if (twin := taken.setdefault(place, name)) != name:
            raise ModelError(
                f"{path}: both {printable(twin)} and {printable(name)} are {printable(place)}",
                "remove what is not used",
            )
        found[name] = file
    if not any(LAYER.match(name) for name in found):
        return where, {}  # under names that are translated on loading
    unused = {name: file for name, file in where.items() if name not in found}
    for name in (*unused, *translated):
        weight = name.rpartition("weight")[0] + "weight"
        if weight != name and weight in found:
            raise ModelError(f"{path}: {printable(name)} belongs to a weight", "save a dense copy in bfloat16")
    if unused:
        skipped.append(f"{path}: {len(unused)} tensors that the architecture has no place for were not read.")
    return found, unused


def _layer(name: str) -> str | None:
    """The layer that a tensor belongs to, by what its names begin with."""
    found = LAYER.match(name)
    return None if found is None else f"{found[1]}{found[2]}.{found[3]}"


def _block(name: str) -> str | None:
    """The module of a layer that a tensor belongs to."""
    found = LAYER.match(name)
    return None if found is None else f"{_layer(name)}.{block(found[4])}"


def _layers_with_experts(names: Iterable[str]) -> set[str | None]:
    return {_layer(name) for name in names if (found := LAYER.match(name)) and holds_experts((found[4],))}


def _blocks_of_experts(names: Iterable[str]) -> set[str | None]:
    return {_block(name) for name in names if (found := LAYER.match(name)) and holds_experts((found[4],))} - {None}


def _embeddings(path: Path, files: dict[str, Path]) -> dict[str, str]:
    """Names of the embeddings by what stands before."""
    found: dict[str, str] = {}
    for name in files:
        for end in EMBEDDING:
            if f".{name}".endswith(f".{end}"):
                twin = found.setdefault(name[: -len(end)], name)
                if twin != name:
                    raise ModelError(
                        f"{path}: both {printable(twin)} and {printable(name)} may be the embedding",
                        "remove what is not used",
                    )
    return found


def _language(path: Path, stacks: set[str], embeddings: set[str], skipped: list[str]) -> str:
    """The prefix of the language model's tensors: of the one stack that is no tower for images or sound."""
    towers = {prefix for prefix in stacks - embeddings if any(word in prefix.lower() for word in NON_LANGUAGE_PARTS)}
    beside = stacks - towers if len(stacks) > 1 else stacks
    if len(beside) > 1 or (stacks and not beside):
        names = ", ".join(sorted(printable(prefix) or "(none)" for prefix in stacks))
        raise ModelError(
            f"{path}: layers of several models ({names}), and it cannot be told which is the language model",
            "save that one by itself",
        )
    found = next(iter(beside), next(iter(embeddings), "") if len(embeddings) == 1 else "")
    if others := stacks - beside:
        skipped.append(f"{path}: not compared: the layers under {', '.join(sorted(map(printable, others)))}.")
    return found


def _readable(
    path: Path, config: dict[str, Any], stack: Stack, files: dict[str, Path], known: bool, skipped: list[str]
) -> dict[int, Layer]:
    """Layers that the model uses, and whose MLPs can be read, ascending; known: transformers knows the architecture."""

    def shape(name: str) -> list[int]:
        with open_weights(files[name]) as file:
            found: list[int] = file.get_slice(name).get_shape()
        return found

    depth = _depth(config)
    used = {
        number: read_layer(stack[number], shape, known) for number in sorted(stack) if depth is None or number < depth
    }
    read = {number: layer for number, layer in used.items() if layer.mlps}
    if mixtures := [layer for layer in used.values() if layer.unread]:
        kind = printable(config.get("model_type", "of no known type"))
        number = sum(len(layer.unread) for layer in mixtures)
        skipped.append(
            f"{path}: {number} tensors of experts, in {len(mixtures)} of {len(stack)} layers, were not read: a mixture "
            f"of experts ({kind}) that is stored in a way that is not known."
        )
    if len(read) < len(stack):
        skipped.append(
            f"{path}: {len(stack) - len(read)} of {len(stack)} layers were not compared: unused, or with no MLP of a "
            "known naming."
        )
    return read


def _depth(config: dict[str, Any]) -> int | None:
    """The number of layers by the configuration, of the language model where there are several; None if not said."""
    text = config.get("text_config")
    for part in (text if isinstance(text, dict) else {}, config):
        for name in DEPTH:
            if isinstance(part.get(name), int):
                return int(part[name])
    return None
