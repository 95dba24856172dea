"""The process around the application: its socket, its signals and its log."""

import asyncio
import json
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sppnet.serving.app import Service
from sppnet.serving.limits import Refusal

_SEND_BUFFER = 262_144


def run_server(app: FastAPI, service: Service, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then answer what was taken and return; a second SIGINT ends it at once.

    Told to stop while the service is still being made ready, it ends the process, with 0.

    Args:
        app: of :func:`sppnet.serving.app.create_app`.
        service: that the application was made for.
        host: address to listen on.
        port: 0 for any that is free.
        started: is told the server's URL.

    Raises:
        OSError: the address is taken or not this machine's.
        Exception: what kept the service from getting ready.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The system's own would grow to megabytes, and hide for minutes whether a slow client takes anything.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listening.bind((host, port))
        name = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(
            app,
            http=_protocol(service.limits.upload_seconds),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=20,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not for what clients do
        # uvicorn raises the signal again when all is done; then it is no reason to die of it.
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            url = f"http://{name}:{listening.getsockname()[1]}"
            asyncio.run(_serve(uvicorn.Server(config), service, listening, lambda: started(url)))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if service.error is not None:
        raise service.error
    if not service.made.is_set():
        # A compiler may be at work in that thread, and Python would wait for it or fall over it at its end.
        sys.stdout.flush()
        os._exit(0)


def _raw_answer(refusal: Refusal) -> bytes:
    body = json.dumps(refusal.content).encode()
    head = f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


_NO_HTTP = _raw_answer(Refusal("bad_request", "expected HTTP/1.1"))
_TOO_SLOW = _raw_answer(Refusal("slow_upload", "the request's head did not arrive in time"))


async def _serve(
    server: uvicorn.Server, service: Service, listening: socket.socket, started: Callable[[], None]
) -> None:
    service.on_error = lambda: setattr(server, "should_exit", True)
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        started()
    await serving


def _protocol(patience: float) -> type[H11Protocol]:
    class Protocol(H11Protocol):
        """Closes connections that open and say nothing, never come to the end of a request, or speak no HTTP.

        And those that take nothing of an answer for as long: it would be held for them for ever, and keep the server
        from stopping.
        """

        _patience: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # writing is paused while anything is unsent
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_watching()
            self._stop_waiting()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait_for_reader()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_waiting()

        def _wait_for_reader(self, before: float = math.inf) -> None:
            left = self.transport.get_write_buffer_size()
            if left < before:
                self._unread = self.loop.call_later(patience, self._wait_for_reader, left)
            else:
                self.transport.abort()

        def _stop_waiting(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is on its way
                self.transport.write(_NO_HTTP)
            self.transport.close()

        def _watch(self) -> None:
            answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE) and self.conn.their_state is h11.SEND_BODY
            if not (self.conn.their_state is h11.IDLE or answered) or self.transport.is_closing():
                self._stop_watching()
            elif self._patience is None:
                self._patience = self.loop.call_later(patience, self._give_up)

        def _give_up(self) -> None:
            # A head has begun; browsers also open connections that they never use.
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                self.transport.write(_TOO_SLOW)
            self.transport.close()

        def _stop_watching(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

    return Protocol
