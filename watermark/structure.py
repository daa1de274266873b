"""Whether a model folder's weights are the whole of the model that its configuration describes, and nothing else.

transformers only logs what does not fit, and draws what is missing at random: such a model would be tested, found
innocent, and nobody would know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from watermark.errors import ModelError
from watermark.folder import open_weights, printable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


_MORE_NUMBERS: Final = 1 << 26  # in parameters and buffers that are not stored, such as the sines of positions
_MORE_TENSORS: Final = 4096
_SIZES: Final = (
    "vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "moe_intermediate_size", "n_inner",
    "ffn_dim", "d_ff", "num_labels", "num_attention_heads", "num_key_value_heads", "n_head", "head_dim",
    "num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok",
)  # fmt: skip
"""Numbers of a configuration that are, or are no more than, a dimension of a tensor."""
_LARGE: Final = 1 << 20
"""A size up to which it costs nothing to build a model without its weights."""
_WRAPPERS: Final = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.")
_NOT_ONE: Final = "config.json and the weights are not of one model"


def check_labels(path: Path, parts: Iterable[dict[str, Any]]) -> None:
    """Raises ModelError for more labels than a model has: transformers makes a name for each, whatever is loaded."""
    for part in parts:
        number = part.get("num_labels")
        if isinstance(number, (int, float)) and not 0 <= number <= _LARGE:
            raise ModelError(f"{path}: config.json: num_labels is {printable(number)}", _NOT_ONE)


def check_sizes(path: Path, parts: Iterable[dict[str, Any]], where: dict[str, Path], quantized: bool) -> None:
    """Holds a configuration's sizes against the shapes of the tensors, before anything is built of them.

    Args:
        path: the model's folder, for the message.
        parts: the configuration, and those within it.
        where: which file holds each tensor.
        quantized: whether a stored number may be several.

    Raises:
        ModelError: a large size that no tensor has.
    """
    large = [
        (name, part[name])
        for part in parts
        for name in _SIZES
        if isinstance(part.get(name), (int, float)) and not 0 <= part[name] <= _LARGE
    ]
    if not large:
        return
    widest = 0
    for file in sorted(set(where.values())):
        with open_weights(file) as held:
            widest = max([widest, *(size for name in list(held.keys()) for size in held.get_slice(name).get_shape())])
    for name, size in large:
        if not 0 <= size <= widest * (32 if quantized else 1):
            raise ModelError(
                f"{path}: {name} is {printable(size)}, and the largest dimension of a tensor is {widest}", _NOT_ONE
            )


@contextmanager
def within_bounds(path: Path, where: dict[str, Path], quantized: bool) -> Iterator[None]:
    """Ends the building of a model that is many times larger than the files that hold its weights.

    Args:
        path: the model's folder, for the message.
        where: which file holds each tensor.
        quantized: whether a stored byte may be more than two numbers.

    Raises:
        ModelError: as soon as more parameters and buffers are made than the files can account for.
    """
    from torch.nn.modules import module

    stored = sum(file.stat().st_size for file in set(where.values()))
    most = stored * (16 if quantized else 2) + _MORE_NUMBERS  # 2: tied weights are stored once
    tensors = numbers = 0

    def count(_module: torch.nn.Module, _name: str, tensor: torch.Tensor | None) -> None:
        nonlocal tensors, numbers
        tensors += 1
        numbers += 0 if tensor is None else tensor.numel()
        if tensors > 4 * len(where) + _MORE_TENSORS or numbers > most:
            raise ModelError(
                f"{path}: its configuration describes a model many times larger than its weights", _NOT_ONE
            )

    hooks = [
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_stored(path: Path, where: dict[str, Path]) -> None:
    """Raises ModelError for matrices of integers, which mean nothing without a quantization_config."""
    for file in sorted(set(where.values())):
        with open_weights(file) as held:
            for name in list(held.keys()):
                part = held.get_slice(name)
                if part.get_dtype().startswith(("I", "U", "BOOL")) and name.endswith("weight"):
                    raise ModelError(
                        f"{path}: {printable(name)} is stored as integers, and no quantization_config says how",
                        "save a dense copy in bfloat16",
                    )


def check_whole(
    path: Path, model: PreTrainedModel, found: dict[str, Any], where: Iterable[str], quantized: bool
) -> None:
    """Raises ModelError if the files lack a part of the model, or hold one that the model would go without."""
    if missing := sorted(found["missing_keys"]):
        wrapper = next((w for w in _WRAPPERS if all(name.startswith(w) for name in where)), None)
        raise ModelError(
            f"{path}: {len(missing)} tensors of the model are not in its files, {_some(missing)}: "
            "transformers would draw them at random",
            f"the names in the files begin with '{wrapper}': save the model itself, not its wrapper"
            if wrapper
            else f"{_NOT_ONE}, or a part was not saved",
        )
    if mismatched := sorted(found["mismatched_keys"]):
        _, stored, wanted = mismatched[0]
        raise ModelError(
            f"{path}: {len(mismatched)} tensors have another shape than the model, {_some([m[0] for m in mismatched])}:"
            f" {list(stored)} stored, {list(wanted)} by its configuration",
            _NOT_ONE,
        )
    if not quantized and (foreign := sorted(_within(model, found["unexpected_keys"]))):
        raise ModelError(
            f"{path}: {len(foreign)} tensors belong to its layers and have no place in its architecture, "
            f"{_some(foreign)}: what transformers makes of it is another model",
            f"{_NOT_ONE}; remove tensors that are really unused",
        )


def _within(model: PreTrainedModel, names: Iterable[str]) -> Iterator[str]:
    """Those tensors that stand inside a layer, or a stack of layers, that the model has; not those of an adapter.

    A head for rewards, a tower for images, buffers of masks are unused and change nothing.
    """
    import torch

    modules = dict(model.named_modules())
    for name in names:
        if ".lora_" in name:
            continue
        for full in (name, f"{model.base_model_prefix}.{name}"):
            parts = full.split(".")
            parent = next((p for n in range(len(parts) - 1, 0, -1) if (p := ".".join(parts[:n])) in modules), "")
            holds = any(True for _ in modules[parent].parameters(recurse=False))
            stack = isinstance(modules[parent], torch.nn.ModuleList) or any(p.isdecimal() for p in parent.split("."))
            if parent and (holds or (stack and name.endswith(".weight"))):
                yield name
                break


def _some(names: list[str]) -> str:
    return "such as " + ", ".join(map(printable, names[:3]))
