"""Reader of class folders, with or without splits."""

from pathlib import Path

from sppnet.data.images import image_extensions
from sppnet.data.items import Item, Part, Problems
from sppnet.data.listing import walk_files
from sppnet.data.splits import is_system_file, list_folders, split_folders
from sppnet.errors import list_some


def find_splits(root: Path) -> dict[str | None, Path]:
    """Return the folders of class folders by split, training first; empty if no class folder contains an image.

    Raises:
        ValueError: split folders next to other folders, or two of the same role.
    """
    splits = split_folders(root)
    sources: dict[str | None, Path] = {split: root / split for split in splits} or {None: root}
    extensions = image_extensions()
    files = (path for source in sources.values() for folder in list_folders(source) for path in walk_files(folder))
    return sources if any(path.suffix.lower() in extensions for path in files) else {}


def read(root: Path, split: str | None, source: Path, problems: Problems) -> Part:  # noqa: ARG001
    """Read a folder of class folders, sorted by class and file. Files in subfolders belong to the class, too.

    Args:
        root: data set.
        split: name of the split.
        source: folder of class folders.
        problems: receives images next to the class folders, other files in them, and folders without an image.

    Raises:
        OSError: a folder cannot be read.
    """
    extensions = image_extensions()
    for path in sorted(source.iterdir()):
        if path.suffix.lower() in extensions and path.is_file() and not is_system_file(path.name):
            problems.report(path, "left-out", "skipped, image outside the class folders")
    items: list[Item] = []
    folders = list_folders(source)
    for folder in folders:
        previous_count = len(items)
        for path in walk_files(folder):
            if path.suffix.lower() in extensions:
                items.append(Item(path, (folder.name,), where=str(folder)))
            else:
                problems.report(path, "passed-over", "skipped, not an image by its extension")
        if len(items) == previous_count:
            problems.report(folder, "empty-class", "class folder without images, not used as a class")
    if not items:
        names = list_some(folder.name for folder in folders)
        found = f"none in {names}" if folders else "no folder"
        problems.report(source, "bad-annotation", f"expected images in class folders, got {found}")
    return Part(items)
