"""Detection data sets in any format, as training and evaluation use them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sppnet.data.formats import table, voc
from sppnet.data.formats.annotations import fit_boxes
from sppnet.data.images import image_size
from sppnet.data.items import Item, Problems
from sppnet.data.splits import check_exists, default_split
from sppnet.errors import ImageError, did_you_mean, list_some

_UNKNOWN_SIDE = 1 << 30  # pixels; disables clipping for images whose header cannot be read


@dataclass(frozen=True)
class DetectionSample:
    """An image file and the objects in it.

    Attributes:
        path: the image file.
        boxes: xyxy edges in pixels of the image with its EXIF orientation applied; inside the image, with an area > 0.
        labels: class indices.
        difficult: flags of VOC's difficult objects and COCO's crowds, which evaluation ignores: they are neither
            misses nor false positives.
    """

    path: Path
    boxes: Float[Tensor, "k 4"]
    labels: Int[Tensor, " k"]
    difficult: Bool[Tensor, " k"]


@dataclass(frozen=True)
class DetectionData:
    """Images, boxes and classes of a detection data set.

    Attributes:
        root: the folder or file that was read.
        samples: images in the order of the split's list or file.
        classes: class names, indexed by labels.
        problems: messages about dropped or clipped objects and inconsistent annotations, each with file and object.
    """

    root: Path
    samples: tuple[DetectionSample, ...]
    classes: tuple[str, ...]
    problems: tuple[str, ...]


def detection_splits(root: str | os.PathLike[str], format: str | None = None) -> tuple[str, ...]:
    """Return the names of the splits of a data set, training first; empty if it has no splits or is not a data set.

    See `read_detection` for the formats. VOC lists of single classes such as cat_train.txt are not returned if
    train.txt exists, but can be read.
    """
    return table.split_names(root, "detect", format)


def choose_split(
    root: str | os.PathLike[str],
    wanted: str | None,
    *usual: str,
    format: str | None = None,
) -> str | None:
    """Return `wanted` if given, else the first existing split among `usual`, or None if there are no splits.

    Raises:
        ValueError: if there are splits, `wanted` is None and none of `usual` exists.
    """
    return default_split(root, detection_splits(root, format), wanted, *usual)


def read_detection(
    root: str | os.PathLike[str],
    split: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    more_classes: bool = False,
    format: str | None = None,
) -> DetectionData:
    """Read the images and annotated objects of a detection data set; only the headers of images are read.

    Boxes are clipped to their image, whose size is read from its header. Images may have no objects. Objects without
    area or outside the image are dropped. Dropped objects, boxes that extend beyond the image by more than a pixel, and
    wrong stated image sizes are listed in ``problems``.

    Args:
        root: data set in one of these formats.

            - VOC: a folder with JPEGImages, Annotations/ID.xml and ImageSets/Main/SPLIT.txt, or a folder with a single
              such folder, such as VOC*, VOCdevkit/VOC* or TrainVal/VOCdevkit/VOC*. Corners are 1-based and inclusive,
              so the edges are (xmin - 1, ymin - 1, xmax, ymax); objects with equal corners in x or y count as having
              no area. Without ImageSets/Main, every annotated image is read.
            - COCO: a folder with annotations/SPLIT.json or annotations/instances_SPLIT.json, and the images in SPLIT,
              images/SPLIT, images or the folder itself; or Roboflow's SPLIT/_annotations.coco.json with the images next
              to it; or a COCO .json file.
            - YOLO: a folder with data.yaml, or a .yaml file, as Ultralytics describes them; or a folder with
              images/SPLIT, labels/SPLIT and classes.txt. Images without a label file have no objects.
        split: name of the split to read; required if `detection_splits` returns any, otherwise None.
        classes: class names in label order, such as those of a trained detector. The data may lack some of them. The
            default is the sorted names of all objects (VOC), or the classes that the data set lists, sorted by id.
        more_classes: append classes of the data that are missing from `classes` instead of raising an error.
        format: ``voc``, ``coco`` or ``yolo``; None to detect it.

    Raises:
        ValueError: if the data set does not have one of these formats; the message names the file or object.
        OSError: if a folder or file cannot be read.
    """
    root = Path(root)
    check_exists(root)
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise ValueError(f"classes: expected one or more unique names, got {list(classes)}")
    known, splits = table.choose_format(root, "detect", format)
    problems = Problems()
    part = known.read(root, split, _source(root, split, known, splits), problems)
    problems.raise_errors()
    root = (voc.voc_folder(root, "Annotations") or root) if known.name == "voc" else root
    images = part.items
    names = sorted({box.name for image in images for box in image.boxes}) if part.classes is None else part.classes
    label = {name: index for index, name in enumerate(names if classes is None else classes)}
    unknown = {
        box.name: f"{image.file}, {box.where}" for image in images for box in image.boxes if box.name not in label
    }
    if more_classes:
        label |= {name: index for index, name in enumerate(sorted(unknown), len(label))}
    elif unknown:
        missing = list_some(f"{name} ({where})" for name, where in sorted(unknown.items()))
        raise ValueError(
            f"classes: expected all classes of {root}, got {len(label)} names that lack {missing}"
            f"{did_you_mean(min(unknown), label)}"
        )
    samples = tuple(_sample(image, label, problems) for image in images)
    return DetectionData(root, samples, tuple(label), problems.lines())


def _source(root: Path, split: str | None, known: table.Format, splits: table.Splits) -> Any:
    """Return the source of a split."""
    readable = splits | voc.find_class_lists(root) if known.name == "voc" else splits
    if split in readable and (split is not None or None in splits):
        return readable[split]
    names = [name for name in splits if name is not None]
    if not names:
        raise ValueError(f"split: expected none for {root}, which has no splits, got {split!r}")
    hint = did_you_mean(split, names) if split else ""
    raise ValueError(f"split: expected one of {', '.join(names)} for {root}, got {split!r}{hint}")


def _sample(item: Item, label: dict[str, int], problems: Problems) -> DetectionSample:
    """Convert annotations to tensors, with boxes clipped to the image."""
    fitted = fit_boxes(item, _size(item, problems), problems) if item.boxes else []
    return DetectionSample(
        item.path,
        torch.tensor([list(edges) for _, edges in fitted], dtype=torch.float32).reshape(len(fitted), 4),
        torch.tensor([label[box.name] for box, _ in fitted], dtype=torch.int64),
        torch.tensor([box.difficult for box, _ in fitted], dtype=torch.bool),
    )


def _size(item: Item, problems: Problems) -> tuple[int, int]:
    """Return (height, width) from the image header, since stated sizes are often 0 or ignore the EXIF orientation."""
    try:
        return item.size or image_size(item.path)
    except ImageError as error:
        if item.stated is None:  # the error is reported when the image is loaded
            return _UNKNOWN_SIDE, _UNKNOWN_SIDE
        problems.report(item.path, "unreadable", f"{error.reason}; using the size stated in {item.where}")
        return item.stated
