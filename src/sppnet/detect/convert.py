"""Conversion of detection data sets from one format to another."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple, get_args

from sppnet.data.formats.detection import detection_splits, read_detection
from sppnet.data.images import image_size
from sppnet.data.splits import role_of
from sppnet.detect import writers
from sppnet.detect.writers import AnnotatedImage, AnnotatedObject
from sppnet.errors import ImageError, check_choice
from sppnet.io.remote import write_text
from sppnet.progress import track


class Conversion(NamedTuple):
    """Number of images by split (None: no splits), problems of the data, and images that could not be read."""

    images: dict[str | None, int]
    problems: tuple[str, ...]
    failures: tuple[ImageError, ...]


def convert_detection(
    root: str | os.PathLike[str], out: str | os.PathLike[str], to: writers.Format, *, format: str | None = None
) -> Conversion:
    """Write all splits of a detection data set in another format, with hard links to the images, or copies of them.

    Images keep their file name; repeated names get -2, -3 and so on. Boxes are clipped to the image, as in training.
    Unreadable images are omitted. The folder appears when it is complete.

    Args:
        root: data set, see :func:`sppnet.data.formats.detection.read_detection`.
        out: folder of the new data set, which must not exist.
        to: format of the new data set. ``coco``: difficult objects are crowds. ``yolo``: the first split of each role,
            named train, val or test; no flags of difficult objects. ``voc``: corners are whole pixels, and readers sort
            the classes. ``csv``: a box file per split with the column label, without images that have no object.
        format: format of `root`; None to detect it.

    Raises:
        ValueError: unusable data, an existing folder, or no split that ``yolo`` can have.
        OSError: a file cannot be read or written.
    """
    check_choice("to", to, get_args(writers.Format))
    out = Path(os.path.abspath(out))  # noqa: PTH100
    if out.exists():
        raise ValueError(f"out: expected a new folder, got {out}, which exists; choose another one, or delete it")
    classes: tuple[str, ...] = ()
    splits: dict[str | None, list[AnnotatedImage]] = {}
    problems: dict[str, None] = {}
    failures: dict[Path, ImageError] = {}
    for split in detection_splits(root, format) or (None,):
        data = read_detection(root, split, classes or None, more_classes=True, format=format)
        classes = data.classes
        problems |= dict.fromkeys(data.problems)
        name = role_of(split) if to == "yolo" and split else split
        if name in splits or (name is None and split):
            problems[f"split {split}: not written; YOLO data have one split each of train, val and test"] = None
            continue
        images = splits[name] = []
        for sample in track(data.samples, "reading", len(data.samples)):
            try:
                size = image_size(sample.path)
            except ImageError as error:
                failures[sample.path] = error
                continue
            rows = zip(sample.labels.tolist(), sample.boxes.tolist(), sample.difficult.tolist(), strict=True)
            objects = (AnnotatedObject(classes[label], writers.round_box(box), None, flag) for label, box, flag in rows)
            images.append(AnnotatedImage(str(sample.path), size, tuple(objects)))
    if not splits:
        raise ValueError(f"to: expected a format other than yolo for {root}, which has no split train, val or test")
    difficult = sum(entry.difficult for images in splits.values() for image in images for entry in image.objects)
    if difficult and to in ("yolo", "csv"):
        problems[f"{difficult} difficult objects: written as ordinary ones; {to} has no flag for them"] = None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".part", ".sppnet-", out.parent) as temporary:
        folder = Path(temporary, out.name)
        _write(folder, splits, to, classes)
        folder.rename(out)
    counts = {split: len(images) for split, images in splits.items()}
    return Conversion(counts, tuple(problems), tuple(failures.values()))


def _write(
    folder: Path, splits: dict[str | None, list[AnnotatedImage]], to: writers.Format, classes: Sequence[str]
) -> None:
    """Link the images and write their annotations; an image with equal objects in several splits has one name."""
    distinct = list(dict.fromkeys(image for images in splits.values() for image in images))
    stems = writers.unique_names(PurePath(_clean_stem(image.name) + ".x") for image in distinct)
    names = {image: stem[:-2] + PurePath(image.name).suffix for image, stem in zip(distinct, stems, strict=True)}
    for split, images in splits.items():
        place = "JPEGImages" if to == "voc" else f"images/{split}" if split else "images"
        (folder / place).mkdir(parents=True, exist_ok=True)
        for image in track(images, "images", len(images)):
            target = folder / place / names[image]
            if not target.exists():
                try:
                    os.link(os.path.realpath(image.name), target)
                except OSError:
                    shutil.copyfile(image.name, target)
        prefix = f"{place}/" if to == "csv" else ""
        named = [image._replace(name=prefix + names[image]) for image in images]
        for file, text in _annotations(split, named, to, classes):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            write_text(text, folder / file)
    if to == "yolo" and None in splits:
        write_text("".join(f"{name}\n" for name in classes), folder / "classes.txt")
    elif to == "yolo":
        write_text(writers.yolo_config({str(name): f"images/{name}" for name in splits}, classes), folder / "data.yaml")


def _annotations(
    split: str | None, images: Sequence[AnnotatedImage], to: writers.Format, classes: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each annotation file and image list of a split."""
    stems = [PurePath(image.name).stem for image in images]
    if to == "coco":
        content = json.dumps(writers.coco_content(images, classes), ensure_ascii=False)
        yield f"annotations/instances_{split}.json" if split else "_annotations.coco.json", content
    elif to == "csv":
        yield f"{split or 'boxes'}.csv", writers.csv_text(images)
    elif to == "voc":
        yield from ((f"Annotations/{stem}.xml", writers.voc_text(i)) for stem, i in zip(stems, images, strict=True))
        if split:
            yield f"ImageSets/Main/{split}.txt", "".join(f"{stem}\n" for stem in stems)
    else:
        ids = {name: number for number, name in enumerate(classes)}
        for stem, image in zip(stems, images, strict=True):
            yield f"labels/{split or ''}/{stem}.txt", writers.yolo_text(image, ids)


def _clean_stem(name: str) -> str:
    """Return the stem of a file name, without what lists of names cannot represent and readers skip."""
    return " ".join(PurePath(name).stem.encode(errors="replace").decode().split()).lstrip(".") or "image"
