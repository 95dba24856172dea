"""Reader of COCO JSON files, shared by detection data sets and box files, and of Roboflow's COCO exports."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sppnet.data.formats.annotations import (
    check_images,
    cut,
    format_numbers,
    has_area,
    report_similar,
    shorten,
)
from sppnet.data.items import Box, Item, Part, Problems
from sppnet.data.listing import find_file
from sppnet.data.splits import is_system_file, list_folders, sort_splits
from sppnet.errors import did_you_mean

Key = int | str

_MAX_SIDE = 1_000_000_000
ROBOFLOW = "_annotations.coco.json"
# COCO keeps the files of other tasks in the same folder as the object annotations.
_OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")


class Coco(NamedTuple):
    """Contents of a COCO file; ``images`` is keyed by id, and each annotation has the ``image_id`` of an image.

    Attributes:
        images: entries with an id and a file_name.
        annotations: entries of these images.
        categories: names by id.
        groups: names of supercategories.
    """

    images: dict[Key, dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: dict[Key, str]
    groups: frozenset[str] = frozenset()


def find_splits(root: Path) -> dict[str | None, Path]:
    """Find the annotation files of a folder by split, or return a .json file itself.

    They are annotations/SPLIT.json or annotations/instances_SPLIT.json, or else SPLIT/_annotations.coco.json of
    Roboflow.

    Raises:
        ValueError: two files of one split.
    """
    if root.is_file():
        return {None: root} if root.suffix.lower() == ".json" else {}
    files = coco_files(root)
    if not files and (root / ROBOFLOW).is_file():
        return {None: root / ROBOFLOW}
    files = files or {path.name: path / ROBOFLOW for path in list_folders(root) if (path / ROBOFLOW).is_file()}
    return {split: files[split] for split in sort_splits(files)}


def coco_files(root: Path) -> dict[str, Path]:
    """Find the object annotations of each split: annotations/SPLIT.json or annotations/instances_SPLIT.json."""
    files: dict[str, Path] = {}
    for path in sorted((root / "annotations").glob("*.json")):
        split = path.stem.removeprefix("instances_")
        if is_system_file(path.name) or path.name.startswith(_OTHER_TASKS):
            continue
        if split in files:
            names = f"{files[split].name}, {path.name}"
            raise ValueError(f"{root}: expected one annotation file for the split {split}, got {names}")
        files[split] = path
    return files


def read(root: Path, split: str | None, source: Path, problems: Problems) -> Part:  # noqa: ARG001
    """Read the images of a COCO file with their boxes, and the classes sorted by category id.

    Args:
        root: data set.
        split: name of the split, which is also a name of the folder of its images.
        source: JSON file.
        problems: receives all problems.

    Raises:
        OSError: the file cannot be read.
    """
    known = len(problems)
    coco = parse(source, problems)
    names = class_names(source, coco, problems)
    items = find_images(source, split, coco.images, problems)
    boxes: dict[Key, list[Box]] = {key: [] for key in coco.images}
    for number, entry in enumerate(coco.annotations):
        key = entry["image_id"]
        where = f"annotation {shorten(entry.get('id', number))} of {cut(coco.images[key]['file_name'])}"
        if box := _box(source, entry, where, coco.categories, problems):
            boxes[key].append(box)
    for key, item in items.items():
        item.boxes = tuple(boxes[key])
    check_images(list(items.values()), source, known, problems)
    return Part(list(items.values()), tuple(dict.fromkeys(names)))


def load_coco(file: Path) -> Coco:
    """Read a COCO JSON file; the images and the ``image_id`` of each annotation are validated.

    Raises:
        ValueError: if the file is malformed; the message names the entries.
    """
    problems = Problems()
    coco = parse(file, problems)
    problems.raise_errors()
    return coco


def parse(file: Path, problems: Problems) -> Coco:
    """Read the entries of a COCO JSON file, and report and drop those without a valid id or name."""
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        problems.report(file, "bad-annotation", f"cannot be read as JSON: {error}")
        return Coco({}, [], {})
    lists: dict[str, list[dict[str, Any]]] = {}
    for part, default in (("images", None), ("annotations", None), ("categories", [])):
        entries = document.get(part, default) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            reason = f"is not a COCO file: expected a JSON object with a list of objects under {part!r}"
            problems.report(file, "bad-annotation", f"{reason}, got {shorten(entries if entries else document)}")
            return Coco({}, [], {})
        lists[part] = entries
    categories: dict[Key, str] = {}
    first: dict[str, int] = {}
    for number, entry in enumerate(lists["categories"]):
        where, key, name = f"categories[{number}]", id_of(entry.get("id")), entry.get("name")
        if key is None or not isinstance(name, str) or not name.strip():
            problems.report(file, "bad-annotation", f"{where}: expected an id and a name, got {shorten(entry)}")
        elif key in categories:
            problems.report(file, "bad-annotation", f"{where}: expected a unique category id, got duplicate {key!r}")
        else:
            categories[key] = name.strip()
            other = first.setdefault(name.strip(), number)
            if other != number:
                reason = f"{where}: duplicate name {name.strip()!r} of categories[{other}]; merged into one class"
                problems.report(file, "similar-classes", reason)
            elif name != name.strip():
                problems.report(file, "similar-classes", f"{where}: name {name!r} with spaces around it; removed")
    report_similar(first, file, problems)
    images: dict[Key, dict[str, Any]] = {}
    for number, entry in enumerate(lists["images"]):
        where, key = f"images[{number}]", id_of(entry.get("id"))
        if key is None or not isinstance(entry.get("file_name"), str):
            problems.report(file, "bad-annotation", f"{where}: expected an id and a file_name, got {shorten(entry)}")
        elif key in images:
            problems.report(file, "bad-annotation", f"{where}: expected a unique image id, got duplicate {key!r}")
        else:
            images[key] = entry
    annotations = []
    for number, entry in enumerate(lists["annotations"]):
        key = id_of(entry.get("image_id"))
        if key is None or key not in images:
            reason = (
                f"annotations[{number}]: image_id: expected the id of an image, got {shorten(entry.get('image_id'))}"
            )
            problems.report(file, "bad-annotation", reason)
        else:
            annotations.append(entry)
    groups = (
        entry.get("supercategory") for entry in lists["categories"] if entry.get("supercategory") != entry.get("name")
    )
    return Coco(images, annotations, categories, frozenset(name for name in groups if isinstance(name, str)))


def id_of(value: object) -> Key | None:
    """Return a JSON value if it is a legal id, else None."""
    return value if isinstance(value, int | str) else None


def class_names(file: Path, coco: Coco, problems: Problems) -> list[str]:
    """Return the class names by id, without Roboflow's unused category 0 that only groups the others."""
    order = sorted(coco.categories, key=lambda key: (isinstance(key, str), key))
    name = coco.categories.get(0)
    if name not in coco.groups or any(entry.get("category_id") == 0 for entry in coco.annotations):
        return [coco.categories[key] for key in order]
    reason = f"category 0 ({name}) has no annotations and is the supercategory of others; not used as a class"
    problems.report(file, "passed-over", reason)
    return [coco.categories[key] for key in order if key != 0]


def find_image_file(file: Path, split: str | None, name: str) -> Path | None:
    """Return the image of a name in the folders that COCO data sets use for images; None if it is in none of them."""
    return next((path for folder in _image_folders(file, split) if (path := find_file(folder, name))), None)


def _image_folders(file: Path, split: str | None) -> Iterable[Path]:
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = split or file.stem.removeprefix("instances_")
    return dict.fromkeys((base / split, base / "images" / split, base / "images", base, file.parent))


def find_images(
    file: Path, split: str | None, entries: dict[Key, dict[str, Any]], problems: Problems
) -> dict[Key, Item]:
    """Return the images whose files exist, and report the others and repeated files."""
    items: dict[Key, Item] = {}
    used: set[Path] = set()
    hint = True
    for key, entry in entries.items():
        name, where = entry["file_name"], f"image {key!r}"
        path = find_image_file(file, split, name)
        if path is None:
            searched = ", ".join(map(str, _image_folders(file, split)))
            close = _close_name(file, split, name) if hint else ""
            hint = False
            problems.report(file, "missing", f"{where}: {shorten(name)} is missing; searched {searched}{close}")
        elif path in used:
            problems.report(
                file, "bad-annotation", f"{where}: expected each image once, got {cut(name)}, the file of another image"
            )
        else:
            used.add(path)
            height, width = entry.get("height"), entry.get("width")
            stated = (
                (height, width)
                if type(height) is int
                and type(width) is int
                and min(height, width) > 0
                and max(height, width) < _MAX_SIDE
                else None
            )
            items[key] = Item(path, stated=stated, where=f"{file}, {where}", file=file)
    return items


def _close_name(file: Path, split: str | None, name: str) -> str:
    folder = next((folder for folder in _image_folders(file, split) if folder.is_dir()), None)
    names = [path.name for path in folder.iterdir()] if folder else []
    return did_you_mean(name.replace("\\", "/").rpartition("/")[2][:200], names)


def _box(file: Path, entry: dict[str, Any], where: str, names: dict[Key, str], problems: Problems) -> Box | None:
    """Return the box of an annotation, or report what is wrong with it."""
    category, flag = id_of(entry.get("category_id")), entry.get("iscrowd", 0)
    if category is None or category not in names:
        reason = f"{where}: category_id: expected the id of a category, got {shorten(entry.get('category_id'))}"
        problems.report(file, "unknown-class", reason)
        return None
    where += f" ({cut(names[category])})"
    box = four_numbers(entry.get("bbox"))
    if box is None or not all(map(math.isfinite, box)):
        reason = f"{where}: bbox: expected four finite numbers, got {shorten(entry.get('bbox'))}"
        problems.report(file, "bad-annotation", reason)
        return None
    if flag not in (0, 1):
        problems.report(file, "bad-annotation", f"{where}: iscrowd: expected 0 or 1, got {shorten(flag)}")
        return None
    x, y, w, h = box
    if w <= 0 or h <= 0 or not has_area((x, y, x + w, y + h)):
        reason = f"{where}: bbox {format_numbers(box)} (x, y, width, height) has no area; dropped"
        problems.report(file, "zero-area-box", reason)
        return None
    return Box(names[category], (x, y, x + w, y + h), bool(flag), where)


def four_numbers(values: object) -> tuple[float, float, float, float] | None:
    """Return a JSON list of four numbers, possibly infinite or NaN, as floats; None for any other value."""
    if not isinstance(values, list) or len(values) != 4 or any(type(value) not in (int, float) for value in values):
        return None
    try:
        return float(values[0]), float(values[1]), float(values[2]), float(values[3])
    except OverflowError:  # an integer of hundreds of digits
        return None
