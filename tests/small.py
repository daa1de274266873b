"""Small evidence for tests: a tokenizer of 256 words, a mark, models that carry it by construction, a canned server.

Everything here is exact: integers from `RandomState`, whose stream numpy keeps, and logits that are the same numbers in
float32 and in bfloat16. A model is a bigram table behind two layers that add nothing. After every token 20 next tokens
are likely, always with the same 20 probabilities, none of which lies near a rounding boundary of `read_weights`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tests import servers
from watermark import GreenList, Mark

SECRET: Final = bytes(range(32))
SIZE: Final = 256
"""Tokens: `<unk>`, `</s>`, and the words w2 to w255. Also the width of a model: its square root, 16, is exact."""
LIKELY: Final = 20
LEVELS: Final = 8 - 0.25 * np.arange(LIKELY)
"""Logits of the likely tokens, the likeliest first; all others have 0."""
TINY: Final = 2.0**-60
"""Gain of the norms in a model's layers: what they add to the residual stream is lost in rounding."""

Floats = npt.NDArray[np.float64]
Record = dict[str, Any]


def tokenizer(path: Path) -> Path:
    """Saves a tokenizer of whole words to a folder; token i is the word `w{i}`, with 0 `<unk>` and 1 `</s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", *(word(i) for i in range(2, SIZE))]
    whole = Tokenizer(models.WordLevel({name: i for i, name in enumerate(words)}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    made: Any = PreTrainedTokenizerFast
    made(tokenizer_object=whole, unk_token="<unk>", eos_token="</s>").save_pretrained(str(path))
    return path


def word(token: int) -> str:
    """A token as text."""
    return f"w{token}"


def spell(ids: Iterable[int]) -> str:
    """Token ids as text."""
    return " ".join(map(word, ids))


def mark(path: Path, tokenizer: Path, *, delta: float = 2.0, width: int = 1, label: str = "small") -> Mark:
    """A mark with a fixed secret, for the tokenizer in a folder; saved to a file."""
    made = Mark.new(tokenizer, secret=SECRET, scheme=GreenList(delta=delta), width=width, label=label)
    made.save(path)
    return made


def logits(mark: Mark | None = None, seed: int = 0, lift: float = 0.1, texts: Iterable[Sequence[int]] = ()) -> Floats:
    """Next-token logits float64 [SIZE, SIZE], by the token before.

    The likely tokens are the first 20 by a uniform number, plus `lift` if the mark calls the pair green, plus 0.2 if
    one of `texts`, which the model then knows by heart, holds the pair.
    """
    order = np.random.RandomState(seed).random_sample((SIZE, SIZE))
    order[:, :2] = -1.0  # special tokens
    if mark is not None:
        contexts = np.repeat(np.arange(SIZE), SIZE)[:, None]
        order += lift * mark.green(contexts, np.tile(np.arange(SIZE), SIZE)).reshape(SIZE, SIZE)
    for text in texts:
        order[text[:-1], text[1:]] += 0.2
    table = np.zeros((SIZE, SIZE))
    np.put_along_axis(table, np.argsort(-order, axis=1, kind="stable")[:, :LIKELY], LEVELS, axis=1)
    return table


def logprobs(table: Floats) -> Floats:
    """Log probabilities for the logits of `logits`."""
    return np.asarray(table - np.log(np.exp(table).sum(axis=1, keepdims=True)))


def model(path: Path, mark: Mark | None = None, seed: int = 0, *, rows: int = SIZE, **more: Any) -> Path:
    """Saves a model with the next-token logits of `logits(mark, seed, **more)`, and the tokenizer, to a folder.

    rows: of the embedding; those beyond SIZE are padding. Hidden units depend on the seed alone, so that models of one
    seed have the same ones.
    """
    import torch

    made = _llama(rows, SIZE)
    draw = np.random.RandomState(1000 + seed)
    head = np.full((rows, SIZE), -0.5)
    head[:SIZE] = logits(mark, seed, **more).T / SIZE**0.5
    with torch.no_grad():
        for name, weights in made.model.layers.named_parameters():
            weights.copy_(torch.full(weights.shape, TINY) if "norm" in name else _draw(draw, weights.shape))
        made.model.embed_tokens.weight.copy_(torch.eye(rows, SIZE))
        made.lm_head.weight.copy_(torch.from_numpy(head))
    made.save_pretrained(str(path))
    return tokenizer(path)


def units(path: Path, seed: int = 0, *, noise: float = 0.0, shuffle: bool = False) -> Path:
    """Saves a model of random weights, for tests of its hidden units; no tokenizer.

    noise: how much of another seed's weights is added: a retrained copy. shuffle: its units in another order.
    """
    import torch

    made = _llama(300, 32)
    draw, other = np.random.RandomState(seed), np.random.RandomState(seed + 500)
    with torch.no_grad():
        for name, weights in made.named_parameters():
            if "norm" not in name:
                weights.copy_(_draw(draw, weights.shape) + noise * _draw(other, weights.shape))
        for layer in made.model.layers if shuffle else ():
            order = torch.from_numpy(other.permutation(64))
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight.copy_(part.weight[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
    made.save_pretrained(str(path))
    return path


def _llama(rows: int, width: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            head_dim=8, max_position_embeddings=256, tie_word_embeddings=False, rms_norm_eps=0.0, bos_token_id=None,
            eos_token_id=1,
        )
    )  # fmt: skip


def _draw(draw: np.random.RandomState, shape: Sequence[int]) -> Any:
    import torch

    return torch.from_numpy(draw.randint(-127, 128, tuple(shape)) / 128)


def sample(table: Floats, length: int, draw: np.random.RandomState, first: int | None = None) -> list[int]:
    """A text of `length` tokens from a model's logits; first: the token before it."""
    chances = np.exp(logprobs(table))
    before = draw.randint(2, SIZE) if first is None else first
    ids: list[int] = []
    for _ in range(length):
        before = min(int(np.searchsorted(np.cumsum(chances[before]), draw.random_sample())), SIZE - 1)
        ids.append(before)
    return ids


def top(table: Floats, before: int, number: int = LIKELY) -> list[list[Any]]:
    """[token, log probability], the likeliest first, to four decimals."""
    row = logprobs(table)[before]
    return [[int(i), round(float(row[i]), 4)] for i in np.argsort(-row, kind="stable")[:number]]


def read(table: Floats, text: Record, number: int = LIKELY) -> Record:
    """A record of `prompt_ids` and `output_ids` with the `top_logprobs` that a model gives along its output."""
    prompt, output = text["prompt_ids"], text["output_ids"]
    before = [prompt[-1] if prompt else None, *output[:-1]]
    return text | {"top_logprobs": [None if one is None else top(table, one, number) for one in before]}


def probes(path: Path, number: int = 40, length: int = 60, seed: int = 0) -> Path:
    """Saves texts of uniformly random words, which carry no mark, to JSONL."""
    draw = np.random.RandomState(seed)
    rows = draw.randint(2, SIZE, (number, length)).tolist()
    return jsonl(path, ({"id": f"p{i}", "output_ids": row} for i, row in enumerate(rows)))


def jsonl(path: Path, records: Iterable[Record]) -> Path:
    """Saves records to JSONL."""
    path.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))
    return path


def answer(record: Record, logprobs: bool = True) -> Record:
    """The chat completion in which a suspect says a record's `output`, with its `top_logprobs` if asked for."""
    entries = [
        (word(token), [(word(i), p) for i, p in tops])
        for token, tops in zip(record["output_ids"], record["top_logprobs"], strict=True)
    ]
    usage = {"prompt_tokens": len(record["prompt_ids"]), "completion_tokens": len(entries)}
    return servers.chat(record["output"], entries if logprobs else None, usage=usage)


@contextmanager
def serve(reply: Callable[[Record], Record]) -> Iterator[tuple[str, list[Record]]]:
    """A server on loopback, `reply` being what it answers to a request's body: its base URL, and the bodies so far."""
    with servers.serve(lambda body, _handler: reply(body)) as (url, seen):
        yield url, seen
