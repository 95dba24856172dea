"""One look at every file of a data set: what cannot be used, what is hardly meant, and what the loader deals with."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from sppnet.console import track
from sppnet.data.check.items import KINDS, Item, Problem
from sppnet.data.check.layouts import gather
from sppnet.data.formats.masks import SegmentationSample, load_mask, read_raw, upright
from sppnet.data.headers import raw_mode
from sppnet.data.images import exif_turn, load_image, open_image
from sppnet.errors import ImageError

# Half a cell of a map at stride 32, the coarsest that networks usually have.
MIN_SIDE = 16
_KIND_OF_REASON = {
    "no such file": "missing",
    "file is empty": "empty-file",
    "not an image": "not-an-image",
    "file is truncated": "truncated",
    "file is damaged": "damaged",
    "decompression bomb": "bomb",
    "too many pixels": "too-many-pixels",
    "too long a side": "too-many-pixels",
    "ids that stand for no class": "unknown-id",
    "colours that stand for no class": "unknown-id",
    "the mask is of": "mask-size",
}
_SAME_FORMATS = {"MPO": "JPEG", "DIB": "BMP"}
_ROWS = 256


@dataclass(frozen=True)
class Check:
    """What a check has found.

    Attributes:
        root: the data set.
        layout: its layout in words, such as ``class folders``.
        images: number of image files that it names.
        sizes: (height, width) of each image that can be used, upright.
        problems: errors first, then by kind and file.
    """

    root: Path
    layout: str
    images: int
    sizes: tuple[tuple[int, int], ...]
    problems: tuple[Problem, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by kind, of the kinds that there are."""
        kinds = [problem.kind for problem in self.problems]
        return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


class _Seen(NamedTuple):
    """An image after decoding; neither size nor digest if it cannot be used."""

    item: Item
    size: tuple[int, int] | None
    digest: bytes
    problems: list[Problem]


def check_data(root: str | Path, workers: int = 2) -> Check:
    """Decode every image and mask of a data set once and name all that is wrong.

    Args:
        root: see `sppnet.data.check.layouts.gather`.
        workers: threads that decode, >= 1; each holds one image at a time.

    Raises:
        ValueError: the layout is none that is known, or workers is below 1.
        OSError: a folder cannot be read.
    """
    if workers < 1:
        raise ValueError(f"workers: expected 1 thread or more; got {workers}")
    root = Path(root)
    gathered = gather(root)
    items = list(gathered.items.values())
    problems = list(gathered.problems)
    seen = []
    pool = ThreadPoolExecutor(workers, "check")
    try:
        for one in track(pool.map(_look, items), "checking", len(items)):
            problems += one.problems
            seen.append(one._replace(problems=[]))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C only the images under way are finished
    problems += [*_duplicates(seen), *_shared_files(items), *_spoilt_classes(root, seen)]
    order = {kind: number for number, kind in enumerate(KINDS)}
    unique = sorted(dict.fromkeys(problems), key=lambda problem: (order[problem.kind], problem.path))
    sizes = tuple(one.size for one in seen if one.size)
    return Check(root, " and ".join(gathered.layouts), len(items), sizes, tuple(unique))


def kind_of(error: ImageError) -> str:
    """The kind of problem that an error of the loader is; ``unreadable`` if it has no kind of its own."""
    return next((kind for start, kind in _KIND_OF_REASON.items() if error.reason.startswith(start)), "unreadable")


def _look(item: Item) -> _Seen:
    size, digest, problems = None, b"", []
    try:
        with open_image(str(item.path)) as opened:
            notes = [Problem(item.path, kind, reason) for kind, reason in _notes(opened, item.path)]
        image = load_image(item.path)
        size, digest = (image.height, image.width), _digest(image)
        problems = [*notes, *_boxes(item, size)]
        if min(size) < MIN_SIDE:
            text = (
                f"{size[0]} x {size[1]} pixels (height x width); a shorter side below {MIN_SIDE} shows a network little"
            )
            problems.append(Problem(item.path, "too-small", text))
    except ImageError as error:
        problems = [Problem(item.path, kind_of(error), error.reason)]
    return _Seen(item, size, digest, [*problems, *_masks(item, size)])


def _notes(image: ImageFile.ImageFile, path: Path) -> Iterator[tuple[str, str]]:
    """Kind and reason of what the loader deals with, by the header."""
    if image.mode.startswith("I") or ";16" in raw_mode(image):
        yield "16-bit", f"16 bits a channel (mode {raw_mode(image) or image.mode}), scaled to 8"
    if image.mode == "CMYK":
        yield "cmyk", "CMYK, converted to RGB without its colour profile"
    if image.has_transparency_data:
        yield "alpha", f"with transparency (mode {image.mode}), composed over white"
    if exif_turn(image) is not None:
        yield "exif-turned", "turned upright, as its EXIF orientation says"
    named = Image.registered_extensions().get(path.suffix.lower())
    real = image.format
    if named and real and _SAME_FORMATS.get(named, named) != _SAME_FORMATS.get(real, real):
        yield "other-format", f"a {real} file by its content, read as that"


def _digest(image: Image.Image) -> bytes:
    """Of size and pixels, in strips, for their bytes are a copy."""
    digest = hashlib.sha256(f"{image.height} {image.width} ".encode())
    for top in range(0, image.height, _ROWS):
        digest.update(image.crop((0, top, image.width, min(top + _ROWS, image.height))).tobytes())
    return digest.digest()


def _boxes(item: Item, size: tuple[int, int]) -> Iterator[Problem]:
    """Boxes that leave the image by more than the pixel that readers let pass, and a wrong size in an annotation."""
    height, width = size
    of = f"the image of {height} x {width} (height x width)"
    for box in item.boxes:
        x1, y1, x2, y2 = box.edges
        wholly = x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0
        if wholly or max(-x1, -y1, x2 - width, y2 - height) > 1:
            edges = f"({', '.join(f'{value:g}' for value in box.edges)})"
            how = "lies wholly outside" if wholly else "leaves"
            yield Problem(box.file, "box-outside", f"{box.where}: the box with edges {edges} {how} {of}")
    if item.stated and item.stated[0] != size:
        stated, file = item.stated
        yield Problem(
            file,
            "stated-size",
            f"gives {item.path} {stated[0]} x {stated[1]} (height x width); it has {height} x {width}, upright",
        )


def _masks(item: Item, size: tuple[int, int] | None) -> Iterator[Problem]:
    for path, labels in item.masks:
        try:
            mask = np.zeros(read_raw(path).shape[:2], np.int16) if labels is None else load_mask(path, labels)
            if size:
                upright(mask, SegmentationSample(item.path, path), size)
        except ImageError as error:
            yield Problem(path, kind_of(error), error.reason)


def _duplicates(seen: Sequence[_Seen]) -> Iterator[Problem]:
    first: dict[bytes, Item] = {}
    for one in seen:
        if not one.digest:
            continue
        other = first.setdefault(one.digest, one.item)
        if other is not one.item:
            yield _duplicate(one.item, other)


def _duplicate(item: Item, other: Item) -> Problem:
    """What repeats an image of another class misleads training, and one of another split its validation."""
    kind, reason = "duplicate", f"the same pixels as {other.path}"
    if item.splits and other.splits and not set(item.splits) & set(other.splits):
        kind = "duplicate-across-splits"
        reason += f"; this is in {', '.join(item.splits)}, that in {', '.join(other.splits)}"
    if item.label != other.label:
        kind = "duplicate-across-classes"
        reason += f"; this is of the class {item.label}, that of {other.label}"
    return Problem(item.path, kind, reason)


def _shared_files(items: Sequence[Item]) -> Iterator[Problem]:
    """Images that two lists name, unless one list holds all of the other, as trainval does of train."""
    members: dict[str, set[Path]] = {}
    for item in items:
        for split in item.splits:
            members.setdefault(split, set()).add(item.path)
    for item in items:
        pairs = combinations(item.splits, 2)
        apart = {
            name for a, b in pairs if not (members[a] <= members[b] or members[b] <= members[a]) for name in (a, b)
        }
        if apart:
            yield Problem(item.path, "duplicate-across-splits", f"named by {' and by '.join(sorted(apart))}")


def _spoilt_classes(root: Path, seen: Sequence[_Seen]) -> Iterator[Problem]:
    """Classes of which no image can be used."""
    groups: dict[tuple[str, str], list[bool]] = {}
    for one in seen:
        if one.item.label is not None:
            groups.setdefault((one.item.splits[0] if one.item.splits else "", one.item.label), []).append(
                one.size is not None
            )
    for (split, label), usable in groups.items():
        if not any(usable):
            folder = root / split / label
            text = f"none of the {len(usable)} images of the class {label} can be used"
            yield Problem(folder if folder.is_dir() else root, "empty-class", text)
