"""Tile sizes that keep segmentation within a memory limit."""

from bisect import bisect_right

from sppnet.inference.memory import MemoryLimitError, Size, format_bytes, pass_bytes, settled_bytes
from sppnet.segment.network import SegmenterNetwork

MIN_TILE = 128  # pixels


def whole_fits(model: SegmenterNetwork, height: int, width: int, memory: int) -> bool:
    """Return whether a decoded image of this size can be segmented in one pass.

    Args:
        model: segmenter.
        height: image height in pixels.
        width: image width in pixels.
        memory: limit for the process in bytes, including the interpreter, the image and everything else in memory.
    """
    return settled_bytes() + whole_bytes(model, height, width) <= memory


def whole_bytes(model: SegmenterNetwork, height: int, width: int) -> int:
    """Return an upper bound in bytes for the memory that a decoded image of this size takes in one pass."""
    averages = 2 * 4 * len(model.config.classes) * height * width  # probabilities, when several views are averaged
    return pass_bytes(model, height, width) + averages


def largest_tile(
    model: SegmenterNetwork, size: Size, memory: int, overlap: int, stride: int, context: Size | None = None
) -> int:
    """Return the largest tile side, a multiple of the stride, that keeps an image within a memory limit.

    Args:
        model: segmenter.
        size: (height, width) in pixels of the image, which must already be decoded.
        memory: limit for the process in bytes, including the interpreter, the image and everything else in memory.
        overlap: overlap of tiles in pixels.
        stride: stride of tile positions in pixels.
        context: (height, width) of the reduced image from which the global context is computed before the tiles.

    Raises:
        MemoryLimitError: the smallest tiles exceed the limit; the message states the required memory.
    """
    in_use = settled_bytes()
    context_pass = pass_bytes(model, *context) if context else 0
    smallest = -(-max(MIN_TILE, 2 * (overlap + stride)) // stride) * stride
    sides = range(smallest, max(smallest, *size) + stride, stride)

    def needed(side: int) -> int:
        height, width = min(side, size[0]), min(side, size[1])
        strips = 4 * len(model.config.classes) * (overlap + stride) * (size[1] + height)
        labels = 10 * height * width  # int64, and up to 16 bits in the file
        return in_use + max(context_pass, pass_bytes(model, height, width) + strips + labels)

    count = bisect_right(sides, memory, key=needed)
    if count == 0:
        raise MemoryLimitError(
            f"memory: expected at least {format_bytes(needed(smallest))} for an image of {size[0]} x {size[1]} pixels"
            f" (height x width) in tiles of {smallest} x {smallest}, got {format_bytes(memory)}; the process already"
            f" uses {format_bytes(in_use)}"
        )
    return sides[count - 1]
