"""Cases of the operator benchmark; importing this module does not import torch."""

from dataclasses import dataclass
from typing import Literal

from sppnet.ops.levels import Level, Reduce

Dtype = Literal["float32", "bfloat16", "float16"]
Layout = Literal["nchw", "channels_last"]


@dataclass(frozen=True)
class Case:
    """Benchmark case: pooling of whole maps if `boxes` is 0, else of that many regions in total over all images.

    Attributes:
        shape: images, channels, rows and columns of the maps.
        levels: pyramid levels.
        dtype, layout, device: dtype, memory format and torch device of the maps.
        backward: whether the gradient of the maps is computed too.
        boxes: number of regions, at stride 16.
        reduce: ``max`` or ``avg``.
    """

    shape: tuple[int, int, int, int]
    levels: tuple[Level, ...]
    dtype: Dtype = "float32"
    layout: Layout = "nchw"
    backward: bool = False
    boxes: int = 0
    reduce: Reduce = "max"
    device: str = "cpu"
