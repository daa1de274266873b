"""What a tournament costs perplexity on average over all keys, from unmarked answers alone.

    .venv/bin/python -m benchmarks.reweighted     # 15 minutes on one core, after `benchmarks.schemes quality t1w1`

A key multiplies the probability of token t after context c by m(c, t). Its mean over the keys is 1, and different
contexts have independent coins. So a text is, over all keys, R times as likely as without a mark, where R is the
product over its contexts of E[product of m over the places of this context]: 1 if each context comes once. Unmarked
answers that weigh R each are answers under random keys, a key for each answer. They are compared with the same answers
without the weights, so that two independent sets of answers do not blur the difference. R is estimated without bias,
by random coins for the likely tokens; of all others half have the coin, which is the mean.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import witnesses as w
from benchmarks.machine import machine
from verify.data.outputs import Output
from verify.planning.demo import teacher_model
from verify.suspects.model import forward_logits, opened
from watermark import Mark

RESULTS: Final = Path("benchmarks/results/reweighted.json")
LAYERS: Final = (1, 2, 3, 4)
WIDTHS: Final = (1, 2)
KEYS: Final = 500  # random coins of a context
LIKELY: Final = 128  # tokens of a place that get coins of their own
DRAWS: Final = 4_000  # of the bootstrap
MARGIN: Final = 0.02
BATCH: Final = 16

F64 = npt.NDArray[np.float64]


def weight(p: F64, tokens: list[int], layers: int, rng: np.random.Generator) -> float:
    """E[product of m] at the places of one context.

    p: [places, vocabulary], the model's probabilities. tokens: what was written at each place.
    """
    likely = np.unique(np.concatenate([np.argpartition(p, -LIKELY)[:, -LIKELY:].ravel(), tokens]))
    at = np.searchsorted(likely, tokens)
    shares = np.broadcast_to(p[:, likely], (KEYS, len(p), len(likely)))
    rest = np.broadcast_to(1 - p[:, likely].sum(axis=1), (KEYS, len(p)))
    places = np.arange(len(p))
    for _ in range(layers):
        coins = rng.integers(0, 2, (KEYS, 1, len(likely)))
        green = (shares * coins).sum(axis=2) + rest / 2
        shares = shares * (1 + coins - green[:, :, None])
        rest = rest * (1.5 - green)
    return float((shares[:, places, at] / p[places, tokens]).prod(axis=1).mean())


def weights_of(answer: Output, logprobs: F64, exempt: frozenset[int], rng: np.random.Generator) -> dict[str, float]:
    """R of an answer for each arm. logprobs: [tokens, vocabulary]."""
    ids = answer.ids.tolist()
    found = {}
    for width in WIDTHS:
        places = defaultdict(list)
        for i in range(answer.start, len(ids)):
            if ids[i] not in exempt:
                places[tuple(ids[i - width : i])].append(i - answer.start)
        groups = [group for group in places.values() if len(group) > 1]
        repeated = [(np.exp(logprobs[group]), [ids[answer.start + i] for i in group]) for group in groups]
        for layers in LAYERS:
            found[f"t{layers}w{width}"] = math.prod(weight(p, tokens, layers, rng) for p, tokens in repeated)
    return found


def read(answers: list[Output]) -> Iterator[tuple[F64, F64]]:
    """The loss of each token of an answer, and the log probabilities there without those of exempt tokens."""
    exempt = list(w.mark_of("t1w1").exempt)
    model, _ = opened(teacher_model(), Mark(bytes(32)))
    for first in range(0, len(answers), BATCH):
        batch = answers[first : first + BATCH]
        logits = forward_logits(model, [one.ids for one in batch])
        for row, one in zip(logits, batch, strict=True):
            along = row[one.start - 1 : len(one.ids) - 1].double()
            said = torch.log_softmax(along, dim=-1)
            loss = -said[torch.arange(len(along)), torch.from_numpy(one.ids[one.start :])]
            along[:, exempt] = -torch.inf
            yield loss.numpy(), torch.log_softmax(along, dim=-1).numpy()


def change(loss: F64, tokens: F64, weights: F64) -> Any:
    """Perplexity of the weighted answers over that of the others, less 1; the last axis is the answers'."""
    marked = (weights * loss).sum(axis=-1) / (weights * tokens).sum(axis=-1)
    return np.expm1(marked - loss.sum(axis=-1) / tokens.sum(axis=-1))


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    answers = [one for one in w.outputs(w.FOLDER / "t1w1.quality" / "answers.jsonl") if "/unmarked/" in one.id]
    exempt, rows = frozenset(w.mark_of("t1w1").exempt), []
    loss, tokens = np.zeros(len(answers)), np.zeros(len(answers))
    for i, (one, (losses, logprobs)) in enumerate(zip(answers, read(answers), strict=True)):
        loss[i], tokens[i] = losses.sum(), len(losses)
        rows.append(weights_of(one, logprobs, exempt, rng))
        if i % 128 == 127:
            print(f"{i + 1} of {len(answers)} answers", flush=True)
    prompts = np.array([one.id.split("/")[2] for one in answers])
    # as many of each prompt: the prompts are given, the answers to them are drawn
    drawn = np.concatenate([rng.choice(np.flatnonzero(prompts == p), (DRAWS, (prompts == p).sum())) for p in
                            np.unique(prompts)], axis=1)  # fmt: skip
    arms: dict[str, Any] = {}
    for name in rows[0]:
        weights = np.array([row[name] for row in rows])
        spread = change(loss[drawn], tokens[drawn], weights[drawn])
        low, high = np.quantile(spread, [0.05, 0.95])
        arms[name] = {
            "perplexity": float(change(loss, tokens, weights)),
            "interval": np.quantile(spread, [0.025, 0.975]).tolist(),
            "equivalent": bool(low > -MARGIN and high < MARGIN),
            "mean weight": weights.mean(),
            "sd of weights": weights.std(),
            "largest weight": weights.max(),
        }
        print(name, arms[name], flush=True)
    found = {"answers": len(answers), "tokens": int(tokens.sum()), "arms": arms, "machine": machine()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
