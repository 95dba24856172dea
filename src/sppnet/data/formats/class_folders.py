"""Reading of classification data sets: folders of class folders, with or without splits, and CSV files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sppnet.data.formats.csv import read_csv
from sppnet.data.images import image_extensions
from sppnet.data.listing import walk_files
from sppnet.data.splits import list_folders, splits
from sppnet.errors import list_some, suggest


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
        files, skipped = read_csv(root), ()
    names = _class_names(folder, {name for _, name in files}, classes)
    label = {name: index for index, name in enumerate(names)}
    return ClassificationData(folder, tuple(Sample(path, label[name]) for path, name in files), names, skipped)


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
    folders = list_folders(root)
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
