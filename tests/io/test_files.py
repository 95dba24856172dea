"""JSON files read into dataclasses, and atomic writes of JSON and safetensors files."""

import errno
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sppnet.io.files import read_json, read_tensors, save_tensors, write_json


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


def test_round_trip_of_tensors_and_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(3)}
    save_tensors(tensors, tmp_path / "file", {"note": "Öl"})
    loaded, metadata = read_tensors(tmp_path / "file")
    assert metadata == {"note": "Öl"}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert load_file(tmp_path / "file").keys() == tensors.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    save_file(tensors, tmp_path / "bare")
    assert read_tensors(tmp_path / "bare")[1] == {}


@dataclass
class Settings:
    name: str
    sides: tuple[int, ...] = ()


def test_reads_json_into_a_dataclass(tmp_path: Path) -> None:
    file, name = tmp_path / "settings.json", os.fsdecode(b"\xff")
    write_json({"name": name, "sides": [3, 5]}, file)
    assert read_json(file, Settings) == Settings(name, (3, 5))
    assert read_json(file, dict) == {"name": name, "sides": [3, 5]}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"{}", b'{"name": 1}', b'{"name": "a", "sides": [1.5]}']
)
def test_damaged_json_is_reported_with_its_path(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "settings.json"
    file.write_bytes(content)
    message = (
        rf"^{file} is damaged or was not written by this program \(.*\); restore it from a copy or write it again$"
    )
    with pytest.raises(ValueError, match=message):
        read_json(file, Settings)


def test_rejects_unknown_fields(tmp_path: Path) -> None:
    write_json({"name": "a", "color": 1}, tmp_path / "settings.json")
    with pytest.raises(ValueError, match=r"settings\.json has unknown fields: color; it is from another version"):
        read_json(tmp_path / "settings.json", Settings)


def test_tensors_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_tensors({"a": torch.zeros(3)}, tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_full_disk_is_an_os_error_that_names_the_file(tmp_path: Path) -> None:
    """A limit of the file size stands for a full disk."""
    handler, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as tensors:
            save_tensors({"a": torch.zeros(5000)}, tmp_path / "file")
        with pytest.raises(OSError, match="File too large") as text:
            write_json(["a"] * 5000, tmp_path / "list")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert [tensors.value.errno, text.value.errno] == [errno.EFBIG] * 2
    assert tensors.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_missing_file_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        read_tensors(tmp_path / "missing")
    assert str(error.value.filename) == str(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        read_tensors(tmp_path)
