"""Server process: listening socket, signals, logging and connection timeouts."""

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
    """Serve until SIGINT or SIGTERM, then finish the accepted requests; a second SIGINT stops immediately.

    If stopped while the task is still being created, the process exits with status 0.

    Args:
        app: application from :func:`sppnet.serving.app.create_app`.
        service: service of the application.
        host: address to listen on.
        port: port to listen on; 0: any free port.
        started: function that is called with the server's URL.

    Raises:
        OSError: the address is in use or does not belong to this machine.
        Exception: the service failed to create its task.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The default buffer grows to megabytes, which would hide for minutes whether a slow client reads anything.
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
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # no warnings about clients' errors
        # uvicorn raises the signal again after its shutdown; it must not terminate the process then.
        handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            url = f"http://{name}:{listening.getsockname()[1]}"
            asyncio.run(_serve(uvicorn.Server(config), service, listening, lambda: started(url)))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    if service.error is not None:
        raise service.error
    if not service.made.is_set():
        # The thread may be compiling; a normal exit would wait for it or crash.
        sys.stdout.flush()
        os._exit(0)


def _raw_response(refusal: Refusal) -> bytes:
    body = json.dumps(refusal.content).encode()
    head = f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


_NOT_HTTP = _raw_response(Refusal("bad_request", "request: expected HTTP/1.1"))
_TOO_SLOW = _raw_response(Refusal("slow_upload", "request: expected complete headers in time"))


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


def _protocol(timeout: float) -> type[H11Protocol]:
    class Protocol(H11Protocol):
        """HTTP protocol that closes connections that send invalid HTTP or no complete request in time.

        It also closes connections whose client reads none of a response for that time: unread responses would stay in
        memory and block the shutdown.
        """

        _receive_timer: asyncio.TimerHandle | None = None
        _send_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # pause writing while any data is unsent
            self._update_receive_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._update_receive_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._cancel_receive_timer()
            self._cancel_send_timer()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._update_receive_timer()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._check_progress()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._cancel_send_timer()

        def _check_progress(self, previous: float = math.inf) -> None:
            unsent = self.transport.get_write_buffer_size()
            if unsent < previous:
                self._send_timer = self.loop.call_later(timeout, self._check_progress, unsent)
            else:
                self.transport.abort()

        def _cancel_send_timer(self) -> None:
            if self._send_timer is not None:
                self._send_timer.cancel()
                self._send_timer = None

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no response was started
                self.transport.write(_NOT_HTTP)
            self.transport.close()

        def _update_receive_timer(self) -> None:
            answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE) and self.conn.their_state is h11.SEND_BODY
            if not (self.conn.their_state is h11.IDLE or answered) or self.transport.is_closing():
                self._cancel_receive_timer()
            elif self._receive_timer is None:
                self._receive_timer = self.loop.call_later(timeout, self._close_slow)

        def _close_slow(self) -> None:
            # Respond only if part of a head has arrived: browsers also open connections that they never use.
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                self.transport.write(_TOO_SLOW)
            self.transport.close()

        def _cancel_receive_timer(self) -> None:
            if self._receive_timer is not None:
                self._receive_timer.cancel()
                self._receive_timer = None

    return Protocol
