"""Report of the evaluation of a classifier: an HTML page, JSON and a table of the images."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sppnet.classify.evaluate import ClassificationReport, Scores
from sppnet.data.images import load_image
from sppnet.evaluation import report as html
from sppnet.evaluation.calibration import reliability
from sppnet.evaluation.report import Bar, Cell, Tile, percent


def write_report(
    report: ClassificationReport, folder: Path, *, run: str, data: str, threshold: float | None = None
) -> None:
    """Write ``report.html``, ``report.json`` and ``images.csv`` of an evaluation.

    Args:
        report: result of :func:`sppnet.classify.evaluate.evaluate_classifier`.
        folder: output folder, created if missing.
        run: name of the model, for the page.
        data: name of the data set, for the page.
        threshold: probability below which the model reports images as unknown; None if it has none.
    """
    classes = report.classes
    whole = len(classes) <= html.MOST_CLASSES
    confusions = html.section(
        "Confusion matrix" if whole else "Most frequent confusions",
        html.confusions(report.confusion, classes),
        note="Rows are the true classes; the color is the share of the row." if whole else "",
    )
    bins = reliability(*report.confidence)
    diagram = html.section("Reliability", html.reliability_diagram(bins), note=html.RELIABILITY)
    sizes = html.section(
        "Image sizes", _group_table("shorter side", report.by_size), _group_table("width/height", report.by_aspect)
    )
    page = html.page(
        f"Classifier {Path(run).name or run}",
        f"{report.scores.images:,} images of {data}, {len(classes):,} classes, resize policy {report.resize}",
        html.figures(_figures(report, threshold)),
        html.section(
            "Surest mistakes",
            html.gallery(_mistakes(report)),
            note="The wrong predictions with the highest scores. images.csv lists all images with their predictions.",
        ),
        *([html.side_by_side(confusions, diagram)] if len(classes) <= 10 else [confusions]),
        html.section("Classes", _class_table(report), note="Sorted by F1, the worst first."),
        *([sizes] if len(classes) <= 10 else [html.side_by_side(diagram, sizes)]),
        html.section("Problems", html.problem_list([*map(str, report.failures), *report.problems])),
    )
    matrix = {"classes": list(classes), "counts": report.confusion.tolist()}
    content = report.to_dict() | {
        "threshold": threshold,
        "per_class": {name: asdict(values) for name, values in report.per_class.items()},
        "confusion": matrix,
        "reliability": [asdict(part) for part in bins],
    }
    html.write_report(folder, page, content, [_row(report, index) for index in range(len(report.images))])


def _figures(report: ClassificationReport, threshold: float | None) -> dict[str, str]:
    scores = report.scores
    values = {"accuracy": percent(scores.top1), "mean per class": percent(scores.mean_per_class_accuracy)}
    if len(report.classes) > 5:
        values["top-5 accuracy"] = percent(scores.top5)
    values["calibration error"] = f"{report.ece:.3f}"
    if threshold is not None and report.images:
        confidence, correct = report.confidence
        accepted = confidence >= threshold
        values[f"accepted, score ≥ {threshold:.2f}"] = percent(float(accepted.double().mean()))
        values["of these correct"] = percent(float(correct[accepted].double().mean()) if accepted.any() else None)
    if report.failures:
        values["unusable images"] = f"{len(report.failures):,}"
    return values


def _mistakes(report: ClassificationReport) -> list[Tile]:
    wrong = sorted((image for image in report.images if image.predicted != image.label), key=lambda image: -image.score)
    return [
        Tile(
            (html.shrink(load_image(image.path)),),
            (
                f"{report.classes[image.predicted]} {image.score:.2f}",
                f"true: {report.classes[image.label]}",
                image.path.name,
            ),
        )
        for image in wrong[: html.TILES]
    ]


def _class_table(report: ClassificationReport) -> str:
    qualities = sorted(report.per_class.items(), key=lambda item: (item[1].f1 is None, item[1].f1))
    rows: list[list[Cell]] = [
        [name, Bar(quality.f1), percent(quality.precision), percent(quality.recall), quality.support]
        for name, quality in qualities
    ]
    return html.table(["class", "F1", "precision", "recall", "images"], rows)


def _group_table(title: str, groups: dict[str, Scores]) -> str:
    rows: list[list[Cell]] = [
        [name.removeprefix(f"{title} "), part.images, Bar(part.top1)] for name, part in groups.items()
    ]
    return html.table([title, "images", "accuracy"], rows)


def _row(report: ClassificationReport, index: int) -> dict[str, Any]:
    image = report.images[index]
    return {
        "path": str(image.path),
        "true": report.classes[image.label],
        "predicted": report.classes[image.predicted],
        "score": f"{image.score:.6f}",
        "correct": int(image.predicted == image.label),
    }
