"""Annotated images and objects, as returned by the readers of detection formats."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class AnnotatedObject(NamedTuple):
    """An object of class `name`; `where` is its file and number, for messages."""

    name: str
    edges: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
    difficult: bool
    where: str


class AnnotatedImage(NamedTuple):
    """An image and its objects; `where` is the annotation it comes from, for messages."""

    path: Path
    objects: list[AnnotatedObject]
    size: tuple[int, int] | None  # (height, width) as stated by the annotation
    where: str


def format_numbers(values: Sequence[float]) -> str:
    """Format numbers for a message, such as (1, 2.5)."""
    return f"({', '.join(f'{value:g}' for value in values)})"
