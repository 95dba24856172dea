"""The server's page in a real browser: adding photographs, and results by mouse and keyboard."""

import base64
import re
import socket
import time
import urllib.error
import urllib.request
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from sppnet.serving.limits import Limits
from tests.helpers.browsing import (
    TOKEN,
    Ask,
    add,
    add_one,
    as_file,
    ask,
    check_names,
    classifier,
    color_share,
    expect,
    painted,
    photograph,
    serving,
    signed,
)

pytest_plugins = ("tests.helpers.browsing",)


def test_shows_prediction_and_bins(visit: Ask, classify_url: str) -> None:
    page, data = visit(classify_url), as_file(photograph())
    card = add_one(page, data)
    answer = ask(classify_url, "/v1/predict", data)
    explained = ask(classify_url, "/v1/explain", data)
    expect(card.get_by_role("strong").first).to_have_text(answer["label"])
    expect(page.locator("#status")).to_contain_text("Contributions to the logit")
    expect(page.locator("#strip button")).to_contain_text(f"{answer['label']}, {100 * answer['score']:.1f}")
    expect(card.get_by_role("radio")).to_have_count(5 + 5)
    expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()
    pixels = painted(card.get_by_role("img"))
    assert pixels.shape[0] / pixels.shape[1] == pytest.approx(120 / 180, abs=0.01)
    assert color_share(pixels) > 0.5
    table = card.get_by_role("table", name="Logit of")
    for level, row in zip(explained["levels"], table.get_by_role("row").all()[1:], strict=False):
        expect(row).to_contain_text(signed(sum(part["contribution"] for part in level["bins"])))
    expect(table.get_by_role("row", name="bias")).to_contain_text(signed(explained["rest"]))
    expect(table.get_by_role("row", name="logit", exact=False).last).to_contain_text(signed(explained["logit"]))
    expect(card).to_contain_text("add up to the logit exactly")


@pytest.mark.parametrize(
    ("sides", "outside"), [((134, 200), True), ((60, 109), True), ((133, 200), False), ((60, 110), False)]
)
def test_warns_about_sizes_well_outside_the_training_range(visit: Ask, sides: tuple[int, int], outside: bool) -> None:
    with serving(classifier(sides=sides)) as url:
        card = add_one(visit(url), as_file(photograph(120, 180)))
        expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()
        warning = f"trained on photographs with a shorter side of {sides[0]} to {sides[1]} pixels"
        expect(card.get_by_text(warning)).to_have_count(int(outside))


def test_selects_levels_and_reads_bins_by_keyboard(visit: Ask, classify_url: str) -> None:
    page, data = visit(classify_url), as_file(photograph())
    card, explained = add_one(page, data), ask(classify_url, "/v1/explain", data)
    card.get_by_role("radio", name="3 × 3 bins").focus()
    before = painted(card.get_by_role("img"))
    page.keyboard.press("ArrowRight")
    expect(card.get_by_role("radio", name="2 × 2 bins")).to_be_checked()
    assert not np.array_equal(painted(card.get_by_role("img")), before)
    card.get_by_role("group", name="Photograph and bins").focus()
    for keys, index, position in (("ArrowLeft", 0, "Row 1, column 1"), ("ArrowDown ArrowRight", 3, "Row 2, column 2")):
        for key in keys.split():
            page.keyboard.press(key)
        value = signed(explained["levels"][1]["bins"][index]["contribution"])
        expect(card.locator(".readout")).to_contain_text(f"{position}: {value}")
    page.keyboard.press("Escape")
    expect(card.locator(".readout")).to_contain_text("Point at a bin")
    card.get_by_text("All values as a table").click()
    for level, name in zip(explained["levels"], ("3 × 3 bins", "2 × 2 bins", "1 bin"), strict=True):
        card.get_by_role("radio", name=name).check()
        cells = card.get_by_role("region", name="Contribution of each bin").get_by_role("cell").all_inner_texts()
        assert cells == [signed(part["contribution"]) for part in level["bins"]]


def test_reads_cells_by_mouse_and_hides_the_overlay(visit: Ask, classify_url: str) -> None:
    page, image = visit(classify_url), photograph()
    card, cells = add_one(page, as_file(image)), ask(classify_url, "/v1/explain", as_file(image))["cells"]
    card.get_by_role("radio", name="4 rows × 6 columns of cells").check()
    canvas = card.get_by_role("img")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] - 12, "y": box["height"] - 12})
    expect(card.locator(".readout")).to_contain_text(f"Row 4, column 6: {signed(cells['values'][-1])}")
    card.get_by_role("radio", name="photograph only").check()
    expect(card.locator(".readout")).to_be_hidden()
    shown = Image.fromarray(painted(canvas)).convert("RGB").resize(image.size)
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(image)).mean() < 20


def test_explains_another_class(visit: Ask, classify_url: str) -> None:
    page, data = visit(classify_url), as_file(photograph())
    card = add_one(page, data)
    second = ask(classify_url, "/v1/predict", data)["top"][1]["label"]
    explained = ask(classify_url, "/v1/explain", data, label=second)
    before = painted(card.get_by_role("img"))
    card.get_by_role("radio", name=second).check()
    table = card.get_by_role("table", name=f"Logit of “{second}”")
    expect(table.get_by_role("row").last).to_contain_text(signed(explained["logit"]))
    assert not np.array_equal(painted(card.get_by_role("img")), before)


def test_compares_native_warp_and_crop(visit: Ask, classify_url: str) -> None:
    page, data = visit(classify_url), as_file(photograph(200, 300))
    card = add_one(page, data)
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
    expect(columns.last).to_contain_text("of the photograph is cropped away")


def test_broken_file_shows_an_error_and_the_next_is_processed(visit: Ask, classify_url: str) -> None:
    page = visit(classify_url, 415)
    files = ("broken.jpg", b"no image"), ("huge.bin", bytes(400_000)), ("whole.png", as_file(photograph()))
    add(page, *files)
    refused = page.get_by_role("article", name="broken.jpg")
    expected = httpx.post(f"{classify_url}/v1/predict", files={"image": ("a", b"no image")}).json()["message"]
    expect(refused.get_by_role("alert")).to_have_text(expected)
    expect(refused.get_by_role("button", name="Try again")).to_have_count(0)
    strip = page.get_by_role("navigation", name="Photographs").get_by_role("button")
    expect(strip.nth(0)).to_contain_text("failed")
    expect(strip.nth(2)).to_contain_text("%")
    strip.nth(1).click()
    message = "The file has 0.4 MB; this server accepts at most 0.3 MB."
    expect(page.get_by_role("alert").filter(visible=True)).to_have_text(message)
    strip.nth(2).click()
    expect(page.get_by_role("article", name="whole.png").get_by_role("radio", name="3 × 3 bins")).to_be_checked()
    page.get_by_role("button", name="Remove whole.png").click()
    expect(strip).to_have_count(2)


def test_double_click_on_try_again_sends_one_request(visit: Ask, classify_url: str) -> None:
    """This also holds while other requests run; removing their photographs aborts them."""
    page = visit(classify_url, 500)
    page.route("**/v1/predict", lambda route: route.fulfill(status=500, json={"code": "internal", "message": "no"}))
    card = add_one(page, name="broken.jpg")
    retry = card.get_by_role("button", name="Try again")
    expect(retry).to_be_visible()
    pending: list[Any] = []
    page.route("**/v1/predict", lambda route: pending.append(route))  # never answered
    add(page, *((f"{name}.png", as_file(photograph())) for name in "ab"))
    expect(page.locator("#strip")).to_contain_text("b.png")
    while len(pending) < 2:
        page.wait_for_timeout(10)
    page.locator("#strip button", has_text="broken.jpg").click()
    retry.evaluate("node => { node.click(); node.click(); }")
    expect(card).to_contain_text("Queued …")
    for name in "ab":
        page.locator("#strip button", has_text=f"{name}.png").click()
        page.get_by_role("button", name=f"Remove {name}.png").click()
    while len(pending) < 3:
        page.wait_for_timeout(10)
    page.wait_for_timeout(200)
    assert len(pending) == 3
    pending[2].continue_()
    expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()


def test_accepts_dropped_and_pasted_photographs(visit: Ask, classify_url: str) -> None:
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


def test_classifies_files_that_the_browser_cannot_display(visit: Ask, classify_url: str) -> None:
    card = add_one(visit(classify_url), as_file(photograph(), "TIFF"), "a.tif")
    expect(card).to_contain_text("This browser cannot display this file type")
    expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()
    assert color_share(painted(card.get_by_role("img"))) > 0.5


def test_applies_the_exif_orientation(visit: Ask, classify_url: str) -> None:
    image = photograph(100, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    card = add_one(visit(classify_url), as_file(image, "JPEG", exif=exif, quality=95), "a.jpg")
    card.get_by_role("radio", name="photograph only").check()
    pixels = painted(card.get_by_role("img"))
    upright = image.transpose(Image.Transpose.ROTATE_270).resize((pixels.shape[1], pixels.shape[0]))
    assert pixels.shape[0] / pixels.shape[1] == pytest.approx(2, abs=0.05)
    assert np.abs(pixels[..., :3].astype(int) - np.asarray(upright)).mean() < 25
    expect(card).to_contain_text("100 × 200 pixels")


def test_asks_for_a_token_and_keeps_it_in_memory_only(visit: Ask) -> None:
    with serving(classifier(), TOKEN) as url:
        page = visit(url, 401)
        add(page, ("early.png", as_file(photograph())))
        expect(page.get_by_label("Token")).to_be_focused()
        for text in ("a wrong one", TOKEN):
            page.get_by_label("Token").fill(text)
            page.keyboard.press("Enter")
            if text != TOKEN:
                expect(page.get_by_role("alert")).to_have_text("This token is not valid.")
        expect(page.get_by_role("article").get_by_role("radio", name="3 × 3 bins")).to_be_checked()
        expect(page.get_by_label("Token")).to_be_hidden()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_retries_while_the_queue_is_full(visit: Ask) -> None:
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
            with page.expect_response("**/v1/predict") as response:
                card = add_one(page)
            assert response.value.status == 503
        expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()


@pytest.mark.parametrize("kind", ["classify", "detect", "segment", "features"])
def test_controls_are_named_and_the_page_fits_a_phone(visit: Ask, request: pytest.FixtureRequest, kind: str) -> None:
    page = visit(request.getfixturevalue(f"{kind}_url"))
    page.set_viewport_size({"width": 360, "height": 740})
    card = add_one(page, name="a-rather-long-name-of-a-photograph-that-does-not-end.png")
    if kind == "detect":
        card.get_by_role("list", name="Objects").get_by_role("button").first.click()
    last = {"classify": "table", "detect": ".pooled", "segment": ".taps table", "features": ".pooled"}[kind]
    expect(card.locator(last).first).to_be_attached()
    if kind == "classify":
        card.get_by_role("button", name="Compare").click()
        expect(card.locator("h4")).to_have_count(3)
    page.get_by_text("How does it work?").click()
    assert check_names(page) > 8
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    levels = [int(node.evaluate("node => node.tagName[1]")) for node in page.locator("h1, h2, h3, h4").all()]
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_meet_wcag_contrast(visit: Ask, classify_url: str, scheme: str) -> None:
    """WCAG requires a contrast of 4.5 for text and 3 for the borders of controls."""
    page = visit(classify_url, color_scheme=scheme)
    names = ["text", "muted", "background", "card", "accent", "on-accent", "control", "error", "error-background"]
    script = "(names) => names.map((name) => getComputedStyle(document.body).getPropertyValue(`--${name}`).trim())"
    color = dict(zip(names, page.evaluate(script, names), strict=True))
    for ground in ("background", "card"):
        assert min(contrast(color[name], color[ground]) for name in ("text", "muted", "accent")) >= 4.5
        assert contrast(color["control"], color[ground]) >= 3
    assert contrast(color["on-accent"], color["accent"]) >= 4.5
    assert contrast(color["error"], color["error-background"]) >= 4.5


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    digits = color.lstrip("#")
    linear = []
    for pair in re.findall("..", digits if len(digits) == 6 else "".join(2 * digit for digit in digits)):
        value = int(pair, 16) / 255
        linear.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_bins_are_drawn_without_overlap(visit: Ask, classify_url: str) -> None:
    """Bins that share cells meet in the middle of them; with fewer cells than bins, all are drawn at the same size."""
    page = visit(classify_url)
    script = """async (level) => {
        const { binRects, overlap } = await import("/page/overlay.js");
        return [binRects(level), overlap(level)];
    }"""
    bins = [{"box": [left, 0, right, 10]} for left, right in ((0, 40), (30, 70), (60, 100))]
    rects, shared = page.evaluate(script, {"rows": 1, "columns": 3, "bins": bins})
    assert (rects, shared) == ([[0, 0, 35, 10], [35, 0, 65, 10], [65, 0, 100, 10]], True)
    apart = [{"box": [left, top, left + 30, top + 10]} for top in (0, 10) for left in (0, 30)]
    assert page.evaluate(script, {"rows": 2, "columns": 2, "bins": apart}) == [[part["box"] for part in apart], False]
    same = [{"box": [0, 0, 90, 60]}] * 9
    rects, _ = page.evaluate(script, {"rows": 3, "columns": 3, "bins": same})
    assert rects[4] == [30, 20, 60, 40]


def test_page_has_a_strict_content_security_policy(classify_url: str) -> None:
    for name in ("", "page/main.js", "page/style.css", "page/icon.svg"):
        with urllib.request.urlopen(f"{classify_url}/{name}") as response:
            assert "default-src 'self'" in response.headers["Content-Security-Policy"]
            text = response.read().decode()
            assert "unsafe" not in response.headers["Content-Security-Policy"]
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    with pytest.raises(urllib.error.HTTPError, match="404"), urllib.request.urlopen(f"{classify_url}/page/none.js"):
        pass
