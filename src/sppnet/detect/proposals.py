"""Windows that may hold objects: selective search, a sliding grid, or both, kept on disk by content."""

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
from sppnet.errors import ImageError, choose
from sppnet.inference.results import Failure
from sppnet.io.files import read_tensors, save_tensors

GRID = "grid"
SOURCES = (*SEARCHES, GRID)
MAX_WINDOWS = 2000

_BOX_FILES = (".csv", ".jsonl", ".json")
_FORMAT = 1  # to be raised when the same settings come to give other boxes


@dataclass(frozen=True)
class Proposals:
    """The windows of one image.

    Attributes:
        boxes: xyxy edges in pixels of the image as :func:`sppnet.data.images.load_image` gives it.
        complete: False where the clock stopped the search; another machine, or a second run, may find others.
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
    """Windows of an image that may hold objects.

    The box of the whole image is always among them, so there is at least one. Equal arguments without a time limit
    give equal boxes. Their order says nothing of their quality: they are sorted by x1, y1, x2, y2, each given once.

    Args:
        image: RGB.
        source: one of `SOURCES`, or several, joined by commas or plus signs: each has an equal share of the windows,
            and a grid also what the others leave of theirs.
        max_windows: most windows, >= 1; where selective search finds more, they are drawn at random, so that all
            sizes keep their parts. None keeps all, and is not for a grid.
        seconds: after so many, a selective search begins no further part (see
            :func:`sppnet.detect.classic.selective_search.selective_search`) and the boxes depend on the machine's speed.
        seed: of the drawing.

    Returns:
        float32 xyxy edges in pixels of the image.

    Raises:
        ModuleNotFoundError: selective search without OpenCV.
        ValueError: an unknown source, a limit that is not above 0, or an image of another mode.
    """
    sources = _parse(source, max_windows, seconds)
    if image.mode != "RGB":
        raise ValueError(f"image: expected mode RGB, as load_image gives it; got mode {image.mode}")
    return _propose(image, sources, max_windows, seconds, seed).boxes


def proposals_of(
    paths: Sequence[Path],
    source: str,
    folder: Path | None,
    *,
    max_windows: int | None = MAX_WINDOWS,
    seconds: float | None = None,
    seed: int = 0,
    workers: int = 1,
) -> list[Proposals | Failure]:
    """Windows of many images, as :func:`iter_proposals` gives them, under a progress bar."""
    found = iter_proposals(paths, source, folder, max_windows=max_windows, seconds=seconds, seed=seed, workers=workers)
    return list(track(found, "proposals", len(paths)))


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
    """Windows of many images one after the other, read from the folder where an earlier call has left them.

    Each image has a file of its own, named by the content of the image, the source and the settings: a killed run goes
    on at the image where it stopped, and a moved or renamed data set is not searched again.

    Args:
        paths: image files.
        source: as in :func:`propose`, or the path of a file of boxes (see :func:`sppnet.data.formats.boxes.read_boxes`) of
            images in the folder that holds these; an image that the file does not name has the box of its whole alone.
        folder: is made if it is missing; sets of several sources and settings may share it. None keeps nothing.
        max_windows: as in :func:`propose`.
        seconds: for each image. A file made under a limit says in its metadata whether it is complete, and is never
            taken for one of another limit.
        seed: as in :func:`propose`.
        workers: images searched at a time, >= 1, in threads: OpenCV does not hold Python's lock.

    Yields:
        In the order of the paths; a Failure for an image that cannot be read.

    Raises:
        ModuleNotFoundError: selective search without OpenCV.
        ValueError: as in :func:`propose`, or a file is damaged, missing, or names none of the images.
    """
    if is_box_file(source):
        yield from _from_file(paths, Path(source), max_windows, seed)
        return
    sources = _parse(source, max_windows, seconds)
    if workers < 1:
        raise ValueError(f"workers: expected at least 1; got {workers}")
    opencv = "" if sources == (GRID,) else load_cv2().__version__
    settings = repr((_FORMAT, sources, max_windows, seconds, seed, opencv))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    def work(path: Path) -> Proposals | Failure:
        try:
            image_size(path)  # what is missing or no file is told by name
            place = None
            if folder:
                digest = hashlib.sha256(settings.encode() + b"\n" + path.read_bytes()).hexdigest()
                place = folder / f"{digest}.safetensors"
                if place.exists():
                    return _read(place)
            proposals = _propose(load_image(path), sources, max_windows, seconds, seed)
        except ImageError as error:
            return Failure(str(path), error)
        if place:
            metadata = {"complete": "yes" if proposals.complete else "no", "settings": settings}
            save_tensors({"boxes": proposals.boxes}, place, metadata, shared=True)
        return proposals

    pool = ThreadPoolExecutor(workers, "proposals")
    try:
        yield from pool.map(work, paths)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C, only the images under way are finished


def is_box_file(source: str) -> bool:
    """Whether a source is a file of boxes rather than the name of a search."""
    return Path(source).suffix.lower() in _BOX_FILES


def _from_file(paths: Sequence[Path], file: Path, max_windows: int | None, seed: int) -> Iterator[Proposals | Failure]:
    """The boxes that a file has of the images, and the box of each whole image."""
    if not file.is_file():
        raise ValueError(f"proposals: there is no file {file}")
    absolute = [path.absolute() for path in paths]
    images = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    listed = {one.path: one.boxes for one in read_boxes(file, images).images}
    bare = [path for path in absolute if path not in listed]
    if absolute and len(bare) == len(absolute):
        raise ValueError(f"proposals: {file} has no box of any of the {len(absolute)} images, such as {absolute[0]}")
    if bare:
        named = ", ".join(str(path) for path in bare[:10])
        text = f"{file} has no box of {len(bare)} of {len(absolute)} images, which have their whole alone: {named}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    for path, place in zip(paths, absolute, strict=True):
        try:
            height, width = image_size(path)
        except ImageError as error:
            yield Failure(str(path), error)
            continue
        whole = torch.tensor([[0.0, 0.0, width, height]])
        boxes = torch.cat((whole, listed.get(place, whole))).unique(dim=0)
        yield Proposals(boxes if max_windows is None else _draw(boxes, whole, max_windows, seed), complete=True)


def _parse(source: str, max_windows: int | None, seconds: float | None) -> tuple[str, ...]:
    """The sources in the order of `SOURCES`, so that the order in which they are named makes no difference."""
    names = set(re.split(r"\s*[,+]\s*", source.strip()))
    for name in sorted(names):
        choose("source", name, SOURCES)
    if max_windows is None and GRID in names:
        raise ValueError(f"max_windows: a grid needs a number of windows, such as {MAX_WINDOWS}; got None")
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows: expected at least 1, for the whole image; got {max_windows}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds: expected a number above 0, or None for no limit; got {seconds}")
    return tuple(name for name in SOURCES if name in names)


def _propose(
    image: Image.Image, sources: tuple[str, ...], max_windows: int | None, seconds: float | None, seed: int
) -> Proposals:
    deadline = None if seconds is None else time.monotonic() + seconds
    runs = [selective_search(image, source, deadline) for source in sources if source != GRID]
    whole = torch.tensor([[0.0, 0.0, image.width, image.height]])
    boxes = torch.cat((whole, *(found for found, _ in runs))).unique(dim=0)
    if max_windows is not None:
        boxes = _draw(boxes, whole, max(1, max_windows * len(runs) // len(sources)), seed)
        if GRID in sources:  # the whole image is in both
            grid = window_grid((image.height, image.width), max_windows - len(boxes) + 1)
            boxes = torch.cat((boxes, grid)).unique(dim=0)
    return Proposals(boxes, all(complete for _, complete in runs))


def _draw(boxes: Float[Tensor, "k 4"], whole: Float[Tensor, "1 4"], count: int, seed: int) -> Float[Tensor, "n 4"]:
    """At most so many of the boxes, the whole image among them."""
    if len(boxes) <= count:
        return boxes
    others = boxes[(boxes != whole).any(1)]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    drawn: Tensor = torch.cat((whole, others[order[: count - 1]])).unique(dim=0)
    return drawn


def _read(place: Path) -> Proposals:
    try:
        tensors, metadata = read_tensors(place)
        return Proposals(tensors["boxes"], {"yes": True, "no": False}[metadata["complete"]])
    except (KeyError, ValueError) as error:
        raise ValueError(f"folder: {place} is damaged ({error}); delete it, and it is made anew") from error
