"""Slow reference implementations of the VOC and COCO average precision, one detection at a time."""

from collections.abc import Sequence
from fractions import Fraction

from sppnet.data.formats.detection import DetectionSample
from sppnet.inference.results import Detections


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def devkit(found: Sequence[Detections], samples: Sequence[DetectionSample], label: int) -> tuple[list[bool], int]:
    """Match one detection at a time, and return whether each is a hit, without ignored ones, and the object count."""
    rows = [
        (score, image, box)
        for image, output in enumerate(found)
        for box, score, output_label in zip(
            output.boxes.tolist(), output.scores.tolist(), output.labels.tolist(), strict=True
        )
        if output_label == label
    ]
    rows.sort(key=lambda row: -row[0])
    hits: list[bool] = []
    taken: set[tuple[int, int]] = set()
    for _, image, box in rows:
        truth = samples[image]
        best, target = -1.0, -1
        for number, (true_box, true_label) in enumerate(zip(truth.boxes.tolist(), truth.labels, strict=True)):
            if true_label == label and iou(box, true_box) > best:
                best, target = iou(box, true_box), number
        if best < 0.5:
            hits.append(False)
        elif not truth.difficult[target]:
            hits.append((image, target) not in taken)
            taken.add((image, target))
    objects = sum(int(((truth.labels == label) & ~truth.difficult).sum()) for truth in samples)
    return hits, objects


def coco(found: Sequence[Detections], samples: Sequence[DetectionSample], label: int, threshold: float) -> float | None:
    """Return the average precision at one overlap, sampled at 101 recalls, matching one detection at a time.

    Each takes the unmatched object with the highest overlap, the last in a tie, and difficult objects only as a last
    resort.
    """
    rows: list[tuple[float, bool]] = []
    for output, truth in zip(found, samples, strict=True):
        of_class = [number for number, true_label in enumerate(truth.labels.tolist()) if true_label == label]
        free = sorted(of_class, key=lambda number: bool(truth.difficult[number]))
        for row in sorted(range(len(output.labels)), key=lambda row: -float(output.scores[row])):
            if output.labels[row] != label:
                continue
            overlaps = {number: iou(output.boxes[row].tolist(), truth.boxes[number].tolist()) for number in free}
            matching = [number for number in free if overlaps[number] >= threshold]
            candidates = [number for number in matching if not truth.difficult[number]] or matching
            if not candidates:
                rows.append((float(output.scores[row]), False))
                continue
            chosen = max(reversed(candidates), key=overlaps.__getitem__)
            free.remove(chosen)
            if not truth.difficult[chosen]:
                rows.append((float(output.scores[row]), True))
    objects = sum(int(((truth.labels == label) & ~truth.difficult).sum()) for truth in samples)
    if not objects:
        return None
    points = precisions([hit for _, hit in sorted(rows, key=lambda row: -row[0])], objects)
    best = [max((p for r, p in points if r >= Fraction(k, 100)), default=Fraction(0)) for k in range(101)]
    return float(sum(best) / 101)


def precisions(hits: list[bool], objects: int) -> list[tuple[Fraction, Fraction]]:
    """Return recall and precision after each detection."""
    return [(Fraction(sum(hits[:n]), objects), Fraction(sum(hits[:n]), n)) for n in range(1, len(hits) + 1)]


def eleven_points(hits: list[bool], objects: int) -> float:
    points = precisions(hits, objects)
    best = [max((p for r, p in points if r >= Fraction(k, 10)), default=Fraction(0)) for k in range(11)]
    return float(sum(best) / 11)


def area(hits: list[bool], objects: int) -> float:
    """Return the area under the envelope of the precision-recall curve."""
    total, reached = Fraction(0), Fraction(0)
    points = precisions(hits, objects)
    for recall, _ in points:
        total += (recall - reached) * max(p for r, p in points if r >= recall)
        reached = recall
    return float(total)
