"""A suspect behind an OpenAI-compatible endpoint: where it is, and how to ask it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

from verify.calls import without_login
from watermark import ApiError, UsageError
from watermark.io.prompts import Prompt
from watermark.io.records import run_digest

CHAT: Final = "chat"
COMPLETIONS: Final = "completions"
RESPONSES: Final = "responses"
APIS: Final = (CHAT, COMPLETIONS, RESPONSES)


@dataclass(frozen=True, repr=False)
class Endpoint:
    """Where and how to ask. The key is read from the environment by the client, and never kept.

    Attributes:
        base_url: such as http://127.0.0.1:8000/v1.
        model: the name to ask for.
        api: `chat` completions, plain `completions`, or `responses`.
        max_tokens: of one answer.
        temperature: of sampling.
        top_logprobs: how many to ask for; 0: text only. Where the server refuses as many, fewer are asked for.
        reasoning: score what the suspect writes for itself before its answer, too.
        samples: answers to each prompt.
        extra: further fields of each request.
        timeout: seconds that a whole request may take.
        retries: of one request, for broken connections, time-outs, 408, 409, 429 and 5xx, with growing pauses or
            those that the server names, five minutes in all at most.
        concurrency: requests under way at once.

    Example:
        >>> Endpoint("http://127.0.0.1:8000/v1", "suspect").api
        'chat'
    """

    base_url: str
    model: str
    api: str = CHAT
    max_tokens: int = 128
    temperature: float = 1.0
    top_logprobs: int = 20
    reasoning: bool = False
    samples: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    retries: int = 5
    concurrency: int = 4

    def __repr__(self) -> str:
        """Without what may be secret: a login or a key in the address, and keys among the further fields."""
        shown = vars(self) | {"base_url": without_login(self.base_url), "extra": without_keys(self.extra)}
        return f"Endpoint({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises ApiError for an address that is none, and for prompts that this API does not take.

        UsageError: there is no such API.
        """
        try:
            parts = urlsplit(self.base_url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not valid:
            raise ApiError("the endpoint's address is no http(s):// URL", "such as http://127.0.0.1:8000/v1")
        if self.api not in APIS:
            raise UsageError(f"no API '{self.api}'", f"one of {', '.join(APIS)}")
        if self.api != COMPLETIONS and any(prompt.ids is not None for prompt in prompts):
            raise ApiError("prompts of token ids need completions (`api=completions`)", "or give the prompts as text")
        if self.api == COMPLETIONS and any(prompt.messages for prompt in prompts):
            raise ApiError("prompts of several turns need `api=chat` or `api=responses`", "or give the prompts as text")

    def digest(self, prompts: Sequence[Prompt], *more: str) -> str:
        """Twelve hex digits for all that shapes the answers; the address may change, and so may patience."""
        how = asdict(self)
        for name in ("base_url", "timeout", "retries", "concurrency"):
            del how[name]
        return run_digest(how, prompts, *more)


_NAMES_A_KEY: Final = re.compile(
    r"(?i)(^|[^a-z])(api.?)?(key|token|secret|password|passwd|authorization|bearer|credentials?)$"
)
"""Names of fields whose strings are secret."""


def without_keys(value: Any, *, secret: bool = False) -> Any:
    """Fields of a request as others may see them: strings under names like `api_key` are left out.

    >>> without_keys({"seed": 1, "headers": {"Authorization": "Bearer abc"}})
    {'seed': 1, 'headers': {'Authorization': '[key]'}}
    """
    if isinstance(value, Mapping):
        return {k: without_keys(one, secret=secret or bool(_NAMES_A_KEY.search(str(k)))) for k, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_keys(one, secret=secret) for one in value]
    return "[key]" if secret and isinstance(value, str) else value


def keys_in(value: Any, *, secret: bool = False) -> Iterator[str]:
    """The strings that `without_keys` leaves out, and of several words each."""
    if isinstance(value, Mapping):
        for k, one in value.items():
            yield from keys_in(one, secret=secret or bool(_NAMES_A_KEY.search(str(k))))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from keys_in(one, secret=secret)
    elif secret and isinstance(value, str):
        yield value
        yield from value.split()


def is_address(what: object) -> TypeGuard[str]:
    """Whether this is the address of an endpoint, and no path."""
    return isinstance(what, str) and what.startswith(("http://", "https://"))
