"""How a server wants to be asked: the requests of each API, and what changes after a refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from verify.suspects.endpoint import CHAT, COMPLETIONS, Endpoint
from watermark.io.prompts import Prompt

FEW_LOGPROBS: Final = 5
"""Log probabilities to ask for where a server refuses more, and does not say how many it gives."""

TEXT: Final = ""
LOGPROBS: Final = "logprobs"
PROMPT_LOGPROBS: Final = "prompt_logprobs"
ECHO: Final = "echo"
"""What a request asks for beside text: log probabilities of the answer's tokens; of the prompt's tokens, as vLLM
gives them; the same from a completion that echoes its prompt."""


@dataclass(frozen=True)
class Manner:
    """How a server wants to be asked.

    Attributes:
        limit: its name for the most tokens of an answer.
        temperature: it takes one.
        top: log probabilities to ask for; 0: none.
    """

    limit: str = "max_tokens"
    temperature: bool = True
    top: int = 0

    def after(self, words: str, asked: Mapping[str, Any]) -> tuple[Manner, str] | None:
        """The manner after a refusal of a request (`asked`), and in words what is different; None: nothing is."""
        if self.limit == "max_tokens" in asked and "max_completion_tokens" in words:
            return replace(self, limit="max_completion_tokens"), "`max_completion_tokens` instead of `max_tokens`"
        if self.temperature and "temperature" in asked and "temperature" in words:
            return replace(self, temperature=False), "no `temperature`: the server's own is used"
        if (
            self.top
            and "logprob" in words
            and not asked.keys().isdisjoint(("logprobs", "top_logprobs", "prompt_logprobs"))
        ):
            named = [int(number) for number in re.findall(r"\d{1,4}", words)]
            fewer = max((number for number in named if 0 < number < self.top), default=0)
            fewer = fewer or (FEW_LOGPROBS if self.top > FEW_LOGPROBS else 0)
            return replace(self, top=fewer), f"{fewer} log probabilities" if fewer else "no log probabilities"
        return None


def request_of(
    endpoint: Endpoint, manner: Manner, prompt: Prompt, wanted: str, number: int = 1
) -> tuple[str, dict[str, Any]]:
    """The path and the body that ask for `number` answers to one prompt."""
    fields: dict[str, Any] = {"model": endpoint.model}
    top = manner.top if wanted else 0
    turns = [{"role": role, "content": text} for role, text in prompt.messages or (("user", prompt.text),)]
    if endpoint.api == CHAT:
        path, limit = "/chat/completions", manner.limit
        fields |= {"messages": turns} | ({"logprobs": True, "top_logprobs": top} if top else {})
    elif endpoint.api == COMPLETIONS:
        path, limit = "/completions", manner.limit
        fields |= {"prompt": prompt.text if prompt.ids is None else list(prompt.ids)}
        fields |= {PROMPT_LOGPROBS if wanted == PROMPT_LOGPROBS else LOGPROBS: top} if top else {}
        fields |= {"echo": True} if wanted == ECHO else {}
    else:
        path, limit = "/responses", "max_output_tokens"
        fields |= {"input": turns, "store": False}
        fields |= {"top_logprobs": top, "include": ["message.output_text.logprobs"]} if top else {}
    if endpoint.extra.keys().isdisjoint(("max_tokens", "max_completion_tokens", "max_output_tokens")):
        fields[limit] = endpoint.max_tokens
    fields |= {"temperature": endpoint.temperature} if manner.temperature else {}
    fields |= {"n": number} if number > 1 else {}
    return path, fields | dict(endpoint.extra)
