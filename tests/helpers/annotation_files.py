"""Writers of small images with VOC, COCO and YOLO annotations."""

import json
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image


def write_image(path: Path, width: int = 40, height: int = 30, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    return path


def object_xml(name: str, *corners: object, rest: str = "") -> str:
    pairs = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{key}>{value}</{key}>" for key, value in pairs)
    return f"<object><name>{name}</name>{rest}<bndbox>{box}</bndbox></object>"


def write_annotation(
    root: Path, name: str, *objects: str, size: tuple[object, object] | None = None, image: str = ".jpg"
) -> None:
    """Write a VOC annotation, and its image of 30 x 40 pixels (height x width) unless `image` is empty."""
    if image:
        write_image(root / "JPEGImages" / f"{name}{image}")
    sides = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    file = root / "Annotations" / f"{name}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation>{sides}{''.join(objects)}</annotation>", encoding="utf-8")


def write_list(root: Path, split: str, text: str) -> None:
    file = root / "ImageSets/Main" / f"{split}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def coco_document(**changes: Any) -> dict[str, Any]:
    """Return the contents of a COCO file with two images, the second without objects."""
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "height": 30, "width": 40},
            {"id": 3, "file_name": "a.jpg", "height": 30, "width": 40},
        ],
        "annotations": [
            {"id": 11, "image_id": 7, "category_id": 18, "bbox": [0, 2.5, 10, 20], "iscrowd": 0},
            {"id": 12, "image_id": 7, "category_id": 2, "bbox": [1, 1, 5, 5], "iscrowd": 1},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat"}],
    } | changes


def write_json(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


YOLO_CONFIG = "path: .\ntrain: images/train\nnames:\n  0: dog\n  1: cat\n"


def write_yolo(root: Path, *lines: str, config: str | None = YOLO_CONFIG, splits: tuple[str, ...] = ("train",)) -> Path:
    """Write the images a and b of 30 x 40 pixels (height x width) in each split, and the label file of a."""
    root.mkdir(parents=True, exist_ok=True)
    for split in splits:
        for name in ("a", "b"):
            write_image(root / f"images/{split}/{name}.jpg")
        (root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
        (root / f"labels/{split}/a.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (root / f"labels/{split}/b.txt").write_text("")
    if config is not None:
        (root / "data.yaml").write_text(config, encoding="utf-8")
    return root
