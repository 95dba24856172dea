"""TensorFlow's SAME padding in integer arithmetic, for graphs with dynamic sizes.

timm divides in floating point and rounds up. torch cannot simplify such symbolic sizes, so they grow with every layer:
exporting `tf_efficientnet_lite0` would take six minutes instead of twenty seconds, and compiling it even longer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Return the total SAME padding of one side, equal to :func:`timm.layers.get_same_padding`."""
    extent = (kernel_size - 1) * dilation + 1
    pad = ((size + stride - 1) // stride - 1) * stride + extent - size
    return pad if extent >= stride else max(pad, 0)


@contextmanager
def integer_padding_in_export() -> Iterator[None]:
    """Make timm use :func:`same_padding` while torch.export traces a network."""
    from timm.layers import padding

    original = padding.get_same_padding
    padding.get_same_padding = same_padding  # type: ignore[assignment]
    try:
        yield
    finally:
        padding.get_same_padding = original


@cache
def integer_padding_when_compiled() -> None:
    """Make torch.compile substitute :func:`same_padding` for timm's function; eager calls are unaffected."""
    from timm.layers.padding import get_same_padding

    substitute = torch.compiler.substitute_in_graph(get_same_padding)
    substitute(lambda x, kernel_size, stride, dilation: same_padding(x, kernel_size, stride, dilation))
