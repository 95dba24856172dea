import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.inference.memory import MemoryLimitError
from sppnet.segment.model import Segmenter
from sppnet.segment.options import View
from sppnet.segment.views import map_images, needs_tiles, pixel_probabilities, segment_image
from tests.helpers.tiny_segmenter import HEADS, smooth_image, tiny_segmenter


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return tiny_segmenter()


def test_averages_probabilities_over_scales_and_mirror_images(model: Segmenter) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    single = pixel_probabilities(model, image)
    torch.testing.assert_close(single.sum(0), torch.ones(40, 50))
    flipped = pixel_probabilities(model, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).flip(2)
    torch.testing.assert_close(pixel_probabilities(model, image, flip=True), (single + flipped) / 2)
    averaged = pixel_probabilities(model, image, (1.0, 2.0))
    assert averaged.shape == single.shape
    double = pixel_probabilities(model, image, (2.0,))
    torch.testing.assert_close(2 * averaged - single, double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", HEADS)
def test_probabilities_are_float32_in_every_dtype(dtype: torch.dtype, options: dict[str, Any]) -> None:
    model, image = tiny_segmenter(**options), smooth_image(40, 50)
    expected = pixel_probabilities(model, image, (1.0, 0.5))
    model.to(dtype)
    assert model.dtype == dtype
    probabilities = pixel_probabilities(model, image, (1.0, 0.5))
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)
    for view in (View(memory=10**12), View(tile=192, overlap=32)):
        assert segment_image(model, smooth_image(200, 100), view).shape == (200, 100)


def test_rejects_mirror_images_when_tiles_are_needed(model: Segmenter) -> None:
    message = r"memory: expected enough for 300 x 200 pixels \(height x width\) at the scale factors .*, got 1MB"
    with pytest.raises(MemoryLimitError, match=message):
        needs_tiles(model, Image.new("RGB", (200, 300)), View(flip=True, memory=1000))


@pytest.mark.parametrize(
    ("passes", "in_caller"),
    [(0.5, [True] * 4), (1.2, [False, False, True, False]), (2.5, [False, False, True, False]), (1e9, [False] * 4)],
)
def test_images_share_the_memory_limit_of_the_view(
    passes: float, in_caller: list[bool], model: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third image needs three times the memory of the others."""
    monkeypatch.setattr("sppnet.segment.views.settled_bytes", lambda: 10**6)
    monkeypatch.setattr("sppnet.segment.views.whole_bytes", lambda _model, height, _width: 1000 * height)
    images = [smooth_image(height, 40) for height in (100, 100, 300, 100)]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    running, most, lock = [0], [0], threading.Lock()

    def run(image: Image.Image, view: View) -> bool:
        with lock:
            running[0] += image.height
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= image.height
        caller = threading.current_thread() is threading.main_thread()
        assert (view.memory is None) != caller
        return caller

    view = View(memory=10**6 + round(100_000 * passes))
    found = list(map_images(model, lambda image, _: image, run, images, lambda image: image, view))
    torch.set_num_threads(before)
    assert found == in_caller
    assert most[0] <= max(300, 100 * passes)
