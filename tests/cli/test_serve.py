"""`sppnet serve` as a process: options, timeouts and shutdown."""

import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.backbones.backbone import create_backbone
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.cli.main import run
from sppnet.training.run import save
from tests.helpers.hostile_clients import save_small_classifier

PYTHON = [sys.executable, "-c", "from sppnet.cli.main import main; main()"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("run"))


def start(*options: str) -> tuple["subprocess.Popen[str]", int]:
    """Start a server and return its process and port; it may not be ready yet."""
    process = subprocess.Popen([*PYTHON, "serve", *options, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line, line
    return process, int(line.rsplit(":", 1)[1])


def request(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content) if content[:1] in (b"{", b"[") else content


def send_photograph(port: int, side: int) -> tuple[int, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = head + file.getvalue() + b"\r\n--b--\r\n"
    return request(port, "POST", "/v1/predict", body, **{"Content-Type": "multipart/form-data; boundary=b"})


def read_all(port: int, beginning: bytes) -> bytes:
    """Send the beginning of a request and read until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, connection.makefile("rb") as file:
        connection.sendall(beginning)
        return file.read()


def wait_ready(port: int) -> None:
    deadline = time.monotonic() + 60
    while request(port, "GET", "/ready")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def server(model: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    process, port = start(str(model), "--workers", "1")
    wait_ready(port)
    yield process, port
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_server_answers_on_the_loopback_interface_only(server: tuple["subprocess.Popen[str]", int]) -> None:
    _, port = server
    status, prediction = send_photograph(port, 100)
    assert (status, prediction["size"]) == (200, [100, 100])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, type=socket.SOCK_STREAM)}
    for address in others - {"127.0.0.1", "::1", "127.0.1.1"}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((str(address), port), timeout=2)


def test_accepted_requests_finish_after_sigterm(server: tuple["subprocess.Popen[str]", int]) -> None:
    process, port = server
    responses: list[tuple[int, Any]] = []
    clients = [threading.Thread(target=lambda: responses.append(send_photograph(port, 900))) for _ in range(5)]
    for client in clients:
        client.start()
    while b"sppnet_requests_taken 5.0" not in request(port, "GET", "/metrics")[1]:
        pass
    process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join()
    assert process.wait(60) == 0
    assert [status for status, _ in responses] == [200] * 5
    with pytest.raises(ConnectionRefusedError):
        request(port, "GET", "/health")


def test_sigint_stops_the_server(server: tuple["subprocess.Popen[str]", int]) -> None:
    process, _ = server
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_server_during_warm_up(model: Path, number: int) -> None:
    slow = "import sppnet.serving.start as start, time; start.warm_up = lambda _: time.sleep(60)"
    command = [PYTHON[0], "-c", f"{slow}; from sppnet.cli.main import main; main()", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        assert request(port, "GET", "/ready")[0] == 503
        process.send_signal(number)
        assert process.wait(60) == 0


def test_second_sigint_ends_the_server_at_once(model: Path) -> None:
    command = [*PYTHON, "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        wait_ready(port)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
            while b"sppnet_requests_taken 1.0" not in request(port, "GET", "/metrics")[1]:
                pass
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        assert process.stderr.read().splitlines()[1:] == ["stopped before all accepted requests were answered"]


@pytest.mark.parametrize("moment", ["sppnet.serving.start.load_model", "sppnet.serving.server.asyncio.run"])
def test_ctrl_c_before_serving_ends_in_one_line(model: Path, moment: str) -> None:
    module, _, name = moment.rpartition(".")
    wait = f"from sppnet.cli.main import main; import pkgutil, time; setattr(pkgutil.resolve_name({module!r}), {name!r}"
    code = f"{wait}, lambda *_, **__: print('reached', flush=True) or time.sleep(60)); main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "reached\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "sppnet: interrupted; nothing was written\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_messages_of_the_server_and_of_uvicorn_are_logged(model: Path, tmp_path: Path, quiet: bool) -> None:
    fail = "start.warm_up = lambda _: logging.getLogger('uvicorn.error').error('no')"
    code = f"import logging, sppnet.serving.start as start; {fail}; from sppnet.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(model), "--port", "0", "--log-file", str(tmp_path / "log")]
    command += ["--quiet"] * quiet
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_ready(int(process.stdout.readline().rsplit(":", 1)[1]))
        process.terminate()
        assert process.wait(60) == 0
        lines = process.stderr.read().splitlines()
    assert lines[0] == "no"
    assert [line.partition(" after ")[0] for line in lines[1:]] == ([] if quiet else ["ready for requests"])
    log = (tmp_path / "log").read_text()
    assert " ERROR uvicorn.error: no\n" in log
    assert " INFO sppnet.serving.app: ready for requests after " in log


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "sppnet.serving.app", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert run(["serve", "imagenet"]) == 1
    error = capfd.readouterr().err
    assert "need the package fastapi, " in error
    assert 'pip install ".[serve]"' in error


@pytest.mark.parametrize(
    ("old", "new"),
    [("--scale", "--scales"), ("--engine", "--runtime"), ("--max-pixels", "--max-image-pixels")],
)
def test_renamed_options_name_the_new_ones(old: str, new: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["serve", "imagenet", f"{old}=3"])
    assert f"{old} is now called {new}\n" in capfd.readouterr().err


def test_idle_and_slow_connections_are_closed(model: Path) -> None:
    process, port = start(str(model), "--upload-seconds", "1")
    try:
        assert read_all(port, b"") == b""
        assert read_all(port, b"POST /v1/predict HTTP/1.1\r\nHost: a\r\n").startswith(b"HTTP/1.1 408")
        wait_ready(port)
        response = read_all(port, b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nslow")
        assert response.startswith(b"HTTP/1.1 408")
        assert b"expected all bytes within 1 seconds, got 4" in response
        assert send_photograph(port, 64)[0] == 200
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_occupied_port_is_an_error(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert run(["serve", str(model), "--port", str(other.getsockname()[1])]) == 1
    assert "Address already in use" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--levels", "2,1"], "levels: expected no value without --regions, got (2, 1)"),
        (["--regions", "--weights", "none"], "weights: expected no value for a run, got none"),
        (["--regions", "--runtime", "onnx"], "runtime: expected eager or compiled, got onnx"),
        (["--proposals", "grid"], "proposals: expected a detector that takes proposals, got a classifier"),
        (["--workers", "0"], "workers: expected at least 1, got 0"),
        (["--batch", "0"], "batch: expected at least 1, got 0"),
        (["--batch-wait", "-1"], "batch_wait: expected at least 0 milliseconds, got -1"),
        (["--port", "99999"], "port: expected 0 to 65535, got 99999"),
        (["--queue", "0"], "queue: expected at least 1, got 0"),
        (["--max-bytes", "none"], "max_bytes: expected a size such as 3GB"),
    ],
)
def test_rejects_invalid_options(
    model: Path, options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(model), *options]) == 2
    assert message in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("token", ["", "short", "with some spaces in it", "with-an-ümlaut-in-it"])
def test_rejects_short_or_non_ascii_tokens(
    model: Path, tmp_path: Path, token: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text(token + "\n", encoding="utf-8")
    assert run(["serve", str(model), "--token-file", str(file)]) == 2
    assert "token_file: expected at least 16 printable ASCII characters without spaces in" in " ".join(
        capfd.readouterr().err.split()
    )


def test_failed_warm_up_stops_the_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = ClassifierConfig(("cat", "dog"), backbone="zf5", rule="caffe")
    save(Classifier(config, create_backbone("zf5")), tmp_path)
    assert run(["serve", str(tmp_path), "--runtime", "onnx", "--port", "0"]) == 2
    assert "rule" in capfd.readouterr().err


def test_serves_regions_of_a_backbone() -> None:
    process, port = start("zf5", "--regions", "--levels", "2,1", "--scales", "120")
    try:
        wait_ready(port)
        _, about = request(port, "GET", "/v1/model")
        assert (about["task"], about["backbone"], about["levels"]) == ("features", "zf5", [[2, 2], [1, 1]])
    finally:
        process.terminate()
        assert process.wait(60) == 0
        assert process.stdout is not None
        process.stdout.close()
