"""What docs say is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from benchmarks import gpu
from benchmarks.fingerprints import RESULTS, ROWS
from benchmarks.table import HERE, made


@pytest.mark.parametrize(
    ("file", "marks", "text"),
    made(),
    ids=["speed", "fingerprints", "tokenizers", "schemes", "engines", "evasions", "nulls"],
)
def test_docs_show_the_recorded_figures(file: Path, marks: tuple[str, str], text: str) -> None:
    before, _, rest = file.read_text().partition(marks[0])
    shown, _, after = rest.partition(marks[1])
    assert before
    assert after
    assert shown == text, "run: python -m benchmarks.table"


def test_the_matrix_is_whole() -> None:
    found = json.loads((HERE.parent / RESULTS).read_text())
    assert [row["model"] for row in found["table"]] == list(ROWS)
    for row in found["table"]:
        assert row["right"] == (row["verdict"] in ROWS[row["model"]].right)
        assert row["right"] or row["why"], "a wrong verdict says why"


def test_a_decode_step_can_be_timed() -> None:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.inference_mode():
        step = gpu.decoder(LlamaConfig(vocab_size=50, num_key_value_heads=1, **small), rows=3, tokens=7)
        for _ in range(gpu.STEPS):
            logits = step()
        assert logits.shape == (3, 50)
        assert logits.isfinite().all()
        with pytest.raises(IndexError):
            step()
