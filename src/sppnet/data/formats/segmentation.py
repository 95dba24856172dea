"""Reading of segmentation data sets in the layouts of CamVid, of VOC, and of folders of images and masks."""

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
    numbered,
    read_class_file,
    reorder,
)
from sppnet.data.formats.masks import LabelMap, SegmentationSample, find_ids, ranges
from sppnet.data.formats.voc import (
    images_by_name,
    read_list,
    require_images,
    voc_folder,
    voc_lists,
    whole_lists,
)
from sppnet.data.splits import SPLITS, sort_splits, usual_split
from sppnet.errors import list_some, suggest

_IGNORED, _CAMVID_VOID = 255, 11
_MASKS = ("masks", "annotations", "labels")
MASK_ENDINGS = ("", "_mask", "_L", "_label")
_MOST_CLASSES = 1000  # more are instances, or no ids at all


@dataclass(frozen=True)
class SegmentationData:
    """A segmentation data set; images are not read, and masks only where nothing else tells their classes.

    Attributes:
        root: the folder that was read.
        samples: in the order of the split's list, or sorted by name.
        labels: what the ids and colours of the masks stand for.
        problems: what was left out.
    """

    root: Path
    samples: tuple[SegmentationSample, ...]
    labels: LabelMap
    problems: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.labels.classes


class _Part(NamedTuple):
    """Where the images and masks of a split are."""

    images: Path
    masks: Path
    listed: Path | None = None


class MaskLayout(NamedTuple):
    """How a data set lies in its folder.

    Attributes:
        kind: ``CamVid``, ``VOC`` or ``pairs``.
        root: the folder that has the parts.
        parts: by split; one of None where there are no splits.
    """

    kind: str
    root: Path
    parts: dict[str | None, _Part]


def segmentation_splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of the splits of a folder, training first; none if it has none or is no data set.

    See `read_segmentation` for what a split is.
    """
    layout = find_layout(Path(root))
    return () if layout is None else layout_splits(layout)


def choose_segmentation_split(root: str | os.PathLike[str], wanted: str | None, *usual: str) -> str | None:
    """The split that is meant: the wanted one, else the first usual one that there is; None where there are no splits.

    Raises:
        ValueError: there are splits, none is wanted, and none is usual.
    """
    return usual_split(root, segmentation_splits(root), wanted, *usual)


def read_segmentation(
    root: str | os.PathLike[str],
    split: str | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    ignore: Sequence[int] | None = None,
    *,
    class_file: str | os.PathLike[str] | None = None,
    table: Sequence[ClassRow] = (),
) -> SegmentationData:
    """Reads which images a data set has, where their masks are, and what the ids in them stand for.

    Where it has a file classes.txt, classes.csv or class_dict.csv (see `sppnet.data.formats.class_tables.read_class_file`),
    that names the classes. Otherwise VOC has its 20 and the background. CamVid has its 11 where the greatest id of the
    masks is 10 or 11, and 11 is ignored. All others are ``class 0`` to the greatest id, for which all masks are read.

    Args:
        root: one of three layouts. Images and masks that lack the other are left out, and named in ``problems``.

            - CamVid: a folder with SPLIT and SPLITannot, in which images and masks have the same names.
            - VOC: a folder with JPEGImages, SegmentationClass and ImageSets/Segmentation/SPLIT.txt or, without those,
              ImageSets/Main/SPLIT.txt, of which the images that have a mask are read; or the one VOC* folder of that
              kind in it or in its VOCdevkit. Without lists every image with a mask is read.
            - A folder with images and masks (or annotations, or labels), in which masks have the names of the images
              or those with _mask, _L or _label behind. Splits are SPLIT/images and SPLIT/masks, or images/SPLIT and
              masks/SPLIT.
        split: the split to read; given exactly where `segmentation_splits` names some.
        classes: the names that class indices shall count, such as those of a trained network; or a class file, as
            `class_file`. Names find the data's classes of the same name, and the data may lack some of them. Where
            data have no names, these are the names of the ids 0, 1 and so on.
        ignore: raw ids of pixels that do not count. None for 255, where no class of a class file has it, and CamVid's
            void. A class with such an id is left out.
        class_file: says which id has which name, in place of the data set's own class file.
        table: says so where neither of these files does, such as the table that a network was trained with.

    Raises:
        ValueError: if the data set is not as described; the message names what is wrong and where.
        OSError: if a folder or file cannot be read.
    """
    root = Path(root)
    if not root.exists():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise ValueError(f"no data set at {root}: no such folder or file{suggest(root.name, siblings)}")
    if isinstance(classes, str | os.PathLike):
        if class_file is not None:
            raise ValueError(f"classes must be names where class_file is given, got the file {os.fspath(classes)}")
        classes, class_file = None, classes
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise ValueError(f"classes must be a class file, or one or more different names, got {list(classes)}")
    if ignore is not None and any(not 0 <= value <= 65_535 for value in ignore):
        raise ValueError(f"ignore must be ids of 0 to 65535, got {list(ignore)}")
    layout = find_layout(root)
    if layout is None:
        raise ValueError(
            f"a segmentation data set must be a folder with SPLIT and SPLITannot (CamVid), with JPEGImages and"
            f" SegmentationClass (VOC), or with images and {', '.join(_MASKS[:-1])} or {_MASKS[-1]}, got {root}"
        )
    problems: list[str] = []
    samples = _read_part(_choose_part(layout, split), problems)
    file = find_class_file(root, layout.root) if class_file is None else Path(class_file)
    rows = tuple(table) if file is None else read_class_file(file)
    labels = layout_labels(layout, samples, rows, classes, ignore, problems)
    return SegmentationData(layout.root, tuple(samples), labels, tuple(problems))


def layout_splits(layout: MaskLayout) -> tuple[str, ...]:
    """Names of the splits, training first; none if there are none."""
    names = [name for name in layout.parts if name is not None]
    return sort_splits(whole_lists(names) if layout.kind == "VOC" else names)


def _choose_part(layout: MaskLayout, split: str | None) -> _Part:
    names = layout_splits(layout)
    if split not in layout.parts:
        if not names:
            raise ValueError(f"split must be left out for {layout.root}, which has no splits, got {split!r}")
        hint = suggest(split, names) if split else ""
        raise ValueError(f"split must be one of {', '.join(names)} for {layout.root}, got {split!r}{hint}")
    return layout.parts[split]


def find_layout(root: Path) -> MaskLayout | None:
    """The layout of a data set with masks; None if the folder is none."""
    if not root.is_dir():
        return None
    folder = voc_folder(root, "SegmentationClass")
    found = [
        MaskLayout("CamVid", root, _camvid_parts(root)),
        MaskLayout("VOC", folder or root, _voc_parts(folder) if folder else {}),
        MaskLayout("pairs", root, _pair_parts(root)),
    ]
    found = [layout for layout in found if layout.parts]
    if len(found) > 1:
        places = list_some(f"{layout.parts[split].masks}" for layout in found for split in list(layout.parts)[:1])
        raise ValueError(f"root must have one layout of segmentation data, got masks in {places}")
    return found[0] if found else None


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
        images, inner = _folders(root / "images"), _folders(masks)
        if not any(_is_split(name) and name in inner for name in images):
            return {None: _Part(root / "images", masks)}  # folders of other names, such as those of towns, are one set
        return {name: _Part(images[name], inner[name]) for name in images if name in inner}
    found = {name: (folder, _mask_folder(folder)) for name, folder in _folders(root).items()}
    return {name: _Part(folder / "images", masks) for name, (folder, masks) in found.items() if masks is not None}


def _mask_folder(folder: Path) -> Path | None:
    """The folder of masks beside a folder named images; COCO's annotations and YOLO's labels hold no image."""
    if not (folder / "images").is_dir():
        return None
    found = [folder / name for name in _MASKS if (folder / name).is_dir() and images_by_name(folder / name)]
    if len(found) > 1:
        raise ValueError(f"{folder} must have one folder of masks, got {list_some(str(path) for path in found)}")
    return found[0] if found else None


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
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{part.listed} must name each image of a split once; these come again: {list_some(twice)}")
    samples, lonely, used = [], [], set()
    for name in names:
        found = [path for ending in MASK_ENDINGS for path in masks.get(name + ending, [])]
        if len(found) > 1:
            named = list_some(str(path) for path in found)
            raise ValueError(f"{part.masks} must have one mask for the image {images[name][0]}, got {named}")
        if found:
            samples.append(SegmentationSample(images[name][0], found[0]))
            used.add(found[0])
        else:
            lonely.append(name)
    if lonely:
        problems.append(f"{part.images}: images without a mask in {part.masks}: {list_some(lonely)}; left out")
    spare = [str(path) for paths in masks.values() for path in paths if path not in used]
    if spare and part.listed is None:
        problems.append(f"{part.masks}: masks without an image in {part.images}: {list_some(spare)}; left out")
    if not samples:
        raise ValueError(
            f"{part.masks} has no mask for any of the {len(names)} images of {part.listed or part.images}; a mask must"
            " have its image's name, perhaps with _mask, _L or _label behind it"
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
    """What the values of the masks mean: by class file, by layout, or numbered; doubts are added to `problems`."""
    usual: tuple[int, ...] = (_IGNORED,)
    if rows:
        pass
    elif layout.kind == "VOC":
        rows = numbered(VOC)
    elif layout.kind == "CamVid" and (set(CAMVID) <= set(names) if names else _is_camvid(samples)):
        rows, usual = numbered(CAMVID), (_CAMVID_VOID, _IGNORED)
        if names is None:
            problems.append(
                f"{layout.root}: taken for CamVid, since no id of the masks is above {_CAMVID_VOID}: {_CAMVID_VOID}"
                " does not count; a classes.txt beside the images would say otherwise"
            )
    elif names is not None:
        rows = numbered(names)
    else:
        rows = numbered(_number_names(layout.root, samples, usual if ignore is None else ignore))
    labels = label_map(rows, ignore, usual)
    return labels if names is None else reorder(labels, names, layout.root)


def _is_camvid(samples: Sequence[SegmentationSample]) -> bool:
    """Whether the masks fit: a set of fewer classes is another one, though its folders have the same names."""
    found, _ = find_ids(samples)
    return max(found - {_IGNORED}, default=0) in (_CAMVID_VOID - 1, _CAMVID_VOID)


def _number_names(root: Path, samples: Sequence[SegmentationSample], ignore: Sequence[int]) -> list[str]:
    """A name for each id up to the greatest that the masks have."""
    found, failures = find_ids(samples)
    counted = found - set(ignore)
    if max(counted, default=0) < 1:
        reason = f"; the first of {len(failures)} that cannot be read: {failures[0]}" if failures else ""
        raise ValueError(
            f"masks must show two classes or more; those of {root} have the ids {ranges(found) or 'none'}, of which"
            f" {ranges(ignore) or 'none'} is ignored; a class file .csv with the columns name,id names classes of any"
            f" ids{reason}"
        )
    if max(counted) >= _MOST_CLASSES:
        raise ValueError(
            f"ids without names must be below {_MOST_CLASSES}; the masks of {root} have the ids {ranges(found)}; give a"
            " class file if these are classes"
        )
    return [f"class {value}" for value in range(max(counted) + 1)]
