"""The page of the server, in a real browser: what it shows of detectors, segmenters and region encoders."""

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

from tests.helpers.browsing import Ask, as_file, ask, colourful, expect, grid, one, painted, photograph

pytest_plugins = ("browsing",)


def test_the_threshold_says_which_objects_are_in_view(visit: Ask, detect_url: str) -> None:
    page, data = visit(detect_url), as_file(photograph())
    card, objects = one(page, data), ask(detect_url, "/v1/predict", data, min_score="-1.5")["objects"]
    for key, least in (("", 0.0), ("Home", -1.5), ("End", 3.0)):
        if key:
            card.get_by_label("Minimum score").press(key)
        count = sum(one["score"] >= least for one in objects)
        text = f"{count} object{'s' * (count != 1)} of {len(objects)} that were found"
        expect(card.get_by_role("status").first).to_have_text(text)
        expect(card.get_by_role("list", name="Objects").get_by_role("button")).to_have_count(count)
    assert len(objects) > sum(one["score"] >= 0 for one in objects) > 0


def test_a_chosen_object_shows_the_cells_that_its_box_pools(visit: Ask, detect_url: str) -> None:
    page, data = visit(detect_url), as_file(photograph())
    card, objects = one(page, data), ask(detect_url, "/v1/predict", data, min_score="-1.5")["objects"]
    first = card.get_by_role("list", name="Objects").get_by_role("button").first
    before = painted(card.get_by_role("img").first)
    assert colourful(before) > 0.2
    first.press("Enter")
    left, top, right, bottom = ask(detect_url, "/v1/explain", data, box=str(objects[0]["box"]))["cells"]
    expect(card.locator(".pooled")).to_contain_text(
        f"The box pools {grid(bottom - top, right - left)} into one vector."
    )
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


def test_of_two_boxes_chosen_quickly_the_later_is_shown(visit: Ask, detect_url: str) -> None:
    """The first one's answer is slow, and what the page says while it waits must not come over the second's."""
    page = visit(detect_url)
    card = one(page, as_file(photograph()))
    buttons = card.get_by_role("list", name="Objects").get_by_role("button")
    slow = [True]

    def later(route: Any) -> None:
        if slow.pop() if slow else False:
            page.wait_for_timeout(1_000)
        route.continue_()

    page.route("**/v1/explain", later)
    buttons.nth(0).click(no_wait_after=True)
    buttons.nth(1).click(no_wait_after=True)
    page.wait_for_timeout(1_500)
    expect(card.locator(".pooled")).to_be_visible()
    expect(card).not_to_contain_text("Asking for its cells")


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
    expect(card.locator(".pooled")).to_contain_text(
        f"pools {grid(cells[3] - cells[1], cells[2] - cells[0])} into one vector."
    )
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "a.png.safetensors"
    vectors = load_tensors(Path(download.value.path()).read_bytes())["vectors"]
    form = {"boxes": f"[{box}]", "output": "safetensors"}
    expected = httpx.post(f"{regions_url}/v1/features", files={"image": ("a", data)}, data=form).content
    assert torch.equal(vectors, load_tensors(expected)["vectors"])


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
