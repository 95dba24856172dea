"""Put `sppnet serve` under load with photographs of many sizes, and compare it with serving one request at a time.

    python benchmarks/serving.py imagenet --seconds 120 --clients 32 --sizes 200
    python benchmarks/serving.py imagenet --what ratio --runtime onnx

Servers and clients share the cores of this machine. Unknown options are passed to the server.
"""

import argparse
import http.client
import io
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

BOUNDARY = "photograph"


class Reply(NamedTuple):
    """Start time, duration, image area and HTTP status of one request."""

    start: float
    seconds: float
    pixels: int
    status: int


class Server:
    """`sppnet serve` in a subprocess."""

    def __init__(self, run: str, *options: str) -> None:
        command = [
            sys.executable,
            "-c",
            "from sppnet.cli.main import main; main()",
            "serve",
            run,
            "--port",
            "0",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        while self.request("/ready") != 200:
            time.sleep(0.2)

    def request(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status

    def resident(self) -> int:
        """Return the resident memory in bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def photographs(count: int, seed: int) -> list[tuple[int, bytes]]:
    """Create photographs of distinct sizes, sides 160 to 640, aspect ratios to 1:3, as (pixels, multipart body)."""
    from skimage import data

    sources = [Image.fromarray(picture()) for picture in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
    rng, bodies = random.Random(seed), {}
    while len(bodies) < count:
        height, width = rng.randint(160, 640), rng.randint(160, 640)
        if max(height, width) > 3 * min(height, width) or (height, width) in bodies:
            continue
        file = io.BytesIO()
        rng.choice(sources).resize((width, height)).save(file, "JPEG", quality=88)
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        bodies[height, width] = head.encode() + file.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode()
    return [(height * width, body) for (height, width), body in bodies.items()]


def load(server: Server, bodies: list[tuple[int, bytes]], clients: int, seconds: float) -> list[Reply]:
    """Send random photographs from parallel clients, each one after the other, for the given time."""
    replies: list[Reply] = []
    deadline = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        while (start := time.monotonic()) < deadline:
            pixels, body = rng.choice(bodies)
            try:
                connection.request("POST", "/v1/predict", body, headers)
                response = connection.getresponse()
                response.read()
                status = response.status
            except OSError:
                connection.close()
                status = 0
            replies.append(Reply(start, time.monotonic() - start, pixels, status))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def report_load(run: str, options: list[str], clients: int, sizes: int, seconds: float) -> dict[str, object]:
    server = Server(run, *options)
    bodies = photographs(sizes, 0)
    warm = load(server, bodies, clients, 30)
    start, memory = time.monotonic(), [server.resident()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1):
            memory.append(server.resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    replies = load(server, bodies, clients, seconds)
    stop.set()
    watcher.join()
    elapsed = time.monotonic() - start
    server.stop()
    statuses = Counter(reply.status for reply in replies)
    good = sorted((reply for reply in replies if reply.status == 200), key=lambda reply: reply.pixels)
    tenth = len(good) // 10
    ratios = []
    for part in range(10):
        times = [reply.seconds for reply in good[part * tenth : (part + 1) * tenth]]
        ratios.append(statistics.quantiles(times, n=100)[98] / statistics.median(times))
    third = len(memory) // 3
    return {
        "requests": len(replies),
        "warm-up": len(warm),
        "statuses": statuses,
        "per second": len(good) / elapsed,
        "p50": statistics.median(reply.seconds for reply in good),
        "p99": statistics.quantiles([reply.seconds for reply in good], n=100)[98],
        "p99 over p50 at equal pixels, worst tenth": max(ratios),
        "memory MB": [round(value / 1e6) for value in (memory[0], max(memory), memory[-1])],
        "growth": statistics.median(memory[-third:]) / statistics.median(memory[:third]) - 1,
    }


def report_ratio(run: str, options: list[str], clients: int, sizes: int, rounds: int) -> dict[str, object]:
    """Compare requests per second with those of one worker without batches, alternating every ten seconds."""
    batched, single = Server(run, *options), Server(run, *options, "--workers", "1", "--batch", "1")
    bodies = photographs(sizes, 0)
    rates: dict[str, list[float]] = {"ours": [], "one at a time": []}
    for number in range(rounds + 1):
        for name, server in (("ours", batched), ("one at a time", single)):
            start = time.monotonic()
            good = sum(reply.status == 200 for reply in load(server, bodies, clients, 10))
            if number:  # the first round warms up
                rates[name].append(good / (time.monotonic() - start))
    batched.stop()
    single.stop()
    ratios = [ours / other for ours, other in zip(*rates.values(), strict=True)]
    return {
        "per second": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--what", choices=("load", "ratio"), default="load")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--sizes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments, options = parser.parse_known_args()
    if arguments.what == "load":
        result = report_load(arguments.run, options, arguments.clients, arguments.sizes, arguments.seconds)
    else:
        result = report_ratio(arguments.run, options, arguments.clients, arguments.sizes, arguments.rounds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
