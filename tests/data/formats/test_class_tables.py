from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.class_tables import read_class_file
from sppnet.data.formats.masks import IGNORE
from sppnet.data.formats.segmentation import read_segmentation
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
        ("c.json", "{}", r"class file: expected \.txt or \.csv, got .*c\.json"),
        ("c.txt", "", r"c\.txt: expected at least one class, got none"),
        ("c.txt", "a\n\nb\n", r"c\.txt: expected a name on every line .*, got none on 2$"),
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
        ("c.csv", 'name\n"a', r"c\.csv cannot be read as UTF-8 text"),
    ],
)
def test_rejects_malformed_class_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_file(tmp_path / name)
