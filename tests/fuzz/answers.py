"""Targets: whatever a server answers, it is understood, or nothing is; it is bounded, and can be logged."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.fuzz.engine import Case, Place, Target
from tests.fuzz.mutate import changed, value
from tests.fuzz.records import own_mark
from tests.servers import chat
from verify.data.dialects import along_prompt, billed, choices, error_in, is_stream, said, wrong_tokens
from verify.data.formats import SHAPES
from verify.data.logprobs import from_record
from verify.suspects.client import only_asked, too_long
from verify.suspects.endpoint import Endpoint
from verify.suspects.interview import _understand
from verify.suspects.vocabulary import Vocabulary, useless
from verify.suspects.waves import same_model
from watermark import StillmarkError
from watermark.io.prompts import Prompt
from watermark.io.records import Record
from watermark.tokenizers import load_transformers_for

LOGPROBS: Final = [("w5", [("w5", -0.1), ("w7", -3.0)]), ("w6", [("w6", -0.2), ("w8", -2.0)])]
ANSWERS: Final[dict[str, Any]] = {
    "chat": chat("w5 w6", LOGPROBS),
    "completion": {"choices": [{"text": "w5 w6", "logprobs": {"tokens": ["w5", " w6"], "token_logprobs": [-0.1, -0.2],
                   "top_logprobs": [{"w5": -0.1}, None]}, "prompt_logprobs": [None, {"5": {"logprob": -1.5}}]}]},
    "response": {"object": "response", "model": "s", "output": [{"type": "message", "content": [{"type": "output_text",
                 "text": "w5", "logprobs": [{"token": "w5", "logprob": -0.1, "bytes": [119, 53], "top_logprobs": []}]}
                 ]}]},
    "llama.cpp": {"content": "w5", "completion_probabilities": [{"content": "w5", "probs": [{"tok_str": "w5",
                  "prob": 0.5}]}]},
    "ollama": {"message": {"role": "assistant", "content": "w5"}, "done": True, "eval_count": 3},
    "stream": 'data: {"choices": [{"delta": {"content": "w5"}}]}\n\ndata: [DONE]\n',
    "error": {"error": {"message": "no", "code": "429"}},
}  # fmt: skip
ASKED: Final = {"max_tokens": 16, "top_logprobs": 5}


def answers(name: str, _place: Place) -> Case:
    def case(draw: Random) -> None:
        answer = changed(draw, ANSWERS[name]) if draw.randrange(8) else value(draw)
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

    return case


def kept(name: str, place: Place) -> Case:
    """What is made of an answer can be read again."""
    mark = own_mark(place)
    words = load_transformers_for(mark)
    vocabulary = Vocabulary(words, len(words))
    endpoint = Endpoint("http://127.0.0.1/v1", "s", max_tokens=16, top_logprobs=5)

    def case(draw: Random) -> None:
        # the client writes a question mark for half a surrogate pair
        heard_text = json.dumps(changed(draw, ANSWERS[name]), ensure_ascii=False).encode(errors="replace")
        fields = {"answer": json.loads(heard_text), "error": None}
        heard = _understand(fields, Prompt("p", "w5 w6", None), vocabulary, words, mark, endpoint)
        line = json.loads(json.dumps({"id": "p", **heard, "sampled": True, "sequential": True}))
        assert from_record(Record(Path("log"), 1, line), len(words)).start > 0

    return case


TARGETS: Final[dict[str, Target]] = {
    **{f"answer {name}": partial(answers, name) for name in ANSWERS},
    **{f"kept {name}": partial(kept, name) for name in ANSWERS},
}
