"""Semantic segmentation of images of any size in bounded memory: overlapping tiles, cross-faded where they meet."""

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
from sppnet.segment.memory import greatest_tile
from sppnet.segment.model import Segmenter

CONTEXT_SIDE = 1024  # longer side, in pixels, of the reduced copy that a global context is taken from
_FORMAT = 1


class Tiled(NamedTuple):
    """What :func:`segment_to_file` did.

    Attributes:
        labels: the file of them.
        tile: greatest side of the tiles, in pixels.
        tiles: how many the image has.
        resumed: rows of tiles that an earlier call had done.
    """

    labels: Path
    tile: int
    tiles: int
    resumed: int


def tile_stride(model: Segmenter) -> int:
    """Multiples of so many pixels are where tiles start: there their cells are those of the whole image."""
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
    """The class of each pixel, from tiles; an image no larger than one tile is looked at whole.

    Args:
        model: in evaluation mode.
        image: RGB.
        memory: see :func:`segment_to_file`, as for the others.
        tile: greatest side of tiles.
        overlap: of tiles.
        global_context: of their image-level branch.
        after_tile: is called after each tile; what it raises ends the work.

    Raises:
        ValueError: as :func:`segment_to_file`.
    """
    limit = _limit(memory, tile)
    if tile is None:
        tile = _side(model, image, limit or 0, overlap, global_context)
    look = _look(model, image, image_context(model, image) if global_context else None)
    down, across = _grid(model, image, tile, overlap)
    labels = torch.zeros(image.height, image.width, dtype=torch.long)
    for block in blend_tiles(down, across, look):
        labels[slice(*block.rows), slice(*block.columns)] = block.probabilities.argmax(0)
        del block  # before the next pass, which has memory of its own
        after_tile()
    return labels


@torch.inference_mode()
def image_context(model: Segmenter, image: Image.Image) -> Float[Tensor, "1 c 1 1"]:
    """What the image-level branch sees of an image; of a copy reduced to a longer side of 1,024 if it is larger.

    Raises:
        ValueError: the model has no such branch.
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
) -> Tiled:
    """Write the class of each pixel of an image of any size as .npy, (height, width), tile by tile.

    Labels are uint8, uint16 from 256 classes on. Until all are there the file's name ends in .part. Beside it
    PATH.json tells of what they are and how many rows of tiles are done: after a kill the same call goes on at the
    first row that is not, with the same labels to the last bit, and after the last row it returns at once. With
    another image, model or option it starts anew.

    Args:
        model: in evaluation mode.
        image: RGB.
        path: of the labels.
        memory: what the process may hold, such as ``3GB``, with the interpreter, the model and the image; tiles are
            as large as it allows. On a GPU a pass is counted as if it were on the CPU.
        tile: greatest side of tiles, instead of `memory`; a multiple of :func:`tile_stride`.
        overlap: see :func:`tile_spans`.
        global_context: every tile's image-level branch sees the whole image, see :func:`image_context`.
        probabilities: also write them there, float16 of (classes, height, width).

    Raises:
        ValueError: not exactly one of `memory` and `tile`, or a memory too small for the smallest tiles.
        OSError: not enough room on the disk.
    """
    limit = _limit(memory, tile)
    asked = {
        "format": _FORMAT,
        "image": {"size": [image.height, image.width], "sha256": _digest(image)},
        "model": {"weights": weights_digest(model), "config": dataclasses.asdict(model.config)},
        "memory": limit,
        "tile": tile,
        "overlap": overlap,
        "global_context": global_context,
        "probabilities": probabilities is not None,
    }
    asked = json.loads(json.dumps(asked))
    progress = path.with_name(f"{path.name}.json")
    files = [path] if probabilities is None else [path, probabilities]
    parts = [file.with_name(f"{file.name}.part") for file in files]
    done, side = _earlier(progress, asked, files, parts)
    if not side:
        side = tile if tile is not None else _side(model, image, limit or 0, overlap, global_context)
    down, across = _grid(model, image, side, overlap)
    state = {"of": asked, "tile": side, "rows": len(down)}
    if done == 0:
        progress.unlink(missing_ok=True)  # before its files go
        progress.parent.mkdir(parents=True, exist_ok=True)
        size, classes = (image.height, image.width), len(model.config.classes)
        _reserve(parts[0], np.uint8 if classes < 256 else np.uint16, size)
        if probabilities is not None:
            _reserve(parts[1], np.float16, (classes, *size))
        write_json({**state, "rows_done": 0}, progress)
    if done < len(down):
        look = _look(model, image, image_context(model, image) if global_context else None)
        first = max(done - 1, 0)  # once more, for what the next row has in common with it
        blocks = blend_tiles(down, across, look, first)
        total = len(down) * len(across)
        for _ in track(range(first * len(across), total), path.stem, total, first * len(across)):
            block = next(blocks)
            if block.row >= done:
                _write(block, parts)
            if block.row >= done and block.columns[1] == image.width:
                write_json({**state, "rows_done": block.row + 1}, progress)
            del block  # before the next pass, which has memory of its own
    for file, part in zip(files, parts, strict=True):
        if part.exists():
            part.replace(file)
    return Tiled(path, side, len(down) * len(across), done)


def _grid(model: Segmenter, image: Image.Image, tile: int, overlap: int) -> tuple[list[Span], list[Span]]:
    stride = tile_stride(model)
    return tile_spans(image.height, tile, overlap, stride), tile_spans(image.width, tile, overlap, stride)


def _context_size(image: Image.Image) -> tuple[int, int]:
    scale = min(1.0, CONTEXT_SIDE / max(image.size))
    return max(1, round(image.height * scale)), max(1, round(image.width * scale))


def _limit(memory: str | int | None, tile: int | None) -> int | None:
    """The memory in bytes, where it is that which was given."""
    if (memory is None) == (tile is None):
        raise ValueError(f"memory: expected either a memory or a tile; got memory={memory!r} and tile={tile!r}")
    return None if memory is None else parse_memory(memory)


def _side(model: Segmenter, image: Image.Image, memory: int, overlap: int, global_context: bool) -> int:
    context = _context_size(image) if global_context else None
    return greatest_tile(model, (image.height, image.width), memory, overlap, tile_stride(model), context)


def _look(
    model: Segmenter, image: Image.Image, context: Tensor | None
) -> Callable[[Span, Span], Float[Tensor, "classes h w"]]:
    def look(rows: Span, columns: Span) -> Float[Tensor, "classes h w"]:
        release_memory()  # or each pass would leave a little more behind
        part = image.crop((columns[0], rows[0], columns[1], rows[1]))
        with torch.no_grad():
            logits: Tensor = model(model.pixels(part), context)[0]
            return logits.softmax(0).cpu()

    return look


def _digest(image: Image.Image) -> str:
    """A name for the image's pixels, taken from bands so that no copy of the whole is made."""
    digest = hashlib.sha256()
    for top in range(0, image.height, 256):
        digest.update(image.crop((0, top, image.width, min(top + 256, image.height))).tobytes())
    return digest.hexdigest()


def _earlier(progress: Path, asked: dict[str, Any], files: list[Path], parts: list[Path]) -> tuple[int, int]:
    """Rows of tiles that an earlier call has done of the same, and the side of its tiles; zeros where it has none."""
    try:
        content = json.loads(progress.read_text(encoding="utf-8"))
        done, rows, side = content["rows_done"], content["rows"], content["tile"]
    except (OSError, ValueError, LookupError, TypeError):
        return 0, 0
    # After the last row a kill may come between the renames.
    kept = all(part.exists() or (done == rows and file.exists()) for file, part in zip(files, parts, strict=True))
    return (done, side) if done and kept and content["of"] == asked else (0, 0)


def _reserve(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """An .npy file of that form; its room on the disk is taken now, for a write to a map cannot fail in order."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    del array
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _write(block: Block, parts: list[Path]) -> None:
    """Puts a block into the files; they are mapped for so long only, for mapped pages count as memory held."""
    rows, columns = slice(*block.rows), slice(*block.columns)
    values = [block.probabilities.argmax(0).numpy(), block.probabilities.numpy()]
    for part, value in zip(parts, values, strict=False):
        array = np.lib.format.open_memmap(part, "r+")
        array[..., rows, columns] = value
        array.flush()
