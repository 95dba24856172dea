"""The page of the server, in a real browser: photographs in, answers in view, by mouse and by keyboard."""

import base64
import io
import re
import shutil
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from safetensors.torch import load as load_tensors

from sppnet.backbones import create_backbone
from sppnet.classify import Classifier, ClassifierConfig
from sppnet.detect import Detector, DetectorConfig
from sppnet.encoder import RegionEncoder
from sppnet.segment import SegmenterConfig, create_segmenter
from sppnet.serving.app import Batching, Service, create_app
from sppnet.serving.engines import torch_probabilities
from sppnet.serving.limits import Limits
from sppnet.serving.tasks import ClassifyTask, DetectTask, Kind, RegionTask, SegmentTask, Task

api = pytest.importorskip("playwright.sync_api", reason="the page's tests need: pip install playwright")
expect = api.expect

ARGUMENTS = (
    "--no-sandbox --headless --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)
CLASSES = ("ash", "birch", "cedar", "date", "elm", "fir")
LIMITS = Limits(bytes=300_000, pixels=400_000, queue=8)
TOKEN = "a-token-of-a-page"
Ask = Callable[..., Any]


def browser_path(own: str) -> str:
    """A Chromium of this machine, or Playwright's own."""
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if found is None and not Path(own).exists():
        pytest.skip("no Chromium: install the system's package chromium, or run `playwright install chromium`")
    return found or own


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Closed with this module: Playwright's event loop would be in the way of other tests that run one."""
    with api.sync_playwright() as playwright:
        path = browser_path(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS.split())
        yield browser
        browser.close()


@contextmanager
def serving(task: Task, token: str | None = None, limits: Limits = LIMITS) -> Iterator[str]:
    """The real application on a free port; gives its address."""
    kinds: dict[type, Kind] = {ClassifyTask: "classify", DetectTask: "detect", SegmentTask: "segment"}
    service = Service("tiny", lambda: task, "eager", limits, Batching())
    app = create_app(service, kinds.get(type(task), "regions"), token)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=2))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            deadline = time.monotonic() + 30
            while not server.started or httpx.get(f"{url}/ready").status_code != 200:
                assert time.monotonic() < deadline, f"not ready: {service.error}"
                time.sleep(0.02)
            yield url
        finally:
            server.should_exit = True
            thread.join()


def classifier(levels: tuple[int, ...] = (3, 2, 1)) -> ClassifyTask:
    torch.manual_seed(0)
    config = ClassifierConfig(CLASSES, "test_resnet", levels=levels)
    model = Classifier(config, create_backbone("test_resnet", None, None)).eval()
    return ClassifyTask(model, LIMITS, torch_probabilities(model))


def regions() -> RegionTask:
    torch.manual_seed(0)
    return RegionTask(RegionEncoder(create_backbone("test_resnet", None, None), (3, 1), (160,), 400), LIMITS)


@pytest.fixture(scope="module")
def classify_url() -> Iterator[str]:
    with serving(classifier()) as url:
        yield url


@pytest.fixture(scope="module")
def detect_url() -> Iterator[str]:
    torch.manual_seed(0)
    config = DetectorConfig(("disc", "square"), backbone="test_resnet", levels=(3, 1), scales=(160,), max_side=400)
    model = Detector(replace(config, proposals="grid", windows=60), create_backbone("test_resnet", None, None))
    with serving(DetectTask(model, LIMITS, 0.0)) as url:
        yield url


@pytest.fixture(scope="module")
def segment_url() -> Iterator[str]:
    torch.manual_seed(0)
    config = SegmenterConfig(("ground", "disc", "square"), "test_efficientnet", width=16, rates=(1, 4))
    with serving(SegmentTask(create_segmenter(config, "none").eval(), LIMITS, 2**31)) as url:
        yield url


@pytest.fixture(scope="module")
def regions_url() -> Iterator[str]:
    with serving(regions()) as url:
        yield url


@dataclass
class Watched:
    """What a page said and asked for while it was open."""

    url: str = ""
    hosts: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Any) -> Iterator[Ask]:
    """Opens an address; when the test is done, no page may have complained or asked another host for anything.

    Status codes of refusals, which browsers report too, are `allowed` by their numbers.
    """
    opened: list[tuple[Any, Watched, tuple[int, ...]]] = []

    def open_page(url: str, *allowed: int, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1000, "height": 800}, **options)
        context.set_default_timeout(10_000)
        page, watched = context.new_page(), Watched(url)
        page.on("request", lambda request: watched.hosts.add(re.match(r"[a-z]+:(//[^/]*)?", request.url)[0]))  # type: ignore[index]
        page.on("console", lambda message: watched.said.append(message.text))
        page.on("pageerror", lambda error: watched.said.append(str(error)))
        opened.append((context, watched, allowed))
        page.goto(url)
        return page

    yield open_page
    for context, watched, allowed in opened:
        context.close()
        complaints = [text for text in watched.said if not any(f"status of {code}" in text for code in allowed)]
        assert complaints == []
        assert watched.hosts <= {watched.url, "blob:"}


def photograph(height: int = 120, width: int = 180, seed: int = 0) -> Image.Image:
    """Noise about a bright disc: no part is like another."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (height / 4) ** 2
    pixels = rng.normal(np.where(disc[..., None], (220, 190, 40), (70, 90, 120)), 30)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def as_file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def give(page: Any, *files: tuple[str, bytes]) -> None:
    payload = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
    page.get_by_label("Choose photographs").set_input_files(payload)


def one(page: Any, data: bytes | None = None, name: str = "a.png") -> Any:
    """Gives a photograph; its card."""
    give(page, (name, as_file(photograph()) if data is None else data))
    return page.get_by_role("article", name=name)


def ask(url: str, path: str, data: bytes, **form: str) -> Any:
    response = httpx.post(f"{url}{path}", files={"image": ("a.png", data)}, data=form)
    assert response.status_code == 200, response.text
    return response.json()


def painted(canvas: Any) -> np.ndarray:
    """Pixels of a canvas, uint8 (height, width, 4)."""
    url = canvas.evaluate("node => node.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def colourful(pixels: np.ndarray) -> float:
    """Share of the pixels that are not grey."""
    rgb = pixels[..., :3].astype(int)
    return float((rgb.max(2) - rgb.min(2) > 12).mean())


def signed(value: float) -> str:
    size = abs(value)
    digits = 2 if size >= 0.1 or size == 0 else min(6, 1 - int(np.floor(np.log10(size))))
    text = f"{size:.{digits}f}"
    return "0" if float(text) == 0 else ("−" if value < 0 else "+") + text


def grid(rows: int, columns: int) -> str:
    """Cells as the page counts them."""
    return f"{rows} × {columns} cells" if rows == columns else f"{rows} rows × {columns} columns of cells"


def check_names(page: Any) -> int:
    """Every control in view has a name for screen readers; how many there are."""
    controls = page.locator("button, input, select, textarea, summary, [tabindex='0'], canvas:not([aria-hidden])")
    seen = [control for control in controls.all() if control.is_visible()]
    for control in seen:
        if control.evaluate("node => node.tagName") == "SUMMARY":
            assert control.inner_text()
        else:
            expect(control).to_have_accessible_name(re.compile("."))
    return len(seen)


def test_a_photograph_gets_its_answer_and_its_bins(visit: Ask, classify_url: str) -> None:
    page, data = visit(classify_url), as_file(photograph())
    card = one(page, data)
    answer = ask(classify_url, "/v1/predict", data)
    explained = ask(classify_url, "/v1/explain", data)
    expect(card.get_by_role("strong").first).to_have_text(answer["label"])
    expect(page.locator("#status")).to_contain_text("What the parts gave")
    expect(page.locator("#strip button")).to_contain_text(f"{answer['label']}, {100 * answer['score']:.1f}")
    expect(card.get_by_role("radio")).to_have_count(5 + 5)
    expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()
    pixels = painted(card.get_by_role("img"))
    assert pixels.shape[0] / pixels.shape[1] == pytest.approx(120 / 180, abs=0.01)
    assert colourful(pixels) > 0.5
    table = card.get_by_role("table", name="The score of")
    for level, row in zip(explained["levels"], table.get_by_role("row").all()[1:], strict=False):
        expect(row).to_contain_text(signed(sum(one["contribution"] for one in level["bins"])))
    expect(table.get_by_role("row", name="bias")).to_contain_text(signed(explained["rest"]))
    expect(table.get_by_role("row", name="score", exact=False).last).to_contain_text(signed(explained["logit"]))
    expect(card).to_contain_text("add up to the score exactly")


def test_levels_are_chosen_and_bins_are_read_by_the_keyboard(visit: Ask, classify_url: str) -> None:
    page, data = visit(classify_url), as_file(photograph())
    card, explained = one(page, data), ask(classify_url, "/v1/explain", data)
    card.get_by_role("radio", name="3 × 3 bins").focus()
    before = painted(card.get_by_role("img"))
    page.keyboard.press("ArrowRight")
    expect(card.get_by_role("radio", name="2 × 2 bins")).to_be_checked()
    assert not np.array_equal(painted(card.get_by_role("img")), before)
    card.get_by_role("group", name="Photograph and bins").focus()
    for keys, index, place in (("ArrowLeft", 0, "Row 1, column 1"), ("ArrowDown ArrowRight", 3, "Row 2, column 2")):
        for key in keys.split():
            page.keyboard.press(key)
        value = signed(explained["levels"][1]["bins"][index]["contribution"])
        expect(card.locator(".readout")).to_contain_text(f"{place}: {value}")
    page.keyboard.press("Escape")
    expect(card.locator(".readout")).to_contain_text("Point at a bin")
    card.get_by_text("All numbers as a table").click()
    for level, name in zip(explained["levels"], ("3 × 3 bins", "2 × 2 bins", "1 bin"), strict=True):
        card.get_by_role("radio", name=name).check()
        cells = card.get_by_role("region", name="What each bin gave").get_by_role("cell").all_inner_texts()
        assert cells == [signed(one["contribution"]) for one in level["bins"]]


def test_the_mouse_reads_cells_and_the_photograph_can_be_seen_bare(visit: Ask, classify_url: str) -> None:
    page, image = visit(classify_url), photograph()
    card, cells = one(page, as_file(image)), ask(classify_url, "/v1/explain", as_file(image))["cells"]
    card.get_by_role("radio", name="4 rows × 6 columns of cells").check()
    canvas = card.get_by_role("img")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] - 12, "y": box["height"] - 12})
    expect(card.locator(".readout")).to_contain_text(f"Row 4, column 6: {signed(cells['values'][-1])}")
    card.get_by_role("radio", name="photograph only").check()
    expect(card.locator(".readout")).to_be_hidden()
    shown = Image.fromarray(painted(canvas)).convert("RGB").resize(image.size)
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(image)).mean() < 20


def test_another_class_is_explained(visit: Ask, classify_url: str) -> None:
    page, data = visit(classify_url), as_file(photograph())
    card = one(page, data)
    second = ask(classify_url, "/v1/predict", data)["top"][1]["label"]
    explained = ask(classify_url, "/v1/explain", data, label=second)
    before = painted(card.get_by_role("img"))
    card.get_by_role("radio", name=second).check()
    table = card.get_by_role("table", name=f"The score of “{second}”")
    expect(table.get_by_role("row").last).to_contain_text(signed(explained["logit"]))
    assert not np.array_equal(painted(card.get_by_role("img")), before)


def test_native_warp_and_crop_are_compared(visit: Ask, classify_url: str) -> None:
    page, data = visit(classify_url), as_file(photograph(200, 300))
    card = one(page, data)
    card.get_by_role("button", name="Compare native, warp and crop").click()
    columns = card.get_by_role("region", name="Comparison of sizes").get_by_role("region")
    expect(columns).to_have_count(3)
    for column, policy in zip(columns.all(), ("native", "warp:", "center-crop:"), strict=True):
        expect(column).to_have_accessible_name(re.compile(policy))
        name = column.get_attribute("aria-label")
        answer = ask(classify_url, "/v1/predict", data, resize=name)
        expect(column).to_contain_text(f"{answer['label']} {100 * answer['score']:.1f}")
        height, width = answer["network_size"]
        expect(column).to_contain_text(f"{width} × {height} pixels")
        pixels = painted(column.get_by_role("img"))
        assert pixels.shape[1] / pixels.shape[0] == pytest.approx(width / height, abs=0.02)
        assert pixels[..., :3].std() > 10
    expect(columns.last).to_contain_text("of the photograph is cut off")


def test_a_broken_file_says_so_and_the_next_goes_on(visit: Ask, classify_url: str) -> None:
    page = visit(classify_url, 415)
    files = ("broken.jpg", b"no image"), ("huge.bin", bytes(400_000)), ("whole.png", as_file(photograph()))
    give(page, *files)
    refused = page.get_by_role("article", name="broken.jpg")
    expected = httpx.post(f"{classify_url}/v1/predict", files={"image": ("a", b"no image")}).json()["message"]
    expect(refused.get_by_role("alert")).to_have_text(expected)
    expect(refused.get_by_role("button", name="Try again")).to_be_visible()
    strip = page.get_by_role("navigation", name="Photographs").get_by_role("button")
    expect(strip.nth(0)).to_contain_text("no answer")
    expect(strip.nth(2)).to_contain_text("%")
    strip.nth(1).click()
    message = "The file has 0.4 MB; this server takes at most 0.3 MB."
    expect(page.get_by_role("alert").filter(visible=True)).to_have_text(message)
    strip.nth(2).click()
    expect(page.get_by_role("article", name="whole.png").get_by_role("radio", name="3 × 3 bins")).to_be_checked()
    page.get_by_role("button", name="Remove whole.png").click()
    expect(strip).to_have_count(2)


def test_photographs_are_dropped_and_pasted(visit: Ask, classify_url: str) -> None:
    page = visit(classify_url)
    script = """([kind, name, text]) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name, { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        const event = kind === "drop" ? new DragEvent(kind, { ...options, dataTransfer: transfer })
            : new ClipboardEvent(kind, { ...options, clipboardData: transfer });
        document.querySelector("footer").dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.evaluate(script, [kind, f"{kind}.png", base64.b64encode(as_file(photograph())).decode()])
        expect(page.get_by_role("article", name=f"{kind}.png").get_by_role("radio", name="3 × 3 bins")).to_be_checked()


def test_a_photograph_that_the_browser_cannot_draw_is_answered(visit: Ask, classify_url: str) -> None:
    card = one(visit(classify_url), as_file(photograph(), "TIFF"), "a.tif")
    expect(card).to_contain_text("This browser cannot draw this kind of file")
    expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()
    assert colourful(painted(card.get_by_role("img"))) > 0.5


def test_a_turned_photograph_is_drawn_as_the_server_sees_it(visit: Ask, classify_url: str) -> None:
    image = photograph(100, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    card = one(visit(classify_url), as_file(image, "JPEG", exif=exif, quality=95), "a.jpg")
    card.get_by_role("radio", name="photograph only").check()
    pixels = painted(card.get_by_role("img"))
    upright = image.transpose(Image.Transpose.ROTATE_270).resize((pixels.shape[1], pixels.shape[0]))
    assert pixels.shape[0] / pixels.shape[1] == pytest.approx(2, abs=0.05)
    assert np.abs(pixels[..., :3].astype(int) - np.asarray(upright)).mean() < 25
    expect(card).to_contain_text("100 × 200 pixels")


def test_a_token_is_asked_for_and_kept_in_memory(visit: Ask) -> None:
    with serving(classifier(), TOKEN) as url:
        page = visit(url, 401)
        give(page, ("early.png", as_file(photograph())))
        expect(page.get_by_label("Token")).to_be_focused()
        for text in ("a wrong one", TOKEN):
            page.get_by_label("Token").fill(text)
            page.keyboard.press("Enter")
            if text != TOKEN:
                expect(page.get_by_role("alert")).to_have_text("That is not the server's token.")
        expect(page.get_by_role("article").get_by_role("radio", name="3 × 3 bins")).to_be_checked()
        expect(page.get_by_label("Token")).to_be_hidden()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_a_full_queue_is_asked_again(visit: Ask) -> None:
    limits = Limits(queue=1, upload_seconds=10)
    with serving(classifier(), limits=limits) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as other:
            other.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
            deadline = time.monotonic() + 10
            while b"sppnet_requests_taken 1.0" not in httpx.get(f"{url}/metrics").content:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            page = visit(url, 503)
            with page.expect_response("**/v1/predict") as answered:
                card = one(page)
            assert answered.value.status == 503
        expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()


def test_the_threshold_says_which_objects_are_in_view(visit: Ask, detect_url: str) -> None:
    page, data = visit(detect_url), as_file(photograph())
    card, objects = one(page, data), ask(detect_url, "/v1/predict", data)["objects"]
    for key, least in (("", 0.0), ("Home", -1.5), ("End", 3.0)):
        if key:
            card.get_by_label("Least score").press(key)
        count = sum(one["score"] >= least for one in objects)
        text = f"{count} object{'s' * (count != 1)} of {len(objects)} that were found"
        expect(card.get_by_role("status").first).to_have_text(text)
        expect(card.get_by_role("list", name="Objects").get_by_role("button")).to_have_count(count)
    assert len(objects) > sum(one["score"] >= 0 for one in objects) > 0


def test_a_chosen_object_shows_the_cells_that_its_box_pools(visit: Ask, detect_url: str) -> None:
    page, data = visit(detect_url), as_file(photograph())
    card, objects = one(page, data), ask(detect_url, "/v1/predict", data)["objects"]
    first = card.get_by_role("list", name="Objects").get_by_role("button").first
    before = painted(card.get_by_role("img").first)
    assert colourful(before) > 0.2
    first.press("Enter")
    left, top, right, bottom = ask(detect_url, "/v1/explain", data, box=str(objects[0]["box"]))["cells"]
    expect(card.locator(".pooled")).to_contain_text(f"The box pools {grid(bottom - top, right - left)}.")
    expect(first).to_have_attribute("aria-pressed", "true")
    expect(card.get_by_role("img")).to_have_count(2)
    over, near = (painted(canvas) for canvas in card.get_by_role("img").all())
    assert not np.array_equal(over, before)
    assert colourful(near) > 0.1
    card.get_by_role("radio", name="3 × 3 bins").press("ArrowRight")
    expect(card.get_by_role("radio", name="1 bin")).to_be_checked()
    assert not np.array_equal(painted(card.get_by_role("img").last), near)
    first.press("Enter")
    expect(card.locator(".pooled")).to_have_count(0)
    card.get_by_role("img").first.click(position={"x": 200, "y": 150})
    expect(card.locator(".pooled")).to_be_visible()


def test_classes_are_switched_on_and_off(visit: Ask, segment_url: str) -> None:
    page, image = visit(segment_url), photograph()
    data = as_file(image)
    card, answer = one(page, data), ask(segment_url, "/v1/predict", data)
    colours = httpx.get(f"{segment_url}/v1/model").json()["colours"]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
    boxes = card.get_by_role("group", name="Classes").get_by_role("checkbox")
    expect(boxes).to_have_count(len(answer["classes"]))
    card.get_by_label("Opacity").press("End")
    canvas = card.get_by_role("img")
    shown = np.asarray(Image.fromarray(painted(canvas)).convert("RGB").resize(image.size, Image.Resampling.NEAREST))
    assert (shown == np.array(colours)[mask]).all(2).mean() > 0.98
    largest = max(answer["classes"], key=lambda one: one["share"])
    card.get_by_role("checkbox", name=largest["label"]).uncheck()
    index = ["ground", "disc", "square"].index(largest["label"])
    seen = np.asarray(Image.fromarray(painted(canvas)).convert("RGB").resize(image.size, Image.Resampling.NEAREST))
    changed = (seen != shown).any(2)
    assert changed[mask == index].mean() > 0.9
    assert changed[mask != index].mean() < 0.1
    card.get_by_role("button", name="Hide all").click()
    bare = painted(canvas)
    card.get_by_role("button", name="Show all").click()
    card.get_by_label("Opacity").press("Home")
    assert np.abs(painted(canvas).astype(int) - bare).max() <= 1  # the canvas rounds what it blends


def test_live_taps_are_drawn_for_each_rate(visit: Ask, segment_url: str) -> None:
    page, data = visit(segment_url), as_file(photograph())
    card, found = one(page, data), ask(segment_url, "/v1/explain", data)
    for entry in found["rates"]:
        table = card.get_by_role("table", name=f"Rate {entry['rate']}: {100 * entry['share']:.0f}")
        expect(table.get_by_role("cell")).to_have_text([f"{100 * live:.0f} %" for live in entry["live"]])


def test_a_box_is_drawn_typed_and_downloaded(visit: Ask, regions_url: str) -> None:
    page, data = visit(regions_url), as_file(photograph(200, 300))
    card = one(page, data)
    edges = [card.get_by_label(name) for name in ("Left", "Top", "Right", "Bottom")]
    expect(card.locator(".pooled")).to_be_visible()
    assert [edge.input_value() for edge in edges] == ["75", "50", "225", "150"]
    canvas = card.get_by_role("img").first
    place = canvas.bounding_box()
    scale = place["width"] / 300
    page.mouse.move(place["x"] + 240.2 * scale, place["y"] + 160.2 * scale)
    page.mouse.down()
    page.mouse.move(place["x"] + 30.4 * scale, place["y"] + 20.4 * scale, steps=3)
    page.mouse.up()
    expect(card.locator(".pooled")).to_be_visible()
    assert [edge.input_value() for edge in edges] == ["30", "20", "240", "160"]
    edges[0].fill("250")
    edges[0].press("Enter")
    edges[1].focus()
    expect(card.get_by_role("alert")).to_contain_text("Left has to be less than right")
    edges[0].fill("100.5")
    edges[1].focus()
    expect(card.get_by_role("alert")).to_have_count(0)
    box = "[100.5, 20, 240, 160]"
    cells = ask(regions_url, "/v1/explain", data, box=box)["cells"]
    expect(card.locator(".pooled")).to_contain_text(f"pools {grid(cells[3] - cells[1], cells[2] - cells[0])}.")
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "a.png.safetensors"
    vectors = load_tensors(Path(download.value.path()).read_bytes())["vectors"]
    form = {"boxes": f"[{box}]", "output": "safetensors"}
    expected = httpx.post(f"{regions_url}/v1/features", files={"image": ("a", data)}, data=form).content
    assert torch.equal(vectors, load_tensors(expected)["vectors"])


@pytest.mark.parametrize("kind", ["classify", "detect", "segment", "regions"])
def test_every_control_has_a_name_and_nothing_is_wider_than_a_phone(
    visit: Ask, request: pytest.FixtureRequest, kind: str
) -> None:
    page = visit(request.getfixturevalue(f"{kind}_url"))
    page.set_viewport_size({"width": 360, "height": 740})
    card = one(page, name="a-rather-long-name-of-a-photograph-that-does-not-end.png")
    if kind == "detect":
        card.get_by_role("list", name="Objects").get_by_role("button").first.click()
    waited = {"classify": "table", "detect": ".pooled", "segment": ".taps table", "regions": ".pooled"}[kind]
    expect(card.locator(waited).first).to_be_attached()
    if kind == "classify":
        card.get_by_role("button", name="Compare").click()
        expect(card.locator("h4")).to_have_count(3)
    page.get_by_text("How does it work?").click()
    assert check_names(page) > 8
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    levels = [int(node.evaluate("node => node.tagName[1]")) for node in page.locator("h1, h2, h3, h4").all()]
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(visit: Ask, classify_url: str, scheme: str) -> None:
    """4.5 for text, 3 for the borders of controls."""
    page = visit(classify_url, color_scheme=scheme)
    names = ["text", "soft", "back", "card", "accent", "on-accent", "control", "wrong", "wrong-back"]
    script = "(names) => names.map((name) => getComputedStyle(document.body).getPropertyValue(`--${name}`).trim())"
    colour = dict(zip(names, page.evaluate(script, names), strict=True))
    for ground in ("back", "card"):
        assert min(contrast(colour[name], colour[ground]) for name in ("text", "soft", "accent")) >= 4.5
        assert contrast(colour["control"], colour[ground]) >= 3
    assert contrast(colour["on-accent"], colour["accent"]) >= 4.5
    assert contrast(colour["wrong"], colour["wrong-back"]) >= 4.5


def contrast(one: str, other: str) -> float:
    dark, light = sorted(luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    linear = []
    for pair in re.findall("..", digits if len(digits) == 6 else "".join(2 * digit for digit in digits)):
        value = int(pair, 16) / 255
        linear.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_masks_are_read_to_the_value(visit: Ask, segment_url: str) -> None:
    """Palettes of 1, 2, 4 and 8 bits, grey of 8 and 16, and every filter of the format."""
    page, rng = visit(segment_url), np.random.default_rng(0)
    rows, columns = np.mgrid[:37, :53]
    cases: list[tuple[bytes, np.ndarray]] = []
    for most, bits in ((2, 1), (4, 2), (16, 4), (256, 8)):
        values = (rng.integers(0, 2, (37, 53)) + (rows // 5 + columns // 7)) % most
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette(rng.integers(0, 256, 3 * most, dtype=np.uint8).tobytes())
        cases.append((as_file(picture, bits=bits), values))
    smooth = rows * 3 + columns * 2 + rng.integers(0, 3, (37, 53))
    cases.append((as_file(Image.fromarray((smooth % 256).astype(np.uint8))), smooth % 256))
    cases.append((as_file(Image.fromarray((smooth * 40).astype(np.uint16))), smooth * 40))
    cases.extend((filtered(smooth % 256, number), smooth % 256) for number in range(5))
    for data, expected in cases:
        found = page.evaluate(
            """async (text) => {
                const { decodePng } = await import("/page/png.js");
                const { width, height, values } = await decodePng(text);
                return { width, height, values: [...values] };
            }""",
            base64.b64encode(data).decode(),
        )
        assert (found["height"], found["width"]) == (37, 53)
        assert np.array_equal(np.array(found["values"]).reshape(37, 53), expected)


def filtered(values: np.ndarray, number: int) -> bytes:
    """A grey PNG all of whose rows have this filter."""
    height, width = values.shape
    padded = np.zeros((height + 1, width + 1), int)
    padded[1:, 1:] = values
    left, up, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    guess = left + up - corner
    distances = np.stack([abs(guess - one) for one in (left, up, corner)])
    paeth = np.choose(distances.argmin(0), [left, up, corner])
    rest = (values - [0 * left, left, up, (left + up) // 2, paeth][number]) % 256
    lines = np.concatenate([np.full((height, 1), number), rest], 1).astype(np.uint8).tobytes()
    out = b"\x89PNG\r\n\x1a\n"
    for kind, part in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ):
        out += struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
    return out


def test_bins_are_drawn_side_by_side(visit: Ask, classify_url: str) -> None:
    """Those that share cells meet in the middle of these; on a map with fewer cells than bins all have one size."""
    page = visit(classify_url)
    script = """async (level) => {
        const { fields, overlap } = await import("/page/overlay.js");
        return [fields(level), overlap(level)];
    }"""
    bins = [{"box": [left, 0, right, 10]} for left, right in ((0, 40), (30, 70), (60, 100))]
    places, shared = page.evaluate(script, {"rows": 1, "columns": 3, "bins": bins})
    assert (places, shared) == ([[0, 0, 35, 10], [35, 0, 65, 10], [65, 0, 100, 10]], True)
    apart = [{"box": [left, top, left + 30, top + 10]} for top in (0, 10) for left in (0, 30)]
    assert page.evaluate(script, {"rows": 2, "columns": 2, "bins": apart}) == [[one["box"] for one in apart], False]
    same = [{"box": [0, 0, 90, 60]}] * 9
    places, _ = page.evaluate(script, {"rows": 3, "columns": 3, "bins": same})
    assert places[4] == [30, 20, 60, 40]


def test_the_page_is_served_with_a_strict_policy(classify_url: str) -> None:
    for name in ("", "page/main.js", "page/style.css", "page/icon.svg"):
        with urllib.request.urlopen(f"{classify_url}/{name}") as response:
            assert "default-src 'self'" in response.headers["Content-Security-Policy"]
            text = response.read().decode()
            assert "unsafe" not in response.headers["Content-Security-Policy"]
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    with pytest.raises(urllib.error.HTTPError, match="404"), urllib.request.urlopen(f"{classify_url}/page/none.js"):
        pass
