"""Fixtures shared by the tests of box vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet import RegionEncoder
from sppnet.data.images import load_image
from tests.helpers.box_features import SIZES, boxes_of


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folder of noise images."""
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """Box file with three boxes per image."""
    rows = [f"{name},{','.join(map(str, box))},{name[-5]}{i}" for name in SIZES for i, box in enumerate(boxes_of(name))]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x1,y1,x2,y2,id", *rows]))
    return tmp_path / "boxes.csv"


@pytest.fixture(scope="package")
def encoder() -> RegionEncoder:
    torch.manual_seed(0)
    return RegionEncoder("zf5", (2, 1), (100,))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were loaded for computing vectors."""
    names: list[str] = []

    def load(path: Path) -> Image.Image:
        names.append(path.name)
        return load_image(path)

    monkeypatch.setattr("sppnet.features.files.load_image", load)
    return names
