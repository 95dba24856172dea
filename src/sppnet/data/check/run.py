"""Data set validation: decode every file once, and report errors, warnings and notes."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from sppnet.data.check.items import KINDS, Item, Problem
from sppnet.data.check.layouts import read_data_set
from sppnet.data.formats.masks import SegmentationSample, load_mask, orient_mask, read_raw
from sppnet.data.headers import raw_mode
from sppnet.data.images import exif_transpose, load_image, open_image
from sppnet.errors import ImageError
from sppnet.progress import track

# Half a cell of a stride-32 feature map, the coarsest in common use.
MIN_SIDE = 16
_KIND_OF_REASON = {
    "no such file": "missing",
    "file is empty": "empty-file",
    "not an image": "not-an-image",
    "file is truncated": "truncated",
    "file is damaged": "damaged",
    "decompression bomb": "bomb",
    "too many pixels": "too-many-pixels",
    "side too long": "too-many-pixels",
    "ids without a class": "unknown-id",
    "colors without a class": "unknown-id",
    "mask size": "mask-size",
}
_SAME_FORMATS = {"MPO": "JPEG", "DIB": "BMP"}
_ROWS = 256  # image rows that are hashed at a time


@dataclass(frozen=True)
class Check:
    """The result of a data set check.

    Attributes:
        root: path of the data set.
        layout: name of its layout, such as ``class folders``.
        images: number of image files in the data set.
        sizes: upright (height, width) of each usable image.
        problems: problems sorted by severity, kind and path.
    """

    root: Path
    layout: str
    images: int
    sizes: tuple[tuple[int, int], ...]
    problems: tuple[Problem, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by kind, without kinds that did not occur."""
        kinds = [problem.kind for problem in self.problems]
        return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


class _Checked(NamedTuple):
    """A checked image; without size and digest if it is unusable."""

    item: Item
    size: tuple[int, int] | None
    digest: bytes
    problems: list[Problem]


def check_data(root: str | Path, workers: int = 2) -> Check:
    """Decode every image and mask of a data set once and report all problems.

    Args:
        root: data set; see `sppnet.data.check.layouts.read_data_set`.
        workers: number of decoding threads, >= 1; each holds one image at a time.

    Raises:
        ValueError: the layout is not recognized, or `workers` is below 1.
        OSError: a folder cannot be read.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    root = Path(root)
    gathered = read_data_set(root)
    items = list(gathered.items.values())
    problems = list(gathered.problems)
    results = []
    pool = ThreadPoolExecutor(workers, "check")
    try:
        for checked in track(pool.map(_check_item, items), "checking", len(items)):
            problems += checked.problems
            results.append(checked._replace(problems=[]))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, finish only the images that are being decoded
    problems += [*_duplicates(results), *_shared_files(items), *_unusable_classes(root, results)]
    order = {kind: number for number, kind in enumerate(KINDS)}
    unique = sorted(dict.fromkeys(problems), key=lambda problem: (order[problem.kind], problem.path))
    sizes = tuple(checked.size for checked in results if checked.size)
    return Check(root, " and ".join(gathered.layouts), len(items), sizes, tuple(unique))


def kind_of(error: ImageError) -> str:
    """Return the problem kind of a loader error; ``unreadable`` if no other kind matches."""
    return next((kind for start, kind in _KIND_OF_REASON.items() if error.reason.startswith(start)), "unreadable")


def _check_item(item: Item) -> _Checked:
    size, digest, problems = None, b"", []
    try:
        with open_image(str(item.path)) as opened:
            notes = [Problem(item.path, kind, reason) for kind, reason in _notes(opened, item.path)]
        image = load_image(item.path)
        size, digest = (image.height, image.width), _digest(image)
        problems = [*notes, *_boxes(item, size)]
        if min(size) < MIN_SIDE:
            text = f"{size[0]} x {size[1]} pixels (height x width); the shorter side is below {MIN_SIDE}"
            problems.append(Problem(item.path, "too-small", text))
    except ImageError as error:
        problems = [Problem(item.path, kind_of(error), error.reason)]
    return _Checked(item, size, digest, [*problems, *_masks(item, size)])


def _notes(image: ImageFile.ImageFile, path: Path) -> Iterator[tuple[str, str]]:
    """Yield kind and reason of each peculiarity in the header that the loader handles."""
    if image.mode.startswith("I") or ";16" in raw_mode(image):
        yield "16-bit", f"16 bits per channel (mode {raw_mode(image) or image.mode}), scaled to 8"
    if image.mode == "CMYK":
        yield "cmyk", "CMYK, converted to RGB without its color profile"
    if image.has_transparency_data:
        yield "alpha", f"transparency (mode {image.mode}), composited over white"
    if exif_transpose(image) is not None:
        yield "exif-turned", "turned upright according to its EXIF orientation"
    expected = Image.registered_extensions().get(path.suffix.lower())
    actual = image.format
    if expected and actual and _SAME_FORMATS.get(expected, expected) != _SAME_FORMATS.get(actual, actual):
        yield "other-format", f"the content is {actual} and is read as such"


def _digest(image: Image.Image) -> bytes:
    """Hash size and pixels, strip by strip because ``tobytes`` copies."""
    digest = hashlib.sha256(f"{image.height} {image.width} ".encode())
    for top in range(0, image.height, _ROWS):
        digest.update(image.crop((0, top, image.width, min(top + _ROWS, image.height))).tobytes())
    return digest.digest()


def _boxes(item: Item, size: tuple[int, int]) -> Iterator[Problem]:
    """Yield boxes that exceed the image by more than the readers' tolerance of 1 pixel, and a wrong stated size."""
    height, width = size
    for box in item.boxes:
        x1, y1, x2, y2 = box.edges
        outside = x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0
        if outside or max(-x1, -y1, x2 - width, y2 - height) > 1:
            edges = f"({', '.join(f'{value:g}' for value in box.edges)})"
            relation = "is outside" if outside else "exceeds"
            reason = f"{box.where}: the box {edges} {relation} the image of {height} x {width} (height x width)"
            yield Problem(box.file, "box-outside", reason)
    if item.stated and item.stated[0] != size:
        stated, file = item.stated
        text = f"states {stated[0]} x {stated[1]} (height x width) for {item.path}; upright it has {height} x {width}"
        yield Problem(file, "stated-size", text)


def _masks(item: Item, size: tuple[int, int] | None) -> Iterator[Problem]:
    for path, labels in item.masks:
        try:
            mask = np.zeros(read_raw(path).shape[:2], np.int16) if labels is None else load_mask(path, labels)
            if size:
                orient_mask(mask, SegmentationSample(item.path, path), size)
        except ImageError as error:
            yield Problem(path, kind_of(error), error.reason)


def _duplicates(results: Sequence[_Checked]) -> Iterator[Problem]:
    first_items: dict[bytes, Item] = {}
    for checked in results:
        if not checked.digest:
            continue
        first = first_items.setdefault(checked.digest, checked.item)
        if first is not checked.item:
            yield _duplicate(checked.item, first)


def _duplicate(item: Item, other: Item) -> Problem:
    """Classify a duplicate: across classes it corrupts training, across splits it corrupts validation."""
    kind, reason = "duplicate", f"same pixels as {other.path}"
    if item.splits and other.splits and not set(item.splits) & set(other.splits):
        kind = "duplicate-across-splits"
        reason += f"; this file is in {', '.join(item.splits)}, the other in {', '.join(other.splits)}"
    if item.label != other.label:
        kind = "duplicate-across-classes"
        reason += f"; this file has the class {item.label}, the other {other.label}"
    return Problem(item.path, kind, reason)


def _shared_files(items: Sequence[Item]) -> Iterator[Problem]:
    """Yield images that are in two splits, unless one split contains the other, as trainval contains train."""
    members: dict[str, set[Path]] = {}
    for item in items:
        for split in item.splits:
            members.setdefault(split, set()).add(item.path)
    for item in items:
        pairs = combinations(item.splits, 2)
        conflicts = {
            name for a, b in pairs if not (members[a] <= members[b] or members[b] <= members[a]) for name in (a, b)
        }
        if conflicts:
            yield Problem(item.path, "duplicate-across-splits", f"listed in {', '.join(sorted(conflicts))}")


def _unusable_classes(root: Path, results: Sequence[_Checked]) -> Iterator[Problem]:
    """Yield classes without a usable image."""
    groups: dict[tuple[str, str], list[bool]] = {}
    for checked in results:
        item = checked.item
        if item.label is not None:
            key = item.splits[0] if item.splits else "", item.label
            groups.setdefault(key, []).append(checked.size is not None)
    for (split, label), usable in groups.items():
        if not any(usable):
            folder = root / split / label
            text = f"none of the {len(usable)} images of the class {label} is usable"
            yield Problem(folder if folder.is_dir() else root, "empty-class", text)
