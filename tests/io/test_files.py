"""Atomic writes of JSON and safetensors files, and reading of safetensors files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sppnet.io.files import read_tensors, save_tensors, write_json


def test_failed_writes_keep_the_old_file(tmp_path: Path) -> None:
    config, weights = tmp_path / "run.json", tmp_path / "model.safetensors"
    write_json({"config": 1}, config)
    save_tensors({"a": torch.zeros(3)}, weights)
    old = config.read_bytes(), weights.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json({"config": object()}, config)
    tensor = torch.zeros(3)
    with pytest.raises(RuntimeError, match="share memory"):
        save_tensors({"a": tensor, "b": tensor}, weights)
    assert (config.read_bytes(), weights.read_bytes()) == old


@pytest.mark.parametrize("shared", [False, True])
def test_round_trip_of_tensors_and_metadata(tmp_path: Path, shared: bool) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(3)}
    save_tensors(tensors, tmp_path / "file", {"note": "Öl"}, shared=shared)
    loaded, metadata = read_tensors(tmp_path / "file")
    assert metadata == {"note": "Öl"}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert load_file(tmp_path / "file").keys() == tensors.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    save_file(tensors, tmp_path / "bare")
    assert read_tensors(tmp_path / "bare")[1] == {}
