"""The formats of data sets, and their detection."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sppnet.data.formats import class_folders, coco, csv, mask_folders, polygon_sets, roboflow_classes, voc, yolo
from sppnet.data.images import image_extensions
from sppnet.data.items import Part, Problems
from sppnet.data.splits import default_split, first_split, is_system_file, list_folders
from sppnet.errors import check_choice

Task = Literal["classify", "detect", "segment"]
Splits = dict[str | None, Any]


class Format(NamedTuple):
    """A format of data sets.

    Attributes:
        name: name for ``--format``.
        title: short description.
        task: task of its annotations.
        find_splits: returns the source of each split of a data set, training first; without splits, its only key is
            None; empty for other formats. It parses no annotations.
        read: reads a split from its source, and reports all problems.
    """

    name: str
    title: str
    task: Task
    find_splits: Callable[[Path], Splits]
    read: Callable[[Path, str | None, Any, Problems], Part]


# Class folders are last: folders of splits and of masks look like them.
FORMATS = (
    Format("voc", "VOC boxes", "detect", voc.find_splits, voc.read),
    Format("coco", "COCO boxes", "detect", coco.find_splits, coco.read),
    Format("yolo", "YOLO boxes", "detect", yolo.find_splits, yolo.read),
    Format("camvid", "CamVid masks", "segment", mask_folders.find_camvid, mask_folders.read),
    Format("voc-masks", "VOC masks", "segment", mask_folders.find_voc, mask_folders.read),
    Format("mask-folders", "folders of images and masks", "segment", mask_folders.find_pairs, mask_folders.read),
    Format("roboflow-masks", "Roboflow masks", "segment", mask_folders.find_roboflow, mask_folders.read),
    Format("coco-masks", "COCO masks", "segment", polygon_sets.find_coco, polygon_sets.read_coco),
    Format("yolo-masks", "YOLO masks", "segment", polygon_sets.find_yolo, polygon_sets.read_yolo),
    Format("csv", "CSV file", "classify", csv.find_splits, csv.read),
    Format("roboflow-classes", "Roboflow classes", "classify", roboflow_classes.find_splits, roboflow_classes.read),
    Format("class-folders", "class folders", "classify", class_folders.find_splits, class_folders.read),
)
FALLBACK = "class-folders"  # only where no other format is found
_POLYGONS = ("coco-masks", "yolo-masks")  # the same for segmentation; for other tasks, such data are boxes


def find_formats(root: Path, task: Task | None = None, problems: Problems | None = None) -> list[tuple[Format, Splits]]:
    """Return the formats of a data set with their splits.

    Args:
        root: data set.
        task: task of the formats; None for any.
        problems: receives the contradictions, if given; their formats are not returned.

    Raises:
        ValueError: the files of a format contradict each other.
        OSError: a folder cannot be read.
    """
    last = (FALLBACK, *_POLYGONS)
    others = [known for known in FORMATS if known.name not in last and (task in (None, "classify", known.task))]
    found = search_formats(others, root, problems)
    if not found and task == "segment":
        found = search_formats(map(by_name, _POLYGONS), root, problems)
    elif not found and not problems and task in (None, "classify"):
        found = search_formats([by_name(FALLBACK)], root, problems)
    return [(known, splits) for known, splits in found if task in (None, known.task)]


def search_formats(formats: Iterable[Format], root: Path, problems: Problems | None) -> list[tuple[Format, Splits]]:
    """Return those of the given formats that a data set has; the arguments are those of `find_formats`."""
    found = []
    for known in formats:
        try:
            if splits := known.find_splits(root):
                found.append((known, splits))
        except ValueError as error:
            if problems is None:
                raise
            reason = str(error).removeprefix("root: ").removeprefix(str(root)).lstrip(": ")
            problems.report(root, "bad-annotation", reason)
    return found


def by_name(name: str) -> Format:
    """Return the format of a legal name."""
    return next(known for known in FORMATS if known.name == name)


def split_names(root: str | os.PathLike[str], task: Task, format: str | None = None) -> tuple[str, ...]:
    """Return the names of the splits of a data set, training first; empty if it has no splits or is not a data set."""
    found = [splits for known, splits in find_formats(Path(root), task) if format in (None, known.name)]
    return tuple(name for splits in found[:1] for name in splits if name is not None)


def find_validation(
    data: str | Path, split: str | None, val: str | Path | None, task: Task, format: str | None
) -> tuple[str | Path, str | None] | None:
    """Return the data set and split to validate on; None if there is none.

    Args:
        data: data set of the training.
        split: its training split.
        val: split of `data`, or else another data set, of which the split ``val`` or else ``test`` is used; ``none`` to
            disable validation; None for the split ``val`` of `data`.
        task: task of the training.
        format: format of both data sets; None to detect it.

    Raises:
        ValueError: `val` has splits, but none for validation or testing.
    """
    if val == "none":
        return None
    names = split_names(data, task, format)
    if val is None:
        default = first_split(names, "val")
        return None if default in (None, split) else (data, default)
    wanted = default_split(data, names, str(val))
    if wanted in names:
        return data, wanted
    return val, default_split(val, split_names(val, task, format), None, "val", "test")


def choose_format(root: Path, task: Task, name: str | None = None) -> tuple[Format, Splits]:
    """Return the format of a data set, and its splits.

    Args:
        root: data set.
        task: task of the format.
        name: name of the format; None to detect it.

    Raises:
        ValueError: the data set has none of the formats of the task, or several.
        OSError: a folder cannot be read.
    """
    names = [known.name for known in FORMATS if known.task == task]
    if name is not None:
        check_choice("format", name, names)
        known = by_name(name)
        splits = known.find_splits(root)
        if not splits:
            raise ValueError(f"format: expected the format of {root}, got {name}{_describe(root, task)}")
        return known, splits
    own = find_formats(root, task)
    if len(own) == 1:
        return own[0]
    if own:
        got = ", ".join(known.name for known, _ in own)
        raise ValueError(f"format: expected one of the formats found in {root}, {got}, got none; use --format")
    raise ValueError(
        f"root: expected a data set in one of the formats {', '.join(names)}, got {root}{_describe(root, task)}"
    )


def _describe(root: Path, task: Task) -> str:
    """Return what was found instead, for a message."""
    try:
        formats = find_formats(root)
    except ValueError as error:  # of another task
        return f"; {error}"
    if not formats:
        return f", {_contents(root)}"
    text = ", ".join(f"{known.name} ({known.title})" for known, _ in formats)
    other = formats[0][0].task
    return f", which is {text}" + ("" if other == task else f"; use sppnet train {other}")


def _contents(root: Path) -> str:
    if not root.is_dir():
        return f"a file with the extension {root.suffix or 'none'}"
    extensions = image_extensions()
    files = [path for path in root.iterdir() if path.is_file() and not is_system_file(path.name)]
    images = sum(path.suffix.lower() in extensions for path in files)
    return f"a folder of {images} images, {len(files) - images} other files and {len(list_folders(root))} folders"
