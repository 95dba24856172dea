"""Reading of detection data sets in the layouts of VOC and of COCO."""

import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sppnet.data.coco import coco_files, find_images, four_numbers, load_coco, short
from sppnet.data.datasets import list_some, sort_splits, suggest, usual_split
from sppnet.data.images import ImageError, image_size, walk_files
from sppnet.data.voc import images_by_name, read_list, require_images, voc_folder, voc_lists, whole_lists

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_UNKNOWN = 1 << 30  # pixels; the side of an image that cannot be read
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


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


class _Object(NamedTuple):
    name: str
    edges: tuple[float, float, float, float]
    difficult: bool
    where: str


class _Image(NamedTuple):
    path: Path
    objects: list[_Object]
    size: tuple[int, int] | None  # (height, width) as the annotations give it
    where: str


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
        images = _read_voc(voc, _split_file(voc, split, voc_lists(voc, "Main")), problems)
        known = sorted({item.name for image in images for item in image.objects})
    else:
        images, known = _read_coco(_split_file(root, split, files) or root, split, problems)
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


def _check_images(root: Path, images: list[_Image]) -> None:
    if not images:
        raise ValueError(f"{root} must name an image or more, got none")
    twice = [str(path) for path, count in Counter(image.path for image in images).items() if count > 1]
    if twice:
        raise ValueError(f"{root} must name each image of a split once; these come again: {list_some(twice)}")


def _sample(image: _Image, label: dict[str, int], problems: list[str]) -> DetectionSample:
    """The objects with their boxes cut at the edges of the image."""
    height, width = _size(image, problems) if image.objects else (0, 0)
    boxes, kept = array("f"), []
    for item in image.objects:
        x1, y1, x2, y2 = item.edges
        cut = array("f", (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)))
        empty = cut[0] >= cut[2] or cut[1] >= cut[3]
        if empty or max(-x1, -y1, x2 - width, y2 - height) > 1:
            done = "left out" if empty else f"cut to {_numbers(cut)}"
            problems.append(
                f"{item.where}: the box with edges {_numbers(item.edges)} leaves the image of {height} x {width}"
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


def _size(image: _Image, problems: list[str]) -> tuple[int, int]:
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


def _read_voc(folder: Path, listed: Path | None, problems: list[str]) -> list[_Image]:
    photos, annotations = folder / "JPEGImages", folder / "Annotations"
    files = images_by_name(photos)
    if listed is None:
        every = (path.relative_to(annotations) for path in walk_files(annotations) if path.suffix == ".xml")
        ids = [path.with_suffix("").as_posix() for path in every]
        if files.keys() - set(ids):
            problems.append(f"images without an annotation: {list_some(sorted(files.keys() - set(ids)))}; left out")
    else:
        ids = read_list(listed, files)
    of = listed or annotations
    require_images(ids, files, photos, of)
    missing = [name for name in ids if not (annotations / f"{name}.xml").is_file()]
    if missing:
        raise ValueError(f"{annotations} lacks .xml files of {of}: {list_some(missing)}")
    return [read_annotation(annotations / f"{name}.xml", files[name][0], problems) for name in ids]


def read_annotation(file: Path, path: Path, problems: list[str]) -> _Image:
    """The objects of a VOC annotation; those without area are left out and added to `problems`.

    Raises:
        ValueError: it is no such file, or an object is not as VOC has them; the message names file and object.
    """
    annotation = _parse(file)
    objects = []
    for number, element in enumerate(annotation.findall("object"), start=1):
        where = f"{file}, object {number}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{where}: a name was expected, got none")
        where += f" ({name})"
        x1, y1, x2, y2 = (_corner(element, key, where) for key in _CORNERS)
        flag = (element.findtext("difficult") or "").strip().lower() or "0"
        if flag not in _FLAGS:
            raise ValueError(f"{where}: difficult must be 0 or 1, got {flag!r}")
        # By the letter equal corners are one pixel; on real data they are a slip of the mouse.
        if x2 <= x1 or y2 <= y1:
            problems.append(f"{where}: the corners {_numbers((x1, y1, x2, y2))} enclose no area; left out")
            continue
        objects.append(_Object(name, (x1 - 1, y1 - 1, x2, y2), _FLAGS[flag], where))
    sides = [(annotation.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(re.fullmatch(r"0*[1-9]\d{0,8}", side) for side in sides) else None
    return _Image(path, objects, size, str(file))


def _parse(file: Path) -> Element:
    """The root element of an annotation, by a parser that opens nothing and expands no entity."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(file.read_bytes(), True)
        annotation = builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as XML: {error}") from error
    if annotation.tag != "annotation":
        raise ValueError(f"{file} must have the root element <annotation>, got <{annotation.tag}>")
    return annotation


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it has a document type declaration, which could define entities; remove <!DOCTYPE ...>")


def _corner(element: Element, key: str, where: str) -> float:
    text = (element.findtext(f"bndbox/{key}") or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {key} must be a finite number, got {text!r}")
    return value


def _read_coco(file: Path, split: str | None, problems: list[str]) -> tuple[list[_Image], list[str]]:
    """The images, and the class names by category id."""
    coco = load_coco(file)
    names: dict[int | str, str] = {}
    for number, entry in enumerate(coco.categories):
        name, key = (entry.get("name"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, int | str) or not isinstance(name, str) or not name.strip():
            raise ValueError(f"{file}, categories[{number}]: a category must have an id and a name, got {short(entry)}")
        if key in names:
            raise ValueError(f"{file}, categories[{number}]: the id {key!r} is that of another category too")
        if name in names.values():
            problems.append(f"{file}, categories[{number}]: the name {name!r} comes again; both are one class")
        names[key] = name
    objects: dict[int | str, list[_Object]] = {key: [] for key in coco.images}
    for number, entry in enumerate(coco.annotations):
        image = coco.images[entry["image_id"]]["file_name"]
        where = f"{file}, annotation {entry.get('id', number)} of {image}"
        category = entry.get("category_id")
        if not isinstance(category, int | str) or category not in names:
            raise ValueError(f"{where}: category_id must be the id of a category, got {category!r}")
        where += f" ({names[category]})"
        box, flag = four_numbers(entry.get("bbox")), entry.get("iscrowd", 0)
        if box is None or not all(map(math.isfinite, box)):
            raise ValueError(f"{where}: bbox must be four finite numbers, got {short(entry.get('bbox'))}")
        if flag not in (0, 1):
            raise ValueError(f"{where}: iscrowd must be 0 or 1, got {flag!r}")
        x, y, w, h = box
        if w <= 0 or h <= 0:
            problems.append(f"{where}: the bbox {_numbers(box)} (x, y, width, height) has no area; left out")
            continue
        objects[entry["image_id"]].append(_Object(names[category], (x, y, x + w, y + h), bool(flag), where))
    paths = find_images(file, split, [image["file_name"] for image in coco.images.values()])
    images = [
        _Image(path, objects[key], _stated_size(coco.images[key]), f"{file}, image {key!r}")
        for key, path in zip(coco.images, paths, strict=True)
    ]
    order = sorted(names, key=lambda key: (isinstance(key, str), key))
    return images, list(dict.fromkeys(names[key] for key in order))


def _stated_size(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 else None


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
