"""How much memory a pass of a segmenter takes, and the greatest tiles that a limit allows."""

import copy
import os
import re
import weakref
from bisect import bisect_right
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sppnet.segment import Segmenter

LEAST_TILE = 128  # pixels
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
# Measured on the CPU, as most of seven networks took at 256 to 2,048 pixels a side beyond the tensors that live.
_HOLES = 1.15  # what the allocator and oneDNN hold for the same maps
_WEIGHT_COPIES = 3  # of the largest weight, in the orders of values that oneDNN wants
_RESERVE = 150 * 10**6  # code and tables that the first pass brings in, small arrays


def parse_memory(memory: str | int) -> int:
    """Bytes of a size like ``3GB``, ``1.5 GiB``, ``512MB`` or a number of bytes; at least 1.

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(memory).strip().lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if size < 1:
        raise ValueError(f"memory: expected a size such as 3GB, 512MB or 2GiB, or a number of bytes; got {memory!r}")
    return size


def resident_bytes() -> int:
    """What this process holds in memory now."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 500 * 10**6  # the interpreter, torch and a model, where the system does not tell


def pass_bytes(model: Segmenter, height: int, width: int) -> int:
    """What one pass adds at most to what the process holds, from an image of this size to probabilities.

    The tensors that live at a time are counted on the meta device, which costs no arithmetic and no memory.
    """
    # deepcopy takes what it finds in the memo for copied already, so that no weight is.
    tensors = [*model.parameters(), *model.buffers()]
    meta: list[Tensor] = [
        nn.Parameter(tensor.to("meta"), requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor.to("meta")
        for tensor in tensors
    ]
    memo = {id(tensor): skeleton for tensor, skeleton in zip(tensors, meta, strict=True)}
    skeleton = copy.deepcopy(model, memo).eval()
    live = _LiveBytes()
    # Inside inference mode the dispatcher would not show the convolutions.
    with torch.inference_mode(mode=False), torch.no_grad(), live:
        x = torch.empty(1, 3, height, width, device="meta").to(memory_format=torch.channels_last)
        logits = skeleton(x)
        logits.contiguous().softmax(1)  # softmax itself makes the copy
    largest = max(tensor.nbytes for tensor in tensors)
    return round(_HOLES * live.peak) + _WEIGHT_COPIES * largest + _RESERVE


def whole_bytes(model: Segmenter, height: int, width: int) -> int:
    """What looking at an image of this size in one pass adds to what the process holds."""
    return pass_bytes(model, height, width) + 2 * 4 * len(model.config.classes) * height * width


def whole_fits(model: Segmenter, height: int, width: int, memory: int) -> bool:
    """Whether an image of this size, already decoded, can go through the network in one pass.

    Args:
        model: of which.
        height: of the image in pixels.
        width: of the image in pixels.
        memory: bytes that the process may hold, with the interpreter, the image and all else that it holds now.
    """
    return resident_bytes() + whole_bytes(model, height, width) <= memory


def tiles_bytes(model: Segmenter, height: int, width: int, tile: int, overlap: int) -> int:
    """What looking at an image of this size in tiles adds to what the process holds.

    Args:
        model: of which.
        height: of the image in pixels.
        width: of the image in pixels.
        tile: greatest side of tiles in pixels.
        overlap: of tiles, in pixels.
    """
    tall, wide = min(tile, height), min(tile, width)
    strips = 4 * len(model.config.classes) * overlap * (width + tall)
    labels = 10 * tall * wide  # as int64 and as they are written
    return pass_bytes(model, tall, wide) + strips + labels


def greatest_tile(model: Segmenter, height: int, width: int, memory: int, overlap: int, stride: int) -> int:
    """The greatest side of tiles, a multiple of the stride, with which an image stays within a limit.

    Args:
        model: that looks at the tiles.
        height: of the image in pixels; it is decoded already, and so part of what the process holds now.
        width: of the image in pixels.
        memory: bytes that the process may hold, with the interpreter, the image and all else that it holds now.
        overlap: of tiles, in pixels.
        stride: of tiles' starts, in pixels.

    Raises:
        ValueError: not even the smallest tiles stay within it; the message has what would.
    """
    held = resident_bytes()
    least = -(-max(LEAST_TILE, 2 * (overlap + stride)) // stride) * stride
    sides = range(least, max(least, max(height, width) + stride - 1) + 1, stride)

    def needed(side: int) -> int:
        return held + tiles_bytes(model, height, width, side, overlap + stride)

    count = bisect_right(sides, memory, key=needed)
    if count == 0:
        raise ValueError(
            f"memory: {_text(memory)} are not enough for an image of {height} x {width} in tiles of {least} x {least}:"
            f" {_text(held)} are held already, by the interpreter, the model and the image, and the tiles take"
            f" {_text(needed(least) - held)}; expected at least {_text(needed(least), up=True)}"
        )
    return sides[count - 1]


def _text(size: int, up: bool = False) -> str:
    return f"{-(-size // 10**6) if up else round(size / 10**6)}MB"


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages of all tensors that operators give, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._watches: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage())
        self.peak = max(self.peak, sum(self._sizes.values()))
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._watches[key] = weakref.ref(storage, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        del self._sizes[key], self._watches[key]
