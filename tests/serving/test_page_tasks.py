"""The server's page in a real browser, for detectors, segmenters and region encoders."""

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from tests.helpers.browsing import Ask, add_one, as_file, ask, color_share, expect, grid, painted, photograph

pytest_plugins = ("tests.helpers.browsing",)


def test_threshold_filters_objects(visit: Ask, detect_url: str) -> None:
    page, data = visit(detect_url), as_file(photograph())
    card, objects = add_one(page, data), ask(detect_url, "/v1/predict", data, min_score="-1.5")["objects"]
    for key, threshold in (("", -0.5), ("Home", -1.5), ("End", 3.0)):
        if key:
            card.get_by_label("Minimum score").press(key)
        count = sum(item["score"] >= threshold for item in objects)
        text = f"{count} object{'s' * (count != 1)} of {len(objects)} found"
        expect(card.get_by_role("status").first).to_have_text(text)
        expect(card.get_by_role("list", name="Objects").get_by_role("button")).to_have_count(count)
    assert len(objects) > sum(item["score"] >= -0.5 for item in objects) > 0


def test_selected_object_shows_its_pooled_cells(visit: Ask, detect_url: str) -> None:
    page, data = visit(detect_url), as_file(photograph())
    card, objects = add_one(page, data), ask(detect_url, "/v1/predict", data, min_score="-1.5")["objects"]
    first = card.get_by_role("list", name="Objects").get_by_role("button").first
    before = painted(card.get_by_role("img").first)
    assert color_share(before) > 0.2
    first.press("Enter")
    left, top, right, bottom = ask(detect_url, "/v1/explain", data, box=str(objects[0]["box"]))["cells"]
    expect(card.locator(".pooled")).to_contain_text(
        f"The box pools {grid(bottom - top, right - left)} into one vector."
    )
    expect(first).to_have_attribute("aria-pressed", "true")
    expect(card.get_by_role("img")).to_have_count(2)
    after, close_up = (painted(canvas) for canvas in card.get_by_role("img").all())
    assert not np.array_equal(after, before)
    assert color_share(close_up) > 0.1
    card.get_by_role("radio", name="3 × 3 bins").press("ArrowRight")
    expect(card.get_by_role("radio", name="1 bin")).to_be_checked()
    assert not np.array_equal(painted(card.get_by_role("img").last), close_up)
    first.press("Enter")
    expect(card.locator(".pooled")).to_have_count(0)
    card.get_by_role("img").first.click(position={"x": 200, "y": 150})
    expect(card.locator(".pooled")).to_be_visible()


def test_shows_the_later_of_two_quickly_selected_boxes(visit: Ask, detect_url: str) -> None:
    """The first response is slow; its loading message must not replace the result for the second box."""
    page = visit(detect_url)
    card = add_one(page, as_file(photograph()))
    buttons = card.get_by_role("list", name="Objects").get_by_role("button")
    delays = [1_000]

    def delay(route: Any) -> None:
        if delays:
            page.wait_for_timeout(delays.pop())
        route.continue_()

    page.route("**/v1/explain", delay)
    buttons.nth(0).click(no_wait_after=True)
    buttons.nth(1).click(no_wait_after=True)
    page.wait_for_timeout(1_500)
    expect(card.locator(".pooled")).to_be_visible()
    expect(card).not_to_contain_text("Loading its cells")


def test_toggles_classes(visit: Ask, segment_url: str) -> None:
    page, image = visit(segment_url), photograph()
    data = as_file(image)
    card, answer = add_one(page, data), ask(segment_url, "/v1/predict", data)
    colors = httpx.get(f"{segment_url}/v1/model").json()["colours"]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
    boxes = card.get_by_role("group", name="Classes").get_by_role("checkbox")
    expect(boxes).to_have_count(len(answer["classes"]))
    card.get_by_label("Opacity").press("End")
    canvas = card.get_by_role("img")
    shown = np.asarray(Image.fromarray(painted(canvas)).convert("RGB").resize(image.size, Image.Resampling.NEAREST))
    assert (shown == np.array(colors)[mask]).all(2).mean() > 0.98
    largest = max(answer["classes"], key=lambda item: item["share"])
    card.get_by_role("checkbox", name=largest["label"]).uncheck()
    index = ["ground", "disc", "square"].index(largest["label"])
    without = np.asarray(Image.fromarray(painted(canvas)).convert("RGB").resize(image.size, Image.Resampling.NEAREST))
    changed = (without != shown).any(2)
    assert changed[mask == index].mean() > 0.9
    assert changed[mask != index].mean() < 0.1
    card.get_by_role("button", name="Hide all").click()
    bare = painted(canvas)
    card.get_by_role("button", name="Show all").click()
    card.get_by_label("Opacity").press("Home")
    assert np.abs(painted(canvas).astype(int) - bare).max() <= 1  # the canvas rounds blended values


def test_shows_live_taps_per_rate(visit: Ask, segment_url: str) -> None:
    page, data = visit(segment_url), as_file(photograph())
    card, explained = add_one(page, data), ask(segment_url, "/v1/explain", data)
    for entry in explained["rates"]:
        table = card.get_by_role("table", name=f"Rate {entry['rate']}: {100 * entry['share']:.0f}")
        expect(table.get_by_role("cell")).to_have_text([f"{100 * live:.0f}%" for live in entry["live"]])


def test_draws_types_and_downloads_a_box(visit: Ask, features_url: str) -> None:
    page, data = visit(features_url), as_file(photograph(200, 300))
    card = add_one(page, data)
    edges = [card.get_by_label(name) for name in ("Left", "Top", "Right", "Bottom")]
    expect(card.locator(".pooled")).to_be_visible()
    assert [edge.input_value() for edge in edges] == ["75", "50", "225", "150"]
    canvas = card.get_by_role("img").first
    bounds = canvas.bounding_box()
    scale = bounds["width"] / 300
    page.mouse.move(bounds["x"] + 240.2 * scale, bounds["y"] + 160.2 * scale)
    page.mouse.down()
    page.mouse.move(bounds["x"] + 30.4 * scale, bounds["y"] + 20.4 * scale, steps=3)
    page.mouse.up()
    expect(card.locator(".pooled")).to_be_visible()
    assert [edge.input_value() for edge in edges] == ["30", "20", "240", "160"]
    edges[0].fill("250")
    edges[0].press("Enter")
    edges[1].focus()
    expect(card.get_by_role("alert")).to_contain_text("Left must be less than right")
    edges[0].fill("100.5")
    edges[1].focus()
    expect(card.get_by_role("alert")).to_have_count(0)
    box = "[100.5, 20, 240, 160]"
    cells = ask(features_url, "/v1/explain", data, box=box)["cells"]
    expect(card.locator(".pooled")).to_contain_text(
        f"pools {grid(cells[3] - cells[1], cells[2] - cells[0])} into one vector."
    )
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "a.png.safetensors"
    vectors = load_tensors(Path(download.value.path()).read_bytes())["vectors"]
    form = {"boxes": f"[{box}]", "output": "safetensors"}
    expected = httpx.post(f"{features_url}/v1/features", files={"image": ("a", data)}, data=form).content
    assert torch.equal(vectors, load_tensors(expected)["vectors"])


def test_decodes_png_masks_exactly(visit: Ask, segment_url: str) -> None:
    """Palettes of 1, 2, 4 and 8 bits, grayscale of 8 and 16 bits, and every PNG filter."""
    page, rng = visit(segment_url), np.random.default_rng(0)
    rows, columns = np.mgrid[:37, :53]
    cases: list[tuple[bytes, np.ndarray]] = []
    for count, bits in ((2, 1), (4, 2), (16, 4), (256, 8)):
        values = (rng.integers(0, 2, (37, 53)) + (rows // 5 + columns // 7)) % count
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette(rng.integers(0, 256, 3 * count, dtype=np.uint8).tobytes())
        cases.append((as_file(picture, bits=bits), values))
    smooth = rows * 3 + columns * 2 + rng.integers(0, 3, (37, 53))
    cases.append((as_file(Image.fromarray((smooth % 256).astype(np.uint8))), smooth % 256))
    cases.append((as_file(Image.fromarray((smooth * 40).astype(np.uint16))), smooth * 40))
    cases.extend((filtered(smooth % 256, number), smooth % 256) for number in range(5))
    for data, expected in cases:
        decoded = page.evaluate(
            """async (text) => {
                const { decodePng } = await import("/page/png.js");
                const { width, height, values } = await decodePng(text);
                return { width, height, values: [...values] };
            }""",
            base64.b64encode(data).decode(),
        )
        assert (decoded["height"], decoded["width"]) == (37, 53)
        assert np.array_equal(np.array(decoded["values"]).reshape(37, 53), expected)


def filtered(values: np.ndarray, number: int) -> bytes:
    """Encode a grayscale PNG with the given filter on every row."""
    height, width = values.shape
    padded = np.zeros((height + 1, width + 1), int)
    padded[1:, 1:] = values
    left, up, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    estimate = left + up - corner
    distances = np.stack([abs(estimate - neighbor) for neighbor in (left, up, corner)])
    paeth = np.choose(distances.argmin(0), [left, up, corner])
    rest = (values - [0 * left, left, up, (left + up) // 2, paeth][number]) % 256
    lines = np.concatenate([np.full((height, 1), number), rest], 1).astype(np.uint8).tobytes()
    out = b"\x89PNG\r\n\x1a\n"
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ):
        out += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return out
