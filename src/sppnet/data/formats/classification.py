"""Classification data as training and evaluation use them: image files and class indices, from all formats."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sppnet.data.formats.annotations import report_similar
from sppnet.data.formats.table import choose_format, split_names
from sppnet.data.items import Part, Problems
from sppnet.data.splits import check_exists, default_split
from sppnet.errors import check_classes, did_you_mean, list_some

_MAX_HINTS = 3  # suggestions for unknown names; each compares the name with all classes


@dataclass(frozen=True)
class Sample:
    """An image file and its class index."""

    path: Path
    label: int


@dataclass(frozen=True)
class ClassificationData:
    """File names and labels of a classification data set.

    Attributes:
        root: the folder or file that was read.
        samples: images sorted by class and file, or in the order of the file that lists them.
        classes: class names, indexed by ``Sample.label``.
        problems: skipped files, similar class names and other problems that training tolerates, one line each.
    """

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    problems: tuple[str, ...]


def choose_classification_split(
    root: str | os.PathLike[str], wanted: str | None, *usual: str, format: str | None = None
) -> str | None:
    """Return the split `wanted`, by its name or role, or else the first existing one among `usual`.

    The arguments `root` and `format` are those of `read_classification`.

    Returns:
        The split; None if there are no splits.

    Raises:
        ValueError: there are splits, `wanted` is None and none of `usual` exists.
    """
    return default_split(root, split_names(root, "classify", format), wanted, *usual)


def read_classification(
    root: str | os.PathLike[str],
    split: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    format: str | None = None,
) -> ClassificationData:
    """List the images of a classification data set and their classes; images are not opened.

    Names of classes are compared without surrounding spaces and in one Unicode form (NFC).

    Args:
        root: data set in one of these formats.

            - A folder of class folders. Classes are sorted by name, and so are the files of each class. Files in
              subfolders of a class folder belong to that class.
            - A folder of splits (see `sppnet.data.splits`), each a folder of class folders.
            - A UTF-8 CSV file, see :func:`sppnet.data.formats.csv.read`.
            - Roboflow's export for several classes per image, SPLIT/_classes.csv, with one class in each row.
        split: name of the split to read; required if the data set has splits, otherwise None.
        classes: class names in label order, such as those of a trained network. The data may lack some of them. By
            default the sorted classes of the data, which must have at least two.
        format: name of the format; None to detect it.

    Raises:
        ValueError: the data set has none of these formats, its annotations have errors, or an image has several
            classes; the message names the file or folder.
        OSError: a folder or file cannot be read.
    """
    root = Path(root)
    check_exists(root)
    if classes is not None:
        check_classes(classes)
    chosen, splits = choose_format(root, "classify", format)
    source: Path = splits[_check_split(root, split, [name for name in splits if name is not None])]
    problems = Problems()
    part = chosen.read(root, split, source, problems)
    present = find_classes(source, part, problems, required=2 if classes is None else 1)
    problems.raise_errors()
    names = tuple(present if classes is None else classes)
    index = {class_name(name): number for number, name in enumerate(names)}
    if unknown := [name for name in present if name not in index]:
        hint = did_you_mean(unknown[0], names)
        raise ValueError(
            f"classes: expected all classes of {source}, got {len(names)} names that lack {list_some(unknown)}{hint}"
        )
    index |= {name: number for number, name in enumerate(names)}  # names that differ only in spaces or Unicode form

    def label(name: str) -> int:
        return index[name] if name in index else index[class_name(name)]

    samples = tuple(Sample(item.path, label(item.labels[0])) for item in part.items if item.labels)
    return ClassificationData(source, samples, names, problems.lines())


def class_name(label: str) -> str:
    """Return the name of a class: its label without surrounding spaces, with composed letters (NFC)."""
    return unicodedata.normalize("NFC", label.strip())


def find_classes(source: Path, part: Part, problems: Problems, required: int = 1) -> list[str]:
    """Return the classes of the images of a split, sorted, and report problems of the labels.

    Args:
        source: folder or file of the split, for messages.
        part: the split.
        problems: receives classes without images, similar names, and images with several classes or none.
        required: number of classes that the split must have.
    """
    labels = dict.fromkeys(label for item in part.items for label in item.labels)
    names = sorted({class_name(label) for label in labels})
    _report_merged(source, [*labels, *(part.classes or ())], problems)
    report_similar(names, source, problems)
    present = set(names)
    if unused := [name for name in dict.fromkeys(map(class_name, part.classes or ())) if name not in present]:
        problems.report(source, "empty-class", f"no image has the class {list_some(unused)}; not used as a class")
    unlabeled = [item for item in part.items if not item.labels]
    for item in unlabeled:
        problems.report(item.path, "no-annotation", f"no class in {item.where}; skipped")
    if several := [item for item in part.items if len(item.labels) > 1]:
        first = several[0]
        problems.report(
            source,
            "several-labels",
            f"{len(several)} images have several classes, such as {first.where}: {list_some(first.labels)};"
            " training on several labels per image is not available yet",
        )
    if len(names) < required and part.items:
        expected = "at least two classes" if required > 1 else "a class"
        got = f"only {list_some(names)}" if names else "none"
        problems.report(source, "bad-annotation", f"expected {expected}, got {got}")
    return names


def report_unknown(source: Path, names: Iterable[str], classes: Iterable[str], problems: Problems, split: str) -> None:
    """Report classes of a split that the training split lacks.

    Args:
        source: folder or file of the split.
        names: classes of the split.
        classes: classes of the training split.
        problems: receives the problems.
        split: name of the training split.
    """
    known = set(classes)
    for number, name in enumerate(name for name in names if name not in known):
        hint = did_you_mean(name, known) if number < _MAX_HINTS else ""
        path = source / name if source.is_dir() and (source / name).is_dir() else source
        problems.report(path, "unknown-class", f"no class {name} in {split}{hint}")


def _report_merged(source: Path, labels: Iterable[str], problems: Problems) -> None:
    """Report labels that are read as one class although their spaces or their Unicode form differ."""
    groups: dict[str, dict[str, None]] = {}
    for label in labels:
        groups.setdefault(class_name(label), {})[label] = None
    for name, group in groups.items():
        if len(group) > 1:
            reason = f"expected one form of the class {name}, got {', '.join(map(ascii, group))}; read as one class"
            problems.report(source, "similar-classes", reason)


def _check_split(root: Path, split: str | None, present: Sequence[str]) -> str | None:
    if (split is None and not present) or split in present:
        return split
    if not present:
        which = "is a file" if root.is_file() else "has no split folders"
        raise ValueError(f"split: expected none for {root}, which {which}, got {split!r}")
    hint = did_you_mean(split, present) if split else ""
    raise ValueError(f"split: expected one of {', '.join(present)} for {root}, got {split!r}{hint}")
