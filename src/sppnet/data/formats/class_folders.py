"""Reading of classification data sets: folders of class folders, with or without splits, and CSV files."""

import csv
import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sppnet.data.images import image_extensions, walk_files

SPLITS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True)
class Sample:
    """An image file and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True)
class ClassificationData:
    """A classification data set; the images themselves are not read.

    Attributes:
        root: the folder of class folders, or the CSV file, that was read.
        samples: in sorted order of class and file, or in the order of the CSV file.
        classes: names of the classes; ``Sample.label`` is an index into them.
        skipped: what was left out: images that lie beside the class folders, files in these that are no images by
            their extension, and class folders without an image, which are no classes. Hidden files are not named.
    """

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    skipped: tuple[Path, ...]


def splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of the splits of a folder, training first; none if it is not a folder of splits.

    A folder of splits has a train or a test folder, and no folder but train, val, valid, validation and
    test, in upper or lower case.
    """
    names = {folder.name.lower(): folder.name for folder in _folders(Path(root))}
    others = sorted(names.keys() - set(SPLITS))
    if "train" in names and others and names.keys() & set(SPLITS[1:]):
        raise ValueError(
            f"{root} has splits ({', '.join(sorted(names.keys() - set(others)))}) and other folders beside them"
            f" ({list_some(others)}); name one split's folder itself, or move the others away"
        )
    if not {"train", "test"} & names.keys() or others:
        return ()
    return tuple(names[split] for split in SPLITS if split in names)


def find_split(root: str | os.PathLike[str], *wanted: str) -> str | None:
    """The folder name of the first wanted split that a folder of splits has, in upper or lower case."""
    present = {split.lower(): split for split in splits(root)}
    return next((present[name] for name in wanted if name in present), None)


def sort_splits(names: Iterable[str]) -> tuple[str, ...]:
    """Names of splits, training first and test last, with or without a year; others behind them."""
    order = {split: place for place, split in enumerate(SPLITS)}
    return tuple(sorted(names, key=lambda name: (order.get(name.lower().rstrip("0123456789"), len(order)), name)))


def usual_split(root: str | os.PathLike[str], present: Sequence[str], wanted: str | None, *usual: str) -> str | None:
    """The split that is meant: the wanted one, else the first usual one that there is; None where there are no splits.

    Args:
        root: for the message.
        present: the splits that there are.
        wanted: the split that was named, or None.
        usual: what the caller takes of itself, the best first.

    Raises:
        ValueError: there are splits, none is wanted, and none is usual.
    """
    if wanted is not None or not present:
        return wanted
    found = next((name for name in usual if name in present), None)
    if found is None:
        raise ValueError(f"split: {root} has {', '.join(present)}; name one of them")
    return found


def read_classification(
    root: str | os.PathLike[str], split: str | None = None, classes: Sequence[str] | None = None
) -> ClassificationData:
    """Reads which images a data set has, and of which class each is.

    Args:
        root: one of three layouts.

            - A folder of class folders. The classes are sorted by name, the files within each too, and
              folders inside a class folder belong to the class.
            - A folder of splits (see `splits`), each a folder of class folders.
            - A CSV file in UTF-8 with the columns path and label, others being ignored. Paths are relative
              to the folder of the CSV file, and labels are class names.
        split: the split to read; given exactly where ``root`` is a folder of splits.
        classes: the class names that labels shall index, such as those of a trained network. The data may
            lack some of them. Without it the classes are those of the data, of which there must be two.

    Raises:
        ValueError: if the data set is not as described; the message names what is wrong and where.
        OSError: if a folder or the CSV file cannot be read.
    """
    root = Path(root)
    if not root.exists():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise ValueError(f"no data set at {root}: no such folder or file{suggest(root.name, siblings)}")
    if root.is_dir():
        folder = _split_folder(root, split)
        files, skipped = _read_folders(folder)
    elif split is not None:
        raise ValueError(f"split must be left out for {root}, which is a file, got {split!r}")
    elif root.suffix.lower() != ".csv":
        raise ValueError(f"a data set must be a folder or a .csv file, got {root}")
    else:
        folder = root
        files, skipped = _read_csv(root), ()
    names = _class_names(folder, {name for _, name in files}, classes)
    label = {name: index for index, name in enumerate(names)}
    return ClassificationData(folder, tuple(Sample(path, label[name]) for path, name in files), names, skipped)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split_folder(root: Path, split: str | None) -> Path:
    present = splits(root)
    if split is None:
        if present:
            raise ValueError(f"split must be one of {', '.join(present)} for {root}, got None")
        return root
    if not present:
        raise ValueError(f"split must be left out for {root}, which has no split folders, got {split!r}")
    if split not in present:
        hint = suggest(split, present)
        raise ValueError(f"split must be one of {', '.join(present)} for {root}, got {split!r}{hint}")
    return root / split


def _read_folders(root: Path) -> tuple[list[tuple[Path, str]], tuple[Path, ...]]:
    extensions = image_extensions()
    beside = [path for path in sorted(root.iterdir()) if path.is_file() and not path.name.startswith(".")]
    skipped = [path for path in beside if path.suffix.lower() in extensions]
    folders = _folders(root)
    if not folders:
        raise ValueError(
            f"a folder of class folders was expected; found {len(skipped)} images directly in {root} and no folder"
        )
    images: list[tuple[Path, str]] = []
    for folder in folders:
        before = len(images)
        for path in walk_files(folder):
            if path.suffix.lower() in extensions:
                images.append((path, folder.name))
            else:
                skipped.append(path)
        if len(images) == before:
            skipped.append(folder)
    if not images:
        raise ValueError(
            f"the class folders of {root} must hold images; none in {list_some(folder.name for folder in folders)}"
        )
    return images, tuple(skipped)


def _read_csv(file: Path) -> list[tuple[Path, str]]:
    rows = csv_rows(file)
    missing = [f"{row.name} (line {row.line})" for row in rows if not (file.parent / row.name).is_file()]
    if missing:
        raise ValueError(f"image files named in {file} are missing: {list_some(missing)}")
    return [(file.parent / row.name, row.label) for row in rows]


class CsvRow(NamedTuple):
    """The path of an image as it is written, its class name, and the line that has them."""

    name: str
    label: str
    line: int


def csv_rows(file: Path) -> list[CsvRow]:
    """The rows of a CSV file of images, see `read_classification`; that the images exist is not known.

    Raises:
        ValueError: if it is no such file; the message names the line.
        OSError: if it cannot be read.
    """
    rows: list[CsvRow] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, skipinitialspace=True, strict=True)
            header = next(reader, [])
            for name in ("path", "label"):
                if header.count(name) != 1:
                    raise ValueError(
                        f"{file} must begin with a header that names the columns path and label once each, "
                        f"got {','.join(header)!r}"
                    )
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if not any(row):
                    raise ValueError(f"{where}: the row is empty")
                if len(row) != len(header):
                    raise ValueError(f"{where}: {len(row)} values for {len(header)} columns")
                path, label = row[header.index("path")], row[header.index("label")]
                if not path or not label:
                    raise ValueError(f"{where}: the {'label' if path else 'path'} is empty")
                rows.append(CsvRow(path, label, reader.line_num))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a CSV file in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{file} names no image below its header")
    return rows


def _class_names(root: Path, found: set[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Returns ``classes`` once it covers what was found, or else what was found, sorted."""
    if classes is None:
        if len(found) < 2:
            raise ValueError(f"training needs two classes or more; {root} has only {list_some(sorted(found))}")
        return tuple(sorted(found))
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be one or more different names, got {list(classes)}")
    unknown = sorted(found - set(classes))
    if unknown:
        hint = suggest(unknown[0], classes)
        raise ValueError(
            f"{root} has classes that are not among the {len(classes)} of classes: {list_some(unknown)}{hint}"
        )
    return tuple(classes)


def suggest(name: str, known: Iterable[str]) -> str:
    """The close matches as the end of a message; empty without any."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def list_some(names: Iterable[str]) -> str:
    """Joins names for a message, not more than ten of them."""
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
