"""Pool of memory blocks for outputs of a megabyte and more.

The operating system zeroes new memory page by page on first write, which takes as long as the pooling itself, and the C
library returns large freed blocks to the system at once. Blocks of dropped outputs are therefore kept here for reuse.
"""

import weakref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes = npt.NDArray[np.uint8]
_SMALLEST = 1 << 20
_LARGEST = 1 << 29
"""Smallest and largest output in bytes whose memory is pooled."""
_MAX_SPARE = 1 << 30
"""Maximum total size of the spare blocks in bytes."""
_spare: dict[int, Bytes] = {}


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized CPU tensor; its memory returns to the pool once no tensor refers to it."""
    size = dtype.itemsize
    for side in shape:
        size *= side
    if not _SMALLEST <= size <= _LARGEST:
        return torch.empty(shape, dtype=dtype, device="cpu")
    block = _take(size)
    view = block[:size]
    weakref.finalize(view, _give_back, block).atexit = False
    return torch.from_numpy(view).view(dtype).view(shape)


def _take(size: int) -> Bytes:
    for key, block in list(_spare.items()):
        if size <= block.size <= 2 * size and _spare.pop(key, None) is not None:  # another thread may have taken it
            return block
    step = 1 << (size.bit_length() - 3)  # round up so that slightly larger outputs can reuse the block
    return np.empty(-(-size // step) * step, np.uint8)


def _give_back(block: Bytes) -> None:
    _spare[id(block)] = block
    while sum(spare.size for spare in list(_spare.values())) > _MAX_SPARE:
        _spare.pop(next(iter(list(_spare)), 0), None)  # another thread may change the table
