"""`sppnet compare-detectors`: reproduce Tables 9 and 10 of the SPP-net paper on other data."""

import dataclasses
import statistics
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from sppnet.cli.common import list_problems, print_comparison
from sppnet.cli.detect import PROPOSALS, options_of
from sppnet.detect.options import DetectOptions
from sppnet.io.files import write_json


def compare_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet compare-detectors`."""
    parser = ArgumentParser(
        description="Train SPP-net at one scale and at five, and R-CNN, on the same windows with the same heads, and"
        " print Tables 9 and 10 of the SPP-net paper for your data. R-CNN is slow, because it runs the network once per"
        " window. Run the same command again to continue after an interruption."
    )
    add, default = parser.add_argument, DetectOptions()
    add("data", help="data set in VOC or COCO layout")
    add("--out", default="sppnet-detectors", metavar="DIR", help="output folder for results, checkpoints and features")
    add("--split", default="train", help="split to train on")
    add("--test-split", default="val", help="split to score on")
    add("--images", type=int | None, help="number of images to use from each split; default: all")
    add("--seeds", type=int, default=3, help="number of runs of fine-tuning and SVM training")
    add("--seed", type=int, default=0, help="first random seed")
    add("--backbone", default=default.backbone, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="feature map, 0 is the finest; default: the last map of stride 16")
    add("--weights", default=default.weights, help="weights: auto, hub (timm download), none, or a safetensors file")
    add("--levels", default="6,3,2,1", help="pyramid levels")
    add("--scales", default="688", help="shorter side of the images for one scale, in pixels")
    add("--hidden", default="1024,1024", help="sizes of fc6 and fc7 (paper: 4096,4096)")
    add("--proposals", default="selective-search", help=PROPOSALS)
    add("--windows", type=int, default=500, help="largest number of windows per image")
    add("--epochs", type=int, default=default.epochs, help="epochs of fine-tuning")
    add("--steps", type=int, default=default.steps, help="batches per epoch of fine-tuning")
    add("--workers", type=int, default=default.workers, help="number of images searched for proposals in parallel")
    add("--device", default=default.device, help="device: auto, cpu, cuda or mps")
    add("--cache", type=str | None, metavar="DIR", help="cache of proposals and features, shareable; default: --out")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def compare(arguments: Namespace) -> int:
    """Compare the detectors, write and print the results, and return 0, or 1 if an image could not be read."""
    from sppnet.data.formats.detection import read_detection
    from sppnet.studies.detectors import compare_detectors, comparison_content

    options = options_of(arguments)
    if len(options.hidden) != 2:
        raise ValueError(f"hidden: expected two sizes, those of fc6 and fc7, got {options.hidden}")
    if len(options.scales) != 1:
        raise ValueError(f"scales: expected one scale, got {options.scales}")
    for name in ("seeds", "images"):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"{name}: expected at least 1, got {arguments[name]}")
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
    print_comparison(content, tables, out, arguments.json)
    return 1 if comparison.problems else 0


def tables(content: dict[str, object]) -> list[Table]:
    """Format average precision and seconds per image as two tables, with the paper's values in brackets."""
    columns: dict[str, dict[str, dict[str, list[float]]]] = content["columns"]  # type: ignore[assignment]
    paper: dict[str, dict[str, list[float]]] = content["paper"]  # type: ignore[assignment]
    seconds: dict[str, dict[str, dict[str, float]]] = content["columns"]  # type: ignore[assignment]
    images: dict[str, int] = content["images"]  # type: ignore[assignment]
    title = (
        f"AP50 in %, mean (min to max of {content['seeds']} seeds), {images['train']} training and"
        f" {images['test']} test images; in brackets: the paper's mAP on VOC 2007, with AlexNet for R-CNN"
    )
    precision = Table("", *columns, title=title, title_justify="left")
    for row, published in paper["map_voc07"].items():
        cells = []
        for name, published_map in zip(columns, published, strict=True):
            values = [100 * value for value in columns[name]["ap50"][row]]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f}) [{published_map}]")
        precision.add_row(row, *(cell.replace("[", r"\[") for cell in cells))
    sample = content["columns"]["R-CNN"]["sample"]  # type: ignore[index]
    title = (
        f"seconds per image with {content['windows']:.0f} windows, R-CNN's convolutions extrapolated from a sample of"
        f" {sample} windows; in brackets: the paper's seconds on a GPU with ZF-5 and some 2,000 windows"
    )
    speed = Table("", *columns, title=title, title_justify="left")
    for row, published in paper["seconds"].items():
        digits = 0 if row == "speed-up" else 3
        cells = [
            f"{seconds[name]['seconds'][row]:.{digits}f} [{value:g}]"
            for name, value in zip(columns, published, strict=True)
        ]
        speed.add_row(row, *(cell.replace("[", r"\[") for cell in cells))
    return [precision, speed]
