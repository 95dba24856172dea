"""TensorFlow's SAME padding in integers, where a graph for all sizes is made.

timm divides as floats and rounds, which torch's symbols of sizes cannot simplify: they grow with every layer, and
`tf_efficientnet_lite0` would take six minutes to export for twenty seconds, and longer to compile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Cells that TensorFlow's SAME rule adds to a side, as :func:`timm.layers.get_same_padding`, in integers."""
    extent = (kernel_size - 1) * dilation + 1
    pad = ((size + stride - 1) // stride - 1) * stride + extent - size
    return pad if extent >= stride else max(pad, 0)


@contextmanager
def integers_in_export() -> Iterator[None]:
    """Let timm divide in integers while torch.export follows a network."""
    from timm.layers import padding

    original = padding.get_same_padding
    padding.get_same_padding = same_padding  # type: ignore[assignment]
    try:
        yield
    finally:
        padding.get_same_padding = original


@cache
def integers_when_compiled() -> None:
    """Let torch.compile read `same_padding` wherever timm's function is called; outside its graphs nothing changes."""
    from timm.layers.padding import get_same_padding

    substitute = torch.compiler.substitute_in_graph(get_same_padding)
    substitute(lambda x, kernel_size, stride, dilation: same_padding(x, kernel_size, stride, dilation))
