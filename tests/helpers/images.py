"""Small classification data sets, written as image files."""

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60)}


def write_classes(root: Path, count: int, sides: tuple[int, int] = (40, 90)) -> Path:
    """Write class folders of noise around the color of the class, with random sides from the range `sides`."""
    rng = np.random.default_rng(count)
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            height, width = rng.integers(*sides, 2)
            pixels = rng.normal(color, 10, (height, width, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def write_files(root: Path, *names: str) -> Path:
    """Write small images, or text files for names ending in .txt."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("a note")
        else:
            Image.new("RGB", (3, 2)).save(path)
    return root
