"""Marks in transformers: what is saved with a model, continuous batching, and ids that are no tensors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
)

from tests import small
from watermark import GreenList, Mark, MarkError, Marks, Tournament
from watermark.integrations.transformers import MarkConfig, MarkLogitsProcessor
from watermark.models import load_model
from watermark.schemes.logits import contexts_at_end

MARK = Mark(bytes(range(1, 33)), scheme=GreenList(delta=40.0), vocabulary_size=256, exempt=(0, 1))
PROMPTS = [[5, 6, 7], [9, 8], [11, 12, 13, 14], [3]]
LITTLE = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)  # unsaid, its cache takes most of the memory


@pytest.fixture
def lm() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=None, eos_token_id=1, pad_token_id=0, max_position_embeddings=256,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def rate(rows: list[list[int]]) -> float:
    pairs = [pair for row in rows for pair in pairwise(row)]
    contexts, tokens = (np.array(column) for column in zip(*pairs, strict=True))
    return float(MARK.green(contexts[:, None], tokens).mean())


@pytest.mark.parametrize("marks", [MARK, Marks((MARK, MARK.child("a")))])
def test_a_saved_model_can_be_loaded_by_anybody(lm: LlamaForCausalLM, marks: Mark | Marks, tmp_path: Path) -> None:
    """With the mark left out: transformers would read it as its own watermark."""
    config = MarkConfig(marks, 0)
    lm.generation_config.watermarking_config = config
    lm.save_pretrained(tmp_path)
    small.tokenizer(tmp_path)
    saved = (tmp_path / "generation_config.json").read_text()
    assert json.loads(saved).get("watermarking_config") is None
    assert MARK.commitment not in saved
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path), load_model(tmp_path)[0]):
        assert loaded.generation_config.watermarking_config is None
        assert loaded.generation_config.eos_token_id == 1, "the rest is there"
    assert lm.generation_config.watermarking_config is config, "saving changed nothing"
    out = lm.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=20, do_sample=True, top_k=0, eos_token_id=None)
    if marks is MARK:
        assert rate([out[0, 2:].tolist()]) == 1.0, "a bias of 40 leaves no red token a chance"
    assert config.to_dict()["pad_token_id"] == 0, "by itself it is the card"


def test_a_generation_config_with_a_mark_saves_and_loads(tmp_path: Path) -> None:
    how = GenerationConfig(watermarking_config=MarkConfig(MARK, 0), max_new_tokens=7)
    how.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert (again.watermarking_config, again.max_new_tokens) == (None, 7)
    twice = copy.deepcopy(copy.deepcopy(how))
    assert json.loads(twice.to_json_string())["watermarking_config"] is None
    processor = twice.watermarking_config.construct_processor(256)
    assert processor.mark is MARK, "a copy marks all the same"
    assert MARK.secret.hex() not in repr(how) + repr(twice)


def batch(lm: Any, **how: Any) -> Any:
    how = {"generation_config": GenerationConfig(**how, max_new_tokens=6, eos_token_id=1)}
    return lm.generate_batch(PROMPTS, **how, continuous_batching_config=LITTLE)


def batch_by_argument(lm: Any, **how: Any) -> Any:
    return lm.generate_batch(PROMPTS, max_new_tokens=6, continuous_batching_config=LITTLE, **how)


def batch_by_model(lm: Any, **how: Any) -> Any:
    lm.generation_config.update(**how)
    return lm.generate_batch(PROMPTS, max_new_tokens=6, continuous_batching_config=LITTLE)


def paged(lm: Any, **how: Any) -> Any:
    return lm.generate(torch.tensor(PROMPTS[:1]), cache_implementation="paged", max_new_tokens=6, **how)


def manager(lm: Any, **how: Any) -> Any:
    return lm.init_continuous_batching(GenerationConfig(**how, eos_token_id=1), LITTLE)


def kept_manager(lm: Any, **how: Any) -> Any:
    plain = GenerationConfig(max_new_tokens=2, eos_token_id=1)
    lm.generate_batch(PROMPTS, generation_config=plain, persistent_manager=True, continuous_batching_config=LITTLE)
    try:
        return batch(lm, **how)
    finally:
        lm.destroy_cached_continuous_batching_manager()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers and torch, about themselves
@pytest.mark.parametrize("way", [batch, batch_by_argument, batch_by_model, paged, manager, kept_manager])
def test_continuous_batching_refuses_a_mark(lm: LlamaForCausalLM, way: Callable[..., Any]) -> None:
    with pytest.raises(MarkError, match="continuous batching"):
        way(lm, watermarking_config=MarkConfig(MARK, 0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "how",
    [{"do_sample": False}, {"generation_config": GenerationConfig(do_sample=False, max_new_tokens=3)}, {},
     {"num_beams": 2}, {"generation_config": GenerationConfig(num_beams=2)}, {"do_sample": True, "top_k": 1}],
)  # fmt: skip
def test_a_tournament_refuses_greedy_decoding(lm: LlamaForCausalLM, how: dict[str, Any]) -> None:
    """Before a token is generated, however it was asked for; a green list and sampling go through."""
    mark, ids = Mark(bytes(32), Tournament(4)), torch.tensor([[5, 6]])
    for more in ({"watermarking_config": MarkConfig(mark)}, {"logits_processor": [MarkLogitsProcessor(mark)]}):
        with pytest.raises(MarkError, match="marks nothing at temperature 0"):
            lm.generate(ids, **how, **more)  # type: ignore[arg-type]
    held = GenerationConfig(watermarking_config=MarkConfig(mark), do_sample=False)
    with pytest.raises(MarkError, match="marks nothing at temperature 0"):
        lm.generate(ids, generation_config=held)
    lm.generate(ids, do_sample=False, max_new_tokens=2, watermarking_config=MarkConfig(Mark(bytes(32))))
    lm.generate(ids, do_sample=True, max_new_tokens=2, watermarking_config=MarkConfig(mark))


def test_continuous_batching_refuses_a_processor_and_is_free_without(lm: LlamaForCausalLM) -> None:
    with pytest.raises(MarkError, match="continuous batching"):
        batch_by_argument(lm, logits_processor=LogitsProcessorList([MarkLogitsProcessor(MARK)]))
    found = batch(lm)
    assert sorted(len(one.prompt_ids) for one in found.values()) == [1, 2, 3, 4]
    assert all(one.generated_tokens for one in found.values())


def test_contexts_from_lists_and_tuples() -> None:
    """As engines other than transformers give them: rows of any length."""
    assert contexts_at_end([[1, 2, 3]], 1).tolist() == [[3]]
    assert contexts_at_end(((1, 2, 3), [4], ()), 2).tolist() == [[2, 3], [-1, 4], [-1, -1]]
    assert contexts_at_end([(9, 9, 1), [9, 3, 9]], 2, 9).tolist() == [[-1, 1], [3, 9]]
    assert contexts_at_end([[9, 1], [9, 9, 9, 5, 6]], 3, 9).tolist() == [[-1, -1, 1], [-1, 5, 6]]
    assert contexts_at_end(np.array([[1, 2, 3]], np.int32), 2).tolist() == [[2, 3]]
    assert contexts_at_end([torch.tensor([1, 2]), torch.tensor([3])], 1).tolist() == [[2], [3]]
    assert contexts_at_end([], 2).shape == (0, 2)
    assert contexts_at_end([[]], 0).shape == (1, 0)
    assert contexts_at_end([[1, 2]], 1).dtype == torch.int64


@pytest.mark.parametrize(
    "ids",
    [[1, 2, 3], (1,), 5, None, "abc", [["a"]], [[1.5]], [[True]], [[None]], [[[1]]], [[2**70]], {1: 2},
     torch.tensor([1, 2]), torch.tensor([[1.0]]), torch.tensor([[True]]), np.zeros((1, 2)), torch.tensor([[1j]])],
)  # fmt: skip
def test_ids_that_are_no_rows_of_integers(ids: Any) -> None:
    with pytest.raises(ValueError, match="want"):
        contexts_at_end(ids, 1)
    with pytest.raises(ValueError, match="want"):
        MARK.bias_(torch.zeros(1, 256), ids)


def test_bias_by_contexts_in_lists() -> None:
    expected = MARK.bias_(torch.zeros(3, 256), torch.tensor([[1], [2], [3]]))
    assert expected.any()
    for contexts in ([[1], [2], [3]], ((1,), (2,), (3,)), np.array([[1], [2], [3]], np.uint16)):
        assert torch.equal(MARK.bias_(torch.zeros(3, 256), contexts), expected)
        assert torch.equal(Marks((MARK,)).bias_(torch.zeros(3, 256), contexts), expected)
    for wrong in ([1, 2, 3], [[1, 2]] * 3, [[1], [2]], [[1], [2, 3], [4]], []):
        with pytest.raises(ValueError, match="want"):
            MARK.bias_(torch.zeros(3, 256), wrong)
    for logits in ([[0.0] * 256], np.zeros((1, 256), np.float32), None):
        with pytest.raises(ValueError, match="want logits"):
            MARK.bias_(logits, [[1]])
