"""Box vectors of many images, written to files; a killed run can be resumed."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sppnet.backbones.weights import weights_digest
from sppnet.data.formats.boxes import ImageBoxes
from sppnet.data.images import load_image
from sppnet.data.listing import image_source
from sppnet.errors import ImageError, check_choice
from sppnet.features.boxes import fit_boxes
from sppnet.features.encoder import RegionEncoder
from sppnet.features.files import Engine, FileTask, PieceTask, compute_files
from sppnet.features.options import Dtype, Storage
from sppnet.features.pictures import draw_regions
from sppnet.features.shards import import_pyarrow, read_metadata, read_shard
from sppnet.io import remote
from sppnet.io.shards import Index, list_shards
from sppnet.progress import track

# Limits of one file; a killed run loses at most one file.
_MAX_BYTES, _MAX_ROWS, _MAX_IMAGES = 250_000_000, 1 << 16, 256
_LAYOUT = "levels in the order given, inside a level channel, row, column"


@dataclass(frozen=True)
class StoredVectors:
    """Vectors of boxes of one image, read from a file.

    Attributes:
        image: image name, relative to the image folder.
        ids: box ids.
        boxes: xyxy edges in pixels of the image.
        vectors: one row per box.
    """

    image: str
    ids: tuple[str, ...]
    boxes: Float[Tensor, "k 4"]
    vectors: Float[Tensor, "k d"]


@dataclass(frozen=True)
class FeatureReport:
    """Contents of an output folder.

    Attributes:
        vectors: number of rows in all files.
        files: number of files.
        failures: images without vectors, with the reason.
    """

    vectors: int
    files: int
    failures: tuple[ImageError, ...]


class _Piece(NamedTuple):
    """Boxes `start` (inclusive) to `stop` (exclusive) of an image."""

    image: int
    start: int
    stop: int


def compute_features(
    encoder: RegionEncoder,
    data: Sequence[ImageBoxes],
    images: Path | str,
    out: Path | str,
    storage: Storage = "safetensors",
    dtype: Dtype = "float16",
    draw: int = 0,
    engine: Engine | None = None,
) -> FeatureReport:
    """Write the vector of every box into files of at most 250 MB and 256 images, with an ``index.json``.

    A repeated call with the same arguments computes the missing files, and those whose images have changed in size or
    modification time. On the CPU, as many images are in process at a time as torch uses threads, see
    :func:`sppnet.inference.parallel.map_images`. Memory holds the vectors of one file and the maps of these images.

    Args:
        encoder: encoder of the boxes.
        data: images and boxes from :func:`sppnet.data.formats.boxes.read_boxes`, or for one vector per image those of
            :func:`sppnet.features.boxes.whole_images`.
        images: folder that image names are relative to, or a single image; a path or a URL such as s3://bucket/photos.
        out: output folder, created if missing; a path or a URL.
        storage: ``safetensors`` or ``parquet``.
        dtype: ``float16`` or ``float32``. An image whose map exceeds its range is reported as a failure.
        draw: number of leading images to draw into the subfolder ``pictures`` before the computation, see
            :func:`sppnet.features.pictures.draw_regions`.
        engine: function that writes the files; default: :func:`sppnet.features.files.compute_files`.

    Raises:
        ValueError: an argument is invalid, or the folder contains vectors with other boxes or settings.
        ModuleNotFoundError: ``parquet`` needs pyarrow, which is not installed.
        OSError: a file cannot be written.
    """
    check_choice("storage", storage, get_args(Storage))
    check_choice("dtype", dtype, get_args(Dtype))
    if draw < 0:
        raise ValueError(f"draw: expected 0 or more images, got {draw}")
    out = remote.resolve(str(out))
    images = images if remote.is_url(images) else Path(images)
    if draw and not isinstance(out, Path):
        raise ValueError(f"out: expected a local folder when draw is above 0, got {out}")
    if storage == "parquet":
        import_pyarrow()
    names = [_name(image.path, images) for image in data]
    digests = {"weights": weights_digest(encoder.backbone), "boxes": _boxes_digest(data, names)}
    settings = {"storage": storage, "dtype": dtype} | asdict(encoder.config) | digests
    vector = {"length": encoder.length, "channels": encoder.backbone.channels, "layout": _LAYOUT}
    index = Index(settings=settings, vector=vector)
    resumed = index.is_in(out)
    if isinstance(out, Path):
        _draw(encoder, data[:draw], out / "pictures")
    rows = _MAX_BYTES // (encoder.length * getattr(torch, dtype).itemsize)
    plan = plan_shards([len(image.boxes) for image in data], min(max(rows, 1), _MAX_ROWS), _MAX_IMAGES)
    paths = [remote.join(out, f"{number:05d}.{storage}") for number in range(len(plan))]
    sources = [_source(settings, pieces, data, names) for pieces in plan]
    pending = [i for i, path in enumerate(paths) if (read_metadata(path) or {}).get("source") != sources[i]]
    if pending or not resumed:
        index.write(out)
    steps = sum(map(len, plan))
    with torch.inference_mode():
        tasks = [FileTask(paths[i], sources[i], _pieces(plan[i], data, names)) for i in pending]
        work = (engine or compute_files)(encoder, tasks, dtype)
        for _ in track(work, "vectors of images", steps, steps - sum(len(plan[i]) for i in pending)):
            pass
    metadata = [read_metadata(path) or {} for path in paths]
    counts = [int(texts["rows"]) for texts in metadata]
    failures = dict(pair for texts in metadata for pair in json.loads(texts["failures"]))
    shards = [{"file": PurePosixPath(path).name, "rows": count} for path, count in zip(paths, counts, strict=True)]
    index.finish(out, shards, [{"image": name, "reason": reason} for name, reason in failures.items()])
    return FeatureReport(sum(counts), len(paths), tuple(ImageError(*pair) for pair in failures.items()))


def read_features(folder: str | Path) -> Iterator[StoredVectors]:
    """Iterate over the images of a folder written by `sppnet features`, with one file in memory at a time.

    Images come in the order of the box file; those with more boxes than fit into one file span several items.

    Raises:
        ValueError: the folder has no valid index, or its vectors are incomplete.
        ModuleNotFoundError: Parquet needs pyarrow, which is not installed.
    """
    return _read_files(list_shards(folder))


def _read_files(paths: Sequence[Path | str]) -> Iterator[StoredVectors]:
    for path in paths:
        with remote.local_copy(path) as file:
            shard = read_shard(file)
        present, counts = shard.image.unique_consecutive(return_counts=True)
        start = 0
        for image, count in zip(present.tolist(), counts.tolist(), strict=True):
            rows = slice(start, start + count)
            yield StoredVectors(shard.images[image], shard.ids[rows], shard.boxes[rows], shard.vectors[rows])
            start += count


def _draw(encoder: RegionEncoder, data: Sequence[ImageBoxes], folder: Path) -> None:
    for number, sample in enumerate(data):
        try:
            image = load_image(image_source(sample.path))
        except ImageError:  # reported when the vectors are computed
            continue
        folder.mkdir(parents=True, exist_ok=True)
        picture = draw_regions(encoder, image, fit_boxes(sample.boxes, (image.height, image.width)), sample.ids)
        picture.save(folder / f"{number:05d}-{PurePosixPath(sample.path).stem}.png")


def plan_shards(counts: Sequence[int], rows: int, images: int) -> list[list[_Piece]]:
    """Assign boxes to files; an image is split only if it has more boxes than fit into one file.

    Args:
        counts: number of boxes of each image; images without boxes are skipped.
        rows: maximum number of boxes per file, >= 1.
        images: maximum number of images per file, >= 1.
    """
    shards: list[list[_Piece]] = []
    free_rows = 0
    for image, count in enumerate(counts):
        for start in range(0, count, rows):
            piece = _Piece(image, start, min(start + rows, count))
            size = piece.stop - piece.start
            if size > free_rows or len(shards[-1]) == images:
                shards.append([])
                free_rows = rows
            shards[-1].append(piece)
            free_rows -= size
    return shards


def _pieces(pieces: Sequence[_Piece], data: Sequence[ImageBoxes], names: Sequence[str]) -> list[PieceTask]:
    return [
        PieceTask(names[image], data[image].path, data[image].boxes[start:stop], data[image].ids[start:stop])
        for image, start, stop in pieces
    ]


def _source(
    settings: dict[str, Any], pieces: Sequence[_Piece], data: Sequence[ImageBoxes], names: Sequence[str]
) -> str:
    """Return a digest of the settings (boxes included) and of the current state of the image files."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for image, start, stop in pieces:
        digest.update(json.dumps((names[image], start, stop, *remote.file_version(data[image].path))).encode())
    return digest.hexdigest()


def _boxes_digest(data: Sequence[ImageBoxes], names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name, sample in zip(names, data, strict=True):
        digest.update(json.dumps((name, sample.ids)).encode())
        digest.update(sample.boxes.numpy().tobytes())
    return digest.hexdigest()[:16]


def _name(path: Path | str, images: Path | str) -> str:
    """Return the name relative to the image folder, with slashes; bytes that are not UTF-8 are replaced."""
    name = remote.relative(path, images)
    return os.fsencode(name).decode(errors="replace")
