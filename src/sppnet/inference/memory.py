"""How much memory a pass of a segmenter takes, and the greatest tiles that a limit allows."""

import copy
import ctypes
import os
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sppnet.data.images import exif_turn, open_image

Size = tuple[int, int]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
# Measured on the CPU, as most of seven networks took at 256 to 2,048 pixels a side beyond the tensors that live.
_HOLES = 1.15  # what the allocator and oneDNN hold for the same maps
_WEIGHT_COPIES = 3  # of the largest weight, in the orders of values that oneDNN wants
_RESERVE = 150 * 10**6  # code and tables that the first pass brings in, small arrays


_passes: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int], int]] = weakref.WeakKeyDictionary()


class MemoryLimitError(ValueError):
    """What is asked for takes more memory than may be held; the message has how much would do."""


def parse_memory(memory: str | int, name: str = "memory") -> int:
    """Bytes of a size like ``3GB``, ``1.5 GiB``, ``512MB`` or a number of bytes; at least 1.

    Args:
        memory: the text or number.
        name: of the option that it was given for.

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(memory).strip().lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if size < 1:
        raise ValueError(f"{name}: expected a size such as 3GB, 512MB or 2GiB, or a number of bytes; got {memory!r}")
    return size


def release_memory() -> None:
    """Give freed memory back to the system.

    glibc keeps blocks of less than 32 MB to give them out again. A copy of a decoded image is made of such, and after a
    pass they lie between others where the next pass does not find room for larger ones. Elsewhere this does nothing.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)


def resident_bytes() -> int:
    """What this process holds in memory now.

    1 GB, about what the interpreter, torch and a model take, where there is no /proc to tell.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 10**9
    return int(statm.read_text().split()[1]) * int(os.sysconf("SC_PAGE_SIZE"))


def settled_bytes() -> int:
    """What this process holds in memory after what it has freed is given back to the system."""
    release_memory()
    return resident_bytes()


def pass_bytes(model: nn.Module, height: int, width: int) -> int:
    """What one pass adds at most to what the process holds, from an image of this size to probabilities.

    The tensors that live at a time are counted on the meta device, which costs no arithmetic and no memory, but about
    as long as an answer for a small image; so it is done once a size.
    """
    known = _passes.setdefault(model, {})
    if (height, width) not in known:
        known[height, width] = _count_pass(model, height, width)
    return known[height, width]


def _count_pass(model: nn.Module, height: int, width: int) -> int:
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
        logits: Tensor = skeleton(x)
    # Beside its result softmax makes a contiguous copy of logits that are channels last, as they are off this device.
    peak: int = max(live.peak, x.nbytes + 3 * logits.nbytes)
    largest = max(tensor.nbytes for tensor in tensors)
    return round(_HOLES * peak) + _WEIGHT_COPIES * largest + _RESERVE


def check_decoding(path: Path, memory: int) -> None:
    """Refuse an image file whose decoding alone would take more memory than there may be held.

    Args:
        path: of the image; its header is read.
        memory: bytes that the process may hold, with the interpreter and all else that it holds now.

    Raises:
        MemoryLimitError: it would; the message has what would do.
        sppnet.ImageError: the header cannot be read.
    """
    held = settled_bytes()
    with open_image(str(path)) as image:
        pixel = 10  # bytes: Pillow has 4 a pixel, the decoder and load_image a copy
        if image.has_transparency_data or image.format in ("WEBP", "JPEG2000"):
            pixel = 20
        elif image.mode.startswith("I"):
            pixel = 24
        elif exif_turn(image) is not None:
            pixel = 12
        needed = held + pixel * image.width * image.height
        if needed > memory:
            raise MemoryLimitError(
                f"memory: {format_bytes(memory)} are not enough to decode {path}, {image.height} x {image.width} pixels:"
                f" {format_bytes(held)} are held already, by the interpreter and the model; expected at least {format_bytes(needed)}"
            )


def format_bytes(size: int) -> str:
    return f"{-(-size // 10**6)}MB"


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
