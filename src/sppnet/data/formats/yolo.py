"""Reader of YOLO data sets: a YAML file or folders, images, and a text file of boxes or polygons for each image."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sppnet.data.formats.annotations import check_images, cut, format_numbers, has_area, report_repeated, shorten
from sppnet.data.formats.yolo_config import Config, check_names, find_keys, is_config, load_yaml, parse
from sppnet.data.images import image_extensions, image_size
from sppnet.data.items import Box, Item, Part, Problems
from sppnet.data.listing import find_file, walk_files
from sppnet.data.splits import is_system_file, list_folders, role_of, sort_splits
from sppnet.errors import ImageError, list_some

_SUFFIXES = (".yaml", ".yml")
_CLASS_FILES = ("classes.txt", "obj.names")
_MAX_FRACTION = 2.0  # larger values must be pixels


class YoloSplit(NamedTuple):
    """The YAML file of a data set and the key of a split in it, or a folder of images.

    Attributes:
        config: YAML file; None if there is none.
        key: key of the split.
        images: folder of the images of the split, without a YAML file.
    """

    config: Path | None
    key: str | None
    images: Path | None = None


def find_splits(root: Path) -> dict[str | None, YoloSplit]:
    """Find the splits of a YAML file or of the one in a folder, or else of folders of images and labels.

    Raises:
        ValueError: several YAML files describe the folder.
    """
    if root.is_file():
        return _config_splits(root) if root.suffix.lower() in _SUFFIXES else {}
    if not root.is_dir():
        return {}
    files = [path for path in sorted(root.iterdir()) if path.suffix.lower() in _SUFFIXES and path.is_file()]
    files = [path for path in files if not is_system_file(path.name)]
    main = [path for path in files if path.stem.lower() in ("data", "dataset")] or files
    candidates = {path: splits for path in main if (splits := _config_splits(path, strict=False))}
    if len(candidates) > 1:
        raise ValueError(f"root: expected one of {', '.join(map(str, candidates))}, got {root}")
    return next(iter(candidates.values()), None) or _folder_splits(root)


def _config_splits(file: Path, *, strict: bool = True) -> dict[str | None, YoloSplit]:
    try:
        content = load_yaml(file)
    except ValueError:
        # Reported by `read`. Other YAML files in a folder need not be those of data sets.
        named = strict or file.stem.lower() in ("data", "dataset")
        return {None: YoloSplit(file, None)} if named else {}
    if not strict and not is_config(content):
        return {}
    keys = find_keys(content)
    return {key: YoloSplit(file, key) for key in sort_splits(keys)} or {None: YoloSplit(file, None)}


def _folder_splits(root: Path) -> dict[str | None, YoloSplit]:
    pairs: dict[str | None, Path] = {}
    if _has_labels(root / "labels") and (root / "images").is_dir():
        pairs = {path.name: path for path in list_folders(root / "images") if role_of(path.name)}
        pairs = pairs or {None: root / "images"}
    else:
        for folder in list_folders(root):
            if role_of(folder.name) and (folder / "images").is_dir() and _has_labels(folder / "labels"):
                pairs[folder.name] = folder / "images"
    names = sort_splits(name for name in pairs if name is not None) or list(pairs)
    return {name: YoloSplit(None, name, pairs[name]) for name in names}


def _has_labels(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix == ".txt" for path in walk_files(folder))


def read(root: Path, split: str | None, source: YoloSplit, problems: Problems) -> Part:
    """Read the images and boxes of a split, without the polygons of `read_polygons`."""
    part = read_polygons(root, split, source, problems)
    for item in part.items:
        item.mask = None
    return part


def read_polygons(root: Path, split: str | None, source: YoloSplit, problems: Problems) -> Part:  # noqa: ARG001
    """Read the images of a split and their labels; images without a label file have no objects.

    Each line of a label file has a class id and either the center, width and height of a box, or the points of a
    polygon, whose bounding box is the object; all divided by width and height of the upright image. If any object is a
    polygon, ``Item.mask`` is ``("polygons", [(class name, [x1, y1, x2, y2, ...]), ...])`` in pixels.

    Args:
        root: data set, the folder or the YAML file.
        split: name of the split.
        source: value of `find_splits`.
        problems: receives all problems.

    Raises:
        OSError: a folder or list cannot be read.
    """
    known = len(problems)
    if source.config is None:
        base = root if root.is_dir() else root.parent
        names = _class_file(base, source.images or base, problems)
        paths = list(_images(source.images or base))
    else:
        config = parse(source.config, problems)
        base, names = config.base, config.names
        if source.key is None and len(problems) == known:
            problems.report(source.config, "bad-annotation", "expected train, val or test, got none")
        paths = _listed_images(source.config, config, source.key, problems)
    place = source.config or source.images or root
    folders = _LabelFolders(base)
    items = []
    for path in map(Path, report_repeated(map(str, paths), place, problems)):
        items.append(_read_item(path, folders.label(path), names, problems))
    folders.report_unused(place, len(items), problems)
    check_images(items, place, known, problems)
    return Part(items, tuple(dict.fromkeys(names)))


def _class_file(root: Path, images: Path, problems: Problems) -> tuple[str, ...]:
    """Read the class names of a data set without a YAML file."""
    folders = dict.fromkeys((root, root / "labels", images.parent, images.parent.parent))
    file = next((folder / name for folder in folders for name in _CLASS_FILES if (folder / name).is_file()), None)
    if file is None:
        problems.report(root, "bad-annotation", "expected class names in data.yaml or classes.txt, got no such file")
        return ()
    try:
        names = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        problems.report(file, "bad-annotation", f"cannot be read as UTF-8 text: {error}")
        return ()
    while names and not names[-1].strip():
        names.pop()
    empty = [number for number, name in enumerate(names, start=1) if not name.strip()]
    if empty or not names:
        where = f"line {empty[0]}: " if empty else ""
        problems.report(file, "bad-annotation", f"{where}expected a class name, got none")
        return ()
    return check_names(names, file, problems)


def _images(folder: Path) -> Iterator[Path]:
    extensions = image_extensions()
    return (path for path in walk_files(folder) if path.suffix.lower() in extensions)


def _listed_images(file: Path, config: Config, key: str | None, problems: Problems) -> list[Path]:
    """Return the images of the folders and list files of a split."""
    paths: list[Path] = []
    for entry in config.splits.get(key or "", []):
        path = _find_entry(config.base, entry)
        if path is None:
            reason = f"{key}: no such folder or file, {shorten(entry)} in {config.base}"
            problems.report(file, "missing", reason)
        elif path.is_dir():
            paths += _images(path)
        elif path.suffix.lower() == ".txt":
            paths += _read_list(path, config.base, problems)
        else:
            reason = f"{key}: expected a folder of images or a .txt file, got {shorten(entry)}"
            problems.report(file, "bad-annotation", reason)
    return paths


def _find_entry(base: Path, entry: str) -> Path | None:
    """Return the folder or file of an entry; Roboflow's start with ``../``, relative to another folder."""
    names = dict.fromkeys((entry, entry.replace("\\", "/")))
    for name in [*names, *(name[3:] for name in names if name.startswith("../"))]:
        path = base / name
        try:
            if path.is_dir() or path.is_file():
                return path
        except (OSError, ValueError):  # names that the file system does not support
            continue
    return None


def _read_list(file: Path, base: Path, problems: Problems) -> list[Path]:
    """Return the images of a list file; their paths are relative to the folder of the list or the data set."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        problems.report(file, "bad-annotation", f"cannot be read as UTF-8 text: {error}")
        return []
    paths = []
    for number, line in enumerate(lines, start=1):
        if name := line.strip():
            path = find_file(file.parent, name) or find_file(base, name)
            if path is None:
                problems.report(file, "missing", f"line {number}: no such image, {shorten(name)}")
            else:
                paths.append(Path(path))
    return paths


class _LabelFolders:
    """Label files by image: in the folder labels in place of images, or else next to the image."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folders: dict[Path, Path] = {}
        self.labels: dict[Path, set[str]] = {}
        self.missing: list[str] = []

    def label(self, path: Path) -> Path | None:
        """Return the label file of an image; None if it has none."""
        folder = self.folders.get(path.parent)
        if folder is None:
            folder = self.folders[path.parent] = self._find(path.parent)
            self.labels[path.parent] = {file.name for file in folder.iterdir() if file.suffix == ".txt"}
        name = f"{path.stem}.txt"
        if name in self.labels[path.parent]:
            return folder / name
        self.missing.append(str(path))
        return None

    def _find(self, folder: Path) -> Path:
        parts = folder.parts
        for index in reversed([number for number, part in enumerate(parts) if part == "images"]):
            candidate = Path(*parts[:index], "labels", *parts[index + 1 :])
            if candidate.is_dir():
                return candidate
        return folder

    def report_unused(self, place: Path, images: int, problems: Problems) -> None:
        """Report images without labels, and labels without an image."""
        if self.missing and len(self.missing) == images:
            folders = list_some(map(str, dict.fromkeys(self.folders.values())))
            reason = f"none of the {images} images has a label file; expected in {folders}"
            problems.report(place, "no-annotation", reason)
        elif self.missing:
            reason = f"{len(self.missing)} of {images} images have no label file, and so no objects: "
            problems.report(place, "passed-over", reason + list_some(self.missing))
        for folder, labels in self.folders.items():
            if labels == folder:
                continue
            stems = {path.stem for path in folder.iterdir()}
            for name in sorted(self.labels[folder]):
                if name.removesuffix(".txt") not in stems and name not in _CLASS_FILES and not is_system_file(name):
                    problems.report(labels / name, "no-image", f"no image of this name in {folder}; skipped")


def _read_item(path: Path, file: Path | None, names: Sequence[str], problems: Problems) -> Item:
    """Read the label file of an image."""
    item = Item(path, file=file, where=str(file or path))
    if file is None:
        return item
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        problems.report(file, "bad-annotation", f"cannot be read as UTF-8 text: {error}")
        return item
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append((number, *_parse(line.split(), len(names))))
            except _UnknownClassError as error:
                if names:  # otherwise the names have been reported
                    problems.report(file, "unknown-class", f"line {number}: {error}")
            except ValueError as error:
                problems.report(file, "bad-annotation", f"line {number}: {error}")
    if rows:
        try:
            item.size = image_size(path)
        except ImageError:  # reported when the image is loaded
            return item
        _add_objects(item, file, rows, names, problems)
    return item


class _UnknownClassError(ValueError):
    """A class id without a name."""


def _parse(fields: Sequence[str], classes: int) -> tuple[int, list[float]]:
    """Return the class id and the fractions of a line.

    Raises:
        ValueError: the line is malformed.
    """
    if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        raise ValueError(
            f"expected a class id and x, y, width, height, or at least three points of a polygon, got {len(fields)}"
            " columns"
        )
    try:
        label, *values = map(float, fields)
    except ValueError:
        raise ValueError(f"expected numbers, got {shorten(' '.join(fields))}") from None
    wrong = next(
        (field for field, value in zip(fields, (label, *values), strict=True) if not math.isfinite(value)), None
    )
    if wrong is not None:
        raise ValueError(f"expected finite numbers, got {shorten(wrong)}")
    if max(map(abs, values)) > _MAX_FRACTION:
        shown = format_numbers(values[:4])
        raise ValueError(f"expected fractions of the width and height of the image, got {shown}; these may be pixels")
    if not label.is_integer():
        raise ValueError(f"expected an integer as the class id, got {shorten(fields[0])}")
    if not 0 <= label < classes:
        raise _UnknownClassError(f"expected a class id from 0 to {classes - 1}, got {shorten(fields[0])}")
    return int(label), values


def _add_objects(
    item: Item, file: Path, rows: list[tuple[int, int, list[float]]], names: Sequence[str], problems: Problems
) -> None:
    """Convert the rows of a label file to pixels."""
    height, width = item.size or (0, 0)
    boxes, polygons, is_polygon = [], [], False
    for number, label, values in rows:
        where = f"line {number} ({cut(names[label])})"
        if len(values) == 4:
            x, y, w, h = values
            edges = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            points = [edges[0], edges[1], edges[2], edges[1], edges[2], edges[3], edges[0], edges[3]]
        else:
            points = [value * (height if index % 2 else width) for index, value in enumerate(values)]
            edges = (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2]))
            is_polygon = True
        if edges[2] <= edges[0] or edges[3] <= edges[1] or not has_area(edges):
            kind = "box" if len(values) == 4 else "polygon"
            reason = f"{where}: {kind} {format_numbers(values[:4])} has no area; dropped"
            problems.report(file, "zero-area-box", reason)
        else:
            boxes.append(Box(names[label], edges, False, where))
            polygons.append((names[label], points))
    item.boxes = tuple(boxes)
    item.mask = ("polygons", polygons) if is_polygon else None
