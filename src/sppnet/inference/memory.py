"""Memory limits, and the memory needed for decoding and for a forward pass of a segmenter."""

import copy
import ctypes
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sppnet.data.images import exif_transpose, open_image

Size = tuple[int, int]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
# Memory beyond the live tensors: the maximum over seven networks on the CPU, at sides of 256 to 2,048 pixels.
_OVERHEAD = 1.15  # factor for what the allocator and oneDNN hold for the same maps
_WEIGHT_COPIES = 3  # copies of the largest weight, in layouts of oneDNN
_RESERVE = 150 * 10**6  # bytes for code and tables loaded by the first pass, and for small arrays
_pass_sizes: weakref.WeakKeyDictionary[nn.Module, dict[tuple[torch.dtype, int, int], int]] = weakref.WeakKeyDictionary()


class MemoryLimitError(ValueError):
    """A memory limit that is too low; the message states the required memory."""


def parse_memory(memory: str | int, name: str = "memory") -> int:
    """Parse a memory size such as ``3GB``, ``1.5 GiB``, ``512MB`` or a number of bytes, and return bytes.

    Args:
        memory: text, or number of bytes.
        name: option name, for the message.

    Raises:
        ValueError: the text is not a size, or the size is below 1 byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(memory).strip().lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if size < 1:
        raise ValueError(f"{name}: expected a size such as 3GB, 512MB or 2GiB, or a number of bytes, got {memory!r}")
    return size


def release_memory() -> None:
    """Release freed memory to the operating system.

    glibc keeps freed blocks below 32 MB for reuse. Copies of decoded images consist of such blocks; after a pass they
    fragment the heap, and the next pass finds no room for larger blocks. No effect outside Linux with glibc.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def settled_bytes() -> int:
    """Release freed memory, then return the resident memory of this process, in bytes."""
    release_memory()
    return resident_bytes()


def pass_bytes(model: nn.Module, height: int, width: int) -> int:
    """Return an upper bound in bytes for the memory of one pass, from an image of this size to probabilities.

    Live tensors are counted in a pass on the meta device, which takes no memory but about as much time as a prediction
    for a small image, so the result is cached for each size and dtype of the weights.
    """
    sizes = _pass_sizes.setdefault(model, {})
    key = next(model.parameters()).dtype, height, width
    if key not in sizes:
        sizes[key] = _count_pass(model, *key)
    return sizes[key]


def _count_pass(model: nn.Module, dtype: torch.dtype, height: int, width: int) -> int:
    # deepcopy treats the tensors in the memo as copied already, so it copies no weights.
    tensors = [*model.parameters(), *model.buffers()]
    meta: list[Tensor] = [
        nn.Parameter(tensor.to("meta"), requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor.to("meta")
        for tensor in tensors
    ]
    memo = {id(tensor): replacement for tensor, replacement in zip(tensors, meta, strict=True)}
    skeleton = copy.deepcopy(model, memo).eval()
    live = _LiveBytes()
    # Inference mode would hide the convolutions from the dispatch mode.
    with torch.inference_mode(mode=False), torch.no_grad(), live:
        x = torch.empty(1, 3, height, width, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
        logits: Tensor = skeleton(x)
    # Softmax, in float32, also makes a contiguous copy of channels-last logits, as they are on real devices.
    peak: int = max(live.peak, x.nbytes + logits.nbytes + 2 * 4 * logits.numel())
    largest = max(tensor.nbytes for tensor in tensors)
    return round(_OVERHEAD * peak) + _WEIGHT_COPIES * largest + _RESERVE


def check_decoding(path: Path, memory: int) -> None:
    """Check that an image file can be decoded within a memory limit.

    Args:
        path: path of the image; only its header is read.
        memory: limit for the process in bytes, including the interpreter and everything already in memory.

    Raises:
        MemoryLimitError: the limit is too low; the message states the required memory.
        sppnet.ImageError: the header cannot be read.
    """
    in_use = settled_bytes()
    with open_image(str(path)) as image:
        pixel = 10  # bytes per pixel: 4 in Pillow, and copies of the decoder and of load_image
        if image.has_transparency_data or image.format in ("WEBP", "JPEG2000"):
            pixel = 20
        elif image.mode.startswith("I"):
            pixel = 24
        elif exif_transpose(image) is not None:
            pixel = 12
        needed = in_use + pixel * image.width * image.height
        if needed > memory:
            raise MemoryLimitError(
                f"memory: expected at least {format_bytes(needed)} to decode {path}, {image.height} x {image.width}"
                f" pixels (height x width), got {format_bytes(memory)}; the process already uses {format_bytes(in_use)}"
            )


def format_bytes(size: int) -> str:
    """Format bytes as megabytes, rounded up."""
    return f"{-(-size // 10**6)}MB"


class _LiveBytes(TorchDispatchMode):
    """Track the total size of the live storages that operators return, and its peak."""

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
