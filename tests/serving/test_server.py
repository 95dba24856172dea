"""Invalid HTTP, slow clients and disconnects: each gets a response or is disconnected; the server remains available."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import pytest

from tests.helpers.hostile_clients import (
    FORM,
    PHOTOGRAPH,
    Answer,
    Server,
    encoded,
    form,
    noise,
    read_answer,
    save_small_classifier,
    serving,
)
from tests.helpers.polling import TIMEOUT, wait_until

BYTES, QUEUE = 2_000_000, 4
SECONDS = 6  # upload limit of the slow tests
IDLE_SOCKETS = 6  # the listening socket, those of the event loop, and the one of the metrics request
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: " + FORM + b"\r\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("run"))


def serving_limited(run: Path, seconds: float) -> AbstractContextManager[Server]:
    limits = ("--max-bytes", str(BYTES), "--queue", str(QUEUE), "--upload-seconds", str(seconds))
    return serving(str(run), *limits)


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    with serving_limited(run, TIMEOUT) as server:
        yield server


@pytest.fixture(scope="module")
def strict_server(run: Path) -> Iterator[Server]:
    with serving_limited(run, SECONDS) as server:
        yield server


@pytest.fixture
def classify(server: Server) -> Iterator[Server]:
    """Server that is checked after each test."""
    yield server
    server.check_health()


@pytest.fixture
def strict(strict_server: Server) -> Iterator[Server]:
    """Server with a short upload limit that is checked after each test."""
    yield strict_server
    strict_server.check_health()


def chunked(size: int) -> bytes:
    chunk = bytes(100_000)
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for _ in range(size // len(chunk))) + b"0\r\n\r\n"


def test_rejects_too_large_bodies_with_and_without_content_length(classify: Server) -> None:
    size = BYTES + 500_000
    classify.ask("POST", "/v1/predict", form(bytes(size))).refusal("too_many_bytes")
    classify.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(size)).refusal("too_many_bytes")
    classify.raw(HEAD + b"Content-Length: 99999999999\r\n\r\n").refusal("too_many_bytes")
    classify.raw(HEAD + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n").refusal("too_many_bytes")
    body = form(PHOTOGRAPH)
    one_chunk = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert classify.raw(HEAD + one_chunk).status == 200


def send_endless_body(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (1_000_000, bytes(1_000_000))
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            connection.sendall(chunk * 200)


def test_endless_bodies_are_disconnected(classify: Server) -> None:
    send_endless_body(classify)


@pytest.mark.slow
def test_endless_bodies_do_not_fill_the_memory(classify: Server) -> None:
    before = classify.peak_memory()
    send_endless_body(classify)
    assert classify.peak_memory() - before < 60_000_000


BAD_HEADS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    b"GET / HTTP/1.1\r\nHost a\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    HEAD + b"Content-Length: -5\r\n\r\n",
    HEAD + b"Content-Length: five\r\n\r\n",
    HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
]


@pytest.mark.parametrize("head", BAD_HEADS, ids=range(len(BAD_HEADS)))
def test_rejects_invalid_http(classify: Server, head: bytes) -> None:
    answer = classify.raw(head)
    answer.refusal("bad_request")
    assert answer.headers["connection"] == "close"


def test_rejects_too_large_heads(classify: Server) -> None:
    """If data arrives after the server closed the connection, the client may get a reset instead of the response."""
    for beginning in (b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\nX: "):
        with suppress(ConnectionResetError):
            classify.raw(beginning + b"y" * 200_000 + b" HTTP/1.1\r\n\r\n").refusal("bad_request")


def test_rejects_invalid_chunks(classify: Server) -> None:
    for chunks in (b"zz\r\nabc\r\n0\r\n\r\n", b"-5\r\nabc\r\n"):
        classify.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).refusal("bad_request")


@pytest.mark.slow
def test_slow_and_silent_clients_are_disconnected(strict: Server) -> None:
    """Slow clients send a byte from time to time, in the head or in the body; silent ones send nothing."""
    endless = b"ffffffffffffffff\r\nabc"
    strict.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + endless).refusal("slow_upload")
    body = form(PHOTOGRAPH)
    beginnings = [b"POST /v1/predict HT", HEAD, HEAD + b"Content-Length: %d\r\n\r\n" % len(body)]
    beginnings += [HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"]
    with ExitStack() as stack:
        silent = [stack.enter_context(strict.connect()) for _ in range(100)]
        slow = [stack.enter_context(strict.connect()) for _ in beginnings]
        for connection, beginning in zip(slow, beginnings, strict=True):
            connection.sendall(beginning)
        start = time.monotonic()
        while time.monotonic() - start < SECONDS / 2:
            time.sleep(0.2)
            for connection in slow[:3]:
                connection.sendall(b"a")
            assert strict.send(PHOTOGRAPH).status == 200
        for connection in slow:
            read_answer(connection).refusal("slow_upload")
        for connection in silent:
            assert connection.recv(1) == b""


@pytest.mark.slow
def test_requests_that_never_end_are_disconnected_after_the_response(strict: Server) -> None:
    """A byte of an unread body cancels the keep-alive timer."""
    heads = [b"GET /health", b"POST /health", b"GET /v1/model", b"DELETE /v1/predict"]
    with ExitStack() as stack:
        connections = [stack.enter_context(strict.connect()) for _ in heads]
        for connection, head in zip(connections, heads, strict=True):
            connection.sendall(head + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
            assert connection.recv(12).startswith(b"HTTP/1.1 ")
            connection.sendall(b"a")
        for connection in connections:
            with suppress(ConnectionResetError):
                while connection.recv(100_000):
                    pass


def test_disconnects_release_requests_and_sockets(classify: Server) -> None:
    """Clients disconnect during their upload, or while a large photograph delays their response."""
    body, large = form(PHOTOGRAPH), encoded(noise(60, 60).resize((2_500, 2_000)), "JPEG")
    first = threading.Thread(target=lambda: classify.send(large))
    first.start()
    wait_until(lambda: classify.metric("sppnet_requests_taken") > 0 or not first.is_alive())
    for part in (0, 10, 1_000, len(body) - 1, len(body), len(body)):
        for reset in (True, False):
            with classify.connect() as connection:
                if reset:  # instead of an orderly shutdown
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:part])
                time.sleep(0.01)
    first.join()
    wait_until(lambda: classify.metric("sppnet_requests_taken") == 0 and classify.socket_count() <= IDLE_SOCKETS)


def test_rejects_requests_while_the_queue_is_full(classify: Server) -> None:
    body = form(PHOTOGRAPH)
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    with ExitStack() as stack:
        pending = [stack.enter_context(classify.connect()) for _ in range(QUEUE)]
        for connection in pending:
            connection.sendall(head + body[:100])
        wait_until(lambda: classify.metric("sppnet_requests_taken") == QUEUE)
        answer = classify.send(PHOTOGRAPH)
        answer.refusal("queue_full")
        assert answer.headers["retry-after"] == "1"
        assert classify.ask("GET", "/health").status == classify.ask("GET", "/v1/model").status == 200
        for connection in pending:
            connection.sendall(body[100:])
        assert [read_answer(connection).status for connection in pending] == [200] * QUEUE


def test_concurrent_clients_get_answers_or_queue_full(classify: Server) -> None:
    answers: list[Answer] = []
    clients = [threading.Thread(target=lambda: answers.append(classify.send(PHOTOGRAPH))) for _ in range(40)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(answers) == 40
    for answer in answers:
        if answer.status != 200:
            answer.refusal("queue_full")
    assert sum(answer.status == 200 for answer in answers) >= QUEUE


def test_pipelined_requests_are_answered_in_order(classify: Server) -> None:
    body = form(PHOTOGRAPH)
    good = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with classify.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(good + good + last)
        responses = file.read()
    parts = responses.split(b"HTTP/1.1 200 OK")
    assert [b'"size": [90, 120]' in part for part in parts] == [False, True, True, False]
    assert parts[3].endswith(b'{"status":"ok"}')


@pytest.mark.slow
def test_clients_that_read_nothing_are_disconnected() -> None:
    """Otherwise their responses of tens of megabytes would stay in memory. Slow readers get complete responses."""
    boxes = json.dumps([[0, 0, 50, 50]] * 150)
    with serving("zf5", "--regions", "--scales", "120", "--upload-seconds", str(SECONDS)) as regions:
        body = form(PHOTOGRAPH, boxes=boxes)
        request = HEAD.replace(b"predict", b"features") + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with ExitStack() as stack:
            connections = []
            for _ in range(2):
                connections.append(stack.enter_context(regions.connect()))
                # Otherwise the kernel would buffer the response.
                connections[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
                connections[-1].sendall(request)
                assert connections[-1].recv(12) == b"HTTP/1.1 200"
            idle, slow = connections
            assert regions.metric("sppnet_requests_taken") == 2  # unread responses count
            start, received = time.monotonic(), b""
            while time.monotonic() - start < 3 * SECONDS:
                received += slow.recv(100_000)
                time.sleep(0.1)
            head, _, first = received.partition(b"\r\n\r\n")
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            with slow.makefile("rb") as file:
                assert len(json.loads(first + file.read(length - len(first)))["vectors"]) == 150
            with idle.makefile("rb") as file:
                assert len(file.read()) < length / 10
