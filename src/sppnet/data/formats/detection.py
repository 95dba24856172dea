"""Readers of detection data sets in the VOC and COCO layouts."""

import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sppnet.data.formats.annotations import AnnotatedImage, format_numbers
from sppnet.data.formats.coco import coco_files, read_coco
from sppnet.data.formats.voc import read_voc, voc_folder, voc_lists, without_class_lists
from sppnet.data.images import image_size
from sppnet.data.splits import default_split, sort_splits
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
        root: the folder or the .json file that was read.
        samples: images in the order of the split's list or the JSON file.
        classes: class names, indexed by labels.
        problems: messages about dropped or clipped objects and inconsistent annotations, each with file and object.
    """

    root: Path
    samples: tuple[DetectionSample, ...]
    classes: tuple[str, ...]
    problems: tuple[str, ...]


def detection_splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the splits of a data set, training first; empty if it has no splits or is not a data set.

    A split is a list ImageSets/Main/SPLIT.txt, or a file annotations/SPLIT.json or annotations/instances_SPLIT.json.
    Per-class lists such as cat_train.txt are not returned if train.txt exists, but can be read.
    """
    root = Path(root)
    voc = voc_folder(root, "Annotations")
    return sort_splits(without_class_lists(voc_lists(voc, "Main")) if voc else coco_files(root))


def choose_split(root: str | os.PathLike[str], wanted: str | None, *usual: str) -> str | None:
    """Return `wanted` if given, else the first existing split among `usual`, or None if there are no splits.

    Raises:
        ValueError: if there are splits, `wanted` is None and none of `usual` exists.
    """
    return default_split(root, detection_splits(root), wanted, *usual)


def read_detection(
    root: str | os.PathLike[str],
    split: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    more_classes: bool = False,
) -> DetectionData:
    """Read the images and annotated objects of a detection data set; only the headers of images are read.

    Boxes are clipped to their image, whose size is read from its header. Images may have no objects. Objects without
    area or outside the image are dropped. Dropped objects, boxes that extend beyond the image by more than a pixel, and
    wrong stated image sizes are listed in ``problems``.

    Args:
        root: data set in one of three layouts.

            - VOC: a folder with JPEGImages, Annotations/ID.xml and ImageSets/Main/SPLIT.txt, or a folder with a single
              such folder, VOC* or VOCdevkit/VOC*. Corners are 1-based and inclusive, so the edges are
              (xmin - 1, ymin - 1, xmax, ymax); objects with equal corners in x or y count as having no area. Without
              ImageSets/Main, every annotated image is read.
            - COCO: a folder with annotations/SPLIT.json or annotations/instances_SPLIT.json, and the images in SPLIT,
              images/SPLIT, images or the folder itself.
            - A COCO .json file, with the images in the same folders next to it.
        split: name of the split to read; required if `detection_splits` returns any, otherwise None.
        classes: class names in label order, such as those of a trained detector. The data may lack some of them. The
            default is the sorted names of all objects (VOC), or the categories sorted by id (COCO).
        more_classes: append classes of the data that are missing from `classes` instead of raising an error.

    Raises:
        ValueError: if the data set does not have one of these layouts; the message names the file or object.
        OSError: if a folder or file cannot be read.
    """
    root = Path(root)
    if not root.exists():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise ValueError(f"no data set at {root}: no such folder or file{did_you_mean(root.name, siblings)}")
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise ValueError(f"classes: expected one or more unique names, got {list(classes)}")
    problems: list[str] = []
    voc, files = voc_folder(root, "Annotations"), coco_files(root)
    if (voc is not None and files) or (voc is None and not files and root.suffix.lower() != ".json"):
        raise ValueError(
            f"root: expected a folder with JPEGImages and Annotations (VOC) or annotations/*.json (COCO), but not both,"
            f" or a .json file, got {root}"
        )
    if voc:
        root = voc
        images = read_voc(voc, _split_file(voc, split, voc_lists(voc, "Main")), problems)
        known = sorted({item.name for image in images for item in image.objects})
    else:
        images, known = read_coco(_split_file(root, split, files) or root, split, problems)
    _check_images(root, images)
    label = {name: index for index, name in enumerate(known if classes is None else classes)}
    unknown = {item.name: item.where for image in images for item in image.objects if item.name not in label}
    if more_classes:
        label |= {name: index for index, name in enumerate(sorted(unknown), len(label))}
    elif unknown:
        missing = list_some(f"{name} ({where})" for name, where in sorted(unknown.items()))
        raise ValueError(
            f"classes: expected all classes of {root}, got {len(label)} names that lack {missing}"
            f"{did_you_mean(min(unknown), label)}"
        )
    samples = tuple(_sample(image, label, problems) for image in images)
    return DetectionData(root, samples, tuple(label), tuple(problems))


def _split_file(root: Path, split: str | None, files: dict[str, Path]) -> Path | None:
    if split is None and not files:
        return None
    if not files:
        raise ValueError(f"split: expected none for {root}, which has no splits, got {split!r}")
    if split not in files:
        names = detection_splits(root)
        hint = did_you_mean(split, files) if split else ""
        raise ValueError(f"split: expected one of {', '.join(names)} for {root}, got {split!r}{hint}")
    return files[split]


def _check_images(root: Path, images: list[AnnotatedImage]) -> None:
    if not images:
        raise ValueError(f"{root}: expected at least one image, got none")
    duplicates = [str(path) for path, count in Counter(image.path for image in images).items() if count > 1]
    if duplicates:
        raise ValueError(f"{root}: expected each image of a split once, got duplicates of {list_some(duplicates)}")


def _sample(image: AnnotatedImage, label: dict[str, int], problems: list[str]) -> DetectionSample:
    """Convert annotations to tensors, with boxes clipped to the image."""
    height, width = _size(image, problems) if image.objects else (0, 0)
    boxes, kept = array("f"), []
    for item in image.objects:
        x1, y1, x2, y2 = item.edges
        clipped = array("f", (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)))
        empty = clipped[0] >= clipped[2] or clipped[1] >= clipped[3]
        if empty or max(-x1, -y1, x2 - width, y2 - height) > 1:
            action = "dropped" if empty else f"clipped to {format_numbers(clipped)}"
            problems.append(
                f"{item.where}: box with edges {format_numbers(item.edges)} extends beyond the image of"
                f" {height} x {width} (height x width); {action}"
            )
        if empty:
            continue
        boxes.extend(clipped)
        kept.append(item)
    return DetectionSample(
        image.path,
        torch.tensor(boxes.tolist(), dtype=torch.float32).reshape(len(kept), 4),
        torch.tensor([label[item.name] for item in kept], dtype=torch.int64),
        torch.tensor([item.difficult for item in kept], dtype=torch.bool),
    )


def _size(image: AnnotatedImage, problems: list[str]) -> tuple[int, int]:
    """Return (height, width) from the image header, since stated sizes are often 0 or ignore the EXIF orientation."""
    try:
        height, width = image_size(image.path)
    except ImageError as error:
        if image.size is None:  # the error is reported when the image is loaded
            return _UNKNOWN_SIDE, _UNKNOWN_SIDE
        problems.append(f"{error}; using the size stated in {image.where}")
        return image.size
    if image.size not in (None, (height, width)):
        problems.append(
            f"{image.where}: the stated size is {image.size[0]} x {image.size[1]} (height x width), but {image.path}"
            f" has {height} x {width} with its EXIF orientation applied; boxes are read as pixels of the latter"
        )
    return height, width
