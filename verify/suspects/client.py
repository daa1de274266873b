"""Requests to an endpoint: secrets, refusals, pauses and retries.

Nothing that a server answers can make a test unsound: whatever it says is a choice of the suspect's, and the suspect
does not know the key. What cannot be understood is left out, logged, and counted.
"""

from __future__ import annotations

import base64
import email.utils
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from verify.data.dialects import choices, dig, error_in, said
from verify.suspects.endpoint import Endpoint, keys_in
from verify.suspects.manner import ECHO, LOGPROBS, PROMPT_LOGPROBS, TEXT, Manner, request_of
from verify.suspects.transport import Bounds, SendError, bounded_client
from watermark import ApiError
from watermark.extras import require
from watermark.io.fields import is_int
from watermark.io.prompts import Prompt

if TYPE_CHECKING:
    from openai import OpenAI


MAX_WAIT: Final = 300.0
"""Seconds that one request may spend in failed tries and in pauses before it is tried again."""

MAX_WAIT_IN_ALL: Final = 3600.0
"""The same of all requests of one run; after that each has one try."""

LIST_OF_MODELS: Final = 1 << 22
"""Most bytes of the list of models that a server serves."""

REDIRECT: Final = "redirects are not followed: name the address that answers"

NOT_KEPT: Final = "its words are not kept, since they may repeat the key"

MIN_SECRET_LENGTH: Final = 8
"""Characters of a secret; a local server's `none` is none."""

_REFUSALS: Final = {
    401: "is the key right?",
    402: "is there credit left?",
    403: "is the key right?",
    404: "are URL and model right?",
}


class Client:
    """Asks one endpoint, and learns how it wants to be asked.

    Raises:
        ApiError: there is no key in the environment.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._bounds = Bounds()
        self._openai = connect(endpoint, self._bounds)
        self._waited = 0.0
        self._manner = Manner(top=endpoint.top_logprobs)
        self._secrets = _secrets(endpoint, self._openai.api_key)

    def close(self) -> None:
        """Close its connections. A request that is under way in another thread fails."""
        self._openai.close()

    def ask(self, prompt: Prompt, wanted: str, number: int = 1) -> tuple[dict[str, Any], ApiError | None]:
        """One request: `request`, the `answer` as it came, and `error`; `changed` if it had to be asked otherwise.

        Also a refusal that another try would meet too, or None.
        """
        changed: list[str] = []
        refused = ""
        while True:
            manner = self._manner
            path, request = request_of(self.endpoint, manner, prompt, wanted, number)
            answer, failure = self._send(path, request, most_bytes(request, number))
            if failure is None or failure.status not in (400, 403, 422):
                break
            milder = manner.after(failure.words, request)
            if milder is not None:
                self._manner = milder[0]
                changed.append(f"The server refused a request ({failure}), and was asked with {milder[1]}.")
            elif failure.status != 403 and wanted == LOGPROBS and manner.top and not refused:
                # it may be these, and not say so
                wanted, refused = TEXT, str(failure)
            else:
                break
        if failure is None:
            answer = only_asked(answer, request)
            if (words := too_long(answer, request)) is not None:
                answer, failure = None, _Failure(words)
        if refused and failure is None:
            changed.append(f"The server refused a request ({refused}), and was asked with no log probabilities.")
        error = None if failure is None else refused or str(failure)
        fields = {"request": request, "answer": answer, "error": error} | ({"changed": changed} if changed else {})
        hint = None if failure is None or failure.status is None else _REFUSALS.get(failure.status)
        if failure is not None and failure.redirects:
            hint = REDIRECT
        return self._plain(fields), ApiError(f"the endpoint refuses: {error}", hint) if hint else None

    def _send(self, path: str, request: Mapping[str, Any], most: int) -> tuple[Any, _Failure | None]:
        """The answer as it came, of at most so many bytes, or why there is none, after as many tries as make sense."""
        import openai

        waited = 0.0
        for attempt in range(self.endpoint.retries + 1):
            answer, failure = None, None
            begun = time.monotonic()
            try:
                # as it comes, and not through the client's types: they would drop what they do not know
                with self._bounds.within(self.endpoint.timeout, most):
                    answer = self._openai.post(path, body=request, cast_to=object)
                if (found := error_in(answer)) is not None:
                    words = f"the server answers with an error: {self._clean(found[0])}"
                    failure = _Failure(words if found[1] is None else f"{words} (code {found[1]})", found[1])
                    if failure.unsaid:
                        answer = None
            except openai.APIStatusError as error:
                failure = self._refused(path, error)
            except (openai.OpenAIError, ValueError, RecursionError) as error:  # no JSON, or nested too deep
                failure = _Failure(type(error).__name__, again=isinstance(error, openai.APIConnectionError))
                if isinstance(limit := error.__cause__, SendError):  # as some versions of the client have it
                    failure = _Failure(str(limit), again=limit.again)
            except SendError as error:
                failure = _Failure(str(error), again=error.again)
            if failure is None or not failure.may_pass or attempt == self.endpoint.retries:
                break
            pause = failure.pause
            if pause is None:
                pause = min(8.0, 0.5 * 2**attempt) * random.uniform(0.75, 1)
            spent = pause + time.monotonic() - begun
            waited, self._waited = waited + spent, self._waited + spent
            if waited > MAX_WAIT or self._waited > MAX_WAIT_IN_ALL:
                asked = (
                    f"it asks for a pause of {pause:,.0f} seconds" if failure.pause else "it does so again and again"
                )
                failure = replace(failure, words=f"{failure.words} ({asked})")
                break
            time.sleep(pause)
        return answer, failure

    def _refused(self, path: str, error: Any) -> _Failure:
        found = error.body if isinstance(error.body, str) else dig(error.body, "message")
        words = found if isinstance(found, str) and found else error.message
        if 300 <= error.status_code < 400:
            words = "it redirects to another address"
        headers = error.response.headers
        again = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
        return _Failure(self._clean(words), error.status_code, _pause(headers), again, path)

    def _clean(self, message: str) -> str:
        """One line of a server's words: without the key, if it repeats it, and without control characters."""
        for secret in self._secrets:
            message = message.replace(secret, "[key]")
        words = " ".join(message.split())
        return "".join(c for c in words if c.isprintable())[:200]

    def _plain(self, fields: dict[str, Any]) -> dict[str, Any]:
        """As it can be logged: without secrets; half a surrogate pair, which is no text, is a question mark."""

        def clean(value: Any) -> Any:
            if isinstance(value, str):
                value = value.encode("utf-8", "replace").decode()
                for secret in self._secrets:
                    value = value.replace(secret, "[key]")
                return value
            if isinstance(value, Mapping):
                return {clean(name): clean(one) for name, one in value.items()}
            return [clean(one) for one in value] if isinstance(value, list | tuple) else value

        try:
            cleaned: dict[str, Any] = clean(fields)
        except RecursionError:  # nested too deep
            return {"request": clean(fields["request"]), "answer": None, "error": "RecursionError"}
        return cleaned


@dataclass(frozen=True)
class _Failure:
    """Why a request brought no answer: words, and HTTP's status; how long to wait; whether another try makes sense."""

    words: str
    status: int | None = None
    pause: float | None = None
    again: bool | None = None
    path: str = ""

    @property
    def may_pass(self) -> bool:
        if self.again is not None:
            return self.again
        return self.status is not None and (self.status in (408, 409, 429) or self.status >= 500)

    @property
    def redirects(self) -> bool:
        """Whether the server sends the request elsewhere."""
        return self.status is not None and 300 <= self.status < 400

    @property
    def unsaid(self) -> bool:
        """Whether the words may repeat the key, in whatever spelling."""
        return self.status in (401, 403)

    def __str__(self) -> str:
        words = NOT_KEPT if self.unsaid else self.words
        return f"HTTP {self.status} from {self.path}: {words}" if self.path else words


def _pause(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait, if it does; never less than none."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = headers.get(name, "")
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, OverflowError):
                continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return None


def most_bytes(request: Mapping[str, Any], number: int = 1) -> int:
    """How long an answer to a request can be: a kibibyte a token, half of one for each likely token, and a mebibyte."""
    tokens = number * _limit(request)
    top = _top(request)
    shown = _shown(request)
    if PROMPT_LOGPROBS in request or request.get(ECHO):
        tokens += shown
    return (1 << 20) + 8 * shown + tokens * (1024 + 512 * top)


def _shown(request: Mapping[str, Any]) -> int:
    """The characters of a request, and so more than the tokens of its prompt."""
    return len(json.dumps(request, ensure_ascii=False))


def _limit(request: Mapping[str, Any]) -> int:
    """The most tokens of one answer to a request."""
    return _largest(request, ("max_tokens", "max_completion_tokens", "max_output_tokens"), NO_LIMIT)


def _top(request: Mapping[str, Any]) -> int:
    """The likely tokens that a request asks for at each place."""
    return _largest(request, ASKED_FOR, 0)


def _largest(request: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    """The largest of some fields that are integers."""
    return max((int(request[name]) for name in names if is_int(request.get(name))), default=default)


NO_LIMIT: Final = 1 << 14
"""Most tokens of an answer where the request names no limit."""


def too_long(answer: Any, request: Mapping[str, Any]) -> str | None:
    """What is wrong with an answer far beyond what was asked for; None: nothing is. Some servers count otherwise."""
    limit = 2 * _limit(request) + 1000 + (_shown(request) if request.get(ECHO) else 0)
    for number in range(choices(answer)):
        heard = said(answer, number)
        wrote = max(len(heard.steps), (len(heard.text or "") + len(heard.reasoning)) // LETTERS)
        if wrote > limit:
            return f"the answer has {wrote:,} tokens or more, and {_limit(request):,} were asked for"
    return None


LETTERS: Final = 64
"""Characters of a text that are one token at least."""

ASKED_FOR: Final = ("top_logprobs", "logprobs", PROMPT_LOGPROBS)
"""Fields of a request that say how many likely tokens are to be named."""


def only_asked(answer: Any, request: Mapping[str, Any]) -> Any:
    """An answer without the likely tokens beyond those that were asked for, and one more: some name a token's own."""
    top = _top(request) + 1

    def cut(value: Any, alternatives: bool) -> Any:
        if isinstance(value, Mapping):
            rows = value.items() if not alternatives or len(value) <= top else list(value.items())[:top]
            return {name: cut(one, name in ("top_logprobs", PROMPT_LOGPROBS)) for name, one in rows}
        if isinstance(value, list):
            # a list of tokens, or of the tokens at each place
            tokens = alternatives and all(isinstance(dig(one, "token"), str) for one in value)
            return [cut(one, alternatives and not tokens) for one in (value[:top] if tokens else value)]
        return value

    try:
        return cut(answer, False)
    except RecursionError:  # nested too deep; said elsewhere
        return answer


def connect(endpoint: Endpoint, bounds: Bounds) -> OpenAI:
    """A client whose requests stay within bounds. Raises ApiError where the environment holds no key.

    A server on this machine needs none.
    """
    require("openai")
    import openai

    # a server on this machine wants no key, and the client insists on one
    local = urlsplit(endpoint.base_url).hostname in ("localhost", "127.0.0.1", "::1")
    key = "none" if local and not os.environ.get("OPENAI_API_KEY") else None
    try:
        return openai.OpenAI(
            base_url=endpoint.base_url,
            api_key=key,
            timeout=endpoint.timeout,
            max_retries=0,
            http_client=bounded_client(endpoint.base_url, bounds),
        )
    except openai.OpenAIError:
        raise ApiError(
            "no API key in the environment", "set OPENAI_API_KEY; a local server takes any value, such as 'none'"
        ) from None


def resolved(endpoint: Endpoint) -> Endpoint:
    """The endpoint under the name of the one model that it serves, if no name was given.

    Raises:
        ApiError: it cannot be asked, or serves no model or several.
    """
    if endpoint.model:
        return endpoint
    bounds = Bounds()
    client = connect(endpoint, bounds)
    import openai

    try:
        with bounds.within(endpoint.timeout, LIST_OF_MODELS):
            names = [str(one.id) for one in client.models.list().data]
    except (SendError, openai.OpenAIError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ApiError(
            f"the endpoint does not say which models it serves: {type(error).__name__}", "name the `model`"
        ) from None
    shown = ["".join(c for c in name if c.isprintable())[:100] for name in names]
    if len(names) != 1:
        listed = f": {', '.join(shown[:10])}" if names else ""
        raise ApiError(f"the endpoint serves {len(names)} models{listed}", "name the `model`")
    return replace(endpoint, model=names[0])


def _secrets(endpoint: Endpoint, key: str) -> list[str]:
    """What a server might repeat and a log must not hold. A key too short to be one is taken for a word."""
    parts = urlsplit(endpoint.base_url)
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    named = [key, parts.password or "", unquote(parts.password or ""), base64.b64encode(login.encode()).decode()]
    named += [value for _, value in parse_qsl(parts.query)]
    named += keys_in(endpoint.extra)
    return sorted({secret for secret in named if len(secret) >= MIN_SECRET_LENGTH}, key=len, reverse=True)
