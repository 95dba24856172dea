"""`sppnet compare-detectors`: the paper's Tables 9 and 10 for one's own data."""

import dataclasses
import statistics
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from sppnet.cli.common import list_problems, tell_comparison
from sppnet.cli.detect import PROPOSALS, options_of
from sppnet.detect.options import DetectOptions
from sppnet.io.files import write_json


def compare_parser() -> ArgumentParser:
    """Options of `sppnet compare-detectors`."""
    parser = ArgumentParser(
        description="Train SPP-net at one scale and at five, and R-CNN, on the same windows with the same heads, and"
        " print the paper's Tables 9 and 10 for your own data. R-CNN runs the network once a window, which takes long."
        " A killed comparison goes on where it stopped."
    )
    add, default = parser.add_argument, DetectOptions()
    add("data", help="data set in VOC or COCO layout")
    add("--out", default="sppnet-detectors", metavar="DIR", help="folder for figures, checkpoints and features")
    add("--split", default="train", help="part of the data to train on")
    add("--test-split", default="val", help="part of the data to score on")
    add("--images", type=int | None, help="first images of each part that are taken; left out: all")
    add("--seeds", type=int, default=3, help="how often fine-tuning and SVMs are repeated")
    add("--seed", type=int, default=0, help="the first seed")
    add("--backbone", default=default.backbone, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add(
        "--stage", type=int | None, default=default.stage, help="feature map of the backbone: 0 the finest, -1 the last"
    )
    add("--weights", default=default.weights, help="auto, hub (downloads timm's), none, or a safetensors file")
    add("--levels", default="6,3,2,1", help="levels of the pyramid")
    add("--scales", default="688", help="shorter side of the images for the one scale, pixels")
    add("--hidden", default="1024,1024", help="outputs of fc6 and fc7 (the paper's: 4096,4096)")
    add("--proposals", default="selective-search", help=PROPOSALS)
    add("--windows", type=int, default=500, help="most windows of an image")
    add("--epochs", type=int, default=default.epochs, help="of fine-tuning")
    add("--steps", type=int, default=default.steps, help="batches of an epoch of fine-tuning")
    add("--workers", type=int, default=default.workers, help="images searched for proposals at a time")
    add("--device", default=default.device, help="auto, cpu, cuda or mps")
    add("--cache", type=str | None, metavar="DIR", help="folder for proposals and features that runs may share")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def compare(arguments: Namespace) -> int:
    """Compare, print, and write the figures; 1 if an image could not be read."""
    from sppnet.data.formats.detection import read_detection
    from sppnet.studies.detectors import compare_detectors, comparison_content

    options = options_of(arguments)
    if len(options.hidden) != 2:
        raise ValueError(
            f"hidden: the tables have rows of fc6 and fc7, so two sizes are expected; got {options.hidden}"
        )
    if len(options.scales) != 1:
        raise ValueError(f"scales: the first column has one scale; got {options.scales}")
    for name in ("seeds", "images"):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"{name}: expected at least 1; got {arguments[name]}")
    train = read_detection(arguments.data, arguments.split)
    test = read_detection(arguments.data, arguments.test_split, train.classes, more_classes=True)
    train = dataclasses.replace(train, classes=test.classes)
    first = slice(arguments.images)
    train, test = (dataclasses.replace(part, samples=part.samples[first]) for part in (train, test))
    out = Path(arguments.out)
    comparison = compare_detectors(train, test, options, out, arguments.seeds)
    content = comparison_content(comparison)
    write_json(content, out / "comparison.json")
    list_problems((*train.problems, *test.problems, *comparison.problems), ())
    tell_comparison(content, tables, out, arguments.json)
    return 1 if comparison.problems else 0


def tables(content: dict[str, object]) -> list[Table]:
    """Precision and seconds, the paper's figures in brackets."""
    columns: dict[str, dict[str, dict[str, list[float]]]] = content["columns"]  # type: ignore[assignment]
    paper: dict[str, dict[str, list[float]]] = content["paper"]  # type: ignore[assignment]
    seconds: dict[str, dict[str, dict[str, float]]] = content["columns"]  # type: ignore[assignment]
    images: dict[str, int] = content["images"]  # type: ignore[assignment]
    title = (
        f"AP50 in %, mean (lowest to highest of {content['seeds']} seeds), {images['train']} training and"
        f" {images['test']} test images; [ ] the paper's mAP on VOC 2007, R-CNN there with AlexNet"
    )
    precision = Table("", *columns, title=title, title_justify="left")
    for row, told in paper["map_voc07"].items():
        cells = []
        for name, figure in zip(columns, told, strict=True):
            values = [100 * value for value in columns[name]["ap50"][row]]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f}) [{figure}]")
        precision.add_row(row, *(cell.replace("[", r"\[") for cell in cells))
    sample = content["columns"]["R-CNN"]["sample"]  # type: ignore[index]
    title = (
        f"seconds an image of {content['windows']:.0f} windows, R-CNN's convolutions scaled up from a sample of"
        f" {sample} of them; [ ] the paper's on a GPU with ZF-5 and some 2,000 windows"
    )
    speed = Table("", *columns, title=title, title_justify="left")
    for row, told in paper["seconds"].items():
        digits = 0 if row == "speed-up" else 3
        cells = [
            f"{seconds[name]['seconds'][row]:.{digits}f} [{figure:g}]"
            for name, figure in zip(columns, told, strict=True)
        ]
        speed.add_row(row, *(cell.replace("[", r"\[") for cell in cells))
    return [precision, speed]
