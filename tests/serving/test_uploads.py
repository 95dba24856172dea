"""Checks of uploads: images and boxes."""

import io

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from sppnet.serving.uploads import upload_name
from tests.helpers.web_clients import photograph, post, refusal

pytest_plugins = ("tests.helpers.web_clients",)


def test_rejects_files_that_are_not_images(classify: TestClient) -> None:
    assert refusal(post(classify, "/v1/predict", b"a list of things"), 415, "not_an_image") == (
        "not an image: the file begins with 'a'"
    )
    assert refusal(post(classify, "/v1/predict", b""), 415, "not_an_image") == "file is empty"
    assert refusal(post(classify, "/v1/predict", photograph()[:-2000]), 415, "not_an_image") == "file is truncated"


def test_rejects_too_many_pixels_or_boxes_and_too_small_photographs(classify: TestClient, features: TestClient) -> None:
    file = io.BytesIO()
    Image.new("1", (201, 200)).save(file, "PNG")
    assert refusal(post(classify, "/v1/predict", file.getvalue()), 422, "too_many_pixels") == (
        "image: expected at most 40000 pixels and sides of at most 65500, got 200 x 201 (height x width), 40200 pixels"
    )
    boxes = str([[0, 0, 9, 9]] * 6)
    assert refusal(post(features, "/v1/features", boxes=boxes), 400, "too_many_boxes") == (
        "boxes: expected at most 5, got 6"
    )
    message = refusal(post(classify, "/v1/predict", photograph(9, 60)), 422, "too_small")
    assert message == "image: 9 x 60 pixels is too small for zf5, which needs at least 31 x 31"


@pytest.mark.parametrize(
    ("filename", "source"),
    [
        ("a.png", "a.png"),
        ("größe 1.png", "größe 1.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.png", "a.png"),
        ("a\x00\n\u202eb.png", "ab.png"),
        ("x" * 1000, "x" * 255),
        ("..", "upload"),
        ("\n", "upload"),
        ("", "upload"),
        (None, "upload"),
    ],
)
def test_source_is_a_safe_file_name(filename: str | None, source: str) -> None:
    assert upload_name(filename) == source


def test_size_is_that_of_the_upright_photograph(classify: TestClient) -> None:
    image, file = Image.new("RGB", (120, 80), "red"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    assert post(classify, "/v1/predict", file.getvalue()).json()["size"] == [120, 80]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ("no", "expected JSON such as"),
        ("[[1, 2, 3]]", "expected JSON such as"),
        ("[1, 2, 3, 4]", "expected JSON such as"),
        ('[["a", 2, 3, 4]]', "expected JSON such as"),
        ("[" * 50_000, "expected JSON such as"),
        ("[[1, 2, 3, 1e999]]", r"boxes[0]: expected finite"),
        ("[[0, 0, 9, 9], [NaN, 2, 3, 4]]", r"boxes[1]: expected finite"),
        ("[[9, 0, 9, 9]]", r"boxes[0]: expected finite"),
        ("[[500, 0, 509, 9]]", r"boxes[0]: expected finite"),
    ],
)
def test_rejects_invalid_boxes(features: TestClient, boxes: str, message: str) -> None:
    assert message in refusal(post(features, "/v1/features", boxes=boxes), 400, "bad_boxes")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("no", "box: expected JSON such as [x1, y1, x2, y2], got 'no'"),
        ("[1, 2, 3]", "box: expected JSON such as [x1, y1, x2, y2], got '[1, 2, 3]'"),
        ("[[1, 2, 3, 4]]", "box: expected JSON such as"),
        ("[true, 2, 3, 4]", "box: expected JSON such as"),
        ("[9, 0, 9, 9]", "box[0]: expected finite"),
    ],
)
def test_rejects_an_invalid_box(features: TestClient, box: str, message: str) -> None:
    assert message in refusal(post(features, "/v1/explain", box=box), 400, "bad_boxes")
