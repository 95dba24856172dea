"""Data set validation: decode every file once, and report errors, warnings and notes."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from sppnet.data.check.classes import ClassCount, class_problems, count_classes
from sppnet.data.check.items import Entry
from sppnet.data.check.layouts import read_data_set
from sppnet.data.formats.annotations import fit_boxes
from sppnet.data.formats.mask_values import read_raw
from sppnet.data.formats.masks import SegmentationSample, count_mask, load_mask, orient_mask
from sppnet.data.headers import raw_mode
from sppnet.data.images import exif_transpose, load_image, open_image
from sppnet.data.items import KINDS, Problem, Problems
from sppnet.errors import ImageError
from sppnet.progress import track

# Half a cell of a stride-32 feature map, the coarsest in common use.
MIN_SIDE = 16
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
        classes: examples of each class in each split.
        entries: images with their annotations.
    """

    root: Path
    layout: str
    images: int
    sizes: tuple[tuple[int, int], ...]
    problems: tuple[Problem, ...]
    classes: tuple[ClassCount, ...] = ()
    entries: tuple[Entry, ...] = field(default=(), repr=False, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by kind, without kinds that did not occur."""
        kinds = Counter(problem.kind for problem in self.problems)
        return {kind: kinds[kind] for kind in KINDS if kind in kinds}


class _Checked(NamedTuple):
    """A checked image; without size and digest if it is unusable."""

    entry: Entry
    size: tuple[int, int] | None
    digest: bytes
    problems: list[Problem]
    pixels: Mapping[str, int]


def check_data(root: str | Path, workers: int = 2, format: str | None = None) -> Check:
    """Decode every image and mask of a data set once and report all problems.

    Args:
        root: data set; see `sppnet.data.check.layouts.read_data_set`.
        workers: number of decoding threads, >= 1; each holds one image at a time.
        format: name of the format; None to detect it.

    Raises:
        ValueError: the layout is not recognized, or `workers` is below 1.
        OSError: a folder cannot be read.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    root = Path(root)
    state = read_data_set(root, format)
    entries = list(state.entries.values())
    problems = list(state.problems)
    missing = {problem.path for problem in problems if problem.kind == "missing"}  # reported by the reader
    results = []
    pool = ThreadPoolExecutor(workers, "check")
    try:
        for checked in track(pool.map(_check_entry, entries), "checking", len(entries)):
            problems += [new for new in checked.problems if new.kind != "missing" or new.path not in missing]
            results.append(checked._replace(problems=[]))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, finish only the images that are being decoded
    pixels = [checked.pixels for checked in results]
    classes = count_classes(entries, pixels, state.sources)
    problems += [*_duplicates(results), *_shared_files(entries), *_unusable_classes(root, results)]
    problems += class_problems(entries, pixels, classes, state.sources)
    order = {kind: number for number, kind in enumerate(KINDS)}
    unique = sorted(dict.fromkeys(problems), key=lambda problem: (order[problem.kind], problem.path))
    sizes = tuple(checked.size for checked in results if checked.size)
    layout = " and ".join(state.layouts)
    return Check(root, layout, len(entries), sizes, tuple(unique), classes, tuple(entries))


def _check_entry(entry: Entry) -> _Checked:
    size, digest, problems = None, b"", Problems()
    try:
        with open_image(str(entry.path)) as opened:
            notes = [Problem(entry.path, kind, reason) for kind, reason in _notes(opened, entry.path)]
        image = load_image(entry.path)
        size, digest = (image.height, image.width), _digest(image)
        problems += notes
        for item in entry.items.values():
            fit_boxes(item, size, problems)
        if min(size) < MIN_SIDE:
            text = f"{size[0]} x {size[1]} pixels (height x width); the shorter side is below {MIN_SIDE}"
            problems.report(entry.path, "too-small", text)
    except ImageError as error:
        problems.report(entry.path, error.kind, error.reason)
    pixels = _count_pixels(entry, size, problems)
    return _Checked(entry, size, digest, problems, pixels)


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


def _count_pixels(entry: Entry, size: tuple[int, int] | None, problems: Problems) -> dict[str, int]:
    """Decode the masks of an image, report their problems, and return the number of pixels by class."""
    labels, pixels = entry.label_map, {}
    for item in entry.items.values():
        if item.mask is None:
            continue
        sample = SegmentationSample(item.path, item.mask)
        try:
            if labels is not None and size is not None:
                counts = count_mask(sample, labels, size, problems)
                pixels = dict(zip(labels.classes, counts.tolist(), strict=True))
                continue
            mask = np.zeros(read_raw(item.mask).shape[:2], np.int16) if labels is None else load_mask(item.mask, labels)
            if size is not None:
                orient_mask(mask, sample, size)
        except ImageError as error:
            problems.report(Path(error.path), error.kind, error.reason)
    return pixels


def _duplicates(results: Sequence[_Checked]) -> Iterator[Problem]:
    first_entries: dict[bytes, Entry] = {}
    for checked in results:
        if not checked.digest:
            continue
        first = first_entries.setdefault(checked.digest, checked.entry)
        if first is not checked.entry:
            yield _duplicate(checked.entry, first)


def _duplicate(entry: Entry, other: Entry) -> Problem:
    """Classify a duplicate: across classes it corrupts training, across splits it corrupts validation."""
    kind, reason = "duplicate", f"same pixels as {other.path}"
    if entry.splits and other.splits and not set(entry.splits) & set(other.splits):
        kind = "duplicate-across-splits"
        reason += f"; this file is in {', '.join(entry.splits)}, the other in {', '.join(other.splits)}"
    if entry.labels != other.labels:
        kind = "duplicate-across-classes"
        ours, theirs = (", ".join(labels) or "none" for labels in (entry.labels, other.labels))
        reason += f"; this file has the class {ours}, the other {theirs}"
    return Problem(entry.path, kind, reason)


def _shared_files(entries: Sequence[Entry]) -> Iterator[Problem]:
    """Yield images that are in two splits, unless one split contains the other, as trainval contains train."""
    members: dict[str, set[Path]] = {}
    for entry in entries:
        for split in entry.splits:
            members.setdefault(split, set()).add(entry.path)
    for entry in entries:
        pairs = combinations(entry.splits, 2)
        conflicts = {
            name for a, b in pairs if not (members[a] <= members[b] or members[b] <= members[a]) for name in (a, b)
        }
        if conflicts:
            yield Problem(entry.path, "duplicate-across-splits", f"listed in {', '.join(sorted(conflicts))}")


def _unusable_classes(root: Path, results: Sequence[_Checked]) -> Iterator[Problem]:
    """Yield classes without a usable image."""
    groups: dict[tuple[str, str], list[bool]] = {}
    for checked in results:
        splits = checked.entry.splits
        for label in checked.entry.labels:
            groups.setdefault((splits[0] if splits else "", label), []).append(checked.size is not None)
    for (split, label), usable in groups.items():
        if not any(usable):
            folder = root / split / label
            text = f"none of the {len(usable)} images of the class {label} is usable"
            yield Problem(folder if folder.is_dir() else root, "empty-class", text)
