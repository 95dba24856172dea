"""Writers of small segmentation data sets: red discs and blue squares on noise, and single-row masks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from sppnet.data.formats.masks import load_mask
from sppnet.data.formats.segmentation import SegmentationData

CLASSES = ("background", "disc", "square")
Layout = Literal["camvid", "voc", "pairs"]

_COLORS = {1: (200, 60, 60), 2: (60, 60, 200)}
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
    """Write images with one to three shapes each, and masks with the ids 0, 1 and 2 and, for VOC, 255 around shapes.

    Args:
        folder: root of the data set; created if missing.
        layout: ``camvid``: train, trainannot, ...; ``voc``: palette masks and lists; ``pairs``: train/images,
            train/masks, ..., with the suffix _mask.
        images: number of images by split; an integer n means n in train and max(n // 2, 1) in val.
        size: (height, width) of the images, pixels.
        class_file: whether to write classes.txt.
        seed: seed of the random shapes.
    """
    rng = np.random.default_rng(seed)
    counts = {"train": images, "val": max(images // 2, 1)} if isinstance(images, int) else dict(images)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        names = [f"{split}_{number}" for number in range(count)]
        for name in names:
            pixels, ids = draw_shapes(rng, size, rim=layout == "voc")
            image, mask = _paths(folder, layout, split, name)
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
    """Draw an image, uint8 (height, width, 3), and its ids, uint8 (height, width)."""
    pixels = rng.normal(110, 12, (*size, 3))
    ids = np.zeros(size, np.uint8)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for _ in range(rng.integers(1, 4)):
        value = int(rng.integers(1, 3))
        radius = min(size) * rng.uniform(0.15, 0.25)
        down, right = (
            np.abs(position - rng.uniform(0, side)) for position, side in zip((rows, columns), size, strict=True)
        )
        distance = np.hypot(down, right) if value == 1 else np.maximum(down, right)
        if rim:
            ids[distance <= radius + 1] = _VOID
        ids[distance <= radius] = value
        pixels[distance <= radius] = rng.normal(_COLORS[value], 12, (int((distance <= radius).sum()), 3))
    return pixels.clip(0, 255).astype(np.uint8), ids


def save_mask(ids: np.ndarray, path: Path, palette: bool = False) -> Path:
    """Save a gray mask, or a palette mask with random colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(ids)
    if palette:
        mask.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    mask.save(path)
    return path


def write_pair(
    root: Path, name: str, ids: list[int], images: str = "images", masks: str = "masks", suffix: str = ""
) -> None:
    """Write an image of one row and its mask."""
    for folder in (images, masks):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (len(ids), 1)).save(root / images / f"{name}.jpg")
    save_mask(np.array([ids], np.uint8), root / masks / f"{name}{suffix}.png")


def class_indices(data: SegmentationData, number: int = 0) -> list[int]:
    """Return the class indices in the first row of a mask."""
    indices: list[int] = load_mask(data.samples[number].mask, data.labels)[0].tolist()
    return indices


def _paths(folder: Path, layout: Layout, split: str, name: str) -> tuple[Path, Path]:
    if layout == "camvid":
        return folder / split / f"{name}.png", folder / f"{split}annot" / f"{name}.png"
    if layout == "voc":
        return folder / "JPEGImages" / f"{name}.png", folder / "SegmentationClass" / f"{name}.png"
    return folder / split / "images" / f"{name}.png", folder / split / "masks" / f"{name}_mask.png"
