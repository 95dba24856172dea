"""The page of the server, in a real browser: photographs in, answers in view, by mouse and by keyboard."""

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
    as_file,
    ask,
    check_names,
    classifier,
    colourful,
    expect,
    give,
    one,
    painted,
    photograph,
    serving,
    signed,
)

pytest_plugins = ("browsing",)


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
    table = card.get_by_role("table", name="The logit of")
    for level, row in zip(explained["levels"], table.get_by_role("row").all()[1:], strict=False):
        expect(row).to_contain_text(signed(sum(one["contribution"] for one in level["bins"])))
    expect(table.get_by_role("row", name="bias")).to_contain_text(signed(explained["rest"]))
    expect(table.get_by_role("row", name="logit", exact=False).last).to_contain_text(signed(explained["logit"]))
    expect(card).to_contain_text("add up to the logit exactly")


@pytest.mark.parametrize(("sides", "strange"), [((121, 200), True), ((60, 119), True), ((120, 120), False)])
def test_sizes_that_the_network_never_saw_are_told(visit: Ask, sides: tuple[int, int], strange: bool) -> None:
    with serving(classifier(sides=sides)) as url:
        card = one(visit(url), as_file(photograph(120, 180)))
        expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()
        told = f"trained on photographs whose shorter side had {sides[0]} to {sides[1]} pixels"
        expect(card.get_by_text(told)).to_have_count(int(strange))


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
    table = card.get_by_role("table", name=f"The logit of “{second}”")
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
    expect(refused.get_by_role("button", name="Try again")).to_have_count(0)
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


def test_try_again_pressed_twice_asks_once(visit: Ask, classify_url: str) -> None:
    """While others are at the server, too; what removes a photograph ends its request."""
    page = visit(classify_url, 500)
    page.route("**/v1/predict", lambda route: route.fulfill(status=500, json={"code": "internal", "message": "no"}))
    card = one(page, name="broken.jpg")
    again = card.get_by_role("button", name="Try again")
    expect(again).to_be_visible()
    asked: list[Any] = []
    page.route("**/v1/predict", lambda route: asked.append(route))  # which answers nothing
    give(page, *((f"{name}.png", as_file(photograph())) for name in "ab"))
    expect(page.locator("#strip")).to_contain_text("b.png")
    while len(asked) < 2:
        page.wait_for_timeout(10)
    page.locator("#strip button", has_text="broken.jpg").click()
    again.evaluate("node => { node.click(); node.click(); }")
    expect(card).to_contain_text("It waits for its turn.")
    for name in "ab":
        page.locator("#strip button", has_text=f"{name}.png").click()
        page.get_by_role("button", name=f"Remove {name}.png").click()
    while len(asked) < 3:
        page.wait_for_timeout(10)
    page.wait_for_timeout(200)
    assert len(asked) == 3
    asked[2].continue_()
    expect(card.get_by_role("radio", name="3 × 3 bins")).to_be_checked()


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
