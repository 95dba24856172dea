"""CSV files of images with a label, several labels, or a column per class."""

import time
from pathlib import Path

import pytest

from sppnet.data.formats.csv import find_splits, read
from sppnet.data.items import Part, Problems
from tests.helpers.images import write_files


def read_text(root: Path, text: str, encoding: str = "utf-8") -> tuple[Part, Problems]:
    file = root / "data.csv"
    file.write_text(text, encoding=encoding, newline="")
    problems = Problems()
    return read(file, None, find_splits(file)[None], problems), problems


def labeled_names(part: Part) -> list[tuple[str, tuple[str, ...]]]:
    return [(item.path.name, item.labels) for item in part.items]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reads_paths_and_labels(tmp_path: Path, encoding: str, end: str) -> None:
    write_files(tmp_path, "in/b.jpg", "in/a, b.jpg")
    text = 'path, label, taken\nin/b.jpg,kočka,2020\n"in/a, b.jpg", dog,\n'.replace("\n", end)
    part, problems = read_text(tmp_path, text, encoding)
    assert labeled_names(part) == [("b.jpg", ("kočka",)), ("a, b.jpg", ("dog",))]
    assert part.classes is None
    assert not problems


def test_reads_several_labels(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    part, problems = read_text(tmp_path, "path,label\na.jpg,cat | dog|cat\nb.jpg,cat;gnu\nc.jpg,gnu\n")
    assert [item.labels for item in part.items] == [("cat", "dog"), ("cat", "gnu"), ("gnu",)]
    assert not problems


def test_reads_a_column_for_each_class(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    part, problems = read_text(tmp_path, "filename, cat, dog, gnu\na.jpg, 1, 0, 1\nb.jpg, 0, 0, 0\nc.jpg, 0, 1, 0\n")
    assert [item.labels for item in part.items] == [("cat", "gnu"), (), ("dog",)]
    assert part.classes == ("cat", "dog", "gnu")
    assert not problems


def test_finds_names_with_backslashes_and_in_other_unicode_forms(tmp_path: Path) -> None:
    write_files(tmp_path, "in/a.jpg", "ba\u0308r.jpg", "e\\f.jpg")
    part, problems = read_text(tmp_path, "path,label\nin\\a.jpg,x\nb\u00e4r.jpg,y\ne\\f.jpg,y\n")
    assert [item.path.relative_to(tmp_path).as_posix() for item in part.items] == [
        "in/a.jpg",
        "ba\u0308r.jpg",
        "e\\f.jpg",
    ]
    assert not problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"data\.csv, line 1: expected a header with path and label, .*each once, got ''$"),
        ("a.jpg,cat\n", r"expected a header .* got 'a\.jpg,cat'"),
        ("path,label,path\n", "each once"),
        ("path,label,label\n", "each once"),
        ("path\na.jpg\n", "expected a header"),
        ("path,cat,cat\na.jpg,1,0\n", "expected a header"),
        ("path,cat,\na.jpg,1,0\n", "expected a header"),
        ("path,class\na.jpg,cat\n", "expected a header with path and label, .* got 'path,class'"),
        ("path,label\n", "expected at least one row below the header, got none"),
        ("path,label\na.jpg,cat\n\na.jpg,dog\n", r"data\.csv, line 3: expected 2 values, got an empty row"),
        ("path,label\n,\n", "line 2: expected 2 values, got an empty row"),
        ("path,label\na.jpg,\n", "line 2: expected a label, got none"),
        ("path,label\na.jpg,  \n", "line 2: expected a label, got none"),
        ("path,label\na.jpg,cat|\n", r"line 2: expected a label, got 'cat\|'"),
        ("path,label\n,cat\n", "line 2: expected a path, got none"),
        ("path,label\na.jpg\n", "line 2: expected 2 values, got 1"),
        ("path,label\na.jpg,cat,7\n", "line 2: expected 2 values, got 3"),
        ("path,cat,dog\na.jpg,1,0\na.jpg,2,0\n", "line 3: column cat: expected 0 or 1, got '2'"),
        ('path,label\n"a.jpg,cat\n', "line 2: cannot be read as a UTF-8 CSV file"),
        (
            "path,label\nx.jpg,cat\na.jpg,cat\ny.jpg,dog\n",
            r"x\.jpg: no such file, but .*data\.csv, line 2 lists it; .*y\.jpg: no such file, .* line 4 lists it$",
        ),
    ],
)
def test_reports_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    write_files(tmp_path, "a.jpg")
    _, problems = read_text(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        problems.raise_errors()


def test_reports_every_problem(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg")
    _, problems = read_text(tmp_path, "path,label\na.jpg,\nb.jpg,x\na.jpg,x,y\na.jpg,x\na.jpg,x\na.jpg,y\n")
    kinds = ["bad-annotation", "missing", "bad-annotation", "duplicate", "duplicate-across-classes"]
    assert [problem.kind for problem in problems] == kinds
    assert problems[-1].reason.endswith("line 7 repeats the file of line 5, which has the class x instead of y")


def test_reports_other_encodings(tmp_path: Path) -> None:
    _, problems = read_text(tmp_path, "path,label\na.jpg,käse\n", "latin-1")
    assert [problem.kind for problem in problems] == ["bad-annotation"]
    assert "cannot be read as a UTF-8 CSV file" in problems[0].reason


def test_lists_ten_missing_files(tmp_path: Path) -> None:
    _, problems = read_text(tmp_path, "path,label\n" + "".join(f"{i}.jpg,cat\n" for i in range(25)))
    with pytest.raises(ValueError, match=r"9\.jpg: no such file.*; and 15 more"):
        problems.raise_errors()


def test_cuts_long_headers(tmp_path: Path) -> None:
    _, problems = read_text(tmp_path, "x" * 100_000)
    assert len(problems[0].reason) < 400


@pytest.mark.slow
def test_time_is_linear_in_the_rows(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg")
    seconds = []
    for rows in (50_000, 100_000):
        text = "path,label\n" + "".join(f"a.jpg,{i}\n" if i % 2 else f"{i}.jpg,\n" for i in range(rows))
        start = time.perf_counter()
        read_text(tmp_path, text)
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < 3 * seconds[0]
