"""Report of the evaluation of a segmenter: an HTML page, JSON and a table of the images."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from torch import Tensor

from sppnet.data.formats.masks import Colour, load_pair
from sppnet.data.formats.segmentation import SegmentationData
from sppnet.evaluation import report as html
from sppnet.evaluation.calibration import reliability
from sppnet.evaluation.report import Bar, Cell, Tile, percent
from sppnet.segment.evaluate import SegmentationReport
from sppnet.segment.pictures import WRONG, palette, panels

_WORST = 12  # images on the page


def write_report(
    report: SegmentationReport,
    data: SegmentationData,
    predict: Callable[[Image.Image], Tensor],
    folder: Path,
    *,
    run: str,
    name: str,
    colours: Sequence[Colour] = (),
) -> None:
    """Write ``report.html``, ``report.json`` and ``images.csv`` of an evaluation.

    Args:
        report: evaluation on `data`.
        data: images and masks.
        predict: function that predicts the class index of each pixel.
        folder: output folder, created if missing.
        run: name of the model, for the page.
        name: name of the data set, for the page.
        colours: RGB colors of the classes; missing ones default to VOC's.
    """
    scores, table = report.scores, palette(colours, len(data.classes))
    bins = () if report.confidence is None else reliability(report.confidence[:, 0], report.confidence[:, 1] > 0)
    ranked = sorted((value, index) for index, value in enumerate(report.by_image) if value is not None)
    tiles = []
    for value, index in ranked[:_WORST]:
        image, mask = load_pair(report.samples[index], data.labels)
        pictures = panels(image, mask, predict(image).numpy(), table)
        caption = (f"mean IoU {percent(value)}", f"{percent(report.accuracies[index])} of the pixels correct")
        tiles.append(Tile(pictures, (*caption, report.samples[index].path.name)))
    colors = {
        name: table[index].tolist() for index, name in enumerate(data.classes) if scores.per_class[name] is not None
    }
    diagram = html.section(
        "Reliability", html.reliability_diagram(bins), note=f"{html.RELIABILITY} Predictions are pixels."
    )
    confusions = html.section(
        "Confusion matrix",
        html.confusions(report.confusion, data.classes, "pixels"),
        note="Share of the pixels of each true class (rows) by predicted class.",
    )
    small = len(data.classes) <= 12
    page = html.page(
        f"Segmenter {Path(run).name or run}",
        f"{len(report.samples):,} images of {name}, {len(data.classes):,} classes",
        html.figures(
            {
                "mean IoU": percent(scores.miou),
                "pixel accuracy": percent(scores.pixel_accuracy),
                "mean accuracy": percent(scores.mean_accuracy),
                **({} if report.ece is None else {"calibration error": f"{report.ece:.3f}"}),
                **({"unusable images": f"{len(report.failures):,}"} if report.failures else {}),
            }
        ),
        html.section("Classes", _class_table(report), note="Sorted by IoU, the worst first."),
        html.section(
            "Worst images",
            html.legend(colors | {"wrong": WRONG}),
            html.gallery(tiles),
            note="The lowest mean IoU: image, mask, prediction and errors. images.csv lists all images.",
        ),
        *([html.side_by_side(confusions, diagram)] if small else [confusions, diagram]),
        html.section("Problems", html.problem_list([*map(str, report.failures), *report.problems])),
    )
    matrix = {"classes": list(data.classes), "counts": report.confusion.tolist()}
    content = report.to_dict() | {
        "quality": {name: asdict(values) for name, values in report.quality.items()},
        "confusion": matrix,
        "reliability": [asdict(part) for part in bins],
    }
    rows = [
        {"path": str(sample.path), "mask": str(sample.mask), "miou": miou, "pixel_accuracy": accuracy}
        for sample, miou, accuracy in zip(report.samples, report.by_image, report.accuracies, strict=True)
    ]
    html.write_report(folder, page, content, rows)


def _class_table(report: SegmentationReport) -> str:
    total, qualities = sum(report.scores.pixels.values()), report.quality
    rows: list[list[Cell]] = []
    for name, iou in sorted(report.scores.per_class.items(), key=lambda item: (item[1] is None, item[1])):
        quality, pixels = qualities[name], report.scores.pixels[name]
        shares = (quality.precision, quality.recall, quality.f1, pixels / max(total, 1))
        rows.append([name, Bar(iou), *map(percent, shares)])
    return html.table(["class", "IoU", "precision", "recall", "F1", "share of pixels"], rows)
