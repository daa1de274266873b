"""Loading a causal LM from a local directory: the only place where transformers builds a model from a folder.

Nothing in a folder is ever run: no code of its own, no kernel that its configuration names, no pickle, no adapter from
elsewhere. And what is loaded is what the folder holds: a tensor that is missing is an error, since transformers would
draw it at random.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from watermark import tokenizers
from watermark.bounded import bounded
from watermark.errors import ModelError
from watermark.extras import require
from watermark.folder import (
    model_files,
    printable,
    read_config,
    tensor_files,
)
from watermark.mark import Mark
from watermark.progress import doing
from watermark.structure import check_sizes, check_stored, check_whole, within_bounds

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


DEPTH: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
"""What a configuration calls its number of layers."""

_NUMBERS: Final = re.compile(r"(?<=\.)\d{1,6}(?=\.)|^\d{1,6}(?=\.)")
_MORE_LAYERS: Final = 64  # than the tensors' names tell of: of a configuration that counts in another way
_NEVER_RUN: Final = "no code of a model folder is ever run"


def fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def load_model(
    path: str | Path,
    mark: Mark | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
    *,
    more_tokens: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM, in evaluation mode, and its tokenizer; on the GPU if there is one.

    Args:
        path: the directory: safetensors, and an architecture that transformers itself knows.
        mark: what will be embedded or tested: the tokenizer must be its own.
        dtype: of the weights; None: bfloat16 where the machine is fast at it, else float32.
        tokenizer: folder of a tokenizer, for a directory that holds none.
        more_tokens: the tokenizer may have tokens beyond the mark's.

    Raises:
        ModelError: the directory holds no causal LM that transformers can load, or only a part of one, or one that
            needs code of its own, an adapter or pickled weights, or one too narrow for the mark.
        TokenizerError: it has no tokenizer, or not the mark's.
    """
    require("torch", "transformers")
    path = Path(path)
    model_files(path)
    where = tensor_files(path)
    config = _load_config(path, where, own_code=False)
    import torch
    from transformers import AutoModelForCausalLM

    words = tokenizers.load_transformers(tokenizers.folder_of(path, tokenizer))
    if mark is not None:
        tokenizers.check(mark, words, path, more_tokens=more_tokens)
    dtype = dtype or (torch.bfloat16 if fast_bfloat16() else torch.float32)
    quantized = is_quantized(config)
    if not quantized:
        check_stored(path, where)
    _build(path, config, where)  # within bounds, before anything takes memory
    with _reasons(path), _without_report():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path),
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # an error of ours, which names them
        )
    model: PreTrainedModel = loaded[0]
    check_whole(path, model, loaded[1], where, quantized)
    columns = model.config.get_text_config().vocab_size
    if mark is not None and mark.vocabulary_size is not None and columns < mark.vocabulary_size:
        raise ModelError(f"{path}: the model has {columns} token ids, the mark's vocabulary {mark.vocabulary_size}")
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    model.train(False)
    return model, words


def architecture(path: Path) -> tuple[frozenset[str], str] | None:
    """Names of the tensors that a folder's architecture has a place for, and the prefix that may be missing from them.

    None where transformers itself does not know the architecture. No weights are loaded.

    Raises:
        ModelError: the configuration cannot be read, or asks for more than the folder's weights.
    """
    if not read_config(path):
        return None
    where = tensor_files(path)
    try:
        model = _build(path, _load_config(path, where, own_code=True), where)
    except _UnknownError:
        return None
    return frozenset(model.state_dict()), str(model.base_model_prefix)


def model_digest(model: str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> str:
    """SHA-256 in hex over all that makes a model say what it says. Raises ModelError.

    Of a folder: the names and contents of `watermark.folder.model_files`; of a loaded (model, tokenizer): the
    configuration, the tokenizer's fingerprint, and names, types, shapes and contents of the tensors.
    """
    if isinstance(model, tuple):
        return _loaded_digest(*model)
    digest = hashlib.sha256()
    with doing(f"hashing {Path(model).name}"):
        for name, found in model_files(Path(model)).items():
            digest.update(f"{len(name.encode())} {name}".encode())
            seen = found.stat()
            digest.update(_file_digest(found, seen.st_size, seen.st_mtime_ns, seen.st_ino))
    return digest.hexdigest()


@cache
def _file_digest(path: Path, *_seen: int) -> bytes:
    """SHA-256 of a file; _seen: its size, time and inode. One run asks for a model's digest several times."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _loaded_digest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    import torch

    whole = model.config.to_json_string(use_diff=False) + tokenizers.fingerprint(tokenizer)
    digest = hashlib.sha256(whole.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _UnknownError(ModelError):
    """A folder of which transformers cannot make a model."""


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Turns whatever transformers raises about a folder into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever its readers raise
        reason = printable(error) or type(error).__name__
        if "WatermarkingConfig" in reason:
            hint: str | None = "remove watermarking_config from its generation_config.json"
        else:
            hint = f"its own code is not an option: {_NEVER_RUN}" if any(path.glob("*.py")) else None
        raise _UnknownError(f"{path}: no causal LM that transformers can load: {reason}", hint) from error


@contextmanager
def _without_report() -> Iterator[None]:
    """Keeps transformers from logging the tensors that do not fit: `check_whole` says it, or they do not matter."""
    log = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def _load_config(path: Path, where: dict[str, Path], *, own_code: bool) -> PretrainedConfig:
    """A folder's configuration, without what would load code or weights from elsewhere.

    own_code: accept a folder that names code of its own, which is then ignored.
    """
    found = read_config(path)
    if not found:
        raise ModelError(f"{path}: holds no config.json", "name a directory that save_pretrained wrote")
    if found.get("auto_map") and not own_code:
        raise ModelError(
            f"{path}: its configuration names code of its own (auto_map), and {_NEVER_RUN}",
            "if transformers itself knows the architecture, test a copy of the folder without auto_map; "
            "else serve the model elsewhere and test the endpoint",
        )
    for name in ("transformers_weights", "configuration_files"):
        if found.get(name):
            raise ModelError(
                f"{path}: its configuration names other weights or files", f"remove {name} from config.json"
            )
    highest = max((int(number) for name in where for number in _NUMBERS.findall(name)), default=-1)
    parts = (found, *(value for value in found.values() if isinstance(value, dict)))
    check_sizes(path, parts, where, bool(found.get("quantization_config")))
    for part in parts:
        for name in DEPTH:
            number = part.get(name)
            if isinstance(number, (int, float)) and not 0 < number <= highest + 1 + _MORE_LAYERS:
                raise ModelError(
                    f"{path}: {name} is {printable(number)}, and the highest number of a layer among the tensors is "
                    f"{highest}",
                    "config.json and the weights are not of one model",
                )
    from transformers import AutoConfig

    with bounded(f"{path}: its configuration"), _reasons(path):
        config: PretrainedConfig = AutoConfig.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
        # None: transformers' own choice. A folder could name a kernel on the hub, which is compiled code.
        config._attn_implementation = None
        config._experts_implementation = None
        if hasattr(config, "fusion_config"):
            del config.fusion_config
        inner: Any = config.get_text_config()
        for one in (config, inner):  # what a forward pass gives is not the folder's to say
            one.return_dict, one.output_hidden_states, one.torchscript = True, False, False
    return config


def is_quantized(config: PretrainedConfig) -> bool:
    """Whether a configuration says that the weights are stored in fewer bits."""
    return getattr(config, "quantization_config", None) is not None


def _build(path: Path, config: PretrainedConfig, where: dict[str, Path]) -> PreTrainedModel:
    """The model without its weights, on the meta device; ModelError if it is much larger than its files."""
    import torch
    from transformers import AutoModelForCausalLM

    with (
        bounded(f"{path}: its configuration"),
        _reasons(path),
        within_bounds(path, where, is_quantized(config)),
        torch.device("meta"),
    ):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return made
