import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sppnet.inference.memory import parse_memory, pass_bytes
from sppnet.segment import memory as segment_memory
from sppnet.segment.memory import largest_tile, whole_fits
from sppnet.segment.model import Segmenter
from tests.helpers.tiny_segmenter import tiny_segmenter

GIGA = 10**9


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return tiny_segmenter()


@pytest.fixture
def _one_gigabyte_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_memory, "settled_bytes", lambda: GIGA)


@pytest.mark.usefixtures("_one_gigabyte_in_use")
def test_whole_image_fits_from_the_memory_of_its_pass(model: Segmenter) -> None:
    needed = GIGA + pass_bytes(model, 500, 400) + 2 * 4 * 3 * 500 * 400
    assert whole_fits(model, 500, 400, needed)
    assert not whole_fits(model, 500, 400, needed - 1)


@pytest.mark.usefixtures("_one_gigabyte_in_use")
@pytest.mark.parametrize("memory", [1_190_000_000, 1_300_000_000])
def test_tiles_are_as_large_as_memory_allows(model: Segmenter, memory: int) -> None:
    size, overlap, stride = (2000, 3000), 64, 16

    def needed(side: int) -> int:
        strips = 4 * 3 * (overlap + stride) * (size[1] + side)
        return GIGA + pass_bytes(model, side, side) + strips + 10 * side * side

    side = largest_tile(model, size, memory, overlap, stride)
    assert side % stride == 0
    assert needed(side) <= memory < needed(side + stride)


@pytest.mark.usefixtures("_one_gigabyte_in_use")
def test_tiles_are_no_larger_than_the_image(model: Segmenter) -> None:
    assert largest_tile(model, (300, 500), 100 * GIGA, 64, 16) == 512
    assert largest_tile(model, (20, 30), 100 * GIGA, 64, 16) == 160


@pytest.mark.usefixtures("_one_gigabyte_in_use")
def test_error_states_the_required_memory(model: Segmenter) -> None:
    with pytest.raises(ValueError, match=r"^memory: expected at least ") as error:
        largest_tile(model, (2000, 3000), 900 * 10**6, 32, 16)
    message = (
        r"at least (\d+MB) for an image of 2000 x 3000 pixels \(height x width\) in tiles of 128 x 128, got 900MB;"
        " the process already uses 1000MB"
    )
    required = re.search(message, str(error.value))
    assert required
    assert largest_tile(model, (2000, 3000), parse_memory(required[1]), 32, 16) >= 128


@pytest.mark.usefixtures("_one_gigabyte_in_use")
def test_pass_for_the_global_context_must_fit_too(model: Segmenter) -> None:
    memory = GIGA + pass_bytes(model, 1024, 700) - 1
    assert largest_tile(model, (2048, 1400), memory, 64, 16) >= 160
    with pytest.raises(ValueError, match="memory: "):
        largest_tile(model, (2048, 1400), memory, 64, 16, context=(1024, 700))


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from sppnet.data.images import load_image
from sppnet.segment.model import create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.segment.options import View
from sppnet.segment.tiles import segment_to_file
torch.set_num_threads(1)
model = create_segmenter(SegmenterConfig(tuple(map(str, range(11))), width=128)).eval()
folder = Path(sys.argv[1])
segment_to_file(model, load_image(folder / "image.jpg"), folder / "labels.npy", View(memory=int(sys.argv[2])))
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1_300_000_000, 2_000_000_000])
def test_peak_memory_of_a_large_image_is_within_the_limit(memory: int, tmp_path: Path) -> None:
    Image.effect_noise((4000, 3000), 60).convert("RGB").save(tmp_path / "image.jpg")
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(memory)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert memory * 0.6 < peak <= memory
