"""What a server may answer: whatever it is, it is understood, or nothing is; it is bounded, and can be logged."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given

from tests import small
from tests.fuzz.mutate import JSON, changed, fuzz
from tests.servers import chat
from verify.data.dialects import along_prompt, billed, choices, error_in, is_stream, said, wrong_tokens
from verify.data.formats import SHAPES
from verify.data.logprobs import from_record
from verify.suspects.client import only_asked, too_long
from verify.suspects.endpoint import Endpoint
from verify.suspects.interview import _understand
from verify.suspects.vocabulary import Vocabulary, useless
from verify.suspects.waves import same_model
from watermark import Mark, StillmarkError
from watermark.io.prompts import Prompt
from watermark.io.records import Record
from watermark.tokenizers import load_transformers_for

LOGPROBS: Final = [("w5", [("w5", -0.1), ("w7", -3.0)]), ("w6", [("w6", -0.2), ("w8", -2.0)])]
ANSWERS: Final[list[Any]] = [
    chat("w5 w6", LOGPROBS),
    {"choices": [{"text": "w5 w6", "logprobs": {"tokens": ["w5", " w6"], "token_logprobs": [-0.1, -0.2],
                  "top_logprobs": [{"w5": -0.1}, None]}, "prompt_logprobs": [None, {"5": {"logprob": -1.5}}]}]},
    {"object": "response", "model": "s", "output": [{"type": "message", "content": [{"type": "output_text",
     "text": "w5", "logprobs": [{"token": "w5", "logprob": -0.1, "bytes": [119, 53], "top_logprobs": []}]}]}]},
    {"content": "w5", "completion_probabilities": [{"content": "w5", "probs": [{"tok_str": "w5", "prob": 0.5}]}]},
    {"message": {"role": "assistant", "content": "w5"}, "done": True, "eval_count": 3},
    'data: {"choices": [{"delta": {"content": "w5"}}]}\n\ndata: [DONE]\n',
    {"error": {"message": "no", "code": "429"}},
]  # fmt: skip
ASKED: Final = {"max_tokens": 16, "top_logprobs": 5}


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_an_answer_is_understood_or_nothing_is(number: int) -> None:
    @fuzz
    @given(changed(ANSWERS[number]) | JSON)
    def look(answer: Any) -> None:
        for choice in range(min(choices(answer), 3)):
            heard = said(answer, choice)
            assert heard.text is None or isinstance(heard.text, str)
            useless(heard.steps)
            wrong_tokens(answer, choice)
        along_prompt(answer)
        billed(answer)
        error_in(answer)
        is_stream(answer)
        too_long(answer, ASKED)
        cut = only_asked(answer, ASKED)
        assert len(json.dumps(cut)) <= len(json.dumps(answer))
        with suppress(StillmarkError):
            same_model("s", answer)
        if isinstance(answer, dict):
            for shape in SHAPES:
                shape.fits({"response": answer})

    look()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    small.mark(folder / "m", small.tokenizer(folder / "tokenizer"))
    return folder


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_what_is_made_of_an_answer_can_be_read_again(number: int, place: Path) -> None:
    mark = Mark.load(place / "m")
    words = load_transformers_for(mark)
    vocabulary = Vocabulary(words, len(words))
    endpoint = Endpoint("http://127.0.0.1/v1", "s", max_tokens=16, top_logprobs=5)

    @fuzz
    @given(changed(ANSWERS[number]))
    def look(answer: Any) -> None:
        fields = {"answer": answer, "error": None}
        heard = _understand(fields, Prompt("p", "w5 w6", None), vocabulary, words, mark, endpoint)
        line = json.loads(json.dumps({"id": "p", **heard, "sampled": True, "sequential": True}))
        assert from_record(Record(Path("log"), 1, line), len(words)).start > 0

    look()
