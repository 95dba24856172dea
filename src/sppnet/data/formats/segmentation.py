"""Readers of segmentation data sets in the layouts of CamVid and VOC, and of folders of images and masks."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sppnet.data.formats.class_tables import (
    CAMVID,
    VOC,
    ClassRow,
    find_class_file,
    label_map,
    read_class_file,
    reorder,
    rows_from_names,
)
from sppnet.data.formats.masks import LabelMap, SegmentationSample, find_ids, format_ranges
from sppnet.data.formats.voc import (
    images_by_name,
    read_list,
    require_images,
    voc_folder,
    voc_lists,
    without_class_lists,
)
from sppnet.data.splits import SPLITS, default_split, sort_splits
from sppnet.errors import check_classes, did_you_mean, list_some

_IGNORED, _CAMVID_VOID = 255, 11
_MASKS = ("masks", "annotations", "labels")
MASK_SUFFIXES = ("", "_mask", "_L", "_label")
_MAX_CLASSES = 1000  # larger ids are instance ids or not ids at all


@dataclass(frozen=True)
class SegmentationData:
    """Files and classes of a segmentation data set.

    Attributes:
        root: the folder that was read.
        samples: images and masks in the order of the split's list, or sorted by name.
        labels: mapping from the ids and colors of the masks to classes.
        problems: messages about skipped files and assumptions.
    """

    root: Path
    samples: tuple[SegmentationSample, ...]
    labels: LabelMap
    problems: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in index order."""
        return self.labels.classes


class _Part(NamedTuple):
    """Folders of the images and masks of a split, and its list of names, if any."""

    images: Path
    masks: Path
    listed: Path | None = None


class MaskLayout(NamedTuple):
    """Folder layout of a segmentation data set.

    Attributes:
        kind: ``CamVid``, ``VOC`` or ``pairs``.
        root: the folder of the parts.
        parts: folders by split; the only key is None if there are no splits.
    """

    kind: str
    root: Path
    parts: dict[str | None, _Part]


def segmentation_splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the splits of a data set, training first; empty if it has no splits or is not a data set.

    See `read_segmentation` for the layouts of splits.
    """
    layout = find_layout(Path(root))
    return () if layout is None else layout_splits(layout)


def choose_segmentation_split(root: str | os.PathLike[str], wanted: str | None, *usual: str) -> str | None:
    """Return `wanted` if given, else the first existing split among `usual`, or None if there are no splits.

    The case of the `usual` names is ignored.

    Raises:
        ValueError: if there are splits, `wanted` is None and none of `usual` exists.
    """
    splits = segmentation_splits(root)
    existing = {split.lower(): split for split in splits}
    return default_split(root, splits, wanted, *(existing.get(name, name) for name in usual))


def read_segmentation(
    root: str | os.PathLike[str],
    split: str | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    ignore: Sequence[int] | None = None,
    *,
    class_file: str | os.PathLike[str] | None = None,
    table: Sequence[ClassRow] = (),
) -> SegmentationData:
    """List the images and masks of a segmentation data set, and determine the classes of the mask ids.

    The classes come from the class file of the data set, if any: classes.txt, classes.csv or class_dict.csv, see
    `sppnet.data.formats.class_tables.read_class_file`. Otherwise VOC data sets have the 20 VOC classes and background,
    and CamVid data sets whose largest id is 10 or 11 have the 11 CamVid classes, with id 11 ignored. In other data sets
    the classes are ``class 0`` up to the largest id, and all masks are read to find it.

    Args:
        root: data set in one of three layouts. Images without a mask and masks without an image are skipped and
            reported in ``problems``.

            - CamVid: a folder with SPLIT and SPLITannot, in which images and masks have the same names.
            - VOC: a folder with JPEGImages, SegmentationClass and ImageSets/Segmentation/SPLIT.txt, or else
              ImageSets/Main/SPLIT.txt; or a folder with a single such folder, VOC* or VOCdevkit/VOC*.
              Without lists, all images with a mask are read.
            - A folder with images and masks (or annotations or labels); a mask is named like its image, optionally with
              the suffix _mask, _L or _label. Splits are SPLIT/images and SPLIT/masks, or images/SPLIT and masks/SPLIT.
        split: name of the split to read; required if `segmentation_splits` returns any, otherwise None.
        classes: class names in index order, such as those of a trained network, or the path of a class file. Names
            are matched to the classes of the data, which may lack some of them; if the data have no class names, they
            name the ids 0, 1 and so on.
        ignore: raw ids of ignored pixels; classes with such an id are removed. The default is 255, unless the class
            file uses it, and also 11 for CamVid.
        class_file: class file that replaces the one of the data set.
        table: classes to use if there is no class file, such as those that a network was trained with.

    Raises:
        ValueError: if the data set does not have one of these layouts; the message names the file or folder.
        OSError: if a folder or file cannot be read.
    """
    root = Path(root)
    if not root.exists():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise ValueError(f"no data set at {root}: no such folder or file{did_you_mean(root.name, siblings)}")
    if isinstance(classes, str | os.PathLike):
        if class_file is not None:
            raise ValueError(f"classes: expected names when class_file is given, got the file {os.fspath(classes)}")
        classes, class_file = None, classes
    if classes is not None:
        check_classes(classes)
    if ignore is not None and any(not 0 <= value <= 65_535 for value in ignore):
        raise ValueError(f"ignore: expected ids from 0 to 65535, got {list(ignore)}")
    layout = find_layout(root)
    if layout is None:
        raise ValueError(
            f"root: expected a folder with SPLIT and SPLITannot (CamVid), with JPEGImages and SegmentationClass (VOC),"
            f" or with images and {', '.join(_MASKS[:-1])} or {_MASKS[-1]}, got {root}"
        )
    problems: list[str] = []
    samples = _read_part(_choose_part(layout, split), problems)
    file = find_class_file(root, layout.root) if class_file is None else Path(class_file)
    rows = tuple(table) if file is None else read_class_file(file)
    labels = layout_labels(layout, samples, rows, classes, ignore, problems)
    return SegmentationData(layout.root, tuple(samples), labels, tuple(problems))


def layout_splits(layout: MaskLayout) -> tuple[str, ...]:
    """Return the names of the splits, training first; empty if there are none."""
    names = [name for name in layout.parts if name is not None]
    return sort_splits(without_class_lists(names) if layout.kind == "VOC" else names)


def _choose_part(layout: MaskLayout, split: str | None) -> _Part:
    names = layout_splits(layout)
    if split not in layout.parts:
        if not names:
            raise ValueError(f"split: expected none for {layout.root}, which has no splits, got {split!r}")
        hint = did_you_mean(split, names) if split else ""
        raise ValueError(f"split: expected one of {', '.join(names)} for {layout.root}, got {split!r}{hint}")
    return layout.parts[split]


def find_layout(root: Path) -> MaskLayout | None:
    """Detect the layout of a segmentation data set; None if the folder does not have one."""
    if not root.is_dir():
        return None
    folder = voc_folder(root, "SegmentationClass")
    candidates = [
        MaskLayout("CamVid", root, _camvid_parts(root)),
        MaskLayout("VOC", folder or root, _voc_parts(folder) if folder else {}),
        MaskLayout("pairs", root, _pair_parts(root)),
    ]
    layouts = [layout for layout in candidates if layout.parts]
    if len(layouts) > 1:
        places = list_some(f"{layout.parts[split].masks}" for layout in layouts for split in list(layout.parts)[:1])
        raise ValueError(f"root: expected one layout of segmentation data, got masks in {places}")
    return layouts[0] if layouts else None


def _camvid_parts(root: Path) -> dict[str | None, _Part]:
    folders = _folders(root)
    return {name: _Part(path, folders[f"{name}annot"]) for name, path in folders.items() if f"{name}annot" in folders}


def _voc_parts(folder: Path) -> dict[str | None, _Part]:
    images, masks = folder / "JPEGImages", folder / "SegmentationClass"
    lists = voc_lists(folder, "Segmentation") or voc_lists(folder, "Main")
    if not lists:
        return {None: _Part(images, masks)}
    return {split: _Part(images, masks, file) for split, file in lists.items()}


def _pair_parts(root: Path) -> dict[str | None, _Part]:
    masks = _mask_folder(root)
    if masks is not None:
        image_folders, mask_folders = _folders(root / "images"), _folders(masks)
        if not any(_is_split(name) and name in mask_folders for name in image_folders):
            return {None: _Part(root / "images", masks)}  # other subfolders, such as one per city, are not splits
        return {name: _Part(image_folders[name], mask_folders[name]) for name in image_folders if name in mask_folders}
    pairs = {name: (folder, _mask_folder(folder)) for name, folder in _folders(root).items()}
    return {name: _Part(folder / "images", masks) for name, (folder, masks) in pairs.items() if masks is not None}


def _mask_folder(folder: Path) -> Path | None:
    """Find the mask folder next to an images folder; COCO's annotations and YOLO's labels contain no images."""
    if not (folder / "images").is_dir():
        return None
    paths = [folder / name for name in _MASKS if (folder / name).is_dir() and images_by_name(folder / name)]
    if len(paths) > 1:
        raise ValueError(f"{folder}: expected one folder of masks, got {list_some(str(path) for path in paths)}")
    return paths[0] if paths else None


def _is_split(name: str) -> bool:
    return name.lower().rstrip("0123456789") in (*SPLITS, "training", "testing")


def _folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        return {}
    return {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}


def _read_part(part: _Part, problems: list[str]) -> list[SegmentationSample]:
    images, masks = images_by_name(part.images), images_by_name(part.masks)
    names = sorted(images) if part.listed is None else read_list(part.listed, images)
    require_images(names, images, part.images, part.listed or part.masks)
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise ValueError(f"{part.listed}: expected each image once, got duplicates of {list_some(duplicates)}")
    samples, without_mask, used = [], [], set()
    for name in names:
        matches = [path for ending in MASK_SUFFIXES for path in masks.get(name + ending, [])]
        if len(matches) > 1:
            paths = list_some(str(path) for path in matches)
            raise ValueError(f"{part.masks}: expected one mask for the image {images[name][0]}, got {paths}")
        if matches:
            samples.append(SegmentationSample(images[name][0], matches[0]))
            used.add(matches[0])
        else:
            without_mask.append(name)
    if without_mask:
        problems.append(f"{part.images}: images without a mask in {part.masks}: {list_some(without_mask)}; skipped")
    unused = [str(path) for paths in masks.values() for path in paths if path not in used]
    if unused and part.listed is None:
        problems.append(f"{part.masks}: masks without an image in {part.images}: {list_some(unused)}; skipped")
    if not samples:
        raise ValueError(
            f"{part.masks}: expected masks of the {len(names)} images of {part.listed or part.images}, got none; name a"
            " mask like its image, optionally with the suffix _mask, _L or _label"
        )
    return samples


def layout_labels(
    layout: MaskLayout,
    samples: Sequence[SegmentationSample],
    rows: Sequence[ClassRow],
    names: Sequence[str] | None,
    ignore: Sequence[int] | None,
    problems: list[str],
) -> LabelMap:
    """Determine the classes of mask values from a class table, the layout or the ids; may append to `problems`."""
    usual: tuple[int, ...] = (_IGNORED,)
    if rows:
        pass
    elif layout.kind == "VOC":
        rows = rows_from_names(VOC)
    elif layout.kind == "CamVid" and (set(CAMVID) <= set(names) if names else _is_camvid(samples)):
        rows, usual = rows_from_names(CAMVID), (_CAMVID_VOID, _IGNORED)
        if names is None:
            problems.append(
                f"{layout.root}: assumed to be CamVid, since no mask id is above {_CAMVID_VOID}; id {_CAMVID_VOID} is"
                " ignored; add a classes.txt to this folder if the classes are different"
            )
    elif names is not None:
        rows = rows_from_names(names)
    else:
        rows = rows_from_names(_number_names(layout.root, samples, usual if ignore is None else ignore))
    labels = label_map(rows, ignore, usual)
    return labels if names is None else reorder(labels, names, layout.root)


def _is_camvid(samples: Sequence[SegmentationSample]) -> bool:
    """Return whether the largest id fits CamVid, since other data sets use the same folder names."""
    ids, _ = find_ids(samples)
    return max(ids - {_IGNORED}, default=0) in (_CAMVID_VOID - 1, _CAMVID_VOID)


def _number_names(root: Path, samples: Sequence[SegmentationSample], ignore: Sequence[int]) -> list[str]:
    """Return a name for each id up to the largest id in the masks."""
    ids, failures = find_ids(samples)
    counted = ids - set(ignore)
    if max(counted, default=0) < 1:
        reason = f"; the first of {len(failures)} unreadable masks: {failures[0]}" if failures else ""
        raise ValueError(
            f"{root}: expected masks of at least two classes, got ids {format_ranges(ids) or 'none'} (ignored:"
            f" {format_ranges(ignore) or 'none'}); give a .csv class file with the columns name,id if the classes have"
            f" other ids{reason}"
        )
    if max(counted) >= _MAX_CLASSES:
        raise ValueError(
            f"{root}: expected mask ids below {_MAX_CLASSES}, got {format_ranges(ids)};"
            " give a class file if these are classes"
        )
    return [f"class {value}" for value in range(max(counted) + 1)]
