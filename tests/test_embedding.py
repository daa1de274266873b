"""The bias itself, and that generator and detector agree: every width, every way to embed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

from verify.data.outputs import Output
from verify.data.pairs import extract
from verify.radioactivity.text import text_result
from watermark import GreenList, Mark, Marks
from watermark.integrations.transformers import MarkConfig, MarkLogitsProcessor
from watermark.schemes.logits import contexts_at_end

VOCABULARY = 640
SECRET = bytes(range(1, 33))
WIDTHS = range(8)


@pytest.fixture(scope="module")
def lm() -> LlamaForCausalLM:
    """A fake model: random weights, a vocabulary padded from 613 to 640."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def make(width: int, delta: float = 40.0, gamma: float = 0.25) -> Mark:
    return Mark(
        SECRET, scheme=GreenList(gamma=gamma, delta=delta), width=width, vocabulary_size=613, exempt=(0, 5, 600)
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [613, 640, 100])
def test_bias_against_the_definition(width: int, dtype: torch.dtype, columns: int) -> None:
    rng = np.random.default_rng(width)
    mark = make(width, delta=1.7)
    logits = torch.from_numpy(rng.normal(0, 5, (4, columns))).to(dtype)
    logits[1, 7] = -torch.inf
    contexts = rng.integers(0, 613, (4, width))
    expected = logits.clone()
    for row in range(4):
        green = mark.green(contexts[[row]].repeat(columns, 0), np.arange(columns))
        for token in range(min(columns, 613)):
            if green[token] and token not in mark.exempt:
                expected[row, token] = (logits[row, token].float() + 1.7).to(dtype)
    returned = mark.bias_(logits, torch.from_numpy(contexts))
    assert returned is logits
    assert torch.equal(logits, expected)
    assert logits[1, 7] == -torch.inf


@pytest.mark.parametrize("width", range(1, 8))
def test_rows_without_enough_tokens_are_left_alone(width: int) -> None:
    mark = make(width)
    contexts = torch.arange(2 * width).reshape(2, width)
    contexts[1, 0] = -1
    logits = torch.zeros(2, VOCABULARY)
    mark.bias_(logits, contexts)
    assert logits[0].any()
    assert not logits[1].any()


def test_non_contiguous_and_empty_logits() -> None:
    mark = make(1)
    whole = torch.zeros(3, 2 * VOCABULARY)
    part = whole[:, ::2]
    mark.bias_(part, torch.tensor([[1], [2], [3]]))
    assert torch.equal(part, mark.bias_(torch.zeros(3, VOCABULARY), torch.tensor([[1], [2], [3]])))
    assert not whole[:, 1::2].any()
    assert mark.bias_(torch.zeros(0, VOCABULARY), torch.zeros(0, 1, dtype=torch.int64)).shape == (0, VOCABULARY)


def test_wrong_arguments() -> None:
    mark = make(2)
    with pytest.raises(ValueError, match="contexts"):
        mark.bias_(torch.zeros(1, 9), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="logits"):
        mark.bias_(torch.zeros(1, 9, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="integer"):
        mark.bias_(torch.zeros(1, 9), torch.zeros(1, 2))


@pytest.mark.parametrize("width", [0, 1, 5])
def test_torch_compile_without_a_graph_break(width: int) -> None:
    mark = make(width)
    logits, contexts = torch.randn(3, VOCABULARY), torch.arange(3 * width).reshape(3, width)
    compiled = torch.compile(lambda x, c: mark.bias_(x, c), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits.clone(), contexts), mark.bias_(logits.clone(), contexts))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_context_that_came_before_is_marked_once(width: int) -> None:
    """As a plain loop has it; padding is no context, even where the text holds its id."""
    draw = np.random.RandomState(0)
    for _ in range(300):
        rows = [draw.randint(0, 3, draw.randint(0, 9)).tolist() for _ in range(4)]
        longest = max(len(row) for row in rows)
        pad = int(draw.randint(0, 4))
        padded = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], dtype=torch.int64)
        found = contexts_at_end(padded, width, pad, "once").tolist()
        for row, context in zip(padded.tolist(), found, strict=True):
            text = list(itertools.dropwhile(pad.__eq__, row))
            whole = [-1] * max(0, width - len(text)) + text[max(0, len(text) - width) :]
            earlier = [text[i : i + width] for i in range(len(text) - width)]
            assert context == ([-1] * width if whole in earlier else whole)
    with pytest.raises(ValueError, match="want repeats 'mark' or 'once', got 'never'"):
        contexts_at_end(padded, width, pad, "never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at width 0 every token has the same context"):
        contexts_at_end(padded, 0, pad, "once")


def test_contexts_at_end() -> None:
    ids = torch.tensor([[9, 9, 1, 2], [9, 3, 9, 4], [5, 6, 7, 8]])
    assert contexts_at_end(ids, 3, 9).tolist() == [[-1, 1, 2], [3, 9, 4], [6, 7, 8]]
    assert contexts_at_end(ids, 3).tolist() == [[9, 1, 2], [3, 9, 4], [6, 7, 8]]
    assert contexts_at_end(ids, 6, 9).tolist()[0] == [-1, -1, -1, -1, 1, 2]
    assert contexts_at_end(ids, 0).shape == (3, 0)


def hand_written(lm: LlamaForCausalLM, mark: Mark, prompts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    ids = prompts
    for _ in range(24):
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = lm(ids, attention_mask=mask, position_ids=position_ids).logits[:, -1]
        mark.bias_(logits, contexts_at_end(ids, mark.width, PAD))
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return ids


PAD = 612


def generated(lm: LlamaForCausalLM, prompts: torch.Tensor, mask: torch.Tensor, **how: object) -> torch.Tensor:
    arguments = {"do_sample": True, "top_k": 0, "max_new_tokens": 24, "pad_token_id": PAD} | how
    with torch.no_grad():
        return lm.generate(input_ids=prompts, attention_mask=mask, **arguments)


def embed(way: str, lm: LlamaForCausalLM, mark: Mark) -> Iterator[Output]:
    """Six outputs on left-padded prompts of one to twelve tokens, by one way to embed."""
    torch.manual_seed(3)
    lengths = [1, 12, 7, 3, 9, 2]
    prompts = torch.full((6, 12), PAD)
    mask = torch.zeros(6, 12, dtype=torch.int64)
    for row, length in enumerate(lengths):
        prompts[row, 12 - length :] = torch.randint(6, 600, (length,))
        mask[row, 12 - length :] = 1
    if way == "loop":
        ids = hand_written(lm, mark, prompts, mask)
    elif way == "processor":
        processors = LogitsProcessorList([MarkLogitsProcessor(mark, PAD)])
        ids = generated(lm, prompts, mask, logits_processor=processors)
    elif way == "config":
        ids = generated(lm, prompts, mask, watermarking_config=MarkConfig(mark, PAD))
    else:
        how = {"num_beams": 3 if way == "beams" else 1, "do_sample": False, "top_k": None}
        ids = generated(lm, prompts, mask, watermarking_config=MarkConfig(mark, PAD), **how)
    for row, length in enumerate(lengths):
        yield Output(str(row), ids[row, 12 - length : 12].numpy(), ids[row, 12:].numpy())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("way", ["loop", "processor", "config", "beams", "greedy"])
def test_round_trip_all_green(lm: LlamaForCausalLM, way: str, width: int) -> None:
    """A bias of 40 leaves no red token a chance: what the detector scores must be green, without exception."""
    mark = make(width)
    result = text_result(mark, extract(embed(way, lm, mark), width, mark.exempt, unmarked_prompts=True))
    assert result.n > 20
    assert result.green == result.n, "chance of a red token: below 4 * 640 * exp(-40 + 4) = 6e-13 a position"
    assert result.discarded["short_context"] == sum(max(0, width - n) for n in (1, 12, 7, 3, 9, 2))


@pytest.mark.parametrize("width", WIDTHS)
def test_round_trip_all_red(lm: LlamaForCausalLM, width: int) -> None:
    """The same with the bias turned around: delta is positive by contract, so the logits are negated."""
    mark = make(width)

    class Reverse(MarkLogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores - (super().__call__(input_ids, torch.zeros_like(scores)))

    torch.manual_seed(4)
    prompts = torch.randint(6, 600, (6, 8))
    padding = list(range(613, VOCABULARY))  # neither green nor red, so they would be the way out
    reverse = LogitsProcessorList([Reverse(mark)])
    ids = generated(lm, prompts, torch.ones_like(prompts), logits_processor=reverse, suppress_tokens=padding)
    outputs = [Output(str(i), row[:8].numpy(), row[8:].numpy()) for i, row in enumerate(ids)]
    result = text_result(mark, extract(outputs, width, mark.exempt, unmarked_prompts=True))
    assert result.n > 20
    assert result.green == 0
    assert result.pvalue == 1.0


def test_the_config_runs_after_temperature_and_top_p(lm: LlamaForCausalLM) -> None:
    """At temperature 0.1 a processor before it would multiply delta by ten; what top-p cut stays cut."""
    mark = make(1, delta=2.0)
    prompts = torch.randint(6, 600, (1, 5), generator=torch.Generator().manual_seed(1))
    how = {
        "max_new_tokens": 1,
        "temperature": 0.1,
        "top_p": 0.9,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    plain = generated(lm, prompts, torch.ones_like(prompts), **how).scores[0]
    marked = generated(lm, prompts, torch.ones_like(prompts), watermarking_config=MarkConfig(mark, PAD), **how).scores[
        0
    ]
    assert torch.isinf(plain).any()
    assert torch.equal(torch.isinf(plain), torch.isinf(marked))
    assert torch.equal(marked, mark.bias_(plain.clone(), prompts[:, -1:]))


def test_two_marks_at_once_are_each_verified_on_their_own(lm: LlamaForCausalLM) -> None:
    provider = make(1, delta=6.0)
    customer = provider.child("customer-17")
    torch.manual_seed(5)
    prompts = torch.randint(6, 600, (8, 4))
    both = LogitsProcessorList([MarkLogitsProcessor(provider), MarkLogitsProcessor(customer)])
    ids = generated(lm, prompts, torch.ones_like(prompts), logits_processor=both, max_new_tokens=64)
    outputs = [Output(str(i), row[:4].numpy(), np.minimum(row[4:].numpy(), 612)) for i, row in enumerate(ids)]
    pairs = extract(outputs, 1, provider.exempt, unmarked_prompts=True)
    other = provider.child("customer-18")
    found = {m.label: text_result(m, pairs).log10_pvalue for m in (provider, customer, other)}
    assert found[""] < -20
    assert found["customer-17"] < -20
    assert found["customer-18"] > -6, "an unrelated key: false failure 1e-6"


@pytest.mark.parametrize("beams", [1, 3])
def test_each_row_of_a_batch_carries_its_own_customers_mark(lm: LlamaForCausalLM, beams: int) -> None:
    provider = make(1)
    customers = [provider.child(f"customer-{i}") for i in range(6)]
    config = MarkConfig(Marks.by_row([[customer] for customer in customers]), PAD)
    torch.manual_seed(6)
    prompts = torch.randint(6, 600, (6, 8))
    how = {"num_beams": beams, "do_sample": beams == 1} | ({"top_k": None} if beams > 1 else {})
    ids = generated(lm, prompts, torch.ones_like(prompts), watermarking_config=config, **how)
    for row in range(6):
        pairs = extract([Output("", ids[row, :8].numpy(), ids[row, 8:].numpy())], 1, unmarked_prompts=True)
        rates = [text_result(mark, pairs).green_rate for mark in customers]
        assert rates[row] == 1.0, "a bias of 40 leaves no red token a chance"
        assert len(pairs.tokens) >= 10
        assert max(rates[:row] + rates[row + 1 :]) < 1.0, "30 times 10 coins of 1/4 or more: false failure 3e-5"
    assert {card["label"] for card in config.to_dict()["marks"]} == {f"customer-{i}" for i in range(6)}
    assert "secret" not in config.to_json_string()


def test_an_exempt_token_is_never_biased_nor_scored() -> None:
    exempt = tuple(range(0, 613, 2))
    mark = replace(make(1), exempt=exempt)
    logits = mark.bias_(torch.zeros(1, VOCABULARY), torch.tensor([[9]]))
    assert not logits[0, list(exempt)].any()
    assert not logits[0, 613:].any()
    pairs = extract([Output("a", None, np.arange(613))], 1, exempt)
    assert set(pairs.tokens.tolist()).isdisjoint(exempt)
