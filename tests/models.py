"""Models for tests and benchmarks: small networks trained on one language, and one with a real teacher's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from watermark.tokenizers import load_transformers

VOCABULARY: Final = 64
WIDTH: Final = 24
UNITS: Final = 48
LAYERS: Final = 2
STEPS: Final = 400
BATCH: Final = 128

Tensors = dict[str, Tensor]


def language(seed: int, context: int = 1) -> Tensor:
    """A Markov chain over tokens, the same for all: what is alike in independent models, it teaches them."""
    rows = np.random.default_rng(seed).dirichlet(np.full(VOCABULARY, 0.05), (context, VOCABULARY))
    mixed = rows[0]
    for more in rows[1:]:
        mixed = (mixed[None] + more[:, None]).reshape(-1, VOCABULARY) / 2
    return torch.from_numpy(mixed).float()


def parameters(models: int, gated: bool = True) -> Tensors:
    """Random weights of many networks at once, [models, ...] each."""

    def draw(*shape: int) -> Tensor:
        return torch.nn.Parameter(torch.randn(models, *shape) / shape[-1] ** 0.5)

    tensors = {"model.embed_tokens.weight": draw(VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        mlp = f"model.layers.{layer}.mlp"
        if gated:
            tensors[f"{mlp}.gate_proj.weight"] = draw(UNITS, WIDTH)
        tensors |= {f"{mlp}.up_proj.weight": draw(UNITS, WIDTH), f"{mlp}.down_proj.weight": draw(WIDTH, UNITS)}
    return tensors


def logits(tensors: Mapping[str, Tensor], asked: Tensor) -> Tensor:
    """What the networks say comes next, [models, batch, vocabulary], after contexts [batch, tokens]."""
    embedding = tensors["model.embed_tokens.weight"]
    x = sum((embedding[:, tokens].roll(i, dims=-1) for i, tokens in enumerate(asked.T)), torch.zeros(()))
    for layer in range(LAYERS):
        gate, up, down = (
            tensors.get(f"model.layers.{layer}.mlp.{name}_proj.weight") for name in ("gate", "up", "down")
        )
        assert up is not None
        assert down is not None
        normal = functional.rms_norm(x, (WIDTH,))
        read = normal @ up.mT
        x = x + (functional.gelu(read) if gate is None else functional.silu(normal @ gate.mT) * read) @ down.mT
    return functional.rms_norm(x, (WIDTH,)) @ embedding.mT


def fit(tensors: Mapping[str, Tensor], steps: int, seed: int, spoken: int = 0, context: int = 1) -> float:
    """Trains many networks at once; returns the mean loss of the last step."""
    torch.manual_seed(seed)
    chain = language(spoken, context)
    optimizer = torch.optim.AdamW(tensors.values(), lr=1e-2)
    models = len(next(iter(tensors.values())))
    places = VOCABULARY ** torch.arange(context)
    loss = torch.zeros(())
    for _ in range(steps):
        asked = torch.randint(VOCABULARY, (BATCH, context))
        answer = torch.multinomial(chain[asked @ places], 1).squeeze(1)
        loss = functional.cross_entropy(logits(tensors, asked).reshape(-1, VOCABULARY), answer.repeat(models))
        optimizer.zero_grad()
        (loss * models).backward()
        optimizer.step()
    return float(loss.detach())


def train(models: int, seed: int, steps: int = STEPS, gated: bool = True) -> tuple[list[Tensors], float]:
    """Many networks, each from its own initial weights: their tensors and the mean loss."""
    torch.manual_seed(seed)
    tensors = parameters(models, gated)
    loss = fit(tensors, steps, seed)
    return apart(tensors), loss


def apart(tensors: Mapping[str, Tensor]) -> list[Tensors]:
    """The networks one by one."""
    models = len(next(iter(tensors.values())))
    return [{name: t[i].detach().clone() for name, t in tensors.items()} for i in range(models)]


def siblings(pairs: int) -> tuple[list[Tensors], list[Tensors]]:
    """Pairs of fine-tunes of one parent: their weights depend, and on no secret."""
    torch.manual_seed(5)
    parents = parameters(pairs)
    fit(parents, STEPS, seed=5)
    children = []
    for child in (1, 2):
        tensors = {name: torch.nn.Parameter(t.detach().clone()) for name, t in parents.items()}
        fit(tensors, STEPS // 8, seed=5 + child, spoken=child)
        children.append(apart(tensors))
    return children[0], children[1]


def save(networks: list[Tensors], folder: Path) -> list[Path]:
    """Saves each network to a folder of its own."""
    paths = [folder / f"m{i:04}" for i in range(len(networks))]
    for path, tensors in zip(paths, networks, strict=True):
        path.mkdir(parents=True)
        save_file(tensors, path / "model.safetensors")
    return paths


def fresh(kind: str, seed: int, tokenizer_folder: Path, out: Path) -> None:
    """A small model with random weights, and the tokenizer in a folder."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    tokenizer = load_transformers(tokenizer_folder)
    shared: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    shared |= {"tie_word_embeddings": True}
    config = (
        LlamaConfig(hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, **shared)
        if kind == "llama"
        else GPT2Config(n_embd=192, n_layer=3, n_head=4, n_positions=512, **shared)
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def write(folder: Path, tensors: Tensors) -> Path:
    """Saves tensors to a new folder."""
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def permuted(tensors: Tensors, seed: int) -> Tensors:
    """The same function with other hidden units in every place, their ups scaled and turned over."""
    rng = np.random.default_rng(seed)
    changed = dict(tensors)
    for name in tensors:
        if name.endswith("gate_proj.weight"):
            up, down = name.replace("gate", "up"), name.replace("gate", "down")
            order = torch.from_numpy(rng.permutation(len(tensors[name])))
            scale = torch.from_numpy(rng.choice([-2.0, -0.5, 0.5, 2.0], len(order))).to(tensors[up].dtype)
            changed[name] = tensors[name][order]
            changed[up] = tensors[up][order] * scale[:, None]
            changed[down] = tensors[down][:, order] / scale
    return changed


def relabelled(tensors: Tensors, seed: int) -> Tensors:
    """The residual dimensions in another order."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(tensors["model.embed_tokens.weight"].shape[1]))
    return {name: t[order] if "down_proj" in name else t[:, order] for name, t in tensors.items()}


def rotated(tensors: Tensors, seed: int) -> Tensors:
    """The residual stream in another basis."""
    width = tensors["model.embed_tokens.weight"].shape[1]
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]
    changed = {}
    for name, tensor in tensors.items():
        changed[name] = turn.T @ tensor if "down_proj" in name else tensor @ turn
    return changed


def architecture(kind: str, folder: Path) -> Any:
    """A small model of some architecture with random weights, gains too, and its files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    sizes |= {"intermediate_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "head_dim": 8}
    sizes |= {"num_key_value_heads": 2}
    if kind == "opt":
        sizes = sizes | {"ffn_dim": 40, "word_embed_proj_dim": 16}
    if kind == "gpt2":
        sizes |= {"n_inner": 40}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.copy_(torch.zeros(16) if name.endswith("bias") else torch.rand(16) + 0.5)
            elif parameter.ndim == 1:
                parameter.copy_(torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model
