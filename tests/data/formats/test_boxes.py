import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.formats.box_formats import BoxFormat, OnBad
from sppnet.data.formats.boxes import BoxFile, read_boxes
from sppnet.errors import ImageError
from tests.helpers.annotation_files import write_image
from tests.helpers.box_files import write_coco, write_csv, write_jsonl

WIDTH, HEIGHT = 40, 30  # of the images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.jpg", "in/b.jpg", "in/c.jpg", "deep/in/c.jpg"):
        write_image(tmp_path / "images" / name)
    return tmp_path / "images"


def contents(data: BoxFile, folder: Path) -> list[tuple[str, list[list[float]], tuple[str, ...]]]:
    return [(Path(image.path).relative_to(folder).as_posix(), image.boxes.tolist(), image.ids) for image in data.images]


def in_all_formats(x1: float, y1: float, x2: float, y2: float) -> dict[BoxFormat, list[float]]:
    """Return a box in each format."""
    pixels: dict[BoxFormat, list[float]] = {"xyxy": [x1, y1, x2, y2], "xywh": [x1, y1, x2 - x1, y2 - y1]}
    sides = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    return pixels | {
        "xyxy-normalised": [value / side for value, side in zip(pixels["xyxy"], sides, strict=True)],
        "xywh-normalised": [value / side for value, side in zip(pixels["xywh"], sides, strict=True)],
    }


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_converts_every_format_in_every_file_type(tmp_path: Path, orientation: int) -> None:
    stored = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
    write_image(tmp_path / "a.jpg", *stored, orientation)
    corners = (3.25, 1.0, 38.7, 29.3)
    expected = torch.tensor([corners])
    for box_format, box in in_all_formats(*corners).items():
        columns = "x1,y1,x2,y2" if box_format.startswith("xyxy") else "x,y,w,h"
        files = [
            write_csv(tmp_path, f"image,{columns}\na.jpg,{','.join(map(str, box))}\n"),
            write_jsonl(tmp_path, {"image": "a.jpg", "box": box}),
        ]
        if box_format.startswith("xywh"):
            files.append(write_coco(tmp_path, [{"id": 0, "image_id": 0, "bbox": box}], "a.jpg"))
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
def test_formats_agree_exactly_on_quarter_pixels(
    tmp_path_factory: pytest.TempPathFactory, box: tuple[int, ...]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "quarters"
    write_image(folder / "a.png")
    x, y, w, h = (value / 4 for value in box)
    formats = in_all_formats(x, y, x + w, y + h)
    if any(all(0 <= value <= 1 for value in formats[kind]) for kind in ("xyxy", "xywh")):  # refused as normalized
        return
    for box_format, numbers in formats.items():
        data = read_boxes(write_jsonl(folder, {"image": "a.png", "box": numbers, "format": box_format}), folder)
        assert data.images[0].boxes.tolist() == [[x, y, x + w, y + h]]


def test_reads_csv(images: Path, tmp_path: Path) -> None:
    text = "\ufefflabel, Y1, x1, x2, y2, file_name\r\ncat, 2, 1, 3, 4, a.jpg\r\n\r\n"
    text += "dog,0,0,40,30,in/b.jpg\r\n  \r\n,5,5,9,9,a.jpg"
    (tmp_path / "boxes.csv").write_bytes(text.encode())
    assert contents(read_boxes(tmp_path / "boxes.csv", images), images) == [
        ("a.jpg", [[1, 2, 3, 4], [5, 5, 9, 9]], ("0", "2")),
        ("in/b.jpg", [[0, 0, 40, 30]], ("1",)),
    ]


def test_reads_csv_with_ids(images: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path, "path,x,y,w,h,id\na.jpg,1,2,3,4,left\na.jpg,1,2,3,5, 007\nin/b.jpg,1,2,3,4,left\n")
    assert contents(read_boxes(file, images), images) == [
        ("a.jpg", [[1, 2, 4, 6], [1, 2, 4, 7]], ("left", "007")),
        ("in/b.jpg", [[1, 2, 4, 6]], ("left",)),
    ]


def test_reads_json_lines(images: Path, tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path,
        '\ufeff{"image": "a.jpg", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 10, 10]], "format": "xyxy"}\r',
        "",
        {"image": "in/b.jpg", "boxes": []},
        {"image": "a.jpg", "box": [1, 1, 9, 9]},
        {"image": "in/c.jpg", "boxes": [[1, 2, 3, 4]], "ids": [5], "format": "xyxy"},
        {"image": "in/c.jpg", "box": [1, 2, 3, 5], "id": "x"},
    )
    assert contents(read_boxes(file, images), images) == [
        ("a.jpg", [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 10, 10], [1, 1, 9, 9]], ("0", "1", "2", "3")),
        ("in/b.jpg", [], ()),
        ("in/c.jpg", [[1, 2, 3, 4], [1, 2, 3, 5]], ("5", "x")),
    ]


def test_reads_coco(images: Path, tmp_path: Path) -> None:
    annotations = [
        {"id": 70, "image_id": 1, "bbox": [1, 2, 3, 4]},
        {"image_id": 0, "bbox": [1, 2, 30, 4]},
        {"id": "z", "image_id": 1, "bbox": [5, 5, 5, 5]},
    ]
    file = write_coco(tmp_path, annotations, "a.jpg", "in/b.jpg", "in/c.jpg")
    assert contents(read_boxes(file, images), images) == [
        ("a.jpg", [[1, 2, 31, 6]], ("1",)),
        ("in/b.jpg", [[1, 2, 4, 6], [5, 5, 10, 10]], ("70", "z")),
        ("in/c.jpg", [], ()),
    ]


def test_finds_images_by_unique_base_name(images: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path, "image,x,y,w,h\nb.jpg,1,2,3,4\n/elsewhere/a.jpg,1,2,3,4\nin/c.jpg,1,2,3,4\n")
    assert [name for name, _, _ in contents(read_boxes(file, images), images)] == ["in/b.jpg", "a.jpg", "in/c.jpg"]
    with pytest.raises(
        ValueError, match=r"boxes\.csv, line 2: expected one image named c\.jpg, got .*deep/in/c\.jpg, .*in/c"
    ):
        read_boxes(write_csv(tmp_path, "image,x,y,w,h\nc.jpg,1,2,3,4\n"), images)
    with pytest.raises(
        ValueError, match=r"line 3: expected one name for each image, got 'in/b\.jpg' and 'x/b\.jpg' for .*in/b\.jpg$"
    ):
        read_boxes(write_csv(tmp_path, "image,x,y,w,h\nin/b.jpg,1,2,3,4\nx/b.jpg,1,2,3,4\n"), images)


def test_reports_missing_images(images: Path, tmp_path: Path) -> None:
    rows = "".join(f"x{i}.jpg,1,2,3,4\n" * 2 for i in range(12))
    file = write_csv(tmp_path, "image,x,y,w,h\nin/d.jpg,1,2,3,4\na.jpg,1,2,3,4\n" + rows)
    text = r"images named in .*boxes\.csv are missing from .*images: in/d\.jpg \(line 2\), x0\.jpg \(line 4\), "
    with pytest.raises(ValueError, match=text + r".* and 3 more; did you mean in/.\.jpg or"):
        read_boxes(file, images)
    with pytest.raises(ValueError, match=r"are missing from .*a\.jpg: in/b\.jpg \(line 2\); did you mean a\.jpg\?$"):
        read_boxes(write_csv(tmp_path, "image,x,y,w,h\nin/b.jpg,1,2,3,4\n"), images / "a.jpg")
    with pytest.raises(
        ValueError, match=r"images: expected an image or a folder of images, got .*gone, which does not exist"
    ):
        read_boxes(file, tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,x,y,w,h\n", r"boxes\.csv: expected at least one image, got none"),
        (
            "image,x,y,w,h,id\na.jpg,1,2,3,4,k\na.jpg,1,2,3,4,k\n",
            r"line 3: expected unique box ids for a\.jpg, got duplicate 'k'",
        ),
        ('image,x,y,w,h\n"a.jpg,1,2,3,4\n', r"boxes\.csv cannot be read as a UTF-8 \.csv file"),
    ],
)
def test_rejects_unusable_csv(images: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_boxes(write_csv(tmp_path, text), images)


def test_rejects_mixed_units(images: Path, tmp_path: Path) -> None:
    header = "image,x1,y1,x2,y2\n"
    text = r"line 3: xyxy box \[0\.1, 0\.2, 0\.5, 1\.0\] of a\.jpg: expected pixels, got normalized values"
    with pytest.raises(ValueError, match=text + r"; .* such as xyxy-normalised$"):
        read_boxes(write_csv(tmp_path, header + "a.jpg,1,2,3,4\na.jpg,.1,.2,.5,1\n"), images)
    with pytest.raises(
        ValueError,
        match=r"line 3: xyxy-normalised box \[1\.0, 2\.0, 3\.0, 4\.0\] of a\.jpg: expected normalized values",
    ):
        read_boxes(write_csv(tmp_path, header + "a.jpg,.1,.2,.5,1\na.jpg,1,2,3,4\n"), images, "xyxy-normalised")
    data = read_boxes(write_csv(tmp_path, header + "a.jpg,0,0,1,1\n"), images, "xyxy-normalised")
    assert data.images[0].boxes.tolist() == [[0, 0, 40, 30]]


BAD_BOXES = [
    ([5, 5, 5, 9], "x1 < x2 and y1 < y2", "a box without area"),
    ([9, 5, 5, 9], "x1 < x2 and y1 < y2", "a box without area"),
    ([0, 0, 0, 0], "x1 < x2 and y1 < y2", "a box without area"),
    ([20_000_000, 1, 20_000_001, 9], "x1 < x2 and y1 < y2", "a box without area"),
    ([40, 5, 50, 9], "a box that overlaps the image of 30 x 40", "a box outside the image"),
    ([-9, 5, 0, 9], "a box that overlaps the image of 30 x 40", "a box outside the image"),
    ([1, 30, 5, 90], "a box that overlaps the image of 30 x 40", "a box outside the image"),
    ([1, -9, 5, 0], "a box that overlaps the image of 30 x 40", "a box outside the image"),
    ([1, 2, 3, float("nan")], "four finite numbers", "a number that is not finite"),
    ([1, 2, 3, 1e300], "four finite numbers", "a number that is not finite"),
]


@pytest.mark.parametrize(("box", "legal", "fault"), BAD_BOXES)
def test_rejects_or_drops_bad_boxes(images: Path, tmp_path: Path, box: list[float], legal: str, fault: str) -> None:
    file = write_jsonl(tmp_path, {"image": "a.jpg", "boxes": [[1, 2, 3, 4], box], "format": "xyxy", "ids": ["p", "q"]})
    shown = re.escape(str([float(value) for value in box]))
    text = rf"boxes\.jsonl, line 1, boxes\[1\]: xyxy box {shown} of a\.jpg: "
    modes: tuple[OnBad, ...] = ("raise", "clip")
    for on_bad in modes:
        with pytest.raises(ValueError, match=f"{text}expected {legal}, got {fault}$"):
            read_boxes(file, images, on_bad=on_bad)
    data = read_boxes(file, images, on_bad="drop")
    assert contents(data, images) == [("a.jpg", [[1, 2, 3, 4]], ("p",))]
    assert re.search(f"{text}{fault}; dropped$", data.problems[0])


def test_clips_boxes_that_are_partly_outside(images: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path, "image,x1,y1,x2,y2\na.jpg,-5,-6,45,36\na.jpg,0,0,40,30\na.jpg,30,9,50,12\n")
    modes: tuple[OnBad, ...] = ("raise", "drop")
    for on_bad in modes:
        data = read_boxes(file, images, on_bad=on_bad)
        assert data.images[0].boxes.tolist() == [[-5, -6, 45, 36], [0, 0, 40, 30], [30, 9, 50, 12]]
        assert data.problems == ()
    data = read_boxes(file, images, on_bad="clip")
    assert data.images[0].boxes.tolist() == [[0, 0, 40, 30], [0, 0, 40, 30], [30, 9, 40, 12]]
    text = "of a.jpg extends beyond the image of 30 x 40 (height x width); clipped"
    assert [problem.partition(".csv, ")[2] for problem in data.problems] == [
        f"line 2: xyxy box [-5.0, -6.0, 45.0, 36.0] {text}",
        f"line 4: xyxy box [30.0, 9.0, 50.0, 12.0] {text}",
    ]


def test_keeps_image_whose_boxes_are_all_dropped(images: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path, "image,x,y,w,h\na.jpg,1,2,0,4\nin/b.jpg,1,2,3,4\n")
    assert contents(read_boxes(file, images, on_bad="drop"), images) == [
        ("a.jpg", [], ()),
        ("in/b.jpg", [[1, 2, 4, 6]], ("1",)),
    ]


def test_rejects_or_skips_damaged_images(images: Path, tmp_path: Path) -> None:
    (images / "a.jpg").write_bytes(b"")
    file = write_csv(tmp_path, "image,x,y,w,h\na.jpg,1,2,3,4\nin/b.jpg,1,2,3,4\na.jpg,1,2,3,4\n")
    with pytest.raises(ImageError, match=r"a\.jpg: file is empty"):
        read_boxes(file, images)
    modes: tuple[OnBad, ...] = ("clip", "drop")
    for on_bad in modes:
        data = read_boxes(file, images, on_bad=on_bad)
        assert contents(data, images) == [("in/b.jpg", [[1, 2, 4, 6]], ("1",))]
        assert len(data.problems) == 1
        assert re.search(r"line 2: .*a\.jpg: file is empty; image skipped$", data.problems[0])
        assert [(failure.path, failure.reason) for failure in data.failures] == [
            (str(images / "a.jpg"), "file is empty")
        ]


def test_ignores_all_images_but_the_given_ones(images: Path, tmp_path: Path) -> None:
    """The other image files are missing, damaged, outside the folder, or have a bad box."""
    (images / "a.jpg").write_bytes(b"")
    rows = ["gone.jpg,1,2,3,4", "a.jpg,1,2,3,4", "../b.jpg,1,2,3,4", "deep/in/c.jpg,9,9,9,9", "in/b.jpg,1,2,3,5"]
    file = write_csv(tmp_path, "\n".join(["image,x1,y1,x2,y2", *rows, "in/c.jpg,1,2,3,6"]))
    data = read_boxes(file, [images / "in" / "b.jpg", images / "in" / "c.jpg"])
    assert contents(data, images) == [("in/b.jpg", [[1, 2, 3, 5]], ("4",)), ("in/c.jpg", [[1, 2, 3, 6]], ("5",))]


def test_given_images_are_found_by_the_end_of_their_path_or_an_unambiguous_base_name(
    images: Path, tmp_path: Path
) -> None:
    def found(paths: list[Path], *names: str) -> list[str]:
        file = write_csv(tmp_path, "\n".join(["image,x,y,w,h", *(f"{name},1,2,3,4" for name in names)]))
        return [name for name, _, _ in contents(read_boxes(file, paths), images)]

    c, deep = images / "in" / "c.jpg", images / "deep" / "in" / "c.jpg"
    assert found([c], "elsewhere/c.jpg") == ["in/c.jpg"]
    assert found([c], str(c), "elsewhere/c.jpg") == ["in/c.jpg"]
    assert found([c], "there/c.jpg", "elsewhere/c.jpg") == []
    assert found([c, deep], "elsewhere/c.jpg") == []
    assert found([c, deep], "./deep/in/c.jpg") == ["deep/in/c.jpg"]
    assert found([c, deep], "in/c.jpg") == ["in/c.jpg"]  # the path relative to the common folder
    with pytest.raises(ValueError, match=r"expected one image named c\.jpg, got .*/in/c\.jpg, .*/deep/in/c\.jpg"):
        found([c, deep], "c.jpg")


def test_rejects_other_files(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"file: expected one of the extensions \.csv, \.jsonl, \.json, got .*boxes\.txt"
    ):
        read_boxes(tmp_path / "boxes.txt", images)
    with pytest.raises(FileNotFoundError):
        read_boxes(tmp_path / "boxes.csv", images)
    (tmp_path / "boxes.csv").write_bytes(b"image,x,y,w,h\nk\xe4se.jpg,1,2,3,4\n")
    with pytest.raises(ValueError, match=r"boxes\.csv cannot be read as a UTF-8 \.csv file"):
        read_boxes(tmp_path / "boxes.csv", images)
    (tmp_path / "boxes.json").write_text("[]")
    with pytest.raises(ValueError, match=r"boxes\.json is not a COCO file"):
        read_boxes(tmp_path / "boxes.json", images)


@pytest.mark.parametrize("argument", [{"box_format": "cxcywh"}, {"on_bad": "keep"}])
def test_rejects_unknown_options(images: Path, tmp_path: Path, argument: dict[str, Any], unchecked: None) -> None:
    name, value = next(iter(argument.items()))
    with pytest.raises(ValueError, match=f"{name}: expected one of .*, got '{value}'"):
        read_boxes(tmp_path / "boxes.csv", images, **argument)
