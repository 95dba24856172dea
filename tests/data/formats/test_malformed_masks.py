"""`sppnet check` and training refuse the same malformed segmentation data, and nothing else escapes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.check.run import check_data
from sppnet.data.formats.mask_labels import report_classes
from sppnet.data.formats.masks import count_pixels
from sppnet.data.formats.segmentation import choose_segmentation_split, read_segmentation, segmentation_splits
from sppnet.data.items import FATAL, Problems
from tests.helpers.segmentation_data import save_mask, write_pair

TEXTS: dict[str, list[str | bytes]] = {
    "classes.txt": [
        *(
            "",
            "\n",
            "#\n",
            "a",
            "a\n\nb",
            "a\na",
            "a\nb\n",
            "a\nb\nc",
            "a\nb\nc\nd",
            "\na\nb\nc",
            "a\0\nb\nc",
            " \nb\nc",
        ),
        *("a\r\nb\r\nc\r\n", "a\rb\rc", "\ufeffa\nb\nc", "# x\na\nb\nc", "a\n# x\nb\nc\n", "a\n#", "a\x0bb\nc\nd"),
        *(
            b"\xff\xfea\0\n\0b\0",
            b"\x80abc\n",
            b"\0" * 9,
            "A\na\nb",
            "a \na\nb",
            "\u00e4\na\u0308\nb",
            "a:1,1,1::\nb\nc",
        ),
        *(
            "a:0,0,0::\nb:1,1,1::\nc:2,2,2::",
            "a:::\nb:::\nc:::",
            "a:0,0,0::\nb:0,0,0::",
            "# label:\na:1,1::",
            "[" * 9999,
        ),
        "\n".join(f"k{number}" for number in range(33_000)),
    ],
    "labelmap.txt": [
        *(
            "",
            "#\n",
            "a",
            "a\nb\nc",
            "a:0,0,0",
            "a:0,0,0::\nb:1,1,1::\nc:2,2,2::",
            "a:256,0,0::",
            "a:-1,0,0::",
            ":1,2,3::",
        ),
        *(
            "a:x,y,z::",
            "a:1,2,3:::",
            "a:1,2,3:x,y:z",
            "a:1,2,3,4::",
            "a:::\nb:::",
            "a:::\na:::",
            "background:1,1,1::",
        ),
        *(
            "a:1,1,1::\nb:1,1,1::",
            "a:\u0661,1,1::",
            "a:1e1,1,1::",
            "a: 0 , 0 , 0 ::\nb:1,1,1::\nc:2,2,2::",
            "a:1,1,1::\n\n\nb:2,2,2::",
        ),
        *(b"a:1,1,\xff::", "a:1,2,3\0::", "a:" + "9" * 5000 + ",0,0::"),
    ],
    "classes.csv": [
        *(
            "",
            "name",
            "name\n",
            "name\na",
            "name\na\nb\nc",
            "id\n0",
            "name,id\na,0\nb,1\nc,2",
            "name,id\na,0\nb,2",
            "name,id\na,-2",
        ),
        *(
            "name,id\na,0\nb,0",
            "name,id\na,0\na,1",
            "name,id\na,65536",
            "name,id\na,1.0",
            "name,id\na,",
            "name,id\n,0",
            "name,id,id\na,0,0",
        ),
        *(
            "name,r,g\na,0,0",
            "name,r,g,b\na,0,0,0\nb,1,1,1\nc,2,2,2",
            "name,r,g,b\na,0,0,0\nb,255,255,255",
            "name,r,g,b\na,0,0,300",
        ),
        *(
            "name,r,g,b\na,0,0,0\nb,0,0,0",
            "name,id\na,-1\nb,-1",
            'name\n"a',
            'name\n"a\nb"\nc\nd',
            "name;id\na;0",
            "Name , ID\na,0\nb,1\nc,2",
        ),
        *(
            "name,id\na,0,\nb,1,",
            "name,id\na,NaN",
            "name,id\na,\u0661",
            b"name\n\xff",
            "name\n" + "x" * 200_000,
            "name\na\0",
            "class,pixel value\na,0",
        ),
        *(
            "name,id\r\na,0\r\nb,1\r\nc,2\r\n",
            "\ufeffname,id\na,0\nb,1\nc,2",
            "name,id\n#a,0\nb,1\nc,2",
            "name\n#\n",
            "name,id,x\na,0,1\nb,1,1\nc,2,1",
        ),
    ],
}
TABLES = [(name, text if isinstance(text, bytes) else text.encode()) for name, texts in TEXTS.items() for text in texts]


def gray(*ids: int) -> Callable[[Path], object]:
    return lambda path: save_mask(np.array([ids], np.uint8), path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def saved(pixels: list[object], dtype: str = "uint8", form: str = "PNG") -> Callable[[Path], object]:
    return lambda path: Image.fromarray(np.array(pixels, dtype)).save(path, form)


MASKS: dict[str, Callable[[Path], object]] = {
    "empty file": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "JPEG": saved([[0, 1, 2]], form="JPEG"),
    "binary": gray(0, 255, 255),
    "white": gray(255, 255, 255),
    "black": gray(0, 0, 0),
    "one class": gray(1, 1, 1),
    "unknown ids": gray(0, 1, 77),
    "id 0 and 1": gray(0, 1, 1),
    "other size": gray(0, 1, 2, 2),
    "16 bits": saved([[0, 1, 2]], "uint16"),
    "large ids": saved([[0, 1, 40_000]], "uint16"),
    "negative ids": saved([[0, 1, -2]], "int32", "TIFF"),
    "floating point": saved([[0, 1, 2]], "float32", "TIFF"),
    "colors": saved([[[0, 0, 0], [1, 2, 3], [3, 2, 1]]]),
    "transparent": saved([[[0, 0, 0, 0], [1, 1, 1, 9], [2, 2, 2, 255]]]),
    "opaque": saved([[[0, 0, 0, 255], [1, 1, 1, 255], [2, 2, 2, 255]]]),
    "missing": Path.unlink,
    "folder": make_folder,
    "ambiguous": lambda path: shutil.copy(path, path.with_name(f"{path.stem}_mask.png")),
}
LISTS = [
    b"",
    b"\n",
    b"a\nx\n",
    b"a\na\n",
    b"\xff\xfe",
    b"../a\n",
    b"a\0\n",
    b"/\n",
    b"a 1\n",
    b"a b c\n",
    b"a\nb\n",
    b"b\n" * 9,
]


def training_refuses(root: Path) -> bool:
    """Read training and validation data as training does, and return whether it ends with a ValueError."""
    try:
        split = choose_segmentation_split(root, None, "train")
        train = read_segmentation(root, split)
        parts = [train]
        if "val" in segmentation_splits(root):
            parts.append(read_segmentation(root, "val", train.classes))
        counts = [count_pixels(part.samples, part.labels).pixels.tolist() for part in parts]
        problems = Problems()
        for part, pixels in zip(parts, counts, strict=True):
            report_classes(part.root, part.labels, pixels, problems, None if part is train else counts[0])
        problems.raise_errors()
    except ValueError:
        return True
    return False


def check_refuses(root: Path) -> bool:
    return any(problem.kind in FATAL for problem in check_data(root).problems)


def data_set(root: Path, layout: str) -> Path:
    """Write a training and a validation part of two images each, with the ids 0, 1 and 2; return a training mask."""
    for split in ("train", "val"):
        images, masks = {
            "camvid": (split, f"{split}annot"),
            "pairs": (f"{split}/images", f"{split}/masks"),
            "voc": ("JPEGImages", "SegmentationClass"),
        }[layout]
        names = {"train": "ab", "val": "cd"}[split]
        for name in names:
            write_pair(root, name, [0, 1, 2], images, masks)
        if layout == "voc":
            file = root / "ImageSets/Segmentation" / f"{split}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(names))
    return next(path for path in sorted(root.rglob("a.png")))


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_class_files(number: int, tmp_path: Path) -> None:
    data_set(tmp_path, ("camvid", "pairs", "voc")[number % 3])
    name, content = TABLES[number]
    (tmp_path / name).write_bytes(content)
    assert training_refuses(tmp_path) == check_refuses(tmp_path)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("table", ["", "a\nb", "a\nb\nc", "name,r,g,b\na,0,0,0\nb,1,2,3\nc,255,255,255"])
@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str, table: str, both: bool, tmp_path: Path) -> None:
    mask = data_set(tmp_path, "pairs")
    for path in [mask, mask.with_name("b.png")][: 1 + both]:
        MASKS[name](path)
    if both and table != "a\nb\nc":
        shutil.rmtree(tmp_path / "val")
    if table:
        (tmp_path / ("classes.csv" if "," in table else "classes.txt")).write_text(table)
    assert training_refuses(tmp_path) == check_refuses(tmp_path)


@pytest.mark.parametrize("content", LISTS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_lists(content: bytes, split: str, tmp_path: Path) -> None:
    data_set(tmp_path, "voc")
    (tmp_path / "ImageSets/Segmentation" / f"{split}.txt").write_bytes(content)
    assert training_refuses(tmp_path) == check_refuses(tmp_path)


def test_some_of_the_data_are_refused_and_some_are_not(tmp_path: Path) -> None:
    refused = 0
    for number, (name, content) in enumerate(TABLES):
        root = tmp_path / str(number)
        data_set(root, "pairs")
        (root / name).write_bytes(content)
        refused += training_refuses(root)
    assert len(TABLES) / 4 < refused < len(TABLES)
