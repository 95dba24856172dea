"""Computation of box vector files, each independent of the others."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.data.images import load_image
from sppnet.data.listing import image_source
from sppnet.errors import ImageError
from sppnet.features.boxes import fit_boxes
from sppnet.features.encoder import ImageMaps, RegionEncoder
from sppnet.features.options import Dtype
from sppnet.features.shards import Shard, save_shard
from sppnet.inference.parallel import map_images


class PieceTask(NamedTuple):
    """Boxes of one image whose vectors go into the same file, with the name and path of the image."""

    name: str
    path: Path | str
    boxes: Float[Tensor, "k 4"]
    ids: Sequence[str]


class _Rows(NamedTuple):
    """Boxes of one image, and the rows of the file to fill with them and with their vectors."""

    piece: PieceTask
    boxes: Float[Tensor, "k 4"]
    vectors: Float[Tensor, "k d"]


class FileTask(NamedTuple):
    """Inputs of one file, which stores ``source``, a digest of them."""

    path: Path | str
    source: str
    pieces: Sequence[PieceTask]


# A function that writes the files and yields after each image.
Engine = Callable[[RegionEncoder, Sequence[FileTask], Dtype], Iterator[None]]


def compute_files(encoder: RegionEncoder, tasks: Iterable[FileTask], dtype: Dtype) -> Iterator[None]:
    """Write the files in this process and yield after each image."""
    device = next(encoder.parameters()).device
    latest: dict[Path | str, ImageMaps | ImageError] = {}  # of one image, because its boxes may fill several files

    def load(rows: _Rows) -> tuple[_Rows, Image.Image | ImageMaps | ImageError]:
        path = rows.piece.path
        try:
            return rows, latest.get(path) or load_image(image_source(path))
        except ImageError as error:
            return rows, error

    def fill(loaded: tuple[_Rows, Image.Image | ImageMaps | ImageError]) -> ImageError | None:
        (piece, boxes, vectors), content = loaded
        with torch.inference_mode():
            maps = (
                _prepare(encoder, piece.path, content, vectors.dtype) if isinstance(content, Image.Image) else content
            )
            latest.clear()
            latest[piece.path] = maps
            if isinstance(maps, ImageError):
                return maps
            boxes.copy_(fit_boxes(piece.boxes, maps.size))
            encoder.fill(vectors, maps, boxes)
        return None

    for path, source, pieces in tasks:
        counts = [len(piece.boxes) for piece in pieces]
        boxes, vectors = (
            torch.empty(sum(counts), 4),
            torch.empty(sum(counts), encoder.length, dtype=getattr(torch, dtype)),
        )
        rows = map(_Rows, pieces, boxes.split(counts), vectors.split(counts))
        errors: list[ImageError | None] = []
        with closing(map_images(load, fill, rows, device)) as results:
            for error in results:
                errors.append(error)
                yield
        failures = [(piece.name, error.reason) for piece, error in zip(pieces, errors, strict=True) if error]
        if failures:
            keep = torch.tensor([error is None for error in errors]).repeat_interleave(torch.tensor(counts))
            boxes, vectors = boxes[keep], vectors[keep]
        good = [piece for piece, error in zip(pieces, errors, strict=True) if error is None]
        indices = torch.tensor([index for index, piece in enumerate(good) for _ in piece.ids], dtype=torch.long)
        ids = tuple(id for piece in good for id in piece.ids)
        shard = Shard(vectors, boxes, indices, tuple(piece.name for piece in good), ids)
        save_shard(shard, path, {"rows": str(len(boxes)), "failures": json.dumps(failures), "source": source})


def _prepare(
    encoder: RegionEncoder, path: Path | str, image: Image.Image, dtype: torch.dtype
) -> ImageMaps | ImageError:
    maps = encoder.prepare(image)
    largest = max(float(features.data.abs().amax()) for features in maps.maps)
    if largest > torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        return ImageError(str(path), f"its feature map reaches {largest:.3g}, beyond the range of {name}")
    return maps
