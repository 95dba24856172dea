"""Object proposals: selective search, a sliding-window grid, or both, cached on disk by image content."""

import hashlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.data.formats.boxes import read_boxes
from sppnet.data.images import ImageSource, image_size, load_image, source_name
from sppnet.detect.classic.selective_search import SEARCHES, load_cv2, selective_search
from sppnet.detect.options import is_box_file
from sppnet.detect.window_grid import window_grid
from sppnet.errors import ImageError, check_choice, list_some
from sppnet.inference.results import Failure
from sppnet.io.files import read_tensors, save_tensors
from sppnet.io.remote import writers_lock

_logger = logging.getLogger(__name__)

GRID = "grid"
SOURCES = (*SEARCHES, GRID)
MAX_WINDOWS = 2000

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


def iter_proposals(
    images: Sequence[ImageSource],
    source: str,
    folder: str | Path | None,
    *,
    max_windows: int | None = MAX_WINDOWS,
    seconds: float | None = None,
    seed: int = 0,
    workers: int = 1,
) -> Iterator[Proposals | Failure]:
    """Yield the proposals of many images, cached in a folder.

    Each image file has its own cache file, named by a hash of the image's content, the source and the settings: a
    killed run can be resumed, and moved or renamed images are not searched again.

    Args:
        images: paths, bytes of files, or images in memory, which are not cached.
        source: as in :func:`propose`, or a file of boxes (see :func:`sppnet.data.formats.boxes.read_boxes`), which may
            name further images. For an image that the file does not list, the whole image is the only window.
        folder: cache folder, created if missing; different sources and settings may share it. None caches nothing.
        max_windows: maximum number of windows per image, as in :func:`propose`.
        seconds: time limit per image. Results for one limit are never reused for another; the file's metadata says
            whether the search was complete.
        seed: as in :func:`propose`.
        workers: images searched in parallel, >= 1, in threads: OpenCV releases the GIL.

    Yields:
        Proposals in the order of the images, or a Failure for an image that cannot be read.

    Raises:
        ModuleNotFoundError: selective search without OpenCV.
        ValueError: as in :func:`propose`, or a file is damaged, missing, has no box of any image, or is used for images
            that are not paths.
    """
    if is_box_file(source):
        yield from _from_file(images, Path(source), max_windows, seed)
        return
    sources = _parse(source, max_windows, seconds)
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    opencv = "" if sources == (GRID,) else load_cv2().__version__
    settings = repr((_FORMAT, sources, max_windows, seconds, seed, opencv))
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)

    def work(index: int, image: ImageSource) -> Proposals | Failure:
        try:
            file = None
            if folder and isinstance(image, str | os.PathLike | bytes):
                image_size(image)  # raises ImageError for missing files and folders
                content = image if isinstance(image, bytes) else Path(image).read_bytes()
                digest = hashlib.sha256(settings.encode() + b"\n" + content).hexdigest()
                file = Path(folder) / f"{digest}.safetensors"
                if file.exists():
                    return _read(file)
            proposals = _propose(load_image(image), sources, max_windows, seconds, seed)
        except ImageError as error:
            return Failure(source_name(image, index), error)
        if file:
            metadata = {"complete": "yes" if proposals.complete else "no", "settings": settings}
            save_tensors({"boxes": proposals.boxes}, file, metadata)
        return proposals

    pool = ThreadPoolExecutor(workers, "proposals")
    pending: deque[Future[Proposals | Failure]] = deque()
    with writers_lock(Path(folder)) if folder else nullcontext():
        try:
            for index, image in enumerate(images):
                pending.append(pool.submit(work, index, image))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, only running searches are completed


def _from_file(
    images: Sequence[ImageSource], file: Path, max_windows: int | None, seed: int
) -> Iterator[Proposals | Failure]:
    """Yield the boxes of each image in a file, and the box of the whole image."""
    if not file.is_file():
        raise ValueError(f"proposals: expected a file of boxes, got {file}, which does not exist")
    sizes: dict[Path, tuple[int, int] | ImageError] = {}
    for image in images:
        if not isinstance(image, str | os.PathLike):
            raise ValueError(f"images: expected paths, to find them in {file}, got {type(image).__name__}")
        try:
            sizes[Path(image).absolute()] = image_size(image)
        except ImageError as error:
            sizes[Path(image).absolute()] = error
    readable = [path for path, size in sizes.items() if not isinstance(size, ImageError)]
    if not readable and sizes:  # report an unusable file nevertheless
        read_boxes(file, list(sizes), on_bad="drop")
    boxes_by_path = {entry.path: entry.boxes for entry in read_boxes(file, readable).images} if readable else {}
    unlisted = [path for path in readable if path not in boxes_by_path]
    if unlisted and len(unlisted) == len(readable):
        raise ValueError(f"proposals: expected boxes of the images, such as {unlisted[0]}, got none in {file}")
    if unlisted:
        _logger.warning(
            f"{len(unlisted)} of {len(readable)} images have no box in {file} and use only the whole image:"
            f" {list_some(map(str, unlisted))}"
        )
    for index, image in enumerate(images):
        path = Path(image).absolute()  # type: ignore[arg-type]
        size = sizes[path]
        if isinstance(size, ImageError):
            yield Failure(source_name(image, index), size)
            continue
        whole = torch.tensor([[0.0, 0.0, size[1], size[0]]])
        boxes = torch.cat((whole, boxes_by_path.get(path, whole))).unique(dim=0)
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
