"""Which layout a data set has, and which images, classes and masks it names."""

from pathlib import Path

from PIL import Image

from sppnet.data.check.boxes import compare_classes, read_coco, read_voc
from sppnet.data.check.items import Gathered, listed_names, one_image
from sppnet.data.formats.class_tables import ClassRow, find_class_file, read_class_file
from sppnet.data.formats.coco import coco_files
from sppnet.data.formats.csv import csv_rows
from sppnet.data.formats.masks import SegmentationSample
from sppnet.data.formats.segmentation import (
    MASK_ENDINGS,
    MaskLayout,
    find_layout,
    layout_labels,
    layout_splits,
)
from sppnet.data.formats.voc import images_by_name, voc_folder
from sppnet.data.images import NO_HEIC, image_extensions, open_image
from sppnet.data.listing import walk_files
from sppnet.data.splits import SPLITS, sort_splits, splits
from sppnet.errors import ImageError, suggest


def gather(root: Path) -> Gathered:
    """Recognise the layout of a data set and read what it names; images are not decoded.

    Args:
        root: class folders, splits of these, a CSV file, VOC or COCO, images with masks, or a folder of images; see
            `sppnet.data.formats.class_folders`, `sppnet.data.formats.detection` and `sppnet.data.formats.segmentation`. A set may have both boxes
            and masks.

    Raises:
        ValueError: it is none of these.
        OSError: a folder or file cannot be read.
    """
    if not root.exists():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise ValueError(f"no data set at {root}: no such folder or file{suggest(root.name, siblings)}")
    gathered = Gathered()
    if root.suffix.lower() == ".csv" and root.is_file():
        gathered.layouts.append("CSV file")
        _csv(root, gathered)
    elif root.suffix.lower() == ".json" and root.is_file():
        gathered.layouts.append("COCO boxes")
        read_coco(root, None, gathered)
    elif root.is_dir():
        _folder(root, gathered)
    else:
        raise ValueError(f"data: expected a folder, a .csv file of path,label or a .json file of COCO; got {root}")
    if not gathered.items and not gathered.problems:
        raise ValueError(f"data: expected images; {root} holds none (no file ends in .jpg, .png or the like)")
    compare_classes(gathered)
    return gathered


def _folder(root: Path, gathered: Gathered) -> None:
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


def _images(root: Path, gathered: Gathered) -> None:
    """Class folders, in splits or not, or a folder of images."""
    names = splits(root)
    parts: dict[str | None, Path] = {split: root / split for split in names} if names else {None: root}
    folders = {split: _inner_folders(folder) for split, folder in parts.items()}
    if not any(_are_classes(inner) for inner in folders.values()):
        folders = {split: [] for split in parts}
        gathered.layouts.append("images")
    else:
        gathered.layouts.append("splits of class folders" if names else "class folders")
    extensions = image_extensions()
    for split, folder in parts.items():
        classes = folders[split]
        for path in walk_files(folder):
            inner = path.relative_to(folder).parts
            label = inner[0] if classes and len(inner) > 1 else None
            if path.suffix.lower() not in extensions:
                if label or not classes:
                    gathered.report(path, *_why_no_image(path))
            elif classes and label is None:
                gathered.report(path, "left-out", "an image beside the class folders, which no command reads")
            else:
                gathered.item(path, split, label)
        held = {item.label for item in gathered.items.values() if split is None or split in item.splits}
        for one in classes:
            if one.name not in held:
                gathered.report(one, "empty-class", "a class folder without an image; it is no class")
    trained = {folder.name for folder in folders[names[0]]} if names and names[0].lower() == SPLITS[0] else set()
    for folder in [folder for inner in folders.values() for folder in inner]:
        if trained and folder.name not in trained:
            close = suggest(folder.name, trained)
            gathered.report(folder, "unknown-class", f"{names[0]} has no class of this name{close}")


def _why_no_image(path: Path) -> tuple[str, str]:
    """Kind and reason of a file whose extension is none of images."""
    extension = f"its extension ({path.suffix or 'none'})"
    try:
        with open_image(str(path)) as image:
            # Readers that know no file by its first bytes take much for an image.
            if Image.OPEN[image.format or ""][1] is not None:
                return "left-out", f"an image ({image.format}), but no command reads it because of {extension}"
    except ImageError as error:
        if error.reason == NO_HEIC:
            return "left-out", NO_HEIC
    except KeyError:
        pass
    return "passed-over", f"no image by {extension}"


def _inner_folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _are_classes(folders: list[Path]) -> bool:
    """Whether there are two or more, of which one holds an image."""
    extensions = image_extensions()
    held = (path for one in folders for path in walk_files(one) if path.suffix.lower() in extensions)
    return len(folders) > 1 and next(held, None) is not None


def _csv(file: Path, gathered: Gathered) -> None:
    try:
        rows = csv_rows(file)
    except ValueError as error:
        gathered.report(file, "bad-annotation", str(error))
        return
    lines: dict[Path, int] = {}
    for row in rows:
        path = file.parent / row.name
        if path in lines:
            first = gathered.items[path].label
            kind = "duplicate" if first == row.label else "duplicate-across-classes"
            also = "" if first == row.label else f" of the class {first}; here it is {row.label}"
            gathered.report(path, kind, f"{file}, line {row.line} names the file of line {lines[path]} again{also}")
            continue
        lines[path] = row.line
        gathered.item(path, None, row.label)


def _masks(root: Path, layout: MaskLayout, gathered: Gathered) -> None:
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
            if not one_image(name, images, part.images, part.listed or part.masks, gathered):
                continue
            item = gathered.item(images[name][0], split)
            found = [path for ending in MASK_ENDINGS for path in masks.get(name + ending, [])]
            used.update(found)
            if not found:
                gathered.report(item.path, "no-mask", f"no mask of this name in {part.masks}; left out")
            elif len(found) > 1:
                others = ", ".join(map(str, found))
                gathered.report(item.path, "bad-annotation", f"an image must have one mask, got {others}")
            else:
                pairs.append((item, found[0]))
        if part.listed is None:
            for mask in sorted({path for paths in masks.values() for path in paths} - used):
                gathered.report(mask, "no-image", f"no image of this name in {part.images}; left out")
        if labels is None and pairs:  # of the training part, for that is what others must fit
            samples = [SegmentationSample(item.path, mask) for item, mask in pairs]
            try:
                labels = layout_labels(layout, samples, rows, None, None, [])
            except ValueError as error:
                gathered.report(part.masks, "bad-annotation", str(error))
        for item, mask in pairs:
            if not item.masks:  # two lists may name an image
                item.masks.append((mask, labels))
