"""The MLPs of one layer: its only one, or those of a mixture of experts, each stored apart or all in one tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from verify.fingerprint.architectures import DOWN, FUSED, GATE, UP, has_mlp


class Stored(NamedTuple):
    """Where a part of an MLP is: a tensor's name, and an expert's number where the tensor holds all experts."""

    name: str
    expert: int | None = None


@dataclass(frozen=True)
class Layer:
    """The tensors of one layer.

    Attributes:
        names: of all its tensors, by what follows the layer's number.
        mlps: for each MLP its parts, and those of the layer that belong to no MLP, by the names that they have in a
            layer with one MLP. The key is None for a dense MLP, `shared` for the expert that every token passes, and
            else the expert's number.
        unread: names of tensors of experts that are stored in a way that is not known.
    """

    names: dict[str, str]
    mlps: dict[str | None, dict[str, Stored]]
    unread: tuple[str, ...]


MAX_EXPERTS: Final = 1024
"""Experts of a layer that are read; a folder that names more is none of a real model."""

_BLOCK: Final = r"(?:mlp|block_sparse_moe|feed_forward|ffn)\."
_APART: Final = re.compile(_BLOCK + r"experts\.(\d{1,6})\.(.+)$")
_SHARED: Final = re.compile(rf"(?:{_BLOCK})?(?:shared_experts?|shared_mlp)\.(.+)$")
_PACKED: Final = re.compile(_BLOCK + r"(?:experts\.(gate_up_proj|down_proj)|(input_linear|output_linear)\.weight)$")
_PACKED_BIAS: Final = re.compile(_BLOCK + r"experts\.(gate_up_proj|down_proj)_bias$")
_EXPERTS: Final = re.compile(r"(?!self_att)(?:.*\.)?experts\.")  # attention may have experts too
_OTHER_NAMES: Final = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}
_ROLES: Final = frozenset(f"{role}.weight" for role in (*GATE, *UP, *DOWN, *FUSED))


def holds_experts(names: Iterable[str]) -> bool:
    """Whether some tensors of a layer, by what follows its number, are experts."""
    return any(_EXPERTS.match(rest) or _PACKED.match(rest) for rest in names)


def block(rest: str) -> str:
    """The module of a layer, such as `mlp`, that a tensor belongs to, by what follows the layer's number."""
    return rest.partition(".")[0]


def read_layer(names: dict[str, str], shape: Callable[[str], list[int]], packed: bool) -> Layer:
    """Which MLPs a layer has.

    Args:
        names: of its tensors, by what follows the layer's number.
        shape: gives a tensor's.
        packed: whether it is known how this architecture packs experts into one tensor.
    """
    rest, unread = dict(names), list[str]()
    found: dict[str | None, dict[str, Stored]] = {}
    whole: dict[str, list[str]] = {"gate_up_proj": [], "down_proj": []}
    for name, tensor in names.items():
        if match := _APART.match(name):
            found.setdefault(match[1], {})[f"mlp.{match[2]}"] = Stored(tensor)
        elif match := _SHARED.match(name):
            first, dot, last = match[1].partition(".")
            found.setdefault("shared", {})[f"mlp.{_OTHER_NAMES.get(first, first)}{dot}{last}"] = Stored(tensor)
        elif match := _PACKED.match(name):
            whole[match[1] or _OTHER_NAMES[match[2]]].append(tensor)
        elif _EXPERTS.match(name) and not _PACKED_BIAS.match(name):
            unread.append(tensor)
        elif not _PACKED_BIAS.match(name):
            continue
        del rest[name]
    tensors = [tensor for one in whole.values() for tensor in one]
    apart = len(found.keys() - {"shared"})
    if packed and not apart and [len(one) for one in whole.values()] == [1, 1]:
        numbers = {shape(tensor)[0] if len(shape(tensor)) == 3 else 0 for tensor in tensors}
        number = numbers.pop() if len(numbers) == 1 else 0
        for i in range(number if number <= MAX_EXPERTS else 0):
            found[str(i)] = {f"mlp.{role}.weight": Stored(one[0], i) for role, one in whole.items()}
    experts = len(found.keys() - {"shared"})
    if apart or not experts:
        unread += tensors
    readable = experts <= MAX_EXPERTS
    mlps = {key: mlp for key, mlp in found.items() if has_mlp(mlp) and (readable or key == "shared")}
    unread += [part.name for key, mlp in found.items() if key not in mlps for part in mlp.values()]
    blocks = {block(name) for name in names if name not in rest}
    around = {name: Stored(tensor) for name, tensor in rest.items() if name not in _ROLES and block(name) not in blocks}
    mlps = {key: mlp | around for key, mlp in mlps.items()}
    if has_mlp(rest):
        mlps[None] = {name: Stored(tensor) for name, tensor in rest.items()}
    return Layer(names, mlps, tuple(unread))
