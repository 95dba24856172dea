"""Listing and lookup of images in folders, URLs and patterns."""

from pathlib import Path

import pytest
from PIL import Image

from sppnet.data.listing import (
    LocalImages,
    RemoteImages,
    find_file,
    header_size,
    list_image_names,
    list_images,
    read_list,
)
from sppnet.errors import ImageError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_lists_images_of_nested_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a.jpg", ".hidden.jpg", "notes.txt", "z/c.webp", ".git/d.jpg", "film.mpg", "e.pdf")
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "z/c.webp"]
    assert list_images(str(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]
    (tmp_path / ".git" / "d.jpg").unlink()
    with pytest.raises(ImageError, match=r"\.git: the folder contains no images"):
        list_images(tmp_path / ".git")
    with pytest.raises(ImageError, match="gone: no such file or folder"):
        list_images(tmp_path / "gone")


def test_urls_and_patterns_are_listed_in_folder_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/z.JPG", "a/b/c.png", "c/a.png", "B.jpeg", ".hidden.png", "a/.git/d.png")
    touch(tmp_path, "note.txt", "text/a.txt")
    assert list_image_names(str(tmp_path)) == [str(path) for path in list_images(tmp_path)]
    assert list_image_names(f"file://{tmp_path}/") == [f"file://{path}" for path in list_images(tmp_path)]
    assert list_image_names(f"file://{tmp_path}/note.txt") == [f"file://{tmp_path}/note.txt"]
    assert list_image_names(f"{tmp_path}/**/*.png") == [
        str(tmp_path / name) for name in ("b.png", "a/b/c.png", "c/a.png")
    ]
    with pytest.raises(ImageError, match="no file matches the pattern"):
        list_image_names(f"file://{tmp_path}/*.tif")
    with pytest.raises(ImageError, match="no such file or folder"):
        list_image_names(f"file://{tmp_path}/none")
    with pytest.raises(ImageError, match="contains no images"):
        list_image_names(f"file://{tmp_path}/text")


def test_images_are_found_by_path_or_by_file_name(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.png", "b/x.png")
    Image.new("RGB", (7, 5)).save(tmp_path / "b" / "y.png")
    local, remote = LocalImages(tmp_path), RemoteImages(f"file://{tmp_path}")
    assert local.names() == remote.names() == ["a/x.png", "b/x.png", "b/y.png"]
    remote.read_sizes(["y.png", "a/x.png", "x.png", "gone.png"])
    for name, expected in {"a/x.png": ["a/x.png"], "y.png": ["b/y.png"], "x.png": ["a/x.png", "b/x.png"]}.items():
        assert local.find(name) == [tmp_path / path for path in expected]
        assert remote.find(name) == [f"file://{tmp_path}/{path}" for path in expected]
    assert not local.find("gone.png")
    assert not remote.find("gone.png")
    assert local.size(tmp_path / "b/y.png") == remote.size(f"file://{tmp_path}/b/y.png") == (5, 7)
    with pytest.raises(ImageError, match=r"a/x\.png: file is empty"):
        remote.size(f"file://{tmp_path}/a/x.png")
    touch(tmp_path.parent, "outside.png")
    with pytest.raises(ValueError, match=r"outside\.png is outside .*; name only images in this folder"):
        local.find("../outside.png")


def test_size_behind_a_long_header(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", comment=b"x" * 65_000, icc_profile=bytes(100_000))
    assert header_size(f"file://{tmp_path}/a.jpg") == header_size(tmp_path / "a.jpg") == (20, 30)


def test_finds_files_by_other_spellings_of_their_name(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "ba\u0308r.jpg", "e\\f.jpg", "__MACOSX/x.jpg")
    assert find_file(tmp_path, "in\\a.jpg") == tmp_path / "in/a.jpg"
    assert find_file(tmp_path, "b\u00e4r.jpg") == tmp_path / "ba\u0308r.jpg"
    assert find_file(tmp_path, "e\\f.jpg") == tmp_path / "e\\f.jpg"
    for name in ("gone.jpg", "in", "a\0b", "x" * 5000):
        assert find_file(tmp_path, name) is None


def test_skips_files_of_operating_systems(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", "__MACOSX/b.jpg", "in/@eaDir/c.jpg", "lost+found/d.jpg", "Thumbs.db")
    assert list_images(tmp_path) == [tmp_path / "a.jpg"]
    assert list_image_names(f"file://{tmp_path}") == [f"file://{tmp_path}/a.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"\xef\xbb\xbfa.png\r\n\r\nb c.png\n /x.png", ["a.png", "b c.png", " /x.png"]),
        ("a.txt", b"a\nb.png\0c.png\0", ["a\nb.png", "c.png"]),
        ("a.txt", b"\xff.png\ns3://bucket/a.png\n", ["\udcff.png", "s3://bucket/a.png"]),
        ("a.txt", b"sub\\a.png", ["sub/a.png"]),
        ("a.CSV", b'label, path\nx, "a, b.png"\n\ny,c.png\n', ["a, b.png", "c.png"]),
    ],
)
def test_reads_lists_of_paths(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    touch(tmp_path, "sub/a.png")
    (tmp_path / name).write_bytes(content)
    assert read_list(tmp_path / name) == [path if "://" in path else str(tmp_path / path) for path in expected]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", r"^list: expected paths in .*a\.txt, got none"),
        ("a.csv", b"path,label\n", r"^list: expected paths in .*a\.csv, got none"),
        ("a.csv", b"file,label\na.png,x\n", r"^list: expected one column path in .*a\.csv, got 'file,label'"),
        ("a.csv", b"label,path\nx,a.png\ny\n", r"^list: expected a path in .*a\.csv, line 3, got none"),
        ("a.csv", b'path\n"a.png', r"^list: expected CSV in .*a\.csv, got .*end of data in line 2"),
    ],
)
def test_rejects_lists_without_paths(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path / name)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_impossible_names_are_missing(name: str) -> None:
    for function in (list_images, list_image_names):
        with pytest.raises(ImageError, match="no such file or folder"):
            function(name)
