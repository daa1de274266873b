"""Loading a causal LM from a local directory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from watermark import tokenizers
from watermark.errors import ModelError
from watermark.extras import require
from watermark.mark import Mark

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    path: Path, mark: Mark | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM, in evaluation mode, and its tokenizer; on the GPU if there is one.

    Args:
        path: the directory.
        mark: what will be embedded or tested: the tokenizer must be its own.
        dtype: of the weights; None: bfloat16 where the machine is fast at it, else float32.

    Raises:
        ModelError: the directory holds no causal LM that transformers can load, or one too narrow for the mark.
        TokenizerError: it has no tokenizer, or not the mark's.
    """
    if not path.is_dir():
        raise ModelError(f"{path}: no such model directory", "name a directory that save_pretrained wrote")
    require("torch", "transformers")
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizers.load_transformers(path)
    if mark is not None:
        tokenizers.check(mark, tokenizer, path)
    dtype = dtype or (torch.bfloat16 if fast_bfloat16() else torch.float32)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, local_files_only=True)
    except Exception as error:  # transformers raises whatever its readers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: no causal LM that transformers can load: {reason}") from error
    columns = model.config.get_text_config().vocab_size
    if mark is not None and mark.vocabulary_size is not None and columns < mark.vocabulary_size:
        raise ModelError(f"{path}: the model has {columns} token ids, the mark's vocabulary {mark.vocabulary_size}")
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    model.train(False)
    return model, tokenizer


def model_digest(path: Path) -> str:
    """SHA-256 in hex over a model folder's configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    for file_path in sorted(found for kind in ("*.json", "*.safetensors", "*.bin") for found in path.glob(kind)):
        digest.update(file_path.name.encode())
        with file_path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
