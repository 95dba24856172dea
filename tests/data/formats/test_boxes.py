import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from sppnet.data.formats.boxes import BoxFile, BoxFormat, OnBad, read_boxes
from sppnet.errors import ImageError

WIDTH, HEIGHT = 40, 30


def photo(path: Path, orientation: int = 1) -> None:
    """An image of 30 x 40 pixels (height x width) once turned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)).save(path, exif=exif)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.jpg", "in/b.jpg", "in/c.jpg", "deep/in/c.jpg"):
        photo(tmp_path / "images" / name)
    return tmp_path / "images"


def table(folder: Path, text: str) -> Path:
    (folder / "boxes.csv").write_text(text, encoding="utf-8")
    return folder / "boxes.csv"


def lines(folder: Path, *entries: object) -> Path:
    text = "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries)
    (folder / "boxes.jsonl").write_text(text, encoding="utf-8")
    return folder / "boxes.jsonl"


def coco(folder: Path, annotations: list[dict[str, Any]], *names: str) -> Path:
    entries = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    (folder / "boxes.json").write_text(json.dumps({"images": entries, "annotations": annotations}))
    return folder / "boxes.json"


def found(data: BoxFile, folder: Path) -> list[tuple[str, list[list[float]], tuple[str, ...]]]:
    return [(Path(each.path).relative_to(folder).as_posix(), each.boxes.tolist(), each.ids) for each in data.images]


def spelled(x1: float, y1: float, x2: float, y2: float) -> dict[BoxFormat, list[float]]:
    """One box in each format."""
    pixels: dict[BoxFormat, list[float]] = {"xyxy": [x1, y1, x2, y2], "xywh": [x1, y1, x2 - x1, y2 - y1]}
    sides = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    return pixels | {
        "xyxy-normalised": [value / side for value, side in zip(pixels["xyxy"], sides, strict=True)],
        "xywh-normalised": [value / side for value, side in zip(pixels["xywh"], sides, strict=True)],
    }


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_one_box_in_every_format_and_file(tmp_path: Path, orientation: int) -> None:
    photo(tmp_path / "a.jpg", orientation)
    corners = (3.25, 1.0, 38.7, 29.3)
    expected = torch.tensor([corners])
    for box_format, box in spelled(*corners).items():
        columns = "x1,y1,x2,y2" if box_format.startswith("xyxy") else "x,y,w,h"
        files = [
            table(tmp_path, f"image,{columns}\na.jpg,{','.join(map(str, box))}\n"),
            lines(tmp_path, {"image": "a.jpg", "box": box}),
        ]
        if box_format.startswith("xywh"):
            files.append(coco(tmp_path, [{"id": 0, "image_id": 0, "bbox": box}], "a.jpg"))
        for file in files:
            data = read_boxes(file, tmp_path / "a.jpg", box_format)
            assert torch.equal(data.images[0].boxes, expected), (file, box_format)
            assert data.images[0].ids == ("0",)
            assert data.problems == ()


@given(
    st.tuples(st.integers(-80, 159), st.integers(-60, 119), st.integers(1, 160), st.integers(1, 120)).filter(
        lambda box: box[0] + box[2] > 0 and box[1] + box[3] > 0
    )
)
def test_formats_agree_on_quarter_pixels(tmp_path_factory: pytest.TempPathFactory, box: tuple[int, ...]) -> None:
    folder = tmp_path_factory.getbasetemp() / "quarters"
    photo(folder / "a.png")
    x, y, w, h = (value / 4 for value in box)
    forms = spelled(x, y, x + w, y + h)
    if any(all(0 <= value <= 1 for value in forms[kind]) for kind in ("xyxy", "xywh")):  # they look normalised
        return
    for box_format, numbers in forms.items():
        data = read_boxes(lines(folder, {"image": "a.png", "box": numbers, "format": box_format}), folder)
        assert data.images[0].boxes.tolist() == [[x, y, x + w, y + h]]


def test_csv(images: Path, tmp_path: Path) -> None:
    text = "\ufefflabel, Y1, x1, x2, y2, file_name\r\ncat, 2, 1, 3, 4, a.jpg\r\n\r\n"
    text += "dog,0,0,40,30,in/b.jpg\r\n  \r\n,5,5,9,9,a.jpg"
    (tmp_path / "boxes.csv").write_bytes(text.encode())
    assert found(read_boxes(tmp_path / "boxes.csv", images), images) == [
        ("a.jpg", [[1, 2, 3, 4], [5, 5, 9, 9]], ("0", "2")),
        ("in/b.jpg", [[0, 0, 40, 30]], ("1",)),
    ]


def test_csv_with_ids(images: Path, tmp_path: Path) -> None:
    file = table(tmp_path, "path,x,y,w,h,id\na.jpg,1,2,3,4,left\na.jpg,1,2,3,5, 007\nin/b.jpg,1,2,3,4,left\n")
    assert found(read_boxes(file, images), images) == [
        ("a.jpg", [[1, 2, 4, 6], [1, 2, 4, 7]], ("left", "007")),
        ("in/b.jpg", [[1, 2, 4, 6]], ("left",)),
    ]


def test_json_lines(images: Path, tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        '\ufeff{"image": "a.jpg", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 10, 10]], "format": "xyxy"}\r',
        "",
        {"image": "in/b.jpg", "boxes": []},
        {"image": "a.jpg", "box": [1, 1, 9, 9]},
        {"image": "in/c.jpg", "boxes": [[1, 2, 3, 4]], "ids": [5], "format": "xyxy"},
        {"image": "in/c.jpg", "box": [1, 2, 3, 5], "id": "x"},
    )
    assert found(read_boxes(file, images), images) == [
        ("a.jpg", [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 10, 10], [1, 1, 9, 9]], ("0", "1", "2", "3")),
        ("in/b.jpg", [], ()),
        ("in/c.jpg", [[1, 2, 3, 4], [1, 2, 3, 5]], ("5", "x")),
    ]


def test_coco(images: Path, tmp_path: Path) -> None:
    annotations = [
        {"id": 70, "image_id": 1, "bbox": [1, 2, 3, 4]},
        {"image_id": 0, "bbox": [1, 2, 30, 4]},
        {"id": "z", "image_id": 1, "bbox": [5, 5, 5, 5]},
    ]
    file = coco(tmp_path, annotations, "a.jpg", "in/b.jpg", "in/c.jpg")
    assert found(read_boxes(file, images), images) == [
        ("a.jpg", [[1, 2, 31, 6]], ("1",)),
        ("in/b.jpg", [[1, 2, 4, 6], [5, 5, 10, 10]], ("70", "z")),
        ("in/c.jpg", [], ()),
    ]


def test_images_are_found_by_their_bare_name_where_it_is_unique(images: Path, tmp_path: Path) -> None:
    file = table(tmp_path, "image,x,y,w,h\nb.jpg,1,2,3,4\n/elsewhere/a.jpg,1,2,3,4\nin/c.jpg,1,2,3,4\n")
    assert [name for name, _, _ in found(read_boxes(file, images), images)] == ["in/b.jpg", "a.jpg", "in/c.jpg"]
    with pytest.raises(
        ValueError, match=r"boxes\.csv, line 2: c\.jpg must name one image, got .*deep/in/c\.jpg, .*in/c"
    ):
        read_boxes(table(tmp_path, "image,x,y,w,h\nc.jpg,1,2,3,4\n"), images)
    with pytest.raises(
        ValueError, match=r"line 3: an image must have one name in a file; .*'in/b\.jpg' and 'x/b\.jpg'"
    ):
        read_boxes(table(tmp_path, "image,x,y,w,h\nin/b.jpg,1,2,3,4\nx/b.jpg,1,2,3,4\n"), images)


def test_missing_images(images: Path, tmp_path: Path) -> None:
    rows = "".join(f"x{i}.jpg,1,2,3,4\n" * 2 for i in range(12))
    file = table(tmp_path, "image,x,y,w,h\nin/d.jpg,1,2,3,4\na.jpg,1,2,3,4\n" + rows)
    text = (
        r"images named in .*boxes\.csv are missing in .*images: in/d\.jpg \(line 2\), x0\.jpg \(line 4\), .* and 3 more"
    )
    with pytest.raises(ValueError, match=text + r"; did you mean in/.\.jpg or"):
        read_boxes(file, images)
    with pytest.raises(ValueError, match=r"are missing in .*a\.jpg: in/b\.jpg \(line 2\); did you mean a\.jpg\?$"):
        read_boxes(table(tmp_path, "image,x,y,w,h\nin/b.jpg,1,2,3,4\n"), images / "a.jpg")
    with pytest.raises(
        ValueError, match=r"images must be an image or a folder of images, got .*gone, which is not there"
    ):
        read_boxes(file, tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"boxes\.csv, line 1: a header was expected with one of image, path, file, file_name, and .* got ''"),
        ("a.jpg,1,2,3,4\n", "a header was expected"),
        ("image,path,x,y,w,h\n", "a header was expected"),
        ("image,x1,y1,x2,y2,x,y,w,h\n", "either x1, y1, x2, y2 or x, y, w, h, each once"),
        ("image,x,y,w,h,x\n", "a header was expected"),
        ("image,x,y,w,h\n", r"boxes\.csv must name an image or more, got none"),
        ("image,x,y,w,h\na.jpg,1,2,3\n", r"boxes\.csv, line 2: 4 values for 5 columns"),
        ("image,x,y,w,h\n\na.jpg,1,,3,4\n", r"line 3: a box must be four numbers, got \['1', '', '3', '4'\]"),
        ("image,x,y,w,h\n,1,2,3,4\n", "line 2: the image is empty"),
        ("image,x,y,w,h,id\na.jpg,1,2,3,4, \n", "line 2: the id is empty"),
        ("image,x,y,w,h,id\na.jpg,1,2,3,4,k\na.jpg,1,2,3,4,k\n", r"line 3: the id 'k' is that of two boxes of a\.jpg"),
        ('image,x,y,w,h\n"a.jpg,1,2,3,4\n', r"boxes\.csv cannot be read as a \.csv file in UTF-8"),
    ],
)
def test_csv_errors(images: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_boxes(table(tmp_path, text), images)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", r"boxes\.jsonl, line 2 cannot be read as JSON"),
        ("[" * 100_000, "line 2 cannot be read as JSON"),
        ([1], r"line 2: an object with the name of an image under 'image' was expected, got \[1\]"),
        ({"image": 3, "box": [1, 2, 3, 4]}, "under 'image' was expected"),
        ({"image": "a.jpg"}, "line 2: either 'box' or 'boxes' was expected"),
        ({"image": "a.jpg", "box": [1, 2, 3, 4], "boxes": []}, "either 'box' or 'boxes'"),
        ({"image": "a.jpg", "boxes": 3}, "line 2: 'boxes' must be a list of boxes, got 3"),
        ({"image": "a.jpg", "boxes": [1, 2, 3, 4]}, "a box must be a list of four numbers, got 1"),
        ({"image": "a.jpg", "box": [1, 2, 3]}, r"a box must be a list of four numbers, got \[1, 2, 3\]"),
        ({"image": "a.jpg", "box": [1, 2, 3, True]}, "a box must be a list of four numbers"),
        ({"image": "a.jpg", "box": [1, 2, 3, 10**400]}, "a box must be a list of four numbers"),
        ({"image": "a.jpg", "boxes": [[1, 2, 3, 4]], "ids": []}, r"line 2: 1 ids were expected, .* got \[\]"),
        ({"image": "a.jpg", "box": [1, 2, 3, 4], "id": None}, "1 ids were expected, each a text or an integer"),
        (
            {"image": "a.jpg", "box": [1, 2, 3, 4], "format": "yolo"},
            "line 2: the format must be one of xyxy, xywh, xyxy-normalised, xywh-normalised, under .* got 'yolo'",
        ),
        (
            {"image": "a.jpg", "box": [1, 2, 3, 4], "format": "xywh"},
            "line 2: the format is xywh, where xyxy was expected; a file has one format",
        ),
    ],
)
def test_json_lines_errors(images: Path, tmp_path: Path, entry: object, message: str) -> None:
    file = lines(tmp_path, {"image": "in/b.jpg", "box": [1, 2, 3, 4], "format": "xyxy"}, entry)
    with pytest.raises(ValueError, match=message):
        read_boxes(file, images)


def test_formats_must_be_said_and_agree(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"line 1: the format must be one of xyxy, .*, under 'format' or as box_format"
    ):
        read_boxes(lines(tmp_path, {"image": "a.jpg", "box": [1, 2, 3, 4]}), images)
    with pytest.raises(ValueError, match="line 1: the format is xywh, where xyxy was expected"):
        read_boxes(lines(tmp_path, {"image": "a.jpg", "box": [1, 2, 3, 4], "format": "xywh"}), images, "xyxy")
    text = r"boxes\.csv, line 1: the boxes are xyxy, so box_format must be xyxy or xyxy-normalised, got xywh$"
    with pytest.raises(ValueError, match=text):
        read_boxes(table(tmp_path, "image,x1,y1,x2,y2\na.jpg,1,2,3,4\n"), images, "xywh")
    with pytest.raises(ValueError, match=r"boxes\.json: the boxes are xywh, .* got xyxy-normalised"):
        read_boxes(coco(tmp_path, [], "a.jpg"), images, "xyxy-normalised")
    with pytest.raises(ValueError, match="a bbox of four numbers and an id were expected"):
        read_boxes(coco(tmp_path, [{"image_id": 0, "id": 1}], "a.jpg"), images)


def test_mixed_units_are_refused(images: Path, tmp_path: Path) -> None:
    header = "image,x1,y1,x2,y2\n"
    text = r"line 3: the xyxy box \[0\.1, 0\.2, 0\.5, 1\.0\] of a\.jpg is normalised; .* may be xyxy-normalised"
    with pytest.raises(ValueError, match=text):
        read_boxes(table(tmp_path, header + "a.jpg,1,2,3,4\na.jpg,.1,.2,.5,1\n"), images)
    with pytest.raises(
        ValueError, match=r"line 3: the xyxy-normalised box \[1\.0, 2\.0, 3\.0, 4\.0\] of a\.jpg is in pix"
    ):
        read_boxes(table(tmp_path, header + "a.jpg,.1,.2,.5,1\na.jpg,1,2,3,4\n"), images, "xyxy-normalised")
    assert read_boxes(table(tmp_path, header + "a.jpg,0,0,1,1\n"), images, "xyxy-normalised").images[
        0
    ].boxes.tolist() == [[0, 0, 40, 30]]


BAD = [
    ([5, 5, 5, 9], "has no area; expected edges with x1 < x2 and y1 < y2, in an image of 30 x 40"),
    ([9, 5, 5, 9], "has no area"),
    ([0, 0, 0, 0], "has no area"),
    ([20_000_000, 1, 20_000_001, 9], "has no area"),
    ([40, 5, 50, 9], "is wholly outside; expected a box that meets the image"),
    ([-9, 5, 0, 9], "is wholly outside"),
    ([1, 30, 5, 90], "is wholly outside"),
    ([1, -9, 5, 0], "is wholly outside"),
    ([1, 2, 3, float("nan")], "has a number that is not finite; expected four finite numbers"),
    ([1, 2, 3, 1e300], "has a number that is not finite"),
]


@pytest.mark.parametrize(("box", "message"), BAD)
def test_bad_boxes(images: Path, tmp_path: Path, box: list[float], message: str) -> None:
    file = lines(tmp_path, {"image": "a.jpg", "boxes": [[1, 2, 3, 4], box], "format": "xyxy", "ids": ["p", "q"]})
    shown = re.escape(str([float(value) for value in box]))
    text = rf"boxes\.jsonl, line 1, boxes\[1\]: the xyxy box {shown} of a\.jpg {message}"
    kinds: tuple[OnBad, ...] = ("raise", "clip")
    for on_bad in kinds:
        with pytest.raises(ValueError, match=text):
            read_boxes(file, images, on_bad=on_bad)
    data = read_boxes(file, images, on_bad="drop")
    assert found(data, images) == [("a.jpg", [[1, 2, 3, 4]], ("p",))]
    assert re.search(text.partition(";")[0] + "; left out$", data.problems[0])


def test_boxes_that_are_partly_outside(images: Path, tmp_path: Path) -> None:
    file = table(tmp_path, "image,x1,y1,x2,y2\na.jpg,-5,-6,45,36\na.jpg,0,0,40,30\na.jpg,30,9,50,12\n")
    kinds: tuple[OnBad, ...] = ("raise", "drop")
    for on_bad in kinds:
        data = read_boxes(file, images, on_bad=on_bad)
        assert data.images[0].boxes.tolist() == [[-5, -6, 45, 36], [0, 0, 40, 30], [30, 9, 50, 12]]
        assert data.problems == ()
    data = read_boxes(file, images, on_bad="clip")
    assert data.images[0].boxes.tolist() == [[0, 0, 40, 30], [0, 0, 40, 30], [30, 9, 40, 12]]
    assert [problem.partition(".csv, ")[2] for problem in data.problems] == [
        "line 2: the xyxy box [-5.0, -6.0, 45.0, 36.0] of a.jpg leaves the image of 30 x 40 (height x width); cut",
        "line 4: the xyxy box [30.0, 9.0, 50.0, 12.0] of a.jpg leaves the image of 30 x 40 (height x width); cut",
    ]


def test_an_image_keeps_its_place_without_its_boxes(images: Path, tmp_path: Path) -> None:
    file = table(tmp_path, "image,x,y,w,h\na.jpg,1,2,0,4\nin/b.jpg,1,2,3,4\n")
    assert found(read_boxes(file, images, on_bad="drop"), images) == [
        ("a.jpg", [], ()),
        ("in/b.jpg", [[1, 2, 4, 6]], ("1",)),
    ]


def test_damaged_images(images: Path, tmp_path: Path) -> None:
    (images / "a.jpg").write_bytes(b"")
    file = table(tmp_path, "image,x,y,w,h\na.jpg,1,2,3,4\nin/b.jpg,1,2,3,4\na.jpg,1,2,3,4\n")
    with pytest.raises(ImageError, match=r"a\.jpg: file is empty"):
        read_boxes(file, images)
    data = read_boxes(file, images, on_bad="drop")
    assert found(data, images) == [("in/b.jpg", [[1, 2, 4, 6]], ("1",))]
    assert len(data.problems) == 1
    assert re.search(r"line 2: .*a\.jpg: file is empty; the image is left out$", data.problems[0])


def test_what_is_no_box_file(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a box file must end in \.csv, \.jsonl, \.json, got .*boxes\.txt"):
        read_boxes(tmp_path / "boxes.txt", images)
    with pytest.raises(FileNotFoundError):
        read_boxes(tmp_path / "boxes.csv", images)
    (tmp_path / "boxes.csv").write_bytes(b"image,x,y,w,h\nk\xe4se.jpg,1,2,3,4\n")
    with pytest.raises(ValueError, match=r"boxes\.csv cannot be read as a \.csv file in UTF-8"):
        read_boxes(tmp_path / "boxes.csv", images)
    (tmp_path / "boxes.json").write_text("[]")
    with pytest.raises(ValueError, match=r"boxes\.json must be a COCO file"):
        read_boxes(tmp_path / "boxes.json", images)


@pytest.mark.parametrize("argument", [{"box_format": "cxcywh"}, {"on_bad": "keep"}])
def test_options_are_checked(images: Path, tmp_path: Path, argument: dict[str, Any], unchecked: None) -> None:
    name, value = next(iter(argument.items()))
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
        read_boxes(tmp_path / "boxes.csv", images, **argument)
