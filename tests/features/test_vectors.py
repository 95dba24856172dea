"""Files of box vectors: content, index, resumption, changed images and settings."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sppnet import RegionEncoder
from sppnet.data.formats.boxes import ImageBoxes, read_boxes
from sppnet.features.shards import read_metadata
from sppnet.features.vectors import compute_features, plan_shards, read_features
from tests.helpers.box_features import OPTIONS, SIZES, boxes_of, read_index, write_features

# Run `sppnet features` with one image per file; the process kills itself when it loads the third image.
_KILLED_RUN = """
import itertools, os, signal, sys
from sppnet.cli.main import main
from sppnet.features import files, vectors

numbers, load = itertools.count(1), files.load_image

def load_or_die(source):
    if next(numbers) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return load(source)

files.load_image, vectors._MAX_IMAGES = load_or_die, 1
main(sys.argv[1:])
"""


def contents(out: Path) -> dict[str, Any]:
    """Return what a folder stores; its bytes vary with the order of the safetensors metadata."""
    shards = {path.name: (path.stat().st_size, read_metadata(path)) for path in out.glob("0*.*")}
    vectors = [(item.image, item.ids, item.boxes.tolist(), item.vectors.tolist()) for item in read_features(out)]
    return {"index": read_index(out), "shards": shards, "vectors": vectors}


@pytest.mark.parametrize("storage", ["safetensors", "parquet"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_files_contain_the_vectors_of_the_encoder(
    images: Path, boxes: Path, tmp_path: Path, storage: str, dtype: str, encoder: RegionEncoder
) -> None:
    if storage == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    assert write_features(images, boxes, out, "--storage", storage, "--dtype", dtype) == 0
    stored = list(read_features(out))
    assert [item.image for item in stored] == list(SIZES)
    for item in stored:
        assert item.ids == tuple(f"{item.image[-5]}{i}" for i in range(3))
        assert item.boxes.tolist() == boxes_of(item.image)
        assert item.boxes.dtype == torch.float32
        (expected,) = encoder(images / item.image, item.boxes)
        assert torch.equal(item.vectors, expected.to(getattr(torch, dtype)))
    assert read_index(out)["vector"]["length"] == encoder.length == stored[0].vectors.shape[1]


def test_index_describes_the_vectors(images: Path, boxes: Path, tmp_path: Path) -> None:
    assert write_features(images, boxes, tmp_path / "out") == 0
    content = read_index(tmp_path / "out")
    settings = content["settings"]
    assert content["complete"] is True
    assert content["shards"] == [{"file": "00000.safetensors", "rows": 12}]
    assert content["failures"] == []
    assert content["vector"] == {
        "length": 5 * 256,
        "channels": 256,
        "layout": "levels in the order given, inside a level channel, row, column",
    }
    assert {len(settings.pop(name)) for name in ("weights", "boxes")} == {16}
    assert settings == {
        "storage": "safetensors",
        "dtype": "float16",
        "backbone": "zf5",
        "stage": None,
        "levels": [2, 1],
        "scales": [100],
        "scale_rule": "paper",
        "max_side": 2000,
        "rule": "paper",
        "reduce": "max",
    }


def test_all_box_file_formats_give_the_same_vectors(images: Path, boxes: Path, tmp_path: Path) -> None:
    lines, annotations = [], []
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        scaled = [[x1 / width, y1 / height, x2 / width, y2 / height] for x1, y1, x2, y2 in boxes_of(name)]
        lines.append(json.dumps({"image": name, "boxes": scaled, "format": "xyxy-normalised"}))
        sides = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes_of(name)]
        annotations += [{"id": 3 * number + i, "image_id": number, "bbox": box} for i, box in enumerate(sides)]
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines))
    entries = [{"id": number, "file_name": name} for number, name in enumerate(SIZES)]
    (tmp_path / "boxes.json").write_text(json.dumps({"images": entries, "annotations": annotations}))
    vectors = []
    for file in (boxes, tmp_path / "boxes.jsonl", tmp_path / "boxes.json"):
        assert write_features(images, file, tmp_path / file.suffix[1:]) == 0
        vectors.append(torch.cat([item.vectors for item in read_features(tmp_path / file.suffix[1:])]))
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], vectors[2])


def test_recomputes_only_missing_and_damaged_files(
    images: Path, boxes: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppnet.features.vectors._MAX_IMAGES", 1)
    out = tmp_path / "out"
    assert write_features(images, boxes, out) == 0
    before = contents(out)
    assert len(before["shards"]) == 4
    (out / "00001.safetensors").unlink()
    (out / "00002.safetensors").write_bytes((out / "00002.safetensors").read_bytes()[:-9])
    (out / "index.json").write_text((out / "index.json").read_text().replace("true", "false"))
    loaded.clear()
    assert write_features(images, boxes, out) == 0
    assert loaded == ["b.png", "c.png"]
    assert contents(out) == before
    loaded.clear()
    assert write_features(images, boxes, out) == 0
    assert loaded == []


def test_recomputes_damaged_parquet_files(images: Path, boxes: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    assert write_features(images, boxes, tmp_path / "out", "--storage", "parquet") == 0
    path = tmp_path / "out" / "00000.parquet"
    before = path.read_bytes()
    path.write_bytes(before[:-5])
    assert write_features(images, boxes, tmp_path / "out", "--storage", "parquet") == 0
    assert path.read_bytes() == before


def test_killed_run_resumes_at_the_first_missing_file(
    images: Path, boxes: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["features", str(images), "--boxes", str(boxes), "--out", str(out), *OPTIONS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", _KILLED_RUN, *arguments], env=environment, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert sorted(path.name for path in out.iterdir()) == ["00000.safetensors", "00001.safetensors", "index.json"]
    with pytest.raises(ValueError, match="are incomplete; run the same command again"):
        read_features(out)
    monkeypatch.setattr("sppnet.features.vectors._MAX_IMAGES", 1)
    assert write_features(images, boxes, out) == 0
    assert loaded == ["c.png", "d.png"]
    assert write_features(images, boxes, tmp_path / "uninterrupted") == 0
    assert contents(out) == contents(tmp_path / "uninterrupted")


def test_recomputes_the_vectors_of_changed_images(
    images: Path, boxes: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppnet.features.vectors._MAX_IMAGES", 1)
    assert write_features(images, boxes, tmp_path / "out") == 0
    before = {item.image: item.vectors for item in read_features(tmp_path / "out")}
    Image.new("RGB", SIZES["c.png"][::-1], "red").save(images / "c.png")
    loaded.clear()
    assert write_features(images, boxes, tmp_path / "out") == 0
    assert loaded == ["c.png"]
    after = {item.image: item.vectors for item in read_features(tmp_path / "out")}
    assert [name for name in SIZES if not torch.equal(before[name], after[name])] == ["c.png"]


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"levels": (3, 1)}, {}, "levels [2, 1], not [3, 1]; choose another folder"),
        ({"scales": (100, 150)}, {}, "scales [100], not [100, 150]"),
        ({"max_side": 300}, {}, "max_side 2000, not 300"),
        ({"rule": "released"}, {}, "rule paper, not released"),
        ({"reduce": "avg"}, {}, "reduce max, not avg"),
        ({"scale_rule": "released"}, {}, "scale_rule paper, not released"),
        ({}, {"dtype": "float32"}, "dtype float16, not float32"),
        ({}, {"storage": "parquet"}, "storage safetensors, not parquet"),
        ({"rule": "roi_pool"}, {"dtype": "float32"}, "dtype float16, not float32; rule paper, not roi_pool"),
    ],
)
def test_rejects_folders_with_other_settings(
    images: Path, boxes: Path, tmp_path: Path, encoder: RegionEncoder, options: Any, arguments: Any, message: str
) -> None:
    if arguments.get("storage") == "parquet":
        pytest.importorskip("pyarrow")
    data = read_boxes(boxes, images).images
    compute_features(encoder, data, images, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = RegionEncoder(encoder.backbone, **{"levels": (2, 1), "scales": (100,), **options})
    with pytest.raises(ValueError, match=re.escape(f"contains results of other settings: {message}")):
        compute_features(other, data, images, tmp_path / "out", draw=1, **arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_on_bad_and_box_format_may_differ_between_runs(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_features(images, boxes, tmp_path / "out") == 0
    assert write_features(images, boxes, tmp_path / "out", "--on-bad", "clip", "--box-format", "xyxy") == 0
    assert write_features(images, boxes, tmp_path / "out", "--levels", "1") == 2
    assert f"out: {tmp_path / 'out'} contains results of other settings: levels" in capsys.readouterr().err


def test_rejects_folders_with_other_boxes_or_weights(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_features(images, boxes, tmp_path / "out") == 0
    data = read_boxes(boxes, images).images
    torch.manual_seed(1)
    other = RegionEncoder("zf5", (2, 1), (100,))
    with pytest.raises(ValueError, match=r"other settings: weights [0-9a-f]{16}, not [0-9a-f]{16}; choose another"):
        compute_features(other, data, images, tmp_path / "out")
    boxes.write_text(boxes.read_text().replace("44,45", "44,46", 1))
    assert write_features(images, boxes, tmp_path / "out") == 2
    assert "other settings: boxes " in capsys.readouterr().err


def test_lists_dropped_boxes(images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes.write_text(boxes.read_text() + "\nc.png,500,500,600,600,far")
    assert write_features(images, boxes, tmp_path / "out") == 2
    assert "a box outside the image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert write_features(images, boxes, tmp_path / "out", "--on-bad", "drop") == 0
    assert "1 boxes or images were clipped or skipped" in capsys.readouterr().err
    assert "line 14" in (tmp_path / "out" / "problems.txt").read_text()
    assert sum(len(item.ids) for item in read_features(tmp_path / "out")) == 12


def test_files_stay_below_the_size_limit(
    images: Path, encoder: RegionEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppnet.features.vectors._MAX_BYTES", 100_000)
    monkeypatch.setattr("sppnet.features.encoder._CHUNK", 20_000)
    repeated = torch.tensor([[1.0, 2, 30, 40]]).expand(500, 4).contiguous()
    data = [ImageBoxes(images / "a.png", repeated, tuple(map(str, range(500))))]
    report = compute_features(encoder, data, images, tmp_path / "out")
    assert report.files == -(-500 // (100_000 // (2 * encoder.length)))
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert 80_000 < max(sizes) < 110_000
    assert report.vectors == 500


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 9), st.integers(1, 4))
def test_plan_contains_each_box_once_and_splits_only_large_images(counts: list[int], rows: int, images: int) -> None:
    plan = plan_shards(counts, rows, images)
    planned = [(piece.image, box) for shard in plan for piece in shard for box in range(piece.start, piece.stop)]
    assert planned == [(image, box) for image, count in enumerate(counts) for box in range(count)]
    for shard in plan:
        assert 1 <= len(shard) <= images
        assert sum(piece.stop - piece.start for piece in shard) <= rows
        for piece in shard:
            assert counts[piece.image] > rows or (piece.start, piece.stop) == (0, counts[piece.image])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--levels", "2,0"], "smallest level is 1"),
        (["--scales", "1"], "scales: expected shorter sides of at least"),
        (["--max-side", "50"], "max_side: expected at least the largest scale"),
        (["--draw", "-1"], "draw: expected 0 or more images, got -1"),
        (["--device", "abacus"], "device: expected an available device, got 'abacus'"),
        (["--weights", "hub"], "expected 'none' or a safetensors file for zf5, got 'hub'"),
        (["--box-format", "xywh"], "box_format: expected xyxy or xyxy-normalised for"),
    ],
)
def test_exits_with_2_for_invalid_arguments(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert write_features(images, boxes, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_read_features_rejects_folders_without_a_valid_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one written by `sppnet features` or .*, got .* without index.json"):
        read_features(tmp_path)


def test_local_folders_may_be_strings(
    images: Path, boxes: Path, tmp_path: Path, encoder: RegionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = read_boxes(boxes, "images").images
    compute_features(encoder, data, "images", "local/out", draw=1)
    assert [item.image for item in read_features("local/out")] == list(SIZES)
    assert (tmp_path / "local" / "out" / "pictures" / "00000-a.png").is_file()
    compute_features(encoder, read_boxes(boxes, images).images, images, tmp_path / "same")
    assert read_index(tmp_path / "same")["settings"] == read_index(tmp_path / "local" / "out")["settings"]


def test_draws_pictures_of_the_first_images(images: Path, boxes: Path, tmp_path: Path) -> None:
    assert write_features(images, boxes, tmp_path / "out", "--draw", "2") == 0
    names = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert names == ["00000-a.png", "00001-b.png"]
