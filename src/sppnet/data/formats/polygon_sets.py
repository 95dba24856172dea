"""Readers of the polygons and run-length encodings of COCO and YOLO data sets as masks."""

import re
from array import array
from mmap import ACCESS_READ, mmap
from pathlib import Path

from sppnet.data.formats import coco, yolo, yolo_config
from sppnet.data.formats.annotations import check_images, cut, shorten
from sppnet.data.formats.polygons import PolygonMask, Shape, parse_segmentation
from sppnet.data.images import image_size
from sppnet.data.items import Item, Part, Problems
from sppnet.data.listing import walk_files
from sppnet.errors import ImageError

_BACKGROUND = "background"
_SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*(\[\s*[^\s\]]|\{)')
_POLYGON = re.compile(rb"^[ \t]*[\d.]+([ \t]+[-+.\deE]+){6,}[ \t\r]*$", re.MULTILINE)


def find_coco(root: Path) -> dict[str | None, Path]:
    """Return the splits of a COCO data set if any annotation has a segmentation; see `coco.find_splits`."""
    splits = coco.find_splits(root)
    return splits if any(_has_match(_SEGMENTATION, file) for file in splits.values()) else {}


def find_yolo(root: Path) -> dict[str | None, yolo.YoloSplit]:
    """Return the splits of a YOLO data set if any label file has a polygon; see `yolo.find_splits`."""
    splits = yolo.find_splits(root)
    configs = {source.config for source in splits.values()}
    folders = {root if file is None else yolo_config.parse(file, Problems()).base for file in configs}
    files = (path for folder in folders if folder.is_dir() for path in walk_files(folder) if path.suffix == ".txt")
    return splits if any(_has_match(_POLYGON, file) for file in files) else {}


def _has_match(pattern: re.Pattern[bytes], file: Path) -> bool:
    with file.open("rb") as stream:
        if not stream.seek(0, 2):  # mmap refuses empty files
            return False
        with mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
            return pattern.search(content) is not None


def read_coco(root: Path, split: str | None, source: Path, problems: Problems) -> Part:  # noqa: ARG001
    """Read the images of a COCO file with their masks, and the classes: background, then the categories by id.

    Args:
        root: data set.
        split: name of the split, which is also a name of the folder of its images.
        source: JSON file.
        problems: receives all problems; annotations without a segmentation are skipped.

    Raises:
        OSError: the file cannot be read.
    """
    known = len(problems)
    contents = coco.parse(source, problems)
    classes = tuple(dict.fromkeys((_BACKGROUND, *coco.class_names(source, contents, problems))))
    items = coco.find_images(source, split, contents.images, problems)
    sizes = {key: item.stated or _size(item, problems) for key, item in items.items()}
    parts: dict[coco.Key, list[Shape]] = {key: [] for key in items}
    for number, entry in enumerate(contents.annotations):
        key, category = entry["image_id"], coco.id_of(entry.get("category_id"))
        where = f"annotation {shorten(entry.get('id', number))} of {cut(contents.images[key]['file_name'])}"
        size, value = sizes.get(key), entry.get("segmentation")
        if category is None or category not in contents.categories:
            shown = shorten(entry.get("category_id"))
            problems.report(
                source, "unknown-class", f"{where}: category_id: expected the id of a category, got {shown}"
            )
        elif not value:
            problems.report(source, "no-mask", f"{where}: no segmentation; skipped")
        elif size is not None:
            try:
                index = classes.index(contents.categories[category])
                parts[key].append(parse_segmentation(value, size, index))
            except ValueError as error:
                problems.report(source, "bad-annotation", f"{where}: segmentation: {error}")
    for key, item in items.items():
        if size := sizes[key]:
            item.mask = PolygonMask(source, size, tuple(parts[key]), f"image {key!r}")
    check_images(list(items.values()), source, known, problems)
    return Part(list(items.values()), classes)


def read_yolo(root: Path, split: str | None, source: yolo.YoloSplit, problems: Problems) -> Part:
    """Read the images of a split with their masks, and the classes: background, then the names.

    Images without objects are background. Boxes next to polygons are rectangles; images with boxes only are skipped.

    Args:
        root: data set, the folder or the YAML file.
        split: name of the split.
        source: value of `find_yolo`.
        problems: receives all problems.

    Raises:
        OSError: a folder or list cannot be read.
    """
    part = yolo.read_polygons(root, split, source, problems)
    classes = tuple(dict.fromkeys((_BACKGROUND, *(part.classes or ()))))
    indices = {name: index for index, name in enumerate(classes)}
    for item in part.items:
        file, polygons = item.file or item.path, item.mask[1] if item.mask else []
        if not polygons and item.boxes:
            problems.report(file, "no-mask", "only boxes, no polygons; skipped")
        elif size := item.size or _size(item, problems):
            shapes = tuple(Shape(indices[name], (array("d", points),)) for name, points in polygons)
            item.mask = PolygonMask(file, size, shapes)
    return Part(part.items, classes)


def _size(item: Item, problems: Problems) -> tuple[int, int] | None:
    try:
        return image_size(item.path)
    except ImageError as error:
        problems.report(item.path, "no-mask", f"no mask, since the size of the image is unknown: {error.reason}")
        return None
