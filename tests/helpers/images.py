"""Small images that a network can tell apart, written as real files."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60)}


def write_classes(root: Path, count: int, sides: tuple[int, int] = (40, 90)) -> Path:
    """A folder of class folders: noise about a colour, sizes drawn from the range of sides."""
    rng = np.random.default_rng(count)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            height, width = rng.integers(*sides, 2)
            pixels = rng.normal(colour, 10, (height, width, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root
