"""Request metrics, and checks of token, queue, upload size and time before a request reaches the application."""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from python_multipart.multipart import parse_options_header

from sppnet.serving.limits import Limits, Refusal
from sppnet.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_API = "/v1/"
_CHUNK_BYTES = 262_144
_CONTENT_TYPE_BYTES = 512
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_log = logging.getLogger(__name__)


class RequestMiddleware:
    """ASGI middleware that passes on complete, authorized requests and refuses all others.

    A body is received completely before the application is called, so no parser processes a partial body. At most
    `limits.queue` bodies of at most `limits.max_bytes` bytes are held in memory.

    Args:
        app: wrapped ASGI application.
        limits: request limits.
        metrics: metrics to update.
        token: bearer token required by the routes under /v1; None: no token.
        paths: paths with their own metric labels; all others are labeled `other`.
    """

    def __init__(self, app: App, limits: Limits, metrics: Metrics, token: str | None, paths: frozenset[str]) -> None:
        self._app, self._limits, self._metrics, self._token, self._paths = app, limits, metrics, token, paths
        self._taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 499  # the status that proxies log for clients that disconnect

        async def send_chunks(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            # Each chunk is awaited, so a request stays in progress until the client has read its response.
            body = message.get("body", b"")
            for offset in range(0, len(body) - _CHUNK_BYTES, _CHUNK_BYTES):
                await send({"type": message["type"], "body": body[offset : offset + _CHUNK_BYTES], "more_body": True})
            await send({**message, "body": body[(len(body) - 1) // _CHUNK_BYTES * _CHUNK_BYTES :]} if body else message)

        try:
            await self._handle(scope, receive, send_chunks)
        except Exception as error:
            _log.error("request failed", exc_info=error)
            if status == 499:  # no response was started
                await _refuse(Refusal("internal", "the server failed; see its log"), send_chunks)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - start)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(_API):
            await self._app(scope, receive, send)
            return
        try:
            self._check_token(scope)
            scope = _with_checked_content_type(scope)
            if scope["method"] not in ("POST", "PUT", "PATCH"):
                await self._app(scope, receive, send)
                return
            if self._taken >= self._limits.queue:
                raise Refusal(
                    "queue_full", f"{self._limits.queue} requests are already in progress; try again in a second"
                )
        except Refusal as refusal:
            await _drain(receive, self._limits)
            await _refuse(refusal, send)
            return
        self._taken += 1
        self._metrics.taken.set(self._taken)
        try:
            replay = await self._receive_all(scope, receive)
            if replay is not None:
                await self._app(scope, replay, send)
        except Refusal as refusal:
            await _refuse(refusal, send)
        finally:
            self._taken -= 1
            self._metrics.taken.set(self._taken)

    def _check_token(self, scope: Scope) -> None:
        if self._token is None:
            return
        kind, _, token = _header(scope, b"authorization").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token.encode()):
            raise Refusal("unauthorized", "expected the header Authorization: Bearer TOKEN with the server's token")

    async def _receive_all(self, scope: Scope, receive: Receive) -> Receive | None:
        """Return a receive function that delivers the whole body; None if the client has disconnected."""
        limits = self._limits
        expected = f"request: expected at most {limits.max_bytes} bytes"
        declared = int(_header(scope, b"content-length") or 0)
        if declared > limits.max_bytes:
            await _drain(receive, limits)
            raise Refusal("too_many_bytes", f"{expected}, got {declared}")
        parts, size = [], 0
        try:
            async with asyncio.timeout(limits.upload_seconds):
                while (message := await receive())["type"] == "http.request":
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limits.max_bytes:
                        raise Refusal("too_many_bytes", f"{expected}, got more")
                    if not message.get("more_body", False):
                        return _replay(b"".join(parts), receive)
        except TimeoutError:
            raise Refusal(
                "slow_upload", f"request: expected all bytes within {limits.upload_seconds:g} seconds, got {size} bytes"
            ) from None
        return None


def _with_checked_content_type(scope: Scope) -> Scope:
    """Return the request with a content type header that is rebuilt from checked parameters.

    The form parser decodes field names and values with the charset of this header, and some of Python's decoders take
    minutes. It parses the header with the same function, so it gets no parameters that were not checked here.
    """
    values = [value for name, value in scope["headers"] if name == b"content-type"]
    if not values:
        return scope
    if len(values) > 1 or len(values[0]) > _CONTENT_TYPE_BYTES:
        raise Refusal("bad_request", f"content-type: expected one header of at most {_CONTENT_TYPE_BYTES} bytes")
    kind, options = parse_options_header(values[0])
    charset = options.get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8"):
        raise Refusal("bad_request", f"content-type: expected the charset utf-8, got {charset[:40]!r}")
    if kind.startswith(b"multipart/"):
        boundary = options.get(b"boundary", b"")
        if not _BOUNDARY.fullmatch(boundary):
            raise Refusal("bad_request", "content-type: expected a boundary of 1 to 70 characters as in RFC 2046")
        kind += b'; boundary="' + boundary + b'"'
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", kind)]}


def _header(scope: Scope, name: bytes) -> bytes:
    value: bytes = next((value for key, value in scope["headers"] if key == name), b"")
    return value


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that delivers the body once, without keeping it, and then the client's messages."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


async def _drain(receive: Receive, limits: Limits) -> None:
    """Discard the body of a refused request, within limits: many clients read responses only after sending it."""
    size = 0
    try:
        async with asyncio.timeout(min(limits.upload_seconds, 2.0)):
            while size <= limits.max_bytes:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _refuse(refusal: Refusal, send: Send) -> None:
    body = json.dumps(refusal.content).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers | refusal.headers).items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
