import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.segment.model import Segmenter
from sppnet.segment.views import View, pixel_probabilities
from tests.helpers.tiny_segmenter import tiny_segmenter


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales: expected factors in 0.1..10"),
        ({"scales": (0.05,)}, "scales: expected factors in 0.1..10"),
        ({"tile": 64, "flip": True}, "tile: expected None if scales or flip is set, got 64"),
    ],
)
def test_rejects_illegal_views(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View(**options)  # type: ignore[arg-type]


def test_rejects_mirror_images_when_tiles_are_needed(model: Segmenter) -> None:
    message = r"memory: expected enough for 300 x 300 pixels at scales .*, got 1MB; raise it, or omit scales and flip"
    with pytest.raises(ValueError, match=message):
        View(flip=True, memory=1000).in_tiles(model, Image.new("RGB", (300, 300)))
