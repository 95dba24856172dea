"""Tests of the parsers of box files; tests/data/formats/test_boxes.py tests them together with images."""

from pathlib import Path

import pytest

from sppnet.data.formats.box_formats import BoxFormat
from sppnet.data.formats.box_rows import READERS, BoxRow
from tests.helpers.box_files import write_coco, write_csv, write_jsonl


def rows(file: Path, box_format: BoxFormat | None = None) -> list[BoxRow]:
    return list(READERS[file.suffix](file, box_format))


def test_rows_have_their_place_and_format(tmp_path: Path) -> None:
    file = write_csv(tmp_path, "image,x,y,w,h\n\na.jpg,1,2,3,4\n")
    assert rows(file) == [BoxRow("line 3", "a.jpg", [(1, 2, 3, 4)], None, "xywh")]
    assert rows(file, "xywh-normalised")[0].format == "xywh-normalised"
    entry = {"image": "a.jpg", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "ids": ["p", 7], "format": "xyxy"}
    assert rows(write_jsonl(tmp_path, entry)) == [
        BoxRow("line 1", "a.jpg", [(1, 2, 3, 4), (5, 6, 7, 8)], ["p", "7"], "xyxy")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"boxes\.csv, line 1: expected a header with one of image, path, file, file_name, and .* got ''"),
        ("a.jpg,1,2,3,4\n", "expected a header"),
        ("image,path,x,y,w,h\n", "expected a header"),
        ("image,x1,y1,x2,y2,x,y,w,h\n", "either x1, y1, x2, y2 or x, y, w, h, each once"),
        ("image,x,y,w,h,x\n", "expected a header"),
        ("image,x,y,w,h\na.jpg,1,2,3\n", r"boxes\.csv, line 2: expected 5 values, got 4"),
        ("image,x,y,w,h\n\na.jpg,1,,3,4\n", r"line 3: expected four numbers as the box, got \['1', '', '3', '4'\]"),
        ("image,x,y,w,h\n,1,2,3,4\n", "line 2: image: expected a value, got none"),
        ("image,x,y,w,h,id\na.jpg,1,2,3,4, \n", "line 2: id: expected a value, got none"),
    ],
)
def test_rejects_malformed_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(write_csv(tmp_path, text))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", r"boxes\.jsonl, line 2 cannot be read as JSON"),
        ("[" * 100_000, "line 2 cannot be read as JSON"),
        ([1], r"line 2: expected an object with an image name under 'image', got \[1\]"),
        ({"image": 3, "box": [1, 2, 3, 4]}, "with an image name under 'image'"),
        ({"image": "a.jpg"}, "line 2: expected either 'box' or 'boxes'"),
        ({"image": "a.jpg", "box": [1, 2, 3, 4], "boxes": []}, "either 'box' or 'boxes'"),
        ({"image": "a.jpg", "boxes": 3}, "line 2: boxes: expected a list of boxes, got 3"),
        ({"image": "a.jpg", "boxes": [1, 2, 3, 4]}, "expected a list of four numbers as the box, got 1"),
        ({"image": "a.jpg", "box": [1, 2, 3]}, r"expected a list of four numbers as the box, got \[1, 2, 3\]"),
        ({"image": "a.jpg", "box": [1, 2, 3, True]}, "expected a list of four numbers as the box"),
        ({"image": "a.jpg", "box": [1, 2, 3, 10**400]}, "expected a list of four numbers as the box"),
        ({"image": "a.jpg", "boxes": [[1, 2, 3, 4]], "ids": []}, r"line 2: expected 1 ids, .* got \[\]"),
        ({"image": "a.jpg", "box": [1, 2, 3, 4], "id": None}, "expected 1 ids, each a string or an integer"),
        (
            {"image": "a.jpg", "box": [1, 2, 3, 4], "format": "yolo"},
            "line 2: expected one of xyxy, xywh, xyxy-normalised, xywh-normalised under .* got 'yolo'",
        ),
        (
            {"image": "a.jpg", "box": [1, 2, 3, 4], "format": "xywh"},
            "line 2: format: expected xyxy, got xywh; use one format for all boxes of a file",
        ),
    ],
)
def test_rejects_malformed_json_lines(tmp_path: Path, entry: object, message: str) -> None:
    file = write_jsonl(tmp_path, {"image": "in/b.jpg", "box": [1, 2, 3, 4], "format": "xyxy"}, entry)
    with pytest.raises(ValueError, match=message):
        rows(file)


def test_rejects_missing_and_conflicting_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: expected one of xyxy, .* under 'format' or as box_format, got None"):
        rows(write_jsonl(tmp_path, {"image": "a.jpg", "box": [1, 2, 3, 4]}))
    with pytest.raises(ValueError, match="line 1: format: expected xyxy, got xywh"):
        rows(write_jsonl(tmp_path, {"image": "a.jpg", "box": [1, 2, 3, 4], "format": "xywh"}), "xyxy")
    text = r"box_format: expected xyxy or xyxy-normalised for .*boxes\.csv, line 1, got xywh$"
    with pytest.raises(ValueError, match=text):
        rows(write_csv(tmp_path, "image,x1,y1,x2,y2\na.jpg,1,2,3,4\n"), "xywh")
    with pytest.raises(ValueError, match=r"box_format: expected xywh or .* for .*boxes\.json, got xyxy-normalised"):
        rows(write_coco(tmp_path, [], "a.jpg"), "xyxy-normalised")
    with pytest.raises(ValueError, match="expected a bbox of four numbers and an id"):
        rows(write_coco(tmp_path, [{"image_id": 0, "id": 1}], "a.jpg"))
