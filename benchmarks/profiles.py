"""Marks of other engines: text of the engines' own code found, the null over keys, and a peer's dedupe beside ours.

    python -m benchmarks.profiles null        # 2,000 keys on real human text, each profile
    python -m benchmarks.profiles dedupe      # selfhash: n-grams counted, as the peer counts them, and pairs as here
    python -m benchmarks.profiles found VLLM SYNTHID   # text that the engines' code marks, of the 135M model
    python -m benchmarks.profiles textseal    # why TextSeal's marks are not imported: coins that lean on each other

`VLLM` is a folder that holds the package `vllm` (0.33.0), of which the files of its watermarks are enough; `SYNTHID`
one that holds `synthid_text` (0.2.1). Figures go to benchmarks/results/profiles.json.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import scipy.stats

from benchmarks.texts import speeches
from verify.data.outputs import Output
from verify.data.pairs import Pairs, Reads, WeightedPairs, distinct, scorable_batch
from verify.data.reads import reads_of
from verify.planning.demo import teacher_model
from verify.profiles import import_mark
from verify.radioactivity.tails import BINOMIAL, log10_tail
from verify.radioactivity.text import text_result
from watermark import Mark
from watermark.tokenizers import load

if TYPE_CHECKING:
    import torch

RESULTS: Final = Path(__file__).parent / "results" / "profiles.json"
SIZE: Final = 49_152
KEYS: Final = 2000
LEVELS: Final = (0.05, 0.01, 0.001)
KEY: Final = 20_261_126
SYNTHID: Final = [int(key) for key in np.random.default_rng(KEY).integers(1, 1 << 40, 30)]
SELF: Final[dict[str, Any]] = {"seeding_scheme": "selfhash", "hashing_key": KEY, "context_width": 4}

PROFILES: Final[dict[str, tuple[str, dict[str, Any], int]]] = {
    "transformers lefthash": ("transformers", {"hashing_key": KEY}, 150),
    "transformers selfhash, width 4": ("transformers", SELF, 150),
    "transformers SynthID, 30 layers": ("transformers", {"keys": SYNTHID, "ngram_len": 5}, 3000),
    "synthid-text 0.2.1, 30 layers": (
        "synthid",
        {"keys": SYNTHID, "ngram_len": 5, "sampling_table_size": 1 << 16, "sampling_table_seed": 0},
        3000,
    ),
    "synthid-text of 2025, 30 layers": ("synthid", {"keys": SYNTHID, "ngram_len": 5}, 300),
    "vLLM gumbel": ("vllm", {"key": KEY}, 1000),
    "vLLM dual key, alpha 0.5": ("vllm", {"key": KEY, "algorithm": "dual_key_gumbel", "alpha": 0.5}, 500),
    "vLLM sbw selfhash": ("vllm", {"key": KEY, "algorithm": "sbw"}, 1000),
    "vLLM sbw lefthash": ("vllm", {"key": KEY, "algorithm": "sbw", "sbw_scheme": "lefthash"}, 1000),
    "SGLang, window 4": ("sglang", {"key": "20261126", "context_window": 4}, 1000),
    "KGW simple_1": ("kgw", {"gamma": 0.25, "delta": 2.0, "seeding_scheme": "simple_1", "hash_key": KEY}, 150),
}
"""The engine, its configuration, and how many tokens of human text the null is looked at with."""


def human() -> np.ndarray:
    """Presidential speeches as the 135M model's token ids, int64 [45000]."""
    tokenizer, ids = load(teacher_model()), list[int]()
    for text in speeches()[120:]:
        ids += tokenizer.encode(text, add_special_tokens=False)
        if len(ids) > 45_000:
            break
    return np.array(ids[:45_000])


def imported(name: str) -> Mark:
    engine, config, _ = PROFILES[name]
    return import_mark(engine, config, vocabulary=SIZE)


def with_key(mark: Mark, rng: np.random.Generator) -> Mark:
    """The same mark with another key."""
    keys = [int(key) for key in rng.integers(1, 1 << 31, mark.scheme.keys)]  # type: ignore[union-attr]
    return Mark(mark.scheme.secret_of(keys), mark.scheme, mark.width)  # type: ignore[union-attr]


def pairs_of(mark: Mark, ids: np.ndarray, reads: Reads | None = None) -> Pairs:
    how = reads_of(mark) if reads is None else reads
    return distinct(scorable_batch([Output("speeches", None, ids)], mark.width, range(17), reads=how))


def null() -> dict[str, Any]:
    """The share of keys at or below each level, on human text that carries no mark; 1e-5 bounds of the binomial."""
    text, found = human()[1000:], dict[str, Any]()
    for name, (_, _, tokens) in sorted(PROFILES.items(), key=lambda one: "hash" in one[0] and "sbw" not in one[0]):
        mark, rng, start = imported(name), np.random.default_rng(7), time.process_time()
        pairs = pairs_of(mark, text[:tokens])
        values = []
        for _ in range(KEYS):
            key = with_key(mark, rng)
            if mark.scheme.shared:  # which pairs share a coin may depend on the key
                pairs = pairs_of(key, text[:tokens])
            hits = key.hits(pairs.contexts, pairs.tokens)
            own = WeightedPairs(pairs.contexts, pairs.tokens, np.ones(len(hits)))
            values.append(log10_tail(BINOMIAL, mark.scheme, own, hits))
        shares = {str(level): float(np.mean(10.0 ** np.array(values) <= level)) for level in LEVELS}
        bounds = {str(level): scipy.stats.binom(KEYS, level).isf(1e-5) / KEYS for level in LEVELS}
        found[name] = {
            "tokens": tokens,
            "pairs": len(pairs.tokens),
            "keys": KEYS,
            "shares": shares,
            "within": all(shares[level] <= bounds[level] for level in shares),
            "cpu_seconds": round(time.process_time() - start, 1),
        }
        print(name, found[name], flush=True)
    return found


def dedupe(keys: int = 100, tokens: int = 5000) -> dict[str, Any]:
    """False positives at nominal 1 % on human text: every window, distinct n-grams (the peer's dedupe), distinct pairs.

    The peer's normal z is made exact here, by the binomial, so that only the dedupe differs.
    """
    text, mark, rng = (
        human()[1000 : 1000 + tokens],
        imported("transformers selfhash, width 4"),
        np.random.default_rng(3),
    )
    windows = np.lib.stride_tricks.sliding_window_view(text, mark.width + 1).astype(np.uint32)
    counted: dict[str, list[float]] = {"every window": [], "distinct n-grams, the peer's dedupe": [], "pairs": []}
    numbers = dict.fromkeys(counted, 0)
    for _ in range(keys):
        key = with_key(mark, rng)
        hits = key.hits(windows[:, :-1], windows[:, -1])
        found = {
            "every window": hits,
            "distinct n-grams, the peer's dedupe": hits[np.unique(windows, axis=0, return_index=True)[1]],
            "pairs": hits[np.unique(key.inputs(windows[:, :-1], windows[:, -1]), axis=0, return_index=True)[1]],
        }
        for name, some in found.items():
            numbers[name] = len(some)
            counted[name].append(float(scipy.stats.binom(len(some), key.scheme.rate).sf(some.sum() - 1)))
    shown = {
        name: {
            "coins": numbers[name],
            "at 1 %": float(np.mean(np.array(p) <= 0.01)),
            "at 0.1 %": float(np.mean(np.array(p) <= 0.001)),
        }
        for name, p in counted.items()
    }
    print(shown, flush=True)
    return {"tokens": len(text), "keys": keys, "counted": shown}


def textseal(keys: int = 2000, draws: int = 100_000) -> dict[str, Any]:
    """TextSeal 0.0.5: coins of two tokens in one context, over keys; and the spread of z over keys, on human text.

    Its function adds multiples of the tokens and of the key before it mixes, so that the difference of two sums is the
    same under every key. z is of the green list (gamma 0.5), over distinct sums; independent coins give it an sd of 1.
    """
    primes, rng = (10_000_019, 10_000_247, 10_000_439, 10_000_643), np.random.default_rng(0)

    def numbers(sums: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # 64 bits wrap, as in torch
            mixed = sums * np.int64(15_485_863) * np.int64(40_499)
        return np.asarray((mixed ^ mixed >> np.int64(13)) % 8191)

    def keyed() -> np.ndarray:
        with np.errstate(over="ignore"):
            return rng.integers(-(2**63), 2**63 - 1, draws) * np.int64(500_001_713)

    sums, correlations = keyed(), []
    first = numbers(sums) < 4095.5
    for apart in rng.integers(1, SIZE, 500):
        second = numbers(sums + apart * np.int64(100_000_007)) < 4095.5
        correlations.append(abs(float(np.corrcoef(first, second)[0, 1])))
    spread = {}
    for width, tokens in ((1, 5000), (1, 20_000), (2, 5000), (2, 20_000), (4, 5000), (4, 20_000)):
        windows = np.lib.stride_tricks.sliding_window_view(human()[1000 : 1000 + tokens], width + 1)
        read = np.unique(windows[:, :-1] @ np.array(primes[:width]) + 100_000_007 * windows[:, -1])
        rate = 4096 / 8191
        z = [
            ((numbers(read + key) < 4095.5).sum() - len(read) * rate) / np.sqrt(len(read) * rate * (1 - rate))
            for key in keyed()[:keys]
        ]
        spread[f"width {width}, {tokens} tokens"] = round(float(np.std(z)), 3)
    found = {
        "token differences looked at": len(correlations),
        "correlation, largest": round(max(correlations), 3),
        "share above 0.05": float(np.mean(np.array(correlations) > 0.05)),
        "a difference's own noise": round(draws**-0.5, 4),
        "keys": keys,
        "sd of z": spread,
    }
    print(found, flush=True)
    return found


def vllm_philox(folder: Path) -> Any:
    """vLLM's PRF from its files alone: the package itself would bring its kernels."""
    for name in ("vllm", "vllm.v1", "vllm.v1.watermarking", "vllm.v1.watermarking.prfs"):
        module = types.ModuleType(name)
        module.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = module
    import vllm.v1.watermarking.prfs.philox as philox

    return philox.PhiloxPRF


def vllm_derive(folder: Path) -> Any:
    """vLLM's function from a key and a name to another key; of its settings, which stand in the same file, nothing."""
    utils: Any = types.ModuleType("vllm.config.utils")
    utils.config = lambda kind: kind
    logger: Any = types.ModuleType("vllm.logger")
    logger.init_logger = lambda name: None
    package = types.ModuleType("vllm.config")
    package.__path__ = [str(folder / "vllm" / "config")]
    sys.modules |= {"vllm.config": package, utils.__name__: utils, logger.__name__: logger}
    from vllm.config.watermarking import derive_watermark_key

    return derive_watermark_key


def found(vllm: Path | None = None, synthid: Path | None = None, *, rows: int = 6, tokens: int = 40) -> dict[str, Any]:
    """log10 p of text that each engine's own code marks, of the same under another key, and of text without a mark."""
    import torch
    from transformers import AutoModelForCausalLM, SynthIDTextWatermarkingConfig, WatermarkingConfig

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(teacher_model(), dtype=torch.float32)
    text = human()[5000:]
    prompts = torch.from_numpy(np.stack([text[200 * i : 200 * i + 12] for i in range(rows)]))

    def by_transformers(config: Any) -> np.ndarray:
        torch.manual_seed(11)
        made = model.generate(
            prompts, watermarking_config=config, do_sample=True, max_new_tokens=tokens, min_new_tokens=tokens,
            pad_token_id=0, top_k=0,
        )  # fmt: skip
        return np.asarray(made[:, prompts.shape[1] :].numpy())

    def drawn(choose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> np.ndarray:
        """What `choose` takes, of the logits [rows, SIZE] after all ids [rows, N]."""
        torch.manual_seed(11)
        ids, cache = prompts, None
        for _ in range(tokens):
            with torch.no_grad():
                said = model(ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True)
            cache = said.past_key_values
            ids = torch.cat([ids, choose(said.logits[:, -1], ids)[:, None]], 1)
        return np.asarray(ids[:, prompts.shape[1] :].numpy())

    def by_gumbel(*keys: int, alpha: float = 0.0) -> np.ndarray:
        """vLLM's sampler on a CPU: argmax of the logits and the noise of its PRF; alpha: how often the second key's."""
        assert vllm is not None
        prfs = [vllm_philox(vllm)(key) for key in keys]

        def choose(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            context = torch.nn.functional.pad(ids[:, prompts.shape[1] :], (4, 0), value=-1)[:, -4:]
            chosen = []
            for prf in prfs:
                uniform = prf.uniform(context, torch.arange(SIZE)).clamp_min(torch.finfo(torch.float32).tiny)
                chosen.append((logits - torch.log(-torch.log(uniform))).argmax(-1))
            return torch.where(torch.rand(rows) < alpha, chosen[-1], chosen[0])

        return drawn(choose)

    def by_synthid_text() -> np.ndarray:
        """The processor of DeepMind's package, which gives the scores of the likeliest tokens."""
        sys.path.append(str(synthid))
        from synthid_text.logits_processing import SynthIDLogitsProcessor  # type: ignore[import-not-found]

        processor = SynthIDLogitsProcessor(
            ngram_len=5, keys=SYNTHID, sampling_table_size=1 << 16, sampling_table_seed=0, context_history_size=1024,
            temperature=1.0, top_k=2000, device=torch.device("cpu"),
        )  # fmt: skip

        def choose(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            scores, tokens, _ = processor.watermarked_call(ids, logits)
            found: torch.Tensor = tokens.gather(1, scores.softmax(-1).multinomial(1))[:, 0]
            return found

        return drawn(choose)

    def plain() -> np.ndarray:
        return by_transformers(None)

    def log10(mark: Mark, made: np.ndarray) -> tuple[int, float]:
        outputs = [Output(str(i), None, row) for i, row in enumerate(made)]
        pairs = distinct(scorable_batch(outputs, mark.width, range(17), reads=reads_of(mark)))
        result = text_result(mark, pairs)
        return result.n, result.log10_pvalue

    unmarked, shown = plain(), {}
    ways: dict[str, Callable[[], np.ndarray]] = {
        "transformers lefthash": lambda: by_transformers(WatermarkingConfig(hashing_key=KEY)),
        "transformers selfhash, width 4": lambda: by_transformers(WatermarkingConfig(**SELF)),
        "transformers SynthID, 30 layers": lambda: by_transformers(SynthIDTextWatermarkingConfig(5, SYNTHID)),
    }
    if vllm is not None:
        derived = vllm_derive(vllm)
        ways["vLLM gumbel"] = lambda: by_gumbel(KEY)
        ways["vLLM dual key, alpha 0.5"] = lambda: by_gumbel(derived(KEY, b"key_a"), derived(KEY, b"key_b"), alpha=0.5)
    if synthid is not None:
        ways["synthid-text 0.2.1, 30 layers"] = by_synthid_text
    for name, way in ways.items():
        mark, made = imported(name), way()
        n, marked = log10(mark, made)
        other = log10(with_key(mark, np.random.default_rng(5)), made)[1]
        shown[name] = {"pairs": n, "log10_p": marked, "other_key": other, "unmarked": log10(mark, unmarked)[1]}
        shown[name]["human"] = log10(mark, text[20_000 : 20_000 + made.size].reshape(made.shape))[1]
        if vllm is not None and name == "vLLM gumbel":
            shown[name]["peer_log10_p"] = _gamma(vllm_philox(vllm)(KEY), made)
        print(name, shown[name], flush=True)
    return {"answers": rows, "tokens": rows * tokens, "profiles": shown}


def _gamma(prf: Any, made: np.ndarray) -> float:
    """log10 p as vLLM's detector counts: the sum of -ln(1 - u) over distinct contexts, by the gamma distribution."""
    import torch

    windows = np.concatenate([np.lib.stride_tricks.sliding_window_view(row, 5) for row in made])
    windows = windows[np.unique(windows[:, :-1], axis=0, return_index=True)[1]].astype(np.int64)
    uniform = prf.uniform(torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, -1:]))[:, 0].double()
    score = float(-torch.log1p(-uniform).sum())
    return float(scipy.stats.gamma(len(windows)).logsf(score) / np.log(10))


def main() -> None:
    part, *rest = sys.argv[1:]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "null": null,
        "dedupe": dedupe,
        "textseal": textseal,
        "found": lambda: found(*map(Path, rest)),
    }
    made = parts[part]()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {part: made}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
