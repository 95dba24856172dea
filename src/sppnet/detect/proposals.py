"""Object proposals: selective search, a sliding-window grid, or both, cached on disk by image content."""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.console import console, track
from sppnet.data.formats.boxes import read_boxes
from sppnet.data.images import image_size, load_image
from sppnet.detect.classic.selective_search import SEARCHES, load_cv2, selective_search
from sppnet.detect.window_grid import window_grid
from sppnet.errors import ImageError, check_choice
from sppnet.inference.results import Failure
from sppnet.io.files import read_tensors, save_tensors

GRID = "grid"
SOURCES = (*SEARCHES, GRID)
MAX_WINDOWS = 2000

_BOX_FILES = (".csv", ".jsonl", ".json")
_FORMAT = 1  # increase it when the same settings give other boxes


@dataclass(frozen=True)
class Proposals:
    """Proposals of one image.

    Attributes:
        boxes: xyxy edges in pixels of the image as loaded by :func:`sppnet.data.images.load_image`.
        complete: False if the time limit cut the search short; the boxes are then not reproducible.
    """

    boxes: Float[Tensor, "k 4"]
    complete: bool


def propose(
    image: Image.Image,
    source: str,
    *,
    max_windows: int | None = MAX_WINDOWS,
    seconds: float | None = None,
    seed: int = 0,
) -> Float[Tensor, "k 4"]:
    """Propose windows of an image that may contain objects.

    The box of the whole image is always included. Equal arguments without a time limit give equal boxes. The boxes are
    unique and sorted by x1, y1, x2, y2; they are not ranked by quality.

    Args:
        image: RGB image.
        source: one of `SOURCES`, or several, joined by commas or plus signs. Each gets an equal share of the windows; a
            grid also gets what the others leave unused.
        max_windows: maximum number of windows, >= 1. If selective search finds more, a random subset is kept, so that
            the distribution of sizes does not change. None keeps all and is not supported with a grid.
        seconds: time after which a selective search starts no further part (see
            :func:`sppnet.detect.classic.selective_search.selective_search`), so that the boxes depend on the machine's
            speed; None for no limit.
        seed: random seed of the subset.

    Returns:
        float32 xyxy edges in pixels of the image.

    Raises:
        ModuleNotFoundError: selective search without OpenCV.
        ValueError: unknown source, limit that is not above 0, or image that is not RGB.
    """
    sources = _parse(source, max_windows, seconds)
    if image.mode != "RGB":
        raise ValueError(f"image: expected mode RGB, got mode {image.mode}; load it with load_image")
    return _propose(image, sources, max_windows, seconds, seed).boxes


def propose_all(
    paths: Sequence[Path],
    source: str,
    folder: Path | None,
    *,
    max_windows: int | None = MAX_WINDOWS,
    seconds: float | None = None,
    seed: int = 0,
    workers: int = 1,
) -> list[Proposals | Failure]:
    """Return the proposals of many images as a list, with a progress bar; see :func:`iter_proposals`."""
    items = iter_proposals(paths, source, folder, max_windows=max_windows, seconds=seconds, seed=seed, workers=workers)
    return list(track(items, "proposals", len(paths)))


def iter_proposals(
    paths: Sequence[Path],
    source: str,
    folder: Path | None,
    *,
    max_windows: int | None = MAX_WINDOWS,
    seconds: float | None = None,
    seed: int = 0,
    workers: int = 1,
) -> Iterator[Proposals | Failure]:
    """Yield the proposals of many images, cached in a folder.

    Each image has its own cache file, named by a hash of the image's content, the source and the settings: a killed run
    can be resumed, and moved or renamed images are not searched again.

    Args:
        paths: image files.
        source: as in :func:`propose`, or a file of boxes (see :func:`sppnet.data.formats.boxes.read_boxes`) whose image
            names are relative to the common folder of the images. For an image that the file does not list, the whole
            image is the only window.
        folder: cache folder, created if missing; different sources and settings may share it. None caches nothing.
        max_windows: maximum number of windows per image, as in :func:`propose`.
        seconds: time limit per image. Results for one limit are never reused for another; the file's metadata says
            whether the search was complete.
        seed: as in :func:`propose`.
        workers: images searched in parallel, >= 1, in threads: OpenCV releases the GIL.

    Yields:
        Proposals in the order of the paths, or a Failure for an image that cannot be read.

    Raises:
        ModuleNotFoundError: selective search without OpenCV.
        ValueError: as in :func:`propose`, or a file is damaged, missing, or has no box of any image.
    """
    if is_box_file(source):
        yield from _from_file(paths, Path(source), max_windows, seed)
        return
    sources = _parse(source, max_windows, seconds)
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    opencv = "" if sources == (GRID,) else load_cv2().__version__
    settings = repr((_FORMAT, sources, max_windows, seconds, seed, opencv))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    def work(path: Path) -> Proposals | Failure:
        try:
            image_size(path)  # raises ImageError for missing files and folders
            file = None
            if folder:
                digest = hashlib.sha256(settings.encode() + b"\n" + path.read_bytes()).hexdigest()
                file = folder / f"{digest}.safetensors"
                if file.exists():
                    return _read(file)
            proposals = _propose(load_image(path), sources, max_windows, seconds, seed)
        except ImageError as error:
            return Failure(str(path), error)
        if file:
            metadata = {"complete": "yes" if proposals.complete else "no", "settings": settings}
            save_tensors({"boxes": proposals.boxes}, file, metadata, shared=True)
        return proposals

    pool = ThreadPoolExecutor(workers, "proposals")
    try:
        yield from pool.map(work, paths)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, only running searches are completed


def is_box_file(source: str) -> bool:
    """Return whether a source is a file of boxes rather than the name of a search."""
    return Path(source).suffix.lower() in _BOX_FILES


def _from_file(paths: Sequence[Path], file: Path, max_windows: int | None, seed: int) -> Iterator[Proposals | Failure]:
    """Yield the boxes of each image in a file, and the box of the whole image."""
    if not file.is_file():
        raise ValueError(f"proposals: expected a file of boxes, got {file}, which does not exist")
    absolute = [path.absolute() for path in paths]
    images = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    boxes_by_path = {image.path: image.boxes for image in read_boxes(file, images).images}
    unlisted = [path for path in absolute if path not in boxes_by_path]
    if absolute and len(unlisted) == len(absolute):
        raise ValueError(f"proposals: expected boxes of the images, such as {absolute[0]}, got none in {file}")
    if unlisted:
        names = ", ".join(str(path) for path in unlisted[:10])
        text = f"{len(unlisted)} of {len(absolute)} images have no box in {file} and use only the whole image: {names}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    for path, absolute_path in zip(paths, absolute, strict=True):
        try:
            height, width = image_size(path)
        except ImageError as error:
            yield Failure(str(path), error)
            continue
        whole = torch.tensor([[0.0, 0.0, width, height]])
        boxes = torch.cat((whole, boxes_by_path.get(absolute_path, whole))).unique(dim=0)
        yield Proposals(boxes if max_windows is None else _subsample(boxes, whole, max_windows, seed), complete=True)


def _parse(source: str, max_windows: int | None, seconds: float | None) -> tuple[str, ...]:
    """Return the sources in the order of `SOURCES`, so that the order of their names does not matter."""
    names = set(re.split(r"\s*[,+]\s*", source.strip()))
    for name in sorted(names):
        check_choice("source", name, SOURCES)
    if max_windows is None and GRID in names:
        raise ValueError(f"max_windows: expected a number with a grid, got None; the default is {MAX_WINDOWS}")
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows: expected at least 1, got {max_windows}; the whole image is always a window")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds: expected a number above 0 or None (no limit), got {seconds}")
    return tuple(name for name in SOURCES if name in names)


def _propose(
    image: Image.Image, sources: tuple[str, ...], max_windows: int | None, seconds: float | None, seed: int
) -> Proposals:
    deadline = None if seconds is None else time.monotonic() + seconds
    searches = [selective_search(image, source, deadline) for source in sources if source != GRID]
    whole = torch.tensor([[0.0, 0.0, image.width, image.height]])
    boxes = torch.cat((whole, *(boxes for boxes, _ in searches))).unique(dim=0)
    if max_windows is not None:
        boxes = _subsample(boxes, whole, max(1, max_windows * len(searches) // len(sources)), seed)
        if GRID in sources:  # + 1: the whole image is in both
            grid = window_grid((image.height, image.width), max_windows - len(boxes) + 1)
            boxes = torch.cat((boxes, grid)).unique(dim=0)
    return Proposals(boxes, all(complete for _, complete in searches))


def _subsample(boxes: Float[Tensor, "k 4"], whole: Float[Tensor, "1 4"], count: int, seed: int) -> Float[Tensor, "n 4"]:
    """Subsample to `count` boxes and keep the whole image."""
    if len(boxes) <= count:
        return boxes
    others = boxes[(boxes != whole).any(1)]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    chosen: Tensor = torch.cat((whole, others[order[: count - 1]])).unique(dim=0)
    return chosen


def _read(file: Path) -> Proposals:
    try:
        tensors, metadata = read_tensors(file)
        return Proposals(tensors["boxes"], {"yes": True, "no": False}[metadata["complete"]])
    except (KeyError, ValueError) as error:
        raise ValueError(f"folder: {file} is damaged ({error}); delete it to compute it again") from error
