import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.inference import memory
from sppnet.inference.memory import check_decoding, parse_memory, pass_bytes, settled_bytes
from sppnet.segment.model import Segmenter
from tests.helpers.tiny_segmenter import tiny_segmenter

GIGA = 10**9


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return tiny_segmenter()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3GB", 3 * GIGA),
        ("512MB", 512 * 10**6),
        ("1.5 gb", 1_500_000_000),
        ("2GiB", 2**31),
        ("7kib", 7168),
        ("100", 100),
        ("10 b", 10),
        (123, 123),
    ],
)
def test_parses_memory_sizes(text: str | int, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "3 TB", "-1GB", "0", "0.1", "3GB4", "1e9", 0, -5])
def test_rejects_invalid_memory_sizes(text: str | int) -> None:
    expected = f"memory: expected a size such as 3GB, 512MB or 2GiB, or a number of bytes, got {text!r}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_memory(text)


def test_live_bytes_include_only_referenced_tensors() -> None:
    with memory._LiveBytes() as live:
        first = torch.empty(1000, device="meta")  # 4,000 bytes
        second = first + 1
        assert live.peak == 8000
        del first
        third = second + 1
        assert live.peak == 8000
        view = third.view(10, 100)[2:]
        del second, third
        fourth = torch.empty(2000, device="meta")
        assert live.peak == 4000 + 8000
    del view, fourth


@pytest.mark.parametrize("size", [(96, 128), (250, 130)])
def test_pass_bytes_match_live_tensors_on_the_cpu(model: Segmenter, size: tuple[int, int]) -> None:
    with torch.no_grad(), memory._LiveBytes() as live:
        model(torch.rand(1, 3, *size).to(memory_format=torch.channels_last))
    largest = max(parameter.nbytes for parameter in model.parameters())
    tensors = pass_bytes(model, *size) - memory._RESERVE - memory._WEIGHT_COPIES * largest
    assert tensors / memory._OVERHEAD == pytest.approx(live.peak, rel=0.1)


def test_pass_bytes_include_three_maps_of_all_classes() -> None:
    model = tiny_segmenter(classes=tuple(map(str, range(500))))
    assert pass_bytes(model, 200, 300) > 3 * 4 * 500 * 200 * 300


def test_pass_bytes_leave_the_model_unchanged(model: Segmenter) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pass_bytes(model, 64, 64)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_pass_bytes_follow_the_dtype_of_the_weights() -> None:
    model = tiny_segmenter()
    single = pass_bytes(model, 600, 600)
    assert pass_bytes(model.bfloat16(), 600, 600) < single < pass_bytes(model.double(), 600, 600)


def test_resident_bytes_include_written_memory() -> None:
    # In a new process: the pages of a process with gigabytes can be swapped out in between.
    code = (
        "import numpy; from sppnet.inference.memory import resident_bytes; before = resident_bytes();"
        "array = numpy.ones(100 * 10**6, numpy.uint8); print(resident_bytes() - before)"
    )
    added = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 95 * 10**6 < added < 110 * 10**6


@pytest.mark.slow
def test_settled_bytes_exclude_freed_memory() -> None:
    before = settled_bytes()
    blocks = [np.ones(10**6, np.uint8) for _ in range(200)]
    assert settled_bytes() > before + 150 * 10**6
    del blocks[:-1]  # the last block is at the end of the heap, which therefore cannot shrink
    assert settled_bytes() < before + 20 * 10**6


@pytest.mark.parametrize(
    ("name", "options", "pixel"),
    [
        ("a.jpg", {}, 10),
        ("progressive.jpg", {"progressive": True}, 10),
        ("turned.jpg", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}, 12),
        ("a.webp", {}, 20),
        ("alpha.png", {"mode": "RGBA"}, 20),
        ("sixteen.png", {"mode": "I;16"}, 24),
    ],
)
def test_rejects_decoding_beyond_the_memory_limit(
    name: str, options: dict[str, Any], pixel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "settled_bytes", lambda: GIGA)
    mode = options.get("mode", "RGB")
    Image.new(mode, (2000, 1000)).save(tmp_path / name, **{key: options[key] for key in options if key != "mode"})
    check_decoding(tmp_path / name, GIGA + pixel * 2_000_000)
    expected = f"memory: expected at least {1000 + 2 * pixel}MB to decode .*{name}, 1000 x 2000 pixels .*, got 1000MB"
    with pytest.raises(ValueError, match=f"{expected}; the process already uses 1000MB"):
        check_decoding(tmp_path / name, GIGA)
