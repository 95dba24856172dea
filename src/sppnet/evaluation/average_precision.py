"""How good a detector is: average precision by the rules of PASCAL VOC and of COCO."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sppnet.data.formats.detection import DetectionSample
from sppnet.inference.results import Detections
from sppnet.ops.boxes import areas, overlaps

_OVERLAP = 0.5  # least overlap of a find, in VOC's rule


@dataclass(frozen=True)
class ClassScores:
    """Average precisions of one class, 0 to 1; None where the class has no object that counts.

    Attributes:
        objects: number of objects that are not difficult.
        ap50: area under the precision-recall curve at overlap 0.5 (VOC from 2010 on).
        voc07: mean of the precision at recall 0, 0.1, ..., 1 at overlap 0.5 (VOC up to 2009).
        ap: COCO's, the mean over the overlaps 0.5, 0.55, ..., 0.95.
    """

    objects: int
    ap50: float | None
    voc07: float | None
    ap: float | None


@dataclass(frozen=True)
class Curve:
    """Recall and precision after each detection that counts, surest first; both empty without one."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]

    def envelope(self) -> NDArray[np.float64]:
        """The best precision at this recall or a higher one, which never rises along the curve."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]


@dataclass(frozen=True)
class DetectionScores:
    """Means over the classes that have objects that count, and what they are means of.

    Attributes:
        images: number of images.
        ap50: mean of the classes' `ap50`.
        voc07: mean of the classes' `voc07`.
        map: mean of the classes' `ap`.
        per_class: by name, in the order of the classes, those without objects too.
        curves: at overlap 0.5, of the classes that have objects.
    """

    images: int
    ap50: float
    voc07: float
    map: float
    per_class: dict[str, ClassScores]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Matches:
    """What became of each detection by VOC's rule, surest first; one entry a detection in every array.

    Attributes:
        image: index of its image.
        index: of the detection in its image's :class:`Detections`.
        label: its class.
        score: as float64.
        overlap: with the object of its class that it overlaps most; 0 where the image has none.
        object: index of this object in its image; -1 where there is none.
        hit: it is the first find of an object that counts.
        ignored: it finds a difficult object, and counts neither for nor against the detector.
    """

    image: NDArray[np.intp]
    index: NDArray[np.intp]
    label: NDArray[np.intp]
    score: NDArray[np.float64]
    overlap: NDArray[np.float64]
    object: NDArray[np.intp]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


def score_detections(
    found: Sequence[Detections], samples: Sequence[DetectionSample], classes: Sequence[str]
) -> DetectionScores:
    """Average precisions of what was found in images whose objects are known.

    VOC's rule of matching is that of :func:`match_detections`. Recall is compared with 0, 0.1, ..., 1 as a fraction
    of whole numbers: 3 of 10 objects reach 0.3, which they miss in binary floating point.

    COCO's rule is faster-coco-eval's: at each overlap a detection, surest first, takes the free object that it
    overlaps most, at most 100 detections of a class in an image count, and precision is read at 101 recalls.
    Difficult objects are ignored as COCO ignores objects of other sizes than those in question: by plain overlap,
    once each, and only by detections that find no other object. They are not crowds, which swallow every detection
    that lies inside.

    A class whose objects are all difficult counts as one without objects.

    Args:
        found: one an image; labels are indices of `classes`, and the scores of a class are comparable over images.
            Where scores are equal, the earlier image goes first, and in an image the earlier detection.
        samples: the images' objects, in the same order.
        classes: names.

    Raises:
        ModuleNotFoundError: the extra `detect` is not installed.
        ValueError: not one `found` a sample, labels that are no indices of `classes`, boxes or scores that are not
            finite, or no object that counts.
    """
    _check(found, samples, len(classes))
    matches = match_detections(found, samples)
    counted = torch.cat([sample.labels[~sample.difficult] for sample in samples])
    objects = torch.bincount(counted, minlength=len(classes)).tolist()
    per_class: dict[str, ClassScores] = {}
    curves: dict[str, Curve] = {}
    for label, (name, ap) in enumerate(zip(classes, _coco(found, samples, len(classes)), strict=True)):
        if not objects[label]:
            per_class[name] = ClassScores(0, None, None, None)
            continue
        hits = matches.hit[(matches.label == label) & ~matches.ignored]
        per_class[name] = ClassScores(
            objects[label], area_average_precision(hits, objects[label]), voc07(hits, objects[label]), ap
        )
        curves[name] = curve(hits, objects[label])
    present = [scores for scores in per_class.values() if scores.objects]
    ap50s, voc07s, aps = zip(*((scores.ap50, scores.voc07, scores.ap) for scores in present), strict=True)
    mean = float(np.mean(ap50s)), float(np.mean(voc07s)), float(np.mean(aps))
    return DetectionScores(len(samples), *mean, per_class, curves)


def match_detections(found: Sequence[Detections], samples: Sequence[DetectionSample]) -> Matches:
    """Finds of objects by the rule of the VOC development kit.

    A detection goes to the object of its class that it overlaps most in its image, the earlier of two alike. An
    overlap of 0.5 or more is a find: the surest of an object is a hit, all others of it are false. Finds of a
    difficult object are ignored. Whatever overlaps less is false. A detection never turns to its second best object.

    Args:
        found: one an image.
        samples: the images' objects, in the same order.
    """
    best = [_best(detections, sample) for detections, sample in zip(found, samples, strict=True)]
    overlap = np.concatenate([overlap for overlap, _ in best])
    target = np.concatenate([target for _, target in best])
    counts = [len(detections.scores) for detections in found]
    image = np.repeat(np.arange(len(found)), counts)
    index = np.concatenate([np.arange(count) for count in counts])
    label = torch.cat([detections.labels for detections in found]).numpy().astype(np.intp)
    score = torch.cat([detections.scores for detections in found]).double().numpy()

    first = np.cumsum([0, *(len(sample.labels) for sample in samples)])[:-1]  # of an image, among all objects
    difficult = np.append(torch.cat([sample.difficult for sample in samples]).numpy(), False)
    unique_target = np.where(target < 0, -1, first[image] + target)
    finds = overlap >= _OVERLAP
    ignored = finds & difficult[unique_target]

    order = np.argsort(-score, kind="stable")
    hit = np.zeros(len(order), dtype=bool)
    candidates = order[(finds & ~ignored)[order]]
    _, surest = np.unique(unique_target[candidates], return_index=True)
    hit[candidates[surest]] = True
    return Matches(
        image[order],
        index[order],
        label[order],
        score[order],
        overlap[order],
        target[order],
        hit[order],
        ignored[order],
    )


def curve(hits: NDArray[np.bool_], objects: int) -> Curve:
    """Recall and precision after each detection.

    Args:
        hits: whether a detection is a hit, surest first, without those that are ignored.
        objects: number of objects that count, >= 1.
    """
    found = np.cumsum(hits)
    return Curve(found / objects, found / np.arange(1, len(hits) + 1))


def area_average_precision(hits: NDArray[np.bool_], objects: int) -> float:
    """Area under the envelope of the precision-recall curve (VOC from 2010 on); arguments as of :func:`curve`."""
    # Each hit widens the area by one object's share of recall.
    return float(curve(hits, objects).envelope()[hits].sum() / objects)


def voc07(hits: NDArray[np.bool_], objects: int) -> float:
    """Mean over recall 0, 0.1, ..., 1 of the best precision there or beyond, 0 where the recall is not reached.

    Arguments as of :func:`curve`.
    """
    envelope = curve(hits, objects).envelope()
    tenths = np.searchsorted(10 * np.cumsum(hits), np.arange(11) * objects)
    return float(np.append(envelope, 0.0)[tenths].mean())


def json_content(scores: DetectionScores) -> dict[str, Any]:
    """The scores as plain numbers and dictionaries, without the curves."""
    return {
        "images": scores.images,
        "ap50": scores.ap50,
        "map": scores.map,
        "voc07": scores.voc07,
        "per_class": {name: asdict(of_class) for name, of_class in scores.per_class.items()},
    }


def _check(found: Sequence[Detections], samples: Sequence[DetectionSample], classes: int) -> None:
    if len(found) != len(samples):
        raise ValueError(f"found: expected one for each of the {len(samples)} samples; got {len(found)}")
    for detections, sample in zip(found, samples, strict=True):
        for name, labels in (("found", detections.labels), ("samples", sample.labels)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                raise ValueError(
                    f"{name}: expected labels 0 to {classes - 1}, indices of the {classes} classes; "
                    f"got {int(labels.min())} to {int(labels.max())} for {sample.path}"
                )
        if not (detections.boxes.isfinite().all() and detections.scores.isfinite().all()):
            raise ValueError(f"found: expected finite boxes and scores; got others for {sample.path}")
    if not any((~sample.difficult).any() for sample in samples):
        raise ValueError("samples: expected at least one object that is not difficult; got none to score against")


def _best(detections: Detections, sample: DetectionSample) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The best overlap of each detection with an object of its class, and which object that is, else 0 and -1."""
    if not len(sample.labels):
        return np.zeros(len(detections.labels)), np.full(len(detections.labels), -1)
    shared = overlaps(detections.boxes, sample.boxes).double()
    table: NDArray[np.float64] = shared.masked_fill(detections.labels[:, None] != sample.labels[None], -1).numpy()
    target = table.argmax(axis=1)
    overlap = np.take_along_axis(table, target[:, None], axis=1)[:, 0]
    return np.maximum(overlap, 0), np.where(overlap < 0, -1, target)


def _coco(found: Sequence[Detections], samples: Sequence[DetectionSample], classes: int) -> list[float | None]:
    """COCO's average precision of each class, None without objects."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('COCO\'s scores need faster-coco-eval: pip install "sppnet[detect]"') from error
    objects = [
        {**row, "area": math.inf if difficult else row["area"]}
        for image, sample in enumerate(samples)
        for row, difficult in zip(_rows(image, sample.boxes, sample.labels), sample.difficult.tolist(), strict=True)
    ]
    detections = [
        {**row, "score": score}
        for image, one in enumerate(found)
        for row, score in zip(_rows(image, one.boxes, one.labels), one.scores.tolist(), strict=True)
    ]
    tables = [
        COCO(
            {
                "images": [{"id": image} for image in range(len(samples))],
                "categories": [{"id": label} for label in range(classes)],
                "annotations": [{"id": number, **row} for number, row in enumerate(rows, 1)],  # 0 would be no match
            }
        )
        for rows in (objects, detections)
    ]
    evaluation = COCOeval_faster(*tables, iouType="bbox")
    evaluation.params.areaRng, evaluation.params.maxDets = [[0, 1e10]], [100]
    evaluation.evaluate()
    evaluation.accumulate()
    # Axes: overlaps, recalls, classes, ranges of areas, numbers of detections; -1 where there is no object.
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    return [None if values.min() < 0 else float(values.mean()) for values in np.moveaxis(precision, 2, 0)]


def _rows(image: int, boxes: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Boxes of an image as annotations of COCO."""
    x1, y1, x2, y2 = boxes.double().unbind(1)
    edges = torch.stack((x1, y1, x2 - x1, y2 - y1), dim=1).tolist()
    return [
        {"image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0}
        for label, box, area in zip(labels.tolist(), edges, areas(boxes).tolist(), strict=True)
    ]
