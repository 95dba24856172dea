"""Shared helpers for tests of the server's page: a browser, the application, photographs, and actions on the page."""

import base64
import io
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from sppnet.backbones.backbone import create_backbone
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.detect.model import Detector, DetectorConfig
from sppnet.features.encoder import RegionEncoder
from sppnet.segment.model import create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.serving.app import Batching, Service, create_app
from sppnet.serving.limits import Limits
from sppnet.serving.runtimes import torch_probabilities
from sppnet.serving.tasks import ClassifyTask, DetectTask, RegionTask, SegmentTask, Task

api = pytest.importorskip("playwright.sync_api", reason="the page's tests need: pip install playwright")
expect = api.expect

ARGUMENTS = (
    "--no-sandbox --headless --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)
CLASSES = ("ash", "birch", "cedar", "date", "elm", "fir")
LIMITS = Limits(max_bytes=300_000, max_image_pixels=400_000, queue=8)
TOKEN = "page-token"
Ask = Callable[..., Any]


def browser_path(bundled: str) -> str:
    """Path of the system's Chromium, or else of Playwright's."""
    system = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if system is None and not Path(bundled).exists():
        pytest.skip("no Chromium: install the system package chromium, or run `playwright install chromium`")
    return system or bundled


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Browser that is closed after each module: Playwright's event loop conflicts with other tests that run one."""
    with api.sync_playwright() as playwright:
        path = browser_path(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS.split())
        yield browser
        browser.close()


@contextmanager
def serving(task: Task, token: str | None = None, limits: Limits = LIMITS) -> Iterator[str]:
    """Serve the application on a free port; yields its URL."""
    service = Service("tiny", task.kind, lambda: task, "eager", limits, Batching())
    app = create_app(service, token)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=2))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            deadline = time.monotonic() + 30
            while not server.started or httpx.get(f"{url}/ready").status_code != 200:
                assert time.monotonic() < deadline, f"not ready: {service.error}"
                time.sleep(0.02)
            yield url
        finally:
            server.should_exit = True
            thread.join()


def classifier(levels: tuple[int, ...] = (3, 2, 1), sides: tuple[int, int] | None = None) -> ClassifyTask:
    torch.manual_seed(0)
    config = ClassifierConfig(CLASSES, "test_resnet", levels=levels, trained_sides=sides)
    model = Classifier(config, create_backbone("test_resnet", None, None)).eval()
    return ClassifyTask(model, LIMITS, torch_probabilities(model))


@pytest.fixture(scope="module")
def classify_url() -> Iterator[str]:
    with serving(classifier()) as url:
        yield url


@pytest.fixture(scope="module")
def detect_url() -> Iterator[str]:
    torch.manual_seed(0)
    config = DetectorConfig(("disc", "square"), backbone="test_resnet", levels=(3, 1), scales=(160,), max_side=400)
    model = Detector(replace(config, proposals="grid", windows=60), create_backbone("test_resnet", None, None))
    with torch.no_grad():
        model.score.weight *= 40  # scores below and above the default threshold
    with serving(DetectTask(model, LIMITS)) as url:
        yield url


@pytest.fixture(scope="module")
def segment_url() -> Iterator[str]:
    torch.manual_seed(0)
    config = SegmenterConfig(("ground", "disc", "square"), "test_efficientnet", width=16, rates=(1, 4))
    with serving(SegmentTask(create_segmenter(config, "none").eval(), LIMITS, 2**35)) as url:
        yield url


@pytest.fixture(scope="module")
def features_url() -> Iterator[str]:
    torch.manual_seed(0)
    encoder = RegionEncoder(create_backbone("test_resnet", None, None), (3, 1), (160,), 400)
    with serving(RegionTask(encoder, LIMITS)) as url:
        yield url


@dataclass
class Watched:
    """Console messages and requested hosts of an open page."""

    url: str = ""
    hosts: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Any) -> Iterator[Ask]:
    """Function that opens a URL. After the test, checks that no page logged an error or contacted another host.

    Error status codes, which browsers log too, must be listed as `allowed`.
    """
    opened: list[tuple[Any, Watched, tuple[int, ...]]] = []

    def open_page(url: str, *allowed: int, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1000, "height": 800}, **options)
        context.set_default_timeout(10_000)
        page, watched = context.new_page(), Watched(url)
        page.on("request", lambda request: watched.hosts.add(re.match(r"[a-z]+:(//[^/]*)?", request.url)[0]))  # type: ignore[index]
        page.on("console", lambda message: watched.messages.append(message.text))
        page.on("pageerror", lambda error: watched.messages.append(str(error)))
        opened.append((context, watched, allowed))
        page.goto(url)
        return page

    yield open_page
    for context, watched, allowed in opened:
        context.close()
        unexpected = [text for text in watched.messages if not any(f"status of {code}" in text for code in allowed)]
        assert unexpected == []
        assert watched.hosts <= {watched.url, "blob:"}


def photograph(height: int = 120, width: int = 180, seed: int = 0) -> Image.Image:
    """A noisy image of a bright disc, in which all parts differ."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (height / 4) ** 2
    pixels = rng.normal(np.where(disc[..., None], (220, 190, 40), (70, 90, 120)), 30)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def as_file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def add(page: Any, *files: tuple[str, bytes]) -> None:
    payload = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
    page.get_by_label("Choose photographs").set_input_files(payload)


def add_one(page: Any, data: bytes | None = None, name: str = "a.png") -> Any:
    """Add a photograph and return its card."""
    add(page, (name, as_file(photograph()) if data is None else data))
    return page.get_by_role("article", name=name)


def ask(url: str, path: str, data: bytes, **form: str) -> Any:
    response = httpx.post(f"{url}{path}", files={"image": ("a.png", data)}, data=form)
    assert response.status_code == 200, response.text
    return response.json()


def painted(canvas: Any) -> np.ndarray:
    """Pixels of a canvas, as uint8 RGBA (height, width, 4)."""
    url = canvas.evaluate("node => node.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def color_share(pixels: np.ndarray) -> float:
    """Share of the pixels that are not gray."""
    rgb = pixels[..., :3].astype(int)
    return float((rgb.max(2) - rgb.min(2) > 12).mean())


def signed(value: float) -> str:
    """Contribution in the page's number format."""
    magnitude = abs(value)
    digits = 2 if magnitude >= 0.1 or magnitude == 0 else min(6, 1 - int(np.floor(np.log10(magnitude))))
    text = f"{magnitude:.{digits}f}"
    return "0" if float(text) == 0 else ("−" if value < 0 else "+") + text


def grid(rows: int, columns: int) -> str:
    """Number of cells in the page's format."""
    return f"{rows} × {columns} cells" if rows == columns else f"{rows} rows × {columns} columns of cells"


def check_names(page: Any) -> int:
    """Check that every visible control has an accessible name; return their number."""
    controls = page.locator("button, input, select, textarea, summary, [tabindex='0'], canvas:not([aria-hidden])")
    visible = [control for control in controls.all() if control.is_visible()]
    for control in visible:
        if control.evaluate("node => node.tagName") == "SUMMARY":
            assert control.inner_text()
        else:
            expect(control).to_have_accessible_name(re.compile("."))
    return len(visible)
