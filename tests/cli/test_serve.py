"""`sppnet serve` as a process: what it refuses, what it says, and how it ends."""

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
from sppnet.cli import serve
from sppnet.cli.main import run
from sppnet.detect.model import Detector, DetectorConfig
from sppnet.features.encoder import RegionEncoder
from sppnet.training.run import save_run
from tests.helpers.hostile_clients import save_small_classifier

PYTHON = [sys.executable, "-c", "from sppnet.cli.main import main; main()"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("run"))


def start(*options: str) -> tuple["subprocess.Popen[str]", int]:
    """The process and its port; it may not be ready yet."""
    process = subprocess.Popen([*PYTHON, "serve", *options, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line, line
    return process, int(line.rsplit(":", 1)[1])


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
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
    return ask(port, "POST", "/v1/predict", body, **{"Content-Type": "multipart/form-data; boundary=b"})


def read_all(port: int, begin: bytes) -> bytes:
    """What the server says to a client that begins so and then waits, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, connection.makefile("rb") as file:
        connection.sendall(begin)
        return file.read()


def wait_ready(port: int) -> None:
    end = time.monotonic() + 60
    while ask(port, "GET", "/ready")[0] != 200:
        assert time.monotonic() < end
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


def test_it_listens_on_this_machine_only_and_answers(server: tuple["subprocess.Popen[str]", int]) -> None:
    _, port = server
    status, answer = send_photograph(port, 100)
    assert (status, answer["size"]) == (200, [100, 100])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, type=socket.SOCK_STREAM)}
    for address in others - {"127.0.0.1", "::1", "127.0.1.1"}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((str(address), port), timeout=2)


def test_it_finishes_what_it_has_taken_when_told_to_stop(server: tuple["subprocess.Popen[str]", int]) -> None:
    process, port = server
    answers: list[tuple[int, Any]] = []
    clients = [threading.Thread(target=lambda: answers.append(send_photograph(port, 900))) for _ in range(5)]
    for client in clients:
        client.start()
    while b"sppnet_requests_taken 5.0" not in ask(port, "GET", "/metrics")[1]:
        pass
    process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join()
    assert process.wait(30) == 0
    assert [status for status, _ in answers] == [200] * 5
    with pytest.raises(ConnectionRefusedError):
        ask(port, "GET", "/health")


def test_ctrl_c_ends_it_in_the_same_way(server: tuple["subprocess.Popen[str]", int]) -> None:
    process, _ = server
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_while_it_is_getting_ready(model: Path, number: int) -> None:
    slow = "import sppnet.cli.serve as serve, time; serve.warm_up = lambda _: time.sleep(60)"
    command = [PYTHON[0], "-c", f"{slow}; from sppnet.cli.main import main; main()", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        assert ask(port, "GET", "/ready")[0] == 503
        process.send_signal(number)
        assert process.wait(10) == 0


def test_a_connection_that_says_nothing_is_closed(model: Path) -> None:
    process, port = start(str(model), "--upload-seconds", "1")
    try:
        assert read_all(port, b"") == b""
        assert read_all(port, b"POST /v1/predict HTTP/1.1\r\nHost: a\r\n").startswith(b"HTTP/1.1 408")
        wait_ready(port)
        answer = read_all(port, b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nslow")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 1 seconds; got 4 bytes" in answer
        assert send_photograph(port, 64)[0] == 200
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_an_address_that_is_taken_is_named(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert run(["serve", str(model), "--port", str(other.getsockname()[1])]) == 1
    assert "Address already in use" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--levels", "2,1"], "levels: an option of --regions; a run has its own"),
        (["--regions", "--weights", "none"], "is a run, which has its own; leave --weights out"),
        (["--regions", "--engine", "onnx"], "engine: onnx is for classifiers on the CPU; take eager or compiled"),
        (["--proposals", "grid"], "proposals: an option for detectors"),
        (["--workers", "0"], "workers: expected at least 1; got 0"),
        (["--batch", "0"], "batch: expected at least 1; got 0"),
        (["--batch-wait", "-1"], "batch-wait: expected at least 0 milliseconds; got -1"),
        (["--port", "99999"], "port: expected 0 to 65535; got 99999"),
        (["--queue", "0"], "queue: expected at least 1; got 0"),
        (["--max-bytes", "none"], "max-bytes: expected a size such as 3GB"),
    ],
)
def test_what_makes_no_sense_is_refused(
    model: Path, options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(model), *options]) == 2
    assert message in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("token", ["", "short", "with some spaces in it", "with-an-ümlaut-in-it"])
def test_a_token_is_long_and_plain(model: Path, tmp_path: Path, token: str, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text(token + "\n", encoding="utf-8")
    assert run(["serve", str(model), "--token-file", str(file)]) == 2
    assert "16 or more printable ASCII characters without spaces" in " ".join(capfd.readouterr().err.split())


# In a process of its own: shape checks would break graphs.
COMPILED = """
import io, sys, torch
from PIL import Image
from sppnet.cli import serve
from sppnet.registry import load
from sppnet.serving.uploads import answer_asked
from sppnet.serving.batcher import Batcher
from sppnet.serving.limits import Limits

def photograph(width, height):
    file = io.BytesIO()
    Image.effect_noise((width, height), 60).save(file, "PNG")
    return file.getvalue()

torch.set_num_threads(2)
parsed = serve.serve_parser().parse_args([sys.argv[1], "--engine", "compiled"])
task = serve._prepare(parsed, load(sys.argv[1]), Limits(), 1, False)[1]()
batcher, counted = Batcher(answer_asked, threads=1), torch._dynamo.utils.counters["stats"]
graphs = counted["unique_graphs"]
for stance, size in (("fail", (640, 480)), ("fail", (511, 333)), ("eager", (131, 97))):
    torch.compiler.set_stance(f"{stance}_on_recompile")
    asked = task.predict(photograph(*size))
    batcher.submit(asked, asked.key, asked.size).result()
batcher.close()
print(graphs > 0, counted["unique_graphs"] - graphs)
"""


@pytest.mark.slow
def test_workers_use_the_graphs_of_the_warm_up(model: Path) -> None:
    """Their one thread though the process has two; and a photograph that would need another graph goes without one."""
    done = subprocess.run([sys.executable, "-c", COMPILED, str(model)], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["True", "0"], done.stderr


def test_regions_of_a_detector_are_its_own_but_for_what_is_asked(tmp_path: Path) -> None:
    config = DetectorConfig(("cup",), backbone="zf5", levels=(2, 1), scales=(120,), max_side=300, rule="roi_pool")
    save_run(Detector(config, create_backbone("zf5")), tmp_path)

    def told(*options: str) -> tuple[object, ...]:
        encoder = serve._load(serve.serve_parser().parse_args([str(tmp_path), "--regions", *options]))
        assert isinstance(encoder, RegionEncoder)
        return encoder.levels, encoder.scales, encoder.max_side, encoder.rule

    assert told() == ((2, 1), (120,), 300, "roi_pool")
    assert told("--levels", "3") == ((3,), (120,), 300, "roi_pool")
    assert told("--scale", "130") == ((2, 1), (130,), 300, "roi_pool")


def test_a_segmenter_has_one_worker_so_that_its_memory_is_bounded() -> None:
    assert serve._workers(None, torch.device("cpu"), True) == 1
    with pytest.raises(ValueError, match="workers: a segmenter has 1, with all cores"):
        serve._workers(2, torch.device("cpu"), True)


def test_a_model_that_cannot_be_made_ready_ends_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = ClassifierConfig(("cat", "dog"), backbone="zf5", rule="caffe")
    save_run(Classifier(config, create_backbone("zf5")), tmp_path)
    assert run(["serve", str(tmp_path), "--engine", "onnx", "--port", "0"]) == 2
    assert "rule" in capfd.readouterr().err


def test_a_backbone_s_regions_are_served() -> None:
    process, port = start("zf5", "--regions", "--levels", "2,1", "--scale", "120")
    try:
        wait_ready(port)
        _, about = ask(port, "GET", "/v1/model")
        assert (about["task"], about["backbone"], about["levels"]) == ("regions", "zf5", [[2, 2], [1, 1]])
    finally:
        process.terminate()
        assert process.wait(30) == 0
        assert process.stdout is not None
        process.stdout.close()
