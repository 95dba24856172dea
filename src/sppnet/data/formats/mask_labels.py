"""Classes of the values of masks: from a class file, the layout of the data set, or the ids in the masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppnet.data.formats.annotations import report_absent
from sppnet.data.formats.class_tables import (
    CAMVID,
    VOC,
    ClassRow,
    find_class_file,
    label_map,
    parse_class_file,
    reorder,
    rows_from_names,
)
from sppnet.data.formats.mask_folders import MaskSource
from sppnet.data.formats.mask_values import WHITE
from sppnet.data.formats.masks import LabelMap, SegmentationSample, find_ids, format_ranges, holds_0_and_255
from sppnet.data.formats.table import Format
from sppnet.data.items import FATAL, Part, Problems
from sppnet.errors import list_some

_IGNORED, _CAMVID_VOID = 255, 11
_MAX_CLASSES = 1000  # larger ids are instance ids or not ids at all


def mask_samples(part: Part) -> tuple[SegmentationSample, ...]:
    """Return the images of a split that have a mask."""
    return tuple(SegmentationSample(item.path, item.mask) for item in part.items if item.mask is not None)


def find_labels(
    root: Path,
    known: Format,
    splits: Mapping[str | None, Any],
    split: str | None,
    part: Part,
    problems: Problems,
    names: Sequence[str] | None = None,
    ignore: Sequence[int] | None = None,
    class_file: Path | None = None,
    table: Sequence[ClassRow] = (),
) -> LabelMap | None:
    """Determine the classes of mask values from a class file, the layout, or the ids in the masks.

    Args:
        root: data set.
        known: its format.
        splits: source of each split.
        split: split whose masks determine the classes if nothing else does; the training split.
        part: what the format read from this split.
        problems: receives errors, and assumptions that the user may want to correct.
        names: as `classes` of `read_segmentation`, and so are the other arguments.
        ignore: raw ids to ignore.
        class_file: class file that replaces the one of the data set.
        table: classes to use without a class file.

    Returns:
        The label map; None if there are errors, which are reported.

    Raises:
        ValueError: the data set has classes that are not in `names`.
        OSError: a file cannot be read.
    """
    count, samples = len(problems), mask_samples(part)
    if not samples:  # reported by the reader
        return None
    if part.classes is not None:  # polygons
        rows = rows_from_names(part.classes) if class_file is None else parse_class_file(class_file, problems)
        if any(problem.kind in FATAL for problem in problems[count:]):
            return None
        labels = label_map(rows, ignore, ())
        return labels if names is None else reorder(labels, names, root)
    source: MaskSource = splits[split]
    if class_file is None:
        try:
            class_file = find_class_file(root, source.root, source.images)
        except ValueError as error:
            problems.report(root, "bad-annotation", str(error))
            return None
    rows = list(table) if class_file is None else parse_class_file(class_file, problems)
    usual: tuple[int, ...] = (_IGNORED,)
    if rows or class_file is not None:
        pass
    elif source.layout == "VOC":
        rows = rows_from_names(VOC)
    elif source.layout == "CamVid" and (set(CAMVID) <= set(names) if names else _is_camvid(samples)):
        rows, usual = rows_from_names(CAMVID), (_CAMVID_VOID, _IGNORED)
        if names is None:
            reason = (
                f"assumed to be CamVid, since no mask id is above {_CAMVID_VOID}; id {_CAMVID_VOID} is ignored; add a"
                " classes.txt to this folder if the classes are different"
            )
            problems.report(source.root, "assumed", reason)
    elif names is not None:
        rows = rows_from_names(names)
    else:
        rows = _number_rows(source.root, samples, usual if ignore is None else ignore, problems)
    if not rows or any(problem.kind in FATAL for problem in problems[count:]):
        return None
    labels = label_map(rows, ignore, usual)
    if not labels.classes:
        reason = f"expected at least one class that is not ignored, got only the ids {format_ranges(labels.ignore)}"
        problems.report(class_file or source.root, "bad-annotation", reason)
        return None
    if ignore is None and _IGNORED in labels.ignore:
        all_samples = [*samples]
        if holds_0_and_255(samples, labels):  # other splits are read only if they can change the result
            for other, other_source in splits.items():
                if other != split:
                    all_samples += mask_samples(known.read(root, other, other_source, Problems()))
        if holds_0_and_255(all_samples, labels):
            white = _with_white(rows, labels, class_file or source.masks, problems)
            if white is None:
                return None
            labels = white
    return labels if names is None else reorder(labels, names, source.root)


def _with_white(rows: Sequence[ClassRow], labels: LabelMap, where: Path, problems: Problems) -> LabelMap | None:
    """Return the labels of masks with the ids 0 and 255 if there are two classes; otherwise report an error."""
    if len(labels.classes) != 2 or dict(labels.ids) != {0: 0, 1: 1}:
        reason = (
            f"expected masks of at least two of the {len(labels.classes)} classes, got the ids 0 and {WHITE}, of which"
            f" {WHITE} is ignored by default; if it is a class, give a .csv class file with the columns name,id, such"
            f" as background,0 and object,{WHITE}; if not, ignore it with --ignore {WHITE}"
        )
        problems.report(where, "bad-annotation", reason)
        return None
    name = labels.classes[1]
    reason = f"assumed that {WHITE} is the class {name} and not ignored, since the masks hold only 0 and {WHITE}"
    problems.report(where, "assumed", reason)
    white = [row._replace(id=WHITE) if row.id == 1 else row for row in rows]
    return label_map(white, None, ())


def find_split_labels(
    root: Path,
    known: Format,
    splits: Mapping[str | None, Any],
    split: str | None,
    part: Part,
    problems: Problems,
    first: LabelMap | None,
) -> LabelMap | None:
    """Determine the classes of a split as training does: those of the training split, if there are any.

    Args:
        root: data set.
        known: its format.
        splits: source of each split.
        split: the split.
        part: what the format read from this split.
        problems: receives the problems of `find_labels`, and classes that the training split lacks.
        first: classes of the training split; None for this split itself.
    """
    found = Problems()
    try:
        labels = find_labels(root, known, splits, split, part, found, None if first is None else first.classes)
    except ValueError as error:
        problems.report(_folder(root, splits[split]), "bad-annotation", str(error))
        return None
    problems += [problem for problem in found if first is None or problem.kind in FATAL]
    return labels


def report_classes(
    where: Path, labels: LabelMap, pixels: Sequence[int], problems: Problems, trained: Sequence[int] | None = None
) -> None:
    """Report classes without a pixel in the training split, or those of another split that training lacks.

    Args:
        where: folder or list of the split.
        labels: the classes.
        pixels: number of pixels of each class in the split.
        problems: receives the problems.
        trained: number of pixels of each class in the training split; None if this is the training split.
    """
    counts = [int(count) for count in pixels]
    if not any(counts):
        reason = "expected pixels of a class, got none; no mask can be used, or all pixels are ignored"
        problems.report(where, "bad-annotation", reason)
    elif trained is None:
        absent = [name for name, count in zip(labels.classes, counts, strict=True) if not count]
        report_absent(where, absent, "pixel", problems)
    else:
        pairs = zip(labels.classes, counts, trained, strict=True)
        untrained = [f"{name} ({count} pixels)" for name, count, before in pairs if count and not int(before)]
        if untrained:
            reason = f"no training mask has the class {list_some(untrained)}"
            problems.report(where, "untrained-class", reason)


def _folder(root: Path, source: object) -> Path:
    return source.masks if isinstance(source, MaskSource) else root


def _is_camvid(samples: Sequence[SegmentationSample]) -> bool:
    """Return whether the largest id fits CamVid, since other data sets use the same folder names."""
    ids, _ = find_ids(samples)
    return max(ids - {_IGNORED}, default=0) in (_CAMVID_VOID - 1, _CAMVID_VOID)


def _number_rows(
    root: Path, samples: Sequence[SegmentationSample], ignore: Sequence[int], problems: Problems
) -> list[ClassRow]:
    """Return a class for each id up to the largest id in the masks; none if there is an error."""
    ids, failures = find_ids(samples)
    counted = ids - set(ignore)
    if max(counted, default=0) < 1:
        reason = (
            f"expected masks of at least two classes, got ids {format_ranges(ids) or 'none'} (ignored:"
            f" {format_ranges(ignore) or 'none'}); give a .csv class file with the columns name,id if the classes have"
            " other ids"
        )
        if failures:
            reason += f"; the first of {len(failures)} unreadable masks: {failures[0]}"
        problems.report(root, "bad-annotation", reason)
        return []
    if max(counted) >= _MAX_CLASSES:
        got = format_ranges(ids)
        reason = f"expected mask ids below {_MAX_CLASSES}, got {got}; give a class file if these are classes"
        problems.report(root, "bad-annotation", reason)
        return []
    return rows_from_names([f"class {value}" for value in range(max(counted) + 1)])
