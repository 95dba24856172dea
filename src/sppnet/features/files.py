"""Computation of box vector files, each independent of the others."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sppnet.data.images import load_image
from sppnet.data.listing import image_source
from sppnet.errors import ImageError
from sppnet.features.encoder import ImageMaps, RegionEncoder
from sppnet.features.options import Dtype
from sppnet.features.shards import Shard, save_shard


class PieceTask(NamedTuple):
    """Boxes of one image whose vectors go into the same file, with the name and path of the image."""

    name: str
    path: Path | str
    boxes: Float[Tensor, "k 4"]
    ids: Sequence[str]


class FileTask(NamedTuple):
    """Inputs of one file, which stores ``source``, a digest of them."""

    path: Path | str
    source: str
    pieces: Sequence[PieceTask]


# A function that writes the files and yields after each image.
Engine = Callable[[RegionEncoder, Sequence[FileTask], Dtype], Iterator[None]]


def compute_files(encoder: RegionEncoder, tasks: Iterable[FileTask], dtype: Dtype) -> Iterator[None]:
    """Write the files in this process and yield after each image."""
    loaded_path, maps = None, None
    for path, source, pieces in tasks:
        boxes = torch.cat([piece.boxes for piece in pieces])
        vectors = torch.empty(len(boxes), encoder.length, dtype=getattr(torch, dtype))
        names: list[str] = []
        indices: list[int] = []
        ids: list[str] = []
        failures: list[tuple[str, str]] = []
        end = 0
        for piece in pieces:
            if piece.path != loaded_path:
                loaded_path, maps = piece.path, _prepare(encoder, piece.path, vectors.dtype)
            rows = slice(end, end + len(piece.boxes))
            if isinstance(maps, ImageMaps):
                encoder.fill(vectors[rows], maps, piece.boxes)
                boxes[rows] = piece.boxes
                indices += [len(names)] * len(piece.boxes)
                names.append(piece.name)
                ids += piece.ids
                end = rows.stop
            elif maps is not None:
                failures.append((piece.name, maps.reason))
            yield
        shard = Shard(vectors[:end], boxes[:end], torch.tensor(indices, dtype=torch.long), tuple(names), tuple(ids))
        save_shard(shard, path, {"rows": str(end), "failures": json.dumps(failures), "source": source})


def _prepare(encoder: RegionEncoder, path: Path | str, dtype: torch.dtype) -> ImageMaps | ImageError:
    try:
        image = load_image(image_source(path))
    except ImageError as error:
        return error
    maps = encoder.prepare(image)
    largest = max(float(features.data.abs().amax()) for features in maps.maps)
    if largest > torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        return ImageError(str(path), f"its feature map reaches {largest:.3g}, beyond the range of {name}")
    return maps
