"""File formats of box vectors: layout for other readers, damaged files, missing pyarrow."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sppnet.features.shards import Shard, read_metadata, read_shard, save_shard
from tests.helpers.box_features import SIZES, write_features


@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_read_shard_returns_what_was_saved(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"0.{suffix}"
    shard = Shard(
        torch.randn(3, 5).to(dtype), torch.rand(3, 4), torch.tensor([0, 0, 1]), ("ü.png", "b.png"), ("x", "y", "x")
    )
    save_shard(shard, path, {"source": "digest"})
    stored = read_shard(path)
    assert torch.equal(stored.vectors, shard.vectors)
    assert stored.vectors.dtype == dtype
    assert torch.equal(stored.boxes, shard.boxes)
    assert torch.equal(stored.image, shard.image)
    assert (stored.images, stored.ids) == (shard.images, shard.ids)
    assert (read_metadata(path) or {})["source"] == "digest"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
def test_missing_and_damaged_files_have_no_metadata(tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"0.{suffix}"
    assert read_metadata(path) is None
    save_shard(Shard(torch.rand(1, 5), torch.rand(1, 4), torch.tensor([0]), ("a",), ("x",)), path, {})
    path.write_bytes(path.read_bytes()[:-5])
    assert read_metadata(path) is None
    with pytest.raises(ValueError, match=str(path)):
        read_shard(path)


def test_files_are_readable_without_this_package(images: Path, boxes: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    assert write_features(images, boxes, tmp_path / "out") == 0
    with safe_open(tmp_path / "out" / "00000.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert {name: (array.shape, str(array.dtype)) for name, array in tensors.items()} == {
        "vectors": ((12, 1280), "float16"),
        "boxes": ((12, 4), "float32"),
        "image": ((12,), "int64"),
    }
    assert [json.loads(metadata["images"])[number] for number in tensors["image"][::3]] == list(SIZES)
    assert json.loads(metadata["ids"])[:4] == ["a0", "a1", "a2", "b0"]

    parquet = pytest.importorskip("pyarrow.parquet")
    assert write_features(images, boxes, tmp_path / "table", "--storage", "parquet") == 0
    table = parquet.read_table(tmp_path / "table" / "00000.parquet")
    assert table.column_names == ["image", "id", "x1", "y1", "x2", "y2", "vector"]
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: halffloat>[1280]"
    row = table.slice(4, 1).to_pylist()[0]
    assert (row["image"], row["id"], row["x1"], row["x2"]) == ("in/b.png", "b1", 10.0, 45.0)
    assert row["vector"] == tensors["vectors"][4].tolist()


def test_parquet_without_pyarrow_names_the_extra(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert write_features(images, boxes, tmp_path / "out", "--storage", "parquet") == 1
    assert "need the package pyarrow" in (message := capsys.readouterr().err)
    assert "the extra 'features'" in message
    assert not (tmp_path / "out").exists()
