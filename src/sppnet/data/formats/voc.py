"""Parsing of VOC folders, shared by detection and segmentation data sets."""

import math
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from sppnet.data.formats.annotations import (
    check_images,
    cut,
    format_numbers,
    has_area,
    report_repeated,
    report_similar,
    shorten,
    spellings,
)
from sppnet.data.images import image_extensions
from sppnet.data.items import Box, Item, Part, Problems
from sppnet.data.listing import walk_files
from sppnet.data.splits import is_system_file, sort_splits
from sppnet.errors import did_you_mean, list_some

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"0": False, "1": True, "false": False, "true": True}
# Folders of the archives of the challenges, below the folder into which they were extracted.
_FOLDERS = (
    "VOC*",
    "VOCdevkit/VOC*",
    "VOC*/VOC*",
    "VOC*/VOCdevkit/VOC*",
    "*[Tt]rain[Vv]al*/VOCdevkit/VOC*",
)


def voc_folder(root: Path, annotations: str) -> Path | None:
    """Find the folder that has JPEGImages and `annotations`: the root, or a single one in it, see `_FOLDERS`."""
    candidates = dict.fromkeys((root, *(folder for pattern in _FOLDERS for folder in sorted(root.glob(pattern)))))
    folders = [folder for folder in candidates if (folder / annotations).is_dir() and (folder / "JPEGImages").is_dir()]
    if len(folders) > 1 and folders[0] != root:
        choices = list_some(str(folder) for folder in folders)
        raise ValueError(f"root: expected one of the data sets {choices}, got {root}")
    return folders[0] if folders else None


def voc_lists(folder: Path, task: str) -> dict[str, Path]:
    """Find the image list of each split, ImageSets/TASK/SPLIT.txt."""
    paths = sorted((folder / "ImageSets" / task).glob("*.txt"))
    return {path.stem: path for path in paths if not is_system_file(path.name)}


def without_class_lists(names: Iterable[str]) -> list[str]:
    """Remove the names of per-class lists, such as cat_train if train exists."""
    names = dict.fromkeys(names)
    return [name for name in names if "_" not in name or name.rpartition("_")[2] not in names]


def images_by_name(folder: Path) -> dict[str, list[Path]]:
    """Find the image files of a folder, recursively, by their relative path without the extension."""
    extensions = image_extensions()
    files: dict[str, list[Path]] = {}
    for path in walk_files(folder):
        if path.suffix.lower() in extensions:
            files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return files


def read_list(file: Path, files: dict[str, list[Path]]) -> list[str]:
    """Read the names of an image list, without the optional second column (1, 0 or -1: whether a class is present).

    Raises:
        ValueError: if the list is empty or not text.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text: {error}") from error
    ids = [_image_name(line, files) for line in lines if line]
    if not ids:
        raise ValueError(f"{file}: expected at least one image, got none")
    return ids


def _image_name(line: str, files: dict[str, list[Path]]) -> str:
    """Return the name in a line of a list; names may contain spaces."""
    fields = line.rsplit(maxsplit=1)
    names = [line, fields[0]] if len(fields) > 1 and fields[1] in ("-1", "0", "1") else [line]
    return next((form for name in names for form in spellings(name) if form in files), names[-1])


class VocSplit(NamedTuple):
    """Folder of JPEGImages and Annotations, and the list of the images; None for all annotated images."""

    folder: Path
    listed: Path | None = None


def find_splits(root: Path) -> dict[str | None, VocSplit]:
    """Find the image lists of the boxes of a VOC data set, without those of single classes."""
    folder = voc_folder(root, "Annotations")
    if folder is None:
        return {}
    lists = voc_lists(folder, "Main")
    names = sort_splits(without_class_lists(lists))
    return {name: VocSplit(folder, lists[name]) for name in names} or {None: VocSplit(folder)}


def find_class_lists(root: Path) -> dict[str, VocSplit]:
    """Find all image lists of a VOC data set, with those of single classes, such as cat_train."""
    folder = voc_folder(root, "Annotations")
    return {} if folder is None else {name: VocSplit(folder, path) for name, path in voc_lists(folder, "Main").items()}


def read(root: Path, split: str | None, source: VocSplit, problems: Problems) -> Part:
    """Read the annotated images of a list, or all of them; the first split reports what is in none of the lists.

    Args:
        root: the folder that the user named.
        split: name of the split.
        source: value of `find_splits`.
        problems: receives all problems.

    Raises:
        OSError: a folder or the list cannot be read.
    """
    known = len(problems)
    folder, listed = source
    photos, annotations = folder / "JPEGImages", folder / "Annotations"
    files = images_by_name(photos)
    paths = (path.relative_to(annotations) for path in walk_files(annotations) if path.suffix == ".xml")
    annotated = {path.with_suffix("").as_posix(): None for path in paths}
    names = [*annotated] if listed is None else listed_names(listed, files, problems)
    items = []
    for name, path in find_images(names, files, photos, listed or annotations, problems):
        file = annotations / f"{name}.xml"
        if name not in annotated:
            problems.report(file, "missing", f"no such file, but {listed} lists it")
            items.append(Item(path))
        else:
            items.append(read_annotation(file, path, problems))
    if split is None or split == next(iter(find_splits(root)), None):
        _report_unused(folder, files, annotated, problems)
    check_images(items, listed or annotations, known, problems)
    report_similar((box.name for item in items for box in item.boxes), annotations, problems)
    return Part(items)


def listed_names(file: Path, files: dict[str, list[Path]], problems: Problems) -> list[str]:
    """Return the names in a list without repetitions, or nothing if the list cannot be read."""
    try:
        return report_repeated(read_list(file, files), file, problems)
    except ValueError as error:
        problems.report(file, "bad-annotation", str(error).removeprefix(f"{file}: ").removeprefix(f"{file} "))
        return []


def find_images(
    names: Iterable[str], files: dict[str, list[Path]], folder: Path, source: Path, problems: Problems
) -> list[tuple[str, Path]]:
    """Return names with their image, and report those that have none or several.

    Args:
        names: names listed in `source`.
        files: image files by name; see `images_by_name`.
        folder: the folder of the images.
        source: the list or folder that the names are from, for messages.
        problems: receives the problems.
    """
    images, hint = [], True
    for name in names:
        matches = files.get(name, [])
        if len(matches) == 1:
            images.append((name, matches[0]))
        elif matches:
            others = list_some(str(path) for path in matches[1:])
            problems.report(matches[0], "bad-annotation", f"ambiguous name in {source}: it also matches {others}")
        else:
            close = did_you_mean(name, files) if hint else ""
            hint = False  # the search is slow
            problems.report(folder / name, "missing", f"no image of this name, but {source} lists it{close}")
    return images


def _report_unused(folder: Path, files: dict[str, list[Path]], annotated: Collection[str], problems: Problems) -> None:
    """Report images without an annotation, annotations without an image, and annotated images that are in no list."""
    photos, annotations, lists = folder / "JPEGImages", folder / "Annotations", voc_lists(folder, "Main")
    listed = set() if lists else set(annotated)
    for file in lists.values():
        try:
            listed.update(read_list(file, files))
        except ValueError:
            continue  # reported by the reader of its split
    unlisted = []
    for name in sorted(files.keys() - listed):
        if name in annotated:
            unlisted.append(name)
            continue
        for path in files[name]:
            problems.report(path, "no-annotation", f"no annotation file {annotations / name}.xml; skipped")
    if unlisted:
        reason = f"{len(unlisted)} annotated images are in none of the lists in {folder / 'ImageSets/Main'}: "
        problems.report(photos, "unlisted", reason + list_some(unlisted))
    for name in sorted(set(annotated) - listed - files.keys()):
        problems.report(annotations / f"{name}.xml", "no-image", f"no image of this name in {photos}; skipped")


def read_annotation(file: Path, path: Path, problems: Problems) -> Item:
    """Read a VOC annotation file; malformed objects and those without area are reported and dropped."""
    try:
        annotation = _parse(file)
    except (ValueError, OSError) as error:
        problems.report(file, "bad-annotation", str(error))
        return Item(path)
    boxes = []
    for number, element in enumerate(annotation.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        where = f"object {number}" + (f" ({cut(name)})" if name else "")
        try:
            if not name:
                raise ValueError("expected a name, got none")
            x1, y1, x2, y2 = (_corner(element, key) for key in _CORNERS)
            flag = (element.findtext("difficult") or "").strip().lower() or "0"
            if flag not in _FLAGS:
                raise ValueError(f"difficult: expected 0 or 1, got {shorten(flag)}")
        except ValueError as error:
            problems.report(file, "bad-annotation", f"{where}: {error}")
            continue
        # Equal corners formally enclose one pixel, but in real data they are annotation mistakes.
        edges = (x1 - 1, y1 - 1, x2, y2)
        if x2 <= x1 or y2 <= y1 or not has_area(edges):
            corners = format_numbers((x1, y1, x2, y2))
            problems.report(file, "zero-area-box", f"{where}: corners {corners} enclose no area; dropped")
        else:
            boxes.append(Box(name, edges, _FLAGS[flag], where))
    sides = [(annotation.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(re.fullmatch(r"0*[1-9]\d{0,8}", side) for side in sides) else None
    return Item(path, boxes=tuple(boxes), stated=size, where=str(file), file=file)


def _parse(file: Path) -> Element:
    """Parse an annotation without expanding entities or opening other files, and return its root element."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(file.read_bytes(), True)
        annotation = builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ValueError(f"cannot be read as XML: {error}") from error
    if annotation.tag != "annotation":
        raise ValueError(f"expected the root element <annotation>, got <{annotation.tag[:100]}>")
    return annotation


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it has a document type declaration, which could define entities; remove <!DOCTYPE ...>")


def _corner(element: Element, key: str) -> float:
    text = (element.findtext(f"bndbox/{key}") or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key}: expected a finite number, got {shorten(text)}")
    return value
