from pathlib import Path

import pytest
from PIL import Image

from sppnet.data.formats.csv import read_csv


def write_csv(root: Path, text: str, encoding: str = "utf-8") -> Path:
    (root / "data.csv").write_text(text, encoding=encoding)
    return root / "data.csv"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_reads_paths_and_labels(tmp_path: Path, encoding: str) -> None:
    paths = [tmp_path / "in/b.jpg", tmp_path / "in/a, b.jpg"]
    paths[0].parent.mkdir()
    for path in paths:
        Image.new("RGB", (3, 2)).save(path)
    text = 'path, label, taken\nin/b.jpg,kočka,2020\n"in/a, b.jpg", dog,\n'
    assert read_csv(write_csv(tmp_path, text, encoding)) == [(paths[0], "kočka"), (paths[1], "dog")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"data\.csv: expected a header with the columns path and label, each once, got ''$"),
        ("a.jpg,cat\n", r"expected a header .* got 'a\.jpg,cat'"),
        ("path,label,path\n", "each once"),
        ("path,label\n", "expected at least one row below the header, got none"),
        ("path,label\na.jpg,cat\n\na.jpg,dog\n", r"data\.csv, line 3: expected 2 values, got an empty row"),
        ("path,label\n,\n", "line 2: expected 2 values, got an empty row"),
        ("path,label\na.jpg,\n", "line 2: expected a label, got none"),
        ("path,label\n,cat\n", "line 2: expected a path, got none"),
        ("path,label\na.jpg\n", "line 2: expected 2 values, got 1"),
        ("path,label\na.jpg,cat,7\n", "line 2: expected 2 values, got 3"),
        ('path,label\n"a.jpg,cat\n', "cannot be read as a UTF-8 CSV file"),
        (
            "path,label\nx.jpg,cat\na.jpg,cat\ny.jpg,dog\n",
            r"images named in .*data\.csv are missing: x\.jpg \(line 2\), y\.jpg \(line 4\)$",
        ),
    ],
)
def test_rejects_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=message):
        read_csv(write_csv(tmp_path, text))


def test_rejects_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as a UTF-8 CSV file"):
        read_csv(write_csv(tmp_path, "path,label\na.jpg,käse\n", "latin-1"))


def test_counts_missing_files(tmp_path: Path) -> None:
    rows = "".join(f"{i}.jpg,cat\n" for i in range(25))
    with pytest.raises(ValueError, match=r"9\.jpg \(line 11\) and 15 more$"):
        read_csv(write_csv(tmp_path, "path,label\n" + rows))
