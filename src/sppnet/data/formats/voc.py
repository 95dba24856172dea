"""VOC's folders: what detection and segmentation sets in that layout have in common."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from sppnet.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    format_numbers,
)
from sppnet.data.images import image_extensions
from sppnet.data.listing import walk_files
from sppnet.errors import list_some, suggest

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def voc_folder(root: Path, beside: str) -> Path | None:
    """The folder that has JPEGImages and another one: the root, or the one VOC* folder in it or in its VOCdevkit."""
    found = [
        folder
        for folder in (root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*")))
        if (folder / beside).is_dir() and (folder / "JPEGImages").is_dir()
    ]
    if len(found) > 1 and found[0] != root:
        raise ValueError(f"root must be one of the data sets {list_some(str(folder) for folder in found)}, got {root}")
    return found[0] if found else None


def voc_lists(folder: Path, task: str) -> dict[str, Path]:
    """The lists ImageSets/TASK/SPLIT.txt by their split."""
    return {path.stem: path for path in sorted((folder / "ImageSets" / task).glob("*.txt"))}


def whole_lists(names: Iterable[str]) -> list[str]:
    """The names without those of single classes' lists, such as cat_train beside train."""
    names = list(names)
    return [name for name in names if "_" not in name or name.rpartition("_")[2] not in names]


def images_by_name(folder: Path) -> dict[str, list[Path]]:
    """The image files of a folder and of those in it, by their path in it without the extension."""
    extensions = image_extensions()
    files: dict[str, list[Path]] = {}
    for path in walk_files(folder):
        if path.suffix.lower() in extensions:
            files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return files


def require_images(names: Iterable[str], files: dict[str, list[Path]], folder: Path, of: Path) -> None:
    """Checks that a folder has one image for each name.

    Args:
        names: as `of` lists them.
        files: see `images_by_name`.
        folder: where they lie, for messages.
        of: the list, for messages.

    Raises:
        ValueError: if it has none, or several.
    """
    names = list(names)
    missing = [name for name in names if name not in files]
    if missing:
        raise ValueError(f"{folder} lacks images of {of}: {list_some(missing)}{suggest(missing[0], files)}")
    several = [str(path) for name in names for path in files[name] if len(files[name]) > 1]
    if several:
        raise ValueError(f"{folder} must have one image for each name of {of}, got {list_some(several)}")


def read_list(file: Path, files: dict[str, list[Path]]) -> list[str]:
    """The first column of a list of images; a second one, of 1, 0 or -1, says whether a class is in the image.

    Raises:
        ValueError: if it is empty or no text.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8: {error}") from error
    # Names may have spaces.
    ids = [line if line in files else re.sub(r"\s+(-1|0|1)$", "", line) for line in lines if line]
    if not ids:
        raise ValueError(f"{file} must name an image or more, got none")
    return ids


def read_voc(folder: Path, listed: Path | None, problems: list[str]) -> list[AnnotatedImage]:
    photos, annotations = folder / "JPEGImages", folder / "Annotations"
    files = images_by_name(photos)
    if listed is None:
        every = (path.relative_to(annotations) for path in walk_files(annotations) if path.suffix == ".xml")
        ids = [path.with_suffix("").as_posix() for path in every]
        if files.keys() - set(ids):
            problems.append(f"images without an annotation: {list_some(sorted(files.keys() - set(ids)))}; left out")
    else:
        ids = read_list(listed, files)
    of = listed or annotations
    require_images(ids, files, photos, of)
    missing = [name for name in ids if not (annotations / f"{name}.xml").is_file()]
    if missing:
        raise ValueError(f"{annotations} lacks .xml files of {of}: {list_some(missing)}")
    return [read_annotation(annotations / f"{name}.xml", files[name][0], problems) for name in ids]


def read_annotation(file: Path, path: Path, problems: list[str]) -> AnnotatedImage:
    """The objects of a VOC annotation; those without area are left out and added to `problems`.

    Raises:
        ValueError: it is no such file, or an object is not as VOC has them; the message names file and object.
    """
    annotation = _parse(file)
    objects = []
    for number, element in enumerate(annotation.findall("object"), start=1):
        where = f"{file}, object {number}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{where}: a name was expected, got none")
        where += f" ({name})"
        x1, y1, x2, y2 = (_corner(element, key, where) for key in _CORNERS)
        flag = (element.findtext("difficult") or "").strip().lower() or "0"
        if flag not in _FLAGS:
            raise ValueError(f"{where}: difficult must be 0 or 1, got {flag!r}")
        # By the letter equal corners are one pixel; on real data they are a slip of the mouse.
        if x2 <= x1 or y2 <= y1:
            problems.append(f"{where}: the corners {format_numbers((x1, y1, x2, y2))} enclose no area; left out")
            continue
        objects.append(AnnotatedObject(name, (x1 - 1, y1 - 1, x2, y2), _FLAGS[flag], where))
    sides = [(annotation.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(re.fullmatch(r"0*[1-9]\d{0,8}", side) for side in sides) else None
    return AnnotatedImage(path, objects, size, str(file))


def _parse(file: Path) -> Element:
    """The root element of an annotation, by a parser that opens nothing and expands no entity."""
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
        raise ValueError(f"{file} must have the root element <annotation>, got <{annotation.tag}>")
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
        raise ValueError(f"{where}: {key} must be a finite number, got {text!r}")
    return value
