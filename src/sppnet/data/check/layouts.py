"""Detection of the layout of a data set, and collection of its images, classes and masks."""

from pathlib import Path

from PIL import Image

from sppnet.data.check.boxes import compare_classes, read_coco, read_voc
from sppnet.data.check.items import CheckState, has_one_image, listed_names
from sppnet.data.formats.class_tables import ClassRow, find_class_file, read_class_file
from sppnet.data.formats.coco import coco_files
from sppnet.data.formats.csv import read_csv_rows
from sppnet.data.formats.masks import SegmentationSample
from sppnet.data.formats.segmentation import (
    MASK_SUFFIXES,
    MaskLayout,
    find_layout,
    layout_labels,
    layout_splits,
)
from sppnet.data.formats.voc import images_by_name, voc_folder
from sppnet.data.images import NO_HEIC, image_extensions, open_image
from sppnet.data.listing import walk_files
from sppnet.data.splits import SPLITS, check_exists, list_folders, sort_splits, split_folders
from sppnet.errors import ImageError, did_you_mean


def read_data_set(root: Path) -> CheckState:
    """Detect the layout of a data set and collect its files and annotations without decoding images.

    Args:
        root: class folders, splits of class folders, a CSV file, VOC or COCO boxes, images with masks, or a folder of
            images; see `sppnet.data.formats.class_folders`, `sppnet.data.formats.detection` and
            `sppnet.data.formats.segmentation`. A data set may have both boxes and masks.

    Raises:
        ValueError: the layout is not recognized.
        OSError: a folder or file cannot be read.
    """
    check_exists(root)
    gathered = CheckState()
    if root.suffix.lower() == ".csv" and root.is_file():
        gathered.layouts.append("CSV file")
        _csv(root, gathered)
    elif root.suffix.lower() == ".json" and root.is_file():
        gathered.layouts.append("COCO boxes")
        read_coco(root, None, gathered)
    elif root.is_dir():
        _folder(root, gathered)
    else:
        raise ValueError(f"data: expected a folder, a .csv file of path,label or a COCO .json file, got {root}")
    if not gathered.items and not gathered.problems:
        raise ValueError(f"data: expected at least one image, got none in {root} (no .jpg, .png or similar)")
    compare_classes(gathered)
    return gathered


def _folder(root: Path, gathered: CheckState) -> None:
    voc, coco, masks = voc_folder(root, "Annotations"), coco_files(root), find_layout(root)
    if voc:
        gathered.layouts.append("VOC boxes")
        read_voc(voc, gathered)
    if coco:
        gathered.layouts.append("COCO boxes")
        for split in sort_splits(coco):
            read_coco(coco[split], split, gathered)
    if masks:
        gathered.layouts.append({"pairs": "folders of images and masks"}.get(masks.kind, f"{masks.kind} masks"))
        _masks(root, masks, gathered)
    if not gathered.layouts:
        _images(root, gathered)


def _images(root: Path, gathered: CheckState) -> None:
    """Collect the images of class folders, with or without splits, or of a folder of images."""
    names = split_folders(root)
    parts: dict[str | None, Path] = {split: root / split for split in names} if names else {None: root}
    folders = {split: list_folders(folder) for split, folder in parts.items()}
    if not any(_are_classes(subfolders) for subfolders in folders.values()):
        folders = {split: [] for split in parts}
        gathered.layouts.append("images")
    else:
        gathered.layouts.append("splits of class folders" if names else "class folders")
    extensions = image_extensions()
    for split, folder in parts.items():
        classes = folders[split]
        for path in walk_files(folder):
            relative = path.relative_to(folder).parts
            label = relative[0] if classes and len(relative) > 1 else None
            if path.suffix.lower() not in extensions:
                if label or not classes:
                    gathered.report(path, *_explain_skipped(path))
            elif classes and label is None:
                gathered.report(path, "left-out", "an image outside the class folders; no command reads it")
            else:
                gathered.item(path, split, label)
        labels = {item.label for item in gathered.items.values() if split is None or split in item.splits}
        for class_folder in classes:
            if class_folder.name not in labels:
                gathered.report(class_folder, "empty-class", "class folder without images, not used as a class")
    trained = {folder.name for folder in folders[names[0]]} if names and names[0].lower() == SPLITS[0] else set()
    for folder in [folder for subfolders in folders.values() for folder in subfolders]:
        if trained and folder.name not in trained:
            close = did_you_mean(folder.name, trained)
            gathered.report(folder, "unknown-class", f"no class of this name in {names[0]}{close}")


def _explain_skipped(path: Path) -> tuple[str, str]:
    """Return kind and reason for a file without an image extension."""
    extension = f"extension {path.suffix}" if path.suffix else "no extension"
    try:
        with open_image(str(path)) as image:
            # Formats without a signature check accept files that are not images.
            if Image.OPEN[image.format or ""][1] is not None:
                return "left-out", f"{image.format} image without an image extension ({extension}); no command reads it"
    except ImageError as error:
        if error.reason == NO_HEIC:
            return "left-out", NO_HEIC
    except KeyError:
        pass
    return "passed-over", f"not an image file ({extension})"


def _are_classes(folders: list[Path]) -> bool:
    """Return whether there are at least two folders and at least one of them contains an image."""
    extensions = image_extensions()
    images = (path for folder in folders for path in walk_files(folder) if path.suffix.lower() in extensions)
    return len(folders) > 1 and next(images, None) is not None


def _csv(file: Path, gathered: CheckState) -> None:
    try:
        rows = read_csv_rows(file)
    except ValueError as error:
        gathered.report(file, "bad-annotation", str(error))
        return
    lines: dict[Path, int] = {}
    for row in rows:
        path = file.parent / row.name
        if path in lines:
            first = gathered.items[path].label
            kind = "duplicate" if first == row.label else "duplicate-across-classes"
            labels = "" if first == row.label else f", which has the class {first} instead of {row.label}"
            gathered.report(path, kind, f"{file}, line {row.line} repeats the file of line {lines[path]}{labels}")
            continue
        lines[path] = row.line
        gathered.item(path, None, row.label)


def _masks(root: Path, layout: MaskLayout, gathered: CheckState) -> None:
    rows: tuple[ClassRow, ...] = ()
    labels = None
    try:
        file = find_class_file(root, layout.root)
        rows = () if file is None else tuple(read_class_file(file))
    except ValueError as error:
        gathered.report(root, "bad-annotation", str(error))
    for split in layout_splits(layout) or (None,):
        part = layout.parts[split]
        images, masks = images_by_name(part.images), images_by_name(part.masks)
        names = sorted(images) if part.listed is None else listed_names(part.listed, images, gathered)
        pairs, used = [], set()
        for name in names:
            if not has_one_image(name, images, part.images, part.listed or part.masks, gathered):
                continue
            item = gathered.item(images[name][0], split)
            matches = [path for ending in MASK_SUFFIXES for path in masks.get(name + ending, [])]
            used.update(matches)
            if not matches:
                gathered.report(item.path, "no-mask", f"no mask of this name in {part.masks}; skipped")
            elif len(matches) > 1:
                gathered.report(item.path, "bad-annotation", f"expected one mask, got {', '.join(map(str, matches))}")
            else:
                pairs.append((item, matches[0]))
        if part.listed is None:
            for mask in sorted({path for paths in masks.values() for path in paths} - used):
                gathered.report(mask, "no-image", f"no image of this name in {part.images}; skipped")
        if labels is None and pairs:  # of the first split, training: the others must match it
            samples = [SegmentationSample(item.path, mask) for item, mask in pairs]
            try:
                labels = layout_labels(layout, samples, rows, None, None, [])
            except ValueError as error:
                gathered.report(part.masks, "bad-annotation", str(error))
        for item, mask in pairs:
            if not item.masks:  # an image may be in several lists
                item.masks.append((mask, labels))
