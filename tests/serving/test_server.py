"""The server against clients that keep no manners on the wire: each is answered or cut off, and the next one served."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.helpers.hostile_clients import (
    FORM,
    PHOTOGRAPH,
    Answer,
    Server,
    encoded,
    form,
    noise,
    read,
    save_small_classifier,
    serving,
)

BYTES, QUEUE, SECONDS = 2_000_000, 4, 2
IDLE_SOCKETS = 6  # the one that listens, those of the event loop, and that of the question itself
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: " + FORM + b"\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    run = save_small_classifier(tmp_path_factory.mktemp("run"))
    limits = ("--max-bytes", str(BYTES), "--queue", str(QUEUE), "--upload-seconds", str(SECONDS))
    with serving(str(run), *limits) as one:
        yield one


@pytest.fixture
def classify(server: Server) -> Iterator[Server]:
    """A server that must answer a good photograph after each test, and hold no request back."""
    yield server
    server.is_unharmed()


def chunked(size: int) -> bytes:
    chunk = bytes(100_000)
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for _ in range(size // len(chunk))) + b"0\r\n\r\n"


def test_too_many_bytes_are_refused_with_and_without_their_number(classify: Server) -> None:
    more = BYTES + 500_000
    classify.ask("POST", "/v1/predict", form(bytes(more))).refused("too_many_bytes")
    classify.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(more)).refused("too_many_bytes")
    classify.raw(HEAD + b"Content-Length: 99999999999\r\n\r\n").refused("too_many_bytes")
    classify.raw(HEAD + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n").refused("too_many_bytes")
    fits = form(PHOTOGRAPH)
    assert (
        classify.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(fits), fits)).status
        == 200
    )


def test_endless_bodies_are_cut_off(classify: Server) -> None:
    """A client that goes on sending cannot fill the memory, nor keep its connection."""
    before = classify.peak()
    with classify.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (1_000_000, bytes(1_000_000))
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            connection.sendall(chunk * 200)
    assert classify.peak() - before < 60_000_000


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
def test_what_is_no_http_is_a_bad_request(classify: Server, head: bytes) -> None:
    answer = classify.raw(head)
    answer.refused("bad_request")
    assert answer.headers["connection"] == "close"


def test_heads_that_are_too_large_are_cut_off(classify: Server) -> None:
    """What still is on its way when a connection is closed may overtake the answer."""
    for begin in (b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\nX: "):
        with suppress(ConnectionResetError):
            classify.raw(begin + b"y" * 200_000 + b" HTTP/1.1\r\n\r\n").refused("bad_request")


def test_broken_chunks_end_the_connection(classify: Server) -> None:
    for chunks in (b"zz\r\nabc\r\n0\r\n\r\n", b"-5\r\nabc\r\n"):
        classify.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).refused("bad_request")
    endless = b"ffffffffffffffff\r\nabc"
    classify.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + endless).refused("slow_upload")


def test_slow_clients_are_told_so_and_let_go(classify: Server) -> None:
    """A byte now and then, in the head and in the body; and connections that say nothing."""
    body = form(PHOTOGRAPH)
    beginnings = [b"POST /v1/predict HT", HEAD, HEAD + b"Content-Length: %d\r\n\r\n" % len(body)]
    beginnings += [HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"]
    with ExitStack() as stack:
        silent = [stack.enter_context(classify.connect()) for _ in range(100)]
        slow = [stack.enter_context(classify.connect()) for _ in beginnings]
        for connection, beginning in zip(slow, beginnings, strict=True):
            connection.sendall(beginning)
        begin = time.monotonic()
        while time.monotonic() - begin < SECONDS - 0.5:
            time.sleep(0.2)
            for connection in slow[:3]:
                connection.sendall(b"a")
            assert classify.send(PHOTOGRAPH).status == 200
        for connection in slow:
            read(connection).refused("slow_upload")
        assert time.monotonic() - begin < 3 * SECONDS + 2
        for connection in silent:
            assert connection.recv(1) == b""


def test_answered_requests_that_never_end_are_let_go(classify: Server) -> None:
    """A byte of a body that nobody waits for stops the clock of idle connections."""
    heads = [b"GET /health", b"POST /health", b"GET /v1/model", b"DELETE /v1/predict"]
    with ExitStack() as stack:
        opened = [stack.enter_context(classify.connect()) for _ in heads]
        for connection, head in zip(opened, heads, strict=True):
            connection.sendall(head + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
            assert connection.recv(12).startswith(b"HTTP/1.1 ")
            connection.sendall(b"a")
        for connection in opened:
            connection.settimeout(3 * SECONDS + 2)
            with suppress(ConnectionResetError):
                while connection.recv(100_000):
                    pass


def test_clients_that_go_away_leave_nothing_behind(classify: Server) -> None:
    """Some in the upload and some while they wait, behind a photograph that takes a while."""
    body, large = form(PHOTOGRAPH), encoded(noise(60, 60).resize((2_500, 2_000)), "JPEG")
    first = threading.Thread(target=lambda: classify.send(large))
    first.start()
    while classify.metric("sppnet_requests_taken") < 1:
        time.sleep(0.01)
    for part in (0, 10, 1_000, len(body) - 1, len(body), len(body)):
        for reset in (True, False):
            with classify.connect() as connection:
                if reset:  # in place of an orderly end
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:part])
                time.sleep(0.01)
    first.join()
    end = time.monotonic() + 10
    while classify.metric("sppnet_requests_taken") > 0 or classify.sockets() > IDLE_SOCKETS:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_more_requests_than_the_queue_takes_are_refused(classify: Server) -> None:
    body = form(PHOTOGRAPH)
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    with ExitStack() as stack:
        held = [stack.enter_context(classify.connect()) for _ in range(QUEUE)]
        for connection in held:
            connection.sendall(head + body[:100])
        while classify.metric("sppnet_requests_taken") < QUEUE:
            time.sleep(0.01)
        answer = classify.send(PHOTOGRAPH)
        answer.refused("queue_full")
        assert answer.headers["retry-after"] == "1"
        assert classify.ask("GET", "/health").status == classify.ask("GET", "/v1/model").status == 200
        for connection in held:
            connection.sendall(body[100:])
        assert [read(connection).status for connection in held] == [200] * QUEUE


def test_a_crowd_gets_answers_or_refusals(classify: Server) -> None:
    answers: list[Answer] = []
    clients = [threading.Thread(target=lambda: answers.append(classify.send(PHOTOGRAPH))) for _ in range(40)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(answers) == 40
    for answer in answers:
        if answer.status != 200:
            answer.refused("queue_full")
    assert sum(answer.status == 200 for answer in answers) >= QUEUE


def test_requests_in_one_breath_are_answered_in_order(classify: Server) -> None:
    body = form(PHOTOGRAPH)
    good = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with classify.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(good + good + last)
        found = file.read()
    parts = found.split(b"HTTP/1.1 200 OK")
    assert [b'"size": [90, 120]' in part for part in parts] == [False, True, True, False]
    assert parts[3].endswith(b'{"status":"ok"}')


def test_answers_that_nobody_takes_are_let_go() -> None:
    """Tens of megabytes each: they would be held for ever. Who takes them slowly gets them whole."""
    boxes = json.dumps([[0, 0, 50, 50]] * 150)
    with serving("zf5", "--regions", "--scale", "120", "--upload-seconds", str(SECONDS)) as regions:
        body = form(PHOTOGRAPH, boxes=boxes)
        request = HEAD.replace(b"predict", b"features") + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with ExitStack() as stack:
            connections = []
            for _ in range(2):
                connections.append(stack.enter_context(regions.connect()))
                connections[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)  # else the system takes all
                connections[-1].sendall(request)
                assert connections[-1].recv(12) == b"HTTP/1.1 200"
            idle, slow = connections
            assert regions.metric("sppnet_requests_taken") == 2  # the queue counts what is not taken yet
            begin, taken = time.monotonic(), b""
            while time.monotonic() - begin < 3 * SECONDS:
                taken += slow.recv(100_000)
                time.sleep(0.1)
            head, _, first = taken.partition(b"\r\n\r\n")
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            with slow.makefile("rb") as file:
                assert len(json.loads(first + file.read(length - len(first)))["vectors"]) == 150
            with idle.makefile("rb") as file:
                assert len(file.read()) < length / 10
