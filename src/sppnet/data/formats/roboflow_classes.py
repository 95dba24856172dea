"""Reader of Roboflow's classification exports with several classes per image: SPLIT/_classes.csv."""

from pathlib import Path

from sppnet.data.formats import csv
from sppnet.data.items import Part, Problems
from sppnet.data.splits import list_folders, sort_splits

_FILE = "_classes.csv"


def find_splits(root: Path) -> dict[str | None, Path]:
    """Return the _classes.csv of a folder, or of its subfolders by name; empty if there are none.

    Exports of masks have a file of the same name, with the classes of the pixel values; it is not meant.
    """
    if _lists_images(root / _FILE):
        return {None: root / _FILE}
    files = {folder.name: folder / _FILE for folder in list_folders(root) if _lists_images(folder / _FILE)}
    return {split: files[split] for split in sort_splits(files)}


def read(root: Path, split: str | None, source: Path, problems: Problems) -> Part:
    """Read a file with the columns filename and one of 0 and 1 per class; see :func:`sppnet.data.formats.csv.read`."""
    return csv.read(root, split, source, problems)


def _lists_images(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        return stream.readline(1 << 16).partition(",")[0].strip(' "\n') == "filename"
