"""What is wrong with the lists and boxes of VOC and COCO data sets.

The readers of training stop at the first thing that cannot be; here it is named, and reading goes on.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sppnet.data.check.items import Box, Gathered, Item, listed_names, one_image
from sppnet.data.formats.coco import find_images, four_numbers, short
from sppnet.data.formats.voc import (
    images_by_name,
    read_annotation,
    voc_lists,
    whole_lists,
)
from sppnet.data.listing import walk_files
from sppnet.data.splits import SPLITS, sort_splits
from sppnet.errors import suggest

Key = int | str


def read_voc(folder: Path, gathered: Gathered) -> None:
    """The images that the lists of a VOC folder name, or that are annotated where it has none, with their boxes."""
    photos, annotations = folder / "JPEGImages", folder / "Annotations"
    files = images_by_name(photos)
    every = (path.relative_to(annotations) for path in walk_files(annotations) if path.suffix == ".xml")
    annotated = [path.with_suffix("").as_posix() for path in every]
    found = voc_lists(folder, "Main")
    lists = {split: found[split] for split in sort_splits(whole_lists(found))}
    named: dict[str | None, list[str]] = {}
    for listed_in, file in lists.items():
        named[listed_in] = listed_names(file, files, gathered)
    for split, names in (named or {None: annotated}).items():
        of = lists.get(split or "", annotations)
        for name in names:
            if not one_image(name, files, photos, of, gathered):
                continue
            item, file = gathered.item(files[name][0], split), annotations / f"{name}.xml"
            if not file.is_file():
                gathered.report(file, "missing", f"no such file, but {of} names it")
            elif len(item.splits) < 2:  # else it has been read
                _voc_boxes(file, item, gathered)
    listed = {name for names in named.values() for name in names} if lists else set(annotated)
    for name in sorted(files.keys() - listed):
        for path in files[name]:
            if not (annotations / f"{name}.xml").is_file():
                gathered.report(path, "no-annotation", f"no {annotations / name}.xml")
            elif lists:
                gathered.report(path, "unlisted", f"in no list of {folder / 'ImageSets/Main'}; not checked")
    for name in sorted(set(annotated) - listed - files.keys()):
        gathered.report(annotations / f"{name}.xml", "no-image", f"no image of this name in {photos}")


def _voc_boxes(file: Path, item: Item, gathered: Gathered) -> None:
    empty: list[str] = []  # what the reader leaves out are boxes without area, and nothing else
    try:
        annotation = read_annotation(file, item.path, empty)
    except ValueError as error:
        gathered.report(file, "bad-annotation", str(error))
        return
    for reason in empty:
        gathered.report(file, "zero-area-box", _without(file, reason))
    item.boxes += [Box(one.name, one.edges, file, _without(file, one.where)) for one in annotation.objects]
    item.stated = None if annotation.size is None else (annotation.size, file)


def _without(file: Path, text: str) -> str:
    return text.removeprefix(f"{file}, ")


def read_coco(file: Path, split: str | None, gathered: Gathered) -> None:
    """The images of a JSON file of COCO with their boxes."""
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        gathered.report(file, "bad-annotation", f"cannot be read as JSON: {error}")
        return
    for part, default in (("images", None), ("annotations", None), ("categories", [])):
        entries = document.get(part, default) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            gathered.report(file, "bad-annotation", f"must be a JSON object with a list of objects under {part!r}")
            return
    names = _by_id(file, "categories", "name", document.get("categories", []), gathered)
    items: dict[Key, Item] = {}
    named: set[Path] = set()
    for key, entry in _by_id(file, "images", "file_name", document["images"], gathered).items():
        name = entry["file_name"]
        try:
            (path,) = find_images(file, split, [name])
        except ValueError:
            items[key] = Item(file.parent / name)
            gathered.report(items[key].path, "missing", f"in no folder of images, but {file} names it")
            continue
        if path in named:
            gathered.report(file, "bad-annotation", f"image {key!r}: {name} is that of another image too")
        named.add(path)
        items[key] = gathered.item(path, split)
        height, width = entry.get("height"), entry.get("width")
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            items[key].stated = (height, width), file
    for number, entry in enumerate(document["annotations"]):
        image = _key(entry.get("image_id"))
        item = None if image is None else items.get(image)
        where = f"annotation {entry.get('id', number)}"
        if item is None:
            gathered.report(file, "no-image", f"{where}: no image has the image_id {entry.get('image_id')!r}")
        else:
            _coco_box(file, entry, item, f"{where} of {item.path.name}", names, gathered)


def _coco_box(
    file: Path, entry: dict[str, Any], item: Item, where: str, names: dict[Key, dict[str, Any]], gathered: Gathered
) -> None:
    box, category = four_numbers(entry.get("bbox")), _key(entry.get("category_id"))
    if category is None or category not in names:
        gathered.report(file, "unknown-class", f"{where}: no category has the id {entry.get('category_id')!r}")
        return
    name = names[category]["name"]
    if box is None or not all(map(math.isfinite, box)):
        wrong = short(entry.get("bbox"))
        gathered.report(file, "bad-annotation", f"{where} ({name}): bbox must be four finite numbers, got {wrong}")
    elif min(box[2:]) <= 0:
        gathered.report(file, "zero-area-box", f"{where} ({name}): the bbox {short(list(box))} has no area")
    else:
        x, y, w, h = box
        item.boxes.append(Box(name, (x, y, x + w, y + h), file, f"{where} ({name})"))


def _by_id(
    file: Path, of: str, named: str, entries: list[dict[str, Any]], gathered: Gathered
) -> dict[Key, dict[str, Any]]:
    """Entries by their id; those without an id of their own or a name are noted."""
    found: dict[Key, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        key = _key(entry.get("id"))
        if key is None or key in found or not isinstance(entry.get(named), str):
            wrong = f"{of}[{number}]: expected an id of its own and a {named}, got {short(entry)}"
            gathered.report(file, "bad-annotation", wrong)
        else:
            found[key] = entry
    return found


def _key(value: object) -> Key | None:
    return value if isinstance(value, int | str) else None


def compare_classes(gathered: Gathered) -> None:
    """Names objects of classes that the training part does not show."""
    trained = {box.name for item in gathered.items.values() for box in item.boxes if _trains(item.splits)}
    if not trained:
        return
    seen = set()
    for item in gathered.items.values():
        for box in item.boxes:
            if box.name not in trained and (box.file, box.name) not in seen:
                seen.add((box.file, box.name))
                close = suggest(box.name, trained)
                gathered.report(box.file, "untrained-class", f"{box.where}: no training image shows one{close}")


def _trains(names: Iterable[str]) -> bool:
    return any(name.lower().startswith(SPLITS[0]) for name in names)
