"""Detection of the formats of a data set, and collection of its images with their annotations."""

from pathlib import Path
from typing import Any

from PIL import Image

from sppnet.data.check.items import CheckState, Source
from sppnet.data.formats.classification import find_classes, report_unknown
from sppnet.data.formats.mask_labels import find_split_labels
from sppnet.data.formats.masks import LabelMap
from sppnet.data.formats.table import FORMATS, Format, Splits, by_name, choose_format, find_formats, search_formats
from sppnet.data.images import NO_HEIC, image_extensions, open_image
from sppnet.data.items import Problem, Problems
from sppnet.data.listing import walk_files
from sppnet.data.splits import check_exists, list_folders, role_of, split_folders
from sppnet.errors import ImageError, check_choice

_CLASS_FOLDERS = "class-folders"


def read_data_set(root: Path, format: str | None = None) -> CheckState:
    """Detect the formats of a data set and collect its files and annotations without decoding images.

    Args:
        root: data set in one or more of the formats of `sppnet.data.formats.table`, such as boxes and masks of the same
            images, or a folder of images.
        format: name of a format; None to detect it.

    Raises:
        ValueError: no format is recognized, or not the given one.
        OSError: a folder cannot be read.
    """
    check_exists(root)
    state = CheckState()
    found = _find_formats(root, format, state.problems)
    for task in dict.fromkeys(known.task for known, _ in found):
        names = [known.name for known, _ in found if known.task == task]
        if len(names) > 1:
            reason = f"expected one format for the task {task}, got {', '.join(names)}; choose one with --format"
            state.problems.report(root, "bad-annotation", reason)
    for known, splits in found:
        has_splits = known.name == _CLASS_FOLDERS and None not in splits
        state.layouts.append(f"splits of {known.title}" if has_splits else known.title)
        names = [split for split in splits if split is not None]
        if names and "train" not in map(role_of, names):
            reason = f"no training split of {known.title}, only {', '.join(names)}; training needs --split"
            state.problems.report(root, "no-training-split", reason)
        _read(root, known, splits, state)
    if not state.layouts:
        if not root.is_dir():
            raise ValueError(f"data: expected a folder, or a .csv, .json or .yaml file of annotations, got {root}")
        state.layouts.append("images")
        _read_images(root, state)
    if not state.entries and not state.problems:
        raise ValueError(f"data: expected at least one image, got none in {root} (no .jpg, .png or similar)")
    return state


def _find_formats(root: Path, name: str | None, problems: Problems) -> list[tuple[Format, Splits]]:
    if name is not None:
        check_choice("format", name, [known.name for known in FORMATS])
        known = by_name(name)
        found = search_formats([known], root, problems)
        return found if found or problems else [choose_format(root, known.task, name)]
    found = find_formats(root, problems=problems)
    if any(known.name in ("coco", "yolo") for known, _ in found) and all(known.task != "segment" for known, _ in found):
        for known, _ in find_formats(root, "segment", Problems()):
            problems.report(root, "passed-over", f"polygons are checked as masks with --format {known.name}")
    if [known.name for known, _ in found] == [_CLASS_FOLDERS]:
        # A single folder is a subfolder of a folder of images, not a class.
        return found if any(len(list_folders(folder)) > 1 for folder in found[0][1].values()) else []
    return found


def _read(root: Path, known: Format, splits: Splits, state: CheckState) -> None:
    """Read all splits of a format, training first, and report the problems that training would report."""
    trained: tuple[str, list[str]] | None = None
    labels: LabelMap | None = None
    for split, source in splits.items():
        place = source if isinstance(source, Path) else getattr(source, "masks", None) or root
        problems = Problems()
        try:
            part = known.read(root, split, source, problems)
            label_map = None
            if known.task == "segment":  # those of the training split; the others must match it
                label_map = find_split_labels(root, known, splits, split, part, problems, labels)
                labels = labels or label_map
        except OSError as error:
            state.problems.append(_describe(error, place))
            continue
        if known.task == "classify":
            is_training = split is None or role_of(split) == "train"
            names = find_classes(place, part, problems, 2 if is_training else 1)
            if trained:
                report_unknown(place, names, trained[1], problems, trained[0])
            elif is_training:
                trained = split or str(root), names
        state.problems += [_look_into(problem) if known.name == _CLASS_FOLDERS else problem for problem in problems]
        state.add(Source(known, split, place, label_map.classes if label_map else part.classes, label_map), part)


def _describe(error: OSError, place: Path) -> Problem:
    """Return the problem of a file or folder that cannot be read, or has been deleted after it was listed."""
    path, reason = Path(error.filename or place), error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        return Problem(path, "missing", f"it was listed, but cannot be read: {reason}")
    return Problem(path, "unreadable", f"cannot be read: {reason}")


def _read_images(root: Path, state: CheckState) -> None:
    """Collect the images of a folder without labels, with or without splits."""
    try:
        names = split_folders(root)
    except ValueError:  # reported when the formats were searched
        names = ()
    parts: dict[str | None, Path] = {split: root / split for split in names} if names else {None: root}
    extensions = image_extensions()
    for split, folder in parts.items():
        for path in walk_files(folder):
            if path.suffix.lower() in extensions:
                state.entry(path, split)
            else:
                state.problems.append(_look_into(Problem(path, "passed-over", "")))


def _look_into(problem: Problem) -> Problem:
    """Return whether a file without an image extension is an image nevertheless."""
    path = problem.path
    if problem.kind != "passed-over":
        return problem
    extension = f"extension {path.suffix}" if path.suffix else "no extension"
    try:
        with open_image(str(path)) as image:
            # Formats without a signature check accept files that are not images.
            reader: Any = Image.OPEN.get(image.format or "")
            if reader and reader[1] is not None:
                reason = f"{image.format} image without an image extension ({extension}); no command reads it"
                return Problem(path, "left-out", reason)
    except ImageError as error:
        if error.reason == NO_HEIC:
            return Problem(path, "left-out", NO_HEIC)
        if error.kind == "missing":
            return Problem(path, "missing", "it was listed, but no longer exists")
    return Problem(path, "passed-over", f"not an image file ({extension})")
