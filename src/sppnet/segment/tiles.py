"""Semantic segmentation of images of any size in bounded memory, with overlapping tiles."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sppnet.backbones.weights import weights_digest
from sppnet.console import track
from sppnet.inference.memory import parse_memory, release_memory
from sppnet.inference.tiles import OVERLAP, Block, Span, blend_tiles, tile_spans
from sppnet.io.files import write_json
from sppnet.segment.memory import largest_tile
from sppnet.segment.model import Segmenter

CONTEXT_SIDE = 1024  # longer side in pixels of the reduced copy for the global context
_FORMAT = 1


class TiledResult(NamedTuple):
    """Result of :func:`segment_to_file`.

    Attributes:
        labels: path of the label file.
        tile: maximum tile side in pixels.
        tiles: number of tiles.
        resumed: number of rows of tiles completed by an earlier call.
    """

    labels: Path
    tile: int
    tiles: int
    resumed: int


def tile_stride(model: Segmenter) -> int:
    """Return the stride of tile positions in pixels, which aligns the cells of tiles with those of the whole image."""
    backbone = model.backbone
    strides = backbone.geometry.stride + (backbone.fine_geometry.stride if backbone.fine is not None else (1, 1))
    return math.lcm(*strides)


def segment_tiled(
    model: Segmenter,
    image: Image.Image,
    *,
    memory: str | int | None = None,
    tile: int | None = None,
    overlap: int = OVERLAP,
    global_context: bool = False,
    after_tile: Callable[[], None] = lambda: None,
) -> Int[Tensor, "h w"]:
    """Segment an image in tiles and return the class index of each pixel.

    Args:
        model: segmenter in evaluation mode.
        image: RGB image; one no larger than a tile is segmented whole.
        memory: memory limit, see :func:`segment_to_file`.
        tile: maximum tile side in pixels, instead of `memory`.
        overlap: minimum overlap of tiles in pixels.
        global_context: use the context of the whole image in the image-level branch.
        after_tile: function called after each tile; it may raise an exception to stop.

    Raises:
        ValueError: see :func:`segment_to_file`.
    """
    limit = _memory_limit(memory, tile)
    if tile is None:
        tile = _tile_side(model, image, limit or 0, overlap, global_context)
    predict_tile = _tile_predictor(model, image, image_context(model, image) if global_context else None)
    down, across = _tile_grid(model, image, tile, overlap)
    labels = torch.zeros(image.height, image.width, dtype=torch.long)
    for block in blend_tiles(down, across, predict_tile):
        labels[slice(*block.rows), slice(*block.columns)] = block.probabilities.argmax(0)
        del block  # free it before the next pass
        after_tile()
    return labels


@torch.inference_mode()
def image_context(model: Segmenter, image: Image.Image) -> Float[Tensor, "1 c 1 1"]:
    """Compute the input of the image-level branch for an image, reduced to a longer side of at most 1,024 pixels.

    Raises:
        ValueError: the model has no image-level branch.
    """
    height, width = _context_size(image)
    if height < image.height or width < image.width:
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2)
    return model.context_of(model.pixels(image))


def segment_to_file(
    model: Segmenter,
    image: Image.Image,
    path: Path,
    *,
    memory: str | int | None = None,
    tile: int | None = None,
    overlap: int = OVERLAP,
    global_context: bool = False,
    probabilities: Path | None = None,
) -> TiledResult:
    """Segment an image of any size tile by tile, and write the class index of each pixel as .npy (height, width).

    Labels are uint8, or uint16 for 256 classes or more. The file has the suffix .part until it is complete. PATH.json
    records the image, the model, the options and the number of completed rows of tiles. If the process is killed, the
    same call continues after the last completed row, with bit-identical labels; once all rows are done, it returns
    immediately. With a different image, model or option it starts from scratch.

    Args:
        model: segmenter in evaluation mode.
        image: RGB image.
        path: path of the label file.
        memory: memory limit of the process, such as ``3GB``, including the interpreter, the model and the image; tiles
            are as large as it allows. A pass on a GPU is counted as if it ran on the CPU.
        tile: maximum tile side in pixels, instead of `memory`; a multiple of :func:`tile_stride`.
        overlap: minimum overlap of tiles in pixels, see :func:`sppnet.inference.tiles.tile_spans`.
        global_context: use the context of the whole image in the image-level branch, see :func:`image_context`.
        probabilities: path of another .npy file for float16 probabilities of shape (classes, height, width).

    Raises:
        ValueError: both or neither of `memory` and `tile` are given, or the smallest tiles exceed `memory`.
        OSError: the disk space is insufficient.
    """
    limit = _memory_limit(memory, tile)
    request = {
        "format": _FORMAT,
        "image": {"size": [image.height, image.width], "sha256": _digest(image)},
        "model": {"weights": weights_digest(model), "config": dataclasses.asdict(model.config)},
        "memory": limit,
        "tile": tile,
        "overlap": overlap,
        "global_context": global_context,
        "probabilities": probabilities is not None,
    }
    request = json.loads(json.dumps(request))
    progress = path.with_name(f"{path.name}.json")
    files = [path] if probabilities is None else [path, probabilities]
    parts = [file.with_name(f"{file.name}.part") for file in files]
    done, side = _completed(progress, request, files, parts)
    if not side:
        side = tile if tile is not None else _tile_side(model, image, limit or 0, overlap, global_context)
    down, across = _tile_grid(model, image, side, overlap)
    state = {"of": request, "tile": side, "rows": len(down)}
    if done == 0:
        progress.unlink(missing_ok=True)  # first, as it describes the files replaced below
        progress.parent.mkdir(parents=True, exist_ok=True)
        size, classes = (image.height, image.width), len(model.config.classes)
        _preallocate(parts[0], np.uint8 if classes < 256 else np.uint16, size)
        if probabilities is not None:
            _preallocate(parts[1], np.float16, (classes, *size))
        write_json({**state, "rows_done": 0}, progress)
    if done < len(down):
        predict_tile = _tile_predictor(model, image, image_context(model, image) if global_context else None)
        first = max(done - 1, 0)  # repeat the last completed row, because the next row overlaps it
        blocks = blend_tiles(down, across, predict_tile, first)
        total = len(down) * len(across)
        for _ in track(range(first * len(across), total), path.stem, total, first * len(across)):
            block = next(blocks)
            if block.row >= done:
                _write_block(block, parts)
            if block.row >= done and block.columns[1] == image.width:
                write_json({**state, "rows_done": block.row + 1}, progress)
            del block  # free it before the next pass
    for file, part in zip(files, parts, strict=True):
        if part.exists():
            part.replace(file)
    return TiledResult(path, side, len(down) * len(across), done)


def _tile_grid(model: Segmenter, image: Image.Image, tile: int, overlap: int) -> tuple[list[Span], list[Span]]:
    stride = tile_stride(model)
    return tile_spans(image.height, tile, overlap, stride), tile_spans(image.width, tile, overlap, stride)


def _context_size(image: Image.Image) -> tuple[int, int]:
    scale = min(1.0, CONTEXT_SIDE / max(image.size))
    return max(1, round(image.height * scale)), max(1, round(image.width * scale))


def _memory_limit(memory: str | int | None, tile: int | None) -> int | None:
    """Return the memory limit in bytes; None if the tile size is given instead."""
    if (memory is None) == (tile is None):
        raise ValueError(f"memory: expected either memory or tile, got memory={memory!r} and tile={tile!r}")
    return None if memory is None else parse_memory(memory)


def _tile_side(model: Segmenter, image: Image.Image, memory: int, overlap: int, global_context: bool) -> int:
    context = _context_size(image) if global_context else None
    return largest_tile(model, (image.height, image.width), memory, overlap, tile_stride(model), context)


def _tile_predictor(
    model: Segmenter, image: Image.Image, context: Tensor | None
) -> Callable[[Span, Span], Float[Tensor, "classes h w"]]:
    def predict_tile(rows: Span, columns: Span) -> Float[Tensor, "classes h w"]:
        release_memory()  # otherwise memory grows with each pass
        crop = image.crop((columns[0], rows[0], columns[1], rows[1]))
        with torch.no_grad():
            logits: Tensor = model(model.pixels(crop), context)[0]
            return logits.softmax(0).cpu()

    return predict_tile


def _digest(image: Image.Image) -> str:
    """Hash the pixels of an image, in bands to avoid a copy of the whole image."""
    digest = hashlib.sha256()
    for top in range(0, image.height, 256):
        digest.update(image.crop((0, top, image.width, min(top + 256, image.height))).tobytes())
    return digest.hexdigest()


def _completed(progress: Path, request: dict[str, Any], files: list[Path], parts: list[Path]) -> tuple[int, int]:
    """Return the number of rows completed by an earlier identical call, and its tile side; zeros if there is none."""
    try:
        content = json.loads(progress.read_text(encoding="utf-8"))
        done, rows, side = content["rows_done"], content["rows"], content["tile"]
    except (OSError, ValueError, LookupError, TypeError):
        return 0, 0
    # After the last row, the process may have been killed between the renames.
    intact = all(part.exists() or (done == rows and file.exists()) for file, part in zip(files, parts, strict=True))
    return (done, side) if done and intact and content["of"] == request else (0, 0)


def _preallocate(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Create an .npy file with its disk space allocated, because a memory-mapped write cannot report ENOSPC."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    del array
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _write_block(block: Block, parts: list[Path]) -> None:
    """Write a block to the files, which are mapped only for this call because mapped pages count as resident memory."""
    rows, columns = slice(*block.rows), slice(*block.columns)
    values = [block.probabilities.argmax(0).numpy(), block.probabilities.numpy()]
    for part, value in zip(parts, values, strict=False):
        array = np.lib.format.open_memmap(part, "r+")
        array[..., rows, columns] = value
        array.flush()
