"""Reader of folders of images and masks: CamVid, VOC and CVAT, pairs of folders, and Roboflow's masks."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sppnet.data.formats.voc import images_by_name, read_list, voc_folder, voc_lists, without_class_lists
from sppnet.data.items import Item, Part, Problems
from sppnet.data.listing import walk_files
from sppnet.data.splits import list_folders, role_of, sort_splits
from sppnet.errors import did_you_mean, list_some

MASK_SUFFIXES = ("", "_mask", "_L", "_label")
_PAIRS = (("images", ("masks", "annotations", "labels")), ("img_dir", ("ann_dir",)))  # the second is mmsegmentation's
_ROBOFLOW_FILE = "_classes.csv"
_MAX_HINTS = 3  # suggestions for missing names; each compares the name with those of all images


class MaskSource(NamedTuple):
    """Folders of a split.

    Attributes:
        layout: ``CamVid``, ``VOC``, ``pairs`` or ``Roboflow``.
        root: folder of the data set, in which the class file is searched, too.
        images: folder of the images.
        masks: folder of the masks.
        listed: list of the names of the split; None for all images.
    """

    layout: str
    root: Path
    images: Path
    masks: Path
    listed: Path | None = None


Splits = dict[str | None, MaskSource]


def find_splits(root: Path) -> Splits:
    """Return the folders of each split of a data set in any of the layouts, training first.

    Raises:
        ValueError: the data set has several layouts.
    """
    found = [splits for find in (find_camvid, find_voc, find_pairs, find_roboflow) if (splits := find(root))]
    if len(found) > 1:
        places = list_some(str(next(iter(splits.values())).masks) for splits in found)
        raise ValueError(f"root: expected one layout of segmentation data, got masks in {places}")
    return found[0] if found else {}


def find_camvid(root: Path) -> Splits:
    """Return the splits of a folder with SPLIT and SPLITannot, in which images and masks have the same names."""
    folders = {path.name: path for path in list_folders(root)}
    return _sorted(
        {
            name: MaskSource("CamVid", root, path, folders[f"{name}annot"])
            for name, path in folders.items()
            if f"{name}annot" in folders
        }
    )


def find_voc(root: Path) -> Splits:
    """Return the splits of a VOC folder, or of CVAT's export of masks.

    The folder has JPEGImages, SegmentationClass and ImageSets/Segmentation/SPLIT.txt, or else ImageSets/Main/SPLIT.txt.
    A single list whose name is none of a split, such as CVAT's default.txt, is a data set without splits.

    Raises:
        ValueError: there are several VOC folders.
    """
    folder = voc_folder(root, "SegmentationClass") if root.is_dir() else None
    if folder is None:
        return {}
    lists = voc_lists(folder, "Segmentation") or voc_lists(folder, "Main")
    names = sort_splits(without_class_lists(lists))
    source = MaskSource("VOC", folder, folder / "JPEGImages", folder / "SegmentationClass")
    if len(names) == 1 and role_of(names[0]) is None:
        return {None: source._replace(listed=lists[names[0]])}
    return {name: source._replace(listed=lists[name]) for name in names} or {None: source}


def find_pairs(root: Path) -> Splits:
    """Return the splits of a folder with images and masks, annotations or labels, or with img_dir and ann_dir.

    Splits are SPLIT/images and SPLIT/masks, or images/SPLIT and masks/SPLIT. Other subfolders, such as one for each
    city, are no splits.

    Raises:
        ValueError: there are several folders of masks next to a folder of images.
    """
    source = _pair(root, root)
    if source is None:
        folders = list_folders(root)
        pairs = {folder.name: pair for folder in folders if (pair := _pair(folder, root))}
        if pairs:  # an empty folder of masks is an error in training and validation splits
            roles = [folder for folder in folders if role_of(folder.name) in ("train", "val")]
            empty = {folder.name: pair for folder in roles if (pair := _pair(folder, root, are_empty=True))}
            pairs = empty | pairs
        return _sorted(pairs)
    masks = {path.name: path for path in list_folders(source.masks)}
    images = {path.name: path for path in list_folders(source.images) if path.name in masks}
    if not any(role_of(name) for name in images):
        return {None: source}
    return _sorted({name: source._replace(images=path, masks=masks[name]) for name, path in images.items()})


def find_roboflow(root: Path) -> Splits:
    """Return the splits of Roboflow's export of masks: SPLIT/_classes.csv, and a.jpg and a_mask.png next to it."""
    if has_pixel_values(root / _ROBOFLOW_FILE):
        return {None: MaskSource("Roboflow", root, root, root)}
    folders = [folder for folder in list_folders(root) if has_pixel_values(folder / _ROBOFLOW_FILE)]
    return _sorted({folder.name: MaskSource("Roboflow", root, folder, folder) for folder in folders})


def read(root: Path, split: str | None, source: MaskSource, problems: Problems) -> Part:  # noqa: ARG001
    """Read the images of a split and the paths of their masks.

    A mask is named like its image, optionally with the suffix _mask, _L or _label. If all images have a mask with the
    same suffix, or without one, these are the masks; otherwise masks with the very name of an image come first.

    Args:
        root: data set.
        split: name of the split.
        source: folders of the split.
        problems: receives names without an image, images without a mask, masks without an image, and ambiguous names.

    Returns:
        The images; those without a mask have the mask None.

    Raises:
        OSError: a folder or list cannot be read.
    """
    images, masks = images_by_name(source.images), images_by_name(source.masks)
    if source.layout == "Roboflow":
        masks = {name: paths for name, paths in masks.items() if _base(name) in images}
        images = {name: paths for name, paths in images.items() if name not in masks}
    names = sorted(images) if source.listed is None else _listed(source, source.listed, images, problems)
    pairs = _match(images, masks)
    items = []
    for name in names:
        for path in images[name][1:]:
            reason = f"expected one image for each name, got this file and {images[name][0]}"
            problems.report(path, "bad-annotation", reason)
        candidates = pairs[name]
        if len(candidates) > 1:
            reason = f"expected one mask for this image, got {list_some(map(str, candidates))}"
            problems.report(images[name][0], "bad-annotation", reason)
        elif not candidates:
            shared = [str(path) for suffix in MASK_SUFFIXES for path in masks.get(name + suffix, [])]
            if shared:
                reason = f"expected a mask of its own, got {list_some(shared)}, the mask of another image, too"
                problems.report(images[name][0], "bad-annotation", reason)
            else:
                problems.report(images[name][0], "no-mask", f"no mask of this name in {source.masks}; skipped")
        items.append(Item(images[name][0], mask=candidates[0] if candidates else None, where=str(source.listed or "")))
    used = {path for paths in pairs.values() for path in paths}
    if source.listed is None:
        for path in sorted({path for paths in masks.values() for path in paths} - used):
            problems.report(path, "no-image", f"no image of this name in {source.images}; skipped")
    if not any(item.mask for item in items):
        reason = (
            f"expected masks of the {len(names)} images of {source.listed or source.images}, got none; name a mask like"
            " its image, optionally with the suffix _mask, _L or _label"
        )
        problems.report(source.masks, "bad-annotation", reason)
    return Part(items)


def _listed(source: MaskSource, file: Path, images: dict[str, list[Path]], problems: Problems) -> list[str]:
    """Return the names of a list that have an image, each once, and report the others."""
    try:
        names = read_list(file, images)
    except ValueError as error:
        reason = str(error)
        problems.report(file, "bad-annotation", reason.removeprefix(str(file)).lstrip(":, "))
        return []
    present: dict[str, None] = {}
    missing = 0
    for name in names:
        if name in present:
            problems.report(file, "bad-annotation", f"expected each image once, got {name} again")
        elif name in images:
            present[name] = None
        else:
            hint = did_you_mean(name, images) if missing < _MAX_HINTS else ""
            missing += 1
            reason = f"no image of this name, but {file} lists it{hint}"
            problems.report(source.images / name.replace("\0", "\\0"), "missing", reason)
    return list(present)


def _match(images: Iterable[str], masks: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Return the masks of each image: none, one, or several if they are ambiguous."""
    names = list(images)
    common = next((suffix for suffix in MASK_SUFFIXES if all(name + suffix in masks for name in names)), None)
    owners: dict[str, str] = {}  # image by name of the mask
    for suffix in MASK_SUFFIXES if common is None else (common, *MASK_SUFFIXES):
        for name in names:
            if name + suffix in masks:
                owners.setdefault(name + suffix, name)
    pairs: dict[str, list[Path]] = {name: [] for name in names}
    for mask, name in owners.items():
        pairs[name] += masks[mask]
    return pairs


def _pair(folder: Path, root: Path, *, are_empty: bool = False) -> MaskSource | None:
    """Return the folders of images and masks in a folder; COCO's annotations and YOLO's labels contain no images.

    With `are_empty`, the folder of masks must contain no file at all.
    """
    paths = [
        (folder / images, folder / name)
        for images, names in _PAIRS
        if (folder / images).is_dir()
        for name in names
        if (folder / name).is_dir()
        and bool(images_by_name(folder / name)) is not are_empty
        and not (are_empty and any(walk_files(folder / name)))
    ]
    if len(paths) > 1 and not are_empty:
        raise ValueError(f"{folder}: expected one folder of masks, got {list_some(str(masks) for _, masks in paths)}")
    return MaskSource("pairs", root, *paths[0]) if paths else None


def _sorted(splits: dict[str, MaskSource]) -> Splits:
    return {name: splits[name] for name in sort_splits(splits)}


def _base(name: str) -> str:
    return name.removesuffix("_mask") if name.endswith("_mask") else ""


def has_pixel_values(file: Path) -> bool:
    """Return whether a _classes.csv has the classes of Roboflow's masks, not those of images."""
    if not file.is_file():
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        return stream.readline(1 << 16).strip(' "\n').lower().startswith("pixel value")
