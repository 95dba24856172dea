"""What a check finds: images with all that is said of them, and problems by kind."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sppnet.data.formats.masks import LabelMap
from sppnet.data.formats.voc import read_list

# Worst first. Errors cannot be used or are wrong, warnings can but are hardly meant, notes the loader deals with.
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
    """What is wrong with a file or folder.

    Attributes:
        path: of the file or folder.
        kind: a key of `KINDS`.
        reason: in plain words.
    """

    path: Path
    kind: str
    reason: str

    @property
    def severity(self) -> str:
        """``error``, ``warning`` or ``note``."""
        return KINDS[self.kind]


class Box(NamedTuple):
    """Edges x1, y1, x2, y2 in pixels, of which class, and which file has it where."""

    name: str
    edges: tuple[float, float, float, float]
    file: Path
    where: str


@dataclass
class Item:
    """An image file and all that a data set says of it.

    Attributes:
        path: of the image.
        splits: that name it; none where there are no splits.
        label: class of the image, if it has one.
        boxes: with an area.
        stated: the (height, width) that an annotation gives it, and its file.
        masks: and what their ids mean; None if that is not known.
    """

    path: Path
    splits: list[str] = field(default_factory=list)
    label: str | None = None
    boxes: list[Box] = field(default_factory=list)
    stated: tuple[tuple[int, int], Path] | None = None
    masks: list[tuple[Path, LabelMap | None]] = field(default_factory=list)


class Gathered:
    """What is found while reading: the images by path, and the problems."""

    def __init__(self) -> None:
        self.items: dict[Path, Item] = {}
        self.problems: list[Problem] = []
        self.layouts: list[str] = []

    def item(self, path: Path, split: str | None = None, label: str | None = None) -> Item:
        """The item of an image, made if need be."""
        found = self.items.setdefault(path, Item(path, label=label))
        if split is not None and split not in found.splits:
            found.splits.append(split)
        return found

    def report(self, path: Path, kind: str, reason: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(path, kind, reason))


def listed_names(file: Path, files: dict[str, list[Path]], gathered: Gathered) -> list[str]:
    """The names of a list, each once; none if it cannot be read."""
    try:
        names = read_list(file, files)
    except ValueError as error:
        gathered.report(file, "bad-annotation", str(error))
        return []
    counts = Counter(names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        gathered.report(file, "bad-annotation", f"must name each image once; these come again: {', '.join(twice)}")
    return list(counts)


def one_image(name: str, files: dict[str, list[Path]], photos: Path, of: Path, gathered: Gathered) -> bool:
    """Whether there is one image of a name; the problem is noted if not."""
    found = files.get(name, [])
    if not found:
        gathered.report(photos / name, "missing", f"no image of this name, but {of} has it")
    elif len(found) > 1:
        others = ", ".join(str(path) for path in found[1:])
        gathered.report(found[0], "bad-annotation", f"the name that {of} has is also that of {others}")
    return len(found) == 1
