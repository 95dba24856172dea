"""Checks of the image lists and boxes of VOC and COCO data sets.

The readers used for training stop at the first error; these checks record it and continue.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sppnet.data.check.items import Box, CheckState, Item, has_one_image, listed_names
from sppnet.data.formats.coco import find_images, four_numbers, shorten
from sppnet.data.formats.voc import (
    images_by_name,
    read_annotation,
    voc_lists,
    without_class_lists,
)
from sppnet.data.listing import walk_files
from sppnet.data.splits import SPLITS, sort_splits
from sppnet.errors import did_you_mean

Key = int | str


def read_voc(folder: Path, gathered: CheckState) -> None:
    """Read the boxes of the images in the lists of a VOC folder or, without lists, of all annotated images."""
    photos, annotations = folder / "JPEGImages", folder / "Annotations"
    files = images_by_name(photos)
    xml_files = (path.relative_to(annotations) for path in walk_files(annotations) if path.suffix == ".xml")
    annotated = [path.with_suffix("").as_posix() for path in xml_files]
    all_lists = voc_lists(folder, "Main")
    lists = {split: all_lists[split] for split in sort_splits(without_class_lists(all_lists))}
    names_by_split: dict[str | None, list[str]] = {}
    for list_split, list_file in lists.items():
        names_by_split[list_split] = listed_names(list_file, files, gathered)
    for split, names in (names_by_split or {None: annotated}).items():
        source = lists.get(split or "", annotations)
        for name in names:
            if not has_one_image(name, files, photos, source, gathered):
                continue
            item, file = gathered.item(files[name][0], split), annotations / f"{name}.xml"
            if not file.is_file():
                gathered.report(file, "missing", f"no such file, but {source} lists it")
            elif len(item.splits) < 2:  # otherwise it has been read for another split
                _voc_boxes(file, item, gathered)
    listed = {name for names in names_by_split.values() for name in names} if lists else set(annotated)
    for name in sorted(files.keys() - listed):
        for path in files[name]:
            if not (annotations / f"{name}.xml").is_file():
                gathered.report(path, "no-annotation", f"no annotation file {annotations / name}.xml")
            elif lists:
                gathered.report(path, "unlisted", f"in none of the lists in {folder / 'ImageSets/Main'}; not checked")
    for name in sorted(set(annotated) - listed - files.keys()):
        gathered.report(annotations / f"{name}.xml", "no-image", f"no image of this name in {photos}")


def _voc_boxes(file: Path, item: Item, gathered: CheckState) -> None:
    skipped: list[str] = []  # the reader skips only boxes without area
    try:
        annotation = read_annotation(file, item.path, skipped)
    except ValueError as error:
        gathered.report(file, "bad-annotation", str(error))
        return
    for reason in skipped:
        gathered.report(file, "zero-area-box", _strip_path(file, reason))
    item.boxes += [Box(obj.name, obj.edges, file, _strip_path(file, obj.where)) for obj in annotation.objects]
    item.stated = None if annotation.size is None else (annotation.size, file)


def _strip_path(file: Path, text: str) -> str:
    return text.removeprefix(f"{file}, ")


def read_coco(file: Path, split: str | None, gathered: CheckState) -> None:
    """Read the images of a COCO JSON file and their boxes."""
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        gathered.report(file, "bad-annotation", f"cannot be read as JSON: {error}")
        return
    for part, default in (("images", None), ("annotations", None), ("categories", [])):
        entries = document.get(part, default) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            gathered.report(file, "bad-annotation", f"expected a JSON object with a list of objects under {part!r}")
            return
    categories = _by_id(file, "categories", "name", document.get("categories", []), gathered)
    items: dict[Key, Item] = {}
    used: set[Path] = set()
    for key, entry in _by_id(file, "images", "file_name", document["images"], gathered).items():
        name = entry["file_name"]
        try:
            (path,) = find_images(file, split, [name])
        except ValueError:
            items[key] = Item(file.parent / name)
            gathered.report(items[key].path, "missing", f"in none of the image folders, but {file} lists it")
            continue
        if path in used:
            gathered.report(file, "bad-annotation", f"image {key!r}: {name} is also the file of another image")
        used.add(path)
        items[key] = gathered.item(path, split)
        height, width = entry.get("height"), entry.get("width")
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            items[key].stated = (height, width), file
    for number, entry in enumerate(document["annotations"]):
        image = _as_key(entry.get("image_id"))
        item = None if image is None else items.get(image)
        where = f"annotation {entry.get('id', number)}"
        if item is None:
            gathered.report(file, "no-image", f"{where}: no image has the id {entry.get('image_id')!r}")
        else:
            _coco_box(file, entry, item, f"{where} of {item.path.name}", categories, gathered)


def _coco_box(
    file: Path,
    entry: dict[str, Any],
    item: Item,
    where: str,
    categories: dict[Key, dict[str, Any]],
    gathered: CheckState,
) -> None:
    box, category = four_numbers(entry.get("bbox")), _as_key(entry.get("category_id"))
    if category is None or category not in categories:
        gathered.report(file, "unknown-class", f"{where}: no category has the id {entry.get('category_id')!r}")
        return
    name = categories[category]["name"]
    if box is None or not all(map(math.isfinite, box)):
        actual = shorten(entry.get("bbox"))
        gathered.report(file, "bad-annotation", f"{where} ({name}): bbox: expected four finite numbers, got {actual}")
    elif min(box[2:]) <= 0:
        gathered.report(file, "zero-area-box", f"{where} ({name}): the bbox {shorten(list(box))} has no area")
    else:
        x, y, w, h = box
        item.boxes.append(Box(name, (x, y, x + w, y + h), file, f"{where} ({name})"))


def _by_id(
    file: Path, part: str, name_key: str, entries: list[dict[str, Any]], gathered: CheckState
) -> dict[Key, dict[str, Any]]:
    """Index entries by id, and report those without a unique id or without a name."""
    by_id: dict[Key, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        key = _as_key(entry.get("id"))
        if key is None or key in by_id or not isinstance(entry.get(name_key), str):
            reason = f"{part}[{number}]: expected a unique id and a {name_key}, got {shorten(entry)}"
            gathered.report(file, "bad-annotation", reason)
        else:
            by_id[key] = entry
    return by_id


def _as_key(value: object) -> Key | None:
    return value if isinstance(value, int | str) else None


def compare_classes(gathered: CheckState) -> None:
    """Report objects of classes that do not occur in the training split."""
    trained = {box.name for item in gathered.items.values() for box in item.boxes if _is_training(item.splits)}
    if not trained:
        return
    reported = set()
    for item in gathered.items.values():
        for box in item.boxes:
            if box.name not in trained and (box.file, box.name) not in reported:
                reported.add((box.file, box.name))
                close = did_you_mean(box.name, trained)
                gathered.report(box.file, "untrained-class", f"{box.where}: no training image has this class{close}")


def _is_training(splits: Iterable[str]) -> bool:
    return any(split.lower().startswith(SPLITS[0]) for split in splits)
