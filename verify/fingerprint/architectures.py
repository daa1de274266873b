"""What architectures call the parts of a model that are compared: MLPs, the norms before them, and the embedding."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

GATE: Final = ("mlp.gate_proj", "mlp.w1", "feed_forward.w1", "feed_forward.gate_proj", "ffn.gate_proj")
UP: Final = (
    "mlp.up_proj",
    "mlp.w3",
    "feed_forward.w3",
    "feed_forward.up_proj",
    "mlp.c_fc",
    "mlp.fc1",
    "mlp.dense_h_to_4h",
    "fc1",
    "ffn.up_proj",
)
DOWN: Final = ("mlp.down_proj", "mlp.w2", "feed_forward.w2", "mlp.c_proj", "mlp.fc2", "mlp.dense_4h_to_h", "fc2",
               "feed_forward.down_proj", "ffn.down_proj")  # fmt: skip
FUSED: Final = ("mlp.gate_up_proj",)
NORM: Final = ("pre_feedforward_layernorm", "pre_mlp_layernorm", "pre_ff_layernorm", "post_attention_layernorm",
               "ln_2", "ffn_norm", "final_layer_norm")  # fmt: skip
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
    "qwen3_5_moe",
    "qwen3_5_moe_text",
)
"""Model types whose norms multiply by 1 + weight."""

NORM_BEHIND: Final = ("olmo2", "olmo3", "olmo_hybrid", "flex_olmo", "exaone4")
"""Model types whose norms stand behind the MLP: nothing scales what its units read."""

NON_LANGUAGE_PARTS: Final = ("vision", "visual", "image", "audio", "speech")
"""In the names of parts that are no language model."""

BOTH_NORMS: Final = ("gemma", "vaultgemma", "t5gemma", "glm4", "afmoe")
"""How model types begin that have norms before and behind the MLP."""

CONV1D: Final = ("gpt2", "openai-gpt")
"""Model types that store linear layers input first."""

INTERLEAVED: Final = ("gpt_oss",)
"""Model types that pack the rows of gate and up in turn; others all of the gate first."""

LAYER: Final = re.compile(r"((?:.*?\.)??)(layers|h|blocks|layer)\.(\d{1,6})\.(.+)$")
"""The name of a layer's tensor: the stack's prefix, what a layer is called, its number, the rest."""


def has_mlp(layer: Collection[str]) -> bool:
    """Whether a layer, whose tensors are given by the rest of their names, has an MLP of a known naming."""
    return all(any(f"{role}.weight" in layer for role in roles) for roles in ((*UP, *FUSED), DOWN))
