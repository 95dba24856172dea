"""Writer of a small detection data set in VOC layout: bright discs and squares on noise."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("disc", "square")


def write_voc(root: Path, train: int, test: int, side: int = 96) -> Path:
    """Write images with two to four objects each, except for the first image of each split, which has none."""
    rng = np.random.default_rng(0)
    (root / "JPEGImages").mkdir(parents=True)
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        names = [f"{split}{number}" for number in range(count)]
        for number, name in enumerate(names):
            pixels = rng.normal(90, 12, (side, side + 16, 3))
            objects = "" if number == 0 else _draw(pixels, rng)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "JPEGImages" / f"{name}.png")
            text = f"<annotation><filename>{name}.png</filename>{objects}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def _draw(pixels: np.ndarray, rng: np.random.Generator) -> str:
    """Draw objects in different quadrants, so that they do not overlap, and return their XML."""
    height, width = pixels.shape[:2]
    text = ""
    for corner in rng.permutation(4)[: rng.integers(2, 5)]:
        size = int(rng.integers(22, 36))
        left = int(rng.integers(0, width // 2 - size)) + (corner % 2) * width // 2
        top = int(rng.integers(0, height // 2 - size)) + (corner // 2) * height // 2
        name = CLASSES[int(rng.integers(2))]
        rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
        inside = rows**2 + columns**2 <= (size / 2) ** 2 if name == "disc" else np.ones((size, size), dtype=bool)
        color = (230, 210, 60) if name == "disc" else (60, 90, 220)
        pixels[top : top + size, left : left + size][inside] = color
        corners = (left + 1, top + 1, left + size, top + size)
        box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        text += f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
    return text
