"""Images with their annotations, as the readers of all formats return them, and the problems that they find."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sppnet.errors import printable

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
    "no-training-split": "warning",
    "duplicate": "warning",
    "too-small": "warning",
    "empty-class": "warning",
    "untrained-class": "warning",
    "similar-classes": "warning",
    "several-labels": "warning",
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
    "one-value": "note",
    "assumed": "note",
    "unlisted": "note",
    "passed-over": "note",
}
# Problems of annotations that training refuses. It reports all others, and skips the file or object if it must.
FATAL = frozenset({"missing", "bad-annotation", "unknown-class", "several-labels", "no-training-split"})

_LISTED = 10  # problems of a kind that training lists
# Starts of reasons that continue the path: a place in the file, or a predicate.
_PLACE = re.compile(r"(line|object|image|annotation|category) |(images|annotations|categories)\[")
_PREDICATE = re.compile("(cannot|contains|is) ")

Edges = tuple[float, float, float, float]


class Problem(NamedTuple):
    """A problem with a file or folder.

    Attributes:
        path: path of the file or folder.
        kind: a key of `KINDS`.
        reason: description for the user, with the line or object if the file has several.
    """

    path: Path
    kind: str
    reason: str

    @property
    def severity(self) -> str:
        """Severity of the kind: ``error``, ``warning`` or ``note``."""
        return KINDS[self.kind]

    def __str__(self) -> str:
        separator = ", " if _PLACE.match(self.reason) else " " if _PREDICATE.match(self.reason) else ": "
        return printable(f"{self.path}{separator}{self.reason}")


class Problems(list[Problem]):
    """Problems of a data set. Readers report each one and go on, so that all of them can be listed."""

    def report(self, path: Path, kind: str, reason: str) -> None:
        """Add a problem."""
        self.append(Problem(path, kind, reason))

    def raise_errors(self) -> None:
        """Refuse a data set whose annotations have errors.

        Raises:
            ValueError: there are errors; the message lists the first ten.
        """
        if errors := [str(problem) for problem in self if problem.kind in FATAL]:
            more = f"; and {len(errors) - 10} more; `sppnet check` lists all" if len(errors) > 10 else ""
            raise ValueError("; ".join(errors[:10]) + more)

    def lines(self) -> tuple[str, ...]:
        """Return the other problems as text, at most ten of each kind, for the problems of a data set that was read."""
        counts: Counter[str] = Counter()
        texts = []
        for problem in self:
            counts[problem.kind] += problem.kind not in FATAL
            if 0 < counts[problem.kind] <= _LISTED:
                texts.append(str(problem))
        for kind, count in counts.items():
            if count > _LISTED:
                texts.append(f"{count - _LISTED} more problems of the kind {kind}; `sppnet check` lists all")
        return tuple(texts)


class Box(NamedTuple):
    """An annotated object.

    Attributes:
        name: class name.
        edges: x1, y1, x2, y2 in pixels of the image.
        difficult: whether evaluation ignores the object.
        where: object in the annotation file, for messages.
    """

    name: str
    edges: Edges
    difficult: bool
    where: str


@dataclass(slots=True)
class Item:
    """An image file and its annotations; those of other tasks are empty.

    Attributes:
        path: image file.
        labels: classes of the image.
        boxes: annotated objects with an area.
        stated: (height, width) that the annotation states.
        where: annotation file and entry, for messages.
        mask: mask file, or polygons and run-length encodings of its classes.
        file: annotation file of the boxes.
        size: (height, width) of the upright image, if the reader needed it.
    """

    path: Path
    labels: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    stated: tuple[int, int] | None = None
    where: str = ""
    mask: Any = None
    file: Path | None = None
    size: tuple[int, int] | None = None


class Part(NamedTuple):
    """A split of a data set.

    Attributes:
        items: images in the order of the split's list, or sorted by name.
        classes: class names that the data set states, in order; None if they follow from the annotations.
    """

    items: list[Item]
    classes: tuple[str, ...] | None = None
