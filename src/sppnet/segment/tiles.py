"""Semantic segmentation of images of any size in bounded memory, with overlapping tiles."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor

from sppnet.backbones.weights import weights_digest
from sppnet.inference.memory import release_memory
from sppnet.inference.tiles import Block, Span, blend_tiles, tile_spans
from sppnet.io.files import read_json, write_json
from sppnet.progress import track
from sppnet.segment.memory import largest_tile
from sppnet.segment.network import SegmenterNetwork
from sppnet.segment.options import View

CONTEXT_SIDE = 1024  # longer side in pixels of the reduced copy for the global context
_FORMAT = 1


@dataclass(frozen=True)
class _Progress:
    """Content of the progress file: what is computed, tile side, rows of tiles, and completed rows."""

    of: dict[str, Any]
    tile: int
    rows: int
    rows_done: int


def tile_stride(model: SegmenterNetwork) -> int:
    """Return the stride of tile positions in pixels, which aligns the cells of tiles with those of the whole image."""
    backbone = model.backbone
    stages = {backbone.stage} if model.fine_stage is None else {backbone.stage, model.fine_stage}
    return math.lcm(*(side for stage in stages for side in backbone.stage_info(stage).geometry.stride))


def label_dtype(model: SegmenterNetwork) -> type[np.unsignedinteger]:
    """Return the smallest NumPy dtype for the class indices of a model."""
    return np.uint8 if len(model.config.classes) < 256 else np.uint16


def segment_tiled(
    model: SegmenterNetwork, image: Image.Image, view: View, after_tile: Callable[[], None] = lambda: None
) -> Integer[Tensor, "h w"]:
    """Segment an image in tiles and return the class index of each pixel.

    Args:
        model: segmenter in evaluation mode.
        image: RGB image; one no larger than a tile is segmented whole.
        view: memory limit or tile side, overlap, and whether to use the context of the whole image.
        after_tile: function called after each tile; it may raise an exception to stop.

    Raises:
        ValueError: see :func:`segment_to_file`.
    """
    down, across = _tile_grid(model, image, _tile_side(model, image, view), view.overlap)
    predict_tile = _tile_predictor(model, image, view)
    dtype = torch.uint8 if label_dtype(model) is np.uint8 else torch.int32
    labels = torch.zeros(image.height, image.width, dtype=dtype)
    for block in blend_tiles(down, across, predict_tile):
        labels[slice(*block.rows), slice(*block.columns)] = block.probabilities.argmax(0)
        del block  # free it before the next pass
        after_tile()
    return labels


@torch.inference_mode()
def image_context(model: SegmenterNetwork, image: Image.Image) -> Float[Tensor, "1 c 1 1"]:
    """Compute the input of the image-level branch for an image, reduced to a longer side of at most 1,024 pixels.

    Raises:
        ValueError: the model has no image-level branch.
    """
    height, width = _context_size(image)
    if height < image.height or width < image.width:
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2)
    return model.context_of(model.pixels(image))


def segment_to_file(
    model: SegmenterNetwork, image: Image.Image, path: Path, view: View, probabilities: Path | None = None
) -> int:
    """Segment an image of any size tile by tile, and write the class index of each pixel as .npy (height, width).

    Labels are uint8, or uint16 for 256 classes or more. The file has the suffix .part until it is complete. PATH.json
    records the image, the model, the view and the number of completed rows of tiles. If the process is killed, the
    same call continues after the last completed row, with bit-identical labels; once all rows are done, it returns
    immediately. With a different image, model or view it starts from scratch.

    Args:
        model: segmenter in evaluation mode.
        image: RGB image.
        path: path of the label file.
        view: memory limit or tile side, overlap, and whether to use the context of the whole image.
        probabilities: path of another .npy file for float16 probabilities of shape (classes, height, width).

    Returns:
        Number of rows of tiles that an earlier call had completed.

    Raises:
        ValueError: the view has neither a memory limit nor a tile side, has several scales or mirror images, or its
            memory limit is too low for the smallest tiles.
        OSError: the disk space is insufficient.
    """
    request = {
        "format": _FORMAT,
        "image": {"size": [image.height, image.width], "sha256": _digest(image)},
        "model": {"weights": weights_digest(model), "config": dataclasses.asdict(model.config)},
        "view": dataclasses.asdict(view),
        "probabilities": probabilities is not None,
    }
    request = json.loads(json.dumps(request))
    progress = path.with_name(f"{path.name}.json")
    files = [path] if probabilities is None else [path, probabilities]
    parts = [file.with_name(f"{file.name}.part") for file in files]
    earlier = _read_progress(progress, request, files, parts)
    done, side = (earlier.rows_done, earlier.tile) if earlier else (0, _tile_side(model, image, view))
    down, across = _tile_grid(model, image, side, view.overlap)
    state = _Progress(request, side, len(down), done)
    if done == 0:
        progress.unlink(missing_ok=True)  # first, as it describes the files replaced below
        progress.parent.mkdir(parents=True, exist_ok=True)
        size = (image.height, image.width)
        _preallocate(parts[0], label_dtype(model), size)
        if probabilities is not None:
            _preallocate(parts[1], np.float16, (len(model.config.classes), *size))
        write_json(dataclasses.asdict(state), progress)
    if done < len(down):
        predict_tile = _tile_predictor(model, image, view)
        first = max(done - 1, 0)  # repeat the last completed row, because the next row overlaps it
        blocks = blend_tiles(down, across, predict_tile, first)
        total = len(down) * len(across)
        for _ in track(range(first * len(across), total), path.stem, total, first * len(across)):
            block = next(blocks)
            if block.row >= done:
                _write_block(block, parts)
            if block.row >= done and block.columns[1] == image.width:
                write_json(dataclasses.asdict(dataclasses.replace(state, rows_done=block.row + 1)), progress)
            del block  # free it before the next pass
    for file, part in zip(files, parts, strict=True):
        if part.exists():
            part.replace(file)
    return done


def _tile_grid(model: SegmenterNetwork, image: Image.Image, tile: int, overlap: int) -> tuple[list[Span], list[Span]]:
    stride = tile_stride(model)
    return tile_spans(image.height, tile, overlap, stride), tile_spans(image.width, tile, overlap, stride)


def _context_size(image: Image.Image) -> tuple[int, int]:
    scale = min(1.0, CONTEXT_SIDE / max(image.size))
    return max(1, round(image.height * scale)), max(1, round(image.width * scale))


def _tile_side(model: SegmenterNetwork, image: Image.Image, view: View) -> int:
    """Return the maximum tile side in pixels: that of the view, or the largest within its memory limit."""
    if view.several or (view.memory is None and view.tile is None):
        raise ValueError(f"view: expected a memory limit or a tile side, and a single scale, got {view}")
    if view.tile is not None or view.memory is None:
        return view.tile or 0
    context = _context_size(image) if view.global_context else None
    size = (image.height, image.width)
    return largest_tile(model, size, view.memory, view.overlap, tile_stride(model), context)


def _tile_predictor(
    model: SegmenterNetwork, image: Image.Image, view: View
) -> Callable[[Span, Span], Float[Tensor, "classes h w"]]:
    context = image_context(model, image) if view.global_context else None

    def predict_tile(rows: Span, columns: Span) -> Float[Tensor, "classes h w"]:
        release_memory()  # otherwise memory grows with each pass
        crop = image.crop((columns[0], rows[0], columns[1], rows[1]))
        with torch.no_grad():
            logits: Tensor = model(model.pixels(crop), context)[0]
            return logits.float().softmax(0).cpu()

    return predict_tile


def _digest(image: Image.Image) -> str:
    """Hash the pixels of an image, in bands to avoid a copy of the whole image."""
    digest = hashlib.sha256()
    for top in range(0, image.height, 256):
        digest.update(image.crop((0, top, image.width, min(top + 256, image.height))).tobytes())
    return digest.hexdigest()


def _read_progress(progress: Path, request: dict[str, Any], files: list[Path], parts: list[Path]) -> _Progress | None:
    """Return the progress of an earlier identical call; None if there is none."""
    try:
        earlier = read_json(progress, _Progress)
    except (OSError, ValueError):
        return None
    # After the last row, the process may have been killed between the renames.
    complete = earlier.rows_done == earlier.rows
    intact = all(part.exists() or (complete and file.exists()) for file, part in zip(files, parts, strict=True))
    return earlier if earlier.rows_done and intact and earlier.of == request else None


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
