"""Annotated images and objects as the readers of detection formats give them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class AnnotatedObject(NamedTuple):
    name: str
    edges: tuple[float, float, float, float]
    difficult: bool
    where: str


class AnnotatedImage(NamedTuple):
    path: Path
    objects: list[AnnotatedObject]
    size: tuple[int, int] | None  # (height, width) as the annotations give it
    where: str


def format_numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
