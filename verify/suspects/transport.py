"""Requests within bounds: a deadline for the whole answer, a cap on its size, no redirects, nothing to decompress.

The client's own time limits are for single reads, which a server can stretch for ever by a byte a second.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

TIMEOUT: Final = "APITimeoutError"
NO_CONNECTION: Final = "APIConnectionError"
"""What failures are called, as the client calls them."""


class SendError(Exception):
    """No answer, or one outside its bounds; the message says which. again: another try makes sense."""

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


@cache
def _libraries() -> tuple[Any, Any]:
    """The HTTP client that openai uses, and the library below it; their names differ between its versions."""
    import openai

    name = next(one.__module__ for one in openai.DefaultHttpxClient.__mro__[1:]).partition(".")[0]
    return importlib.import_module(name), importlib.import_module(name.replace("httpx", "httpcore"))


class Bounds(threading.local):
    """Of the request that this thread makes.

    Attributes:
        ends: when it must be over, by the monotonic clock.
        most: bytes of the answer.
    """

    ends = float("inf")
    most = 1 << 20

    @contextmanager
    def within(self, seconds: float, most: int) -> Iterator[None]:
        """Bounds for the requests that this thread makes in the block."""
        self.ends, self.most = time.monotonic() + seconds, most
        try:
            yield
        finally:
            self.ends = float("inf")

    def left(self, timeout: float | None) -> float:
        """Seconds that the next step may take. Raises SendError if there are none."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise SendError(TIMEOUT, again=True)
        return left if timeout is None else min(left, timeout)


class _Stream:
    """A connection that knows when the request must be over."""

    def __init__(self, stream: Any, bounds: Bounds) -> None:
        self._stream, self._bounds = stream, bounds

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = self._stream.read(max_bytes, self._bounds.left(timeout))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._bounds.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        tls = self._stream.start_tls(ssl_context, server_hostname, self._bounds.left(timeout))
        return _Stream(tls, self._bounds)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Network:
    """Connections of this kind."""

    def __init__(self, network: Any, bounds: Bounds) -> None:
        self._network, self._bounds = network, bounds

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: Any = None, socket_options: Any = None
    ) -> _Stream:
        seconds = self._bounds.left(timeout)
        stream = self._network.connect_tcp(host, port, seconds, local_address, socket_options)
        return _Stream(stream, self._bounds)


def bounded_client(address: str, bounds: Bounds) -> Any:
    """An HTTP client for one address, as openai takes it, whose requests stay within bounds.

    The proxy that the environment names is used.
    """
    httpx, httpcore = _libraries()
    parts = urlsplit(address)
    proxies = getproxies()
    proxy = None if proxy_bypass(parts.netloc) else proxies.get(parts.scheme, proxies.get("all"))
    how = {
        "ssl_context": httpx.create_ssl_context(),
        "network_backend": _Network(httpcore.SyncBackend(), bounds),
        "max_connections": 100,
        "keepalive_expiry": 5.0,
    }
    if proxy is None:
        pool = httpcore.ConnectionPool(**how)
    elif proxy.startswith("socks"):
        pool = httpcore.SOCKSProxy(proxy_url=proxy, **how)
    else:
        login = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        auth = {"proxy_auth": (login.username or "", login.password or "")} if login.username else {}
        bare = login._replace(netloc=login.netloc.rpartition("@")[2]).geturl()
        pool = httpcore.HTTPProxy(proxy_url=bare, **auth, **how)

    class Transport(httpx.BaseTransport):  # type: ignore[name-defined, misc]
        def handle_request(self, request: Any) -> Any:
            sent = httpcore.Request(
                request.method,
                httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
            try:
                answer = pool.handle_request(sent)
                try:
                    body = _read(answer, bounds)
                finally:
                    answer.close()
            except httpcore.TimeoutException as error:
                raise SendError(TIMEOUT, again=True) from error
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
                raise SendError(NO_CONNECTION, again=True) from error
            return httpx.Response(answer.status, headers=answer.headers, content=body, request=request)

        def close(self) -> None:
            pool.close()

    return httpx.Client(transport=Transport(), follow_redirects=False, headers={"Accept-Encoding": "identity"})


def _read(answer: Any, bounds: Bounds) -> bytes:
    """The body of an answer. Raises SendError where it is too long or compressed."""
    encoding = next((value for name, value in answer.headers if name.lower() == b"content-encoding"), b"identity")
    if encoding.strip().lower() not in (b"", b"identity"):
        raise SendError("the answer is compressed, which was not asked for")
    body = bytearray()
    for chunk in answer.iter_stream():
        body += chunk
        if len(body) > bounds.most:
            raise SendError(f"the answer is longer than what was asked for takes: more than {bounds.most:,} bytes")
        bounds.left(None)
    return bytes(body)
