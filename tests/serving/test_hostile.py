"""Malicious and invalid requests: each gets a documented response, and the server remains available."""

import json
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.defects import bomb
from tests.helpers.hostile_clients import (
    FORM,
    PHOTOGRAPH,
    Server,
    encoded,
    form,
    noise,
    save_small_classifier,
    serving,
)
from tests.helpers.polling import TIMEOUT

TOKEN = "a-token-of-some-length"
BYTES, QUEUE = 2_000_000, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def servers(model: Path) -> Iterator[tuple[Server, Server]]:
    """Servers of a classifier without a token, and of regions with one."""
    upload = ("--upload-seconds", str(TIMEOUT))
    limits = ("--max-bytes", str(BYTES), "--queue", str(QUEUE), *upload)
    (model / "token").write_text(TOKEN)
    regions = ("zf5", "--regions", "--levels", "2,1", "--scales", "120", "--token-file", str(model / "token"), *upload)
    with serving(str(model), *limits) as classifier, serving(*regions) as encoder:
        assert classifier.send(PHOTOGRAPH).status == 200
        yield classifier, encoder


@pytest.fixture
def classify(servers: tuple[Server, Server]) -> Iterator[Server]:
    """Server that is checked after each test."""
    yield servers[0]
    servers[0].check_health()


@pytest.fixture
def regions(servers: tuple[Server, Server]) -> Iterator[Server]:
    yield servers[1]
    answer = servers[1].send(PHOTOGRAPH, "/v1/features", BEARER, boxes="[[0, 0, 50, 50]]")
    assert (answer.status, json.loads(answer.body)["size"]) == (200, [90, 120])


BEARER = b"Authorization: Bearer " + TOKEN.encode()

FORMATS = {kind: encoded(noise(90, 120), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")}
ANIMATED = encoded(
    noise(60, 70), "GIF", save_all=True, append_images=[noise(60, 70).rotate(90), noise(60, 70).rotate(180)]
)


def header_of(height: int, width: int, kind: str) -> bytes:
    """Return a file whose header states a size that its data does not have."""
    data = bytearray(FORMATS[kind])
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


@pytest.mark.parametrize(("file", "size"), [
    *((file, [90, 120]) for file in FORMATS.values()),
    (encoded(Image.fromarray(np.full((60, 70), 40_000, np.uint16)), "PNG"), [60, 70]),
    (encoded(noise(60, 70, "CMYK"), "JPEG"), [60, 70]),
    (encoded(noise(60, 70, "RGBA"), "PNG"), [60, 70]),
    (encoded(noise(60, 70, "1"), "PNG"), [60, 70]),
    (ANIMATED, [60, 70]),
    (FORMATS["PNG"] + b"PK\x03\x04 trailing data" * 100, [90, 120]),
])  # fmt: skip
def test_accepts_unusual_image_files(classify: Server, file: bytes, size: list[int]) -> None:
    answer = classify.send(file)
    assert answer.status == 200, answer.body
    assert json.loads(answer.body)["size"] == size


@pytest.mark.parametrize(("file", "code", "message"), [
    (b"", "not_an_image", "empty"),
    (b"text, not an image " * 100, "not_an_image", "not an image"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/a.png'/></svg>", "not_an_image", "not an"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", "not_an_image", ""),
    (b"http://127.0.0.1/a.png", "not_an_image", "not an image"),
    (b"PK\x03\x04" + bytes(500), "not_an_image", "not an image"),
    (bytes(100_000), "not_an_image", "not an image"),
    *((file[: len(file) // 2], "not_an_image", "") for file in FORMATS.values()),
    *((file[:12], "not_an_image", "") for file in FORMATS.values()),
    (bomb(7_000, "RGB"), "not_an_image", "decompression bomb: 7000 x 7000 pixels"),
    (bomb(9_000, "RGB"), "too_many_pixels", "got 9000 x 9000"),
    (bomb(9_000, "1"), "too_many_pixels", "got 9000 x 9000"),
    (header_of(7_000, 7_000, "PNG"), "not_an_image", ""),
    (header_of(2**31 - 1, 2**31 - 1, "PNG"), "too_many_pixels", ""),
    (header_of(7_000, 7_000, "BMP"), "not_an_image", ""),
    (encoded(noise(1, 1), "PNG"), "too_small", "1 x 1 pixels is too small for zf5, which needs at least"),
    (encoded(noise(30_000, 1), "PNG"), "too_small", "30000 x 1 pixels"),
    (encoded(Image.new("1", (65_501, 40)), "PNG"), "too_many_pixels", "sides of at most 65500"),
])  # fmt: skip
def test_rejects_invalid_image_files(classify: Server, file: bytes, code: str, message: str) -> None:
    for path in ("/v1/predict", "/v1/explain"):
        assert message in classify.send(file, path).refusal(code)


@pytest.mark.slow
def test_decompression_bombs_do_not_fill_the_memory(classify: Server) -> None:
    before = classify.peak_memory()
    for side, mode in ((9_000, "RGB"), (7_000, "RGB"), (7_000, "1"), (7_000, "P"), (7_000, "RGBA")):
        for path in ("/v1/predict", "/v1/explain"):
            assert classify.send(bomb(side, mode), path).status in (415, 422)
    assert classify.peak_memory() - before < 40_000_000  # each decoded image takes 147 MB


def test_accepts_a_long_narrow_photograph(classify: Server) -> None:
    answer = classify.send(encoded(Image.new("RGB", (20_000, 40), (9, 99, 200)), "JPEG"))
    assert json.loads(answer.body)["size"] == [40, 20_000]


PLAIN = form(PHOTOGRAPH)


@pytest.mark.parametrize(("body", "type"), [
    (b"", FORM),
    (b"", b""),
    (b"--b--\r\n", FORM),
    (PLAIN, b"multipart/form-data"),
    (PLAIN, b"multipart/form-data; boundary="),
    (PLAIN, b"multipart/form-data; boundary=other"),
    (PLAIN, b"multipart/form-data; boundary=" + b"b" * 5_000),
    (PLAIN, b"text/plain"),
    (PLAIN, b"application/x-www-form-urlencoded"),
    (b'{"image": "http://127.0.0.1/a.png"}', b"application/json"),
    (b"[" * 100_000, b"application/json"),
    (PHOTOGRAPH, b"image/png"),
    (PLAIN[:200], FORM),
    (PLAIN[:-6], FORM),
    (b"--b\r\n" * 1_000, FORM),
    (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", FORM),
    (b"--b\r\nContent-Disposition: form-data; name=image\r\n" + b"X: y\r\n" * 20_000 + b"\r\nx\r\n--b--\r\n", FORM),
    (form(b"x", **{f"field{number}": "x" for number in range(3_000)}), FORM),
    (form(PHOTOGRAPH, name="picture"), FORM),
    (form(b"").replace(b'; filename="a.png"', b"").replace(b"\r\n\r\n", b"\r\n\r\nhttp://127.0.0.1/a.png"), FORM),
    (b"\x00\xff" * 1_000, FORM),
])  # fmt: skip
def test_rejects_bodies_that_are_not_forms(classify: Server, body: bytes, type: bytes) -> None:
    classify.ask("POST", "/v1/predict", body, type).refusal("bad_request")


@pytest.mark.parametrize("charset", ["punycode", "idna", '"utf-7"', "utf_16", "no-such"])
def test_rejects_charsets_other_than_utf_8(classify: Server, charset: str) -> None:
    """Some of Python's decoders take minutes for a megabyte."""
    parameter = f"; charset={charset}".encode()
    message = classify.ask("POST", "/v1/predict", form(PHOTOGRAPH), FORM + parameter).refusal("bad_request")
    assert "content-type: expected the charset utf-8" in message
    assert classify.ask("POST", "/v1/predict", form(PHOTOGRAPH), FORM + b"; charset=UTF-8").status == 200


@pytest.mark.parametrize(
    "header",
    [
        b"multipart/form-data; charset=utf-8; charset=punycode; boundary=b",
        b"multipart/form-data; boundary=b; charset=utf-8; CHARSET = punycode",
        b'multipart/form-data; x="charset=utf-8"; charset=punycode; boundary=b',
        b'multipart/form-data; charset="punycode"; boundary=b',
        b"multipart/form-data; charset=utf-8; boundary=b; x=" + b"y" * 500,
        b"multipart/form-data; boundary=" + b"b" * 71,
        b'multipart/form-data; boundary="b\xe4"',
        b"multipart/form-data; boundary=b\r\nContent-Type: multipart/form-data; charset=punycode; boundary=b",
    ],
)
@pytest.mark.parametrize("part", ["name", "value"])
def test_rejects_forms_in_charsets_with_slow_decoders(classify: Server, header: bytes, part: str) -> None:
    long = "a" * 1_040_000
    body = form(PHOTOGRAPH, **{long: "x"}) if part == "name" else form(PHOTOGRAPH, resize=long)
    classify.ask("POST", "/v1/predict", body, header).refusal("bad_request")


@pytest.mark.parametrize("parameter", [b"xcharset=punycode", b'x="charset=punycode"', b"charset=utf8", b"x=y"])
def test_accepts_forms_whose_charset_is_utf_8(classify: Server, parameter: bytes) -> None:
    assert classify.ask("POST", "/v1/predict", form(PHOTOGRAPH), FORM + b"; " + parameter).status == 200


def test_error_messages_truncate_long_values(classify: Server) -> None:
    for field in ("label", "resize"):
        for text in ("x" * 900_000, "\x01" * 900_000, "warp:" + "9" * 900_000):
            answer = classify.send(PHOTOGRAPH, "/v1/explain", **{field: text})
            answer.refusal("bad_option")
            assert len(answer.body) < 1_000


def test_paths_with_extra_slashes_are_not_found(classify: Server) -> None:
    for path in ("/health/", "/v1/predict/", "//evil.example/"):
        classify.ask("GET", path).refusal("not_found")


def test_file_names_are_returned_without_folders(classify: Server) -> None:
    long = "a" * 2_000
    kept = {name: name for name in ("\u00fcber.png", "a.exe", "|id", "%00")}
    for name, source in {"../../../etc/passwd": "passwd", long: long[:255], **kept}.items():
        answer = classify.ask("POST", "/v1/predict", form(PHOTOGRAPH, filename=name))
        assert (answer.status, json.loads(answer.body)["source"]) == (200, source)


def test_two_photographs_get_one_response(classify: Server) -> None:
    two = form(PHOTOGRAPH)[:-7] + b"\r\n" + form(FORMATS["JPEG"])
    assert classify.ask("POST", "/v1/predict", two).status in (200, 400)


def test_urls_are_never_fetched(classify: Server, regions: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        text = form(b"").replace(b'; filename="a.png"', b"").replace(b"\r\n\r\n", b"\r\n\r\n" + url.encode(), 1)
        assert url.encode() in text
        classify.ask("POST", "/v1/predict", text).refusal("bad_request")
        classify.send(url.encode()).refusal("not_an_image")
        classify.send(PHOTOGRAPH, resize=url).refusal("bad_option")
        classify.ask("POST", "/v1/predict?image=" + url, b"").refusal("bad_request")
        regions.send(url.encode(), "/v1/features", BEARER, boxes="[]").refusal("not_an_image")
        trap.settimeout(0.5)
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize(("boxes", "code", "message"), [
    (json.dumps([[0, 0, 9, 9]] * 10_000), "too_many_boxes", "expected at most 1000, got 10000"),
    ("[[0, 0, NaN, 9]]", "bad_boxes", "boxes[0]: expected finite"),
    ("[[0, 0, Infinity, 9]]", "bad_boxes", "boxes[0]: expected finite"),
    ("[[-1e999, 0, 9, 9]]", "bad_boxes", "boxes[0]: expected finite"),
    ("[[0, 0, 1e39, 9]]", "bad_boxes", "boxes[0]: expected finite"),
    (f"[[0, 0, 1{'0' * 4_000}, 9]]", "bad_boxes", ""),
    (f"[[0, 0, 1{'0' * 5_000}, 9]]", "bad_boxes", ""),
    ("[[9, 9, 3, 3]]", "bad_boxes", "boxes[0]: expected finite"),
    ("[[500, 500, 600, 600]]", "bad_boxes", "boxes[0]: expected finite"),
    ("[" * 100_000 + "]" * 100_000, "bad_boxes", "expected JSON"),
    ('{"a":' * 100_000, "bad_boxes", "expected JSON"),
    ("[[null, 0, 9, 9]]", "bad_boxes", "expected JSON"),
    ("[[true, 0, 9, 9]]", "bad_boxes", "expected JSON"),
    ('[["0", 0, 9, 9]]', "bad_boxes", "expected JSON"),
    ("[[0, 0, 9]]", "bad_boxes", "expected JSON"),
    ("[[[0, 0, 9, 9]]]", "bad_boxes", "expected JSON"),
    ("null", "bad_boxes", "expected JSON"),
    ('"[[0, 0, 9, 9]]"', "bad_boxes", "expected JSON"),
    ("", "bad_boxes", ""),
    ("\x00\ufffd", "bad_boxes", "expected JSON"),
])  # fmt: skip
def test_rejects_invalid_boxes(regions: Server, boxes: str, code: str, message: str) -> None:
    answer = regions.send(PHOTOGRAPH, "/v1/features", BEARER, boxes=boxes)
    if not boxes:
        code = json.loads(answer.body)["code"]
        assert code in ("bad_boxes", "bad_request")
    assert message in answer.refusal(code)


def test_accepts_boxes_that_extend_beyond_the_photograph(regions: Server) -> None:
    boxes = "[[-1e6, -1e6, 1e6, 1e6], [-5, -5, 3, 3], [0.1, 0.1, 0.2, 0.2], [119.9, 89.9, 1e30, 1e30]]"
    vectors = json.loads(regions.send(PHOTOGRAPH, "/v1/features", BEARER, boxes=boxes).body)["vectors"]
    assert np.isfinite(np.array(vectors)).all()
    assert len(vectors) == 4


def test_serves_only_the_files_of_the_page(classify: Server) -> None:
    assert classify.ask("GET", "/page/main.js").type.startswith("text/javascript")
    for path in (
        "/page/", "/page/..", "/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/%2e%2e%2fapp.py",
        "/page/..%5capp.py", "/page//etc/passwd", "/page/%2fetc%2fpasswd", "/page/main.js/..", "/page/main.js%00.png",
        "/page/__init__.py", "/page/.", "/../../etc/passwd", "//etc/passwd", "/page/....//app.py", "/page/main.js~",
    ):  # fmt: skip
        answer = classify.ask("GET", path)
        assert b"import" not in answer.body
        assert b"root:" not in answer.body
        answer.refusal("not_found")


def test_rejects_unsupported_methods(classify: Server) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "BREW"):
        classify.ask(method, "/v1/predict").refusal("bad_method")
    classify.ask("POST", "/health", bytes(50_000)).refusal("bad_method")


def test_api_requires_the_exact_token(regions: Server) -> None:
    body = form(PHOTOGRAPH, boxes="[]")
    token = TOKEN.encode()
    wrong = [
        (), (b"Authorization: Bearer",), (b"Authorization: Bearer ",), (b"Authorization: Bearer " + token[:-1],),
        (b"Authorization: Bearer " + token + b"x",), (b"Authorization: Basic " + token,), (b"Authorization: " + token,),
        (b"Authorization: Bearer \xff\xfe",), (b"X-Authorization: Bearer " + token,), (b"Cookie: token=" + token,),
        (b"Authorization: Bearer " + b"x" * 10_000,), (b"Authorization: Bearer wrong", BEARER),
    ]  # fmt: skip
    for path in ("/v1/features", "/v1/explain", "/v1/model", "/v1/none", "/v1/../v1/model", "/v1%2fmodel"):
        for headers in wrong:
            answer = regions.ask("POST", path, body, FORM, *headers)
            answer.refusal("unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert regions.ask("GET", f"/v1/model?token={TOKEN}").status == 401
    assert regions.ask("GET", "/v1/model", b"", FORM, BEARER).status == 200
    assert regions.ask("GET", "/v1/model", b"", FORM, b"authorization: bearer  " + token).status == 200
    for path in ("/", "/page/main.js", "/health", "/ready"):
        assert regions.ask("GET", path).status == 200
    for path in ("//v1/model", "/V1/model", "/v1", "/./v1/model", "/page/../v1/model"):
        regions.ask("GET", path).refusal("not_found")


def test_photographs_are_not_decoded_without_the_token(regions: Server) -> None:
    before = regions.metric("sppnet_pixels_total")
    regions.send(PHOTOGRAPH, "/v1/features", boxes="[[0, 0, 9, 9]]").refusal("unauthorized")
    assert regions.metric("sppnet_pixels_total") == before
