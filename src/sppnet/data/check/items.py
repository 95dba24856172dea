"""Images and problems collected during a check."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sppnet.data.formats.masks import LabelMap
from sppnet.data.formats.voc import read_list

# Most severe first. error: unusable or wrong; warning: usable, but probably a mistake; note: the loader handles it.
KINDS = {
    "missing": "error",
    "empty-file": "error",
    "not-an-image": "error",
    "truncated": "error",
    "damaged": "error",
    "bomb": "error",
    "too-many-pixels": "error",
    "unreadable": "error",
    "bad-annotation": "error",
    "unknown-class": "error",
    "zero-area-box": "error",
    "box-outside": "error",
    "unknown-id": "error",
    "mask-size": "error",
    "duplicate-across-classes": "warning",
    "duplicate-across-splits": "warning",
    "duplicate": "warning",
    "too-small": "warning",
    "empty-class": "warning",
    "untrained-class": "warning",
    "stated-size": "warning",
    "no-mask": "warning",
    "no-image": "warning",
    "no-annotation": "warning",
    "left-out": "warning",
    "16-bit": "note",
    "cmyk": "note",
    "alpha": "note",
    "exif-turned": "note",
    "other-format": "note",
    "unlisted": "note",
    "passed-over": "note",
}


class Problem(NamedTuple):
    """A problem with a file or folder.

    Attributes:
        path: path of the file or folder.
        kind: a key of `KINDS`.
        reason: description for the user.
    """

    path: Path
    kind: str
    reason: str

    @property
    def severity(self) -> str:
        """Severity of the kind: ``error``, ``warning`` or ``note``."""
        return KINDS[self.kind]


class Box(NamedTuple):
    """An annotated box."""

    name: str  # of the class
    edges: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
    file: Path
    where: str  # location in the file, for messages


@dataclass
class Item:
    """An image file and its annotations.

    Attributes:
        path: path of the image.
        splits: splits that contain the image; empty if the data set has none.
        label: class of the image, if it has one.
        boxes: boxes with nonzero area.
        stated: (height, width) stated by an annotation, and the annotation file.
        masks: mask files and their label maps; None for an unknown label map.
    """

    path: Path
    splits: list[str] = field(default_factory=list)
    label: str | None = None
    boxes: list[Box] = field(default_factory=list)
    stated: tuple[tuple[int, int], Path] | None = None
    masks: list[tuple[Path, LabelMap | None]] = field(default_factory=list)


class CheckState:
    """Images (by path), problems and layouts collected while reading a data set."""

    def __init__(self) -> None:
        self.items: dict[Path, Item] = {}
        self.problems: list[Problem] = []
        self.layouts: list[str] = []

    def item(self, path: Path, split: str | None = None, label: str | None = None) -> Item:
        """Return the item of an image, creating it if needed."""
        item = self.items.setdefault(path, Item(path, label=label))
        if split is not None and split not in item.splits:
            item.splits.append(split)
        return item

    def report(self, path: Path, kind: str, reason: str) -> None:
        """Record a problem."""
        self.problems.append(Problem(path, kind, reason))


def listed_names(file: Path, files: dict[str, list[Path]], gathered: CheckState) -> list[str]:
    """Return the names in a list without repetitions, or nothing if the list cannot be read."""
    try:
        names = read_list(file, files)
    except ValueError as error:
        gathered.report(file, "bad-annotation", str(error))
        return []
    counts = Counter(names)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        gathered.report(file, "bad-annotation", f"expected each image once, got repeated names: {', '.join(repeated)}")
    return list(counts)


def has_one_image(name: str, files: dict[str, list[Path]], photos: Path, source: Path, gathered: CheckState) -> bool:
    """Return whether a name listed in `source` matches exactly one image; otherwise report a problem."""
    matches = files.get(name, [])
    if not matches:
        gathered.report(photos / name, "missing", f"no image of this name, but {source} lists it")
    elif len(matches) > 1:
        others = ", ".join(str(path) for path in matches[1:])
        gathered.report(matches[0], "bad-annotation", f"ambiguous name in {source}: it also matches {others}")
    return len(matches) == 1
