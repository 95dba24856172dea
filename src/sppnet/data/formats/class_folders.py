"""Readers of classification data sets: class folders, with or without splits, and CSV files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sppnet.data.formats.csv import read_csv
from sppnet.data.images import image_extensions
from sppnet.data.listing import walk_files
from sppnet.data.splits import check_exists, list_folders, split_folders
from sppnet.errors import check_classes, did_you_mean, list_some


@dataclass(frozen=True)
class Sample:
    """An image file and its class index."""

    path: Path
    label: int


@dataclass(frozen=True)
class ClassificationData:
    """File names and labels of a classification data set.

    Attributes:
        root: the folder of class folders or the CSV file that was read.
        samples: images sorted by class and file, or in the order of the CSV file.
        classes: class names, indexed by ``Sample.label``.
        skipped: images next to the class folders, non-image files in class folders (judged by extension), and class
            folders without an image, which do not count as classes. Hidden files are not listed.
    """

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    skipped: tuple[Path, ...]


def read_classification(
    root: str | os.PathLike[str], split: str | None = None, classes: Sequence[str] | None = None
) -> ClassificationData:
    """List the images of a classification data set and their classes; images are not opened.

    Args:
        root: data set in one of three layouts.

            - A folder of class folders. Classes are sorted by name, and so are the files of each class. Files in
              subfolders of a class folder belong to that class.
            - A folder of splits (see `splits`), each a folder of class folders.
            - A UTF-8 CSV file with the columns path and label; other columns are ignored. Paths are relative to the
              folder of the CSV file, and labels are class names.
        split: name of the split to read; required if ``root`` is a folder of splits, otherwise None.
        classes: class names in label order, such as those of a trained network. The data may lack some of them. By
            default the sorted classes of the data, which must have at least two.

    Raises:
        ValueError: if the data set does not have one of these layouts; the message names the file or folder.
        OSError: if a folder or the CSV file cannot be read.
    """
    root = Path(root)
    check_exists(root)
    if root.is_dir():
        folder = _split_folder(root, split)
        files, skipped = _read_folders(folder)
    elif split is not None:
        raise ValueError(f"split: expected none for {root}, which is a file, got {split!r}")
    elif root.suffix.lower() != ".csv":
        raise ValueError(f"root: expected a folder or a .csv file, got {root}")
    else:
        folder = root
        files, skipped = read_csv(root), ()
    names = _class_names(folder, {name for _, name in files}, classes)
    label = {name: index for index, name in enumerate(names)}
    return ClassificationData(folder, tuple(Sample(path, label[name]) for path, name in files), names, skipped)


def _split_folder(root: Path, split: str | None) -> Path:
    present = split_folders(root)
    if split is None:
        if present:
            raise ValueError(f"split: expected one of {', '.join(present)} for {root}, got None")
        return root
    if not present:
        raise ValueError(f"split: expected none for {root}, which has no split folders, got {split!r}")
    if split not in present:
        hint = did_you_mean(split, present)
        raise ValueError(f"split: expected one of {', '.join(present)} for {root}, got {split!r}{hint}")
    return root / split


def _read_folders(root: Path) -> tuple[list[tuple[Path, str]], tuple[Path, ...]]:
    extensions = image_extensions()
    files = [path for path in sorted(root.iterdir()) if path.is_file() and not path.name.startswith(".")]
    skipped = [path for path in files if path.suffix.lower() in extensions]
    folders = list_folders(root)
    if not folders:
        raise ValueError(f"{root}: expected a folder of class folders, got {len(skipped)} images and no folder")
    images: list[tuple[Path, str]] = []
    for folder in folders:
        previous_count = len(images)
        for path in walk_files(folder):
            if path.suffix.lower() in extensions:
                images.append((path, folder.name))
            else:
                skipped.append(path)
        if len(images) == previous_count:
            skipped.append(folder)
    if not images:
        names = list_some(folder.name for folder in folders)
        raise ValueError(f"{root}: expected images in the class folders, got none in {names}")
    return images, tuple(skipped)


def _class_names(root: Path, present: set[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return ``classes`` after checking that they cover the present ones; by default the present ones, sorted."""
    if classes is None:
        if len(present) < 2:
            raise ValueError(f"{root}: expected at least two classes, got only {list_some(sorted(present))}")
        return tuple(sorted(present))
    check_classes(classes)
    unknown = sorted(present - set(classes))
    if unknown:
        hint = did_you_mean(unknown[0], classes)
        raise ValueError(
            f"classes: expected all classes of {root}, got {len(classes)} names that lack {list_some(unknown)}{hint}"
        )
    return tuple(classes)
