"""Average precision of detectors by the rules of PASCAL VOC and COCO.

"Overlap" is intersection over union; only objects that are not difficult count.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sppnet.data.formats.detection import DetectionSample
from sppnet.errors import import_optional
from sppnet.inference.results import Detections
from sppnet.ops.boxes import areas, overlaps

_OVERLAP = 0.5  # minimum overlap of a match by the VOC rule


@dataclass(frozen=True)
class ClassScores:
    """Average precisions of one class, from 0 to 1; None if the class has no object that counts.

    Attributes:
        objects: number of objects that are not difficult.
        ap50: area under the precision-recall curve at overlap 0.5 (VOC since 2010).
        voc07: mean precision at recall 0, 0.1, ..., 1 and overlap 0.5 (VOC until 2009).
        ap: COCO average precision, the mean over the overlaps 0.5, 0.55, ..., 0.95.
    """

    objects: int
    ap50: float | None
    voc07: float | None
    ap: float | None


@dataclass(frozen=True)
class Curve:
    """Recall and precision after each detection that is not ignored, by descending score; empty without detections."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]

    def envelope(self) -> NDArray[np.float64]:
        """Return the highest precision at each recall or above; it never increases along the curve."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]


@dataclass(frozen=True)
class DetectionScores:
    """Mean scores over the classes with objects that count, and the scores of each class.

    Attributes:
        images: number of images.
        ap50: mean of the classes' `ap50`.
        voc07: mean of the classes' `voc07`.
        map: mean of the classes' `ap`.
        per_class: scores by class name, in class order, including classes without objects.
        curves: precision-recall curves at overlap 0.5, by name, of the classes with objects.
    """

    images: int
    ap50: float
    voc07: float
    map: float
    per_class: dict[str, ClassScores]
    curves: dict[str, Curve]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON types, without the curves."""
        return {
            "images": self.images,
            "ap50": self.ap50,
            "map": self.map,
            "voc07": self.voc07,
            "per_class": {name: asdict(of_class) for name, of_class in self.per_class.items()},
        }


@dataclass(frozen=True)
class Matches:
    """Detections matched to objects by the VOC rule, by descending score; arrays have one entry per detection.

    Attributes:
        image: index of the image.
        index: index of the detection in the :class:`Detections` of its image.
        label: class index.
        score: score as float64.
        overlap: highest overlap with an object of the same class in the image; 0 without such an object.
        object: index of that object in its image; -1 without such an object.
        hit: whether this is the first match of an object that counts.
        ignored: whether it matches a difficult object, and is neither a hit nor a false positive.
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
    """Compute average precisions of detections in annotated images.

    The VOC scores use the matching of :func:`match_detections`. Recall is compared with 0, 0.1, ..., 1 in integer
    arithmetic: 3 of 10 objects reach a recall of 0.3, which rounding to binary floating point would miss.

    The COCO scores are those of faster-coco-eval: for each overlap threshold, detections are matched by descending
    score to the unmatched object with the highest overlap, at most 100 detections per class and image are used, and
    precision is sampled at 101 recalls. Difficult objects are ignored the way COCO ignores objects outside a size
    range: each can be matched once, by plain overlap, and only by a detection that matches no other object. They are
    not treated as crowds, which absorb every detection inside them.

    A class with only difficult objects is treated as a class without objects.

    Args:
        found: detections of each image; labels are indices into `classes`, and the scores of a class are comparable
            across images. Equal scores are ordered by image, then by detection.
        samples: annotated objects of each image, in the same order.
        classes: class names.

    Raises:
        ModuleNotFoundError: the extra `detect` is not installed.
        ValueError: `found` and `samples` differ in length, a label is not an index into `classes`, a box or score is
            not finite, or no object counts.
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
    """Match detections to objects by the rule of the VOC development kit.

    Each detection is assigned to the object of its class in its image with the highest overlap, the earlier one in a
    tie. If the overlap is at least 0.5, it matches: the match with the highest score is the hit of the object, all
    others are false positives. Matches of a difficult object are ignored. Detections with a smaller overlap are false
    positives. A detection is never reassigned to its second-best object.

    Args:
        found: detections of each image.
        samples: annotated objects of each image, in the same order.
    """
    best = [_best(detections, sample) for detections, sample in zip(found, samples, strict=True)]
    overlap = np.concatenate([overlap for overlap, _ in best])
    target = np.concatenate([target for _, target in best])
    counts = [len(detections.scores) for detections in found]
    image = np.repeat(np.arange(len(found)), counts)
    index = np.concatenate([np.arange(count) for count in counts])
    label = torch.cat([detections.labels for detections in found]).numpy().astype(np.intp)
    score = torch.cat([detections.scores for detections in found]).double().numpy()

    first = np.cumsum([0, *(len(sample.labels) for sample in samples)])[:-1]  # global index of an image's first object
    difficult = np.append(torch.cat([sample.difficult for sample in samples]).numpy(), False)
    unique_target = np.where(target < 0, -1, first[image] + target)
    matched = overlap >= _OVERLAP
    ignored = matched & difficult[unique_target]

    order = np.argsort(-score, kind="stable")
    hit = np.zeros(len(order), dtype=bool)
    candidates = order[(matched & ~ignored)[order]]
    _, highest = np.unique(unique_target[candidates], return_index=True)
    hit[candidates[highest]] = True
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
    """Compute recall and precision after each detection.

    Args:
        hits: whether each detection is a hit, by descending score, without ignored detections.
        objects: number of objects that count, >= 1.
    """
    true_positives = np.cumsum(hits)
    return Curve(true_positives / objects, true_positives / np.arange(1, len(hits) + 1))


def area_average_precision(hits: NDArray[np.bool_], objects: int) -> float:
    """Compute the area under the precision-recall envelope (VOC since 2010); arguments as for :func:`curve`."""
    # Each hit increases recall by 1 / objects.
    return float(curve(hits, objects).envelope()[hits].sum() / objects)


def voc07(hits: NDArray[np.bool_], objects: int) -> float:
    """Compute the mean over recall 0, 0.1, ..., 1 of the highest precision at that recall or above (0 if not reached).

    Arguments as for :func:`curve`.
    """
    envelope = curve(hits, objects).envelope()
    tenths = np.searchsorted(10 * np.cumsum(hits), np.arange(11) * objects)
    return float(np.append(envelope, 0.0)[tenths].mean())


def _check(found: Sequence[Detections], samples: Sequence[DetectionSample], classes: int) -> None:
    if len(found) != len(samples):
        raise ValueError(f"found: expected one entry per sample ({len(samples)}), got {len(found)}")
    for detections, sample in zip(found, samples, strict=True):
        for name, labels in (("found", detections.labels), ("samples", sample.labels)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                raise ValueError(
                    f"{name}: expected labels 0 to {classes - 1}, indices of the {classes} classes, "
                    f"got {int(labels.min())} to {int(labels.max())} for {sample.path}"
                )
        if not (detections.boxes.isfinite().all() and detections.scores.isfinite().all()):
            raise ValueError(f"found: expected finite boxes and scores, got non-finite values for {sample.path}")
    if not any((~sample.difficult).any() for sample in samples):
        raise ValueError("samples: expected at least one object that is not difficult, got none")


def _best(detections: Detections, sample: DetectionSample) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return each detection's highest overlap with an object of its class and the object's index, or 0 and -1."""
    if not len(sample.labels):
        return np.zeros(len(detections.labels)), np.full(len(detections.labels), -1)
    pairs = overlaps(detections.boxes, sample.boxes).double()
    same_class: NDArray[np.float64] = pairs.masked_fill(detections.labels[:, None] != sample.labels[None], -1).numpy()
    target = same_class.argmax(axis=1)
    overlap = np.take_along_axis(same_class, target[:, None], axis=1)[:, 0]
    return np.maximum(overlap, 0), np.where(overlap < 0, -1, target)


def _coco(found: Sequence[Detections], samples: Sequence[DetectionSample], classes: int) -> list[float | None]:
    """Compute the COCO average precision of each class; None without objects."""
    coco = import_optional("faster_coco_eval", "COCO scores")
    objects = [
        {**row, "area": math.inf if difficult else row["area"]}
        for image, sample in enumerate(samples)
        for row, difficult in zip(_rows(image, sample.boxes, sample.labels), sample.difficult.tolist(), strict=True)
    ]
    scored = [
        {**row, "score": score}
        for image, detections in enumerate(found)
        for row, score in zip(
            _rows(image, detections.boxes, detections.labels), detections.scores.tolist(), strict=True
        )
    ]
    tables = [
        coco.COCO(
            {
                "images": [{"id": image} for image in range(len(samples))],
                "categories": [{"id": label} for label in range(classes)],
                "annotations": [{"id": number, **row} for number, row in enumerate(rows, 1)],  # id 0 means unmatched
            }
        )
        for rows in (objects, scored)
    ]
    evaluation = coco.COCOeval_faster(*tables, iouType="bbox")
    evaluation.params.areaRng, evaluation.params.maxDets = [[0, 1e10]], [100]
    evaluation.evaluate()
    evaluation.accumulate()
    # Axes: overlap, recall, class, area range, maximum detections; -1 for classes without objects.
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    return [None if values.min() < 0 else float(values.mean()) for values in np.moveaxis(precision, 2, 0)]


def _rows(image: int, boxes: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Convert the boxes of an image to COCO annotations."""
    x1, y1, x2, y2 = boxes.double().unbind(1)
    edges = torch.stack((x1, y1, x2 - x1, y2 - y1), dim=1).tolist()
    return [
        {"image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0}
        for label, box, area in zip(labels.tolist(), edges, areas(boxes).tolist(), strict=True)
    ]
