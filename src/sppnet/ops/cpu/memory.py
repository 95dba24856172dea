"""Memory for outputs of a megabyte and more, used again when they are dropped.

The system fills new memory with zeros, page by page, when it is first written; that takes as long as the pooling. What
was written before costs nothing, and the C library gives most of it back to the system at once, so it is kept here.
"""

import weakref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes = npt.NDArray[np.uint8]
_SMALLEST = 1 << 20
_LARGEST = 1 << 29
"""Bytes from which memory is used again, and from which it is not kept."""
_KEPT = 1 << 30
"""Bytes that wait for the next outputs, in all."""
_spare: dict[int, Bytes] = {}


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor with anything in it; its memory comes back by itself when nobody holds it any more."""
    size = dtype.itemsize
    for side in shape:
        size *= side
    if not _SMALLEST <= size <= _LARGEST:
        return torch.empty(shape, dtype=dtype, device="cpu")
    block = _take(size)
    lent = block[:size]
    weakref.finalize(lent, _give_back, block).atexit = False
    return torch.from_numpy(lent).view(dtype).view(shape)


def _take(size: int) -> Bytes:
    for key, block in list(_spare.items()):
        if size <= block.size <= 2 * size and _spare.pop(key, None) is not None:  # no other thread was faster
            return block
    step = 1 << (size.bit_length() - 3)  # so that a few boxes more fit another time
    return np.empty(-(-size // step) * step, np.uint8)


def _give_back(block: Bytes) -> None:
    _spare[id(block)] = block
    while sum(spare.size for spare in list(_spare.values())) > _KEPT:
        _spare.pop(next(iter(_spare)), None)
