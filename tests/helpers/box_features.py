"""Images, boxes and runs for the tests of `sppnet features`."""

import json
from pathlib import Path
from typing import Any

from sppnet.cli.main import run

SIZES = {"a.png": (60, 90), "in/b.png": (80, 50), "c.png": (70, 70), "d.png": (64, 96)}  # (height, width)
OPTIONS = ["--backbone", "zf5", "--weights", "none", "--levels", "2,1", "--scales", "100"]


def boxes_of(name: str) -> list[list[int]]:
    """Return the three boxes of an image; the first covers the whole image."""
    height, width = SIZES[name]
    return [[0, 0, width, height], [10, 10, width - 5, 40], [20, 5, 44, 45]]


def write_features(images: Path, boxes: Path, out: Path, *more: str) -> int:
    """Run `sppnet features` and return its exit code."""
    return run(["features", str(images), "--boxes", str(boxes), "--out", str(out), *OPTIONS, *more])


def read_index(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "index.json").read_text())
    return content
