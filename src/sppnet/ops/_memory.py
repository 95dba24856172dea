"""Memory for large outputs, used again when they are dropped.

The system fills new memory with zeros, page by page, when it is first written: for the vectors of 2,000 regions that
takes as long as the pooling. NumPy asks for huge pages, which makes it a fourth; memory that is there costs nothing.
"""

import weakref

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
_STEP = 1 << 25
_KEPT = 2
"""Blocks that wait for the next output; a training step needs two, the vectors and the places of their maxima."""
_LARGEST = 1 << 29
"""Bytes from which a block is not kept."""
_spare: dict[int, Bytes] = {}


def take(size: int) -> Bytes:
    """Memory of `size` bytes with anything in it; it comes back by itself when nobody holds it any more."""
    block = None
    for key, spare in list(_spare.items()):
        if size <= spare.size <= 2 * size and _spare.pop(key, None) is not None:  # no other thread was faster
            block = spare
            break
    if block is None:
        block = np.empty(-(-size // _STEP) * _STEP, np.uint8)
    lent = block[:size]
    if block.size <= _LARGEST:
        weakref.finalize(lent, _give_back, block).atexit = False
    return lent


def _give_back(block: Bytes) -> None:
    while len(_spare) >= _KEPT:
        _spare.pop(next(iter(_spare)), None)
    _spare[id(block)] = block
