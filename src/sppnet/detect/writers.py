"""Detections written as annotation files: COCO, YOLO, CSV and VOC."""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path, PurePath
from typing import Literal
from xml.etree import ElementTree

from sppnet.detect.predict import DetectionResult
from sppnet.errors import check_choice, check_classes, import_optional
from sppnet.io.files import write_json
from sppnet.io.remote import write_text

Format = Literal["coco", "yolo", "csv", "voc"]

# Entries of the folder that could be annotations made by others, which are never overwritten.
_RESERVED = {"coco": (), "yolo": ("labels", "data.yaml"), "csv": (), "voc": ("Annotations",)}


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
            - ``voc``: Annotations/NAME.xml with 1-based inclusive corners, rounded to whole pixels.
        classes: class names, in the order of their ids.

    Raises:
        ValueError: unknown format, duplicate or missing classes, or existing annotations that might be overwritten.
    """
    check_folder(folder, format)
    check_classes(classes)
    if unknown := sorted({label for result in results for label in result.labels} - set(classes)):
        raise ValueError(f"classes: expected all classes of the results, got {len(classes)} names without {unknown[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    writers = {"coco": _write_coco, "yolo": _write_yolo, "csv": _write_csv, "voc": _write_voc}
    writers[format](results, folder, classes)


def check_folder(folder: Path, format: str) -> None:
    """Raise ValueError for an unknown format, or if its files might overwrite annotations in the folder."""
    check_choice("format", format, _RESERVED)
    for name in _RESERVED[format]:
        if (folder / name).exists():
            raise ValueError(f"{folder / name} already exists and might hold annotations; choose another output folder")


def _write_coco(results: Sequence[DetectionResult], folder: Path, classes: Sequence[str]) -> None:
    ids = {name: number for number, name in enumerate(classes, start=1)}
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, (name, result) in enumerate(zip(_relative_names(results), results, strict=True), start=1):
        height, width = result.size
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for label, score, (x1, y1, x2, y2) in _objects(result):
            box = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[label], "bbox": box}
            annotations.append(entry | {"score": score, "area": round(box[2] * box[3], 3), "iscrowd": 0})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    write_json({"images": images, "categories": categories, "annotations": annotations}, folder / "predictions.json")


def _write_yolo(results: Sequence[DetectionResult], folder: Path, classes: Sequence[str]) -> None:
    yaml = import_optional("yaml", "YOLO data sets")
    (folder / "labels").mkdir()
    for name, result in zip(_file_names(results, ".txt"), results, strict=True):
        height, width = result.size
        lines = []
        for label, score, (x1, y1, x2, y2) in _objects(result):
            fractions = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{classes.index(label)} {' '.join(f'{value:.7f}' for value in fractions)} {score}\n")
        write_text("".join(lines), folder / "labels" / name)
    content = {"val": "images", "names": dict(enumerate(classes))}  # readers require a split
    write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), folder / "data.yaml")


def _write_csv(results: Sequence[DetectionResult], folder: Path, classes: Sequence[str]) -> None:  # noqa: ARG001
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "label", "score", "x1", "y1", "x2", "y2"))
    for name, result in zip(_relative_names(results), results, strict=True):
        writer.writerows((name, label, score, *box) for label, score, box in _objects(result))
    write_text(text.getvalue(), folder / "predictions.csv")


def _write_voc(results: Sequence[DetectionResult], folder: Path, classes: Sequence[str]) -> None:  # noqa: ARG001
    (folder / "Annotations").mkdir()
    for name, result in zip(_file_names(results, ".xml"), results, strict=True):
        root = ElementTree.Element("annotation")
        _add_texts(root, filename=PurePath(result.source).name, path=result.source)
        height, width = result.size
        _add_texts(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
        for label, score, (x1, y1, x2, y2) in _objects(result):
            entry = ElementTree.SubElement(root, "object")
            _add_texts(entry, name=label, difficult=0, score=score)
            xmin, ymin = round(x1) + 1, round(y1) + 1
            corners = {"xmin": xmin, "ymin": ymin, "xmax": max(round(x2), xmin), "ymax": max(round(y2), ymin)}
            _add_texts(ElementTree.SubElement(entry, "bndbox"), **corners)
        ElementTree.indent(root)
        write_text(ElementTree.tostring(root, encoding="unicode") + "\n", folder / "Annotations" / name)


def _add_texts(parent: ElementTree.Element, **texts: object) -> None:
    for tag, text in texts.items():  # XML cannot represent control characters
        ElementTree.SubElement(parent, tag).text = re.sub(r"[\x00-\x1f\ufffe\uffff]", "\ufffd", str(text))


def _objects(result: DetectionResult) -> list[tuple[str, float, list[float]]]:
    """Return label, score and xyxy edges of each object, without the digits that float32 does not have."""
    rows = zip(result.labels, result.scores.tolist(), result.boxes.tolist(), strict=True)
    return [(label, round(score, 6), [round(edge, 3) for edge in box]) for label, score, box in rows]


def _relative_names(results: Sequence[DetectionResult]) -> list[str]:
    paths = [Path(os.path.abspath(result.source)) for result in results]  # noqa: PTH100 (also for names without a file)
    base = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return _unique(path.relative_to(base) for path in paths)


def _file_names(results: Sequence[DetectionResult], extension: str) -> list[str]:
    return _unique(PurePath(PurePath(result.source).stem + extension) for result in results)


def _unique(names: Iterable[PurePath]) -> list[str]:
    """Append -2, -3, ... to repeated names, before the extension; file systems may ignore case."""
    unique: dict[str, str] = {}
    for path in names:
        name, numbers = path.as_posix(), count(2)
        while name.casefold() in unique:
            name = (path.parent / f"{path.stem}-{next(numbers)}{path.suffix}").as_posix()
        unique[name.casefold()] = name
    return list(unique.values())
