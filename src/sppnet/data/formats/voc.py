"""Parsing of VOC folders, shared by detection and segmentation data sets."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from sppnet.data.formats.annotations import AnnotatedImage, AnnotatedObject, format_numbers
from sppnet.data.images import image_extensions
from sppnet.data.listing import walk_files
from sppnet.errors import did_you_mean, list_some

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def voc_folder(root: Path, annotations: str) -> Path | None:
    """Find the folder that has JPEGImages and `annotations`: the root, or its single VOC* or VOCdevkit/VOC*."""
    folders = [
        folder
        for folder in (root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*")))
        if (folder / annotations).is_dir() and (folder / "JPEGImages").is_dir()
    ]
    if len(folders) > 1 and folders[0] != root:
        choices = list_some(str(folder) for folder in folders)
        raise ValueError(f"root: expected one of the data sets {choices}, got {root}")
    return folders[0] if folders else None


def voc_lists(folder: Path, task: str) -> dict[str, Path]:
    """Find the image list of each split, ImageSets/TASK/SPLIT.txt."""
    return {path.stem: path for path in sorted((folder / "ImageSets" / task).glob("*.txt"))}


def without_class_lists(names: Iterable[str]) -> list[str]:
    """Remove the names of per-class lists, such as cat_train if train exists."""
    names = list(names)
    return [name for name in names if "_" not in name or name.rpartition("_")[2] not in names]


def images_by_name(folder: Path) -> dict[str, list[Path]]:
    """Find the image files of a folder, recursively, by their relative path without the extension."""
    extensions = image_extensions()
    files: dict[str, list[Path]] = {}
    for path in walk_files(folder):
        if path.suffix.lower() in extensions:
            files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return files


def require_images(names: Iterable[str], files: dict[str, list[Path]], folder: Path, source: Path) -> None:
    """Check that a folder has exactly one image for each name.

    Args:
        names: names listed in `source`.
        files: image files by name; see `images_by_name`.
        folder: the folder of the images, for messages.
        source: the list or folder that the names are from, for messages.

    Raises:
        ValueError: if any name has no image or several.
    """
    names = list(names)
    missing = [name for name in names if name not in files]
    if missing:
        raise ValueError(
            f"images named in {source} are missing from {folder}: {list_some(missing)}{did_you_mean(missing[0], files)}"
        )
    several = [str(path) for name in names for path in files[name] if len(files[name]) > 1]
    if several:
        raise ValueError(f"{folder}: expected one image for each name in {source}, got {list_some(several)}")


def read_list(file: Path, files: dict[str, list[Path]]) -> list[str]:
    """Read the names of an image list, without the optional second column (1, 0 or -1: whether a class is present).

    Raises:
        ValueError: if the list is empty or not text.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text: {error}") from error
    # Names may contain spaces.
    ids = [line if line in files else re.sub(r"\s+(-1|0|1)$", "", line) for line in lines if line]
    if not ids:
        raise ValueError(f"{file}: expected at least one image, got none")
    return ids


def read_voc(folder: Path, listed: Path | None, problems: list[str]) -> list[AnnotatedImage]:
    """Read the annotated images of a list, or all of them by default; problems are appended to `problems`."""
    photos, annotations = folder / "JPEGImages", folder / "Annotations"
    files = images_by_name(photos)
    if listed is None:
        paths = (path.relative_to(annotations) for path in walk_files(annotations) if path.suffix == ".xml")
        ids = [path.with_suffix("").as_posix() for path in paths]
        if files.keys() - set(ids):
            problems.append(f"images without an annotation: {list_some(sorted(files.keys() - set(ids)))}; skipped")
    else:
        ids = read_list(listed, files)
    source = listed or annotations
    require_images(ids, files, photos, source)
    missing = [name for name in ids if not (annotations / f"{name}.xml").is_file()]
    if missing:
        raise ValueError(f".xml files of images named in {source} are missing from {annotations}: {list_some(missing)}")
    return [read_annotation(annotations / f"{name}.xml", files[name][0], problems) for name in ids]


def read_annotation(file: Path, path: Path, problems: list[str]) -> AnnotatedImage:
    """Read a VOC annotation file; objects without area are dropped and reported in `problems`.

    Raises:
        ValueError: if the file or an object is malformed; the message names file and object.
    """
    annotation = _parse(file)
    objects = []
    for number, element in enumerate(annotation.findall("object"), start=1):
        where = f"{file}, object {number}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{where}: expected a name, got none")
        where += f" ({name})"
        x1, y1, x2, y2 = (_corner(element, key, where) for key in _CORNERS)
        flag = (element.findtext("difficult") or "").strip().lower() or "0"
        if flag not in _FLAGS:
            raise ValueError(f"{where}: difficult: expected 0 or 1, got {flag!r}")
        # Equal corners formally enclose one pixel, but in real data they are annotation mistakes.
        if x2 <= x1 or y2 <= y1:
            problems.append(f"{where}: corners {format_numbers((x1, y1, x2, y2))} enclose no area; dropped")
            continue
        objects.append(AnnotatedObject(name, (x1 - 1, y1 - 1, x2, y2), _FLAGS[flag], where))
    sides = [(annotation.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(re.fullmatch(r"0*[1-9]\d{0,8}", side) for side in sides) else None
    return AnnotatedImage(path, objects, size, str(file))


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
        raise ValueError(f"{file} cannot be read as XML: {error}") from error
    if annotation.tag != "annotation":
        raise ValueError(f"{file}: expected the root element <annotation>, got <{annotation.tag}>")
    return annotation


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it has a document type declaration, which could define entities; remove <!DOCTYPE ...>")


def _corner(element: Element, key: str, where: str) -> float:
    text = (element.findtext(f"bndbox/{key}") or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {key}: expected a finite number, got {text!r}")
    return value
