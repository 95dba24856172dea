"""Report of the evaluation of a detector: an HTML page, JSON and a table of the images."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sppnet.detect.evaluate import DetectionReport
from sppnet.detect.pictures import draw_errors
from sppnet.evaluation import report as html
from sppnet.evaluation.average_precision import match_detections
from sppnet.evaluation.calibration import reliability
from sppnet.evaluation.report import Bar, Cell, Tile, percent

_SIZES = {"small": "up to 32 x 32 pixels", "medium": "up to 96 x 96 pixels", "large": "more"}
_CURVES = 60  # classes whose curves are on the page


def write_report(report: DetectionReport, folder: Path, *, run: str, data: str) -> None:
    """Write ``report.html``, ``report.json`` and ``images.csv`` of an evaluation.

    Args:
        report: result of :func:`sppnet.detect.evaluate.evaluate_detector`.
        folder: output folder, created if missing.
        run: name of the model, for the page.
        data: name of the data set, for the page.
    """
    scores, confusion, quality = report.scores, report.confusion, report.quality
    classes = list(scores.per_class)
    wrong, missed = draw_errors(report.accepted, report.samples, classes, html.TILES // 2)
    ranked = sorted(scores.curves, key=lambda name: scores.per_class[name].ap50 or 0)
    curves = [
        (
            html.curve_chart(
                scores.curves[name].recall.tolist(),
                scores.curves[name].envelope().tolist(),
                ("recall", "precision"),
                f"precision and recall of {name}",
            ),
            f"{name}: AP50 {percent(scores.per_class[name].ap50)}",
        )
        for name in ranked[:_CURVES]
    ]
    rows: list[list[Cell]] = []
    for name in sorted(classes, key=lambda name: (scores.per_class[name].ap50 is None, scores.per_class[name].ap50)):
        values = quality[name]
        shares = map(percent, (scores.per_class[name].ap, values.precision, values.recall, values.f1))
        rows.append([name, Bar(scores.per_class[name].ap50), *shares, scores.per_class[name].objects])
    bins = reliability(*report.confidence) if report.probabilities else ()
    diagram = html.section(
        "Reliability",
        html.reliability_diagram(bins),
        note=f"{html.RELIABILITY} Predictions are detections; they are correct if they match an object at IoU 0.5.",
    )
    matrix = html.section(
        "Confusion matrix",
        html.confusions(confusion, [*classes, "nothing"]),
        note=f"Objects (rows) and detections (columns) from a score of {report.threshold:.2f}, matched at IoU 0.5. The"
        " last row counts false detections, the last column missed objects.",
    )
    found, objects = int(confusion[:, :-1].sum()), int(confusion[:-1].sum())
    hits = int(confusion.diag().sum())
    page = html.page(
        f"Detector {Path(run).name or run}",
        f"{scores.images:,} images of {data}, {objects:,} objects of {len(classes):,} classes",
        html.figures(
            {
                "AP50": percent(scores.ap50),
                "AP50:95": percent(scores.map),
                **({} if report.ece is None else {"calibration error": f"{report.ece:.3f}"}),
                f"precision, score ≥ {report.threshold:.2f}": percent(hits / found if found else None),
                f"recall, score ≥ {report.threshold:.2f}": percent(hits / objects),
                "recall of the proposals": percent(report.recall.fractions[0]),
                **({"unusable images": f"{len(report.failures):,}"} if report.failures else {}),
            }
        ),
        html.section(
            "Classes",
            html.table(["class", "AP50", "AP50:95", "precision", "recall", "F1", "objects"], rows),
            note=f"Precision, recall and F1 are those of the detections from a score of {report.threshold:.2f}.",
        ),
        html.section(
            "Recall by size",
            html.table(
                ["area of the object", "recall", "objects"],
                [[_SIZES[name], Bar(share), count] for name, (count, share) in report.recall_by_size.items()],
            ),
            note=f"Objects found by detections from a score of {report.threshold:.2f}.",
        ),
        html.section(
            "Surest mistakes",
            html.gallery([Tile((picture,), caption) for picture, caption in wrong]),
            note="False detections with the highest scores; objects of the class are dashed in white.",
        ),
        html.section(
            "Largest missed objects",
            html.gallery([Tile((picture,), caption) for picture, caption in missed]),
            note="Objects without a detection, with the detection of the class that overlaps them most.",
        ),
        html.section("Precision and recall", html.charts(curves), note="At IoU 0.5, the worst class first."),
        *([html.side_by_side(matrix, diagram)] if len(classes) <= 8 else [matrix, diagram]),
        html.section("Problems", html.problem_list([*map(str, report.failures), *report.problems])),
    )
    content = report.to_dict() | {
        "threshold": report.threshold,
        "quality": {name: asdict(values) for name, values in quality.items()},
        "confusion": {"classes": [*classes, "nothing"], "counts": confusion.tolist()},
        "reliability": [asdict(part) for part in bins],
    }
    html.write_report(folder, page, content, _rows(report))


def _rows(report: DetectionReport) -> list[dict[str, Any]]:
    """Count the objects, the detections from the threshold, hits and misses of each image."""
    matches = match_detections(report.found, report.samples)
    accepted = (matches.score >= report.threshold) & ~matches.ignored
    rows = []
    for index, sample in enumerate(report.samples):
        inside = accepted & (matches.image == index)
        objects, hits = int((~sample.difficult).sum()), int(matches.hit[inside].sum())
        rows.append(
            {
                "path": str(sample.path),
                "objects": objects,
                "found": hits,
                "missed": objects - hits,
                "false": int(inside.sum()) - hits,
            }
        )
    return rows
