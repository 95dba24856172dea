"""Reading of detection data sets in the layouts of VOC and of COCO."""

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
from sppnet.data.formats.voc import (
    read_voc,
    voc_folder,
    voc_lists,
    whole_lists,
)
from sppnet.data.images import image_size
from sppnet.data.splits import sort_splits, usual_split
from sppnet.errors import ImageError, list_some, suggest

_UNKNOWN = 1 << 30  # pixels; the side of an image that cannot be read


@dataclass(frozen=True)
class DetectionSample:
    """An image file and the objects in it.

    Attributes:
        path: the image file.
        boxes: xyxy edges in pixels of the image as its EXIF orientation turns it; inside the image, with an area.
        labels: indices of classes.
        difficult: VOC's difficult objects and COCO's crowds; they count neither as missed nor, when found, as false.
    """

    path: Path
    boxes: Float[Tensor, "k 4"]
    labels: Int[Tensor, " k"]
    difficult: Bool[Tensor, " k"]


@dataclass(frozen=True)
class DetectionData:
    """A detection data set; of the images themselves only headers are read.

    Attributes:
        root: the folder or the .json file that was read.
        samples: in the order of the split's list, or of the JSON file.
        classes: names of the classes; labels are indices into them.
        problems: what was left out, mended or doubted, each naming the file and the object.
    """

    root: Path
    samples: tuple[DetectionSample, ...]
    classes: tuple[str, ...]
    problems: tuple[str, ...]


def detection_splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of the splits of a folder, training first; none if it has none or is no data set.

    A split is a list ImageSets/Main/SPLIT.txt, or a file annotations/SPLIT.json or annotations/instances_SPLIT.json.
    Lists of single classes such as cat_train.txt are not named beside train.txt, but can be read.
    """
    root = Path(root)
    voc = voc_folder(root, "Annotations")
    return sort_splits(whole_lists(voc_lists(voc, "Main")) if voc else coco_files(root))


def choose_split(root: str | os.PathLike[str], wanted: str | None, *usual: str) -> str | None:
    """The split that is meant: the wanted one, else the first usual one that there is; None where there are no splits.

    Raises:
        ValueError: there are splits, none is wanted, and none is usual.
    """
    return usual_split(root, detection_splits(root), wanted, *usual)


def read_detection(
    root: str | os.PathLike[str],
    split: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    more_classes: bool = False,
) -> DetectionData:
    """Reads which images a data set has, and which objects each shows.

    Boxes are cut at the edges of their image, whose size is read from its header; images without an object are legal.
    Objects without area, or with none inside the image, are left out and named in ``problems``, as are boxes that left
    the image by more than a pixel, and annotations that give the image another size than it has.

    Args:
        root: one of three layouts.

            - VOC: a folder with JPEGImages, Annotations/ID.xml and ImageSets/Main/SPLIT.txt; or the one VOC* folder of
              that kind in it or in its VOCdevkit. Corners count from 1 and are inclusive, so that the edges are
              (xmin - 1, ymin - 1, xmax, ymax). Corners that coincide in x or y are an object without area. Without
              ImageSets/Main every annotated image is read. An XML file without objects is an image without objects.
            - COCO: a folder with annotations/SPLIT.json or annotations/instances_SPLIT.json, and the images in SPLIT,
              images/SPLIT, images or the folder itself.
            - A .json file of COCO, and the images in those folders beside it.
        split: the split to read; given exactly where `detection_splits` names some.
        classes: the class names that labels shall index, such as those of a trained detector. The data may lack some of
            them. Without it they are the sorted names of the objects (VOC), or the categories by id (COCO).
        more_classes: put other classes that the objects have behind `classes`; otherwise they are refused.

    Raises:
        ValueError: if the data set is not as described; the message names what is wrong and where.
        OSError: if a folder or file cannot be read.
    """
    root = Path(root)
    if not root.exists():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise ValueError(f"no data set at {root}: no such folder or file{suggest(root.name, siblings)}")
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise ValueError(f"classes must be one or more different names, got {list(classes)}")
    problems: list[str] = []
    voc, files = voc_folder(root, "Annotations"), coco_files(root)
    if (voc is not None and files) or (voc is None and not files and root.suffix.lower() != ".json"):
        raise ValueError(
            f"a detection data set must be a folder with JPEGImages and Annotations (VOC) or with annotations/*.json"
            f" (COCO), not both, or a .json file, got {root}"
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
        named = list_some(f"{name} ({where})" for name, where in sorted(unknown.items()))
        raise ValueError(
            f"{root} has objects of classes that are not among the {len(label)} of classes: {named}"
            f"{suggest(min(unknown), label)}"
        )
    samples = tuple(_sample(image, label, problems) for image in images)
    return DetectionData(root, samples, tuple(label), tuple(problems))


def _split_file(root: Path, split: str | None, files: dict[str, Path]) -> Path | None:
    if split is None and not files:
        return None
    if not files:
        raise ValueError(f"split must be left out for {root}, which has no splits, got {split!r}")
    if split not in files:
        names = detection_splits(root)
        hint = suggest(split, files) if split else ""
        raise ValueError(f"split must be one of {', '.join(names)} for {root}, got {split!r}{hint}")
    return files[split]


def _check_images(root: Path, images: list[AnnotatedImage]) -> None:
    if not images:
        raise ValueError(f"{root} must name an image or more, got none")
    twice = [str(path) for path, count in Counter(image.path for image in images).items() if count > 1]
    if twice:
        raise ValueError(f"{root} must name each image of a split once; these come again: {list_some(twice)}")


def _sample(image: AnnotatedImage, label: dict[str, int], problems: list[str]) -> DetectionSample:
    """The objects with their boxes cut at the edges of the image."""
    height, width = _size(image, problems) if image.objects else (0, 0)
    boxes, kept = array("f"), []
    for item in image.objects:
        x1, y1, x2, y2 = item.edges
        cut = array("f", (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)))
        empty = cut[0] >= cut[2] or cut[1] >= cut[3]
        if empty or max(-x1, -y1, x2 - width, y2 - height) > 1:
            done = "left out" if empty else f"cut to {format_numbers(cut)}"
            problems.append(
                f"{item.where}: the box with edges {format_numbers(item.edges)} leaves the image of {height} x {width}"
                f" (height x width); {done}"
            )
        if empty:
            continue
        boxes.extend(cut)
        kept.append(item)
    return DetectionSample(
        image.path,
        torch.tensor(boxes.tolist(), dtype=torch.float32).reshape(len(kept), 4),
        torch.tensor([label[item.name] for item in kept], dtype=torch.int64),
        torch.tensor([item.difficult for item in kept], dtype=torch.bool),
    )


def _size(image: AnnotatedImage, problems: list[str]) -> tuple[int, int]:
    """The (height, width) by the header: what annotations say is often 0, or of the image before it was turned."""
    try:
        height, width = image_size(image.path)
    except ImageError as error:
        if image.size is None:  # whoever reads the image tells of it; until then nothing is cut
            return _UNKNOWN, _UNKNOWN
        problems.append(f"{error}; its size is taken from {image.where}")
        return image.size
    if image.size not in (None, (height, width)):
        problems.append(
            f"{image.where}: the size is given as {image.size[0]} x {image.size[1]} (height x width), but {image.path}"
            f" has {height} x {width}, with its EXIF orientation applied; the boxes are taken as pixels of the latter"
        )
    return height, width
