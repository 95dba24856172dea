"""Segmentation data as training and evaluation use them: images, masks and their classes, from all formats."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppnet.data.formats.class_tables import ClassRow
from sppnet.data.formats.mask_folders import MaskSource
from sppnet.data.formats.mask_labels import find_labels, mask_samples
from sppnet.data.formats.masks import LabelMap, SegmentationSample
from sppnet.data.formats.table import choose_format, split_names
from sppnet.data.items import Problems
from sppnet.data.splits import check_exists, default_split
from sppnet.errors import check_classes, did_you_mean


@dataclass(frozen=True)
class SegmentationData:
    """Files and classes of a segmentation data set.

    Attributes:
        root: the folder that was read.
        samples: images and masks in the order of the split's list, or sorted by name.
        labels: mapping from the ids and colors of the masks to classes.
        problems: messages about skipped files and assumptions.
    """

    root: Path
    samples: tuple[SegmentationSample, ...]
    labels: LabelMap
    problems: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in index order."""
        return self.labels.classes


def segmentation_splits(root: str | os.PathLike[str], format: str | None = None) -> tuple[str, ...]:
    """Return the names of the splits of a data set, training first; empty if it has no splits or is not a data set.

    See `read_segmentation` for the formats.
    """
    return split_names(root, "segment", format)


def choose_segmentation_split(
    root: str | os.PathLike[str], wanted: str | None, *usual: str, format: str | None = None
) -> str | None:
    """Return `wanted` if given, else the first existing split among `usual`, or None if there are no splits.

    Splits of the same role as one of `usual` will do, see `sppnet.data.splits`.

    Raises:
        ValueError: there are splits, `wanted` is None and none of `usual` exists.
    """
    return default_split(root, segmentation_splits(root, format), wanted, *usual)


def read_segmentation(
    root: str | os.PathLike[str],
    split: str | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    ignore: Sequence[int] | None = None,
    *,
    class_file: str | os.PathLike[str] | None = None,
    table: Sequence[ClassRow] = (),
    format: str | None = None,
) -> SegmentationData:
    """List the images and masks of a segmentation data set, and determine the classes of the mask ids.

    The classes come from the class file of the data set, if any: classes.txt, classes.csv, class_dict.csv, CVAT's
    labelmap.txt or Roboflow's _classes.csv, see `sppnet.data.formats.class_tables.parse_class_file`. Otherwise VOC data
    sets have the 20 VOC classes and background, and CamVid data sets whose largest id is 10 or 11 have the 11 CamVid
    classes, with id 11 ignored. In other data sets the classes are ``class 0`` up to the largest id, and all masks are
    read to find it.

    If the masks of all splits hold only the ids 0 and 255, and 255 is not ignored by `ignore`, 255 is the second of two
    classes; with more classes, such masks are refused.

    Args:
        root: data set in one of these formats. Images without a mask and masks without an image are skipped and
            reported in ``problems``.

            - CamVid: a folder with SPLIT and SPLITannot, in which images and masks have the same names.
            - VOC, or CVAT's export of masks: a folder with JPEGImages, SegmentationClass and
              ImageSets/Segmentation/SPLIT.txt, or else ImageSets/Main/SPLIT.txt; or a folder with a single such folder,
              such as VOCdevkit/VOC*. Without lists, all images with a mask are read.
            - A folder with images and masks (or annotations or labels), or with img_dir and ann_dir; a mask is named
              like its image, optionally with the suffix _mask, _L or _label. Splits are SPLIT/images and SPLIT/masks,
              or images/SPLIT and masks/SPLIT.
            - Roboflow's export of masks: SPLIT/_classes.csv, and a.jpg and a_mask.png next to it.
            - COCO or YOLO with polygons, if it has no masks in files; the classes are background and those of the data.
        split: name of the split to read; required if `segmentation_splits` returns any, otherwise None.
        classes: class names in index order, such as those of a trained network, or the path of a class file. Names
            are matched to the classes of the data, which may lack some of them; if the data have no class names, they
            name the ids 0, 1 and so on.
        ignore: raw ids of ignored pixels; classes with such an id are removed. The default is 255, unless the class
            file uses it, and also 11 for CamVid.
        class_file: class file that replaces the one of the data set.
        table: classes to use if there is no class file, such as those that a network was trained with.
        format: name of the format; None to detect it.

    Raises:
        ValueError: the data set has none of these formats, or its annotations have errors; the message names the file
            or folder.
        OSError: a folder or file cannot be read.
    """
    root = Path(root)
    check_exists(root)
    if isinstance(classes, str | os.PathLike):
        if class_file is not None:
            raise ValueError(f"classes: expected names when class_file is given, got the file {os.fspath(classes)}")
        classes, class_file = None, classes
    if classes is not None:
        check_classes(classes)
    if ignore is not None and any(not 0 <= value <= 65_535 for value in ignore):
        raise ValueError(f"ignore: expected ids from 0 to 65535, got {list(ignore)}")
    known, splits = choose_format(root, "segment", format)
    split = _check_split(root, split, splits)
    problems = Problems()
    part = known.read(root, split, splits[split], problems)
    problems.raise_errors()
    file = None if class_file is None else Path(class_file)
    labels = find_labels(root, known, splits, split, part, problems, classes, ignore, file, table)
    problems.raise_errors()
    if labels is None:  # only with errors
        raise ValueError(f"{root}: expected classes, got none")
    folder = splits[split].root if isinstance(splits[split], MaskSource) else root
    return SegmentationData(folder, mask_samples(part), labels, problems.lines())


def _check_split(root: Path, split: str | None, splits: Mapping[str | None, Any]) -> str | None:
    names = [name for name in splits if name is not None]
    source = splits.get(None)
    if split in splits:
        return split
    if split is not None and isinstance(source, MaskSource) and _is_list(source, split):
        return None
    if not names:
        raise ValueError(f"split: expected none for {root}, which has no splits, got {split!r}")
    hint = did_you_mean(split, names) if split else ""
    raise ValueError(f"split: expected one of {', '.join(names)} for {root}, got {split!r}{hint}")


def _is_list(source: MaskSource, split: str) -> bool:
    return source.listed is not None and source.listed.stem == split
