"""`sppnet serve` in a subprocess, and clients that send raw bytes to its socket."""

import http.client
import io
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped, unused-ignore]
import torch
from PIL import Image

from sppnet.backbones.backbone import create_backbone
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.serving.limits import CODES
from sppnet.training.run import save
from tests.helpers.polling import TIMEOUT, wait_until

COMMAND = [sys.executable, "-c", "from sppnet.cli.main import main; main()", "serve"]
FORM = b"multipart/form-data; boundary=b"


def save_small_classifier(folder: Path) -> Path:
    """Save an untrained classifier of two classes in a run folder, and return the folder."""
    torch.manual_seed(0)
    save(Classifier(ClassifierConfig(("cat", "dog"), backbone="zf5"), create_backbone("zf5")), folder)
    return folder


@dataclass(frozen=True)
class Answer:
    status: int
    type: str
    body: bytes
    headers: dict[str, str]

    def refusal(self, code: str) -> str:
        """Check that this is a documented error response with this code, and return its message."""
        content = json.loads(self.body)
        assert set(content) == {"code", "message"}
        assert (content["code"], self.status) == (code, CODES[code][0]), content
        assert self.type == "application/json"
        return str(content["message"])


@dataclass(frozen=True)
class Server:
    port: int
    pid: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)

    def raw(self, request: bytes) -> Answer:
        """Send raw bytes and read one response."""
        with self.connect() as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # the server may already have responded
                connection.sendall(request)
            return read_answer(connection)

    def ask(self, method: str, path: str, body: bytes = b"", type: bytes = FORM, *headers: bytes) -> Answer:
        head = [f"{method} {path} HTTP/1.1".encode(), b"Host: a", b"Content-Length: %d" % len(body)]
        head += [b"Content-Type: " + type] if type else []
        return self.raw(b"\r\n".join([*head, *headers, b"", body]))

    def send(self, file: bytes, path: str = "/v1/predict", *headers: bytes, **fields: str) -> Answer:
        return self.ask("POST", path, form(file, **fields), FORM, *headers)

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return float(next(line for line in lines if line.startswith(name + " ")).split()[1])

    def check_health(self) -> None:
        """Check that no request is stuck, and that a valid photograph is classified."""
        wait_until(lambda: self.metric("sppnet_requests_taken") == 0)
        answer = self.send(PHOTOGRAPH)
        assert (answer.status, json.loads(answer.body)["size"]) == (200, [90, 120])

    def socket_count(self) -> int:
        """Return the number of open sockets of the process."""
        return len(psutil.Process(self.pid).net_connections("all"))

    def peak_memory(self) -> int:
        """Return the peak resident memory of the process, in bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def read_answer(connection: socket.socket) -> Answer:
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers.get("content-type", ""), response.read(), headers)


def form(file: bytes, name: str = "image", filename: str = "a.png", **fields: str) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    parts = [head.encode() + file]
    parts += [
        f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}'.encode() for key, text in fields.items()
    ]
    return b"\r\n".join([*parts, b"--b--\r\n"])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


PHOTOGRAPH = encoded(noise(90, 120), "PNG")


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """Run `sppnet serve` in a subprocess; it must not exit or log errors."""
    command = [*COMMAND, *options, "--port", "0", "--workers", "1"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            server = Server(int(process.stdout.readline().rsplit(":", 1)[1]), process.pid)
            wait_until(lambda: server.ask("GET", "/ready").status == 200)
            yield server
            assert process.poll() is None, "the server has exited"
        finally:
            process.kill()
        log.seek(0)
        assert "Traceback" not in (text := log.read()), text
