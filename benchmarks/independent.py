"""Small independent models: false positives of the tests that need no mark, and the calibration of one of them.

    .venv/bin/python -m benchmarks.independent [MODELS]

Trains small networks on one and the same language, each from weights of its own: 1000 (default) for disjoint pairs
under the exact tests, 400 with a gate and 400 without one, trained five times as long, for the calibration; 1000 that
read two tokens for agreement with controls; and 500 pairs of siblings, which grew from one parent, for the keyed order.
About twenty minutes on one core. Writes benchmarks/results/independent.json and verify/fingerprint/independent.json.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.models import (
    LAYERS,
    STEPS,
    UNITS,
    VOCABULARY,
    WIDTH,
    fit,
    logits,
    parameters,
    save,
    siblings,
    train,
)
from verify.fingerprint import weights
from verify.fingerprint.agreement import agreement_result
from verify.stats.binomial import binomial_log10_sf
from verify.suspects.model import TopTokens
from watermark import Mark

LONGER, NEIGHBOURS = 2000, 30
CONTROLS = (1, 4, 19)
LEVELS = (0.05, 0.01, 0.001)


def rates(log10_pvalues: Sequence[float]) -> dict[str, Any]:
    """How often a test fired at each level, and how likely so many are for a valid one."""
    fired = {level: int(sum(value <= np.log10(level) for value in log10_pvalues)) for level in LEVELS}
    return {
        str(level): {"fired": number, "log10_tail": binomial_log10_sf(number, len(log10_pvalues), level)}
        for level, number in fired.items()
    }


def exact(models: int) -> dict[str, Any]:
    """Disjoint pairs under the exact test, and under Spearman's rho beside it."""
    networks, loss = train(models, seed=1)
    with tempfile.TemporaryDirectory() as scratch:
        paths = save(networks, Path(scratch) / "n")
        found = [
            weights.compare(a, b, seed=i).independence()
            for i, (a, b) in enumerate(zip(paths[::2], paths[1::2], strict=True))
        ]
    return {
        "pairs": len(found),
        "mean_loss": loss,
        "uniform_loss": float(np.log(VOCABULARY)),
        "exact": rates([one.log10_pvalue for one in found]),
        "spearman_bound": rates([one.comparisons["spearman_bound"] for one in found]),
        "spearman_t": rates([one.comparisons["spearman_t"] for one in found]),
    }


def calibrate(models: int, gated: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each network against its neighbours: what is shipped, and how it does on pairs that it was not made from."""
    networks, loss = train(models, seed=2 + gated, steps=LONGER, gated=gated)
    with tempfile.TemporaryDirectory() as scratch:
        paths = save(networks, Path(scratch) / "n")
        shares = [
            weights.compare(paths[i], paths[(i + k) % models], seed=i).share
            for i in range(models)
            for k in range(1, NEIGHBOURS + 1)
        ]
    half = [share for i, share in enumerate(shares) if i // NEIGHBOURS < models // 2]
    rest = [
        np.log10((1 + sum(other >= share for other in half)) / (1 + len(half)))
        for i, share in enumerate(shares)
        if models // 2 + NEIGHBOURS <= i // NEIGHBOURS < models - NEIGHBOURS
    ]
    about = {
        "models": models,
        "pairs": len(shares),
        "mean_loss": loss,
        "share": {"mean": float(np.mean(shares)), "largest": max(shares)},
        "other pairs": len(rest),
        "half against half": rates(rest),
    }
    shipped = {
        "models": f"{models} {'gated' if gated else 'ungated'} networks of {LAYERS} layers, {UNITS} units and width "
        f"{WIDTH}, trained independently on one language; benchmarks/independent.py",
        "units": UNITS,
        "share": dict(sorted(Counter(f"{share:.6f}" for share in shares).items())),
    }
    return about, shipped


def agreement(models: int, prompts: int = 300) -> dict[str, Any]:
    """Teacher and suspect of each disjoint pair are like the controls: how often does the test name them anyway?"""
    torch.manual_seed(4)
    tensors = parameters(models)
    loss = fit(tensors, STEPS, seed=4, context=2)
    whole = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY))
    with torch.inference_mode():
        best = torch.cat([logits(tensors, part).topk(5).indices for part in whole.split(512)], dim=1).numpy()
    rng = np.random.default_rng(4)
    found: dict[str, list[float]] = {}
    for i in range(0, models - 1, 2):
        asked = rng.choice(len(whole), prompts, replace=False)
        others = [j for j in rng.permutation(models)[: max(CONTROLS) + 2].tolist() if j not in (i, i + 1)]

        for top in (1, 5):

            def said(model: int, asked: Any = asked, top: int = top) -> tuple[str, list[TopTokens]]:
                return str(model), [frozenset(map(str, row)) for row in best[model, asked, :top].tolist()]

            for controls in CONTROLS:
                named = [said(j) for j in others[:controls]]
                result = agreement_result(said(i), said(i + 1), named, top=top)
                for kind, value in (
                    ("", result.log10_pvalue),
                    (", paired", result.log10_paired),
                    (", rank", float(np.log10(result.rank_pvalue))),
                ):
                    found.setdefault(f"top {top}, {controls} controls{kind}", []).append(value)
    return {"mean_loss": loss, "prompts": prompts} | {name: rates(values) for name, values in found.items()}


def kin(pairs: int) -> dict[str, Any]:
    """Two fine-tunes of one parent: dependent by their weights, and not by the order in which one was released."""
    rng = np.random.default_rng(5)
    found: dict[str, list[float]] = {"weights": [], "keyed order": []}
    with tempfile.TemporaryDirectory() as scratch:
        teachers, suspects = (save(one, Path(scratch) / str(i)) for i, one in enumerate(siblings(pairs)))
        for i, (teacher, suspect) in enumerate(zip(teachers, suspects, strict=True)):
            mark = Mark(rng.bytes(32))
            found["weights"].append(weights.compare(teacher, suspect, seed=i).independence().log10_pvalue)
            keyed = weights.compare(teacher, suspect, seed=i, order=mark).independence()
            found["keyed order"].append(keyed.log10_pvalue)
    return {"pairs": pairs} | {name: rates(values) for name, values in found.items()}


def main(models: int = 1000) -> None:
    start = time.monotonic()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "weights": exact(models),
    }
    shipped = {}
    for name, gated in (("gated", True), ("ungated", False)):
        result[name], shipped[name] = calibrate(2 * models // 5, gated)
    result["agreement"] = agreement(models)
    result["siblings"] = kin(models // 2)
    result["seconds"] = time.monotonic() - start
    Path("benchmarks/results").mkdir(exist_ok=True)
    Path("benchmarks/results/independent.json").write_text(json.dumps(result, indent=1) + "\n")
    Path("verify/fingerprint/independent.json").write_text(json.dumps(shipped, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
