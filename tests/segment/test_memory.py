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
from sppnet.segment import memory as tiles_memory
from sppnet.segment.memory import greatest_tile, whole_fits
from sppnet.segment.model import Segmenter, SegmenterConfig, create_segmenter

GIGA = 10**9


@pytest.fixture(scope="module")
def model() -> Segmenter:
    config = SegmenterConfig(("a", "b", "c"), "test_efficientnet", width=16)
    return create_segmenter(config, "none").eval()


@pytest.fixture
def _one_gigabyte_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "settled_bytes", lambda: GIGA)
    monkeypatch.setattr(tiles_memory, "settled_bytes", lambda: GIGA)


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
def test_memory_as_people_write_it(text: str | int, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "3 TB", "-1GB", "0", "0.1", "3GB4", "1e9", 0, -5])
def test_what_is_no_memory_is_refused(text: str | int) -> None:
    expected = f"memory: expected a size such as 3GB, 512MB or 2GiB, or a number of bytes; got {text!r}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_memory(text)


def test_live_bytes_are_those_of_tensors_that_something_still_holds() -> None:
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
def test_a_pass_is_counted_as_its_tensors_live_on_the_cpu(model: Segmenter, size: tuple[int, int]) -> None:
    with torch.no_grad(), memory._LiveBytes() as live:
        model(torch.rand(1, 3, *size).to(memory_format=torch.channels_last))
    largest = max(parameter.nbytes for parameter in model.parameters())
    tensors = pass_bytes(model, *size) - memory._RESERVE - memory._WEIGHT_COPIES * largest
    counted = tensors / memory._HOLES
    assert counted == pytest.approx(live.peak, rel=0.1)


def test_a_pass_of_many_classes_is_counted_with_three_maps_of_them() -> None:
    model = create_segmenter(SegmenterConfig(tuple(map(str, range(500))), "test_efficientnet", width=16), "none")
    assert pass_bytes(model, 200, 300) > 3 * 4 * 500 * 200 * 300


def test_a_model_is_as_it_was_after_its_passes_were_counted(model: Segmenter) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pass_bytes(model, 64, 64)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_freed_memory_is_not_held() -> None:
    held = settled_bytes()
    blocks = [np.ones(10**6, np.uint8) for _ in range(200)]
    assert settled_bytes() > held + 150 * 10**6
    del blocks[:-1]  # the last block keeps the others from the heap's end
    assert settled_bytes() < held + 20 * 10**6


@pytest.mark.usefixtures("_one_gigabyte_is_held")
def test_an_image_is_looked_at_whole_where_memory_allows_it(model: Segmenter) -> None:
    needed = GIGA + pass_bytes(model, 500, 400) + 2 * 4 * 3 * 500 * 400
    assert whole_fits(model, 500, 400, needed)
    assert not whole_fits(model, 500, 400, needed - 1)


@pytest.mark.usefixtures("_one_gigabyte_is_held")
@pytest.mark.parametrize("memory", [1_190_000_000, 1_300_000_000])
def test_tiles_are_as_large_as_memory_allows(model: Segmenter, memory: int) -> None:
    size, overlap, stride = (2000, 3000), 64, 16

    def needed(side: int) -> int:
        strips = 4 * 3 * (overlap + stride) * (size[1] + side)
        return GIGA + pass_bytes(model, side, side) + strips + 10 * side * side

    side = greatest_tile(model, size, memory, overlap, stride)
    assert side % stride == 0
    assert needed(side) <= memory < needed(side + stride)


@pytest.mark.usefixtures("_one_gigabyte_is_held")
def test_tiles_are_no_larger_than_the_image(model: Segmenter) -> None:
    assert greatest_tile(model, (300, 500), 100 * GIGA, 64, 16) == 512
    assert greatest_tile(model, (20, 30), 100 * GIGA, 64, 16) == 160


@pytest.mark.usefixtures("_one_gigabyte_is_held")
def test_too_little_memory_says_what_would_do(model: Segmenter) -> None:
    with pytest.raises(ValueError, match="memory: 900MB are not enough") as error:
        greatest_tile(model, (2000, 3000), 900 * 10**6, 32, 16)
    found = re.search(r"in tiles of 128 x 128: 1000MB are held already, .* at least (\d+MB)$", str(error.value))
    assert found
    assert greatest_tile(model, (2000, 3000), parse_memory(found[1]), 32, 16) >= 128


@pytest.mark.usefixtures("_one_gigabyte_is_held")
def test_a_reduced_copy_has_to_fit_too(model: Segmenter) -> None:
    memory = GIGA + pass_bytes(model, 1024, 700) - 1
    assert greatest_tile(model, (2048, 1400), memory, 64, 16) >= 160
    with pytest.raises(ValueError, match="memory: "):
        greatest_tile(model, (2048, 1400), memory, 64, 16, context=(1024, 700))


@pytest.mark.usefixtures("_one_gigabyte_is_held")
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
def test_decoding_is_refused_where_memory_is_too_small(
    name: str, options: dict[str, Any], pixel: int, tmp_path: Path
) -> None:
    image = Image.new(options.pop("mode", "RGB"), (2000, 1000))
    image.save(tmp_path / name, **options)
    check_decoding(tmp_path / name, GIGA + pixel * 2_000_000)
    expected = f"memory: 1000MB are not enough to decode .*{name}, 1000 x 2000 pixels: 1000MB are held"
    with pytest.raises(ValueError, match=f"{expected} already, .* at least {1000 + 2 * pixel}MB"):
        check_decoding(tmp_path / name, GIGA)


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from sppnet.data.images import load_image
from sppnet.segment.model import SegmenterConfig, create_segmenter
from sppnet.segment.tiles import segment_to_file
torch.set_num_threads(1)
model = create_segmenter(SegmenterConfig(tuple(map(str, range(11))), width=128)).eval()
folder = Path(sys.argv[1])
segment_to_file(model, load_image(folder / "image.jpg"), folder / "labels.npy", memory=int(sys.argv[2]))
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1_300_000_000, 2_000_000_000])
def test_the_peak_of_a_huge_image_stays_within_the_memory(memory: int, tmp_path: Path) -> None:
    Image.effect_noise((4000, 3000), 60).convert("RGB").save(tmp_path / "image.jpg")
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(memory)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert memory * 0.6 < peak <= memory
