"""A small segmentation data set of red discs and blue squares on noise, written as real files in each layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

CLASSES = ("background", "disc", "square")
Layout = Literal["camvid", "voc", "pairs"]

_COLOURS = {1: (200, 60, 60), 2: (60, 60, 200)}
_VOID = 255


def write_shapes(
    folder: Path,
    layout: Layout = "camvid",
    images: Mapping[str, int] | int = 6,
    size: tuple[int, int] = (64, 80),
    *,
    class_file: bool = True,
    seed: int = 0,
) -> Path:
    """Images with one to three shapes each, ids 0, 1 and 2, and a rim of 255 round each shape where the layout is VOC.

    Args:
        folder: made if need be.
        layout: ``camvid``: train, trainannot, ...; ``voc``: palette masks and lists; ``pairs``: train/images,
            train/masks, ..., with _mask behind the names.
        images: how many, by split; a number is that many in train and half of it, at least one, in val.
        size: (height, width) of the images, pixels.
        class_file: write classes.txt.
        seed: of the shapes.
    """
    rng = np.random.default_rng(seed)
    counts = {"train": images, "val": max(images // 2, 1)} if isinstance(images, int) else dict(images)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        names = [f"{split}_{number}" for number in range(count)]
        for name in names:
            pixels, ids = draw_shapes(rng, size, rim=layout == "voc")
            image, mask = _places(folder, layout, split, name)
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(image)
            save_mask(ids, mask, palette=layout == "voc")
        if layout == "voc":
            file = folder / "ImageSets/Segmentation" / f"{split}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(names) + "\n")
    if class_file:
        (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def draw_shapes(rng: np.random.Generator, size: tuple[int, int], rim: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 (height, width, 3), and its ids, uint8 (height, width)."""
    pixels = rng.normal(110, 12, (*size, 3))
    ids = np.zeros(size, np.uint8)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for _ in range(rng.integers(1, 4)):
        value = int(rng.integers(1, 3))
        radius = min(size) * rng.uniform(0.15, 0.25)
        down, right = (np.abs(at - rng.uniform(0, side)) for at, side in zip((rows, columns), size, strict=True))
        distance = np.hypot(down, right) if value == 1 else np.maximum(down, right)
        if rim:
            ids[distance <= radius + 1] = _VOID
        ids[distance <= radius] = value
        pixels[distance <= radius] = rng.normal(_COLOURS[value], 12, (int((distance <= radius).sum()), 3))
    return pixels.clip(0, 255).astype(np.uint8), ids


def save_mask(ids: np.ndarray, path: Path, palette: bool = False) -> Path:
    """A grey mask, or one whose palette has colours that say nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(ids)
    if palette:
        mask.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    mask.save(path)
    return path


def _places(folder: Path, layout: Layout, split: str, name: str) -> tuple[Path, Path]:
    if layout == "camvid":
        return folder / split / f"{name}.png", folder / f"{split}annot" / f"{name}.png"
    if layout == "voc":
        return folder / "JPEGImages" / f"{name}.png", folder / "SegmentationClass" / f"{name}.png"
    return folder / split / "images" / f"{name}.png", folder / split / "masks" / f"{name}_mask.png"
