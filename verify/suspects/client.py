"""Requests to an endpoint: secrets, refusals, pauses and retries.

Nothing that a server answers can make a test unsound: whatever it says is a choice of the suspect's, and the suspect
does not know the key. What cannot be understood is left out, logged, and counted.
"""

from __future__ import annotations

import base64
import email.utils
import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from verify.data.dialects import dig, error_in
from verify.suspects.endpoint import Endpoint
from verify.suspects.manner import LOGPROBS, TEXT, Manner, request_of
from watermark import ApiError
from watermark.extras import require
from watermark.io.prompts import Prompt

if TYPE_CHECKING:
    from openai import OpenAI


MAX_WAIT: Final = 300.0
"""Seconds that one request may spend in pauses before it is tried again."""

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
        self._openai = connect(endpoint)
        self._manner = Manner(top=endpoint.top_logprobs)
        self._secrets = _secrets(endpoint, self._openai.api_key)

    def ask(self, prompt: Prompt, wanted: str, number: int = 1) -> tuple[dict[str, Any], ApiError | None]:
        """One request: `request`, the `answer` as it came, and `error`; `changed` if it had to be asked otherwise.

        Also a refusal that another try would meet too, or None.
        """
        changed: list[str] = []
        refused = ""
        while True:
            manner = self._manner
            path, request = request_of(self.endpoint, manner, prompt, wanted, number)
            answer, failure = self._send(path, request)
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
        if refused and failure is None:
            changed.append(f"The server refused a request ({refused}), and was asked with no log probabilities.")
        error = None if failure is None else refused or str(failure)
        fields = {"request": request, "answer": answer, "error": error} | ({"changed": changed} if changed else {})
        hint = _REFUSALS.get(failure.status) if failure is not None and failure.status is not None else None
        return self._plain(fields), ApiError(f"the endpoint refuses: {error}", hint) if hint else None

    def _send(self, path: str, request: Mapping[str, Any]) -> tuple[Any, _Failure | None]:
        """The answer as it came, or why there is none, after as many tries as make sense."""
        import openai

        waited = 0.0
        for attempt in range(self.endpoint.retries + 1):
            answer, failure = None, None
            try:
                # as it comes, and not through the client's types: they would drop what they do not know
                answer = self._openai.post(path, body=request, cast_to=object)
                if (said := error_in(answer)) is not None:
                    words = f"the server answers with an error: {self._clean(said[0])}"
                    failure = _Failure(words if said[1] is None else f"{words} (code {said[1]})", said[1])
            except openai.APIStatusError as error:
                failure = self._refused(path, error)
            except (openai.OpenAIError, ValueError, RecursionError) as error:  # no JSON, or nested too deep
                failure = _Failure(type(error).__name__, again=isinstance(error, openai.APIConnectionError))
            if failure is None or not failure.may_pass or attempt == self.endpoint.retries:
                break
            pause = failure.pause
            if pause is None:
                pause = min(8.0, 0.5 * 2**attempt) * random.uniform(0.75, 1)
            waited += pause
            if waited > MAX_WAIT:
                asked = (
                    f"it asks for a pause of {pause:,.0f} seconds" if failure.pause else "it does so again and again"
                )
                failure = replace(failure, words=f"{failure.words} ({asked})")
                break
            time.sleep(pause)
        return answer, failure

    def _refused(self, path: str, error: Any) -> _Failure:
        said = error.body if isinstance(error.body, str) else dig(error.body, "message")
        words = said if isinstance(said, str) and said else error.message
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

    def __str__(self) -> str:
        return f"HTTP {self.status} from {self.path}: {self.words}" if self.path else self.words


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


def connect(endpoint: Endpoint) -> OpenAI:
    """A client. Raises ApiError where the environment holds no key and one is needed."""
    require("openai")
    import openai

    # a server on this machine wants no key, and the client insists on one
    local = urlsplit(endpoint.base_url).hostname in ("localhost", "127.0.0.1", "::1")
    key = "none" if local and not os.environ.get("OPENAI_API_KEY") else None
    try:
        return openai.OpenAI(base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout, max_retries=0)
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
    client = connect(endpoint)
    import openai

    try:
        names = [str(one.id) for one in client.models.list().data]
    except (openai.OpenAIError, ValueError, AttributeError, TypeError, RecursionError) as error:
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
    return [secret for secret in named if len(secret) >= MIN_SECRET_LENGTH]
