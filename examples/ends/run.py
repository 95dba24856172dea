"""Compare native sizes, letterboxing, warping and center crops on long images with the evidence at their ends.

The images are generated. Each has a texture and a mark of saturated color at one or both ends of its longer side. The
color of the mark is the class. The central square contains no mark.
"""

import argparse
import math
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from rich.console import Console
from rich.table import Table

from sppnet.classify.evaluate import evaluate_classifier
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.train import train_classifier
from sppnet.data.formats.classification import read_classification
from sppnet.registry import load_classifier

SEED = 7
COUNTS = {"train": 80, "val": 40}  # images per class
COLORS = {
    "blue": (40, 70, 210),
    "green": (40, 170, 60),
    "orange": (240, 140, 20),
    "purple": (150, 40, 180),
    "red": (210, 40, 40),
}
SHORT = (56, 80)  # pixels of the shorter side
ASPECT = (1.9, 3.0)  # longer over shorter side; below 1.9 marks do not fit outside the central square
RADIUS = (0.14, 0.22)  # radius of a mark, relative to the shorter side
BLOTS = 12

OPTIONS = ClassifyOptions(train_stages="all", stage=3, sizes="native", epochs=8, batch=16, lr=1e-3)


def draw_image(seed: str, color: tuple[int, int, int]) -> Image.Image:
    """Draw an image with marks of a color; everything else depends on the seed only."""
    rng = np.random.default_rng(list(seed.encode()))
    short = int(rng.integers(SHORT[0], SHORT[1] + 1))
    long = round(short * rng.uniform(*ASPECT))
    image = _texture(rng, short, long)
    upright = rng.random() < 0.5
    marked = ((0,), (1,), (0, 1))[rng.integers(3)]  # the first end, the last, or both
    draw = ImageDraw.Draw(image)
    for end in (0, 1):
        radius = rng.uniform(*RADIUS) * short
        along = rng.uniform(radius, (long - short) / 2 - radius - 1)
        across = rng.uniform(radius, short - radius)
        corners, rotation = int(rng.integers(3, 9)), int(rng.integers(360))
        if end in marked:
            draw.regular_polygon((long - along if end else along, across, radius), corners, rotation, color)
    return image.transpose(Image.Transpose.ROTATE_90) if upright else image


def _texture(rng: np.random.Generator, short: int, long: int) -> Image.Image:
    """Draw smooth noise with blots of muted colors."""
    coarse = rng.integers(100, 156, (short // 20, long // 20, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((long, short), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(BLOTS):
        x, y, radius = rng.uniform(0, long), rng.uniform(0, short), rng.uniform(0.05, 0.2) * short
        color = tuple(int(value) for value in rng.integers(80, 176, 3))
        draw.regular_polygon((x, y, radius), int(rng.integers(3, 9)), int(rng.integers(360)), color)
    return image


def native(image: Image.Image) -> Image.Image:
    """Return the unchanged image."""
    return image


def letterbox(image: Image.Image) -> Image.Image:
    """Center the image in a gray square of equal area."""
    return ImageOps.pad(image, _square(image), color=(128, 128, 128))


def warp(image: Image.Image) -> Image.Image:
    """Warp the image to a square of equal area."""
    return image.resize(_square(image), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image) -> Image.Image:
    """Crop the central square and enlarge it to equal area."""
    return ImageOps.fit(image, _square(image))


def _square(image: Image.Image) -> tuple[int, int]:
    side = round(math.sqrt(image.width * image.height))
    return side, side


FORMS = {"native sizes": native, "letterbox": letterbox, "warp": warp, "center crop": center_crop}


def write_images(root: Path) -> None:
    """Write one data set per form: a folder of splits of class folders."""
    for split, count in COUNTS.items():
        for name, color in COLORS.items():
            for number in range(count):
                image = draw_image(f"{SEED} {split} {name} {number}", color)
                for form, transform in FORMS.items():
                    path = root / form / split / name / f"{number:03}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    transform(image).save(path)


def train_and_test(data: Path, run: Path, options: ClassifyOptions) -> float:
    """Train and return the top-1 accuracy on the validation images, all at the size they have on disk."""
    train_classifier(data / "train", run, options, val="none")
    model = load_classifier(run)
    return evaluate_classifier(model, read_classification(data, "val", model.config.classes).samples).scores.top1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="empty folder for images and runs; default: a temporary folder")
    parser.add_argument("--seeds", type=int, default=1, help="number of trainings per form")
    arguments = parser.parse_args()
    started = time.monotonic()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="sppnet-ends-"))
    write_images(out / "images")
    table = Table("trained and tested on", "top-1 %")
    for form in FORMS:
        scores = [
            100 * train_and_test(out / "images" / form, out / f"{form}-{seed}", replace(OPTIONS, seed=seed))
            for seed in range(arguments.seeds)
        ]
        spread = f" ({min(scores):.1f} to {max(scores):.1f})" if len(scores) > 1 else ""
        table.add_row(form, f"{statistics.mean(scores):.1f}{spread}")
    Console().print(table)
    images = " and ".join(f"{count * len(COLORS)} {split}" for split, count in COUNTS.items())
    print(f"{len(COLORS)} classes, {images} images; {time.monotonic() - started:.0f} s in total")
    if arguments.out is None:
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
