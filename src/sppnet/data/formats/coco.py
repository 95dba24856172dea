"""JSON files of COCO: what detection sets and box files have in common."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from sppnet.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    format_numbers,
)
from sppnet.errors import list_some

# Other tasks on the images of COCO; their files lie beside those of the objects.
_OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")


class Coco(NamedTuple):
    """A COCO file: images by id, and annotations that each have the ``image_id`` of one of them."""

    images: dict[int | str, dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def coco_files(root: Path) -> dict[str, Path]:
    """The object files of a folder by their split: annotations/SPLIT.json or annotations/instances_SPLIT.json."""
    found: dict[str, Path] = {}
    for path in sorted((root / "annotations").glob("*.json")):
        split = path.stem.removeprefix("instances_")
        if split in found:
            raise ValueError(f"{root} must have one file for the split {split}, got {found[split].name}, {path.name}")
        if not path.name.startswith(_OTHER_TASKS):
            found[split] = path
    return found


def find_images(file: Path, split: str | None, names: list[str]) -> list[Path]:
    """The image files of these names, in the folders where sets of this layout have them.

    Raises:
        ValueError: if some are not there.
    """
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = split or file.stem.removeprefix("instances_")
    folders = [base / split, base / "images" / split, base / "images", base, file.parent]
    found = [next((folder / name for folder in folders if (folder / name).is_file()), None) for name in names]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        places = ", ".join(dict.fromkeys(str(folder) for folder in folders))
        raise ValueError(f"images of {file} are missing: {list_some(missing)}; looked in {places}")
    return [path for path in found if path is not None]


def load_coco(file: Path) -> Coco:
    """Reads a JSON file of COCO and checks the images, and the image of each annotation.

    Raises:
        ValueError: if it is no such file; the message names the entry.
    """
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    for key, default in (("images", None), ("annotations", None), ("categories", [])):
        entries = document.get(key, default) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{file} must be a COCO file, a JSON object with a list of objects under {key!r}")
    images: dict[int | str, dict[str, Any]] = {}
    for number, entry in enumerate(document["images"]):
        where = f"{file}, images[{number}]"
        if not isinstance(entry.get("id"), int | str) or not isinstance(entry.get("file_name"), str):
            raise ValueError(f"{where}: an image must have an id and a file_name, got {short(entry)}")
        if entry["id"] in images:
            raise ValueError(f"{where}: the id {entry['id']!r} is that of another image too")
        images[entry["id"]] = entry
    for number, entry in enumerate(document["annotations"]):
        key = entry.get("image_id")
        if not isinstance(key, int | str) or key not in images:
            raise ValueError(f"{file}, annotations[{number}]: image_id must be the id of an image, got {key!r}")
    return Coco(images, document["annotations"], document.get("categories", []))


def four_numbers(values: object) -> tuple[float, float, float, float] | None:
    """Four numbers of a JSON list, which may be infinite or NaN; None if it is anything else."""
    if not isinstance(values, list) or len(values) != 4 or any(type(value) not in (int, float) for value in values):
        return None
    try:
        return float(values[0]), float(values[1]), float(values[2]), float(values[3])
    except OverflowError:  # an integer of hundreds of digits
        return None


def short(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) < 100 else f"{text[:97]}..."


def read_coco(file: Path, split: str | None, problems: list[str]) -> tuple[list[AnnotatedImage], list[str]]:
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
    objects: dict[int | str, list[AnnotatedObject]] = {key: [] for key in coco.images}
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
            problems.append(f"{where}: the bbox {format_numbers(box)} (x, y, width, height) has no area; left out")
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
