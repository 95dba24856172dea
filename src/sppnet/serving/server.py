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
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sppnet.serving.app import Service
from sppnet.serving.limits import Refusal

_SEND_BUFFER = 262_144
_log = logging.getLogger(__name__)


def run_server(app: FastAPI, service: Service, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, then finish the accepted requests; a second Ctrl-C exits with status 130.

    If stopped while the task is still being created, the process exits with status 0.

    Args:
        app: application from :func:`sppnet.serving.app.create_app`.
        service: service of the application.
        host: address to listen on.
        port: port to listen on; 0: any free port.
        started: function that is called with the server's URL.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM before the server has started.
        OSError: the address is in use or does not belong to this machine.
        Exception: the service failed to create its task.
    """
    logger = logging.getLogger("uvicorn")
    logger.parent = logging.getLogger("sppnet")  # has the handlers of the command line
    logger.setLevel(logging.ERROR)  # no warnings about clients' errors
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sigterm = signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # The default buffer grows to megabytes, which would hide for minutes whether a slow client reads anything.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            listening.bind((host, port))
            listening.listen()
            protocol = _protocol(service.limits.upload_seconds)
            server = _Server(
                uvicorn.Config(app, http=protocol, ws="none", log_config=None, access_log=False, timeout_keep_alive=20)
            )
            service.on_error = lambda: setattr(server, "should_exit", True)
            name = f"[{host}]" if ":" in host else host
            started(f"http://{name}:{listening.getsockname()[1]}")
            try:
                asyncio.run(server.serve([listening]))
            except KeyboardInterrupt:  # uvicorn raises the signal again after its shutdown
                if not server.started:
                    raise
    finally:
        signal.signal(signal.SIGTERM, sigterm)
    if service.error is not None:
        raise service.error
    if not service.made.is_set():
        _end_process(0)


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            _log.warning("stopped before all accepted requests were answered")
            _end_process(130)
        super().handle_exit(sig, frame)


def _end_process(status: int) -> None:
    """Exit without waiting for threads that compile or predict; the interpreter's own exit could crash."""
    sys.stdout.flush()
    os._exit(status)


def _raw_response(refusal: Refusal) -> bytes:
    body = json.dumps(refusal.content).encode()
    head = f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


_NOT_HTTP = _raw_response(Refusal("bad_request", "request: expected HTTP/1.1"))
_TOO_SLOW = _raw_response(Refusal("slow_upload", "request: expected complete headers in time"))


def _protocol(timeout: float) -> type[H11Protocol]:
    # No setting of uvicorn does this: `timeout_keep_alive` starts after a response and ends with the next byte, so it
    # does not apply to slow or missing heads; `limit_concurrency` counts such connections but keeps them, so a few
    # hundred would lock out everybody else; nothing limits the time of writing. Invalid HTTP gets a text response.
    class Protocol(H11Protocol):
        """HTTP protocol that closes connections that send invalid HTTP or no complete head in time.

        It also closes connections whose client reads none of a response for that time: unread responses would stay in
        memory and block the shutdown.
        """

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._timers: dict[str, asyncio.TimerHandle] = {}

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # pause writing while any data is unsent
            self._update_receive_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._update_receive_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._cancel("receive", "send")

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._update_receive_timer()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._check_progress()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._cancel("send")

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no response was started
                self.transport.write(_NOT_HTTP)
            self.transport.close()

        def _check_progress(self, previous: float = math.inf) -> None:
            unsent = self.transport.get_write_buffer_size()
            if unsent < previous:
                self._timers["send"] = self.loop.call_later(timeout, self._check_progress, unsent)
            else:
                self.transport.abort()

        def _update_receive_timer(self) -> None:
            answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE) and self.conn.their_state is h11.SEND_BODY
            if not (self.conn.their_state is h11.IDLE or answered) or self.transport.is_closing():
                self._cancel("receive")
            elif "receive" not in self._timers:
                self._timers["receive"] = self.loop.call_later(timeout, self._close_slow)

        def _close_slow(self) -> None:
            # Respond only if part of a head has arrived: browsers also open connections that they never use.
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                self.transport.write(_TOO_SLOW)
            self.transport.close()

        def _cancel(self, *names: str) -> None:
            for name in names:
                if timer := self._timers.pop(name, None):
                    timer.cancel()

    return Protocol
