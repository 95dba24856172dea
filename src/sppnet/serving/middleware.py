"""What stands before the application: token, queue, size and time of uploads; and what it counts."""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sppnet.serving.limits import Limits, Refusal
from sppnet.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_API = "/v1/"
_PIECE = 262_144  # bytes of an answer
_log = logging.getLogger("sppnet.serving")


class Gate:
    """ASGI middleware: a request of the API comes through whole, in time and by leave, or it is answered here.

    The body is received before the application sees the request, so that no parser meets a half one. Beside what is
    refused, at most `limits.queue` bodies are held, each of at most `limits.bytes`.

    Args:
        app: the application behind it.
        limits: what is taken.
        metrics: where requests are counted.
        token: which requests of the API must bear; None for none.
        paths: that are counted by their own names; all others are one.
    """

    def __init__(self, app: App, limits: Limits, metrics: Metrics, token: str | None, paths: frozenset[str]) -> None:
        self._app, self._limits, self._metrics, self._token, self._paths = app, limits, metrics, token, paths
        self._taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499  # what proxies log for a client that went away

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            # The server waits before it sends, until what was sent is gone: a whole answer would be gone at once.
            body = message.get("body", b"")
            for start in range(0, len(body) - _PIECE, _PIECE):
                await send({"type": message["type"], "body": body[start : start + _PIECE], "more_body": True})
            await send({**message, "body": body[(len(body) - 1) // _PIECE * _PIECE :]} if body else message)

        try:
            await self._serve(scope, receive, watched)
        except Exception as error:
            _log.error("a request failed", exc_info=error)
            if status == 499:  # nothing of an answer is out
                await _refuse(Refusal("internal", "the server failed; its log says how"), watched)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - begun)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(_API):
            await self._app(scope, receive, send)
            return
        try:
            self._check_token(scope)
            _check_charset(scope)
            if scope["method"] not in ("POST", "PUT", "PATCH"):
                await self._app(scope, receive, send)
                return
            if self._taken >= self._limits.queue:
                raise Refusal(
                    "queue_full", f"{self._limits.queue} requests are being answered or wait; try again in a second"
                )
        except Refusal as refusal:
            await _drain(receive, self._limits)
            await _refuse(refusal, send)
            return
        self._taken += 1
        self._metrics.taken.set(self._taken)
        try:
            received = await self._receive_all(scope, receive)
            if received is not None:
                await self._app(scope, received, send)
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
        """What gives the whole body as one message; None where the client has gone."""
        limits = self._limits
        too_many = f"expected at most {limits.bytes} bytes in a request"
        declared = int(_header(scope, b"content-length") or 0)
        if declared > limits.bytes:
            await _drain(receive, limits)
            raise Refusal("too_many_bytes", f"{too_many}; got {declared}")
        parts, size = [], 0
        try:
            async with asyncio.timeout(limits.upload_seconds):
                while (message := await receive())["type"] == "http.request":
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limits.bytes:
                        raise Refusal("too_many_bytes", f"{too_many}; got more")
                    if not message.get("more_body", False):
                        return _replay(b"".join(parts), receive)
        except TimeoutError:
            raise Refusal(
                "slow_upload", f"the request did not arrive within {limits.upload_seconds:g} seconds; got {size} bytes"
            ) from None
        return None


def _check_charset(scope: Scope) -> None:
    """Names of fields are decoded as the request says, and Python has decoders that take minutes."""
    found = re.search(rb"charset\s*\*?=\s*[\"']?([^\s;\"']*)", _header(scope, b"content-type"), re.IGNORECASE)
    if found and found[1].lower() not in (b"utf-8", b"utf8"):
        raise Refusal("bad_request", f"content-type: expected the charset utf-8; got {found[1][:40]!r}")


def _header(scope: Scope, name: bytes) -> bytes:
    found: bytes = next((value for given, value in scope["headers"] if given == name), b"")
    return found


def _replay(body: bytes, receive: Receive) -> Receive:
    """What gives the body as one message, keeps it no longer, and then gives what the client does."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _drain(receive: Receive, limits: Limits) -> None:
    """Take what a refused client still sends, within bounds: many read no answer before they have sent all."""
    size = 0
    try:
        async with asyncio.timeout(min(limits.upload_seconds, 2.0)):
            while size <= limits.bytes:
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
