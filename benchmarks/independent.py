"""Pairs of independently trained models: false positives of the weights tests, and the calibration of the second one.

    .venv/bin/python benchmarks/independent.py [MODELS]

Trains 1000 small gated networks (default) on one and the same language, each from weights of its own, and compares
disjoint pairs (for the exact test) and ten thousand pairs (for the calibrated one). About four minutes on one core.
Writes benchmarks/results/independent.json and verify/fingerprint/independent.json.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from verify.fingerprint import weights
from verify.statistics import binomial_log10_sf

VOCABULARY, WIDTH, UNITS, LAYERS = 64, 24, 48, 2
STEPS, BATCH, NEIGHBOURS = 400, 128, 10
LEVELS = (0.05, 0.01, 0.001)


def language(seed: int) -> Tensor:
    """A Markov chain over tokens, the same for all: what is alike in independent models, it teaches them."""
    rows = np.random.default_rng(seed).dirichlet(np.full(VOCABULARY, 0.05), VOCABULARY)
    return torch.from_numpy(rows).float()


def train(models: int, seed: int, steps: int = STEPS) -> tuple[list[dict[str, Tensor]], float]:
    """Trains many networks at once, each from its own initial weights; returns their tensors and the mean loss."""
    torch.manual_seed(seed)
    chain = language(0)

    def parameter(*shape: int) -> Tensor:
        return torch.nn.Parameter(torch.randn(models, *shape) / shape[-1] ** 0.5)

    tensors = {"model.embed_tokens.weight": parameter(VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        tensors |= {
            f"model.layers.{layer}.mlp.gate_proj.weight": parameter(UNITS, WIDTH),
            f"model.layers.{layer}.mlp.up_proj.weight": parameter(UNITS, WIDTH),
            f"model.layers.{layer}.mlp.down_proj.weight": parameter(WIDTH, UNITS),
        }
    optimizer = torch.optim.AdamW(tensors.values(), lr=1e-2)
    loss = torch.zeros(())
    for _ in range(steps):
        asked = torch.randint(VOCABULARY, (BATCH,))
        answer = torch.multinomial(chain[asked], 1).squeeze(1)
        x = tensors["model.embed_tokens.weight"][:, asked]
        for layer in range(LAYERS):
            gate, up, down = (
                tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")
            )
            normal = functional.rms_norm(x, (WIDTH,))
            x = x + (functional.silu(normal @ gate.mT) * (normal @ up.mT)) @ down.mT
        logits = functional.rms_norm(x, (WIDTH,)) @ tensors["model.embed_tokens.weight"].mT
        loss = functional.cross_entropy(logits.reshape(-1, VOCABULARY), answer.repeat(models))
        optimizer.zero_grad()
        (loss * models).backward()
        optimizer.step()
    return [{name: t[i].detach().clone() for name, t in tensors.items()} for i in range(models)], float(loss.detach())


def save(networks: list[dict[str, Tensor]], folder: Path) -> list[Path]:
    paths = [folder / f"m{i:04}" for i in range(len(networks))]
    for path, tensors in zip(paths, networks, strict=True):
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
    return paths


def main(models: int = 1000) -> None:
    start = time.monotonic()
    torch.set_num_threads(1)
    networks, loss = train(models, seed=1)
    trained = time.monotonic() - start
    print(f"trained {models} networks in {trained:.0f} s, mean loss {loss:.3f}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        paths = save(networks, Path(scratch))
        exact = [weights.compare(a, b, seed=i) for i, (a, b) in enumerate(zip(paths[::2], paths[1::2], strict=True))]
        shares = [
            weights.compare(paths[i], paths[(i + k) % models], seed=i).share
            for i in range(models)
            for k in range(1, NEIGHBOURS + 1)
        ]
        same = weights.compare(paths[0], paths[0])
    found = [one.independence() for one in exact]
    tests = {
        "exact": [one.log10_pvalue for one in found],
        "spearman_bound": [one.comparisons["spearman_bound"] for one in found],
        "spearman_t": [one.comparisons["spearman_t"] for one in found],
    }
    largest = float(np.max(shares))
    rates = {}
    for name, values in tests.items():
        fired = {level: int(sum(value <= np.log10(level) for value in values)) for level in LEVELS}
        rates[name] = {
            str(level): {"fired": number, "log10_tail": binomial_log10_sf(number, len(values), level)}
            for level, number in fired.items()
        }
    # the calibrated test on pairs that it was not calibrated on: disjoint from the calibration by model
    half = [share for i, share in enumerate(shares) if i // NEIGHBOURS < models // 2]
    rest = [
        weights_rank(share, half)
        for i, share in enumerate(shares)
        if models // 2 + NEIGHBOURS <= i // NEIGHBOURS < models - NEIGHBOURS
    ]
    rates["match, half against half"] = {str(level): {"fired": int(sum(p <= level for p in rest))} for level in LEVELS}
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "models": models,
        "pairs": len(exact),
        "mean_loss": loss,
        "uniform_loss": float(np.log(VOCABULARY)),
        "rates": rates,
        "match_pairs": len(rest),
        "share": {"mean": float(np.mean(shares)), "largest": largest, "a model with itself": same.share},
        "seconds": {"training": trained, "all": time.monotonic() - start},
    }
    Path("benchmarks/results").mkdir(exist_ok=True)
    Path("benchmarks/results/independent.json").write_text(json.dumps(result, indent=1) + "\n")
    counts = Counter(f"{share:.6f}" for share in shares)
    shipped = {
        "models": f"{models} gated networks of {LAYERS} layers, {UNITS} units and width {WIDTH}, trained independently "
        "on one language; benchmarks/independent.py",
        "share": dict(sorted(counts.items())),
    }
    Path("verify/fingerprint/independent.json").write_text(json.dumps(shipped, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def weights_rank(share: float, calibration: list[float]) -> float:
    return (1 + sum(other >= share for other in calibration)) / (1 + len(calibration))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
