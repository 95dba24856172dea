"""Lists of images, skipped files and problems."""

from pathlib import Path

import pytest
from PIL import Image

from sppnet.cli.common import find_images, list_problems
from sppnet.errors import ImageError


def test_finds_images_and_lists_skipped_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.txt", "c.TXT", "d.heic"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    paths, failures = find_images([str(tmp_path), str(tmp_path / "missing.png")])
    assert paths == [tmp_path / "a.png"]
    assert [failure.path for failure in failures] == [str(tmp_path / "missing.png")]
    messages = capsys.readouterr().err
    assert f"skipped, not an image by its extension: {tmp_path / 'b.txt'} and 1 more with .txt\n" in messages
    assert f"skipped, not an image by its extension: {tmp_path / 'd.heic'}\n" in messages


def test_repeated_images_are_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert find_images(["a.png", str(tmp_path), "gone", "./a.png", "gone"])[0] == [Path("a.png")]
    assert "2 repeated images skipped" in capsys.readouterr().err


def test_lists_problems_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    list_problems(["b.png: image outside the class folders"], [ImageError("a.png", "file is empty")])
    assert capsys.readouterr().err.splitlines() == [
        "b.png: image outside the class folders",
        "1 image could not be used:",
        "  a.png: file is empty",
    ]
