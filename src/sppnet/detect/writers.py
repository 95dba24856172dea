"""Detections and annotated objects in the text of annotation files: COCO, YOLO, CSV and VOC."""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

from sppnet.detect.predict import DetectionResult
from sppnet.errors import check_choice, check_classes, import_optional
from sppnet.io.files import write_json
from sppnet.io.remote import write_text

Format = Literal["coco", "yolo", "csv", "voc"]

# Entries of the folder that could be annotations made by others, which are never overwritten.
_RESERVED = {"coco": (), "yolo": ("labels", "data.yaml"), "csv": (), "voc": ("Annotations",)}


class AnnotatedObject(NamedTuple):
    """An object: class, xyxy edges in pixels, score of a detection, and whether evaluation ignores it."""

    label: str
    box: tuple[float, ...]
    score: float | None = None
    difficult: bool = False


class AnnotatedImage(NamedTuple):
    """An image: its path, its (height, width) in pixels, and its objects."""

    name: str
    size: tuple[int, int]
    objects: tuple[AnnotatedObject, ...]


def write_predictions(results: Sequence[DetectionResult], folder: Path, format: Format, classes: Sequence[str]) -> None:
    """Write detections as annotation files that other tools can read.

    ``coco`` and ``csv`` name images by their path relative to the common folder of all images, ``yolo`` and ``voc`` by
    their file name. Names that occur twice get -2, -3 and so on.

    Args:
        results: detections, one result per image.
        folder: output folder, created if necessary.
        format: files to write.

            - ``coco``: predictions.json with a score per annotation; category ids start at 1.
            - ``yolo``: labels/NAME.txt with class, center x and y, width, height and score per line, and data.yaml.
            - ``csv``: predictions.csv with one row per object and xyxy edges; images without objects have no row.
            - ``voc``: Annotations/NAME.xml, see :func:`voc_text`.
        classes: class names, in the order of their ids.

    Raises:
        ValueError: unknown format, duplicate or missing classes, or existing annotations that might be overwritten.
    """
    check_folder(folder, format)
    check_classes(classes)
    if unknown := sorted({label for result in results for label in result.labels} - set(classes)):
        raise ValueError(f"classes: expected all classes of the results, got {len(classes)} names without {unknown[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    sources = [PurePath(result.source) for result in results]
    images = [AnnotatedImage(result.source, result.size, _objects(result)) for result in results]
    if format in ("coco", "csv"):
        named = [image._replace(name=name) for image, name in zip(images, _relative_names(sources), strict=True)]
        if format == "csv":
            write_text(csv_text(named, with_scores=True), folder / "predictions.csv")
        else:
            write_json(coco_content(named, classes), folder / "predictions.json")
        return
    extension = ".txt" if format == "yolo" else ".xml"
    subfolder = folder / ("labels" if format == "yolo" else "Annotations")
    subfolder.mkdir()
    ids = {name: number for number, name in enumerate(classes)}
    for image, name in zip(images, unique_names(PurePath(path.stem + extension) for path in sources), strict=True):
        write_text(yolo_text(image, ids) if format == "yolo" else voc_text(image), subfolder / name)
    if format == "yolo":
        write_text(yolo_config({"val": "images"}, classes), folder / "data.yaml")  # readers require a split


def check_folder(folder: Path, format: str) -> None:
    """Raise ValueError for an unknown format, or if its files might overwrite annotations in the folder."""
    check_choice("format", format, _RESERVED)
    for name in _RESERVED[format]:
        if (folder / name).exists():
            raise ValueError(f"{folder / name} already exists and might hold annotations; choose another output folder")


def coco_content(images: Sequence[AnnotatedImage], classes: Sequence[str]) -> dict[str, Any]:
    """Return the content of a COCO file, with category ids from 1 and the flag ``iscrowd`` for difficult objects."""
    ids = {name: number for number, name in enumerate(classes, start=1)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        entries.append({"id": image_id, "file_name": image.name, "height": image.size[0], "width": image.size[1]})
        for label, (x1, y1, x2, y2), score, difficult in image.objects:
            box = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[label], "bbox": box}
            scored = {} if score is None else {"score": score}
            annotations.append(entry | scored | {"area": round(box[2] * box[3], 3), "iscrowd": int(difficult)})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": entries, "categories": categories, "annotations": annotations}


def yolo_text(image: AnnotatedImage, ids: Mapping[str, int]) -> str:
    """Return the lines of a YOLO label file: class id, center x and y, width, height, and the score of a detection."""
    height, width = image.size
    lines = []
    for label, (x1, y1, x2, y2), score, _ in image.objects:
        fractions = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        scored = "" if score is None else f" {score}"
        lines.append(f"{ids[label]} {' '.join(f'{value:.10f}' for value in fractions)}{scored}\n")
    return "".join(lines)


def yolo_config(splits: Mapping[str, str], classes: Sequence[str]) -> str:
    """Return the text of data.yaml, with the folder of images of each split."""
    yaml = import_optional("yaml", "YOLO data sets")
    text: str = yaml.safe_dump({**splits, "names": dict(enumerate(classes))}, allow_unicode=True, sort_keys=False)
    return text


def csv_text(images: Sequence[AnnotatedImage], *, with_scores: bool = False) -> str:
    """Return a CSV file with one row per object and xyxy edges."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "label", *["score"] * with_scores, "x1", "y1", "x2", "y2"))
    for image in images:
        writer.writerows((image.name, label, *[score] * with_scores, *box) for label, box, score, _ in image.objects)
    return text.getvalue()


def voc_text(image: AnnotatedImage) -> str:
    """Return a VOC annotation, with 1-based inclusive corners that are rounded to whole pixels.

    Boxes are at least two pixels wide and high, because readers drop those with equal corners.
    """
    root = ElementTree.Element("annotation")
    _add_texts(root, filename=PurePath(image.name).name, path=image.name)
    height, width = image.size
    _add_texts(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    for label, (x1, y1, x2, y2), score, difficult in image.objects:
        entry = ElementTree.SubElement(root, "object")
        _add_texts(entry, name=label, difficult=int(difficult), **({} if score is None else {"score": score}))
        (xmin, xmax), (ymin, ymax) = _voc_corners(x1, x2, width), _voc_corners(y1, y2, height)
        _add_texts(ElementTree.SubElement(entry, "bndbox"), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _voc_corners(begin: float, end: float, side: int) -> tuple[int, int]:
    first = max(min(round(begin) + 1, side - 1), 1)
    return first, max(round(end), first + 1)


def _add_texts(parent: ElementTree.Element, **texts: object) -> None:
    for tag, text in texts.items():  # XML cannot represent control characters
        ElementTree.SubElement(parent, tag).text = re.sub(r"[\x00-\x1f\ufffe\uffff]", "\ufffd", str(text))


def round_box(box: Sequence[float]) -> tuple[float, ...]:
    """Remove the digits that float32 does not have."""
    return tuple(round(edge, 3) for edge in box)


def _objects(result: DetectionResult) -> tuple[AnnotatedObject, ...]:
    rows = zip(result.labels, result.boxes.tolist(), result.scores.tolist(), strict=True)
    return tuple(AnnotatedObject(label, round_box(box), round(score, 6)) for label, box, score in rows)


def _relative_names(sources: Sequence[PurePath]) -> list[str]:
    paths = [Path(os.path.abspath(source)) for source in sources]  # noqa: PTH100 (also for names without a file)
    base = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return unique_names(path.relative_to(base) for path in paths)


def unique_names(names: Iterable[PurePath]) -> list[str]:
    """Append -2, -3, ... to repeated names, before the extension; file systems may ignore case."""
    unique: dict[str, str] = {}
    numbers: defaultdict[PurePath, count[int]] = defaultdict(lambda: count(2))
    for path in names:
        name = path.as_posix()
        while name.casefold() in unique:
            name = (path.parent / f"{path.stem}-{next(numbers[path])}{path.suffix}").as_posix()
        unique[name.casefold()] = name
    return list(unique.values())
