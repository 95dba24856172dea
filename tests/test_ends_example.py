"""Images of examples/ends: the class is visible at the ends of an image only."""

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.helpers.scripts import load_script

SEEDS = [f"image {number}" for number in range(60)]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("examples/ends/run.py")


def center(image: Image.Image) -> Image.Image:
    """Crop the central square, plus one line of pixels if the difference of the sides is odd."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, image.width - left, image.height - top))


def test_classes_share_the_central_square_of_equal_seeds(example: ModuleType) -> None:
    for seed in SEEDS:
        images = [example.draw_image(seed, color) for color in example.COLORS.values()]
        first = np.asarray(images[0])
        assert all(np.array_equal(np.asarray(center(images[0])), np.asarray(center(image))) for image in images)
        # The ends differ visibly.
        changed = [(np.asarray(image) != first).any(2).sum() for image in images[1:]]
        assert min(changed) >= 3 * (0.14 * min(images[0].size)) ** 2 * 0.4


def test_center_crops_of_different_classes_are_identical(example: ModuleType) -> None:
    """Also after resizing: the filter does not reach the ends."""
    for seed in SEEDS[:20]:
        crops = [example.center_crop(example.draw_image(seed, color)) for color in example.COLORS.values()]
        assert len({crop.tobytes() for crop in crops}) == 1


@pytest.mark.parametrize("form", ["native sizes", "letterbox", "warp"])
def test_other_forms_differ_between_classes(example: ModuleType, form: str) -> None:
    for seed in SEEDS[:20]:
        images = [example.FORMS[form](example.draw_image(seed, color)) for color in example.COLORS.values()]
        assert len({image.tobytes() for image in images}) == len(images)


def test_both_orientations_and_the_range_of_aspect_ratios_occur(example: ModuleType) -> None:
    sizes = [example.draw_image(seed, (0, 0, 0)).size for seed in SEEDS]
    assert 20 < sum(width > height for width, height in sizes) < 40
    aspects = [max(size) / min(size) for size in sizes]
    assert 1.85 < min(aspects) < 2.0
    assert 2.85 < max(aspects) < 3.05


def test_forms_have_equal_area(example: ModuleType) -> None:
    image = example.draw_image("image", (0, 0, 0))
    area = image.width * image.height
    for transform in example.FORMS.values():
        transformed = transform(image)
        assert math.isclose(transformed.width * transformed.height, area, rel_tol=0.02)


def test_data_are_reproducible(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "COUNTS", {"train": 2, "val": 1})
    for name in ("a", "b"):
        example.write_images(tmp_path / name)
    files = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.png")) for name in "ab"]
    assert files[0] == files[1]
    assert len(files[0]) == 4 * 5 * 3
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files[0])
    assert len({(tmp_path / "a" / file).read_bytes() for file in files[0]}) == len(files[0])
