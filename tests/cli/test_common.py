"""Parsing of option values, and lists of skipped files."""

from pathlib import Path

import pytest
from PIL import Image

from sppnet.cli.common import find_images, list_failures, parse_level_text, parse_numbers
from sppnet.errors import ImageError


def test_parses_levels() -> None:
    assert parse_level_text("6,3,2,1") == (6, 3, 2, 1)
    assert parse_level_text("(2x3, 1)") == ((2, 3), 1)
    assert parse_level_text([3, 1]) == (3, 1)
    with pytest.raises(ValueError, match="levels: expected numbers such as 6,3,2,1 or 2x3,1, got 'a,b'"):
        parse_level_text("a,b")


def test_parses_numbers() -> None:
    assert parse_numbers("hidden", "4096,1024") == (4096, 1024)
    assert parse_numbers("scales", "0.75,1", float, 0) == (0.75, 1.0)
    for text in ("", "1,", "0", "1.5", "nan"):
        with pytest.raises(ValueError, match=f"sizes: expected comma-separated numbers of at least 1, got '{text}'"):
            parse_numbers("sizes", text)


def test_finds_images_and_lists_skipped_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.txt", "c.TXT", "d.heic"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    paths, failures = find_images([str(tmp_path), str(tmp_path / "missing.png")])
    assert paths == [tmp_path / "a.png"]
    assert [failure.path for failure in failures] == [str(tmp_path / "missing.png")]
    messages = capsys.readouterr().err
    assert f"skipped, not an image by its extension: {tmp_path / 'b.txt'} and 1 more with .txt\n" in messages
    assert f"skipped, not an image by its extension: {tmp_path / 'd.heic'}\n" in messages


def test_lists_failures_and_reasons_for_skipping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_failures([ImageError("a.png", "file is empty")], [tmp_path, Path("b.png"), Path("c.txt")])
    assert capsys.readouterr().err.splitlines() == [
        "3 files or folders were skipped:",
        f"  {tmp_path}: class folder without images, not used as a class",
        "  b.png: image outside the class folders",
        "  c.txt: not an image by its extension",
        "1 image could not be used:",
        "  a.png: file is empty",
    ]
