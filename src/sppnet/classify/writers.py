"""Classifications as CSV, and as a folder of links to the images of each class."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from sppnet.classify.predict import ClassificationResult
from sppnet.errors import printable

_COLUMNS = ("label", "score")


def csv_header(top: int) -> list[str]:
    """Return the columns of :func:`csv_row` for results with `top` classes."""
    return ["path", *(name if place == 1 else f"{name}_{place}" for place in range(1, top + 1) for name in _COLUMNS)]


def csv_row(result: ClassificationResult) -> list[str]:
    """Return the path, label and score of a result, then its other classes; see :func:`sppnet.errors.printable`."""
    pairs = ((result.label, result.score), *result.top[1:])
    texts = (text for label, score in pairs for text in (printable(label), f"{score:.6f}"))
    return [printable(result.source), *texts]


@contextmanager
def class_folders(folder: Path, top: int) -> Iterator[Callable[[ClassificationResult], None]]:
    """Yield a function that adds the result of an image file to a folder.

    The folder gets ``predictions.csv``, with the columns of :func:`csv_header` and absolute paths, and a folder per
    class with symbolic links to its images. Equal names in a class get -2, -3, ... In the names of class folders,
    slashes, backslashes, percent signs, control characters and a leading dot are written as in URLs, such as %2F.

    Args:
        folder: output folder, created if missing.
        top: number of classes of each result.

    Raises:
        ValueError: the folder is not empty.
        OSError: a file or link cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"out: expected a new or empty folder, got {folder}, which has files; choose another folder")
    numbers: defaultdict[Path, count[int]] = defaultdict(lambda: count(2))

    def add(result: ClassificationResult) -> None:
        source = Path(result.source).absolute()
        writer.writerow([printable(str(source)), *csv_row(result)[1:]])
        first = link = folder / _folder_name(result.label) / source.name
        link.parent.mkdir(exist_ok=True)
        while True:
            try:
                link.symlink_to(source)
                return
            except FileExistsError:
                link = first.with_name(f"{first.stem}-{next(numbers[first])}{first.suffix}")

    with (folder / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(csv_header(top))
        yield add


def _folder_name(label: str) -> str:
    return re.sub(r"[/\\%\x00-\x1f]|^\.", lambda match: f"%{ord(match[0]):02X}", label)
