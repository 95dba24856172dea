import math
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.class_tables import ClassRow, parse_class_file, read_class_file
from sppnet.data.formats.masks import IGNORE
from sppnet.data.formats.segmentation import read_segmentation
from sppnet.data.items import Problems
from tests.helpers.segmentation_data import class_indices, write_pair


def test_reads_class_files(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 2, 255])
    (tmp_path / "classes.txt").write_text("wall\ndoor \nwindow\n\n", encoding="utf-8-sig")
    data = read_segmentation(tmp_path)
    assert (data.classes, class_indices(data)) == (("wall", "door", "window"), [0, 2, IGNORE])
    file = tmp_path / "my.csv"
    file.write_text("Name, id, supercategory\ndoor, 2, x\nwall, 0, x\n\n")
    for data in (read_segmentation(tmp_path, classes=str(file)), read_segmentation(tmp_path, class_file=file)):
        assert (data.classes, class_indices(data)) == (("wall", "door"), [0, 1, IGNORE])
    both = read_segmentation(tmp_path, classes=["a", "door", "wall"], class_file=file)
    assert (both.classes, class_indices(both)) == (("a", "door", "wall"), [2, 1, IGNORE])
    with pytest.raises(ValueError, match=r"classes: expected names when class_file is given, got the file x\.txt"):
        read_segmentation(tmp_path, classes="x.txt", class_file=file)
    (tmp_path / "classes.csv").write_text("name\na\n")
    with pytest.raises(
        ValueError, match=r"class file: expected at most one in a data set, got .*classes\.txt, .*classes\.csv"
    ):
        read_segmentation(tmp_path)


def test_reads_colors_of_class_file(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 0, 0])
    pixels = np.array([[[64, 0, 128], [0, 0, 0], [64, 0, 129]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "masks/a.png")
    rows = "name,r,g,b\nSky,64,0,129\nCar,64,0,128\n"
    (tmp_path / "class_dict.csv").write_text(rows + "Void,0,0,0\n")
    data = read_segmentation(tmp_path)
    assert (data.classes, class_indices(data)) == (("Sky", "Car", "Void"), [1, 2, 0])
    data = read_segmentation(tmp_path, ignore=(2,))
    assert (data.classes, class_indices(data)) == (("Sky", "Car"), [1, IGNORE, 0])
    reordered = read_segmentation(tmp_path, classes=["Car", "Sky"], ignore=(2,))
    assert class_indices(reordered) == [0, IGNORE, 1]
    (tmp_path / "class_dict.csv").write_text("name,id,r,g,b\nSky,0,64,0,129\nCar,1,64,0,128\nvoid,-1,0,0,0\n")
    data = read_segmentation(tmp_path)
    assert (data.classes, class_indices(data)) == (("Sky", "Car"), [1, IGNORE, 0])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{}", r"c\.json: expected a class file that ends in \.txt or \.csv"),
        ("c.txt", "", r"c\.txt: expected at least one class, got none"),
        ("c.txt", "a\n\nb\n", r"c\.txt, line 2: expected a name on every line .*, got none$"),
        ("c.txt", "a\nb\na\n", r"c\.txt: name: expected unique values, got duplicates of a"),
        ("c.csv", "label\na\n", "expected a header with name and optionally id and r, g, b, each once, got 'label'"),
        ("c.csv", "name,r,g\na,1,2\n", "header with name and optionally id and r, g, b, each once, got 'name,r,g'"),
        ("c.csv", "name,id\na,1,2\n", r"c\.csv, line 2: expected 2 values, got 3"),
        ("c.csv", "name,id\n,1\n", r"c\.csv, line 2: expected a name, got none"),
        ("c.csv", "name,id\na,x\n", r"c\.csv, line 2: id: expected an integer from -1 to 65535, got 'x'"),
        ("c.csv", "name,id\na,65536\n", "id: expected an integer from -1 to 65535, got '65536'"),
        ("c.csv", "name,r,g,b\na,1,256,1\n", "g: expected an integer from 0 to 255, got '256'"),
        ("c.csv", "name,id\na,1\nb,1\n", r"c\.csv: id: expected unique values, got duplicates of 1"),
        ("c.csv", "name,r,g,b\na,1,2,3\nb,1,2,3\n", r"color: expected unique values, got duplicates of \(1, 2, 3\)"),
        ("c.csv", 'name\n"a', r"c\.csv, line 2: cannot be read as CSV"),
        ("c.csv", "# a comment\nname\n# another\na,b\n", r"c\.csv, line 4: expected 1 values, got 2"),
        ("c.txt", "a\nb\0\n", r"c\.txt, line 2: expected text, got a NUL character"),
        ("labelmap.txt", "cat:1,2,3::\ndog:1,2::\n", r"labelmap\.txt, line 2: expected name:r,g,b:.*, got 'dog:1,2::'"),
        ("labelmap.txt", "cat:1,2,256::\n", r"labelmap\.txt, line 1: expected .* from 0 to 255, got 'cat:1,2,256::'"),
        ("labelmap.txt", "a:1,1,1::\nb:1,1,1::", r"labelmap\.txt: color: .*, got duplicates of \(1, 1, 1\)"),
        ("labelmap.txt", "a:1,1,1::\na:2,1,1::", r"labelmap\.txt: name: .*, got duplicates of a"),
    ],
)
def test_rejects_malformed_class_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_file(tmp_path / name)


CVAT = "# label:color_rgb:parts:actions\n"


@pytest.mark.parametrize("name", ["labelmap.txt", "classes.txt"])
def test_reads_labelmap_of_cvat(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(CVAT + "background:0,0,0::\ncat:250,50,83::\nold dog:1,2,3:head,tail:run\n")
    rows = [("background", 0, (0, 0, 0)), ("cat", 1, (250, 50, 83)), ("old dog", 2, (1, 2, 3))]
    assert read_class_file(file) == rows
    file.write_bytes((CVAT + "cat:250,50,83::\n").replace("\n", "\r\n").encode("utf-8-sig"))
    assert read_class_file(file) == [("background", 0, (0, 0, 0)), ("cat", 1, (250, 50, 83))]
    file.write_text(CVAT + "cat:::\nbackground:::\ndog:::\n")  # without colors, those of VOC
    assert read_class_file(file) == [("background", 0, (0, 0, 0)), ("cat", 1, (128, 0, 0)), ("dog", 2, (0, 128, 0))]


def test_reads_cvat_masks_by_color(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 0, 0], "JPEGImages", "SegmentationClass")
    pixels = np.array([[[0, 0, 0], [250, 50, 83], [1, 2, 3]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "SegmentationClass/a.png")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("a\n")
    (tmp_path / "labelmap.txt").write_text(CVAT + "cat:250,50,83::\ndog:1,2,3::\n")
    data = read_segmentation(tmp_path)
    assert (data.classes, class_indices(data)) == (("background", "cat", "dog"), [0, 1, 2])
    (tmp_path / "labelmap.txt").rename(tmp_path / "cvat.txt")
    assert class_indices(read_segmentation(tmp_path, class_file=tmp_path / "cvat.txt")) == [0, 1, 2]


def test_comments_are_no_classes(tmp_path: Path) -> None:
    for name, text in (("c.txt", "# my classes\na\n # of\nb\n"), ("c.csv", "# mine\nname,id\n#a,0\na,0\nb,1\n")):
        (tmp_path / name).write_text(text)
        assert read_class_file(tmp_path / name) == [ClassRow("a", 0), ClassRow("b", 1)]


def test_reads_roboflow_table(tmp_path: Path) -> None:
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n3, cat\n")
    assert read_class_file(tmp_path / "_classes.csv") == [ClassRow("background", 0), ClassRow("cat", 3)]


def test_reports_all_problems_and_similar_names(tmp_path: Path) -> None:
    problems = Problems()
    (tmp_path / "c.csv").write_text("name,id\na,x\nb,1\nc,-9\n")
    parse_class_file(tmp_path / "c.csv", problems)
    assert [problem.reason[:8] for problem in problems] == ["line 2: ", "line 4: "]
    (tmp_path / "c.txt").write_text("Cat\ncat\n")
    (tmp_path / "d.txt").write_text("a\u0308\n\u00e4\n")
    problems = Problems()
    for name in ("c.txt", "d.txt"):
        parse_class_file(tmp_path / name, problems)
    assert [problem.kind for problem in problems] == ["similar-classes", "bad-annotation"]


def test_lines_are_separated_by_line_feeds_only(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a\x0bx\nb\u2028\nc\r\n", encoding="utf-8")
    assert [row.id for row in read_class_file(tmp_path / "c.txt")] == [0, 1, 2]


@pytest.mark.parametrize("name", ["c.txt", "c.csv", "labelmap.txt"])
def test_refuses_more_classes_than_indices(name: str, tmp_path: Path) -> None:
    header, row = {"c.txt": ("", "k{}"), "c.csv": ("name\n", "k{}"), "labelmap.txt": (CVAT, "k{}:::")}[name]
    (tmp_path / name).write_text(header + "\n".join(row.format(number) for number in range(60_000)))
    started = time.monotonic()
    with pytest.raises(ValueError, match=rf"{name}: expected at most 32,767 classes, got 60,00[01]"):
        read_class_file(tmp_path / name)
    assert time.monotonic() - started < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("c.txt", "k{}"),
        ("c.txt", "k0"),
        ("c.txt", ""),
        ("c.csv", "k{}"),
        ("c.csv", "k,0"),
        ("labelmap.txt", "k{}:1,2,3::"),
    ],
)
def test_time_is_linear_in_the_number_of_classes(name: str, row: str, tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        (tmp_path / name).write_text("name\n" + "\n".join(row.format(number) for number in range(count)))
        best = math.inf
        for _ in range(5):
            started = time.process_time()
            parse_class_file(tmp_path / name, Problems())
            best = min(best, time.process_time() - started)
        return best

    assert seconds(100_000) / max(seconds(50_000), 0.02) < 3
