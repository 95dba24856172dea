"""Examples per class and split, and the classes that training cannot learn."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sppnet.data.check.items import Entry, Source
from sppnet.data.formats.annotations import report_absent
from sppnet.data.formats.mask_labels import report_classes
from sppnet.data.items import Problem, Problems
from sppnet.data.splits import role_of, sort_splits
from sppnet.errors import did_you_mean

_MAX_HINTS = 3  # suggestions for unknown names; each compares the name with all classes


class ClassCount(NamedTuple):
    """Number of examples of a class in a split.

    Attributes:
        name: class name.
        split: split; None if the data set has none.
        images: images with the class as a label, in a box or in their mask.
        boxes: boxes of the class.
        pixels: mask pixels of the class.
    """

    name: str
    split: str | None
    images: int
    boxes: int
    pixels: int


def count_classes(
    entries: Sequence[Entry], pixels: Sequence[Mapping[str, int]], sources: Iterable[Source]
) -> tuple[ClassCount, ...]:
    """Count the examples of each class in each split, in order of the splits and class names.

    Args:
        entries: images.
        pixels: mask pixels of each image by class name.
        sources: splits, which may state classes without an example.
    """
    images: Counter[tuple[str | None, str]] = Counter()
    boxes: Counter[tuple[str | None, str]] = Counter()
    areas: Counter[tuple[str | None, str]] = Counter()
    keys: dict[tuple[str | None, str], None] = {}
    for source in sources:
        keys.update(dict.fromkeys((source.split, name) for name in source.classes or ()))
    for entry, counts in zip(entries, pixels, strict=True):
        found = Counter(box.name for item in entry.items.values() for box in item.boxes)
        for split in entry.splits or (None,):
            for name in dict.fromkeys([*entry.labels, *found, *(name for name, count in counts.items() if count)]):
                images[split, name] += 1
            for name, count in found.items():
                boxes[split, name] += count
            for name, count in counts.items():
                areas[split, name] += count
    keys.update(dict.fromkeys(images))
    rank = {split: number for number, split in enumerate(sort_splits({split for split, _ in keys if split}))}
    ordered = sorted(keys, key=lambda key: (rank.get(key[0] or "", -1), key[1]))
    return tuple(ClassCount(key[1], key[0], images[key], boxes[key], areas[key]) for key in ordered)


def class_problems(
    entries: Sequence[Entry],
    pixels: Sequence[Mapping[str, int]],
    counts: Iterable[ClassCount],
    sources: Iterable[Source],
) -> Iterator[Problem]:
    """Yield classes without an example in the training split, and examples of such classes in other splits."""
    present: dict[str | None, set[str]] = {}
    for count in counts:
        present.setdefault(count.split, set()).update([count.name] if count.images else [])
    training = [split for split in present if split is not None and role_of(split) == "train"]
    trained = {name for split in training or (None,) for name in present.get(split, ())}
    problems = Problems()
    first: dict[str, list[int]] = {}  # pixels of the training split by format
    for known, split, place, names, labels in sources:
        is_training = split is None or role_of(split) == "train"
        if labels is not None and (is_training or known.name in first):
            found = _sum_pixels(known.name, split, labels.classes, zip(entries, pixels, strict=True))
            report_classes(place, labels, found, problems, first.get(known.name))
            first.setdefault(known.name, found)
            continue
        if known.task == "detect" and is_training:
            report_absent(place, [name for name in names or () if name not in trained], "object", problems)
    yield from problems
    if training:
        yield from _untrained_boxes(entries, trained)


def _sum_pixels(
    name: str, split: str | None, classes: Sequence[str], pixels: Iterable[tuple[Entry, Mapping[str, int]]]
) -> list[int]:
    """Return the number of mask pixels of each class in the images of a format and split."""
    counts: Counter[str] = Counter()
    for entry, found in pixels:
        if name in entry.items and (split is None or split in entry.splits):
            counts.update(found)
    return [counts[name] for name in classes]


def _untrained_boxes(entries: Sequence[Entry], trained: set[str]) -> Iterator[Problem]:
    reported: set[tuple[Path, str]] = set()
    for entry in entries:
        for item in entry.items.values():
            for box in item.boxes:
                file = item.file or item.path
                if box.name not in trained and (file, box.name) not in reported:
                    close = did_you_mean(box.name, trained) if len(reported) < _MAX_HINTS else ""
                    reported.add((file, box.name))
                    yield Problem(file, "untrained-class", f"{box.where}: no training image has this class{close}")
