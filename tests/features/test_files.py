"""Computation of the files of box vectors: unreadable images, float16 range, images split over files."""

import re
from pathlib import Path

import pytest
import torch

from sppnet import RegionEncoder
from sppnet.data.formats.boxes import read_boxes
from sppnet.features.boxes import whole_images
from sppnet.features.vectors import compute_features, read_features
from tests.helpers.box_features import SIZES, read_index, write_features


def test_reports_unreadable_images_and_computes_the_others(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, image = tmp_path / "out", images / "in" / "b.png"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    for _ in range(2):
        assert write_features(images, boxes, out) == 1
        assert "1 image could not be used" in (errors := capsys.readouterr().err)
        assert "in/b.png: file is truncated" in errors
        assert read_index(out)["failures"] == [{"image": "in/b.png", "reason": "file is truncated"}]
        assert [item.image for item in read_features(out)] == ["a.png", "c.png", "d.png"]
        assert read_index(out)["shards"][0]["rows"] == 9
    image.write_bytes(content)
    assert write_features(images, boxes, out) == 0
    assert [item.image for item in read_features(out)] == list(SIZES)
    assert read_index(out)["failures"] == []


@pytest.mark.parametrize("storage", ["safetensors", "parquet"])
def test_writes_an_empty_file_if_no_image_is_readable(images: Path, tmp_path: Path, storage: str) -> None:
    if storage == "parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "one.csv").write_text("image,x,y,w,h\na.png,1,1,9,9\n")
    content = (images / "a.png").read_bytes()
    (images / "a.png").write_bytes(content[: len(content) // 2])
    assert write_features(images / "a.png", tmp_path / "one.csv", tmp_path / "out", "--storage", storage) == 1
    assert list(read_features(tmp_path / "out")) == []


def test_feature_map_beyond_the_float16_range_is_a_failure(images: Path, boxes: Path, tmp_path: Path) -> None:
    encoder = RegionEncoder("zf5", (2, 1), (100,))
    weight = [parameter for parameter in encoder.parameters() if parameter.ndim == 4][-1]
    weight.data *= 1e9
    data = read_boxes(boxes, images).images
    report = compute_features(encoder, data, images, tmp_path / "half")
    assert [failure.path for failure in report.failures] == list(SIZES)
    assert re.fullmatch(r"its feature map reaches [\d.e+]+, beyond the range of float16", report.failures[0].reason)
    report = compute_features(encoder, data, images, tmp_path / "float", dtype="float32")
    assert report.failures == ()
    assert all(item.vectors.isfinite().all() for item in read_features(tmp_path / "float"))


def test_splits_an_image_with_more_boxes_than_fit_into_a_file(
    images: Path, boxes: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppnet.features.vectors._MAX_ROWS", 2)
    assert write_features(images, boxes, tmp_path / "parts") == 0
    assert loaded == [Path(name).name for name in SIZES]
    monkeypatch.setattr("sppnet.features.vectors._MAX_ROWS", 100)
    assert write_features(images, boxes, tmp_path / "whole") == 0
    parts, whole = list(read_features(tmp_path / "parts")), list(read_features(tmp_path / "whole"))
    assert [len(item.ids) for item in parts] == [2, 1] * 4
    assert torch.equal(torch.cat([item.vectors for item in parts]), torch.cat([item.vectors for item in whole]))
    assert sum((item.ids for item in parts), ()) == sum((item.ids for item in whole), ())


def test_threads_do_not_change_the_files(images: Path, tmp_path: Path) -> None:
    (images / "in" / "b.png").write_bytes(b"no image")
    torch.set_num_threads(3)
    try:
        encoder = RegionEncoder("zf5", (2, 1), (100,))
        names = [images / name for name in SIZES]
        report = compute_features(encoder, whole_images(names), images, tmp_path / "threads", dtype="float32")
    finally:
        torch.set_num_threads(1)
    assert [failure.path for failure in report.failures] == ["in/b.png"]
    stored = list(read_features(tmp_path / "threads"))
    assert [item.image for item in stored] == [name for name in SIZES if name != "in/b.png"]
    for item in stored:
        height, width = SIZES[item.image]
        assert item.boxes.tolist() == [[0, 0, width, height]]
        assert torch.equal(item.vectors, encoder.predict(images / item.image)[0].vectors)
