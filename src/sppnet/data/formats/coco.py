"""Parsing of COCO JSON files, shared by detection data sets and box files."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from sppnet.data.formats.annotations import AnnotatedImage, AnnotatedObject, format_numbers
from sppnet.errors import list_some

# COCO keeps the files of other tasks in the same folder as the object annotations.
_OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")


class Coco(NamedTuple):
    """Contents of a COCO file; ``images`` is keyed by id, and each annotation has the ``image_id`` of an image."""

    images: dict[int | str, dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def coco_files(root: Path) -> dict[str, Path]:
    """Find the object annotations of each split: annotations/SPLIT.json or annotations/instances_SPLIT.json."""
    files: dict[str, Path] = {}
    for path in sorted((root / "annotations").glob("*.json")):
        split = path.stem.removeprefix("instances_")
        if split in files:
            names = f"{files[split].name}, {path.name}"
            raise ValueError(f"{root}: expected one annotation file for the split {split}, got {names}")
        if not path.name.startswith(_OTHER_TASKS):
            files[split] = path
    return files


def find_images(file: Path, split: str | None, names: list[str]) -> list[Path]:
    """Find image files by name in the folders that COCO data sets use for images.

    Raises:
        ValueError: if any image is missing.
    """
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = split or file.stem.removeprefix("instances_")
    folders = [base / split, base / "images" / split, base / "images", base, file.parent]
    paths = [next((folder / name for folder in folders if (folder / name).is_file()), None) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        searched = ", ".join(dict.fromkeys(str(folder) for folder in folders))
        raise ValueError(f"images named in {file} are missing: {list_some(missing)}; searched {searched}")
    return [path for path in paths if path is not None]


def load_coco(file: Path) -> Coco:
    """Read a COCO JSON file; the images and the ``image_id`` of each annotation are validated.

    Raises:
        ValueError: if the file is malformed; the message names the entry.
    """
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    for key, default in (("images", None), ("annotations", None), ("categories", [])):
        entries = document.get(key, default) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f"{file} is not a COCO file: it must be a JSON object with a list of objects under {key!r}"
            )
    images: dict[int | str, dict[str, Any]] = {}
    for number, entry in enumerate(document["images"]):
        where = f"{file}, images[{number}]"
        if not isinstance(entry.get("id"), int | str) or not isinstance(entry.get("file_name"), str):
            raise ValueError(f"{where}: expected an id and a file_name, got {shorten(entry)}")
        if entry["id"] in images:
            raise ValueError(f"{where}: expected a unique image id, got duplicate {entry['id']!r}")
        images[entry["id"]] = entry
    for number, entry in enumerate(document["annotations"]):
        key = entry.get("image_id")
        if not isinstance(key, int | str) or key not in images:
            raise ValueError(f"{file}, annotations[{number}]: image_id: expected the id of an image, got {key!r}")
    return Coco(images, document["annotations"], document.get("categories", []))


def four_numbers(values: object) -> tuple[float, float, float, float] | None:
    """Return a JSON list of four numbers, possibly infinite or NaN, as floats; None for any other value."""
    if not isinstance(values, list) or len(values) != 4 or any(type(value) not in (int, float) for value in values):
        return None
    try:
        return float(values[0]), float(values[1]), float(values[2]), float(values[3])
    except OverflowError:  # an integer of hundreds of digits
        return None


def shorten(value: object) -> str:
    """Format a value for a message, truncated to 100 characters."""
    text = repr(value)
    return text if len(text) < 100 else f"{text[:97]}..."


def read_coco(file: Path, split: str | None, problems: list[str]) -> tuple[list[AnnotatedImage], list[str]]:
    """Read the annotated images and the class names, sorted by category id; problems are appended to `problems`."""
    coco = load_coco(file)
    names: dict[int | str, str] = {}
    for number, entry in enumerate(coco.categories):
        name, key = (entry.get("name"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, int | str) or not isinstance(name, str) or not name.strip():
            raise ValueError(f"{file}, categories[{number}]: expected an id and a name, got {shorten(entry)}")
        if key in names:
            raise ValueError(f"{file}, categories[{number}]: expected a unique category id, got duplicate {key!r}")
        if name in names.values():
            problems.append(f"{file}, categories[{number}]: duplicate name {name!r}; merged into one class")
        names[key] = name
    objects: dict[int | str, list[AnnotatedObject]] = {key: [] for key in coco.images}
    for number, entry in enumerate(coco.annotations):
        image = coco.images[entry["image_id"]]["file_name"]
        where = f"{file}, annotation {entry.get('id', number)} of {image}"
        category = entry.get("category_id")
        if not isinstance(category, int | str) or category not in names:
            raise ValueError(f"{where}: category_id: expected the id of a category, got {category!r}")
        where += f" ({names[category]})"
        box, flag = four_numbers(entry.get("bbox")), entry.get("iscrowd", 0)
        if box is None or not all(map(math.isfinite, box)):
            raise ValueError(f"{where}: bbox: expected four finite numbers, got {shorten(entry.get('bbox'))}")
        if flag not in (0, 1):
            raise ValueError(f"{where}: iscrowd: expected 0 or 1, got {flag!r}")
        x, y, w, h = box
        if w <= 0 or h <= 0:
            problems.append(f"{where}: bbox {format_numbers(box)} (x, y, width, height) has no area; dropped")
            continue
        objects[entry["image_id"]].append(AnnotatedObject(names[category], (x, y, x + w, y + h), bool(flag), where))
    paths = find_images(file, split, [image["file_name"] for image in coco.images.values()])
    images = [
        AnnotatedImage(path, objects[key], _stated_size(coco.images[key]), f"{file}, image {key!r}")
        for key, path in zip(coco.images, paths, strict=True)
    ]
    order = sorted(names, key=lambda key: (isinstance(key, str), key))
    return images, list(dict.fromkeys(names[key] for key in order))


def _stated_size(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 else None
