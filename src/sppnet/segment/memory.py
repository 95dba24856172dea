"""Tile sizes of a segmenter that stay within a memory limit."""

from bisect import bisect_right

from sppnet.inference.memory import (
    MemoryLimitError,
    Size,
    format_bytes,
    pass_bytes,
    settled_bytes,
)
from sppnet.segment.model import Segmenter

LEAST_TILE = 128  # pixels


def whole_fits(model: Segmenter, height: int, width: int, memory: int) -> bool:
    """Whether an image of this size, already decoded, can go through the network in one pass.

    Args:
        model: of which.
        height: of the image in pixels.
        width: of the image in pixels.
        memory: bytes that the process may hold, with the interpreter, the image and all else that it holds now.
    """
    averages = 2 * 4 * len(model.config.classes) * height * width  # of several views
    return settled_bytes() + pass_bytes(model, height, width) + averages <= memory


def greatest_tile(
    model: Segmenter, size: Size, memory: int, overlap: int, stride: int, context: Size | None = None
) -> int:
    """The greatest side of tiles, a multiple of the stride, with which an image stays within a limit.

    Args:
        model: that looks at the tiles.
        size: (height, width) of the image in pixels; it is decoded already, and so part of what the process holds.
        memory: bytes that the process may hold, with the interpreter, the image and all else that it holds now.
        overlap: of tiles, in pixels.
        stride: of tiles' starts, in pixels.
        context: (height, width) of the reduced copy that is looked at before the tiles.

    Raises:
        MemoryLimitError: not even the smallest tiles stay within it; the message has what would.
    """
    held = settled_bytes()
    before = pass_bytes(model, *context) if context else 0
    least = -(-max(LEAST_TILE, 2 * (overlap + stride)) // stride) * stride
    sides = range(least, max(least, *size) + stride, stride)

    def needed(side: int) -> int:
        tall, wide = min(side, size[0]), min(side, size[1])
        strips = 4 * len(model.config.classes) * (overlap + stride) * (size[1] + tall)
        labels = 10 * tall * wide  # as int64 and as they are written
        return held + max(before, pass_bytes(model, tall, wide) + strips + labels)

    count = bisect_right(sides, memory, key=needed)
    if count == 0:
        raise MemoryLimitError(
            f"memory: {format_bytes(memory)} are not enough for an image of {size[0]} x {size[1]} in tiles of {least} x"
            f" {least}: {format_bytes(held)} are held already, by the interpreter, the model and the image, and the tiles take"
            f" {format_bytes(needed(least) - held)}; expected at least {format_bytes(needed(least))}"
        )
    return sides[count - 1]
