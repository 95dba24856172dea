"""VOC's folders: what detection and segmentation sets in that layout have in common."""

import re
from collections.abc import Iterable
from pathlib import Path

from sppnet.data.datasets import list_some, suggest
from sppnet.data.images import image_extensions, walk_files


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
