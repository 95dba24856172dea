"""Vectors of boxes of many images, kept in files; what was killed goes on where it stopped."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sppnet.backbones.weights import weights_digest
from sppnet.console import track
from sppnet.data.formats.boxes import ImageBoxes
from sppnet.data.images import load_image
from sppnet.data.listing import image_source
from sppnet.errors import ImageError, choose
from sppnet.features.encoder import RegionEncoder
from sppnet.features.files import Dtype, Engine, FileTask, PieceTask, compute_files
from sppnet.features.pictures import draw_regions
from sppnet.features.shards import Storage, import_pyarrow, read_metadata, read_shard
from sppnet.io import remote

INDEX = "index.json"
_FORMAT = 1
# A killed run loses one file at most, so a file must not take too long either.
_MOST_BYTES, _MOST_ROWS, _MOST_IMAGES = 250_000_000, 1 << 16, 256
_LAYOUT = "levels in the order given, inside a level channel, row, column"


@dataclass(frozen=True)
class RegionFeatures:
    """Vectors of boxes of one image.

    Attributes:
        image: its name, relative to the folder of images.
        ids: one a box.
        boxes: xyxy edges in pixels of the image.
        vectors: one row a box.
    """

    image: str
    ids: tuple[str, ...]
    boxes: Float[Tensor, "k 4"]
    vectors: Float[Tensor, "k d"]


@dataclass(frozen=True)
class FeatureReport:
    """What is in the folder.

    Attributes:
        vectors: number of rows in all files.
        files: number of files.
        failures: images without vectors, and why.
    """

    vectors: int
    files: int
    failures: tuple[ImageError, ...]


class _Piece(NamedTuple):
    """Boxes start..stop-1 of an image."""

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
    """Write the vector of every box into files of at most 250 MB and 256 images, and ``index.json`` beside them.

    Called again with the same arguments it makes what is missing, and anew the files of which an image has another
    size in bytes or another time than when it was read. Memory holds one file's vectors and one image's maps.

    Args:
        encoder: makes the vectors.
        data: images and boxes, as :func:`sppnet.data.formats.boxes.read_boxes` gives them.
        images: the folder that names are relative to, or the single image; a path, or a URL such as s3://bucket/photos.
        out: the folder, made if need be; a path or a URL.
        storage: ``safetensors`` or ``parquet``.
        dtype: ``float16`` or ``float32``. An image whose map has larger numbers than this holds is a failure.
        draw: pictures of so many of the first images are written into ``pictures`` before anything else, see
            :func:`sppnet.features.pictures.draw_regions`.
        engine: writes the files; None for :func:`sppnet.features.files.compute_files`.

    Raises:
        ValueError: the folder holds vectors of other boxes or other settings.
        ModuleNotFoundError: pyarrow is not installed, which ``parquet`` needs.
        OSError: a file cannot be written.
    """
    choose("storage", storage, get_args(Storage))
    choose("dtype", dtype, get_args(Dtype))
    if draw < 0:
        raise ValueError(f"draw: expected 0 or more images; got {draw}")
    if draw and not isinstance(out, Path):
        raise ValueError(f"draw: pictures are written into a local folder only; out is {out}")
    if storage == "parquet":
        import_pyarrow()
    names = [_name(each.path, images) for each in data]
    settings = _settings(encoder, data, names, storage, dtype)
    _check_folder(out, settings)
    if isinstance(out, Path):
        _draw(encoder, data[:draw], out / "pictures")
    rows = _MOST_BYTES // (encoder.length * getattr(torch, dtype).itemsize)
    plan = plan_shards([len(each.boxes) for each in data], min(max(rows, 1), _MOST_ROWS), _MOST_IMAGES)
    paths = [remote.join(out, f"{number:05d}.{storage}") for number in range(len(plan))]
    sources = [_source(settings, pieces, data, names) for pieces in plan]
    todo = [number for number, path in enumerate(paths) if (read_metadata(path) or {}).get("source") != sources[number]]
    index = _index(encoder, settings)
    if todo or not remote.exists(remote.join(out, INDEX)):
        remote.make_folder(out)
        _write_index(index, out)
    steps = sum(map(len, plan))
    with torch.inference_mode():
        tasks = [FileTask(paths[i], sources[i], _pieces(plan[i], data, names)) for i in todo]
        work = (engine or compute_files)(encoder, tasks, dtype)
        for _ in track(work, "vectors of images", steps, steps - sum(len(plan[number]) for number in todo)):
            pass
    found = [read_metadata(path) or {} for path in paths]
    counts = [int(metadata["rows"]) for metadata in found]
    failures = dict(pair for metadata in found for pair in json.loads(metadata["failures"]))
    index["complete"] = True
    index["shards"] = [
        {"file": PurePosixPath(path).name, "rows": count} for path, count in zip(paths, counts, strict=True)
    ]
    index["failures"] = [{"image": name, "reason": reason} for name, reason in failures.items()]
    _write_index(index, out)
    remote.remove_parts(out)
    return FeatureReport(sum(counts), len(paths), tuple(ImageError(*pair) for pair in failures.items()))


def read_features(folder: str | Path) -> Iterator[RegionFeatures]:
    """Vectors of a folder that `sppnet features` wrote, image by image; memory holds one file.

    Images come in the order of the box file. One that has more boxes than a file holds comes once for each file.

    Raises:
        ValueError: no such folder, or one whose vectors are not complete.
        ModuleNotFoundError: pyarrow is not installed, which Parquet needs.
    """
    folder = str(folder) if remote.is_url(folder) else Path(folder)
    index = _read_index(folder)
    if not index["complete"]:
        raise ValueError(f"folder: the vectors in {folder} are not complete; the same command goes on with them")
    return _read_files([remote.join(folder, shard["file"]) for shard in index["shards"]])


def _read_files(paths: Sequence[Path | str]) -> Iterator[RegionFeatures]:
    for path in paths:
        with remote.local_copy(path) as file:
            shard = read_shard(file)
        present, counts = shard.image.unique_consecutive(return_counts=True)
        start = 0
        for image, count in zip(present.tolist(), counts.tolist(), strict=True):
            rows = slice(start, start + count)
            yield RegionFeatures(shard.images[image], shard.ids[rows], shard.boxes[rows], shard.vectors[rows])
            start += count


def _draw(encoder: RegionEncoder, data: Sequence[ImageBoxes], folder: Path) -> None:
    for number, each in enumerate(data):
        try:
            image = load_image(image_source(each.path))
        except ImageError:  # named when its vectors are asked for
            continue
        folder.mkdir(parents=True, exist_ok=True)
        draw_regions(encoder, image, each.boxes, each.ids).save(
            folder / f"{number:05d}-{PurePosixPath(each.path).stem}.png"
        )


def plan_shards(counts: Sequence[int], rows: int, images: int) -> list[list[_Piece]]:
    """Which boxes go into which file; an image is in one, unless it has more boxes than a file holds.

    Args:
        counts: boxes of each image. An image without boxes is in no file.
        rows: most boxes of a file, >= 1.
        images: most images of a file, >= 1.
    """
    shards: list[list[_Piece]] = []
    room = 0
    for image, count in enumerate(counts):
        for start in range(0, count, rows):
            piece = _Piece(image, start, min(start + rows, count))
            size = piece.stop - piece.start
            if size > room or len(shards[-1]) == images:
                shards.append([])
                room = rows
            shards[-1].append(piece)
            room -= size
    return shards


def _pieces(pieces: Sequence[_Piece], data: Sequence[ImageBoxes], names: Sequence[str]) -> list[PieceTask]:
    return [
        PieceTask(names[image], data[image].path, data[image].boxes[start:stop], data[image].ids[start:stop])
        for image, start, stop in pieces
    ]


def _settings(
    encoder: RegionEncoder, data: Sequence[ImageBoxes], names: Sequence[str], storage: Storage, dtype: Dtype
) -> dict[str, Any]:
    """What the vectors depend on beside the images, as JSON gives it back."""
    content = {
        "storage": storage,
        "dtype": dtype,
        "backbone": encoder.backbone.name,
        "stage": encoder.backbone.stage,
        "weights": weights_digest(encoder.backbone),
        "levels": encoder.levels,
        "scales": encoder.scales,
        "scale_rule": encoder.scale_rule,
        "max_side": encoder.max_side,
        "rule": encoder.rule,
        "reduce": encoder.reduce,
        "boxes": _boxes_digest(data, names),
    }
    settings: dict[str, Any] = json.loads(json.dumps(content))
    return settings


def _index(encoder: RegionEncoder, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "complete": False,
        "settings": settings,
        "vector": {"length": encoder.length, "channels": encoder.backbone.channels, "layout": _LAYOUT},
        "shards": [],
        "failures": [],
    }


def _write_index(index: dict[str, Any], out: Path | str) -> None:
    remote.write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", remote.join(out, INDEX))


def _check_folder(out: Path | str, settings: dict[str, Any]) -> None:
    if not remote.exists(remote.join(out, INDEX)):
        return
    found = _read_index(out)["settings"]
    other = [f"{name} {found.get(name)}, not {value}" for name, value in settings.items() if found.get(name) != value]
    if other:
        raise ValueError(f"out: {out} holds vectors of other settings: {'; '.join(other)}; take another folder")


def _read_index(folder: Path | str) -> dict[str, Any]:
    path = remote.join(folder, INDEX)
    try:
        content = json.loads(remote.read_bytes(path))
    except FileNotFoundError as error:
        raise ValueError(f"folder: expected one that `sppnet features` wrote; {folder} has no {INDEX}") from error
    except ValueError as error:
        raise ValueError(f"folder: {path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or "settings" not in content:
        raise ValueError(f"folder: {path} is no index that this version of `sppnet features` reads")
    return content


def _source(
    settings: dict[str, Any], pieces: Sequence[_Piece], data: Sequence[ImageBoxes], names: Sequence[str]
) -> str:
    """A name for exactly these rows: of the settings, with the boxes among them, and of the files as they are now."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for image, start, stop in pieces:
        digest.update(json.dumps((names[image], start, stop, *remote.state(data[image].path))).encode())
    return digest.hexdigest()


def _boxes_digest(data: Sequence[ImageBoxes], names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name, each in zip(names, data, strict=True):
        digest.update(json.dumps((name, each.ids)).encode())
        digest.update(each.boxes.numpy().tobytes())
    return digest.hexdigest()[:16]


def _name(path: Path | str, images: Path | str) -> str:
    """The name relative to the folder of images, with slashes; bytes that are no UTF-8 are replaced."""
    name = remote.relative(path, images)
    return os.fsencode(name).decode(errors="replace")
