"""A server as a process, and clients that speak to its socket byte by byte."""

import http.client
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sppnet.backbones.backbone import create_backbone
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.serving.limits import CODES
from sppnet.training.run import save_run

COMMAND = [sys.executable, "-c", "from sppnet.cli.main import main; main()", "serve"]
FORM = b"multipart/form-data; boundary=b"


def save_small_classifier(folder: Path) -> Path:
    """A run folder of a classifier of two classes."""
    torch.manual_seed(0)
    save_run(Classifier(ClassifierConfig(("cat", "dog"), backbone="zf5"), create_backbone("zf5")), folder)
    return folder


@dataclass(frozen=True)
class Answer:
    status: int
    type: str
    body: bytes
    headers: dict[str, str]

    def refused(self, code: str) -> str:
        """The message of a refusal with this code; its status and form are the documented ones."""
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
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, request: bytes) -> Answer:
        """Send bytes as they are and read one answer."""
        with self.connect() as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered already
                connection.sendall(request)
            return read(connection)

    def ask(self, method: str, path: str, body: bytes = b"", type: bytes = FORM, *more: bytes) -> Answer:
        head = [f"{method} {path} HTTP/1.1".encode(), b"Host: a", b"Content-Length: %d" % len(body)]
        head += [b"Content-Type: " + type] if type else []
        return self.raw(b"\r\n".join([*head, *more, b"", body]))

    def send(self, file: bytes, path: str = "/v1/predict", *more: bytes, **fields: str) -> Answer:
        return self.ask("POST", path, form(file, **fields), FORM, *more)

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return float(next(line for line in lines if line.startswith(name + " ")).split()[1])

    def is_unharmed(self) -> None:
        """It holds no request back, and answers a good photograph."""
        end = time.monotonic() + 10
        while self.metric("sppnet_requests_taken") > 0:
            assert time.monotonic() < end
            time.sleep(0.05)
        answer = self.send(PHOTOGRAPH)
        assert (answer.status, json.loads(answer.body)["size"]) == (200, [90, 120])

    def sockets(self) -> int:
        """How many the process holds."""
        count = 0
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed in the meantime
                count += "socket" in str(path.readlink())
        return count

    def peak(self) -> int:
        """Bytes of the largest memory that the process has had."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def read(connection: socket.socket) -> Answer:
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
    """`sppnet serve` as a process; it must not die, nor fill its log with errors."""
    command = [*COMMAND, *options, "--port", "0", "--workers", "1"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            server = Server(int(process.stdout.readline().rsplit(":", 1)[1]), process.pid)
            end = time.monotonic() + 90
            while server.ask("GET", "/ready").status != 200:
                assert time.monotonic() < end
                time.sleep(0.1)
            yield server
            assert process.poll() is None, "the server has died"
        finally:
            process.kill()
        log.seek(0)
        assert "Traceback" not in (text := log.read()), text
