"""Images and problems collected during a check."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sppnet.data.formats.annotations import fit_boxes
from sppnet.data.formats.classification import class_name
from sppnet.data.formats.masks import LabelMap, Mask, SegmentationSample, load_mask, orient_mask
from sppnet.data.formats.table import Format
from sppnet.data.items import Item, Part, Problems


@dataclass(slots=True)
class Entry:
    """An image file and its annotations.

    Attributes:
        path: path of the image.
        splits: splits that contain the image; empty if the data set has none.
        items: annotations by the name of their format.
        labels: classes of the image, if it has any.
        label_map: classes of its mask, if it has one.
    """

    path: Path
    splits: list[str] = field(default_factory=list)
    items: dict[str, Item] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    label_map: LabelMap | None = None

    def fitted_boxes(self, size: tuple[int, int], problems: Problems) -> list[tuple[str, Sequence[float]]]:
        """Return class and edges of each box that overlaps the image of (height, width), as for training."""
        fitted = [pair for item in self.items.values() for pair in fit_boxes(item, size, problems)]
        return [(box.name, edges) for box, edges in fitted]

    def class_mask(self, size: tuple[int, int]) -> Mask | None:
        """Decode the mask to class indices; None without a mask.

        Raises:
            ImageError: the mask cannot be used, or its size is not that of the image.
        """
        for item in self.items.values():
            if item.mask is not None and self.label_map is not None:
                sample = SegmentationSample(item.path, item.mask)
                return orient_mask(load_mask(sample.mask, self.label_map), sample, size)
        return None


class Source(NamedTuple):
    """A split that was read.

    Attributes:
        known: its format.
        split: its name; None if the data set has no splits.
        place: file or folder of the split, for messages.
        classes: classes that it states; None if they follow from the annotations.
        labels: classes of its masks, if it has masks.
    """

    known: Format
    split: str | None
    place: Path
    classes: tuple[str, ...] | None
    labels: LabelMap | None = None


class CheckState:
    """Images (by path), splits, problems and formats collected while reading a data set."""

    def __init__(self) -> None:
        self.entries: dict[Path, Entry] = {}
        self.sources: list[Source] = []
        self.problems = Problems()
        self.layouts: list[str] = []

    def entry(self, path: Path, split: str | None = None) -> Entry:
        """Return the entry of an image, creating it if needed."""
        entry = self.entries.get(path)
        if entry is None:
            entry = self.entries[path] = Entry(path)
        if split is not None and split not in entry.splits:
            entry.splits.append(split)
        return entry

    def add(self, source: Source, part: Part) -> None:
        """Add the images of a split; an image in several splits keeps the annotations of the first."""
        self.sources.append(source)
        for item in part.items:
            entry = self.entry(item.path, source.split)
            entry.items.setdefault(source.known.name, item)
            entry.labels = entry.labels or tuple(map(class_name, item.labels))
            if item.mask is not None:
                entry.label_map = entry.label_map or source.labels
